//! Where a rotating refresh token survives a crash and is shared by processes.
//!
//! A refresh token that works once is a thing to be handled like money: it is spent only under a
//! [`Lock`], after the intent to spend it was stored, and what was bought with it is stored before
//! it is used. `credential/rotation.rs` keeps that order; a [`Store`] makes it possible.

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

/// A place for grants, one per vendor.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Keeps every other holder of the same store from spending `vendor`'s grant until the lock
    /// is dropped or its process ends. Where the store does not see processes end, the lock of one
    /// that did is free `lease` later.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when somebody else has it for all of `at_most`, others when the
    /// store cannot be used.
    async fn lock(
        &self,
        vendor: &str,
        lease: Duration,
        at_most: Duration,
    ) -> Result<Lock, StoreError>;

    /// What is stored; `None`: nothing is. Needs no lock.
    ///
    /// # Errors
    /// When something is stored and cannot be read.
    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError>;

    /// Stores `next`, durably, if what is stored has the version `over` (0: nothing is stored).
    /// May be repeated when its outcome is unknown.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when something else is stored, others when the store cannot be
    /// written, or holds something that must not be lost.
    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError>;

    /// Stores `grant` over the version it has, and counts that up. To be called under the lock.
    ///
    /// # Errors
    /// Those of [`Store::replace`]; the version is then as it was.
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

/// The version that follows `version`.
///
/// The first is the time in milliseconds: a grant obtained after a store has lost everything is
/// newer than any that a process still remembers from before.
fn version_after(version: u64) -> u64 {
    if version > 0 {
        return version + 1;
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Tells one holder of a lock from every other.
fn new_holder() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes)
        .map_err(|_| StoreError::Key("the system gave no random bytes".to_owned()))?;
    Ok(hex::encode(bytes))
}

/// The configured store. Nothing is read, created or connected to before a vendor needs it.
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

/// Held while a grant is spent; dropping it lets others, a moment later.
pub struct Lock(Kind);

enum Kind {
    /// The system keeps it, and lets go however its holder ends.
    File { _held: File },
    /// It lapses when it is not prolonged.
    Lease(lease::HeldLease),
}

impl Lock {
    /// Whether somebody else may hold it by now, because its holder was paused, or cut off from
    /// the store, for longer than the lease.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        match &self.0 {
            Kind::File { .. } => false,
            Kind::Lease(held) => held.is_expired(),
        }
    }

    /// One that somebody else may hold by now.
    #[cfg(test)]
    pub(crate) fn new_expired() -> Self {
        lease::tests::expired_lock()
    }

    /// Lets others have it before this returns: for processes that are about to end.
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

/// What a vendor granted us, as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Grows with each that is stored for this vendor; 0: none was yet.
    pub version: u64,
    /// Digest of whom it was granted to, and by which server: a refresh token must never be shown
    /// to another server, nor with another client's name.
    pub binding: String,
    /// `None`: there is none, or it is known to be dead.
    pub refresh_token: Option<Secret>,
    /// The newest access token.
    pub access: Option<Access>,
    /// After this only a new grant helps.
    pub refresh_until: Option<SystemTime>,
    /// Somebody set out to spend the grant and has not said how it ended.
    pub intent: Option<Intent>,
}

/// An access token with its end.
#[derive(Clone, Debug)]
pub struct Access {
    /// The token.
    pub token: Secret,
    /// When it was asked for, on the wall clock: processes share no other.
    pub issued: SystemTime,
    /// From then to its end.
    pub lifetime: Duration,
}

impl Access {
    /// How long it is still good; `None`: it has ended.
    #[must_use]
    pub fn left(&self, now: SystemTime) -> Option<Duration> {
        let age = now.duration_since(self.issued).unwrap_or_default();
        let left = self.lifetime.checked_sub(age);
        left.filter(|left| !left.is_zero())
    }
}

/// That a refresh token is about to be shown to its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// SHA-256 of the refresh token, hex; `None`: a new grant is being asked for.
    pub refresh_token: Option<String>,
    /// When.
    pub at: SystemTime,
    /// How often it has been shown without an answer, this time included.
    pub tries: u32,
}

/// A store that cannot be used. Names places, never contents.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something else was stored since the grant was loaded.
    #[error("the stored tokens of {0} were changed by another process")]
    Conflict(String),
    /// Somebody else is spending.
    #[error("another process holds {0}")]
    Locked(String),
    /// The system said no.
    #[error("{path}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A directory that others can get into. Neither read nor written.
    #[error("{path} {what}; run `{cure}`", path = .path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Who can.
        what: String,
        /// The command that mends it.
        cure: String,
    },
    /// A server was not reached, did not answer in time, or said no.
    #[error("{server}: {cause}")]
    Remote {
        /// The server.
        server: String,
        /// What it or the network said.
        cause: String,
    },
    /// There, and unreadable. Never overwritten.
    #[error(
        "{0} cannot be decrypted: it is damaged, or was written with another encryption_key; \
         restore the key, or move it away and obtain a new grant"
    )]
    Sealed(String),
    /// The key cannot be read.
    #[error("store.encryption_key: {0}")]
    Key(String),
}
