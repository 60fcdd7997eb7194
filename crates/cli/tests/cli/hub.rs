//! Datasets by name, fetched from a hub of our own: whole, broken off, resumed, cached, and all that can go wrong.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flashlm_train::data::hub::{Client, Dataset, Fetched, HubError};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::common::{Place, TINY, text};
use crate::hub_server::{Act, COMMIT, Hub, sha256};

/// Stories of our own, each another one.
fn stories(first: usize, bytes: usize) -> Vec<String> {
    let story = |i: usize| {
        let (a, b) = (i * 7919 % 1009, i * 104_729 % 997);
        format!("Hen {i} had {a} eggs and gave {b} of them to the fox. He said thank you and went home.")
    };
    (first..first + bytes / 80 + 1).map(story).collect()
}

/// As JSON lines.
fn jsonl(bytes: usize) -> Vec<u8> {
    let line = |story: String| format!("{}\n", serde_json::json!({"text": story}));
    stories(0, bytes).into_iter().map(line).collect::<String>().into_bytes()
}

/// As a table with a column of numbers and one of stories, in row groups of a thousand.
fn table(column: &str, compression: Compression, stories: &[String]) -> Vec<u8> {
    let schema = format!("message stories {{ required int64 n; required binary {column} (STRING); }}");
    let properties = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(false).build();
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for stories in stories.chunks(1000) {
        let mut group = writer.next_row_group().unwrap();
        let mut numbers = group.next_column().unwrap().unwrap();
        numbers.typed::<Int64Type>().write_batch(&(0..stories.len() as i64).collect::<Vec<_>>(), None, None).unwrap();
        numbers.close().unwrap();
        let mut texts = group.next_column().unwrap().unwrap();
        let bytes: Vec<ByteArray> = stories.iter().map(|story| story.as_str().into()).collect();
        texts.typed::<ByteArrayType>().write_batch(&bytes, None, None).unwrap();
        texts.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

const TRAIN: [&str; 2] = ["data/train-00000-of-00002-2d5a1467.parquet", "data/train-00001-of-00002-5852b56a.parquet"];
const VALID: &str = "data/validation-00000-of-00001-869c898b.parquet";

/// A repository with the layout of TinyStories.
fn tinystories(bytes: usize) -> Hub {
    let [first, second] = shards(bytes);
    let valid = table("text", Compression::ZSTD(Default::default()), &stories(200_000, 20_000));
    Hub::new(&[
        ("README.md", b"# stories".to_vec()),
        (TRAIN[0], first),
        (TRAIN[1], second),
        ("TinyStories-train.txt", b"not this one".to_vec()),
        (VALID, valid),
    ])
}

fn shards(bytes: usize) -> [Vec<u8>; 2] {
    [0, 100_000].map(|first| table("text", Compression::UNCOMPRESSED, &stories(first, bytes)))
}

/// The command with this hub and a cache of its own.
pub fn command(place: &Place, hub: &str, args: &str) -> Command {
    let mut command = place.command(args);
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env("HF_ENDPOINT", hub).env("HF_HOME", place.path("hf"));
    command
}

fn repo(place: &Place) -> PathBuf {
    place.path("hf/hub/datasets--roneneldan--TinyStories")
}

/// `train` on the default data, without a word about it.
fn train(steps: &str) -> String {
    format!("train {} --steps 1 --save-dir {steps}", TINY.replace("--data synthetic:300 ", ""))
}

/// Bytes of unfinished blobs.
fn unfinished(blobs: &Path) -> u64 {
    let files = fs::read_dir(blobs).into_iter().flatten().flatten();
    files
        .filter(|f| f.path().extension().is_some_and(|e| e == "incomplete"))
        .map(|f| f.metadata().map_or(0, |m| m.len()))
        .sum()
}

/// Waits until a good part of a blob is there.
fn half_way(child: &mut Child, blobs: &Path, bytes: u64) {
    let began = Instant::now();
    while unfinished(blobs) < bytes {
        assert!(began.elapsed().as_secs() < 60 && child.try_wait().unwrap().is_none(), "nothing arrives");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_run_fetches_the_second_goes_on_the_third_asks_nothing() {
    let (place, hub) = (Place::new(), tinystories(600_000));
    hub.rule(|seen| if seen.kind == "content" { Act::Slowly(400_000) } else { Act::Serve });
    let mut first =
        command(&place, &hub.endpoint, &train("a")).env("HF_TOKEN", "hf_secret").stderr(Stdio::null()).spawn().unwrap();
    half_way(&mut first, &repo(&place).join("blobs"), 100_000);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(hub.count("list") == 1 && hub.count("content") == 1, "{:?}", hub.log());
    let paths: Vec<String> = hub.log().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths[0], "/api/datasets/roneneldan/TinyStories/revision/main?blobs=true");
    assert_eq!(paths[1], format!("/datasets/roneneldan/TinyStories/resolve/{COMMIT}/{}", TRAIN[0]));
    // Proof of identity is for the hub alone.
    assert!(
        hub.log().iter().all(|seen| (seen.token.as_deref() == Some("Bearer hf_secret")) == (seen.kind != "content"))
    );
    let part = unfinished(&repo(&place).join("blobs"));

    hub.rule(|_| Act::Serve);
    let second = command(&place, &hub.endpoint, &train("b")).output().unwrap();
    assert!(second.status.success(), "{}", text(&second.stderr));
    let log = hub.log();
    let ranges: Vec<Option<u64>> = log.iter().filter(|seen| seen.kind == "content").map(|seen| seen.range).collect();
    assert_eq!(ranges, [Some(part), None, None], "two files of the one split, one of the other: {log:?}");
    assert_eq!(hub.count("list"), 0);
    let blobs = shards(600_000).map(|bytes| sha256(&bytes));
    for (name, blob) in TRAIN.iter().zip(&blobs) {
        let link = repo(&place).join("snapshots").join(COMMIT).join(name);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../../blobs").join(blob));
        assert_eq!(sha256(&fs::read(&link).unwrap()), *blob);
    }
    assert_eq!(fs::read_to_string(repo(&place).join("refs/main")).unwrap(), COMMIT);
    assert_eq!(unfinished(&repo(&place).join("blobs")), 0);
    // The validation text is that of the dataset, and the settings of the run say so.
    let config = fs::read_to_string(place.path("b/settings.toml")).unwrap();
    assert!(config.contains("hf:roneneldan/TinyStories:data:validation:text"), "{config}");

    hub.rule(|_| Act::Serve);
    let third = command(&place, &hub.endpoint, &train("c")).output().unwrap();
    assert!(third.status.success(), "{}", text(&third.stderr));
    assert!(text(&third.stderr).contains("(reused)"), "{}", text(&third.stderr));
    assert!(hub.log().is_empty(), "{:?}", hub.log());
    // And none without a network.
    let offline = command(&place, "http://127.0.0.1:1", &format!("{} --offline", train("d"))).output().unwrap();
    assert!(offline.status.success(), "{}", text(&offline.stderr));
}

#[test]
fn a_column_of_another_name_and_a_damaged_table() {
    let (place, place_cut) = (Place::new(), Place::new());
    let whole = table("story", Compression::SNAPPY, &stories(0, 100_000));
    let hub = Hub::new(&[
        ("data/test-00000-of-00001.parquet", whole[..100].to_vec()),
        ("data/train-00000-of-00001.parquet", whole.clone()),
    ]);
    let simple = |place: &Place, hub: &Hub, data: &str| {
        let run = if place.path("a").exists() { "b" } else { "a" };
        let output = command(place, &hub.endpoint, &format!("{} --data {data}", train(run))).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, stderr) = simple(&place, &hub, "simplestories");
    assert!(code == Some(0) && stderr.contains("held out"), "{stderr}");
    assert_eq!(hub.count("content"), 1);
    let (code, stderr) = simple(&place, &hub, "hf:SimpleStories/SimpleStories");
    assert!(code == Some(1) && stderr.contains("story"), "the column is not there, others are: {stderr}");
    // The hub's own file is cut, and its checksum right: it is the reader that finds out.
    let hub = Hub::new(&[("train.parquet", whole[..whole.len() * 2 / 3].to_vec())]);
    let (code, stderr) = simple(&place_cut, &hub, "hf:a/b:::story");
    assert!(code == Some(1) && stderr.contains("train.parquet: Parquet table"), "{stderr}");
}

#[test]
fn without_a_network_it_says_what_to_do_at_once() {
    let place = Place::new();
    let began = Instant::now();
    for (hub, extra, words) in [
        ("http://127.0.0.1:1", "", ["cannot reach http://127.0.0.1:1", "--data synthetic", "--data PATH"]),
        ("http://hub.invalid", "", ["cannot reach http://hub.invalid", "--data synthetic", "--data PATH"]),
        ("hub.invalid", "", ["hub.invalid", "bad address", "HF_ENDPOINT"]),
        ("http://127.0.0.1:1", " --offline", ["offline", "--data synthetic", "--data PATH"]),
    ] {
        let output = command(&place, hub, &(train("a") + extra)).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)) && !stderr.contains("panicked"), "{stderr}");
    }
    assert!(began.elapsed().as_secs() < 15, "{:?}", began.elapsed());
    let hub = tinystories(1000);
    let output = command(&place, &hub.endpoint, &train("a")).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(text(&output.stderr).contains("offline") && hub.log().is_empty());
    place.fails("train --data hf:stories", &["hf:stories", "OWNER/DATASET"]);
    let output = command(&place, &hub.endpoint, &train("a")).env("HF_TOKEN", "two words").output().unwrap();
    assert!(text(&output.stderr).contains("HF_TOKEN") && output.status.code() == Some(1), "{}", text(&output.stderr));
}

#[cfg(unix)]
#[test]
fn a_signal_stops_a_download_within_a_second_and_keeps_its_part() {
    let (place, hub) = (Place::new(), tinystories(300_000));
    // The one server sends a part and falls silent, the other says nothing at all.
    for (kind, bytes) in [("content", 100_000), ("list", 0)] {
        hub.rule(move |seen| if seen.kind == kind { Act::Stall(bytes as usize) } else { Act::Serve });
        let mut child = command(&place, &hub.endpoint, &train("a")).stderr(Stdio::null()).spawn().unwrap();
        half_way(&mut child, &repo(&place).join("blobs"), bytes);
        while hub.count(kind) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (pid, began) = (child.id().to_string(), Instant::now());
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(began.elapsed().as_millis() < 1000, "{:?}", began.elapsed());
        assert_eq!(unfinished(&repo(&place).join("blobs")), bytes);
        fs::remove_dir_all(repo(&place)).unwrap();
        fs::create_dir_all(repo(&place)).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_keeps_what_fitted() {
    let (place, hub) = (Place::new(), tinystories(300_000));
    let disk = place.path("hf");
    fs::create_dir(&disk).unwrap();
    let mount = |args: &[&str]| Command::new("mount").args(args).arg(&disk).output().is_ok_and(|o| o.status.success());
    if !mount(&["-t", "tmpfs", "-o", "size=200k", "tmpfs"]) {
        eprintln!("skipped: a small tmpfs cannot be mounted here");
        return;
    }
    let output = command(&place, &hub.endpoint, &train("a")).output().unwrap();
    let part = unfinished(&repo(&place).join("blobs"));
    let grown = mount(&["-o", "remount,size=4m"]);
    let after = command(&place, &hub.endpoint, &train("b")).output().unwrap();
    let range = hub.log().iter().filter(|seen| seen.kind == "content").filter_map(|seen| seen.range).next();
    let unmounted = Command::new("umount").arg(&disk).status();
    assert!(grown && unmounted.is_ok_and(|s| s.success()));
    let stderr = text(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("the disk is full"), "{stderr}");
    assert!(after.status.success(), "{}", text(&after.stderr));
    assert!(part > 0 && range == Some(part), "{part} bytes fitted, the rest was asked for from {range:?}");
}

/// A cache, a hub with one file, and what fetching it gives.
struct Bench {
    place: Place,
    hub: Hub,
    bytes: Vec<u8>,
}

impl Bench {
    fn new(bytes: usize) -> Bench {
        let bytes = jsonl(bytes);
        Bench { place: Place::new(), hub: Hub::new(&[("train.jsonl", bytes.clone())]), bytes }
    }

    fn client(&self) -> Client {
        let mut client = Client::new(&self.hub.endpoint, self.place.path("hub"));
        client.patience = 0.02;
        client
    }

    fn blobs(&self) -> PathBuf {
        self.place.path("hub/datasets--a--b/blobs")
    }

    fn fetch(&self) -> Result<Fetched, HubError> {
        fetch(&self.client(), "hf:a/b")
    }

    /// Fetches and compares.
    fn recovers(&self, what: &str) {
        let fetched = self.fetch().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(fs::read(&fetched.files[0]).unwrap() == self.bytes, "{what}: other bytes");
        assert_eq!(unfinished(&self.blobs()), 0, "{what}");
    }

    /// Fails with these words, and nothing passes for the file.
    fn fails(&self, what: &str, words: &[&str]) -> HubError {
        let error = self.fetch().expect_err(what);
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{what}: {words:?} is not in: {message}");
        assert!(!self.blobs().join(sha256(&self.bytes)).exists(), "{what}: a blob");
        let mut offline = self.client();
        offline.offline = true;
        assert!(matches!(fetch(&offline, "hf:a/b"), Err(HubError::Offline { .. })), "{what}: taken for whole");
        error
    }
}

fn fetch(client: &Client, spec: &str) -> Result<Fetched, HubError> {
    client.fetch(&Dataset::parse(spec).unwrap().unwrap(), &mut |_| ControlFlow::Continue(()))
}

#[test]
fn faults_that_pass_are_got_over() {
    let busy = Act::Status(429, "Retry-After: 1\r\n");
    for kind in ["list", "file", "content"] {
        for (what, n, act) in [
            ("a server error", 3, Act::Status(500, "")),
            ("a gateway without an answer", 2, Act::Status(504, "")),
            ("too many requests", 1, busy.clone()),
            ("a cut answer", 3, Act::Cut(40)),
            ("a length too large", 2, Act::Length(100)),
            ("a length too small", 2, Act::Length(-100)),
            ("a damaged byte", 1, Act::Damage),
            ("too many bytes", 2, Act::TooMuch),
        ] {
            let acts_on_body = !matches!(act, Act::Status(..));
            // The list has no checksum, and its redirect no body.
            if acts_on_body && (kind == "file" || kind == "list" && !matches!(act, Act::Cut(_) | Act::Length(100))) {
                continue;
            }
            let bench = Bench::new(5000);
            bench.hub.at_first(kind, n, act);
            let began = Instant::now();
            bench.recovers(&format!("{what} at the {kind}"));
            assert!(
                what != "too many requests" || began.elapsed().as_millis() >= 1000,
                "the pause was {:?}",
                began.elapsed()
            );
            assert!(bench.hub.count(kind) > n, "{what} at the {kind}");
        }
    }
}

#[test]
fn faults_that_stay_are_told() {
    let bench = Bench::new(5000);
    for (kind, act, words) in [
        ("list", Act::Status(404, ""), vec!["a/b", "404", "check the name"]),
        (
            "list",
            Act::Status(401, "X-Error-Message: Invalid username\r\n"),
            vec!["401", "(Invalid username)", "HF_TOKEN"],
        ),
        ("list", Act::Status(403, ""), vec!["403", "gated", "/datasets/a/b", "HF_TOKEN"]),
        ("list", Act::Status(429, "Retry-After: 86400\r\n"), vec!["429", "try later"]),
        ("list", Act::Status(500, ""), vec!["500", "every attempt"]),
        ("list", Act::Status(302, ""), vec!["302"]),
        ("list", Act::Redirect("/api/again".to_string()), vec!["more than 10 redirects"]),
        ("list", Act::Redirect("file:///etc/passwd".to_string()), vec!["bad address"]),
        ("list", Act::Body("<html>".to_string()), vec!["not the hub's list"]),
        ("list", Act::Body("{\"sha\":\"../..\",\"siblings\":[]}".to_string()), vec!["not a commit"]),
        ("list", Act::Endless, vec!["longer than"]),
        ("file", Act::Status(404, ""), vec!["train.jsonl", "404"]),
        ("file", Act::Status(403, ""), vec!["gated"]),
        ("content", Act::Status(503, ""), vec!["503", "is kept"]),
        ("content", Act::Cut(100), vec!["after 100 of", "is kept"]),
        ("content", Act::TooMuch, vec!["bytes, where the list says", "is kept"]),
        ("content", Act::Damage, vec!["checksum", "the file was not kept"]),
    ] {
        let what = format!("{act:?} at the {kind}");
        // A cut part that grows is progress: from the second request on nothing more comes.
        let cut = matches!(act, Act::Cut(_));
        bench.hub.rule(move |seen| match (seen.kind == kind, seen.range) {
            (true, Some(_)) if cut => Act::Cut(0),
            (true, _) => act.clone(),
            (false, _) => Act::Serve,
        });
        bench.fails(&what, &words);
        assert_eq!(unfinished(&bench.blobs()) > 0, cut, "{what}");
        let _ = fs::remove_dir_all(bench.place.path("hub"));
    }
    let (size, zeros) = (bench.bytes.len(), "0".repeat(64));
    let lfs = format!("{{\"sha256\":\"{zeros}\",\"size\":{size}}}");
    let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{{\"rfilename\":\"train.jsonl\",\"lfs\":{lfs}}}]}}");
    bench.hub.at_first("list", 1, Act::Body(body));
    bench.fails("another checksum", &["it is now", &sha256(&bench.bytes), &zeros]);
    let _ = fs::remove_dir_all(bench.place.path("hub"));
    let names = [
        "../../evil.jsonl",
        "/tmp/evil.jsonl",
        "data/../../evil.jsonl",
        "C:\\\\evil.jsonl",
        "evil\\u0000.jsonl",
        "",
        "a//b.jsonl",
    ];
    for name in names {
        let body = format!(
            "{{\"sha\":\"{COMMIT}\",\"siblings\":[{{\"rfilename\":\"{name}\",\"size\":5,\"blobId\":\"{COMMIT}\"}}]}}"
        );
        bench.hub.at_first("list", 1, Act::Body(body));
        bench.fails(name, &["leads out of the folder"]);
        assert_eq!(bench.hub.log().len(), 1, "{name}");
    }
    let many = "{\"rfilename\":\"a\"},".repeat(100_001);
    let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", many.trim_end_matches(','));
    bench.hub.at_first("list", 1, Act::Body(body));
    bench.fails("many files", &["100001 files"]);
}

#[test]
fn a_connection_that_breaks_every_64_kb_is_enough() {
    let bench = Bench::new(1_000_000);
    bench.hub.rule(|seen| if seen.kind == "content" { Act::Cut(64 << 10) } else { Act::Serve });
    bench.recovers("breaks");
    let ranges: Vec<u64> =
        bench.hub.log().iter().filter_map(|seen| seen.range.filter(|_| seen.kind == "content")).collect();
    let expected: Vec<u64> = (1..=bench.bytes.len() as u64 >> 16).map(|i| i << 16).collect();
    assert_eq!(ranges, expected);
}

#[test]
fn parts_are_used_only_for_what_they_are() {
    // A server without ranges: everything again, from the start.
    let bench = Bench::new(300_000);
    let mut first = true;
    bench.hub.rule(move |seen| match seen.kind {
        "content" if std::mem::take(&mut first) => Act::Cut(100_000),
        "content" => Act::NoRange,
        _ => Act::Serve,
    });
    bench.recovers("a server without ranges");
    assert_eq!(bench.hub.count("content"), 2);

    let sum = sha256(&bench.bytes);
    let (blob, incomplete) = (bench.blobs().join(&sum), bench.blobs().join(format!("{sum}.incomplete")));
    let left = |part: &[u8]| {
        fs::remove_file(&blob).unwrap();
        fs::write(&incomplete, part).unwrap();
        bench.hub.rule(|_| Act::Serve);
    };
    // Nothing is missing but the name.
    left(&bench.bytes);
    bench.recovers("a whole part");
    assert!(bench.hub.log().is_empty());
    // Of another file.
    left(&[b'x'; 1000]);
    bench.recovers("a foreign part");
    assert_eq!(bench.hub.log().iter().map(|seen| seen.range).collect::<Vec<_>>(), [Some(1000), Some(1000), None, None]);
    left(&bench.bytes.repeat(2));
    bench.recovers("a part longer than the file");
    assert_eq!(bench.hub.count("content"), 1);

    // A server that sends another part than was asked for: what is there stays as it is.
    left(&bench.bytes[..1000]);
    bench.hub.at_first("content", 1, Act::WrongRange);
    bench.recovers("another part");
    assert_eq!(bench.hub.log().iter().map(|seen| seen.range).collect::<Vec<_>>(), [Some(1000); 4]);

    // A file of the cache that was cut since.
    fs::write(&blob, &bench.bytes[..1000]).unwrap();
    bench.hub.rule(|_| Act::Serve);
    bench.recovers("a cut blob");
    assert_eq!((bench.hub.count("list"), bench.hub.count("content")), (0, 1));
}

#[test]
fn files_of_git_itself_and_bare_lists_are_fetched_too() {
    let bytes = jsonl(5000);
    let files = [("train.jsonl", bytes.clone())];
    for (what, hub, kept) in [
        ("git", Hub::new(&files).without_lfs(), true),
        ("bare", Hub::new(&files).with_a_bare_list(), false),
        ("bare git", Hub::new(&files).with_a_bare_list().without_lfs(), false),
    ] {
        let bench = Bench { place: Place::new(), hub, bytes: bytes.clone() };
        let damaged = if what == "bare git" { Act::Cut(40) } else { Act::Damage };
        bench.hub.at_first(if what == "git" { "file" } else { "content" }, 1, damaged);
        bench.recovers(what);
        bench.hub.rule(|_| Act::Serve);
        bench.recovers(what);
        // A list without sizes is no proof that all is here: it is asked for again, the files are not.
        assert_eq!(
            (bench.hub.count("list"), bench.hub.log().len()),
            (usize::from(!kept), usize::from(!kept)),
            "{what}"
        );
    }
}

#[cfg(unix)]
#[test]
fn what_python_has_fetched_is_used() {
    let bench = Bench::new(5000);
    // As `snapshot_download` leaves it, in a version without lists.
    let repo = bench.place.path("hub/datasets--a--b");
    let (names, sums) = (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], ["11", "22"]);
    fs::create_dir_all(repo.join("snapshots").join(COMMIT)).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::create_dir_all(repo.join("blobs")).unwrap();
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    let mut client = bench.client();
    client.offline = true;
    assert!(fetch(&client, "hf:a/b").unwrap_err().to_string().contains("its files are not in"));
    for (i, (name, sum)) in names.iter().zip(sums).enumerate() {
        fs::write(repo.join("blobs").join(sum), stories(i, 100).concat()).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{sum}"), repo.join("snapshots").join(COMMIT).join(name))
            .unwrap();
        let fetched = fetch(&client, "hf:a/b");
        match i {
            0 => assert!(fetched.unwrap_err().to_string().contains("1 of its 2 files are")),
            _ => assert_eq!(fetched.unwrap().files, names.map(|name| repo.join("snapshots").join(COMMIT).join(name))),
        }
    }
    assert!(bench.hub.log().is_empty());
    // Online, the list shows that the same commit has another file.
    let files = bench.fetch().unwrap().files;
    assert_eq!((files.len(), bench.hub.count("content")), (1, 1));
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let bench = Bench::new(300_000);
    bench.hub.rule(|seen| if seen.kind == "content" { Act::Slowly(1_000_000) } else { Act::Serve });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| bench.recovers("at once"));
        }
    });
    assert_eq!(bench.hub.count("content"), 1);
}
