//! Token mixers: what lets a row see the rows before it. One mixer is one file and one line in `mixers!`; the gradient
//! check, causality, odd lengths, pieces against the whole and the state's round trip then run by themselves (`gradcheck.rs`).

pub mod attention;
pub mod conv;
pub mod delta;

use flashlm_kernels::{Exec, Span, Store};

use crate::config::ModelConfig;
use crate::infer::{self, PackedMixer};
use crate::layer::linear::Linear;
use crate::layer::norm::Norm;
use crate::layer::{Need, Scratch};
use crate::pack::{PackError, Reader};
use crate::params::Layout;

/// A causal branch of the residual stream: `y = h + mix(norm(h))`, `h: [B*T, D]`.
pub trait Mixer<A: Store>: Send {
    /// Its matrices that are ternary.
    fn linears(&mut self) -> Vec<&mut Linear<A>>;

    /// Quantises and packs the weights; to be called after every change of `params`.
    fn prepare(&mut self, cx: &Exec, params: &[A::E], s: &mut Scratch<A>);

    /// What it takes of the scratch.
    fn need(&self) -> Need;

    /// Elements of the state of one sequence; a state of zeros is the start.
    fn state_len(&self) -> usize;

    /// Overwrites `y`. With a `state: [B, state_len]` the sequences go on where it stands, and it moves on; without one they
    /// start. No row sees one before its story, as [`Span::past`] has it.
    fn forward(
        &mut self,
        cx: &Exec,
        y: &mut [A::E],
        state: Option<&mut [A::E]>,
        h: &[A::E],
        params: &[A::E],
        span: &Span,
    );

    /// Turns `dh` from the gradient of `y` into that of `h` and adds to `grads`, for sequences that started with this
    /// forward pass.
    fn backward(
        &mut self,
        cx: &Exec,
        dh: &mut [A::E],
        grads: &mut [A::E],
        h: &[A::E],
        params: &[A::E],
        s: &mut Scratch<A>,
        span: &Span,
    );
}

macro_rules! mixers {
    ($($name:literal => $mixer:ty, $packed:ty);* $(;)?) => {
        /// The names that `model.mixer` may have.
        pub const NAMES: &[&str] = &[$($name),*];

        /// The mixer of that name, with its parameters added to the layout, where `norm` is already.
        ///
        /// # Panics
        /// If the config is not valid.
        pub fn build<A: Store>(
            name: &str,
            layout: &mut Layout,
            prefix: &str,
            norm: Option<Norm>,
            config: &ModelConfig,
            rows: usize,
            training: bool,
        ) -> Box<dyn Mixer<A>> {
            match name {
                $($name => Box::new(<$mixer>::new(layout, prefix, norm, config, rows, training)),)*
                other => panic!("unknown mixer {other:?} in a validated config"),
            }
        }

        /// Its parameters, and the numbers that it remembers of one text in the packed runtime.
        ///
        /// # Panics
        /// As [`build`].
        pub fn sizes(name: &str, config: &ModelConfig) -> (usize, usize) {
            type A = f32;
            match name {
                $($name => <$mixer>::sizes(config),)*
                other => panic!("unknown mixer {other:?} in a validated config"),
            }
        }

        /// The same in the packed runtime, its tensors read.
        pub(crate) fn read(name: &str, from: &Reader, prefix: &str) -> Result<Box<dyn PackedMixer>, PackError> {
            match name {
                $($name => Ok(Box::new(<$packed>::read(from, prefix)?)),)*
                other => panic!("unknown mixer {other:?} in a validated config"),
            }
        }
    };
}

mixers! {
    "conv" => conv::Conv<A>, infer::conv::Conv;
    "delta" => delta::Delta<A>, infer::delta::Delta;
    "attention" => attention::Attention<A>, infer::attention::Attention;
}
