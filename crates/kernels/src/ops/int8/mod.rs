//! Matmuls of training in int8: rows of activations, or of gradients, with ternary weights or the embedding matrix, summed as integers.
//!
//! ```text
//! round:   m = max |x| of a row;  q = round(127 x / m), halves to even;  x is about q m / 127
//! matmul:  c_ro (+)= (sum over segments s: (sum of w_io q_ri over the depths i of s) scale_os) m_r / 127
//! ```
//!
//! Sums of integers are exact, so that a row has the same bits on every ISA and beside any other rows. A matmul belongs to one
//! tile of rows and runs on the thread that calls it.

mod codes;
mod largest;
mod product;
mod round;
mod rows;

use crate::exec::Exec;
use crate::profile::{Work, time};
use crate::simd::Elem;
pub use codes::{CodeColumns, Codes};
use product::Product;
pub use round::round_int8;
pub use rows::CodeRows;

/// `c: [rows, n] (+)= x w`, `x: [rows, k]`, `w: [k, n]`; adds where `accumulate`. On the calling thread.
///
/// # Panics
/// If sizes do not fit, or `E` is not f32.
pub fn matmul_int8<'w, E: Elem>(cx: &Exec, c: &mut [E], x: &CodeRows, w: impl Into<CodeColumns<'w>>, accumulate: bool) {
    let w = w.into();
    let _time = time(cx, "matmul_int8", (w.k, w.n), Work::Flops(2.0 * (x.rows() * w.n * w.k) as f64));
    let c = E::as_f32(c).expect("int8 matmuls sum in f32");
    cx.isa().dot(Product::new(c, x, w, accumulate));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::simd::Store;
    use crate::testing::{all_isas, integers, random};
    use crate::tile::Rows;

    const SIZES: [(usize, usize, usize); 14] = [
        (1, 1, 1),
        (3, 5, 7),
        (14, 32, 64),
        (15, 33, 65),
        (56, 192, 512),
        (56, 512, 192),
        (48, 100, 36),
        (7, 48, 130),
        (33, 16, 17),
        (64, 63, 31),
        (2, 300, 15),
        (31, 4, 224),
        (32, 224, 4),
        (5, 1100, 20),
    ];

    /// `x: [m, k]` with rows of all kinds of sizes, one of zeros.
    fn values<A: Store>(m: usize, k: usize) -> Vec<A> {
        let scaled = |(i, x): (usize, f32)| if i / k == 2 { 0.0 } else { x * 10f32.powi((i / k % 7) as i32 - 3) };
        random::<f32>(m * k, 7).into_iter().enumerate().map(|x| A::narrow(A::E::from_f64(scaled(x).into()))).collect()
    }

    /// The definition with i64 and f64.
    fn reference<A: Store>(x: &[A], w: &[i8], alpha: f64, (m, k, n): (usize, usize, usize)) -> Vec<f64> {
        let x: Vec<f32> = x.iter().map(|x| x.widen().to_f64() as f32).collect();
        let row = |row: &[f32]| {
            let (q, scale) = codes_of(row);
            let sum = |o: usize| (0..k).map(|i| q[i] * i64::from(w[o * k + i])).sum::<i64>();
            (0..n).map(|o| sum(o) as f64 * alpha * scale).collect::<Vec<_>>()
        };
        x.chunks(k).take(m).flat_map(row).collect()
    }

    /// The product by the kernel, of `w: [n, k]`, packed in both ways.
    fn run<A: Store<E = f32>>(cx: &Exec, x: &[A], w: &[i8], (m, k, n): (usize, usize, usize)) -> [Vec<f32>; 2] {
        let alpha = 0.25;
        let floats = |at: &dyn Fn(usize) -> i8| (0..n * k).map(|i| A::narrow(alpha * f32::from(at(i)))).collect();
        let (by_output, by_input): (Vec<A>, Vec<A>) = (floats(&|i| w[i]), floats(&|i| w[i % n * k + i / n]));
        let (mut one, mut two) = (Codes::new(k, n), Codes::new(k, n));
        one.pack_transposed(cx, &by_output, k, n);
        two.pack(cx, &by_input, k, n);
        [one, two].map(|codes| {
            let mut c = vec![1.0; m * n];
            cx.tiles_by(m, m, (Rows(&mut c, n),), |cx, _, (c,), local| {
                let rows = CodeRows::round(cx, local, x, k, k);
                matmul_int8(cx, c, &rows, &codes, true);
                c.iter_mut().for_each(|c| *c -= 1.0);
                let sum: Vec<f32> = c.to_vec();
                matmul_int8(cx, c, &rows, &codes, false);
                let same = |c: f32, sum: f32| c.is_nan() && sum.is_nan() || (c - sum).abs() <= 2e-6 * (1.0 + c.abs());
                assert!(c.iter().zip(sum).all(|(&c, sum)| same(c, sum)), "added");
            });
            c
        })
    }

    fn equals<A: Store<E = f32>>() {
        let scalar = Exec::new(crate::Isa::SCALAR, 1);
        for (m, k, n) in SIZES {
            let (x, w) = (values::<A>(m, k), integers(n * k, 3, 1.0));
            let want = reference(&x, &w, 0.25, (m, k, n));
            let [first, second] = run(&scalar, &x, &w, (m, k, n));
            assert!(first == second, "{m}x{n}x{k}: packed in two ways");
            for (got, want) in first.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() <= 3e-7 * want.abs(), "{m}x{n}x{k}: {got} for {want}");
            }
            all_isas(|cx| assert!(run(cx, &x, &w, (m, k, n))[0] == first, "{} {m}x{n}x{k} {:?}", A::NAME, cx.isa()));
        }
    }

    #[test]
    fn equals_the_plain_loop_and_has_the_same_bits_on_every_isa() {
        equals::<f32>();
        equals::<Bf16>();
    }

    #[test]
    fn rounded_weights_and_some_of_their_columns() {
        for (m, k, n) in SIZES {
            let (x, w) = (values::<f32>(m, k), values::<f32>(n, k));
            let bits = std::cell::RefCell::new(Vec::new());
            all_isas(|cx| {
                let mut codes = Codes::new(k, n);
                codes.round_transposed(cx, &w, k, n);
                let mut c = vec![0f32; m * n];
                cx.tiles_by(m, m, (Rows(&mut c, n),), |cx, _, (c,), local| {
                    let rows = CodeRows::round(cx, local, &x, k, k);
                    matmul_int8(cx, c, &rows, &codes, false);
                    if n > 32 {
                        let mut last = vec![0f32; m * (n - 32)];
                        matmul_int8(cx, &mut last, &rows, codes.columns(32..n), false);
                        assert!(last.chunks(n - 32).zip(c.chunks(n)).all(|(last, c)| last == &c[32..]));
                    }
                });
                for (i, c) in c.iter().enumerate() {
                    let (q, w) = (codes_of(&x[i / n * k..][..k]), codes_of(&w[i % n * k..][..k]));
                    let sum: i64 = q.0.iter().zip(&w.0).map(|(q, w)| q * w).sum();
                    let want = sum as f64 * q.1 * w.1;
                    assert!(
                        (f64::from(*c) - want).abs() <= 4e-7 * want.abs(),
                        "{m}x{n}x{k} {:?}: {c} for {want}",
                        cx.isa()
                    );
                }
                bits.borrow_mut().push(c);
            });
            assert!(bits.borrow().windows(2).all(|w| w[0] == w[1]), "{m}x{n}x{k}");
        }
    }

    /// The codes of a row, and its scale.
    fn codes_of(x: &[f32]) -> (Vec<i64>, f64) {
        let most = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let by = if most > 1e-30 { 127.0 / most } else { 0.0 };
        (x.iter().map(|x| (x * by).round_ties_even() as i64).collect(), f64::from(most) / 127.0)
    }

    #[test]
    fn segments_have_their_own_scales() {
        for (m, k, n) in SIZES {
            for segment in [4, 12, 64, 512] {
                let (x, w) = (values::<f32>(m, k), integers(n * k, 3, 1.0));
                let scale = |o: usize, i: usize| ((o * 7 + i / segment * 5) % 11 + 1) as f32 / 8.0;
                let floats: Vec<f32> = (0..n * k).map(|i| f32::from(w[i]) * scale(i / k, i % k)).collect();
                let bits = std::cell::RefCell::new(Vec::new());
                all_isas(|cx| {
                    let mut codes = Codes::segments(k, n, segment);
                    codes.pack_transposed(cx, &floats, k, n);
                    let mut c = vec![0f32; m * n];
                    cx.tiles_by(m, m, (Rows(&mut c, n),), |cx, _, (c,), local| {
                        let rows = CodeRows::round(cx, local, &x, k, segment);
                        matmul_int8(cx, c, &rows, &codes, false);
                        if n > 32 {
                            let mut last = vec![0f32; m * (n - 32)];
                            matmul_int8(cx, &mut last, &rows, codes.columns(32..n), false);
                            assert!(last.chunks(n - 32).zip(c.chunks(n)).all(|(last, c)| last == &c[32..]));
                        }
                    });
                    for (at, c) in c.iter().enumerate() {
                        let (q, by) = codes_of(&x[at / n * k..][..k]);
                        let term = |i: usize| q[i] as f64 * f64::from(floats[at % n * k + i]) * by;
                        let (want, size) = (0..k).map(term).fold((0.0, 0.0), |(a, b), x: f64| (a + x, b + x.abs()));
                        assert!((f64::from(*c) - want).abs() <= 4e-7 * size, "{m}x{n}x{k} by {segment} {:?}", cx.isa());
                    }
                    bits.borrow_mut().push(c);
                });
                assert!(bits.borrow().windows(2).all(|w| w[0] == w[1]), "{m}x{n}x{k} by {segment}");
            }
        }
    }

    /// Where sums of 16 bits would overflow.
    #[test]
    fn largest_sums_are_exact() {
        let (k, n) = (4096, 40);
        for sign in [1i8, -1] {
            let w = vec![sign; n * k];
            all_isas(|cx| {
                let c = run::<f32>(cx, &vec![-2.0; 3 * k], &w, (3, k, n));
                assert!(c[0].iter().all(|&c| c == -0.5 * f32::from(sign) * k as f32), "{:?}", cx.isa());
            });
        }
    }

    #[test]
    fn what_is_not_finite_is_no_number_in_its_row_alone() {
        all_isas(|cx| {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 17, 39] {
                    let mut x = values::<f32>(4, 40);
                    x[40 + at] = bad;
                    let c = run(cx, &x, &integers(9 * 40, 3, 1.0), (4, 40, 9));
                    for (row, c) in c[0].chunks(9).enumerate() {
                        assert!(
                            c.iter().all(|c| c.is_nan() == (row == 1)),
                            "row {row} with {bad} at {at} {:?}",
                            cx.isa()
                        );
                    }
                }
            }
        });
    }
}
