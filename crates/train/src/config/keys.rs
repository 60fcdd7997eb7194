//! Keys that do not exist, and the one that was meant.

use toml::{Table, Value};

use super::SettingsError;
use super::settings::Settings;
use super::table::{flatten, table_of};
use crate::similar::edit_distance;

/// The error for a key that is not among the known ones.
pub(super) fn unknown(key: String, known: &Table, origin: &str) -> SettingsError {
    let known = flatten("", known);
    let hint = match nearest(&key, known.iter().map(|(name, _)| name.as_str())) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "docs/formats.md and the settings.toml of any run list all keys".to_string(),
    };
    SettingsError::UnknownKey { origin: origin.into(), key, hint }
}

/// What other programs call our keys.
const ALIASES: [(&str, &[&str]); 29] = [
    ("train.lr", &["learning_rate", "max_lr", "peak_lr"]),
    ("train.min_lr", &["min_learning_rate", "final_lr"]),
    ("train.schedule", &["lr_scheduler_type", "lr_schedule", "scheduler"]),
    ("train.warmup_steps", &["warmup", "warmup_iters"]),
    ("train.weight_decay", &["wd"]),
    ("train.clip", &["grad_clip", "gradient_clip", "max_grad_norm", "grad_norm_clip"]),
    ("train.accumulation", &["gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches"]),
    ("train.precision", &["dtype", "bf16", "fp16", "mixed_precision"]),
    ("train.eval_every", &["eval_interval", "eval_steps", "val_every"]),
    ("train.checkpoint_every", &["save_steps", "save_interval", "save_every"]),
    ("train.log_every", &["log_interval", "logging_steps"]),
    ("train.keep", &["save_total_limit"]),
    ("model.attention.heads", &["n_head", "n_heads", "num_heads", "num_attention_heads"]),
    ("data.source", &["dataset", "path", "train_data"]),
    ("train.batch", &["batch_size", "per_device_train_batch_size"]),
    ("train.optimizer", &["optim", "optimizer_type"]),
    ("train.beta1", &["adam_beta1"]),
    ("train.beta2", &["adam_beta2"]),
    ("train.eps", &["adam_epsilon", "epsilon"]),
    ("train.threads", &["num_threads", "num_workers"]),
    ("data.valid", &["valid_data", "val_data", "eval_data", "validation_data"]),
    ("data.holdout", &["val_split", "validation_split", "val_fraction", "test_size"]),
    ("train.epochs", &["num_epochs", "num_train_epochs", "max_epochs"]),
    ("train.steps", &["max_steps", "max_iters", "num_steps", "iters"]),
    (
        "train.seq_len",
        &["block_size", "context_length", "context", "n_ctx", "max_seq_len", "seq_length", "sequence_length"],
    ),
    ("model.dim", &["hidden_size", "n_embd", "d_model", "hidden", "width", "embed_dim", "embedding_dim"]),
    ("model.blocks", &["n_layer", "n_layers", "num_layers", "layers", "num_hidden_layers", "depth", "num_blocks"]),
    ("model.ffn_hidden", &["intermediate_size", "d_ff"]),
    ("tokenizer.vocab", &["vocab_size"]),
];

/// The key that is called so here, or in other programs, without its section; none where it is not that very name.
pub fn key_called(name: &str) -> Option<String> {
    let mut keys = flatten("", &table_of(&Settings::default())).into_iter().map(|(key, _)| key);
    let alias = ALIASES.iter().find(|(_, others)| others.contains(&name)).map(|(key, _)| (*key).to_string());
    alias.or_else(|| keys.find(|key| key.split_once('.').is_some_and(|(_, key)| key == name)))
}

/// Looks for keys that the template does not have, in tables and in lists of tables.
pub(super) fn check_keys(value: &Value, template: &Value, path: &str, origin: &str) -> Result<(), SettingsError> {
    match (value, template) {
        (Value::Array(values), Value::Array(template)) => {
            let template = template.first().into_iter().cycle();
            values.iter().zip(template).try_for_each(|(value, template)| check_keys(value, template, path, origin))
        }
        (Value::Table(table), Value::Table(known)) => table.iter().try_for_each(|(key, value)| {
            let path = format!("{path}.{key}");
            match known.get(key) {
                Some(template) => check_keys(value, template, &path, origin),
                None => {
                    let section = path.rsplit_once('.').map_or("", |(section, _)| section);
                    let known = known.iter().map(|(key, value)| (format!("{section}.{key}"), value.clone())).collect();
                    Err(unknown(path, &known, origin))
                }
            }
        }),
        _ => Ok(()),
    }
}

/// The candidate that is called so elsewhere, else that with the smallest edit distance, up to half the name; a match of the last
/// part of a dotted key counts as near, of the first part (a misspelt section) as a little less so.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_string();
    let own = last(name);
    let called = |other: &&str| edit_distance(&own, other) <= other.len() / 6;
    let alias = ALIASES.iter().find(|(_, others)| others.iter().any(called)).map(|(key, _)| *key);
    if let Some(key) = candidates.clone().find(|candidate| Some(*candidate) == alias) {
        return Some(key);
    }
    let far = |candidate: &str| {
        let by_section = if name.contains('.') { usize::MAX } else { edit_distance(name, &section(candidate)) + 1 };
        let by_key = edit_distance(&own, &last(candidate));
        // A key of another section is as near as a key of this one only if it is the same.
        let other = name.contains('.') && section(name) != section(candidate) && by_key > 0;
        edit_distance(name, candidate).min(by_key + 1 + 2 * usize::from(other)).min(by_section)
    };
    let best = candidates.min_by_key(|candidate| far(candidate))?;
    (far(best) <= own.chars().count() / 2 + 1).then_some(best)
}
