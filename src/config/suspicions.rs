//! Secrets that are present and look as if they are not the intended ones. They are used as they
//! are; a warning describes what looks odd, and repeats nothing of the secret.

use crate::secret::SecretRef;

/// Returns what looks odd about `bytes`, which `secret` holds, and the advice for each.
pub(super) fn suspicions(secret: &SecretRef, bytes: &[u8]) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let is_file = matches!(secret, SecretRef::File(_));
    let Ok(text) = std::str::from_utf8(bytes) else {
        return found;
    };
    let without = text.strip_prefix('\u{feff}').unwrap_or(text);
    if without.len() < text.len() {
        found.push(if is_file {
            (
                "begins with a byte order mark, which is removed",
                "save it as UTF-8 without one",
            )
        } else {
            (
                "begins with a byte order mark, which is part of the secret",
                "set it without one",
            )
        });
    }
    let trimmed = without.trim();
    if !is_file && trimmed.len() < without.len() {
        found.push((
            "has white space around it",
            "only files are trimmed: remove it where it is set, a line break at the end most likely",
        ));
    }
    let quoted =
        |quote: char| trimmed.len() > 1 && trimmed.starts_with(quote) && trimmed.ends_with(quote);
    if quoted('"') || quoted('\'') {
        found.push((
            "stands in quotes, which are part of it",
            "remove them, unless they belong to it: files and `--env-file` are taken literally",
        ));
    }
    if is_assignment(trimmed) {
        found.push((
            "looks like `NAME=value`, and the name is part of it",
            "leave only the secret in it, unless this is intended",
        ));
    }
    if trimmed.contains('\n') {
        found.push((
            "holds several lines, which are all part of the secret",
            "leave only the secret in it",
        ));
    }
    if is_placeholder(trimmed) {
        found.push((
            "looks like a placeholder",
            "put the secret itself there, as the vendor or `countersign caller new` gave it",
        ));
    }
    found
}

/// Tells whether `text` is a line of a shell script or an environment file. The padding of base64
/// is no assignment.
fn is_assignment(text: &str) -> bool {
    let text = text.strip_prefix("export ").unwrap_or(text);
    text.split_once('=').is_some_and(|(name, value)| {
        name.len() > 2
            && name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
            && name
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
            && !value.trim_start_matches('=').is_empty()
    })
}

/// Tells whether `text` is a placeholder of samples and templates.
pub(super) fn is_placeholder(text: &str) -> bool {
    let auth_context = |open: &str, close: &str| {
        text.len() > open.len() + close.len() && text.starts_with(open) && text.ends_with(close)
    };
    let word: String = text
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    auth_context("<", ">")
        || auth_context("${", "}")
        || auth_context("$(", ")")
        || auth_context("{{", "}}")
        || auth_context("[", "]")
        || WORDS.contains(&word.as_str())
        || (word.starts_with("your") && YOURS.iter().any(|end| word.ends_with(end)))
        || (text.len() > 2 && text.bytes().all(|b| matches!(b, b'x' | b'X' | b'*' | b'.')))
}

const WORDS: [&str; 9] = [
    "changeit",
    "changeme",
    "fillmein",
    "fixme",
    "insertsecrethere",
    "placeholder",
    "replaceme",
    "tbd",
    "todo",
];
const YOURS: [&str; 6] = ["here", "id", "key", "password", "secret", "token"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::secret::reference::BOM;

    fn found(text: &str) -> String {
        let secret = SecretRef::Value(Secret::exact(text));
        let found = suspicions(&secret, text.as_bytes());
        let words: Vec<_> = found.iter().map(|(what, _)| *what).collect();
        words.join("; ")
    }

    #[test]
    fn what_looks_odd_is_named_and_what_secrets_look_like_is_not() {
        for (text, what) in [
            ("\u{feff}hunter2", "byte order mark"),
            ("hunter2\n", "white space"),
            (" hunter2", "white space"),
            ("hunter2\n# of the test account\n", "several lines"),
            ("\"hunter2\"", "quotes"),
            ("'hunter2'", "quotes"),
            ("API_KEY=hunter2", "NAME=value"),
            ("export TOKEN=hunter2", "NAME=value"),
            ("<changeme>", "placeholder"),
            ("<your API key>", "placeholder"),
            ("CHANGE-ME", "placeholder"),
            ("change_me!", "placeholder"),
            ("your-client-secret", "placeholder"),
            ("YOUR_TOKEN_HERE", "placeholder"),
            ("${API_KEY}", "placeholder"),
            ("{{ .Values.token }}", "placeholder"),
            ("xxxxxxxx", "placeholder"),
        ] {
            assert!(found(text).contains(what), "{text}: {}", found(text));
        }
        for text in [
            "hunter2",
            "c2VjcmV0c2VjcmV0==",
            "QUJDREVGRw==",
            "ABCDEF=",
            "Sm9obg==.x",
            "a=b",
            "Ab=c",
            "it's",
            "yourself",
            "tbd1",
            "p@ss <word>",
            "5f8a2b1c",
        ] {
            assert_eq!(found(text), "", "{text}");
        }
    }

    #[test]
    fn a_files_byte_order_mark_and_white_space_are_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, [BOM.as_bytes(), b" hunter2\r\n"].concat()).unwrap();
        let secret = SecretRef::File(path);
        assert_eq!(secret.resolve().unwrap().expose(), "hunter2");
        let bytes = secret.resolve_bytes().unwrap();
        let found = suspicions(&secret, &bytes);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0.contains("removed"), "{found:?}");
    }
}
