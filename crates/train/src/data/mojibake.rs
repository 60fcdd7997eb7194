//! Repair of mojibake: UTF-8 that was once read as Windows-1252 or Latin-1 and stored again, e.g. `â€™` for an apostrophe.
//!
//! A sequence is turned back when its characters re-encode to bytes (80 to 9F from Windows-1252 or as C1 controls) that are
//! one UTF-8 character of 2 to 4 bytes, and that character is one that European prose uses: Latin letters, punctuation,
//! symbols, emoji. Text encoded twice is repaired twice.
//!
//! Some sequences may just as well be correct: a word in `Â Ã Ä Å Ë` and the mark behind it (`Å–Ö`, `« Â »`, `AMANHÃ”`).
//! They are turned back only in a document that has a certain one too: one whose characters never meet in any language.
//! Table: the Windows-1252 index of the WHATWG Encoding Standard.

use std::borrow::Cow;

/// Characters of the Windows-1252 bytes 80..=9F.
const HIGH: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// How often text may have gone through the accident.
const PASSES: usize = 2;

/// A text without mojibake.
#[derive(Debug, PartialEq, Eq)]
pub struct Repaired<'t> {
    /// The text itself if there was nothing to do.
    pub text: Cow<'t, str>,
    /// Sequences turned back.
    pub sequences: u64,
}

/// Turns back what is mojibake for certain.
pub fn repair(text: &str) -> Repaired<'_> {
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
    Repaired { text: repaired, sequences: count }
}

/// One level of encoding undone; `None` if the text has no mojibake for certain.
fn pass(text: &str) -> Option<(String, u64)> {
    let mut out = String::new();
    let (mut count, mut copied, mut at, mut certain) = (0, 0, 0, false);
    // Every character that can start a sequence (Â Ã Ä Å Ë â ï ð) is C3 and one more byte in UTF-8.
    while let Some(skip) = text.as_bytes()[at..].iter().position(|b| *b == 0xC3) {
        at += skip;
        match Sequence::at(text, at) {
            Some(found) => {
                out.push_str(&text[copied..at]);
                out.push(found.original);
                certain |= found.certain;
                count += 1;
                at += found.len;
                copied = at;
            }
            None => at += 2,
        }
    }
    certain.then(|| {
        out.push_str(&text[copied..]);
        (out, count)
    })
}

/// Characters that are the bytes of one other.
struct Sequence {
    original: char,
    /// Bytes that it takes in the text.
    len: usize,
    /// Whether it cannot be correct as it stands.
    certain: bool,
}

impl Sequence {
    fn at(text: &str, at: usize) -> Option<Sequence> {
        let (before, mut chars) = (&text[..at], text[at..].chars());
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
        let used = matches!(original, '\u{80}'..='\u{17f}' | 'ˆ' | '˜' | '\u{2000}'..='\u{213f}'
            | '\u{2190}'..='\u{21ff}' | '\u{2600}'..='\u{27bf}' | '\u{fe0f}' | '\u{feff}' | '\u{fffd}'
            | '\u{1f000}'..='\u{1faff}');
        let len = text.len() - at - chars.as_str().len();
        let next = chars.next();
        let correct = match width {
            2 => ends_a_word(lead, before) && follows_a_word(lead, utf8[1], before, next),
            // After `â` a ›, at the end of a longer word also ‚ „ † ‡ ™ š ž, and one more mark: `anarâš”`.
            3 => {
                let long = before.ends_with(char::is_alphabetic);
                (utf8[1] == 0x9B || long && matches!(utf8[1], 0x82 | 0x84 | 0x86 | 0x87 | 0x99 | 0x9A | 0x9E))
                    && follows_a_word(lead, utf8[2], before, next)
            }
            _ => false,
        };
        used.then_some(Sequence { original, len, certain: !correct })
    }
}

/// Whether the capital may end a word, or be one. Before it is no small letter or digit, but for `5Å`, `5 mÅ` and `oÄ`.
fn ends_a_word(lead: u8, before: &str) -> bool {
    let mut back = before.chars().rev();
    match back.next() {
        Some(c) if c.is_numeric() => lead > 0xC3,
        Some(c) if c.is_lowercase() => lead > 0xC3 && !back.next().is_some_and(char::is_alphabetic),
        _ => true,
    }
}

/// Whether the second character may be the mark behind a word, or its last letter.
fn follows_a_word(lead: u8, mark: u8, before: &str, next: Option<char>) -> bool {
    let inside = next.is_some_and(char::is_alphabetic);
    // Quotes that close with `“` and `‘` open at the bottom, not far before.
    let opened = || before.chars().rev().take(64).any(|c| matches!(c, '„' | '‚'));
    match mark {
        // … ‹ ’ ” • – — ™ › nbsp « ® · »: a letter may come next.
        0x85 | 0x8B | 0x92 | 0x94..=0x97 | 0x99 | 0x9B | 0xA0 | 0xAB | 0xAE | 0xB7 | 0xBB => true,
        // A soft hyphen: one does.
        0xAD => inside,
        // ‚ „ † ‡ § © ª ° ± ² ³ ¶ ¹ º
        0x82 | 0x84 | 0x86 | 0x87 | 0xA7 | 0xA9 | 0xAA | 0xB0..=0xB3 | 0xB6 | 0xB9 | 0xBA => !inside,
        // ‘ “
        0x91 | 0x93 => !inside || opened(),
        // Š Ž: in capitals.
        0x8A | 0x8E => !next.is_some_and(char::is_lowercase),
        // ´ for an apostrophe.
        0xB4 => lead > 0xC3,
        _ => false,
    }
}

/// The byte, 80..=FF, of a character.
fn byte(c: char) -> Option<u8> {
    match c {
        '\u{80}'..='\u{ff}' => Some(c as u8),
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
            ("voilÃ\u{a0} Â\u{a0}tout", "voilà \u{a0}tout", 2),
            ("five milesÂ\u{a0}away", "five miles\u{a0}away", 1),
            ("Ã‘andÃº", "Ñandú", 2),
            ("ESPAÃ‘A", "ESPAÑA", 1),
            ("3Ã—4", "3×4", 1),
            ("Å“uvre", "œuvre", 1),
            ("â‚¬5", "€5", 1),
            ("ðŸ˜€", "😀", 1),
            ("Ã¢â‚¬â„¢", "’", 4),
            ("donâ\u{80}\u{99}t", "don’t", 1),
            ("sÄ… czÄ™sto Ã–sterreich, Ã… og Ã˜", "są często Österreich, Å og Ø", 5),
        ] {
            assert_eq!(repair(bad), Repaired { text: Cow::Owned(good.to_string()), sequences: count });
        }
    }

    /// Sentences that are rich in the characters that start a sequence, as the accident makes them of these.
    const LANGUAGES: [&str; 18] = [
        PROSE,
        "« Où est l’élève ? » — « À côté… Garçon, un œuf ! » Noël, Œdipe, Ça, dû.",
        "„Übermut tut selten gut“, sagte Jörg – Äpfel, Öl, Straße, groß… »Nein!«",
        "”Får får får?” Nej, får får lamm – Åsa, Ärla och Örn åt ål på ön.",
        "«Å, så gøy!» – Ærlig talt: Øystein og Åse går på ski i påsken…",
        "»Rødgrød med fløde« er svært – Århus å, Ærø, Østersøen, blåbær.",
        "”Hääyöaie!” – Älä nyt, sanoi Äiti; Öljyä ja yötä, Åbo…",
        "„Þetta er ágætt,“ sagði Ýmir – Ísland, Ólafur, Ú, Æsir, ðað.",
        "“Amanhã não há pão”, disse João — À irmã, é só emoção: Ó, Água!",
        "«¿Dónde está el niño?» —¡Aquí! Ñoño, Ángel, pingüino, ÁÉÍÓÚ, año 1.º",
        "„Zażółć gęślą jaźń” – są, będą, być; Łódź, Ślimak, Żaba, Źrebak, Ćma…",
        "„Příliš žluťoučký kůň“ – Řeka, Šárka, Čáp, Ďábel, Ťapka, Ňouma…",
        "“Pijamalı hasta yağız şoföre çabucak güvendi” – İzmir, Şişli, Ğ, Çay, hâlâ…",
        "„Când, unde?” – În pădure: ăla, Ștefan știe, țară, Âme…",
        "„Árvíztűrő tükörfúrógép” – Ő, Ű, Öt szép szűzlány őrült írót nyúz.",
        "„Įlinkdama fechtuotojo špaga“ – Ąžuolas, Ėjo, Ūsai, Žuvis, Čia…",
        "“Të gjithë njerëzit” – Çdo, Është, ËMBËL: «po»…",
        "Größe 5 µm ± 2 °C, 3² ≠ 4³, ½ × ¾ · 10‰ → ✔ ♥ ☺ № 5 ™ © ® ⚔",
    ];

    /// Once and twice, with 80..=9F from Windows-1252 and as C1 controls. Ș ț ≠, and the ƒ in ă, are none of ours.
    #[test]
    fn undoes_the_accident_once_and_twice() {
        let latin = |text: &str| text.bytes().map(char::from).collect::<String>();
        for text in LANGUAGES {
            let ours = text.replace(['Ș', 'ș', 'ț', 'ă', '≠'], "");
            for once in [misread(&ours), latin(&ours)] {
                let sequences = ours.chars().filter(|c| !c.is_ascii()).count() as u64;
                assert_eq!(repair(&once), Repaired { text: Cow::Borrowed(&*ours), sequences }, "{once}");
                for twice in [misread(&once), latin(&once)] {
                    assert_eq!(repair(&twice).text, ours, "{twice}");
                }
            }
        }
    }

    /// Words that end in a character that starts a sequence, between all that may stand around a word.
    #[test]
    fn correct_text_is_left_alone() {
        let list = |items: &str| items.replace('_', "\u{a0}").split(' ').map(String::from).collect::<Vec<_>>();
        let words = list(
            "Å Ä Â Ã Ë SMÅ BLÅ PÅ TÄÄ PÄIVÄ ANARÂ DU‘Â AMANHÃ IRMÃ ĐÃ KËTË 5_mÅ 10Å oÄ uÄ A–Å L’Â §_3Ä \
             hâlâ kuâš mâž naï bað ð ï",
        );
        let marks = list(
            " . , ! ? … …” …nej ’ ’s ’S ‘ “ ” ”. “, “ga ”et › ‹ » « ›“ ‹« _» _! _ __ – — –Ö —og - / • • · ·s •Ö ™ ™, ® ®s © ° ± † ‡ \
             § ¶ ¹ ² ³ ²) º ª \u{ad}SE \u{ad}rhus :n Š ŠŽ Ž… ŠKA Ö ä z",
        );
        let mut texts = LANGUAGES.map(String::from).to_vec();
        texts.extend(list("SMÅ´s Ä´s hâlâ†” hâlâ‡’ SMÅ†… “‹â›” «â» „â“ ‚â‘ â’r â… â€ ð привет 你好 plain"));
        for before in list(" ( „ “ ” » «_ ‚ ‘ — – _ ¿ ¡ [ • \u{feff}") {
            for (word, mark) in words.iter().flat_map(|word| marks.iter().map(move |mark| (word, mark))) {
                // A quote that closes with a letter behind it has opened at the bottom.
                let mark = if mark == "“ga" && before != "„" { "“" } else { mark };
                texts.extend(["", " ", " a", "\n", "_b", "5", ")"].map(|after| format!("{before}{word}{mark}{after}")));
            }
        }
        texts.push(texts.join(" "));
        for text in &texts {
            let Repaired { text: same, sequences: count } = repair(text);
            assert!(matches!(same, Cow::Borrowed(_)) && count == 0, "{count} in {text:.60}");
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
