//! What the readers met in the files and went on from, to be told once at the end: each count that is not zero is a note.

/// Counts of what is odd but no error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Records, rows or cells without text: null, or empty.
    pub without: u64,
    /// Records whose text was a list, or lay in one.
    pub joined: u64,
    /// Records of JSON with half of a pair of surrogates in their text.
    pub halves: u64,
    /// Separators of documents inside lines of text, or in records, where they separate nothing.
    pub separators: u64,
    /// Carriage returns in text that no newline follows.
    pub returns: u64,
    /// Documents longer than a document may be, read in pieces.
    pub cut: u64,
    /// Files read as text whose first line is a JSON object.
    pub json: u64,
    /// Files named as plain text that begin like HTML.
    pub pages: u64,
}

impl Oddities {
    /// One clause for each count that is not zero, with what to do.
    pub fn notes(&self) -> Vec<String> {
        let count = |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
        let notes = [
            (
                self.without,
                count(self.without, "record held no text and was", "records held no text and were") + " skipped",
            ),
            (
                self.joined,
                count(
                    self.joined,
                    "record holds its text as a list, whose parts were",
                    "records hold their text as lists, whose parts were",
                ) + " joined by newlines; write one string per record if that is not intended",
            ),
            (
                self.halves,
                count(self.halves, "record has", "records have")
                    + " half a character (a lone surrogate), which became U+FFFD; cut texts between characters",
            ),
            (
                self.separators,
                count(self.separators, "separator <|endoftext|> stands", "separators <|endoftext|> stand")
                    + " inside lines or records and count as text; to separate documents, put each on its own line of a text \
                     file",
            ),
            (
                self.returns,
                count(self.returns, "carriage return is", "carriage returns are")
                    + " not followed by a newline and count as text; if they end lines, convert the file (`tr '\\r' '\\n'`)",
            ),
            (
                self.cut,
                count(self.cut, "document longer than 64 MB was", "documents longer than 64 MB were")
                    + " read in pieces; put lines <|endoftext|> between documents",
            ),
            (
                self.json,
                count(self.json, "file was read as text but looks", "files were read as text but look")
                    + " like JSON lines; rename to .jsonl if the text is in a field of each line",
            ),
            (
                self.pages,
                count(self.pages, "plain text file starts", "plain text files start")
                    + " like HTML; if it is the error page of a server, fetch it again",
            ),
        ];
        notes.into_iter().filter(|(n, _)| *n > 0).map(|(_, note)| note).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_tell_what_was_met_and_nothing_else() {
        assert!(Oddities::default().notes().is_empty());
        let oddities = Oddities { cut: 1, separators: 3, without: 1, ..Oddities::default() };
        let notes = oddities.notes();
        assert_eq!(notes.len(), 3);
        assert_eq!(notes[0], "1 record held no text and was skipped");
        assert!(notes[1].starts_with("3 separators <|endoftext|> stand inside lines or records"), "{}", notes[1]);
        assert!(notes[2].starts_with("1 document longer than 64 MB was read in pieces"), "{}", notes[2]);
        let all =
            Oddities { without: 2, joined: 4, halves: 6, separators: 8, returns: 10, cut: 12, json: 14, pages: 16 };
        for (note, n) in all.notes().iter().zip([2, 4, 6, 8, 10, 12, 14, 16]) {
            assert!(note.starts_with(&format!("{n} ")), "{note}");
        }
    }
}
