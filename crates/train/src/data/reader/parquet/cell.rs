//! One value of a column, and how numbers lie in its bytes.

use super::meta::{Sense, Type};

/// One value.
#[derive(Debug, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Bytes(&'a [u8]),
    Number(f64),
}

/// The number that a value stands for.
pub(super) fn number(kind: Type, sense: Sense, bytes: &[u8]) -> f64 {
    let two = bytes.first_chunk().copied().unwrap_or_default();
    let four = bytes.first_chunk().copied().unwrap_or_default();
    let eight = bytes.first_chunk().copied().unwrap_or_default();
    let (whole, more) = match (kind, sense) {
        (Type::Float, _) => return f32::from_le_bytes(four).into(),
        (Type::Double, _) => return f64::from_le_bytes(eight),
        (_, Sense::Half) => return half(u16::from_le_bytes(two)),
        (Type::Int32, Sense::Unsigned) => (u32::from_le_bytes(four).into(), 0),
        (Type::Int32, _) => (i32::from_le_bytes(four).into(), 0),
        (Type::Int64, Sense::Unsigned) => (u64::from_le_bytes(eight).into(), 0),
        (Type::Int64, _) => (i64::from_le_bytes(eight).into(), 0),
        _ => big_endian(bytes),
    };
    match sense {
        // Through its digits, which are rounded once.
        Sense::Decimal(scale) if more == 0 => format!("{whole}e{}", -i64::from(scale)).parse().unwrap_or(f64::NAN),
        Sense::Decimal(scale) => whole as f64 * 256f64.powi(more) / 10f64.powi(scale),
        _ => whole as f64,
    }
}

/// A signed integer of any length, highest byte first: its first 16 bytes, which are more than a float has, and the number of
/// those left out.
fn big_endian(bytes: &[u8]) -> (i128, i32) {
    let sign = bytes.first().map_or(0, |first| if *first < 128 { 0 } else { 255 });
    let filling = bytes.windows(2).take_while(|two| two[0] == sign && (two[1] ^ sign) < 128).count();
    let (head, tail) = bytes[filling..].split_at((bytes.len() - filling).min(16));
    let head = head.iter().fold(-i128::from(sign == 255), |n, byte| n << 8 | i128::from(*byte));
    (head, tail.len() as i32)
}

/// Sign, 5 bits of exponent, 10 of the fraction.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python: `int.from_bytes(..., 'big', signed=True)`.
    #[test]
    fn integers_of_any_length() {
        for (bytes, n) in [
            (&[][..], 0.0),
            (&[0x7f], 127.0),
            (&[0x80], -128.0),
            (&[0, 0x80], 128.0),
            (&[0xff, 0xff, 0xff], -1.0),
            (&[0xff; 32], -1.0),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 3.402823669209385e38),
            (&[0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], -1.1237484885197072e43),
        ] {
            let (whole, more) = big_endian(bytes);
            assert_eq!(whole as f64 * 256f64.powi(more), n, "{bytes:?}");
        }
    }
}
