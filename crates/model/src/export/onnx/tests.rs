//! Graphs read back and computed in f64, operator by operator, against the formulas in plain loops.

mod evaluate;

use evaluate::Session;
use flashlm_kernels::Token;

use super::*;
use crate::family::flash::reference::logits;
use crate::infer::testing::{Noise, shapes, stories};
use crate::io::safetensors::TensorFile;
use crate::reference::Weights;
use crate::testing::tiny;
use crate::tok::Tokenizer;

fn model(noise: &Noise, weights: &str) -> Result<Vec<u8>, Refused> {
    let source = Source::read(TensorFile::from_bytes(noise.bytes.clone(), "packed").unwrap()).unwrap();
    let Exported::Folder(files) = write(&source, weights)? else { panic!("a folder") };
    Ok(files.into_iter().find(|(name, _)| *name == "model.onnx").unwrap().1)
}

fn ratio(got: &[f64], want: &[f64]) -> f64 {
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (off / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// Pieces of every length, and token by token, with documents that end in the middle.
const PIECES: [&[usize]; 3] = [&[40], &[1; 40], &[1, 11, 2, 20, 6]];

fn in_pieces(mut session: Session, tokens: &[Token], pieces: &[usize]) -> Vec<Vec<f64>> {
    let mut left = tokens;
    pieces.iter().flat_map(|&n| session.logits(left.split_off(..n).expect("as many"))).collect()
}

#[test]
fn graphs_are_what_the_formulas_say() {
    let mut two_bits = 0;
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let tokens = stories(40, 3);
        for weights in ["f32", "int2"] {
            let want = logits(&noise.config, &Weights::new(&noise.config, &noise.params).rounding(false), &tokens);
            let Ok(file) = model(&noise, weights) else {
                assert!(weights == "int2", "{name}");
                continue;
            };
            two_bits += usize::from(weights == "int2");
            for pieces in PIECES {
                let got = in_pieces(Session::new(&file), &tokens, pieces);
                let off = got.iter().zip(&want).map(|(got, want)| ratio(got, want)).fold(0.0, f64::max);
                assert!(off < 1e-5, "{name} {weights} {pieces:?}: {off:.1e}");
            }
        }
    }
    assert!(two_bits > 10, "{two_bits} models of two bits");
}

/// Operator by operator, each rounded to f32, the graph of whole numbers gives the bits of the packed runtime.
#[test]
fn whole_numbers_give_the_bits_of_the_runtime() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let tokens = stories(40, 3);
        let (want, _) = noise.in_turn(&tokens);
        let file = model(&noise, "int8").unwrap();
        for pieces in PIECES {
            let got = in_pieces(Session::new(&file).rounding(), &tokens, pieces);
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                let same = got.iter().zip(want).all(|(&g, &w)| g == f64::from(w));
                assert!(same && got.len() == want.len(), "{name} {pieces:?}, row {at}: {got:?} for {want:?}");
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
