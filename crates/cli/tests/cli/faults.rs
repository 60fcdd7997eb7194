//! Broken inputs: each gets a message that says what is wrong, an exit code that is not 0, and leaves what was saved alone.

use std::fs;
#[cfg(target_os = "linux")]
use std::process::Stdio;

use crate::common::{Place, TINY, checkpoint_bytes, text};
#[cfg(target_os = "linux")]
use crate::disk::{is_waiting, losses, steps, within};

/// Six words in sentences of our own, enough for a vocabulary.
fn stories(n: usize) -> String {
    (0..n).map(|i| format!("The red hen {i} went up the hill and saw {} boats.\n<|endoftext|>\n", i * 7 % 13)).collect()
}

#[test]
fn data_that_is_not_there_or_no_text() {
    let place = Place::new();
    place.fails("train --data nothing.txt --steps 1", &["nothing.txt"]);
    place.write("empty.txt", "");
    place.fails("train --data empty.txt --steps 1", &["empty.txt", "empty"]);
    place.write("binary.txt", [0u8, 159, 146, 150, 0, 0, 1, 2].repeat(100));
    place.fails("train --data binary.txt --steps 1", &["binary.txt", "not text"]);
    place.write("latin.txt", b"caf\xe9 au lait\n".repeat(20));
    place.fails("train --data latin.txt --steps 1", &["latin.txt", "UTF-8"]);
    place.write("one.txt", "a\n");
    place.fails("train --data one.txt --steps 1", &["one", "no document is left for train", "of 1 in the data"]);
    place.write("bad.jsonl", "{\"text\": \"fine\"}\n{\"txt\": 1}\n");
    place.fails("train --data bad.jsonl --steps 1", &["bad.jsonl", "line 2"]);
    place.fails("eval nowhere --data one.txt", &["nowhere"]);
    place.fails("generate nowhere -p hello", &["nowhere"]);
    place.fails("verify one.txt", &["one.txt"]);
}

#[test]
fn settings_that_no_run_can_have() {
    let place = Place::new();
    place.write("text.txt", stories(200));
    let train = "train --data text.txt --steps 1 --preset flash-tiny";
    place.fails(&format!("{train} --vocab 0"), &["0", "vocab"]);
    place.fails(&format!("{train} --vocab 70000"), &["70000", "65535"]);
    place.fails(&format!("{train} --lr NaN"), &["train.lr", "NaN"]);
    place.fails(&format!("{train} --lr -1"), &["lr"]);
    place.fails(&format!("{train} --set train.lerning_rate=1"), &["unknown key", "did you mean"]);
    place.fails(&format!("{train} --set train.batch=many"), &["train.batch", "whole number"]);
    place.fails(&format!("{train} --set model.dim=0"), &["model.dim"]);
    place.fails(&format!("{train} --set train.activation_bits=8"), &["did you mean `model.activation_bits`"]);
    place.fails(&format!("{train} --set model.dim=8192 --set model.blocks=128"), &["model.blocks = 128", "at most"]);
    place.fails("train --preset v5", &["v5", "v4-small"]);
    place.fails("train --tokenizer nonsense --data text.txt", &["nonsense"]);
    place.write("bad.toml", "[train\nlr = 1");
    place.fails("train --config bad.toml", &["bad.toml"]);
    place.fails("train --config missing.toml", &["missing.toml"]);
    let output = place.command(&format!("{train} --save-dir x")).env("FLASHLM_ISA", "mmx").output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("FLASHLM_ISA=mmx"));
    let output = place.command(&format!("{train} --save-dir y")).env("FLASHLM_THREADS", "none").output().unwrap();
    assert!(!output.status.success() && text(&output.stderr).contains("FLASHLM_THREADS"));
}

#[test]
fn scales_that_begin_anywhere_in_a_row_and_a_project_beside_the_model_are_no_trouble() {
    let place = Place::new();
    let odd = "--set model.quant.scale=block --set model.quant.size=100 --set model.activation_bits=8";
    place.ok(&format!("train {TINY} {odd} --steps 4 --set train.sample_every=2 --save-dir run"));
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(place.path("run/checkpoints/step-00000004").join(file), place.path(file)).unwrap();
    }
    place.write("config.toml", "[package]\nname = \"mine\"\n");
    let eval = |model: &str| -> serde_json::Value {
        let data = "--data synthetic:5 --json --threads 1";
        serde_json::from_str(&place.ok(&format!("eval {model} {data}"))).unwrap()
    };
    let (run, file) = (eval("run"), eval("model.safetensors"));
    assert_eq!((&file["latent"], &file["bpb"]), (&run["latent"], &run["bpb"]));
    assert_eq!((&run["latent_activation_bits"], &file["latent_activation_bits"]), (&8.into(), &8.into()));
}

#[test]
fn a_run_that_diverges_names_its_last_good_checkpoint() {
    let place = Place::new();
    // Weight decay of 10 * 1 a step multiplies every weight by -9.
    let flags = format!("{TINY} --steps 400 --lr 10 --set train.weight_decay=1 --set train.checkpoint_every=20");
    place.fails(&format!("train {flags} --save-dir run"), &["not a number", "last good checkpoint", "step"]);
    place.ok("info run");
}

#[test]
fn damaged_checkpoints() {
    let place = Place::new();
    place.ok(&format!("train {TINY} --steps 6 --set train.checkpoint_every=3 --set train.keep=9 --save-dir run"));
    let good = checkpoint_bytes(&place.path("run/checkpoints/step-00000003"));

    let model = place.path("run/checkpoints/step-00000006/model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&model, &bytes).unwrap();
    place.fails("train --resume run/checkpoints/step-00000006", &["model.safetensors", "checksum"]);
    let output = place.run("train --resume run --steps 6");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("resumed from step 3"), "{}", text(&output.stderr));
    assert!(good == checkpoint_bytes(&place.path("run/checkpoints/step-00000003")), "an older checkpoint was touched");

    let model = place.path("run/checkpoints/step-00000003/model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() - 100]).unwrap();
    place.fails("train --resume run/checkpoints/step-00000003", &["model.safetensors"]);

    place.fails(
        "train --resume run --set model.dim=32",
        &["cannot change within a run", "model.dim was 24 when saved and is 32 now"],
    );
    place.fails("train --resume run --set train.seq_len=16", &["cannot change within a run", "train.seq_len"]);
    place.fails(
        "train --resume run --set train.optimizer=muon",
        &["cannot change within a run", "train.optimizer was \"adamw\" when saved and is \"muon\" now"],
    );
    place.fails(&format!("train {TINY} --steps 1 --save-dir run"), &["--resume"]);
    place.fails("train --resume run --large", &["cannot change within a run", "model."]);
    place.fails("train --resume cache", &["cache", "a run with a checkpoint"]);
    place.fails("train --resume nowhere", &["nowhere", "no such file"]);
    place.write("model.pt", "PK");
    place.fails("train --resume model.pt", &["model.pt", "a run with a checkpoint"]);
}

#[test]
fn a_damaged_token_cache_is_made_again() {
    let place = Place::new();
    let train = |run: &str| place.run(&format!("train {TINY} --steps 1 --save-dir {run}"));
    assert!(text(&train("a").stderr).contains("(built"));
    assert!(text(&train("b").stderr).contains("(reused)"));
    let cache = fs::read_dir(place.path("cache")).unwrap().map(|f| f.unwrap().path());
    let cache = cache.into_iter().find(|f| f.extension().is_some_and(|e| e == "tok")).expect("a token cache");
    let bytes = fs::read(&cache).unwrap();
    for damaged in [&bytes[..bytes.len() - 10], &bytes[..50], &[bytes.as_slice(), b"x"].concat()] {
        fs::write(&cache, damaged).unwrap();
        let output = train(&format!("run-{}", damaged.len()));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("(built: "), "{}", text(&output.stderr));
        assert!(fs::read(&cache).unwrap() == bytes, "the cache made again is another one");
    }
    place.write("text.txt", stories(400));
    let small = TINY.replace("synthetic:300", "text.txt");
    let output = place.run(&format!("train {small} --steps 1 --save-dir text-1"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    place.write("text.txt", stories(500));
    let output = place.run(&format!("train {small} --steps 1 --save-dir text-2"));
    assert!(text(&output.stderr).contains("source"), "no reason: {}", text(&output.stderr));
    place.write("cut.tok", &bytes[..bytes.len() / 2]);
    place.fails("info cut.tok", &["cut.tok"]);
}

#[test]
fn folders_that_cannot_be_made() {
    let place = Place::new();
    place.write("file", "a file, no folder");
    place.fails(&format!("train {TINY} --steps 1 --save-dir file/run"), &["file/run"]);
    #[cfg(target_os = "linux")]
    place.fails(&format!("train {TINY} --steps 1 --save-dir /proc/flashlm-test"), &["/proc/flashlm-test"]);
}

/// A disk that fills while a run is trained, and is freed by someone else.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_waited_for() {
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = |args: &[&str]| std::process::Command::new("mount").args(args).arg(&disk).output();
    let mounted = mount(&["-t", "tmpfs", "-o", "size=1300k", "tmpfs"]).is_ok_and(|o| o.status.success());
    if !mounted {
        eprintln!("skipped: a small tmpfs cannot be mounted here");
        return;
    }
    // A checkpoint takes about 270 kB. Two fit, a third does not beside what someone else keeps there.
    fs::write(disk.join("other"), vec![7; 600 << 10]).unwrap();
    let flags = format!("{TINY} --steps 20 --set train.checkpoint_every=5 --set train.keep=9");
    let log = place.path("stderr");
    let mut command = place.command(&format!("train {flags} --save-dir disk/run"));
    let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let told = || text(&fs::read(&log).unwrap());
    let waits = !within(&mut child, 60, || told().lines().any(is_waiting));
    let saved = steps(&disk.join("run"));
    if waits {
        fs::remove_file(disk.join("other")).unwrap();
        within(&mut child, 90, || false);
    }
    let code = child.try_wait().unwrap().map(|status| status.code());
    let _ = child.kill();
    let left = steps(&disk.join("run"));
    let last = (code == Some(Some(0))).then(|| checkpoint_bytes(&disk.join("run/checkpoints/step-00000020")));
    let rows = losses(&disk.join("run"));
    let unmounted = std::process::Command::new("umount").arg(&disk).status();
    assert!(unmounted.is_ok_and(|s| s.success()));
    let stderr = told();
    assert!(waits && saved == [5, 10].into(), "{saved:?} are saved: {stderr}");
    assert_eq!(code, Some(Some(0)), "it does not go on by itself: {stderr}");
    assert_eq!(left, [5, 10, 15, 20].into());
    place.ok(&format!("train {flags} --save-dir whole"));
    assert!(last == Some(checkpoint_bytes(&place.path("whole/checkpoints/step-00000020"))));
    assert_eq!(rows, losses(&place.path("whole")));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place.command("data sample synthetic:10 -n 3").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}
