//! The request target. Pure functions.
//!
//! The bytes that are checked and matched here are the bytes that are forwarded: nothing is
//! repaired. A path that two servers could read differently is refused.

use crate::downstream::raw_head::MAX_TARGET;
use crate::error::Error;
use crate::pattern::{decode_slashes, escaped};

/// A request target in origin form, split at the first `?`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path, from the first `/` to before the `?`.
    pub path: &'a str,
    /// The query after the `?`; `Some("")` for an empty one.
    pub query: Option<&'a str>,
    /// `true` if the path holds `%2F` or `%5C`, which only vendors with `encoded_slash: pass` take.
    pub encoded_slash: bool,
}

impl<'a> Target<'a> {
    /// Checks and splits a target in origin form.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for anything that servers are known to read in more than one way, and
    /// [`Error::TargetTooLong`].
    pub fn parse(raw: &'a [u8]) -> Result<Self, Error> {
        if raw.len() > MAX_TARGET {
            return Err(Error::TargetTooLong);
        }
        if let Some(bad) = raw.iter().find(|byte| !byte.is_ascii_graphic()) {
            return Err(Error::BadRequest(if bad.is_ascii() {
                "The request target holds a blank or a control character."
            } else {
                "The request target holds a byte outside ASCII; percent-encode it."
            }));
        }
        let Ok(text) = std::str::from_utf8(raw) else {
            return Err(Error::BadRequest("The request target is not ASCII."));
        };
        if text.contains('#') {
            return Err(Error::BadRequest(
                "The request target holds a fragment (#).",
            ));
        }
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        let encoded_slash = check_path(path)?;
        Ok(Self {
            path,
            query,
            encoded_slash,
        })
    }
}

/// Splits a target in absolute form into authority and rest; one in origin form is returned as it
/// is (RFC 9112 §3.2).
///
/// # Errors
/// [`Error::BadRequest`] for any other form and for user information.
pub fn split_absolute(raw: &[u8]) -> Result<(Option<&str>, &[u8]), Error> {
    if raw.starts_with(b"/") {
        return Ok((None, raw));
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| {
            raw.get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
        .ok_or(Error::BadRequest("The path does not start with a slash."))?;
    let rest = &raw[scheme.len()..];
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let authority = std::str::from_utf8(&rest[..end])
        .map_err(|_| Error::BadRequest("The authority of the request target is not ASCII."))?;
    if authority.contains('@') {
        return Err(Error::BadRequest(
            "The request target holds user information.",
        ));
    }
    // RFC 9112 §3.2.2: an empty path is the root.
    let path = if end == rest.len() {
        b"/"
    } else {
        &rest[end..]
    };
    Ok((Some(authority), path))
}

/// Returns what a log may contain of a target, refused ones included: its path. Neither the query
/// or fragment, nor the authority of an absolute form, whose user information may be a password.
#[must_use]
pub fn to_log(raw: &[u8]) -> &[u8] {
    let end = raw.iter().position(|byte| matches!(byte, b'?' | b'#'));
    let target = &raw[..end.unwrap_or(raw.len())];
    let scheme = target.windows(3).position(|three| three == b"://");
    if target.starts_with(b"/") || scheme.is_none() && !target.contains(&b'@') {
        return target;
    }
    let rest = &target[scheme.map_or(0, |at| at + 3)..];
    let path = rest.iter().position(|byte| *byte == b'/');
    path.map_or(b"/", |at| &rest[at..])
}

/// Checks the path, and tells whether it holds an encoded slash or backslash.
fn check_path(path: &str) -> Result<bool, Error> {
    if !path.starts_with('/') {
        return Err(Error::BadRequest("The path does not start with a slash."));
    }
    let bytes = path.as_bytes();
    let mut encoded_slash = false;
    let mut plain = true;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\\' => return Err(Error::BadRequest("The path holds a backslash.")),
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                return Err(Error::BadRequest("The path holds an empty segment (//)."));
            }
            b'%' => {
                plain = false;
                match escaped(bytes, at) {
                    None => {
                        return Err(Error::BadRequest("The path holds a malformed % escape."));
                    }
                    Some(b'/' | b'\\') => encoded_slash = true,
                    Some(0..=0x1f | 0x7f) => {
                        return Err(Error::BadRequest(
                            "The path holds an encoded control character.",
                        ));
                    }
                    Some(0xc0..) if is_overlong(bytes, at) => {
                        return Err(Error::BadRequest(
                            "The path holds an overlong encoding of a character.",
                        ));
                    }
                    Some(_) => {}
                }
            }
            b'.' | b';' => plain = false,
            _ => {}
        }
    }
    // Only a path with a dot, a semicolon or an escape can hold a segment that vanishes.
    if !plain && path.split('/').any(vanishes) {
        return Err(Error::BadRequest(VANISHING));
    }
    // Where a vendor takes encoded slashes, `..%2f` climbs as `../` does.
    if encoded_slash && {
        let decoded = decode_slashes(path);
        decoded.contains("//") || decoded.split('/').any(vanishes)
    } {
        return Err(Error::BadRequest(VANISHING));
    }
    Ok(encoded_slash)
}

const VANISHING: &str =
    "The path holds a dot segment, or one that is empty but for a parameter (;).";

/// Tells whether a server may drop the segment: `.` and `..`, encoded or not, with blanks,
/// parameters or an encoded query behind them, and segments that are only parameters. A server that
/// drops the latter sees `//`, and then another path.
fn vanishes(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let (mut dots, mut blanks) = (0, 0);
    let mut at = 0;
    while at < bytes.len() {
        let (byte, width) = match bytes[at] {
            b'%' => (escaped(bytes, at).unwrap_or(b'%'), 3),
            byte => (byte, 1),
        };
        match byte {
            b'.' if blanks == 0 => dots += 1,
            b' ' => blanks += 1,
            b';' if blanks == 0 && dots == 0 => return true,
            // A server that decodes before it splits ends the path here.
            b';' | b'?' | b'#' => break,
            _ => return false,
        }
        at += width;
    }
    dots == 1 || dots == 2
}

/// Tells whether the escape at `at` begins an overlong encoding (RFC 3629 §3). A lax decoder takes
/// `%C0%AF` for a slash.
fn is_overlong(bytes: &[u8], at: usize) -> bool {
    let next = if bytes.get(at + 3) == Some(&b'%') {
        escaped(bytes, at + 3)
    } else {
        None
    };
    matches!(
        (escaped(bytes, at), next),
        (Some(0xc0 | 0xc1), Some(0x80..=0xbf))
            | (Some(0xe0), Some(0x80..=0x9f))
            | (Some(0xf0), Some(0x80..=0x8f))
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::downstream::raw_head::MAX_TARGET;
    use crate::pattern::{PathRule, Rules};

    #[test]
    fn of_a_target_the_path_alone_is_logged() {
        for (raw, logged) in [
            ("/v/x?key=hunter2", "/v/x"),
            ("/v/x#hunter2", "/v/x"),
            ("http://me:hunter2@host/v/x?y", "/v/x"),
            ("HTTPS://me:hunter2@host", "/"),
            ("ftp://me:hunter2@host?x", "/"),
            ("me:hunter2@host:443", "/"),
            ("http://host/v/@x://y", "/v/@x://y"),
            ("/v/@x://y", "/v/@x://y"),
            ("*", "*"),
            ("host:443", "host:443"),
            ("", ""),
        ] {
            let got = to_log(raw.as_bytes());
            assert_eq!(String::from_utf8_lossy(got), logged, "{raw}");
        }
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        for bad in [
            "",
            "*",
            "a",
            "/a/../b",
            "/a/..",
            "/./a",
            "/a/%2e%2e/b",
            "/a/.%2E",
            "/a/..;x=1/b",
            "/a/%2e;/b",
            "/a//b",
            "//a",
            "/a\\b",
            "/a%2",
            "/a%zz",
            "/a%00",
            "/a%0a",
            "/a#b",
            "/a b",
            "/a?b#c",
            "/a\u{7f}",
            "http://h/a",
            "/a%2f../b",
            "/a/..%2fb",
            "/a%5c..%5cb",
            "/;x=1/token",
            "/a/;/b",
            "/a/%3Bx",
            "/a/..%20/b",
            "/a/.%20;x/b",
            "/a%2f;x%2fb",
            "/a%c0%afb",
            "/a/%C0%AE%c0%ae/b",
            "/a%e0%80%afb",
            "/a%f0%80%80%afb",
            "/a/..%3fb",
            "/a/%2e%23",
        ] {
            assert!(Target::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Target::parse(b"/\xc3\xa9").is_err());
        assert_eq!(
            Target::parse("/".repeat(MAX_TARGET + 1).as_bytes()),
            Err(Error::TargetTooLong)
        );
    }

    #[test]
    fn ordinary_targets_pass_untouched() {
        for (good, path, query) in [
            ("/", "/", None),
            ("/a/b?", "/a/b", Some("")),
            ("/a?b=../c//d\\%zz", "/a", Some("b=../c//d\\%zz")),
            ("/a.b/...x/%41%2e.tar", "/a.b/...x/%41%2e.tar", None),
            ("/Voucher/*/CODE", "/Voucher/*/CODE", None),
            ("/a;v=1/b/", "/a;v=1/b/", None),
            ("/%C3%A9/%e2%82%ac/%c0", "/%C3%A9/%e2%82%ac/%c0", None),
            ("/.../%20a/.b./..c", "/.../%20a/.b./..c", None),
        ] {
            let target = Target::parse(good.as_bytes()).unwrap();
            assert_eq!((target.path, target.query), (path, query), "{good}");
            assert!(!target.encoded_slash);
        }
        assert!(Target::parse(b"/a%2Fb").unwrap().encoded_slash);
    }

    proptest! {
        #[test]
        fn no_target_makes_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(target) = Target::parse(&raw) {
                let rule = |pattern: &str| PathRule {
                    exception: false,
                    method: None,
                    pattern: pattern.into(),
                };
                let rules = Rules::new(&[rule("/a*/**")], &[rule("/**")], true);
                let _ = rules.check("GET", target.path);
            }
        }
    }
}
