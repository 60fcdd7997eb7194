//! Texts and random numbers for the tests of all kinds.

use std::path::{Path, PathBuf};

/// The folder `shared` beside the checkout; None (said on stderr) where there is none.
pub fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().skip(1);
    let found = match std::env::var_os("FLASHLM_SHARED") {
        Some(dir) => Some(dir.into()),
        None => beside.map(|d| d.join("shared")).find(|d| d.is_dir()),
    };
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "../shared is missing in CI");
        eprintln!("skipped: ../shared is not there");
    }
    found
}

pub fn stories(text: &str) -> impl Iterator<Item = &str> {
    text.split("<|endoftext|>").map(|s| s.trim_matches('\n'))
}

/// Xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
        }
        (self.0 >> 16) as usize % n
    }
}

/// Up to 40 characters or fragments from those that tokenizers get wrong, and from all of Unicode.
pub fn random_text(r: &mut Random) -> String {
    const PARTS: [&str; 44] = [
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\r",
        "\u{b}",
        "\u{85}",
        "\u{a0}",
        "\u{2003}",
        "\u{200b}",
        "\0",
        "\u{1c}",
        "\u{7f}",
        "'s",
        "'t",
        "'re",
        "'VE",
        "'ll",
        "'",
        "’",
        "a",
        "the",
        " girl",
        "Z",
        "é",
        "e\u{301}",
        "ß",
        "ǅ",
        "你",
        "好",
        "ひ",
        "ا",
        "नि",
        "7",
        "٣",
        "Ⅷ",
        "½",
        "!",
        "...",
        "😀",
        "👨\u{200d}👩",
        "<|endoftext|>",
    ];
    let mut text = String::new();
    for _ in 0..r.below(40) {
        if r.below(8) == 0 {
            text.extend(char::from_u32(r.below(0x11_0000) as u32));
        } else {
            text += PARTS[r.below(PARTS.len())];
        }
    }
    text
}

pub fn odd_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "   ",
        "  leading",
        "trailing  ",
        "\n\n\nx",
        "a\r\n\r\n b\r\n",
        "\u{feff}bom",
        "I'll don't we've 's 'S x's '",
        "<|endoftext|>a<|endoftext|>\n",
        "12345 3.14 ٣٤ Ⅷ½",
        "👨\u{200d}👩\u{200d}👧 🇫🇷 😀😀",
        "你好，世界。 ひらがな 한국어",
        "\0\u{1}\u{1b}[0m\u{7f}\u{80}\u{9f}",
        "“Ça va ?” — naïve e\u{301}\u{301} ǅ",
        "\u{10ffff}\u{e000}\u{fffd}",
    ]
    .map(String::from)
    .into();
    texts.push("ab ".repeat(300) + &"aaaa".repeat(100) + &" ".repeat(100));
    texts
}
