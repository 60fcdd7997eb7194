//! Dropout of what each branch adds to the residual stream, in training alone ([`flashlm_kernels::ops::DropMask`]). What is dropped follows from
//! the seed, the step, the row of the batch, the branch and the column: not from threads, from the cut into passes or from a resume.

use flashlm_kernels::ops::DropMask;

use crate::rng::Rng;

/// What the rows of one pass drop.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    share: f64,
    key: u64,
    first: u64,
}

impl Dropout {
    /// Drops with the probability `share`, at least 0 and below 1, in a pass whose first row is row `first` of the batch of `step`.
    pub fn new(share: f64, seed: u64, step: u64, first: u64) -> Self {
        Dropout { share, key: mixed(mixed(seed) ^ step), first }
    }

    /// The mask of branch `branch` of the model.
    pub(crate) fn mask(self, branch: usize) -> DropMask {
        DropMask { share: self.share, key: mixed(self.key ^ branch as u64), first: self.first }
    }
}

fn mixed(x: u64) -> u64 {
    Rng::new(x).next_u64()
}
