//! Words that a vocabulary has twice, with a space before them and without. `twin(v)` is the token whose text differs from that of `v` in the
//! space before it alone, `v` itself where there is none; a token *opens* where a word after it has no space before it: the end of a line, a
//! quotation mark. A pointer reads a token that stood after an opening one as its twin, and so does a row whose own token opens:
//!
//! ```text
//! next'_c = twin(next_c) if row c opens, else next_c        target'_i = twin(target_i) if row i opens, else target_i
//! ```
//!
//! Both are numbers of the model, `twin: [V]` and `opens: [V]`, that are set from the tokenizer when a run begins, and never trained.

use std::collections::HashMap;
use std::ops::Range;

use flashlm_kernels::{Elem, Token};

use crate::params::Layout;
use crate::tok::Tokenizer;

/// How both are called among the parameters.
pub(crate) const NAMES: [&str; 2] = ["pointer.twin", "pointer.opens"];

/// Marks after which no space stands, whatever stands before them; after the others none stands where one stands before them.
const OPEN: &str = "([{“‘«¿¡-–—/";
const OPEN_AFTER_SPACE: &str = "\"'*_`";

/// Both, of every token; or of none.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Words {
    twin: Vec<Token>,
    opens: Vec<bool>,
}

impl Words {
    /// Those of a vocabulary.
    fn of(tokenizer: &Tokenizer) -> Self {
        let v = tokenizer.vocab_size();
        let texts: Vec<Vec<u8>> = (0..v).map(|v| tokenizer.token_bytes(v as Token).to_vec()).collect();
        let known: HashMap<&[u8], Token> = texts.iter().zip(0..).map(|(text, v)| (&text[..], v)).collect();
        let mut twin: Vec<Token> = (0..v).map(|v| v as Token).collect();
        for (text, v) in texts.iter().zip(0..) {
            let Some(bare) = text.strip_prefix(b" ").filter(|bare| !bare.is_empty() && bare[0] != b' ') else {
                continue;
            };
            // Of two tokens of one text, which no tokenizer of ours has, one is known.
            if let Some(&other) = known.get(bare).filter(|_| known[&text[..]] == v) {
                (twin[usize::from(v)], twin[usize::from(other)]) = (other, v);
            }
        }
        let opens = |text: &Vec<u8>| {
            let text = String::from_utf8_lossy(text);
            let mut marks = text.chars().rev();
            match marks.next() {
                Some(last) if OPEN_AFTER_SPACE.contains(last) => marks.next().is_some_and(char::is_whitespace),
                Some(last) => OPEN.contains(last) || (last.is_whitespace() && last != ' '),
                None => false,
            }
        };
        let mut opens: Vec<bool> = texts.iter().map(opens).collect();
        opens[usize::from(tokenizer.eos())] = true;
        Words { twin, opens }
    }

    /// Takes those that parameters have; what is no token stands for the nearest.
    pub(super) fn read<E: Elem>(&mut self, params: &[E], [twin, opens]: &[Range<usize>; 2]) {
        let token = |x: &E| x.to_f64().round().clamp(0.0, (twin.len() - 1) as f64) as Token;
        self.twin.clear();
        self.twin.extend(params[twin.clone()].iter().map(token));
        self.opens.clear();
        self.opens.extend(params[opens.clone()].iter().map(|x| x.to_f64() > 0.5));
    }

    /// Why these are none that a tokenizer has, if they are not.
    pub(super) fn wrong(&self) -> Option<String> {
        let v =
            self.twin.iter().zip(0_usize..).position(|(&twin, v)| usize::from(self.twin[usize::from(twin)]) != v)?;
        Some(format!(
            "token {v}, whose twin is {}, whose twin is {}",
            self.twin[v],
            self.twin[usize::from(self.twin[v])]
        ))
    }

    /// Whether a word after this token has no space before it.
    pub(super) fn opens(&self, token: Token) -> bool {
        self.opens.get(usize::from(token)).is_some_and(|&opens| opens)
    }

    /// What `token` is read as, after a row that opens or not; what is none of the vocabulary, as itself.
    pub(super) fn read_as(&self, opens: bool, token: Token) -> Token {
        self.twin.get(usize::from(token)).filter(|_| opens).copied().unwrap_or(token)
    }

    /// As numbers: `twin`, `opens`.
    fn numbers(&self) -> [Vec<f32>; 2] {
        let opens = self.opens.iter().map(|&opens| f32::from(u8::from(opens)));
        [self.twin.iter().map(|&v| v.into()).collect(), opens.collect()]
    }
}

/// Sets the words of a model that has them, in parameters that are fresh.
pub fn set_words(layout: &Layout, params: &mut [f32], tokenizer: &Tokenizer) {
    let places = NAMES.map(|name| layout.find(name).map(|spec| spec.range.clone()));
    if let [Some(twin), Some(opens)] = places {
        let [twins, opening] = Words::of(tokenizer).numbers();
        params[twin].copy_from_slice(&twins);
        params[opens].copy_from_slice(&opening);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_after_a_space_are_those_after_a_quote_or_a_line() {
        let text = "The cat said: \"Cat, come (the cat) to-day!\"\nCat and the Cat \"came\".\n\tThe 'cat' ".repeat(40);
        let tokenizer = Tokenizer::train_bpe([text.as_str()].into_iter(), 320).unwrap();
        let words = Words::of(&tokenizer);
        assert_eq!(words.wrong(), None);
        let encoded = |text: &str| {
            let mut tokens = Vec::new();
            tokenizer.encode(text, &mut tokens);
            tokens
        };
        let one = |text: &str| match encoded(text)[..] {
            [token] => token,
            ref more => panic!("{text:?} is {more:?}"),
        };
        for word in ["cat", "Cat", "the"] {
            let [bare, spaced] = [one(word), one(&format!(" {word}"))];
            assert_eq!((words.read_as(true, bare), words.read_as(true, spaced)), (spaced, bare), "{word}");
            assert_eq!((words.read_as(false, bare), words.read_as(false, spaced)), (bare, spaced));
        }
        let opens = |text: &str| words.opens(one(text));
        assert!(
            opens("\n") && opens(" \"") && opens(" (") && opens("-") && opens("\t") && words.opens(tokenizer.eos())
        );
        assert!(!opens("\"") && !opens(" cat") && !opens(".") && !opens(" ") && !opens(","));
        assert_eq!(words.read_as(true, one("\n")), one("\n"));
        let twins = (0..).zip(&words.twin).filter(|(v, twin)| v != *twin).count();
        let spaced = (0..tokenizer.vocab_size() as Token).filter(|&v| {
            let text = tokenizer.token_bytes(v);
            text.len() > 1
                && text[0] == b' '
                && text[1] != b' '
                && encoded(&String::from_utf8_lossy(&text[1..])).len() == 1
        });
        assert_eq!(twins, 2 * spaced.count());
    }
}
