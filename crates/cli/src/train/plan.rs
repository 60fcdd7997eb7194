//! `flashlm train --dry-run`: what a run would do. Vocabulary and token caches are made, as the run would make them; a few
//! steps are measured and thrown away; the run's folder is not touched.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use flashlm_kernels::cpu::peak_rss;
use flashlm_train::run::{Forecast, Resolved, StageForecast, TextForecast};
use flashlm_train::trainer::Event;
use flashlm_train::units::{bytes, counted, duration, thousands};
use serde_json::{Value, json};

use crate::common::{Status, busy, out};

/// Epochs after which repeated text teaches little (arXiv 2305.16264).
const ENOUGH: f64 = 15.0;

/// Runs the command.
pub fn dry_run(run: Resolved, stop: &AtomicBool, status: &mut Status, json: bool) -> anyhow::Result<ExitCode> {
    let tell = &mut |event: Event| status.tell(&event);
    run.texts_are_here(tell)?;
    let (cx, threads) = (run.exec(), run.threads());
    let prepared = run.prepare(stop, tell);
    status.clear();
    let prepared = prepared?;
    let forecast = prepared.forecast(&cx, &mut |event| status.tell(&event))?;
    let (tokens, steps, seconds) = (forecast.tokens(), forecast.steps(), forecast.seconds());
    let memory = peak_rss();
    let boundaries = prepared.settings().data.boundaries.name();
    if json {
        let stages: Vec<Value> = forecast.stages.iter().map(stage_json).collect();
        out!(
            "{:#}",
            json!({
                "stages": stages, "tokens": tokens.round() as u64, "updates": steps.round() as u64, "seconds": seconds,
                "tokens_per_second": tokens / forecast.training(), "cpu_share": forecast.cpu_share, "memory_mb": memory as f64 / f64::from(1 << 20),
                "batch": forecast.batch, "threads": threads, "boundaries": boundaries,
                "parameters": forecast.parameters,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    for (i, stage) in forecast.stages.iter().enumerate() {
        print(stage, i, forecast.stages.len());
    }
    let (tokens, steps) = (thousands(tokens.round() as u64), thousands(steps.round() as u64));
    out!("total: {tokens} tokens in {steps} steps, about {}, {} of memory", duration(seconds), bytes(memory));
    out!(
        "Time is measured: some passes of each stage on {}, and from that {} for validations, samples and checkpoints; memory \
         is what they took. Boundaries: {boundaries}.",
        counted(threads as u64, "thread"),
        duration(forecast.rest)
    );
    for line in [busy(forecast.cpu_share), repeated(&forecast)].into_iter().flatten() {
        out!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of what a run is about to take.
pub fn expected(forecast: &Forecast) -> String {
    let speed = forecast.tokens() / forecast.training().max(1e-9);
    let mut line = format!(
        "expected: {} tokens/s, {} steps, {} with validations, samples and checkpoints",
        thousands(speed.round() as u64),
        thousands(forecast.steps().round() as u64),
        duration(forecast.seconds())
    );
    if let Some(busy) = busy(forecast.cpu_share) {
        line += &format!(". {busy}");
    }
    line
}

/// A warning where a text is read so often that reading it again teaches next to nothing.
pub fn repeated(forecast: &Forecast) -> Option<String> {
    let mut epochs = BTreeMap::new();
    for text in forecast.stages.iter().flat_map(|stage| &stage.texts) {
        *epochs.entry(text.name.as_str()).or_insert(0.0) += text.epochs;
    }
    let (name, epochs) = epochs.into_iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let minutes = forecast.seconds() / 60.0 * ENOUGH / epochs;
    (epochs > ENOUGH).then(|| {
        format!(
            "{name} is read {epochs:.0} times: after some {ENOUGH} epochs repeated text teaches little, and is learned by heart. More \
             text would help, or a shorter run, such as --minutes {minutes:.1}"
        )
    })
}

fn print(stage: &StageForecast, i: usize, of: usize) {
    let (t, share) = (stage.seq_len, 100.0 * stage.share);
    let (tokens, steps) = (thousands(stage.tokens.round() as u64), thousands(stage.steps.round() as u64));
    let time = duration(stage.seconds);
    out!("stage {} of {of}: T {t}, {share:.1} % of the run: {tokens} tokens in {steps} steps, about {time}", i + 1);
    for text in &stage.texts {
        let TextForecast { name, share, stories, tokens, trained, epochs } = text;
        let (stories, tokens, share) = (counted(*stories as u64, "document"), thousands(*tokens as u64), 100.0 * share);
        let trained = thousands(*trained);
        out!("  {name}: weight {share:.1} %, {stories}, {tokens} tokens ({trained} per epoch), {epochs:.3} epochs");
    }
}

fn stage_json(stage: &StageForecast) -> Value {
    let text = |t: &TextForecast| {
        json!({
            "name": t.name, "weight": t.share, "stories": t.stories, "tokens": t.tokens,
            "tokens_per_epoch": t.trained, "epochs": t.epochs,
        })
    };
    json!({
        "seq_len": stage.seq_len, "batch": stage.batch, "share": stage.share, "updates": stage.steps.round() as u64,
        "tokens": stage.tokens.round() as u64, "seconds": stage.seconds,
        "sources": stage.texts.iter().map(text).collect::<Vec<_>>(),
    })
}
