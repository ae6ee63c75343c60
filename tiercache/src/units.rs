//! Durations and sizes as people write them.

use std::time::Duration;

/// What a duration may look like, for messages.
pub const DURATION_FORM: &str = "a duration above zero such as `90s`, `4h` or `1h 30m`";
/// What a size may look like, for messages.
pub const SIZE_FORM: &str = "a size above zero such as `2GB` (10^9), `512MiB` (2^20) or a number of bytes";

// Names are compared without regard to case. GB is decimal and GiB binary, as the standards have it.
const UNITS: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

/// Reads `90s`, `4h`, `1h 30m`.
///
/// # Errors
/// Says what is wrong with the text and what is allowed; a duration of zero is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text).map_err(|found| format!("{found}; allowed: {DURATION_FORM}"))
}

/// As [`parse_duration`], saying only what is wrong.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return Err(if number > 0.0 {
            format!("`{text}` has no unit, write `{text}s` for seconds")
        } else {
            format!("`{text}` is not above zero")
        });
    }
    let parsed = humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration ({})", error.to_string().to_lowercase()))?;
    // Times are kept in milliseconds: anything shorter would be none at all.
    if parsed < Duration::from_millis(1) {
        return Err(format!("`{text}` is not above zero (at least 1ms)"));
    }
    Ok(parsed)
}

/// A number of hours, as the first system's files have it.
///
/// # Errors
/// Says what is wrong with the number.
pub fn duration_of_hours(hours: f64) -> Result<Duration, String> {
    let wrong = || format!("{hours} is not a number of hours above zero");
    let duration = Duration::try_from_secs_f64(hours * 3600.0).map_err(|_| wrong())?;
    if duration < Duration::from_millis(1) { Err(wrong()) } else { Ok(duration) }
}

/// Writes a duration so that [`parse_duration`] reads the same one.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Reads `2GB` (decimal), `512MiB` (binary), `100B` or a bare number of bytes; case and blanks do not matter.
///
/// # Errors
/// Says what is wrong with the text and what is allowed; a size of zero is refused.
pub fn parse_size(text: &str) -> Result<u64, String> {
    size(text).map_err(|found| format!("{found}; allowed: {SIZE_FORM}"))
}

/// As [`parse_size`], saying only what is wrong.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is not a size");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let factor = match unit {
        "" => 1,
        unit => UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|&(_, factor)| factor)
            .ok_or_else(wrong)?,
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) if number.contains('.') => {
            let fraction: f64 = number.parse().map_err(|_| wrong())?;
            Some((fraction * factor as f64).round()).filter(|&bytes| bytes < 1e19).map(|bytes| bytes as u64)
        }
        Err(_) => None,
    };
    match bytes {
        Some(0) => Err(format!("`{text}` is not above zero")),
        Some(bytes) => Ok(bytes),
        None => Err(wrong()),
    }
}

/// A number of binary gigabytes, as the first system's files have it under `max_size_gb`.
///
/// # Errors
/// Says what is wrong with the number.
pub fn size_of_gib(gib: f64) -> Result<u64, String> {
    let bytes = (gib * (1u64 << 30) as f64).round();
    if (1.0..1e19).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("{gib} is not a number of GiB above zero"))
    }
}

/// Writes a size so that [`parse_size`] reads the same one: in the unit that leaves the smallest whole number.
pub fn format_size(bytes: u64) -> String {
    let (name, factor) = UNITS
        .iter()
        .rev()
        .max_by_key(|(_, factor)| if bytes.is_multiple_of(*factor) { *factor } else { 1 })
        .unwrap_or(&UNITS[0]);
    format!("{}{name}", bytes / factor)
}

/// Writes a size for people, rounded: `1.5 GiB`.
pub fn rounded_size(bytes: u64) -> String {
    const NAMES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < NAMES.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", NAMES[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_in_every_spelling() {
        for (text, bytes) in [
            ("2GB", 2_000_000_000),
            ("512 MB", 512_000_000),
            ("1.5gib", 3 << 29),
            ("100B", 100),
            ("1TB", 1_000_000_000_000),
            ("512MiB", 512 << 20),
            (" 7 kb ", 7_000),
            ("123", 123),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_a_message() {
        for text in
            ["-1MB", "abc", "", "0", "0GB", "2G", "1.2.3MB", "99999999999999TB", "GB", "1e3", "NaN", "٣MB"]
        {
            let message = parse_size(text).expect_err(text);
            assert!(message.contains("above zero"), "{message}");
        }
    }

    #[test]
    fn printed_sizes_and_durations_read_the_same() {
        for bytes in [1, 1000, 1024, 1536, 2_000_000_000, 2 << 30, 100 << 30, 123_456_789, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes), "{}", format_size(bytes));
        }
        assert_eq!(format_size(2 << 30), "2GiB");
        assert_eq!(format_size(2_000_000_000), "2GB");
        assert_eq!(rounded_size(3 << 29), "1.5 GiB");
        for text in ["90s", "4h", "1h 30m", "250ms", "7d"] {
            let duration = parse_duration(text).expect(text);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_a_message() {
        for text in ["0s", "0", "90", "-4h", "soon", "", "1us", "4 hourz"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("90").expect_err("no unit").contains("90s"));
        for hours in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(duration_of_hours(hours).is_err() && size_of_gib(hours).is_err(), "{hours}");
        }
        assert_eq!(duration_of_hours(0.5), Ok(Duration::from_secs(1800)));
        assert_eq!(size_of_gib(0.5), Ok(1 << 29));
    }
}
