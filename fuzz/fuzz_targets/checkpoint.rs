//! The small files of a run from any bytes: a checkpoint's manifest, `best`, `state.json`.
//!
//! First byte % 4: 0 the manifest is the rest; 1 the same, sizes and checksums set right where its files are there; 2 `best`
//! is the rest; 3 `state.json` is the rest, in a checkpoint that is right.
#![no_main]

use std::fs;

use flashlm_fuzz::{byte, file, folder, seed};
use flashlm_train::checkpoint::{Checkpoint, Part, best, latest_valid, list, save};
use flashlm_train::load::Model;
use flashlm_train::progress::State;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const STATE: &str = r#"{"step":5,"tokens":640,"elapsed":1.5,"stage":0,"stage_start":0,"epochs_before":[0.0],
    "best":{"bpb":2.5,"step":4},"since_best":1,"loss_sum":[3.5,2]}"#;
const AT: &str = "run/checkpoints/step-00000005";

fn seeds() -> [Vec<u8>; 7] {
    let manifest = fs::read(folder().join(AT).join("checkpoint.json")).expect("the checkpoint just saved");
    let older = STATE.replace("[0.0]", "0.25").replace("{\"bpb\":2.5,\"step\":4}", "null");
    let others = br#"{"version":1,"step":5,"files":{"../best":{"bytes":3,"xxh3":"0"},"state.json":{"bytes":1,"xxh3":"0"}}}"#;
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    [
        with(0, &manifest),
        with(1, &manifest),
        with(1, others),
        with(2, br#"{"version":1,"step":5}"#),
        with(2, br#"{"version":1,"step":18446744073709551615}"#),
        with(3, STATE.as_bytes()),
        with(3, older.as_bytes()),
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
        let parts = [
            Part::Bytes { file: "state.json", data: STATE.as_bytes() },
            Part::Bytes { file: "config.toml", data: b"[model]\n" },
            Part::Bytes { file: "tokenizer.json", data: b"{\"kind\":\"bytes\"}" },
            Part::Bytes { file: "model.safetensors", data: b"\x02\0\0\0\0\0\0\0{}" },
        ];
        save(&folder().join("run"), 5, &parts).expect("a checkpoint");
        seed(seeds());
    },
    |input: &[u8]| {
        let mut rest = input;
        let run = folder().join("run");
        let kind = byte(&mut rest) % 4;
        let manifest = match kind {
            0 => Some(rest.to_vec()),
            1 => truthful(rest),
            3 => {
                file(&format!("{AT}/state.json"), rest);
                truthful(br#"{"version":1,"step":5,"files":{"state.json":0,"model.safetensors":0}}"#)
            }
            _ => {
                file("run/best", rest);
                truthful(br#"{"version":1,"step":5,"files":{"tokenizer.json":0}}"#)
            }
        };
        let Some(manifest) = manifest else { return };
        file(&format!("{AT}/checkpoint.json"), &manifest);
        let opened = Checkpoint::open(&run.join("checkpoints/step-00000005"));
        let latest = latest_valid(&run);
        assert_eq!(opened.is_ok(), matches!(latest, Ok(Some(_))));
        assert_eq!(list(&run).expect("the folders of a run").len(), 1);
        if let Ok(checkpoint) = opened {
            assert_eq!(checkpoint.step(), 5, "the step of its folder");
            if let Ok(bytes) = checkpoint.bytes("state.json")
                && let Ok(state) = serde_json::from_slice::<State>(&bytes)
            {
                let again = serde_json::to_vec(&state).expect("a state has a JSON form");
                assert_eq!(serde_json::from_slice::<State>(&again).expect("what was written"), state);
            }
        }
        if let Ok(Some((step, path))) = best(&run) {
            assert!(step == 5 && path.is_dir());
        }
        let _ = Model::load(&run);
        if kind == 2 {
            fs::remove_file(run.join("best")).expect("the file just written");
        }
    }
);
