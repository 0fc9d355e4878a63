//! Replicas share one grant through a store: one spends, the others use what it bought. However
//! they die and whatever the store does, no refresh token whose answer was stored is shown again,
//! and no request fails while a token is good.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use countersign::config;
use countersign::secret::{Secret, SecretRef};
use countersign::store::{self, Grant, Lock, Store, StoreError};
use countersign_demo::MockVendors;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::kubernetes::{Kubernetes, NAMESPACE};
use crate::support::peers::Pki;
use crate::support::redis::Redis;
use crate::support::{
    PATIENCE, Proxy, countersign, eventually, exchange, signal, status_of, write_secret,
};

const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER_KEY: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const LEASE: Duration = Duration::from_secs(2);

// ---- the store itself -------------------------------------------------------------------------

fn open(url: &str, ca: Option<&Path>, key: &str) -> Arc<dyn Store> {
    countersign::tls::install_provider();
    let value = |text: &str| SecretRef::Value(Secret::new(text));
    let config = config::Store::Redis {
        url: value(url),
        ca: ca.map(Path::to_owned),
        encryption_key: value(key),
    };
    store::open(&config)
}

fn grant(refresh_token: &str) -> Grant {
    Grant {
        refresh_token: Some(Secret::new(refresh_token)),
        ..Grant::default()
    }
}

async fn stored(store: &Arc<dyn Store>, vendor: &str) -> Option<String> {
    let grant = store.load(vendor).await.unwrap()?;
    Some(grant.refresh_token.unwrap().expose().to_owned())
}

async fn lock(store: &Arc<dyn Store>, vendor: &str) -> Result<Lock, StoreError> {
    store.lock(vendor, LEASE, Duration::ZERO).await
}

#[tokio::test]
async fn a_redis_holds_what_was_compared_and_nothing_readable() {
    let redis = Redis::start();
    let (one, two) = (open(&redis.url(), None, KEY), open(&redis.url(), None, KEY));
    assert!(one.load("v").await.unwrap().is_none());
    let mut ours = grant("hunter2");
    one.save("v", &mut ours).await.unwrap();
    assert_eq!(stored(&two, "v").await.unwrap(), "hunter2");
    assert!(two.load("other").await.unwrap().is_none());

    let mut theirs = two.load("v").await.unwrap().unwrap();
    theirs.refresh_token = Some(Secret::new("hunter3"));
    two.save("v", &mut theirs).await.unwrap();
    for mut late in [ours, grant("hunter1")] {
        let before = late.version;
        let error = one.save("v", &mut late).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict(_)), "{error}");
        assert_eq!(late.version, before);
    }
    assert_eq!(stored(&one, "v").await.unwrap(), "hunter3");
    let raw = redis.command(&["HGETALL", "countersign:v:grant"]);
    assert!(raw.contains("sealed") && !raw.contains("hunter"), "{raw}");
}

#[tokio::test]
async fn a_lock_in_redis_has_one_holder_and_outlives_a_dead_one_by_its_lease() {
    let redis = Redis::start();
    let (one, two) = (open(&redis.url(), None, KEY), open(&redis.url(), None, KEY));
    let held = lock(&one, "v").await.unwrap();
    lock(&two, "other").await.unwrap();
    let error = lock(&two, "v").await.unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    // As long as its holder lives, and not one lease only.
    tokio::time::sleep(LEASE * 2).await;
    assert!(!held.is_expired());
    lock(&two, "v").await.unwrap_err();
    held.release().await;
    lock(&two, "v").await.unwrap().release().await;

    // A process that dies holding it: nothing of its runtime goes on.
    let url = redis.url();
    let died = thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let held = runtime.block_on(async { lock(&open(&url, None, KEY), "v").await.unwrap() });
        runtime.shutdown_background();
        held
    });
    let held = died.join().unwrap();
    let since = Instant::now();
    lock(&two, "v").await.unwrap_err();
    let waited = two.lock("v", LEASE, PATIENCE).await.unwrap();
    assert!(since.elapsed() < LEASE * 2, "{:?}", since.elapsed());
    assert!(held.is_expired() && !waited.is_expired());
}

#[tokio::test]
async fn a_redis_over_tls_needs_its_ca_and_its_user_needs_no_more_than_our_keys() {
    let pki = Pki::new();
    let redis = Redis::start_tls(&pki);
    let ca = pki.file("ca.pem");
    let ours = open(&redis.url(), Some(&ca), KEY);
    let held = lock(&ours, "v").await.unwrap();
    ours.save("v", &mut grant("r")).await.unwrap();
    assert_eq!(stored(&ours, "v").await.unwrap(), "r");
    tokio::time::sleep(LEASE).await;
    assert!(!held.is_expired());
    held.release().await;

    let untrusting = open(&redis.url(), None, KEY);
    let error = untrusting.load("v").await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let stranger = redis.url().replace("word", "xyzzy");
    let error = open(&stranger, Some(&ca), KEY).load("v").await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("authentication failed") && !error.contains("xyzzy"),
        "{error}"
    );
}

#[tokio::test]
async fn a_redis_that_is_paused_down_or_read_only_says_so_in_time() {
    let mut redis = Redis::start();
    let store = open(&redis.url(), None, KEY);
    let mut ours = grant("r");
    store.save("v", &mut ours).await.unwrap();

    let replica = Redis::replica_of(&redis);
    let read_only = open(&replica.url(), None, KEY);
    eventually_async("replicated", async || {
        stored(&read_only, "v").await.is_some()
    })
    .await;
    for error in [
        lock(&read_only, "v").await.unwrap_err(),
        read_only.save("v", &mut ours).await.unwrap_err(),
    ] {
        assert!(
            error.to_string().to_lowercase().contains("read only"),
            "{error}"
        );
    }

    redis.pause();
    let since = Instant::now();
    let error = store.load("v").await.unwrap_err().to_string();
    assert!(error.contains("no response within 3s"), "{error}");
    assert!(since.elapsed() < Duration::from_secs(4));
    redis.resume();
    assert_eq!(stored(&store, "v").await.unwrap(), "r");

    redis.stop();
    let error = store.load("v").await.unwrap_err().to_string();
    assert!(error.contains("localhost"), "{error}");
    assert!(!error.contains('@'), "{error}");
    redis.restart();
    // At once, and with what it held.
    assert_eq!(stored(&store, "v").await.unwrap(), "r");
    store.save("v", &mut ours).await.unwrap();
}

#[tokio::test]
async fn another_key_neither_reads_nor_overwrites_what_is_in_redis() {
    let redis = Redis::start();
    open(&redis.url(), None, KEY)
        .save("v", &mut grant("r"))
        .await
        .unwrap();
    let other = open(&redis.url(), None, OTHER_KEY);
    let error = other.load("v").await.unwrap_err().to_string();
    assert!(error.contains("countersign:v:grant"), "{error}");
    assert!(error.contains("another encryption_key"), "{error}");
    other.save("v", &mut grant("r2")).await.unwrap_err();
    assert_eq!(
        stored(&open(&redis.url(), None, KEY), "v").await.unwrap(),
        "r"
    );
}

// ---- replicas ---------------------------------------------------------------------------------

/// The mock vendors, and the arguments with which every replica in front of them is started.
struct Stage {
    mocks: MockVendors,
    dir: TempDir,
    yaml: String,
    environment: Vec<(&'static str, String)>,
}

impl Stage {
    /// With the demo's stanza of that name, `more` lines at its end, and a store.
    async fn new(
        vendor: &str,
        more: &str,
        store: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        countersign::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let mocks = MockVendors::start(dir.path()).await.unwrap();
        write_secret(&dir.path().join("secrets/caller"), &mocks.logins.caller_key);
        let stanzas = mocks.stanzas();
        let (_, stanza) = stanzas.iter().find(|(name, _)| *name == vendor).unwrap();
        let yaml = format!(
            "\
listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
access_log: false
callers:
  app: {{ api_key: {{ file: secrets/caller }}, allow: [ \"*\" ] }}
store: {{ {store}, encryption_key: {{ env: STORE_KEY }} }}
vendors:
{stanza}{more}"
        );
        Self {
            mocks,
            dir,
            yaml,
            environment,
        }
    }

    async fn on_redis(vendor: &str, more: &str, redis: &Redis) -> Self {
        let environment = vec![("REDIS_URL", redis.url()), ("STORE_KEY", KEY.to_owned())];
        let store = "redis: { url: { env: REDIS_URL } }";
        Self::new(vendor, more, store, environment).await
    }

    async fn on_kubernetes(vendor: &str, more: &str, kubernetes: &Kubernetes) -> Self {
        let config = kubernetes.kubeconfig.display().to_string();
        let environment = vec![("KUBECONFIG", config), ("STORE_KEY", KEY.to_owned())];
        let store = format!("kubernetes: {{ secret: {SECRET} }}");
        Self::new(vendor, more, &store, environment).await
    }

    /// One more replica, as soon as it listens.
    fn replica(&self) -> Proxy {
        let environment: Vec<_> = self
            .environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        blocking(|| Proxy::launch(self.dir.path(), &self.yaml, &environment))
    }

    /// A person's consent to `maxmd`, by the command line.
    async fn consent(&self) {
        use std::io::{BufRead, BufReader, Write};
        use std::process::Stdio;

        let file = self.dir.path().join("proxy.yaml");
        std::fs::write(&file, &self.yaml).unwrap();
        let mut authorize = countersign()
            .args(["authorize", "maxmd", "--config"])
            .arg(file)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(authorize.stdout.take().unwrap());
        let mut url = String::new();
        blocking(|| stdout.read_line(&mut url)).unwrap();
        let ca = std::fs::read(self.dir.path().join("ca.pem")).unwrap();
        let browser = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .unwrap();
        let answer = browser.get(url.trim()).send().await.unwrap();
        let redirected = answer.headers()["location"].to_str().unwrap();
        writeln!(authorize.stdin.as_ref().unwrap(), "{redirected}").unwrap();
        assert!(blocking(|| authorize.wait()).unwrap().success());
    }

    /// Asks `replica` for `target` all the time, from now on.
    fn traffic(&self, replica: &Proxy, target: &str) -> Traffic {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {}\r\nConnection: close\r\n\r\n",
            self.mocks.logins.caller_key
        );
        let done = Arc::new(AtomicBool::new(false));
        let (to, until) = (replica.data, done.clone());
        let asking = thread::spawn(move || {
            let mut failed = Vec::new();
            let mut count = 0;
            while !until.load(Ordering::SeqCst) {
                let answer = exchange(to, request.as_bytes());
                count += 1;
                if status_of(&answer) != 200 {
                    failed.push(answer);
                }
                thread::sleep(Duration::from_millis(20));
            }
            (count, failed)
        });
        Traffic { done, asking }
    }
}

const SECRET: &str = "countersign-state";

/// Requests that are being sent.
struct Traffic {
    done: Arc<AtomicBool>,
    asking: thread::JoinHandle<(usize, Vec<String>)>,
}

impl Traffic {
    /// Ends it. Panics when a request failed.
    fn assert_all_answered(self) {
        self.done.store(true, Ordering::SeqCst);
        let (count, failed) = blocking(|| self.asking.join()).unwrap();
        assert!(
            failed.is_empty(),
            "{} of {count}: {failed:#?}",
            failed.len()
        );
        assert!(count > 10, "{count}");
    }
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

async fn eventually_async(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "still not {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often `replica` has tried to get a token, with this outcome.
fn fetches(replica: &Proxy, outcome: &str) -> u64 {
    let (_, metrics) = replica.admin("/metrics");
    let wanted = format!("outcome=\"{outcome}\"");
    metrics
        .lines()
        .filter(|line| line.starts_with("countersign_credential_fetch_total{"))
        .filter(|line| line.contains(&wanted))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Waits until `replica` has had `count` tokens.
fn until_renewed(replica: &Proxy, count: u64) {
    blocking(|| {
        eventually("renewed", || {
            (fetches(replica, "ok") >= count).then_some(())
        });
    });
}

fn last_error(replica: &Proxy) -> String {
    let (_, status) = replica.admin("/status");
    let status: Value = serde_json::from_str(&status).unwrap_or_default();
    status["vendors"][0]["last_error"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The refresh tokens that the mock consent server received, and its responses.
fn refreshes(stage: &Stage) -> Vec<(String, u16)> {
    let calls = stage.mocks.maxmd_auth.token_calls();
    calls
        .iter()
        .filter_map(|seen| Some((seen.form("refresh_token")?, seen.status)))
        .collect()
}

fn assert_none_was_shown_twice(stage: &Stage) {
    let mut shown = refreshes(stage);
    let count = shown.len();
    assert!(shown.iter().all(|(_, status)| *status == 200), "{shown:?}");
    shown.sort();
    shown.dedup();
    assert_eq!(shown.len(), count, "one was shown twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_share_a_redis_spend_one_grant_and_never_fight() {
    let redis = Redis::start();
    let stage = Stage::on_redis("maxmd", "", &redis).await;
    share_one_grant(&stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_share_a_kubernetes_secret_spend_one_grant_and_never_fight() {
    let pki = Pki::new();
    let kubernetes = Kubernetes::start(&pki).await;
    let stage = Stage::on_kubernetes("maxmd", "", &kubernetes).await;
    share_one_grant(&stage).await;

    let secret = kubernetes.object("secrets", SECRET).unwrap();
    assert!(secret["data"]["maxmd"].is_string(), "{secret}");
    let lease = kubernetes.object("leases", "countersign-state-maxmd");
    assert!(lease.unwrap()["spec"]["leaseTransitions"].as_u64() > Some(2));
    // No more than was granted.
    for line in kubernetes.told() {
        assert!(!line.ends_with("405") && !line.ends_with("422"), "{line}");
    }
}

/// Three replicas, one of them late, and a mock server that ends the grant when a refresh token is
/// shown twice.
async fn share_one_grant(stage: &Stage) {
    stage.mocks.maxmd_auth.set_lifetime(Duration::from_secs(4));
    stage.consent().await;
    let mut replicas = vec![stage.replica(), stage.replica()];
    for replica in &replicas {
        until_renewed(replica, 1);
    }
    assert_eq!(refreshes(stage), []);
    let traffic: Vec<_> = replicas
        .iter()
        .map(|replica| stage.traffic(replica, "/maxmd/api/certificate/query"))
        .collect();
    for replica in &replicas {
        until_renewed(replica, 3);
    }
    replicas.push(stage.replica());
    for replica in &replicas {
        until_renewed(replica, 5);
    }
    for traffic in traffic {
        traffic.assert_all_answered();
    }
    assert_none_was_shown_twice(stage);
    // Each took every token, and one of them bought it.
    let bought = refreshes(stage).len() as u64;
    let taken: u64 = replicas.iter().map(|replica| fetches(replica, "ok")).sum();
    assert!(taken >= bought * 2, "{taken} {bought}");
    for replica in &replicas {
        assert_eq!(fetches(replica, "temporary"), 0, "{}", replica.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_paused_fails_no_request_and_costs_no_grant() {
    survive(|redis| redis.pause(), |redis| redis.resume()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_killed_and_restarted_fails_no_request_and_costs_no_grant() {
    survive(Redis::stop, Redis::restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_becomes_read_only_fails_no_request_and_costs_no_grant() {
    survive(
        |redis| drop(redis.command(&["REPLICAOF", "127.0.0.1", "1"])),
        |redis| drop(redis.command(&["REPLICAOF", "NO", "ONE"])),
    )
    .await;
}

/// Two replicas, and a fault that lasts from before the renewal until both have felt it.
async fn survive(fault: impl FnOnce(&mut Redis), repair: impl FnOnce(&mut Redis)) {
    let mut redis = Redis::start();
    let stage = Stage::on_redis("maxmd", "        request_timeout: 2s\n", &redis).await;
    // Renewed after 15 s, used up after 28.5 s.
    let lifetime = Duration::from_secs(30);
    stage.mocks.maxmd_auth.set_lifetime(lifetime);
    stage.consent().await;
    let replicas = [stage.replica(), stage.replica()];
    let mut traffic = Vec::new();
    for replica in &replicas {
        until_renewed(replica, 1);
        traffic.push(stage.traffic(replica, "/maxmd/api/certificate/query"));
    }

    fault(&mut redis);
    for replica in &replicas {
        blocking(|| {
            eventually("in trouble", || {
                (fetches(replica, "temporary") > 0).then_some(())
            });
        });
        assert!(last_error(replica).starts_with("store: redis://localhost:"));
    }
    assert_eq!(
        refreshes(&stage),
        [],
        "spent with nowhere to keep the answer"
    );
    repair(&mut redis);
    for replica in &replicas {
        until_renewed(replica, 2);
    }
    for traffic in traffic {
        traffic.assert_all_answered();
    }
    assert_none_was_shown_twice(&stage);
    assert_eq!(refreshes(&stage).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_comes_back_empty_gets_the_grant_back_and_nobody_consents_again() {
    let redis = Redis::start();
    let stage = Stage::on_redis("maxmd", "        request_timeout: 1s\n", &redis).await;
    stage.mocks.maxmd_auth.set_lifetime(Duration::from_secs(20));
    stage.consent().await;
    let replicas = [stage.replica(), stage.replica()];
    let mut traffic = Vec::new();
    for replica in &replicas {
        until_renewed(replica, 1);
        traffic.push(stage.traffic(replica, "/maxmd/api/certificate/query"));
    }

    for round in 2..4 {
        redis.flush();
        let store = open(&redis.url(), None, KEY);
        eventually_async("put back", async || {
            store.load("maxmd").await.unwrap().is_some()
        })
        .await;
        for replica in &replicas {
            until_renewed(replica, round);
        }
    }
    for traffic in traffic {
        traffic.assert_all_answered();
    }
    assert_none_was_shown_twice(&stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_another_key_says_so_and_disturbs_nobody() {
    let redis = Redis::start();
    let mut stage = Stage::on_redis("maxmd", "", &redis).await;
    stage.mocks.maxmd_auth.set_lifetime(Duration::from_secs(4));
    stage.consent().await;
    let good = stage.replica();
    until_renewed(&good, 1);
    stage.environment.retain(|(name, _)| *name != "STORE_KEY");
    stage.environment.push(("STORE_KEY", OTHER_KEY.to_owned()));
    let bad = stage.replica();
    let error = blocking(|| {
        eventually("in trouble", || {
            Some(last_error(&bad)).filter(|error| !error.is_empty())
        })
    });
    assert!(error.contains("another encryption_key"), "{error}");
    until_renewed(&good, 4);
    assert_eq!(fetches(&bad, "ok"), 0);
    assert_none_was_shown_twice(&stage);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_redis_that_are_killed_at_random_never_show_a_stored_answers_token_again() {
    let redis = Redis::start();
    let stage = Stage::on_redis("venafi", "        request_timeout: 1s\n", &redis).await;
    let store = open(&redis.url(), None, KEY);
    disturbed_at_random(&stage, Some(store), seconds(20), async |replica| {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..2500))).await;
        let before = std::mem::replace(replica, stage.replica());
        drop(before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_redis_that_are_paused_beyond_their_lease_never_show_a_stored_answers_token_again()
 {
    let redis = Redis::start();
    let stage = Stage::on_redis("venafi", "        request_timeout: 1s\n", &redis).await;
    let store = open(&redis.url(), None, KEY);
    disturbed_at_random(&stage, Some(store), seconds(25), async |replica| {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..1500))).await;
        // The lease is of six seconds.
        signal(replica.id(), "STOP");
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..9000))).await;
        signal(replica.id(), "CONT");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_on_kubernetes_that_are_killed_at_random_never_try_a_token_twice_for_nothing() {
    let pki = Pki::new();
    let kubernetes = Kubernetes::start(&pki).await;
    let stage = Stage::on_kubernetes("venafi", "        request_timeout: 1s\n", &kubernetes).await;
    disturbed_at_random(&stage, None, seconds(15), async |replica| {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(100..2500))).await;
        let before = std::mem::replace(replica, stage.replica());
        drop(before);
    })
    .await;
}

/// How long processes are disturbed; `COUNTERSIGN_KILL_SECONDS` makes it longer.
fn seconds(usual: u64) -> Duration {
    let asked = std::env::var("COUNTERSIGN_KILL_SECONDS").ok();
    Duration::from_secs(asked.and_then(|text| text.parse().ok()).unwrap_or(usual))
}

/// Two replicas, one of which is always being disturbed, in front of a server whose
/// tokens live for two seconds and take a fifth of one to get.
async fn disturbed_at_random(
    stage: &Stage,
    store: Option<Arc<dyn Store>>,
    long: Duration,
    mut disturb: impl AsyncFnMut(&mut Proxy),
) {
    let venafi = &stage.mocks.venafi;
    venafi.set_lifetime(Duration::from_secs(2));
    venafi.delay_token_calls(Duration::from_millis(200));
    // Refresh token by refresh token: how many had been shown when its successor was stored.
    let successors = Arc::new(std::sync::Mutex::new(HashMap::new()));
    let shown = || -> Vec<(String, u16)> {
        let calls = stage.mocks.venafi.token_calls();
        let token = |seen: &countersign_demo::RecordedRequest| {
            Some((
                seen.json()["refresh_token"].as_str()?.to_owned(),
                seen.status,
            ))
        };
        calls.iter().filter_map(token).collect()
    };
    let watching = async {
        let Some(store) = &store else {
            return std::future::pending().await;
        };
        let mut last = None;
        loop {
            // Before the look: what is shown meanwhile must not count.
            let now = store.load("venafi").await.ok().flatten();
            let now = now.and_then(|grant| Some(grant.refresh_token?.expose().to_owned()));
            if now.is_some() && now != last {
                if let Some(last) = last {
                    successors.lock().unwrap().insert(last, shown().len());
                }
                last = now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut replicas = [stage.replica(), stage.replica()];
    let mut disturbances = 0_usize;
    let disturbing = async {
        let deadline = Instant::now() + long;
        while Instant::now() < deadline {
            disturb(&mut replicas[fastrand::usize(..2)]).await;
            disturbances += 1;
        }
    };
    tokio::select! {
        () = watching => unreachable!(),
        () = disturbing => {}
    }
    // However much of that fell into the leases of the dead, both go on now.
    for replica in &replicas {
        until_renewed(replica, fetches(replica, "ok") + 2);
    }

    let calls = shown();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for (token, _) in &calls {
        *times.entry(token).or_default() += 1;
    }
    let extra: usize = times.values().map(|times| times - 1).sum();
    println!(
        "{disturbances} disturbances, {} refreshes, {extra} extra",
        calls.len()
    );
    // A lock outlives its dead or paused holder by 6 s, and meanwhile no replica renews.
    let least = usize::try_from(long.as_secs()).unwrap() / 6;
    assert!(
        times.len() >= least,
        "hardly anything was renewed: {calls:?}"
    );
    assert!(
        extra <= disturbances,
        "{extra} extra tries, {disturbances} disturbances"
    );
    for (token, before) in successors.lock().unwrap().iter() {
        let again = calls.iter().skip(*before).any(|(shown, _)| shown == token);
        assert!(!again, "shown again after its answer was stored");
    }
}

// ---- Kubernetes -------------------------------------------------------------------------------

#[tokio::test]
async fn the_stand_in_for_kubernetes_answers_as_the_real_one_did() {
    let pki = Pki::new();
    let kubernetes = Kubernetes::start(&pki).await;
    // Made by deploy/kubernetes-store-by-hand/run.py --record, its namespace left out.
    let recorded = include_str!("support/kubernetes/recorded.json").replace("NAMESPACE", NAMESPACE);
    let recorded: Vec<Value> = serde_json::from_str(&recorded).unwrap();
    assert!(recorded.len() > 30);
    let rights = ["get", "create", "update"];
    let forbid = |forbidden| {
        for (verb, plural) in rights.iter().flat_map(|v| [(v, "secrets"), (v, "leases")]) {
            kubernetes.forbid(verb, plural, forbidden);
        }
    };
    forbid(true);
    let mut granted = false;
    for case in &recorded {
        let text = |field: &str| case[field].as_str().unwrap_or_default();
        // It begins without any right, and goes on with all of them.
        if !granted && case["status"] != 403 {
            granted = true;
            forbid(false);
        }
        let mut body = case["body"].clone();
        if body["metadata"]["resourceVersion"] == "$VERSION" {
            let (_, there) = kubernetes.ask("account", "GET", text("path"), Value::Null);
            body["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
        }
        let (status, answer) = kubernetes.ask(text("as"), text("method"), text("path"), body);
        assert_eq!(case["status"], status, "{case} {answer}");
        if status >= 400 {
            assert_eq!(case["reason"], answer["reason"], "{case}");
            let said = answer["message"].as_str().unwrap();
            // Where the real one goes on with its parser's own words, ours does not.
            assert!(text("message").starts_with(said), "{case} {said}");
        } else {
            // What both tell of an object beside its content, but for who wrote which field.
            let mut fields: Vec<_> = answer["metadata"].as_object().unwrap().keys().collect();
            fields.sort();
            let real = case["fields"].as_array().unwrap().iter();
            let real = real.filter(|field| *field != "managedFields");
            assert!(real.eq(fields), "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_is_named_and_a_secret_that_is_there_needs_none_to_create() {
    let pki = Pki::new();
    let kubernetes = Kubernetes::start(&pki).await;
    kubernetes.forbid("create", "secrets", true);
    let stage = Stage::on_kubernetes("venafi", "", &kubernetes).await;
    let replica = stage.replica();
    let error = blocking(|| {
        eventually("in trouble", || {
            Some(last_error(&replica)).filter(|error| !error.is_empty())
        })
    });
    assert!(
        error.contains("cannot create resource \"secrets\""),
        "{error}"
    );
    assert!(error.contains("system:serviceaccount:"), "{error}");
    // Nothing was asked for that could not have been kept.
    assert_eq!(stage.mocks.venafi.token_calls().len(), 0);

    kubernetes.create_secret(SECRET);
    until_renewed(&replica, 1);
    kubernetes.forbid("create", "leases", true);
    stage.mocks.venafi.set_lifetime(Duration::from_secs(4));
    replica_refresh(&replica);
    until_renewed(&replica, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_writer_of_the_secret_and_an_api_server_that_is_away_fail_no_request() {
    let pki = Pki::new();
    let kubernetes = Kubernetes::start(&pki).await;
    let stage = Stage::on_kubernetes("maxmd", "        request_timeout: 2s\n", &kubernetes).await;
    stage.mocks.maxmd_auth.set_lifetime(Duration::from_secs(16));
    stage.consent().await;
    let replicas = [stage.replica(), stage.replica()];
    let mut traffic = Vec::new();
    for replica in &replicas {
        until_renewed(replica, 1);
        traffic.push(stage.traffic(replica, "/maxmd/api/certificate/query"));
    }
    kubernetes.overtake(3);
    for replica in &replicas {
        until_renewed(replica, 2);
    }
    let conflicts = kubernetes.told();
    let conflicts = conflicts.iter().filter(|line| *line == "PUT secrets 409");
    assert_eq!(conflicts.count(), 3);
    let secret = kubernetes.object("secrets", SECRET).unwrap();
    let kept = &secret["metadata"]["annotations"]["example.com/overtaken"];
    assert_eq!(kept, "yes", "another writer's change was lost");

    kubernetes.set_down(true);
    for replica in &replicas {
        blocking(|| {
            eventually("in trouble", || {
                (fetches(replica, "temporary") > 0).then_some(())
            });
        });
        assert!(
            last_error(replica).contains("503"),
            "{}",
            last_error(replica)
        );
    }
    kubernetes.set_down(false);
    for replica in &replicas {
        until_renewed(replica, 3);
    }
    // Everything is gone, and put back.
    kubernetes.clear();
    blocking(|| {
        eventually("put back", || kubernetes.object("secrets", SECRET));
    });
    for replica in &replicas {
        until_renewed(replica, 4);
    }
    for traffic in traffic {
        traffic.assert_all_answered();
    }
    assert_none_was_shown_twice(&stage);
}

/// Forces a renewal the way an operator does.
fn replica_refresh(replica: &Proxy) {
    let host = replica.admin;
    let head = format!(
        "POST /vendors/venafi/refresh HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = blocking(|| exchange(host, head.as_bytes()));
    assert_eq!(status_of(&answer), 202, "{answer}");
}
