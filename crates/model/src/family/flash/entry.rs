//! What enters the residual stream beside the branches. With `x0`, before the mixer of block `i`
//!
//! ```text
//! h = r_i h + s_i x0      x0: the output of the embedding, r_i and s_i learned, 1 and 0 at the start
//! ```
//!
//! (modded-nanogpt, and nanochat of 2026-01-11, from which the start is). With `bigram`, what the embedding gives is `E[token] + B[i]`, `i`
//! the row of the token and the one before in a table `B` that starts at zero ([`crate::layer::bigram`]).

use std::ops::Range;

use flashlm_kernels::ops::{add_parts, blend_backward, blend_forward, embed_add, embed_backward};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Elem, Exec, Store};

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
    d: usize,
}

/// The streams that a block's entry reads, `[rows, D]`.
#[derive(Clone, Copy)]
pub(super) struct Streams<'a, E> {
    /// After the block before.
    pub(super) h: &'a [E],
    /// After the embedding.
    pub(super) x0: &'a [E],
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
        EntryParams { lambdas, bigram, d: config.dim }
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

    /// Whether the stream enters a block as it left the one before.
    pub(super) fn is_empty(&self) -> bool {
        self.lambdas.is_empty()
    }

    /// The scratch that the backward pass asks for.
    pub(super) fn need(&self) -> Need {
        Need { part: if self.lambdas.is_empty() { 0 } else { 2 }, ..Need::default() }
    }

    /// `y: [rows, D]`, the stream as it enters block `i`.
    pub(super) fn forward<E: Elem>(&self, pass: Pass<E>, i: usize, y: &mut [E], from: Streams<E>) {
        let weights = self.weights(pass.params, i);
        pass.cx.tiles(y.len() / self.d, (Rows(y, self.d),), |cx, r, (y,), _| {
            let cells = r.start * self.d..r.end * self.d;
            blend_forward(cx, y, &from.h[cells.clone()], &from.x0[cells], weights);
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
        let (weights, last, rows) = (self.weights(pass.params, i), i + 1 == self.lambdas.len(), dh.len() / self.d);
        let parts = &mut s.parts[..2 * pass.cx.tile_count(rows)];
        let buffers = (Rows(dh, self.d), Rows(dx0, self.d), Parts(parts, 2));
        pass.cx.tiles(rows, buffers, |cx, r, (dh, dx0, part), _| {
            part.fill(A::E::ZERO);
            let cells = r.start * self.d..r.end * self.d;
            blend_backward(cx, dh, dx0, part, &from.h[cells.clone()], &from.x0[cells], weights, !last);
        });
        for (at, place) in self.lambdas[i].iter().enumerate() {
            add_parts(&mut grads[place.clone()], &s.parts[..2 * pass.cx.tile_count(rows)], 2, at);
        }
    }

    /// `r` and `s` of block `i`.
    fn weights<E: Elem>(&self, params: &[E], i: usize) -> [E; 2] {
        self.lambdas[i].clone().map(|place| params[place.start])
    }
}
