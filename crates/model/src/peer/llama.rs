//! Llama: `config.json` and safetensors of Hugging Face.
//!
//! ```text
//! h = E[tokens];  per block: h += Wo attention(rope(Wq x), rope(Wk x), Wv x), x = rmsnorm(h)
//!                            h += Wd (silu(Wg x) * Wu x),                      x = rmsnorm(h)
//! logits = rmsnorm(h) Wh^T                  grouped queries: head i reads keys and values i * kv / heads
//! ```
//!
//! Source: transformers, `modeling_llama.py`.

use flashlm_kernels::ops::{Act, exact_gate, exact_rmsnorm};
use flashlm_kernels::{Exec, Token};
use serde::Deserialize;
use std::path::Path;

use super::config::{at_most, other, vocabulary};
use super::error::PeerError;
use super::family::{Family, Sizes};
use super::layer::{Cache, Heads, Linear, add, rotate, tensor};
use crate::io::safetensors::TensorFile;

/// What of `config.json` matters.
#[derive(Deserialize)]
pub(super) struct Config {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    pub(super) max_position_embeddings: usize,
    pub(super) rms_norm_eps: f64,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    pub(super) hidden_act: Option<String>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    pub(super) rope_theta: Option<f32>,
    pub(super) rope_scaling: Option<Rope>,
    pub(super) rope_parameters: Option<Rope>,
}

#[derive(Deserialize)]
pub(super) struct Rope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f64>,
}

impl Config {
    /// The base of rotary positions, sizes and heads, all within bounds.
    fn check(&self, path: &Path) -> Result<(f32, Sizes, Heads), PeerError> {
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            at_most(path, key, value)?;
        }
        vocabulary(path, self.vocab_size)?;
        if let Some(act) = self.hidden_act.as_ref().filter(|act| *act != "silu") {
            return Err(other(path, "hidden_act", "silu", act));
        }
        for rope in [&self.rope_scaling, &self.rope_parameters].into_iter().flatten() {
            if let Some(kind) = rope.rope_type.as_ref().or(rope.r#type.as_ref()).filter(|kind| *kind != "default") {
                return Err(other(path, "rope_type", "default", kind));
            }
            if let (None, None, Some(factor)) = (&rope.rope_type, &rope.r#type, rope.factor) {
                let found = format!("none, and a factor of {factor}");
                return Err(other(path, "rope_type", "default", &found));
            }
        }
        let base = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(1e4);
        if !(base.is_finite() && base >= 1.0) {
            return Err(other(path, "rope_theta", "a number of at least 1", &base.to_string()));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(other(path, "rms_norm_eps", "a number of at least 0", &self.rms_norm_eps.to_string()));
        }
        let heads = self.num_attention_heads;
        let (kv, d) = (self.num_key_value_heads.unwrap_or(heads), self.head_dim.unwrap_or(self.hidden_size / heads));
        if kv == 0 || !heads.is_multiple_of(kv) {
            return Err(other(path, "num_key_value_heads", "a divisor of num_attention_heads", &kv.to_string()));
        }
        if d == 0 || d % 2 == 1 || d > self.hidden_size {
            return Err(other(path, "head_dim", "an even number up to hidden_size", &d.to_string()));
        }
        let sizes = Sizes {
            vocab: self.vocab_size,
            dim: self.hidden_size,
            blocks: self.num_hidden_layers,
            kv,
            context: self.max_position_embeddings,
        };
        Ok((base, sizes, Heads { heads, kv, d }))
    }
}

struct Block {
    norms: [Vec<f32>; 2],
    qkv: [Linear; 3],
    out: Linear,
    glu: [Linear; 3],
}

/// The weights of one.
pub(super) struct Llama {
    sizes: Sizes,
    heads: Heads,
    base: f32,
    eps: f64,
    embedding: Vec<f32>,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    head: Linear,
}

impl Llama {
    /// Reads the tensors, named as in Hugging Face's files.
    pub(super) fn read(cx: &Exec, config: &Config, path: &Path, file: &TensorFile) -> Result<Llama, PeerError> {
        let (base, sizes, heads) = config.check(path)?;
        let (dim, hidden) = (sizes.dim, config.intermediate_size);
        let (all, kv) = (heads.heads * heads.d, heads.kv * heads.d);
        let table = (sizes.vocab, dim);
        let embedding = tensor(file, "model.embed_tokens.weight", &[sizes.vocab, dim])?;
        let block = |i: usize| {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let norm = |part| tensor(file, &name(part), &[dim]);
            let read = |part, sizes, bias| Linear::read(cx, file, &name(part), sizes, bias);
            let bias = config.attention_bias;
            Ok(Block {
                norms: [norm("input_layernorm.weight")?, norm("post_attention_layernorm.weight")?],
                qkv: [
                    read("self_attn.q_proj", (all, dim), bias)?,
                    read("self_attn.k_proj", (kv, dim), bias)?,
                    read("self_attn.v_proj", (kv, dim), bias)?,
                ],
                out: read("self_attn.o_proj", (dim, all), bias)?,
                glu: [
                    read("mlp.gate_proj", (hidden, dim), config.mlp_bias)?,
                    read("mlp.up_proj", (hidden, dim), config.mlp_bias)?,
                    read("mlp.down_proj", (dim, hidden), config.mlp_bias)?,
                ],
            })
        };
        let blocks = (0..sizes.blocks).map(block).collect::<Result<_, PeerError>>()?;
        let head = match config.tie_word_embeddings {
            true => Linear::new(cx, &embedding, None, table),
            false => Linear::read(cx, file, "lm_head", table, false)?,
        };
        let norm = tensor(file, "model.norm.weight", &[dim])?;
        Ok(Llama { sizes, heads, base, eps: config.rms_norm_eps, embedding, blocks, norm, head })
    }
}

impl Family for Llama {
    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn forward(&self, cx: &Exec, tokens: &[Token], first: usize, cache: &mut Cache) -> Vec<f32> {
        let (dim, Heads { heads, kv, d }) = (self.sizes.dim, self.heads);
        let row = |&token: &Token| &self.embedding[usize::from(token) * dim..][..dim];
        let mut h: Vec<f32> = tokens.iter().flat_map(row).copied().collect();
        let mut x = vec![0.0; h.len()];
        let scale = 1.0 / (d as f32).sqrt();
        for (i, block) in self.blocks.iter().enumerate() {
            exact_rmsnorm(cx, &mut x, &h, &block.norms[0], self.eps);
            let [mut q, mut k, v] = [0, 1, 2].map(|part| block.qkv[part].of(cx, &x));
            rotate(&mut q, d, first, heads, self.base);
            rotate(&mut k, d, first, kv, self.base);
            q.iter_mut().for_each(|q| *q *= scale);
            let o = cache.attend(cx, i, (&q, &k, &v), self.heads, usize::MAX >> 2);
            add(&mut h, &block.out.of(cx, &o));
            exact_rmsnorm(cx, &mut x, &h, &block.norms[1], self.eps);
            let [gate, up] = [0, 1].map(|part| block.glu[part].of(cx, &x));
            let mut a = vec![0.0; up.len()];
            exact_gate(cx, &mut a, &gate, &up, Act::Silu);
            add(&mut h, &block.glu[2].of(cx, &a));
        }
        exact_rmsnorm(cx, &mut x, &h, &self.norm, self.eps);
        x
    }
}
