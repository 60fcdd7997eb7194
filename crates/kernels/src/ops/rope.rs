//! Rotation of pairs by their position (RoPE, arXiv 2104.09864): of each head's `x: [d]`, elements `i` and `i + d/2` turn by the
//! angle `a_i` of their row, times `by`; backward by `-a_i`.
//!
//! ```text
//! y_i = by (x_i cos a_i - x_{i+d/2} sin a_i)    y_{i+d/2} = by (x_{i+d/2} cos a_i + x_i sin a_i)
//! ```

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::area;

/// `y, x: [rows, heads * d]`, `turns: [rows, d]` the cosines of a row, then its sines; on the calling thread.
pub fn rope<E: Elem, Y: Store<E = E>, X: Store<E = E>>(
    cx: &Exec,
    y: &mut [Y],
    x: &[X],
    turns: &[E],
    (heads, d): (usize, usize),
    by: f64,
    back: bool,
) {
    assert!(
        y.len() == x.len()
            && x.len() == area([turns.len(), heads])
            && turns.len().is_multiple_of(d)
            && d.is_multiple_of(2)
    );
    let _time = time(cx, "rope", (d, 0), Work::Bytes((x.len() * (size_of::<X>() + size_of::<Y>())) as f64));
    cx.op(Rope { y, x, turns, heads, d, by: E::from_f64(by), back });
}

struct Rope<'a, E, Y, X> {
    y: &'a mut [Y],
    x: &'a [X],
    turns: &'a [E],
    heads: usize,
    d: usize,
    by: E,
    back: bool,
}

impl<E: Elem, Y: Store<E = E>, X: Store<E = E>> Op<E> for Rope<'_, E, Y, X> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Rope { y, x, turns, heads, d, by, back } = self;
        let (half, width) = (d / 2, area([heads, d]));
        let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(turns.chunks_exact(d));
        for ((y, x), turns) in rows {
            // SAFETY: both halves of each head and of the turns hold `half` elements.
            each!(S, half, |i, n| unsafe {
                let cos = S::mul(S::splat(by), S::get(turns.as_ptr().add(i), n));
                let sin = S::mul(S::splat(if back { -by } else { by }), S::get(turns.as_ptr().add(half + i), n));
                let minus = S::sub(S::splat(E::ZERO), sin);
                for head in 0..heads {
                    let (low, high) = (head * d + i, head * d + half + i);
                    let (a, b) = (X::get::<S>(x.as_ptr().add(low), n), X::get::<S>(x.as_ptr().add(high), n));
                    Y::put::<S>(y.as_mut_ptr().add(low), S::fma(b, minus, S::mul(a, cos)), n);
                    Y::put::<S>(y.as_mut_ptr().add(high), S::fma(a, sin, S::mul(b, cos)), n);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_a_complex_product_and_turns_back() {
        all_isas(|cx| {
            for half in (1..40).chain([64, 65]) {
                let (rows, heads, d) = (1 + half % 5, 1 + half % 3, 2 * half);
                let x: Vec<f32> = random(rows * heads * d, 1);
                let angles: Vec<f64> = random::<f64>(rows * half, 2).iter().map(|a| 7.0 * a).collect();
                let turns: Vec<f32> = (angles.chunks(half))
                    .flat_map(|row| row.iter().map(|a| a.cos() as f32).chain(row.iter().map(|a| a.sin() as f32)))
                    .collect();
                let (mut y, mut want) = (vec![f32::NAN; x.len()], vec![0.0; x.len()]);
                rope(cx, &mut y, &x, &turns, (heads, d), 0.5, false);
                for (at, want) in want.chunks_mut(d).enumerate() {
                    for i in 0..half {
                        let (a, b) = (f64::from(x[at * d + i]), f64::from(x[at * d + half + i]));
                        // The length stays, the angle grows.
                        let (length, angle) = (0.5 * a.hypot(b), b.atan2(a) + angles[at / heads * half + i]);
                        (want[i], want[half + i]) = ((length * angle.cos()) as f32, (length * angle.sin()) as f32);
                    }
                }
                assert_close(&y, &want, 1e-6, "turned");
                let mut narrow = vec![Bf16::NAN; x.len()];
                rope(cx, &mut narrow, &x, &turns, (heads, d), 0.5, false);
                assert!(narrow.iter().zip(&y).all(|(&n, &y)| n == Bf16::narrow(y)));
                let mut back = vec![f32::NAN; x.len()];
                rope(cx, &mut back, &y, &turns, (heads, d), 2.0, true);
                assert_close(&back, &x, 1e-6, "turned back");
            }
        });
    }
}
