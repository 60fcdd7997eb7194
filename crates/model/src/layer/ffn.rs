//! TernaryGLU branch: `y = h + W_down (act(W_gate x) * (W_up x))`, `x = norm(h)`, widths `D -> F -> D`; `act` is
//! SiLU or squared ReLU.

use flashlm_kernels::ops::{Act, gate_forward, glu_backward, glu_forward, narrow};
use flashlm_kernels::tile::{Parts, Rows};
use flashlm_kernels::{Buf, Exec, Store};

use crate::config::ModelConfig;
use crate::layer::linear::Linear;
use crate::layer::norm::{Input, Norm, branch_backward, branch_forward, branch_input};
use crate::layer::{Need, Scratch};
use crate::params::Layout;

/// Three matrices and the saved gate and value.
pub struct Ffn<A: Store> {
    norm: Option<Norm>,
    gate: Linear<A>,
    up: Linear<A>,
    down: Linear<A>,
    activation: Act,
    dim: usize,
    hidden: usize,
    g: Buf<A>,
    u: Buf<A>,
}

impl<A: Store> Ffn<A> {
    /// Adds `prefix.W_gate`, `.W_up`, `.W_down` to the layout; `norm` is in it already.
    pub fn new(
        layout: &mut Layout,
        prefix: &str,
        norm: Option<Norm>,
        config: &ModelConfig,
        rows: usize,
        training: bool,
    ) -> Self {
        let (d, f) = (config.dim, config.ffn_hidden);
        let name = |part| format!("{prefix}.{part}");
        Ffn {
            norm,
            gate: Linear::new(layout, &name("W_gate"), (f, d), config, training),
            up: Linear::new(layout, &name("W_up"), (f, d), config, training),
            down: Linear::output(layout, &name("W_down"), (d, f), config, training),
            activation: config.activation.activation(),
            dim: d,
            hidden: f,
            g: Buf::scratch(rows * f),
            u: Buf::scratch(rows * f),
        }
    }

    /// Number of its parameters, without the norm before it.
    pub fn parameters(config: &ModelConfig) -> usize {
        let (d, f) = (config.dim, config.ffn_hidden);
        2 * Linear::<A>::parameters((f, d), config) + Linear::<A>::output_parameters((d, f), config)
    }

    /// What it takes of the scratch.
    pub fn need(&self) -> Need {
        let (d, f) = (self.dim, self.hidden);
        Need { matrix: d * f, input: d.max(f), part: 3 * d + f, wide: [f, f, f, 0, 0] }
    }

    /// All its matrices.
    pub fn linears(&mut self) -> [&mut Linear<A>; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }

    /// Quantises and packs the weights.
    pub fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>) {
        for linear in self.linears() {
            linear.prepare(cx, params, s);
        }
    }

    /// `y, h: [rows, D]`.
    pub fn forward(&mut self, cx: &Exec, y: &mut [A::E], h: &[A::E], params: &[A::E]) {
        let Ffn { norm, gate, up, down, activation, dim: d, hidden: f, g, u } = self;
        let (d, f) = (*d, *f);
        cx.tiles(h.len() / d, (Rows(y, d), Rows(g, f), Rows(u, f)), |cx, r, (y, g, u), local| {
            let h = &h[r.start * d..r.end * d];
            let (x, a) = (local.take(r.len() * d), local.take(r.len() * f));
            let (zg, zu) = (local.take(r.len() * f), local.take(r.len() * f));
            let x = branch_forward(cx, norm.as_ref(), x, h, params);
            gate.forward(cx, zg, x, params, local, false);
            up.forward(cx, zu, x, params, local, false);
            glu_forward(cx, a, g, u, zg, zu, *activation);
            y.copy_from_slice(h);
            down.forward(cx, y, Input::Kept(a), params, local, true);
        });
    }

    /// Turns `dh: [rows, D]` from the gradient of `y` into that of `h`; adds to `grads`.
    pub fn backward(
        &self,
        cx: &Exec,
        dh: &mut [A::E],
        grads: &mut [A::E],
        h: &[A::E],
        params: &[A::E],
        s: &mut Scratch<A>,
    ) {
        let Ffn { norm, gate, up, down, activation, dim: d, hidden: f, g, u } = self;
        let (d, f, rows) = (*d, *f, h.len() / self.dim);
        let [dg, du, a, ..] = &mut s.wide;
        let own = norm.as_ref().map_or(0, Norm::width);
        let (at_up, at_down) = (own + gate.part_width(), own + gate.part_width() + up.part_width());
        let width = at_down + down.part_width();
        let parts = &mut s.parts[..cx.tile_count(rows) * width];
        let buffers = (
            Rows(dh, d),
            Rows(&mut s.dy, d),
            Rows(&mut s.x, d),
            Rows(dg, f),
            Rows(du, f),
            Rows(a, f),
            Parts(parts, width),
        );
        cx.tiles(rows, buffers, |cx, r, (dh, dy, x, dg, du, a, part), local| {
            let (h, wide) = (&h[r.start * d..r.end * d], r.start * f..r.end * f);
            let (g, u) = (&g[wide.clone()], &u[wide]);
            part.fill(A::E::ZERO);
            let (part_norm, part) = part.split_at_mut(own);
            let (part_gate, part) = part.split_at_mut(gate.part_width());
            let (part_up, part_down) = part.split_at_mut(up.part_width());
            let (da, dx) = (local.take(r.len() * f), local.take(r.len() * d));
            let x = branch_forward(cx, norm.as_ref(), x, h, params);
            narrow(cx, dy, dh);
            if down.has_norm() {
                // Only a norm of its own needs the matrix's input before its output's gradient.
                gate_forward(cx, a, g, u, *activation);
            }
            down.backward_input(cx, da, part_down, dy, Input::Kept(a), params, local, false);
            glu_backward(cx, dg, du, a, da, g, u, *activation);
            gate.backward_input(cx, dx, part_gate, dg, x, params, local, false);
            up.backward_input(cx, dx, part_up, du, x, params, local, true);
            branch_backward(cx, norm.as_ref(), dh, part_norm, dx, h, params);
        });
        let parts = &s.parts[..cx.tile_count(rows) * width];
        if let Some(norm) = norm {
            norm.add_parts(grads, parts, width, 0);
        }
        let x = branch_input(norm.as_ref(), &s.x[..rows * d], h);
        let (w, a) = (&mut s.weights, Input::Kept(&s.wide[2][..rows * f]));
        let inputs = [(gate, &s.wide[0][..rows * f], own), (up, &s.wide[1][..rows * f], at_up)];
        Linear::backward_weights(cx, grads, &inputs, x, params, w, (parts, width));
        Linear::backward_weights(cx, grads, &[(down, &s.dy[..rows * d], at_down)], a, params, w, (parts, width));
    }
}
