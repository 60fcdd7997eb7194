//! The thread that owns the engines. At every tick: requests join, at most `per_tick` tokens of prompts are read, every text takes
//! one token, and texts that have ended or whose client is gone leave.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use flashlm_kernels::{Exec, Token};
use flashlm_model::sample::Settings;
use flashlm_model::{Finish, Scored};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::cache::{Cache, Scores};
use crate::mailbox::{Bell, Sender};
use crate::metrics::Metrics;
use crate::model::Served;
use crate::runtime::{Manner, Runtime, State, Told};

/// Tokens of one prompt before it is the next one's turn.
const TURN: usize = 64;
/// How long a client may not read.
const PATIENCE: Duration = Duration::from_secs(60);

/// A prompt and what is to come of it.
#[derive(Clone)]
pub struct Job {
    /// Which model.
    pub model: usize,
    /// All of the prompt, the EOS that begins a document included where there is one.
    pub tokens: Vec<Token>,
    /// Whether the first of them is the EOS that begins a document, and whether it was added by us.
    pub begins: bool,
    pub told: bool,
    /// Score the prompt: how many likeliest at each position.
    pub score: Option<usize>,
    pub manner: Manner,
    /// Texts, numbered from `first` on, with seeds that follow each other.
    pub texts: usize,
    pub first: usize,
}

/// All prompts of a request.
pub struct Order {
    pub jobs: Vec<Job>,
    pub events: Sender<Event>,
    /// Room that must be left for a text to go on.
    pub least: usize,
    pub permit: OwnedSemaphorePermit,
    pub came: Instant,
}

/// What is told of a request.
pub enum Event {
    /// The prompt of these texts was read: the scores of its tokens from the second on.
    Read { first: usize, scores: Vec<Scored> },
    /// A token of a text, with what it adds.
    Token { index: usize, token: Option<Token>, scored: Option<Scored>, text: String, finish: Option<Finish> },
}

/// What all prompts of a request share; the place in the queue is free once the last has begun.
struct Client {
    events: Sender<Event>,
    least: usize,
    came: Instant,
}

struct Waiting {
    job: Job,
    client: Arc<Client>,
    _place: Arc<OwnedSemaphorePermit>,
}

struct Reading {
    job: Job,
    client: Arc<Client>,
    /// None before its first turn.
    state: Option<State>,
    at: usize,
    /// Tokens that it shares with a prompt that was read before.
    shared: usize,
    scores: Vec<Scored>,
}

struct Seat {
    index: usize,
    client: Arc<Client>,
    begun: bool,
    stalled: Option<Instant>,
}

struct Bench {
    runtime: Runtime,
    cache: Cache,
    /// As the texts of the runtime are numbered.
    seats: Vec<Seat>,
}

pub struct Desk {
    benches: Vec<Bench>,
    orders: UnboundedReceiver<Order>,
    waiting: VecDeque<Waiting>,
    reading: VecDeque<Reading>,
    metrics: Arc<Metrics>,
    bell: Arc<Bell<Event>>,
    parallel: usize,
    per_tick: usize,
}

impl Desk {
    /// One executor for each model.
    pub fn new(
        served: &[Served],
        execs: Vec<Exec>,
        orders: UnboundedReceiver<Order>,
        metrics: Arc<Metrics>,
        bell: Arc<Bell<Event>>,
        (parallel, per_tick): (usize, usize),
    ) -> Desk {
        let bench = |(served, cx): (&Served, Exec)| Bench {
            runtime: Runtime::new(&served.weights, cx),
            cache: Cache::new(),
            seats: Vec::new(),
        };
        let benches = served.iter().zip(execs).map(bench).collect();
        let (waiting, reading) = (VecDeque::new(), VecDeque::new());
        Desk { benches, orders, waiting, reading, metrics, bell, parallel, per_tick }
    }

    /// Works until nobody can ask any more.
    pub fn run(mut self) {
        loop {
            let idle = self.waiting.is_empty() && self.reading.is_empty() && self.running() == 0;
            if idle {
                let Some(order) = self.orders.blocking_recv() else { return };
                self.take(order);
            }
            while let Ok(order) = self.orders.try_recv() {
                self.take(order);
            }
            self.tick();
        }
    }

    fn running(&self) -> usize {
        self.benches.iter().map(|bench| bench.seats.len()).sum()
    }

    fn take(&mut self, order: Order) {
        let client = Arc::new(Client { events: order.events, least: order.least, came: order.came });
        let permit = Arc::new(order.permit);
        let jobs = order.jobs.into_iter();
        self.waiting.extend(jobs.map(|job| Waiting { job, client: client.clone(), _place: permit.clone() }));
    }

    fn tick(&mut self) {
        let gone = |client: &Client, texts: usize| {
            let left = client.events.left();
            left.into_iter().for_each(|turns| self.metrics.cancelled(texts, turns));
            left.is_some()
        };
        self.waiting.retain(|waiting| !gone(&waiting.client, waiting.job.texts));
        self.reading.retain(|reading| !gone(&reading.client, reading.job.texts));
        loop {
            let texts = self.running() + self.reading.iter().map(|reading| reading.job.texts).sum::<usize>();
            // A prompt of more texts than there is room for is written alone.
            let fits = |next: &Waiting| texts == 0 || texts + next.job.texts <= self.parallel;
            if !self.waiting.front().is_some_and(fits) {
                break;
            }
            let Some(Waiting { job, client, .. }) = self.waiting.pop_front() else { break };
            self.reading.push_back(Reading { job, client, state: None, at: 0, shared: 0, scores: Vec::new() });
        }
        self.read();
        for bench in &mut self.benches {
            bench.advance(&self.metrics);
        }
        self.bell.ring();
        let all = &self.metrics;
        all.ticks_total.fetch_add(1, Relaxed);
        all.streams.store(self.running() as u64, Relaxed);
        all.reading.store(self.reading.len() as u64, Relaxed);
        all.waiting.store(self.waiting.len() as u64, Relaxed);
        all.prefix_bytes.store(self.benches.iter().map(|bench| bench.cache.bytes as u64).sum(), Relaxed);
        if self.reading.is_empty() && self.benches.iter().all(|b| b.seats.iter().all(|seat| seat.stalled.is_some())) {
            // Nobody reads, or nobody is here: no reason to spin.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads prompts in turns.
    fn read(&mut self) {
        let mut left = self.per_tick;
        while let Some(mut reading) = self.reading.pop_front() {
            let bench = &mut self.benches[reading.job.model];
            let Reading { job, state, at, scores, shared, .. } = &mut reading;
            let state = state.get_or_insert_with(|| {
                let (known, same) = bench.cache.find(&job.tokens, job.score);
                *shared = same;
                let all = &self.metrics;
                let count = if known.is_some() { &all.prefix_hits_total } else { &all.prefix_misses_total };
                count.fetch_add(1, Relaxed);
                let Some(known) = known else { return bench.runtime.state() };
                all.prefix_tokens_total.fetch_add(known.fed as u64, Relaxed);
                (*at, *scores) = (known.fed, known.scores);
                known.state
            });
            let (fed, place) = (job.tokens.len() - 1, Cache::place(*at, *shared));
            let end = fed.min(place).min(*at + TURN.min(left));
            let piece = &job.tokens[*at..end];
            match job.score {
                Some(top) => bench.runtime.score(state, piece, &job.tokens[*at + 1..end + 1], top, scores),
                None => bench.runtime.feed(state, piece),
            }
            left -= piece.len();
            self.metrics.prompt_tokens_total.fetch_add(piece.len() as u64, Relaxed);
            *at = end;
            if end == fed || end == place {
                let scores = job.score.map(|top| Scores { top, each: scores.clone() });
                bench.cache.keep(&job.tokens[..=end], state, scores);
            }
            if end == fed {
                bench.seat(reading);
                continue;
            }
            self.reading.push_back(reading);
            if left == 0 {
                return;
            }
        }
    }
}

impl Bench {
    /// The prompt was read: its texts begin.
    fn seat(&mut self, reading: Reading) {
        let Reading { job, client, state, mut scores, .. } = reading;
        if job.score.is_some() {
            if job.told && !scores.is_empty() {
                scores.remove(0);
            }
            client.events.put(Event::Read { first: job.first, scores });
        }
        let (state, start) = (state.unwrap_or_else(|| self.runtime.state()), usize::from(job.begins));
        for i in 0..job.texts {
            let (seed, index) = (job.manner.settings.seed.wrapping_add(i as u64), job.first + i);
            let settings = Settings { seed, ..job.manner.settings.clone() };
            let manner = Manner { settings, ..job.manner.clone() };
            match self.runtime.begin(state.clone(), &job.tokens[start..], manner) {
                Ok(()) => self.seats.push(Seat { index, client: client.clone(), begun: false, stalled: None }),
                // Checked before it was sent here; a model of another kind would be refused all the same.
                Err(error) => {
                    let (text, finish) = (error.to_string(), Some(Finish::Failed));
                    client.events.put(Event::Token { index, token: None, scored: None, text, finish });
                }
            }
        }
    }

    /// One token of every text whose client has room for it.
    fn advance(&mut self, metrics: &Metrics) {
        let mut ready = 0;
        let mut at = 0;
        while at < self.seats.len() {
            let seat = &mut self.seats[at];
            let room = seat.client.events.room() >= seat.client.least;
            let since = if room { None } else { Some(*seat.stalled.get_or_insert_with(Instant::now)) };
            seat.stalled = since;
            let left = seat.client.events.left();
            if left.is_some() || since.is_some_and(|since| since.elapsed() > PATIENCE) {
                metrics.cancelled(1, left.unwrap_or(0));
                self.seats.swap_remove(at);
                self.runtime.swap_remove(at);
                continue;
            }
            if room {
                self.seats.swap(ready, at);
                self.runtime.swap(ready, at);
                ready += 1;
            }
            at += 1;
        }
        let failed = self.runtime.advance(ready).err().map(|error| error.to_string());
        let mut at = ready;
        while at > 0 {
            at -= 1;
            let (seat, told) = (&mut self.seats[at], self.runtime.told(at));
            let Told { token, finish, .. } = told;
            if token.is_some() {
                metrics.generated_tokens_total.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut seat.begun, true) {
                    metrics.first_token(seat.client.came.elapsed().as_secs_f64());
                }
            }
            let text = match (finish, &failed) {
                (Some(Finish::Failed), Some(error)) => error.clone(),
                _ => told.text.to_string(),
            };
            let scored = told.scored.cloned();
            seat.client.events.put(Event::Token { index: seat.index, token, scored, text, finish });
            if finish.is_some() {
                self.seats.swap_remove(at);
                self.runtime.swap_remove(at);
            }
        }
    }
}
