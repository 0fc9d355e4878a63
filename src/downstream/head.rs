//! A request's head as it comes: its position, its length, and the characters of its first line.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use memchr::memmem;

use super::raw_head::{MAX_HEAD, MAX_TARGET};
use crate::error::Error;

/// The head that is coming on a connection. pingora's hooks have only `&self`.
pub(super) struct Head {
    /// One of the constants below.
    phase: AtomicU8,
    /// Blanks in the first line.
    blanks: AtomicU8,
    odd_line: AtomicBool,
    /// `true` if its method is CONNECT.
    connect: AtomicBool,
    /// Bytes passed on, and the last three of them.
    length: usize,
    tail: [u8; 3],
}

/// After a response: nothing of the next head has come yet.
const BETWEEN: u8 = 0;
/// Nothing of the first head has come yet, or only empty lines.
const BEFORE: u8 = 1;
/// Within its first line.
const IN_LINE: u8 = 2;
/// After its first line.
const IN_FIELDS: u8 = 3;
/// Complete: bodies have limits of their own.
const COMPLETE: u8 = 4;

/// Longest first line, bytes: a target with a method and a version. A complete one is measured by
/// its target alone.
const MAX_LINE: usize = MAX_TARGET + 64;

impl Head {
    /// Returns the head of a new connection.
    pub(super) fn first() -> Self {
        Self::at(BEFORE)
    }

    /// Returns the head of a connection whose heads are not followed here.
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

    /// Notes that another head comes next.
    pub(super) fn expect_next(&self) {
        self.phase.store(BETWEEN, Ordering::Relaxed);
        self.blanks.store(0, Ordering::Relaxed);
        self.odd_line.store(false, Ordering::Relaxed);
        self.connect.store(false, Ordering::Relaxed);
    }

    /// Resets what needs `&mut self` for the next head.
    pub(super) fn renew(&mut self) {
        (self.length, self.tail) = (0, [0; 3]);
    }

    /// Notes that bytes have come, and tells whether they are the first of another head.
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

    /// Tells whether the head has begun and is incomplete.
    pub(super) fn is_half_way(&self) -> bool {
        matches!(self.phase(), IN_LINE | IN_FIELDS)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.phase() == COMPLETE
    }

    pub(super) fn complete(&self) {
        self.phase.store(COMPLETE, Ordering::Relaxed);
    }

    /// Returns why it is refused before it is complete.
    pub(super) fn too_large(&self) -> Option<Error> {
        match self.phase() {
            COMPLETE => None,
            IN_LINE if self.length > MAX_LINE => Some(Error::TargetTooLong),
            _ if self.length <= MAX_HEAD => None,
            _ => Some(Error::HeadTooLarge),
        }
    }

    /// Returns the bytes passed on so far.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// See [`super::stream::DownstreamStream::has_odd_first_line`].
    pub(super) fn has_odd_line(&self) -> bool {
        self.odd_line.load(Ordering::Relaxed)
    }

    /// Tells whether it requests a tunnel, as far as that came in one piece.
    pub(super) fn is_connect(&self) -> bool {
        self.connect.load(Ordering::Relaxed)
    }

    /// Follows the bytes of the first line.
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

    /// Returns how many of `bytes` may be passed on: at most to its end. The rest may be another
    /// request.
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

/// Returns how many of `bytes` belong to a head that ends among them; `tail` came just before.
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
