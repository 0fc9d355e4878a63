//! The circuit breaker: spares a vendor that fails, and its callers the wait. After some failures in a
//! row requests are refused for a while, then one at a time is let through as a probe.
//!
//! ```text
//! closed ── `failures` in a row ──▶ open ── period over ───────▶ half open
//!    ▲                               ▲                               │ one request at a time
//!    │                               └── failed: twice as long ──────┤
//!    └───────────────────────────────────────────── responded ───────┘
//! ```
//!
//! A failure is a request that ended in 502, 503 or 504, whether the vendor sent it or we had to: no
//! connection, a broken one, a timeout. Every other response proves the vendor alive, 4xx and 500
//! included. A request whose caller left, stalled or was refused says nothing either way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::error::{Error, Fault};

/// One vendor's breaker. While it is closed, a request costs one load.
#[derive(Debug)]
pub struct Breaker {
    vendor: Arc<str>,
    settings: config::Breaker,
    born: Instant,
    /// Failures in a row.
    failures: AtomicU32,
    /// The number of times it has opened again since it was last closed.
    periods: AtomicU32,
    /// A packed [`OpenState`]; 0: closed.
    state: AtomicU64,
}

/// The state of a breaker that is not closed.
#[derive(Clone, Copy, Debug)]
struct OpenState {
    /// End of the period, in milliseconds since the breaker was created.
    until: u64,
    /// The failure that opened it.
    fault: Fault,
    /// A probe is under way; `until` is how long the next one waits for it.
    probing: bool,
}

/// A request's permit. When it is dropped unused, it says nothing about the vendor.
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    /// The state as this request left it, when it is the probe; 0: it is not.
    probe: u64,
}

/// The breaker as operators see it.
#[derive(Debug)]
pub struct BreakerStatus {
    /// `off`, `closed`, `open` or `half_open`.
    pub word: &'static str,
    /// The reason why it is not closed.
    pub reason: Option<String>,
    /// Time until a probe is let through.
    pub left: Option<Duration>,
}

/// Longest period. It doubles after each one without a response; `open_for` may be longer.
const LONGEST: Duration = Duration::from_mins(5);

impl Breaker {
    /// Returns a closed breaker.
    #[must_use]
    pub fn new(vendor: &str, settings: config::Breaker) -> Self {
        Self {
            vendor: vendor.into(),
            settings,
            born: Instant::now(),
            failures: AtomicU32::new(0),
            periods: AtomicU32::new(0),
            state: AtomicU64::new(0),
        }
    }

    /// Permits a request.
    ///
    /// # Errors
    /// [`Error::CircuitOpen`] with the time until another request may succeed.
    pub fn admit(self: &Arc<Self>) -> Result<Permit, Error> {
        let seen = self.state.load(Ordering::Acquire);
        let mut probe = 0;
        if let Some(state) = OpenState::unpack(seen) {
            let now = self.now();
            let refused = |retry_after| Error::CircuitOpen {
                retry_after,
                fault: state.fault,
            };
            if now < state.until {
                // A caller that waits for a probe may ask again as soon as the probe has its
                // response.
                let left = Duration::from_millis(state.until - now);
                return Err(refused(if state.probing { Duration::ZERO } else { left }));
            }
            probe = self.opened(state.fault, true);
            let taken =
                self.state
                    .compare_exchange(seen, probe, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_err() {
                return Err(refused(Duration::ZERO));
            }
            tracing::info!(vendor = %self.vendor, "circuit breaker half open: one request probes the vendor");
        }
        Ok(Permit {
            breaker: self.clone(),
            probe,
        })
    }

    /// Tells whether requests are refused.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) != 0
    }

    /// Returns the status for operators.
    #[must_use]
    pub fn status(&self) -> BreakerStatus {
        if self.settings.failures == 0 {
            return BreakerStatus::plain("off");
        }
        let Some(state) = OpenState::unpack(self.state.load(Ordering::Acquire)) else {
            return BreakerStatus::plain("closed");
        };
        let left = state.until.saturating_sub(self.now());
        let waiting = left > 0 && !state.probing;
        BreakerStatus {
            word: if waiting { "open" } else { "half_open" },
            reason: Some(self.reason(state.fault)),
            left: waiting.then(|| Duration::from_millis(left)),
        }
    }

    fn reason(&self, last: Fault) -> String {
        let failures = self.settings.failures;
        format!("{failures} failures in a row; the last time, {last}")
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn period(&self) -> Duration {
        let open_for = self.settings.open_for;
        let doubled = 2_u32.saturating_pow(self.periods.load(Ordering::Relaxed));
        open_for.saturating_mul(doubled).min(LONGEST.max(open_for))
    }

    /// Returns the state for a period that begins now.
    fn opened(&self, fault: Fault, probing: bool) -> u64 {
        let period = u64::try_from(self.period().as_millis()).unwrap_or(u64::MAX);
        let state = OpenState {
            until: self.now().saturating_add(period.max(1)),
            fault,
            probing,
        };
        state.pack()
    }
}

impl Permit {
    /// Notes a response that is no failure.
    pub fn succeeded(mut self) {
        let breaker = &self.breaker;
        if std::mem::take(&mut self.probe) == 0 {
            // While it is open, the probe decides: earlier requests say nothing about the present.
            if breaker.failures.load(Ordering::Relaxed) != 0 && !breaker.is_open() {
                breaker.failures.store(0, Ordering::Relaxed);
            }
            return;
        }
        breaker.failures.store(0, Ordering::Relaxed);
        breaker.periods.store(0, Ordering::Relaxed);
        if breaker.state.swap(0, Ordering::AcqRel) != 0 {
            tracing::info!(vendor = %breaker.vendor, "circuit breaker closed: the vendor responds");
        }
    }

    /// Notes a failure that is the vendor's.
    pub fn failed(mut self, fault: Fault) {
        let breaker = &self.breaker;
        if breaker.settings.failures == 0 {
            return;
        }
        let probe = std::mem::take(&mut self.probe);
        if probe == 0 {
            if breaker.is_open() {
                return;
            }
            // Cannot wrap: the breaker opens long before, and nothing counts while it is open.
            let failures = breaker.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures < breaker.settings.failures {
                return;
            }
        } else {
            breaker.periods.fetch_add(1, Ordering::Relaxed);
        }
        let open_for = breaker.period();
        let state = breaker.opened(fault, false);
        let opened =
            breaker
                .state
                .compare_exchange(probe, state, Ordering::AcqRel, Ordering::Relaxed);
        if opened.is_ok() {
            tracing::warn!(
                vendor = %breaker.vendor,
                reason = breaker.reason(fault),
                open_for = %humantime::format_duration(open_for),
                again = probe != 0,
                "circuit breaker open: requests are refused"
            );
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // The probe learned nothing: the next request may probe. Where another has taken over
        // already, or the breaker closed, the state has changed and stays.
        if let Some(state) = OpenState::unpack(self.probe) {
            let over = OpenState {
                until: self.breaker.now().max(1),
                probing: false,
                ..state
            };
            let _ = self.breaker.state.compare_exchange(
                self.probe,
                over.pack(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }
}

impl BreakerStatus {
    fn plain(word: &'static str) -> Self {
        Self {
            word,
            reason: None,
            left: None,
        }
    }
}

impl OpenState {
    /// One bit for the probe, ten for the fault, the rest for the time.
    fn pack(self) -> u64 {
        let fault = match self.fault {
            Fault::Unreachable => 0,
            Fault::TimedOut => 1,
            Fault::Status(status) => status & 0x3ff,
        };
        // Never 0, which is a closed breaker.
        let until = self.until.clamp(1, u64::MAX >> 11);
        until << 11 | u64::from(fault) << 1 | u64::from(self.probing)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let fault = match u16::try_from(packed >> 1 & 0x3ff).unwrap_or_default() {
            0 => Fault::Unreachable,
            1 => Fault::TimedOut,
            status => Fault::Status(status),
        };
        (packed != 0).then_some(Self {
            until: packed >> 11,
            fault,
            probing: packed & 1 == 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn breaker(failures: u32, seconds: u64) -> Arc<Breaker> {
        let open_for = Duration::from_secs(seconds);
        Arc::new(Breaker::new("v", config::Breaker { failures, open_for }))
    }

    fn fail(breaker: &Arc<Breaker>, times: usize) {
        for _ in 0..times {
            breaker.admit().unwrap().failed(Fault::Status(503));
        }
    }

    fn refused_for(breaker: &Arc<Breaker>) -> Option<u64> {
        match breaker.admit() {
            Err(stop @ Error::CircuitOpen { .. }) => stop.retry_after(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_an_answer_between_them_starts_the_count_again() {
        let breaker = breaker(3, 10);
        fail(&breaker, 2);
        breaker.admit().unwrap().succeeded();
        fail(&breaker, 2);
        // Says nothing about the vendor.
        drop(breaker.admit().unwrap());
        assert_eq!(breaker.status().word, "closed");
        fail(&breaker, 1);
        assert_eq!(refused_for(&breaker), Some(10));
        advance(Duration::from_millis(2500)).await;
        assert_eq!(refused_for(&breaker), Some(8));
        let status = breaker.status();
        assert_eq!(status.word, "open");
        assert_eq!(status.left, Some(Duration::from_millis(7500)));
        assert_eq!(
            status.reason.unwrap(),
            "3 failures in a row; the last time, it answered 503"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_at_a_time_sees_whether_it_may_close() {
        let breaker = breaker(1, 10);
        fail(&breaker, 1);
        advance(Duration::from_secs(10)).await;
        let probe = breaker.admit().unwrap();
        assert_eq!(refused_for(&breaker), Some(1));
        assert_eq!(breaker.status().word, "half_open");
        // Its caller left: the next request probes.
        drop(probe);
        let probe = breaker.admit().unwrap();
        assert_eq!(refused_for(&breaker), Some(1));
        probe.succeeded();
        assert_eq!(refused_for(&breaker), None);
        assert_eq!(breaker.status().word, "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn each_period_without_an_answer_doubles_the_next_up_to_a_bound() {
        let breaker = breaker(1, 60);
        fail(&breaker, 1);
        for seconds in [60, 120, 240, 300, 300] {
            assert_eq!(refused_for(&breaker), Some(seconds));
            advance(Duration::from_secs(seconds)).await;
            breaker.admit().unwrap().failed(Fault::TimedOut);
        }
        advance(Duration::from_mins(5)).await;
        breaker.admit().unwrap().succeeded();
        fail(&breaker, 1);
        assert_eq!(refused_for(&breaker), Some(60));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_it_opened_changes_nothing() {
        let breaker = breaker(2, 10);
        let (late, later) = (breaker.admit().unwrap(), breaker.admit().unwrap());
        fail(&breaker, 2);
        late.succeeded();
        assert_eq!(refused_for(&breaker), Some(10));
        advance(Duration::from_secs(9)).await;
        later.failed(Fault::Unreachable);
        assert_eq!(refused_for(&breaker), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_does_not_come_back_holds_up_the_others_for_one_period() {
        let breaker = breaker(1, 10);
        fail(&breaker, 1);
        advance(Duration::from_secs(10)).await;
        let stuck = breaker.admit().unwrap();
        advance(Duration::from_secs(10)).await;
        let second = breaker.admit().unwrap();
        drop(stuck);
        assert_eq!(refused_for(&breaker), Some(1), "two probes at a time");
        second.succeeded();
        assert_eq!(refused_for(&breaker), None);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_number_of_failures_it_is_off() {
        let breaker = breaker(0, 10);
        fail(&breaker, 100);
        assert_eq!(breaker.status().word, "off");
        assert!(!breaker.is_open());
    }

    #[test]
    fn an_open_state_survives_its_packing() {
        for fault in [Fault::Unreachable, Fault::TimedOut, Fault::Status(504)] {
            for (until, probing) in [(1, false), (123_456_789, true), (u64::MAX >> 11, true)] {
                let state = OpenState {
                    until,
                    fault,
                    probing,
                };
                let back = OpenState::unpack(state.pack()).unwrap();
                assert_eq!(
                    (back.until, back.fault, back.probing),
                    (until, fault, probing)
                );
            }
        }
    }
}
