//! A packed model from any bytes, and what it says: an error, or logits of a few tokens.
//!
//! A first byte below 64 chooses one of some small models, of which the rest of the input changes bytes, so that the input is
//! nearly a model. Any other first byte: the rest is the file, from 96 on with its checksum set right.
#![no_main]

use std::sync::LazyLock;

use flashlm_fuzz::safetensors::{changed, exec, parts, small, whole};
use flashlm_fuzz::{run, seed};
use flashlm_model::PackedModel;
use flashlm_model::pack::{Density, Options, TableBits, pack};
use flashlm_model::tok::Tokenizer;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

static MODELS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let model = |i| {
        let (config, layout) = small(i);
        let options = Options {
            density: if i < 6 { Density::Four } else { Density::Five },
            table: if i % 2 == 0 { TableBits::Four } else { TableBits::Eight },
        };
        pack(&exec(), &config, &layout.init::<f32>(1), &Tokenizer::bytes(), options)
    };
    (0..12).map(model).collect()
});

/// The file with the checksum of what is in it.
fn checked(mut header: Value, data: &[u8]) -> Option<Vec<u8>> {
    let metadata = header.get_mut("__metadata__")?.as_object_mut()?;
    let mut hash = Xxh3::new();
    hash.update(metadata.get("config")?.as_str()?.as_bytes());
    hash.update(data);
    metadata.insert("xxh3".into(), format!("{:016x}", hash.digest()).into());
    Some(whole(&header, data))
}

fuzz_target!(
    init: seed((0..12).map(|i| vec![i, 0, 0, b'{'])),
    |input: &[u8]| {
        let Some((&which, rest)) = input.split_first() else { return };
        let file = match which {
            0..64 => changed(&MODELS[usize::from(which) % MODELS.len()], rest).and_then(|(h, data)| checked(h, &data)),
            64..96 => Some(rest.to_vec()),
            _ => parts(rest).and_then(|(header, data)| checked(serde_json::from_slice(header).ok()?, data)),
        };
        if let Some(Ok(model)) = file.map(|file| PackedModel::from_bytes(file, "fuzz")) {
            run(model);
        }
    }
);
