//! Formats times and numbers for people.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};

/// Formats a time relative to `now`, with the exact time for machines and as a tooltip.
pub(super) fn when(at: SystemTime, now: SystemTime) -> Markup {
    let words = match at.duration_since(now) {
        Ok(left) if left < Duration::from_secs(1) => "now".to_owned(),
        Ok(left) => format!("in {}", span(left)),
        Err(past) if past.duration() < Duration::from_secs(1) => "now".to_owned(),
        Err(past) => format!("{} ago", span(past.duration())),
    };
    let exact = humantime::format_rfc3339_seconds(at).to_string();
    html! { time datetime=(exact) title=(exact) { (words) } }
}

/// Formats a duration, in the units that matter at its length.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        3600..86400 if minutes % 60 == 0 => format!("{hours} h"),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        86400..172_800 => format!("1 day {} h", hours % 24),
        _ => format!("{days} days"),
    }
}

/// Formats the time of day in UTC, with seconds.
pub(super) fn clock(at: SystemTime) -> String {
    let exact = humantime::format_rfc3339_seconds(at).to_string();
    exact.get(11..19).unwrap_or_default().to_owned()
}

pub(super) fn date(at: SystemTime) -> String {
    let exact = humantime::format_rfc3339_seconds(at).to_string();
    exact.get(..10).unwrap_or_default().to_owned()
}

pub(super) fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// Groups digits: `1234567` becomes `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_as_exact_as_it_matters() {
        for (seconds, words) in [
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (7200, "2 h"),
            (7260, "2 h 1 min"),
            (90_000, "1 day 1 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), words);
        }
        for (number, words) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), words);
        }
    }
}
