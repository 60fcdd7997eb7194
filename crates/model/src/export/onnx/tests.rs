//! Graphs read back and computed in f64, operator by operator, against the formulas in plain loops.

mod evaluate;

use evaluate::Session;

use super::*;
use crate::config::ModelConfig;
use crate::family::flash::reference::logits;
use crate::infer::testing::{Noise, shapes, stories};
use crate::io::safetensors::TensorFile;
use crate::reference::Weights;
use crate::testing::tiny;
use crate::tok::Tokenizer;

fn model(noise: &Noise, weights: &str) -> Vec<u8> {
    let source = Source::read(TensorFile::from_bytes(noise.bytes.clone(), "packed").unwrap()).unwrap();
    let Ok(Exported::Folder(files)) = write(&source, weights) else { panic!("a folder") };
    files.into_iter().find(|(name, _)| *name == "model.onnx").unwrap().1
}

fn ratio(got: &[f64], want: &[f64]) -> f64 {
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (off / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// Pieces of every length, and token by token, with documents that end in the middle.
#[test]
fn graphs_are_what_the_formulas_say() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let tokens = stories(40, 3);
        for (weights, rounds) in [("f32", false), ("int8", true)] {
            let want = logits(&noise.config, &Weights::new(&noise.config, &noise.params).rounding(rounds), &tokens);
            let file = model(&noise, weights);
            for pieces in [&[40][..], &[1; 40], &[1, 11, 2, 20, 6]] {
                let (mut session, mut at, mut got) = (Session::new(&file), 0, Vec::new());
                for &n in pieces {
                    got.extend(session.logits(&tokens[at..at + n]));
                    at += n;
                }
                let off: Vec<f64> = got.iter().zip(&want).map(|(got, want)| ratio(got, want)).collect();
                // Roundings that fall the other way: see the runtime's own test.
                let exact = off.iter().filter(|off| **off < 1e-5).count();
                let worst = off.iter().fold(0.0, |a: f64, b| a.max(*b));
                let bound = if rounds { (36, 0.05) } else { (40, 1e-5) };
                assert!(
                    exact >= bound.0 && worst < bound.1,
                    "{name} {weights} {pieces:?}: {exact} rows, worst {worst:.1e}"
                );
            }
        }
    }
}

/// Every split of the base vocabulary is GPT-2's, and our ids are told beside it.
#[test]
fn a_frequency_vocabulary_comes_with_its_base() {
    let text = "Once upon a time there was a very unusual xylophone, don't you know?";
    let tokenizer = Tokenizer::train_frequency([text].into_iter(), 40).unwrap();
    let noise = Noise::with(tiny("conv"), &tokenizer, |_, _| {});
    let source = Source::read(TensorFile::from_bytes(noise.bytes, "packed").unwrap()).unwrap();
    let Ok(Exported::Folder(files)) = write(&source, "f32") else { panic!("a folder") };
    let base = tokenizers::Tokenizer::from_bytes(&files[1].1).unwrap();
    let (_, ids) = tokenizer.to_pairs().unwrap();
    assert_eq!((base.get_vocab_size(true), ids.len()), (50_257, 50_257));
    let split = |text: &str| -> Vec<u16> {
        base.encode(text, false).unwrap().get_ids().iter().map(|&id| ids[id as usize]).collect()
    };
    for text in [text, "An unusual time; 1234 naïve 你好", "xylophones  \n\n there"] {
        let mut own = Vec::new();
        tokenizer.encode(text, &mut own);
        assert_eq!(split(text), own, "{text}");
    }
}

#[test]
fn what_has_no_pairs_is_refused() {
    let noise = Noise::new(tiny("conv"));
    let mut source = Source::read(TensorFile::from_bytes(noise.bytes, "packed").unwrap()).unwrap();
    source.config = ModelConfig { family: "other".into(), ..source.config };
    source.tokenizer = Tokenizer::gpt2();
    let Err(Refused(reasons)) = write(&source, "f32") else { panic!("it has reasons") };
    assert!(reasons.len() == 2 && reasons[0].contains("model.family = other"), "{reasons:?}");
    assert!(reasons[1].contains("tokenizer.kind"), "{reasons:?}");
}
