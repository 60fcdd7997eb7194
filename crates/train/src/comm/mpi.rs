//! Ranks as processes over MPI, through the crate `mpi`. A thread besides sends and receives signs of life.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mpi::environment::Universe;
use mpi::point_to_point::Message;
use mpi::request;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};
use mpi::{Tag, Threading};

use super::pulse::Pulse;
use super::tree::{Exchange, Sent, children, sum};
use super::watch::{Silent, Watch};
use super::{Comm, CommError};

/// How long another may be silent, where nothing else is asked for.
const SILENCE: Duration = Duration::from_secs(6);
/// A sign of life is sent so often, or four times within the limit.
const BEAT: Duration = Duration::from_secs(1);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of one message: MPI counts in 32 bits.
const PIECE: usize = 1 << 28;
/// Values of one message: below the 64 KiB up to which OpenMPI sends over TCP without asking. Larger messages wait for answers, which
/// wait behind the values that go the other way: half the speed.
const MESSAGE: usize = 15_000;
/// So long a wait only yields; a longer one sleeps in between, so that ranks may share a processor.
const EAGER: Duration = Duration::from_millis(2);
const NAP: Duration = Duration::from_micros(100);

/// What messages are for.
const VALUES: Tag = 0;
const TO_ALL: Tag = 1;
const LIFE: Tag = 2;

/// In the place of a step: this rank leaves in order.
const LEAVING: u64 = u64::MAX;

/// Name and version of the library that the program is linked with.
pub fn library() -> String {
    mpi::environment::library_version().map_or("unknown".into(), |text| {
        text.split(',').next().unwrap_or_default().trim_end_matches(['\0', ' ', '\n']).to_string()
    })
}

/// One rank of the processes that were started together. Where it ends by a panic, or another falls silent, all end.
pub struct Mpi {
    world: SimpleCommunicator,
    pulse: Arc<Pulse>,
    watching: Option<JoinHandle<()>>,
    _universe: Universe,
}

impl Mpi {
    /// Joins the others; to be called once. `limit` is how long another may be silent: then `lost` is told, and the job is ended.
    pub fn join(limit: Option<Duration>, lost: impl Fn(&CommError) + Send + 'static) -> Result<Mpi, CommError> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
            .ok_or_else(|| CommError::Library("it was started already".into()))?;
        if threading < Threading::Multiple {
            let what = "it does not allow calls from two threads (MPI_THREAD_MULTIPLE); install another build of it";
            return Err(CommError::Library(what.into()));
        }
        let (world, pulse) = (universe.world(), Arc::new(Pulse::new()));
        let own = pulse.clone();
        let watching = thread::spawn(move || watch(&own, limit.unwrap_or(SILENCE), lost));
        Ok(Mpi { world, pulse, watching: Some(watching), _universe: universe })
    }

    fn exchange(&self, other: usize, own: &[f32], theirs: &mut [f32]) {
        let other = self.world.process_at_rank(other as i32);
        request::scope(|scope| {
            let mut receives: VecDeque<_> = theirs
                .chunks_mut(MESSAGE)
                .map(|values| other.immediate_receive_into_with_tag(scope, values, VALUES))
                .collect();
            let mut sends: VecDeque<_> =
                own.chunks(MESSAGE).map(|values| other.immediate_send_with_tag(scope, values, VALUES)).collect();
            // Messages come in order.
            self.wait(|| {
                while let Some(first) = receives.pop_front() {
                    if let Err(first) = first.test() {
                        receives.push_front(first);
                        break;
                    }
                }
                while let Some(first) = sends.pop_front() {
                    if let Err(first) = first.test() {
                        sends.push_front(first);
                        break;
                    }
                }
                (receives.is_empty() && sends.is_empty()).then_some(())
            });
        });
    }

    /// The next part of a message from a rank.
    fn next(&self, from: usize) -> Message {
        let from = self.world.process_at_rank(from as i32);
        self.wait(|| from.immediate_matched_probe_with_tag(TO_ALL)).0
    }

    /// What comes, some time.
    fn wait<T>(&self, mut come: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            self.pulse.beat();
            if let Some(come) = come() {
                return come;
            }
            if began.elapsed() > EAGER { thread::sleep(NAP) } else { thread::yield_now() }
        }
    }
}

/// Sends signs of life with the step that this rank is in, and listens to those of others until all leave.
fn watch(pulse: &Pulse, limit: Duration, lost: impl Fn(&CommError)) {
    let world = SimpleCommunicator::world();
    let this = world.rank() as usize;
    let others = if this == 0 { 1..world.size() } else { 0..1 };
    let mut watch = Watch::new(others.clone().map(|rank| rank as usize).chain([this]), limit, Instant::now());
    let mut sent: Option<(Instant, u64)> = None;
    loop {
        let now = Instant::now();
        let leaving = pulse.is_leaving();
        let own = if leaving { LEAVING } else { pulse.step() };
        watch.own(this, pulse.seen(), (!leaving).then_some(own));
        let due = sent.is_none_or(|(at, said)| {
            said != LEAVING && (leaving || now.saturating_duration_since(at) > BEAT.min(limit / 4))
        });
        if due {
            others.clone().for_each(|other| world.process_at_rank(other).send_with_tag(&own, LIFE));
            sent = Some((now, own));
        }
        while let Some((message, status)) = world.any_process().immediate_matched_probe_with_tag(LIFE) {
            let (step, _) = message.matched_receive::<u64>();
            watch.heard(status.source_rank() as usize, (step != LEAVING).then_some(step));
        }
        // Nothing of either side is left on its way.
        if leaving && watch.all_left() {
            return;
        }
        if let Some(Silent { rank, step }) = watch.look(now) {
            let seconds = limit.as_secs_f64();
            lost(&if rank == this {
                CommError::Stuck { rank, step, seconds }
            } else {
                CommError::Silent { rank, step, seconds }
            });
            world.abort(1);
        }
        thread::sleep(LOOK);
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // Leaving in order would wait for the others, who wait for this rank.
        if thread::panicking() {
            self.world.abort(101);
        }
        self.pulse.leave();
        self.watching.take().map(JoinHandle::join);
    }
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum_as(&self, values: &mut [f32], sent: Sent) -> Result<(), CommError> {
        let exchange: Exchange = &mut |other, own, theirs| {
            self.exchange(other, own, theirs);
            Ok(())
        };
        sum((self.rank(), self.size()), values, sent, exchange)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError> {
        let rank = self.rank();
        if rank > 0 {
            let parent = rank & (rank - 1);
            let (len, _) = self.next(parent).matched_receive::<u64>();
            bytes.resize(len as usize, 0);
            for piece in bytes.chunks_mut(PIECE) {
                self.next(parent).matched_receive_into(piece);
            }
        }
        for child in children(rank, self.size()) {
            let child = self.world.process_at_rank(child as i32);
            child.send_with_tag(&(bytes.len() as u64), TO_ALL);
            bytes.chunks(PIECE).for_each(|piece| child.send_with_tag(piece, TO_ALL));
        }
        Ok(())
    }

    fn at(&self, step: Option<u64>) {
        self.pulse.at(step);
    }
}
