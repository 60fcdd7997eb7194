//! From text to a model that speaks: train, evaluate, generate, plot, by the commands a person types.

use crate::common::{Place, TINY};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

#[test]
fn a_small_model_learns_and_tells() {
    let place = Place::new();
    let bpb = |run: &str| json(&place.ok(&format!("eval {run} --data valid.txt --json")))["bpb"].as_f64().unwrap();
    let valid: Vec<String> = (0..40).map(|i| flashlm_train::data::synthetic::story(77, i)).collect();
    place.write("valid.txt", valid.join("\n<|endoftext|>\n"));

    place.ok(&format!("train {TINY} --steps 1 --save-dir short"));
    place.ok(&format!("train {TINY} --steps 400 --lr 0.01 --save-dir long"));
    let (short, long) = (bpb("short"), bpb("long"));
    let bits: f64 = valid.iter().map(|s| flashlm_train::data::synthetic::bits(s).unwrap()).sum();
    let bound = bits / valid.iter().map(|s| s.len() as f64).sum::<f64>();
    assert!(long < 0.6 * short, "bits per byte went from {short} to {long} only");
    assert!(long > bound, "{long} is below the entropy {bound}");

    let tell = |flags: &str| place.ok(&format!("generate long -p Once -n 20 {flags}"));
    assert!(tell("").starts_with("Once"));
    assert_eq!(tell("-t 0"), tell("-t 0 --threads 1"));
    assert_eq!(tell("--seed 5"), tell("--seed 5"));
    assert_ne!(tell("--seed 5 -t 1"), tell("--seed 6 -t 1"));
    place.fails("generate long -p Once -t -3", &["temperature"]);
    place.fails("generate long -p Once --top-p 7", &["top"]);

    place.ok("plot long short -o both.svg");
    let svg = std::fs::read_to_string(place.path("both.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("long") && svg.contains("short"));
    for file in ["curve.svg", "MODEL_CARD.md", "settings.toml", "metrics.jsonl", "run.json", "result.json"] {
        assert!(place.path("long").join(file).metadata().unwrap().len() > 0, "{file}");
    }
    let sense = |flags: &str| json(&place.ok(&format!("eval long --data synthetic:3 --consistency 9 --json {flags}")));
    let written = sense("--seed 5");
    assert_eq!((&written["stories_written"], &written["stories"]), (&9.into(), &3.into()), "{written}");
    let with = |kind: &str| written["contradictions"][kind].as_u64().unwrap_or_else(|| panic!("no {kind}: {written}"));
    let most = ["name", "pronoun", "colour", "count", "place", "order", "ending", "words"].map(with).into_iter().max();
    // A story without a contradiction is counted with none, any other with one kind or more.
    let contradictory = 9.0 * (1.0 - written["consistent"].as_f64().unwrap());
    assert!(contradictory + 1e-9 >= most.unwrap() as f64 && contradictory < 9.1, "{written}");
    assert_eq!(sense("--seed 5 --threads 2")["contradictions"], written["contradictions"]);
    place.fails("eval long --data valid.txt --consistency 9", &["--consistency", "synthetic"]);
    let result = json(&std::fs::read_to_string(place.path("long/result.json")).unwrap());
    assert_eq!(result["consistency"]["stories"], 100, "{result}");
    let card = std::fs::read_to_string(place.path("long/MODEL_CARD.md")).unwrap();
    assert!(card.contains(" of 100 stories without a contradiction"), "{card}");

    let info = json(&place.ok("info long --json"));
    let architecture = &info["architecture"];
    assert_eq!((&architecture["mixer"], &architecture["blocks"]), (&"conv".into(), &2.into()), "{info}");
    // In each of two blocks: D -> 2D and D -> D of the mixer, three matrices of the GLU, 64 taps, two norms; one norm at the end.
    let matrices = 2 * (3 * 24 * 24 + 3 * 24 * 40);
    let groups =
        serde_json::json!({"embedding": 300 * 24, "matrices": matrices, "convolutions": 2 * 64 * 24, "norms": 5 * 24});
    assert_eq!(info["parameters"]["groups"], groups);
    let checkpoints = info["checkpoints"].as_array().unwrap();
    assert_eq!(checkpoints.last().unwrap()["step"], 400);
    assert_eq!(checkpoints.iter().filter(|checkpoint| checkpoint["best"] == true).count(), 1);
}

#[test]
fn every_tokenizer_and_preset_takes_a_step() {
    let place = Place::new();
    for (tokenizer, vocab) in [("frequency", 200), ("bpe", 400), ("bytes", 257)] {
        let flags = format!(
            "{} --steps 2 --tokenizer {tokenizer} --vocab {vocab} --save-dir {tokenizer}",
            TINY.replace("--vocab 300 ", "")
        );
        place.ok(&format!("train {flags}"));
        place.ok(&format!("generate {tokenizer} -n 3"));
    }
    for preset in flashlm_train::config::preset_names() {
        // One names texts of its own, in stages.
        let small = "--set train.stages=[] --data synthetic:200 --set data.holdout=0.05 --vocab 300 --set model.dim=16 --set model.blocks=1 --set model.delta.heads=2 --set model.ffn_hidden=16 --batch 2";
        place.ok(&format!("train --preset {preset} {small} --steps 3 --set train.sample_tokens=2 --save-dir {preset}"));
    }
    place.ok("train --small --data synthetic:200 --set data.holdout=0.05 --vocab 300 --epochs 0.001 --set model.dim=16 --set model.blocks=1 --save-dir flags");
}
