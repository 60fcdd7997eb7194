//! Pointers into the text, of one row ([`crate::ops::pointer_forward`]): `z_v <- ln(exp(z_v) + m_v)`, `m_v = sum of exp(s_c)` over the keys that
//! the row sees after which `v` stands, `s_c = q . k_c + bias`.
//!
//! Keys lie in a ring as those of attention ([`super::attention`]), of which a row sees the last `window` before itself, and `next[slot]` is the
//! token after the key's row. With `top` the largest score, masses are summed from the oldest key to the newest:
//!
//! ```text
//! m_v = sum of exp(s_c - top)     a = max(z_v, top)     z_v <- a + ln(exp(z_v - a) + exp(top - a) m_v)
//! ```

use super::attention::{BLOCK, exact_slots, keep_key, largest, scores, seen};
use super::{exp, ln};
use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::{Op, Simd};
use crate::size::{area, end};

/// Slots of a ring from which a row sees the `window` rows before itself, when as many as attention takes at once are there.
pub fn pointer_slots(window: usize) -> usize {
    exact_slots(end(window, 1))
}

/// Puts the key of the row after `past` others, `[d]`, into a ring.
pub fn exact_pointer_keep(keys: &mut [f32], k: &[f32], past: u32) {
    keep_key(keys, k, past);
}

/// Changes the logits `z` of the row after `past` others of its document, whose scaled query is `q: [d]`; `weights: [slots]` and
/// `mass: [V]`, all zeros before and after, are working memory.
pub fn exact_pointer(
    cx: &Exec,
    z: &mut [f32],
    q: &[f32],
    (keys, next): (&[f32], &[f32]),
    (weights, mass): (&mut [f32], &mut [f32]),
    (past, window, bias): (u32, usize, f32),
) {
    let (d, slots, past) = (q.len(), pointer_slots(window), past as usize);
    assert!(keys.len() == area([slots, d]) && next.len() == slots && window > 0);
    assert!(weights.len() == slots && mass.len() == z.len());
    let _time = time(cx, "exact_pointer", (d, window), Work::Flops((2 * window.min(past) * d) as f64));
    if past > 0 {
        cx.op(Point { z, q, keys, next, weights, mass, past, window, bias });
    }
}

struct Point<'a> {
    z: &'a mut [f32],
    q: &'a [f32],
    keys: &'a [f32],
    next: &'a [f32],
    weights: &'a mut [f32],
    mass: &'a mut [f32],
    past: usize,
    window: usize,
    bias: f32,
}

impl Op<f32> for Point<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = f32>>(self) {
        let Point { z, q, keys, next, weights, mass, past, window, bias } = self;
        let slots = weights.len();
        // Whole blocks; beyond them nothing of this document has been kept.
        let used = slots.min(past.next_multiple_of(BLOCK));
        // SAFETY: the machine supports `S`; one query, and so many slots and columns are there.
        unsafe { scores::<S, 1, 4>(weights, q, keys, (used, slots, q.len())) };
        let [low, high] = seen(past - 1, window, slots);
        // From the oldest on: what is behind the newest is older.
        let runs = [high, low];
        for run in runs.clone() {
            weights[run].iter_mut().for_each(|s| *s += bias);
        }
        let top = largest(weights, &runs);
        for run in runs.clone() {
            weights[run].iter_mut().for_each(|s| *s = exp(*s - top));
        }
        for run in runs.clone() {
            for (next, weight) in next[run.clone()].iter().zip(&weights[run]) {
                mass[*next as usize] += weight;
            }
        }
        for run in runs {
            for next in &next[run] {
                let (z, mass) = (&mut z[*next as usize], &mut mass[*next as usize]);
                // What is no number stays none.
                if *mass != 0.0 && !z.is_nan() {
                    let a = if *z > top { *z } else { top };
                    *z = a + ln(exp(*z - a) + exp(top - a) * *mass);
                }
                *mass = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_the_formula_in_f64_and_has_the_same_bits_everywhere() {
        for (n, d, window, v) in [(1, 1, 1, 3), (60, 8, 5, 7), (80, 33, 64, 40), (90, 16, 33, 11)] {
            let (q, k): (Vec<f32>, Vec<f32>) = (random(n * d, 1), random(n * d, 2));
            let z: Vec<f32> = random::<f32>(n * v, 3).iter().map(|z| 4.0 * z).collect();
            let tokens: Vec<usize> = random::<f32>(n, 4).iter().map(|x| (x.abs() * 1e6) as usize % v).collect();
            let mut want = Vec::new();
            for t in 0..n {
                let mut mass: Vec<f64> = z[t * v..(t + 1) * v].iter().map(|&z| f64::from(z).exp()).collect();
                for c in t.saturating_sub(window)..t {
                    let s: f64 = (0..d).map(|i| f64::from(q[t * d + i]) * f64::from(k[c * d + i])).sum();
                    mass[tokens[c + 1]] += (s + 0.5).exp();
                }
                want.extend(mass.iter().map(|mass| mass.ln() as f32));
            }
            let run = |cx: &Exec| {
                let slots = pointer_slots(window);
                let (mut keys, mut next) = (vec![0.0; slots * d], vec![0.0; slots]);
                let (mut weights, mut mass, mut got) = (vec![f32::NAN; slots], vec![0.0; v], z.clone());
                for (t, z) in got.chunks_mut(v).enumerate() {
                    if t > 0 {
                        next[(t - 1) % slots] = tokens[t] as f32;
                    }
                    exact_pointer_keep(&mut keys, &k[t * d..(t + 1) * d], t as u32);
                    let work = (&mut weights[..], &mut mass[..]);
                    exact_pointer(cx, z, &q[t * d..(t + 1) * d], (&keys, &next), work, (t as u32, window, 0.5));
                }
                assert!(mass.iter().all(|&mass| mass == 0.0));
                got
            };
            let first = run(&Exec::new(crate::Isa::SCALAR, 1));
            assert_close(&first, &want, 2e-6, "logits");
            all_isas(|cx| assert!(run(cx) == first, "{:?}", cx.isa()));
        }
    }
}
