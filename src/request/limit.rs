//! Requests over time, and a body's bytes over time: buckets that refill. Taking a request from one,
//! of a caller or a vendor, is one compare-and-swap.

use std::fmt;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::config::Rate;
use crate::error::Error;

/// A limit and what is left of it.
pub struct Limiter {
    rate: Rate,
    bucket: DefaultDirectRateLimiter,
}

impl Limiter {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Self {
            rate,
            bucket: RateLimiter::direct(quota),
        }
    }

    /// The limit.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one request out.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when there is none left, with the time until there is one.
    pub fn take(&self) -> Result<(), Error> {
        self.bucket.check().map_err(|until| Error::RateLimited {
            retry_after: whole_seconds(until.wait_time_from(DefaultClock::default().now())),
        })
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limiter").field(&self.rate).finish()
    }
}

/// The slowest that a body may come, bytes a second: what Apache's `mod_reqtimeout` permits.
const SLOWEST: u32 = 500;

/// How long a caller may go on letting us wait for its body. Waiting uses it up, bytes give some of
/// it back: a pause is nothing, dribbling comes to an end. Only time in which we wait is counted, so
/// that a slow vendor is not its caller's fault.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    grace: Duration,
    left: Duration,
}

impl Pace {
    /// A body of which nothing has come; `grace` is the longest pause.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, left: grace }
    }

    /// How much longer the next bytes may take.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.left
    }

    /// After a wait of `waited`, `bytes` have come. `false`: they came too late.
    pub fn heard(&mut self, waited: Duration, bytes: usize) -> bool {
        let in_time = waited <= self.left;
        // More bytes than 32 bits hold fill any bucket.
        let earned = Duration::from_secs(u32::try_from(bytes).unwrap_or(u32::MAX).into()) / SLOWEST;
        self.left = (self.left.saturating_sub(waited) + earned).min(self.grace);
        in_time
    }
}

/// `Retry-After` knows no shorter time than a second (RFC 9110 §10.2.3).
fn whole_seconds(wait: Duration) -> Duration {
    Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(ONE_SECOND)
}

const ONE_SECOND: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_is_told_when_to_come_back() {
        let number = |n| std::num::NonZeroU32::new(n).unwrap();
        let limiter = Limiter::new(Rate {
            per_second: number(1),
            burst: number(3),
        });
        for _ in 0..3 {
            assert_eq!(limiter.take(), Ok(()));
        }
        let retry_after = ONE_SECOND;
        assert_eq!(limiter.take(), Err(Error::RateLimited { retry_after }));
    }

    #[test]
    fn a_body_may_pause_but_not_dribble() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(60 * second);
        assert!(pace.heard(59 * second, 1));
        assert!(pace.heard(Duration::ZERO, 1 << 20));
        assert_eq!(pace.left(), 60 * second);
        let mut seconds = 0;
        while pace.heard(second, 100) {
            seconds += 1;
        }
        assert_eq!(seconds, 75);
        let mut pace = Pace::new(10 * second);
        assert!((0..1000).all(|_| pace.heard(second, 500)));
        assert!(!pace.heard(11 * second, 0));
    }

    #[test]
    fn times_to_wait_are_rounded_up() {
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2500, 3)] {
            let wait = whole_seconds(Duration::from_millis(milliseconds));
            assert_eq!(wait.as_secs(), seconds, "{milliseconds}");
        }
    }
}
