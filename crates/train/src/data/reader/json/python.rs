//! What Python's `json` writes and JSON does not know, made strict: NaN and infinities become null, half a pair of surrogates
//! in a string becomes U+FFFD.

/// The record in strict JSON, and whether it had half a pair of surrogates; None if it is so already.
pub(super) fn mended(json: &str) -> Option<(String, bool)> {
    let bytes = json.as_bytes();
    let (mut strict, mut from, mut at, mut string, mut halves) = (String::new(), 0, 0, false, false);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let starts = |word: &str| rest.starts_with(word.as_bytes());
        let (skipped, instead) = match rest[0] {
            b'"' => {
                string = !string;
                (1, None)
            }
            b'\\' if string => match (unit(rest), unit(rest.get(6..).unwrap_or_default())) {
                (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => (12, None),
                (Some(0xd800..=0xdfff), _) => {
                    halves = true;
                    (6, Some("\\ufffd"))
                }
                _ => (2, None),
            },
            b'N' if !string && starts("NaN") => (3, Some("null")),
            b'I' if !string && starts("Infinity") => (8, Some("null")),
            b'-' if !string && starts("-Infinity") => (9, Some("null")),
            _ => (1, None),
        };
        if let Some(instead) = instead {
            strict.push_str(&json[from..at]);
            strict.push_str(instead);
            from = at + skipped;
        }
        at += skipped;
    }
    if from == 0 {
        return None;
    }
    strict.push_str(&json[from..]);
    Some((strict, halves))
}

/// The number of an escape `\uXXXX`.
fn unit(escape: &[u8]) -> Option<u32> {
    let hex = std::str::from_utf8(escape.strip_prefix(b"\\u")?.get(..4)?).ok()?;
    u32::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_json_changes() {
        for json in [r#"{"a": "NaN \"Infinity\" \\", "b\ud83d\ude00": -1}"#, r#"["\\ud83d", "é😀", null]"#] {
            assert_eq!(mended(json), None);
        }
        for (json, strict, halves) in [
            (r#"{"a": [NaN,-Infinity,Infinity], "NaN": "NaN"}"#, r#"{"a": [null,null,null], "NaN": "NaN"}"#, false),
            (r#"["\ud83d", NaN]"#, r#"["\ufffd", null]"#, true),
            (r#"["\uDE00\uD83D\uDE00\uD83Dé\\ud83d"]"#, r#"["\ufffd\uD83D\uDE00\ufffdé\\ud83d"]"#, true),
            (r#"["\ud83d\ud83d\ude00"#, r#"["\ufffd\ud83d\ude00"#, true),
        ] {
            assert_eq!(mended(json), Some((strict.to_string(), halves)), "{json}");
        }
    }
}
