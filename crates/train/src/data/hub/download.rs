//! One blob: fetched into `blobs/ETAG.incomplete`, from where that ends if it is there already, checked, and named.
//!
//! Checked are the size and a checksum of the content: SHA-256 of a large file (git LFS), else git's own,
//! `SHA-1("blob SIZE\0" + content)`. A part that turns out wrong is thrown away and fetched once more from the start.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::cache::{Entry, Repo, is_hex, is_whole, make_parent};
use super::http::{Fault, Part, Request};
use super::retry::Retry;
use super::watch::Watch;
use super::{Client, HubError};
use crate::atomic::AtomicError;

/// What a blob must be.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    pub etag: String,
    pub size: u64,
    pub check: Check,
}

/// How its content is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Sha256(String),
    Git(String),
    /// The server names no checksum.
    SizeOnly,
}

/// The part that is there, on disk and in the checksum.
struct Partial<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    blob: &'a Blob,
    sum: Context,
}

impl Partial<'_> {
    /// Opens what an earlier attempt left.
    fn open<'a>(path: &'a Path, blob: &'a Blob) -> Result<Partial<'a>, HubError> {
        make_parent(path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|e| AtomicError::new(path, "opening", 0, e))?;
        let mut partial = Partial { path, file, len: 0, blob, sum: blob.context() };
        let mut piece = vec![0; 1 << 20];
        loop {
            match partial.file.read(&mut piece).map_err(|e| partial.failed(e))? {
                0 => return Ok(partial),
                n if partial.len + n as u64 > blob.size => {
                    partial.restart()?;
                    return Ok(partial);
                }
                n => {
                    partial.sum.update(&piece[..n]);
                    partial.len += n as u64;
                }
            }
        }
    }

    fn restart(&mut self) -> Result<(), HubError> {
        let empty = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        empty.map_err(|e| self.failed(e))?;
        self.len = 0;
        self.sum = self.blob.context();
        Ok(())
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), HubError> {
        if let Err(e) = self.file.write_all(piece) {
            // What of the piece was written is no part of `len`; the next attempt counts anew.
            return Err(self.failed(e));
        }
        self.sum.update(piece);
        self.len += piece.len() as u64;
        Ok(())
    }

    fn failed(&self, e: std::io::Error) -> HubError {
        AtomicError::new(self.path, "writing", self.len, e).into()
    }

    /// The checksum found, if it is not the one that it should be.
    fn wrong(&self) -> Option<(String, String)> {
        let expected = match &self.blob.check {
            Check::Sha256(sum) | Check::Git(sum) => sum,
            Check::SizeOnly => return None,
        };
        let found: String = self.sum.clone().finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
        (found != *expected).then(|| (expected.clone(), found))
    }
}

impl Blob {
    /// As the list has it, if it says all.
    pub fn of(entry: &Entry) -> Option<Blob> {
        let size = entry.size?;
        match (&entry.lfs_sha256, &entry.blob_id) {
            (Some(sum), _) if is_hex(sum, 64) => {
                Some(Blob { etag: sum.clone(), size, check: Check::Sha256(sum.clone()) })
            }
            (None, Some(id)) if is_hex(id, 40) => Some(Blob { etag: id.clone(), size, check: Check::Git(id.clone()) }),
            _ => None,
        }
    }

    fn context(&self) -> Context {
        match self.check {
            Check::Git(_) => {
                let mut sum = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                sum.update(format!("blob {}\0", self.size).as_bytes());
                sum
            }
            _ => Context::new(&SHA256),
        }
    }
}

impl Client {
    /// Makes sure that a blob is in the cache.
    pub(super) fn blob(&self, repo: &Repo, url: &str, blob: &Blob, watch: &mut Watch) -> Result<(), HubError> {
        let _lock =
            repo.lock(&blob.etag, &mut || watch.tell(Some("waiting for another process that is fetching it")))?;
        let path = repo.blob(&blob.etag);
        if is_whole(&path, Some(blob.size)) {
            return Ok(());
        }
        let incomplete = path.with_file_name(format!("{}.incomplete", blob.etag));
        let mut partial = Partial::open(&incomplete, blob)?;
        watch.now = partial.len;
        let mut retry = Retry::new(self);
        let (mut furthest, mut damaged) = (partial.len, false);
        loop {
            while partial.len < blob.size {
                if let Err(fault) = self.pull(url, &mut partial, watch)? {
                    let progress = partial.len > furthest;
                    furthest = furthest.max(partial.len);
                    retry.wait(fault, url, progress, watch)?;
                }
            }
            let Some((expected, found)) = partial.wrong() else { break };
            partial.restart()?;
            if std::mem::replace(&mut damaged, true) {
                let _ = fs::remove_file(&incomplete);
                return Err(HubError::Checksum { url: url.to_string(), expected, found });
            }
            watch.note("the checksum is wrong: fetching the file again from the start");
        }
        partial.file.sync_all().map_err(|e| partial.failed(e))?;
        repo.publish(&incomplete, &blob.etag)
    }

    /// One request for what is missing. The outer error is of this machine, the inner one of the network.
    fn pull(&self, url: &str, partial: &mut Partial, watch: &mut Watch) -> Result<Result<(), Fault>, HubError> {
        let blob = partial.blob;
        let broken = |text: String| Ok(Err(Fault::Broken(text)));
        let request =
            Request { url: url.to_string(), from: partial.len, end: None, head_only: false, token: self.token.clone() };
        let mut answer = self.send(request);
        loop {
            match answer.next(&mut || watch.tell(None)) {
                Err(Fault::Broken(cause)) if partial.len > 0 => {
                    return broken(format!(
                        "the connection broke after {} of {} bytes ({cause})",
                        partial.len, blob.size
                    ));
                }
                Err(fault) => return Ok(Err(fault)),
                Ok(Part::Head(head)) => {
                    self.reached.store(true, Relaxed);
                    let from = head.range.map_or(0, |(start, _)| start);
                    match head.status {
                        206 if from != partial.len
                            || head.range.is_none_or(|range| range.1.is_some_and(|n| n != blob.size)) =>
                        {
                            return broken(format!(
                                "the server sends another part of the file, not the bytes from {} on",
                                partial.len
                            ));
                        }
                        206 => {}
                        // The whole file, asked for or not.
                        200 => partial.restart()?,
                        416 => {
                            partial.restart()?;
                            return broken("the server does not have the rest of the file".to_string());
                        }
                        _ => return Ok(Err(Fault::Status(Box::new(head)))),
                    }
                    if let Some(etag) = head.linked_etag.filter(|etag| *etag != blob.etag) {
                        return Ok(Err(Fault::Refused(format!("it is now {etag}, where the list says {}", blob.etag))));
                    }
                    let whole = head.length.map(|rest| rest.saturating_add(partial.len));
                    if let Some(size) = head.linked_size.into_iter().chain(whole).find(|size| *size != blob.size) {
                        return broken(format!("the server announces {size} bytes, where the list says {}", blob.size));
                    }
                }
                Ok(Part::Bytes(piece)) if piece.len() as u64 > blob.size - partial.len => {
                    return broken(format!("the server sends more than the {} bytes of the file", blob.size));
                }
                Ok(Part::Bytes(piece)) => {
                    partial.push(&piece)?;
                    watch.arrived += piece.len() as u64;
                    watch.now = partial.len;
                    if watch.tell(None).is_break() {
                        return Ok(Err(Fault::Stopped));
                    }
                }
                Ok(Part::End) if partial.len < blob.size => {
                    return broken(format!("the file ended after {} of {} bytes", partial.len, blob.size));
                }
                Ok(Part::End) => return Ok(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::Folder;

    #[test]
    fn checksums_are_those_of_git_and_lfs() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let folder = Folder::new();
        let path = folder.file("x.incomplete", "hello\n");
        for (etag, check) in [(git, Check::Git(git.to_string())), (sha, Check::Sha256(sha.to_string()))] {
            let blob = Blob { etag: etag.to_string(), size: 6, check };
            let mut partial = Partial::open(&path, &blob).unwrap();
            assert_eq!((partial.len, partial.wrong()), (6, None));
            partial.restart().unwrap();
            partial.push(b"hel").unwrap();
            assert_eq!(partial.wrong().unwrap().0, etag);
            partial.push(b"lo\n").unwrap();
            assert_eq!(partial.wrong(), None);
            // What is longer than the file can be is no part of it.
            let short = Blob { size: 5, ..blob };
            assert_eq!(Partial::open(&path, &short).unwrap().len, 0);
            folder.file("x.incomplete", "hello\n");
        }
    }
}
