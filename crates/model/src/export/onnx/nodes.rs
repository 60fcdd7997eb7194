//! A graph of ONNX operators being written: opset 21 and IR 10, which runtimes from 2024 on load. Values are names, given out in the order
//! of the nodes that make them, below the `scope` of the part of the model that they belong to. Source: onnx.proto3 of ONNX 1.16.

use std::collections::BTreeSet;

use crate::io::protobuf::Message;

/// Version of the operators.
const OPSET: u64 = 21;
/// Version of the file's form.
const IR: u64 = 10;

/// Operators of ONNX Runtime's own, and where they are.
const CONTRIBUTED: [&str; 2] = ["MatMulNBits", "LinearAttention"];
const DOMAIN: &str = "com.microsoft";

/// Type of an element, as `TensorProto.DataType` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    F32 = 1,
    U8 = 2,
    I64 = 7,
    Bool = 9,
    F64 = 11,
}

/// An axis of an input or output: so many, or as many as the name says.
#[derive(Clone, Copy)]
pub(super) enum Axis {
    Of(usize),
    Named(&'static str),
}

/// An attribute of a node.
pub(super) enum Attribute<'a> {
    Int(i64),
    Float(f32),
    Text(&'a str),
    Ints(&'a [i64]),
    Graph(Graph),
}

/// Nodes, their constants, inputs and outputs.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) scope: String,
    nodes: Vec<Message>,
    constants: Vec<Message>,
    known: BTreeSet<String>,
    inputs: Vec<Message>,
    outputs: Vec<Message>,
    /// Values so far.
    count: usize,
    /// Whether an operator of [`CONTRIBUTED`] is in it.
    contributed: bool,
}

impl Graph {
    /// A graph inside this one, whose values have names of their own, and which sees the constants of this one.
    pub(super) fn inner(&self) -> Graph {
        Graph { scope: format!("{}body.", self.scope), known: self.known.clone(), ..Graph::default() }
    }

    /// Takes the constants that were first named in a graph inside this one.
    pub(super) fn take_constants(&mut self, inner: &mut Graph) {
        self.constants.append(&mut inner.constants);
        self.known.append(&mut inner.known);
    }

    fn name(&mut self, op: &str) -> String {
        self.count += 1;
        format!("{}{op}_{}", self.scope, self.count)
    }

    /// The one output of a node.
    pub(super) fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.op_with(op, inputs, &[])
    }

    pub(super) fn op_with(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let [output] = self.ops(op, inputs, attributes);
        output
    }

    /// The outputs of a node.
    pub(super) fn ops<const N: usize>(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> [String; N] {
        let outputs = std::array::from_fn(|_| self.name(op));
        self.node(op, inputs, &outputs, attributes);
        outputs
    }

    /// The same, so many of them.
    pub(super) fn many(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
        n: usize,
    ) -> Vec<String> {
        let outputs: Vec<String> = (0..n).map(|_| self.name(op)).collect();
        self.node(op, inputs, &outputs, attributes);
        outputs
    }

    /// A value under a name of its own.
    pub(super) fn named(&mut self, name: &str, value: &str) {
        self.node("Identity", &[value], &[name.to_owned()], &[]);
    }

    fn node(&mut self, op: &str, inputs: &[&str], outputs: &[String], attributes: &[(&str, Attribute)]) {
        let mut node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
        node = outputs.iter().fold(node, |node, output| node.bytes(2, output));
        node = node.bytes(3, &outputs[0]).bytes(4, op);
        if CONTRIBUTED.contains(&op) {
            self.contributed = true;
            node = node.bytes(7, DOMAIN);
        }
        for (name, value) in attributes {
            let of = Message::default().bytes(1, name);
            let (of, kind) = match value {
                Attribute::Int(i) => (of.varint(3, *i as u64), 2),
                Attribute::Float(x) => (of.float(2, *x), 1),
                Attribute::Text(text) => (of.bytes(4, text), 3),
                Attribute::Graph(graph) => (of.bytes(6, graph.message("body")), 5),
                Attribute::Ints(all) => (all.iter().fold(of, |of, &i| of.varint(8, i as u64)), 7),
            };
            node = node.bytes(5, of.varint(20, kind));
        }
        self.nodes.push(node);
    }

    /// A constant under this name, the first time that it is named.
    pub(super) fn constant(
        &mut self,
        name: &str,
        kind: Type,
        shape: &[usize],
        bytes: impl FnOnce() -> Vec<u8>,
    ) -> String {
        if self.known.insert(name.to_owned()) {
            let dims = shape.iter().fold(Message::default(), |tensor, &n| tensor.varint(1, n as u64));
            self.constants.push(dims.varint(2, kind as u64).bytes(8, name).bytes(9, bytes()));
        }
        name.to_owned()
    }

    pub(super) fn floats(&mut self, name: &str, shape: &[usize], floats: &[f32]) -> String {
        self.constant(name, Type::F32, shape, || floats.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A number, without an axis.
    pub(super) fn float(&mut self, x: f32) -> String {
        self.floats(&format!("float.{x:e}"), &[], &[x])
    }

    /// Whole numbers, `[n]`.
    pub(super) fn ints(&mut self, all: &[i64]) -> String {
        let name = all.iter().fold("ints".to_owned(), |name, i| format!("{name}.{i}"));
        self.constant(&name, Type::I64, &[all.len()], || all.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// A whole number, without an axis.
    pub(super) fn int(&mut self, i: i64) -> String {
        self.constant(&format!("int.{i}"), Type::I64, &[], || i.to_le_bytes().into())
    }

    pub(super) fn input(&mut self, name: &str, kind: Type, shape: &[Axis]) {
        self.inputs.push(value(name, kind, shape));
    }

    pub(super) fn output(&mut self, name: &str, kind: Type, shape: &[Axis]) {
        self.outputs.push(value(name, kind, shape));
    }

    fn message(&self, name: &str) -> Message {
        let graph = self.nodes.iter().fold(Message::default(), |graph, node| graph.bytes(1, node)).bytes(2, name);
        let graph = self.constants.iter().fold(graph, |graph, constant| graph.bytes(5, constant));
        let graph = self.inputs.iter().fold(graph, |graph, input| graph.bytes(11, input));
        self.outputs.iter().fold(graph, |graph, output| graph.bytes(12, output))
    }

    /// The file, with texts that go with it.
    pub(super) fn file(&self, texts: &[(&str, String)]) -> Vec<u8> {
        let file = Message::default().varint(1, IR).bytes(2, "flashlm").bytes(3, env!("CARGO_PKG_VERSION"));
        let mut file =
            file.bytes(7, self.message("flashlm")).bytes(8, Message::default().bytes(1, "").varint(2, OPSET));
        if self.contributed {
            file = file.bytes(8, Message::default().bytes(1, DOMAIN).varint(2, 1));
        }
        let entry = |(key, value): &(&str, String)| Message::default().bytes(1, key).bytes(2, value);
        texts.iter().fold(file, |file, text| file.bytes(14, entry(text))).as_bytes().to_vec()
    }
}

/// `ValueInfoProto`.
fn value(name: &str, kind: Type, shape: &[Axis]) -> Message {
    let axis = |axis: &Axis| match axis {
        Axis::Of(n) => Message::default().varint(1, *n as u64),
        Axis::Named(name) => Message::default().bytes(2, name),
    };
    let shape = shape.iter().fold(Message::default(), |all, one| all.bytes(1, axis(one)));
    let tensor = Message::default().varint(1, kind as u64).bytes(2, shape);
    Message::default().bytes(1, name).bytes(2, Message::default().bytes(1, tensor))
}
