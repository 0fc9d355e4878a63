//! Grants in a directory, for the processes of one host: one encrypted file per vendor, and one
//! lock file per vendor whose lock the system releases however its holder ends.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::rand;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::seal::{KEY_LEN, Seal};
use super::{Grant, Lock, Store, StoreError};
use crate::config::{self, SecretRef};

/// The file store.
pub(super) struct FileStore(Arc<Directory>);

struct Directory {
    path: PathBuf,
    key: Option<SecretRef>,
    /// Read, or made, when first needed.
    seal: OnceLock<Seal>,
}

impl FileStore {
    pub(super) fn new(config: &config::Store) -> Self {
        Self(Arc::new(Directory {
            path: config.dir.clone(),
            key: config.encryption_key.clone(),
            seal: OnceLock::new(),
        }))
    }

    /// Disks can be slow; the threads that serve requests do not wait for them.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let directory = self.0.clone();
        tokio::task::spawn_blocking(move || work(&directory))
            .await
            .unwrap_or_else(|cause| Err(io_error(&self.0.path)(io::Error::other(cause))))
    }
}

#[async_trait]
impl Store for FileStore {
    async fn lock(&self, vendor: &str, at_most: Duration) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + at_most;
        let path = self.0.file(vendor, "lock");
        loop {
            let path = path.clone();
            let locked = self
                .blocking(move |directory| {
                    directory.create()?;
                    try_lock(&path)
                })
                .await?;
            if let Some(file) = locked {
                return Ok(Lock {
                    _held: Box::new(file),
                });
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Locked(self.0.file(vendor, "lock")));
            }
            sleep(LOCK_POLL).await;
        }
    }

    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        let vendor = vendor.to_owned();
        self.blocking(move |directory| directory.load(&vendor))
            .await
    }

    async fn save(&self, vendor: &str, grant: &mut Grant) -> Result<(), StoreError> {
        let vendor = vendor.to_owned();
        let mut next = grant.clone();
        next.version += 1;
        self.blocking(move |directory| directory.save(&vendor, &next))
            .await?;
        grant.version += 1;
        Ok(())
    }
}

impl Directory {
    fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        let path = self.file(vendor, "grant");
        let sealed = match fs::read(&path) {
            Ok(sealed) => sealed,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(io_error(&path)(cause)),
        };
        let grant = self.seal()?.open(vendor, &sealed);
        grant.ok_or(StoreError::Sealed(path)).map(Some)
    }

    fn save(&self, vendor: &str, next: &Grant) -> Result<(), StoreError> {
        self.create()?;
        let stored = self.load(vendor)?.map_or(0, |stored| stored.version);
        if stored + 1 != next.version {
            return Err(StoreError::Conflict(vendor.to_owned()));
        }
        let sealed = self.seal()?.seal(vendor, next);
        // One name, not a random one: what a killed writer left is overwritten by the next.
        self.replace(
            &self.file(vendor, "grant"),
            &self.file(vendor, "new"),
            &sealed,
        )
    }

    fn seal(&self) -> Result<&Seal, StoreError> {
        if let Some(seal) = self.seal.get() {
            return Ok(seal);
        }
        let seal = match &self.key {
            Some(key) => {
                let bytes = key
                    .resolve_bytes()
                    .map_err(|cause| StoreError::Key(cause.to_string()))?;
                Seal::new(&bytes).ok_or_else(|| {
                    StoreError::Key(format!(
                        "{} does not hold 32 bytes as base64, hex or raw",
                        key.describe()
                    ))
                })?
            }
            None => self.own_key()?,
        };
        Ok(self.seal.get_or_init(|| seal))
    }

    /// The key beside the files it encrypts: keeps backups and copies of single files closed, not
    /// the directory.
    fn own_key(&self) -> Result<Seal, StoreError> {
        let path = self.path.join("encryption.key");
        self.create()?;
        // Two processes that start together must not make two keys.
        let lock_path = self.path.join("encryption.key.lock");
        let lock = open_lock(&lock_path).map_err(io_error(&lock_path))?;
        lock.lock().map_err(io_error(&lock_path))?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                if let Some(orphan) = self.any_grant()? {
                    return Err(StoreError::Key(format!(
                        "{} is gone, and {} was encrypted with it",
                        path.display(),
                        orphan.display()
                    )));
                }
                let mut bytes = Zeroizing::new(vec![0; KEY_LEN]);
                rand::fill(&mut bytes)
                    .map_err(|_| StoreError::Key("the system gave no random bytes".into()))?;
                self.replace(&path, &self.path.join("encryption.key.new"), &bytes)?;
                bytes
            }
            Err(cause) => return Err(io_error(&path)(cause)),
        };
        Seal::new(&bytes).ok_or(StoreError::Key(format!(
            "{} does not hold 32 bytes",
            path.display()
        )))
    }

    fn any_grant(&self) -> Result<Option<PathBuf>, StoreError> {
        for entry in fs::read_dir(&self.path).map_err(io_error(&self.path))? {
            let path = entry.map_err(io_error(&self.path))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "grant")
            {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// `path` holds either what it held or all of `bytes`, even after a power cut.
    fn replace(&self, path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(temporary)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error(temporary))?;
        fs::rename(temporary, path).map_err(io_error(path))?;
        // The new name is durable only when the directory is.
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(io_error(&self.path))
    }

    fn create(&self) -> Result<(), StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(io_error(&self.path))
    }

    fn file(&self, vendor: &str, extension: &str) -> PathBuf {
        let name = utf8_percent_encode(vendor, NOT_IN_FILE_NAMES);
        self.path.join(format!("{name}.{extension}"))
    }
}

/// `None`: somebody else has it.
fn try_lock(path: &Path) -> Result<Option<File>, StoreError> {
    let file = open_lock(path).map_err(io_error(path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(cause)) => Err(io_error(path)(cause)),
    }
}

/// Lock files are never removed: whoever had opened the removed one would hold a lock that
/// nobody else sees.
fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io { path, cause }
}

/// Waiting for another process's token request, which takes tenths of a second.
const LOCK_POLL: Duration = Duration::from_millis(50);

const NOT_IN_FILE_NAMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');
