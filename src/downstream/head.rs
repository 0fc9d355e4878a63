//! A request's head over HTTP/1 while it comes: its length, and the characters of its first line.

use super::raw_head::{MAX_HEAD, MAX_TARGET};
use crate::error::Error;

/// What is known of a head before it can be parsed.
#[derive(Debug, Default)]
pub(super) struct Head {
    phase: Phase,
    /// Blanks in the first line.
    blanks: u8,
    odd_line: bool,
    /// Bytes that have come.
    length: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet, or only empty lines.
    #[default]
    Before,
    /// Within the first line.
    InLine,
    /// After the first line.
    InFields,
}

/// Longest first line, bytes: a target with a method and a version. A complete one is measured by
/// its target alone.
const MAX_LINE: usize = MAX_TARGET + 64;

impl Head {
    /// Follows the bytes of the first line.
    pub(super) fn look_at(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        for byte in bytes {
            match (self.phase, byte) {
                (Phase::InFields, _) => return,
                // Empty lines before a head are skipped (RFC 9112 §2.2).
                (Phase::Before, b'\r' | b'\n') | (Phase::InLine, b'\r' | b'!'..=b'~') => {}
                (Phase::Before, b'!'..=b'~') => self.phase = Phase::InLine,
                (Phase::InLine, b' ') => {
                    self.odd_line |= self.blanks >= 2;
                    self.blanks = self.blanks.saturating_add(1);
                }
                (Phase::InLine, b'\n') => {
                    self.phase = Phase::InFields;
                    return;
                }
                (Phase::Before | Phase::InLine, _) => {
                    self.phase = Phase::InLine;
                    self.odd_line = true;
                }
            }
        }
    }

    /// Returns why the head is refused before it is complete.
    pub(super) fn too_large(&self) -> Option<Error> {
        if self.phase == Phase::InLine && self.length > MAX_LINE {
            Some(Error::TargetTooLong)
        } else if self.length > MAX_HEAD {
            Some(Error::HeadTooLarge)
        } else {
            None
        }
    }

    /// Tells whether more than empty lines have come.
    pub(super) fn is_half_way(&self) -> bool {
        self.phase != Phase::Before
    }

    /// Tells whether the first line held anything but two single blanks between graphic ASCII
    /// characters. A parser that repairs such a line would read another target than was sent.
    pub(super) fn has_odd_line(&self) -> bool {
        self.odd_line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8], step: usize) -> Head {
        let mut head = Head::default();
        for piece in bytes.chunks(step) {
            head.look_at(piece);
        }
        head
    }

    #[test]
    fn odd_first_lines_are_known_however_they_come() {
        for (line, odd) in [
            (&b"GET /a?b HTTP/1.1\r\nA: \xff\r\n"[..], false),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", false),
            (b"GET /a b HTTP/1.1\r\n", true),
            (b"GET /\xc3\xa9 HTTP/1.1\r\n", true),
            (b"GET\t/ HTTP/1.1\r\n", true),
            (b" GET / HTTP/1.1\r\n", true),
            (b"GET /\0 HTTP/1.1\r\n", true),
        ] {
            for step in 1..line.len() {
                assert_eq!(head(line, step).has_odd_line(), odd, "{line:?} {step}");
            }
        }
    }

    #[test]
    fn heads_are_refused_while_they_come() {
        let long = [b"GET /".as_slice(), &vec![b'a'; MAX_LINE]].concat();
        assert_eq!(head(&long, 4096).too_large(), Some(Error::TargetTooLong));
        let large = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &vec![b'a'; MAX_HEAD]].concat();
        assert_eq!(head(&large, 4096).too_large(), Some(Error::HeadTooLarge));
        assert_eq!(head(&large[..MAX_HEAD], 4096).too_large(), None);
        assert!(!head(b"\r\n\r\n", 1).is_half_way());
        assert!(head(b"\r\nG", 1).is_half_way());
    }
}
