//! One request to the hub. It runs on its own thread, which hands over what arrives in pieces, so that whoever waits
//! can stop at once whatever the network does: name resolution, a connection without an answer, a stalled body.
//!
//! Redirects are followed here and not by the HTTP library: the hub's own answer has headers that those of the content
//! server behind it lack (`X-Linked-Etag`, `X-Linked-Size`, `X-Repo-Commit`), and the token must stay with the hub.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Timeout};

const REDIRECTS: usize = 10;
const PIECE: usize = 64 << 10;
/// Pieces on their way between the thread and its reader.
const PIECES: usize = 16;
const RESOLVE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(8);
/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a waiting reader looks whether it is to stop.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Called while waiting; breaks to stop.
pub(super) type Tick<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

/// Why a request did not go well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// No connection came about.
    Unreachable(String),
    /// The connection broke, or what came over it makes no sense; another attempt may go well.
    Broken(String),
    /// An answer that says no.
    Status(Box<Head>),
    /// What no other attempt will mend.
    Refused(String),
    /// Asked to stop.
    Stopped,
}

/// The headers that matter, gathered over all redirects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub status: u16,
    pub length: Option<u64>,
    /// `Content-Range: bytes START-END/TOTAL`.
    pub range: Option<(u64, Option<u64>)>,
    pub etag: Option<String>,
    pub linked_etag: Option<String>,
    pub linked_size: Option<u64>,
    pub commit: Option<String>,
    pub retry_after: Option<Duration>,
    /// What the hub says is wrong, shortened.
    pub message: String,
}

pub(super) enum Part {
    Head(Head),
    Bytes(Vec<u8>),
    End,
}

/// What to ask for.
#[derive(Clone)]
pub(super) struct Request {
    pub url: String,
    /// First byte wanted.
    pub from: u64,
    /// Where what is wanted ends; none: with the file.
    pub end: Option<u64>,
    /// Only the headers, up to those of the hub.
    pub head_only: bool,
    /// Sent only to the origin of `url`, and never again once a redirect has led away from there.
    pub token: Option<String>,
}

/// An answer under way.
pub(super) struct Answer(Receiver<Result<Part, Fault>>);

/// The library's agent, set so that all decisions are made here.
pub(super) fn agent() -> Agent {
    let config = Agent::config_builder()
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_resolve(Some(RESOLVE))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("flashlm/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .accept("*/*");
    config.build().into()
}

/// Sends the request.
pub(super) fn send(agent: &Agent, request: Request) -> Answer {
    let (sender, receiver) = sync_channel(PIECES);
    let agent = agent.clone();
    std::thread::spawn(move || {
        // Nobody is left to hear of a failed send.
        if let Err(fault) = work(&agent, &request, &sender) {
            let _ = sender.send(Err(fault));
        }
    });
    Answer(receiver)
}

impl Answer {
    /// The next part, once it is there.
    pub fn next(&mut self, tick: Tick) -> Result<Part, Fault> {
        let began = Instant::now();
        loop {
            match self.0.recv_timeout(TICK) {
                Ok(part) => return part,
                Err(RecvTimeoutError::Disconnected) => return Err(Fault::Broken("the connection ended".to_string())),
                Err(RecvTimeoutError::Timeout) if tick().is_break() => return Err(Fault::Stopped),
                Err(RecvTimeoutError::Timeout) if began.elapsed() > SILENCE + CONNECT => {
                    return Err(Fault::Broken("no answer".to_string()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

fn work(agent: &Agent, request: &Request, parts: &SyncSender<Result<Part, Fault>>) -> Result<(), Fault> {
    let bad = || Fault::Refused("a bad address; HF_ENDPOINT must begin with https:// or http://".to_string());
    let mut at: Uri = request.url.parse().map_err(|_| bad())?;
    let home = origin(&at).ok_or_else(bad)?;
    let mut at_home = true;
    let mut head = Head::default();
    for _ in 0..=REDIRECTS {
        let mut call = if request.head_only { agent.head(&at) } else { agent.get(&at) };
        at_home = at_home && origin(&at).as_ref() == Some(&home);
        if let Some(token) = request.token.as_ref().filter(|_| at_home) {
            call = call.header("authorization", format!("Bearer {token}"));
        }
        if request.from > 0 || request.end.is_some() {
            let last = request.end.map_or(String::new(), |end| end.saturating_sub(1).to_string());
            call = call.header("range", format!("bytes={}-{last}", request.from));
        }
        let response = call.call().map_err(|e| fault(&e))?;
        head.gather(response.status().as_u16(), response.headers());
        let location = response.headers().get("location").and_then(|l| l.to_str().ok());
        if let (301 | 302 | 303 | 307 | 308, Some(location)) = (head.status, location) {
            if request.head_only && head.linked_etag.is_some() {
                head.status = 200;
            } else {
                at = follow(&at, location)?;
                continue;
            }
        }
        if parts.send(Ok(Part::Head(head))).is_err() || request.head_only {
            return Ok(());
        }
        let mut body = response.into_body().into_reader();
        loop {
            let mut piece = vec![0; PIECE];
            let n = body.read(&mut piece).map_err(|e| Fault::Broken(e.to_string()))?;
            piece.truncate(n);
            let part = if n == 0 { Part::End } else { Part::Bytes(piece) };
            if parts.send(Ok(part)).is_err() || n == 0 {
                return Ok(());
            }
        }
    }
    Err(Fault::Refused(format!("more than {REDIRECTS} redirects")))
}

impl Head {
    fn gather(&mut self, status: u16, headers: &HeaderMap) {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let number = |name: &str| text(name).and_then(|value| value.parse().ok());
        // Of redirects: the first that says it. Of the rest: the last.
        self.linked_etag = self.linked_etag.take().or_else(|| text("x-linked-etag").map(bare));
        self.linked_size = self.linked_size.or_else(|| number("x-linked-size"));
        self.commit = self.commit.take().or_else(|| text("x-repo-commit").map(str::to_string));
        self.status = status;
        self.etag = text("etag").map(bare);
        self.length = number("content-length");
        self.range = text("content-range").and_then(|value| {
            let (start, rest) = value.strip_prefix("bytes ")?.split_once('-')?;
            Some((start.parse().ok()?, rest.split_once('/')?.1.parse().ok()))
        });
        self.retry_after = number("retry-after").map(Duration::from_secs);
        let message = text("x-error-message").unwrap_or_default().chars().filter(|c| c.is_ascii_graphic() || *c == ' ');
        self.message = message.take(200).collect();
    }
}

/// An entity tag without its quotes and the mark of a weak one.
fn bare(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_string()
}

/// A name that is not found has no kind of its own among errors of the system: all are of a connection that did not come
/// about but those that a connection can break with.
fn fault(error: &ureq::Error) -> Fault {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
    let broke = match error {
        ureq::Error::Io(e) => {
            [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock].contains(&e.kind())
        }
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => false,
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => false,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => false,
        _ => true,
    };
    if broke { Fault::Broken(error.to_string()) } else { Fault::Unreachable(error.to_string()) }
}

/// Scheme, host and port.
fn origin(uri: &Uri) -> Option<(String, String, u16)> {
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(port)))
}

/// The next address; never from an encrypted to an unencrypted one.
fn follow(at: &Uri, location: &str) -> Result<Uri, Fault> {
    let next = join(at, location).ok_or_else(|| Fault::Refused(format!("a redirect to a bad address: {location}")))?;
    if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
        return Err(Fault::Refused(format!("a redirect to an unencrypted address: {next}")));
    }
    Ok(next)
}

/// Where a `Location` leads to from `base` (RFC 3986, 5.2, without dot segments).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let whole = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    whole.parse().ok().filter(|uri| origin(uri).is_some())
}

/// A path as part of an address.
pub(super) fn quote(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_lead_where_rfc_3986_says() {
        let base: Uri = "https://hub.example:8443/datasets/a/b?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.example/f?sig=a%2Fb", "https://cdn.example/f?sig=a%2Fb"),
            ("//cdn.example/f", "https://cdn.example/f"),
            ("/api/f", "https://hub.example:8443/api/f"),
            ("f#part", "https://hub.example:8443/datasets/a/f"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), expected, "{location}");
        }
        for location in ["ftp://cdn.example/f", "file:///etc/passwd", "https://", "http://a b/"] {
            assert!(join(&base, location).is_none(), "{location}");
        }
        assert!(matches!(follow(&base, "http://cdn.example/f"), Err(Fault::Refused(_))));
        assert!(follow(&"http://hub.example/f".parse().unwrap(), "http://cdn.example/f").is_ok());
        let same = |a: &str, b: &str| origin(&a.parse().unwrap()) == origin(&b.parse().unwrap());
        assert!(same("https://hub.example/a", "https://HUB.example:443/b"));
        for other in ["http://hub.example/", "https://hub.example:8443/", "https://hub.example.evil/"] {
            assert!(!same("https://hub.example/", other), "{other}");
        }
    }

    #[test]
    fn headers_are_gathered_over_redirects() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
        };
        let mut head = Head::default();
        head.gather(302, &headers(&[("x-linked-etag", "\"ab\""), ("x-linked-size", "90"), ("x-repo-commit", "c0")]));
        head.gather(
            206,
            &headers(&[("etag", "W/\"other\""), ("content-range", "bytes 10-89/90"), ("content-length", "80")]),
        );
        assert_eq!((head.status, head.linked_etag.as_deref(), head.linked_size), (206, Some("ab"), Some(90)));
        assert_eq!((head.etag.as_deref(), head.range, head.length), (Some("other"), Some((10, Some(90))), Some(80)));
        head.gather(429, &headers(&[("retry-after", "7"), ("x-error-message", "slow\tdown")]));
        assert_eq!(
            (head.retry_after, head.message.as_str(), head.range),
            (Some(Duration::from_secs(7)), "slowdown", None)
        );
        head.gather(429, &headers(&[("retry-after", "soon"), ("content-range", "bytes */90")]));
        assert_eq!((head.retry_after, head.range), (None, None));
    }

    #[test]
    fn paths_are_quoted() {
        assert_eq!(quote("data/a b+é?.txt"), "data/a%20b%2B%C3%A9%3F.txt");
    }
}
