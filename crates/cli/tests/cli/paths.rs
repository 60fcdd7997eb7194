//! Every command given every kind of path: it is taken, or the error says what it is; nothing is waited for, and nothing of
//! another's is written over.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Place, TINY, text};

const STEP: &str = "run/checkpoints/step-00000002";

/// A trained run and all that is made of it.
fn kinds() -> Place {
    let place = Place::new();
    place.ok(&format!("train {TINY} --steps 2 --save-dir run"));
    place.ok("pack run -o packed.safetensors");
    place.ok("data prepare --data synthetic:300 --tokenizer bytes --out prep");
    for (from, to) in [("model.safetensors", "model.safetensors"), ("tokenizer.json", "tokenizer.json")] {
        fs::copy(place.path(STEP).join(from), place.path(to)).unwrap();
    }
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/reference/tensor_median.safetensors");
    fs::copy(vectors, place.path("vectors.safetensors")).unwrap();
    for folder in ["new", "texts", "empty"] {
        fs::create_dir(place.path(folder)).unwrap();
    }
    let header = r#"{"__metadata__":{"format":"pt"},"wte":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    place.write("foreign.safetensors", [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat());
    for (name, content) in [
        ("new/run.json", "{\"name\":\"x\"}"),
        ("texts/a.txt", "Once there was a hen.\n"),
        ("story.txt", "Once there was a hen.\n"),
        ("lines.jsonl", "{\"text\":\"Once there was a hen.\"}\n"),
        ("notes", "Once there was a hen.\n"),
        ("a.txt.gz", "\u{1f}\u{8b}"),
        ("unigram.json", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1.5]]}}"),
        ("other.json", "{\"a\":1}"),
        ("cut.json", "{\"model\":{\"type\":\"BP"),
        ("pointer.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 248731111\n"),
        ("empty.txt", ""),
        ("a.pdf", "%PDF-1.4 "),
    ] {
        place.write(name, content);
    }
    place.write("a.txt.gz", b"\x1f\x8b\x08\0");
    let model = fs::read(place.path("model.safetensors")).unwrap();
    place.write("cut.safetensors", &model[..300]);
    place
}

/// Commands by the letter that stands for each in `KINDS`; OUT is a file that is not there.
const COMMANDS: [(char, &str, &str); 7] = [
    ('i', "info PATH", ""),
    ('g', "generate PATH -n 2", "expected a model"),
    ('e', "eval PATH --data synthetic:2", "expected a model"),
    ('d', "bench decode PATH --seconds 0.01 --prompt 2", "expected a model"),
    ('p', "pack PATH -o OUT", "expected a model with master weights"),
    ('c', "plot PATH -o OUT", "expected a run, or the metrics.jsonl of one"),
    ('v', "verify PATH", "expected a model, or test vectors"),
];

/// The path, which commands take it, and of what the errors of the others speak.
const KINDS: [(&str, &str, &[&str]); 30] = [
    ("run", "igedpcv", &["found a run", "flashlm info run"]),
    (STEP, "igedpv", &["found a checkpoint", "flashlm info"]),
    ("model.safetensors", "igedpv", &["found a model with master weights"]),
    ("packed.safetensors", "igedv", &["found a packed model"]),
    ("new", "i", &["found a run that has no checkpoint yet", "Ctrl-C"]),
    ("run/checkpoints", "", &["found the folder of a run's checkpoints", "name the run"]),
    ("foreign.safetensors", "", &["another program (format \"pt\", 1 tensor)", "name the folder"]),
    ("vectors.safetensors", "iv", &["found test vectors", "flashlm verify vectors.safetensors"]),
    ("cut.safetensors", "", &["found a damaged safetensors file (expected ", "copy it again"]),
    ("pointer.safetensors", "", &["found a git LFS pointer", "git lfs pull"]),
    ("run/checkpoints/step-00000002/optimizer.safetensors", "", &["the optimizer state", "name the checkpoint"]),
    ("tokenizer.json", "i", &["found a tokenizer (BPE)", "flashlm train --tokenizer tokenizer.json"]),
    ("unigram.json", "", &["Unigram"]),
    ("other.json", "", &["found a JSON file that is no tokenizer"]),
    ("cut.json", "", &["found a damaged JSON file (EOF while parsing"]),
    ("prep", "i", &["found a folder that `flashlm data prepare` wrote", "prep/tokenizer.json"]),
    ("prep/train.tok", "i", &["found a token cache", "name the text"]),
    ("run/metrics.jsonl", "ic", &["found the metrics of a run", "flashlm plot run/metrics.jsonl"]),
    ("run/settings.toml", "", &["found settings", "flashlm train --config run/settings.toml"]),
    ("story.txt", "i", &["found text", "to train on it: flashlm train --data story.txt"]),
    ("notes", "i", &["found text", "flashlm train --data notes"]),
    ("lines.jsonl", "i", &["found text in JSON lines", "flashlm train --data lines.jsonl"]),
    ("a.txt.gz", "i", &["found gzip-compressed text", "flashlm train --data a.txt.gz"]),
    ("texts", "i", &["found a folder of text", "flashlm train --data texts"]),
    ("synthetic:7", "i", &["found the name of synthetic stories", "flashlm train --data synthetic:7"]),
    ("tinystories", "i", &["found the name of a dataset", "flashlm train --data tinystories"]),
    ("empty", "", &["found an empty folder", "wait for its first checkpoint"]),
    ("empty.txt", "", &["found an empty file"]),
    ("a.pdf", "", &["found a PDF document", "extract the text first"]),
    ("nowhere", "", &["nowhere: no such file or folder"]),
];

/// Where a command knows better.
const OWN_WORDS: [(&str, char, &str); 5] = [
    ("new", 'v', "new: expected a model with master weights: a run,"),
    ("packed.safetensors", 'p', "packed.safetensors is already packed; "),
    ("new", 'c', "new/metrics.jsonl: there is nothing to draw yet"),
    ("empty.txt", 'c', "empty.txt: there is nothing to draw yet"),
    ("unigram.json", 'i', "model type is Unigram; expected byte-level BPE"),
];

#[test]
fn each_command_takes_what_it_can_and_says_what_the_rest_is() {
    let place = kinds();
    for (i, (path, taken, words)) in KINDS.iter().enumerate() {
        for (letter, command, wanted) in COMMANDS {
            let args = command.replace("PATH", path).replace("OUT", &format!("out-{i}-{letter}"));
            if taken.contains(letter) {
                place.ok(&args);
                continue;
            }
            match OWN_WORDS.iter().find(|own| (own.0, own.1) == (*path, letter)) {
                Some(own) => place.fails(&args, &[own.2]),
                None => place.fails(&args, &[words, &[*path, wanted][..]].concat()),
            };
        }
        // Tokenizers are named in three places.
        for command in
            ["data stats synthetic:2 --tokenizer PATH", "data prepare --data synthetic:300 --out OUT --tokenizer PATH"]
        {
            let args = command.replace("PATH", &format!("./{path}")).replace("OUT", &format!("out-{i}"));
            match *path {
                "tokenizer.json" => drop(place.ok(&args)),
                "unigram.json" => {
                    drop(place.fails(&args, &["unigram.json", "model type is Unigram; expected byte-level BPE"]))
                }
                "synthetic:7" | "tinystories" => {}
                _ => drop(place.fails(&args, &[words[0], "a tokenizer file"])),
            }
        }
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

#[test]
fn info_tells_all_of_a_packed_model_and_of_what_prepare_wrote() {
    let place = kinds();
    let run = json(&place.ok("info run --json"));
    for (flags, ternary, table) in [("", 2.0, 8.0), ("--ternary-bits 1.6 --table-bits 4", 1.6, 4.0)] {
        let packed = json(&place.ok(&format!("pack run -o p.safetensors -f --json {flags}")));
        let info = json(&place.ok("info p.safetensors --json"));
        for key in ["architecture", "parameters", "tokenizer"] {
            assert_eq!(info[key], run[key], "{key}");
        }
        assert_eq!((&info["kind"], &info["in_memory"]), (&"packed model".into(), &packed["in_memory"]));
        assert_eq!(info["file_size"], fs::metadata(place.path("p.safetensors")).unwrap().len());
        assert_eq!(info["density"], serde_json::json!({"ternary_bits": ternary, "table_bits": table}));
    }
    let prepared = json(&place.ok("info prep --json"));
    assert_eq!((&prepared["kind"], &prepared["tokenizer"]["kind"]), (&"prepared folder".into(), &"bytes".into()));
    let stories = |side: &str| prepared[side]["stories"].as_u64().unwrap();
    assert_eq!(stories("train") + stories("valid"), 300);
    let told = place.ok("info story.txt");
    assert!(told.contains("flashlm data stats story.txt"), "{told}");
}

#[test]
fn settings_of_another_program_beside_a_model_are_left_alone() {
    let place = kinds();
    let told = |n: usize| {
        place.ok(&format!("pack model.safetensors -o out-{n}"));
        place.ok("bench decode model.safetensors --seconds 0.01 --prompt 2");
        let scored = json(&place.ok("eval model.safetensors --data synthetic:9 --json"))["latent"].to_string();
        (scored, ["generate model.safetensors -t 0 -n 9", "info model.safetensors"].map(|args| place.ok(args)))
    };
    let before = told(0);
    for (n, other) in ["[package]\nname = \"x\"\n", "not toml [", "train.lr = \"high\"\n"].iter().enumerate() {
        place.write("config.toml", other);
        assert_eq!(told(1 + n), before);
    }
}

/// Runs to its end within two seconds.
#[cfg(unix)]
fn in_time(place: &Place, args: &str) -> (Option<i32>, String) {
    let mut child = place.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(2) {
            child.kill().unwrap();
            panic!("flashlm {args} waits");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_never_waited_for() {
    let place = kinds();
    let pipe = |name: &str| assert!(Command::new("mkfifo").arg(place.path(name)).status().unwrap().success());
    pipe("pipe");
    pipe("pipe.txt");
    fs::create_dir(place.path("piped")).unwrap();
    pipe("piped/a.txt");
    let train = "train --preset flash-tiny --steps 1 --vocab 300";
    let others = [
        "train --config pipe",
        "eval run --data pipe.txt",
        "eval run --data piped",
        "data stats pipe",
        "data stats synthetic:2 --tokenizer pipe",
        "data stats synthetic:2 --svg pipe --force",
        "data sample pipe.txt",
        "data prepare --data pipe.txt --out o",
        "data prepare --data synthetic:300 --valid pipe --out o",
        "data prepare --data synthetic:300 --tokenizer pipe --out o",
        "data prepare --data synthetic:300 --out pipe",
        "pack run -o pipe --force",
        "plot run -o pipe --force",
        "plot run pipe -o o.svg",
        "train --resume pipe",
    ];
    let own = COMMANDS.map(|(_, args, _)| args.replace("PATH", "pipe").replace("OUT", "o"));
    let data = ["--data pipe.txt", "--data synthetic:300 --valid pipe", "--data synthetic:300 --tokenizer pipe"];
    let data = data.map(|data| format!("{train} {data} --save-dir o-{}", data.len()));
    for args in own.into_iter().chain(others.map(String::from)).chain(data) {
        let (code, stderr) = in_time(&place, &args);
        assert!(matches!(code, Some(1 | 2)) && stderr.contains("pipe"), "flashlm {args}: {code:?}: {stderr}");
    }
    // In the place of files that a command opens beside what is named.
    for (file, args) in [
        ("tokenizer.json", "generate model.safetensors"),
        ("prep/tokenizer.json", "info prep"),
        ("prep/train.tok", "data prepare --data synthetic:300 --tokenizer bytes --out prep"),
        ("run/metrics.jsonl", "plot run -o o.svg"),
        ("run/metrics.jsonl", "info run"),
        ("run/best", "info run"),
        ("run/run.json", "info run"),
        ("run/checkpoints/step-00000002/model.safetensors", "generate run"),
    ] {
        let kept = place.path("kept");
        fs::rename(place.path(file), &kept).unwrap();
        pipe(file);
        let (code, stderr) = in_time(&place, args);
        assert!(code == Some(1) && stderr.contains(file), "{file}, flashlm {args}: {code:?}: {stderr}");
        fs::remove_file(place.path(file)).unwrap();
        fs::rename(&kept, place.path(file)).unwrap();
    }
    assert_eq!(in_time(&place, "generate run -n 1").0, Some(0));
}

#[test]
fn nothing_is_written_over_without_force() {
    let place = kinds();
    let mine = "my own";
    for args in ["pack run -o mine", "plot run -o mine", "data stats synthetic:9 --svg mine"] {
        place.write("mine", mine);
        place.fails(args, &["mine already exists; name another file with -", "--force"]);
        assert_eq!(fs::read_to_string(place.path("mine")).unwrap(), mine, "{args}");
        place.ok(&format!("{args} --force"));
        assert_ne!(fs::read(place.path("mine")).unwrap(), mine.as_bytes(), "{args}");
        place.fails(&args.replace(" mine", " texts --force"), &["texts is a folder, not a file"]);
    }
    place.ok("plot run");
    place.fails("plot run", &["curve.svg already exists"]);
    // Drawn by training itself.
    place.ok("plot run -o run/curve.svg");
    place.fails("plot run -o run/MODEL_CARD.md", &["already exists"]);
    place.write("texts/curve.svg", mine);
    place.fails("plot run -o texts/curve.svg", &["already exists"]);
}

#[test]
fn prepare_writes_to_new_folders_and_its_own() {
    let place = kinds();
    let prepare = "data prepare --data synthetic:300 --tokenizer bytes --out";
    let before = fs::read(place.path("run/checkpoints/step-00000002/tokenizer.json")).unwrap();
    for (folder, found) in [
        ("texts", "found a folder of text"),
        (STEP, "found a checkpoint"),
        ("run", "found a run"),
        ("story.txt", "found text"),
        (".", "found a folder"),
    ] {
        let words = ["expected a new or empty folder, or one that `flashlm data prepare` wrote", found, "--out"];
        place.fails(&format!("{prepare} {folder}"), &words);
    }
    assert_eq!(fs::read(place.path("run/checkpoints/step-00000002/tokenizer.json")).unwrap(), before);
    assert_eq!(fs::read_dir(place.path("texts")).unwrap().count(), 1);
    place.ok(&format!("{prepare} empty"));
    place.ok(&format!("{prepare} empty"));
    place.ok(&format!("{prepare} deep/new"));
    // A text that cannot be prepared leaves no folder that the next one could not use.
    place.write("letter.txt", "a");
    place.fails("data prepare --data letter.txt --tokenizer bytes --out once", &["no document is left"]);
    place.ok(&format!("{prepare} once"));
}

#[test]
fn the_last_word_of_a_log_is_the_result() {
    let place = kinds();
    let output = place.run("eval run --data synthetic:40");
    assert!(output.status.success());
    assert!(!text(&output.stderr).contains("eval "), "{}", text(&output.stderr));
}
