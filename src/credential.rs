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
#[cfg(test)]
pub(crate) mod fakes;
mod fixed;
mod inputs;
mod oauth2;
mod pace;
mod rotation;
mod token_request;
mod vedauth;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use crate::config::{self, Auth};
use crate::metrics::FetchMetrics;
use crate::store::Store;
use fixed::{Fixed, Shape};
use oauth2::{ClientCredentials, CodeServer};
use pace::{Forced, MIN_PAUSE};
use rotation::Rotation;
use vedauth::{Unrefreshed, Vedauth};

/// Obtains a credential. Implement this to add a kind of credential.
#[async_trait]
trait Source: Send + Sync + 'static {
    /// One attempt, without retries: pacing and back-off belong to [`keep_fresh`], which may drop
    /// the future at any time.
    async fn fetch(&self) -> Result<Issued, FetchError>;

    /// Returns when an attempt may bring something else than the last one did, although none is
    /// due: a secret was changed, someone consented. May be dropped and called again.
    async fn changed(&self);
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

/// What we hold for one vendor now. Written by one task, loaded by every request.
pub struct Credential {
    current: ArcSwapOption<Held>,
    board: watch::Sender<Board>,
    operator: Notify,
    renewable: bool,
}

impl Credential {
    /// The credential to use now: one atomic load, no lock, no waiting, no allocation.
    ///
    /// # Errors
    /// [`Unavailable`] when there is none, or only one past its end.
    pub fn current(&self) -> Result<Arc<Held>, Unavailable> {
        match self.current.load_full() {
            Some(held) if held.usable(Instant::now()) => Ok(held),
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
        let mut board = self.board.subscribe();
        loop {
            // Before the load: what is published afterwards wakes us.
            let hope = board.borrow_and_update().attempt_by(deadline);
            match self.current() {
                Ok(held) => return Ok(held),
                Err(unavailable) if !hope => return Err(unavailable),
                Err(_) => {}
            }
            if timeout_at(deadline, board.changed()).await.is_err() {
                return self.current();
            }
        }
    }

    /// After [`Held::reject`]: the next published credential that is not `held`, waiting up to
    /// `at_most`; `None`, as early as it is certain, when there will be none by then.
    pub async fn newer_than(&self, held: &Arc<Held>, at_most: Duration) -> Option<Arc<Held>> {
        let deadline = Instant::now() + at_most;
        let mut board = self.board.subscribe();
        loop {
            let hope = {
                let board = board.borrow_and_update();
                // The task may not have heard of the rejection yet; what it will do is known.
                let forced = held.rejected.load(Ordering::Acquire)
                    && board.forced_from.is_some_and(|from| from <= deadline);
                forced || board.attempt_by(deadline)
            };
            match self.current() {
                Ok(newer) if !Arc::ptr_eq(&newer, held) => return Some(newer),
                _ if !hope => return None,
                _ => {}
            }
            timeout_at(deadline, board.changed()).await.ok()?.ok()?;
        }
    }

    /// For `/status`, `/metrics` and `/readyz`.
    #[must_use]
    pub fn status(&self) -> Status {
        let held = self.current.load_full();
        let board = self.board.borrow();
        Status {
            state: self.state(held.as_deref(), &board),
            expires_at: board.expires_at,
            refresh_at: board.refresh_at,
            last_refresh: board.last_refresh,
            last_error: board.last_error.clone(),
            generation: held.as_ref().map_or(0, |held| held.generation),
            settled: board.settled,
            ever_usable: held.is_some(),
        }
    }

    /// An operator asks: secrets are read again and the credential is renewed at once, at most
    /// once a second.
    pub fn refresh_now(&self) {
        self.operator.notify_one();
    }

    fn new(renewable: bool) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            board: watch::Sender::new(Board::default()),
            operator: Notify::new(),
            renewable,
        }
    }

    fn state(&self, held: Option<&Held>, board: &Board) -> State {
        if !self.renewable {
            return State::Static;
        }
        match (board.outcome, held) {
            (Outcome::Reauthorize, _) => State::Reauthorize,
            (Outcome::Rejected, _) | (Outcome::Temporary, None) => State::Failed,
            (Outcome::None | Outcome::Ok, None) => State::Pending,
            (_, Some(held)) if !held.usable(Instant::now()) => State::Expired,
            (Outcome::Temporary, Some(_)) => State::Refreshing,
            (Outcome::None | Outcome::Ok, Some(_)) if board.attempting => State::Refreshing,
            (Outcome::None | Outcome::Ok, Some(_)) => State::Fresh,
        }
    }

    fn unavailable(&self) -> Unavailable {
        let held = self.current.load_full();
        let board = self.board.borrow();
        let pause = match board.next {
            _ if board.attempting => Duration::ZERO,
            Some(next) => next.saturating_duration_since(Instant::now()),
            None => MAX_RETRY_AFTER,
        };
        let seconds = pause.as_secs_f64().ceil();
        Unavailable {
            retry_after: Duration::from_secs_f64(seconds).clamp(MIN_PAUSE, MAX_RETRY_AFTER),
            reason: self.state(held.as_deref(), &board),
        }
    }

    /// Makes `issued` the credential of every request from now on.
    fn publish(&self, issued: Issued) -> Arc<Held> {
        let before = self.current.load_full();
        if let Some(before) = &before
            && !self.renewable
            && *before.values == *issued.values
        {
            return before.clone();
        }
        let held = Arc::new(Held {
            values: issued.values.into_boxed_slice(),
            generation: before.map_or(1, |before| before.generation + 1),
            renewable: self.renewable,
            until: issued.lifetime.map(|lifetime| {
                let unused = lifetime
                    .total
                    .saturating_sub(pace::usable_for(lifetime.total));
                lifetime.end.checked_sub(unused).unwrap_or(lifetime.end)
            }),
            rejection: Notify::new(),
            rejected: AtomicBool::new(false),
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
    renewable: bool,
    /// No longer used from here on.
    until: Option<Instant>,
    rejection: Notify,
    rejected: AtomicBool,
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

    fn usable(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
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
    /// The vendor's stated end of the newest credential; use stops a little earlier.
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

/// Ends its credential's refresh task when dropped. The credential itself stays usable to its end.
#[derive(Debug)]
pub struct Keeper(AbortHandle);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
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
) -> Result<(Arc<Credential>, Keeper), StartError> {
    let auth = vendor
        .auth
        .as_ref()
        .ok_or_else(|| StartError::NoAuth(vendor.name.clone()))?;
    let fixed = |shape| {
        let fixed = Fixed::new(shape);
        // At once, so that no request ever waits for what is already here.
        let issued = fixed.read().map_err(|cause| StartError::Secret {
            vendor: vendor.name.clone(),
            cause: cause.to_string(),
        })?;
        let credential = Credential::new(false);
        credential.publish(issued);
        Ok::<_, StartError>((credential, Arc::new(fixed) as Arc<dyn Source>))
    };
    let token = |source: Arc<dyn Source>| (Credential::new(true), source);
    let (credential, source) = match auth {
        Auth::Bearer { token } => fixed(Shape::Bearer(token.clone()))?,
        Auth::Basic { username, password } => fixed(Shape::Basic {
            username: username.clone(),
            password: password.clone(),
        })?,
        Auth::Headers(headers) => fixed(Shape::Headers(
            headers.iter().map(|(_, value)| value.clone()).collect(),
        ))?,
        Auth::Query(pairs) => fixed(Shape::Query(pairs.clone()))?,
        Auth::ClientCredentials(config) => token(Arc::new(ClientCredentials::new(config, vendor))),
        Auth::AuthorizationCode(config) => {
            let (server, inputs) = CodeServer::new(config, vendor);
            token(Arc::new(Rotation::new(
                server,
                inputs,
                store,
                vendor,
                config.times,
            )))
        }
        Auth::Vedauth(config) => {
            let (server, inputs) = Vedauth::new(config, vendor);
            if config.refresh {
                token(Arc::new(Rotation::new(
                    server,
                    inputs,
                    store,
                    vendor,
                    config.times,
                )))
            } else {
                token(Arc::new(Unrefreshed { server, inputs }))
            }
        }
    };
    let request_timeout = match auth {
        Auth::ClientCredentials(config) => config.times.request_timeout,
        Auth::AuthorizationCode(config) => config.times.request_timeout,
        Auth::Vedauth(config) => config.times.request_timeout,
        // Nothing is requested.
        Auth::Bearer { .. } | Auth::Basic { .. } | Auth::Headers(_) | Auth::Query(_) => {
            Duration::ZERO
        }
    };
    if let Some(previous) = previous
        && credential.renewable
        && previous.renewable
    {
        credential.current.store(Some(previous));
    }
    let credential = Arc::new(credential);
    let name = vendor.name.clone();
    let keeping = keep_fresh(credential.clone(), source, name, metrics, request_timeout);
    let task = tokio::spawn(keeping);
    Ok((credential, Keeper(task.abort_handle())))
}

/// What the refresh task tells those who wait and those who look.
#[derive(Debug, Default)]
struct Board {
    attempting: bool,
    /// When the next attempt starts by itself; `None`: not before something happens.
    next: Option<Instant>,
    /// From when on a rejection of the current credential starts an attempt; `None`: the
    /// rejection changes nothing, because an attempt is overdue as it is.
    forced_from: Option<Instant>,
    outcome: Outcome,
    settled: bool,
    expires_at: Option<SystemTime>,
    refresh_at: Option<SystemTime>,
    last_refresh: Option<SystemTime>,
    last_error: Option<String>,
}

impl Board {
    /// Whether an attempt is running or starts by itself before `deadline`. True before the first
    /// attempt: its task has been spawned.
    fn attempt_by(&self, deadline: Instant) -> bool {
        self.attempting || !self.settled || self.next.is_some_and(|next| next <= deadline)
    }
}

/// How the last attempt ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Outcome {
    #[default]
    None,
    Ok,
    Temporary,
    Rejected,
    Reauthorize,
}

/// Keeps `credential` fresh until dropped. A failed fetch leaves the last one in place: it is
/// served until its own end, not until our first failure to replace it.
async fn keep_fresh(
    credential: Arc<Credential>,
    source: Arc<dyn Source>,
    vendor: String,
    metrics: FetchMetrics,
    request_timeout: Duration,
) {
    let mut failures = 0;
    let mut forced = Forced::default();
    loop {
        let started = Instant::now();
        credential.board.send_modify(|board| {
            board.attempting = true;
            board.refresh_at = None;
        });
        // Sources keep their own, shorter limits; this one only makes a forgotten one harmless.
        let limit = request_timeout
            .saturating_mul(4)
            .saturating_add(Duration::from_secs(30));
        let outcome = timeout(limit, source.fetch()).await.unwrap_or_else(|_| {
            Err(FetchError::Temporary {
                cause: format!("no outcome within {} s", limit.as_secs()),
                retry_after: None,
            })
        });
        metrics.duration.observe(started.elapsed().as_secs_f64());

        let next = match outcome {
            Ok(issued) => {
                failures = 0;
                metrics.ok.inc();
                let lifetime = issued.lifetime;
                let held = credential.publish(issued);
                let now = Instant::now();
                let next = lifetime.map(|Lifetime { total, end }| {
                    let margin = total.saturating_sub(pace::renew_after(total, request_timeout));
                    end.checked_sub(margin).unwrap_or(now)
                });
                credential.board.send_modify(|board| {
                    board.outcome = Outcome::Ok;
                    board.last_refresh = Some(SystemTime::now());
                    board.last_error = None;
                    board.expires_at = lifetime.and_then(|lifetime| wall_clock(lifetime.end));
                });
                info!(
                    vendor,
                    generation = held.generation,
                    expires_in_s = lifetime.map(|l| l.end.saturating_duration_since(now).as_secs()),
                    renew_in_s = next.map(|at| at.saturating_duration_since(now).as_secs()),
                    "credential obtained"
                );
                next
            }
            Err(error) => {
                let cause = error.to_string();
                let (outcome, pause) = match &error {
                    FetchError::Temporary { retry_after, .. } => {
                        failures += 1;
                        metrics.temporary.inc();
                        let pause = retry_after.unwrap_or_else(|| pace::back_off(failures));
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
                    outcome = ?outcome,
                    retry_in_s = pause.map(|pause| pause.as_secs_f64()),
                    "credential not obtained: {cause}"
                );
                credential.board.send_modify(|board| {
                    board.outcome = outcome;
                    board.last_error = Some(cause);
                });
                pause.map(|pause| Instant::now() + pause)
            }
        };
        pause_until_due(
            &credential,
            source.as_ref(),
            started + MIN_PAUSE,
            next,
            &mut forced,
        )
        .await;
    }
}

/// Waits until the next attempt must start: when `next` has come, or sooner when something
/// happens, but not before `floor`.
async fn pause_until_due(
    credential: &Credential,
    source: &dyn Source,
    floor: Instant,
    next: Option<Instant>,
    forced: &mut Forced,
) {
    let mut due = next.map(|next| next.max(floor));
    // After a failure the next attempt is on its way, and the server's wish to be left alone
    // counts more than one more 401.
    let held = (credential.board.borrow().outcome == Outcome::Ok)
        .then(|| credential.current.load_full())
        .flatten();
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
            tokio::select! {
                () = credential.operator.notified() => {}
                () = source.changed() => {}
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
                due = Some(due.map_or(floor, |due| due.min(floor)));
            }
            () = alarm => break,
        }
    }
    if rejected {
        forced.start(Instant::now());
    }
}

/// `at` on the wall clock, for people and dashboards.
fn wall_clock(at: Instant) -> Option<SystemTime> {
    let now = Instant::now();
    if at >= now {
        SystemTime::now().checked_add(at - now)
    } else {
        SystemTime::now().checked_sub(now - at)
    }
}

const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicUsize;

    use parking_lot::Mutex;
    use proptest::prelude::*;
    use tokio::time::{advance, sleep};

    use super::fakes::{TokenServer, answer, json, metrics, value, vendor};
    use super::*;
    use crate::config::SecretRef;

    const MINUTE: Duration = Duration::from_mins(1);

    /// Answers from a script, each answer after its delay; fails once the script has run out.
    #[derive(Default)]
    struct Script {
        steps: Mutex<VecDeque<(Duration, Result<Token, FetchError>)>>,
        calls: Mutex<Vec<Instant>>,
        change: Notify,
    }

    #[derive(Debug)]
    struct Token {
        text: String,
        lifetime: Duration,
    }

    #[async_trait]
    impl Source for Script {
        async fn fetch(&self) -> Result<Issued, FetchError> {
            let asked = Instant::now();
            self.calls.lock().push(asked);
            let step = self.steps.lock().pop_front();
            let (delay, answer) = step.unwrap_or((Duration::ZERO, Err(down())));
            sleep(delay).await;
            let token = answer?;
            Ok(Issued {
                values: vec![HeaderValue::from_str(&token.text).unwrap()],
                lifetime: Some(Lifetime {
                    total: token.lifetime,
                    end: asked + token.lifetime,
                }),
            })
        }

        async fn changed(&self) {
            self.change.notified().await;
        }
    }

    impl Script {
        fn then(&self, answer: Result<Token, FetchError>) -> &Self {
            self.after(Duration::ZERO, answer)
        }

        fn after(&self, delay: Duration, answer: Result<Token, FetchError>) -> &Self {
            self.steps.lock().push_back((delay, answer));
            self
        }

        fn calls(&self) -> usize {
            self.calls.lock().len()
        }

        /// Starts keeping a credential from this script.
        fn start(script: &Arc<Self>) -> Arc<Credential> {
            let credential = Arc::new(Credential::new(true));
            let timeout = Duration::from_secs(10);
            let (name, source) = ("acme".to_owned(), script.clone());
            tokio::spawn(keep_fresh(
                credential.clone(),
                source,
                name,
                metrics(),
                timeout,
            ));
            credential
        }
    }

    fn script() -> Arc<Script> {
        Arc::new(Script::default())
    }

    #[expect(clippy::unnecessary_wraps, reason = "a step of a script")]
    fn token(text: &str, seconds: u64) -> Result<Token, FetchError> {
        Ok(Token {
            text: text.to_owned(),
            lifetime: Duration::from_secs(seconds),
        })
    }

    fn down() -> FetchError {
        FetchError::Temporary {
            cause: "down".into(),
            retry_after: None,
        }
    }

    fn refused() -> FetchError {
        FetchError::Rejected("invalid_client".into())
    }

    fn text(held: &Held) -> &str {
        held.values()[0].to_str().unwrap()
    }

    fn in_use(credential: &Credential) -> Result<String, State> {
        let current = credential
            .current()
            .map_err(|unavailable| unavailable.reason);
        current.map(|held| text(&held).to_owned())
    }

    /// Lets the refresh task do what is due now.
    async fn settle() {
        sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_at_65_to_75_percent_of_its_lifetime() {
        let script = script();
        script.then(token("one", 1000)).then(token("two", 1000));
        let credential = Script::start(&script);
        settle().await;

        sleep(Duration::from_secs(648)).await;
        assert_eq!(in_use(&credential), Ok("one".into()));
        sleep(Duration::from_secs(103)).await;
        assert_eq!(in_use(&credential), Ok("two".into()));
        assert_eq!(credential.current().unwrap().generation(), 2);
        assert_eq!(script.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_served_until_its_hard_end_when_renewal_fails_and_not_longer() {
        let script = script();
        script.then(token("only", 1000));
        let credential = Script::start(&script);

        sleep(Duration::from_secs(700)).await;
        script.then(Err(down())).then(Err(down()));
        sleep(Duration::from_secs(289)).await;
        assert_eq!(in_use(&credential), Ok("only".into()));
        assert_eq!(credential.status().state, State::Refreshing);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(in_use(&credential), Err(State::Expired));
        assert_eq!(credential.status().state, State::Expired);
        assert_eq!(credential.status().last_error.as_deref(), Some("down"));

        script.then(token("new", 1000));
        sleep(MINUTE).await;
        assert_eq!(in_use(&credential), Ok("new".into()));
        assert_eq!(credential.status().last_error, None);
    }

    #[tokio::test(start_paused = true)]
    async fn many_rejections_of_one_token_cost_one_fetch_and_late_ones_none() {
        let script = script();
        script
            .then(token("a", 3600))
            .then(token("b", 3600))
            .then(token("c", 3600));
        let credential = Script::start(&script);
        sleep(Duration::from_secs(5)).await;
        let refused = credential.current().unwrap();

        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let (credential, refused) = (credential.clone(), refused.clone());
                tokio::spawn(async move {
                    refused.reject();
                    let newer = credential
                        .newer_than(&refused, Duration::from_secs(5))
                        .await;
                    text(&newer.unwrap()).to_owned()
                })
            })
            .collect();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), "b");
        }
        sleep(MINUTE).await;
        refused.reject();
        sleep(MINUTE).await;

        assert_eq!(in_use(&credential), Ok("b".into()));
        assert_eq!(script.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_vendor_that_refuses_every_token_costs_a_fetch_per_ten_seconds_and_then_fewer() {
        let script = script();
        for n in 0..100 {
            script.then(token(&n.to_string(), 86_400));
        }
        let credential = Script::start(&script);
        settle().await;

        for _ in 0..36_000 {
            credential.current().unwrap().reject();
            advance(Duration::from_millis(100)).await;
        }

        let calls = script.calls.lock().clone();
        let pauses: Vec<_> = calls
            .windows(2)
            .map(|two| (two[1] - two[0]).as_secs())
            .collect();
        assert_eq!(pauses.len(), 11, "{pauses:?}");
        assert_eq!(pauses[1..], [10, 20, 40, 80, 160, 320, 600, 600, 600, 600]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_newer_token_is_sent_on_at_once_when_none_can_come_in_time() {
        let script = script();
        script
            .then(token("a", 3600))
            .then(token("b", 3600))
            .then(token("c", 3600));
        let credential = Script::start(&script);
        settle().await;

        let a = credential.current().unwrap();
        a.reject();
        let b = credential
            .newer_than(&a, Duration::from_secs(5))
            .await
            .unwrap();
        b.reject();
        let asked = Instant::now();
        assert!(
            credential
                .newer_than(&b, Duration::from_secs(5))
                .await
                .is_none()
        );
        assert_eq!(asked.elapsed(), Duration::ZERO);

        let c = credential
            .newer_than(&b, Duration::from_secs(15))
            .await
            .unwrap();
        assert_eq!(text(&c), "c");
        let asked = Instant::now();
        assert!(
            credential
                .newer_than(&c, Duration::from_secs(5))
                .await
                .is_none()
        );
        assert_eq!(
            asked.elapsed(),
            Duration::ZERO,
            "not rejected: nothing is due"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn two_hundred_cold_requests_cost_one_fetch() {
        let script = script();
        script.after(Duration::from_secs(2), token("a", 3600));
        let credential = Script::start(&script);
        let waiters: Vec<_> = (0..200)
            .map(|_| {
                let credential = credential.clone();
                tokio::spawn(async move { credential.wait(Duration::from_secs(5)).await })
            })
            .collect();
        for waiter in waiters {
            assert_eq!(text(&waiter.await.unwrap().unwrap()), "a");
        }
        assert_eq!(script.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_wait_only_while_an_attempt_runs_or_is_due_in_time() {
        let script = script();
        script.after(Duration::from_secs(3), Err(refused()));
        let credential = Script::start(&script);

        // Too short for the running attempt.
        let asked = Instant::now();
        let pending = credential.wait(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(pending.reason, State::Pending);
        assert_eq!(asked.elapsed(), Duration::from_secs(1));

        // It ends in a refusal: the next one is minutes away, so nobody waits for it.
        let refused = credential.wait(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(asked.elapsed(), Duration::from_secs(3));
        assert_eq!(refused.reason, State::Failed);
        assert_eq!(refused.retry_after, MINUTE);
        assert_eq!(
            refused.to_string(),
            "credential failed, next attempt in 60 s"
        );
        let asked = Instant::now();
        credential.wait(Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(asked.elapsed(), Duration::ZERO);

        // An attempt that is due in time is waited for.
        script.then(token("a", 3600));
        sleep(Duration::from_secs(239)).await;
        assert_eq!(text(&credential.wait(MINUTE * 2).await.unwrap()), "a");
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_wish_to_be_left_alone_wins_over_our_back_off() {
        let script = script();
        let wish = Duration::from_mins(2);
        script.then(Err(FetchError::Temporary {
            cause: "busy".into(),
            retry_after: Some(wish),
        }));
        script.then(token("a", 3600));
        let credential = Script::start(&script);
        settle().await;
        assert_eq!(credential.status().state, State::Failed);

        sleep(Duration::from_secs(119)).await;
        assert_eq!(script.calls(), 1);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(in_use(&credential), Ok("a".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_repeated_after_minutes_or_as_soon_as_something_changed() {
        let script = script();
        for _ in 0..4 {
            script.then(Err(refused()));
        }
        let credential = Script::start(&script);
        settle().await;
        assert_eq!(credential.status().state, State::Failed);
        sleep(Duration::from_secs(239)).await;
        assert_eq!(script.calls(), 1);
        sleep(MINUTE * 2 + Duration::from_secs(2)).await;
        assert_eq!(script.calls(), 2);

        script.change.notify_one();
        settle().await;
        assert_eq!(script.calls(), 3);
        sleep(MIN_PAUSE).await;
        credential.refresh_now();
        settle().await;
        assert_eq!(script.calls(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_renewal_leaves_the_token_in_use_to_its_end() {
        let script = script();
        script.then(token("a", 1000)).then(Err(refused()));
        let credential = Script::start(&script);
        sleep(Duration::from_secs(800)).await;

        assert_eq!(in_use(&credential), Ok("a".into()));
        assert_eq!(credential.status().state, State::Failed);
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_person_is_needed_nothing_is_tried_until_something_changes() {
        let script = script();
        script.then(Err(FetchError::Reauthorize("consent".into())));
        script.then(token("a", 3600));
        let credential = Script::start(&script);
        sleep(MINUTE * 60 * 24).await;
        assert_eq!(script.calls(), 1);
        let unavailable = credential.current().unwrap_err();
        assert_eq!(unavailable.reason, State::Reauthorize);
        assert_eq!(unavailable.retry_after, MINUTE);

        script.change.notify_one();
        settle().await;
        assert_eq!(in_use(&credential), Ok("a".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_makes_two_attempts_come_within_a_second() {
        let script = script();
        for n in 0..200_u32 {
            script.then(match n % 3 {
                0 => token("a", 1),
                1 => Err(down()),
                _ => token("b", 3600),
            });
        }
        let credential = Script::start(&script);
        for _ in 0..10_000 {
            credential.refresh_now();
            script.change.notify_one();
            if let Ok(held) = credential.current() {
                held.reject();
            }
            advance(Duration::from_millis(10)).await;
        }

        let calls = script.calls.lock().clone();
        assert!(calls.len() > 90, "{}", calls.len());
        assert!(calls.windows(2).all(|two| two[1] - two[0] >= MIN_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_life_goes_through_its_states() {
        let script = script();
        script.after(Duration::from_secs(1), token("a", 1000));
        let credential = Script::start(&script);
        let state = || credential.status().state;
        assert_eq!(state(), State::Pending);
        assert!(!credential.status().settled && !credential.status().ever_usable);

        sleep(Duration::from_millis(1001)).await;
        assert_eq!(state(), State::Fresh);
        let status = credential.status();
        assert!(status.settled && status.ever_usable);
        assert_eq!(status.generation, 1);
        let left = status
            .expires_at
            .unwrap()
            .duration_since(SystemTime::now())
            .unwrap();
        assert!(
            left <= Duration::from_secs(999) && left > Duration::from_secs(990),
            "{left:?}"
        );
        assert!(status.refresh_at.is_some() && status.last_refresh.is_some());

        script.after(Duration::from_secs(5), Err(down()));
        script.after(Duration::from_secs(5), Err(refused()));
        let mut passed = vec![state()];
        for _ in 0..10_000 {
            advance(Duration::from_millis(100)).await;
            if passed.last() != Some(&state()) {
                passed.push(state());
            }
        }
        assert_eq!(
            passed[..3],
            [State::Fresh, State::Refreshing, State::Failed]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_keeper_stops_fetching() {
        let script = script();
        script.then(token("a", 1000));
        let credential = Arc::new(Credential::new(true));
        let task = tokio::spawn(keep_fresh(
            credential.clone(),
            script.clone(),
            "acme".into(),
            metrics(),
            MINUTE,
        ));
        let keeper = Keeper(task.abort_handle());
        settle().await;
        drop(keeper);
        sleep(MINUTE * 60).await;
        assert_eq!(script.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_never_answers_is_given_up_and_asked_again() {
        let script = script();
        script
            .after(MINUTE * 600, token("a", 1000))
            .then(token("b", 1000));
        let credential = Script::start(&script);
        sleep(MINUTE * 2).await;
        assert_eq!(in_use(&credential), Ok("b".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_credential_is_there_at_once_and_follows_its_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let token = SecretRef::File(path.clone());
        let store = crate::store::open(&config::Store::File {
            dir: dir.path().join("state"),
            encryption_key: None,
        });
        let (credential, _keeper) = start(
            &vendor(Auth::Bearer { token }),
            &store.unwrap(),
            metrics(),
            None,
        )
        .unwrap();

        let held = credential.current().unwrap();
        assert_eq!(text(&held), "Bearer one");
        assert!(!held.renewable());
        assert_eq!(credential.status().state, State::Static);
        for _ in 0..100 {
            held.reject();
        }
        sleep(MINUTE * 60).await;
        assert_eq!(credential.current().unwrap().generation(), 1);

        std::fs::write(&path, "two\n").unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(in_use(&credential), Ok("Bearer two".into()));
        std::fs::remove_file(&path).unwrap();
        sleep(MINUTE * 60).await;
        assert_eq!(in_use(&credential), Ok("Bearer two".into()));
        assert_eq!(credential.current().unwrap().generation(), 2);
        assert!(
            credential
                .status()
                .last_error
                .unwrap()
                .contains("cannot be read")
        );
        assert!(!dir.path().join("state").exists(), "the store was touched");
    }

    /// Real sockets, real time: a token of three seconds leaves a second and a half for a refused
    /// refresh and, a second later, a new grant.
    #[tokio::test]
    async fn a_refused_refresh_leads_to_a_new_grant_before_the_old_token_ends() {
        let pair = |n: u32| {
            json(&format!(
                r#"{{"access_token":"a{n}","refresh_token":"r{n}","expires_in":3}}"#
            ))
        };
        let revoked = "400 Grant has been revoked, has expired, or the refresh token is invalid";
        let replies = [pair(1), answer(revoked, "", ""), pair(2), pair(3)];
        let server = TokenServer::start(replies).await;
        let dir = tempfile::tempdir().unwrap();
        let store = crate::store::open(&config::Store::File {
            dir: dir.path().join("state"),
            encryption_key: None,
        })
        .unwrap();
        let auth = Auth::Vedauth(config::Vedauth {
            url: server.url("/vedauth"),
            client_id: value("MyApp"),
            scope: None,
            grant: config::VedauthGrant::Password {
                username: value("svc"),
                password: value("pw"),
            },
            refresh: true,
            times: fakes::times(),
        });
        let metrics = metrics();
        let (credential, _keeper) = start(&vendor(auth), &store, metrics.clone(), None).unwrap();

        let mut held = credential.wait(Duration::from_secs(5)).await.unwrap();
        let mut texts = vec![text(&held).to_owned()];
        while texts.len() < 3 {
            sleep(Duration::from_millis(5)).await;
            held = credential.current().expect("a gap without any token");
            // What is in use was stored before.
            let grant = store.load("acme").await.unwrap().unwrap();
            if texts.last().unwrap() != text(&held) {
                texts.push(text(&held).to_owned());
                let stored = grant.access.unwrap().token;
                assert_eq!(format!("Bearer {}", stored.expose()), text(&held));
            }
        }
        assert_eq!(texts, ["Bearer a1", "Bearer a2", "Bearer a3"]);
        let paths: Vec<_> = server.seen().iter().map(|seen| seen.line.clone()).collect();
        let path = |method| format!("POST /vedauth/authorize/{method} HTTP/1.1");
        assert_eq!(paths, ["oauth", "token", "oauth", "token"].map(path));
        assert_eq!(metrics.ok.get(), 3);
        assert_eq!(metrics.duration.get_sample_count(), 3);
    }

    #[tokio::test]
    async fn a_missing_secret_is_named_at_start() {
        let store = crate::store::open(&config::Store::File {
            dir: "nowhere".into(),
            encryption_key: None,
        })
        .unwrap();
        let token = SecretRef::Env("COUNTERSIGN_NO_SUCH_VARIABLE".into());
        let error = start(&vendor(Auth::Bearer { token }), &store, metrics(), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vendors.acme.auth: the environment variable COUNTERSIGN_NO_SUCH_VARIABLE is not set"
        );
        let mut none = vendor(Auth::Bearer { token: value("x") });
        none.auth = None;
        assert!(start(&none, &store, metrics(), None).is_err());
    }

    #[test]
    fn many_threads_read_whole_credentials_during_many_swaps() {
        let credential = Credential::new(true);
        let issue = |n: usize| Issued {
            values: vec![HeaderValue::from_str(&n.to_string()).unwrap(); 2],
            lifetime: None,
        };
        credential.publish(issue(1));
        let swaps = 100_000;
        let done = AtomicBool::new(false);
        let reads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !done.load(Ordering::Acquire) {
                        let held = credential.current().unwrap();
                        assert_eq!(held.values()[0], held.values()[1]);
                        assert_eq!(text(&held), held.generation().to_string());
                        assert!(held.generation() >= last, "an older one came back");
                        last = held.generation();
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for n in 2..=swaps {
                credential.publish(issue(n));
            }
            done.store(true, Ordering::Release);
        });
        assert!(reads.into_inner() > 1000);
        assert_eq!(credential.current().unwrap().generation(), swaps as u64);
    }

    #[test]
    fn nothing_printed_holds_a_value() {
        let credential = Credential::new(true);
        let held = credential.publish(Issued {
            values: vec![HeaderValue::from_static("hunter2")],
            lifetime: None,
        });
        let printed = format!("{credential:?} {held:?} {:?}", credential.status());
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    /// Any answer a token server may give.
    fn any_answer() -> impl Strategy<Value = (Duration, Result<u64, u8>)> {
        let answer = prop_oneof![(1_u64..10_000).prop_map(Ok), (0_u8..4).prop_map(Err)];
        ((0_u64..15_000).prop_map(Duration::from_millis), answer)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_server_answers_no_token_is_used_past_its_end_and_no_storm_breaks_out(
            answers in proptest::collection::vec(any_answer(), 1..30),
            events in proptest::collection::vec((0_u8..4, 1_u64..30_000), 1..100),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let script = script();
                for (delay, answer) in answers {
                    // The token's text is its lifetime.
                    script.after(delay, match answer {
                        Ok(seconds) => token(&seconds.to_string(), seconds),
                        Err(0) => Err(refused()),
                        Err(1) => Err(FetchError::Temporary {
                            cause: "busy".into(),
                            retry_after: Some(Duration::from_secs(7)),
                        }),
                        Err(_) => Err(down()),
                    });
                }
                let credential = Script::start(&script);
                let mut seen = std::collections::HashMap::new();
                for (event, pause) in events {
                    if let Ok(held) = credential.current() {
                        let since = *seen.entry(held.generation()).or_insert_with(Instant::now);
                        let lifetime = Duration::from_secs(text(&held).parse().unwrap());
                        assert!(since.elapsed() < lifetime, "used past its end");
                        if event == 0 {
                            held.reject();
                        }
                    }
                    match event {
                        1 => credential.refresh_now(),
                        2 => script.change.notify_one(),
                        _ => {}
                    }
                    sleep(Duration::from_millis(pause)).await;
                }
                let calls = script.calls.lock().clone();
                assert!(calls.windows(2).all(|two| two[1] - two[0] >= MIN_PAUSE));

                // The server is well again: so are we, within one step of the back-off.
                script.steps.lock().clear();
                for n in 0..1000 {
                    script.then(token(&n.to_string(), 3600));
                }
                sleep(MINUTE * 7).await;
                assert!(credential.current().is_ok());
            });
        }
    }
}
