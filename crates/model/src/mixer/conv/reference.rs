//! One row of the gated convolution in plain loops.

use crate::reference::{History, Weights, sigmoid};

/// The branch of a normed row `x`, after the rows of its document that were `history`; the taps know their number.
pub(crate) fn mix(model: &Weights, _: &usize, x: &[f64], history: &mut History) -> Vec<f64> {
    let u = model.linear("up", x);
    let (gate, value) = u.split_at(x.len());
    history.rows[0].push(value.to_vec());
    let y = model.conv("conv.weight", &history.rows[0]);
    let m: Vec<f64> = y.iter().zip(gate).map(|(y, g)| y * sigmoid(*g)).collect();
    model.linear("down", &m)
}
