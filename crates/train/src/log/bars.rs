//! `flashlm eval A B --svg FILE`: models side by side, a bar of bits per byte and one of bytes on disk for each.
//!
//! Both scales begin at 0, so that lengths compare as the values do. Where the published protocol was asked for, its figure is a
//! thin bar below. Looks as the pictures of `svg.rs`: no script, no font, light or dark as its reader has it.

use super::scale::Scale;
use super::style::{escape, sheet, shortened, text};
use crate::units::{self, counted, thousands};

/// One model.
pub struct Bar {
    /// Its name.
    pub label: String,
    /// Bits per byte.
    pub bits: f64,
    /// Bits per character of the published protocol.
    pub understated: Option<f64>,
    /// On disk.
    pub bytes: u64,
    /// Numbers that were trained.
    pub parameters: u64,
    /// Whether it runs in float, not packed.
    pub float: bool,
}

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Where the bars of bits begin, and how long the longest may be; then those of sizes.
const BITS: (f64, f64) = (250.0, 400.0);
const SIZE: (f64, f64) = (740.0, 120.0);
/// Of one model, and of its bar.
const ROW: f64 = 46.0;
const HEIGHT: f64 = 20.0;
const TOP: f64 = 132.0;

/// The picture as an SVG document; `stories` and `bytes` are what was scored of `data`.
pub fn draw(bars: &[Bar], data: &str, stories: u64, bytes: u64) -> String {
    let title = format!("Bits per byte on {data}");
    let scored =
        format!("Lower is better. Every byte of {}, {} in all.", counted(stories, "document"), units::bytes(bytes));
    let bottom = TOP + ROW * bars.len() as f64;
    let height = bottom + 40.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>{}</style>\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
        escape(&title),
        sheet(),
    );
    out += &text(MARGIN, 38.0, "title", "start", &shortened(&title, 80));
    out += &text(MARGIN, 62.0, "", "start", &scored);
    out += &legend(bars);
    out += &text(BITS.0, TOP - 14.0, "name", "start", "Bits per byte");
    out += &text(SIZE.0, TOP - 14.0, "name", "start", "Size on disk");
    let scale = |values: &mut dyn Iterator<Item = f64>, length| {
        let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Scale { lo: 0.0, hi: if most > 0.0 { most } else { 1.0 }, length }
    };
    let bits = scale(&mut bars.iter().flat_map(|bar| [bar.bits, bar.understated.unwrap_or(0.0)]), BITS.1);
    let sizes = scale(&mut bars.iter().map(|bar| bar.bytes as f64), SIZE.1);
    for (value, label) in bits.ticks(1.0, 6) {
        let x = BITS.0 + bits.right(value);
        out += &format!("<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>");
        out += &text(x, bottom + 18.0, "", "middle", &label);
    }
    for (i, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * i as f64 + 8.0;
        let fill = if bar.float { "f1" } else { "f0" };
        out += &text(BITS.0 - 12.0, y + 10.0, "strong", "end", &shortened(&bar.label, 32));
        out += &text(BITS.0 - 12.0, y + 25.0, "", "end", &format!("{} parameters", thousands(bar.parameters)));
        out += &one(BITS.0, y, bits.right(bar.bits), HEIGHT, fill);
        out += &text(BITS.0 + end(&bits, bar.bits) + 8.0, y + 14.5, "end strong", "start", &format!("{:.3}", bar.bits));
        if let Some(value) = bar.understated {
            out += &one(BITS.0, y + HEIGHT + 3.0, bits.right(value), 5.0, &format!("raw {fill}"));
            let label = format!("{value:.3} by the published protocol");
            out += &text(BITS.0 + end(&bits, value) + 8.0, y + HEIGHT + 10.0, "", "start", &label);
        }
        out += &one(SIZE.0, y, sizes.right(bar.bytes as f64), HEIGHT, fill);
        let x = SIZE.0 + end(&sizes, bar.bytes as f64) + 8.0;
        out += &text(x, y + 14.5, "", "start", &units::bytes(bar.bytes));
    }
    for (from, _) in [BITS, SIZE] {
        out += &format!("<path class=\"axis\" d=\"M{from} {TOP}V{bottom}\"/>\n");
    }
    out + "</svg>\n"
}

/// Where a bar ends; one that is no number has no length.
fn end(scale: &Scale, value: f64) -> f64 {
    if value.is_finite() { scale.right(value) } else { 0.0 }
}

fn one(x: f64, y: f64, length: f64, height: f64, class: &str) -> String {
    let length = if length.is_finite() { length.max(0.5) } else { 0.0 };
    format!("<rect class=\"{class}\" x=\"{x}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{height}\" rx=\"2\"/>\n")
}

/// The two kinds of model, where both are there, and the thin bar.
fn legend(bars: &[Bar]) -> String {
    let mut items = Vec::new();
    if bars.iter().any(|bar| !bar.float) {
        items.push(("f0", 12.0, "ternary, packed"));
    }
    if bars.iter().any(|bar| bar.float) {
        items.push(("f1", 12.0, "float"));
    }
    if bars.iter().any(|bar| bar.understated.is_some()) {
        items.push(("raw f7", 5.0, "published protocol: understated, for comparison with published tables only"));
    }
    let mut out = String::new();
    let mut x = MARGIN;
    for (class, height, name) in items {
        out += &one(x, 86.0 - height, 12.0, height, class);
        out += &text(x + 20.0, 85.0, "", "start", name);
        x += 20.0 + super::style::text_width(name) + 24.0;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, bits: f64, bytes: u64, float: bool) -> Bar {
        Bar { label: label.into(), bits, understated: None, bytes, parameters: 1_234, float }
    }

    /// Width of each bar of a class, in order.
    fn widths(svg: &str, class: &str) -> Vec<f64> {
        let lines = svg.lines().filter(|line| line.starts_with(&format!("<rect class=\"{class}\"")));
        let lines = lines.filter(|line| line.contains("height=\"20\""));
        lines.map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn lengths_are_in_the_ratio_of_the_values() {
        let bars = [bar("a < b", 0.8, 1_000_000, false), bar("c", 0.4, 4_000_000, true)];
        let svg = draw(&bars, "valid.txt", 500, 402_270);
        let (packed, float) = (widths(&svg, "f0"), widths(&svg, "f1"));
        assert_eq!((packed[0], float[0]), (BITS.1, BITS.1 / 2.0));
        assert_eq!((packed[1], float[1]), (SIZE.1 / 4.0, SIZE.1));
        assert!(svg.contains("a &lt; b") && svg.contains("1,234 parameters") && svg.contains("0.800"));
        assert!(svg.contains("500 documents") && !svg.contains("published"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn odd_values_give_a_picture_without_odd_numbers() {
        let thin = Bar { understated: Some(0.5), ..bar("d", 0.9, 5, false) };
        let bars = [bar("a", f64::NAN, 0, false), bar("b", f64::INFINITY, u64::MAX, true), thin];
        let svg = draw(&bars, "x", 1, 1);
        assert!(svg.contains("0.500 by the published protocol"));
        for rect in svg.lines().filter(|line| line.starts_with("<rect") || line.starts_with("<path")) {
            assert!(!rect.contains("NaN") && !rect.contains("inf"), "{rect}");
        }
        assert!(draw(&[], "x", 0, 0).ends_with("</svg>\n"));
    }
}
