//! Counts for Prometheus, as text of its format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many values there were up to each of some bounds.
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    all: u64,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        Histogram { bounds, counts: vec![0; bounds.len()], all: 0, sum: 0.0 }
    }

    fn add(&mut self, value: f64, times: u64) {
        let first = self.bounds.iter().position(|&bound| value <= bound).unwrap_or(self.bounds.len());
        self.counts[first..].iter_mut().for_each(|count| *count += times);
        self.all += times;
        self.sum += value * times as f64;
    }

    fn text(&self, text: &mut String, name: &str, help: &str) {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, n) in self.bounds.iter().zip(&self.counts) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {n}");
        }
        let (n, sum) = (self.all, self.sum);
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {n}\n{name}_sum {sum}\n{name}_count {n}");
    }
}

macro_rules! counts {
    ($($name:ident $kind:literal $help:literal;)*) => {
        /// Everything that is counted.
        pub struct Metrics {
            $(pub $name: AtomicU64,)*
            requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
            first_token: Mutex<Histogram>,
            cancelled: Mutex<Histogram>,
        }

        impl Metrics {
            pub fn new() -> Metrics {
                Metrics {
                    $($name: AtomicU64::new(0),)*
                    requests: Mutex::default(),
                    first_token: Histogram::new(&[0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0]).into(),
                    cancelled: Histogram::new(&[0.0, 1.0, 2.0, 5.0, 10.0]).into(),
                }
            }

            fn counts(&self, text: &mut String) {
                $(
                    let (name, value) = (stringify!($name), self.$name.load(Relaxed));
                    let _ = writeln!(text, "# HELP flashlm_{name} {}\n# TYPE flashlm_{name} {}\nflashlm_{name} {value}", $help, $kind);
                )*
            }
        }
    };
}

counts! {
    prompt_tokens_total "counter" "Tokens of prompts that were read.";
    generated_tokens_total "counter" "Tokens that were generated.";
    cancelled_total "counter" "Texts given up because their client went away or did not read.";
    ticks_total "counter" "Turns of the engine.";
    prefix_hits_total "counter" "Prompts of which a beginning was known.";
    prefix_misses_total "counter" "Prompts that were read from the start.";
    prefix_tokens_total "counter" "Tokens of prompts that need not be read again.";
    prefix_bytes "gauge" "Memory of the states of prompts.";
    streams "gauge" "Texts being generated.";
    reading "gauge" "Prompts being read.";
    waiting "gauge" "Prompts in the queue.";
}

impl Metrics {
    pub fn request(&self, route: &'static str, code: u16) {
        *open(&self.requests).entry((route, code)).or_default() += 1;
    }

    /// Seconds from a request to its first token.
    pub fn first_token(&self, seconds: f64) {
        open(&self.first_token).add(seconds, 1);
    }

    /// Texts that were given up, and turns since their client was seen to be gone; none where it is there and does not read.
    pub fn cancelled(&self, texts: usize, turns: Option<u64>) {
        self.cancelled_total.fetch_add(texts as u64, Relaxed);
        if let Some(turns) = turns {
            open(&self.cancelled).add(turns as f64, texts as u64);
        }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        self.counts(&mut text);
        let name = "flashlm_requests_total";
        let _ = writeln!(text, "# HELP {name} Requests by route and status.\n# TYPE {name} counter");
        for ((route, code), n) in &*open(&self.requests) {
            let _ = writeln!(text, "{name}{{route=\"{route}\",code=\"{code}\"}} {n}");
        }
        let (name, help) = ("flashlm_first_token_seconds", "From a request to its first token.");
        open(&self.first_token).text(&mut text, name, help);
        let help = "Turns of the engine from where a client was seen to be gone to the end of its text.";
        open(&self.cancelled).text(&mut text, "flashlm_cancelled_turns", help);
        text
    }
}

fn open<T>(counts: &Mutex<T>) -> MutexGuard<'_, T> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_of_clients_that_are_gone_alone() {
        let metrics = Metrics::new();
        metrics.cancelled(3, Some(1));
        metrics.cancelled(1, None);
        let text = metrics.text();
        for line in [
            "flashlm_cancelled_total 4",
            "flashlm_cancelled_turns_bucket{le=\"0\"} 0",
            "flashlm_cancelled_turns_bucket{le=\"1\"} 3",
            "flashlm_cancelled_turns_sum 3",
            "flashlm_cancelled_turns_count 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
