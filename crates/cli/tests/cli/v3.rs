//! FlashLM v3 as a run: its embedding from a model of a hub of our own, what is fetched of it, and what becomes of the run.

use std::fs;
use std::path::Path;
use std::process::Output;

use flashlm_model::io::safetensors::{TensorFile, TensorRef, write_tensors};
use serde_json::{Value, json};

use crate::common::{Place, text};
use crate::hub::command;
use crate::hub_server::{Act, Hub};
use crate::schema::Schemas;

const VOCAB: usize = 257;
const WIDTH: usize = 24;
const DIM: usize = 16;
/// A small v3 on made-up stories.
const TRAIN: &str = "--preset v3 --data synthetic:60 --set model.dim=16 --set model.ffn_hidden=24 --set tokenizer.kind=bytes \
                     --set train.stages=[] --set train.seq_len=64 --batch 4 --set train.average_share=0.0";

/// `[V, 24]` of rank 16, so that nothing is lost in 16 dimensions.
fn table() -> Vec<f32> {
    let part = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 1009.0 - 0.5;
    let entry = |i: usize, j: usize| (0..DIM).map(|s| part(i, s) * part(s + 300, j)).sum::<f32>();
    (0..VOCAB * WIDTH).map(|at| entry(at / WIDTH, at % WIDTH)).collect()
}

/// A model whose other tensors are much larger.
fn hub() -> Hub {
    let (table, other) = (table(), vec![0.5f32; 500_000]);
    let tensors = [
        TensorRef { name: "h.0.mlp.c_fc.weight", shape: &[1000, 500], data: &other },
        TensorRef { name: "wte.weight", shape: &[VOCAB, WIDTH], data: &table },
    ];
    let mut bytes = Vec::new();
    write_tensors(&mut bytes, &tensors, &Default::default()).unwrap();
    Hub::new(&[("config.json", b"{}".to_vec()), ("model.safetensors", bytes)])
}

fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

fn embedding(run: &Path) -> Vec<f32> {
    let mut all: Vec<_> = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.is_dir());
    all.sort();
    TensorFile::open(&all.last().unwrap().join("model.safetensors")).unwrap().f32("embedding.weight").unwrap()
}

#[test]
fn the_embedding_is_fetched_alone_decomposed_and_kept() {
    let (place, hub) = (Place::new(), hub());
    let run = |args: &str| command(&place, &hub.endpoint, args).output().unwrap();
    // A connection that breaks is gone on with.
    hub.at_first("content", 3, Act::Cut(10_000));
    let said = ok(run(&format!("train {TRAIN} --steps 1 --save-dir one")));
    assert!(
        said.contains("the embedding starts from that of hf:openai-community/gpt2: 100 % of its variance"),
        "{said}"
    );
    let asked = hub.log();
    let ranges: Vec<_> =
        asked.iter().filter(|seen| seen.kind == "content").map(|seen| (seen.range, seen.end)).collect();
    let bytes: u64 = ranges.iter().map(|(from, end)| end.unwrap() - from.unwrap()).sum();
    assert!(bytes < 3 * (VOCAB * WIDTH * 4) as u64 && ranges.len() >= 4, "{ranges:?}");
    assert!(!asked.iter().any(|seen| seen.path.ends_with("config.json")));
    // It is frozen in the first tenth, so the checkpoint has it as it began: all products of rows are those of the table.
    let (got, want) = (embedding(&place.path("one")), table());
    let dot = |m: &[f32], width: usize, i: usize, j: usize| -> f64 {
        (0..width).map(|c| f64::from(m[i * width + c]) * f64::from(m[j * width + c])).sum()
    };
    for (i, j) in (0..VOCAB).flat_map(|i| [i, i * 31 % VOCAB, 5].map(|j| (i, j))) {
        let (got, want) = (dot(&got, DIM, i, j), dot(&want, WIDTH, i, j));
        assert!((got - want).abs() < 1e-4, "{i}, {j}: {got} for {want}");
    }
    // The next run asks nobody.
    hub.rule(|_| Act::Status(500, ""));
    ok(run(&format!("train {TRAIN} --steps 1 --save-dir two --offline")));
    assert!(hub.log().is_empty() && embedding(&place.path("two")) == got);
}

/// Twenty steps: the embedding stays in two of them, and a run that is resumed among these or later ends with the same bits.
#[test]
fn the_embedding_is_frozen_for_a_tenth_of_a_run() {
    let (place, hub) = (Place::new(), hub());
    let run = |args: &str| ok(command(&place, &hub.endpoint, args).output().unwrap());
    run(&format!("train {TRAIN} --steps 20 --set train.checkpoint_every=1 --set train.keep=30 --save-dir one"));
    let at = |run: &str, step: u64| {
        let path = place.path(run).join(format!("checkpoints/step-{step:08}/model.safetensors"));
        TensorFile::open(&path).unwrap().f32("embedding.weight").unwrap()
    };
    assert!(at("one", 1) == at("one", 2) && at("one", 2) != at("one", 3) && at("one", 3) != at("one", 20));
    for step in [1, 5] {
        run(&format!("train --resume one/checkpoints/step-{step:08} --save-dir from{step}"));
        assert!(at(&format!("from{step}"), 20) == at("one", 20), "from {step}");
    }
}

/// Headers that lie about what comes: nothing more is asked for.
#[test]
fn a_hostile_header_is_refused_before_its_data_is_fetched() {
    let tensor = |name: &str, shape: &str, offsets: &str| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    let good = tensor("wte.weight", "[257,24]", "[0,24672]");
    for (header, says) in [
        ("no JSON".to_string(), "its header is no JSON"),
        (format!("{{{good},{}}}", tensor("embed_tokens.weight", "[257,24]", "[0,24672]")), "it has 2 tensors named"),
        ("{}".to_string(), "it has 0 tensors named wte.weight or embed_tokens.weight"),
        (format!("{{{}}}", tensor("wte.weight", "[257,9000000]", "[0,2000000000]")), "needs [257, 16 to 16384]"),
        (format!("{{{}}}", tensor("wte.weight", "7", "[0,8]")), "has no shape"),
        (
            format!("{{{}}}", tensor("wte.weight", "[257,24]", "[18446744073709551600,18446744073709551612]")),
            "the range of",
        ),
        (format!("{{{}}}", tensor("wte.weight", "[257,24]", "[100000,124672]")), "shorter than its header says"),
        (format!("{{{}}}", tensor("wte.weight", "[257,24]", "[0,12]")), "a bad header"),
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 500]].concat();
        let (place, hub) = (Place::new(), Hub::new(&[("model.safetensors", bytes)]));
        let output =
            command(&place, &hub.endpoint, &format!("train {TRAIN} --steps 1 --save-dir run")).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(says), "{says}: {said}");
        assert!(!place.path("run/checkpoints").exists());
    }
    let (place, hub) = (Place::new(), Hub::new(&[("model.safetensors", vec![255; 600])]));
    let output = command(&place, &hub.endpoint, &format!("train {TRAIN} --steps 1 --save-dir run")).output().unwrap();
    assert!(text(&output.stderr).contains("this is no safetensors file"), "{}", text(&output.stderr));
}

#[test]
fn without_a_network_the_start_is_random_and_says_so() {
    let (place, hub) = (Place::new(), hub());
    let run = |args: &str| command(&place, &hub.endpoint, args).output().unwrap();
    let said = ok(run(&format!("train {TRAIN} --steps 3 --save-dir off --offline")));
    assert!(said.contains("the embedding starts at random, and is not frozen"), "{said}");
    assert!(hub.log().is_empty());
    let settings = fs::read_to_string(place.path("off/settings.toml")).unwrap();
    assert!(settings.contains("frozen_embedding = 0"), "{settings}");
    // What is no embedding for this model is no reason to go on without.
    let wrong = run(&format!("train {TRAIN} --set model.dim=32 --steps 1 --save-dir wrong"));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("needs [257, 32 to 16384]"), "{}", text(&wrong.stderr));
    let wrong = run(&format!("train {TRAIN} --set train.embedding_from=gpt2 --steps 1 --save-dir wrong"));
    assert!(text(&wrong.stderr).contains("hf:OWNER/NAME"), "{}", text(&wrong.stderr));
}

#[test]
fn a_run_of_v3_is_scored_as_published_packed_resumed_and_writes() {
    let place = Place::new();
    place.ok(&format!("train {TRAIN} --set train.embedding_from= --steps 6 --save-dir run"));
    let settings = fs::read_to_string(place.path("run/settings.toml")).unwrap();
    assert!(settings.contains("frozen_embedding = 0") && settings.contains("documents = 0"), "{settings}");
    let object: Value = serde_json::from_str(&place.ok("eval run --data synthetic:20 --json")).unwrap();
    Schemas::documented().check("evaluation", &object);
    let number = |key: &str| object[key].as_f64().unwrap();
    let plain = object["latent"]["loss_per_token"].as_f64().unwrap();
    // A smoothed loss has a tenth of the loss of a uniform draw in it, which is at least ln V.
    assert!(number("label_smoothed_loss") > 0.9 * plain + 0.1 * (VOCAB as f64).ln() - 1e-6, "{object}");
    assert!((number("packed_over_latent") - 1.0).abs() < 0.05, "{object}");
    place.ok("pack run -o model.safetensors");
    let one = place.ok("generate model.safetensors -p Once --tokens 20 --greedy");
    assert_eq!(one, place.ok("generate run -p Once --tokens 20 --greedy --threads 2"));
    place.ok("train --resume run --steps 8");
    let verify: Value = serde_json::from_str(&place.ok("verify run --json")).unwrap();
    assert_eq!((&verify["forms"][0]["moved"], &verify["forms"][1]["moved"]), (&json!(0), &json!(0)), "{verify}");
    let info: Value = serde_json::from_str(&place.ok("info run --json")).unwrap();
    assert!(info.to_string().contains("unused"), "{info}");
    for format in ["c", "web", "gguf", "hf", "onnx"] {
        place.fails(&format!("export {format} run -o out"), &["model.family = v3 (expected flash)"]);
        assert!(!place.path("out").exists());
    }
    place.ok("export safetensors run -o out.safetensors");
    place.fails(
        "train --preset v3 --data synthetic:20 --set model.x0=true --steps 1 --save-dir bad",
        &["model.x0 = true: must be false"],
    );
}
