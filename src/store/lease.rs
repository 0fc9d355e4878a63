//! Locks in stores that do not see a process exit: they expire, and are renewed while their holder
//! lives.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::StoreError;
use crate::clock::End;

/// Operations on a lock that `holder` once acquired.
#[async_trait]
pub(super) trait LeaseStore: Send + Sync + 'static {
    /// Makes the lock last `lease` from now on; `false`: somebody else has it.
    async fn renew(&self, vendor: &str, holder: &str, lease: Duration) -> Result<bool, StoreError>;

    /// Releases the lock, if it is still the holder's.
    async fn release(&self, vendor: &str, holder: &str) -> Result<(), StoreError>;
}

/// A lock that is being renewed. Released when dropped, a moment later.
pub(super) struct HeldLease {
    until: Arc<Mutex<End>>,
    /// Dropping it ends the renewal.
    release_signal: oneshot::Sender<()>,
    renewal: JoinHandle<()>,
}

impl HeldLease {
    /// Starts the renewal. `requested` is the time before the lock was requested: it is ours no
    /// longer than the store thinks.
    pub(super) fn new(
        leases: Arc<dyn LeaseStore>,
        vendor: &str,
        holder: String,
        lease: Duration,
        requested: Instant,
    ) -> Self {
        let until = Arc::new(Mutex::new(End::at(requested + lease)));
        let (release_signal, released) = oneshot::channel();
        let renewing = renew_until_released(
            leases,
            vendor.to_owned(),
            holder,
            lease,
            until.clone(),
            released,
        );
        Self {
            until,
            release_signal,
            renewal: tokio::spawn(renewing),
        }
    }

    pub(super) fn is_expired(&self) -> bool {
        self.until.lock().has_come()
    }

    pub(super) async fn release(self) {
        drop(self.release_signal);
        // The renewal ends by itself, whatever the store responds.
        let _ = self.renewal.await;
    }
}

async fn renew_until_released(
    leases: Arc<dyn LeaseStore>,
    vendor: String,
    holder: String,
    lease: Duration,
    until: Arc<Mutex<End>>,
    mut released: oneshot::Receiver<()>,
) {
    let mut pause = lease / 3;
    loop {
        tokio::select! {
            _ = &mut released => break,
            () = sleep(pause) => {}
        }
        // An expired lock never becomes ours again: somebody may have had it since.
        if until.lock().has_come() {
            return;
        }
        let requested = Instant::now();
        let renewed_until = End::at(requested + lease);
        match leases.renew(&vendor, &holder, lease).await {
            Ok(true) => {
                *until.lock() = renewed_until;
                pause = lease / 3;
            }
            Ok(false) => {
                *until.lock() = End::at(requested);
                return;
            }
            // The store may be back before the lease expires.
            Err(_) => pause = lease / 15,
        }
    }
    // If this fails, others wait for one lease at most.
    let _ = leases.release(&vendor, &holder).await;
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;

    use super::super::{Kind, Lock};
    use super::*;

    /// Responds from a script, then always `true`; counts the releases.
    #[derive(Default)]
    struct Script {
        responses: Mutex<VecDeque<Result<bool, ()>>>,
        releases: Mutex<u32>,
    }

    #[async_trait]
    impl LeaseStore for Script {
        async fn renew(&self, _: &str, _: &str, _: Duration) -> Result<bool, StoreError> {
            let response = self.responses.lock().pop_front().unwrap_or(Ok(true));
            response.map_err(|()| StoreError::Locked("nobody".into()))
        }

        async fn release(&self, _: &str, holder: &str) -> Result<(), StoreError> {
            assert_eq!(holder, "us");
            *self.releases.lock() += 1;
            Ok(())
        }
    }

    const LEASE: Duration = Duration::from_secs(15);

    /// Returns an expired lock, for tests of what must not be done under it.
    pub(in super::super) fn expired_lock() -> Lock {
        let script = Arc::new(Script::default());
        let held = HeldLease::new(script, "v", "us".into(), Duration::ZERO, Instant::now());
        Lock(Kind::Lease(held))
    }

    fn held(responses: impl IntoIterator<Item = Result<bool, ()>>) -> (Arc<Script>, HeldLease) {
        let script = Arc::new(Script {
            responses: Mutex::new(responses.into_iter().collect()),
            releases: Mutex::default(),
        });
        let held = HeldLease::new(script.clone(), "v", "us".into(), LEASE, Instant::now());
        (script, held)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_held_as_long_as_its_holder_lives_and_given_up_with_it() {
        let (script, lock) = held([]);
        for _ in 0..100 {
            sleep(LEASE / 2).await;
            assert!(!lock.is_expired());
        }
        lock.release().await;
        assert_eq!(*script.releases.lock(), 1);

        let (script, lock) = held([]);
        drop(lock);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(*script.releases.lock(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_back_in_time_costs_nothing_and_one_that_is_not_costs_the_lock() {
        let (_, lock) = held([Err(()), Err(()), Err(())]);
        sleep(LEASE * 3).await;
        assert!(!lock.is_expired());

        let (script, lock) = held(vec![Err(()); 14]);
        sleep(LEASE).await;
        assert!(lock.is_expired());
        sleep(LEASE * 3).await;
        assert!(lock.is_expired(), "somebody else may have had it");
        assert_eq!(script.responses.lock().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_another_holds_is_expired() {
        let (script, lock) = held([Ok(true), Ok(false)]);
        sleep(LEASE / 2).await;
        assert!(!lock.is_expired());
        sleep(LEASE / 2).await;
        assert!(lock.is_expired());
        drop(lock);
        sleep(LEASE).await;
        assert_eq!(*script.releases.lock(), 0);
    }
}
