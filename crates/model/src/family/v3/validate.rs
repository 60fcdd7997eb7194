//! The rules about a config of this family.

use flashlm_kernels::ops::GROUPED_TAPS;

use crate::config::{ActivationKind, ModelConfig};
use crate::error::{ConfigError, check, epsilon, within};

/// Most dilated layers of a mixer.
const LAYERS: usize = 16;
/// Largest dilation.
const FURTHEST: usize = 4096;

/// Checks what the family's own settings may be; what is a switch of another family must be off.
pub(in crate::family) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    let c = config;
    let of = |name: &'static str, bad: bool, found: String, expected: &str| {
        check(!bad, || ConfigError::new(name, found, format!("{expected}: model.family = \"v3\" has no other")))
    };
    within("quant.size", c.quant.size, 1, 1 << 20)?;
    epsilon("norm_eps", c.norm_eps)?;
    within("kernel_size", c.mixers.kernel_size, 1, GROUPED_TAPS)?;
    let groups = c.dilated.groups;
    within("dilated.groups", groups, 1, c.dim)?;
    check(c.dim.is_multiple_of(groups), || {
        ConfigError::new("dilated.groups", groups, format!("a divisor of model.dim = {}", c.dim))
    })?;
    let layers = c.dilated.dilations.len();
    check((1..=LAYERS).contains(&layers), || {
        ConfigError::new("dilated.dilations", format!("[{layers} numbers]"), format!("1 to {LAYERS} numbers"))
    })?;
    for &dilation in &c.dilated.dilations {
        within("dilated.dilations", dilation, 1, FURTHEST)?;
    }
    let bits = c.activation_bits;
    let expected = "0 (float activations) or 8 (int8)";
    check(matches!(bits, 0 | 8), || ConfigError::new("activation_bits", bits, expected))?;
    of("mixer", c.mixer != "conv", format!("{:?}", c.mixer), "\"conv\"")?;
    of("pattern", !c.pattern.is_empty(), format!("[{} mixers]", c.pattern.len()), "empty")?;
    of("activation", c.activation != ActivationKind::Relu2, "silu".into(), "relu2")?;
    of("block_norm", !c.block_norm, "false".into(), "true")?;
    of("quant.norm", c.quant.norm, "true".into(), "false")?;
    of("sub_norm", c.sub_norm, "true".into(), "false")?;
    of("zero_init", c.zero_init, "true".into(), "false")?;
    of("x0", c.x0, "true".into(), "false")?;
    of("bigram", c.bigram > 0, c.bigram.to_string(), "0")?;
    of("layer_embeddings", c.layer_embeddings, "true".into(), "false")?;
    of("pointer", c.pointer > 0, c.pointer.to_string(), "0")?;
    of("pointer_words", c.pointer_words, "true".into(), "false")?;
    of("logit_softcap", c.logit_softcap != 0.0, c.logit_softcap.to_string(), "0")?;
    // None is used; they are kept and written like all settings.
    c.mixers.validate(&c.layers(), |_| false)
}
