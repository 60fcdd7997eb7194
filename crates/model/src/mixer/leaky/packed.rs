//! The leaky integrator in the packed runtime. `u` of a row is `v`, `m` is `s`.

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
    fn inputs(&self) -> Vec<&PackedLinear> {
        vec![&self.up]
    }

    fn output(&self) -> &PackedLinear {
        &self.down
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

    fn mix(&self, _: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], _: &Local) {
        let d = self.a.len();
        for ((m, u), &past) in m.chunks_exact_mut(d).zip(u.chunks_exact(d)).zip(past) {
            if past == 0 {
                state.fill(0.0);
            }
            for (((m, u), s), a) in m.iter_mut().zip(u).zip(&mut *state).zip(&self.a) {
                *s = a * *s + (1.0 - a) * *u;
                *m = *s;
            }
        }
    }
}
