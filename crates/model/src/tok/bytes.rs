//! Bytes as tokens: id = byte, EOS = 256, so 257 ids. Lossless for any input; nothing is learned.
//!
//! File: `{"kind":"bytes"}`.

/// The id after the last byte ends a document.
pub(super) const EOS: u16 = 256;
/// What `to_json` writes.
pub(super) const JSON: &str = r#"{"kind":"bytes"}"#;

static TABLE: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        table[b] = b as u8;
        b += 1;
    }
    table
};

pub(super) fn encode(text: &str, out: &mut Vec<u16>) {
    out.extend(text.bytes().map(u16::from));
}

pub(super) fn token_bytes(id: u16) -> &'static [u8] {
    let id = usize::from(id);
    TABLE.get(id..=id).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::{
        Tokenizer,
        testing::{Random, random_text},
    };

    #[test]
    fn ids_are_the_bytes() {
        let t = Tokenizer::bytes();
        let mut ids = vec![9];
        t.encode("aé", &mut ids);
        assert_eq!(ids, [9, 0x61, 0xc3, 0xa9]);
        assert_eq!((t.vocab_size(), t.eos(), t.unk(), t.unk_bases()), (257, 256, None, 0));
        for id in 0..=255 {
            assert_eq!(token_bytes(id), [id as u8]);
        }
        assert!(token_bytes(256).is_empty() && token_bytes(65535).is_empty());
    }

    #[test]
    fn decode_of_encode_is_the_identity() {
        let (t, mut r) = (Tokenizer::bytes(), Random(1));
        for _ in 0..300 {
            let text = random_text(&mut r);
            let mut ids = Vec::new();
            t.encode(&text, &mut ids);
            ids.push(t.eos());
            ids.push(60_000);
            assert_eq!(t.decode(&ids), text.as_bytes());
        }
    }

    #[test]
    fn the_file_is_read_back() {
        let t = Tokenizer::from_json(JSON.as_bytes()).unwrap();
        assert_eq!((t.kind(), t.to_json()), ("bytes", JSON.as_bytes().to_vec()));
    }
}
