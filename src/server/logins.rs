//! Revoked logins (`login: stub`), shared through the store in the background by processes that
//! accept each other's caller tokens. Requests use only what is known in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::request::caller::token::Mint;
use crate::secret::Secret;
use crate::store::{Grant, Store, StoreError};

/// Name of their entry in the store, beside the vendors' grants: no vendor can have this name.
const ENTRY: &str = "none";
/// Binding of the entry.
const BINDING: &str = "ended logins";
/// Interval between reads of the store. The documentation promises "known everywhere within 10 s".
const EVERY: Duration = Duration::from_secs(5);
/// Pause after a failure; a caller waits for up to five seconds.
const AGAIN: Duration = Duration::from_secs(1);
/// Lease of the lock on the entry, and the time to wait for the lock of another process.
const LEASE: Duration = Duration::from_secs(10);
const LOCKED: Duration = Duration::from_secs(4);

/// The task that shares revoked logins with other processes. Dropping this ends it.
#[derive(Debug)]
pub(super) struct EndedLoginSync {
    task: AbortHandle,
    settled: Arc<AtomicBool>,
}

impl EndedLoginSync {
    /// Tells whether the first attempt to read the store has ended, in success or failure.
    pub(super) fn settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }
}

impl Drop for EndedLoginSync {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the task. Must be called inside a tokio runtime, on which the task then runs.
pub(super) fn start(mint: Arc<Mint>, store: Arc<dyn Store>) -> EndedLoginSync {
    let settled = Arc::new(AtomicBool::new(false));
    let task = tokio::spawn(keep_alike(mint, store, settled.clone()));
    EndedLoginSync {
        task: task.abort_handle(),
        settled,
    }
}

async fn keep_alike(mint: Arc<Mint>, store: Arc<dyn Store>, settled: Arc<AtomicBool>) {
    let mut failing = false;
    loop {
        let exchanged = exchange(&mint, store.as_ref()).await;
        settled.store(true, Ordering::Release);
        let pause = match exchanged {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("revoked logins are shared through the store again");
                }
                EVERY
            }
            Err(cause) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        %cause,
                        "revoked logins cannot be shared: tokens that are revoked at one replica stay \
                         valid at the others until the store is available"
                    );
                }
                AGAIN
            }
        };
        if failing {
            sleep(pause).await;
        } else {
            tokio::select! {
                () = sleep(pause) => {}
                () = mint.ended().more() => {}
            }
        }
    }
}

/// Reads revoked logins from the store and writes those that the store lacks.
async fn exchange(mint: &Mint, store: &dyn Store) -> Result<(), StoreError> {
    let ended = mint.ended();
    let here = ended.here();
    let stored = store.load(ENTRY).await?;
    if ended.merge(&content(stored.as_ref())) {
        let lock = store.lock(ENTRY, LEASE, LOCKED).await?;
        let stored = store.load(ENTRY).await?;
        ended.merge(&content(stored.as_ref()));
        let mut grant = stored.unwrap_or_default();
        BINDING.clone_into(&mut grant.binding);
        grant.refresh_token = Some(Secret::new(STANDARD.encode(ended.written())));
        let saved = store.save(ENTRY, &mut grant).await;
        lock.release().await;
        saved?;
    }
    ended.are_stored(here);
    Ok(())
}

fn content(stored: Option<&Grant>) -> Vec<u8> {
    let text = stored.and_then(|grant| grant.refresh_token.as_ref());
    text.and_then(|text| STANDARD.decode(text.expose()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::secret::SecretRef;

    fn file_store(dir: &std::path::Path) -> Arc<dyn Store> {
        let key = SecretRef::Value(Secret::new("0123456789abcdef".repeat(4)));
        crate::store::open(&config::Store::File {
            dir: dir.to_owned(),
            encryption_key: Some(key),
        })
    }

    #[tokio::test]
    async fn what_one_process_ended_the_next_and_the_others_know() {
        let dir = tempfile::tempdir().unwrap();
        let mints = [(); 3].map(|()| Mint::new(Some(b"shared")));
        let state = dir.path().join("state");
        for (nth, mint) in mints.iter().enumerate() {
            let store = file_store(&state);
            exchange(mint, store.as_ref()).await.unwrap();
            assert!(mint.ended().heard());
            assert_eq!(state.exists(), nth > 0, "nothing is written for nothing");
            let id = [u8::try_from(nth).unwrap(); 8];
            mint.ended().end_one(id);
            exchange(mint, store.as_ref()).await.unwrap();
            assert!(mint.ended().stored().await);
        }
        let last = Mint::new(Some(b"shared"));
        let store = file_store(&state);
        exchange(&last, store.as_ref()).await.unwrap();
        exchange(&mints[0], store.as_ref()).await.unwrap();
        let know = |mint: &Mint| mint.ended().written().len();
        assert_eq!(know(&last), know(&mints[2]));
        assert_eq!(know(&last), know(&mints[0]));
        assert!(know(&last) > 2 * know(&mints[0]) / 3);
    }
}
