//! `curve.svg`: the course of one run, or of several in one picture.
//!
//! Three panels over one axis (tokens or time): training loss in nats per token, each row pale and the moving mean bold;
//! validation bits per byte, with the best and the entropy bound of the data; learning rate. The vertical axes leave the
//! first 3 % of the run out of their range, so that the fall from `ln(vocabulary)` does not flatten the rest. No script,
//! no font, no identifier: the picture can be put into any page, and follows its reader's light or dark mode.

pub use super::curve::{Axis, Series, Stage};
use super::curve::{Curves, Point, place, thinned, usable};
use super::scale::{Scale, unit};
use super::style::{COLOURS, escape, sheet, shortened, text, text_width};

/// What the rows do not say.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Heading of the picture.
    pub title: String,
    /// The horizontal axis.
    pub axis: Axis,
    /// Bits per byte no model can go below.
    pub entropy_bound: Option<f64>,
}

const WIDTH: f64 = 960.0;
/// Where headings begin, and where the panels.
const MARGIN: f64 = 24.0;
const LEFT: f64 = 68.0;
/// Width of the panels, their heights, and the room above each.
const PLOT: f64 = 820.0;
const HEIGHTS: [f64; 3] = [236.0, 172.0, 44.0];
const GAP: f64 = 38.0;
/// Part of the run the vertical axes do not have to show.
const FALL: f64 = 0.03;

/// The picture as an SVG document.
pub fn draw(runs: &[Series], options: &Options) -> String {
    let curves: Vec<Curves> = runs.iter().map(|run| Curves::new(run, options.axis)).collect();
    let bound = options.entropy_bound.filter(|&bits| usable(bits));
    let end = curves.iter().flat_map(Curves::points).map(|p| p.0);
    let x = Scale { lo: 0.0, hi: end.reduce(f64::max).filter(|&x| x > 0.0).unwrap_or(1.0), length: PLOT };
    let losses = settled(curves.iter().flat_map(|c| &c.mean), &x);
    let mut bpbs = settled(curves.iter().flat_map(|c| &c.bpb), &x);
    bpbs.extend(bound);
    let rates = curves.iter().flat_map(|c| c.lr.iter().flatten());
    let peak = rates.map(|p| p.1).reduce(f64::max).filter(|&r| r > 0.0);
    let rate_name = peak.map_or("Learning rate".into(), |r| format!("Learning rate, peak {r:.1e}"));

    let (legend, legend_height) = legend(runs);
    let mut tops = [0.0; 3];
    let mut y = 58.0 + legend_height;
    for (top, height) in tops.iter_mut().zip(HEIGHTS) {
        *top = y + GAP;
        y = *top + height;
    }
    let (stage_lines, stage_labels) = stages(runs, options.axis, &x, tops[0], y);

    let height = y + 52.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
        escape(&options.title),
        sheet(),
    );
    out += &text(MARGIN, 38.0, "title", "start", &shortened(&options.title, 80));
    out += &legend;
    out += &format!("<g transform=\"translate({LEFT} 0)\">\n{stage_lines}</g>\n");
    let (size, unit_name) = unit(options.axis, x.hi);
    let columns = x.ticks(size, 10);
    let panel = |i: usize, name: &str, lines: &[(f64, String)], scale: &Scale, inside: &str| {
        let name = text(MARGIN - LEFT, -12.0, "name halo", "start", name);
        let grid = grid(&x, scale, &columns, lines);
        format!("<g transform=\"translate({LEFT} {})\">\n{grid}{name}{inside}</g>\n", tops[i])
    };
    let scale = Scale::around(&losses, HEIGHTS[0]);
    let (lines, inside) = if losses.is_empty() {
        (Vec::new(), nothing(scale.length))
    } else {
        (scale.ticks(1.0, 6), losses_of(&curves, &x, &scale))
    };
    out += &panel(0, "Training loss, nats per token", &lines, &scale, &inside);
    let scale = Scale::around(&bpbs, HEIGHTS[1]);
    let (lines, inside) = if bpbs.is_empty() {
        (Vec::new(), nothing(scale.length))
    } else {
        (scale.ticks(1.0, 6), bpbs_of(&curves, &x, &scale, bound))
    };
    let name = "Validation, bits per byte, best circled";
    out += &panel(1, name, &lines, &scale, &inside);
    let scale = Scale { lo: 0.0, hi: peak.unwrap_or(1.0) * 1.12, length: HEIGHTS[2] };
    out += &panel(2, &rate_name, &[], &scale, &rates_of(&curves, &x, &scale));

    out += &format!("<g transform=\"translate({LEFT} {y})\">\n");
    for (value, label) in &columns {
        out += &text(x.right(*value), 18.0, "", "middle", label);
    }
    out += &text(PLOT / 2.0, 40.0, "", "middle", unit_name);
    out += "</g>\n";
    out + &format!("<g transform=\"translate({LEFT} 0)\">\n{stage_labels}</g>\n</svg>\n")
}

/// The values the vertical axis must show: those after the fall, or all where there are no two.
fn settled<'a>(lines: impl Iterator<Item = &'a Vec<Point>>, x: &Scale) -> Vec<f64> {
    let all: Vec<Point> = lines.flatten().copied().collect();
    let (early, late): (Vec<Point>, Vec<Point>) = all.iter().partition(|p| p.0 < FALL * x.hi);
    let shown = if late.len() > 1 { &late } else { &all };
    let mut values: Vec<f64> = shown.iter().map(|p| p.1).collect();
    // A run that was at its best early on, and lost it, is shown with that best.
    let best = early.iter().map(|p| p.1).reduce(f64::min);
    values.extend(best.filter(|best| values.iter().all(|value| best < value)));
    values
}

/// The class of a run's colour: `s` for stroke, `f` for fill.
fn colour(kind: char, run: usize) -> String {
    format!("{kind}{}", run % COLOURS.len())
}

fn nothing(height: f64) -> String {
    text(PLOT / 2.0, height / 2.0, "", "middle", "nothing to show yet")
}

fn grid(x: &Scale, y: &Scale, columns: &[(f64, String)], lines: &[(f64, String)]) -> String {
    let mut out = String::new();
    for (value, _) in columns {
        let px = x.right(*value);
        out += &format!("<path class=\"grid\" d=\"M{px:.1} 0V{}\"/>", y.length);
    }
    for (value, label) in lines {
        let py = y.down(*value);
        out += &format!("<path class=\"grid\" d=\"M0 {py:.1}H{PLOT}\"/>");
        out += &text(-8.0, py + 4.0, "", "end", label);
    }
    out + &format!("<path class=\"axis\" d=\"M0 {}H{PLOT}\"/>\n", y.length)
}

/// A window on the panel, a little wider than it, that cuts off what lies above or below.
fn window(height: f64, inside: &str) -> String {
    let wide = PLOT + 16.0;
    format!(
        "<svg x=\"-8\" y=\"0\" width=\"{wide}\" height=\"{height}\" viewBox=\"-8 0 {wide} {height}\">\n{inside}</svg>\n"
    )
}

fn path(line: &[Point], x: &Scale, y: &Scale) -> String {
    let mut out = String::new();
    for (i, point) in line.iter().enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        out += &format!("{command}{:.1} {:.1}", x.right(point.0), y.down(point.1));
    }
    if line.len() == 1 {
        // A line of no length is not drawn; round ends make this one a dot.
        out += "h.01";
    }
    out
}

fn circle(point: Point, x: &Scale, y: &Scale, radius: f64, class: &str) -> String {
    let (px, py) = (x.right(point.0), y.down(point.1));
    format!("<circle class=\"{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"{radius}\"/>\n")
}

fn losses_of(curves: &[Curves], x: &Scale, y: &Scale) -> String {
    let mut raw = String::new();
    let mut means = String::new();
    for (i, run) in curves.iter().enumerate() {
        let stroke = colour('s', i);
        for (out, class, lines) in [(&mut raw, "raw", &run.loss), (&mut means, "mean", &run.mean)] {
            for line in lines {
                let d = path(&thinned(line), x, y);
                *out += &format!("<path class=\"{class} {stroke}\" d=\"{d}\"/>\n");
            }
        }
    }
    let ends = curves.iter().map(|run| run.mean.last()?.last().copied());
    window(y.length, &(raw + &means)) + &end_labels(ends, y, 2)
}

fn bpbs_of(curves: &[Curves], x: &Scale, y: &Scale, bound: Option<f64>) -> String {
    let mut out = String::new();
    if let Some(bound) = bound {
        let py = y.down(bound);
        out += &format!("<path class=\"bound\" d=\"M0 {py:.1}H{PLOT}\"/>");
        let name = format!("entropy bound {bound:.3}");
        out += &text(6.0, py - 6.0, "strong halo", "start", &name);
    }
    let mut inside = String::new();
    for (i, run) in curves.iter().enumerate() {
        let (stroke, dot) = (colour('s', i), format!("dot {}", colour('f', i)));
        for line in &run.bpb {
            let d = path(line, x, y);
            inside += &format!("<path class=\"thin {stroke}\" d=\"{d}\"/>\n");
            // Where dots would touch, the line alone is clearer.
            for point in line.iter().filter(|_| line.len() <= 80) {
                inside += &circle(*point, x, y, 3.6, &dot);
            }
        }
        if let Some(best) = run.best() {
            inside += &circle(best, x, y, 3.6, &dot);
            inside += &circle(best, x, y, 6.6, &format!("ring {stroke}"));
        }
    }
    out + &window(y.length, &inside) + &end_labels(curves.iter().map(Curves::best), y, 3)
}

fn rates_of(curves: &[Curves], x: &Scale, y: &Scale) -> String {
    let mut inside = String::new();
    for (i, run) in curves.iter().enumerate() {
        for line in &run.lr {
            let d = path(&thinned(line), x, y);
            inside += &format!("<path class=\"thin {}\" d=\"{d}\"/>\n", colour('s', i));
            if let ([first, .., last], 1) = (&line[..], curves.len()) {
                let (from, to, floor) = (x.right(first.0), x.right(last.0), y.length);
                inside += &format!("<path class=\"area f0\" d=\"{d}L{to:.1} {floor}L{from:.1} {floor}Z\"/>\n");
            }
        }
    }
    window(y.length, &inside)
}

/// The value of each run at the right edge, moved apart where they would overlap.
fn end_labels(ends: impl Iterator<Item = Option<Point>>, y: &Scale, decimals: usize) -> String {
    const LINE: f64 = 14.0;
    let mut labels: Vec<(f64, usize, f64)> =
        ends.enumerate().filter_map(|(i, end)| Some((y.down(end?.1).clamp(0.0, y.length), i, end?.1))).collect();
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = 0.0;
    for label in &mut labels {
        label.0 = label.0.max(free);
        free = label.0 + LINE;
    }
    let mut free = y.length;
    for label in labels.iter_mut().rev() {
        label.0 = label.0.min(free);
        free = label.0 - LINE;
    }
    let draw = |&(py, run, value): &(f64, usize, f64)| {
        let value = if value.abs() < 1e4 { format!("{value:.decimals$}") } else { format!("{value:.1e}") };
        let class = format!("end {}", colour('f', run));
        text(PLOT + 12.0, py + 4.0, &class, "start", &value)
    };
    labels.iter().map(draw).collect()
}

/// Vertical lines through all panels, and their labels in the first free of four rows at the top.
fn stages(runs: &[Series], axis: Axis, x: &Scale, top: f64, bottom: f64) -> (String, String) {
    let mut marks = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        for stage in &run.stages {
            if let Some(value) = place(run, stage.step, axis).filter(|&value| value <= x.hi) {
                marks.push((x.right(value), i, shortened(&stage.label, 32)));
            }
        }
    }
    marks.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut taken = [f64::NEG_INFINITY; 4];
    let (mut lines, mut labels) = (String::new(), String::new());
    for (px, run, label) in marks {
        let (stroke, fill) = if runs.len() > 1 { (colour('s', run), colour('f', run)) } else { Default::default() };
        lines += &format!("<path class=\"stage {stroke}\" d=\"M{px:.1} {top:.1}V{bottom:.1}\"/>\n");
        let length = text_width(&label) + 12.0;
        let (from, at, anchor) =
            if px + length > PLOT { (px - length, px - 5.0, "end") } else { (px, px + 5.0, "start") };
        let row = taken.iter().position(|&to| to <= from).unwrap_or(0);
        taken[row] = from + length;
        let down = top + 12.0 + 15.0 * row as f64;
        labels += &text(at, down, &format!("halo {fill}"), anchor, &label);
    }
    (lines, labels)
}

/// Swatches with names in as many rows as they need, and the height of those.
fn legend(runs: &[Series]) -> (String, f64) {
    let line = |class: &str| format!("<path class=\"{class}\" d=\"M0 -4h22\"/>");
    let items: Vec<(String, String)> = if runs.len() == 1 {
        let dot = "<circle class=\"dot f0\" cx=\"11\" cy=\"-4\" r=\"3.6\"/>";
        vec![
            (line("raw s0"), "loss of each row".into()),
            (line("mean s0"), "moving mean".into()),
            (line("thin s0") + dot, "validation".into()),
        ]
    } else {
        let item = |(i, run): (usize, &Series)| {
            let class = format!("mean {}", colour('s', i));
            (line(&class), shortened(&run.name, 60))
        };
        runs.iter().enumerate().map(item).collect()
    };
    let mut out = String::new();
    let (mut x, mut row) = (MARGIN, 0.0);
    for (swatch, name) in items {
        let wide = 30.0 + text_width(&name) + 18.0;
        if x > MARGIN && x + wide > LEFT + PLOT {
            (x, row) = (MARGIN, row + 1.0);
        }
        let name = text(30.0, 0.0, "", "start", &name);
        let y = 66.0 + 20.0 * row;
        out += &format!("<g transform=\"translate({x:.1} {y})\">{swatch}{name}</g>\n");
        x += wide;
    }
    (out, 20.0 * (row + 1.0))
}

#[cfg(test)]
mod tests {
    use super::super::{EvalRow, Row, SampleRow, TrainRow};
    use super::*;

    fn train(step: u64, loss: f64, lr: f64) -> Row {
        Row::Train(TrainRow {
            step,
            loss,
            lr,
            grad_norm: 1.0,
            tokens: step * 1_000_000,
            tokens_per_second: 1.0,
            elapsed: step as f64,
            epoch: 1.0,
            seq_len: 8,
            stage: 1,
            sources: Default::default(),
            waited: Vec::new(),
        })
    }

    fn eval(step: u64, bpb: f64) -> Row {
        Row::Eval(EvalRow { step, tokens: step * 1_000_000, elapsed: step as f64, loss: 1.0, bpb, best: false })
    }

    fn series(rows: Vec<Row>, stages: &[(u64, &str)]) -> Series {
        let stage = |&(step, label): &(u64, &str)| Stage { step, label: label.into() };
        Series { name: "a < b".into(), rows, stages: stages.iter().map(stage).collect() }
    }

    fn options() -> Options {
        Options { title: "this & that".into(), axis: Axis::Tokens, entropy_bound: None }
    }

    /// Every element is closed by its own name, and no number is missing.
    fn check(svg: &str) {
        let mut open = Vec::new();
        for piece in svg.split('<').skip(1) {
            let (tag, after) = piece.split_once('>').expect("a tag that ends");
            assert!(!after.contains('>') && tag.matches('"').count() % 2 == 0, "{piece}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{piece}");
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        for (i, _) in svg.match_indices('&') {
            let entity = ["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|e| svg[i..].starts_with(e));
            assert!(entity, "{}", &svg[i..]);
        }
    }

    #[test]
    fn points_are_where_they_belong() {
        let rows = vec![train(5, 3.0, 0.5), train(10, 1.0, 0.25), eval(10, 0.75)];
        let svg = draw(&[series(rows, &[(6, "second")])], &options());
        check(&svg);
        // Across: 5 of 10 M tokens are half of 820. Down: 1 to 3 with 8 % of 2 as room on each side, over 236 pixels:
        // 236 * 0.16 / 2.32 = 16.28 from either edge.
        assert!(svg.contains("<path class=\"mean s0\" d=\"M410.0 16.3L820.0 219.7\"/>"), "{svg}");
        // A rate of half the peak, with 12 % room: 44 - 44 / 2.24 = 24.36.
        assert!(svg.contains("d=\"M410.0 4.7L820.0 24.4\""), "{svg}");
        // One value is in the middle: 172 / 2.
        assert!(svg.contains("<circle class=\"ring s0\" cx=\"820.0\" cy=\"86.0\""), "{svg}");
        assert!(svg.contains("<path class=\"stage \" d=\"M820.0 "), "{svg}");
        for text in ["this &amp; that", ">second<", ">1.00<", ">0.750<", "peak 5.0e-1", "Tokens seen (M)"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("entropy bound"));
    }

    #[test]
    fn the_bound_is_drawn_and_within_the_range() {
        let options = Options { entropy_bound: Some(0.25), ..options() };
        let svg = draw(&[series(vec![eval(1, 0.5), eval(2, 0.75)], &[])], &options);
        check(&svg);
        // 0.25 to 0.75 with 8 % of room: 172 * 1.08 / 1.16 = 160.1.
        assert!(svg.contains("<path class=\"bound\" d=\"M0 160.1H820\"/>"), "{svg}");
        assert!(svg.contains(">entropy bound 0.250<"));
    }

    #[test]
    fn the_first_fall_is_left_out_of_the_range_and_an_early_best_is_not() {
        let x = Scale { lo: 0.0, hi: 100.0, length: 1.0 };
        assert_eq!(settled([&vec![(0.0, 9.0), (3.0, 2.0), (100.0, 1.0)]].into_iter(), &x), [2.0, 1.0]);
        assert_eq!(settled([&vec![(0.0, 0.5), (3.0, 2.0), (100.0, 1.0)]].into_iter(), &x), [2.0, 1.0, 0.5]);
        assert_eq!(settled([&vec![(0.0, 9.0), (100.0, 1.0)]].into_iter(), &x), [9.0, 1.0]);
    }

    #[test]
    fn anything_can_be_drawn() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, -1e29, 1e29, 0.0, -0.0, 1e-300, 2.0];
        let mut cases =
            vec![Vec::new(), vec![eval(0, 1.0)], vec![train(0, 1.0, 0.0)], vec![train(u64::MAX / 1_000_000, 1.0, 1.0)]];
        for a in odd {
            cases.push(vec![train(1, a, a), eval(1, a)]);
            for b in odd {
                cases.push(vec![train(1, a, b), train(2, b, a), eval(2, a), eval(3, b)]);
            }
        }
        cases.push(vec![Row::Sample(SampleRow { step: 1, prompt: "<".into(), text: "&".into() })]);
        for rows in cases {
            for axis in [Axis::Tokens, Axis::Elapsed] {
                for bound in [None, Some(f64::NAN), Some(0.3)] {
                    let options = Options { axis, entropy_bound: bound, ..options() };
                    let run = series(rows.clone(), &[(0, "<a>"), (2, ""), (u64::MAX, "b")]);
                    check(&draw(std::slice::from_ref(&run), &options));
                    check(&draw(&[run.clone(), run], &options));
                }
            }
        }
        check(&draw(&[], &options()));
    }

    #[test]
    fn runs_are_told_apart_and_their_labels_do_not_overlap() {
        let runs: Vec<Series> = (0..20)
            .map(|i| {
                // Half of them end at the top, half at the bottom.
                let (first, last) = if i % 2 == 0 { (2.0, 1.0) } else { (1.0, 2.0) };
                let name = format!("run number {i}");
                Series { name, ..series(vec![train(1, first, 1.0), train(2, last, 1.0)], &[(1, "stage")]) }
            })
            .collect();
        let svg = draw(&runs[..10], &options());
        check(&svg);
        assert!((0..10).all(|i| svg.contains(&format!(">run number {i}<"))));
        let down: Vec<f64> = svg
            .lines()
            .filter_map(|line| line.strip_prefix("<text class=\"end ")?.split("y=\"").nth(1)?.split('"').next())
            .map(|y| y.parse().unwrap())
            .collect();
        assert_eq!(down.len(), 10);
        assert!(down.windows(2).all(|pair| pair[1] - pair[0] >= 13.9), "{down:?}");
        assert!(down.iter().all(|y| (0.0..=240.0).contains(y)), "{down:?}");
        check(&draw(&runs, &options()));
    }

    #[test]
    fn long_runs_make_small_pictures() {
        let rows = (1..50_000).map(|i| train(i, f64::from(i as u32 % 7), 1.0)).collect();
        let svg = draw(&[series(rows, &[])], &options());
        assert!(svg.len() < 100_000, "{}", svg.len());
    }
}
