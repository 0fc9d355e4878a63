//! Decides when a credential is renewed, when it is no longer used and when a failed attempt is
//! repeated. It is arithmetic on durations only, so that each rule is a table in a test.

use std::time::Duration;

use tokio::time::Instant;

/// Least time between two attempts for one credential, whatever asks for them.
pub(super) const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Returns how long after its issue a credential is renewed.
///
/// The point is drawn at random each time, so that replicas started together drift apart. The
/// margin before the expiry has room for two attempts that run into their timeout; a lifetime too
/// short for that is halved.
pub(super) fn renew_after(lifetime: Duration, request_timeout: Duration) -> Duration {
    let margin = request_timeout.saturating_mul(2).max(MIN_MARGIN);
    let latest = if margin > lifetime / 2 {
        lifetime / 2
    } else {
        lifetime.saturating_sub(margin)
    };
    lifetime
        .mul_f64(EARLIEST + (LATEST - EARLIEST) * fastrand::f64())
        .min(latest)
}

/// Returns how long after its issue a credential is used. That is a little less than the vendor's
/// stated lifetime, because requests take time and clocks run differently.
pub(super) fn usable_for(lifetime: Duration) -> Duration {
    lifetime.saturating_sub((lifetime / 20).min(Duration::from_secs(10)))
}

/// Returns the pause after the `failures`-th temporary failure in a row (from 1): a random time up
/// to a bound that doubles ("full jitter"), so that replicas do not return all at once after an
/// outage.
pub(super) fn back_off(failures: u32) -> Duration {
    back_off_bound(failures).mul_f64(fastrand::f64())
}

/// Returns the pause after the `failures`-th failure in a row of a renewal that no request waits
/// for, while the current token is good for another `left` (`None`: it never expires): a third to
/// two thirds of that, a quarter of an hour at most. `None`: too little is left for that, or the
/// failure may be one that passes within a second.
///
/// Without it, a whole fleet would catch up within a minute on the renewals that an outage has
/// prevented, and the server would come back to many times its usual load. There is no hurry.
pub(super) fn relaxed_back_off(failures: u32, left: Option<Duration>) -> Option<Duration> {
    let left = left.unwrap_or(MAX_RELAXED);
    (failures > QUICK_RETRIES && left >= MIN_RELAXED)
        .then(|| left.min(MAX_RELAXED).mul_f64((1.0 + fastrand::f64()) / 3.0))
}

/// Returns the pause after a refusal. Only people can resolve one.
pub(super) fn after_refusal() -> Duration {
    Duration::from_mins(5).mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Limits the renewals that vendors' 401s trigger. A vendor that answers 401 for missing rights
/// would otherwise cost a token request per request.
#[derive(Debug)]
pub(super) struct ForcedRenewals {
    /// Doubles while forced renewals follow each other.
    interval: Duration,
    /// The interval with jitter, as drawn for the next renewal.
    pause: Duration,
    last: Option<Instant>,
    /// The three values above as they were before the current renewal.
    before: Option<(Duration, Duration, Option<Instant>)>,
}

impl Default for ForcedRenewals {
    fn default() -> Self {
        Self {
            interval: MIN_FORCED,
            pause: MIN_FORCED,
            last: None,
            before: None,
        }
    }
}

impl ForcedRenewals {
    /// Returns the earliest start of the next forced renewal.
    pub(super) fn earliest(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| (last + self.pause).max(now))
    }

    /// Counts a forced renewal that starts now. If it starts as soon as it may, the one before did
    /// not help: the interval doubles.
    pub(super) fn start(&mut self, now: Instant) {
        self.before = Some((self.interval, self.pause, self.last));
        let consecutive = self
            .last
            .is_some_and(|last| now.duration_since(last) < self.pause * 2);
        self.interval = if consecutive {
            (self.interval * 2).min(MAX_FORCED)
        } else {
            MIN_FORCED
        };
        self.pause = jittered(self.interval);
        self.last = Some(now);
    }

    /// Records the start of a renewal that no 401 has triggered.
    pub(super) fn start_unforced(&mut self) {
        self.before = None;
    }

    /// Takes back the count of the current forced renewal, because it found a newer token in the
    /// store.
    pub(super) fn undo_start(&mut self) {
        if let Some((interval, pause, last)) = self.before.take() {
            (self.interval, self.pause, self.last) = (interval, pause, last);
        }
    }
}

/// Adds up to 15 % to `interval`, within [`MIN_FORCED`] and [`MAX_FORCED`]: replicas whose tokens
/// revoke each other must not take turns in step for ever.
fn jittered(interval: Duration) -> Duration {
    let longest = interval.mul_f64(1.15).min(MAX_FORCED);
    let shortest = interval.min(longest.mul_f64(0.87)).max(MIN_FORCED);
    shortest + longest.saturating_sub(shortest).mul_f64(fastrand::f64())
}

fn back_off_bound(failures: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_BACK_OFF.saturating_mul(doubled).min(MAX_BACK_OFF)
}

/// Bounds of the renewal point, as shares of the lifetime.
const EARLIEST: f64 = 0.65;
const LATEST: f64 = 0.75;
/// Least time between the start of a renewal and the expiry.
const MIN_MARGIN: Duration = Duration::from_secs(30);
const FIRST_BACK_OFF: Duration = Duration::from_millis(500);
const MAX_BACK_OFF: Duration = Duration::from_mins(1);
/// Failures that are retried at once even when there is no hurry.
const QUICK_RETRIES: u32 = 2;
/// A renewal with less time left than this is urgent.
const MIN_RELAXED: Duration = Duration::from_mins(3);
/// Longer remaining lifetimes count as this one, so that an operator does not wait long to see
/// whether renewal works again.
const MAX_RELAXED: Duration = Duration::from_mins(20);
/// Bounds of the pause between two forced renewals.
const MIN_FORCED: Duration = Duration::from_secs(10);
const MAX_FORCED: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn long_lifetimes_are_renewed_at_65_to_75_percent_and_not_always_at_the_same_point() {
        let points: Vec<_> = (0..200)
            .map(|_| renew_after(seconds(10_000), TIMEOUT))
            .collect();
        assert!(
            points
                .iter()
                .all(|at| (seconds(6_500)..=seconds(7_500)).contains(at))
        );
        assert!(points.iter().any(|at| *at < seconds(6_800)));
        assert!(points.iter().any(|at| *at > seconds(7_200)));
    }

    #[test]
    fn short_lifetimes_keep_a_margin_or_are_halved() {
        for (lifetime, timeout, latest) in [(100, 10, 70), (60, 10, 30), (50, 10, 25), (3, 10, 1)] {
            let at = renew_after(seconds(lifetime), seconds(timeout));
            assert!(at < seconds(latest + 1), "{lifetime}: {at:?}");
            assert!(at.as_secs_f64() >= seconds(lifetime).as_secs_f64() * 0.5 - 0.001);
        }
        // Two attempts of 60 s fit before the end.
        assert!(renew_after(seconds(400), seconds(60)) <= seconds(280));
    }

    #[test]
    fn use_stops_ten_seconds_or_a_twentieth_before_the_expiry() {
        assert_eq!(usable_for(seconds(3600)), seconds(3590));
        assert_eq!(usable_for(seconds(100)), seconds(95));
        assert_eq!(usable_for(seconds(1)), Duration::from_millis(950));
    }

    #[test]
    fn back_off_doubles_and_is_bounded() {
        let bounds: Vec<_> = (1..=9)
            .map(|n| back_off_bound(n).as_secs_f64().to_string())
            .collect();
        assert_eq!(bounds, ["0.5", "1", "2", "4", "8", "16", "32", "60", "60"]);
        assert_eq!(back_off_bound(u32::MAX), MAX_BACK_OFF);
    }

    #[test]
    fn renewals_that_can_wait_pause_a_third_to_two_thirds_of_the_time_left() {
        for (failures, left, bounds) in [
            (1, 3600, None),
            (2, 3600, None),
            (3, 3600, Some((400, 800))),
            (9, 86_400, Some((400, 800))),
            (3, 600, Some((200, 400))),
            (3, 180, Some((60, 120))),
            (3, 179, None),
            (30, 0, None),
        ] {
            for _ in 0..100 {
                let pause = relaxed_back_off(failures, Some(seconds(left)));
                let within = match (pause, bounds) {
                    (None, None) => true,
                    (Some(pause), Some((least, most))) => {
                        (seconds(least)..=seconds(most)).contains(&pause)
                    }
                    (None, Some(_)) | (Some(_), None) => false,
                };
                assert!(within, "{failures} {left}: {pause:?}");
            }
        }
    }

    #[test]
    fn forced_renewals_in_a_row_double_their_pause_up_to_ten_minutes() {
        let mut now = Instant::now();
        let mut forced = ForcedRenewals::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            forced.start(now);
            pauses.push(forced.earliest(now).duration_since(now));
            now = forced.earliest(now);
        }
        let bounds = [
            (10, 12),
            (20, 23),
            (40, 46),
            (80, 92),
            (160, 184),
            (320, 368),
            (520, 600),
            (520, 600),
            (520, 600),
        ];
        for (pause, (least, most)) in pauses.iter().zip(bounds) {
            let bounds = seconds(least)..=seconds(most);
            assert!(bounds.contains(pause), "{pauses:?}");
        }

        let later = now + seconds(3600);
        forced.start(later);
        let pause = forced.earliest(later).duration_since(later);
        assert!((seconds(10)..=seconds(12)).contains(&pause), "{pause:?}");
    }

    #[test]
    fn a_token_from_the_store_is_no_forced_renewal() {
        let now = Instant::now();
        let mut forced = ForcedRenewals::default();
        forced.start(now);
        forced.undo_start();
        assert_eq!(forced.earliest(now), now);
        forced.start(now);
        let earliest = forced.earliest(now);
        forced.start_unforced();
        forced.undo_start();
        assert_eq!(forced.earliest(now), earliest, "of another renewal");
    }

    #[test]
    fn replicas_that_are_forced_at_the_same_moment_are_not_forced_again_at_the_same_moment() {
        let now = Instant::now();
        let drawn: Vec<_> = (0..100)
            .map(|_| {
                let mut forced = ForcedRenewals::default();
                forced.start(now);
                forced.earliest(now).duration_since(now)
            })
            .collect();
        assert!(
            drawn
                .iter()
                .any(|pause| *pause < Duration::from_millis(10_500))
        );
        assert!(drawn.iter().any(|pause| *pause > seconds(11)));
    }

    proptest! {
        #[test]
        fn renewal_is_always_due_before_use_ends(millis in 1_u64..31_536_000_000, timeout in 1_u64..600) {
            let lifetime = Duration::from_millis(millis);
            prop_assert!(renew_after(lifetime, seconds(timeout)) < usable_for(lifetime));
        }
    }
}
