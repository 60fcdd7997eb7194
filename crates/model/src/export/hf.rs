//! A folder that `transformers` loads without any code of ours: `Lfm2ForCausalLM` or `Qwen3_5ForCausalLM` (see `graph.rs`), weights in f32,
//! with the tokenizer, settings of generation and a model card. Neither has a window: the model is ours on texts of at most as many tokens as
//! its attention sees, which `max_position_embeddings` says.

use std::collections::BTreeMap;

use serde_json::json;

use super::graph::{Arch, Graph, Kind, Mix};
use super::source::{Exported, Refused, Source};
use crate::codes::weight::Values;
use crate::io::safetensors::{TensorRef, write_tensors};

/// What weights may be written as.
pub const WEIGHTS: &[&str] = &["f32"];

/// The files of the folder.
pub fn write(source: &Source, _: &str) -> Result<Exported, Refused> {
    let graph = Graph::of(source)?;
    let floats = graph.tensors.iter().map(|named| match (&named.values, named.kind, graph.arch) {
        // Qwen3.5 multiplies by 1 + weight.
        (Values::Floats(values), Kind::Norm, Arch::Qwen35) => values.iter().map(|x| x - 1.0).collect(),
        (Values::Floats(values), ..) => values.clone(),
        (Values::Ternary(codes) | Values::Bytes(codes), ..) => codes.floats(),
    });
    let floats: Vec<Vec<f32>> = floats.collect();
    let shapes = graph.tensors.iter().map(|named| match named.kind {
        Kind::Taps => vec![named.shape[0], 1, named.shape[1]],
        _ => named.shape.clone(),
    });
    let shapes: Vec<Vec<usize>> = shapes.collect();
    let parts = graph.tensors.iter().zip(&shapes).zip(&floats);
    let tensors: Vec<TensorRef> =
        parts.map(|((named, shape), data)| TensorRef { name: &named.hf, shape, data }).collect();
    let mut weights = Vec::new();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_tensors(&mut weights, &tensors, &metadata).expect("memory to write to");
    let text = |json: serde_json::Value| format!("{json:#}\n").into_bytes();
    let eos = source.tokenizer.eos();
    let end = "<|endoftext|>";
    let generation = json!({
        "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": true, "temperature": 0.8, "top_p": 0.95,
    });
    let tokenizer = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "pad_token": end,
        "model_max_length": graph.window, "clean_up_tokenization_spaces": false,
    });
    Ok(Exported::Folder(vec![
        ("config.json", text(config(source, &graph))),
        ("generation_config.json", text(generation)),
        ("model.safetensors", weights),
        ("tokenizer.json", source.tokenizer.to_bpe_json().expect("a vocabulary that is expressible")),
        ("tokenizer_config.json", text(tokenizer)),
        ("README.md", card(&graph).into_bytes()),
    ]))
}

fn config(source: &Source, graph: &Graph) -> serde_json::Value {
    let (c, eos) = (&source.config, source.tokenizer.eos());
    let (heads, width) = (graph.heads, c.dim / graph.heads);
    let recurrent = if graph.arch == Arch::Lfm2 { "conv" } else { "linear_attention" };
    let kinds = graph.blocks.iter().map(|mix| if *mix == Mix::Attention { "full_attention" } else { recurrent });
    let mut config = json!({
        "vocab_size": c.vocab_size, "hidden_size": c.dim, "intermediate_size": c.ffn_hidden,
        "num_hidden_layers": graph.blocks.len(), "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": width,
        "max_position_embeddings": graph.window, "layer_types": kinds.collect::<Vec<_>>(), "tie_word_embeddings": true,
        "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos, "dtype": "float32",
    });
    let rope = json!({"rope_type": "default", "rope_theta": c.mixers.attention.rope_base});
    let own = match graph.arch {
        Arch::Lfm2 => json!({
            "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "norm_eps": c.norm_eps, "conv_bias": false,
            "conv_L_cache": graph.taps, "block_auto_adjust_ff_dim": false, "rope_parameters": rope,
        }),
        Arch::Qwen35 => {
            let ((heads, wide), third) = (graph.delta, width.div_ceil(2).div_ceil(3));
            let sections = json!([third, third, (width / 2).saturating_sub(2 * third)]);
            let rope = json!({
                "rope_type": "default", "rope_theta": c.mixers.attention.rope_base, "partial_rotary_factor": 1.0,
                "mrope_section": sections, "mrope_interleaved": true,
            });
            json!({
                "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "rms_norm_eps": c.norm_eps,
                "hidden_act": "silu", "linear_conv_kernel_dim": graph.taps, "linear_key_head_dim": wide,
                "linear_value_head_dim": wide, "linear_num_key_heads": heads, "linear_num_value_heads": heads,
                "partial_rotary_factor": 1.0, "rope_parameters": rope,
            })
        }
    };
    if let (Some(config), Some(own)) = (config.as_object_mut(), own.as_object()) {
        config.extend(own.clone());
    }
    config
}

fn card(graph: &Graph) -> String {
    let class = if graph.arch == Arch::Lfm2 { "Lfm2ForCausalLM" } else { "Qwen3_5ForCausalLM" };
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# A FlashLM model\n\nA small language model with ternary \
         weights (`-alpha`, 0 or `alpha`), here as float32 in a `{class}`, which computes the same.\n\n```python\nfrom transformers \
         import pipeline\n\nwrite = pipeline(\"text-generation\", \".\")\nprint(write(\"<|endoftext|>Once upon a time\", \
         max_new_tokens=200)[0][\"generated_text\"])\n```\n\nA text begins with `<|endoftext|>` and is at most {} tokens long.\n",
        graph.window
    )
}
