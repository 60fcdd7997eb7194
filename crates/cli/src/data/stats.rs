//! `flashlm data stats`: what a source holds.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use flashlm_train::atomic::write_file;
use flashlm_train::data::stats::{MAX_DISTINCT, Stats, bin};
use flashlm_train::data::vocab::of_file;
use flashlm_train::log::console::{bytes, count, duration, thousands};
use flashlm_train::log::histogram;
use serde_json::{Value, json};

use super::{Select, report_dropped};
use crate::common::{Status, may_write};
use crate::report::Report;

/// Count stories, bytes, tokens, doubled stories and lengths
#[derive(clap::Args)]
pub struct Args {
    /// Files, folders or patterns, `-` for standard input, a dataset (see `train`), or synthetic:N
    #[arg(value_name = "SOURCE", required = true)]
    data: Vec<String>,
    #[command(flatten)]
    select: Select,
    /// Also count the tokens of this tokenizer file
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Draw the histogram of lengths to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(short, long, requires = "svg")]
    force: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.svg.as_ref().map_or(Ok(()), |svg| may_write(svg, "--svg", args.force))?;
    let source = args.select.open_all(&args.data, 0)?;
    let tokenizer = args.tokenizer.as_deref().map(of_file).transpose()?;
    let (mut status, started) = (Status::new(), Instant::now());
    let stats = Stats::of(&source, tokenizer.as_ref(), &mut |stories, read, fraction| {
        if stories % 256 == 0 {
            let seconds = started.elapsed().as_secs_f64();
            let speed = bytes((read as f64 / seconds.max(1e-9)) as u64);
            let left = duration(seconds * (1.0 / fraction.max(1e-9) - 1.0));
            status.show(&format!(
                "{:3.0} %  {} stories  {}  {speed}/s  eta {left}",
                fraction * 100.0,
                count(stories),
                bytes(read)
            ));
        }
        ControlFlow::Continue(())
    })?;
    status.clear();
    let read = &stats.read;
    let share = |n: u64| n as f64 / (read.stories.max(1)) as f64;
    let mut report = Report::default();
    report.add("stories", thousands(read.stories), read.stories);
    report.add("bytes", format!("{} ({})", thousands(read.bytes), bytes(read.bytes)), read.bytes);
    let mean = stats.chars as f64 / read.stories.max(1) as f64;
    let (shortest, longest) = stats.range;
    let text = format!(
        "{} in all, {mean:.1} a story, shortest {}, longest {}",
        thousands(stats.chars),
        thousands(shortest),
        thousands(longest)
    );
    let value = json!({"total": stats.chars, "mean": mean, "shortest": shortest, "longest": longest});
    report.add("characters", text, value);
    if let Some(tokenizer) = &tokenizer {
        let per_token = read.bytes as f64 / stats.tokens.max(1) as f64;
        // EOS is never unknown, so it says nothing about coverage.
        let coverage = 1.0 - stats.unk as f64 / (stats.tokens - read.stories).max(1) as f64;
        let text = format!(
            "{} of {} (EOS included), {per_token:.3} bytes a token, {} UNK (coverage {:.3} %)",
            thousands(stats.tokens),
            tokenizer.kind(),
            thousands(stats.unk),
            coverage * 100.0
        );
        let value =
            json!({"total": stats.tokens, "bytes_per_token": per_token, "unk": stats.unk, "coverage": coverage});
        report.add("tokens", text, value);
    }
    let within = if stats.forgot {
        format!(", compared with the first {} alone", thousands(MAX_DISTINCT as u64))
    } else {
        String::new()
    };
    let doubled = format!("{} ({:.3} %){within}", thousands(stats.duplicates), share(stats.duplicates) * 100.0);
    report.add("duplicates", doubled, json!({"stories": stats.duplicates, "complete": !stats.forgot}));
    // Mended before the filter, which may drop some of them.
    let all = read.stories + read.dropped.total();
    let mended = read.mended as f64 / all.max(1) as f64;
    let text =
        format!("{} stories repaired ({:.3} %), {} sequences", thousands(read.mended), mended * 100.0, read.repaired);
    report.add("mojibake", text, json!({"stories": read.mended, "share": mended, "sequences": read.repaired}));
    if read.dropped.total() > 0 {
        report_dropped(&mut report, &read.dropped);
    }
    let bins: Vec<(u64, u64)> = stats.lengths.iter().enumerate().map(|(i, n)| (bin(i), *n)).collect();
    let bins = &bins[bins.iter().position(|bin| bin.1 > 0).unwrap_or(0)..];
    if args.json {
        let bins = bins.iter().map(|(from, stories)| json!({"from": from, "stories": stories}));
        report.add("lengths", "", bins.collect::<Value>());
    }
    if let Some(path) = &args.svg {
        let title = format!("Lengths of {} stories of {}", thousands(read.stories), source.name());
        let svg = histogram::draw(&title, "Characters of a story", bins);
        write_file(path, |w| w.write_all(svg.as_bytes()))?;
        report.add("histogram", path.display(), path.display().to_string());
    }
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}
