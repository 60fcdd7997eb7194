//! The leaky integrator in the packed runtime. `u` of a row is `v`; mixing leaves `s` in its place.

use flashlm_kernels::Exec;
use flashlm_kernels::tile::Local;

use super::Params;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::layer::packed::{Input, PackedLinear, PackedScratch};
use crate::mixer::forms::PackedMixer;

pub(crate) struct Packed {
    up: PackedLinear,
    a: Vec<f32>,
    down: PackedLinear,
}

impl Packed {
    pub(crate) fn read(from: &Reader, of: &Params) -> Result<Self, PackError> {
        // Once for a model, in f64 and rounded: no platform's `exp` is off by as much as matters then.
        let sigmoid = |decay: &f32| (1.0 / (1.0 + (-f64::from(*decay)).exp())) as f32;
        let (up, down) = (PackedLinear::read(from, &of.up)?, PackedLinear::read(from, &of.down)?);
        Ok(Packed { up, a: from.floats(&of.decay.0)?.iter().map(sigmoid).collect(), down })
    }
}

impl PackedMixer for Packed {
    fn linears(&self) -> Vec<&PackedLinear> {
        vec![&self.up, &self.down]
    }

    fn width(&self) -> usize {
        self.a.len()
    }

    fn state_len(&self) -> usize {
        self.a.len()
    }

    fn project(&self, cx: &Exec, u: &mut [f32], x: &[f32], work: &mut PackedScratch) {
        self.up.forward(cx, (u, self.a.len(), 0), &mut Input::new(x), work, false);
    }

    fn mix(&self, _: &Exec, u: &mut [f32], state: &mut [f32], past: &[u32], _: &Local) {
        for (u, &past) in u.chunks_exact_mut(self.a.len()).zip(past) {
            if past == 0 {
                state.fill(0.0);
            }
            for ((u, s), a) in u.iter_mut().zip(&mut *state).zip(&self.a) {
                *s = a * *s + (1.0 - a) * *u;
                *u = *s;
            }
        }
    }

    fn output(&self, cx: &Exec, h: &mut [f32], u: &[f32], work: &mut PackedScratch, _: &Local) {
        self.down.forward(cx, (h, self.a.len(), 0), &mut Input::new(u), work, true);
    }
}
