//! A hub of our own for tests: two ports of 127.0.0.1, one that lists files and redirects, one that has the contents.
//! It speaks what the client must understand (`X-Linked-Etag`, `X-Linked-Size`, `X-Repo-Commit`, ranges), keeps a log
//! of all requests, and does wrong what a test asks for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

pub const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `list` and `file` at the hub, `content` at the server behind it.
    pub kind: &'static str,
    pub path: String,
    pub range: Option<u64>,
    /// Where a range ends that does not go to the end of the file.
    pub end: Option<u64>,
    pub token: Option<String>,
}

/// What to do with a request.
#[derive(Clone, Debug)]
pub enum Act {
    Serve,
    /// Serves at most so many bytes a second.
    Slowly(usize),
    /// Answers with another status and these headers.
    Status(u16, &'static str),
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends the first bytes, then nothing, and stays.
    Stall(usize),
    /// Announces so many bytes more or less than it sends.
    Length(i64),
    /// Sends the whole file where a part was asked for.
    NoRange,
    /// Sends the part a byte further on.
    WrongRange,
    /// Changes a byte in the middle.
    Damage,
    /// Sends more than the file.
    TooMuch,
    /// Redirects to another address.
    Redirect(String),
    /// Answers with this body.
    Body(String),
    /// Answers with JSON that does not end.
    Endless,
}

type Rule = Box<dyn FnMut(&Seen) -> Act + Send>;

struct State {
    files: BTreeMap<String, Vec<u8>>,
    log: Vec<Seen>,
    rule: Rule,
    content: String,
    /// Whether large files have a SHA-256 and a redirect; else they are git's own.
    lfs: bool,
    /// Whether the list says no more than names.
    bare: bool,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn new(files: &[(&str, Vec<u8>)]) -> Hub {
        let [(hub, endpoint), (content, behind)] = [(); 2].map(|()| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = format!("http://{}", listener.local_addr().unwrap());
            (listener, address)
        });
        let files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
        let rule: Rule = Box::new(|_| Act::Serve);
        let state = State { files, log: Vec::new(), rule, content: behind, lfs: true, bare: false };
        let state = Arc::new(Mutex::new(state));
        for (listener, is_hub) in [(hub, true), (content, false)] {
            let state = state.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    // A client that goes away in the middle is part of the game.
                    std::thread::spawn(move || serve(stream, &state, is_hub).unwrap_or_default());
                }
            });
        }
        Hub { endpoint, state }
    }

    /// What to do from now on; the log starts anew.
    pub fn rule(&self, rule: impl FnMut(&Seen) -> Act + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        (state.rule, state.log) = (Box::new(rule), Vec::new());
    }

    /// As [`Hub::rule`], for the first `n` requests of a kind.
    pub fn at_first(&self, kind: &'static str, mut n: usize, act: Act) {
        self.rule(move |seen| {
            let now = seen.kind == kind && n > 0;
            n -= usize::from(now);
            if now { act.clone() } else { Act::Serve }
        });
    }

    pub fn without_lfs(self) -> Hub {
        self.state.lock().unwrap().lfs = false;
        self
    }

    pub fn with_a_bare_list(self) -> Hub {
        self.state.lock().unwrap().bare = true;
        self
    }

    pub fn log(&self) -> Vec<Seen> {
        self.state.lock().unwrap().log.clone()
    }

    /// Requests of a kind since the last rule.
    pub fn count(&self, kind: &str) -> usize {
        self.log().iter().filter(|seen| seen.kind == kind).count()
    }
}

pub fn hex(algorithm: &'static Algorithm, bytes: &[u8]) -> String {
    digest(algorithm, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&SHA256, bytes)
}

fn git(bytes: &[u8]) -> String {
    hex(&SHA1_FOR_LEGACY_USE_ONLY, &[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat())
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, is_hub: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let line = lines.next().transpose()?.unwrap_or_default();
    let mut parts = line.split(' ').map(str::to_string);
    let (method, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let headers: Vec<String> = lines.map_while(|line| line.ok().filter(|line| !line.is_empty())).collect();
    let header = |name: &str| {
        headers.iter().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name))).map(|h| h.1)
    };
    let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let end = range.and_then(|(_, last)| Some(last.parse::<u64>().ok()? + 1));
    let range = range.and_then(|(first, _)| first.parse().ok());
    let token = header("authorization").map(str::to_string);
    let kind = if !is_hub {
        "content"
    } else if path.starts_with("/api/") {
        "list"
    } else {
        "file"
    };
    let seen = Seen { kind, path: path.clone(), range, end, token };
    let mut state = state.lock().unwrap();
    state.log.push(seen.clone());
    let act = (state.rule)(&seen);
    let answer = |status: u16, headers: &str| format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n{headers}");
    match &act {
        Act::Status(status, headers) => {
            return stream.write_all(format!("{}Content-Length: 0\r\n\r\n", answer(*status, headers)).as_bytes());
        }
        Act::Redirect(to) => {
            let headers = format!("Location: {to}\r\nContent-Length: 0\r\n\r\n");
            return stream.write_all(answer(302, &headers).as_bytes());
        }
        Act::Endless => {
            stream.write_all(answer(200, "\r\n{\"sha\":\"").as_bytes())?;
            let piece = vec![b'x'; 1 << 20];
            loop {
                stream.write_all(&piece)?;
            }
        }
        _ => {}
    }
    if kind == "list" {
        let body = match &act {
            Act::Body(body) => body.clone(),
            _ => list(&state),
        };
        drop(state);
        return send(stream, &answer(200, ""), body.into_bytes(), act, &method);
    }
    let name = path.rsplit_once(COMMIT).map_or("", |(_, name)| name).trim_start_matches('/').to_string();
    let Some(bytes) = state.files.get(&name).cloned() else {
        return stream.write_all(format!("{}Content-Length: 0\r\n\r\n", answer(404, "")).as_bytes());
    };
    let sum = if state.lfs { sha256(&bytes) } else { git(&bytes) };
    if is_hub && state.lfs {
        let (size, content) = (bytes.len(), &state.content);
        let headers = format!(
            "X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{sum}\"\r\nX-Linked-Size: {size}\r\nETag: \"pointer\"\r\n\
             Location: {content}/{COMMIT}/{name}\r\nContent-Length: 0\r\n\r\n"
        );
        return stream.write_all(answer(302, &headers).as_bytes());
    }
    drop(state);
    let (status, from) = match (range, &act) {
        (Some(from), Act::WrongRange) => (206, from as usize + 1),
        (Some(from), act) if !matches!(act, Act::NoRange) => (206, from as usize),
        _ => (200, 0),
    };
    if from >= bytes.len() {
        return stream.write_all(format!("{}Content-Length: 0\r\n\r\n", answer(416, "")).as_bytes());
    }
    let size = bytes.len();
    let to = end.filter(|_| status == 206).map_or(size, |end| size.min(end as usize).max(from + 1));
    let last = to - 1;
    let part = if status == 206 { format!("Content-Range: bytes {from}-{last}/{size}\r\n") } else { String::new() };
    send(stream, &answer(status, &format!("ETag: \"{sum}\"\r\n{part}")), bytes[from..to].to_vec(), act, &method)
}

fn list(state: &State) -> String {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let mut json = serde_json::json!({"rfilename": name});
        if !state.bare {
            json["size"] = bytes.len().into();
            json["blobId"] = git(if state.lfs { b"pointer" } else { bytes }).into();
        }
        if !state.bare && state.lfs {
            json["lfs"] = serde_json::json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130});
        }
        json
    };
    let siblings: Vec<_> = state.files.iter().map(sibling).collect();
    serde_json::json!({"id": "a/b", "sha": COMMIT, "gated": false, "siblings": siblings}).to_string()
}

fn send(mut stream: TcpStream, head: &str, mut body: Vec<u8>, act: Act, method: &str) -> std::io::Result<()> {
    let mut length = body.len() as i64;
    match act {
        Act::Length(more) => length += more,
        Act::Cut(n) | Act::Stall(n) => body.truncate(n),
        Act::Damage => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        Act::TooMuch => {
            body.extend([b'x'; 1000]);
            length += 1000;
        }
        _ => {}
    }
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n").as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    if let Act::Slowly(speed) = act {
        for piece in body.chunks(speed / 50) {
            stream.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(20));
        }
    } else {
        stream.write_all(&body)?;
    }
    if let Act::Stall(_) = act {
        // Until the other side has gone.
        let _ = stream.read(&mut [0])?;
    }
    Ok(())
}
