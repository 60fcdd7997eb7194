//! Where documents come from: files (`files.rs`: one, a folder, a pattern, several), a dataset of the hub (`tinystories`,
//! `hf:OWNER/DATASET`), or the synthetic grammar (`synthetic:N`). File formats: `reader/`; datasets: `hub/`. Documents come in
//! file order. On the way mojibake is repaired; then the filter decides, then the side of the split; last, documents of the
//! validation text are left out.

use super::files::{FileEntry, Files, in_full};
use super::filter::{Dropped, Filter};
use super::held_out::HeldOut;
use super::hub::{self, Client, Dataset, HubError};
use super::mojibake::{self, Repaired};
pub use super::reader::Oddities;
use super::reader::{self, FORMATS, Fields};
use super::split::Split;
use super::{DataError, synthetic};
use crate::similar::edit_distance;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Longest document, in bytes.
const MAX_STORY: usize = 64 << 20;
/// Stories of `synthetic` without a number.
const SYNTHETIC_STORIES: u64 = 100_000;
/// The field or column that holds the text, if no other is named.
const COLUMN: &str = "text";
/// The field or column that holds the score.
const SCORE: &str = "score";
/// Part of every fingerprint; to be raised when the same files come to give other documents.
const VERSION: &[u8] = b"flashlm stories 2";

/// A source of documents, checked to exist.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    kind: Kind,
    column: String,
    filter: Filter,
    split: Split,
    without: Option<Arc<HeldOut>>,
    validation: Option<String>,
    limit: usize,
}

#[derive(Clone, Debug)]
enum Kind {
    Synthetic {
        stories: u64,
        seed: u64,
    },
    /// Not yet fetched; then it is files.
    Hub(Dataset),
    Files(Files),
}

/// A source among others.
#[derive(Clone, Debug)]
pub struct Weighted {
    /// The source.
    pub source: Source,
    /// Its part of all, relative to the others.
    pub weight: f64,
}

impl Weighted {
    /// One that is alone.
    pub fn alone(source: Source) -> Weighted {
        Weighted { source, weight: 1.0 }
    }
}

/// What a source gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceReport {
    /// Documents given.
    pub stories: u64,
    /// UTF-8 bytes of those documents, after repair.
    pub bytes: u64,
    /// Documents that the filter kept, of all sides of the split.
    pub read: u64,
    /// UTF-8 bytes of those.
    pub read_bytes: u64,
    /// Documents of this side that were left out as those of the validation text.
    pub duplicates: u64,
    /// Mojibake sequences repaired, in documents that were dropped too.
    pub repaired: u64,
    /// Documents that had such sequences.
    pub mended: u64,
    /// Documents that the filter dropped.
    pub dropped: Dropped,
    /// What the files hold that was skipped, or read with a doubt.
    pub oddities: Oddities,
}

impl Source {
    /// `synthetic`, `synthetic:N` (N documents), a dataset of the hub by its name ([`Dataset`]), or files: the path of a file or
    /// folder, a pattern, or several of these, a line each. A file whose name is of another form can be given as `./synthetic`.
    pub fn parse(spec: &str) -> Result<Source, DataError> {
        let bad = |reason: String| DataError::Spec { spec: spec.to_string(), reason };
        if spec.is_empty() {
            return Err(bad("empty".to_string()));
        }
        let stories = match spec.strip_prefix("synthetic") {
            Some("") => Some(SYNTHETIC_STORIES),
            Some(rest) => match rest.strip_prefix(':') {
                Some(n) => match n.parse() {
                    Ok(n) if n > 0 => Some(n),
                    _ => return Err(bad(format!("`{n}` is not a number of stories"))),
                },
                None => None,
            },
            None => None,
        };
        let mut validation = None;
        let (name, kind) = match (stories, Dataset::parse(spec)) {
            (Some(stories), _) => (format!("synthetic-{stories}"), Kind::Synthetic { stories, seed: 0 }),
            (None, Some(dataset)) => {
                let dataset = dataset.map_err(bad)?;
                (dataset.name(), Kind::Hub(dataset))
            }
            (None, None) => {
                let files = Files::named(spec).map_err(|e| or_dataset(e, spec))?;
                validation =
                    files.validation.iter().map(|path| path.to_str().map(String::from)).collect::<Option<Vec<_>>>();
                let name = files.given.first().map_or_else(String::new, |first| name_of(first));
                (if files.given.len() > 1 { name + "-and-more" } else { name }, Kind::Files(files))
            }
        };
        let column = match &kind {
            Kind::Hub(dataset) => dataset.column().to_string(),
            _ => COLUMN.to_string(),
        };
        let (filter, split) = (Filter::default(), Split::All);
        let validation = validation.filter(|files| !files.is_empty()).map(|files| files.join("\n"));
        Ok(Source { name, kind, column, filter, split, without: None, validation, limit: MAX_STORY })
    }

    /// Whether a specification is of files, there or not.
    pub fn is_of_files(spec: &str) -> bool {
        match Source::parse(spec) {
            Ok(source) => source.is_files(),
            Err(error) => !matches!(error, DataError::Spec { .. }),
        }
    }

    /// The same specification with full paths where it is of files, so that it is found from anywhere.
    pub fn in_full(spec: &str) -> String {
        if spec.is_empty() || !Source::is_of_files(spec) { spec.to_string() } else { in_full(spec) }
    }

    /// Whether it has to be fetched before it can be read.
    pub fn is_remote(&self) -> bool {
        matches!(self.kind, Kind::Hub(_))
    }

    /// Whether it is read from files that were named as such.
    pub fn is_files(&self) -> bool {
        matches!(self.kind, Kind::Files(_))
    }

    /// The same source with all its files on this machine. The callback hears of a download and may stop it by breaking.
    pub fn fetch(
        mut self,
        client: &Client,
        progress: &mut dyn FnMut(&hub::Progress) -> ControlFlow<()>,
    ) -> Result<Source, DataError> {
        if let Kind::Hub(dataset) = &self.kind {
            let fetched = client.fetch(dataset, progress).map_err(|e| match e {
                HubError::Stopped => DataError::Stopped,
                e => DataError::Hub(e),
            })?;
            self.validation = fetched.validation.map(|valid| valid.spec());
            self.kind = Kind::Files(Files::fetched(dataset.spec(), &fetched.root, fetched.files)?);
        }
        Ok(self)
    }

    /// What [`Source::parse`] takes for the validation text that belongs to a dataset, known once it is fetched, or that lies
    /// beside the text of a folder.
    pub fn validation(&self) -> Option<&str> {
        self.validation.as_deref()
    }

    /// The same source with its text in another field of JSON and another column of tables (`text` by default).
    pub fn with_column(mut self, column: &str) -> Source {
        self.column = column.to_string();
        self
    }

    /// The same source without the documents that the filter drops.
    pub fn with_filter(mut self, filter: Filter) -> Result<Source, DataError> {
        filter.check()?;
        if filter.scores() && matches!(self.kind, Kind::Synthetic { .. }) {
            let reason = "synthetic stories have no score; leave out min_score".to_string();
            return Err(DataError::Filter { reason });
        }
        self.filter = filter;
        Ok(self)
    }

    /// One side of the source.
    pub fn with_split(mut self, split: Split) -> Source {
        self.split = split;
        self
    }

    /// The side that is taken; all of it, if no other was asked for.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The same source without the documents of a validation text.
    pub fn without(mut self, held: Arc<HeldOut>) -> Source {
        self.without = Some(held);
        self
    }

    /// Leaves out the files that `other` reads, too. An error if nothing is left.
    pub fn leave_out_files_of(&mut self, other: &Source) -> Result<(), DataError> {
        if let (Kind::Files(own), Kind::Files(theirs)) = (&mut self.kind, &other.kind)
            && own.leave_out(theirs) > 0
            && own.entries.is_empty()
        {
            return Err(DataError::SameFiles { name: self.name.clone() });
        }
        Ok(())
    }

    /// What was skipped in its folders, in words; empty where nothing was.
    pub fn passed_over(&self) -> String {
        match &self.kind {
            Kind::Files(files) => files.passed_over(),
            _ => String::new(),
        }
    }

    /// Whether its documents are stories of the built-in grammar.
    pub fn is_synthetic(&self) -> bool {
        matches!(self.kind, Kind::Synthetic { .. })
    }

    /// The same source with another seed of the synthetic grammar (0 by default); files have none.
    pub fn with_seed(mut self, new: u64) -> Source {
        if let Kind::Synthetic { seed, .. } = &mut self.kind {
            *seed = new;
        }
        self
    }

    /// Where the source is, whatever its content: the full path, or the settings of the generator; with column and filter
    /// if they are not the usual ones.
    pub fn place(&self) -> String {
        let place = match &self.kind {
            Kind::Synthetic { stories, seed } => format!("synthetic:{stories}:{seed}"),
            Kind::Hub(dataset) => dataset.spec(),
            Kind::Files(files) => {
                let full = |given: &std::path::PathBuf| given.canonicalize().unwrap_or_else(|_| given.clone());
                let full: Vec<String> = files.given.iter().map(|given| full(given).display().to_string()).collect();
                full.join("\n")
            }
        };
        place + &self.selection()
    }

    /// Column, filter and what is left out, in words; empty for the usual ones.
    fn selection(&self) -> String {
        let column = if self.column == COLUMN { String::new() } else { format!(" column {}", self.column) };
        let filter = if self.filter.keeps_all() { String::new() } else { format!(" {}", self.filter.told()) };
        let without = self.without.as_ref().map_or(String::new(), |held| format!(" without {:016x}", held.digest()));
        column + &filter + &without
    }

    /// A short name fit for a file name: `train` for `data/train.jsonl.zst`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A cheap fingerprint of the content, whatever folder it lies in: for each file its name (relative to the
    /// folder given), size, modification time and first and last 64 KB. A change in the middle of a larger file
    /// that keeps its size and its time is not seen. For synthetic stories: their number, the seed, and the text
    /// of the first 64 as the version of the generator. Column, filter and what is left out enter it too, the split does not.
    pub fn fingerprint(&self) -> Result<u64, DataError> {
        let mut hash = Xxh3::new();
        hash.update(VERSION);
        hash.update(self.selection().as_bytes());
        match &self.kind {
            Kind::Synthetic { stories, seed } => {
                hash.update(&stories.to_le_bytes());
                hash.update(&seed.to_le_bytes());
                for i in 0..64.min(*stories) {
                    hash.update(synthetic::story(*seed, i).as_bytes());
                }
            }
            Kind::Hub(_) => return Err(DataError::NotFetched { name: self.name.clone() }),
            Kind::Files(files) => {
                for file in &files.entries {
                    file.hash(&mut hash).map_err(|e| DataError::io("read", &file.path, e))?;
                }
            }
        }
        Ok(hash.digest())
    }

    /// The files that it is read from; none of the synthetic grammar, and of what is not fetched yet.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let files = match &self.kind {
            Kind::Files(files) => &files.entries[..],
            Kind::Synthetic { .. } | Kind::Hub(_) => &[],
        };
        files.iter().map(|file| file.path.as_path())
    }

    /// Bytes of its files, as they lie there; none for stories without end and for what is not fetched yet.
    pub fn bytes(&self) -> Option<u64> {
        match &self.kind {
            Kind::Files(files) => Some(files.entries.iter().map(|file| file.size).sum()),
            Kind::Synthetic { .. } | Kind::Hub(_) => None,
        }
    }

    /// Calls `f` with each document until it breaks.
    pub fn stories(&self, f: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<SourceReport, DataError> {
        self.stories_at(&mut |story, _| f(story))
    }

    /// As [`Source::stories`], with the fraction of the source that has been read so far, 0..=1, as second argument.
    pub fn stories_at(&self, f: &mut dyn FnMut(&str, f64) -> ControlFlow<()>) -> Result<SourceReport, DataError> {
        let mut report = SourceReport::default();
        let mut give = |report: &mut SourceReport, story: &str, score: Option<f64>, done: f64| {
            if !self.filter.keeps(story, score, &mut report.dropped) {
                return ControlFlow::Continue(());
            }
            if self.filter.documents > 0 && report.read >= self.filter.documents {
                return ControlFlow::Break(());
            }
            let part = self.split.take(story, report.read_bytes);
            report.read += 1;
            report.read_bytes += story.len() as u64;
            if part.is_empty() {
                return ControlFlow::Continue(());
            }
            if self.without.as_ref().is_some_and(|held| held.contains(part)) {
                report.duplicates += 1;
                return ControlFlow::Continue(());
            }
            report.stories += 1;
            report.bytes += part.len() as u64;
            f(part, done)
        };
        match &self.kind {
            Kind::Synthetic { stories, seed } => {
                for i in 0..*stories {
                    let done = (i + 1) as f64 / *stories as f64;
                    if give(&mut report, &synthetic::story(*seed, i), None, done).is_break() {
                        break;
                    }
                }
            }
            Kind::Hub(_) => return Err(DataError::NotFetched { name: self.name.clone() }),
            Kind::Files(files) => {
                let total = files.entries.iter().map(|file| file.size).sum::<u64>().max(1) as f64;
                let fields = Fields { text: &self.column, score: self.filter.scores().then_some(SCORE) };
                let mut before = 0;
                let mut oddities = Oddities::default();
                for FileEntry { path, size, .. } in &files.entries {
                    let flow = reader::read_file(path, &fields, self.limit, &mut oddities, &mut |story, read| {
                        let Repaired { text, sequences } = mojibake::repair(story.text);
                        report.repaired += sequences;
                        report.mended += u64::from(sequences > 0);
                        give(&mut report, &text, story.score, ((before + read) as f64 / total).min(1.0))
                    })?;
                    if flow.is_break() {
                        break;
                    }
                    before += size;
                }
                report.oddities = oddities;
            }
        }
        Ok(report)
    }
}

/// The error, with a hint where what is missing is named like a dataset.
fn or_dataset(mut error: DataError, spec: &str) -> DataError {
    let alike = |name: &&&str| edit_distance(name, &spec.to_lowercase()) <= 3;
    let DataError::Missing { hint, .. } = &mut error else { return error };
    if let Some(name) = hub::NAMES.iter().find(alike) {
        *hint = format!("; did you mean the dataset {name}?");
    } else if spec.contains("://") {
        *hint = "; URLs are not fetched: download the file first".to_string();
    } else if let Some((owner, name)) = spec.split_once('/')
        && ![owner, name].iter().any(|part| part.is_empty() || part.contains(['/', '.', '~', '*', ' ']))
    {
        *hint += &format!("; a dataset of the hub is named hf:{spec}");
    }
    error
}

/// The stem of a file without `.zst` or `.gz` and one more ending, or the name of a folder; odd characters become `_`.
fn name_of(path: &Path) -> String {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".zst").or_else(|| name.strip_suffix(".gz")).unwrap_or(&name);
    let name = FORMATS.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.chars().take(64).map(safe).collect();
    if name.is_empty() { "data".to_string() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Folder;
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    fn source(path: &Path) -> Result<Source, DataError> {
        Source::parse(path.to_str().unwrap())
    }

    /// Of a source that is taken whole.
    fn counted(stories: u64, bytes: u64) -> SourceReport {
        SourceReport { stories, bytes, read: stories, read_bytes: bytes, ..SourceReport::default() }
    }

    fn collect(source: &Source) -> (Vec<String>, SourceReport) {
        let mut stories = Vec::new();
        let mut done = 0.0;
        let report = source
            .stories_at(&mut |story, fraction| {
                stories.push(story.to_string());
                assert!((done..=1.0).contains(&fraction), "{done} {fraction}");
                done = fraction;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(done, 1.0);
        (stories, report)
    }

    /// Caches are found by these words.
    #[test]
    fn a_filter_is_told_as_it_always_was() {
        let told = |filter| Source::parse("synthetic:9").unwrap().with_filter(filter).unwrap().place();
        let filter = Filter { min_chars: 3, min_simple: 0.5, ..Filter::default() };
        let words = "synthetic:9:0 Filter { min_score: 0.0, min_chars: 3, max_chars: 0, min_simple: 0.5";
        assert_eq!(told(filter.clone()), format!("{words} }}"));
        assert_eq!(told(Filter { documents: 7, ..filter }), format!("{words}, documents: 7 }}"));
        assert_eq!(told(Filter::default()), "synthetic:9:0");
    }

    #[test]
    fn the_first_documents_are_those_that_the_filter_keeps() {
        let source = Source::parse("synthetic:40").unwrap();
        let read = |filter: Filter| {
            let mut all = Vec::new();
            let source = source.clone().with_filter(filter).unwrap();
            let report = source.stories(&mut |story| {
                all.push(story.to_string());
                ControlFlow::Continue(())
            });
            (all, report.unwrap().read)
        };
        let min_chars = 300;
        let (all, _) = read(Filter { min_chars, ..Filter::default() });
        assert!(all.len() > 8, "{}", all.len());
        let (first, count) = read(Filter { min_chars, documents: 7, ..Filter::default() });
        assert_eq!((&first[..], count), (&all[..7], 7));
        assert_eq!(read(Filter { documents: 100, ..Filter::default() }).0.len(), 40);
        // Of both sides of the split together.
        let of = |split| {
            let mut count = 0;
            let limited = source.clone().with_filter(Filter { documents: 20, ..Filter::default() }).unwrap();
            limited
                .with_split(split)
                .stories(&mut |_| {
                    count += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
            count
        };
        assert_eq!(of(Split::Train(0.3)) + of(Split::Valid(0.3)), 20);
    }

    #[test]
    fn a_folder_gives_its_files_in_order() {
        let folder = Folder::new();
        let text = |stories: &[&str]| stories.join("\n<|endoftext|>\n");
        let plain = folder.file("plain.txt", text(&["a", "b", "c", "d", "e", "f"]));
        folder.file("set/b/2.zst", zstd::encode_all(text(&["d", "e"]).as_bytes(), 0).unwrap());
        folder.file("set/a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n");
        folder.file("set/b/1.TXT", "c");
        folder.file("set/c/deep/er/x.txt", "f\n");
        folder.file("set/b/3.md", "no");
        let (stories, report) = collect(&source(&folder.path().join("set")).unwrap());
        assert_eq!((stories, report), collect(&source(&plain).unwrap()));
        assert_eq!(report, counted(6, 6));
    }

    #[test]
    fn counts_of_real_files() {
        let Some(shared) = crate::data::testing::shared() else { return };
        // Documents and bytes as counted by a few lines of Python.
        for (file, stories, bytes) in [
            ("tinystories/train.txt", 14_325, 11_742_600),
            ("tinystories/valid.txt", 500, 402_270),
            ("books/classic_books_valid.txt", 4, 531_837),
        ] {
            let report = source(&shared.join("data").join(file)).unwrap().stories(&mut |_| ControlFlow::Continue(()));
            assert_eq!(report.unwrap(), counted(stories, bytes), "{file}");
        }
    }

    #[test]
    fn mojibake_is_repaired_and_counted() {
        let folder = Folder::new();
        let path = folder.file("a.txt", "Itâ€™s a cafÃ©.\n<|endoftext|>\nnaïve café, señor");
        let (stories, report) = collect(&source(&path).unwrap());
        assert_eq!(stories, ["It’s a café.", "naïve café, señor"]);
        assert_eq!(report, SourceReport { repaired: 2, mended: 1, ..counted(2, 15 + 20) });
    }

    #[test]
    fn synthetic_stories_are_those_of_the_grammar() {
        let (stories, report) = collect(&Source::parse("synthetic:20").unwrap().with_seed(5));
        let expected: Vec<String> = (0..20).map(|i| synthetic::story(5, i)).collect();
        assert_eq!(stories, expected);
        assert_eq!(report.bytes, expected.concat().len() as u64);
        let fingerprint = |spec: &str, seed| Source::parse(spec).unwrap().with_seed(seed).fingerprint().unwrap();
        assert_eq!(fingerprint("synthetic", 1), fingerprint("synthetic:100000", 1));
        assert_ne!(fingerprint("synthetic:20", 1), fingerprint("synthetic:20", 2));
        assert_ne!(fingerprint("synthetic:2000", 1), fingerprint("synthetic:2001", 1));
    }

    #[test]
    fn bad_specifications_say_why() {
        let folder = Folder::new();
        folder.file("stories/train.txt", "x");
        folder.file("none/readme.doc", "x");
        let empty = folder.file("empty/zero.txt", "");
        let error = |path: &Path| source(path).unwrap_err().to_string();
        assert!(error(&folder.path().join("stories/trian.txt")).contains("did you mean"));
        assert!(error(&empty).contains("empty"));
        assert!(error(&folder.path().join("empty")).contains("1 file of 0 bytes"));
        assert!(error(&folder.path().join("none")).contains("1 file of other kinds (.doc 1)"));
        let error = Source::parse("TinyStory").unwrap_err().to_string();
        assert!(error.contains("did you mean the dataset tinystories?"), "{error}");
        for spec in ["", "hf:stories", "synthetic:", "synthetic:0", "synthetic:many", "synthetic:-1"] {
            assert!(matches!(Source::parse(spec), Err(DataError::Spec { .. })), "{spec}");
        }
        assert!(matches!(Source::parse("synthetic_but_a_file"), Err(DataError::Missing { .. })));
    }

    #[test]
    fn names_are_short_and_safe() {
        let folder = Folder::new();
        for (file, name) in
            [("train.jsonl.zst", "train"), ("v1.2.txt", "v1.2"), ("my data/ä b.txt", "__b"), ("my data/notes", "notes")]
        {
            assert_eq!(source(&folder.file(file, "x")).unwrap().name(), name);
        }
        assert_eq!(source(&folder.path().join("my data")).unwrap().name(), "my_data");
        assert_eq!(Source::parse("synthetic").unwrap().name(), "synthetic-100000");
    }

    #[test]
    fn two_texts_of_one_folder_are_two_places() {
        let folder = Folder::new();
        let (a, b) = (folder.file("train.txt", "x"), folder.file("valid.txt", "x"));
        let place = |path: &Path| source(path).unwrap().place();
        assert_ne!(place(&a), place(&b));
        assert_ne!(place(&a), place(folder.path()));
        assert_eq!(place(&a), place(&folder.path().join(".").join("train.txt")));
    }

    #[test]
    fn fingerprints_follow_the_content_and_not_the_place() {
        let folder = Folder::new();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let at = |name: &str, bytes: &[u8], time: SystemTime| {
            let path = folder.file(name, bytes);
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
            (source(&path).unwrap().fingerprint().unwrap(), path)
        };
        for size in [1000, 300_000] {
            let bytes = vec![b'x'; size];
            let (base, path) = at("one/a.txt", &bytes, time);
            assert_eq!(at("two/a.txt", &bytes, time).0, base, "another folder");
            assert_ne!(at("two/b.txt", &bytes, time).0, base, "another name");
            assert_ne!(at("two/a.txt", &bytes[1..], time).0, base, "another size");
            assert_ne!(at("two/a.txt", &bytes, time + Duration::from_millis(1)).0, base, "another time");
            for place in [0, size - 1] {
                let mut other = bytes.clone();
                other[place] = b'y';
                assert_ne!(at("two/a.txt", &other, time).0, base, "another byte {place}");
            }
            // As a folder: the same for a copy of it, another one with a further file.
            let whole = |name: &str| source(&folder.path().join(name)).unwrap().fingerprint().unwrap();
            at("three/a.txt", &bytes, time);
            assert_eq!(whole("three"), whole("one"));
            at("three/sub/b.txt", &bytes, time);
            assert_ne!(whole("three"), whole("one"));
            fs::remove_file(folder.path().join("three/sub/b.txt")).unwrap();
            fs::remove_file(path).unwrap();
        }
    }
}
