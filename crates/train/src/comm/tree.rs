//! Sums over ranks, and messages to all, made of exchanges between two.
//!
//! In round `k` rank `r` meets rank `r ^ 2^k`. Few values are exchanged whole and added by both. Of many, each keeps one half of what it
//! has, gets the other's share of it, and adds; once all rounds are over, each has a part of the sum, and the rounds are gone back to
//! collect the other parts. Either way every value is added as `((0 + 1) + (2 + 3)) + ...`, and since `a + b = b + a` in IEEE arithmetic,
//! all ranks have the same bits. `P` values on `R` ranks are `2 P (R - 1) / R` that each sends, in `2 log2 R` rounds.

use std::ops::Range;

use flashlm_kernels::Bf16;
use serde::{Deserialize, Serialize};

use super::CommError;

/// Fewer values than these are exchanged whole: the way costs more than the amount.
const FEW: usize = 1 << 10;
/// Most values that are exchanged at once.
pub(crate) const PIECE: usize = 1 << 20;

/// As what the values of a sum are sent from rank to rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sent {
    /// As they are.
    #[default]
    #[serde(rename = "f32")]
    Whole,
    /// Rounded to bf16: half the bytes.
    #[serde(rename = "bf16")]
    Rounded,
}

/// Sends values to a rank while it receives others from it.
pub(super) type Exchange<'a> = &'a mut dyn FnMut(usize, &[f32], &mut [f32]) -> Result<(), CommError>;

/// The sum over all ranks, in place of what this one has.
pub(super) fn sum(
    (rank, size): (usize, usize),
    values: &mut [f32],
    sent: Sent,
    exchange: Exchange,
) -> Result<(), CommError> {
    let rounds = (0..size.ilog2()).map(|round| 1 << round);
    if values.len() < FEW {
        let mut theirs = vec![0.0; values.len()];
        for distance in rounds {
            exchange(rank ^ distance, values, &mut theirs)?;
            values.iter_mut().zip(&theirs).for_each(|(own, theirs)| *own += *theirs);
        }
        return Ok(());
    }
    let mut room = Room::default();
    let (mut own, mut halves) = (0..values.len(), Vec::new());
    for distance in rounds {
        let (low, high) = halve(&own);
        let (keep, give) = if rank & distance == 0 { (low, high) } else { (high, low) };
        for (keep, give) in pieces(&keep, &give) {
            let (sending, receiving) = room.of(sent, &values[give], keep.len());
            exchange(rank ^ distance, sending, receiving)?;
            add(&mut values[keep], receiving, sent);
        }
        halves.push((distance, give));
        own = keep;
    }
    if sent == Sent::Rounded {
        values[own.clone()].iter_mut().for_each(|x| *x = Bf16::from_f32(*x).to_f32());
    }
    for (distance, other) in halves.into_iter().rev() {
        for (own, other) in pieces(&own, &other) {
            let (sending, receiving) = room.of(sent, &values[own], other.len());
            exchange(rank ^ distance, sending, receiving)?;
            take(&mut values[other], receiving, sent);
        }
        own = own.start.min(other.start)..own.end.max(other.end);
    }
    Ok(())
}

/// Children of a rank in the tree by which rank 0 reaches all: it has its message from the rank without its lowest bit.
#[cfg(any(feature = "mpi", test))]
pub(super) fn children(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    let below = if rank == 0 { size.ilog2() } else { rank.trailing_zeros() };
    (0..below).rev().map(move |bit| rank | 1 << bit)
}

fn halve(all: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = all.start + all.len() / 2;
    (all.start..middle, middle..all.end)
}

/// Two ranges, cut alike: both sides of an exchange have as many pieces.
fn pieces(a: &Range<usize>, b: &Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let piece = |of: &Range<usize>, i: usize| {
        let cut = |i: usize| (of.start + i * PIECE).min(of.end);
        cut(i)..cut(i + 1)
    };
    let (a, b) = (a.clone(), b.clone());
    (0..a.len().max(b.len()).div_ceil(PIECE)).map(move |i| (piece(&a, i), piece(&b, i)))
}

/// What is on its way.
#[derive(Default)]
struct Room {
    sending: Vec<f32>,
    receiving: Vec<f32>,
}

impl Room {
    /// The values as they are sent, and room for so many of the other rank's.
    fn of<'a: 'b, 'b>(&'a mut self, sent: Sent, values: &'b [f32], receive: usize) -> (&'b [f32], &'a mut [f32]) {
        let words = |len: usize| if sent == Sent::Whole { len } else { len.div_ceil(2) };
        self.receiving.resize(words(PIECE.min(receive)).max(self.receiving.len()), 0.0);
        let receiving = &mut self.receiving[..words(receive)];
        if sent == Sent::Whole {
            return (values, receiving);
        }
        self.sending.clear();
        self.sending.extend(values.chunks(2).map(|two| {
            let bits = |i: usize| two.get(i).map_or(0, |&x| u32::from(Bf16::from_f32(x).0));
            f32::from_bits(bits(0) | bits(1) << 16)
        }));
        (&self.sending, receiving)
    }
}

fn add(own: &mut [f32], received: &[f32], sent: Sent) {
    match sent {
        Sent::Whole => own.iter_mut().zip(received).for_each(|(own, theirs)| *own += *theirs),
        Sent::Rounded => each(own, received, |own, theirs| *own += theirs),
    }
}

fn take(own: &mut [f32], received: &[f32], sent: Sent) {
    match sent {
        Sent::Whole => own.copy_from_slice(received),
        Sent::Rounded => each(own, received, |own, theirs| *own = theirs),
    }
}

/// Unpacks pairs.
fn each(own: &mut [f32], received: &[f32], put: impl Fn(&mut f32, f32)) {
    for (two, pair) in own.chunks_mut(2).zip(received) {
        let bits = pair.to_bits();
        two.iter_mut().zip([bits as u16, (bits >> 16) as u16]).for_each(|(own, half)| put(own, Bf16(half).to_f32()));
    }
}
