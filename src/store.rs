//! Stores in which a rotating refresh token survives a crash and is shared by processes.
//!
//! A refresh token that works once must be handled with care: it is spent only under a [`Lock`],
//! after the intent to spend it was stored, and the tokens it yields are stored before they are
//! used. `credential/rotation.rs` keeps that order; a [`Store`] makes it possible.

mod file;
mod kubernetes;
mod lease;
mod redis;
mod seal;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_lc_rs::rand;

use crate::config;
use crate::secret::Secret;

/// Stores grants, one per vendor.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Keeps every other holder of the same store from spending `vendor`'s grant until the lock is
    /// dropped or its process exits. Where the store does not see processes exit, such a lock is
    /// free after `lease`.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when somebody else holds it for all of `at_most`; others when the
    /// store cannot be used.
    async fn lock(
        &self,
        vendor: &str,
        lease: Duration,
        at_most: Duration,
    ) -> Result<Lock, StoreError>;

    /// Returns the stored grant; `None`: there is none. Needs no lock.
    ///
    /// # Errors
    /// Fails when something is stored and cannot be read.
    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError>;

    /// Stores `next`, durably, if the stored grant has the version `over` (0: nothing is stored).
    /// May be repeated when its outcome is unknown.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when something else is stored; others when the store cannot be
    /// written, or holds something that must not be lost.
    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError>;

    /// Stores `grant` over the version it has, and increments that. Call it under the lock.
    ///
    /// # Errors
    /// The errors of [`Store::replace`]; the version is then unchanged.
    async fn save(&self, vendor: &str, grant: &mut Grant) -> Result<(), StoreError> {
        let over = grant.version;
        grant.version = version_after(over);
        let saved = self.replace(vendor, over, grant).await;
        if saved.is_err() {
            grant.version = over;
        }
        saved
    }
}

/// Returns the version that follows `version`.
///
/// The first is the time in milliseconds: a grant obtained after a store has lost everything is
/// newer than any that a process remembers from before.
fn version_after(version: u64) -> u64 {
    if version > 0 {
        return version + 1;
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Returns a random name that tells one holder of a lock from every other.
fn new_holder() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)
        .map_err(|_| StoreError::Key("the system gave no random bytes".to_owned()))?;
    Ok(hex::encode(bytes))
}

/// Opens the configured store. Nothing is read, created or connected to before a vendor needs it.
#[must_use]
pub fn open(config: &config::Store) -> Arc<dyn Store> {
    match config {
        config::Store::File {
            dir,
            encryption_key,
        } => Arc::new(file::FileStore::new(dir, encryption_key.as_ref())),
        config::Store::Redis {
            url,
            ca,
            encryption_key,
        } => Arc::new(redis::RedisStore::new(url, ca.as_ref(), encryption_key)),
        config::Store::Kubernetes {
            secret,
            namespace,
            encryption_key,
        } => Arc::new(kubernetes::KubernetesStore::new(
            secret,
            namespace.as_ref(),
            encryption_key,
        )),
    }
}

/// Held while a grant is spent. Dropping it releases it, a moment later.
pub struct Lock(Kind);

enum Kind {
    /// The system keeps it, and releases it however its holder ends.
    File { _held: File },
    /// It expires unless it is renewed.
    Lease(lease::HeldLease),
}

impl Lock {
    /// Tells whether somebody else may hold the lock by now, because its holder was paused, or cut
    /// off from the store, for longer than the lease.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        match &self.0 {
            Kind::File { .. } => false,
            Kind::Lease(held) => held.is_expired(),
        }
    }

    /// Returns a lock that somebody else may hold by now.
    #[cfg(test)]
    pub(crate) fn new_expired() -> Self {
        lease::tests::expired_lock()
    }

    /// Releases the lock before it returns: for processes that are about to exit.
    pub async fn release(self) {
        match self.0 {
            Kind::File { .. } => {}
            Kind::Lease(held) => held.release().await,
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}

/// A vendor's grant, as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Grows with each grant that is stored for this vendor; 0: none was stored yet.
    pub version: u64,
    /// Digest of the client it was granted to, and of the server: a refresh token must never be
    /// sent to another server, nor under another client's name.
    pub binding: String,
    /// `None`: there is none, or it is known to be invalid.
    pub refresh_token: Option<Secret>,
    /// The newest access token.
    pub access: Option<Access>,
    /// Time after which only a new grant helps.
    pub refresh_until: Option<SystemTime>,
    /// A started use of the grant whose result is not stored yet.
    pub intent: Option<Intent>,
}

/// An access token with its lifetime.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token.
    pub token: Secret,
    /// Time of the request, on the wall clock: processes share no other.
    pub issued: SystemTime,
    /// Time from then until it expires.
    pub lifetime: Duration,
}

impl Access {
    /// Returns how long it is still valid; `None`: it has expired.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        let age = now.duration_since(self.issued).unwrap_or_default();
        let left = self.lifetime.checked_sub(age);
        left.filter(|left| !left.is_zero())
    }
}

/// Announces that a refresh token is about to be sent to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// SHA-256 of the refresh token, hex; `None`: a new grant is being requested.
    pub refresh_token: Option<String>,
    /// Time of the announcement.
    pub at: SystemTime,
    /// Number of times it was sent without a response, this one included.
    pub tries: u32,
}

/// A store that cannot be used. Texts name places, never contents.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something else was stored since the grant was loaded.
    #[error("the stored tokens of {0} were changed by another process")]
    Conflict(String),
    /// Somebody else is spending the grant.
    #[error("another process holds {0}")]
    Locked(String),
    /// The system refused.
    #[error("{path}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        cause: std::io::Error,
    },
    /// The directory is accessible to others. It is neither read nor written.
    #[error("{path} {what}; run `{cure}`", path = .path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Says who has access.
        what: String,
        /// The command that corrects it.
        cure: String,
    },
    /// A server was not reached, did not respond in time, or refused.
    #[error("{server}: {cause}")]
    Remote {
        /// The server.
        server: String,
        /// Its error, or the network's.
        cause: String,
    },
    /// The stored grant is unreadable. It is never overwritten.
    #[error(
        "{0} cannot be decrypted: it is damaged, or was written with another encryption_key; \
         restore the key, or move it away and obtain a new grant"
    )]
    Sealed(String),
    /// The key cannot be read.
    #[error("store.encryption_key: {0}")]
    Key(String),
}
