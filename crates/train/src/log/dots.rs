//! Values of groups as SVG, in the looks of `curve.svg`: a row for each group, a dot for each value, a line at their mean and a bar
//! over one standard deviation to both sides.

use super::scale::Scale;
use super::style::{COLOURS, escape, sheet, shortened, text};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const LEFT: f64 = 230.0;
const PLOT: f64 = 700.0;
const TOP: f64 = 92.0;
const ROW: f64 = 44.0;

/// Values that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What they are of.
    pub name: String,
    /// The values; perhaps none yet.
    pub values: Vec<f64>,
}

/// Mean and standard deviation (over n - 1); the latter 0 for one value.
fn mean_and_spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// What is drawn, in words.
const ABOUT: &str = "Each run, the mean, and one standard deviation to both sides";

/// The picture; `axis` says what the values are.
pub fn draw(title: &str, axis: &str, groups: &[Group]) -> String {
    let tall = ROW * groups.len().max(1) as f64;
    let height = TOP + tall + 64.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
        escape(title),
        sheet(),
    );
    out += &text(MARGIN, 38.0, "title", "start", &shortened(title, 80));
    out += &text(MARGIN, 62.0, "", "start", ABOUT);
    out += &format!("<g transform=\"translate({LEFT} {TOP})\">\n");
    let shown = groups.iter().filter(|group| !group.values.is_empty());
    let ends = shown.flat_map(|group| {
        let (mean, spread) = mean_and_spread(&group.values);
        group.values.iter().copied().chain([mean - spread, mean + spread]).collect::<Vec<_>>()
    });
    let ends: Vec<f64> = ends.collect();
    let x = Scale::around(&ends, PLOT);
    for (value, label) in if ends.is_empty() { Vec::new() } else { x.ticks(1.0, 8) } {
        let px = x.right(value);
        out += &format!("<path class=\"grid\" d=\"M{px:.1} 0V{tall}\"/>");
        out += &text(px, tall + 20.0, "", "middle", &label);
    }
    for (i, group) in groups.iter().enumerate() {
        let (y, colour) = (ROW * (i as f64 + 0.5), i % COLOURS.len());
        out += &text(-14.0, y + 4.0, "name", "end", &shortened(&group.name, 28));
        if group.values.is_empty() {
            out += &text(8.0, y + 4.0, "", "start", "no finished run");
            continue;
        }
        let (mean, spread) = mean_and_spread(&group.values);
        let (low, middle, high) = (x.right(mean - spread), x.right(mean), x.right(mean + spread));
        out += &format!(
            "<rect class=\"area f{colour}\" x=\"{low:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"20\"/>\n\
             <path class=\"mean s{colour}\" d=\"M{middle:.1} {:.1}v28\"/>\n",
            y - 10.0,
            high - low,
            y - 14.0
        );
        for value in &group.values {
            out += &format!("<circle class=\"dot f{colour}\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\"/>\n", x.right(*value));
        }
        // To the left of what is far to the right.
        let last = group.values.iter().map(|value| x.right(*value)).fold(high, f64::max);
        let label = format!("{mean:.4}");
        out += &if last > PLOT - 70.0 {
            let first = group.values.iter().map(|value| x.right(*value)).fold(low, f64::min);
            text(first - 12.0, y + 4.0, "end halo", "end", &label)
        } else {
            text(last + 12.0, y + 4.0, "end halo", "start", &label)
        };
    }
    out += &format!("<path class=\"axis\" d=\"M0 {tall}H{PLOT}\"/>\n");
    out += &text(PLOT / 2.0, tall + 46.0, "", "middle", axis);
    out + "</g>\n</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_means_and_bars_stand_at_their_values() {
        let group = |name: &str, values: &[f64]| Group { name: name.into(), values: values.to_vec() };
        let svg =
            draw("a < b", "score", &[group("one", &[1.0, 3.0]), group("two & three", &[2.0]), group("none", &[])]);
        let numbers = |start: &str, key: &str| -> Vec<f64> {
            let after = |part: &str| part.split(key).nth(1).unwrap().split(['"', ' ']).next().unwrap().parse().unwrap();
            svg.split(start).skip(1).map(after).collect()
        };
        let dots = numbers("<circle", "cx=\"");
        // The mean of 1 and 3 is 2, which the second group has; their deviation is the root of 2.
        let means = numbers("<path class=\"mean", "d=\"M");
        assert_eq!((dots.len(), means.clone()), (3, vec![dots[2], dots[2]]));
        assert!((dots[0] + dots[1] - 2.0 * means[0]).abs() < 0.2);
        let bars = numbers("<rect class=\"area", "width=\"");
        assert!((bars[0] - (dots[1] - dots[0]) * 2f64.sqrt()).abs() < 0.3 && bars[1] == 0.0, "{bars:?} {dots:?}");
        assert!(
            svg.contains("a &lt; b")
                && svg.contains("two &amp; three")
                && svg.contains("no finished run")
                && svg.contains(">score<")
        );
        assert!(!svg.contains("NaN") && !draw("", "", &[]).contains("NaN"));
    }
}
