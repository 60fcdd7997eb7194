//! What a run starts from.

use flashlm_kernels::Buf;
use flashlm_model::tok::Tokenizer;

use crate::config::Settings;
use crate::curriculum::Curriculum;
use crate::eval::Stories;
use crate::progress::Contents;
use crate::run_folder::Claim;

/// What a run starts from.
pub struct Inputs {
    /// Resolved: every choice is made.
    pub settings: Settings,
    /// The vocabulary of `texts` and `valid`.
    pub tokenizer: Tokenizer,
    /// Training tokens.
    pub texts: Curriculum,
    /// Validation documents.
    pub valid: Stories,
    /// Bits per byte no model can go below on `valid`, where known.
    pub entropy_bound: Option<f64>,
    /// What a new run starts from, in the order of the layout; none for a fresh start.
    pub start: Option<Buf<f32>>,
    /// The run's folder.
    pub claim: Claim,
}

impl Inputs {
    /// What tells the texts, and the validation text, from others.
    pub fn contents(&self) -> Contents {
        let texts = self.texts.texts().iter().map(|text| text.cache.content()).collect();
        Contents { texts, valid: self.valid.content() }
    }
}
