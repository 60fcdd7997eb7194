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
//! | `pointer.keys`, `.tokens`: last rows that may be pointed at, and their tokens | `[pointer, D]` f32, `[pointer]` i64 | the same |
//!
//! All states begin as zeros, and the first token is EOS. What a row may see follows from `past` of each row.

mod attention;
mod delta;
mod exact;
mod layers;
mod mixers;
mod pointer;

use std::collections::BTreeMap;

use super::nodes::{Attribute, Axis, Graph, Type};
use crate::codes::weight::Weight;
use crate::config::{ActivationKind, ModelConfig};
use crate::export::source::Source;

/// What the weights are, and how it is computed with them: in floats, as the packed runtime does, or in floats with codes of two bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    F32,
    Int8,
    Int2,
}

/// Columns of a block of `MatMulNBits`, a power of two of at least 16, in which all columns have one scale; `None` where there is none.
pub(super) fn block_of(inputs: usize, segment: usize) -> Option<usize> {
    let block = if inputs <= segment { 64 } else { (1 << segment.trailing_zeros()).min(256) };
    (block >= 16).then_some(block)
}

pub(super) struct Writer<'a> {
    g: Graph,
    c: &'a ModelConfig,
    weights: BTreeMap<&'a str, &'a Weight>,
    form: Form,
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
pub(super) fn file(source: &Source, form: Form, texts: &[(&str, String)]) -> Vec<u8> {
    let mut w = Writer {
        g: Graph::default(),
        c: &source.config,
        weights: source.weights.iter().map(|weight| (weight.name.as_str(), weight)).collect(),
        form,
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
                "leaky" => self.leaky(&x),
                other => unreachable!("{other} is refused before"),
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
            z = self.tanh(&z);
            z = self.g.op("Mul", &[&z, &cap]);
        }
        if c.pointer > 0 {
            z = self.pointed(&z, &x, &tokens);
            self.g.scope.clear();
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
            // Where the document of each row starts: -past for the first, which began before.
            let eos = g.int(self.c.eos as i64);
            let (starts, first) = (g.op("Equal", &[tokens, &eos]), g.ints(&[0]));
            let counted = g.op_with("Cast", &[&starts], &[("to", Attribute::Int(Type::I64 as i64))]);
            let document = g.op("CumSum", &[&counted, &zero]);
            let (at, before) = (g.op("NonZero", &[&starts]), g.op("Neg", &["past"]));
            let at = g.op("Squeeze", &[&at, &first]);
            let begun = g.op_with("Concat", &[&before, &at], &[("axis", Attribute::Int(0))]);
            let start = g.op("Gather", &[&begun, &document]);
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
}
