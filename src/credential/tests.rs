//! The refresh path as the request path sees it, mostly on paused time.

mod fleet;
mod random_events;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use tokio::time::{advance, sleep, sleep_until};

use super::fakes::{TokenServer, json, metrics, response, value, vendor};
use super::*;
use crate::clock;
use crate::secret::SecretRef;

const MINUTE: Duration = Duration::from_mins(1);

/// Responds from a script, each time after a delay; fails once the script has run out.
#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<(Duration, Result<Token, FetchError>)>>,
    calls: Mutex<Vec<Instant>>,
    change: Notify,
    /// The secret, and its value at the last fetch.
    secret: AtomicUsize,
    read: AtomicUsize,
    account: Mutex<Option<[u8; 32]>>,
    /// Expiry of each token, by its text.
    expiries: Mutex<HashMap<String, Instant>>,
    /// Succeeds once the script has run out.
    healthy: AtomicBool,
}

#[derive(Debug)]
struct Token {
    text: String,
    lifetime: Duration,
}

#[async_trait]
impl Source for Script {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        let asked = Instant::now();
        self.calls.lock().push(asked);
        self.read
            .store(self.secret.load(Ordering::Acquire), Ordering::Release);
        let step = self.steps.lock().pop_front();
        let (delay, result) = step.unwrap_or_else(|| {
            let healthy = self.healthy.load(Ordering::Acquire);
            let result = healthy.then(|| token("well", 3600));
            (Duration::ZERO, result.unwrap_or_else(|| Err(down())))
        });
        sleep(delay).await;
        let token = result?;
        let end = asked + token.lifetime;
        self.expiries.lock().insert(token.text.clone(), end);
        Ok(Issued {
            values: vec![HeaderValue::from_str(&token.text).unwrap()],
            lifetime: Some(Lifetime {
                total: token.lifetime,
                end,
            }),
        })
    }

    async fn changed(&self) {
        let secret = async {
            while !self.outdated() {
                sleep(Duration::from_secs(5)).await;
            }
        };
        tokio::select! {
            () = self.change.notified() => {}
            () = secret => {}
        }
    }

    fn account(&self) -> Option<[u8; 32]> {
        *self.account.lock()
    }

    fn outdated(&self) -> bool {
        self.secret.load(Ordering::Acquire) != self.read.load(Ordering::Acquire)
    }
}

impl Script {
    fn then(&self, result: Result<Token, FetchError>) -> &Self {
        self.after(Duration::ZERO, result)
    }

    fn after(&self, delay: Duration, result: Result<Token, FetchError>) -> &Self {
        self.steps.lock().push_back((delay, result));
        self
    }

    fn calls(&self) -> usize {
        self.calls.lock().len()
    }

    fn change_secret(&self) {
        self.secret.fetch_add(1, Ordering::AcqRel);
    }

    /// Starts keeping a credential from this script.
    fn start(script: &Arc<Self>) -> Arc<Credential> {
        let credential = Arc::new(Credential::new(true));
        let timeout = Duration::from_secs(10);
        let (name, source) = ("acme".to_owned(), script.clone());
        tokio::spawn(keep_fresh(
            credential.clone(),
            source,
            name,
            metrics(),
            timeout,
        ));
        credential
    }
}

fn script() -> Arc<Script> {
    Arc::new(Script::default())
}

#[expect(clippy::unnecessary_wraps, reason = "a step of a script")]
fn token(text: &str, seconds: u64) -> Result<Token, FetchError> {
    Ok(Token {
        text: text.to_owned(),
        lifetime: Duration::from_secs(seconds),
    })
}

fn down() -> FetchError {
    FetchError::Temporary {
        cause: "down".into(),
        retry_after: None,
    }
}

fn refused() -> FetchError {
    FetchError::Rejected("invalid_client".into())
}

fn text(held: &Held) -> &str {
    held.values()[0].to_str().unwrap()
}

fn in_use(credential: &Credential) -> Result<String, State> {
    let current = credential
        .current()
        .map_err(|unavailable| unavailable.reason);
    current.map(|held| text(&held).to_owned())
}

/// Lets the refresh task do what is due now.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_at_65_to_75_percent_of_its_lifetime() {
    let script = script();
    script.then(token("one", 1000)).then(token("two", 1000));
    let credential = Script::start(&script);
    settle().await;

    sleep(Duration::from_secs(648)).await;
    assert_eq!(in_use(&credential), Ok("one".into()));
    sleep(Duration::from_secs(103)).await;
    assert_eq!(in_use(&credential), Ok("two".into()));
    assert_eq!(credential.current().unwrap().generation(), 2);
    assert_eq!(script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_served_until_its_hard_end_when_renewal_fails_and_not_longer() {
    let script = script();
    script.then(token("only", 1000));
    let credential = Script::start(&script);

    sleep(Duration::from_secs(700)).await;
    script.then(Err(down())).then(Err(down()));
    sleep(Duration::from_secs(289)).await;
    assert_eq!(in_use(&credential), Ok("only".into()));
    assert_eq!(credential.status().state, State::Refreshing);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(in_use(&credential), Err(State::Expired));
    assert_eq!(credential.status().state, State::Expired);
    assert_eq!(credential.status().last_error.as_deref(), Some("down"));

    script.then(token("new", 1000));
    sleep(MINUTE).await;
    assert_eq!(in_use(&credential), Ok("new".into()));
    assert_eq!(credential.status().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn many_rejections_of_one_token_cost_one_fetch_and_late_ones_none() {
    let script = script();
    script
        .then(token("a", 3600))
        .then(token("b", 3600))
        .then(token("c", 3600));
    let credential = Script::start(&script);
    sleep(Duration::from_secs(5)).await;
    let refused = credential.current().unwrap();

    let waiters: Vec<_> = (0..50)
        .map(|_| {
            let (credential, refused) = (credential.clone(), refused.clone());
            tokio::spawn(async move {
                refused.reject();
                let newer = credential
                    .newer_than(&refused, Duration::from_secs(5))
                    .await;
                text(&newer.unwrap()).to_owned()
            })
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), "b");
    }
    sleep(MINUTE).await;
    refused.reject();
    sleep(MINUTE).await;

    assert_eq!(in_use(&credential), Ok("b".into()));
    assert_eq!(script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_vendor_that_refuses_every_token_costs_a_fetch_per_ten_seconds_and_then_fewer() {
    let script = script();
    for n in 0..100 {
        script.then(token(&n.to_string(), 86_400));
    }
    let credential = Script::start(&script);
    settle().await;

    for _ in 0..36_000 {
        credential.current().unwrap().reject();
        advance(Duration::from_millis(100)).await;
    }

    let calls = script.calls.lock().clone();
    let pauses: Vec<_> = calls
        .windows(2)
        .map(|two| (two[1] - two[0]).as_secs())
        .collect();
    assert!((10..=14).contains(&pauses.len()), "{pauses:?}");
    // A little longer at random, so that replicas do not go on in step, and ten minutes at most.
    let mut least = 10;
    for pause in &pauses[1..] {
        let bounds = if least < 400 {
            least..=least * 6 / 5
        } else {
            520..=600
        };
        assert!(bounds.contains(pause), "{pauses:?}");
        least *= 2;
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_newer_token_ends_at_once_when_none_can_come_in_time() {
    let script = script();
    script
        .then(token("a", 3600))
        .then(token("b", 3600))
        .then(token("c", 3600));
    let credential = Script::start(&script);
    settle().await;

    let a = credential.current().unwrap();
    a.reject();
    let b = credential
        .newer_than(&a, Duration::from_secs(5))
        .await
        .unwrap();
    b.reject();
    let asked = Instant::now();
    assert!(
        credential
            .newer_than(&b, Duration::from_secs(5))
            .await
            .is_none()
    );
    assert_eq!(asked.elapsed(), Duration::ZERO);

    let c = credential
        .newer_than(&b, Duration::from_secs(15))
        .await
        .unwrap();
    assert_eq!(text(&c), "c");
    let asked = Instant::now();
    assert!(
        credential
            .newer_than(&c, Duration::from_secs(5))
            .await
            .is_none()
    );
    assert_eq!(
        asked.elapsed(),
        Duration::ZERO,
        "not rejected: nothing is due"
    );
}

#[tokio::test(start_paused = true)]
async fn two_hundred_cold_requests_cost_one_fetch() {
    let script = script();
    script.after(Duration::from_secs(2), token("a", 3600));
    let credential = Script::start(&script);
    let waiters: Vec<_> = (0..200)
        .map(|_| {
            let credential = credential.clone();
            tokio::spawn(async move { credential.wait(Duration::from_secs(5)).await })
        })
        .collect();
    for waiter in waiters {
        assert_eq!(text(&waiter.await.unwrap().unwrap()), "a");
    }
    assert_eq!(script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_only_while_an_attempt_runs_or_is_due_in_time() {
    let script = script();
    script.after(Duration::from_secs(3), Err(refused()));
    let credential = Script::start(&script);

    // Too short for the running attempt.
    let asked = Instant::now();
    let pending = credential.wait(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(pending.reason, State::Pending);
    assert_eq!(asked.elapsed(), Duration::from_secs(1));

    // The attempt is refused: the next one is minutes away, so nobody waits for it.
    let refused = credential.wait(Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(asked.elapsed(), Duration::from_secs(3));
    assert_eq!(refused.reason, State::Failed);
    assert_eq!(refused.retry_after, MINUTE);
    assert_eq!(
        refused.to_string(),
        "credential failed, next attempt in 60 s"
    );
    let asked = Instant::now();
    credential.wait(Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(asked.elapsed(), Duration::ZERO);

    // An attempt that is due in time is waited for.
    script.then(token("a", 3600));
    sleep(Duration::from_secs(239)).await;
    assert_eq!(text(&credential.wait(MINUTE * 2).await.unwrap()), "a");
}

#[tokio::test(start_paused = true)]
async fn retry_after_takes_precedence_over_back_off() {
    let script = script();
    let wish = Duration::from_mins(2);
    script.then(Err(FetchError::Temporary {
        cause: "busy".into(),
        retry_after: Some(wish),
    }));
    script.then(token("a", 3600));
    let credential = Script::start(&script);
    settle().await;
    assert_eq!(credential.status().state, State::Failed);

    sleep(Duration::from_secs(119)).await;
    assert_eq!(script.calls(), 1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(in_use(&credential), Ok("a".into()));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_repeated_after_minutes_or_as_soon_as_something_changed() {
    let script = script();
    for _ in 0..4 {
        script.then(Err(refused()));
    }
    let credential = Script::start(&script);
    settle().await;
    assert_eq!(credential.status().state, State::Failed);
    sleep(Duration::from_secs(239)).await;
    assert_eq!(script.calls(), 1);
    sleep(MINUTE * 2 + Duration::from_secs(2)).await;
    assert_eq!(script.calls(), 2);

    script.change.notify_one();
    settle().await;
    assert_eq!(script.calls(), 3);
    sleep(MIN_PAUSE).await;
    credential.refresh_now();
    settle().await;
    assert_eq!(script.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_refused_renewal_keeps_the_token_until_it_expires() {
    let script = script();
    script.then(token("a", 1000)).then(Err(refused()));
    let credential = Script::start(&script);
    sleep(Duration::from_secs(800)).await;

    assert_eq!(in_use(&credential), Ok("a".into()));
    assert_eq!(credential.status().state, State::Failed);
}

#[tokio::test(start_paused = true)]
async fn where_a_person_is_needed_nothing_is_tried_until_something_changes() {
    let script = script();
    script.then(Err(FetchError::Reauthorize("consent".into())));
    script.then(token("a", 3600));
    let credential = Script::start(&script);
    sleep(MINUTE * 60 * 24).await;
    assert_eq!(script.calls(), 1);
    let unavailable = credential.current().unwrap_err();
    assert_eq!(unavailable.reason, State::Reauthorize);
    assert_eq!(unavailable.retry_after, MINUTE);

    script.change.notify_one();
    settle().await;
    assert_eq!(in_use(&credential), Ok("a".into()));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_can_wait_is_retried_twice_at_once_and_then_slowly() {
    let script = script();
    script.then(token("a", 3600));
    let credential = Script::start(&script);
    let renewal = |calls: &[Instant]| calls[1] - calls[0];
    while script.calls() < 5 {
        sleep(Duration::from_secs(1)).await;
    }
    let calls = script.calls.lock().clone();
    assert!(renewal(&calls) >= MINUTE * 39);
    for quick in [2, 3] {
        assert!(calls[quick] - calls[quick - 1] <= MIN_PAUSE + Duration::from_millis(1));
    }
    let end = calls[0] + Duration::from_secs(3590);
    let left = end - calls[3];
    let pause = calls[4] - calls[3];
    assert!(
        (left / 3..=left * 2 / 3).contains(&pause),
        "{pause:?} {left:?}"
    );
    assert_eq!(credential.status().state, State::Refreshing);

    // Towards the end the pauses get short, and then no token is left.
    while credential.current().is_ok() {
        sleep(Duration::from_secs(1)).await;
    }
    let last = *script.calls.lock().last().unwrap();
    assert!(last.elapsed() <= MINUTE);
    script.healthy.store(true, Ordering::Release);
    sleep(MINUTE).await;
    assert_eq!(in_use(&credential), Ok("well".into()));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_needs_the_renewal_makes_it_urgent() {
    for who in 0..3 {
        let script = script();
        script.then(token("a", 3600));
        let credential = Script::start(&script);
        while script.calls() < 4 {
            sleep(Duration::from_secs(1)).await;
        }
        sleep(MINUTE).await;
        assert_eq!(script.calls(), 4);

        let held = credential.current().unwrap();
        match who {
            0 => held.reject(),
            1 => credential.refresh_now(),
            _ => script.change_secret(),
        }
        // Still down: from now on it is tried as if there were no token.
        sleep(MINUTE * 2).await;
        assert!(script.calls() > 6, "{who}: {}", script.calls());
        script.healthy.store(true, Ordering::Release);
        let newer = credential.newer_than(&held, MINUTE).await;
        assert_eq!(text(&newer.unwrap()), "well");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_secret_is_noticed_within_seconds_or_at_once_when_asked() {
    let script = script();
    for n in 0..3 {
        script.then(token(&n.to_string(), 3600));
    }
    let credential = Script::start(&script);
    sleep(MINUTE).await;
    credential.check_secrets_now();
    sleep(MINUTE).await;
    assert_eq!(script.calls(), 1, "nothing had changed");

    script.change_secret();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(in_use(&credential), Ok("1".into()));
    sleep(Duration::from_secs(2)).await;
    script.change_secret();
    credential.check_secrets_now();
    settle().await;
    assert_eq!(in_use(&credential), Ok("2".into()));
}

#[tokio::test(start_paused = true)]
async fn a_late_response_to_an_old_secret_is_not_used() {
    let script = script();
    let slow = Duration::from_secs(3);
    script
        .then(token("old", 100))
        .after(slow, token("late", 100))
        .then(token("new", 100));
    let credential = Script::start(&script);
    settle().await;
    sleep(MIN_PAUSE).await;
    credential.refresh_now();
    sleep(Duration::from_secs(1)).await;
    script.change_secret();

    let mut seen = Vec::new();
    for _ in 0..500 {
        let text = in_use(&credential).unwrap();
        if seen.last() != Some(&text) {
            seen.push(text);
        }
        advance(Duration::from_millis(10)).await;
    }
    assert_eq!(seen, ["old", "new"]);
    assert_eq!(script.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_account_serves_no_longer() {
    let script = script();
    script.then(token("theirs", 3600));
    script.after(Duration::from_secs(2), Err(refused()));
    script.then(token("ours", 3600));
    *script.account.lock() = Some([1; 32]);
    let credential = Script::start(&script);
    sleep(MINUTE).await;

    // A file that is missing for a moment says nothing.
    *script.account.lock() = None;
    sleep(MINUTE).await;
    assert_eq!(in_use(&credential), Ok("theirs".into()));
    *script.account.lock() = Some([2; 32]);
    script.change_secret();
    credential.check_secrets_now();
    settle().await;
    assert_eq!(in_use(&credential), Err(State::Pending));
    sleep(MINUTE).await;
    assert_eq!(in_use(&credential), Err(State::Failed));
    credential.refresh_now();
    settle().await;
    assert_eq!(in_use(&credential), Ok("ours".into()));
    assert_eq!(credential.current().unwrap().generation(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_makes_two_attempts_come_within_a_second() {
    let script = script();
    for n in 0..200_u32 {
        script.then(match n % 3 {
            0 => token("a", 1),
            1 => Err(down()),
            _ => token("b", 3600),
        });
    }
    let credential = Script::start(&script);
    for _ in 0..10_000 {
        credential.refresh_now();
        script.change.notify_one();
        if let Ok(held) = credential.current() {
            held.reject();
        }
        advance(Duration::from_millis(10)).await;
    }

    let calls = script.calls.lock().clone();
    assert!(calls.len() > 90, "{}", calls.len());
    assert!(calls.windows(2).all(|two| two[1] - two[0] >= MIN_PAUSE));
}

#[tokio::test(start_paused = true)]
async fn a_life_goes_through_its_states() {
    let script = script();
    script.after(Duration::from_secs(1), token("a", 1000));
    let credential = Script::start(&script);
    let state = || credential.status().state;
    assert_eq!(state(), State::Pending);
    assert!(!credential.status().settled && !credential.status().ever_usable);

    sleep(Duration::from_millis(1001)).await;
    assert_eq!(state(), State::Fresh);
    let status = credential.status();
    assert!(status.settled && status.ever_usable);
    assert_eq!(status.generation, 1);
    let left = status
        .expires_at
        .unwrap()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(
        left <= Duration::from_secs(999) && left > Duration::from_secs(990),
        "{left:?}"
    );
    assert!(status.refresh_at.is_some() && status.last_refresh.is_some());

    script.after(Duration::from_secs(5), Err(down()));
    script.after(Duration::from_secs(5), Err(refused()));
    let mut passed = vec![state()];
    for _ in 0..10_000 {
        advance(Duration::from_millis(100)).await;
        if passed.last() != Some(&state()) {
            passed.push(state());
        }
    }
    assert_eq!(
        passed[..3],
        [State::Fresh, State::Refreshing, State::Failed]
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_refresh_task_stops_fetching() {
    let script = script();
    script.then(token("a", 1000));
    let credential = Arc::new(Credential::new(true));
    let task = tokio::spawn(keep_fresh(
        credential.clone(),
        script.clone(),
        "acme".into(),
        metrics(),
        MINUTE,
    ));
    let refresh_task = RefreshTask {
        task: task.abort_handle(),
        revocation: None,
    };
    settle().await;
    drop(refresh_task);
    sleep(MINUTE * 60).await;
    assert_eq!(script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_returns_is_given_up_and_tried_again() {
    let script = script();
    script
        .after(MINUTE * 600, token("a", 1000))
        .then(token("b", 1000));
    let credential = Script::start(&script);
    sleep(MINUTE * 2).await;
    assert_eq!(in_use(&credential), Ok("b".into()));
}

#[tokio::test(start_paused = true)]
async fn a_fixed_credential_is_there_at_once_and_follows_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "one\n").unwrap();
    let token = SecretRef::File(path.clone());
    let store = crate::store::open(&config::Store::File {
        dir: dir.path().join("state"),
        encryption_key: None,
    });
    let (credential, _refresh_task) =
        start(&vendor(Auth::Bearer { token }), &store, metrics(), None).unwrap();

    let held = credential.current().unwrap();
    assert_eq!(text(&held), "Bearer one");
    assert!(!held.renewable());
    assert_eq!(credential.status().state, State::Static);
    for _ in 0..100 {
        held.reject();
    }
    sleep(MINUTE * 60).await;
    assert_eq!(credential.current().unwrap().generation(), 1);

    std::fs::write(&path, "two\n").unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(in_use(&credential), Ok("Bearer two".into()));
    std::fs::remove_file(&path).unwrap();
    sleep(MINUTE * 60).await;
    assert_eq!(in_use(&credential), Ok("Bearer two".into()));
    assert_eq!(credential.current().unwrap().generation(), 2);
    assert!(
        credential
            .status()
            .last_error
            .unwrap()
            .contains("cannot be read")
    );
    assert!(!dir.path().join("state").exists(), "the store was touched");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_at_the_start_is_not_read_again_before_it_changes() {
    let script = script();
    let static_auth = |text| Issued {
        values: vec![HeaderValue::from_static(text)],
        lifetime: None,
    };
    let credential = Arc::new(Credential::new(false));
    credential.publish(static_auth("one"), None);
    let _task = tokio::spawn(keep_fresh(
        credential.clone(),
        script.clone(),
        "acme".into(),
        metrics(),
        Duration::ZERO,
    ));
    sleep(MINUTE).await;
    assert_eq!(script.calls(), 0);
    assert!(credential.status().last_refresh.is_some());

    script.then(token("two", 3600));
    script.change_secret();
    sleep(Duration::from_secs(10)).await;
    assert_eq!((script.calls(), in_use(&credential)), (1, Ok("two".into())));
}

/// Uses real sockets and real time: a token of three seconds leaves a second and a half for a
/// refused refresh and, a second later, a new grant.
#[tokio::test]
async fn a_refused_refresh_leads_to_a_new_grant_before_the_old_token_ends() {
    let pair = |n: u32| {
        json(&format!(
            r#"{{"access_token":"a{n}","refresh_token":"r{n}","expires_in":6}}"#
        ))
    };
    let revoked = "400 Grant has been revoked, has expired, or the refresh token is invalid";
    let replies = [pair(1), response(revoked, "", ""), pair(2), pair(3)];
    let server = TokenServer::start(replies).await;
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::open(&config::Store::File {
        dir: dir.path().join("state"),
        encryption_key: None,
    });
    let auth = Auth::Vedauth(config::Vedauth {
        url: server.url("/vedauth"),
        client_id: value("MyApp"),
        scope: None,
        grant: config::VedauthGrant::Password {
            username: value("svc"),
            password: value("pw"),
        },
        refresh: true,
        share: false,
        revoke_on_exit: false,
        times: fakes::times(),
    });
    let metrics = metrics();
    let (credential, _refresh_task) = start(&vendor(auth), &store, metrics.clone(), None).unwrap();

    let mut held = credential.wait(Duration::from_secs(5)).await.unwrap();
    let mut texts = vec![text(&held).to_owned()];
    while texts.len() < 3 {
        sleep(Duration::from_millis(5)).await;
        held = credential.current().expect("a gap without any token");
        // The token in use was stored before.
        let grant = store.load("acme").await.unwrap().unwrap();
        if texts.last().unwrap() != text(&held) {
            texts.push(text(&held).to_owned());
            let stored = grant.access.unwrap().token;
            assert_eq!(format!("Bearer {}", stored.expose()), text(&held));
        }
    }
    assert_eq!(texts, ["Bearer a1", "Bearer a2", "Bearer a3"]);
    let paths: Vec<_> = server
        .requests()
        .iter()
        .map(|seen| seen.request_line.clone())
        .collect();
    let path = |method| format!("POST /vedauth/authorize/{method} HTTP/1.1");
    assert_eq!(paths, ["oauth", "token", "oauth", "token"].map(path));
    assert_eq!(metrics.ok.get(), 3);
    assert_eq!(metrics.duration.get_sample_count(), 3);
}

#[tokio::test]
async fn a_missing_secret_is_named_at_start() {
    let store = crate::store::open(&config::Store::File {
        dir: "nowhere".into(),
        encryption_key: None,
    });
    let token = SecretRef::Env("COUNTERSIGN_NO_SUCH_VARIABLE".into());
    let error = start(&vendor(Auth::Bearer { token }), &store, metrics(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vendors.acme.auth: the environment variable COUNTERSIGN_NO_SUCH_VARIABLE is not set"
    );
    let mut none = vendor(Auth::Bearer { token: value("x") });
    none.auth = None;
    assert!(start(&none, &store, metrics(), None).is_err());
}

#[test]
fn many_threads_read_whole_credentials_during_many_swaps() {
    let credential = Credential::new(true);
    let issue = |n: usize| Issued {
        values: vec![HeaderValue::from_str(&n.to_string()).unwrap(); 2],
        lifetime: None,
    };
    credential.publish(issue(1), None);
    let swaps = 100_000;
    let done = AtomicBool::new(false);
    let reads: [AtomicUsize; 4] = Default::default();
    std::thread::scope(|scope| {
        for reads in &reads {
            let (credential, done) = (&credential, &done);
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let held = credential.current().unwrap();
                    assert_eq!(held.values()[0], held.values()[1]);
                    assert_eq!(text(&held), held.generation().to_string());
                    assert!(held.generation() >= last, "an older one came back");
                    last = held.generation();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut n = 1;
        let begun = Instant::now();
        // However long the writer goes on, every reader gets on as well.
        for round in 1..=10 {
            let before = reads.each_ref().map(|reads| reads.load(Ordering::Relaxed));
            let all_got_on = || {
                let now = reads.each_ref().map(|reads| reads.load(Ordering::Relaxed));
                before
                    .iter()
                    .zip(now)
                    .all(|(before, now)| now > before + 100)
            };
            while n < round * swaps / 10 || !all_got_on() {
                n += 1;
                credential.publish(issue(n), None);
                assert!(begun.elapsed() < MINUTE, "a reader is held up: {reads:?}");
            }
        }
        done.store(true, Ordering::Release);
        assert_eq!(credential.current().unwrap().generation(), n as u64);
    });
}

#[test]
fn nothing_printed_holds_a_value() {
    let credential = Credential::new(true);
    let issued = Issued {
        values: vec![HeaderValue::from_static("hunter2")],
        lifetime: None,
    };
    let held = credential.publish(issued, None);
    let printed = format!("{credential:?} {held:?} {:?}", credential.status());
    assert!(!printed.contains("hunter2"), "{printed}");
}

/// Returns a credential whose token of an hour has just come, and its script.
async fn of_an_hour() -> (Arc<Script>, Arc<Credential>) {
    let script = script();
    script.then(token("old", 3600));
    let credential = Script::start(&script);
    settle().await;
    assert_eq!(in_use(&credential), Ok("old".into()));
    // The pause between two attempts, and the one after a failure.
    sleep(Duration::from_secs(2)).await;
    (script, credential)
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn after_a_suspend_no_token_is_sent_past_its_end_and_a_new_one_comes_at_once() {
    let (script, credential) = of_an_hour().await;
    let expires_at = credential.status().expires_at.unwrap();
    script.then(token("new", 3600));
    clock::tests::shift(HOUR, HOUR);
    // Nobody has read the clocks yet.
    assert_eq!(in_use(&credential), Err(State::Expired));
    assert_eq!(credential.status().expires_at, Some(expires_at));

    clock::tests::tell();
    settle().await;
    assert_eq!(in_use(&credential), Ok("new".into()));
    assert_eq!(script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_short_suspend_brings_the_renewal_forward_by_as_much() {
    let (script, credential) = of_an_hour().await;
    script.then(token("new", 3600));
    clock::tests::shift(HOUR / 2, HOUR / 2);
    clock::tests::tell();
    settle().await;
    assert_eq!(in_use(&credential), Ok("old".into()));
    // It is due after three quarters of the hour at the latest.
    sleep(HOUR / 4 + Duration::from_secs(10)).await;
    assert_eq!(in_use(&credential), Ok("new".into()));
    assert_eq!(script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspend_during_the_request_shortens_the_token() {
    let script = script();
    script.after(Duration::from_secs(5), token("old", 3600));
    let credential = Script::start(&script);
    sleep(Duration::from_secs(1)).await;
    clock::tests::shift(HOUR / 2, HOUR / 2);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(in_use(&credential), Ok("old".into()));
    sleep(HOUR / 2).await;
    assert_ne!(in_use(&credential), Ok("old".into()));
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_past_the_end_holds_a_token_back_for_one_attempt_only() {
    let (script, credential) = of_an_hour().await;
    script.after(Duration::from_secs(3), token("new", 3600));
    clock::tests::shift(Duration::ZERO, HOUR * 2);
    clock::tests::tell();
    settle().await;
    assert_eq!(in_use(&credential), Err(State::Expired));
    let waited = credential.wait(Duration::from_secs(5)).await;
    assert_eq!(text(&waited.unwrap()), "new");

    // The token server is down, so the clock may as well have been wrong before.
    sleep(Duration::from_secs(2)).await;
    script.after(Duration::from_secs(3), Err(down()));
    clock::tests::shift(Duration::ZERO, HOUR * 2);
    clock::tests::tell();
    settle().await;
    assert_eq!(in_use(&credential), Err(State::Expired));
    let waited = credential.wait(Duration::from_secs(5)).await;
    assert_eq!(text(&waited.unwrap()), "new");
    assert_eq!(in_use(&credential), Ok("new".into()));
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_corrected_costs_no_token() {
    let (script, credential) = of_an_hour().await;
    for forward in [2, 1, 1200] {
        clock::tests::shift(Duration::ZERO, Duration::from_secs(forward));
        clock::tests::tell();
        settle().await;
        assert_eq!(in_use(&credential), Ok("old".into()));
    }
    assert_eq!(script.calls(), 1);
}
