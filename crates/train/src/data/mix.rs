//! Several texts in one stream: which text the n-th window is of, and which of that text's windows it is.
//!
//! The first text against all later ones, then the second against those after it, and so on: with `p` the first one's share,
//! `floor(n p + phase)` of the first `n` windows are its own, as evenly spread as whole numbers allow. Nothing is counted on
//! the way, so the n-th window is known without those before it, and after `n` windows each text has had its share to within
//! one window for each text before it. Shares are kept in units of 2^-32; the phases come from the seed.

use super::order::mix;

const ONE: u64 = 1 << 32;

/// See above.
#[derive(Clone, Debug)]
pub struct Mix {
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    /// Share of this text of what the texts before it left.
    share: u64,
    phase: u64,
}

impl Part {
    /// How many of the first `n` windows that are left are of this text.
    fn count(&self, n: u64) -> u64 {
        ((u128::from(n) * u128::from(self.share) + u128::from(self.phase)) >> 32) as u64
    }
}

impl Mix {
    /// Of texts with these weights, each above 0, whatever their sum.
    pub fn new(weights: &[f64], seed: u64) -> Mix {
        let part = |(i, weight): (usize, &f64)| {
            let share = weight / weights[i..].iter().sum::<f64>();
            // The last share is exactly one.
            let share = if i + 1 == weights.len() { ONE } else { ((share * ONE as f64).round() as u64).clamp(1, ONE) };
            Part { share, phase: mix(seed ^ mix(i as u64)) >> 32 }
        };
        Mix { parts: weights.iter().enumerate().map(part).collect() }
    }

    /// The text of window `n`, and how many windows before `n` are of it.
    pub fn pick(&self, n: u64) -> (usize, u64) {
        let mut left = n;
        for (i, part) in self.parts.iter().enumerate() {
            let before = part.count(left);
            if part.count(left + 1) > before {
                return (i, before);
            }
            left -= before;
        }
        unreachable!("the last part takes all that is left")
    }

    /// How many of the first `n` windows are of each text.
    pub fn counts(&self, n: u64) -> impl Iterator<Item = u64> + '_ {
        self.parts.iter().scan(n, |left, part| {
            let own = part.count(*left);
            *left -= own;
            Some(own)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_counted_through_without_a_gap() {
        for weights in [&[1.0][..], &[0.5, 0.5], &[0.8, 0.2], &[1e-6, 1.0], &[3.0, 1.0, 2.0, 0.05]] {
            for seed in 0..20 {
                let mix = Mix::new(weights, seed);
                let mut seen = vec![0; weights.len()];
                for n in 0..5000 {
                    assert!(mix.counts(n).eq(seen.iter().copied()), "{weights:?} {seed} {n}");
                    let (text, index) = mix.pick(n);
                    assert_eq!(index, seen[text], "{weights:?} {seed} {n}");
                    seen[text] += 1;
                }
            }
        }
    }

    #[test]
    fn shares_hold_at_every_point_and_for_ever() {
        let weights = [5.0, 1.0, 0.5, 3.5];
        for seed in 0..10 {
            let mix = Mix::new(&weights, seed);
            for n in (0..10_000).chain([1 << 20, 1 << 30]) {
                for (i, (count, weight)) in mix.counts(n).zip(weights).enumerate() {
                    let due = n as f64 * weight / 10.0;
                    assert!((count as f64 - due).abs() <= i as f64 + 1.5, "{n}: {count} of text {i}, {due} due");
                }
            }
        }
    }

    #[test]
    fn a_single_text_is_told_as_it_stands() {
        let mix = Mix::new(&[0.3], 9);
        assert!((0..1000).chain([u64::MAX - 1]).all(|n| mix.pick(n) == (0, n)));
    }

    #[test]
    fn seeds_shift_the_turns() {
        let turns = |seed| (0..64).map(|n| Mix::new(&[0.5, 0.3, 0.2], seed).pick(n).0).collect::<Vec<_>>();
        assert_eq!(turns(1), turns(1));
        assert!((2..10).any(|seed| turns(seed) != turns(1)));
    }
}
