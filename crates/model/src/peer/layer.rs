//! What the families share: matrices, attention over a cache of keys and values, rotary positions.
//!
//! ```text
//! y: [n, out] = x: [n, in] W^T + b          W: [out, in]
//! ```

use flashlm_kernels::ops::{Packed, attention_forward, attention_room, attention_work, matmul};
use flashlm_kernels::{Exec, Token};

use super::error::PeerError;
use crate::io::safetensors::TensorFile;

/// Queries of a head that are worked through at once.
const QUERIES: usize = 48;

/// A matrix with or without a bias.
pub(super) struct Linear {
    packed: Packed<f32>,
    bias: Option<Vec<f32>>,
    out: usize,
    input: usize,
}

impl Linear {
    /// Of `w: [out, input]`.
    pub(super) fn new(cx: &Exec, w: &[f32], bias: Option<Vec<f32>>, (out, input): (usize, usize)) -> Linear {
        let mut packed = Packed::new(input, out);
        packed.pack_transposed(cx, w, input, out);
        Linear { packed, bias, out, input }
    }

    /// That of a file, `name.weight` and, where asked for, `name.bias`.
    pub(super) fn read(
        cx: &Exec,
        file: &TensorFile,
        name: &str,
        sizes: (usize, usize),
        bias: bool,
    ) -> Result<Linear, PeerError> {
        let w = tensor(file, &format!("{name}.weight"), &[sizes.0, sizes.1])?;
        let bias = bias.then(|| tensor(file, &format!("{name}.bias"), &[sizes.0])).transpose()?;
        Ok(Linear::new(cx, &w, bias, sizes))
    }

    /// `x W^T + b`.
    pub(super) fn of(&self, cx: &Exec, x: &[f32]) -> Vec<f32> {
        let n = x.len() / self.input;
        let mut y = vec![0.0; n * self.out];
        matmul(cx, &mut y, x, self.input, &self.packed, n, false);
        if let Some(bias) = &self.bias {
            y.chunks_exact_mut(self.out).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        y
    }
}

/// The elements of a tensor, which must have this shape and be finite.
pub(super) fn tensor(file: &TensorFile, name: &str, shape: &[usize]) -> Result<Vec<f32>, PeerError> {
    let found = file.shape(name)?;
    let wrong = |expected, found| PeerError::Tensor { file: file.label().into(), name: name.into(), expected, found };
    if found != shape {
        return Err(wrong(format!("shape {shape:?}"), format!("{found:?}")));
    }
    let values = file.floats(name)?;
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(wrong("finite numbers".into(), value.to_string())),
        None => Ok(values),
    }
}

/// How a model's heads lie in its rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Of the queries.
    pub(super) heads: usize,
    /// Of keys and values; each serves `heads / kv` of the queries in turn.
    pub(super) kv: usize,
    /// Width of one.
    pub(super) d: usize,
}

/// Keys and values of the tokens of one sequence.
#[derive(Clone)]
pub struct Cache {
    /// The tokens, as many as the model's context holds.
    pub(super) tokens: Vec<Token>,
    /// Of each block and head `[tokens, d]`.
    blocks: Vec<Vec<(Vec<f32>, Vec<f32>)>>,
}

impl Cache {
    pub(super) fn new(blocks: usize, kv: usize) -> Cache {
        Cache { tokens: Vec::new(), blocks: (0..blocks).map(|_| vec![(Vec::new(), Vec::new()); kv]).collect() }
    }

    /// Its size in memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let blocks = self.blocks.iter().flatten().map(|(k, v)| size_of_val(&k[..]) + size_of_val(&v[..]));
        blocks.sum::<usize>() + size_of_val(&self.tokens[..])
    }

    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        for (k, v) in self.blocks.iter_mut().flatten() {
            k.clear();
            v.clear();
        }
    }

    /// `o: [n, heads * d]` of causal attention, from `q: [n, heads * d]`, scaled already, and the keys and values of the same tokens,
    /// which the cache takes. A query sees `window` tokens, its own included.
    pub(super) fn attend(
        &mut self,
        cx: &Exec,
        block: usize,
        (q, k, v): (&[f32], &[f32], &[f32]),
        Heads { heads, kv, d }: Heads,
        window: usize,
    ) -> Vec<f32> {
        let n = q.len() / (heads * d);
        let cache = &mut self.blocks[block];
        for row in 0..n {
            for (head, (keys, values)) in cache.iter_mut().enumerate() {
                let at = (row * kv + head) * d;
                keys.extend_from_slice(&k[at..at + d]);
                values.extend_from_slice(&v[at..at + d]);
            }
        }
        let all = cache[0].0.len() / d;
        let window = window.min(all);
        let mut o = vec![0.0; q.len()];
        let most = QUERIES.min(n);
        let (mut work, mut room) = (vec![0.0; attention_work(most, all)], vec![0f32; attention_room((most, d), all)]);
        let (mut own_q, mut own_o, mut sums) = (vec![0.0; most * d], vec![0.0; most * d], vec![0.0; most]);
        for head in 0..heads {
            let (keys, values) = &cache[head * kv / heads];
            for first in (0..n).step_by(QUERIES) {
                let m = QUERIES.min(n - first);
                let rows = |i: usize| ((first + i) * heads + head) * d..((first + i) * heads + head + 1) * d;
                own_q.chunks_exact_mut(d).take(m).enumerate().for_each(|(i, own)| own.copy_from_slice(&q[rows(i)]));
                let end = all - n + first + m;
                let start = (end - m + 1).saturating_sub(window).min(end - m);
                let piece = (&keys[start * d..end * d], &values[start * d..end * d]);
                let (q, o_rows) = (&own_q[..m * d], &mut own_o[..m * d]);
                attention_forward(cx, o_rows, &mut sums[..m], q, &[piece], &mut work, &mut room, (m, d, window));
                own_o.chunks_exact(d).take(m).enumerate().for_each(|(i, own)| o[rows(i)].copy_from_slice(own));
            }
        }
        o
    }
}

/// Turns the pairs `(i, i + d/2)` of each head by `position * base^(-2i/d)`, in place; in f32, as the originals do.
pub(super) fn rotate(x: &mut [f32], d: usize, first: usize, heads: usize, base: f32) {
    let half = d / 2;
    let speeds: Vec<f32> = (0..half).map(|i| 1.0 / base.powf((2 * i) as f32 / d as f32)).collect();
    for (row, x) in x.chunks_exact_mut(heads * d).enumerate() {
        let position = (first + row) as f32;
        let turns: Vec<(f32, f32)> = speeds.iter().map(|speed| (position * speed).sin_cos()).collect();
        for x in x.chunks_exact_mut(d) {
            let (low, high) = x.split_at_mut(half);
            for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(&turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// `h += x`.
pub(super) fn add(h: &mut [f32], x: &[f32]) {
    h.iter_mut().zip(x).for_each(|(h, x)| *h += x);
}
