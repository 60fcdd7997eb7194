//! Counts for Prometheus, as text of its format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0];

macro_rules! counts {
    ($($name:ident $kind:literal $help:literal;)*) => {
        /// Everything that is counted.
        #[derive(Default)]
        pub struct Metrics {
            $(pub $name: AtomicU64,)*
            requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
            first_token: Mutex<([u64; BOUNDS.len()], u64, f64)>,
        }

        impl Metrics {
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
    cancelled_total "counter" "Texts given up because their client went away.";
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
        *self.requests.lock().unwrap_or_else(|e| e.into_inner()).entry((route, code)).or_default() += 1;
    }

    pub fn first_token(&self, seconds: f64) {
        let mut all = self.first_token.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(at) = BOUNDS.iter().position(|&bound| seconds <= bound) {
            all.0[at] += 1;
        }
        all.1 += 1;
        all.2 += seconds;
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        self.counts(&mut text);
        let name = "flashlm_requests_total";
        let _ = writeln!(text, "# HELP {name} Requests by route and status.\n# TYPE {name} counter");
        for ((route, code), n) in &*self.requests.lock().unwrap_or_else(|e| e.into_inner()) {
            let _ = writeln!(text, "{name}{{route=\"{route}\",code=\"{code}\"}} {n}");
        }
        let name = "flashlm_first_token_seconds";
        let _ = writeln!(text, "# HELP {name} From a request to its first token.\n# TYPE {name} histogram");
        let all = self.first_token.lock().unwrap_or_else(|e| e.into_inner());
        let mut sum = 0;
        for (bound, n) in BOUNDS.iter().zip(all.0) {
            sum += n;
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {n}\n{name}_sum {}\n{name}_count {n}", all.2, n = all.1);
        text
    }
}
