//! Ranks as processes over MPI, through the crate `mpi`. All calls are made from the thread that joined.

use std::thread;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::request;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Root, Source};

use super::{Comm, CommError, PATIENCE, double};

/// Bytes of one broadcast: MPI counts in 32 bits.
const PIECE: usize = 1 << 28;
/// So long a wait only yields; a longer one sleeps in between, so that ranks may share a processor.
const EAGER: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(100);

/// Name and version of the library that the program is linked with.
pub fn library() -> String {
    mpi::environment::library_version().map_or("unknown".into(), |text| {
        text.split(',').next().unwrap_or_default().trim_end_matches(['\0', ' ', '\n']).to_string()
    })
}

/// One rank of the processes that were started together. Where it ends by a panic, or another does not answer, all end.
pub struct Mpi {
    world: SimpleCommunicator,
    patience: Duration,
    /// Told before the job is ended.
    lost: Box<dyn Fn(&CommError)>,
    _universe: Universe,
}

impl Mpi {
    /// Joins the others; to be called once. `patience` is how long a rank waits for another within a sum.
    pub fn join(patience: Option<Duration>, lost: Box<dyn Fn(&CommError)>) -> Result<Mpi, CommError> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| CommError::Library("it was started already".into()))?;
        let world = universe.world();
        Ok(Mpi { world, patience: patience.unwrap_or(PATIENCE), lost, _universe: universe })
    }

    fn exchange(&self, other: usize, own: &[f32], theirs: &mut [f32]) {
        let other_rank = self.world.process_at_rank(other as i32);
        request::scope(|scope| {
            let mut receive = Some(other_rank.immediate_receive_into(scope, theirs));
            let mut send = Some(other_rank.immediate_send(scope, own));
            let began = Instant::now();
            while receive.is_some() || send.is_some() {
                receive = receive.take().and_then(|request| request.test().err());
                send = send.take().and_then(|request| request.test().err());
                let waited = began.elapsed();
                if waited > self.patience {
                    (self.lost)(&CommError::Late { rank: other, seconds: self.patience.as_secs_f64() });
                    self.world.abort(1);
                }
                if waited > EAGER { thread::sleep(NAP) } else { thread::yield_now() }
            }
        });
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // Leaving in order would wait for the others, who wait for this rank.
        if thread::panicking() {
            self.world.abort(101);
        }
    }
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        double((self.rank(), self.size()), values, |other, own, theirs| {
            self.exchange(other, own, theirs);
            Ok(())
        })
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError> {
        let root = self.world.process_at_rank(0);
        let mut len = bytes.len() as u64;
        root.broadcast_into(&mut len);
        bytes.resize(len as usize, 0);
        bytes.chunks_mut(PIECE).for_each(|piece| root.broadcast_into(piece));
        Ok(())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.world.barrier();
        Ok(())
    }
}
