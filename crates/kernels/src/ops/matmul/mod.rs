//! Matmuls of one [`Store`], summed in its element. `matmul`: `C[m,n] (+)= A[m,k] B[k,n]` with `B` packed
//! beforehand (weights, once per step); `matmul_tn`: `C[m,n] (+)= A[k,m]^T X[k,n]` (weight gradients), which packs `X` first.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): `B` in panels of
//! `NR` columns, `A` copied in blocks of `MC x KC` that stay in L2, an `MR x NR` tile of `C` in registers. Each element of
//! `C` is summed along `k` in order, in blocks of `KC`, whatever the tile, the number of rows or of threads: results are
//! bit-identical for all of them. bf16 goes in pairs of depths, on tile registers where the ISA has them.

mod blocks;
mod pack;
mod tile;

use std::cell::RefCell;
use std::ops::Range;

use crate::buf::Buf;
use crate::exec::{Exec, Shared};
use crate::part::{BLOCK, Part};
use crate::profile::{Work, time};
use crate::simd::{Elem, Op, Simd, Store};
use crate::size::{area, strided};
use pack::PanelWidth;
pub use pack::{Packed, Panels};

thread_local! {
    /// The block of `A` of this thread, large and aligned enough for every store.
    static BLOCKS: RefCell<Buf<f64>> = RefCell::new(Buf::zeros(BLOCK));
}

/// `c[m,n] (+)= a[m,k] b`, rows of `a` `lda` apart, `c` dense; adds where `accumulate`.
pub fn matmul<'b, A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    a: &[A],
    lda: usize,
    b: impl Into<Panels<'b, A>>,
    m: usize,
    accumulate: bool,
) {
    let b = b.into();
    assert!(c.len() >= area([m, b.n]) && a.len() >= strided(m, lda, b.k), "operand of a matmul is too small");
    let _time = time(cx, "matmul", (b.k, b.n), Work::Flops(2.0 * (m * b.n * b.k) as f64));
    product(cx, c, a, lda, false, b, m, accumulate);
}

/// `c[m,n] (+)= a[k,m]^T x[k,n]`, rows of `a` `lda` and of `x` `ldx` apart; `scratch` holds the packed `x`.
pub fn matmul_tn<A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    scratch: &mut Packed<A>,
    a: &[A],
    lda: usize,
    x: &[A],
    ldx: usize,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    scratch.pack(cx, x, ldx, k, n);
    matmul_transposed(cx, c, a, lda, &*scratch, m, accumulate);
}

/// `c[m,n] (+)= a[k,m]^T b`, rows of `a` `lda` apart.
pub fn matmul_transposed<'b, A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    a: &[A],
    lda: usize,
    b: impl Into<Panels<'b, A>>,
    m: usize,
    accumulate: bool,
) {
    let b = b.into();
    assert!(c.len() >= area([m, b.n]) && a.len() >= strided(b.k, lda, m), "operand of a matmul is too small");
    let _time = time(cx, "matmul_tn", (m, b.n), Work::Flops(2.0 * (m * b.n * b.k) as f64));
    product(cx, c, a, lda, true, b, m, accumulate);
}

fn product<A: Store>(
    cx: &Exec,
    c: &mut [A::E],
    a: &[A],
    lda: usize,
    transposed: bool,
    b: Panels<A>,
    m: usize,
    accumulate: bool,
) {
    let (mr, nr) = (cx.op::<A::E, _>(TileHeight { paired: A::DEPTH == 2 }), cx.op::<A::E, _>(PanelWidth));
    assert!(b.nr == nr || b.n * b.k == 0, "packed for another instruction set");
    let panels = b.n.div_ceil(nr);
    let c = Shared::new(c);
    let part = |rows: Range<usize>, panels: Range<usize>| {
        // Taken out of the cell here: a closure around the body would be compiled without the ISA's features.
        let block = BLOCKS.with_borrow_mut(|block| block.as_mut_ptr().cast::<A>());
        let (c, a, b, depth, k, n) = (c.as_ptr(), a.as_ptr(), b.data.as_ptr(), b.depth, b.k, b.n);
        cx.op(Part { block, c, a, lda, transposed, b, depth, k, n, rows, panels, accumulate });
    };
    let (tiles, wanted) = (m.div_ceil(mr), 2 * cx.pool().threads());
    if tiles >= wanted || panels == 0 {
        return cx.pool().split(m, mr, |rows| part(rows, 0..panels));
    }
    // Columns as well: panels of so many stretches of rows that there is enough for every thread, stretch by stretch.
    let height = tiles.div_ceil(wanted.div_ceil(panels).min(tiles.max(1))) * mr;
    cx.pool().split(m.div_ceil(height.max(1)) * panels, 1, |mut units| {
        while !units.is_empty() {
            let (stretch, panel) = (units.start / panels, units.start % panels);
            let some = units.len().min(panels - panel);
            part(stretch * height..m.min((stretch + 1) * height), panel..panel + some);
            units.start += some;
        }
    });
}

struct TileHeight {
    paired: bool,
}
impl<E: Elem> Op<E> for TileHeight {
    type Out = usize;
    const TILES: bool = true;
    #[inline(always)]
    unsafe fn run<S: Simd<E = E>>(self) -> usize {
        if self.paired && S::TILES { 32 } else { S::MR }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::Bf16;
    use crate::testing::{all_isas, assert_close, random};

    fn values<A: Store>(n: usize, seed: u64) -> Vec<A> {
        random::<A::E>(n, seed).into_iter().map(A::narrow).collect()
    }

    fn naive<A: Store>(
        a: impl Fn(usize, usize) -> A,
        b: impl Fn(usize, usize) -> A,
        (m, n, k): (usize, usize, usize),
    ) -> Vec<A::E> {
        let wide = |x: A| x.widen().to_f64();
        let sum = |i: usize| (0..k).map(|p| wide(a(i / n, p)) * wide(b(p, i % n))).sum::<f64>();
        (0..m * n).map(|i| A::E::from_f64(sum(i))).collect()
    }

    fn sizes() -> Vec<(usize, usize, usize)> {
        let mut all: Vec<_> = (1..=34).map(|i| (i, 131 - i, 7 * i + 1)).collect();
        all.extend((35..=130).step_by(5).map(|i| (i, 1 + i * 37 % 130, 1 + i * 53 % 130)));
        all.extend([(1, 1, 1), (15, 33, 300), (130, 65, 257), (29, 31, 513), (113, 129, 64), (3, 5, 0)]);
        all.extend([(64, 64, 64), (96, 32, 1030), (33, 31, 1023)]);
        all
    }

    fn plain_loop<A: Store>() {
        all_isas(|cx| {
            for (m, n, k) in sizes() {
                let lda = k + 3;
                // What lies between the rows must not matter.
                let mut a = values::<A>(m * lda, 1);
                a.chunks_mut(lda).for_each(|row| row[k..].fill(A::NAN));
                let b = values::<A>(k * n, 2);
                let bt: Vec<A> = (0..k * n).map(|i| b[i % k * n + i / k]).collect();
                let want = naive(|i, p| a[i * lda + p], |p, j| b[p * n + j], (m, n, k));
                for transposed in [false, true] {
                    let mut packed = Packed::new(k, n);
                    if transposed {
                        packed.pack_transposed(cx, &bt, k, n);
                    } else {
                        packed.pack(cx, &b, n, k, n);
                    }
                    let what = format!("{} {:?} {m}x{n}x{k}", A::NAME, cx.isa());
                    let mut c = vec![A::E::NAN; m * n];
                    matmul(cx, &mut c, &a, lda, &packed, m, false);
                    assert_close(&c, &want, 1e-6, &what);
                    matmul(cx, &mut c, &a, lda, &packed, m, true);
                    let twice: Vec<A::E> = want.iter().map(|&x| x + x).collect();
                    assert_close(&c, &twice, 1e-6, &format!("{what} accumulated"));
                    if k > 64 {
                        matmul(cx, &mut c, &a, lda, packed.depths(0..64), m, false);
                        matmul(cx, &mut c, &a[64..], lda, packed.depths(64..k), m, true);
                        assert_close(&c, &want, 1e-6, &format!("{what} in two stretches"));
                    }
                    if n > 64 {
                        let mut c = vec![A::E::NAN; m * (n - 64)];
                        matmul(cx, &mut c, &a, lda, packed.columns(64..n), m, false);
                        let part: Vec<A::E> = want.chunks(n).flat_map(|row| row[64..].to_vec()).collect();
                        assert_close(&c, &part, 1e-6, &format!("{what} last columns"));
                    }
                }
            }
        });
    }

    fn transposed_a<A: Store>() {
        all_isas(|cx| {
            for (m, n, k) in sizes() {
                let (lda, ldx) = (m + 5, n + 2);
                let mut a = values::<A>(k * lda, 3);
                a.chunks_mut(lda).for_each(|row| row[m..].fill(A::NAN));
                let x = values::<A>(k * ldx, 4);
                let want = naive(|i, p| a[p * lda + i], |p, j| x[p * ldx + j], (m, n, k));
                let mut scratch = Packed::new(k, n);
                let mut c = vec![A::E::ONE; m * n];
                matmul_tn(cx, &mut c, &mut scratch, &a, lda, &x, ldx, (m, n, k), true);
                c.iter_mut().for_each(|c| *c += -A::E::ONE);
                let mut again = vec![A::E::NAN; m * n];
                matmul_transposed(cx, &mut again, &a, lda, &scratch, m, false);
                assert_close(&again, &want, 2e-6, "packed before");
                assert_close(&c, &want, 2e-6, &format!("{} {:?} {m}x{n}x{k}", A::NAME, cx.isa()));
            }
        });
    }

    fn same_bits<A: Store>() {
        for isa in crate::Isa::available() {
            let (m, n, k) = (61, 97, 1130);
            let a = values::<A>(m * k, 5);
            let b = values::<A>(k * n, 6);
            let mut all = Vec::new();
            for threads in [1, 2, 3, 5, 24] {
                let cx = &Exec::new(isa, threads);
                let mut packed = Packed::new(k, n);
                packed.pack(cx, &b, n, k, n);
                let mut c = vec![A::E::ZERO; m * n];
                matmul(cx, &mut c, &a, k, &packed, m, false);
                let mut rows = vec![A::E::ZERO; m * n];
                for i in 0..m {
                    matmul(cx, &mut rows[i * n..], &a[i * k..], k, &packed, 1, false);
                }
                assert_eq!(c, rows, "row by row on {isa:?}");
                matmul(cx, &mut c, &a, k, &packed, m, true);
                for i in 0..m {
                    matmul(cx, &mut rows[i * n..], &a[i * k..], k, &packed, 1, true);
                }
                assert_eq!(c, rows, "added row by row on {isa:?}");
                all.push(c);
            }
            assert!(all.windows(2).all(|w| w[0] == w[1]), "{isa:?}");
        }
    }

    #[test]
    fn equals_the_plain_loop() {
        plain_loop::<f32>();
        plain_loop::<Bf16>();
    }

    #[test]
    fn transposed_a_equals_the_plain_loop() {
        transposed_a::<f32>();
        transposed_a::<Bf16>();
    }

    #[test]
    fn bits_do_not_depend_on_rows_or_threads() {
        same_bits::<f32>();
        same_bits::<Bf16>();
    }
}
