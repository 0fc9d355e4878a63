//! The credentials presented to vendors, and how they stay fresh: the refresh path.
//!
//! ```text
//! Source ──fetch──▶ keep_fresh ──publish──▶ Credential ──current──▶ request path
//!                        ▲                                               │
//!                        └───────────────── reject ──────────────────────┘  (vendor said 401)
//! ```
//!
//! Each credential has one writer, so two fetches for one credential never overlap in this process:
//! no lock, no single-flight map. A failed fetch never removes a credential that works.

mod client_auth;
pub(crate) mod consent;
mod evictions;
mod explanation;
#[cfg(test)]
pub(crate) mod fakes;
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
    /// Makes one attempt, without retries: schedule and back-off belong to [`keep_fresh`], which
    /// may drop the future at any time.
    async fn fetch(&self) -> Result<Issued, FetchError>;

    /// Makes one attempt for `countersign probe`: its token is not used, no stored refresh token is
    /// spent, and nothing is stored.
    async fn probe(&self) -> Result<Probed, String> {
        let issued = self.fetch().await.map_err(|cause| cause.to_string())?;
        let expires = issued.lifetime.map(|lifetime| lifetime.end);
        Ok(Probed::Obtained(probe::remaining(expires)))
    }

    /// Returns when an attempt may have another result than the last one, although none is due: a
    /// secret was changed, or someone consented. May be dropped and called again.
    async fn changed(&self);

    /// Returns a digest of the account that an attempt now would be made for. A credential that was
    /// issued for another account must no longer be used. `None`: unknown, or this kind has no
    /// account.
    fn account(&self) -> Option<[u8; 32]> {
        None
    }

    /// Tells whether the last attempt returned a token that another replica had obtained.
    fn adopted_from_store(&self) -> bool {
        false
    }

    /// Tells whether the inputs of the last attempt have changed since it began.
    fn outdated(&self) -> bool {
        false
    }

    /// Ends a pause that the source keeps on its own account, because somebody wants the next
    /// attempt or something has changed.
    fn end_pause(&self) {}
}

/// A credential as issued by its source.
#[derive(Clone, Debug)]
struct Issued {
    /// See [`Held::values`].
    values: Vec<HeaderValue>,
    /// `None`: it never expires, and another request returns the same.
    lifetime: Option<Lifetime>,
}

/// Lifetime of a token, as stated by the vendor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lifetime {
    /// Time from issue to expiry.
    total: Duration,
    /// The vendor's stated expiry, counted from before the token was requested: relative lifetimes
    /// (RFC 6749 §5.1) cannot be wrong because a clock is.
    end: Instant,
}

/// The reason why a fetch failed. Texts are for logs and `/status` and hold no secret.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// Retrying may help.
    #[error("{cause}")]
    Temporary {
        /// Says what went wrong.
        cause: String,
        /// The server's `Retry-After` (RFC 9110 §10.2.3).
        retry_after: Option<Duration>,
    },
    /// Retrying helps only after someone has changed something here or at the vendor.
    #[error("{0}")]
    Rejected(String),
    /// Retrying is harmful or useless until a person consents.
    #[error("{0}")]
    Reauthorize(String),
}

impl FetchError {
    /// Returns the kind of failure, for spans and logs.
    fn kind(&self) -> &'static str {
        match self {
            Self::Temporary { .. } => "temporary",
            Self::Rejected(_) => "rejected",
            Self::Reauthorize(_) => "reauthorize",
        }
    }
}

/// The current credential of one vendor. Written by one task, loaded by every request.
pub struct Credential {
    current: ArcSwapOption<Held>,
    renewal: watch::Sender<RenewalState>,
    refresh_requested: Notify,
    check_secrets: Notify,
    /// Generation of the newest credential.
    generation: AtomicU64,
    renewable: bool,
    evictions: Evictions,
    /// Set when replicas take it from a store and so do not evict each other's.
    shared: bool,
}

impl Credential {
    /// Returns the credential to use now: one atomic load, no lock, no waiting, no allocation.
    ///
    /// # Errors
    /// [`Unavailable`] when there is none, or only an expired one.
    pub fn current(&self) -> Result<Arc<Held>, Unavailable> {
        match self.current.load_full() {
            Some(held) if held.usable() => Ok(held),
            _ => Err(self.unavailable()),
        }
    }

    /// Returns [`Credential::current`], waiting up to `at_most` while an attempt to obtain it is
    /// running or due within that time.
    ///
    /// # Errors
    /// [`Unavailable`], at once when waiting cannot help.
    pub async fn wait(&self, at_most: Duration) -> Result<Arc<Held>, Unavailable> {
        let deadline = Instant::now() + at_most;
        let mut renewal = self.renewal.subscribe();
        loop {
            // Read before the load, so that later publications wake us.
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

    /// Returns, after [`Held::reject`], the next published credential that is not `held`, waiting
    /// up to `at_most`; `None`, as early as it is certain, when there will be none by then.
    pub async fn newer_than(&self, held: &Arc<Held>, at_most: Duration) -> Option<Arc<Held>> {
        let deadline = Instant::now() + at_most;
        let mut renewal = self.renewal.subscribe();
        loop {
            let may_come = {
                let renewal = renewal.borrow_and_update();
                // The task may not have seen the rejection yet, but its reaction is known.
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

    /// Records that a request for which `before` was rejected succeeded with a newer credential.
    /// Returns `true` if `before` was evicted long before it expired and this is the first report
    /// of it.
    pub fn record_eviction(&self, before: &Held) -> bool {
        let now = Instant::now();
        let evicted = before.half_life.is_some_and(|half_life| now < half_life)
            && !before.evicted.swap(true, Ordering::Relaxed);
        if evicted {
            self.evictions.add(now);
        }
        evicted
    }

    /// Returns the state for `/status`, `/metrics` and `/readyz`.
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

    /// Reads the secrets again and renews the credential at once, at most once a second: an
    /// operator asks for it.
    pub fn refresh_now(&self) {
        self.refresh_requested.notify_one();
    }

    /// Checks the secrets now instead of within seconds, and renews the credential only if they
    /// have changed.
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

    /// Returns how long the current credential can still be used; `None`: for ever.
    fn usable_for(&self) -> Option<Duration> {
        match self.current.load_full() {
            Some(held) => held.usable_until.map(|until| until.left()),
            None => Some(Duration::ZERO),
        }
    }

    /// Checks the credential against the wall clock after that was set. By the wall clock a token
    /// may have expired that is valid by `CLOCK_BOOTTIME`: the virtual machine was paused, or the
    /// clock was wrong before. Such a token is held back until an attempt has ended. Returns `true`
    /// if there is one.
    fn suspect(&self) -> bool {
        let held = self.current.load_full();
        held.is_some_and(|held| held.suspect())
    }

    /// Ends the suspicion of [`Credential::suspect`], because there is nothing better.
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

    /// Publishes `issued`, of this account, as the credential of all later requests.
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
            published: Moment::now(),
            expires_at: issued
                .lifetime
                .and_then(|lifetime| wall_clock(lifetime.end)),
            expires: issued.lifetime.map(|lifetime| End::at(lifetime.end)),
            usable_until: issued.lifetime.map(|lifetime| {
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
    /// Time of its publication.
    published: Moment,
    /// The vendor's stated expiry, on the wall clock of that time.
    expires_at: Option<SystemTime>,
    /// The vendor's stated expiry.
    expires: Option<End>,
    /// End of its use.
    usable_until: Option<End>,
    /// Suspicion by the wall clock: see [`Credential::suspect`].
    suspicion: AtomicU8,
    /// Half of its lifetime; until then its expiry is far away.
    half_life: Option<Instant>,
    rejection: Notify,
    rejected: AtomicBool,
    /// Set once its eviction has been counted.
    evicted: AtomicBool,
}

impl Held {
    /// Returns the finished values, made once, all marked sensitive. Bearer kinds and `basic`: the
    /// value of `Authorization`. `headers`: one per configured name, in that order. `query`: one
    /// value, `a=1&b=2`, percent-encoded, to be appended.
    #[must_use]
    pub fn values(&self) -> &[HeaderValue] {
        &self.values
    }

    /// Returns the number of this credential among those published for this vendor: 1, 2, 3 …
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns `false` for credentials that another request would not change: they are never
    /// rejected and never replayed.
    #[must_use]
    pub fn renewable(&self) -> bool {
        self.renewable
    }

    /// Tells the refresh task that the vendor answered 401 to this very credential. A call on one
    /// that has been replaced has no effect, so a burst of 401s costs one fetch.
    pub fn reject(&self) {
        if self.renewable {
            self.rejected.store(true, Ordering::Release);
            self.rejection.notify_one();
        }
    }

    /// Tells whether it may be sent. Every request notices a suspended machine here; the refresh
    /// task checks the wall clock.
    fn usable(&self) -> bool {
        self.usable_until.is_none_or(|until| !until.has_come())
            && self.suspicion.load(Ordering::Acquire) != SUSPECTED
    }

    /// See [`Credential::suspect`].
    fn suspect(&self) -> bool {
        let forward = self.published.set_forward_until(&Moment::now());
        let ended = self
            .usable_until
            .is_some_and(|until| until.has_come_in(forward));
        let suspicion = &self.suspicion;
        !forward.is_zero()
            && ended
            && suspicion
                .compare_exchange(UNSUSPECTED, SUSPECTED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }

    /// Returns the vendor's stated expiry, for people and dashboards, on the current wall clock.
    fn expires_at(&self) -> Option<SystemTime> {
        let (then, now) = (self.expires_at?, self.expires?.on_the_wall()?);
        let moved = now
            .duration_since(then)
            .unwrap_or_else(|back| back.duration());
        // Two readings of two clocks always differ a little.
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

/// There is no credential to put on a request right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credential {}, next attempt in {} s", reason.word(), retry_after.as_secs())]
pub struct Unavailable {
    /// Time after which a retry may help: 1 to 60 whole seconds.
    pub retry_after: Duration,
    /// State of the credential that is not usable.
    pub reason: State,
}

/// State of a credential, as `/status` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The first fetch is in progress.
    Pending,
    /// Usable, with nothing to do.
    Fresh,
    /// Usable, while a renewal is running or being retried.
    Refreshing,
    /// The credential has expired and cannot be renewed at the moment.
    Expired,
    /// Rejected by the vendor, or never obtained.
    Failed,
    /// A person must consent: `countersign authorize`.
    Reauthorize,
    /// Used as configured.
    Static,
}

impl State {
    /// Every state, in the order of their meaning, for metrics that name all of them.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Fresh,
        Self::Refreshing,
        Self::Expired,
        Self::Failed,
        Self::Reauthorize,
        Self::Static,
    ];

    /// Returns the word in `/status`, `/metrics` and logs.
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

/// Status of one credential, as others see it.
#[derive(Clone, Debug)]
pub struct Status {
    /// See [`State`].
    pub state: State,
    /// The vendor's stated expiry of the current credential; use stops a little earlier.
    pub expires_at: Option<SystemTime>,
    /// Time at which the next attempt starts by itself.
    pub refresh_at: Option<SystemTime>,
    /// Time at which the newest credential was obtained.
    pub last_refresh: Option<SystemTime>,
    /// Error of the last attempt; `None` if it succeeded.
    pub last_error: Option<String>,
    /// Generation of the newest credential; 0: none yet.
    pub generation: u64,
    /// `true` once the first attempt has ended, whatever its result.
    pub settled: bool,
    /// `true` once there has been a usable credential.
    pub ever_usable: bool,
}

/// A credential's refresh task, which ends when this is dropped. The credential itself stays usable
/// until it expires.
pub struct RefreshTask {
    task: AbortHandle,
    /// Revokes the grant on a clean stop.
    revocation: Option<Revocation>,
}

impl RefreshTask {
    /// Ends the refresh task and, where the configuration asks for it, revokes the grant at its
    /// server within 3 s: for a clean stop. The outcome is logged.
    pub async fn stop(&self) {
        self.task.abort();
        if let Some(revocation) = &self.revocation {
            revocation.run().await;
        }
    }

    /// Ends the refresh task and keeps the grant: for the stop of a process whose successor may use
    /// the grant from the same store.
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

/// The reason why a credential cannot be started.
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
        /// Names the secret and the reason.
        cause: String,
    },
}

/// Starts keeping `vendor`'s credential fresh. Must be called inside a tokio runtime, on which the
/// task then lives. `previous`, of the same account, is used until the first success or until it
/// expires, so that a change of configuration fails no request.
///
/// # Errors
/// Fails when the vendor has no `auth`, or a static credential cannot be made from its secrets.
/// Token kinds never fail here; their first fetch does.
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
            // Read at once, so that no request waits for it.
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
    // Kinds without tokens request nothing.
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
    let refreshing = keep_fresh(credential.clone(), source, name, metrics, request_timeout);
    let refresh_task = RefreshTask {
        task: tokio::spawn(refreshing).abort_handle(),
        revocation: revoked
            .map(|config| Revocation::new(config, vendor, store, credential.clone())),
    };
    Ok((credential, refresh_task))
}

/// The source of a credential.
struct Origin<'a> {
    source: Read,
    /// The server at which a clean stop revokes the grant.
    revoked: Option<&'a config::Vedauth>,
}

/// The way a credential is obtained.
enum Read {
    /// Used as configured.
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

/// Values of [`Held::suspicion`]: nothing speaks against the token; the wall clock does; it does,
/// but an attempt to obtain a better one has failed.
const UNSUSPECTED: u8 = 0;
const SUSPECTED: u8 = 1;
const CONFIRMED: u8 = 2;

const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests;
