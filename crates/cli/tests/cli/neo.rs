//! A GPT-Neo of drawn weights.

use flashlm_model::io::safetensors::{TensorRef, write_tensors};
use serde_json::json;

/// A GPT-Neo as transformers saves one, its weights drawn; how many they are.
pub fn gpt_neo((vocab, dim, blocks, heads): (usize, usize, usize, usize), context: usize) -> (Vec<u8>, Vec<u8>, usize) {
    let kinds = json!([[["global", "local"], blocks / 2]]);
    let config = json!({
        "model_type": "gpt_neo", "architectures": ["GPTNeoForCausalLM"], "vocab_size": vocab, "hidden_size": dim, "num_layers": blocks,
        "num_heads": heads, "intermediate_size": null, "max_position_embeddings": context, "window_size": 256,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "attention_types": kinds,
    });
    let mut shapes = vec![("wte.weight".to_string(), vec![vocab, dim]), ("wpe.weight".into(), vec![context, dim])];
    let norm = |name: &str| ["weight", "bias"].map(|part| (format!("{name}.{part}"), vec![dim]));
    for i in 0..blocks {
        shapes.extend(norm(&format!("h.{i}.ln_1")).into_iter().chain(norm(&format!("h.{i}.ln_2"))));
        for part in ["q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"] {
            shapes.push((format!("h.{i}.attn.attention.{part}"), vec![dim, dim]));
        }
        shapes.push((format!("h.{i}.attn.attention.out_proj.bias"), vec![dim]));
        for (part, shape) in
            [("c_fc.weight", vec![4 * dim, dim]), ("c_fc.bias", vec![4 * dim]), ("c_proj.weight", vec![dim, 4 * dim])]
        {
            shapes.push((format!("h.{i}.mlp.{part}"), shape));
        }
        shapes.push((format!("h.{i}.mlp.c_proj.bias"), vec![dim]));
    }
    shapes.extend(norm("ln_f"));
    let mut state = 1u32;
    let mut draw = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 65_536.0 * 0.2 - 0.1
    };
    let all: Vec<(String, Vec<usize>, Vec<f32>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let values =
                (0..n).map(|_| draw() + if name.contains("ln_") && name.ends_with("weight") { 1.0 } else { 0.0 });
            (format!("transformer.{name}"), shape.clone(), values.collect())
        })
        .collect();
    let tensors: Vec<TensorRef> = all.iter().map(|(name, shape, data)| TensorRef { name, shape, data }).collect();
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &tensors, &Default::default()).unwrap();
    (config.to_string().into_bytes(), bytes, all.iter().map(|(_, _, data)| data.len()).sum())
}
