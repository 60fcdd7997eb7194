//! `flashlm eval A B ...`: several models on the same text, as a table and a picture.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use flashlm_train::atomic::write_file;
use flashlm_train::data::source::Source;
use flashlm_train::eval::bpb::UNDERSTATED;
use flashlm_train::eval::source::Progress;
use flashlm_train::table::{Entry, Row, labels, picture};
use flashlm_train::units::{bytes, counted, duration, thousands};
use serde_json::json;

use crate::common::{Status, exec, may_write, out, say};
use crate::terminal::{columns, stdout_width};

/// How figures come about, for all rows.
const RUNTIME: &str = "packed: ternary weights and int8 activations, size as `pack` writes it with its tokenizer; float: \
                       models of other programs, size of their weights";
const CONTEXT: &str = "each story from EOS with a fresh state, whole story as context; float models beyond their context from the \
                       last half of it on";

/// What is asked of the table.
pub struct Wanted<'a> {
    /// Where its picture goes.
    pub svg: Option<&'a Path>,
    /// Whether that may be there already.
    pub force: bool,
    /// Whether it is printed as JSON.
    pub json: bool,
    /// Whether the published protocol is scored, too.
    pub published: bool,
    /// Number of threads.
    pub threads: Option<usize>,
    /// What the text is called.
    pub data: String,
}

/// Scores all of `models`, each under its name.
pub fn run(args: &Wanted, models: &[(String, PathBuf)], source: &Source) -> anyhow::Result<ExitCode> {
    if let Some(path) = args.svg {
        may_write(path, "--svg", args.force)?;
    }
    let start = Instant::now();
    let cx = exec(args.threads)?;
    // All of them first: a name that is wrong is told before an hour of scoring.
    let load = |(name, path): &(String, PathBuf)| Ok(Entry::load(&cx, path, name)?);
    let entries: Vec<Entry> = models.iter().map(load).collect::<anyhow::Result<_>>()?;
    let (isa, threads) = (cx.isa().name(), cx.pool().threads());
    drop(cx);
    let mut rows: Vec<Row> = Vec::new();
    let mut status = Status::new();
    for entry in &entries {
        say!("model {}", entry.name());
        let begun = Instant::now();
        let row = entry.score(exec(args.threads)?, source, args.published, &mut |p| show(&mut status, begun, p));
        status.clear();
        let row = row?;
        if !row.report.bpb.is_finite() {
            let name = entry.name();
            bail!("{name}: the model's output is not a number, since training diverged; use an earlier checkpoint");
        }
        rows.push(row);
    }
    let data = &args.data;
    if let Some(path) = args.svg {
        let last = Path::new(data).file_name().map_or(data.clone(), |name| name.to_string_lossy().into_owned());
        write_file(path, |w| w.write_all(picture(&rows, &last).as_bytes()))?;
    }
    let Some(first) = rows.first() else { return Ok(ExitCode::SUCCESS) };
    if args.json {
        let protocol = if args.published { UNDERSTATED } else { first.report.protocol };
        let object = json!({
            "models": rows, "data": data, "stories": first.report.stories, "bytes": first.report.bytes, "protocol": protocol,
            "context": CONTEXT, "runtime": RUNTIME, "isa": isa, "threads": threads, "seconds": start.elapsed().as_secs_f64(),
        });
        out!("{object}");
        return Ok(ExitCode::SUCCESS);
    }
    let width = stdout_width();
    lines(&rows, width).iter().for_each(|line| out!("{line}"));
    let (stories, all) = (counted(first.report.stories, "document"), thousands(first.report.bytes));
    out!("");
    let text = format!("{data}: {stories}, {all} bytes, every one of them scored");
    let speed = format!("tokens scored per second, {}, {isa}", counted(threads as u64, "thread"));
    let mut notes = vec![("text", text.as_str()), ("context", CONTEXT), ("size", RUNTIME), ("speed", &speed)];
    notes.extend(args.published.then_some(("published", UNDERSTATED)));
    let picture = args.svg.map(|path| path.display().to_string());
    notes.extend(picture.as_deref().map(|path| ("picture", path)));
    columns(notes, width).iter().for_each(|line| out!("{line}"));
    Ok(ExitCode::SUCCESS)
}

/// Columns as wide as what is in them, numbers to the right; where they do not fit, a block of lines for each model.
fn lines(rows: &[Row], width: Option<usize>) -> Vec<String> {
    let published = rows.iter().any(|row| row.understated_bits_per_character.is_some());
    let mut heads =
        vec!["model", "runs", "parameters", "size", "bits/byte", "with EOS", "perplexity", "bytes/token", "tokens/s"];
    if published {
        heads.push("published bits/char");
    }
    let mut table = vec![heads.iter().copied().map(String::from).collect::<Vec<_>>()];
    for (row, label) in rows.iter().zip(labels(rows)) {
        let r = &row.report;
        let mut line = vec![
            label,
            row.runs.into(),
            thousands(row.parameters as u64),
            bytes(row.file_bytes),
            format!("{:.4}", r.bpb),
            format!("{:.4}", r.bpb_with_eos),
            format!("{:.3}", r.perplexity),
            format!("{:.3}", r.bytes_per_token),
            thousands(row.tokens_per_second as u64),
        ];
        line.extend(row.understated_bits_per_character.map(|bits| format!("{bits:.4}")));
        table.push(line);
    }
    let widest = |i: usize| table.iter().map(|line| line[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table[0].len()).map(widest).collect();
    if width.is_some_and(|width| widths.iter().map(|width| width + 2).sum::<usize>() - 2 > width) {
        let all = table[1..].iter().flat_map(|line| heads.iter().copied().zip(line.iter().map(String::as_str)));
        return columns(all, width);
    }
    let line = |line: &Vec<String>| {
        let cell = |(i, (text, width)): (usize, (&String, &usize))| match i {
            0 | 1 => format!("{text:<width$}"),
            _ => format!("{text:>width$}"),
        };
        let cells: Vec<String> = line.iter().zip(&widths).enumerate().map(cell).collect();
        cells.join("  ").trim_end().to_string()
    };
    table.iter().map(line).collect()
}

/// The status line: fraction done, speed, time to go.
pub fn show(status: &mut Status, start: Instant, p: &Progress) -> ControlFlow<()> {
    let seconds = start.elapsed().as_secs_f64();
    status.show(&format!(
        "eval {:.0} %  eta {}  {} tok/s  {} tok  {}",
        100.0 * p.share,
        duration(seconds * (1.0 - p.share) / p.share),
        thousands((p.tokens as f64 / seconds) as u64),
        thousands(p.tokens as u64),
        duration(seconds)
    ));
    ControlFlow::Continue(())
}
