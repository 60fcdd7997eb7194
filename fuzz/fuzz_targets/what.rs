//! What a path is, told from a file of any bytes; the first byte chooses the file's name.
#![no_main]

use flashlm_fuzz::{byte, file, seed};
use flashlm_model::tok::Tokenizer;
use flashlm_train::recognise::recognise;
use flashlm_train::what::Unwanted;
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 8] =
    ["a", "a.safetensors", "a.json", "a.txt.gz", "a.jsonl.zst", "a.parquet", "metrics.jsonl", "optimizer.safetensors"];

fn seeds() -> Vec<Vec<u8>> {
    let tensors = |metadata: &str| {
        let header = format!(
            "{{\"__metadata__\":{{{metadata}}},\"a\":{{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}}}"
        );
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), b"x"].concat()
    };
    let eval = r#"{"kind":"eval","step":2,"tokens":9,"elapsed":3.5,"loss":2.5,"bpb":1.25,"best":true}"#;
    let all: [(u8, &[u8]); 14] = [
        (1, &tensors(r#""format":"flashlm""#)),
        (1, &tensors(r#""format":"flashlm-packed""#)),
        (1, &tensors(r#""config":"{\"arch\": \"v4\"}""#)),
        (7, &tensors("")),
        (2, &Tokenizer::bytes().to_json()),
        (2, br#"{"model":{"type":"Unigram","unk_id":0,"vocab":[]}}"#),
        (2, br#"{"id_to_base":{},"base_to_id":{}}"#),
        (0, b"FLMTOKS\0"),
        (0, b"version https://git-lfs.github.com/spec/v1\n"),
        (3, b"\x1f\x8b\x08\0"),
        (4, b"\x28\xb5\x2f\xfd"),
        (5, b"PAR1"),
        (6, eval.as_bytes()),
        (0, "\u{feff}[1, \"é\"]".as_bytes()),
    ];
    all.iter().map(|(name, bytes)| [&[*name], *bytes].concat()).collect()
}

fuzz_target!(init: seed(seeds()), |input: &[u8]| {
    let mut rest = input;
    let name = NAMES[usize::from(byte(&mut rest)) % NAMES.len()];
    let path = file(name, rest);
    let what = recognise(&path);
    assert_eq!(what, recognise(&path));
    let said = Unwanted::new(&path, "a model", what).to_string();
    assert!(said.contains(name), "{said}");
    let _ = std::fs::remove_file(path);
});
