//! The bound on the work of searching one compressed response.
//!
//! Brotli can encode a gigabyte in 800 bytes; gzip and deflate a thousand bytes in one. Decoded
//! text is searched and dropped, so it costs no memory. It costs time, and a chunk is decoded in
//! one go on a thread that other requests share. Both are bounded by the decoded size.

use std::time::Duration;

/// Most decoded bytes of one chunk: 65 ms of Brotli and 9 ms of gzip in an unoptimised build, for
/// which the thread's other requests wait. 64 KiB, the largest chunk, may decompress to 500 times
/// its size.
const EACH: u64 = 32 << 20;
/// Decoded bytes that any response may have, however short it is: 10 MiB of similar rows, which may
/// be compressed to a thousandth, several times over.
const FREE: u64 = 64 << 20;
/// Decoded bytes that each compressed byte adds to that. Program text is compressed to a fifth up
/// to a fiftieth, logs of similar lines to a hundredth.
const RATIO: u64 = 200;
/// Decoded bytes of a chunk after which there is a pause.
const MUCH: u64 = 1 << 20;
/// The length of that pause: the shortest of a timer.
const PAUSE: Duration = Duration::from_millis(1);

/// The budget of one response.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Compressed bytes so far.
    taken: u64,
    /// Decoded bytes so far.
    made: u64,
    /// Decoded bytes before this chunk.
    before: u64,
}

impl Budget {
    /// Begins a chunk of this many compressed bytes.
    pub(super) fn add(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        self.before = self.made;
    }

    /// Counts decoded bytes. `false`: the budget is exceeded.
    #[must_use]
    pub(super) fn make(&mut self, bytes: usize) -> bool {
        self.made += bytes as u64;
        self.made - self.before <= EACH && self.made <= FREE + RATIO * self.taken
    }

    /// Returns how long other requests should have the thread before the next chunk.
    pub(super) fn pause(&self) -> Option<Duration> {
        (self.made - self.before > MUCH).then_some(PAUSE)
    }

    /// Returns the decoded bytes.
    #[cfg(test)]
    pub(super) fn made(&self) -> u64 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_may_decompress_to_a_free_share_and_to_a_multiple_of_what_came() {
        let mut budget = Budget::default();
        for _ in 0..4 {
            budget.add(0);
            assert!(budget.make(16 << 20));
        }
        assert!(!budget.make(1));

        let mut long = Budget::default();
        for _ in 0..1000 {
            long.add(64 << 10);
            assert!(long.make(200 * (64 << 10)));
        }
    }

    #[test]
    fn a_chunk_may_decompress_to_so_much_and_what_is_much_is_followed_by_a_pause() {
        let mut budget = Budget::default();
        budget.add(1 << 20);
        assert!(budget.make(1 << 20));
        assert_eq!(budget.pause(), None);
        assert!(budget.make(31 << 20));
        assert_eq!(budget.pause(), Some(PAUSE));
        assert!(!budget.make(1));
        budget.add(1 << 20);
        assert_eq!(budget.pause(), None);
        assert!(budget.make(32 << 20));
    }
}
