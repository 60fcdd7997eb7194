//! Ranks: processes, or threads, that train one model together.
//!
//! What they share out is added up in a tree over their numbers: `((0 + 1) + (2 + 3)) + ...`, by recursive doubling. In round `k`
//! rank `r` and rank `r ^ 2^k` exchange what they have and both add; since `a + b = b + a` in IEEE arithmetic, all have the same bits.
//! A rank with nothing to add gives [`NOTHING`].

mod error;
#[cfg(feature = "mpi")]
mod mpi;
mod solo;
mod threads;

use std::time::Duration;

pub use error::CommError;
#[cfg(feature = "mpi")]
pub use mpi::{Mpi, library};
pub use solo::Solo;
pub use threads::Threads;

/// Does not change what it is added to: `x + -0 = x` for every `x`, also for both zeros.
pub const NOTHING: f32 = -0.0;

/// How long a rank waits for another within a sum, where nothing else is asked for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One rank's side of what all ranks do together: all call the same functions in the same order.
pub trait Comm {
    /// The own number, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, a power of two.
    fn size(&self) -> usize;

    /// Replaces the values by their sums over all ranks, as the tree has them.
    fn sum(&self, values: &mut [f32]) -> Result<(), CommError>;

    /// Replaces the bytes by those of rank 0.
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError>;

    /// Returns once all ranks have come so far.
    fn barrier(&self) -> Result<(), CommError>;
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

/// The sum over all ranks; `exchange` sends the first values to a rank and receives the second from it.
fn double(
    (rank, size): (usize, usize),
    values: &mut [f32],
    mut exchange: impl FnMut(usize, &[f32], &mut [f32]) -> Result<(), CommError>,
) -> Result<(), CommError> {
    /// Values that are exchanged at once.
    const PIECE: usize = 1 << 16;
    let mut theirs = vec![0.0; PIECE.min(values.len())];
    let mut distance = 1;
    while distance < size {
        for own in values.chunks_mut(PIECE) {
            let theirs = &mut theirs[..own.len()];
            exchange(rank ^ distance, own, theirs)?;
            own.iter_mut().zip(theirs).for_each(|(own, theirs)| *own += *theirs);
        }
        distance *= 2;
    }
    Ok(())
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
        for size in [1, 2, 4, 8] {
            let sums = Threads::run(size, PATIENCE, |comm| {
                let mut values: Vec<f32> = (0..200_000).map(|i| value(comm.rank(), i)).collect();
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
                (0..200_000).map(|i| tree(&(0..size).map(|rank| value(rank, i)).collect::<Vec<_>>())).collect();
            assert!(sums.iter().all(|sum| *sum == want), "{size} ranks");
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
