//! Models of other programs: by name from a hub of our own, in one table, and asked whether they see the future.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};

use crate::common::{Place, text};
use crate::hub::command;
use crate::hub_server::{Act, COMMIT, Hub};
use crate::neo::gpt_neo;

/// Width, blocks and heads of the models of TinyStories; the largest narrower than they are, with as many heads.
const SIZES: [(&str, usize, usize, usize); 5] =
    [("1M", 64, 8, 16), ("3M", 128, 8, 16), ("8M", 64, 8, 16), ("28M", 64, 8, 16), ("33M", 96, 4, 16)];
/// Tokens of a context, and of a vocabulary that is not GPT-2's.
const CONTEXT: usize = 2048;
const VOCAB: usize = 331;

fn hub_of(vocab: usize, (dim, blocks, heads): (usize, usize, usize)) -> (Hub, usize) {
    let (config, weights, numbers) = gpt_neo((vocab, dim, blocks, heads), CONTEXT);
    let files = [("README.md", b"# a model".to_vec()), ("config.json", config), ("model.safetensors", weights)];
    (Hub::new(&files), numbers)
}

fn ok(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn every_size_of_tinystories_is_taken_by_name() {
    for (name, dim, blocks, heads) in SIZES {
        let place = Place::new();
        let (hub, numbers) = hub_of(VOCAB, (dim, blocks, heads));
        let run = |args: &str| command(&place, &hub.endpoint, args).output().unwrap();
        let spec = format!("hf:roneneldan/TinyStories-{name}");
        let info: Value = serde_json::from_str(&ok(run(&format!("info {spec} --json")))).unwrap();
        assert_eq!((&info["kind"], &info["parameters"]), (&json!("GPT-Neo"), &json!(numbers)), "{name}");
        assert_eq!(info["architecture"]["blocks"], blocks);
        let asked: Vec<String> = hub.log().into_iter().map(|seen| seen.path).collect();
        assert_eq!(asked[0], format!("/api/models/roneneldan/TinyStories-{name}/revision/main?blobs=true"));
        assert_eq!(asked[1], format!("/roneneldan/TinyStories-{name}/resolve/{COMMIT}/config.json"));
        assert!(!asked.iter().any(|path| path.contains("README")), "{asked:?}");
        let folder = place.path(&format!("hf/hub/models--roneneldan--TinyStories-{name}/snapshots/{COMMIT}"));
        assert!(folder.join("config.json").exists() && folder.join("model.safetensors").exists());
        // From the cache alone.
        hub.rule(|_| Act::Status(500, ""));
        let verify: Value = serde_json::from_str(&ok(run(&format!("verify {spec} --json --offline")))).unwrap();
        assert_eq!((&verify["pass"], &verify["forms"][0]["moved"]), (&json!(true), &json!(0)), "{verify}");
        assert_eq!(hub.log().len(), 0);
    }
}

#[test]
fn a_model_by_name_is_scored_and_writes() {
    let place = Place::new();
    let (hub, numbers) = hub_of(50_257, (64, 8, 16));
    let run = |args: &str| command(&place, &hub.endpoint, args).output().unwrap();
    let spec = "hf:roneneldan/TinyStories-1M@main";
    // Broken off in the middle, and gone on with.
    hub.at_first("content", 2, Act::Cut(100_000));
    let object: Value = serde_json::from_str(&ok(run(&format!("eval {spec} --data synthetic:2 --json")))).unwrap();
    assert_eq!(object["parameters"], numbers);
    // Drawn weights know nothing: 15.6 bits for each token.
    assert!(object["perplexity"].as_f64().unwrap() > 20_000.0, "{object}");
    assert!(hub.log().iter().any(|seen| seen.range.is_some_and(|from| from >= 100_000)), "{:?}", hub.log());
    assert!(ok(run(&format!("generate {spec} -p Once --tokens 5 --offline"))).starts_with("Once"));
    // What is scored is what `eval` counts.
    place.write("one.txt", "Once upon a time there was a hen.");
    ok(run(&format!("eval {spec} --data one.txt --per-document one.jsonl")));
    let document: Value = serde_json::from_str(&fs::read_to_string(place.path("one.jsonl")).unwrap()).unwrap();
    let mut score = command(&place, &hub.endpoint, &format!("score {spec} --json --continuation"));
    let score = ok(score.arg("Once upon a time there was a hen.").output().unwrap());
    let score: Value = serde_json::from_str(&score).unwrap();
    let (nats, logprob) = (document["nats"].as_f64().unwrap(), score["logprob"].as_f64().unwrap());
    assert!((nats + logprob).abs() < 1e-6, "{nats} {logprob}");
    // And what is written has the probabilities that `score` gives it.
    let written = ok(run(&format!("generate {spec} -p Once --tokens 4 --greedy --json")));
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!((&written["prompt"], written["tokens"].as_array().unwrap().len()), (&json!("Once"), 4));
    let tokens: f64 =
        written["tokens"].as_array().unwrap().iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
    assert!((tokens - written["logprob"].as_f64().unwrap()).abs() < 1e-9 && tokens < -4.0, "{written}");
    // The table, with the model in the program; bars of both.
    let rows = ok(run(&format!("eval {spec} builtin --data synthetic:2 --svg bars.svg --json")));
    let table: Value = serde_json::from_str(&rows).unwrap();
    assert_eq!(table["models"][0]["bpb"], object["bpb"]);
    assert_eq!(table["models"][1]["runs"], "packed");
    let picture = fs::read_to_string(place.path("bars.svg")).unwrap();
    assert!(picture.contains("TinyStories-1M") && picture.contains(&format!("{:.3}", object["bpb"].as_f64().unwrap())));
    assert!(!run(&format!("eval {spec} builtin --data synthetic:2 --svg bars.svg")).status.success());
    let told = ok(run(&format!("eval {spec} builtin --data synthetic:2 --protocol published")));
    assert!(
        told.contains("published bits/char") && told.contains("understated: the bits of the first 256 tokens"),
        "{told}"
    );
}

#[test]
fn what_the_hub_does_not_have_is_told() {
    let place = Place::new();
    let hub = Hub::new(&[("a.bin", b"x".to_vec()), ("b.pt", b"x".to_vec())]);
    let fails = |args: &str, says: &str| {
        let output = command(&place, &hub.endpoint, args).output().unwrap();
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(says), "{args}: {stderr}");
    };
    fails("info hf:a/b --offline", "a/b: offline, and it is not in");
    fails("info hf:a/b", "several models; name one: hf:a/b:FILE with a.bin, b.pt");
    fails("generate hf:a/b:c.bin", "no file c.bin; there is a.bin, b.pt");
    fails("verify hf:a/b@../x", "is not a revision");
    hub.rule(|_| Act::Damage);
    fails("info hf:a/b:b.pt", "checksum");
    hub.rule(|_| Act::Status(404, ""));
    fails("info hf:c/d", "there is no such model or file");
}

#[test]
fn models_of_our_own_do_not_see_the_future() {
    let place = Place::new();
    let told = place.ok("verify builtin");
    assert!(told.starts_with("builtin: pass") && told.contains("nats of the next token"), "{told}");
    place.fails("verify none", &["expected a model, or test vectors"]);
}
