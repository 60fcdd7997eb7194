//! FlashLM: `h = E[tokens]`; for each block `h += mixer(norm(h)); h += GLU(norm(h))`; `logits = norm(h) E^T`. What enters the
//! stream before a block is in `entry.rs`.

mod entry;
mod packed;
#[cfg(test)]
pub(crate) mod reference;
mod train;
mod validate;

pub(crate) use packed::read;
pub use train::Train;
pub(super) use validate::validate;

use crate::config::ModelConfig;
use crate::layer::branch::Branch;
use crate::layer::config::{LayerConfig, Need};
use crate::layer::ffn::FfnParams;
use crate::layer::head::HeadParams;
use crate::layer::norm::{BranchNorm, Norm};
use crate::layer::pointer::PointerParams;
use crate::mixer;
use crate::params::{Group, Init, Layout};
use entry::EntryParams;

/// Where the parameters lie.
pub(super) struct Params {
    head: HeadParams,
    blocks: Vec<BlockParams>,
    norm: Norm,
    entry: EntryParams,
    pointer: Option<PointerParams>,
    /// Of the pointer.
    need: Need,
}

/// Those of one block.
struct BlockParams {
    /// The norm before the mixer.
    norm: BranchNorm,
    mixer: mixer::Params,
    ffn: FfnParams,
    need: Need,
}

impl Params {
    /// Adds all parameters of a valid config; `int8` is what [`super::build`] is told.
    pub(super) fn new(layout: &mut Layout, config: &ModelConfig, int8: bool) -> Self {
        let (d, eps, layers) = (config.dim, config.norm_eps, LayerConfig { int8, ..config.layers() });
        let head = HeadParams::new(layout, config.vocab_size, d, config.logit_softcap, int8);
        let blocks = (0..config.blocks).map(|i| {
            let name = |part| format!("blocks.{i}.{part}");
            let mut branch = Branch::new(layout, name("norm1.scale"), name("mixer"), &layers);
            let mixer = mixer::Params::new(config.mixer_of(i), &mut branch, &config.mixers);
            let (norm, need) = (branch.branch_norm(), branch.need());
            let mut branch = Branch::new(layout, name("norm2.scale"), name("ffn"), &layers);
            let ffn = FfnParams::new(&mut branch, config.ffn_hidden, config.activation.act());
            BlockParams { norm, mixer, ffn, need: need.max(branch.need()) }
        });
        let blocks = blocks.collect();
        let scale = layout.add("final_norm.scale".into(), &[d], Init::Ones, Group::Norm);
        let norm = Norm { scale, part: 0..d, eps };
        let mut branch = Branch::bare(layout, "pointer".into(), &layers);
        let pointer = (config.pointer > 0).then(|| {
            let words = config.pointer_words.then_some(config.vocab_size);
            PointerParams::new(&mut branch, config.pointer, words)
        });
        let need = branch.need();
        Params { head, blocks, norm, pointer, need, entry: EntryParams::new(layout, config) }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub(super) fn state_len(&self) -> usize {
        // The token before is a number of the state.
        let blocks = self.blocks.iter().map(|block| block.mixer.state_len()).sum::<usize>();
        blocks + self.pointer.iter().map(PointerParams::state_len).sum::<usize>() + self.entry.bigram.iter().len()
    }

    /// Numbers that training keeps of a row, about: the `ends` of matrices twice, for gradients; states, at most one for 64 rows.
    pub(super) fn row_len(&self, ends: usize) -> usize {
        2 * ends + 8 * self.norm.part.len() + self.state_len().div_ceil(64)
    }
}

/// A model of each mixer, without and with every switch.
#[cfg(test)]
pub(super) fn small() -> Vec<ModelConfig> {
    mixer::NAMES.iter().flat_map(|name| [crate::testing::tiny(name), crate::testing::recipe(name)]).collect()
}
