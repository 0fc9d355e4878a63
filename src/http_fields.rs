//! Values of HTTP fields that several modules read.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER};

/// Returns the stated length of the body; `None` when there is none, or it is not a number.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Returns the time by the sender's clock, where it shows one.
pub(crate) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// Returns how long the sender asks to be left alone (RFC 9110 §10.2.3), zero for a date that has
/// passed. A date is compared with the sender's own clock where it shows one, otherwise with ours.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = date(headers).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

/// Tells whether a byte may be in a token (RFC 9110 §5.6.2).
pub(crate) fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Media type of gRPC, and the beginning of those of its messages' formats and of gRPC-Web.
const GRPC: &[u8] = b"application/grpc";

/// Tells whether these are the headers of a gRPC call. Not of gRPC-Web, whose clients read the HTTP
/// status.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes();
        kind.get(..GRPC.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
            && matches!(kind.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
    })
}

/// Tells whether these headers belong to a stream of messages: gRPC or gRPC-Web, whose receiver
/// reads each message as it comes.
pub(crate) fn is_grpc_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter();
        fields
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_length_is_digits_alone() {
        for (value, length) in [("3", Some(3)), ("3, 3", None), ("", None), ("-1", None)] {
            let headers = headers(&[("content-length", value)]);
            assert_eq!(content_length(&headers), length, "{value}");
        }
        assert_eq!(content_length(&HeaderMap::new()), None);
    }

    #[test]
    fn a_date_is_compared_with_the_senders_clock_and_without_one_with_ours() {
        let until = "Sun, 06 Nov 1994 08:50:07 GMT";
        let sent = "Sun, 06 Nov 1994 08:49:37 GMT";
        let both = headers(&[("retry-after", until), ("date", sent)]);
        assert_eq!(retry_after(&both), Some(Duration::from_secs(30)));
        let without = headers(&[("retry-after", until)]);
        assert_eq!(retry_after(&without), Some(Duration::ZERO));
        let ahead = httpdate::fmt_http_date(SystemTime::now() + Duration::from_mins(2));
        let asked = retry_after(&headers(&[("retry-after", &ahead)])).unwrap();
        assert!((60..=120).contains(&asked.as_secs()), "{asked:?}");
        for odd in ["soon", "-3", ""] {
            assert_eq!(retry_after(&headers(&[("retry-after", odd)])), None);
        }
    }

    #[test]
    fn grpc_is_told_by_its_whole_media_type() {
        for (kind, grpc, stream) in [
            ("application/grpc", true, true),
            ("application/grpc+proto", true, true),
            ("Application/gRPC+proto", true, false),
            ("application/grpc; charset=utf-8", true, true),
            ("application/grpc-web+proto", false, true),
            ("application/grpcx", false, true),
            ("application/json", false, false),
        ] {
            let headers = headers(&[("content-type", kind)]);
            assert_eq!(is_grpc(&headers), grpc, "{kind}");
            assert_eq!(is_grpc_stream(&headers), stream, "{kind}");
        }
    }
}
