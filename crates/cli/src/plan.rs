//! `flashlm train --dry-run`: what a run would do. Vocabulary and token caches are made, as the run would make them; a few
//! updates are measured and thrown away; the run's folder is not touched.

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{bail, ensure};
use flashlm_kernels::cpu::peak_rss;
use flashlm_kernels::{Exec, Isa};
use flashlm_model::tok::Tokenizer;
use flashlm_train::checkpoint::Checkpoint;
use flashlm_train::config::Settings;
use flashlm_train::curriculum::Curriculum;
use flashlm_train::progress::{Plan, State};
use flashlm_train::stepper::Stepper;
use flashlm_train::trainer;
use flashlm_train::units::{bytes, duration, thousands};
use serde_json::{Value, json};

use crate::common::{Status, is_files, out, say};
use crate::prepared::{self, Prepared};

/// Updates of each stage that are measured, after one that is not.
const MEASURED: u64 = 3;

/// Runs the command.
pub fn dry_run(
    mut settings: Settings,
    resume: Option<&Checkpoint>,
    tokenizer: Option<Tokenizer>,
    isa: Isa,
    threads: usize,
    stop: &AtomicBool,
    status: &mut Status,
    json: bool,
) -> anyhow::Result<ExitCode> {
    missing(&settings)?;
    let Prepared { texts, .. } = Prepared::new(&mut settings, tokenizer, threads, true, stop, status)?;
    settings.validate()?;
    let batch = settings.train.batch * settings.train.accumulation;
    let plan = Plan::new(&settings, texts.extents(), batch);
    let state = resume.map(|from| trainer::state(from, &settings)).transpose()?.unwrap_or_default();
    if state.step > 0 {
        say!("from step {} on, after {}:", thousands(state.step), duration(state.elapsed));
    }
    let cx = Exec::new(isa, threads);
    let mut stepper =
        Stepper::new(&settings.model, settings.train.precision, (batch, plan.longest()), &settings.train)?;
    let seconds: Vec<f64> = (0..plan.stages())
        .map(|stage| update_seconds(&cx, &mut stepper, &settings, &texts, stage))
        .collect::<anyhow::Result<_>>()?;
    let stages: Vec<Stage> =
        (0..plan.stages()).map(|i| Stage::new(i, seconds[i], &settings, &plan, &state, &texts, batch)).collect();
    let sum = |f: fn(&Stage) -> f64| stages.iter().map(f).sum::<f64>();
    let (tokens, updates, seconds) = (sum(|s| s.tokens), sum(|s| s.updates), sum(|s| s.seconds));
    let memory = peak_rss();
    if json {
        let stages: Vec<Value> = stages.iter().map(Stage::json).collect();
        out!(
            "{:#}",
            json!({
                "stages": stages, "tokens": tokens.round() as u64, "updates": updates.round() as u64, "seconds": seconds,
                "tokens_per_second": tokens / seconds, "memory_mb": memory as f64 / f64::from(1 << 20),
                "batch": batch, "threads": threads, "boundaries": settings.data.boundaries.name(),
                "parameters": stepper.lm.layout().parameters(),
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    for (i, stage) in stages.iter().enumerate() {
        stage.print(i, stages.len());
    }
    let (tokens, updates) = (thousands(tokens.round() as u64), thousands(updates.round() as u64));
    out!("total: {tokens} tokens in {updates} updates, about {}, {} of memory", duration(seconds), bytes(memory));
    out!(
        "Time is that of {MEASURED} updates of each stage, measured now on {threads} threads, without validations, samples \
         and checkpoints; memory is what they took. Stories: {}.",
        settings.data.boundaries.name()
    );
    Ok(ExitCode::SUCCESS)
}

/// An error that names every text that is not here (none is fetched for a plan), and the plan as far as it goes without them.
fn missing(settings: &Settings) -> anyhow::Result<()> {
    let specs = settings.texts();
    let errors = specs.iter().filter_map(|spec| prepared::open(spec, settings.train.seed, true, &|| false).err());
    let errors: Vec<String> = errors.map(|error| format!("  {error}")).collect();
    if errors.is_empty() {
        return Ok(());
    }
    let stages = settings.stages();
    for (i, stage) in stages.iter().enumerate() {
        let sum: f64 = stage.sources.iter().map(|source| source.weight).sum();
        let part = |(name, weight): (&str, f64)| format!("{name} {:.0} %", 100.0 * weight / sum);
        let texts = stage.sources.iter().map(|source| part((&source.source, source.weight)));
        let (share, texts) = (100.0 * stage.share, texts.collect::<Vec<_>>().join(", "));
        say!("stage {} of {}: T {}, {share:.0} % of the run: {texts}", i + 1, stages.len(), stage.seq_len);
    }
    let (count, all) = (errors.len(), specs.len());
    if all == 1 && settings.texts().iter().all(|spec| is_files(&spec.source)) {
        bail!("{}", errors[0].trim_start());
    }
    bail!(
        "{count} of the {all} texts of this run are not here to be counted (datasets are fetched by `flashlm train` without \
         --dry-run):\n{}",
        errors.join("\n")
    )
}

/// The time of one update of a stage: the mean of a few.
fn update_seconds(
    cx: &Exec,
    stepper: &mut Stepper,
    settings: &Settings,
    texts: &Curriculum,
    stage: usize,
) -> anyhow::Result<f64> {
    let t = &settings.train;
    let size = (t.batch * t.accumulation, settings.stages()[stage].seq_len);
    let mut start = Instant::now();
    for n in 0..=MEASURED {
        let window = |i: usize| texts.window(stage, n * size.0 as u64 + i as u64);
        let update = stepper.step(cx, size, window, t, t.min_lr.min(t.lr), n + 1);
        ensure!(update.is_finite(), "update {n} of the measurement is not finite: {update:?}");
        if n == 0 {
            start = Instant::now();
        }
    }
    Ok(start.elapsed().as_secs_f64() / MEASURED as f64)
}

/// What a stage would do.
struct Stage {
    seq_len: usize,
    share: f64,
    updates: f64,
    tokens: f64,
    seconds: f64,
    sources: Vec<Source>,
}

struct Source {
    name: String,
    share: f64,
    stories: usize,
    tokens: usize,
    /// Tokens that one pass trains on.
    trained: u64,
    epochs: f64,
}

impl Stage {
    /// What is left of it in a run that stands at `state`.
    fn new(
        i: usize,
        update: f64,
        settings: &Settings,
        plan: &Plan,
        state: &State,
        texts: &Curriculum,
        batch: usize,
    ) -> Stage {
        let stages = settings.stages();
        let about = &stages[i];
        let left = |before: f64, own: f64, passed: f64| (own - (passed - before).max(0.0)).max(0.0);
        let updates = match (plan.updates(i), plan.seconds()) {
            (Some(own), _) => {
                let before: u64 = (0..i).filter_map(|i| plan.updates(i)).sum();
                left(before as f64, own as f64, state.step as f64)
            }
            (None, limit) => {
                let limit = limit.unwrap_or_default();
                let before: f64 = stages[..i].iter().map(|stage| stage.share).sum();
                left(before * limit, about.share * limit, state.elapsed) / update
            }
        };
        let windows = updates * batch as f64;
        let source = |(part, epochs): (&flashlm_train::curriculum::Part, f64)| {
            let text = &texts.texts()[part.text];
            Source {
                name: text.name.clone(),
                share: part.share,
                stories: text.cache.stories(),
                tokens: text.cache.tokens().len(),
                trained: part.windows.trained(),
                epochs,
            }
        };
        Stage {
            seq_len: about.seq_len,
            share: about.share,
            updates,
            tokens: windows * texts.extents()[i].tokens,
            seconds: updates * update,
            sources: texts.passes(i, windows as u64).map(source).collect(),
        }
    }

    fn print(&self, i: usize, of: usize) {
        let (t, share) = (self.seq_len, 100.0 * self.share);
        let (tokens, updates) = (thousands(self.tokens.round() as u64), thousands(self.updates.round() as u64));
        let time = duration(self.seconds);
        out!(
            "stage {} of {of}: T {t}, {share:.1} % of the run: {tokens} tokens in {updates} updates, about {time}",
            i + 1
        );
        for source in &self.sources {
            let Source { name, share, stories, tokens, trained, epochs } = source;
            let (stories, tokens, share) = (thousands(*stories as u64), thousands(*tokens as u64), 100.0 * share);
            let trained = thousands(*trained);
            out!(
                "  {name}: weight {share:.1} %, {stories} stories, {tokens} tokens ({trained} a pass), {epochs:.3} epochs"
            );
        }
    }

    fn json(&self) -> Value {
        let source = |s: &Source| {
            json!({
                "name": s.name, "weight": s.share, "stories": s.stories, "tokens": s.tokens,
                "tokens_per_epoch": s.trained, "epochs": s.epochs,
            })
        };
        json!({
            "seq_len": self.seq_len, "share": self.share, "updates": self.updates.round() as u64,
            "tokens": self.tokens.round() as u64, "seconds": self.seconds,
            "sources": self.sources.iter().map(source).collect::<Vec<_>>(),
        })
    }
}
