//! The bytes of a request head before they are parsed. Pure functions.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use memchr::memchr;

use crate::error::Error;

/// Longest request target, bytes.
pub const MAX_TARGET: usize = 16 * 1024;

/// Longest request head, bytes.
pub const MAX_HEAD: usize = 64 * 1024;

/// The detail for a request line that violates RFC 9112 §3.
pub const ODD_REQUEST_LINE: &str =
    "The request line is not method, target and version in ASCII separated by single spaces.";

/// Checks the bytes of an HTTP/1 head, because the parser repairs what must not be repaired.
///
/// # Errors
/// [`Error::BadFraming`] where the connection cannot be trusted any more, [`Error::BadRequest`],
/// [`Error::TargetTooLong`] and [`Error::HeadTooLarge`].
pub fn check_raw_head(head: &[u8]) -> Result<(), Error> {
    let start = head
        .iter()
        .position(|byte| !matches!(byte, b'\r' | b'\n'))
        .unwrap_or(head.len());
    let head = &head[start..];
    let first_end = memchr(b'\n', head).unwrap_or(head.len());
    let first = head[..first_end]
        .strip_suffix(b"\r")
        .unwrap_or(&head[..first_end]);
    let mut words = first.split(|byte| *byte == b' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if target.len() > MAX_TARGET {
        return Err(Error::TargetTooLong);
    }
    if head.len() > MAX_HEAD {
        return Err(Error::HeadTooLarge);
    }
    if words.count() != 1 {
        return Err(Error::BadRequest(ODD_REQUEST_LINE));
    }
    check_method(method)?;
    if memchr(b'#', target).is_some() {
        return Err(Error::BadRequest(
            "The request target holds a fragment (#).",
        ));
    }
    let (mut length, mut coding) = (false, false);
    let mut rest = head;
    while let Some(end) = memchr(b'\n', rest) {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(Error::BadFraming("A header line ends in a bare LF."));
        };
        if memchr(b'\r', line).is_some() {
            return Err(BARE_CR);
        }
        if matches!(after.first(), Some(b' ' | b'\t')) {
            return Err(Error::BadFraming("A field is continued on a second line."));
        }
        length |= is_named(line, b"content-length");
        coding |= is_named(line, b"transfer-encoding");
        rest = after;
    }
    if memchr(b'\r', rest).is_some_and(|at| at + 1 < rest.len()) {
        return Err(BARE_CR);
    }
    if length && coding {
        // The parser has dropped the length by now.
        return Err(Error::BadFraming(
            "Content-Length and Transfer-Encoding exclude each other.",
        ));
    }
    Ok(())
}

const BARE_CR: Error = Error::BadFraming("A header line holds a bare CR.");

fn is_named(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name)
}

/// Checks the case of a method. Methods are case-sensitive (RFC 9110 §9.1); a server that takes
/// `get` for GET would bypass a rule for GET.
///
/// # Errors
/// [`Error::BadRequest`] when it is not in upper case.
pub fn check_method(method: &[u8]) -> Result<(), Error> {
    if method.iter().any(u8::is_ascii_lowercase) {
        return Err(Error::BadRequest("The method is not in upper case."));
    }
    Ok(())
}

/// Returns the caller's own id where it is harmless in a log, otherwise a new one: 128 random bits.
#[must_use]
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get("x-request-id")
        && (1..=128).contains(&id.len())
        && id
            .as_bytes()
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    {
        return id.clone();
    }
    let mut id = [0_u8; 32];
    let random = fastrand::u128(..).to_be_bytes();
    // 32 bytes of room for 16 bytes of hex: cannot fail.
    let _ = hex::encode_to_slice(random, &mut id);
    // Shared from the start: it is copied into the response.
    HeaderValue::from_maybe_shared(Bytes::from_owner(id)).unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_heads_are_refused() {
        for bad in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\tfolded\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "get / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(check_raw_head(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(
            check_raw_head(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            Ok(())
        );
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD));
        assert_eq!(check_raw_head(long.as_bytes()), Err(Error::TargetTooLong));
        let large = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(MAX_HEAD));
        assert_eq!(check_raw_head(large.as_bytes()), Err(Error::HeadTooLarge));
    }
}
