//! AMX: bf16 and int8 matmuls on tile registers of 16 rows of 64 bytes, accumulated in f32 and i32. Everything else
//! runs as AVX-512. Here: whether there are tiles.
//!
//! Intrinsics for tiles are not stable, so a kernel is one `asm!` block: a block of `C` in four tiles, with its whole loop over
//! depths.

pub(crate) mod bf16;
pub(crate) mod int8;
mod tiles;

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

pub(crate) use tiles::release;

/// Whether processor and system let this process use tiles. Asks the system once.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| (supported() && permitted()) || emulated())
}

/// Whether tiles of bytes can be multiplied too: CPUID leaf 7, EDX bit 25. The emulator can.
pub(crate) fn has_int8() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| available() && (!supported() || __cpuid_count(7, 0).edx & 1 << 25 != 0))
}

/// The `emulate-amx` feature brings tiles to machines without them, for tests.
#[cfg(all(target_os = "linux", feature = "emulate-amx"))]
fn emulated() -> bool {
    crate::isa::amx_emulator::install()
}

#[cfg(not(all(target_os = "linux", feature = "emulate-amx")))]
fn emulated() -> bool {
    false
}

/// CPUID leaf 7: AMX-BF16 (EDX bit 22) and AMX-TILE (24); XCR0: tile configuration (17) and data (18).
fn supported() -> bool {
    let osxsave = __cpuid(1).ecx & 1 << 27 != 0;
    if __cpuid(0).eax < 7 || !osxsave {
        return false;
    }
    let bits = 1 << 22 | 1 << 24;
    let xcr0: u32;
    // SAFETY: OSXSAVE says that the instruction exists.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nomem, nostack)) };
    __cpuid_count(7, 0).edx & bits == bits && xcr0 >> 17 & 3 == 3
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`: Linux gives tile data only to processes that ask.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    let result: i64;
    // SAFETY: a system call that changes nothing but this permission.
    unsafe {
        asm!("syscall", inlateout("rax") 158i64 => result, in("rdi") 0x1023, in("rsi") 18,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
