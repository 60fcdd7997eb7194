//! The order in which a run of any length visits `count` windows: each once per epoch, in another order every epoch.
//!
//! Nothing is stored: the n-th place is a pure function of (seed, n). A permutation of `count` is a balanced Feistel network
//! of six rounds over the smallest even number of bits that holds `count`, applied again while it lands outside (cycle
//! walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Up to `GROUP` windows are permuted one by
//! one. Where there are more, blocks of `BLOCK` neighbours are permuted first, then the windows within each `GROUP` of
//! them, so that a text larger than memory is read in runs and not a page for every window; every epoch cuts the blocks
//! elsewhere.

/// Neighbouring windows that are read together.
const BLOCK: u64 = 64;
/// Windows between which the order is free: 1,024 blocks.
const GROUP: u64 = 1024 * BLOCK;
const ROUNDS: u64 = 6;

/// See above.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    count: u64,
    seed: u64,
}

impl Order {
    /// Of `count` windows; none if that is 0.
    pub fn new(count: u64, seed: u64) -> Option<Order> {
        (count > 0).then_some(Order { count, seed })
    }

    /// Windows in an epoch.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The n-th window of the run, `0..count`.
    pub fn at(&self, n: u64) -> u64 {
        let (epoch, i) = (n / self.count, n % self.count);
        let key = mix(mix(self.seed) ^ epoch);
        if self.count <= GROUP {
            return permute(key, i, self.count);
        }
        let first = i - i % GROUP;
        let within = permute(mix(key ^ first), i - first, GROUP.min(self.count - first));
        let (blocks, block) = (self.count / BLOCK, (first + within) / BLOCK);
        // What fills no block stays at the end.
        let place = if block < blocks { permute(key, block, blocks) } else { block } * BLOCK + within % BLOCK;
        (place + mix(!key) % self.count) % self.count
    }
}

/// Where `i` goes in the permutation of `0..count` that belongs to `key`.
fn permute(key: u64, i: u64, count: u64) -> u64 {
    let bits = (u64::BITS - (count - 1).leading_zeros()).max(2);
    let mut x = i;
    loop {
        x = feistel(key, x, bits.div_ceil(2));
        if x < count {
            return x;
        }
    }
}

fn feistel(key: u64, x: u64, half_bits: u32) -> u64 {
    let mask = (1u64 << half_bits) - 1;
    let (mut left, mut right) = (x >> half_bits, x & mask);
    for round in 0..ROUNDS {
        let f = mix(key ^ (round << 56) ^ right) >> (u64::BITS - half_bits);
        (left, right) = (right, left ^ f);
    }
    left << half_bits | right
}

/// SplitMix64's increment.
pub(super) const INCREMENT: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function after its increment.
pub(super) fn mix(x: u64) -> u64 {
    output(x.wrapping_add(INCREMENT))
}

/// SplitMix64's output function (Steele, Lea, Flood 2014).
pub(super) fn output(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(order: &Order, epoch: u64) -> Vec<u64> {
        (0..order.count).map(|i| order.at(epoch * order.count + i)).collect()
    }

    #[test]
    fn every_epoch_visits_every_window_once() {
        // One by one up to a group; then groups, a last short one, and a rest that fills no block.
        let sizes = [1, 2, 3, 100, 4096, 65_535, 65_536, 65_537, 65_600, 131_072, 200_003];
        for count in sizes {
            let order = Order::new(count, 42).unwrap();
            for e in [0, 1, 1000] {
                let mut all = epoch(&order, e);
                all.sort_unstable();
                assert!(all.iter().copied().eq(0..count), "{count}, epoch {e}");
            }
        }
        assert!(Order::new(0, 1).is_none());
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let orders: Vec<Vec<u64>> = (0..4)
            .flat_map(|seed| {
                let order = Order::new(500, seed).unwrap();
                (0..4).map(move |e| epoch(&order, e))
            })
            .collect();
        for (i, a) in orders.iter().enumerate() {
            for b in &orders[..i] {
                // Two random orders of 500 agree in one place on average.
                let same = a.iter().zip(b).filter(|(x, y)| x == y).count();
                assert!(same < 12, "{same}");
            }
        }
        assert_eq!(orders[15], epoch(&Order::new(500, 3).unwrap(), 3));
    }

    #[test]
    fn the_order_looks_random() {
        for (count, bound) in [(10_000, 0.015), (150_000, 0.05)] {
            let order = Order::new(count, 1).unwrap();
            for e in 0..5 {
                let order: Vec<f64> = epoch(&order, e).into_iter().map(|x| x as f64).collect();
                // Of a random order of n, neighbours (and place against value) are n/3 apart on average, give or take
                // 0.0024 n for n = 10,000; with blocks it is those of a group that count, 1,024 of them.
                let apart = |pairs: Vec<(f64, f64)>| {
                    pairs.iter().map(|(a, b)| (a - b).abs()).sum::<f64>() / pairs.len() as f64 / count as f64
                };
                let neighbours = apart(order.iter().copied().zip(order[1..].iter().copied()).collect());
                let moved = apart(order.iter().copied().enumerate().map(|(i, x)| (i as f64, x)).collect());
                for d in [neighbours, moved] {
                    assert!((d - 1.0 / 3.0).abs() < bound, "{count}, epoch {e}: {d}");
                }
            }
        }
    }

    /// What blocks are for: 65,536 windows in a row lie in about 1,024 runs of neighbours, not anywhere.
    #[test]
    fn a_large_text_is_read_in_blocks() {
        let order = Order::new(10_000_000, 7).unwrap();
        let pages = |windows: std::ops::Range<u64>| {
            let mut all: Vec<u64> = windows.map(|n| order.at(n) / BLOCK).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        assert!((1024..=2 * 1024 + 1).contains(&pages(0..GROUP)));
        // And the windows of one batch are of different places.
        assert!(pages(0..64) > 50);
    }
}
