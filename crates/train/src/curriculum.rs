//! The texts of a run, as its stages use them: window `n` of a stage is a pure function of (seed, stage, n), whatever its
//! texts. `Mix` chooses the text and the number of its window, [`Windows`] the place of that window.

use crate::config::Settings;
use crate::data::DataError;
use crate::data::cache::TokenCache;
use crate::data::mix::Mix;
use crate::data::window::{Window, Windows};
use crate::progress::Extent;
use crate::stage::{Boundaries, Shuffle};

/// One text of a run.
#[derive(Debug)]
pub struct Text {
    /// A short name, its own among the texts of the run.
    pub name: String,
    /// Its tokens.
    pub cache: TokenCache,
}

/// All texts and stages of a run.
#[derive(Debug)]
pub struct Curriculum {
    texts: Vec<Text>,
    stages: Vec<Stage>,
    extents: Vec<Extent>,
}

#[derive(Debug)]
struct Stage {
    mix: Mix,
    /// Texts by their numbers, in the order of the mix, with their parts of the stage's windows.
    parts: Vec<Part>,
}

/// One text in one stage.
#[derive(Debug)]
pub struct Part {
    /// Its number among the texts of the run.
    pub text: usize,
    /// Its part of the stage's windows.
    pub share: f64,
    /// Its windows at the stage's sequence length.
    pub windows: Windows,
}

impl Curriculum {
    /// `texts` are those of [`Settings::texts`], in that order.
    pub fn new(settings: &Settings, texts: Vec<Text>) -> Result<Curriculum, DataError> {
        let all = settings.texts();
        assert_eq!(all.len(), texts.len(), "one cache for each text of the settings");
        let windows = |text: &Text, seq_len: usize, seed: u64| {
            let tokens = text.cache.tokens().len();
            let windows = match settings.data.boundaries {
                Boundaries::Padded => Windows::padded(&text.cache, seq_len, seed),
                Boundaries::Packed | Boundaries::Reset => match settings.data.shuffle {
                    Shuffle::Windows => Windows::packed(tokens, seq_len, seed),
                    Shuffle::Documents => Windows::documents(&text.cache, seq_len, seed),
                },
            };
            windows.ok_or_else(|| DataError::NoTokens { name: text.name.clone() })
        };
        let (mut stages, mut extents) = (Vec::new(), Vec::new());
        for (i, stage) in settings.stages().into_iter().enumerate() {
            let seed = settings.train.seed.wrapping_add(i as u64);
            let weights: Vec<f64> = stage.sources.iter().map(|source| source.weight).collect();
            let sum: f64 = weights.iter().sum();
            let part = |(j, source): (usize, _)| {
                let text = all.iter().position(|text| text.is_same(source)).expect("all texts are listed");
                let windows = windows(&texts[text], stage.seq_len, seed ^ ((j as u64) << 32))?;
                Ok(Part { text, share: weights[j] / sum, windows })
            };
            let parts: Vec<Part> = stage.sources.iter().enumerate().map(part).collect::<Result<_, DataError>>()?;
            let pass = |text: &Text| match settings.data.boundaries {
                Boundaries::Padded => text.cache.stories() as f64,
                _ => text.cache.tokens().len().div_ceil(stage.seq_len) as f64,
            };
            let mean = |part: &Part| part.share * part.windows.trained() as f64 / part.windows.per_epoch() as f64;
            let (windows, tokens) = (texts.iter().map(pass).sum(), parts.iter().map(mean).sum());
            extents.push(Extent { windows, tokens });
            stages.push(Stage { mix: Mix::new(&weights, seed), parts });
        }
        Ok(Curriculum { texts, stages, extents })
    }

    /// Every text of the run.
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// What each stage has to train on.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Window `n` of a stage.
    pub fn window(&self, stage: usize, n: u64) -> Window<'_> {
        let stage = &self.stages[stage];
        let (part, index) = stage.mix.pick(n);
        let part = &stage.parts[part];
        part.windows.window(&self.texts[part.text].cache, index)
    }

    /// The texts of a stage.
    pub fn parts(&self, stage: usize) -> &[Part] {
        &self.stages[stage].parts
    }

    /// The name of a text of a stage.
    pub fn name(&self, part: &Part) -> &str {
        &self.texts[part.text].name
    }

    /// Passes over each text of a stage in its first `n` windows.
    pub fn passes(&self, stage: usize, n: u64) -> impl Iterator<Item = (&Part, f64)> {
        let Stage { mix, parts } = &self.stages[stage];
        parts.iter().zip(mix.counts(n)).map(|(part, count)| (part, count as f64 / part.windows.per_epoch() as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::split::Split;
    use crate::data::testing::{Folder, open_or_build, source};
    use crate::stage::{Stage, StageSource};

    fn text(folder: &Folder, name: &str, letter: char, stories: usize) -> Text {
        let story = letter.to_string().repeat(40);
        let source = source(folder, name, &vec![story.as_str(); stories]);
        let (cache, _) = open_or_build(&folder.path().join(name).with_extension("tok"), &source, Split::All, 1);
        Text { name: name.into(), cache }
    }

    fn settings(boundaries: Boundaries) -> Settings {
        let mut settings = Settings::default();
        let of = |source: &str, weight| StageSource { weight, ..StageSource::new(source) };
        settings.train.stages = vec![
            Stage { seq_len: 7, share: 0.5, batch: 0, sources: vec![of("a", 3.0), of("b", 1.0)] },
            Stage { seq_len: 15, share: 0.5, batch: 0, sources: vec![of("b", 1.0)] },
        ];
        settings.train.seq_len = 15;
        settings.data.boundaries = boundaries;
        settings
    }

    #[test]
    fn stages_take_their_texts_by_weight_and_epochs_are_those_of_each_text() {
        let folder = Folder::new();
        let texts = vec![text(&folder, "a", 'a', 30), text(&folder, "b", 'b', 50)];
        let settings = settings(Boundaries::Packed);
        assert_eq!(settings.texts().iter().map(|text| text.weight).collect::<Vec<_>>(), [0.375, 0.625]);
        let curriculum = Curriculum::new(&settings, texts).unwrap();
        let of = |stage, n| {
            let window = curriculum.window(stage, n);
            let mut targets = Vec::new();
            window.append_to(&mut targets);
            let is = |letter: u8| targets.contains(&u16::from(letter));
            assert!(is(b'a') != is(b'b'));
            is(b'b')
        };
        for n in 0..4000 {
            let b = (0..n).rev().take(400).filter(|n| of(0, *n)).count();
            assert!(n % 400 > 0 || n == 0 || b == 100, "{b} of 400 before {n}");
            assert!(of(1, n));
        }
        // 30 documents of 41 tokens are 176 windows of 7 (the last of 5), 50 are 293; 4,000 windows are 3,000 and 1,000.
        let wanted = [("a", 0.75, 3000.0 / 176.0), ("b", 0.25, 1000.0 / 293.0)];
        for ((part, passes), (name, share, want)) in curriculum.passes(0, 4000).zip(wanted) {
            assert_eq!((curriculum.name(part), part.share), (name, share));
            assert!((passes - want).abs() < 0.02, "{passes}");
        }
        assert!(curriculum.passes(1, 64).map(|(part, passes)| (part.text, passes)).eq([(1, 64.0 / 137.0)]));
        assert_eq!(curriculum.extents()[0].tokens, 0.75 * 1230.0 / 176.0 + 0.25 * 2050.0 / 293.0);
        assert_eq!(curriculum.extents()[1].windows, 82.0 + 137.0);
    }

    #[test]
    fn padded_stages_count_stories_and_the_tokens_that_are_scored() {
        let folder = Folder::new();
        let texts = vec![text(&folder, "a", 'a', 3), text(&folder, "b", 'b', 5)];
        let curriculum = Curriculum::new(&settings(Boundaries::Padded), texts).unwrap();
        let extent = curriculum.extents()[1];
        assert_eq!((extent.windows, extent.tokens), (8.0, 15.0));
        assert!((0..50).all(|n| curriculum.window(0, n).first == curriculum.texts()[0].cache.eos()));
    }
}
