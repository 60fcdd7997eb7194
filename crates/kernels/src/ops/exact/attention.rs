//! Attention of one head and one token over the tokens its state holds: `o = sum_c p_c v_c`, `p = softmax_c(q . k_c)`, one key after
//! the other in the order of time; and the rotation of a head's pairs ([`crate::ops::rope`]).

use super::{dot, exp};
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};

/// `o: [d]` from the scaled query `q: [d]` and a ring of `keys, values: [window, d]`, of which the rows `from .. from + count`
/// count, modulo the window; `scores: [count]` is working memory.
pub fn exact_attention(
    cx: &Exec,
    o: &mut [f32],
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    scores: &mut [f32],
    (from, count): (usize, usize),
) {
    let d = q.len();
    assert!(o.len() == d && keys.len() == values.len() && keys.len().is_multiple_of(d));
    let window = keys.len() / d;
    assert!((1..=window).contains(&count) && from < window && scores.len() >= count);
    let _time = time(cx, "exact_attention", (d, window), Work::Flops((4 * count * d) as f64));
    cx.op(Attend { o, q, keys, values, scores: &mut scores[..count], from, window });
}

struct Attend<'a> {
    o: &'a mut [f32],
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    scores: &'a mut [f32],
    from: usize,
    window: usize,
}

impl Op<f32> for Attend<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Attend { o, q, keys, values, scores, from, window } = self;
        let d = q.len();
        let row = |c: usize| (if from + c < window { from + c } else { from + c - window }) * d;
        let mut max = f32::NEG_INFINITY;
        for (c, score) in scores.iter_mut().enumerate() {
            let s = dot(q, &keys[row(c)..row(c) + d]);
            *score = s;
            max = if s > max || s.is_nan() { s } else { max };
        }
        let mut sum = 0.0;
        o.fill(0.0);
        for (c, score) in scores.iter().enumerate() {
            let p = exp(score - max);
            sum += p;
            for (o, v) in o.iter_mut().zip(&values[row(c)..row(c) + d]) {
                *o += p * v;
            }
        }
        let r = 1.0 / sum;
        for o in o.iter_mut() {
            *o *= r;
        }
    }
}

/// Turns pairs `i, i + d/2` of `x: [d]` by the angles whose cosines, then sines, are `turns: [d]`, and multiplies by `by`.
pub fn exact_rope(x: &mut [f32], turns: &[f32], by: f32) {
    let half = x.len() / 2;
    assert!(turns.len() == x.len() && x.len() == 2 * half);
    let (low, high) = x.split_at_mut(half);
    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns[..half].iter().zip(&turns[half..])) {
        (*a, *b) = (by * (*a * cos - *b * sin), by * (*b * cos + *a * sin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_the_formula_in_f64_and_has_the_same_bits_everywhere() {
        for (d, window, from, count) in [(1, 1, 0, 1), (8, 5, 3, 4), (56, 20, 19, 20), (33, 9, 0, 2)] {
            let q: Vec<f32> = random::<f32>(d, 1).iter().map(|x| 3.0 * x).collect();
            let (keys, values): (Vec<f32>, Vec<f32>) = (random(window * d, 2), random(window * d, 3));
            let run = |cx: &Exec| {
                let (mut o, mut scores) = (vec![f32::NAN; d], vec![0.0; window]);
                exact_attention(cx, &mut o, &q, (&keys, &values), &mut scores, (from, count));
                o
            };
            let rows = || (0..count).map(|c| (from + c) % window * d);
            let dot = |row: usize| -> f64 { (0..d).map(|i| f64::from(q[i]) * f64::from(keys[row + i])).sum() };
            let sum: f64 = rows().map(|row| dot(row).exp()).sum();
            let want =
                (0..d).map(|i| rows().map(|row| dot(row).exp() / sum * f64::from(values[row + i])).sum::<f64>() as f32);
            let first = run(&Exec::new(crate::Isa::SCALAR, 1));
            assert_close(&first, &want.collect::<Vec<_>>(), 1e-6, "attention");
            all_isas(|cx| assert!(run(cx) == first, "{:?}", cx.isa()));
        }
    }

    #[test]
    fn turning_back_gives_what_was() {
        let x: Vec<f32> = random(10, 4);
        let angles = [0.3f32, 1.0, -2.0, 0.0, 5.0];
        let turns = |sign: f32| -> Vec<f32> {
            angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| sign * a.sin())).collect()
        };
        let mut y = x.clone();
        exact_rope(&mut y, &turns(1.0), 2.0);
        assert!((y[0] - 2.0 * (x[0] * angles[0].cos() - x[5] * angles[0].sin())).abs() < 1e-6);
        exact_rope(&mut y, &turns(-1.0), 0.5);
        assert_close(&y, &x, 1e-6, "rope");
    }
}
