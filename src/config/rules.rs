//! The two small grammars of the file: path rules (`!GET /token/info`) and permissions (`acme
//! GET,HEAD /v1/**`).

use super::report::suggest;
use crate::pattern::{PathRule, is_unreserved};

/// One entry of a caller's `allow:`.
#[derive(Clone, Debug)]
pub struct Permission {
    /// The vendor's name; `None` is `*`: every vendor.
    pub vendor: Option<String>,
    /// Upper-case methods; empty: every method.
    pub methods: Vec<String>,
    /// Glob over the path after the prefix, case-sensitive; `None`: every path.
    pub path: Option<String>,
}

/// Writes the permission in one line: `certn GET,HEAD /api/**`; `*` for every vendor.
impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.vendor.as_deref().unwrap_or("*"))?;
        if !self.methods.is_empty() {
            write!(f, " {}", self.methods.join(","))?;
        }
        self.path
            .as_ref()
            .map_or(Ok(()), |path| write!(f, " {path}"))
    }
}

/// The message and the hint for an invalid rule or permission.
pub(super) type InvalidRule = (&'static str, String);

/// Reads one entry of `refuse:` or `allow:` of a vendor: `[!][METHOD[,METHOD]] /pattern`. Returns
/// one rule for each method.
///
/// # Errors
/// The message and the hint.
pub(super) fn path_rules(text: &str) -> Result<Vec<PathRule>, InvalidRule> {
    let (exception, rest) = match text.strip_prefix('!') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, text),
    };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (methods, pattern) = match words.as_slice() {
        [pattern] => (Vec::new(), *pattern),
        [methods, pattern] => (read_methods(methods)?, *pattern),
        _ => return Err(("is not a path rule", RULES.into())),
    };
    check_pattern(pattern)
        .and_then(|()| check_compared(pattern))
        .map_err(|message| (message, RULES.to_owned()))?;
    let rule = |method| PathRule {
        exception,
        method,
        pattern: pattern.to_owned(),
    };
    if methods.is_empty() {
        return Ok(vec![rule(None)]);
    }
    Ok(methods
        .into_iter()
        .map(|method| rule(Some(method)))
        .collect())
}

/// Reads one entry of `allow:` of a caller: `*` or a vendor's name, then optionally methods, then
/// optionally a path.
///
/// # Errors
/// The message and the hint.
pub(super) fn grant(text: &str) -> Result<Permission, InvalidRule> {
    let mut words = text.split_whitespace().peekable();
    let vendor = match words.next() {
        None => return Err(("is empty", GRANTS.into())),
        Some("*") => None,
        Some(name) => Some(name.to_owned()),
    };
    let methods = match words.peek() {
        Some(word) if !word.starts_with('/') => {
            let methods = read_methods(word)?;
            words.next();
            methods
        }
        Some(_) | None => Vec::new(),
    };
    let path = words.next();
    if let Some(path) = path {
        check_pattern(path).map_err(|message| (message, GRANTS.to_owned()))?;
    }
    if words.next().is_some() {
        return Err(("has more than vendor, methods and path", GRANTS.into()));
    }
    Ok(Permission {
        vendor,
        methods,
        path: path.map(str::to_owned),
    })
}

/// Reads methods in any case. Methods are compared byte for byte, and every one in use is
/// upper-case (RFC 9110 §9.1). An unknown method is a typing error, which would make a rule of
/// `refuse:` useless.
fn read_methods(list: &str) -> Result<Vec<String>, InvalidRule> {
    list.split(',')
        .map(|method| {
            let method = method.to_ascii_uppercase();
            if METHODS.contains(&method.as_str()) {
                return Ok(method);
            }
            let hint = suggest(&method, METHODS.iter().copied());
            Err((
                if list.contains('/') {
                    "has a path that does not begin with `/`"
                } else {
                    "names an unknown method"
                },
                hint,
            ))
        })
        .collect()
}

/// Checks that a pattern can match: one that never matches would protect nothing.
fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    if !pattern.starts_with('/') {
        return Err("has a path that does not begin with `/`");
    }
    if pattern.contains("//") {
        return Err("has an empty segment, which never passes anyway");
    }
    if pattern
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        return Err("has a dot segment, which never passes anyway");
    }
    if pattern.contains("***") {
        return Err("has three stars in a row");
    }
    if pattern.contains(['?', '#']) {
        return Err("has a query or fragment, and only paths are compared");
    }
    if pattern.contains('\\') || !pattern.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("has a character that no path may hold");
    }
    if escapes(pattern).any(|byte| byte.is_none()) {
        return Err("has a `%` without two hex digits");
    }
    Ok(())
}

/// Checks a vendor's pattern. Vendors' rules are compared with paths whose unambiguous escapes are
/// decoded and whose parameters are dropped; permissions with paths as they are.
fn check_compared(pattern: &str) -> Result<(), &'static str> {
    if pattern.contains(';') {
        return Err("has path parameters, which are dropped before paths are compared");
    }
    let decoded = |byte: u8| is_unreserved(byte) || b"/\\; ".contains(&byte);
    if escapes(pattern).any(|byte| byte.is_some_and(decoded)) {
        return Err("has a %xx that is decoded before paths are compared");
    }
    Ok(())
}

/// Returns every `%xx` of `path`; `None` where the digits are missing.
fn escapes(path: &str) -> impl Iterator<Item = Option<u8>> {
    path.match_indices('%').map(|(at, _)| {
        path.get(at + 1..at + 3)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
    })
}

const RULES: &str = "rules are written `/path`, `GET /path` or `!GET /path`; `*` stands for any \
                     characters of one segment, `**` for several segments";

const GRANTS: &str = "permissions are written `VENDOR`, `VENDOR GET,HEAD /path/**` or `*`";

/// The methods of RFC 9110 and RFC 5789, QUERY, and those of `WebDAV` (RFC 4918, 3253, 5323, 2068).
const METHODS: [&str; 19] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "LINK",
    "UNLINK",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_rule_has_an_exclamation_mark_methods_and_a_pattern() {
        let rule = |exception, method: Option<&str>, pattern: &str| PathRule {
            exception,
            method: method.map(str::to_owned),
            pattern: pattern.to_owned(),
        };
        for (text, want) in [
            ("/token*", vec![rule(false, None, "/token*")]),
            (
                "!GET /token/info",
                vec![rule(true, Some("GET"), "/token/info")],
            ),
            ("! /a", vec![rule(true, None, "/a")]),
            (
                "get,POST /a/**",
                vec![
                    rule(false, Some("GET"), "/a/**"),
                    rule(false, Some("POST"), "/a/**"),
                ],
            ),
        ] {
            assert_eq!(path_rules(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_match_is_an_error() {
        for text in [
            "",
            "!",
            "token",
            "GET",
            "GETT /a",
            "GET token/x",
            "GET /a b",
            "/a//b",
            "/a/../b",
            "/a/***",
            "/a?b",
            "/a#b",
            "/a;b",
            "/a\\b",
            "/ä",
            "/%41",
            "/%4",
            "/%zz",
            "/a%",
        ] {
            assert!(path_rules(text).is_err(), "{text}");
        }
        assert!(path_rules("/a%2Fb").is_err());
        assert!(path_rules("/a%21b").is_ok());
        assert!(grant("acme /a%2Fb;x/%41").is_ok());
    }

    #[test]
    fn a_grant_names_a_vendor_and_what_may_be_done_there() {
        let read = |text| grant(text).map(|grant| (grant.vendor, grant.methods, grant.path));
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(read("*"), Ok((None, vec![], None)));
        assert_eq!(read("acme"), Ok((text("acme"), vec![], None)));
        assert_eq!(
            read("acme get,POST /v1/**"),
            Ok((
                text("acme"),
                vec!["GET".into(), "POST".into()],
                text("/v1/**")
            ))
        );
        assert_eq!(read("acme /v1"), Ok((text("acme"), vec![], text("/v1"))));
        assert_eq!(read("* GET"), Ok((None, vec!["GET".into()], None)));
        for wrong in [
            "",
            "acme GTE /x",
            "acme GET /x /y",
            "acme v1/x",
            "acme GET /x/../y",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in any::<String>()) {
            let _ = (path_rules(&text), grant(&text));
        }
    }
}
