//! Errors of the command line: tips only where something similar is meant, and in words of ours where numbers are wrong.

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use flashlm_train::config::key_called;
use flashlm_train::similar::edit_distance;

/// What other programs call our options, by command.
const ALIASES: [(&str, &str, &[&str]); 15] = [
    ("train", "--lr", &["--learning-rate", "--max-lr"]),
    ("train", "--batch", &["--batch-size", "--bs"]),
    ("train", "--save-dir", &["--output", "--output-dir", "--out-dir", "--out", "--run"]),
    ("train", "--from", &["--init", "--init-from", "--finetune", "--fine-tune", "--pretrained", "--model"]),
    ("train", "--steps", &["--max-steps", "--iters", "--max-iters", "--updates"]),
    ("train", "--epochs", &["--num-epochs", "--num-train-epochs"]),
    ("train", "--data", &["--text", "--dataset", "--train-data", "--input"]),
    ("train", "--valid", &["--val", "--validation", "--val-data", "--eval-data"]),
    ("train", "--vocab", &["--vocab-size"]),
    ("train", "--resume", &["--continue", "--resume-from", "--resume-from-checkpoint", "--checkpoint"]),
    ("eval", "--data", &["--text", "--dataset", "--input", "--file", "--valid"]),
    ("generate", "--temperature", &["--temp"]),
    ("generate", "--repeat-penalty", &["--repetition-penalty", "--rep-pen"]),
    ("generate", "--tokens", &["--max-tokens", "--max-new-tokens", "--length", "--n-predict"]),
    ("generate", "--samples", &["--num-samples", "--num-return-sequences"]),
];

/// The error of a command with a tip that makes sense, or without one.
pub fn sensible(mut error: Error, command: &str) -> Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return error };
    let given = given.clone();
    let similar = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(similar)) => Some(similar.clone()),
        _ => None,
    };
    error.remove(ContextKind::SuggestedArg);
    // That of another option would mislead.
    error.remove(ContextKind::Suggested);
    if let Some(meant) = meant(command, &given, similar.as_deref()) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(meant));
    }
    error
}

/// The option that is called so elsewhere, else the similar one if it is near: at most a third of the letters differ; of `train` also
/// the setting of that name.
fn meant(command: &str, given: &str, similar: Option<&str>) -> Option<String> {
    let given = &*given.replace('_', "-");
    let alias = ALIASES.iter().find(|(of, _, others)| *of == command && others.contains(&given));
    if let Some((_, option, _)) = alias {
        return Some((*option).to_string());
    }
    let name = |option: &str| option.trim_start_matches('-').to_string();
    let near = |similar: &&str| 3 * edit_distance(&name(given), &name(similar)) <= name(given).chars().count();
    let setting = || key_called(&name(given).replace('-', "_")).map(|key| format!("--set {key}=..."));
    let setting = if command == "train" { setting() } else { None };
    setting.or_else(|| similar.filter(near).map(String::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tip_makes_sense_or_is_none() {
        for (command, given, similar, tip) in [
            ("train", "--init", Some("--minutes"), Some("--from")),
            ("train", "--finetune", Some("--minutes"), Some("--from")),
            ("train", "--learning-rate", Some("--lr"), Some("--lr")),
            ("train", "--minute", Some("--minutes"), Some("--minutes")),
            ("train", "--mintues", Some("--minutes"), Some("--minutes")),
            ("train", "--gpu", Some("--vocab"), None),
            ("train", "--batch_size", None, Some("--batch")),
            ("train", "--n-layer", None, Some("--set model.blocks=...")),
            ("train", "--warmup-steps", Some("--steps"), Some("--set train.warmup_steps=...")),
            ("eval", "--n-layer", None, None),
            ("generate", "--top_p", Some("--top-p"), Some("--top-p")),
            ("generate", "--temp", Some("--tokens"), Some("--temperature")),
            ("eval", "--finetune", Some("--minutes"), None),
            ("generate", "--max-new-tokens", None, Some("--tokens")),
        ] {
            assert_eq!(meant(command, given, similar).as_deref(), tip, "{given}");
        }
    }
}
