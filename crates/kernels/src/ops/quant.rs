//! Ternary quantiser of BitLinear: `wq = clamp(round(w / (alpha + 1e-8)), -1, 1) * alpha`, halves rounded to even.
//!
//! `alpha` is the mean (or lower median) of `|w|` over a whole matrix, over flat blocks of `N` elements, or over groups of
//! `N` along each row. A short last flat block counts as padded with zeros in the mean's denominator, unless the matrix
//! has at most `N` elements and so a single block of its own size; a short last group of a row uses its own size.
//! The gradient passes straight through to `w`. Source: BitNet b1.58 (arXiv 2402.17764), absmean quantisation.
//!
//! Without a scale ([`Scale::Unit`]): `wq = 1` where `w > alpha`, `-1` where `w < -alpha`, else 0, `alpha` that of the whole matrix.

use crate::exec::{Exec, Shared};
use crate::ops::reduce::{BLOCK, sum_blocks};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::area;

/// Which weights share one `alpha`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The whole matrix.
    Tensor,
    /// `N` consecutive elements of the flattened matrix.
    Block(usize),
    /// `N` consecutive elements of one row.
    Group(usize),
    /// The whole matrix, for which `alpha` is a threshold alone: codes are not scaled.
    Unit,
}

/// How `alpha` summarises `|w|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Lower median.
    Median,
}

/// The quantiser's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quant {
    /// Which weights share one `alpha`.
    pub scale: Scale,
    /// How `alpha` summarises them.
    pub stat: Statistic,
}

/// Writes the ternary `wq` of `w: [rows, cols]`; `scratch`, as long as `w`, is used by the median.
pub fn quantise<E: Elem, A: Store<E = E>>(
    cx: &Exec,
    wq: &mut [A],
    scratch: &mut [E],
    w: &[E],
    (rows, cols): (usize, usize),
    quant: Quant,
) {
    let len = area([rows, cols]);
    assert!(w.len() == len && wq.len() == len && (quant.stat == Statistic::Mean || scratch.len() >= len));
    let (unit, row) = match quant.scale {
        Scale::Tensor | Scale::Unit => (len, len),
        Scale::Block(n) => (n.min(len), len),
        Scale::Group(n) => (n.min(cols), cols),
    };
    if unit == 0 {
        return;
    }
    let _time = time(cx, "quantise", (rows, cols), Work::Bytes((len * (size_of::<E>() + size_of::<A>())) as f64));
    let (wq, scratch) = (Shared::new(wq), Shared::new(scratch));
    if unit == len {
        let alpha = match quant.stat {
            Statistic::Mean => sum_blocks(cx, w, |block| cx.op(SumAbs { x: block }).to_f64()) / len as f64,
            // SAFETY: no other thread runs.
            Statistic::Median => median(unsafe { scratch.range(0..len) }, w).to_f64(),
        };
        let alpha = E::from_f64(alpha);
        cx.pool().split(len, BLOCK, |r| {
            // SAFETY: ranges of different threads are disjoint.
            let (wq, w) = (unsafe { wq.range(r.clone()) }, &w[r]);
            match quant.scale {
                Scale::Unit => cx.op(Signs { wq, w, alpha }),
                _ => cx.op(Ternary { wq, w, alpha }),
            }
        });
        return;
    }
    let per_row = row.div_ceil(unit);
    cx.rows(len / row * per_row, |units| {
        for i in units {
            let start = i / per_row * row + i % per_row * unit;
            let r = start..(start + unit).min((i / per_row + 1) * row);
            let w = &w[r.clone()];
            let count = if matches!(quant.scale, Scale::Block(_)) { unit } else { w.len() };
            let alpha = match quant.stat {
                Statistic::Mean => E::from_f64(cx.op(SumAbs { x: w }).to_f64() / count as f64),
                // SAFETY: one unit, one thread.
                Statistic::Median => median(unsafe { scratch.range(r.clone()) }, w),
            };
            // SAFETY: one unit, one thread.
            cx.op(Ternary { wq: unsafe { wq.range(r) }, w, alpha });
        }
    });
}

fn median<E: Elem>(scratch: &mut [E], w: &[E]) -> E {
    scratch.iter_mut().zip(w).for_each(|(s, w)| *s = w.abs());
    let middle = (w.len() - 1) / 2;
    *scratch.select_nth_unstable_by(middle, E::total_cmp).1
}

struct SumAbs<'a, E> {
    x: &'a [E],
}

impl<E: Elem> Op<E> for SumAbs<'_, E> {
    type Out = E;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> E {
        // SAFETY: offsets are below the length; missing lanes load as zero.
        unsafe {
            let mut acc = S::splat(E::ZERO);
            each!(S, self.x.len(), |i, n| acc = S::add(acc, S::abs(S::get(self.x.as_ptr().add(i), n))));
            S::sum(acc)
        }
    }
}

struct Ternary<'a, E, A> {
    wq: &'a mut [A],
    w: &'a [E],
    alpha: E,
}

impl<E: Elem, A: Store<E = E>> Op<E> for Ternary<'_, E, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        // SAFETY: offsets are below the common length.
        unsafe {
            let (one, alpha) = (S::splat(E::ONE), S::splat(self.alpha));
            let minus = S::sub(S::splat(E::ZERO), one);
            let divisor = S::add(alpha, S::splat(E::from_f64(1e-8)));
            each!(S, self.w.len(), |i, n| {
                let q = S::round(S::div(S::get(self.w.as_ptr().add(i), n), divisor));
                let wq = S::mul(S::max(minus, S::min(one, q)), alpha);
                A::put::<S>(self.wq.as_mut_ptr().add(i), wq, n);
            });
        }
    }
}

/// [`Scale::Unit`].
struct Signs<'a, E, A> {
    wq: &'a mut [A],
    w: &'a [E],
    alpha: E,
}

impl<E: Elem, A: Store<E = E>> Op<E> for Signs<'_, E, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        for (wq, &w) in self.wq.iter_mut().zip(self.w) {
            let above = if w > self.alpha { E::ONE } else { E::ZERO };
            *wq = A::narrow(if w < -self.alpha { -E::ONE } else { above });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, random};

    fn naive(w: &[f32], cols: usize, quant: Quant) -> Vec<f32> {
        let alpha_of = |unit: &[f32], padded: usize| -> f32 {
            let mut all: Vec<f32> = unit.iter().map(|w| w.abs()).collect();
            match quant.stat {
                Statistic::Mean => (all.iter().map(|&x| f64::from(x)).sum::<f64>() / padded as f64) as f32,
                Statistic::Median => {
                    all.sort_by(f32::total_cmp);
                    all[(all.len() - 1) / 2]
                }
            }
        };
        let ternary = |unit: &[f32], alpha: f32| -> Vec<f32> {
            unit.iter().map(|w| (w / (alpha + 1e-8)).round_ties_even().clamp(-1.0, 1.0) * alpha).collect()
        };
        match quant.scale {
            Scale::Unit => {
                let alpha = alpha_of(w, w.len());
                w.iter().map(|w| if w.abs() > alpha { w.signum() } else { 0.0 }).collect()
            }
            Scale::Tensor => ternary(w, alpha_of(w, w.len())),
            Scale::Block(n) => w.chunks(n).flat_map(|u| ternary(u, alpha_of(u, n.min(w.len())))).collect(),
            Scale::Group(n) => {
                w.chunks(cols).flat_map(|r| r.chunks(n)).flat_map(|u| ternary(u, alpha_of(u, u.len()))).collect()
            }
        }
    }

    #[test]
    fn equals_the_plain_loop_for_every_switch() {
        all_isas(|cx| {
            let scales =
                [Scale::Tensor, Scale::Unit, Scale::Block(7), Scale::Block(256), Scale::Group(5), Scale::Group(64)];
            for (scale, stat) in scales.into_iter().flat_map(|s| [(s, Statistic::Mean), (s, Statistic::Median)]) {
                let odd = (1..=130).map(|cols| (1 + cols % 7, cols));
                for (rows, cols) in odd.chain([(16, 16), (40, 56), (100, 90)]) {
                    let quant = Quant { scale, stat };
                    let w: Vec<f32> = random(rows * cols, (rows + cols) as u64);
                    let (mut wq, mut scratch) = (vec![f32::NAN; w.len()], vec![f32::NAN; w.len()]);
                    quantise(cx, &mut wq, &mut scratch, &w, (rows, cols), quant);
                    let want = naive(&w, cols, quant);
                    let mut narrow = vec![Bf16::NAN; w.len()];
                    quantise(cx, &mut narrow, &mut scratch, &w, (rows, cols), quant);
                    assert!(narrow.iter().zip(&wq).all(|(&n, &q)| n == Bf16::from_f32(q)));
                    for (i, (q, want)) in wq.iter().zip(&want).enumerate() {
                        // One alpha sums up to 1024 terms in f32 before it goes on in f64.
                        assert!(
                            (q - want).abs() <= 1e-6 * want.abs(),
                            "{quant:?} {rows}x{cols} at {i}: {q} for {want}"
                        );
                    }
                }
            }
        });
    }
}
