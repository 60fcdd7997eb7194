//! How a run's picture looks: colours of light and dark paper, and text as SVG has it.

/// Colours of the runs, on light and on dark paper.
pub(super) const COLOURS: [(&str, &str); 8] = [
    ("#2563c9", "#78aaff"),
    ("#d4571c", "#ff9e66"),
    ("#17876b", "#4fd0a6"),
    ("#8b44b8", "#cb98f0"),
    ("#c2325a", "#ff829f"),
    ("#857213", "#d6c24e"),
    ("#0b86a3", "#55cbe6"),
    ("#5f6670", "#aab2bd"),
];

const STYLE: &str = "\
text{font:12px ui-sans-serif,system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;\
font-variant-numeric:tabular-nums;fill:#4b5260}\
.title{font-size:19px;font-weight:600;fill:#14171c}.name{font-size:13px;font-weight:600;fill:#2a2f38}\
.halo{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}.end{font-weight:600}\
.paper{fill:#fff}.grid{stroke:#e8eaee}.axis{stroke:#b9bec7}.strong{fill:#14171c}\
.bound{stroke:#14171c;stroke-width:1.3;stroke-dasharray:6 4}.stage{stroke:#8a919d;stroke-dasharray:2 3}\
.raw,.mean,.thin{fill:none;stroke-linejoin:round;stroke-linecap:round}\
.raw{stroke-width:1;opacity:.4}.mean{stroke-width:2.2}.thin{stroke-width:1.4}.area{stroke:none;opacity:.14}\
.dot{stroke:#fff;stroke-width:1.2}.ring{fill:none;stroke-width:1.6}";

const DARK: &str = "\
text{fill:#a3abb8}.title{fill:#f2f4f8}.name{fill:#d9dde5}.halo{stroke:#12151b}.paper{fill:#12151b}\
.grid{stroke:#242932}.axis{stroke:#4b5361}.strong{fill:#f2f4f8}.bound{stroke:#f2f4f8}.stage{stroke:#79818f}\
.dot{stroke:#12151b}.raw{opacity:.5}";

/// The style sheet; `s0`, `f0` and so on stroke and fill in the colour of a run.
pub(super) fn sheet() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (i, (on_light, on_dark)) in COLOURS.iter().enumerate() {
        light += &format!(".s{i}{{stroke:{on_light}}}.f{i}{{fill:{on_light}}}");
        dark += &format!(".s{i}{{stroke:{on_dark}}}.f{i}{{fill:{on_dark}}}");
    }
    format!("{STYLE}{light}@media (prefers-color-scheme:dark){{{DARK}{dark}}}")
}

/// A line of text; `anchor` is start, middle or end.
pub(super) fn text(x: f64, y: f64, class: &str, anchor: &str, text: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escape(text))
}

/// About how wide text of 12 pixels is, in pixels; wide rather than narrow.
pub(super) fn text_width(text: &str) -> f64 {
    text.chars()
        .map(|c| match c {
            'f' | 'i' | 'j' | 'l' | 'r' | 't' | 'I' | ' ' | '.' | ',' | ':' | ';' | '\'' | '|' => 4.5,
            'm' | 'w' | 'M' | 'W' | '%' | '@' => 11.0,
            c if c.is_ascii() => 7.3,
            _ => 12.0,
        })
        .sum()
}

/// At most `most` characters, the last an ellipsis where there are more.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// Text as XML allows it.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            text(1.0, 2.25, "a", "end", "<b> & \"c\"\0\n\u{ffff}é"),
            "<text class=\"a\" x=\"1.0\" y=\"2.2\" text-anchor=\"end\">&lt;b&gt; &amp; &quot;c&quot;  \u{fffd}é</text>\n"
        );
    }

    #[test]
    fn long_text_is_shortened_by_characters() {
        assert_eq!(shortened("ééé", 3), "ééé");
        assert_eq!(shortened("éé é", 3), "éé…");
        assert_eq!(shortened("é é é", 3), "é…");
    }

    #[test]
    fn every_colour_has_a_dark_one() {
        let sheet = sheet();
        let (light, dark) = sheet.split_once("@media (prefers-color-scheme:dark){").unwrap();
        for i in 0..COLOURS.len() {
            for part in [light, dark] {
                assert_eq!(part.matches(&format!(".s{i}{{stroke:#")).count(), 1);
                assert_eq!(part.matches(&format!(".f{i}{{fill:#")).count(), 1);
            }
        }
        assert_eq!(sheet.matches('{').count(), sheet.matches('}').count());
    }
}
