//! One row of the short convolution in plain loops.

use super::ShortConvConfig;
use crate::reference::{History, Weights};

/// The branch of a normed row `x`, after the rows of its document that were `history`; the taps know their number.
pub(crate) fn mix(model: &Weights, _: &ShortConvConfig, x: &[f64], history: &mut History) -> Vec<f64> {
    let (u, d) = (model.linear("up", x), x.len());
    history.rows[0].push((0..d).map(|i| u[i] * u[2 * d + i]).collect());
    let s = model.conv("conv.weight", &history.rows[0]);
    let m: Vec<f64> = s.iter().zip(&u[d..]).map(|(s, c)| s * c).collect();
    model.linear("down", &m)
}
