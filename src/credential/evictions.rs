//! Counts tokens that stopped working long before they expired while a new one worked: the sign of
//! a vendor that keeps one token alive for each client, and of two that obtain tokens in turn.
//!
//! Requests write it without a lock; readers of the status read it.

use std::array;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The newest evictions of one credential.
#[derive(Debug)]
pub(super) struct Evictions {
    since: Instant,
    /// Ring of seconds after `since`, counted from 1; 0 marks a free slot.
    evicted_at: [AtomicU64; KEPT],
    next: AtomicUsize,
}

impl Evictions {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            evicted_at: array::from_fn(|_| AtomicU64::new(0)),
            next: AtomicUsize::new(0),
        }
    }

    /// Counts a token that was evicted now.
    pub(super) fn add(&self, now: Instant) {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % KEPT;
        self.evicted_at[next].store(self.seconds(now), Ordering::Relaxed);
    }

    /// Returns advice for an operator; `None`: there is none yet. With `shared`, replicas take the
    /// token from a store and so do not evict each other's.
    pub(super) fn advice(&self, now: Instant, shared: bool) -> Option<String> {
        let now = self.seconds(now);
        let recent = |evicted_at: &&AtomicU64| {
            let evicted_at = evicted_at.load(Ordering::Relaxed);
            evicted_at > 0 && evicted_at + WINDOW.as_secs() > now
        };
        let evicted = self.evicted_at.iter().filter(recent).count();
        let enough = if shared { KEPT } else { SUSPICIOUS };
        if evicted < enough {
            return None;
        }
        let begin = format!(
            "{evicted} tokens or more were rejected within the last hour soon after they were issued, and \
             a new one was accepted: "
        );
        let end = if shared {
            "a program that does not use this store obtains tokens with the same client, and the vendor \
             keeps only one alive; give each a client of its own"
        } else {
            "another replica or program obtains tokens with the same client, and the vendor keeps only \
             one alive; `share: true` in the auth stanza makes replicas share one through the store"
        };
        Some(begin + end)
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() + 1
    }
}

/// Older evictions do not count.
const WINDOW: Duration = Duration::from_hours(1);
/// One eviction may be the vendor's doing: it was restarted, or somebody revoked a token by hand.
const SUSPICIOUS: usize = 2;
/// More than the manual renewals in an hour, which also evict the tokens of other replicas of a
/// store.
const KEPT: usize = 4;

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_evictions_within_an_hour_give_advice_and_are_forgotten_after_it() {
        let evictions = Evictions::new();
        evictions.add(Instant::now());
        assert_eq!(evictions.advice(Instant::now(), false), None);
        advance(WINDOW / 2).await;
        evictions.add(Instant::now());
        let advice = evictions.advice(Instant::now(), false).unwrap();
        assert!(advice.starts_with("2 tokens"), "{advice}");
        assert!(advice.contains("`share: true`"), "{advice}");
        advance(WINDOW / 2).await;
        assert_eq!(evictions.advice(Instant::now(), false), None);
    }

    #[tokio::test(start_paused = true)]
    async fn where_replicas_share_a_token_another_program_is_named_and_later() {
        let evictions = Evictions::new();
        for nth in 1..=KEPT * 2 {
            evictions.add(Instant::now());
            let advice = evictions.advice(Instant::now(), true);
            assert_eq!(advice.is_some(), nth >= KEPT, "{nth}");
            assert!(advice.is_none_or(|advice| !advice.contains("share: true")));
        }
    }
}
