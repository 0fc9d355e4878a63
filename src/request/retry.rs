//! The retry budget. A vendor that drops connections because it is overloaded must not get half as
//! many requests again.

use std::sync::atomic::{AtomicU32, Ordering};

/// One vendor's budget: a fifth of a retry for each request, saved up to a bound. Lock-free.
#[derive(Debug)]
pub struct Budget {
    /// Saved retries, in fifths.
    saved: AtomicU32,
}

/// Requests that earn one retry: 20 %.
const PER_RETRY: u32 = 5;
/// The initial budget, so that a vendor with few requests has retries as well.
const FLOOR: u32 = 10 * PER_RETRY;
/// Largest budget: enough for every pooled connection to die at once. Whatever busy hours earn
/// beyond it is lost.
const MOST: u32 = 100 * PER_RETRY;

impl Budget {
    /// Returns the initial budget.
    #[must_use]
    pub fn new() -> Self {
        Self {
            saved: AtomicU32::new(FLOOR),
        }
    }

    /// Counts a request.
    pub fn earn(&self) {
        // A full budget, the usual case, costs a load and no write that other threads would wait
        // for.
        if self.saved.load(Ordering::Relaxed) < MOST {
            self.saved.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Spends a retry, if there is one.
    #[must_use]
    pub fn spend(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(PER_RETRY);
        self.saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spendable(budget: &Budget) -> usize {
        std::iter::from_fn(|| budget.spend().then_some(())).count()
    }

    #[test]
    fn a_fifth_of_all_requests_may_be_sent_again_beyond_a_floor() {
        let budget = Budget::new();
        assert_eq!(spendable(&budget), 10);
        for _ in 0..4 {
            budget.earn();
        }
        assert!(!budget.spend());
        budget.earn();
        assert_eq!(spendable(&budget), 1);
        for _ in 0..100 {
            budget.earn();
        }
        assert_eq!(spendable(&budget), 20);
        for _ in 0..100_000 {
            budget.earn();
        }
        assert_eq!(spendable(&budget), 100);
    }
}
