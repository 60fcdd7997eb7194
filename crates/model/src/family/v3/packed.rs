//! The model in the packed runtime: one block that stands in the list as often as it is applied. `u` of a row is what enters the
//! mixer, `m` what its layers make of it.
//!
//! The state of a layer is a ring of the last `(K-1) s` rows that its convolutions read, by the number of the row in its document.

use std::sync::Arc;

use flashlm_kernels::ops::{Act, GROUPED_TAPS, Grouped, exact_gate, exact_grouped};
use flashlm_kernels::tile::Local;
use flashlm_kernels::{Buf, Exec};

use super::{LayerParams, MixerParams, Params, by_group};
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::config::ModelConfig;
use crate::family::forms::{Entering, PackedBlock, PackedBody};
use crate::layer::packed::{Input, PackedBranchNorm, PackedFfn, PackedLinear, PackedNorm, PackedScratch, PackedTable};
use crate::mixer::forms::PackedMixer;
use crate::params::Layout;

/// The weights of a packed model of a valid config.
pub(crate) fn read(from: &Reader, config: &ModelConfig) -> Result<PackedBody, PackError> {
    let of = Params::new(&mut Layout::default(), config, false);
    let norm = PackedBranchNorm::read(from, &of.mixer.norm)?;
    let block: Arc<dyn PackedBlock> =
        Arc::new(Block { norm, mixer: Mixer::read(from, &of.mixer)?, ffn: PackedFfn::read(from, &of.ffn)? });
    for name in ["block.router.linear.weight", "block.router.linear.bias"] {
        let spec = from.layout.find(name).expect("a parameter of the layout");
        from.floats(&spec.range)?;
    }
    Ok(PackedBody {
        pointer: None,
        embedding: from.table(&of.head.table)?,
        bigram: None,
        blocks: vec![block; of.passes],
        norm: PackedNorm::read(from, &of.norm)?,
        x0: false,
        softcap: 0.0,
    })
}

struct Block {
    norm: PackedBranchNorm,
    mixer: Mixer,
    ffn: PackedFfn,
}

impl PackedBlock for Block {
    fn linears(&self) -> Vec<&PackedLinear> {
        [&[&self.mixer.out][..], &self.ffn.linears()].concat()
    }

    fn table(&self) -> Option<&PackedTable> {
        None
    }

    fn width(&self) -> usize {
        self.mixer.width()
    }

    fn mixed(&self) -> usize {
        self.mixer.width()
    }

    fn state_len(&self) -> usize {
        self.mixer.state_len()
    }

    fn project(&self, cx: &Exec, u: &mut [f32], h: &mut [f32], _: Entering, _: &mut PackedScratch, local: &Local) {
        u.copy_from_slice(self.norm.forward(cx, h, local));
    }

    fn mixer(&self) -> &dyn PackedMixer {
        &self.mixer
    }

    fn output(&self, cx: &Exec, h: &mut [f32], m: &[f32], work: &mut PackedScratch, local: &Local) {
        let d = self.mixer.width();
        self.mixer.out.forward(cx, (&mut *h, d, 0), &mut Input::new(m), work, true);
        self.ffn.forward(cx, h, work, local);
    }
}

struct Mixer {
    layers: Vec<Layer>,
    out: PackedLinear,
}

/// A layer with its convolutions, `[G, K, I, O]`.
struct Layer {
    norm: PackedNorm,
    gate: Buf<f32>,
    value: Buf<f32>,
    of: Grouped,
    state: usize,
}

impl Layer {
    fn read(from: &Reader, of: &LayerParams) -> Result<Self, PackError> {
        let conv = |range| -> Result<Buf<f32>, PackError> {
            let w = from.floats(range)?;
            let mut turned = Buf::zeros(w.len());
            by_group(&mut turned, &w, of.of);
            Ok(turned)
        };
        let (gate, value) = (conv(&of.gate)?, conv(&of.value)?);
        Ok(Layer { norm: PackedNorm::read(from, &of.norm)?, gate, value, of: of.of, state: of.state_len() })
    }

    /// `x += sigmoid(gate) * value` of one row, the `past`-th of its document; its state moves on.
    fn add(&self, cx: &Exec, x: &mut [f32], state: &mut [f32], past: u32, [normed, gate, value]: [&mut [f32]; 3]) {
        let (d, reach) = (x.len(), self.of.reach());
        let past = past as usize;
        self.norm.forward(cx, normed, x);
        let slot = |row: usize| row % reach.max(1) * d;
        {
            let mut taps: [Option<&[f32]>; GROUPED_TAPS] = [None; GROUPED_TAPS];
            for (tap, place) in taps.iter_mut().enumerate().take(self.of.taps) {
                let back = (self.of.taps - 1 - tap) * self.of.dilation;
                *place = match past.checked_sub(back) {
                    Some(_) if back == 0 => Some(&*normed),
                    Some(row) => Some(&state[slot(row)..][..d]),
                    None => None,
                };
            }
            let taps = &taps[..self.of.taps];
            exact_grouped(cx, gate, taps, &self.gate, self.of);
            exact_grouped(cx, value, taps, &self.value, self.of);
        }
        if reach > 0 {
            state[slot(past)..][..d].copy_from_slice(normed);
        }
        exact_gate(cx, normed, gate, value, Act::Sigmoid);
        x.iter_mut().zip(&*normed).for_each(|(x, y)| *x += y);
    }
}

impl Mixer {
    fn read(from: &Reader, of: &MixerParams) -> Result<Self, PackError> {
        let layers = of.layers.iter().map(|of| Layer::read(from, of)).collect::<Result<_, PackError>>()?;
        Ok(Mixer { layers, out: PackedLinear::read(from, &of.out)? })
    }
}

impl PackedMixer for Mixer {
    fn inputs(&self) -> Vec<&PackedLinear> {
        Vec::new()
    }

    fn output(&self) -> &PackedLinear {
        &self.out
    }

    fn width(&self) -> usize {
        self.out.outputs()
    }

    fn state_len(&self) -> usize {
        self.layers.iter().map(|layer| layer.state).sum()
    }

    fn project(&self, _: &Exec, u: &mut [f32], x: &[f32], _: &mut PackedScratch) {
        u.copy_from_slice(x);
    }

    fn mix(&self, cx: &Exec, m: &mut [f32], u: &mut [f32], state: &mut [f32], past: &[u32], local: &Local) {
        let d = self.width();
        let [normed, gate, value] = [(); 3].map(|()| local.take::<f32>(d));
        for ((m, u), &past) in m.chunks_exact_mut(d).zip(u.chunks_exact(d)).zip(past) {
            m.copy_from_slice(u);
            let mut state = &mut *state;
            for layer in &self.layers {
                let own = state.split_off_mut(..layer.state).expect("a state for each layer");
                layer.add(cx, m, own, past, [&mut *normed, &mut *gate, &mut *value]);
            }
        }
    }
}
