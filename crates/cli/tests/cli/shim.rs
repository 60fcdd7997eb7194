//! `shim.c`, compiled and set up: a disk that fails, or a process that dies, at a chosen call under a folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;

pub const ENOSPC: i32 = 28;
pub const EIO: i32 = 5;

/// What happens at call `at` of those that `kind` and a part of the `path` narrow; see `shim.c`.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: usize,
    pub how: &'static str,
    pub errno: i32,
    pub milliseconds: u64,
    pub kind: Option<&'static str>,
    pub path: Option<String>,
}

impl Fault {
    pub fn new(at: usize, how: &'static str) -> Fault {
        Fault { at, how, errno: 0, milliseconds: 0, kind: None, path: None }
    }

    /// A call that fails, alone (`once`) or with all after it (`on`).
    pub fn error(at: usize, how: &'static str, errno: i32) -> Fault {
        Fault { errno, ..Fault::new(at, how) }
    }
}

/// Counts the calls of `command` under the folder `under`, which may not be there yet, into the file `log`.
pub fn watch(command: &mut Command, under: &Path, log: &Path) {
    let (parent, name) = (under.parent().expect("a folder in a folder"), under.file_name().expect("a name"));
    let under = parent.canonicalize().expect("the folder around it").join(name);
    command.env("LD_PRELOAD", library()).env("FAULT_UNDER", under).env("FAULT_LOG", log);
}

/// Lets it happen.
pub fn strike(command: &mut Command, fault: &Fault) {
    command.env("FAULT_AT", fault.at.to_string()).env("FAULT_HOW", fault.how);
    command.env("FAULT_ERRNO", fault.errno.to_string()).env("FAULT_MS", fault.milliseconds.to_string());
    if let Some(kind) = fault.kind {
        command.env("FAULT_KIND", kind);
    }
    if let Some(path) = &fault.path {
        command.env("FAULT_PATH", path);
    }
}

pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status();
    assert!(sent.expect("kill starts").success(), "no process to send SIG{name} to");
}

fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shim.so");
        // Tests that run at the same time as processes of their own compile it at the same time.
        let own = library.with_extension(format!("{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&own).arg(source);
        let done = cc.args(["-ldl", "-pthread"]).status().expect("a C compiler, `cc`");
        assert!(done.success(), "shim.c does not compile");
        std::fs::rename(own, &library).expect("shim.so gets its name");
        library
    })
}
