//! One row of the gated delta rule in plain loops.

use super::{DeltaConfig, DeltaForm, DeltaRule};
use crate::reference::{History, Weights, dot, sigmoid, softplus};

/// The branch of a normed row `x`, after the rows of its document that were `history`.
pub(crate) fn mix(model: &Weights, c: &DeltaConfig, x: &[f64], history: &mut History) -> Vec<f64> {
    let published = c.form == DeltaForm::Published;
    let (dk, dv) = c.widths(x.len());
    let [q, k, v] = [(0, "q"), (1, "k"), (2, "v")].map(|(i, part)| -> Vec<f64> {
        history.rows[i].push(model.linear(&format!("{part}_proj"), x));
        let y = model.conv(&format!("{part}_conv.weight"), &history.rows[i]);
        y.iter().map(|y| y * sigmoid(*y)).collect()
    });
    let unit = |x: &[f64], scale: f64| -> Vec<f64> {
        let r = scale / (dot(x, x) + if published { 1e-6 } else { 1e-24 }).sqrt();
        x.iter().map(|x| x * r).collect()
    };
    let (g, beta): (Vec<f64>, Vec<f64>) = if published {
        let (rate, bias) = (model.get("A_log"), model.get("dt_bias"));
        let a = model.float("a_proj", x);
        let g = (0..c.heads).map(|h| -rate[h].exp() * softplus(a[h] + bias[h])).collect();
        (g, model.float("b_proj", x))
    } else {
        let a = model.linear("gk_proj", x);
        (a.iter().map(|a| sigmoid(*a).ln() / 16.0).collect(), model.linear("beta_proj", x))
    };
    let strength = if c.negative_eigenvalues { 2.0 } else { 1.0 };
    history.s.resize(c.heads, vec![vec![0.0; dv]; dk]);
    let gate = model.linear("g_proj", x);
    let mut m = Vec::new();
    for head in 0..c.heads {
        let q = unit(&q[head * dk..][..dk], if published { (dk as f64).powf(-0.5) } else { 1.0 });
        let k = unit(&k[head * dk..][..dk], 1.0);
        let (s, alpha, beta) = (&mut history.s[head], g[head].exp(), strength * sigmoid(beta[head]));
        let before = if c.rule == DeltaRule::Canonical { alpha } else { 1.0 };
        let held = |j: usize| (0..dk).map(|i| s[i][j] * k[i]).sum::<f64>() * before;
        let u: Vec<f64> = (0..dv).map(|j| beta * (v[head * dv + j] - held(j))).collect();
        (0..dk).for_each(|i| (0..dv).for_each(|j| s[i][j] = alpha * s[i][j] + k[i] * u[j]));
        let o: Vec<f64> = (0..dv).map(|j| (0..dk).map(|i| s[i][j] * q[i]).sum()).collect();
        let gate = &gate[head * dv..][..dv];
        if published {
            let o = model.norm("o_norm.scale", &o, c.norm_eps);
            m.extend(o.iter().zip(gate).map(|(o, g)| o * g * sigmoid(*g)));
        } else {
            m.extend(o.iter().zip(gate).map(|(o, g)| o * sigmoid(*g)));
        }
    }
    model.linear("o_proj", &m)
}
