//! bf16: the upper half of an f32, 8 bits of exponent and 8 of precision (relative rounding error at most 2^-8).

/// A bf16 number.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// The nearest value, halves to even; NaN stays NaN.
    #[inline(always)]
    pub fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        if x.is_nan() {
            return Bf16((bits >> 16) as u16 | 0x40);
        }
        Bf16(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }

    /// Exact widening.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl std::fmt::Debug for Bf16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_f32().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even_and_keeps_what_it_can_hold() {
        for bits in 0..=u16::MAX {
            let x = Bf16(bits);
            if !x.to_f32().is_nan() {
                assert_eq!(Bf16::from_f32(x.to_f32()), x);
            }
        }
        for (x, want) in [(1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0), (f32::MAX, f32::INFINITY)] {
            assert_eq!(Bf16::from_f32(x).to_f32(), want);
            assert_eq!(Bf16::from_f32(-x).to_f32(), -want);
        }
        assert_eq!(Bf16::from_f32(1.0 + 1.01 / 256.0).to_f32(), 1.0 + 2.0 / 256.0);
        assert!(Bf16::from_f32(f32::from_bits(0x7f80_0001)).to_f32().is_nan());
    }
}
