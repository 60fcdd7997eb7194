//! RoPE angles: `past * base^(-2i/dh)`, `past` the rows of a row's document before it (arXiv 2104.09864).

use flashlm_kernels::{Buf, Elem};

/// Cosines and sines of a row's angles.
pub(super) struct Angles<E: Elem> {
    /// `base^(-2i/dh)`: `[dh / 2]`.
    rates: Vec<f64>,
    /// Of the first positions, which training takes: `[rows, dh]`.
    table: Buf<E>,
}

impl<E: Elem> Angles<E> {
    pub(super) fn new(width: usize, base: f64, rows: usize) -> Self {
        let rates: Vec<f64> = (0..width / 2).map(|i| base.powf(-2.0 * i as f64 / width as f64)).collect();
        let mut table = Buf::zeros(rows * width);
        for (position, row) in table.chunks_exact_mut(width).enumerate() {
            rotation(row, position as f64, &rates);
        }
        Angles { rates, table }
    }

    /// `[rows, dh]`, a row the cosines and then the sines, for the rows of these positions.
    pub(super) fn fill(&self, out: &mut [E], positions: &[u32]) {
        let width = 2 * self.rates.len();
        for (out, &position) in out.chunks_exact_mut(width).zip(positions) {
            match self.table.get(position as usize * width..(position as usize + 1) * width) {
                Some(row) => out.copy_from_slice(row),
                None => rotation(out, position.into(), &self.rates),
            }
        }
    }
}

fn rotation<E: Elem>(out: &mut [E], position: f64, rates: &[f64]) {
    let (cos, sin) = out.split_at_mut(rates.len());
    for ((cos, sin), rate) in cos.iter_mut().zip(sin).zip(rates) {
        let angle = position * rate;
        (*cos, *sin) = (E::from_f64(angle.cos()), E::from_f64(angle.sin()));
    }
}

/// The same for the packed runtime, where positions have no end: the rotation by a position is that by its digits, one after
/// the other, in f64, rounded once.
pub(super) struct Turns {
    /// [`turns`].
    table: Vec<[f64; 2]>,
    half: usize,
}

/// Digits of a position: `BASE^PLACES` is `2^32`.
const BASE: usize = 16;
const PLACES: usize = 8;

/// `cos, sin` of `digit * BASE^place * rate`: `[PLACES, BASE, dh / 2, 2]`.
pub(crate) fn turns(width: usize, base: f64) -> Vec<[f64; 2]> {
    let half = width / 2;
    let rates: Vec<f64> = (0..half).map(|i| base.powf(-2.0 * i as f64 / width as f64)).collect();
    let steps = (0..PLACES as u32).flat_map(|place| (0..BASE).map(move |digit| digit * BASE.pow(place)));
    let angles = steps.flat_map(|step| rates.iter().map(move |rate| step as f64 * rate));
    angles.map(|angle| [angle.cos(), angle.sin()]).collect()
}

impl Turns {
    pub(super) fn new(width: usize, base: f64) -> Self {
        Turns { table: turns(width, base), half: width / 2 }
    }

    /// `[dh]`, cosines and then sines, of a row's position.
    pub(super) fn fill(&self, out: &mut [f32], position: u32) {
        let row = |place: usize| {
            let digit = position as usize >> (4 * place) & (BASE - 1);
            &self.table[(place * BASE + digit) * self.half..][..self.half]
        };
        let places = (1..PLACES).filter(|place| position >> (4 * place) != 0).count();
        let (cosines, sines) = out.split_at_mut(self.half);
        for (i, (cosine, sine)) in cosines.iter_mut().zip(sines).enumerate() {
            let [mut cos, mut sin] = row(0)[i];
            for place in 1..=places {
                let [c, s] = row(place)[i];
                (cos, sin) = (cos * c - sin * s, sin * c + cos * s);
            }
            (*cosine, *sine) = (cos as f32, sin as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_by_digits_are_those_by_the_whole() {
        let (angles, turns) = (Angles::<f32>::new(56, 10_000.0, 0), Turns::new(56, 10_000.0));
        let (mut want, mut got) = ([0.0; 56], [0.0; 56]);
        for position in (0..5000).chain([65_535, 65_536, 1 << 20, u32::MAX]) {
            angles.fill(&mut want, &[position]);
            turns.fill(&mut got, position);
            // The angle itself is rounded to f64 once more.
            let bound = 1e-7 + 1e-15 * f64::from(position);
            let far = want.iter().zip(&got).any(|(a, b)| f64::from(a - b).abs() > bound);
            assert!(!far, "{position}");
        }
    }
}
