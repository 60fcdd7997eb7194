//! `flashlm bench scaling`: what a training step would take on 1 to 64 threads, from the time that each piece of its work takes on one.
//!
//! One thread plays all of them ([`Exec::replay`]): regions are cut for so many threads, each piece is timed, and goes to the thread
//! that would be free first. The time of a step is that of all regions, of what one thread does between them, and of beginning
//! and ending each region. Rows of a pass are chosen for the number of threads, as a run does it.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use flashlm_kernels::Exec;
use flashlm_kernels::measure::fork_join;
use flashlm_kernels::replay::{Place, Timeline};
use flashlm_model::{ModelConfig, Precision, Shape};
use flashlm_train::config::{Layers, preset_names};
use flashlm_train::run::Steps;
use flashlm_train::units::thousands;
use serde_json::{Value, json};

use crate::common::{self, out, say};

/// Places that are listed for each number of threads.
const PLACES: usize = 8;
/// What the figures leave out.
const NOT_MODELLED: &str =
    "memory bandwidth, caches that threads share or do not share, and clock rates that fall as cores work";

/// Forecast how training scales: the work of one step is measured on one thread and shared out among many
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm bench scaling --preset v4-small\n  flashlm bench scaling --preset v4-large --threads 16 --places"
)]
pub struct Args {
    /// Preset to train [default: each of them]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(preset_names()))]
    preset: Option<String>,
    /// Set one setting, such as train.pass_rows=4096; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Sequences per step
    #[arg(long, default_value = "64", value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Numbers of threads, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4,8,16,32,64", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// Precision of matmuls: f32, bf16, int8 (ternary matrices and logits in int8, the rest in bf16, or in f32 as int8-f32 does), or auto (bf16 where this machine is clearly faster with it)
    #[arg(long, value_name = "P", default_value = "auto", value_parser = common::precision)]
    precision: Precision,
    /// Add the places in the program that leave threads idle for longest
    #[arg(long)]
    places: bool,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
}

/// One step on so many threads. Times are in seconds.
struct Row {
    threads: usize,
    pass_rows: usize,
    /// Of all threads together.
    busy: f64,
    /// With what regions cost to begin and to end.
    wall: f64,
    places: Vec<Place>,
}

impl Row {
    fn new(threads: usize, pass_rows: usize, timeline: Timeline, region: f64) -> Self {
        let Timeline { mut places, after } = timeline;
        let sum = |f: &dyn Fn(&Place) -> f64| places.iter().map(f).sum::<f64>() + after;
        let busy = sum(&|place| place.before + place.busy);
        let wall = sum(&|place| place.before + place.span + place.regions as f64 * region);
        places.sort_by(|a, b| idle(b, threads).total_cmp(&idle(a, threads)));
        Row { threads, pass_rows, busy, wall, places }
    }

    /// Thread time without work, as a fraction of all.
    fn idle(&self) -> f64 {
        1.0 - self.busy / (self.threads as f64 * self.wall)
    }
}

/// Seconds that threads are idle at a place, summed over them.
fn idle(place: &Place, threads: usize) -> f64 {
    (threads as f64 - 1.0) * place.before + threads as f64 * place.span - place.busy
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let real = common::exec(None)?;
    let region = fork_join(&real);
    let (isa, precision) = (real.isa(), args.precision.resolve(real.isa()));
    let names: Vec<&str> =
        preset_names().into_iter().filter(|name| args.preset.as_deref().is_none_or(|p| p == *name)).collect();
    if !args.json {
        out!("{}, {}, batch {}, work measured on one thread", isa.name(), precision.name(), args.batch);
        let (us, threads) = (1e6 * region, real.pool().threads());
        out!("assumed: {us:.1} us to begin and end a region, as here on {threads} threads. Not in it: {NOT_MODELLED}");
    }
    let mut results = Vec::new();
    for name in names {
        let mut layers = Layers::preset(name)?;
        common::set_all(&mut layers, &args.set)?;
        let settings = layers.settings()?;
        let shape = Shape { batch: args.batch as usize, seq_len: settings.train.seq_len };
        let model = ModelConfig { vocab_size: settings.tokenizer.vocab, ..settings.model };
        let row = |threads: usize| {
            say!("{name} on {threads}");
            let cx = Exec::replay(isa, threads);
            let mut steps = Steps::new(&cx, &model, precision, settings.train.clone(), shape)?;
            let pass_rows = steps.stepper.lm.rows();
            // Memory is touched for the first time before it counts.
            steps.step(&cx)?;
            cx.pool().timeline();
            steps.step(&cx)?;
            let timeline = cx.pool().timeline().expect("its threads are played");
            Ok::<_, anyhow::Error>(Row::new(threads, pass_rows, timeline, region))
        };
        let one = row(1)?;
        let others = args.threads.iter().filter(|&&threads| threads > 1).map(|&threads| row(threads as usize));
        let mut rows: Vec<Row> = others.collect::<anyhow::Result<_>>()?;
        let alone = one.wall;
        rows.insert(0, one);
        if args.json {
            results.push(json!({"preset": name, "seq": shape.seq_len, "rows": json_rows(&rows, alone, shape.rows())}));
        } else {
            print(name, &rows, alone, shape, args.places);
        }
    }
    if args.json {
        let result = json!({
            "isa": isa.name(), "precision": precision.name(), "batch": args.batch, "fork_join_us": 1e6 * region,
            "not_modelled": NOT_MODELLED, "presets": results,
        });
        out!("{result}");
    }
    Ok(ExitCode::SUCCESS)
}

fn print(name: &str, rows: &[Row], alone: f64, shape: Shape, places: bool) {
    out!("\n{name}, {} tokens per step", thousands(shape.rows() as u64));
    out!("{:>7} {:>10} {:>10} {:>8} {:>8} {:>10}", "threads", "tokens/s", "efficiency", "idle", "work", "pass rows");
    for row in rows {
        let Row { threads, pass_rows, busy, wall, .. } = row;
        let (speed, efficiency) = (shape.rows() as f64 / wall, alone / (wall * *threads as f64));
        let (idle, work) = (100.0 * row.idle(), 100.0 * busy / alone);
        out!("{threads:>7} {speed:>10.0} {efficiency:>10.2} {idle:>6.1} % {work:>6.0} % {pass_rows:>10}");
    }
    for row in rows.iter().filter(|row| places && row.threads > 1) {
        out!(
            "\n{} threads: {:<40} {:>8} {:>12} {:>12} {:>8}",
            row.threads,
            "place",
            "regions",
            "ms before",
            "ms",
            "idle"
        );
        let all = row.threads as f64 * row.wall;
        for place in row.places.iter().take(PLACES) {
            let at = at(place);
            let (before, span, idle) = (1e3 * place.before, 1e3 * place.span, 100.0 * idle(place, row.threads) / all);
            out!("{:>13}{at:<40} {:>8} {before:>12.2} {span:>12.2} {idle:>6.1} %", "", place.regions);
        }
    }
}

/// The place's line in the sources.
fn at(place: &Place) -> String {
    let file = place.at.file();
    let file = file.rsplit_once("crates/").map_or(file, |(_, file)| file);
    format!("{file}:{}", place.at.line())
}

fn json_rows(rows: &[Row], alone: f64, tokens: usize) -> Vec<Value> {
    let json = |row: &Row| {
        let Row { threads, pass_rows, busy, wall, places } = row;
        let place = |place: &Place| {
            json!({
                "at": at(place), "regions": place.regions, "seconds_before": place.before, "seconds": place.span,
                "busy": place.busy,
            })
        };
        json!({
            "threads": threads, "pass_rows": pass_rows, "tokens_per_second": tokens as f64 / wall,
            "efficiency": alone / (wall * *threads as f64), "idle": row.idle(), "busy": busy,
            "places": places.iter().map(place).collect::<Vec<_>>(),
        })
    };
    rows.iter().map(json).collect()
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;

    #[test]
    fn a_row_adds_up_what_runs_alone_and_what_runs_together() {
        let at = Location::caller();
        let short = Place { at, regions: 1, before: 0.5, busy: 2.0, span: 0.5 };
        let uneven = Place { at, regions: 10, before: 0.0, busy: 4.0, span: 2.0 };
        let row = Row::new(4, 2048, Timeline { places: vec![short, uneven], after: 1.0 }, 0.1);
        // 1.5 s alone, 2.5 s together and eleven regions.
        assert!((row.wall - 5.1).abs() < 1e-9 && (row.busy - 7.5).abs() < 1e-9);
        assert!((row.idle() - (1.0 - 7.5 / 20.4)).abs() < 1e-9);
        assert_eq!(row.places.iter().map(|place| place.regions).collect::<Vec<_>>(), [10, 1], "most idle first");
    }
}
