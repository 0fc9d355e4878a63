//! Character references of HTML and XML for characters that would be taken for markup (HTML Living
//! Standard §13.5, XML 1.0 §4.1).

/// Named references, as encoders in use write them. Names are case-sensitive.
const NAMED: &[(char, &[&str])] = &[
    ('\t', &["Tab"]),
    ('\n', &["NewLine"]),
    ('!', &["excl"]),
    ('"', &["quot", "QUOT"]),
    ('#', &["num"]),
    ('$', &["dollar"]),
    ('%', &["percnt"]),
    ('&', &["amp", "AMP"]),
    ('\'', &["apos"]),
    ('(', &["lpar"]),
    (')', &["rpar"]),
    ('*', &["ast"]),
    ('+', &["plus"]),
    (',', &["comma"]),
    ('.', &["period"]),
    ('/', &["sol"]),
    (':', &["colon"]),
    (';', &["semi"]),
    ('<', &["lt", "LT"]),
    ('=', &["equals"]),
    ('>', &["gt", "GT"]),
    ('?', &["quest"]),
    ('@', &["commat"]),
    ('[', &["lsqb", "lbrack"]),
    ('\\', &["bsol"]),
    (']', &["rsqb", "rbrack"]),
    ('^', &["Hat"]),
    ('_', &["lowbar"]),
    ('`', &["grave"]),
    ('{', &["lcub", "lbrace"]),
    ('|', &["verbar", "vert"]),
    ('}', &["rcub", "rbrace"]),
    ('\u{a0}', &["nbsp"]),
];

/// Longest run of zeros before the digits that is searched for: some encoders write `&#039;` and
/// `&#x0027;`.
const PADDED: usize = 4;

/// Passes every reference for `character` to `way`, and whether its letters may have either case:
/// by name, and by number, decimal and hexadecimal.
pub(super) fn references(character: char, mut way: impl FnMut(&[u8], bool)) {
    // `&#x`, seven digits of the largest character's decimal number, `;`.
    let mut text = [0; 12];
    if let Some((_, names)) = NAMED.iter().find(|(named, _)| *named == character) {
        for name in *names {
            way(joined(&mut text, b"&", name.as_bytes()), false);
        }
    }
    for (begin, radix) in [(&b"&#"[..], 10), (b"&#x", 16)] {
        let mut digits = [b'0'; 7];
        let mut first = digits.len();
        let mut rest = u32::from(character);
        while rest > 0 {
            first -= 1;
            // Lower case; the comparison ignores it.
            digits[first] = char::from_digit(rest % radix, radix).map_or(b'0', |digit| digit as u8);
            rest /= radix;
        }
        let shortest = digits.len() - first;
        for width in shortest..=shortest.max(PADDED) {
            let padded = &digits[digits.len() - width..];
            way(joined(&mut text, begin, padded), true);
        }
    }
}

fn joined<'a>(text: &'a mut [u8; 12], begin: &[u8], middle: &[u8]) -> &'a [u8] {
    let (at, end) = (begin.len(), begin.len() + middle.len());
    text[..at].copy_from_slice(begin);
    text[at..end].copy_from_slice(middle);
    text[end] = b';';
    &text[..=end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(character: char) -> Vec<String> {
        let mut ways = Vec::new();
        references(character, |way, _| {
            ways.push(String::from_utf8(way.to_vec()).unwrap());
        });
        ways
    }

    #[test]
    fn a_character_is_written_by_name_and_by_number() {
        assert_eq!(
            all('&'),
            [
                "&amp;", "&AMP;", "&#38;", "&#038;", "&#0038;", "&#x26;", "&#x026;", "&#x0026;"
            ]
        );
        assert_eq!(all('-').len(), 6);
        assert!(all('é').contains(&"&#xe9;".to_owned()));
        assert_eq!(all('\u{10ffff}'), ["&#1114111;", "&#x10ffff;"]);
        assert!(all('\0').contains(&"&#0;".to_owned()), "{:?}", all('\0'));
    }
}
