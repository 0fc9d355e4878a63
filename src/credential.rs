//! The credentials we present to vendors, and how they stay fresh: the refresh path.
//!
//! ```text
//! Source ──fetch──▶ keep_fresh ──publish──▶ Credential ──current──▶ request path
//!                        ▲                                               │
//!                        └───────────────── reject ──────────────────────┘  (vendor said 401)
//! ```
//!
//! There is one writer per credential, so two fetches for one credential never overlap in this
//! process: no lock, no single-flight map. A failed fetch never removes a credential that works.

mod client_auth;
pub(crate) mod consent;
mod evictions;
mod explanation;
#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
mod fleet;
mod inputs;
mod issuer;
mod oauth2;
mod probe;
mod quote;
mod renewal;
mod revocation;
mod rotation;
mod schedule;
mod shared_token;
mod static_auth;
mod token_request;
mod vedauth;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use crate::clock::{End, Moment};
use crate::config::{self, Auth};
use crate::metrics::FetchMetrics;
use crate::store::Store;
use evictions::Evictions;
pub use probe::{Probed, probe};
use renewal::{Outcome, RenewalState, keep_fresh, wall_clock};
use revocation::Revocation;
pub use rotation::wait_for_refreshes;
use schedule::MIN_PAUSE;
use static_auth::{Scheme, StaticAuth};

/// Obtains a credential. Implement this to add a kind of credential.
#[async_trait]
trait Source: Send + Sync + 'static {
    /// One attempt, without retries: pacing and back-off belong to [`keep_fresh`], which may drop
    /// the future at any time.
    async fn fetch(&self) -> Result<Issued, FetchError>;

    /// Makes one attempt for `countersign probe`: its token is used for nothing, no stored refresh
    /// token is spent, and nothing is stored.
    async fn probe(&self) -> Result<Probed, String> {
        let issued = self.fetch().await.map_err(|cause| cause.to_string())?;
        let expires = issued.lifetime.map(|lifetime| lifetime.end);
        Ok(Probed::Obtained(probe::remaining(expires)))
    }

    /// Returns when an attempt may bring something else than the last one did, although none is
    /// due: a secret was changed, someone consented. May be dropped and called again.
    async fn changed(&self);

    /// Digest of the account that an attempt now would be made for: when it differs from the one
    /// a credential was issued for, that credential must not serve any longer. `None`: unknown at
    /// the moment, or nothing the like.
    fn account(&self) -> Option<[u8; 32]> {
        None
    }

    /// Whether the last attempt brought what another replica had obtained.
    fn adopted_from_store(&self) -> bool {
        false
    }

    /// Whether what the last attempt was made from has changed since it began.
    fn outdated(&self) -> bool {
        false
    }

    /// Tells that somebody wants the next attempt, or that something has changed: a pause that the
    /// source keeps on its own account is over.
    fn end_pause(&self) {}
}

/// A credential as its source issued it.
#[derive(Clone, Debug)]
struct Issued {
    /// See [`Held::values`].
    values: Vec<HeaderValue>,
    /// `None`: never expires, and asking again brings the same.
    lifetime: Option<Lifetime>,
}

/// How long a vendor honours a token.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lifetime {
    /// From issue to end.
    total: Duration,
    /// The vendor's stated end, counted from before the token was asked for: relative lifetimes
    /// (RFC 6749 §5.1) cannot be wrong because a clock is.
    end: Instant,
}

/// Why one fetch failed. Texts are for logs and `/status`: no secret in them.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// Trying again may help.
    #[error("{cause}")]
    Temporary {
        /// What went wrong.
        cause: String,
        /// The server's own wish, RFC 9110 §10.2.3.
        retry_after: Option<Duration>,
    },
    /// Trying again helps only after someone changed something here or at the vendor.
    #[error("{0}")]
    Rejected(String),
    /// Trying again is harmful or useless until a person consents.
    #[error("{0}")]
    Reauthorize(String),
}

impl FetchError {
    /// For spans: one of few words.
    fn word(&self) -> &'static str {
        match self {
            Self::Temporary { .. } => "temporary",
            Self::Rejected(_) => "rejected",
            Self::Reauthorize(_) => "reauthorize",
        }
    }
}

/// What we hold for one vendor now. Written by one task, loaded by every request.
pub struct Credential {
    current: ArcSwapOption<Held>,
    renewal: watch::Sender<RenewalState>,
    refresh_requested: Notify,
    check_secrets: Notify,
    /// Of the newest.
    generation: AtomicU64,
    renewable: bool,
    evictions: Evictions,
    /// Replicas take it from a store, and do not end each other's.
    shared: bool,
}

impl Credential {
    /// The credential to use now: one atomic load, no lock, no waiting, no allocation.
    ///
    /// # Errors
    /// [`Unavailable`] when there is none, or only one past its end.
    pub fn current(&self) -> Result<Arc<Held>, Unavailable> {
        match self.current.load_full() {
            Some(held) if held.usable() => Ok(held),
            _ => Err(self.unavailable()),
        }
    }

    /// [`Credential::current`], waiting up to `at_most` for one while an attempt to get it is
    /// running or due within that time.
    ///
    /// # Errors
    /// [`Unavailable`], at once when waiting cannot help.
    pub async fn wait(&self, at_most: Duration) -> Result<Arc<Held>, Unavailable> {
        let deadline = Instant::now() + at_most;
        let mut renewal = self.renewal.subscribe();
        loop {
            // Before the load: what is published afterwards wakes us.
            let may_come = renewal.borrow_and_update().attempt_by(deadline);
            match self.current() {
                Ok(held) => return Ok(held),
                Err(unavailable) if !may_come => return Err(unavailable),
                Err(_) => {}
            }
            if timeout_at(deadline, renewal.changed()).await.is_err() {
                return self.current();
            }
        }
    }

    /// After [`Held::reject`]: the next published credential that is not `held`, waiting up to
    /// `at_most`; `None`, as early as it is certain, when there will be none by then.
    pub async fn newer_than(&self, held: &Arc<Held>, at_most: Duration) -> Option<Arc<Held>> {
        let deadline = Instant::now() + at_most;
        let mut renewal = self.renewal.subscribe();
        loop {
            let may_come = {
                let renewal = renewal.borrow_and_update();
                // The task may not have heard of the rejection yet; what it will do is known.
                let forced = held.rejected.load(Ordering::Acquire)
                    && renewal.forced_from.is_some_and(|from| from <= deadline);
                forced || renewal.attempt_by(deadline)
            };
            match self.current() {
                Ok(newer) if !Arc::ptr_eq(&newer, held) => return Some(newer),
                _ if !may_come => return None,
                _ => {}
            }
            timeout_at(deadline, renewal.changed()).await.ok()?.ok()?;
        }
    }

    /// Notes that a request for which `before` was rejected went through with a newer one. `true`:
    /// `before` was lost long before its end, and this is the first to say so.
    pub fn record_eviction(&self, before: &Held) -> bool {
        let now = Instant::now();
        let evicted = before.half_life.is_some_and(|half_life| now < half_life)
            && !before.evicted.swap(true, Ordering::Relaxed);
        if evicted {
            self.evictions.add(now);
        }
        evicted
    }

    /// For `/status`, `/metrics` and `/readyz`.
    #[must_use]
    pub fn status(&self) -> Status {
        let held = self.current.load_full();
        let renewal = self.renewal.borrow();
        Status {
            state: self.state(held.as_deref(), &renewal),
            expires_at: held.as_ref().and_then(|held| held.expires_at()),
            refresh_at: renewal.refresh_at,
            last_refresh: renewal.last_refresh,
            last_error: (renewal.last_error.clone())
                .or_else(|| self.evictions.advice(Instant::now(), self.shared)),
            generation: self.generation.load(Ordering::Acquire),
            settled: renewal.settled,
            ever_usable: self.generation.load(Ordering::Acquire) > 0,
        }
    }

    /// An operator asks: secrets are read again and the credential is renewed at once, at most
    /// once a second.
    pub fn refresh_now(&self) {
        self.refresh_requested.notify_one();
    }

    /// Secrets may have been changed: they are looked at now instead of within seconds, and the
    /// credential is renewed only when they have.
    pub fn check_secrets_now(&self) {
        self.check_secrets.notify_one();
    }

    fn new(renewable: bool) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            renewal: watch::Sender::new(RenewalState::default()),
            refresh_requested: Notify::new(),
            check_secrets: Notify::new(),
            generation: AtomicU64::new(0),
            renewable,
            evictions: Evictions::new(),
            shared: false,
        }
    }

    fn state(&self, held: Option<&Held>, renewal: &RenewalState) -> State {
        if !self.renewable {
            return State::Static;
        }
        match (renewal.outcome, held) {
            (Outcome::Reauthorize, _) => State::Reauthorize,
            (Outcome::Rejected, _) | (Outcome::Temporary, None) => State::Failed,
            (Outcome::None | Outcome::Ok, None) => State::Pending,
            (_, Some(held)) if !held.usable() => State::Expired,
            (Outcome::Temporary, Some(_)) => State::Refreshing,
            (Outcome::None | Outcome::Ok, Some(_)) if renewal.attempting => State::Refreshing,
            (Outcome::None | Outcome::Ok, Some(_)) => State::Fresh,
        }
    }

    /// How long what is in hand can still be used; `None`: for ever.
    fn usable_for(&self) -> Option<Duration> {
        match self.current.load_full() {
            Some(held) => held.until.map(|until| until.left()),
            None => Some(Duration::ZERO),
        }
    }

    /// Looks at the wall clock after it was set. By it a token may have ended that `CLOCK_BOOTTIME`
    /// says is good: the virtual machine was paused, or the clock was wrong before. Such a token is
    /// held back until an attempt has ended; `true`: there is one.
    fn suspect(&self) -> bool {
        let held = self.current.load_full();
        held.is_some_and(|held| held.suspect())
    }

    /// Ends what [`Credential::suspect`] began, because there is nothing better.
    fn confirm(&self) {
        if let Some(held) = self.current.load_full() {
            let suspicion = &held.suspicion;
            let _ = suspicion.compare_exchange(
                SUSPECTED,
                CONFIRMED,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
        }
    }

    fn unavailable(&self) -> Unavailable {
        let held = self.current.load_full();
        let renewal = self.renewal.borrow();
        let pause = match renewal.next {
            _ if renewal.attempting => Duration::ZERO,
            Some(next) => next.saturating_duration_since(Instant::now()),
            None => MAX_RETRY_AFTER,
        };
        let seconds = pause.as_secs_f64().ceil();
        Unavailable {
            retry_after: Duration::from_secs_f64(seconds).clamp(MIN_PAUSE, MAX_RETRY_AFTER),
            reason: self.state(held.as_deref(), &renewal),
        }
    }

    /// Makes `issued`, of this account, the credential of every request from now on.
    fn publish(&self, issued: Issued, account: Option<[u8; 32]>) -> Arc<Held> {
        let before = self.current.load_full();
        if let Some(before) = &before
            && !self.renewable
            && *before.values == *issued.values
        {
            return before.clone();
        }
        let held = Arc::new(Held {
            values: issued.values.into_boxed_slice(),
            generation: self.generation.fetch_add(1, Ordering::AcqRel) + 1,
            account,
            renewable: self.renewable,
            since: Moment::now(),
            expires_at: issued
                .lifetime
                .and_then(|lifetime| wall_clock(lifetime.end)),
            ends: issued.lifetime.map(|lifetime| End::at(lifetime.end)),
            until: issued.lifetime.map(|lifetime| {
                let unused = lifetime
                    .total
                    .saturating_sub(schedule::usable_for(lifetime.total));
                End::at(lifetime.end.checked_sub(unused).unwrap_or(lifetime.end))
            }),
            suspicion: AtomicU8::new(UNSUSPECTED),
            half_life: issued.lifetime.and_then(|lifetime| {
                let half_life = lifetime.total / 2;
                lifetime.end.checked_sub(half_life)
            }),
            rejection: Notify::new(),
            rejected: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
        });
        self.current.store(Some(held.clone()));
        held
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("current", &self.current.load())
            .finish_non_exhaustive()
    }
}

/// One issued credential, as requests see it.
pub struct Held {
    values: Box<[HeaderValue]>,
    generation: u64,
    /// See [`Source::account`].
    account: Option<[u8; 32]>,
    renewable: bool,
    /// When it was published.
    since: Moment,
    /// The vendor's stated end, on the wall clock as that stood then.
    expires_at: Option<SystemTime>,
    /// The vendor's stated end.
    ends: Option<End>,
    /// No longer used from here on.
    until: Option<End>,
    /// What the wall clock says against it: see [`Credential::suspect`].
    suspicion: AtomicU8,
    /// Until here its end is far away.
    half_life: Option<Instant>,
    rejection: Notify,
    rejected: AtomicBool,
    /// Its early end has been counted.
    evicted: AtomicBool,
}

impl Held {
    /// Finished values, made once, all marked sensitive. Bearer kinds and `basic`: the value of
    /// `Authorization`. `headers`: one per configured name, in that order. `query`: one value,
    /// `a=1&b=2`, percent-encoded, to be appended.
    #[must_use]
    pub fn values(&self) -> &[HeaderValue] {
        &self.values
    }

    /// Counts what was published for this vendor: 1, 2, 3 …
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// `false` for credentials that asking again does not change: never rejected, never replayed.
    #[must_use]
    pub fn renewable(&self) -> bool {
        self.renewable
    }

    /// Tells the refresh task that the vendor answered 401 to this very credential. Calls on one
    /// that has been replaced reach nobody, so a burst of 401s costs one fetch.
    pub fn reject(&self) {
        if self.renewable {
            self.rejected.store(true, Ordering::Release);
            self.rejection.notify_one();
        }
    }

    /// Whether it may be sent. A suspended machine is seen here, by every single request; what the
    /// wall clock says is looked at by the refresh task.
    fn usable(&self) -> bool {
        self.until.is_none_or(|until| !until.has_come())
            && self.suspicion.load(Ordering::Acquire) != SUSPECTED
    }

    /// See [`Credential::suspect`].
    fn suspect(&self) -> bool {
        let forward = self.since.set_forward_until(&Moment::now());
        let ended = self.until.is_some_and(|until| until.has_come_in(forward));
        let suspicion = &self.suspicion;
        !forward.is_zero()
            && ended
            && suspicion
                .compare_exchange(UNSUSPECTED, SUSPECTED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }

    /// The vendor's stated end, for people and dashboards, on the wall clock as it stands now.
    fn expires_at(&self) -> Option<SystemTime> {
        let (then, now) = (self.expires_at?, self.ends?.on_the_wall()?);
        let moved = now
            .duration_since(then)
            .unwrap_or_else(|back| back.duration());
        // Two readings of two clocks are never quite the same.
        if moved < Duration::from_secs(2) {
            Some(then)
        } else {
            Some(now)
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// There is nothing to put on a request right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credential {}, next attempt in {} s", reason.word(), retry_after.as_secs())]
pub struct Unavailable {
    /// When asking again may help: 1 to 60 whole seconds.
    pub retry_after: Duration,
    /// What the credential is in instead of being usable.
    pub reason: State,
}

/// What `/status` calls the state of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The first fetch is under way.
    Pending,
    /// Usable, nothing to do.
    Fresh,
    /// Usable, a renewal is under way or being repeated.
    Refreshing,
    /// There was one, it ended, and it cannot be renewed at the moment.
    Expired,
    /// Refused by the vendor, or never obtained.
    Failed,
    /// A person must consent: `countersign authorize`.
    Reauthorize,
    /// Used as it is written down.
    Static,
}

impl State {
    /// Every state, in the order of their meaning: for metrics that name all of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Fresh,
        Self::Refreshing,
        Self::Expired,
        Self::Failed,
        Self::Reauthorize,
        Self::Static,
    ];

    /// The word in `/status`, `/metrics` and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Fresh => "fresh",
            Self::Refreshing => "refreshing",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Reauthorize => "reauthorize",
            Self::Static => "static",
        }
    }
}

/// One credential, seen from outside.
#[derive(Clone, Debug)]
pub struct Status {
    /// See [`State`].
    pub state: State,
    /// The vendor's stated end of the credential in use; use stops a little earlier.
    pub expires_at: Option<SystemTime>,
    /// When the next attempt starts by itself.
    pub refresh_at: Option<SystemTime>,
    /// When the newest credential came.
    pub last_refresh: Option<SystemTime>,
    /// Why the last attempt failed; `None` when it did not.
    pub last_error: Option<String>,
    /// Generation of the newest credential; 0: none yet.
    pub generation: u64,
    /// The first attempt has ended, one way or the other.
    pub settled: bool,
    /// There has been a usable credential.
    pub ever_usable: bool,
}

/// A credential's refresh task, ended when this is dropped. The credential itself stays usable to its end.
pub struct RefreshTask {
    task: AbortHandle,
    /// Where a clean stop ends the grant.
    revocation: Option<Revocation>,
}

impl RefreshTask {
    /// Ends the refresh task and, where the configuration asks for it, the grant at its server, within
    /// 3 s: for a clean stop. The outcome is logged.
    pub async fn stop(&self) {
        self.task.abort();
        if let Some(revocation) = &self.revocation {
            revocation.run().await;
        }
    }

    /// Ends the refresh task and leaves the grant alone: for the stop of a process whose successor may
    /// use the grant, out of the same store.
    pub fn stop_without_revoking(&self) {
        self.task.abort();
    }
}

impl Drop for RefreshTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for RefreshTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshTask")
    }
}

/// A credential that cannot even be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The vendor has no `auth`.
    #[error("the vendor {0} has no auth")]
    NoAuth(String),
    /// A secret is missing or cannot be sent.
    #[error("vendors.{vendor}.auth: {cause}")]
    Secret {
        /// The vendor.
        vendor: String,
        /// Which, and why.
        cause: String,
    },
}

/// Starts keeping `vendor`'s credential fresh. Must be called inside a tokio runtime, which the
/// task then lives on. `previous`, of the same account, serves until the first success or its own
/// end, so that a change of configuration fails no request.
///
/// # Errors
/// When the vendor has no `auth`, or a fixed credential cannot be made from its secrets. Token
/// kinds never fail here: theirs is a failed first fetch.
pub fn start(
    vendor: &config::Vendor,
    store: &Arc<dyn Store>,
    metrics: FetchMetrics,
    previous: Option<Arc<Held>>,
) -> Result<(Arc<Credential>, RefreshTask), StartError> {
    let auth = vendor
        .auth
        .as_ref()
        .ok_or_else(|| StartError::NoAuth(vendor.name.clone()))?;
    let origin = Origin::of(auth, vendor, store);
    let revoked = origin.revoked;
    let (credential, source) = match origin.source {
        Read::AsWritten(static_auth) => {
            // At once, so that no request ever waits for what is already here.
            let issued = static_auth.read().map_err(|cause| StartError::Secret {
                vendor: vendor.name.clone(),
                cause: cause.to_string(),
            })?;
            let credential = Credential::new(false);
            credential.publish(issued, None);
            (credential, Arc::new(static_auth) as Arc<dyn Source>)
        }
        Read::Fetched(source) => (Credential::new(true), source),
    };
    // Nothing is requested where there are no tokens.
    let request_timeout = auth
        .kind()
        .tokens
        .map_or(Duration::ZERO, |tokens| tokens.times.request_timeout);
    let mut credential = credential;
    credential.shared = auth.is_in_store();
    if let Some(previous) = previous
        && credential.renewable
        && previous.renewable
    {
        credential
            .generation
            .store(previous.generation, Ordering::Release);
        credential.current.store(Some(previous));
    }
    let credential = Arc::new(credential);
    let name = vendor.name.clone();
    let keeping = keep_fresh(credential.clone(), source, name, metrics, request_timeout);
    let refresh_task = RefreshTask {
        task: tokio::spawn(keeping).abort_handle(),
        revocation: revoked
            .map(|config| Revocation::new(config, vendor, store, credential.clone())),
    };
    Ok((credential, refresh_task))
}

/// Where a credential comes from.
struct Origin<'a> {
    source: Read,
    /// The server that revokes the grant on a clean stop.
    revoked: Option<&'a config::Vedauth>,
}

/// How a credential is obtained.
enum Read {
    /// Used as it is written.
    AsWritten(StaticAuth),
    /// Fetched before it expires.
    Fetched(Arc<dyn Source>),
}

impl<'a> Origin<'a> {
    /// Makes the source of `auth`: the one place where a kind meets its code.
    fn of(auth: &'a Auth, vendor: &config::Vendor, store: &Arc<dyn Store>) -> Self {
        let static_auth = |scheme| Read::AsWritten(StaticAuth::new(scheme));
        let source = match auth {
            Auth::Bearer { token } => static_auth(Scheme::Bearer(token.clone())),
            Auth::Basic { username, password } => static_auth(Scheme::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            Auth::Headers(headers) => static_auth(Scheme::Headers(
                headers.iter().map(|(_, value)| value.clone()).collect(),
            )),
            Auth::Query(pairs) => static_auth(Scheme::Query(pairs.clone())),
            Auth::ClientCredentials(config) => {
                Read::Fetched(oauth2::client_credentials(config, vendor, store))
            }
            Auth::AuthorizationCode(config) => {
                Read::Fetched(oauth2::authorization_code(config, vendor, store))
            }
            Auth::Vedauth(config) => {
                return Self {
                    source: Read::Fetched(vedauth::source(config, vendor, store)),
                    revoked: config.revoke_on_exit.then_some(config),
                };
            }
        };
        Self {
            source,
            revoked: None,
        }
    }
}

/// Values of [`Held::suspicion`]: nothing speaks against it; the wall clock does; it does, and an
/// attempt for something better has failed.
const UNSUSPECTED: u8 = 0;
const SUSPECTED: u8 = 1;
const CONFIRMED: u8 = 2;

const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests;
