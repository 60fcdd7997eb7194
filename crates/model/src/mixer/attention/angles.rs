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
