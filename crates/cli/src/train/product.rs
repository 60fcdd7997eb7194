//! What `flashlm train` prints on stdout: settings, samples and a summary for people, or an object on a line for each event.
//! A run does not end where nobody reads it any longer.

use std::io::{IsTerminal, stdout};
use std::path::Path;

use flashlm_train::config::{Settings, preset};
use flashlm_train::log::{Row, SampleRow};
use flashlm_train::trainer::Event;
use serde_json::{Value, json};

use crate::common::{say, try_out};
use crate::terminal::{stdout_width, wrapped};

/// Standard output of a run.
pub struct Product {
    open: bool,
    json: bool,
}

impl Product {
    /// For people, or as JSON.
    pub fn new(json: bool) -> Product {
        Product { open: true, json }
    }

    /// Prints a line.
    pub fn print(&mut self, text: std::fmt::Arguments) {
        if !self.open {
            return;
        }
        if let Err(error) = try_out(text, true) {
            self.open = false;
            say!("standard output cannot be written any longer ({error}): samples are not shown, training continues");
        }
    }

    /// The settings of the run, for people: on a terminal what differs from the preset, elsewhere all.
    pub fn settings(&mut self, settings: &Settings, file: &Path) {
        match (self.json, stdout().is_terminal()) {
            (true, _) => {}
            (_, false) => self.print(format_args!("{}\n", settings.to_toml().trim_end())),
            (_, true) => {
                let (name, base) = match preset(&settings.name) {
                    Ok(base) => (settings.name.as_str(), base),
                    Err(_) => ("the defaults", Settings::default()),
                };
                let differences = settings.differences(&base).join(", ");
                let file = file.display();
                let line = format!("settings: {name}, but {differences}. All are in {file}");
                self.print(format_args!("{}", wrapped(&line, stdout_width(), 2).join("\n")));
            }
        }
    }

    /// What the run begins with, as JSON.
    pub fn start(&mut self, about: Value) {
        self.object("start", about);
    }

    /// What a run tells: all but its progress as JSON, samples for people.
    pub fn tell(&mut self, event: &Event) {
        match event {
            Event::Sample(SampleRow { step, prompt, text }) if !self.json => {
                self.print(format_args!("--- step {step}\n{prompt}{text}\n"));
            }
            // Those of the last step are no rows where the log has them.
            Event::Sample(sample) => self.object("sample", json!(sample)),
            Event::Row(Row::Train(row)) => self.object("train", json!(row)),
            Event::Row(Row::Eval(row)) => self.object("eval", json!(row)),
            Event::Row(Row::Sample(_)) | Event::Progress(_) | Event::Saved { .. } => {}
            Event::Note(text) => self.object("note", json!({"text": text})),
        }
    }

    /// The last object: what the run came to.
    pub fn result(&mut self, run: &str, mut result: Value) {
        result["run"] = run.into();
        self.object("result", result);
    }

    /// The last object of a run that came to no result: why.
    pub fn end(&mut self, outcome: &str, why: &str) {
        self.object("result", json!({"outcome": outcome, "text": why}));
    }

    fn object(&mut self, kind: &str, mut object: Value) {
        if self.json {
            object["kind"] = kind.into();
            self.print(format_args!("{object}"));
        }
    }
}
