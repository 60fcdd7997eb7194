//! Model families: whole architectures, each in a folder with one line in `families!`. From there on the program trains,
//! evaluates, packs and runs it.
//!
//! A folder has `validate`, the rules about a config; `Params`, where the parameters lie; `Train`, the model in training and
//! evaluation ([`forms::LanguageModel`]); `read`, the packed model (`PackedBody`); and for the tests `small`, configs of a few
//! thousand parameters.

pub mod flash;
pub mod forms;
#[cfg(test)]
mod tests;
pub mod v3;
mod validate;

use flashlm_kernels::Store;

use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::config::{ConfigError, ModelConfig};
use crate::params::{Group, Layout};
use forms::{LanguageModel, PackedBody};

macro_rules! families {
    ($($module:ident;)*) => {
        /// The names that `model.family` may have.
        pub const NAMES: &[&str] = &[$(stringify!($module)),*];

        /// Checks a config by the rules of its family, whose name is known.
        fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
            match config.family.as_str() {
                $(stringify!($module) => $module::validate(config),)*
                other => panic!("unknown family {other:?}"),
            }
        }

        /// The layout of a valid config, the numbers in the state of one sequence in the packed runtime, and about how many numbers
        /// training keeps of a row besides its logits.
        fn sizes(config: &ModelConfig) -> (Layout, usize, usize) {
            let mut layout = Layout::default();
            let (state, row) = match config.family.as_str() {
                $(stringify!($module) => {
                    let params = $module::Params::new(&mut layout, config, false);
                    (params.state_len(), params.row_len(ends(&layout)))
                })*
                other => panic!("unknown family {other:?} in a validated config"),
            };
            (layout, state, row)
        }

        /// A model for passes of at most `rows = B T` rows; `training` adds what backward passes need. `A` is what matmuls and
        /// saved activations are kept as; with `int8` ternary matrices with one scale, or one for each group, are multiplied in int8,
        /// those with one scale for the gradients of their inputs too, and so are logits.
        pub fn build<A: Store>(
            config: &ModelConfig,
            rows: usize,
            training: bool,
            int8: bool,
        ) -> Result<Box<dyn LanguageModel<A::E>>, ConfigError> {
            config.validate()?;
            match config.family.as_str() {
                $(stringify!($module) => Ok(Box::new($module::Train::<A>::new(config, rows, training, int8))),)*
                other => panic!("unknown family {other:?} in a validated config"),
            }
        }

        /// Small models of every family, in all their kinds.
        #[cfg(test)]
        pub(crate) fn small() -> Vec<ModelConfig> {
            [$($module::small()),*].concat()
        }

        /// The weights of a packed model of a valid config.
        pub(crate) fn read(from: &Reader, config: &ModelConfig) -> Result<PackedBody, PackError> {
            match config.family.as_str() {
                $(stringify!($module) => $module::read(from, config),)*
                other => panic!("unknown family {other:?} in a validated config"),
            }
        }
    };
}

families! {
    flash;
    v3;
}

/// What goes into each matrix of a row, and comes out of it.
fn ends(layout: &Layout) -> usize {
    let matrices = layout.specs().iter().filter(|spec| spec.group == Group::Matrix);
    matrices.map(|spec| spec.shape.iter().sum::<usize>()).sum()
}

impl Layout {
    /// The parameters of a valid config's model, in order. Takes no memory for them.
    ///
    /// # Panics
    /// If [`ModelConfig::validate`] refuses the config.
    pub fn of(config: &ModelConfig) -> Layout {
        sizes(config).0
    }
}
