//! The description of the API, with the token ids that the models here know.

use crate::model::Served;

/// As in `openapi.json`, for ids below 65,536; those of the smallest vocabulary are valid for every model.
pub fn describe(served: &[Served]) -> String {
    let vocab = served.iter().map(Served::vocab_size).min().unwrap_or(1 << 16);
    let pattern = below(vocab.saturating_sub(1));
    include_str!("openapi.json").replace("65535", &vocab.saturating_sub(1).to_string()).replace("ID_PATTERN", &pattern)
}

/// A regular expression of the whole numbers from 0 to `most`, in decimal.
fn below(most: usize) -> String {
    let digits: Vec<u32> = most.to_string().chars().filter_map(|digit| digit.to_digit(10)).collect();
    let mut all = vec![most.to_string()];
    for (i, &digit) in digits.iter().enumerate() {
        // Those that are smaller at this place first; a number of several digits begins with no 0.
        let least = u32::from(i == 0 && digits.len() > 1);
        if digit > least {
            let (start, rest) = (&all[0][..i], digits.len() - i - 1);
            all.push(format!("{start}[{least}-{}][0-9]{{{rest}}}", digit - 1));
        }
    }
    match digits.len() {
        1 => {}
        2 => all.push("[0-9]".into()),
        n => all.extend(["[0-9]".into(), format!("[1-9][0-9]{{1,{}}}", n - 2)]),
    }
    format!("^({})$", all.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether one of the alternatives, of digits, ranges and repetitions, is all of the text.
    fn matches(pattern: &str, text: &str) -> bool {
        let inner = pattern.strip_prefix("^(").and_then(|rest| rest.strip_suffix(")$")).unwrap();
        inner.split('|').any(|alternative| {
            let (mut rest, mut counts) = (alternative, Vec::new());
            while let Some(first) = rest.chars().next() {
                let (low, high, len) = match first {
                    '[' => (rest.as_bytes()[1], rest.as_bytes()[3], 5),
                    digit => (digit as u8, digit as u8, 1),
                };
                rest = &rest[len..];
                let (mut few, mut many) = (1, 1);
                if let Some(end) = rest.strip_prefix('{').and_then(|_| rest.find('}')) {
                    let times: Vec<usize> = rest[1..end].split(',').map(|n| n.parse().unwrap()).collect();
                    (few, many, rest) = (times[0], times[times.len() - 1], &rest[end + 1..]);
                }
                counts.push((low..=high, few, many));
            }
            // Only the last may come a varying number of times.
            let mut digits = text.bytes().peekable();
            counts.iter().all(|(range, few, many)| {
                let taken = (0..*many).take_while(|_| digits.next_if(|digit| range.contains(digit)).is_some()).count();
                taken >= *few
            }) && digits.next().is_none()
        })
    }

    #[test]
    fn the_pattern_is_of_the_ids_there_are() {
        for most in [0, 1, 9, 10, 11, 19, 20, 99, 100, 256, 511, 1000, 2047, 4095, 50_256, 65_535] {
            let pattern = below(most);
            for id in
                (0..130).chain(most.saturating_sub(130)..most + 130).chain([most / 2, 10 * most, 999, 9999, 99_999])
            {
                assert_eq!(matches(&pattern, &id.to_string()), id <= most, "{id} of {most}: {pattern}");
            }
            for other in ["", "00", "01", "-1", "+1", "a", "1a"] {
                assert!(!matches(&pattern, other), "{other} of {most}");
            }
        }
    }
}
