//! What a step takes on several ranks, each on a machine of its own, from what it takes on one and from the network.
//!
//! ```text
//! R ranks, L = log2 R rounds, P parameters, each of b bytes on the way, N tokens, links of B bytes/s with a delay of d seconds
//! compute   fixed + passes of the busiest rank * pass
//! order     L (d + 2 N / B)                      rank 0 sends the tokens to L others in turn
//! losses    L d
//! sum       2 (R - 1) / R * b P / B + (R - 1) / R * P add + 3 d for each of its 2 L exchanges, and for each piece of a long one
//! ```
//!
//! An exchange costs three delays: the way, and what a connection that was idle needs until it sends at full speed.

use crate::comm::{PIECE, share};

/// One step, as measured on one rank. Times are in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Number of parameters, `P`.
    pub parameters: usize,
    /// Passes of an update.
    pub passes: usize,
    /// Tokens of a pass.
    pub pass_tokens: usize,
    /// One pass.
    pub pass: f64,
    /// What every rank does in each step whatever the number of passes: weights made ready, norm, optimizer.
    pub fixed: f64,
    /// To add, and to copy, one value.
    pub add: f64,
}

/// What lies between the machines.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// In each direction at once.
    pub bytes_per_second: f64,
    /// Seconds on the way, one way.
    pub delay: f64,
}

impl Work {
    /// Seconds of computing on the rank that has most to do, and of what the ranks send each other; `bytes` of each value.
    pub fn seconds(&self, ranks: usize, link: Link, bytes: f64) -> (f64, f64) {
        let compute = self.fixed + share(self.passes, 0, ranks).len() as f64 * self.pass;
        let (rounds, others) = (f64::from(ranks.ilog2()), (ranks - 1) as f64 / ranks as f64);
        let tokens = (self.passes * self.pass_tokens) as f64;
        let order = rounds * (link.delay + 2.0 * tokens / link.bytes_per_second);
        let pieces: usize = (1..=ranks.ilog2()).map(|round| (self.parameters >> round).div_ceil(PIECE)).sum();
        let values = others * self.parameters as f64;
        let sum = 2.0 * values * bytes / link.bytes_per_second + values * self.add + 6.0 * pieces as f64 * link.delay;
        (compute, order + rounds * link.delay + sum)
    }

    /// Tokens per second.
    pub fn speed(&self, ranks: usize, link: Link, bytes: f64) -> f64 {
        let (compute, talk) = self.seconds(ranks, link, bytes);
        (self.passes * self.pass_tokens) as f64 / (compute + talk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_costs_what_is_added_up_by_hand() {
        let work = Work { parameters: 4_000_000, passes: 8, pass_tokens: 1000, pass: 0.5, fixed: 0.1, add: 1e-9 };
        let link = Link { bytes_per_second: 1e7, delay: 0.01 };
        assert_eq!(work.seconds(1, link, 4.0), (0.1 + 8.0 * 0.5, 0.0));
        // Two ranks: 16,000 bytes of tokens, half of the parameters both ways, in two pieces each way.
        let (compute, talk) = work.seconds(2, link, 4.0);
        let want = (0.01 + 0.0016) + 0.01 + 2.0 * 2e6 * 4.0 / 1e7 + 2e6 * 1e-9 + 4.0 * 0.03;
        assert!((compute - 2.1).abs() < 1e-12 && (talk - want).abs() < 1e-12, "{compute} {talk} {want}");
        // Four: two rounds, of 2 and 1 million values; bf16 halves the bytes alone.
        let (_, talk) = work.seconds(4, link, 2.0);
        let want = 2.0 * (0.01 + 0.0016) + 0.02 + 2.0 * 3e6 * 2.0 / 1e7 + 3e6 * 1e-9 + 2.0 * 3.0 * 0.03;
        assert!((talk - want).abs() < 1e-12, "{talk} {want}");
        assert!((work.speed(1, link, 4.0) - 8000.0 / 4.1).abs() < 1e-9);
        // Five passes on four ranks: two of them on the first, as in the tree over eight.
        assert_eq!(Work { passes: 5, ..work }.seconds(4, link, 4.0).0, 0.1 + 2.0 * 0.5);
    }
}
