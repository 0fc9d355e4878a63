//! Grants whose refresh token is replaced at each use, and how none of them is lost.
//!
//! ```text
//! lock → read again → store the intent → spend, detached → store the result → publish → unlock
//! ```
//!
//! Storing the intent first proves that the store can be written before anything is spent. An
//! intent found without a result (a crash, an answer lost on the wire) is one more try with the
//! same refresh token: its server either never had it, or says that it is dead, and both are
//! clear answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::inputs::{Inputs, POLL};
use super::token_request::{Answer, TokenError};
use super::{FetchError, Issued, Lifetime, Source, pace};
use crate::config::{TokenTimes, Vendor};
use crate::secret::Secret;
use crate::store::{Access, Grant, Intent, Lock, Store, StoreError};
use crate::tls::sha256;

/// The server that grants, in its own protocol.
#[async_trait]
pub(super) trait Issuer: Send + Sync + 'static {
    /// What a grant is tied to: the server and the name we have there.
    fn binding(&self) -> Result<String, String>;

    /// Shows a refresh token to the server.
    async fn refresh(&self, refresh_token: &Secret) -> Result<Answer, TokenError>;

    /// Whether a refusal of [`Issuer::refresh`] means that the refresh token is dead, rather than
    /// that we are refused.
    fn ends_grant(&self, status: StatusCode, code: Option<&str>) -> bool;

    /// Asks for a new grant once awaited; `None`: only a person can.
    fn grant(&self) -> Option<Asking<'_>>;
}

pub(super) type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer, TokenError>> + Send + 'a>>;

/// A [`Source`] that spends what it last got.
pub(super) struct Rotation<I>(Arc<Shared<I>>);

struct Shared<I> {
    issuer: I,
    inputs: Inputs,
    store: Arc<dyn Store>,
    vendor: String,
    request_timeout: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The access token that was last handed out: handing it out again helps nobody.
    handed_out: Option<[u8; 32]>,
    /// What the store held when we last looked.
    stored: Option<[u8; 32]>,
    /// What was bought and could not be stored, with the refresh token it cost. Not used until it
    /// is stored.
    unsaved: Option<(Grant, Option<String>)>,
}

impl<I: Issuer> Rotation<I> {
    pub(super) fn new(
        issuer: I,
        inputs: Inputs,
        store: &Arc<dyn Store>,
        vendor: &Vendor,
        times: TokenTimes,
    ) -> Self {
        Self(Arc::new(Shared {
            issuer,
            inputs,
            store: store.clone(),
            vendor: vendor.name.clone(),
            request_timeout: times.request_timeout,
            known: Mutex::new(Known::default()),
        }))
    }
}

#[async_trait]
impl<I: Issuer> Source for Rotation<I> {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        let shared = &self.0;
        shared.inputs.note();
        let binding = shared.issuer.binding().map_err(FetchError::Rejected)?;
        if let Some(issued) = shared.adopt(shared.load().await?.as_ref(), &binding) {
            return Ok(issued);
        }
        // Whoever has the lock holds it for one or two requests.
        let patience = shared.request_timeout * 2 + Duration::from_secs(5);
        let lock = shared.store.lock(&shared.vendor, patience).await?;
        let grant = shared.load().await?;
        if let Some(issued) = shared.adopt(grant.as_ref(), &binding) {
            return Ok(issued);
        }
        // From here on nobody's impatience may lose the answer.
        let spending = shared.clone();
        tokio::spawn(async move {
            spending
                .spend(lock, grant.unwrap_or_default(), binding)
                .await
        })
        .await
        .unwrap_or_else(|_| Err(temporary("the refresh was interrupted".to_owned())))
    }

    async fn changed(&self) {
        let stored = async {
            loop {
                sleep(POLL).await;
                // A store that is down is no news; neither is its return.
                if let Ok(grant) = self.0.store.load(&self.0.vendor).await
                    && self.0.known.lock().stored != digest(grant.as_ref())
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = stored => {}
            () = self.0.inputs.changed() => {}
        }
    }
}

impl<I: Issuer> Shared<I> {
    async fn load(&self) -> Result<Option<Grant>, FetchError> {
        let grant = self.store.load(&self.vendor).await?;
        self.known.lock().stored = digest(grant.as_ref());
        Ok(grant)
    }

    /// The stored access token, when it is ours, still good and new to us: another process, an
    /// earlier run or `authorize` got it.
    fn adopt(&self, grant: Option<&Grant>, binding: &str) -> Option<Issued> {
        let access = grant
            .filter(|grant| grant.binding == binding)?
            .access
            .as_ref()?;
        let token = sha256(&[access.token.expose().as_bytes()]);
        if self.known.lock().handed_out == Some(token) {
            return None;
        }
        self.hand_out(access)
    }

    fn hand_out(&self, access: &Access) -> Option<Issued> {
        // A clock that was set back makes the token look younger, never than new.
        let age = SystemTime::now()
            .duration_since(access.issued)
            .unwrap_or_default();
        if age >= pace::usable_for(access.lifetime) {
            return None;
        }
        let values = vec![access.token.to_header("Bearer ").ok()?];
        let token = sha256(&[access.token.expose().as_bytes()]);
        self.known.lock().handed_out = Some(token);
        Some(Issued {
            values,
            lifetime: Some(Lifetime {
                total: access.lifetime,
                end: Instant::now() + (access.lifetime - age),
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
        let unsaved = self.known.lock().unsaved.take();
        if let Some((bought, cost)) = unsaved
            && bought.binding == binding
        {
            return self.keep(lock, bought, cost).await;
        }

        let mut why_none = "no consent is stored".to_owned();
        if grant.binding != binding {
            if !grant.binding.is_empty() {
                "the stored consent is another client_id's, or another server's"
                    .clone_into(&mut why_none);
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
                .is_some_and(|until| until <= SystemTime::now())
            {
                "the grant has reached its end".clone_into(&mut why_none);
                break;
            }
            let shown = fingerprint(&refresh_token);
            let lost = grant.intent.as_ref().map_or(0, |intent| {
                let same = intent.refresh_token.as_ref() == Some(&shown);
                if same { intent.tries } else { 0 }
            });
            if lost > MAX_LOST && self.issuer.grant().is_some() {
                "the answers to its refresh token were lost".clone_into(&mut why_none);
                break;
            }
            match self.refresh(&lock, &mut grant, &refresh_token).await? {
                Refreshed::Bought(answer) => {
                    let cost = fingerprint(&refresh_token);
                    return self.store_answer(lock, grant, answer, Some(cost)).await;
                }
                Refreshed::Superseded(newer) => grant = *newer,
                Refreshed::Dead(cause) => {
                    why_none = cause;
                    break;
                }
            }
            let binding = grant.binding.clone();
            if let Some(issued) = self.adopt(Some(&grant), &binding) {
                return Ok(issued);
            }
        }
        self.new_grant(lock, grant, why_none).await
    }

    /// Shows the refresh token to its server, with the intent stored around it.
    async fn refresh(
        &self,
        _under: &Lock,
        grant: &mut Grant,
        refresh_token: &Secret,
    ) -> Result<Refreshed, FetchError> {
        let shown = fingerprint(refresh_token);
        let before = grant
            .intent
            .take()
            .filter(|intent| intent.refresh_token.as_ref() == Some(&shown));
        grant.intent = Some(Intent {
            refresh_token: Some(shown.clone()),
            at: SystemTime::now(),
            tries: before.as_ref().map_or(0, |intent| intent.tries) + 1,
        });
        self.store.save(&self.vendor, grant).await?;

        let error = match self.issuer.refresh(refresh_token).await {
            Ok(answer) => return Ok(Refreshed::Bought(answer)),
            Err(error) => error,
        };
        match &error {
            // What became of the refresh token is unknown, and the intent stays to say so.
            TokenError::Temporary { unheard: false, .. } => Err(error.into()),
            TokenError::Refused { status, code, .. } if self.issuer.ends_grant(*status, *code) => {
                if let Some(stored) = self.load().await?
                    && stored.refresh_token.as_ref().map(fingerprint) != Some(shown)
                {
                    return Ok(Refreshed::Superseded(Box::new(stored)));
                }
                // Never to be shown again, not even after a restart.
                grant.refresh_token = None;
                grant.intent = None;
                self.store.save(&self.vendor, grant).await?;
                self.note(grant);
                Ok(Refreshed::Dead(error.to_string()))
            }
            TokenError::Temporary { .. } | TokenError::Refused { .. } | TokenError::NotSent(_) => {
                // Not spent: no trace of it may count against the next try.
                grant.intent = before;
                if let Err(cause) = self.store.save(&self.vendor, grant).await {
                    warn!(
                        vendor = self.vendor,
                        "an intent stays in the store: {cause}"
                    );
                }
                Err(error.into())
            }
        }
    }

    async fn new_grant(
        &self,
        lock: Lock,
        mut grant: Grant,
        why: String,
    ) -> Result<Issued, FetchError> {
        let Some(asking) = self.issuer.grant() else {
            return Err(FetchError::Reauthorize(format!(
                "{why}; run `countersign authorize {}`",
                self.vendor
            )));
        };
        if grant.version > 0 {
            warn!(vendor = self.vendor, "asking for a new grant: {why}");
        }
        // What cannot be stored must not be asked for: the server would pile up grants.
        grant.refresh_token = None;
        grant.refresh_until = None;
        grant.intent = Some(Intent {
            refresh_token: None,
            at: SystemTime::now(),
            tries: 1,
        });
        self.store.save(&self.vendor, &mut grant).await?;
        let answer = asking.await?;
        self.store_answer(lock, grant, answer, None).await
    }

    async fn store_answer(
        &self,
        lock: Lock,
        mut grant: Grant,
        answer: Answer,
        cost: Option<String>,
    ) -> Result<Issued, FetchError> {
        // RFC 6749 §6: without a new refresh token the old one stays.
        if answer.refresh_token.is_some() {
            grant.refresh_token = answer.refresh_token;
        }
        if answer.refresh_until.is_some() {
            grant.refresh_until = answer.refresh_until;
        }
        grant.intent = None;
        let left = answer
            .lifetime
            .end
            .saturating_duration_since(Instant::now());
        let age = answer.lifetime.total.saturating_sub(left);
        grant.access = Some(Access {
            token: answer.access_token,
            issued: SystemTime::now() - age,
            lifetime: answer.lifetime.total,
        });
        self.keep(lock, grant, cost).await
    }

    /// Stores what was bought, then hands it out.
    async fn keep(
        &self,
        lock: Lock,
        mut grant: Grant,
        cost: Option<String>,
    ) -> Result<Issued, FetchError> {
        let mut saved = self.store.save(&self.vendor, &mut grant).await;
        if matches!(saved, Err(StoreError::Conflict(_)))
            && let Ok(Some(stored)) = self.store.load(&self.vendor).await
        {
            if stored.refresh_token.as_ref().map(fingerprint) == cost {
                // Ours is the successor of what is there.
                grant.version = stored.version;
                saved = self.store.save(&self.vendor, &mut grant).await;
            } else {
                // Somebody consented anew while we could not write.
                grant = stored;
                saved = Ok(());
            }
        }
        if let Err(cause) = saved {
            self.known.lock().unsaved = Some((grant, cost));
            return Err(temporary(format!(
                "new tokens were issued and cannot be stored; they are kept and not used until \
                 they are: {cause}"
            )));
        }
        self.note(&grant);
        drop(lock);
        grant
            .access
            .as_ref()
            .and_then(|access| self.hand_out(access))
            .ok_or_else(|| {
                temporary("the access token in the answer ended at once, or cannot be sent".into())
            })
    }

    fn note(&self, grant: &Grant) {
        self.known.lock().stored = digest(Some(grant));
    }
}

/// What came of showing a refresh token.
enum Refreshed {
    Bought(Answer),
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

/// How often an answer may be lost after the first time before a server that grants without a
/// person is asked for a new grant.
const MAX_LOST: u32 = 1;
