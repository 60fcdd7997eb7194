//! Thrift's compact protocol, as far as Parquet's metadata needs it: structs of numbered fields, lists, integers, binary.
//!
//! ```text
//! field: one byte, id delta << 4 | type (delta 0: zigzag varint id follows); a struct ends with a 0
//! list:  one byte, length << 4 | type (length 15: varint length follows)
//! ```
//! Nothing is allocated for a length that the input only claims. Source: thrift-compact-protocol.md of Apache Thrift.

use super::fault::Fault;
use std::io::{self, Read};

/// Types of fields.
pub(super) const TRUE: u8 = 1;
pub(super) const FALSE: u8 = 2;
pub(super) const I32: u8 = 5;
pub(super) const I64: u8 = 6;
pub(super) const BINARY: u8 = 8;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;

/// Structs within structs; Parquet's own metadata has six.
const DEPTH: u32 = 32;

/// Reads one message after the other from `input`.
pub(super) struct Thrift<R> {
    input: R,
    depth: u32,
}

type OnField<'a, R> = &'a mut dyn FnMut(&mut Thrift<R>, i64, u8) -> Result<(), Fault>;
type OnItem<'a, R> = &'a mut dyn FnMut(&mut Thrift<R>, u8) -> Result<(), Fault>;

impl<R: Read> Thrift<R> {
    pub fn new(input: R) -> Self {
        Self { input, depth: 0 }
    }

    /// A struct: calls `f` with the id and type of each field, which it must read or skip.
    pub fn fields(&mut self, f: OnField<R>) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault::damaged("its metadata is nested too deeply"));
        }
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head == 0 {
                self.depth -= 1;
                return Ok(());
            }
            id = match head >> 4 {
                0 => self.int()?,
                delta => id.saturating_add(delta.into()),
            };
            f(self, id, head & 15)?;
        }
    }

    /// A list: calls `f` with the type of each item, which it must read or skip.
    pub fn list(&mut self, f: OnItem<R>) -> Result<(), Fault> {
        let head = self.byte()?;
        let length = match head >> 4 {
            15 => self.varint()?,
            n => u64::from(n),
        };
        for _ in 0..length {
            f(self, head & 15)?;
        }
        Ok(())
    }

    /// An integer of any width.
    pub fn int(&mut self) -> Result<i64, Fault> {
        let n = self.varint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// Binary of at most `limit` bytes, as text; what is not UTF-8 is replaced.
    pub fn text(&mut self, limit: u64) -> Result<String, Fault> {
        let length = self.varint()?;
        if length > limit {
            return Err(Fault::damaged(format!("a name in its metadata is {length} bytes long")));
        }
        let mut bytes = Vec::new();
        self.input.by_ref().take(length).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A value of the type, read and forgotten.
    pub fn skip(&mut self, kind: u8) -> Result<(), Fault> {
        match kind {
            TRUE | FALSE => {}
            3 => drop(self.byte()?),
            4 | I32 | I64 => drop(self.varint()?),
            7 => self.pass(8)?,
            BINARY => {
                let length = self.varint()?;
                self.pass(length)?;
            }
            LIST | 10 => self.list(&mut |t, kind| t.skip_item(kind))?,
            11 => {
                let length = self.varint()?;
                let kinds = if length > 0 { self.byte()? } else { 0 };
                for _ in 0..length {
                    self.skip_item(kinds >> 4)?;
                    self.skip_item(kinds & 15)?;
                }
            }
            STRUCT => self.fields(&mut |t, _, kind| t.skip(kind))?,
            _ => return Err(Fault::damaged(format!("its metadata has a value of the unknown type {kind}"))),
        }
        Ok(())
    }

    /// In a list a truth value takes a byte; as a field it is its type.
    fn skip_item(&mut self, kind: u8) -> Result<(), Fault> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Fault::damaged("its metadata is nested too deeply"));
        }
        if matches!(kind, TRUE | FALSE) {
            self.pass(1)?
        } else {
            self.skip(kind)?
        }
        self.depth -= 1;
        Ok(())
    }

    fn pass(&mut self, length: u64) -> Result<(), Fault> {
        let passed = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
        if passed < length { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(()) }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            n |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(n);
            }
        }
        Err(Fault::damaged("a number in its metadata does not end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes worked out by hand from the protocol's definition.
    #[test]
    fn integers_text_and_lists() {
        // {1: i32 -3, 2: i64 300, 20: "ab", 21: true, 22: [i32: 1, -1], 23: [bool: false, true], 24: double, 25: {}}
        let bytes = [
            0x15, 0x05, 0x16, 0xd8, 0x04, 0x08, 0x28, 0x02, b'a', b'b', 0x11, 0x19, 0x25, 0x02, 0x01, 0x19, 0x21, 0x02,
            0x01, 0x17, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x1c, 0x00, 0x00,
        ];
        let mut seen = Vec::new();
        let mut numbers = Vec::new();
        let mut read = Thrift::new(&bytes[..]);
        let mut field = |t: &mut Thrift<&[u8]>, id, kind| {
            seen.push(id);
            match id {
                1 | 2 => numbers.push(t.int()?),
                20 => assert_eq!(t.text(2)?, "ab"),
                22 => t.list(&mut |t, _| {
                    numbers.push(t.int()?);
                    Ok(())
                })?,
                _ => t.skip(kind)?,
            }
            Ok(())
        };
        read.fields(&mut field).unwrap_or_else(|_| panic!());
        assert_eq!((seen, numbers), (vec![1, 2, 20, 21, 22, 23, 24, 25], vec![-3, 300, 1, -1]));
        for end in 0..bytes.len() {
            let mut cut = Thrift::new(&bytes[..end]);
            assert!(cut.fields(&mut |t, _, kind| t.skip(kind)).is_err(), "{end}");
        }
    }

    #[test]
    fn claims_cost_nothing_and_depth_is_bounded() {
        let skip = |bytes: &[u8]| Thrift::new(bytes).fields(&mut |t, _, kind| t.skip(kind)).is_err();
        // Binary of 2^62 bytes, a list of 2^62, structs and lists without end, a number without end.
        assert!(skip(&[0x18, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 1]));
        assert!(skip(&[0x19, 0xf5, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 1]));
        assert!(skip(&[0x1c; 100_000]));
        assert!(skip(&[&[0x19][..], &[0x19; 100_000]].concat()));
        assert!(skip(&[&[0x15][..], &[0xff; 100]].concat()));
        assert!(skip(&[0x1d, 0]));
        // A field after the one of the largest number.
        assert!(!skip(&[0x05, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0x15, 0, 0]));
    }
}
