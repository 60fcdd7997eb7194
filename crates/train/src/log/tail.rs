//! What a log holds from a place on, while the run still writes it.
//!
//! A [`Mark`] is a place between two lines: their offset in bytes, and XXH3-64 of up to 64 bytes before it. Where these are others,
//! as after a resume from an earlier step, reading begins anew. A last line without its end is left for the next time; lines that
//! are no rows are counted and passed over.

use std::fmt;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::str::FromStr;

use flashlm_model::io::{self as model_io, IoError};
use xxhash_rust::xxh3::xxh3_64;

use super::jsonl::MAX_LINE;
use super::{LogError, Row};

/// Bytes that are read at once; the longest line fits.
const ROOM: usize = MAX_LINE + 1;
/// Bytes before a mark that tell one log from another.
const BEFORE: u64 = 64;

/// A place in a log; as text `OFFSET-HASH`, both hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    at: u64,
    hash: u64,
}

impl Mark {
    /// The beginning of any log.
    pub fn start() -> Mark {
        Mark { at: 0, hash: xxh3_64(b"") }
    }

    /// The mark at a place of a file.
    fn of(file: &mut (impl Read + Seek), at: u64) -> std::io::Result<Mark> {
        let mut before = Vec::new();
        file.seek(SeekFrom::Start(at.saturating_sub(BEFORE)))?;
        file.take(at.min(BEFORE)).read_to_end(&mut before)?;
        Ok(Mark { at, hash: xxh3_64(&before) })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:x}-{:016x}", self.at, self.hash)
    }
}

impl FromStr for Mark {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Mark, Self::Err> {
        let (at, hash) = text.split_once('-').unwrap_or((text, ""));
        Ok(Mark { at: u64::from_str_radix(at, 16)?, hash: u64::from_str_radix(hash, 16)? })
    }
}

/// Rows of a log.
#[derive(Debug, PartialEq)]
pub struct Piece {
    /// The rows.
    pub rows: Vec<Row>,
    /// Where the next piece begins.
    pub next: Mark,
    /// Whether this is the beginning of the log: rows that were read before are of another.
    pub anew: bool,
    /// Whether there may be more to read at once.
    pub more: bool,
    /// Lines that are no rows.
    pub damaged: usize,
}

/// The rows after a mark, at most about a MiB of them; of a log that is not there yet, none.
pub fn tail(path: &Path, after: Mark) -> Result<Piece, LogError> {
    let failed = || LogError::io("read", path);
    let (mut file, about) = match model_io::open(path) {
        Ok(opened) => opened,
        Err(IoError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
            return Ok(Piece { rows: Vec::new(), next: Mark::start(), anew: true, more: false, damaged: 0 });
        }
        Err(error) => return Err(error.into()),
    };
    let known = after.at <= about.len() && Mark::of(&mut file, after.at).map_err(failed())? == after;
    let after = if known { after } else { Mark::start() };
    file.seek(SeekFrom::Start(after.at)).map_err(failed())?;
    let mut bytes = Vec::new();
    Read::take(&mut file, ROOM as u64).read_to_end(&mut bytes).map_err(failed())?;
    let more = bytes.len() == ROOM;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    if more && whole == 0 {
        return Err(LogError::Endless { path: path.to_path_buf(), at: after.at, limit: MAX_LINE });
    }
    let (mut rows, mut damaged) = (Vec::new(), 0);
    for line in bytes[..whole].split_inclusive(|&byte| byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(row) => rows.push(row),
            Err(_) => damaged += 1,
        }
    }
    let next = Mark::of(&mut file, after.at + whole as u64).map_err(failed())?;
    Ok(Piece { rows, next, anew: after.at == 0, more, damaged })
}

#[cfg(test)]
mod tests {
    use super::super::SampleRow;
    use super::super::jsonl::{Metrics, read};
    use super::*;
    use std::fs;

    fn sample(step: u64, text: &str) -> Row {
        Row::Sample(SampleRow { step, prompt: String::new(), text: text.into() })
    }

    fn line(row: &Row) -> String {
        serde_json::to_string(row).unwrap() + "\n"
    }

    #[test]
    fn pieces_are_together_what_the_whole_is_wherever_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let rows: Vec<Row> = (0..6).map(|step| sample(step, &"é".repeat(step as usize * 9))).collect();
        let text: String = rows.iter().map(line).collect();
        for cut in 0..=text.len() {
            fs::write(&path, &text.as_bytes()[..cut]).unwrap();
            let first = tail(&path, Mark::start()).unwrap();
            fs::write(&path, &text).unwrap();
            let mark: Mark = first.next.to_string().parse().unwrap();
            let second = tail(&path, mark).unwrap();
            assert_eq!([first.rows, second.rows].concat(), rows, "cut at {cut}");
            assert_eq!((second.anew, second.more, second.damaged), (mark == Mark::start(), false, 0));
            assert_eq!(tail(&path, second.next).unwrap().rows, []);
        }
        assert_eq!(read(&path).unwrap(), rows);
    }

    #[test]
    fn a_log_that_is_another_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("metrics.jsonl"), folder.path().join("aside"));
        assert_eq!(tail(&path, Mark { at: 9, hash: 9 }).unwrap().next, Mark::start(), "not there yet");
        let rows = [sample(1, "a"), sample(2, "b"), sample(3, "c")];
        fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
        let seen = tail(&path, Mark::start()).unwrap();
        let mut log = Metrics::resume(&path, 1, &aside).unwrap().metrics;
        // Shorter than before, then longer.
        for row in [sample(2, "other"), sample(3, "other"), sample(4, "other")] {
            log.append(&row).unwrap();
            let piece = tail(&path, seen.next).unwrap();
            assert!(piece.anew, "{row:?}");
            assert_eq!(piece.rows, read(&path).unwrap());
        }
    }

    #[test]
    fn lines_that_are_no_rows_are_passed_over_and_long_logs_come_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let good = line(&sample(1, "x"));
        fs::write(&path, [b"\xff{\n\n", good.as_bytes(), b"{}\n", good.as_bytes()].concat()).unwrap();
        let piece = tail(&path, Mark::start()).unwrap();
        assert_eq!((piece.rows.len(), piece.damaged), (2, 3));
        let rows: Vec<Row> = (0..40).map(|step| sample(step, &"y".repeat(100_000))).collect();
        fs::write(&path, rows.iter().map(line).collect::<String>()).unwrap();
        let (mut mark, mut found) = (Mark::start(), Vec::new());
        loop {
            let piece = tail(&path, mark).unwrap();
            found.extend(piece.rows);
            mark = piece.next;
            if !piece.more {
                break;
            }
        }
        assert_eq!(found, rows);
        fs::write(&path, vec![b' '; ROOM]).unwrap();
        let error = tail(&path, Mark::start()).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl") && error.contains("1048576"), "{error}");
        for bad in ["", "-", "1", "x-0", "-1-0", "ffffffffffffffffff-0", "1-10000000000000000"] {
            assert!(bad.parse::<Mark>().is_err(), "{bad}");
        }
        fs::write(&path, &good).unwrap();
        let piece = tail(&path, "ffffffffffffffff-0".parse().unwrap()).unwrap();
        assert!(piece.anew && piece.rows.len() == 1, "far past the end");
    }
}
