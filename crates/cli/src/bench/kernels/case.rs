//! One op at one size, to be run, compared and timed.

use flashlm_kernels::Exec;
use flashlm_kernels::profile::Work;

/// An op with its operands in place.
pub(super) trait Case {
    /// Runs it once.
    fn call(&mut self, cx: &Exec);
    /// What it has written.
    fn outputs(&self) -> Vec<Output>;
}

/// Written numbers, and what they were kept as.
pub(super) struct Output {
    pub values: Vec<f64>,
    pub kept: &'static str,
}

/// A case and how to speak of it.
pub(super) struct Subject {
    pub name: &'static str,
    pub size: String,
    pub work: Work,
    pub case: Box<dyn Case>,
}
