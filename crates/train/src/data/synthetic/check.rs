//! What a story says of itself, compared with itself: which kinds of contradiction it has.
//!
//! Sentence by sentence, a text is aligned with the templates of the grammar with their slots free (`graph.rs`). Of all alignments
//! the one with the least cost is taken; its costs are its contradictions:
//!
//! ```text
//! 1   for each slot that is mentioned with another value than before (once, however often it changes); two people of one name
//! 2   the text ends where no story does, or goes on after its end
//! 3   a sentence that the grammar does not have at this place (1 for each further one)
//! 7   a sentence that no template can write
//! ```
//!
//! A slot that has no value yet takes that of its first mention, and after a contradiction the newer value. After a sentence that
//! no template can write, the story may go on anywhere later in the grammar.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::sync::LazyLock;

use super::GRAMMAR;
use super::graph::{END, Event, Graph, Piece, Reading, sentences};

/// A kind of contradiction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Another name, or one that two have.
    Name,
    /// He for she, his for her, boy for girl.
    Pronoun,
    /// Another animal or relative, or what belongs to another animal.
    Kind,
    /// Another colour.
    Colour,
    /// Another number.
    Count,
    /// Another place, or piece of furniture.
    Place,
    /// Another day of the week.
    Day,
    /// Another thing of any other sort: what is worn, lost, built, baked or learnt.
    Thing,
    /// A sentence of the grammar where it does not have it.
    Order,
    /// The text ends too early, or not where it should.
    Ending,
    /// A sentence that is not of the grammar.
    Words,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 11] = [
        Kind::Name,
        Kind::Pronoun,
        Kind::Kind,
        Kind::Colour,
        Kind::Count,
        Kind::Place,
        Kind::Day,
        Kind::Thing,
        Kind::Order,
        Kind::Ending,
        Kind::Words,
    ];

    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Name => "name",
            Kind::Pronoun => "pronoun",
            Kind::Kind => "kind",
            Kind::Colour => "colour",
            Kind::Count => "count",
            Kind::Place => "place",
            Kind::Day => "day",
            Kind::Thing => "thing",
            Kind::Order => "order",
            Kind::Ending => "ending",
            Kind::Words => "words",
        }
    }

    /// That of a column of a table. Tables within a rule are named by what they fill.
    fn of(table: &str, column: &str) -> Kind {
        match (table.split('=').next().unwrap_or(table), column) {
            (_, "he" | "him" | "his" | "child") => Kind::Pronoun,
            ("girl" | "boy" | "pet" | "boat", _) => Kind::Name,
            ("grown" | "animal" | "critter" | "bird", _) => Kind::Kind,
            ("color" | "fur", _) => Kind::Colour,
            ("number", _) => Kind::Count,
            ("place" | "home" | "indoor" | "outside" | "room" | "water" | "how", _) => Kind::Place,
            ("week", _) => Kind::Day,
            _ => Kind::Thing,
        }
    }
}

const SLOT: u32 = 1;
const ENDING: u32 = 2;
const ORDER: u32 = 3;
const WORDS: u32 = 7;

static GRAPH: LazyLock<Graph<'static>> = LazyLock::new(|| Graph::new(&GRAMMAR));

/// The kinds of contradiction of a text; none for a story of the grammar.
pub fn contradictions(text: &str) -> BTreeSet<Kind> {
    Search { graph: &GRAPH, sentences: sentences(text), anywhere: Vec::new() }.run()
}

/// An alignment of the first sentences.
#[derive(Clone)]
struct Way<'g> {
    cost: u32,
    /// Sentences that are aligned.
    done: usize,
    /// The step reached.
    at: usize,
    how: How,
    slots: Vec<Held<'g>>,
    kinds: BTreeSet<Kind>,
}

/// How a way goes on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum How {
    /// From its step.
    On,
    /// From any later start, since the last sentence was not understood.
    Lost,
    /// From any start.
    Jump,
}

/// What a slot holds; empty for nothing.
#[derive(Clone, Copy, Default)]
struct Held<'g> {
    value: &'g str,
    /// Whether it has contradicted itself.
    broken: bool,
}

struct Search<'g, 't> {
    graph: &'g Graph<'g>,
    sentences: Vec<&'t str>,
    /// Of each sentence up to the farthest that was asked for, its readings from every start.
    anywhere: Vec<Vec<(usize, Reading)>>,
}

impl<'g> Search<'g, '_> {
    /// The kinds of the cheapest way to the end (Dijkstra, "A note on two problems in connexion with graphs", 1959).
    fn run(mut self) -> BTreeSet<Kind> {
        let slots = vec![Held::default(); self.graph.slots()];
        let start = Way { cost: 0, done: 0, at: self.graph.story, how: How::On, slots, kinds: BTreeSet::new() };
        let (mut ways, mut queue, mut seen) = (Vec::new(), BinaryHeap::new(), HashSet::new());
        let n = self.sentences.len();
        let mut next = vec![start];
        loop {
            for way in next {
                // The cheapest first, then the farthest, then the oldest.
                queue.push(Reverse((way.cost, n - way.done, ways.len())));
                ways.push(Some(way));
            }
            let Reverse((.., number)) = queue.pop().expect("a sentence can always be left out");
            let way = ways[number].take().expect("each is taken once");
            next = Vec::new();
            if !seen.insert((way.done, way.at, way.how)) {
                continue;
            }
            if way.done == n {
                if way.at == END {
                    return way.kinds;
                }
                next.push(Way { at: END, ..way.and(Kind::Ending, ENDING) });
                continue;
            }
            next = self.further(way);
        }
    }

    /// All ways that are one sentence, or one change of mind, longer.
    fn further(&mut self, way: Way<'g>) -> Vec<Way<'g>> {
        let graph = self.graph;
        let mut all = Vec::new();
        if way.how == How::On {
            let readings = graph.read(way.at, self.sentences[way.done]);
            all.extend(readings.iter().map(|reading| way.read(graph, reading)));
        } else {
            let later = (way.how == How::Lost).then(|| graph.reach(way.at, false));
            let fits = |start: usize| later.as_ref().is_none_or(|later| later[start]);
            let readings = self.anywhere(way.done).iter().filter(|(start, _)| fits(*start));
            all.extend(readings.map(|(_, reading)| way.read(graph, reading)));
        }
        if way.how != How::Jump {
            let jump = match way.at {
                END => way.and(Kind::Ending, ENDING),
                _ if way.kinds.contains(&Kind::Order) => way.and(Kind::Order, 1),
                _ => way.and(Kind::Order, ORDER),
            };
            all.push(Way { how: How::Jump, ..jump });
            let after = if way.at == END { way.and(Kind::Ending, ENDING) } else { way };
            let skipped = Way { done: after.done + 1, how: How::Lost, ..after.and(Kind::Words, WORDS) };
            // It may have been the last.
            let last = graph.reach(skipped.at, true)[END];
            all.extend(last.then(|| Way { at: END, ..skipped.clone() }));
            all.push(skipped);
        }
        all
    }

    /// Readings of a sentence from every start.
    fn anywhere(&mut self, number: usize) -> &[(usize, Reading)] {
        for sentence in &self.sentences[self.anywhere.len().min(number + 1)..=number] {
            let from = |start| self.graph.read(start, sentence).into_iter().map(move |reading| (start, reading));
            self.anywhere.push(self.graph.starts().flat_map(from).collect());
        }
        &self.anywhere[number]
    }
}

impl<'g> Way<'g> {
    /// The same with a contradiction.
    fn and(&self, kind: Kind, cost: u32) -> Way<'g> {
        let mut way = self.clone();
        way.cost += cost;
        way.kinds.insert(kind);
        way
    }

    /// One sentence further.
    fn read(&self, graph: &'g Graph<'g>, reading: &Reading) -> Way<'g> {
        let mut way = Way { done: self.done + 1, at: reading.end, how: How::On, ..self.clone() };
        for event in &reading.events {
            way.take(graph, *event);
        }
        way
    }

    fn take(&mut self, graph: &'g Graph<'g>, event: Event) {
        match event {
            Event::Kept { step } => {
                if let Piece::Set { slot, value } = graph.step(step).piece {
                    self.slots[slot].value = value;
                }
            }
            Event::Drawn { step, row } => {
                let Piece::Draw { table, bind, .. } = graph.step(step).piece else { return };
                let table = graph.table(table);
                let name = &table.rows[row][0];
                let another = |slot| self.slots.iter().enumerate().any(|(i, held)| i != slot && held.value == name);
                if let Some(&slot) = bind.first()
                    && Kind::of(&table.name, "") == Kind::Name
                    && another(slot)
                {
                    self.contradict(slot, Kind::Name);
                }
                for (&slot, value) in bind.iter().zip(&table.rows[row]) {
                    self.slots[slot].value = value;
                }
            }
            Event::Foreign { step, origin, row } => {
                let Piece::Draw { column, bind, .. } = graph.step(step).piece else { return };
                let slot = bind[column];
                let origin = &graph.origins(slot)[origin];
                let table = graph.table(origin.table);
                self.contradict(slot, Kind::of(&table.name, &table.columns[origin.column]));
                self.slots[slot].value = &table.rows[row][origin.column];
            }
            Event::Mention { slot, origin, row } => {
                let origin = &graph.origins(slot)[origin];
                let table = graph.table(origin.table);
                let value = &*table.rows[row][origin.column];
                let before = std::mem::replace(&mut self.slots[slot].value, value);
                if before.is_empty() && origin.column == 0 {
                    // What goes with it is known from now on.
                    for (&slot, value) in origin.bind.iter().zip(&table.rows[row]) {
                        if self.slots[slot].value.is_empty() {
                            self.slots[slot].value = value;
                        }
                    }
                } else if !before.is_empty() && before != value {
                    self.contradict(slot, Kind::of(&table.name, &table.columns[origin.column]));
                }
            }
        }
    }

    fn contradict(&mut self, slot: usize, kind: Kind) {
        if !std::mem::replace(&mut self.slots[slot].broken, true) {
            self.cost += SLOT;
        }
        self.kinds.insert(kind);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{bits, story};
    use super::*;

    fn one(kind: Kind) -> BTreeSet<Kind> {
        BTreeSet::from([kind])
    }

    #[test]
    fn a_true_story_has_no_contradiction() {
        for index in 0..2000 {
            let text = story(21, index);
            assert_eq!(contradictions(&text), BTreeSet::new(), "{text}");
        }
    }

    /// Where `word` stands in the text as a whole word.
    fn places(text: &str, word: &str) -> Vec<usize> {
        let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
        let found = text.match_indices(word).map(|(at, _)| at);
        found
            .filter(|&at| edge(text[..at].chars().next_back()) && edge(text[at + word.len()..].chars().next()))
            .collect()
    }

    /// One mention of a value is changed into another one that the story does not have. Where the changed story is still one of
    /// the grammar (`bits` knows, by another way), nothing was mentioned; in all others, just that kind is found.
    #[test]
    fn one_changed_value_is_one_contradiction_of_its_kind() {
        let grammar = &*GRAMMAR;
        // A word that the rules or other tables have too may stand for something else.
        let rules = [include_str!("frame.txt"), include_str!("indoors.txt"), include_str!("outdoors.txt")].concat();
        let tables = |word: &str| {
            let has = |cells: &Vec<String>| cells.iter().any(|cell| !places(cell, word).is_empty());
            grammar.tables.iter().filter(|table| table.rows.iter().any(has)).count()
        };
        let single = |word: &str| places(&rules, word).is_empty() && tables(word) == 1;
        let mut found: BTreeMap<Kind, usize> = BTreeMap::new();
        for index in 0..150 {
            let text = story(22, index);
            for table in &grammar.tables {
                let words = table.rows.iter().map(|row| &*row[0]).filter(|word| single(word));
                let (there, not): (Vec<_>, Vec<_>) = words.partition(|word| !places(&text, word).is_empty());
                for word in there {
                    // One that can stand wherever the word can: one piece less than six is never ten.
                    let has = |word: &str, i: usize| table.rows.iter().any(|row| row[i] == word);
                    let stands = |other: &&&str| (0..table.columns.len()).all(|i| !has(word, i) || has(other, i));
                    let Some(other) = not.iter().cycle().skip(index as usize).take(not.len()).find(stands) else {
                        continue;
                    };
                    let all = places(&text, word);
                    let at = all[index as usize % all.len()];
                    // Part of a longer expression, such as "in the park", where another word need not fit.
                    let longer = |cell: &&String| {
                        let within = cell.find(word).filter(|&i| cell.len() > word.len() && i <= at);
                        within.is_some_and(|i| text[at - i..].starts_with(&***cell))
                    };
                    if table.rows.iter().flatten().any(|cell| longer(&cell)) {
                        continue;
                    }
                    let changed = format!("{}{other}{}", &text[..at], &text[at + word.len()..]);
                    if bits(&changed).is_none() {
                        let kind = Kind::of(&table.name, "");
                        assert_eq!(contradictions(&changed), one(kind), "{word} -> {other}: {changed}");
                        *found.entry(kind).or_default() += 1;
                    }
                }
            }
        }
        for kind in [Kind::Name, Kind::Kind, Kind::Colour, Kind::Count, Kind::Place, Kind::Day, Kind::Thing] {
            assert!(found.get(&kind).is_some_and(|&n| n >= 30), "{kind:?}: {found:?}");
        }
    }

    #[test]
    fn one_changed_pronoun_is_found() {
        let pairs = [("he", "she"), ("He", "She"), ("his", "her"), ("boy", "girl")];
        let mut found = 0;
        for index in 0..150 {
            let text = story(23, index);
            for (a, b) in pairs.into_iter().chain(pairs.map(|(a, b)| (b, a))) {
                for at in places(&text, a) {
                    let changed = format!("{}{b}{}", &text[..at], &text[at + a.len()..]);
                    // "Her" is him, too.
                    let kinds = contradictions(&changed);
                    let unknown = kinds.contains(&Kind::Words) && (a, b) == ("her", "his");
                    // A boy with the name of a girl: one of the two is wrong.
                    let named = kinds == one(Kind::Name) && ["boy", "girl"].contains(&a);
                    if bits(&changed).is_none() && !unknown && !named {
                        assert_eq!(kinds, one(Kind::Pronoun), "{a} -> {b}: {changed}");
                        found += 1;
                    }
                }
            }
        }
        assert!(found > 150, "{found}");
    }

    #[test]
    fn sentences_in_another_order_are_found() {
        for index in 0..150 {
            let text = story(24, index);
            let mut all = sentences(&text);
            let i = 1 + index as usize % (all.len() - 3);
            all.swap(i, i + 1);
            let swapped = all.concat();
            all.swap(i, i + 1);
            let doubled = [&all[..=i], &all[i..]].concat().concat();
            let left_out = [&all[..i], &all[i + 1..]].concat().concat();
            for changed in [swapped, doubled, left_out] {
                if bits(&changed).is_none() {
                    assert_eq!(contradictions(&changed), one(Kind::Order), "{i} of {text}\n{changed}");
                }
            }
        }
    }

    #[test]
    fn an_end_that_is_none_is_found() {
        for index in 0..150 {
            let text = story(25, index);
            let all = sentences(&text);
            let short = all[..all.len() - 1].concat();
            let long = format!("{text} {}", all[all.len() - 1]);
            for changed in [short.trim_end(), &short, &text[..text.len() - 7], &text[..text.len() / 2], &long] {
                assert_eq!(contradictions(changed), one(Kind::Ending), "{changed}");
            }
        }
        assert_eq!(contradictions(""), one(Kind::Ending));
    }

    #[test]
    fn a_sentence_of_other_words_is_found() {
        for index in 0..150 {
            let text = story(26, index);
            let mut all = sentences(&text);
            let i = index as usize % all.len();
            let other = format!("Xyzzy {}", all[i]);
            all[i] = &other;
            assert_eq!(contradictions(&all.concat()), one(Kind::Words), "{}", all.concat());
        }
        assert!(contradictions("It was a bright cold day in April. The clocks were").contains(&Kind::Words));
    }

    /// Several mistakes in one story.
    #[test]
    fn several_kinds_are_told_apart() {
        for index in 0..50 {
            let text = story(27, index);
            let all = sentences(&text);
            let changed = format!("{} Xyzzy ran. {}", all[0].trim_end(), all[1..all.len() - 1].concat());
            assert_eq!(contradictions(&changed), BTreeSet::from([Kind::Ending, Kind::Words]), "{changed}");
            let (a, b) = if text.contains(" his ") { (" his ", " her ") } else { (" her ", " his ") };
            let changed = changed.replacen(a, b, 1);
            let wanted = [Kind::Pronoun, Kind::Ending, Kind::Words];
            if contradictions(&text.replacen(a, b, 1)) == one(Kind::Pronoun) {
                assert_eq!(contradictions(&changed), BTreeSet::from(wanted), "{changed}");
            }
        }
    }

    #[test]
    fn two_people_of_one_name_are_found() {
        let mut found = 0;
        for index in 0..400 {
            let text = story(28, index);
            let hero = GRAMMAR.tables.iter().filter(|table| ["girl", "boy"].contains(&&*table.name));
            let names: Vec<&str> = hero.flat_map(|table| &table.rows).map(|row| &*row[0]).collect();
            let here: Vec<&&str> = names.iter().filter(|name| !places(&text, name).is_empty()).collect();
            let same = |a: &str, b: &str| names[..8].contains(&a) == names[..8].contains(&b);
            if let [a, b] = here[..]
                && same(a, b)
            {
                // All mentions, so that none differs from another.
                assert_eq!(contradictions(&text.replace(*b, a)), one(Kind::Name), "{text}");
                found += 1;
            }
        }
        assert!(found > 30, "{found}");
    }
}
