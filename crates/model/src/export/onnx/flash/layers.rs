//! Tables, norms and matrices, in floats or, with `int8`, as the packed runtime has them: `m = max |x|` of a row, `q = round(127 x / m)`, sums of
//! whole numbers, scales ([`flashlm_kernels::ops::packed_matmul`]). Rows and weights are unsigned with a zero point, which no integer unit
//! saturates at.

use super::{Form, Writer, block_of};
use crate::codes::weight::{Codes, Values};
use crate::export::onnx::nodes::{Attribute, Type};

/// What stands for 0 in rows and tables of bytes.
const ZERO: u8 = 128;

impl<'a> Writer<'a> {
    pub(super) fn cast(&mut self, x: &str, to: Type) -> String {
        self.g.op_with("Cast", &[x], &[("to", Attribute::Int(to as i64))])
    }

    pub(super) fn split<const N: usize>(&mut self, x: &str, axis: i64) -> [String; N] {
        self.g.ops("Split", &[x], &[("axis", Attribute::Int(axis)), ("num_outputs", Attribute::Int(N as i64))])
    }

    pub(super) fn shaped(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.g.ints(shape);
        self.g.op("Reshape", &[x, &shape])
    }

    pub(super) fn turned(&mut self, x: &str, perm: &[i64]) -> String {
        self.g.op_with("Transpose", &[x], &[("perm", Attribute::Ints(perm))])
    }

    /// A parameter as floats, in another shape where one is given.
    pub(super) fn floats(&mut self, name: &str, shape: Option<&[usize]>) -> String {
        let weight = self.weights[name];
        self.g.constant(name, Type::F32, shape.unwrap_or(&weight.shape), || {
            weight.floats().iter().flat_map(|x| x.to_le_bytes()).collect()
        })
    }

    pub(super) fn codes(&self, name: &str) -> (&'a Codes, u8) {
        match &self.weights[name].values {
            Values::Ternary(codes) => (codes, 1),
            Values::Bytes(codes) => (codes, ZERO),
            Values::Floats(_) => unreachable!("a matrix of codes"),
        }
    }

    /// Rows of a table.
    pub(super) fn looked_up(&mut self, name: &str, rows: &str) -> String {
        if self.form == Form::F32 {
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
    pub(super) fn table(&mut self, name: &str) -> (String, String) {
        let weight = self.weights[name];
        let Values::Bytes(codes) = &weight.values else { unreachable!("a table of bytes") };
        let table = self.g.constant(&format!("{name}.codes"), Type::U8, &weight.shape, || {
            codes.codes.iter().map(|&code| code as u8 ^ ZERO).collect()
        });
        (table, self.g.floats(&format!("{name}.scales"), &[codes.scales.len(), 1], &codes.scales))
    }

    /// The sum of squares over the last axis, of width `n`; the axes before are `outer`.
    pub(super) fn squares(&mut self, x: &str, outer: &[i64], n: usize) -> String {
        let square = self.g.op("Mul", &[x, x]);
        if self.exact() {
            return self.summed(&square, outer, n);
        }
        let last = self.g.ints(&[-1]);
        self.g.op("ReduceSum", &[&square, &last])
    }

    /// `x / sqrt(mean(x^2) + eps) * scale` over the last axis; the axes before are `outer`.
    pub(super) fn norm(&mut self, name: &str, x: &str, outer: &[i64], eps: f64) -> String {
        let scale = self.floats(name, None);
        if self.exact() {
            let width = self.weights[name].shape[0];
            let (sum, n, eps) = (self.squares(x, outer, width), self.g.float(width as f32), self.g.float(eps as f32));
            let mean = self.g.op("Div", &[&sum, &n]);
            let mean = self.g.op("Add", &[&mean, &eps]);
            let by = self.over_root(&mean, 1.0);
            let x = self.g.op("Mul", &[x, &by]);
            return self.g.op("Mul", &[&x, &scale]);
        }
        let (two, eps, last) = (self.g.float(2.0), self.g.float(eps as f32), self.g.ints(&[-1]));
        let square = self.g.op("Pow", &[x, &two]);
        let mean = self.g.op("ReduceMean", &[&square, &last]);
        let mean = self.g.op("Add", &[&mean, &eps]);
        let root = self.g.op("Sqrt", &[&mean]);
        let x = self.g.op("Div", &[x, &root]);
        self.g.op("Mul", &[&x, &scale])
    }

    pub(super) fn norm_if(&mut self, name: &str, x: &str) -> String {
        if self.weights.contains_key(name) { self.norm(name, x, &[-1], self.c.norm_eps) } else { x.to_owned() }
    }

    /// `x W^T` with the norm that the matrix may have; `[T, inputs]` to `[T, outputs]`.
    pub(super) fn linear(&mut self, name: &str, x: &str) -> String {
        let x = self.norm_if(&format!("{name}.norm.scale"), x);
        let name = format!("{name}.weight");
        match self.form {
            Form::F32 => self.float_linear(&name, &x),
            Form::Int8 => self.integers(&name, &x),
            Form::Int2 => self.two_bits(&name, &x),
        }
    }

    /// `x W^T` of a matrix that is floats, or is taken as floats.
    pub(super) fn float_linear(&mut self, name: &str, x: &str) -> String {
        let w = self.floats(name, None);
        if self.exact() {
            let (outputs, inputs) = (self.weights[name].shape[0], self.weights[name].shape[1]);
            let row = self.shaped(x, &[-1, 1, inputs as i64]);
            let parts = self.g.op("Mul", &[&row, &w]);
            let sums = self.summed(&parts, &[-1, outputs as i64], inputs);
            return self.shaped(&sums, &[-1, outputs as i64]);
        }
        self.g.op_with("Gemm", &[x, &w], &[("transB", Attribute::Int(1))])
    }

    /// Rows as bytes, and the step of each, `[T, 1]`.
    pub(super) fn rounded(&mut self, x: &str) -> (String, String) {
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

    pub(super) fn integers(&mut self, name: &str, x: &str) -> String {
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
            let (sum, first) = (self.added(&y, 0, segments), self.g.ints(&[0]));
            y = self.g.op("Squeeze", &[&sum, &first]);
        }
        self.g.op("Mul", &[&y, &step])
    }

    /// Codes of two bits with a scale for each block, or a table of bytes.
    fn two_bits(&mut self, name: &str, x: &str) -> String {
        let (codes, zero) = self.codes(name);
        if zero == ZERO {
            let (table, _) = self.table(name);
            let scales = self.g.floats(&format!("{name}.row"), &[codes.scales.len()], &codes.scales);
            let zeros = self
                .g
                .constant(&format!("{name}.zeros"), Type::U8, &[codes.scales.len()], || vec![ZERO; codes.scales.len()]);
            let w = self.g.op_with("DequantizeLinear", &[&table, &scales, &zeros], &[("axis", Attribute::Int(0))]);
            return self.g.op_with("Gemm", &[x, &w], &[("transB", Attribute::Int(1))]);
        }
        let Codes { codes, scales, inputs, segment } = codes;
        let block = block_of(*inputs, *segment).expect("a model that is not refused");
        let (outputs, blocks) = (codes.len() / inputs, inputs.div_ceil(block));
        let each = if inputs <= segment { blocks } else { segment / block };
        let bytes = || {
            // Without zero points, 2 stands for 0.
            let mut bytes = vec![0b1010_1010_u8; outputs * blocks * block / 4];
            for (at, &code) in codes.iter().enumerate() {
                let i = at / inputs * blocks * block + at % inputs;
                bytes[i / 4] = bytes[i / 4].wrapping_add((code as u8) << (2 * (i % 4)));
            }
            bytes
        };
        let b = self.g.constant(&format!("{name}.codes"), Type::U8, &[outputs, blocks, block / 4], bytes);
        let segments = inputs.div_ceil(*segment);
        let own: Vec<f32> = (0..outputs * blocks).map(|i| scales[i / blocks * segments + i % blocks / each]).collect();
        let own = self.g.floats(&format!("{name}.scales"), &[outputs, blocks], &own);
        let sizes = [("K", *inputs), ("N", outputs), ("bits", 2), ("block_size", block)];
        self.g.op_with("MatMulNBits", &[x, &b, &own], &sizes.map(|(name, n)| (name, Attribute::Int(n as i64))))
    }

    pub(super) fn silu(&mut self, x: &str) -> String {
        let gate = self.sigmoid(x);
        self.g.op("Mul", &[x, &gate])
    }
}
