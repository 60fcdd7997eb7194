//! The lines in a run's picture: rows become points, cut where a value is missing, smoothed, thinned out.
//!
//! Points are `(x, y)` in the units of the log: x in tokens or seconds, y in nats per token, bits per byte or learning
//! rate. A value that is not finite ends a line; the next finite one begins another.

use super::{Row, TrainRow};

/// What the horizontal axis shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Tokens seen.
    Tokens,
    /// Time of training.
    Elapsed,
}

/// A step from which on the run was another: a longer window, a later phase of the schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The first step of the stage.
    pub step: u64,
    /// A word or two.
    pub label: String,
}

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// The rows of its log.
    pub rows: Vec<Row>,
    /// Marks along its way.
    pub stages: Vec<Stage>,
}

impl Series {
    /// A run with a mark at each of its stages.
    pub fn new(name: String, rows: Vec<Row>) -> Self {
        let stages = stages(&rows);
        Series { name, rows, stages }
    }
}

/// Where the stage, its texts or its sequence length become others; also the start, where texts change on the way.
fn stages(rows: &[Row]) -> Vec<Stage> {
    let train = rows.iter().filter_map(|row| match row {
        Row::Train(row) => Some(row),
        _ => None,
    });
    let rows: Vec<&TrainRow> = train.collect();
    let mixed = rows.windows(2).any(|pair| pair[0].sources.keys().ne(pair[1].sources.keys()));
    let changed = |pair: &&[&TrainRow]| (pair[0].stage, pair[0].seq_len) != (pair[1].stage, pair[1].seq_len);
    let first = rows.first().filter(|_| mixed).map(|row| (0, row));
    let starts = first.into_iter().chain(rows.windows(2).filter(changed).map(|pair| (pair[1].step, &pair[1])));
    let texts = |row: &TrainRow| row.sources.keys().map(String::as_str).collect::<Vec<_>>().join(" + ");
    let label = |row: &TrainRow| match (row.seq_len, mixed) {
        (length, true) => format!("T {length}: {}", texts(row)),
        (length, false) => format!("T {length}"),
    };
    starts.map(|(step, row)| Stage { step, label: label(row) }).collect()
}

/// A point of a curve.
pub(super) type Point = (f64, f64);

/// More points than this in one line are thinned out: about one a pixel.
const POINTS: usize = 800;

/// The curves of one run, each as the lines between its gaps.
pub(super) struct Curves {
    /// Training loss of each row.
    pub loss: Vec<Vec<Point>>,
    /// Its moving mean.
    pub mean: Vec<Vec<Point>>,
    /// Validation bits per byte.
    pub bpb: Vec<Vec<Point>>,
    /// Learning rate.
    pub lr: Vec<Vec<Point>>,
}

impl Curves {
    pub fn new(run: &Series, axis: Axis) -> Self {
        let train = |y: fn(&TrainRow) -> f64| {
            lines(run.rows.iter().filter_map(|row| match row {
                Row::Train(r) => Some((at(row, axis)?, y(r))),
                _ => None,
            }))
        };
        let loss = train(|r| r.loss);
        let bpb = lines(run.rows.iter().filter_map(|row| match row {
            // Before the first step it is so high that the rest would be a flat line.
            Row::Eval(r) if r.step > 0 => Some((at(row, axis)?, r.bpb)),
            _ => None,
        }));
        Curves { mean: loss.iter().map(|line| moving_mean(line)).collect(), loss, bpb, lr: train(|r| r.lr) }
    }

    /// Every point, smoothed ones left out.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        let all = [&self.loss, &self.bpb, &self.lr];
        all.into_iter().flatten().flatten().copied()
    }

    /// The evaluation with the fewest bits per byte.
    pub fn best(&self) -> Option<Point> {
        let all = self.bpb.iter().flatten().copied();
        all.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Where a step stands on the horizontal axis: at the first row that has reached it; the start at 0.
pub(super) fn place(run: &Series, step: u64, axis: Axis) -> Option<f64> {
    if step == 0 {
        return Some(0.0);
    }
    let reached = run.rows.iter().filter(|row| row.step() >= step);
    reached.filter_map(|row| at(row, axis)).find(|&x| usable(x) && x >= 0.0)
}

/// Where a row stands on the horizontal axis; samples stand nowhere.
fn at(row: &Row, axis: Axis) -> Option<f64> {
    let (tokens, elapsed) = match row {
        Row::Train(r) => (r.tokens, r.elapsed),
        Row::Eval(r) => (r.tokens, r.elapsed),
        Row::Sample(_) => return None,
    };
    Some(match axis {
        Axis::Tokens => tokens as f64,
        Axis::Elapsed => elapsed,
    })
}

/// Finite, and so far from the end of the number range that sums and differences stay finite.
pub(super) fn usable(value: f64) -> bool {
    value.abs() < 1e30
}

/// The lines between the points that are not usable.
fn lines(points: impl Iterator<Item = Point>) -> Vec<Vec<Point>> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    for (x, y) in points {
        if usable(x) && x >= 0.0 && usable(y) {
            line.push((x, y));
        } else {
            lines.push(std::mem::take(&mut line));
        }
    }
    lines.push(line);
    lines.retain(|line| !line.is_empty());
    lines
}

/// Mean over a window around each point, of a twentieth of the line in all. At the beginning, where the loss falls
/// steeply, the window is as narrow as it must be to stay centred; at the end it is cut off.
fn moving_mean(line: &[Point]) -> Vec<Point> {
    let mut sums = vec![0.0];
    sums.extend(line.iter().scan(0.0, |sum, point| {
        *sum += point.1;
        Some(*sum)
    }));
    (0..line.len())
        .map(|i| {
            let half = (line.len() / 40).min(i);
            let (from, to) = (i - half, (i + half + 1).min(line.len()));
            (line[i].0, (sums[to] - sums[from]) / (to - from) as f64)
        })
        .collect()
}

/// At most about `POINTS` points that look like the whole line: the lowest and highest of each group, in their order.
pub(super) fn thinned(line: &[Point]) -> Vec<Point> {
    let group = line.len().div_ceil(POINTS / 2);
    if group <= 2 {
        return line.to_vec();
    }
    let mut out = Vec::new();
    for points in line.chunks(group) {
        let (mut low, mut high) = (0, 0);
        for (i, point) in points.iter().enumerate() {
            if point.1 < points[low].1 {
                low = i;
            }
            if point.1 > points[high].1 {
                high = i;
            }
        }
        out.push(points[low.min(high)]);
        out.push(points[low.max(high)]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::{EvalRow, SampleRow};
    use super::*;

    fn eval(step: u64, elapsed: f64, bpb: f64) -> Row {
        Row::Eval(EvalRow { step, tokens: step * 100, elapsed, loss: 0.0, bpb, best: false })
    }

    #[test]
    fn a_missing_value_cuts_the_line() {
        let run = Series {
            name: String::new(),
            rows: vec![
                eval(1, 0.5, 3.0),
                eval(2, 1.0, f64::NAN),
                eval(3, 1.5, f64::INFINITY),
                eval(4, 2.0, 1.0),
                eval(5, 2.5, 2.0),
            ],
            stages: Vec::new(),
        };
        let tokens = Curves::new(&run, Axis::Tokens);
        assert_eq!(tokens.bpb, [vec![(100.0, 3.0)], vec![(400.0, 1.0), (500.0, 2.0)]]);
        assert_eq!(tokens.best(), Some((400.0, 1.0)));
        assert!(tokens.loss.is_empty() && tokens.lr.is_empty());
        let elapsed = Curves::new(&run, Axis::Elapsed);
        assert_eq!(elapsed.points().map(|p| p.0).collect::<Vec<_>>(), [0.5, 2.0, 2.5]);
    }

    #[test]
    fn a_stage_stands_at_the_first_row_of_it() {
        let sample = Row::Sample(SampleRow { step: 7, prompt: String::new(), text: String::new() });
        let run = Series {
            name: String::new(),
            rows: vec![eval(5, 1.0, 1.0), sample, eval(9, f64::NAN, 1.0), eval(9, 4.0, 1.0)],
            stages: Vec::new(),
        };
        assert_eq!(place(&run, 5, Axis::Elapsed), Some(1.0));
        assert_eq!(place(&run, 6, Axis::Elapsed), Some(4.0));
        assert_eq!(place(&run, 6, Axis::Tokens), Some(900.0));
        assert_eq!((place(&run, 10, Axis::Tokens), place(&run, 0, Axis::Tokens)), (None, Some(0.0)));
    }

    #[test]
    fn the_moving_mean_is_the_mean_of_its_window() {
        let line: Vec<Point> = (0..200).map(|i| (f64::from(i), f64::from(i * i % 97))).collect();
        let mean = moving_mean(&line);
        let plain = |from: usize, to: usize| line[from..to].iter().map(|p| p.1).sum::<f64>() / (to - from) as f64;
        // 200 / 40 = 5 on each side.
        for (i, from, to) in [(0, 0, 1), (2, 0, 5), (5, 0, 11), (100, 95, 106), (197, 192, 200), (199, 194, 200)] {
            assert_eq!(mean[i].0, line[i].0);
            assert!((mean[i].1 - plain(from, to)).abs() < 1e-12, "at {i}");
        }
        assert!(moving_mean(&[]).is_empty());
        assert_eq!(moving_mean(&line[..3]), line[..3]);
    }

    #[test]
    fn thinning_keeps_peaks_and_order() {
        let mut line: Vec<Point> = (0..10_000).map(|i| (f64::from(i), f64::from(i % 3))).collect();
        line[1234].1 = 50.0;
        line[8001].1 = -50.0;
        let thin = thinned(&line);
        assert!(thin.len() <= POINTS + 2, "{}", thin.len());
        assert!(thin.contains(&line[1234]) && thin.contains(&line[8001]));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
        assert!(thin.iter().all(|p| line[p.0 as usize] == *p));
        assert_eq!(thinned(&line[..POINTS]), line[..POINTS]);
    }

    #[test]
    fn a_stage_of_a_curriculum_is_named_by_its_texts() {
        let row = |step, stage: usize, seq_len, names: &[&str]| {
            let sources = names.iter().map(|name| (name.to_string(), 0.5)).collect();
            let (loss, lr, grad_norm, elapsed, epoch) = (1.0, 1.0, 1.0, 1.0, 0.5);
            let (tokens, tokens_per_second) = (1, 1.0);
            Row::Train(TrainRow {
                step,
                loss,
                lr,
                grad_norm,
                tokens,
                tokens_per_second,
                elapsed,
                epoch,
                seq_len,
                stage,
                sources,
                waited: Vec::new(),
            })
        };
        let rows = [row(1, 1, 8, &["books"]), row(2, 1, 8, &["books"]), row(3, 2, 8, &["books", "tales"])];
        let mark = |step, label: &str| Stage { step, label: label.into() };
        assert_eq!(stages(&rows), [mark(0, "T 8: books"), mark(3, "T 8: books + tales")]);
        assert_eq!(stages(&rows[..2]), []);
    }

    #[test]
    fn a_stage_begins_where_the_length_changes() {
        let line = |step: u64, seq_len: usize| {
            let text = format!(
                "{{\"kind\":\"train\",\"step\":{step},\"loss\":1,\"lr\":1,\"grad_norm\":1,\"tokens\":1,\
                 \"tokens_per_second\":1,\"elapsed\":1,\"epoch\":1,\"seq_len\":{seq_len}}}"
            );
            serde_json::from_str::<Row>(&text).unwrap()
        };
        let rows = [line(10, 128), line(20, 128), line(30, 256), line(40, 256), line(50, 512)];
        let mark = |step, label: &str| Stage { step, label: label.into() };
        assert_eq!(stages(&rows), [mark(30, "T 256"), mark(50, "T 512")]);
        assert!(stages(&rows[..2]).is_empty());
    }
}
