//! The pages of a Parquet table under a footer that is right: texts, and scores beside them.
//!
//! ```text
//! input: codec, bits of the rows and flags: u8 | type of the scores: u8 | rows: u16 | pages
//! page:  kind and flags: u8 | encoding: u8 | values: u16 | levels: u8 | length: u16 | data      sizes and compression are right
//! ```
//! A flag says whether the page is one of scores, another that its values and sizes are claimed (`i32` each, before the data).
//! With the highest bit of the first byte set the rest is the chunk of texts as it is.
#![no_main]

use flashlm_fuzz::parquet::{
    BYTES, Column, DOUBLE, FLOAT, INT32, INT64, Page, delta, footer, plain, read, table, varint, zigzag,
};
use flashlm_fuzz::{byte, seed, take, word};
use libfuzzer_sys::fuzz_target;

const RAW: u8 = 128;
const OPTIONAL: u8 = 64;
const SCORES: u8 = 16;
const CLAIMS: u8 = 32;

fn file(mut input: &[u8]) -> (Vec<u8>, bool) {
    let first = byte(&mut input);
    let codec = [0, 1, 2, 6, 4, 5, 7, 3][usize::from(first & 7)];
    let kinds = [None, Some(INT32), Some(INT64), Some(FLOAT), Some(DOUBLE)];
    let scores = kinds[usize::from(byte(&mut input)) % kinds.len()];
    let rows = i64::from(word(&mut input)) << (6 * (first >> 3 & 7));
    let mut chunks = [Vec::new(), Vec::new()];
    if first & RAW != 0 {
        chunks[0] = input.to_vec();
    }
    while first & RAW == 0 && !input.is_empty() {
        let (head, encoding, mut values) = (byte(&mut input), byte(&mut input), i64::from(word(&mut input)));
        let (levels, length) = (usize::from(byte(&mut input)), usize::from(word(&mut input)));
        let size = |input: &mut &[u8]| i64::from(word(input) as i16) << 16 | i64::from(word(input));
        let claims = (head & CLAIMS != 0).then(|| {
            values = size(&mut input);
            (size(&mut input), size(&mut input))
        });
        let data = take(&mut input, length);
        let page = Page { kind: head & 15, encoding, values, levels, data, claims };
        chunks[usize::from(head & SCORES != 0)].extend(page.bytes(codec));
    }
    let optional = first & OPTIONAL != 0;
    let columns: Vec<Column> =
        [("text", BYTES, optional)].into_iter().chain(scores.map(|kind| ("score", kind, optional))).collect();
    let used: Vec<&[u8]> = chunks.iter().take(columns.len()).map(Vec::as_slice).collect();
    let lengths: Vec<usize> = used.iter().map(|chunk| chunk.len()).collect();
    (table(&used, &footer(&columns, codec, &lengths, rows)), scores.is_some())
}

/// An input of these pages: flags and kind, encoding, number of values, length of the levels, data.
fn input(first: u8, scores: u8, rows: u16, pages: &[(u8, u8, u16, u8, Vec<u8>)]) -> Vec<u8> {
    let mut input = [&[first, scores], &rows.to_le_bytes()[..]].concat();
    for (head, encoding, values, levels, data) in pages {
        input.extend([&[*head, *encoding], &values.to_le_bytes()[..], &[*levels]].concat());
        input.extend([&(data.len() as u16).to_le_bytes(), &data[..]].concat());
    }
    input
}

/// Every encoding, codec and version.
fn seeds() -> Vec<Vec<u8>> {
    let texts = ["One.", "Once upon a time", "Two."];
    let plain_texts = plain(&texts);
    // Three values that are there, in one run, then the values; before that in the first version the length.
    let (run, long) = (vec![3 << 1, 1], texts.concat().into_bytes());
    let levelled = |data: &[u8]| [&(run.len() as u32).to_le_bytes(), &run[..], data].concat();
    let dictionary = (2, 0, 3, 0, plain_texts.clone());
    // Two bits each: 0, 1, 2, one group of eight; and a run.
    let places = vec![2, 1 << 1 | 1, 0b10_0100, 0, 3 << 1, 1];
    // Lengths 4, 16, 4: from 4 on by 12 and -12, which is 24 and 0 above the smallest, in five bits.
    let lengths = [&varint(128)[..], &[4, 3], &zigzag(4), &zigzag(-12), &[5, 0, 0, 0, 24], &[0; 19], &long].concat();
    let prefixes = [delta(3, 0), delta(3, 4), long[..12].to_vec()].concat();
    let doubles = [1.0f64, 2.0, 4.0].map(f64::to_le_bytes).concat();
    let scored = |encoding, data: Vec<u8>| [(0, 0, 3, 0, plain_texts.clone()), (SCORES, encoding, 3, 0, data)];
    let mut seeds = vec![
        input(OPTIONAL, 0, 3, &[(0, 0, 3, 0, levelled(&plain_texts))]),
        input(OPTIONAL, 0, 3, &[(3, 0, 3, 2, [&run, &plain_texts[..]].concat())]),
        input(0, 0, 6, &[dictionary.clone(), (0, 8, 6, 0, places.clone()), (1, 0, 0, 0, vec![0; 4])]),
        input(0, 0, 3, &[(0, 6, 3, 0, lengths)]),
        input(0, 0, 3, &[(0, 7, 3, 0, prefixes)]),
        input(0, 4, 3, &scored(0, doubles.clone())),
        input(0, 4, 3, &scored(9, doubles)),
        input(0, 3, 3, &scored(9, vec![0; 12])),
        input(0, 1, 3, &scored(5, delta(3, 7))),
        input(0, 2, 3, &scored(5, delta(3, -7))),
    ];
    seeds.extend((0..8).map(|codec| input(codec, 0, 6, &[dictionary.clone(), (0, 2, 6, 0, places.clone())])));
    // What a few bytes can claim: a million numbers in each block of two bytes; rows without a value in one run.
    let claimed = [&varint(1 << 20)[..], &[1], &varint(u64::MAX), &[0; 4001]].concat();
    let none = [&[6u8, 0, 0, 0][..], &varint(1 << 32), &[0]].concat();
    seeds.push(input(0, 0, 1, &[(0, 6, 1, 0, claimed)]));
    seeds.push(input(OPTIONAL | 3 << 3, 0, 1 << 15, &[(0, 0, 1 << 15, 0, none)]));
    let raw = Page { values: 3, data: &plain_texts, ..Page::default() }.bytes(0);
    seeds.push([&[RAW, 0, 3, 0], &raw[..]].concat());
    seeds
}

fuzz_target!(
    init: {
        for (i, seed) in seeds().iter().enumerate() {
            let (bytes, scored) = file(seed);
            // An unknown codec, and what is claimed only.
            let expected = if [17, 18, 19].contains(&i) { 0 } else { usize::from(seed[2]) };
            assert_eq!(read(&bytes, scored), expected, "seed {i}");
        }
        seed(seeds());
    },
    |input: &[u8]| {
        let (bytes, scored) = file(input);
        read(&bytes, scored);
    }
);
