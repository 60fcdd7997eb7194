//! Text with lines `<|endoftext|>` between stories; without any, the file is one story.

use super::lines::Lines;
use super::{DataError, SEPARATOR, Story};
use std::ops::ControlFlow;

pub(super) fn read(
    lines: &mut Lines,
    f: &mut dyn FnMut(Story, u64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataError> {
    let mut story = Vec::new();
    loop {
        let (first_line, offset) = (lines.line + 1, lines.offset);
        let end = loop {
            let start = story.len();
            if !lines.next(&mut story, first_line)? {
                break true;
            }
            if trim_line_end(&story[start..]) == SEPARATOR {
                story.truncate(start);
                break false;
            }
        };
        let text = lines.utf8(&story, first_line, offset)?.trim_matches(['\n', '\r']);
        if !text.is_empty() && f(Story { text, score: None }, lines.read()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if end {
            return Ok(ControlFlow::Continue(()));
        }
        story.clear();
    }
}

fn trim_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}
