//! The text of a run made ready: every source found before any is read, one vocabulary, a token cache of each, and the
//! stories to validate on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::bail;
use flashlm_kernels::Token;
use flashlm_model::tok::Tokenizer;
use flashlm_train::config::Settings;
use flashlm_train::curriculum::{Curriculum, Text};
use flashlm_train::data::build::{Progress, open_or_build};
use flashlm_train::data::cache::{TokenCache, cache_path, default_dir};
use flashlm_train::data::holdout::{Holdout, stories_of};
use flashlm_train::data::source::Source;
use flashlm_train::data::split::Split;
use flashlm_train::data::{DataError, synthetic};
use flashlm_train::eval::{Budget, Stories};
use flashlm_train::stage::StageSource;
use flashlm_train::tokenizer::{TokenizerChoice, tokenizer};
use flashlm_train::units;

use crate::common::{Status, counted, noted, open_source, passed_over, say};

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
    /// Reads, or builds where they are not there yet, the vocabulary (but for the `own` one of a model that is trained on) and
    /// the token caches; the vocabulary's size and its end of stories go into the settings.
    pub fn new(
        settings: &mut Settings,
        own: Option<Tokenizer>,
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
            say!("validation: the text's own, {}; --valid names another", own.replace('\n', ", "));
        }
        let mut sources = sources;
        let valid_source = held_out(settings, &mut sources, last, offline, &stopped)?;
        for ((source, _), spec) in sources.iter().zip(&specs) {
            passed_over(&spec.source.replace('\n', ", "), source);
        }
        let mut progress = |what: &str, p: &Progress| {
            let eta = p.seconds * (1.0 - p.fraction) / p.fraction.max(1e-3);
            let (share, speed) = (100.0 * p.fraction, p.bytes_per_second() / 1e6);
            status.show(&format!("{what} {share:3.0} %  {speed:.0} MB/s  eta {}", units::duration(eta)));
            if stop.load(SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let tokenizer = match own {
            Some(own) => own,
            None => {
                let choice: TokenizerChoice = settings.tokenizer.kind.parse()?;
                let wanted = &settings.tokenizer;
                tokenizer(&default_dir(), &choice, wanted.vocab, wanted.stories, &sources, &mut |p| {
                    progress("vocabulary", p)
                })?
            }
        };
        (settings.model.vocab_size, settings.model.eos) = (tokenizer.vocab_size(), tokenizer.eos().into());
        let mut texts: Vec<Text> = Vec::new();
        for ((source, _), spec) in sources.iter().zip(&specs) {
            let path = cache_path(&default_dir(), source, &tokenizer);
            let what = if sources.len() > 1 { format!("tokens of {}", source.name()) } else { "tokens".into() };
            let (cache, built) = open_or_build(&path, source, &tokenizer, threads, &mut |p| progress(&what, p))?;
            let about = built.as_ref().map_or("reused".to_string(), |built| format!("built: {}", built.reason));
            let short = source.name();
            let taken = sources.iter().filter(|(other, _)| other.name() == short).count() > 1;
            let name = if taken { spec.source.replace('\n', ", ") } else { short.to_string() };
            let label = if sources.len() > 1 { format!("text {name}") } else { "text".into() };
            say!("{label}: {cache} ({about})");
            noted(&label, &built.map(|built| built.read.seen).unwrap_or_default());
            let (tokens, longest) = (cache.tokens().len(), settings.stages().iter().map(|stage| stage.seq_len).max());
            if longest.is_some_and(|longest| longest >= 2 * tokens) {
                say!(
                    "{label}: much shorter than a window; --set train.seq_len={} trains faster",
                    tokens.next_power_of_two()
                );
            }
            texts.push(Text { name, cache });
        }
        status.clear();

        // Exact under the grammar of the synthetic stories; another text has no bound, as its first story shows.
        let mut bits = Some(0.0);
        let budget = Budget { tokens: Some(VALID_TOKENS) };
        let (valid, read) = Stories::read_with(&valid_source, &tokenizer, budget, &mut |story| {
            bits = bits.and_then(|sum| Some(sum + synthetic::bits(story)?));
        })?;
        if !settings.data.valid.is_empty() {
            noted("validation", &read.seen);
        }
        if valid.is_empty() {
            match settings.data.valid.is_empty() {
                true => bail!(
                    "no story of {} is left for validation ({} for training); name a text for it with --valid, raise \
                     data.holdout (now {}), or validate on the training text itself with --set data.holdout=0",
                    specs[last].source,
                    texts[last].cache.stories(),
                    settings.data.holdout
                ),
                false => {
                    bail!("{}: the validation text holds no story; name another with --valid", settings.data.valid)
                }
            }
        }
        if settings.data.valid.is_empty() {
            let train = &texts[last].cache;
            let other = if apart(train, &valid, &tokenizer) > KIND {
                "; its letters are other ones than the rest has, --valid names a text of the same kind"
            } else {
                ""
            };
            say!("validation: {}{other}", of_text(train, &valid_source, valid.len(), settings.data.holdout));
        }
        let doubles: u64 = texts.iter().map(|text| text.cache.doubles()).sum();
        if doubles > 0 {
            say!(
                "left out of training, being in the validation text, too: {}; --set data.keep_doubles=true keeps them",
                counted(doubles, "story")
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

/// The validation text: the one named, or what is held out of source `last`. Of the training texts, the files and stories of
/// it are left out.
fn held_out(
    settings: &Settings,
    sources: &mut [(Source, f64)],
    last: usize,
    offline: bool,
    stop: &dyn Fn() -> bool,
) -> anyhow::Result<Source> {
    let data = &settings.data;
    let by_place = |split| matches!(split, Split::After(_));
    let valid = if !data.valid.is_empty() {
        // Another seed, so that two synthetic sources do not tell the same stories.
        let valid = open_source(&data.valid, settings.train.seed.wrapping_add(1), offline, stop)?;
        let column = if data.valid_column.is_empty() { &data.column } else { &data.valid_column };
        let valid = if column.is_empty() { valid } else { valid.with_column(column) };
        for (source, _) in sources.iter_mut() {
            if source.place() == valid.place() {
                bail!(
                    "--valid is the training text itself; name another text, leave it out to hold out a share, or validate \
                     on what is trained on with --set data.holdout=0"
                );
            }
            source.leave_out_files_of(&valid)?;
        }
        valid
    } else if data.holdout == 0.0 {
        return Ok(sources[last].0.clone());
    } else {
        let Holdout { train, valid } = Holdout::of(&sources[last].0, data.holdout, stop)?;
        let held = sources[last].0.clone().with_split(valid);
        for (i, (source, _)) in sources.iter_mut().enumerate() {
            // By hash, a story is held out of all texts alike.
            if i == last || !by_place(valid) {
                *source = source.clone().with_split(train);
            }
        }
        held
    };
    if !data.keep_doubles && (!data.valid.is_empty() || by_place(valid.split())) {
        let held = Arc::new(stories_of(&valid, stop)?);
        for (source, _) in sources.iter_mut() {
            *source = source.clone().without(held.clone());
        }
    }
    Ok(valid)
}

/// Fewer stories, or bytes by place, are said to be few.
const FEW: (u64, u64) = (50, 16 << 10);

/// Bits by which texts of two kinds are apart at least. Measured: German after English 0.26, the other way round 0.16, verse after
/// source code 0.09; the last files of a program after its others 0.05, the end of the last of four novels 0.02.
const KIND: f64 = 0.08;
/// Fewer bytes say nothing about that.
const MEASURABLE: f64 = 4096.0;

/// How far the bytes of the validation text are from those of the training text: the Kullback-Leibler divergence in bits.
fn apart(train: &TokenCache, valid: &Stories, tokenizer: &Tokenizer) -> f64 {
    let bytes: Vec<Vec<u8>> = (0..tokenizer.vocab_size()).map(|id| tokenizer.decode(&[id as Token])).collect();
    let count = |tokens: &mut dyn Iterator<Item = Token>| {
        let mut ids = vec![0u64; bytes.len()];
        tokens.for_each(|id| ids[usize::from(id)] += 1);
        let mut counts = [0.0; 256];
        for (n, bytes) in ids.into_iter().zip(&bytes) {
            bytes.iter().for_each(|byte| counts[usize::from(*byte)] += n as f64);
        }
        counts
    };
    let total = |counts: &[f64; 256]| counts.iter().sum::<f64>();
    let train = count(&mut train.tokens().iter().copied());
    let valid = count(&mut (0..valid.len()).flat_map(|i| valid.story(i)).copied());
    if total(&valid) < MEASURABLE {
        return 0.0;
    }
    // One more of each in the training text, so that none is impossible there.
    let (all_valid, all_train) = (total(&valid), total(&train) + 256.0);
    let shares = valid.iter().zip(&train).map(|(v, t)| (v / all_valid, (t + 1.0) / all_train));
    shares.filter(|(p, _)| *p > 0.0).map(|(p, q)| p * (p / q).log2()).sum()
}

/// What is held out of a text, in words.
fn of_text(train: &TokenCache, valid: &Source, stories_held: usize, share: f64) -> String {
    if share == 0.0 {
        return "nothing is held out (data.holdout = 0); the training text itself is scored".into();
    }
    let (stories, all) = train.read();
    let held = match valid.split() {
        Split::After(at) => all.saturating_sub(at),
        _ => all.saturating_sub(train.bytes()),
    };
    let part = format!("{}, {:.1} % of the text", units::bytes(held), 100.0 * held as f64 / all.max(1) as f64);
    let few = "; so few are a rough measure, --valid names a text of your own";
    match valid.split() {
        Split::After(_) => {
            let stories = counted(stories_held as u64, "story");
            format!("the end of the text is held out: {stories}, {part}{}", if held < FEW.1 { few } else { "" })
        }
        _ => {
            let stories_held = stories.saturating_sub(train.stories() as u64);
            format!(
                "{} of {} stories are held out, chosen by a hash of each: {part}{}",
                units::thousands(stories_held),
                units::thousands(stories),
                if stories_held < FEW.0 { few } else { "" }
            )
        }
    }
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
