//! Softmax cross-entropy of rows of logits that are made and dropped a few columns at a time ("chunks"):
//! `loss = log_sum - z_target`, `log_sum = log sum_j exp(z_j)`, and the gradient of `scale * (loss + w log_sum^2)`:
//! `dz = (p (1 + 2 w log_sum) - onehot(target)) * scale`, `p = softmax(z)`. The second term, z-loss, keeps logits from
//! drifting away together (PaLM, arXiv 2204.02311).
//!
//! With label smoothing `s` (arXiv 1512.00567) a target is `(1 - s) onehot + s / V`, so that `loss = log_sum - (1 - s) z_target - s mean(z)`,
//! and `dz` takes these numbers in the place of `onehot`.
//!
//! A row keeps the largest logit so far and the sum of exponentials relative to it, as online softmax does (Milakov and
//! Gimelshein, arXiv 1805.02867). A chunk's exponentials are stored relative to the largest logit up to that chunk, which
//! is kept as well; [`finish`](SoftmaxRows::finish) turns them into gradients once the whole sum is known.
//!
//! Where logits have been through a soft cap ([`super::softcap`]), `dz` is the gradient before the cap: times its slope
//! `1 - (z / c)^2`. The slope goes into an exponential as it is kept, when the logit is still there in full: from a kept
//! bf16 it could not be recovered. The sum is of the plain exponentials; the target's one takes the slope of its own logit.

//!
//! With pointers ([`super::pointer_forward`]) a token has the mass of its logit and of those that point at it: both logarithms are added to
//! what the columns have given, and leave as what the pointers' gradient needs.

use crate::Token;
use crate::exec::Exec;
use crate::ops::softcap::{slope, slope_at};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store, each};
use crate::size::{area, strided};

/// The target of a row that is not scored: its loss is 0 and so is its gradient. No vocabulary reaches this far.
pub const NO_TARGET: Token = Token::MAX;

/// What a gradient is of: `scale * sum over rows of (loss + z_loss * log_sum^2)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Weight of each row.
    pub scale: f64,
    /// Weight of the squared logarithm of a row's sum of exponentials.
    pub z_loss: f64,
    /// Label smoothing: the part of a target that all columns share; 0 where there is a soft cap.
    pub smoothing: f64,
}

impl Objective {
    /// What a probability of a row with this `log_sum` is multiplied by, besides `scale`; exactly 1 without z-loss.
    fn factor(&self, log_sum: f64) -> f64 {
        1.0 + 2.0 * self.z_loss * log_sum
    }
}

/// The running softmax of some rows, on the calling thread.
pub struct SoftmaxRows<'a, E> {
    /// `[rows]`: largest logit so far.
    pub max: &'a mut [E],
    /// `[rows]`: sum of `exp(z - max)`.
    pub sum: &'a mut [E],
    /// `[rows]`: logit of the target, once it has passed.
    pub own: &'a mut [E],
    /// `[rows]`: ids below the number of columns in all, or [`NO_TARGET`].
    pub targets: &'a [Token],
    /// The soft cap that the logits have been through.
    pub cap: Option<E>,
    /// `[rows]`, for label smoothing: the sum of all logits.
    pub total: Option<&'a mut [f64]>,
    /// `[rows]` each, with pointers: the logarithm of their mass, and of that at the target.
    pub pointed: Option<[&'a mut [E]; 2]>,
}

/// `ln(exp(a) + exp(b))`.
fn log_add(a: f64, b: f64) -> f64 {
    let (more, less) = if a > b { (a, b) } else { (b, a) };
    if less == f64::NEG_INFINITY { more } else { more + (less - more).exp().ln_1p() }
}

impl<E: Elem> SoftmaxRows<'_, E> {
    /// Before any logit.
    pub fn start(&mut self) {
        self.max.fill(E::from_f64(f64::NEG_INFINITY));
        self.sum.fill(E::ZERO);
        self.own.fill(E::NAN);
        self.total.iter_mut().for_each(|total| total.fill(0.0));
    }

    /// Takes in `z: [rows, width]`, the logits from column `first` on. Where `kept` is given, `(e, ld, at)`, writes
    /// `exp(z - max)`, times the slope of the cap, to `e`, rows `ld` apart, and the `max` it is relative to to `at: [rows]`.
    pub fn chunk<A: Store<E = E>>(
        &mut self,
        cx: &Exec,
        kept: Option<(&mut [A], usize, &mut [E])>,
        z: &[E],
        width: usize,
        first: usize,
    ) {
        let rows = self.targets.len();
        assert!(z.len() >= area([rows, width]));
        assert!(self.max.len() == rows && self.sum.len() == rows && self.own.len() == rows);
        if rows == 0 || width == 0 {
            return;
        }
        let _time = time(
            cx,
            "softmax_chunk",
            (width, 0),
            Work::Bytes((rows * width * (size_of::<E>() + size_of::<A>())) as f64),
        );
        let (e, ld, at) = match kept {
            None => (std::ptr::null_mut(), 0, None),
            Some((e, ld, at)) => {
                assert!(at.len() == rows && ld >= width && e.len() >= strided(rows, ld, width));
                (e.as_mut_ptr(), ld, Some(at))
            }
        };
        for row in 0..rows {
            let z = &z[row * width..][..width];
            if let Some(own) = usize::from(self.targets[row]).checked_sub(first).and_then(|i| z.get(i)) {
                self.own[row] = *own;
            }
            if let Some(total) = &mut self.total {
                total[row] += cx.op(Sum { x: z }).to_f64();
            }
            let before = self.max[row];
            // SAFETY: the row lies in `e`, where there is one.
            let e = if e.is_null() { e } else { unsafe { e.add(row * ld) } };
            let (max, sum) = match self.cap {
                None => cx.op(Chunk::<A, false> { z, e, before, inverse: E::ONE }),
                Some(cap) => cx.op(Chunk::<A, true> { z, e, before, inverse: E::ONE / cap }),
            };
            let shrink = E::from_f64((before.to_f64() - max.to_f64()).exp());
            (self.max[row], self.sum[row]) = (max, self.sum[row] * shrink + sum);
        }
        if let Some(at) = at {
            at.copy_from_slice(self.max);
        }
    }

    /// `ln p(target)` of row `row`, in nats, after all chunks; 0 where there is no target.
    pub fn log_prob(&self, row: usize) -> f64 {
        if self.targets[row] == NO_TARGET {
            return 0.0;
        }
        match self.pointed {
            None => self.own[row].to_f64() - self.max[row].to_f64() - self.sum[row].to_f64().ln(),
            Some(_) => self.hit(row) - self.log_sum(row),
        }
    }

    /// `ln p` of row `row` averaged over its smoothed target, after all `v` columns: [`SoftmaxRows::log_prob`] where `smoothing` is 0.
    ///
    /// # Panics
    /// With smoothing where no `total` is kept.
    pub fn smoothed(&self, row: usize, smoothing: f64, v: usize) -> f64 {
        if smoothing == 0.0 || self.targets[row] == NO_TARGET {
            return self.log_prob(row);
        }
        let mean = self.total.as_ref().expect("a sum of logits")[row] / v as f64;
        (1.0 - smoothing) * self.own[row].to_f64() + smoothing * mean - self.log_sum(row)
    }

    /// `ln sum_j exp(z_j)` of row `row`, after all chunks, with the mass of pointers.
    pub fn log_sum(&self, row: usize) -> f64 {
        let columns = self.max[row].to_f64() + self.sum[row].to_f64().ln();
        self.pointed.as_ref().map_or(columns, |[all, _]| log_add(columns, all[row].to_f64()))
    }

    /// The logarithm of the target's mass, after all chunks.
    fn hit(&self, row: usize) -> f64 {
        let column = self.own[row].to_f64();
        self.pointed.as_ref().map_or(column, |[_, own]| log_add(column, own[row].to_f64()))
    }

    /// After all else: turns the masses of pointers into the two logarithms of [`super::pointer_backward`].
    pub fn pass_on(&mut self, objective: Objective) {
        for row in 0..self.targets.len() {
            let scored = self.targets[row] != NO_TARGET;
            let log_sum = self.log_sum(row);
            let whole = if scored { log_sum - objective.factor(log_sum).ln() } else { f64::INFINITY };
            let hit = if scored { self.hit(row) } else { f64::INFINITY };
            if let Some([all, own]) = &mut self.pointed {
                (all[row], own[row]) = (E::from_f64(whole), E::from_f64(hit));
            }
        }
    }

    /// Turns the kept exponentials `dz: [rows, v]`, rows `ld` apart, made in chunks of `width` columns with
    /// `at: [chunks, rows]`, into gradients of `objective`.
    pub fn finish<A: Store<E = E>>(
        &self,
        cx: &Exec,
        dz: &mut [A],
        ld: usize,
        at: &[E],
        (v, width): (usize, usize),
        objective: Objective,
    ) {
        let scale = E::from_f64(objective.scale);
        let rows = self.targets.len();
        let known = |&t: &Token| usize::from(t) < v || t == NO_TARGET;
        assert!(objective.smoothing == 0.0 || self.cap.is_none(), "label smoothing under a soft cap");
        let share = E::from_f64(objective.scale * objective.smoothing / v as f64);
        assert!(self.targets.iter().all(known), "target beyond the vocabulary");
        assert!(ld >= v && at.len() >= area([rows, v.div_ceil(width)]));
        let _time = time(cx, "softmax_finish", (v, 0), Work::Bytes((2 * rows * v * size_of::<A>()) as f64));
        for (row, dz) in dz.chunks_mut(ld).enumerate().take(rows) {
            if self.targets[row] == NO_TARGET {
                dz[..v].fill(A::narrow(E::ZERO));
                continue;
            }
            let log_sum = self.log_sum(row);
            let whole = scale.to_f64() * objective.factor(log_sum);
            // The share of the columns' own mass, in all and at the target.
            let (whole, hit) = match self.pointed {
                None => (whole / self.sum[row].to_f64(), 1.0),
                Some(_) => {
                    (whole * (self.max[row].to_f64() - log_sum).exp(), (self.own[row].to_f64() - self.hit(row)).exp())
                }
            };
            let one = E::from_f64(objective.scale * (1.0 - objective.smoothing) * hit)
                * slope_at(self.own[row], self.cap)
                + share;
            for (chunk, e) in dz[..v].chunks_mut(width).enumerate() {
                let shrink = (at[chunk * rows + row].to_f64() - self.max[row].to_f64()).exp();
                let target = usize::from(self.targets[row]).checked_sub(chunk * width).filter(|&i| i < e.len());
                let by = E::from_f64(whole * shrink);
                // The difference to 1 is taken before rounding.
                let own = target.map(|i| (i, A::narrow(e[i].widen() * by - one)));
                cx.op(Scale { e, by, less: share });
                if let Some((i, own)) = own {
                    e[i] = own;
                }
            }
        }
    }
}

/// Writes the gradient of `objective`, from logits `z` as they left the `cap`, of `rows x width` logits from column `first`
/// on, of `v` in all: `z` dense, `dz` with rows `ld` apart; `log_sum, targets: [rows]`.
pub fn softmax_backward<A: Store>(
    cx: &Exec,
    (dz, ld): (&mut [A], usize),
    z: &[A::E],
    log_sum: &[A::E],
    targets: &[Token],
    (width, first, v): (usize, usize, usize),
    cap: Option<A::E>,
    objective: Objective,
) {
    assert!(objective.smoothing == 0.0 || cap.is_none(), "label smoothing under a soft cap");
    let one = A::E::from_f64(objective.scale * (1.0 - objective.smoothing));
    let less = A::E::from_f64(objective.scale * objective.smoothing / v as f64);
    let rows = targets.len();
    assert!(log_sum.len() == rows && z.len() >= area([rows, width]) && ld >= width);
    assert!(dz.len() >= strided(rows, ld, width));
    let bytes = rows * width * (size_of::<A::E>() + size_of::<A>());
    let _time = time(cx, "softmax_backward", (width, 0), Work::Bytes(bytes as f64));
    for (row, &target) in targets.iter().enumerate() {
        let (dz, z) = (&mut dz[row * ld..][..width], &z[row * width..][..width]);
        if target == NO_TARGET {
            dz.fill(A::narrow(A::E::ZERO));
            continue;
        }
        let log_sum = log_sum[row];
        let by = A::E::from_f64(objective.scale * objective.factor(log_sum.to_f64()));
        match cap {
            None => cx.op(Gradient::<A, false> { dz: &mut *dz, z, log_sum, by, less, inverse: A::E::ONE }),
            Some(cap) => cx.op(Gradient::<A, true> { dz: &mut *dz, z, log_sum, by, less, inverse: A::E::ONE / cap }),
        }
        if let Some(i) = usize::from(target).checked_sub(first).filter(|&i| i < width) {
            // The difference to 1 is taken before rounding.
            let p = A::E::from_f64((z[i].to_f64() - log_sum.to_f64()).exp());
            dz[i] = A::narrow((p * by - one - less) * slope_at(z[i], cap));
        }
    }
}

struct Gradient<'a, A: Store, const CAP: bool> {
    dz: &'a mut [A],
    z: &'a [A::E],
    log_sum: A::E,
    by: A::E,
    less: A::E,
    /// One over the cap, where there is one.
    inverse: A::E,
}

impl<A: Store, const CAP: bool> Op<A::E> for Gradient<'_, A, CAP> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let (dz, z) = (self.dz.as_mut_ptr(), self.z.as_ptr());
        // SAFETY: offsets are inside the row.
        each!(S, self.z.len(), |i, n| unsafe {
            let z = S::get(z.add(i), n);
            let p = S::exp(S::sub(z, S::splat(self.log_sum)));
            let mut g = S::sub(S::mul(p, S::splat(self.by)), S::splat(self.less));
            if CAP {
                g = S::mul(g, slope::<S>(z, S::splat(self.inverse)));
            }
            A::put::<S>(dz.add(i), g, n);
        });
    }
}

struct Sum<'a, E> {
    x: &'a [E],
}

impl<E: Elem> Op<E> for Sum<'_, E> {
    type Out = E;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> E {
        // SAFETY: offsets are below the length; missing lanes load as zero.
        unsafe {
            let mut sum = S::splat(E::ZERO);
            each!(S, self.x.len(), |i, n| sum = S::add(sum, S::get(self.x.as_ptr().add(i), n)));
            S::sum(sum)
        }
    }
}

struct Chunk<'a, A: Store, const CAP: bool> {
    z: &'a [A::E],
    /// Where exponentials are kept, or null.
    e: *mut A,
    before: A::E,
    /// One over the cap, where there is one.
    inverse: A::E,
}

impl<A: Store, const CAP: bool> Op<A::E> for Chunk<'_, A, CAP> {
    /// The largest logit so far, and the sum of `exp(z - max)` of this chunk.
    type Out = (A::E, A::E);
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) -> (A::E, A::E) {
        const { assert!(S::LANES <= 64) };
        let (p, len) = (self.z.as_ptr(), self.z.len());
        // SAFETY: offsets are inside the row, of `z` and where there is one of `e`; `lanes` holds a whole vector.
        unsafe {
            let mut max = S::splat(self.before);
            each!(S, len, |i, n| {
                // Lanes beyond the end repeat the largest so far.
                let z = if n == S::LANES { S::load(p.add(i)) } else { S::splat(largest(self.z, i, self.before)) };
                max = S::max(max, z);
            });
            let max = S::hmax(max);
            let m = S::splat(max);
            let mut sum = S::splat(A::E::ZERO);
            each!(S, len, |i, n| {
                let z = S::get(p.add(i), n);
                let mut e = S::exp(S::sub(z, m));
                if !self.e.is_null() {
                    let kept = if CAP { S::mul(e, slope::<S>(z, S::splat(self.inverse))) } else { e };
                    A::put::<S>(self.e.add(i), kept, n);
                }
                if n < S::LANES {
                    let mut lanes = [A::E::ZERO; 64];
                    S::store(lanes.as_mut_ptr(), e);
                    e = S::load_n(lanes.as_ptr(), n);
                }
                sum = S::add(sum, e);
            });
            (max, S::sum(sum))
        }
    }
}

/// The largest of `z[from..]` and `start`; NaN where one is.
#[inline(always)]
fn largest<E: Elem>(z: &[E], from: usize, start: E) -> E {
    let mut max = start;
    for &z in &z[from..] {
        if z > max || z.partial_cmp(&z).is_none() {
            max = z;
        }
    }
    max
}

struct Scale<'a, A: Store> {
    e: &'a mut [A],
    by: A::E,
    less: A::E,
}

impl<A: Store> Op<A::E> for Scale<'_, A> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        let e = self.e.as_mut_ptr();
        // SAFETY: offsets are inside the row.
        each!(S, self.e.len(), |i, n| unsafe {
            let scaled = S::mul(A::get::<S>(e.add(i), n), S::splat(self.by));
            A::put::<S>(e.add(i), S::sub(scaled, S::splat(self.less)), n)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, random};

    /// With and without each switch; both together.
    const SWITCHES: [(Option<f32>, f64, f64); 6] = [
        (None, 0.0, 0.0),
        (Some(9.0), 0.0, 0.0),
        (None, 0.03, 0.0),
        (Some(30.0), 0.1, 0.0),
        (None, 0.0, 0.1),
        (None, 0.03, 0.4),
    ];

    /// Loss and gradient of `z: [rows, v]`, which have been through the cap, in chunks of `width`.
    fn run<A: Store<E = f32>>(
        cx: &Exec,
        z: &[f32],
        targets: &[Token],
        (v, width): (usize, usize),
        (cap, z_loss, smoothing): (Option<f32>, f64, f64),
    ) -> (Vec<f64>, Vec<f32>) {
        let objective = Objective { scale: 0.25, z_loss, smoothing };
        let rows = targets.len();
        let (mut max, mut sum, mut own) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
        let mut total = vec![f64::NAN; rows];
        let total = (smoothing > 0.0).then_some(&mut total[..]);
        let mut softmax =
            SoftmaxRows { max: &mut max, sum: &mut sum, own: &mut own, targets, cap, total, pointed: None };
        softmax.start();
        let (mut dz, mut at) = (vec![A::NAN; rows * v], vec![0.0; rows * v.div_ceil(width)]);
        for (chunk, at) in at.chunks_mut(rows).enumerate() {
            let columns = chunk * width..v.min((chunk + 1) * width);
            let part: Vec<f32> = z.chunks(v).flat_map(|row| row[columns.clone()].to_vec()).collect();
            softmax.chunk(cx, Some((&mut dz[columns.start..], v, at)), &part, columns.len(), columns.start);
        }
        softmax.finish(cx, &mut dz, v, &at, (v, width), objective);
        // The same gradient from recomputed logits.
        let log_sum: Vec<f32> = (0..rows).map(|row| softmax.log_sum(row) as f32).collect();
        let mut again = vec![A::NAN; rows * v];
        for first in (0..v).step_by(width) {
            let n = width.min(v - first);
            let part: Vec<f32> = z.chunks(v).flat_map(|row| row[first..first + n].to_vec()).collect();
            softmax_backward(cx, (&mut again[first..], v), &part, &log_sum, targets, (n, first, v), cap, objective);
        }
        let largest = log_sum.iter().fold(0.0f32, |most, l| most.max(l.abs()));
        let bound = (1.0 + 2.0 * z_loss as f32 * largest) * if A::DEPTH == 2 { 0.25 / 128.0 } else { 2e-6 };
        for (a, b) in again.iter().zip(&dz) {
            let close = (a.widen() - b.widen()).abs() <= bound;
            assert!(close || a.widen().is_nan() && b.widen().is_nan(), "{a:?} for {b:?}");
        }
        let loss = (0..rows).map(|row| -softmax.smoothed(row, smoothing, v)).collect();
        (loss, dz.into_iter().map(A::widen).collect())
    }

    #[test]
    fn equals_plain_loops_in_chunks_of_any_width() {
        all_isas(|cx| {
            for (v, switches) in (1..=130).chain([1001]).flat_map(|v| SWITCHES.map(|switches| (v, switches))) {
                let (rows, (cap, w, smoothing)) = (3, switches);
                let spread = cap.unwrap_or(30.0);
                let z: Vec<f32> = random(rows * v, v as u64).iter().map(|z: &f32| z * spread).collect();
                let targets: Vec<Token> = (0..rows).map(|i| (i * 7 % v) as Token).collect();
                let (mut want_loss, mut want_dz) = (Vec::new(), Vec::new());
                let mut most = 1.0f64;
                for (row, &t) in z.chunks(v).zip(&targets) {
                    let lse = row.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
                    let mean = row.iter().map(|&z| f64::from(z)).sum::<f64>() / v as f64;
                    want_loss.push(lse - (1.0 - smoothing) * f64::from(row[usize::from(t)]) - smoothing * mean);
                    let factor = 1.0 + 2.0 * w * lse;
                    most = most.max(factor.abs());
                    want_dz.extend(row.iter().enumerate().map(|(j, &z)| {
                        let (z, onehot) = (f64::from(z), f64::from(u8::from(j == usize::from(t))));
                        let slope = cap.map_or(1.0, |cap| 1.0 - (z / f64::from(cap)).powi(2));
                        let target = (1.0 - smoothing) * onehot + smoothing / v as f64;
                        0.25 * ((z - lse).exp() * factor - target) * slope
                    }));
                }
                for width in [v, 16, 7, 64, 1] {
                    let off = |dz: &[f32]| {
                        dz.iter().zip(&want_dz).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
                    };
                    let (loss, dz) = run::<f32>(cx, &z, &targets, (v, width), switches);
                    let close = loss.iter().zip(&want_loss).all(|(a, b)| (a - b).abs() < 1e-5);
                    assert!(close, "loss at {v} in {width}: {loss:?} for {want_loss:?}");
                    // The gradient of a certain target is a difference of nearly equal numbers: an absolute bound.
                    assert!(off(&dz) < 1e-6 * most, "gradient at {v} in {width}: {switches:?}, {:e}", off(&dz));
                    let (_, dz) = run::<Bf16>(cx, &z, &targets, (v, width), switches);
                    assert!(off(&dz) < 0.25 / 128.0 * most, "bf16 gradient at {v} in {width}: {switches:?}");
                }
            }
        });
    }

    /// A slope near 0 multiplies what is kept before it is rounded: what bf16 loses stays relative to the gradient itself.
    #[test]
    fn small_slopes_survive_bf16() {
        all_isas(|cx| {
            let (v, cap) = (300, 10.0f32);
            let z: Vec<f32> = (0..v).map(|j| cap - 1e-3 * (j + 1) as f32).collect();
            let switches = (Some(cap), 0.0, 0.0);
            let (exact, kept) =
                (run::<f32>(cx, &z, &[7], (v, 64), switches), run::<Bf16>(cx, &z, &[7], (v, 64), switches));
            for (j, (a, b)) in kept.1.iter().zip(&exact.1).enumerate() {
                assert!(j == 7 || (a - b).abs() <= b.abs() / 100.0, "{a:e} for {b:e} at {j}");
            }
        });
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        all_isas(|cx| {
            for at in [0, 3, 17, 39] {
                let mut z: Vec<f32> = random(40, 1);
                z[at] = f32::NAN;
                for width in [40, 16] {
                    assert!(run::<f32>(cx, &z, &[5], (40, width), (None, 0.0, 0.0)).0[0].is_nan(), "NaN at {at}");
                }
            }
        });
    }
}
