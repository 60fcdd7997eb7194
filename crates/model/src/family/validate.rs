//! Every rule about a model's sizes and switches. What passes here can be trained, saved, loaded, packed and run; a mixer,
//! a reader or the packed runtime has no rules of its own.

use crate::config::ModelConfig;
use crate::error::{ConfigError, check, within};
use crate::params::{Layout, MAX_NUMBERS};
use crate::tok::Tokenizer;

impl ModelConfig {
    /// Checks every value, and how large the whole becomes, so that a hostile file cannot ask for the whole memory.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let known = super::NAMES.contains(&self.family.as_str());
        let expected = || format!("one of {}", super::NAMES.join(", "));
        check(known, || ConfigError::new("family", format!("{:?}", self.family), expected()))?;
        within("vocab_size", self.vocab_size, 2, usize::from(u16::MAX))?;
        within("dim", self.dim, 1, 8192)?;
        within("blocks", self.blocks, 1, 128)?;
        within("ffn_hidden", self.ffn_hidden, 1, 32_768)?;
        within("eos", self.eos, 0, self.vocab_size - 1)?;
        super::validate(self)?;
        self.validate_size()
    }

    /// That the model's tokens are those of `tokenizer`.
    pub fn fits(&self, tokenizer: &Tokenizer) -> Result<(), ConfigError> {
        let (v, eos) = (tokenizer.vocab_size(), usize::from(tokenizer.eos()));
        let expected = || format!("{v}, since its tokenizer has {v} tokens");
        check(self.vocab_size == v, || ConfigError::new("vocab_size", self.vocab_size, expected()))?;
        // What comes before the first token of a document; where nothing asks for it the model looks at no token.
        let asks = self.reset || self.bigram > 0;
        let expected = || format!("{eos}, the end of a document in its tokenizer");
        check(!asks || self.eos == eos, || ConfigError::new("eos", self.eos, expected()))
    }

    /// Number of parameters of a valid config.
    pub fn parameters(&self) -> usize {
        Layout::of(self).parameters()
    }

    /// Numbers in the state of one sequence in the packed runtime, of a valid config.
    pub fn state_len(&self) -> usize {
        super::sizes(self).1
    }

    /// About how many numbers training keeps of a row of a batch besides its logits, of a valid config.
    pub fn row_len(&self) -> usize {
        super::sizes(self).2
    }

    fn validate_size(&self) -> Result<(), ConfigError> {
        let (layout, state, _) = super::sizes(self);
        let refuse = |of: fn(&ModelConfig) -> usize, why: String| {
            let fits =
                (1..self.blocks).rev().find(|&blocks| of(&ModelConfig { blocks, ..self.clone() }) <= MAX_NUMBERS);
            let (key, found, expected) = match fits {
                Some(blocks) => ("blocks", self.blocks, format!("at most {blocks} with the other sizes as they are")),
                None => ("dim", self.dim, "smaller, with the other sizes as they are".into()),
            };
            Err(ConfigError::new(key, found, format!("{expected}: {why}")))
        };
        let all = layout.parameters();
        if all > MAX_NUMBERS {
            let why = format!("a model has at most {MAX_NUMBERS} parameters, this would have {all}");
            return refuse(ModelConfig::parameters, why);
        }
        if state > MAX_NUMBERS {
            let why = format!("the state of a sequence is at most {MAX_NUMBERS} numbers, now {state}");
            return refuse(ModelConfig::state_len, why);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::ops::{rmsnorm_backward, rmsnorm_forward};
    use flashlm_kernels::{Exec, Isa};

    use super::*;
    use crate::config::{AttentionConfig, DeltaConfig, ScaleKind};
    use crate::infer::testing::{Noise, shapes};
    use crate::mixer::Settings;

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
        assert!(
            error(|c| c.quant.scale = ScaleKind::Unit).starts_with("model.quant.scale = unit: must be none, tensor")
        );
        assert!(error(|c| c.dilated.dilations.push(2)).starts_with("model.dilated.groups = 16: must be left out"));
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
            mixers: Settings {
                delta: DeltaConfig { heads, ..DeltaConfig::default() },
                attention: AttentionConfig { heads, ..AttentionConfig::default() },
                ..ModelConfig::v4_small().mixers
            },
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
                        "delta.expand_k" => config.mixers.delta.expand_k = value.parse().unwrap(),
                        "delta.expand_v" => config.mixers.delta.expand_v = value.parse().unwrap(),
                        _ => config.mixers.attention.heads = value.parse().unwrap(),
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
            c.mixers.attention = AttentionConfig { window: 1 << 14, ..c.mixers.attention.clone() };
        };
        // Of each of 16384 tokens 2 D: 33,554,432 in a block.
        assert!(error(state).contains("model.blocks = 100: must be at most 29 with"), "{}", error(state));
        let state = |c: &mut ModelConfig| {
            (c.dim, c.blocks, c.mixer) = (2048, 5, "delta".into());
            c.mixers.delta = DeltaConfig { heads: 1, expand_k: 8.0, expand_v: 8.0, ..c.mixers.delta.clone() };
        };
        // A state of 16384 x 16384, and 3 rows of its convolutions.
        assert!(error(state).contains("model.blocks = 5: must be at most 3 with"), "{}", error(state));
    }

    #[test]
    fn sizes_are_those_of_the_model() {
        for (name, config) in shapes() {
            let noise = Noise::new(config);
            let counted = noise.layout.specs().iter().filter(|spec| spec.group != crate::params::Group::Constant);
            let floats: usize = counted.map(|spec| spec.shape.iter().product::<usize>()).sum();
            assert_eq!(noise.config.parameters(), floats, "{name}");
            let state = noise.config.state_len();
            // Four bytes a number, and those of the count before.
            assert_eq!(4 * state + 4, noise.model.new_state().save().len(), "{name}");
        }
    }
}
