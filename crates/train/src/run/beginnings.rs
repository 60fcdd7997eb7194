//! What samples begin with where the text is not made of stories: the first words of held-out documents.

/// Words of a prompt, and the most characters of one.
const WORDS: usize = 4;
const CHARACTERS: usize = 40;

/// The beginnings of held-out documents.
#[derive(Default)]
pub(super) struct Beginnings {
    /// Whether a document begins as a prompt does.
    fitting: bool,
    /// Of the first documents, all different, as many as there are prompts.
    first: Vec<String>,
}

impl Beginnings {
    /// Takes note of a document.
    pub fn see(&mut self, document: &str, prompts: &[String]) {
        self.fitting |= prompts.iter().any(|prompt| document.trim_start().starts_with(prompt.as_str()));
        if self.first.len() < prompts.len() {
            let words = words(document);
            if !words.is_empty() && !self.first.contains(&words) {
                self.first.push(words);
            }
        }
    }

    /// Puts them in the place of prompts that no document begins with.
    pub fn instead_of(self, prompts: &mut Vec<String>) {
        if !self.fitting && !self.first.is_empty() {
            *prompts = self.first;
        }
    }
}

/// The first words of the first line that has any; of a text without spaces, the first characters.
fn words(document: &str) -> String {
    let line = document.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let ends = line.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, _)| at);
    let end = ends.chain([line.len()]).nth(WORDS - 1).unwrap_or(line.len());
    line[..end].chars().take(CHARACTERS).collect::<String>().trim_end().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(documents: &[&str]) -> Vec<String> {
        let mut prompts = ["Once upon a time", "One day"].map(String::from).to_vec();
        let mut beginnings = Beginnings::default();
        documents.iter().for_each(|document| beginnings.see(document, &prompts));
        beginnings.instead_of(&mut prompts);
        prompts
    }

    #[test]
    fn stories_keep_their_prompts_and_other_texts_get_their_own() {
        let kept = ["Once upon a time", "One day"];
        assert_eq!(chosen(&["A fox.", "\nOnce upon a time there was"]), kept);
        assert_eq!(chosen(&[]), kept);
        assert_eq!(chosen(&["", " \n"]), kept);
        let letters = "\n  Dear Sir or Madam, I write to you\nas";
        assert_eq!(chosen(&[letters, letters, "fn main() {", "more"]), ["Dear Sir or Madam,", "fn main() {"]);
        assert_eq!(words("hello"), "hello");
        assert_eq!(words(&"\u{4e00}".repeat(50)), "\u{4e00}".repeat(40));
    }
}
