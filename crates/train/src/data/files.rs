//! The files that a text is read from: one file, every readable file of a folder and those below it, or a pattern (`notes/*.md`,
//! `**/*.txt`); several of these, a line each, are one text, in the order given.
//!
//! No file is read twice, be it named again, linked, or lying beside its compressed self. A folder of `train.txt` and `valid.txt`,
//! or of others whose names differ in these words alone, is a text with its own validation text.
//!
//! In a folder, files come in the order of their paths. Passed over and counted: names that begin with `.` and folders
//! `__MACOSX`, files of 0 bytes, and endings that are none of a text. Records (tables, JSON) and documents (Markdown, source
//! code) are seldom one text: of these two kinds the one with fewer bytes is skipped as well, so that a dataset is read
//! without its README and a project without its settings. Links are followed, each folder once.

mod entry;
mod kind;
mod passed;
mod pattern;

use super::{DataError, hub};
use crate::what::quoted;
pub(super) use entry::FileEntry;
use entry::{Identity, identities};
use kind::{Kind, is_ending};
use passed::Passed;
use pattern::{fixed_part, matching};
use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

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

    /// What was skipped, in words; empty where nothing was.
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
            let passed = match passed.is_empty() {
                _ if path.join("train.tok").is_file() => format!(
                    "; it holds tokens that `flashlm data prepare` wrote: name the text that they were made of, and --tokenizer \
                     {} for the same vocabulary",
                    quoted(&path.join("tokenizer.json"))
                ),
                true => passed,
                false => format!("; skipped: {passed}"),
            };
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
            let ending = ending.map_or("without an ending".to_string(), |last| format!(".{}", last.to_lowercase()));
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
        self.entries.push(FileEntry::new(path, name)?);
        Ok(())
    }
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

/// The same specification with full paths, so that it is found from anywhere; as it is where it cannot be written so.
pub(super) fn in_full(spec: &str) -> String {
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

/// Whether a folder is searched for files of this name.
pub(crate) fn is_readable(name: &str) -> bool {
    Kind::of(name).is_some()
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
            "1 file of 0 bytes, 1 file with hidden names, 4 files of other kinds (.png 2, without an ending 2)"
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
        assert_eq!(files.passed_over(), "1 file of documents, since there are more bytes of records");
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
        assert_eq!(files.passed_over(), "3 files named twice, 1 link to nothing");
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
