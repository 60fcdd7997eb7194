//! `flashlm data stats`: what a source holds.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use flashlm_model::Precision;
use flashlm_model::tok::Tokenizer;
use flashlm_train::atomic::write_file;
use flashlm_train::config::Settings;
use flashlm_train::data::near_duplicates::MAX_STORIES as MAX_NEAR;
use flashlm_train::data::profile::Script;
use flashlm_train::data::source::Source;
use flashlm_train::data::stats::{MAX_DISTINCT, Stats, bin};
use flashlm_train::log::histogram::{self, Bin};
use flashlm_train::run::Dial;
use flashlm_train::tokenizer::of_file;
use flashlm_train::units::{bytes, count, counted, duration, thousands};
use serde_json::{Value, json};

use super::select::{Select, report_dropped};
use crate::common::{Status, data_spec, exec, may_write};
use crate::report::Report;

/// Inspect a text before training on it: documents, bytes, scripts, duplicates, lengths, tokens, epochs per hour of training
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flashlm data stats book.txt\n  flashlm data stats notes/ --quick --svg lengths.svg"
)]
pub struct Args {
    /// Text: files, folders or patterns, `-` for standard input, a dataset (see `train`), or synthetic:N
    #[arg(value_name = "SOURCE", required = true)]
    data: Vec<String>,
    #[command(flatten)]
    select: Select,
    /// Tokenizer file to count tokens with [default: a BPE vocabulary of 4,096 tokens trained on the first 4 MB]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Write a histogram of document lengths to this SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(short, long, requires = "svg")]
    force: bool,
    /// Skip the measurement of training speed
    #[arg(long)]
    quick: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Text that the vocabulary of the row `tokens` is made of, in bytes.
const SAMPLE: usize = 4 << 20;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.svg.as_ref().map_or(Ok(()), |svg| may_write(svg, "--svg", args.force))?;
    let source = args.select.open(&data_spec(&args.data)?, 0)?;
    let own = args.tokenizer.is_some();
    let tokenizer = match &args.tokenizer {
        Some(file) => of_file(file)?,
        None => sample_vocabulary(&source)?,
    };
    let (mut status, started) = (Status::new(), Instant::now());
    let stats = Stats::of(&source, Some(&tokenizer), &mut |stories, read, fraction| {
        if stories % 256 == 0 {
            let seconds = started.elapsed().as_secs_f64();
            let speed = bytes((read as f64 / seconds.max(1e-9)) as u64);
            let left = duration(seconds * (1.0 / fraction.max(1e-9) - 1.0));
            status.show(&format!(
                "{:3.0} %  {} documents  {}  {speed}/s  eta {left}",
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
    let notes = [vec![passed_over(&source)], read.oddities.notes()].concat();
    let notes: Vec<String> = notes.into_iter().filter(|note| !note.is_empty()).collect();
    report.add("stories", thousands(read.stories), read.stories);
    report.add("bytes", format!("{} ({})", thousands(read.bytes), bytes(read.bytes)), read.bytes);
    let mean = stats.chars as f64 / read.stories.max(1) as f64;
    let (shortest, longest) = (stats.shortest, stats.longest);
    let text = format!(
        "{} in all, {mean:.1} per document, shortest {}, longest {}",
        thousands(stats.chars),
        thousands(shortest),
        thousands(longest)
    );
    let value = json!({"total": stats.chars, "mean": mean, "shortest": shortest, "longest": longest});
    report.add("characters", text, value);
    report_profile(&mut report, &stats);
    report_tokens(&mut report, &stats, &tokenizer, own);
    if !args.quick {
        report_hour(&mut report, &stats)?;
    }
    let within = if stats.forgot {
        format!(", compared only with the first {}", thousands(MAX_DISTINCT as u64))
    } else {
        String::new()
    };
    let doubled = format!("{} ({:.3} %){within}", thousands(stats.duplicates), share(stats.duplicates) * 100.0);
    report.add("duplicates", doubled, json!({"stories": stats.duplicates, "complete": !stats.forgot}));
    let within = match stats.near_forgot {
        true => format!(", compared only with the first {}", thousands(MAX_NEAR as u64)),
        false => String::new(),
    };
    let text = format!(
        "{} ({:.3} %) share four fifths of their five-word runs with an earlier document{within}",
        thousands(stats.near),
        share(stats.near) * 100.0
    );
    report.add("near duplicates", text, json!({"stories": stats.near, "complete": !stats.near_forgot}));
    // Mended before the filter, which may drop some of them.
    let all = read.stories + read.dropped.total();
    let mended = read.mended as f64 / all.max(1) as f64;
    let text = format!(
        "{} repaired ({:.3} %), {}",
        counted(read.mended, "document"),
        mended * 100.0,
        counted(read.repaired, "sequence")
    );
    report.add("mojibake", text, json!({"stories": read.mended, "share": mended, "sequences": read.repaired}));
    if read.dropped.total() > 0 {
        report_dropped(&mut report, &read.dropped);
    }
    let bins: Vec<Bin> = stats.lengths.iter().enumerate().map(|(i, n)| Bin { from: bin(i), count: *n }).collect();
    let bins = &bins[bins.iter().position(|bin| bin.count > 0).unwrap_or(0)..];
    if args.json {
        let bins = bins.iter().map(|bin| json!({"from": bin.from, "stories": bin.count}));
        report.add("lengths", "", bins.collect::<Value>());
    }
    if let Some(path) = &args.svg {
        let title = format!("Lengths of {} of {}", counted(read.stories, "document"), source.name());
        let svg = histogram::draw(&title, "Characters per document", bins);
        write_file(path, |w| w.write_all(svg.as_bytes()))?;
        report.add("histogram", path.display(), path.display().to_string());
    }
    if !notes.is_empty() {
        report.add("notes", notes.join("\n"), notes);
    }
    report.print(args.json);
    Ok(ExitCode::SUCCESS)
}

/// What a run would train by itself, near enough: a BPE vocabulary of the default size.
fn sample_vocabulary(source: &Source) -> anyhow::Result<Tokenizer> {
    let mut text: Vec<String> = Vec::new();
    let mut bytes = 0;
    source.stories(&mut |story| {
        let end = story.floor_char_boundary((SAMPLE - bytes).min(story.len()));
        text.push(story[..end].to_string());
        bytes += end;
        if bytes + 4 < SAMPLE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if text.is_empty() {
        bail!("{}: no documents: the data holds only blank text, or the filter drops all of it", source.name());
    }
    Ok(Tokenizer::train_bpe(text.iter().map(String::as_str), Settings::default().tokenizer.vocab)?)
}

/// The rows of scripts, lines, separators and control characters.
fn report_profile(report: &mut Report, stats: &Stats) {
    let profile = &stats.profile;
    let shares = profile.shares();
    let shown = shares.iter().filter(|script| script.share >= 0.0005);
    let text: Vec<String> = shown.map(|Script { name, share }| format!("{name} {:.1} %", 100.0 * share)).collect();
    let value: serde_json::Map<String, Value> =
        shares.iter().map(|script| (script.name.to_string(), json!(script.share))).collect();
    report.add("scripts", if text.is_empty() { "no letters".into() } else { text.join(", ") }, value);
    let text = format!(
        "{} in {}, the longest of {} characters",
        thousands(profile.lines),
        counted(profile.paragraphs, "paragraph"),
        thousands(profile.longest_line)
    );
    let value = json!({"total": profile.lines, "paragraphs": profile.paragraphs, "longest": profile.longest_line});
    report.add("lines", text, value);
    let found: Vec<String> =
        profile.separators.iter().map(|(line, n)| format!("{} lines {:?}", thousands(*n), line)).collect();
    if !found.is_empty() {
        let text = format!("{}: if documents end there, replace these lines by <|endoftext|>", found.join(", "));
        report.add("separators", text, json!(profile.separators));
    }
    if profile.controls + profile.replaced > 0 {
        let text = format!(
            "{} control characters, {} U+FFFD where a byte was lost in decoding",
            thousands(profile.controls),
            thousands(profile.replaced)
        );
        report.add("odd characters", text, json!({"controls": profile.controls, "replaced": profile.replaced}));
    }
}

fn report_tokens(report: &mut Report, stats: &Stats, tokenizer: &Tokenizer, own: bool) {
    let read = &stats.read;
    let per_token = read.bytes as f64 / stats.tokens.max(1) as f64;
    // EOS is never unknown, so it says nothing about coverage.
    let coverage = 1.0 - stats.unk as f64 / (stats.tokens - read.stories).max(1) as f64;
    let mut text = format!(
        "{} (EOS included) of {}{} with {} tokens, {per_token:.3} bytes per token",
        thousands(stats.tokens),
        if own { "" } else { "a vocabulary trained for this measurement: " },
        tokenizer.kind(),
        thousands(tokenizer.vocab_size() as u64)
    );
    if tokenizer.unk().is_some() {
        text += &format!(", {} UNK (coverage {:.3} %)", thousands(stats.unk), coverage * 100.0);
    }
    let value = json!({"total": stats.tokens, "bytes_per_token": per_token, "unk": stats.unk, "coverage": coverage});
    report.add("tokens", text, value);
}

/// What an hour of training comes to, with the model that `train` would choose.
fn report_hour(report: &mut Report, stats: &Stats) -> anyhow::Result<()> {
    let cx = exec(None)?;
    let dial = Dial { minutes: Some(60.0), bytes: Some(stats.read.bytes), ..Dial::default() };
    let chosen = dial.choose(&cx, Precision::Auto.resolve(cx.isa()))?;
    let epochs = 3600.0 * chosen.speed / stats.tokens.max(1) as f64;
    let name = chosen.layers.settings()?.name;
    let speed = thousands(chosen.speed as u64);
    let text = format!("{epochs:.1} epochs of this text: {name} trains {speed} tokens per second here");
    report.add("an hour", text, json!({"epochs": epochs, "tokens_per_second": chosen.speed, "preset": name}));
    Ok(())
}

fn passed_over(source: &Source) -> String {
    match source.passed_over() {
        passed if passed.is_empty() => passed,
        passed => format!("skipped: {passed}"),
    }
}
