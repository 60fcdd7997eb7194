//! A tokenizer from any bytes, JSON or compact; one that is read makes ids of its vocabulary of any text and text of any ids.
#![no_main]

use flashlm_model::tok::Tokenizer;
use libfuzzer_sys::fuzz_target;

const TEXT: &str = "Once upon a time, the cat's hat was   red.\n\n\"Écoute,\" 😀 said 12 birds.";

fuzz_target!(|bytes: &[u8]| {
    for tokenizer in [Tokenizer::from_json(bytes), Tokenizer::from_compact(bytes)].into_iter().flatten() {
        let vocab = tokenizer.vocab_size();
        for text in [TEXT.into(), String::from_utf8_lossy(&bytes[..bytes.len().min(200)])] {
            let mut ids = Vec::new();
            tokenizer.encode(&text, &mut ids);
            assert!(ids.iter().all(|&id| usize::from(id) < vocab), "an id beyond the vocabulary");
            let back = tokenizer.decode(&ids);
            if tokenizer.kind() == "bytes" {
                assert_eq!(back, text.as_bytes());
            }
        }
        tokenizer.decode(&[0, 1, (vocab - 1) as u16]);
        let again = Tokenizer::from_compact(&tokenizer.to_compact()).expect("what was written");
        assert_eq!(again.to_json(), tokenizer.to_json());
    }
});
