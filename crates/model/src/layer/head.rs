//! Embedding and head share one matrix `E: [V, D]`: `h = E[token]`, `logits = x E^T`, `x = norm(h)`, or `c tanh(x E^T / c)`
//! with a soft cap.
//!
//! In int8 both `x` and `E` are rounded to int8 for the logits; gradients take them as they are: rows of `dz` are one spike and ten
//! thousand crumbs, which int8 would lose.
//!
//! Logits exist for one tile of rows and `CHUNK` columns at a time, in a thread's cache. The gradients
//! `dz = (softmax(z) - onehot) * scale` (soft cap and z-loss: [`flashlm_kernels::ops::SoftmaxRows`]), `dx = dz E`,
//! `dE += dz^T x` are computed in one of two ways; which is faster depends on the cost of a matmul:
//!
//! * stored: the exponentials of a block of tiles of rows are kept, and become `dz` in place. `dx` follows within the tile,
//!   `dE` for the whole block.
//! * recomputed: only the sums of exponentials are kept, and logits are made a second time, for `PART` columns at a time that
//!   stay in the cache while all rows pass by: half a forward matmul more, a third of the memory traffic. Each group of
//!   columns has its own `dx`, and these are added in order. For tile registers, which wait for memory otherwise; not with pointers.

use std::ops::Range;

use flashlm_kernels::ops::{
    CodeRows, Codes, Objective, Packed, SoftmaxRows, add, embed_backward, embed_forward, matmul, matmul_int8,
    matmul_tn, matmul_transposed, narrow, softcap, softmax_backward,
};
use flashlm_kernels::tile::{Local, Parts, Rows, TILE_ROWS};
use flashlm_kernels::{Buf, Elem, Exec, Store, Token};

use super::linear::NO_BACKWARD;
use super::norm::{Norm, Tiles};
use super::pass::Pass;
use super::round::round;
use super::scratch::Scratch;
use crate::params::{Group, Init, Layout};

/// Columns of logits that exist at once.
const CHUNK: usize = 512;
/// Tiles of rows whose exponentials exist at once, or more: a tile for every `TILE_BLOCK` rows of a pass, which has as many rows as its
/// threads need.
const BLOCK: usize = 16;
const TILE_BLOCK: usize = 128;

/// Most groups of columns, each with its own `dx`, where logits are recomputed.
const GROUPS: usize = 16;
/// Columns whose part of the embedding matrix and of its gradient stay in the cache.
const PART: usize = 320;
/// Rows that pass by a part at once.
const PASS: usize = 256;

/// Where the embedding matrix lies among the parameters.
#[derive(Clone, Debug)]
pub struct HeadParams {
    /// Its place among the parameters: `[V, D]`.
    pub table: Range<usize>,
    d: usize,
    vocab: usize,
    cap: f64,
    int8: bool,
}

impl HeadParams {
    /// Adds `embedding.weight: [V, D]`; `cap` is that of the soft cap, 0: none; `int8`: logits are computed in int8.
    pub fn new(layout: &mut Layout, vocab: usize, d: usize, cap: f64, int8: bool) -> Self {
        let table = layout.add("embedding.weight".into(), &[vocab, d], Init::Normal(0.02), Group::Embedding);
        HeadParams { table, d, vocab, cap, int8 }
    }
}

/// The embedding matrix, packed.
pub struct Head<A: Store> {
    table: Range<usize>,
    d: usize,
    vocab: usize,
    cap: Option<A::E>,
    forward: Forward<A>,
    backward: Option<Packed<A>>,
}

/// The embedding matrix of the logits, `[D, V]`.
enum Forward<A: Store> {
    Float(Packed<A>),
    Int8(Codes),
}

impl<A: Store> Forward<A> {
    /// What the matmul takes instead of `x: [rows, d]`, if it is in int8.
    fn round<'a>(&self, cx: &Exec, x: &[A], d: usize, local: &'a Local) -> Option<CodeRows<'a>> {
        matches!(self, Forward::Int8(_)).then(|| CodeRows::round(cx, local, x, d, d))
    }

    /// Logits `z: [rows, columns]` of `x: [rows, d]`, or of its codes, for some columns, the first of which is a multiple of 32; on the
    /// calling thread.
    fn logits(&self, cx: &Exec, z: &mut [A::E], x: &[A], codes: Option<&CodeRows>, d: usize, columns: Range<usize>) {
        match (self, codes) {
            (Forward::Float(packed), _) => matmul(cx, z, x, d, packed.columns(columns), x.len() / d, false),
            (Forward::Int8(table), codes) => {
                matmul_int8(cx, z, codes.expect("rounded rows"), table.columns(columns), false);
            }
        }
    }
}

/// Working memory for some number of rows, and what one of the two ways keeps.
pub struct Work<A: Store> {
    rows: usize,
    training: bool,
    /// Tiles of a block.
    block: usize,
    losses: Buf<f64>,
    way: Option<Way<A>>,
}

/// What one way to the gradients keeps.
enum Way<A: Store> {
    /// Exponentials of a block, and its packed inputs.
    Stored { dz: Buf<A>, packed: Packed<A> },
    /// Logarithms of sums of exponentials, gradients of the groups, packed inputs.
    Recomputed { log_sums: Buf<A::E>, dx: Buf<A::E>, packed: Packed<A> },
}

/// What pointers add to the columns of each row, as logarithms; and after a pass, what their gradient needs.
pub struct Masses<E: Elem> {
    /// Of all pointers.
    pub all: Buf<E>,
    /// Of those at the target.
    pub own: Buf<E>,
}

impl<E: Elem> Masses<E> {
    /// Both of `rows` rows and the width 1, or nothing and 0.
    fn rows(of: Option<&mut Self>, rows: usize) -> (&mut [E], &mut [E], usize) {
        match of {
            Some(Masses { all, own }) => (&mut all[..rows], &mut own[..rows], 1),
            None => (&mut [], &mut [], 0),
        }
    }
}

/// Columns of a group: whole parts.
fn group_columns(v: usize) -> usize {
    v.div_ceil(GROUPS).next_multiple_of(PART)
}

/// Whether logits are recomputed: only bf16 has matmuls fast enough, and only on tile registers.
fn recomputes<A: Store>(cx: &Exec) -> bool {
    A::DEPTH == 2 && cx.isa().has_tiles()
}

impl<A: Store> Head<A> {
    /// Room for the packed embedding matrix; what only a backward pass takes is left out unless `training`.
    pub fn new(of: &HeadParams, training: bool) -> Self {
        let HeadParams { table, d, vocab, cap, int8 } = of.clone();
        Head {
            table,
            d,
            vocab,
            cap: (cap > 0.0).then(|| A::E::from_f64(cap)),
            forward: if int8 && d <= CodeRows::WIDEST {
                Forward::Int8(Codes::new(d, vocab))
            } else {
                Forward::Float(Packed::new(d, vocab))
            },
            backward: training.then(|| Packed::new(vocab, d)),
        }
    }

    /// Working memory for at most `rows` rows. That of gradients follows the executor, once it is known.
    pub fn work(&self, rows: usize) -> Work<A> {
        let block = BLOCK.max(rows / TILE_BLOCK);
        Work { rows, training: self.backward.is_some(), block, losses: Buf::scratch(rows), way: None }
    }

    /// Makes room for the way to the gradients that is the faster on `cx`; `pointing`: whether there are pointers.
    pub fn make_room(&self, cx: &Exec, work: &mut Work<A>, pointing: bool) {
        if work.training {
            self.make_way(work, recomputes::<A>(cx) && !pointing);
        }
    }

    fn make_way(&self, work: &mut Work<A>, recomputed: bool) {
        let (v, d, rows) = (self.vocab, self.d, work.rows);
        match (&work.way, recomputed) {
            (Some(Way::Stored { .. }), false) | (Some(Way::Recomputed { .. }), true) => {}
            (_, false) => {
                let block = rows.min(work.block * TILE_ROWS.end());
                work.way = Some(Way::Stored { dz: Buf::scratch(block * v), packed: Packed::new(block, d) });
            }
            (_, true) => {
                let (log_sums, dx) = (Buf::scratch(rows), Buf::scratch(v.div_ceil(group_columns(v)) * rows * d));
                work.way = Some(Way::Recomputed { log_sums, dx, packed: Packed::new(rows, d) });
            }
        }
    }

    /// Packs the embedding matrix.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        let table = &mut s.weight[..self.table.len()];
        narrow(cx, table, &params[self.table.clone()]);
        match &mut self.forward {
            Forward::Float(packed) => packed.pack_transposed(cx, table, self.d, self.vocab),
            Forward::Int8(codes) => codes.round_transposed(cx, &params[self.table.clone()], self.d, self.vocab),
        }
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
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        work: &mut Work<A>,
        h: &[A::E],
        targets: &[Token],
        norm: &Norm,
        s: &mut Scratch<A>,
        objective: Objective,
        pointed: Option<&mut Masses<A::E>>,
    ) -> f64 {
        let Head { d, vocab: v, cap, forward, backward, .. } = self;
        let Work { block, losses, way: Some(Way::Stored { dz, packed }), .. } = work else {
            return self.loss_backward_recomputed(pass, dh, grads, work, h, targets, norm, s, objective);
        };
        let weight = backward.as_ref().expect(NO_BACKWARD);
        let (d, v, cap, cx) = (*d, *v, *cap, pass.cx);
        let (all, own, pointing) = Masses::rows(pointed, targets.len());
        let block = *block * cx.tile_rows();
        let mut nats = 0.0;
        for (first, targets) in targets.chunks(block).enumerate() {
            let rows = targets.len();
            let cells = first * block * d..(first * block + rows) * d;
            let (h, dh) = (&h[cells.clone()], &mut dh[cells]);
            let parts = &mut s.parts[..cx.tile_count(rows) * d];
            let masses = first * block * pointing..(first * block + rows) * pointing;
            let masses = (Rows(&mut all[masses.clone()], pointing), Rows(&mut own[masses], pointing));
            let buffers = (Rows(dh, d), Rows(&mut s.x, d), Rows(dz, v), Rows(losses, 1), Parts(parts, d), masses);
            cx.tiles(rows, buffers, |cx, r, (dh, x, dz, losses, part, (all, own)), local| {
                let n = r.len();
                let h = &h[r.start * d..r.end * d];
                norm.forward(cx, x, h, pass.params);
                if pass.int8 {
                    round(cx, x, d);
                }
                let at = local.take(n * v.div_ceil(CHUNK));
                let kept = objective.smoothing > 0.0;
                let told = (&targets[r], (pointing > 0).then_some([all, own]));
                let mut softmax = logits(cx, forward, (d, v), (cap, kept), x, told, local, |softmax, z, columns| {
                    let at = &mut at[columns.start / CHUNK * n..][..n];
                    softmax.chunk(cx, Some((&mut dz[columns.start..], v, at)), z, columns.len(), columns.start);
                });
                let smoothed = |row| -softmax.smoothed(row, objective.smoothing, v);
                losses.iter_mut().enumerate().for_each(|(row, loss)| *loss = smoothed(row));
                softmax.finish(cx, dz, v, at, (v, CHUNK), objective);
                if pointing > 0 {
                    softmax.pass_on(objective);
                }
                let dx = local.take(n * d);
                matmul(cx, dx, dz, v, weight, n, false);
                part.fill(A::E::ZERO);
                norm.backward(cx, dh, part, dx, h, pass.params, false);
            });
            nats += losses[..rows].iter().sum::<f64>();
            norm.add_parts(grads, &Tiles { sums: &s.parts[..cx.tile_count(rows) * d], width: d });
            matmul_tn(cx, &mut grads[self.table.clone()], packed, dz, v, &s.x, d, (v, d, rows), true);
        }
        nats
    }

    /// The same, with recomputed logits.
    fn loss_backward_recomputed(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        work: &mut Work<A>,
        h: &[A::E],
        targets: &[Token],
        norm: &Norm,
        s: &mut Scratch<A>,
        objective: Objective,
    ) -> f64 {
        let Head { d, vocab: v, cap, forward, backward, .. } = self;
        let weight = backward.as_ref().expect(NO_BACKWARD);
        let Work { losses, way: Some(Way::Recomputed { log_sums, dx, packed }), .. } = work else {
            unreachable!("room was made when the weights were prepared")
        };
        let (d, v, cap, rows, cx) = (*d, *v, *cap, targets.len(), pass.cx);
        let sums = (Rows(&mut s.x, d), Rows(losses, 1), Rows(log_sums, 1));
        cx.tiles_by(2 * cx.tile_rows(), rows, sums, |cx, r, (x, losses, log_sums), local| {
            norm.forward(cx, x, &h[r.start * d..r.end * d], pass.params);
            if pass.int8 {
                round(cx, x, d);
            }
            let cap = (cap, objective.smoothing > 0.0);
            let told = (&targets[r], None);
            let softmax = logits::<A>(cx, forward, (d, v), cap, x, told, local, |softmax, z, columns| {
                softmax.chunk::<A>(cx, None, z, columns.len(), columns.start);
            });
            for (row, (loss, log_sum)) in losses.iter_mut().zip(log_sums).enumerate() {
                *loss = -softmax.smoothed(row, objective.smoothing, v);
                *log_sum = A::E::from_f64(softmax.log_sum(row));
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
                    let z = &mut z[..r.len() * width];
                    local.within(|local| {
                        let codes = forward.round(cx, x, d, local);
                        forward.logits(cx, z, x, codes.as_ref(), d, columns.clone());
                    });
                    if let Some(cap) = cap {
                        softcap(cx, z, cap);
                    }
                    let (log_sums, targets) = (&log_sums[r.clone()], &targets[r.clone()]);
                    softmax_backward(cx, (dz, width), z, log_sums, targets, (width, first, v), cap, objective);
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
            norm.backward(cx, dh, part, sum, &h[cells], pass.params, false);
        });
        norm.add_parts(grads, &Tiles { sums: &s.parts[..cx.tile_count(rows) * d], width: d });
        losses[..rows].iter().sum()
    }

    /// The input of the head, `x: [rows, D]`, from the end of the residual stream.
    pub fn input(&self, pass: Pass<A::E>, x: &mut [A], h: &[A::E], norm: &Norm) {
        norm.forward(pass.cx, x, h, pass.params);
        if pass.int8 {
            round(pass.cx, x, self.d);
        }
    }

    /// Writes the logits of `x: [rows, D]` to `out: [rows, V]`.
    pub fn logits(&self, cx: &Exec, out: &mut [A::E], x: &[A]) {
        let Head { d, vocab: v, cap, forward, .. } = self;
        let rows = x.len() / d;
        cx.tiles(rows, (Rows(out, *v),), |cx, r, (z,), local| {
            let x = &x[r.start * d..r.end * d];
            let codes = forward.round(cx, x, *d, local);
            forward.logits(cx, z, x, codes.as_ref(), *d, 0..*v);
            if let Some(cap) = *cap {
                softcap(cx, z, cap);
            }
        });
    }

    /// Appends `ln p(target)` of each row of `x: [rows, D]`, the part `smoothing` of the target shared by all tokens.
    pub fn log_probs(
        &self,
        cx: &Exec,
        out: &mut Vec<f64>,
        work: &mut Work<A>,
        x: &[A],
        targets: &[Token],
        smoothing: f64,
        pointed: Option<&mut Masses<A::E>>,
    ) {
        let Head { d, vocab: v, cap, forward, .. } = self;
        let (d, v, cap, losses) = (*d, *v, *cap, &mut work.losses);
        let (all, own, pointing) = Masses::rows(pointed, targets.len());
        let buffers = (Rows(losses, 1), Rows(all, pointing), Rows(own, pointing));
        cx.tiles(targets.len(), buffers, |cx, r, (losses, all, own), local| {
            let x = &x[r.start * d..r.end * d];
            let cap = (cap, smoothing > 0.0);
            let told = (&targets[r], (pointing > 0).then_some([all, own]));
            let softmax = logits::<A>(cx, forward, (d, v), cap, x, told, local, |softmax, z, columns| {
                softmax.chunk::<A>(cx, None, z, columns.len(), columns.start);
            });
            losses.iter_mut().enumerate().for_each(|(row, loss)| *loss = softmax.smoothed(row, smoothing, v));
        });
        out.extend(&losses[..targets.len()]);
    }
}

/// The targets of a tile, and the masses of its pointers, where there are any: all, and at the target.
type Told<'a, E> = (&'a [Token], Option<[&'a mut [E]; 2]>);

/// Makes the logits of one tile, `x: [rows, d]`, [`CHUNK`] of `v` columns at a time, and hands each to `f(softmax, z, columns)`; their sum
/// is `kept` for label smoothing.
fn logits<'a, A: Store>(
    cx: &Exec,
    table: &Forward<A>,
    (d, v): (usize, usize),
    (cap, kept): (Option<A::E>, bool),
    x: &[A],
    (targets, pointed): Told<'a, A::E>,
    local: &'a Local,
    mut f: impl FnMut(&mut SoftmaxRows<'a, A::E>, &[A::E], Range<usize>),
) -> SoftmaxRows<'a, A::E> {
    let rows = targets.len();
    let (max, sum, own) = (local.take(rows), local.take(rows), local.take(rows));
    let total = kept.then(|| local.take::<f64>(rows));
    let mut softmax = SoftmaxRows { max, sum, own, targets, cap, total, pointed };
    softmax.start();
    let codes = table.round(cx, x, d, local);
    let z = local.take(rows * CHUNK);
    for first in (0..v).step_by(CHUNK) {
        let columns = first..v.min(first + CHUNK);
        let z = &mut z[..rows * columns.len()];
        table.logits(cx, z, x, codes.as_ref(), d, columns.clone());
        if let Some(cap) = cap {
            softcap(cx, z, cap);
        }
        f(&mut softmax, z, columns);
    }
    softmax
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::ops::NO_TARGET;
    use flashlm_kernels::span::whole;
    use flashlm_kernels::{Bf16, Isa, Span};

    use super::*;
    use crate::layer::config::{LayerConfig, Need};
    use crate::layer::scratch::WIDE;
    use crate::testing::{noisy, tiny, tokens};

    /// Soft cap, weight of the z-loss, label smoothing, rounded inputs, logits in int8.
    type Switches = (f64, f64, f64, bool, bool);
    const SWITCHES: [Switches; 4] = [
        (0.0, 0.0, 0.0, false, false),
        (1.5, 0.02, 0.0, true, false),
        (1.5, 0.02, 0.0, false, true),
        (0.0, 0.02, 0.2, false, false),
    ];

    /// Loss, gradients and `dh` by one of the two ways.
    fn run<A: Store>(
        recomputed: bool,
        threads: usize,
        (cap, z_loss, smoothing, int8, matmul8): Switches,
    ) -> (f64, Vec<f64>, Vec<f64>) {
        let cx = Exec::new(Isa::detect().unwrap(), threads);
        let (rows, vocab, d) = (600, 1500, 40);
        let mut layout = Layout::default();
        let mut head = Head::<A>::new(&HeadParams::new(&mut layout, vocab, d, cap, matmul8), true);
        let mut work = head.work(rows);
        head.make_way(&mut work, recomputed);
        let norm = Norm { scale: layout.add("norm".into(), &[d], Init::Ones, Group::Norm), part: 0..d, eps: 1e-6 };
        let config = LayerConfig { dim: d, ..tiny("conv").layers() };
        let mut s = Scratch::new(&config, Need::default(), [0; WIDE], rows, vocab);
        let values = |n, seed| noisy(n, seed).into_iter().map(A::E::from_f64).collect::<Vec<_>>();
        let (params, h) = (values(layout.len(), 1), values(rows * d, 2));
        let (mut dh, mut grads) = (values(rows * d, 3), vec![A::E::ZERO; layout.len()]);
        let mut targets = tokens(rows, vocab, 4);
        targets[7] = NO_TARGET;
        targets[rows - 3..].fill(NO_TARGET);
        head.prepare(&cx, &params, &mut s);
        let objective = Objective { scale: 0.01, z_loss, smoothing };
        let past = whole(1, rows);
        let span = &Span { batch: 1, len: rows, past: &past };
        let pass = Pass { cx: &cx, params: &params, int8, span };
        let nats =
            head.loss_backward(pass, &mut dh, &mut grads, &mut work, &h, &targets, &norm, &mut s, objective, None);
        for (row, dh) in dh.chunks(d).enumerate() {
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
            // int8 is not for f64.
            let double = |way| if switches.4 { (1.0, vec![1.0], vec![1.0]) } else { run::<f64>(way, 2, switches) };
            for (one, two, bound) in [
                (double(true), double(false), 1e-12),
                (run::<f32>(true, 2, switches), run::<f32>(false, 2, switches), 1e-6),
                (run::<Bf16>(true, 2, switches), run::<Bf16>(false, 2, switches), 5e-3),
            ] {
                assert!((one.0 - two.0).abs() <= 1e-6 * two.0, "loss {} and {}", one.0, two.0);
                assert!(off(&one.1, &two.1) <= bound, "dh off by {:e}", off(&one.1, &two.1));
                assert!(off(&one.2, &two.2) <= bound, "gradients off by {:e}", off(&one.2, &two.2));
            }
            for recomputed in [false, true] {
                assert_eq!(run::<Bf16>(recomputed, 1, switches), run::<Bf16>(recomputed, 3, switches));
            }
        }
    }
}
