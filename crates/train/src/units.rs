//! How times, counts and sizes are written for people.

/// A time in its two largest units: `4.2s`, `42s`, `2m03s`, `1h05m`, `3d07h`; `?` for what is none.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A time in seconds since 1970 as a date of UTC: `2026-03-01 09:05`.
pub fn date(seconds: u64) -> String {
    let (day, minute) = (seconds / 86_400, seconds % 86_400 / 60);
    // Days since 0000-03-01, in eras of 400 years (H. Hinnant, "chrono-compatible low-level date algorithms").
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let (month, of_month) = ((5 * of_year + 2) / 153, of_year - (153 * ((5 * of_year + 2) / 153) + 2) / 5 + 1);
    // From January on it is the next year.
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{of_month:02} {:02}:{:02}", year + 400 * era + next, minute / 60, minute % 60)
}

/// A count in three or four figures: `999`, `12.4K`, `12.4M`, `1.2B`.
pub fn count(n: u64) -> String {
    scaled(n, 1000.0, &["", "K", "M", "B", "T"])
}

/// A size in memory or on disk: `999 B`, `1.5 KiB`, `12.4 MiB`.
pub fn bytes(n: u64) -> String {
    scaled(n, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

/// All digits, in groups of three: `18,204`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number with its noun: `1 thread`, `2 threads`, `2 stories`.
pub fn counted(n: u64, noun: &str) -> String {
    match (n, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{} {stem}ies", thousands(n)),
        _ => format!("{} {noun}s", thousands(n)),
    }
}

fn scaled(n: u64, base: f64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    // What would be rounded up to the base belongs to the next unit.
    let limit = |unit| if unit == 0 { base } else { base - 0.05 };
    while value >= limit(unit) && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = usize::from(unit > 0);
    format!("{value:.decimals$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            (0.0, "0.0s"),
            (9.94, "9.9s"),
            (9.96, "10s"),
            (59.6, "1m00s"),
            (123.0, "2m03s"),
            (3599.7, "1h00m"),
            (7380.0, "2h03m"),
            (284_400.0, "3d07h"),
            (-1.0, "?"),
            (f64::INFINITY, "?"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // As `date -u -d @N` prints them.
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (1_709_251_199, "2024-02-29 23:59"),
            (1_772_355_900, "2026-03-01 09:05"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn counts_and_sizes() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (999_949, "999.9K"),
            (999_950, "1.0M"),
            (12_412_000, "12.4M"),
            (2_160_000_000, "2.2B"),
            (u64::MAX, "18446744.1T"),
        ];
        for (n, text) in cases {
            assert_eq!(count(n), text);
        }
        let cases = [(1023, "1023 B"), (1024, "1.0 KiB"), (1_048_575, "1.0 MiB"), (13_002_342, "12.4 MiB")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (18_204, "18,204"), (1_234_567, "1,234,567")];
        for (n, text) in cases {
            assert_eq!(thousands(n), text);
        }
    }
}
