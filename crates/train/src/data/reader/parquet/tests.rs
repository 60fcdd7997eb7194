//! Files made by Apache's own writer, the crate `parquet`, against the stories that went in.

use super::*;
use crate::data::reader::read_file;
use crate::data::synthetic;
use crate::data::testing::Folder;
use ::parquet::basic::{Compression, Encoding, GzipLevel, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use ::parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;
use std::sync::Arc;

const SCHEMA: &str = "message rows { required int64 id; optional binary text (UTF8); optional double score;
    required group more { optional binary note (UTF8); required float f; required int32 i; required int64 l; }
    required group tags (LIST) { repeated group list { required binary element (UTF8); } } }";

type Row = (Option<String>, Option<f64>);

/// Stories, empty ones, nulls, repeated ones and ones that begin alike; scores in quarters.
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
    let flow = read_file(path, &Fields { text, score }, 1 << 20, &mut Seen::default(), &mut |story, read| {
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
    assert!(text.contains("no column `story`; columns of text: text, more.note"), "{text}");
    let text = message(&path, "score", None);
    assert!(text.contains("`score` does not hold text"), "{text}");
    assert!(message(&path, "tags.list.element", None).contains("holds lists"));
    let text = message(&path, "text", Some("note"));
    assert!(text.contains("no column `note`; columns of numbers: id, score, more.f, more.i, more.l"), "{text}");
    assert!(message(&path, "text", Some("text")).contains("does not hold numbers"));
    let mut binary = table(&[&rows(4)], small());
    let at = binary.windows(9).position(|w| w == b"Chapter 3").unwrap();
    binary[at] = 0xff;
    let text = message(&folder.file("b.parquet", binary), "text", None);
    assert!(text.contains("row 4") && text.contains("not UTF-8"), "{text}");
}

#[test]
fn a_story_over_the_limit_is_told_by_its_row() {
    let folder = Folder::new();
    let long: Row = (Some("x".repeat(101)), None);
    let path = folder.file("a.parquet", table(&[&[rows(1)[0].clone(), long]], small()));
    let read = |limit| {
        read_file(&path, &Fields { text: "text", score: None }, limit, &mut Seen::default(), &mut |_, _| {
            ControlFlow::Break(())
        })
    };
    assert!(read(101).unwrap().is_break());
    assert!(read(100).unwrap_err().to_string().contains("row 2: the story is longer"));
}

/// Xorshift.
fn random(state: &mut u64) -> u64 {
    for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
        *state ^= if left { *state << shift } else { *state >> shift };
    }
    *state >> 8
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

/// Flipped bits give an error or other stories, but no panic, and never much memory.
#[test]
fn flipped_bits_never_panic() {
    let folder = Folder::new();
    let mut state = 7;
    let path = folder.path().join("flipped.parquet");
    for whole in variants() {
        let footer = whole.len() - 8 - u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk().unwrap()) as usize;
        for i in 0..300 {
            let mut changed = whole.clone();
            let (from, to) = if i % 2 == 0 { (0, whole.len()) } else { (footer, whole.len()) };
            for _ in 0..=random(&mut state) % 3 {
                let at = from + random(&mut state) as usize % (to - from);
                changed[at] =
                    if i % 3 == 0 { random(&mut state) as u8 } else { changed[at] ^ (1 << (random(&mut state) % 8)) };
            }
            std::fs::write(&path, changed).unwrap();
            let mut read = 0;
            // A damaged footer may claim any number of rows.
            let _ = read_file(
                &path,
                &Fields { text: "text", score: Some("score") },
                1 << 20,
                &mut Seen::default(),
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
    assert!(text.contains("claims 2147483647 bytes, more than 128 MB"), "{text}");
    let mut footer = whole.clone();
    let n = footer.len();
    footer[n - 8..n - 4].copy_from_slice(&[0xff; 4]);
    assert!(message(&folder.file("b.parquet", footer), "text", None).contains("its footer claims 4294967295 bytes"));
    let mut secret = whole.clone();
    secret[n - 1] = b'E';
    assert!(message(&folder.file("c.parquet", secret), "text", None).contains("encrypted"));
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
    // 2: the root with one field, and that: type 6, optional, "text".
    let schema = [0x29, 0x2c, 0x48, 1, b'r', 0x15, 2, 0, 0x15, 12, 0x25, 2, 0x18, 4, b't', b'e', b'x', b't', 0];
    // 4: one group of one chunk, not compressed, its length, from byte 4 on; and the rows.
    let group = [0x29, 0x1c, 0x19, 0x1c, 0x3c, 0x45, 0, 0x36, 2 * page.len() as u8, 0x26, 8, 0, 0, 0x26];
    let footer = [&schema[..], &group, &many, &[0, 0]].concat();
    let file = [b"PAR1", &page[..], &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat();
    let text = message(&folder.file("a.parquet", file), "text", None);
    assert!(text.contains("row 67108865: no text in 67108864 rows of column `text`"), "{text}");
}
