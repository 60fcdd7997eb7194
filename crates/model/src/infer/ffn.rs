//! GLU branch: `h += W_down (act(W_gate x) * (W_up x))`, `x = norm(h)`; see [`crate::layer::ffn`].

use flashlm_kernels::Exec;
use flashlm_kernels::ops::{Act, Columns, exact_gate};
use flashlm_kernels::tile::Local;

use super::linear::{Input, Linear, Norm, Work};
use crate::pack::{PackError, Reader};

pub(crate) struct Ffn {
    norm: Option<Norm>,
    gate: Linear,
    up: Linear,
    down: Linear,
    act: Act,
    hidden: usize,
}

impl Ffn {
    pub(crate) fn read(from: &Reader, prefix: &str, norm: Option<Norm>) -> Result<Self, PackError> {
        let (d, f) = (from.config().dim, from.config().ffn_hidden);
        let name = |part| format!("{prefix}.{part}");
        Ok(Ffn {
            norm,
            gate: Linear::read(from, &name("W_gate"), (f, d))?,
            up: Linear::read(from, &name("W_up"), (f, d))?,
            down: Linear::output(from, &name("W_down"), (d, f))?,
            act: from.config().activation.activation(),
            hidden: f,
        })
    }

    pub(crate) fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    pub(crate) fn columns(&self) -> Vec<Columns> {
        self.linears().map(Linear::columns).to_vec()
    }

    /// `h: [rows, D]` of one tile.
    pub(crate) fn forward(&self, cx: &Exec, h: &mut [f32], work: &mut Work, local: &Local) {
        let (d, f) = (self.gate.columns().inputs, self.hidden);
        let rows = h.len() / d;
        let (g, u) = (local.take::<f32>(rows * f), local.take::<f32>(rows * f));
        let x = local.take::<f32>(h.len());
        match &self.norm {
            Some(norm) => norm.forward(cx, x, h),
            None => x.copy_from_slice(h),
        }
        let mut input = Input::new(x);
        self.gate.forward(cx, (&mut *g, f, 0), &mut input, work, false);
        self.up.forward(cx, (&mut *u, f, 0), &mut input, work, false);
        let a = local.take::<f32>(rows * f);
        exact_gate(cx, a, g, u, self.act);
        self.down.forward(cx, (h, d, 0), &mut Input::new(a), work, true);
    }
}
