//! Builds a token cache with all cores: one reader -> `n` encoders -> one writer.
//!
//! Batches of about 1 MB of text go to the encoders in turn and are collected in turn, over channels that hold two:
//! the file is the same for any number of threads, and memory is bounded by the channels (and 8 bytes a story for
//! the offsets). The file appears under its name when it is complete, or not at all.

use super::DataError;
use super::cache::{Expect, HEADER, Header, Progress};
use super::source::{Source, SourceReport};
use super::split::Split;
use crate::atomic;
use flashlm_model::tok::Tokenizer;
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

/// Stories one after the other, on their way to an encoder.
#[derive(Default)]
struct Batch {
    text: String,
    ends: Vec<usize>,
    fraction: f64,
}

/// The same stories as tokens, on their way to the file.
struct Encoded {
    tokens: Vec<u8>,
    /// Tokens of each story, EOS included.
    lengths: Vec<u64>,
    bytes: u64,
    unk: u64,
    fraction: f64,
}

pub(super) fn build(
    path: &Path,
    source: &Source,
    tokenizer: &Tokenizer,
    expect: &Expect,
    threads: usize,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<(), DataError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|e| DataError::io("create", folder, e))?;
        atomic::clean_leftovers(folder)?;
    }
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let mut failure = None;
    let written = atomic::write_file(path, |file| {
        let mut output = Output::new(file, expect, tokenizer, progress);
        let report = encode_all(source, tokenizer, expect.split, threads, &mut |batch| output.push(batch));
        report.and_then(|report| output.finish(source, report)).map_err(|failed| match failed {
            Failed::Write(e) => e,
            Failed::Data(e) => {
                failure = Some(e);
                io::Error::other("there is no whole cache to write")
            }
        })
    });
    match failure {
        Some(e) => Err(e),
        None => Ok(written?),
    }
}

/// Kept apart, so that a full disk is told as such.
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
    split: Split,
    threads: usize,
    write: &mut dyn FnMut(Encoded) -> Result<(), Failed>,
) -> Result<SourceReport, Failed> {
    thread::scope(|scope| {
        let (batches, encoded): (Vec<SyncSender<Batch>>, Vec<Receiver<Encoded>>) = (0..threads)
            .map(|_| {
                let (to_encoder, batches) = sync_channel::<Batch>(QUEUE);
                let (to_writer, encoded) = sync_channel(QUEUE);
                scope.spawn(move || {
                    for batch in batches {
                        if to_writer.send(encode(tokenizer, &batch)).is_err() {
                            break;
                        }
                    }
                });
                (to_encoder, encoded)
            })
            .unzip();
        let reader = scope.spawn(move || read_all(source, split, &batches));
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

fn read_all(source: &Source, split: Split, encoders: &[SyncSender<Batch>]) -> Result<SourceReport, DataError> {
    let mut turns = encoders.iter().cycle();
    let mut send = |batch: &mut Batch| match turns.next().map(|turn| turn.send(std::mem::take(batch))) {
        Some(Ok(())) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let mut batch = Batch::default();
    let report = source.stories_at(&mut |story, fraction| {
        if !split.keeps(story) {
            return ControlFlow::Continue(());
        }
        batch.text.push_str(story);
        batch.ends.push(batch.text.len());
        batch.fraction = fraction;
        if batch.text.len() >= BATCH { send(&mut batch) } else { ControlFlow::Continue(()) }
    })?;
    if !batch.ends.is_empty() {
        batch.fraction = 1.0;
        // A writer that is gone has its own error to tell.
        let _ = send(&mut batch);
    }
    Ok(report)
}

fn encode(tokenizer: &Tokenizer, batch: &Batch) -> Encoded {
    let mut ids = Vec::with_capacity(batch.text.len() / 3);
    let mut lengths = Vec::with_capacity(batch.ends.len());
    let mut start = 0;
    for &end in &batch.ends {
        let before = ids.len();
        tokenizer.encode(&batch.text[start..end], &mut ids);
        ids.push(tokenizer.eos());
        lengths.push((ids.len() - before) as u64);
        start = end;
    }
    Encoded {
        unk: tokenizer.unk().map_or(0, |unk| ids.iter().filter(|id| **id == unk).count() as u64),
        tokens: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        lengths,
        bytes: batch.text.len() as u64,
        fraction: batch.fraction,
    }
}

/// The file being written, and the counts for its header.
struct Output<'a> {
    file: &'a mut BufWriter<File>,
    progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    header: Header,
    offsets: Vec<u64>,
    hash: Xxh3,
    written: u64,
    started: Instant,
}

impl<'a> Output<'a> {
    fn new(
        file: &'a mut BufWriter<File>,
        expect: &Expect,
        tokenizer: &Tokenizer,
        progress: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Output<'a> {
        let header = Header {
            expect: *expect,
            vocab_size: tokenizer.vocab_size() as u32,
            eos: tokenizer.eos(),
            stories: 0,
            tokens: 0,
            bytes: 0,
            unk: 0,
            repaired: 0,
            payload_hash: 0,
        };
        let (hash, started) = (Xxh3::new(), Instant::now());
        Output { file, progress, header, offsets: vec![0], hash, written: 0, started }
    }

    /// Appends to the payload. The first call leaves room for the header.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room: &[u8] = if self.written == 0 { &[0; HEADER] } else { &[] };
        self.hash.update(bytes);
        self.written += (room.len() + bytes.len()) as u64;
        self.file.write_all(room)?;
        self.file.write_all(bytes)
    }

    fn push(&mut self, batch: Encoded) -> Result<(), Failed> {
        self.put(&batch.tokens)?;
        for length in &batch.lengths {
            self.header.tokens += length;
            self.offsets.push(self.header.tokens);
        }
        self.header.stories += batch.lengths.len() as u64;
        self.header.bytes += batch.bytes;
        self.header.unk += batch.unk;
        let progress = Progress {
            stories: self.header.stories,
            bytes: self.header.bytes,
            tokens: self.header.tokens,
            fraction: batch.fraction,
            seconds: self.started.elapsed().as_secs_f64(),
        };
        match (self.progress)(&progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DataError::Stopped.into()),
        }
    }

    fn finish(mut self, source: &Source, report: SourceReport) -> Result<(), Failed> {
        if self.header.stories == 0 {
            let split = self.header.expect.split;
            let name = source.name().to_string();
            return Err(DataError::NoStories { name, split, seen: report.stories }.into());
        }
        let padding = self.written.next_multiple_of(8) - self.written;
        self.put(&[0; 8][..padding as usize])?;
        let offsets: Vec<u8> = std::mem::take(&mut self.offsets).into_iter().flat_map(u64::to_le_bytes).collect();
        self.put(&offsets)?;
        self.header.repaired = report.repaired;
        self.header.payload_hash = self.hash.digest();
        self.file.rewind()?;
        Ok(self.file.write_all(&self.header.to_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cache::{Stale, TokenCache};
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

    fn entries(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_build_that_fails_or_is_stopped_leaves_nothing() {
        let folder = Folder::new();
        let cache_dir = folder.path().join("cache");
        let path = cache_dir.join("a.tok");
        let build = |source: &Source, split, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>| {
            let error = TokenCache::open_or_build(&path, source, &Tokenizer::bytes(), split, 2, progress).unwrap_err();
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
        assert!(error.contains("no stories for valid") && error.contains("of 2"), "{error}");
    }

    #[test]
    fn a_killed_build_leaves_no_cache_and_the_next_one_works() {
        const CHILD: &str = "FLASHLM_TEST_KILLED_BUILD";
        if let Some(path) = env::var_os(CHILD) {
            let hang = &mut |_: &Progress| loop {
                println!("building");
                std::thread::sleep(std::time::Duration::from_millis(50));
            };
            let _ = TokenCache::open_or_build(path.as_ref(), &large(), &Tokenizer::bytes(), Split::All, 1, hang);
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
