//! The model in training and evaluation: weights, which passes share, and the working memory of one pass.

use std::ops::Range;

use flashlm_kernels::ops::{Objective, add, dropout_backward, dropout_forward};
use flashlm_kernels::{Buf, Exec, Span, Store, Token};

use super::Params;
use super::entry::{EntryParams, Streams};
use crate::config::ModelConfig;
use crate::family::forms::{BatchState, Current, LanguageModel, Shape, count_past};
use crate::layer::bigram::bigram_row;
use crate::layer::dropout::Dropout;
use crate::layer::ffn::{self, Ffn};
use crate::layer::head::{self, Head};
use crate::layer::norm::Norm;
use crate::layer::pass::Pass;
use crate::layer::pointer::{self, Pointer};
use crate::layer::scratch::{Scratch, WIDE};
use crate::mixer::forms::{AnyMixer, AnySaved};
use crate::params::Layout;

/// The model for micro-batches of at most `rows` rows; `A` is what matmuls and saved activations are kept as.
pub struct Train<A: Store> {
    config: ModelConfig,
    layout: Layout,
    weights: Weights<A>,
    work: Work<A>,
    rows: usize,
    training: bool,
    /// Whether the inputs of ternary matrices and of the head are rounded to int8.
    int8: bool,
    /// What branches drop in training.
    dropout: Option<Dropout>,
    /// Width of the widest input of a matrix.
    widest: usize,
    /// [`Span::past`] of a pass.
    past: Vec<u32>,
    /// The rows of bigrams of a pass.
    bigrams: Vec<u32>,
}

/// Weights, packed.
struct Weights<A: Store> {
    head: Head<A>,
    blocks: Vec<Block<A>>,
    norm: Norm,
    entry: EntryParams,
    pointer: Option<Pointer<A>>,
}

struct Block<A: Store> {
    mixer: Box<dyn AnyMixer<A>>,
    ffn: Ffn<A>,
}

/// What a pass leaves behind, and scratch.
struct Work<A: Store> {
    head: head::Work<A>,
    /// Of the mixer and the GLU of each block.
    saved: Vec<(AnySaved, ffn::Saved<A>)>,
    scratch: Scratch<A>,
    pointer: Option<pointer::Saved<A>>,
    /// The residual stream: before block 0, after each mixer, after each GLU.
    h: Vec<Buf<A::E>>,
    /// The stream as it enters each block, where that is not as it left the one before.
    entered: Vec<Buf<A::E>>,
    /// The input of the head.
    x: Buf<A>,
    dh: Buf<A::E>,
    dx0: Buf<A::E>,
    /// With dropout, the part of a gradient that goes around a branch.
    around: Buf<A::E>,
}

impl<A: Store> Train<A> {
    /// A model of a valid config; `training` adds what backward passes need, `int8` is what [`crate::family::build`] is told.
    pub(in crate::family) fn new(config: &ModelConfig, rows: usize, training: bool, int8: bool) -> Self {
        let (d, rows) = (config.dim, rows.max(1));
        let mut layout = Layout::default();
        let of = Params::new(&mut layout, config, int8);
        let need = of.blocks.iter().fold(of.entry.need().max(of.need), |need, block| need.max(block.need));
        let head = Head::new(&of.head, training);
        let block = |of: super::BlockParams| Block { mixer: of.mixer.train(training), ffn: Ffn::new(of.ffn, training) };
        let blocks: Vec<Block<A>> = of.blocks.into_iter().map(block).collect();
        let mut wide = [0; WIDE];
        for widths in blocks.iter().flat_map(|block| [block.mixer.wide(), block.ffn.wide()]) {
            wide = std::array::from_fn(|i| wide[i].max(widths[i]));
        }
        let pointer = of.pointer.map(|of| Pointer::new(of, training));
        let (entry, with_x0) = (of.entry, if config.x0 { d } else { 0 });
        let entered = if entry.is_empty() { 0 } else { config.blocks };
        let with_gradient = if training { rows } else { 0 };
        let work = Work {
            head: head.work(rows),
            saved: blocks.iter().map(|block| (block.mixer.saved(rows, training), block.ffn.saved(rows))).collect(),
            pointer: pointer.as_ref().map(|pointer| pointer.saved(rows)),
            scratch: Scratch::new(&config.layers(), need, wide, with_gradient, config.vocab_size),
            h: (0..=2 * config.blocks).map(|_| Buf::scratch(rows * d)).collect(),
            entered: (0..entered).map(|_| Buf::scratch(rows * d)).collect(),
            x: Buf::scratch(rows * d),
            dh: Buf::scratch(with_gradient * d),
            dx0: Buf::scratch(with_gradient * with_x0),
            around: Buf::scratch(0),
        };
        let mut lm = Train {
            config: config.clone(),
            layout,
            weights: Weights { head, blocks, norm: of.norm, entry, pointer },
            work,
            rows,
            training,
            int8: false,
            dropout: None,
            widest: need.input,
            past: Vec::with_capacity(rows),
            bigrams: Vec::with_capacity(if config.bigram > 0 { rows } else { 0 }),
        };
        lm.set_activation_bits(config.activation_bits);
        lm
    }

    /// Counts the rows before each row, and runs `then` with the pass, the weights and the working memory.
    fn with_pass<R>(
        &mut self,
        cx: &Exec,
        params: Current<'_, A::E>,
        tokens: &[Token],
        mut state: Option<&mut BatchState<A::E>>,
        shape: Shape,
        dropout: Option<Dropout>,
        then: impl FnOnce(Pass<A::E>, &Weights<A>, &mut Work<A>, &[u32], Option<&mut BatchState<A::E>>) -> R,
    ) -> R {
        let rows = shape.rows();
        assert!(
            tokens.len() == rows && rows <= self.rows,
            "{} tokens for {shape:?}, room for {}",
            tokens.len(),
            self.rows
        );
        let (Shape { batch, seq_len: len }, start) = (shape, self.config.document_start());
        let mut past = std::mem::take(&mut self.past);
        count_past(&mut past, tokens, state.as_deref_mut().map(|state| &mut state.past[..]), start, len);
        let mut bigrams = std::mem::take(&mut self.bigrams);
        if self.config.bigram > 0 {
            let last = state.as_deref().map_or(&[][..], |state| &state.last);
            find_bigrams(&mut bigrams, tokens, &past, last, &self.config, len);
        }
        if let Some(state) = state.as_deref_mut() {
            let ends = tokens.chunks_exact(len.max(1)).map(|sequence| sequence[len - 1]);
            state.last.iter_mut().zip(ends).for_each(|(last, end)| *last = end);
        }
        let pass = Pass { cx, params: params.all(), int8: self.int8, span: &Span { batch, len, past: &past } };
        self.weights.forward(pass, &mut self.work, Told { tokens, bigrams: &bigrams, dropout }, state.as_deref_mut());
        let result = then(pass, &self.weights, &mut self.work, &bigrams, state);
        (self.past, self.bigrams) = (past, bigrams);
        result
    }

    /// The pass up to the head's input, `[B*T, D]`, which `then` is given.
    fn with_head_input<R>(
        &mut self,
        cx: &Exec,
        params: Current<'_, A::E>,
        tokens: &[Token],
        state: Option<&mut BatchState<A::E>>,
        shape: Shape,
        then: impl FnOnce(Pass<A::E>, &Head<A>, &mut head::Work<A>, &[A], Pointing<A>) -> R,
    ) -> R {
        let n = tokens.len() * self.config.dim;
        self.with_pass(cx, params, tokens, state, shape, None, |pass, weights, work, _, state| {
            let (Weights { head, blocks, norm, pointer, .. }, Work { head: head_work, pointer: saved, x, h, .. }) =
                (weights, work);
            let (x, last) = (&mut x[..n], &h[2 * blocks.len()][..n]);
            head.input(pass, x, last, norm);
            let pointing = pointer.as_ref().zip(saved.as_mut());
            let pointing = pointing.map(|(pointer, saved)| {
                pointer.project(pass, saved, last, norm);
                (pointer, saved, state.map(|state| &mut state.layers[blocks.len()][..]))
            });
            then(pass, head, head_work, x, pointing)
        })
    }
}

/// The pointer after [`Pointer::project`], what it has saved, and where there is a state its own.
type Pointing<'a, A> = Option<(&'a Pointer<A>, &'a mut pointer::Saved<A>, Option<&'a mut [<A as Store>::E]>)>;

/// What a pass is told of its rows.
#[derive(Clone, Copy)]
struct Told<'a> {
    tokens: &'a [Token],
    /// Empty where they are not looked up.
    bigrams: &'a [u32],
    dropout: Option<Dropout>,
}

impl<A: Store> Weights<A> {
    /// The pass up to the end of the residual stream, `[B*T, D]` in the last of `work.h`.
    fn forward(
        &self,
        pass: Pass<A::E>,
        Work { saved, h, entered, .. }: &mut Work<A>,
        Told { tokens, bigrams, dropout }: Told,
        mut state: Option<&mut BatchState<A::E>>,
    ) {
        let d = self.norm.scale.len();
        let n = tokens.len() * d;
        self.head.embed_forward(pass.cx, &mut h[0], tokens, pass.params);
        self.entry.embed_forward(pass, &mut h[0], bigrams);
        for (i, (block, saved)) in self.blocks.iter().zip(saved).enumerate() {
            let (before, after) = h.split_at_mut(2 * i + 1);
            let ([h1, h2, ..], h0) = (after, &before[2 * i][..n]) else { unreachable!("two more for each block") };
            let input = match entered.get_mut(i) {
                Some(input) => {
                    let input = &mut input[..n];
                    self.entry.forward(pass, i, input, Streams { h: h0, x0: &before[0][..n], tokens });
                    &*input
                }
                None => h0,
            };
            let layer = state.as_deref_mut().map(|state| &mut *state.layers[i]);
            block.mixer.forward(pass, &mut h1[..n], &mut saved.0, layer, input);
            if let Some(dropout) = dropout {
                dropout_forward(pass.cx, &mut h1[..n], input, d, dropout.mask(2 * i));
            }
            block.ffn.forward(pass, &mut h2[..n], &mut saved.1, &h1[..n]);
            if let Some(dropout) = dropout {
                dropout_forward(pass.cx, &mut h2[..n], &h1[..n], d, dropout.mask(2 * i + 1));
            }
        }
    }
}

/// The row of bigrams of each row, by the token before it: of the sequence, else of `last` of a state; a document begins after `eos`.
fn find_bigrams(rows: &mut Vec<u32>, tokens: &[Token], past: &[u32], last: &[Token], config: &ModelConfig, t: usize) {
    let start = config.eos as Token;
    rows.clear();
    for (i, (tokens, past)) in tokens.chunks(t.max(1)).zip(past.chunks(t.max(1))).enumerate() {
        let mut before = last.get(i).copied().unwrap_or(start);
        for (&token, &past) in tokens.iter().zip(past) {
            rows.push(bigram_row(if past == 0 { start } else { before }, token, config.bigram));
            before = token;
        }
    }
}

impl<A: Store> LanguageModel<A::E> for Train<A> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn state(&self, batch: usize) -> BatchState<A::E> {
        let blocks = self.weights.blocks.iter().map(|block| block.mixer.state_len());
        let pointer = self.weights.pointer.iter().map(|pointer| pointer.state_len());
        let layers = blocks.chain(pointer).map(|len| Buf::zeros(batch * len)).collect();
        BatchState { layers, past: vec![0; batch], last: vec![0; batch] }
    }

    fn set_activation_bits(&mut self, bits: u32) {
        assert!(matches!(bits, 0 | 8), "activations of {bits} bits");
        self.int8 = bits == 8;
        if self.int8 && self.training {
            self.work.scratch.room_for_rounded(self.rows * self.widest);
        }
    }

    fn set_dropout(&mut self, dropout: Option<Dropout>) {
        self.dropout = dropout;
        if dropout.is_some() && self.work.around.is_empty() {
            self.work.around = Buf::scratch(self.rows * self.config.dim);
        }
    }

    fn touched(&self, tokens: &[Token], touch: &mut dyn FnMut(&Range<usize>, u32)) {
        self.weights.entry.touched(tokens, &self.bigrams, touch);
    }

    fn pack(&mut self, cx: &Exec, params: &[A::E]) {
        let Train { weights, work: Work { head, scratch, .. }, .. } = self;
        for block in &mut weights.blocks {
            block.mixer.prepare(cx, params, scratch);
            block.ffn.prepare(cx, params, scratch);
        }
        weights.pointer.iter_mut().for_each(|pointer| pointer.prepare(cx, params, scratch));
        weights.head.prepare(cx, params, scratch);
        weights.head.make_room(cx, head, weights.pointer.is_some());
    }

    fn loss_backward(
        &mut self,
        cx: &Exec,
        grads: &mut [A::E],
        params: Current<'_, A::E>,
        tokens: &[Token],
        targets: &[Token],
        shape: Shape,
        objective: Objective,
    ) -> f64 {
        let (d, dropout) = (self.config.dim, self.dropout);
        let n = shape.rows() * d;
        self.with_pass(cx, params, tokens, None, shape, dropout, |pass, weights, work, bigrams, _| {
            let Weights { head, blocks, norm, entry, pointer } = weights;
            let Work { head: head_work, saved, pointer: pointed, scratch: s, h, entered, dh, dx0, around, .. } = work;
            let (dh, last) = (&mut dh[..n], &h[2 * blocks.len()][..n]);
            let mut pointing = pointer.as_ref().zip(pointed.as_mut());
            if let Some((pointer, saved)) = &mut pointing {
                pointer.project(pass, saved, last, norm);
                pointer.masses(pass, saved, (tokens, targets), None);
            }
            let masses = pointing.as_mut().map(|(_, saved)| &mut saved.masses);
            let nats = head.loss_backward(pass, dh, grads, head_work, last, targets, norm, s, objective, masses);
            if let Some((pointer, saved)) = pointing {
                pointer.backward(pass, dh, grads, saved, (last, norm), s, objective);
            }
            for (i, (block, saved)) in blocks.iter().zip(saved).enumerate().rev() {
                if let Some(dropout) = dropout {
                    dropout_backward(cx, dh, &mut around[..n], d, dropout.mask(2 * i + 1));
                }
                block.ffn.backward(pass, dh, grads, &saved.1, &h[2 * i + 1][..n], s);
                if let Some(dropout) = dropout {
                    add(cx, dh, &around[..n]);
                    dropout_backward(cx, dh, &mut around[..n], d, dropout.mask(2 * i));
                }
                let input = entered.get(i).unwrap_or(&h[2 * i]);
                block.mixer.backward(pass, dh, grads, &mut saved.0, &input[..n], s);
                if dropout.is_some() {
                    add(cx, dh, &around[..n]);
                }
                if !entry.is_empty() {
                    let from = Streams { h: &h[2 * i][..n], x0: &h[0][..n], tokens };
                    entry.backward(pass, i, (dh, dx0), grads, from, s);
                }
            }
            if !dx0.is_empty() {
                add(cx, dh, &dx0[..n]);
            }
            head.embed_backward(cx, grads, dh, tokens);
            entry.embed_backward(cx, grads, dh, bigrams);
            nats
        })
    }

    fn log_probs(
        &mut self,
        cx: &Exec,
        out: &mut Vec<f64>,
        params: Current<'_, A::E>,
        tokens: &[Token],
        targets: &[Token],
        smoothing: f64,
        state: Option<&mut BatchState<A::E>>,
        shape: Shape,
    ) {
        assert_eq!(tokens.len(), targets.len());
        self.with_head_input(cx, params, tokens, state, shape, |pass, head, work, x, pointing| {
            let masses = pointing.map(|(pointer, saved, state)| {
                pointer.masses(pass, saved, (tokens, targets), state);
                &mut saved.masses
            });
            head.log_probs(cx, out, work, x, targets, smoothing, masses)
        });
    }

    fn logits(
        &mut self,
        cx: &Exec,
        out: &mut [A::E],
        params: Current<'_, A::E>,
        tokens: &[Token],
        state: Option<&mut BatchState<A::E>>,
        shape: Shape,
    ) {
        self.with_head_input(cx, params, tokens, state, shape, |pass, head, _, x, pointing| {
            head.logits(cx, out, x);
            if let Some((pointer, saved, state)) = pointing {
                pointer.point(pass, out, saved, tokens, state);
            }
        });
    }
}
