//! The rate at which a request body must come.

use std::time::Duration;

/// Slowest body, bytes a second: what Apache's `mod_reqtimeout` permits.
const SLOWEST: u32 = 500;

/// The time that a caller may still let us wait for its body. Waiting uses it up, bytes give some
/// of it back: a pause is permitted, a trickle is not. Only time in which we wait counts, so that a
/// slow vendor is not its caller's fault.
#[derive(Clone, Copy, Debug)]
pub struct BodyRate {
    grace: Duration,
    left: Duration,
}

impl BodyRate {
    /// Returns the rate of a body before its first byte; `grace` is the longest pause.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self { grace, left: grace }
    }

    /// Returns how long the next bytes may take.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Notes that `bytes` came after a wait of `waited`. `false`: they came too late.
    pub fn heard(&mut self, waited: Duration, bytes: usize) -> bool {
        let in_time = waited <= self.left;
        // More bytes than 32 bits hold fill any bucket.
        let earned = Duration::from_secs(u32::try_from(bytes).unwrap_or(u32::MAX).into()) / SLOWEST;
        self.left = (self.left.saturating_sub(waited) + earned).min(self.grace);
        in_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_pause_but_not_dribble() {
        let second = Duration::from_secs(1);
        let mut body_rate = BodyRate::new(60 * second);
        assert!(body_rate.heard(59 * second, 1));
        assert!(body_rate.heard(Duration::ZERO, 1 << 20));
        assert_eq!(body_rate.left(), 60 * second);
        let mut seconds = 0;
        while body_rate.heard(second, 100) {
            seconds += 1;
        }
        assert_eq!(seconds, 74);
        let mut body_rate = BodyRate::new(10 * second);
        assert!((0..1000).all(|_| body_rate.heard(second, 500)));
        assert!(!body_rate.heard(11 * second, 0));
    }
}
