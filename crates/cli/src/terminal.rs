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

/// Lines of a text, cut at spaces so that they fit; those after the first are indented. What holds a command is left whole, to be
/// copied, and so is everything where there is no width or next to none.
pub fn wrapped(text: &str, width: Option<usize>, indent: usize) -> Vec<String> {
    let Some(width) = width.filter(|width| *width >= indent + 12 && !text.contains("flashlm ")) else {
        return vec![text.to_string()];
    };
    let (mut lines, mut line) = (Vec::new(), String::new());
    let mut empty = true;
    for word in text.split(' ') {
        let gap = usize::from(!empty);
        if !empty && line.chars().count() + gap + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
        } else if !empty {
            line.push(' ');
        }
        line += word;
        empty = false;
    }
    lines.push(line);
    lines
}

/// Lines of names, each with a text beside it that goes on below where it began.
pub fn columns<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str)>, width: Option<usize>) -> Vec<String> {
    let rows: Vec<_> = rows.into_iter().collect();
    let most = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let row = |&(name, text): &(&str, &str)| {
        let mut name = name.to_string();
        let mut lines = Vec::new();
        for line in text.lines() {
            // Spaces of the name are no places to cut at.
            let start = format!("{name:\u{a0}<most$}\u{a0}\u{a0}").replace(' ', "\u{a0}");
            lines.extend(wrapped(&format!("{start}{line}"), width, most + 2));
            name.clear();
        }
        lines
    };
    let plain = |line: String| line.replace('\u{a0}', " ");
    rows.iter().flat_map(row).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_on_below_where_they_began() {
        let text = "a line of seven words that wrap";
        assert_eq!(wrapped(text, Some(16), 2), ["a line of seven", "  words that", "  wrap"]);
        for width in 14..40 {
            let lines = wrapped(text, Some(width), 2);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:?}");
            assert_eq!(lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "), text);
        }
        let command = "next: flashlm train --resume runs/a";
        assert_eq!(wrapped(command, Some(20), 0), [command]);
        assert_eq!(wrapped(text, None, 0), [text]);
        assert_eq!(wrapped("Donaudampfschifffahrt", Some(14), 0), ["Donaudampfschifffahrt"]);
        let rows = [("bits per byte", "as many as there are"), ("run", "a\nb")];
        assert_eq!(
            columns(rows, Some(32)),
            ["bits per byte  as many as there", "               are", "run            a", "               b"]
        );
    }

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
