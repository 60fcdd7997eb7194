//! What enters the residual stream beside the branches. With `x0`, before the mixer of block `i`
//!
//! ```text
//! h = r_i h + s_i x0      x0: the output of the embedding, r_i and s_i learned, 1 and 0 at the start
//! ```
//!
//! (modded-nanogpt, and nanochat of 2026-01-11, from which the start is). With `bigram`, what the embedding gives is `E[token] + B[i]`, `i`
//! the row of the token and the one before in a table `B` that starts at zero ([`crate::layer::bigram`]). With `layer_embeddings`, `h += P_i[token]`
//! follows before each block, `P_i` a table that starts at zero (the per-layer embeddings of Gemma 3n, in their plainest form).

use std::ops::Range;

use flashlm_kernels::ops::{add_parts, blend_backward, blend_forward, embed_add, embed_backward};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Elem, Exec, Store, Token};

use crate::config::ModelConfig;
use crate::layer::config::Need;
use crate::layer::pass::Pass;
use crate::layer::scratch::Scratch;
use crate::params::{Group, Init, Layout};

/// Where the parameters lie.
pub(super) struct EntryParams {
    /// With `x0`, `r` and `s` of each block.
    pub(super) lambdas: Vec<[Range<usize>; 2]>,
    /// `B`, with `bigram`.
    pub(super) bigram: Option<Range<usize>>,
    /// With `layer_embeddings`, `P` of each block.
    pub(super) tables: Vec<Range<usize>>,
    d: usize,
}

/// What a block's entry reads.
#[derive(Clone, Copy)]
pub(super) struct Streams<'a, E> {
    /// The stream after the block before, `[rows, D]`.
    pub(super) h: &'a [E],
    /// The stream after the embedding, `[rows, D]`.
    pub(super) x0: &'a [E],
    /// `[rows]`.
    pub(super) tokens: &'a [Token],
}

impl EntryParams {
    /// Adds them, of all blocks.
    pub(super) fn new(layout: &mut Layout, config: &ModelConfig) -> Self {
        let with_x0 = if config.x0 { config.blocks } else { 0 };
        let lambdas = (0..with_x0).map(|i| {
            [("resid_lambda", Init::Ones), ("x0_lambda", Init::Zeros)]
                .map(|(name, init)| layout.add(format!("blocks.{i}.{name}"), &[1], init, Group::Scalar))
        });
        let lambdas = lambdas.collect();
        let mut table = |name: String, rows| layout.add(name, &[rows, config.dim], Init::Zeros, Group::Table);
        let bigram = (config.bigram > 0).then(|| table("bigram.weight".into(), config.bigram));
        let with_tables = if config.layer_embeddings { config.blocks } else { 0 };
        let tables =
            (0..with_tables).map(|i| table(format!("blocks.{i}.embedding.weight"), config.vocab_size)).collect();
        EntryParams { lambdas, bigram, tables, d: config.dim }
    }

    /// Adds rows of `B` to those of the embedding, `h: [rows, D]`; `bigrams` is empty where there are none.
    pub(super) fn embed_forward<E: Elem>(&self, pass: Pass<E>, h: &mut [E], bigrams: &[u32]) {
        if let Some(place) = &self.bigram {
            embed_add(pass.cx, h, bigrams, &pass.params[place.clone()], self.d);
        }
    }

    /// Adds the gradient of `B` to `grads`, from that of the embedding's rows, `dh: [rows, D]`.
    pub(super) fn embed_backward<E: Elem>(&self, cx: &Exec, grads: &mut [E], dh: &[E], bigrams: &[u32]) {
        if let Some(place) = &self.bigram {
            embed_backward(cx, &mut grads[place.clone()], dh, bigrams, self.d);
        }
    }

    /// See [`crate::LanguageModel::touched`].
    pub(super) fn touched(&self, tokens: &[Token], bigrams: &[u32], touch: &mut dyn FnMut(&Range<usize>, u32)) {
        self.bigram.iter().for_each(|place| bigrams.iter().for_each(|&row| touch(place, row)));
        self.tables.iter().for_each(|place| tokens.iter().for_each(|&token| touch(place, token.into())));
    }

    /// Whether the stream enters a block as it left the one before.
    pub(super) fn is_empty(&self) -> bool {
        self.lambdas.is_empty() && self.tables.is_empty()
    }

    /// The scratch that the backward pass asks for.
    pub(super) fn need(&self) -> Need {
        Need { part: if self.lambdas.is_empty() { 0 } else { 2 }, ..Need::default() }
    }

    /// `y: [rows, D]`, the stream as it enters block `i`.
    pub(super) fn forward<E: Elem>(&self, pass: Pass<E>, i: usize, y: &mut [E], from: Streams<E>) {
        let (weights, table) = (self.weights(pass.params, i), self.tables.get(i));
        pass.cx.tiles(from.tokens.len(), (Rows(y, self.d),), |cx, r, (y,), _| {
            let cells = r.start * self.d..r.end * self.d;
            let h = &from.h[cells.clone()];
            match weights {
                Some(weights) => blend_forward(cx, y, h, &from.x0[cells], weights),
                None => y.copy_from_slice(h),
            }
            if let Some(place) = table {
                embed_add(cx, y, &from.tokens[r], &pass.params[place.clone()], self.d);
            }
        });
    }

    /// Turns `dh: [rows, D]` from the gradient of `y` into that of `h`, and adds to `grads` and to `dx0`, which the last block, the
    /// first to be asked, overwrites.
    pub(super) fn backward<A: Store>(
        &self,
        pass: Pass<A::E>,
        i: usize,
        (dh, dx0): (&mut [A::E], &mut [A::E]),
        grads: &mut [A::E],
        from: Streams<A::E>,
        s: &mut Scratch<A>,
    ) {
        if let Some(place) = self.tables.get(i) {
            embed_backward(pass.cx, &mut grads[place.clone()], dh, from.tokens, self.d);
        }
        let Some(weights) = self.weights(pass.params, i) else { return };
        let (last, rows) = (i + 1 == self.lambdas.len(), from.tokens.len());
        let parts = &mut s.parts[..2 * pass.cx.tile_count(rows)];
        let buffers = (Rows(dh, self.d), Rows(dx0, self.d), Parts(&mut *parts, 2));
        pass.cx.tiles(rows, buffers, |cx, r, (dh, dx0, part), _| {
            part.fill(A::E::ZERO);
            let cells = r.start * self.d..r.end * self.d;
            blend_backward(cx, dh, dx0, part, &from.h[cells.clone()], &from.x0[cells], weights, !last);
        });
        for (at, place) in self.lambdas[i].iter().enumerate() {
            add_parts(&mut grads[place.clone()], parts, 2, at);
        }
    }

    /// `r` and `s` of block `i`.
    fn weights<E: Elem>(&self, params: &[E], i: usize) -> Option<[E; 2]> {
        let places = self.lambdas.get(i)?;
        Some(places.clone().map(|place| params[place.start]))
    }
}
