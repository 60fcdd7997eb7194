//! Writing in turns: a line of a person, some text of the model. A line that begins with `/` and a letter is a command.

use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, anyhow, bail};
use flashlm_model::sample::Settings;
use flashlm_model::{Finish, Generation};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::writer::{Writer, why};
use crate::common::{out, say, write_out};
use crate::signals::INTERRUPTED;
use crate::terminal::{columns, stdout_width, wrapped};

const SIGN: &str = "> ";
const HELP: [(&str, &str); 8] = [
    ("TEXT", "goes into the text, after a space; the model continues"),
    ("", "spaces at its start are kept; \\n is a new line, \\t a tab"),
    ("(empty line)", "the model just continues"),
    ("/retry", "writes the last turn again, otherwise"),
    ("/undo", "takes the last turn back, yours and the model's"),
    (
        "/set NAME VALUE",
        "temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, tokens, seed; /set alone shows them",
    ),
    ("/set lines on", "each TEXT becomes a line of its own, exactly as typed: for verse, chat and code"),
    ("/help, /quit", "(also Ctrl-D; Ctrl-C stops the model's turn)"),
];

/// What was given and what the model wrote after it.
struct Turn {
    given: String,
    written: String,
}

/// The text so far and how it goes on.
struct Session<'a> {
    writer: &'a mut Writer,
    name: &'a Path,
    generation: Generation,
    turns: Vec<Turn>,
    /// Texts begun: each has a seed of its own.
    begun: usize,
    /// Whether what is typed becomes lines.
    lines: bool,
    interrupted: Arc<AtomicBool>,
    /// Whether a person sees it.
    terminal: bool,
}

/// What a line asks for.
enum Asked {
    Text(String),
    Command(Vec<String>),
}

/// Where lines come from.
enum Lines {
    Editor(Box<DefaultEditor>),
    Pipe,
}

impl Lines {
    /// The next line, without its end; none at the end of input.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Lines::Editor(editor) => loop {
                match editor.readline(SIGN) {
                    Ok(line) => {
                        // A history that is full is no reason to stop.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => say!("Ctrl-D or /quit leaves"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("cannot read a line from the terminal"),
                }
            },
            Lines::Pipe => {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line);
                let read = read.context("cannot read a line from standard input; it must be UTF-8 text")?;
                let line = line.strip_suffix('\n').unwrap_or(&line);
                Ok((read > 0).then(|| line.strip_suffix('\r').unwrap_or(line).to_string()))
            }
        }
    }
}

/// Begins with `prompt`, or waits for the first line where it is empty, until the input ends.
pub fn run(writer: &mut Writer, prompt: &str, name: &Path) -> anyhow::Result<()> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let interrupted = Arc::new(AtomicBool::new(false));
    let mut lines = Lines::Pipe;
    if terminal {
        lines = Lines::Editor(DefaultEditor::new().context("cannot use the terminal for editing")?.into());
        // The second Ctrl-C ends the program, if the first did not end the turn.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), interrupted.clone())
            .and_then(|_| flag::register(SIGINT, interrupted.clone()))
            .context("cannot listen for Ctrl-C")?;
        say!("Type text; the model continues it.\n/help lists commands.");
    }
    let generation = writer.begin(0)?;
    let turns = Vec::new();
    let mut session = Session { writer, name, generation, turns, begun: 1, lines: false, interrupted, terminal };
    if !prompt.is_empty() {
        write_out(format_args!("{prompt}"), false);
        session.turn(prompt.to_string())?;
    }
    while let Some(line) = lines.next()? {
        match asked(&line) {
            Asked::Text(text) => {
                let given = session.joined(&text);
                session.turn(given)?;
            }
            Asked::Command(words) if words[0] == "/quit" => break,
            Asked::Command(words) => {
                if let Err(error) = session.command(&words) {
                    say!("{error}");
                }
            }
        }
    }
    Ok(())
}

/// A command is `/` and a letter; anything else is text.
fn asked(line: &str) -> Asked {
    match line.strip_prefix('/') {
        Some(rest) if rest.starts_with(|c: char| c.is_alphabetic()) => {
            Asked::Command(line.split_whitespace().map(String::from).collect())
        }
        _ => Asked::Text(line.to_string()),
    }
}

/// `\n`, `\t` and `\\` as what they stand for.
fn unescaped(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        let meant = match (c, chars.peek()) {
            ('\\', Some('n')) => '\n',
            ('\\', Some('t')) => '\t',
            ('\\', Some('\\')) => '\\',
            _ => {
                out.push(c);
                continue;
            }
        };
        out.push(meant);
        chars.next();
    }
    out
}

/// What a typed line adds to a text that ends with `before`.
fn joined(before: &str, line: &str, lines: bool) -> String {
    let fresh = before.is_empty() || before.ends_with('\n');
    match lines {
        _ if line.is_empty() => String::new(),
        true => format!("{}{line}\n", if fresh { "" } else { "\n" }),
        false => {
            let line = unescaped(line);
            let space = !before.is_empty() && !before.ends_with(char::is_whitespace);
            // A word of its own, as if the document had gone on to say it.
            let space = space && !line.starts_with(char::is_whitespace);
            format!("{}{line}", if space { " " } else { "" })
        }
    }
}

impl Session<'_> {
    fn text(&self) -> String {
        self.turns.iter().flat_map(|turn| [turn.given.as_str(), &turn.written]).collect()
    }

    fn joined(&self, line: &str) -> String {
        joined(&self.text(), line, self.lines)
    }

    /// Appends what is given, and what the model writes after it.
    fn turn(&mut self, given: String) -> anyhow::Result<()> {
        self.interrupted.store(false, Relaxed);
        self.generation.extend(self.writer.limit);
        let turn = self.writer.turn(&mut self.generation, &given, &self.interrupted, self.name)?;
        self.interrupted.store(false, Relaxed);
        out!("");
        match turn.finish {
            _ if !self.terminal => say!("{}", turn.told()),
            Some(Finish::Length) => {}
            finish => say!("[{}]", why(finish)),
        }
        let interrupted = turn.finish.is_none();
        self.turns.push(Turn { given, written: turn.text });
        // What was held back for a stop string is not part of the text that the person saw.
        if interrupted { self.again(false) } else { Ok(()) }
    }

    /// The text so far in a new state; `otherwise`, with another seed.
    fn again(&mut self, otherwise: bool) -> anyhow::Result<()> {
        self.begun += usize::from(otherwise);
        self.generation = self.writer.begin(self.begun - 1)?;
        let text = self.text();
        self.generation.push(&text);
        Ok(())
    }

    fn command(&mut self, words: &[String]) -> anyhow::Result<()> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["/help"] => columns(HELP, stdout_width().map(|width| width.saturating_sub(2)))
                .iter()
                .for_each(|line| out!("  {line}")),
            ["/set"] => wrapped(&self.settings(), stdout_width(), 2).iter().for_each(|line| out!("{line}")),
            ["/set", name, value] => {
                self.set(name, value)?;
                self.again(false)?;
            }
            ["/undo"] => {
                self.turns.pop().context("there is no turn to take back")?;
                self.again(false)?;
                let text = self.text();
                let end: Vec<&str> = text.split_inclusive(char::is_whitespace).collect();
                let end = end[end.len().saturating_sub(10)..].concat();
                out!("{}", if text.is_empty() { "the text is empty again".into() } else { format!("... {end}") });
            }
            ["/retry"] => {
                let last = self.turns.pop().context("there is no turn to write again")?;
                self.again(true)?;
                write_out(format_args!("{}", last.given.trim_start()), false);
                self.turn(last.given)?;
            }
            _ => bail!("{}: not a command; /help lists them. A space before it makes it text", words.join(" ")),
        }
        Ok(())
    }

    fn settings(&self) -> String {
        let Settings { temperature, top_k, top_p, min_p, seed, .. } = self.writer.settings;
        let Settings { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.writer.settings;
        format!(
            "temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}, repeat_penalty {repeat_penalty}, \
             presence_penalty {presence_penalty}, frequency_penalty {frequency_penalty}, tokens {}, seed {seed}, lines {}",
            self.writer.limit,
            if self.lines { "on" } else { "off" }
        )
    }

    fn set(&mut self, name: &str, value: &str) -> anyhow::Result<()> {
        let wrong = |expected: &str| anyhow!("/set {name} {value}: expected {expected}");
        let number = || value.parse::<f32>().map_err(|_| wrong("a number"));
        let whole = || value.parse::<u64>().map_err(|_| wrong("a whole number"));
        let mut settings = self.writer.settings.clone();
        match name {
            "temperature" => settings.temperature = number()?,
            "top_k" => settings.top_k = whole()? as usize,
            "top_p" => settings.top_p = number()?,
            "min_p" => settings.min_p = number()?,
            "repeat_penalty" => settings.repeat_penalty = number()?,
            "presence_penalty" => settings.presence_penalty = number()?,
            "frequency_penalty" => settings.frequency_penalty = number()?,
            "seed" => settings.seed = whole()?,
            "tokens" => self.writer.limit = whole()? as usize,
            "lines" => {
                self.lines = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(wrong("on or off")),
                }
            }
            _ => bail!("/set {name}: no such setting; /set alone shows them all"),
        }
        settings.check()?;
        self.writer.settings = settings;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_line_joins_the_text() {
        for (before, line, lines, added) in [
            ("", "Once", false, "Once"),
            ("Once", "upon", false, " upon"),
            ("Once ", "upon", false, "upon"),
            ("Once", "  upon", false, "  upon"),
            ("Once", "", false, ""),
            ("Once", r"\nupon\ta \\n \x", false, "\nupon\ta \\n \\x"),
            ("Once", "    return", true, "\n    return\n"),
            ("Once\n", r"print('\n')", true, "print('\\n')\n"),
            ("", "User: hi", true, "User: hi\n"),
            ("Once", "", true, ""),
        ] {
            assert_eq!(joined(before, line, lines), added, "{before:?} {line:?}");
        }
    }

    #[test]
    fn commands_begin_with_a_slash_and_a_letter() {
        assert!(matches!(asked("/set  top_p 1"), Asked::Command(words) if words == ["/set", "top_p", "1"]));
        for text in ["// a comment", "/ b", " /undo", "and/or", ""] {
            assert!(matches!(asked(text), Asked::Text(same) if same == text));
        }
    }
}
