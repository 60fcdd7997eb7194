//! Every rule about a model's sizes and switches. What passes here can be trained, saved, loaded, packed and let write; a mixer,
//! a reader or the packed runtime has no rules of its own.

use super::ModelConfig;
use crate::layer::ffn::Ffn;
use crate::mixer;
use crate::tok::Tokenizer;

/// Most parameters of a model, and most numbers that its blocks remember of one text. Files of a model, of its optimizer's state
/// and of its packed form are then short enough to be read again.
pub const MAX_NUMBERS: usize = 1_000_000_000;

/// A setting that no model can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model.{key} = {found}: must be {expected}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub found: String,
    /// The allowed values.
    pub expected: String,
}

impl ConfigError {
    fn new(key: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        ConfigError { key, found: found.to_string(), expected: expected.into() }
    }
}

fn check(ok: bool, error: impl FnOnce() -> ConfigError) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(error()) }
}

fn within(key: &'static str, found: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    check((low..=high).contains(&found), || ConfigError::new(key, found, format!("between {low} and {high}")))
}

impl ModelConfig {
    /// Checks every value, and how large the whole becomes, so that a hostile file cannot ask for the whole memory.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("vocab_size", self.vocab_size, 2, usize::from(u16::MAX))?;
        within("dim", self.dim, 1, 8192)?;
        within("blocks", self.blocks, 1, 128)?;
        within("ffn_hidden", self.ffn_hidden, 1, 32_768)?;
        within("kernel_size", self.kernel_size, 1, 64)?;
        within("quant.size", self.quant.size, 1, 1 << 20)?;
        within("eos", self.eos, 0, self.vocab_size - 1)?;
        // A row of zeros is multiplied by the root of its inverse, and gradients by more than that.
        let eps = self.norm_eps;
        check((1e-12..1.0).contains(&eps), || ConfigError::new("norm_eps", eps, "at least 1e-12 and below 1"))?;
        let (cap, expected) = (self.logit_softcap, "0 (no cap), or between 1 and 1000");
        let capped = cap == 0.0 || (1.0..=1000.0).contains(&cap);
        check(capped, || ConfigError::new("logit_softcap", cap, expected))?;
        let bits = self.activation_bits;
        check(matches!(bits, 0 | 8), || {
            ConfigError::new("activation_bits", bits, "0 (float activations) or 8 (int8)")
        })?;
        let mixers = self.pattern.len();
        check(mixers <= 128, || ConfigError::new("pattern", format!("[{mixers} mixers]"), "of at most 128 mixers"))?;
        for (key, name) in [("mixer", &self.mixer)].into_iter().chain(self.pattern.iter().map(|name| ("pattern", name)))
        {
            let expected = || format!("one of {}", mixer::NAMES.join(", "));
            let known = mixer::NAMES.contains(&name.as_str());
            check(known, || ConfigError::new(key, format!("{name:?}"), expected()))?;
        }
        self.validate_delta()?;
        self.validate_attention()?;
        self.validate_size()
    }

    /// That the model's tokens are those of `tokenizer`.
    pub fn fits(&self, tokenizer: &Tokenizer) -> Result<(), ConfigError> {
        let (v, eos) = (tokenizer.vocab_size(), usize::from(tokenizer.eos()));
        let expected = || format!("{v}, as its tokenizer has {v} tokens");
        check(self.vocab_size == v, || ConfigError::new("vocab_size", self.vocab_size, expected()))?;
        // Where no story starts anew the model looks at no token.
        let expected = || format!("{eos}, the end of a story in its tokenizer");
        check(!self.reset || self.eos == eos, || ConfigError::new("eos", self.eos, expected()))
    }

    /// Number of parameters of a valid config.
    pub fn parameters(&self) -> usize {
        self.parameters_of(self.blocks)
    }

    fn uses(&self, name: &str) -> bool {
        (0..self.blocks).any(|i| self.mixer_of(i) == name)
    }

    fn validate_delta(&self) -> Result<(), ConfigError> {
        let c = &self.delta;
        within("delta.heads", c.heads, 1, 1024)?;
        within("delta.conv", c.conv, 1, 64)?;
        for (key, expand) in [("delta.expand_k", c.expand_k), ("delta.expand_v", c.expand_v)] {
            check(expand > 0.0 && expand <= 8.0, || ConfigError::new(key, expand, "above 0 and at most 8"))?;
            let (width, heads) = (expand * self.dim as f64, c.heads);
            let whole = width.round();
            let shared = (width - whole).abs() < 1e-6 && whole >= 1.0 && (whole as usize).is_multiple_of(heads);
            let expected = || {
                let near = (width / heads as f64).round().max(1.0) * heads as f64 / self.dim as f64;
                let near = if near <= 8.0 { format!(", such as {near}") } else { String::new() };
                format!("such that the width of all heads, now {width}, is a multiple of delta.heads = {heads}{near}")
            };
            check(shared || !self.uses("delta"), || ConfigError::new(key, expand, expected()))?;
        }
        Ok(())
    }

    fn validate_attention(&self) -> Result<(), ConfigError> {
        let c = &self.attention;
        within("attention.heads", c.heads, 1, 1024)?;
        within("attention.window", c.window, 1, 1 << 14)?;
        let base = c.rope_base;
        check((1.0..=1e9).contains(&base), || ConfigError::new("attention.rope_base", base, "between 1 and 1e9"))?;
        let even = self.dim.is_multiple_of(2 * c.heads) || !self.uses("attention");
        let expected = || {
            let fewer = (1..c.heads).rev().find(|heads| self.dim.is_multiple_of(2 * heads));
            let fewer = fewer.map_or("; an odd dim has none".into(), |heads| format!(", such as {heads}"));
            format!("such that each head of dim = {} has an even width{fewer}", self.dim)
        };
        check(even, || ConfigError::new("attention.heads", c.heads, expected()))
    }

    fn validate_size(&self) -> Result<(), ConfigError> {
        let all = self.parameters();
        if all > MAX_NUMBERS {
            let fits = (1..self.blocks).rev().find(|&blocks| self.parameters_of(blocks) <= MAX_NUMBERS);
            let (key, found, expected) = match fits {
                Some(blocks) => ("blocks", self.blocks, format!("at most {blocks} with the other sizes as they are")),
                None => ("dim", self.dim, "smaller, with the other sizes as they are".into()),
            };
            let why = format!("{expected}: a model has at most {MAX_NUMBERS} parameters, this would have {all}");
            return Err(ConfigError::new(key, found, why));
        }
        let state = |name: &str| -> usize {
            let of = |i| (self.mixer_of(i) == name).then(|| mixer::sizes(name, self).1);
            (0..self.blocks).filter_map(of).sum()
        };
        let all: usize = mixer::NAMES.iter().map(|name| state(name)).sum();
        if all > MAX_NUMBERS {
            let (attention, window) = (state("attention"), self.attention.window);
            let (key, found, mend) = match MAX_NUMBERS.checked_sub(all - attention) {
                Some(left) => ("attention.window", window, format!("at most {}", left / (attention / window))),
                None => ("delta.heads", self.delta.heads, "larger".into()),
            };
            let why =
                format!("{mend}: the blocks of a model remember at most {MAX_NUMBERS} numbers of a text, now {all}");
            return Err(ConfigError::new(key, found, why));
        }
        Ok(())
    }

    /// Parameters with so many blocks.
    fn parameters_of(&self, blocks: usize) -> usize {
        let norms = if self.block_norm { 2 * self.dim } else { 0 };
        let glu = Ffn::<f32>::parameters(self);
        let block = |i| norms + glu + mixer::sizes(self.mixer_of(i), self).0;
        self.vocab_size * self.dim + self.dim + (0..blocks).map(block).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::ops::{rmsnorm_backward, rmsnorm_forward};
    use flashlm_kernels::{Exec, Isa};

    use super::*;
    use crate::config::{AttentionConfig, DeltaConfig};
    use crate::infer::testing::{Noise, shapes};

    fn error(change: impl Fn(&mut ModelConfig)) -> String {
        let mut config = ModelConfig::v4_small();
        change(&mut config);
        config.validate().expect_err("refused").to_string()
    }

    #[test]
    fn the_soft_cap_has_bounds() {
        for (cap, ok) in [(0.0, true), (1.0, true), (1000.0, true), (0.5, false), (-15.0, false), (1e4, false)] {
            let config = ModelConfig { logit_softcap: cap, ..ModelConfig::v4_small() };
            assert_eq!(config.validate().is_ok(), ok, "{cap}");
        }
        let said = error(|c| c.logit_softcap = f64::NAN);
        assert_eq!(said, "model.logit_softcap = NaN: must be 0 (no cap), or between 1 and 1000");
    }

    #[test]
    fn what_no_model_has_is_refused_by_its_key() {
        let said = error(|c| c.activation_bits = 4);
        assert_eq!(said, "model.activation_bits = 4: must be 0 (float activations) or 8 (int8)");
        assert!(error(|c| c.eos = 10_000).contains("model.eos = 10000: must be between 0 and 9999"));
        assert!(error(|c| c.norm_eps = 1e-13).contains("norm_eps = 0.0000000000001: must be at least 1e-12"));
        let said = error(|c| c.pattern = vec!["conv".into(); 129]);
        assert_eq!(said, "model.pattern = [129 mixers]: must be of at most 128 mixers");
    }

    #[test]
    fn the_values_that_errors_name_are_good() {
        let of = |mixer: &str, dim, heads| ModelConfig {
            mixer: mixer.into(),
            dim,
            delta: DeltaConfig { heads, ..DeltaConfig::default() },
            attention: AttentionConfig { heads, ..AttentionConfig::default() },
            ..ModelConfig::v4_small()
        };
        let (mut mended, mut refused) = (0, 0);
        for (dim, heads) in (1..150).flat_map(|dim| (1..30).map(move |heads| (dim, heads))) {
            for mixer in ["delta", "attention"] {
                let mut config = of(mixer, dim, heads);
                while let Err(error) = config.validate() {
                    let Some((_, value)) = error.expected.split_once(", such as ") else {
                        assert!(heads > 8 * dim || mixer == "attention" && dim % 2 == 1, "{error}");
                        refused += 1;
                        break;
                    };
                    match error.key {
                        "delta.expand_k" => config.delta.expand_k = value.parse().unwrap(),
                        "delta.expand_v" => config.delta.expand_v = value.parse().unwrap(),
                        _ => config.attention.heads = value.parse().unwrap(),
                    }
                    mended += 1;
                    assert_ne!(config.validate(), Err(error));
                }
            }
        }
        assert!(mended > 1000 && refused > 1000, "{mended} {refused}");
    }

    #[test]
    fn a_row_of_zeros_has_a_norm_at_the_least_epsilon() {
        let cx = &Exec::new(Isa::SCALAR, 1);
        let run = |eps| {
            let (x, scale) = ([0f32; 4], [1f32; 4]);
            let (mut y, mut dx, mut dscale) = ([f32::NAN; 4], [f32::NAN; 4], [0f32; 4]);
            rmsnorm_forward(cx, &mut y, &x, &scale, eps, (1, 4));
            rmsnorm_backward(cx, &mut dx, &mut dscale, &scale, &x, &scale, eps, (1, 4), false);
            y.iter().chain(&dx).chain(&dscale).all(|x| x.is_finite())
        };
        assert!(run(1e-12) && !run(1e-90));
    }

    #[test]
    fn the_whole_has_a_largest_size() {
        // A block: 3 D^2 of the mixer with its 8 taps, 3 D F, two norms. Six of them and the table are 947,179,520.
        let said = error(|c| (c.dim, c.ffn_hidden, c.blocks) = (4096, 8192, 128));
        let why = "a model has at most 1000000000 parameters, this would have 19373559808";
        assert_eq!(said, format!("model.blocks = 128: must be at most 6 with the other sizes as they are: {why}"));
        assert!(error(|c| (c.dim, c.ffn_hidden) = (8192, 32_768)).starts_with("model.dim = 8192: must be smaller"));
        let state = |c: &mut ModelConfig| {
            (c.dim, c.blocks, c.mixer) = (1024, 100, "attention".into());
            c.attention = AttentionConfig { window: 1 << 14, ..c.attention.clone() };
        };
        // Of a token 2 D in each of 100 blocks.
        assert!(error(state).contains("model.attention.window = 16384: must be at most 4882:"), "{}", error(state));
        let state = |c: &mut ModelConfig| {
            (c.dim, c.blocks, c.mixer) = (2048, 5, "delta".into());
            c.delta = DeltaConfig { heads: 1, expand_k: 8.0, expand_v: 8.0, ..c.delta.clone() };
        };
        assert!(error(state).contains("model.delta.heads = 1: must be larger"), "{}", error(state));
    }

    #[test]
    fn sizes_are_those_of_the_model() {
        for (name, config) in shapes() {
            let noise = Noise::new(config);
            assert_eq!(noise.config.parameters(), noise.layout.parameters(), "{name}");
            let state: usize =
                (0..noise.config.blocks).map(|i| mixer::sizes(noise.config.mixer_of(i), &noise.config).1).sum();
            // Four bytes a number, and those of the count before.
            assert_eq!(4 * state + 4, noise.model.stream().save().len(), "{name}");
        }
    }
}
