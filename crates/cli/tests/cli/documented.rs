//! Commands in the documentation: each is one that the program understands.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::text;

/// Words as a shell would split them, up to a pipe, a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if matches!(c, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c == ' ' => words.extend(word.take()),
            None if word.is_none() && matches!(c, '|' | '<' | '>' | '#' | ';' | '&') => break,
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "{line}: a quote stays open");
    words.extend(word);
    words
}

/// Reads the command without running it: its words are understood, or it fails, before `--help`.
fn read(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flashlm"));
    command.args(&words(line)[1..]).arg("--help").output().expect("flashlm starts")
}

#[test]
fn every_command_of_the_documentation_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files: Vec<_> = root.join("docs").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.extend(["README.md", "CONTRIBUTING.md", "benches/README.md"].map(|name| root.join(name)));
    let (mut lines, mut inline) = (0, 0);
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "md")) {
        let page = std::fs::read_to_string(file).unwrap().replace("\\\n", " ");
        let mut fenced = false;
        for line in page.lines() {
            fenced ^= line.starts_with("```");
            // What stands far behind a command says what it does.
            let command = line.trim().split("   ").next().filter(|line| line.starts_with("flashlm "));
            if let Some(command) = command.filter(|_| fenced || line.starts_with("    ")) {
                let output = read(command);
                assert!(output.status.success(), "{}: {line}: {}", file.display(), text(&output.stderr));
                lines += 1;
                continue;
            }
            // A sentence may leave out what a command needs, but names what there is.
            for part in line.split('`').skip(1).step_by(2).filter(|part| part.starts_with("flashlm ")) {
                let told = text(&read(part).stderr);
                let unknown = told.contains("unexpected argument") || told.contains("unrecognized subcommand");
                assert!(!unknown || part.contains("COMMAND"), "{}: {part}: {told}", file.display());
                inline += 1;
            }
        }
    }
    assert!(lines > 60 && inline > 20, "{lines} lines, {inline} in sentences");
}
