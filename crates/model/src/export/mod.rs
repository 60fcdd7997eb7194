//! Models as files for other programs: one format is one file here and one line in `exports!`.
//!
//! A format is a module with `WEIGHTS`, the names of what weights may be written as, and `write(&Source, weights) -> Result<Exported,
//! Refused>`, a file or a folder of them. It starts from what the packed model holds, so what runs elsewhere is what `flashlm generate`
//! runs. A model that a format cannot express is refused with every reason, never approximated.

pub mod c;
pub mod gguf;
mod graph;
pub mod hf;
pub mod onnx;
#[cfg(test)]
mod refusals;
pub mod safetensors;
mod source;
mod story;
pub mod web;

pub use source::{Exported, Refused, Source};

macro_rules! exports {
    ($($module:ident: $about:literal;)*) => {
        /// Name, description and kinds of weights of every format, the default first.
        pub const FORMATS: &[(&str, &str, &[&str])] = &[$((stringify!($module), $about, $module::WEIGHTS)),*];

        /// What that format makes of a model; `None` where there is no such format.
        ///
        /// # Panics
        /// If the format has no such weights.
        pub fn write(format: &str, source: &Source, weights: &str) -> Option<Result<Exported, Refused>> {
            match format {
                $(stringify!($module) => {
                    assert!($module::WEIGHTS.contains(&weights), "{weights}");
                    Some($module::write(source, weights))
                })*
                _ => None,
            }
        }
    };
}

exports! {
    c: "one C11 file: engine, tokenizer, sampler and weights, without a library";
    web: "one HTML file that writes in a browser, without a network";
    safetensors: "weights as F32 tensors, for PyTorch and NumPy";
    gguf: "one file for llama.cpp and what is built on it";
    hf: "a folder for transformers";
    onnx: "a folder for ONNX Runtime: graph, tokenizer and an example";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;
    use crate::config::{ActivationKind, QuantConfig, ScaleKind, StatKind};
    use crate::infer::testing::Noise;
    use crate::io::safetensors::TensorFile;

    /// A family that a format does not know is refused by it, and never written as another.
    #[test]
    fn models_of_another_family_are_refused_by_all_but_the_plain_tensors() {
        let quant = QuantConfig { scale: ScaleKind::Unit, size: 16, stat: StatKind::Mean, norm: false };
        let config = ModelConfig {
            family: "v3".into(),
            dim: 32,
            ffn_hidden: 20,
            activation: ActivationKind::Relu2,
            quant,
            ..crate::testing::tiny("conv")
        };
        let source = Source::read(TensorFile::from_bytes(Noise::new(config).bytes.clone(), "v3").unwrap()).unwrap();
        for (format, _, weights) in FORMATS {
            for weights in *weights {
                match write(format, &source, weights).unwrap() {
                    Ok(Exported::File(_)) => assert_eq!(*format, "safetensors"),
                    Ok(_) => panic!("{format}"),
                    Err(error) => assert!(error.to_string().contains("model.family = v3 (expected flash)"), "{error}"),
                }
            }
        }
    }
}
