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

/// Rows as bytes of -127 to 127, and the scale of each.
pub(crate) fn byte_rows(w: &[f32], inputs: usize) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::with_capacity(w.len()), Vec::new());
    for row in w.chunks(inputs) {
        let m = row.iter().fold(0f32, |m, w| m.max(w.abs()));
        let by = if m > 1e-30 { 127.0 / m } else { 0.0 };
        codes.extend(row.iter().map(|w| (w * by).round_ties_even() as i8 as u8));
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

pub(crate) fn from_byte(byte: u8, j: usize, density: Density) -> i8 {
    let digit = match density {
        Density::Four => byte >> (2 * j) & 3,
        Density::Five => byte / [1, 3, 9, 27, 81][j] % 3,
    };
    digit as i8 - 1
}
