//! How long a vendor keeps an unused connection: `Keep-Alive: timeout=N` of HTTP/1.1 servers. A
//! request that meets the end of a connection is lost, and a POST may not be sent again, so a
//! connection is no longer used shortly before.

use std::time::Duration;

use http::HeaderValue;

/// How long before its end a connection is no longer used, at most half of the time: for what the
/// vendor sees later than we, and for the grain of our clock.
const MARGIN: Duration = Duration::from_secs(1);

/// Returns how long a connection with this `Keep-Alive` may be used again (RFC 2068 §19.7.1.1).
pub(super) fn reusable(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("timeout");
        named.then(|| value.trim().trim_matches('"').parse::<u32>().ok())?
    })?;
    let time = Duration::from_secs(u64::from(seconds.min(86_400)));
    let kept = time.saturating_sub(MARGIN.min(time / 2));
    // Zero would be no limit.
    Some(kept.max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_left_alone_a_while_before_its_end() {
        for (said, milliseconds) in [
            ("timeout=5, max=100", Some(4000)),
            ("max=100,Timeout = \"2\"", Some(1000)),
            ("timeout=1", Some(500)),
            ("timeout=0", Some(1)),
            ("timeout=99999999", Some(86_399_000)),
            ("max=100", None),
            ("timeout=soon", None),
            ("", None),
        ] {
            let time = reusable(&HeaderValue::from_static(said));
            assert_eq!(time, milliseconds.map(Duration::from_millis), "{said}");
        }
    }
}
