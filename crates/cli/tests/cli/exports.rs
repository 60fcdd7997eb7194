//! What `flashlm export` writes, run by the programs that it is for. Without Node or Chromium these tests are skipped; where CI is
//! set, Node must be there.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Place, text};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn golden(name: &str) -> String {
    root().join("tests/golden").join(name).with_extension("safetensors").display().to_string()
}

/// A script of this repository, run to exit code 0 by a program that may be missing; its output.
fn script(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).current_dir(root()).output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && std::env::var_os("CI").is_none() => {
            eprintln!("skipped: no {program} here");
            return None;
        }
        output => output.expect("Node (Debian: nodejs) runs the tests of WebAssembly"),
    };
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Some(text(&output.stdout))
}

#[test]
fn webassembly_writes_what_generate_writes() {
    let place = Place::new();
    for name in ["conv", "delta", "hybrid"] {
        let model = golden(name);
        place.ok(&format!("export web {model} -o {name}.html"));
        for (seed, t, top_p, top_k) in [(1, "0", "0.95", 0), (2, "0.8", "0.95", 0), (u64::MAX, "1.4", "1", 25)] {
            let request = format!(
                r#"{{"prompt": "One", "tokens": 200, "seed": "{seed}", "temperature": {t}, "topK": {top_k}, "topP": {top_p}, "minP": 0}}"#
            );
            let page = place.path(&format!("{name}.html")).display().to_string();
            let Some(told) = script("node", &["tests/web/engine.mjs", &page, &request]) else { return };
            let flags = format!("generate {model} -p One -t {t} --top-p {top_p} --top-k {top_k} --seed {seed}");
            assert_eq!(told, place.ok(&flags), "{name}, seed {seed}");
        }
    }
}

/// Presets after a step or two: texts longer than any window, by one program for all models.
#[test]
fn c_writes_what_generate_writes_of_trained_models() {
    let place = Place::new();
    let built = |program: &str| {
        let flags = ["-std=c11", "-O3", "-march=native", "-ffp-contract=off", "-o"];
        let mut command = Command::new("cc");
        command.args(flags).args([place.path(program), place.path("v4-small-c/story.c")]);
        assert!(command.status().expect("a C compiler (cc)").success(), "{command:?}");
    };
    for preset in ["v4-small", "hybrid-small", "portable-small", "portable-delta"] {
        let small = "--steps 2 --set train.seq_len=64 --set train.batch=2 --vocab 600 --set model.blocks=3";
        let window = "--set model.attention.window=100";
        place.ok(&format!("train --preset {preset} --data synthetic:60 {small} {window} --save-dir {preset}"));
        place.ok(&format!("export c {preset} -o {preset}-c --weights separate"));
        if preset == "v4-small" {
            built("story");
        }
        for way in ["-t 0", "--seed 7 -t 1.3 --top-p 1"] {
            let flags = format!("-p Once -n 300 {way}");
            let mut story = Command::new(place.path("story"));
            let output =
                story.args(flags.split(' ')).arg("-m").arg(place.path(&format!("{preset}-c/story.bin"))).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{preset}: {}", text(&output.stderr));
            assert_eq!(text(&output.stdout), place.ok(&format!("generate {preset} {flags}")), "{preset} {way}");
        }
    }
}

#[test]
fn the_page_writes_what_generate_writes() {
    let place = Place::new();
    place.ok("export web builtin -o page.html");
    let page = place.path("page.html").display().to_string();
    let args = ["tests/web/page.mjs", &page, env!("CARGO_BIN_EXE_flashlm"), "builtin"];
    script("node", &args).into_iter().for_each(|told| eprint!("{told}"));
}

#[test]
fn the_modules_are_what_their_source_makes() {
    let told = script("bash", &["crates/model/src/export/web/build.sh", "--check"]);
    told.into_iter().for_each(|told| eprint!("{told}"));
}

/// Not one byte of a file that is there is lost, and errors say what to do.
#[test]
fn exports_keep_what_is_there() {
    let place = Place::new();
    place.write("story.c", "mine");
    place.fails("export c builtin -o story.c", &["story.c", "--force"]);
    assert_eq!(std::fs::read_to_string(place.path("story.c")).unwrap(), "mine");
    place.write("not.safetensors", "nothing");
    place.fails("export web not.safetensors -o page.html", &["not.safetensors"]);
    assert!(!place.path("page.html").exists());
}

/// A model of another program is run, not exported, by every format with a word.
#[test]
fn models_of_other_programs_are_refused() {
    let place = Place::new();
    let peer = root().join("tests/reference/peers/llama_biases").display().to_string();
    for format in ["c", "web", "safetensors", "gguf", "hf", "onnx"] {
        place.fails(
            &format!("export {format} {peer} -o out"),
            &["a Llama model", "not trained or exported", "generate"],
        );
        assert!(!place.path("out").exists(), "{format}");
    }
}
