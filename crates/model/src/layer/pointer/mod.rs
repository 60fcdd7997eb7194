//! Pointers into the text: beside the embedding, the head has every token that stands in the `window` rows before as a candidate. With
//! `x = norm(h)` the head's input, row `i` gives the token after row `c < i` of its document the mass
//!
//! ```text
//! exp(s_ic)     s_ic = scale D^-1/2 x_i . k_c + bias     k = x + W x     W: [D, D] float, 0 at the start; scale 1, bias 0
//! ```
//!
//! and its logits are `z_v <- ln(exp(z_v) + sum over c with next_c = v of exp(s_ic))`: where the model stands as it stood in row `c`, what came
//! then is likely again. A softmax over the vocabulary and the rows before in one, as in pointer networks (Merity et al., arXiv 1609.07843), with
//! the states of the model as keys (Grave et al., arXiv 1612.04426). Kernel: [`flashlm_kernels::ops::pointer_forward`].
//!
//! With words (`words.rs`) a token that stands after a space, and its twin that does not, are one: what follows is about such tokens.
//!
//! The state of a sequence is a ring of the last keys, then the token after each: of `window` rows in training, in the packed runtime of
//! some more.

mod packed;
mod train;
mod words;

use std::ops::Range;

use flashlm_kernels::ops::pointer_slots;

pub(crate) use packed::Packed;
pub use train::{Pointer, Saved};
pub(crate) use words::NAMES as WORDS;
pub use words::set_words;

use super::branch::Branch;
use super::linear::Linear;
use crate::params::Init;

/// Where the parameters lie.
#[derive(Clone, Debug)]
pub struct PointerParams {
    /// `W: [D, D]`.
    pub key: Linear,
    /// `[1]`.
    pub scale: Range<usize>,
    /// `[1]`.
    pub bias: Range<usize>,
    /// Rows that a row may point at.
    pub window: usize,
    /// `twin`, `opens: [V]` of `words.rs`, where it has them.
    pub words: Option<[Range<usize>; 2]>,
}

impl PointerParams {
    /// Adds them; `words` is the size of the vocabulary, where pointers take words for one.
    pub fn new(b: &mut Branch, window: usize, words: Option<usize>) -> Self {
        let d = b.config().dim;
        let key = b.float_from("key", d, d, Init::Zeros);
        let [(scale, _), (bias, _)] =
            [("scale", Init::Ones), ("bias", Init::Zeros)].map(|(name, init)| b.scalars(name, 1, init));
        let words = words
            .map(|v| [("twin", Init::Numbers), ("opens", Init::Zeros)].map(|(name, init)| b.constants(name, v, init)));
        PointerParams { key, scale, bias, window, words }
    }

    /// Numbers in the state of one sequence in the packed runtime.
    pub fn state_len(&self) -> usize {
        pointer_slots(self.window) * (self.key.inputs + 1)
    }
}
