//! What a credential or a connection is made from changes while it is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Ledger, SECRET, Setup, mount};
use crate::support::script::{Asked, Reply};
use crate::support::signal;

/// Grants to `me` with one of two secrets, and to `you`; slowly where the secret says so.
async fn tokens(asked: Asked, ledger: Arc<Ledger>) -> Reply {
    let id = asked.member("client_id").unwrap();
    let secret = asked.member("client_secret").unwrap();
    match (id.as_str(), secret.as_str()) {
        ("me" | "you", SECRET | "second") => {}
        ("me", "slow") => sleep(Duration::from_secs(2)).await,
        _ => return Reply::whole("401 No", "", r#"{"error":"invalid_client"}"#),
    }
    let token = ledger.issue(&asked, Duration::from_secs(3600));
    Reply::json(format!(r#"{{"access_token":"{token}","expires_in":3600}}"#))
}

/// A caller who never rests, and must never be refused.
struct Caller {
    stop: Arc<AtomicBool>,
    calling: JoinHandle<usize>,
}

impl Caller {
    fn start(setup: &Arc<Setup>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (setup, stopping) = (setup.clone(), stop.clone());
        let calling = tokio::spawn(async move {
            let mut calls = 0;
            while !stopping.load(Ordering::Acquire) {
                let (status, reason) = setup.call("v").await;
                assert_eq!(status, 200, "{reason} after {calls} calls");
                calls += 1;
                sleep(Duration::from_millis(5)).await;
            }
            calls
        });
        Self { stop, calling }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Release);
        assert!(self.calling.await.unwrap() > 20);
    }
}

/// Waits until the API has been shown the `n`th token.
async fn until_used(setup: &Setup, n: usize, limit: Duration) -> Duration {
    let begun = Instant::now();
    let token = format!("v-{n}");
    loop {
        assert!(begun.elapsed() < limit, "{token} was not used in {limit:?}");
        let asked = setup.api.asked();
        let last = asked.last().and_then(|asked| asked.bearer.clone());
        if last.as_deref() == Some(&token) {
            return begun.elapsed();
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_secret_is_in_use_within_ten_seconds_or_at_once_when_told_and_fails_nobody() {
    let setup = Arc::new(Setup::start(&["v"], "", tokens).await);
    let caller = Caller::start(&setup);
    until_used(&setup, 1, Duration::from_secs(5)).await;
    sleep(Duration::from_secs(1)).await;

    mount(setup.dir.path(), "me", "second");
    until_used(&setup, 2, Duration::from_secs(10)).await;
    sleep(Duration::from_secs(1)).await;

    // Told by SIGHUP: the configuration itself has not changed.
    mount(setup.dir.path(), "me", SECRET);
    signal(setup.proxy.id(), "HUP");
    until_used(&setup, 3, Duration::from_secs(2)).await;
    sleep(Duration::from_secs(1)).await;

    // A wrong one is refused, and the token of the right one serves on.
    mount(setup.dir.path(), "me", "mistyped");
    signal(setup.proxy.id(), "HUP");
    while setup.attempts("v", "rejected") == 0 {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(setup.status("v")["state"], "failed");
    until_used(&setup, 3, Duration::from_secs(2)).await;
    sleep(Duration::from_secs(1)).await;

    // Minutes would pass until the next attempt; the right secret ends the wait.
    mount(setup.dir.path(), "me", "second");
    signal(setup.proxy.id(), "HUP");
    until_used(&setup, 4, Duration::from_secs(2)).await;
    assert_eq!(setup.status("v")["state"], "fresh");
    caller.stop().await;
    setup.assert_sound(&["v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_old_secret_brings_late_is_never_used() {
    let setup = Arc::new(Setup::start(&["v"], "", tokens).await);
    let caller = Caller::start(&setup);
    sleep(Duration::from_secs(1)).await;
    mount(setup.dir.path(), "me", "slow");
    signal(setup.proxy.id(), "HUP");
    while setup.token_calls("v").len() < 2 {
        sleep(Duration::from_millis(20)).await;
    }
    mount(setup.dir.path(), "me", "second");

    until_used(&setup, 3, Duration::from_secs(5)).await;
    caller.stop().await;
    let asked = setup.api.asked();
    let late = asked.iter().filter(|a| a.bearer.as_deref() == Some("v-2"));
    assert_eq!(late.count(), 0);
    setup.assert_sound(&["v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clients_token_is_dropped_at_once_and_callers_wait_for_the_new_one() {
    let setup = Arc::new(Setup::start(&["v"], "", tokens).await);
    let caller = Caller::start(&setup);
    sleep(Duration::from_secs(1)).await;
    mount(setup.dir.path(), "you", "second");
    signal(setup.proxy.id(), "HUP");
    until_used(&setup, 2, Duration::from_secs(2)).await;
    caller.stop().await;

    // Not so when the new client is refused: the old one's token stays dropped.
    sleep(Duration::from_secs(1)).await;
    mount(setup.dir.path(), "nobody", "second");
    signal(setup.proxy.id(), "HUP");
    while setup.attempts("v", "rejected") == 0 {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(setup.call("v").await.0, 503);
    assert_eq!(setup.status("v")["state"], "failed");
    setup.assert_sound(&["v"]);
}
