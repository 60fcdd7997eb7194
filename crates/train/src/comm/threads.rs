//! Ranks as threads of one process: what one sends to another waits in a mailbox.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::tree::{Exchange, Sent, sum};
use super::{Comm, CommError};

/// Ranks as threads of one process. A rank that is dropped is gone for the others.
pub struct Threads {
    rank: usize,
    size: usize,
    patience: Duration,
    post: Arc<Post>,
}

struct Post {
    state: Mutex<State>,
    /// Rung when something is sent, or a rank is gone.
    bell: Condvar,
}

struct State {
    /// From one rank to another.
    mail: HashMap<(usize, usize), VecDeque<Mail>>,
    gone: Vec<bool>,
}

enum Mail {
    Values(Vec<f32>),
    Bytes(Vec<u8>),
}

impl Threads {
    /// All ranks of a group; within a sum a rank waits no longer than `patience` for another.
    ///
    /// # Panics
    /// If their number is no power of two.
    pub fn group(size: usize, patience: Duration) -> Vec<Threads> {
        assert!(size.is_power_of_two(), "{size} ranks");
        let state = Mutex::new(State { mail: HashMap::new(), gone: vec![false; size] });
        let post = Arc::new(Post { state, bell: Condvar::new() });
        (0..size).map(|rank| Threads { rank, size, patience, post: post.clone() }).collect()
    }

    /// What each rank returns, each on a thread of its own.
    ///
    /// # Panics
    /// If one of them does.
    pub fn run<T: Send>(size: usize, patience: Duration, work: impl Fn(Threads) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let work = &work;
            let ranks: Vec<_> =
                Threads::group(size, patience).into_iter().map(|comm| scope.spawn(move || work(comm))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank panicked")).collect()
        })
    }

    fn open(&self) -> MutexGuard<'_, State> {
        self.post.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, to: usize, mail: Mail) {
        self.open().mail.entry((self.rank, to)).or_default().push_back(mail);
        self.post.bell.notify_all();
    }

    fn receive(&self, from: usize, patience: Option<Duration>) -> Result<Mail, CommError> {
        let (began, mut state) = (Instant::now(), self.open());
        loop {
            if let Some(mail) = state.mail.get_mut(&(from, self.rank)).and_then(VecDeque::pop_front) {
                return Ok(mail);
            }
            if state.gone[from] {
                return Err(CommError::Gone { rank: from });
            }
            let left = match patience.map(|patience| patience.checked_sub(began.elapsed())) {
                None => Duration::from_secs(3600),
                Some(Some(left)) => left,
                Some(None) => return Err(CommError::Late { rank: from, seconds: self.patience.as_secs_f64() }),
            };
            state = self.post.bell.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.open().gone[self.rank] = true;
        self.post.bell.notify_all();
    }
}

impl Comm for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum_as(&self, values: &mut [f32], sent: Sent) -> Result<(), CommError> {
        let exchange: Exchange = &mut |other, own, theirs| {
            self.send(other, Mail::Values(own.to_vec()));
            match self.receive(other, Some(self.patience))? {
                Mail::Values(values) if values.len() == theirs.len() => theirs.copy_from_slice(&values),
                _ => return Err(CommError::Message("other values than were expected".into())),
            }
            Ok(())
        };
        sum((self.rank, self.size), values, sent, exchange)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError> {
        if self.rank == 0 {
            (1..self.size).for_each(|rank| self.send(rank, Mail::Bytes(bytes.clone())));
            return Ok(());
        }
        match self.receive(0, None)? {
            Mail::Bytes(sent) => *bytes = sent,
            Mail::Values(_) => return Err(CommError::Message("values, not a message".into())),
        }
        Ok(())
    }
}
