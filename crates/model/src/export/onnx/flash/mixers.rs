//! The mixers, each from a normed row `x` to its branch: the formulas of [`crate::mixer`].

use super::Writer;
use crate::config::{DeltaForm, DeltaRule};
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
        self.state(&name, shape);
        let all = self.g.op_with("Concat", &[&name, x], &[("axis", Attribute::Int(0))]);
        let [from, end, axis] = [-(shape[0] as i64), i64::MAX, 0].map(|i| self.g.ints(&[i]));
        let next = self.g.op("Slice", &[&all, &from, &end, &axis]);
        self.g.named(&format!("next.{name}"), &next);
        all
    }

    pub(super) fn state(&mut self, name: &str, shape: &[usize]) {
        self.g.input(name, Type::F32, &axes(shape));
        self.g.output(&format!("next.{name}"), Type::F32, &axes(shape));
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
        self.g.op_with("ReduceSum", &[&parts, &taps_axis], &[("keepdims", Attribute::Int(0))])
    }

    pub(super) fn split<const N: usize>(&mut self, x: &str, axis: i64) -> [String; N] {
        self.g.ops("Split", &[x], &[("axis", Attribute::Int(axis)), ("num_outputs", Attribute::Int(N as i64))])
    }

    pub(super) fn conv(&mut self, x: &str) -> String {
        let u = self.own("up", x);
        let [gate, v] = self.split(&u, 1);
        let (y, gate) = (self.convolved("conv", &v), self.g.op("Sigmoid", &[&gate]));
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

    pub(super) fn shaped(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.g.ints(shape);
        self.g.op("Reshape", &[x, &shape])
    }

    pub(super) fn turned(&mut self, x: &str, perm: &[i64]) -> String {
        self.g.op_with("Transpose", &[x], &[("perm", Attribute::Ints(perm))])
    }

    /// `cos` or `sin` of each row's angles, `[T, 1, dh / 2]`: multiples of a turn are taken off in f64, as positions have no end.
    pub(super) fn rotation(&mut self, of: &str, width: usize) -> String {
        let base = self.c.mixers.attention.rope_base;
        let angles = self.once("angles".into(), |w| {
            let double = |x: f64| x.to_le_bytes();
            let rates = (0..width / 2).flat_map(|i| double(base.powf(-2.0 * i as f64 / width as f64)));
            let rates = w.g.constant("rates", Type::F64, &[1, 1, width / 2], || rates.collect());
            let turn = w.g.constant("turn", Type::F64, &[], || double(std::f64::consts::TAU).into());
            let (past, axes) = (w.past.clone(), w.g.ints(&[1, 2]));
            let past = w.cast(&past, Type::F64);
            let past = w.g.op("Unsqueeze", &[&past, &axes]);
            let angles = w.g.op("Mul", &[&past, &rates]);
            let angles = w.g.op_with("Mod", &[&angles, &turn], &[("fmod", Attribute::Int(1))]);
            w.cast(&angles, Type::F32)
        });
        self.once(of.to_owned(), |w| w.g.op(of, &[&angles]))
    }

    /// Which of the rows, those of the state first, each row sees: `[T, window - 1 + T]`.
    pub(super) fn seen(&mut self, window: usize) -> String {
        self.once("seen".into(), |w| {
            let (down, last, none) = (w.g.ints(&[1]), w.g.int(window as i64 - 1), w.g.int(0));
            let own = w.g.op("Add", &[&w.rows, &last]);
            let own = w.g.op("Unsqueeze", &[&own, &down]);
            let (length, one) = (w.g.op("Shape", &[&w.rows]), w.g.int(1));
            let length = w.g.op("Squeeze", &[&length]);
            let length = w.g.op("Add", &[&length, &last]);
            let keys = w.g.op("Range", &[&none, &length, &one]);
            let back = w.g.op("Sub", &[&own, &keys]);
            let past = w.g.op("Unsqueeze", &[&w.past, &down]);
            let farthest = w.g.op("Min", &[&past, &last]);
            let (behind, near) =
                (w.g.op("GreaterOrEqual", &[&back, &none]), w.g.op("LessOrEqual", &[&back, &farthest]));
            w.g.op("And", &[&behind, &near])
        })
    }

    pub(super) fn attention(&mut self, x: &str) -> String {
        let attention = &self.c.mixers.attention;
        let (heads, window, width) = (attention.heads, attention.window, self.c.dim / attention.heads);
        let by_heads = [-1, heads as i64, width as i64];
        let [q, k] = ["q", "k"].map(|part| {
            let y = self.own(&format!("{part}_proj"), x);
            let y = self.shaped(&y, &by_heads);
            let name = self.of(&format!("{part}_norm.scale"));
            let y = self.norm(&name, &y, 1e-6);
            let [low, high] = self.split(&y, -1);
            let [cos, sin] = ["Cos", "Sin"].map(|of| self.rotation(of, width));
            let g = &mut self.g;
            let parts = [(&low, &cos), (&high, &sin), (&high, &cos), (&low, &sin)].map(|(x, by)| g.op("Mul", &[x, by]));
            let (low, high) = (g.op("Sub", &[&parts[0], &parts[1]]), g.op("Add", &[&parts[2], &parts[3]]));
            g.op_with("Concat", &[&low, &high], &[("axis", Attribute::Int(-1))])
        });
        let v = self.own("v_proj", x);
        let v = self.shaped(&v, &by_heads);
        let k = self.with_state("keys", &k, &[window - 1, heads, width]);
        let v = self.with_state("values", &v, &[window - 1, heads, width]);
        let (q, k, v) = (self.turned(&q, &[1, 0, 2]), self.turned(&k, &[1, 2, 0]), self.turned(&v, &[1, 0, 2]));
        let scale = self.g.float((width as f64).powf(-0.5) as f32);
        let q = self.g.op("Mul", &[&q, &scale]);
        let (seen, score, none) = (self.seen(window), self.g.op("MatMul", &[&q, &k]), self.g.float(f32::NEG_INFINITY));
        let score = self.g.op("Where", &[&seen, &score, &none]);
        let p = self.g.op_with("Softmax", &[&score], &[("axis", Attribute::Int(-1))]);
        let o = self.g.op("MatMul", &[&p, &v]);
        let o = self.turned(&o, &[1, 0, 2]);
        let o = self.shaped(&o, &[-1, self.c.dim as i64]);
        self.own("o_proj", &o)
    }

    /// The state after each row, by `body` of the state and the rows, each with its shape, which gives the next state and an output of
    /// shape `row`; older runtimes want all shapes told.
    pub(super) fn scanned(
        &mut self,
        shape: &[usize],
        rows: &[(&str, &[usize])],
        row: &[usize],
        body: impl FnOnce(&mut Graph, String, &[String]) -> (String, String),
    ) -> String {
        let name = format!("blocks.{}.state", self.block);
        self.state(&name, shape);
        let keeps = self.keeps.as_deref().map(|keeps| (keeps, &[1, 1][..]));
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
        let (state, output) = body(&mut inner, state, &names[1..]);
        let [next, each] = ["next", "row"].map(|part| format!("{}{part}", inner.scope));
        inner.named(&next, &state);
        inner.named(&each, &output);
        inner.output(&next, Type::F32, &axes(shape));
        inner.output(&each, Type::F32, &axes(row));
        let inputs: Vec<&str> = [name.as_str()].into_iter().chain(rows.iter().map(|row| row.0)).collect();
        let scan = [("num_scan_inputs", Attribute::Int(rows.len() as i64)), ("body", Attribute::Graph(inner))];
        let [next, all] = self.g.ops("Scan", &inputs, &scan);
        self.g.named(&format!("next.{name}"), &next);
        all
    }

    pub(super) fn leaky(&mut self, x: &str) -> String {
        let v = self.own("up", x);
        let name = self.of("decay");
        let d = self.c.dim;
        let sigmoid = |decay: f32| 1.0 / (1.0 + (-f64::from(decay)).exp());
        let decay: Vec<f64> = self.weights[name.as_str()].floats().into_iter().map(sigmoid).collect();
        let kept: Vec<f32> = decay.iter().map(|&a| a as f32).collect();
        let taken: Vec<f32> = decay.iter().map(|&a| (1.0 - a) as f32).collect();
        let kept = self.g.floats(&format!("{name}.kept"), &[d], &kept);
        let taken = self.g.floats(&format!("{name}.taken"), &[d], &taken);
        let v = self.g.op("Mul", &[&v, &taken]);
        let s = self.scanned(&[d], &[(&v, &[d])], &[d], |g, s, rows| {
            let s = g.op("Mul", &[&s, &kept]);
            let s = g.op("Add", &[&s, &rows[0]]);
            (s.clone(), s)
        });
        self.own("down", &s)
    }

    pub(super) fn delta(&mut self, x: &str) -> String {
        let c = &self.c.mixers.delta;
        let (published, heads, (dk, dv)) = (c.form == DeltaForm::Published, c.heads, c.widths(self.c.dim));
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
            let (last, g) = (self.g.ints(&[-1]), &mut self.g);
            let square = g.op("Mul", &[&y, &y]);
            let sum = g.op("ReduceSum", &[&square, &last]);
            let sum = g.op("Add", &[&sum, &eps]);
            let root = g.op("Sqrt", &[&sum]);
            let y = g.op("Div", &[&y, &root]);
            let scale = g.float(scale as f32);
            g.op("Mul", &[&y, &scale])
        });
        let (decay, beta) = if published {
            let [a, b] = ["a_proj.weight", "b_proj.weight"].map(|part| {
                let name = self.of(part);
                self.float_linear(&name, x)
            });
            let (log, bias) = (self.of("A_log"), self.of("dt_bias"));
            let rate = self.weights[log.as_str()].floats().into_iter().map(|x| -f64::from(x).exp() as f32);
            let rate = self.g.floats(&format!("{log}.rate"), &[heads], &rate.collect::<Vec<_>>());
            let bias = self.floats(&bias, None);
            let a = self.g.op("Add", &[&a, &bias]);
            let a = self.g.op("Softplus", &[&a]);
            (self.g.op("Mul", &[&a, &rate]), b)
        } else {
            let [a, b] = ["gk_proj", "beta_proj"].map(|part| self.own(part, x));
            let a = self.g.op("Neg", &[&a]);
            let (a, by) = (self.g.op("Softplus", &[&a]), self.g.float(-1.0 / 16.0));
            (self.g.op("Mul", &[&a, &by]), b)
        };
        let (decay, mut beta) = (self.g.op("Exp", &[&decay]), self.g.op("Sigmoid", &[&beta]));
        if c.negative_eigenvalues {
            let two = self.g.float(2.0);
            beta = self.g.op("Mul", &[&beta, &two]);
        }
        let [decay, beta] = [decay, beta].map(|y| self.shaped(&y, &by_heads(1)));
        let canonical = c.rule == DeltaRule::Canonical;
        let (key, value, one): (&[usize], &[usize], &[usize]) = (&[heads, 1, dk], &[heads, 1, dv], &[heads, 1, 1]);
        let rows = [(q.as_str(), key), (&k, key), (&v, value), (&decay, one), (&beta, one)];
        let o = self.scanned(&[heads, dk, dv], &rows, value, |g, s, rows| {
            let [q, k, v, decay, beta] = [0, 1, 2, 3, 4].map(|i| rows[i].as_str());
            let decayed = g.op("Mul", &[&s, decay]);
            let held = g.op("MatMul", &[k, if canonical { &decayed } else { &s }]);
            let u = g.op("Sub", &[v, &held]);
            let u = g.op("Mul", &[&u, beta]);
            let turned = g.op_with("Transpose", &[k], &[("perm", Attribute::Ints(&[0, 2, 1]))]);
            let written = g.op("Mul", &[&turned, &u]);
            let s = g.op("Add", &[&decayed, &written]);
            let o = g.op("MatMul", &[q, &s]);
            (s, o)
        });
        let gate = self.own("g_proj", x);
        let gate = self.shaped(&gate, &by_heads(dv));
        let (o, gate) = if published {
            let name = self.of("o_norm.scale");
            (self.norm(&name, &o, c.norm_eps), self.silu(&gate))
        } else {
            (o, self.g.op("Sigmoid", &[&gate]))
        };
        let m = self.g.op("Mul", &[&o, &gate]);
        let m = self.shaped(&m, &[-1, (heads * dv) as i64]);
        self.own("o_proj", &m)
    }
}

fn axes(shape: &[usize]) -> Vec<Axis> {
    shape.iter().map(|&n| Axis::Of(n)).collect()
}
