//! The header of a page: what the rest needs of it.

use super::fault::Fault;
use super::thrift::{I32, STRUCT, TRUE, Thrift};
use std::io::Read;

#[derive(Default)]
pub(super) struct Header {
    pub kind: i64,
    pub size: i64,
    pub compressed: i64,
    pub values: i64,
    pub encoding: i64,
    pub level_encoding: i64,
    pub v2: Option<V2>,
}

pub(super) struct V2 {
    pub levels: i64,
    pub repetition: i64,
    pub compressed: bool,
}

/// Reads one.
pub(super) fn read<R: Read>(input: R) -> Result<Header, Fault> {
    let mut h = Header::default();
    Thrift::new(input).fields(&mut |t, id, kind| match (id, kind) {
        (1, I32) => t.int().map(|n| h.kind = n),
        (2, I32) => t.int().map(|n| h.size = n),
        (3, I32) => t.int().map(|n| h.compressed = n),
        (5 | 7, STRUCT) => t.fields(&mut |t, id, kind| match (id, kind) {
            (1, I32) => t.int().map(|n| h.values = n),
            (2, I32) => t.int().map(|n| h.encoding = n),
            (3, I32) => t.int().map(|n| h.level_encoding = n),
            _ => t.skip(kind),
        }),
        (8, STRUCT) => {
            let mut v2 = V2 { levels: 0, repetition: 0, compressed: true };
            t.fields(&mut |t, id, kind| match (id, kind) {
                (1, I32) => t.int().map(|n| h.values = n),
                (4, I32) => t.int().map(|n| h.encoding = n),
                (5, I32) => t.int().map(|n| v2.levels = n),
                (6, I32) => t.int().map(|n| v2.repetition = n),
                (7, _) => {
                    v2.compressed = kind == TRUE;
                    t.skip(kind)
                }
                _ => t.skip(kind),
            })?;
            h.v2 = Some(v2);
            Ok(())
        }
        _ => t.skip(kind),
    })?;
    Ok(h)
}
