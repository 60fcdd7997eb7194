//! What a command reads besides models and training text: prompts, from a file or standard input, whole or as lines of JSON.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};
use flashlm_model::io::read_limited;
use serde_json::Value;

/// Largest file of prompts, in bytes.
const MAX: u64 = 1 << 30;

/// All of a file, or of standard input where the path is `-`.
pub fn text(path: &Path) -> anyhow::Result<String> {
    let (name, bytes) = match path.to_str() {
        Some("-") => {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().take(MAX + 1).read_to_end(&mut bytes);
            if read.context("cannot read standard input")? as u64 > MAX {
                bail!("standard input: more than {MAX} bytes, expected a prompt or lines of JSON");
            }
            ("standard input".to_string(), bytes)
        }
        _ => (path.display().to_string(), read_limited(path, MAX)?),
    };
    String::from_utf8(bytes).with_context(|| format!("{name}: must be UTF-8 text"))
}

/// The prompt in a file or in standard input; one line end at its end belongs to the file, not to the prompt.
pub fn prompt(path: &Path) -> anyhow::Result<String> {
    let text = text(path)?;
    let prompt = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(&text);
    Ok(prompt.to_string())
}

/// One value of JSON for each line that is not blank, with its line number from 1.
pub fn jsonl(path: &Path) -> anyhow::Result<Vec<(usize, Value)>> {
    let lines = text(path)?;
    let lines = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(i, line): (usize, &str)| {
        let value = serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), i + 1))?;
        Ok((i + 1, value))
    };
    let values: Vec<_> = lines.map(parse).collect::<anyhow::Result<_>>()?;
    if values.is_empty() {
        bail!("{}: no lines; expected a JSON object on each line", path.display());
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_loses_the_line_end_of_its_file_and_no_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, read) in [("a", "a"), ("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("  a \n", "  a "), ("", "")] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(prompt(file.path()).unwrap(), read);
        }
        std::fs::write(file.path(), b"a\xff").unwrap();
        assert!(prompt(file.path()).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn a_line_that_is_no_json_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"a\":1}\n\n[2]\n").unwrap();
        let read = jsonl(file.path()).unwrap();
        assert_eq!(read, [(1, serde_json::json!({"a": 1})), (3, serde_json::json!([2]))]);
        std::fs::write(file.path(), "{}\n{").unwrap();
        assert!(jsonl(file.path()).unwrap_err().to_string().ends_with(", line 2"));
        std::fs::write(file.path(), "\n").unwrap();
        assert!(jsonl(file.path()).unwrap_err().to_string().contains("no lines"));
    }
}
