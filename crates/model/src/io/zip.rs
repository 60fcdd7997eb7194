//! The zip archives that `torch.save` writes: files that are stored, not compressed, in one folder.
//!
//! ```text
//! per file: "PK\3\4" ... sizes u32 u32, length of name u16, of extra u16 | name | extra | data
//! directory, per file: "PK\1\2" ... method, sizes, lengths, place of the file u32 | name | extra | comment
//! end: "PK\5\6" ... number of files u16, size and place of the directory u32 u32, length of comment u16
//! ```
//!
//! A field of all ones stands in a zip64 record as u64. Only the directory is believed, and only where all it names lies inside of
//! the file. Checksums are not looked at: `torch.save` may leave them out. Source: APPNOTE.TXT 6.3.

use std::collections::BTreeMap;
use std::ops::Range;

/// Most files of an archive; a tensor each.
const MAX_FILES: u64 = 100_000;

/// Where the data of each file lies, by its name below the folder that all are in.
pub(super) fn files(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let (count, directory) = directory(bytes)?;
    let mut all = BTreeMap::new();
    let mut folder: Option<String> = None;
    let mut rest = &bytes[directory.clone()];
    for _ in 0..count {
        let cut = || "a directory that is cut off".to_string();
        let entry = rest.first_chunk::<46>().ok_or_else(cut)?;
        if !entry.starts_with(b"PK\x01\x02") {
            return Err("a damaged directory".into());
        }
        let (flags, method) = (u16_at(entry, 8), u16_at(entry, 10));
        let lengths = [28, 30, 32].map(|at| usize::from(u16_at(entry, at)));
        let whole = 46 + lengths.iter().sum::<usize>();
        let entry_bytes = rest.get(..whole).ok_or_else(cut)?;
        let (name, extra) = entry_bytes[46..].split_at(lengths[0]);
        rest = &rest[whole..];
        let name = std::str::from_utf8(name).map_err(|_| "a file whose name is not UTF-8".to_string())?;
        let mut wide = [20, 24, 42].map(|at| u64::from(u32_at(entry, at)));
        zip64(&extra[..lengths[1]], &mut wide)?;
        let [packed, size, place] = wide;
        if flags & 1 != 0 {
            return Err(format!("{name:?} is encrypted"));
        }
        if method != 0 || packed != size {
            return Err(format!("{name:?} is compressed, which `torch.save` never does"));
        }
        let parts: Vec<&str> = name.split('/').collect();
        if name.contains(['\\', '\0', ':']) || parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..")
        {
            return Err(format!("{name:?}, which is no plain path"));
        }
        let (top, below) = name.split_once('/').ok_or_else(|| format!("{name:?}, which is in no folder"))?;
        if folder.get_or_insert_with(|| top.to_string()) != top {
            return Err("more than one folder".into());
        }
        let range = data(bytes, place, size, directory.start, lengths[0])
            .ok_or_else(|| format!("{name:?}, whose data lies outside of the file"))?;
        if all.insert(below.to_string(), range).is_some() {
            return Err(format!("{name:?} twice"));
        }
    }
    Ok(all)
}

/// The range of a file's data, which ends before the directory.
fn data(bytes: &[u8], place: u64, size: u64, end: usize, name: usize) -> Option<Range<usize>> {
    let place = usize::try_from(place).ok()?;
    let local = bytes.get(place..)?.first_chunk::<30>()?;
    if !local.starts_with(b"PK\x03\x04") || usize::from(u16_at(local, 26)) != name {
        return None;
    }
    let start = place.checked_add(30 + name + usize::from(u16_at(local, 28)))?;
    let stop = start.checked_add(usize::try_from(size).ok()?)?;
    (stop <= end).then_some(start..stop)
}

/// The number of files and the range of the directory.
fn directory(bytes: &[u8]) -> Result<(u64, Range<usize>), String> {
    let none = || "no directory at its end".to_string();
    let last = bytes.len().checked_sub(22).ok_or_else(none)?;
    let is_end = |&at: &usize| {
        bytes[at..].starts_with(b"PK\x05\x06") && at + 22 + usize::from(u16_at(bytes, at + 20)) == bytes.len()
    };
    let at = (last.saturating_sub(0xffff)..=last).rev().find(is_end).ok_or_else(none)?;
    let mut found =
        [u64::from(u16_at(bytes, at + 10)), u64::from(u32_at(bytes, at + 12)), u64::from(u32_at(bytes, at + 16))];
    let mut limit = at;
    if found[0] == 0xffff || found[1..].contains(&0xffff_ffff) {
        // "PK\6\7", disk u32, place of the zip64 end u64, disks u32.
        let locator = at.checked_sub(20).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07")).ok_or_else(none)?;
        limit = usize::try_from(u64_at(bytes, locator + 8)).map_err(|_| none())?;
        let record =
            bytes.get(limit..locator).filter(|r| r.len() >= 56 && r.starts_with(b"PK\x06\x06")).ok_or_else(none)?;
        found = [32, 40, 48].map(|at| u64_at(record, at));
    }
    let [count, size, start] = found;
    if count > MAX_FILES {
        return Err(format!("{count} files, expected at most {MAX_FILES}"));
    }
    let outside = || "a directory that lies outside of the file".to_string();
    let end = start.checked_add(size).filter(|&end| end <= limit as u64).ok_or_else(outside)?;
    // Both are below the length of the file.
    Ok((count, start as usize..end as usize))
}

/// Takes from the zip64 record (kind 1) what did not fit the fields: packed size, size and place, kept in the order size, packed
/// size, place.
fn zip64(mut extra: &[u8], wide: &mut [u64; 3]) -> Result<(), String> {
    let damaged = || "a damaged zip64 record".to_string();
    if wide.iter().all(|field| *field != 0xffff_ffff) {
        return Ok(());
    }
    while let Some(head) = extra.first_chunk::<4>() {
        let (kind, length) = (u16_at(head, 0), usize::from(u16_at(head, 2)));
        let mut record = extra.get(4..4 + length).ok_or_else(damaged)?;
        if kind == 1 {
            for i in [1, 0, 2] {
                if wide[i] == 0xffff_ffff {
                    let (value, rest) = record.split_first_chunk::<8>().ok_or_else(damaged)?;
                    (wide[i], record) = (u64::from_le_bytes(*value), rest);
                }
            }
            return Ok(());
        }
        extra = &extra[4 + length..];
    }
    Err(damaged())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
