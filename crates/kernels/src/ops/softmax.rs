//! Softmax cross-entropy of rows of logits: `loss = log sum_j exp(z_j) - z_target`,
//! `dz = (softmax(z) - onehot(target)) * scale`, written over the logits.

use crate::Token;
use crate::dispatch::Op;
use crate::elem::Elem;
use crate::exec::{Exec, Shared};
use crate::simd::{Simd, each};

/// Writes `loss: [rows]` in nats and turns `logits: [rows, v]` into their gradients times `scale`.
pub fn cross_entropy<E: Elem>(cx: &Exec, loss: &mut [E], logits: &mut [E], targets: &[Token], v: usize, scale: E) {
    assert!(loss.len() == targets.len() && logits.len() >= targets.len() * v);
    assert!(targets.iter().all(|&t| usize::from(t) < v), "target beyond the vocabulary");
    let (loss, logits) = (Shared::new(loss), Shared::new(logits));
    cx.rows(targets.len(), |r| {
        for row in r {
            // SAFETY: one row, one thread.
            let (loss, z) = unsafe { (loss.range(row..row + 1), logits.range(row * v..(row + 1) * v)) };
            let target = usize::from(targets[row]);
            let own = z[target];
            let (max, sum) = cx.op(ExpInPlace { z });
            loss[0] = E::from_f64(max.to_f64() + sum.to_f64().ln() - own.to_f64());
            cx.op(Scale { z, by: E::from_f64(scale.to_f64() / sum.to_f64()) });
            z[target] += -scale;
        }
    });
}

/// Writes `log softmax(z)[target]` in nats of each row, `logits: [rows, v]` left as they are.
pub fn log_probs<E: Elem>(cx: &Exec, out: &mut [f64], logits: &[E], targets: &[Token], v: usize) {
    assert!(out.len() == targets.len() && logits.len() >= targets.len() * v);
    let out = Shared::new(out);
    cx.rows(targets.len(), |r| {
        for row in r {
            let z = &logits[row * v..(row + 1) * v];
            let (max, sum) = cx.op(SumExp { z });
            // SAFETY: one row, one thread.
            let out = unsafe { out.range(row..row + 1) };
            out[0] = z[usize::from(targets[row])].to_f64() - max.to_f64() - sum.to_f64().ln();
        }
    });
}

#[inline(always)]
unsafe fn row_max<S: Simd>(z: &[S::E]) -> S::E {
    // SAFETY: offsets are inside the row; a short tail is read again as part of the last full vector.
    unsafe {
        let p = z.as_ptr();
        if z.len() < S::LANES {
            let mut max = z[0];
            for &x in z {
                if x > max || x.partial_cmp(&x).is_none() {
                    max = x;
                }
            }
            return max;
        }
        let mut max = S::load(p);
        each!(S, z.len(), |i, n| max = S::max(max, S::load(p.add(i + n - S::LANES))));
        S::hmax(max)
    }
}

struct ExpInPlace<'a, E> {
    z: &'a mut [E],
}

impl<E: Elem> Op<E> for ExpInPlace<'_, E> {
    type Out = (E, E);
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> (E, E) {
        let len = self.z.len();
        // SAFETY: offsets are inside the row.
        unsafe {
            let max = row_max::<S>(self.z);
            let m = S::splat(max);
            let z = self.z.as_mut_ptr();
            let mut sum = S::splat(E::ZERO);
            let full = len / S::LANES * S::LANES;
            each!(S, full, |i, n| {
                let e = S::exp(S::sub(S::get(z.add(i), n), m));
                S::put(z.add(i), e, n);
                sum = S::add(sum, e);
            });
            let mut total = S::sum(sum);
            if full < len {
                let e = S::exp(S::sub(S::load_n(z.add(full), len - full), m));
                S::store_n(z.add(full), e, len - full);
                for i in full..len {
                    total += *z.add(i);
                }
            }
            (max, total)
        }
    }
}

struct SumExp<'a, E> {
    z: &'a [E],
}

impl<E: Elem> Op<E> for SumExp<'_, E> {
    type Out = (E, E);
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> (E, E) {
        let len = self.z.len();
        // SAFETY: offsets are inside the row.
        unsafe {
            let max = row_max::<S>(self.z);
            let m = S::splat(max);
            let z = self.z.as_ptr();
            let mut sum = S::splat(E::ZERO);
            let full = len / S::LANES * S::LANES;
            each!(S, full, |i, n| sum = S::add(sum, S::exp(S::sub(S::get(z.add(i), n), m))));
            let mut total = S::sum(sum);
            for &x in &self.z[full..] {
                // One lane of the vector function, so that both forms agree.
                total += S::sum(S::exp(S::sub(S::splat(x), m))) / E::from_f64(S::LANES as f64);
            }
            (max, total)
        }
    }
}

struct Scale<'a, E> {
    z: &'a mut [E],
    by: E,
}

impl<E: Elem> Op<E> for Scale<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let z = self.z.as_mut_ptr();
        // SAFETY: offsets are inside the row.
        each!(S, self.z.len(), |i, n| unsafe { S::put(z.add(i), S::mul(S::get(z.add(i), n), S::splat(self.by)), n) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{all_isas, assert_close, random};

    #[test]
    fn equals_plain_loops() {
        all_isas(|cx| {
            for v in (1..=130).chain([1001]) {
                let rows = 3;
                let z: Vec<f32> = random(rows * v, v as u64).iter().map(|z: &f32| z * 30.0).collect();
                let targets: Vec<Token> = (0..rows).map(|i| (i * 17 % v) as Token).collect();
                let (mut loss, mut dz) = (vec![0.0; rows], z.clone());
                cross_entropy(cx, &mut loss, &mut dz, &targets, v, 0.25);
                let (mut want_loss, mut want_dz, mut want_log_probs) = (Vec::new(), Vec::new(), Vec::new());
                let mut got_log_probs = vec![0.0; rows];
                log_probs(cx, &mut got_log_probs, &z, &targets, v);
                for (row, &t) in z.chunks(v).zip(&targets) {
                    let lse = row.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
                    want_loss.push((lse - f64::from(row[usize::from(t)])) as f32);
                    let p = row
                        .iter()
                        .enumerate()
                        .map(|(j, &z)| (f64::from(z) - lse).exp() - f64::from(u8::from(j == usize::from(t))));
                    want_dz.extend(p.map(|p| (0.25 * p) as f32));
                    want_log_probs.push(f64::from(row[usize::from(t)]) - lse);
                }
                let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off(&loss, &want_loss) < 1e-5, "loss at {v}");
                let close = got_log_probs.iter().zip(&want_log_probs).all(|(a, b)| (a - b).abs() < 1e-5);
                assert!(close, "log_probs at {v}");
                // The gradient of a certain target is a difference of nearly equal numbers: an absolute bound.
                assert!(off(&dz, &want_dz) < 1e-6, "gradient at {v}");
            }
        });
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        all_isas(|cx| {
            for at in [0, 3, 17, 39] {
                let mut z: Vec<f32> = random(40, 1);
                z[at] = f32::NAN;
                let mut loss = vec![0.0];
                cross_entropy(cx, &mut loss, &mut z, &[5], 40, 1.0);
                assert!(loss[0].is_nan(), "NaN at {at}");
            }
        });
        assert_close(&[1.0f32], &[1.0], 0.0, "identity");
    }
}
