//! The model as a graph: `T` tokens of one sequence at once, `[T, D]` in the stream.
//!
//! | input | shape | output |
//! |---|---|---|
//! | `ids` | `[1, T]` i64 | `logits` `[1, T, V]` f32 |
//! | `past`, tokens of this text (with `reset`: of this document) before | `[1]` i64 | `next.past` |
//! | `before`, the token before (with `bigram`) | `[1]` i64 | `next.before` |
//! | `blocks.i.conv`, `.q_conv`, `.k_conv`, `.v_conv`: last rows of a convolution | `[K - 1, C]` f32 | `next.` and the name |
//! | `blocks.i.keys`, `.values`: last rows of attention | `[window - 1, H, dh]` f32 | the same |
//! | `blocks.i.state` of `delta` and `leaky` | `[H, dk, dv]`, `[D]` f32 | the same |
//!
//! All states begin as zeros, and the first token is EOS. What a row may see follows from `past` of each row.
//!
//! With `int8` matrices are the packed runtime's: `m = max |x|` of a row, `q = round(127 x / m)`, sums of whole numbers, scales
//! ([`flashlm_kernels::ops::packed_matmul`]). Rows and weights are unsigned with a zero point, which no integer unit saturates at.

use std::collections::BTreeMap;

use super::nodes::{Attribute, Axis, Graph, Type};
use crate::codes::weight::{Codes, Values, Weight};
use crate::config::{ActivationKind, DeltaForm, DeltaRule, ModelConfig};
use crate::export::source::Source;

/// What stands for 0 in rows and tables of bytes.
const ZERO: u8 = 128;

pub(super) struct Writer<'a> {
    g: Graph,
    c: &'a ModelConfig,
    weights: BTreeMap<&'a str, &'a Weight>,
    int8: bool,
    /// Number of the block that is written.
    block: usize,
    /// `[T]`: number of each row here, and the rows of its text before it.
    rows: String,
    past: String,
    /// `[T, 1, 1]`: 0 where a row starts a document, else 1.
    keeps: Option<String>,
    /// What was made once for all blocks, by what it is.
    shared: BTreeMap<String, String>,
}

/// The graph's file.
pub(super) fn file(source: &Source, int8: bool, texts: &[(&str, String)]) -> Vec<u8> {
    let mut w = Writer {
        g: Graph::default(),
        c: &source.config,
        weights: source.weights.iter().map(|weight| (weight.name.as_str(), weight)).collect(),
        int8,
        block: 0,
        rows: String::new(),
        past: String::new(),
        keeps: None,
        shared: BTreeMap::new(),
    };
    w.model();
    w.g.file(texts)
}

impl<'a> Writer<'a> {
    fn model(&mut self) {
        let c = self.c;
        self.g.input("ids", Type::I64, &[Axis::Of(1), Axis::Named("T")]);
        self.g.output("logits", Type::F32, &[Axis::Of(1), Axis::Named("T"), Axis::Of(c.vocab_size)]);
        let flat = self.g.ints(&[-1]);
        let tokens = self.g.op("Reshape", &["ids", &flat]);
        self.places(&tokens);
        let mut h = self.looked_up("embedding.weight", &tokens);
        if c.bigram > 0 {
            let row = self.bigram(&tokens);
            let row = self.looked_up("bigram.weight", &row);
            h = self.g.op("Add", &[&h, &row]);
        }
        let x0 = h.clone();
        for i in 0..c.blocks {
            self.block = i;
            self.g.scope = format!("blocks.{i}.");
            if c.x0 {
                let [r, s] = ["resid_lambda", "x0_lambda"].map(|name| self.floats(&format!("blocks.{i}.{name}"), None));
                let (kept, again) = (self.g.op("Mul", &[&h, &r]), self.g.op("Mul", &[&x0, &s]));
                h = self.g.op("Add", &[&kept, &again]);
            }
            if c.layer_embeddings {
                let row = self.looked_up(&format!("blocks.{i}.embedding.weight"), &tokens);
                h = self.g.op("Add", &[&h, &row]);
            }
            let x = self.norm_if(&format!("blocks.{i}.norm1.scale"), &h);
            let y = match c.mixer_of(i) {
                "conv" => self.conv(&x),
                "shortconv" => self.shortconv(&x),
                "attention" => self.attention(&x),
                "delta" => self.delta(&x),
                _ => self.leaky(&x),
            };
            h = self.g.op("Add", &[&h, &y]);
            let x = self.norm_if(&format!("blocks.{i}.norm2.scale"), &h);
            let [gate, up] = ["W_gate", "W_up"].map(|name| self.linear(&format!("blocks.{i}.ffn.{name}"), &x));
            let gate = match c.activation {
                ActivationKind::Silu => self.silu(&gate),
                ActivationKind::Relu2 => {
                    let gate = self.g.op("Relu", &[&gate]);
                    self.g.op("Mul", &[&gate, &gate])
                }
            };
            let a = self.g.op("Mul", &[&gate, &up]);
            let y = self.linear(&format!("blocks.{i}.ffn.W_down"), &a);
            h = self.g.op("Add", &[&h, &y]);
        }
        self.g.scope.clear();
        let x = self.norm_if("final_norm.scale", &h);
        let mut z = self.linear("embedding", &x);
        if c.logit_softcap > 0.0 {
            let cap = self.g.float(c.logit_softcap as f32);
            z = self.g.op("Div", &[&z, &cap]);
            z = self.g.op("Tanh", &[&z]);
            z = self.g.op("Mul", &[&z, &cap]);
        }
        let first = self.g.ints(&[0]);
        let z = self.g.op("Unsqueeze", &[&z, &first]);
        self.g.named("logits", &z);
    }

    /// Rows here, and of each the rows of its text before it.
    fn places(&mut self, tokens: &str) {
        let g = &mut self.g;
        g.input("past", Type::I64, &[Axis::Of(1)]);
        g.output("next.past", Type::I64, &[Axis::Of(1)]);
        let length = g.op("Shape", &[tokens]);
        let (zero, one, length) = (g.int(0), g.int(1), g.op("Squeeze", &[&length]));
        self.rows = g.op("Range", &[&zero, &length, &one]);
        self.past = if self.c.reset {
            // The last row up to each that starts a document; rows before these have negative numbers.
            let eos = g.int(self.c.eos as i64);
            let (starts, first) = (g.op("Equal", &[tokens, &eos]), g.ints(&[0]));
            let (across, down) = (g.op("Unsqueeze", &[&self.rows, &first]), g.ints(&[1]));
            let column = g.op("Unsqueeze", &[&self.rows, &down]);
            let earlier = g.op("LessOrEqual", &[&across, &column]);
            let (earlier, before) = (g.op("And", &[&earlier, &starts]), g.op("Neg", &["past"]));
            let start = g.op("Where", &[&earlier, &across, &before]);
            let start = g.op_with("ReduceMax", &[&start, &down], &[("keepdims", Attribute::Int(0))]);
            g.op("Sub", &[&self.rows, &start])
        } else {
            g.op("Add", &[&self.rows, "past"])
        };
        let last = g.ints(&[-1]);
        let next = g.op("Gather", &[&self.past, &last]);
        let next = g.op("Add", &[&next, &one]);
        g.named("next.past", &next);
        if self.c.reset {
            let keeps = g.op("Greater", &[&self.past, &zero]);
            let (keeps, axes) = (self.cast(&keeps, Type::F32), self.g.ints(&[1, 2]));
            self.keeps = Some(self.g.op("Unsqueeze", &[&keeps, &axes]));
        }
    }

    /// The row of each token and the one before: see [`crate::layer::bigram`].
    fn bigram(&mut self, tokens: &str) -> String {
        let g = &mut self.g;
        g.input("before", Type::I64, &[Axis::Of(1)]);
        g.output("next.before", Type::I64, &[Axis::Of(1)]);
        let [zero, last] = [0, -1].map(|i| g.ints(&[i]));
        let next = g.op("Gather", &[tokens, &last]);
        g.named("next.before", &next);
        let earlier = g.op("Slice", &[tokens, &zero, &last, &zero]);
        let before = g.op_with("Concat", &["before", &earlier], &[("axis", Attribute::Int(0))]);
        let [none, eos] = [0, self.c.eos as i64].map(|i| g.int(i));
        let starts = g.op("Equal", &[&self.past, &none]);
        let before = g.op("Where", &[&starts, &eos, &before]);
        let [half, whole] = [1 << 16, 1_i64 << 32].map(|i| g.int(i));
        let before = g.op("Mul", &[&before, &half]);
        let mut x = g.op("Add", &[&before, tokens]);
        // The second factor is less 2^32, so that products stay below 2^63.
        for (shift, by) in [(16, 0x7feb_352d), (15, 0x846c_a68b - (1_i64 << 32)), (16, 1)] {
            let shift = g.int(1 << shift);
            let high = g.op("Div", &[&x, &shift]);
            x = g.op("BitwiseXor", &[&x, &high]);
            if by != 1 {
                let by = g.int(by);
                x = g.op("Mul", &[&x, &by]);
                x = g.op("Mod", &[&x, &whole]);
            }
        }
        let rows = g.int(self.c.bigram as i64);
        x = g.op("Mul", &[&x, &rows]);
        g.op("Div", &[&x, &whole])
    }

    fn cast(&mut self, x: &str, to: Type) -> String {
        self.g.op_with("Cast", &[x], &[("to", Attribute::Int(to as i64))])
    }

    /// A parameter as floats, in another shape where one is given.
    fn floats(&mut self, name: &str, shape: Option<&[usize]>) -> String {
        let weight = self.weights[name];
        self.g.constant(name, Type::F32, shape.unwrap_or(&weight.shape), || {
            weight.floats().iter().flat_map(|x| x.to_le_bytes()).collect()
        })
    }

    fn codes(&self, name: &str) -> (&'a Codes, u8) {
        match &self.weights[name].values {
            Values::Ternary(codes) => (codes, 1),
            Values::Bytes(codes) => (codes, ZERO),
            Values::Floats(_) => unreachable!("a matrix of codes"),
        }
    }

    /// Rows of a table.
    fn looked_up(&mut self, name: &str, rows: &str) -> String {
        if !self.int8 {
            let table = self.floats(name, None);
            return self.g.op("Gather", &[&table, rows]);
        }
        let (table, scales) = self.table(name);
        let (codes, scales) = (self.g.op("Gather", &[&table, rows]), self.g.op("Gather", &[&scales, rows]));
        let (codes, zero) = (self.cast(&codes, Type::F32), self.g.float(ZERO.into()));
        let codes = self.g.op("Sub", &[&codes, &zero]);
        self.g.op("Mul", &[&codes, &scales])
    }

    /// Bytes `[rows, D]` and scales `[rows, 1]`.
    fn table(&mut self, name: &str) -> (String, String) {
        let weight = self.weights[name];
        let Values::Bytes(codes) = &weight.values else { unreachable!("a table of bytes") };
        let table = self.g.constant(&format!("{name}.codes"), Type::U8, &weight.shape, || {
            codes.codes.iter().map(|&code| code as u8 ^ ZERO).collect()
        });
        (table, self.g.floats(&format!("{name}.scales"), &[codes.scales.len(), 1], &codes.scales))
    }

    /// `x / sqrt(mean(x^2) + eps) * scale` over the last axis.
    fn norm(&mut self, name: &str, x: &str, eps: f64) -> String {
        let scale = self.floats(name, None);
        let (two, eps, last) = (self.g.float(2.0), self.g.float(eps as f32), self.g.ints(&[-1]));
        let square = self.g.op("Pow", &[x, &two]);
        let mean = self.g.op("ReduceMean", &[&square, &last]);
        let mean = self.g.op("Add", &[&mean, &eps]);
        let root = self.g.op("Sqrt", &[&mean]);
        let x = self.g.op("Div", &[x, &root]);
        self.g.op("Mul", &[&x, &scale])
    }

    fn norm_if(&mut self, name: &str, x: &str) -> String {
        if self.weights.contains_key(name) { self.norm(name, x, self.c.norm_eps) } else { x.to_owned() }
    }

    /// `x W^T` with the norm that the matrix may have; `[T, inputs]` to `[T, outputs]`.
    fn linear(&mut self, name: &str, x: &str) -> String {
        let x = self.norm_if(&format!("{name}.norm.scale"), x);
        let name = format!("{name}.weight");
        if self.int8 {
            return self.integers(&name, &x);
        }
        self.float_linear(&name, &x)
    }

    fn float_linear(&mut self, name: &str, x: &str) -> String {
        let w = self.floats(name, None);
        self.g.op_with("Gemm", &[x, &w], &[("transB", Attribute::Int(1))])
    }

    /// Rows as bytes, and the step of each, `[T, 1]`.
    fn rounded(&mut self, x: &str) -> (String, String) {
        if let (Some(q), Some(step)) = (self.shared.get(&format!("q {x}")), self.shared.get(&format!("step {x}"))) {
            return (q.clone(), step.clone());
        }
        let g = &mut self.g;
        let [most, least, none, zero] = [127.0, 1e-30, 0.0, f32::from(ZERO)].map(|x| g.float(x));
        let last = g.ints(&[-1]);
        let m = g.op("Abs", &[x]);
        let m = g.op("ReduceMax", &[&m, &last]);
        let (by, some) = (g.op("Div", &[&most, &m]), g.op("Greater", &[&m, &least]));
        let by = g.op("Where", &[&some, &by, &none]);
        let q = g.op("Mul", &[x, &by]);
        let q = g.op("Round", &[&q]);
        let q = g.op("Add", &[&q, &zero]);
        let step = g.op("Div", &[&m, &most]);
        let q = self.cast(&q, Type::U8);
        self.shared.insert(format!("q {x}"), q.clone());
        self.shared.insert(format!("step {x}"), step.clone());
        (q, step)
    }

    fn integers(&mut self, name: &str, x: &str) -> String {
        let (mut q, step) = self.rounded(x);
        let (Codes { codes, scales, inputs, segment }, zero) = self.codes(name);
        let (inputs, segment, outputs) = (*inputs, *segment, codes.len() / inputs);
        let (segments, table) = (inputs.div_ceil(segment), zero == ZERO && inputs <= segment);
        let (w, scales) = if table {
            let (table, scales) = self.table(name);
            let turn = [("perm", Attribute::Ints(&[1, 0]))];
            (self.g.op_with("Transpose", &[&table], &turn), self.g.op_with("Transpose", &[&scales], &turn))
        } else {
            // [segments, segment, outputs], filled up with zeros.
            let at = |s: usize, i: usize, o: usize| {
                let i = s * segment + i;
                if i < inputs { (codes[o * inputs + i] as u8).wrapping_add(zero) } else { zero }
            };
            let all = || {
                let each = (0..segments).flat_map(|s| (0..segment.min(inputs)).map(move |i| (s, i)));
                each.flat_map(|(s, i)| (0..outputs).map(move |o| at(s, i, o))).collect()
            };
            let turned: Vec<f32> =
                (0..segments).flat_map(|s| (0..outputs).map(move |o| scales[o * segments + s])).collect();
            let (width, name) = (segment.min(inputs), name.to_owned());
            let (shape, own) = match segments {
                1 => (vec![width, outputs], vec![1, outputs]),
                _ => (vec![segments, width, outputs], vec![segments, 1, outputs]),
            };
            let w = self.g.constant(&format!("{name}.codes"), Type::U8, &shape, all);
            (w, self.g.floats(&format!("{name}.scales"), &own, &turned))
        };
        let [row_zero, zero] =
            [ZERO, zero].map(|zero| self.g.constant(&format!("zero.{zero}"), Type::U8, &[], || vec![zero]));
        if segments > 1 {
            let key = format!("segments {segment} {q}");
            q = match self.shared.get(&key) {
                Some(q) => q.clone(),
                None => {
                    let missing = segments * segment - inputs;
                    let mut cut = q;
                    if missing > 0 {
                        let pads = self.g.ints(&[0, 0, 0, missing as i64]);
                        cut = self.g.op("Pad", &[&cut, &pads, &row_zero]);
                    }
                    let shape = self.g.ints(&[-1, segments as i64, segment as i64]);
                    let cut = self.g.op("Reshape", &[&cut, &shape]);
                    self.g.op_with("Transpose", &[&cut], &[("perm", Attribute::Ints(&[1, 0, 2]))])
                }
            };
            self.shared.insert(key, q.clone());
        }
        let y = self.g.op("MatMulInteger", &[&q, &w, &row_zero, &zero]);
        let y = self.cast(&y, Type::F32);
        let mut y = self.g.op("Mul", &[&y, &scales]);
        if segments > 1 {
            let first = self.g.ints(&[0]);
            y = self.g.op_with("ReduceSum", &[&y, &first], &[("keepdims", Attribute::Int(0))]);
        }
        self.g.op("Mul", &[&y, &step])
    }

    fn silu(&mut self, x: &str) -> String {
        let gate = self.g.op("Sigmoid", &[x]);
        self.g.op("Mul", &[x, &gate])
    }

    /// Name of a parameter of this block's mixer.
    fn of(&self, part: &str) -> String {
        format!("blocks.{}.mixer.{part}", self.block)
    }

    /// A matrix of this block's mixer.
    fn own(&mut self, part: &str, x: &str) -> String {
        let name = self.of(part);
        self.linear(&name, x)
    }

    /// The rows here after those of the state, which has so many of them; a state of none is none.
    fn with_state(&mut self, part: &str, x: &str, shape: &[usize]) -> String {
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

    fn state(&mut self, name: &str, shape: &[usize]) {
        let axes: Vec<Axis> = shape.iter().map(|&n| Axis::Of(n)).collect();
        self.g.input(name, Type::F32, &axes);
        self.g.output(&format!("next.{name}"), Type::F32, &axes);
    }

    fn once(&mut self, key: String, make: impl FnOnce(&mut Self) -> String) -> String {
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
    fn convolved(&mut self, part: &str, x: &str) -> String {
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

    fn split<const N: usize>(&mut self, x: &str, axis: i64) -> [String; N] {
        self.g.ops("Split", &[x], &[("axis", Attribute::Int(axis)), ("num_outputs", Attribute::Int(N as i64))])
    }

    fn conv(&mut self, x: &str) -> String {
        let u = self.own("up", x);
        let [gate, v] = self.split(&u, 1);
        let (y, gate) = (self.convolved("conv", &v), self.g.op("Sigmoid", &[&gate]));
        let m = self.g.op("Mul", &[&y, &gate]);
        self.own("down", &m)
    }

    fn shortconv(&mut self, x: &str) -> String {
        let u = self.own("up", x);
        let [b, c, v] = self.split(&u, 1);
        let v = self.g.op("Mul", &[&b, &v]);
        let y = self.convolved("conv", &v);
        let m = self.g.op("Mul", &[&y, &c]);
        self.own("down", &m)
    }

    fn shaped(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.g.ints(shape);
        self.g.op("Reshape", &[x, &shape])
    }

    fn turned(&mut self, x: &str, perm: &[i64]) -> String {
        self.g.op_with("Transpose", &[x], &[("perm", Attribute::Ints(perm))])
    }

    /// `cos` or `sin` of each row's angles, `[T, 1, dh / 2]`: multiples of a turn are taken off in f64, as positions have no end.
    fn rotation(&mut self, of: &str, width: usize) -> String {
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
    fn seen(&mut self, window: usize) -> String {
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

    fn attention(&mut self, x: &str) -> String {
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

    /// The state after each row, by `body` of the state and the rows `[T, ...]`, which gives the next state and an output.
    fn scanned(
        &mut self,
        shape: &[usize],
        rows: &[&str],
        body: impl FnOnce(&mut Graph, String, &[String]) -> (String, String),
    ) -> String {
        let name = format!("blocks.{}.state", self.block);
        self.state(&name, shape);
        let rows: Vec<&str> = rows.iter().copied().chain(self.keeps.as_deref()).collect();
        let mut inner = self.g.inner();
        let names: Vec<String> = (0..=rows.len()).map(|i| format!("{}{i}", inner.scope)).collect();
        let axes: Vec<Axis> = shape.iter().map(|&n| Axis::Of(n)).collect();
        inner.input(&names[0], Type::F32, &axes);
        names[1..].iter().for_each(|row| inner.row_input(row));
        let mut state = names[0].clone();
        if self.keeps.is_some() {
            let keep = match shape.len() {
                // [1, 1] of a row beside [D].
                1 => inner.op("Squeeze", &[&names[rows.len()]]),
                _ => names[rows.len()].clone(),
            };
            state = inner.op("Mul", &[&state, &keep]);
        }
        let (state, output) = body(&mut inner, state, &names[1..]);
        let [next, row] = ["next", "row"].map(|part| format!("{}{part}", inner.scope));
        inner.named(&next, &state);
        inner.named(&row, &output);
        inner.output(&next, Type::F32, &axes);
        inner.row_output(&row);
        let inputs: Vec<&str> = [name.as_str()].into_iter().chain(rows.iter().copied()).collect();
        let scan = [("num_scan_inputs", Attribute::Int(rows.len() as i64)), ("body", Attribute::Graph(inner))];
        let [next, all] = self.g.ops("Scan", &inputs, &scan);
        self.g.named(&format!("next.{name}"), &next);
        all
    }

    fn leaky(&mut self, x: &str) -> String {
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
        let s = self.scanned(&[d], &[&v], |g, s, rows| {
            let s = g.op("Mul", &[&s, &kept]);
            let s = g.op("Add", &[&s, &rows[0]]);
            (s.clone(), s)
        });
        self.own("down", &s)
    }

    fn delta(&mut self, x: &str) -> String {
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
        let o = self.scanned(&[heads, dk, dv], &[&q, &k, &v, &decay, &beta], |g, s, rows| {
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
