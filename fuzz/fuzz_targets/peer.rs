//! A model of another program, from any bytes: an error, or logits of a few tokens. A first byte of 0: the rest is a `config.json`
//! beside weights; any other: the rest is a `.bin` of llama2.c, its vocabulary beside it.
#![no_main]

use std::sync::Arc;

use flashlm_fuzz::safetensors::exec;
use flashlm_fuzz::{file, folder, seed};
use flashlm_model::io::safetensors::{TensorRef, write_tensors};
use flashlm_train::load::load_peer;
use libfuzzer_sys::fuzz_target;

/// Version 0: `dim`, `hidden`, `layers`, `heads`, `kv_heads`, `vocab`, `seq`, then floats enough for them.
fn llama2c() -> Vec<u8> {
    let sizes = [4, 8, 1, 2, 1, 6, 8].into_iter().flat_map(i32::to_le_bytes);
    let (d, hidden, vocab, kv, seq, half) = (4, 8, 6, 2, 8, 1);
    let floats = vocab * d + d + 2 * d * d + 2 * d * kv + d + 3 * d * hidden + d + 2 * seq * half;
    sizes.chain((0..floats).flat_map(|i| (i as f32 * 0.01).to_le_bytes())).collect()
}

/// `max_token_length`, then score, length and bytes of each of six tokens.
fn vocabulary() -> Vec<u8> {
    let token = |text: &str| [&(-1f32).to_le_bytes()[..], &(text.len() as i32).to_le_bytes(), text.as_bytes()].concat();
    let tokens = ["<unk>", "<s>", "</s>", " ", "a", "b"].map(token).concat();
    [&5i32.to_le_bytes()[..], &tokens].concat()
}

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 6, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": true}"#;

/// Weights of that config.
fn weights() -> Vec<u8> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let shapes = [
        ("model.embed_tokens.weight".to_owned(), vec![6, 4]),
        ("model.norm.weight".to_owned(), vec![4]),
        (layer("input_layernorm"), vec![4]),
        (layer("post_attention_layernorm"), vec![4]),
        (layer("self_attn.q_proj"), vec![4, 4]),
        (layer("self_attn.k_proj"), vec![2, 4]),
        (layer("self_attn.v_proj"), vec![2, 4]),
        (layer("self_attn.o_proj"), vec![4, 4]),
        (layer("mlp.gate_proj"), vec![8, 4]),
        (layer("mlp.up_proj"), vec![8, 4]),
        (layer("mlp.down_proj"), vec![4, 8]),
    ];
    let data: Vec<Vec<f32>> = shapes.iter().map(|(_, shape)| vec![0.5; shape.iter().product()]).collect();
    let tensors: Vec<TensorRef> =
        shapes.iter().zip(&data).map(|((name, shape), data)| TensorRef { name, shape, data }).collect();
    let mut file = Vec::new();
    write_tensors(&mut file, &tensors, &Default::default()).expect("memory to write to");
    file
}

fuzz_target!(
    init: {
        file("peer/model.safetensors", weights());
        file("peer/tokenizer.bin", vocabulary());
        file("tokenizer.bin", vocabulary());
        seed([[&[0], CONFIG.as_bytes()].concat(), [&[1], &llama2c()[..]].concat()]);
    },
    |input: &[u8]| {
        let Some((&which, rest)) = input.split_first() else { return };
        let path = if which == 0 {
            file("peer/config.json", rest);
            folder().join("peer")
        } else {
            file("model.bin", rest)
        };
        let cx = exec();
        if let Ok(Some(peer)) = load_peer(&cx, &path) {
            let mut sequence = Arc::new(peer).sequence();
            sequence.feed(&cx, &[1, 0, 1], |logits| assert!(!logits.is_empty()));
        }
    }
);
