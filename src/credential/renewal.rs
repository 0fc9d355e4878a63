//! The task that keeps one credential fresh, and the state it shares with those who wait.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::schedule::{self, ForcedRenewals, MIN_PAUSE};
use super::{Credential, FetchError, Held, Issued, Lifetime, Source};
use crate::clock::{self, Moment};
use crate::metrics::FetchMetrics;

/// State of the refresh task, for those who wait and for `/status`.
#[derive(Debug, Default)]
pub(super) struct RenewalState {
    pub(super) attempting: bool,
    /// Time at which the next attempt starts by itself; `None`: not before something happens.
    pub(super) next: Option<Instant>,
    /// Earliest time at which a rejection of the current credential starts an attempt; `None`: a
    /// rejection changes nothing, because an attempt is due anyway.
    pub(super) forced_from: Option<Instant>,
    pub(super) outcome: Outcome,
    /// The next attempt is not urgent, because the current token will do.
    pub(super) relaxed: bool,
    pub(super) settled: bool,
    pub(super) refresh_at: Option<SystemTime>,
    pub(super) last_refresh: Option<SystemTime>,
    pub(super) last_error: Option<String>,
}

impl RenewalState {
    /// Tells whether an attempt is running or starts by itself before `deadline`. It is `true`
    /// before the first attempt, whose task has been spawned.
    pub(super) fn attempt_by(&self, deadline: Instant) -> bool {
        self.attempting || !self.settled || self.next.is_some_and(|next| next <= deadline)
    }
}

/// Result of the last attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    #[default]
    None,
    Ok,
    Temporary,
    Rejected,
    Reauthorize,
}

/// Keeps `credential` fresh until dropped. A failed fetch leaves the last one in place: it is
/// served until it expires, not until we first fail to replace it.
pub(super) async fn keep_fresh(
    credential: Arc<Credential>,
    source: Arc<dyn Source>,
    vendor: String,
    metrics: FetchMetrics,
    request_timeout: Duration,
) {
    let mut failures = 0;
    // Set while somebody waits for the result.
    let mut urgent = false;
    let mut forced = ForcedRenewals::default();
    if let (false, Some(held)) = (credential.renewable, credential.current.load_full()) {
        // A static credential has just been read, so no request waits for it.
        metrics.ok.inc();
        record_success(&credential, &held, &vendor, None, None);
        let floor = Instant::now() + MIN_PAUSE;
        urgent = wait_until_due(&credential, source.as_ref(), floor, None, &mut forced).await;
    }
    loop {
        let started = Instant::now();
        let account = source.account();
        if let Some(held) = credential.current.load_full()
            && let (Some(before), Some(now)) = (held.account, account)
            && before != now
        {
            info!(
                vendor,
                "the account has changed: the old credential is dropped"
            );
            credential.current.store(None);
        }
        credential.renewal.send_modify(|renewal| {
            renewal.attempting = true;
            renewal.refresh_at = None;
        });
        let outcome = attempt(source.as_ref(), request_timeout).await;
        let duration = started.elapsed();
        metrics.duration.observe(duration.as_secs_f64());
        let trace = |generation, failure| {
            if let (Some(traces), true) = (&metrics.traces, credential.renewable) {
                traces.record_refresh(&vendor, duration, generation, failure);
            }
        };

        let next = match outcome {
            Ok(issued) => {
                failures = 0;
                urgent = false;
                if source.adopted_from_store() {
                    forced.undo_start();
                }
                metrics.ok.inc();
                let lifetime = issued.lifetime;
                let held = credential.publish(issued, account);
                trace(Some(held.generation), None);
                let now = Instant::now();
                let next = lifetime.map(|Lifetime { total, end }| {
                    let margin =
                        total.saturating_sub(schedule::renew_after(total, request_timeout));
                    end.checked_sub(margin).unwrap_or(now)
                });
                record_success(&credential, &held, &vendor, lifetime, next);
                next
            }
            Err(error) => {
                trace(None, Some(error.kind()));
                let cause = error.to_string();
                let mut relaxed_pause = None;
                let (outcome, pause) = match &error {
                    FetchError::Temporary { retry_after, .. } => {
                        failures += 1;
                        metrics.temporary.inc();
                        if retry_after.is_none() && !urgent {
                            relaxed_pause =
                                schedule::relaxed_back_off(failures, credential.usable_for());
                        }
                        let pause = retry_after.or(relaxed_pause);
                        let pause = pause.unwrap_or_else(|| schedule::back_off(failures));
                        (Outcome::Temporary, Some(pause))
                    }
                    FetchError::Rejected(_) => {
                        metrics.rejected.inc();
                        (Outcome::Rejected, Some(schedule::after_refusal()))
                    }
                    FetchError::Reauthorize(_) => {
                        metrics.rejected.inc();
                        (Outcome::Reauthorize, None)
                    }
                };
                warn!(
                    vendor,
                    outcome = error.kind(),
                    retry_in_s = pause.map(|pause| pause.as_secs_f64()),
                    "credential not obtained: {cause}"
                );
                credential.confirm();
                credential.renewal.send_modify(|renewal| {
                    renewal.outcome = outcome;
                    renewal.relaxed = relaxed_pause.is_some();
                    renewal.last_error = Some(cause);
                });
                pause.map(|pause| Instant::now() + pause)
            }
        };
        let floor = started + MIN_PAUSE;
        urgent |= wait_until_due(&credential, source.as_ref(), floor, next, &mut forced).await;
    }
}

/// Records and logs that `held` is in use now.
fn record_success(
    credential: &Credential,
    held: &Held,
    vendor: &str,
    lifetime: Option<Lifetime>,
    next: Option<Instant>,
) {
    credential.renewal.send_modify(|renewal| {
        renewal.outcome = Outcome::Ok;
        renewal.relaxed = false;
        renewal.last_refresh = Some(SystemTime::now());
        renewal.last_error = None;
    });
    let now = Instant::now();
    let seconds_to = |at: Instant| at.saturating_duration_since(now).as_secs();
    info!(
        vendor,
        generation = held.generation,
        expires_in_s = lifetime.map(|lifetime| seconds_to(lifetime.end)),
        renew_in_s = next.map(seconds_to),
        "credential obtained"
    );
}

/// Makes one attempt, and discards its result when it was made from secrets that have changed
/// since.
async fn attempt(source: &dyn Source, request_timeout: Duration) -> Result<Issued, FetchError> {
    // Sources keep their own, shorter limits; this one is only for a source that forgets to.
    let limit = request_timeout
        .saturating_mul(4)
        .saturating_add(Duration::from_secs(30));
    let temporary = |cause, retry_after| FetchError::Temporary { cause, retry_after };
    let (begun, now) = (Moment::now(), Instant::now());
    let mut outcome = timeout(limit, source.fetch()).await;
    if let Ok(Ok(Issued {
        lifetime: Some(lifetime),
        ..
    })) = &mut outcome
    {
        // The time the machine was suspended since then counts against the token.
        let slept = begun.suspended_until(&Moment::now());
        lifetime.end = lifetime.end.checked_sub(slept).unwrap_or(now);
    }
    if source.outdated() {
        let cause = "a secret was changed during the token request; the response is not used";
        return Err(temporary(cause.into(), Some(Duration::ZERO)));
    }
    outcome.unwrap_or_else(|_| {
        let cause = format!("no outcome within {} s", limit.as_secs());
        Err(temporary(cause, None))
    })
}

/// Waits until the next attempt must start: at `next`, or sooner when something happens, but not
/// before `floor`. Returns `true` when something has happened.
async fn wait_until_due(
    credential: &Credential,
    source: &dyn Source,
    floor: Instant,
    next: Option<Instant>,
    forced: &mut ForcedRenewals,
) -> bool {
    let mut clock_changes = clock::moves();
    let mut last_seen = Moment::now();
    let mut due = next.map(|next| next.max(floor));
    // After most failures the next attempt is scheduled already, and the server's `Retry-After`
    // counts more than another 401.
    let listening = {
        let renewal = credential.renewal.borrow();
        renewal.outcome == Outcome::Ok || renewal.relaxed
    };
    let held = listening.then(|| credential.current.load_full()).flatten();
    let forced_from = forced.earliest(Instant::now()).max(floor);
    let mut rejected = false;
    let mut requested = false;
    loop {
        credential.renewal.send_modify(|renewal| {
            renewal.attempting = false;
            renewal.settled = true;
            renewal.next = due;
            renewal.refresh_at = due.and_then(wall_clock);
            renewal.forced_from = held.is_some().then_some(forced_from);
        });
        let rejection = async {
            match &held {
                Some(held) if !rejected => held.rejection.notified().await,
                _ => std::future::pending().await,
            }
        };
        let requested_now = async {
            if requested {
                std::future::pending::<()>().await;
            }
            loop {
                tokio::select! {
                    () = credential.refresh_requested.notified() => break,
                    () = source.changed() => break,
                    // Calling `changed` again checks at once.
                    () = credential.check_secrets.notified() => {}
                }
            }
        };
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = rejection => {
                rejected = true;
                due = Some(due.map_or(forced_from, |due| due.min(forced_from)));
            }
            () = requested_now => {
                requested = true;
                source.end_pause();
                due = Some(due.map_or(floor, |due| due.min(floor)));
            }
            () = timer => break,
            // Never an error: the sender lives as long as the process.
            _ = clock_changes.changed() => {
                let now = Moment::now();
                let missed = last_seen.suspended_until(&now) + last_seen.set_forward_until(&now);
                last_seen = now;
                due = due.map(|due| due.checked_sub(missed).unwrap_or(floor).max(floor));
                if credential.suspect() {
                    due = Some(floor);
                }
            }
        }
    }
    if rejected {
        forced.start(Instant::now());
    } else {
        forced.start_unforced();
    }
    rejected || requested
}

/// Converts `at` to the wall clock, for people and dashboards.
pub(super) fn wall_clock(at: Instant) -> Option<SystemTime> {
    let now = Instant::now();
    if at >= now {
        SystemTime::now().checked_add(at - now)
    } else {
        SystemTime::now().checked_sub(now - at)
    }
}
