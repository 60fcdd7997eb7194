//! Which documents of a source the commands of `flashlm data` take.

use flashlm_train::data::filter::{Dropped, Filter};
use flashlm_train::data::source::Source;
use flashlm_train::units::{counted, thousands};
use serde_json::json;

use crate::common::{data_spec, open_source, passed_over};
use crate::report::Report;

/// Which text of a source to take.
#[derive(clap::Args)]
pub(super) struct Select {
    /// Never use the network: datasets must be in the cache (same as HF_HUB_OFFLINE=1)
    #[arg(long)]
    pub offline: bool,
    /// JSON field, or CSV or Parquet column, that holds the text [default: text, or the dataset's]
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// Keep documents whose field or column `score` is at least X (0 = keep all)
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    min_score: f64,
    /// Keep documents of at least N characters
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_chars: usize,
    /// Keep documents of at most N characters (0 = no limit)
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_chars: usize,
    /// Keep documents in which at least this fraction (0 to 1) of the words has at most six letters (0 = keep all)
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    min_simple: f64,
}

impl Select {
    pub fn open_all(&self, given: &[String], seed: u64) -> anyhow::Result<Source> {
        let source = self.open(&data_spec(given)?, seed)?;
        passed_over(&given.join(", "), &source);
        Ok(source)
    }

    pub fn open(&self, spec: &str, seed: u64) -> anyhow::Result<Source> {
        let Select { min_score, min_chars, max_chars, min_simple, .. } = *self;
        let filter = Filter { min_score, min_chars, max_chars, min_simple, ..Filter::default() };
        let source = open_source(spec, seed, self.offline)?.with_filter(filter)?;
        Ok(match &self.column {
            Some(column) => source.with_column(column),
            None => source,
        })
    }
}

/// The row of what a filter dropped.
pub(super) fn report_dropped(report: &mut Report, dropped: &Dropped) {
    let Dropped { score, short, long, hard } = *dropped;
    let text = format!(
        "{} dropped by the filter: {} for their score, {} too short, {} too long, {} with too many long words",
        counted(dropped.total(), "document"),
        thousands(score),
        thousands(short),
        thousands(long),
        thousands(hard)
    );
    report.add("dropped", text, json!({"score": score, "short": short, "long": long, "hard": hard}));
}
