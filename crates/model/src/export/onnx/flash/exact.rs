//! Float functions as the packed runtime has them ([`flashlm_kernels::ops`], `exact`): every product and sum an operator of its own,
//! sums in the same order, so that a runtime which rounds each operator's results to f32 gives the same bits.
//!
//! No operator here may be taken for another: ONNX Runtime makes `x / y` of `(1 / y) x`, which rounds once, not twice; hence
//! `-1 / -y`. Without `int8` these are the plain operators.

use super::{Form, Writer};
use crate::export::onnx::nodes::{Attribute, Type};

/// Lanes of a sum over a row.
const LANES: usize = 16;

/// The polynomial of `exp(r)`, its highest power first.
const POWERS: [f32; 7] = [1.3836846e-3, 8.374816e-3, 4.1668225e-2, 0.1666642, 0.4999999, 1.0, 1.0];

/// The polynomial in `f` of `ln(1 + f)`, its highest power first.
const LOGARITHM: [f32; 9] = [
    7.037_683_6e-2,
    -0.115_146_1,
    0.116_769_99,
    -0.124_201_41,
    0.142_493_23,
    -0.166_680_58,
    0.200_007_15,
    -0.249_999_94,
    0.333_333_3,
];

/// The root of 2, from which on a number is of the next power.
const ROOT: f32 = f32::from_bits(0x3fb5_04f3);

impl Writer<'_> {
    pub(super) fn exact(&self) -> bool {
        self.form == Form::Int8
    }

    pub(super) fn with(&mut self, op: &str, x: &str, by: f32) -> String {
        let by = self.g.float(by);
        self.g.op(op, &[x, &by])
    }

    /// `2^n p(r)`, `x = n ln 2 + r`, of `x` within the range of f32.
    pub(super) fn exp(&mut self, x: &str) -> String {
        if !self.exact() {
            return self.g.op("Exp", &[x]);
        }
        let [low, high] = [-87.33, 88.37].map(|x| self.g.float(x));
        let x = self.g.op("Clip", &[x, &low, &high]);
        let n = self.with("Mul", &x, std::f32::consts::LOG2_E);
        let n = self.g.op("Round", &[&n]);
        let mut r = x;
        for part in [0.693_359_4, -2.121_944_4e-4] {
            let part = self.with("Mul", &n, part);
            r = self.g.op("Sub", &[&r, &part]);
        }
        let mut p = self.with("Mul", &r, POWERS[0]);
        for (i, &power) in POWERS[1..].iter().enumerate() {
            if i > 0 {
                p = self.g.op("Mul", &[&p, &r]);
            }
            p = self.with("Add", &p, power);
        }
        let power = self.power_of_two(&n);
        self.g.op("Mul", &[&p, &power])
    }

    /// `2^n` of whole numbers that are floats.
    fn power_of_two(&mut self, n: &str) -> String {
        // Numbers of rows below 0 count from the end.
        let table: Vec<f32> = (0..128).chain(-126..0).map(|n| 2.0_f32.powi(n)).collect();
        let table = self.g.floats("powers of two", &[table.len()], &table);
        let n = self.cast(n, Type::I64);
        self.g.op("Gather", &[&table, &n])
    }

    /// `ln x` of a normal `x > 0` as the packed runtime has it: `x = 2^n (1 + f)` with `1 + f` between the roots of 1/2 and 2.
    pub(super) fn ln(&mut self, x: &str) -> String {
        // Any logarithm will do: one that is in doubt is of the lower `n`, which is then too low by one at most.
        let n = self.g.op("Log", &[x]);
        let n = self.with("Mul", &n, std::f32::consts::LOG2_E);
        let n = self.with("Sub", &n, 1e-3);
        let n = self.g.op("Round", &[&n]);
        let less = self.g.op("Neg", &[&n]);
        let power = self.power_of_two(&less);
        let y = self.g.op("Mul", &[x, &power]);
        let (half, more, root) = (self.with("Mul", &y, 0.5), self.with("Add", &n, 1.0), self.g.float(ROOT));
        let low = self.g.op("GreaterOrEqual", &[&y, &root]);
        let [y, n] = [(&half, &y), (&more, &n)].map(|(more, own)| self.g.op("Where", &[&low, more, own]));
        let f = self.with("Sub", &y, 1.0);
        let mut p = self.with("Mul", &f, LOGARITHM[0]);
        for (i, &power) in LOGARITHM[1..].iter().enumerate() {
            if i > 0 {
                p = self.g.op("Mul", &[&p, &f]);
            }
            p = self.with("Add", &p, power);
        }
        let square = self.g.op("Mul", &[&f, &f]);
        let parts = [self.with("Mul", &n, -2.121_944_4e-4), self.with("Mul", &square, 0.5)];
        let low = self.g.op("Sub", &[&parts[0], &parts[1]]);
        let cube = self.g.op("Mul", &[&square, &f]);
        let cube = self.g.op("Mul", &[&cube, &p]);
        let low = self.g.op("Add", &[&low, &cube]);
        let low = self.g.op("Add", &[&f, &low]);
        let high = self.with("Mul", &n, 0.693_359_4);
        self.g.op("Add", &[&high, &low])
    }

    pub(super) fn sigmoid(&mut self, x: &str) -> String {
        if !self.exact() {
            return self.g.op("Sigmoid", &[x]);
        }
        let x = self.g.op("Neg", &[x]);
        let (e, minus) = (self.exp(&x), self.g.float(-1.0));
        let e = self.g.op("Sub", &[&minus, &e]);
        self.g.op("Div", &[&minus, &e])
    }

    pub(super) fn softplus(&mut self, x: &str) -> String {
        if !self.exact() {
            return self.g.op("Softplus", &[x]);
        }
        let e = self.g.op("Abs", &[x]);
        let e = self.g.op("Neg", &[&e]);
        let e = self.exp(&e);
        let z = self.with("Add", &e, 2.0);
        let z = self.g.op("Div", &[&e, &z]);
        let z2 = self.g.op("Mul", &[&z, &z]);
        let mut series = self.with("Mul", &z2, 1.0 / 17.0);
        for odd in (1..16_u8).rev().step_by(2) {
            series = self.with("Add", &series, 1.0 / f32::from(odd));
            if odd > 1 {
                series = self.g.op("Mul", &[&series, &z2]);
            }
        }
        let twice = self.with("Mul", &z, 2.0);
        let y = self.g.op("Mul", &[&twice, &series]);
        let most = self.g.op("Relu", &[x]);
        self.g.op("Add", &[&most, &y])
    }

    pub(super) fn tanh(&mut self, x: &str) -> String {
        if !self.exact() {
            return self.g.op("Tanh", &[x]);
        }
        let e = self.with("Mul", x, 2.0);
        let e = self.exp(&e);
        let e = self.with("Add", &e, 1.0);
        let (two, one) = (self.g.float(2.0), self.g.float(1.0));
        let e = self.g.op("Div", &[&two, &e]);
        self.g.op("Sub", &[&one, &e])
    }

    /// `by / sqrt(x)`: the root in f64, whose rounding to f32 is that of the root.
    pub(super) fn over_root(&mut self, x: &str, by: f32) -> String {
        let x = self.cast(x, Type::F64);
        let root = self.g.op("Sqrt", &[&x]);
        let root = self.cast(&root, Type::F32);
        self.over(&root, by)
    }

    /// `by / x`.
    pub(super) fn over(&mut self, x: &str, by: f32) -> String {
        let (x, by) = (self.g.op("Neg", &[x]), self.g.float(-by));
        self.g.op("Div", &[&by, &x])
    }

    /// The sum of `n` parts along an axis, one after the other; the axis stays.
    pub(super) fn added(&mut self, x: &str, axis: i64, n: usize) -> String {
        if n == 1 {
            return x.to_owned();
        }
        let parts = self.parts(x, axis, n);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.g.op("Sum", &parts)
    }

    /// The sum over the last axis, `[outer.., n]` to `[outer.., 1]`: 16 lanes, then halves. `outer` is a shape to take, the first axis -1.
    pub(super) fn summed(&mut self, x: &str, outer: &[i64], n: usize) -> String {
        let (chunks, missing) = (n.div_ceil(LANES), (LANES - n % LANES) % LANES);
        let mut x = self.shaped(x, &[outer, &[n as i64]].concat());
        if missing > 0 {
            let mut pads = vec![0; 2 * outer.len() + 2];
            *pads.last_mut().expect("an axis") = missing as i64;
            let pads = self.g.ints(&pads);
            x = self.g.op("Pad", &[&x, &pads]);
        }
        x = self.shaped(&x, &[outer, &[chunks as i64, LANES as i64]].concat());
        x = self.added(&x, -2, chunks);
        let mut half = LANES / 2;
        while half > 0 {
            let [low, high] = self.split(&x, -1);
            x = self.g.op("Add", &[&low, &high]);
            half /= 2;
        }
        self.shaped(&x, &[outer, &[1]].concat())
    }

    /// `n` parts of an axis.
    pub(super) fn parts(&mut self, x: &str, axis: i64, n: usize) -> Vec<String> {
        let into = [("axis", Attribute::Int(axis)), ("num_outputs", Attribute::Int(n as i64))];
        self.g.many("Split", &[x], &into, n)
    }
}
