//! What a resumed run may do otherwise than its checkpoint.

use xxhash_rust::xxh3::xxh3_64;

use super::settings::Settings;
use super::table::{flatten, table_of};

/// Keys of `[train]` that enter each step anew, so that a resumed run may change them.
const STEPWISE: &[&str] = &["lr", "min_lr", "matrix_lr", "clip", "batch", "accumulation", "decay_share"];

impl Settings {
    /// The first key in which a resumed run may not differ from its checkpoint, with both values.
    pub fn conflict(&self, other: &Settings) -> Option<String> {
        let fixed = |s: &Settings| {
            let mut all = flatten("", &table_of(s));
            let free = |key: &str| {
                // Of the text, what it is counts, and that is compared once it is read.
                if key.starts_with("data.") && !["data.boundaries", "data.shuffle"].contains(&key) {
                    return true;
                }
                let key = key.strip_prefix("train.").unwrap_or(key);
                STEPWISE.contains(&key)
                    || ["epochs", "steps", "minutes", "threads", "keep", "log_every", "patience", "name"].contains(&key)
                    || key.starts_with("eval_")
                    || key.starts_with("sample_")
                    || key.starts_with("checkpoint_")
                    || key == "prompts"
            };
            all.retain(|(key, _)| !free(key));
            all
        };
        let (mine, theirs) = (fixed(self), fixed(other));
        let differs = mine.iter().zip(&theirs).find(|(a, b)| a != b);
        differs.map(|((key, a), (_, b))| format!("{key} was {a} when saved and is {b} now"))
    }

    /// The first key in which settings differ, with both values.
    pub fn difference(&self, other: &Settings) -> Option<String> {
        let (mine, theirs) = (flatten("", &table_of(self)), flatten("", &table_of(other)));
        let differs = mine.into_iter().zip(theirs).find(|(a, b)| a != b);
        differs.map(|((key, a), (_, b))| format!("{key} was {a} when saved and is {b} now"))
    }

    /// XXH3-64 of the keys whose values are not the defaults, in 16 hexadecimal digits: a key that is added later, and off,
    /// changes no digest.
    pub fn digest(&self) -> String {
        let defaults = flatten("", &table_of(&Settings::default()));
        let own = flatten("", &table_of(self)).into_iter().filter(|pair| !defaults.contains(pair));
        let lines: String = own.map(|(key, value)| format!("{key} = {value}\n")).collect();
        format!("{:016x}", xxh3_64(lines.as_bytes()))
    }

    /// What differs from another, such as the preset that these settings began with: each key with its value here. Sizes that follow
    /// from the vocabulary are left out.
    pub fn differences(&self, from: &Settings) -> Vec<String> {
        let (mine, theirs) = (flatten("", &table_of(self)), flatten("", &table_of(from)));
        let follows = |key: &str| ["model.vocab_size", "model.eos", "name"].contains(&key);
        let differ =
            mine.into_iter().filter(|(key, value)| !follows(key) && !theirs.contains(&(key.clone(), value.clone())));
        differ.map(|(key, value)| format!("{key} = {value}")).collect()
    }

    /// What a resumed run does otherwise than its checkpoint from the next step on.
    pub fn changes(&self, other: &Settings) -> Vec<String> {
        let (mine, theirs) = (flatten("", &table_of(self)), flatten("", &table_of(other)));
        let own = |key: &str| key.strip_prefix("train.").is_some_and(|key| STEPWISE.contains(&key));
        let differ = mine.into_iter().zip(theirs).filter(|((key, a), (_, b))| own(key) && a != b);
        differ.map(|((key, a), (_, b))| format!("{key} was {a} and is {b} from here on")).collect()
    }
}
