//! The dial: how wide a model of the project's own recipe is to be, from the time, this machine's speed and the size of the text.
//!
//! The recipe is the preset `flash-small`. A width `d` sets all that depends on it: `ffn_hidden = 2.75 d` as a multiple of 32, heads
//! of 32 channels; a width of 64 has 4 blocks, attention to 32 tokens and 2 sequences per step, larger ones 6, 512 and 4. What to
//! expect after `n` tokens was fitted to sweeps on TinyStories (docs/recipe.md):
//!
//! ```text
//! bpb(d, n) = FLOOR + WIDTH d^-P + TOKENS n^-Q        d the width, n in millions of tokens
//! bpb(64, n) = SMALL_FLOOR + SMALL_TOKENS n^-Q        fewer blocks and smaller steps: it learns sooner, and less
//! ```
//!
//! Tokens that are read again teach less: `U` of them in `e` epochs count as `U (1 + R (1 - exp(-(e - 1) / R)))` with R = 15.4
//! (Muennighoff et al., "Scaling Data-Constrained Language Models", arXiv 2305.16264).

use std::time::Instant;

use flashlm_kernels::Exec;
use flashlm_model::{ModelConfig, Precision, Shape};
use toml::Value;

use super::Steps;
use crate::config::{Layers, Settings, SettingsError};
use crate::trainer::TrainError;
use crate::units::{bytes, count, thousands};

/// Widths to choose from: each costs about half as much again as the one before.
const WIDTHS: [usize; 9] = [64, 96, 128, 160, 192, 256, 320, 384, 512];

const FLOOR: f64 = 0.355;
const WIDTH: f64 = 2.17;
const P: f64 = 0.5;
const TOKENS: f64 = 0.394;
const Q: f64 = 0.35;
const SMALL_FLOOR: f64 = 0.696;
const SMALL_TOKENS: f64 = 0.269;
/// Epochs after which repeated text has taught most of what it can.
const R: f64 = 15.4;

/// Most ternary weights for each token of the text; a larger model would learn a small text by heart.
const WEIGHTS: f64 = 2.0;

/// Enough for each word of the grammar to be a token, after a space and without.
const GRAMMAR_VOCAB: i64 = 4096;

/// Bytes of a token of the recipe's vocabulary, on average.
const BYTES_PER_TOKEN: f64 = 3.6;
/// The part of a run that is spent on steps.
const TRAINING: f64 = 0.95;
/// Minutes where nothing limits a run.
pub const MINUTES: f64 = 10.0;
/// Seconds of the measurement of a width, and the fewest steps in it: half of them may be disturbed.
const MEASURED: f64 = 0.5;
const STEPS: usize = 3;

/// What is known of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dial {
    /// Its time.
    pub minutes: Option<f64>,
    /// The number of parameters that is asked for.
    pub parameters: Option<u64>,
    /// Bytes of its text, where that is not without end.
    pub bytes: Option<u64>,
    /// Whether the text is stories of the built-in grammar alone.
    pub grammar: bool,
}

/// What the dial says.
pub struct Chosen {
    /// The settings, to lay others over.
    pub layers: Layers,
    /// In one line: what was chosen, and why.
    pub told: String,
    /// Tokens per second, measured.
    pub speed: f64,
    /// Bits per byte that such a run is expected to reach on TinyStories.
    pub bpb: f64,
}

impl Dial {
    /// The width that is expected to be best, or that has about the parameters that are asked for; its speed is measured.
    pub fn choose(&self, cx: &Exec, precision: Precision) -> Result<Chosen, TrainError> {
        let mut speed = |width| tokens_per_second(cx, &self.recipe(width)?.settings()?, precision);
        let width = match self.parameters {
            Some(wanted) => self.nearest(wanted)?,
            None => self.best(&mut speed)?,
        };
        let (layers, speed) = (self.recipe(width)?, speed(width)?);
        let settings = layers.settings()?;
        let (minutes, bpb) = (self.minutes.unwrap_or(MINUTES), expected(width, self.tokens(speed)));
        let size = if self.parameters.is_some() { "the size nearest to --params" } else { "the best size" };
        let time = if minutes == 1.0 { "1 minute".into() } else { format!("{minutes} minutes") };
        let text = self.bytes.map_or(String::new(), |n| format!(" on {} of text", bytes(n)));
        let reach = if self.grammar {
            String::new()
        } else {
            format!("; on stories like TinyStories about {bpb:.2} bits per byte")
        };
        let told = format!(
            "{}: {} parameters, {size} for {time}{text} at {} tokens/s{reach}",
            settings.name,
            count(parameters(&settings)),
            thousands(speed.round() as u64),
        );
        Ok(Chosen { layers, told, speed, bpb })
    }

    /// The recipe at a width, for the text.
    fn recipe(&self, width: usize) -> Result<Layers, SettingsError> {
        let layers = recipe(width)?;
        if self.grammar { of_grammar(layers) } else { Ok(layers) }
    }

    /// The width whose number of parameters is nearest, as a ratio.
    fn nearest(&self, wanted: u64) -> Result<usize, SettingsError> {
        let mut best = (f64::INFINITY, WIDTHS[0]);
        for width in WIDTHS {
            let own = parameters(&self.recipe(width)?.settings()?) as f64;
            let found = (own / wanted as f64).ln().abs();
            if found < best.0 {
                best = (found, width);
            }
        }
        Ok(best.1)
    }

    /// The best of the widths; they are measured from the smallest on until two in turn are no better.
    fn best(&self, speed: &mut dyn FnMut(usize) -> Result<f64, TrainError>) -> Result<usize, TrainError> {
        // A grammar of a few hundred words: many steps teach more than many weights.
        if self.grammar {
            return Ok(WIDTHS[0]);
        }
        let (mut measured, mut least, mut worse) = (Vec::new(), f64::INFINITY, 0);
        for width in WIDTHS {
            if worse == 2 || (width > WIDTHS[0] && weights(width) > WEIGHTS * self.unique()) {
                break;
            }
            let speed = speed(width)?;
            measured.push((width, speed));
            let bpb = expected(width, self.tokens(speed));
            worse = if bpb < least { 0 } else { worse + 1 };
            least = least.min(bpb);
        }
        smooth(&mut measured);
        let bpb = |&(width, speed): &(usize, f64)| expected(width, self.tokens(speed));
        let best = measured.iter().min_by(|a, b| bpb(a).total_cmp(&bpb(b)));
        Ok(best.map_or(WIDTHS[0], |best| best.0))
    }

    /// Tokens at this speed, those that are read again counted for what they teach.
    fn tokens(&self, speed: f64) -> f64 {
        let read = TRAINING * 60.0 * self.minutes.unwrap_or(MINUTES) * speed;
        let unique = self.unique();
        if read <= unique { read } else { unique * (1.0 + R * (1.0 - (-(read / unique - 1.0) / R).exp())) }
    }

    /// Tokens of the text.
    fn unique(&self) -> f64 {
        self.bytes.map_or(f64::INFINITY, |bytes| bytes as f64 / BYTES_PER_TOKEN)
    }
}

/// Blocks of the recipe at a width.
fn blocks(width: usize) -> usize {
    if width <= 64 { 4 } else { 6 }
}

/// Moves the speeds of widths onto the line `ln(speed blocks) = a + b ln(width)` that is nearest to all: other programs may have disturbed one of
/// them.
fn smooth(measured: &mut [(usize, f64)]) {
    let point = |&(width, speed): &(usize, f64)| ((width as f64).ln(), (speed * blocks(width) as f64).ln());
    let n = measured.len().max(1) as f64;
    let (x, y) = measured.iter().map(point).fold((0.0, 0.0), |sum, at| (sum.0 + at.0 / n, sum.1 + at.1 / n));
    let apart = measured.iter().map(point).map(|at| (at.0 - x, at.1 - y));
    let (xy, xx) = apart.fold((0.0, 0.0), |sum, (dx, dy)| (sum.0 + dx * dy, sum.1 + dx * dx));
    let slope = if xx > 0.0 { xy / xx } else { 0.0 };
    for (width, speed) in measured {
        *speed = (y + slope * ((*width as f64).ln() - x)).exp() / blocks(*width) as f64;
    }
}

/// Ternary weights of the recipe at a width: 3.5 squares for a mixer, on average, and three matrices of the GLU.
fn weights(width: usize) -> f64 {
    6.0 * (3.5 + 3.0 * 2.75) * (width * width) as f64
}

/// Bits per byte that a width is expected to reach after so many tokens.
fn expected(width: usize, tokens: f64) -> f64 {
    let (floor, slope) = match width {
        ..=64 => (SMALL_FLOOR, SMALL_TOKENS),
        _ => (FLOOR + WIDTH * (width as f64).powf(-P), TOKENS),
    };
    floor + slope * (tokens / 1e6).max(0.01).powf(-Q)
}

/// The recipe at a width.
fn recipe(width: usize) -> Result<Layers, SettingsError> {
    let mut layers = Layers::preset("flash-small")?;
    let whole = |n: usize| Value::Integer(n as i64);
    for (key, value) in [
        ("name", Value::String(format!("flash-{width}"))),
        ("model.dim", whole(width)),
        ("model.ffn_hidden", whole((width * 11 / 4).div_ceil(32) * 32)),
        ("model.blocks", whole(blocks(width))),
        ("model.attention.heads", whole(width / 32)),
        ("model.attention.window", whole(if width <= 64 { 32 } else { 512 })),
        ("train.batch", whole(if width <= 64 { 2 } else { 4 })),
    ] {
        layers.set_value(key, value)?;
    }
    Ok(layers)
}

/// The recipe for stories of the grammar, whose sentences hang on words some twenty tokens before: a leaky integrator has them at once, where
/// attention must find them first. On real text the convolution is better.
fn of_grammar(mut layers: Layers) -> Result<Layers, SettingsError> {
    let mixers = ["leaky", "attention"].map(|name| Value::String(name.into()));
    layers.set_value("model.pattern", Value::Array(mixers.into()))?;
    layers.set_value("tokenizer.vocab", Value::Integer(GRAMMAR_VOCAB))?;
    Ok(layers)
}

/// The model of these settings, with all of its vocabulary.
fn model(settings: &Settings) -> ModelConfig {
    ModelConfig { vocab_size: settings.tokenizer.vocab, ..settings.model.clone() }
}

fn parameters(settings: &Settings) -> u64 {
    model(settings).parameters() as u64
}

/// Tokens per second of training with these settings, in the middle of some steps.
pub fn tokens_per_second(cx: &Exec, settings: &Settings, precision: Precision) -> Result<f64, TrainError> {
    let shape = Shape { batch: settings.train.batch.max(1), seq_len: settings.train.seq_len };
    let mut steps = Steps::new(cx, &model(settings), precision, settings.train.clone(), shape)?;
    // Memory is touched for the first time before it counts.
    steps.step(cx)?;
    let (start, mut taken) = (Instant::now(), Vec::new());
    while taken.len() < STEPS || start.elapsed().as_secs_f64() < MEASURED {
        let before = Instant::now();
        steps.step(cx)?;
        taken.push(before.elapsed().as_secs_f64());
    }
    taken.sort_by(f64::total_cmp);
    Ok(shape.rows() as f64 / taken[taken.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::preset;

    fn dial(minutes: f64, bytes: Option<u64>) -> Dial {
        Dial { minutes: Some(minutes), bytes, ..Dial::default() }
    }

    /// A machine on which a width costs what its matrices say.
    fn speed(width: usize) -> Result<f64, TrainError> {
        Ok(25_000.0 * (128.0 / width as f64).powf(1.6) * 6.0 / blocks(width) as f64)
    }

    /// Every fourth measurement, whichever, is a quarter too low or too high.
    #[test]
    fn other_programs_do_not_decide() {
        let quiet = [3.0, 10.0, 60.0].map(|minutes| dial(minutes, None).best(&mut speed).unwrap());
        for (disturbed, by) in (0..4).flat_map(|i| [(i, 0.75), (i, 1.25)]) {
            for (minutes, quiet) in [3.0, 10.0, 60.0].into_iter().zip(quiet) {
                let mut count = 0;
                let mut speed = |width| {
                    count += 1;
                    Ok(speed(width)? * if count % 4 == disturbed { by } else { 1.0 })
                };
                let dial = dial(minutes, None);
                let best = dial.best(&mut speed).unwrap();
                let bpb = |width| expected(width, dial.tokens(self::speed(width).unwrap()));
                assert!(bpb(best) < 1.01 * bpb(quiet), "{minutes} minutes, {disturbed}: {best} for {quiet}");
            }
        }
    }

    #[test]
    fn a_line_through_speeds_is_that_of_least_squares() {
        // speed blocks = 1, 8 and 8 at 64, 128 and 256: the line has the slope 3/2, and passes through 4 in the middle.
        let mut speeds = [(64, 1.0 / 4.0), (128, 8.0 / 6.0), (256, 8.0 / 6.0)];
        smooth(&mut speeds);
        for ((_, found), wanted) in speeds.iter().zip([2f64.sqrt() / 4.0, 4.0 / 6.0, 2f64.powf(3.5) / 6.0]) {
            assert!((found / wanted - 1.0).abs() < 1e-12, "{found} for {wanted}");
        }
        let mut one = [(64, 5.0)];
        smooth(&mut one);
        assert!((one[0].1 - 5.0f64).abs() < 1e-12);
    }

    #[test]
    fn more_time_and_more_speed_take_a_larger_model() {
        let widths = [1.0, 10.0, 60.0, 600.0].map(|minutes| dial(minutes, None).best(&mut speed).unwrap());
        assert!(widths.is_sorted() && widths[0] < widths[3], "{widths:?}");
        let fast = dial(10.0, None).best(&mut |width| Ok(20.0 * speed(width)?)).unwrap();
        assert!(fast > widths[1], "{fast}");
    }

    #[test]
    fn a_small_text_takes_a_small_model() {
        let width = |bytes: u64| dial(600.0, Some(bytes)).best(&mut speed).unwrap();
        assert_eq!([100_000, 1_000_000, 12_000_000].map(width), [64, 64, 256]);
    }

    /// The figures of the paper's Figure 5: up to 4 epochs repeated tokens are worth almost what new ones are, after 40 nothing.
    #[test]
    fn repeated_text_counts_for_less() {
        let unique = 1e6 * BYTES_PER_TOKEN;
        let tokens = |epochs: f64| dial(1.0, Some(unique as u64)).tokens(epochs * 1e6 / (TRAINING * 60.0)) / 1e6;
        assert!((tokens(0.5) - 0.5).abs() < 1e-9 && (tokens(1.0) - 1.0).abs() < 1e-9);
        assert!((3.7..4.0).contains(&tokens(4.0)), "{}", tokens(4.0));
        assert!(tokens(60.0) - tokens(40.0) < 1.5 && tokens(1e4) < 1.0 + R + 1e-9);
    }

    #[test]
    fn the_presets_are_points_of_the_curve() {
        for (name, width) in [("flash-tiny", 64), ("flash-small", 128), ("flash-medium", 192), ("flash-large", 384)] {
            let point = recipe(width).unwrap().settings().unwrap();
            assert_eq!(preset(name).unwrap(), Settings { name: name.into(), ..point });
        }
    }

    #[test]
    fn a_number_of_parameters_takes_the_nearest_size() {
        for dial in [false, true].map(|grammar| Dial { grammar, ..Dial::default() }) {
            for width in WIDTHS {
                let own = parameters(&dial.recipe(width).unwrap().settings().unwrap());
                assert_eq!([own * 95 / 100, own, own * 105 / 100].map(|n| dial.nearest(n).unwrap()), [width; 3]);
            }
            assert_eq!((dial.nearest(1).unwrap(), dial.nearest(1 << 40).unwrap()), (64, 512));
        }
    }
}
