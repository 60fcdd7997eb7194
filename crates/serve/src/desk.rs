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
use crate::mailbox::{Bell, Part, Sender};
use crate::metrics::Metrics;
use crate::model::Served;
use crate::runtime::{Manner, Runtime, State, Told};

/// How long a float model may hold up the others of a turn, at its texts and at its prompts.
const SLICE: Duration = Duration::from_millis(20);
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

impl Job {
    /// The first `most` of its texts, where there are more: the others are then left. They find the prompt known, and its scores were told.
    fn split(&mut self, most: usize) -> Option<Job> {
        if self.texts <= most {
            return None;
        }
        let first = Job { texts: most, ..self.clone() };
        self.texts -= most;
        self.first += most;
        self.score = None;
        self.manner.settings.seed = self.manner.settings.seed.wrapping_add(most as u64);
        Some(first)
    }
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
            if left.is_some() {
                self.metrics.cancelled(texts, left);
            }
            left.is_some()
        };
        self.waiting.retain(|waiting| !gone(&waiting.client, waiting.job.texts));
        self.reading.retain(|reading| !gone(&reading.client, reading.job.texts));
        loop {
            let texts = self.running() + self.reading.iter().map(|reading| reading.job.texts).sum::<usize>();
            let Some(next) = self.waiting.front_mut() else { break };
            if texts + next.job.texts.min(self.parallel) > self.parallel {
                break;
            }
            let (part, client) = (next.job.split(self.parallel), next.client.clone());
            let job = match part {
                Some(part) => part,
                None => match self.waiting.pop_front() {
                    Some(last) => last.job,
                    None => break,
                },
            };
            self.reading.push_back(Reading { job, client, state: None, at: 0, shared: 0, scores: Vec::new() });
        }
        self.read();
        for bench in &mut self.benches {
            bench.advance(&self.metrics, SLICE);
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
        let (mut left, start) = (self.per_tick, Instant::now());
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
            let (fed, place) = (job.tokens.len() - 1, Cache::place(*at, *shared, bench.runtime.is_float()));
            let end = fed.min(place).min(*at + bench.runtime.turn().min(left));
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
            let late = bench.runtime.is_float() && start.elapsed() > SLICE;
            if end == fed {
                bench.seat(reading);
            } else {
                self.reading.push_back(reading);
            }
            if left == 0 || late {
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
            client.events.put(Event::Read { first: job.first, scores }, Part::First);
        }
        let (state, start) = (state.unwrap_or_else(|| self.runtime.state()), usize::from(job.begins));
        // The last takes the state itself.
        for (i, state) in std::iter::repeat_n(state, job.texts).enumerate() {
            let (seed, index) = (job.manner.settings.seed.wrapping_add(i as u64), job.first + i);
            let settings = Settings { seed, ..job.manner.settings.clone() };
            let manner = Manner { settings, ..job.manner.clone() };
            match self.runtime.begin(state, &job.tokens[start..], manner) {
                Ok(()) => self.seats.push(Seat { index, client: client.clone(), begun: false, stalled: None }),
                // Checked before it was sent here; a model of another kind would be refused all the same.
                Err(error) => {
                    let (text, finish) = (error.to_string(), Some(Finish::Failed));
                    client.events.put(Event::Token { index, token: None, scored: None, text, finish }, Part::Last);
                }
            }
        }
    }

    /// One token of every text whose client has room for it; of a float model as many texts as go into `time`, the others next.
    fn advance(&mut self, metrics: &Metrics, time: Duration) {
        let mut ready = 0;
        let mut at = 0;
        while at < self.seats.len() {
            let seat = &mut self.seats[at];
            let room = seat.client.events.room() >= seat.client.least;
            let since = if room { None } else { Some(*seat.stalled.get_or_insert_with(Instant::now)) };
            seat.stalled = since;
            let left = seat.client.events.left();
            if left.is_some() || since.is_some_and(|since| since.elapsed() > PATIENCE) {
                metrics.cancelled(1, left);
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
        let (done, failed) = self.runtime.advance(ready, time);
        let failed = failed.err().map(|error| error.to_string());
        // Those whose turn did not come go first the next time.
        self.seats[..ready].rotate_left(done);
        self.runtime.rotate(ready, done);
        for at in (ready - done..ready).rev() {
            let (seat, told) = (&mut self.seats[at], self.runtime.told(at));
            let Told { token, finish, .. } = told;
            let first = token.is_some() && !std::mem::replace(&mut seat.begun, true);
            if token.is_some() {
                metrics.generated_tokens_total.fetch_add(1, Relaxed);
            }
            if first {
                metrics.first_token(seat.client.came.elapsed().as_secs_f64());
            }
            let part = match finish {
                Some(_) => Part::Last,
                None if first => Part::First,
                None => Part::Middle,
            };
            let text = match (finish, &failed) {
                (Some(Finish::Failed), Some(error)) => error.clone(),
                _ => told.text.to_string(),
            };
            let scored = told.scored.cloned();
            seat.client.events.put(Event::Token { index: seat.index, token, scored, text, finish }, part);
            if finish.is_some() {
                self.seats.swap_remove(at);
                self.runtime.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
#[path = "../../cli/tests/cli/neo.rs"]
mod neo;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Receiver, mailbox};
    use crate::model::Weights;
    use flashlm_kernels::Isa;
    use flashlm_model::{PackedModel, Peer};
    use std::path::Path;
    use tokio::sync::Semaphore;
    use tokio::sync::mpsc::unbounded_channel;

    fn packed() -> Weights {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/conv.safetensors");
        Weights::Packed(PackedModel::open(&path).unwrap().into())
    }

    fn float() -> Weights {
        let folder = tempfile::tempdir().unwrap();
        let (config, weights, _) = neo::gpt_neo((50_257, 16, 2, 2), 64);
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
        Weights::Float(Peer::open(&Exec::new(Isa::detect().unwrap(), 1), folder.path()).unwrap().into())
    }

    /// A desk that was asked for `texts` texts of 20 tokens of one scored prompt.
    fn asked(weights: Weights, parallel: usize, texts: usize) -> (Desk, Receiver<Event>) {
        let served = [Served::new("model".into(), weights)];
        let (metrics, bell) = (Arc::new(Metrics::new()), Arc::new(Bell::new()));
        let (_, orders) = unbounded_channel();
        let execs = vec![Exec::new(Isa::detect().unwrap(), 1)];
        let mut desk = Desk::new(&served, execs, orders, metrics, bell.clone(), (parallel, 256));
        let (events, told) = mailbox(&bell, 1 << 20, true);
        let eos = served[0].tokenizer().eos();
        let settings = Settings { seed: 7, logit_bias: vec![(eos, -100.0)], ..Settings::default() };
        let job = Job {
            model: 0,
            tokens: [vec![eos], served[0].encode("Once upon a time")].concat(),
            begins: true,
            told: true,
            score: Some(1),
            manner: Manner { settings, limit: 20, stop: Vec::new(), top: Some(0) },
            texts,
            first: 0,
        };
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        desk.take(Order { jobs: vec![job], events, least: 3 * texts, permit, came: Instant::now() });
        (desk, told)
    }

    /// The tokens and log-probabilities of each text; the prompt's scores must come once, before them.
    fn written(weights: Weights, parallel: usize) -> Vec<Vec<(Token, f64)>> {
        let (mut desk, mut told) = asked(weights, parallel, 5);
        let (mut texts, mut read, mut most, mut ended) = (vec![Vec::new(); 5], 0, 0, 0);
        while ended < 5 {
            desk.tick();
            most = most.max(desk.metrics.streams.load(Relaxed)).max(desk.running() as u64);
            while let Some(event) = told.there() {
                match event {
                    Event::Read { first, scores } => {
                        assert_eq!((first, texts.concat().len()), (0, 0));
                        assert!(!scores.is_empty());
                        read += 1;
                    }
                    Event::Token { index, token, scored, finish, .. } => {
                        texts[index].extend(token.zip(scored.map(|scored| scored.log_prob)));
                        ended += usize::from(finish.is_some());
                    }
                }
            }
        }
        assert_eq!(read, 1);
        assert!(most <= parallel as u64, "{most} of {parallel} together");
        desk.tick();
        assert_eq!((desk.running(), desk.waiting.len(), desk.reading.len()), (0, 0, 0));
        texts
    }

    #[test]
    fn more_texts_than_are_written_together_are_the_same_ones() {
        for model in [packed, float] {
            let together = written(model(), 64);
            assert!(together.iter().all(|text| text.len() == 20));
            assert_ne!(together[0], together[1]);
            for parallel in [1, 2, 4, 5] {
                assert_eq!(written(model(), parallel), together, "{parallel}");
            }
        }
    }

    #[test]
    fn texts_of_a_slow_model_take_turns() {
        let (mut desk, mut told) = asked(float(), 5, 5);
        while desk.running() < 5 {
            desk.read();
            desk.tick();
        }
        let mut counts = [0; 5];
        for turn in 0..40 {
            desk.benches[0].advance(&desk.metrics, Duration::ZERO);
            let mut now = 0;
            while let Some(event) = told.there() {
                let Event::Token { index, token, .. } = event else { continue };
                (counts[index], now) = (counts[index] + usize::from(token.is_some()), now + 1);
            }
            assert!(now == 1 || turn == 0, "{now} texts at once");
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{counts:?}");
        }
    }
}
