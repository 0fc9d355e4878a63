//! Grants whose refresh token is replaced at each use, and how none of them is lost.
//!
//! ```text
//! lock → read again → store the intent → spend, detached → store the result → publish → unlock
//! ```
//!
//! Storing the intent first proves that the store can be written before anything is spent. An
//! intent found without a result (a crash, an answer lost on the wire) is one more try with the
//! same refresh token: its server either never had it, or says that it is dead, and both are
//! clear answers. When there is none again, a server that grants by itself is asked for a new grant;
//! where only a person could bring one, the token is shown every few minutes, or when an operator
//! asks, because a server that was only out of order for a while has not seen it yet.
//!
//! Replicas that share a store share the grant: whoever is first to renew has the lock, the others
//! find the new access token in the store, where they look before they spend and every few
//! seconds. A store that comes back without what it held gets it back from whoever saw the newest.

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

/// A [`Source`] that spends what it last got.
pub(super) struct Rotation<I>(Arc<Inner<I>>);

struct Inner<I> {
    issuer: I,
    inputs: Inputs,
    store: Arc<dyn Store>,
    vendor: String,
    request_timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The access token that was last handed out: handing it out again helps nobody.
    handed_out: Option<[u8; 32]>,
    /// It was in the store, for somebody else to use as well.
    adopted: bool,
    /// What the store held when an attempt last looked.
    stored: Option<[u8; 32]>,
    /// The newest that was ever seen there.
    newest: Option<Grant>,
    /// When the store last could not be read.
    store_failed: Option<Instant>,
    /// Not used until it is stored.
    unsaved: Option<Unsaved>,
    /// Somebody wants the next attempt, or something has changed since the last one.
    next_requested: bool,
    /// The same for the attempt under way.
    current_requested: bool,
}

/// What was bought and could not be stored.
struct Unsaved {
    grant: Grant,
    /// The refresh token it cost.
    spent: Option<String>,
    /// Kept, so that nobody shows that refresh token again.
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

/// The source of what goes through the store, and what a change of which renews it.
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
        // Whoever has the lock holds it for one or two requests, or has died with it.
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
                // A store that is down is no news; neither is its return, unless something waits
                // to be stored.
                match inner.read_store().await {
                    Ok(StoreRead::Current(grant)) => {
                        let relevant = inner.is_relevant(grant.as_ref());
                        let state = inner.state.lock();
                        let news = relevant && state.stored != digest(grant.as_ref());
                        if state.unsaved.is_some() || news {
                            return;
                        }
                    }
                    Ok(StoreRead::Stale { over, newest }) => {
                        // Nobody waits for it here; the next look sees whether it worked.
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
    /// What is stored, after a store that has lost it got it back.
    async fn load(&self, under: Option<&Lock>) -> Result<Option<Grant>, FetchError> {
        let grant = match self.read_store().await? {
            StoreRead::Current(grant) => grant,
            StoreRead::Stale { over, newest } => {
                self.restore(over, &newest, under).await?;
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

    /// Gives the newest grant we know to a store that was flushed, restored from an old copy, or
    /// lost its last moments in a failover.
    ///
    /// Another replica may know a newer one, or be about to store one. So nobody spends this one
    /// for as long as a lease.
    async fn restore(
        &self,
        over: u64,
        newest: &Grant,
        under: Option<&Lock>,
    ) -> Result<(), StoreError> {
        let lease = lease(self.request_timeout);
        let lock = if under.is_none() {
            // Whoever else has it spends something newer, or does the same as we.
            let lock = self.store.lock(&self.vendor, lease, Duration::ZERO);
            lock.await.ok()
        } else {
            None
        };
        self.store.replace(&self.vendor, over, newest).await?;
        warn!(
            vendor = self.vendor,
            "the store had lost its newest tokens; they have been put back"
        );
        if under.is_some() {
            sleep(lease).await;
        } else if let Some(lock) = lock {
            tokio::spawn(async move {
                sleep(lease).await;
                drop(lock);
            });
        }
        Ok(())
    }

    /// Whether another replica may be holding the answer to this very refresh token, because the
    /// store was away when it came: it stores it as soon as it can.
    fn may_be_spent_elsewhere(&self, grant: Option<&Grant>) -> bool {
        let intent = grant.and_then(|grant| grant.intent.as_ref());
        intent.is_some()
            && self
                .state
                .lock()
                .store_failed
                .is_some_and(|failed| failed.elapsed() < STORE_POLL * 5)
    }

    /// Whether to look closer when this turns up in the store. Of a replica with another secret it
    /// is not, or the two would take turns at overwriting each other's.
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

    /// The stored access token, when it is ours, still good and new to us: another process, an
    /// earlier run or `authorize` got it.
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
        // A clock that was set back makes the token look younger, never than new.
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

    /// Turns what is stored into an access token, or into a new grant.
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
                "the stored consent is another client_id's, or another server's"
                    .clone_into(&mut reason);
            }
            grant = Grant {
                version: grant.version,
                binding,
                ..Grant::default()
            };
        }
        // A second round only with what somebody else stored in the meantime.
        for _ in 0..2 {
            let Some(refresh_token) = grant.refresh_token.clone() else {
                break;
            };
            if grant
                .refresh_until
                .is_some_and(|until| until <= SystemTime::now() + TRANSIT_TIME)
            {
                "the grant has reached its end".clone_into(&mut reason);
                break;
            }
            let sent = fingerprint(&refresh_token);
            let before = grant.intent.as_ref();
            let before = before.filter(|intent| intent.refresh_token.as_ref() == Some(&sent));
            if before.is_some_and(|intent| intent.tries > MAX_LOST_RESPONSES)
                && self.issuer.grant().is_some()
            {
                "the answers to its refresh token were lost".clone_into(&mut reason);
                break;
            }
            if let Some(intent) = before
                && let Some(pause) = self.lost_response_pause(intent)
            {
                return Err(FetchError::Temporary {
                    cause: self.lost_response_advice(
                        intent.tries,
                        "the stored refresh token is left alone",
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
                Refreshed::Dead(cause) => {
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

    /// Shows the refresh token to its server, with the intent stored around it.
    async fn refresh(
        &self,
        under: &Lock,
        grant: &mut Grant,
        refresh_token: &Secret,
    ) -> Result<Refreshed, FetchError> {
        let sent = fingerprint(refresh_token);
        let before = grant
            .intent
            .take()
            .filter(|intent| intent.refresh_token.as_ref() == Some(&sent));
        grant.intent = Some(Intent {
            refresh_token: Some(sent.clone()),
            at: SystemTime::now(),
            tries: before.as_ref().map_or(0, |intent| intent.tries) + 1,
        });
        self.save(grant).await?;
        if under.is_expired() {
            // Paused for so long, or so long without the store, that somebody else may be at it.
            return Err(temporary(
                "the lock has lapsed before it was used".to_owned(),
            ));
        }

        let error = match self.issuer.refresh(refresh_token).await {
            Ok(response) => return Ok(Refreshed::Renewed(response)),
            Err(error) => error,
        };
        match &error {
            // What became of the refresh token is unknown, and the intent stays to say so.
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
                // Some servers say 400 and nothing else. Where an answer to this very token was
                // lost before, that is answer enough.
                || (before.is_some()
                    && (*verdict == Verdict::ProbablyInvalid
                        || (*status == StatusCode::BAD_REQUEST && code.is_none()))) =>
            {
                if let Some(stored) = self.load(Some(under)).await?
                    && stored.refresh_token.as_ref().map(fingerprint) != Some(sent)
                {
                    return Ok(Refreshed::Superseded(Box::new(stored)));
                }
                // Never to be shown again, not even after a restart.
                grant.refresh_token = None;
                grant.intent = None;
                self.save(grant).await?;
                Ok(Refreshed::Dead(error.to_string()))
            }
            TokenError::Temporary { .. } | TokenError::Refused { .. } | TokenError::NotSent(_) => {
                // Not spent: no trace of it may count against the next try.
                grant.intent = before;
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

    /// What is to be told when `cause` has kept the answer to a refresh token from us `tries` times.
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
            "{cause}; it was shown {tries} times without an answer and may be spent: it is shown \
             again every few minutes, and at once by `POST /vendors/{vendor}/refresh`; if it is \
             dead, run `countersign authorize {vendor}`"
        )
    }

    /// How long the refresh token of this intent is not to be shown again by itself, because the
    /// answers to it keep getting lost: its server may have a reason, and takes every showing after
    /// the first for a theft. `None`: it may be shown.
    fn lost_response_pause(&self, intent: &Intent) -> Option<Duration> {
        if intent.tries <= MAX_LOST_RESPONSES || self.state.lock().current_requested {
            return None;
        }
        // After a clock was set back nobody knows how long ago it was.
        let ago = SystemTime::now().duration_since(intent.at).ok()?;
        let pause = schedule::after_refusal();
        (ago < LOST_RESPONSE_PAUSE).then(|| pause.saturating_sub(ago))
    }

    /// A refusal that leaves the refresh token where it is, with what a person can do about it.
    fn refused(&self, error: TokenError) -> FetchError {
        let vendor = &self.vendor;
        let unattended = self.issuer.grant().is_some();
        match error {
            TokenError::Refused { verdict, cause, .. } if !unattended => match verdict {
                Verdict::Invalid | Verdict::ProbablyInvalid => FetchError::Reauthorize(format!(
                    "{cause}; the consent seems to have ended: run `countersign authorize {vendor}`; \
                     or, when the client was refused and now is not, `POST /vendors/{vendor}/refresh` \
                     to try the stored refresh token again"
                )),
                Verdict::Unclear => FetchError::Rejected(format!(
                    "{cause}; either the client is refused (its id, its secret, its rights), or the \
                     consent has ended: then run `countersign authorize {vendor}`"
                )),
                Verdict::Unrelated => FetchError::Rejected(cause),
            },
            TokenError::Refused { .. } | TokenError::Temporary { .. } | TokenError::NotSent(_) => {
                error.into()
            }
        }
    }

    /// Asks for a token, and stores it in place of the one that is there.
    async fn replace_token(
        &self,
        lock: Lock,
        mut grant: Grant,
        binding: String,
    ) -> Result<Issued, FetchError> {
        let Some(request) = self.issuer.grant() else {
            return Err(FetchError::Rejected("no token can be asked for".to_owned()));
        };
        // Proves that the store can be written: the server may end the token in use when it issues
        // another, which must then reach the others. Until it does they go on with what is there.
        grant.intent = Some(Intent {
            refresh_token: None,
            at: SystemTime::now(),
            tries: 1,
        });
        self.save(&mut grant).await?;
        if lock.is_expired() {
            return Err(temporary(
                "the lock has lapsed before it was used".to_owned(),
            ));
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
            warn!(vendor = self.vendor, "asking for a new grant: {reason}");
        }
        // What cannot be stored must not be asked for: the server would pile up grants.
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
        // RFC 6749 §6: without a new refresh token the old one stays.
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

    /// Stores what was bought, then hands it out.
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
                // Ours is the successor of what is there, or of what was.
                let mut next = grant.clone();
                next.version = grant.version.max(over) + 1;
                saved = self.store.replace(&self.vendor, over, &next).await;
                if saved.is_ok() {
                    grant = next;
                }
            } else if let Some(stored) = stored {
                // It is ours, and only the confirmation was lost; or somebody consented anew while
                // we could not write.
                grant = stored;
                saved = Ok(());
            }
        }
        if let Err(cause) = saved {
            self.state.lock().unsaved = Some(Unsaved { grant, spent, lock });
            return Err(temporary(format!(
                "new tokens were issued and cannot be stored; they are kept and not used until \
                 they are: {cause}"
            )));
        }
        self.remember(&grant);
        drop(lock);
        grant
            .access
            .as_ref()
            .and_then(|access| self.hand_out(access))
            .ok_or_else(|| {
                temporary("the access token in the answer ended at once, or cannot be sent".into())
            })
    }

    fn remember(&self, grant: &Grant) {
        let mut state = self.state.lock();
        state.stored = digest(Some(grant));
        state.newest = Some(grant.clone());
    }
}

/// What a look into the store found.
enum StoreRead {
    Current(Option<Grant>),
    /// Something older than we know, of the version `over`, or nothing (0).
    Stale {
        over: u64,
        newest: Box<Grant>,
    },
}

/// What came of showing a refresh token.
enum Refreshed {
    Renewed(TokenResponse),
    /// Dead, and somebody else has stored another grant.
    Superseded(Box<Grant>),
    /// Dead, for this reason.
    Dead(String),
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

/// Of what a change of matters to other processes: not of versions and intents.
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

/// How long a lock outlives its holder: one request, and the store's own operations around it.
pub(super) fn lease(request_timeout: Duration) -> Duration {
    request_timeout + Duration::from_secs(5)
}

/// How often is looked for what another replica, or a person, has stored.
const STORE_POLL: Duration = Duration::from_secs(2);

/// How often an answer may be lost after the first time before a server that grants without a
/// person is asked for a new grant.
const MAX_LOST_RESPONSES: u32 = 1;

/// How long a refresh token whose answers keep getting lost is left alone at least, where only a
/// person could bring another: the least of [`schedule::after_refusal`].
const LOST_RESPONSE_PAUSE: Duration = Duration::from_mins(4);

/// How long a refresh token may take to reach its server: one that would arrive after its grant's
/// end is not shown any more.
const TRANSIT_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
