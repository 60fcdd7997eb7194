//! The small files of a run from any bytes, the first of which says which file is the rest:
//!
//! ```text
//! byte % 6: 0 the manifest of the checkpoint    1 the same, sizes and checksums set right where its files are there
//!           2 best    3 run.json                4, 5 state.json and config.toml, in a checkpoint that is right
//! ```
#![no_main]

use std::fs;

use flashlm_fuzz::{byte, file, folder, seed};
use flashlm_train::checkpoint::{Checkpoint, Part, save};
use flashlm_train::config::{Settings, preset};
use flashlm_train::load::load_model;
use flashlm_train::run_folder::{Listed, RunFolder};
use flashlm_train::trainer::{continued, state};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const STATE: &str = r#"{"step":5,"tokens":640,"elapsed":1.5,"stage":0,"stage_start":0,"epochs_before":[0.0],
    "best":{"bpb":2.5,"step":4},"since_best":1,"loss_sum":[3.5,2]}"#;
const AT: &str = "run/checkpoints/step-00000005";
/// Files of the run that hold nothing else between two inputs.
const BESIDE: [&str; 2] = ["best", "run.json"];

fn settings() -> Settings {
    preset("flash-tiny").expect("a preset")
}

fn seeds() -> [Vec<u8>; 9] {
    let manifest = fs::read(folder().join(AT).join("checkpoint.json")).expect("the checkpoint just saved");
    let older = STATE.replace("[0.0]", "0.25").replace("{\"bpb\":2.5,\"step\":4}", "null");
    let others =
        br#"{"version":1,"step":5,"files":{"../best":{"bytes":3,"xxh3":"0"},"state.json":{"bytes":1,"xxh3":"0"}}}"#;
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    [
        with(0, &manifest),
        with(1, &manifest),
        with(1, others),
        with(2, br#"{"version":1,"step":5}"#),
        with(2, br#"{"version":1,"step":18446744073709551615}"#),
        with(3, br#"{"name":"flash-tiny","entropy_bound":null}"#),
        with(4, STATE.as_bytes()),
        with(4, older.as_bytes()),
        with(5, settings().to_toml().as_bytes()),
    ]
}

/// The manifest with what is true of the files that it names.
fn truthful(manifest: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(manifest).ok()?;
    for (name, entry) in value.get_mut("files")?.as_object_mut()? {
        // A name with a NUL is an error here as there.
        if let Ok(bytes) = fs::read(folder().join(AT).join(name)) {
            *entry = json!({"bytes": bytes.len(), "xxh3": format!("{:016x}", xxh3_64(&bytes))});
        }
    }
    Some(value.to_string().into_bytes())
}

fuzz_target!(
    init: {
        let settings = settings().to_toml();
        let parts = [
            Part::Bytes { file: "state.json", data: STATE.as_bytes() },
            Part::Bytes { file: "config.toml", data: settings.as_bytes() },
            Part::Bytes { file: "tokenizer.json", data: b"{\"kind\":\"bytes\"}" },
            Part::Bytes { file: "model.safetensors", data: b"\x02\0\0\0\0\0\0\0{}" },
        ];
        save(&folder().join("run/checkpoints"), 5, &parts).expect("a checkpoint");
        seed(seeds());
    },
    |input: &[u8]| {
        let mut rest = input;
        let run = RunFolder::at(&folder().join("run"));
        let kind = byte(&mut rest) % 6;
        let part = |name: &str| {
            file(&format!("{AT}/{name}"), rest);
            truthful(format!("{{\"version\":1,\"step\":5,\"files\":{{\"{name}\":0}}}}").as_bytes())
        };
        let manifest = match kind {
            0 => Some(rest.to_vec()),
            1 => truthful(rest),
            4 => part("state.json"),
            5 => part("config.toml"),
            _ => {
                file(&format!("run/{}", BESIDE[usize::from(kind) - 2]), rest);
                truthful(br#"{"version":1,"step":5,"files":{"tokenizer.json":0}}"#)
            }
        };
        let Some(manifest) = manifest else { return };
        file(&format!("{AT}/checkpoint.json"), &manifest);
        let opened = Checkpoint::open(&folder().join(AT));
        assert_eq!(opened.is_ok(), matches!(run.latest(), Ok(Some(_))));
        assert_eq!(run.list().expect("the folders of a run").len(), 1);
        if let Ok(checkpoint) = opened {
            assert_eq!(checkpoint.step(), 5, "the step of its folder");
            if let Ok(settings) = continued(&checkpoint) {
                let again = Settings::from_toml(&settings.to_toml(), "fuzz").expect("what was written");
                assert_eq!(again.to_toml(), settings.to_toml());
            }
            if let Ok(state) = state(&checkpoint, &settings()) {
                assert!(state.step == 5 && state.stage_start <= 5);
            }
        }
        if let Ok(Some(Listed { step, path })) = run.best() {
            assert!(step == 5 && path.is_dir());
        }
        let _ = (run.chosen(), run.about(), run.result(), run.abandoned(), run.check_new(None), run.check_resume());
        let _ = load_model(run.path());
        for name in BESIDE {
            let _ = fs::remove_file(run.file(name));
        }
    }
);
