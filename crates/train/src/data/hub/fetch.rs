//! A dataset or model fetched: its list of files, what of them is here, and the rest downloaded.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;

use super::address::{Address, Kind};
use super::cache::{self, Entry, Files, MAX_FILES, MAX_LIST, Repo};
use super::download::{Blob, Check};
use super::http::{Fault, Part, Request};
use super::retry::Retry;
use super::watch::{Progress, Watch};
use super::{Client, Dataset, HubError, ModelName};
use crate::units;

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

/// Files of a repository that are here now.
struct Here {
    root: PathBuf,
    /// Those that were wanted.
    wanted: Vec<String>,
    /// All that there are.
    all: Vec<String>,
}

/// Which of the files of a repository are wanted; else what it has instead.
type Select<'a> = &'a dyn Fn(&[&str]) -> Result<Vec<String>, String>;

impl Client {
    /// Makes sure that all files of a dataset are here.
    pub fn fetch(
        &self,
        dataset: &Dataset,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Fetched, HubError> {
        let (kind, revision) = (Kind::Dataset, "main".to_string());
        let address = Address { kind, repo: dataset.repo().to_string(), revision };
        let select = |files: &[&str]| Ok(dataset.select(files)?.into_iter().map(String::from).collect::<Vec<String>>());
        let Here { root, wanted, all } = self.files(address, &select, progress)?;
        let paths: Vec<&str> = all.iter().map(String::as_str).collect();
        let files = wanted.iter().map(|path| root.join(path)).collect();
        Ok(Fetched { root, files, validation: dataset.validation(&paths) })
    }

    /// Makes sure that all files of a model are here: its folder, or the file that it is.
    pub fn fetch_model(
        &self,
        model: &ModelName,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<PathBuf, HubError> {
        let (repo, revision) = (model.repo().to_string(), model.revision().to_string());
        let address = Address { kind: Kind::Model, repo, revision };
        let Here { root, all, .. } = self.files(address, &|files| Ok(model.select(files)?.files), progress)?;
        let paths: Vec<&str> = all.iter().map(String::as_str).collect();
        // It was selected before.
        let file = model.select(&paths).ok().and_then(|parts| parts.model);
        Ok(file.map_or(root.clone(), |file| root.join(file)))
    }

    fn files(
        &self,
        address: Address,
        select: Select,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Here, HubError> {
        let repo = Repo::new(&self.cache, &address);
        let mut watch = Watch::new(address, progress);
        let (commit, files) = match repo.commit().and_then(|commit| Some((repo.files(&commit)?, commit))) {
            Some((files, commit)) => (commit, files),
            None if self.offline => self.found(&repo, &watch.address, select)?,
            None => self.list(&repo, &mut watch)?,
        };
        let paths: Vec<&str> = files.keys().map(String::as_str).collect();
        let no_files = |reason| HubError::NoFiles { repo: watch.address.repo.clone(), reason };
        let wanted = select(&paths).map_err(no_files)?;
        let size = |path: &str| files[path].size;
        let here = |path: &&str| !repo.has(&commit, path, size(path));
        let missing: Vec<&str> = wanted.iter().map(String::as_str).filter(here).collect();
        if let (true, [first, ..]) = (self.offline, missing.as_slice()) {
            let more = if missing.len() > 1 {
                format!(" and {} more files are", missing.len() - 1)
            } else {
                " is".to_string()
            };
            return Err(self.missing(&watch.address, format!("{first}{more}")));
        }
        self.download(&repo, &commit, &missing, &files, &mut watch)?;
        Ok(Here { root: repo.snapshot(&commit), wanted, all: files.keys().cloned().collect() })
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
            let url = watch.address.file(&self.endpoint, commit, path);
            let blob = match Blob::of(&files[*path]) {
                Some(blob) => blob,
                None => self.ask(&url, watch)?,
            };
            if !cache::is_name(&blob.etag) {
                return Err(HubError::Answer {
                    url,
                    reason: format!("the entity tag {:?} cannot be a file name", blob.etag),
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
    pub(super) fn list(&self, repo: &Repo, watch: &mut Watch) -> Result<(String, Files), HubError> {
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
        let url = watch.address.list(&self.endpoint);
        let text = self.text(&url, watch)?;
        let bad = |reason: String| HubError::Answer { url: url.clone(), reason };
        let revision: Revision =
            serde_json::from_slice(&text).map_err(|e| bad(format!("this is not the hub's list of files ({e})")))?;
        if !cache::is_hex(&revision.sha, 40) {
            return Err(bad(format!("{:?} is not a commit", short(&revision.sha))));
        }
        let asked = &watch.address.revision;
        if cache::is_hex(asked, 40) && *asked != revision.sha {
            return Err(bad(format!("commit {} was asked for, and {} is told", asked, revision.sha)));
        }
        if revision.siblings.len() > MAX_FILES {
            return Err(bad(format!("a list of {} files, more than {MAX_FILES}", revision.siblings.len())));
        }
        let mut files = Files::new();
        for Sibling { rfilename, size, blob_id, lfs } in revision.siblings {
            if !cache::is_safe(&rfilename) {
                let name = short(&rfilename);
                return Err(bad(format!(
                    "the list has a file {name:?}, whose path leads out of the folder; nothing was fetched"
                )));
            }
            let (lfs_sha256, lfs_size) = lfs.map(|lfs| (lfs.sha256, lfs.size)).unzip();
            files.insert(rfilename, Entry { size: lfs_size.or(size), blob_id, lfs_sha256, lfs_size });
        }
        repo.keep(&revision.sha, &files)?;
        Ok((revision.sha, files))
    }

    /// Without network or list: the files that are here, none of a numbered series missing.
    fn found(&self, repo: &Repo, address: &Address, select: Select) -> Result<(String, Files), HubError> {
        let commit =
            repo.commit().or_else(|| repo.only_snapshot()).ok_or_else(|| self.missing(address, "it is".to_string()))?;
        let found = repo.found(&commit);
        let paths: Vec<&str> = found.iter().map(String::as_str).collect();
        let wanted = match select(&paths) {
            Ok(wanted) => wanted,
            Err(_) if found.is_empty() => return Err(self.missing(address, "its files are".to_string())),
            Err(reason) => {
                let missing = format!("in {} {reason}", self.cache.display());
                return Err(HubError::Offline { repo: address.repo.clone(), missing, instead: address.instead() });
            }
        };
        // `data/train-00000-of-00004.parquet`: what the files of a series have in common, and how many there should be.
        let series = |path: &String| {
            let (start, end) = path.rsplit_once("-of-")?;
            let n = end.get(..5)?.parse::<usize>().ok()?;
            Some((start.rsplit_once('-')?.0.to_string(), n))
        };
        let mut counts = BTreeMap::new();
        wanted.iter().filter_map(series).for_each(|series| *counts.entry(series).or_insert(0) += 1);
        match counts.into_iter().find(|((_, n), here)| here < n) {
            Some(((_, n), here)) => Err(self.missing(address, format!("{} of its {n} files are", n - here))),
            None => Ok((commit, found.into_iter().map(|path| (path, Entry::default())).collect())),
        }
    }

    pub(super) fn missing(&self, address: &Address, missing: String) -> HubError {
        let missing = format!("{missing} not in {}", self.cache.display());
        HubError::Offline { repo: address.repo.clone(), missing, instead: address.instead() }
    }

    /// Size and entity tag of a file that the list says too little of.
    fn ask(&self, url: &str, watch: &mut Watch) -> Result<Blob, HubError> {
        let mut retry = Retry::new(self);
        let request = Request { url: url.to_string(), from: 0, end: None, head_only: true, token: self.token.clone() };
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
                reason: "the headers have no size and entity tag".to_string(),
            }),
        }
    }

    /// The body of a small answer.
    fn text(&self, url: &str, watch: &mut Watch) -> Result<Vec<u8>, HubError> {
        let mut retry = Retry::new(self);
        'again: loop {
            let request =
                Request { url: url.to_string(), from: 0, end: None, head_only: false, token: self.token.clone() };
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
}

/// The start of a text of unknown length.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
