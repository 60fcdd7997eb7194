//! A folder for ONNX Runtime and other programs that read ONNX: `model.onnx`, a graph of core operators whose inputs are token ids and states
//! and whose outputs are logits and next states (`onnx/flash.rs`), `tokenizer.json`, and an example in Python.
//!
//! Weights: `f32` is the float model, `int8` the packed runtime's arithmetic to the bit, `int2` the float model with codes of two bits, by
//! operators of ONNX Runtime's own (`MatMulNBits`; `LinearAttention` for the delta rule). The graph's texts (`metadata_props`) say `eos`, and in `ids` which of our
//! ids each token of `tokenizer.json` has, where that is another.

mod flash;
mod nodes;
#[cfg(test)]
mod tests;

use self::flash::{Form, block_of};
use super::source::{Exported, Refused, Source};
use crate::codes::weight::{Values, Weight};

/// What weights may be written as.
pub const WEIGHTS: &[&str] = &["f32", "int8", "int2"];

/// Bytes of the largest message that protobuf reads.
const LARGEST: usize = i32::MAX as usize;

/// The files of the folder.
pub fn write(source: &Source, weights: &str) -> Result<Exported, Refused> {
    let mut reasons = source.unknown();
    reasons.extend(source.unknown_vocabulary(&["bpe", "bytes", "frequency"]));
    let form = match weights {
        "int8" => Form::Int8,
        "int2" => Form::Int2,
        _ => Form::F32,
    };
    if form == Form::Int2 {
        reasons.extend(source.weights.iter().filter_map(no_blocks));
    }
    let each = if form == Form::F32 { 4 } else { 1 };
    let size: usize = source.weights.iter().map(|weight| each * weight.shape.iter().product::<usize>()).sum();
    if size > LARGEST - (1 << 24) {
        reasons.push(format!("weights of {size} bytes (expected less than 2 GB: --weights int8, or a smaller model)"));
    }
    match source.tokenizer.to_pairs() {
        Some((tokenizer, ids)) if reasons.is_empty() => {
            let ids = serde_json::to_string(&ids).expect("numbers have a JSON form");
            let texts = [("eos", source.tokenizer.eos().to_string()), ("ids", ids)];
            let graph = flash::file(source, form, &texts);
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

/// Why a matrix is not one of codes of two bits with a scale for each block.
fn no_blocks(weight: &Weight) -> Option<String> {
    match &weight.values {
        Values::Ternary(codes) if block_of(codes.inputs, codes.segment).is_none() => Some(format!(
            "{}: {} inputs, {} of them to a scale (--weights int2 wants a multiple of 16; int8 would do)",
            weight.name, codes.inputs, codes.segment
        )),
        Values::Bytes(_) if weight.name.contains(".mixer.") || weight.name.contains(".ffn.") => {
            Some(format!("{}: bytes (--weights int2 is of ternary codes; int8 would do)", weight.name))
        }
        _ => None,
    }
}
