//! Models that formats cannot express, each refused with every reason: another family, mixers that are not known, vocabularies of other
//! programs, and all of them together; `gguf/tests.rs` has the settings that only llama.cpp and transformers lack.

use super::{FORMATS, Refused, Source, write};
use crate::config::{ModelConfig, QuantConfig, ScaleKind};
use crate::infer::testing::Noise;
use crate::io::safetensors::TensorFile;
use crate::testing::tiny;
use crate::tok::Tokenizer;

fn source(family: &str, pattern: &[&str], foreign: bool) -> Source {
    let quant = QuantConfig { scale: ScaleKind::Tensor, ..tiny("attention").quant };
    let noise = Noise::new(ModelConfig { quant, norm_eps: 1e-6, ..tiny("attention") });
    let source = Source::read(TensorFile::from_bytes(noise.bytes, "packed").unwrap()).unwrap();
    let pattern = pattern.iter().map(ToString::to_string).collect();
    let config = ModelConfig { family: family.into(), pattern, blocks: 4, ..source.config };
    Source { config, tokenizer: if foreign { Tokenizer::gpt2() } else { Tokenizer::bytes() }, ..source }
}

#[test]
fn every_format_says_every_reason() {
    let patterns: [(&[&str], &[&str]); 4] = [
        (&["attention"], &[]),
        (&["attention", "novel"], &["mixer = novel"]),
        (&["retention"], &["mixer = retention"]),
        (&["novel", "attention", "retention"], &["mixer = novel", "mixer = retention"]),
    ];
    let mut refused = 0;
    for family in ["flash", "v3", "other"] {
        for (pattern, mixers) in patterns {
            for foreign in [false, true] {
                let mut says: Vec<String> = mixers.iter().map(ToString::to_string).collect();
                if family != "flash" {
                    says.push(format!("model.family = {family} (expected flash)"));
                }
                if foreign {
                    says.push("tokenizer.kind = gpt2 (expected bpe".into());
                }
                if says.is_empty() {
                    continue;
                }
                refused += 1;
                // Floats under the names of parameters say any model.
                for (format, _, weights) in FORMATS.iter().filter(|(format, ..)| *format != "safetensors") {
                    for weights in *weights {
                        let told = write(format, &source(family, pattern, foreign), weights).unwrap();
                        let Err(Refused(reasons)) = told else { panic!("{format} {weights}: {says:?}") };
                        assert_eq!(reasons.len(), says.len(), "{format} {weights}: {reasons:?}");
                        for say in &says {
                            assert!(reasons.iter().any(|reason| reason.contains(say)), "{format}: {say}: {reasons:?}");
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 20, "{refused}");
}
