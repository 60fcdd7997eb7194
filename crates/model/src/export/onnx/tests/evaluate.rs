//! A reader of ONNX files, and the operators as ONNX defines them, in f64 and i64.

use std::collections::BTreeMap;
use std::rc::Rc;

use flashlm_kernels::Token;

/// A message: field numbers with what they hold.
struct Fields<'a>(Vec<(u64, Field<'a>)>);

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    fn of(mut from: &'a [u8]) -> Self {
        fn varint(from: &mut &[u8]) -> u64 {
            let end = from.iter().position(|byte| byte & 0x80 == 0).unwrap();
            let value = from[..=end].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
            *from = &from[end + 1..];
            value
        }
        let mut all = Vec::new();
        while !from.is_empty() {
            let key = varint(&mut from);
            if key & 7 == 5 {
                let (bits, rest) = from.split_first_chunk().unwrap();
                all.push((key >> 3, Field::Number(u32::from_le_bytes(*bits).into())));
                from = rest;
                continue;
            }
            let number = varint(&mut from);
            all.push((
                key >> 3,
                match key & 7 {
                    0 => Field::Number(number),
                    2 => Field::Bytes(from.split_off(..number as usize).unwrap()),
                    kind => panic!("kind {kind}"),
                },
            ));
        }
        Fields(all)
    }

    fn all(&self, field: u64) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(at, _)| *at == field).map(move |(_, value)| match value {
            Field::Bytes(bytes) => *bytes,
            Field::Number(_) => panic!("field {field}"),
        })
    }

    fn numbers(&self, field: u64) -> Vec<i64> {
        let of = self.0.iter().filter(|(at, _)| *at == field);
        of.map(|(_, value)| if let Field::Number(n) = value { *n as i64 } else { panic!("field {field}") }).collect()
    }

    fn texts(&self, field: u64) -> Vec<String> {
        self.all(field).map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    fn text(&self, field: u64) -> String {
        self.texts(field).remove(0)
    }

    fn one(&self, field: u64) -> Fields<'a> {
        Fields::of(self.all(field).next().unwrap())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum N {
    F(f64),
    /// Of an f64, which is never rounded.
    D(f64),
    I(i64),
}

use N::{D, F, I};

impl N {
    fn f(self) -> f64 {
        if let F(x) | D(x) = self { x } else { panic!("a whole number {self:?}") }
    }

    fn i(self) -> i64 {
        if let I(i) = self { i } else { panic!("a float {self:?}") }
    }

    /// Another float of the same type.
    fn like(self, x: f64) -> N {
        if let D(_) = self { D(x) } else { F(x) }
    }
}

#[derive(Clone, Debug)]
struct Tensor {
    shape: Vec<usize>,
    v: Vec<N>,
}

fn tensor(shape: &[usize], v: Vec<N>) -> Tensor {
    assert_eq!(v.len(), shape.iter().product::<usize>(), "{shape:?}");
    Tensor { shape: shape.to_vec(), v }
}

impl Tensor {
    fn ints(&self) -> Vec<i64> {
        self.v.iter().map(|n| n.i()).collect()
    }

    fn map(&self, f: impl Fn(N) -> N) -> Tensor {
        tensor(&self.shape, self.v.iter().map(|&n| f(n)).collect())
    }

    fn axis(&self, axis: i64) -> usize {
        if axis < 0 { self.shape.len() - axis.unsigned_abs() as usize } else { axis as usize }
    }

    /// Elements before, along and after an axis.
    fn around(&self, axis: usize) -> [usize; 3] {
        [self.shape[..axis].iter().product(), self.shape[axis], self.shape[axis + 1..].iter().product()]
    }

    /// So many along an axis, each from the place that `from` says.
    fn picked(&self, axis: usize, from: &[usize]) -> Tensor {
        let [before, along, after] = self.around(axis);
        let mut shape = self.shape.clone();
        shape[axis] = from.len();
        let mut v = Vec::new();
        for b in 0..before {
            from.iter().for_each(|&at| v.extend(&self.v[(b * along + at) * after..][..after]));
        }
        tensor(&shape, v)
    }

    fn reduced(&self, axis: usize, keep: bool, f: impl Fn(Vec<N>) -> N) -> Tensor {
        let [before, along, after] = self.around(axis);
        let each = (0..before).flat_map(|b| (0..after).map(move |a| (b, a)));
        let v = each.map(|(b, a)| f((0..along).map(|i| self.v[(b * along + i) * after + a]).collect()));
        let v = v.collect();
        let mut shape = self.shape.clone();
        shape[axis] = 1;
        if !keep {
            shape.remove(axis);
        }
        tensor(&shape, v)
    }

    /// The same, broadcast to a shape.
    fn spread(&self, shape: &[usize]) -> Tensor {
        let missing = shape.len() - self.shape.len();
        let own: Vec<usize> = (0..shape.len()).map(|i| if i < missing { 1 } else { self.shape[i - missing] }).collect();
        assert!(own.iter().zip(shape).all(|(o, n)| o == n || *o == 1), "{:?} to {shape:?}", self.shape);
        let v = (0..shape.iter().product()).map(|mut at: usize| {
            let (mut from, mut stride) = (0, 1);
            for (o, n) in own.iter().zip(shape).rev() {
                from += if *o == 1 { 0 } else { at % n * stride };
                (at, stride) = (at / n, stride * o);
            }
            self.v[from]
        });
        tensor(shape, v.collect())
    }
}

fn common(a: &[usize], b: &[usize]) -> Vec<usize> {
    let n = a.len().max(b.len());
    let of = |s: &[usize], i: usize| if i + s.len() < n { 1 } else { s[i + s.len() - n] };
    (0..n).map(|i| if of(a, i) == 1 { of(b, i) } else { of(a, i) }).collect()
}

fn both(a: &Tensor, b: &Tensor, f: impl Fn(N, N) -> N) -> Tensor {
    let shape = common(&a.shape, &b.shape);
    let (a, b) = (a.spread(&shape), b.spread(&shape));
    tensor(&shape, a.v.iter().zip(&b.v).map(|(&a, &b)| f(a, b)).collect())
}

fn sum(all: impl IntoIterator<Item = N>) -> N {
    let plus = |a: N, b: N| match (a, b) {
        (F(a), F(b)) => F(a + b),
        (D(a), D(b)) => D(a + b),
        (I(a), I(b)) => I(a + b),
        _ => panic!("of two types"),
    };
    all.into_iter().reduce(plus).unwrap_or(F(0.0))
}

/// `[.., m, k] [.., k, n]`.
fn product(a: &Tensor, b: &Tensor, f: impl Fn(N, N) -> N) -> Tensor {
    let (al, bl) = (a.shape.len(), b.shape.len());
    let (m, k, n) = (a.shape[al - 2], a.shape[al - 1], b.shape[bl - 1]);
    assert_eq!(b.shape[bl - 2], k);
    let outer = common(&a.shape[..al - 2], &b.shape[..bl - 2]);
    let (a, b) = (a.spread(&[&outer[..], &[m, k]].concat()), b.spread(&[&outer[..], &[k, n]].concat()));
    let mut v = Vec::new();
    for (a, b) in a.v.chunks(m * k).zip(b.v.chunks(k * n)) {
        for row in a.chunks(k) {
            v.extend((0..n).map(|j| sum(row.iter().enumerate().map(|(i, &x)| f(x, b[i * n + j])))));
        }
    }
    tensor(&[&outer[..], &[m, n]].concat(), v)
}

fn transposed(x: &Tensor, perm: &[i64]) -> Tensor {
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape[p as usize]).collect();
    let strides: Vec<usize> = (0..perm.len()).map(|i| x.shape[i + 1..].iter().product()).collect();
    let v = (0..x.v.len()).map(|mut at| {
        let mut from = 0;
        for (&p, n) in perm.iter().zip(&shape).rev() {
            from += at % n * strides[p as usize];
            at /= n;
        }
        x.v[from]
    });
    tensor(&shape, v.collect())
}

type Values = BTreeMap<String, Rc<Tensor>>;

/// `TensorProto`.
fn constant(of: &Fields) -> (String, Tensor) {
    let shape: Vec<usize> = of.numbers(1).iter().map(|&n| n as usize).collect();
    let raw = of.all(9).next().unwrap();
    let v = match of.numbers(2)[0] {
        1 => raw.chunks(4).map(|x| F(f32::from_le_bytes(x.try_into().unwrap()).into())).collect(),
        2 => raw.iter().map(|&x| I(x.into())).collect(),
        7 => raw.chunks(8).map(|x| I(i64::from_le_bytes(x.try_into().unwrap()))).collect(),
        11 => raw.chunks(8).map(|x| D(f64::from_le_bytes(x.try_into().unwrap()))).collect(),
        kind => panic!("type {kind}"),
    };
    (of.text(8), tensor(&shape, v))
}

/// Name and axes of an input or output; -1: any number.
fn described(of: &Fields) -> (String, Vec<i64>) {
    let shape = of.one(2).one(1).one(2);
    let axes = shape.all(1).map(|axis| Fields::of(axis).numbers(1).first().copied().unwrap_or(-1));
    (of.text(1), axes.collect())
}

/// Computes the nodes; `known` are constants, inputs and what is around. With `rounds` each operator's floats are rounded to f32.
fn run(graph: &Fields, known: &mut Values, rounds: bool) {
    for node in graph.all(1).map(Fields::of) {
        let (op, outputs) = (node.text(4), node.texts(2));
        let inputs: Vec<Rc<Tensor>> = node.texts(1).iter().map(|name| known[name].clone()).collect();
        let attributes: BTreeMap<String, Fields> =
            node.all(5).map(|a| (Fields::of(a).text(1), Fields::of(a))).collect();
        let int = |name: &str, default| attributes.get(name).map_or(default, |a| a.numbers(3)[0]);
        let made = match &*op {
            "Split" => {
                let axis = inputs[0].axis(int("axis", 0));
                let each = inputs[0].shape[axis] / outputs.len();
                let part = |i: usize| inputs[0].picked(axis, &(i * each..(i + 1) * each).collect::<Vec<_>>());
                (0..outputs.len()).map(part).collect()
            }
            "Scan" => scan(&attributes["body"].one(6), &inputs, int("num_scan_inputs", 0) as usize, known, rounds),
            "LinearAttention" => {
                assert_eq!(attributes["scale"].numbers(2), vec![i64::from(1.0_f32.to_bits())]);
                linear_attention(&inputs, int("q_num_heads", 0) as usize)
            }
            "ScatterElements" => {
                let by = attributes["reduction"].text(4);
                vec![scattered(&inputs, (&by, int("axis", 0)), rounds)]
            }
            "Sum" => {
                let plus = |a: Tensor, b: &Rc<Tensor>| rounded(both(&a, b, |a, b| a.like(a.f() + b.f())), rounds);
                vec![inputs[1..].iter().fold((*inputs[0]).clone(), plus)]
            }
            _ => vec![one(&op, &inputs, &int, attributes.get("perm").map(|a| a.numbers(8)))],
        };
        assert_eq!(made.len(), outputs.len(), "{op}");
        for (name, value) in outputs.into_iter().zip(made) {
            let value = rounded(value, rounds);
            assert!(known.insert(name.clone(), Rc::new(value)).is_none(), "{name} is made twice");
        }
    }
}

fn rounded(x: Tensor, rounds: bool) -> Tensor {
    if rounds { x.map(|n| if let F(x) = n { F(f64::from(x as f32)) } else { n }) } else { x }
}

/// A state at most, then rows of each input.
fn scan(body: &Fields, inputs: &[Rc<Tensor>], scanned: usize, around: &Values, rounds: bool) -> Vec<Tensor> {
    let (states, rows) = inputs.split_at(inputs.len() - scanned);
    let mut states = states.to_vec();
    let names: Vec<String> = body.all(11).map(|input| Fields::of(input).text(1)).collect();
    let ends: Vec<String> = body.all(12).map(|output| Fields::of(output).text(1)).collect();
    let (next, output) = (&ends[..states.len()], &ends[states.len()]);
    let (mut all, mut shape) = (Vec::new(), Vec::new());
    for t in 0..rows[0].shape[0] {
        let mut known = around.clone();
        known.extend(names.iter().cloned().zip(states));
        for (name, row) in names[next.len()..].iter().zip(rows) {
            let own = row.picked(0, &[t]);
            known.insert(name.clone(), Rc::new(tensor(&own.shape[1..], own.v)));
        }
        run(body, &mut known, rounds);
        states = next.iter().map(|name| known[name].clone()).collect();
        all.extend(&known[output].v);
        shape.clone_from(&known[output].shape);
    }
    shape.insert(0, rows[0].shape[0]);
    let states = states.iter().map(|state| (**state).clone());
    states.chain([tensor(&shape, all)]).collect()
}

/// The rule `gated_delta` as the operator's documentation has it, of one sequence: `S = e^g S + beta k (v - e^g S^T k)`, `o = S^T q`.
fn linear_attention(x: &[Rc<Tensor>], heads: usize) -> Vec<Tensor> {
    let (t, dk, dv) = (x[0].shape[1], x[0].shape[2] / heads, x[2].shape[2] / heads);
    let at = |of: &Tensor, row: usize, h: usize, i: usize, n: usize| of.v[(row * heads + h) * n + i].f();
    let (mut s, mut out) = (x[3].v.iter().map(|n| n.f()).collect::<Vec<_>>(), Vec::new());
    for row in 0..t {
        for h in 0..heads {
            let s = &mut s[h * dk * dv..(h + 1) * dk * dv];
            s.iter_mut().for_each(|s| *s *= at(&x[4], row, h, 0, 1).exp());
            for j in 0..dv {
                let held: f64 = (0..dk).map(|i| s[i * dv + j] * at(&x[1], row, h, i, dk)).sum();
                let u = at(&x[5], row, h, 0, 1) * (at(&x[2], row, h, j, dv) - held);
                (0..dk).for_each(|i| s[i * dv + j] += at(&x[1], row, h, i, dk) * u);
                out.push(F((0..dk).map(|i| s[i * dv + j] * at(&x[0], row, h, i, dk)).sum()));
            }
        }
    }
    vec![tensor(&[1, t, heads * dv], out), tensor(&x[3].shape, s.into_iter().map(F).collect())]
}

/// `x W^T`, two bits to a weight, those of each block with one scale; 2 stands for 0.
fn two_bits(x: &[Rc<Tensor>], int: &dyn Fn(&str, i64) -> i64) -> Tensor {
    let [k, n, block] = ["K", "N", "block_size"].map(|name| int(name, 0) as usize);
    assert_eq!((int("bits", 0), &x[1].shape[..]), (2, &[n, k.div_ceil(block), block / 4][..]));
    let blocks = k.div_ceil(block);
    let w = |o: usize, i: usize| {
        let code = x[1].v[(o * blocks * block + i) / 4].i() >> (2 * (i % 4)) & 3;
        (code - 2) as f64 * x[2].v[o * blocks + i / block].f()
    };
    let w = (0..n).flat_map(|o| (0..k).map(move |i| (o, i))).map(|(o, i)| F(w(o, i))).collect();
    product(&x[0], &transposed(&tensor(&[n, k], w), &[1, 0]), |a, b| F(a.f() * b.f()))
}

/// The columns of each row changed one after the other.
fn scattered(x: &[Rc<Tensor>], (by, axis): (&str, i64), rounds: bool) -> Tensor {
    let [rows, [to, at]] = [[x[0].shape.len(), axis as usize], [x[0].shape[1], x[1].shape[1]]];
    assert!(rows == [2, 1] && x[1].shape == x[2].shape && x[0].shape[0] == x[1].shape[0]);
    let mut out = (*x[0]).clone();
    for (i, (column, what)) in x[1].ints().into_iter().zip(&x[2].v).enumerate() {
        let own = &mut out.v[i / at * to..][..to][column as usize];
        let y = match by {
            "add" => own.f() + what.f(),
            "max" => own.f().max(what.f()),
            other => panic!("by {other}"),
        };
        *own = F(if rounds { f64::from(y as f32) } else { y });
    }
    out
}

fn one(op: &str, x: &[Rc<Tensor>], int: &dyn Fn(&str, i64) -> i64, perm: Option<Vec<i64>>) -> Tensor {
    let float = |f: fn(f64) -> f64| x[0].map(|n| n.like(f(n.f())));
    let floats = |f: fn(f64, f64) -> f64, i: fn(i64, i64) -> i64| {
        both(&x[0], &x[1], |a, b| match (a, b) {
            (F(a), F(b)) => F(f(a, b)),
            (D(a), D(b)) => D(f(a, b)),
            (I(a), I(b)) => I(i(a, b)),
            _ => panic!("{op} of two types"),
        })
    };
    let compared = |f: fn(i64) -> bool| {
        both(&x[0], &x[1], |a, b| match (a, b) {
            (F(a), F(b)) => I(f(a.partial_cmp(&b).unwrap() as i64).into()),
            _ => I(f(a.i().cmp(&b.i()) as i64).into()),
        })
    };
    let reduced = |f: &dyn Fn(Vec<N>) -> N| x[0].reduced(x[0].axis(x[1].ints()[0]), int("keepdims", 1) == 1, f);
    let more = |a: N, b: N| {
        if both(&tensor(&[], vec![a]), &tensor(&[], vec![b]), |a, b| {
            if let (F(a), F(b)) = (a, b) { I((a > b).into()) } else { I((a.i() > b.i()).into()) }
        })
        .v[0]
            == I(1)
        {
            a
        } else {
            b
        }
    };
    match op {
        "Identity" => (*x[0]).clone(),
        "Add" => floats(|a, b| a + b, |a, b| a.checked_add(b).unwrap()),
        "Sub" => floats(|a, b| a - b, |a, b| a.checked_sub(b).unwrap()),
        "Mul" => floats(|a, b| a * b, |a, b| a.checked_mul(b).unwrap()),
        "Div" => floats(|a, b| a / b, |a, b| a / b),
        "Mod" if int("fmod", 0) == 1 => floats(|a, b| a % b, |a, b| a % b),
        "Mod" => floats(|_, _| panic!("of floats"), i64::rem_euclid),
        "Pow" => floats(f64::powf, |_, _| panic!("of whole numbers")),
        "Min" => floats(f64::min, i64::min),
        "Max" => floats(f64::max, i64::max),
        "Clip" => x[0].map(|n| F(n.f().clamp(x[1].v[0].f(), x[2].v[0].f()))),
        "BitwiseXor" => both(&x[0], &x[1], |a, b| I(a.i() ^ b.i())),
        "And" => both(&x[0], &x[1], |a, b| I(a.i() & b.i())),
        "Equal" => compared(|c| c == 0),
        "Greater" => compared(|c| c > 0),
        "LessOrEqual" => compared(|c| c <= 0),
        "GreaterOrEqual" => compared(|c| c >= 0),
        "Neg" => x[0].map(|n| if let F(x) = n { F(-x) } else { I(-n.i()) }),
        "Abs" => float(f64::abs),
        "Sqrt" => float(f64::sqrt),
        "Exp" => float(f64::exp),
        "Log" => float(f64::ln),
        "ConstantOfShape" => {
            let shape: Vec<usize> = x[0].ints().iter().map(|&n| n as usize).collect();
            tensor(&shape, vec![F(0.0); shape.iter().product()])
        }
        "GatherElements" => {
            assert!(int("axis", 0) == 1 && x[0].shape.len() == 2 && x[0].shape[0] == x[1].shape[0]);
            let (of, at) = (x[0].shape[1], x[1].shape[1]);
            let v = x[1].ints().iter().enumerate().map(|(i, &column)| x[0].v[i / at * of + column as usize]).collect();
            tensor(&x[1].shape, v)
        }
        "Tanh" => float(f64::tanh),
        "Cos" => float(f64::cos),
        "Sin" => float(f64::sin),
        "Round" => float(f64::round_ties_even),
        "Relu" => float(|x| x.max(0.0)),
        "Sigmoid" => float(|x| 1.0 / (1.0 + (-x).exp())),
        "Softplus" => float(|x| (1.0 + x.exp()).ln()),
        "Cast" => x[0].map(|n| match (int("to", 0), n) {
            (1, I(i)) => F(i as f64),
            (11, I(i)) => D(i as f64),
            (1, F(x) | D(x)) => F(x),
            (11, F(x) | D(x)) => D(x),
            (7, F(x)) => I(x as i64),
            (2, F(x)) => I(i64::from(x as u8)),
            _ => n,
        }),
        "Where" => {
            let shape = common(&common(&x[0].shape, &x[1].shape), &x[2].shape);
            let all = [0, 1, 2].map(|i| x[i].spread(&shape).v);
            tensor(&shape, (0..all[0].len()).map(|i| if all[0][i] == I(1) { all[1][i] } else { all[2][i] }).collect())
        }
        "Shape" => tensor(&[x[0].shape.len()], x[0].shape.iter().map(|&n| I(n as i64)).collect()),
        "Squeeze" => {
            let gone = x.get(1).map(|axes| axes.ints());
            let stays = |&(i, n): &(usize, usize)| gone.as_ref().map_or(n != 1, |gone| !gone.contains(&(i as i64)));
            let shape = x[0].shape.iter().copied().enumerate().filter(stays).map(|(_, n)| n);
            tensor(&shape.collect::<Vec<_>>(), x[0].v.clone())
        }
        "CumSum" => {
            let mut sum = 0;
            let sums = x[0].v.iter().map(|n| {
                sum += n.i();
                I(sum)
            });
            tensor(&x[0].shape, sums.collect())
        }
        "NonZero" => {
            let at: Vec<N> = (0..x[0].v.len()).filter(|&i| x[0].v[i] != I(0)).map(|i| I(i as i64)).collect();
            tensor(&[1, at.len()], at)
        }
        "MatMulNBits" => two_bits(x, int),
        "DequantizeLinear" => {
            let of = |i: usize| i / x[0].shape[1];
            let all = x[0].v.iter().enumerate().map(|(i, n)| F((n.i() - x[2].v[of(i)].i()) as f64 * x[1].v[of(i)].f()));
            tensor(&x[0].shape, all.collect())
        }
        "Unsqueeze" => {
            let (mut shape, rank) = (x[0].shape.clone(), (x[0].shape.len() + x[1].v.len()) as i64);
            let mut axes: Vec<i64> = x[1].ints().iter().map(|&axis| axis.rem_euclid(rank)).collect();
            axes.sort_unstable();
            axes.iter().for_each(|&axis| shape.insert(axis as usize, 1));
            tensor(&shape, x[0].v.clone())
        }
        "Reshape" => {
            let known: i64 = x[1].ints().iter().filter(|n| **n > 0).product();
            let shape = x[1].ints().into_iter().map(|n| if n < 0 { x[0].v.len() / known as usize } else { n as usize });
            tensor(&shape.collect::<Vec<_>>(), x[0].v.clone())
        }
        "Range" => {
            let v: Vec<N> = (x[0].v[0].i()..x[1].v[0].i()).step_by(x[2].v[0].i() as usize).map(I).collect();
            tensor(&[v.len()], v)
        }
        "ReduceMax" => reduced(&|all| all.into_iter().reduce(more).unwrap()),
        "ReduceSum" => reduced(&|all| sum(all)),
        "ReduceMean" => reduced(&|all| F(all.iter().map(|n| n.f()).sum::<f64>() / all.len() as f64)),
        "Gather" => {
            let n = x[0].shape[0] as i64;
            let rows: Vec<usize> = x[1].ints().iter().map(|&i| if i < 0 { i + n } else { i } as usize).collect();
            tensor(&[&x[1].shape[..], &x[0].shape[1..]].concat(), x[0].picked(0, &rows).v)
        }
        "Slice" => {
            let axis = x[0].axis(x[3].v[0].i());
            let n = x[0].shape[axis] as i64;
            let [from, end] =
                [1, 2].map(|i| x[i].v[0].i()).map(|i| (if i < 0 { i + n } else { i }).clamp(0, n) as usize);
            x[0].picked(axis, &(from..end).collect::<Vec<_>>())
        }
        "Concat" => {
            let axis = x[0].axis(int("axis", 0));
            let (mut shape, mut v) = (x[0].shape.clone(), Vec::new());
            shape[axis] = x.iter().map(|part| part.shape[axis]).sum();
            for b in 0..x[0].around(axis)[0] {
                for part in x {
                    let [_, along, after] = part.around(axis);
                    v.extend(&part.v[b * along * after..][..along * after]);
                }
            }
            tensor(&shape, v)
        }
        "Pad" => {
            let (pads, rank) = (x[1].ints(), x[0].shape.len());
            assert!(pads.len() == 2 * rank && pads[..rank].iter().all(|&n| n == 0));
            let fill = x.get(2).map_or(if let I(_) = x[0].v[0] { I(0) } else { F(0.0) }, |fill| fill.v[0]);
            (0..rank).fold((*x[0]).clone(), |x, axis| {
                let ([before, along, after], more) = (x.around(axis), pads[rank + axis] as usize);
                let mut shape = x.shape.clone();
                shape[axis] += more;
                let part = |b: usize| x.v[b * along * after..(b + 1) * along * after].iter().copied();
                let v = (0..before).flat_map(|b| part(b).chain(std::iter::repeat_n(fill, more * after)));
                tensor(&shape, v.collect())
            })
        }
        "Transpose" => transposed(&x[0], &perm.unwrap()),
        "Gemm" => {
            assert_eq!(int("transB", 0), 1);
            product(&x[0], &transposed(&x[1], &[1, 0]), |a, b| F(a.f() * b.f()))
        }
        "MatMul" => product(&x[0], &x[1], |a, b| F(a.f() * b.f())),
        "MatMulInteger" => product(&x[0], &x[1], |a, b| I((a.i() - x[2].v[0].i()) * (b.i() - x[3].v[0].i()))),
        "Softmax" => {
            let rows = x[0].v.chunks(*x[0].shape.last().unwrap()).flat_map(|row| {
                let most = row.iter().fold(f64::NEG_INFINITY, |m, n| m.max(n.f()));
                let all: f64 = row.iter().map(|n| (n.f() - most).exp()).sum();
                row.iter().map(move |n| F((n.f() - most).exp() / all)).collect::<Vec<_>>()
            });
            tensor(&x[0].shape, rows.collect())
        }
        other => panic!("no operator {other}"),
    }
}

/// A file as it is run: its graph and the states of a sequence.
pub(super) struct Session<'a> {
    graph: Fields<'a>,
    constants: Values,
    states: Values,
    rounds: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        let model = Fields::of(file);
        assert_eq!((model.numbers(1), model.one(8).numbers(2)), (vec![10], vec![21]));
        let graph = model.one(7);
        let constants =
            graph.all(5).map(|of| constant(&Fields::of(of))).map(|(name, of)| (name, Rc::new(of))).collect();
        let mut states: Values = BTreeMap::new();
        for (name, axes) in graph.all(11).map(|of| described(&Fields::of(of))).filter(|(name, _)| name != "ids") {
            let shape: Vec<usize> = axes.iter().map(|&n| n as usize).collect();
            let zero = if matches!(&*name, "past" | "before" | "pointer.tokens") { I(0) } else { F(0.0) };
            states.insert(name, Rc::new(tensor(&shape, vec![zero; shape.iter().product()])));
        }
        Session { graph, constants, states, rounds: false }
    }

    /// With every operator's floats rounded to f32.
    pub(super) fn rounding(self) -> Self {
        Session { rounds: true, ..self }
    }

    pub(super) fn logits(&mut self, tokens: &[Token]) -> Vec<Vec<f64>> {
        let mut known = self.constants.clone();
        known.extend(self.states.clone());
        let ids = tensor(&[1, tokens.len()], tokens.iter().map(|&t| I(t.into())).collect());
        known.insert("ids".into(), Rc::new(ids));
        run(&self.graph, &mut known, self.rounds);
        for (name, axes) in self.graph.all(12).map(|of| described(&Fields::of(of))) {
            let shape = &known[&name].shape;
            assert!(
                shape.len() == axes.len() && shape.iter().zip(&axes).all(|(n, a)| *a == -1 || *n == *a as usize),
                "{name}"
            );
        }
        for (name, state) in &mut self.states {
            *state = known[&format!("next.{name}")].clone();
        }
        let logits = &known["logits"];
        assert_eq!(logits.shape[..2], [1, tokens.len()]);
        logits.v.chunks(logits.shape[2]).map(|row| row.iter().map(|n| n.f()).collect()).collect()
    }
}
