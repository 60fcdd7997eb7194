//! One thread's share of a matmul, block by block: `MC x KC` of `A`, copied so that a tile reads it in order, with every panel of
//! `B`. Loops from outside: rows, depths, panels, tiles.

use crate::part::{AHEAD, BLOCK, Part, prefetch};
use crate::simd::{Op, Simd, Store};

use super::pack::panel_width;
use super::tile::Tile;

/// Groups of depths in one block: 32 f32 columns of `B` are then 32 KB.
const KC: usize = 256;
/// Most rows of `A` in one block.
const BLOCK_ROWS: usize = 112;
const _: () = assert!(BLOCK_ROWS * KC <= BLOCK);

impl<A: Store> Op<A::E> for Part<A> {
    type Out = ();
    const TILES: bool = A::DEPTH == 2;
    #[inline(always)]
    unsafe fn run<S: Simd<E = A::E>>(self) {
        if self.k == 0 {
            let nr = panel_width::<S>();
            for i in self.rows.clone().filter(|_| !self.accumulate) {
                let cols = self.panels.start * nr..(self.panels.end * nr).min(self.n);
                // SAFETY: inside this part of `c`.
                cols.for_each(|j| unsafe { *self.c.add(i * self.n + j) = A::E::ZERO });
            }
            return;
        }
        // SAFETY: sizes were checked by the callers; rows and panels of different threads are disjoint in `c`.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if A::DEPTH == 2 && S::TILES {
                return crate::isa::amx::bf16::product(self.cast());
            }
            // Associated constants cannot size arrays; the match is folded at compile time.
            match S::MR {
                14 => self.blocks::<S, 14, 2>(),
                6 => self.blocks::<S, 6, 2>(),
                8 => self.blocks::<S, 8, 2>(),
                _ => self.blocks::<S, 4, 4>(),
            }
        }
    }
}

impl<A: Store> Part<A> {
    #[inline(always)]
    unsafe fn blocks<S: Simd<E = A::E>, const MR: usize, const NV: usize>(&self) {
        let nr = NV * S::LANES;
        let step = KC * A::DEPTH;
        let depth = self.depth;
        // A single row is read where it lies.
        let one_row = self.rows.len() == 1 && !self.transposed && self.k.is_multiple_of(A::DEPTH);
        let block = self.block;
        let mut i0 = self.rows.start;
        while i0 < self.rows.end {
            let rows = (BLOCK_ROWS / MR * MR).min(self.rows.end - i0);
            let mut p0 = 0;
            while p0 < self.k {
                let kc = step.min(self.k - p0);
                // SAFETY: the block holds BLOCK_ROWS * KC groups; `a` covers the rows and depths named.
                unsafe {
                    if !one_row {
                        self.copy_block(block, i0, rows, p0, kc);
                    }
                    for panel in self.panels.clone() {
                        let b = self.b.add(panel * depth * nr + p0 * nr);
                        let cols = nr.min(self.n - panel * nr);
                        let mut t = 0;
                        while t < rows {
                            let c = self.c.add((i0 + t) * self.n + panel * nr);
                            let rows = MR.min(rows - t);
                            let add = self.accumulate || p0 > 0;
                            let tile = Tile { c, ldc: self.n, b, groups: kc.div_ceil(A::DEPTH), rows, cols, add };
                            let a = block.add(t * step);
                            if one_row {
                                tile.run::<S, 1, NV>(self.a.add(i0 * self.lda + p0), 0, A::DEPTH);
                            } else if self.transposed {
                                tile.run::<S, MR, NV>(block.add(t * A::DEPTH), A::DEPTH, BLOCK_ROWS * A::DEPTH);
                            } else {
                                tile.run::<S, MR, NV>(a, step, A::DEPTH);
                            }
                            t += MR;
                        }
                    }
                }
                p0 += kc;
            }
            i0 += rows;
        }
    }

    /// Copies rows `i0..i0+rows` and depths `p0..p0+kc` of `A`: `[tile][MR][step]`, or from a transposed one
    /// `[kc/DEPTH][BLOCK_ROWS][DEPTH]`. An odd depth is filled up with zero.
    #[inline(always)]
    unsafe fn copy_block(&self, block: *mut A, i0: usize, rows: usize, p0: usize, kc: usize) {
        let step = KC * A::DEPTH;
        // SAFETY: the caller's promise.
        unsafe {
            if !self.transposed {
                for i in 0..rows {
                    let dst = block.add(i * step);
                    std::ptr::copy_nonoverlapping(self.a.add((i0 + i) * self.lda + p0), dst, kc);
                    if !kc.is_multiple_of(A::DEPTH) {
                        *dst.add(kc) = A::ZERO;
                    }
                }
                return;
            }
            // What a last tile reads beyond `rows` only reaches rows of `C` that are thrown away.
            for p in 0..kc.div_ceil(A::DEPTH) {
                let src = self.a.add((p0 + p * A::DEPTH) * self.lda + i0);
                for q in 0..A::DEPTH {
                    prefetch(src.wrapping_add((AHEAD + q) * self.lda), rows);
                }
                let dst = block.add(p * BLOCK_ROWS * A::DEPTH);
                if A::DEPTH == 1 {
                    std::ptr::copy_nonoverlapping(src, dst, rows);
                } else if p * A::DEPTH + 1 < kc {
                    for i in 0..rows {
                        *dst.add(2 * i) = *src.add(i);
                        *dst.add(2 * i + 1) = *src.add(self.lda + i);
                    }
                } else {
                    for i in 0..rows {
                        *dst.add(2 * i) = *src.add(i);
                        *dst.add(2 * i + 1) = A::ZERO;
                    }
                }
            }
        }
    }
}
