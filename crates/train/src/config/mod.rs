//! The settings of a run: defaults, then the preset, then `--config FILE`, then flags and `--set key=value`, resolved to one
//! TOML that is printed and saved beside every checkpoint. Unknown keys are errors that name the nearest one.

mod compare;
mod defaults;
mod error;
mod keys;
mod layers;
mod presets;
mod settings;
mod stages;
mod table;
#[cfg(test)]
mod tests;
mod validate;

pub use error::SettingsError;
pub use keys::key_called;
pub(crate) use layers::older_activation_bits;
pub use layers::{Layers, preset};
pub use presets::preset_names;
pub use settings::{DataSettings, Settings, TokenizerSettings, TrainSettings};
