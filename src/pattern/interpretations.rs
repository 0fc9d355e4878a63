//! The interpretations of a path that servers may have: decoded once more than they should, cut
//! where a `?` shows after decoding, dot segments resolved afterwards. Pure functions.
//!
//! Rules and permissions hold for each of them. None of them is ever forwarded.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::{escaped, overlong};

/// The interpretations of one path; few differ from each other.
pub type Interpretations = SmallVec<[String; 8]>;

/// Returns what servers may take `path`, as it was sent, for: its escapes decoded once and twice,
/// each up to the first `?` or `#` that then shows, with parameters and without, as it stands and
/// with dot and empty segments resolved. Nothing for a path without escapes and parameters.
#[must_use]
pub fn of(path: &str) -> Interpretations {
    let mut interpretations = Interpretations::new();
    if !path.contains(['%', ';']) {
        return interpretations;
    }
    let bare = without_parameters(path);
    let bare = (*bare != *path).then_some(&*bare);
    let mut decoded: SmallVec<[String; 4]> = SmallVec::new();
    for sent in [path].into_iter().chain(bare) {
        let once = decode(sent);
        if once.contains('%') {
            let twice = decode(&once);
            let bare_twice = decode(&without_parameters(&once));
            decoded.extend([twice, bare_twice]);
        }
        decoded.push(once);
    }
    for text in &decoded {
        let cut = text
            .find(['?', '#'])
            .map_or(text.as_str(), |at| &text[..at]);
        for text in [text.as_str(), cut] {
            for text in [Cow::Borrowed(text), without_parameters(text)] {
                add(&mut interpretations, path, resolved(&text));
                add(&mut interpretations, path, text.into_owned());
            }
        }
    }
    interpretations
}

/// Returns the forms of `pattern` in such interpretations, itself excepted. A pattern that permits
/// an escaped character permits its decoded form where a path is read decoded.
#[must_use]
pub fn of_pattern(pattern: &str) -> Interpretations {
    let mut forms = Interpretations::new();
    if pattern.contains(['%', ';']) {
        let decoded = decode(pattern);
        let bare = without_parameters(&decoded).into_owned();
        let cut = decoded.find(['?', '#']).map(|at| decoded[..at].to_owned());
        for form in cut.into_iter().chain([bare, decoded]) {
            add(&mut forms, pattern, form);
        }
    }
    forms
}

fn add(interpretations: &mut Interpretations, path: &str, interpretation: String) {
    if interpretation != path && !interpretations.contains(&interpretation) {
        interpretations.push(interpretation);
    }
}

/// Decodes the escapes of `text` once. Those of control characters and of bytes outside ASCII stay,
/// in upper case, and so does `%2A`: in a pattern, a star is something else. A backslash becomes a
/// slash, as some servers read it.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, width) = match (bytes[at], escaped(bytes, at)) {
            (b'%', Some(byte)) => overlong(bytes, at).unwrap_or((byte, 3)),
            (byte, _) => (byte, 1),
        };
        match byte {
            b'\\' => decoded.push('/'),
            b' '..=b'~' if width == 1 || byte != b'*' => decoded.push(byte.into()),
            _ => {
                let kept = text.get(at..at + width).unwrap_or_default();
                decoded.push_str(&kept.to_ascii_uppercase());
            }
        }
        at += width;
    }
    decoded
}

/// Cuts every segment at its first `;` (RFC 3986 §3.3).
fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/');
    let bare: Vec<&str> = segments
        .map(|segment| segment.split(';').next().unwrap_or_default())
        .collect();
    Cow::Owned(bare.join("/"))
}

/// Removes dot segments (RFC 3986 §5.2.4) and empty ones; a slash at the end stays.
fn resolved(path: &str) -> String {
    let mut kept: SmallVec<[&str; 16]> = SmallVec::new();
    let mut open = false;
    for segment in path.split('/') {
        open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let mut whole = String::with_capacity(path.len());
    for segment in &kept {
        whole.push('/');
        whole.push_str(segment);
    }
    if open || kept.is_empty() {
        whole.push('/');
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_decoded_once_and_twice() {
        for (path, wanted) in [
            ("/%2574oken/", "/token/"),
            ("/a%252f%252e%252e%252ftoken", "/token"),
            ("/a%252ftoken", "/a/token"),
            ("/a%255ctoken", "/a/token"),
            ("/%25%37%34oken", "/token"),
            ("/token%3fx", "/token"),
            ("/token%23x", "/token"),
            ("/token%253Fx=/y", "/token"),
            ("/token%253bx", "/token"),
            ("/a/%252e%252e;x/token", "/token"),
            ("/a;x/b%3by/c", "/a/b/c"),
            ("/a%25c0%25aftoken", "/a/token"),
            (
                "/https%253a%252f%252fvendor.example/x",
                "/https:/vendor.example/x",
            ),
        ] {
            let interpretations = of(path);
            assert!(
                interpretations.iter().any(|read| read == wanted),
                "{path}: {interpretations:?}"
            );
        }
        for plain in ["/", "/a/b.c/~d_e", "/a//b/../c"] {
            assert_eq!(of(plain), Interpretations::new(), "{plain}");
        }
        // Other escapes stay.
        assert_eq!(of("/%c3%a9/100%25")[..], ["/%C3%A9/100%"]);
    }

    #[test]
    fn a_pattern_with_escapes_is_known_decoded() {
        assert_eq!(of_pattern("/v1/**"), Interpretations::new());
        assert_eq!(of_pattern("/a%20b/%2A*")[..], ["/a b/%2A*"]);
        assert_eq!(
            of_pattern("/a;v=1/%3fx")[..],
            ["/a;v=1/", "/a/?x", "/a;v=1/?x"]
        );
    }

    #[test]
    fn the_readings_of_the_oddest_path_are_few() {
        let odd = "/%252e%252e;%3b%253b/%3f%23%253f%25252e%5c".repeat(300);
        assert!(of(&odd).len() <= 48, "{}", of(&odd).len());
    }
}
