//! Sense of what a model writes: stories of the built-in grammar that do not contradict themselves.
//!
//! ```text
//! consistent = stories without a contradiction / stories that the model wrote
//! ```
//!
//! The model writes each story from the start of a document, without a prompt, its tokens drawn as `generate` draws them where
//! nothing else is asked ([`Settings::writing`]). At temperature 1 the share would say again what bits per byte say: a model that
//! needs `e` bits per story more than the grammar leaves it in about `1 - 2^-e` of its stories. A story that is longer than any of
//! the grammar is not finished. What a contradiction is: [`synthetic::contradictions`].

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use flashlm_model::sample::{SampleError, Settings};
use flashlm_model::{Engine, Generation};
use serde::Serialize;

use crate::data::synthetic::{self, Kind};

/// Most bytes of a story; those of the grammar have at most 225 words.
const LONGEST: usize = 2048;

/// What was found in stories that a model wrote.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Consistency {
    /// Fraction of the stories without a contradiction.
    pub consistent: f64,
    /// Stories written.
    pub stories: usize,
    /// Of each kind, the number of stories that have it.
    pub contradictions: BTreeMap<&'static str, usize>,
}

impl Consistency {
    /// That of stories; at least one.
    pub fn of(stories: &[String]) -> Consistency {
        let mut contradictions: BTreeMap<_, _> = Kind::ALL.iter().map(|kind| (kind.name(), 0)).collect();
        let mut consistent = 0;
        for story in stories {
            let found = synthetic::contradictions(story);
            consistent += usize::from(found.is_empty());
            found.into_iter().for_each(|kind| *contradictions.entry(kind.name()).or_default() += 1);
        }
        Consistency { consistent: consistent as f64 / stories.len() as f64, stories: stories.len(), contradictions }
    }

    /// As in "87 of 100 stories without a contradiction".
    pub fn told(&self) -> String {
        let consistent = (self.consistent * self.stories as f64).round();
        format!("{consistent} of {} stories without a contradiction", self.stories)
    }

    /// As in "colour 4, name 2": of each kind that there is the number of stories, the most frequent first.
    pub fn kinds(&self) -> String {
        let mut found: Vec<_> = self.contradictions.iter().filter(|(_, n)| **n > 0).collect();
        found.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), **name));
        found.into_iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    }
}

/// Lets a model write `n` stories, as many at a time as the engine has rows; `None` where `progress`, which is given the number
/// of those that are finished, breaks. Story `i` is a pure function of the model, the seed and `i`.
pub fn write_stories(
    engine: &mut Engine,
    n: usize,
    seed: u64,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<String>>, SampleError> {
    let model = engine.model().clone();
    let mut stories = vec![String::new(); n];
    let (mut numbers, mut generations) = (Vec::new(), Vec::new());
    let mut begun = 0;
    loop {
        while begun < n && generations.len() < engine.rows() {
            // Seeds of neighbours share no story.
            let seed = seed.wrapping_mul(1 << 32).wrapping_add(begun as u64);
            let settings = Settings { seed, ..Settings::writing() };
            generations.push(Generation::new(&model, settings, LONGEST, &[])?);
            numbers.push(begun);
            begun += 1;
        }
        if generations.is_empty() {
            return Ok(Some(stories));
        }
        engine.advance(&mut generations)?;
        for i in (0..generations.len()).rev() {
            let story = &mut stories[numbers[i]];
            story.push_str(generations[i].text());
            if generations[i].finish().is_some() || story.len() > LONGEST {
                generations.swap_remove(i);
                numbers.swap_remove(i);
            }
        }
        if progress(begun - generations.len()).is_break() {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flashlm_kernels::Exec;
    use flashlm_model::pack::{self, pack};
    use flashlm_model::tok::Tokenizer;
    use flashlm_model::{ModelConfig, PackedModel, Precision};

    use super::*;
    use crate::eval::testing::exec_on_all_isas;

    #[test]
    fn stories_are_counted_by_kind() {
        let good = |i| synthetic::story(5, i);
        let mut stories: Vec<String> = (0..8).map(good).collect();
        stories[2] = stories[2].replacen(' ', " xyzzy ", 1);
        stories[3].truncate(40);
        stories[4] = format!("Xyzzy. {} Xyzzy", &stories[4]);
        let found = Consistency::of(&stories);
        assert_eq!((found.consistent, found.stories), (0.625, 8));
        assert_eq!((found.contradictions["words"], found.contradictions["colour"]), (2, 0));
        assert_eq!(found.contradictions["ending"], 2, "{found:?}");
        assert_eq!(found.told(), "5 of 8 stories without a contradiction");
        assert_eq!(found.kinds(), "ending 2, words 2");
        assert_eq!(Consistency::of(&[good(1)]).kinds(), "");
    }

    /// Each story is the one that `generate` writes alone, whatever number of them is written at a time.
    #[test]
    fn stories_written_together_are_those_written_alone() {
        let tokenizer = Tokenizer::bytes();
        let config = ModelConfig {
            vocab_size: tokenizer.vocab_size(),
            dim: 16,
            blocks: 1,
            ffn_hidden: 16,
            ..ModelConfig::v4_small()
        };
        let lm = Precision::F32.build(&config, 1, false).unwrap();
        let params = lm.layout().init::<f32>(3);
        exec_on_all_isas(|cx| {
            let bytes = pack(cx, &config, &params, &tokenizer, pack::Options::default());
            let model = Arc::new(PackedModel::from_bytes(bytes, "a test").unwrap());
            let write = |threads, rows, n, seed| {
                let mut engine = Engine::new(model.clone(), Exec::new(cx.isa(), threads), rows);
                let mut last = 0;
                let stories = write_stories(&mut engine, n, seed, &mut |done| {
                    last = done;
                    ControlFlow::Continue(())
                });
                assert_eq!(last, n);
                stories.unwrap().unwrap()
            };
            let together = write(2, 4, 5, 7);
            assert_eq!(write(1, 1, 5, 7), together);
            assert_eq!(write(1, 3, 3, 7), together[..3]);
            assert!(together != write(1, 8, 5, 8) && together[0] != together[1]);
            let mut engine = Engine::new(model.clone(), Exec::new(cx.isa(), 1), 2);
            assert_eq!(write_stories(&mut engine, 5, 7, &mut |_| ControlFlow::Break(())), Ok(None));
        });
    }
}
