//! The gated delta rule of one head, token by token ([`crate::ops::delta_forward`] has the formulas), and its gates:
//! `softplus(x) = max(x, 0) + ln(1 + exp(-|x|))`.
//!
//! The state is `[dk, dv']` with `dv' =` [`exact_delta_width`]`(dv)`: whole lanes, what fills them up stays zero.

use super::exp;
use crate::exec::Exec;
use crate::ops::delta::Rule;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};
use crate::size::{area, end, strided};

/// Elements of a row of the state.
pub fn exact_delta_width(dv: usize) -> usize {
    dv.next_multiple_of(16)
}

/// Rows of one sequence: queries, keys and values of one head among the columns of `x`.
#[derive(Clone, Copy)]
pub struct DeltaRows<'a> {
    /// `[n, ld]`.
    pub x: &'a [f32],
    /// Elements of a row.
    pub ld: usize,
    /// The first columns of query, key and value.
    pub at: [usize; 3],
    /// Elements of a query and of a key.
    pub dk: usize,
    /// `[n]`: rows of its document before each.
    pub past: &'a [u32],
}

/// `o: [n, dv]` and the state after the rows in `s`; `gates` are `exp(g)` and `beta` of each, `[n]`.
pub fn exact_delta(
    cx: &Exec,
    o: &mut [f32],
    s: &mut [f32],
    from: DeltaRows,
    (decay, beta): (&[f32], &[f32]),
    rule: Rule,
) {
    let DeltaRows { x, ld, at, dk, past } = from;
    let n = past.len();
    let dv = o.len() / n.max(1);
    assert!(dv > 0 && o.len() == n * dv && decay.len() == n && beta.len() == n);
    assert!(s.len() == area([dk, exact_delta_width(dv)]));
    for (at, width) in at.into_iter().zip([dk, dk, dv]) {
        assert!(x.len() >= strided(n, ld, end(at, width)));
    }
    let _time = time(cx, "exact_delta", (dk, dv), Work::Flops((7 * n * s.len()) as f64));
    cx.op(Steps { o, s, from, decay, beta, canonical: rule == Rule::Canonical, dv });
}

struct Steps<'a> {
    o: &'a mut [f32],
    s: &'a mut [f32],
    from: DeltaRows<'a>,
    decay: &'a [f32],
    beta: &'a [f32],
    canonical: bool,
    dv: usize,
}

impl Op<f32> for Steps<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(mut self) {
        let (mut i, width) = (0, exact_delta_width(self.dv));
        while i < width {
            // SAFETY: the machine supports `S`, and a row of the state has so many vectors more.
            let vectors = unsafe {
                match (width - i) / S::LANES {
                    4.. => self.columns::<S, 4>(i),
                    2.. => self.columns::<S, 2>(i),
                    _ => self.columns::<S, 1>(i),
                }
            };
            i += vectors * S::LANES;
        }
    }
}

impl Steps<'_> {
    /// All rows, for `N` vectors of the state from `i` on. Returns `N`.
    ///
    /// # Safety
    /// The machine supports `S`; there are so many vectors.
    #[inline(always)]
    unsafe fn columns<S: Simd<E = f32>, const N: usize>(&mut self, i: usize) -> usize {
        let Steps { ref mut o, ref mut s, from: DeltaRows { x, ld, at, dk, past }, decay, beta, canonical, dv } = *self;
        let width = exact_delta_width(dv);
        // SAFETY: the caller's promise; `s` is `[dk, width]` with whole vectors, and `x` and `o` have these rows and columns.
        unsafe {
            let s = s.as_mut_ptr().add(i);
            for t in 0..past.len() {
                let row = x.as_ptr().add(t * ld);
                let (q, k) = (row.add(at[0]), row.add(at[1]));
                let (alpha, beta) = (S::splat(decay[t]), S::splat(beta[t]));
                if past[t] == 0 {
                    for r in 0..dk {
                        for j in 0..N {
                            S::store(s.add(r * width + j * S::LANES), S::splat(0.0));
                        }
                    }
                }
                let mut held = [S::splat(0.0); N];
                for r in 0..dk {
                    let k = S::splat(*k.add(r));
                    for (j, held) in held.iter_mut().enumerate() {
                        *held = S::add(*held, S::mul(S::load(s.add(r * width + j * S::LANES)), k));
                    }
                }
                let mut u = [S::splat(0.0); N];
                for (j, u) in u.iter_mut().enumerate() {
                    let column = i + j * S::LANES;
                    let v = S::get(row.wrapping_add(at[2] + column), S::LANES.min(dv.saturating_sub(column)));
                    let held = if canonical { S::mul(alpha, held[j]) } else { held[j] };
                    *u = S::mul(beta, S::sub(v, held));
                }
                let mut out = [S::splat(0.0); N];
                for r in 0..dk {
                    let (k, q) = (S::splat(*k.add(r)), S::splat(*q.add(r)));
                    for (j, out) in out.iter_mut().enumerate() {
                        let s = s.add(r * width + j * S::LANES);
                        let new = S::add(S::mul(alpha, S::load(s)), S::mul(k, u[j]));
                        S::store(s, new);
                        *out = S::add(*out, S::mul(new, q));
                    }
                }
                for (j, out) in out.iter().enumerate() {
                    let column = i + j * S::LANES;
                    let lanes = S::LANES.min(dv.saturating_sub(column));
                    S::put(o.as_mut_ptr().wrapping_add(t * dv + column), *out, lanes);
                }
            }
        }
        N
    }
}

/// `exp(x)`, of a relative error below 2e-7; the argument is clamped to [-87.33, 88.37].
pub fn exact_exp(x: f32) -> f32 {
    exp(x)
}

/// `softplus(x)`, to a relative error of some 3e-7: `ln(1 + e) = 2 atanh(e / (2 + e))` by its series.
pub fn exact_softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    let z = e / (2.0 + e);
    let z2 = z * z;
    let mut series = 1.0 / 17.0;
    for odd in [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * z2 + 1.0 / odd;
    }
    (if x < 0.0 { 0.0 } else { x }) + 2.0 * z * series
}

/// `1 / (1 + exp(-x))`.
pub fn exact_sigmoid(x: f32) -> f32 {
    super::sigmoid(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::delta_steps;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_the_rule_in_f64_and_has_the_same_bits_everywhere() {
        for (dk, dv) in [(1, 1), (7, 16), (36, 72), (24, 50)] {
            let (n, width) = (19, exact_delta_width(dv));
            let narrow = |seed, len, by: f32| -> Vec<f32> { random::<f32>(len, seed).iter().map(|x| x * by).collect() };
            let by = 1.0 / (dk as f32).sqrt();
            let (q, k, v) = (narrow(1, n * dk, by), narrow(2, n * dk, by), narrow(3, n * dv, 1.0));
            let (g, beta) = (narrow(4, n, 1.0), narrow(5, n, 1.0));
            let (g, beta): (Vec<f32>, Vec<f32>) =
                (g.iter().map(|g| -g.abs()).collect(), beta.iter().map(|b| b.abs()).collect());
            for rule in [Rule::Canonical, Rule::Undecayed] {
                let decay: Vec<f32> = g.iter().map(|&g| exact_exp(g)).collect();
                // A row: two columns of others, then query, key and value.
                let ld = 2 * dk + dv + 2;
                let mut x = vec![f32::NAN; n * ld];
                for (t, x) in x.chunks_exact_mut(ld).enumerate() {
                    x[2..2 + dk].copy_from_slice(&q[t * dk..(t + 1) * dk]);
                    x[2 + dk..2 + 2 * dk].copy_from_slice(&k[t * dk..(t + 1) * dk]);
                    x[2 + 2 * dk..].copy_from_slice(&v[t * dv..(t + 1) * dv]);
                }
                let past: Vec<u32> = (0..n as u32).collect();
                let run = |cx: &Exec, piece: usize| {
                    // What is there at the start of a document does not count.
                    let (mut o, mut s) = (vec![f32::NAN; n * dv], vec![7.0; dk * width]);
                    for from in (0..n).step_by(piece) {
                        let own = from..n.min(from + piece);
                        let at = [2, 2 + dk, 2 + 2 * dk];
                        let rows = DeltaRows { x: &x[from * ld..], ld, at, dk, past: &past[own.clone()] };
                        let gates = (&decay[own.clone()], &beta[own.clone()]);
                        exact_delta(cx, &mut o[own.start * dv..own.end * dv], &mut s, rows, gates, rule);
                    }
                    (o, s)
                };
                let scalar = Exec::new(crate::Isa::SCALAR, 1);
                let first = run(&scalar, 1);
                let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                let kq = wide(&[&k[..], &q[..]].concat());
                let (mut o, mut s) = (vec![0.0; n * dv], vec![0.0; dk * dv]);
                let gates = (&wide(&g)[..], &wide(&beta)[..]);
                delta_steps(&scalar, &mut o, &mut s, &kq, &wide(&v), gates, rule, (n, dk, dv));
                let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
                assert_close(&first.0, &narrow(&o), 1e-6, "o");
                for (row, want) in first.1.chunks(width).zip(s.chunks(dv)) {
                    assert_close(&row[..dv], &narrow(want), 1e-5, "s");
                    assert!(row[dv..].iter().all(|&x| x == 0.0));
                }
                all_isas(|cx| {
                    for piece in [1, 2, n] {
                        assert!(run(cx, piece) == first, "{:?}, {piece} at a time", cx.isa());
                    }
                });
            }
        }
    }

    #[test]
    fn softplus_is_near_that_of_f64() {
        for i in -8000..8000 {
            let x = i as f32 * 0.01;
            let wide = f64::from(x);
            let want = wide.max(0.0) + (-wide.abs()).exp().ln_1p();
            assert!((f64::from(exact_softplus(x)) - want).abs() <= 4e-7 * want, "{x}");
        }
        assert!(exact_softplus(f32::NAN).is_nan());
    }
}
