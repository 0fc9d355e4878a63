//! Durations (`250ms`, `5s`, `2m`, `1h`) and sizes (`512B`, `64KiB`, `10MiB`, `1GiB`).

use std::time::Duration;

/// The form of durations, for hints.
pub(super) const DURATIONS: &str = "durations are written `250ms`, `5s`, `2m` or `1h`";

/// The form of sizes, for hints.
pub(super) const SIZES: &str = "sizes are written `512B`, `64KiB`, `10MiB` or `1GiB`";

/// Reads a duration: digits and one unit, nothing between them.
///
/// # Errors
/// The problem, as the end of a sentence that begins with the place.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    let (digits, unit) = split(text);
    let number: u64 = number(digits).ok_or("is not a duration")?;
    let span = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(60 * 60).map(Duration::from_secs),
        _ => return Err("is not a duration"),
    };
    span.filter(|span| *span <= LONGEST)
        .ok_or("is longer than a year")
}

/// Reads a size in bytes: digits and one unit, nothing between them.
///
/// # Errors
/// The problem, as the end of a sentence that begins with the place.
pub(super) fn size(text: &str) -> Result<u64, &'static str> {
    let (digits, unit) = split(text);
    let number: u64 = number(digits).ok_or("is not a size")?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("is not a size"),
    };
    number.checked_mul(factor).ok_or("is larger than 64 bits")
}

fn split(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Reads digits. Too many for 64 bits count as the largest number: too long, rather than no number.
fn number(digits: &str) -> Option<u64> {
    (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Longest duration: a point in time plus any accepted duration must not overflow.
const LONGEST: Duration = Duration::from_hours(365 * 24);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, want) in [
            ("0s", Ok(Duration::ZERO)),
            ("250ms", Ok(Duration::from_millis(250))),
            ("5s", Ok(Duration::from_secs(5))),
            ("2m", Ok(Duration::from_mins(2))),
            ("1h", Ok(Duration::from_hours(1))),
            ("8760h", Ok(LONGEST)),
            ("8761h", Err("is longer than a year")),
            ("99999999999999999999999s", Err("is longer than a year")),
            ("18446744073709551615m", Err("is longer than a year")),
            ("", Err("is not a duration")),
            ("5", Err("is not a duration")),
            ("s", Err("is not a duration")),
            ("5 s", Err("is not a duration")),
            ("-5s", Err("is not a duration")),
            ("1.5s", Err("is not a duration")),
            ("1m30s", Err("is not a duration")),
            ("5S", Err("is not a duration")),
            ("٣s", Err("is not a duration")),
        ] {
            assert_eq!(duration(text), want, "{text}");
        }
    }

    #[test]
    fn sizes_have_a_number_and_a_binary_unit() {
        for (text, want) in [
            ("0B", Ok(0)),
            ("512B", Ok(512)),
            ("64KiB", Ok(65_536)),
            ("10MiB", Ok(10_485_760)),
            ("1GiB", Ok(1_073_741_824)),
            ("17179869184GiB", Err("is larger than 64 bits")),
            ("10", Err("is not a size")),
            ("10MB", Err("is not a size")),
            ("10mib", Err("is not a size")),
            ("MiB", Err("is not a size")),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in any::<String>()) {
            let _ = (duration(&text), size(&text));
        }
    }
}
