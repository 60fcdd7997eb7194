//! `flashlm bench decode`: tokens per second of the packed runtime, on a packed model or on a preset with random weights.
//!
//! Greedy decoding from the prompt on, a token of every stream at a time; the figure is the median of the windows. Speed
//! does not depend on what the weights say.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use flashlm_kernels::cpu::peak_rss;
use flashlm_kernels::ops::INT8_ROWS;
use flashlm_kernels::profile::profile;
use flashlm_kernels::{Exec, Token};
use flashlm_model::pack::{self, pack};
use flashlm_model::params::Layout;
use flashlm_model::rng::Rng;
use flashlm_model::sample::{SampleError, Settings};
use flashlm_model::tok::Tokenizer;
use flashlm_model::{Engine, Generation, ModelConfig, PackedModel};
use flashlm_train::config::Layers;
use flashlm_train::load::load_packed;
use flashlm_train::units::counted;

use super::measure::{median, rate, seconds, windows};
use crate::common::{exec, out, say};

/// Windows of the median.
const WINDOWS: usize = 5;

/// Measure the packed runtime: tokens per second of decode and prefill, time to the first token, memory
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm bench decode --preset v4-small\n  flashlm bench decode checkpoints --streams 64 --threads 2"
)]
pub struct Args {
    /// Model: a packed model or a run [default: --preset with random weights]
    #[arg(conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// Preset to measure
    #[arg(long, default_value = "v4-small")]
    preset: String,
    /// Sequences decoded together
    #[arg(long, default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    streams: u32,
    /// Tokens in the prompt
    #[arg(long, default_value = "512", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt: u32,
    /// Seconds of measurement per figure
    #[arg(long, default_value = "5", value_parser = seconds)]
    seconds: f64,
    /// Number of threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Add a table of the decode time spent in each op
    #[arg(long)]
    ops: bool,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let cx = exec(Some(args.threads))?;
    let (isa, streams) = (cx.isa().name(), args.streams as usize);
    let (model, what) = match &args.model {
        Some(path) => (load_packed(&cx, path)?, path.display().to_string()),
        None => (random_model(&cx, &args.preset)?, args.preset.clone()),
    };
    let model = Arc::new(model);
    let v = model.config().vocab_size;
    say!(
        "{what}: {} bytes, {}, {isa}, {}",
        model.file_bytes(),
        counted(streams as u64, "sequence"),
        counted(args.threads as u64, "thread")
    );
    let mut rng = Rng::new(7);
    let prompt: Vec<Token> = (0..args.prompt).map(|_| rng.below(v as u64) as Token).collect();
    let rows = INT8_ROWS.min((args.prompt as usize).max(streams.div_ceil(args.threads)));
    let mut engine = Engine::new(model.clone(), cx, rows);

    let mut state = model.new_state();
    let prefill = windows(args.seconds, WINDOWS, || {
        state.reset();
        engine.prefill(&mut state, &prompt);
    });
    let first = windows(args.seconds / 5.0, WINDOWS, || {
        state.reset();
        engine.prefill(&mut state, &prompt[..1]);
    });
    let mut generations = generations(&model, &prompt, streams)?;
    // Reads the prompt.
    engine.advance(&mut generations)?;
    let mut failure = None;
    let mut step = || failure = failure.take().or(engine.advance(&mut generations).err());
    let steps = windows(args.seconds, WINDOWS, &mut step);
    let (wall, entries) = if args.ops {
        let calls = (0.5 / median(&steps)) as usize + 1;
        let start = Instant::now();
        let ((), entries) = profile(|| (0..calls).for_each(|_| step()));
        (start.elapsed().as_secs_f64(), entries)
    } else {
        (0.0, Vec::new())
    };

    if let Some(error) = failure {
        return Err(error.into());
    }

    let tokens_per_second = streams as f64 / median(&steps);
    let prefill_tokens_per_second = prompt.len() as f64 / median(&prefill);
    let first_token_us = 1e6 * median(&first);
    let peak_rss_mb = peak_rss() as f64 / f64::from(1 << 20);
    if args.json {
        let listed: Vec<f64> = steps.iter().map(|s| streams as f64 / s).collect();
        let result = serde_json::json!({
            "model": what, "threads": args.threads, "isa": isa, "streams": streams, "prompt": prompt.len(),
            "tokens_per_second": tokens_per_second, "windows": listed,
            "prefill_tokens_per_second": prefill_tokens_per_second, "first_token_us": first_token_us,
            "peak_rss_mb": peak_rss_mb, "file_bytes": model.file_bytes(), "memory_bytes": model.memory(),
        });
        out!("{result}");
        return Ok(ExitCode::SUCCESS);
    }
    out!("tokens/s          {tokens_per_second:>10.0}  all sequences together");
    out!("prefill tokens/s  {prefill_tokens_per_second:>10.0}  prompt of {} tokens", prompt.len());
    out!("first token us    {first_token_us:>10.1}  with a prompt of one token");
    out!("peak MB           {peak_rss_mb:>10.1}  resident");
    out!("file bytes        {:>10}", model.file_bytes());
    if args.ops {
        out!("\n{:<20} {:>13} {:>9} {:>16}", "op", "size", "share", "rate per thread");
        for e in &entries {
            let (rate, unit) = rate(e.work, e.seconds);
            let share = 100.0 * e.seconds / (wall * args.threads as f64);
            out!("{:<20} {:>13} {share:>7.1} % {rate:>8.1} {unit}", e.name, format!("{} x {}", e.size.0, e.size.1));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Texts that are written greedily and never end.
fn generations(model: &Arc<PackedModel>, prompt: &[Token], count: usize) -> Result<Vec<Generation>, SampleError> {
    let eos = (model.tokenizer().eos(), -100.0);
    let greedy = Settings { temperature: 0.0, logit_bias: vec![eos], ..Settings::default() };
    let text = String::from_utf8_lossy(&model.tokenizer().decode(prompt)).into_owned();
    let generation = |_| {
        let mut generation = Generation::new(model, greedy.clone(), usize::MAX, &[])?;
        generation.push(&text);
        Ok(generation)
    };
    (0..count).map(generation).collect()
}

/// A preset's model as it starts its training.
fn random_model(cx: &Exec, preset: &str) -> anyhow::Result<PackedModel> {
    let settings = Layers::preset(preset)?.settings()?;
    let tokenizer = Tokenizer::made_up(&settings.tokenizer.kind, settings.tokenizer.vocab)?;
    let model = settings.model.clone();
    let config = ModelConfig { vocab_size: tokenizer.vocab_size(), eos: tokenizer.eos().into(), ..model };
    config.validate()?;
    let params = Layout::of(&config).init::<f32>(1);
    let bytes = pack(cx, &config, &params, &tokenizer, pack::Options::default());
    Ok(PackedModel::from_bytes(bytes, preset)?)
}
