//! A model that writes: its weights, an engine, and the settings that a text is begun with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use anyhow::Context;
use flashlm_kernels::Exec;
use flashlm_model::sample::Settings;
use flashlm_model::{Engine, Finish, Generation, PackedModel};
use flashlm_train::units::{counted, thousands};

use crate::common::{say, write_out};

/// Rows of the prompt that are worked through at once, and texts that are written together.
pub const ROWS: usize = 64;

/// A model that writes.
pub struct Writer {
    /// The weights.
    pub model: Arc<PackedModel>,
    /// Its working memory.
    pub engine: Engine,
    /// How tokens are chosen in texts that are begun from now on.
    pub settings: Settings,
    /// Most tokens of a text or turn.
    pub limit: usize,
    /// Strings before which a text ends.
    pub stop: Vec<String>,
}

/// How a turn of writing ended.
pub struct Turn {
    /// The text.
    pub text: String,
    /// Why it ended; none where it was interrupted.
    pub finish: Option<Finish>,
    /// Tokens of the text, and of what was given before it.
    pub tokens: (usize, usize),
    /// Seconds that it took.
    pub seconds: f64,
}

impl Writer {
    /// Of a loaded model.
    pub fn new(model: PackedModel, cx: Exec, settings: Settings, limit: usize, stop: Vec<String>) -> Writer {
        let model = Arc::new(model);
        Writer { engine: Engine::new(model.clone(), cx, ROWS), model, settings, limit, stop }
    }

    /// A new text; its seed is that of the settings and `sample` more.
    pub fn begin(&self, sample: usize) -> anyhow::Result<Generation> {
        let seed = self.settings.seed.wrapping_add(sample as u64);
        let settings = Settings { seed, ..self.settings.clone() };
        Ok(Generation::new(&self.model, settings, self.limit, &self.stop)?)
    }

    /// Appends `given`, lets the model go on, and prints what it writes piece by piece; `interrupted` ends it early.
    pub fn turn(
        &mut self,
        generation: &mut Generation,
        given: &str,
        interrupted: &AtomicBool,
        name: &Path,
    ) -> anyhow::Result<Turn> {
        self.note_unknown(given);
        let prompt = generation.push(given);
        let (start, before) = (Instant::now(), generation.tokens());
        let mut text = String::new();
        while generation.finish().is_none() && !interrupted.load(Relaxed) {
            self.engine.advance(std::slice::from_mut(generation)).with_context(|| name.display().to_string())?;
            write_out(format_args!("{}", generation.text()), false);
            text += generation.text();
        }
        let tokens = (generation.tokens() - before, prompt);
        Ok(Turn { text, finish: generation.finish(), tokens, seconds: start.elapsed().as_secs_f64() })
    }

    /// Says how many tokens of a prompt the model does not know.
    pub fn note_unknown(&self, text: &str) {
        let Some(unk) = self.model.tokenizer().unk() else { return };
        let mut ids = Vec::new();
        self.model.tokenizer().encode(text, &mut ids);
        let unknown = ids.iter().filter(|id| **id == unk).count();
        if unknown > 0 {
            say!("note: {unknown} of the prompt's {} tokens are not in the model's vocabulary", ids.len());
        }
    }
}

impl Turn {
    /// In one line: how much, how fast, and why it ended.
    pub fn told(&self) -> String {
        let (tokens, prompt) = self.tokens;
        let speed = (tokens + prompt) as f64 / self.seconds.max(1e-9);
        format!(
            "{} after a prompt of {prompt} in {:.3} s, {} tokens/s; {}",
            counted(tokens as u64, "token"),
            self.seconds,
            thousands(speed.round() as u64),
            why(self.finish)
        )
    }
}

/// Why a text ended, in words.
pub fn why(finish: Option<Finish>) -> &'static str {
    match finish {
        Some(Finish::Eos) => "the model ended the text",
        Some(Finish::Length) => "reached the limit (-n)",
        Some(Finish::Stop) => "reached a stop string",
        Some(Finish::Failed) => "no token could be chosen",
        None => "interrupted",
    }
}
