//! GPT-Neo, the family of the TinyStories models: `config.json` and `pytorch_model.bin` or safetensors of Hugging Face.
//!
//! ```text
//! h = E[tokens] + P[positions];  per block: h += Wo attention(Wq x, Wk x, Wv x) + bo, x = layernorm(h)
//!                                           h += W2 gelu(W1 x + b1) + b2,             x = layernorm(h)
//! logits = layernorm(h) E^T      gelu(x) = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
//! ```
//!
//! Scores are not scaled by the width of a head. Blocks of kind `local` see `window_size` tokens, their own included. Source:
//! transformers, `modeling_gpt_neo.py`.

use flashlm_kernels::{Exec, Token};
use serde::Deserialize;
use std::path::Path;

use super::config::{at_most, other, vocabulary};
use super::error::PeerError;
use super::family::{Family, Sizes};
use super::layer::{Cache, Heads, Linear, add, tensor};
use crate::io::safetensors::TensorFile;

/// What of `config.json` matters.
#[derive(Deserialize)]
pub(super) struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    intermediate_size: Option<usize>,
    max_position_embeddings: usize,
    window_size: usize,
    layer_norm_epsilon: f32,
    activation_function: String,
    /// Kinds of block, and how often they follow each other.
    attention_types: Vec<(Vec<String>, usize)>,
    tie_word_embeddings: Option<bool>,
}

impl Config {
    /// Whether the head is the embedding.
    pub(super) fn is_tied(&self) -> bool {
        self.tie_word_embeddings != Some(false)
    }
}

struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Norm {
    fn of(&self, y: &mut [f32], x: &[f32], eps: f32) {
        let d = self.scale.len();
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let mean = x.iter().sum::<f32>() / d as f32;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / d as f32;
            let r = 1.0 / (variance + eps).sqrt();
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(&self.scale).zip(&self.shift) {
                *y = (x - mean) * r * scale + shift;
            }
        }
    }
}

struct Block {
    window: usize,
    norms: [Norm; 2],
    qkv: [Linear; 3],
    out: Linear,
    up: Linear,
    down: Linear,
}

/// The weights of one.
pub(super) struct GptNeo {
    sizes: Sizes,
    heads: Heads,
    eps: f32,
    embedding: Vec<f32>,
    positions: Vec<f32>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
}

impl GptNeo {
    /// Reads the tensors, named as in Hugging Face's files.
    pub(super) fn read(cx: &Exec, c: &Config, path: &Path, file: &TensorFile) -> Result<GptNeo, PeerError> {
        let hidden = c.intermediate_size.unwrap_or(c.hidden_size.saturating_mul(4));
        for (key, value) in [
            ("vocab_size", c.vocab_size),
            ("hidden_size", c.hidden_size),
            ("num_layers", c.num_layers),
            ("num_heads", c.num_heads),
            ("intermediate_size", hidden),
            ("max_position_embeddings", c.max_position_embeddings),
            ("window_size", c.window_size),
        ] {
            at_most(path, key, value)?;
        }
        vocabulary(path, c.vocab_size)?;
        let eps = c.layer_norm_epsilon;
        if !(eps.is_finite() && eps >= 0.0) {
            return Err(other(path, "layer_norm_epsilon", "a number of at least 0", &eps.to_string()));
        }
        if c.activation_function != "gelu_new" {
            return Err(other(path, "activation_function", "gelu_new", &c.activation_function));
        }
        if !c.hidden_size.is_multiple_of(c.num_heads) {
            return Err(other(path, "num_heads", "a divisor of hidden_size", &c.num_heads.to_string()));
        }
        let mut windows = Vec::new();
        let kinds = c
            .attention_types
            .iter()
            .flat_map(|(kinds, times)| std::iter::repeat_n(kinds, (*times).min(c.num_layers)).flatten());
        for kind in kinds.take(c.num_layers + 1) {
            windows.push(match kind.as_str() {
                "global" => usize::MAX >> 2,
                "local" => c.window_size,
                kind => return Err(other(path, "attention_types", "global and local", kind)),
            });
        }
        if windows.len() != c.num_layers {
            return Err(other(path, "attention_types", "a kind for each of num_layers", &windows.len().to_string()));
        }
        let (dim, vocab) = (c.hidden_size, c.vocab_size);
        let heads = Heads { heads: c.num_heads, kv: c.num_heads, d: dim / c.num_heads };
        let sizes = Sizes { vocab, dim, blocks: c.num_layers, kv: heads.kv, context: c.max_position_embeddings };
        let norm = |name: &str| {
            let part = |part| tensor(file, &format!("transformer.{name}.{part}"), &[dim]);
            Ok::<_, PeerError>(Norm { scale: part("weight")?, shift: part("bias")? })
        };
        let block = |(i, window): (usize, usize)| {
            let read =
                |part: &str, sizes, bias| Linear::read(cx, file, &format!("transformer.h.{i}.{part}"), sizes, bias);
            let square = |part, bias| read(part, (dim, dim), bias);
            Ok(Block {
                window,
                norms: [norm(&format!("h.{i}.ln_1"))?, norm(&format!("h.{i}.ln_2"))?],
                qkv: [
                    square("attn.attention.q_proj", false)?,
                    square("attn.attention.k_proj", false)?,
                    square("attn.attention.v_proj", false)?,
                ],
                out: square("attn.attention.out_proj", true)?,
                up: read("mlp.c_fc", (hidden, dim), true)?,
                down: read("mlp.c_proj", (dim, hidden), true)?,
            })
        };
        let embedding = tensor(file, "transformer.wte.weight", &[vocab, dim])?;
        let head = match c.is_tied() {
            true => Linear::new(cx, &embedding, None, (vocab, dim)),
            false => Linear::read(cx, file, "lm_head", (vocab, dim), false)?,
        };
        Ok(GptNeo {
            sizes,
            heads,
            eps: c.layer_norm_epsilon,
            positions: tensor(file, "transformer.wpe.weight", &[sizes.context, dim])?,
            blocks: windows.into_iter().enumerate().map(block).collect::<Result<_, PeerError>>()?,
            norm: norm("ln_f")?,
            embedding,
            head,
        })
    }
}

impl Family for GptNeo {
    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn forward(&self, cx: &Exec, tokens: &[Token], first: usize, cache: &mut Cache) -> Vec<f32> {
        let dim = self.sizes.dim;
        let row = |&token: &Token| &self.embedding[usize::from(token) * dim..][..dim];
        let mut h: Vec<f32> = tokens.iter().flat_map(row).copied().collect();
        add(&mut h, &self.positions[first * dim..]);
        let mut x = vec![0.0; h.len()];
        for (i, block) in self.blocks.iter().enumerate() {
            block.norms[0].of(&mut x, &h, self.eps);
            let [q, k, v] = [0, 1, 2].map(|part| block.qkv[part].of(cx, &x));
            let o = cache.attend(cx, i, (&q, &k, &v), self.heads, block.window);
            add(&mut h, &block.out.of(cx, &o));
            block.norms[1].of(&mut x, &h, self.eps);
            let mut a = block.up.of(cx, &x);
            for a in &mut a {
                *a *= 0.5 * (1.0 + (0.797_884_6 * (*a + 0.044_715 * *a * *a * *a)).tanh());
            }
            add(&mut h, &block.down.of(cx, &a));
        }
        self.norm.of(&mut x, &h, self.eps);
        x
    }
}
