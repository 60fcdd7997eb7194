//! Settings as a table of TOML, and as dotted keys.

use toml::{Table, Value};

use super::settings::Settings;

/// All settings, also what is not written where it is the default.
pub(super) fn table_of(settings: &Settings) -> Table {
    let mut table = Table::try_from(settings).unwrap_or_default();
    if let Some(model) = table.get_mut("model").and_then(Value::as_table_mut) {
        model.entry("family").or_insert_with(|| settings.model.family.clone().into());
        let dilated = Value::try_from(&settings.model.dilated);
        model.entry("dilated").or_insert_with(|| dilated.unwrap_or(Value::Table(Table::new())));
    }
    table
}

/// All dotted keys and their values.
pub(super) fn flatten(prefix: &str, table: &Table) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) => all.extend(flatten(&path, inner)),
            other => all.push((path, other.to_string())),
        }
    }
    all
}
