//! How much work looking into one compressed response may make.
//!
//! Brotli can say a gigabyte in 800 bytes, gzip and deflate a thousand bytes in one. What is decoded
//! is searched and forgotten, so it costs no memory; it costs time, and a chunk is decoded in one
//! go on a thread that other requests share. Both are bounded by what comes out.

use std::time::Duration;

/// What may come out of one chunk, bytes: 65 ms of Brotli and 9 ms of gzip in an unoptimised build,
/// for which the thread's other requests wait. 64 KiB, the largest chunk there is, may decompress to
/// 500 times its size.
const EACH: u64 = 32 << 20;
/// What may come out of any response, bytes, however short it is: 10 MiB of like rows, which may
/// well be compressed to a thousandth, several times over.
const FREE: u64 = 64 << 20;
/// What each compressed byte adds to that, bytes. Texts of programs are compressed to a fifth up to a
/// fiftieth, logs of like lines to a hundredth.
const RATIO: u64 = 200;
/// Chunks out of which more has come are followed by a pause, bytes.
const MUCH: u64 = 1 << 20;
/// How long that is: the shortest that a timer knows.
const PAUSE: Duration = Duration::from_millis(1);

/// Of one response.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// Compressed bytes so far.
    taken: u64,
    /// What came out of them.
    made: u64,
    /// What had come out before this chunk.
    before: u64,
}

impl Budget {
    /// Begins a chunk of so many compressed bytes.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        self.before = self.made;
    }

    /// Notes that so many bytes have come out. `false`: that is too much.
    #[must_use]
    pub(super) fn make(&mut self, bytes: usize) -> bool {
        self.made += bytes as u64;
        self.made - self.before <= EACH && self.made <= FREE + RATIO * self.taken
    }

    /// How long other requests should have the thread before the next chunk.
    pub(super) fn pause(&self) -> Option<Duration> {
        (self.made - self.before > MUCH).then_some(PAUSE)
    }

    /// Bytes that have come out.
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
            budget.take(0);
            assert!(budget.make(16 << 20));
        }
        assert!(!budget.make(1));

        let mut long = Budget::default();
        for _ in 0..1000 {
            long.take(64 << 10);
            assert!(long.make(200 * (64 << 10)));
        }
    }

    #[test]
    fn a_chunk_may_decompress_to_so_much_and_what_is_much_is_followed_by_a_pause() {
        let mut budget = Budget::default();
        budget.take(1 << 20);
        assert!(budget.make(1 << 20));
        assert_eq!(budget.pause(), None);
        assert!(budget.make(31 << 20));
        assert_eq!(budget.pause(), Some(PAUSE));
        assert!(!budget.make(1));
        budget.take(1 << 20);
        assert_eq!(budget.pause(), None);
        assert!(budget.make(32 << 20));
    }
}
