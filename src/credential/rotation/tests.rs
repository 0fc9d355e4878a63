//! Refresh tokens at a server that accepts each of them once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::super::fakes::{ExpiredLocks, fetched_token, file_store, hour_of, times, value, vendor};
use super::super::issuer::GrantFuture;
use super::*;
use crate::config::Auth;

/// A server whose refresh tokens work once, and which revokes the family when it sees one twice.
#[derive(Default)]
struct RotatingServer {
    valid: Mutex<Option<String>>,
    issued: AtomicU32,
    sent: Mutex<Vec<String>>,
    granted: AtomicU32,
    failures: Mutex<VecDeque<Failure>>,
    /// When set, a refresh waits here after it was carried out.
    gate: Mutex<Option<Arc<Notify>>>,
    reached: Notify,
    /// Responds without a refresh token: the old one stays valid.
    reusable: AtomicBool,
}

enum Failure {
    /// Not carried out, and the client knows.
    Unreachable,
    /// Carried out, but the client gets no response.
    ResponseLost,
    /// Invalid, because somebody obtained and stored another grant meanwhile.
    Superseded,
    /// The client's secret is wrong.
    InvalidClient,
    /// Refused without a reason.
    NoReason,
    /// Refused in words that speak of an invalid refresh token.
    MessageOnly,
}

impl RotatingServer {
    fn issue(&self) -> TokenResponse {
        let n = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
        let refresh_token = format!("r{n}");
        let reusable = self.reusable.load(Ordering::SeqCst);
        if !reusable {
            *self.valid.lock() = Some(refresh_token.clone());
        }
        let refresh_token = (!reusable).then(|| Secret::new(refresh_token));
        hour_of(format!("a{n}"), refresh_token)
    }

    fn sent(&self) -> Vec<String> {
        self.sent.lock().clone()
    }
}

/// A client of the server, as one process is.
struct Client {
    server: Arc<RotatingServer>,
    store: Arc<dyn Store>,
    name: &'static str,
    unattended: bool,
}

#[async_trait]
impl Issuer for Client {
    fn binding(&self) -> Result<String, String> {
        Ok(self.name.to_owned())
    }

    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, TokenError> {
        let server = &self.server;
        // The token was announced in the store before it was sent.
        let stored = self.store.load("acme").await.unwrap().unwrap();
        let intent = stored.intent.clone().expect("no intent was stored");
        assert_eq!(intent.refresh_token, Some(fingerprint(refresh_token)));

        let refused = |code, verdict| TokenError::Refused {
            status: StatusCode::BAD_REQUEST,
            code: Some(code),
            verdict,
            cause: code.to_owned(),
        };
        let lost = |not_received| TokenError::Temporary {
            cause: "lost".into(),
            retry_after: None,
            not_received,
        };
        let failure = server.failures.lock().pop_front();
        match failure {
            Some(Failure::Unreachable) => return Err(lost(true)),
            Some(Failure::InvalidClient) => {
                return Err(refused("invalid_client", Verdict::Unrelated));
            }
            Some(Failure::NoReason) => {
                return Err(TokenError::Refused {
                    status: StatusCode::BAD_REQUEST,
                    code: None,
                    verdict: Verdict::Unclear,
                    cause: "no OAuth error in the response".to_owned(),
                });
            }
            Some(Failure::MessageOnly) => {
                return Err(TokenError::Refused {
                    status: StatusCode::FORBIDDEN,
                    code: Some("unauthorized_client"),
                    verdict: Verdict::ProbablyInvalid,
                    cause: "unauthorized_client".to_owned(),
                });
            }
            Some(Failure::Superseded) => {
                let response = server.issue();
                let mut stored = stored;
                stored.refresh_token = response.refresh_token;
                stored.access = Some(Access {
                    token: response.access_token,
                    issued: SystemTime::now(),
                    lifetime: response.lifetime.total,
                });
                self.store.save("acme", &mut stored).await.unwrap();
                return Err(refused("invalid_grant", Verdict::Invalid));
            }
            Some(Failure::ResponseLost) | None => {}
        }
        server.sent.lock().push(refresh_token.expose().to_owned());
        let good = server.valid.lock().as_deref() == Some(refresh_token.expose());
        if !good {
            *server.valid.lock() = None;
            return Err(refused("invalid_grant", Verdict::Invalid));
        }
        let response = server.issue();
        let gate = server.gate.lock().clone();
        if let Some(gate) = gate {
            server.reached.notify_one();
            gate.notified().await;
        }
        match failure {
            Some(Failure::ResponseLost) => Err(lost(false)),
            _ => Ok(response),
        }
    }

    fn invalidates_grant(&self, _status: StatusCode, verdict: Verdict) -> bool {
        verdict == Verdict::Invalid
    }

    fn grant(&self) -> Option<GrantFuture<'_>> {
        self.unattended.then(|| {
            Box::pin(async {
                self.server.granted.fetch_add(1, Ordering::SeqCst);
                Ok(self.server.issue())
            }) as GrantFuture<'_>
        })
    }
}

struct Setup {
    server: Arc<RotatingServer>,
    dir: TempDir,
    unattended: bool,
}

impl Setup {
    fn new() -> Self {
        Self {
            server: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
            unattended: false,
        }
    }

    /// Makes the client one that can request a grant without a person.
    fn unattended() -> Self {
        Self {
            unattended: true,
            ..Self::new()
        }
    }

    fn store(&self) -> Arc<dyn Store> {
        file_store(self.dir.path().join("state"), None)
    }

    fn process(&self) -> Rotation<Client> {
        self.process_with(&self.store(), "us")
    }

    fn process_with(&self, store: &Arc<dyn Store>, name: &'static str) -> Rotation<Client> {
        let client = Client {
            server: self.server.clone(),
            store: store.clone(),
            name,
            unattended: self.unattended,
        };
        let vendor = vendor(Auth::Bearer { token: value("x") });
        let inputs = Inputs::new([], None, None);
        Rotation::new(client, inputs, store, &vendor, times())
    }

    async fn stored(&self) -> Grant {
        self.store().load("acme").await.unwrap().unwrap_or_default()
    }

    /// Records a consent: the server's first pair is in the store.
    async fn consented(self) -> Self {
        let response = self.server.issue();
        self.change_stored(|grant| {
            grant.refresh_token = response.refresh_token;
            grant.access = Some(Access {
                token: response.access_token,
                issued: SystemTime::now(),
                lifetime: Duration::from_hours(1),
            });
        })
        .await;
        self
    }

    async fn change_stored(&self, change: impl FnOnce(&mut Grant)) {
        let mut grant = self.stored().await;
        "us".clone_into(&mut grant.binding);
        change(&mut grant);
        self.store().save("acme", &mut grant).await.unwrap();
    }
}

fn refresh_token(grant: &Grant) -> Option<&str> {
    grant.refresh_token.as_ref().map(Secret::expose)
}

#[tokio::test]
async fn without_a_grant_a_person_is_asked_for_and_the_consent_is_noticed() {
    let setup = Setup::new();
    let process = setup.process();
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Reauthorize(_)));
    assert_eq!(
        error.to_string(),
        "no consent is stored; run `countersign authorize acme`"
    );

    tokio::time::pause();
    let long = timeout(Duration::from_mins(1), process.changed());
    assert!(long.await.is_err(), "nothing has changed");
    let setup = setup.consented().await;
    let soon = timeout(Duration::from_secs(10), process.changed());
    soon.await.expect("the consent goes unnoticed");
    assert_eq!(fetched_token(process.fetch().await), "a1");
    assert!(setup.server.sent().is_empty());
}

#[tokio::test]
async fn a_stored_access_token_is_used_at_once_and_then_renewed_by_spending() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    let issued = process.fetch().await.unwrap();
    let lifetime = issued.lifetime.unwrap();
    assert_eq!(lifetime.total, Duration::from_hours(1));
    assert!(lifetime.end <= Instant::now() + lifetime.total);
    assert!(setup.server.sent().is_empty());

    assert_eq!(fetched_token(process.fetch().await), "a2");
    assert_eq!(fetched_token(process.fetch().await), "a3");
    assert_eq!(setup.server.sent(), ["r1", "r2"]);
    let stored = setup.stored().await;
    assert_eq!(refresh_token(&stored), Some("r3"));
    assert_eq!(stored.intent, None);

    // The next process: nothing to spend either.
    assert_eq!(fetched_token(setup.process().fetch().await), "a3");
    assert_eq!(setup.server.sent().len(), 2);
}

#[tokio::test]
async fn an_access_token_past_its_use_is_not_handed_out() {
    let setup = Setup::new().consented().await;
    setup
        .change_stored(|grant| {
            let access = grant.access.as_mut().unwrap();
            access.issued = SystemTime::now() - Duration::from_secs(3595);
        })
        .await;
    assert_eq!(fetched_token(setup.process().fetch().await), "a2");
    assert_eq!(setup.server.sent(), ["r1"]);
}

#[tokio::test]
async fn a_response_without_a_refresh_token_keeps_the_old_one() {
    let setup = Setup::new().consented().await;
    setup.server.reusable.store(true, Ordering::SeqCst);
    let process = setup.process();
    for expected in ["a1", "a2", "a3"] {
        assert_eq!(fetched_token(process.fetch().await), expected);
    }
    assert_eq!(setup.server.sent(), ["r1", "r1"]);
    assert_eq!(refresh_token(&setup.stored().await), Some("r1"));
}

#[tokio::test]
async fn a_caller_that_stops_waiting_loses_no_response() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    let gate = Arc::new(Notify::new());
    *setup.server.gate.lock() = Some(gate.clone());

    tokio::select! {
        _ = process.fetch() => panic!("the bank is waiting"),
        () = setup.server.reached.notified() => {}
    }
    drop(process);
    *setup.server.gate.lock() = None;
    gate.notify_one();
    // The next process waits for the lock, which is released when the response was stored.
    let next = setup.process();
    next.0.state.lock().handed_out = Some(sha256(&[b"a1"]));
    assert_eq!(fetched_token(next.fetch().await), "a2");
    assert_eq!(setup.server.sent(), ["r1"]);
    assert_eq!(refresh_token(&setup.stored().await), Some("r2"));
}

#[tokio::test]
async fn an_intent_without_a_result_is_tried_exactly_once() {
    // A crash after the server had acted, and one before.
    for acted in [true, false] {
        let setup = Setup::new().consented().await;
        setup
            .change_stored(|grant| {
                grant.access = None;
                grant.intent = Some(Intent {
                    refresh_token: Some(fingerprint(&Secret::new("r1"))),
                    at: SystemTime::now(),
                    tries: 1,
                });
            })
            .await;
        if acted {
            setup.server.issue();
        }

        let process = setup.process();
        let first = process.fetch().await;
        if acted {
            let error = first.unwrap_err();
            assert!(matches!(error, FetchError::Reauthorize(_)), "{error}");
            for _ in 0..3 {
                process.fetch().await.unwrap_err();
                setup.process().fetch().await.unwrap_err();
            }
            assert_eq!(refresh_token(&setup.stored().await), None);
        } else {
            assert_eq!(fetched_token(first), "a2");
        }
        assert_eq!(setup.server.sent(), ["r1"], "{acted}");
    }
}

#[tokio::test]
async fn a_lost_response_leads_to_a_consent_or_a_new_grant() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    setup
        .server
        .failures
        .lock()
        .push_back(Failure::ResponseLost);
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Temporary { .. }));
    assert_eq!(setup.stored().await.intent.unwrap().tries, 1);
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Reauthorize(_)));
    assert_eq!(setup.server.sent(), ["r1", "r1"]);

    let setup = Setup::unattended().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    setup
        .server
        .failures
        .lock()
        .push_back(Failure::ResponseLost);
    process.fetch().await.unwrap_err();
    assert_eq!(fetched_token(process.fetch().await), "a3");
    assert_eq!(setup.server.granted.load(Ordering::SeqCst), 1);
    assert_eq!(refresh_token(&setup.stored().await), Some("r3"));
}

#[tokio::test]
async fn a_refusal_without_a_reason_ends_the_grant_only_after_a_lost_response() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    setup.server.failures.lock().push_back(Failure::NoReason);
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Rejected(_)), "{error}");
    assert_eq!(refresh_token(&setup.stored().await), Some("r1"));

    let failures = [Failure::ResponseLost, Failure::NoReason];
    setup.server.failures.lock().extend(failures);
    process.fetch().await.unwrap_err();
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Reauthorize(_)), "{error}");
    assert_eq!(refresh_token(&setup.stored().await), None);
}

#[tokio::test]
async fn a_probably_invalid_refresh_token_waits_for_a_person_and_is_kept() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    setup.server.failures.lock().push_back(Failure::MessageOnly);
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Reauthorize(_)), "{error}");
    let error = error.to_string();
    for advice in ["countersign authorize acme", "/vendors/acme/refresh"] {
        assert!(error.contains(advice), "{error}");
    }
    let stored = setup.stored().await;
    assert_eq!(
        (refresh_token(&stored), stored.intent.as_ref()),
        (Some("r1"), None)
    );
    // It was the client's fault, and somebody has corrected it.
    assert_eq!(fetched_token(process.fetch().await), "a2");

    // A server that grants without a person is asked for another grant once this one is refused for
    // good.
    setup.server.failures.lock().push_back(Failure::NoReason);
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Rejected(_)), "{error}");
    let error = error.to_string();
    for advice in ["the client is refused", "countersign authorize acme"] {
        assert!(error.contains(advice), "{error}");
    }
}

/// Returns the pause that a temporary failure asks for.
fn pause(error: &FetchError) -> Duration {
    let FetchError::Temporary { retry_after, .. } = error else {
        panic!("{error:?}");
    };
    retry_after.unwrap_or_default()
}

#[tokio::test]
async fn a_refresh_token_whose_responses_get_lost_is_sent_twice_and_then_rarely() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    for lost in 1..=2 {
        // The server never takes it for spent: it was out of order.
        *setup.server.valid.lock() = Some("r1".into());
        setup
            .server
            .failures
            .lock()
            .push_back(Failure::ResponseLost);
        let error = process.fetch().await.unwrap_err();
        let rarely = pause(&error) >= LOST_RESPONSE_PAUSE;
        assert_eq!(rarely, lost == 2, "{error}");
        assert_eq!(
            error.to_string().contains("countersign authorize acme"),
            rarely
        );
    }
    // Neither by this process nor by another one, nor after a restart.
    *setup.server.valid.lock() = Some("r1".into());
    let other = setup.process();
    other.0.state.lock().handed_out = Some(sha256(&[b"a1"]));
    for process in [&process, &other, &process] {
        let left = pause(&process.fetch().await.unwrap_err());
        assert!(left >= Duration::from_mins(3), "{left:?}");
    }
    assert_eq!(setup.server.sent(), ["r1", "r1"]);

    // An operator asks, and the response is lost again.
    setup
        .server
        .failures
        .lock()
        .push_back(Failure::ResponseLost);
    process.end_pause();
    process.fetch().await.unwrap_err();
    process.fetch().await.unwrap_err();
    assert_eq!(setup.server.sent(), ["r1", "r1", "r1"]);

    // After the pause it is sent automatically.
    *setup.server.valid.lock() = Some("r1".into());
    setup
        .change_stored(|grant| {
            let intent = grant.intent.as_mut().unwrap();
            intent.at = SystemTime::now() - LOST_RESPONSE_PAUSE;
        })
        .await;
    assert!(fetched_token(process.fetch().await).starts_with('a'));
    assert_eq!(setup.server.sent().len(), 4);
    assert_eq!(setup.stored().await.intent, None);
}

#[tokio::test]
async fn lost_responses_lead_to_a_new_grant_where_one_can_be_requested() {
    let setup = Setup::unattended().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    for _ in 0..2 {
        setup
            .server
            .failures
            .lock()
            .push_back(Failure::ResponseLost);
        *setup.server.valid.lock() = Some("r1".into());
        process.fetch().await.unwrap_err();
    }
    process.fetch().await.unwrap();
    assert_eq!(setup.server.sent(), ["r1", "r1"]);
    assert_eq!(setup.server.granted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_that_was_not_reached_has_spent_nothing() {
    let setup = Setup::unattended().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    for _ in 0..5 {
        setup.server.failures.lock().push_back(Failure::Unreachable);
        process.fetch().await.unwrap_err();
        assert_eq!(setup.stored().await.intent, None);
    }
    assert_eq!(fetched_token(process.fetch().await), "a2");
    assert_eq!(setup.server.granted.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_refusal_of_the_client_leaves_the_grant_alone() {
    let setup = Setup::unattended().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    setup
        .server
        .failures
        .lock()
        .push_back(Failure::InvalidClient);
    let error = process.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Rejected(_)));
    let stored = setup.stored().await;
    assert_eq!(
        (refresh_token(&stored), stored.intent.as_ref()),
        (Some("r1"), None)
    );
    assert_eq!(fetched_token(process.fetch().await), "a2");
}

#[tokio::test]
async fn a_grant_past_its_end_is_replaced_without_showing_its_refresh_token() {
    let setup = Setup::unattended().consented().await;
    setup
        .change_stored(|grant| {
            grant.access = None;
            grant.refresh_until = Some(SystemTime::now() + TRANSIT_TIME / 2);
        })
        .await;
    assert_eq!(fetched_token(setup.process().fetch().await), "a2");
    assert!(setup.server.sent().is_empty());
    assert_eq!(setup.stored().await.refresh_until, None);
}

#[tokio::test]
async fn another_clients_grant_is_neither_used_nor_sent() {
    let setup = Setup::new().consented().await;
    let other = setup.process_with(&setup.store(), "somebody else");
    let error = other.fetch().await.unwrap_err().to_string();
    assert!(error.contains("another client_id"), "{error}");
    assert!(setup.server.sent().is_empty());
    assert_eq!(fetched_token(setup.process().fetch().await), "a1");
}

#[tokio::test]
async fn processes_that_share_a_directory_never_show_a_refresh_token_twice() {
    let setup = Setup::new().consented().await;
    let processes: Vec<_> = (0..4).map(|_| Arc::new(setup.process())).collect();
    for round in 1..20 {
        let fetching: Vec<_> = processes
            .iter()
            .cloned()
            .map(|process| tokio::spawn(async move { fetched_token(process.fetch().await) }))
            .collect();
        for fetched in fetching {
            let token = fetched.await.unwrap();
            let n: u32 = token.trim_start_matches('a').parse().unwrap();
            assert!(n >= round, "{token} in round {round}");
        }
    }
    let mut sent = setup.server.sent();
    let times = sent.len();
    sent.dedup();
    assert_eq!(sent.len(), times);
    assert!(times >= 18, "{times}");
}

#[tokio::test]
async fn the_token_of_another_process_is_adopted_without_spending() {
    let setup = Setup::new().consented().await;
    let (one, two) = (setup.process(), setup.process());
    one.fetch().await.unwrap();
    two.fetch().await.unwrap();
    assert_eq!(fetched_token(one.fetch().await), "a2");

    tokio::time::pause();
    let soon = timeout(Duration::from_secs(10), two.changed());
    soon.await.expect("the newer token goes unnoticed");
    assert_eq!(fetched_token(two.fetch().await), "a2");
    assert_eq!(setup.server.sent(), ["r1"]);
}

fn grant_file(setup: &Setup) -> std::path::PathBuf {
    setup.dir.path().join("state/acme.grant")
}

#[tokio::test]
async fn a_grant_that_the_store_has_lost_is_restored_and_not_spent_for_a_lease() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    std::fs::remove_file(grant_file(&setup)).unwrap();

    tokio::time::pause();
    let soon = timeout(Duration::from_secs(5), process.changed());
    assert!(soon.await.is_err(), "nothing is to be fetched");
    assert_eq!(refresh_token(&setup.stored().await), Some("r1"));
    let other = setup.process();
    other.0.state.lock().handed_out = Some(sha256(&[b"a1"]));
    let since = Instant::now();
    assert_eq!(fetched_token(other.fetch().await), "a2");
    let waited = since.elapsed() + Duration::from_secs(5);
    assert!(waited >= lease(process.0.request_timeout), "{waited:?}");
    assert_eq!(setup.server.sent(), ["r1"]);
}

#[tokio::test]
async fn a_store_that_fell_back_to_an_old_state_brings_no_old_refresh_token_back() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    let old = std::fs::read(grant_file(&setup)).unwrap();
    assert_eq!(fetched_token(process.fetch().await), "a2");
    std::fs::write(grant_file(&setup), old).unwrap();

    tokio::time::pause();
    assert_eq!(fetched_token(process.fetch().await), "a3");
    assert_eq!(setup.server.sent(), ["r1", "r2"]);
}

#[tokio::test]
async fn a_consent_after_the_store_has_lost_everything_is_newer_than_any_memory() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    for expected in ["a1", "a2"] {
        assert_eq!(fetched_token(process.fetch().await), expected);
    }
    std::fs::remove_file(grant_file(&setup)).unwrap();
    let setup = setup.consented().await;
    assert_eq!(fetched_token(process.fetch().await), "a3");
    assert_eq!(refresh_token(&setup.stored().await), Some("r3"));
}

#[tokio::test]
async fn no_other_process_spends_while_new_tokens_wait_to_be_stored() {
    let setup = Setup::new().consented().await;
    let process = flaky(&setup, &[2]);
    process.fetch().await.unwrap();
    process.fetch().await.unwrap_err();

    let other = setup.process();
    other.0.state.lock().handed_out = Some(sha256(&[b"a1"]));
    let waiting = tokio::spawn(async move { fetched_token(other.fetch().await) });
    tokio::time::pause();
    let soon = timeout(Duration::from_secs(5), process.changed());
    soon.await.expect("it does not try again by itself");
    assert_eq!(fetched_token(process.fetch().await), "a2");
    assert_eq!(waiting.await.unwrap(), "a2");
    assert_eq!(setup.server.sent(), ["r1"]);
}

#[tokio::test]
async fn a_process_paused_beyond_its_lease_sends_nothing() {
    let setup = Setup::new().consented().await;
    let store: Arc<dyn Store> = Arc::new(ExpiredLocks(setup.store()));
    let process = setup.process_with(&store, "us");
    process.fetch().await.unwrap();
    let error = process.fetch().await.unwrap_err().to_string();
    assert!(error.contains("expired"), "{error}");
    assert!(setup.server.sent().is_empty());
}

/// A store that fails as configured: before the n-th save, or always.
struct Flaky {
    inner: Arc<dyn Store>,
    saves: AtomicU32,
    failing: Mutex<Vec<u32>>,
}

#[async_trait]
impl Store for Flaky {
    async fn lock(
        &self,
        vendor: &str,
        lease: Duration,
        at_most: Duration,
    ) -> Result<Lock, StoreError> {
        self.inner.lock(vendor, lease, at_most).await
    }

    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        self.inner.load(vendor).await
    }

    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        let n = self.saves.fetch_add(1, Ordering::SeqCst) + 1;
        if self.failing.lock().contains(&n) {
            return Err(StoreError::Io {
                path: "state".into(),
                cause: std::io::Error::other("disk full"),
            });
        }
        self.inner.replace(vendor, over, next).await
    }
}

fn flaky(setup: &Setup, failing: &[u32]) -> Rotation<Client> {
    let store: Arc<dyn Store> = Arc::new(Flaky {
        inner: setup.store(),
        saves: AtomicU32::new(0),
        failing: Mutex::new(failing.to_vec()),
    });
    setup.process_with(&store, "us")
}

#[tokio::test]
async fn nothing_is_spent_while_the_store_cannot_be_written() {
    for setup in [Setup::new().consented().await, Setup::unattended()] {
        let unattended = setup.unattended;
        let process = flaky(&setup, &[1, 2]);
        if !unattended {
            process.fetch().await.unwrap();
        }
        for _ in 0..2 {
            let error = process.fetch().await.unwrap_err();
            assert!(matches!(error, FetchError::Temporary { .. }));
            assert!(error.to_string().contains("disk full"), "{error}");
        }
        assert!(setup.server.sent().is_empty());
        assert_eq!(setup.server.granted.load(Ordering::SeqCst), 0);
        process.fetch().await.unwrap();
    }
}

#[tokio::test]
async fn tokens_that_cannot_be_stored_are_kept_and_not_used_until_they_are() {
    let setup = Setup::new().consented().await;
    // The intent is saved; the result is not, and not at the next attempt either.
    let process = flaky(&setup, &[2, 3]);
    process.fetch().await.unwrap();
    for _ in 0..2 {
        let error = process.fetch().await.unwrap_err().to_string();
        assert!(error.contains("cannot be stored"), "{error}");
    }
    assert_eq!(fetched_token(process.fetch().await), "a2");
    assert_eq!(setup.server.sent(), ["r1"]);
    assert_eq!(refresh_token(&setup.stored().await), Some("r2"));
}

#[tokio::test]
async fn an_invalid_refresh_token_is_replaced_by_a_newer_grant_in_the_store() {
    let setup = Setup::new().consented().await;
    let process = setup.process();
    process.fetch().await.unwrap();
    setup.server.failures.lock().push_back(Failure::Superseded);
    assert_eq!(fetched_token(process.fetch().await), "a2");
    assert_eq!(fetched_token(process.fetch().await), "a3");
    assert_eq!(setup.server.sent(), ["r2"]);
    assert_eq!(refresh_token(&setup.stored().await), Some("r3"));
}
