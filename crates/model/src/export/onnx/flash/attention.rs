//! Attention over the rows of the state and those here. In floats rows are taken in blocks of at most the window, each beside the
//! `window - 1` rows before it, so that memory grows as `T`, not as its square. As the packed runtime has it, one row after the other
//! sees its rows in the order of the runtime's ring ([`flashlm_kernels::ops::exact_attention`]).

use flashlm_kernels::ops::exact_slots;

use super::Writer;
use crate::export::onnx::nodes::{Attribute, Type};
use crate::mixer::attention::turns;

impl Writer<'_> {
    /// `cos` and `sin` of each row's angles, `[T, 1, dh / 2]`.
    fn rotation(&mut self, width: usize) -> [String; 2] {
        if self.exact() {
            let cos = self.once("cos".into(), |w| {
                let [cos, sin] = w.turned_digits(width);
                w.shared.insert("sin".into(), sin);
                cos
            });
            return [cos, self.shared["sin"].clone()];
        }
        let base = self.c.mixers.attention.rope_base;
        // Multiples of a turn are taken off in f64, as positions have no end.
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
        ["Cos", "Sin"].map(|of| self.once(of.to_owned(), |w| w.g.op(of, &[&angles])))
    }

    /// The rotation by a position's hexadecimal digits, one after the other, in f64.
    fn turned_digits(&mut self, width: usize) -> [String; 2] {
        let (half, all) = (width / 2, turns(width, self.c.mixers.attention.rope_base));
        let places = all.len() / (16 * half);
        let (powers, starts): (Vec<i64>, Vec<i64>) =
            (0..places as u32).map(|i| (16_i64.pow(i), 16 * i64::from(i))).unzip();
        let (past, down, sixteen) = (self.past.clone(), self.g.ints(&[1]), self.g.int(16));
        let (powers, starts) = (self.g.ints(&powers), self.g.ints(&starts));
        let past = self.g.op("Unsqueeze", &[&past, &down]);
        let digits = self.g.op("Div", &[&past, &powers]);
        let digits = self.g.op("Mod", &[&digits, &sixteen]);
        let rows = self.g.op("Add", &[&digits, &starts]);
        let [cosines, sines] = [("cosines", 0), ("sines", 1)].map(|(name, part)| {
            let bytes = || all.iter().flat_map(|turn| turn[part].to_le_bytes()).collect();
            let table = self.g.constant(name, Type::F64, &[16 * places, half], bytes);
            let turns = self.g.op("Gather", &[&table, &rows]);
            self.parts(&turns, 1, places)
        });
        let (mut c, mut s) = (cosines[0].clone(), sines[0].clone());
        for (cosine, sine) in cosines[1..].iter().zip(&sines[1..]) {
            let g = &mut self.g;
            let parts = [(&c, cosine), (&s, sine), (&s, cosine), (&c, sine)].map(|(x, by)| g.op("Mul", &[x, by]));
            c = g.op("Sub", &[&parts[0], &parts[1]]);
            s = g.op("Add", &[&parts[2], &parts[3]]);
        }
        [c, s].map(|x| self.cast(&x, Type::F32))
    }

    pub(super) fn attention(&mut self, x: &str) -> String {
        let attention = &self.c.mixers.attention;
        let (heads, window, width) = (attention.heads, attention.window, self.c.dim / attention.heads);
        let by_heads = [-1, heads as i64, width as i64];
        let [q, k] = ["q", "k"].map(|part| {
            let y = self.own(&format!("{part}_proj"), x);
            let y = self.shaped(&y, &by_heads);
            let name = self.of(&format!("{part}_norm.scale"));
            let y = self.norm(&name, &y, &by_heads[..2], 1e-6);
            let [low, high] = self.split(&y, -1);
            let [cos, sin] = self.rotation(width);
            let g = &mut self.g;
            let parts = [(&low, &cos), (&high, &sin), (&high, &cos), (&low, &sin)].map(|(x, by)| g.op("Mul", &[x, by]));
            let (low, high) = (g.op("Sub", &[&parts[0], &parts[1]]), g.op("Add", &[&parts[2], &parts[3]]));
            g.op_with("Concat", &[&low, &high], &[("axis", Attribute::Int(-1))])
        });
        let v = self.own("v_proj", x);
        let v = self.shaped(&v, &by_heads);
        let k = self.with_state("keys", &k, &[window - 1, heads, width]);
        let v = self.with_state("values", &v, &[window - 1, heads, width]);
        let scale = self.g.float((width as f64).powf(-0.5) as f32);
        let q = self.g.op("Mul", &[&q, &scale]);
        let o = if self.exact() { self.in_slots(&q, &k, &v) } else { self.in_blocks(&q, &k, &v) };
        let o = self.shaped(&o, &[-1, self.c.dim as i64]);
        self.own("o_proj", &o)
    }

    /// Blocks of rows, `[blocks, rows, H, dh]`, each with the rows that it may see.
    fn in_blocks(&mut self, q: &str, k: &str, v: &str) -> String {
        let attention = &self.c.mixers.attention;
        let (heads, width, window) = (attention.heads, self.c.dim / attention.heads, attention.window);
        // Rows of a block, and how many the last one lacks.
        let rows = self.once("rows of a block".into(), |w| {
            let (length, most) = (w.g.op("Shape", &[&w.rows]), w.g.ints(&[window as i64]));
            w.g.op("Min", &[&length, &most])
        });
        let missing = self.once("missing".into(), |w| {
            let length = w.g.op("Shape", &[&w.rows]);
            let less = w.g.op("Neg", &[&length]);
            w.g.op("Mod", &[&less, &rows])
        });
        let around = self.once("around".into(), |w| w.around(window, &rows));
        let seen = self.once("seen".into(), |w| w.seen(window, &rows, &missing));
        let tail = self.g.ints(&[0, 0]);
        let zeros = self.g.ints(&[0, 0, 0]);
        let axis = [("axis", Attribute::Int(0))];
        let pads = self.g.op_with("Concat", &[&zeros, &missing, &tail], &axis);
        let q = self.g.op("Pad", &[q, &pads]);
        let (outer, inner) = (self.g.ints(&[-1]), self.g.ints(&[heads as i64, width as i64]));
        let shape = self.g.op_with("Concat", &[&outer, &rows, &inner], &axis);
        let q = self.g.op("Reshape", &[&q, &shape]);
        let (k, v) = (self.g.op("Gather", &[k, &around]), self.g.op("Gather", &[v, &around]));
        let (q, k, v) =
            (self.turned(&q, &[0, 2, 1, 3]), self.turned(&k, &[0, 2, 3, 1]), self.turned(&v, &[0, 2, 1, 3]));
        let (score, none) = (self.g.op("MatMul", &[&q, &k]), self.g.float(f32::NEG_INFINITY));
        let score = self.g.op("Where", &[&seen, &score, &none]);
        let p = self.g.op_with("Softmax", &[&score], &[("axis", Attribute::Int(-1))]);
        let o = self.g.op("MatMul", &[&p, &v]);
        let o = self.turned(&o, &[0, 2, 1, 3]);
        let o = self.shaped(&o, &[-1, heads as i64, width as i64]);
        let (from, length) = (self.g.ints(&[0]), self.g.op("Shape", &[&self.rows]));
        self.g.op("Slice", &[&o, &from, &length, &from])
    }

    /// Of each block the numbers of its rows, those of the state first, and those before: `[blocks, window - 1 + rows]`.
    fn around(&mut self, window: usize, rows: &str) -> String {
        let none = self.g.ints(&[0]);
        let (zero, one, back) = (self.g.int(0), self.g.int(1), self.g.int(window as i64 - 1));
        let length = self.g.op("Shape", &[&self.rows]);
        let (length, rows) = (self.g.op("Squeeze", &[&length, &none]), self.g.op("Squeeze", &[rows, &none]));
        let starts = self.g.op("Range", &[&zero, &length, &rows]);
        let down = self.g.ints(&[1]);
        let starts = self.g.op("Unsqueeze", &[&starts, &down]);
        let count = self.g.op("Add", &[&rows, &back]);
        let own = self.g.op("Range", &[&zero, &count, &one]);
        let all = self.g.op("Add", &[&starts, &own]);
        // Rows of the last block that are not there see any.
        let last = self.g.op("Add", &[&length, &back]);
        let last = self.g.op("Sub", &[&last, &one]);
        self.g.op("Min", &[&all, &last])
    }

    /// Which of these each row sees: `[blocks, 1, rows, window - 1 + rows]`.
    fn seen(&mut self, window: usize, rows: &str, missing: &str) -> String {
        let (none, first, last) = (self.g.ints(&[0]), self.g.int(0), self.g.int(window as i64 - 1));
        let (one, axis) = (self.g.int(1), [("axis", Attribute::Int(0))]);
        let pads = self.g.op_with("Concat", &[&none, missing], &axis);
        let past = self.past.clone();
        let past = self.g.op("Pad", &[&past, &pads]);
        let (outer, each) = (self.g.ints(&[-1, 1]), self.g.ints(&[1]));
        let shape = self.g.op_with("Concat", &[&outer, rows, &each], &axis);
        let past = self.g.op("Reshape", &[&past, &shape]);
        let farthest = self.g.op("Min", &[&past, &last]);
        let rows = self.g.op("Squeeze", &[rows, &none]);
        let own = self.g.op("Range", &[&first, &rows, &one]);
        let own = self.g.op("Add", &[&own, &last]);
        let own = self.g.op("Unsqueeze", &[&own, &each]);
        let count = self.g.op("Add", &[&rows, &last]);
        let keys = self.g.op("Range", &[&first, &count, &one]);
        let back = self.g.op("Sub", &[&own, &keys]);
        let (behind, near) =
            (self.g.op("GreaterOrEqual", &[&back, &first]), self.g.op("LessOrEqual", &[&back, &farthest]));
        self.g.op("And", &[&behind, &near])
    }

    /// One row after the other, over the slots of the ring.
    fn in_slots(&mut self, q: &str, k: &str, v: &str) -> String {
        let attention = &self.c.mixers.attention;
        let (heads, width, window) = (attention.heads, self.c.dim / attention.heads, attention.window);
        let slots = exact_slots(window);
        // How far back the row in each slot is, and whether it is seen; then its number among those of the state and here.
        let back = self.once("back".into(), |w| {
            let (past, down) = (w.past.clone(), w.g.ints(&[1]));
            let past = w.g.op("Unsqueeze", &[&past, &down]);
            let (own, many) = (w.g.ints(&(0..slots as i64).collect::<Vec<_>>()), w.g.int(slots as i64));
            let back = w.g.op("Sub", &[&past, &own]);
            w.g.op("Mod", &[&back, &many])
        });
        let seen = self.once("seen".into(), |w| {
            let (past, down, last) = (w.past.clone(), w.g.ints(&[1]), w.g.int(window as i64 - 1));
            let past = w.g.op("Unsqueeze", &[&past, &down]);
            let farthest = w.g.op("Min", &[&past, &last]);
            w.g.op("LessOrEqual", &[&back, &farthest])
        });
        let from = self.once("from".into(), |w| {
            let (rows, down, last) = (w.rows.clone(), w.g.ints(&[1]), w.g.int(window as i64 - 1));
            let rows = w.g.op("Add", &[&rows, &last]);
            let rows = w.g.op("Unsqueeze", &[&rows, &down]);
            let (from, none) = (w.g.op("Sub", &[&rows, &back]), w.g.int(0));
            w.g.op("Max", &[&from, &none])
        });
        let shape = [heads, width];
        let rows: [(&str, Type, &[usize]); 3] =
            [(q, Type::F32, &shape), (&from, Type::I64, &[slots]), (&seen, Type::Bool, &[slots])];
        self.each_row(&rows, &shape, |w, rows| {
            let (heads, slots_of, wide) = (heads as i64, slots as i64, width as i64);
            let [k, v] = [k, v].map(|all| w.g.op("Gather", &[all, &rows[1]]));
            // [H, dh, slots]: a score is summed in the order of columns.
            let (k, q) = (w.turned(&k, &[1, 2, 0]), w.shaped(&rows[0], &[heads, wide, 1]));
            let score = w.g.op("Mul", &[&q, &k]);
            let score = w.added(&score, 1, width);
            let (none, last, zero) = (w.g.float(f32::NEG_INFINITY), w.g.ints(&[-1]), w.g.float(0.0));
            let known = w.g.op("Where", &[&rows[2], &score, &none]);
            let top = w.g.op("ReduceMax", &[&known, &last]);
            let e = w.g.op("Sub", &[&score, &top]);
            let e = w.exp(&e);
            let e = w.g.op("Where", &[&rows[2], &e, &zero]);
            let sum = w.summed(&e, &[heads, 1], slots);
            let by = w.over(&sum, 1.0);
            // [H, slots, dh]: an output in the order of slots.
            let (v, e) = (w.turned(&v, &[1, 0, 2]), w.shaped(&e, &[heads, slots_of, 1]));
            let o = w.g.op("Mul", &[&e, &v]);
            let o = w.added(&o, 1, slots);
            let o = w.g.op("Mul", &[&o, &by]);
            w.shaped(&o, &[heads, wide])
        })
    }
}
