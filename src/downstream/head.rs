//! A request's head as it comes: how far it is, how long, and what its first line holds.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use memchr::memmem;

use super::raw_head::{MAX_HEAD, MAX_TARGET};
use crate::error::Error;

/// The head that is coming on a connection. pingora's hooks see no more than `&self`.
pub(super) struct Head {
    /// One of the constants below.
    phase: AtomicU8,
    /// Counted in its first line.
    blanks: AtomicU8,
    odd_line: AtomicBool,
    /// Its method is CONNECT.
    connect: AtomicBool,
    /// Bytes passed on, and the last three of them.
    length: usize,
    tail: [u8; 3],
}

/// Nothing of the next head has come yet, after an answer.
const BETWEEN: u8 = 0;
/// Nothing of the first head has come yet, or nothing but empty lines.
const BEFORE: u8 = 1;
/// Its first line is coming.
const IN_LINE: u8 = 2;
/// The rest of it is coming.
const IN_FIELDS: u8 = 3;
/// It is complete: bodies have limits of their own.
const COMPLETE: u8 = 4;

/// The longest first line, bytes: a target with a method and a version. A whole one is measured by
/// its target alone.
const MAX_LINE: usize = MAX_TARGET + 64;

impl Head {
    /// Of a new connection.
    pub(super) fn first() -> Self {
        Self::at(BEFORE)
    }

    /// Of a connection whose heads others look at.
    pub(super) fn none() -> Self {
        Self::at(COMPLETE)
    }

    fn at(phase: u8) -> Self {
        Self {
            phase: AtomicU8::new(phase),
            blanks: AtomicU8::new(0),
            odd_line: AtomicBool::new(false),
            connect: AtomicBool::new(false),
            length: 0,
            tail: [0; 3],
        }
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    /// What comes next is another one.
    pub(super) fn expect_next(&self) {
        self.phase.store(BETWEEN, Ordering::Relaxed);
        self.blanks.store(0, Ordering::Relaxed);
        self.odd_line.store(false, Ordering::Relaxed);
        self.connect.store(false, Ordering::Relaxed);
    }

    /// The same, of what only `&mut self` may touch.
    pub(super) fn renew(&mut self) {
        (self.length, self.tail) = (0, [0; 3]);
    }

    /// Something has come. Whether it is the first of another head.
    pub(super) fn begins(&self) -> bool {
        let between = self.is_between();
        if between {
            self.phase.store(BEFORE, Ordering::Relaxed);
        }
        between
    }

    pub(super) fn is_between(&self) -> bool {
        self.phase() == BETWEEN
    }

    /// Neither awaited nor complete.
    pub(super) fn is_half_way(&self) -> bool {
        matches!(self.phase(), IN_LINE | IN_FIELDS)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.phase() == COMPLETE
    }

    pub(super) fn complete(&self) {
        self.phase.store(COMPLETE, Ordering::Relaxed);
    }

    /// Why it is refused though it is not complete.
    pub(super) fn too_large(&self) -> Option<Error> {
        match self.phase() {
            COMPLETE => None,
            IN_LINE if self.length > MAX_LINE => Some(Error::TargetTooLong),
            _ if self.length <= MAX_HEAD => None,
            _ => Some(Error::HeadTooLarge),
        }
    }

    /// Bytes passed on so far.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// See [`super::stream::DownstreamStream::has_odd_first_line`].
    pub(super) fn has_odd_line(&self) -> bool {
        self.odd_line.load(Ordering::Relaxed)
    }

    /// Whether it asks for a tunnel, as far as that came in one piece.
    pub(super) fn is_connect(&self) -> bool {
        self.connect.load(Ordering::Relaxed)
    }

    /// Looks at what has come, as far as it is of the first line.
    pub(super) fn look_at(&self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            match (self.phase(), byte) {
                // Empty lines before a head are skipped (RFC 9112 §2.2).
                (BEFORE, b'\r' | b'\n') | (IN_LINE, b'\r' | b'!'..=b'~') => {}
                (BEFORE, b'!'..=b'~') => {
                    self.phase.store(IN_LINE, Ordering::Relaxed);
                    let connect = bytes[at..].starts_with(b"CONNECT ");
                    self.connect.store(connect, Ordering::Relaxed);
                }
                (IN_LINE, b' ') => {
                    if self.blanks.fetch_add(1, Ordering::Relaxed) >= 2 {
                        self.odd_line.store(true, Ordering::Relaxed);
                    }
                }
                (IN_LINE, b'\n') => {
                    self.phase.store(IN_FIELDS, Ordering::Relaxed);
                    return;
                }
                (BEFORE | IN_LINE, _) => {
                    self.phase.store(IN_LINE, Ordering::Relaxed);
                    self.odd_line.store(true, Ordering::Relaxed);
                }
                _ => return,
            }
        }
    }

    /// How many of `bytes` may be passed on: no more than to its end, what is behind that may be
    /// another request.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> usize {
        if self.is_complete() {
            return bytes.len();
        }
        let passed = end(self.tail, bytes).unwrap_or(bytes.len());
        self.length += passed;
        for byte in &bytes[passed.saturating_sub(3)..passed] {
            self.tail = [self.tail[1], self.tail[2], *byte];
        }
        passed
    }
}

/// How many of `bytes` belong to a head whose end is among them, `tail` being what came just before.
fn end(tail: [u8; 3], bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    let mut seam = [0; 6];
    let begun = bytes.len().min(3);
    seam[..3].copy_from_slice(&tail);
    seam[3..3 + begun].copy_from_slice(&bytes[..begun]);
    memmem::find(&seam, END)
        .map(|at| at + 1)
        .or_else(|| memmem::find(bytes, END).map(|at| at + END.len()))
}
