//! The thread that owns the engines. At every tick: requests join, at most `per_tick` tokens of prompts are read, every text takes
//! one token, and texts that have ended or whose client is gone leave.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use flashlm_kernels::{Exec, Token};
use flashlm_model::sample::Settings;
use flashlm_model::{Engine, Finish, Generation, Scored, SequenceState};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::cache::Cache;
use crate::mailbox::{Bell, Sender};
use crate::metrics::Metrics;
use crate::model::Served;

/// Rows that an engine works on at once, per thread.
const ROWS: usize = 64;
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
    /// Whether the first of them was added by us.
    pub told: bool,
    /// Score the prompt: how many likeliest at each position.
    pub score: Option<usize>,
    /// Tell log-probabilities of what is chosen, and how many likeliest.
    pub top: Option<usize>,
    pub settings: Settings,
    pub limit: usize,
    pub stop: Vec<String>,
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
    state: SequenceState,
    at: usize,
    scores: Vec<Scored>,
}

struct Seat {
    index: usize,
    client: Arc<Client>,
    begun: bool,
    stalled: Option<Instant>,
}

struct Bench {
    engine: Engine,
    cache: Cache,
    generations: Vec<Generation>,
    seats: Vec<Seat>,
}

pub struct Desk {
    served: Arc<Vec<Served>>,
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
        served: Arc<Vec<Served>>,
        execs: Vec<Exec>,
        orders: UnboundedReceiver<Order>,
        metrics: Arc<Metrics>,
        bell: Arc<Bell<Event>>,
        (parallel, per_tick): (usize, usize),
    ) -> Desk {
        let bench = |(served, cx): (&Served, Exec)| Bench {
            engine: Engine::new(served.model.clone(), cx, ROWS),
            cache: Cache::new(),
            generations: Vec::new(),
            seats: Vec::new(),
        };
        let benches = served.iter().zip(execs).map(bench).collect();
        let (waiting, reading) = (VecDeque::new(), VecDeque::new());
        Desk { served, benches, orders, waiting, reading, metrics, bell, parallel, per_tick }
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
            let gone = client.events.is_closed();
            self.metrics.cancelled_total.fetch_add(if gone { texts as u64 } else { 0 }, Relaxed);
            gone
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
            self.begin(job, client);
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

    fn begin(&mut self, job: Job, client: Arc<Client>) {
        let bench = &mut self.benches[job.model];
        let fed = &job.tokens[..job.tokens.len() - 1];
        // A prompt that is scored is read whole.
        let found = if job.score.is_none() { bench.cache.find(fed) } else { None };
        let count = if found.is_some() { &self.metrics.prefix_hits_total } else { &self.metrics.prefix_misses_total };
        count.fetch_add(1, Relaxed);
        let (state, at) = found.unwrap_or_else(|| (self.served[job.model].model.new_state(), 0));
        self.metrics.prefix_tokens_total.fetch_add(at as u64, Relaxed);
        self.reading.push_back(Reading { job, client, state, at, scores: Vec::new() });
    }

    /// Reads prompts in turns.
    fn read(&mut self) {
        let mut left = self.per_tick;
        while let Some(mut reading) = self.reading.pop_front() {
            let Reading { job, state, at, scores, .. } = &mut reading;
            let bench = &mut self.benches[job.model];
            let fed = job.tokens.len() - 1;
            let end = fed.min(*at + TURN.min(left));
            let piece = &job.tokens[*at..end];
            match job.score {
                Some(top) => bench.engine.score(state, piece, &job.tokens[*at + 1..end + 1], top, scores),
                None => bench.engine.feed(state, piece),
            }
            left -= piece.len();
            self.metrics.prompt_tokens_total.fetch_add(piece.len() as u64, Relaxed);
            *at = end;
            if end < fed {
                self.reading.push_back(reading);
                if left == 0 {
                    return;
                }
                continue;
            }
            bench.cache.keep(&job.tokens[..fed], state);
            bench.seat(&self.served[job.model], reading);
        }
    }
}

impl Bench {
    /// The prompt was read: its texts begin.
    fn seat(&mut self, served: &Served, reading: Reading) {
        let Reading { job, client, state, mut scores, .. } = reading;
        if job.score.is_some() {
            if job.told && !scores.is_empty() {
                scores.remove(0);
            }
            client.events.put(Event::Read { first: job.first, scores });
        }
        for i in 0..job.texts {
            let seed = job.settings.seed.wrapping_add(i as u64);
            let settings = Settings { seed, ..job.settings.clone() };
            let mut generation = match Generation::new(&served.model, settings, job.limit, &job.stop) {
                Ok(generation) => generation,
                // Checked before it was sent here; a model of another kind would be refused all the same.
                Err(error) => {
                    let (index, text) = (job.first + i, error.to_string());
                    let finish = Some(Finish::Failed);
                    client.events.put(Event::Token { index, token: None, scored: None, text, finish });
                    continue;
                }
            };
            generation.resume(state.clone(), &job.tokens[usize::from(job.told)..]);
            if let Some(top) = job.top {
                generation.tell_log_probs(top);
            }
            self.generations.push(generation);
            let index = job.first + i;
            self.seats.push(Seat { index, client: client.clone(), begun: false, stalled: None });
        }
    }

    /// One token of every text whose client has room for it.
    fn advance(&mut self, metrics: &Metrics) {
        let mut ready = 0;
        let mut at = 0;
        while at < self.seats.len() {
            let seat = &mut self.seats[at];
            let room = seat.client.events.room() >= seat.client.least;
            if room {
                seat.stalled = None;
            }
            let since = *seat.stalled.get_or_insert_with(Instant::now);
            if seat.client.events.is_closed() || since.elapsed() > PATIENCE {
                metrics.cancelled_total.fetch_add(1, Relaxed);
                self.seats.swap_remove(at);
                self.generations.swap_remove(at);
                continue;
            }
            if room {
                seat.stalled = None;
                self.seats.swap(ready, at);
                self.generations.swap(ready, at);
                ready += 1;
            }
            at += 1;
        }
        let failed = self.engine.advance(&mut self.generations[..ready]).err().map(|error| error.to_string());
        let mut at = ready;
        while at > 0 {
            at -= 1;
            let (seat, generation) = (&mut self.seats[at], &self.generations[at]);
            let (token, finish) = (generation.chosen(), generation.finish());
            if token.is_some() {
                metrics.generated_tokens_total.fetch_add(1, Relaxed);
                if !std::mem::replace(&mut seat.begun, true) {
                    metrics.first_token(seat.client.came.elapsed().as_secs_f64());
                }
            }
            let text = match (finish, &failed) {
                (Some(Finish::Failed), Some(error)) => error.clone(),
                _ => generation.text().to_string(),
            };
            let scored = generation.scored().cloned();
            seat.client.events.put(Event::Token { index: seat.index, token, scored, text, finish });
            if finish.is_some() {
                self.seats.swap_remove(at);
                self.generations.swap_remove(at);
            }
        }
    }
}
