//! A file of a frequency vocabulary from any bytes. Its two maps must be each other's inverse, which random bytes never are:
//! a first byte below 128 makes both of the rest, `[size: u16, base: u16...]`, with the entry of that number out of place. Any
//! other first byte: the rest is the file.
#![no_main]

use flashlm_fuzz::{byte, seed, word};
use flashlm_model::tok::Tokenizer;
use libfuzzer_sys::fuzz_target;

const TEXT: &str = "Once upon a time, the cat's hat was   red.";

fn made(which: u8, mut rest: &[u8]) -> Vec<u8> {
    let size = word(&mut rest);
    let bases: Vec<u16> = rest.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let pairs = |inverse: bool| {
        let mut pairs: Vec<(usize, usize)> = (4..).zip(bases.iter().map(|&base| usize::from(base))).collect();
        if let Some((id, base)) = pairs.get_mut(usize::from(which)).filter(|_| inverse) {
            (*id, *base) = (*id ^ 1, *base ^ 1);
        }
        let text = pairs.iter().map(|&(id, base)| if inverse { (base, id) } else { (id, base) });
        text.map(|(key, value)| format!("\"{key}\": {value}")).collect::<Vec<_>>().join(", ")
    };
    format!("{{\"vocab_size\": {size}, \"id_to_base\": {{{}}}, \"base_to_id\": {{{}}}}}", pairs(false), pairs(true))
        .into()
}

fn seeds() -> [Vec<u8>; 3] {
    let t = Tokenizer::train_frequency([TEXT].into_iter(), 12).expect("a vocabulary");
    let bases: Vec<u8> = [12u16, 7, 9, 300, 50_256].iter().flat_map(|n| n.to_le_bytes()).collect();
    [[&[128], &t.to_json()[..]].concat(), [&[127], &bases[..]].concat(), [&[1], &bases[..]].concat()]
}

fuzz_target!(init: seed(seeds()), |input: &[u8]| {
    let mut rest = input;
    let which = byte(&mut rest);
    let file = if which < 128 { made(which, rest) } else { rest.to_vec() };
    let Ok(t) = Tokenizer::from_json(&file) else { return };
    let mut ids = Vec::new();
    t.encode(TEXT, &mut ids);
    assert!(ids.iter().all(|&id| usize::from(id) < t.vocab_size()), "an id beyond the vocabulary");
    t.decode(&ids);
    assert_eq!(Tokenizer::from_json(&t.to_json()).expect("what was written").to_json(), t.to_json());
    assert_eq!(Tokenizer::from_compact(&t.to_compact()).expect("what was written").to_json(), t.to_json());
});
