//! One GGUF file: the model as `lfm2` or `qwen35` (see `graph.rs`), with its tokenizer, for llama.cpp and what is built on it.
//!
//! Weights: `q2_0` and `q4_0` are ternary matrices by our own codes, with the embedding as `q8_0`; `f16` and `f32` are all matrices in
//! floats. Norms, taps and gates are always f32. Attention sees `context_length` tokens: its window where the model is `qwen35`, which
//! has none.

mod blocks;
mod file;
#[cfg(test)]
mod tests;

use serde_json::Value as Json;

use self::blocks::{Type, f16};
use self::file::{Tensor, Value};
use super::graph::{Arch, Graph, Kind, Mix, Named};
use super::source::{Exported, Refused, Source};
use crate::codes::weight::Values;

/// What weights may be written as.
pub const WEIGHTS: &[&str] = &["q2_0", "q4_0", "f16", "f32"];

/// The bytes of the file.
pub fn write(source: &Source, weights: &str) -> Result<Exported, Refused> {
    let kind = match weights {
        "q2_0" => Type::Q2_0,
        "q4_0" => Type::Q4_0,
        "f16" => Type::F16,
        _ => Type::F32,
    };
    let graph = Graph::of(source)?;
    let mut reasons = Vec::new();
    let tensors = graph.tensors.iter().map(|named| tensor(named, kind, &mut reasons)).collect::<Vec<_>>();
    if !reasons.is_empty() {
        reasons.dedup();
        return Err(Refused(reasons));
    }
    let mut keys = keys(source, &graph);
    // `general.file_type` of llama.h: what most of the matrices are.
    let most = match kind {
        Type::F32 => 0,
        Type::F16 => 1,
        Type::Q4_0 => 2,
        _ => 41,
    };
    if kind != Type::Q2_0 {
        keys.push(("general.file_type".into(), Value::U32(most)));
    }
    keys.extend(vocabulary(source));
    Ok(Exported::File(file::write(&keys, &tensors)))
}

fn tensor(named: &Named, kind: Type, reasons: &mut Vec<String>) -> Tensor {
    let floats = |kind: Type, values: Vec<f32>| match kind {
        Type::F16 => values.iter().flat_map(|&x| f16(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    let coded = matches!(kind, Type::Q2_0 | Type::Q4_0);
    let (kind, data) = match &named.values {
        Values::Floats(values) => {
            let values = values.iter().map(|&x| if named.kind == Kind::Decay { -x.exp() } else { x });
            (Type::F32, floats(Type::F32, values.collect()))
        }
        Values::Ternary(codes) if coded && kind.fits(codes) => (kind, kind.blocks(codes)),
        Values::Bytes(codes) if coded && named.kind == Kind::Embedding => match Type::Q8_0.fits(codes) {
            true => (Type::Q8_0, Type::Q8_0.blocks(codes)),
            false => (Type::F16, floats(Type::F16, codes.floats())),
        },
        Values::Ternary(codes) | Values::Bytes(codes) if coded => {
            let name = if kind == Type::Q2_0 { "q2_0" } else { "q4_0" };
            reasons.push(match &named.values {
                Values::Bytes(_) => {
                    format!("model.quant.scale = none (--weights {name} is of ternary codes; f16 would do)")
                }
                _ => format!(
                    "{}: {} inputs, {} of them to a scale (--weights {name} has a scale for each {}; f16 would do)",
                    named.gguf,
                    codes.inputs,
                    codes.segment.min(codes.inputs),
                    kind.block()
                ),
            });
            (kind, Vec::new())
        }
        Values::Ternary(codes) | Values::Bytes(codes) => (kind, floats(kind, codes.floats())),
    };
    Tensor { name: named.gguf.clone(), shape: named.shape.clone(), kind, data }
}

fn keys(source: &Source, graph: &Graph) -> Vec<(String, Value)> {
    let c = &source.config;
    let arch = if graph.arch == Arch::Lfm2 { "lfm2" } else { "qwen35" };
    let u32 = |n: usize| Value::U32(n as u32);
    let mut keys = vec![
        ("general.architecture".to_owned(), Value::Text(arch.into())),
        ("general.name".into(), Value::Text("FlashLM".into())),
        ("general.type".into(), Value::Text("model".into())),
    ];
    let mut add = |key: &str, value| keys.push((format!("{arch}.{key}"), value));
    let (width, attention) = (c.dim / graph.heads, |mix: &Mix| *mix == Mix::Attention);
    // A window of the last tokens lasts for any text; without one the context ends with it.
    add("context_length", u32(if graph.arch == Arch::Lfm2 { 1 << 15 } else { graph.window }));
    add("block_count", u32(graph.blocks.len()));
    add("embedding_length", u32(c.dim));
    add("feed_forward_length", u32(c.ffn_hidden));
    add("vocab_size", u32(c.vocab_size));
    add("attention.head_count", u32(graph.heads));
    add("attention.layer_norm_rms_epsilon", Value::F32(c.norm_eps as f32));
    add("rope.freq_base", Value::F32(c.mixers.attention.rope_base as f32));
    match graph.arch {
        Arch::Lfm2 => {
            let heads = graph.blocks.iter().map(|mix| if attention(mix) { graph.heads as u32 } else { 0 });
            add("attention.head_count_kv", Value::U32s(heads.collect()));
            add("shortconv.l_cache", u32(graph.taps));
            if graph.window < 1 << 15 {
                add("attention.sliding_window", u32(graph.window));
            }
        }
        Arch::Qwen35 => {
            let (heads, wide) = graph.delta;
            let third = width.div_ceil(2).div_ceil(3) as i32;
            add("attention.head_count_kv", u32(graph.heads));
            add("attention.key_length", u32(width));
            add("attention.value_length", u32(width));
            add("attention.recurrent_layers", Value::Bools(graph.blocks.iter().map(|mix| !attention(mix)).collect()));
            add("rope.dimension_count", u32(width));
            // Of text alone all thirds have one position: plain rotation of halves.
            add("rope.dimension_sections", Value::I32s(vec![third, third, third, 0]));
            add("ssm.conv_kernel", u32(graph.taps));
            add("ssm.inner_size", u32(heads * wide));
            add("ssm.state_size", u32(wide));
            add("ssm.time_step_rank", u32(heads));
            add("ssm.group_count", u32(heads));
        }
    }
    keys
}

/// Byte pairs as GPT-2's; a text starts with EOS, as ours do.
fn vocabulary(source: &Source) -> Vec<(String, Value)> {
    let json = source.tokenizer.to_bpe_json().expect("a vocabulary that is expressible");
    let json: Json = serde_json::from_slice(&json).expect("JSON that was just written");
    let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
    let eos = usize::from(source.tokenizer.eos());
    let mut tokens = vec![String::new(); source.tokenizer.vocab_size()];
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        tokens[id.as_u64().unwrap_or_default() as usize] = token.clone();
    }
    let mut types = vec![1; tokens.len()];
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        types[added["id"].as_u64().unwrap_or_default() as usize] = 3;
    }
    let merges = json["model"]["merges"].as_array().into_iter().flatten();
    let merges = merges.map(|pair| format!("{} {}", text(&pair[0]), text(&pair[1]))).collect();
    let keys = [
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text("gpt-2".into())),
        ("tokens", Value::Texts(tokens)),
        ("token_type", Value::I32s(types)),
        ("merges", Value::Texts(merges)),
        ("bos_token_id", Value::U32(eos as u32)),
        ("eos_token_id", Value::U32(eos as u32)),
        ("add_bos_token", Value::Bool(true)),
        ("add_eos_token", Value::Bool(false)),
    ];
    keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}
