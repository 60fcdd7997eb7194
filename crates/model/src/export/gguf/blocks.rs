//! Weights in the types of GGUF. A block has one f16 scale `d`, which rounds ours by at most 2^-11 of it; its codes are ours.
//!
//! | type | number | block | bytes | weight |
//! |---|---|---|---|---|
//! | `F32`, `F16` | 0, 1 | 1 | 4, 2 | itself |
//! | `Q4_0` | 2 | 32 | `d, u8[16]`: code `i` in the low half of byte `i`, `i + 16` in the high | `(code - 8) d` |
//! | `Q8_0` | 8 | 32 | `d, i8[32]` | `code d` |
//! | `Q2_0` | 42 | 64 | `d, u8[16]`: four codes a byte, the first in the lowest bits | `(code - 1) d` |
//!
//! Source: `ggml-common.h` and `ggml-quants.c` of llama.cpp.

use crate::codes::weight::Codes;

/// A type of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q8_0 = 8,
    Q2_0 = 42,
}

impl Type {
    /// Weights of a row that share a scale.
    pub(super) fn block(self) -> usize {
        match self {
            Type::F32 | Type::F16 => 1,
            Type::Q4_0 | Type::Q8_0 => 32,
            Type::Q2_0 => 64,
        }
    }

    /// Whether rows and scales of such codes fall into its blocks.
    pub(super) fn fits(self, codes: &Codes) -> bool {
        let block = self.block();
        codes.inputs.is_multiple_of(block) && (codes.segment >= codes.inputs || codes.segment.is_multiple_of(block))
    }

    /// Codes that fit as blocks.
    pub(super) fn blocks(self, of: &Codes) -> Vec<u8> {
        let (block, segments) = (self.block(), of.inputs.div_ceil(of.segment));
        let mut out = Vec::new();
        for (i, codes) in of.codes.chunks(block).enumerate() {
            let (row, column) = (i * block / of.inputs, i * block % of.inputs);
            let scale = of.scales[row * segments + column / of.segment];
            out.extend(f16(scale).to_le_bytes());
            match self {
                Type::Q2_0 => out.extend(
                    codes.chunks(4).map(|four| four.iter().rev().fold(0, |byte, code| byte << 2 | (code + 1) as u8)),
                ),
                Type::Q4_0 => out.extend((0..16).map(|i| (codes[i] + 8) as u8 | ((codes[i + 16] + 8) as u8) << 4)),
                _ => out.extend(codes.iter().map(|&code| code as u8)),
            }
        }
        out
    }
}

/// The nearest half-precision number, ties to even.
pub(super) fn f16(x: f32) -> u16 {
    let (bits, sign) = (x.to_bits() & 0x7fff_ffff, (x.to_bits() >> 16 & 0x8000) as u16);
    let nearest = |value: u32, drop: u32| (value + (1 << (drop - 1)) - 1 + (value >> drop & 1)) >> drop;
    let magnitude = match bits {
        0x7f80_0001.. => 0x7e00,
        0x477f_f000.. => 0x7c00,
        // 2^-14 and above: the exponent's bias is 112 less.
        0x3880_0000.. => nearest(bits - (112 << 23), 13),
        0x3300_0000.. => nearest(bits & 0x7f_ffff | 0x80_0000, 126 - (bits >> 23)),
        _ => 0,
    };
    sign | magnitude as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(h: u16) -> f64 {
        let (e, m) = (i32::from(h >> 10 & 31), f64::from(h & 1023));
        if e == 0 { m * 2f64.powi(-24) } else { (1.0 + m / 1024.0) * 2f64.powi(e - 15) }
    }

    /// Every number of 16 bits is itself; what lies between two goes to the nearer, and in the middle to the even one.
    #[test]
    fn halves_are_the_nearest() {
        for h in 0..0x7bff_u16 {
            let (low, high) = (value(h), value(h + 1));
            assert_eq!(f16(low as f32), h);
            assert_eq!(f16(-low as f32), 0x8000 | h);
            assert_eq!(f16(((low + high) / 2.0) as f32), h + (h & 1), "{h}");
            assert_eq!(f16((low + 0.51 * (high - low)) as f32), h + 1);
            assert_eq!(f16((low + 0.49 * (high - low)) as f32), h);
        }
        assert_eq!([65504.0, 65520.0, f32::INFINITY].map(f16), [0x7bff, 0x7c00, 0x7c00]);
        assert!(f16(f32::NAN) > 0x7c00);
    }
}
