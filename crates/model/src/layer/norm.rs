//! RMSNorm layer: `y = x / sqrt(mean(x^2) + eps) * scale`; see [`flashlm_kernels::ops::rmsnorm_forward`].

use std::ops::Range;

use flashlm_kernels::ops::{add_parts, rmsnorm_backward, rmsnorm_forward};
use flashlm_kernels::{Elem, Exec, Store};

use crate::params::{Group, Init, Layout};

/// A learned scale.
#[derive(Clone)]
pub struct Norm {
    scale: Range<usize>,
    eps: f64,
}

impl Norm {
    /// Adds `name: [d]` to the layout.
    pub fn new(layout: &mut Layout, name: String, d: usize, eps: f64) -> Self {
        Norm { scale: layout.add(name, &[d], Init::Ones, Group::Norm), eps }
    }

    /// `d`, which is also what one tile's gradient of the scale takes.
    pub fn width(&self) -> usize {
        self.scale.len()
    }

    /// `y, x: [rows, d]`.
    pub fn forward<E: Elem, A: Store<E = E>, X: Store<E = E>>(&self, cx: &Exec, y: &mut [A], x: &[X], params: &[E]) {
        let d = self.width();
        rmsnorm_forward(cx, y, x, &params[self.scale.clone()], self.eps, (x.len() / d, d));
    }

    /// One tile: `dx: [rows, d]`, added to where `accumulate`; the gradient of `scale` is added to `part: [d]`.
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
        let d = self.width();
        let scale = &params[self.scale.clone()];
        rmsnorm_backward(cx, dx, part, dy, x, scale, self.eps, (x.len() / d, d), accumulate);
    }

    /// Adds the tiles' gradients, `parts: [tiles, width]` from element `at` on, to `grads`.
    pub fn add_parts<E: Elem>(&self, grads: &mut [E], parts: &[E], width: usize, at: usize) {
        add_parts(&mut grads[self.scale.clone()], parts, width, at);
    }
}

/// What a matrix is given.
#[derive(Clone, Copy)]
pub enum Input<'a, A: Store> {
    /// Rows that are kept for products.
    Kept(&'a [A]),
    /// The residual stream itself, where no norm comes before the branch: a matrix's own norm takes it unrounded.
    Stream(&'a [A::E]),
}

impl<A: Store> Input<'_, A> {
    /// Rows times width.
    pub fn size(&self) -> usize {
        match self {
            Input::Kept(x) => x.len(),
            Input::Stream(h) => h.len(),
        }
    }
}

/// The input of a branch from the residual stream, `h: [rows, d]`: normalised into `x` where there is a norm.
pub fn branch_forward<'a, A: Store>(
    cx: &Exec,
    norm: Option<&Norm>,
    x: &'a mut [A],
    h: &'a [A::E],
    params: &[A::E],
) -> Input<'a, A> {
    if let Some(norm) = norm {
        norm.forward(cx, x, h, params);
    }
    branch_input(norm, x, h)
}

/// What [`branch_forward`] has returned for these.
pub fn branch_input<'a, A: Store>(norm: Option<&Norm>, x: &'a [A], h: &'a [A::E]) -> Input<'a, A> {
    if norm.is_some() { Input::Kept(x) } else { Input::Stream(h) }
}

/// Adds a branch's gradient `dx` to that of the residual stream, through the norm where there is one.
pub fn branch_backward<E: Elem>(
    cx: &Exec,
    norm: Option<&Norm>,
    dh: &mut [E],
    part: &mut [E],
    dx: &[E],
    h: &[E],
    params: &[E],
) {
    match norm {
        None => flashlm_kernels::ops::add(cx, dh, dx),
        Some(norm) => norm.backward(cx, dh, part, dx, h, params, true),
    }
}
