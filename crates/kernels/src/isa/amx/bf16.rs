//! Bf16 matmuls on tiles: a 32 x 32 block of `C` in four of them. `tdpbf16ps` sums the even and the odd depths of a tile
//! apart, then adds both to `C` (Intel SDM, "TDPBF16PS"); denormals count as zero.

use std::arch::asm;
use std::arch::x86_64::*;

use super::tiles::configure;
use crate::bf16::Bf16;
use crate::part::{BLOCK, Part, prefetch};

/// Rows and columns of a block of `C`.
const SIDE: usize = 32;
/// Depths of one tile.
const STEP: usize = 32;
/// Depths of a packed block of a transposed `A`.
const KC: usize = 512;
/// Blocks of a transposed `A` that are packed at once: 128 KB.
const BLOCKS: usize = 4;
const _: () = assert!(BLOCKS * SIDE * KC * size_of::<Bf16>() <= BLOCK * size_of::<f64>());

/// The rows and panels of one thread.
///
/// # Safety
/// As for [`Part`]; the machine has AMX and the AVX-512 that [`crate::isa::avx512::run_amx`] enables.
#[inline(always)]
pub(crate) unsafe fn product(part: Part<Bf16>) {
    // SAFETY: the caller's promise.
    unsafe {
        configure();
        if part.transposed { transposed(&part) } else { row_major(&part) }
    }
}

/// `A` is read where it lies; what is not a whole block of 32 rows or a whole step of 32 depths is copied and filled up.
#[inline(always)]
unsafe fn row_major(part: &Part<Bf16>) {
    let Part { a, lda, b, depth, k, ref rows, ref panels, block, .. } = *part;
    let (steps, rest) = (k / STEP, k % STEP);
    let whole = rows.start + rows.len() / SIDE * SIDE;
    // SAFETY: `a` covers rows and depths, `b` its panels, and the block holds 32 rows of KC depths.
    unsafe {
        for panel in panels.clone() {
            let b = b.add(panel * depth * SIDE);
            let mut i = rows.start;
            while i < whole {
                let a = a.add(i * lda);
                let out = Out::new(part, i, SIDE, panel);
                if steps > 0 {
                    out.run(a, lda, b, steps, part.accumulate);
                }
                if rest > 0 {
                    copy(block, STEP, a.add(steps * STEP), lda, SIDE, rest);
                    out.run(block, STEP, b.add(steps * STEP * SIDE), 1, part.accumulate || steps > 0);
                }
                i += SIDE;
            }
        }
        if whole < rows.end {
            let mut p = 0;
            while p < k {
                let kc = KC.min(k - p);
                copy(block, KC, a.add(whole * lda + p), lda, rows.end - whole, kc);
                for panel in panels.clone() {
                    let b = b.add(panel * depth * SIDE + p * SIDE);
                    let out = Out::new(part, whole, rows.end - whole, panel);
                    out.run(block, KC, b, kc.div_ceil(STEP), part.accumulate || p > 0);
                }
                p += kc;
            }
        }
    }
}

/// `A: [k, m]`: blocks of 32 columns are turned into rows first.
#[inline(always)]
unsafe fn transposed(part: &Part<Bf16>) {
    let Part { a, lda, b, depth, k, ref rows, ref panels, block, .. } = *part;
    let mut i0 = rows.start;
    while i0 < rows.end {
        let n = (SIDE * BLOCKS).min(rows.end - i0);
        let mut p = 0;
        while p < k {
            let kc = KC.min(k - p);
            // SAFETY: `a` covers depths and rows, `b` its panels, and the block holds BLOCKS * 32 rows of KC depths.
            unsafe {
                turn(block, a.add(p * lda + i0), lda, n, kc);
                for panel in panels.clone() {
                    let b = b.add(panel * depth * SIDE + p * SIDE);
                    let mut t = 0;
                    while t < n {
                        let out = Out::new(part, i0 + t, SIDE.min(n - t), panel);
                        out.run(block.add(t * KC), KC, b, kc.div_ceil(STEP), part.accumulate || p > 0);
                        t += SIDE;
                    }
                }
            }
            p += kc;
        }
        i0 += n;
    }
}

/// Copies `rows` rows of `kc` depths to rows `ld` apart, filled up with zeros to a whole step. Further rows of `dst` keep
/// what they have: it only reaches rows of `C` that are thrown away.
#[inline(always)]
unsafe fn copy(dst: *mut Bf16, ld: usize, src: *const Bf16, lds: usize, rows: usize, kc: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..rows {
            let dst = dst.add(i * ld);
            std::ptr::copy_nonoverlapping(src.add(i * lds), dst, kc);
            std::ptr::write_bytes(dst.add(kc), 0, kc.next_multiple_of(STEP) - kc);
        }
    }
}

/// Writes the transpose of `src: [kc, n]` to rows `KC` apart, filled up with zeros to a whole step.
#[inline(always)]
unsafe fn turn(dst: *mut Bf16, src: *const Bf16, lds: usize, n: usize, kc: usize) {
    let mut p = 0;
    while p < kc {
        for q in 0..STEP {
            prefetch(src.wrapping_add((p + STEP + q) * lds), n);
        }
        let mut i = 0;
        while i < n {
            let mask = ((1u32 << (n - i).min(16)) - 1) as __mmask16;
            // SAFETY: the caller's promise; loads are masked to the columns there are.
            unsafe {
                let mut pairs = [_mm512_setzero_si512(); 16];
                for (q, pair) in pairs.iter_mut().enumerate() {
                    let at = p + 2 * q;
                    if at < kc {
                        let row = _mm256_maskz_loadu_epi16(mask, src.add(at * lds + i).cast());
                        *pair = _mm512_cvtepu16_epi32(row);
                    }
                    if at + 1 < kc {
                        let row = _mm256_maskz_loadu_epi16(mask, src.add((at + 1) * lds + i).cast());
                        *pair = _mm512_or_si512(*pair, _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(row)));
                    }
                }
                let rows = transpose(pairs);
                for (j, row) in rows.iter().enumerate() {
                    _mm512_storeu_si512(dst.add((i + j) * KC + p).cast(), *row);
                }
            }
            i += 16;
        }
        p += STEP;
    }
}

/// The transpose of 16 x 16 double words: pairs, fours, then quarters of registers change places.
#[inline(always)]
unsafe fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: register operations of AVX-512 F, which the caller has.
    unsafe {
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        let mut u = t;
        for i in 0..4 {
            let t = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
            u[4 * i] = _mm512_unpacklo_epi64(t[0], t[2]);
            u[4 * i + 1] = _mm512_unpackhi_epi64(t[0], t[2]);
            u[4 * i + 2] = _mm512_unpacklo_epi64(t[1], t[3]);
            u[4 * i + 3] = _mm512_unpackhi_epi64(t[1], t[3]);
        }
        // u[4 i + j] holds, in quarter q, rows 4 i .. 4 i + 4 of column 4 q + j.
        let mut out = u;
        for j in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x88>(u[j], u[4 + j]);
            let high = _mm512_shuffle_i32x4::<0xdd>(u[j], u[4 + j]);
            let low2 = _mm512_shuffle_i32x4::<0x88>(u[8 + j], u[12 + j]);
            let high2 = _mm512_shuffle_i32x4::<0xdd>(u[8 + j], u[12 + j]);
            out[j] = _mm512_shuffle_i32x4::<0x88>(low, low2);
            out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
            out[4 + j] = _mm512_shuffle_i32x4::<0x88>(high, high2);
            out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
        }
        out
    }
}

/// A block of `C`: `rows x cols` of 32 x 32.
struct Out {
    c: *mut f32,
    ldc: usize,
    rows: usize,
    cols: usize,
}

impl Out {
    #[inline(always)]
    unsafe fn new(part: &Part<Bf16>, row: usize, rows: usize, panel: usize) -> Self {
        let cols = SIDE.min(part.n - panel * SIDE);
        // SAFETY: the block lies in `c`.
        Out { c: unsafe { part.c.add(row * part.n + panel * SIDE) }, ldc: part.n, rows, cols }
    }

    /// `C (+)= A B` over `steps * 32` depths; `a: [32, ..]` with rows `lda` apart, `b` one panel.
    #[inline(always)]
    unsafe fn run(&self, a: *const Bf16, lda: usize, b: *const Bf16, steps: usize, add: bool) {
        // SAFETY: the caller's promise; a block that `C` does not hold whole goes through the edge, with what is there
        // before, so that the bits of a row do not depend on its place.
        unsafe {
            if self.rows == SIDE && self.cols == SIDE {
                return block(self.c, self.ldc, a, lda, b, steps, add);
            }
            let mut edge = [0f32; SIDE * SIDE];
            if add {
                for i in 0..self.rows {
                    std::ptr::copy_nonoverlapping(self.c.add(i * self.ldc), edge.as_mut_ptr().add(i * SIDE), self.cols);
                }
            }
            block(edge.as_mut_ptr(), SIDE, a, lda, b, steps, add);
            for i in 0..self.rows {
                std::ptr::copy_nonoverlapping(edge.as_ptr().add(i * SIDE), self.c.add(i * self.ldc), self.cols);
            }
        }
    }
}

/// `c: [32, 32] (+)= a: [32, 32 steps] b`, all rows apart as said, in elements.
#[inline(always)]
unsafe fn block(c: *mut f32, ldc: usize, a: *const Bf16, lda: usize, b: *const Bf16, steps: usize, add: bool) {
    let (ldc, lda) = (ldc * size_of::<f32>(), lda * size_of::<Bf16>());
    // SAFETY: tiles are configured; the operands cover what is loaded and stored; no tile outlives the block.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {ldc}*1]",
            "tileloadd tmm1, [{c} + {ldc}*1 + 64]",
            "tileloadd tmm2, [{d} + {ldc}*1]",
            "tileloadd tmm3, [{d} + {ldc}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {lda}*1]",
            "tileloadd tmm6, [{b} + {ldb}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {ldb}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{e} + {lda}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 64",
            "add {e}, 64",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {ldc}*1], tmm0",
            "tilestored [{c} + {ldc}*1 + 64], tmm1",
            "tilestored [{d} + {ldc}*1], tmm2",
            "tilestored [{d} + {ldc}*1 + 64], tmm3",
            add = in(reg) u32::from(add),
            c = in(reg) c,
            d = in(reg) c.byte_add(16 * ldc),
            ldc = in(reg) ldc,
            a = inout(reg) a => _,
            e = inout(reg) a.byte_add(16 * lda) => _,
            lda = in(reg) lda,
            b = inout(reg) b => _,
            ldb = in(reg) 128usize,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}
