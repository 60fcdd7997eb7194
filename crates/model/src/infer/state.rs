//! The state of one sequence.

use flashlm_kernels::{Buf, Token};

/// The state of one sequence: what the blocks keep of the tokens so far, of constant size.
#[derive(Clone)]
pub struct SequenceState {
    /// Of the blocks in turn; then, where bigrams are looked up, the last token.
    pub(super) values: Buf<f32>,
    /// Rows of the document so far.
    pub(super) past: u32,
}

impl SequenceState {
    /// Resets it to the start of a text.
    pub fn reset(&mut self) {
        self.values.fill(0.0);
        self.past = 0;
    }

    /// Its size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.values[..])
    }

    /// The whole state as bytes, for [`PackedModel::restore`](super::PackedModel::restore): the position as u32, then the values
    /// as f32, little-endian.
    pub fn save(&self) -> Vec<u8> {
        let values = self.values.iter().flat_map(|x| x.to_le_bytes());
        self.past.to_le_bytes().into_iter().chain(values).collect()
    }

    /// The count before the next row `token`, which moves on.
    pub(super) fn advance(&mut self, token: Token, start: Option<Token>) -> u32 {
        if Some(token) == start {
            self.past = 0;
        }
        let past = self.past;
        self.past = past.saturating_add(1);
        past
    }
}

impl AsMut<SequenceState> for SequenceState {
    fn as_mut(&mut self) -> &mut SequenceState {
        self
    }
}
