//! The row of a table of `N` rows that two neighbouring tokens share with others: `floor(hash(2^16 before + token) N / 2^32)`, with the
//! hash `lowbias32` (Wellons, 2018; a permutation of the 32-bit numbers, all arithmetic modulo 2^32):
//!
//! ```text
//! x ^= x >> 16;  x *= 0x7feb352d;  x ^= x >> 15;  x *= 0x846ca68b;  x ^= x >> 16
//! ```

use flashlm_kernels::Token;

/// The row of `token` after `before` in a table of `rows` rows, at most 2^32.
pub fn bigram_row(before: Token, token: Token, rows: usize) -> u32 {
    let mut x = u32::from(before) << 16 | u32::from(token);
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    x ^= x >> 16;
    ((u64::from(x) * rows as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 1,000,000 pairs in 1,024 rows, each row has its share; the spread of a random draw is 3.2 %.
    #[test]
    fn pairs_are_spread_over_the_rows() {
        for first in [0, 64_000] {
            let mut counts = vec![0u32; 1024];
            for before in first..first + 1000 {
                (first..first + 1000).for_each(|token| counts[bigram_row(before, token, 1024) as usize] += 1);
            }
            let share = 1e6 / 1024.0;
            let square = |count: u32| (f64::from(count) / share - 1.0).powi(2);
            let spread = (counts.iter().map(|&count| square(count)).sum::<f64>() / 1024.0).sqrt();
            assert!((0.02..0.045).contains(&spread), "{spread}");
        }
        assert_eq!(bigram_row(Token::MAX, Token::MAX, 1), 0);
    }

    #[test]
    fn the_order_of_two_tokens_counts() {
        let same = (0..1000).filter(|&i| bigram_row(i, i + 1, 1 << 20) == bigram_row(i + 1, i, 1 << 20)).count();
        assert!(same < 5, "{same}");
    }
}
