//! Event files for TensorBoard: the scalars of a run, `events.out.tfevents.<seconds>.<host>` in a folder.
//!
//! A file is a row of TFRecords, all little-endian: `len: u64, masked(crc(len)): u32, data, masked(crc(data)): u32`,
//! where `masked(c) = rotate_right(c, 15) + 0xa282ead8` and crc is CRC-32C (Castagnoli, reflected 0x82f63b78).
//! Each `data` is a protobuf `Event { 1: double wall_time, 2: int64 step, 3: string file_version | 5: Summary |
//! 7: SessionLog }` with `Summary { 1: repeated Value { 1: string tag, 2: float simple_value } }` and
//! `SessionLog { 1: status }`. Sources: tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer.h.
//! A resumed run opens a file of its own whose start mark makes TensorBoard forget what the dead run wrote past the step.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flashlm_model::io::protobuf::Message;

use super::{Append, LogError, Row};

/// What the first event of a file says; from version 2 on, start marks are obeyed.
const VERSION: &[u8] = b"brain.Event:2";

/// An event file of a run, open for appending.
#[derive(Debug)]
pub struct Events {
    file: Append,
}

impl Events {
    /// Starts the event file of a new run; makes the folder if need be.
    pub fn create(folder: &Path) -> Result<Self, LogError> {
        fs::create_dir_all(folder).map_err(LogError::io("create", folder))?;
        let now = wall_time();
        let file = open_new(folder, now as u64, &host())?;
        let mut events = Events { file };
        events.write(&Message::default().double(1, now).bytes(3, VERSION))?;
        Ok(events)
    }

    /// Starts the event file of a run resumed after `step`; what earlier files hold past it is no longer shown.
    pub fn resume(folder: &Path, step: u64) -> Result<Self, LogError> {
        let mut events = Self::create(folder)?;
        let start = Message::default().varint(1, 1);
        events.write(&event(wall_time(), step.saturating_add(1)).bytes(7, &start))?;
        Ok(events)
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Writes the scalars of a row; samples have none.
    pub fn append(&mut self, row: &Row) -> Result<(), LogError> {
        let summary = match row {
            Row::Train(r) => scalars(&[
                ("train/loss", r.loss),
                ("train/lr", r.lr),
                ("train/grad_norm", r.grad_norm),
                ("train/tokens_per_second", r.tokens_per_second),
            ]),
            Row::Eval(r) => scalars(&[("valid/loss", r.loss), ("valid/bpb", r.bpb)]),
            Row::Sample(_) => return Ok(()),
        };
        self.write(&event(wall_time(), row.step()).bytes(5, &summary))
    }

    fn write(&mut self, event: &Message) -> Result<(), LogError> {
        self.file.write(&record(event.as_bytes()))
    }
}

fn event(wall_time: f64, step: u64) -> Message {
    Message::default().double(1, wall_time).varint(2, step)
}

fn scalars(values: &[(&str, f64)]) -> Message {
    values.iter().fold(Message::default(), |summary, &(tag, v)| {
        let value = Message::default().bytes(1, tag).float(2, v as f32);
        summary.bytes(1, &value)
    })
}

/// One TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

fn wall_time() -> f64 {
    // A clock before 1970 is no reason to stop a run.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Never an existing file: two runs begun in one second get names of their own.
fn open_new(folder: &Path, seconds: u64, host: &str) -> Result<Append, LogError> {
    let base = format!("events.out.tfevents.{seconds}.{host}");
    let mut path = folder.join(&base);
    let mut copies = 0;
    loop {
        match Append::open(&path, OpenOptions::new().create_new(true)) {
            Err(LogError::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists && copies < 1000 => {
                copies += 1;
                path = folder.join(format!("{base}.{copies}"));
            }
            other => return other,
        }
    }
}

/// The machine's name as far as it is fit for a file name.
fn host() -> String {
    let name = ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect();
    if name.is_empty() { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::super::{EvalRow, SampleRow, TrainRow};
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// RFC 3720, appendix B.4, and the check value of the CRC catalogues.
    #[test]
    fn crc32c_of_the_rfc() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        let mut command = [0; 48];
        for (at, byte) in [(0, 0x01), (1, 0xc0), (16, 0x14), (22, 0x04), (27, 0x14), (31, 0x18), (32, 0x28), (40, 0x02)]
        {
            command[at] = byte;
        }
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&up), 0x46dd_794e);
        assert_eq!(crc32c(&down), 0x113f_db5c);
        assert_eq!(crc32c(&command), 0xd996_3a56);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The bytes the Python package `tensorboard` 2.21 writes for the same events (`RecordWriter`, `event_pb2`).
    #[test]
    fn records_equal_those_of_tensorboard() {
        let version = Message::default().double(1, 1234.5).bytes(3, VERSION);
        assert_eq!(
            hex(&record(version.as_bytes())),
            "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a3265b8d3fb"
        );
        let values = scalars(&[("valid/loss", 1.98), ("valid/bpb", 0.731)]);
        assert_eq!(
            hex(&record(event(1234.5, 300).bytes(5, &values).as_bytes())),
            "33000000000000000ca720560900000000004a934010ac022a250a110a0a76616c69642f6c6f7373\
             15a470fd3f0a100a0976616c69642f62706215d1223b3f1831a5fc"
        );
        let start = Message::default().varint(1, 1);
        assert_eq!(
            hex(&record(event(1234.5, 301).bytes(7, &start).as_bytes())),
            "100000000000000095fbfe180900000000004a934010ad023a020801c02893a5"
        );
    }

    /// The fields of a protobuf message of the kinds used here: (field number, value bytes).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    out.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        out
    }

    /// The events of a file, its framing checked: (step, tag, value).
    fn scalars_of(path: &Path) -> Vec<(u64, String, f32)> {
        let file = fs::read(path).unwrap();
        let mut rest = &file[..];
        let mut out = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            assert_eq!(after[..4], masked(crc32c(length)).to_le_bytes());
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let (data, after) = after[4..].split_at(length);
            assert_eq!(after[..4], masked(crc32c(data)).to_le_bytes());
            rest = &after[4..];
            let mut step = 0;
            for (field, value) in fields(data) {
                match field {
                    2 => step = u64::from_le_bytes(value.try_into().unwrap()),
                    5 => {
                        for (_, scalar) in fields(&value) {
                            let scalar = fields(&scalar);
                            let tag = String::from_utf8(scalar[0].1.clone()).unwrap();
                            let value = f32::from_le_bytes(scalar[1].1[..].try_into().unwrap());
                            out.push((step, tag, value));
                        }
                    }
                    _ => {}
                }
            }
        }
        out
    }

    #[test]
    fn a_run_and_its_continuation() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("events");
        let train = Row::Train(TrainRow {
            step: 200,
            loss: 2.5,
            lr: 0.25,
            grad_norm: f64::NAN,
            tokens: 1,
            tokens_per_second: 1024.0,
            elapsed: 1.0,
            epoch: 1.0,
            seq_len: 8,
            stage: 1,
            sources: Default::default(),
            waited: Vec::new(),
        });
        let eval = Row::Eval(EvalRow { step: 1 << 40, tokens: 1, elapsed: 1.0, loss: 2.0, bpb: 0.75, best: true });
        let sample = Row::Sample(SampleRow { step: 3, prompt: String::new(), text: String::new() });
        let mut first = Events::create(&folder).unwrap();
        first.append(&train).unwrap();
        first.append(&sample).unwrap();
        let mut second = Events::resume(&folder, 200).unwrap();
        second.append(&eval).unwrap();
        assert_ne!(first.path(), second.path());
        let name = first.path().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.1") || name.starts_with("events.out.tfevents.2"), "{name}");
        let (a, b) = (scalars_of(first.path()), scalars_of(second.path()));

        let tags: Vec<_> = a.iter().map(|(step, tag, _)| (*step, tag.as_str())).collect();
        let expected = ["train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second"];
        assert_eq!(tags, expected.map(|tag| (200, tag)));
        assert_eq!([a[0].2, a[1].2, a[3].2], [2.5, 0.25, 1024.0]);
        assert!(a[2].2.is_nan());
        assert_eq!(b, [(1 << 40, "valid/loss".into(), 2.0), (1 << 40, "valid/bpb".into(), 0.75)]);
    }
}
