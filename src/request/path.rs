//! The request target: what may be in it, and which rules it meets. Pure functions.
//!
//! The bytes that are checked and matched here are the bytes that are forwarded: nothing is
//! repaired. A path that two servers could read differently is refused instead.

mod glob;
pub mod readings;

use std::borrow::Cow;

pub use self::glob::glob;
use crate::error::Error;
use crate::pattern::PathRule;

/// Longest request target, bytes.
pub const MAX_TARGET: usize = 16 * 1024;

/// A request target in origin form, split at the first `?`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// From the first `/` to before the `?`.
    pub path: &'a str,
    /// After the `?`; `Some("")` for a lone one.
    pub query: Option<&'a str>,
    /// The path holds `%2F` or `%5C`: only vendors with `encoded_slash: pass` take it.
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

/// A target in absolute form as its authority and the rest, one in origin form as it is (RFC 9112
/// §3.2).
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

/// What a log may say of a request target, refused ones included: its path. Not the query or a
/// fragment, and not the authority of an absolute form, whose user information may be a password.
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

/// Whether the path holds an encoded slash or backslash.
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
    // Only a path with a dot, a semicolon or an escape can hold one that vanishes.
    if !plain && path.split('/').any(vanishes) {
        return Err(Error::BadRequest(VANISHING));
    }
    // With encoded slashes permitted for a vendor, `..%2f` climbs as well as `../` does.
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

/// The path as a server sees it that decodes slashes before it splits.
#[must_use]
pub fn decode_slashes(path: &str) -> String {
    path.replace("%2f", "/")
        .replace("%2F", "/")
        .replace("%5c", "/")
        .replace("%5C", "/")
}

/// `.` and `..`, encoded or not, with blanks, parameters or an encoded query behind them, and segments that are nothing
/// but parameters: a server that drops those sees `//` and then another path.
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
            // What decodes before it splits ends the path here.
            b';' | b'?' | b'#' => break,
            _ => return false,
        }
        at += width;
    }
    dots == 1 || dots == 2
}

/// The ASCII character that a lax decoder makes of the overlong encoding at `at`, and the length of
/// that.
fn overlong(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    let lead = escaped(bytes, at).filter(|lead| *lead >= 0xc0)?;
    let (mut value, more) = match lead {
        0xc0..0xe0 => (u32::from(lead & 0x1f), 1),
        0xe0..0xf0 => (u32::from(lead & 0x0f), 2),
        _ => (u32::from(lead & 0x07), 3),
    };
    for nth in 1..=more {
        let at = at + 3 * nth;
        let next = escaped(bytes, at).filter(|_| bytes[at] == b'%')?;
        value = value << 6 | u32::from(next & 0x3f);
    }
    let ascii = u8::try_from(value).ok().filter(u8::is_ascii)?;
    Some((ascii, 3 + 3 * more))
}

/// Whether the escape at `at` begins a byte written in more bytes than UTF-8 permits (RFC 3629 §3).
/// A lax decoder takes `%C0%AF` for a slash.
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

fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let high = digit(*bytes.get(at + 1)?)?;
    let low = digit(*bytes.get(at + 2)?)?;
    u8::try_from(high * 16 + low).ok()
}

/// The `refuse:` and `allow:` lists of one vendor, ready to be asked.
#[derive(Debug)]
pub struct Rules {
    refuse: Vec<PathRule>,
    allow: Vec<PathRule>,
    /// What `allow` says of paths that were decoded.
    allow_decoded: Vec<PathRule>,
    /// The upstream's base path, lower-case, which no reading may leave.
    base: String,
    trailing_dots_ignored: bool,
}

/// Why a path does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// A rule of `refuse:` covers it.
    Refused(&'a PathRule),
    /// No rule of `allow:` does.
    NotAllowed,
    /// A server could read it as one outside of the upstream's base path.
    LeavesBase,
}

impl Refusal<'_> {
    /// What decided, for request lines.
    #[must_use]
    pub fn rule(&self) -> &str {
        match self {
            Self::Refused(rule) => &rule.pattern,
            Self::NotAllowed => "allow",
            Self::LeavesBase => "upstream",
        }
    }
}

impl Rules {
    /// Prepares the two lists.
    #[must_use]
    pub fn new(refuse: &[PathRule], allow: &[PathRule], trailing_dots_ignored: bool) -> Self {
        let lower = |rules: &[PathRule]| -> Vec<PathRule> {
            rules
                .iter()
                .map(|rule| PathRule {
                    pattern: rule.pattern.to_ascii_lowercase(),
                    ..rule.clone()
                })
                .collect()
        };
        let allow = lower(allow);
        let decoded = allow.iter().flat_map(|rule| {
            let forms = readings::of_pattern(&rule.pattern).into_iter();
            forms.map(|pattern| PathRule {
                pattern: pattern.to_ascii_lowercase(),
                ..rule.clone()
            })
        });
        Self {
            refuse: lower(refuse),
            allow_decoded: allow.iter().cloned().chain(decoded).collect(),
            allow,
            base: String::new(),
            trailing_dots_ignored,
        }
    }

    /// The same below the base path of an upstream.
    #[must_use]
    pub fn below(self, base: &str) -> Self {
        let base = base.to_ascii_lowercase();
        Self { base, ..self }
    }

    /// Whether `method` on `path` (as it will be sent upstream) may pass, in every way that a server
    /// may read it.
    ///
    /// # Errors
    /// What keeps it from passing.
    pub fn check(&self, method: &str, path: &str) -> Result<(), Refusal<'_>> {
        let unruled = self.refuse.is_empty() && self.allow.is_empty();
        if unruled && (self.base.is_empty() || !path.contains('%')) {
            return Ok(());
        }
        self.is_passed_as_sent(method, path)?;
        if !path.contains('%') {
            return Ok(());
        }
        for reading in readings::of(path) {
            if !self.is_below_base(&reading) {
                return Err(Refusal::LeavesBase);
            }
            let plain = self.comparable(&reading, is_unreserved);
            self.is_not_refused(method, &plain)?;
            if !allows(&self.allow_decoded, method, &plain) {
                return Err(Refusal::NotAllowed);
            }
        }
        Ok(())
    }

    /// The same of the path as it was sent. What a strange reading makes of it is not looked at, which
    /// takes longer than is good for somebody who is not known.
    ///
    /// # Errors
    /// What keeps it from passing.
    pub fn is_passed_as_sent(&self, method: &str, path: &str) -> Result<(), Refusal<'_>> {
        let is_allowed = |plain: &str| {
            if allows(&self.allow, method, plain) {
                Ok(())
            } else {
                Err(Refusal::NotAllowed)
            }
        };
        let plain = self.comparable(path, is_unreserved);
        self.is_not_refused(method, &plain)?;
        is_allowed(&plain)?;
        if !path.contains('%') {
            return Ok(());
        }
        // Most servers decode more than what RFC 3986 calls the same, and some do so before they
        // look for slashes and parameters.
        let slashed = decode_slashes(path);
        let decoded = self.comparable(&slashed, stands_in_segments);
        self.is_not_refused(method, &decoded)?;
        is_allowed(&self.comparable(&slashed, is_unreserved))
    }

    fn is_below_base(&self, reading: &str) -> bool {
        let start = reading.get(..self.base.len());
        let ends = reading.as_bytes().get(self.base.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(&self.base))
            && matches!(ends, None | Some(b'/'))
    }

    fn comparable<'p>(&self, path: &'p str, decoded: impl Fn(u8) -> bool) -> Cow<'p, str> {
        comparable(path, self.trailing_dots_ignored, decoded)
    }

    fn is_not_refused(&self, method: &str, plain: &str) -> Result<(), Refusal<'_>> {
        let mut rules = self.refuse.iter().filter(|rule| !rule.exception);
        let Some(rule) = rules.find(|rule| covers(rule, method, plain)) else {
            return Ok(());
        };
        let excepted = self
            .refuse
            .iter()
            .any(|rule| rule.exception && applies(rule, method) && glob(&rule.pattern, plain));
        if excepted {
            Ok(())
        } else {
            Err(Refusal::Refused(rule))
        }
    }
}

/// Whether `allow` lets this pass. An empty list lets everything pass.
fn allows(allow: &[PathRule], method: &str, plain: &str) -> bool {
    let permits =
        |rule: &PathRule| !rule.exception && applies(rule, method) && glob(&rule.pattern, plain);
    allow.is_empty()
        || (allow.iter().any(permits)
            && !allow
                .iter()
                .any(|rule| rule.exception && covers(rule, method, plain)))
}

/// Whether a rule that forbids covers this. Servers commonly serve `/token/` where `/token` was
/// meant: what forbids covers both, what permits only what it says.
fn covers(rule: &PathRule, method: &str, plain: &str) -> bool {
    let without_slash = plain.strip_suffix('/').unwrap_or(plain);
    applies(rule, method) && (glob(&rule.pattern, plain) || glob(&rule.pattern, without_slash))
}

fn applies(rule: &PathRule, method: &str) -> bool {
    rule.method.as_deref().is_none_or(|only| only == method)
}

/// The form rules are compared in: lower case, escapes of the characters that `decoded` names decoded
/// (RFC 3986 §6.2.2.2), `;parameters` dropped.
fn comparable(
    path: &str,
    trailing_dots_ignored: bool,
    decoded: impl Fn(u8) -> bool,
) -> Cow<'_, str> {
    if path
        .bytes()
        .all(|byte| matches!(byte, b'/' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~'))
    {
        return Cow::Borrowed(path);
    }
    let mut plain = String::with_capacity(path.len());
    for segment in path.split('/').skip(1) {
        plain.push('/');
        let start = plain.len();
        let segment = segment.split(';').next().unwrap_or_default();
        let bytes = segment.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let byte = match bytes[at] {
                b'%' => match escaped(bytes, at) {
                    Some(b';') => break,
                    Some(byte) if decoded(byte) || (trailing_dots_ignored && byte == b' ') => {
                        at += 2;
                        byte
                    }
                    // Slashes that a vendor takes encoded separate segments for the comparison:
                    // its own router may well decode them.
                    Some(b'/' | b'\\') => {
                        at += 2;
                        b'/'
                    }
                    Some(_) | None => b'%',
                },
                byte => byte,
            };
            plain.push(char::from(byte.to_ascii_lowercase()));
            at += 1;
        }
        if trailing_dots_ignored {
            let kept = plain[start..].trim_end_matches(['.', ' ']).len();
            plain.truncate(start + kept);
            // Nothing but dots and blanks: the slash goes with them, unless it is the last.
            if kept == 0 && !segment.is_empty() {
                plain.pop();
            }
        }
    }
    Cow::Owned(plain)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Unreserved, or a delimiter without a meaning in a path (`pchar`, RFC 3986 §3.3).
fn stands_in_segments(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    fn rules(refuse: &[(&str, Option<&str>, bool)], allow: &[&str]) -> Rules {
        let refuse: Vec<_> = refuse
            .iter()
            .map(|(pattern, method, exception)| PathRule {
                exception: *exception,
                method: method.map(Into::into),
                pattern: (*pattern).into(),
            })
            .collect();
        let allow: Vec<_> = allow
            .iter()
            .map(|pattern| PathRule {
                exception: false,
                method: None,
                pattern: (*pattern).into(),
            })
            .collect();
        Rules::new(&refuse, &allow, true)
    }

    #[test]
    fn a_refused_path_is_refused_in_every_spelling() {
        let rules = rules(
            &[
                ("/vedauth/**", None, false),
                ("/vedauth/authorize/verify", Some("GET"), true),
                ("/Token", None, false),
                ("/users/@me", None, false),
                ("/a/vedauth/**", None, false),
            ],
            &[],
        );
        for path in [
            "/vedauth",
            "/VEDAUTH/x",
            "/%76edauth/revoke/token",
            "/vedauth;a=b/x",
            "/vedauth./x",
            "/vedauth%20/x",
            "/token",
            "/token/",
            "/TOKEN;x",
            "/vedauth%2frevoke",
            "/tok%65n%3Bx",
            "/vedauth/authorize/verify/more",
            "/tok%65n/%20",
            "/%20/vedauth/x",
            "/.../token",
            "/users/%40me",
            "/users/@me/",
            "/a;x%2Fvedauth",
            "/a/vedauth.%2Fx",
            "/%2574oken",
            "/%2574oken/",
            "/%25%37%34oken",
            "/x/%252e%252e/token",
            "/x%252f%252e%252e%252ftoken",
            "/x/%252e%252e%253bx/token",
            "/vedauth%252frevoke",
            "/vedauth%255crevoke",
            "/token%3fx",
            "/token%23x",
            "/token%253fx",
            "/vedauth%3Fx/y",
        ] {
            assert!(rules.check("GET", path).is_err(), "{path}");
        }
        assert!(rules.check("GET", "/vedauth/Authorize/Verify").is_ok());
        assert!(rules.check("POST", "/vedauth/authorize/verify").is_err());
        assert!(rules.check("GET", "/vedsdk/x").is_ok());
    }

    #[test]
    fn what_is_allowed_is_so_however_it_is_read() {
        let rules = rules(
            &[],
            &["/hr/**", "/a%25b/x", "/q%3fx", "/one/*", "/p%21/%E2%82%AC"],
        );
        for path in [
            "/hr/100%25",
            "/hr/a%2520b",
            "/hr/x%3fy=1",
            "/a%25b/x",
            "/q%3fx",
            "/one/https%253a",
            "/p%21/%e2%82%ac",
        ] {
            assert_eq!(rules.check("GET", path), Ok(()), "{path}");
        }
        for path in [
            "/hr/%252e%252e/token",
            "/hr%3f/x",
            "/one/a%252fb",
            "/one/a%255cb",
            "/one/..%253fx",
            "/q%3fy",
        ] {
            assert_eq!(rules.check("GET", path), Err(Refusal::NotAllowed), "{path}");
        }
    }

    #[test]
    fn no_reading_leaves_the_base() {
        let rules = Rules::new(&[], &[], false).below("/Base");
        for path in [
            "/Base",
            "/Base/x",
            "/Base/a%252fb",
            "/Base/%252e%252e/base/x",
        ] {
            assert_eq!(rules.check("GET", path), Ok(()), "{path}");
        }
        for path in ["/Base/%252e%252e/x", "/Base/x%252f..%252f..%252fBasement"] {
            assert_eq!(rules.check("GET", path), Err(Refusal::LeavesBase), "{path}");
        }
    }

    #[test]
    fn refuse_wins_over_allow_and_allow_excludes_the_rest() {
        let rules = rules(&[("/hr/secret", None, false)], &["/hr/**"]);
        assert!(rules.check("GET", "/hr/v1").is_ok());
        assert!(rules.check("GET", "/hr/secret").is_err());
        assert_eq!(rules.check("GET", "/pm"), Err(Refusal::NotAllowed));
    }

    #[test]
    fn what_an_allow_list_excepts_stays_out_with_a_slash_behind_it() {
        let exception = PathRule {
            exception: true,
            method: None,
            pattern: "/hr/secret".into(),
        };
        let all = PathRule {
            exception: false,
            method: None,
            pattern: "/hr/**".into(),
        };
        let rules = Rules::new(&[], &[all, exception], false);
        assert!(rules.check("GET", "/hr/v1/").is_ok());
        for path in ["/hr/secret", "/hr/secret/", "/hr/%73ecret;x/"] {
            assert_eq!(rules.check("GET", path), Err(Refusal::NotAllowed), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_target_makes_it_panic(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(target) = Target::parse(&raw) {
                let rules = rules(&[("/a*/**", None, false)], &["/**"]);
                let _ = rules.check("GET", target.path);
            }
        }
    }
}
