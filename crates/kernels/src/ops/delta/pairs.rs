//! What a chunk does to matrices of pairs of its tokens, `[n, n]`, at and below the diagonal: decays `exp(rows_i - columns_j)`,
//! masks, and the gradient of both. `diagonal` is 1 where the diagonal counts, else 0.

use crate::simd::{Elem, Op, Simd, each};

/// `out[i,j] = exp(rows_i - columns_j)` for `j < i + diagonal`, else 0; both are sums of a high and a low part.
pub(super) struct Decay<'a, E> {
    pub out: &'a mut [E],
    pub rows: (&'a [E], &'a [E]),
    pub columns: (&'a [E], &'a [E]),
    pub diagonal: usize,
}

impl<E: Elem> Op<E> for Decay<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let n = self.rows.0.len();
        for (i, out) in self.out.chunks_exact_mut(n).enumerate() {
            out[i..].fill(E::ZERO);
            // SAFETY: at most `i + 1` elements of a row of `n`.
            unsafe {
                let (high, low) = (S::splat(self.rows.0[i]), S::splat(self.rows.1[i]));
                each!(S, i + self.diagonal, |j, lanes| {
                    let high = S::sub(high, S::get(self.columns.0.as_ptr().add(j), lanes));
                    let low = S::sub(low, S::get(self.columns.1.as_ptr().add(j), lanes));
                    S::put(out.as_mut_ptr().add(j), S::exp(S::add(high, low)), lanes);
                });
            }
        }
    }
}

/// `y[i,j] *= decay[i,j]` for `j < i + diagonal`, else 0, whatever was there.
pub(super) struct Mask<'a, E> {
    pub y: &'a mut [E],
    pub decay: &'a [E],
    pub n: usize,
    pub diagonal: usize,
}

impl<E: Elem> Op<E> for Mask<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        for (i, (y, decay)) in self.y.chunks_exact_mut(self.n).zip(self.decay.chunks_exact(self.n)).enumerate() {
            y[i + self.diagonal..].fill(E::ZERO);
            // SAFETY: at most `i + 1` elements of a row of `n`.
            each!(S, i + self.diagonal, |j, lanes| unsafe {
                let y = y.as_mut_ptr().add(j);
                S::put(y, S::mul(S::get(y, lanes), S::get(decay.as_ptr().add(j), lanes)), lanes);
            });
        }
    }
}

/// The gradient `x` of `factor` over pairs `j < i + diagonal`, its row's factor `by` still to come:
/// `rows_i = sum_j x factor`, `columns_j -= sum_i by_i x factor`, and `x *= by_i decay`, elsewhere 0.
pub(super) struct Pairs<'a, E> {
    pub x: &'a mut [E],
    pub factor: &'a [E],
    pub decay: &'a [E],
    pub by: &'a [E],
    pub rows: &'a mut [E],
    pub columns: &'a mut [E],
    pub n: usize,
    pub diagonal: usize,
}

impl<E: Elem> Op<E> for Pairs<'_, E> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) {
        let Pairs { x, factor, decay, by, rows, columns, n, diagonal } = self;
        let columns = columns.as_mut_ptr();
        for (i, x) in x.chunks_exact_mut(n).enumerate() {
            x[i + diagonal..].fill(E::ZERO);
            let (factor, decay) = (factor[i * n..].as_ptr(), decay[i * n..].as_ptr());
            // SAFETY: at most `i + 1` elements of rows of `n`; missing lanes load as zero.
            unsafe {
                let (by, mut sum) = (S::splat(by[i]), S::splat(E::ZERO));
                each!(S, i + diagonal, |j, lanes| {
                    let x = x.as_mut_ptr().add(j);
                    let value = S::get(x, lanes);
                    let product = S::mul(value, S::get(factor.add(j), lanes));
                    sum = S::add(sum, product);
                    S::put(columns.add(j), S::sub(S::get(columns.add(j), lanes), S::mul(by, product)), lanes);
                    S::put(x, S::mul(S::mul(by, value), S::get(decay.add(j), lanes)), lanes);
                });
                rows[i] = S::sum(sum);
            }
        }
    }
}
