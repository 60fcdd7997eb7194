//! Builds token caches with all cores: one reader -> `n` encoders -> one writer.
//!
//! Batches of about 1 MB of text go to the encoders in turn and are collected in turn, over channels that hold two: the file
//! is the same for any number of threads, and memory is bounded by the channels (and 8 bytes per document for the offsets). A
//! document that goes beyond a batch is cut where its tokens do not notice, so that one book keeps all cores busy. The file
//! appears under its name when it is complete, or not at all.

use super::DataError;
use super::cache::{Expect, HEADER, Header, Stale, TokenCache, expected};
use super::filter::Dropped;
use super::source::{Source, SourceReport};
use crate::atomic;
use flashlm_model::tok::{Encoder, Tokenizer, cut};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;
use xxhash_rust::xxh3::Xxh3;

const BATCH: usize = 1 << 20;
const QUEUE: usize = 2;

/// Why a cache was built, and from what.
#[derive(Clone, Debug)]
pub struct Built {
    /// Why there was none that served.
    pub reason: Stale,
    /// What the source gave.
    pub read: SourceReport,
}

/// A cache, and what was done for it.
#[derive(Debug)]
pub struct Opened {
    /// The cache.
    pub cache: TokenCache,
    /// Where it had to be built.
    pub built: Option<Built>,
}

/// State of a build, given to its progress callback.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Documents encoded.
    pub stories: u64,
    /// UTF-8 bytes of those documents.
    pub bytes: u64,
    /// Their tokens, EOS included.
    pub tokens: u64,
    /// Fraction of the source that has been processed, 0..=1.
    pub fraction: f64,
    /// Time since the start.
    pub seconds: f64,
}

impl Progress {
    /// Speed in bytes of text per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

/// Opens the cache if it serves; otherwise builds it first (with `threads` threads, 0 for all cores) and tells why that was
/// necessary and what was read. The callback may stop the build by breaking.
pub fn open_or_build(
    path: &Path,
    source: &Source,
    tokenizer: &Tokenizer,
    threads: usize,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Opened, DataError> {
    let expect = expected(source, tokenizer)?;
    let reason = match TokenCache::open(path, &expect) {
        Ok(cache) => return Ok(Opened { cache, built: None }),
        Err(DataError::Cache { reason, .. }) => reason,
        Err(e) => return Err(e),
    };
    let read = build(path, expect, source, tokenizer, threads, progress)?;
    Ok(Opened { cache: TokenCache::open(path, &expect)?, built: Some(Built { reason, read }) })
}

/// Documents one after the other, on their way to an encoder.
#[derive(Default)]
struct Batch {
    text: String,
    ends: Vec<usize>,
    /// Whether the last document goes on in the next batch.
    open: bool,
    fraction: f64,
}

/// The same documents as tokens, on their way to the file.
struct Encoded {
    tokens: Vec<u8>,
    /// Tokens since the document before, for each that ends here, EOS included.
    lengths: Vec<u64>,
    /// Tokens of a document that goes on.
    open: u64,
    bytes: u64,
    unk: u64,
    fraction: f64,
}

/// Builds the cache of what the source gives.
fn build(
    path: &Path,
    expect: Expect,
    source: &Source,
    tokenizer: &Tokenizer,
    threads: usize,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<SourceReport, DataError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|cause| DataError::CacheFolder { path: folder.into(), cause })?;
        atomic::clean_leftovers(folder)?;
    }
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    // Kept apart, so that a full disk is told as such.
    let mut failed = None;
    let mut report = SourceReport::default();
    let written = atomic::write_file(path, |file| {
        let mut output = Output::new(file, expect, tokenizer);
        let started = Instant::now();
        let read = encode_all(source, tokenizer, threads, &mut |batch| {
            let fraction = batch.fraction;
            output.push(batch)?;
            let Header { stories, bytes, tokens, .. } = output.header;
            let seconds = started.elapsed().as_secs_f64();
            match progress(&Progress { stories, bytes, tokens, fraction, seconds }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(DataError::Stopped.into()),
            }
        });
        let ended = read.and_then(|read| {
            report = read;
            output.finish(source, &read)
        });
        ended.map_err(|e| match e {
            Failed::Write(e) => e,
            Failed::Data(e) => {
                failed = Some(e);
                io::Error::other("there is no whole cache to write")
            }
        })
    });
    match failed {
        Some(failed) => Err(failed),
        None => Ok(written.map(|()| report)?),
    }
}

enum Failed {
    Write(io::Error),
    Data(DataError),
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Failed {
        Failed::Write(e)
    }
}

impl From<DataError> for Failed {
    fn from(e: DataError) -> Failed {
        Failed::Data(e)
    }
}

/// Gives the whole source to `write`, in order, until that fails.
fn encode_all(
    source: &Source,
    tokenizer: &Tokenizer,
    threads: usize,
    write: &mut dyn FnMut(Encoded) -> Result<(), Failed>,
) -> Result<SourceReport, Failed> {
    thread::scope(|scope| {
        let (batches, encoded): (Vec<SyncSender<Batch>>, Vec<Receiver<Encoded>>) = (0..threads)
            .map(|_| {
                let (to_encoder, batches) = sync_channel::<Batch>(QUEUE);
                let (to_writer, encoded) = sync_channel(QUEUE);
                scope.spawn(move || {
                    let mut encoder = tokenizer.encoder();
                    for batch in batches {
                        if to_writer.send(encode(tokenizer, &mut encoder, &batch)).is_err() {
                            break;
                        }
                    }
                });
                (to_encoder, encoded)
            })
            .unzip();
        let reader = scope.spawn(move || read_all(source, &batches));
        // The first encoder without a further batch in its turn has had the last one.
        let mut turns = encoded.iter().cycle();
        let written = loop {
            match turns.next().map(|turn| turn.recv()) {
                Some(Ok(batch)) => match write(batch) {
                    Ok(()) => {}
                    Err(e) => break Err(e),
                },
                _ => break Ok(()),
            }
        };
        // Now encoders cannot send, hence the reader cannot, hence both end.
        drop(encoded);
        let report = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written?;
        Ok(report?)
    })
}

fn read_all(source: &Source, encoders: &[SyncSender<Batch>]) -> Result<SourceReport, DataError> {
    let mut turns = encoders.iter().cycle();
    let mut send = |batch: &mut Batch| match turns.next().map(|turn| turn.send(std::mem::take(batch))) {
        Some(Ok(())) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let mut batch = Batch::default();
    let report = source.stories_at(&mut |story, fraction| {
        let mut rest = story;
        while !rest.is_empty() {
            let room = BATCH - batch.text.len();
            let end = if rest.len() <= room { None } else { cut(rest, room) };
            let (part, later) = rest.split_at(end.unwrap_or(rest.len()));
            rest = later;
            batch.text.push_str(part);
            batch.ends.push(batch.text.len());
            batch.open = !rest.is_empty();
            batch.fraction = fraction;
            if batch.text.len() >= BATCH {
                send(&mut batch)?;
            }
        }
        ControlFlow::Continue(())
    })?;
    if !batch.ends.is_empty() {
        batch.fraction = 1.0;
        // A writer that is gone has its own error to tell.
        let _ = send(&mut batch);
    }
    Ok(report)
}

fn encode(tokenizer: &Tokenizer, encoder: &mut Encoder, batch: &Batch) -> Encoded {
    let mut ids = Vec::with_capacity(batch.text.len() / 2);
    let mut lengths = Vec::with_capacity(batch.ends.len());
    let (mut start, mut before) = (0, 0);
    for (i, &end) in batch.ends.iter().enumerate() {
        encoder.encode(&batch.text[start..end], &mut ids);
        start = end;
        if batch.open && i + 1 == batch.ends.len() {
            break;
        }
        ids.push(tokenizer.eos());
        lengths.push((ids.len() - before) as u64);
        before = ids.len();
    }
    let mut tokens = vec![0; 2 * ids.len()];
    for (bytes, id) in tokens.chunks_exact_mut(2).zip(&ids) {
        bytes.copy_from_slice(&id.to_le_bytes());
    }
    Encoded {
        unk: tokenizer.unk().map_or(0, |unk| ids.iter().filter(|id| **id == unk).count() as u64),
        tokens,
        lengths,
        open: (ids.len() - before) as u64,
        bytes: batch.text.len() as u64,
        fraction: batch.fraction,
    }
}

/// The file being written, and the counts for its header.
struct Output<'a> {
    file: &'a mut BufWriter<File>,
    header: Header,
    offsets: Vec<u64>,
    hash: Xxh3,
    written: u64,
}

impl<'a> Output<'a> {
    fn new(file: &'a mut BufWriter<File>, expect: Expect, tokenizer: &Tokenizer) -> Output<'a> {
        let header = Header {
            expect,
            vocab_size: tokenizer.vocab_size() as u32,
            eos: tokenizer.eos(),
            stories: 0,
            tokens: 0,
            bytes: 0,
            unk: 0,
            repaired: 0,
            dropped: Dropped::default(),
            read: 0,
            read_bytes: 0,
            duplicates: 0,
            payload_hash: 0,
        };
        Output { file, header, offsets: vec![0], hash: Xxh3::new(), written: 0 }
    }

    /// Appends to the payload. The first call leaves room for the header.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room: &[u8] = if self.written == 0 { &[0; HEADER] } else { &[] };
        self.hash.update(bytes);
        self.written += (room.len() + bytes.len()) as u64;
        self.file.write_all(room)?;
        self.file.write_all(bytes)
    }

    fn push(&mut self, batch: Encoded) -> io::Result<()> {
        self.put(&batch.tokens)?;
        for length in &batch.lengths {
            self.header.tokens += length;
            self.offsets.push(self.header.tokens);
        }
        self.header.tokens += batch.open;
        self.header.stories += batch.lengths.len() as u64;
        self.header.bytes += batch.bytes;
        self.header.unk += batch.unk;
        Ok(())
    }

    fn finish(mut self, source: &Source, report: &SourceReport) -> Result<(), Failed> {
        if self.header.stories == 0 {
            let (split, name) = (self.header.expect.split, source.name().to_string());
            let (seen, duplicates) = (report.read, report.duplicates);
            return Err(DataError::NoStories { name, split, seen, duplicates }.into());
        }
        let SourceReport { repaired, dropped, read, read_bytes, duplicates, .. } = *report;
        self.header = Header { repaired, dropped, read, read_bytes, duplicates, ..self.header };
        Ok(self.close()?)
    }

    fn close(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(8) - self.written;
        self.put(&[0; 8][..padding as usize])?;
        let offsets: Vec<u8> = std::mem::take(&mut self.offsets).into_iter().flat_map(u64::to_le_bytes).collect();
        self.put(&offsets)?;
        self.header.payload_hash = self.hash.digest();
        self.file.rewind()?;
        self.file.write_all(&self.header.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::filter::Filter;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, keep_on, large, open_or_build, source};
    use std::env;
    use std::path::PathBuf;

    #[test]
    fn the_file_is_the_same_for_any_number_of_threads() {
        let folder = Folder::new();
        let files: Vec<Vec<u8>> = [1, 2, 3, 7, 0]
            .iter()
            .map(|threads| {
                let path = folder.path().join(format!("{threads}.tok"));
                open_or_build(&path, &large(), Split::Train(0.3), *threads);
                fs::read(path).unwrap()
            })
            .collect();
        assert!(files[0].len() > 3 << 21, "several batches");
        assert!(files.iter().all(|file| *file == files[0]));
    }

    /// One document of some 5 MB, one without a place to cut, and short ones, against the tokens of each by itself.
    #[test]
    fn long_stories_have_the_tokens_of_the_whole() {
        let folder = Folder::new();
        let book = crate::data::testing::collect(&large()).join("\n\n  ");
        let unbroken = "word".repeat(700_000);
        let stories = ["first", &book, "short", &unbroken, "last"];
        let source = source(&folder, "long.txt", &stories);
        let tokenizer = Tokenizer::train_bpe([book.as_str()].into_iter(), 300).unwrap();
        let path = folder.path().join("long.tok");
        let Opened { cache, .. } = super::open_or_build(&path, &source, &tokenizer, 3, &mut keep_on).unwrap();
        assert_eq!(cache.stories(), stories.len());
        for (i, story) in stories.iter().enumerate() {
            let mut ids = Vec::new();
            tokenizer.encode(story, &mut ids);
            ids.push(tokenizer.eos());
            assert!(cache.story(i) == ids, "{i}");
        }
    }

    #[test]
    fn what_a_filter_drops_is_kept_in_the_cache() {
        let folder = Folder::new();
        let filter = Filter { min_chars: 4, max_chars: 9, ..Filter::default() };
        let stories = ["one", "four", "five5", "ten characters", "2"];
        let source = source(&folder, "a.txt", &stories).with_filter(filter).unwrap();
        let (cache, _) = open_or_build(&folder.path().join("a.tok"), &source, Split::All, 1);
        assert_eq!(cache.dropped(), Dropped { short: 2, long: 1, ..Dropped::default() });
        assert_eq!((cache.stories(), cache.bytes()), (2, 9));
    }

    fn entries(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_build_that_fails_or_is_stopped_leaves_nothing() {
        let folder = Folder::new();
        let cache_dir = folder.path().join("cache");
        let path = cache_dir.join("a.tok");
        let build = |source: &Source, split, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>| {
            let source = source.clone().with_split(split);
            let error = super::open_or_build(&path, &source, &Tokenizer::bytes(), 2, progress).unwrap_err();
            assert_eq!(entries(&cache_dir), [""; 0].map(PathBuf::from));
            error
        };
        let mut calls = 0;
        let stopped = build(&large(), Split::All, &mut |progress| {
            calls += 1;
            assert!(progress.fraction < 1.0 && progress.bytes_per_second() > 0.0);
            if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(stopped, DataError::Stopped) && calls == 2);
        // Several batches go through before the bad byte.
        let story = "All is well.\n<|endoftext|>\n".repeat(200_000);
        let path = folder.file("late.txt", [story.as_bytes(), b"\xff"].concat());
        let late = Source::parse(path.to_str().unwrap()).unwrap();
        assert!(matches!(build(&late, Split::All, &mut keep_on), DataError::Utf8 { line: 400_001, .. }));
        let blank = source(&folder, "blank.txt", &["\n", "\n"]);
        assert!(build(&blank, Split::All, &mut keep_on).to_string().contains("only blank text"));
        let few = source(&folder, "few.txt", &["one", "two"]);
        let error = build(&few, Split::Valid(0.0), &mut keep_on).to_string();
        assert!(error.contains("no document is left for valid") && error.contains("of 2"), "{error}");
    }

    #[test]
    fn a_killed_build_leaves_no_cache_and_the_next_one_works() {
        const CHILD: &str = "FLASHLM_TEST_KILLED_BUILD";
        if let Some(path) = env::var_os(CHILD) {
            let hang = &mut |_: &Progress| loop {
                println!("building");
                std::thread::sleep(std::time::Duration::from_millis(50));
            };
            let _ = super::open_or_build(path.as_ref(), &large(), &Tokenizer::bytes(), 1, hang);
            return;
        }
        let folder = Folder::new();
        let path = folder.path().join("a.tok");
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut child = std::process::Command::new(env::current_exe().unwrap())
            .args([
                &format!("{module}::a_killed_build_leaves_no_cache_and_the_next_one_works"),
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = io::BufReader::new(child.stdout.take().unwrap());
        assert!(io::BufRead::lines(output).any(|line| line.unwrap().contains("building")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!path.exists());
        let (cache, reason) = open_or_build(&path, &large(), Split::All, 2);
        assert_eq!((cache.stories(), reason), (5000, Some(Stale::Missing)));
    }
}
