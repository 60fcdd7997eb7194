//! A folder that `transformers` loads: weights in f32, tokenizer, settings of generation, a model card. Where it can say the model itself, as
//! `Lfm2ForCausalLM` or `Qwen3_5ForCausalLM` (see `graph.rs`), without any code of ours. Neither has a window: the model is ours on texts of at
//! most as many tokens as its attention sees, which `max_position_embeddings` says.
//!
//! Any other model comes with its code in Python, `hf/modeling_flashlm.py`, for `trust_remote_code=True`; the parameters have the names of the
//! layout. A vocabulary of the kind `frequency` has a tokenizer in Python too.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::graph::{Arch, Graph, Kind, Mix};
use super::source::{Exported, Refused, Source};
use crate::codes::weight::{Values, Weight};
use crate::io::safetensors::{TensorRef, write_tensors};
use crate::layer::pointer::WORDS;

/// What weights may be written as.
pub const WEIGHTS: &[&str] = &["f32"];

const END: &str = "<|endoftext|>";
const CONFIGURATION: &str = include_str!("hf/configuration_flashlm.py");
const MODELING: &str = include_str!("hf/modeling_flashlm.py");
const TOKENIZATION: &str = include_str!("hf/tokenization_flashlm.py");

/// The files of the folder.
pub fn write(source: &Source, _: &str) -> Result<Exported, Refused> {
    match Graph::of(source) {
        Ok(graph) => Ok(Exported::Folder(known(source, &graph))),
        Err(refused) => with_code(source, &refused),
    }
}

/// A model of transformers.
fn known(source: &Source, graph: &Graph) -> Vec<(&'static str, Vec<u8>)> {
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
    vec![
        ("config.json", text(&config(source, graph))),
        ("generation_config.json", text(&generation(source))),
        ("model.safetensors", weights(&tensors)),
        ("tokenizer.json", source.tokenizer.to_bpe_json().expect("a vocabulary that is expressible")),
        ("tokenizer_config.json", text(&tokenizer(graph.window))),
        ("README.md", card(graph).into_bytes()),
    ]
}

/// A model with its own code.
fn with_code(source: &Source, refused: &Refused) -> Result<Exported, Refused> {
    let c = &source.config;
    let mut reasons = source.unknown();
    reasons.extend(source.unknown_vocabulary(&["bpe", "bytes", "frequency"]));
    let Some((pairs, ids)) = source.tokenizer.to_pairs().filter(|_| reasons.is_empty()) else {
        return Err(Refused(reasons));
    };
    let mut config = serde_json::to_value(c).expect("numbers, texts and switches have a JSON form");
    let mixers: Vec<&str> = (0..c.blocks).map(|i| c.mixer_of(i)).collect();
    let eos = source.tokenizer.eos();
    let own = json!({
        "architectures": ["FlashLMForCausalLM"], "model_type": "flashlm", "mixers": mixers, "matrix_norm": c.quant.norm,
        "auto_map": {
            "AutoConfig": "configuration_flashlm.FlashLMConfig", "AutoModelForCausalLM": "modeling_flashlm.FlashLMForCausalLM",
        },
        "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos, "dtype": "float32", "tie_word_embeddings": false,
    });
    if let (Some(config), Some(own)) = (config.as_object_mut(), own.as_object()) {
        // What only training and packing ask for, or what stands under another name.
        for key in ["family", "mixer", "pattern", "eos", "quant", "zero_init", "activation_bits"] {
            config.remove(key);
        }
        config.extend(own.clone());
    }
    // Tokens are no floats, which may be rounded: words stand in the config.
    let (words, weights_of): (Vec<&Weight>, Vec<&Weight>) =
        source.weights.iter().partition(|weight| WORDS.contains(&weight.name.as_str()));
    if let [twin, opens] = &words[..] {
        let (twin, opens) = (twin.floats(), opens.floats());
        config["pointer_twins"] = (0..)
            .zip(&twin)
            .filter(|&(v, &twin)| v < twin as usize)
            .map(|(v, &twin)| json!([v, twin as usize]))
            .collect();
        config["pointer_opens"] =
            (0..).zip(&opens).filter(|(_, opens)| **opens > 0.5).map(|(v, _)| json!(v as usize)).collect();
    }
    let floats: Vec<Vec<f32>> = weights_of.iter().map(|weight| weight.floats()).collect();
    let parts = weights_of.iter().zip(&floats);
    let tensors: Vec<TensorRef> =
        parts.map(|(weight, data)| TensorRef { name: &weight.name, shape: &weight.shape, data }).collect();
    let mut files = vec![
        ("config.json", text(&config)),
        ("generation_config.json", text(&generation(source))),
        ("model.safetensors", weights(&tensors)),
        ("configuration_flashlm.py", CONFIGURATION.into()),
        ("modeling_flashlm.py", MODELING.into()),
        ("README.md", card_with_code(refused).into_bytes()),
    ];
    if ids.is_empty() {
        files.push(("tokenizer.json", pairs));
        files.push(("tokenizer_config.json", text(&tokenizer(1 << 15))));
    } else {
        let class = json!({
            "tokenizer_class": "FlashLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_flashlm.FlashLMTokenizer", null]},
            "bos_token": END, "eos_token": END, "pad_token": "<pad>", "unk_token": "<unk>", "clean_up_tokenization_spaces": false,
        });
        files.push(("gpt2.json", pairs));
        files.push(("ids.json", serde_json::to_vec(&ids).expect("numbers have a JSON form")));
        files.push(("tokenizer_config.json", text(&class)));
        files.push(("tokenization_flashlm.py", TOKENIZATION.into()));
    }
    Ok(Exported::Folder(files))
}

fn text(json: &Json) -> Vec<u8> {
    format!("{json:#}\n").into_bytes()
}

fn weights(tensors: &[TensorRef]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_tensors(&mut bytes, tensors, &metadata).expect("memory to write to");
    bytes
}

fn generation(source: &Source) -> Json {
    let eos = source.tokenizer.eos();
    json!({
        "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": true, "temperature": 0.8, "top_p": 0.95,
    })
}

fn tokenizer(longest: usize) -> Json {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "pad_token": END,
        "model_max_length": longest, "clean_up_tokenization_spaces": false,
    })
}

fn config(source: &Source, graph: &Graph) -> Json {
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

fn card_with_code(refused: &Refused) -> String {
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# A FlashLM model\n\nA small language model with ternary \
         weights (`-alpha`, 0 or `alpha`), here as float32 with its code in `modeling_flashlm.py`.\n\n```python\nfrom transformers import \
         pipeline\n\nwrite = pipeline(\"text-generation\", \".\", trust_remote_code=True)\nprint(write(\"<|endoftext|>Once upon a \
         time\", max_new_tokens=200)[0][\"generated_text\"])\n```\n\nA text begins with `<|endoftext|>`. No model of transformers computes \
         the same, because of:\n\n* {}\n",
        refused.0.join("\n* ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::testing::{Noise, shapes};
    use crate::io::safetensors::TensorFile;
    use crate::testing::tiny;
    use crate::tok::Tokenizer;

    fn files(noise: &Noise) -> BTreeMap<&'static str, Vec<u8>> {
        let source = Source::read(TensorFile::from_bytes(noise.bytes.clone(), "packed").unwrap()).unwrap();
        let Ok(Exported::Folder(files)) = write(&source, "f32") else { panic!("a folder") };
        files.into_iter().collect()
    }

    /// Parameters are those of the layout, and the settings all that the code asks for and no other.
    #[test]
    fn every_shape_of_model_comes_with_its_code() {
        let asked = CONFIGURATION.split_once("**kwargs").unwrap().0;
        for (name, config) in shapes() {
            let noise = Noise::new(config);
            let files = files(&noise);
            let config: Json = serde_json::from_slice(&files["config.json"]).unwrap();
            if config["model_type"] != "flashlm" {
                assert!(!files.keys().any(|file| file.ends_with(".py")), "{name}");
                continue;
            }
            let weights = TensorFile::from_bytes(files["model.safetensors"].clone(), "exported").unwrap();
            for spec in noise.layout.specs().iter().filter(|spec| !WORDS.contains(&spec.name.as_str())) {
                assert_eq!(weights.shape(&spec.name).unwrap(), spec.shape, "{name}: {}", spec.name);
            }
            assert_eq!(config["mixers"].as_array().unwrap().len(), noise.config.blocks);
            for key in config.as_object().unwrap().keys() {
                let common = ["architectures", "auto_map", "blocks", "dtype", "model_type", "tie_word_embeddings"];
                let known = common.contains(&&**key) || key.ends_with("_token_id");
                assert!(known || asked.contains(&format!("        {key}=")), "{name}: {key}");
            }
            assert_eq!(files["modeling_flashlm.py"], MODELING.as_bytes());
            assert!(String::from_utf8_lossy(&files["README.md"]).contains("trust_remote_code=True"));
        }
    }

    #[test]
    fn a_frequency_vocabulary_has_a_tokenizer_of_its_own() {
        let tokenizer = Tokenizer::train_frequency(["a tale of a tale"].into_iter(), 9).unwrap();
        let files = files(&Noise::with(tiny("conv"), &tokenizer, |_, _| {}));
        let ids: Vec<u16> = serde_json::from_slice(&files["ids.json"]).unwrap();
        let known = ids.iter().filter(|&&id| id > 3).count();
        assert_eq!((ids.len(), known), (50_257, tokenizer.vocab_size() - 4));
        assert!(files.contains_key("tokenization_flashlm.py") && !files.contains_key("tokenizer.json"));
    }
}
