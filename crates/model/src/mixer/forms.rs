//! What a mixer is in training ([`Mixer`]) and in the packed runtime (`PackedMixer`).

use std::any::Any;
use std::ops::Range;

use flashlm_kernels::tile::{Local, Rows};
use flashlm_kernels::{Exec, Store};

use crate::layer::packed::{PackedLinear, PackedScratch};
use crate::layer::pass::Pass;
use crate::layer::scratch::{Scratch, WIDE};

/// A causal branch of the residual stream, `y = h + mix(norm(h))`, `h: [B*T, D]`: its weights, packed. They do not change from one
/// pass to the next, so several threads may share them, and a block may be applied more than once.
pub trait Mixer<A: Store>: Send + Sync {
    /// What a forward pass leaves for its backward pass.
    type Saved: Send + 'static;

    /// Room for what a pass of at most `rows` rows saves; only `training` has a backward pass.
    fn saved(&self, rows: usize, training: bool) -> Self::Saved;

    /// Widths of the rows that the backward pass takes of [`Scratch::wide`].
    fn wide(&self) -> [usize; WIDE];

    /// Elements of the state of one sequence; a state of zeros is the start.
    fn state_len(&self) -> usize;

    /// Quantises and packs the weights.
    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>);

    /// Overwrites `y`. With a `state: [B, state_len]` the sequences go on where it stands, and it moves on; without one they
    /// start. No row sees one before its document, as [`Span::past`](flashlm_kernels::Span::past) has it: where that is 0 the row is the first
    /// of a document, which without a state the first row of every sequence is.
    fn forward(
        &self,
        pass: Pass<A::E>,
        y: &mut [A::E],
        saved: &mut Self::Saved,
        state: Option<&mut [A::E]>,
        h: &[A::E],
    );

    /// Turns `dh` from the gradient of `y` into that of `h` and adds to `grads`, for sequences that started with the forward
    /// pass that left `saved`, which may be overwritten.
    fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &mut Self::Saved,
        h: &[A::E],
        s: &mut Scratch<A>,
    );
}

/// What any mixer has saved.
pub type AnySaved = Box<dyn Any + Send>;

/// A [`Mixer`] of any kind. Its `saved` must be its own.
pub trait AnyMixer<A: Store>: Send + Sync {
    /// See [`Mixer::saved`].
    fn saved(&self, rows: usize, training: bool) -> AnySaved;
    /// See [`Mixer::wide`].
    fn wide(&self) -> [usize; WIDE];
    /// See [`Mixer::state_len`].
    fn state_len(&self) -> usize;
    /// See [`Mixer::prepare`].
    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>);
    /// See [`Mixer::forward`].
    fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut AnySaved, state: Option<&mut [A::E]>, h: &[A::E]);
    /// See [`Mixer::backward`].
    fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &mut AnySaved,
        h: &[A::E],
        s: &mut Scratch<A>,
    );
}

impl<A: Store, M: Mixer<A>> AnyMixer<A> for M {
    fn saved(&self, rows: usize, training: bool) -> AnySaved {
        Box::new(Mixer::saved(self, rows, training))
    }

    fn wide(&self) -> [usize; WIDE] {
        Mixer::wide(self)
    }

    fn state_len(&self) -> usize {
        Mixer::state_len(self)
    }

    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        Mixer::prepare(self, cx, params, s);
    }

    fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut AnySaved, state: Option<&mut [A::E]>, h: &[A::E]) {
        Mixer::forward(self, pass, y, own::<A, M>(saved), state, h);
    }

    fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &mut AnySaved,
        h: &[A::E],
        s: &mut Scratch<A>,
    ) {
        Mixer::backward(self, pass, dh, grads, own::<A, M>(saved), h, s);
    }
}

fn own<A: Store, M: Mixer<A>>(saved: &mut AnySaved) -> &mut M::Saved {
    saved.downcast_mut().expect("what this mixer has saved")
}

/// A mixer of the packed runtime; `u: [rows, width]` is what it makes of its input, `m: [rows, inputs of its output]` what it
/// mixes of that.
pub(crate) trait PackedMixer: Send + Sync {
    /// All its matrices but that of its output.
    fn inputs(&self) -> Vec<&PackedLinear>;

    /// The matrix that makes of `m` what the branch adds.
    fn output(&self) -> &PackedLinear;

    /// Elements of a row of `u`.
    fn width(&self) -> usize;

    /// Elements of the state of one sequence; a state of zeros is the start.
    fn state_len(&self) -> usize;

    /// `u` of one tile from its normed rows `x: [rows, D]`.
    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch);

    /// Mixes the rows `u` of one sequence, which may be overwritten; its state moves on. `past` counts the rows of the document
    /// before each.
    fn mix(&self, cx: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local);

    /// The same of the many rows of a prompt, on all threads; `spare` has room for as many rows as `u`.
    fn mix_prompt(
        &self,
        cx: &Exec,
        m: &mut [f32],
        (u, _spare): (&mut [f32], &mut [f32]),
        state: &mut [f32],
        past: &[u32],
    ) {
        let (inner, width, len) = (m.len(), u.len(), state.len());
        cx.tiles_by(1, 1, (Rows(m, inner), Rows(u, width), Rows(state, len)), |cx, _, (m, u, state), local| {
            self.mix(cx, m, u, state, past, local);
        });
    }

    /// Itself, if a mixed row depends only on the rows `u` near it: each tile of a prompt then mixes its own rows in parallel.
    fn row_parallel(&self) -> Option<&dyn RowParallel> {
        None
    }
}

/// A [`PackedMixer`] in two steps, of rows `u` of one sequence with `past`.
pub(crate) trait RowParallel: Sync {
    /// Puts the rows `rows`, mixed, into `m`.
    fn mix_rows(
        &self,
        cx: &Exec,
        m: &mut [f32],
        from: (&[f32], &[u32]),
        rows: Range<usize>,
        state: &[f32],
        local: &Local,
    );

    /// Advances the state past these rows.
    fn advance_state(&self, from: (&[f32], &[u32]), state: &mut [f32]);
}
