//! Embedding: `y[row] = E[token[row]]`; backward `dE[token[row]] += dy[row]`, rows in order.
//!
//! The gradient is partitioned by columns, so that each element is summed in row order on any number of threads.

use crate::Token;
use crate::exec::{Exec, Shared};
use crate::profile::{Work, time};
use crate::simd::Elem;
use crate::size::area;

/// `y: [rows, d]` from `table: [V, d]`.
pub fn embed_forward<E: Elem>(cx: &Exec, y: &mut [E], tokens: &[Token], table: &[E], d: usize) {
    assert!(y.len() >= area([tokens.len(), d]) && fits(tokens, table.len(), d));
    let _time = time(cx, "embed_forward", (d, 0), Work::Bytes((2 * tokens.len() * d * size_of::<E>()) as f64));
    let y = Shared::new(y);
    cx.rows(tokens.len(), |r| {
        for row in r {
            let t = usize::from(tokens[row]);
            // SAFETY: one row, one thread.
            unsafe { y.range(row * d..(row + 1) * d) }.copy_from_slice(&table[t * d..(t + 1) * d]);
        }
    });
}

/// Whether a table of `len` elements has a row for each token.
fn fits(tokens: &[Token], len: usize, d: usize) -> bool {
    tokens.iter().all(|&t| area([usize::from(t) + 1, d]) <= len)
}

/// Adds to `dtable: [V, d]` from `dy: [rows, d]`.
pub fn embed_backward<E: Elem>(cx: &Exec, dtable: &mut [E], dy: &[E], tokens: &[Token], d: usize) {
    assert!(dy.len() >= area([tokens.len(), d]) && fits(tokens, dtable.len(), d));
    let _time = time(cx, "embed_backward", (d, 0), Work::Bytes((3 * tokens.len() * d * size_of::<E>()) as f64));
    let dtable = Shared::new(dtable);
    cx.pool().split(d, 16, |columns| {
        for (row, &t) in tokens.iter().enumerate() {
            let at = usize::from(t) * d;
            // SAFETY: columns of different threads are disjoint.
            let out = unsafe { dtable.range(at + columns.start..at + columns.end) };
            out.iter_mut().zip(&dy[row * d + columns.start..]).for_each(|(o, &g)| *o += g);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{all_isas, random};

    #[test]
    fn gathers_and_scatters() {
        all_isas(|cx| {
            for d in 1..=130 {
                let tokens: Vec<Token> = (0..50u16).map(|i| i * 7 % 11).collect();
                let table: Vec<f32> = random(11 * d, 1);
                let mut y = vec![0.0; 50 * d];
                embed_forward(cx, &mut y, &tokens, &table, d);
                let dy: Vec<f32> = random(50 * d, 2);
                let mut dtable = vec![0.5; 11 * d];
                embed_backward(cx, &mut dtable, &dy, &tokens, d);
                let mut want = vec![0.5; 11 * d];
                for (row, &t) in tokens.iter().enumerate() {
                    for j in 0..d {
                        assert_eq!(y[row * d + j], table[usize::from(t) * d + j]);
                        want[usize::from(t) * d + j] += dy[row * d + j];
                    }
                }
                assert_eq!(dtable, want);
            }
        });
    }
}
