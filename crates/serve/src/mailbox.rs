//! Letters from the desk's thread to the tasks that answer. Waking a sleeping runtime is a system call, and so is writing to a client, which
//! costs as much as a token: both happen for several letters at once. The first letter of a text and its last are told at the end of their
//! tick; those between wait for others, for [`PAUSE`] times as long as there are boxes with letters, at most [`LONGEST`]. Who reads nothing
//! before the end is told of the last alone, or of a box that fills.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// How long one box waits: 2,000 writes a second take a few hundredths of a processor.
const PAUSE: Duration = Duration::from_micros(500);
/// Nobody sees a text stop for so long.
const LONGEST: Duration = Duration::from_millis(40);

/// Which of the letters about a text one is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    First,
    Middle,
    Last,
}

/// In which list of the bell a box is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Nowhere,
    Later,
    Due,
}

struct Inner<T> {
    letters: VecDeque<T>,
    waker: Option<Waker>,
    place: Place,
    sender_gone: bool,
    /// Turns that had ended when the receiver went.
    receiver_gone: Option<u64>,
}

type Shared<T> = Arc<Mutex<Inner<T>>>;

fn open<T>(shared: &Shared<T>) -> MutexGuard<'_, Inner<T>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Listed<T> {
    due: Vec<Shared<T>>,
    later: Vec<Shared<T>>,
    /// When those of `later` were last due.
    since: Instant,
}

/// Told by the desk when it has put letters into boxes.
pub struct Bell<T> {
    listed: Mutex<Listed<T>>,
    rung: Notify,
    turns: AtomicU64,
}

impl<T> Bell<T> {
    pub fn new() -> Bell<T> {
        let listed = Listed { due: Vec::new(), later: Vec::new(), since: Instant::now() };
        Bell { listed: Mutex::new(listed), rung: Notify::new(), turns: AtomicU64::new(0) }
    }

    fn listed(&self) -> MutexGuard<'_, Listed<T>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At the end of a turn: wakes those whose letters are due, if any are.
    pub fn ring(&self) {
        self.turns.fetch_add(1, Relaxed);
        let mut guard = self.listed();
        let listed = &mut *guard;
        let pause = PAUSE.saturating_mul(listed.later.len() as u32).min(LONGEST);
        if !listed.later.is_empty() && listed.since.elapsed() >= pause {
            listed.due.append(&mut listed.later);
            listed.since = Instant::now();
        }
        if !listed.due.is_empty() {
            drop(guard);
            self.rung.notify_one();
        }
    }

    /// Listens to the bell for ever.
    pub async fn answer(&self) {
        loop {
            self.rung.notified().await;
            let due = std::mem::take(&mut self.listed().due);
            for shared in due {
                let mut inner = open(&shared);
                inner.place = Place::Nowhere;
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
    /// Whether the receiver waits for every letter, not for the last alone.
    eager: bool,
}

/// The end of a task.
pub struct Receiver<T> {
    shared: Shared<T>,
    bell: Arc<Bell<T>>,
}

/// A box for so many letters; `eager` where the receiver waits for each, not for the last alone.
pub fn mailbox<T>(bell: &Arc<Bell<T>>, most: usize, eager: bool) -> (Sender<T>, Receiver<T>) {
    let (letters, place) = (VecDeque::new(), Place::Nowhere);
    let inner = Inner { letters, waker: None, place, sender_gone: false, receiver_gone: None };
    let shared = Arc::new(Mutex::new(inner));
    (Sender { shared: shared.clone(), bell: bell.clone(), most, eager }, Receiver { shared, bell: bell.clone() })
}

impl<T> Sender<T> {
    /// Puts a letter in, to be seen when the bell rings, or soon after.
    pub fn put(&self, letter: T, part: Part) {
        let mut inner = open(&self.shared);
        inner.letters.push_back(letter);
        // A box that fills would stop its text.
        let full = 2 * inner.letters.len() > self.most;
        let due = full || part == Part::Last || (part == Part::First && self.eager);
        let place = match due {
            true => Place::Due,
            false if self.eager => Place::Later,
            false => return,
        };
        if place > inner.place {
            inner.place = place;
            drop(inner);
            let mut listed = self.bell.listed();
            if due { &mut listed.due } else { &mut listed.later }.push(self.shared.clone());
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
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..8).map(|i| mailbox::<u32>(&bell, 100, i % 2 == 0)).unzip();
        let listener = bell.clone();
        let desk = thread::spawn(move || {
            for tick in 0..1000 {
                // Some have none this time, some have several.
                for sender in senders.iter().skip(tick as usize % 3) {
                    sender.put(2 * tick, Part::First);
                    sender.put(2 * tick + 1, if tick > 990 { Part::Last } else { Part::Middle });
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
        let (sender, mut receiver) = mailbox::<u32>(&bell, 2, true);
        assert_eq!((sender.room(), receiver.there()), (2, None));
        sender.put(7, Part::First);
        assert_eq!((sender.room(), sender.left(), receiver.there()), (1, None, Some(7)));
        bell.ring();
        drop(receiver);
        assert_eq!(sender.left(), Some(0));
        bell.ring();
        assert_eq!(sender.left(), Some(1));
    }

    /// How many times a receiver that reads what is there was woken, of how many letters, where there was one at every millisecond.
    fn woken(boxes: usize, eager: bool, letters: u32) -> Vec<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bell = Arc::new(Bell::new());
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..boxes).map(|_| mailbox::<u32>(&bell, 1000, eager)).unzip();
        let listener = bell.clone();
        let desk = thread::spawn(move || {
            for number in 0..letters {
                let last = if number + 1 == letters { Part::Last } else { Part::Middle };
                let part = if number == 0 { Part::First } else { last };
                senders.iter().for_each(|sender| sender.put(number, part));
                bell.ring();
                thread::sleep(Duration::from_millis(1));
            }
            // Those who were told all need no end of the senders.
            thread::sleep(Duration::from_millis(100));
            drop(senders);
        });
        runtime.block_on(async {
            tokio::spawn(async move { listener.answer().await });
            let tasks = receivers.into_iter().map(|mut receiver| {
                tokio::spawn(async move {
                    let (mut woken, mut next) = (0, 0);
                    while next < letters {
                        let mut letter = receiver.next().await;
                        woken += 1;
                        while let Some(number) = letter {
                            assert_eq!(number, next);
                            next += 1;
                            letter = receiver.there();
                        }
                    }
                    woken
                })
            });
            let tasks: Vec<_> = tasks.collect();
            let mut all = Vec::new();
            for task in tasks {
                all.push(task.await.unwrap());
            }
            desk.join().unwrap();
            all
        })
    }

    #[test]
    fn many_are_woken_for_several_letters_at_once_and_who_waits_for_the_end_once() {
        // 64 boxes wait 32 ms, and 200 letters take 200 ms at least; a busy machine takes longer.
        for woken in woken(64, true, 200) {
            assert!((2..100).contains(&woken), "{woken} times");
        }
        assert!(woken(1, true, 200)[0] > 20, "one alone is told of nearly each");
        assert_eq!(woken(8, false, 200), [1; 8]);
        // The first is due at once, and so is a box that fills.
        let bell = Arc::new(Bell::new());
        let (sender, _receiver) = mailbox::<u32>(&bell, 8, true);
        let due = || bell.listed().due.len();
        sender.put(0, Part::First);
        assert_eq!(due(), 1);
        let (sender, _receiver) = mailbox::<u32>(&bell, 8, false);
        (0..4).for_each(|number| sender.put(number, Part::Middle));
        assert_eq!(due(), 1);
        sender.put(4, Part::Middle);
        assert_eq!(due(), 2);
    }
}
