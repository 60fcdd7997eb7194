//! What an instruction is: its opcode, tiles and addresses, from the bytes at RIP and the registers of the signal frame.

/// `gregset_t` of glibc on x86_64 (`sys/ucontext.h`): the general registers where the signal struck.
pub(super) type Registers = [i64; 23];

/// Where each register is in [`Registers`], in the order of encodings: RAX RCX RDX RBX RSP RBP RSI RDI R8-R15.
const GREG: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
/// Where RIP is in [`Registers`].
pub(super) const RIP: usize = 16;

/// A decoded instruction with its addresses resolved.
#[derive(Debug, PartialEq)]
pub(super) enum Insn {
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
pub(super) unsafe fn decode(regs: &Registers) -> Option<(Insn, i64)> {
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
