//! A folder for ONNX Runtime and other programs that read ONNX: `model.onnx`, a graph of core operators whose inputs are token ids and states
//! and whose outputs are logits and next states (`onnx/flash.rs`), `tokenizer.json`, and an example in Python.
//!
//! Weights: `f32` is the float model, `int8` the packed runtime's arithmetic. The graph's texts (`metadata_props`) say `eos`, and in `ids` which of our
//! ids each token of `tokenizer.json` has, where that is another.

mod flash;
mod nodes;
#[cfg(test)]
mod tests;

use super::source::{Exported, Refused, Source};

/// What weights may be written as.
pub const WEIGHTS: &[&str] = &["f32", "int8"];

/// Bytes of the largest message that protobuf reads.
const LARGEST: usize = i32::MAX as usize;

/// The files of the folder.
pub fn write(source: &Source, weights: &str) -> Result<Exported, Refused> {
    let mut reasons = Vec::new();
    reasons.extend(source.unknown_family().or_else(|| source.unknown_mixer()));
    let each = if weights == "f32" { 4 } else { 1 };
    let size: usize = source.weights.iter().map(|weight| each * weight.shape.iter().product::<usize>()).sum();
    if size > LARGEST - (1 << 24) {
        reasons.push(format!("weights of {size} bytes (expected less than 2 GB: --weights int8, or a smaller model)"));
    }
    let pairs = source.tokenizer.to_pairs();
    if pairs.is_none() {
        reasons.push(format!("tokenizer.kind = {} (expected bpe, bytes or frequency)", source.tokenizer.kind()));
    }
    match pairs {
        Some((tokenizer, ids)) if reasons.is_empty() => {
            let ids = serde_json::to_string(&ids).expect("numbers have a JSON form");
            let texts = [("eos", source.tokenizer.eos().to_string()), ("ids", ids)];
            let graph = flash::file(source, weights == "int8", &texts);
            if graph.len() > LARGEST {
                return Err(Refused(vec![format!("a graph of {} bytes (expected less than 2 GB)", graph.len())]));
            }
            Ok(Exported::Folder(vec![
                ("model.onnx", graph),
                ("tokenizer.json", tokenizer),
                ("generate.py", include_bytes!("onnx/generate.py").to_vec()),
            ]))
        }
        _ => Err(Refused(reasons)),
    }
}
