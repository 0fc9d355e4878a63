//! Path patterns: rules about paths, and the forms in which paths are compared. Pure functions.

mod glob;
pub mod interpretations;

use std::borrow::Cow;

pub use self::glob::glob;

/// One pattern of `refuse:` or `allow:`, compared case-insensitively: `*` matches within a segment,
/// `**` across segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// `!`: an exception to the rules of the same list.
    pub exception: bool,
    /// Upper-case method; `None`: every method.
    pub method: Option<String>,
    /// The pattern, starting with `/`.
    pub pattern: String,
}

/// Returns the ASCII character that a lax decoder makes of the overlong encoding at `at`, and the
/// length of the encoding.
pub(crate) fn overlong(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
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

/// Returns the path as a server sees it that decodes slashes before it splits.
#[must_use]
pub fn decode_slashes(path: &str) -> String {
    path.replace("%2f", "/")
        .replace("%2F", "/")
        .replace("%5c", "/")
        .replace("%5C", "/")
}

pub(crate) fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let high = digit(*bytes.get(at + 1)?)?;
    let low = digit(*bytes.get(at + 2)?)?;
    u8::try_from(high * 16 + low).ok()
}

/// The `refuse:` and `allow:` lists of one vendor, ready to be checked.
#[derive(Debug)]
pub struct Rules {
    refuse: Vec<PathRule>,
    allow: Vec<PathRule>,
    /// The rules of `allow` for decoded paths.
    allow_decoded: Vec<PathRule>,
    /// The upstream's base path, lower-case, which no interpretation may leave.
    base: String,
    trailing_dots_ignored: bool,
}

/// The reason why a path does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal<'a> {
    /// A rule of `refuse:` covers it.
    Refused(&'a PathRule),
    /// No rule of `allow:` covers it.
    NotAllowed,
    /// A server could read it as a path outside of the upstream's base path.
    LeavesBase,
}

impl Refusal<'_> {
    /// Returns the rule that decided, for the access log.
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
            let forms = interpretations::of_pattern(&rule.pattern).into_iter();
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

    /// Adds the base path of an upstream.
    #[must_use]
    pub fn below(self, base: &str) -> Self {
        let base = base.to_ascii_lowercase();
        Self { base, ..self }
    }

    /// Checks whether `method` on `path` (as it will be sent upstream) may pass, in every
    /// interpretation of a server.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self, method: &str, path: &str) -> Result<(), Refusal<'_>> {
        let unruled = self.refuse.is_empty() && self.allow.is_empty();
        if unruled && (self.base.is_empty() || !path.contains('%')) {
            return Ok(());
        }
        self.is_passed_as_sent(method, path)?;
        if !path.contains('%') {
            return Ok(());
        }
        for interpretation in interpretations::of(path) {
            if !self.is_below_base(&interpretation) {
                return Err(Refusal::LeavesBase);
            }
            let plain = self.comparable(&interpretation, is_unreserved);
            self.is_not_refused(method, &plain)?;
            if !allows(&self.allow_decoded, method, &plain) {
                return Err(Refusal::NotAllowed);
            }
        }
        Ok(())
    }

    /// Checks the path as it was sent, without its interpretations, which take too long to check
    /// for an unknown caller.
    ///
    /// # Errors
    /// The refusal.
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
        // Most servers decode more than RFC 3986 calls equivalent, and some do so before they look
        // for slashes and parameters.
        let slashed = decode_slashes(path);
        let decoded = self.comparable(&slashed, stands_in_segments);
        self.is_not_refused(method, &decoded)?;
        is_allowed(&self.comparable(&slashed, is_unreserved))
    }

    fn is_below_base(&self, interpretation: &str) -> bool {
        let start = interpretation.get(..self.base.len());
        let ends = interpretation.as_bytes().get(self.base.len());
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

/// Tells whether `allow` permits this. An empty list permits everything.
fn allows(allow: &[PathRule], method: &str, plain: &str) -> bool {
    let permits =
        |rule: &PathRule| !rule.exception && applies(rule, method) && glob(&rule.pattern, plain);
    allow.is_empty()
        || (allow.iter().any(permits)
            && !allow
                .iter()
                .any(|rule| rule.exception && covers(rule, method, plain)))
}

/// Tells whether a forbidding rule covers this. Servers commonly serve `/token/` for `/token`: a
/// rule that forbids covers both, one that permits covers only its own pattern.
fn covers(rule: &PathRule, method: &str, plain: &str) -> bool {
    let without_slash = plain.strip_suffix('/').unwrap_or(plain);
    applies(rule, method) && (glob(&rule.pattern, plain) || glob(&rule.pattern, without_slash))
}

fn applies(rule: &PathRule, method: &str) -> bool {
    rule.method.as_deref().is_none_or(|only| only == method)
}

/// Returns the form in which rules are compared: lower case, escapes of the characters that
/// `decoded` accepts decoded (RFC 3986 §6.2.2.2), `;parameters` dropped.
pub(crate) fn comparable(
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
                    // Encoded slashes that a vendor takes separate segments in the comparison: its
                    // own router may decode them.
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

pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Tells whether a byte is unreserved, or a delimiter without a meaning in a path (`pchar`, RFC
/// 3986 §3.3).
pub(crate) fn stands_in_segments(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
