//! Embedding and head share one table `E: [V, D]`: `h = E[token]`, `logits = x E^T`, `x = norm(h)`, or `c tanh(x E^T / c)`
//! with a soft cap.
//!
//! Logits exist for one tile of rows and `CHUNK` columns at a time, in a thread's cache. Two ways lead to the gradients
//! `dz = (softmax(z) - onehot) * scale` (soft cap and z-loss: [`flashlm_kernels::ops::SoftmaxRows`]), `dx = dz E`,
//! `dE += dz^T x`, and which is faster depends on what a product costs:
//!
//! * kept: the exponentials of `BLOCK` tiles of rows are kept, and become `dz` in place. `dx` follows within the tile,
//!   `dE` for the whole block.
//! * again: only the sums of exponentials are kept, and logits are made a second time, for `PART` columns at a time that
//!   stay in the cache while all rows pass by: half a forward product more, a third of the memory traffic. Each group of
//!   columns has a `dx` of its own, and these are added in order. For tile registers, which wait for memory otherwise.

use std::ops::Range;

use flashlm_kernels::ops::{
    Objective, Packed, SoftmaxRows, add, embed_backward, embed_forward, matmul, matmul_tn, matmul_transposed, narrow,
    softcap, softmax_backward,
};
use flashlm_kernels::tile::{Local, Parts, Rows, TILE_ROWS};
use flashlm_kernels::{Buf, Elem, Exec, Isa, Store, Token};

use crate::config::ModelConfig;
use crate::layer::norm::Norm;
use crate::layer::round::round;
use crate::layer::{NO_BACKWARD, Scratch};
use crate::params::{Group, Init, Layout};

/// Columns of logits that exist at once.
const CHUNK: usize = 512;
/// Tiles of rows whose exponentials exist at once.
const BLOCK: usize = 16;

/// Most groups of columns, each with a `dx` of its own, where logits are made again.
const GROUPS: usize = 16;
/// Columns whose part of the table and of its gradient stay in the cache.
const PART: usize = 320;
/// Rows that pass by a part at once.
const PASS: usize = 256;

/// The tied table, and working memory of one of the two ways.
pub struct Head<A: Store> {
    table: Range<usize>,
    d: usize,
    vocab: usize,
    cap: Option<A::E>,
    forward: Packed<A>,
    backward: Option<Packed<A>>,
    losses: Buf<f64>,
    way: Way<A>,
    /// Whether inputs are rounded to int8.
    pub(crate) int8: bool,
}

/// What one way to the gradients keeps.
enum Way<A: Store> {
    /// Exponentials of a block, and its packed inputs.
    Kept { dz: Buf<A>, packed: Packed<A> },
    /// Logarithms of sums of exponentials, gradients of the groups, packed inputs.
    Again { log_sums: Buf<A::E>, dx: Buf<A::E>, packed: Packed<A> },
}

/// Columns of a group: whole parts.
fn group_columns(v: usize) -> usize {
    v.div_ceil(GROUPS).next_multiple_of(PART)
}

/// Whether logits are made again by default: only bf16 has products fast enough, and only on tile registers.
fn again<A: Store>() -> bool {
    A::DEPTH == 2 && Isa::detect().is_ok_and(Isa::has_tiles)
}

impl<A: Store> Head<A> {
    /// Adds `embedding.weight: [V, D]` to the layout.
    pub fn new(layout: &mut Layout, config: &ModelConfig, rows: usize, training: bool) -> Self {
        Head::of(layout, config, rows, training, again::<A>())
    }

    fn of(layout: &mut Layout, config: &ModelConfig, rows: usize, training: bool, again: bool) -> Self {
        let (v, d) = (config.vocab_size, config.dim);
        let (block, all) = if training { (rows.min(BLOCK * TILE_ROWS.end()), rows) } else { (0, 0) };
        let way = if again {
            let (log_sums, dx) = (Buf::scratch(all), Buf::scratch(v.div_ceil(group_columns(v)) * all * d));
            Way::Again { log_sums, dx, packed: Packed::new(all, d) }
        } else {
            Way::Kept { dz: Buf::scratch(block * v), packed: Packed::new(block, d) }
        };
        Head {
            table: layout.add("embedding.weight".into(), &[v, d], Init::Normal(0.02), Group::Embedding),
            d,
            vocab: v,
            cap: (config.logit_softcap > 0.0).then(|| A::E::from_f64(config.logit_softcap)),
            forward: Packed::new(d, v),
            backward: training.then(|| Packed::new(v, d)),
            losses: Buf::scratch(rows),
            way,
            int8: false,
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

    /// Cross-entropy over all rows: returns the sum of nats, overwrites `dh: [rows, D]` and adds to `grads`, both of the
    /// objective.
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
        objective: Objective,
    ) -> f64 {
        let Head { d, vocab: v, cap, forward, backward, losses, way, int8, .. } = self;
        let Way::Kept { dz, packed } = way else {
            return self.loss_backward_again(cx, dh, grads, h, targets, norm, params, s, objective);
        };
        let weight = backward.as_ref().expect(NO_BACKWARD);
        let (d, v, cap, int8) = (*d, *v, *cap, *int8);
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
                if int8 {
                    round(cx, x, d);
                }
                let at = local.take(n * v.div_ceil(CHUNK));
                let softmax = &logits(cx, forward, cap, x, &targets[r], local, |softmax, z, columns| {
                    let at = &mut at[columns.start / CHUNK * n..][..n];
                    softmax.chunk(cx, Some((&mut dz[columns.start..], v, at)), z, columns.len(), columns.start);
                });
                losses.iter_mut().enumerate().for_each(|(row, loss)| *loss = -softmax.log_prob(row));
                softmax.finish(cx, dz, v, at, (v, CHUNK), objective);
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

    /// The same, with logits made again.
    fn loss_backward_again(
        &mut self,
        cx: &Exec,
        dh: &mut [A::E],
        grads: &mut [A::E],
        h: &[A::E],
        targets: &[Token],
        norm: &Norm,
        params: &[A::E],
        s: &mut Scratch<A>,
        objective: Objective,
    ) -> f64 {
        let Head { d, vocab: v, cap, forward, backward, losses, way, int8, .. } = self;
        let Way::Again { log_sums, dx, packed } = way else { unreachable!("the caller has looked") };
        let weight = backward.as_ref().expect(NO_BACKWARD);
        let (d, v, cap, int8, rows) = (*d, *v, *cap, *int8, targets.len());
        let sums = (Rows(&mut s.x, d), Rows(losses, 1), Rows(log_sums, 1));
        cx.tiles_by(2 * cx.tile_rows(), rows, sums, |cx, r, (x, losses, log_sums), local| {
            norm.forward(cx, x, &h[r.start * d..r.end * d], params);
            if int8 {
                round(cx, x, d);
            }
            let softmax = logits::<A>(cx, forward, cap, x, &targets[r], local, |softmax, z, columns| {
                softmax.chunk::<A>(cx, None, z, columns.len(), columns.start);
            });
            for (row, (loss, log_sum)) in losses.iter_mut().zip(log_sums).enumerate() {
                (*loss, *log_sum) = (-softmax.log_prob(row), A::E::from_f64(softmax.log_sum(row)));
            }
        });

        let (x, log_sums) = (&s.x[..rows * d], &log_sums[..rows]);
        packed.pack(cx, x, d, rows, d);
        let table = &mut grads[self.table.clone()];
        cx.tiles_by(group_columns(v), v, (Rows(table, d), Parts(dx, rows * d)), |cx, group, (dtable, dx), local| {
            let (z, dz) = (local.take(PASS * PART), local.take(PASS * PART));
            for first in group.clone().step_by(PART) {
                let columns = first..group.end.min(first + PART);
                let width = columns.len();
                let dtable = &mut dtable[(first - group.start) * d..][..width * d];
                for pass in (0..rows).step_by(PASS) {
                    let r = pass..rows.min(pass + PASS);
                    let (x, dx) = (&x[r.start * d..r.end * d], &mut dx[r.start * d..r.end * d]);
                    matmul(cx, z, x, d, forward.columns(columns.clone()), r.len(), false);
                    if let Some(cap) = cap {
                        softcap(cx, &mut z[..r.len() * width], cap);
                    }
                    let (log_sums, targets) = (&log_sums[r.clone()], &targets[r.clone()]);
                    softmax_backward(cx, (dz, width), z, log_sums, targets, (width, first), cap, objective);
                    matmul(cx, dx, dz, width, weight.depths(columns.clone()), r.len(), first > group.start);
                    matmul_transposed(cx, dtable, dz, width, packed.depths(r), width, true);
                }
            }
        });

        let parts = &mut s.parts[..cx.tile_count(rows) * d];
        cx.tiles(rows, (Rows(dh, d), Parts(parts, d)), |cx, r, (dh, part), local| {
            let cells = r.start * d..r.end * d;
            let sum = local.take::<A::E>(cells.len());
            sum.copy_from_slice(&dx[cells.clone()]);
            for group in 1..v.div_ceil(group_columns(v)) {
                add(cx, sum, &dx[group * rows * d..][cells.clone()]);
            }
            part.fill(A::E::ZERO);
            norm.backward(cx, dh, part, sum, &h[cells], params, false);
        });
        norm.add_parts(grads, &s.parts[..cx.tile_count(rows) * d], d, 0);
        losses[..rows].iter().sum()
    }

    /// The input of the head, `x: [rows, D]`, from the end of the residual stream.
    pub fn input(&self, cx: &Exec, x: &mut [A], h: &[A::E], norm: &Norm, params: &[A::E]) {
        norm.forward(cx, x, h, params);
        if self.int8 {
            round(cx, x, self.d);
        }
    }

    /// Writes the logits of `x: [rows, D]` to `out: [rows, V]`.
    pub fn logits(&self, cx: &Exec, out: &mut [A::E], x: &[A]) {
        let rows = x.len() / self.d;
        matmul(cx, out, x, self.d, &self.forward, rows, false);
        if let Some(cap) = self.cap {
            softcap(cx, &mut out[..rows * self.vocab], cap);
        }
    }

    /// Appends `ln p(target)` of each row of `x: [rows, D]`.
    pub fn log_probs(&mut self, cx: &Exec, out: &mut Vec<f64>, x: &[A], targets: &[Token]) {
        let Head { d, cap, forward, losses, .. } = self;
        let (d, cap) = (*d, *cap);
        cx.tiles(targets.len(), (Rows(losses, 1),), |cx, r, (losses,), local| {
            let x = &x[r.start * d..r.end * d];
            let softmax = logits::<A>(cx, forward, cap, x, &targets[r], local, |softmax, z, columns| {
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
    cap: Option<A::E>,
    x: &[A],
    targets: &'a [Token],
    local: &'a Local,
    mut f: impl FnMut(&mut SoftmaxRows<'a, A::E>, &[A::E], Range<usize>),
) -> SoftmaxRows<'a, A::E> {
    let rows = targets.len();
    let (max, sum, own) = (local.take(rows), local.take(rows), local.take(rows));
    let mut softmax = SoftmaxRows { max, sum, own, targets, cap };
    softmax.start();
    let z = local.take(rows * CHUNK);
    for first in (0..table.width()).step_by(CHUNK) {
        let columns = first..table.width().min(first + CHUNK);
        let z = &mut z[..rows * columns.len()];
        matmul(cx, z, x, x.len() / rows.max(1), table.columns(columns.clone()), rows, false);
        if let Some(cap) = cap {
            softcap(cx, z, cap);
        }
        f(&mut softmax, z, columns);
    }
    softmax
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Bf16;
    use flashlm_kernels::ops::NO_TARGET;

    use super::*;
    use crate::gradcheck::{noisy, tiny, tokens};
    use crate::layer::Need;

    /// Without switches, and with all: soft cap, weight of the z-loss, rounded inputs.
    const SWITCHES: [(f64, f64, bool); 2] = [(0.0, 0.0, false), (1.5, 0.02, true)];

    /// Loss, gradients and `dh` by one of the two ways.
    fn run<A: Store>(again: bool, threads: usize, (cap, z_loss, int8): (f64, f64, bool)) -> (f64, Vec<f64>, Vec<f64>) {
        let cx = Exec::new(Isa::detect().unwrap(), threads);
        let (rows, config) = (600, ModelConfig { vocab_size: 1500, dim: 40, logit_softcap: cap, ..tiny("conv") });
        let mut layout = Layout::default();
        let mut head = Head::<A>::of(&mut layout, &config, rows, true, again);
        head.int8 = int8;
        let norm = Norm::new(&mut layout, "norm".into(), config.dim, 1e-6);
        let mut s = Scratch::new(&config, Need::default(), rows, true);
        let values = |n, seed| noisy(n, seed).into_iter().map(A::E::from_f64).collect::<Vec<_>>();
        let (params, h) = (values(layout.len(), 1), values(rows * config.dim, 2));
        let (mut dh, mut grads) = (values(rows * config.dim, 3), vec![A::E::ZERO; layout.len()]);
        let mut targets = tokens(rows, config.vocab_size, 4);
        targets[7] = NO_TARGET;
        targets[rows - 3..].fill(NO_TARGET);
        head.prepare(&cx, &params, &mut s);
        let objective = Objective { scale: 0.01, z_loss };
        let nats = head.loss_backward(&cx, &mut dh, &mut grads, &h, &targets, &norm, &params, &mut s, objective);
        for (row, dh) in dh.chunks(config.dim).enumerate() {
            let zero = dh.iter().all(|x| x.to_f64() == 0.0);
            assert_eq!(zero, targets[row] == NO_TARGET, "row {row}");
        }
        let wide = |x: Vec<A::E>| x.into_iter().map(Elem::to_f64).collect();
        (nats, wide(dh), wide(grads))
    }

    #[test]
    fn both_ways_lead_to_the_same_gradients() {
        let off = |a: &[f64], b: &[f64]| {
            let square = |x: f64| x * x;
            let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
            (off / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
        };
        for switches in SWITCHES {
            for (one, two, bound) in [
                (run::<f64>(true, 2, switches), run::<f64>(false, 2, switches), 1e-12),
                (run::<f32>(true, 2, switches), run::<f32>(false, 2, switches), 1e-6),
                (run::<Bf16>(true, 2, switches), run::<Bf16>(false, 2, switches), 5e-3),
            ] {
                assert!((one.0 - two.0).abs() <= 1e-6 * two.0, "loss {} and {}", one.0, two.0);
                assert!(off(&one.1, &two.1) <= bound, "dh off by {:e}", off(&one.1, &two.1));
                assert!(off(&one.2, &two.2) <= bound, "gradients off by {:e}", off(&one.2, &two.2));
            }
            for again in [false, true] {
                assert_eq!(run::<Bf16>(again, 1, switches), run::<Bf16>(again, 3, switches));
            }
        }
    }
}
