//! A vendor that keeps one token alive for each client, and two replicas in front of it: without
//! `share` they end each other's tokens, which is shown; with it they use one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::redis::Redis;
use crate::support::script::{Reply, Server};
use crate::support::{Proxy, eventually, exchange, run, signal, status_of};

const KEY: &str = "1111111111111111111111111111111111111111111111111111111111111111";

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_end_each_others_tokens_are_told_so_with_the_cure() {
    let scene = Scene::new("", "").await;
    let (one, two) = (scene.replica(), scene.replica());
    let told = blocking(|| {
        eventually("told", || {
            ask(&one);
            ask(&two);
            let proxies = [&one, &two].into_iter();
            proxies.into_iter().find(|proxy| {
                let error = status(proxy)["last_error"].clone();
                error
                    .as_str()
                    .is_some_and(|error| error.contains("`share: true`"))
            })
        })
    });
    let (_, page) = told.admin("/");
    for said in ["keeps only one alive", "<code>share: true</code> under"] {
        assert!(page.contains(said), "{said} in\n{page}");
    }
    let (_, metrics) = told.admin("/metrics");
    let lost = "countersign_credential_lost_total{vendor=\"v\"} ";
    let lost = metrics.lines().find_map(|line| line.strip_prefix(lost));
    assert!(lost.unwrap().parse::<u32>().unwrap() >= 2, "{metrics}");
    let metrics = two.admin("/metrics").1 + &metrics;
    assert!(!metrics.contains("share"), "names stay bounded");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_one_directory_share_a_token() {
    let store =
        format!("store: {{ file: {{ dir: state }}, encryption_key: {{ value: \"{KEY}\" }} }}\n");
    share(&Scene::new(&store, ", share: true").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_one_redis_share_a_token_and_go_on_without_it() {
    let mut redis = blocking(Redis::start);
    let store = format!(
        "store: {{ redis: {{ url: {{ value: \"{}\" }} }}, encryption_key: {{ value: \"{KEY}\" }} }}\n",
        redis.url()
    );
    let scene = Scene::new(&store, ", share: true").await;
    let (one, two) = share(&scene);

    // Without the store the token in hand is used, and what is wrong is said.
    blocking(|| redis.stop());
    refresh(&one);
    blocking(|| {
        eventually("the store is missed", || {
            let error = status(&one)["last_error"].clone();
            error
                .as_str()
                .filter(|error| error.starts_with("store: "))
                .map(drop)
        });
    });
    for proxy in [&one, &two] {
        assert_eq!(ask(proxy), 200);
    }
    blocking(|| redis.restart());
    blocking(|| {
        eventually("well again", || {
            refresh(&one);
            (status(&one)["last_error"] == Value::Null).then_some(())
        });
    });
}

/// No request fails, whoever renews and however a token ends, and every token is used by both.
fn share(scene: &Scene) -> (Proxy, Proxy) {
    let (one, two) = (scene.replica(), scene.replica());
    for proxy in [&one, &two, &one, &two] {
        assert_eq!(ask(proxy), 200);
    }
    assert_eq!(scene.issued(), 1, "one token for both");
    // A renewal here is noticed there, at the latest by the first 401.
    refresh(&one);
    blocking(|| eventually("renewed", || (scene.issued() == 2).then_some(())));
    for proxy in [&two, &one] {
        assert_eq!(ask(proxy), 200);
    }
    // The vendor ends it: one of them asks for another, and both use that.
    scene.live.store(0, Ordering::SeqCst);
    for proxy in [&one, &two] {
        assert_eq!(ask(proxy), 200);
    }
    assert_eq!(scene.issued(), 3);
    for proxy in [&one, &two] {
        let status = status(proxy);
        assert_eq!(status["last_error"], Value::Null, "{status}");
    }
    // Asked by hand, it leaves the token of all alone.
    let probed = blocking(|| run(scene.dir.path(), &["probe"]));
    assert_eq!(probed.code, Some(0), "{probed:?}");
    assert!(probed.stdout.contains("nothing was written"), "{probed:?}");
    assert_eq!(scene.issued(), 3);
    let explained = blocking(|| run(scene.dir.path(), &["explain", "GET", "/v/x"]));
    assert!(
        explained.stdout.contains("one token for all replicas"),
        "{explained:?}"
    );
    // What is stored is not readable.
    let state = scene.dir.path().join("state");
    for file in std::fs::read_dir(state).into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("tok-"));
    }
    // A restarted one takes it as well.
    signal(two.id(), "KILL");
    let two = scene.replica();
    assert_eq!(ask(&two), 200);
    assert_eq!(ask(&one), 200);
    assert_eq!(scene.issued(), 3);
    (one, two)
}

struct Scene {
    /// Number of the token that works.
    live: Arc<AtomicU32>,
    server: Arc<Server>,
    dir: Arc<TempDir>,
    yaml: String,
}

impl Scene {
    async fn new(store: &str, share: &str) -> Self {
        countersign::tls::install_provider();
        let live = Arc::new(AtomicU32::new(0));
        let issued = Arc::new(AtomicU32::new(0));
        let now = live.clone();
        let server = Server::start(move |asked| {
            let reply = if asked.target == "/token" {
                let nth = issued.fetch_add(1, Ordering::SeqCst) + 1;
                now.store(nth, Ordering::SeqCst);
                Reply::json(format!(
                    r#"{{"access_token":"tok-{nth}","expires_in":3600}}"#
                ))
            } else if asked.bearer == Some(format!("tok-{}", now.load(Ordering::SeqCst))) {
                Reply::whole("200 OK", "", "yes")
            } else {
                Reply::whole("401 Unauthorized", "", "no")
            };
            async move { reply }
        })
        .await;
        let url = server.url("");
        let yaml = format!(
            "listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
{store}vendors:
  v:
    upstream: {url}
    allow_plaintext: true
    auth: {{ client_credentials: {{ token_url: \"{url}/token\", client_id: a, client_secret: {{ value: b }}{share} }} }}
"
        );
        Self {
            live,
            server: Arc::new(server),
            dir: Arc::new(tempfile::tempdir().unwrap()),
            yaml,
        }
    }

    fn replica(&self) -> Proxy {
        blocking(|| Proxy::start(self.dir.path(), &self.yaml))
    }

    fn issued(&self) -> usize {
        self.server.asked_at("/token").len()
    }
}

/// The status of a request through this replica.
fn ask(proxy: &Proxy) -> u16 {
    let request = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    blocking(|| status_of(&exchange(proxy.data, request.as_bytes())))
}

fn refresh(proxy: &Proxy) {
    let head = "POST /vendors/v/refresh HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = blocking(|| exchange(proxy.admin, head.as_bytes()));
    assert_eq!(status_of(&answer), 202, "{answer}");
}

fn status(proxy: &Proxy) -> Value {
    let (_, body) = proxy.admin("/status");
    let status: Value = serde_json::from_str(&body).unwrap();
    status["vendors"][0].clone()
}

fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
