//! One row of the leaky integrator in plain loops.

use crate::reference::{History, Weights, sigmoid};

/// The branch of a normed row `x`, after the rows of its document that were `history`.
pub(crate) fn mix(model: &Weights, _: &(), x: &[f64], history: &mut History) -> Vec<f64> {
    let v = model.linear("up", x);
    let before = history.rows[0].pop().unwrap_or(vec![0.0; v.len()]);
    let a = model.get("decay").iter().map(|decay| sigmoid(*decay));
    let s: Vec<f64> = a.zip(before).zip(&v).map(|((a, s), v)| a * s + (1.0 - a) * v).collect();
    history.rows[0].push(s.clone());
    model.linear("down", &s)
}
