//! The model in the packed runtime.

use std::sync::Arc;

use flashlm_kernels::Exec;
use flashlm_kernels::tile::Local;

use super::Params;
use super::entry::EntryParams;
use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::config::ModelConfig;
use crate::family::forms::{Entering, PackedBlock, PackedBody};
use crate::layer::packed::{Input, PackedBranchNorm, PackedFfn, PackedLinear, PackedNorm, PackedScratch, PackedTable};
use crate::layer::pointer;
use crate::mixer::forms::PackedMixer;
use crate::params::Layout;

/// The weights of a packed model of a valid config.
pub(crate) fn read(from: &Reader, config: &ModelConfig) -> Result<PackedBody, PackError> {
    let of = Params::new(&mut Layout::default(), config, false);
    let entry = &of.entry;
    let blocks = of.blocks.iter().enumerate().map(|(i, of)| {
        let norm = PackedBranchNorm::read(from, &of.norm)?;
        let block = Block {
            entry: Entry::read(from, entry, i)?,
            norm,
            mixer: of.mixer.read(from)?,
            ffn: PackedFfn::read(from, &of.ffn)?,
        };
        Ok(Arc::new(block) as Arc<dyn PackedBlock>)
    });
    let embedding = from.table(&of.head.table)?;
    let bigram = entry.bigram.as_ref().map(|place| PackedTable::read(from, place)).transpose()?;
    let blocks = blocks.collect::<Result<_, PackError>>()?;
    let norm = PackedNorm::read(from, &of.norm)?;
    let pointer = of.pointer.as_ref().map(|of| pointer::Packed::read(from, of)).transpose()?;
    Ok(PackedBody { embedding, bigram, blocks, norm, x0: config.x0, softcap: config.logit_softcap, pointer })
}

struct Block {
    entry: Entry,
    norm: PackedBranchNorm,
    mixer: Box<dyn PackedMixer>,
    ffn: PackedFfn,
}

impl PackedBlock for Block {
    fn linears(&self) -> Vec<&PackedLinear> {
        [self.mixer.inputs(), vec![self.mixer.output()], self.ffn.linears().to_vec()].concat()
    }

    fn table(&self) -> Option<&PackedTable> {
        self.entry.table.as_ref()
    }

    fn width(&self) -> usize {
        self.mixer.width()
    }

    fn mixed(&self) -> usize {
        self.mixer.output().columns().inputs
    }

    fn state_len(&self) -> usize {
        self.mixer.state_len()
    }

    fn project(
        &self,
        cx: &Exec,
        u: &mut [f32],
        h: &mut [f32],
        from: Entering,
        work: &mut PackedScratch,
        local: &Local,
    ) {
        self.entry.add(h, from);
        self.mixer.project(cx, u, self.norm.forward(cx, h, local), work);
    }

    fn mixer(&self) -> &dyn PackedMixer {
        &*self.mixer
    }

    fn output(&self, cx: &Exec, h: &mut [f32], m: &[f32], work: &mut PackedScratch, local: &Local) {
        let output = self.mixer.output();
        let d = output.outputs();
        output.forward(cx, (&mut *h, d, 0), &mut Input::new(m), work, true);
        self.ffn.forward(cx, h, work, local);
    }
}

/// What enters the stream before a block.
struct Entry {
    /// `r` and `s`.
    lambdas: Option<[f32; 2]>,
    table: Option<PackedTable>,
}

impl Entry {
    fn read(from: &Reader, of: &EntryParams, i: usize) -> Result<Self, PackError> {
        let number = |place| -> Result<f32, PackError> { Ok(from.floats(place)?[0]) };
        let lambdas = match of.lambdas.get(i) {
            Some([r, s]) => Some([number(r)?, number(s)?]),
            None => None,
        };
        let table = of.tables.get(i).map(|place| PackedTable::read(from, place)).transpose()?;
        Ok(Entry { lambdas, table })
    }

    /// `h: [rows, D]`, from the end of the block before to the start of this one.
    fn add(&self, h: &mut [f32], from: Entering) {
        if let Some([r, s]) = self.lambdas {
            h.iter_mut().zip(from.x0).for_each(|(h, x0)| *h = r * *h + s * x0);
        }
        if let Some(table) = &self.table {
            let d = h.len() / from.tokens.len();
            h.chunks_exact_mut(d).zip(from.tokens).for_each(|(h, &token)| table.add_row(h, token.into()));
        }
    }
}
