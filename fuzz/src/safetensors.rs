//! Small models as safetensors files, and the same with bytes changed.

use flashlm_model::{Exec, Isa, ModelConfig, mixer, params::Layout};
use serde_json::Value;

/// The `i`-th of many small models: its config and layout.
pub fn small(i: usize) -> (ModelConfig, Layout) {
    let mut config = ModelConfig { dim: 24, blocks: 1, ffn_hidden: 8, vocab_size: 257, ..ModelConfig::v4_small() };
    config.mixer = mixer::NAMES[i % mixer::NAMES.len()].into();
    let mixers = &mut config.mixers;
    (mixers.attention.window, mixers.kernel_size, mixers.delta.conv) = (3, 3, 2);
    (mixers.attention.heads, mixers.delta.heads, mixers.delta.expand_v) = (3, 3, 1.0);
    (config.quant.norm, config.quant.size) = (i % 2 == 0, 8);
    config.quant.scale =
        serde_json::from_str(["\"tensor\"", "\"block\"", "\"group\"", "\"none\""][i % 4]).expect("a kind of scale");
    config.validate().expect("a model");
    let layout = Layout::of(&config);
    (config, layout)
}

/// What everything runs on.
pub fn exec() -> Exec {
    Exec::new(Isa::SCALAR, 1)
}

/// Header and data; `None` of what is too short.
pub fn parts(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (n, rest) = file.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*n)).ok()?)
}

/// A file of these two.
pub fn whole(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Header and data of the file with changes, `[place: u16, value]` each: one half of the places is in the config's text, the
/// other in the data.
pub fn changed(file: &[u8], changes: &[u8]) -> Option<(Value, Vec<u8>)> {
    let (header, data) = parts(file)?;
    let mut header: Value = serde_json::from_slice(header).ok()?;
    let config = &mut header["__metadata__"]["config"];
    let (mut text, mut data) = (config.as_str()?.as_bytes().to_vec(), data.to_vec());
    for change in changes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let bytes = if place % 2 == 0 { &mut text } else { &mut data };
        let len = bytes.len();
        bytes[place / 2 * (1 + len / (1 << 15)) % len] = change[2];
    }
    *config = String::from_utf8(text).ok()?.into();
    Some((header, data))
}
