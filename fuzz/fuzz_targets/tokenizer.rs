//! A tokenizer of any kind from any bytes, JSON or compact; one that is read makes ids of its vocabulary of any text, text of
//! any ids, and is the same once written and read again.
#![no_main]

use flashlm_fuzz::seed;
use flashlm_model::tok::Tokenizer;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const TEXT: &str = "Once upon a time, the cat's hat was   red.\n\n\"Écoute,\" 😀 said 12 birds.";

fn seeds() -> Vec<Vec<u8>> {
    let bpe = Tokenizer::train_bpe([TEXT].into_iter(), 280).expect("a vocabulary");
    let frequency = Tokenizer::train_frequency([TEXT].into_iter(), 20).expect("a vocabulary");
    // The same in the words of other writers: merges joined, the special token outside the vocabulary.
    let mut other: Value = serde_json::from_slice(&bpe.to_json()).expect("JSON");
    for merge in other["model"]["merges"].as_array_mut().expect("merges") {
        *merge = format!("{} {}", merge[0].as_str().expect("text"), merge[1].as_str().expect("text")).into();
    }
    other["model"]["vocab"].as_object_mut().expect("a vocabulary").remove("<|endoftext|>");
    other["post_processor"] = other["decoder"].clone();
    // An id that is not of its place cannot be told in merges alone.
    let mut swapped: Value = serde_json::from_slice(&bpe.to_json()).expect("JSON");
    (swapped["model"]["vocab"]["!"], swapped["model"]["vocab"]["\""]) = (2.into(), 1.into());
    let all = [bpe, frequency, Tokenizer::bytes()];
    let texts = [other, swapped].map(|value| value.to_string().into_bytes());
    all.iter().flat_map(|t| [t.to_json(), t.to_compact()]).chain(texts).collect()
}

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    for tokenizer in [Tokenizer::from_json(bytes), Tokenizer::from_compact(bytes)].into_iter().flatten() {
        let vocab = tokenizer.vocab_size();
        for text in [TEXT.into(), String::from_utf8_lossy(&bytes[..bytes.len().min(200)])] {
            let (mut ids, mut fast) = (Vec::new(), Vec::new());
            tokenizer.encode(&text, &mut ids);
            assert!(ids.iter().all(|&id| usize::from(id) < vocab), "an id beyond the vocabulary");
            let back = tokenizer.decode(&ids);
            assert!(tokenizer.kind() == "frequency" || back == text.as_bytes(), "a loss");
            tokenizer.encoder().encode(&text, &mut fast);
            assert_eq!(fast, ids, "the encoder that remembers words");
        }
        tokenizer.decode(&[0, 1, (vocab - 1) as u16, u16::MAX]);
        let again = Tokenizer::from_compact(&tokenizer.to_compact()).expect("what was written");
        assert_eq!(again.to_json(), tokenizer.to_json());
    }
});
