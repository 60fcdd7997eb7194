//! A packed model from any bytes, and what it says: an error, or logits of a few tokens.
//!
//! A first byte below 64 chooses one of some small models, of which the rest of the input changes bytes: `[place: u16, value]`
//! each, in the config's text or in the data, so that the input is nearly a model. Any other first byte: the rest is the file.
//! Checksums are set right, or nothing behind them would be reached.
#![no_main]

use std::sync::{Arc, OnceLock};

use flashlm_model::pack::{Density, Options, TableBits, pack};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, Exec, Isa, LanguageModel, Lm, ModelConfig, PackedModel, mixer};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

/// Largest state of a stream that is written with.
const MAX_STATE: usize = 1 << 22;

fn models() -> &'static [Vec<u8>] {
    static MODELS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let (cx, tokenizer) = (Exec::new(Isa::SCALAR, 1), Tokenizer::bytes());
        let kinds = (0..12usize).map(|i| {
            let mut config = ModelConfig { dim: 24, blocks: 1, ffn_hidden: 8, vocab_size: 257, ..ModelConfig::v4_small() };
            config.mixer = mixer::NAMES[i % mixer::NAMES.len()].into();
            (config.attention.window, config.kernel_size, config.delta.conv) = (3, 3, 2);
            (config.attention.heads, config.delta.heads, config.delta.expand_v) = (3, 3, 1.0);
            (config.quant.norm, config.quant.size) = (i % 2 == 0, 8);
            config.quant.scale = serde_json::from_str(["\"tensor\"", "\"block\"", "\"group\"", "\"none\""][i % 4])
                .expect("a kind of scale");
            let layout = Lm::<f32>::new(&config, 1, false).expect("a model").layout().clone();
            let options = Options {
                density: if i < 6 { Density::Four } else { Density::Five },
                table: if i % 2 == 0 { TableBits::Four } else { TableBits::Eight },
            };
            pack(&cx, &config, &layout, &layout.init::<f32>(1), &tokenizer, options)
        });
        kinds.collect()
    })
}

/// Header and data of a safetensors file; `None` of what is too short.
fn parts(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (n, rest) = file.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*n)).ok()?)
}

/// The file with the checksum of what is in it.
fn checked(header: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let mut header: Value = serde_json::from_slice(header).ok()?;
    let metadata = header.get_mut("__metadata__")?.as_object_mut()?;
    let mut hash = Xxh3::new();
    hash.update(metadata.get("config")?.as_str()?.as_bytes());
    hash.update(data);
    metadata.insert("xxh3".into(), format!("{:016x}", hash.digest()).into());
    let header = header.to_string();
    Some([&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat())
}

/// A small model with changed bytes.
fn changed(which: u8, changes: &[u8]) -> Option<Vec<u8>> {
    let models = models();
    let (header, data) = parts(&models[usize::from(which) % models.len()])?;
    let mut header: Value = serde_json::from_slice(header).ok()?;
    let config = &mut header["__metadata__"]["config"];
    let (mut text, mut data) = (config.as_str()?.as_bytes().to_vec(), data.to_vec());
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        // One half of the places is in the config.
        let bytes = if place % 2 == 0 { &mut text } else { &mut data };
        let len = bytes.len();
        bytes[place / 2 * (1 + len / (1 << 15)) % len] = change[2];
    }
    *config = String::from_utf8(text).ok()?.into();
    checked(header.to_string().as_bytes(), &data)
}

fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else { return };
    let file = match which {
        0..64 => changed(which, rest),
        64..96 => Some(rest.to_vec()),
        _ => parts(rest).and_then(|(header, data)| checked(header, data)),
    };
    let Some(Ok(model)) = file.map(|file| PackedModel::from_bytes(file, "fuzz")) else { return };
    let c = model.config();
    if 2 * c.dim * c.attention.window * c.blocks > MAX_STATE {
        return;
    }
    let (last, model) = ((c.vocab_size - 1) as u16, Arc::new(model));
    let mut stream = model.stream();
    let mut engine = Engine::new(model.clone(), Exec::new(Isa::SCALAR, 1), 4);
    engine.prefill(&mut stream, &[0, last, 1]);
    engine.step(std::slice::from_mut(&mut stream), &[last]);
    if let Some(mut again) = model.restore(&stream.save()) {
        engine.step(std::slice::from_mut(&mut again), &[0]);
    }
});
