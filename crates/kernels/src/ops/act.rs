//! Activations of gates, with `s(g) = 1 / (1 + exp(-g))`:
//!
//! * sigmoid: `act = s`, `act' = s (1 - s)`
//! * SiLU: `act = g s`, `act' = s (1 + g (1 - s))` (arXiv 2002.05202)
//! * squared ReLU: `act = max(g, 0)^2`, `act' = 2 max(g, 0)` (arXiv 2109.08668)
//!
//! A body is compiled for each ([`for_act`]), and what one does not use is left out.

use crate::simd::{Elem, Simd, Store};

/// What a gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// `1 / (1 + exp(-g))`.
    Sigmoid,
    /// `g / (1 + exp(-g))`.
    Silu,
    /// `max(g, 0)^2`.
    Relu2,
}

/// One [`Act`], known when a body is compiled.
pub(super) trait Known {
    /// `act(g)` and its derivative.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn of<S: Simd>(&self, g: S::V) -> (S::V, S::V);
}

pub(super) struct Sigmoid;
pub(super) struct Silu;
pub(super) struct Relu2;

impl Known for Sigmoid {
    #[inline(always)]
    unsafe fn of<S: Simd>(&self, g: S::V) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let s = S::sigmoid(g);
            (s, S::mul(s, S::sub(S::splat(S::E::ONE), s)))
        }
    }
}

impl Known for Silu {
    #[inline(always)]
    unsafe fn of<S: Simd>(&self, g: S::V) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            let (one, s) = (S::splat(S::E::ONE), S::sigmoid(g));
            (S::mul(g, s), S::mul(s, S::fma(g, S::sub(one, s), one)))
        }
    }
}

impl Known for Relu2 {
    #[inline(always)]
    unsafe fn of<S: Simd>(&self, g: S::V) -> (S::V, S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            // NaN stays NaN in this order.
            let r = S::max(S::splat(S::E::ZERO), g);
            (S::mul(r, r), S::add(r, r))
        }
    }
}

/// `$body` with `$act`, a variable that holds an [`Act`], turned into its [`Known`].
macro_rules! for_act {
    ($act:ident, $body:expr) => {
        match $act {
            $crate::ops::act::Act::Sigmoid => {
                let $act = $crate::ops::act::Sigmoid;
                $body
            }
            $crate::ops::act::Act::Silu => {
                let $act = $crate::ops::act::Silu;
                $body
            }
            $crate::ops::act::Act::Relu2 => {
                let $act = $crate::ops::act::Relu2;
                $body
            }
        }
    };
}

pub(super) use for_act;

#[cfg(test)]
pub(super) mod testing {
    use super::Act;

    pub(crate) const ALL: [Act; 3] = [Act::Sigmoid, Act::Silu, Act::Relu2];

    /// `act(g)` and its derivative in f64, written down once more.
    pub(crate) fn plain(act: Act, g: f64) -> (f64, f64) {
        let s = 1.0 / (1.0 + (-g).exp());
        match act {
            Act::Sigmoid => (s, s * (1.0 - s)),
            Act::Silu => (g * s, s * (1.0 + g * (1.0 - s))),
            Act::Relu2 if g > 0.0 => (g * g, 2.0 * g),
            Act::Relu2 => (0.0, 0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{ALL, plain};

    #[test]
    fn slopes_are_those_of_the_values() {
        for act in ALL {
            for g in (-40..40).map(|g| 0.1 * f64::from(g) + 0.05) {
                let want = (plain(act, g + 1e-6).0 - plain(act, g - 1e-6).0) / 2e-6;
                assert!((plain(act, g).1 - want).abs() < 1e-8, "{act:?} at {g}");
            }
        }
    }
}
