//! The limits in time of one request, all of them: what is limited, from when, and how it ends.
//!
//! The loop tells what happens by the methods, and what it waits for by [`Waits`]; it never compares
//! times itself.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::config::Timeouts;
use crate::downstream::body_rate::BodyRate;
use crate::downstream::removal::RemovalDeadline;
use crate::upstream::http2::Kind;

/// Longest pause of a caller within a body, and while it reads a response, where `timeouts` sets
/// none.
pub(crate) const CALLER_IDLE: Duration = Duration::from_mins(1);
/// Time for which an unwanted rest of a body is read, so that a reset does not cost the caller the
/// response.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// Interval of checks whether the caller was removed from the configuration.
const REMOVAL_CHECK: Duration = Duration::from_secs(2);
/// Interval of checks whether a caller has left whose body is not read.
const LEAVING_CHECK: Duration = Duration::from_millis(250);

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// `timeouts.total`.
    Total,
    /// `timeouts.first_byte`.
    FirstByte,
    /// `timeouts.idle`: the vendor has sent and taken nothing. After an upgrade and for gRPC,
    /// `timeouts.idle_stream`: neither side has.
    Idle,
    /// The caller's body came too slowly.
    SlowBody,
    /// The caller takes nothing of its response.
    Stall,
    /// The caller was removed from the configuration.
    Removed,
    /// The response is complete, and the rest of the caller's body did not come soon.
    Drain,
    /// It is time to see whether the caller has left.
    LookAtCaller,
}

/// In words, for a log.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Total => "timeouts.total has passed",
            Self::FirstByte => "timeouts.first_byte has passed",
            Self::Idle => "the vendor was silent for timeouts.idle",
            Self::SlowBody => "the request body came too slowly",
            Self::Stall => "the caller takes nothing of its response",
            Self::Removed => "the caller is no longer in the configuration",
            Self::Drain => "the rest of the request body did not come",
            Self::LookAtCaller => "the caller was looked at",
        })
    }
}

/// What the loop waits for.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "it may wait for several at once"
)]
pub(crate) struct Waits {
    /// Some of the caller's body.
    pub(crate) body: bool,
    /// The caller's body is not read, because the vendor takes none of it.
    pub(crate) body_held: bool,
    /// The vendor, to send more of a response that has begun, or to take what was sent.
    pub(crate) vendor: bool,
    /// The caller, to take what was sent.
    pub(crate) caller: bool,
}

/// The limits of one request. Zero in `timeouts` is no limit.
#[derive(Debug)]
pub(crate) struct Deadlines {
    kind: Kind,
    first_byte: Duration,
    idle: Duration,
    /// Longest pause of the caller, either way.
    pause: Duration,
    leave: Option<Arc<RemovalDeadline>>,

    total_by: Option<Instant>,
    first_byte_by: Option<Instant>,
    drain_by: Option<Instant>,
    body_rate: BodyRate,
    body_awaited_since: Option<Instant>,
    vendor_awaited_since: Option<Instant>,
    caller_awaited_since: Option<Instant>,
    body_held_since: Option<Instant>,
    has_response: bool,
}

impl Deadlines {
    /// Returns the limits of a request that began at `started`.
    pub(crate) fn new(
        timeouts: &Timeouts,
        kind: Kind,
        started: Instant,
        leave: Option<Arc<RemovalDeadline>>,
    ) -> Self {
        let idle = kind.idle(timeouts);
        let pause = if idle.is_zero() { CALLER_IDLE } else { idle };
        let total = timeouts.total;
        Self {
            kind,
            // The first head of a gRPC response may come with its first message, whenever that is.
            first_byte: if kind == Kind::Grpc {
                Duration::ZERO
            } else {
                timeouts.first_byte
            },
            idle,
            pause,
            leave,
            total_by: (!total.is_zero()).then(|| started + total),
            first_byte_by: None,
            drain_by: None,
            body_rate: BodyRate::new(pause),
            body_awaited_since: None,
            vendor_awaited_since: None,
            caller_awaited_since: None,
            body_held_since: None,
            has_response: false,
        }
    }

    /// Returns the limits of writing a local reply.
    pub(crate) fn of_local_reply() -> Self {
        Self {
            kind: Kind::Ordinary,
            first_byte: Duration::ZERO,
            idle: Duration::ZERO,
            pause: CALLER_IDLE,
            leave: None,
            total_by: None,
            first_byte_by: None,
            drain_by: None,
            body_rate: BodyRate::new(CALLER_IDLE),
            body_awaited_since: None,
            vendor_awaited_since: None,
            caller_awaited_since: None,
            body_held_since: None,
            has_response: true,
        }
    }

    /// Returns what is left of `timeouts.total`; `None`: there is no such limit.
    pub(crate) fn left(&self) -> Option<Duration> {
        let by = self.total_by?;
        Some(by.saturating_duration_since(Instant::now()))
    }

    /// Tells whether the time of the whole request is over, or its caller's.
    pub(crate) fn is_over(&self) -> Option<Limit> {
        let now = Instant::now();
        let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_past(self.total_by) {
            Some(Limit::Total)
        } else if is_past(self.leave.as_ref().and_then(|leave| leave.at())) {
            Some(Limit::Removed)
        } else {
            None
        }
    }

    /// Notes that another attempt begins.
    pub(crate) fn attempt_begins(&mut self) {
        self.first_byte_by = None;
        self.vendor_awaited_since = None;
    }

    /// Notes that the whole request has been sent, or that an interim response came after that: the
    /// response is awaited from now on.
    pub(crate) fn response_awaited(&mut self) {
        if !self.first_byte.is_zero() && !self.has_response {
            self.first_byte_by = Some(Instant::now() + self.first_byte);
        }
    }

    /// Notes that the response has begun. A caller that is being answered may send at its own pace:
    /// this is a stream.
    pub(crate) fn response_begins(&mut self) {
        self.has_response = true;
        self.first_byte_by = None;
        self.vendor_awaited_since = None;
    }

    /// Notes that the response is complete: what is left of the caller's body is read for a short
    /// time alone.
    pub(crate) fn response_ends(&mut self) {
        self.drain_by = Some(Instant::now() + DRAIN);
    }

    /// Notes that the vendor has sent or taken something.
    pub(crate) fn vendor_heard(&mut self) {
        self.vendor_awaited_since = None;
    }

    /// Notes that the caller has taken some of its response. One that reads slowly does not make
    /// the vendor silent.
    pub(crate) fn caller_took(&mut self) {
        self.caller_awaited_since = None;
        self.vendor_awaited_since = None;
    }

    /// Notes that `bytes` of the caller's body have come.
    pub(crate) fn body_came(&mut self, bytes: usize) {
        self.vendor_awaited_since = None;
        if let Some(since) = self.body_awaited_since.take() {
            // In time: only the timer decides that it is late.
            let _ = self.body_rate.heard(since.elapsed(), bytes);
        }
    }

    /// Notes that the caller was looked at.
    pub(crate) fn caller_looked_at(&mut self) {
        self.body_held_since = None;
    }

    /// Waits for the first limit that is reached while the loop waits like this.
    pub(crate) fn poll(
        &mut self,
        waits: Waits,
        alarm: &mut Alarm,
        cx: &mut Context<'_>,
    ) -> Poll<Limit> {
        loop {
            let now = Instant::now();
            let (Some(at), limit) = self.next(waits, now) else {
                return Poll::Pending;
            };
            if let Some(limit) = limit.filter(|_| at <= now) {
                return Poll::Ready(limit);
            }
            ready!(alarm.poll_until(at, cx));
        }
    }

    /// Returns the next time to wake, and the limit that is reached then; `None`: only the caller's
    /// removal is looked at.
    fn next(&mut self, waits: Waits, now: Instant) -> (Option<Instant>, Option<Limit>) {
        let mut first: (Option<Instant>, Option<Limit>) = (None, None);
        let mut consider = |at: Option<Instant>, limit: Option<Limit>| {
            if let Some(at) = at
                && first.0.is_none_or(|first| at < first)
            {
                first = (Some(at), limit);
            }
        };
        consider(self.total_by, Some(Limit::Total));
        consider(self.first_byte_by, Some(Limit::FirstByte));
        consider(self.drain_by, Some(Limit::Drain));
        // Only time in which we wait counts. Where the response has begun, and for gRPC, the caller
        // may be silent.
        let body = waits.body && !self.has_response && self.kind != Kind::Grpc;
        let since = |since: &mut Option<Instant>, awaited: bool| {
            if awaited {
                Some(*since.get_or_insert(now))
            } else {
                *since = None;
                None
            }
        };
        let body_since = since(&mut self.body_awaited_since, body);
        consider(
            body_since.map(|at| at + self.body_rate.left()),
            Some(Limit::SlowBody),
        );
        let vendor = !self.idle.is_zero() && (waits.vendor || self.kind == Kind::Grpc);
        // A caller that takes nothing has its own limit.
        let vendor_since = since(&mut self.vendor_awaited_since, vendor && !waits.caller);
        consider(vendor_since.map(|at| at + self.idle), Some(Limit::Idle));
        let caller_since = since(&mut self.caller_awaited_since, waits.caller);
        consider(caller_since.map(|at| at + self.pause), Some(Limit::Stall));
        let held_since = since(&mut self.body_held_since, waits.body_held);
        let look_at = held_since.map(|at| at + LEAVING_CHECK);
        consider(look_at, Some(Limit::LookAtCaller));
        if let Some(leave) = &self.leave {
            match leave.at() {
                Some(at) => consider(Some(at), Some(Limit::Removed)),
                // It is not told, so it looks at intervals.
                None => consider(Some(now + REMOVAL_CHECK), None),
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUTS: Timeouts = Timeouts {
        connect: Duration::from_secs(5),
        first_byte: Duration::from_secs(20),
        idle: Duration::from_secs(30),
        idle_stream: Duration::from_mins(5),
        total: Duration::ZERO,
        keepalive: Duration::from_secs(30),
        token_wait: Duration::from_secs(5),
    };

    fn deadlines(kind: Kind, total: Duration) -> Deadlines {
        let timeouts = Timeouts { total, ..TIMEOUTS };
        Deadlines::new(&timeouts, kind, Instant::now(), None)
    }

    /// The next limit, and after how long it is reached; `None`: none within an hour.
    async fn reached(deadlines: &mut Deadlines, waits: Waits) -> Option<(Limit, Duration)> {
        let start = Instant::now();
        let mut alarm = Alarm::default();
        let limit = poll_fn(|cx| deadlines.poll(waits, &mut alarm, cx));
        let limit = tokio::time::timeout(Duration::from_hours(1), limit).await;
        limit.ok().map(|limit| (limit, start.elapsed()))
    }

    const NOTHING: Waits = Waits {
        body: false,
        body_held: false,
        vendor: false,
        caller: false,
    };
    const BODY: Waits = Waits {
        body: true,
        ..NOTHING
    };
    const VENDOR: Waits = Waits {
        vendor: true,
        ..NOTHING
    };
    const CALLER: Waits = Waits {
        caller: true,
        ..NOTHING
    };

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_limit_and_no_other() {
        let ordinary = || deadlines(Kind::Ordinary, Duration::ZERO);
        assert_eq!(reached(&mut ordinary(), NOTHING).await, None);
        let slow = reached(&mut ordinary(), BODY).await;
        assert_eq!(slow, Some((Limit::SlowBody, 30 * SECOND)));
        let idle = reached(&mut ordinary(), VENDOR).await;
        assert_eq!(idle, Some((Limit::Idle, 30 * SECOND)));
        let stall = reached(&mut ordinary(), CALLER).await;
        assert_eq!(stall, Some((Limit::Stall, 30 * SECOND)));
        // A caller that takes nothing does not make the vendor silent.
        let both = Waits {
            vendor: true,
            ..CALLER
        };
        let both = reached(&mut ordinary(), both).await;
        assert_eq!(both, Some((Limit::Stall, 30 * SECOND)));

        let mut sent = ordinary();
        sent.response_awaited();
        let first = reached(&mut sent, NOTHING).await;
        assert_eq!(first, Some((Limit::FirstByte, 20 * SECOND)));
        let mut begun = ordinary();
        begun.response_awaited();
        begun.response_begins();
        begun.response_awaited();
        assert_eq!(reached(&mut begun, BODY).await, None, "a stream");
        begun.response_ends();
        let drain = reached(&mut begun, NOTHING).await;
        assert_eq!(drain, Some((Limit::Drain, DRAIN)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_runs_whatever_is_waited_for() {
        for waits in [NOTHING, BODY, VENDOR, CALLER] {
            let mut deadlines = deadlines(Kind::Ordinary, 7 * SECOND);
            deadlines.response_awaited();
            let total = reached(&mut deadlines, waits).await;
            assert_eq!(total, Some((Limit::Total, 7 * SECOND)));
            assert_eq!(deadlines.is_over(), Some(Limit::Total));
            assert_eq!(deadlines.left(), Some(Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_may_be_silent_for_long() {
        let mut grpc = deadlines(Kind::Grpc, Duration::ZERO);
        grpc.response_awaited();
        let idle = reached(&mut grpc, BODY).await;
        assert_eq!(idle, Some((Limit::Idle, Duration::from_mins(5))));
        let mut upgraded = deadlines(Kind::Upgrade, Duration::ZERO);
        upgraded.response_awaited();
        let first = reached(&mut upgraded, NOTHING).await;
        assert_eq!(first, Some((Limit::FirstByte, 20 * SECOND)));
        upgraded.response_begins();
        let idle = reached(&mut upgraded, VENDOR).await;
        assert_eq!(idle, Some((Limit::Idle, Duration::from_mins(5))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_moves_limits_on() {
        let mut deadlines = deadlines(Kind::Ordinary, Duration::ZERO);
        let mut alarm = Alarm::default();
        for waits in [VENDOR, CALLER, BODY] {
            for _ in 0..5 {
                let pending = poll_fn(|cx| Poll::Ready(deadlines.poll(waits, &mut alarm, cx)));
                assert!(pending.await.is_pending(), "{waits:?}");
                tokio::time::advance(29 * SECOND).await;
                deadlines.vendor_heard();
                deadlines.caller_took();
                deadlines.body_came(1 << 20);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_caller_is_noticed_soon_and_one_that_is_held_is_looked_at() {
        let leave = Arc::new(RemovalDeadline::default());
        let started = Instant::now();
        let mut deadlines = Deadlines::new(&TIMEOUTS, Kind::Ordinary, started, Some(leave.clone()));
        let remove = async {
            tokio::time::sleep(5 * SECOND).await;
            leave.set(Instant::now() + SECOND);
        };
        let (removed, ()) = tokio::join!(reached(&mut deadlines, NOTHING), remove);
        assert_eq!(removed, Some((Limit::Removed, 6 * SECOND)));
        assert_eq!(deadlines.is_over(), Some(Limit::Removed));

        let mut deadlines = self::deadlines(Kind::Ordinary, Duration::ZERO);
        let held = Waits {
            body_held: true,
            vendor: true,
            ..NOTHING
        };
        let mut looks = 0;
        while let Some((Limit::LookAtCaller, after)) = reached(&mut deadlines, held).await {
            assert_eq!(after, LEAVING_CHECK);
            deadlines.caller_looked_at();
            looks += 1;
        }
        // Until the vendor's time is over.
        assert_eq!(looks, 119);
    }
}
