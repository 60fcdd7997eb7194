//! One row of the gated convolution in plain loops.

use crate::reference::{Seen, Weights, sigmoid};

/// The branch of a normed row `x`, after the rows of its document that were `seen`; the taps know their number.
pub(crate) fn mix(model: &Weights, _: &usize, x: &[f64], seen: &mut Seen) -> Vec<f64> {
    let u = model.linear("up", x);
    let (gate, value) = u.split_at(x.len());
    seen.rows[0].push(value.to_vec());
    let y = model.conv("conv.weight", &seen.rows[0]);
    let m: Vec<f64> = y.iter().zip(gate).map(|(y, g)| y * sigmoid(*g)).collect();
    model.linear("down", &m)
}
