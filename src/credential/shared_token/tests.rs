//! Replicas of a vendor that keeps one token alive for each client.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::time::timeout;

use super::super::fakes::{ExpiredLocks, fetched_token, file_store, hour_of, times, value, vendor};
use super::super::rotation::Rotation;
use super::super::{FetchError, Source};
use super::*;
use crate::config::Auth;
use crate::secret::SecretRef;
use crate::store::{Access, Grant, Store};

/// Counts the requests.
#[derive(Default)]
struct Server {
    requests: AtomicU32,
    refuses: AtomicBool,
}

impl Server {
    fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

struct Client {
    server: Arc<Server>,
    scope: &'static str,
}

#[async_trait]
impl RequestsToken for Client {
    async fn request_token(&self) -> Result<TokenResponse, TokenError> {
        if self.server.refuses.load(Ordering::SeqCst) {
            return Err(TokenError::NotSent("refused".to_owned()));
        }
        let nth = self.server.requests.fetch_add(1, Ordering::SeqCst) + 1;
        // Some servers give a refresh token, against RFC 6749 §4.4.3.
        let refresh_token = Some(Secret::new("not to be stored"));
        Ok(hour_of(format!("t{nth}"), refresh_token))
    }

    fn account(&self) -> Option<[u8; 32]> {
        None
    }

    fn request_parts(&self) -> Vec<String> {
        vec![self.scope.to_owned()]
    }
}

struct Setup {
    server: Arc<Server>,
    dir: TempDir,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "one").unwrap();
        Self {
            server: Arc::default(),
            dir,
        }
    }

    fn secret(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn store_in(&self, dir: &str, key: Option<&str>) -> Arc<dyn Store> {
        file_store(self.dir.path().join(dir), key)
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store_in("state", None)
    }

    fn process(&self) -> Rotation<SharedToken<Client>> {
        self.process_with(&self.store(), "read", &self.secret())
    }

    fn process_with(
        &self,
        store: &Arc<dyn Store>,
        scope: &'static str,
        secret: &std::path::Path,
    ) -> Rotation<SharedToken<Client>> {
        let client = Client {
            server: self.server.clone(),
            scope,
        };
        let inputs = || Inputs::new(&[SecretRef::File(secret.to_owned())], None, None);
        let vendor = vendor(Auth::Bearer { token: value("x") });
        let issuer = SharedToken::new(client, inputs());
        Rotation::new(issuer, inputs(), store, &vendor, times())
    }

    async fn stored(&self) -> Grant {
        self.store().load("acme").await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn later_processes_adopt_the_stored_token_and_no_refresh_token_is_stored() {
    let setup = Setup::new();
    assert_eq!(fetched_token(setup.process().fetch().await), "t1");
    assert_eq!(fetched_token(setup.process().fetch().await), "t1");
    assert_eq!(setup.server.requests(), 1);
    assert!(setup.stored().await.refresh_token.is_none());
}

#[tokio::test]
async fn after_a_rejection_one_requests_a_token_and_the_others_adopt_it() {
    let setup = Setup::new();
    let (one, two, three) = (setup.process(), setup.process(), setup.process());
    for process in [&one, &two, &three] {
        assert_eq!(fetched_token(process.fetch().await), "t1");
    }
    // All of them were told 401 at the same moment.
    let (a, b, c) = tokio::join!(one.fetch(), two.fetch(), three.fetch());
    assert_eq!(
        [fetched_token(a), fetched_token(b), fetched_token(c)],
        ["t2", "t2", "t2"]
    );
    assert_eq!(setup.server.requests(), 2);
}

#[tokio::test]
async fn a_newer_token_in_the_store_is_noticed_without_a_rejection() {
    let setup = Setup::new();
    let (one, two) = (setup.process(), setup.process());
    one.fetch().await.unwrap();
    two.fetch().await.unwrap();
    assert_eq!(fetched_token(one.fetch().await), "t2");

    tokio::time::pause();
    let soon = timeout(Duration::from_secs(10), two.changed());
    soon.await.expect("the newer token goes unnoticed");
    assert_eq!(fetched_token(two.fetch().await), "t2");
    assert_eq!(setup.server.requests(), 2);
}

#[tokio::test]
async fn a_stored_token_past_its_use_is_replaced() {
    let setup = Setup::new();
    setup.process().fetch().await.unwrap();
    let mut grant = setup.stored().await;
    grant.access = Some(Access {
        token: Secret::new("t1"),
        issued: SystemTime::now() - Duration::from_hours(1),
        lifetime: Duration::from_hours(1),
    });
    setup.store().save("acme", &mut grant).await.unwrap();
    assert_eq!(fetched_token(setup.process().fetch().await), "t2");
}

#[tokio::test]
async fn a_token_of_another_secret_or_scope_is_not_used_and_stays_until_there_is_one_of_ours() {
    let setup = Setup::new();
    let is_ours = setup.process();
    assert_eq!(fetched_token(is_ours.fetch().await), "t1");
    let other = setup.dir.path().join("other");
    std::fs::write(&other, "two").unwrap();
    let others = setup.process_with(&setup.store(), "read", &other);

    // A wrong secret takes nothing away from those who have the right one.
    setup.server.refuses.store(true, Ordering::SeqCst);
    assert_eq!(others.fetch().await.unwrap_err().to_string(), "refused");
    assert_eq!(fetched_token(setup.process().fetch().await), "t1");
    setup.server.refuses.store(false, Ordering::SeqCst);
    assert_eq!(fetched_token(others.fetch().await), "t2");
    let wider = setup.process_with(&setup.store(), "read write", &setup.secret());
    assert_eq!(fetched_token(wider.fetch().await), "t3");

    // While secrets are being replaced the two do not take turns.
    tokio::time::pause();
    let long = timeout(Duration::from_mins(1), is_ours.changed());
    assert!(long.await.is_err(), "another's token is no news");
    tokio::time::resume();
    // A replica that cannot read its secret changes nothing.
    std::fs::remove_file(&other).unwrap();
    let error = others.fetch().await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    assert_eq!(setup.server.requests(), 3);
}

#[tokio::test]
async fn a_changed_secret_asks_for_a_token_of_its_own() {
    let setup = Setup::new();
    let process = setup.process();
    process.fetch().await.unwrap();
    std::fs::write(setup.secret(), "two").unwrap();
    tokio::time::pause();
    let soon = timeout(Duration::from_secs(10), process.changed());
    soon.await.expect("the changed secret goes unnoticed");
    assert_eq!(fetched_token(process.fetch().await), "t2");
}

#[tokio::test]
async fn a_store_that_is_down_or_sealed_with_another_key_says_so_and_nothing_is_asked_for() {
    let setup = Setup::new();
    std::fs::write(setup.dir.path().join("file"), "").unwrap();
    let nowhere = setup.store_in("file", None);
    let process = setup.process_with(&nowhere, "read", &setup.secret());
    let error = process.fetch().await.unwrap_err().to_string();
    assert!(error.starts_with("store: "), "{error}");

    let keys = ["1", "2"].map(|digit| digit.repeat(64));
    let [first, second] = keys.map(|key| setup.store_in("keyed", Some(&key)));
    let process = setup.process_with(&first, "read", &setup.secret());
    assert_eq!(fetched_token(process.fetch().await), "t1");
    let process = setup.process_with(&second, "read", &setup.secret());
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Temporary { .. }));
    assert!(error.to_string().contains("encryption_key"), "{error}");
    assert_eq!(setup.server.requests(), 1);
}

#[tokio::test]
async fn a_process_that_waits_for_the_lock_adopts_what_its_holder_stored() {
    let setup = Setup::new();
    let store = setup.store();
    let (lease, patience) = (Duration::from_secs(5), Duration::ZERO);
    let held = store.lock("acme", lease, patience).await.unwrap();
    let process = setup.process();
    let mut waiting = std::pin::pin!(process.fetch());
    let soon = timeout(Duration::from_millis(300), &mut waiting);
    assert!(soon.await.is_err(), "the lock is another's");
    assert_eq!(setup.server.requests(), 0);
    // Its holder dies, and the system releases the lock.
    drop(held);
    assert_eq!(fetched_token(waiting.await), "t1");
}

#[tokio::test]
async fn a_process_paused_beyond_its_lease_requests_nothing() {
    let setup = Setup::new();
    let store: Arc<dyn Store> = Arc::new(ExpiredLocks(setup.store()));
    let process = setup.process_with(&store, "read", &setup.secret());
    let error = process.fetch().await.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
    assert_eq!(setup.server.requests(), 0);
}
