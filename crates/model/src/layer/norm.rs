//! RMSNorm layer: `y = x / sqrt(mean(x^2) + eps) * scale`; see [`flashlm_kernels::ops::rmsnorm_forward`].

use std::ops::Range;

use flashlm_kernels::ops::{add, add_parts, rmsnorm_backward, rmsnorm_forward};
use flashlm_kernels::{Elem, Exec, Store};

/// Where a learned scale lies.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Its place among the parameters: `[d]`.
    pub scale: Range<usize>,
    /// The place of its gradient among the sums that one tile keeps.
    pub part: Range<usize>,
    /// Epsilon.
    pub eps: f64,
}

impl Norm {
    /// `y, x: [rows, d]`.
    pub fn forward<E: Elem, A: Store<E = E>, X: Store<E = E>>(&self, cx: &Exec, y: &mut [A], x: &[X], params: &[E]) {
        let d = self.scale.len();
        rmsnorm_forward(cx, y, x, &params[self.scale.clone()], self.eps, (x.len() / d, d));
    }

    /// One tile: `dx: [rows, d]`, added to where `accumulate`; the gradient of `scale` is added to the tile's sums `part`.
    pub fn backward<E: Elem, X: Store<E = E>>(
        &self,
        cx: &Exec,
        dx: &mut [E],
        part: &mut [E],
        dy: &[E],
        x: &[X],
        params: &[E],
        accumulate: bool,
    ) {
        let d = self.scale.len();
        let (scale, part) = (&params[self.scale.clone()], &mut part[self.part.clone()]);
        rmsnorm_backward(cx, dx, part, dy, x, scale, self.eps, (x.len() / d, d), accumulate);
    }

    /// Adds what the tiles have summed up to `grads`.
    pub fn add_parts<E: Elem>(&self, grads: &mut [E], tiles: &Tiles<E>) {
        tiles.add(grads, &self.scale, &self.part);
    }
}

/// The sums that the tiles of one pass have kept: `[tiles, width]`.
#[derive(Clone, Copy)]
pub struct Tiles<'a, E> {
    /// All of them.
    pub sums: &'a [E],
    /// Elements of one tile.
    pub width: usize,
}

impl<E: Elem> Tiles<'_, E> {
    /// Adds the sums at `part` of every tile to the gradients at `place`.
    pub fn add(&self, grads: &mut [E], place: &Range<usize>, part: &Range<usize>) {
        add_parts(&mut grads[place.clone()], self.sums, self.width, part.start);
    }
}

/// What a matrix is given.
#[derive(Clone, Copy)]
pub enum Input<'a, A: Store> {
    /// Rows that are kept for matmuls.
    Saved(&'a [A]),
    /// The residual stream itself, where no norm comes before the branch: a matrix's own norm takes it unrounded.
    Residual(&'a [A::E]),
}

impl<A: Store> Input<'_, A> {
    /// Rows times width.
    pub fn size(&self) -> usize {
        match self {
            Input::Saved(x) => x.len(),
            Input::Residual(h) => h.len(),
        }
    }
}

/// The norm between the residual stream and a branch, where the model has one.
#[derive(Clone, Debug)]
pub struct BranchNorm(pub Option<Norm>);

impl BranchNorm {
    /// The input of a branch from the residual stream, `h: [rows, d]`: normalised into `x` where there is a norm.
    pub fn forward<'a, A: Store>(&self, cx: &Exec, x: &'a mut [A], h: &'a [A::E], params: &[A::E]) -> Input<'a, A> {
        if let Some(norm) = &self.0 {
            norm.forward(cx, x, h, params);
        }
        self.input(x, h)
    }

    /// What [`BranchNorm::forward`] has returned for these.
    pub fn input<'a, A: Store>(&self, x: &'a [A], h: &'a [A::E]) -> Input<'a, A> {
        if self.0.is_some() { Input::Saved(x) } else { Input::Residual(h) }
    }

    /// Adds a branch's gradient `dx` to that of the residual stream, through the norm where there is one.
    pub fn backward<E: Elem>(&self, cx: &Exec, dh: &mut [E], part: &mut [E], dx: &[E], h: &[E], params: &[E]) {
        match &self.0 {
            None => add(cx, dh, dx),
            Some(norm) => norm.backward(cx, dh, part, dx, h, params, true),
        }
    }

    /// Adds what the tiles have summed up to `grads`.
    pub fn add_parts<E: Elem>(&self, grads: &mut [E], tiles: &Tiles<E>) {
        if let Some(norm) = &self.0 {
            norm.add_parts(grads, tiles);
        }
    }
}
