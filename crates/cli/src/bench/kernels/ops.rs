//! The ops that are timed, with random operands at the sizes of v4-small: 2048 rows, `D` 192, `F` 512, `V` 10,000, `K` 8,
//! and the 256 rows of logits that exist at once. The same numbers are made in f32 and in f64.

use flashlm_kernels::ops::{
    self, AdamW, PARTIALS, Packed, Quant, Scale, Stat, conv_gate_backward, conv_gate_forward, cross_entropy,
    glu_backward, glu_forward, matmul, matmul_tn, quantise, rmsnorm_backward, rmsnorm_forward, sum_squares,
};
use flashlm_kernels::{Elem, Exec, Token};
use flashlm_model::rng::Rng;

use super::{Case, Subject};

/// `B`, `T` and their product.
const B: usize = 8;
const T: usize = 256;
const ROWS: usize = B * T;
const D: usize = 192;
const F: usize = 512;
const V: usize = 10_000;
const K: usize = 8;
/// Rows of logits.
const TILE: usize = 256;
/// Parameters of the whole model.
const PARAMETERS: usize = 4_364_736;

/// What one call does.
#[derive(Clone, Copy)]
pub enum Work {
    /// Floating-point operations.
    Flops(f64),
    /// Bytes of all operands.
    Bytes(f64),
}

impl Work {
    /// The rate of a call of this many seconds, and its unit.
    pub fn rate(self, seconds: f64) -> (f64, &'static str) {
        match self {
            Work::Flops(n) => (n / seconds / 1e9, "GFLOP/s"),
            Work::Bytes(n) => (n / seconds / 1e9, "GB/s"),
        }
    }
}

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
    ConvBackward,
    CrossEntropy,
    Quantise,
    AdamW,
    SumSquares,
}

/// All of them: the products of the GLU and of the head, then the rest.
pub const OPS: &[Op] = &[
    Op::Output(ROWS, F, D),
    Op::Input(ROWS, D, F),
    Op::Weight(F, D, ROWS),
    Op::Output(TILE, V, D),
    Op::Input(TILE, D, V),
    Op::Weight(V, D, TILE),
    Op::NormForward,
    Op::NormBackward,
    Op::GluForward,
    Op::GluBackward,
    Op::ConvForward,
    Op::ConvBackward,
    Op::CrossEntropy,
    Op::Quantise,
    Op::AdamW,
    Op::SumSquares,
];

/// The op with operands for `cx`, on which it must then be called.
pub fn make<E: Elem>(op: Op, cx: &Exec) -> Subject<E> {
    match op {
        Op::Output(m, n, k) => {
            let (x, w) = (random::<E>(m * k, 1), random(n * k, 2));
            let mut packed = Packed::new(k, n);
            packed.pack_transposed(cx, &w, k, n);
            let case = prepared([zeros(m * n)], move |cx, [y]| matmul(cx, y, &x, k, &packed, m, false));
            product("matmul y = x W'", (m, n, k), case)
        }
        Op::Input(m, n, k) => {
            let (dy, w) = (random::<E>(m * k, 1), random(k * n, 2));
            let mut packed = Packed::new(k, n);
            packed.pack(cx, &w, n, k, n);
            let case = prepared([zeros(m * n)], move |cx, [dx]| matmul(cx, dx, &dy, k, &packed, m, false));
            product("matmul dx = dy W", (m, n, k), case)
        }
        Op::Weight(m, n, k) => {
            let (dy, x) = (random::<E>(k * m, 1), random(k * n, 2));
            let mut scratch = Packed::new(k, n);
            let size = (m, n, k);
            let call = move |cx: &Exec, [dw]: [&mut [E]; 1]| matmul_tn(cx, dw, &mut scratch, &dy, m, &x, n, size, true);
            product("matmul dW += dy' x", size, prepared([zeros(m * n)], call))
        }
        Op::NormForward => {
            let (x, scale) = (random::<E>(ROWS * D, 1), random(D, 2));
            let outputs = [zeros(ROWS * D), zeros(ROWS)];
            let call =
                move |cx: &Exec, [y, rstd]: [&mut [E]; 2]| rmsnorm_forward(cx, y, rstd, &x, &scale, 1e-6, (ROWS, D));
            bytes("rmsnorm_forward", format!("{ROWS}x{D}"), 2 * ROWS * D, prepared(outputs, call))
        }
        Op::NormBackward => {
            let (x, dy, scale) = (random::<E>(ROWS * D, 1), random(ROWS * D, 2), random(D, 3));
            let (mut y, mut rstd, mut partials) = (zeros(ROWS * D), zeros(ROWS), zeros(PARTIALS * D));
            rmsnorm_forward(cx, &mut y, &mut rstd, &x, &scale, 1e-6, (ROWS, D));
            let case = prepared([zeros(ROWS * D), zeros(D)], move |cx, [dx, dscale]| {
                rmsnorm_backward(cx, dx, dscale, &mut partials, &dy, &rstd, &x, &scale, (ROWS, D), false)
            });
            bytes("rmsnorm_backward", format!("{ROWS}x{D}"), 3 * ROWS * D, case)
        }
        Op::GluForward => {
            let (g, u) = (random::<E>(ROWS * F, 1), random(ROWS * F, 2));
            let case = prepared([zeros(ROWS * F)], move |cx, [y]| glu_forward(cx, y, &g, &u));
            bytes("glu_forward", format!("{ROWS}x{F}"), 3 * ROWS * F, case)
        }
        Op::GluBackward => {
            let (dy, g, u) = (random::<E>(ROWS * F, 1), random(ROWS * F, 2), random(ROWS * F, 3));
            let outputs = [zeros(ROWS * F), zeros(ROWS * F)];
            let case = prepared(outputs, move |cx, [dg, du]| glu_backward(cx, dg, du, &dy, &g, &u));
            bytes("glu_backward", format!("{ROWS}x{F}"), 5 * ROWS * F, case)
        }
        Op::ConvForward => {
            let (u, w) = (random::<E>(ROWS * 2 * D, 1), random(K * D, 2));
            let case = prepared([zeros(ROWS * D)], move |cx, [y]| conv_gate_forward(cx, y, &u, None, &w, (B, T, D, K)));
            bytes("conv_gate_forward", format!("{B}x{T}x{D} K {K}"), 3 * ROWS * D, case)
        }
        Op::ConvBackward => {
            let (dy, u, w) = (random::<E>(ROWS * D, 1), random(ROWS * 2 * D, 2), random(K * D, 3));
            let (mut dc, mut partials) = (zeros(ROWS * D), zeros(PARTIALS * K * D));
            let case = prepared([zeros(ROWS * 2 * D), zeros(K * D)], move |cx, [du, dw]| {
                conv_gate_backward(cx, du, dw, &mut dc, &mut partials, &dy, &u, &w, (B, T, D, K))
            });
            bytes("conv_gate_backward", format!("{B}x{T}x{D} K {K}"), 5 * ROWS * D, case)
        }
        Op::CrossEntropy => {
            let targets: Vec<Token> = (0..TILE).map(|row| (row * 37 % V) as Token).collect();
            // Called again it finds gradients in place of logits, which take as long.
            let outputs = [zeros(TILE), random::<E>(TILE * V, 1)];
            let case = prepared(outputs, move |cx, [loss, z]| cross_entropy(cx, loss, z, &targets, V, E::ONE));
            bytes("cross_entropy", format!("{TILE}x{V}"), 2 * TILE * V, case)
        }
        Op::Quantise => {
            let mut w = random::<E>(F * D, 1);
            // Alpha is near 1/2, so the edge between 0 and 1 is near 1/4: no weight there, as no rounding error may decide.
            let near = |w: E| (w.to_f64().abs() - 0.25).abs() < 0.02;
            w.iter_mut().filter(|w| near(**w)).for_each(|w| *w = *w + *w);
            let quant = Quant { scale: Scale::Tensor, stat: Stat::Mean };
            let case = prepared([zeros(F * D)], move |cx, [wq]| quantise(cx, wq, &mut [], &w, (F, D), quant));
            bytes("quantise", format!("{F}x{D}"), 2 * F * D, case)
        }
        Op::AdamW => {
            let g = random::<E>(PARAMETERS, 1);
            let s =
                AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, step: 1, grad_scale: 0.5 };
            let outputs = [random(PARAMETERS, 2), zeros(PARAMETERS), zeros(PARAMETERS)];
            let case = prepared(outputs, move |cx, [p, m, v]| ops::adamw_step(cx, p, m, v, &g, s));
            bytes("adamw", format!("{PARAMETERS}"), 7 * PARAMETERS, case)
        }
        Op::SumSquares => {
            let x = random::<E>(PARAMETERS, 1);
            let case = prepared([zeros(1)], move |cx, [sum]| sum[0] = E::from_f64(sum_squares(cx, &x)));
            bytes("sum_squares", format!("{PARAMETERS}"), PARAMETERS, case)
        }
    }
}

fn product<E>(name: &'static str, (m, n, k): (usize, usize, usize), case: Box<dyn Case<E>>) -> Subject<E> {
    Subject { name, size: format!("{m}x{n}x{k}"), work: Work::Flops(2.0 * (m * n * k) as f64), case }
}

/// `elements` of f32 are read or written.
fn bytes<E>(name: &'static str, size: String, elements: usize, case: Box<dyn Case<E>>) -> Subject<E> {
    Subject { name, size, work: Work::Bytes(4.0 * elements as f64), case }
}

/// Outputs, as they are before the first call, and the call.
struct Prepared<E, F, const N: usize> {
    outputs: [Vec<E>; N],
    call: F,
}

impl<E, F: FnMut(&Exec, [&mut [E]; N]), const N: usize> Case<E> for Prepared<E, F, N> {
    fn call(&mut self, cx: &Exec) {
        (self.call)(cx, self.outputs.each_mut().map(Vec::as_mut_slice));
    }

    fn outputs(&self) -> Vec<&[E]> {
        self.outputs.iter().map(Vec::as_slice).collect()
    }
}

pub(super) fn prepared<E: 'static, const N: usize>(
    outputs: [Vec<E>; N],
    call: impl FnMut(&Exec, [&mut [E]; N]) + 'static,
) -> Box<dyn Case<E>> {
    Box::new(Prepared { outputs, call })
}

fn zeros<E: Elem>(n: usize) -> Vec<E> {
    vec![E::ZERO; n]
}

/// Uniform in [-1, 1), the same f32 numbers in either type.
fn random<E: Elem>(n: usize, seed: u64) -> Vec<E> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| E::from_f64(f64::from((2.0 * rng.uniform() - 1.0) as f32))).collect()
}
