//! One tensor of a model of the hub, without the rest of its file: the header of the safetensors file, then the range of bytes that the
//! tensor has in it. What has come is kept in memory alone; a connection that breaks goes on where it was.
//!
//! The hub's checksum is of the whole file, so that only sizes can be checked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;

use flashlm_model::io::safetensors::TensorFile;

use super::address::{Address, Kind};
use super::cache::Repo;
use super::http::{Fault, Part, Request};
use super::retry::Retry;
use super::watch::{Progress, Watch};
use super::{Client, HubError, ModelName};
use crate::atomic::AtomicError;

/// The file, where no other is named.
const FILE: &str = "model.safetensors";
/// Longest header of a safetensors file.
const MAX_HEADER: u64 = 16 << 20;
/// Largest tensor.
const MAX_TENSOR: u64 = 2 << 30;

/// Where the bytes of a file come from.
enum Place<'a> {
    /// The cache.
    File(PathBuf),
    /// The hub: the address, and the size that its list says.
    Url(&'a str, Option<u64>),
}

impl Client {
    /// The one tensor of a model whose name is one of `names`, or ends in it after a dot: its shape and values. What `fits` says against a
    /// shape is the error, before anything else is asked for.
    pub fn fetch_tensor(
        &self,
        model: &ModelName,
        names: &[&str],
        fits: &dyn Fn(&[usize]) -> Result<(), String>,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<(Vec<usize>, Vec<f32>), HubError> {
        let (repo, revision) = (model.repo().to_string(), model.revision().to_string());
        let address = Address { kind: Kind::Model, repo, revision };
        let repo = Repo::new(&self.cache, &address);
        let mut watch = Watch::new(address, progress);
        let path = model.file().unwrap_or(FILE);
        let (commit, files) = match repo.commit().and_then(|commit| Some((repo.files(&commit)?, commit))) {
            Some((files, commit)) => (commit, files),
            None if self.offline => return Err(self.missing(&watch.address, format!("{path} is"))),
            None => self.list(&repo, &mut watch)?,
        };
        let no_file = |reason| HubError::NoFiles { repo: watch.address.repo.clone(), reason };
        let entry = files.get(path).ok_or_else(|| no_file(format!("it has no file {path}")))?;
        let url = watch.address.file(&self.endpoint, &commit, path);
        let from = match repo.has(&commit, path, entry.size) {
            true => Place::File(repo.snapshot(&commit).join(path)),
            false if self.offline => return Err(self.missing(&watch.address, format!("{path} is"))),
            false => Place::Url(&url, entry.size),
        };
        watch.file = path.to_string();
        self.tensor(&from, names, fits, &mut watch)
    }

    fn tensor(
        &self,
        from: &Place,
        names: &[&str],
        fits: &dyn Fn(&[usize]) -> Result<(), String>,
        watch: &mut Watch,
    ) -> Result<(Vec<usize>, Vec<f32>), HubError> {
        let shown = match from {
            Place::File(path) => path.display().to_string(),
            Place::Url(url, _) => url.to_string(),
        };
        let bad = |reason: String| HubError::Answer { url: shown.clone(), reason };
        let start = self.bytes(from, (0, 8), Vec::new(), watch)?;
        let length = u64::from_le_bytes(start.try_into().map_err(|_| bad("it ends in its first bytes".into()))?);
        if !(2..=MAX_HEADER).contains(&length) {
            return Err(bad(format!("a header of {length} bytes: this is no safetensors file")));
        }
        let header = self.bytes(from, (8, length), Vec::new(), watch)?;
        type Header = BTreeMap<String, serde_json::Value>;
        let header: Header =
            serde_json::from_slice(&header).map_err(|e| bad(format!("its header is no JSON ({e})")))?;
        let is = |key: &str, name: &str| {
            key.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let found: Vec<&String> = header.keys().filter(|key| names.iter().any(|name| is(key, name))).collect();
        let [key] = found[..] else {
            return Err(bad(format!("it has {} tensors named {}, expected one", found.len(), names.join(" or "))));
        };
        let own = &header[key];
        let offset = |i: usize| own["data_offsets"][i].as_u64();
        let shape: Option<Vec<usize>> =
            own["shape"].as_array().and_then(|all| all.iter().map(|n| usize::try_from(n.as_u64()?).ok()).collect());
        let shape = shape.ok_or_else(|| bad(format!("{key} has no shape")))?;
        fits(&shape).map_err(|reason| bad(format!("{key} {reason}")))?;
        let range = offset(0).zip(offset(1)).filter(|(start, end)| start <= end && end - start <= MAX_TENSOR);
        let place = range.and_then(|(start, end)| Some((start.checked_add(8 + length)?, end - start)));
        let place = place.filter(|(start, length)| start.checked_add(*length).is_some());
        let (start, length) = place.ok_or_else(|| bad(format!("the range of {key} is none, or more than 2 GiB")))?;
        watch.total = length;
        // A file of this tensor alone: the library that reads files checks type and shape.
        let alone = serde_json::json!({key: {"dtype": own["dtype"], "shape": shape, "data_offsets": [0, length]}});
        let mut alone = alone.to_string();
        alone.extend(std::iter::repeat_n(' ', alone.len().next_multiple_of(8) - alone.len()));
        let begun = [&(alone.len() as u64).to_le_bytes(), alone.as_bytes()].concat();
        let file = self.bytes(from, (start, length), begun, watch)?;
        let read =
            TensorFile::from_bytes(file, &shown).and_then(|file| Ok((file.shape(key)?.to_vec(), file.floats(key)?)));
        read.map_err(|e| bad(e.to_string()))
    }

    /// `to` with `length` bytes from `from` on behind it.
    fn bytes(
        &self,
        of: &Place,
        (from, length): (u64, u64),
        mut to: Vec<u8>,
        watch: &mut Watch,
    ) -> Result<Vec<u8>, HubError> {
        let begun = to.len();
        let (url, size) = match of {
            Place::Url(url, size) => (*url, *size),
            Place::File(path) => {
                let mut read = || -> io::Result<usize> {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(from))?;
                    file.take(length).read_to_end(&mut to)
                };
                let read = read().map_err(|e| AtomicError::new(path, "reading", from, e))?;
                return if read as u64 == length { Ok(to) } else { Err(short(&path.display().to_string())) };
            }
        };
        if size.is_some_and(|size| from.saturating_add(length) > size) {
            return Err(short(url));
        }
        let mut retry = Retry::new(self);
        while ((to.len() - begun) as u64) < length {
            let before = to.len();
            let done = (before - begun) as u64;
            if let Err(fault) = self.pull_range(url, (from + done, length - done), (&mut to, begun), watch) {
                retry.wait(fault, url, to.len() > before, watch)?;
            }
        }
        Ok(to)
    }

    /// One request for what is missing of a range, which goes behind what is there; of that `begun` bytes are of another.
    fn pull_range(
        &self,
        url: &str,
        (first, length): (u64, u64),
        (bytes, begun): (&mut Vec<u8>, usize),
        watch: &mut Watch,
    ) -> Result<(), Fault> {
        let token = self.token.clone();
        let (end, mut missing) = (Some(first + length), length);
        let mut answer = self.send(Request { url: url.to_string(), from: first, end, head_only: false, token });
        let mut skip = 0;
        while missing > 0 {
            match answer.next(&mut || watch.tell(None))? {
                Part::Head(head) => {
                    self.reached.store(true, Relaxed);
                    match (head.status, head.range) {
                        (206, Some((start, _))) if start == first => {}
                        // The whole file: what comes before is passed over.
                        (200, _) => skip = first,
                        (206, _) => return Err(Fault::Broken("the server sends another part of the file".into())),
                        _ => return Err(Fault::Status(Box::new(head))),
                    }
                }
                Part::Bytes(piece) => {
                    let passed = skip.min(piece.len() as u64);
                    skip -= passed;
                    let wanted = missing.min(piece.len() as u64 - passed);
                    missing -= wanted;
                    bytes.extend(&piece[passed as usize..(passed + wanted) as usize]);
                    watch.arrived += piece.len() as u64;
                    watch.now = (bytes.len() - begun) as u64;
                    if watch.tell(None).is_break() {
                        return Err(Fault::Stopped);
                    }
                }
                Part::End => return Err(Fault::Broken(format!("it ended {missing} bytes too early"))),
            }
        }
        Ok(())
    }
}

fn short(file: &str) -> HubError {
    HubError::Answer { url: file.to_string(), reason: "it is shorter than its header says".into() }
}
