//! The grammar as a graph of pieces, for text that need not follow it: rules and choices become forks, and a piece of text ends
//! where a sentence does.
//!
//! A sentence ends with `.`, `!` or `?`, perhaps a `"`, and a space or a new paragraph, in the text as in the grammar. The way from
//! one start of a sentence to the next is a template: [`Graph::read`] matches it with free slots, any value that the slot can hold.

use super::grammar::{Grammar, Node, Table};

/// A piece and where it leads: always to a lower number, [`END`] last.
pub struct Step<'g> {
    pub piece: Piece<'g>,
    pub next: usize,
}

/// What a step writes or keeps.
pub enum Piece<'g> {
    End,
    Text(&'g str),
    Slot { slot: usize, capital: bool },
    Set { slot: usize, value: &'g str },
    Draw { table: usize, column: usize, bind: &'g [usize] },
    Fork(Vec<usize>),
}

/// The end of every story.
pub const END: usize = 0;

/// Where a value of a slot comes from: a column of a table, drawn together with `bind`, a slot for each column.
pub struct Origin<'g> {
    pub table: usize,
    pub column: usize,
    pub bind: &'g [usize],
}

/// The grammar in this form.
pub struct Graph<'g> {
    grammar: &'g Grammar,
    steps: Vec<Step<'g>>,
    /// Where a story begins.
    pub story: usize,
    /// Whether a sentence starts at a step.
    starts: Vec<bool>,
    /// Of each slot.
    origins: Vec<Vec<Origin<'g>>>,
}

/// What was read of one sentence.
#[derive(Clone)]
pub struct Reading {
    /// The step after it; within a template where the text ends too early.
    pub end: usize,
    pub events: Vec<Event>,
}

/// What a reading met, in its order.
#[derive(Clone, Copy)]
pub enum Event {
    /// A slot is mentioned: a row of its origin with this number.
    Mention { slot: usize, origin: usize, row: usize },
    /// The draw of this step took a row.
    Drawn { step: usize, row: usize },
    /// In place of a row of this draw, one of another table that its slot can hold: a boy's name for a girl's.
    Foreign { step: usize, origin: usize, row: usize },
    /// The value of this step is kept.
    Kept { step: usize },
}

/// What the last characters were, as far as the end of a sentence goes.
#[derive(Clone, Copy, PartialEq)]
enum Tail {
    Other,
    Stop,
    Quote,
    Ended,
}

impl Tail {
    fn after(self, c: char) -> Tail {
        match (c, self) {
            ('.' | '!' | '?', _) => Tail::Stop,
            ('"', Tail::Stop) => Tail::Quote,
            (' ' | '\n', Tail::Stop | Tail::Quote) => Tail::Ended,
            _ => Tail::Other,
        }
    }
}

/// The text cut after each end of a sentence; `tail` is what stands before it.
fn cut(text: &str, mut tail: Tail) -> Vec<&str> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    for (at, c) in text.char_indices() {
        tail = tail.after(c);
        if tail == Tail::Ended {
            pieces.push(&text[start..=at]);
            start = at + 1;
        }
    }
    pieces.extend((start < text.len()).then(|| &text[start..]));
    pieces
}

/// The sentences of a text.
pub fn sentences(text: &str) -> Vec<&str> {
    cut(text, Tail::Other)
}

impl<'g> Graph<'g> {
    /// The graph of a grammar.
    pub fn new(grammar: &'g Grammar) -> Self {
        let origins = grammar.slots.iter().map(|_| Vec::new()).collect();
        let end = Step { piece: Piece::End, next: END };
        let mut graph = Graph { grammar, steps: vec![end], story: END, starts: Vec::new(), origins };
        graph.story = graph.lay(&grammar.story, END);
        graph.find_starts();
        graph
    }

    fn add(&mut self, piece: Piece<'g>, next: usize) -> usize {
        self.steps.push(Step { piece, next });
        self.steps.len() - 1
    }

    /// Lays the nodes before step `next` and returns the first.
    fn lay(&mut self, nodes: &'g [Node], mut next: usize) -> usize {
        for node in nodes.iter().rev() {
            next = match node {
                // What stands before it may be the end of a sentence.
                Node::Text(text) => {
                    cut(text, Tail::Stop).into_iter().rev().fold(next, |next, text| self.add(Piece::Text(text), next))
                }
                Node::Slot { slot, capital } => self.add(Piece::Slot { slot: *slot, capital: *capital }, next),
                Node::Set { slot, value } => self.add(Piece::Set { slot: *slot, value }, next),
                Node::Choice(branches) => {
                    let ways = branches.iter().map(|branch| self.lay(&branch.body, next)).collect();
                    self.add(Piece::Fork(ways), next)
                }
                Node::Draw { table, column, bind } => {
                    for (column, &slot) in bind.iter().enumerate() {
                        let known = |origin: &Origin| origin.table == *table && origin.column == column;
                        if !self.origins[slot].iter().any(known) {
                            self.origins[slot].push(Origin { table: *table, column, bind });
                        }
                    }
                    self.add(Piece::Draw { table: *table, column: *column, bind }, next)
                }
            };
        }
        next
    }

    /// Marks the steps where a sentence can start.
    fn find_starts(&mut self) {
        self.starts = vec![false; self.steps.len()];
        self.starts[self.story] = true;
        let mut tails = vec![Vec::new(); self.steps.len()];
        tails[self.story].push(Tail::Ended);
        for (at, step) in self.steps.iter().enumerate().rev() {
            let before = std::mem::take(&mut tails[at]);
            let mut to = |next: usize, tail: Tail| {
                if !tails[next].contains(&tail) {
                    tails[next].push(tail);
                }
            };
            for tail in before {
                match &step.piece {
                    Piece::End => {}
                    Piece::Set { .. } => to(step.next, tail),
                    Piece::Fork(ways) => ways.iter().for_each(|&way| to(way, tail)),
                    Piece::Slot { .. } | Piece::Draw { .. } => to(step.next, Tail::Other),
                    Piece::Text(text) => {
                        let tail = text.chars().fold(tail, Tail::after);
                        self.starts[step.next] |= tail == Tail::Ended;
                        to(step.next, tail);
                    }
                }
            }
        }
    }

    /// The steps where a sentence can start.
    pub fn starts(&self) -> impl Iterator<Item = usize> {
        (0..self.steps.len()).filter(|&at| self.starts[at])
    }

    /// A step by its number.
    pub fn step(&self, at: usize) -> &Step<'g> {
        &self.steps[at]
    }

    /// A table by its number.
    pub fn table(&self, number: usize) -> &'g Table {
        &self.grammar.tables[number]
    }

    /// Where values of a slot come from.
    pub fn origins(&self, slot: usize) -> &[Origin<'g>] {
        &self.origins[slot]
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.origins.len()
    }

    /// For each step, whether it lies on a way from `at`; with `one`, not beyond the next start of a sentence.
    pub fn reach(&self, at: usize, one: bool) -> Vec<bool> {
        let mut reached = vec![false; self.steps.len()];
        reached[at] = true;
        for from in (0..=at).rev() {
            if !reached[from] || (one && from != at && self.starts[from]) {
                continue;
            }
            match &self.steps[from].piece {
                Piece::Fork(ways) => ways.iter().for_each(|&way| reached[way] = true),
                _ => reached[self.steps[from].next] = true,
            }
        }
        reached
    }

    /// All readings of a sentence by the templates that start at step `at`. Text that ends within a template is read up to there.
    pub fn read(&self, at: usize, sentence: &str) -> Vec<Reading> {
        let (mut readings, mut events) = (Vec::new(), Vec::new());
        self.follow(at, sentence, &mut events, &mut readings);
        readings
    }

    fn follow(&self, at: usize, rest: &str, events: &mut Vec<Event>, out: &mut Vec<Reading>) {
        if rest.is_empty() {
            out.push(Reading { end: at, events: events.clone() });
            return;
        }
        let next = self.steps[at].next;
        // Whether the text ends within this piece.
        let mut cut_off = false;
        let mut then = |event: Option<Event>, rest: &str| {
            let before = events.len();
            events.extend(event);
            self.follow(next, rest, events, out);
            events.truncate(before);
        };
        match &self.steps[at].piece {
            // The space before a sentence too many.
            Piece::End if rest.trim_start().is_empty() => out.push(Reading { end: at, events: events.clone() }),
            Piece::End => {}
            Piece::Text(text) => match rest.strip_prefix(text) {
                Some(rest) => then(None, rest),
                None => cut_off = text.starts_with(rest),
            },
            Piece::Set { .. } => then(Some(Event::Kept { step: at }), rest),
            Piece::Fork(ways) => ways.iter().for_each(|&way| self.follow(way, rest, events, out)),
            Piece::Slot { slot, capital } => {
                for (origin, Origin { table, column, .. }) in self.origins[*slot].iter().enumerate() {
                    let rows = &self.table(*table).rows;
                    for (row, cells) in rows.iter().enumerate() {
                        // Rows that say the same are one.
                        let known = || rows[..row].iter().any(|other| other[*column] == cells[*column]);
                        match fit(rest, &cells[*column], *capital) {
                            Fit::Whole(rest) if !known() => {
                                then(Some(Event::Mention { slot: *slot, origin, row }), rest);
                            }
                            Fit::CutOff => cut_off = true,
                            _ => {}
                        }
                    }
                }
            }
            Piece::Draw { table, column, bind } => {
                for (row, cells) in self.table(*table).rows.iter().enumerate() {
                    match fit(rest, &cells[*column], false) {
                        Fit::Whole(rest) => then(Some(Event::Drawn { step: at, row }), rest),
                        Fit::CutOff => cut_off = true,
                        Fit::No => {}
                    }
                }
                let others = bind.get(*column).map_or(&[][..], |&slot| self.origins(slot));
                for (origin, other) in others.iter().enumerate().filter(|(_, other)| other.table != *table) {
                    for (row, cells) in self.table(other.table).rows.iter().enumerate() {
                        if let Fit::Whole(rest) = fit(rest, &cells[other.column], false) {
                            then(Some(Event::Foreign { step: at, origin, row }), rest);
                        }
                    }
                }
            }
        }
        if cut_off {
            out.push(Reading { end: at, events: events.clone() });
        }
    }
}

/// How a text begins with a value.
enum Fit<'t> {
    /// With all of it, and what follows.
    Whole(&'t str),
    /// The text ends within it.
    CutOff,
    No,
}

/// Compares the start of a text with a value, which is written with a capital first letter if asked for.
fn fit<'t>(text: &'t str, value: &str, capital: bool) -> Fit<'t> {
    let (found, wanted) = (text.as_bytes(), value.as_bytes());
    let n = found.len().min(wanted.len());
    let first = |byte: u8| if capital { byte.to_ascii_uppercase() } else { byte };
    if n == 0 || found[0] != first(wanted[0]) || found[1..n] != wanted[1..n] {
        Fit::No
    } else if n == wanted.len() {
        Fit::Whole(&text[n..])
    } else {
        Fit::CutOff
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GRAMMAR, story};
    use super::*;

    #[test]
    fn a_sentence_ends_after_its_quote_and_a_space() {
        let text = "One. \"Two!\" said A. \"Three?\"\nFour";
        assert_eq!(sentences(text), ["One. ", "\"Two!\" ", "said A. ", "\"Three?\"\n", "Four"]);
        assert_eq!(cut("\" a. b", Tail::Stop), ["\" ", "a. ", "b"]);
    }

    /// A name has one meaning, or a contradiction would be none.
    #[test]
    fn a_slot_holds_words_of_one_table_or_names() {
        let graph = Graph::new(&GRAMMAR);
        for slot in 0..graph.slots() {
            let tables: Vec<&str> = graph.origins(slot).iter().map(|origin| &*graph.table(origin.table).name).collect();
            let names = tables.iter().all(|table| ["girl", "boy", "pet"].contains(table));
            assert!(names || tables.iter().all(|table| *table == tables[0]), "{}: {tables:?}", GRAMMAR.slots[slot]);
        }
    }

    #[test]
    fn every_sentence_of_a_story_is_read_and_ends_where_one_starts() {
        let graph = Graph::new(&GRAMMAR);
        for index in 0..200 {
            let text = story(2, index);
            let mut at = vec![graph.story];
            for sentence in sentences(&text) {
                let mut next: Vec<usize> =
                    at.iter().flat_map(|&at| graph.read(at, sentence)).map(|reading| reading.end).collect();
                next.dedup();
                assert!(!next.is_empty(), "{sentence:?} of {text}");
                at = next;
                assert!(at.iter().all(|&at| at == END || graph.starts[at]), "{sentence:?}");
            }
            assert!(at.contains(&END), "{text}");
        }
    }
}
