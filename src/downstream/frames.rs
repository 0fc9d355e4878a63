//! The field blocks of requests over HTTP/2 (RFC 9113 §4.1, §4.3).
//!
//! They are all that a stranger can make us keep before there is a request. So they are let through
//! one block at a time, and an incomplete block is limited in time and counted.

/// Follows frames by their headers.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes left of the connection's preface, or of a frame's payload.
    left: usize,
    /// The part of the next frame's header that has come.
    head: [u8; HEAD],
    have: usize,
    /// `true` if the current frame is the last of a field block.
    is_last: bool,
    /// `true` if a field block has begun and is incomplete.
    within: bool,
    /// `true` if it has more than one frame.
    is_split: bool,
    /// The streams that the caller has reset since [`Self::take_resets`].
    resets: u32,
}

/// Length of the preface (RFC 9113 §3.4), and of a frame's header (§4.1), bytes.
const PREFACE: usize = 24;
const HEAD: usize = 9;
/// RFC 9113 §6.2, §6.10.
const HEADERS: u8 = 1;
/// RFC 9113 §6.4.
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

impl Frames {
    /// Returns the state of a new connection.
    pub(super) fn new() -> Self {
        Self {
            left: PREFACE,
            head: [0; HEAD],
            have: 0,
            is_last: false,
            within: false,
            is_split: false,
            resets: 0,
        }
    }

    /// Returns how many of `bytes` may be passed on: at most to the end of a field block, in which
    /// case the second value is `true`.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let some = self.left.min(bytes.len() - at);
                at += some;
                self.left -= some;
            } else {
                let some = (HEAD - self.have).min(bytes.len() - at);
                self.head[self.have..self.have + some].copy_from_slice(&bytes[at..at + some]);
                at += some;
                self.have += some;
                if self.have < HEAD {
                    break;
                }
                self.begin();
            }
            if self.left == 0 && self.is_last {
                (self.is_last, self.within, self.is_split) = (false, false, false);
                return (at, true);
            }
        }
        (at, false)
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.have = 0;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.within = true;
            self.is_last = flags & END_HEADERS != 0;
            self.is_split |= !self.is_last;
        } else if kind == RST_STREAM {
            self.resets += 1;
        }
    }

    /// Returns how many streams the caller has reset since the last call.
    pub(super) fn take_resets(&mut self) -> u32 {
        std::mem::take(&mut self.resets)
    }

    /// Tells whether a field block has begun and is incomplete.
    pub(super) fn is_within_fields(&self) -> bool {
        self.within
    }

    /// Tells whether that block has more than one frame: what has come of it is decoded and kept.
    pub(super) fn is_split(&self) -> bool {
        self.is_split
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.extend(std::iter::repeat_n(END_HEADERS, length.into()));
        bytes
    }

    #[test]
    fn bytes_pass_up_to_the_end_of_each_block_however_they_are_cut() {
        const SETTINGS: u8 = 4;
        const DATA: u8 = 0;
        let parts = [
            [
                vec![b'P'; PREFACE],
                frame(SETTINGS, 0, 12),
                frame(HEADERS, END_HEADERS, 30),
            ]
            .concat(),
            [
                frame(DATA, END_HEADERS, 50),
                frame(HEADERS, 1, 3),
                frame(CONTINUATION, 0, 0),
                frame(CONTINUATION, END_HEADERS, 7),
            ]
            .concat(),
            frame(HEADERS, END_HEADERS | 1, 0),
        ];
        let all = parts.concat();
        for step in [1, 2, 8, 9, 10, 33, all.len()] {
            let (mut frames, mut at, mut ends) = (Frames::new(), 0, Vec::new());
            while at < all.len() {
                let (passed, ended) = frames.pass(&all[at..all.len().min(at + step)]);
                assert!(passed > 0);
                at += passed;
                if ended {
                    ends.push(at);
                    assert!(!frames.is_within_fields() && !frames.is_split());
                }
            }
            let first = parts[0].len();
            assert_eq!(ends, [first, first + parts[1].len(), all.len()], "{step}");
        }
    }

    #[test]
    fn a_block_that_is_not_complete_is_known() {
        let mut frames = Frames::new();
        let begun = [vec![0; PREFACE], frame(HEADERS, END_HEADERS, 9)].concat();
        frames.pass(&begun[..begun.len() - 1]);
        assert!(frames.is_within_fields() && !frames.is_split());
        frames.pass(&begun[begun.len() - 1..]);
        assert!(!frames.is_within_fields());
        frames.pass(&frame(HEADERS, 0, 2));
        assert!(frames.is_within_fields() && frames.is_split());
        assert_eq!(frames.take_resets(), 0);
        frames.pass(&[frame(RST_STREAM, 0, 4), frame(RST_STREAM, 0, 4)].concat());
        assert_eq!((frames.take_resets(), frames.take_resets()), (2, 0));
    }
}
