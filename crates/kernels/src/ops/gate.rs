//! Gates: `y = act(g) * u`, `act` as in [`super::act`]. On the calling thread, for one tile of rows.
//!
//! Backward: `du = dy act(g)`, `dg = dy u act'(g)`.

use crate::exec::Exec;
use crate::ops::act::{Act, Known, for_act};
use crate::profile::{Work, time};
use crate::simd::{Op, Simd, Store, each};

/// `y, g, u` of one length.
pub fn gate_forward<A: Store>(cx: &Exec, y: &mut [A], g: &[A], u: &[A], act: Act) {
    assert!(g.len() == y.len() && u.len() == y.len());
    let _time = time(cx, "gate_forward", (0, 0), Work::Bytes((3 * size_of_val(y)) as f64));
    for_act!(act, cx.op(Forward { y, g, u, act }));
}

struct Forward<'a, A, F> {
    y: &'a mut [A],
    g: &'a [A],
    u: &'a [A],
    act: F,
}

impl<A: Store, F: Known> Op<A::E> for Forward<'_, A, F> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Forward { y, g, u, act } = self;
        // SAFETY: offsets are below the common length.
        each!(S, y.len(), |i, n| unsafe {
            let (g, u) = (A::get::<S>(g.as_ptr().add(i), n), A::get::<S>(u.as_ptr().add(i), n));
            A::put::<S>(y.as_mut_ptr().add(i), S::mul(act.of::<S>(g).0, u), n);
        });
    }
}

/// Overwrites `dg` and `du` from `dy`, `g`, `u`, all of one length.
pub fn gate_backward<A: Store>(cx: &Exec, dg: &mut [A], du: &mut [A::E], dy: &[A::E], g: &[A], u: &[A], act: Act) {
    assert!(dg.len() == dy.len() && du.len() == dy.len() && g.len() == dy.len() && u.len() == dy.len());
    let bytes = dy.len() * (3 * size_of::<A>() + 2 * size_of::<A::E>());
    let _time = time(cx, "gate_backward", (0, 0), Work::Bytes(bytes as f64));
    for_act!(act, cx.op(Backward { dg, du, dy, g, u, act }));
}

struct Backward<'a, A: Store, F> {
    dg: &'a mut [A],
    du: &'a mut [A::E],
    dy: &'a [A::E],
    g: &'a [A],
    u: &'a [A],
    act: F,
}

impl<A: Store, F: Known> Op<A::E> for Backward<'_, A, F> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let Backward { dg, du, dy, g, u, act } = self;
        // SAFETY: offsets are below the common length.
        each!(S, dy.len(), |i, n| unsafe {
            let (g, u) = (A::get::<S>(g.as_ptr().add(i), n), A::get::<S>(u.as_ptr().add(i), n));
            let (dy, (value, slope)) = (S::get(dy.as_ptr().add(i), n), act.of::<S>(g));
            S::put(du.as_mut_ptr().add(i), S::mul(dy, value), n);
            A::put::<S>(dg.as_mut_ptr().add(i), S::mul(S::mul(dy, u), slope), n);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::act::testing::{ALL, plain};
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for n in (0..130).chain([1025]) {
                let g: Vec<f32> = random(n, 1).iter().map(|g: &f32| 2.0 * g).collect();
                let (u, dy): (Vec<f32>, Vec<f32>) = (random(n, 2), random(n, 3));
                for act in ALL {
                    let [mut y, mut dg, mut du] = [(); 3].map(|()| vec![f32::NAN; n]);
                    gate_forward(cx, &mut y, &g, &u, act);
                    gate_backward(cx, &mut dg, &mut du, &dy, &g, &u, act);
                    let per = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f32> {
                        let each = |i: usize| f(f64::from(g[i]), f64::from(u[i]), f64::from(dy[i])) as f32;
                        (0..n).map(each).collect()
                    };
                    assert_close(&y, &per(&|g, u, _| plain(act, g).0 * u), 1e-6, "y");
                    assert_close(&du, &per(&|g, _, dy| plain(act, g).0 * dy), 1e-6, "du");
                    assert_close(&dg, &per(&|g, u, dy| dy * u * plain(act, g).1), 1e-6, "dg");
                }
            }
        });
    }
}
