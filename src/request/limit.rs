//! Rate limits, and the pause that a vendor requests with `Retry-After`. Taking a request from a
//! bucket, of a caller or a vendor, is one compare-and-swap; checking a hold is one load.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use tokio::time::Instant;

use crate::config::Rate;
use crate::error::Error;
use crate::http_fields::retry_after;

/// A rate limit and its bucket.
pub struct Limiter {
    rate: Rate,
    bucket: DefaultDirectRateLimiter,
}

impl Limiter {
    /// Returns a limiter with a full bucket.
    ///
    /// # Panics
    /// Never: the configuration admits no rate without a period.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::with_period(rate.every)
            .expect("the configuration admits no rate of no time")
            .allow_burst(rate.burst);
        Self {
            rate,
            bucket: RateLimiter::direct(quota),
        }
    }

    /// Returns the rate.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one request from the bucket.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when it is empty, with the time until it is not.
    pub fn acquire(&self) -> Result<(), Error> {
        self.bucket.check().map_err(|until| Error::RateLimited {
            retry_after: until.wait_time_from(DefaultClock::default().now()),
        })
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.rate).finish()
    }
}

/// The hold that a vendor requests with `Retry-After`, for vendors with
/// `limits.honour_retry_after`.
#[derive(Debug)]
pub struct RetryAfterHold {
    born: Instant,
    /// Milliseconds since `born`, doubled. Odd: requested with a 503, otherwise with a 429. 0: no
    /// hold.
    until: AtomicU64,
}

/// Longest hold, whatever the vendor requests: a mistake of its operator must not cost ours a
/// restart.
const LONGEST_HOLD: Duration = Duration::from_mins(10);

impl RetryAfterHold {
    /// Returns no hold.
    #[must_use]
    pub fn none() -> Self {
        Self {
            born: Instant::now(),
            until: AtomicU64::new(0),
        }
    }

    /// Reads a response's headers. Of several holds, the one that ends last counts.
    pub fn note(&self, status: u16, headers: &HeaderMap) {
        if !matches!(status, 429 | 503) {
            return;
        }
        let Some(wish) = retry_after(headers) else {
            return;
        };
        let until = (self.born.elapsed() + wish.min(LONGEST_HOLD)).as_millis();
        let until = u64::try_from(until).unwrap_or(u64::MAX >> 1);
        let asked = until << 1 | u64::from(status == 503);
        self.until.fetch_max(asked, Ordering::Relaxed);
    }

    /// Lets a request pass.
    ///
    /// # Errors
    /// [`Error::HeldBack`] with the rest of the hold.
    pub fn pass(&self) -> Result<(), Error> {
        self.left().map_or(Ok(()), |(retry_after, busy)| {
            Err(Error::HeldBack { retry_after, busy })
        })
    }

    /// Returns the rest of the hold, and whether it was requested with a 503.
    #[must_use]
    pub fn left(&self) -> Option<(Duration, bool)> {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return None;
        }
        let left = Duration::from_millis(until >> 1).saturating_sub(self.born.elapsed());
        (!left.is_zero()).then_some((left, until & 1 == 1))
    }
}

#[cfg(test)]
mod tests {
    use http::header::{DATE, RETRY_AFTER};

    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_is_told_when_to_come_back() {
        let number = |n| std::num::NonZeroU32::new(n).unwrap();
        for (every, seconds) in [(1000, 1), (5000, 5), (2500, 3)] {
            let limiter = Limiter::new(Rate {
                every: Duration::from_millis(every),
                burst: number(3),
            });
            for _ in 0..3 {
                assert_eq!(limiter.acquire(), Ok(()));
            }
            let refused = limiter.acquire().unwrap_err();
            assert_eq!(refused.verdict().reason, "rate_limited");
            assert_eq!(refused.retry_after(), Some(seconds));
        }
    }

    fn asked(retry_after: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, retry_after.parse().unwrap());
        headers.insert(DATE, "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        headers
    }

    #[tokio::test(start_paused = true)]
    async fn a_vendor_that_asks_for_a_rest_gets_it_with_its_own_status() {
        for (status, reason) in [(429, "rate_limited"), (503, "circuit_open")] {
            let hold = RetryAfterHold::none();
            hold.note(status, &asked("30"));
            tokio::time::advance(Duration::from_millis(10_500)).await;
            // A shorter hold of a response that was under way does not end it.
            hold.note(status, &asked("2"));
            let refused = hold.pass().unwrap_err();
            let verdict = refused.verdict();
            assert_eq!((verdict.status.as_u16(), verdict.reason), (status, reason));
            assert_eq!(refused.retry_after(), Some(20));
            tokio::time::advance(Duration::from_secs(20)).await;
            assert_eq!(hold.pass(), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wishes_have_a_bound_and_a_form() {
        for (status, wish, left) in [
            (429, "Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            (429, "Sun, 06 Nov 1994 08:49:07 GMT", None),
            (503, "86400", Some(600)),
            (503, "18446744073709551615", Some(600)),
            (503, "0", None),
            (503, "-5", None),
            (503, "soon", None),
            (500, "30", None),
            (200, "30", None),
        ] {
            let hold = RetryAfterHold::none();
            hold.note(status, &asked(wish));
            let held = hold.pass().err().and_then(Error::retry_after);
            assert_eq!(held, left, "{status} {wish}");
        }
    }
}
