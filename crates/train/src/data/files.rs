//! The files that a text is read from: one file, every readable file of a folder and those below it, or a pattern (`notes/*.md`,
//! `**/*.txt`); several of these, a line each, are one text, in the order given.
//!
//! No file is read twice, be it named again, linked, or lying beside its compressed self. A folder of `train.txt` and `valid.txt`,
//! or of others whose names differ in these words alone, is a text with a validation text of its own.
//!
//! In a folder, files come in the order of their paths. Passed over and counted: names that begin with `.` and folders
//! `__MACOSX`, files of 0 bytes, and endings that are none of a text. Records (tables, JSON) and documents (Markdown, source
//! code) are seldom one text: of these two kinds the one with fewer bytes is passed over as well, so that a dataset is read
//! without its README and a project without its settings. Links are followed, each folder once.

use super::{DataError, hub};
use flashlm_model::io::not_a_file;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;
use xxhash_rust::xxh3::Xxh3;

/// How much of each end of a file enters the fingerprint.
const SAMPLE: u64 = 64 << 10;
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
enum Kind {
    Text,
    Records,
    Document,
}

impl Kind {
    fn of(name: &str) -> Option<Kind> {
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
fn is_ending(last: &str) -> bool {
    (1..=8).contains(&last.len()) && last.chars().any(|c| c.is_ascii_alphabetic())
}

/// Whether a folder is searched for files of this name.
pub(crate) fn is_readable(name: &str) -> bool {
    Kind::of(name).is_some()
}

/// A file of a source.
#[derive(Clone, Debug)]
pub(super) struct FileEntry {
    pub path: PathBuf,
    /// What enters the fingerprint: the path within the folder that was named.
    pub name: PathBuf,
    pub size: u64,
}

/// Files of a folder that were passed over.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    hidden: u64,
    empty: u64,
    /// Of these endings.
    others: BTreeMap<String, u64>,
    /// Of the kind that had fewer bytes, and whether that is records.
    fewer: Option<(u64, bool)>,
    /// That are the validation text's.
    validation: u64,
    /// Of other splits than `train`, beside that.
    splits: u64,
    /// That would be read a second time.
    again: u64,
    /// Links that lead nowhere.
    loose: u64,
}

impl Passed {
    /// In words; empty where nothing was passed over that anybody would miss.
    fn words(&self) -> String {
        let files = |n: u64| if n == 1 { "1 file".to_string() } else { format!("{n} files") };
        let mut words = Vec::new();
        if self.validation > 0 {
            words.push(format!("{} of the validation text", files(self.validation)));
        }
        if self.splits > 0 {
            words.push(format!("{} of other splits than train", files(self.splits)));
        }
        if self.again > 0 {
            words.push(format!("{} a second time", files(self.again)));
        }
        if self.loose > 0 {
            words.push(format!(
                "{} that leads nowhere",
                if self.loose == 1 { "1 link".into() } else { format!("{} links", self.loose) }
            ));
        }
        if self.empty > 0 {
            words.push(format!("{} of 0 bytes", files(self.empty)));
        }
        if self.hidden > 0 {
            words.push(format!("{} with hidden names", files(self.hidden)));
        }
        match self.fewer {
            Some((n, true)) => {
                words.push(format!("{} of JSON or tables, having fewer bytes than the documents", files(n)))
            }
            Some((n, false)) => words.push(format!("{} of documents, having fewer bytes than the records", files(n))),
            None => {}
        }
        if !self.others.is_empty() {
            let mut others: Vec<_> = self.others.iter().collect();
            others.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let named: Vec<String> = others.iter().take(5).map(|(ending, n)| format!("{ending} {n}")).collect();
            let more = if others.len() > 5 { ", ..." } else { "" };
            words.push(format!("{} of other kinds ({}{more})", files(self.others.values().sum()), named.join(", ")));
        }
        words.join(", ")
    }
}

/// The files of a source, in the order they are read.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// What was named, in words.
    pub given: Vec<PathBuf>,
    pub entries: Vec<FileEntry>,
    /// Files of the split `validation` beside those of `train`.
    pub validation: Vec<PathBuf>,
    passed: Passed,
}

impl Files {
    /// What a specification names: a path, a pattern, or several, a line each.
    pub fn named(spec: &str) -> Result<Files, DataError> {
        let mut all = Files::default();
        // A name may hold a line end itself.
        let one = Path::new(spec).exists();
        let lines: Vec<&str> = if one { vec![spec] } else { spec.lines().filter(|line| !line.is_empty()).collect() };
        for line in lines {
            let path = Path::new(line);
            if line.contains(['*', '?', '[']) && !path.exists() {
                let found = matching(line)?;
                let root = fixed_part(path);
                for path in found {
                    let name = path.strip_prefix(&root).unwrap_or(&path).to_path_buf();
                    all.add(path, name)?;
                }
                all.given.push(path.to_path_buf());
            } else {
                all.read(path)?;
            }
        }
        all.once();
        Ok(all)
    }

    /// Leaves out what was there before, by whatever name, and of `a.txt` and `a.txt.gz` the second.
    fn once(&mut self) {
        let mut seen = HashSet::new();
        let names: HashSet<PathBuf> = self.entries.iter().map(|entry| entry.path.clone()).collect();
        let before = self.entries.len();
        self.entries.retain(|entry| {
            let compressed = entry.path.extension().is_some_and(|end| end == "gz" || end == "zst");
            let own = identities(&entry.path);
            let again = own.iter().any(|own| seen.contains(own));
            seen.extend(own);
            let twin = compressed && names.contains(&entry.path.with_extension(""));
            !again && !twin
        });
        self.passed.again += (before - self.entries.len()) as u64;
    }

    /// The files of a dataset below `root`.
    pub fn fetched(spec: String, root: &Path, paths: Vec<PathBuf>) -> Result<Files, DataError> {
        let mut all = Files { given: vec![spec.into()], ..Files::default() };
        for path in paths {
            let name = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
            all.add(path, name)?;
        }
        Ok(all)
    }

    /// What was passed over, in words; empty where nothing was.
    pub fn passed_over(&self) -> String {
        self.passed.words()
    }

    /// Leaves out the files that are also files of `other`; how many these were.
    pub fn leave_out(&mut self, other: &Files) -> u64 {
        let theirs: HashSet<Identity> = other.entries.iter().flat_map(|entry| identities(&entry.path)).collect();
        let before = self.entries.len();
        self.entries.retain(|entry| !identities(&entry.path).iter().any(|own| theirs.contains(own)));
        let left_out = (before - self.entries.len()) as u64;
        self.passed.validation += left_out;
        left_out
    }

    /// One file, or those of a folder.
    fn read(&mut self, path: &Path) -> Result<(), DataError> {
        let meta = fs::metadata(path).map_err(|e| DataError::io("open", path, e))?;
        self.given.push(path.to_path_buf());
        if !meta.is_dir() {
            let name = path.file_name().map_or_else(|| path.to_path_buf(), PathBuf::from);
            return self.add(path.to_path_buf(), name);
        }
        let mut found = Vec::new();
        let (mut folders, mut seen) = (vec![path.to_path_buf()], HashSet::new());
        while let Some(folder) = folders.pop() {
            let failed = |e| DataError::io("list", &folder, e);
            // A link may lead back here.
            if !seen.insert(folder.canonicalize().map_err(failed)?) {
                continue;
            }
            for item in fs::read_dir(&folder).map_err(failed)? {
                self.look(&item.map_err(failed)?.path(), &mut folders, &mut found);
            }
        }
        found.sort();
        let found = self.of_one_kind(found);
        let found = self.of_train(path, found);
        for at in found {
            let name = at.strip_prefix(path).unwrap_or(&at).to_path_buf();
            self.add(at, name)?;
        }
        let passed = self.passed_over();
        if self.entries.is_empty() {
            let passed = if passed.is_empty() { passed } else { format!("; passed over: {passed}") };
            return Err(DataError::EmptyFolder { path: path.to_path_buf(), passed });
        }
        Ok(())
    }

    /// One item of a folder: a folder to go into, a file to take, or one to pass over.
    fn look(&mut self, path: &Path, folders: &mut Vec<PathBuf>, found: &mut Vec<PathBuf>) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let meta = fs::metadata(path);
        if meta.is_err() && path.is_symlink() {
            self.passed.loose += 1;
        } else if meta.as_ref().is_ok_and(Metadata::is_dir) {
            if !name.starts_with('.') && name != "__MACOSX" {
                folders.push(path.to_path_buf());
            }
        } else if name.starts_with('.') {
            self.passed.hidden += u64::from(Kind::of(&name).is_some());
        } else if Kind::of(&name).is_none() {
            let ending = name.rsplit_once('.').map(|(_, last)| last).filter(|last| is_ending(last));
            let ending = ending.map_or("without ending".to_string(), |last| format!(".{}", last.to_lowercase()));
            *self.passed.others.entry(ending).or_default() += 1;
        } else if meta.is_ok_and(|meta| meta.len() == 0) {
            self.passed.empty += 1;
        } else {
            found.push(path.to_path_buf());
        }
    }

    /// Without records, or without documents, whichever are fewer bytes.
    fn of_one_kind(&mut self, found: Vec<PathBuf>) -> Vec<PathBuf> {
        let kind = |path: &Path| Kind::of(&path.file_name().unwrap_or_default().to_string_lossy());
        let bytes = |wanted: Kind| -> u64 {
            let of = found.iter().filter(|path| kind(path) == Some(wanted));
            of.map(|path| fs::metadata(path).map_or(0, |meta| meta.len())).sum()
        };
        let (records, documents) = (bytes(Kind::Records), bytes(Kind::Document));
        let fewer = if records < documents { Kind::Records } else { Kind::Document };
        let (kept, left): (Vec<PathBuf>, Vec<PathBuf>) = found.into_iter().partition(|path| kind(path) != Some(fewer));
        if !left.is_empty() {
            self.passed.fewer = Some((left.len() as u64, fewer == Kind::Records));
        }
        kept
    }

    /// Without the files of other splits, where there are files of `train` whose names begin alike. Not of documents: a program may
    /// have a train.py and a test.py.
    fn of_train(&mut self, root: &Path, found: Vec<PathBuf>) -> Vec<PathBuf> {
        let split = |path: &Path| {
            let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().to_lowercase();
            if Kind::of(&name) == Some(Kind::Document) { None } else { split(&name) }
        };
        let train: HashSet<String> = found
            .iter()
            .filter_map(|path| split(path))
            .filter(|(_, split)| *split == "train")
            .map(|(start, _)| start)
            .collect();
        let (mut kept, mut validation) = (Vec::new(), Vec::new());
        for path in found {
            match split(&path) {
                Some((start, split)) if split != "train" && train.contains(&start) => {
                    self.passed.splits += 1;
                    if split == "validation" {
                        validation.push(path);
                    }
                }
                _ => kept.push(path),
            }
        }
        self.validation.extend(validation);
        kept
    }

    fn add(&mut self, path: PathBuf, name: PathBuf) -> Result<(), DataError> {
        self.entries.push(entry(path, name)?);
        Ok(())
    }
}

/// The files that a pattern names, sorted.
fn matching(pattern: &str) -> Result<Vec<PathBuf>, DataError> {
    let bad = |reason: String| DataError::Spec { spec: pattern.to_string(), reason };
    // The crate's own search fails on names that are not UTF-8.
    let options =
        glob::MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, ..Default::default() };
    let matcher = glob::Pattern::new(pattern).map_err(|e| bad(format!("not a pattern: {e}")))?;
    let root = fixed_part(Path::new(pattern));
    let deepest =
        if pattern.contains("**") { usize::MAX } else { Path::new(pattern).iter().count() - root.iter().count() };
    let (mut found, mut folders, mut seen) = (Vec::new(), vec![(root, 1)], HashSet::new());
    while let Some((folder, depth)) = folders.pop() {
        let here = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
        if !here.canonicalize().is_ok_and(|full| seen.insert(full)) {
            continue;
        }
        for item in fs::read_dir(here).map_err(|e| DataError::io("list", here, e))? {
            let item = item.map_err(|e| DataError::io("list", here, e))?;
            let path = folder.join(item.file_name());
            let Ok(meta) = fs::metadata(&path) else { continue };
            if meta.is_dir() && depth < deepest {
                folders.push((path, depth + 1));
            } else if meta.is_file() && meta.len() > 0 && matcher.matches_path_with(&path, options) {
                found.push(path);
            }
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(bad("no file with anything in it is named like this".to_string()));
    }
    Ok(found)
}

/// The split that a name tells by a word before its end, `.`, `-`, `_` or a folder's end, and what is before that word.
fn split(name: &str) -> Option<(String, &'static str)> {
    let words = name.split_inclusive(|c: char| !c.is_ascii_alphanumeric()).scan(0, |at, word| {
        let start = *at;
        *at += word.len();
        Some((start, word))
    });
    let of = |(start, word): (usize, &str)| {
        let bare = word.trim_end_matches(['.', '-', '_', '/']);
        hub::split_of_word(bare).map(|split| (name[..start].to_string(), split))
    };
    words.filter_map(of).last()
}

/// The folder of a pattern before its first wildcard.
fn fixed_part(pattern: &Path) -> PathBuf {
    pattern.iter().map_while(|part| literal(part.to_str()?)).collect()
}

/// A part of a pattern that stands for one name: without wildcards, but for those that are escaped, as `[[]` is `[`.
fn literal(part: &str) -> Option<String> {
    let (mut name, mut rest) = (String::new(), part);
    while let Some(c) = rest.chars().next() {
        let escaped = ["[*]", "[?]", "[[]", "[]]"].into_iter().find(|escaped| rest.starts_with(escaped));
        match (escaped, c) {
            (Some(escaped), _) => name.push_str(&escaped[1..2]),
            (None, '*' | '?' | '[') => return None,
            (None, c) => name.push(c),
        }
        rest = &rest[escaped.map_or(c.len_utf8(), str::len)..];
    }
    Some(name)
}

fn entry(path: PathBuf, name: PathBuf) -> Result<FileEntry, DataError> {
    let meta = fs::metadata(&path).map_err(|e| DataError::io("open", &path, e))?;
    if let Some(found) = not_a_file(&meta) {
        // Data is read more than once, which a pipe does not allow.
        let about = format!("it is {found}, not a file; `--data -` reads standard input");
        let cause = io::Error::new(io::ErrorKind::InvalidInput, about);
        return Err(DataError::io("read", &path, cause));
    }
    match meta.len() {
        0 => Err(DataError::EmptyFile { path }),
        size => Ok(FileEntry { path, name, size }),
    }
}

/// What makes two paths one file: where they lead, and, for hard links, device and inode.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Path(PathBuf),
    #[cfg(unix)]
    Inode(u64, u64),
}

fn identities(path: &Path) -> Vec<Identity> {
    let mut all: Vec<Identity> = path.canonicalize().into_iter().map(Identity::Path).collect();
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        all.extend(fs::metadata(path).map(|meta| Identity::Inode(meta.dev(), meta.ino())));
    }
    all
}

/// The same specification with full paths, so that it is found from anywhere; as it is where it cannot be written so.
pub fn in_full(spec: &str) -> String {
    let full = |line: &str| {
        let path = Path::new(line);
        let absolute = std::path::absolute(path).ok()?;
        let absolute = absolute.to_str().filter(|full| !full.contains('\n'))?.to_string();
        if path.exists() || path.is_absolute() {
            return Some(absolute);
        }
        // What is not there is told as it was given.
        if !line.contains(['*', '?', '[']) {
            return None;
        }
        // The folder that it is looked up from is no part of the pattern.
        let here = std::env::current_dir().ok()?;
        Some(format!("{}/{line}", glob::Pattern::escape(here.to_str()?)))
    };
    if Path::new(spec).exists() {
        return full(spec).unwrap_or_else(|| spec.to_string());
    }
    spec.lines().map(|line| full(line).unwrap_or_else(|| line.to_string())).collect::<Vec<_>>().join("\n")
}

impl FileEntry {
    /// Name, size, modification time in nanoseconds, and both ends (the whole file if they meet).
    pub fn hash(&self, hash: &mut Xxh3) -> io::Result<()> {
        for part in self.name.iter() {
            hash.update(part.to_string_lossy().as_bytes());
            hash.update(b"/");
        }
        let mut file = File::open(&self.path)?;
        let meta = file.metadata()?;
        let time = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        hash.update(&meta.len().to_le_bytes());
        hash.update(&time.as_nanos().to_le_bytes());
        hash.update(&ends(&mut file, meta.len())?);
        Ok(())
    }
}

/// First and last 64 KB of a file of `len` bytes.
fn ends(file: &mut File, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if len <= 2 * SAMPLE {
        file.take(2 * SAMPLE).read_to_end(&mut bytes)?;
    } else {
        file.take(SAMPLE).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::End(-(SAMPLE as i64)))?;
        file.take(SAMPLE).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Folder;

    fn names(files: &Files) -> Vec<String> {
        files.entries.iter().map(|entry| entry.name.display().to_string()).collect()
    }

    fn of(path: &Path) -> Files {
        Files::named(path.to_str().unwrap()).unwrap()
    }

    #[test]
    fn names_tell_what_a_folder_is_read_for() {
        for (name, kind) in [
            ("a.txt", Some(Kind::Text)),
            ("A.TXT.GZ", Some(Kind::Text)),
            ("dump.zst", Some(Kind::Text)),
            ("dump-v1.2.zst", Some(Kind::Text)),
            ("a.tar.gz", None),
            ("a.png", None),
            ("LICENSE", None),
            ("a.ndjson.zst", Some(Kind::Records)),
            ("a.json", Some(Kind::Records)),
            ("dataset_info.json", None),
            ("a.parquet", Some(Kind::Records)),
            ("a.parquet.gz", None),
            ("notes.md", Some(Kind::Document)),
            ("main.rs", Some(Kind::Document)),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn a_folder_as_people_have_it() {
        let folder = Folder::new();
        for (name, text) in [
            ("set/b.txt", "b"),
            ("set/a.txt", "a"),
            ("set/._a.txt", "AppleDouble"),
            ("set/.ipynb_checkpoints/a.txt", "a"),
            ("set/__MACOSX/a.txt", "a"),
            ("set/_SUCCESS", ""),
            ("set/part-0.txt", ""),
            ("set/picture.PNG", "x"),
            ("set/picture2.png", "x"),
            ("set/LICENSE", "x"),
        ] {
            folder.file(name, text);
        }
        let files = of(&folder.path().join("set"));
        assert_eq!(names(&files), ["a.txt", "b.txt"]);
        assert_eq!(
            files.passed_over(),
            "1 file of 0 bytes, 1 file with hidden names, 4 files of other kinds (.png 2, without ending 2)"
        );
        // The folder that is named may be hidden itself.
        folder.file(".hidden/a.txt", "a");
        assert_eq!(names(&of(&folder.path().join(".hidden"))), ["a.txt"]);
        folder.file("nothing/a.txt", "");
        let error = Files::named(folder.path().join("nothing").to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("1 file of 0 bytes"), "{error}");
    }

    #[test]
    fn records_and_documents_are_not_mixed() {
        let folder = Folder::new();
        folder.file("set/data.jsonl", "{\"text\": \"a long story\"}");
        folder.file("set/README.md", "About.");
        folder.file("set/notes.txt", "n");
        let files = of(&folder.path().join("set"));
        assert_eq!(names(&files), ["data.jsonl", "notes.txt"]);
        assert_eq!(files.passed_over(), "1 file of documents, having fewer bytes than the records");
        folder.file("code/src/main.rs", "fn main() { println!(\"Hello\"); }");
        folder.file("code/settings.json", "{}");
        let files = of(&folder.path().join("code"));
        assert_eq!(names(&files), ["src/main.rs"]);
        assert!(files.passed_over().contains("1 file of JSON or tables"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once() {
        let folder = Folder::new();
        folder.file("set/a.txt", "a");
        folder.file("other/b.txt", "b");
        std::os::unix::fs::symlink(folder.path().join("other"), folder.path().join("set/link")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("set"), folder.path().join("other/back")).unwrap();
        assert_eq!(names(&of(&folder.path().join("set"))), ["a.txt", "link/b.txt"]);
    }

    #[test]
    fn no_file_is_read_twice() {
        let folder = Folder::new();
        for name in ["set/a.txt", "set/a.txt.gz", "set/b.txt.zst"] {
            folder.file(name, name);
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(folder.path().join("set/a.txt"), folder.path().join("set/link.txt")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("nowhere", folder.path().join("set/loose.txt")).unwrap();
        let set = folder.path().join("set");
        let files = Files::named(&format!("{}\n{}", set.display(), set.join("b.txt.zst").display())).unwrap();
        assert_eq!(names(&files), ["a.txt", "b.txt.zst"]);
        #[cfg(unix)]
        assert_eq!(files.passed_over(), "3 files a second time, 1 link that leads nowhere");
    }

    #[test]
    fn splits_of_a_folder_are_not_mixed() {
        let folder = Folder::new();
        for name in ["TinyStories-train.txt", "TinyStories-valid.txt", "test.txt", "more.txt", "A test of faith.txt"] {
            folder.file(&format!("one/{name}"), name);
        }
        let files = of(&folder.path().join("one"));
        // Nothing of `train` begins as `test` does.
        assert_eq!(names(&files), ["A test of faith.txt", "TinyStories-train.txt", "more.txt", "test.txt"]);
        assert_eq!(files.validation, [folder.path().join("one/TinyStories-valid.txt")]);
        assert_eq!(files.passed_over(), "1 file of other splits than train");
        for name in ["train/a.txt", "train/b.txt", "dev/a.txt", "test/a.txt", "The train to Paris.txt"] {
            folder.file(&format!("two/{name}"), name);
        }
        let files = of(&folder.path().join("two"));
        assert_eq!(names(&files), ["The train to Paris.txt", "train/a.txt", "train/b.txt"]);
        assert_eq!(files.validation, [folder.path().join("two/dev/a.txt")]);
        for name in ["code/train.py", "code/test.py", "code/eval.py"] {
            folder.file(name, name);
        }
        assert_eq!(names(&of(&folder.path().join("code"))).len(), 3);
        for (name, told) in [
            ("data/train-00000-of-00002-5852b5.parquet", Some(("data/", "train"))),
            ("validation.jsonl", Some(("", "validation"))),
            ("my_val_2.txt", Some(("my_", "validation"))),
            ("training", Some(("", "train"))),
            ("test of faith.txt", None),
            ("trains.txt", None),
        ] {
            assert_eq!(split(name), told.map(|(start, split)| (start.to_string(), split)), "{name}");
        }
    }

    #[test]
    fn patterns_and_several_paths() {
        let folder = Folder::new();
        for name in ["a.md", "b.md", "c.txt", "deep/d.md", "deep/.e.md"] {
            folder.file(name, name);
        }
        let spec = |pattern: &str| format!("{}/{pattern}", folder.path().display());
        assert_eq!(names(&Files::named(&spec("*.md")).unwrap()), ["a.md", "b.md"]);
        assert_eq!(names(&Files::named(&spec("**/*.md")).unwrap()), ["a.md", "b.md", "deep/d.md"]);
        let both = format!("{}\n{}", spec("c.txt"), spec("deep/*"));
        assert_eq!(names(&Files::named(&both).unwrap()), ["c.txt", "d.md"]);
        let fixed = |pattern: &str| fixed_part(Path::new(pattern)).display().to_string();
        assert_eq!([fixed("/a/[[]x]/*.md"), fixed("a/b?/c"), fixed("[]]é/x")], ["/a/[x]", "a", "]é/x"]);
        // A folder that looks like a pattern, and a name that no text can hold.
        folder.file("[x]/in.md", "x");
        let here = glob::Pattern::escape(folder.path().to_str().unwrap());
        assert_eq!(names(&Files::named(&format!("{here}/[[]x]/*.md")).unwrap()), ["in.md"]);
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::ffi::OsStrExt;
            fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"\xff.md")), "x").unwrap();
            assert_eq!(names(&Files::named(&spec("*.md")).unwrap()), ["a.md", "b.md"]);
        }
        let error = Files::named(&spec("*.doc")).unwrap_err().to_string();
        assert!(error.contains("*.doc") && error.contains("no file"), "{error}");
        // A name that is there is no pattern.
        folder.file("what?.txt", "x");
        assert_eq!(names(&Files::named(&spec("what?.txt")).unwrap()), ["what?.txt"]);
        folder.file("two\nlines.txt", "x");
        assert_eq!(names(&Files::named(&spec("two\nlines.txt")).unwrap()), ["two\nlines.txt"]);
    }

    #[test]
    fn files_of_the_validation_text_are_left_out() {
        let folder = Folder::new();
        for name in ["set/a.txt", "set/valid/v.txt", "elsewhere.txt"] {
            folder.file(name, name);
        }
        let mut files = of(&folder.path().join("set"));
        assert_eq!(files.leave_out(&of(&folder.path().join("elsewhere.txt"))), 0);
        assert_eq!(files.leave_out(&of(&folder.path().join("set/../set/valid"))), 1);
        assert_eq!(names(&files), ["a.txt"]);
        #[cfg(unix)]
        {
            fs::hard_link(folder.path().join("set/a.txt"), folder.path().join("hard.txt")).unwrap();
            assert_eq!(files.leave_out(&of(&folder.path().join("hard.txt"))), 1);
        }
    }
}
