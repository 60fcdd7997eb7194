//! Activations as the packed runtime multiplies them: rows of int8 ([`flashlm_kernels::ops::round_int8`]), in front of every
//! ternary matrix and of the head. A gradient passes straight through: it is that of `x + c`, where the constant `c` is what
//! rounding has added (arXiv 1308.3432).

use flashlm_kernels::ops::round_int8;
use flashlm_kernels::{Exec, Store};

/// Rounds `x: [rows, width]` in place.
pub fn round<A: Store>(cx: &Exec, x: &mut [A], width: usize) {
    #[cfg(test)]
    return constants::round(cx, x, width);
    #[cfg(not(test))]
    round_int8(cx, x, width);
}

/// The constants of one pass, to be added in others instead of rounding: what gradients are then the exact ones of.
#[cfg(test)]
pub(crate) mod constants {
    use std::cell::RefCell;

    use flashlm_kernels::Elem;

    use super::*;

    enum Mode {
        Round,
        /// Rounds and remembers.
        Keep(Vec<f64>),
        /// Adds from the given place on.
        Add(Vec<f64>, usize),
    }

    thread_local! {
        static MODE: RefCell<Mode> = const { RefCell::new(Mode::Round) };
    }

    pub(super) fn round<A: Store>(cx: &Exec, x: &mut [A], width: usize) {
        MODE.with_borrow_mut(|mode| match mode {
            Mode::Round => round_int8(cx, x, width),
            Mode::Keep(all) => {
                let before = x.to_vec();
                round_int8(cx, x, width);
                all.extend(x.iter().zip(before).map(|(x, b)| x.widen().to_f64() - b.widen().to_f64()));
            }
            Mode::Add(all, at) => {
                for (x, c) in x.iter_mut().zip(&all[*at..]) {
                    *x = A::narrow(A::E::from_f64(x.widen().to_f64() + c));
                }
                *at += x.len();
            }
        })
    }

    /// Runs a pass on this thread, and returns what its roundings have added in order.
    pub(crate) fn keep(pass: impl FnOnce()) -> Vec<f64> {
        MODE.set(Mode::Keep(Vec::new()));
        pass();
        match MODE.replace(Mode::Round) {
            Mode::Keep(all) => all,
            _ => unreachable!("set above"),
        }
    }

    /// Runs a pass on this thread with constants instead of roundings.
    pub(crate) fn add(all: &[f64], pass: impl FnOnce()) {
        MODE.set(Mode::Add(all.to_vec(), 0));
        pass();
        match MODE.replace(Mode::Round) {
            Mode::Add(all, at) => assert_eq!(at, all.len(), "a pass with other roundings"),
            _ => unreachable!("set above"),
        }
    }
}
