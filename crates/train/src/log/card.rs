//! The model card: `MODEL_CARD.md` of a run, Markdown with the YAML front matter model hubs read, beside `curve.svg`.
//!
//! A pure function of [`Card`]. Text from outside goes escaped into the page: names as inline text, settings and samples
//! into fences longer than any fence within. The license is for the owner to choose, so none is named.

use flashlm_model::Precision;
use flashlm_model::params::{Group, Layout};

use super::SampleRow;
use crate::units::{count, duration, thousands};

/// Fraction of the parameters that are ternary.
pub fn ternary_share(layout: &Layout) -> f64 {
    let matrices = layout.specs().iter().filter(|s| s.group == Group::Matrix);
    matrices.map(|s| s.range.len()).sum::<usize>() as f64 / layout.parameters().max(1) as f64
}

/// The final numbers of the model on its validation set.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Nats per token.
    pub loss: f64,
    /// Bits per byte, without the ends of documents.
    pub bpb: f64,
    /// Bits per byte, with the ends of documents.
    pub bpb_with_eos: f64,
}

/// What a card says of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Name of the model.
    pub name: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Part of the parameters that is ternary, 0 to 1.
    pub ternary_share: f64,
    /// What it was trained on, in words.
    pub dataset: String,
    /// Kind of tokenizer.
    pub tokenizer: String,
    /// Size of its vocabulary.
    pub vocab: usize,
    /// Tokens seen in training.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// The machine, in words.
    pub machine: String,
    /// What matmuls were computed in.
    pub precision: Precision,
    /// The resolved settings, as TOML.
    pub settings: String,
    /// The step of the weights that are scored and used.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The final scores, if there was a validation set.
    pub scores: Option<Scores>,
    /// Bits per byte no model can go below, where the data has a known bound.
    pub entropy_bound: Option<f64>,
    /// Of stories that it wrote, how many have no contradiction, and how many have which, in words.
    pub consistency: Option<(String, String)>,
    /// Texts the model wrote.
    pub samples: Vec<SampleRow>,
}

impl Card {
    /// The whole page.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "---\n\
             # license: for the owner of the model to choose\n\
             library_name: flashlm\n\
             pipeline_tag: text-generation\n\
             tags:\n\
             - flashlm\n\
             - ternary\n\
             ---\n\n",
        );
        out += &format!("# {}\n\n", inline(&self.name));
        out += &format!(
            "A language model of {} parameters, {:.1} % of them ternary (-1, 0 or +1), trained on a CPU with \
             FlashLM.\n\n",
            count(self.parameters),
            100.0 * self.ternary_share,
        );
        out += &table(
            ["Training", ""],
            &[
                ("Parameters", thousands(self.parameters)),
                ("Dataset", inline(&self.dataset)),
                ("Tokenizer", format!("{}, {} tokens", inline(&self.tokenizer), thousands(self.vocab as u64))),
                ("Tokens seen", thousands(self.tokens)),
                ("Time", duration(self.seconds)),
                ("Machine", inline(&self.machine)),
                ("Weights", self.weights()),
            ],
        );
        out += &self.results();
        out += "![Training and validation curves](curve.svg)\n\n";
        out += "## Use\n\nWith this folder as `RUN`:\n\n";
        // Validation ran in the precision of training.
        let eval = match self.precision {
            Precision::Auto | Precision::F32 => "flashlm eval RUN --data FILE".to_owned(),
            other => format!("flashlm eval RUN --precision {} --data FILE", other.name()),
        };
        out += &fenced("sh", &format!("flashlm generate RUN -p \"Once upon a time\"\n{eval}"));
        if !self.samples.is_empty() {
            out += "## Samples\n\n";
            for sample in &self.samples {
                out += &match inline(&sample.prompt) {
                    prompt if prompt.is_empty() => "Without a prompt:\n\n".to_owned(),
                    prompt => format!("Prompt: {prompt}\n\n"),
                };
                out += &fenced("text", &format!("{}{}", sample.prompt, sample.text));
            }
        }
        out += "## Settings\n\n";
        out += &fenced("toml", &self.settings);
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }

    fn weights(&self) -> String {
        let (step, steps) = (thousands(self.step), thousands(self.steps));
        if step == steps { format!("step {steps}") } else { format!("step {step} of {steps}, the best in validation") }
    }

    fn results(&self) -> String {
        let mut rows = Vec::new();
        if let Some(scores) = &self.scores {
            rows.push(("Bits per byte", format!("{:.4}", scores.bpb)));
            rows.push(("Bits per byte, ends of documents included", format!("{:.4}", scores.bpb_with_eos)));
            rows.push(("Loss, nats per token", format!("{:.4}", scores.loss)));
        }
        if let Some(bound) = self.entropy_bound {
            rows.push(("Entropy bound of the data, bits per byte", format!("{bound:.4}")));
        }
        let mut out = String::new();
        if !rows.is_empty() {
            out += &table(["Validation", ""], &rows);
            out += "Every byte of the validation text is scored, and each document starts from an empty context. Bits per \
                    byte can be compared between tokenizers, the loss per token cannot.\n\n";
        }
        if let Some((consistent, kinds)) = &self.consistency {
            let kinds = if kinds.is_empty() { String::new() } else { format!(" Stories with one: {kinds}.") };
            out += &format!("Written without a prompt, at temperature 1: {consistent}.{kinds}\n\n");
        }
        out
    }
}

fn table(head: [&str; 2], rows: &[(&str, String)]) -> String {
    let mut out = format!("| {} | {} |\n|---|---|\n", head[0], head[1]);
    for (name, value) in rows {
        out += &format!("| {name} | {value} |\n");
    }
    out + "\n"
}

/// Text as it is, on one line, in a heading or a table.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '&' | '~' | '!' | '$' => {
                out.extend(['\\', c]);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.trim().to_owned()
}

/// A code block around text that may itself hold fences; of the control characters only line ends and tabs stay.
fn fenced(language: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let text = text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}");
    format!("{fence}{language}\n{}\n{fence}\n\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        Card {
            name: "tiny".into(),
            parameters: 4_312_000,
            ternary_share: 0.914,
            dataset: "TinyStories".into(),
            tokenizer: "bpe".into(),
            vocab: 4096,
            tokens: 10_600_000,
            seconds: 7200.0,
            machine: "2 cores, AVX-512".into(),
            precision: Precision::F32,
            settings: "[model]\nwidth = 192\n".into(),
            step: 4800,
            steps: 5200,
            scores: Some(Scores { loss: 2.1, bpb: 0.74, bpb_with_eos: 0.7412 }),
            entropy_bound: None,
            consistency: None,
            samples: vec![SampleRow { step: 1, prompt: "Once".into(), text: " upon a time.".into() }],
        }
    }

    #[test]
    fn the_whole_page() {
        let expected = r#"---
# license: for the owner of the model to choose
library_name: flashlm
pipeline_tag: text-generation
tags:
- flashlm
- ternary
---

# tiny

A language model of 4.3M parameters, 91.4 % of them ternary (-1, 0 or +1), trained on a CPU with FlashLM.

| Training |  |
|---|---|
| Parameters | 4,312,000 |
| Dataset | TinyStories |
| Tokenizer | bpe, 4,096 tokens |
| Tokens seen | 10,600,000 |
| Time | 2h00m |
| Machine | 2 cores, AVX-512 |
| Weights | step 4,800 of 5,200, the best in validation |

| Validation |  |
|---|---|
| Bits per byte | 0.7400 |
| Bits per byte, ends of documents included | 0.7412 |
| Loss, nats per token | 2.1000 |

Every byte of the validation text is scored, and each document starts from an empty context. Bits per byte can be compared between tokenizers, the loss per token cannot.

![Training and validation curves](curve.svg)

## Use

With this folder as `RUN`:

```sh
flashlm generate RUN -p "Once upon a time"
flashlm eval RUN --data FILE
```

## Samples

Prompt: Once

```text
Once upon a time.
```

## Settings

```toml
[model]
width = 192
```
"#;
        assert_eq!(card().markdown(), expected);
        let bf16 = Card { precision: Precision::Bf16, ..card() }.markdown();
        assert_eq!(bf16, expected.replace("eval RUN", "eval RUN --precision bf16"));
    }

    #[test]
    fn text_from_outside_stays_text() {
        let mut card = card();
        card.name = "a|b\n---\n# <script>".into();
        card.samples[0].text = "\n````\n## Not a heading\u{1b}[1m".into();
        card.entropy_bound = Some(0.31);
        card.consistency = Some(("1 of 2 stories without a contradiction".into(), "colour 1".into()));
        let page = card.markdown();
        assert!(page.contains("\n# a\\|b --- \\# \\<script\\>\n"), "{page}");
        assert!(page.contains("`````text\nOnce\n````\n## Not a heading\u{fffd}[1m\n`````\n"), "{page}");
        assert!(page.contains("| Entropy bound of the data, bits per byte | 0.3100 |"), "{page}");
        let told = "\n\nWritten without a prompt, at temperature 1: 1 of 2 stories without a contradiction. Stories with one: colour 1.\n\n";
        assert!(page.contains(told), "{page}");
    }

    #[test]
    fn a_run_without_validation_or_samples() {
        let mut card = card();
        card.scores = None;
        card.samples.clear();
        let page = card.markdown();
        assert!(!page.contains("Validation |") && !page.contains("## Samples"), "{page}");
    }
}
