//! Turns token bytes into text as they come, without ever cutting a character in two.
//!
//! A token may end in the middle of a UTF-8 sequence: the unfinished bytes (three at most) wait for the next push. Bytes
//! that can no longer become a character give U+FFFD, as `String::from_utf8_lossy` does: the pieces of any split, joined,
//! equal the lossy text of the whole.

use super::error::MAX_TOKEN;

/// Feeds on token bytes, gives whole UTF-8 only.
#[derive(Debug)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl Default for StreamDecoder {
    /// With room for the longest token: pushes of one at a time allocate nothing.
    fn default() -> Self {
        StreamDecoder { pending: Vec::with_capacity(MAX_TOKEN + 3) }
    }
}

impl StreamDecoder {
    /// A decoder with nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes of the next token or tokens; appends the text that is certain by now, which may be none.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut unfinished = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            match std::str::from_utf8(invalid) {
                Ok(_) => {}
                // No `error_len`: these are the first bytes of a character, and nothing has come after them yet.
                Err(e) if e.error_len().is_none() && chunks.peek().is_none() => {
                    unfinished = invalid.len();
                }
                Err(_) => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        self.pending.drain(..self.pending.len() - unfinished);
    }

    /// Ends the text: an unfinished character becomes U+FFFD. The decoder is empty again afterwards.
    pub fn finish(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tok::testing::Random;

    fn pushed(d: &mut StreamDecoder, bytes: &[u8]) -> String {
        let mut text = String::new();
        d.push(bytes, &mut text);
        text
    }

    fn finished(d: &mut StreamDecoder) -> String {
        let mut text = String::new();
        d.finish(&mut text);
        text
    }

    #[test]
    fn a_character_waits_until_it_is_whole() {
        let mut d = StreamDecoder::new();
        assert_eq!(pushed(&mut d, b"a\xf0\x9f"), "a");
        assert_eq!(pushed(&mut d, b"\x98"), "");
        assert_eq!(pushed(&mut d, b"\x80b"), "\u{1f600}b");
        assert_eq!(finished(&mut d), "");
    }

    #[test]
    fn unfinished_end_is_replaced_once_and_the_decoder_can_be_used_again() {
        let mut d = StreamDecoder::new();
        assert_eq!(pushed(&mut d, b"\xe4\xbd"), "");
        assert_eq!(finished(&mut d), "\u{fffd}");
        assert_eq!(pushed(&mut d, b"ok"), "ok");
    }

    #[test]
    fn any_split_of_any_bytes_equals_the_lossy_text() {
        let mut r = Random(7);
        // Bytes that make true, broken, overlong and surrogate sequences likely.
        let pool = [0x41, 0x80, 0x98, 0x9f, 0xbf, 0xc2, 0xc0, 0xe0, 0xe4, 0xed, 0xa0, 0xf0, 0xf4, 0xf5, 0xff];
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..r.below(24)).map(|_| pool[r.below(pool.len())]).collect();
            let mut d = StreamDecoder::new();
            let mut text = String::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(1 + r.below(rest.len()));
                d.push(now, &mut text);
                assert!(d.pending.len() <= 3);
                rest = later;
            }
            d.finish(&mut text);
            assert_eq!(text, String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }
}
