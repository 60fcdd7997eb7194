//! Token mixers: what lets a row see the rows before it. One mixer is one file and one line in `mixers!`; the gradient
//! check, causality, odd lengths, pieces against the whole and the state's round trip then run by themselves (`lm.rs`).

pub mod conv;

use flashlm_kernels::{Elem, Exec};

use crate::config::ModelConfig;
use crate::layer::Scratch;
use crate::params::Layout;

/// A causal map of sequences, `x: [B*T, D]` to `y: [B*T, D]`.
pub trait Mixer<E: Elem>: Send {
    /// Quantises and packs the weights; to be called after every change of `params`.
    fn prepare(&mut self, cx: &Exec, params: &[E], s: &mut Scratch<E>);

    /// Elements of the state of one sequence; a state of zeros is the start.
    fn state_len(&self) -> usize;

    /// `y += mix(x)` for sizes `(B, T)`. With a `state: [B, state_len]` the sequences go on where it stands, and it moves
    /// on; without one they start.
    fn forward(
        &mut self,
        cx: &Exec,
        y: &mut [E],
        state: Option<&mut [E]>,
        x: &[E],
        params: &[E],
        s: &mut Scratch<E>,
        size: (usize, usize),
    );

    /// Overwrites `dx` and adds to `grads`, for sequences that started with this forward pass.
    fn backward(
        &mut self,
        cx: &Exec,
        dx: &mut [E],
        grads: &mut [E],
        dy: &[E],
        x: &[E],
        params: &[E],
        s: &mut Scratch<E>,
        size: (usize, usize),
    );
}

macro_rules! mixers {
    ($($name:literal => $mixer:ty),* $(,)?) => {
        /// The names that `model.mixer` may have.
        pub const NAMES: &[&str] = &[$($name),*];

        /// The mixer that the config names, with its parameters added to the layout.
        ///
        /// # Panics
        /// If the config is not valid.
        pub fn build<E: Elem>(
            layout: &mut Layout,
            prefix: &str,
            config: &ModelConfig,
            rows: usize,
            training: bool,
        ) -> Box<dyn Mixer<E>> {
            match config.mixer.as_str() {
                $($name => Box::new(<$mixer>::new(layout, prefix, config, rows, training)),)*
                other => panic!("unknown mixer {other:?} in a validated config"),
            }
        }
    };
}

mixers! {
    "conv" => conv::Conv<E>,
}
