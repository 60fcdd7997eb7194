//! TernaryGLU branch: `y = h + W_down (act(W_gate x) * (W_up x))`, `x = norm(h)`, widths `D -> F -> D`; `act` is
//! SiLU or squared ReLU.

use flashlm_kernels::ops::{Act, gate_forward, glu_backward, glu_forward, narrow};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Exec, Store};

use super::branch::Branch;
use super::linear::{BitLinear, Linear};
use super::norm::{BranchNorm, Input, Tiles};
use super::pass::Pass;
use super::scratch::{Scratch, WIDE};

/// Where its three matrices lie.
#[derive(Clone, Debug)]
pub struct FfnParams {
    /// The norm before it.
    pub norm: BranchNorm,
    /// `[F, D]`.
    pub gate: Linear,
    /// `[F, D]`.
    pub up: Linear,
    /// `[D, F]`.
    pub down: Linear,
    /// What the gate goes through.
    pub act: Act,
    part: usize,
}

impl FfnParams {
    /// Adds `W_gate`, `W_up` and `W_down`.
    pub fn new(b: &mut Branch, hidden: usize, act: Act) -> Self {
        let d = b.config().dim;
        let (gate, up) = (b.linear("W_gate", hidden, d), b.linear("W_up", hidden, d));
        let down = b.output("W_down", hidden);
        FfnParams::of(b, b.branch_norm(), [gate, up, down], act)
    }

    /// Of matrices that the branch has already, with the norm before it.
    pub fn of(b: &Branch, norm: BranchNorm, [gate, up, down]: [Linear; 3], act: Act) -> Self {
        FfnParams { norm, gate, up, down, act, part: b.need().part }
    }
}

/// Its weights.
pub struct Ffn<A: Store> {
    of: FfnParams,
    gate: BitLinear<A>,
    up: BitLinear<A>,
    down: BitLinear<A>,
}

/// What the forward pass saves: gate and value, `[rows, F]`.
pub struct Saved<A: Store> {
    g: Buf<A>,
    u: Buf<A>,
}

impl<A: Store> Ffn<A> {
    /// Room for the weights.
    pub fn new(of: FfnParams, training: bool) -> Self {
        let matrix = |of| BitLinear::new(of, training);
        Ffn { gate: matrix(&of.gate), up: matrix(&of.up), down: matrix(&of.down), of }
    }

    /// Room for what a forward pass of at most `rows` rows saves.
    pub fn saved(&self, rows: usize) -> Saved<A> {
        let f = self.of.down.inputs;
        Saved { g: Buf::scratch(rows * f), u: Buf::scratch(rows * f) }
    }

    /// Widths of what the backward pass takes of [`Scratch::wide`].
    pub fn wide(&self) -> [usize; WIDE] {
        let f = self.of.down.inputs;
        [f, f, f, 0, 0]
    }

    /// Quantises and packs the weights.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        for matrix in [&mut self.gate, &mut self.up, &mut self.down] {
            matrix.prepare(cx, params, s);
        }
    }

    /// `y, h: [rows, D]`.
    pub fn forward(&self, pass: Pass<A::E>, y: &mut [A::E], saved: &mut Saved<A>, h: &[A::E]) {
        let Ffn { of: FfnParams { norm, act, .. }, gate, up, down } = self;
        let (f, d) = (self.of.down.inputs, self.of.down.outputs);
        let buffers = (Rows(y, d), Rows(&mut saved.g, f), Rows(&mut saved.u, f));
        pass.cx.tiles(h.len() / d, buffers, |cx, r, (y, g, u), local| {
            let h = &h[r.start * d..r.end * d];
            let (x, a) = (local.take(r.len() * d), local.take(r.len() * f));
            let (zg, zu) = (local.take(r.len() * f), local.take(r.len() * f));
            let x = norm.forward(cx, x, h, pass.params);
            gate.forward(cx, zg, x, pass, local, false);
            up.forward(cx, zu, x, pass, local, false);
            glu_forward(cx, a, g, u, zg, zu, *act);
            y.copy_from_slice(h);
            down.forward(cx, y, Input::Saved(a), pass, local, true);
        });
    }

    /// Turns `dh: [rows, D]` from the gradient of `y` into that of `h`; adds to `grads`.
    pub fn backward(
        &self,
        pass: Pass<A::E>,
        dh: &mut [A::E],
        grads: &mut [A::E],
        saved: &Saved<A>,
        h: &[A::E],
        s: &mut Scratch<A>,
    ) {
        let Ffn { of: FfnParams { norm, act, part: width, .. }, gate, up, down } = self;
        let (f, d, width) = (self.of.down.inputs, self.of.down.outputs, *width);
        let rows = h.len() / d;
        let tiles = pass.cx.tile_count(rows) * width;
        let [dg, du, a, ..] = &mut s.wide;
        let buffers = (
            Rows(dh, d),
            Rows(&mut s.dy, d),
            Rows(&mut s.x, d),
            Rows(dg, f),
            Rows(du, f),
            Rows(a, f),
            Parts(&mut s.parts[..tiles], width),
        );
        pass.cx.tiles(rows, buffers, |cx, r, (dh, dy, x, dg, du, a, part), local| {
            let (h, wide) = (&h[r.start * d..r.end * d], r.start * f..r.end * f);
            let (g, u) = (&saved.g[wide.clone()], &saved.u[wide]);
            part.fill(A::E::ZERO);
            let (da, dx) = (local.take(r.len() * f), local.take(r.len() * d));
            let x = norm.forward(cx, x, h, pass.params);
            narrow(cx, dy, dh);
            if down.has_norm() {
                // Only a norm of its own needs the matrix's input before its output's gradient.
                gate_forward(cx, a, g, u, *act);
            }
            down.backward_input(cx, da, part, dy, Input::Saved(a), pass, local, false);
            glu_backward(cx, dg, du, a, da, g, u, *act);
            gate.backward_input(cx, dx, part, dg, x, pass, local, false);
            up.backward_input(cx, dx, part, du, x, pass, local, true);
            norm.backward(cx, dh, part, dx, h, pass.params);
        });
        let tiles = &Tiles { sums: &s.parts[..tiles], width };
        norm.add_parts(grads, tiles);
        let x = norm.input(&s.x[..rows * d], h);
        let (w, a) = (&mut s.weights, Input::Saved(&s.wide[2][..rows * f]));
        let inputs = [(gate, &s.wide[0][..rows * f]), (up, &s.wide[1][..rows * f])];
        BitLinear::backward_weights(pass, grads, &inputs, x, w, tiles);
        BitLinear::backward_weights(pass, grads, &[(down, &s.dy[..rows * d])], a, w, tiles);
    }
}
