//! What the runs of a sweep came to: a row for each, and of each arm the mean and the spread over its seeds.
//!
//! ```text
//! mean = sum(x) / n        spread = sqrt(sum((x - mean)^2) / (n - 1)), the standard deviation of one run
//! ```

use serde::{Deserialize, Serialize};

use crate::units::{counted, thousands};

/// One run, a line of `results.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Name of its folder.
    pub run: String,
    /// Name of its arm.
    pub arm: String,
    /// Its seed.
    pub seed: u64,
    /// `finished`, `early stop` or `diverged`.
    pub outcome: String,
    /// Bits per byte on the validation text; null where the run diverged.
    pub bpb: Option<f64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens trained on per second.
    pub tokens_per_second: f64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Fraction of the stories that it wrote without a contradiction; null for other texts than the built-in grammar's.
    pub consistent: Option<f64>,
}

/// The runs of an arm so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the arm.
    pub arm: String,
    /// Runs that came to an end.
    pub runs: usize,
    /// Runs that diverged.
    pub diverged: usize,
    /// Mean bits per byte; null without a run.
    pub bpb: Option<f64>,
    /// Spread over the seeds; null with fewer than two runs.
    pub spread: Option<f64>,
    /// Mean fraction of consistent stories.
    pub consistent: Option<f64>,
    /// Mean number of tokens trained on.
    pub tokens: Option<f64>,
    /// Mean of tokens per second.
    pub tokens_per_second: Option<f64>,
    /// Parameters of the model.
    pub parameters: Option<u64>,
}

impl Summary {
    fn of(arm: &str, rows: &[Row]) -> Summary {
        let own: Vec<&Row> = rows.iter().filter(|row| row.arm == arm).collect();
        let ended: Vec<&Row> = own.iter().copied().filter(|row| row.bpb.is_some()).collect();
        let all = |value: fn(&Row) -> Option<f64>| ended.iter().filter_map(|row| value(row)).collect::<Vec<_>>();
        let bpb = all(|row| row.bpb);
        Summary {
            arm: arm.to_string(),
            runs: ended.len(),
            diverged: own.len() - ended.len(),
            bpb: mean(&bpb),
            spread: spread(&bpb),
            consistent: mean(&all(|row| row.consistent)),
            tokens: mean(&all(|row| Some(row.tokens as f64))),
            tokens_per_second: mean(&all(|row| Some(row.tokens_per_second))),
            parameters: own.first().map(|row| row.parameters),
        }
    }
}

/// One of each arm, in the order given.
pub fn summaries<'a>(arms: impl IntoIterator<Item = &'a str>, rows: &[Row]) -> Vec<Summary> {
    arms.into_iter().map(|arm| Summary::of(arm, rows)).collect()
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn spread(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The summaries as a table in Markdown.
pub fn table(summaries: &[Summary]) -> String {
    let sense = summaries.iter().any(|summary| summary.consistent.is_some());
    let mut head = vec!["arm", "bits per byte", "spread", "runs", "tokens", "tokens/s", "parameters"];
    head.extend(sense.then_some("stories without a contradiction"));
    let mut out = format!("| {} |\n|---|{}\n", head.join(" | "), "---:|".repeat(head.len() - 1));
    for s in summaries {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| thousands(value.round() as u64));
        let places = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let runs = match s.diverged {
            0 => s.runs.to_string(),
            n => format!("{}, {n} diverged", s.runs),
        };
        let mut cells = vec![
            s.arm.replace('|', "\\|"),
            places(s.bpb),
            places(s.spread),
            runs,
            number(s.tokens),
            number(s.tokens_per_second),
            s.parameters.map_or(String::new(), thousands),
        ];
        cells.extend(sense.then(|| s.consistent.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share))));
        out += &format!("| {} |\n", cells.join(" | "));
    }
    out
}

impl Row {
    /// The run in one line.
    pub fn told(&self) -> String {
        let (run, tokens) = (&self.run, counted(self.tokens, "token"));
        match self.bpb {
            Some(bpb) => format!("{run}: {bpb:.4} bits per byte after {tokens}"),
            None => format!("{run}: diverged, its loss is not a number any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn row(arm: &str, seed: u64, bpb: Option<f64>) -> Row {
        let outcome = if bpb.is_some() { "finished" } else { "diverged" }.to_string();
        let run = format!("{arm}-s{seed}");
        let (tokens, seconds) = (1000 * seed, 10.0);
        let tokens_per_second = tokens as f64 / seconds;
        let arm = arm.to_string();
        Row { run, arm, seed, outcome, bpb, tokens, seconds, tokens_per_second, parameters: 12_345, consistent: None }
    }

    #[test]
    fn a_table_by_hand() {
        let rows = [
            row("a", 1, Some(1.0)),
            row("b|", 1, Some(0.5)),
            row("a", 2, Some(1.2)),
            row("b|", 2, None),
            row("a", 3, Some(1.1)),
        ];
        let all = summaries(["a", "b|", "c"], &rows);
        assert!((all[0].bpb.unwrap() - 1.1).abs() < 1e-12);
        assert_eq!((all[1].bpb, all[2].bpb), (Some(0.5), None));
        assert!((all[0].spread.unwrap() - 0.1).abs() < 1e-12 && all[1].spread.is_none());
        let expected = "| arm | bits per byte | spread | runs | tokens | tokens/s | parameters |\n\
            |---|---:|---:|---:|---:|---:|---:|\n\
            | a | 1.1000 | 0.1000 | 3 | 2,000 | 200 | 12,345 |\n\
            | b\\| | 0.5000 |  | 1, 1 diverged | 1,000 | 100 | 12,345 |\n\
            | c |  |  | 0 |  |  |  |\n";
        assert_eq!(table(&all), expected);
        let mut sense = rows[0].clone();
        sense.consistent = Some(0.875);
        assert!(table(&summaries(["a"], &[sense])).contains(" 12,345 | 87.5 % |\n"));
    }
}
