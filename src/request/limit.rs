//! Requests over time: a bucket that refills, of one caller or one vendor. Taking from it is one
//! compare-and-swap.

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
    fn times_to_wait_are_rounded_up() {
        for (milliseconds, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2500, 3)] {
            let wait = whole_seconds(Duration::from_millis(milliseconds));
            assert_eq!(wait.as_secs(), seconds, "{milliseconds}");
        }
    }
}
