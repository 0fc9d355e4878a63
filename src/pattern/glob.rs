//! Globs of rules and permissions. Pure functions.

use smallvec::SmallVec;

/// Tells whether the whole of `text` matches `pattern`. `*` matches any run without a `/`, `**` any
/// run; a pattern that ends in `/**` also matches the path before it. The cost is at most the
/// product of the lengths, whatever the pattern.
#[must_use]
pub fn glob(pattern: &str, text: &str) -> bool {
    let matches = |pattern: &str| matches_all(pattern.as_bytes(), text.as_bytes(), || ());
    let parent = pattern
        .strip_suffix("/**")
        .filter(|parent| !parent.is_empty());
    parent.is_some_and(matches) || matches(pattern)
}

/// Follows all ways to match at once instead of one after the other: no byte of the text is looked
/// at twice. Calls `step` for each place of the pattern that a byte is compared with.
fn matches_all(pattern: &[u8], text: &[u8], mut step: impl FnMut()) -> bool {
    // Up to the first star there is only one way.
    let plain = pattern.iter().position(|byte| *byte == b'*');
    let Some(plain) = plain else {
        return pattern == text;
    };
    if !text.starts_with(&pattern[..plain]) {
        return false;
    }
    let (pattern, text) = (&pattern[plain..], &text[plain..]);
    let mut places = Places::new(pattern.len());
    places.add(0, pattern);
    for byte in text {
        let mut next = Places::new(pattern.len());
        for place in places.iter() {
            step();
            let rest = &pattern[place..];
            match rest {
                // The rest is covered.
                b"**" => return true,
                [b'*', b'*', ..] => next.add(place, pattern),
                [b'*', ..] if *byte != b'/' => next.add(place, pattern),
                [b'*', ..] | [] => {}
                [wanted, ..] if wanted == byte => next.add(place + 1, pattern),
                [_, ..] => {}
            }
        }
        if next.is_empty() {
            return false;
        }
        places = next;
    }
    places.contains(pattern.len())
}

/// Places in a pattern that the text so far may have reached. One bit each; a long pattern needs no
/// allocation.
struct Places(SmallVec<[u64; 4]>);

impl Places {
    /// Returns no places, for a pattern of this length.
    fn new(length: usize) -> Self {
        Self(smallvec::smallvec![0; length / 64 + 1])
    }

    /// Adds a place, and those behind the stars there: a star may match nothing.
    fn add(&mut self, mut place: usize, pattern: &[u8]) {
        loop {
            self.0[place / 64] |= 1 << (place % 64);
            place += match &pattern[place..] {
                [b'*', b'*', ..] => 2,
                [b'*', ..] => 1,
                _ => return,
            };
        }
    }

    fn contains(&self, place: usize) -> bool {
        self.0[place / 64] & 1 << (place % 64) != 0
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Returns the places in ascending order.
    fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(nth, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = usize::try_from(left.trailing_zeros()).ok()?;
                left &= left.checked_sub(1)?;
                Some(nth * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_know_segments() {
        for (pattern, text, want) in [
            ("/token", "/token", true),
            ("/token*", "/tokenize", true),
            ("/token*", "/token/x", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a/b/b/c", false),
            ("/a/**/c", "/a/b/b/c", true),
            ("/v1/**", "/v1", true),
            ("/v1/**", "/v1/x/y", true),
            ("/v1/**", "/v10", false),
            ("/**", "/", true),
            ("/**/*.key", "/a/b/c.key", true),
            ("/**/*.key", "/a/b.key/c", false),
            ("/*/**/x*z", "/a/x/xyyz", true),
            ("/**a*b*c", "/x/aab/abxc", true),
            ("/**a*b*c", "/x/ab/c", false),
        ] {
            assert_eq!(glob(pattern, text), want, "{pattern} on {text}");
        }
        // More places than one word has bits.
        let long = format!("/{}*{}**z", "a".repeat(100), "b".repeat(100));
        let text = format!("/{}x{}/y/z", "a".repeat(100), "b".repeat(100));
        assert!(glob(&long, &text) && !glob(&long, &text[..text.len() - 1]));
    }

    #[test]
    fn no_text_costs_more_than_its_length_for_each_place_of_the_pattern() {
        for pattern in [
            "/**a*b*c",
            "/**/*a*a*a*b/**/c",
            "/*a*b/**x*y/**z",
            "/**a**a**a**c",
        ] {
            let steps = |text: &str| {
                let mut steps = 0;
                let matched = matches_all(pattern.as_bytes(), text.as_bytes(), || steps += 1);
                assert!(!matched, "{pattern}");
                steps
            };
            for piece in ["a", "ab", "a/b", "/", "xa/ay", "aab/"] {
                let times = 16 * 1024 / piece.len();
                let text = |times: usize| format!("/{}", piece.repeat(times));
                let (once, twice) = (steps(&text(times)), steps(&text(2 * times)));
                assert!(
                    twice <= once * 2 + 2 * pattern.len(),
                    "{pattern}, {piece}: {once}, {twice}"
                );
                assert!(
                    once <= pattern.len() * (16 * 1024 + 1),
                    "{pattern}, {piece}: {once}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn globs_agree_with_the_obvious_recursion(
            pattern in "/[ab*/]{0,9}",
            text in "/[ab/]{0,9}",
        ) {
            fn slow(p: &[u8], t: &[u8]) -> bool {
                if p.starts_with(b"**") {
                    return (0..=t.len()).any(|n| slow(&p[2..], &t[n..]));
                }
                match (p.first(), t.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => (0..=t.len())
                        .take_while(|n| !t[..*n].contains(&b'/'))
                        .any(|n| slow(&p[1..], &t[n..])),
                    (Some(a), Some(b)) if a == b => slow(&p[1..], &t[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(
                matches_all(pattern.as_bytes(), text.as_bytes(), || ()),
                slow(pattern.as_bytes(), text.as_bytes())
            );
        }
    }
}
