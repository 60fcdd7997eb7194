//! In which precision a model computes, chosen when it is built.

use flashlm_kernels::ops::{Packed, matmul};
use flashlm_kernels::{Bf16, Buf, Exec, Isa, Store};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, ModelConfig};
use crate::family;
use crate::family::forms::LanguageModel;

/// What matrix products and saved activations are kept as; sums and parameters are f32 in each.
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
    /// `Auto` turned into bf16 where its products are faster by at least a third. Processors with the same instructions run
    /// them at very different rates, so a small product is timed.
    pub fn resolve(self, isa: Isa) -> Precision {
        if self != Precision::Auto {
            return self;
        }
        let faster = || product_seconds::<f32>(isa) > 1.33 * product_seconds::<Bf16>(isa);
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

    /// A model for passes of at most `rows` rows, `Auto` counting as f32.
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

/// The fastest of some products of one kind that fit in cache.
fn product_seconds<A: Store>(isa: Isa) -> f64 {
    let (cx, (m, n, k)) = (Exec::new(isa, 1), (112, 256, 256));
    let (a, b) = (Buf::<A>::zeros(m * k), Buf::<A>::zeros(k * n));
    let mut packed = Packed::new(k, n);
    packed.pack(&cx, &b, n, k, n);
    let mut c = Buf::<A::E>::zeros(m * n);
    let time = |_| {
        let start = std::time::Instant::now();
        matmul(&cx, &mut c, &a, k, &packed, m, false);
        start.elapsed().as_secs_f64()
    };
    (0..40).map(time).fold(f64::INFINITY, f64::min)
}
