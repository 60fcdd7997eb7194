//! Text from any bytes: plain, gzip or zstd, its stories and their repair.
//!
//! ```text
//! first byte % 4: 0 plain text, 1 the rest as it is in .gz, 2 the same in .zst, 3 the rest compressed in both ways
//! ```
//! What was compressed must give the stories of the plain text.
#![no_main]

use std::io::Write;
use std::ops::ControlFlow;

use flashlm_fuzz::{byte, file, parquet::compress, seed};
use flashlm_train::data::mojibake::{Repaired, repair};
use flashlm_train::data::source::Source;
use flate2::{Compression, write::GzEncoder};
use libfuzzer_sys::fuzz_target;

const TEXT: &str = "\u{feff}One day.\n\nThe end. \n<|endoftext|>\r\n<|endoftext|>\nItâ€™s Ã©, “naïve”: ðŸ˜€ Ã¢â‚¬â„¢\n";

fn seeds() -> Vec<Vec<u8>> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    gz.write_all(TEXT.as_bytes()).expect("memory to write to");
    let gz = gz.finish().expect("memory to write to");
    let zst = zstd::encode_all(TEXT.as_bytes(), 19).expect("memory to write to");
    // A frame that is passed over, then two; a large window.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 1], &zst[..], &zst].concat();
    let mut wide = zstd::Encoder::new(Vec::new(), 1).expect("memory to write to");
    wide.window_log(24).and_then(|()| wide.include_checksum(true)).expect("a parameter");
    wide.write_all(TEXT.as_bytes()).expect("memory to write to");
    let wide = wide.finish().expect("memory to write to");
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let twice = [&gz[..], &gz].concat();
    let text = TEXT.as_bytes();
    let mut all = vec![with(0, text), with(3, text), with(1, &gz), with(1, &twice), with(2, &zst)];
    all.extend([with(2, &skipped), with(2, &wide)]);
    all
}

/// The stories before the first error, and whether there was one.
fn stories(name: &str, bytes: &[u8]) -> (Vec<String>, bool) {
    let path = file(name, bytes);
    let mut stories = Vec::new();
    let Ok(source) = Source::parse(path.to_str().expect("a name in UTF-8")) else { return (stories, true) };
    let report = source.stories(&mut |story| {
        assert!(!story.is_empty());
        stories.push(story.to_string());
        ControlFlow::Continue(())
    });
    if let Ok(report) = &report {
        let bytes = stories.iter().map(|story| story.len() as u64).sum::<u64>();
        assert_eq!((report.stories, report.bytes), (stories.len() as u64, bytes));
    }
    (stories, report.is_err())
}

fuzz_target!(init: seed(seeds()), |input: &[u8]| {
    let mut rest = input;
    match byte(&mut rest) % 4 {
        0 => {
            stories("a.txt", rest);
            let text = String::from_utf8_lossy(rest);
            let Repaired { text: repaired, sequences: count } = repair(&text);
            let (before, after) = (text.chars().count() as u64, repaired.chars().count() as u64);
            // Each repair makes one character of two or more.
            assert!(after + count <= before && (count > 0 || repaired == text));
        }
        1 => drop(stories("a.txt.gz", rest)),
        2 => drop(stories("a.txt.zst", rest)),
        _ if rest.is_empty() => {}
        _ => {
            let plain = stories("a.txt", rest);
            assert_eq!(stories("b.txt.gz", &compress(2, rest)), plain);
            assert_eq!(stories("b.txt.zst", &compress(6, rest)), plain);
        }
    }
});
