//! Where a rotating refresh token survives a crash and is shared by processes.
//!
//! A refresh token that works once is a thing to be handled like money: it is spent only under a
//! [`Lock`], after the intent to spend it was stored, and what was bought with it is stored before
//! it is used. `credential/rotation.rs` keeps that order; a [`Store`] makes it possible.

mod file;
mod seal;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::config;
use crate::secret::Secret;

/// A place for grants, one per vendor.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Keeps every other holder of the same store from spending `vendor`'s grant until the lock
    /// is dropped or its process ends.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when somebody else has it for all of `at_most`, others when the
    /// store cannot be used.
    async fn lock(&self, vendor: &str, at_most: Duration) -> Result<Lock, StoreError>;

    /// What is stored; `None`: nothing was ever. Needs no lock.
    ///
    /// # Errors
    /// When something is stored and cannot be read.
    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError>;

    /// Stores `grant`, durably, if what is stored still has its version, and counts that version
    /// up. To be called under the lock.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when something else was stored in the meantime, others when the
    /// store cannot be written, or holds something that must not be lost.
    async fn save(&self, vendor: &str, grant: &mut Grant) -> Result<(), StoreError>;
}

/// The configured store. Nothing is read or created before a vendor needs it.
///
/// # Errors
/// None today; stores that connect to something will have some.
pub fn open(config: &config::Store) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(file::FileStore::new(config)))
}

/// Held while a grant is spent; dropping it lets others.
pub struct Lock {
    _held: Box<dyn Send + Sync>,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}

/// What a vendor granted us, as it is stored.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Counts what was stored for this vendor; 0: nothing yet.
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
    Locked(PathBuf),
    /// The system said no.
    #[error("{path}: {cause}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// There, and unreadable. Never overwritten.
    #[error(
        "{0} cannot be decrypted: it is damaged, or was written with another encryption_key; \
         restore the key, or move the file away and obtain a new grant"
    )]
    Sealed(PathBuf),
    /// The key cannot be read.
    #[error("store.encryption_key: {0}")]
    Key(String),
}
