//! Letters from the desk's thread to the tasks that answer. Waking a sleeping runtime is a system call: it happens once for all
//! letters of a tick, when the bell is rung, and a task of the runtime then wakes those that have any.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::sync::Notify;

struct Inner<T> {
    letters: VecDeque<T>,
    waker: Option<Waker>,
    /// Whether the bell knows of it.
    listed: bool,
    sender_gone: bool,
    /// Turns that had ended when the receiver went.
    receiver_gone: Option<u64>,
}

type Shared<T> = Arc<Mutex<Inner<T>>>;

fn open<T>(shared: &Shared<T>) -> MutexGuard<'_, Inner<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Told by the desk when it has put letters into boxes.
pub struct Bell<T> {
    listed: Mutex<Vec<Shared<T>>>,
    rung: Notify,
    turns: AtomicU64,
}

impl<T> Bell<T> {
    pub fn new() -> Bell<T> {
        Bell { listed: Mutex::new(Vec::new()), rung: Notify::new(), turns: AtomicU64::new(0) }
    }

    /// At the end of a turn: wakes those who have letters, if any have.
    pub fn ring(&self) {
        self.turns.fetch_add(1, Relaxed);
        if !self.listed.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            self.rung.notify_one();
        }
    }

    /// Listens to the bell for ever.
    pub async fn answer(&self) {
        loop {
            self.rung.notified().await;
            let listed = std::mem::take(&mut *self.listed.lock().unwrap_or_else(PoisonError::into_inner));
            for shared in listed {
                let mut inner = open(&shared);
                inner.listed = false;
                let waker = inner.waker.take();
                drop(inner);
                waker.into_iter().for_each(Waker::wake);
            }
        }
    }
}

/// The desk's end.
pub struct Sender<T> {
    shared: Shared<T>,
    bell: Arc<Bell<T>>,
    most: usize,
}

/// The end of a task.
pub struct Receiver<T> {
    shared: Shared<T>,
    bell: Arc<Bell<T>>,
}

/// A box for so many letters.
pub fn mailbox<T>(bell: &Arc<Bell<T>>, most: usize) -> (Sender<T>, Receiver<T>) {
    let inner = Inner { letters: VecDeque::new(), waker: None, listed: false, sender_gone: false, receiver_gone: None };
    let shared = Arc::new(Mutex::new(inner));
    (Sender { shared: shared.clone(), bell: bell.clone(), most }, Receiver { shared, bell: bell.clone() })
}

impl<T> Sender<T> {
    /// Puts a letter in, to be seen when the bell rings.
    pub fn put(&self, letter: T) {
        let mut inner = open(&self.shared);
        inner.letters.push_back(letter);
        if !std::mem::replace(&mut inner.listed, true) {
            drop(inner);
            self.bell.listed.lock().unwrap_or_else(PoisonError::into_inner).push(self.shared.clone());
        }
    }

    /// How many more letters it is for.
    pub fn room(&self) -> usize {
        self.most.saturating_sub(open(&self.shared).letters.len())
    }

    /// Turns that have ended since nobody will read any more; none while somebody may.
    pub fn left(&self) -> Option<u64> {
        let gone = open(&self.shared).receiver_gone;
        gone.map(|then| self.bell.turns.load(Relaxed).saturating_sub(then))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut inner = open(&self.shared);
        inner.sender_gone = true;
        let waker = inner.waker.take();
        drop(inner);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl<T> Receiver<T> {
    /// The next letter; none once there are no more and nobody can send any.
    pub async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| {
            let mut inner = open(&self.shared);
            match inner.letters.pop_front() {
                Some(letter) => Poll::Ready(Some(letter)),
                None if inner.sender_gone => Poll::Ready(None),
                None => {
                    inner.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next letter, if it is there.
    pub fn there(&mut self) -> Option<T> {
        open(&self.shared).letters.pop_front()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut inner = open(&self.shared);
        inner.receiver_gone = Some(self.bell.turns.load(Relaxed));
        inner.letters.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn every_letter_arrives_in_order_and_ends_are_seen() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bell = Arc::new(Bell::new());
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..8).map(|_| mailbox::<u32>(&bell, 100)).unzip();
        let listener = bell.clone();
        let desk = thread::spawn(move || {
            for tick in 0..1000 {
                // Some have none this time, some have several.
                for sender in senders.iter().skip(tick as usize % 3) {
                    sender.put(2 * tick);
                    sender.put(2 * tick + 1);
                }
                bell.ring();
            }
        });
        runtime.block_on(async {
            tokio::spawn(async move { listener.answer().await });
            for (i, receiver) in receivers.iter_mut().enumerate() {
                let mut found = Vec::new();
                while let Some(letter) = receiver.next().await {
                    found.push(letter);
                }
                let ticks = (0..1000).filter(|tick| i >= tick % 3);
                let sent: Vec<u32> = ticks.flat_map(|tick| [2 * tick as u32, 2 * tick as u32 + 1]).collect();
                assert_eq!(found, sent, "box {i}");
            }
        });
        desk.join().unwrap();
        let bell = Arc::new(Bell::new());
        let (sender, mut receiver) = mailbox::<u32>(&bell, 2);
        assert_eq!((sender.room(), receiver.there()), (2, None));
        sender.put(7);
        assert_eq!((sender.room(), sender.left(), receiver.there()), (1, None, Some(7)));
        bell.ring();
        drop(receiver);
        assert_eq!(sender.left(), Some(0));
        bell.ring();
        assert_eq!(sender.left(), Some(1));
    }
}
