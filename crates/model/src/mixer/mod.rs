//! Token mixers: what lets a row see the rows before it. One mixer is one folder and one line in `mixers!`; the gradient
//! check, causality, odd lengths, pieces against the whole, the state's round trip and the packed form against plain loops then
//! run by themselves.
//!
//! A folder has `validate`, the rules about its settings; `Params`, where its parameters lie; `Train`, its training form
//! ([`forms::Mixer`]); `Packed`, the same on packed weights (`PackedMixer`); and for the tests `reference::mix`, one row
//! in plain loops.

pub mod attention;
pub mod conv;
pub mod delta;
pub mod forms;
pub mod leaky;
pub mod shortconv;
#[cfg(test)]
mod tests;

use flashlm_kernels::Store;
use serde::{Deserialize, Serialize};

use crate::codes::error::PackError;
use crate::codes::reader::Reader;
use crate::error::{ConfigError, check};
use crate::layer::branch::Branch;
use crate::layer::config::LayerConfig;
use forms::{AnyMixer, PackedMixer};

/// The settings of a mixer, nothing for one without.
macro_rules! settings_of {
    ($settings:expr) => {
        &()
    };
    ($settings:expr, $key:ident) => {
        &$settings.$key
    };
}

macro_rules! mixers {
    ($($module:ident: $($(#[$attr:meta])* $key:ident: $settings:ty)?;)*) => {
        /// The names that `model.mixer` may have.
        pub const NAMES: &[&str] = &[$(stringify!($module)),*];

        /// The settings of all mixers, each under its key of `model`.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub struct Settings {
            $($(
                #[doc = concat!("Of `", stringify!($module), "`.")]
                $(#[$attr])*
                pub $key: $settings,
            )?)*
        }

        impl Settings {
            /// Checks all of them; those of mixers that are `used` must fit the model's width too.
            pub(crate) fn validate(&self, layers: &LayerConfig, used: impl Fn(&str) -> bool) -> Result<(), ConfigError> {
                $($module::validate(settings_of!(self $(, $key)?), layers, used(stringify!($module)))?;)*
                Ok(())
            }
        }

        /// Where the parameters of a mixer lie.
        #[derive(Clone, Debug)]
        // A model has a few of them, and only while it is built.
        #[allow(non_camel_case_types, clippy::large_enum_variant)]
        enum Kind {
            $($module($module::Params),)*
        }

        impl Params {
            /// Adds the parameters of the mixer of that name to a branch.
            ///
            /// # Panics
            /// If the name or the settings are not valid.
            pub(crate) fn new(name: &str, branch: &mut Branch, settings: &Settings) -> Self {
                match name {
                    $(stringify!($module) => {
                        Params(Kind::$module($module::Params::new(branch, settings_of!(settings $(, $key)?))))
                    })*
                    other => panic!("unknown mixer {other:?} in a validated config"),
                }
            }

            /// Numbers in the state of one sequence in the packed runtime.
            pub fn state_len(&self) -> usize {
                match &self.0 {
                    $(Kind::$module(of) => of.state_len(),)*
                }
            }

            /// Room for its weights in training.
            pub(crate) fn train<A: Store>(self, training: bool) -> Box<dyn AnyMixer<A>> {
                match self.0 {
                    $(Kind::$module(of) => Box::new($module::Train::new(of, training)),)*
                }
            }

            /// Its weights in the packed runtime.
            pub(crate) fn read(&self, from: &Reader) -> Result<Box<dyn PackedMixer>, PackError> {
                match &self.0 {
                    $(Kind::$module(of) => Ok(Box::new($module::Packed::read(from, of)?)),)*
                }
            }
        }

        /// One row of the mixer of that name in plain loops.
        #[cfg(test)]
        pub(crate) fn reference(
            name: &str,
            model: &crate::reference::Weights,
            settings: &Settings,
            x: &[f64],
            history: &mut crate::reference::History,
        ) -> Vec<f64> {
            match name {
                $(stringify!($module) => {
                    $module::reference::mix(model, settings_of!(settings $(, $key)?), x, history)
                })*
                other => panic!("unknown mixer {other:?}"),
            }
        }
    };
}

mixers! {
    conv: kernel_size: usize;
    delta: #[serde(default)] delta: delta::DeltaConfig;
    attention: #[serde(default)] attention: attention::AttentionConfig;
    leaky: ;
    shortconv: #[serde(default)] shortconv: shortconv::ShortConvConfig;
}

/// Where the parameters of a mixer of any kind lie.
#[derive(Clone, Debug)]
pub struct Params(Kind);

/// Checks that a mixer of this name, the value of `key`, exists.
pub(crate) fn known(key: &'static str, name: &str) -> Result<(), ConfigError> {
    let expected = || format!("one of {}", NAMES.join(", "));
    check(NAMES.contains(&name), || ConfigError::new(key, format!("{name:?}"), expected()))
}
