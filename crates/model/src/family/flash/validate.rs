//! The rules about a config of this family.

use crate::config::{DilatedConfig, ModelConfig, ScaleKind};
use crate::error::{ConfigError, check, epsilon, within};
use crate::mixer;

/// Checks what the family's own settings may be.
pub(in crate::family) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    within("quant.size", config.quant.size, 1, 1 << 20)?;
    let other = "none, tensor, block or group: model.family = \"v3\" alone has unit";
    check(config.quant.scale != ScaleKind::Unit, || ConfigError::new("quant.scale", "unit", other))?;
    let other = "left out: model.family = \"v3\" alone has dilated convolutions";
    check(config.dilated == DilatedConfig::default(), || {
        ConfigError::new("dilated.groups", config.dilated.groups, other)
    })?;
    // A row of zeros is multiplied by the root of its inverse, and gradients by more than that.
    epsilon("norm_eps", config.norm_eps)?;
    let (cap, expected) = (config.logit_softcap, "0 (no cap), or between 1 and 1000");
    let capped = cap == 0.0 || (1.0..=1000.0).contains(&cap);
    check(capped, || ConfigError::new("logit_softcap", cap, expected))?;
    let bits = config.activation_bits;
    let expected = "0 (float activations) or 8 (int8)";
    check(matches!(bits, 0 | 8), || ConfigError::new("activation_bits", bits, expected))?;
    within("bigram", config.bigram, 0, 1 << 20)?;
    within("pointer", config.pointer, 0, 1 << 14)?;
    let mixers = config.pattern.len();
    check(mixers <= 128, || ConfigError::new("pattern", format!("[{mixers} mixers]"), "of at most 128 mixers"))?;
    mixer::known("mixer", &config.mixer)?;
    for name in &config.pattern {
        mixer::known("pattern", name)?;
    }
    let used = |name: &str| (0..config.blocks).any(|i| config.mixer_of(i) == name);
    config.mixers.validate(&config.layers(), used)
}
