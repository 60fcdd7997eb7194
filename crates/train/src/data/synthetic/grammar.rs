//! The grammar procedure: one walk over the tree, driven by whoever chooses.
//!
//! A slot keeps what was chosen (a name, a colour) for later mention; a draw takes a row of a table that no slot of
//! this story holds yet, all such rows being equally likely. The text up to an option's first further choice is its
//! head: it is what a choice writes, and what must tell the options apart (no head is a prefix of another).

use std::borrow::Cow;

/// The options of one choice: weight and the text that choosing it writes.
pub type Options<'o> = [(u32, Cow<'o, str>)];

/// Who makes the choices: a random writer, or a reader that follows a given text.
pub trait Choose {
    /// Chooses an option and takes its text as said.
    fn pick(&mut self, options: &Options<'_>) -> usize;
    /// Takes text that follows from what was chosen before.
    fn say(&mut self, text: &str);
}

/// A piece of a story plan.
#[derive(Clone, Debug)]
pub enum Node {
    /// Plain text.
    Text(String),
    /// What the slot holds, with a capital first letter if asked for.
    Slot { slot: usize, capital: bool },
    /// Keeps a value without writing.
    Set { slot: usize, value: String },
    /// One of the branches.
    Choice(Vec<Branch>),
    /// A row of a table, of which `column` is written; `bind` holds the slot for each column, or nothing.
    Draw { table: usize, column: usize, bind: Vec<usize> },
}

/// One option of a choice; the first `head` nodes of `body` are its head.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Probability up to the sum of the weights.
    pub weight: u32,
    /// What follows if it is chosen.
    pub body: Vec<Node>,
    /// Number of leading nodes whose text is known beforehand.
    pub head: usize,
}

/// Rows of words that go together: an animal, its food, its way of walking.
#[derive(Debug)]
pub struct Table {
    /// Its name in the source.
    pub name: String,
    /// Names of the columns; the first is empty.
    pub columns: Vec<String>,
    /// The rows, at most 64, each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

/// All that can be told.
#[derive(Debug)]
pub struct Grammar {
    pub(super) tables: Vec<Table>,
    pub(super) slots: Vec<String>,
    pub(super) story: Vec<Node>,
}

/// What this story has settled so far.
struct Cast<'g> {
    values: Vec<&'g str>,
    /// A bit for each row held by a slot, a word for each table.
    held: Vec<u64>,
}

impl Cast<'_> {
    /// Appends the text of nodes without choices.
    fn write(&self, nodes: &[Node], out: &mut String) {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Slot { slot, capital } => {
                    let value = self.values[*slot];
                    let cut = usize::from(*capital && !value.is_empty());
                    out.push_str(&value[..cut].to_ascii_uppercase());
                    out.push_str(&value[cut..]);
                }
                Node::Set { .. } | Node::Choice(_) | Node::Draw { .. } => {}
            }
        }
    }

    fn text<'o>(&self, nodes: &'o [Node]) -> Cow<'o, str> {
        if let [Node::Text(text)] = nodes {
            return Cow::Borrowed(text);
        }
        let mut out = String::new();
        self.write(nodes, &mut out);
        Cow::Owned(out)
    }
}

impl Grammar {
    /// Tells one story through `chooser`.
    pub fn tell<C: Choose>(&self, chooser: &mut C) {
        let mut cast = Cast { values: vec![""; self.slots.len()], held: vec![0; self.tables.len()] };
        self.walk(&self.story, &mut cast, chooser);
    }

    fn walk<'g, C: Choose>(&'g self, nodes: &'g [Node], cast: &mut Cast<'g>, chooser: &mut C) {
        for node in nodes {
            match node {
                Node::Text(text) => chooser.say(text),
                Node::Slot { .. } => chooser.say(&cast.text(std::slice::from_ref(node))),
                Node::Set { slot, value } => cast.values[*slot] = value,
                Node::Choice(branches) => {
                    let options: Vec<_> = branches.iter().map(|b| (b.weight, cast.text(&b.body[..b.head]))).collect();
                    let branch = &branches[chooser.pick(&options)];
                    for node in &branch.body[..branch.head] {
                        if let Node::Set { slot, value } = node {
                            cast.values[*slot] = value;
                        }
                    }
                    self.walk(&branch.body[branch.head..], cast, chooser);
                }
                Node::Draw { table, column, bind } => {
                    let rows = &self.tables[*table].rows;
                    let free: Vec<usize> = (0..rows.len()).filter(|row| cast.held[*table] >> row & 1 == 0).collect();
                    let options: Vec<_> =
                        free.iter().map(|&row| (1, Cow::Borrowed(rows[row][*column].as_str()))).collect();
                    let row = free[chooser.pick(&options)];
                    for (&slot, value) in bind.iter().zip(&rows[row]) {
                        cast.values[slot] = value;
                        cast.held[*table] |= 1 << row;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    /// Takes the options of a script, then the first of each choice, and notes how many there were.
    #[derive(Default)]
    struct Script {
        script: Vec<usize>,
        widths: Vec<usize>,
        text: String,
        p: f64,
    }

    impl Choose for Script {
        fn pick(&mut self, options: &Options<'_>) -> usize {
            let chosen = self.script.get(self.widths.len()).copied().unwrap_or(0);
            self.widths.push(options.len());
            let total: u32 = options.iter().map(|o| o.0).sum();
            self.p *= f64::from(options[chosen].0) / f64::from(total);
            self.text.push_str(&options[chosen].1);
            chosen
        }

        fn say(&mut self, text: &str) {
            self.text.push_str(text);
        }
    }

    /// Every derivation with its probability.
    fn enumerate(grammar: &Grammar) -> Vec<(String, f64)> {
        let (mut all, mut script) = (Vec::new(), Vec::new());
        loop {
            let mut run = Script { script: script.clone(), p: 1.0, ..Script::default() };
            grammar.tell(&mut run);
            script.resize(run.widths.len(), 0);
            all.push((run.text, run.p));
            while let Some(last) = script.pop() {
                if last + 1 < run.widths[script.len()] {
                    script.push(last + 1);
                    break;
                }
            }
            if script.is_empty() {
                return all;
            }
        }
    }

    /// By hand: P(a girl) = 3/4, two names, then of two colours the second must be the one left.
    #[test]
    fn enumeration_gives_the_hand_computed_distribution() {
        let source = "%girl he=she\nMia|Ann\n%boy he=he\nTom\n%color\nred|blue\n\
            story:\n[3~girl <a=@girl>|boy <a=@boy>]: <c=@color> and [@color][.|, says {a}.] {a.He} likes {c}.\n";
        let grammar = Grammar::parse(&[source]).expect("parses");
        let all = enumerate(&grammar);
        let table: HashMap<_, _> = all.iter().cloned().collect();
        assert_eq!((all.len(), table.len()), (12, 12));
        assert!((table.values().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(table["girl Ann: red and blue. She likes red."], 0.75 / 8.0);
        assert_eq!(table["boy Tom: blue and red, says Tom. He likes blue."], 0.25 / 4.0);
        let entropy: f64 = table.values().map(|p| -p * p.log2()).sum();
        // H(3/4) + P(girl) for the name + colour + full stop or comma.
        let by_hand = 0.811_278_124_459_133 + 0.75 + 1.0 + 1.0;
        assert!((entropy - by_hand).abs() < 1e-12, "{entropy}");
    }

    /// Follows every path at once: `bound` are the slots surely filled, `held` the most rows held of each table.
    fn check(grammar: &Grammar, nodes: &[Node], bound: &mut HashSet<usize>, held: &mut [usize]) {
        for node in nodes {
            match node {
                Node::Text(_) => {}
                Node::Slot { slot, .. } => {
                    assert!(bound.contains(slot), "{} is not bound on every path", grammar.slots[*slot]);
                }
                Node::Set { slot, .. } => {
                    bound.insert(*slot);
                }
                Node::Choice(branches) => {
                    let (before, held_before) = (bound.clone(), held.to_vec());
                    let mut common: Option<HashSet<usize>> = None;
                    for branch in branches {
                        let (mut bound, mut here) = (before.clone(), held_before.clone());
                        check(grammar, &branch.body, &mut bound, &mut here);
                        common = Some(common.map_or(bound.clone(), |c| &c & &bound));
                        held.iter_mut().zip(here).for_each(|(most, n)| *most = n.max(*most));
                    }
                    *bound = common.expect("a choice has branches");
                }
                Node::Draw { table, bind, .. } => {
                    let rows = grammar.tables[*table].rows.len();
                    assert!(held[*table] < rows, "table {} may run out", grammar.tables[*table].name);
                    held[*table] += usize::from(!bind.is_empty());
                    bound.extend(bind);
                }
            }
        }
    }

    #[test]
    fn every_mention_is_bound_and_no_table_runs_out() {
        let grammar = &super::super::GRAMMAR;
        let mut held = vec![0; grammar.tables.len()];
        check(grammar, &grammar.story, &mut HashSet::new(), &mut held);
    }
}
