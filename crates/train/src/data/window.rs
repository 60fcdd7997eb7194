//! Training windows: `count = tokens / (T + 1)` non-overlapping runs of `T + 1` tokens, in a new order every epoch.
//!
//! The order is a permutation without storage, a pure function of (seed, epoch, i): a balanced Feistel network of
//! six rounds over the smallest even number of bits that holds `count`, applied again while it lands outside
//! (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). A run's n-th window is thus
//! known without the ones before it, which is what exact resume and data parallelism need. The up to `T` tokens
//! after the last window are not used.

use super::DataError;
use std::ops::Range;

const ROUNDS: u64 = 6;

/// The order in which a run of any length visits the windows.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    count: u64,
    len: usize,
    half_bits: u32,
    seed: u64,
}

impl Windows {
    /// Windows of `seq_len + 1` over a sequence of `tokens`; an error if there is not even one.
    pub fn new(tokens: usize, seq_len: usize, seed: u64) -> Result<Windows, DataError> {
        let few = DataError::FewTokens { tokens, seq_len };
        let Some(len) = seq_len.checked_add(1) else { return Err(few) };
        let count = (tokens / len) as u64;
        if count == 0 {
            return Err(few);
        }
        let bits = (u64::BITS - (count - 1).leading_zeros()).max(2);
        Ok(Windows { count, len, half_bits: bits.div_ceil(2), seed })
    }

    /// Windows in an epoch.
    pub fn per_epoch(&self) -> u64 {
        self.count
    }

    /// The n-th window of the run: its epoch, and where its `T + 1` tokens lie.
    pub fn window(&self, n: u64) -> (u64, Range<usize>) {
        let epoch = n / self.count;
        // Fits: below count, and count windows of len fit in a usize.
        let start = self.permute(epoch, n % self.count) as usize * self.len;
        (epoch, start..start + self.len)
    }

    fn permute(&self, epoch: u64, i: u64) -> u64 {
        let key = mix(mix(self.seed) ^ epoch);
        let mut x = i;
        loop {
            x = self.feistel(key, x);
            if x < self.count {
                return x;
            }
        }
    }

    fn feistel(&self, key: u64, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            let f = mix(key ^ (round << 56) ^ right) >> (u64::BITS - self.half_bits);
            (left, right) = (right, left ^ f);
        }
        left << self.half_bits | right
    }
}

/// SplitMix64's output function (Steele, Lea, Flood 2014) after its increment.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(w: &Windows, epoch: u64) -> Vec<usize> {
        (0..w.per_epoch()).map(|i| w.window(epoch * w.per_epoch() + i).1.start).collect()
    }

    #[test]
    fn every_epoch_visits_every_window_once() {
        for (tokens, seq_len) in
            [(2, 1), (9, 8), (17, 8), (18, 8), (30, 8), (1000, 9), (4096, 0), (65_537, 15), (65_536, 15), (12_345, 7)]
        {
            let w = Windows::new(tokens, seq_len, 42).unwrap();
            let plain: Vec<usize> = (0..tokens / (seq_len + 1)).map(|i| i * (seq_len + 1)).collect();
            for e in [0, 1, 2, 1000] {
                let mut starts = epoch(&w, e);
                starts.sort_unstable();
                assert_eq!(starts, plain, "{tokens} {seq_len} epoch {e}");
            }
        }
    }

    #[test]
    fn windows_are_whole_and_say_their_epoch() {
        let w = Windows::new(1000, 9, 7).unwrap();
        for n in 0..1000 {
            let (e, range) = w.window(n);
            assert_eq!(e, n / 100);
            assert_eq!(range.len(), 10);
            assert!(range.end <= 1000);
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let orders: Vec<Vec<usize>> = (0..4)
            .flat_map(|seed| {
                let w = Windows::new(500 * 33, 32, seed).unwrap();
                (0..4).map(move |e| epoch(&w, e))
            })
            .collect();
        for (i, a) in orders.iter().enumerate() {
            for b in &orders[..i] {
                // Two random orders of 500 agree in one place on average.
                let same = a.iter().zip(b).filter(|(x, y)| x == y).count();
                assert!(same < 12, "{same}");
            }
        }
        let again = Windows::new(500 * 33, 32, 3).unwrap();
        assert_eq!(orders[15], epoch(&again, 3));
    }

    #[test]
    fn the_order_looks_random() {
        let w = Windows::new(10_000, 0, 1).unwrap();
        for e in 0..5 {
            let order: Vec<f64> = epoch(&w, e).into_iter().map(|x| x as f64).collect();
            // Of a random order of n, neighbours (and place against value) are n/3 apart on average, give or take
            // 0.0024 n for n = 10,000.
            let apart = |pairs: Vec<(f64, f64)>| {
                pairs.iter().map(|(a, b)| (a - b).abs()).sum::<f64>() / pairs.len() as f64 / 10_000.0
            };
            let neighbours = apart(order.iter().copied().zip(order[1..].iter().copied()).collect());
            let moved = apart(order.iter().copied().enumerate().map(|(i, x)| (i as f64, x)).collect());
            for d in [neighbours, moved] {
                assert!((d - 1.0 / 3.0).abs() < 0.015, "epoch {e}: {d}");
            }
        }
    }

    #[test]
    fn too_few_tokens_are_named() {
        for tokens in [0, 256] {
            let text = Windows::new(tokens, 256, 0).unwrap_err().to_string();
            assert!(text.contains(&format!("{tokens} tokens")) && text.contains("256 + 1"), "{text}");
        }
        assert!(Windows::new(257, 256, 0).is_ok());
        assert!(Windows::new(usize::MAX, usize::MAX, 0).is_err());
    }
}
