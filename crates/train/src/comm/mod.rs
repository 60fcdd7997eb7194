//! Ranks: processes, or threads, that train one model together.
//!
//! What they share out is added up in a tree over their numbers: `((0 + 1) + (2 + 3)) + ...`. All have the same bits of it (`tree`).
//! A rank with nothing to add gives [`NOTHING`].

mod error;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(any(feature = "mpi", test))]
mod pulse;
mod solo;
mod threads;
mod tree;
#[cfg(any(feature = "mpi", test))]
mod watch;

use std::time::Duration;

pub use error::{CommError, Difference};
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, library};
pub use solo::Solo;
pub use threads::Threads;
pub(crate) use tree::PIECE;
pub use tree::Sent;

/// Does not change what it is added to: `x + -0 = x` for every `x`, also for both zeros.
pub const NOTHING: f32 = -0.0;

/// How long threads as ranks wait for each other within a sum, where nothing else is asked for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One rank's side of what all ranks do together: all call the same functions in the same order.
pub trait Comm {
    /// The own number, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, a power of two.
    fn size(&self) -> usize;

    /// Replaces the values by their sums over all ranks, as the tree has them.
    fn sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        self.sum_as(values, Sent::Whole)
    }

    /// The same; where values are rounded on their way, the bits of the sum depend on the number of ranks.
    fn sum_as(&self, values: &mut [f32], sent: Sent) -> Result<(), CommError>;

    /// Replaces the bytes by those of rank 0.
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError>;

    /// Returns once all ranks have come so far.
    fn barrier(&self) -> Result<(), CommError> {
        self.sum(&mut [0.0])
    }

    /// That this rank computes for a step now, which is named where it is lost; said again at each pass. Without a step it does what
    /// may take any time, such as writing to a disk.
    fn at(&self, _step: Option<u64>) {}
}

/// What each rank has, of one length, in their order.
pub fn gather(comm: &dyn Comm, own: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
    let mut all = vec![NOTHING; comm.size() * own.len()];
    let place = &mut all[comm.rank() * own.len()..][..own.len()];
    place.iter_mut().zip(own).for_each(|(to, &byte)| *to = byte.into());
    comm.sum(&mut all)?;
    // Bytes are whole numbers, and only one rank gives each.
    Ok((0..comm.size())
        .map(|rank| all[rank * own.len()..][..own.len()].iter().map(|&byte| byte as u8).collect())
        .collect())
}

/// The passes, of so many in an update, that a rank computes: a subtree of the tree over all of them.
pub fn share(passes: usize, rank: usize, size: usize) -> std::ops::Range<usize> {
    let each = passes.next_power_of_two().div_ceil(size);
    (rank * each).min(passes)..((rank + 1) * each).min(passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition, in plain recursion.
    fn tree(values: &[f32]) -> f32 {
        match values {
            [one] => *one,
            _ => {
                let (left, right) = values.split_at(values.len() / 2);
                tree(left) + tree(right)
            }
        }
    }

    #[test]
    fn sums_are_those_of_a_tree_on_every_rank() {
        let value = |rank: usize, i: usize| ((rank * 7919 + i * 104_729) % 1009) as f32 * 0.1 - 50.0;
        // Exchanged whole, in halves, in halves of two pieces.
        let cases = [1, 2, 4, 8].into_iter().flat_map(|size| [(size, 1000), (size, 200_001)]).chain([(2, 2_200_001)]);
        for (size, len) in cases {
            let sums = Threads::run(size, PATIENCE, |comm| {
                let mut values: Vec<f32> = (0..len).map(|i| value(comm.rank(), i)).collect();
                comm.sum(&mut values).unwrap();
                let mut bytes = if comm.rank() == 0 { b"from 0".to_vec() } else { vec![1; 20] };
                comm.broadcast(&mut bytes).unwrap();
                assert_eq!(bytes, b"from 0");
                comm.barrier().unwrap();
                let all = gather(&comm, &[comm.rank() as u8, 255]).unwrap();
                assert_eq!(all, (0..size).map(|rank| vec![rank as u8, 255]).collect::<Vec<_>>());
                values
            });
            let want: Vec<f32> =
                (0..len).map(|i| tree(&(0..size).map(|rank| value(rank, i)).collect::<Vec<_>>())).collect();
            assert!(sums.iter().all(|sum| *sum == want), "{size} ranks, {len} values");
        }
    }

    #[test]
    fn what_is_sent_rounded_is_the_same_everywhere_and_as_near_as_bf16_is() {
        let value = |rank: usize, i: usize| ((rank * 7919 + i * 104_729) % 1009) as f32 * 0.1 - 50.0;
        for size in [2, 4, 8] {
            let run = |value: &(dyn Fn(usize, usize) -> f32 + Sync)| {
                Threads::run(size, PATIENCE, |comm| {
                    let mut values: Vec<f32> = (0..5001).map(|i| value(comm.rank(), i)).collect();
                    comm.sum_as(&mut values, Sent::Rounded).unwrap();
                    values
                })
            };
            let sums = run(&value);
            assert!(sums.iter().all(|sum| *sum == sums[0]), "{size} ranks");
            for (i, sum) in sums[0].iter().enumerate() {
                let (exact, most) =
                    (0..size).map(|rank| value(rank, i)).fold((0.0, 0.0), |(a, b), x| (a + x, b + x.abs()));
                // Each value is rounded once in each round, and once more in the end.
                let rounds = f64::from(size.ilog2() + 1);
                assert!(f64::from((sum - exact).abs()) <= rounds * f64::from(most) / 256.0, "{sum} for {exact}");
            }
            // Whole numbers up to 256 are bf16 numbers.
            let sums = run(&|rank, i| ((rank + i) % 32) as f32);
            let want: Vec<f32> = (0..5001).map(|i| (0..size).map(|rank| ((rank + i) % 32) as f32).sum()).collect();
            assert!(sums.iter().all(|sum| *sum == want), "{size} ranks");
        }
    }

    #[test]
    fn rank_0_reaches_all() {
        for size in [1, 2, 4, 8, 16] {
            let mut reached = vec![0];
            let mut next = 0;
            while let Some(&rank) = reached.get(next) {
                reached.extend(tree::children(rank, size).inspect(|child| assert_eq!(child & (child - 1), rank)));
                next += 1;
            }
            reached.sort_unstable();
            assert_eq!(reached, (0..size).collect::<Vec<_>>());
        }
    }

    #[test]
    fn passes_are_shared_out_as_subtrees() {
        for passes in 1..=40 {
            for size in [1, 2, 4, 8] {
                let shares: Vec<_> = (0..size).map(|rank| share(passes, rank, size)).collect();
                assert_eq!(shares.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..passes).collect::<Vec<_>>());
                let each = passes.next_power_of_two().div_ceil(size);
                assert!(each.is_power_of_two() && shares.iter().all(|s| s.is_empty() || s.start % each == 0));
            }
        }
    }

    #[test]
    fn nothing_changes_no_value() {
        for value in [0.0f32, -0.0, 1.5, f32::MIN_POSITIVE, f32::INFINITY] {
            assert_eq!((value + NOTHING).to_bits(), value.to_bits());
            assert_eq!((NOTHING + value).to_bits(), value.to_bits());
        }
    }

    #[test]
    fn who_is_gone_or_late_is_named() {
        let errors = Threads::run(4, Duration::from_millis(300), |comm| match comm.rank() {
            2 => None,
            _ => Some(comm.sum(&mut [1.0]).unwrap_err()),
        });
        assert_eq!(errors[3], Some(CommError::Gone { rank: 2 }));
        assert!(errors[0].is_some() && errors[1].is_some());
        let errors = Threads::run(2, Duration::from_millis(300), |comm| {
            if comm.rank() == 1 {
                std::thread::sleep(Duration::from_millis(900));
            }
            comm.sum(&mut [1.0])
        });
        assert_eq!(errors[0], Err(CommError::Late { rank: 1, seconds: 0.3 }));
    }
}
