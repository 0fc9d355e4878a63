//! Quotes a server's words to people: on one line, bounded, and without anything that resembles
//! what we sent.

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use url::form_urlencoded;

use crate::secret::Secret;

/// Recognises the secrets of one request in a text, whole or in part, in the encodings in which
/// servers repeat what they were sent.
pub(super) struct Mask {
    /// Pieces of secrets, in lower case, packed with their length.
    pieces: HashSet<(u8, u128)>,
    /// Lengths of the pieces.
    lengths: Vec<usize>,
    /// Secrets too short to be recognised by a part, in lower case; masked as whole words.
    short: Vec<String>,
    client_id: Option<Secret>,
}

impl Mask {
    /// Makes a mask for `secrets`. `client_id` is no secret, and appears as `[client_id]`.
    pub(super) fn new<'a>(
        secrets: impl IntoIterator<Item = &'a str>,
        client_id: Option<&Secret>,
    ) -> Self {
        let mut mask = Self {
            pieces: HashSet::new(),
            lengths: Vec::new(),
            short: Vec::new(),
            // Shorter names occur in ordinary words.
            client_id: client_id.filter(|id| id.expose().len() >= 6).cloned(),
        };
        for secret in secrets {
            mask.add(secret);
        }
        mask.lengths = mask.pieces.iter().map(|(n, _)| (*n).into()).collect();
        mask.lengths.sort_unstable();
        mask.lengths.dedup();
        mask
    }

    /// Returns `text` on one line, masked, with at most [`MAX_QUOTE`] characters and an ellipsis.
    pub(super) fn line(&self, text: &str) -> String {
        let text = one_line(text);
        let lower = text.to_ascii_lowercase();
        let mut covered = vec![false; text.len()];
        self.cover_pieces(lower.as_bytes(), &mut covered);
        self.cover_words(&lower, &mut covered);
        cover_opaque(&text, &mut covered);

        let mut masked = String::new();
        let mut inside = false;
        for (at, c) in text.char_indices() {
            if !covered[at] {
                masked.push(c);
            } else if !inside {
                masked.push_str(MASKED);
            }
            inside = covered[at];
        }
        if let Some(client_id) = &self.client_id {
            masked = masked.replace(client_id.expose(), "[client_id]");
        }
        if let Some((end, _)) = masked.char_indices().nth(MAX_QUOTE) {
            masked.truncate(end);
            masked.push_str("...");
        }
        masked
    }

    fn add(&mut self, secret: &str) {
        if secret.len() < SHORTEST_PIECE {
            if !secret.is_empty() {
                self.short.push(secret.to_ascii_lowercase());
            }
            return;
        }
        self.add_pieces(secret);
        let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let json = serde_json::to_string(secret).unwrap_or_default();
        for encoded in [
            form,
            utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
            json.trim_matches('"').to_owned(),
            html_escaped(secret),
            hex::encode(secret),
            // Texts are searched in this form.
            one_line(secret),
        ] {
            if encoded != secret {
                self.add_pieces(&encoded);
            }
        }
        // Within a longer text, as in Basic, a secret's base64 depends on where it begins.
        for shift in 0..3 {
            let bytes = [&[0; 2][..shift.min(2)], secret.as_bytes()].concat();
            for encoded in [
                BASE64_STANDARD.encode(&bytes),
                BASE64_URL_SAFE.encode(&bytes),
            ] {
                let end = encoded.len().saturating_sub(4);
                let inner = encoded.get(shift * 2..end).unwrap_or_default();
                if inner.len() >= LONGEST_PIECE {
                    self.add_pieces(inner);
                }
            }
        }
    }

    /// Adds every part of `shape` that is long enough to be no coincidence.
    fn add_pieces(&mut self, shape: &str) {
        let bytes = shape.as_bytes();
        let length = (bytes.len() * 3 / 4).clamp(SHORTEST_PIECE, LONGEST_PIECE);
        for piece in bytes.windows(length) {
            if !is_word(piece) {
                self.pieces.insert(packed(piece));
            }
        }
        // Parts that are letters only may be ordinary words, so they have to be longer.
        let length = bytes.len().min(LONGEST_WORD);
        for piece in bytes.windows(length) {
            if is_word(piece) {
                self.pieces.insert(packed(piece));
            }
        }
    }

    fn cover_pieces(&self, lower: &[u8], covered: &mut [bool]) {
        let in_run = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-+/%~".contains(byte);
        for length in &self.lengths {
            for (at, piece) in lower.windows(*length).enumerate() {
                if !self.pieces.contains(&packed(piece)) {
                    continue;
                }
                // Covers the whole run around it: the rest would reveal as much.
                let before = lower[..at].iter().rev().take_while(|b| in_run(b)).count();
                let end = at + length;
                let after = lower[end..].iter().take_while(|b| in_run(b)).count();
                covered[at - before..end + after].fill(true);
            }
        }
    }

    fn cover_words(&self, lower: &str, covered: &mut [bool]) {
        for secret in &self.short {
            for (at, _) in lower.match_indices(secret.as_str()) {
                let end = at + secret.len();
                let before = lower[..at].chars().next_back();
                let after = lower[end..].chars().next();
                if ![before, after]
                    .iter()
                    .flatten()
                    .any(|c| c.is_alphanumeric())
                {
                    covered[at..end].fill(true);
                }
            }
        }
    }
}

/// Returns the text that people see of an HTML or XML page: its title, then its body. Scripts,
/// styles, comments and tags are left out; the usual character references are resolved.
pub(super) fn visible_text(page: &str) -> String {
    let (mut title, mut body) = (String::new(), String::new());
    let mut in_title = false;
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let part = if in_title { &mut title } else { &mut body };
        part.push_str(&rest[..at]);
        part.push(' ');
        rest = &rest[at + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
            continue;
        }
        let name = rest.trim_start_matches('/');
        let name: String = name
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let closing = rest.starts_with('/');
        rest = rest.split_once('>').map_or("", |(_, after)| after);
        match name.as_str() {
            "title" => in_title = !closing,
            "script" | "style" | "template" | "svg" if !closing => {
                let end = format!("</{name}");
                let at = rest.to_ascii_lowercase().find(&end);
                rest = at.map_or("", |at| &rest[at..]);
            }
            _ => {}
        }
    }
    body.push_str(rest);
    let (title, body) = (
        one_line(&decode_references(&title)),
        one_line(&decode_references(&body)),
    );
    if title.is_empty() || body.starts_with(&title) {
        body
    } else if body.is_empty() {
        title
    } else {
        format!("{title}: {body}")
    }
}

/// Replaces the character references that occur in error pages by their characters.
fn decode_references(text: &str) -> String {
    let mut decoded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        decoded.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.char_indices().take(12).find(|(_, c)| *c == ';');
        let character = end.and_then(|(end, _)| match &rest[1..end] {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            "nbsp" => Some(' '),
            number => {
                let digits = number.strip_prefix('#')?;
                let code = match digits.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok(),
                    None => digits.parse().ok(),
                };
                char::from_u32(code?)
            }
        });
        if let (Some(character), Some((end, _))) = (character, end) {
            decoded.push(character);
            rest = &rest[end + 1..];
        } else {
            decoded.push('&');
            rest = &rest[1..];
        }
    }
    decoded.push_str(rest);
    decoded
}

/// Keeps printable characters, with white space as single blanks, up to [`MAX_SEARCHED`].
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().take(MAX_SEARCHED) {
        if c.is_whitespace() {
            if !line.is_empty() && !line.ends_with(' ') {
                line.push(' ');
            }
        } else if c.is_ascii_graphic() || c.is_alphanumeric() || PUNCTUATION.contains(c) {
            line.push(c);
        } else if !c.is_control() && !INVISIBLE.contains(&c) {
            line.push('?');
        }
    }
    line.truncate(line.trim_end().len());
    line
}

fn html_escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Covers what looks like a token, whoever issued it: a long run of letters and digits, mixed.
/// Identifiers that a support case may need have hyphens, dots or underscores in between.
fn cover_opaque(text: &str, covered: &mut [bool]) {
    let bytes = text.as_bytes();
    let mut start = 0;
    while start < bytes.len() {
        let run = bytes[start..]
            .iter()
            .take_while(|b| b.is_ascii_alphanumeric())
            .count();
        let piece = &bytes[start..start + run];
        let mixed =
            piece.iter().any(u8::is_ascii_digit) && piece.iter().any(u8::is_ascii_alphabetic);
        if run >= MIN_OPAQUE && mixed {
            covered[start..start + run].fill(true);
        }
        start += run + 1;
    }
}

/// Tells whether `piece` has letters of one case only.
fn is_word(piece: &[u8]) -> bool {
    piece.iter().all(u8::is_ascii_lowercase) || piece.iter().all(u8::is_ascii_uppercase)
}

/// Packs at most 16 bytes in lower case into one number, with their count.
fn packed(piece: &[u8]) -> (u8, u128) {
    let packed = piece.iter().fold(0, |packed, byte| {
        (packed << 8) | u128::from(byte.to_ascii_lowercase())
    });
    (u8::try_from(piece.len()).unwrap_or(u8::MAX), packed)
}

const MASKED: &str = "[masked]";
/// Characters of a server's text that are quoted.
const MAX_QUOTE: usize = 200;
/// Characters of a server's text that are searched.
const MAX_SEARCHED: usize = 4096;
/// Bounds of the part of a secret by which it is recognised, in bytes.
const SHORTEST_PIECE: usize = 6;
const LONGEST_PIECE: usize = 8;
/// Upper bound for a part that may be an ordinary word.
const LONGEST_WORD: usize = 12;
/// Length of a run of letters and digits that is taken for a token. Request identifiers of 16
/// hexadecimal digits are shorter.
const MIN_OPAQUE: usize = 20;
/// Punctuation beyond ASCII in texts for people.
const PUNCTUATION: &str = "\u{2018}\u{2019}\u{201c}\u{201d}\u{2013}\u{2014}\u{2026}«»¿¡。、，：";
/// Characters without width, which could split a secret unseen.
const INVISIBLE: [char; 6] = [
    '\u{ad}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', '\u{feff}',
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(secret: &str, text: &str) -> String {
        Mask::new([secret], None).line(text)
    }

    #[test]
    fn a_secret_is_masked_in_every_encoding_whole_or_in_part() {
        let secret = "hunter2&x<'\"Zq9";
        let basic = BASE64_STANDARD.encode(format!("id:{secret}"));
        let percent = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
        for shown in [
            secret.to_owned(),
            secret.to_uppercase(),
            basic,
            BASE64_URL_SAFE.encode(format!("a longer text with {secret} in it")),
            percent.to_lowercase(),
            percent,
            form_urlencoded::byte_serialize(secret.as_bytes()).collect(),
            hex::encode(secret),
            hex::encode_upper(secret),
            html_escaped(secret),
            serde_json::to_string(secret).unwrap(),
            "hunter2&".to_owned(),
            "hun\u{200b}ter2&x".to_owned(),
        ] {
            let line = masked(secret, &format!("The token {shown} is unknown"));
            assert!(line.starts_with("The token "), "{line}");
            assert!(line.ends_with(" is unknown"), "{line}");
            assert!(line.contains(MASKED), "{shown}: {line}");
            for part in ["hunter", "Zq9", "nter2"] {
                assert!(!line.contains(part), "{shown}: {line}");
            }
        }
    }

    #[test]
    fn ordinary_words_stay_even_when_a_secret_is_made_of_them() {
        for (secret, text, line) in [
            ("my-secret-1", "wrong secret", "wrong secret"),
            (
                "pw",
                "pw: the power of a pw.",
                "[masked]: the power of a [masked].",
            ),
            ("opensesame", "opensesame is wrong", "[masked] is wrong"),
            ("opensesame", "open sesame is wrong", "open sesame is wrong"),
            (
                "correcthorsebatterystaple",
                "correcthorseb is wrong, horse",
                "[masked] is wrong, horse",
            ),
        ] {
            assert_eq!(masked(secret, text), line);
        }
        let id = Secret::new("my-client");
        let mask = Mask::new(["s3cr3t-of-it"], Some(&id));
        assert_eq!(mask.line("my-client: s3cr3t-o"), "[client_id]: [masked]");
    }

    #[test]
    fn what_looks_like_a_token_is_masked_and_what_support_asks_for_is_not() {
        let kept = "Trace 3f2504e0-4f89-11d3-9a0c-0305e82c3301, Ray 8a1b2c3d4e5f6071, \
                    Reference #18.2d351ab8.1557333295.a4e16ab, AADSTS700082, /oauth2/v1/token";
        assert_eq!(masked("none", kept), kept);
        for token in [
            "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9",
            "d41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert_eq!(masked("none", &format!("got {token}!")), "got [masked]!");
        }
    }

    #[test]
    fn a_quote_is_one_line_of_printable_characters_and_bounded() {
        let line = masked(
            "none",
            " a\r\nb\tc\u{0}d\u{1b}[31m \u{202e}é “q” \u{1f600} ",
        );
        assert_eq!(line, "a b cd[31m ?é “q” ?");
        let long = masked("none", &"word ".repeat(1000));
        assert!(long.ends_with("...") && long.chars().count() == MAX_QUOTE + 3);
    }

    #[test]
    fn of_a_page_its_title_and_its_words_are_read() {
        for (page, text) in [
            (
                "<!doctype html><html><head><title>Access &lt;Denied&gt;</title><style>p {}</style>\
                 <script>if (a < b) { x('<p>') }</script></head><body><h1>Access Denied</h1>\
                 <!-- <p>no</p> --><p>You don&#39;t have&nbsp;permission.\n<br>Reference&#x20;#18.2</p>",
                "Access <Denied>: Access Denied You don't have permission. Reference #18.2",
            ),
            (
                "<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad \
                 Gateway</h1></center><hr><center>nginx</center></body></html>",
                "502 Bad Gateway nginx",
            ),
            ("<TITLE>Busy</TITLE>", "Busy"),
            ("<error><message>No</message></error>", "No"),
            ("a < b & c &nope; &#xffffffff;", "a"),
            ("<script>endless", ""),
            ("<", ""),
        ] {
            assert_eq!(visible_text(page), text);
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it_and_no_secret_survives(
            secret in "[ -~]{6,40}",
            before in ".{0,40}",
            after in ".{0,40}",
        ) {
            let line = masked(&secret, &format!("{before} {secret} {after}"));
            // What the text says besides is not the secret's repetition.
            let blank = one_line(&format!("{before}{after}")).to_ascii_lowercase();
            let secret = one_line(&secret);
            if secret.len() >= 6 && !blank.contains(&secret.to_ascii_lowercase()) {
                prop_assert!(!line.contains(&secret), "{line}");
            }
            visible_text(&format!("{before}<{after}&{secret}"));
        }
    }
}
