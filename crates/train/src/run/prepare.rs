//! Prepares the text of a run: all sources are found before any is read; then one vocabulary, one token cache per source, and the
//! validation documents.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use flashlm_kernels::{Buf, Exec};
use flashlm_model::layer::pointer::set_words;
use flashlm_model::params::Layout;
use flashlm_model::tok::Tokenizer;

use super::beginnings::Beginnings;
use super::embedding;
use super::open::{open_text, select};
use super::validation::{Validation, heaviest_of_last_stage};
use super::{Origin, Resolved};
use crate::config::{Settings, SettingsError};
use crate::curriculum::{Curriculum, Text};
use crate::data::build::{Opened, Progress, open_or_build};
use crate::data::cache::{TokenCache, cache_path};
use crate::data::source::{Oddities, Source, Weighted};
use crate::data::{DataError, synthetic};
use crate::eval::{Budget, Stories, Taken};
use crate::ranks::Leader;
use crate::run_folder::Claim;
use crate::stage::StageSource;
use crate::tokenizer::{TokenizerChoice, tokenizer};
use crate::trainer::{Event, Inputs, Tell, TrainError, Trainer};
use crate::units::{counted, duration, thousands};

/// Shortest text, in bytes, that is compressed to compare with.
const COMPARABLE: usize = 1024;
/// Most validation tokens scored at the end of a run.
const VALID_TOKENS: usize = 1_000_000;

/// A run that has all it needs to train, except a folder.
pub struct Prepared {
    pub(super) resolved: Resolved,
    /// The vocabulary of all texts.
    pub tokenizer: Tokenizer,
    /// Training tokens.
    pub texts: Curriculum,
    /// Validation documents.
    pub valid: Stories,
    /// What a fresh run starts from, where that is not its seed alone.
    start: Option<Buf<f32>>,
    /// Bits per byte no model can go below on `valid`, where known.
    pub entropy_bound: Option<f64>,
    /// Bits per byte that `zstd -19` needs for `valid`, a figure to compare with; none for a text so short that it would be no measure.
    pub zstd_bpb: Option<f64>,
}

impl Prepared {
    /// The settings, with the size of the vocabulary and the dataset's own validation text, if it has one.
    pub fn settings(&self) -> &Settings {
        self.resolved.settings()
    }

    /// Documents to train on.
    pub fn stories(&self) -> u64 {
        self.texts.texts().iter().map(|text| text.cache.stories() as u64).sum()
    }

    /// Documents left out of training because the validation text has them.
    pub fn duplicates(&self) -> u64 {
        self.texts.texts().iter().map(|text| text.cache.duplicates()).sum()
    }

    /// The trainer, in the folder of `claim`.
    pub fn trainer<'a>(self, cx: &'a Exec, claim: Claim) -> Result<Trainer<'a>, TrainError> {
        self.on_ranks(cx, claim, None)
    }

    /// The same on several ranks, where there is a leader of them.
    pub fn on_ranks<'a>(
        self,
        cx: &'a Exec,
        claim: Claim,
        leader: Option<&'a Leader<'a>>,
    ) -> Result<Trainer<'a>, TrainError> {
        let Prepared { resolved, tokenizer, texts, valid, start: own, entropy_bound, .. } = self;
        let Resolved { settings, origin, .. } = resolved;
        let (resume, start) = match origin {
            Origin::Fresh => (None, own),
            Origin::Resumed(resume) => (Some(resume.from), None),
            Origin::Tuned(start) => (None, Some(start.params)),
        };
        let inputs = Inputs { settings, tokenizer, texts, valid, entropy_bound, start, claim };
        Trainer::new(cx, inputs, resume.as_ref(), leader)
    }
}

impl Resolved {
    /// Reads the vocabulary and the token caches, or builds them if missing; a resumed or fine-tuned model keeps its vocabulary.
    pub fn prepare(mut self, stop: &AtomicBool, tell: Tell) -> Result<Prepared, TrainError> {
        let specs = self.settings.texts();
        let stopped = || stop.load(SeqCst);
        let mut sources = self.sources(&specs, &stopped, tell)?;
        let last = heaviest_of_last_stage(&self.settings);
        let last = specs.iter().position(|spec| spec.is_same(&last)).expect("all texts are listed");
        if let (true, Some(own)) = (self.settings.data.valid.is_empty(), sources[last].source.validation()) {
            self.settings.data.valid = own.to_string();
            let own = own.replace('\n', ", ");
            tell(Event::Note(&format!("validation: the dataset's own split, {own}; --valid names another text")));
        }
        let validation = Validation::of(&self.settings.data);
        let held = validation.separate(&self.settings, &mut sources, last, self.offline, &stopped, tell)?;
        for (Weighted { source, .. }, spec) in sources.iter().zip(&specs) {
            let passed = source.passed_over();
            if !passed.is_empty() {
                tell(Event::Note(&format!("{}: skipped: {passed}", one_line(&spec.source))));
            }
        }
        let tokenizer = self.vocabulary(&sources, stop, tell)?;
        let model = &mut self.settings.model;
        (model.vocab_size, model.eos) = (tokenizer.vocab_size(), tokenizer.eos().into());
        let texts = self.tokens(&specs, &sources, &tokenizer, stop, tell)?;

        // Exact under the grammar of the synthetic stories; another text has no bound, as its first document shows.
        let mut bits = Some(0.0);
        let budget = Budget { tokens: Some(VALID_TOKENS) };
        let (mut text, mut beginnings) = (Vec::new(), Beginnings::default());
        let Taken { stories: valid, report: read } = Stories::read_with(&held, &tokenizer, budget, &mut |story| {
            text.extend_from_slice(story.as_bytes());
            beginnings.see(story, &self.settings.train.prompts);
            bits = bits.and_then(|sum| Some(sum + synthetic::bits(story)?));
        })?;
        let train = &texts[last].cache;
        match validation {
            Validation::Named => {
                note_oddities("validation", &read.oddities, tell);
                if text.iter().all(u8::is_ascii_whitespace) {
                    return Err(TrainError::NoValidation { spec: self.settings.data.valid });
                }
            }
            _ if valid.is_empty() => {
                let (text, left) = (specs[last].source.clone(), train.stories());
                return Err(TrainError::NothingHeldOut { text, left, holdout: self.settings.data.holdout });
            }
            _ => tell(Event::Note(&validation.told(train, &held, &valid, &tokenizer))),
        }
        let entropy_bound = bits.map(|bits| bits / valid.totals().bytes as f64);
        if self.origin.checkpoint().is_none() && self.settings.train.prompts == Settings::default().train.prompts {
            beginnings.instead_of(&mut self.settings.train.prompts);
        }
        let texts = Curriculum::new(&self.settings, texts)?;
        let start = self.start(&tokenizer, stop, tell)?;
        self.settings.validate()?;
        let zstd_bpb = bits_per_byte(&text);
        let prepared = Prepared { resolved: self, tokenizer, texts, valid, start, entropy_bound, zstd_bpb };
        if prepared.duplicates() > 0 {
            tell(Event::Note(&format!(
                "left out of training because the validation text has them: {}; --set data.keep_doubles=true keeps them",
                counted(prepared.duplicates(), "document")
            )));
        }
        Ok(prepared)
    }

    fn sources(&self, specs: &[StageSource], stop: &dyn Fn() -> bool, tell: Tell) -> Result<Vec<Weighted>, DataError> {
        // A mistake in any of them comes before the first download.
        specs.iter().try_for_each(|spec| select(Source::parse(&spec.source)?, spec).map(drop))?;
        let seed = self.settings.train.seed;
        let open = |spec: &StageSource| {
            Ok(Weighted { source: open_text(spec, seed, self.offline, stop, tell)?, weight: spec.weight })
        };
        specs.iter().map(open).collect()
    }

    fn vocabulary(&self, sources: &[Weighted], stop: &AtomicBool, tell: Tell) -> Result<Tokenizer, TrainError> {
        match &self.origin {
            Origin::Resumed(resume) => {
                Ok(Tokenizer::from_json(&resume.from.bytes("tokenizer.json")?).map_err(DataError::from)?)
            }
            Origin::Tuned(start) => Ok(Tokenizer::from_json(&start.tokenizer).map_err(DataError::from)?),
            Origin::Fresh => {
                let wanted = &self.settings.tokenizer;
                let choice: TokenizerChoice = wanted.kind.parse()?;
                let told = &mut |p: &Progress| progress("vocabulary", p, stop, tell);
                Ok(tokenizer(&self.cache, &choice, wanted.vocab, wanted.stories, sources, told)?)
            }
        }
    }

    /// The parameters of a fresh run that starts from more than a seed: pointers know the words of the vocabulary, an embedding may be that of
    /// another model.
    fn start(&mut self, tokenizer: &Tokenizer, stop: &AtomicBool, tell: Tell) -> Result<Option<Buf<f32>>, TrainError> {
        if !matches!(self.origin, Origin::Fresh) {
            return Ok(None);
        }
        self.settings.model.validate().map_err(SettingsError::from)?;
        let mut start = self.start_embedding(stop, tell)?;
        let Settings { model, train, .. } = &self.settings;
        if model.pointer_words {
            let layout = Layout::of(model);
            set_words(&layout, start.get_or_insert_with(|| layout.init(train.seed)), tokenizer);
        }
        Ok(start)
    }

    /// With the embedding of another model; without one, or without a network, a random start that nothing freezes.
    fn start_embedding(&mut self, stop: &AtomicBool, tell: Tell) -> Result<Option<Buf<f32>>, TrainError> {
        let Settings { model, train, .. } = &mut self.settings;
        if train.embedding_from.is_empty() {
            if std::mem::take(&mut train.frozen_embedding) > 0 {
                tell(Event::Note("the embedding starts at random (train.embedding_from is empty), and is not frozen"));
            }
            return Ok(None);
        }
        let given = (&*self.cache, train.seed, self.offline);
        let cx = Exec::new(self.isa, self.threads.get());
        let found = embedding::start(&cx, model, &train.embedding_from, given, &|| stop.load(SeqCst), tell)?;
        if found.is_none() {
            train.frozen_embedding = 0;
        }
        Ok(found)
    }

    /// Every text as tokens.
    fn tokens(
        &self,
        specs: &[StageSource],
        sources: &[Weighted],
        tokenizer: &Tokenizer,
        stop: &AtomicBool,
        tell: Tell,
    ) -> Result<Vec<Text>, DataError> {
        let longest = self.settings.largest().seq_len;
        let many = sources.len() > 1;
        let text = |(Weighted { source, .. }, spec): (&Weighted, &StageSource)| {
            let short = source.name();
            let path = cache_path(&self.cache, source, tokenizer);
            let what = if many { format!("tokens of {short}") } else { "tokens".into() };
            let told = &mut |p: &Progress| progress(&what, p, stop, tell);
            let Opened { cache, built } = open_or_build(&path, source, tokenizer, self.threads(), told)?;
            let about = built.as_ref().map_or("reused".to_string(), |built| format!("built: {}", built.reason));
            let taken = sources.iter().filter(|other| other.source.name() == short).count() > 1;
            let name = if taken { one_line(&spec.source) } else { short.to_string() };
            let label = if many { format!("text {name}") } else { "text".into() };
            tell(Event::Note(&format!("{label}: {cache} ({about})")));
            if spec.filter.documents > 0 {
                let most = thousands(spec.filter.documents);
                tell(Event::Note(&format!(
                    "{label}: of its documents the first {most}; --set data.documents=0 takes all"
                )));
            }
            note_oddities(&label, &built.map(|built| built.read.oddities).unwrap_or_default(), tell);
            too_short(&label, &cache, longest, tell);
            Ok(Text { name, cache })
        };
        sources.iter().zip(specs).map(text).collect()
    }
}

/// Notes that a text is much shorter than the longest window.
fn too_short(label: &str, cache: &TokenCache, longest: usize, tell: Tell) {
    let tokens = cache.tokens().len();
    if longest >= 2 * tokens {
        let fits = tokens.next_power_of_two();
        tell(Event::Note(&format!(
            "{label}: much shorter than one window of train.seq_len; --set train.seq_len={fits} trains \
         faster"
        )));
    }
}

/// Notes in one line what was odd in a text but not an error.
fn note_oddities(what: &str, oddities: &Oddities, tell: Tell) {
    let notes = oddities.notes();
    if !notes.is_empty() {
        tell(Event::Note(&format!("{what}: {}", notes.join(". "))));
    }
}

fn progress(what: &str, p: &Progress, stop: &AtomicBool, tell: Tell) -> ControlFlow<()> {
    let eta = p.seconds * (1.0 - p.fraction) / p.fraction.max(1e-3);
    let (share, speed) = (100.0 * p.fraction, p.bytes_per_second() / 1e6);
    tell(Event::Progress(&format!("{what} {share:3.0} %  {speed:.0} MB/s  eta {}", duration(eta))));
    if stop.load(SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Bits per byte of a text that `zstd -19` compresses by itself.
fn bits_per_byte(text: &[u8]) -> Option<f64> {
    let compressed = zstd::bulk::compress(text, 19).ok().filter(|_| text.len() >= COMPARABLE)?;
    Some(8.0 * compressed.len() as f64 / text.len() as f64)
}

/// Several files as one line.
fn one_line(spec: &str) -> String {
    spec.replace('\n', ", ")
}
