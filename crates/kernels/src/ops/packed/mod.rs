//! Matmuls of the packed runtime: rows of int8 activations with ternary or int8 weights, summed as integers.
//!
//! ```text
//! quantise: m = max |x| of a row;  q = round(127 x / m), halves to even;  x is about q m / 127
//! matmul:  y_o (+)= (sum over segments s: (sum of w_oi q_i over the columns i of s) scale_os) m / 127
//! ```
//!
//! Integer sums are exact and float operations are those of [`super::exact`], so that every ISA gives the same bits. What
//! each unit executes is in its file of [`crate::isa`]: additions on one lane, `vpmaddubsw`, `vpdpbusd`, `sdot` or tiles elsewhere.

mod matrix;
mod product;
mod rows;

use crate::exec::Exec;
use crate::profile::{Work, time};
pub use matrix::{Columns, PackedMatrix};
use product::Product;
pub use rows::{INT8_ROWS, Int8Rows};

/// `y (+)= x w^T` on the calling thread, `y` the columns from `at` on of `[rows, ld]`.
pub fn packed_matmul(
    cx: &Exec,
    (y, ld, at): (&mut [f32], usize, usize),
    x: &mut Int8Rows,
    w: &PackedMatrix,
    add: bool,
) {
    let flops = 2 * x.rows * w.outputs * w.columns.inputs;
    let _time = time(cx, "packed_matmul", (w.columns.inputs, w.outputs), Work::Flops(flops as f64));
    cx.isa().dot(Product::new((y, ld, at), x, w, add));
}

#[cfg(test)]
mod tests {
    use super::matrix::Kind;
    use super::*;
    use crate::testing::{all_isas, integers, random};

    /// The definition in plain loops, with f64 for the scales.
    fn reference(x: &[f32], w: &[i8], scales: &[f32], outputs: usize, columns: Columns) -> Vec<f64> {
        let (k, segments) = (columns.inputs, columns.segments());
        let mut y = Vec::new();
        for x in x.chunks(k) {
            let m = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let by = if m > 0.0 { 127.0 / m } else { 0.0 };
            let q: Vec<i64> = x.iter().map(|x| (x * by).round_ties_even() as i64).collect();
            for o in 0..outputs {
                let mut sum = vec![0i64; segments];
                (0..k).for_each(|i| sum[i / columns.segment] += q[i] * i64::from(w[o * k + i]));
                let scaled = sum.iter().zip(&scales[o * segments..]).map(|(&sum, &s)| sum as f64 * f64::from(s));
                y.push(scaled.sum::<f64>() * f64::from(m) / 127.0);
            }
        }
        y
    }

    /// `(outputs, inputs, segment)`: odd sizes, whole tiles, and segments that are no whole groups.
    const SIZES: [(usize, usize, usize); 16] = [
        (1, 1, 1),
        (3, 15, 15),
        (16, 16, 16),
        (17, 33, 33),
        (40, 64, 64),
        (31, 100, 100),
        (64, 192, 192),
        (50, 288, 288),
        (192, 512, 512),
        (33, 192, 64),
        (20, 200, 64),
        (19, 90, 30),
        (5, 40, 4),
        (33, 70, 1),
        (7, 65, 2),
        (48, 256, 16),
    ];

    #[test]
    fn equals_the_plain_loop_and_has_the_same_bits_on_every_isa() {
        for (outputs, inputs, segment) in SIZES {
            let columns = Columns { inputs, segment };
            let scales: Vec<f32> = random(outputs * columns.segments(), 3);
            let w = integers(outputs * inputs, 5, 1.0);
            let ternary = PackedMatrix::ternary(w.iter().copied(), &scales, outputs, columns);
            let wide = integers(outputs * inputs, 6, 127.0);
            let row_scales = &scales[..outputs];
            let bytes = PackedMatrix::bytes(wide.iter().copied(), row_scales, outputs, inputs);
            for rows in [1, 2, 3, 4, 5, 7, 16, 17, 31, 32, 33, 64] {
                let x: Vec<f32> = random(rows * inputs, rows as u64);
                let start: Vec<f32> = random(rows * outputs, 9);
                let run = |cx: &Exec, w: &PackedMatrix, add| {
                    let mut q = Int8Rows::new([columns, Columns::whole(inputs)].into_iter(), rows);
                    // What was there before must not matter.
                    let other: Vec<f32> = random(rows * inputs, 77);
                    let columns = if w.kind == Kind::Ternary { Columns::whole(inputs) } else { columns };
                    q.quantise(cx, &other, columns);
                    q.quantise(cx, &x, w.columns());
                    let mut y = start.clone();
                    packed_matmul(cx, (&mut y, outputs, 0), &mut q, w, add);
                    y
                };
                let scalar = Exec::new(crate::Isa::SCALAR, 1);
                for (w, plain, scales) in [(&ternary, &w, &scales[..]), (&bytes, &wide, row_scales)] {
                    let want = reference(&x, plain, scales, outputs, w.columns());
                    let (set, added) = (run(&scalar, w, false), run(&scalar, w, true));
                    for (i, want) in want.iter().enumerate() {
                        let bound = 1e-5 * (1.0 + want.abs());
                        assert!((f64::from(set[i]) - want).abs() < bound, "{outputs}x{inputs}: {} for {want}", set[i]);
                        let sum = start[i] + set[i];
                        assert!((added[i] - sum).abs() <= 1e-6 * sum.abs(), "{} for {sum}", added[i]);
                    }
                    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                    all_isas(|cx| {
                        let what = format!("{outputs}x{inputs} by {segment}, {rows} rows, {:?} {:?}", w.kind, cx.isa());
                        assert!(bits(&run(cx, w, false)) == bits(&set), "{what}");
                        assert!(bits(&run(cx, w, true)) == bits(&added), "{what}, added");
                    });
                }
            }
        }
    }

    /// Largest activations and weights at once, on the units that saturate in between.
    #[test]
    fn extremes_do_not_saturate() {
        let k = 4096;
        let columns = Columns::whole(k);
        for (sign, w) in [(1.0, 127i8), (-1.0, 127), (1.0, -127), (-1.0, -127)] {
            let x = vec![sign; k];
            let ternary = PackedMatrix::ternary((0..k).map(|_| w.signum()), &[1.0], 1, columns);
            let bytes = PackedMatrix::bytes((0..k).map(|_| w), &[1.0], 1, k);
            all_isas(|cx| {
                let mut q = Int8Rows::new([columns].into_iter(), 1);
                q.quantise(cx, &x, columns);
                let mut y = [0.0];
                packed_matmul(cx, (&mut y, 1, 0), &mut q, &ternary, false);
                assert_eq!(y[0], sign * f32::from(w.signum()) * k as f32, "{:?}", cx.isa());
                packed_matmul(cx, (&mut y, 1, 0), &mut q, &bytes, false);
                assert_eq!(y[0], sign * f32::from(w) * k as f32, "{:?}", cx.isa());
            });
        }
    }

    #[test]
    fn rows_of_zeros_and_strange_numbers_are_no_trouble() {
        let columns = Columns::whole(20);
        let w = PackedMatrix::ternary((0..20 * 4).map(|i| (i % 3) as i8 - 1), &[0.5; 4], 4, columns);
        all_isas(|cx| {
            let mut q = Int8Rows::new([columns].into_iter(), 4);
            let mut x = vec![0.0; 80];
            x[20] = f32::MIN_POSITIVE / 4.0;
            x[40..60].fill(f32::INFINITY);
            x[60..80].fill(f32::NAN);
            q.quantise(cx, &x, columns);
            let mut y = vec![1.0; 16];
            packed_matmul(cx, (&mut y, 4, 0), &mut q, &w, false);
            assert!(y[..8].iter().all(|y| y.abs() < 1e-30), "{y:?}");
            assert!(y[8..].iter().all(|y| !y.is_finite()), "{y:?}");
        });
    }
}
