//! Which rows of a batch the loss is of (`train.loss_share`): each with this probability, by itself. What is drawn follows from the seed,
//! the step and the row of the batch: not from threads, ranks, the cut into passes or a resume.

use flashlm_model::rng::Rng;

/// The rows that count in one step.
#[derive(Clone, Copy, Debug)]
pub struct Positions {
    share: f64,
    key: u64,
}

impl Positions {
    /// Of `step`; with a `share` of 1 all of them.
    pub fn new(share: f64, seed: u64, step: u64) -> Positions {
        Positions { share, key: mixed(mixed(seed ^ 0x6c6f_7373) ^ step) }
    }

    /// Whether row `row` of the batch counts.
    pub fn has(self, row: u64) -> bool {
        self.share >= 1.0 || Rng::new(self.key ^ mixed(row)).uniform() < self.share
    }
}

fn mixed(x: u64) -> u64 {
    Rng::new(x).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four standard deviations around the share, over the rows of a step and over the steps of a row; neighbours are independent.
    #[test]
    fn the_share_is_kept_over_rows_and_over_steps() {
        let n = 40_000u64;
        for share in [0.25, 0.6] {
            let near = |count: usize, share: f64, what: &str| {
                let (mean, spread) = (share * n as f64, (n as f64 * share * (1.0 - share)).sqrt());
                assert!((count as f64 - mean).abs() < 4.0 * spread, "{what}: {count} of {n}");
            };
            let one = Positions::new(share, 42, 7);
            near((0..n).filter(|&row| one.has(row)).count(), share, "rows");
            near((0..n).filter(|&step| Positions::new(share, 42, step).has(5)).count(), share, "steps");
            near((0..n).filter(|&seed| Positions::new(share, seed, 7).has(5)).count(), share, "seeds");
            near((0..n).filter(|&row| one.has(row) && one.has(row + 1)).count(), share * share, "neighbours");
            let next = Positions::new(share, 42, 8);
            near((0..n).filter(|&row| one.has(row) && next.has(row)).count(), share * share, "two steps");
        }
        assert!((0..1000).all(|row| Positions::new(1.0, 1, 2).has(row)));
    }
}
