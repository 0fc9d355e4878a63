//! Locks in stores that do not see a process end: they lapse, and are prolonged while their
//! holder lives.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::StoreError;
use crate::clock::End;

/// What a store must be able to do with a lock that `holder` once got.
#[async_trait]
pub(super) trait Leases: Send + Sync + 'static {
    /// Makes it last `lease` from now on; `false`: it is not the holder's any more.
    async fn prolong(
        &self,
        vendor: &str,
        holder: &str,
        lease: Duration,
    ) -> Result<bool, StoreError>;

    /// Gives it up, if it is still the holder's.
    async fn end(&self, vendor: &str, holder: &str) -> Result<(), StoreError>;
}

/// A lock that is being prolonged. Given up when dropped, a moment later.
pub(super) struct Held {
    until: Arc<Mutex<End>>,
    /// Dropping it ends the keeper.
    letting_go: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Held {
    /// `asked` is the time before the lock was asked for: it is ours no longer than the store
    /// thinks.
    pub(super) fn new(
        leases: Arc<dyn Leases>,
        vendor: &str,
        holder: String,
        lease: Duration,
        asked: Instant,
    ) -> Self {
        let until = Arc::new(Mutex::new(End::at(asked + lease)));
        let (letting_go, let_go) = oneshot::channel();
        let keeping = keep(
            leases,
            vendor.to_owned(),
            holder,
            lease,
            until.clone(),
            let_go,
        );
        Self {
            until,
            letting_go,
            keeper: tokio::spawn(keeping),
        }
    }

    pub(super) fn lapsed(&self) -> bool {
        self.until.lock().has_come()
    }

    pub(super) async fn release(self) {
        drop(self.letting_go);
        // It ends by itself, whatever the store says.
        let _ = self.keeper.await;
    }
}

async fn keep(
    leases: Arc<dyn Leases>,
    vendor: String,
    holder: String,
    lease: Duration,
    until: Arc<Mutex<End>>,
    mut let_go: oneshot::Receiver<()>,
) {
    let mut pause = lease / 3;
    loop {
        tokio::select! {
            _ = &mut let_go => break,
            () = sleep(pause) => {}
        }
        // Once lapsed it never becomes ours again: somebody may have had it since.
        if until.lock().has_come() {
            return;
        }
        let asked = Instant::now();
        let prolonged = End::at(asked + lease);
        match leases.prolong(&vendor, &holder, lease).await {
            Ok(true) => {
                *until.lock() = prolonged;
                pause = lease / 3;
            }
            Ok(false) => {
                *until.lock() = End::at(asked);
                return;
            }
            // The store may be back before the lease is over.
            Err(_) => pause = lease / 15,
        }
    }
    // Whoever waits for it waits a lease at most.
    let _ = leases.end(&vendor, &holder).await;
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::VecDeque;

    use super::super::{Kind, Lock};
    use super::*;

    /// Answers from a script, then always yes; counts the ends.
    #[derive(Default)]
    struct Script {
        answers: Mutex<VecDeque<Result<bool, ()>>>,
        ended: Mutex<u32>,
    }

    #[async_trait]
    impl Leases for Script {
        async fn prolong(&self, _: &str, _: &str, _: Duration) -> Result<bool, StoreError> {
            let answer = self.answers.lock().pop_front().unwrap_or(Ok(true));
            answer.map_err(|()| StoreError::Locked("nobody".into()))
        }

        async fn end(&self, _: &str, holder: &str) -> Result<(), StoreError> {
            assert_eq!(holder, "us");
            *self.ended.lock() += 1;
            Ok(())
        }
    }

    const LEASE: Duration = Duration::from_secs(15);

    /// For tests of what must not be done under it.
    pub(in super::super) fn lapsed() -> Lock {
        let script = Arc::new(Script::default());
        let held = Held::new(script, "v", "us".into(), Duration::ZERO, Instant::now());
        Lock(Kind::Lease(held))
    }

    fn held(answers: impl IntoIterator<Item = Result<bool, ()>>) -> (Arc<Script>, Held) {
        let script = Arc::new(Script {
            answers: Mutex::new(answers.into_iter().collect()),
            ended: Mutex::default(),
        });
        let held = Held::new(script.clone(), "v", "us".into(), LEASE, Instant::now());
        (script, held)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_held_as_long_as_its_holder_lives_and_given_up_with_it() {
        let (script, lock) = held([]);
        for _ in 0..100 {
            sleep(LEASE / 2).await;
            assert!(!lock.lapsed());
        }
        lock.release().await;
        assert_eq!(*script.ended.lock(), 1);

        let (script, lock) = held([]);
        drop(lock);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(*script.ended.lock(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_back_in_time_costs_nothing_and_one_that_is_not_costs_the_lock() {
        let (_, lock) = held([Err(()), Err(()), Err(())]);
        sleep(LEASE * 3).await;
        assert!(!lock.lapsed());

        let (script, lock) = held(vec![Err(()); 14]);
        sleep(LEASE).await;
        assert!(lock.lapsed());
        sleep(LEASE * 3).await;
        assert!(lock.lapsed(), "somebody else may have had it");
        assert_eq!(script.answers.lock().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_somebody_else_has_is_known_to_be_lost() {
        let (script, lock) = held([Ok(true), Ok(false)]);
        sleep(LEASE / 2).await;
        assert!(!lock.lapsed());
        sleep(LEASE / 2).await;
        assert!(lock.lapsed());
        drop(lock);
        sleep(LEASE).await;
        assert_eq!(*script.ended.lock(), 0);
    }
}
