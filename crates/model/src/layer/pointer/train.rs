//! Pointers in training: [`BLOCK`] rows at a time against those before them.

use std::ops::Range;

use flashlm_kernels::ops::{
    Objective, Seen, add, narrow, pointer_backward, pointer_forward, pointer_room, pointer_work,
};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Elem, Exec, Span, Store, Token};

use super::PointerParams;
use super::words::Words;
use crate::layer::head::Masses;
use crate::layer::linear::BitLinear;
use crate::layer::norm::{Input, Norm, Tiles};
use crate::layer::pass::Pass;
use crate::layer::scratch::Scratch;

/// Most queries of a block.
const BLOCK: usize = 48;

/// Its weights.
pub struct Pointer<A: Store> {
    of: PointerParams,
    key: BitLinear<A>,
    words: Words,
}

/// What a pass saves.
pub struct Saved<A: Store> {
    /// What the head is given: `[rows, D]`.
    x: Buf<A>,
    /// Scaled queries, and keys, `[rows, D]`; in the backward pass their gradients.
    q: Buf<A::E>,
    k: Buf<A::E>,
    /// The masses of rows, of which the head makes what the backward pass needs.
    pub masses: Masses<A::E>,
    /// As they were, and in the backward pass `dq . x` of each row.
    all: Buf<A::E>,
    own: Buf<A::E>,
    /// The token after each row and its target, as they are read ([`Words`]).
    next: Vec<Token>,
    targets: Vec<Token>,
}

impl<A: Store> Pointer<A> {
    /// Room for the weights.
    pub fn new(of: PointerParams, training: bool) -> Self {
        Pointer { key: BitLinear::new(&of.key, training), of, words: Words::default() }
    }

    /// Room for `rows` rows.
    pub fn saved(&self, rows: usize) -> Saved<A> {
        let d = self.of.key.inputs;
        Saved {
            x: Buf::scratch(rows * d),
            q: Buf::scratch(rows * d),
            k: Buf::scratch(rows * d),
            masses: Masses { all: Buf::scratch(rows), own: Buf::scratch(rows) },
            all: Buf::scratch(rows),
            own: Buf::scratch(rows),
            next: Vec::with_capacity(rows),
            targets: Vec::with_capacity(rows),
        }
    }

    /// Numbers in the state of one sequence.
    pub fn state_len(&self) -> usize {
        self.of.window * (self.of.key.inputs + 1)
    }

    /// Packs the matrix, and reads the words.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        self.key.prepare(cx, params, s);
        if let Some(places) = &self.of.words {
            self.words.read(params, places);
        }
    }

    /// What the token after each row is read as; after the last of a sequence, 1 where it opens: the token is not known.
    fn read_next(&self, next: &mut Vec<Token>, tokens: &[Token], t: usize) {
        next.clear();
        for tokens in tokens.chunks_exact(t.max(1)) {
            next.extend(tokens.windows(2).map(|of| self.words.read_as(self.words.opens(of[0]), of[1])));
            next.extend(tokens.last().map(|&last| Token::from(self.words.opens(last))));
        }
    }

    /// `scale D^-1/2` and `bias`.
    fn numbers<E: Elem>(&self, params: &[E]) -> (f64, f64) {
        let scale = (self.of.key.inputs as f64).powf(-0.5);
        (params[self.of.scale.start].to_f64() * scale, params[self.of.bias.start].to_f64())
    }

    /// Queries and keys of the rows that end the residual stream, `h: [rows, D]`.
    pub fn project(&self, pass: Pass<A::E>, saved: &mut Saved<A>, h: &[A::E], norm: &Norm) {
        let (d, by) = (self.of.key.inputs, A::E::from_f64(self.numbers(pass.params).0));
        let Saved { x, q, k, .. } = saved;
        pass.cx.tiles(h.len() / d, (Rows(x, d), Rows(q, d), Rows(k, d)), |cx, r, (x, q, k), local| {
            norm.forward(cx, x, &h[r.start * d..r.end * d], pass.params);
            self.key.forward(cx, k, Input::Saved(x), pass, local, false);
            for ((q, k), x) in q.iter_mut().zip(k).zip(&*x) {
                (*q, *k) = (x.widen() * by, *k + x.widen());
            }
        });
    }

    /// The masses of all rows at their `targets`, into [`Saved::masses`]; a state moves on.
    pub fn masses(
        &self,
        pass: Pass<A::E>,
        saved: &mut Saved<A>,
        (tokens, targets): (&[Token], &[Token]),
        state: Option<&mut [A::E]>,
    ) {
        let (d, window, t) = (self.of.key.inputs, self.of.window, pass.span.len);
        let bias = A::E::from_f64(self.numbers(pass.params).1);
        let Saved { q, k, masses, all, own, next, targets: read, .. } = saved;
        self.read_next(next, tokens, t);
        read.clear();
        read.extend(
            tokens.iter().zip(targets).map(|(&token, &target)| self.words.read_as(self.words.opens(token), target)),
        );
        let Masses { all: told_all, own: told_own } = masses;
        let (state, state_len) = state.map_or((&mut [][..], 0), |state| (state, self.state_len()));
        let buffers = (Rows(told_all, t), Rows(told_own, t), Rows(all, t), Rows(own, t), Rows(state, state_len));
        pass.cx.tiles_by(1, pass.span.batch, buffers, |cx, i, (told_all, told_own, all, own, state), local| {
            let rows = i.start * t..i.end * t;
            let (tokens, next, targets) = (&tokens[rows.clone()], &next[rows.clone()], &read[rows]);
            let cells = i.start * t * d..i.end * t * d;
            let (q, k) = (&q[cells.clone()], &k[cells]);
            let most = BLOCK.min(t);
            let work = local.take(pointer_work(most, window + most));
            let room = local.take::<A>(pointer_room(most, d));
            let kept = (local.take((window + most) * d), local.take::<Token>(window + most));
            let mut text =
                Text { span: &pass.span.sequence(i.start), k, tokens, next, words: &self.words, state, window, d };
            text.each(kept, |run, keys, next, before| {
                let seen = Seen { queries: &q[run.start * d..run.end * d], keys, next, before, window, d };
                let out = (&mut all[run.clone()], &mut own[run.clone()]);
                pointer_forward(cx, out, seen, &targets[run], work, room);
            });
            for (told, masses) in [(told_all, all), (told_own, own)] {
                masses.iter_mut().for_each(|mass| *mass += bias);
                told.copy_from_slice(masses);
            }
        });
    }

    /// Adds what the rows point at to their logits, `z: [rows, V]`; a state moves on.
    pub fn point(
        &self,
        pass: Pass<A::E>,
        z: &mut [A::E],
        saved: &mut Saved<A>,
        tokens: &[Token],
        state: Option<&mut [A::E]>,
    ) {
        let (d, window, t) = (self.of.key.inputs, self.of.window, pass.span.len);
        self.read_next(&mut saved.next, tokens, t);
        let saved = &*saved;
        let (bias, v) = (self.numbers(pass.params).1, z.len() / tokens.len().max(1));
        let (state, state_len) = state.map_or((&mut [][..], 0), |state| (state, self.state_len()));
        pass.cx.tiles_by(1, pass.span.batch, (Rows(z, t * v), Rows(state, state_len)), |_, i, (z, state), local| {
            let (tokens, cells) = (&tokens[i.start * t..i.end * t], i.start * t * d..i.end * t * d);
            let (q, k) = (&saved.q[cells.clone()], &saved.k[cells]);
            let most = BLOCK.min(t);
            let kept = (local.take((window + most) * d), local.take::<Token>(window + most));
            let mass = local.take::<f64>(v);
            let next = &saved.next[i.start * t..i.end * t];
            let mut text =
                Text { span: &pass.span.sequence(i.start), k, tokens, next, words: &self.words, state, window, d };
            text.each(kept, |run, keys, next, before| {
                for (i, row) in run.enumerate() {
                    let (q, z) = (&q[row * d..(row + 1) * d], &mut z[row * v..(row + 1) * v]);
                    let opens = self.words.opens(tokens[row]);
                    let seen = (before + i).saturating_sub(window)..before + i;
                    let dot = |k: &[A::E]| q.iter().zip(k).map(|(q, k)| q.to_f64() * k.to_f64()).sum::<f64>() + bias;
                    z.iter().zip(&mut *mass).for_each(|(z, mass)| *mass = z.to_f64().exp());
                    for (k, next) in keys[seen.start * d..seen.end * d].chunks_exact(d).zip(&next[seen]) {
                        mass[usize::from(self.words.read_as(opens, *next))] += dot(k).exp();
                    }
                    z.iter_mut().zip(&*mass).for_each(|(z, mass)| *z = A::E::from_f64(mass.ln()));
                }
            });
        });
    }

    /// Adds its part to `dh: [rows, D]`, the gradient of the residual stream's end, and to `grads`, after the head's.
    pub fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &mut Saved<A>,
        (h, norm): (&[A::E], &Norm),
        s: &mut Scratch<A>,
        objective: Objective,
    ) {
        let (cx, span, d, window, t) = (pass.cx, pass.span, self.of.key.inputs, self.of.window, pass.span.len);
        let Saved { x, q, k, masses: Masses { all: whole, own: hit }, all, own, next, targets } = saved;
        let ((by, bias), scale, rows) = (self.numbers(pass.params), objective.scale, targets.len());
        // Of the scores' sum: what each row gives to the bias.
        let mut sum = 0.0;
        for i in 0..rows {
            let part = |mass: A::E, of: A::E| (mass.to_f64() - of.to_f64()).exp();
            sum += scale * (part(all[i], whole[i]) - part(own[i], hit[i]));
        }
        grads[self.of.bias.start] += A::E::from_f64(sum);

        let buffers = (Rows(q, t * d), Rows(k, t * d), Rows(whole, t), Rows(hit, t));
        cx.tiles_by(1, span.batch, buffers, |cx, i, (q, k, whole, hit), local| {
            let (next, targets) = (&next[i.start * t..i.end * t], &targets[i.start * t..i.end * t]);
            for sums in [&mut *whole, &mut *hit] {
                sums.iter_mut().for_each(|sum| *sum = *sum - A::E::from_f64(bias));
            }
            let most = BLOCK.min(t);
            let work = local.take(pointer_work(most, 0));
            let room = local.take::<A>(pointer_room(most, d));
            let (dk, dq) = (local.take(t * d), local.take(most * d));
            dk.fill(A::E::ZERO);
            let span = &span.sequence(i.start);
            let mut at = 0;
            while at < t {
                let run = span.run(at..t, BLOCK);
                let before = (span.past[at] as usize).min(window);
                let keys = at - before..run.end - 1;
                let cells = keys.start * d..keys.end * d;
                let own = run.start * d..run.end * d;
                let next = &next[keys.clone()];
                let seen = Seen { queries: &q[own.clone()], keys: &k[cells.clone()], next, before, window, d };
                let sums = (&whole[run.clone()], &hit[run.clone()]);
                let dq = &mut dq[..own.len()];
                pointer_backward(cx, (dq, &mut dk[cells]), seen, &targets[run.clone()], sums, scale, work, room);
                q[own].copy_from_slice(dq);
                at = run.end;
            }
            k.copy_from_slice(dk);
        });

        let parts = &mut s.parts[..cx.tile_count(rows) * d];
        let buffers = (Rows(dh, d), Rows(&mut s.dy, d), Rows(all, 1), Parts(parts, d));
        let width = A::E::from_f64((d as f64).powf(-0.5));
        cx.tiles(rows, buffers, |cx, r, (dh, dk_kept, dots, part), local| {
            let cells = r.start * d..r.end * d;
            let (x, dq, dk) = (&x[cells.clone()], &q[cells.clone()], &k[cells.clone()]);
            let (dx, z) = (local.take(cells.len()), local.take(cells.len()));
            for ((dx, dq), dk) in dx.iter_mut().zip(dq).zip(dk) {
                *dx = *dq * A::E::from_f64(by) + *dk;
            }
            for ((dot, dq), x) in dots.iter_mut().zip(dq.chunks_exact(d)).zip(x.chunks_exact(d)) {
                *dot = dq.iter().zip(x).fold(A::E::ZERO, |sum, (dq, x)| sum + *dq * x.widen()) * width;
            }
            narrow(cx, dk_kept, dk);
            part.fill(A::E::ZERO);
            self.key.backward_input(cx, z, part, dk_kept, Input::Saved(x), pass, local, false);
            add(cx, dx, z);
            norm.backward(cx, dh, part, dx, &h[cells], pass.params, true);
        });
        let sum: f64 = all[..rows].iter().map(|x| x.to_f64()).sum();
        grads[self.of.scale.start] += A::E::from_f64(sum);
        let tiles = &Tiles { sums: &s.parts[..cx.tile_count(rows) * d], width: d };
        let dk = [(&self.key, &s.dy[..rows * d])];
        BitLinear::backward_weights(pass, grads, &dk, Input::Saved(&x[..rows * d]), &mut s.weights, tiles);
        norm.add_parts(grads, tiles);
    }
}

/// Rows of one sequence, and where there is a state what came before.
struct Text<'a, E: Elem> {
    span: &'a Span<'a>,
    k: &'a [E],
    tokens: &'a [Token],
    /// [`Pointer::read_next`].
    next: &'a [Token],
    words: &'a Words,
    /// The ring, or empty.
    state: &'a mut [E],
    window: usize,
    d: usize,
}

impl<E: Elem> Text<'_, E> {
    /// Tells each run of rows: the rows, the keys before and among them, the token after each, the number of those before.
    fn each(
        &mut self,
        (kept, named): (&mut [E], &mut [Token]),
        mut tell: impl FnMut(Range<usize>, &[E], &[Token], usize),
    ) {
        let (d, window) = (self.d, self.window);
        let (ring, labels) = self.state.split_at_mut(self.state.len() / (d + 1) * d);
        let mut at = 0;
        while at < self.span.len {
            let run = self.span.run(at..self.span.len, BLOCK);
            let past = self.span.past[at] as usize;
            let before = past.min(window);
            if ring.is_empty() {
                let keys = at - before..run.end - 1;
                tell(run.clone(), &self.k[keys.start * d..keys.end * d], &self.next[keys], before);
            } else {
                if at == 0 && past > 0 {
                    let label = &mut labels[(past - 1) % window];
                    *label = E::from_f64(f64::from(self.words.read_as(*label != E::ZERO, self.tokens[0])));
                }
                let l = before + run.len() - 1;
                for (i, past) in (past - before..past).enumerate() {
                    let slot = past % window;
                    kept[i * d..(i + 1) * d].copy_from_slice(&ring[slot * d..(slot + 1) * d]);
                    named[i] = labels[slot].to_f64() as Token;
                }
                kept[before * d..l * d].copy_from_slice(&self.k[at * d..(run.end - 1) * d]);
                named[before..l].copy_from_slice(&self.next[at..run.end - 1]);
                tell(run.clone(), &kept[..l * d], &named[..l], before);
                for (i, row) in run.clone().enumerate() {
                    let slot = (past + i) % window;
                    ring[slot * d..(slot + 1) * d].copy_from_slice(&self.k[row * d..(row + 1) * d]);
                    labels[slot] = E::from_f64(f64::from(self.next[row]));
                }
            }
            at = run.end;
        }
    }
}
