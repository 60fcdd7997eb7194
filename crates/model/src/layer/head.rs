//! Embedding and head share one table `E: [V, D]`: `h = E[token]`, `logits = x E^T`, `x = norm(h)`.
//!
//! Logits exist for one tile of rows and [`CHUNK`] columns at a time, in a thread's cache; `[rows, V]` is only kept as
//! exponentials, of [`BLOCK`] tiles of rows at once, which become `dz = (softmax(z) - onehot) * scale` in place. Then
//! `dx = dz E` within the tile, and `dE += dz^T x` for the whole block.

use std::ops::Range;

use flashlm_kernels::ops::{Packed, SoftmaxRows, embed_backward, embed_forward, matmul, matmul_tn, narrow};
use flashlm_kernels::tile::{Local, Parts, Rows};
use flashlm_kernels::{Buf, Exec, Store, Token};

use crate::config::ModelConfig;
use crate::layer::Scratch;
use crate::layer::norm::Norm;
use crate::params::{Group, Init, Layout};

/// Columns of logits that exist at once.
const CHUNK: usize = 512;
/// Tiles of rows whose exponentials exist at once.
const BLOCK: usize = 4;
/// Most rows of a block on any ISA.
const BLOCK_ROWS: usize = BLOCK * 112;

/// The tied table, and a block of exponentials.
pub struct Head<A: Store> {
    table: Range<usize>,
    d: usize,
    vocab: usize,
    forward: Packed<A>,
    backward: Option<Packed<A>>,
    dz: Buf<A>,
    packed: Packed<A>,
    losses: Buf<f64>,
}

impl<A: Store> Head<A> {
    /// Adds `embedding.weight: [V, D]` to the layout.
    pub fn new(layout: &mut Layout, config: &ModelConfig, rows: usize, training: bool) -> Self {
        let (v, d) = (config.vocab_size, config.dim);
        let block = if training { BLOCK_ROWS.min(rows) } else { 0 };
        Head {
            table: layout.add("embedding.weight".into(), &[v, d], Init::Normal(0.02), Group::Embedding),
            d,
            vocab: v,
            forward: Packed::new(d, v),
            backward: training.then(|| Packed::new(v, d)),
            dz: Buf::scratch(block * v),
            packed: Packed::new(block, d),
            losses: Buf::scratch(rows),
        }
    }

    /// Packs the table.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        let table = &mut s.weight[..self.table.len()];
        narrow(cx, table, &params[self.table.clone()]);
        self.forward.pack_transposed(cx, table, self.d, self.vocab);
        if let Some(backward) = &mut self.backward {
            backward.pack(cx, table, self.d, self.vocab, self.d);
        }
    }

    /// `h: [rows, D]`.
    pub fn embed_forward(&self, cx: &Exec, h: &mut [A::E], tokens: &[Token], params: &[A::E]) {
        embed_forward(cx, h, tokens, &params[self.table.clone()], self.d);
    }

    /// Adds the embedding's gradient to `grads`.
    pub fn embed_backward(&self, cx: &Exec, grads: &mut [A::E], dh: &[A::E], tokens: &[Token]) {
        embed_backward(cx, &mut grads[self.table.clone()], dh, tokens, self.d);
    }

    /// Cross-entropy over all rows: returns the sum of nats, overwrites `dh: [rows, D]` and adds to `grads`, both of
    /// `scale` times that sum.
    pub fn loss_backward(
        &mut self,
        cx: &Exec,
        dh: &mut [A::E],
        grads: &mut [A::E],
        h: &[A::E],
        targets: &[Token],
        norm: &Norm,
        params: &[A::E],
        s: &mut Scratch<A>,
        scale: A::E,
    ) -> f64 {
        let Head { d, vocab: v, forward, backward, dz, packed, losses, .. } = self;
        let weight = backward.as_ref().expect("a model built for inference has no backward pass");
        let (d, v) = (*d, *v);
        let block = BLOCK * cx.tile_rows();
        let mut nats = 0.0;
        for (first, targets) in targets.chunks(block).enumerate() {
            let rows = targets.len();
            let cells = first * block * d..(first * block + rows) * d;
            let (h, dh) = (&h[cells.clone()], &mut dh[cells]);
            let parts = &mut s.parts[..cx.tile_count(rows) * d];
            let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(dz, v), Rows(losses, 1), Parts(parts, d));
            cx.tiles(rows, buffers, |cx, r, (dh, x, dz, losses, part), local| {
                let n = r.len();
                let h = &h[r.start * d..r.end * d];
                norm.forward(cx, x, h, params);
                let at = local.take(n * v.div_ceil(CHUNK));
                let softmax = &logits(cx, forward, x, &targets[r], local, |softmax, z, columns| {
                    let at = &mut at[columns.start / CHUNK * n..][..n];
                    softmax.chunk(cx, Some((&mut dz[columns.start..], v, at)), z, columns.len(), columns.start);
                });
                losses.iter_mut().enumerate().for_each(|(row, loss)| *loss = -softmax.log_prob(row));
                softmax.finish(cx, dz, v, at, (v, CHUNK), scale);
                let dx = local.take(n * d);
                matmul(cx, dx, dz, v, weight, n, false);
                part.fill(A::E::ZERO);
                norm.backward(cx, dh, part, dx, h, params, false);
            });
            nats += losses[..rows].iter().sum::<f64>();
            norm.add_parts(grads, &s.parts[..cx.tile_count(rows) * d], d, 0);
            matmul_tn(cx, &mut grads[self.table.clone()], packed, dz, v, &s.x, d, (v, d, rows), true);
        }
        nats
    }

    /// Writes the logits of `x: [rows, D]` to `out: [rows, V]`.
    pub fn logits(&self, cx: &Exec, out: &mut [A::E], x: &[A]) {
        matmul(cx, out, x, self.d, &self.forward, x.len() / self.d, false);
    }

    /// Appends `ln p(target)` of each row of `x: [rows, D]`.
    pub fn log_probs(&mut self, cx: &Exec, out: &mut Vec<f64>, x: &[A], targets: &[Token]) {
        let Head { d, forward, losses, .. } = self;
        let d = *d;
        cx.tiles(targets.len(), (Rows(losses, 1),), |cx, r, (losses,), local| {
            let x = &x[r.start * d..r.end * d];
            let softmax = logits::<A>(cx, forward, x, &targets[r], local, |softmax, z, columns| {
                softmax.chunk::<A>(cx, None, z, columns.len(), columns.start);
            });
            losses.iter_mut().enumerate().for_each(|(row, loss)| *loss = softmax.log_prob(row));
        });
        out.extend(&losses[..targets.len()]);
    }
}

/// Makes the logits of one tile, [`CHUNK`] columns at a time, and hands each to `f(softmax, z, columns)`.
fn logits<'a, A: Store>(
    cx: &Exec,
    table: &Packed<A>,
    x: &[A],
    targets: &'a [Token],
    local: &'a Local,
    mut f: impl FnMut(&mut SoftmaxRows<'a, A::E>, &[A::E], Range<usize>),
) -> SoftmaxRows<'a, A::E> {
    let rows = targets.len();
    let (max, sum, own) = (local.take(rows), local.take(rows), local.take(rows));
    let mut softmax = SoftmaxRows { max, sum, own, targets };
    softmax.start();
    let z = local.take(rows * CHUNK);
    for first in (0..table.width()).step_by(CHUNK) {
        let columns = first..table.width().min(first + CHUNK);
        let z = &mut z[..rows * columns.len()];
        matmul(cx, z, x, x.len() / rows.max(1), table.columns(columns.clone()), rows, false);
        f(&mut softmax, z, columns);
    }
    softmax
}
