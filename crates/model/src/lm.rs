//! The language model: `h = E[tokens]`; for each block `h += mixer(norm(h)); h += GLU(norm(h))`; `logits = norm(h) E^T`.
//!
//! One [`Lm`] holds the layers and all their activations for at most `rows` rows. `prepare` once after each change of the
//! parameters, then any number of passes. Parameters and gradients are flat slices in the order of [`Lm::layout`].

use flashlm_kernels::ops::{add, copy};
use flashlm_kernels::{Buf, Elem, Exec, Token};

use crate::config::{ConfigError, ModelConfig};
use crate::layer::Scratch;
use crate::layer::ffn::Ffn;
use crate::layer::head::Head;
use crate::layer::norm::Norm;
use crate::mixer::{self, Mixer};
use crate::params::Layout;

/// A language model with its working memory.
pub struct Lm<E: Elem> {
    config: ModelConfig,
    layout: Layout,
    head: Head<E>,
    blocks: Vec<Block<E>>,
    norm: Norm<E>,
    scratch: Scratch<E>,
    /// The residual stream: before block 0, after each mixer, after each GLU.
    h: Vec<Buf<E>>,
    /// The normalised input of a branch, and in the end of the head.
    x: Buf<E>,
    dx: Buf<E>,
    dh: Buf<E>,
    rows: usize,
}

struct Block<E: Elem> {
    norm1: Option<Norm<E>>,
    mixer: Box<dyn Mixer<E>>,
    norm2: Option<Norm<E>>,
    ffn: Ffn<E>,
}

/// The state of `B` sequences: for each block `[B, state_len]`.
#[derive(Clone)]
pub struct State<E: Elem> {
    layers: Vec<Buf<E>>,
}

impl<E: Elem> State<E> {
    /// Back to the start of all sequences.
    pub fn reset(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.fill(E::ZERO));
    }

    /// Every element in order, for saving.
    pub fn values(&self) -> impl Iterator<Item = E> + '_ {
        self.layers.iter().flat_map(|layer| layer.iter().copied())
    }

    /// Sets every element from what [`State::values`] gave; `false` where there are too few or too many.
    pub fn restore(&mut self, values: &[E]) -> bool {
        let len: usize = self.layers.iter().map(|layer| layer.len()).sum();
        let mut rest = values;
        for layer in &mut self.layers {
            let Some((own, left)) = rest.split_at_checked(layer.len()) else { return false };
            layer.copy_from_slice(own);
            rest = left;
        }
        len == values.len()
    }
}

impl<E: Elem> Lm<E> {
    /// A model for passes of at most `rows = B * T` rows; `training` adds what backward passes need.
    pub fn new(config: &ModelConfig, rows: usize, training: bool) -> Result<Self, ConfigError> {
        config.validate()?;
        let (d, rows) = (config.dim, rows.max(1));
        let mut layout = Layout::default();
        let head = Head::new(&mut layout, config, rows, training);
        let eps = config.norm_eps;
        let blocks = (0..config.blocks)
            .map(|i| {
                let name = |part| format!("blocks.{i}.{part}");
                let mut norm = |part| config.block_norm.then(|| Norm::new(&mut layout, name(part), d, eps, rows));
                let norm1 = norm("norm1.scale");
                let norm2 = norm("norm2.scale");
                Block {
                    norm1,
                    mixer: mixer::build(&mut layout, &name("mixer"), config, rows, training),
                    norm2,
                    ffn: Ffn::new(&mut layout, &name("ffn"), config, rows, training),
                }
            })
            .collect();
        let norm = Norm::new(&mut layout, "final_norm.scale".into(), d, eps, rows);
        let train = if training { rows * d } else { 0 };
        Ok(Lm {
            config: config.clone(),
            layout,
            head,
            blocks,
            norm,
            scratch: Scratch::new(config, rows, training),
            h: (0..=2 * config.blocks).map(|_| Buf::scratch(rows * d)).collect(),
            x: Buf::scratch(rows * d),
            dx: Buf::scratch(train),
            dh: Buf::scratch(train),
            rows,
        })
    }

    /// The model's sizes and switches.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names, shapes and places of the parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Most rows of one pass.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The start of `batch` sequences.
    pub fn state(&self, batch: usize) -> State<E> {
        State { layers: self.blocks.iter().map(|block| Buf::zeros(batch * block.mixer.state_len())).collect() }
    }

    /// Quantises and packs all weights.
    pub fn prepare(&mut self, cx: &Exec, params: &[E]) {
        assert_eq!(params.len(), self.layout.len(), "parameters of another model");
        for block in &mut self.blocks {
            block.mixer.prepare(cx, params, &mut self.scratch);
            block.ffn.prepare(cx, params, &mut self.scratch);
        }
        self.head.prepare(cx, params);
    }

    /// The pass up to the head's input, left in `self.x: [B*T, D]`.
    fn forward(
        &mut self,
        cx: &Exec,
        params: &[E],
        tokens: &[Token],
        mut state: Option<&mut State<E>>,
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
        self.head.embed_forward(cx, &mut self.h[0], tokens, params);
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let [h0, h1, h2] = &mut self.h[2 * i..2 * i + 3] else { unreachable!("three buffers a block") };
            copy(cx, &mut h1[..n], &h0[..n]);
            let x = branch(cx, &mut block.norm1, &mut self.x, h0, params, rows);
            let layer = state.as_deref_mut().map(|state| &mut *state.layers[i]);
            block.mixer.forward(cx, h1, layer, x, params, &mut self.scratch, size);
            copy(cx, &mut h2[..n], &h1[..n]);
            let x = branch(cx, &mut block.norm2, &mut self.x, h1, params, rows);
            block.ffn.forward(cx, h2, x, params, &mut self.scratch, rows);
        }
        self.norm.forward(cx, &mut self.x, &self.h[2 * self.blocks.len()], params, rows);
    }

    /// Forward and backward of `B` sequences of `T` tokens: returns the sum of nats and adds `scale` times its gradient to
    /// `grads`.
    pub fn loss_backward(
        &mut self,
        cx: &Exec,
        grads: &mut [E],
        params: &[E],
        tokens: &[Token],
        targets: &[Token],
        size: (usize, usize),
        scale: f64,
    ) -> f64 {
        let rows = size.0 * size.1;
        let n = rows * self.config.dim;
        self.forward(cx, params, tokens, None, size);
        let scale = E::from_f64(scale);
        let nats = self.head.loss_backward(cx, &mut self.dx[..n], grads, &self.x[..n], targets, scale);
        let Lm { x, dx, dh, scratch, .. } = self;
        let last = &self.h[2 * self.blocks.len()];
        self.norm.backward(cx, dh, grads, &mut scratch.linear.partials, dx, last, params, rows, false);
        for (i, block) in self.blocks.iter_mut().enumerate().rev() {
            let input = branch(cx, &mut block.norm2, x, &self.h[2 * i + 1], params, rows);
            block.ffn.backward(cx, dx, grads, dh, input, params, scratch, rows);
            join(cx, &mut block.norm2, dh, grads, scratch, dx, &self.h[2 * i + 1], params, n, rows);
            let input = branch(cx, &mut block.norm1, x, &self.h[2 * i], params, rows);
            block.mixer.backward(cx, dx, grads, dh, input, params, scratch, size);
            join(cx, &mut block.norm1, dh, grads, scratch, dx, &self.h[2 * i], params, n, rows);
        }
        self.head.embed_backward(cx, grads, &self.dh, tokens);
        nats
    }

    /// Appends `ln p(target | tokens so far)` of each row.
    pub fn log_probs(
        &mut self,
        cx: &Exec,
        out: &mut Vec<f64>,
        params: &[E],
        tokens: &[Token],
        targets: &[Token],
        state: Option<&mut State<E>>,
        size: (usize, usize),
    ) {
        assert_eq!(tokens.len(), targets.len());
        self.forward(cx, params, tokens, state, size);
        self.head.log_probs(cx, out, &self.x, targets);
    }

    /// Writes the logits of every row: `[B*T, V]`.
    pub fn logits(
        &mut self,
        cx: &Exec,
        out: &mut [E],
        params: &[E],
        tokens: &[Token],
        state: Option<&mut State<E>>,
        size: (usize, usize),
    ) {
        self.forward(cx, params, tokens, state, size);
        let v = self.config.vocab_size;
        self.head.for_logits(cx, &self.x, tokens.len(), |first, z| out[first * v..][..z.len()].copy_from_slice(z));
    }

    /// Feeds one sequence and writes the logits after its last token: `[V]`.
    pub fn next_logits(&mut self, cx: &Exec, out: &mut [E], params: &[E], tokens: &[Token], state: &mut State<E>) {
        for piece in tokens.chunks(self.rows) {
            self.forward(cx, params, piece, Some(state), (1, piece.len()));
            let last = &self.x[(piece.len() - 1) * self.config.dim..];
            self.head.for_logits(cx, last, 1, |_, z| out.copy_from_slice(z));
        }
    }
}

/// The input of a branch: the residual stream, normalised into `x` where the block has a norm.
fn branch<'a, E: Elem>(
    cx: &Exec,
    norm: &mut Option<Norm<E>>,
    x: &'a mut [E],
    h: &'a [E],
    params: &[E],
    rows: usize,
) -> &'a [E] {
    match norm {
        None => h,
        Some(norm) => {
            norm.forward(cx, x, h, params, rows);
            x
        }
    }
}

/// Adds a branch's gradient `dx` to that of the residual stream, through the norm where there is one.
fn join<E: Elem>(
    cx: &Exec,
    norm: &mut Option<Norm<E>>,
    dh: &mut [E],
    grads: &mut [E],
    s: &mut Scratch<E>,
    dx: &[E],
    h: &[E],
    params: &[E],
    n: usize,
    rows: usize,
) {
    match norm {
        None => add(cx, &mut dh[..n], &dx[..n]),
        Some(norm) => norm.backward(cx, dh, grads, &mut s.linear.partials, dx, h, params, rows, true),
    }
}
