//! Pointers into the text ([`crate::layer::pointer`]): the scores of each row over the `window` rows before it, from the oldest to the newest,
//! the masses of the tokens after them, and what these add to the logits.

use super::Writer;
use crate::export::onnx::nodes::{Attribute, Type};
use crate::layer::pointer::WORDS;

impl Writer<'_> {
    /// Logits `[T, V]` of the vocabulary and the text from `z`, those of the vocabulary; `x: [T, D]` is the head's input.
    pub(super) fn pointed(&mut self, z: &str, x: &str, tokens: &str) -> String {
        let (d, window) = (self.c.dim, self.c.pointer);
        let [scale, bias] = ["scale", "bias"].map(|name| self.weights[format!("pointer.{name}").as_str()].floats()[0]);
        self.g.scope = "pointer.keys.".into();
        let k = self.pointer_keys(x);
        self.g.scope = "pointer.".into();
        let keys = self.kept("pointer.keys", Type::F32, &k, &[window, d]);
        let own = tokens;
        let tokens = self.kept("pointer.tokens", Type::I64, tokens, &[window]);
        let q = self.with("Mul", x, (f64::from(scale) * (d as f64).powf(-0.5)) as f32);
        // Of each row the numbers of those before it, whether it sees them, and the tokens after them.
        let g = &mut self.g;
        let (zero, one, many, down) = (g.int(0), g.int(1), g.int(window as i64), g.ints(&[1]));
        let counted = g.op("Range", &[&zero, &many, &one]);
        let [rows, past] = [&self.rows, &self.past].map(|of| g.op("Unsqueeze", &[of, &down]));
        let (from, back) = (g.op("Add", &[&rows, &counted]), g.op("Sub", &[&many, &counted]));
        let seen = g.op("GreaterOrEqual", &[&past, &back]);
        let after = g.op("Add", &[&from, &one]);
        let mut next = g.op("Gather", &[&tokens, &after]);
        if self.c.pointer_words {
            next = self.read_as(&next, &tokens, &from, own);
        }
        let s = self.pointer_scores(&q, &keys, &from);
        let s = self.with("Add", &s, bias);
        let (none, last, zero) = (self.g.float(f32::NEG_INFINITY), self.g.ints(&[-1]), self.g.float(0.0));
        let known = self.g.op("Where", &[&seen, &s, &none]);
        let top = self.g.op("ReduceMax", &[&known, &last]);
        let e = self.g.op("Sub", &[&s, &top]);
        let e = self.exp(&e);
        let e = self.g.op("Where", &[&seen, &e, &zero]);
        let shape = self.g.op("Shape", &[z]);
        let zeros = self.g.op("ConstantOfShape", &[&shape]);
        let mass = self.scattered(&zeros, &next, &e, "add");
        if !self.exact() {
            // ln(exp(z) + exp(top) m) is z + softplus(top + ln m - z).
            let log = self.g.op("Log", &[&mass]);
            let log = self.g.op("Add", &[&top, &log]);
            let above = self.g.op("Sub", &[&log, z]);
            let more = self.softplus(&above);
            return self.g.op("Add", &[z, &more]);
        }
        // Of the tokens that are pointed at alone.
        let along = [("axis", Attribute::Int(1))];
        let [own, m] = [z, &mass].map(|of| self.g.op_with("GatherElements", &[of, &next], &along));
        let a = self.g.op("Max", &[&own, &top]);
        let [own, most] = [&own, &top].map(|of| {
            let below = self.g.op("Sub", &[of, &a]);
            self.exp(&below)
        });
        let most = self.g.op("Mul", &[&most, &m]);
        let sum = self.g.op("Add", &[&own, &most]);
        let log = self.ln(&sum);
        let y = self.g.op("Add", &[&a, &log]);
        let y = self.g.op("Where", &[&seen, &y, &none]);
        let pointed = self.g.op("Greater", &[&mass, &zero]);
        let rest = self.g.op("Where", &[&pointed, &none, z]);
        // A token that is pointed at more than once has one logit.
        self.scattered(&rest, &next, &y, "max")
    }

    /// Tokens `next: [T, window]` as the rows read them: as twins where the row's `own` token opens otherwise than that of the row that it points
    /// at, `from` of `tokens`.
    fn read_as(&mut self, next: &str, tokens: &str, from: &str, own: &str) -> String {
        let whole = |x: &f32| *x as i64;
        let [twin, opens] = WORDS.map(|name| self.weights[name].floats().iter().map(whole).collect::<Vec<i64>>());
        let g = &mut self.g;
        let (twin, opens, last) = (g.ints(&twin), g.ints(&opens), g.ints(&[1]));
        let before = g.op("Gather", &[tokens, from]);
        let [before, own] = [&*before, own].map(|of| g.op("Gather", &[&opens, of]));
        let own = g.op("Unsqueeze", &[&own, &last]);
        let alike = g.op("Equal", &[&before, &own]);
        let other = g.op("Gather", &[&twin, next]);
        g.op("Where", &[&alike, next, &other])
    }

    /// `k = x + W x`; in the packed runtime's order a row at a time, as all products of a row are there at once.
    fn pointer_keys(&mut self, x: &str) -> String {
        let (d, name) = (self.c.dim, "pointer.key.weight");
        let k = match self.exact() {
            false => self.float_linear(name, x),
            true => self.each_row(&[(x, Type::F32, &[d])], &[d], |w, rows| {
                let k = w.float_linear(name, &rows[0]);
                w.shaped(&k, &[d as i64])
            }),
        };
        self.g.op("Add", &[&k, x])
    }

    /// Products of each row with the keys of the rows that `from: [T, window]` says; summed in the order of columns.
    fn pointer_scores(&mut self, q: &str, keys: &str, from: &str) -> String {
        let (d, window) = (self.c.dim, self.c.pointer);
        let rows: [(&str, Type, &[usize]); 2] = [(q, Type::F32, &[d]), (from, Type::I64, &[window])];
        self.each_row(&rows, &[window], |w, rows| {
            let (k, q) = (w.g.op("Gather", &[keys, &rows[1]]), w.shaped(&rows[0], &[d as i64, 1]));
            let s = if w.exact() {
                let k = w.turned(&k, &[1, 0]);
                let s = w.g.op("Mul", &[&q, &k]);
                w.added(&s, 0, d)
            } else {
                w.g.op("MatMul", &[&k, &q])
            };
            w.shaped(&s, &[window as i64])
        })
    }

    /// Elements of each row of `to` with those of `what` at the columns `at`, one after the other.
    fn scattered(&mut self, to: &str, at: &str, what: &str, by: &str) -> String {
        let how = [("axis", Attribute::Int(1)), ("reduction", Attribute::Text(by))];
        self.g.op_with("ScatterElements", &[to, at, what], &how)
    }
}
