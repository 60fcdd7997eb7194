//! The presets: one line for each TOML of `configs/`.

use super::SettingsError;

const PRESETS: &[(&str, &str)] = &[
    ("flash-tiny", include_str!("../../../../configs/flash-tiny.toml")),
    ("flash-small", include_str!("../../../../configs/flash-small.toml")),
    ("flash-large", include_str!("../../../../configs/flash-large.toml")),
    ("v4-small", include_str!("../../../../configs/v4-small.toml")),
    ("v4-large", include_str!("../../../../configs/v4-large.toml")),
    ("v4-blockwise-small", include_str!("../../../../configs/v4-blockwise-small.toml")),
    ("v4-blockwise-large", include_str!("../../../../configs/v4-blockwise-large.toml")),
    ("gdn-small", include_str!("../../../../configs/gdn-small.toml")),
    ("gdn-large", include_str!("../../../../configs/gdn-large.toml")),
    ("hybrid-small", include_str!("../../../../configs/hybrid-small.toml")),
    ("curriculum-small", include_str!("../../../../configs/curriculum-small.toml")),
];

/// The names that `--preset` takes.
pub fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// The TOML of a preset.
pub(super) fn text_of(name: &str) -> Result<&'static str, SettingsError> {
    let found = PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text);
    found.ok_or_else(|| SettingsError::Preset { name: name.into(), known: preset_names().join(", ") })
}
