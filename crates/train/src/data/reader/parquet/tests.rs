//! Files made by Apache's own writer, the crate `parquet`, against the documents that went in.

use super::*;
use crate::data::reader::read_file;
use crate::data::synthetic;
use crate::data::testing::Folder;
use ::parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use ::parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use ::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use flashlm_model::rng::Rng;
use std::sync::Arc;

const SCHEMA: &str = "message rows { required int64 id; optional binary text (UTF8); optional double score;
    required group more { optional binary note (UTF8); required float f; required int32 i; required int64 l; }
    required group tags (LIST) { repeated group list { required binary element (UTF8); } } }";

type Row = (Option<String>, Option<f64>);

/// Documents, empty ones, nulls, repeated ones and ones that begin alike; scores in quarters.
fn rows(n: u64) -> Vec<Row> {
    let text = |i: u64| match i % 7 {
        0 => None,
        1 => Some(String::new()),
        2 => Some("The same.".to_string()),
        3 => Some(format!("Chapter {i}, “naïve”.")),
        _ => Some(synthetic::story(9, i)),
    };
    (0..n).map(|i| (text(i), (i % 5 != 4).then_some((i * i % 21) as f64 / 4.0))).collect()
}

fn put<T: DataType>(
    group: &mut SerializedRowGroupWriter<Vec<u8>>,
    values: &[T::T],
    def: Option<&[i16]>,
    rep: Option<&[i16]>,
) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(values, def, rep).unwrap();
    column.close().unwrap();
}

fn bytes<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<ByteArray> {
    texts.map(ByteArray::from).collect()
}

fn table(groups: &[&[Row]], props: WriterPropertiesBuilder) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(props.build())).unwrap();
    for rows in groups {
        let n = rows.len();
        let there = |there: &dyn Fn(&Row) -> bool| -> Vec<i16> { rows.iter().map(|row| there(row).into()).collect() };
        let (texts, scored) = (there(&|row| row.0.is_some()), there(&|row| row.1.is_some()));
        let scores: Vec<f64> = rows.iter().filter_map(|row| row.1).collect();
        let quarters = || rows.iter().map(|row| row.1.unwrap_or(-1.0) * 4.0);
        let mut group = writer.next_row_group().unwrap();
        put::<Int64Type>(&mut group, &(0..n as i64).collect::<Vec<_>>(), None, None);
        put::<ByteArrayType>(&mut group, &bytes(rows.iter().filter_map(|row| row.0.as_deref())), Some(&texts), None);
        put::<DoubleType>(&mut group, &scores, Some(&scored), None);
        put::<ByteArrayType>(&mut group, &bytes(rows.iter().filter_map(|row| row.0.as_deref())), Some(&texts), None);
        put::<FloatType>(&mut group, &quarters().map(|q| q as f32).collect::<Vec<_>>(), None, None);
        put::<Int32Type>(&mut group, &quarters().map(|q| q as i32).collect::<Vec<_>>(), None, None);
        put::<Int64Type>(&mut group, &quarters().map(|q| q as i64).collect::<Vec<_>>(), None, None);
        put::<ByteArrayType>(&mut group, &bytes((0..n).map(|_| "x")), Some(&vec![1; n]), Some(&vec![0; n]));
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn small() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_data_page_size_limit(3000).set_write_batch_size(16)
}

fn stories(path: &Path, text: &str, score: Option<&str>) -> Result<Vec<(String, Option<f64>)>, DataError> {
    let mut stories = Vec::new();
    let size = path.metadata().unwrap().len();
    let mut before = 0;
    let flow = read_file(path, &Fields { text, score }, 1 << 20, &mut Oddities::default(), &mut |story, read| {
        assert!((before..=size).contains(&read));
        before = read;
        stories.push((story.text.to_string(), story.score));
        ControlFlow::Continue(())
    })?;
    assert!(flow.is_continue());
    Ok(stories)
}

fn expected(rows: &[Row], scale: f64) -> Vec<(String, Option<f64>)> {
    let rows = rows.iter().filter_map(|(text, score)| Some((text.clone()?, score.map(|s| s * scale))));
    rows.map(|(text, score)| (text.trim_matches('\n').to_string(), score)).filter(|row| !row.0.is_empty()).collect()
}

#[test]
fn every_encoding_codec_and_version() {
    let folder = Folder::new();
    let all = rows(900);
    let groups = [&all[..500], &all[500..500], &all[500..]];
    let codecs = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        for codec in codecs {
            let props = || small().set_writer_version(version).set_compression(codec);
            let plain = |encoding| {
                let numbers = match encoding {
                    Encoding::PLAIN => Encoding::PLAIN,
                    _ => Encoding::DELTA_BINARY_PACKED,
                };
                props()
                    .set_dictionary_enabled(false)
                    .set_encoding(encoding)
                    .set_column_encoding("id".into(), numbers)
                    .set_column_encoding("score".into(), Encoding::BYTE_STREAM_SPLIT)
                    .set_column_encoding(vec!["more".to_string(), "f".to_string()].into(), Encoding::BYTE_STREAM_SPLIT)
                    .set_column_encoding(vec!["more".to_string(), "i".to_string()].into(), numbers)
                    .set_column_encoding(vec!["more".to_string(), "l".to_string()].into(), numbers)
            };
            let variants = [
                ("dictionary", props()),
                ("overflowing", props().set_dictionary_page_size_limit(5000)),
                ("plain", plain(Encoding::PLAIN)),
                ("length", plain(Encoding::DELTA_LENGTH_BYTE_ARRAY)),
                ("prefix", plain(Encoding::DELTA_BYTE_ARRAY)),
            ];
            for (name, props) in variants {
                let path = folder.file("a.PARQUET", table(&groups, props));
                let what = format!("{name} {codec:?} {version:?}");
                assert_eq!(stories(&path, "text", Some("score")).unwrap(), expected(&all, 1.0), "{what}");
                let texts: Vec<String> = expected(&all, 1.0).into_iter().map(|row| row.0).collect();
                for number in ["more.f", "more.i", "more.l"] {
                    let got = stories(&path, "more.note", Some(number)).unwrap();
                    assert!(got.iter().map(|row| &row.0).eq(&texts), "{what}");
                    let scores = got.iter().map(|row| row.1.filter(|score| *score != -4.0));
                    assert!(scores.eq(expected(&all, 4.0).iter().map(|row| row.1)), "{what} {number}");
                }
            }
        }
    }
}

fn message(path: &Path, text: &str, score: Option<&str>) -> String {
    let message = stories(path, text, score).unwrap_err().to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
    message
}

#[test]
fn columns_that_do_not_serve_name_those_that_do() {
    let folder = Folder::new();
    let path = folder.file("a.parquet", table(&[&rows(10)], small()));
    let text = message(&path, "story", None);
    assert!(text.contains("no column `story`; columns of text: text, more.note; choose one with --column"), "{text}");
    let text = message(&path, "score", None);
    assert!(text.contains("`score` does not hold text"), "{text}");
    for list in ["tags", "tags.list", "tags.list.element"] {
        assert!(message(&path, list, None).contains(&format!("column `{list}` holds lists")));
    }
    assert!(message(&path, "more", None).contains("column `more` is a group of columns"));
    assert!(message(&path, "mor", None).contains("no column `mor`"));
    let text = message(&path, "text", Some("note"));
    assert!(text.contains("no column `note`; columns of numbers: id, score, more.f, more.i, more.l"), "{text}");
    assert!(message(&path, "text", Some("text")).contains("does not hold numbers"));
    let mut binary = table(&[&rows(4)], small());
    let at = binary.windows(9).position(|w| w == b"Chapter 3").unwrap();
    binary[at] = 0xff;
    let text = message(&folder.file("b.parquet", binary), "text", None);
    assert!(text.contains("row 4") && text.contains("not UTF-8"), "{text}");
}

/// One text a row and a column `score` of this type; the values are for the encoding of that column.
fn scores<T: DataType>(kind: &str, values: &[T::T], encoding: Option<Encoding>) -> Vec<u8> {
    let schema = format!("message rows {{ required binary text (UTF8); required {kind}; }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let props = match encoding {
        None => small(),
        Some(encoding) => small().set_dictionary_enabled(false).set_column_encoding("score".into(), encoding),
    };
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(props.build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    put::<ByteArrayType>(&mut group, &bytes(values.iter().map(|_| "x")), None, None);
    put::<T>(&mut group, values, None, None);
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn numbers_mean_what_their_column_says() {
    let folder = Folder::new();
    let check = |file: Vec<u8>, expected: &[f64], what: &str| {
        let read = stories(&folder.file("a.parquet", file), "text", Some("score")).unwrap();
        assert_eq!(read.iter().map(|row| row.1.unwrap()).collect::<Vec<_>>(), expected, "{what}");
    };
    let hundredths = [-301.0, 0.0, 299.0, 475.0, 2_147_483_647.0].map(|n: f64| n / 100.0);
    let small: Vec<i32> = vec![-301, 0, 299, 475, i32::MAX];
    let large: Vec<i64> = small.iter().map(|n| i64::from(*n)).collect();
    // Highest byte first, in two's complement.
    let fixed: Vec<_> = large.iter().map(|n| ByteArray::from((*n as i128).to_be_bytes().to_vec()).into()).collect();
    let short: Vec<_> = large
        .iter()
        .map(|n| {
            let all = n.to_be_bytes();
            let from = (0..8).rev().find(|from| {
                let mut wide = [if *n < 0 { 255 } else { 0 }; 8];
                wide[*from..].copy_from_slice(&all[*from..]);
                i64::from_be_bytes(wide) == *n && (all[*from] >= 128) == (*n < 0)
            });
            ByteArray::from(all[from.unwrap()..].to_vec())
        })
        .collect();
    let halves = [0x3c00u16, 0xc000, 0x7bff, 0x0001, 0x4200, 0x3555];
    let halves: Vec<_> = halves.iter().map(|n| ByteArray::from(n.to_le_bytes().to_vec()).into()).collect();
    for encoding in
        [None, Some(Encoding::PLAIN), Some(Encoding::DELTA_BINARY_PACKED), Some(Encoding::BYTE_STREAM_SPLIT)]
    {
        let what = format!("{encoding:?}");
        check(scores::<Int32Type>("int32 score (DECIMAL(9, 2))", &small, encoding), &hundredths, &what);
        check(scores::<Int64Type>("int64 score (DECIMAL(18, 2))", &large, encoding), &hundredths, &what);
        check(
            scores::<Int32Type>("int32 score (UINT_32)", &[-1, 0, i32::MIN, 3], encoding),
            &[4294967295.0, 0.0, 2147483648.0, 3.0],
            &what,
        );
        check(
            scores::<Int64Type>("int64 score (INTEGER(64, false))", &[-1, 7], encoding),
            &[18446744073709551616.0, 7.0],
            &what,
        );
        check(scores::<Int32Type>("int32 score (INTEGER(8, true))", &[-1, 7], encoding), &[-1.0, 7.0], &what);
        if encoding != Some(Encoding::DELTA_BINARY_PACKED) {
            check(
                scores::<FixedLenByteArrayType>("fixed_len_byte_array(16) score (DECIMAL(38, 2))", &fixed, encoding),
                &hundredths,
                &what,
            );
            // Python: struct.unpack('<e', ...)
            let expected = [1.0, -2.0, 65504.0, 5.960464477539063e-08, 3.0, 0.333251953125];
            check(
                scores::<FixedLenByteArrayType>("fixed_len_byte_array(2) score (FLOAT16)", &halves, encoding),
                &expected,
                &what,
            );
        }
    }
    for encoding in [None, Some(Encoding::DELTA_BYTE_ARRAY), Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)] {
        check(scores::<ByteArrayType>("binary score (DECIMAL(20, 2))", &short, encoding), &hundredths, "bytes");
    }
    for (file, what) in [
        (scores::<Int32Type>("int32 score (DATE)", &[1], None), "dates"),
        (scores::<Int32Type>("int32 score (TIME_MILLIS)", &[1], None), "times of day"),
        (scores::<Int64Type>("int64 score (TIMESTAMP(MICROS, true))", &[1], None), "times"),
        (scores::<BoolType>("boolean score", &[true], None), "booleans"),
    ] {
        let text = message(&folder.file("a.parquet", file), "text", Some("score"));
        assert!(text.contains(&format!("column `score` holds {what}, not numbers")), "{text}");
    }
}

#[test]
fn rows_without_text_are_counted() {
    let all = rows(70);
    let path = Folder::new();
    let path = path.file("a.parquet", table(&[&all], small()));
    let mut oddities = Oddities::default();
    let fields = Fields { text: "text", score: None };
    assert!(
        read_file(&path, &fields, 1 << 20, &mut oddities, &mut |_, _| ControlFlow::Continue(())).unwrap().is_continue()
    );
    assert_eq!(oddities, Oddities { without: 20, ..Oddities::default() });
}

#[test]
fn a_story_over_the_limit_is_told_by_its_row() {
    let folder = Folder::new();
    let long: Row = (Some("x".repeat(101)), None);
    let path = folder.file("a.parquet", table(&[&[rows(1)[0].clone(), long]], small()));
    let read = |limit| {
        read_file(&path, &Fields { text: "text", score: None }, limit, &mut Oddities::default(), &mut |_, _| {
            ControlFlow::Break(())
        })
    };
    assert!(read(101).unwrap().is_break());
    assert!(read(100).unwrap_err().to_string().contains("row 2: the document is longer"));
}

fn variants() -> Vec<Vec<u8>> {
    let all = rows(40);
    let props = |version, codec| small().set_writer_version(version).set_compression(codec);
    [
        props(WriterVersion::PARQUET_1_0, Compression::SNAPPY),
        props(WriterVersion::PARQUET_2_0, Compression::ZSTD(ZstdLevel::default())),
        props(WriterVersion::PARQUET_1_0, Compression::GZIP(GzipLevel::default())),
        props(WriterVersion::PARQUET_2_0, Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::DELTA_BYTE_ARRAY)
            .set_column_encoding("id".into(), Encoding::DELTA_BINARY_PACKED)
            .set_column_encoding("score".into(), Encoding::BYTE_STREAM_SPLIT)
            .set_column_encoding(vec!["more".to_string(), "f".to_string()].into(), Encoding::PLAIN)
            .set_column_encoding(vec!["more".to_string(), "i".to_string()].into(), Encoding::PLAIN)
            .set_column_encoding(vec!["more".to_string(), "l".to_string()].into(), Encoding::DELTA_BINARY_PACKED),
        props(WriterVersion::PARQUET_1_0, Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::DELTA_LENGTH_BYTE_ARRAY)
            .set_column_encoding("id".into(), Encoding::PLAIN)
            .set_column_encoding("score".into(), Encoding::PLAIN)
            .set_column_encoding(vec!["more".to_string(), "f".to_string()].into(), Encoding::PLAIN)
            .set_column_encoding(vec!["more".to_string(), "i".to_string()].into(), Encoding::PLAIN)
            .set_column_encoding(vec!["more".to_string(), "l".to_string()].into(), Encoding::PLAIN),
    ]
    .into_iter()
    .map(|props| table(&[&all[..25], &all[25..]], props))
    .collect()
}

/// A file cut anywhere is told as such, and so is one with bytes missing in the middle.
#[test]
fn cut_files_are_errors() {
    let folder = Folder::new();
    for whole in variants() {
        for end in (4..whole.len()).filter(|end| *end < 200 || end % 29 == 0 || whole.len() - end < 300) {
            let text = message(&folder.file("cut.parquet", &whole[..end]), "text", Some("score"));
            assert!(text.contains("fetch or write it again"), "{end}: {text}");
        }
        for at in (4..whole.len() - 600).step_by(97) {
            let path = folder.file("gap.parquet", [&whole[..at], &whole[at + 500..]].concat());
            // Whatever comes of it, it is no panic; the columns not read may be what is missing.
            let _ = stories(&path, "text", Some("score"));
        }
    }
}

/// Flipped bits give an error or other documents, but no panic, and never much memory.
#[test]
fn flipped_bits_never_panic() {
    let folder = Folder::new();
    let mut rng = Rng::new(7);
    let path = folder.path().join("flipped.parquet");
    for whole in variants() {
        let footer = whole.len() - 8 - u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk().unwrap()) as usize;
        for i in 0..300 {
            let mut changed = whole.clone();
            let (from, to) = if i % 2 == 0 { (0, whole.len()) } else { (footer, whole.len()) };
            for _ in 0..=rng.below(3) {
                let at = from + rng.below((to - from) as u64) as usize;
                changed[at] = if i % 3 == 0 { rng.next_u64() as u8 } else { changed[at] ^ (1 << rng.below(8)) };
            }
            std::fs::write(&path, changed).unwrap();
            let mut read = 0;
            // A damaged footer may claim any number of rows.
            let _ = read_file(
                &path,
                &Fields { text: "text", score: Some("score") },
                1 << 20,
                &mut Oddities::default(),
                &mut |_, _| {
                    read += 1;
                    if read < 10_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                },
            );
        }
    }
}

/// A page that claims gigabytes, in both of its sizes, costs nothing.
#[test]
fn claimed_sizes_are_not_believed() {
    let folder = Folder::new();
    let props = small().set_dictionary_enabled(false).set_compression(Compression::SNAPPY);
    let whole = table(&[&rows(5)], props);
    // The first page is that of `id`: field 1 (type 0), 2 (size), 3 (compressed size).
    assert_eq!(&whole[..7], b"PAR1\x15\x00\x15");
    let table = |size: &[u8]| [&whole[..7], size, &whole[7 + size.len()..]].concat();
    let path = folder.file("a.parquet", table(&[0xfe, 0xff, 0xff, 0xff, 0x0f]));
    let text = message(&path, "text", Some("id"));
    assert!(text.contains("claims 2147483647 bytes, more than 1024 MB"), "{text}");
    let mut footer = whole.clone();
    let n = footer.len();
    footer[n - 8..n - 4].copy_from_slice(&[0xff; 4]);
    assert!(message(&folder.file("b.parquet", footer), "text", None).contains("its footer claims 4294967295 bytes"));
    let mut secret = whole.clone();
    secret[n - 1] = b'E';
    assert!(message(&folder.file("c.parquet", secret), "text", None).contains("encrypted"));
}

/// A table of one row group with one column `text`, which is optional and not compressed; `more` goes into its chunk.
fn by_hand(pages: &[u8], rows: &[u8], more: &[u8]) -> Vec<u8> {
    // 2: the root with one field, and that: type 6, optional, "text".
    let schema = [0x29, 0x2c, 0x48, 1, b'r', 0x15, 2, 0, 0x15, 12, 0x25, 2, 0x18, 4, b't', b'e', b'x', b't', 0];
    let mut size = Vec::new();
    let mut left = 2 * pages.len();
    while left > 127 {
        size.push(left as u8 | 128);
        left >>= 7;
    }
    size.push(left as u8);
    // 4: one group of one chunk: its length, from byte 4 on; and the rows.
    let chunk = [&[0x29, 0x1c, 0x19, 0x1c, 0x3c, 0x45, 0, 0x36][..], &size, &[0x26, 8, 0], more, &[0, 0x26]].concat();
    let footer = [&schema[..], &chunk, rows, &[0, 0]].concat();
    [b"PAR1", pages, &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

/// Statistics may be whole documents: 3 MB of smallest and largest value, in the header of a page of one short text.
#[test]
fn headers_of_any_size_and_encrypted_columns() {
    let folder = Folder::new();
    // A run of one level 1, then "Hi."
    let data = [&[2u8, 0, 0, 0, 2, 1, 3, 0, 0, 0][..], b"Hi."].concat();
    let varint =
        |n: usize| [n as u8 & 127 | 128, (n >> 7) as u8 & 127 | 128, (n >> 14) as u8 & 127 | 128, (n >> 21) as u8];
    let value = vec![b'a'; 3 << 20];
    let statistics =
        [&[0x1c, 0x18][..], &varint(value.len()), &value, &[0x18], &varint(value.len()), &value, &[0]].concat();
    let sizes = 2 * data.len() as u8;
    // 5: {one value, plain, levels in runs twice, statistics}.
    let head =
        [&[0x15, 0, 0x15, sizes, 0x15, sizes, 0x2c, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6][..], &statistics, &[0, 0]]
            .concat();
    let pages = [&head[..], &data].concat();
    let path = folder.file("a.parquet", by_hand(&pages, &[2], &[]));
    assert_eq!(stories(&path, "text", None).unwrap(), [("Hi.".to_string(), None)]);
    // 8: {1: {}}, the footer's own key.
    let text = message(&folder.file("b.parquet", by_hand(&pages, &[2], &[0x5c, 0x1c, 0, 0])), "text", None);
    assert!(text.contains("its column is encrypted"), "{text}");
}

/// A file of 90 bytes that claims 2^28 rows without a value, in one run of one page, is not counted out.
#[test]
fn rows_without_end_that_are_empty_are_an_error() {
    let folder = Folder::new();
    // 2^29: the length of the run, and 2^28 as a signed number.
    let many = [0x80, 0x80, 0x80, 0x80, 2];
    // Type 0, sizes 10 and 10, 5: {values, plain, levels in runs}; then the length of the levels, the run, its level 0.
    let head = [&[0x15, 0, 0x15, 20, 0x15, 20, 0x2c, 0x15][..], &many, &[0x15, 0, 0x15, 6, 0x15, 6, 0, 0]].concat();
    let page = [&head[..], &[6, 0, 0, 0], &many, &[0]].concat();
    let file = by_hand(&page, &many, &[]);
    let text = message(&folder.file("a.parquet", file), "text", None);
    assert!(text.contains("row 67108865: 67108864 rows of column `text` hold no text"), "{text}");
}
