//! The presets: one line for each TOML of `configs/`.

use super::SettingsError;

const PRESETS: &[(&str, &str)] = &[
    ("flash-tiny", include_str!("../../../../configs/flash-tiny.toml")),
    ("flash-small", include_str!("../../../../configs/flash-small.toml")),
    ("flash-medium", include_str!("../../../../configs/flash-medium.toml")),
    ("flash-large", include_str!("../../../../configs/flash-large.toml")),
    ("v3", include_str!("../../../../configs/v3.toml")),
    ("v4-small", include_str!("../../../../configs/v4-small.toml")),
    ("v4-large", include_str!("../../../../configs/v4-large.toml")),
    ("v4-blockwise-small", include_str!("../../../../configs/v4-blockwise-small.toml")),
    ("v4-blockwise-large", include_str!("../../../../configs/v4-blockwise-large.toml")),
    ("gdn-small", include_str!("../../../../configs/gdn-small.toml")),
    ("gdn-large", include_str!("../../../../configs/gdn-large.toml")),
    ("hybrid-small", include_str!("../../../../configs/hybrid-small.toml")),
    ("portable-small", include_str!("../../../../configs/portable-small.toml")),
    ("portable-delta", include_str!("../../../../configs/portable-delta.toml")),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn every_file_of_configs_is_a_preset() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        let stem = |path: &Path| Some(path.file_stem()?.to_str()?.to_string());
        let paths = configs.read_dir().unwrap().map(|entry| entry.unwrap().path());
        let files: BTreeSet<_> =
            paths.filter(|path| path.extension().is_some_and(|e| e == "toml")).filter_map(|path| stem(&path)).collect();
        let presets: BTreeSet<_> = preset_names().into_iter().map(String::from).collect();
        assert_eq!(files, presets, "a TOML of configs/ wants a line in PRESETS, here");
    }
}
