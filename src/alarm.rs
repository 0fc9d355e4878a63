//! One timer for many limits.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set again only when it has to wake earlier, or has woken too early. Limits move
/// on with every request; on a busy connection they cost next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Waits until `at`.
    pub(crate) fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        loop {
            if sleep.deadline() > at {
                sleep.as_mut().reset(at);
            }
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_wakes_at_the_time_last_asked_for() {
        let mut alarm = Alarm::default();
        let start = Instant::now();
        for (ask, then) in [(5, 9), (9, 3), (20, 20)] {
            let now = Instant::now();
            let (ask, then) = (Duration::from_secs(ask), Duration::from_secs(then));
            let first = poll_fn(|cx| Poll::Ready(alarm.poll_until(now + ask, cx))).await;
            assert!(first.is_pending());
            poll_fn(|cx| alarm.poll_until(now + then, cx)).await;
            assert_eq!(Instant::now() - now, then);
        }
        assert_eq!(start.elapsed(), Duration::from_secs(32));
    }
}
