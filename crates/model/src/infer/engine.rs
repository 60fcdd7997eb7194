//! The working memory of one caller: prefill, decode steps, scores.

use std::ops::Range;
use std::sync::Arc;

use flashlm_kernels::ops::{Columns, EXACT_QUERIES, INT8_ROWS, exact_log_sum_exp, exact_softcap, packed_matmul};
use flashlm_kernels::tile::{Local, Parts, Rows, Split};
use flashlm_kernels::{Buf, Exec, Token};

use super::model::PackedModel;
use super::scored::Scored;
use super::state::SequenceState;
use crate::family::forms::{Entering, PackedBlock};
use crate::layer::packed::PackedScratch;

/// Most rows of a tile: enough for what is read of a weight to serve many, few enough for what they become to stay in the cache.
const TILE: usize = 16;

/// The working memory of one caller, on the threads of its executor.
pub struct Engine {
    model: Arc<PackedModel>,
    pub(super) cx: Exec,
    /// Rows of one call: `[rows, D]`, and `[rows, width]` and `[rows, mixed]` for the widest mixer.
    h: Buf<f32>,
    u: Buf<f32>,
    m: Buf<f32>,
    /// The stream after the embedding, `[rows, D]`, where blocks read it.
    x0: Buf<f32>,
    /// As `u`: the rows that a mixer reads while those of the next are written, or what it needs in between.
    spare: Buf<f32>,
    /// Queries and keys of pointers, `[rows, D]`, where there are any.
    pointing: [Buf<f32>; 2],
    widest: [usize; 2],
    past: Vec<u32>,
    bigrams: Vec<u32>,
    work: Vec<PackedScratch>,
    logits: Vec<f32>,
    /// One per generation.
    pub(super) tokens: Vec<Token>,
    /// `ln sum exp` of the logits of a row.
    sums: Vec<f64>,
}

impl Engine {
    /// An engine that works on at most `rows` rows per thread at once, 1 to 64: sequences of a decode step, or tokens of a prompt.
    pub fn new(model: Arc<PackedModel>, cx: Exec, rows: usize) -> Self {
        let each = rows.clamp(1, INT8_ROWS);
        let threads = cx.pool().threads();
        let all = each * threads;
        let most = |of: fn(&dyn PackedBlock) -> usize| model.body.blocks.iter().map(|block| of(&**block)).max();
        let widest = [most(|block| block.width()), most(|block| block.mixed())].map(|most| most.unwrap_or(0));
        let mut columns = vec![model.body.embedding.columns()];
        for block in &model.body.blocks {
            columns.extend(block.linears().iter().map(|linear| linear.columns()));
        }
        columns.sort_unstable_by_key(|c| (c.inputs, c.segment));
        columns.dedup();
        let pointing = if model.body.pointer.is_some() { all * model.config().dim } else { 0 };
        Engine {
            pointing: [Buf::zeros(pointing), Buf::zeros(pointing)],
            h: Buf::zeros(all * model.config().dim),
            u: Buf::zeros(all * widest[0]),
            m: Buf::zeros(all * widest[1]),
            x0: Buf::zeros(all * model.x0_width()),
            spare: Buf::zeros(all * widest[0]),
            widest,
            past: vec![0; all],
            bigrams: vec![0; all],
            work: (0..threads * each.div_ceil(TILE)).map(|_| PackedScratch::new(&columns, each.min(TILE))).collect(),
            logits: Vec::new(),
            tokens: Vec::new(),
            sums: Vec::new(),
            model,
            cx,
        }
    }

    /// The weights.
    pub fn model(&self) -> &Arc<PackedModel> {
        &self.model
    }

    /// The executor it runs on.
    pub fn exec(&self) -> &Exec {
        &self.cx
    }

    /// Most rows at once, over all threads.
    pub fn rows(&self) -> usize {
        self.past.len()
    }

    /// Feeds the next tokens of a text into `state`.
    ///
    /// # Panics
    /// If a token is outside the vocabulary.
    pub fn feed(&mut self, state: &mut SequenceState, tokens: &[Token]) {
        for piece in tokens.chunks(self.rows()) {
            self.pass(state, piece);
            self.keep(state, piece, 0);
        }
    }

    /// Feeds the next tokens of a text into `state` and returns the logits after the last: `[V]`, valid until the next call.
    ///
    /// # Panics
    /// If there is no token, or one is outside the vocabulary.
    pub fn prefill(&mut self, state: &mut SequenceState, tokens: &[Token]) -> &mut [f32] {
        assert!(!tokens.is_empty(), "a prompt has at least one token");
        self.room(1);
        self.feed(state, tokens);
        let (d, last) = (self.model.config().dim, (tokens.len() - 1) % self.rows());
        self.h.copy_within(last * d..(last + 1) * d, 0);
        self.head(1);
        self.point(state, &tokens[tokens.len() - 1..], last..last + 1, 0);
        &mut self.logits[..self.model.config().vocab_size]
    }

    /// One decode step: feeds one token into each state and returns the logits after them: `[states, V]`, valid until the next
    /// call.
    ///
    /// # Panics
    /// If there are not as many tokens as states, or one is outside the vocabulary.
    pub fn step<S: AsMut<SequenceState> + Send + 'static>(&mut self, states: &mut [S], tokens: &[Token]) -> &mut [f32] {
        assert_eq!(states.len(), tokens.len(), "a token for each state");
        self.room(states.len());
        let (rows, v) = (self.rows(), self.model.config().vocab_size);
        let mut logits = std::mem::take(&mut self.logits);
        let all = states.chunks_mut(rows).zip(tokens.chunks(rows)).zip(logits.chunks_mut(rows * v));
        for ((states, tokens), z) in all {
            self.decode(states, tokens, Rows(z, v), |mut last, states, z| last.head(z, states));
        }
        self.logits = logits;
        &mut self.logits[..states.len() * v]
    }

    /// Feeds the tokens into `state` and appends `ln p(target)` after each.
    ///
    /// # Panics
    /// If there are not as many targets as tokens, or one of either is outside the vocabulary.
    pub fn log_probs(&mut self, state: &mut SequenceState, tokens: &[Token], targets: &[Token], out: &mut Vec<f64>) {
        self.after_each(state, tokens, targets, |z, sum, target| out.push(f64::from(z[usize::from(target)]) - sum));
    }

    /// Feeds the tokens into `state` and appends, after each, `ln p(target)` and the `top` likeliest tokens.
    ///
    /// # Panics
    /// As [`Engine::log_probs`].
    pub fn score(
        &mut self,
        state: &mut SequenceState,
        tokens: &[Token],
        targets: &[Token],
        top: usize,
        out: &mut Vec<Scored>,
    ) {
        self.after_each(state, tokens, targets, |z, sum, target| {
            let mut scored = Scored::default();
            scored.set(z, sum, target, top);
            out.push(scored);
        });
    }

    /// Feeds the tokens and tells, after each, the logits, their `ln sum exp` and the target.
    fn after_each(
        &mut self,
        state: &mut SequenceState,
        tokens: &[Token],
        targets: &[Token],
        mut told: impl FnMut(&[f32], f64, Token),
    ) {
        assert_eq!(tokens.len(), targets.len(), "a target for each token");
        let (rows, v) = (self.rows(), self.model.config().vocab_size);
        self.room(rows);
        for (tokens, targets) in tokens.chunks(rows).zip(targets.chunks(rows)) {
            let n = tokens.len();
            self.pass(state, tokens);
            self.head(n);
            let mut at = 0;
            while at < n {
                // Rows of one document, few enough for all to be in its ring.
                let more = (at + 1..n.min(at + EXACT_QUERIES)).take_while(|&i| self.past[i] > self.past[at]).count();
                let run = at..at + 1 + more;
                self.keep(state, &tokens[run.clone()], at);
                at = run.end;
                self.point(state, &tokens[run.clone()], run.clone(), run.start);
            }
            let Engine { cx, logits, sums, .. } = self;
            sums.resize(rows, 0.0);
            cx.tiles_by(1, n, (Rows(logits, v), Rows(sums, 1)), |cx, _, (z, sum), _| {
                sum[0] = exact_log_sum_exp(cx, z);
            });
            let own = logits.chunks_exact(v).zip(&*sums).zip(targets);
            own.for_each(|((z, &sum), &target)| told(z, sum, target));
        }
    }

    /// Memory for the logits of `n` rows.
    fn room(&mut self, n: usize) {
        let len = n * self.model.config().vocab_size;
        if self.logits.len() < len {
            self.logits.resize(len, 0.0);
        }
    }

    /// Rows of a tile: as many tiles for each thread, at most [`TILE`] rows each.
    fn height(&self, rows: usize) -> usize {
        let threads = self.cx.pool().threads();
        rows.div_ceil(threads * rows.div_ceil(threads * TILE))
    }

    /// One token of each state: each thread takes its states through all blocks, and `then` is given their last rows with
    /// its share of `out`.
    pub(super) fn decode<S: AsMut<SequenceState> + Send + 'static, V: Split>(
        &mut self,
        states: &mut [S],
        tokens: &[Token],
        out: V,
        then: impl Fn(LastRows, &mut [S], V::Share<'_>) + Sync,
    ) {
        let height = self.height(tokens.len());
        let Engine { model, cx, h, x0, u, m, past, bigrams, work, widest, .. } = self;
        let (d, rows) = (model.config().dim, tokens.len());
        let mixing = (Rows(u, widest[0]), Rows(m, widest[1]));
        let streams = (Rows(h, d), Rows(x0, model.x0_width()));
        let told = (Rows(past, 1), Rows(bigrams, 1));
        let buffers = (Rows(states, 1), streams, mixing, told, Parts(work, 1), out);
        cx.tiles_by(height, rows, buffers, |cx, r, (states, (h, x0), (u, m), (past, bigrams), work, out), local| {
            let work = &mut work[0];
            let told = past.iter_mut().zip(&mut *bigrams);
            for ((told, state), &token) in told.zip(&mut *states).zip(&tokens[r.clone()]) {
                (*told.0, *told.1) = model.advance(state.as_mut(), token);
            }
            let tokens = &tokens[r];
            model.embed(h, x0, tokens, bigrams);
            let from = Entering { x0, tokens };
            let mut at = 0;
            for block in &model.body.blocks {
                let (len, width, mixed) = (block.state_len(), block.width(), block.mixed());
                let (u, m) = (&mut u[..past.len() * width], &mut m[..past.len() * mixed]);
                local.within(|local| block.project(cx, u, h, from, work, local));
                let rows = m.chunks_exact_mut(mixed).zip(u.chunks_exact_mut(width));
                for ((state, (m, u)), past) in states.iter_mut().zip(rows).zip(past.chunks(1)) {
                    let own = &mut state.as_mut().values[at..at + len];
                    local.within(|local| block.mixer().mix(cx, m, u, own, past, local));
                }
                local.within(|local| block.output(cx, h, m, work, local));
                at += len;
            }
            then(LastRows { model, cx, h, work, local, tokens, past }, states, out);
        });
    }

    /// Many tokens of one state.
    fn pass(&mut self, state: &mut SequenceState, tokens: &[Token]) {
        let height = self.height(tokens.len());
        let Engine { model, cx, h, x0, u, m, spare, past, bigrams, work, pointing, .. } = self;
        let (d, rows) = (model.config().dim, tokens.len());
        for (told, &token) in past.iter_mut().zip(&mut *bigrams).zip(tokens) {
            (*told.0, *told.1) = model.advance(state, token);
        }
        let past = &past[..rows];
        let first = &model.body.blocks[0];
        let (width, kept) = (first.width(), model.x0_width());
        let buffers = (Rows(h, d), Rows(x0, kept), Rows(u, width), Parts(work, 1));
        cx.tiles_by(height, rows, buffers, |cx, r, (h, x0, u, work), local| {
            let (tokens, bigrams) = (&tokens[r.clone()], &bigrams[r]);
            model.embed(h, x0, tokens, bigrams);
            first.project(cx, u, h, Entering { x0, tokens }, &mut work[0], local);
        });
        let mut values = &mut state.values[..];
        for (i, block) in model.body.blocks.iter().enumerate() {
            let (len, width, mixed) = (block.state_len(), block.width(), block.mixed());
            let own = values.split_off_mut(..len).expect("a state for each block");
            let row_parallel = block.mixer().row_parallel();
            match row_parallel {
                Some(_) => std::mem::swap(u, spare),
                None => {
                    let (m, u) = (&mut m[..rows * mixed], &mut u[..rows * width]);
                    block.mixer().mix_prompt(cx, m, (u, &mut *spare), own, past);
                }
            }
            let from = (&spare[..rows * width], past);
            let next = model.body.blocks.get(i + 1);
            let wide = next.map_or(0, |next| next.width());
            let buffers = (Rows(h, d), Rows(m, mixed), Rows(u, wide), Parts(work, 1));
            cx.tiles_by(height, rows, buffers, |cx, r, (h, m, u, work), local| {
                let entering = Entering { x0: &x0[r.start * kept..r.end * kept], tokens: &tokens[r.clone()] };
                if let Some(mixer) = row_parallel {
                    local.within(|local| mixer.mix_rows(cx, m, from, r, own, local));
                }
                local.within(|local| block.output(cx, h, m, &mut work[0], local));
                if let Some(next) = next {
                    next.project(cx, u, h, entering, &mut work[0], local);
                }
            });
            if let Some(mixer) = row_parallel {
                mixer.advance_state(from, own);
            }
        }
        if let Some(pointer) = &model.body.pointer {
            let [q, k] = pointing;
            cx.tiles_by(height, rows, (Rows(h, d), Rows(q, d), Rows(k, d)), |cx, _, (h, q, k), local| {
                let x = local.take::<f32>(h.len());
                model.body.norm.forward(cx, x, h);
                pointer.project(cx, q, k, x);
            });
        }
    }

    /// Takes `tokens` into the state's ring, the rows of the last pass from row `at` on, as far as they are pointed at.
    fn keep(&mut self, state: &mut SequenceState, tokens: &[Token], at: usize) {
        let Engine { model, pointing: [_, k], past, .. } = self;
        let d = model.config().dim;
        if let Some((pointer, own)) = model.pointed(state) {
            let rows = k[at * d..].chunks_exact(d).zip(tokens).zip(&past[at..]);
            rows.for_each(|((k, &token), &past)| pointer.keep(own, k, token, past));
        }
    }

    /// Changes logits, from those of row `first` on, by what these rows of the last pass point at.
    fn point(&mut self, state: &mut SequenceState, tokens: &[Token], rows: Range<usize>, first: usize) {
        let Engine { model, cx, pointing: [q, _], past, logits, .. } = self;
        let (d, v) = (model.config().dim, model.config().vocab_size);
        let Some((pointer, own)) = model.pointed(state) else { return };
        let (own, past) = (&*own, &past[rows.clone()]);
        let buffers = (Rows(&mut logits[first * v..], v), Rows(&mut q[rows.start * d..rows.end * d], d));
        cx.tiles_by(1, rows.len(), buffers, |cx, i, (z, q), local| {
            pointer.point(cx, z, q, own, (tokens[i.start], past[i.start]), local);
        });
    }

    /// Logits of the first `rows` rows.
    fn head(&mut self, rows: usize) {
        let height = self.height(rows);
        let Engine { model, cx, h, work, logits, .. } = self;
        let (d, v) = (model.config().dim, model.config().vocab_size);
        cx.tiles_by(height, rows, (Rows(h, d), Rows(logits, v), Parts(work, 1)), |cx, _, (h, z, work), local| {
            let x = local.take::<f32>(h.len());
            model.body.norm.forward(cx, x, h);
            logits_of(cx, model, z, x, &mut work[0]);
        });
    }
}

/// Rows of one tile after the last block.
pub(super) struct LastRows<'a> {
    model: &'a PackedModel,
    pub(super) cx: &'a Exec,
    h: &'a [f32],
    work: &'a mut PackedScratch,
    pub(super) local: &'a Local,
    tokens: &'a [Token],
    past: &'a [u32],
}

impl LastRows<'_> {
    /// Logits `z: [rows, V]`; pointers take the rows into their `states`.
    pub(super) fn head<S: AsMut<SequenceState>>(&mut self, z: &mut [f32], states: &mut [S]) {
        let LastRows { model, cx, h, work, local, tokens, past } = self;
        let (d, v) = (model.config().dim, model.config().vocab_size);
        local.within(|local| {
            let x = local.take::<f32>(h.len());
            model.body.norm.forward(cx, x, h);
            logits_of(cx, model, z, x, work);
            let Some(pointer) = &model.body.pointer else { return };
            let (q, k) = (local.take(h.len()), local.take(h.len()));
            pointer.project(cx, q, k, x);
            let rows = q.chunks_exact(d).zip(k.chunks_exact(d)).zip(tokens.iter().zip(*past));
            for ((((q, k), (&token, &past)), state), z) in rows.zip(states).zip(z.chunks_exact_mut(v)) {
                let (_, own) = model.pointed(state.as_mut()).expect("a pointer");
                pointer.keep(own, k, token, past);
                local.within(|local| pointer.point(cx, z, q, own, (token, past), local));
            }
        });
    }
}

/// Logits `z: [rows, V]` of rows after the last norm, `x: [rows, D]`, as the columns have them.
fn logits_of(cx: &Exec, model: &PackedModel, z: &mut [f32], x: &[f32], work: &mut PackedScratch) {
    let (d, v) = (model.config().dim, model.config().vocab_size);
    work.q.quantise(cx, x, Columns::whole(d));
    packed_matmul(cx, (&mut *z, v, 0), &mut work.q, &model.body.embedding, false);
    if model.body.softcap > 0.0 {
        exact_softcap(cx, z, model.body.softcap);
    }
}
