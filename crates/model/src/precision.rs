//! In which precision a model computes, chosen when it is built.

use flashlm_kernels::measure::{fastest, product};
use flashlm_kernels::{Bf16, Exec, Isa, Store};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ModelConfig};
use crate::family;
use crate::family::forms::LanguageModel;

/// What matmuls and saved activations are kept as; sums and parameters are f32 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The faster on this machine: see [`Precision::resolve`].
    Auto,
    /// f32.
    F32,
    /// bf16.
    Bf16,
}

impl Precision {
    /// `Auto` turned into bf16 where its matmuls are faster by at least a third. Processors with the same instructions run
    /// them at very different rates, so a small matmul is timed.
    pub fn resolve(self, isa: Isa) -> Precision {
        if self != Precision::Auto {
            return self;
        }
        let faster = || {
            // A matmul that fits in cache.
            let (cx, sizes) = (Exec::new(isa, 1), (112, 256, 256));
            let seconds = |call: &mut dyn FnMut()| fastest(0.01, call);
            product::<Bf16>(&cx, sizes, seconds) > 1.33 * product::<f32>(&cx, sizes, seconds)
        };
        if isa.has_tiles() || isa.has_bf16() && faster() { Precision::Bf16 } else { Precision::F32 }
    }

    /// The name users give it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::F32 => f32::NAME,
            Precision::Bf16 => Bf16::NAME,
        }
    }

    /// A model for micro-batches of at most `rows` rows, `Auto` counting as f32.
    pub fn build(
        self,
        config: &ModelConfig,
        rows: usize,
        training: bool,
    ) -> Result<Box<dyn LanguageModel<f32>>, ConfigError> {
        match self {
            Precision::Bf16 => family::build::<Bf16>(config, rows, training),
            Precision::Auto | Precision::F32 => family::build::<f32>(config, rows, training),
        }
    }
}
