//! Choosing the next token from logits, and stopping at stop strings.
//!
//! ```text
//! bias, bans -> penalties -> temperature -> top_k -> top_p -> min_p -> one draw of the seeded generator
//! penalties, for a token that came n > 0 times among the last `repeat_window`:
//!   repetition r: x / r where x > 0, x * r elsewhere;  then x - presence - n * frequency
//! p = softmax(x / temperature); top_k keeps the k largest; top_p the fewest that hold `top_p` of what is left;
//! min_p those with p >= min_p * max p. Equal logits: the lower id goes first. Temperature 0: the largest logit.
//! ```
//!
//! Tokens with less than `e^-25` of the likeliest's probability are never drawn. Nothing is allocated after construction, and
//! the same logits and seed give the same token on every ISA. Sources: repetition arXiv 1909.05858 (section 4.1; multiplying
//! negative logits is what later implementations made of it), presence and frequency as in OpenAI's API, top_p
//! arXiv 1904.09751, min_p arXiv 2407.01082.

use flashlm_kernels::Exec;
use flashlm_kernels::ops::{exact_max, exact_weights};
use std::cmp::Ordering;

use crate::rng::Rng;
use crate::tok::MAX_TOKEN;

/// Least weight of a token that may be drawn, the likeliest weighing 1: `e^-25`.
const LEAST: f32 = 1.388_794_4e-11;

/// Why no token could be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A setting is out of its range.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// The range.
        expected: &'static str,
        /// The value.
        found: String,
    },
    /// Logits of another model.
    #[error("expected {expected} logits, one per token of the vocabulary, found {found}")]
    Length {
        /// The vocabulary that the sampler was made for.
        expected: usize,
        /// The logits given.
        found: usize,
    },
    /// NaN or +inf among the logits.
    #[error(
        "the logit of token {id} is {value}, expected a number: the weights are damaged or training diverged; use another \
         checkpoint"
    )]
    NotFinite {
        /// The first such token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// Every token is banned or has the logit -inf.
    #[error("no token is left to choose from: every logit is -inf or banned")]
    NothingLeft,
}

/// How to choose tokens. The default samples the model's own distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 = disabled.
    pub top_k: usize,
    /// Keeps the smallest set of most likely tokens with this total probability, in `(0, 1]`; 1 = disabled.
    pub top_p: f32,
    /// Keeps tokens of at least this probability relative to the most likely one, in `[0, 1]`; 0 = disabled.
    pub min_p: f32,
    /// Repeat penalty of the tokens of the last `repeat_window`, at least 1; 1 = disabled.
    pub repeat_penalty: f32,
    /// Presence penalty: subtracted from the logits of those tokens, -2 to 2; 0 = disabled.
    pub presence_penalty: f32,
    /// Frequency penalty: subtracted from them once per occurrence, -2 to 2; 0 = disabled.
    pub frequency_penalty: f32,
    /// Number of last tokens that penalties look at.
    pub repeat_window: usize,
    /// Added to the logits of these tokens, -100 to 100; -100 effectively bans a token.
    pub logit_bias: Vec<(u16, f32)>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_window: 64,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Settings {
    /// Those that texts for readers are written with where nothing else is asked: a little less surprise than the model's own
    /// distribution has, and none of its long tail.
    pub fn writing() -> Self {
        Self { temperature: 0.8, top_p: 0.95, ..Self::default() }
    }

    /// Checks every range.
    pub fn check(&self) -> Result<(), SampleError> {
        let finite = |x: f32, from: f32| x.is_finite() && x >= from;
        let within = |x: f32, most: f32| (-most..=most).contains(&x);
        let bias = self.logit_bias.iter().map(|(_, bias)| *bias).find(|&bias| !within(bias, 100.0)).unwrap_or(0.0);
        let checks = [
            ("temperature", self.temperature, "a number of at least 0", finite(self.temperature, 0.0)),
            ("top_p", self.top_p, "a number in (0, 1]", self.top_p > 0.0 && self.top_p <= 1.0),
            ("min_p", self.min_p, "a number in [0, 1]", (0.0..=1.0).contains(&self.min_p)),
            ("repeat_penalty", self.repeat_penalty, "a number of at least 1", finite(self.repeat_penalty, 1.0)),
            ("presence_penalty", self.presence_penalty, "a number in [-2, 2]", within(self.presence_penalty, 2.0)),
            ("frequency_penalty", self.frequency_penalty, "a number in [-2, 2]", within(self.frequency_penalty, 2.0)),
            ("logit_bias", bias, "numbers in [-100, 100]", within(bias, 100.0)),
        ];
        match checks.into_iter().find(|check| !check.3) {
            None => Ok(()),
            Some((name, found, expected, _)) => Err(SampleError::Setting { name, expected, found: found.to_string() }),
        }
    }
}

/// A token that may still be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u16,
    /// 1 for the likeliest.
    weight: f32,
}

/// Heavier first, then the lower id. Total, because no weight is NaN.
fn heavier(a: &Candidate, b: &Candidate) -> Ordering {
    let by_weight = b.weight.partial_cmp(&a.weight).unwrap_or(Ordering::Equal);
    by_weight.then(a.id.cmp(&b.id))
}

/// Draws tokens by its [`Settings`].
#[derive(Debug, Clone)]
pub struct Sampler {
    settings: Settings,
    bans: Vec<u16>,
    rng: Rng,
    /// How often each token was seen lately, all 0 between calls.
    seen: Vec<u32>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab` tokens that never draws one of `bans`.
    pub fn new(settings: Settings, vocab: usize, bans: &[u16]) -> Result<Self, SampleError> {
        settings.check()?;
        let setting = |name, expected, found: usize| SampleError::Setting { name, expected, found: found.to_string() };
        if vocab == 0 || vocab > 1 << 16 {
            return Err(setting("vocabulary", "1 to 65536 tokens", vocab));
        }
        let biased = settings.logit_bias.iter().map(|(id, _)| id);
        if let Some(&id) = bans.iter().chain(biased).find(|&&id| usize::from(id) >= vocab) {
            return Err(setting("token", "a token of the vocabulary", id.into()));
        }
        Ok(Self {
            rng: Rng::new(settings.seed),
            settings,
            bans: bans.to_vec(),
            seen: vec![0; vocab],
            weights: vec![0.0; vocab],
            candidates: Vec::with_capacity(vocab),
        })
    }

    /// The random numbers to come.
    pub fn rng(&self) -> &Rng {
        &self.rng
    }

    /// Continues with other random numbers.
    pub fn set_rng(&mut self, rng: Rng) {
        self.rng = rng;
    }

    /// The next token. `recent` are the tokens so far, newest last; ids beyond the vocabulary are ignored.
    /// Leaves bias, bans and penalties in `logits`.
    pub fn sample(&mut self, cx: &Exec, logits: &mut [f32], recent: &[u16]) -> Result<u16, SampleError> {
        if logits.len() != self.seen.len() {
            return Err(SampleError::Length { expected: self.seen.len(), found: logits.len() });
        }
        let max = exact_max(cx, logits);
        if max.is_nan() || max == f32::INFINITY {
            let bad = logits.iter().zip(0..).find(|(x, _)| x.is_nan() || **x == f32::INFINITY);
            let (&value, id) = bad.unwrap_or((&max, 0));
            return Err(SampleError::NotFinite { id, value });
        }
        // The largest logit stays that, unless one is changed that was it, or that may be it now.
        let mut stays = true;
        for &(id, bias) in &self.settings.logit_bias {
            let logit = &mut logits[usize::from(id)];
            stays &= *logit < max;
            *logit += bias;
            stays &= *logit < max;
        }
        for &id in &self.bans {
            stays &= logits[usize::from(id)] < max;
            logits[usize::from(id)] = f32::NEG_INFINITY;
        }
        stays &= !self.penalise(logits, recent);
        let max = if stays { max } else { exact_max(cx, logits) };
        if max == f32::NEG_INFINITY {
            return Err(SampleError::NothingLeft);
        }
        if self.settings.temperature == 0.0 {
            return first(logits, max).ok_or(SampleError::NothingLeft);
        }
        // Of a temperature near 0 the inverse is infinite, and infinity times the likeliest's 0 no number.
        let by = (1.0 / self.settings.temperature).min(f32::MAX);
        let total = exact_weights(cx, &mut self.weights, logits, max, by);
        let (top_k, top_p) = (self.settings.top_k, self.settings.top_p);
        // The rest of what top_p drops could not reach into what it keeps: little is left to sort.
        let tail = if top_k == 0 { (1.0 - top_p) * total / logits.len() as f32 } else { 0.0 };
        let least = if top_k == 0 { LEAST.max(tail) } else { LEAST };
        self.gather(least);
        if top_k > 0 && top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(top_k - 1, heavier);
            self.candidates.truncate(top_k);
            // The order of equals must not hang on how the selection is implemented.
            self.candidates.sort_unstable_by(heavier);
        }
        if top_p < 1.0 {
            self.keep_top_p(if top_k == 0 { total.into() } else { weigh(&self.candidates) });
        }
        // The likeliest weighs 1, and top_p never drops it: the comparison is with the maximum.
        let min_p = self.settings.min_p;
        self.candidates.retain(|c| c.weight >= min_p);
        self.draw()
    }

    /// The tokens of at least this weight, by id.
    fn gather(&mut self, least: f32) {
        self.candidates.clear();
        for (i, weights) in self.weights.chunks(16).enumerate() {
            // Most runs of tokens have none, which a vector compares at once.
            if weights.iter().fold(false, |any, &w| any | (w >= least)) {
                for (&weight, id) in weights.iter().zip((16 * i) as u16..=u16::MAX) {
                    if weight >= least {
                        self.candidates.push(Candidate { id, weight });
                    }
                }
            }
        }
    }

    /// Whether there are penalties.
    fn penalise(&mut self, logits: &mut [f32], recent: &[u16]) -> bool {
        let Settings { repeat_penalty, presence_penalty, frequency_penalty, repeat_window, .. } = self.settings;
        if (repeat_penalty, presence_penalty, frequency_penalty) == (1.0, 0.0, 0.0) {
            return false;
        }
        let recent = &recent[recent.len().saturating_sub(repeat_window)..];
        for &id in recent {
            if let Some(seen) = self.seen.get_mut(usize::from(id)) {
                *seen += 1;
            }
        }
        for id in recent.iter().map(|&id| usize::from(id)) {
            // A token's second turn finds nothing left.
            let times = self.seen.get_mut(id).map_or(0, std::mem::take);
            if let (Some(x), 1..) = (logits.get_mut(id), times) {
                *x = if *x > 0.0 { *x / repeat_penalty } else { *x * repeat_penalty };
                *x -= presence_penalty + times as f32 * frequency_penalty;
            }
        }
        true
    }

    /// `total` is the weight of all tokens that could be kept.
    fn keep_top_p(&mut self, total: f64) {
        self.candidates.sort_unstable_by(heavier);
        let mut sum = 0.0;
        let head = self.candidates.iter().position(|c| {
            sum += f64::from(c.weight);
            sum >= f64::from(self.settings.top_p) * total
        });
        if let Some(last) = head {
            self.candidates.truncate(last + 1);
        }
    }

    fn draw(&mut self) -> Result<u16, SampleError> {
        let mut left = self.rng.uniform() * weigh(&self.candidates);
        for c in &self.candidates {
            left -= f64::from(c.weight);
            if left < 0.0 {
                return Ok(c.id);
            }
        }
        // Rounding may leave a last crumb.
        let last = self.candidates.last();
        last.map(|c| c.id).ok_or(SampleError::NothingLeft)
    }
}

fn weigh(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|c| f64::from(c.weight)).sum()
}

/// The first token with this logit; runs of 16 are compared at once.
fn first(logits: &[f32], max: f32) -> Option<u16> {
    let run = logits.chunks(16).position(|run| run.iter().fold(false, |any, &x| any | (x == max)))?;
    let at = logits[16 * run..].iter().position(|&x| x == max)?;
    u16::try_from(16 * run + at).ok()
}

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 16;
/// Longest stop string in bytes.
const MAX_STOP: usize = 256;
/// Longest text of one token, for which there is room without an allocation: any byte may become U+FFFD, of three bytes.
pub(crate) const MAX_PIECE: usize = 3 * (MAX_TOKEN + 3);

/// Watches streamed text for stop strings. The string that is complete first wins; of two that end together the
/// longer. The result does not depend on how the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    complete: bool,
}

impl StopStrings {
    /// Stops at any of `stops`; none at all is fine.
    pub fn new(stops: Vec<String>) -> Result<Self, SampleError> {
        let setting =
            |expected, found: usize| SampleError::Setting { name: "stop", expected, found: found.to_string() };
        if stops.len() > MAX_STOPS {
            return Err(setting("at most 16 strings", stops.len()));
        }
        let good = 1..=MAX_STOP;
        if let Some(bad) = stops.iter().find(|stop| !good.contains(&stop.len())) {
            return Err(setting("strings of 1 to 256 bytes", bad.len()));
        }
        Ok(Self { stops, held: String::with_capacity(MAX_PIECE + MAX_STOP), complete: false })
    }

    /// Takes the next piece and appends the text that can be shown: never a part of a stop string, and nothing
    /// once one is complete.
    pub fn push(&mut self, piece: &str, shown: &mut String) {
        if self.complete {
            return;
        }
        for c in piece.chars() {
            self.held.push(c);
            let ended = self.stops.iter().filter(|stop| self.held.ends_with(*stop));
            if let Some(length) = ended.map(String::len).max() {
                self.complete = true;
                shown.push_str(&self.held[..self.held.len() - length]);
                self.held.clear();
                return;
            }
        }
        let begun = self.stops.iter().map(|stop| begun(&self.held, stop)).max();
        let certain = self.held.len() - begun.unwrap_or(0);
        shown.extend(self.held.drain(..certain));
    }

    /// Watches for the next stop string.
    pub fn restart(&mut self) {
        self.complete = false;
    }

    /// Whether a stop string was complete: generation is over.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Appends the text still held back, to be shown when the generation ends without a stop string.
    pub fn finish(&mut self, shown: &mut String) {
        shown.push_str(&self.held);
        self.held.clear();
    }
}

/// Length of the longest true beginning of `stop` that `text` ends with.
fn begun(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).rev();
    let mut fitting = lengths.filter(|&at| text.ends_with(&stop[..at]));
    fitting.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in plain loops: `(id, probability)` in the order of the draw.
    fn reference(s: &Settings, logits: &[f32], recent: &[u16], bans: &[u16]) -> Vec<(u16, f64)> {
        let mut x: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
        for &id in bans {
            x[usize::from(id)] = f64::NEG_INFINITY;
        }
        let from = recent.len().saturating_sub(s.repeat_window);
        for (id, bias) in &s.logit_bias {
            x[usize::from(*id)] += f64::from(*bias);
        }
        for (id, x) in x.iter_mut().enumerate() {
            let times = recent[from..].iter().filter(|&&r| usize::from(r) == id).count();
            if times > 0 {
                let r = f64::from(s.repeat_penalty);
                *x = if *x > 0.0 { *x / r } else { *x * r };
                *x -= f64::from(s.presence_penalty) + times as f64 * f64::from(s.frequency_penalty);
            }
        }
        let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let likely = |i: &usize| (x[*i] - top) / f64::from(s.temperature) >= -25.0;
        let ids: Vec<usize> = (0..x.len()).filter(likely).collect();
        let before = |j: usize, i: usize| x[j] > x[i] || (x[j] == x[i] && j < i);
        let rank = |i: usize| ids.iter().filter(|&&j| before(j, i)).count();
        let in_k = |i: &usize| s.top_k == 0 || rank(*i) < s.top_k;
        let kept: Vec<usize> = ids.iter().copied().filter(in_k).collect();
        let max = kept.iter().map(|&i| x[i]).fold(f64::NEG_INFINITY, f64::max);
        let weight = |i: usize| ((x[i] - max) / f64::from(s.temperature)).exp();
        let sum: f64 = kept.iter().map(|&i| weight(i)).sum();
        let mut chosen = Vec::new();
        for &i in &kept {
            let ahead = kept.iter().filter(|&&j| before(j, i)).map(|&j| weight(j));
            let in_p = s.top_p == 1.0 || ahead.sum::<f64>() < f64::from(s.top_p) * sum;
            if in_p && weight(i) >= f64::from(s.min_p) {
                chosen.push(i);
            }
        }
        let by_rank = s.top_p < 1.0 || (s.top_k > 0 && s.top_k < ids.len());
        if by_rank {
            chosen.sort_by_key(|&i| rank(i));
        }
        let sum: f64 = chosen.iter().map(|&i| weight(i)).sum();
        let p = chosen.iter().map(|&i| (i as u16, weight(i) / sum));
        p.collect()
    }

    fn exec() -> Exec {
        Exec::new(flashlm_kernels::Isa::detect().unwrap(), 1)
    }

    fn logits(rng: &mut Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.normal() as f32 * 3.0).collect()
    }

    #[test]
    fn agrees_with_the_plain_definition_draw_by_draw() {
        let mut rng = Rng::new(1);
        let mut compared = 0;
        for round in 0..3000 {
            let n = 1 + rng.below(60) as usize;
            let settings = Settings {
                temperature: 0.2 + rng.uniform() as f32 * 2.0,
                top_k: [0, 1, 2, 7, 1000][rng.below(5) as usize],
                top_p: [1.0, 0.999, 0.9, 0.5, 0.05][rng.below(5) as usize],
                min_p: [0.0, 0.01, 0.2, 1.0][rng.below(4) as usize],
                repeat_penalty: [1.0, 1.3, 5.0][rng.below(3) as usize],
                presence_penalty: [0.0, 0.7, -2.0][rng.below(3) as usize],
                frequency_penalty: [0.0, 0.3, -1.0][rng.below(3) as usize],
                repeat_window: rng.below(12) as usize,
                logit_bias: if n > 5 { vec![(5, 1.5), (1, -100.0)] } else { vec![] },
                seed: round,
            };
            let mut x = logits(&mut rng, n);
            if round % 3 == 0 {
                // Many equal logits.
                x.iter_mut().for_each(|x| *x = x.round());
            }
            let recent: Vec<u16> = (0..20).map(|_| rng.below(70) as u16).collect();
            let bans = if n > 3 { vec![0, 2] } else { vec![] };
            let expected = reference(&settings, &x, &recent, &bans);
            let mut sampler = Sampler::new(settings, n, &bans).unwrap();
            let u = Rng::new(round).uniform();
            let mut sum = 0.0;
            let edges = expected.iter().map(|(_, p)| {
                sum += p;
                sum
            });
            let edges: Vec<f64> = edges.collect();
            let id = sampler.sample(&exec(), &mut x, &recent).unwrap();
            if edges.iter().all(|edge| (edge - u).abs() > 1e-5) {
                let at = edges.iter().position(|edge| *edge > u).unwrap();
                assert_eq!(id, expected[at].0, "{:?}", sampler.settings);
                compared += 1;
            }
        }
        assert!(compared > 2950, "{compared}");
    }

    #[test]
    fn draws_follow_the_distribution() {
        let x = [0.5, 2.0, -1.0, 1.9, 0.0, -8.0, 1.0, 0.9];
        let plain = Settings::default();
        for settings in [
            plain.clone(),
            Settings { temperature: 0.6, top_k: 5, ..plain.clone() },
            Settings { top_p: 0.8, ..plain.clone() },
            Settings { min_p: 0.3, repeat_penalty: 1.5, ..plain },
        ] {
            let expected = reference(&settings, &x, &[1, 1], &[6]);
            let mut sampler = Sampler::new(settings, 8, &[6]).unwrap();
            let (mut counts, draws) = ([0.0; 8], 50_000);
            for _ in 0..draws {
                counts[usize::from(sampler.sample(&exec(), &mut x.clone(), &[1, 1]).unwrap())] += 1.0;
            }
            let mut chi2 = 0.0;
            for (id, p) in &expected {
                let mean = p * f64::from(draws);
                let count: f64 = std::mem::take(&mut counts[usize::from(*id)]);
                chi2 += (count - mean) * (count - mean) / mean;
            }
            assert_eq!(counts, [0.0; 8], "drawn, but not allowed");
            let freedom = (expected.len() - 1) as f64;
            let bound = freedom + 5.0 * (2.0 * freedom).sqrt();
            assert!(chi2 < bound, "{chi2} > {bound}");
        }
    }

    #[test]
    fn settings_that_leave_one_token_are_greedy() {
        let mut rng = Rng::new(2);
        let plain = Settings::default();
        let greedy = Settings { temperature: 0.0, ..plain.clone() };
        let narrow = [
            Settings { top_k: 1, ..plain.clone() },
            Settings { top_p: 1e-9, ..plain.clone() },
            Settings { temperature: 1e-30, top_k: 1, ..plain },
        ];
        for round in 0..200 {
            let mut x = logits(&mut rng, 50);
            if round % 2 == 0 {
                // Ties at the top: the lowest id wins.
                x.iter_mut().for_each(|x| *x = x.round().min(2.0));
            }
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = x.iter().position(|&x| x == max).unwrap() as u16;
            for settings in narrow.iter().chain([&greedy]) {
                let mut sampler = Sampler::new(settings.clone(), 50, &[]).unwrap();
                assert_eq!(sampler.sample(&exec(), &mut x.clone(), &[]).unwrap(), first);
            }
        }
    }

    #[test]
    fn the_seed_decides_and_nothing_is_allocated() {
        let settings = Settings { top_p: 0.9, top_k: 40, repeat_penalty: 1.1, ..Settings::default() };
        let run = |seed| {
            let settings = Settings { seed, ..settings.clone() };
            let mut sampler = Sampler::new(settings, 300, &[0]).unwrap();
            let room = (sampler.candidates.capacity(), sampler.candidates.as_ptr());
            let (mut rng, mut ids) = (Rng::new(9), Vec::new());
            for _ in 0..100 {
                ids.push(sampler.sample(&exec(), &mut logits(&mut rng, 300), &ids).unwrap());
            }
            let after = (sampler.candidates.capacity(), sampler.candidates.as_ptr());
            assert_eq!(room, after);
            ids
        };
        assert_eq!(run(4), run(4));
        assert_ne!(run(4), run(5));
    }

    #[test]
    fn bad_logits_are_errors() {
        let mut sampler = Sampler::new(Settings::default(), 3, &[1]).unwrap();
        let mut error = |x: &mut [f32]| sampler.sample(&exec(), x, &[]).unwrap_err();
        let text = error(&mut [0.0, 1.0, f32::NAN]).to_string();
        assert!(text.starts_with("the logit of token 2 is NaN"), "{text}");
        let text = error(&mut [f32::INFINITY, 1.0, 0.0]).to_string();
        assert!(text.starts_with("the logit of token 0 is inf"), "{text}");
        let none = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY];
        assert_eq!(error(&mut none.clone()), SampleError::NothingLeft);
        let (expected, found) = (3, 2);
        assert_eq!(error(&mut [0.0; 2]), SampleError::Length { expected, found });
        let greedy = Settings { temperature: 0.0, ..Settings::default() };
        let mut greedy = Sampler::new(greedy, 3, &[1]).unwrap();
        let left = greedy.sample(&exec(), &mut none.clone(), &[]);
        assert_eq!(left, Err(SampleError::NothingLeft));
        // The largest numbers there are do no harm.
        let mut x = [f32::MAX, 0.0, f32::MIN];
        assert_eq!(sampler.sample(&exec(), &mut x, &[2, 900]), Ok(0));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |name: &str, change: fn(&mut Settings, f32), values: &[f32]| {
            for &value in values {
                let mut settings = Settings::default();
                change(&mut settings, value);
                let error = Sampler::new(settings, 9, &[]).unwrap_err().to_string();
                assert!(error.starts_with(&format!("{name}: ")), "{error}");
                assert!(error.ends_with(&format!("found {value}")), "{error}");
            }
        };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        refused("temperature", |s, v| s.temperature = v, &[nan, inf, -0.1]);
        refused("top_p", |s, v| s.top_p = v, &[nan, 0.0, -1.0, 1.1]);
        refused("min_p", |s, v| s.min_p = v, &[nan, -0.1, 1.1]);
        refused("repeat_penalty", |s, v| s.repeat_penalty = v, &[nan, inf, 0.9]);
        refused("presence_penalty", |s, v| s.presence_penalty = v, &[nan, inf, 2.1, -2.1]);
        refused("frequency_penalty", |s, v| s.frequency_penalty = v, &[nan, inf, 2.1, -2.1]);
        refused("logit_bias", |s, v| s.logit_bias = vec![(1, 0.0), (2, v)], &[nan, inf, 101.0, -101.0]);
        let foreign = Settings { logit_bias: vec![(9, 1.0)], ..Settings::default() };
        assert!(Sampler::new(foreign, 9, &[]).is_err());
        assert!(Sampler::new(Settings::default(), 0, &[]).is_err());
        assert!(Sampler::new(Settings::default(), 1 << 16, &[u16::MAX]).is_ok());
        assert!(Sampler::new(Settings::default(), 65_535, &[u16::MAX]).is_err());
    }

    /// What is shown of `text` cut into pieces of `size` characters, and whether it stopped.
    fn stream(stops: &[&str], text: &str, size: usize) -> (String, bool) {
        let stops = stops.iter().map(|s| s.to_string()).collect();
        let mut watch = StopStrings::new(stops).unwrap();
        let chars: Vec<char> = text.chars().collect();
        let mut shown = String::new();
        for piece in chars.chunks(size) {
            watch.push(&piece.iter().collect::<String>(), &mut shown);
        }
        watch.finish(&mut shown);
        (shown, watch.is_complete())
    }

    #[test]
    fn stop_strings_do_not_depend_on_the_pieces() {
        let mut rng = Rng::new(6);
        let mut stopped = 0;
        for _ in 0..2000 {
            let word = |rng: &mut Rng, n: u64| -> String {
                let letter = |rng: &mut Rng| ['a', 'b', 'é'][rng.below(3) as usize];
                (0..n).map(|_| letter(rng)).collect()
            };
            let length = rng.below(30);
            let text = word(&mut rng, length);
            let stops: Vec<String> = (1..4).map(|n| word(&mut rng, 1 + n)).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            // The earliest end, then the longest.
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            let cut = ends
                .flat_map(|end| stops.iter().map(move |stop| (end, stop)))
                .filter(|(end, stop)| text[..*end].ends_with(**stop))
                .map(|(end, stop)| (end, end - stop.len()))
                .min();
            let shown = cut.map_or(text.as_str(), |(_, start)| &text[..start]);
            for size in [1, 2, 3, 100] {
                let got = stream(&stops, &text, size);
                assert_eq!((got.0.as_str(), got.1), (shown, cut.is_some()));
            }
            stopped += usize::from(cut.is_some());
        }
        assert!((500..1900).contains(&stopped), "{stopped}");
    }

    #[test]
    fn only_what_may_become_a_stop_string_is_held_back() {
        let mut watch = StopStrings::new(vec!["\n\nThe".into(), "###".into()]).unwrap();
        for (piece, shown) in [("once.\n", "once."), ("\nT", ""), ("wo ##", "\n\nTwo "), (" x #", "## x "), ("##", "")]
        {
            let mut text = String::new();
            watch.push(piece, &mut text);
            assert_eq!(text, shown, "after {piece:?}");
        }
        assert!(watch.is_complete());
        let mut text = String::new();
        watch.push("more", &mut text);
        watch.finish(&mut text);
        assert_eq!(text, "");
        assert!(StopStrings::new(vec![String::new()]).is_err());
        assert!(StopStrings::new(vec!["a".repeat(257)]).is_err());
        assert!(StopStrings::new(vec!["a".into(); 17]).is_err());
    }
}
