//! A histogram as SVG, in the looks of `curve.svg`: bars side by side, one a bin, each with its range below and its count above.

use super::scale::Scale;
use super::style::{escape, sheet, shortened, text};
use crate::units::count;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const LEFT: f64 = 68.0;
const PLOT: f64 = 868.0;
const TOP: f64 = 76.0;
const HEIGHT: f64 = 300.0;

/// A bin, which goes up to where the next starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bin {
    /// Where it starts.
    pub from: u64,
    /// How many are in it.
    pub count: u64,
}

/// One bar for each bin; `axis` says what is counted below them.
pub fn draw(title: &str, axis: &str, bins: &[Bin]) -> String {
    let height = TOP + HEIGHT + 64.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
        escape(title),
        sheet(),
    );
    out += &text(MARGIN, 38.0, "title", "start", &shortened(title, 80));
    out += &format!("<g transform=\"translate({LEFT} {TOP})\">\n");
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1) as f64;
    let y = Scale { lo: 0.0, hi: most * 1.08, length: HEIGHT };
    for (value, label) in y.ticks(1.0, 6) {
        let py = y.down(value);
        out += &format!("<path class=\"grid\" d=\"M0 {py:.1}H{PLOT}\"/>");
        out += &text(-8.0, py + 4.0, "", "end", &label);
    }
    let wide = PLOT / bins.len().max(1) as f64;
    for (i, Bin { from, count: number }) in bins.iter().enumerate() {
        let (x, top) = (i as f64 * wide, y.down(*number as f64));
        out += &format!(
            "<rect class=\"f0\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\n",
            x + wide * 0.06,
            wide * 0.88,
            HEIGHT - top
        );
        if *number > 0 && wide > 26.0 {
            out += &text(x + wide / 2.0, top - 5.0, "", "middle", &count(*number));
        }
        // Where they would touch, every other one.
        if wide > 30.0 || i % 2 == 0 {
            out += &text(x, HEIGHT + 18.0, "", "middle", &count(*from));
        }
    }
    out += &format!("<path class=\"axis\" d=\"M0 {HEIGHT}H{PLOT}\"/>\n");
    out += &text(PLOT / 2.0, HEIGHT + 44.0, "", "middle", axis);
    out + "</g>\n</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_counts() {
        let svg = draw("a < b", "characters", &[(1, 50), (2, 0), (3, 100)].map(|(from, count)| Bin { from, count }));
        let heights: Vec<f64> = svg
            .split("<rect class=\"f0\"")
            .skip(1)
            .map(|bar| bar.split("height=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(heights.len(), 3);
        assert!((heights[2] - HEIGHT / 1.08).abs() < 0.1 && (heights[0] - heights[2] / 2.0).abs() < 0.1);
        assert_eq!(heights[1], 0.0);
        assert!(svg.contains("a &lt; b") && svg.contains(">characters<"));
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
        assert!(!draw("", "", &[]).contains("NaN"));
    }
}
