//! The task that keeps one credential fresh, and what it tells those who wait for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::pace::{self, Forced, MIN_PAUSE};
use super::{Credential, FetchError, Held, Issued, Lifetime, Source};
use crate::clock::{self, Moment};
use crate::metrics::FetchMetrics;

/// What the refresh task tells those who wait and those who look.
#[derive(Debug, Default)]
pub(super) struct Board {
    pub(super) attempting: bool,
    /// When the next attempt starts by itself; `None`: not before something happens.
    pub(super) next: Option<Instant>,
    /// From when on a rejection of the current credential starts an attempt; `None`: the
    /// rejection changes nothing, because an attempt is overdue as it is.
    pub(super) forced_from: Option<Instant>,
    pub(super) outcome: Outcome,
    /// The next attempt takes its time, because what is in hand will do.
    pub(super) patient: bool,
    pub(super) settled: bool,
    pub(super) refresh_at: Option<SystemTime>,
    pub(super) last_refresh: Option<SystemTime>,
    pub(super) last_error: Option<String>,
}

impl Board {
    /// Whether an attempt is running or starts by itself before `deadline`. True before the first
    /// attempt: its task has been spawned.
    pub(super) fn attempt_by(&self, deadline: Instant) -> bool {
        self.attempting || !self.settled || self.next.is_some_and(|next| next <= deadline)
    }
}

/// How the last attempt ended.
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
/// served until its own end, not until our first failure to replace it.
pub(super) async fn keep_fresh(
    credential: Arc<Credential>,
    source: Arc<dyn Source>,
    vendor: String,
    metrics: FetchMetrics,
    request_timeout: Duration,
) {
    let mut failures = 0;
    // Somebody is waiting for what the attempts are to bring.
    let mut urgent = false;
    let mut forced = Forced::default();
    if let (false, Some(held)) = (credential.renewable, credential.current.load_full()) {
        // What is fixed has just been read, so that no request ever waits for it.
        metrics.ok.inc();
        obtained(&credential, &held, &vendor, None, None);
        let floor = Instant::now() + MIN_PAUSE;
        urgent = pause_until_due(&credential, source.as_ref(), floor, None, &mut forced).await;
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
                "another account from now on: the old credential is dropped"
            );
            credential.current.store(None);
        }
        credential.board.send_modify(|board| {
            board.attempting = true;
            board.refresh_at = None;
        });
        let outcome = attempt(source.as_ref(), request_timeout).await;
        let took = started.elapsed();
        metrics.duration.observe(took.as_secs_f64());
        let tell = |generation, failure| {
            if let (Some(traces), true) = (&metrics.traces, credential.renewable) {
                traces.refreshed(&vendor, took, generation, failure);
            }
        };

        let next = match outcome {
            Ok(issued) => {
                failures = 0;
                urgent = false;
                if source.took_from_store() {
                    forced.forgive();
                }
                metrics.ok.inc();
                let lifetime = issued.lifetime;
                let held = credential.publish(issued, account);
                tell(Some(held.generation), None);
                let now = Instant::now();
                let next = lifetime.map(|Lifetime { total, end }| {
                    let margin = total.saturating_sub(pace::renew_after(total, request_timeout));
                    end.checked_sub(margin).unwrap_or(now)
                });
                obtained(&credential, &held, &vendor, lifetime, next);
                next
            }
            Err(error) => {
                tell(None, Some(error.word()));
                let cause = error.to_string();
                let mut patience = None;
                let (outcome, pause) = match &error {
                    FetchError::Temporary { retry_after, .. } => {
                        failures += 1;
                        metrics.temporary.inc();
                        if retry_after.is_none() && !urgent {
                            patience = pace::patience(failures, credential.usable_for());
                        }
                        let pause = retry_after.or(patience);
                        let pause = pause.unwrap_or_else(|| pace::back_off(failures));
                        (Outcome::Temporary, Some(pause))
                    }
                    FetchError::Rejected(_) => {
                        metrics.rejected.inc();
                        (Outcome::Rejected, Some(pace::after_refusal()))
                    }
                    FetchError::Reauthorize(_) => {
                        metrics.rejected.inc();
                        (Outcome::Reauthorize, None)
                    }
                };
                warn!(
                    vendor,
                    outcome = error.word(),
                    retry_in_s = pause.map(|pause| pause.as_secs_f64()),
                    "credential not obtained: {cause}"
                );
                credential.trust();
                credential.board.send_modify(|board| {
                    board.outcome = outcome;
                    board.patient = patience.is_some();
                    board.last_error = Some(cause);
                });
                pause.map(|pause| Instant::now() + pause)
            }
        };
        let floor = started + MIN_PAUSE;
        urgent |= pause_until_due(&credential, source.as_ref(), floor, next, &mut forced).await;
    }
}

/// Tells everybody that `held` is in use now.
fn obtained(
    credential: &Credential,
    held: &Held,
    vendor: &str,
    lifetime: Option<Lifetime>,
    next: Option<Instant>,
) {
    credential.board.send_modify(|board| {
        board.outcome = Outcome::Ok;
        board.patient = false;
        board.last_refresh = Some(SystemTime::now());
        board.last_error = None;
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

/// One attempt; what it brings is dropped when it was made from secrets that are no longer there.
async fn attempt(source: &dyn Source, request_timeout: Duration) -> Result<Issued, FetchError> {
    // Sources keep their own, shorter limits; this one only makes a forgotten one harmless.
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
        // What the machine has slept through since then is gone from it.
        let slept = begun.suspended_until(&Moment::now());
        lifetime.end = lifetime.end.checked_sub(slept).unwrap_or(now);
    }
    if source.outdated() {
        let cause = "a secret was changed while the answer was under way; it is not used";
        return Err(temporary(cause.into(), Some(Duration::ZERO)));
    }
    outcome.unwrap_or_else(|_| {
        let cause = format!("no outcome within {} s", limit.as_secs());
        Err(temporary(cause, None))
    })
}

/// Waits until the next attempt must start: when `next` has come, or sooner when something
/// happens, but not before `floor`. `true`: something has.
async fn pause_until_due(
    credential: &Credential,
    source: &dyn Source,
    floor: Instant,
    next: Option<Instant>,
    forced: &mut Forced,
) -> bool {
    let mut moves = clock::moves();
    let mut seen = Moment::now();
    let mut due = next.map(|next| next.max(floor));
    // After most failures the next attempt is on its way, and the server's wish to be left alone
    // counts more than one more 401.
    let listening = {
        let board = credential.board.borrow();
        board.outcome == Outcome::Ok || board.patient
    };
    let held = listening.then(|| credential.current.load_full()).flatten();
    let forced_from = forced.earliest(Instant::now()).max(floor);
    let mut rejected = false;
    let mut asked = false;
    loop {
        credential.board.send_modify(|board| {
            board.attempting = false;
            board.settled = true;
            board.next = due;
            board.refresh_at = due.and_then(wall_clock);
            board.forced_from = held.is_some().then_some(forced_from);
        });
        let rejection = async {
            match &held {
                Some(held) if !rejected => held.rejection.notified().await,
                _ => std::future::pending().await,
            }
        };
        let asking = async {
            if asked {
                std::future::pending::<()>().await;
            }
            loop {
                tokio::select! {
                    () = credential.operator.notified() => break,
                    () = source.changed() => break,
                    // Asked again, `changed` looks at once.
                    () = credential.look.notified() => {}
                }
            }
        };
        let alarm = async {
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
            () = asking => {
                asked = true;
                source.asked();
                due = Some(due.map_or(floor, |due| due.min(floor)));
            }
            () = alarm => break,
            // Never an error: the other side lives as long as the process.
            _ = moves.changed() => {
                let now = Moment::now();
                let missed = seen.suspended_until(&now) + seen.set_forward_until(&now);
                seen = now;
                due = due.map(|due| due.checked_sub(missed).unwrap_or(floor).max(floor));
                if credential.doubt() {
                    due = Some(floor);
                }
            }
        }
    }
    if rejected {
        forced.start(Instant::now());
    } else {
        forced.start_another();
    }
    rejected || asked
}

/// `at` on the wall clock, for people and dashboards.
pub(super) fn wall_clock(at: Instant) -> Option<SystemTime> {
    let now = Instant::now();
    if at >= now {
        SystemTime::now().checked_add(at - now)
    } else {
        SystemTime::now().checked_sub(now - at)
    }
}
