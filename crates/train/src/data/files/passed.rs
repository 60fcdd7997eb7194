//! What was skipped, and said to have been.

use std::collections::BTreeMap;

/// Files of a folder that were skipped.
#[derive(Clone, Debug, Default)]
pub(in crate::data) struct Passed {
    pub hidden: u64,
    pub empty: u64,
    /// Of these endings.
    pub others: BTreeMap<String, u64>,
    /// Of the kind that had fewer bytes, and whether that is records.
    pub fewer: Option<(u64, bool)>,
    /// That are the validation text's.
    pub validation: u64,
    /// Of other splits than `train`, beside that.
    pub splits: u64,
    /// That would be read a second time.
    pub again: u64,
    /// Links that lead nowhere.
    pub loose: u64,
}

impl Passed {
    /// In words; empty where nothing was skipped that anybody would miss.
    pub fn words(&self) -> String {
        let files = |n: u64| if n == 1 { "1 file".to_string() } else { format!("{n} files") };
        let mut words = Vec::new();
        if self.validation > 0 {
            words.push(format!("{} of the validation text", files(self.validation)));
        }
        if self.splits > 0 {
            words.push(format!("{} of other splits than train", files(self.splits)));
        }
        if self.again > 0 {
            words.push(format!("{} named twice", files(self.again)));
        }
        if self.loose > 0 {
            words.push(format!(
                "{} to nothing",
                if self.loose == 1 { "1 link".into() } else { format!("{} links", self.loose) }
            ));
        }
        if self.empty > 0 {
            words.push(format!("{} of 0 bytes", files(self.empty)));
        }
        if self.hidden > 0 {
            words.push(format!("{} with hidden names", files(self.hidden)));
        }
        match self.fewer {
            Some((n, true)) => {
                words.push(format!("{} of JSON or tables, since there are more bytes of documents", files(n)))
            }
            Some((n, false)) => words.push(format!("{} of documents, since there are more bytes of records", files(n))),
            None => {}
        }
        if !self.others.is_empty() {
            let mut others: Vec<_> = self.others.iter().collect();
            others.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            let named: Vec<String> = others.iter().take(5).map(|(ending, n)| format!("{ending} {n}")).collect();
            let more = if others.len() > 5 { ", ..." } else { "" };
            words.push(format!("{} of other kinds ({}{more})", files(self.others.values().sum()), named.join(", ")));
        }
        words.join(", ")
    }
}
