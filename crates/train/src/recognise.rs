//! Recognises what a path is. Content decides where it can: the files of a folder, first bytes, the header of safetensors, the
//! keys of JSON. The name decides where content cannot: text is text whatever it says, and a damaged file is what it was meant to
//! be. Only regular files are opened, and read only as far as needed: the first 64 KiB, a header, or a JSON file that may be a
//! tokenizer.

use crate::builtin;
use crate::data::cache::MAGIC;
use crate::data::hub::Dataset;
use crate::data::{foreign, is_readable, missing_hint};
use crate::log::Row;
use crate::run_folder::RunFolder;
use crate::what::{What, quoted};
use flashlm_model::io::safetensors::Header;
use flashlm_model::io::torch;
use flashlm_model::io::{self, IoError, LFS_POINTER, not_a_file, read_limited};
use flashlm_model::peer::{self, cut_llama2c, is_llama2c};
use flashlm_model::tok::FileKind;
use flashlm_model::{model_file, pack};
use serde::de::IgnoredAny;
use std::collections::HashMap;
use std::fs::Metadata;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Bytes of a file that are looked at.
const HEAD: u64 = 64 << 10;
/// Longest JSON file that is read to see whether it is a tokenizer.
const MAX_JSON: u64 = 64 << 20;
/// Most entries of folders that are looked at.
const MAX_ENTRIES: usize = 10_000;

/// Endings of JSON lines.
const JSON_LINES: [&str; 2] = [".jsonl", ".ndjson"];

/// Looks at a path.
pub fn recognise(path: &Path) -> What {
    match path.metadata() {
        Ok(about) if about.is_dir() => of_folder(path).unwrap_or_else(|e| What::Unreadable(e.to_string())),
        Ok(about) => of_file(path, &about).unwrap_or_else(What::Unreadable),
        Err(e) if e.kind() == ErrorKind::NotFound => match path.to_str() {
            Some(builtin::NAME) => What::Builtin,
            Some(spec) if spec == "synthetic" || spec.starts_with("synthetic:") => What::Synthetic,
            Some(spec) if Dataset::parse(spec).is_some() => What::Dataset,
            _ => What::Missing(missing_hint(path)),
        },
        Err(e) => What::Unreadable(e.to_string()),
    }
}

fn other(what: impl Into<String>, mend: impl Into<String>) -> What {
    What::Other { what: what.into(), mend: mend.into() }
}

// ---- Folders --------------------------------------------------------------------------------------------------------

fn of_folder(path: &Path) -> std::io::Result<What> {
    let folder = path.to_path_buf();
    if path.join("checkpoint.json").is_file() {
        let run = path.canonicalize()?.parent().and_then(run_of);
        return Ok(What::Checkpoint { folder, run });
    }
    if is_run(path) {
        let checkpoints = RunFolder::at(path).list().map_err(std::io::Error::other)?.len();
        return Ok(What::Run { folder, checkpoints });
    }
    if let Some(run) = run_of(&path.canonicalize()?) {
        return Ok(What::Checkpoints { run });
    }
    if ["train.tok", "valid.tok"].iter().any(|name| starts_with(&path.join(name), &MAGIC)) {
        return Ok(What::Prepared);
    }
    let mut entries = Vec::new();
    for entry in path.read_dir()?.take(MAX_ENTRIES) {
        let entry = entry?.path();
        // What a killed process was writing counts for nothing.
        if !name_of(&entry).starts_with(".tmp-") {
            entries.push(entry);
        }
    }
    entries.sort();
    if entries.is_empty() {
        return Ok(What::EmptyFolder);
    }
    let inner = |entry: &&PathBuf| quoted(entry);
    if let Some(found) = of_config(&path.join(peer::CONFIG)) {
        return Ok(found);
    }
    if let Some(run) = entries.iter().find(|entry| entry.is_dir() && is_run(entry)) {
        return Ok(other(format!("a folder with a run in it, {}", inner(&run)), "name that"));
    }
    if let Some(file) = entries.iter().find(|entry| name_of(entry).ends_with(".safetensors")) {
        if path.join(peer::CONFIG).is_file() && matches!(of_tensors(file), What::Tensors { .. }) {
            let mend = format!("copy {} again from the model's source", peer::CONFIG);
            return Ok(other("a model folder whose config.json has no model_type", mend));
        }
        return Ok(other(format!("a folder with a model file in it, {}", inner(&file)), "name that"));
    }
    if holds_text(entries) {
        return Ok(What::TextFolder);
    }
    Ok(other("a folder without a run, a model or text", "name another folder, or a file in it"))
}

/// A model folder of another program, by its `config.json`.
fn of_config(config: &Path) -> Option<What> {
    let kind = config.is_file().then(|| peer::model_type(config))??;
    Some(match kind.as_str() {
        "llama" => What::Peer("Llama"),
        "gpt_neo" => What::Peer("GPT-Neo"),
        _ => other(
            format!("a model folder of another family ({})", kind.escape_debug()),
            "FlashLM runs those of Llama and GPT-Neo",
        ),
    })
}

/// Whether training writes to the folder, or did.
fn is_run(folder: &Path) -> bool {
    has_run_files(folder) || RunFolder::at(folder).list().is_ok_and(|found| !found.is_empty())
}

fn has_run_files(folder: &Path) -> bool {
    ["run.json", "run.lock"].iter().any(|name| folder.join(name).is_file())
        || head(&folder.join("metrics.jsonl")).is_ok_and(|head| is_log(&head))
}

/// The run whose folder of checkpoints this is.
fn run_of(checkpoints: &Path) -> Option<PathBuf> {
    let run = checkpoints.parent().filter(|_| checkpoints.ends_with("checkpoints"))?;
    has_run_files(run).then(|| run.to_path_buf())
}

/// Whether one of the files, or of the files below them, is named like text.
fn holds_text(mut entries: Vec<PathBuf>) -> bool {
    let mut seen = 0;
    while let Some(entry) = entries.pop() {
        seen += 1;
        let name = name_of(&entry);
        if seen > MAX_ENTRIES || name.starts_with('.') {
            continue;
        }
        // A link to a folder is not followed: it may lead back here.
        if entry.symlink_metadata().is_ok_and(|about| about.is_dir()) {
            entries.extend(entry.read_dir().into_iter().flatten().flatten().take(MAX_ENTRIES).map(|item| item.path()));
        } else if is_readable(&name) {
            return true;
        }
    }
    false
}

// ---- Files ----------------------------------------------------------------------------------------------------------

fn of_file(path: &Path, about: &Metadata) -> Result<What, String> {
    if let Some(found) = not_a_file(about) {
        return Ok(other(found, "name a file"));
    }
    let start = head(path)?;
    let name = name_of(path);
    let tensors = name.ends_with(".safetensors");
    if start.is_empty() {
        return Ok(What::Empty);
    }
    if start.starts_with(&MAGIC) {
        return Ok(What::TokenCache);
    }
    if start.starts_with(LFS_POINTER) {
        return Ok(What::LfsPointer);
    }
    if name.ends_with(".bin") && is_llama2c(&start, about.len()) {
        return Ok(What::Peer("llama2.c"));
    }
    if let Some(wanted) = cut_llama2c(&start, about.len()).filter(|_| name.ends_with(".bin")) {
        let found = format!("expected {wanted} bytes, found {}: it was cut short", about.len());
        return Ok(What::Damaged("llama2.c", found));
    }
    if start.starts_with(torch::MAGIC) && [".pt", ".pth", ".bin"].iter().any(|end| name.ends_with(end)) {
        return Ok(What::Torch);
    }
    // A length of 8 bytes, far below 2^32, then a JSON object.
    if start.len() > 8 && start[4..8] == [0; 4] && start[8] == b'{' {
        return Ok(of_tensors(path));
    }
    let what = of_content(path, &start, &name)?;
    Ok(match what {
        What::Other { .. } | What::Text(_) if tensors => {
            other(format!("{what}, though its name ends in .safetensors"), "copy it again from its source")
        }
        what => what,
    })
}

fn of_tensors(path: &Path) -> What {
    let header = match Header::open(path) {
        Ok(header) => header,
        Err(e) => {
            let why = e.to_string();
            let why = why.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&why);
            return What::Damaged("safetensors", why.split(';').next().unwrap_or_default().into());
        }
    };
    let format = header.metadata("format");
    let vectors = || {
        let config: serde_json::Value = serde_json::from_str(header.metadata("config")?).ok()?;
        config.get("arch").map(|_| What::Vectors)
    };
    let optimizer = || {
        let folder = path.parent().filter(|_| format.is_none() && path.ends_with("optimizer.safetensors"))?;
        let mend = format!("name the checkpoint, {}", folder.display());
        folder.join("checkpoint.json").is_file().then(|| other("the optimizer state of a checkpoint", mend))
    };
    match format {
        Some(model_file::FORMAT) => What::Model,
        Some(pack::FORMAT) => What::Packed,
        _ => vectors().or_else(optimizer).unwrap_or_else(|| What::Tensors {
            // A text from outside, cut to what fits a message.
            format: format.map(|format| format.chars().take(40).collect()),
            count: header.tensors(),
        }),
    }
}

/// By the start of a file that is neither tensors nor tokens.
fn of_content(path: &Path, start: &[u8], name: &str) -> Result<What, String> {
    let endings = [(".parquet", "Parquet"), (".zst", "zstd"), (".gz", "gzip")];
    if let Some((inner, format)) = endings.iter().find_map(|(end, format)| Some((name.strip_suffix(end)?, *format))) {
        let as_named = match (format, start) {
            ("Parquet", [b'P', b'A', b'R', b'1' | b'E', ..]) | ("gzip", [0x1f, 0x8b, ..]) => true,
            // A frame, or one to be skipped.
            ("zstd", [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) => true,
            _ => false,
        };
        if !as_named {
            let found = of_content(path, start, "")?;
            let what = format!("{found}, though its name is that of a {format} file");
            return Ok(other(what, "rename it to match its content"));
        }
        return Ok(What::Text(match format {
            "Parquet" => "a Parquet table of text".into(),
            _ if JSON_LINES.iter().any(|end| inner.ends_with(end)) || inner.ends_with(".json") => {
                format!("{format}-compressed text in JSON lines")
            }
            _ => format!("{format}-compressed text"),
        }));
    }
    if let Some(found) = foreign(start) {
        let (what, mend) = found.split_once("; ").unwrap_or((found, "name another file"));
        let what = what.strip_prefix("it is ").unwrap_or(what);
        let data = if what.ends_with("-compressed") { " data" } else { "" };
        return Ok(other(format!("{what}{data}"), mend));
    }
    // Its first field is a piece, whose first field is the text.
    if start.first() == Some(&0x0a) && (name.ends_with(".model") || start.get(2) == Some(&0x0a) && has(start, b"<unk>"))
    {
        let mend = "FlashLM takes byte-level BPE (tokenizer.json), and trains its own: flashlm data prepare";
        return Ok(other("a SentencePiece model", mend));
    }
    if start.contains(&0) {
        return Ok(other("a binary file", "name another file"));
    }
    if start.starts_with(b"#version:") || name == "merges.txt" {
        return Ok(other("the merges of a tokenizer (merges.txt) without its vocabulary", WHOLE));
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    if text.starts_with(b"{") || text.starts_with(b"[") && name.ends_with(".json") {
        let first = text[1..].trim_ascii_start().first();
        return match (text[0], first) {
            (b'[', Some(b'{' | b'"')) => Ok(What::Text("text in a JSON array".into())),
            _ => of_json(path, text, name),
        };
    }
    if name.ends_with(".toml") {
        return Ok(other("settings", format!("to train with them: flashlm train --config {}", quoted(path))));
    }
    // The last character may be cut in two.
    let utf8 = std::str::from_utf8(start).err().is_none_or(|e| e.error_len().is_none());
    let known = [".txt", ".jsonl"].iter().any(|ending| name.ends_with(ending));
    Ok(if utf8 || known {
        What::Text("text".into())
    } else {
        other("a binary file, or text in another encoding than UTF-8", "name another file")
    })
}

/// A file that begins as JSON does.
fn of_json(path: &Path, start: &[u8], name: &str) -> Result<What, String> {
    if is_log(start) || name == "metrics.jsonl" {
        return Ok(What::Log);
    }
    let is_json = |json: &[u8]| serde_json::from_slice::<IgnoredAny>(json).map_err(|e| e.to_string());
    let first = first_line(start);
    let named = JSON_LINES.iter().any(|end| name.ends_with(end));
    if named || first.len() < start.trim_ascii_end().len() && is_json(first).is_ok() {
        return Ok(What::Text("text in JSON lines".into()));
    }
    let Ok(json) = read_limited(path, MAX_JSON) else { return Ok(What::Text("text".into())) };
    Ok(match (FileKind::of(&json), is_json(&json)) {
        (Ok(kind), _) => What::Tokenizer(kind),
        (Err(_), Ok(_)) => match part_of_tokenizer(&json, name) {
            Some(part) => other(part, WHOLE),
            None => other("a JSON file that is no tokenizer", "name another file"),
        },
        (Err(_), Err(why)) if name.ends_with(".json") => What::Damaged("JSON", why),
        _ => What::Text("text".into()),
    })
}

/// What to do with a part of a tokenizer.
const WHOLE: &str = "name the tokenizer.json beside it, which has all of it";

/// Which of the files beside a tokenizer.json this JSON is.
fn part_of_tokenizer(json: &[u8], name: &str) -> Option<&'static str> {
    let keys: HashMap<String, IgnoredAny> = serde_json::from_slice(json).ok()?;
    let settings = ["tokenizer_class", "added_tokens_decoder", "model_max_length"];
    if name == "tokenizer_config.json" || settings.iter().any(|key| keys.contains_key(*key)) {
        return Some("the settings of a tokenizer (tokenizer_config.json)");
    }
    if name == "special_tokens_map.json" || name == "added_tokens.json" {
        return Some("special tokens of a tokenizer");
    }
    // More numbers than a table of one's own has.
    let many = name == "vocab.json" || keys.len() > 256;
    let ids = many && serde_json::from_slice::<HashMap<String, u32>>(json).is_ok();
    ids.then_some("the vocabulary of a tokenizer (vocab.json) without its merges")
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).take(64).any(|window| window == part)
}

fn first_line(start: &[u8]) -> &[u8] {
    start.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// Whether the first line is a row of a run's log.
fn is_log(start: &[u8]) -> bool {
    serde_json::from_slice::<Row>(first_line(start)).is_ok()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// The first bytes of a file.
fn head(path: &Path) -> Result<Vec<u8>, String> {
    let mut start = Vec::new();
    let (file, _) = io::open(path).map_err(|e| match e {
        IoError::Read { source, .. } => source.to_string(),
        e => e.to_string(),
    })?;
    file.take(HEAD).read_to_end(&mut start).map_err(|e| e.to_string())?;
    Ok(start)
}

fn starts_with(path: &Path, bytes: &[u8]) -> bool {
    head(path).is_ok_and(|start| start.starts_with(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The head of a safetensors file with this JSON.
    fn tensors(json: &str) -> Vec<u8> {
        [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
    }

    fn format(format: &str) -> Vec<u8> {
        tensors(&format!("{{\"__metadata__\":{{\"format\":\"{format}\"}}}}"))
    }

    const ROW: &str = r#"{"kind":"eval","step":1,"tokens":2,"elapsed":3,"loss":4,"bpb":5,"best":true}"#;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Place(tempfile::tempdir().unwrap())
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        /// A file, its folder made.
        fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
            let path = self.at(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            path
        }
    }

    #[test]
    fn files_are_known_by_content_and_name_together() {
        let place = Place::new();
        let long = "x\u{e9}".repeat(40_000);
        let cases: &[(&str, &[u8], &str)] = &[
            // Whatever the name.
            ("a.txt", &format("flashlm"), "a model with master weights"),
            ("b", &format("flashlm-packed"), "a packed model"),
            ("c.safetensors", &format("pt"), "a safetensors file of another program (format \"pt\", 0 tensors)"),
            (
                "d.safetensors",
                &tensors(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#),
                "a safetensors file of another program (no format, 1 tensor)",
            ),
            ("e.safetensors", &tensors(r#"{"__metadata__":{"config":"{\"arch\":\"v4\"}"}}"#), "test vectors"),
            ("f.txt", &MAGIC, "a token cache"),
            ("g", b" {\"kind\":\"bytes\"}", "a tokenizer (bytes)"),
            ("h.json", b"{\"id_to_base\":[]}", "a tokenizer (frequency)"),
            ("i.json", b"{\"model\":{\"type\":\"BPE\"}}", "a tokenizer (BPE)"),
            ("j.txt", b"{\"model\":{\"vocab\":{},\"merges\":[]}}", "a tokenizer (BPE)"),
            ("k.json", b"{\"model\":{\"type\":\"Unigram\"}}", "a tokenizer of another program (model type Unigram)"),
            ("l.json", b"{\"model\":\"gpt2\"}", "a JSON file that is no tokenizer"),
            ("tokenizer_config.json", b"{\"x\":1}", "the settings of a tokenizer (tokenizer_config.json)"),
            ("l2.json", b"{\"tokenizer_class\":\"X\"}", "the settings of a tokenizer (tokenizer_config.json)"),
            (
                "vocab.json",
                "{\"a\":0,\"Ġb\":1}".as_bytes(),
                "the vocabulary of a tokenizer (vocab.json) without its merges",
            ),
            ("l3", b"#version: 0.2\n\xc4\xa0 t\n", "the merges of a tokenizer (merges.txt) without its vocabulary"),
            ("l4.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", "a SentencePiece model"),
            ("l5", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", "a SentencePiece model"),
            ("l6.json", b"{\"model\":{\"unk_id\":null}}", "a tokenizer of another program (model type Unigram)"),
            ("m.json", b"[1, 2]", "a JSON file that is no tokenizer"),
            ("ma.json", b"[\n {\"text\": \"x\"}]", "text in a JSON array"),
            (
                "n.json",
                b"{\"model\":{\"type\":\"BP",
                "a damaged JSON file (EOF while parsing a string at line 1 column 20)",
            ),
            ("o.jsonl", ROW.as_bytes(), "the metrics of a run"),
            ("metrics.jsonl", b"{ torn", "the metrics of a run"),
            (
                "p",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
                "a git LFS pointer to a file that is not here",
            ),
            ("q.txt", b"", "an empty file"),
            // Text in each of its forms.
            ("r.txt", b"Once", "text"),
            ("s.TXT", b"caf\xe9", "text"),
            ("README", b"{Once} upon a time", "text"),
            ("t", long.as_bytes(), "text"),
            ("u.jsonl", b"{\"text\":\"x\"}", "text in JSON lines"),
            ("v.jsonl", b"{\"text\":", "text in JSON lines"),
            ("w.json", b"{\"text\":\"x\"}\n{\"text\":\"y\"}\n", "text in JSON lines"),
            ("w2.ndjson", b"{\"text\":\"x\"}", "text in JSON lines"),
            ("x.json.gz", b"\x1f\x8b\x08", "gzip-compressed text in JSON lines"),
            ("x.txt.gz", b"\x1f\x8b\x08", "gzip-compressed text"),
            ("x.JSONL.ZST", b"\x28\xb5\x2f\xfd", "zstd-compressed text in JSON lines"),
            ("y.zst", b"\x50\x2a\x4d\x18\x04", "zstd-compressed text"),
            ("z.parquet", b"PAR1", "a Parquet table of text"),
            // Neither.
            ("aa.gz", b"Once", "text, though its name is that of a gzip file"),
            ("ab.parquet", b"%PDF-1", "a PDF document, though its name is that of a Parquet file"),
            ("ac.safetensors", b"Once", "text, though its name ends in .safetensors"),
            ("ad", b"\x7fELF\x02", "an ELF program"),
            ("ae.txt", b"PK\x03\x04", "a zip archive (or a .pt file)"),
            ("af", b"BZh9", "bzip2-compressed data"),
            ("ag.txt", b"\xff\xfeO\0", "UTF-16"),
            ("ah", b"some\0", "a binary file"),
            ("ai", b"caf\xe9 au lait", "a binary file, or text in another encoding than UTF-8"),
            ("aj.toml", b"[train]\nlr = 1", "settings"),
            ("ak", &[40, 0, 0, 0, 0, 0, 0, 0, b'{'], "a damaged safetensors file (expected 48 bytes, found 9)"),
        ];
        for (name, bytes, found) in cases {
            let what = recognise(&place.file(name, bytes));
            assert_eq!(what.to_string(), *found, "{name}");
            assert!(!what.mend(&place.at(name)).is_empty());
        }
    }

    #[test]
    fn folders_are_known_by_what_is_in_them() {
        let place = Place::new();
        let folder = |file: &str, bytes: &[u8]| place.file(file, bytes).parent().unwrap().to_path_buf();
        let run = |name: &str, checkpoints| What::Run { folder: place.at(name), checkpoints };
        assert_eq!(recognise(&folder("new/run.json", b"{}")), run("new", 0));
        assert_eq!(recognise(&folder("started/run.lock", b"7")), run("started", 0));
        assert_eq!(recognise(&folder("logged/metrics.jsonl", ROW.as_bytes())), run("logged", 0));
        folder("new/checkpoints/step-00000010/checkpoint.json", b"{}");
        folder("new/checkpoints/step-00000020/checkpoint.json", b"{}");
        assert_eq!(recognise(&place.at("new")), run("new", 2));
        let step = place.at("new/checkpoints/step-00000010");
        let checkpoint = |folder: &Path, run: Option<&str>| What::Checkpoint {
            folder: folder.into(),
            run: run.map(|run| place.at(run)),
        };
        assert_eq!(recognise(&step), checkpoint(&step, Some("new")));
        assert_eq!(recognise(&place.at("new/checkpoints")), What::Checkpoints { run: place.at("new") });
        // A copy is of no run, even in a folder of that name.
        for copy in ["backup/step-00000010", "checkpoints/step-00000010"] {
            let copy = folder(&format!("home/{copy}/checkpoint.json"), b"{}");
            assert_eq!(recognise(&copy), checkpoint(&copy, None));
        }
        assert_eq!(recognise(&folder("prepared/train.tok", &MAGIC)), What::Prepared);
        assert_eq!(recognise(&folder("texts/deep/er/a.txt", b"x")), What::TextFolder);
        assert_eq!(recognise(&place.at("texts")), What::TextFolder);
        fs::create_dir(place.at("empty")).unwrap();
        assert_eq!(recognise(&place.at("empty")), What::EmptyFolder);
        place.file("empty/.tmp-1-2-3", "x");
        assert_eq!(recognise(&place.at("empty")), What::EmptyFolder);
        // A dataset may have a log of its own, and a project a folder `checkpoints`.
        assert_eq!(recognise(&folder("data/metrics.jsonl", b"{\"text\":\"x\"}")), What::TextFolder);
        for (file, bytes, found) in [
            ("project/checkpoints/run.json", &b"{}"[..], "a folder with a run in it"),
            ("gpt2/model.safetensors", b"x", "a folder with a model file in it"),
            ("code/main.o", b"x", "a folder without a run, a model or text"),
            ("hidden/.a.txt", b"x", "a folder without a run, a model or text"),
        ] {
            let top = place.file(file, bytes);
            let top = place.at(top.strip_prefix(place.at("")).unwrap().iter().next().unwrap().to_str().unwrap());
            let what = recognise(&top).to_string();
            assert!(what.starts_with(found), "{file}: {what}");
        }
        assert_eq!(recognise(&place.at("project/checkpoints")), run("project/checkpoints", 0));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_opened() {
        let place = Place::new();
        let found = |path: &Path| recognise(path).to_string();
        let pipe = place.at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(found(&pipe), "a named pipe");
        assert_eq!(found(Path::new("/dev/null")), "a device");
        std::os::unix::fs::symlink("nowhere", place.at("link")).unwrap();
        assert!(matches!(recognise(&place.at("link")), What::Missing(_)));
        std::os::unix::fs::symlink("loop", place.at("loop")).unwrap();
        assert!(matches!(recognise(&place.at("loop")), What::Unreadable(_)));
        // In the places of files of a run, too.
        place.file("run/run.json", "{}");
        for name in ["run/metrics.jsonl", "run/train.tok"] {
            fs::rename(&pipe, place.at(name)).unwrap();
            assert_eq!(found(&place.at("run")), "a run that has no checkpoint yet");
            fs::rename(place.at(name), &pipe).unwrap();
        }
    }
}
