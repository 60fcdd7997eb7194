//! Dropout of what a branch has added to the residual stream, `y = h + m (y - h)`, each `m` 0 with the probability `p`, else `1 / (1 - p)`;
//! backward, of what went around the branch `(1 - m) dy`, of what went through it `m dy`.
//!
//! The masks of row `i`, columns `4 j` to `4 j + 3`, are the four 16-bit parts of output `i ceil(d / 4) + j` of splitmix64 from `key`
//! on, lowest first: 0 where it is below `2^16 p`. So they depend on nothing but `key`, row and column.

use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd};
use crate::size::area;

/// Which elements are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DropMask {
    /// `p`, at least 0 and below 1, rounded to a multiple of `2^-16`.
    pub share: f64,
    /// Another one, other masks.
    pub key: u64,
    /// Number of the first row.
    pub first: u64,
}

impl DropMask {
    fn threshold(&self) -> u64 {
        assert!((0.0..1.0).contains(&self.share), "a share of {} to drop", self.share);
        (self.share * 65536.0).round().min(65535.0) as u64
    }

    /// `1 / (1 - p)`.
    fn scale<E: Elem>(&self) -> E {
        E::from_f64(65536.0 / (65536 - self.threshold()) as f64)
    }
}

/// `y, h: [rows, d]`.
pub fn dropout_forward<E: Elem>(cx: &Exec, y: &mut [E], h: &[E], d: usize, mask: DropMask) {
    assert!(y.len() == h.len() && h.len().is_multiple_of(d));
    let _time = time(cx, "dropout_forward", (d, 0), Work::Bytes((3 * size_of_val(h)) as f64));
    let y = Shared::new(y);
    cx.rows(h.len() / d, |r| {
        let cells = area([r.start, d])..area([r.end, d]);
        let mask = DropMask { first: mask.first.wrapping_add(r.start as u64), ..mask };
        // SAFETY: ranges of different threads are disjoint.
        cx.op(Forward { y: unsafe { y.range(cells.clone()) }, h: &h[cells], d, mask });
    });
}

/// Turns `dy: [rows, d]` into its part through the branch, and writes the part around it.
pub fn dropout_backward<E: Elem>(cx: &Exec, dy: &mut [E], around: &mut [E], d: usize, mask: DropMask) {
    assert!(dy.len() == around.len() && dy.len().is_multiple_of(d));
    let _time = time(cx, "dropout_backward", (d, 0), Work::Bytes((3 * size_of_val(dy)) as f64));
    let rows = dy.len() / d;
    let (dy, around) = (Shared::new(dy), Shared::new(around));
    cx.rows(rows, |r| {
        let cells = area([r.start, d])..area([r.end, d]);
        let mask = DropMask { first: mask.first.wrapping_add(r.start as u64), ..mask };
        // SAFETY: ranges of different threads are disjoint.
        let (dy, around) = unsafe { (dy.range(cells.clone()), around.range(cells)) };
        cx.op(Backward { dy, around, d, mask });
    });
}

/// Output `at` of splitmix64 from `key` on.
#[inline(always)]
fn word(key: u64, at: u64) -> u64 {
    let mut z = key.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

struct Forward<'a, E> {
    y: &'a mut [E],
    h: &'a [E],
    d: usize,
    mask: DropMask,
}

impl<E: Elem> Op<E> for Forward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let (threshold, scale, words) = (self.mask.threshold(), self.mask.scale::<E>(), self.d.div_ceil(4) as u64);
        let mut row = self.mask.first.wrapping_mul(words);
        for (y, h) in self.y.chunks_exact_mut(self.d).zip(self.h.chunks_exact(self.d)) {
            let mut at = row;
            for (y, h) in y.chunks_mut(4).zip(h.chunks(4)) {
                let mut bits = word(self.mask.key, at);
                for (y, &h) in y.iter_mut().zip(h) {
                    *y = if bits & 0xffff < threshold { h } else { h + (*y - h) * scale };
                    bits >>= 16;
                }
                at = at.wrapping_add(1);
            }
            row = row.wrapping_add(words);
        }
    }
}

struct Backward<'a, E> {
    dy: &'a mut [E],
    around: &'a mut [E],
    d: usize,
    mask: DropMask,
}

impl<E: Elem> Op<E> for Backward<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let (threshold, scale, words) = (self.mask.threshold(), self.mask.scale::<E>(), self.d.div_ceil(4) as u64);
        let mut row = self.mask.first.wrapping_mul(words);
        for (dy, around) in self.dy.chunks_exact_mut(self.d).zip(self.around.chunks_exact_mut(self.d)) {
            let mut at = row;
            for (dy, around) in dy.chunks_mut(4).zip(around.chunks_mut(4)) {
                let mut bits = word(self.mask.key, at);
                for (dy, around) in dy.iter_mut().zip(around) {
                    let through = if bits & 0xffff < threshold { E::ZERO } else { *dy * scale };
                    (*around, *dy) = (*dy - through, through);
                    bits >>= 16;
                }
                at = at.wrapping_add(1);
            }
            row = row.wrapping_add(words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, random};

    /// The masks by the definition.
    fn masks(rows: usize, d: usize, mask: DropMask) -> Vec<f32> {
        let element = |i: usize| {
            let (row, column) = (mask.first + (i / d) as u64, i % d);
            let bits = word(mask.key, row * d.div_ceil(4) as u64 + column as u64 / 4) >> (column % 4 * 16) & 0xffff;
            if (bits as f64) < (mask.share * 65536.0).round() { 0.0 } else { 1.0 / (1.0 - mask.share as f32) }
        };
        (0..rows * d).map(element).collect()
    }

    #[test]
    fn words_are_those_of_splitmix64() {
        // Seed 1477776061723855037, as quoted in the tests of the crate rand_xoshiro.
        let want = [1985237415132408290, 2979275885539914483, 13511426838097143398];
        assert_eq!([0, 1, 2].map(|at| word(1477776061723855037, at)), want);
    }

    #[test]
    fn equals_the_formulas_wherever_the_rows_are_cut() {
        all_isas(|cx| {
            for (rows, d) in [(1, 1), (3, 4), (7, 5), (30, 130), (200, 32)] {
                let mask = DropMask { share: 0.25, key: 99, first: 1 << 40 };
                let m = masks(rows, d, mask);
                let [h, y, dy]: [Vec<f32>; 3] = [1, 2, 3].map(|seed| random(rows * d, seed));
                let mut got = y.clone();
                dropout_forward(cx, &mut got, &h, d, mask);
                let (mut through, mut around) = (dy.clone(), vec![f32::NAN; rows * d]);
                dropout_backward(cx, &mut through, &mut around, d, mask);
                for i in 0..rows * d {
                    assert!((got[i] - (h[i] + m[i] * (y[i] - h[i]))).abs() < 1e-6);
                    assert!(
                        (through[i] - m[i] * dy[i]).abs() < 1e-6 && (around[i] - (1.0 - m[i]) * dy[i]).abs() < 1e-6
                    );
                }
                // The later rows by themselves.
                let (later, n) = (DropMask { first: mask.first + 1, ..mask }, d.min(rows * d));
                let mut own = y[n..].to_vec();
                dropout_forward(cx, &mut own, &h[n..], d, later);
                assert!(own == got[n..]);
            }
        });
    }

    #[test]
    fn the_share_is_dropped() {
        for share in [0.0, 0.1, 0.5, 0.9] {
            let m = masks(1000, 100, DropMask { share, key: 5, first: 0 });
            let dropped = m.iter().filter(|&&m| m == 0.0).count() as f64 / 1e5;
            assert!((dropped - share).abs() < 0.006, "{dropped} for {share}");
        }
    }
}
