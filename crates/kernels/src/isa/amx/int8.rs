//! Int8 matmuls on tiles, `tdpbsud`: signed activations with unsigned codes of weights, summed in i32.

use std::arch::asm;

use super::tiles::configure;

/// Sums of a row: two panels of 16 columns.
const SIDE: usize = 32;

/// [`crate::dot::Dot::block`].
///
/// # Safety
/// The machine has AMX for int8; the operands cover what is loaded and stored, `c` 32 rows.
#[inline(always)]
pub(crate) unsafe fn block(
    c: *mut i32,
    a: *const u8,
    lda: usize,
    b: *const u8,
    apart: usize,
    steps: usize,
    both: bool,
) {
    // SAFETY: the caller's promise; no tile outlives a block.
    unsafe {
        configure();
        if both {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{a} + {lda}*1]",
                "tileloadd tmm6, [{b} + {ldb}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{f} + {ldb}*1]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{e} + {lda}*1]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {e}, 64",
                "add {b}, 1024",
                "add {f}, 1024",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{c} + {ldc}*1], tmm0",
                "tilestored [{c} + {ldc}*1 + 64], tmm1",
                "tilestored [{d} + {ldc}*1], tmm2",
                "tilestored [{d} + {ldc}*1 + 64], tmm3",
                c = in(reg) c,
                d = in(reg) c.add(16 * SIDE),
                ldc = in(reg) 4 * SIDE,
                a = inout(reg) a => _,
                e = inout(reg) a.add(16 * lda) => _,
                lda = in(reg) lda,
                b = inout(reg) b => _,
                f = inout(reg) b.add(apart) => _,
                ldb = in(reg) 64usize,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "3:",
                "tileloadd tmm4, [{a} + {lda}*1]",
                "tileloadd tmm6, [{b} + {ldb}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{f} + {ldb}*1]",
                "tdpbsud tmm1, tmm4, tmm7",
                "add {a}, 64",
                "add {b}, 1024",
                "add {f}, 1024",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{c} + {ldc}*1], tmm0",
                "tilestored [{c} + {ldc}*1 + 64], tmm1",
                c = in(reg) c,
                ldc = in(reg) 4 * SIDE,
                a = inout(reg) a => _,
                lda = in(reg) lda,
                b = inout(reg) b => _,
                f = inout(reg) b.add(apart) => _,
                ldb = in(reg) 64usize,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}
