//! Three trained models and the 200 tokens each writes greedily (`tests/golden/README.md`), the same on every ISA, on any number
//! of threads, alone and among others.

use std::path::Path;
use std::sync::Arc;

use flashlm_kernels::Exec;

use super::testing::isas;
use super::{Engine, Finish, Generation, PackedModel};
use crate::sample::Settings;

const PROMPT: &str = "One day";

fn generation(model: &Arc<PackedModel>, prompt: &str) -> Generation {
    // Without an end, so that the texts have one length.
    let settings =
        Settings { temperature: 0.0, logit_bias: vec![(model.tokenizer().eos(), -100.0)], ..Settings::default() };
    let mut generation = Generation::new(model, settings, 200, &[]).unwrap();
    generation.push(prompt);
    generation
}

#[test]
fn texts_are_the_same_everywhere() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    for name in ["conv", "delta", "hybrid"] {
        let golden = std::fs::read_to_string(dir.join(name).with_extension("txt")).unwrap();
        let golden = golden.strip_prefix(PROMPT).and_then(|text| text.strip_suffix('\n')).unwrap();
        let model = Arc::new(PackedModel::open(&dir.join(name).with_extension("safetensors")).unwrap());
        let mut others: Vec<String> = Vec::new();
        for (isa, threads) in isas().into_iter().flat_map(|isa| [(isa, 1), (isa, 2)]) {
            let here = format!("{name} on {}, {threads} threads", isa.name());
            let mut engine = Engine::new(model.clone(), Exec::new(isa, threads), 64);
            let mut text = String::new();
            let finish = engine.generate(&mut generation(&model, PROMPT), |piece| text += piece).unwrap();
            assert_eq!((text.as_str(), finish), (golden, Finish::Length), "{here}");

            // Enough at once for tiles, and a prompt as long.
            let prompts = (0..40).map(|i| match i {
                0..3 => PROMPT,
                3 => golden,
                _ => &golden[..i],
            });
            let mut generations: Vec<Generation> = prompts.map(|prompt| generation(&model, prompt)).collect();
            let mut texts = vec![String::new(); generations.len()];
            for _ in 0..50 {
                engine.advance(&mut generations).unwrap();
                texts.iter_mut().zip(&generations).for_each(|(text, generation)| *text += generation.text());
            }
            assert!(texts[..3].iter().all(|text| text.len() > 50 && golden.starts_with(text)), "{here}: among others");
            if others.is_empty() {
                others.clone_from(&texts);
            }
            assert_eq!(texts, others, "{here}");
        }
    }
}
