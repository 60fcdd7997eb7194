//! Runs on several ranks, as threads of this process: the bits of one rank, whatever their number, and an end where one is lost.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use flashlm_kernels::{Exec, Isa};
use flashlm_train::checkpoint::Checkpoint;
use flashlm_train::comm::{Comm, CommError, PATIENCE, Sent, Solo, Threads};
use flashlm_train::config::{Layers, Settings};
use flashlm_train::ranks::{Fit, Hello, Leader, checksum, follow, meet};
use flashlm_train::run::{Hardware, Origin, Request, Resume};
use flashlm_train::run_folder::{Claim, RunFolder};
use flashlm_train::trainer::{Ended, Event, Outcome, TrainError};
use serde_json::Value;

fn settings(changes: &[(&str, &str)]) -> Settings {
    let mut layers = Layers::preset("flash-tiny").unwrap();
    let own = [
        ("data.source", "synthetic:300"),
        ("tokenizer.vocab", "300"),
        ("model.dim", "32"),
        ("model.blocks", "2"),
        ("model.ffn_hidden", "48"),
        ("model.bigram", "64"),
        ("train.seq_len", "32"),
        ("train.batch", "9"),
        ("train.pass_rows", "32"),
        ("train.steps", "12"),
        ("train.warmup_steps", "4"),
        ("train.eval_every", "5"),
        ("train.eval_tokens", "2000"),
        ("train.sample_tokens", "5"),
        ("train.checkpoint_every", "6"),
        ("train.keep", "9"),
    ];
    for (key, value) in own.iter().chain(changes) {
        layers.set(key, value).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
    layers.settings().unwrap()
}

/// Rank 0 of a run in `run`, from the checkpoint of `resume` where there is one.
fn lead(
    comm: &dyn Comm,
    settings: &Settings,
    run: &Path,
    resume: Option<u64>,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event),
) -> Result<Ended, TrainError> {
    let leader = Leader::of(comm);
    let hardware = Hardware { threads: 1.try_into().unwrap(), ..Hardware::detect().unwrap() };
    let origin = match resume {
        Some(step) => Origin::Resumed(Resume::open(&run.join(format!("checkpoints/step-{step:08}")))?),
        None => Origin::Fresh,
    };
    let request = Request { origin, cache: run.parent().unwrap().join("cache"), ..Request::new(settings.clone()) };
    let resolved = request.resolve(&hardware, tell)?;
    let cx = resolved.exec();
    let prepared = resolved.prepare(stop, tell)?;
    let claim = if resume.is_some() { Claim::resume(RunFolder::at(run))? } else { Claim::new(run, None)? };
    let mut trainer = prepared.on_ranks(&cx, claim, leader.as_ref())?;
    trainer.run(stop, tell)
}

/// The run on so many ranks.
fn train(size: usize, settings: &Settings, run: &Path, resume: Option<u64>) -> Ended {
    let stop = AtomicBool::new(false);
    if size == 1 {
        return lead(&Solo, settings, run, resume, &stop, &mut |_| ()).unwrap();
    }
    let cx = || Exec::new(Isa::detect().unwrap(), 2);
    let ends = Threads::run(size, PATIENCE, |comm| match comm.rank() {
        0 => Some(lead(&comm, settings, run, resume, &stop, &mut |_| ()).unwrap()),
        _ => follow(&comm, &cx(), &stop).map(|()| None).unwrap(),
    });
    ends.into_iter().flatten().next().unwrap()
}

/// Parameters and optimizer of the last checkpoint, and what the log says without times.
fn left(run: &Path) -> (Vec<u8>, Vec<u8>, Vec<Value>) {
    let newest: Checkpoint = RunFolder::at(run).latest().unwrap().unwrap().checkpoint;
    let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let row = |line: &str| {
        let mut row: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
        row.retain(|key, _| !["elapsed", "tokens_per_second", "time", "waited"].contains(&key.as_str()));
        serde_json::to_value(row).unwrap()
    };
    let file = |name| newest.bytes(name).unwrap();
    (file("model.safetensors"), file("optimizer.safetensors"), log.lines().map(row).collect())
}

/// Every optimizer, mixer and way of making a step, by name.
fn cases() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let stages = r#"[{seq_len = 16, share = 0.5, batch = 18}, {seq_len = 32, share = 0.5}]"#;
    let hybrid = r#"["delta", "attention"]"#;
    vec![
        ("adamw", vec![("train.optimizer", "adamw"), ("model.pattern", r#"["conv"]"#)]),
        (
            "muon",
            vec![("train.optimizer", "muon"), ("model.pattern", r#"["delta"]"#), ("model.layer_embeddings", "true")],
        ),
        ("normuon", vec![("train.optimizer", "normuon"), ("model.pattern", hybrid)]),
        ("averaged", vec![("train.average_share", "0.5"), ("train.dropout", "0.1")]),
        ("stages", vec![("train.stages", stages), ("train.accumulation", "2")]),
        ("padded", vec![("data.boundaries", "padded"), ("train.precision", "bf16")]),
    ]
}

/// That 2, 4 and 8 ranks train what one does, in folders `CASE/RANKS`.
fn the_same_bits(folder: &Path, more: &[(&str, &str)]) {
    for (name, changes) in cases() {
        let settings = settings(&[&changes[..], more].concat());
        let run = |size: usize| folder.join(name).join(size.to_string());
        let alone = train(1, &settings, &run(1), None).ending.unwrap();
        let want = left(&run(1));
        for size in [2, 4, 8] {
            let ending = train(size, &settings, &run(size), None).ending.unwrap();
            assert_eq!(ending.best.full, alone.best.full, "{name}: the figures of {size} ranks");
            let found = left(&run(size));
            assert!(found.0 == want.0 && found.1 == want.1, "{name}: the bits of {size} ranks");
            assert_eq!(found.2, want.2, "{name}: the log of {size} ranks");
        }
    }
}

#[test]
fn every_number_of_ranks_trains_the_same_bits() {
    the_same_bits(tempfile::tempdir().unwrap().path(), &[]);
}

/// Run by `benches/ranks.sh`, which trains the same over MPI, in the folder `FLASHLM_RANKS`.
#[test]
#[ignore = "takes a minute, and leaves its runs"]
fn two_hundred_updates_are_the_same_bits() {
    let folder = std::env::var_os("FLASHLM_RANKS").expect("FLASHLM_RANKS is a folder");
    let more = [
        ("train.steps", "200"),
        ("train.eval_every", "100"),
        ("train.checkpoint_every", "100"),
        ("train.sample_every", "0"),
    ];
    the_same_bits(Path::new(&folder), &more);
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let (folder, long) = (tempfile::tempdir().unwrap(), settings(&[]));
    let (run, other) = (folder.path().join("a"), folder.path().join("b"));
    train(1, &long, &other, None);
    let want = left(&other);
    train(4, &long, &run, None);
    for size in [1, 2, 8] {
        train(size, &long, &run, Some(6));
        let found = left(&run);
        assert!(found.0 == want.0 && found.1 == want.1, "from 4 ranks to {size}");
    }
}

/// The error of rank 0 where rank 1 does something else in the third step.
fn broken(patience: Duration, run: &Path, act: impl Fn() + Sync) -> (TrainError, Duration) {
    let (settings, stop) = (settings(&[("train.steps", "1000000")]), AtomicBool::new(false));
    let began = std::sync::Mutex::new(Instant::now());
    let errors = Threads::run(4, patience, |comm| {
        let cx = Exec::new(Isa::detect().unwrap(), 1);
        match comm.rank() {
            0 => lead(&comm, &settings, run, None, &stop, &mut |_| ()).err(),
            1 => {
                let act = &|| {
                    *began.lock().unwrap() = Instant::now();
                    act();
                };
                follow(&Third { comm, sums: 0.into(), act }, &cx, &stop).err().map(TrainError::from)
            }
            _ => follow(&comm, &cx, &stop).err().map(TrainError::from),
        }
    });
    let took = began.lock().unwrap().elapsed();
    (errors.into_iter().next().flatten().expect("an error"), took)
}

/// A rank that acts in its 100th sum.
struct Third<'a> {
    comm: Threads,
    sums: std::cell::Cell<usize>,
    act: &'a dyn Fn(),
}

impl Comm for Third<'_> {
    fn rank(&self) -> usize {
        self.comm.rank()
    }
    fn size(&self) -> usize {
        self.comm.size()
    }
    fn sum_as(&self, values: &mut [f32], sent: Sent) -> Result<(), CommError> {
        self.sums.set(self.sums.get() + 1);
        if self.sums.get() == 100 {
            (self.act)();
            return Err(CommError::Library("this rank is lost".into()));
        }
        self.comm.sum_as(values, sent)
    }
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError> {
        self.comm.broadcast(bytes)
    }
}

#[test]
fn a_rank_that_dies_or_hangs_ends_the_run_and_the_last_step_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("dies");
    let (error, took) = broken(PATIENCE, &run, || ());
    assert!(matches!(error, TrainError::Ranks(CommError::Gone { rank: 1 })), "{error}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let newest = RunFolder::at(&run).latest().unwrap().unwrap().checkpoint;
    assert!(newest.step() > 6, "the last step is saved: {}", newest.step());
    let (error, took) = broken(Duration::from_millis(500), &folder.path().join("hangs"), || {
        std::thread::sleep(Duration::from_secs(2));
    });
    assert!(matches!(error, TrainError::Ranks(CommError::Late { rank: 1 | 2, .. })), "{error}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// As where one of them gets SIGTERM.
#[test]
fn any_rank_may_ask_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let (run, settings) = (folder.path().join("run"), settings(&[("train.steps", "1000000")]));
    let (stop, own) = (AtomicBool::new(false), AtomicBool::new(false));
    let ends = Threads::run(2, PATIENCE, |comm| match comm.rank() {
        0 => Some(
            lead(&comm, &settings, &run, None, &stop, &mut |event| {
                if let Event::Row(_) = event {
                    own.store(true, Relaxed);
                }
            })
            .unwrap(),
        ),
        _ => follow(&comm, &Exec::new(Isa::detect().unwrap(), 1), &own).map(|()| None).unwrap(),
    });
    assert!(ends[0].as_ref().is_some_and(|ended| ended.outcome == Outcome::Interrupted));
    assert!(RunFolder::at(&run).latest().unwrap().is_some());
}

#[test]
fn ranks_that_differ_or_have_nothing_to_do_are_refused() {
    let alike = Hello { version: "1".into(), isa: "avx512".into(), ..Hello::default() };
    let all = Threads::run(4, PATIENCE, |comm| meet(&comm, &alike));
    assert_eq!(all, vec![Ok(()); 4]);
    let hello = |rank: usize| match rank {
        1 => Hello { version: "2".into(), flags: "--lr 1".into(), ..alike.clone() },
        2 => Hello { isa: "avx2".into(), ..alike.clone() },
        _ => alike.clone(),
    };
    let errors = Threads::run(4, PATIENCE, |comm| meet(&comm, &hello(comm.rank())).unwrap_err().to_string());
    let want = [
        "rank 1 has another version of flashlm than rank 0: 2, not 1; install one version everywhere",
        "rank 1 has another list of flags than rank 0: --lr 1, not ; start all with the same",
        "rank 2 has another instruction set than rank 0: avx2, not avx512; set FLASHLM_ISA to one that all have",
    ];
    assert_eq!(errors, vec![want.join("\n"); 4]);
    // Nine passes of one sequence.
    let fit = Fit::of(&settings(&[]));
    assert_eq!(fit.check(8), Ok(()));
    let error = fit.check(16).unwrap_err().to_string();
    assert!(error.starts_with("16 ranks, but an update has 9 passes: at most 8 can take part"), "{error}");
    let error = Fit::of(&settings(&[("train.batch", "1")])).check(2).unwrap_err().to_string();
    assert!(error.contains("has 1 pass: at most 1 can"), "{error}");
    let error = CommError::NoPower { ranks: 6 }.to_string();
    assert!(error.contains("start 4 or 8"), "{error}");
}

/// Two processors, or two builds of one version, that do not round alike: seen before anything is written.
#[test]
fn ranks_that_compute_otherwise_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (own, scalar) = (Isa::detect().unwrap(), Isa::named("scalar").unwrap());
    if own == scalar {
        eprintln!("skipped: this machine has one instruction set");
        return;
    }
    let (settings, run, stop) = (settings(&[]), folder.path().join("run"), AtomicBool::new(false));
    let errors = Threads::run(4, PATIENCE, |comm| match comm.rank() {
        0 => lead(&comm, &settings, &run, None, &stop, &mut |_| ()).err().map(|error| error.to_string()),
        rank => {
            follow(&comm, &Exec::new(if rank == 2 { scalar } else { own }, rank), &stop).unwrap();
            None
        }
    });
    let error = errors[0].as_deref().unwrap();
    assert!(error.starts_with("rank 2 has another arithmetic than rank 0: a gradient with checksum "), "{error}");
    assert!(error.lines().count() == 1 && !run.exists(), "{error}");
}

/// Each on a machine of its own, with or without the text under the same name.
#[test]
fn texts_that_differ_are_named_with_their_checksums() {
    let folder = tempfile::tempdir().unwrap();
    let text = |rank: usize, bytes: &str| {
        let path = folder.path().join(format!("rank-{rank}.txt"));
        fs::write(&path, bytes).unwrap();
        checksum(path.to_str().unwrap()).expect("a checksum")
    };
    let big = "a".repeat(3 << 20);
    let other = format!("{}b{}", &big[..2 << 20], &big[(2 << 20) + 1..]);
    let sums = [text(0, &big), text(1, &big), text(2, &other)];
    assert!(sums[0] == sums[1] && sums[0] != sums[2], "one byte in the middle of 3 MB: {sums:?}");
    // Of one shot, from elsewhere: the reference implementation's own value for this text.
    assert_eq!(sums[0], format!("3,145,728 bytes with checksum {:016x}", xxhash_rust::xxh3::xxh3_64(big.as_bytes())));
    for absent in ["synthetic:300", "hf:a/b", "/none/here.txt", "-"] {
        assert_eq!(checksum(absent), None, "{absent}");
    }
    // Of a large one, parts; this has holes, and takes no room on the disk.
    let (path, size) = (folder.path().join("large.txt"), (300 << 20) + 1);
    let mut large = fs::File::create_new(&path).unwrap();
    large.set_len(size).unwrap();
    let mut written = |at: u64| {
        large.seek(SeekFrom::Start(at)).unwrap();
        large.write_all(b"x").unwrap();
        checksum(path.to_str().unwrap()).unwrap()
    };
    let mut parts = vec![0; 48 << 20];
    for (at, in_parts) in [(0, 0), ((142 << 20) + 5, (16 << 20) + 5), (size - 1, (48 << 20) - 1)] {
        parts[in_parts] = b'x';
        let want = xxhash_rust::xxh3::xxh3_64(&parts);
        let want = format!("314,572,801 bytes with checksum {want:016x} of the first, middle and last 16 MiB");
        assert_eq!(written(at), want, "a byte at {at}");
    }
    let meet = |sums: &[Option<&String>; 4]| {
        Threads::run(4, PATIENCE, |comm| {
            let file = sums[comm.rank()].map(|sum| ("text book.txt".to_string(), sum.clone()));
            meet(&comm, &Hello { files: file.into_iter().collect(), ..Hello::default() })
        })
    };
    assert_eq!(
        meet(&[Some(&sums[0]), Some(&sums[1]), None, None]),
        vec![Ok(()); 4],
        "one that has none is sent what it needs"
    );
    for answer in meet(&[Some(&sums[0]), Some(&sums[1]), Some(&sums[2]), Some(&sums[2])]) {
        let error = answer.unwrap_err().to_string();
        for rank in [2, 3] {
            let want = format!("rank {rank} has another text book.txt than rank 0: {}, not {}; copy", sums[2], sums[0]);
            assert!(error.contains(&want), "{error}");
        }
        assert_eq!(error.lines().count(), 2, "{error}");
    }
}

/// A pipe would keep all ranks waiting, and the text is for rank 0 alone.
#[cfg(unix)]
#[test]
fn only_files_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let (give, take) = std::sync::mpsc::channel();
    for path in [pipe.to_str().unwrap(), "/dev/zero", "/dev/null"].map(String::from) {
        let give = give.clone();
        std::thread::spawn(move || give.send(checksum(&path)));
        assert_eq!(take.recv_timeout(Duration::from_secs(20)), Ok(None));
    }
}

/// Counts what is sent to all by a rank of which others think that it computes.
struct Told {
    comm: Threads,
    wanted: Cell<Option<u64>>,
    /// At rest, and while others waited for it.
    sent: Cell<[usize; 2]>,
}

impl Comm for Told {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.size()
    }

    fn sum_as(&self, values: &mut [f32], sent: Sent) -> Result<(), CommError> {
        self.comm.sum_as(values, sent)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<(), CommError> {
        let mut sent = self.sent.get();
        sent[usize::from(self.wanted.get().is_some())] += 1;
        self.sent.set(sent);
        self.comm.broadcast(bytes)
    }

    fn at(&self, step: Option<u64>) {
        self.wanted.set(step);
    }
}

/// Between two orders rank 0 writes to a disk and a terminal, which may take longer than a rank may stand still.
#[test]
fn rank_0_rests_between_orders() {
    let (folder, settings, stop) = (tempfile::tempdir().unwrap(), settings(&[]), AtomicBool::new(false));
    let sent = Threads::run(2, PATIENCE, |comm| match comm.rank() {
        0 => {
            let told = Told { comm, wanted: Cell::default(), sent: Cell::default() };
            lead(&told, &settings, &folder.path().join("run"), None, &stop, &mut |_| ()).unwrap();
            told.sent.get()
        }
        _ => follow(&comm, &Exec::new(Isa::detect().unwrap(), 1), &stop).map(|()| [0; 2]).unwrap(),
    });
    let [at_rest, wanted] = sent[0];
    // Besides a step, an evaluation asks for documents several times.
    assert!(at_rest > 2 * 12 && wanted == 0, "{at_rest} at rest, {wanted} not");
}
