//! What the ops' tests share: random vectors, every ISA of the machine, RMS comparison.

use crate::exec::Exec;
use crate::{Elem, Isa};

/// Values in [-1, 1) from a linear congruential generator (Knuth's MMIX constants).
pub(crate) fn random<E: Elem>(n: usize, seed: u64) -> Vec<E> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            E::from_f64((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
        })
        .collect()
}

/// Integers from `-most` to `most`.
pub(crate) fn integers(n: usize, seed: u64, most: f32) -> Vec<i8> {
    random::<f32>(n, seed).into_iter().map(|x| (x * (most + 0.49)).round() as i8).collect()
}

/// Runs a check on every ISA with two threads; `FLASHLM_ISA` narrows it to one.
pub(crate) fn all_isas(check: impl Fn(&Exec)) {
    let isas = match std::env::var_os("FLASHLM_ISA") {
        Some(_) => vec![Isa::detect().unwrap()],
        None => Isa::available(),
    };
    isas.into_iter().for_each(|isa| check(&Exec::new(isa, 2)));
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
