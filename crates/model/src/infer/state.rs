//! The state of one sequence.

use flashlm_kernels::Token;

/// The state of one sequence: what the blocks remember of it.
#[derive(Clone)]
pub struct SequenceState {
    pub(super) values: Vec<f32>,
    /// Rows of the document so far.
    pub(super) past: u32,
}

impl SequenceState {
    /// Back to the start of a text.
    pub fn reset(&mut self) {
        self.values.fill(0.0);
        self.past = 0;
    }

    /// All there is to know of it, as bytes.
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
