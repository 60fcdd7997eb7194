//! The footer of a Parquet table, the input, over the pages of two rows of three columns: `text`, `score` and `meta.note`.
#![no_main]

use flashlm_fuzz::parquet::{BYTES, DOUBLE, Page, Struct, footer, plain, read, table, varint};
use flashlm_fuzz::seed;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static CHUNKS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let (texts, scores) = (plain(&["One.", "Two."]), [1.0f64, 2.5].map(f64::to_le_bytes).concat());
    [&texts, &scores].map(|data| Page { values: 2, data, ..Page::default() }.bytes(0))
});

fn seeds() -> Vec<Vec<u8>> {
    let lengths = CHUNKS.each_ref().map(Vec::len);
    let columns = [("text", BYTES, false), ("score", DOUBLE, false)];
    // A column in a group, a list, a dictionary's place, and fields to pass over.
    let field = |name, children| Struct::default().i32(3, 1).text(4, name).i32(5, children);
    let leaf = |name, kind, repetition| Struct::default().i32(1, kind).i32(3, repetition).text(4, name).i32(6, 0);
    let chunk = |start, length| {
        let place = Struct::default().i32(1, 6).i32(4, 0).i64(5, 2).i64(7, length).i64(9, start).i64(11, 0);
        Struct::default().i64(2, start).inner(3, place)
    };
    let (text, score) = (lengths[0] as i64, lengths[1] as i64);
    let schema = vec![
        field("rows", 3),
        leaf("score", DOUBLE, 0),
        field("meta", 1),
        leaf("note", BYTES, 0),
        leaf("text", BYTES, 2),
    ];
    let group =
        || Struct::default().list(1, vec![chunk(4 + text, score), chunk(4, text), chunk(4, text)]).i64(2, 0).i64(3, 2);
    let nested = Struct::default().i32(1, 1).list(2, schema).i64(3, 4).list(4, vec![group(), group()]).text(6, "fuzz");
    // The largest number that a field can have, and the one after it.
    let largest = [&[0x05u8][..], &varint(u64::MAX - 1), &[0, 0x15, 0, 0]].concat();
    vec![largest, footer(&columns[..1], 0, &lengths[..1], 2), footer(&columns, 0, &lengths, 2), nested.end()]
}

fuzz_target!(
    init: {
        seed(seeds());
        let lengths = CHUNKS.each_ref().map(Vec::len);
        let good = footer(&[("text", BYTES, false), ("score", DOUBLE, false)], 0, &lengths, 2);
        assert_eq!(read(&table(&[&CHUNKS[0], &CHUNKS[1]], &good), true), 2, "the table to start from");
    },
    |bytes: &[u8]| {
        let table = table(&[&CHUNKS[0], &CHUNKS[1]], bytes);
        read(&table, false);
        read(&table, true);
    }
);
