//! The gated delta rule (Yang, Kautz, Hatamizadeh, arXiv 2412.06464) of one head, on the calling thread. `S: [dk, dv]`:
//!
//! * canonical: `S <- exp(g) S;  S <- S + k u^T, u = beta (v - S^T k);  o = S^T q`
//! * undecayed: `u = beta (v - S^T k);  S <- exp(g) S + k u^T;  o = S^T q`
//!
//! [`delta_steps`] goes token by token. [`delta_forward`] and [`delta_backward`] take a chunk of `n` tokens at once, rows i, j:
//! `c` is the inclusive sum of `g` in the chunk, `e = c` (canonical) or `c - g` (undecayed), and
//!
//! ```text
//! D = tril(exp(c_i - c_j))   E = strict_tril(exp(e_i - c_j))   w = exp(c_n - c)
//! M = beta_i (K K^T) E       U = (I + M)^-1 beta (V - exp(e) K S0)
//! P = (Q K^T) D              O = exp(c) Q S0 + P U             S1 = exp(c_n) S0 + (w K)^T U
//! ```
//!
//! The backward pass differentiates these lines in reverse and makes again what it needs of them. Keys and queries come
//! stacked, `kq: [2n, dk]`, the keys first; `q` is already scaled. Sums of `g` are taken in f64: differences of two of them
//! count, and these may be small where the sums are not.

use std::mem::take;

use crate::exec::Exec;
use crate::ops::rows::{Exp, RowDots, Scale, Transpose, scale_rows};
use crate::ops::small::{Triangle, small_matmul, solve_unit_lower, solve_unit_upper};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, each};
use crate::size::area;

/// What the new value is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The decayed state, as published.
    Canonical,
    /// The state before it decays.
    Undecayed,
}

/// `(n, dk, dv)`: tokens, width of a key, width of a value.
pub type Sizes = (usize, usize, usize);

/// Elements of working memory that a chunk of these sizes takes, in either direction.
pub fn delta_work((n, dk, dv): Sizes) -> usize {
    n * (9 + dk + 4 * dv) + 6 * n * n + dv * dk.max(n)
}

/// Cuts the next `len` elements off.
fn cut<'a, E>(rest: &mut &'a mut [E], len: usize) -> &'a mut [E] {
    let (own, left) = take(rest).split_at_mut(len);
    *rest = left;
    own
}

/// What both passes need of a chunk.
struct Chunk<'a, E> {
    /// `exp(c)`, `exp(e)`, `exp(c_n - c)`: `[n]`.
    exp_c: &'a mut [E],
    exp_e: &'a mut [E],
    w: &'a mut [E],
    /// `D`, `E`, `(K K^T) E`, `M`, `P`: `[n, n]`, zero above the diagonal.
    d: &'a mut [E],
    e: &'a mut [E],
    ke: &'a mut [E],
    m: &'a mut [E],
    p: &'a mut [E],
    /// `K S0` and `Q S0`: `[2n, dv]`.
    kqs: &'a mut [E],
    /// `[n, dv]`.
    u: &'a mut [E],
}

impl<'a, E: Elem> Chunk<'a, E> {
    fn new(
        cx: &Exec,
        s: &[E],
        kq: &[E],
        v: &[E],
        (g, beta): (&[E], &[E]),
        rule: Rule,
        rest: &mut &'a mut [E],
        (n, dk, dv): Sizes,
    ) -> Self {
        let c = Chunk {
            exp_c: cut(rest, n),
            exp_e: cut(rest, n),
            w: cut(rest, n),
            d: cut(rest, n * n),
            e: cut(rest, n * n),
            ke: cut(rest, n * n),
            m: cut(rest, n * n),
            p: cut(rest, n * n),
            kqs: cut(rest, 2 * n * dv),
            u: cut(rest, n * dv),
        };
        // What follows is free again afterwards.
        let mut rest = &mut rest[..];
        let (high, low, last) = (cut(&mut rest, 2 * n), cut(&mut rest, 2 * n), cut(&mut rest, n));
        let mut sum = 0.0;
        for (i, &g) in g.iter().enumerate() {
            let before = sum;
            sum += g.to_f64();
            for (at, x) in [(i, sum), (n + i, if rule == Rule::Canonical { sum } else { before })] {
                high[at] = E::from_f64(x);
                low[at] = E::from_f64(x - high[at].to_f64());
            }
        }
        for (last, (&high, &low)) in last.iter_mut().zip(high.iter().zip(low.iter())) {
            *last = E::from_f64(sum - high.to_f64() - low.to_f64());
        }
        cx.op(Exp { y: c.exp_c, x: &high[..n] });
        cx.op(Exp { y: c.exp_e, x: &high[n..] });
        cx.op(Exp { y: c.w, x: last });
        cx.op(Decay { out: c.d, rows: (&high[..n], &low[..n]), columns: (&high[..n], &low[..n]), diagonal: 1 });
        cx.op(Decay { out: c.e, rows: (&high[n..], &low[n..]), columns: (&high[..n], &low[..n]), diagonal: 0 });

        let kt = cut(&mut rest, dk * n);
        cx.op(Transpose { y: kt, x: kq, rows: n, columns: dk });
        let kt = (&*kt, n);
        small_matmul(cx, (c.ke, n), (kq, dk, 1), kt, (n, n, dk), Triangle::LowerC, false);
        small_matmul(cx, (c.p, n), (&kq[n * dk..], dk, 1), kt, (n, n, dk), Triangle::LowerC, false);
        cx.op(Mask { y: c.p, decay: c.d, n, diagonal: 1 });
        cx.op(Mask { y: c.ke, decay: c.e, n, diagonal: 0 });
        scale_rows(cx, c.m, c.ke, beta, n, false);
        small_matmul(cx, (c.kqs, dv), (kq, dk, 1), (s, dv), (2 * n, dv, dk), Triangle::None, false);
        let scale = cut(&mut rest, n);
        (0..n).for_each(|i| scale[i] = -(beta[i] * c.exp_e[i]));
        scale_rows(cx, c.u, v, beta, dv, false);
        scale_rows(cx, c.u, c.kqs, scale, dv, true);
        solve_unit_lower(cx, c.u, c.m, (n, dv));
        c
    }
}

/// One chunk: `o: [n, dv]` and the state after it in `s: [dk, dv]`, from the state before, `kq: [2n, dk]`, `v: [n, dv]` and the
/// gates `g, beta: [n]`.
pub fn delta_forward<E: Elem>(
    cx: &Exec,
    o: &mut [E],
    s: &mut [E],
    kq: &[E],
    v: &[E],
    (g, beta): (&[E], &[E]),
    rule: Rule,
    work: &mut [E],
    (n, dk, dv): Sizes,
) {
    assert!(
        o.len() == area([n, dv]) && s.len() == area([dk, dv]) && kq.len() == area([2, n, dk]) && v.len() == o.len()
    );
    assert!(g.len() == n && beta.len() == n && n > 0);
    let mut rest = work;
    let c = Chunk::new(cx, s, kq, v, (g, beta), rule, &mut rest, (n, dk, dv));
    scale_rows(cx, o, &c.kqs[n * dv..], c.exp_c, dv, false);
    small_matmul(cx, (o, dv), (c.p, n, 1), (c.u, dv), (n, dv, n), Triangle::LowerA, true);
    let wk = cut(&mut rest, n * dk);
    scale_rows(cx, wk, kq, c.w, dk, false);
    cx.op(Scale { y: s, by: c.exp_c[n - 1] });
    small_matmul(cx, (s, dv), (wk, 1, dk), (c.u, dv), (dk, dv, n), Triangle::None, true);
}

/// Gradients of one chunk: overwrites `dkq`, `dv`, `dg`, `dbeta`, shaped as what they belong to, and turns `ds` from the
/// gradient of the state after the chunk into that of the state before, `s0`.
pub fn delta_backward<E: Elem>(
    cx: &Exec,
    (dkq, dv, dg, dbeta): (&mut [E], &mut [E], &mut [E], &mut [E]),
    ds: &mut [E],
    d_o: &[E],
    s0: &[E],
    kq: &[E],
    v: &[E],
    (g, beta): (&[E], &[E]),
    rule: Rule,
    work: &mut [E],
    sizes: Sizes,
) {
    let (n, dk, width) = sizes;
    let (keys, values, state) = (area([2, n, dk]), area([n, width]), area([dk, width]));
    assert!(dkq.len() == keys && dv.len() == values && dg.len() == n && dbeta.len() == n && n > 0);
    assert!(ds.len() == state && s0.len() == state && d_o.len() == values);
    assert!(kq.len() == keys && v.len() == values && g.len() == n && beta.len() == n);
    let mut rest = work;
    let c = Chunk::new(cx, s0, kq, v, (g, beta), rule, &mut rest, sizes);
    let (k, q) = kq.split_at(n * dk);
    let (ks, qs) = c.kqs.split_at_mut(n * width);
    let last = c.exp_c[n - 1];
    let (dc, de, dots) = (cut(&mut rest, n), cut(&mut rest, n), cut(&mut rest, n));
    let (by, rows) = (cut(&mut rest, n), cut(&mut rest, n));
    let turned = cut(&mut rest, width * dk.max(n));
    let (dkeys, dqueries) = dkq.split_at_mut(n * dk);

    // S1 = exp(c_n) S0 + (w K)^T U, and O's part of dU.
    let (wk, du) = (cut(&mut rest, n * dk), cut(&mut rest, n * width));
    scale_rows(cx, wk, k, c.w, dk, false);
    small_matmul(cx, (du, width), (c.p, 1, n), (d_o, width), (n, width, n), Triangle::UpperA, false);
    small_matmul(cx, (du, width), (wk, dk, 1), (ds, width), (n, width, dk), Triangle::None, true);
    let z = wk;
    cx.op(Transpose { y: turned, x: ds, rows: dk, columns: width });
    small_matmul(cx, (z, dk), (c.u, width, 1), (turned, dk), (n, dk, width), Triangle::None, false);
    cx.op(RowDots { out: dots, x: k, y: z, d: dk });
    let mut total = [E::ZERO];
    cx.op(RowDots { out: &mut total, x: s0, y: ds, d: dk * width });
    let mut total = total[0] * last;
    for i in 0..n {
        let dw = dots[i] * c.w[i];
        dc[i] = -dw;
        total += dw;
    }
    dc[n - 1] += total;
    scale_rows(cx, dkeys, z, c.w, dk, false);

    // P = (Q K^T) D.
    let dr = du;
    solve_unit_upper(cx, dr, c.m, (n, width));
    let pairs = cut(&mut rest, n * n);
    let ut = &mut turned[..width * n];
    cx.op(Transpose { y: ut, x: c.u, rows: n, columns: width });
    small_matmul(cx, (pairs, n), (d_o, width, 1), (ut, n), (n, n, width), Triangle::LowerC, false);
    by.fill(E::ONE);
    cx.op(Pairs { x: pairs, factor: c.p, decay: c.d, by, rows, columns: dc, n, diagonal: 1 });
    (0..n).for_each(|i| dc[i] += rows[i]);
    small_matmul(cx, (dqueries, dk), (pairs, n, 1), (k, dk), (n, dk, n), Triangle::LowerA, false);
    small_matmul(cx, (dkeys, dk), (pairs, 1, n), (q, dk), (n, dk, n), Triangle::UpperA, true);

    // M = beta_i (K K^T) E, dM = -strict_tril(dR U^T).
    small_matmul(cx, (pairs, n), (dr, width, 1), (ut, n), (n, n, width), Triangle::LowerC, false);
    (0..n).for_each(|i| by[i] = -beta[i]);
    cx.op(Pairs { x: pairs, factor: c.ke, decay: c.e, by, rows, columns: dc, n, diagonal: 0 });
    small_matmul(cx, (dkeys, dk), (pairs, n, 1), (k, dk), (n, dk, n), Triangle::LowerA, true);
    small_matmul(cx, (dkeys, dk), (pairs, 1, n), (k, dk), (n, dk, n), Triangle::UpperA, true);

    // R = beta (V - exp(e) K S0) and exp(c) Q S0.
    for i in 0..n {
        (dbeta[i], de[i]) = (-rows[i], by[i] * rows[i]);
    }
    scale_rows(cx, dv, dr, beta, width, false);
    cx.op(RowDots { out: dots, x: dr, y: v, d: width });
    (0..n).for_each(|i| dbeta[i] += dots[i]);
    cx.op(RowDots { out: dots, x: dr, y: ks, d: width });
    for i in 0..n {
        let dot = c.exp_e[i] * dots[i];
        dbeta[i] += -dot;
        de[i] += by[i] * dot;
        by[i] *= c.exp_e[i];
    }
    scale_rows(cx, ks, dr, by, width, false);
    cx.op(RowDots { out: dots, x: d_o, y: qs, d: width });
    (0..n).for_each(|i| dc[i] += c.exp_c[i] * dots[i]);
    scale_rows(cx, qs, d_o, c.exp_c, width, false);
    cx.op(Transpose { y: turned, x: s0, rows: dk, columns: width });
    small_matmul(cx, (dkq, dk), (c.kqs, width, 1), (turned, dk), (2 * n, dk, width), Triangle::None, true);
    cx.op(Scale { y: ds, by: last });
    small_matmul(cx, (ds, width), (kq, 1, dk), (c.kqs, width), (dk, width, 2 * n), Triangle::None, true);

    let (mut sum_c, mut sum_e) = (0.0, 0.0);
    for i in (0..n).rev() {
        sum_c += dc[i].to_f64();
        if rule == Rule::Canonical {
            sum_e += de[i].to_f64();
        }
        dg[i] = E::from_f64(sum_c + sum_e);
        if rule == Rule::Undecayed {
            sum_e += de[i].to_f64();
        }
    }
}

/// `n` tokens one by one: `o: [n, dv]` and the state after them in `s: [dk, dv]`. Every token costs the same, and gives the same
/// bits wherever a text is cut.
pub fn delta_steps<E: Elem>(
    cx: &Exec,
    o: &mut [E],
    s: &mut [E],
    kq: &[E],
    v: &[E],
    (g, beta): (&[E], &[E]),
    rule: Rule,
    (n, dk, dv): Sizes,
) {
    assert!(
        o.len() == area([n, dv]) && s.len() == area([dk, dv]) && kq.len() == area([2, n, dk]) && v.len() == o.len()
    );
    assert!(g.len() == n && beta.len() == n);
    let _time = time(cx, "delta_steps", (dk, dv), Work::Flops((6 * n * dk * dv) as f64));
    cx.op(Steps { o, s, kq, v, g, beta, canonical: rule == Rule::Canonical, dk, dv });
}

struct Steps<'a, E> {
    o: &'a mut [E],
    s: &'a mut [E],
    kq: &'a [E],
    v: &'a [E],
    g: &'a [E],
    beta: &'a [E],
    canonical: bool,
    dk: usize,
    dv: usize,
}

impl<E: Elem> Op<E> for Steps<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Steps { o, s, kq, v, g, beta, canonical, dk, dv } = self;
        let n = g.len();
        for t in 0..n {
            let (k, q) = (kq[t * dk..].as_ptr(), kq[(n + t) * dk..].as_ptr());
            // SAFETY: sizes were checked by the caller.
            each!(S, dv, |j, lanes| unsafe {
                let alpha = S::exp(S::splat(g[t]));
                let seen = if canonical { alpha } else { S::splat(E::ONE) };
                let column = s.as_mut_ptr().add(j);
                let mut held = S::splat(E::ZERO);
                for i in 0..dk {
                    held = S::fma(S::get(column.add(i * dv), lanes), S::splat(*k.add(i)), held);
                }
                let v = S::get(v.as_ptr().add(t * dv + j), lanes);
                let u = S::mul(S::splat(beta[t]), S::sub(v, S::mul(seen, held)));
                let mut out = S::splat(E::ZERO);
                for i in 0..dk {
                    let new = S::fma(S::splat(*k.add(i)), u, S::mul(alpha, S::get(column.add(i * dv), lanes)));
                    S::put(column.add(i * dv), new, lanes);
                    out = S::fma(new, S::splat(*q.add(i)), out);
                }
                S::put(o.as_mut_ptr().add(t * dv + j), out, lanes);
            });
        }
    }
}

/// `out[i,j] = exp(rows_i - columns_j)` for `j < i + diagonal`, else 0; both are sums of a high and a low part.
struct Decay<'a, E> {
    out: &'a mut [E],
    rows: (&'a [E], &'a [E]),
    columns: (&'a [E], &'a [E]),
    diagonal: usize,
}

impl<E: Elem> Op<E> for Decay<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let n = self.rows.0.len();
        for (i, out) in self.out.chunks_exact_mut(n).enumerate() {
            out[i..].fill(E::ZERO);
            // SAFETY: at most `i + 1` elements of a row of `n`.
            unsafe {
                let (high, low) = (S::splat(self.rows.0[i]), S::splat(self.rows.1[i]));
                each!(S, i + self.diagonal, |j, lanes| {
                    let high = S::sub(high, S::get(self.columns.0.as_ptr().add(j), lanes));
                    let low = S::sub(low, S::get(self.columns.1.as_ptr().add(j), lanes));
                    S::put(out.as_mut_ptr().add(j), S::exp(S::add(high, low)), lanes);
                });
            }
        }
    }
}

/// `y[i,j] *= decay[i,j]` for `j < i + diagonal`, else 0, whatever was there.
struct Mask<'a, E> {
    y: &'a mut [E],
    decay: &'a [E],
    n: usize,
    diagonal: usize,
}

impl<E: Elem> Op<E> for Mask<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        for (i, (y, decay)) in self.y.chunks_exact_mut(self.n).zip(self.decay.chunks_exact(self.n)).enumerate() {
            y[i + self.diagonal..].fill(E::ZERO);
            // SAFETY: at most `i + 1` elements of a row of `n`.
            each!(S, i + self.diagonal, |j, lanes| unsafe {
                let y = y.as_mut_ptr().add(j);
                S::put(y, S::mul(S::get(y, lanes), S::get(decay.as_ptr().add(j), lanes)), lanes);
            });
        }
    }
}

/// The gradient `x` of `factor` over pairs `j < i + diagonal`, its row's factor `by` still to come:
/// `rows_i = sum_j x factor`, `columns_j -= sum_i by_i x factor`, and `x *= by_i decay`, elsewhere 0.
struct Pairs<'a, E> {
    x: &'a mut [E],
    factor: &'a [E],
    decay: &'a [E],
    by: &'a [E],
    rows: &'a mut [E],
    columns: &'a mut [E],
    n: usize,
    diagonal: usize,
}

impl<E: Elem> Op<E> for Pairs<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Pairs { x, factor, decay, by, rows, columns, n, diagonal } = self;
        let columns = columns.as_mut_ptr();
        for (i, x) in x.chunks_exact_mut(n).enumerate() {
            x[i + diagonal..].fill(E::ZERO);
            let (factor, decay) = (factor[i * n..].as_ptr(), decay[i * n..].as_ptr());
            // SAFETY: at most `i + 1` elements of rows of `n`; missing lanes load as zero.
            unsafe {
                let (by, mut sum) = (S::splat(by[i]), S::splat(E::ZERO));
                each!(S, i + diagonal, |j, lanes| {
                    let x = x.as_mut_ptr().add(j);
                    let value = S::get(x, lanes);
                    let product = S::mul(value, S::get(factor.add(j), lanes));
                    sum = S::add(sum, product);
                    S::put(columns.add(j), S::sub(S::get(columns.add(j), lanes), S::mul(by, product)), lanes);
                    S::put(x, S::mul(S::mul(by, value), S::get(decay.add(j), lanes)), lanes);
                });
                rows[i] = S::sum(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, assert_close, random};

    /// Keys and queries of norm 1 (`kq` of `n` tokens stacked), values, `g`, `beta` in f64.
    fn inputs((n, dk, dv): Sizes, seed: u64) -> [Vec<f64>; 4] {
        let mut kq: Vec<f64> = random(2 * n * dk, seed);
        for row in kq.chunks_mut(dk) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
        let g = random::<f64>(n, seed + 2).iter().map(|x| -0.001 - 0.75 * (x + 1.0)).collect();
        let beta = random::<f64>(n, seed + 3).iter().map(|x| 0.5 + 0.45 * x).collect();
        [kq, random(n * dv, seed + 1), g, beta]
    }

    /// The recurrence as it stands in the header: outputs and last state.
    fn recurrence(s: &[f64], [kq, v, g, beta]: &[Vec<f64>; 4], rule: Rule, (n, dk, dv): Sizes) -> (Vec<f64>, Vec<f64>) {
        let (mut s, mut o) = (s.to_vec(), vec![0.0; n * dv]);
        for t in 0..n {
            let (k, q) = (&kq[t * dk..][..dk], &kq[(n + t) * dk..][..dk]);
            let alpha = g[t].exp();
            let seen = if rule == Rule::Canonical { alpha } else { 1.0 };
            for j in 0..dv {
                let held: f64 = (0..dk).map(|i| seen * s[i * dv + j] * k[i]).sum();
                let u = beta[t] * (v[t * dv + j] - held);
                for i in 0..dk {
                    s[i * dv + j] = alpha * s[i * dv + j] + k[i] * u;
                    o[t * dv + j] += s[i * dv + j] * q[i];
                }
            }
        }
        (o, s)
    }

    const SIZES: [Sizes; 6] = [(1, 1, 1), (2, 3, 5), (37, 6, 9), (32, 36, 72), (64, 48, 96), (63, 17, 33)];

    fn narrow(x: &[f64]) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }

    #[test]
    fn a_chunk_and_single_steps_equal_the_recurrence() {
        all_isas(|cx| {
            for sizes in SIZES {
                for rule in [Rule::Canonical, Rule::Undecayed] {
                    let (n, dk, dv) = sizes;
                    let (inputs, s0) = (inputs(sizes, 1), random::<f64>(dk * dv, 9));
                    let (want_o, want_s) = recurrence(&s0, &inputs, rule, sizes);
                    let [kq, v, g, beta] = inputs.map(|x| narrow(&x));
                    let (mut o, mut s) = (vec![f32::NAN; n * dv], narrow(&s0));
                    let mut work = vec![f32::NAN; delta_work(sizes)];
                    delta_forward(cx, &mut o, &mut s, &kq, &v, (&g, &beta), rule, &mut work, sizes);
                    assert_close(&o, &narrow(&want_o), 1e-6, "o of a chunk");
                    assert_close(&s, &narrow(&want_s), 1e-6, "s of a chunk");
                    let (mut o, mut s) = (vec![f32::NAN; n * dv], narrow(&s0));
                    delta_steps(cx, &mut o, &mut s, &kq, &v, (&g, &beta), rule, sizes);
                    assert_close(&o, &narrow(&want_o), 1e-6, "o of steps");
                    assert_close(&s, &narrow(&want_s), 1e-6, "s of steps");
                }
            }
        });
    }

    /// Every gradient against central differences of the recurrence, in f64; then f32 on every ISA against f64.
    #[test]
    fn gradients_of_a_chunk_equal_finite_differences() {
        for sizes in [(1, 1, 1), (2, 3, 5), (13, 6, 9)] {
            for rule in [Rule::Canonical, Rule::Undecayed] {
                let (n, dk, dv) = sizes;
                let (mut inputs, mut s0) = (inputs(sizes, 1), random::<f64>(dk * dv, 9));
                let (d_o, ds) = (random::<f64>(n * dv, 10), random::<f64>(dk * dv, 11));
                let cx = &Exec::new(crate::Isa::SCALAR, 1);
                let got = gradients(cx, &inputs, &s0, &d_o, &ds, rule, sizes);
                let loss = |inputs: &[Vec<f64>; 4], s0: &[f64]| {
                    let (o, s) = recurrence(s0, inputs, rule, sizes);
                    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
                    dot(&o, &d_o) + dot(&s, &ds)
                };
                let h = 1e-6;
                for (which, got) in got.iter().enumerate() {
                    for (i, &got) in got.iter().enumerate() {
                        let mut at = |by: f64| {
                            let x = if which < 4 { &mut inputs[which] } else { &mut s0 };
                            let own = x[i];
                            x[i] = own + by;
                            let loss = loss(&inputs, &s0);
                            let x = if which < 4 { &mut inputs[which] } else { &mut s0 };
                            x[i] = own;
                            loss
                        };
                        let want = (at(h) - at(-h)) / (2.0 * h);
                        assert!((got - want).abs() < 1e-8 + 1e-7 * want.abs(), "{which}[{i}]: {got} for {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_in_f32_equal_those_in_f64() {
        all_isas(|cx| {
            for sizes in SIZES {
                for rule in [Rule::Canonical, Rule::Undecayed] {
                    let (n, dk, dv) = sizes;
                    let (inputs, s0) = (inputs(sizes, 1), random::<f64>(dk * dv, 9));
                    let (d_o, ds) = (random::<f64>(n * dv, 10), random::<f64>(dk * dv, 11));
                    let plain = &Exec::new(crate::Isa::SCALAR, 1);
                    let want = gradients(plain, &inputs, &s0, &d_o, &ds, rule, sizes);
                    let (s0, d_o, ds) = (narrow(&s0), narrow(&d_o), narrow(&ds));
                    let got = gradients(cx, &inputs.map(|x| narrow(&x)), &s0, &d_o, &ds, rule, sizes);
                    for (name, (got, want)) in ["kq", "v", "g", "beta", "s0"].iter().zip(got.iter().zip(&want)) {
                        assert_close(got, &narrow(want), 1e-5, name);
                    }
                }
            }
        });
    }

    fn gradients<E: Elem>(
        cx: &Exec,
        [kq, v, g, beta]: &[Vec<E>; 4],
        s0: &[E],
        d_o: &[E],
        ds: &[E],
        rule: Rule,
        sizes: Sizes,
    ) -> [Vec<E>; 5] {
        let nan = |n: usize| vec![E::NAN; n];
        let [mut dkq, mut dv, mut dg, mut dbeta] = [kq, v, g, beta].map(|x| nan(x.len()));
        let (mut ds, mut work) = (ds.to_vec(), nan(delta_work(sizes)));
        let out = (&mut dkq[..], &mut dv[..], &mut dg[..], &mut dbeta[..]);
        delta_backward(cx, out, &mut ds, d_o, s0, kq, v, (g, beta), rule, &mut work, sizes);
        [dkq, dv, dg, dbeta, ds]
    }
}
