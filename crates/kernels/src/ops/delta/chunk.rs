//! The delta rule over a chunk: the matrices that both directions need of it, and the forward pass. Formulas in [`super`].

use super::pairs::{Decay, Mask};
use super::rule::{Rule, Sizes};
use crate::exec::Exec;
use crate::ops::operand::{Right, cut, operand_room};
use crate::ops::rows::{Exp, Scale, scale_rows};
use crate::ops::small::{Strided, Triangle, small_matmul, solve_unit_lower};
use crate::simd::{Elem, Store};
use crate::size::area;

/// Elements of working memory that a chunk of these sizes takes, in either direction.
pub fn delta_work((n, dk, dv): Sizes) -> usize {
    n * (9 + 2 * dk + 4 * dv) + 6 * n * n
}

/// Elements of the store in which the backward pass multiplies.
pub fn delta_room(sizes @ (n, dk, dv): Sizes) -> usize {
    2 * side(sizes) + operand_room(n, dk) + operand_room(dv, n)
}

/// Room for any operand of the backward pass.
pub(super) fn side((n, dk, dv): Sizes) -> usize {
    let most = (2 * n).max(dk).max(dv);
    operand_room(most, most)
}

/// What both passes need of a chunk.
pub(super) struct Chunk<'a, E> {
    /// `exp(c)`, `exp(e)`, `exp(c_n - c)`: `[n]`.
    pub exp_c: &'a mut [E],
    pub exp_e: &'a mut [E],
    pub w: &'a mut [E],
    /// `D`, `E`, `(K K^T) E`, `M`, `P`: `[n, n]`, zero above the diagonal.
    pub d: &'a mut [E],
    pub e: &'a mut [E],
    pub ke: &'a mut [E],
    pub m: &'a mut [E],
    pub p: &'a mut [E],
    /// `K S0` and `Q S0`: `[2n, dv]`.
    pub kqs: &'a mut [E],
    /// `[n, dv]`.
    pub u: &'a mut [E],
}

impl<'a, E: Elem> Chunk<'a, E> {
    /// Multiplies in `A`; `left` and `right` are room for operands.
    pub fn new<A: Store<E = E>>(
        cx: &Exec,
        s: &[E],
        kq: &[E],
        v: &[E],
        (g, beta): (&[E], &[E]),
        rule: Rule,
        rest: &mut &'a mut [E],
        (left, right): (&mut [A], &mut [A]),
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

        let kt = Right::new(cx, &mut &mut *right, Strided::transposed(kq, dk), (dk, n));
        kt.timed(cx, (c.ke, n), Strided::rows(kq, dk), n, Triangle::LowerC, false, left);
        kt.timed(cx, (c.p, n), Strided::rows(&kq[n * dk..], dk), n, Triangle::LowerC, false, left);
        cx.op(Mask { y: c.p, decay: c.d, n, diagonal: 1 });
        cx.op(Mask { y: c.ke, decay: c.e, n, diagonal: 0 });
        scale_rows(cx, c.m, c.ke, beta, n, false);
        let s = Right::new(cx, &mut &mut *right, Strided::rows(s, dv), (dk, dv));
        s.timed(cx, (c.kqs, dv), Strided::rows(kq, dk), 2 * n, Triangle::None, false, left);
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
    let turned = cut(&mut rest, n * dk);
    let c = Chunk::new::<E>(cx, s, kq, v, (g, beta), rule, &mut rest, (&mut [], turned), (n, dk, dv));
    scale_rows(cx, o, &c.kqs[n * dv..], c.exp_c, dv, false);
    small_matmul(cx, (o, dv), Strided::rows(c.p, n), (c.u, dv), (n, dv, n), Triangle::LowerA, true);
    let wk = cut(&mut rest, n * dk);
    scale_rows(cx, wk, kq, c.w, dk, false);
    cx.op(Scale { y: s, by: c.exp_c[n - 1] });
    small_matmul(cx, (s, dv), Strided::transposed(wk, dk), (c.u, dv), (dk, dv, n), Triangle::None, true);
}
