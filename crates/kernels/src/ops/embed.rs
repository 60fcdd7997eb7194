//! Embedding: `y[row] = E[i[row]]` or `y[row] += E[i[row]]`; backward `dE[i[row]] += dy[row]`, rows in order. `i` is a token, or a row of a
//! larger table.
//!
//! The gradient is partitioned by columns, so that each element is summed in row order on any number of threads.

use crate::exec::{Exec, Shared};
use crate::ops::reduce::Add;
use crate::profile::{Work, time};
use crate::simd::Elem;
use crate::size::area;

/// `y: [rows, d]` from `table: [V, d]`.
pub fn embed_forward<E: Elem>(cx: &Exec, y: &mut [E], rows: &[impl Row], table: &[E], d: usize) {
    assert!(y.len() >= area([rows.len(), d]) && fits(rows, table.len(), d));
    let _time = time(cx, "embed_forward", (d, 0), Work::Bytes((2 * rows.len() * d * size_of::<E>()) as f64));
    let y = Shared::new(y);
    cx.rows(rows.len(), |r| {
        for at in r {
            let i = index(rows[at]);
            // SAFETY: one row, one thread.
            unsafe { y.range(at * d..(at + 1) * d) }.copy_from_slice(&table[i * d..(i + 1) * d]);
        }
    });
}

/// Adds to `y: [rows, d]` from `table: [V, d]`.
pub fn embed_add<E: Elem>(cx: &Exec, y: &mut [E], rows: &[impl Row], table: &[E], d: usize) {
    assert!(y.len() >= area([rows.len(), d]) && fits(rows, table.len(), d));
    let _time = time(cx, "embed_add", (d, 0), Work::Bytes((3 * rows.len() * d * size_of::<E>()) as f64));
    let y = Shared::new(y);
    cx.rows(rows.len(), |r| {
        for at in r {
            let i = index(rows[at]);
            // SAFETY: one row, one thread.
            let y = unsafe { y.range(at * d..(at + 1) * d) };
            cx.op(Add { y, x: &table[i * d..(i + 1) * d] });
        }
    });
}

/// The number of a row of a table.
pub trait Row: Copy + Into<u32> + Sync {}
impl<I: Copy + Into<u32> + Sync> Row for I {}

fn index(row: impl Row) -> usize {
    let row: u32 = row.into();
    row as usize
}

/// Whether a table of `len` elements has all these rows.
fn fits(rows: &[impl Row], len: usize, d: usize) -> bool {
    rows.iter().all(|&row| area([index(row) + 1, d]) <= len)
}

/// Adds to `dtable: [V, d]` from `dy: [rows, d]`.
pub fn embed_backward<E: Elem>(cx: &Exec, dtable: &mut [E], dy: &[E], rows: &[impl Row], d: usize) {
    assert!(dy.len() >= area([rows.len(), d]) && fits(rows, dtable.len(), d));
    let _time = time(cx, "embed_backward", (d, 0), Work::Bytes((3 * rows.len() * d * size_of::<E>()) as f64));
    let dtable = Shared::new(dtable);
    cx.pool().split(d, 16, |columns| {
        for (at, &row) in rows.iter().enumerate() {
            let to = index(row) * d;
            // SAFETY: columns of different threads are disjoint.
            let out = unsafe { dtable.range(to + columns.start..to + columns.end) };
            out.iter_mut().zip(&dy[at * d + columns.start..]).for_each(|(o, &g)| *o += g);
        }
    });
}

/// `y += x` in these rows of `y, x: [V, d]`, a row once for each time that it is named.
pub fn add_rows<E: Elem>(cx: &Exec, y: &mut [E], x: &[E], rows: &[impl Row], d: usize) {
    assert!(y.len() == x.len() && fits(rows, x.len(), d));
    let _time = time(cx, "add_rows", (d, 0), Work::Bytes((3 * rows.len() * d * size_of::<E>()) as f64));
    let y = Shared::new(y);
    cx.pool().split(d, 16, |columns| {
        for &row in rows {
            let r = index(row) * d + columns.start..index(row) * d + columns.end;
            // SAFETY: columns of different threads are disjoint.
            cx.op(Add { y: unsafe { y.range(r.clone()) }, x: &x[r] });
        }
    });
}

/// `y = 0` in these rows of `y: [V, d]`.
pub fn zero_rows<E: Elem>(cx: &Exec, y: &mut [E], rows: &[impl Row], d: usize) {
    assert!(fits(rows, y.len(), d));
    let _time = time(cx, "zero_rows", (d, 0), Work::Bytes((rows.len() * d * size_of::<E>()) as f64));
    let y = Shared::new(y);
    cx.pool().split(d, 16, |columns| {
        for &row in rows {
            // SAFETY: columns of different threads are disjoint.
            unsafe { y.range(index(row) * d + columns.start..index(row) * d + columns.end) }.fill(E::ZERO);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Token;
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
                // Rows beyond the tokens, added to what is there.
                let first = if d < 8 { 70_000 } else { 3 };
                let rows: Vec<u32> = tokens.iter().map(|&t| first + u32::from(t)).collect();
                let mut wide = vec![0.0; first as usize * d];
                wide.extend_from_slice(&table);
                let mut sum = dy.clone();
                embed_add(cx, &mut sum, &rows, &wide, d);
                assert!(sum.iter().zip(&dy).zip(&y).all(|((sum, dy), y)| *sum == dy + y));
                // A row that is named twice, one once, and others that are not.
                let (rows, mut sums) = ([7u32, 2, 7], table.clone());
                add_rows(cx, &mut sums, &want, &rows, d);
                zero_rows(cx, &mut sums, &[5u32], d);
                for (at, sum) in sums.iter().enumerate() {
                    let own = match at / d {
                        7 => table[at] + want[at] + want[at],
                        2 => table[at] + want[at],
                        5 => 0.0,
                        _ => table[at],
                    };
                    assert_eq!(*sum, own);
                }
            }
        });
    }
}
