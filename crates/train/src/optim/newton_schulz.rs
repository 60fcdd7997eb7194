//! Newton-Schulz: brings the singular values of a matrix near 1 and leaves its singular vectors, by some steps on
//! `X = U / (|U|_F + 1e-7)`, `X: [rows, cols]`:
//! `A = X X^T; X = (a I + b A + c A A) X`, or `A = X^T X; X = X (a I + b A + c A A)` where rows > cols, which is the same on
//! the transpose, so that `A` is the smaller of the two. The coefficients make small values grow as fast as can be; all but
//! the smallest come out between 0.68 and 1.21 after five steps (Keller Jordan, github.com/KellerJordan/Muon, there in bf16, here
//! in f32).
//!
//! On request each row of `U` is divided by its RMS `+ 1e-12` first, so that all rows weigh the same ("MuonEq", the variant R).

use flashlm_kernels::ops::{Packed, matmul, matmul_tn, rows_normalise, scale, scale_add, sum_squares};
use flashlm_kernels::{Buf, Exec};

use super::optimizer::Settings;

const A: f64 = 3.4445;
const B: f64 = -4.7750;
const C: f64 = 2.0315;
const EPS: f64 = 1e-7;
const ROW_EPS: f64 = 1e-12;

/// Working memory for the largest of some matrices.
pub struct NewtonSchulz {
    /// `X`, and the next one.
    x: Buf<f32>,
    next: Buf<f32>,
    /// `A`.
    gram: Buf<f32>,
    /// `a I + b A + c A A`.
    poly: Buf<f32>,
    packed: Packed<f32>,
    /// Mean square of each row.
    squares: Buf<f32>,
}

impl NewtonSchulz {
    /// For matrices of these rows and columns.
    pub fn new(shapes: impl Iterator<Item = (usize, usize)> + Clone) -> Self {
        let most = |size: fn((usize, usize)) -> usize| shapes.clone().map(size).max().unwrap_or(0);
        let (elements, square) = (most(|(rows, cols)| rows * cols), most(|(rows, cols)| rows.min(cols).pow(2)));
        // A wide `X` is packed both ways, a tall one as it lies, and `A` and the polynomial need no more than `X`.
        let room = |(k, n): &(usize, usize)| k * n.next_multiple_of(32);
        let both = shapes.clone().flat_map(|(rows, cols)| [(rows, cols), (cols, rows)]);
        let (k, n) = both.max_by_key(room).unwrap_or((0, 0));
        let [x, next] = [(); 2].map(|()| Buf::scratch(elements));
        let [gram, poly] = [(); 2].map(|()| Buf::scratch(square));
        let squares = Buf::scratch(most(|(rows, _)| rows));
        NewtonSchulz { x, next, gram, poly, packed: Packed::new(k, n), squares }
    }

    /// Where `U`, of `len` elements, is to be written.
    pub fn input(&mut self, len: usize) -> &mut [f32] {
        &mut self.x[..len]
    }

    /// All that the settings ask for on the `[rows, cols]` matrix in [`Self::input`].
    pub fn run(&mut self, cx: &Exec, (rows, cols): (usize, usize), settings: &Settings) -> &mut [f32] {
        let (len, n) = (rows * cols, rows.min(cols));
        let NewtonSchulz { x, next, gram, poly, packed, squares } = self;
        let (gram, poly) = (&mut gram[..n * n], &mut poly[..n * n]);
        if settings.row_normalise {
            rows_normalise(cx, &mut x[..len], &mut squares[..rows], 0.0, ROW_EPS);
        }
        let norm = sum_squares(cx, &x[..len]).sqrt();
        scale(cx, &mut x[..len], 1.0 / (norm + EPS));
        for _ in 0..settings.newton_schulz_steps {
            let (now, after) = (&x[..len], &mut next[..len]);
            if rows > cols {
                matmul_tn(cx, gram, packed, now, cols, now, cols, (cols, cols, rows), false);
            } else {
                packed.pack_transposed(cx, now, cols, rows);
                matmul(cx, gram, now, cols, &*packed, rows, false);
            }
            packed.pack(cx, gram, n, n, n);
            matmul(cx, poly, gram, n, &*packed, n, false);
            scale_add(cx, poly, C, gram, B);
            poly.iter_mut().step_by(n + 1).for_each(|diagonal| *diagonal += A as f32);
            if rows > cols {
                packed.pack(cx, poly, n, n, n);
                matmul(cx, after, now, cols, &*packed, rows, false);
            } else {
                packed.pack(cx, now, cols, rows, cols);
                matmul(cx, after, poly, n, &*packed, rows, false);
            }
            std::mem::swap(x, next);
        }
        &mut x[..len]
    }
}

#[cfg(test)]
mod tests {
    use flashlm_kernels::Isa;
    use flashlm_model::rng::Rng;

    use super::*;
    use crate::config;

    fn settings(newton_schulz_steps: usize, row_normalise: bool) -> Settings {
        Settings { newton_schulz_steps, row_normalise, ..config::Settings::default().train.optim() }
    }

    /// `diag(s)` between two orthogonal matrices, here reflections `I - 2 u u^T / |u|^2`: the singular values are known, and
    /// each of them goes through the polynomial `a s + b s^3 + c s^5` on its own.
    #[test]
    fn singular_values_go_through_the_polynomial_and_vectors_stay() {
        let cx = Exec::new(Isa::detect().unwrap(), 2);
        let mut rng = Rng::new(1);
        let shapes = [(5, 9), (9, 5), (7, 7), (1, 6), (6, 1), (33, 70), (70, 33)];
        let mut all = NewtonSchulz::new(shapes.into_iter());
        for ((rows, cols), steps) in shapes.into_iter().zip([5, 3, 1, 5, 5, 2, 3]) {
            let mut mirror = |n: usize| {
                let u: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
                let square: f64 = u.iter().map(|u| u * u).sum();
                move |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * u[i] * u[j] / square
            };
            let (left, right) = (mirror(rows), mirror(cols));
            let n = rows.min(cols);
            let values: Vec<f64> = (0..n).map(|i| 3.0 / (1.0 + i as f64)).collect();
            let norm = values.iter().map(|s| s * s).sum::<f64>().sqrt();
            let step = |s: f64| A * s + B * s.powi(3) + C * s.powi(5);
            let after: Vec<f64> = values.iter().map(|s| (0..steps).fold(s / (norm + EPS), |s, _| step(s))).collect();
            let matrix = |s: &[f64]| -> Vec<f32> {
                let element =
                    |e: usize| (0..n).map(|k| left(e / cols, k) * s[k] * right(k, e % cols)).sum::<f64>() as f32;
                (0..rows * cols).map(element).collect()
            };
            all.input(rows * cols).copy_from_slice(&matrix(&values));
            let want = matrix(&after);
            let got = all.run(&cx, (rows, cols), &settings(steps, false));
            let square = |x: f32| f64::from(x).powi(2);
            let off: f64 = got.iter().zip(&want).map(|(g, w)| square(g - w)).sum();
            let ratio = (off / want.iter().map(|&w| square(w)).sum::<f64>()).sqrt();
            assert!(ratio < 2e-5, "{rows} x {cols}: {ratio}");
        }
        // No direction at all: nothing happens, and it is a number.
        for row_normalise in [false, true] {
            all.input(45).fill(0.0);
            assert!(all.run(&cx, (5, 9), &settings(5, row_normalise)).iter().all(|&x| x == 0.0));
        }
    }

    /// Whatever the rows of `U` are multiplied with, the same comes out; without the switch it does not.
    #[test]
    fn normalised_rows_weigh_the_same() {
        let cx = Exec::new(Isa::detect().unwrap(), 2);
        let (rows, cols) = (19, 34);
        let mut rng = Rng::new(2);
        let u: Vec<f32> = (0..rows * cols).map(|_| rng.normal() as f32).collect();
        let powers = |i: usize| 2f32.powi((i / cols) as i32 - 9);
        let mut all = NewtonSchulz::new([(rows, cols)].into_iter());
        let mut run = |scaled: bool, row_normalise: bool| {
            let value = |(i, u): (usize, &f32)| if scaled { u * powers(i) } else { *u };
            let values: Vec<f32> = u.iter().enumerate().map(value).collect();
            all.input(rows * cols).copy_from_slice(&values);
            all.run(&cx, (rows, cols), &settings(3, row_normalise)).to_vec()
        };
        let off = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off(&run(false, true), &run(true, true)) < 1e-5);
        assert!(off(&run(false, false), &run(true, false)) > 0.1);
    }
}
