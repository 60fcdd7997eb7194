//! The backward pass of a chunk: the lines of [`super`] differentiated in reverse, each matrix's gradient named `d` + its name.

use super::chunk::{Chunk, side};
use super::pairs::Pairs;
use super::rule::{Rule, Sizes};
use crate::exec::Exec;
use crate::ops::operand::{Right, cut, operand_room};
use crate::ops::rows::{RowDots, Scale, scale_rows};
use crate::ops::small::{Strided, Triangle, solve_unit_upper};
use crate::simd::{Elem, Store};
use crate::size::area;

/// Gradients of one chunk: overwrites `dkq`, `dv`, `dg`, `dbeta`, shaped as what they belong to, and turns `ds` from the
/// gradient of the state after the chunk into that of the state before, `s0`. Multiplies in `A`, of which `room` is.
pub fn delta_backward<E: Elem, A: Store<E = E>>(
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
    room: &mut [A],
    sizes: Sizes,
) {
    let (n, dk, width) = sizes;
    let (all_keys, values, state) = (area([2, n, dk]), area([n, width]), area([dk, width]));
    assert!(dkq.len() == all_keys && dv.len() == values && dg.len() == n && dbeta.len() == n && n > 0);
    assert!(ds.len() == state && s0.len() == state && d_o.len() == values);
    assert!(kq.len() == all_keys && v.len() == values && g.len() == n && beta.len() == n);
    let mut rest = work;
    let (left, room) = room.split_at_mut(side(sizes));
    let (right, room) = room.split_at_mut(side(sizes));
    let (for_k, for_u) = room.split_at_mut(operand_room(n, dk));
    let c = Chunk::new(cx, s0, kq, v, (g, beta), rule, &mut rest, (&mut *left, &mut *right), sizes);
    let (k, q) = kq.split_at(n * dk);
    let (ks, qs) = c.kqs.split_at_mut(n * width);
    let last = c.exp_c[n - 1];
    let (dc, de, dots) = (cut(&mut rest, n), cut(&mut rest, n), cut(&mut rest, n));
    let (by, rows) = (cut(&mut rest, n), cut(&mut rest, n));
    let (dkeys, dqueries) = dkq.split_at_mut(n * dk);

    // S1 = exp(c_n) S0 + (w K)^T U, and O's part of dU.
    let (wk, du) = (cut(&mut rest, n * dk), cut(&mut rest, n * width));
    scale_rows(cx, wk, k, c.w, dk, false);
    let d_out = Right::new(cx, &mut &mut *right, Strided::rows(d_o, width), (n, width));
    d_out.timed(cx, (du, width), Strided::transposed(c.p, n), n, Triangle::UpperA, false, left);
    let after = Right::new(cx, &mut &mut *right, Strided::rows(ds, width), (dk, width));
    after.timed(cx, (du, width), Strided::rows(wk, dk), n, Triangle::None, true, left);
    let z = wk;
    let after = Right::new(cx, &mut &mut *right, Strided::transposed(ds, width), (width, dk));
    after.timed(cx, (z, dk), Strided::rows(c.u, width), n, Triangle::None, false, left);
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
    let ut = Right::new(cx, &mut &mut *for_u, Strided::transposed(c.u, width), (width, n));
    ut.timed(cx, (pairs, n), Strided::rows(d_o, width), n, Triangle::LowerC, false, left);
    by.fill(E::ONE);
    cx.op(Pairs { x: pairs, factor: c.p, decay: c.d, by, rows, columns: dc, n, diagonal: 1 });
    (0..n).for_each(|i| dc[i] += rows[i]);
    let keys = Right::new(cx, &mut &mut *for_k, Strided::rows(k, dk), (n, dk));
    keys.timed(cx, (dqueries, dk), Strided::rows(pairs, n), n, Triangle::LowerA, false, left);
    let queries = Right::new(cx, &mut &mut *right, Strided::rows(q, dk), (n, dk));
    queries.timed(cx, (dkeys, dk), Strided::transposed(pairs, n), n, Triangle::UpperA, true, left);

    // M = beta_i (K K^T) E, dM = -strict_tril(dR U^T).
    ut.timed(cx, (pairs, n), Strided::rows(dr, width), n, Triangle::LowerC, false, left);
    (0..n).for_each(|i| by[i] = -beta[i]);
    cx.op(Pairs { x: pairs, factor: c.ke, decay: c.e, by, rows, columns: dc, n, diagonal: 0 });
    keys.timed(cx, (dkeys, dk), Strided::rows(pairs, n), n, Triangle::LowerA, true, left);
    keys.timed(cx, (dkeys, dk), Strided::transposed(pairs, n), n, Triangle::UpperA, true, left);

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
    let before = Right::new(cx, &mut &mut *right, Strided::transposed(s0, width), (width, dk));
    before.timed(cx, (dkq, dk), Strided::rows(c.kqs, width), 2 * n, Triangle::None, true, left);
    cx.op(Scale { y: ds, by: last });
    let dkqs = Right::new(cx, &mut &mut *right, Strided::rows(c.kqs, width), (2 * n, width));
    dkqs.timed(cx, (ds, width), Strided::transposed(kq, dk), dk, Triangle::None, true, left);

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
