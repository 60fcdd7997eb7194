//! What the tests of the binary share: a folder of its own for each, and runs of `flashlm` in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder that is removed when the test ends.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).expect("a file in the temporary folder");
        name.to_string()
    }

    /// The command, in this folder, with a token cache of its own. One thread, where `args` say nothing else: there are as many
    /// tests at a time as processors.
    pub fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flashlm"));
        command.args(args.split_whitespace()).current_dir(self.dir.path()).env("FLASHLM_CACHE", self.path("cache"));
        command.env("FLASHLM_THREADS", "1");
        command
    }

    pub fn run(&self, args: &str) -> Output {
        self.command(args).output().expect("flashlm starts")
    }

    /// Runs to exit code 0 and returns stdout.
    pub fn ok(&self, args: &str) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "flashlm {args}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs to an exit code that is neither 0 nor a panic's, and returns stderr, which must hold every one of `words`.
    pub fn fails(&self, args: &str, words: &[&str]) -> String {
        let output = self.run(args);
        let stderr = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "flashlm {args} gave {:?}: {stderr}", output.status);
        assert!(!stderr.contains("panicked"), "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "flashlm {args}: {word:?} is not in:\n{stderr}");
        }
        stderr
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Settings of a model small enough to train in a test. The precision is named, since runs are compared to the bit: which one is
/// the faster is measured, and on a busy machine not always found the same.
pub const TINY: &str = "--preset hybrid-small --set model.pattern=[] --set model.kernel_size=64 --set train.lr=6e-3 \
    --data synthetic:300 --vocab 300 --set model.dim=24 --set model.blocks=2 --set model.ffn_hidden=40 \
    --set train.seq_len=32 --batch 4 --set data.holdout=0.05 --set train.eval_tokens=2000 \
    --set train.sample_tokens=8 --set train.eval_every=250 --set train.precision=f32";

/// Every file of a checkpoint that training writes, but for the clock in `state.json`.
pub fn checkpoint_bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read =
        |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{}/{name}: {e}", folder.display()));
    let mut state: serde_json::Value = serde_json::from_slice(&read("state.json")).expect("JSON");
    state["elapsed"] = 0.into();
    let mut files = vec![("state.json".to_string(), state.to_string().into_bytes())];
    files.extend(["model.safetensors", "optimizer.safetensors"].map(|name| (name.to_string(), read(name))));
    files
}

/// Copies a folder with all in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder to copy to");
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("an entry");
        if from.is_dir() { copy(&from, &to) } else { _ = std::fs::copy(from, to).expect("a copied file") }
    }
}
