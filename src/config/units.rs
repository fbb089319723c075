//! Durations and sizes with units, from text and to text.

use std::time::Duration;

const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const SIZES: [(&str, u64); 4] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// A year: an instant plus any configured duration does not overflow.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(8760 * 3600);

/// Reads `250ms`, `15s`, `2m`, `1h`, and `0`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let millis =
        parse(text, &DURATIONS).ok_or("a duration is a whole number with `ms`, `s`, `m` or `h`")?;
    let duration = Duration::from_millis(millis);
    if duration > DURATION_MAX {
        Err("a duration is at most a year, `8760h`")
    } else {
        Ok(duration)
    }
}

/// Reads `512B`, `64KiB`, `16MiB`, `1GiB`, and `0`.
pub(super) fn parse_size(text: &str) -> Result<usize, &'static str> {
    let bytes =
        parse(text, &SIZES).ok_or("a size is a whole number with `B`, `KiB`, `MiB` or `GiB`")?;
    // 1 TiB: more than a pod has.
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes <= 1 << 40)
        .ok_or("a size is at most `1024GiB`")
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    if number == 0 && unit.is_empty() {
        return Some(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    // A product that does not fit is above every bound.
    Some(number.saturating_mul(*factor))
}

/// Formats a duration as in the file, cut to whole milliseconds.
pub(super) fn format_duration(duration: Duration) -> String {
    format(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        &DURATIONS,
    )
}

/// Formats a size as in the file.
pub(super) fn format_size(bytes: usize) -> String {
    format(bytes as u64, &SIZES)
}

fn format(number: u64, units: &[(&str, u64)]) -> String {
    // The largest unit that divides the number.
    let unit = units
        .iter()
        .rev()
        .find(|(_, factor)| number > 0 && number.is_multiple_of(*factor));
    match unit {
        Some((name, factor)) => format!("{}{name}", number / factor),
        None => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn number_needs_a_unit_unless_it_is_zero() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("0"), Ok(0));
        for text in [
            "",
            "15",
            "s",
            "1.5s",
            "1m30s",
            "-1s",
            "+1s",
            "1 s",
            "15S",
            "1d",
            "٣s",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        for text in [
            "",
            "16",
            "16MB",
            "16M",
            "16mib",
            "1.5GiB",
            "16 MiB",
            "99999999GiB",
        ] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
        assert_eq!(
            parse_duration("18446744073709551615h"),
            Err("a duration is at most a year, `8760h`")
        );
    }

    proptest! {
        #[test]
        fn formatted_values_are_parsed_back(millis in 0..=8760u64 * 3_600_000, bytes in 0..=1usize << 40) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
    }
}
