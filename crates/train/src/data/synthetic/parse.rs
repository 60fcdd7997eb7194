//! Reads the grammar from its source text.
//!
//! ```text
//! # a comment line                     %animal food went he=it      a table: columns, and columns equal in all rows
//! name:                                rabbit; carrots; hopped | fox; berries; trotted
//!   text over several lines            {a} {a.he} {A}   the slot a, its column he, a with a capital
//! (name)  the rule of that name        [x|3~y|z]        a choice, weights 1, 3, 1
//! <a=@animal>  draw a row, keep it     [@animal.food]   draw, write the column food, keep nothing
//! <a=x|y>  draw one of these words     <a=x>            write x and keep it
//! /  new paragraph
//! ```
//!
//! A rule may use only rules above it (there is no recursion); `story` is the start.

use super::grammar::{Branch, Grammar, Node, Table};

struct Parser {
    tables: Vec<Table>,
    slots: Vec<String>,
    rules: Vec<(String, Vec<Node>)>,
}

impl Grammar {
    /// Parses the sources as one text; the error says which rule or table and what is wrong.
    pub fn parse(sources: &[&str]) -> Result<Self, String> {
        let mut parser = Parser { tables: Vec::new(), slots: Vec::new(), rules: Vec::new() };
        let mut heading = "";
        let mut body = String::new();
        for line in sources.iter().flat_map(|source| source.lines()) {
            let line = line.trim_end();
            if line.starts_with('%') || (line.ends_with(':') && !line.starts_with([' ', '"'])) {
                parser.section(heading, &body)?;
                heading = line;
                body.clear();
            } else if !line.is_empty() && !line.starts_with('#') {
                body.push_str(line);
                body.push('\n');
            }
        }
        parser.section(heading, &body)?;
        let story = parser.rule("story")?;
        Ok(Self { tables: parser.tables, slots: parser.slots, story })
    }
}

impl Parser {
    fn section(&mut self, heading: &str, body: &str) -> Result<(), String> {
        if let Some(table) = heading.strip_prefix('%') {
            self.table(table, body).map_err(|e| format!("table {table}: {e}"))
        } else if let Some(name) = heading.strip_suffix(':') {
            let text = spaces(body);
            let mut rest = text.as_str();
            let nodes = self.sequence(&mut rest).map_err(|e| format!("rule {name}: {e} before {rest:?}"))?;
            if !rest.is_empty() {
                return Err(format!("rule {name}: unexpected {rest:?}"));
            }
            self.rules.push((name.to_owned(), nodes));
            Ok(())
        } else if body.is_empty() {
            Ok(())
        } else {
            Err(format!("text before the first rule: {body:?}"))
        }
    }

    fn table(&mut self, heading: &str, body: &str) -> Result<(), String> {
        let mut columns = heading.split_whitespace();
        let name = columns.next().ok_or("no name")?.to_owned();
        let (fixed, free): (Vec<_>, Vec<_>) = columns.partition(|column| column.contains('='));
        let fixed: Vec<_> = fixed.iter().filter_map(|c| c.split_once('=')).collect();
        let mut rows = Vec::new();
        for row in body.split(['|', '\n']).map(str::trim).filter(|row| !row.is_empty()) {
            let mut cells: Vec<_> = row.split(';').map(|cell| cell.trim().to_owned()).collect();
            if cells.len() != free.len() + 1 {
                return Err(format!("{row:?} should have {} cells", free.len() + 1));
            }
            cells.extend(fixed.iter().map(|(_, value)| (*value).to_owned()));
            rows.push(cells);
        }
        if rows.is_empty() || rows.len() > 64 {
            return Err(format!("{} rows, should be 1 to 64", rows.len()));
        }
        let columns =
            std::iter::once("").chain(free).chain(fixed.iter().map(|(column, _)| *column)).map(str::to_owned).collect();
        self.tables.push(Table { name, columns, rows });
        Ok(())
    }

    fn rule(&self, name: &str) -> Result<Vec<Node>, String> {
        let found = self.rules.iter().find(|(other, _)| other == name);
        found.map(|(_, nodes)| nodes.clone()).ok_or_else(|| format!("no rule {name} above"))
    }

    fn slot(&mut self, name: &str) -> usize {
        let found = self.slots.iter().position(|slot| slot == name);
        found.unwrap_or_else(|| {
            self.slots.push(name.to_owned());
            self.slots.len() - 1
        })
    }

    /// Nodes up to `|`, `]` or the end, which stay in `rest`.
    fn sequence(&mut self, rest: &mut &str) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        while let Some(first) = rest.chars().next() {
            let new = match first {
                '|' | ']' => break,
                '{' => {
                    let name = enclosed(rest, '}')?;
                    let key = name.to_ascii_lowercase();
                    let slot = self.slot(&key);
                    vec![Node::Slot { slot, capital: key != name }]
                }
                '(' => self.rule(enclosed(rest, ')')?)?,
                '<' => self.keep(enclosed(rest, '>')?)?,
                '[' if rest.starts_with("[@") => {
                    let inner = enclosed(rest, ']')?;
                    let (table, column) = self.find(&inner[1..])?;
                    vec![Node::Draw { table, column, bind: Vec::new() }]
                }
                '[' => vec![self.choice(rest)?],
                _ => {
                    let end = rest.find(['|', ']', '{', '(', '<', '[']).unwrap_or(rest.len());
                    let (text, after) = rest.split_at(end);
                    *rest = after;
                    vec![Node::Text(text.replace('/', "\n"))]
                }
            };
            for node in new {
                match (nodes.last_mut(), node) {
                    (Some(Node::Text(before)), Node::Text(text)) => before.push_str(&text),
                    (_, node) => nodes.push(node),
                }
            }
        }
        Ok(nodes)
    }

    fn choice(&mut self, rest: &mut &str) -> Result<Node, String> {
        let mut branches = Vec::new();
        while let Some(inner) = rest.strip_prefix(['[', '|']) {
            *rest = inner;
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let mut weight = 1;
            if digits > 0 && rest[digits..].starts_with('~') {
                weight = rest[..digits].parse().map_err(|e| format!("weight: {e}"))?;
                *rest = &rest[digits + 1..];
            }
            let body = self.sequence(rest)?;
            // A slot after a value was kept may mean that value, which is not yet known when options are compared.
            let kept = body.iter().position(|node| matches!(node, Node::Set { .. }));
            let known = |(i, node): &(usize, &Node)| match node {
                Node::Text(_) | Node::Set { .. } => true,
                Node::Slot { .. } => kept.is_none_or(|kept| *i < kept),
                Node::Choice(_) | Node::Draw { .. } => false,
            };
            let head = body.iter().enumerate().take_while(known).count();
            if head == 0 {
                return Err("an option starts with a choice or has no text".to_owned());
            }
            branches.push(Branch { weight, body, head });
        }
        *rest = rest.strip_prefix(']').ok_or("expected ]")?;
        Ok(Node::Choice(branches))
    }

    /// `slot=@table`, `slot=@table.column`, `slot=word` or `slot=word|word`.
    fn keep(&mut self, inner: &str) -> Result<Vec<Node>, String> {
        let (name, value) = inner.split_once('=').ok_or("expected slot=value")?;
        let (table, column) = if let Some(table) = value.strip_prefix('@') {
            self.find(table)?
        } else if value.contains('|') {
            let rows = value.split('|').map(|word| vec![word.to_owned()]).collect();
            self.tables.push(Table { name: inner.to_owned(), columns: vec![String::new()], rows });
            (self.tables.len() - 1, 0)
        } else {
            let (slot, value) = (self.slot(name), value.to_owned());
            return Ok(vec![Node::Text(value.clone()), Node::Set { slot, value }]);
        };
        let columns = self.tables[table].columns.clone();
        let bind = columns
            .iter()
            .map(|column| match column.as_str() {
                "" => self.slot(name),
                column => self.slot(&format!("{name}.{column}")),
            })
            .collect();
        Ok(vec![Node::Draw { table, column, bind }])
    }

    /// Table and column of `table` or `table.column`.
    fn find(&self, path: &str) -> Result<(usize, usize), String> {
        let (name, column) = path.split_once('.').unwrap_or((path, ""));
        let table = self.tables.iter().position(|table| table.name == name);
        let table = table.ok_or_else(|| format!("no table {name} above"))?;
        let columns = &self.tables[table].columns;
        let column = columns.iter().position(|other| other == column);
        Ok((table, column.ok_or_else(|| format!("no column {path}"))?))
    }
}

/// Takes `<open>inner<close>` off `rest` and gives `inner`.
fn enclosed<'t>(rest: &mut &'t str, close: char) -> Result<&'t str, String> {
    let (inner, after) = rest[1..].split_once(close).ok_or_else(|| format!("expected {close}"))?;
    *rest = after;
    Ok(inner)
}

/// Joins the lines with spaces: none around `/`, none where a line break touches the inside of a choice.
fn spaces(body: &str) -> String {
    let mut out = String::new();
    for line in body.lines().map(str::trim) {
        if !(out.is_empty() || out.ends_with(['[', '|']) || line.starts_with(['|', ']'])) {
            out.push(' ');
        }
        out.push_str(line);
    }
    out.replace(" /", "/").replace("/ ", "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_join_as_a_writer_expects() {
        let body = "  One [\n  two|\n  three\n  ] four\n  five. /\n  Six.[ |/]Seven\n";
        assert_eq!(spaces(body), "One [two|three] four five./Six.[ |/]Seven");
    }

    #[test]
    fn a_head_ends_before_what_is_not_yet_known() {
        let grammar = Grammar::parse(&["%n\nx|y\nstory:\n  [a <k=b> c {k}|2~d <k=@n>]\n"]).expect("parses");
        let [Node::Choice(branches)] = grammar.story.as_slice() else { panic!("{:?}", grammar.story) };
        // "a b" is one text, then the value is kept, then " c ", then the slot.
        assert_eq!(branches.iter().map(|b| (b.weight, b.head)).collect::<Vec<_>>(), [(1, 3), (2, 1)]);
    }

    #[test]
    fn mistakes_are_named() {
        for (source, message) in [
            ("story:\n  [a|b", "expected ]"),
            ("story:\n  {a", "expected }"),
            ("story:\n  a ] b", "unexpected"),
            ("story:\n  (later)\nlater:\n  x", "no rule later above"),
            ("story:\n  [[a|b]|c]", "starts with a choice"),
            ("story:\n  [a|]", "no text"),
            ("story:\n  <a=@b>", "no table b above"),
            ("%b\nx|y\nstory:\n  [@b.c]", "no column b.c"),
            ("%b c\nx\nstory:\n  a", "should have 2 cells"),
            ("%b\nstory:\n  a", "0 rows"),
            ("words\nstory:\n  a", "before the first rule"),
            ("other:\n  a", "no rule story above"),
        ] {
            let error = Grammar::parse(&[source]).expect_err(source);
            assert!(error.contains(message), "{error:?} for {source:?}");
        }
    }
}
