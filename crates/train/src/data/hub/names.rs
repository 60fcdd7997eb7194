//! Datasets of the hub by name, and which files of a repository hold the documents that are meant.
//!
//! ```text
//! tinystories | tinystories-v2 | simplestories | fineweb-edu | hf:OWNER/DATASET[:CONFIG[:SPLIT[:COLUMN]]]
//! ```
//!
//! CONFIG is a folder, a file, or the start of a file's name (`sample-10BT` also means `sample/10BT`). A file belongs
//! to the split whose word stands last in its path (`data/train-00000-of-00004.parquet`); where no file has such a word,
//! all are of the split `train`. A split of another name (`train_sft`) has the files whose path it stands in. Of several formats
//! one is taken: Parquet, else JSON lines, else text.

use std::collections::BTreeSet;

/// Names that FlashLM knows: name, repository, config, column of the documents.
const KNOWN: [(&str, &str, &str, &str); 4] = [
    ("tinystories", "roneneldan/TinyStories", "data", "text"),
    ("tinystories-v2", "roneneldan/TinyStories", "TinyStoriesV2-GPT4", "text"),
    ("simplestories", "SimpleStories/SimpleStories", "", "story"),
    ("fineweb-edu", "HuggingFaceFW/fineweb-edu", "sample/10BT", "text"),
];

/// The names that FlashLM knows.
pub const NAMES: [&str; 4] = [KNOWN[0].0, KNOWN[1].0, KNOWN[2].0, KNOWN[3].0];

/// Splits and the words that stand for them in paths.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Endings of the files that can be read, best first; each also compressed.
const FORMATS: [&[&str]; 3] = [&[".parquet"], &[".jsonl"], &[".txt", ""]];
const COMPRESSED: [&str; 2] = [".zst", ".gz"];

/// A dataset of the hub, down to a split and a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    name: String,
    repo: String,
    config: String,
    split: String,
    column: String,
}

impl Dataset {
    /// The dataset that a data specification names; none where it is of another form, an error where it is a bad one.
    pub fn parse(spec: &str) -> Option<Result<Dataset, String>> {
        if let Some((name, repo, config, column)) = KNOWN.iter().find(|known| known.0 == spec) {
            let [name, repo, config, split, column] =
                [name, repo, config, "train", column].map(|s: &str| s.to_string());
            return Some(Ok(Dataset { name, repo, config, split, column }));
        }
        spec.strip_prefix("hf:").map(Dataset::of_hub)
    }

    fn of_hub(rest: &str) -> Result<Dataset, String> {
        let parts: Vec<&str> = rest.split(':').collect();
        if parts.len() > 4 {
            return Err("more than hf:OWNER/DATASET:CONFIG:SPLIT:COLUMN".to_string());
        }
        let part = |i: usize, default: &str| match parts.get(i) {
            Some(text) if !text.is_empty() => text.to_string(),
            _ => default.to_string(),
        };
        let (repo, config, split, column) = (part(0, ""), part(1, ""), part(2, "train"), part(3, "text"));
        if !is_repo(&repo) {
            return Err(format!("`{repo}` is not the name of a dataset, OWNER/DATASET"));
        }
        if !split.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err(format!("`{split}` is not the name of a split"));
        }
        let split = SPLITS.iter().find(|(_, words)| words.contains(&&*split)).map_or(split, |s| s.0.to_string());
        let name = repo.rsplit('/').next().unwrap_or_default().to_string();
        Ok(Dataset { name, repo, config, split, column })
    }

    /// The repository, `owner/dataset`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The column or field of the documents.
    pub fn column(&self) -> &str {
        &self.column
    }

    /// A short name, with the split where it is not `train`.
    pub fn name(&self) -> String {
        if self.split == "train" { self.name.clone() } else { format!("{}-{}", self.name, self.split) }
    }

    /// The same in full, `hf:owner/dataset:config:split:column`.
    pub fn spec(&self) -> String {
        format!("hf:{}:{}:{}:{}", self.repo, self.config, self.split, self.column)
    }

    /// The validation split of a dataset whose `train` this is, if these files have one.
    pub fn validation(&self, files: &[&str]) -> Option<Dataset> {
        let valid = Dataset { split: "validation".to_string(), ..self.clone() };
        (self.split == "train" && valid.select(files).is_ok()).then_some(valid)
    }

    /// The files of the split, in the order of their paths; else what the repository has instead.
    pub fn select<'a>(&self, files: &[&'a str]) -> Result<Vec<&'a str>, String> {
        let here: Vec<&str> = files.iter().copied().filter(|file| self.in_config(file)).collect();
        let mut tops = BTreeSet::new();
        let mut splits = BTreeSet::new();
        for endings in FORMATS {
            let kind: Vec<&str> = here.iter().copied().filter(|file| has_ending(file, endings)).collect();
            // A folder `data` is the default config; the rest beside it are other things.
            let in_data: Vec<&str> = kind.iter().copied().filter(|file| file.starts_with("data/")).collect();
            let kind = if self.config.is_empty() && !in_data.is_empty() { in_data } else { kind };
            let none_named = kind.iter().all(|file| split_of(file).is_none());
            let mine = |file: &&str| match split_of(file) {
                // One of another name stands in the path as it is: `train_sft`.
                _ if !SPLITS.iter().any(|(split, _)| *split == self.split) => has_word(file, &self.split),
                Some(split) => split == self.split,
                None => none_named && self.split == "train",
            };
            let mut wanted: Vec<&str> = kind.iter().copied().filter(mine).collect();
            // `train.jsonl` is the split, and `train_sft.jsonl` another, where both are there.
            if wanted.iter().any(|file| !is_longer(file, &self.split)) {
                wanted.retain(|file| !is_longer(file, &self.split));
            }
            if !wanted.is_empty() {
                tops.extend(wanted.iter().map(|file| file.split_once('/').map_or("", |(top, _)| top)));
                if self.config.is_empty() && tops.len() > 1 {
                    let tops: Vec<&str> = tops.into_iter().filter(|top| !top.is_empty()).take(20).collect();
                    return Err(format!(
                        "it has several configs; name one: hf:{}:CONFIG with {}",
                        self.repo,
                        tops.join(", ")
                    ));
                }
                wanted.sort_unstable();
                return Ok(wanted);
            }
            splits.extend(kind.iter().filter_map(|file| split_name(file)));
        }
        let what = if self.config.is_empty() { String::new() } else { format!(" of `{}`", self.config) };
        Err(if here.is_empty() {
            format!("it has no file{what} among its {}", files.len())
        } else if splits.is_empty() {
            format!("none of its {} files{what} is Parquet, JSON lines or text of the split {}", here.len(), self.split)
        } else {
            let splits: Vec<&str> = splits.into_iter().collect();
            format!("it has no split {}{what}; there is {}", self.split, splits.join(", "))
        })
    }

    fn in_config(&self, file: &str) -> bool {
        if self.config.is_empty() {
            return true;
        }
        let folders = file.rsplit_once('/').map_or("", |(folders, _)| folders);
        let starts = |config: &str| {
            let rest = file.strip_prefix(config);
            rest.is_some_and(|rest| config.ends_with('/') || !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        };
        starts(&self.config) || starts(&self.config.replace('-', "/")) || folders.split('/').any(|f| f == self.config)
    }
}

/// Whether this is OWNER/NAME by the rules of the hub, which also make it a safe name for a folder.
pub(super) fn is_repo(repo: &str) -> bool {
    let word = |s: &str| {
        let inner = !s.is_empty() && s.len() <= 96 && !s.contains("..") && !s.contains("--");
        inner && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !s.starts_with(['-', '.'])
    };
    repo.split_once('/').is_some_and(|(owner, name)| word(owner) && word(name))
}

fn has_ending(file: &str, endings: &[&str]) -> bool {
    let file = file.to_ascii_lowercase();
    let ends = |end: &str| {
        (!end.is_empty() && file.ends_with(end)) || COMPRESSED.iter().any(|c| file.ends_with(&format!("{end}{c}")))
    };
    // `.tar` and the like inside a compressed file are no text.
    let inner = COMPRESSED.iter().find_map(|c| file.strip_suffix(c)).unwrap_or(&file);
    let odd = [".tar", ".tgz", ".json", ".csv", ".npy"].iter().any(|end| inner.ends_with(end));
    !odd && endings.iter().any(|end| ends(end))
}

fn words(file: &str) -> impl DoubleEndedIterator<Item = &str> {
    file.split(|c: char| !c.is_ascii_alphanumeric())
}

/// The split that a word in lower case stands for.
pub fn split_of_word(word: &str) -> Option<&'static str> {
    SPLITS.iter().find(|(_, words)| words.contains(&word)).map(|(split, _)| *split)
}

/// The split whose word stands last in the path.
fn split_of(file: &str) -> Option<&'static str> {
    words(&file.to_ascii_lowercase()).rev().find_map(split_of_word)
}

/// The same with what is joined to it by `_`: `train_sft`; letters alone, for numbers count files.
fn split_name(file: &str) -> Option<&str> {
    let joined = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let name = file.split(joined).rev().find(|name| split_of(name).is_some())?;
    Some(name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_'))
}

/// Whether a name of the path goes on after the split, as `train_sft` does after `train`.
fn is_longer(file: &str, split: &str) -> bool {
    let words = SPLITS.iter().find(|(known, _)| *known == split).map_or([split].to_vec(), |(_, words)| words.to_vec());
    let Some(name) = split_name(file).map(str::to_ascii_lowercase) else { return false };
    !words.iter().any(|word| name.ends_with(&word.to_ascii_lowercase()))
}

/// Whether the split of another name stands in the path, with no letter or digit beside it.
fn has_word(file: &str, split: &str) -> bool {
    let free = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric());
    let found =
        |(at, _): (usize, &str)| free(file[..at].chars().next_back()) && free(file[at + split.len()..].chars().next());
    !split.is_empty() && file.match_indices(split).any(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str) -> Dataset {
        Dataset::parse(spec).unwrap().unwrap()
    }

    /// Layouts as the hub had them in 2025: a part of each, other formats and READMEs included.
    const TINY: [&str; 12] = [
        ".gitattributes",
        "Evaluation prompts.yaml",
        "README.md",
        "TinyStories-train.txt",
        "TinyStories-valid.txt",
        "TinyStoriesV2-GPT4-train.txt",
        "TinyStoriesV2-GPT4-valid.txt",
        "TinyStories_all_data.tar.gz",
        "data/train-00001-of-00004-5852b56a2bd28fd9.parquet",
        "data/train-00000-of-00004-2d5a1467fff1081b.parquet",
        "data/validation-00000-of-00001-869c898b519ad725.parquet",
        "tinystories_sample.jsonl",
    ];

    #[test]
    fn names_of_their_own_pick_their_files() {
        let files = parse("tinystories").select(&TINY).unwrap();
        assert_eq!(files, [TINY[9], TINY[8]]);
        let valid = parse("tinystories").validation(&TINY).unwrap();
        assert_eq!(valid.select(&TINY).unwrap(), [TINY[10]]);
        assert_eq!(
            (valid.name(), valid.spec()),
            ("tinystories-validation".to_string(), "hf:roneneldan/TinyStories:data:validation:text".to_string())
        );
        assert!(valid.validation(&TINY).is_none());
        let second = parse("tinystories-v2");
        assert_eq!(second.select(&TINY).unwrap(), ["TinyStoriesV2-GPT4-train.txt"]);
        assert_eq!(second.validation(&TINY).unwrap().select(&TINY).unwrap(), ["TinyStoriesV2-GPT4-valid.txt"]);
        assert_eq!(parse("hf:roneneldan/TinyStories").select(&TINY).unwrap(), [TINY[9], TINY[8]]);

        let simple =
            ["README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00002.parquet", "processed.parquet"];
        let dataset = parse("simplestories");
        assert_eq!((dataset.select(&simple).unwrap(), dataset.column()), (vec![simple[2]], "story"));
        assert!(dataset.validation(&simple).is_none());
        assert_eq!(dataset.select(&["processed.parquet", "README.md"]).unwrap(), ["processed.parquet"]);

        let web = [
            "README.md",
            "data/CC-MAIN-2013-20/train-00000-of-00014.parquet",
            "sample/100BT/000_00000.parquet",
            "sample/10BT/000_00000.parquet",
            "sample/10BT/001_00000.parquet",
        ];
        assert_eq!(parse("fineweb-edu").select(&web).unwrap(), web[3..]);
        assert_eq!(parse("hf:HuggingFaceFW/fineweb-edu:sample-10BT").select(&web).unwrap(), web[3..]);
        assert_eq!(parse("hf:HuggingFaceFW/fineweb-edu:sample/10BT/001_00000.parquet").select(&web).unwrap(), [web[4]]);
        assert_eq!(parse("hf:HuggingFaceFW/fineweb-edu").select(&web).unwrap(), [web[1]]);
        assert!(parse("fineweb-edu").validation(&web).is_none());
    }

    #[test]
    fn configs_and_splits_are_found_or_told() {
        let files = ["de/train.jsonl.gz", "de/dev.jsonl.gz", "en/train.jsonl.gz", "en/held_out.jsonl.gz", "LICENSE"];
        let select = |spec: &str| parse(spec).select(&files);
        assert_eq!(select("hf:a/b:en").unwrap(), ["en/train.jsonl.gz"]);
        assert_eq!(select("hf:a/b:de:valid").unwrap(), ["de/dev.jsonl.gz"]);
        assert_eq!(select("hf:a/b:en:held_out").unwrap(), ["en/held_out.jsonl.gz"]);
        assert!(parse("hf:a/b:de").validation(&files).is_some() && parse("hf:a/b:en").validation(&files).is_none());
        let error = |spec: &str| select(spec).unwrap_err();
        assert!(error("hf:a/b").contains("de, en"), "{}", error("hf:a/b"));
        assert!(error("hf:a/b:fr").contains("no file of `fr`"));
        assert!(error("hf:a/b:en:test").contains("there is train"));
        assert!(error("hf:a/b:LICENSE").contains("none of its 1 files"));
    }

    #[test]
    fn splits_have_any_name() {
        let files = [
            "data/test_gen-00000-of-00001.parquet",
            "data/test_sft-00000-of-00001.parquet",
            "data/train_gen-00000-of-00003.parquet",
            "data/train_sft-00000-of-00002.parquet",
            "data/train_sft-00001-of-00002.parquet",
        ];
        let select = |spec: &str| parse(spec).select(&files);
        assert_eq!(select("hf:a/b::train_sft").unwrap(), files[3..]);
        assert_eq!(select("hf:a/b::test_gen").unwrap(), files[..1]);
        // None is `train` alone, so all of training are.
        assert_eq!(select("hf:a/b").unwrap(), files[2..]);
        let error = select("hf:a/b::train_dpo").unwrap_err();
        assert!(error.ends_with("there is test_gen, test_sft, train_gen, train_sft"), "{error}");
        // As they stand in the path, beside others that go on.
        let files = [
            "creative_train.jsonl",
            "train.jsonl",
            "train_00.jsonl",
            "train_sft.jsonl",
            "valid_sft.jsonl",
            "pre2019.jsonl",
        ];
        let select = |spec: &str| parse(spec).select(&files);
        assert_eq!(select("hf:a/b").unwrap(), files[..3]);
        assert_eq!(select("hf:a/b::validation").unwrap(), files[4..5]);
        assert_eq!(select("hf:a/b::pre2019").unwrap(), files[5..]);
        assert_eq!(select("hf:a/b::creative_train").unwrap(), files[..1]);
    }

    #[test]
    fn bad_names_say_why() {
        for spec in ["hf:", "hf:stories", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b--c", "hf:a b/c", "hf:a/b:c:d:e:f"] {
            assert!(Dataset::parse(spec).unwrap().is_err(), "{spec}");
        }
        assert!(Dataset::parse("stories.txt").is_none() && Dataset::parse("tinystories.txt").is_none());
        let full = parse("hf:a/b:c:test:story");
        assert_eq!(
            (full.spec().as_str(), full.column(), full.name().as_str()),
            ("hf:a/b:c:test:story", "story", "b-test")
        );
        assert_eq!(parse("hf:a/b").spec(), "hf:a/b::train:text");
        assert_eq!(parse(&parse("hf:a/b").spec()), parse("hf:a/b"));
    }
}
