//! Weights as codes and scales, and codes as bytes.

use flashlm_kernels::Exec;
use flashlm_kernels::ops::{Quant, Scale, quantise};

use super::options::Density;

/// One row in so many keeps 8 bits in an embedding matrix of 4: the first, as tokens are numbered by how often they come.
pub(crate) const COMMON: usize = 8;
/// Columns that share a scale in an embedding matrix of 4 bits.
pub(crate) const NIBBLES: usize = 16;

/// Codes -1, 0, 1 of a matrix, and the scale of each unit of the quantiser.
pub(crate) fn ternary_codes(cx: &Exec, w: &[f32], size: (usize, usize), quant: Quant) -> (Vec<i8>, Vec<f32>) {
    let mut wq = vec![0.0f32; w.len()];
    quantise(cx, &mut wq, &mut vec![0.0; w.len()], w, size, quant);
    let units: Vec<&[f32]> = match unit(quant, size) {
        Unit::Tensor => vec![&wq],
        Unit::Flat(n) => wq.chunks(n).collect(),
        Unit::Row(n) => wq.chunks(size.1).flat_map(|row| row.chunks(n)).collect(),
    };
    // A unit of zeros may have any scale.
    let scales = units.iter().map(|unit| unit.iter().fold(0.0, |scale: f32, w| scale.max(w.abs())));
    let sign = |w: &f32| if *w == 0.0 { 0 } else { w.signum() as i8 };
    (wq.iter().map(sign).collect(), scales.collect())
}

/// Which weights of a matrix share a scale.
pub(crate) enum Unit {
    Tensor,
    /// So many consecutive elements of the flattened matrix.
    Flat(usize),
    /// So many of a row.
    Row(usize),
}

pub(crate) fn unit(quant: Quant, (outputs, inputs): (usize, usize)) -> Unit {
    match quant.scale {
        Scale::Block(n) if n < outputs * inputs => Unit::Flat(n),
        Scale::Tensor | Scale::Unit | Scale::Block(_) => Unit::Tensor,
        Scale::Group(n) => Unit::Row(n.min(inputs)),
    }
}

/// The nearest integer to `x`, halves to even, for `|x| < 2^22`: what lies behind the point does not fit beside 1.5 x 2^23. The
/// standard library's is a call where the compiler may not assume SSE4.1.
fn nearest(x: f32) -> f32 {
    (x + 12_582_912.0) - 12_582_912.0
}

/// Rows as bytes of -127 to 127, and the scale of each.
pub(crate) fn byte_rows(w: &[f32], inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::with_capacity(w.len()), Vec::new());
    for row in w.chunks(inputs) {
        let m = row.iter().fold(0f32, |m, w| m.max(w.abs()));
        let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
        codes.extend(row.iter().map(|w| nearest(w * by) as i8 as u8));
        scales.push(m / 127.0);
    }
    (codes, scales)
}

/// Rows as codes of -8 to 7, two a byte, and as bf16 the scale of each [`NIBBLES`] columns.
pub(crate) fn nibble_rows(w: &[f32], inputs: usize) -> (Vec<u8>, Vec<u16>) {
    let (mut bytes, mut scales) = (Vec::with_capacity(w.len() / 2), Vec::new());
    let mut codes = Vec::with_capacity(inputs + 1);
    for row in w.chunks(inputs) {
        codes.clear();
        for part in row.chunks(NIBBLES) {
            let scale = nibble_scale(part);
            codes.extend(part.iter().map(|&w| (nibble(w, scale) + 8.0) as u8));
            scales.push((scale.to_bits() >> 16) as u16);
        }
        codes.resize(inputs.next_multiple_of(2), 8);
        bytes.extend(codes.chunks(2).map(|two| two[0] | two[1] << 4));
    }
    (bytes, scales)
}

/// The code of a weight: -8 to 7.
fn nibble(w: f32, scale: f32) -> f32 {
    if scale.abs() > 1e-30 { (w / scale).round_ties_even().clamp(-8.0, 7.0) } else { 0.0 }
}

/// The bf16 with the least squared error, of those that give the largest weight -8 (so they may be below 0) or cut it by up to a third.
pub(crate) fn nibble_scale(part: &[f32]) -> f32 {
    let m = part.iter().fold(0f32, |m, &w| if w.abs() > m.abs() { w } else { m });
    let scales = (0..16).map(|i| f32::from_bits(((m / -8.0 * (1.0 - i as f32 / 48.0)).to_bits() + 0x7fff) & !0xffff));
    let error = |scale: f32| part.iter().map(|&w| f64::from(w - nibble(w, scale) * scale).powi(2)).sum::<f64>();
    let least = scales.map(|scale| (error(scale), scale)).min_by(|a, b| a.0.total_cmp(&b.0));
    least.map_or(0.0, |(_, scale)| scale)
}

pub(crate) fn to_byte(codes: &[i8], density: Density) -> u8 {
    let base = if density == Density::Four { 4 } else { 3 };
    codes.iter().rev().fold(0, |byte, code| byte * base + (code + 1) as u8)
}

/// The codes that each byte stands for; of bytes that stand for none, anything.
pub(crate) fn digits(density: Density) -> &'static [[i8; 5]; 256] {
    static FOUR: [[i8; 5]; 256] = table(4);
    static FIVE: [[i8; 5]; 256] = table(3);
    match density {
        Density::Four => &FOUR,
        Density::Five => &FIVE,
    }
}

const fn table(base: usize) -> [[i8; 5]; 256] {
    let mut table = [[0; 5]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut left, mut j) = (byte, 0);
        while j < 5 {
            table[byte][j] = (left % base) as i8 - 1;
            left /= base;
            j += 1;
        }
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_give_their_codes_back() {
        for density in [Density::Four, Density::Five] {
            for n in 0..3usize.pow(density.per_byte() as u32) {
                let codes: Vec<i8> =
                    (0..density.per_byte() as u32).map(|j| (n / 3usize.pow(j) % 3) as i8 - 1).collect();
                assert_eq!(digits(density)[usize::from(to_byte(&codes, density))][..codes.len()], codes);
            }
        }
    }

    #[test]
    fn nearest_is_that_of_the_standard_library() {
        for x in (-1024..=1024).map(|i| i as f32 / 8.0).chain([127.0, -127.0, 0.499_999_97, -0.0, 4e6, f32::NAN]) {
            assert!(nearest(x) == x.round_ties_even() || x.is_nan(), "{x}");
        }
    }
}
