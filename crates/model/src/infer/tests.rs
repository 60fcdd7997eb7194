//! What the packed runtime promises to the bit: neither ISA, threads, room, neighbours nor the cut of the text change a logit.

use flashlm_kernels::Token;
use flashlm_kernels::ops::pointer_slots;

use super::testing::{EOS, Noise, isas, shapes, stories};
use super::{PackedModel, SequenceState};
use crate::rng::Rng;

/// ISAs, threads and rows per thread, that differ in which tiles and lanes a row falls into.
fn places() -> Vec<(flashlm_kernels::Isa, usize, usize)> {
    let each = [(1, 1), (1, 64), (2, 7), (3, 64)];
    isas().into_iter().flat_map(|isa| each.map(|(threads, rows)| (isa, threads, rows))).collect()
}

#[test]
fn a_text_at_once_is_a_text_token_by_token_everywhere() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let tokens = stories(150, 3);
        let (want, last) = noise.in_turn(&tokens);
        assert!(want.iter().flatten().all(|z| z.is_finite()), "{name}");
        for (n, (isa, threads, rows)) in places().into_iter().enumerate() {
            let mut engine = noise.engine(isa, threads, rows);
            assert_eq!(engine.rows(), threads * rows);
            let here = format!("{name} on {}, {threads} threads, {rows} rows", isa.name());
            for piece in [[150, 33][n % 2], [1, 5, 64][n % 3]] {
                let (mut state, mut at) = (noise.model.new_state(), 0);
                for piece in tokens.chunks(piece) {
                    at += piece.len();
                    engine.feed(&mut state, &[]);
                    assert!(
                        engine.prefill(&mut state, piece) == want[at - 1],
                        "{here}: {} tokens to {at}",
                        piece.len()
                    );
                }
                assert!(state.save() == last.save(), "{here}: the state after pieces of {piece}");
            }
            // Told without asking for logits, a state is the same.
            let mut state = noise.model.new_state();
            engine.feed(&mut state, &tokens[..149]);
            assert!(engine.step(std::slice::from_mut(&mut state), &tokens[149..]) == want[149], "{here}");
            state.reset();
            assert!(engine.prefill(&mut state, &tokens[..3]) == want[2], "{here}: after a reset");
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let (tokens, targets) = (stories(70, 4), stories(70, 5));
        let (logits, last) = noise.in_turn(&tokens);
        let want: Vec<f64> = (logits.iter().zip(&targets))
            .map(|(z, &target)| {
                let sum: f64 = z.iter().map(|&z| f64::from(z).exp()).sum();
                f64::from(z[usize::from(target)]) - sum.ln()
            })
            .collect();
        let mut first = Vec::new();
        for (isa, threads, rows) in places() {
            let (mut engine, mut state, mut got) =
                (noise.engine(isa, threads, rows), noise.model.new_state(), Vec::new());
            engine.log_probs(&mut state, &[], &[], &mut got);
            engine.log_probs(&mut state, &tokens[..9], &targets[..9], &mut got);
            engine.log_probs(&mut state, &tokens[9..], &targets[9..], &mut got);
            assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 2e-6 * want.abs().max(1.0)), "{name}");
            assert!(state.save() == last.save());
            if first.is_empty() {
                first.clone_from(&got);
            }
            assert!(got == first, "{name} on {}, {threads} threads, {rows} rows", isa.name());
        }
    }
}

/// A state with its number and how far it is.
struct Text {
    state: SequenceState,
    id: usize,
    at: usize,
}

impl AsMut<SequenceState> for Text {
    fn as_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}

#[test]
fn neighbours_change_nothing_and_come_and_go() {
    const LENGTH: usize = 9;
    let mut rng = Rng::new(1);
    for (shape, (name, config)) in shapes().into_iter().enumerate() {
        let noise = Noise::new(config);
        let v = noise.config.vocab_size;
        let tokens: Vec<Vec<Token>> = (0..100).map(|seed| stories(LENGTH, 100 + seed)).collect();
        let want: Vec<Vec<Vec<f32>>> = tokens.iter().map(|tokens| noise.in_turn(tokens).0).collect();
        let all = places();
        for (i, most) in [1, 2, 3, 17, 64, 100].into_iter().enumerate() {
            // Over the shapes, sizes meet all places.
            let (isa, threads, rows) = all[(i + 7 * shape) % all.len()];
            let mut engine = noise.engine(isa, threads, rows);
            let mut waiting: Vec<Text> =
                (0..most).map(|id| Text { state: noise.model.new_state(), id, at: 0 }).collect();
            let mut going = Vec::new();
            while !(waiting.is_empty() && going.is_empty()) {
                going.extend(waiting.drain(rng.below(waiting.len() as u64 + 1) as usize..));
                if going.is_empty() {
                    continue;
                }
                let next: Vec<Token> = going.iter().map(|text: &Text| tokens[text.id][text.at]).collect();
                let logits = engine.step(&mut going, &next);
                for (text, z) in going.iter_mut().zip(logits.chunks_exact(v)) {
                    assert!(z == want[text.id][text.at], "{name}: token {} of state {} of {most}", text.at, text.id);
                    text.at += 1;
                }
                going.retain(|text| text.at < LENGTH);
                if rng.below(3) == 0 && !going.is_empty() {
                    waiting.push(going.swap_remove(rng.below(going.len() as u64) as usize));
                }
            }
        }
    }
}

#[test]
fn a_saved_stream_goes_on_where_it_was() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let tokens = stories(60, 8);
        let (want, last) = noise.in_turn(&tokens);
        let mut engine = noise.engine(isas()[0], 2, 16);
        for cut in [0, 1, 7, 30, 59] {
            let mut state = noise.model.new_state();
            engine.feed(&mut state, &tokens[..cut]);
            let saved = state.save();
            // What is done to the state afterwards is nothing to what was saved.
            engine.feed(&mut state, &tokens);
            let mut again = PackedModel::from_bytes(noise.bytes.clone(), "again").unwrap().restore(&saved).unwrap();
            assert!(engine.prefill(&mut again, &tokens[cut..]) == want[59], "{name}: saved after {cut}");
            assert!(again.save() == last.save());
        }
    }
}

#[test]
fn bytes_that_are_no_stream_of_the_model_are_none() {
    for (name, config) in shapes() {
        let noise = Noise::new(config);
        let mut engine = noise.engine(isas()[0], 1, 16);
        let mut state = noise.model.new_state();
        engine.feed(&mut state, &stories(20, 1));
        let saved = state.save();
        for cut in [0, 1, 3, 4, 5, saved.len() / 2, saved.len() - 4, saved.len() - 1] {
            // A mixer without a memory has a state of the count alone.
            let cut = cut.min(saved.len() - 1);
            assert!(noise.model.restore(&saved[..cut]).is_none(), "{name}: cut to {cut}");
        }
        assert!(noise.model.restore(&[&saved[..], &[0]].concat()).is_none());
        assert!(noise.model.restore(&[&saved[..], &[0; 4]].concat()).is_none());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bytes = saved.clone();
            if let Some(place) = bytes[4..].last_chunk_mut() {
                *place = bad.to_le_bytes();
                assert!(noise.model.restore(&bytes).is_none(), "{name}: {bad}");
            }
        }
        // Any number of tokens and any finite values are a state, if one that no text gives: no panic, and no damage to others.
        let mut rng = Rng::new(2);
        let (want, _) = noise.in_turn(&[5, 6]);
        for past in [0, 1, 8, 9, u32::MAX - 1, u32::MAX] {
            let mut bytes = past.to_le_bytes().to_vec();
            let values = (saved.len() - 4) / 4;
            bytes.extend((0..values).flat_map(|_| (1e3 * rng.normal() as f32).to_le_bytes()));
            if noise.config.pointer > 0 {
                // But tokens that rows point at are tokens.
                assert!(noise.model.restore(&bytes).is_none(), "{name}");
                let end = bytes.len() - 4 * usize::from(noise.config.bigram > 0);
                let named = end - 4 * pointer_slots(noise.config.pointer)..end;
                bytes[named].as_chunks_mut().0.iter_mut().for_each(|token| *token = 3f32.to_le_bytes());
            }
            let mut states = [noise.model.restore(&bytes).unwrap(), noise.model.new_state()];
            engine.step(&mut states, &[5, 5]);
            let logits = engine.step(&mut states, &[6, 6]);
            assert!(logits[noise.config.vocab_size..] == want[1], "{name}: beside a state of {past}");
            engine.feed(&mut states[0], &stories(30, 2));
        }
    }
}

/// EOS starts a document anew where the model was trained so, whatever came before, and only there.
#[test]
fn stories_see_each_other_where_the_model_does() {
    for (name, config) in shapes() {
        let (reset, noise) = (config.reset, Noise::new(config));
        let (alone, _) = noise.in_turn(&[EOS, 9]);
        let mut engine = noise.engine(isas()[0], 2, 16);
        let mut state = noise.model.new_state();
        let remembers = state.save().len() > 4;
        let after = engine.prefill(&mut state, &[&stories(40, 6)[..], &[EOS, 9]].concat()).to_vec();
        assert_eq!(after == alone[1], reset || !remembers, "{name}");
    }
}

#[test]
#[should_panic(expected = "a token for each state")]
fn a_step_has_a_token_for_each_stream() {
    let noise = Noise::new(shapes().remove(0).1);
    let mut states = [noise.model.new_state(), noise.model.new_state()];
    noise.engine(isas()[0], 1, 4).step(&mut states, &[1]);
}
