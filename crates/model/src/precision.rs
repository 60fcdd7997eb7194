//! In which precision a model computes, chosen when it is built.

use flashlm_kernels::measure::{fastest, product};
use flashlm_kernels::{Bf16, Exec, Isa, Store};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ModelConfig};
use crate::family;
use crate::family::forms::LanguageModel;

/// What matmuls and saved activations are kept as; sums of floats and parameters are f32 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The faster on this machine: see [`Precision::resolve`].
    Auto,
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// int8 where weights are ternary, bf16 elsewhere.
    Int8,
    /// int8 where weights are ternary, f32 elsewhere.
    #[serde(rename = "int8-f32")]
    Int8F32,
}

impl Precision {
    /// All that users may name.
    pub const ALL: [Precision; 5] =
        [Precision::Auto, Precision::F32, Precision::Bf16, Precision::Int8, Precision::Int8F32];

    /// `Auto` turned into bf16 where its matmuls are faster by at least a third, and `Int8` into `Int8F32` where they are not.
    /// Processors with the same instructions run them at very different rates, so a small matmul is timed.
    pub fn resolve(self, isa: Isa) -> Precision {
        if !matches!(self, Precision::Auto | Precision::Int8) {
            return self;
        }
        let faster = || {
            // A matmul that fits in cache.
            let (cx, sizes) = (Exec::new(isa, 1), (112, 256, 256));
            let seconds = |call: &mut dyn FnMut()| fastest(0.01, call);
            product::<Bf16>(&cx, sizes, seconds) > 1.33 * product::<f32>(&cx, sizes, seconds)
        };
        let bf16 = isa.has_tiles() || isa.has_bf16() && faster();
        match (self, bf16) {
            (Precision::Int8, true) => Precision::Int8,
            (Precision::Int8, false) => Precision::Int8F32,
            (_, true) => Precision::Bf16,
            (_, false) => Precision::F32,
        }
    }

    /// The name users give it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::F32 => f32::NAME,
            Precision::Bf16 => Bf16::NAME,
            Precision::Int8 => "int8",
            Precision::Int8F32 => "int8-f32",
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
            Precision::Bf16 => family::build::<Bf16>(config, rows, training, false),
            Precision::Auto | Precision::F32 => family::build::<f32>(config, rows, training, false),
            Precision::Int8 => family::build::<Bf16>(config, rows, training, true),
            Precision::Int8F32 => family::build::<f32>(config, rows, training, true),
        }
    }
}
