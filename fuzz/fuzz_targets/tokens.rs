//! A token cache from any bytes, with its two checksums set right; one that opens can be read through.
#![no_main]

use std::ops::ControlFlow;

use flashlm_fuzz::{file, folder, seed};
use flashlm_model::tok::Tokenizer;
use flashlm_train::data::build::open_or_build;
use flashlm_train::data::cache::TokenCache;
use flashlm_train::data::{source::Source, split::Split, window::Windows};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

const HEADER: usize = 192;

fn seeds() -> Vec<Vec<u8>> {
    let text = file("stories.txt", "One.\n<|endoftext|>\nTwo.\n<|endoftext|>\nItâ€™s three.");
    let source = Source::parse(text.to_str().expect("a name in UTF-8")).expect("a source");
    let frequency = Tokenizer::train_frequency(["One. Two"].into_iter(), 8).expect("a vocabulary");
    let built = [(Tokenizer::bytes(), Split::All), (frequency, Split::Train(0.5))].map(|(tokenizer, split)| {
        let path = folder().join("built.tok");
        let progress = &mut |_: &_| ControlFlow::Continue(());
        open_or_build(&path, &source.clone().with_split(split), &tokenizer, 1, progress).expect("a cache");
        std::fs::read(path).expect("the file just written")
    });
    built.into_iter().chain([vec![]]).collect()
}

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    if let Some((header, payload)) = bytes.split_first_chunk_mut::<HEADER>() {
        header[176..184].copy_from_slice(&xxh3_64(payload).to_le_bytes());
        let hash = xxh3_64(&header[..184]);
        header[184..].copy_from_slice(&hash.to_le_bytes());
    }
    let Ok(cache) = TokenCache::inspect(&file("fuzz.tok", &bytes)) else { return };
    assert!(cache.tokens().iter().all(|&id| usize::from(id) < cache.vocab_size()));
    let joined: Vec<u16> = (0..cache.stories()).flat_map(|i| cache.story(i)).copied().collect();
    assert_eq!(joined, cache.tokens());
    for seq_len in [1, 5] {
        let windows = [Windows::packed(cache.tokens().len(), seq_len, 3), Windows::padded(&cache, seq_len, 3)];
        for windows in windows.into_iter().flatten() {
            (0..windows.per_epoch().min(50)).for_each(|n| assert!(windows.window(&cache, n).targets() <= seq_len));
        }
    }
    let (_, _) = (cache.to_string(), cache.made_from().split.to_string());
});
