//! Rotates grants whose refresh token is replaced at each use, without losing one.
//!
//! ```text
//! lock → read again → store the intent → spend, detached → store the result → publish → unlock
//! ```
//!
//! Storing the intent first proves that the store can be written before anything is spent. An
//! intent without a result (a crash, a response lost on the wire) allows one more try with the same
//! refresh token: its server either never received it, or says that it is invalid, and both are
//! clear. If that response is lost too, a server that grants without a person is asked for a new
//! grant. Where only a person could bring one, the token is sent again every few minutes, or when
//! an operator asks, because a server that was only out of order for a while has not seen it yet.
//!
//! Replicas that share a store share the grant. The first to renew has the lock; the others find
//! the new access token in the store, which they read before they spend and every few seconds. A
//! store that comes back without its contents gets them back from the replica that saw the newest.

mod in_flight;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::explanation::Verdict;
use super::inputs::Inputs;
use super::issuer::Issuer;
use super::token_request::{TokenError, TokenResponse};
use super::{FetchError, Issued, Lifetime, Probed, Source, probe, schedule};
use crate::config::{TokenTimes, Vendor};
use crate::secret::Secret;
use crate::store::{Access, Grant, Intent, Lock, Store, StoreError};
use crate::tls::sha256;
use in_flight::detached;
pub use in_flight::wait_for_refreshes;

/// A [`Source`] that renews by spending the refresh token it last received.
pub(super) struct Rotation<I>(Arc<Inner<I>>);

struct Inner<I> {
    issuer: I,
    inputs: Inputs,
    store: Arc<dyn Store>,
    vendor: String,
    request_timeout: Duration,
    state: Mutex<State>,
}

/// Knowledge of this process about the grant and the store.
#[derive(Default)]
struct State {
    /// Digest of the access token that was last handed out; handing it out again would help no one.
    handed_out: Option<[u8; 32]>,
    /// Set when it came from the store, where others use it as well.
    adopted: bool,
    /// Digest of what the store held at the last attempt.
    stored: Option<[u8; 32]>,
    /// The newest grant ever seen in the store.
    newest: Option<Grant>,
    /// Time of the last failed read of the store.
    store_failed: Option<Instant>,
    /// A grant that is not used until it is stored.
    unsaved: Option<Unsaved>,
    /// Set when somebody wants the next attempt, or something has changed since the last one.
    next_requested: bool,
    /// Set when somebody wanted the current attempt, or something had changed before it.
    current_requested: bool,
}

/// A grant that was issued and could not be stored.
struct Unsaved {
    grant: Grant,
    /// Fingerprint of the refresh token it was obtained with.
    spent: Option<String>,
    /// Kept, so that no one else sends that refresh token again.
    lock: Lock,
}

impl<I: Issuer> Rotation<I> {
    pub(super) fn new(
        issuer: I,
        inputs: Inputs,
        store: &Arc<dyn Store>,
        vendor: &Vendor,
        times: TokenTimes,
    ) -> Self {
        Self(Arc::new(Inner {
            issuer,
            inputs,
            store: store.clone(),
            vendor: vendor.name.clone(),
            request_timeout: times.request_timeout,
            state: Mutex::new(State::default()),
        }))
    }
}

/// Makes the source of grants that go through the store and are renewed when the inputs change.
pub(super) fn stored<I: Issuer>(
    (server, inputs): (I, Inputs),
    store: &Arc<dyn Store>,
    vendor: &Vendor,
    times: TokenTimes,
) -> Arc<dyn Source> {
    Arc::new(Rotation::new(server, inputs, store, vendor, times))
}

#[async_trait]
impl<I: Issuer> Source for Rotation<I> {
    fn account(&self) -> Option<[u8; 32]> {
        self.0.issuer.account()
    }

    fn adopted_from_store(&self) -> bool {
        self.0.state.lock().adopted
    }

    fn outdated(&self) -> bool {
        self.0.inputs.changed_since_snapshot()
    }

    fn end_pause(&self) {
        self.0.state.lock().next_requested = true;
    }

    async fn probe(&self) -> Result<Probed, String> {
        probe::issuer(&self.0.issuer, &self.0.store, &self.0.vendor).await
    }

    async fn fetch(&self) -> Result<Issued, FetchError> {
        let inner = &self.0;
        inner.inputs.snapshot();
        {
            let mut state = inner.state.lock();
            state.current_requested = std::mem::take(&mut state.next_requested);
        }
        let binding = inner.issuer.binding().map_err(FetchError::Rejected)?;
        let unsaved = inner.state.lock().unsaved.take();
        if let Some(unsaved) = unsaved.filter(|unsaved| unsaved.grant.binding == binding) {
            let storing = inner.clone();
            return detached(async move { storing.store_tokens(unsaved).await }).await;
        }
        if let Some(issued) = inner.adopt(inner.load(None).await?.as_ref(), &binding) {
            return Ok(issued);
        }
        // A living holder keeps the lock for one or two requests; a dead one leaves it to expire.
        let lock_timeout = inner.request_timeout * 2 + Duration::from_secs(5);
        let lease = lease(inner.request_timeout);
        let lock = inner.store.lock(&inner.vendor, lease, lock_timeout).await?;
        let mut grant = inner.load(Some(&lock)).await?;
        if inner.may_be_spent_elsewhere(grant.as_ref()) {
            sleep(STORE_POLL * 2).await;
            grant = inner.load(Some(&lock)).await?;
        }
        if let Some(issued) = inner.adopt(grant.as_ref(), &binding) {
            return Ok(issued);
        }
        let spending = inner.clone();
        detached(async move {
            spending
                .spend(lock, grant.unwrap_or_default(), binding)
                .await
        })
        .await
    }

    async fn changed(&self) {
        let inner = &self.0;
        let stored = async {
            loop {
                sleep(STORE_POLL).await;
                // A store that is down changes nothing; neither does its return, unless a grant
                // waits to be stored.
                match inner.read_store().await {
                    Ok(StoreRead::Current(grant)) => {
                        let relevant = inner.is_relevant(grant.as_ref());
                        let state = inner.state.lock();
                        let has_news = relevant && state.stored != digest(grant.as_ref());
                        if state.unsaved.is_some() || has_news {
                            return;
                        }
                    }
                    Ok(StoreRead::Stale { over, newest }) => {
                        // The next read shows whether it worked.
                        let _ = inner.restore(over, &newest, None).await;
                    }
                    Err(_) => {}
                }
            }
        };
        tokio::select! {
            () = stored => {}
            () = inner.inputs.changed() => {}
        }
    }
}

impl<I: Issuer> Inner<I> {
    /// Loads the stored grant, after restoring one that the store has lost.
    async fn load(&self, held: Option<&Lock>) -> Result<Option<Grant>, FetchError> {
        let grant = match self.read_store().await? {
            StoreRead::Current(grant) => grant,
            StoreRead::Stale { over, newest } => {
                self.restore(over, &newest, held).await?;
                match self.read_store().await? {
                    StoreRead::Current(grant) => grant,
                    StoreRead::Stale { newest, .. } => Some(*newest),
                }
            }
        };
        self.state.lock().stored = digest(grant.as_ref());
        Ok(grant)
    }

    async fn read_store(&self) -> Result<StoreRead, StoreError> {
        let loaded = self.store.load(&self.vendor).await;
        let mut state = self.state.lock();
        if loaded.is_err() {
            state.store_failed = Some(Instant::now());
        }
        let stored = loaded?;
        let over = stored.as_ref().map_or(0, |grant| grant.version);
        if let Some(newest) = &state.newest
            && newest.version > over
        {
            return Ok(StoreRead::Stale {
                over,
                newest: Box::new(newest.clone()),
            });
        }
        state.newest.clone_from(&stored);
        Ok(StoreRead::Current(stored))
    }

    /// Writes the newest known grant back to a store that was flushed, restored from an old copy,
    /// or lost its last writes in a failover.
    ///
    /// Another replica may know a newer one, or be about to store one. So no one spends this one
    /// for the length of a lease.
    async fn restore(
        &self,
        over: u64,
        newest: &Grant,
        held: Option<&Lock>,
    ) -> Result<(), StoreError> {
        let lease = lease(self.request_timeout);
        let lock = if held.is_none() {
            // Another holder spends something newer, or restores as we do.
            let lock = self.store.lock(&self.vendor, lease, Duration::ZERO);
            lock.await.ok()
        } else {
            None
        };
        self.store.replace(&self.vendor, over, newest).await?;
        warn!(
            vendor = self.vendor,
            "the store had lost its newest tokens; they were restored"
        );
        if held.is_some() {
            sleep(lease).await;
        } else if let Some(lock) = lock {
            tokio::spawn(async move {
                sleep(lease).await;
                drop(lock);
            });
        }
        Ok(())
    }

    /// Tells whether another replica may hold the response to this very refresh token, because the
    /// store was unavailable when it came. That replica stores it as soon as it can.
    fn may_be_spent_elsewhere(&self, grant: Option<&Grant>) -> bool {
        let intent = grant.and_then(|grant| grant.intent.as_ref());
        intent.is_some()
            && self
                .state
                .lock()
                .store_failed
                .is_some_and(|failed| failed.elapsed() < STORE_POLL * 5)
    }

    /// Tells whether a change in the store is worth an attempt. A token of a replica with another
    /// secret is not: the two would keep overwriting each other's.
    fn is_relevant(&self, grant: Option<&Grant>) -> bool {
        let is_ours = |grant: &Grant| {
            let binding = self.issuer.binding();
            binding.is_ok_and(|binding| binding == grant.binding)
        };
        !self.issuer.always_new_grant() || grant.is_none_or(is_ours)
    }

    async fn save(&self, grant: &mut Grant) -> Result<(), StoreError> {
        self.store.save(&self.vendor, grant).await?;
        self.remember(grant);
        Ok(())
    }

    /// Returns the stored access token if it is ours, still good and new to us: another process, an
    /// earlier run or `authorize` obtained it.
    fn adopt(&self, grant: Option<&Grant>, binding: &str) -> Option<Issued> {
        let access = grant
            .filter(|grant| grant.binding == binding)?
            .access
            .as_ref()?;
        let token = sha256(&[access.token.expose().as_bytes()]);
        if self.state.lock().handed_out == Some(token) {
            return None;
        }
        let issued = self.hand_out(access)?;
        self.state.lock().adopted = true;
        Some(issued)
    }

    fn hand_out(&self, access: &Access) -> Option<Issued> {
        // A clock that was set back makes the token look younger, but never younger than new.
        let age = SystemTime::now()
            .duration_since(access.issued)
            .unwrap_or_default();
        if age >= schedule::usable_for(access.lifetime) {
            return None;
        }
        let values = vec![access.token.to_header("Bearer ").ok()?];
        let token = sha256(&[access.token.expose().as_bytes()]);
        let mut state = self.state.lock();
        state.handed_out = Some(token);
        state.adopted = false;
        drop(state);
        Some(Issued {
            values,
            lifetime: Some(Lifetime {
                total: access.lifetime,
                end: Instant::now() + access.lifetime.saturating_sub(age),
            }),
        })
    }

    /// Turns the stored grant into an access token, or requests a new grant.
    async fn spend(
        &self,
        lock: Lock,
        mut grant: Grant,
        binding: String,
    ) -> Result<Issued, FetchError> {
        if self.issuer.always_new_grant() {
            return self.replace_token(lock, grant, binding).await;
        }
        let mut reason = "no consent is stored".to_owned();
        if grant.binding != binding {
            if !grant.binding.is_empty() {
                "the stored consent belongs to another client_id or another server"
                    .clone_into(&mut reason);
            }
            grant = Grant {
                version: grant.version,
                binding,
                ..Grant::default()
            };
        }
        // The second round is only for a grant that somebody else stored in the meantime.
        for _ in 0..2 {
            let Some(refresh_token) = grant.refresh_token.clone() else {
                break;
            };
            if grant
                .refresh_until
                .is_some_and(|until| until <= SystemTime::now() + TRANSIT_TIME)
            {
                "the grant has expired".clone_into(&mut reason);
                break;
            }
            let sent = fingerprint(&refresh_token);
            let previous = grant.intent.as_ref();
            let previous = previous.filter(|intent| intent.refresh_token.as_ref() == Some(&sent));
            if previous.is_some_and(|intent| intent.tries > MAX_LOST_RESPONSES)
                && self.issuer.grant().is_some()
            {
                "the responses to its refresh token were lost".clone_into(&mut reason);
                break;
            }
            if let Some(intent) = previous
                && let Some(pause) = self.lost_response_pause(intent)
            {
                return Err(FetchError::Temporary {
                    cause: self.lost_response_advice(
                        intent.tries,
                        "the stored refresh token is not sent for now",
                    ),
                    retry_after: Some(pause),
                });
            }
            match self.refresh(&lock, &mut grant, &refresh_token).await? {
                Refreshed::Renewed(response) => {
                    let spent = fingerprint(&refresh_token);
                    return self
                        .store_response(lock, grant, response, Some(spent))
                        .await;
                }
                Refreshed::Superseded(newer) => grant = *newer,
                Refreshed::InvalidToken(cause) => {
                    reason = cause;
                    break;
                }
            }
            let binding = grant.binding.clone();
            if let Some(issued) = self.adopt(Some(&grant), &binding) {
                return Ok(issued);
            }
        }
        self.new_grant(lock, grant, reason).await
    }

    /// Sends the refresh token to its server, with the intent stored around it.
    async fn refresh(
        &self,
        lock: &Lock,
        grant: &mut Grant,
        refresh_token: &Secret,
    ) -> Result<Refreshed, FetchError> {
        let sent = fingerprint(refresh_token);
        let previous = grant
            .intent
            .take()
            .filter(|intent| intent.refresh_token.as_ref() == Some(&sent));
        grant.intent = Some(Intent {
            refresh_token: Some(sent.clone()),
            at: SystemTime::now(),
            tries: previous.as_ref().map_or(0, |intent| intent.tries) + 1,
        });
        self.save(grant).await?;
        if lock.is_expired() {
            // The process was paused, or without the store, for so long that another may be
            // renewing.
            return Err(temporary("the lock expired before it was used".to_owned()));
        }

        let error = match self.issuer.refresh(refresh_token).await {
            Ok(response) => return Ok(Refreshed::Renewed(response)),
            Err(error) => error,
        };
        match &error {
            // It is unknown whether the token was spent; the intent stays to say so.
            TokenError::Temporary {
                cause,
                retry_after,
                not_received: false,
            } => {
                let tries = grant.intent.as_ref().map_or(0, |intent| intent.tries);
                Err(self.no_response(tries, cause, *retry_after))
            }
            TokenError::Refused {
                status,
                code,
                verdict,
                ..
            } if self.issuer.invalidates_grant(*status, *verdict)
                // Some servers say 400 and nothing else. If a response to this very token was lost
                // before, that is clear enough.
                || (previous.is_some()
                    && (*verdict == Verdict::ProbablyInvalid
                        || (*status == StatusCode::BAD_REQUEST && code.is_none()))) =>
            {
                if let Some(stored) = self.load(Some(lock)).await?
                    && stored.refresh_token.as_ref().map(fingerprint) != Some(sent)
                {
                    return Ok(Refreshed::Superseded(Box::new(stored)));
                }
                // Never sent again, not even after a restart.
                grant.refresh_token = None;
                grant.intent = None;
                self.save(grant).await?;
                Ok(Refreshed::InvalidToken(error.to_string()))
            }
            TokenError::Temporary { .. } | TokenError::Refused { .. } | TokenError::NotSent(_) => {
                // It was not spent, so it must not count against the next try.
                grant.intent = previous;
                if let Err(cause) = self.save(grant).await {
                    warn!(
                        vendor = self.vendor,
                        "an intent stays in the store: {cause}"
                    );
                }
                Err(self.refused(error))
            }
        }
    }

    /// Returns the error to report when `cause` has lost the response to a refresh token, the
    /// `tries`-th in a row.
    fn no_response(&self, tries: u32, cause: &str, retry_after: Option<Duration>) -> FetchError {
        if tries <= MAX_LOST_RESPONSES || self.issuer.grant().is_some() {
            return FetchError::Temporary {
                cause: cause.to_owned(),
                retry_after,
            };
        }
        FetchError::Temporary {
            cause: self.lost_response_advice(tries, cause),
            retry_after: retry_after.max(Some(schedule::after_refusal())),
        }
    }

    fn lost_response_advice(&self, tries: u32, cause: &str) -> String {
        let vendor = &self.vendor;
        format!(
            "{cause}; the refresh token was sent {tries} times without a response and may be spent: \
             it is sent again every few minutes, and at once by `POST /vendors/{vendor}/refresh`; \
             if it is invalid, run `countersign authorize {vendor}`"
        )
    }

    /// Returns how long the refresh token of this intent is not sent again automatically, because
    /// responses to it keep getting lost: its server may have a reason, and takes every use after
    /// the first for a theft. `None`: it may be sent.
    fn lost_response_pause(&self, intent: &Intent) -> Option<Duration> {
        if intent.tries <= MAX_LOST_RESPONSES || self.state.lock().current_requested {
            return None;
        }
        // After a clock was set back the time of the intent says nothing.
        let ago = SystemTime::now().duration_since(intent.at).ok()?;
        let pause = schedule::after_refusal();
        (ago < LOST_RESPONSE_PAUSE).then(|| pause.saturating_sub(ago))
    }

    /// Turns a refusal that leaves the refresh token intact into an error that says what a person
    /// can do.
    fn refused(&self, error: TokenError) -> FetchError {
        let vendor = &self.vendor;
        let unattended = self.issuer.grant().is_some();
        match error {
            TokenError::Refused { verdict, cause, .. } if !unattended => match verdict {
                Verdict::Invalid | Verdict::ProbablyInvalid => FetchError::Reauthorize(format!(
                    "{cause}; the consent seems to have expired: run `countersign authorize {vendor}`; \
                     or, if the client was refused and is accepted again, send \
                     `POST /vendors/{vendor}/refresh` to retry the stored refresh token"
                )),
                Verdict::Unclear => FetchError::Rejected(format!(
                    "{cause}; either the client is refused (its id, its secret, its rights), or the \
                     consent has expired: in that case run `countersign authorize {vendor}`"
                )),
                Verdict::Unrelated => FetchError::Rejected(cause),
            },
            TokenError::Refused { .. } | TokenError::Temporary { .. } | TokenError::NotSent(_) => {
                error.into()
            }
        }
    }

    /// Requests a token and stores it in place of the stored one.
    async fn replace_token(
        &self,
        lock: Lock,
        mut grant: Grant,
        binding: String,
    ) -> Result<Issued, FetchError> {
        let Some(request) = self.issuer.grant() else {
            return Err(FetchError::Rejected("no token can be requested".to_owned()));
        };
        // Proves that the store can be written: the server may revoke the current token when it
        // issues another, which must then reach the other replicas. Until then they use the stored
        // one.
        grant.intent = Some(Intent {
            refresh_token: None,
            at: SystemTime::now(),
            tries: 1,
        });
        self.save(&mut grant).await?;
        if lock.is_expired() {
            return Err(temporary("the lock expired before it was used".to_owned()));
        }
        let response = request.await?;
        grant.binding = binding;
        grant.refresh_token = None;
        grant.refresh_until = None;
        self.store_response(lock, grant, response, None).await
    }

    async fn new_grant(
        &self,
        lock: Lock,
        mut grant: Grant,
        reason: String,
    ) -> Result<Issued, FetchError> {
        let Some(request) = self.issuer.grant() else {
            return Err(FetchError::Reauthorize(format!(
                "{reason}; run `countersign authorize {}`",
                self.vendor
            )));
        };
        if grant.version > 0 {
            warn!(vendor = self.vendor, "requesting a new grant: {reason}");
        }
        // A grant that cannot be stored must not be requested: the server would pile up grants.
        grant.refresh_token = None;
        grant.refresh_until = None;
        grant.intent = Some(Intent {
            refresh_token: None,
            at: SystemTime::now(),
            tries: 1,
        });
        self.save(&mut grant).await?;
        let response = request.await?;
        self.store_response(lock, grant, response, None).await
    }

    async fn store_response(
        &self,
        lock: Lock,
        mut grant: Grant,
        response: TokenResponse,
        spent: Option<String>,
    ) -> Result<Issued, FetchError> {
        // RFC 6749 §6: without a new refresh token the old one stays valid.
        if response.refresh_token.is_some() {
            grant.refresh_token = response.refresh_token;
        }
        if response.refresh_until.is_some() {
            grant.refresh_until = response.refresh_until;
        }
        grant.intent = None;
        let left = response
            .lifetime
            .end
            .saturating_duration_since(Instant::now());
        let age = response.lifetime.total.saturating_sub(left);
        grant.access = Some(Access {
            token: response.access_token,
            issued: SystemTime::now() - age,
            lifetime: response.lifetime.total,
        });
        self.store_tokens(Unsaved { grant, spent, lock }).await
    }

    /// Stores the issued tokens, then hands out the access token.
    async fn store_tokens(&self, unsaved: Unsaved) -> Result<Issued, FetchError> {
        let Unsaved {
            mut grant,
            spent,
            lock,
        } = unsaved;
        let mut saved = self.store.save(&self.vendor, &mut grant).await;
        if matches!(saved, Err(StoreError::Conflict(_)))
            && let Ok(stored) = self.store.load(&self.vendor).await
        {
            let over = stored.as_ref().map_or(0, |stored| stored.version);
            let refresh_token = stored.as_ref().and_then(|s| s.refresh_token.as_ref());
            if over < grant.version || refresh_token.map(fingerprint) == spent {
                // Ours succeeds the stored grant, or the one that was there.
                let mut next = grant.clone();
                next.version = grant.version.max(over) + 1;
                saved = self.store.replace(&self.vendor, over, &next).await;
                if saved.is_ok() {
                    grant = next;
                }
            } else if let Some(stored) = stored {
                // The stored grant is ours, and only the confirmation was lost; or somebody
                // consented again while we could not write.
                grant = stored;
                saved = Ok(());
            }
        }
        if let Err(cause) = saved {
            self.state.lock().unsaved = Some(Unsaved { grant, spent, lock });
            return Err(temporary(format!(
                "new tokens were issued but cannot be stored; they are not used until they are \
                 stored: {cause}"
            )));
        }
        self.remember(&grant);
        drop(lock);
        grant
            .access
            .as_ref()
            .and_then(|access| self.hand_out(access))
            .ok_or_else(|| {
                temporary(
                    "the access token in the response expired at once, or cannot be sent".into(),
                )
            })
    }

    fn remember(&self, grant: &Grant) {
        let mut state = self.state.lock();
        state.stored = digest(Some(grant));
        state.newest = Some(grant.clone());
    }
}

/// Result of reading the store.
enum StoreRead {
    Current(Option<Grant>),
    /// Older than the newest grant we know: of the version `over`, or none (0).
    Stale {
        over: u64,
        newest: Box<Grant>,
    },
}

/// Result of sending a refresh token.
enum Refreshed {
    Renewed(TokenResponse),
    /// The token is invalid, and somebody else has stored another grant.
    Superseded(Box<Grant>),
    /// The token is invalid, for this reason.
    InvalidToken(String),
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        temporary(format!("store: {error}"))
    }
}

fn temporary(cause: String) -> FetchError {
    FetchError::Temporary {
        cause,
        retry_after: None,
    }
}

fn fingerprint(refresh_token: &Secret) -> String {
    hex::encode(sha256(&[refresh_token.expose().as_bytes()]))
}

/// Digests what other processes need to notice: tokens, not versions and intents.
fn digest(grant: Option<&Grant>) -> Option<[u8; 32]> {
    grant.map(|grant| {
        let refresh = grant.refresh_token.as_ref().map_or("", Secret::expose);
        let access = grant.access.as_ref().map_or("", |a| a.token.expose());
        sha256(&[
            &sha256(&[grant.binding.as_bytes()]),
            &sha256(&[refresh.as_bytes()]),
            &sha256(&[access.as_bytes()]),
        ])
    })
}

/// Returns how long a lock outlives its holder: one request, and the store's operations around it.
pub(super) fn lease(request_timeout: Duration) -> Duration {
    request_timeout + Duration::from_secs(5)
}

/// Interval at which the store is polled for writes by other replicas or by `authorize`.
const STORE_POLL: Duration = Duration::from_secs(2);

/// Number of responses that may be lost after the first, before a server that grants without a
/// person is asked for a new grant.
const MAX_LOST_RESPONSES: u32 = 1;

/// Least pause before a refresh token whose responses keep getting lost is sent again, where only a
/// person could bring another: the least of [`schedule::after_refusal`].
const LOST_RESPONSE_PAUSE: Duration = Duration::from_mins(4);

/// Longest time a refresh token may take to reach its server: one that would arrive after its grant
/// has expired is not sent.
const TRANSIT_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
