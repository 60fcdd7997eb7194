//! Software emulation of Intel AMX (AMX-TILE, AMX-INT8, AMX-BF16), for tests on x86_64 Linux machines without it.
//!
//! Such a machine raises #UD on every AMX instruction, which Linux delivers as SIGILL. [`install`] sets a handler that
//! decodes the instruction at RIP, carries it out on tile registers kept in thread-local storage, moves RIP past it
//! and returns. What the handler does not know kills the process with SIGILL as usual; a misuse of AMX does so too,
//! after a message on stderr.
//!
//! Sources: Intel 64 and IA-32 Architectures Software Developer's Manual ("SDM"), volume 1, chapter "Programming with
//! Intel Advanced Matrix Extensions"; volume 2, sections "VEX prefix" and "Intel AMX Instruction Exception Classes" and
//! the pages of the single instructions, whose pseudocode is followed here.
//!
//! Left out: `start_row` other than zero, address-size and segment prefixes, the payload of NaN results, and the
//! kernel's saving of the tiles around signal handlers (a handler sees the tiles of the thread it interrupts).

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::mem::offset_of;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// `SIGILL` and `SA_SIGINFO` of Linux on x86_64 (`bits/signum-generic.h`, `bits/sigaction.h`).
const SIGILL: c_int = 4;
const SA_SIGINFO: c_int = 4;

/// `struct sigaction` of glibc on x86_64 (`bits/sigaction.h`): 152 bytes.
#[repr(C)]
struct SigAction {
    /// Address of the handler; 0 is `SIG_DFL`.
    handler: usize,
    /// `sigset_t`, 1024 bits: the signals blocked while the handler runs, besides the one it handles.
    mask: [u64; 16],
    flags: c_int,
    /// Set by glibc itself.
    restorer: usize,
}

/// The start of `siginfo_t` on x86_64 (`bits/types/siginfo_t.h`); the rest is not needed.
#[repr(C)]
struct SigInfo {
    signo: c_int,
    errno: c_int,
    /// Positive when the kernel raised the signal for an instruction, else another process or `raise` sent it.
    code: c_int,
}

/// `gregset_t` of glibc on x86_64 (`sys/ucontext.h`): the general registers where the signal struck.
type Registers = [i64; 23];

/// The start of `ucontext_t` of glibc on x86_64 (`sys/ucontext.h`); the rest is not needed.
#[repr(C)]
struct UContext {
    flags: u64,
    link: usize,
    /// `stack_t`: `ss_sp`, `ss_flags` with its padding, `ss_size`.
    stack: [u64; 3],
    gregs: Registers,
}

const _: () = assert!(size_of::<SigAction>() == 152 && offset_of!(SigAction, flags) == 136);
const _: () = assert!(offset_of!(SigInfo, code) == 8 && offset_of!(UContext, gregs) == 40);

/// Where each register is in [`Registers`], in the order of encodings: RAX RCX RDX RBX RSP RBP RSI RDI R8-R15.
const GREG: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
/// Where RIP is in [`Registers`].
const RIP: usize = 16;

unsafe extern "C" {
    fn sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
    safe fn raise(signal: c_int) -> c_int;
    fn write(fd: c_int, bytes: *const u8, count: usize) -> isize;
}

/// Starts the emulation for all threads of the process; true when it stands. May be called again, from any thread.
///
/// The handler runs on the interrupted stack, below the red zone. The kernel keeps the vector state, MXCSR and flags
/// in the signal frame and gives the handler fresh ones (`arch/x86/kernel/signal.c`), so the handler computes with
/// round to nearest even whatever MXCSR says. SIGILL stays blocked in the handler (no `SA_NODEFER`): one thread never
/// enters it twice, and an illegal instruction inside it would kill the process.
pub fn install() -> bool {
    static DONE: OnceLock<bool> = OnceLock::new();
    *DONE.get_or_init(|| set_action(on_sigill as *const () as usize, SA_SIGINFO))
}

/// Sets what SIGILL does; async-signal-safe.
fn set_action(handler: usize, flags: c_int) -> bool {
    let (mask, restorer) = ([0; 16], 0);
    let action = SigAction { handler, mask, flags, restorer };
    // SAFETY: `action` is laid out as glibc wants it, the old action may be null, and `handler` is SIG_DFL or a
    // function of the signature that SA_SIGINFO stands for.
    unsafe { sigaction(SIGILL, &action, null_mut()) == 0 }
}

/// The SIGILL handler; uses neither heap nor locks.
extern "C" fn on_sigill(_signal: c_int, info: *const SigInfo, context: *mut UContext) {
    // SAFETY: the kernel hands an SA_SIGINFO handler valid pointers that nothing else uses meanwhile.
    let (info, regs) = unsafe { (&*info, &mut (*context).gregs) };
    if info.code <= 0 {
        // Not from an instruction: resend it; it strikes when the handler returns and unblocks it.
        set_action(0, 0);
        raise(SIGILL);
        return;
    }
    // SAFETY: RIP is that of the instruction just refused, so its bytes are readable.
    let Some((insn, length)) = (unsafe { decode(regs) }) else {
        set_action(0, 0); // the instruction is refused again, now for good
        return;
    };
    // SAFETY: the state is this thread's own, and SIGILL is blocked here, so this is the only reference to it; the
    // program asks for the memory accesses itself.
    match AMX.with(|amx| unsafe { (*amx.get()).execute(insn) }) {
        Ok(()) => regs[RIP] += length,
        Err(mistake) => {
            for text in ["AMX emulator: ", mistake, "\n"] {
                // SAFETY: `text` is readable for its length; a failing write is of no concern.
                unsafe { write(2, text.as_ptr(), text.len()) };
            }
            set_action(0, 0);
        }
    }
}

/// A decoded instruction with its addresses resolved.
#[derive(Debug, PartialEq)]
enum Insn {
    /// LDTILECFG and STTILECFG: the address.
    LoadConfig(u64),
    StoreConfig(u64),
    Release,
    Zero(usize),
    /// TILELOADD (and TILELOADDT1, which differs in caching only) and TILESTORED: tile, address and stride.
    Load(usize, u64, u64),
    Store(usize, u64, u64),
    /// TDPBF16PS: the tiles C, A, B of C += A * B.
    DotBf16([usize; 3]),
    /// TDPBSSD and its kin: the tiles likewise, and whether the bytes of A and of B are signed.
    DotInt([usize; 3], [bool; 2]),
}

/// Decodes the instruction at RIP: its meaning and length, or `None` when it is none of those emulated.
///
/// All are VEX.128.pp.0F38.W0 with the three-byte prefix C4 RXBmmmmm WvvvvLpp, R X B and vvvv inverted (SDM vol. 2A,
/// "VEX prefix"). pp is 0 for no prefix, 1 for 66, 2 for F3, 3 for F2. The opcodes, ModRM.mod 3 being a register:
///
/// | opcode | mod | none        | 66          | F3         | F2        |
/// |--------|-----|-------------|-------------|------------|-----------|
/// | 49     | < 3 | LDTILECFG   | STTILECFG   |            |           |
/// | 49     | 3   | TILERELEASE |             |            | TILEZERO  |
/// | 4B     | < 3 |             | TILELOADDT1 | TILESTORED | TILELOADD |
/// | 5C     | 3   |             |             | TDPBF16PS  |           |
/// | 5E     | 3   | TDPBUUD     | TDPBUSD     | TDPBSUD    | TDPBSSD   |
///
/// # Safety
/// The bytes of an instruction must be readable at RIP.
unsafe fn decode(regs: &Registers) -> Option<(Insn, i64)> {
    let rip = regs[RIP] as u64;
    // SAFETY: the caller vouches for the instruction; bytes are read only once those before them ask for them.
    let byte = |at: u64| unsafe { (rip.wrapping_add(at) as *const u8).read() };
    if byte(0) != 0xc4 {
        return None;
    }
    let (vex1, vex2, opcode) = (byte(1), byte(2), byte(3));
    // Map 0F38, W and L zero; R would extend the tile number beyond 7.
    if vex1 & 0x9f != 0x82 || vex2 & 0x84 != 0 || !matches!(opcode, 0x49 | 0x4b | 0x5c | 0x5e) {
        return None;
    }
    let (pp, vvvv) = (vex2 & 3, usize::from(!vex2 >> 3 & 15));
    let modrm = byte(4);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));

    if mode == 3 {
        let insn = match (opcode, pp) {
            (0x49, 0) if reg == 0 && rm == 0 && vvvv == 0 => Insn::Release,
            (0x49, 3) if rm == 0 && vvvv == 0 => Insn::Zero(reg),
            (0x5c, 2) if vvvv < 8 => Insn::DotBf16([reg, rm, vvvv]),
            (0x5e, _) if vvvv < 8 => Insn::DotInt([reg, rm, vvvv], [pp & 2 != 0, pp & 1 != 0]),
            _ => return None,
        };
        return (vex1 & 0x60 == 0x60).then_some((insn, 5));
    }

    // The memory operand: base + displacement, and the scaled index (the stride of the tile instructions).
    let register = |low: u8, inverted: u8| regs[GREG[usize::from(low & 7) + if inverted == 0 { 8 } else { 0 }]] as u64;
    let (mut base, mut index, mut at) = (0, 0, 5);
    let mut disp_size = [0, 1, 4][usize::from(mode)];
    if rm == 4 {
        let sib = byte(5);
        at = 6;
        // Index 100 without X means none; with X it is R12.
        if sib >> 3 & 7 != 4 || vex1 & 0x40 == 0 {
            index = register(sib >> 3, vex1 & 0x40) << (sib >> 6);
        }
        if mode == 0 && sib & 7 == 5 {
            disp_size = 4; // no base
        } else {
            base = register(sib, vex1 & 0x20);
        }
    } else if mode == 0 && rm == 5 {
        disp_size = 4; // relative to the next instruction
        base = rip.wrapping_add(9);
    } else {
        base = register(modrm, vex1 & 0x20);
    }
    let disp = match disp_size {
        0 => 0,
        1 => i64::from(byte(at) as i8),
        _ => i64::from(i32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)])),
    };
    let addr = base.wrapping_add_signed(disp);
    let insn = match (opcode, pp) {
        _ if vvvv != 0 => return None,
        (0x49, 0) if reg == 0 => Insn::LoadConfig(addr.wrapping_add(index)),
        (0x49, 1) if reg == 0 => Insn::StoreConfig(addr.wrapping_add(index)),
        (0x4b, 1 | 3) if rm == 4 => Insn::Load(reg, addr, index),
        (0x4b, 2) if rm == 4 => Insn::Store(reg, addr, index),
        _ => return None,
    };
    Some((insn, (at + disp_size) as i64))
}

/// A tile register: 16 rows of 64 bytes. What lies beyond the configured rows and columns is always zero.
type Tile = [[u8; 64]; 16];

/// The AMX state of a thread.
struct Amx {
    /// The configuration as LDTILECFG reads it: byte 0 palette, 1 start row, from 16 the bytes per row of each tile
    /// (u16), from 48 the rows of each tile (u8). All zero when the tiles are not configured.
    config: [u8; 64],
    tiles: [Tile; 8],
}

thread_local! {
    /// Needs no initialisation at run time and no destructor, so that the handler may touch it at any time.
    static AMX: UnsafeCell<Amx> = const { UnsafeCell::new(Amx { config: [0; 64], tiles: [[[0; 64]; 16]; 8] }) };
}

impl Amx {
    /// Carries out one instruction; the error is what the program did wrong (#GP or #UD on hardware).
    ///
    /// # Safety
    /// The memory that the instruction names must be the program's to read or write. (Where it is not mapped, the
    /// access raises SIGSEGV, as the instruction would.)
    unsafe fn execute(&mut self, insn: Insn) -> Result<(), &'static str> {
        match insn {
            // SAFETY: 64 bytes at `addr`, by the caller's promise.
            Insn::LoadConfig(addr) => self.configure(unsafe { (addr as *const [u8; 64]).read() })?,
            // SAFETY: as above.
            Insn::StoreConfig(addr) => unsafe { (addr as *mut [u8; 64]).write(self.config) },
            Insn::Release => self.configure([0; 64])?,
            Insn::Zero(tile) => {
                self.shape(tile)?;
                self.tiles[tile] = [[0; 64]; 16];
            }
            Insn::Load(tile, addr, stride) => {
                let (rows, colsb) = self.shape(tile)?;
                let mut loaded = [[0; 64]; 16];
                for (row, into) in (0..).zip(&mut loaded[..rows]) {
                    let from = addr.wrapping_add(stride.wrapping_mul(row)) as *const u8;
                    // SAFETY: `colsb` <= 64 bytes of the row, readable by the caller's promise.
                    unsafe { from.copy_to_nonoverlapping(into.as_mut_ptr(), colsb) };
                }
                self.tiles[tile] = loaded;
            }
            Insn::Store(tile, addr, stride) => {
                let (rows, colsb) = self.shape(tile)?;
                for (row, from) in (0..).zip(&self.tiles[tile][..rows]) {
                    let to = addr.wrapping_add(stride.wrapping_mul(row)) as *mut u8;
                    // SAFETY: `colsb` <= 64 bytes of the row, writable by the caller's promise.
                    unsafe { to.copy_from_nonoverlapping(from.as_ptr(), colsb) };
                }
            }
            Insn::DotBf16(tiles) => self.dot(tiles, dot_bf16)?,
            Insn::DotInt(tiles, signed) => self.dot(tiles, |c, a, b| dot_int(c, a, b, signed))?,
        }
        Ok(())
    }

    /// LDTILECFG: checks and takes a configuration and zeroes all tiles. Palette 0 is the state after TILERELEASE.
    fn configure(&mut self, config: [u8; 64]) -> Result<(), &'static str> {
        let mut reserved = config[2..16].iter().chain(&config[32..48]).chain(&config[56..]);
        let colsb = config[16..32].as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
        let mut shapes = config[48..56].iter().zip(colsb);
        self.config = match config[0] {
            0 => [0; 64],
            1 if config[1] != 0 => return Err("ldtilecfg: start_row is not zero, which is not emulated"),
            1 if reserved.any(|&byte| byte != 0) => return Err("ldtilecfg: a reserved byte is not zero"),
            1 if !shapes.all(|(&rows, colsb)| rows <= 16 && colsb <= 64 && (rows == 0) == (colsb == 0)) => {
                return Err("ldtilecfg: a tile has over 16 rows, over 64 bytes per row, or just one of both zero");
            }
            1 => config,
            _ => return Err("ldtilecfg: the palette is neither 0 nor 1"),
        };
        self.tiles = [[[0; 64]; 16]; 8];
        Ok(())
    }

    /// Rows and bytes per row of a tile that an instruction uses.
    fn shape(&self, tile: usize) -> Result<(usize, usize), &'static str> {
        let (rows, colsb) = (self.config[48 + tile], self.config[16 + 2 * tile]);
        match colsb {
            0 => Err("a tile is used that is not configured"),
            _ if colsb % 4 != 0 => Err("a tile is used whose bytes per row are no multiple of 4"),
            _ => Ok((rows.into(), colsb.into())),
        }
    }

    /// The frame of all TDP instructions, C += A * B: checks the shapes and calls `row` for each row of C and A.
    fn dot<F: Fn(&mut [u8], &[u8], &Tile)>(&mut self, [c, a, b]: [usize; 3], row: F) -> Result<(), &'static str> {
        let (rows_c, colsb_c) = self.shape(c)?;
        let (rows_a, colsb_a) = self.shape(a)?;
        let (rows_b, colsb_b) = self.shape(b)?;
        if c == a || c == b || a == b {
            return Err("tdp: the three tiles are not distinct");
        }
        if rows_c != rows_a || colsb_c != colsb_b || colsb_a != 4 * rows_b {
            return Err("tdp: the shapes of the three tiles do not fit together");
        }
        let (a, b) = (self.tiles[a], self.tiles[b]);
        for (c, a) in self.tiles[c][..rows_c].iter_mut().zip(&a) {
            row(&mut c[..colsb_c], &a[..colsb_a], &b);
        }
        Ok(())
    }
}

/// One row of TDPBF16PS: the products of the even elements and those of the odd ones are summed apart, each step a
/// fused multiply-add, then the two sums are added, and their sum to C. Denormals count as zero everywhere.
fn dot_bf16(c: &mut [u8], a: &[u8], b: &Tile) {
    let bf16 = |pair: &[u8], odd: usize| daz(u32::from_le_bytes([0, 0, pair[2 * odd], pair[2 * odd + 1]]));
    let mut sums = [[0.0f32; 2]; 16];
    for (a, b) in a.chunks_exact(4).zip(b) {
        let a = [bf16(a, 0), bf16(a, 1)];
        for (sum, b) in sums.iter_mut().zip(b.chunks_exact(4)) {
            for odd in 0..2 {
                sum[odd] = ftz(a[odd] * bf16(b, odd) + f64::from(sum[odd]));
            }
        }
    }
    for (c, [even, odd]) in c.as_chunks_mut().0.iter_mut().zip(sums) {
        let sum = ftz(f64::from(even) + f64::from(odd));
        *c = ftz(daz(u32::from_le_bytes(*c)) + f64::from(sum)).to_le_bytes();
    }
}

/// One row of TDPBSSD, TDPBSUD, TDPBUSD, TDPBUUD: products of bytes, four to each i32 of C, which wraps.
fn dot_int(c: &mut [u8], a: &[u8], b: &Tile, [signed_a, signed_b]: [bool; 2]) {
    let int = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
    for (a, b) in a.chunks_exact(4).zip(b) {
        for (c, b) in c.as_chunks_mut().0.iter_mut().zip(b.chunks_exact(4)) {
            let products = a.iter().zip(b).map(|(&a, &b)| int(a, signed_a) * int(b, signed_b));
            *c = i32::from_le_bytes(*c).wrapping_add(products.sum()).to_le_bytes();
        }
    }
}

/// The value of an f32 input, a denormal as zero of its sign.
fn daz(bits: u32) -> f64 {
    let denormal = bits & 0x7f80_0000 == 0;
    f64::from(f32::from_bits(if denormal { bits & 0x8000_0000 } else { bits }))
}

/// Rounds a sum to f32, a denormal to zero of its sign; tininess is detected after rounding, as all of x86 does.
///
/// Rounding twice, to f64 and then here, equals the single rounding of the hardware: a product of two bf16 has 16
/// significant bits, an f32 has 24, and a sum of two f32, or of an f32 and such a product, is either exact in the 53
/// bits of f64 or so far from the middle between two f32 that the first rounding does not matter.
fn ftz(sum: f64) -> f32 {
    /// 2^-126 - 2^-151: what is smaller rounds to less than the least normal f32 when the exponent has no bound.
    const TINY: f64 = f64::from_bits(0x380f_ffff_f000_0000);
    let rounded = sum as f32;
    if sum.abs() < TINY { 0.0f32.copysign(rounded) } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::asm;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::thread;

    /// Xorshift64.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }
    }

    /// A palette 1 configuration of (tile, rows, bytes per row).
    fn config(tiles: &[(usize, usize, usize)]) -> [u8; 64] {
        let mut config = [0; 64];
        config[0] = 1;
        for &(tile, rows, colsb) in tiles {
            config[48 + tile] = rows as u8;
            config[16 + 2 * tile..][..2].copy_from_slice(&(colsb as u16).to_le_bytes());
        }
        config
    }

    /// A matrix in memory: `rows` rows of `columns` dwords, `stride` bytes apart, with filler between them.
    #[derive(Clone, Debug, PartialEq)]
    struct Matrix {
        bytes: Vec<u8>,
        rows: usize,
        columns: usize,
        stride: usize,
    }

    impl Matrix {
        fn new(rows: usize, columns: usize, stride: usize, mut fill: impl FnMut() -> [u8; 4]) -> Matrix {
            let bytes = vec![0xee; stride * rows];
            let mut matrix = Matrix { bytes, rows, columns, stride };
            for row in 0..rows {
                for column in 0..columns {
                    *matrix.at(row, column) = fill();
                }
            }
            matrix
        }

        fn at(&mut self, row: usize, column: usize) -> &mut [u8; 4] {
            (&mut self.bytes[row * self.stride + 4 * column..][..4]).try_into().unwrap()
        }

        fn get(&self, row: usize, column: usize) -> [u8; 4] {
            self.bytes[row * self.stride + 4 * column..][..4].try_into().unwrap()
        }
    }

    type Multiply = fn(&Matrix, &Matrix, &mut Matrix);

    /// Defines a function that computes C += A * B by one TDP instruction on the given tiles.
    macro_rules! multiply {
        ($name:ident, $tdp:literal, $c:literal, $a:literal, $b:literal) => {
            fn $name(a: &Matrix, b: &Matrix, c: &mut Matrix) {
                let shape = |tile, matrix: &Matrix| (tile, matrix.rows, 4 * matrix.columns);
                let config = config(&[shape($c, c), shape($a, a), shape($b, b)]);
                // SAFETY: the tiles lie within the matrices; RBP is kept.
                unsafe {
                    asm!(
                        "push rbp",
                        "mov rbp, rcx",
                        "ldtilecfg [rax]",
                        concat!("tileloadd tmm", $c, ", [rbp + rdi*1]"),
                        concat!("tileloadd tmm", $a, ", [r13 + r14*1]"),
                        concat!("tileloaddt1 tmm", $b, ", [r12 + r15*4 + 0x1000]"),
                        concat!($tdp, " tmm", $c, ", tmm", $a, ", tmm", $b),
                        concat!("tilestored [rcx + rdi*1], tmm", $c),
                        "tilerelease",
                        "pop rbp",
                        in("rax") &config,
                        in("rcx") c.bytes.as_mut_ptr(),
                        in("rdi") c.stride,
                        in("r13") a.bytes.as_ptr(),
                        in("r14") a.stride,
                        in("r12") b.bytes.as_ptr().wrapping_sub(0x1000),
                        in("r15") b.stride / 4,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    );
                }
            }
        };
    }

    multiply!(tdpbf16ps, "tdpbf16ps", 0, 1, 2);
    multiply!(tdpbf16ps_high, "tdpbf16ps", 7, 6, 5);
    multiply!(tdpbssd, "tdpbssd", 3, 4, 0);
    multiply!(tdpbsud, "tdpbsud", 5, 0, 7);
    multiply!(tdpbusd, "tdpbusd", 6, 2, 1);
    multiply!(tdpbuud, "tdpbuud", 1, 7, 3);

    /// Rows and columns of C, columns of A in dwords, and what the strides are beyond the rows.
    const SIZES: [[usize; 4]; 8] = [
        [16, 16, 16, 0],
        [1, 1, 1, 0],
        [16, 16, 1, 64],
        [1, 16, 16, 4],
        [16, 1, 16, 12],
        [5, 3, 7, 0],
        [9, 16, 16, 1000],
        [15, 13, 11, 20],
    ];

    /// The same by plain loops, for elements in a normal range.
    fn reference_bf16(a: &Matrix, b: &Matrix, c: &mut Matrix) {
        let f32s = |pair: [u8; 4]| {
            [f32::from_le_bytes([0, 0, pair[0], pair[1]]), f32::from_le_bytes([0, 0, pair[2], pair[3]])]
        };
        for row in 0..c.rows {
            for column in 0..c.columns {
                let (mut even, mut odd) = (0.0, 0.0);
                for k in 0..a.columns {
                    let (a, b) = (f32s(a.get(row, k)), f32s(b.get(k, column)));
                    even = a[0].mul_add(b[0], even);
                    odd = a[1].mul_add(b[1], odd);
                }
                let c = c.at(row, column);
                *c = (f32::from_le_bytes(*c) + (even + odd)).to_le_bytes();
            }
        }
    }

    /// Values of magnitude 2^-8 to 2^8 with all mantissa bits in use.
    fn random_f32(random: &mut Random) -> u32 {
        let bits = random.next() as u32;
        bits & 0x807f_ffff | (119 + bits.wrapping_mul(0x9e37_79b9) % 17) << 23
    }

    fn check_bf16(seed: u64, times: usize) {
        assert!(install());
        let mut random = Random(seed);
        for [m, n, k, gap] in SIZES.repeat(times) {
            let mut pair = || (random_f32(&mut random) >> 16 | random_f32(&mut random) & 0xffff_0000).to_le_bytes();
            let a = Matrix::new(m, k, 4 * k + gap, &mut pair);
            let b = Matrix::new(k, n, 4 * n + gap, &mut pair);
            let c = Matrix::new(m, n, 4 * n + 2 * gap, || random_f32(&mut random).to_le_bytes());
            let mut expected = c.clone();
            reference_bf16(&a, &b, &mut expected);
            for multiply in [tdpbf16ps as Multiply, tdpbf16ps_high] {
                let mut c = c.clone();
                multiply(&a, &b, &mut c);
                assert_eq!(c, expected, "{m} x {n} x {k}, gap {gap}");
            }
        }
    }

    fn check_int(seed: u64, times: usize) {
        assert!(install());
        let int = |byte: u8, signed: bool| if signed { i64::from(byte as i8) } else { i64::from(byte) };
        let mut random = Random(seed);
        for [m, n, k, gap] in SIZES.repeat(times) {
            let mut dword = || (random.next() as u32).to_le_bytes();
            let a = Matrix::new(m, k, 4 * k + gap, &mut dword);
            let b = Matrix::new(k, n, 4 * n + gap, &mut dword);
            let c = Matrix::new(m, n, 4 * n + gap, &mut dword);
            let all: [(Multiply, bool, bool); 4] =
                [(tdpbssd, true, true), (tdpbsud, true, false), (tdpbusd, false, true), (tdpbuud, false, false)];
            for (multiply, signed_a, signed_b) in all {
                let mut expected = c.clone();
                for row in 0..m {
                    for column in 0..n {
                        let mut sum = i64::from(i32::from_le_bytes(c.get(row, column)));
                        for at in 0..4 * k {
                            let (a, b) = (a.get(row, at / 4)[at % 4], b.get(at / 4, column)[at % 4]);
                            sum += int(a, signed_a) * int(b, signed_b);
                        }
                        *expected.at(row, column) = (sum as i32).to_le_bytes();
                    }
                }
                let mut c = c.clone();
                multiply(&a, &b, &mut c);
                assert_eq!(c, expected, "{m} x {n} x {k}, signed {signed_a} {signed_b}");
            }
        }
    }

    #[test]
    fn multiplies_bf16() {
        check_bf16(1, 4);
    }

    #[test]
    fn multiplies_int8() {
        check_int(2, 4);
    }

    #[test]
    fn threads_have_their_own_tiles() {
        thread::scope(|scope| {
            for seed in 10..14 {
                scope.spawn(move || check_bf16(seed, 4));
                scope.spawn(move || check_int(seed, 4));
            }
        });
    }

    #[test]
    fn sums_in_the_documented_order() {
        assert!(install());
        // One row of A times a column of B whose elements are all the same; in the pairs the even one is the lower.
        let run = |a: &[u32], b: u16, c: u32| {
            let mut values = a.iter();
            let a = Matrix::new(1, a.len(), 64, || values.next().unwrap().to_le_bytes());
            let b = Matrix::new(a.columns, 1, 64, || (u32::from(b) * 0x1_0001).to_le_bytes());
            let mut c = Matrix::new(1, 1, 64, || c.to_le_bytes());
            tdpbf16ps(&a, &b, &mut c);
            u32::from_le_bytes(c.get(0, 0))
        };
        // bf16 values; those of f32 have 16 zero bits more.
        const ONE: u16 = 0x3f80;
        const BIG: u32 = 0x4b80; // 2^24
        const MINUS_BIG: u32 = 0xcb80;
        // The products are summed before C is added, the even ones apart from the odd ones.
        assert_eq!(run(&[0x3f80 << 16 | BIG], ONE, MINUS_BIG << 16), 0);
        assert_eq!(run(&[BIG, 0x3f80], ONE, MINUS_BIG << 16), 0);
        assert_eq!(run(&[0x3f80 << 16 | BIG, 0x3f80 << 16 | MINUS_BIG], ONE, 0), 0x4000_0000);
        // Denormals count as zero: in A and B (times 2^100), in C (added to 2^-126), and as a result.
        assert_eq!(run(&[0x007f_0001], 0x7180, 0), 0);
        assert_eq!(run(&[0x7180_7180], 0x0040, 0), 0);
        assert_eq!(run(&[0x2000], 0x2000, 0x007f_ffff), 0x0080_0000);
        assert_eq!(run(&[0x2000], 0x1f80, 0), 0);
        // But not the products within a sum: 2^-123 + 2^-135.
        assert_eq!(run(&[0x2000, 0x1a00], 0x2180, 0), 0x0200_0800);
        assert_eq!(run(&[0x7f80], ONE, 0), 0x7f80_0000);
        assert!(f32::from_bits(run(&[0x7f80, 0xff80], ONE, 0)).is_nan());
    }

    /// The arithmetic against FMA and addition of the processor with MXCSR set to flush denormals (FTZ and DAZ).
    #[test]
    fn rounds_as_the_hardware() {
        if !is_x86_feature_detected!("fma") {
            return;
        }
        let same = |left: f32, right: f32| left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan();
        let mut random = Random(3);
        for round in 0..400_000 {
            let [a, b, c] = [0; 3].map(|_| random.next() as u32);
            let scale = |bits: u32, exponent: u32| bits & 0x807f_ffff | exponent << 23;
            let [a, b, c] = match round % 4 {
                0 => [a, b, c],
                // Products and sums about the least normal number, 2^-126.
                1 => [scale(a, 60 + a % 8), scale(b, 60 + b % 8), scale(c, c & 31)],
                // The same, mostly cancelling.
                2 => [scale(a, 64) | 0x8000_0000, scale(b, 63) & 0x7fff_ffff, 0x0080_0000 | c & 0xff],
                // 2^-126 less 2^-153 to 2^-148, where a sum may round up to it.
                _ => [scale(a, 50 + a % 4) | 0x8000_0000, scale(b, 51) & 0x7fff_ffff, 0x0080_0000],
            };
            let (a, b) = (a & 0xffff_0000, b & 0xffff_0000);
            let (mut product, mut sum) = (f32::from_bits(c), f32::from_bits(c));
            let (mut kept, flushing) = (0u32, 0x9fc0u32);
            // SAFETY: the processor has FMA, and MXCSR is set back.
            unsafe {
                asm!(
                    "stmxcsr [{kept}]",
                    "ldmxcsr [{flushing}]",
                    "vfmadd231ss {product}, {a}, {b}",
                    "vaddss {sum}, {sum}, {a}",
                    "ldmxcsr [{kept}]",
                    kept = in(reg) &mut kept,
                    flushing = in(reg) &flushing,
                    product = inout(xmm_reg) product,
                    sum = inout(xmm_reg) sum,
                    a = in(xmm_reg) f32::from_bits(a),
                    b = in(xmm_reg) f32::from_bits(b),
                );
            }
            // Sums within an instruction are never denormal, unlike C.
            let emulated = ftz(daz(a) * daz(b) + daz(c));
            assert!(same(emulated, product), "{a:#x} * {b:#x} + {c:#x}: {emulated:?}, hardware {product:?}");
            assert!(same(ftz(daz(c) + daz(a)), sum), "{c:#x} + {a:#x}: hardware {sum:?}");
        }
    }

    #[test]
    fn configuration_bounds_loads_and_stores() {
        assert!(install());
        let (small, large) = (config(&[(0, 3, 8), (4, 16, 64)]), config(&[(0, 16, 64)]));
        let source: Vec<u8> = (0..1024).map(|i| (i % 251) as u8 + 1).collect();
        let (mut stored, mut after, mut released) = ([0xeeu8; 1024], [0xeeu8; 1024], [0xeeu8; 1024]);
        let (mut config_stored, mut config_released) = ([0xeeu8; 64], [0xeeu8; 64]);
        // SAFETY: all memory named is of the sizes used.
        unsafe {
            asm!(
                "ldtilecfg [{small}]",
                "sttilecfg [{config_stored}]",
                "tileloadd tmm0, [{source} + {stride}*1]",
                "tilestored [{stored} + {stride}*1], tmm0",
                "ldtilecfg [{large}]",
                "tilestored [{after} + {stride}*1], tmm0",
                "tileloadd tmm0, [{source}]", // no index: each row is the first
                "tilestored [{released} + {stride}*1], tmm0",
                "tilezero tmm0",
                "tilestored [{released} + 64], tmm0", // likewise
                "tilerelease",
                "sttilecfg [{config_released}]",
                small = in(reg) &small,
                large = in(reg) &large,
                source = in(reg) source.as_ptr(),
                stored = in(reg) &mut stored,
                after = in(reg) &mut after,
                released = in(reg) &mut released,
                config_stored = in(reg) &mut config_stored,
                config_released = in(reg) &mut config_released,
                stride = in(reg) 64usize,
                out("tmm0") _,
            );
        }
        for (at, &byte) in stored.iter().enumerate() {
            let inside = at / 64 < 3 && at % 64 < 8;
            assert_eq!(byte, if inside { source[at] } else { 0xee }, "at {at}");
        }
        assert_eq!(after, [0; 1024], "ldtilecfg zeroes the tiles");
        for (row, bytes) in released.chunks(64).enumerate() {
            assert_eq!(bytes, if row == 1 { &[0; 64] } else { &source[..64] }, "row {row}");
        }
        assert_eq!((config_stored, config_released), (small, [0; 64]));
    }

    /// Each register of the signal frame as base and as index.
    #[test]
    fn finds_every_register() {
        assert!(install());
        let config = config(&[(0, 4, 64), (1, 4, 64)]);
        let source: Vec<u8> = (0..=255).collect();
        macro_rules! check {
            ($($register:literal),*) => {$(
                let mut stored = [[0u8; 256]; 2];
                // SAFETY: all memory named is of the sizes used; the register is kept.
                unsafe {
                    asm!(
                        "ldtilecfg [rdx]",
                        concat!("push ", $register),
                        concat!("mov ", $register, ", rsi"),
                        concat!("tileloadd tmm0, [", $register, " + rdi*1]"),
                        concat!("mov ", $register, ", rdi"),
                        concat!("tileloadd tmm1, [rsi + ", $register, "*1]"),
                        concat!("pop ", $register),
                        "tilestored [rcx + rdi*1], tmm0",
                        "tilestored [rcx + rdi*1 + 256], tmm1",
                        "tilerelease",
                        in("rsi") source.as_ptr(), in("rdi") 64usize, in("rcx") &mut stored, in("rdx") &config,
                        out("tmm0") _, out("tmm1") _,
                    );
                }
                assert!(stored.iter().all(|stored| *stored == source[..]), $register);
            )*};
        }
        check!("rax", "rcx", "rdx", "rbx", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
    }

    fn load(config: &[u8; 64]) {
        // SAFETY: reads the configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config) };
    }

    /// Runs AMX instructions that may use a row at RAX.
    macro_rules! amx {
        ($($line:literal),*) => {{
            let mut memory = [0u8; 64];
            // SAFETY: the memory suffices for a row, and there is no stride.
            unsafe { asm!($($line,)* in("rax") &mut memory, out("tmm0") _, out("tmm1") _, out("tmm2") _) };
        }};
    }

    /// What kills the process, and with which message, if any.
    const MISTAKES: [(&str, fn()); 18] = [
        ("over 16 rows", || load(&config(&[(0, 17, 64)]))),
        ("over 64 bytes", || load(&config(&[(0, 16, 0x104)]))),
        ("just one of both zero", || load(&config(&[(7, 16, 0)]))),
        ("just one of both zero", || load(&config(&[(7, 0, 64)]))),
        ("palette", || load(&[2; 64])),
        ("start_row", || load(&[1; 64])),
        ("reserved", || load(&config(&[(12, 0, 4)]))),
        ("not configured", || amx!("tilezero tmm0")),
        ("not configured", || {
            load(&config(&[(0, 1, 4)]));
            amx!("tileloadd tmm0, [rax]", "tileloadd tmm1, [rax]");
        }),
        ("not configured", || {
            load(&config(&[(0, 1, 4)]));
            amx!("tilerelease", "tilestored [rax], tmm0");
        }),
        ("multiple of 4", || {
            load(&config(&[(0, 1, 6)]));
            amx!("tileloadd tmm0, [rax]");
        }),
        ("do not fit", || {
            load(&config(&[(0, 4, 64), (1, 5, 64), (2, 16, 64)]));
            amx!("tdpbf16ps tmm0, tmm1, tmm2");
        }),
        ("do not fit", || {
            load(&config(&[(0, 4, 64), (1, 4, 64), (2, 15, 64)]));
            amx!("tdpbssd tmm0, tmm1, tmm2");
        }),
        ("do not fit", || {
            load(&config(&[(0, 4, 64), (1, 4, 64), (2, 16, 60)]));
            amx!("tdpbusd tmm0, tmm1, tmm2");
        }),
        ("not distinct", || {
            load(&config(&[(0, 16, 64), (1, 16, 64)]));
            amx!(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc0"); // TDPBSSD on tiles 0, 0, 1, which assemblers refuse
        }),
        ("", || amx!("ud2")),
        ("", || amx!(".byte 0xc4, 0xe2, 0x7b, 0x4b, 0x00")), // TILELOADD without SIB
        ("", || _ = raise(SIGILL)),
    ];

    /// The mistake that the environment names; run by `mistakes_kill` in processes of their own.
    #[test]
    #[ignore = "kills its process; run by mistakes_kill"]
    fn make_mistake() {
        if let Ok(number) = std::env::var("AMX_EMULATOR_MISTAKE") {
            assert!(install() && install());
            MISTAKES[number.parse::<usize>().unwrap()].1();
        }
    }

    #[test]
    fn mistakes_kill() {
        let module = module_path!().split_once("::").unwrap().1;
        for (number, (message, _)) in MISTAKES.iter().enumerate() {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", &format!("{module}::make_mistake")])
                .env("AMX_EMULATOR_MISTAKE", number.to_string())
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(SIGILL), "mistake {number}: {printed}");
            assert_eq!(printed.contains("AMX emulator: "), !message.is_empty(), "mistake {number}: {printed}");
            assert!(printed.contains(message), "mistake {number}: {printed}");
        }
    }
}
