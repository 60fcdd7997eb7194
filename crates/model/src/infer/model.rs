//! The weights of a packed model, ready to run.

use std::path::Path;
use std::sync::Arc;

use flashlm_kernels::{Buf, Token};

use super::state::SequenceState;
use super::written::mute;
use crate::codes::error::PackError;
use crate::config::ModelConfig;
use crate::family;
use crate::family::forms::PackedBody;
use crate::io::map_limited;
use crate::io::safetensors::TensorFile;
use crate::layer::bigram::bigram_row;
use crate::layer::packed::{PackedLinear, PackedTable};
use crate::layer::pointer;
use crate::pack::open::Opened;
use crate::params::MAX_NUMBERS;
use crate::sample::{SampleError, Sampler, Settings};
use crate::tok::Tokenizer;

/// Longest packed model accepted.
const MAX_FILE: u64 = 4 << 30;
/// Most for each parameter: a scale, and a quarter of a byte. Beside them the header and a tokenizer.
const _: () = assert!(MAX_NUMBERS as u64 * 17 / 4 + (32 << 20) <= MAX_FILE);

/// The weights of a packed model in the layout of the integer units, and its tokenizer.
pub struct PackedModel {
    config: ModelConfig,
    tokenizer: Tokenizer,
    pub(super) body: PackedBody,
    file_bytes: usize,
    digest: String,
}

impl PackedModel {
    /// Opens a file written by `flashlm pack`.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged, or is not a packed model.
    pub fn open(path: &Path) -> Result<Self, PackError> {
        Self::read(TensorFile::from_map(map_limited(path, MAX_FILE)?, &path.display().to_string())?)
    }

    /// The same from memory; `label` names it in errors.
    pub fn from_bytes(bytes: Vec<u8>, label: &str) -> Result<Self, PackError> {
        Self::read(TensorFile::from_bytes(bytes, label)?)
    }

    /// The same of its tensors.
    pub fn read(file: TensorFile) -> Result<Self, PackError> {
        let file_bytes = file.file_bytes();
        let Opened { config, tokenizer, digest, reader } = Opened::read(file)?;
        let body = family::read(&reader, &config)?;
        reader.finish()?;
        Ok(PackedModel { config, tokenizer, body, file_bytes, digest })
    }

    /// The model's sizes and switches.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The vocabulary it was trained with.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// XXH3-64 of its settings and numbers, as 16 hexadecimal digits: what tells one model from another.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Size of matrices and tables in memory, in bytes.
    pub fn memory(&self) -> usize {
        // One that is applied twice is there once.
        let blocks = &self.body.blocks;
        let again = |i: usize| blocks[..i].iter().any(|before| Arc::ptr_eq(before, &blocks[i]));
        let once = || (0..blocks.len()).filter(|&i| !again(i)).map(|i| &blocks[i]);
        let linears = once().flat_map(|block| block.linears()).map(PackedLinear::memory).sum::<usize>();
        let tables = once().filter_map(|block| block.table()).chain(&self.body.bigram);
        self.body.embedding.memory() + linears + tables.map(PackedTable::memory).sum::<usize>()
    }

    /// Width of a row of the stream after the embedding that is kept for the blocks; 0 where they do not read it.
    pub(super) fn x0_width(&self) -> usize {
        if self.body.x0 { self.config.dim } else { 0 }
    }

    /// The count before the next row `token` of a sequence and its row of bigrams, 0 without them; the state moves on.
    pub(super) fn advance(&self, state: &mut SequenceState, token: Token) -> (u32, u32) {
        let past = state.advance(token, self.config.document_start());
        let Some(table) = &self.body.bigram else { return (past, 0) };
        let last = state.values.last_mut().expect("room for a token");
        let before = if past == 0 { self.config.eos as Token } else { *last as Token };
        *last = token.into();
        (past, bigram_row(before, token, table.rows()))
    }

    /// Writes the stream after the embedding, `h: [tokens, D]`, and keeps it in `x0`, of [`PackedModel::x0_width`].
    pub(super) fn embed(&self, h: &mut [f32], x0: &mut [f32], tokens: &[Token], bigrams: &[u32]) {
        for (h, &token) in h.chunks_exact_mut(self.config.dim).zip(tokens) {
            self.body.embedding.row(h, token.into());
        }
        if let Some(table) = &self.body.bigram {
            h.chunks_exact_mut(self.config.dim).zip(bigrams).for_each(|(h, &row)| table.add_row(h, row as usize));
        }
        x0.copy_from_slice(&h[..x0.len()]);
    }

    /// A sampler for its vocabulary, which never draws a token that stands for no text.
    ///
    /// # Errors
    /// Settings or biases out of their bounds.
    pub fn sampler(&self, settings: Settings) -> Result<Sampler, SampleError> {
        let vocab = self.config.vocab_size;
        Sampler::new(settings, vocab, &mute(&self.tokenizer, vocab))
    }

    /// A sequence state at the start of a text.
    pub fn new_state(&self) -> SequenceState {
        let len: usize = self.body.blocks.iter().map(|block| block.state_len()).sum();
        let pointer: usize = self.body.pointer.iter().map(|pointer| pointer.state_len()).sum();
        SequenceState { values: Buf::zeros(len + pointer + self.body.bigram.iter().len()), past: 0 }
    }

    /// The part of a state that is the pointer's, where there is one.
    pub(super) fn pointed<'a>(&self, state: &'a mut SequenceState) -> Option<(&pointer::Packed, &'a mut [f32])> {
        let pointer = self.body.pointer.as_ref()?;
        let end = state.values.len() - self.body.bigram.iter().len();
        Some((pointer, &mut state.values[end - pointer.state_len()..end]))
    }

    /// The state that [`SequenceState::save`] saved; `None` if the bytes are damaged or belong to another model.
    pub fn restore(&self, bytes: &[u8]) -> Option<SequenceState> {
        let mut state = self.new_state();
        let (past, values) = bytes.split_first_chunk()?;
        if values.len() != 4 * state.values.len() {
            return None;
        }
        state.past = u32::from_le_bytes(*past);
        for (value, bytes) in state.values.iter_mut().zip(values.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
            if !value.is_finite() {
                return None;
            }
        }
        let vocab = self.config.vocab_size;
        let told = self.pointed(&mut state).is_none_or(|(pointer, own)| pointer.holds_tokens(own, vocab));
        told.then_some(state)
    }
}
