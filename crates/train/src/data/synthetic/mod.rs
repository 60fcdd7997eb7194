//! Stories of a known probability, made on the spot: what a machine without data or network trains on.
//!
//! `story(seed, index)` draws one story from the grammar of the `.txt` files beside this one. Every choice at once
//! writes the text that tells its options apart, so a story has exactly one derivation and
//!
//! ```text
//! bits(text) = -log2 P(text) = sum over its choices of log2(sum of weights / weight chosen)
//! ```
//!
//! is exact. The bits of held-out stories over their bytes is what the true distribution itself scores on them; in
//! expectation no model does better. Where a story ends follows from its text and costs nothing. SplitMix64: Steele,
//! Lea, Flood, "Fast splittable pseudorandom number generators", 2014.

mod check;
mod grammar;
mod graph;
mod parse;

use super::order::{INCREMENT, output};
use std::borrow::Cow;
use std::sync::LazyLock;

pub use check::{Kind, contradictions};
use grammar::{Choose, Grammar, Options};

static GRAMMAR: LazyLock<Grammar> = LazyLock::new(|| {
    let sources = [
        include_str!("words.txt"),
        include_str!("frame.txt"),
        include_str!("indoors.txt"),
        include_str!("outdoors.txt"),
    ];
    Grammar::parse(&sources).expect("the built-in grammar parses")
});

/// Story number `index` of the stream `seed`, without a newline at its end. A pure function.
pub fn story(seed: u64, index: u64) -> String {
    story_with_bits(seed, index).0
}

/// The same story with its information content in bits, equal to `bits` of the story.
fn story_with_bits(seed: u64, index: u64) -> (String, f64) {
    let mut writer = Writer::new(seed, index);
    GRAMMAR.tell(&mut writer);
    (writer.text, writer.bits)
}

/// Exact `-log2 P(text)` of a whole story under the grammar; `None` if the grammar cannot have made it.
pub fn bits(text: &str) -> Option<f64> {
    let mut reader = Reader { rest: Some(text), bits: 0.0 };
    GRAMMAR.tell(&mut reader);
    (reader.rest == Some("")).then_some(reader.bits)
}

fn total(options: &Options<'_>) -> u64 {
    options.iter().map(|(weight, _)| u64::from(*weight)).sum()
}

fn surprise(options: &Options<'_>, chosen: usize) -> f64 {
    (total(options) as f64 / f64::from(options[chosen].0)).log2()
}

/// Picks at random and appends.
struct Writer {
    state: u64,
    text: String,
    bits: f64,
}

impl Writer {
    fn new(seed: u64, index: u64) -> Self {
        Self { state: output(seed).wrapping_add(output(!index)), text: String::with_capacity(1536), bits: 0.0 }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(INCREMENT);
        output(self.state)
    }
}

impl Choose for Writer {
    fn pick(&mut self, options: &Options<'_>) -> usize {
        // The high half of a 128-bit product: uniform up to 2^-56 for these small totals.
        let mut ticket = ((u128::from(self.next()) * u128::from(total(options))) >> 64) as u64;
        let mut chosen = 0;
        while ticket >= u64::from(options[chosen].0) {
            ticket -= u64::from(options[chosen].0);
            chosen += 1;
        }
        self.bits += surprise(options, chosen);
        self.text.push_str(&options[chosen].1);
        chosen
    }

    fn say(&mut self, text: &str) {
        self.text.push_str(text);
    }
}

/// Follows a given text; `rest` becomes `None` where the text leaves the grammar.
struct Reader<'t> {
    rest: Option<&'t str>,
    bits: f64,
}

impl Choose for Reader<'_> {
    fn pick(&mut self, options: &Options<'_>) -> usize {
        let Some(rest) = self.rest else { return 0 };
        let fits = |(_, text): &(u32, Cow<'_, str>)| rest.starts_with(text.as_ref());
        let Some(chosen) = options.iter().position(fits) else {
            self.rest = None;
            return 0;
        };
        self.bits += surprise(options, chosen);
        self.rest = rest.strip_prefix(options[chosen].1.as_ref());
        chosen
    }

    fn say(&mut self, text: &str) {
        self.rest = self.rest.and_then(|rest| rest.strip_prefix(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that judges every choice it meets.
    struct Judge {
        writer: Writer,
        /// Sum over the choices met of the entropy of that choice.
        entropy: f64,
    }

    impl Choose for Judge {
        fn pick(&mut self, options: &Options<'_>) -> usize {
            assert!(!options.is_empty());
            for (i, (weight, a)) in options.iter().enumerate() {
                assert!(*weight > 0 && !a.is_empty(), "{options:?}");
                for (_, b) in &options[..i] {
                    let clash = a.starts_with(b.as_ref()) || b.starts_with(a.as_ref());
                    assert!(!clash, "not prefix-free: {a:?} and {b:?}");
                }
            }
            let p = |weight: u32| f64::from(weight) / total(options) as f64;
            let sum: f64 = options.iter().map(|o| p(o.0)).sum();
            assert!((sum - 1.0).abs() < 1e-12);
            self.entropy -= options.iter().map(|o| p(o.0) * p(o.0).log2()).sum::<f64>();
            self.writer.pick(options)
        }

        fn say(&mut self, text: &str) {
            self.writer.say(text);
        }
    }

    fn judged(index: u64) -> Judge {
        let mut judge = Judge { writer: Writer::new(11, index), entropy: 0.0 };
        GRAMMAR.tell(&mut judge);
        judge
    }

    /// -log2 P(chosen) and the entropy of the choice have the same mean, choice by choice.
    #[test]
    fn every_choice_is_prefix_free_and_bits_average_to_the_entropy() {
        let n = 10_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for index in 0..n {
            let judge = judged(index);
            let excess = judge.writer.bits - judge.entropy;
            sum += excess;
            squares += excess * excess;
        }
        let (mean, n) = (sum / n as f64, n as f64);
        let error = ((squares / n - mean * mean) / n).sqrt();
        assert!(error < 0.2, "standard error {error}");
        assert!(mean.abs() < 4.0 * error, "excess {mean} +- {error} bits");
    }

    #[test]
    fn reading_gives_the_bits_of_writing() {
        for index in 0..3000 {
            let (text, written) = story_with_bits(5, index);
            assert_eq!(bits(&text), Some(written), "{text}");
        }
    }

    #[test]
    fn stories_are_a_pure_function_and_differ() {
        let all: std::collections::HashSet<_> = (0..20_000).map(|i| story(1, i)).collect();
        assert_eq!(all.len(), 20_000);
        assert!(all.contains(&story(1, 7)) && !all.contains(&story(2, 7)));
    }

    /// Names, colours and things are told more than once, so most changes break the story.
    #[test]
    fn a_changed_character_is_noticed() {
        let (mut tried, mut passed) = (0, 0);
        for index in 0..40 {
            let text = story(3, index);
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'e' { b'o' } else { b'e' };
                let Ok(changed) = String::from_utf8(bytes) else { panic!("not ASCII: {text}") };
                tried += 1;
                passed += usize::from(bits(&changed).is_some());
            }
        }
        assert!(passed * 1000 < tried, "{passed} of {tried}");
    }

    #[test]
    fn other_text_has_no_probability() {
        let text = story(1, 1);
        for wrong in [
            "",
            "Once upon a time",
            "\u{1F600}",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text} "),
            &format!("{text}\n"),
            &text.replace(' ', "  "),
        ] {
            assert_eq!(bits(wrong), None, "{wrong:?}");
        }
    }

    /// What a reader would call a slip, looked for from outside the grammar.
    #[test]
    fn the_text_is_clean() {
        let mut starts = [0; 3];
        let (mut bytes, mut total_bits) = (0, 0.0);
        for index in 0..20_000 {
            let (text, written) = story_with_bits(8, index);
            assert!(text.is_ascii() && text == text.trim(), "{text}");
            for slip in ["  ", "\n\n", " \n", "\n ", " .", " ,", "..", ",,", "{", "[", "<", "@", "~", "|", "("] {
                assert!(!text.contains(slip), "{slip:?} in {text}");
            }
            assert!(text.ends_with(['.', '!', '"']), "{text}");
            assert_eq!(text.matches('"').count() % 2, 0, "{text}");
            let words = text.split_whitespace().count();
            assert!((60..=225).contains(&words), "{words} words: {text}");
            for pair in text.split_whitespace().collect::<Vec<_>>().windows(2) {
                let vowel = pair[1].starts_with(['a', 'e', 'i', 'o', 'u']);
                assert!(!(vowel && matches!(pair[0], "a" | "A" | "\"A")), "{pair:?}: {text}");
                assert!(vowel || !matches!(pair[0], "an" | "An"), "{pair:?}: {text}");
                assert!(pair[0] != pair[1] || pair[0].ends_with(','), "{pair:?}: {text}");
            }
            for three in text.split_whitespace().collect::<Vec<_>>().windows(3) {
                let same = three[0] == three[2].trim_end_matches([',', '.']);
                assert!(!(three[1] == "and" && same), "{three:?}: {text}");
            }
            for sentence in text.split(['\n']).flat_map(|line| line.split(". ")) {
                let first = sentence.trim_start_matches('"').chars().next();
                assert!(first.is_some_and(char::is_uppercase), "{sentence:?}: {text}");
            }
            for (count, start) in starts.iter_mut().zip(["Once upon a time", "The little girl", "One day, a boy named"])
            {
                *count += usize::from(text.starts_with(start));
            }
            bytes += text.len();
            total_bits += written;
        }
        assert!(starts.iter().all(|&count| count > 400), "{starts:?}");
        let density = total_bits / bytes as f64;
        assert!((0.2..0.45).contains(&density), "{density} bits per byte");
    }
}
