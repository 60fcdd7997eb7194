//! The delta rule, row by row: with codes of two bits, where the decayed state is read, as ONNX Runtime's `LinearAttention`, which
//! takes all rows at once, else as a `Scan` of core operators.

use super::{Form, Writer};
use crate::config::{DeltaForm, DeltaRule};
use crate::export::onnx::nodes::{Attribute, Type};

impl Writer<'_> {
    pub(super) fn delta(&mut self, x: &str) -> String {
        let c = &self.c.mixers.delta;
        let (published, heads, (dk, dv)) = (c.form == DeltaForm::Published, c.heads, c.widths(self.c.dim));
        let outer = [-1, heads as i64, 1];
        let by_heads = |width: usize| [-1, heads as i64, 1, width as i64];
        let [q, k, v] = [("q", dk), ("k", dk), ("v", dv)].map(|(part, width)| {
            let y = self.own(&format!("{part}_proj"), x);
            let y = self.convolved(&format!("{part}_conv"), &y);
            let y = self.silu(&y);
            self.shaped(&y, &by_heads(width))
        });
        let scale = if published { (dk as f64).powf(-0.5) } else { 1.0 };
        let eps = self.g.float(if published { 1e-6 } else { 1e-24 });
        let [q, k] = [(q, scale), (k, 1.0)].map(|(y, scale)| {
            let sum = self.squares(&y, &outer, dk);
            let sum = self.g.op("Add", &[&sum, &eps]);
            if self.exact() {
                let by = self.over_root(&sum, scale as f32);
                return self.g.op("Mul", &[&y, &by]);
            }
            let root = self.g.op("Sqrt", &[&sum]);
            let y = self.g.op("Div", &[&y, &root]);
            let scale = self.g.float(scale as f32);
            self.g.op("Mul", &[&y, &scale])
        });
        let (rate, beta) = self.gates(x, published, heads);
        let mut beta = self.sigmoid(&beta);
        if c.negative_eigenvalues {
            let two = self.g.float(2.0);
            beta = self.g.op("Mul", &[&beta, &two]);
        }
        let canonical = c.rule == DeltaRule::Canonical;
        let o = if self.form == Form::Int2 && canonical {
            self.linear_attention([&q, &k, &v, &rate, &beta], (heads, dk, dv))
        } else {
            let decay = self.exp(&rate);
            let [decay, beta] = [decay, beta].map(|y| self.shaped(&y, &by_heads(1)));
            self.row_by_row([&q, &k, &v, &decay, &beta], canonical, (heads, dk, dv))
        };
        let gate = self.own("g_proj", x);
        let gate = self.shaped(&gate, &by_heads(dv));
        let (o, gate) = if published {
            let name = self.of("o_norm.scale");
            (self.norm(&name, &o, &outer, c.norm_eps), self.silu(&gate))
        } else {
            (o, self.sigmoid(&gate))
        };
        let m = self.g.op("Mul", &[&o, &gate]);
        let m = self.shaped(&m, &[-1, (heads * dv) as i64]);
        self.own("o_proj", &m)
    }

    /// The logarithm of the decay, and what becomes `beta`, `[T, H]` each.
    fn gates(&mut self, x: &str, published: bool, heads: usize) -> (String, String) {
        if !published {
            let [a, b] = ["gk_proj", "beta_proj"].map(|part| self.own(part, x));
            let a = self.g.op("Neg", &[&a]);
            let (a, by) = (self.softplus(&a), self.g.float(-1.0 / 16.0));
            return (self.g.op("Mul", &[&a, &by]), b);
        }
        let [a, b] = ["a_proj.weight", "b_proj.weight"].map(|part| {
            let name = self.of(part);
            self.float_linear(&name, x)
        });
        let (log, bias) = (self.of("A_log"), self.of("dt_bias"));
        let rate = self.weights[log.as_str()].floats().into_iter().map(|x| -f64::from(x).exp() as f32);
        let rate = self.g.floats(&format!("{log}.rate"), &[heads], &rate.collect::<Vec<_>>());
        let bias = self.floats(&bias, None);
        let a = self.g.op("Add", &[&a, &bias]);
        let a = self.softplus(&a);
        (self.g.op("Mul", &[&a, &rate]), b)
    }

    fn row_by_row(
        &mut self,
        [q, k, v, decay, beta]: [&str; 5],
        canonical: bool,
        (heads, dk, dv): (usize, usize, usize),
    ) -> String {
        let (key, value, one): (&[usize], &[usize], &[usize]) = (&[heads, 1, dk], &[heads, 1, dv], &[heads, 1, 1]);
        let rows = [(q, key), (k, key), (v, value), (decay, one), (beta, one)];
        self.scanned(&[heads, dk, dv], &rows, value, |w, s, rows| {
            let [q, k, v, decay, beta] = [0, 1, 2, 3, 4].map(|i| rows[i].as_str());
            let [down, across] = [k, q].map(|row| w.turned(row, &[0, 2, 1]));
            let decayed = w.g.op("Mul", &[&s, decay]);
            let held = if w.exact() {
                let parts = w.g.op("Mul", &[&s, &down]);
                let held = w.added(&parts, 1, dk);
                if canonical { w.g.op("Mul", &[&held, decay]) } else { held }
            } else {
                w.g.op("MatMul", &[k, if canonical { &decayed } else { &s }])
            };
            let u = w.g.op("Sub", &[v, &held]);
            let u = w.g.op("Mul", &[&u, beta]);
            let written = w.g.op("Mul", &[&down, &u]);
            let s = w.g.op("Add", &[&decayed, &written]);
            let o = if w.exact() {
                let parts = w.g.op("Mul", &[&s, &across]);
                w.added(&parts, 1, dk)
            } else {
                w.g.op("MatMul", &[q, &s])
            };
            (s, o)
        })
    }

    /// All rows by one operator; a document that starts decays what is held to 0.
    fn linear_attention(&mut self, [q, k, v, rate, beta]: [&str; 5], (heads, dk, dv): (usize, usize, usize)) -> String {
        let name = format!("blocks.{}.state", self.block);
        self.state(&name, Type::F32, &[heads, dk, dv]);
        let mut rate = self.shaped(rate, &[1, -1, heads as i64]);
        if let Some(keeps) = self.keeps.clone() {
            let (keeps, zero, gone) = (self.turned(&keeps, &[1, 0, 2]), self.g.float(0.0), self.g.float(-1e4));
            let keeps = self.g.op("Greater", &[&keeps, &zero]);
            rate = self.g.op("Where", &[&keeps, &rate, &gone]);
        }
        let beta = self.shaped(beta, &[1, -1, heads as i64]);
        let [q, k] = [q, k].map(|y| self.shaped(y, &[1, -1, (heads * dk) as i64]));
        let v = self.shaped(v, &[1, -1, (heads * dv) as i64]);
        let s = self.shaped(&name, &[1, heads as i64, dk as i64, dv as i64]);
        let attributes = [
            ("q_num_heads", Attribute::Int(heads as i64)),
            ("kv_num_heads", Attribute::Int(heads as i64)),
            ("update_rule", Attribute::Text("gated_delta")),
            ("scale", Attribute::Float(1.0)),
        ];
        let [o, next] = self.g.ops("LinearAttention", &[&q, &k, &v, &s, &rate, &beta], &attributes);
        let next = self.shaped(&next, &[heads as i64, dk as i64, dv as i64]);
        self.g.named(&format!("next.{name}"), &next);
        self.shaped(&o, &[-1, heads as i64, 1, dv as i64])
    }
}
