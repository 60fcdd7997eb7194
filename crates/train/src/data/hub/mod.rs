//! Datasets from the hub, over HTTP, into the cache that its other programs use as well:
//! `names` (what is meant) -> list of files -> `cache` (is it here?) -> `download` (if not) -> paths of files.
//!
//! ```text
//! GET HF_ENDPOINT/api/datasets/OWNER/NAME/revision/main?blobs=true     commit; name, size and checksum of each file
//! GET HF_ENDPOINT/datasets/OWNER/NAME/resolve/COMMIT/PATH              the file, mostly by a redirect
//! ```
//!
//! Whatever is in the cache costs no request, the list included. Source: the client in Python, `huggingface_hub`.

mod cache;
mod download;
mod error;
mod http;
mod names;
mod retry;

use std::collections::BTreeMap;
use std::env;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flashlm_model::io::read_limited;
use serde::Deserialize;

use crate::units;
use cache::{Entry, Files, MAX_FILES, MAX_LIST, Repo};
use download::{Blob, Check};
pub use error::HubError;
use http::{Answer, Fault, Part, Request};
pub(crate) use names::split_of_word;
pub use names::{Dataset, NAMES};
use retry::{Retry, Watch};

/// The public hub.
const ENDPOINT: &str = "https://huggingface.co";

/// How far a fetch is, given to its callback at least ten times a second.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file being fetched.
    pub file: &'a str,
    /// Bytes that are here, of all files.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Speed since the start.
    pub bytes_per_second: f64,
    /// What it waits for, if it does.
    pub waiting: Option<&'a str>,
    /// Something worth a line that stays.
    pub note: Option<&'a str>,
}

/// The files of a dataset on this machine.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The folder of the commit, which the files lie in.
    pub root: PathBuf,
    /// The files, in the order of their paths.
    pub files: Vec<PathBuf>,
    /// The dataset's own validation split, if it has one.
    pub validation: Option<Dataset>,
}

/// A client of the hub. Not printable: it has a secret.
pub struct Client {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Proof of identity, for datasets that are private or gated.
    pub token: Option<String>,
    /// The folder `hub` of the cache.
    pub cache: PathBuf,
    /// Whether to do without a network.
    pub offline: bool,
    /// What all pauses are multiplied by.
    pub patience: f64,
    agent: ureq::Agent,
    reached: AtomicBool,
}

impl Client {
    /// The client that the environment describes: `HF_ENDPOINT`, `HF_TOKEN` (else the file `HF_TOKEN_PATH`, else
    /// `HF_HOME/token`), `HF_HUB_CACHE` (else `HF_HOME/hub`), `HF_HUB_OFFLINE`.
    pub fn from_env(offline: bool) -> Result<Client, HubError> {
        let var = |name: &str| env::var(name).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty());
        let path = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME");
            cache.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache")).join("huggingface")
        });
        let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let (origin, token) = match var("HF_TOKEN") {
            Some(token) => ("HF_TOKEN".to_string(), Some(token)),
            None => {
                let text =
                    read_limited(&file, 4096).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_string());
                (file.display().to_string(), text.filter(|text| !text.is_empty()))
            }
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(HubError::Token { origin });
        }
        let yes = |text: String| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str());
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let mut client = Client::new(&var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string()), cache);
        client.token = token;
        client.offline = offline || var("HF_HUB_OFFLINE").is_some_and(yes);
        Ok(client)
    }

    /// A client of one hub and one cache.
    pub fn new(endpoint: &str, cache: PathBuf) -> Client {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let (agent, reached) = (http::agent(), AtomicBool::new(false));
        Client { endpoint, token: None, cache, offline: false, patience: 1.0, agent, reached }
    }

    /// Makes sure that all files of a dataset are here.
    pub fn fetch(
        &self,
        dataset: &Dataset,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Fetched, HubError> {
        let repo = Repo::new(&self.cache, dataset.repo());
        let mut watch = Watch::new(dataset.repo(), progress);
        let (commit, files) = match repo.commit().and_then(|commit| Some((repo.files(&commit)?, commit))) {
            Some((files, commit)) => (commit, files),
            None if self.offline => self.found(&repo, dataset)?,
            None => self.list(&repo, dataset, &mut watch)?,
        };
        let paths: Vec<&str> = files.keys().map(String::as_str).collect();
        let no_files = |reason| HubError::NoFiles { repo: dataset.repo().to_string(), reason };
        let wanted = dataset.select(&paths).map_err(no_files)?;
        let size = |path: &str| files[path].size;
        let missing: Vec<&str> = wanted.iter().copied().filter(|path| !repo.has(&commit, path, size(path))).collect();
        if let (true, [first, ..]) = (self.offline, missing.as_slice()) {
            let more = if missing.len() > 1 {
                format!(" and {} more files are", missing.len() - 1)
            } else {
                " is".to_string()
            };
            return Err(self.offline(dataset, format!("{first}{more}")));
        }
        self.download(&repo, &commit, &missing, &files, &mut watch)?;
        let root = repo.snapshot(&commit);
        let files = wanted.iter().map(|path| root.join(path)).collect();
        Ok(Fetched { root, files, validation: dataset.validation(&paths) })
    }

    fn download(
        &self,
        repo: &Repo,
        commit: &str,
        missing: &[&str],
        files: &Files,
        watch: &mut Watch,
    ) -> Result<(), HubError> {
        let sizes = missing.iter().filter_map(|path| files[*path].size);
        watch.total = sizes.fold(0, u64::saturating_add);
        if !missing.is_empty() {
            let (n, size) = (missing.len(), units::bytes(watch.total));
            let files = if n == 1 { "file" } else { "files" };
            watch.note(&format!("fetching {n} {files}, {size}, from {} to {}", self.endpoint, self.cache.display()));
        }
        for path in missing {
            watch.file = path.to_string();
            let url = format!("{}/datasets/{}/resolve/{commit}/{}", self.endpoint, watch.repo, http::quote(path));
            let blob = match Blob::of(&files[*path]) {
                Some(blob) => blob,
                None => self.ask(&url, watch)?,
            };
            if !cache::is_name(&blob.etag) {
                return Err(HubError::Answer {
                    url,
                    reason: format!("the entity tag {:?} is no name for a file", blob.etag),
                });
            }
            self.blob(repo, &url, &blob, watch)?;
            repo.link(commit, path, &blob.etag)?;
            watch.before += blob.size;
            watch.now = 0;
        }
        Ok(())
    }

    /// The list of files as the hub has it now, which is kept.
    fn list(&self, repo: &Repo, dataset: &Dataset, watch: &mut Watch) -> Result<(String, Files), HubError> {
        #[derive(Deserialize)]
        struct Revision {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: String,
            size: u64,
        }
        let url = format!("{}/api/datasets/{}/revision/main?blobs=true", self.endpoint, dataset.repo());
        let text = self.text(&url, watch)?;
        let bad = |reason: String| HubError::Answer { url: url.clone(), reason };
        let revision: Revision =
            serde_json::from_slice(&text).map_err(|e| bad(format!("this is not the hub's list of files ({e})")))?;
        if !cache::is_hex(&revision.sha, 40) {
            return Err(bad(format!("{:?} is not a commit", short(&revision.sha))));
        }
        if revision.siblings.len() > MAX_FILES {
            return Err(bad(format!("a list of {} files, more than {MAX_FILES}", revision.siblings.len())));
        }
        let mut files = Files::new();
        for Sibling { rfilename, size, blob_id, lfs } in revision.siblings {
            if !cache::is_safe(&rfilename) {
                let name = short(&rfilename);
                return Err(bad(format!(
                    "the list has a file {name:?}, a path that leads elsewhere; nothing is fetched"
                )));
            }
            let (lfs_sha256, lfs_size) = lfs.map(|lfs| (lfs.sha256, lfs.size)).unzip();
            files.insert(rfilename, Entry { size: lfs_size.or(size), blob_id, lfs_sha256, lfs_size });
        }
        repo.keep(&revision.sha, &files)?;
        Ok((revision.sha, files))
    }

    /// Without network or list: the files that are here, none of a numbered series missing.
    fn found(&self, repo: &Repo, dataset: &Dataset) -> Result<(String, Files), HubError> {
        let commit =
            repo.commit().or_else(|| repo.only_snapshot()).ok_or_else(|| self.offline(dataset, "it is".to_string()))?;
        let found = repo.found(&commit);
        let paths: Vec<&str> = found.iter().map(String::as_str).collect();
        let wanted = match dataset.select(&paths) {
            Ok(wanted) => wanted,
            Err(_) if found.is_empty() => return Err(self.offline(dataset, "its files are".to_string())),
            Err(reason) => {
                let missing = format!("in {} {reason}", self.cache.display());
                return Err(HubError::Offline { repo: dataset.repo().to_string(), missing });
            }
        };
        // `data/train-00000-of-00004.parquet`: what the files of a series have in common, and how many there should be.
        let series = |path: &&str| {
            let (start, end) = path.rsplit_once("-of-")?;
            let n = end.get(..5)?.parse::<usize>().ok()?;
            Some((start.rsplit_once('-')?.0.to_string(), n))
        };
        let mut counts = BTreeMap::new();
        wanted.iter().filter_map(series).for_each(|series| *counts.entry(series).or_insert(0) += 1);
        match counts.into_iter().find(|((_, n), here)| here < n) {
            Some(((_, n), here)) => Err(self.offline(dataset, format!("{} of its {n} files are", n - here))),
            None => Ok((commit, found.into_iter().map(|path| (path, Entry::default())).collect())),
        }
    }

    fn offline(&self, dataset: &Dataset, missing: String) -> HubError {
        let missing = format!("{missing} not in {}", self.cache.display());
        HubError::Offline { repo: dataset.repo().to_string(), missing }
    }

    /// Size and entity tag of a file that the list says too little of.
    fn ask(&self, url: &str, watch: &mut Watch) -> Result<Blob, HubError> {
        let mut retry = self.retry();
        let request = Request { url: url.to_string(), from: 0, head_only: true, token: self.token.clone() };
        let head = loop {
            match self.send(request.clone()).next(&mut || watch.tell(None)) {
                Ok(Part::Head(head)) if head.status == 200 => break head,
                Ok(Part::Head(head)) => retry.wait(Fault::Status(Box::new(head)), url, false, watch)?,
                Ok(_) => retry.wait(Fault::Broken("no headers".to_string()), url, false, watch)?,
                Err(fault) => retry.wait(fault, url, false, watch)?,
            }
        };
        let check = |etag: &String| if cache::is_hex(etag, 64) { Check::Sha256(etag.clone()) } else { Check::SizeOnly };
        let check = head.linked_etag.as_ref().map_or(Check::SizeOnly, check);
        match (head.linked_etag.or(head.etag), head.linked_size.or(head.length)) {
            (Some(etag), Some(size)) => Ok(Blob { etag, size, check }),
            _ => Err(HubError::Answer {
                url: url.to_string(),
                reason: "no size and entity tag in the headers".to_string(),
            }),
        }
    }

    /// The body of a small answer.
    fn text(&self, url: &str, watch: &mut Watch) -> Result<Vec<u8>, HubError> {
        let mut retry = self.retry();
        'again: loop {
            let request = Request { url: url.to_string(), from: 0, head_only: false, token: self.token.clone() };
            let mut answer = self.send(request);
            let (mut text, mut length) = (Vec::new(), None);
            loop {
                let fault = match answer.next(&mut || watch.tell(None)) {
                    Ok(Part::Head(head)) if head.status == 200 => {
                        self.reached.store(true, Relaxed);
                        length = head.length;
                        continue;
                    }
                    Ok(Part::Bytes(piece)) if text.len() + piece.len() > MAX_LIST => {
                        let reason = format!("a list of files longer than {}", units::bytes(MAX_LIST as u64));
                        return Err(HubError::Answer { url: url.to_string(), reason });
                    }
                    Ok(Part::Bytes(piece)) => {
                        text.extend(piece);
                        continue;
                    }
                    Ok(Part::End) if length.is_some_and(|length| length != text.len() as u64) => {
                        Fault::Broken("the answer is cut short".to_string())
                    }
                    Ok(Part::End) => return Ok(text),
                    Ok(Part::Head(head)) => Fault::Status(Box::new(head)),
                    Err(fault) => fault,
                };
                retry.wait(fault, url, false, watch)?;
                continue 'again;
            }
        }
    }

    fn send(&self, request: Request) -> Answer {
        http::send(&self.agent, request)
    }

    fn retry(&self) -> Retry<'_> {
        Retry::new(self)
    }
}

impl Blob {
    /// As the list has it, if it says all.
    fn of(entry: &Entry) -> Option<Blob> {
        let size = entry.size?;
        match (&entry.lfs_sha256, &entry.blob_id) {
            (Some(sum), _) if cache::is_hex(sum, 64) => {
                Some(Blob { etag: sum.clone(), size, check: Check::Sha256(sum.clone()) })
            }
            (None, Some(id)) if cache::is_hex(id, 40) => {
                Some(Blob { etag: id.clone(), size, check: Check::Git(id.clone()) })
            }
            _ => None,
        }
    }
}

/// The start of a text of unknown length.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
