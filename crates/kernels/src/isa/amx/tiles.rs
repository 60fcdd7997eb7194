//! The tile registers of a thread: configured when it first needs them, given back when it sleeps.

use std::arch::asm;
use std::cell::Cell;

/// Tile configuration, palette 1: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const fn config() -> Config {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (row_bytes[i], rows[i]) = (64, 16);
        i += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
}

static CONFIG: Config = config();

thread_local! {
    /// Whether this thread's tiles are configured.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// Loading a configuration takes some 200 cycles, as long as a small block, so a thread keeps it.
#[inline(always)]
pub(super) unsafe fn configure() {
    if !CONFIGURED.replace(true) {
        // SAFETY: the caller has AMX.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
    }
}

/// Gives the tiles back, so that the system need not save 8 KB with a thread that waits.
pub(crate) fn release() {
    if CONFIGURED.replace(false) {
        // SAFETY: only threads with AMX are ever configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
