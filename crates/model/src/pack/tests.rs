//! Packed files written, read, and damaged in every way; no damage is a panic, and each error names the file.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::codes::format::digest;
use crate::codes::weights::nibble_scale;
use crate::config::{ModelConfig, ScaleKind};
use crate::infer::testing::{EOS, Noise, shapes, stories};
use crate::infer::{Engine, PackedModel};
use crate::io::safetensors::TensorFile;
use crate::params::Group;
use crate::rng::Rng;
use crate::testing::{ratio, tiny};
use crate::tok::Tokenizer;
use flashlm_kernels::{Exec, Isa};

/// A packed file taken apart.
#[derive(Clone)]
struct File {
    metadata: BTreeMap<String, String>,
    /// Name, type, shape, bytes, in the order of the data.
    tensors: Vec<(String, String, Vec<usize>, Vec<u8>)>,
}

impl File {
    fn of(bytes: &[u8]) -> File {
        let n = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        let mut tensors = Vec::new();
        for (name, value) in header.iter().filter(|(name, _)| *name != "__metadata__") {
            let numbers = |key: &str| -> Vec<usize> { serde_json::from_value(value[key].clone()).unwrap() };
            let at = numbers("data_offsets");
            let data = bytes[8 + n + at[0]..8 + n + at[1]].to_vec();
            tensors.push((at[0], (name.clone(), value["dtype"].as_str().unwrap().into(), numbers("shape"), data)));
        }
        tensors.sort();
        File {
            metadata: serde_json::from_value(header["__metadata__"].clone()).unwrap(),
            tensors: tensors.into_iter().map(|(_, tensor)| tensor).collect(),
        }
    }

    /// Put together again, with the checksum of what is there now.
    fn bytes(&self) -> Vec<u8> {
        let data: Vec<u8> = self.tensors.iter().flat_map(|tensor| tensor.3.iter().copied()).collect();
        let mut metadata = self.metadata.clone();
        if let (Some(config), true) = (metadata.get("config").cloned(), metadata.contains_key("xxh3")) {
            metadata.insert("xxh3".into(), digest(&config, &data));
        }
        let mut header = json!({ "__metadata__": metadata });
        let mut start = 0;
        for (name, dtype, shape, bytes) in &self.tensors {
            let end = start + bytes.len();
            header[name] = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
            start = end;
        }
        let mut header = header.to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
    }

    fn tensor(&mut self, name: &str) -> &mut (String, String, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    fn config(&mut self, change: impl Fn(&mut Value)) -> Vec<u8> {
        let mut config = serde_json::from_str(&self.metadata["config"]).unwrap();
        change(&mut config);
        self.metadata.insert("config".into(), config.to_string());
        self.bytes()
    }
}

/// What is said of bytes that are no packed model.
fn error(bytes: Vec<u8>) -> String {
    let text = PackedModel::from_bytes(bytes, "m.safetensors").map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with("m.safetensors: "), "{text}");
    text
}

fn refused(bytes: Vec<u8>, says: &[&str]) {
    let text = error(bytes);
    assert!(says.iter().all(|part| text.contains(part)), "{text:?} says nothing of {says:?}");
}

fn repacked(noise: &Noise, density: Density, table: TableBits) -> Vec<u8> {
    let cx = Exec::new(Isa::SCALAR, 1);
    let options = Options { density, table };
    pack(&cx, &noise.config, &noise.params, noise.model.tokenizer(), options)
}

/// The logits after a text.
fn logits(bytes: Vec<u8>) -> Vec<f32> {
    let model = std::sync::Arc::new(PackedModel::from_bytes(bytes, "m.safetensors").unwrap());
    let mut state = model.new_state();
    Engine::new(model, Exec::new(Isa::SCALAR, 1), 64).prefill(&mut state, &stories(30, 1)).to_vec()
}

/// One model of each kind of file.
fn kinds() -> Vec<Noise> {
    let mut all = shapes();
    all.retain(|(name, _)| {
        ["conv recipe", "attention bytes", "delta blocks", "delta original"].contains(&name.as_str())
    });
    assert_eq!(all.len(), 4);
    all.into_iter().map(|(_, config)| Noise::new(config)).collect()
}

#[test]
fn four_and_five_a_byte_are_the_same_model() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let want = logits(noise.bytes.clone());
        let five = repacked(&noise, Density::Five, TableBits::Eight);
        assert!(logits(five.clone()) == want, "{name}");
        let ternary = noise.config.quant.scale != ScaleKind::None;
        assert_eq!(five.len() < noise.bytes.len(), ternary, "{name}");
        // Put together from its parts it is the same, too.
        assert!(logits(File::of(&five).bytes()) == want, "{name}");
        assert!(repacked(&noise, Density::Four, TableBits::Eight) == noise.bytes, "{name}: the same bytes");
    }
}

/// What is unpacked packs into the same codes, and the same scales but for the rounding of their mean, a sum in f32.
#[test]
fn unpacked_parameters_pack_into_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let cx = Exec::new(Isa::SCALAR, 1);
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        std::fs::write(&path, &noise.bytes).unwrap();
        let params = unpack(&cx, TensorFile::open(&path).unwrap()).unwrap();
        let again = pack(&cx, &noise.config, &params, noise.model.tokenizer(), Options::default());
        let (want, got) = (File::of(&noise.bytes), File::of(&again));
        assert_eq!(want.tensors.len(), got.tensors.len());
        for (want, got) in want.tensors.iter().zip(&got.tensors) {
            assert_eq!((&want.0, &want.1, &want.2), (&got.0, &got.1, &got.2), "{name}");
            if want.1 != "F32" {
                assert!(want.3 == got.3, "{name}: other codes in {}", want.0);
                continue;
            }
            let floats = |bytes: &[u8]| -> Vec<f32> {
                bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            };
            for (want, got) in floats(&want.3).into_iter().zip(floats(&got.3)) {
                assert!((want - got).abs() <= 2e-5 * want.abs(), "{name}: {want} became {got}");
            }
        }
    }
}

#[test]
fn a_table_of_four_bits_is_near() {
    let noise = Noise::new(shapes().remove(0).1);
    let (got, want) = (logits(repacked(&noise, Density::Four, TableBits::Four)), logits(noise.bytes.clone()));
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = got.iter().zip(&want).map(|(g, w)| square(g - w)).sum();
    let ratio = (off / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt();
    // Half a step of an eighth of the largest of 16, which is twice the usual weight: some 7 %, more once through the blocks.
    assert!((0.02..0.2).contains(&ratio), "{ratio}");
}

/// Tables that are looked up, with all their rows in 4 bits.
#[test]
fn other_tables_of_four_bits_are_near() {
    let (_, config) = shapes().into_iter().find(|(name, _)| name == "conv recipe").unwrap();
    // All but the tables is small.
    let config = ModelConfig { pointer: 0, ..config };
    let (noise, folder) = (Noise::new(config), tempfile::tempdir().unwrap());
    let path = folder.path().join("m.safetensors");
    let bytes = [TableBits::Eight, TableBits::Four].map(|bits| repacked(&noise, Density::Four, bits));
    assert!(bytes[1].len() < bytes[0].len() * 2 / 3);
    for (bytes, most) in bytes.iter().zip([0.01, 0.12]) {
        std::fs::write(&path, bytes).unwrap();
        let params = unpack(&Exec::new(Isa::SCALAR, 1), TensorFile::open(&path).unwrap()).unwrap();
        let tables = noise.layout.specs().iter().filter(|spec| spec.group == Group::Table);
        for spec in tables.clone() {
            let ratio = ratio(&params[spec.range.clone()], &noise.params[spec.range.clone()]);
            assert!((most / 10.0..most).contains(&ratio), "{}: {ratio}", spec.name);
        }
        assert_eq!(tables.count(), 3);
        assert!(logits(bytes.clone()).iter().all(|z| z.is_finite()));
    }
}

#[test]
fn scales_of_four_bits_are_the_best_there_are() {
    let mut rng = crate::rng::Rng::new(3);
    let (mut found, mut best, mut plain) = (0.0, 0.0, 0.0);
    for _ in 0..50 {
        let part: Vec<f32> = (0..16).map(|_| rng.normal() as f32).collect();
        let error = |scale: f32| {
            let near = |w: f32| (-8..8).map(|code| w - code as f32 * scale).fold(f32::MAX, |a, b| a.abs().min(b.abs()));
            part.iter().map(|&w| f64::from(near(w)).powi(2)).sum::<f64>()
        };
        let m = part.iter().fold(0f32, |m, w| m.max(w.abs()));
        found += error(nibble_scale(&part));
        // Of both signs, in steps of a thousandth.
        let all = (1..2000).map(|i| (i - 1000) as f32 / 1000.0 * m / 5.0);
        best += all.map(error).fold(f64::MAX, f64::min);
        plain += error(m / 7.0);
    }
    assert!(found < 1.1 * best && found < 0.85 * plain, "{found} is not near {best}, and {plain} without a search");
    assert_eq!(nibble_scale(&[0.0; 16]), 0.0);
}

#[test]
fn cut_files_are_errors_at_every_boundary() {
    let noise = &kinds()[0];
    let whole = &noise.bytes;
    let n = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let mut cuts = vec![0, 1, 7, 8, 9, 8 + n / 2, n - 1, n];
    let mut end = n;
    for tensor in File::of(whole).tensors {
        end += tensor.3.len();
        cuts.extend([end - 1, end, end + 1]);
    }
    assert_eq!(end, whole.len());
    for cut in cuts.into_iter().filter(|cut| *cut < whole.len()) {
        refused(whole[..cut].to_vec(), &["expected", &format!("found {cut}")]);
    }
    refused([&whole[..], &[0]].concat(), &["expected"]);
    // Without a tensor at its end, and a header that knows nothing of it.
    for i in 0..File::of(whole).tensors.len() {
        let mut file = File::of(whole);
        let name = file.tensors.remove(i).0;
        refused(file.bytes(), &["expected a tensor", &name]);
    }
}

#[test]
fn every_key_of_the_metadata_counts() {
    for noise in kinds() {
        for (key, mend) in [
            ("format", "`flashlm pack` makes one from a run"),
            ("version", "pack the run again"),
            ("config", "pack the run again"),
            ("per_byte", "pack the run again"),
            ("table_bits", "pack the run again"),
            ("xxh3", "copy it again"),
        ] {
            let mut file = File::of(&noise.bytes);
            let own = file.metadata.remove(key).unwrap();
            refused(file.bytes(), &[&format!("`{key}`"), "none", mend]);
            for bad in ["", "2", "null", "{}", "\u{1f600}", &"x".repeat(100_000)] {
                if key == "xxh3" {
                    continue;
                }
                file.metadata.insert(key.into(), bad.into());
                let text = error(file.bytes());
                assert!(text.contains(&format!("`{key}`")) && text.contains(mend) && text.len() < 600, "{text}");
            }
            file.metadata.insert(key.into(), own);
            assert!(logits(file.bytes()) == logits(noise.bytes.clone()));
        }
    }
    let noise = &kinds()[0];
    let mut data = noise.bytes.clone();
    *data.last_mut().unwrap() ^= 1;
    refused(data, &["`xxh3`", "the file is damaged: copy it again"]);
    refused(b"GIF89a, a picture and no tensors".to_vec(), &["a header"]);
    refused(u64::MAX.to_le_bytes().to_vec(), &["a header"]);
    refused([&(1u64 << 40).to_le_bytes(), &noise.bytes[8..]].concat(), &["a header"]);
}

#[test]
fn every_tensor_has_one_type_and_shape() {
    for noise in kinds() {
        let whole = File::of(&noise.bytes);
        for (i, (name, dtype, shape, _)) in whole.tensors.iter().enumerate() {
            let mut file = whole.clone();
            file.tensors[i].1 = match dtype.as_str() {
                "U8" => "I8",
                "I8" => "U8",
                _ => "I32",
            }
            .into();
            refused(file.bytes(), &[name, "type"]);
            let mut file = whole.clone();
            file.tensors[i].2.insert(0, 1);
            if name != "tokenizer" {
                refused(file.bytes(), &[name, &format!("{shape:?}"), "pack the run again"]);
            }
            // A row less.
            let mut file = whole.clone();
            let row = file.tensors[i].3.len() / shape[0];
            file.tensors[i].2[0] -= 1;
            file.tensors[i].3.truncate(row * (shape[0] - 1));
            let text = error(file.bytes());
            assert!(text.contains(name.as_str()), "{text}");
        }
        let mut file = whole.clone();
        file.tensors.push(("extra".into(), "U8".into(), vec![3], vec![0; 3]));
        refused(file.bytes(), &["extra", "no tensor of this name"]);
    }
}

#[test]
fn numbers_that_no_model_has_are_refused() {
    for noise in kinds() {
        let whole = File::of(&noise.bytes);
        for (i, (name, dtype, _, bytes)) in whole.tensors.iter().enumerate() {
            let change = |at: usize, with: &[u8], says: &[&str]| {
                let mut file = whole.clone();
                file.tensors[i].3[at..at + with.len()].copy_from_slice(with);
                refused(file.bytes(), &[&[name.as_str()], says].concat());
            };
            match dtype.as_str() {
                "F32" => {
                    change(0, &f32::NAN.to_le_bytes(), &["finite numbers", "NaN"]);
                    change(bytes.len() - 4, &f32::NEG_INFINITY.to_le_bytes(), &["finite numbers", "-inf"]);
                }
                "I8" => change(bytes.len() - 1, &[128], &["-128"]),
                _ if name == "tokenizer" => {}
                _ => [3, 12, 48, 192, 255]
                    .into_iter()
                    .for_each(|bad| change(bytes.len() / 2, &[bad], &["ternary codes"])),
            }
        }
    }
    let words = Noise::new(ModelConfig { pointer: 3, pointer_words: true, ..tiny("conv") });
    for (twin, says) in [(7.0, "token 0, whose twin is 7, whose twin is 6"), (1e9, "token 0, whose twin is 256")] {
        let mut file = File::of(&words.bytes);
        file.tensor("pointer.twin").3[..4].copy_from_slice(&f32::to_le_bytes(twin));
        refused(file.bytes(), &["pointer.twin", "pairs of tokens", says]);
    }
    let noise = &kinds()[0];
    let mut five = File::of(&repacked(noise, Density::Five, TableBits::Four));
    five.tensor("blocks.0.ffn.W_up.weight").3[0] = 243;
    refused(five.bytes(), &["W_up", "ternary codes", "243"]);
    let four = File::of(&repacked(noise, Density::Five, TableBits::Four));
    // bf16: infinity, NaN, and a finite scale whose product with its code is not.
    for bad in [0x7f80u16, 0x7fc0, 0x7f7f] {
        let mut file = four.clone();
        file.tensor("embedding.rare.weight.scale").3[..2].copy_from_slice(&bad.to_le_bytes());
        refused(file.bytes(), &["embedding.rare.weight.scale", "finite numbers"]);
    }
}

#[test]
fn a_config_that_does_not_fit_its_tensors_is_refused_unallocated() {
    let start = Instant::now();
    for noise in kinds() {
        let whole = File::of(&noise.bytes);
        let change = |key: &str, value: usize| whole.clone().config(|config| config[key] = json!(value));
        let tokens = "must be 257, since its tokenizer has 257 tokens";
        refused(change("vocab_size", 65_535), &["model.vocab_size = 65535", tokens]);
        // The end of a document is 256.
        refused(change("vocab_size", 256), &["model.eos = 256"]);
        refused(change("vocab_size", 1 << 40), &["vocab_size", "between"]);
        refused(change("dim", 8184), &["expected"]);
        refused(change("ffn_hidden", 32_768), &["expected"]);
        refused(change("blocks", 128), &["expected a tensor", "blocks.2."]);
        refused(change("blocks", 1), &["blocks.1.", "no tensor of this name"]);
        refused(change("unknown", 1), &["`config`", "unknown"]);
        // 128 blocks of 8192: a hundred thousand million parameters. One has a thousand million.
        for (hidden, blocks, says) in [(32_768, 128, "parameters"), (8192, 1, "expected")] {
            let all = whole.clone().config(|config| {
                (config["dim"], config["ffn_hidden"], config["blocks"]) = (json!(8184), json!(hidden), json!(blocks));
            });
            refused(all, &[says]);
        }
    }
    assert!(start.elapsed().as_secs() < 20);
}

#[test]
fn another_tokenizer_is_refused() {
    let noise = kinds().into_iter().find(|noise| noise.config.reset).unwrap();
    let whole = File::of(&noise.bytes);
    let with = |bytes: Vec<u8>| {
        let mut file = whole.clone();
        let tensor = file.tensor("tokenizer");
        (tensor.2, tensor.3) = (vec![bytes.len()], bytes);
        file.bytes()
    };
    let bpe = Tokenizer::train_bpe(["the cat and the cat and the hat"].into_iter(), 262).unwrap();
    refused(with(bpe.to_compact()), &["model.vocab_size = 257", "its tokenizer"]);
    refused(with(b"nothing".to_vec()), &["its tokenizer", "JSON"]);
    refused(with(Vec::new()), &["its tokenizer"]);
    // As many tokens, and another one at the end of a document.
    let same = Tokenizer::train_bpe(["x"].into_iter(), 257).unwrap();
    assert_ne!(same.eos(), EOS);
    refused(with(same.to_compact()), &["model.eos = 256: must be 0, the end of a document in its tokenizer"]);
}

/// Reads a file and, where it is a model, lets it write.
fn survives(bytes: Vec<u8>) -> bool {
    let Ok(model) = PackedModel::from_bytes(bytes, "m.safetensors") else { return false };
    let model = std::sync::Arc::new(model);
    let mut state = model.new_state();
    let last = (model.config().vocab_size - 1) as u16;
    let mut engine = Engine::new(model, Exec::new(Isa::SCALAR, 1), 4);
    engine.prefill(&mut state, &[0, last, 1, 2, last]);
    true
}

#[test]
fn no_flipped_bit_is_a_panic_or_goes_unnoticed() {
    let mut rng = Rng::new(9);
    for noise in kinds() {
        let n = 8 + u64::from_le_bytes(*noise.bytes.first_chunk().unwrap()) as usize;
        for i in 0..100 {
            let mut bytes = noise.bytes.clone();
            // Half of them in the header, which is short.
            let at = rng.below(if i % 2 == 0 { n } else { bytes.len() } as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
            error(bytes);
        }
        // Behind the checksum.
        let (whole, mut read) = (File::of(&noise.bytes), 0);
        for i in 0..100 {
            let mut file = whole.clone();
            if i % 4 == 0 {
                let config = &mut file.metadata.get_mut("config").unwrap();
                let at = rng.below(config.len() as u64) as usize;
                config.replace_range(at..at + 1, ["0", "9", "-", "e", "\"", ",", "t"][rng.below(7) as usize]);
            } else {
                let tensor = rng.below(file.tensors.len() as u64) as usize;
                let data = &mut file.tensors[tensor].3;
                let at = rng.below(data.len() as u64) as usize;
                data[at] ^= 1 << rng.below(8);
            }
            read += usize::from(survives(file.bytes()));
        }
        assert!(read > 10, "only {read} changed files were models");
    }
}

#[test]
fn a_file_that_was_cut_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, &kinds()[0].bytes).unwrap();
    assert!(PackedModel::open(&path).is_ok());
    std::fs::write(&path, &kinds()[0].bytes[..500]).unwrap();
    let text = PackedModel::open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(text.starts_with(&path.display().to_string()), "{text}");
}
