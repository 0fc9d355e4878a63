//! What a credential or a connection is made from changes while it is in use.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::{Ledger, SECRET, Setup, mount};
use crate::support::script::{Asked, Reply};
use crate::support::{Proxy, eventually, signal, status_of};

/// Grants to `me` with one of two secrets, and to `you`; slowly where the secret says so.
async fn tokens(asked: Asked, ledger: Arc<Ledger>) -> Reply {
    let id = asked.member("client_id").unwrap();
    let secret = asked.member("client_secret").unwrap();
    match (id.as_str(), secret.as_str()) {
        ("me" | "you", SECRET | "second") => {}
        ("me", "slow") => sleep(Duration::from_secs(2)).await,
        _ => return Reply::whole("401 No", "", r#"{"error":"invalid_client"}"#),
    }
    let token = ledger.issue(&asked, Duration::from_hours(1));
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

/// An API that demands a client certificate, and tells the requests it got by connection and
/// certificate.
struct Demanding {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    accepting: JoinHandle<()>,
}

/// Its connection, and SHA-256 of the certificate that was made with.
type Request = (usize, Vec<u8>);

impl Demanding {
    async fn start(authority: &Authority) -> Self {
        let (chain, key) = authority.sign("localhost");
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
        let config = ServerConfig::builder()
            .with_client_cert_verifier(verifier.unwrap())
            .with_single_cert(
                vec![chain.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let sink = requests.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, sink, connection) = (acceptor.clone(), sink.clone(), count);
                count += 1;
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
                    let shown = countersign::tls::sha256(&[shown]).to_vec();
                    let mut head = Vec::new();
                    while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                        if head.ends_with(b"\r\n\r\n") {
                            head.clear();
                            sink.lock().unwrap().push((connection, shown.clone()));
                            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self {
            port,
            requests,
            accepting,
        }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Demanding {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pooled_connection_outlives_its_certificate_or_its_authority() {
    countersign::tls::install_provider();
    let authority = Authority::new("one");
    let api = Demanding::start(&authority).await;
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        // One rename each; the pair is looked at together.
        std::fs::write(dir.path().join("next"), text).unwrap();
        std::fs::rename(dir.path().join("next"), dir.path().join(name)).unwrap();
    };
    let install = || {
        let (certificate, key) = authority.sign("proxy.test");
        put("client.key", &key.serialize_pem());
        put("client.pem", &certificate.pem());
        countersign::tls::sha256(&[certificate.der()]).to_vec()
    };
    let first = install();
    put("ca.pem", &authority.pem);
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
vendors:
  v:
    upstream: https://localhost:{}
    ca: ca.pem
    client_cert: {{ cert: client.pem, key: client.key }}
    auth: {{ headers: {{ X-Key: one }} }}
",
        api.port
    );
    let path = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&path, &yaml))
        .await
        .unwrap();
    let call = || {
        let get = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        status_of(&proxy.raw(get))
    };

    for _ in 0..5 {
        assert_eq!(call(), 200);
    }
    let seen = api.requests();
    assert!(seen.iter().all(|(_, shown)| *shown == first));
    let old: HashSet<usize> = seen.iter().map(|(connection, _)| *connection).collect();
    assert!(old.len() < 5, "connections are pooled");

    let second = install();
    signal(proxy.id(), "HUP");
    let reloads = |n: u32| {
        eventually("reloaded", || {
            let line = format!("countersign_config_reloads_total{{outcome=\"ok\"}} {n}");
            proxy.admin("/metrics").1.contains(&line).then_some(())
        });
    };
    reloads(1);
    let before = api.requests().len();
    for _ in 0..5 {
        assert_eq!(call(), 200);
    }
    for (connection, shown) in &api.requests()[before..] {
        assert!(*shown == second && !old.contains(connection));
    }

    // Another authority: the server is no longer trusted, whatever connections are still open.
    put("ca.pem", &Authority::new("two").pem);
    signal(proxy.id(), "HUP");
    reloads(2);
    let before = api.requests().len();
    assert_eq!(call(), 502);
    assert_eq!(api.requests().len(), before);
    put("ca.pem", &authority.pem);
    // Nobody tells it this time.
    eventually("trusted again", || (call() == 200).then_some(()));
}
