//! What an instruction does: the tiles of a thread, their configuration, loads, stores and products.

use std::cell::UnsafeCell;

use super::decode::Insn;

/// A tile register: 16 rows of 64 bytes. What lies beyond the configured rows and columns is always zero.
type Tile = [[u8; 64]; 16];

/// The AMX state of a thread.
pub(super) struct Amx {
    /// The configuration as LDTILECFG reads it: byte 0 palette, 1 start row, from 16 the bytes per row of each tile
    /// (u16), from 48 the rows of each tile (u8). All zero when the tiles are not configured.
    config: [u8; 64],
    tiles: [Tile; 8],
}

thread_local! {
    /// Needs no initialisation at run time and no destructor, so that the handler may touch it at any time.
    pub(super) static AMX: UnsafeCell<Amx> = const { UnsafeCell::new(Amx { config: [0; 64], tiles: [[[0; 64]; 16]; 8] }) };
}

impl Amx {
    /// Carries out one instruction; the error is what the program did wrong (#GP or #UD on hardware).
    ///
    /// # Safety
    /// The memory that the instruction names must be the program's to read or write. (Where it is not mapped, the
    /// access raises SIGSEGV, as the instruction would.)
    pub unsafe fn execute(&mut self, insn: Insn) -> Result<(), &'static str> {
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
    use crate::testing::Random;
    use std::arch::asm;

    /// The arithmetic against FMA and addition of the processor with MXCSR set to flush denormals (FTZ and DAZ).
    #[test]
    fn rounds_as_the_hardware() {
        if !is_x86_feature_detected!("fma") {
            return;
        }
        let same = |left: f32, right: f32| left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan();
        let mut random = Random::new(3);
        for round in 0..400_000 {
            let [a, b, c] = [0; 3].map(|_| random.next());
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
}
