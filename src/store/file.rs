//! Stores grants in a directory, for the processes of one host: one encrypted file per vendor, and
//! one lock file per vendor whose lock the system releases however its holder ends.

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
use super::{Grant, Kind, Lock, Store, StoreError};
use crate::config::kept_from_others;
use crate::secret::SecretRef;

/// The file store.
pub(super) struct FileStore(Arc<Directory>);

struct Directory {
    path: PathBuf,
    key: Option<SecretRef>,
    /// Read, or created, when first needed.
    seal: OnceLock<Seal>,
}

impl FileStore {
    pub(super) fn new(dir: &Path, key: Option<&SecretRef>) -> Self {
        Self(Arc::new(Directory {
            path: dir.to_owned(),
            key: key.cloned(),
            seal: OnceLock::new(),
        }))
    }

    /// Runs `work` on a thread of its own: disks can be slow, and the threads that serve requests
    /// must not wait for them.
    async fn run_blocking<T: Send + 'static>(
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
    async fn lock(
        &self,
        vendor: &str,
        _lease: Duration,
        at_most: Duration,
    ) -> Result<Lock, StoreError> {
        let deadline = Instant::now() + at_most;
        let path = self.0.file(vendor, "lock");
        loop {
            let path = path.clone();
            let locked = self
                .run_blocking(move |directory| {
                    directory.create()?;
                    try_lock(&path)
                })
                .await?;
            if let Some(file) = locked {
                return Ok(Lock(Kind::File { _held: file }));
            }
            if Instant::now() >= deadline {
                let path = self.0.file(vendor, "lock");
                return Err(StoreError::Locked(path.display().to_string()));
            }
            sleep(LOCK_POLL).await;
        }
    }

    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        let vendor = vendor.to_owned();
        self.run_blocking(move |directory| directory.load(&vendor))
            .await
    }

    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        let (vendor, next) = (vendor.to_owned(), next.clone());
        self.run_blocking(move |directory| directory.replace_grant(&vendor, over, &next))
            .await
    }
}

impl Directory {
    fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        self.check_private()?;
        let path = self.file(vendor, "grant");
        let sealed = match fs::read(&path) {
            Ok(sealed) => sealed,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(io_error(&path)(cause)),
        };
        let grant = self.seal()?.open(vendor, &sealed);
        grant
            .ok_or_else(|| StoreError::Sealed(path.display().to_string()))
            .map(Some)
    }

    fn replace_grant(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        self.create()?;
        let stored = self.load(vendor)?.map_or(0, |stored| stored.version);
        if stored != over {
            return Err(StoreError::Conflict(vendor.to_owned()));
        }
        let sealed = self.seal()?.seal(vendor, next);
        // One name, not a random one: the next writer overwrites what a killed one left.
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
            Some(key) => Seal::from_ref(key)?,
            None => self.local_key()?,
        };
        Ok(self.seal.get_or_init(|| seal))
    }

    /// Returns the key kept beside the files it encrypts. It protects backups and copies of single
    /// files, not the directory.
    fn local_key(&self) -> Result<Seal, StoreError> {
        let path = self.path.join("encryption.key");
        self.create()?;
        // Two processes that start together must not create two keys.
        let lock_path = self.path.join("encryption.key.lock");
        let lock = open_lock(&lock_path).map_err(io_error(&lock_path))?;
        lock.lock().map_err(io_error(&lock_path))?;
        let bytes = match fs::read(&path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                if let Some(orphan) = self.any_grant()? {
                    return Err(StoreError::Key(format!(
                        "{} is missing, but {} was encrypted with it",
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

    /// Replaces `path` so that it holds either its old content or all of `bytes`, even after a
    /// power cut.
    fn replace(&self, path: &Path, temporary: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let write = || {
            // A killed writer may have left it.
            match fs::remove_file(temporary) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                Ok(()) | Err(_) => {}
            }
            let mut file = new_file().write(true).open(temporary)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(io_error(temporary))?;
        fs::rename(temporary, path).map_err(io_error(path))?;
        // The new name is durable only once the directory is.
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(io_error(&self.path))
    }

    fn create(&self) -> Result<(), StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(io_error(&self.path))?;
        self.check_private()
    }

    /// Fails when others can access the directory: they could read the key beside the grants, or
    /// replace our files by theirs.
    fn check_private(&self) -> Result<(), StoreError> {
        kept_from_others(&self.path).map_err(|exposed| StoreError::Exposed {
            path: self.path.clone(),
            what: exposed.what,
            cure: exposed.cure,
        })
    }

    fn file(&self, vendor: &str, extension: &str) -> PathBuf {
        let name = utf8_percent_encode(vendor, NOT_IN_FILE_NAMES);
        self.path.join(format!("{name}.{extension}"))
    }
}

/// Returns `None` when somebody else holds the lock.
fn try_lock(path: &Path) -> Result<Option<File>, StoreError> {
    let file = open_lock(path).map_err(io_error(path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(cause)) => Err(io_error(path)(cause)),
    }
}

/// Opens a lock file. They are never removed: a process that had opened a removed one would hold a
/// lock that no one else sees.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut existing = OpenOptions::new();
    existing.write(true).custom_flags(NO_FOLLOW);
    loop {
        match existing.open(path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match new_file().write(true).open(path) {
            // Another process created it first.
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created,
        }
    }
}

/// Options that create a file of our own, and never write to what somebody else has put there, such
/// as a link.
fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create_new(true).mode(0o600).custom_flags(NO_FOLLOW);
    options
}

#[expect(clippy::cast_possible_wrap, reason = "a flag that fits")]
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io { path, cause }
}

/// Time between two tries while another process requests a token, which takes tenths of a second.
const LOCK_POLL: Duration = Duration::from_millis(50);

const NOT_IN_FILE_NAMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;
    use crate::secret::Secret;

    const LEASE: Duration = Duration::from_secs(15);

    /// Returns a directory that others cannot access, whatever the umask.
    fn private_dir() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    fn open(dir: &Path) -> FileStore {
        open_with(dir, None)
    }

    fn open_with(dir: &Path, key: Option<&str>) -> FileStore {
        let key = key.map(|key| SecretRef::Value(Secret::new(key)));
        FileStore::new(dir, key.as_ref())
    }

    fn grant(refresh_token: &str) -> Grant {
        Grant {
            refresh_token: Some(Secret::new(refresh_token)),
            ..Grant::default()
        }
    }

    async fn stored(store: &FileStore, vendor: &str) -> String {
        let grant = store.load(vendor).await.unwrap().unwrap();
        grant.refresh_token.unwrap().expose().to_owned()
    }

    fn state(dir: &TempDir) -> PathBuf {
        dir.path().join("deep/state")
    }

    #[tokio::test]
    async fn a_grant_is_there_for_the_next_process_and_only_for_its_owner() {
        let dir = private_dir();
        let path = state(&dir);
        assert!(open(&path).load("maxmd").await.unwrap().is_none());
        assert!(!path.exists(), "looking created something");

        let mut first = grant("hunter2");
        open(&path).save("maxmd", &mut first).await.unwrap();
        assert!(first.version > 0);
        let next = open(&path);
        assert_eq!(stored(&next, "maxmd").await, "hunter2");
        let _lock = next.lock("maxmd", LEASE, Duration::ZERO).await.unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        let mut files: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
            let content = fs::read(file).unwrap();
            assert!(!content.windows(7).any(|part| part == b"hunter2"));
        }
        let names: Vec<_> = files.iter().filter_map(|file| file.file_name()).collect();
        let expected = [
            "encryption.key",
            "encryption.key.lock",
            "maxmd.grant",
            "maxmd.lock",
        ];
        assert_eq!(names, expected);
    }

    #[tokio::test]
    async fn what_somebody_else_stored_is_not_overwritten() {
        let dir = private_dir();
        let (one, two) = (open(dir.path()), open(dir.path()));
        let mut ours = grant("r1");
        one.save("v", &mut ours).await.unwrap();
        let mut theirs = two.load("v").await.unwrap().unwrap();
        two.save("v", &mut theirs).await.unwrap();

        let error = one.save("v", &mut ours).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(_)));
        assert_eq!(theirs.version, ours.version + 1);
        let error = one.save("v", &mut grant("r0")).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(_)), "a first one");
    }

    #[tokio::test]
    async fn one_holder_at_a_time_per_vendor() {
        let dir = private_dir();
        let (one, two) = (open(dir.path()), open(dir.path()));
        let held = one.lock("v", LEASE, Duration::ZERO).await.unwrap();
        two.lock("other", LEASE, Duration::ZERO).await.unwrap();
        let error = two
            .lock("v", LEASE, Duration::from_millis(120))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("v.lock"), "{error}");

        let waiting =
            tokio::spawn(async move { two.lock("v", LEASE, Duration::from_secs(10)).await });
        tokio::task::yield_now().await;
        drop(held);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn another_key_or_a_damaged_file_is_named_and_left_as_it_is() {
        let dir = private_dir();
        let keys = ["11".repeat(32), "22".repeat(32)];
        let file = dir.path().join("v.grant");
        let ours = open_with(dir.path(), Some(&keys[0]));
        ours.save("v", &mut grant("r1")).await.unwrap();
        assert!(!dir.path().join("encryption.key").exists());

        let sealed = fs::read(&file).unwrap();
        let other = open_with(dir.path(), Some(&keys[1]));
        for mut next in [
            grant("r2"),
            Grant {
                version: 1,
                ..grant("r2")
            },
        ] {
            let error = other.save("v", &mut next).await.unwrap_err();
            assert!(error.to_string().contains("v.grant"), "{error}");
        }
        assert!(matches!(other.load("v").await, Err(StoreError::Sealed(_))));
        assert_eq!(fs::read(&file).unwrap(), sealed);

        fs::write(&file, &sealed[..sealed.len() / 2]).unwrap();
        let error = ours.save("v", &mut grant("r2")).await.unwrap_err();
        assert!(matches!(error, StoreError::Sealed(_)));
        assert_eq!(fs::read(&file).unwrap().len(), sealed.len() / 2);
    }

    #[tokio::test]
    async fn a_lost_key_is_not_replaced_while_grants_need_it() {
        let dir = private_dir();
        open(dir.path()).save("v", &mut grant("r1")).await.unwrap();
        fs::remove_file(dir.path().join("encryption.key")).unwrap();
        let error = open(dir.path()).load("v").await.unwrap_err().to_string();
        assert!(error.contains("encryption.key is missing"), "{error}");
        assert!(!dir.path().join("encryption.key").exists());
    }

    #[tokio::test]
    async fn a_bad_key_is_named_and_not_quoted() {
        let dir = private_dir();
        let store = open_with(dir.path(), Some("hunter2"));
        let error = store
            .save("v", &mut grant("r"))
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("32 bytes") && !error.contains("hunter2"),
            "{error}"
        );
        assert!(!dir.path().join("v.grant").exists());
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_is_named() {
        let dir = private_dir();
        let path = dir.path().join("state");
        fs::write(&path, "a file").unwrap();
        let error = open(&path)
            .lock("v", LEASE, Duration::ZERO)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("state"), "{error}");
        open(&path).save("v", &mut grant("r")).await.unwrap_err();
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_is_neither_read_nor_in_the_way() {
        let dir = private_dir();
        let store = open(dir.path());
        let mut held = grant("r1");
        store.save("v", &mut held).await.unwrap();
        fs::write(dir.path().join("v.new"), "half a gra").unwrap();

        assert_eq!(stored(&open(dir.path()), "v").await, "r1");
        held.refresh_token = Some(Secret::new("r2"));
        store.save("v", &mut held).await.unwrap();
        assert_eq!(stored(&open(dir.path()), "v").await, "r2");
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_neither_read_nor_written() {
        let dir = private_dir();
        let path = dir.path().join("state");
        let store = open(&path);
        store.save("v", &mut grant("r1")).await.unwrap();
        for mode in [0o775, 0o702] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let errors = [
                open(&path).load("v").await.unwrap_err(),
                open(&path).save("w", &mut grant("r")).await.unwrap_err(),
                open(&path)
                    .lock("v", LEASE, Duration::ZERO)
                    .await
                    .unwrap_err(),
            ];
            for error in errors {
                let cure = format!("run `chmod 700 {}`", path.display());
                assert!(error.to_string().contains(&cure), "{error}");
            }
            assert!(!path.join("w.grant").exists());
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(stored(&open(&path), "v").await, "r1");
    }

    #[tokio::test]
    async fn a_link_in_the_place_of_a_new_file_is_not_followed() {
        let dir = private_dir();
        let (path, outside) = (dir.path().join("state"), dir.path().join("outside"));
        let store = open(&path);
        store.save("v", &mut grant("r1")).await.unwrap();
        fs::write(&outside, "not ours").unwrap();
        let link = |name: &str| std::os::unix::fs::symlink(&outside, path.join(name)).unwrap();
        link("v.new");
        let mut next = store.load("v").await.unwrap().unwrap();
        next.refresh_token = Some(Secret::new("r2"));
        store.save("v", &mut next).await.unwrap();
        assert_eq!(stored(&store, "v").await, "r2");
        link("w.lock");
        let refused = store.lock("w", LEASE, Duration::ZERO).await.unwrap_err();
        assert!(refused.to_string().contains("w.lock"), "{refused}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "not ours");
    }

    #[tokio::test]
    async fn no_vendors_name_leads_out_of_the_directory_or_onto_another_file() {
        let dir = private_dir();
        let path = dir.path().join("state");
        let store = open(&path);
        let names = [
            "../x",
            "a/b",
            ".",
            "encryption.key",
            "key",
            "a.grant",
            "a",
            "ä",
        ];
        for name in names {
            let _lock = store.lock(name, LEASE, Duration::ZERO).await.unwrap();
            store
                .save(name, &mut grant(&format!("for {name}")))
                .await
                .unwrap();
        }
        for name in names {
            assert_eq!(stored(&store, name).await, format!("for {name}"));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn stores_that_start_together_make_one_key() {
        let dir = private_dir();
        let path = state(&dir);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let directory = open(path).0;
                    let next = Grant {
                        version: 1,
                        ..grant("r")
                    };
                    directory.replace_grant(&n.to_string(), 0, &next).unwrap();
                });
            }
        });
        let last = open(&path).0;
        for n in 0..8 {
            assert!(last.load(&n.to_string()).unwrap().is_some());
        }
    }
}
