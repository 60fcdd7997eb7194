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
enum From<'a> {
    /// The cache.
    File(PathBuf),
    /// The hub: the address, and the size that its list says.
    Url(&'a str, Option<u64>),
}

impl Client {
    /// The one tensor of a model whose name is `name`, or ends in it after a dot: its shape and values.
    pub fn fetch_tensor(
        &self,
        model: &ModelName,
        name: &str,
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
            true => From::File(repo.snapshot(&commit).join(path)),
            false if self.offline => return Err(self.missing(&watch.address, format!("{path} is"))),
            false => From::Url(&url, entry.size),
        };
        watch.file = path.to_string();
        self.tensor(&from, name, &mut watch)
    }

    fn tensor(&self, from: &From, name: &str, watch: &mut Watch) -> Result<(Vec<usize>, Vec<f32>), HubError> {
        let shown = match from {
            From::File(path) => path.display().to_string(),
            From::Url(url, _) => url.to_string(),
        };
        let bad = |reason: String| HubError::Answer { url: shown.clone(), reason };
        let start = self.bytes(from, 0, 8, watch)?;
        let length = u64::from_le_bytes(start.try_into().map_err(|_| bad("it ends in its first bytes".into()))?);
        if !(2..=MAX_HEADER).contains(&length) {
            return Err(bad(format!("a header of {length} bytes: this is no safetensors file")));
        }
        let header = self.bytes(from, 8, length, watch)?;
        type Header = BTreeMap<String, serde_json::Value>;
        let header: Header =
            serde_json::from_slice(&header).map_err(|e| bad(format!("its header is no JSON ({e})")))?;
        let found: Vec<&String> = header
            .keys()
            .filter(|key| *key == name || key.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
            .collect();
        let [key] = found[..] else {
            return Err(bad(format!("it has {} tensors named {name}, expected one", found.len())));
        };
        let own = &header[key];
        let offset = |i: usize| own["data_offsets"][i].as_u64();
        let range = offset(0).zip(offset(1)).filter(|(start, end)| start <= end && end - start <= MAX_TENSOR);
        let (first, end) = range.ok_or_else(|| bad(format!("the range of {key} is none, or more than 2 GiB")))?;
        watch.total = end - first;
        let data = self.bytes(from, first.saturating_add(8 + length), end - first, watch)?;
        // The library that reads files checks type and shape.
        let alone =
            serde_json::json!({key: {"dtype": own["dtype"], "shape": own["shape"], "data_offsets": [0, data.len()]}});
        let mut alone = alone.to_string();
        alone.extend(std::iter::repeat_n(' ', alone.len().next_multiple_of(8) - alone.len()));
        let file = [&(alone.len() as u64).to_le_bytes(), alone.as_bytes(), &data].concat();
        let read =
            TensorFile::from_bytes(file, &shown).and_then(|file| Ok((file.shape(key)?.to_vec(), file.floats(key)?)));
        read.map_err(|e| bad(e.to_string()))
    }

    /// `length` bytes from `from` on.
    fn bytes(&self, of: &From, from: u64, length: u64, watch: &mut Watch) -> Result<Vec<u8>, HubError> {
        let (url, size) = match of {
            From::Url(url, size) => (*url, *size),
            From::File(path) => {
                let read = || -> io::Result<Vec<u8>> {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(from))?;
                    let mut bytes = Vec::new();
                    file.take(length).read_to_end(&mut bytes)?;
                    Ok(bytes)
                };
                let bytes = read().map_err(|e| AtomicError::new(path, "reading", from, e))?;
                return if bytes.len() as u64 == length { Ok(bytes) } else { Err(short(&path.display().to_string())) };
            }
        };
        if size.is_some_and(|size| from.saturating_add(length) > size) {
            return Err(short(url));
        }
        let mut bytes: Vec<u8> = Vec::new();
        let mut retry = Retry::new(self);
        while (bytes.len() as u64) < length {
            let before = bytes.len();
            if let Err(fault) = self.pull_range(url, (from, length), &mut bytes, watch) {
                retry.wait(fault, url, bytes.len() > before, watch)?;
            }
        }
        Ok(bytes)
    }

    /// One request for what is missing of a range.
    fn pull_range(
        &self,
        url: &str,
        (from, length): (u64, u64),
        bytes: &mut Vec<u8>,
        watch: &mut Watch,
    ) -> Result<(), Fault> {
        let first = from + bytes.len() as u64;
        let token = self.token.clone();
        let end = Some(from + length);
        let mut answer = self.send(Request { url: url.to_string(), from: first, end, head_only: false, token });
        let mut skip = 0;
        while (bytes.len() as u64) < length {
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
                    let wanted = (length - bytes.len() as u64).min(piece.len() as u64 - passed);
                    bytes.extend(&piece[passed as usize..(passed + wanted) as usize]);
                    watch.arrived += piece.len() as u64;
                    watch.now = bytes.len() as u64;
                    if watch.tell(None).is_break() {
                        return Err(Fault::Stopped);
                    }
                }
                Part::End => return Err(Fault::Broken(format!("it ended after {} of {length} bytes", bytes.len()))),
            }
        }
        Ok(())
    }
}

fn short(file: &str) -> HubError {
    HubError::Answer { url: file.to_string(), reason: "it is shorter than its header says".into() }
}
