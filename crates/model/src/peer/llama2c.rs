//! The `.bin` files of llama2.c: a Llama whose rotary pairs are neighbours, little endian.
//!
//! ```text
//! version 0:  dim hidden blocks heads kv vocab seq: i32 (vocab negative: the head is not tied)
//!             embedding, norms, wq, wk, wv, wo, norms, w1, w2, w3, norm: f32 | cos, sin [seq, d/2] | head
//! version 1:  "24ka" version: i32, the seven, tied: u8, to 256 bytes
//!             norms, norms, norm, embedding, wq, wk, wv, wo, w1, w2, w3, head: f32
//! version 2:  as 1, group: i32 after `tied`; all but norms: a matrix of i8, then a factor f32 for each `group` elements
//! ```
//!
//! Each name is of all blocks in turn. Epsilon 1e-5, rotary base 10,000. Source: karpathy/llama2.c, `export.py`, `run.c`.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::other;
use super::error::PeerError;
use super::llama::Config;
use crate::io::IoError;
use crate::io::safetensors::{TensorFile, TensorRef, write_tensors};

/// How versions 1 and 2 begin.
const MAGIC: [u8; 4] = *b"24ka";
/// Bytes of their header.
const HEADER: usize = 256;
/// Largest of the seven sizes.
const MOST: i32 = 1 << 20;

/// What the header says.
struct Header {
    version: i32,
    start: usize,
    /// dim, hidden, blocks, heads, kv, vocab, seq.
    sizes: [usize; 7],
    tied: bool,
    group: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Header> {
        let int = |at: usize| Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let own = bytes.starts_with(&MAGIC);
        let version = if own { int(4)? } else { 0 };
        let first = if own { 8 } else { 0 };
        let mut sizes = [0; 7];
        for (i, size) in sizes.iter_mut().enumerate() {
            let value = int(first + 4 * i)?;
            let value = if i == 5 && !own { value.checked_abs()? } else { value };
            *size = usize::try_from(value).ok().filter(|_| (1..=MOST).contains(&value))?;
        }
        let group = if version == 2 { usize::try_from(int(37)?).ok().filter(|&n| n > 0)? } else { 1 };
        let tied = if own { *bytes.get(36)? != 0 } else { int(20)? > 0 };
        let start = if own { HEADER } else { 28 };
        let [dim, _, _, heads, kv, ..] = sizes;
        let even = dim.is_multiple_of(heads) && (dim / heads).is_multiple_of(2) && heads.is_multiple_of(kv);
        (even && (0..=2).contains(&version)).then_some(Header { version, start, sizes, tied, group })
    }

    /// Name, rows, columns and copies of every tensor, in the order of the file; a name of none is not used.
    fn tensors(&self) -> Vec<(&'static str, usize, usize, usize)> {
        let [dim, hidden, n, heads, kv, vocab, seq] = self.sizes;
        let (d, keys) = (dim / heads, dim / heads * kv);
        let norms =
            [("input_layernorm", 1, dim, n), ("post_attention_layernorm", 1, dim, n), ("model.norm", 1, dim, 1)];
        let embedding = ("model.embed_tokens", vocab, dim, 1);
        let attention = [
            ("self_attn.q_proj", dim, dim, n),
            ("self_attn.k_proj", keys, dim, n),
            ("self_attn.v_proj", keys, dim, n),
            ("self_attn.o_proj", dim, dim, n),
        ];
        let glu =
            [("mlp.gate_proj", hidden, dim, n), ("mlp.down_proj", dim, hidden, n), ("mlp.up_proj", hidden, dim, n)];
        let mut all = match self.version {
            0 => [&[embedding, norms[0]], &attention[..], &[norms[1]], &glu, &[norms[2], ("", seq, d, 1)]].concat(),
            _ => [&norms[..], &[embedding], &attention, &glu].concat(),
        };
        if !self.tied {
            all.push(("lm_head", vocab, dim, 1));
        }
        all
    }

    /// Bytes of a tensor: a norm is never quantised.
    fn bytes(&self, rows: usize, columns: usize, norm: bool) -> u128 {
        let n = rows as u128 * columns as u128;
        if self.version == 2 && !norm { n + 4 * (n / self.group as u128) } else { 4 * n }
    }

    fn length(&self) -> u128 {
        let bytes = |&(name, rows, columns, copies): &(&str, usize, usize, usize)| {
            copies as u128 * self.bytes(rows, columns, name.ends_with("norm"))
        };
        self.start as u128 + self.tensors().iter().map(bytes).sum::<u128>()
    }
}

/// Whether a file of this length that begins so is one of llama2.c.
pub fn is_llama2c(start: &[u8], length: u64) -> bool {
    start.starts_with(&MAGIC) || Header::read(start).is_some_and(|header| header.length() == u128::from(length))
}

/// The length that the header of a version 0 asks for, where the file is shorter: it was cut. Only sizes that a model has count, since any
/// bytes may begin a file.
pub fn cut_llama2c(start: &[u8], length: u64) -> Option<u64> {
    let header = Header::read(start).filter(|header| header.version == 0)?;
    let [dim, hidden, blocks, heads, _, _, seq] = header.sizes;
    let likely = (8..=8192).contains(&dim)
        && (dim..=8 * dim).contains(&hidden)
        && blocks <= 128
        && heads <= 128
        && seq <= 32_768;
    let wanted = u64::try_from(header.length()).ok()?;
    (likely && length < wanted).then_some(wanted)
}

/// The config and the tensors, named and laid out as Hugging Face's are.
pub(super) fn read(bytes: &[u8], path: &Path) -> Result<(Config, TensorFile), PeerError> {
    let label = path.display().to_string();
    let malformed = |found: String| IoError::Malformed { file: label.clone(), format: "llama2.c", found };
    let header = Header::read(bytes).ok_or_else(|| malformed("a header with sizes that no model has".into()))?;
    let expected = header.length();
    if expected != bytes.len() as u128 {
        let expected = u64::try_from(expected).unwrap_or(u64::MAX);
        return Err(IoError::Length { file: label, expected, found: bytes.len() as u64 }.into());
    }
    let [dim, hidden, blocks, heads, kv, vocab, seq] = header.sizes;
    if header.version == 2
        && header
            .tensors()
            .iter()
            .any(|(_, rows, columns, _)| *rows > 1 && !(rows * columns).is_multiple_of(header.group))
    {
        return Err(other(path, "group_size", "a divisor of every matrix", &header.group.to_string()));
    }
    let mut all = Vec::new();
    let mut rest = &bytes[header.start..];
    for (name, rows, columns, copies) in header.tensors() {
        let norm = name.ends_with("norm");
        for i in 0..copies {
            // Below the length of the file, as its whole is.
            let (own, after) = rest.split_at(header.bytes(rows, columns, norm) as usize);
            rest = after;
            let mut values = match header.version {
                2 if !norm => {
                    let (codes, factors) = own.split_at(rows * columns);
                    let factors = factors.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                    let groups = codes.chunks(header.group).zip(factors);
                    groups.flat_map(|(codes, by)| codes.iter().map(move |&code| f32::from(code as i8) * by)).collect()
                }
                _ => own.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>(),
            };
            if name.ends_with("q_proj") || name.ends_with("k_proj") {
                values = halves(&values, dim / heads, columns);
            }
            let full = match name {
                "" => continue,
                _ if copies == 1 && !name.contains("layernorm") && !name.contains("_proj") => format!("{name}.weight"),
                _ => format!("model.layers.{i}.{name}.weight"),
            };
            all.push((full, if norm { vec![columns] } else { vec![rows, columns] }, values));
        }
    }
    let tensors: Vec<TensorRef> = all.iter().map(|(name, shape, data)| TensorRef { name, shape, data }).collect();
    let mut file = Vec::new();
    write_tensors(&mut file, &tensors, &BTreeMap::new()).map_err(|e| malformed(e.to_string()))?;
    drop(all);
    let config = Config {
        vocab_size: vocab,
        hidden_size: dim,
        intermediate_size: hidden,
        num_hidden_layers: blocks,
        num_attention_heads: heads,
        num_key_value_heads: Some(kv),
        head_dim: None,
        max_position_embeddings: seq,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: header.tied,
        hidden_act: None,
        attention_bias: false,
        mlp_bias: false,
        rope_theta: None,
        rope_scaling: None,
        rope_parameters: None,
    };
    Ok((config, TensorFile::from_bytes(file, &label)?))
}

/// Rows of each head `2i, 2i + 1` in the order `i, i + d/2`, whose rotation turns the same pairs.
fn halves(w: &[f32], d: usize, columns: usize) -> Vec<f32> {
    let head = |head: &[f32]| -> Vec<f32> {
        let order = (0..d).step_by(2).chain((1..d).step_by(2));
        order.flat_map(|row| head[row * columns..(row + 1) * columns].to_vec()).collect()
    };
    w.chunks(d * columns).flat_map(head).collect()
}
