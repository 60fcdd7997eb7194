//! How wide a terminal is, and lines that fit into it.

use std::io::{IsTerminal, stderr, stdout};

use terminal_size::terminal_size_of;

/// Columns of standard output; none where it is no terminal.
pub fn stdout_width() -> Option<usize> {
    stdout().is_terminal().then(|| terminal_size_of(stdout())).flatten().map(|(width, _)| width.0.into())
}

/// Columns of standard error; none where it is no terminal.
pub fn stderr_width() -> Option<usize> {
    stderr().is_terminal().then(|| terminal_size_of(stderr())).flatten().map(|(width, _)| width.0.into())
}

/// The line with as many of its fields, which two spaces separate, as fit before the last column; its first field is cut if need be.
pub fn fitted(line: &str, width: usize) -> String {
    let most = width.saturating_sub(1);
    let mut kept = String::new();
    for field in line.split("  ") {
        let gap = if kept.is_empty() { "" } else { "  " };
        if !kept.is_empty() && kept.chars().count() + gap.len() + field.chars().count() > most {
            break;
        }
        kept += gap;
        kept += field;
    }
    kept.chars().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_do_not_fit_are_left_out() {
        let line = "step 1200/5000  loss 2.314  eta 6m30s  18,204 tok/s";
        assert_eq!(fitted(line, 80), line);
        assert_eq!(fitted(line, line.len() + 1), line);
        assert_eq!(fitted(line, line.len()), "step 1200/5000  loss 2.314  eta 6m30s");
        assert_eq!(fitted(line, 40), "step 1200/5000  loss 2.314  eta 6m30s");
        assert_eq!(fitted(line, 9), "step 120");
        assert_eq!(fitted("größer  x", 7), "größer");
        assert_eq!(fitted(line, 0), "");
    }
}
