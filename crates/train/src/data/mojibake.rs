//! Repair of mojibake: UTF-8 that was once read as Windows-1252 and stored again, e.g. `â€™` for an apostrophe.
//!
//! A sequence is turned back when its characters re-encode to Windows-1252 bytes (the five undefined ones,
//! 81 8D 8F 90 9D, standing for themselves as C1 controls) that are one UTF-8 character of 2 to 4 bytes, and that
//! character is one that European prose uses: Latin letters, punctuation, symbols, emoji. Text encoded twice is
//! repaired twice. Correct text has an accented capital before a quotation mark at worst (`“CAFÉ”`), which is
//! kept apart below. Table: the Windows-1252 index of the WHATWG Encoding Standard.

use std::borrow::Cow;

/// Characters of the Windows-1252 bytes 80..=9F.
const HIGH: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// How often text may have gone through the accident.
const PASSES: usize = 2;

/// The repaired text and the number of sequences turned back (the text itself and 0 if there was nothing to do).
pub fn repair(text: &str) -> (Cow<'_, str>, u64) {
    let mut repaired = Cow::Borrowed(text);
    let mut count = 0;
    for _ in 0..PASSES {
        match pass(&repaired) {
            Some((better, n)) => {
                repaired = Cow::Owned(better);
                count += n;
            }
            None => break,
        }
    }
    (repaired, count)
}

/// One level of encoding undone; `None` if the text has no mojibake.
fn pass(text: &str) -> Option<(String, u64)> {
    let mut out = String::new();
    let (mut count, mut copied, mut at) = (0, 0, 0);
    // Every character that can start a sequence (Â Ã Ä Å Ë â ï ð) is C3 and one more byte in UTF-8.
    while let Some(skip) = text.as_bytes()[at..].iter().position(|b| *b == 0xC3) {
        at += skip;
        let after_repair = count > 0 && copied == at;
        let previous = text[..at].chars().next_back().filter(|_| !after_repair);
        match sequence(previous, &text[at..]) {
            Some((original, len)) => {
                out.push_str(&text[copied..at]);
                out.push(original);
                count += 1;
                at += len;
                copied = at;
            }
            None => at += 2,
        }
    }
    (count > 0).then(|| {
        out.push_str(&text[copied..]);
        (out, count)
    })
}

/// The character that the sequence at the start of `text` stood for, and the bytes it takes in `text`. `previous` is
/// the character before, if there is one that was not repaired itself.
fn sequence(previous: Option<char>, text: &str) -> Option<(char, usize)> {
    let mut chars = text.chars();
    let lead = byte(chars.next()?)?;
    let width = match lead {
        0xC2..=0xC5 | 0xCB => 2,
        0xE2 | 0xEF => 3,
        0xF0 => 4,
        _ => return None,
    };
    let mut utf8 = [lead, 0, 0, 0];
    for slot in &mut utf8[1..width] {
        *slot = byte(chars.next()?)?;
    }
    let original = std::str::from_utf8(&utf8[..width]).ok()?.chars().next()?;
    let used = matches!(original, '\u{80}'..='\u{17f}' | 'ˆ' | '˜' | '\u{2000}'..='\u{213f}' | '\u{2190}'..='\u{21ff}'
        | '\u{2600}'..='\u{27bf}' | '\u{fe0f}' | '\u{feff}' | '\u{fffd}' | '\u{1f000}'..='\u{1faff}');
    let next = chars.next();
    // After another sequence there is no doubt.
    let doubtful = previous.is_some_and(|p| width == 2 && closes_a_word(lead, utf8[1], p, next));
    if !used || doubtful {
        return None;
    }
    Some((original, text.len() - chars.as_str().len() - next.map_or(0, char::len_utf8)))
}

/// Whether a capital letter and a punctuation mark may well be just that, at the end of a word: `AMANHÃ”`, `“Å”`.
fn closes_a_word(lead: u8, mark: u8, previous: char, next: Option<char>) -> bool {
    // ‚ „ … ‹ ‘ ’ “ ” – — › nbsp « »
    let punctuation = matches!(mark, 0x82 | 0x84 | 0x85 | 0x8B | 0x91..=0x94 | 0x96 | 0x97 | 0x9B | 0xA0 | 0xAB | 0xBB);
    let inside = next.is_some_and(char::is_alphabetic);
    // Â and Ã start the commonest sequences; Ä and Å are whole words in northern languages.
    let in_capitals = previous.is_uppercase() || lead > 0xC3;
    punctuation && in_capitals && !inside
}

/// The Windows-1252 byte, 80..=FF, of a character.
fn byte(c: char) -> Option<u8> {
    match c {
        '\u{a0}'..='\u{ff}' => Some(c as u8),
        '\0'..'\u{80}' => None,
        _ => (0x80u8..).zip(HIGH).find(|(_, high)| *high == c).map(|(byte, _)| byte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UTF-8 bytes read as Windows-1252: the accident itself.
    fn misread(text: &str) -> String {
        let decode = |b: u8| if (0x80..0xA0).contains(&b) { HIGH[b as usize - 0x80] } else { b as char };
        text.bytes().map(decode).collect()
    }

    const PROSE: &str = "“It’s late,” said Zoë — naïve as ever… The café in São Tomé costs €5, not £4 or ½. \
        Ünal œuvre à côté Ñandú 3 × 4, ‘yes’ – ™ ✨ ❤️ 😀 ÀÊÉÎÌÕÜ ß";

    #[test]
    fn known_sequences() {
        for (bad, good, count) in [
            ("donâ€™t", "don’t", 1),
            ("â€œHiâ€\u{9d}", "“Hi”", 2),
            ("wait â€” no", "wait — no", 1),
            ("and thenâ€¦", "and then…", 1),
            ("cafÃ©", "café", 1),
            ("Ã\u{a0} la carte", "à la carte", 1),
            ("five Â\u{a0}miles", "five \u{a0}miles", 1),
            ("Ã‘andÃº", "Ñandú", 2),
            ("ESPAÃ‘A", "ESPAÑA", 1),
            ("3 Ã— 4", "3 × 4", 1),
            ("Å“uvre", "œuvre", 1),
            ("â‚¬5", "€5", 1),
            ("ðŸ˜€", "😀", 1),
            ("Ã¢â‚¬â„¢", "’", 4),
        ] {
            assert_eq!(repair(bad), (Cow::Owned(good.to_string()), count));
        }
    }

    #[test]
    fn undoes_the_accident_once_and_twice() {
        let sequences = PROSE.chars().filter(|c| !c.is_ascii()).count() as u64;
        let once = misread(PROSE);
        assert_ne!(once, PROSE);
        assert_eq!(repair(&once), (Cow::Owned(PROSE.to_string()), sequences));
        let twice = misread(&once);
        assert_eq!(repair(&twice).0, PROSE);
    }

    #[test]
    fn correct_text_is_left_alone() {
        for text in [
            "naïve café, señor",
            PROSE,
            "“CAFÉ” “DÉJÀ VU…” “AMANH\u{c3}\u{201d} “Å” SMÅ… GRÖSSE — ‘Ä’ (À–É) «É» CAFÉ’S",
            "“voilà…” “café…” été’ señor’s château âge âme pâté “forêt” à “là”…",
            "Ærø ðað “þú” ï ô Ã Â â € ™",
            "â€ and Ã alone, ð at the end ð",
            "привет мир, 你好, שלום",
            "",
            "plain",
        ] {
            assert!(matches!(repair(text), (Cow::Borrowed(same), 0) if same == text), "{text}: {:?}", repair(text));
        }
    }

    #[test]
    fn the_table_is_that_of_windows_1252() {
        // Python: bytes([b]).decode('cp1252') for the defined bytes, as code points.
        let python = [
            0x20AC, 0x81, 0x201A, 0x192, 0x201E, 0x2026, 0x2020, 0x2021, 0x2C6, 0x2030, 0x160, 0x2039, 0x152, 0x8D,
            0x17D, 0x8F, 0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x2DC, 0x2122, 0x161, 0x203A,
            0x153, 0x9D, 0x17E, 0x178,
        ];
        assert_eq!(HIGH.map(|c| c as u32), python);
    }
}
