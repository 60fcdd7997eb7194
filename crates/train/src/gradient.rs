//! The gradient of a step: those of its passes, added in a binary tree over their number.
//!
//! ```text
//! 7 passes:  ((0 + 1) + (2 + 3)) + ((4 + 5) + 6)
//! ```
//!
//! It is the tree over the next power of two, without the leaves that are not there. Any subtree can be computed by
//! itself: `2^k` passes from a multiple of `2^k` on have the same sum wherever, and in whatever order, it is made.

use flashlm_kernels::ops::{add, zero};
use flashlm_kernels::{Buf, Exec};

/// The sum of some passes.
struct Sum {
    /// `[P]`, as the parameters.
    grads: Buf<f32>,
    /// Nats.
    loss: f64,
}

/// Sums of passes, as a binary counter holds them: one for each bit that is set in the number of passes, the largest first. For
/// `n` passes it takes at most `log2(n)` buffers besides the first.
pub struct Gradient {
    sums: Vec<Sum>,
    passes: usize,
    /// Number of parameters, `P`.
    len: usize,
}

impl Gradient {
    /// Of `len` parameters, without passes.
    pub fn new(len: usize) -> Self {
        Gradient { sums: vec![Sum { grads: Buf::zeros(len), loss: 0.0 }], passes: 0, len }
    }

    /// Forgets all passes.
    pub fn clear(&mut self) {
        self.passes = 0;
    }

    /// One more pass: `pass` adds its gradient to zeros, `[P]`, and returns its loss.
    pub fn add(&mut self, cx: &Exec, pass: impl FnOnce(&mut [f32]) -> f64) {
        let held = self.passes.count_ones() as usize;
        if self.sums.len() == held {
            self.sums.push(Sum { grads: Buf::zeros(self.len), loss: 0.0 });
        }
        let own = &mut self.sums[held];
        zero(cx, &mut own.grads);
        own.loss = pass(&mut own.grads);
        self.passes += 1;
        for last in (self.passes.count_ones() as usize..=held).rev() {
            self.join(cx, last);
        }
    }

    /// Adds up what there is; returns the loss of all passes since the last time. Their gradient is [`Gradient::values`].
    pub fn finish(&mut self, cx: &Exec) -> f64 {
        for last in (1..self.passes.count_ones() as usize).rev() {
            self.join(cx, last);
        }
        self.passes = 0;
        self.sums[0].loss
    }

    /// The sum of all passes, `[P]`, once they are finished.
    pub fn values(&self) -> &[f32] {
        &self.sums[0].grads
    }

    /// Adds sum `last` to the one before it.
    fn join(&mut self, cx: &Exec, last: usize) {
        let (before, own) = self.sums.split_at_mut(last);
        let into = &mut before[last - 1];
        add(cx, &mut into.grads, &own[0].grads);
        into.loss += own[0].loss;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use flashlm_kernels::Isa;

    use super::*;

    /// The sum of leaves `from..from + size`, `size` a power of two, by the definition; nothing where there are none.
    pub(crate) fn tree(leaves: &[(Vec<f32>, f64)], from: usize, size: usize) -> Option<(Vec<f32>, f64)> {
        if size == 1 {
            return leaves.get(from).cloned();
        }
        let (left, right) = (tree(leaves, from, size / 2)?, tree(leaves, from + size / 2, size / 2));
        let Some(right) = right else { return Some(left) };
        Some((left.0.iter().zip(&right.0).map(|(a, b)| a + b).collect(), left.1 + right.1))
    }

    #[test]
    fn passes_are_added_in_a_tree_for_any_number_of_them_and_of_threads() {
        let len = 2500;
        let leaf = |i: usize| {
            let value = |j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 * 0.1 - 50.0;
            ((0..len).map(value).collect::<Vec<f32>>(), 1.0 / (i + 3) as f64)
        };
        for threads in 1..=3 {
            let cx = Exec::new(Isa::detect().unwrap(), threads);
            let mut gradient = Gradient::new(len);
            for passes in (1..=17).chain(1..=9) {
                let leaves: Vec<_> = (0..passes).map(leaf).collect();
                // What was left unfinished leaves no trace.
                gradient.clear();
                for (values, loss) in &leaves {
                    gradient.add(&cx, |grads| {
                        assert!(grads.iter().all(|&g| g == 0.0));
                        grads.copy_from_slice(values);
                        *loss
                    });
                }
                let want = tree(&leaves, 0, passes.next_power_of_two()).unwrap();
                assert_eq!(gradient.finish(&cx), want.1, "{passes} passes");
                assert!(gradient.values() == want.0, "{passes} passes on {threads} threads");
                gradient.add(&cx, |_| 1.0);
            }
            assert_eq!(gradient.sums.len(), 5, "16 passes take four buffers besides the first");
        }
    }
}
