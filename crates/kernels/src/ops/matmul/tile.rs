//! The innermost loop of a matmul: an `MR x NR` tile of `C` in registers, `NR = NV * LANES`,
//! `C (+)= sum_p A[.., p] B[p, ..]` over groups of depths in order.

use crate::simd::{Simd, Store};

use super::pack::MAX_NR;

/// Largest `MR` of any ISA's vectors.
const MAX_MR: usize = 14;

/// One tile of `C`: `rows x cols` of `MR x NR`.
pub(super) struct Tile<A: Store> {
    pub c: *mut A::E,
    pub ldc: usize,
    /// Of its panel.
    pub b: *const A,
    /// Groups of depths.
    pub groups: usize,
    pub rows: usize,
    pub cols: usize,
    pub add: bool,
}

impl<A: Store> Tile<A> {
    /// `A` with group `p` of row `i` at `i * rs + p * cs`.
    #[inline(always)]
    pub unsafe fn run<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self, a: *const A, rs: usize, cs: usize) {
        // SAFETY: the caller's promise: `a` and `b` cover the groups, `c` covers `rows x cols`.
        unsafe {
            let mut acc = [[S::splat(A::E::ZERO); NV]; MR];
            for p in 0..self.groups {
                let mut b = [A::load::<S>(self.b.add(p * NV * S::LANES * A::DEPTH)); NV];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = A::load::<S>(self.b.add((p * NV + j) * S::LANES * A::DEPTH));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = A::splat::<S>(a.add(i * rs + p * cs));
                    for j in 0..NV {
                        acc[j] = A::dot::<S>(x, b[j], acc[j]);
                    }
                }
            }
            self.write::<S, MR, NV>(&acc);
        }
    }

    /// Only constant indices into `acc`: a variable one would keep the accumulators in memory through the loop above.
    #[inline(always)]
    unsafe fn write<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self, acc: &[[S::V; NV]; MR]) {
        const { assert!(MR * NV * S::LANES <= MAX_MR * MAX_NR) };
        // SAFETY: a full tile lies in `c`; the edge buffer holds a whole one, of which the part written lies in `c`.
        unsafe {
            if self.rows == MR && self.cols == NV * S::LANES {
                for (i, acc) in acc.iter().enumerate() {
                    for (j, &v) in acc.iter().enumerate() {
                        let c = self.c.add(i * self.ldc + j * S::LANES);
                        S::store(c, if self.add { S::add(S::load(c), v) } else { v });
                    }
                }
                return;
            }
            let mut edge = [A::E::ZERO; MAX_MR * MAX_NR];
            for (i, acc) in acc.iter().enumerate() {
                for (j, &v) in acc.iter().enumerate() {
                    S::store(edge.as_mut_ptr().add((i * NV + j) * S::LANES), v);
                }
            }
            for i in 0..self.rows {
                for j in 0..self.cols {
                    let (c, v) = (self.c.add(i * self.ldc + j), edge[i * NV * S::LANES + j]);
                    *c = if self.add { *c + v } else { v };
                }
            }
        }
    }
}
