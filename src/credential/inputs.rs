//! Watches what a credential is made from: secrets and files.

use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

use crate::content_digest::ContentDigest;
use crate::secret::SecretRef;
use crate::tls::CertFiles;

/// Secrets and files, with a digest of their contents at the last fetch.
pub(super) struct Inputs {
    secrets: Vec<SecretRef>,
    files: Vec<PathBuf>,
    last_digest: Mutex<Option<Digest>>,
}

type Digest = [u8; 32];

impl Inputs {
    pub(super) fn new<'a>(
        secrets: impl IntoIterator<Item = &'a SecretRef>,
        identity: Option<&CertFiles>,
        ca: Option<&PathBuf>,
    ) -> Self {
        let files = identity
            .into_iter()
            .flat_map(|files| [&files.cert, &files.key])
            .chain(ca);
        Self {
            secrets: secrets.into_iter().cloned().collect(),
            files: files.cloned().collect(),
            last_digest: Mutex::new(None),
        }
    }

    /// Remembers the current contents. Call it before a fetch reads them: a change in between then
    /// costs one more fetch instead of going unnoticed.
    pub(super) fn snapshot(&self) {
        *self.last_digest.lock() = Some(self.digest());
    }

    /// Returns once the contents differ from the snapshot; never before [`Inputs::snapshot`].
    /// Checks at once, then every few seconds.
    pub(super) async fn changed(&self) {
        while !self.changed_since_snapshot() {
            // A thousand credentials started together must not all check at the same moment.
            sleep(POLL.mul_f64(0.8 + fastrand::f64() / 5.0)).await;
        }
    }

    /// Tells whether the contents differ from the snapshot; `false` before [`Inputs::snapshot`].
    pub(super) fn changed_since_snapshot(&self) -> bool {
        let last_digest = *self.last_digest.lock();
        last_digest.is_some_and(|last_digest| last_digest != self.digest())
    }

    /// Returns a digest of the current contents.
    ///
    /// # Errors
    /// Returns the first input that cannot be read, and why.
    pub(super) fn read(&self) -> Result<Digest, String> {
        for secret in &self.secrets {
            secret.resolve_bytes().map_err(|cause| cause.to_string())?;
        }
        for path in &self.files {
            std::fs::read(path)
                .map(zeroize::Zeroizing::new)
                .map_err(|cause| format!("{} cannot be read: {cause}", path.display()))?;
        }
        Ok(self.digest())
    }

    fn digest(&self) -> Digest {
        let mut digest = ContentDigest::default();
        for secret in &self.secrets {
            let bytes = secret.resolve_bytes().ok();
            digest.add(bytes.as_ref().map(|bytes| bytes.as_slice()));
        }
        for path in &self.files {
            // An unreadable file counts as a content of its own.
            let _ = digest.add_file(path);
        }
        digest.finish()
    }
}

/// Longest time between two checks. The documentation promises "in use within 10 s"; half of that
/// leaves time for the fetch.
pub(super) const POLL: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_removed_or_restored_file_is_noticed_and_an_unchanged_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "one").unwrap();
        let inputs = Inputs::new(&[SecretRef::File(path.clone())], None, None);

        inputs.snapshot();
        let minute = Duration::from_mins(1);
        assert!(timeout(minute, inputs.changed()).await.is_err());

        std::fs::write(&path, "two").unwrap();
        assert!(timeout(POLL * 2, inputs.changed()).await.is_ok());
        inputs.snapshot();
        std::fs::remove_file(&path).unwrap();
        assert!(timeout(POLL * 2, inputs.changed()).await.is_ok());
        inputs.snapshot();
        std::fs::write(&path, "").unwrap();
        assert!(timeout(POLL * 2, inputs.changed()).await.is_ok());
    }
}
