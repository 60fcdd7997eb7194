//! The ops that are timed, with random operands at the sizes of v4-small: 2048 rows, `D` 192, `F` 512, `V` 10,000, `K` 8,
//! and 512 logits of a row at once. The same numbers are made in f32, bf16 and f64.

use flashlm_kernels::ops::{
    self, Act, AdamW, Objective, Packed, Quant, Scale, SoftmaxRows, Statistic, conv_gate_backward, conv_gate_forward,
    conv_taps_backward, embed_backward, embed_forward, glu_backward, glu_forward, matmul, matmul_tn, quantise,
    rmsnorm_backward, rmsnorm_forward, shortconv_in_backward, shortconv_in_forward, shortconv_out_backward,
    shortconv_out_forward, softcap, sum_squares,
};
use flashlm_kernels::profile::Work;
use flashlm_kernels::span::whole;
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Elem, Exec, Span, Store, Token};
use flashlm_model::rng::Rng;

use super::case::{Case, Output, Subject};

/// `B`, `T` and their product.
const B: usize = 8;
const T: usize = 256;
const ROWS: usize = B * T;
const D: usize = 192;
const F: usize = 512;
const V: usize = 10_000;
const K: usize = 8;
/// Columns of logits.
const CHUNK: usize = 512;
/// Rows of a weight gradient of the head.
const BLOCK: usize = 448;
/// Parameters of the whole model.
const PARAMETERS: usize = 4_364_736;

/// An op at its size.
#[derive(Clone, Copy)]
pub enum Op {
    /// `y[m,n] = x[m,k] W[n,k]^T`.
    Output(usize, usize, usize),
    /// `dx[m,n] = dy[m,k] W[k,n]`.
    Input(usize, usize, usize),
    /// `dW[m,n] += dy[k,m]^T x[k,n]`.
    Weight(usize, usize, usize),
    NormForward,
    NormBackward,
    GluForward,
    GluBackward,
    ConvForward,
    ConvGateBackward,
    ConvTapsBackward,
    ShortConvForward,
    ShortConvBackward,
    Softmax,
    Softcap,
    EmbedForward,
    EmbedBackward,
    Quantise,
    AdamW,
    Momentum,
    RowsNormalise,
    SumSquares,
}

/// All of them: the products of the GLU and of the head, then the rest.
pub const OPS: &[Op] = &[
    Op::Output(ROWS, F, D),
    Op::Input(ROWS, D, F),
    Op::Weight(F, D, ROWS),
    Op::Output(BLOCK, V, D),
    Op::Input(BLOCK, D, V),
    Op::Weight(V, D, BLOCK),
    Op::NormForward,
    Op::NormBackward,
    Op::GluForward,
    Op::GluBackward,
    Op::ConvForward,
    Op::ConvGateBackward,
    Op::ConvTapsBackward,
    Op::ShortConvForward,
    Op::ShortConvBackward,
    Op::Softmax,
    Op::Softcap,
    Op::EmbedForward,
    Op::EmbedBackward,
    Op::Quantise,
    Op::AdamW,
    Op::Momentum,
    Op::RowsNormalise,
    Op::SumSquares,
];

/// The op with operands for `cx`, on which it must then be called. Those that train in tiles of rows run in tiles here.
pub fn make<A: Store>(op: Op, cx: &Exec) -> Subject {
    let (kept, summed) = (size_of::<A>(), size_of::<A::E>());
    let tiles = cx.tile_count(ROWS);
    match op {
        Op::Output(m, n, k) => {
            let (x, w) = (random::<A>(m * k, 1), random(n * k, 2));
            let mut packed = Packed::new(k, n);
            packed.pack_transposed(cx, &w, k, n);
            let call = move |cx: &Exec, y: &mut Vec<A::E>| matmul(cx, y, &x, k, &packed, m, false);
            product("matmul y = x W'", (m, n, k), case(zeros::<A::E>(m * n), call, |y| vec![y.output()]))
        }
        Op::Input(m, n, k) => {
            let (dy, w) = (random::<A>(m * k, 1), random(k * n, 2));
            let mut packed = Packed::new(k, n);
            packed.pack(cx, &w, n, k, n);
            let call = move |cx: &Exec, dx: &mut Vec<A::E>| matmul(cx, dx, &dy, k, &packed, m, false);
            product("matmul dx = dy W", (m, n, k), case(zeros::<A::E>(m * n), call, |dx| vec![dx.output()]))
        }
        Op::Weight(m, n, k) => {
            let (dy, x) = (random::<A>(k * m, 1), random(k * n, 2));
            let mut scratch = Packed::new(k, n);
            let size = (m, n, k);
            let call = move |cx: &Exec, dw: &mut Vec<A::E>| matmul_tn(cx, dw, &mut scratch, &dy, m, &x, n, size, true);
            product("matmul dW += dy' x", size, case(zeros::<A::E>(m * n), call, |dw| vec![dw.output()]))
        }
        Op::NormForward => {
            let (x, scale) = (random::<A::E>(ROWS * D, 1), random(D, 2));
            let call = move |cx: &Exec, y: &mut Vec<A>| rmsnorm_forward(cx, y, &x, &scale, 1e-6, (ROWS, D));
            let case = case(zeros::<A>(ROWS * D), call, |y| vec![y.output()]);
            bytes("rmsnorm_forward", format!("{ROWS}x{D}"), ROWS * D * (summed + kept), case)
        }
        Op::NormBackward => {
            let (x, dy, scale) = (random::<A::E>(ROWS * D, 1), random::<A::E>(ROWS * D, 2), random(D, 3));
            let state = [zeros::<A::E>(ROWS * D), zeros(tiles * D), zeros(D)];
            let call = move |cx: &Exec, [dx, parts, dscale]: &mut [Vec<A::E>; 3]| {
                cx.tiles(ROWS, (Rows(dx, D), Parts(parts, D)), |cx, r, (dx, part), _| {
                    part.fill(A::E::ZERO);
                    let cells = r.start * D..r.end * D;
                    let size = (r.len(), D);
                    rmsnorm_backward(cx, dx, part, &dy[cells.clone()], &x[cells], &scale, 1e-6, size, false);
                });
                dscale.fill(A::E::ZERO);
                ops::add_parts(dscale, parts, D, 0);
            };
            let case = case(state, call, |[dx, _, dscale]| vec![dx.output(), dscale.output()]);
            bytes("rmsnorm_backward", format!("{ROWS}x{D}"), 3 * ROWS * D * summed, case)
        }
        Op::GluForward => {
            let (g, u) = (random::<A::E>(ROWS * F, 1), random::<A::E>(ROWS * F, 2));
            let state = [zeros::<A>(ROWS * F), zeros(ROWS * F), zeros(ROWS * F)];
            let call = move |cx: &Exec, [y, sg, su]: &mut [Vec<A>; 3]| {
                cx.tiles(ROWS, (Rows(y, F), Rows(sg, F), Rows(su, F)), |cx, r, (y, sg, su), _| {
                    let cells = r.start * F..r.end * F;
                    glu_forward(cx, y, sg, su, &g[cells.clone()], &u[cells], Act::Silu);
                });
            };
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("glu_forward", format!("{ROWS}x{F}"), ROWS * F * (2 * summed + 3 * kept), case)
        }
        Op::GluBackward => {
            let (dy, g, u) = (random::<A::E>(ROWS * F, 1), random::<A>(ROWS * F, 2), random::<A>(ROWS * F, 3));
            let state = [zeros::<A>(ROWS * F), zeros(ROWS * F), zeros(ROWS * F)];
            let call = move |cx: &Exec, [dg, du, y]: &mut [Vec<A>; 3]| {
                cx.tiles(ROWS, (Rows(dg, F), Rows(du, F), Rows(y, F)), |cx, r, (dg, du, y), _| {
                    let cells = r.start * F..r.end * F;
                    let (dy, g, u) = (&dy[cells.clone()], &g[cells.clone()], &u[cells]);
                    glu_backward(cx, dg, du, y, dy, g, u, Act::Silu);
                });
            };
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("glu_backward", format!("{ROWS}x{F}"), ROWS * F * (summed + 5 * kept), case)
        }
        Op::ConvForward => {
            let (u, w, past) = (random::<A>(ROWS * 2 * D, 1), random(K * D, 2), whole(B, T));
            let call = move |cx: &Exec, y: &mut Vec<A>| {
                let span = &Span { batch: B, len: T, past: &past };
                cx.tiles(ROWS, (Rows(y, D),), |cx, r, (y,), _| {
                    conv_gate_forward(cx, y, &u, None, &w, (r, span, (D, K)));
                });
            };
            let case = case(zeros::<A>(ROWS * D), call, |y| vec![y.output()]);
            bytes("conv_gate_forward", format!("{B}x{T}x{D} K {K}"), 3 * ROWS * D * kept, case)
        }
        Op::ConvGateBackward => {
            let (dy, y, u) = (random::<A::E>(ROWS * D, 1), random::<A>(ROWS * D, 3), random::<A>(ROWS * 2 * D, 2));
            let state = [zeros::<A>(ROWS * 2 * D), zeros(ROWS * D)];
            let call = move |cx: &Exec, [du, dc]: &mut [Vec<A>; 2]| {
                cx.tiles(ROWS, (Rows(du, 2 * D), Rows(dc, D)), |cx, r, (du, dc), _| {
                    let cells = r.start * D..r.end * D;
                    conv_gate_backward(cx, du, dc, &dy[cells.clone()], &y[cells], &u, (r, D));
                });
            };
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("conv_gate_backward", format!("{ROWS}x{D}"), ROWS * D * (summed + 5 * kept), case)
        }
        Op::ConvTapsBackward => {
            let (dc, u, w) = (random::<A>(ROWS * D, 1), random::<A>(ROWS * 2 * D, 2), random(K * D, 3));
            let past = whole(B, T);
            let state = (zeros::<A>(ROWS * 2 * D), zeros::<A::E>(tiles * K * D), zeros::<A::E>(K * D));
            let call = move |cx: &Exec, (du, parts, dw): &mut (Vec<A>, Vec<A::E>, Vec<A::E>)| {
                let span = &Span { batch: B, len: T, past: &past };
                cx.tiles(ROWS, (Rows(du, 2 * D), Parts(parts, K * D)), |cx, r, (du, part), _| {
                    part.fill(A::E::ZERO);
                    let (du, v) = ((du, 2 * D, D), (&u[..], 2 * D, D));
                    conv_taps_backward(cx, du, part, &dc, v, &w, (r, span, (D, K)));
                });
                dw.fill(A::E::ZERO);
                ops::add_parts(dw, parts, K * D, 0);
            };
            let case = case(state, call, |(du, _, dw)| vec![du.output(), dw.output()]);
            bytes("conv_taps_backward", format!("{B}x{T}x{D} K {K}"), 3 * ROWS * D * kept, case)
        }
        Op::ShortConvForward => {
            let (z, s) = (random::<A::E>(ROWS * 3 * D, 1), random::<A>(ROWS * D, 2));
            let state = [zeros::<A>(ROWS * D), zeros(ROWS * D), zeros(ROWS * 3 * D)];
            let call = move |cx: &Exec, [y, v, u]: &mut [Vec<A>; 3]| {
                cx.tiles(ROWS, (Rows(y, D), Rows(v, D), Rows(u, 3 * D)), |cx, r, (y, v, u), _| {
                    shortconv_in_forward(cx, v, u, &z[r.start * 3 * D..r.end * 3 * D], D);
                    shortconv_out_forward(cx, y, &s[r.start * D..r.end * D], u, D);
                });
            };
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("shortconv_forward", format!("{ROWS}x{D}"), ROWS * D * (3 * summed + 7 * kept), case)
        }
        Op::ShortConvBackward => {
            let (dy, s, dv) = (random::<A::E>(ROWS * D, 1), random::<A>(ROWS * D, 2), random::<A>(ROWS * D, 3));
            let u = random::<A>(ROWS * 3 * D, 4);
            let state = [zeros::<A>(ROWS * 3 * D), zeros(ROWS * D)];
            let call = move |cx: &Exec, [du, ds]: &mut [Vec<A>; 2]| {
                cx.tiles(ROWS, (Rows(du, 3 * D), Rows(ds, D)), |cx, r, (du, ds), _| {
                    let (cells, u) = (r.start * D..r.end * D, &u[r.start * 3 * D..r.end * 3 * D]);
                    shortconv_out_backward(cx, du, ds, &dy[cells.clone()], &s[cells.clone()], u, D);
                    shortconv_in_backward(cx, du, &dv[cells], u, D);
                });
            };
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("shortconv_backward", format!("{ROWS}x{D}"), ROWS * D * (summed + 9 * kept), case)
        }
        Op::Softmax => {
            let z = random::<A::E>(ROWS * CHUNK, 1);
            let targets: Vec<Token> = (0..ROWS).map(|row| (row * 37 % CHUNK) as Token).collect();
            let state = (zeros::<A>(ROWS * CHUNK), zeros::<f64>(ROWS));
            let call = move |cx: &Exec, (dz, losses): &mut (Vec<A>, Vec<f64>)| {
                cx.tiles(ROWS, (Rows(dz, CHUNK), Rows(losses, 1)), |cx, r, (dz, losses), local| {
                    let n = r.len();
                    let (max, sum, own, at) = (local.take(n), local.take(n), local.take(n), local.take(n));
                    let z = &z[r.start * CHUNK..r.end * CHUNK];
                    let mut softmax =
                        SoftmaxRows { max, sum, own, targets: &targets[r], cap: None, total: None, pointed: None };
                    softmax.start();
                    softmax.chunk(cx, Some((&mut *dz, CHUNK, &mut *at)), z, CHUNK, 0);
                    softmax.finish(
                        cx,
                        dz,
                        CHUNK,
                        at,
                        (CHUNK, CHUNK),
                        Objective { scale: 1.0, z_loss: 0.0, smoothing: 0.0 },
                    );
                    losses.iter_mut().enumerate().for_each(|(row, loss)| *loss = softmax.log_prob(row));
                });
            };
            let case = case(state, call, |(dz, losses)| vec![dz.output(), losses.output()]);
            bytes("softmax", format!("{ROWS}x{CHUNK}"), ROWS * CHUNK * (summed + 3 * kept), case)
        }
        Op::Softcap => {
            let z = random::<A::E>(ROWS * CHUNK, 1);
            let call = move |cx: &Exec, y: &mut Vec<A::E>| {
                y.copy_from_slice(&z);
                softcap(cx, y, A::E::from_f64(15.0));
            };
            let case = case(zeros::<A::E>(ROWS * CHUNK), call, |y| vec![y.output()]);
            bytes("softcap", format!("{ROWS}x{CHUNK}"), 4 * ROWS * CHUNK * summed, case)
        }
        Op::EmbedForward => {
            let (table, tokens) = (random::<A::E>(V * D, 1), tokens());
            let call = move |cx: &Exec, y: &mut Vec<A::E>| embed_forward(cx, y, &tokens, &table, D);
            let case = case(zeros::<A::E>(ROWS * D), call, |y| vec![y.output()]);
            bytes("embed_forward", format!("{ROWS}x{D}"), 2 * ROWS * D * summed, case)
        }
        Op::EmbedBackward => {
            let (dy, tokens) = (random::<A::E>(ROWS * D, 1), tokens());
            let call = move |cx: &Exec, dtable: &mut Vec<A::E>| embed_backward(cx, dtable, &dy, &tokens, D);
            let case = case(zeros::<A::E>(V * D), call, |dtable| vec![dtable.output()]);
            bytes("embed_backward", format!("{ROWS}x{D}"), 3 * ROWS * D * summed, case)
        }
        Op::Quantise => {
            let mut w = random::<A::E>(F * D, 1);
            // Alpha is near 1/2, so the edge between 0 and 1 is near 1/4: no weight there, as no rounding error may decide.
            let near = |w: A::E| (w.to_f64().abs() - 0.25).abs() < 0.02;
            w.iter_mut().filter(|w| near(**w)).for_each(|w| *w = *w + *w);
            let quant = Quant { scale: Scale::Tensor, stat: Statistic::Mean };
            let call = move |cx: &Exec, wq: &mut Vec<A>| quantise(cx, wq, &mut [], &w, (F, D), quant);
            let case = case(zeros::<A>(F * D), call, |wq| vec![wq.output()]);
            bytes("quantise", format!("{F}x{D}"), F * D * (summed + kept), case)
        }
        Op::AdamW => {
            let g = random::<A::E>(PARAMETERS, 1);
            let s =
                AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, step: 1, grad_scale: 0.5 };
            let state = [random::<A::E>(PARAMETERS, 2), zeros(PARAMETERS), zeros(PARAMETERS)];
            let call = move |cx: &Exec, [p, m, v]: &mut [Vec<A::E>; 3]| ops::adamw_step(cx, p, m, v, &g, s);
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("adamw", format!("{PARAMETERS}"), 7 * PARAMETERS * summed, case)
        }
        Op::Momentum => {
            let g = random::<A::E>(PARAMETERS, 1);
            let s = ops::Momentum { mu: 0.95, blend: 0.95, grad_scale: 0.5 };
            let state = [zeros(PARAMETERS), random::<A::E>(PARAMETERS, 2)];
            let call = move |cx: &Exec, [u, m]: &mut [Vec<A::E>; 2]| ops::momentum_step(cx, u, m, &g, s);
            let case = case(state, call, |all| all.iter().map(|v| v.output()).collect());
            bytes("momentum", format!("{PARAMETERS}"), 4 * PARAMETERS * summed, case)
        }
        Op::RowsNormalise => {
            let state = (random::<A::E>(F * D, 1), random::<A::E>(F, 2).iter().map(|v| v.abs()).collect());
            let call = |cx: &Exec, (x, v): &mut (Vec<A::E>, Vec<A::E>)| ops::rows_normalise(cx, x, v, 0.999, 1e-8);
            let case = case(state, call, |(x, v)| vec![x.output(), v.output()]);
            bytes("rows_normalise", format!("{F}x{D}"), 3 * F * D * summed, case)
        }
        Op::SumSquares => {
            let x = random::<A::E>(PARAMETERS, 1);
            let call = move |cx: &Exec, sum: &mut Vec<f64>| sum[0] = sum_squares(cx, &x);
            let case = case(zeros::<f64>(1), call, |sum| vec![sum.output()]);
            bytes("sum_squares", format!("{PARAMETERS}"), PARAMETERS * summed, case)
        }
    }
}

fn product(name: &'static str, (m, n, k): (usize, usize, usize), case: Box<dyn Case>) -> Subject {
    Subject { name, size: format!("{m}x{n}x{k}"), work: Work::Flops(2.0 * (m * n * k) as f64), case }
}

/// `bytes` are read or written.
fn bytes(name: &'static str, size: String, bytes: usize, case: Box<dyn Case>) -> Subject {
    Subject { name, size, work: Work::Bytes(bytes as f64), case }
}

/// What is written, as it is before the first call, the call, and which parts of it count.
struct Prepared<T, F, O> {
    state: T,
    call: F,
    outputs: O,
}

impl<T, F: FnMut(&Exec, &mut T), O: Fn(&T) -> Vec<Output>> Case for Prepared<T, F, O> {
    fn call(&mut self, cx: &Exec) {
        (self.call)(cx, &mut self.state);
    }

    fn outputs(&self) -> Vec<Output> {
        (self.outputs)(&self.state)
    }
}

pub(super) fn case<T: 'static>(
    state: T,
    call: impl FnMut(&Exec, &mut T) + 'static,
    outputs: impl Fn(&T) -> Vec<Output> + 'static,
) -> Box<dyn Case> {
    Box::new(Prepared { state, call, outputs })
}

/// Numbers widened to f64, with their precision.
pub(super) trait AsOutput {
    fn output(&self) -> Output;
}

impl<A: Store> AsOutput for Vec<A> {
    fn output(&self) -> Output {
        Output { values: self.iter().map(|x| x.widen().to_f64()).collect(), kept: A::NAME }
    }
}

fn zeros<A: Store>(n: usize) -> Vec<A> {
    vec![A::ZERO; n]
}

fn tokens() -> Vec<Token> {
    (0..ROWS).map(|row| (row * 37 % V) as Token).collect()
}

/// In [-1, 1), the same numbers in every type: multiples of 1/128, which bf16 holds exactly.
fn random<A: Store>(n: usize, seed: u64) -> Vec<A> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| A::narrow(A::E::from_f64(rng.below(256) as f64 / 128.0 - 1.0))).collect()
}
