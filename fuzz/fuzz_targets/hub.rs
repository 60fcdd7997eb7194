//! What the hub says, from any bytes.
//!
//! ```text
//! first byte % 3: 0 the answers of a server, one after the other, with a line of one `~` between them
//!                 1 the list of files in the cache, without a network
//!                 2 lines: a dataset, then files of a repository, from which its own are selected
//! ```
//! Whatever is fetched lies below the cache.
#![no_main]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::{LazyLock, Mutex};

use flashlm_fuzz::{byte, file, folder, seed};
use flashlm_train::data::hub::{Client, Dataset};
use libfuzzer_sys::fuzz_target;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const BETWEEN: &[u8] = b"\n~\n";

/// A server of this machine that gives the answers it was given, and closes each connection.
struct Server {
    endpoint: String,
    answers: Mutex<Vec<Vec<u8>>>,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut lines = BufReader::new(&connection);
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let answer = SERVER.answers.lock().expect("no panic").pop().unwrap_or_default();
            let _ = (&connection).write_all(&answer);
        }
    });
    Server { endpoint, answers: Mutex::default() }
});

/// Answers that lead to other machines are not given.
fn leads_away(answer: &[u8]) -> bool {
    let lower = answer.to_ascii_lowercase();
    lower.windows(8).any(|w| w == b"location") && lower.windows(2).any(|w| w == b"//" || w == b"\\\\")
}

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut answers = vec![Vec::new()];
    for &b in bytes {
        let answer = answers.last_mut().expect("there is one");
        answer.push(b);
        if let Some(n) = answer.len().checked_sub(BETWEEN.len()).filter(|&n| &answer[n..] == BETWEEN) {
            answer.truncate(n);
            answers.push(Vec::new());
        }
    }
    answers
}

fn fetch(spec: &str, offline: bool, endpoint: &str) {
    let Some(Ok(dataset)) = Dataset::parse(spec) else { return };
    let cache = folder().join("cache");
    let mut client = Client::new(endpoint, cache.clone());
    (client.offline, client.patience) = (offline, 0.0);
    // A pause that the server asks for is not waited out.
    let fetched = client.fetch(&dataset, &mut |p| match p.waiting {
        Some(text) if text.contains("trying again in") && !text.ends_with(" 0 s") => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    if let Ok(fetched) = fetched {
        let root = fs::canonicalize(&cache).expect("a cache");
        for path in fetched.files {
            assert!(path.starts_with(&fetched.root), "{path:?}");
            assert!(fs::canonicalize(&path).expect("what was fetched").starts_with(&root), "{path:?}");
        }
    }
}

fn select(text: &str) {
    let mut lines = text.lines();
    let Some(Ok(dataset)) = lines.next().and_then(Dataset::parse) else { return };
    let files: Vec<&str> = lines.collect();
    let again = Dataset::parse(&dataset.spec()).expect("a dataset").expect("a good one");
    assert_eq!((again.spec(), again.repo(), again.column()), (dataset.spec(), dataset.repo(), dataset.column()));
    if let Ok(selected) = dataset.select(&files) {
        assert!(!selected.is_empty() && selected.is_sorted() && selected.iter().all(|file| files.contains(file)));
        assert_eq!(again.select(&files).expect("the same"), selected);
    }
    if let Some(valid) = dataset.validation(&files) {
        valid.select(&files).expect("a split that is there");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    // `printf 'hello\n' | git hash-object --stdin`
    let git = "ce013625030ba8dba906f756967f9e9ca394464a";
    let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    let list = |files: &str| {
        let json = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{files}]}}");
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{json}", json.len())
    };
    let plain = list(&format!("{{\"rfilename\":\"data/train.txt\",\"size\":6,\"blobId\":\"{git}\"}}"));
    let large = list(&format!(
        "{{\"rfilename\":\"a/train-00000-of-00001.jsonl\",\"size\":9,\"blobId\":\"{git}\",\"lfs\":{{\"sha256\":\"{sha}\",\"size\":6}}}},\
         {{\"rfilename\":\"README.md\"}}"
    ));
    let bare = list("{\"rfilename\":\"train.parquet\"}");
    let content = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n";
    let part = "HTTP/1.1 206 Partial\r\ncontent-range: bytes 3-5/6\r\ncontent-length: 3\r\n\r\nlo\n";
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhel";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n3\r\nlo\n\r\n0\r\n\r\n";
    let head = format!(
        "HTTP/1.1 302 Found\r\nx-linked-etag: \"{sha}\"\r\nx-linked-size: 6\r\nx-repo-commit: {COMMIT}\r\nlocation: /f\r\n\r\n"
    );
    let busy = "HTTP/1.1 429 Slow\r\nretry-after: 0\r\nx-error-message: slow down\r\n\r\n";
    let gone = "HTTP/1.1 404 Not Found\r\nx-error-message: none\r\n\r\n";
    let answers = |answers: &[&str]| ["\0", &answers.join("\n~\n")].concat().into_bytes();
    let tree = |files: &str| format!("\u{1}{{\"format_version\":1,\"files\":{{{files}}}}}").into_bytes();
    let names = "README.md\ndata/train-00000-of-00002.parquet\ndata/train-00001-of-00002.parquet\ndata/validation.parquet\n\
        en/test.jsonl.gz\nde/dev.txt.zst\nsample/10BT/000.parquet\nTinyStoriesV2-GPT4-valid.txt\nx.tar.gz\nmy-held_out.txt";
    let mut seeds = vec![
        answers(&[&plain, content]),
        answers(&[&plain, cut, part]),
        answers(&[busy, &large, &head, chunked]),
        answers(&[&bare, &head, content]),
        answers(&[&plain, gone]),
        tree(&format!("\"data/train.txt\":{{\"size\":6,\"blob_id\":\"{git}\"}}")),
        tree(&format!("\"x/y.jsonl\":{{\"size\":6,\"blob_id\":\"{git}\",\"lfs_sha256\":\"{sha}\",\"lfs_size\":6}}")),
    ];
    let specs = ["tinystories", "tinystories-v2", "fineweb-edu", "hf:a/b", "hf:a/b:en:test", "hf:a/b::held_out:story"];
    seeds.extend(specs.iter().map(|spec| format!("\u{2}{spec}\n{names}").into_bytes()));
    seeds
}

fuzz_target!(
    init: {
        for (i, seed) in seeds().iter().take(4).enumerate() {
            let mut answers = split(&seed[1..]);
            answers.reverse();
            *SERVER.answers.lock().expect("no panic") = answers;
            fetch("hf:a/b", false, &SERVER.endpoint);
            let blobs = folder().join("cache/datasets--a--b/blobs");
            let fetched = fs::read_dir(blobs).is_ok_and(|mut blobs| blobs.next().is_some());
            assert!(fetched, "seed {i} fetches nothing");
            let _ = fs::remove_dir_all(folder().join("cache"));
        }
        seed(seeds());
    },
    |input: &[u8]| {
        let mut rest = input;
        match byte(&mut rest) % 3 {
            0 => {
                let mut answers = split(rest);
                if answers.iter().any(|answer| leads_away(answer)) {
                    return;
                }
                answers.reverse();
                *SERVER.answers.lock().expect("no panic") = answers;
                fetch("hf:a/b", false, &SERVER.endpoint);
                let _ = fs::remove_dir_all(folder().join("cache"));
            }
            1 => {
                file("cache/datasets--a--b/refs/main", COMMIT);
                file(&format!("cache/datasets--a--b/trees/{COMMIT}.json"), rest);
                file(&format!("cache/datasets--a--b/snapshots/{COMMIT}/data/train.txt"), "hello\n");
                for spec in ["hf:a/b", "hf:a/b:x", "hf:a/b::test"] {
                    fetch(spec, true, "http://127.0.0.1:9");
                }
                let _ = fs::remove_dir_all(folder().join("cache"));
            }
            _ => select(&String::from_utf8_lossy(rest)),
        }
    }
);
