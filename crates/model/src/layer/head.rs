//! Embedding and head share one table `E: [V, D]`: `h = E[token]`, `logits = x E^T`.
//!
//! Logits are made for 256 rows at a time and turned into gradients in place, so that `[rows, V]` never exists:
//! `dz = (softmax(z) - onehot) * scale`, `dx = dz E`, `dE += dz^T x`.

use std::ops::Range;

use flashlm_kernels::ops::{Packed, cross_entropy, embed_backward, embed_forward, log_probs, matmul, matmul_tn};
use flashlm_kernels::{Buf, Elem, Exec, Token};

use crate::config::ModelConfig;
use crate::params::{Group, Init, Layout};

/// Rows of logits that exist at once.
const TILE: usize = 256;

/// The tied table and a tile of logits.
pub struct Head<E: Elem> {
    table: Range<usize>,
    d: usize,
    vocab: usize,
    forward: Packed<E>,
    backward: Option<Packed<E>>,
    logits: Buf<E>,
    packed: Packed<E>,
    losses: Buf<E>,
}

impl<E: Elem> Head<E> {
    /// Adds `embedding.weight: [V, D]` to the layout.
    pub fn new(layout: &mut Layout, config: &ModelConfig, rows: usize, training: bool) -> Self {
        let (v, d) = (config.vocab_size, config.dim);
        let tile = TILE.min(rows);
        Head {
            table: layout.add("embedding.weight".into(), &[v, d], Init::Normal(0.02), Group::Embedding),
            d,
            vocab: v,
            forward: Packed::new(d, v),
            backward: training.then(|| Packed::new(v, d)),
            logits: Buf::scratch(tile * v),
            packed: Packed::new(if training { tile } else { 0 }, d),
            losses: Buf::scratch(tile),
        }
    }

    /// Packs the table.
    pub fn prepare(&mut self, cx: &Exec, params: &[E]) {
        let table = &params[self.table.clone()];
        self.forward.pack_transposed(cx, table, self.d, self.vocab);
        if let Some(backward) = &mut self.backward {
            backward.pack(cx, table, self.d, self.vocab, self.d);
        }
    }

    /// `h: [rows, D]`.
    pub fn embed_forward(&self, cx: &Exec, h: &mut [E], tokens: &[Token], params: &[E]) {
        embed_forward(cx, h, tokens, &params[self.table.clone()], self.d);
    }

    /// Adds the embedding's gradient to `grads`.
    pub fn embed_backward(&self, cx: &Exec, grads: &mut [E], dh: &[E], tokens: &[Token]) {
        embed_backward(cx, &mut grads[self.table.clone()], dh, tokens, self.d);
    }

    /// Cross-entropy over all rows: returns the sum of nats, overwrites `dx: [rows, D]` and adds to `grads`, both of
    /// `scale` times that sum.
    pub fn loss_backward(
        &mut self,
        cx: &Exec,
        dx: &mut [E],
        grads: &mut [E],
        x: &[E],
        targets: &[Token],
        scale: E,
    ) -> f64 {
        let weight = self.backward.as_ref().expect("a model built for inference has no backward pass");
        let (d, v) = (self.d, self.vocab);
        let dtable = &mut grads[self.table.clone()];
        let mut nats = 0.0;
        for ((x, dx), targets) in x.chunks(TILE * d).zip(dx.chunks_mut(TILE * d)).zip(targets.chunks(TILE)) {
            let rows = targets.len();
            matmul(cx, &mut self.logits, x, d, &self.forward, rows, false);
            cross_entropy(cx, &mut self.losses[..rows], &mut self.logits, targets, v, scale);
            nats += self.losses[..rows].iter().map(|l| l.to_f64()).sum::<f64>();
            matmul(cx, dx, &self.logits, v, weight, rows, false);
            matmul_tn(cx, dtable, &mut self.packed, &self.logits, v, x, d, (v, d, rows), true);
        }
        nats
    }

    /// Calls `f(first row, logits [rows, V])` for each tile of `x: [rows, D]`.
    pub fn for_logits(&mut self, cx: &Exec, x: &[E], rows: usize, mut f: impl FnMut(usize, &mut [E])) {
        for first in (0..rows).step_by(TILE) {
            let n = TILE.min(rows - first);
            matmul(cx, &mut self.logits, &x[first * self.d..], self.d, &self.forward, n, false);
            f(first, &mut self.logits[..n * self.vocab]);
        }
    }

    /// Appends `ln p(target)` of each row.
    pub fn log_probs(&mut self, cx: &Exec, out: &mut Vec<f64>, x: &[E], targets: &[Token]) {
        let v = self.vocab;
        self.for_logits(cx, x, targets.len(), |first, logits| {
            let (start, rows) = (out.len(), logits.len() / v);
            out.resize(start + rows, 0.0);
            log_probs(cx, &mut out[start..], logits, &targets[first..first + rows], v);
        });
    }
}
