//! The mixers, each from a normed row `x` to its branch: the formulas of [`crate::mixer`].

use super::Writer;
use crate::export::onnx::nodes::{Attribute, Axis, Graph, Type};

impl Writer<'_> {
    /// Name of a parameter of this block's mixer.
    pub(super) fn of(&self, part: &str) -> String {
        format!("blocks.{}.mixer.{part}", self.block)
    }

    /// A matrix of this block's mixer.
    pub(super) fn own(&mut self, part: &str, x: &str) -> String {
        let name = self.of(part);
        self.linear(&name, x)
    }

    /// The rows here after those of the state, which has so many of them; a state of none is none.
    pub(super) fn with_state(&mut self, part: &str, x: &str, shape: &[usize]) -> String {
        if shape[0] == 0 {
            return x.to_owned();
        }
        let name = format!("blocks.{}.{part}", self.block);
        self.kept(&name, Type::F32, x, shape)
    }

    /// The same of a state of any name and type, of one row or more.
    pub(super) fn kept(&mut self, name: &str, kind: Type, x: &str, shape: &[usize]) -> String {
        self.state(name, kind, shape);
        let all = self.g.op_with("Concat", &[name, x], &[("axis", Attribute::Int(0))]);
        let [from, end, axis] = [-(shape[0] as i64), i64::MAX, 0].map(|i| self.g.ints(&[i]));
        let next = self.g.op("Slice", &[&all, &from, &end, &axis]);
        self.g.named(&format!("next.{name}"), &next);
        all
    }

    pub(super) fn state(&mut self, name: &str, kind: Type, shape: &[usize]) {
        self.g.input(name, kind, &axes(shape));
        self.g.output(&format!("next.{name}"), kind, &axes(shape));
    }

    pub(super) fn once(&mut self, key: String, make: impl FnOnce(&mut Self) -> String) -> String {
        if let Some(made) = self.shared.get(&key) {
            return made.clone();
        }
        let scope = std::mem::take(&mut self.g.scope);
        let made = make(self);
        self.g.scope = scope;
        self.shared.insert(key, made.clone());
        made
    }

    /// `y_t = sum_j taps_j x_(t - K + 1 + j)` in each of `C` channels, over the rows of one document.
    pub(super) fn convolved(&mut self, part: &str, x: &str) -> String {
        let name = self.of(&format!("{part}.weight"));
        let weight = self.weights[name.as_str()];
        let (channels, k) = (weight.shape[0], weight.shape[2]);
        let taps = weight.floats();
        let turned: Vec<f32> = (0..k).flat_map(|j| taps.chunks(k).map(move |own| own[j])).collect();
        let taps = self.g.floats(&name, &[k, channels], &turned);
        let all = self.with_state(part, x, &[k - 1, channels]);
        let counted: Vec<i64> = (0..k as i64).collect();
        let at = self.once(format!("rows of {k}"), |w| {
            let (down, counted) = (w.g.ints(&[1]), w.g.ints(&counted));
            let rows = w.g.op("Unsqueeze", &[&w.rows, &down]);
            w.g.op("Add", &[&rows, &counted])
        });
        let mut window = self.g.op("Gather", &[&all, &at]);
        if self.c.reset && k > 1 {
            let back: Vec<i64> = counted.iter().rev().copied().collect();
            let seen = self.once(format!("seen of {k}"), |w| {
                let (down, back, last) = (w.g.ints(&[1]), w.g.ints(&back), w.g.ints(&[-1]));
                let past = w.g.op("Unsqueeze", &[&w.past, &down]);
                let seen = w.g.op("GreaterOrEqual", &[&past, &back]);
                let seen = w.cast(&seen, Type::F32);
                w.g.op("Unsqueeze", &[&seen, &last])
            });
            window = self.g.op("Mul", &[&window, &seen]);
        }
        let (parts, taps_axis) = (self.g.op("Mul", &[&window, &taps]), self.g.ints(&[1]));
        if self.exact() {
            let sum = self.added(&parts, 1, k);
            return self.g.op("Squeeze", &[&sum, &taps_axis]);
        }
        self.g.op_with("ReduceSum", &[&parts, &taps_axis], &[("keepdims", Attribute::Int(0))])
    }

    pub(super) fn conv(&mut self, x: &str) -> String {
        let u = self.own("up", x);
        let [gate, v] = self.split(&u, 1);
        let (y, gate) = (self.convolved("conv", &v), self.sigmoid(&gate));
        let m = self.g.op("Mul", &[&y, &gate]);
        self.own("down", &m)
    }

    pub(super) fn shortconv(&mut self, x: &str) -> String {
        let u = self.own("up", x);
        let [b, c, v] = self.split(&u, 1);
        let v = self.g.op("Mul", &[&b, &v]);
        let y = self.convolved("conv", &v);
        let m = self.g.op("Mul", &[&y, &c]);
        self.own("down", &m)
    }

    /// The state after each row, by `body` of the state and the rows, each with its shape, which gives the next state and an output of
    /// shape `row`; older runtimes want all shapes told.
    pub(super) fn scanned(
        &mut self,
        shape: &[usize],
        rows: &[(&str, &[usize])],
        row: &[usize],
        body: impl FnOnce(&mut Self, String, &[String]) -> (String, String),
    ) -> String {
        let name = format!("blocks.{}.state", self.block);
        self.state(&name, Type::F32, shape);
        let keeps = self.keeps.clone();
        let keeps = keeps.as_deref().map(|keeps| (keeps, &[1, 1][..]));
        let rows: Vec<(&str, &[usize])> = rows.iter().copied().chain(keeps).collect();
        let mut inner = self.g.inner();
        let names: Vec<String> = (0..=rows.len()).map(|i| format!("{}{i}", inner.scope)).collect();
        inner.input(&names[0], Type::F32, &axes(shape));
        names[1..].iter().zip(&rows).for_each(|(name, (_, shape))| inner.input(name, Type::F32, &axes(shape)));
        let mut state = names[0].clone();
        if keeps.is_some() {
            let keep = match shape.len() {
                // [1, 1] of a row beside [D].
                1 => inner.op("Squeeze", &[&names[rows.len()]]),
                _ => names[rows.len()].clone(),
            };
            state = inner.op("Mul", &[&state, &keep]);
        }
        let ends = self.inside(inner, |w| {
            let (state, output) = body(w, state, &names[1..]);
            [("next", state, shape), ("row", output, row)]
        });
        let inputs: Vec<&str> = [name.as_str()].into_iter().chain(rows.iter().map(|row| row.0)).collect();
        let scan = [("num_scan_inputs", Attribute::Int(rows.len() as i64)), ("body", Attribute::Graph(ends))];
        let [next, all] = self.g.ops("Scan", &inputs, &scan);
        self.g.named(&format!("next.{name}"), &next);
        all
    }

    /// An output of shape `row` for each of the rows, which have no state.
    pub(super) fn each_row(
        &mut self,
        rows: &[(&str, Type, &[usize])],
        row: &[usize],
        body: impl FnOnce(&mut Self, &[String]) -> String,
    ) -> String {
        let mut inner = self.g.inner();
        let names: Vec<String> = (0..rows.len()).map(|i| format!("{}{i}", inner.scope)).collect();
        names.iter().zip(rows).for_each(|(name, (_, kind, shape))| inner.input(name, *kind, &axes(shape)));
        let inner = self.inside(inner, |w| [("row", body(w, &names), row)]);
        let inputs: Vec<&str> = rows.iter().map(|row| row.0).collect();
        let scan = [("num_scan_inputs", Attribute::Int(rows.len() as i64)), ("body", Attribute::Graph(inner))];
        self.g.op_with("Scan", &inputs, &scan)
    }

    /// A graph inside this one, by `body`, which gives its outputs with their shapes.
    fn inside<'s, const N: usize>(
        &mut self,
        inner: Graph,
        body: impl FnOnce(&mut Self) -> [(&'static str, String, &'s [usize]); N],
    ) -> Graph {
        let outer = std::mem::replace(&mut self.g, inner);
        for (part, value, shape) in body(self) {
            let name = format!("{}{part}", self.g.scope);
            self.g.named(&name, &value);
            self.g.output(&name, Type::F32, &axes(shape));
        }
        let mut inner = std::mem::replace(&mut self.g, outer);
        self.g.take_constants(&mut inner);
        inner
    }

    pub(super) fn leaky(&mut self, x: &str) -> String {
        let v = self.own("up", x);
        let name = self.of("decay");
        let d = self.c.dim;
        let sigmoid = |decay: f32| 1.0 / (1.0 + (-f64::from(decay)).exp());
        let decay: Vec<f64> = self.weights[name.as_str()].floats().into_iter().map(sigmoid).collect();
        let kept: Vec<f32> = decay.iter().map(|&a| a as f32).collect();
        let taken: Vec<f32> = kept.iter().map(|a| 1.0 - a).collect();
        let kept = self.g.floats(&format!("{name}.kept"), &[d], &kept);
        let taken = self.g.floats(&format!("{name}.taken"), &[d], &taken);
        let v = self.g.op("Mul", &[&v, &taken]);
        let s = self.scanned(&[d], &[(&v, &[d])], &[d], |w, s, rows| {
            let s = w.g.op("Mul", &[&s, &kept]);
            let s = w.g.op("Add", &[&s, &rows[0]]);
            (s.clone(), s)
        });
        self.own("down", &s)
    }
}

fn axes(shape: &[usize]) -> Vec<Axis> {
    shape.iter().map(|&n| Axis::Of(n)).collect()
}
