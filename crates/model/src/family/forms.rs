//! What a model of any family is in training and evaluation ([`LanguageModel`], used through [`Prepared`]), and in the packed
//! runtime (`PackedBody`).

use std::ops::Range;
use std::sync::Arc;

use flashlm_kernels::ops::{Objective, PackedMatrix};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Elem, Exec, Token};

use crate::config::ModelConfig;
use crate::layer::dropout::Dropout;
use crate::layer::packed::{PackedLinear, PackedNorm, PackedScratch, PackedTable};
use crate::layer::pointer;
use crate::mixer::forms::PackedMixer;
use crate::params::Layout;

/// Sizes of one micro-batch: `B` sequences of `T` tokens, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `B`.
    pub batch: usize,
    /// `T`.
    pub seq_len: usize,
}

impl Shape {
    /// `B T`.
    pub fn rows(self) -> usize {
        self.batch * self.seq_len
    }
}

/// A language model with its working memory. Parameters and gradients are flat slices in the order of its layout.
///
/// Run it through [`Prepared`], which packs the weights first and borrows the parameters they were packed from.
pub trait LanguageModel<E: Elem>: Send {
    /// The model's sizes and switches.
    fn config(&self) -> &ModelConfig;

    /// Names, shapes and places of the parameters.
    fn layout(&self) -> &Layout;

    /// Most rows of one micro-batch.
    fn rows(&self) -> usize;

    /// The start of `batch` sequences.
    fn state(&self, batch: usize) -> BatchState<E>;

    /// Overrides [`ModelConfig::activation_bits`] from now on: 0 (float) or 8 (int8).
    ///
    /// # Panics
    /// With any other number.
    fn set_activation_bits(&mut self, bits: u32);

    /// What the branches drop in the calls of [`LanguageModel::loss_backward`] from now on; at the start nothing.
    fn set_dropout(&mut self, dropout: Option<Dropout>);

    /// Quantises and packs all weights, and makes room for what passes on `cx` need.
    fn pack(&mut self, cx: &Exec, params: &[E]);

    /// See [`Prepared::loss_backward`].
    fn loss_backward(
        &mut self,
        cx: &Exec,
        grads: &mut [E],
        params: Current<'_, E>,
        tokens: &[Token],
        targets: &[Token],
        shape: Shape,
        objective: Objective,
    ) -> f64;

    /// Calls `touch` with the place of a table ([`crate::params::Group::Table`]) and a row of it for each row that the last pass, of `tokens`,
    /// has looked up. No other row of a table has a gradient from it.
    fn touched(&self, tokens: &[Token], touch: &mut dyn FnMut(&Range<usize>, u32));

    /// See [`Prepared::log_probs`] and [`Prepared::smoothed`].
    fn log_probs(
        &mut self,
        cx: &Exec,
        out: &mut Vec<f64>,
        params: Current<'_, E>,
        tokens: &[Token],
        targets: &[Token],
        smoothing: f64,
        state: Option<&mut BatchState<E>>,
        shape: Shape,
    );

    /// See [`Prepared::logits`].
    fn logits(
        &mut self,
        cx: &Exec,
        out: &mut [E],
        params: Current<'_, E>,
        tokens: &[Token],
        state: Option<&mut BatchState<E>>,
        shape: Shape,
    );
}

/// Parameters that the model has packed: only [`Prepared`] can say so.
#[derive(Clone, Copy)]
pub struct Current<'a, E: Elem>(&'a [E]);

impl<'a, E: Elem> Current<'a, E> {
    /// All of them, in the order of the layout.
    pub fn all(self) -> &'a [E] {
        self.0
    }
}

/// A model with weights packed from these parameters, which are borrowed, so they cannot change while it exists.
pub struct Prepared<'a, E: Elem> {
    cx: &'a Exec,
    lm: &'a mut (dyn LanguageModel<E> + 'a),
    params: Current<'a, E>,
}

impl<'a, E: Elem> Prepared<'a, E> {
    /// Quantises and packs `params`, in the order of the model's layout, for use on `cx`.
    ///
    /// # Panics
    /// If their number is not that of the layout.
    pub fn new(cx: &'a Exec, lm: &'a mut (dyn LanguageModel<E> + 'a), params: &'a [E]) -> Self {
        assert_eq!(params.len(), lm.layout().len(), "parameters of another model");
        lm.pack(cx, params);
        Prepared { cx, lm, params: Current(params) }
    }

    /// The model.
    pub fn model(&self) -> &dyn LanguageModel<E> {
        self.lm
    }

    /// See [`LanguageModel::set_dropout`].
    pub fn set_dropout(&mut self, dropout: Option<Dropout>) {
        self.lm.set_dropout(dropout);
    }

    /// Forward and backward of `tokens` and `targets: [B T]`: returns the summed cross-entropy in nats, label smoothing included and z-loss not, and adds
    /// the gradient of the objective to `grads`. Rows whose target is [`NO_TARGET`](flashlm_kernels::ops::NO_TARGET) count for
    /// neither.
    pub fn loss_backward(
        &mut self,
        grads: &mut [E],
        tokens: &[Token],
        targets: &[Token],
        shape: Shape,
        objective: Objective,
    ) -> f64 {
        self.lm.loss_backward(self.cx, grads, self.params, tokens, targets, shape, objective)
    }

    /// Appends `ln p(target | tokens so far)` of each row, `[B T]`. Without a state all sequences start afresh.
    pub fn log_probs(
        &mut self,
        out: &mut Vec<f64>,
        tokens: &[Token],
        targets: &[Token],
        state: Option<&mut BatchState<E>>,
        shape: Shape,
    ) {
        self.smoothed(out, tokens, targets, 0.0, state, shape);
    }

    /// The same over a smoothed target: the part `smoothing` of it is shared by all tokens. Not with a soft cap of logits.
    pub fn smoothed(
        &mut self,
        out: &mut Vec<f64>,
        tokens: &[Token],
        targets: &[Token],
        smoothing: f64,
        state: Option<&mut BatchState<E>>,
        shape: Shape,
    ) {
        self.lm.log_probs(self.cx, out, self.params, tokens, targets, smoothing, state, shape);
    }

    /// Writes the logits of every row: `[B T, V]`.
    pub fn logits(&mut self, out: &mut [E], tokens: &[Token], state: Option<&mut BatchState<E>>, shape: Shape) {
        self.lm.logits(self.cx, out, self.params, tokens, state, shape);
    }
}

/// The state of `B` sequences: `[B, state_len]` for each block, and of each sequence the number of rows of its document so
/// far and the last token.
#[derive(Clone)]
pub struct BatchState<E: Elem> {
    /// Of each block, or of its layers.
    pub(crate) layers: Vec<Buf<E>>,
    /// Of each sequence.
    pub(crate) past: Vec<u32>,
    /// The last token of each sequence.
    pub(crate) last: Vec<Token>,
}

/// How many rows of its document stand before each row, where documents begin at `start`; the counts of a state move on.
pub(super) fn count_past(
    past: &mut Vec<u32>,
    tokens: &[Token],
    counts: Option<&mut [u32]>,
    start: Option<Token>,
    t: usize,
) {
    past.clear();
    let mut counts = counts.into_iter().flatten();
    for sequence in tokens.chunks(t.max(1)) {
        let count = counts.next();
        let mut before = count.as_deref().copied().unwrap_or(0);
        for &token in sequence {
            if Some(token) == start {
                before = 0;
            }
            past.push(before);
            before = before.saturating_add(1);
        }
        if let Some(count) = count {
            *count = before;
        }
    }
}

/// A model in the packed runtime: the logits of a row are `norm(h) E^T`, where `h` starts as the token's row of `E`, with bigrams
/// plus a row of theirs, and every block adds to it.
pub(crate) struct PackedBody {
    /// `E: [V, D]`.
    pub(crate) embedding: PackedMatrix,
    /// Rows that are added to those of `E`, by the token and the one before ([`crate::layer::bigram`]).
    pub(crate) bigram: Option<PackedTable>,
    /// In the order in which they are applied; one that is applied twice stands there twice.
    pub(crate) blocks: Vec<Arc<dyn PackedBlock>>,
    pub(crate) norm: PackedNorm,
    /// Whether blocks read the stream as it was after the embedding.
    pub(crate) x0: bool,
    /// `c` of the soft cap of logits, `c tanh(z / c)`; 0: none.
    pub(crate) softcap: f64,
    /// What rows may point at, after all blocks.
    pub(crate) pointer: Option<pointer::Packed>,
}

/// What the rows of one tile bring to every block.
#[derive(Clone, Copy)]
pub(crate) struct Entering<'a> {
    /// The stream as it was after the embedding, `[rows, D]`, where [`PackedBody::x0`] is set.
    pub(crate) x0: &'a [f32],
    /// The tokens, `[rows]`.
    pub(crate) tokens: &'a [Token],
}

/// One application of a block; `u: [rows, width]` is what its mixer makes of the residual stream, `m: [rows, mixed]` what it
/// mixes of that.
pub(crate) trait PackedBlock: Send + Sync {
    /// All its matrices.
    fn linears(&self) -> Vec<&PackedLinear>;

    /// The table that it looks up, if it has one.
    fn table(&self) -> Option<&PackedTable>;

    /// Elements of a row of `u`.
    fn width(&self) -> usize;

    /// Elements of a row of `m`.
    fn mixed(&self) -> usize;

    /// Elements of the state of one sequence; a state of zeros is the start.
    fn state_len(&self) -> usize;

    /// `u` of the rows `h: [rows, D]` of one tile, to which it adds what enters before the block.
    fn project(&self, cx: &Exec, u: &mut [f32], h: &mut [f32], from: Entering, work: &mut PackedScratch, local: &Local);

    /// Its mixer.
    fn mixer(&self) -> &dyn PackedMixer;

    /// Adds all that the block adds to `h: [rows, D]` of one tile.
    fn output(&self, cx: &Exec, h: &mut [f32], m: &[f32], work: &mut PackedScratch, local: &Local);
}
