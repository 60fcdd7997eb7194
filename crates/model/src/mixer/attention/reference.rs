//! One row of attention in plain loops.

use super::AttentionConfig;
use crate::reference::{History, Weights, dot};

/// The branch of a normed row `x`, after the rows of its document that were `history`.
pub(crate) fn mix(model: &Weights, c: &AttentionConfig, x: &[f64], history: &mut History) -> Vec<f64> {
    let width = x.len() / c.heads;
    let position = history.rows[0].len();
    let turned = |part: &str| -> Vec<f64> {
        let all = model.linear(&format!("{part}_proj"), x);
        let heads = all.chunks(width).flat_map(|head| {
            let x = model.norm(&format!("{part}_norm.scale"), head, 1e-6);
            let half = width / 2;
            let angle = |i: usize| position as f64 * c.rope_base.powf(-2.0 * (i % half) as f64 / width as f64);
            let at = |i: usize| match i < half {
                true => x[i] * angle(i).cos() - x[i + half] * angle(i).sin(),
                false => x[i] * angle(i).cos() + x[i - half] * angle(i).sin(),
            };
            (0..width).map(at).collect::<Vec<f64>>()
        });
        heads.collect()
    };
    let q = turned("q");
    history.rows[0].push(turned("k"));
    history.rows[1].push(model.linear("v_proj", x));
    let first = (position + 1).saturating_sub(c.window);
    let mut o = Vec::new();
    for head in 0..c.heads {
        let own = head * width..(head + 1) * width;
        let score = |k: &Vec<f64>| (dot(&q[own.clone()], &k[own.clone()]) / (width as f64).sqrt()).exp();
        let p: Vec<f64> = history.rows[0][first..].iter().map(score).collect();
        let sum: f64 = p.iter().sum();
        let values = &history.rows[1][first..];
        o.extend(own.clone().map(|i| p.iter().zip(values).map(|(p, v)| p * v[i]).sum::<f64>() / sum));
    }
    model.linear("o_proj", &o)
}
