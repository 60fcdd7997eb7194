//! What a file of a folder is by its name.

/// Endings of text that may be read from a folder, before `.gz` or `.zst`.
const TEXTS: [&str; 2] = [".txt", ".text"];
/// Of records with fields.
const RECORDS: [&str; 6] = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"];
/// Of documents and source code.
const DOCUMENTS: [&str; 41] = [
    ".md",
    ".markdown",
    ".rst",
    ".org",
    ".adoc",
    ".tex",
    ".html",
    ".htm",
    ".xml",
    ".srt",
    ".py",
    ".rs",
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".hpp",
    ".java",
    ".kt",
    ".go",
    ".js",
    ".jsx",
    ".ts",
    ".tsx",
    ".rb",
    ".php",
    ".cs",
    ".swift",
    ".scala",
    ".lua",
    ".pl",
    ".r",
    ".jl",
    ".hs",
    ".ml",
    ".sh",
    ".sql",
    ".lisp",
    ".el",
    ".f90",
    ".zig",
];
/// Of compressed files.
const COMPRESSED: [&str; 2] = [".gz", ".zst"];

/// Names of JSON that is about a dataset, a model or a project, and no text of it.
const ABOUT: [&str; 10] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "package.json",
];

/// What a file of a folder is by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Text,
    Records,
    Document,
}

impl Kind {
    pub fn of(name: &str) -> Option<Kind> {
        let name = name.to_lowercase();
        if ABOUT.contains(&&*name) {
            return None;
        }
        let inner = COMPRESSED.iter().find_map(|end| name.strip_suffix(end));
        let has = |endings: &[&str]| endings.iter().any(|end| inner.unwrap_or(&name).ends_with(end));
        // A table is compressed within.
        if has(&RECORDS) && !(inner.is_some_and(|inner| inner.ends_with(".parquet"))) {
            return Some(Kind::Records);
        }
        if has(&DOCUMENTS) {
            return Some(Kind::Document);
        }
        // What is compressed and has no other ending is text.
        let plain = |inner: &str| !inner.contains('.') || !inner.rsplit('.').next().is_some_and(is_ending);
        (has(&TEXTS) || inner.is_some_and(plain)).then_some(Kind::Text)
    }
}

/// Whether what follows the last dot of a name looks like an ending: `tar` of `a.tar`, not `2` of `v1.2`.
pub(super) fn is_ending(last: &str) -> bool {
    (1..=8).contains(&last.len()) && last.chars().any(|c| c.is_ascii_alphabetic())
}
