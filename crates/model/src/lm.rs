//! The language model: `h = E[tokens]`; for each block `h += mixer(norm(h)); h += GLU(norm(h))`; `logits = norm(h) E^T`.
//!
//! One [`Lm`] holds the layers and all their activations for at most `rows` rows. `prepare` once after each change of the
//! parameters, then any number of passes. Parameters and gradients are flat slices in the order of [`Lm::layout`].

use flashlm_kernels::ops::Objective;
use flashlm_kernels::{Buf, Elem, Exec, Span, Store, Token};

use crate::config::{ConfigError, ModelConfig};
use crate::layer::ffn::Ffn;
use crate::layer::head::Head;
use crate::layer::norm::Norm;
use crate::layer::{Need, Scratch};
use crate::mixer::{self, Mixer};
use crate::params::Layout;

/// What a model can do, whatever its products are kept as.
pub trait LanguageModel<E: Elem>: Send {
    /// The model's sizes and switches.
    fn config(&self) -> &ModelConfig;

    /// Names, shapes and places of the parameters.
    fn layout(&self) -> &Layout;

    /// Most rows of one pass.
    fn rows(&self) -> usize;

    /// The start of `batch` sequences.
    fn state(&self, batch: usize) -> State<E>;

    /// Quantises and packs all weights.
    fn prepare(&mut self, cx: &Exec, params: &[E]);

    /// What [`ModelConfig::activation_bits`] says, from now on something else.
    ///
    /// # Panics
    /// With another number.
    fn set_activation_bits(&mut self, bits: u32);

    /// Forward and backward of `B` sequences of `T` tokens: returns the sum of nats, without z-loss, and adds the gradient of
    /// the objective to `grads`. Rows whose target is [`NO_TARGET`](flashlm_kernels::ops::NO_TARGET) count for neither.
    fn loss_backward(
        &mut self,
        cx: &Exec,
        grads: &mut [E],
        params: &[E],
        tokens: &[Token],
        targets: &[Token],
        size: (usize, usize),
        objective: Objective,
    ) -> f64;

    /// Appends `ln p(target | tokens so far)` of each row.
    fn log_probs(
        &mut self,
        cx: &Exec,
        out: &mut Vec<f64>,
        params: &[E],
        tokens: &[Token],
        targets: &[Token],
        state: Option<&mut State<E>>,
        size: (usize, usize),
    );

    /// Writes the logits of every row: `[B*T, V]`.
    fn logits(
        &mut self,
        cx: &Exec,
        out: &mut [E],
        params: &[E],
        tokens: &[Token],
        state: Option<&mut State<E>>,
        size: (usize, usize),
    );

    /// Feeds one sequence and writes the logits after its last token: `[V]`.
    fn next_logits(&mut self, cx: &Exec, out: &mut [E], params: &[E], tokens: &[Token], state: &mut State<E>);
}

/// A language model with its working memory; `A` is what products and saved activations are kept as.
pub struct Lm<A: Store> {
    config: ModelConfig,
    layout: Layout,
    head: Head<A>,
    blocks: Vec<Block<A>>,
    norm: Norm,
    scratch: Scratch<A>,
    /// The residual stream: before block 0, after each mixer, after each GLU.
    h: Vec<Buf<A::E>>,
    /// The input of the head.
    x: Buf<A>,
    dh: Buf<A::E>,
    /// [`Span::past`] of a pass.
    past: Vec<u32>,
    rows: usize,
}

struct Block<A: Store> {
    mixer: Box<dyn Mixer<A>>,
    ffn: Ffn<A>,
}

/// The state of `B` sequences: for each block `[B, state_len]`, and of each sequence the rows of its story so far.
#[derive(Clone)]
pub struct State<E: Elem> {
    layers: Vec<Buf<E>>,
    past: Vec<u32>,
}

impl<E: Elem> State<E> {
    /// Back to the start of all sequences.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.fill(E::ZERO));
        self.past.fill(0);
    }

    /// Every element in order, for saving. Counts of rows come last, in halves of 16 bits, which any element holds exactly.
    pub fn values(&self) -> impl Iterator<Item = E> + '_ {
        let halves = self.past.iter().flat_map(|past| [past >> 16, past & 0xffff]);
        self.layers.iter().flat_map(|layer| layer.iter().copied()).chain(halves.map(|half| E::from_f64(half.into())))
    }

    /// Sets every element from what [`State::values`] gave; `false`, and nothing set, where there are too few or too many, or a
    /// count is none.
    pub fn restore(&mut self, values: &[E]) -> bool {
        let len: usize = self.layers.iter().map(|layer| layer.len()).sum();
        if values.len() != len + 2 * self.past.len() {
            return false;
        }
        let (mut rest, halves) = values.split_at(len);
        let whole = |half: &E| (0.0..=65_535.0).contains(&half.to_f64()) && half.to_f64().fract() == 0.0;
        if !halves.iter().all(whole) {
            return false;
        }
        for layer in &mut self.layers {
            let (own, left) = rest.split_at(layer.len());
            layer.copy_from_slice(own);
            rest = left;
        }
        for (past, halves) in self.past.iter_mut().zip(halves.chunks_exact(2)) {
            *past = (halves[0].to_f64() as u32) << 16 | halves[1].to_f64() as u32;
        }
        true
    }
}

impl<A: Store> Lm<A> {
    /// A model for passes of at most `rows = B * T` rows; `training` adds what backward passes need.
    pub fn new(config: &ModelConfig, rows: usize, training: bool) -> Result<Self, ConfigError> {
        config.validate()?;
        let (d, rows) = (config.dim, rows.max(1));
        let mut layout = Layout::default();
        let head = Head::new(&mut layout, config, rows, training);
        let eps = config.norm_eps;
        let blocks: Vec<Block<A>> = (0..config.blocks)
            .map(|i| {
                let name = |part| format!("blocks.{i}.{part}");
                let norm = |layout: &mut _, part| config.block_norm.then(|| Norm::new(layout, name(part), d, eps));
                let norm1 = norm(&mut layout, "norm1.scale");
                let mixer =
                    mixer::build(config.mixer_of(i), &mut layout, &name("mixer"), norm1, config, rows, training);
                let norm2 = norm(&mut layout, "norm2.scale");
                Block { mixer, ffn: Ffn::new(&mut layout, &name("ffn"), norm2, config, rows, training) }
            })
            .collect();
        let norm = Norm::new(&mut layout, "final_norm.scale".into(), d, eps);
        let need =
            blocks.iter().fold(Need::default(), |need, block| need.max(block.mixer.need()).max(block.ffn.need()));
        let mut lm = Lm {
            config: config.clone(),
            layout,
            head,
            blocks,
            norm,
            scratch: Scratch::new(config, need, rows, training),
            h: (0..=2 * config.blocks).map(|_| Buf::scratch(rows * d)).collect(),
            x: Buf::scratch(rows * d),
            dh: Buf::scratch(if training { rows * d } else { 0 }),
            past: Vec::with_capacity(rows),
            rows,
        };
        lm.set_activation_bits(config.activation_bits);
        Ok(lm)
    }

    /// Looks up how far each row may look back, and moves the counts of a state on.
    fn look_back(&mut self, tokens: &[Token], counts: Option<&mut [u32]>, t: usize) {
        let start = if self.config.reset { Token::try_from(self.config.eos).ok() } else { None };
        self.past.clear();
        let mut counts = counts.into_iter().flatten();
        for sequence in tokens.chunks(t.max(1)) {
            let count = counts.next();
            let mut past = count.as_deref().copied().unwrap_or(0);
            for &token in sequence {
                if Some(token) == start {
                    past = 0;
                }
                self.past.push(past);
                past = past.saturating_add(1);
            }
            if let Some(count) = count {
                *count = past;
            }
        }
    }

    /// The pass up to the end of the residual stream, `[B*T, D]` in the last of `self.h`.
    fn forward(
        &mut self,
        cx: &Exec,
        params: &[A::E],
        tokens: &[Token],
        mut state: Option<&mut State<A::E>>,
        size: (usize, usize),
    ) {
        let rows = size.0 * size.1;
        assert!(
            tokens.len() == rows && rows <= self.rows,
            "{} tokens for {size:?}, room for {}",
            tokens.len(),
            self.rows
        );
        let n = rows * self.config.dim;
        self.look_back(tokens, state.as_deref_mut().map(|state| &mut state.past[..]), size.1);
        let span = &Span { batch: size.0, len: size.1, past: &self.past };
        self.head.embed_forward(cx, &mut self.h[0], tokens, params);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let [h0, h1, h2] = &mut self.h[2 * i..2 * i + 3] else { unreachable!("three buffers a block") };
            let layer = state.as_deref_mut().map(|state| &mut *state.layers[i]);
            block.mixer.forward(cx, &mut h1[..n], layer, &h0[..n], params, span);
            block.ffn.forward(cx, &mut h2[..n], &h1[..n], params);
        }
    }

    /// The pass up to the head's input: `[B*T, D]`.
    fn head_input(
        &mut self,
        cx: &Exec,
        params: &[A::E],
        tokens: &[Token],
        state: Option<&mut State<A::E>>,
        size: (usize, usize),
    ) -> (&mut Head<A>, &[A]) {
        self.forward(cx, params, tokens, state, size);
        let n = tokens.len() * self.config.dim;
        let h = &self.h[2 * self.blocks.len()][..n];
        self.head.input(cx, &mut self.x[..n], h, &self.norm, params);
        (&mut self.head, &self.x[..n])
    }
}

impl<A: Store> LanguageModel<A::E> for Lm<A> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn state(&self, batch: usize) -> State<A::E> {
        let layers = self.blocks.iter().map(|block| Buf::zeros(batch * block.mixer.state_len())).collect();
        State { layers, past: vec![0; batch] }
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E]) {
        assert_eq!(params.len(), self.layout.len(), "parameters of another model");
        for block in &mut self.blocks {
            block.mixer.prepare(cx, params, &mut self.scratch);
            block.ffn.prepare(cx, params, &mut self.scratch);
        }
        self.head.prepare(cx, params, &mut self.scratch);
    }

    fn set_activation_bits(&mut self, bits: u32) {
        assert!(matches!(bits, 0 | 8), "activations of {bits} bits");
        let int8 = bits == 8;
        if self.head.int8 == int8 {
            return;
        }
        self.head.int8 = int8;
        let mut widest = 0;
        for block in &mut self.blocks {
            widest = widest.max(block.mixer.need().input).max(block.ffn.need().input);
            block.mixer.linears().into_iter().chain(block.ffn.linears()).for_each(|linear| linear.int8 = int8);
        }
        let operand = &mut self.scratch.weights.operand;
        // None where there is no backward pass, which alone takes it.
        let rows = if self.dh.is_empty() { 0 } else { self.rows };
        if int8 && operand.len() < rows * widest {
            *operand = Buf::scratch(rows * widest);
        }
    }

    fn loss_backward(
        &mut self,
        cx: &Exec,
        grads: &mut [A::E],
        params: &[A::E],
        tokens: &[Token],
        targets: &[Token],
        size: (usize, usize),
        objective: Objective,
    ) -> f64 {
        let n = size.0 * size.1 * self.config.dim;
        self.forward(cx, params, tokens, None, size);
        let Lm { head, norm, dh, scratch, h, past, .. } = self;
        let span = &Span { batch: size.0, len: size.1, past };
        let (dh, last) = (&mut dh[..n], &h[2 * self.blocks.len()][..n]);
        let nats = head.loss_backward(cx, dh, grads, last, targets, norm, params, scratch, objective);
        for (i, block) in self.blocks.iter_mut().enumerate().rev() {
            block.ffn.backward(cx, dh, grads, &h[2 * i + 1][..n], params, scratch);
            block.mixer.backward(cx, dh, grads, &h[2 * i][..n], params, scratch, span);
        }
        head.embed_backward(cx, grads, dh, tokens);
        nats
    }

    fn log_probs(
        &mut self,
        cx: &Exec,
        out: &mut Vec<f64>,
        params: &[A::E],
        tokens: &[Token],
        targets: &[Token],
        state: Option<&mut State<A::E>>,
        size: (usize, usize),
    ) {
        assert_eq!(tokens.len(), targets.len());
        let (head, x) = self.head_input(cx, params, tokens, state, size);
        head.log_probs(cx, out, x, targets);
    }

    fn logits(
        &mut self,
        cx: &Exec,
        out: &mut [A::E],
        params: &[A::E],
        tokens: &[Token],
        state: Option<&mut State<A::E>>,
        size: (usize, usize),
    ) {
        let (head, x) = self.head_input(cx, params, tokens, state, size);
        head.logits(cx, out, x);
    }

    fn next_logits(&mut self, cx: &Exec, out: &mut [A::E], params: &[A::E], tokens: &[Token], state: &mut State<A::E>) {
        let d = self.config.dim;
        for piece in tokens.chunks(self.rows) {
            let (head, x) = self.head_input(cx, params, piece, Some(state), (1, piece.len()));
            head.logits(cx, out, &x[(piece.len() - 1) * d..]);
        }
    }
}
