//! The model in training and evaluation: weights, which passes and applications share, and the working memory of one pass.

use std::ops::Range;

use flashlm_kernels::ops::{NO_TARGET, Objective, add, dropout_backward, dropout_forward};
use flashlm_kernels::{Buf, Exec, Span, Store, Token};

use super::Params;
use super::mixer::{self, Mixer};
use crate::config::ModelConfig;
use crate::family::forms::{BatchState, Current, LanguageModel, Shape, count_past};
use crate::layer::dropout::Dropout;
use crate::layer::ffn::{self, Ffn};
use crate::layer::head::{self, Head};
use crate::layer::norm::Norm;
use crate::layer::pass::Pass;
use crate::layer::scratch::Scratch;
use crate::params::Layout;

/// The model for micro-batches of at most `rows` rows; `A` is what matmuls are kept as.
pub struct Train<A: Store> {
    config: ModelConfig,
    layout: Layout,
    weights: Weights<A>,
    work: Work<A>,
    rows: usize,
    training: bool,
    /// Whether the inputs of ternary matrices and of the head are rounded to int8.
    int8: bool,
    dropout: Option<Dropout>,
    /// Width of the widest input of a matrix.
    widest: usize,
    /// [`Span::past`] of a pass.
    past: Vec<u32>,
    /// Rows that have a target, and the targets.
    scored: (Vec<usize>, Vec<Token>),
}

/// Weights, packed.
struct Weights<A: Store> {
    head: Head<A>,
    mixer: Mixer<A>,
    ffn: Ffn<A>,
    norm: Norm,
    passes: usize,
}

/// What a pass leaves behind, and scratch.
struct Work<A: Store> {
    head: head::Work<A>,
    /// Of the mixer and the GLU of each application.
    saved: Vec<(mixer::Saved<A>, ffn::Saved<A>)>,
    mixer: mixer::Work<A::E>,
    scratch: Scratch<A>,
    /// The residual stream: at first, after each mixer, after each GLU.
    h: Vec<Buf<A::E>>,
    /// The input of the head.
    x: Buf<A>,
    dh: Buf<A::E>,
    /// The rows with a target alone, and their gradients.
    scored: [Buf<A::E>; 2],
    /// With dropout, the part of a gradient that goes around a branch.
    around: Buf<A::E>,
}

impl<A: Store> Train<A> {
    /// A model of a valid config; `training` adds what backward passes need, `int8` is what [`crate::family::build`] is told.
    pub(in crate::family) fn new(config: &ModelConfig, rows: usize, training: bool, int8: bool) -> Self {
        let (d, rows) = (config.dim, rows.max(1));
        let mut layout = Layout::default();
        let Params { head, mixer, ffn, norm, need, passes } = Params::new(&mut layout, config, int8);
        let (head, mixer, ffn) = (Head::new(&head, training), Mixer::new(mixer, training), Ffn::new(ffn, training));
        let trained = if training { rows } else { 0 };
        let work = Work {
            head: head.work(rows),
            saved: (0..passes).map(|_| (mixer.saved(rows), ffn.saved(rows))).collect(),
            mixer: mixer.work(trained),
            scratch: Scratch::new(&config.layers(), need, ffn.wide(), trained, config.vocab_size),
            h: (0..=2 * passes).map(|_| Buf::scratch(rows * d)).collect(),
            x: Buf::scratch(rows * d),
            dh: Buf::scratch(trained * d),
            scored: [(); 2].map(|()| Buf::scratch(trained * d)),
            around: Buf::scratch(0),
        };
        let mut lm = Train {
            config: config.clone(),
            layout,
            weights: Weights { head, mixer, ffn, norm, passes },
            work,
            rows,
            training,
            int8: false,
            dropout: None,
            widest: need.input,
            past: Vec::with_capacity(rows),
            scored: (Vec::with_capacity(rows), Vec::with_capacity(rows)),
        };
        lm.set_activation_bits(config.activation_bits);
        lm
    }

    /// Counts the rows before each row, and runs `then` with the pass, the weights and the working memory, the stream at its end.
    fn with_pass<R>(
        &mut self,
        cx: &Exec,
        params: Current<'_, A::E>,
        tokens: &[Token],
        mut state: Option<&mut BatchState<A::E>>,
        Shape { batch, seq_len: len }: Shape,
        dropout: Option<Dropout>,
        then: impl FnOnce(Pass<A::E>, &Weights<A>, &mut Work<A>) -> R,
    ) -> R {
        let room = self.rows;
        assert!(tokens.len() == batch * len && batch * len <= room, "{batch} x {len} tokens, room for {room}");
        let mut past = std::mem::take(&mut self.past);
        let counts = state.as_deref_mut().map(|state| &mut state.past[..]);
        count_past(&mut past, tokens, counts, self.config.document_start(), len);
        let pass = Pass { cx, params: params.all(), int8: self.int8, span: &Span { batch, len, past: &past } };
        self.weights.forward(pass, &mut self.work, tokens, dropout, state);
        let result = then(pass, &self.weights, &mut self.work);
        self.past = past;
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
        then: impl FnOnce(&Head<A>, &mut head::Work<A>, &[A]) -> R,
    ) -> R {
        let n = tokens.len() * self.config.dim;
        self.with_pass(cx, params, tokens, state, shape, None, |pass, Weights { head, norm, passes, .. }, work| {
            let Work { head: head_work, x, h, .. } = work;
            let x = &mut x[..n];
            head.input(pass, x, &h[2 * passes][..n], norm);
            then(head, head_work, x)
        })
    }
}

impl<A: Store> Weights<A> {
    /// The pass up to the end of the residual stream, `[B*T, D]` in the last of `work.h`.
    fn forward(
        &self,
        pass: Pass<A::E>,
        Work { saved, h, .. }: &mut Work<A>,
        tokens: &[Token],
        dropout: Option<Dropout>,
        mut state: Option<&mut BatchState<A::E>>,
    ) {
        let d = self.norm.scale.len();
        let n = tokens.len() * d;
        self.head.embed_forward(pass.cx, &mut h[0], tokens, pass.params);
        let each = state.as_deref().map_or(0, |state| state.layers.len() / self.passes);
        for (i, saved) in saved.iter_mut().enumerate() {
            let (before, after) = h.split_at_mut(2 * i + 1);
            let ([h1, h2, ..], h0) = (after, &before[2 * i][..n]) else { unreachable!("two more for each pass") };
            let own = state.as_deref_mut().map(|state| &mut state.layers[i * each..(i + 1) * each]);
            self.mixer.forward(pass, &mut h1[..n], &mut saved.0, own, h0);
            if let Some(dropout) = dropout {
                dropout_forward(pass.cx, &mut h1[..n], h0, d, dropout.mask(2 * i));
            }
            self.ffn.forward(pass, &mut h2[..n], &mut saved.1, &h1[..n]);
            if let Some(dropout) = dropout {
                dropout_forward(pass.cx, &mut h2[..n], &h1[..n], d, dropout.mask(2 * i + 1));
            }
        }
    }

    /// Loss and gradient of the head, `dh: [rows, D]`, of those rows alone that have a target.
    fn loss_backward(
        &self,
        pass: Pass<A::E>,
        work: &mut Work<A>,
        grads: &mut [A::E],
        (rows, targets): (&[usize], &[Token]),
        n: usize,
        objective: Objective,
    ) -> f64 {
        let d = self.norm.scale.len();
        let Work { head, scratch, h, dh, scored: [x, dx], .. } = work;
        let last = &h[2 * self.passes];
        if rows.len() * d == n {
            return self.head.loss_backward(
                pass,
                &mut dh[..n],
                grads,
                head,
                &last[..n],
                targets,
                &self.norm,
                scratch,
                objective,
                None,
            );
        }
        let cells = |row: &usize| row * d..(row + 1) * d;
        x.chunks_exact_mut(d).zip(rows).for_each(|(x, row)| x.copy_from_slice(&last[cells(row)]));
        let (x, dx) = (&x[..rows.len() * d], &mut dx[..rows.len() * d]);
        let nats = self.head.loss_backward(pass, dx, grads, head, x, targets, &self.norm, scratch, objective, None);
        dh[..n].fill(A::E::ZERO);
        dx.chunks_exact(d).zip(rows).for_each(|(dx, row)| dh[cells(row)].copy_from_slice(dx));
        nats
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
        let layers = (0..self.weights.passes).flat_map(|_| self.weights.mixer.state(batch)).collect();
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

    fn touched(&self, _: &[Token], _: &mut dyn FnMut(&Range<usize>, u32)) {}

    fn pack(&mut self, cx: &Exec, params: &[A::E]) {
        let Train { weights: Weights { head, mixer, ffn, .. }, work: Work { head: head_work, scratch, .. }, .. } = self;
        mixer.prepare(cx, params, scratch);
        ffn.prepare(cx, params, scratch);
        head.prepare(cx, params, scratch);
        head.make_room(cx, head_work, false);
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
        assert_eq!(tokens.len(), targets.len());
        let (d, dropout) = (self.config.dim, self.dropout);
        let n = shape.rows() * d;
        let (mut rows, mut own) = std::mem::take(&mut self.scored);
        rows.clear();
        rows.extend((0..targets.len()).filter(|&row| targets[row] != NO_TARGET));
        own.clear();
        own.extend(rows.iter().map(|&row| targets[row]));
        let nats = self.with_pass(cx, params, tokens, None, shape, dropout, |pass, weights, work| {
            let nats = weights.loss_backward(pass, work, grads, (&rows, &own), n, objective);
            let Work { saved, mixer, scratch: s, h, dh, around, .. } = work;
            let dh = &mut dh[..n];
            for (i, saved) in saved.iter().enumerate().rev() {
                if let Some(dropout) = dropout {
                    dropout_backward(cx, dh, &mut around[..n], d, dropout.mask(2 * i + 1));
                }
                weights.ffn.backward(pass, dh, grads, &saved.1, &h[2 * i + 1][..n], s);
                if let Some(dropout) = dropout {
                    add(cx, dh, &around[..n]);
                    dropout_backward(cx, dh, &mut around[..n], d, dropout.mask(2 * i));
                }
                weights.mixer.backward(pass, dh, grads, &saved.0, &h[2 * i][..n], (s, mixer));
                if dropout.is_some() {
                    add(cx, dh, &around[..n]);
                }
            }
            weights.head.embed_backward(cx, grads, dh, tokens);
            nats
        });
        self.scored = (rows, own);
        nats
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
        self.with_head_input(cx, params, tokens, state, shape, |head, work, x| {
            head.log_probs(cx, out, work, x, targets, smoothing, None)
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
        self.with_head_input(cx, params, tokens, state, shape, |head, _, x| head.logits(cx, out, x));
    }
}
