//! Writes GPT-2's tokens in the form that `src/tok/gpt2/mod.rs` describes.

#[path = "src/tok/gpt2/slot.rs"]
mod slot;

use slot::{EMPTY, SLOTS, TOKENS, first};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/tok/gpt2/slot.rs");
    let bpe = tiktoken_rs::r50k_base().expect("the ranks are part of the package");
    let (mut ends, mut bytes, mut table) = (Vec::new(), Vec::new(), vec![EMPTY; SLOTS]);
    for id in 0..TOKENS as u32 {
        let token = bpe.decode_bytes(&[id]).expect("every id has bytes");
        // The last token, <|endoftext|>, is never found in a text.
        if id as usize + 1 < TOKENS {
            let start = first(&token);
            let place = (start..start + SLOTS).map(|at| at % SLOTS).find(|&at| table[at] == EMPTY);
            table[place.expect("more places than tokens")] = id as u16;
        }
        bytes.extend(token);
        ends.extend((bytes.len() as u32).to_le_bytes());
    }
    let table = table.iter().flat_map(|id| id.to_le_bytes());
    let all: Vec<u8> = ends.into_iter().chain(table).chain(bytes).collect();
    let folder = std::env::var_os("OUT_DIR").expect("set by cargo");
    std::fs::write(std::path::Path::new(&folder).join("gpt2.bin"), all).expect("cannot write to OUT_DIR");
}
