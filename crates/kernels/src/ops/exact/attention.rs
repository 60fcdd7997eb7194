//! Attention of one head over the tokens its state holds: `o = sum_c p_c v_c`, `p = softmax_c(q . k_c)`, for some queries that follow
//! each other; and the rotation of a head's pairs ([`crate::ops::rope`]).
//!
//! The state is a ring of slots, the row after `p` others of its document in slot `p mod slots`: values in rows `[slots, d]`, keys
//! in blocks of 16 slots, `[slots / 16, d, 16]`, so that vectors hold a column of as many keys. There are more slots than the
//! window has rows, so that the rows of [`EXACT_QUERIES`] queries can be there at once. A slot that a query does not see weighs
//! 0, which changes no sum: a query gives the same bits alone and among others.
//!
//! A score is summed in the order of columns, the weights in 16 lanes of slots, an output in the order of slots.

use std::ops::Range;

use super::choose::max;
use super::{Lanes, exp, sum};
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};
use crate::size::{area, end, whole};

/// Keys of a block.
pub(super) const BLOCK: usize = 16;

/// Most queries of one call.
pub const EXACT_QUERIES: usize = 16;

/// Slots of a ring from which a query sees at most `window` rows, itself included.
pub fn exact_slots(window: usize) -> usize {
    whole(end(window, EXACT_QUERIES - 1), BLOCK)
}

/// Puts the key and the value of the row after `past` others, `[d]` each, into a ring.
pub fn exact_attention_keep((keys, values): (&mut [f32], &mut [f32]), k: &[f32], v: &[f32], past: u32) {
    let d = k.len();
    assert!(v.len() == d && keys.len() == values.len());
    let slot = keep_key(keys, k, past);
    values[slot * d..(slot + 1) * d].copy_from_slice(v);
}

/// Puts the key alone, and returns its slot.
pub(super) fn keep_key(keys: &mut [f32], k: &[f32], past: u32) -> usize {
    let d = k.len();
    let slot = past as usize % (keys.len() / d);
    let block = &mut keys[slot / BLOCK * BLOCK * d..][..BLOCK * d];
    for (column, k) in block.chunks_exact_mut(BLOCK).zip(k) {
        column[slot % BLOCK] = *k;
    }
    slot
}

/// `o: [n, d]` of the scaled queries `q: [n, d]` of at most [`EXACT_QUERIES`] rows of a document that follow each other, the first
/// after `past` others, all of them in the ring `(keys, values)`, of which each sees the last `window`; `weights: [n, slots]` is
/// working memory.
pub fn exact_attention(
    cx: &Exec,
    o: &mut [f32],
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    weights: &mut [f32],
    (past, window, d): (u32, usize, usize),
) {
    let (n, slots) = (q.len() / d, exact_slots(window));
    assert!((1..=EXACT_QUERIES).contains(&n) && q.len() == n * d && o.len() == q.len() && window > 0);
    assert!(keys.len() == area([slots, d]) && values.len() == keys.len() && weights.len() >= n * slots);
    let past = past as usize;
    let seen: usize = (0..n).map(|t| window.min(past + t + 1)).sum();
    let _time = time(cx, "exact_attention", (d, window), Work::Flops((4 * seen * d) as f64));
    cx.op(Attend { o, q, keys, values, weights, past, window, slots, d });
}

struct Attend<'a> {
    o: &'a mut [f32],
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    weights: &'a mut [f32],
    past: usize,
    window: usize,
    slots: usize,
    d: usize,
}

impl Op<f32> for Attend<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Attend { o, q, keys, values, weights, past, window, slots, d } = self;
        let n = q.len() / d;
        // Whole blocks; beyond them nothing of this document has been kept.
        let used = slots.min((past + n).next_multiple_of(BLOCK));
        let mut t = 0;
        while t < n {
            let rows = if t + 4 <= n { 4 } else { 1 };
            let (q, weights) = (&q[t * d..(t + rows) * d], &mut weights[t * slots..(t + rows) * slots]);
            // SAFETY: the machine supports `S`; so many queries, slots and columns are there.
            unsafe {
                if rows == 4 {
                    scores::<S, 4, 2>(weights, q, keys, (used, slots, d));
                } else {
                    scores::<S, 1, 4>(weights, q, keys, (used, slots, d));
                }
            }
            let mut by = [0.0; 4];
            for (i, (w, by)) in weights.chunks_exact_mut(slots).zip(&mut by).enumerate() {
                *by = 1.0 / softmax(&mut w[..used], seen(past + t + i, window, slots));
            }
            let o = &mut o[t * d..(t + rows) * d];
            // SAFETY: as above.
            unsafe {
                if rows == 4 {
                    outputs::<S, 4, 2>(o, weights, values, &by, (used, slots, d));
                } else {
                    outputs::<S, 1, 4>(o, weights, values, &by, (used, slots, d));
                }
            }
            t += rows;
        }
    }
}

/// The slots that the row after `past` others sees, in one or two runs.
#[inline(always)]
pub(super) fn seen(past: usize, window: usize, slots: usize) -> [Range<usize>; 2] {
    let (end, count) = (past % slots + 1, window.min(past + 1));
    if count <= end { [end - count..end, end..end] } else { [0..end, slots + end - count..slots] }
}

/// The largest score of the slots that are seen.
#[inline(always)]
pub(super) fn largest(w: &[f32], [low, high]: &[Range<usize>; 2]) -> f32 {
    let (a, b) = (max(&w[low.clone()]), max(&w[high.clone()]));
    // The form that keeps NaN.
    if a > b || a.is_nan() { a } else { b }
}

/// Weights from scores, in place; those of slots that are not `seen` are 0. Returns their sum.
#[inline(always)]
fn softmax(w: &mut [f32], seen: [Range<usize>; 2]) -> f32 {
    let top = largest(w, &seen);
    let [low, high] = seen;
    for w in w.iter_mut() {
        *w = exp(*w - top);
    }
    w[..low.start].fill(0.0);
    w[low.end..high.start].fill(0.0);
    w[high.end..].fill(0.0);
    let mut acc: Lanes = [0.0; 16];
    for w in w.chunks_exact(16) {
        for (acc, w) in acc.iter_mut().zip(w) {
            *acc += w;
        }
    }
    sum(acc)
}

/// `w: [M, slots]`, of which the first `used` become `q . k`.
///
/// # Safety
/// The machine supports `S`; `q: [M, d]`, `keys` has `used` slots, a multiple of 16, at most as many as a row of `w`.
#[inline(always)]
pub(super) unsafe fn scores<S: Simd<E = f32>, const M: usize, const N: usize>(
    w: &mut [f32],
    q: &[f32],
    keys: &[f32],
    (used, slots, d): (usize, usize, usize),
) {
    let mut at = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while at + N * S::LANES <= used {
            columns::<S, M, N>(w, q, keys, at, (slots, d));
            at += N * S::LANES;
        }
        while at < used {
            columns::<S, M, 1>(w, q, keys, at, (slots, d));
            at += S::LANES;
        }
    }
}

/// Scores of `N` vectors of keys from slot `at` on.
///
/// # Safety
/// As for [`scores`]; there are so many slots.
#[inline(always)]
unsafe fn columns<S: Simd<E = f32>, const M: usize, const N: usize>(
    w: &mut [f32],
    q: &[f32],
    keys: &[f32],
    at: usize,
    (slots, d): (usize, usize),
) {
    // SAFETY: the caller's promise; lanes of a vector are in one block.
    unsafe {
        let mut from = [keys.as_ptr(); N];
        for (j, from) in from.iter_mut().enumerate() {
            let slot = at + j * S::LANES;
            *from = from.add(slot / BLOCK * BLOCK * d + slot % BLOCK);
        }
        let mut sums = [[S::splat(0.0); N]; M];
        for i in 0..d {
            let mut k = [S::splat(0.0); N];
            for (k, from) in k.iter_mut().zip(&mut from) {
                *k = S::load(*from);
                *from = from.wrapping_add(BLOCK);
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                let q = S::splat(*q.as_ptr().add(t * d + i));
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = S::add(*sum, S::mul(q, k));
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                S::store(w.as_mut_ptr().add(t * slots + at + j * S::LANES), *sum);
            }
        }
    }
}

/// `o: [M, d]`, the sums of `used` values by their weights, times `by` of each row.
///
/// # Safety
/// The machine supports `S`; `w: [M, slots]`, and `values` has `used` rows of `d`.
#[inline(always)]
unsafe fn outputs<S: Simd<E = f32>, const M: usize, const N: usize>(
    o: &mut [f32],
    w: &[f32],
    values: &[f32],
    by: &[f32; 4],
    (used, slots, d): (usize, usize, usize),
) {
    let mut i = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while i + N * S::LANES <= d {
            rows::<S, M, N>(o, w, values, by, (used, slots, d), i, S::LANES);
            i += N * S::LANES;
        }
        while i < d {
            let lanes = S::LANES.min(d - i);
            rows::<S, M, 1>(o, w, values, by, (used, slots, d), i, lanes);
            i += lanes;
        }
    }
}

/// Outputs of `N` vectors of `lanes` columns from `i` on.
///
/// # Safety
/// As for [`outputs`]; there are so many columns.
#[inline(always)]
unsafe fn rows<S: Simd<E = f32>, const M: usize, const N: usize>(
    o: &mut [f32],
    w: &[f32],
    values: &[f32],
    by: &[f32; 4],
    (used, slots, d): (usize, usize, usize),
    i: usize,
    lanes: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; M];
        let mut value = values.as_ptr().add(i);
        for c in 0..used {
            let mut v = [S::splat(0.0); N];
            for (j, v) in v.iter_mut().enumerate() {
                *v = S::get(value.add(j * S::LANES), lanes);
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                let w = S::splat(*w.as_ptr().add(t * slots + c));
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = S::add(*sum, S::mul(w, v));
                }
            }
            value = value.wrapping_add(d);
        }
        for (t, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let o = o.as_mut_ptr().add(t * d + i + j * S::LANES);
                S::put(o, S::mul(*sum, S::splat(by[t])), lanes);
            }
        }
    }
}

/// Turns pairs `i, i + d/2` of each head of `x: [heads, d]` by the angles whose cosines, then sines, are `turns: [d]`, and multiplies
/// by `by`.
pub fn exact_rope(cx: &Exec, y: &mut [f32], x: &[f32], turns: &[f32], by: f32) {
    assert!(turns.len().is_multiple_of(2) && y.len() == x.len() && x.len().is_multiple_of(turns.len()));
    cx.op(Turn { y, x, turns, by });
}

struct Turn<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    turns: &'a [f32],
    by: f32,
}

impl Op<f32> for Turn<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Turn { y, x, turns, by } = self;
        let half = turns.len() / 2;
        let (cos, sin) = turns.split_at(half);
        for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
            let ((y, z), (a, b)) = (y.split_at_mut(half), x.split_at(half));
            for i in 0..half {
                y[i] = by * (a[i] * cos[i] - b[i] * sin[i]);
                z[i] = by * (b[i] * cos[i] + a[i] * sin[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    /// `[n, d]` queries, keys and values of a document of `n` rows.
    fn document(n: usize, d: usize) -> [Vec<f32>; 3] {
        let q: Vec<f32> = random::<f32>(n * d, 1).iter().map(|x| 3.0 * x).collect();
        [q, random(n * d, 2), random(n * d, 3)]
    }

    /// All rows, at most `piece` at a time.
    fn in_pieces(cx: &Exec, [q, k, v]: &[Vec<f32>; 3], d: usize, window: usize, piece: usize) -> Vec<f32> {
        let slots = exact_slots(window);
        let (mut keys, mut values) = (vec![0.0; slots * d], vec![0.0; slots * d]);
        let (mut o, mut weights) = (vec![f32::NAN; q.len()], vec![f32::NAN; piece * slots]);
        for (i, (o, q)) in o.chunks_mut(piece * d).zip(q.chunks(piece * d)).enumerate() {
            for row in i * piece..i * piece + q.len() / d {
                let own = row * d..(row + 1) * d;
                exact_attention_keep((&mut keys, &mut values), &k[own.clone()], &v[own], row as u32);
            }
            exact_attention(cx, o, q, (&keys, &values), &mut weights, ((i * piece) as u32, window, d));
        }
        o
    }

    #[test]
    fn equals_the_formula_in_f64_in_any_pieces_and_has_the_same_bits_everywhere() {
        for (n, d, window) in [(1, 1, 1), (70, 8, 5), (80, 56, 20), (40, 33, 64), (100, 48, 33)] {
            let all = document(n, d);
            let [q, k, v] = &all;
            let mut want = Vec::new();
            for (t, q) in q.chunks(d).enumerate() {
                let rows = || t.saturating_sub(window - 1) * d..(t + 1) * d;
                let score = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>().exp();
                let p: Vec<f64> = k[rows()].chunks(d).map(score).collect();
                let sum: f64 = p.iter().sum();
                let o = |i: usize| p.iter().zip(v[rows()].chunks(d)).map(|(p, v)| p / sum * f64::from(v[i])).sum();
                want.extend((0..d).map(|i| {
                    let o: f64 = o(i);
                    o as f32
                }));
            }
            let first = in_pieces(&Exec::new(crate::Isa::SCALAR, 1), &all, d, window, 1);
            assert_close(&first, &want, 1e-6, "attention");
            all_isas(|cx| {
                for piece in [1, 3, 4, 7, EXACT_QUERIES] {
                    assert!(in_pieces(cx, &all, d, window, piece) == first, "{:?}, {piece} at a time", cx.isa());
                }
            });
        }
    }

    #[test]
    fn what_lies_in_slots_of_a_document_before_is_not_seen() {
        all_isas(|cx| {
            let (d, window) = (5, 40);
            let slots = exact_slots(window);
            let (mut keys, mut values) = (vec![9.0; slots * d], vec![7.0; slots * d]);
            exact_attention_keep((&mut keys, &mut values), &[1.0; 5], &[0.5; 5], 0);
            let mut o = [f32::NAN; 5];
            exact_attention(cx, &mut o, &[1.0; 5], (&keys, &values), &mut vec![0.0; slots], (0, window, d));
            assert_eq!(o, [0.5; 5]);
        });
    }

    #[test]
    fn turning_back_gives_what_was() {
        let x: Vec<f32> = random(30, 4);
        let angles = [0.3f32, 1.0, -2.0, 0.0, 5.0];
        let turns = |sign: f32| -> Vec<f32> {
            angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| sign * a.sin())).collect()
        };
        all_isas(|cx| {
            let (mut y, mut back) = (vec![f32::NAN; 30], vec![f32::NAN; 30]);
            exact_rope(cx, &mut y, &x, &turns(1.0), 2.0);
            for (y, x) in y.chunks(10).zip(x.chunks(10)) {
                assert!((y[0] - 2.0 * (x[0] * angles[0].cos() - x[5] * angles[0].sin())).abs() < 1e-6);
            }
            exact_rope(cx, &mut back, &y, &turns(-1.0), 0.5);
            assert_close(&back, &x, 1e-6, "rope");
        });
    }
}
