//! The gradient of a step: those of its passes, added in a binary tree over their number.
//!
//! ```text
//! 7 passes:  ((0 + 1) + (2 + 3)) + ((4 + 5) + 6)
//! ```
//!
//! It is the tree over the next power of two, without the leaves that are not there. Any subtree can be computed by
//! itself: `2^k` passes from a multiple of `2^k` on have the same sum wherever, and in whatever order, it is made.
//!
//! Of tables that are looked up ([`Group::Table`]) a pass touches few rows: only these are set to zero and added, so that what a pass costs
//! does not grow with the tables.

use std::ops::Range;

use flashlm_kernels::ops::{add, add_rows, zero, zero_rows};
use flashlm_kernels::{Buf, Exec};
use flashlm_model::params::{Group, Layout};

/// The sum of some passes.
struct Sum {
    /// `[P]`, as the parameters; rows of tables that are not `touched` are zeros.
    grads: Buf<f32>,
    touched: Touched,
    /// Nats.
    loss: f64,
}

/// Rows of tables to which a sum has something added.
#[derive(Clone)]
pub struct Touched(Vec<Table>);

/// The touched rows of one table.
#[derive(Clone)]
struct Table {
    place: Range<usize>,
    width: usize,
    /// Each once.
    rows: Vec<u32>,
    /// Of each row, whether it is in `rows`.
    seen: Vec<bool>,
}

impl Touched {
    /// Row `row` of the table at `place` among the parameters.
    pub fn add(&mut self, place: &Range<usize>, row: u32) {
        let at = self.0.partition_point(|table| table.place.start < place.start);
        self.0[at].add(row);
    }
}

impl Table {
    fn add(&mut self, row: u32) {
        if !std::mem::replace(&mut self.seen[row as usize], true) {
            self.rows.push(row);
        }
    }

    fn clear(&mut self) {
        self.rows.drain(..).for_each(|row| self.seen[row as usize] = false);
    }
}

impl Sum {
    fn new(len: usize, tables: &[(Range<usize>, usize)]) -> Self {
        let tables = tables.iter().map(|(place, width)| {
            let rows = place.len() / width;
            Table { place: place.clone(), width: *width, rows: Vec::with_capacity(rows), seen: vec![false; rows] }
        });
        Sum { grads: Buf::zeros(len), touched: Touched(tables.collect()), loss: 0.0 }
    }
}

/// Sums of passes, as a binary counter holds them: one for each bit that is set in the number of passes, the largest first. For
/// `n` passes it takes at most `log2(n)` buffers besides the first.
pub struct Gradient {
    sums: Vec<Sum>,
    passes: usize,
    /// Number of parameters, `P`.
    len: usize,
    /// Those before all tables.
    dense: usize,
    /// Places of the tables in order, and the widths of their rows.
    tables: Vec<(Range<usize>, usize)>,
}

impl Gradient {
    /// Of the parameters of a layout, without passes.
    ///
    /// # Panics
    /// If another parameter stands after a table.
    pub fn new(layout: &Layout) -> Self {
        let is_table = |spec: &flashlm_model::params::Spec| spec.group == Group::Table;
        let first = layout.specs().iter().position(is_table).unwrap_or(layout.specs().len());
        let (_, tables) = layout.specs().split_at(first);
        assert!(tables.iter().all(is_table), "tables stand at the end of a layout");
        let dense = tables.first().map_or(layout.len(), |table| table.range.start);
        let tables: Vec<_> = tables.iter().map(|spec| (spec.range.clone(), spec.shape[1])).collect();
        let len = layout.len();
        Gradient { sums: vec![Sum::new(len, &tables)], passes: 0, len, dense, tables }
    }

    /// Forgets all passes.
    pub fn clear(&mut self) {
        self.passes = 0;
    }

    /// One more pass: `pass` adds its gradient to zeros, `[P]`, tells which rows of tables it has touched, and returns its loss.
    pub fn add(&mut self, cx: &Exec, pass: impl FnOnce(&mut [f32], &mut Touched) -> f64) {
        let held = self.passes.count_ones() as usize;
        if self.sums.len() == held {
            self.sums.push(Sum::new(self.len, &self.tables));
        }
        let Sum { grads, touched, loss } = &mut self.sums[held];
        zero(cx, &mut grads[..self.dense]);
        for table in &mut touched.0 {
            zero_rows(cx, &mut grads[table.place.clone()], &table.rows, table.width);
            table.clear();
        }
        *loss = pass(grads, touched);
        self.passes += 1;
        for last in (self.passes.count_ones() as usize..=held).rev() {
            self.join(cx, last);
        }
    }

    /// Adds up what there is; returns the loss of all passes since the last time. Their gradient is [`Gradient::values`].
    pub fn finish(&mut self, cx: &Exec) -> f64 {
        for last in (1..self.passes.count_ones() as usize).rev() {
            self.join(cx, last);
        }
        self.passes = 0;
        self.sums[0].loss
    }

    /// The sum of all passes, `[P]`, once they are finished.
    pub fn values(&self) -> &[f32] {
        &self.sums[0].grads
    }

    /// Adds sum `last` to the one before it.
    fn join(&mut self, cx: &Exec, last: usize) {
        let (before, own) = self.sums.split_at_mut(last);
        let (into, own) = (&mut before[last - 1], &own[0]);
        add(cx, &mut into.grads[..self.dense], &own.grads[..self.dense]);
        for (to, table) in into.touched.0.iter_mut().zip(&own.touched.0) {
            let place = table.place.clone();
            add_rows(cx, &mut into.grads[place.clone()], &own.grads[place], &table.rows, table.width);
            table.rows.iter().for_each(|&row| to.add(row));
        }
        into.loss += own.loss;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use flashlm_kernels::Isa;
    use flashlm_model::params::Init;

    use super::*;

    /// The sum of leaves `from..from + size`, `size` a power of two, by the definition; nothing where there are none.
    pub(crate) fn tree(leaves: &[(Vec<f32>, f64)], from: usize, size: usize) -> Option<(Vec<f32>, f64)> {
        if size == 1 {
            return leaves.get(from).cloned();
        }
        let (left, right) = (tree(leaves, from, size / 2)?, tree(leaves, from + size / 2, size / 2));
        let Some(right) = right else { return Some(left) };
        Some((left.0.iter().zip(&right.0).map(|(a, b)| a + b).collect(), left.1 + right.1))
    }

    #[test]
    fn passes_are_added_in_a_tree_for_any_number_of_them_and_of_threads() {
        let mut layout = Layout::default();
        layout.add("matrix".into(), &[50, 40], Init::Zeros, Group::Matrix);
        let places = ["a", "b"].map(|name| layout.add(name.into(), &[30, 21], Init::Zeros, Group::Table));
        let len = layout.len();
        // Each pass touches some rows of each table, one of them twice.
        let rows = |i: usize| [i % 30, (i * i + 3) % 30, 29, i % 30];
        let leaf = |i: usize| {
            let dense = |j: usize| {
                let row = |place: &Range<usize>| place.contains(&j).then(|| (j - place.start) / 21);
                j < 2000 || places.iter().filter_map(row).any(|row| rows(i).contains(&row))
            };
            let value = |j: usize| if dense(j) { ((i * 7919 + j * 104_729) % 1009) as f32 * 0.1 - 50.0 } else { 0.0 };
            ((0..len).map(value).collect::<Vec<f32>>(), 1.0 / (i + 3) as f64)
        };
        for threads in 1..=3 {
            let cx = Exec::new(Isa::detect().unwrap(), threads);
            let mut gradient = Gradient::new(&layout);
            for passes in (1..=17).chain(1..=9) {
                let leaves: Vec<_> = (0..passes).map(leaf).collect();
                // What was left unfinished leaves no trace.
                gradient.clear();
                for (i, (values, loss)) in leaves.iter().enumerate() {
                    gradient.add(&cx, |grads, touched| {
                        assert!(grads.iter().all(|&g| g == 0.0));
                        grads.copy_from_slice(values);
                        let all = places.iter().flat_map(|place| rows(i).map(|row| (place, row as u32)));
                        all.for_each(|(place, row)| touched.add(place, row));
                        *loss
                    });
                }
                let want = tree(&leaves, 0, passes.next_power_of_two()).unwrap();
                assert_eq!(gradient.finish(&cx), want.1, "{passes} passes");
                assert!(gradient.values() == want.0, "{passes} passes on {threads} threads");
                gradient.add(&cx, |_, _| 1.0);
            }
            assert_eq!(gradient.sums.len(), 5, "16 passes take four buffers besides the first");
        }
    }
}
