//! References to the vendor in its responses: `Location`, `Content-Location` and `Link`. A client
//! that follows one must come through the proxy again, and not show a caller's key to the vendor.
//! Pure functions.
//!
//! They become relative references with an absolute path (RFC 3986 §4.2). Callers know the scheme
//! and the name of the proxy; behind a load balancer that terminates TLS, the proxy does not.

use std::ops::Range;

use http::HeaderValue;
use smallvec::SmallVec;

use crate::config::Upstream;

/// Rewrites a `Location` or `Content-Location` for the caller. `prefix` goes before the vendor's
/// own path; it is empty where the caller used one of the vendor's hosts. `None`: it stays, because
/// it leads elsewhere, is relative to the request's own path, or is outside of the upstream's base
/// path.
#[must_use]
pub fn location(value: &HeaderValue, upstream: &Upstream, prefix: &str) -> Option<HeaderValue> {
    let ours = leading_back(value.as_bytes(), upstream, prefix)?;
    HeaderValue::from_bytes(&ours).ok()
}

/// Rewrites a `Link` (RFC 8288 §3): each of its targets, and the contexts in `anchor`. A part that
/// cannot be read stays.
#[must_use]
pub fn link(value: &HeaderValue, upstream: &Upstream, prefix: &str) -> Option<HeaderValue> {
    let text = value.as_bytes();
    let mut ours = Vec::with_capacity(text.len());
    let mut copied = 0;
    for reference in references(text) {
        if let Some(new) = leading_back(&text[reference.clone()], upstream, prefix) {
            ours.extend_from_slice(&text[copied..reference.start]);
            ours.extend_from_slice(&new);
            copied = reference.end;
        }
    }
    if copied == 0 {
        return None;
    }
    ours.extend_from_slice(&text[copied..]);
    HeaderValue::from_bytes(&ours).ok()
}

/// Returns the positions of references in a `Link`: between `<` and `>`, and in quotes after
/// `anchor=`.
fn references(text: &[u8]) -> SmallVec<[Range<usize>; 8]> {
    let mut found = SmallVec::new();
    let mut at = 0;
    // A link begins with a target, and each of its parameters follows a semicolon.
    let mut begins = true;
    let mut parameter = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'<' if begins => {
                let Some(length) = text[at..].iter().position(|byte| *byte == b'>') else {
                    break;
                };
                found.push(at + 1..at + length);
                at += length;
                begins = false;
            }
            b'"' => {
                let Some(length) = quoted_length(&text[at..]) else {
                    break;
                };
                let inner = at + 1..at + length - 1;
                // No URI needs a backslash.
                if is_anchor(&text[parameter..at]) && !text[inner.clone()].contains(&b'\\') {
                    found.push(inner);
                }
                at += length - 1;
            }
            b',' => begins = true,
            b';' => parameter = at + 1,
            b' ' | b'\t' => {}
            _ => begins = false,
        }
        at += 1;
    }
    found
}

/// Returns the length of the quoted string at the start of `text`, both quotes included (RFC 9110
/// §5.6.4).
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Tells whether `before` ends in `anchor=`.
fn is_anchor(before: &[u8]) -> bool {
    let name = before.trim_ascii().strip_suffix(b"=");
    name.is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"anchor"))
}

/// Rewrites a reference to the vendor as one that leads through the proxy.
fn leading_back(reference: &[u8], upstream: &Upstream, prefix: &str) -> Option<Vec<u8>> {
    let reference = reference.trim_ascii();
    let path = match reference {
        [b'/', b'/' | b'\\', ..] => at_upstream(reference, upstream.tls, upstream)?,
        [b'/', ..] => reference,
        _ => {
            let colon = reference.iter().position(|byte| *byte == b':')?;
            let (scheme, rest) = (&reference[..colon], &reference[colon + 1..]);
            let tls = scheme.eq_ignore_ascii_case(b"https");
            let web = tls || scheme.eq_ignore_ascii_case(b"http");
            at_upstream(web.then_some(rest)?, tls, upstream)?
        }
    };
    let rest = path.strip_prefix(upstream.base.as_bytes())?;
    let between: &[u8] = match rest {
        // Without a prefix before it, it would lead to another origin.
        [b'\\', ..] | [b'/', b'/' | b'\\', ..] if prefix.is_empty() => b"/.",
        [] | [b'?' | b'#', ..] if prefix.is_empty() => b"/",
        [] | [b'/' | b'\\' | b'?' | b'#', ..] => b"",
        [_, ..] => return None,
    };
    Some([prefix.as_bytes(), between, rest].concat())
}

/// Returns the path of `//host[:port]…` on the upstream's server, by `https` if `tls`. `http` and
/// `https` of one host on their default ports are one server, and browsers take backslashes for
/// slashes.
fn at_upstream<'a>(reference: &'a [u8], tls: bool, upstream: &Upstream) -> Option<&'a [u8]> {
    let [b'/' | b'\\', b'/' | b'\\', rest @ ..] = reference else {
        return None;
    };
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'\\' | b'?' | b'#'));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    let authority = std::str::from_utf8(authority).ok()?;
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    };
    let host = host.trim_matches(['[', ']']);
    let host = host.strip_suffix('.').unwrap_or(host);
    let usual = |tls: bool| if tls { 443 } else { 80 };
    let port = match port {
        "" => usual(tls),
        digits => digits.parse().ok()?,
    };
    let same = (tls, port) == (upstream.tls, upstream.port)
        || (port == usual(tls) && upstream.port == usual(upstream.tls));
    (same && host.eq_ignore_ascii_case(&upstream.host)).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn upstream() -> Upstream {
        Upstream {
            tls: true,
            host: "api.example".into(),
            port: 443,
            base: "/base".into(),
        }
    }

    #[test]
    fn a_location_at_the_vendor_leads_through_the_proxy_again() {
        for (sent, wanted) in [
            ("https://api.example/base/x?y", Some("/v/x?y")),
            ("https://API.example:443/base", Some("/v")),
            ("https://api.example./base?q#f", Some("/v?q#f")),
            ("https://somebody@api.example/base/x", Some("/v/x")),
            ("HTTPS:\\\\api.example/base/x", Some("/v/x")),
            // In plaintext, on the default port.
            ("http://api.example/base/x", Some("/v/x")),
            ("http://api.example:80/base/x", Some("/v/x")),
            ("//api.example/base/x", Some("/v/x")),
            ("/base/x", Some("/v/x")),
            ("/base//x", Some("/v//x")),
            ("/basement", None),
            ("https://api.example/other", None),
            ("https://api.example:8443/base/x", None),
            ("http://api.example:443/base/x", None),
            ("https://api.example:no/base/x", None),
            ("https://api.example.evil/base/x", None),
            ("https://api.example@evil/base/x", None),
            ("https://evil\\@api.example/base/x", None),
            ("ftp://api.example/base/x", None),
            ("mailto:x@api.example/base/x", None),
            ("relative", None),
            ("?page=2", None),
            ("", None),
        ] {
            let ours = location(&HeaderValue::from_static(sent), &upstream(), "/v");
            let ours = ours.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(ours, wanted, "{sent}");
        }
        let odd = HeaderValue::from_bytes("https://api.example/base/é".as_bytes()).unwrap();
        let ours = location(&odd, &upstream(), "/v").unwrap();
        assert_eq!(ours.as_bytes(), "/v/é".as_bytes());
    }

    #[test]
    fn a_location_of_a_vendor_without_a_prefix_leads_to_no_other_origin() {
        for (sent, wanted) in [
            ("/base//evil.example/x", "/.//evil.example/x"),
            ("/base/\\evil.example/x", "/./\\evil.example/x"),
            ("https://api.example/base//evil.example", "/.//evil.example"),
            ("/base", "/"),
            ("/base?x", "/?x"),
            ("/base/x", "/x"),
        ] {
            let ours = location(&HeaderValue::from_static(sent), &upstream(), "");
            assert_eq!(ours.unwrap(), wanted, "{sent}");
        }
        let bare = Upstream {
            base: String::new(),
            host: "::1".into(),
            port: 8443,
            ..upstream()
        };
        for (sent, wanted) in [
            ("https://[::1]:8443", "/"),
            ("https://[::1]:8443\\evil.example", "/.\\evil.example"),
            ("https://[::1]:8443\\\\evil.example", "/.\\\\evil.example"),
        ] {
            let ours = location(&HeaderValue::from_static(sent), &bare, "");
            assert_eq!(ours.unwrap(), wanted, "{sent}");
        }
    }

    #[test]
    fn links_to_the_vendor_lead_through_the_proxy_again() {
        for (sent, wanted) in [
            (
                "<https://api.example/base/x?page=2>; rel=\"next\", <https://api.example/base/x?page=9>; rel=last",
                Some("</v/x?page=2>; rel=\"next\", </v/x?page=9>; rel=last"),
            ),
            (
                "<https://elsewhere.example/a,b>;rel=x , </base/y>;anchor=\"https://api.example/base/z\"",
                Some("<https://elsewhere.example/a,b>;rel=x , </v/y>;anchor=\"/v/z\""),
            ),
            (
                "<x>; title=\"<https://api.example/base/x>, \\\"; anchor=\"; Anchor = \"/base#a\"",
                Some(
                    "<x>; title=\"<https://api.example/base/x>, \\\"; anchor=\"; Anchor = \"/v#a\"",
                ),
            ),
            (",, </base/x>", Some(",, </v/x>")),
            ("< /base/x >", Some("</v/x>")),
            ("</base/x>; title=\"no end", Some("</v/x>; title=\"no end")),
            ("<relative>; rel=next", None),
            ("<https://elsewhere.example/base/x>; rel=next", None),
            ("rel=next; <https://api.example/base/x>", None),
            ("<https://api.example/base/x", None),
            ("", None),
        ] {
            let ours = link(&HeaderValue::from_static(sent), &upstream(), "/v");
            let ours = ours.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(ours, wanted, "{sent}");
        }
    }

    proptest! {
        #[test]
        fn no_field_is_too_odd(text in "[<>\";,=\\\\ a/:@h\\[\\]]{0,40}", anchored in any::<bool>()) {
            let text = if anchored { format!("<https://api.example/base>;anchor={text}") } else { text };
            if let Ok(value) = HeaderValue::from_str(&text) {
                let _ = (link(&value, &upstream(), ""), location(&value, &upstream(), ""));
            }
        }
    }
}
