//! `metrics.jsonl` from any bytes: rows or an error; rows can be drawn, and a run that goes on keeps those up to its step.
#![no_main]

use std::fs;

use flashlm_fuzz::{file, folder, seed};
use flashlm_train::log::jsonl::{Metrics, Resumed, read};
use flashlm_train::log::svg::{Axis, Options, Series, draw};
use flashlm_train::log::tail::{Mark, tail};
use libfuzzer_sys::fuzz_target;

/// Where a run goes on.
const STEP: u64 = 20;

fn seeds() -> [Vec<u8>; 2] {
    let train = |step: u64, loss: &str, more: &str| {
        format!(
            "{{\"kind\":\"train\",\"step\":{step},\"loss\":{loss},\"lr\":1e-3,\"grad_norm\":null,\"tokens\":{},\
             \"tokens_per_second\":9.5,\"elapsed\":{step}.5,\"epoch\":0.25,\"seq_len\":{}{more}}}\n",
            step * 1000,
            8 * step
        )
    };
    let eval =
        "{\"kind\":\"eval\",\"step\":20,\"tokens\":20000,\"elapsed\":3.25,\"loss\":2.5,\"bpb\":1.25,\"best\":true}\n";
    let sample = "{\"kind\":\"sample\",\"step\":25,\"prompt\":\"Once\",\"text\":\" upon\\n\"}\n";
    let plain = train(10, "5.5", "") + &train(20, "null", "") + eval + &train(30, "-4e29", "") + sample + "{\"kind\"";
    let staged = |stage: u64, name: &str| format!(",\"stage\":{stage},\"sources\":{{\"{name}\":0.5}}");
    let mixed =
        train(10, "5", &staged(1, "a")) + &train(20, "4", &staged(2, "b")) + eval + &train(30, "3", &staged(2, "c"));
    [plain, mixed].map(String::into_bytes)
}

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let (path, aside) = (file("metrics.jsonl", bytes), folder().join("metrics.abandoned.jsonl"));
    let rows = read(&path);
    if let Ok(rows) = &rows {
        let series = ["fuzz", "<again>"].map(|name| Series::new(name.into(), rows.clone()));
        for axis in [Axis::Tokens, Axis::Elapsed] {
            for runs in [&series[..1], &series] {
                let options = Options { title: "fuzz".into(), axis, entropy_bound: Some(1.0) };
                let picture = draw(runs, &options);
                assert!(!picture.contains("NaN") && !picture.contains("inf"), "a place that is no number");
            }
        }
    }
    // From one place to the next, whatever the bytes are.
    let mut mark = Mark::start();
    let mut followed = Vec::new();
    while let Ok(piece) = tail(&path, mark) {
        followed.extend(piece.rows);
        mark = piece.next;
        if !piece.more {
            break;
        }
    }
    if let Ok(rows) = &rows {
        assert!(rows.len() - followed.len() <= 1, "all but a last line without its end");
    }
    let resumed = Metrics::resume(&path, STEP, &aside);
    let _ = fs::remove_file(aside);
    let Ok(Resumed { kept, .. }) = resumed else {
        // Only a line that is too long ends a resume, and that is no row either.
        assert!(rows.is_err());
        return;
    };
    assert_eq!(kept.damaged == 0, rows.is_ok());
    let again = read(&path).expect("rows that were kept");
    assert!(again.iter().all(|row| row.step() <= STEP));
    if let Ok(rows) = rows {
        // NaN is not itself, so rows are compared as text.
        let expected = rows.iter().filter(|row| row.step() <= STEP).map(|row| format!("{row:?}"));
        assert!(expected.eq(again.iter().map(|row| format!("{row:?}"))));
    }
});
