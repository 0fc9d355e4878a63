//! How a vendor receives our credential: the share of its own 401 responses within ten minutes,
//! whatever the kind of credential.
//!
//! One atomic word per half minute, so that a request costs one update and no lock.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Counts of one vendor's responses over a sliding window of [`WINDOW`].
#[derive(Debug)]
pub struct AuthOutcomes {
    started: Instant,
    /// A ring: the slot of a step is its number modulo [`SLOTS`].
    slots: [AtomicU64; SLOTS],
    /// The credential that the counts are about.
    generation: AtomicU64,
}

/// Responses of a vendor that reached callers within [`WINDOW`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Responses {
    /// The number of all responses.
    pub all: u64,
    /// The number of responses with status 401.
    pub unauthorized: u64,
}

/// The length of the window.
pub const WINDOW: Duration = Duration::from_mins(10);

impl AuthOutcomes {
    /// Returns counts of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            slots: array::from_fn(|_| AtomicU64::new(0)),
            generation: AtomicU64::new(0),
        }
    }

    /// Counts a response that reaches its caller. `generation` grows when a fixed credential is
    /// replaced, which clears the counts of the one before; it is 0 for credentials that are
    /// renewed by the program.
    pub fn count(&self, now: Instant, unauthorized: bool, generation: u64) {
        let known = self.generation.load(Ordering::Relaxed);
        if generation != known {
            if generation < known {
                return;
            }
            // The first request of a generation clears the window. A response counted in between is
            // lost, which is acceptable while secrets change.
            if self.generation.fetch_max(generation, Ordering::Relaxed) < generation {
                for slot in &self.slots {
                    slot.store(0, Ordering::Relaxed);
                }
            }
        }
        let step = self.step(now);
        let slot = &self.slots[usize::try_from(step).unwrap_or_default() % SLOTS];
        let counted = |packed: u64| {
            let mut slot = Slot::unpacked(packed);
            if slot.step != step & STEP_MASK {
                slot = Slot {
                    step: step & STEP_MASK,
                    ..Slot::default()
                };
            }
            if slot.all == COUNT_MASK {
                // The shares stay the same.
                slot.all /= 2;
                slot.unauthorized /= 2;
            }
            slot.all += 1;
            slot.unauthorized += u64::from(unauthorized);
            Some(slot.packed())
        };
        // Never fails: the closure always returns a value.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Returns the responses within [`WINDOW`], give or take half a minute.
    #[must_use]
    pub fn recent(&self, now: Instant) -> Responses {
        let newest = self.step(now);
        let steps = newest.saturating_sub(SLOTS as u64 - 1)..=newest;
        let mut sum = Responses::default();
        for step in steps {
            let slot = &self.slots[usize::try_from(step).unwrap_or_default() % SLOTS];
            let slot = Slot::unpacked(slot.load(Ordering::Relaxed));
            if slot.step == step & STEP_MASK {
                sum.all += slot.all;
                sum.unauthorized += slot.unauthorized;
            }
        }
        sum
    }

    /// Returns the number of half minutes since the start, counted from 1, so that an empty slot's
    /// 0 is no step.
    fn step(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / STEP.as_secs() + 1
    }
}

impl Default for AuthOutcomes {
    fn default() -> Self {
        Self::new()
    }
}

impl Responses {
    /// Tells whether the vendor rejects our credential: more than half of enough responses are 401.
    #[must_use]
    pub fn rejected(self) -> bool {
        self.all >= ENOUGH && self.unauthorized * 2 > self.all
    }
}

/// The content of one atomic word.
#[derive(Clone, Copy, Default)]
struct Slot {
    step: u64,
    all: u64,
    unauthorized: u64,
}

impl Slot {
    fn unpacked(packed: u64) -> Self {
        Self {
            step: packed >> (2 * COUNT_BITS),
            all: packed >> COUNT_BITS & COUNT_MASK,
            unauthorized: packed & COUNT_MASK,
        }
    }

    fn packed(self) -> u64 {
        self.step << (2 * COUNT_BITS) | self.all << COUNT_BITS | self.unauthorized
    }
}

/// The time that one slot covers.
const STEP: Duration = Duration::from_secs(30);
/// [`WINDOW`] in steps, including the current one.
const SLOTS: usize = 20;
/// Fewest responses that say anything.
const ENOUGH: u64 = 5;
/// Bits of a count: a million responses a step. Two counts leave 24 bits for the step's number,
/// which lasts 16 years.
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const STEP_MASK: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn count(outcomes: &AuthOutcomes, all: u64, unauthorized: u64) {
        for nth in 0..all {
            outcomes.count(Instant::now(), nth < unauthorized, 0);
        }
    }

    fn recent(outcomes: &AuthOutcomes) -> Responses {
        outcomes.recent(Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_half_of_at_least_five_responses_are_a_rejection() {
        for (all, unauthorized, rejected) in [
            (0, 0, false),
            (4, 4, false),
            (5, 2, false),
            (5, 3, true),
            (6, 3, false),
            (6, 4, true),
            (1000, 500, false),
            (1000, 501, true),
        ] {
            let outcomes = AuthOutcomes::new();
            count(&outcomes, all, unauthorized);
            let counted = recent(&outcomes);
            assert_eq!(counted, Responses { all, unauthorized });
            assert_eq!(counted.rejected(), rejected, "{unauthorized} of {all}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_ten_minutes_does_not_count() {
        let outcomes = AuthOutcomes::new();
        count(&outcomes, 6, 6);
        advance(STEP * 19).await;
        assert_eq!(recent(&outcomes).all, 6);
        count(&outcomes, 2, 1);
        advance(STEP).await;
        let counted = recent(&outcomes);
        assert_eq!((counted.all, counted.unauthorized), (2, 1));
        advance(WINDOW).await;
        assert_eq!(recent(&outcomes), Responses::default());
        // Slots are reused after hours, and not taken for current ones.
        advance(WINDOW * 100 + STEP * 7).await;
        assert_eq!(recent(&outcomes), Responses::default());
        count(&outcomes, 5, 5);
        assert!(recent(&outcomes).rejected());
    }

    #[tokio::test(start_paused = true)]
    async fn responses_spread_over_the_window_add_up() {
        let outcomes = AuthOutcomes::new();
        for _ in 0..SLOTS {
            count(&outcomes, 3, 2);
            advance(STEP).await;
        }
        // The first step has just left the window.
        let left = SLOTS as u64 - 1;
        let counted = recent(&outcomes);
        assert_eq!((counted.all, counted.unauthorized), (left * 3, left * 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_secret_begins_with_a_clean_record() {
        let outcomes = AuthOutcomes::new();
        for _ in 0..6 {
            outcomes.count(Instant::now(), true, 1);
        }
        assert!(recent(&outcomes).rejected());
        outcomes.count(Instant::now(), false, 2);
        assert_eq!(recent(&outcomes).all, 1);
        // A response to a request sent with the old secret says nothing about the new one.
        outcomes.count(Instant::now(), true, 1);
        assert_eq!(recent(&outcomes).unauthorized, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_keeps_its_shares() {
        let outcomes = AuthOutcomes::new();
        for nth in 0..COUNT_MASK + 10 {
            outcomes.count(Instant::now(), nth % 4 == 0, 0);
        }
        let counted = recent(&outcomes);
        assert!(counted.all > COUNT_MASK / 2 && counted.all <= COUNT_MASK);
        assert!(!counted.rejected());
        assert!(counted.unauthorized * 4 <= counted.all + 10);
    }

    #[test]
    fn counts_of_many_threads_all_arrive() {
        let outcomes = AuthOutcomes::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| count(&outcomes, 5_000, 5_000));
            }
        });
        assert_eq!(recent(&outcomes).unauthorized, 20_000);
    }
}
