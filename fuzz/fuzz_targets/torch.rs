//! A file of `torch.save`, from any bytes: an error, or a model. A first byte of 0: the rest is the pickle in an archive that is whole;
//! any other: the rest is the archive.
#![no_main]

use flashlm_fuzz::{file, seed};
use flashlm_model::tok::Tokenizer;
use flashlm_train::load::load_model;
use flashlm_train::run::Resume;
use libfuzzer_sys::fuzz_target;

/// A zip archive of uncompressed files.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut all, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in files {
        let (at, n) = (all.len() as u32, data.len() as u32);
        let sizes = [[0; 4], n.to_le_bytes(), n.to_le_bytes()].concat();
        let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        all.extend([b"PK\x03\x04", &[0; 10][..], &sizes, &lengths, name.as_bytes(), data].concat());
        let entry = [b"PK\x01\x02", &[0; 12][..], &sizes, &lengths, &[0; 10], &at.to_le_bytes(), name.as_bytes()];
        directory.extend(entry.concat());
    }
    let (at, n, count) = (all.len() as u32, directory.len() as u32, (files.len() as u16).to_le_bytes());
    [&all[..], &directory, b"PK\x05\x06", &[0; 4], &count, &count, &n.to_le_bytes(), &at.to_le_bytes(), &[0; 2]].concat()
}

fn archive(pickle: &[u8]) -> Vec<u8> {
    let data: Vec<u8> = (0..64).flat_map(|i| (i as f32).to_le_bytes()).collect();
    zip(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &data)])
}

/// A dict with the embedding of a model, `[16, 4]`.
fn pickle() -> Vec<u8> {
    let text = |text: &str| [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let storage = [b"(", &text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), b"K\x40tQ"].concat();
    let tensor = [b"ctorch._utils\n_rebuild_tensor_v2\n(", &storage[..], b"K\x00(K\x10K\x04t(K\x04K\x01t\x89}tR"].concat();
    [b"\x80\x02}(", &text("embed.weight")[..], &tensor, b"u."].concat()
}

fuzz_target!(
    init: {
        file("tokenizer.json", Tokenizer::bytes().to_json());
        seed([[&[0], &pickle()[..]].concat(), [&[1], &archive(&pickle())[..]].concat()]);
    },
    |input: &[u8]| {
        let Some((&which, rest)) = input.split_first() else { return };
        let bytes = if which == 0 { archive(rest) } else { rest.to_vec() };
        let path = file("model.pt", bytes);
        let _ = (load_model(&path), Resume::open(&path));
    }
);
