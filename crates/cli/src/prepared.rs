//! The text of a run made ready: every source found before any is read, one vocabulary, a token cache of each, and the
//! stories to validate on.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::bail;
use flashlm_model::tok::Tokenizer;
use flashlm_train::checkpoint::Checkpoint;
use flashlm_train::config::Settings;
use flashlm_train::data::cache::{Progress, TokenCache, cache_path, default_dir};
use flashlm_train::data::curriculum::{Curriculum, Text};
use flashlm_train::data::source::Source;
use flashlm_train::data::split::Split;
use flashlm_train::data::vocab::{TokenizerChoice, tokenizer};
use flashlm_train::data::{DataError, synthetic};
use flashlm_train::eval::{Budget, Stories};
use flashlm_train::log::console;
use flashlm_train::stage::StageSource;

use crate::common::{Status, open_source, say};

/// Most validation tokens that are scored at the end of a run.
const VALID_TOKENS: usize = 1_000_000;

/// What a run starts from, besides its settings.
pub struct Prepared {
    pub tokenizer: Tokenizer,
    pub texts: Curriculum,
    pub valid: Stories,
    /// Bits per byte no model can go below on `valid`, where known.
    pub entropy_bound: Option<f64>,
}

impl Prepared {
    /// Reads, or builds where they are not there yet, the vocabulary and the token caches; the vocabulary's size and its end
    /// of stories go into the settings.
    pub fn new(
        settings: &mut Settings,
        resume: Option<&Checkpoint>,
        threads: usize,
        offline: bool,
        stop: &AtomicBool,
        status: &mut Status,
    ) -> anyhow::Result<Prepared> {
        let (specs, seed) = (settings.texts(), settings.train.seed);
        let stopped = || stop.load(SeqCst);
        // A mistake in any of them comes before the first download.
        specs.iter().try_for_each(|spec| select(Source::parse(&spec.source)?, spec).map(drop))?;
        let open = |spec: &StageSource| Ok((open(spec, seed, offline, &stopped)?, spec.weight));
        let sources: Vec<(Source, f64)> = specs.iter().map(open).collect::<anyhow::Result<_>>()?;
        let last = heaviest_of_last_stage(settings);
        let last = specs.iter().position(|spec| spec.is_same(&last)).expect("all texts are listed");
        if let (true, Some(own)) = (settings.data.valid.is_empty(), sources[last].0.validation()) {
            settings.data.valid = own.to_string();
            say!("validation: the dataset's own, {own}; --valid names another");
        }
        let (side, valid_source, valid_side) = if settings.data.valid.is_empty() {
            let share = settings.data.holdout;
            let source = sources[last].0.clone();
            let of = if sources.len() > 1 { format!(" of {}", specs[last].source) } else { String::new() };
            say!("validation: {} % of the stories{of}, chosen by a hash of each, are held out", share * 100.0);
            (Split::Train(share), source, Split::Valid(share))
        } else {
            // Another seed, so that two synthetic sources do not tell the same stories.
            let valid = open_source(&settings.data.valid, seed.wrapping_add(1), offline, &stopped)?;
            if sources.iter().any(|(source, _)| source.place() == valid.place()) {
                bail!("--valid is the training text itself; name another text, or leave it out to hold out a share");
            }
            (Split::All, valid, Split::All)
        };

        let mut progress = |what: &str, p: &Progress| {
            let eta = p.seconds * (1.0 - p.fraction) / p.fraction.max(1e-3);
            let (share, speed) = (100.0 * p.fraction, p.bytes_per_second() / 1e6);
            status.show(&format!("{what} {share:3.0} %  {speed:.0} MB/s  eta {}", console::duration(eta)));
            if stop.load(SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let tokenizer = match resume {
            Some(from) => Tokenizer::from_json(&from.bytes("tokenizer.json")?)?,
            None => {
                let choice: TokenizerChoice = settings.tokenizer.kind.parse()?;
                let wanted = &settings.tokenizer;
                tokenizer(&default_dir(), &choice, wanted.vocab, wanted.stories, &sources, side, &mut |p| {
                    progress("vocabulary", p)
                })?
            }
        };
        (settings.model.vocab_size, settings.model.eos) = (tokenizer.vocab_size(), tokenizer.eos().into());
        let mut texts: Vec<Text> = Vec::new();
        for ((source, _), spec) in sources.iter().zip(&specs) {
            let path = cache_path(&default_dir(), source, &tokenizer, side);
            let what = if sources.len() > 1 { format!("tokens of {}", source.name()) } else { "tokens".into() };
            let (cache, stale) =
                TokenCache::open_or_build(&path, source, &tokenizer, side, threads, &mut |p| progress(&what, p))?;
            let about = stale.map_or("reused".to_string(), |reason| format!("built: {reason}"));
            let short = source.name();
            let taken = sources.iter().filter(|(other, _)| other.name() == short).count() > 1;
            let name = if taken { spec.source.clone() } else { short.to_string() };
            let label = if sources.len() > 1 { format!("text {name}") } else { "text".into() };
            say!("{label}: {cache} ({about})");
            texts.push(Text { name, cache });
        }
        status.clear();

        // Exact under the grammar of the synthetic stories; another text has no bound, as its first story shows.
        let mut bits = Some(0.0);
        let budget = Budget { tokens: Some(VALID_TOKENS) };
        let (valid, _) = Stories::read_with(&valid_source, &tokenizer, valid_side, budget, &mut |story| {
            bits = bits.and_then(|sum| Some(sum + synthetic::bits(story)?));
        })?;
        if valid.is_empty() {
            let named = if settings.data.valid.is_empty() { &specs[last].source } else { &settings.data.valid };
            bail!(
                "no story of {named} is left for validation ({} for training); give a text for it with --valid, or raise \
                 data.holdout (now {})",
                texts.iter().map(|text| text.cache.stories()).sum::<usize>(),
                settings.data.holdout
            );
        }
        let entropy_bound = bits.map(|bits| bits / valid.totals().bytes as f64);
        let texts = Curriculum::new(settings, texts)?;
        Ok(Prepared { tokenizer, texts, valid, entropy_bound })
    }
}

/// The text that is validated on where none is named for it: of the last stage, the one with the largest weight.
fn heaviest_of_last_stage(settings: &Settings) -> StageSource {
    let sources = settings.stages().pop().map(|stage| stage.sources).unwrap_or_default();
    let first = sources[0].clone();
    sources.into_iter().fold(first, |best, source| if source.weight > best.weight { source } else { best })
}

/// A text of the run.
pub fn open(spec: &StageSource, seed: u64, offline: bool, stop: &dyn Fn() -> bool) -> anyhow::Result<Source> {
    Ok(select(open_source(&spec.source, seed, offline, stop)?, spec)?)
}

/// The source with the column and the filter of its stage.
fn select(source: Source, spec: &StageSource) -> Result<Source, DataError> {
    let source = if spec.column.is_empty() { source } else { source.with_column(&spec.column) };
    source.with_filter(spec.filter.clone())
}
