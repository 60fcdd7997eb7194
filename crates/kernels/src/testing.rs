//! What the tests share: random numbers, every ISA of the machine, RMS comparison.

use crate::exec::Exec;
use crate::{Elem, Isa};

/// A linear congruential generator (Knuth's MMIX constants), its upper half.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

/// Values in [-1, 1).
pub(crate) fn random<E: Elem>(n: usize, seed: u64) -> Vec<E> {
    let mut random = Random::new(seed);
    (0..n).map(|_| E::from_f64(f64::from(random.next() >> 1) / f64::from(1u32 << 30) - 1.0)).collect()
}

/// Integers from `-most` to `most`.
pub(crate) fn integers(n: usize, seed: u64, most: f32) -> Vec<i8> {
    random::<f32>(n, seed).into_iter().map(|x| (x * (most + 0.49)).round() as i8).collect()
}

/// Runs a check on every ISA with two threads; `FLASHLM_ISA` narrows it to one.
pub(crate) fn all_isas(check: impl Fn(&Exec)) {
    Isa::wanted().unwrap().into_iter().for_each(|isa| check(&Exec::new(isa, 2)));
}

/// The RMS of the difference is at most `bound` times the RMS of `want`.
pub(crate) fn assert_close<E: Elem>(got: &[E], want: &[E], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let square = |x: f64| x * x;
    let diff: f64 = got.iter().zip(want).map(|(g, w)| square(g.to_f64() - w.to_f64())).sum();
    let norm: f64 = want.iter().map(|w| square(w.to_f64())).sum();
    let ratio = (diff / norm.max(1e-300)).sqrt();
    assert!(diff == 0.0 || ratio <= bound, "{what}: RMS ratio {ratio:.2e} > {bound:.0e}");
}
