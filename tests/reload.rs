//! A new configuration is taken into use whole or not at all, and no request notices.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use countersign_demo::MockServer;
use rcgen::{CertificateParams, KeyPair};

use crate::support::origin::Caller;
use crate::support::{Proxy, eventually, signal, status_of};

struct Setup {
    echo: MockServer,
    proxy: Proxy,
    dir: tempfile::TempDir,
}

impl Setup {
    async fn new(listener: &str) -> Self {
        let echo = countersign_demo::echo().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let yaml = yaml(listener, &vendor("v", &echo.url(), "one"));
        let directory = dir.path().to_owned();
        let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml))
            .await
            .unwrap();
        Self { echo, proxy, dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("proxy.yaml")
    }

    /// Writes a configuration and asks for it to be taken into use at once.
    fn reload(&self, yaml: &str) {
        fs::write(self.file(), yaml).unwrap();
        signal(self.proxy.id(), "HUP");
    }

    fn get(&self, path: &str) -> String {
        self.proxy.raw(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
    }

    fn reloads(&self, outcome: &str) -> String {
        let series = format!("countersign_config_reloads_total{{outcome=\"{outcome}\"}} ");
        let metrics = self.proxy.admin("/metrics").1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
        line.unwrap_or("missing").to_owned()
    }
}

fn yaml(listener: &str, vendors: &str) -> String {
    format!(
        "listeners: [ {listener} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n{vendors}"
    )
}

fn vendor(name: &str, upstream: &str, key: &str) -> String {
    format!(
        "  {name}:\n    upstream: {upstream}\n    allow_plaintext: true\n    auth: {{ headers: {{ X-Key: {key} }} }}\n    redact_echo: false\n"
    )
}

const PLAIN: &str = "{ bind: 127.0.0.1:0 }";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_configuration_takes_effect_on_sighup() {
    let setup = Setup::new(PLAIN).await;
    assert!(setup.get("/v/x?echo=X-Key").ends_with("one"));
    let url = setup.echo.url();
    let both = vendor("v", &url, "two") + &vendor("w", &url, "three");
    setup.reload(&yaml(PLAIN, &both));
    eventually("reloaded", || (setup.reloads("ok") == "1").then_some(()));
    assert!(setup.get("/v/x?echo=X-Key").ends_with("two"));
    assert!(setup.get("/w/x?echo=X-Key").ends_with("three"));
    assert!(setup.proxy.admin("/status").1.contains("\"name\":\"w\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_noticed_without_a_signal() {
    let setup = Setup::new(PLAIN).await;
    let changed = yaml(PLAIN, &vendor("v", &setup.echo.url(), "noticed"));
    // As Kubernetes does it: the new content appears by a rename.
    let beside = setup.dir.path().join("next.yaml");
    fs::write(&beside, changed).unwrap();
    fs::rename(beside, setup.file()).unwrap();
    eventually("noticed", || {
        setup
            .get("/v/x?echo=X-Key")
            .ends_with("noticed")
            .then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_changes_nothing_and_is_shown() {
    let setup = Setup::new(PLAIN).await;
    setup.reload(&yaml(PLAIN, "  v:\n    upsteam: https://a\n"));
    eventually("refused", || (setup.reloads("error") == "1").then_some(()));
    assert!(setup.get("/v/x?echo=X-Key").ends_with("one"));
    let status = setup.proxy.admin("/status").1;
    assert!(status.contains("upsteam"), "{status}");
    let last_reload = |was: u8| {
        let line = format!("\ncountersign_config_last_reload_successful {was}\n");
        setup.proxy.admin("/metrics").1.contains(&line)
    };
    assert!(last_reload(0));

    let elsewhere = "{ bind: 127.0.0.1:1 }";
    setup.reload(&yaml(elsewhere, &vendor("v", &setup.echo.url(), "two")));
    eventually("refused", || (setup.reloads("error") == "2").then_some(()));
    assert!(setup.get("/v/x?echo=X-Key").ends_with("one"));
    assert!(setup.proxy.admin("/status").1.contains("restart"));

    setup.reload(&yaml(PLAIN, &vendor("v", &setup.echo.url(), "two")));
    eventually("accepted", || (setup.reloads("ok") == "1").then_some(()));
    let status: serde_json::Value = serde_json::from_str(&setup.proxy.admin("/status").1).unwrap();
    assert_eq!(status["config"]["last_error"], serde_json::Value::Null);
    assert!(last_reload(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_in_a_hundred_reloads() {
    countersign::tls::install_provider();
    let listener = "{ bind: 127.0.0.1:0, h2c: true }";
    let setup = Setup::new(listener).await;
    let url = setup.echo.url();
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = setup.get("/v/x");
                    assert_eq!(status_of(&answer), 200, "{answer}");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Connections that last see the change, too.
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            while !stop.load(Ordering::Relaxed) {
                let url = format!("http://{}/v/x", setup.proxy.data);
                let answer = runtime.block_on(async { client.post(url).body("b").send().await });
                assert_eq!(answer.unwrap().status(), 200);
            }
        });
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let mut caller = Caller::connect(setup.proxy.data).await;
                while !stop.load(Ordering::Relaxed) {
                    let request = http::Request::post("http://localhost/v/x");
                    assert_eq!(caller.ask(request, b"b").await.status, 200);
                }
            });
        });
        for round in 1..=100 {
            let key = format!("key-{round}");
            setup.reload(&yaml(listener, &vendor("v", &url, &key)));
            eventually("in use", || {
                setup.get("/v/x?echo=X-Key").ends_with(&key).then_some(())
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(sent.load(Ordering::Relaxed) > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listeners_certificate_is_swapped_under_new_handshakes() {
    let dir = tempfile::tempdir().unwrap();
    countersign::tls::install_provider();
    let write = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("tls.key"), key.serialize_pem()).unwrap();
        fs::write(dir.path().join("tls.crt"), certificate.pem()).unwrap();
        certificate.pem()
    };
    let first = write("first.test");
    let echo = countersign_demo::echo().await.unwrap();
    let listener = "{ bind: 127.0.0.1:0, tls: { cert: tls.crt, key: tls.key } }";
    let text = yaml(listener, &vendor("v", &echo.url(), "one"));
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &text))
        .await
        .unwrap();
    let trusts = |name: &'static str, pem: String| {
        let address = proxy.data;
        async move {
            let root = reqwest::Certificate::from_pem(pem.as_bytes()).unwrap();
            reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([root])
                .resolve(name, address)
                .build()
                .unwrap()
                .get(format!("https://{name}:{}/v/x", address.port()))
                // Without callers only loopback names may be asked for.
                .header("host", "localhost")
                .send()
                .await
                .is_ok()
        }
    };
    assert!(trusts("first.test", first.clone()).await);
    let second = write("second.test");
    signal(proxy.id(), "HUP");
    let mut swapped = false;
    for _ in 0..100 {
        swapped = trusts("second.test", second.clone()).await;
        if swapped {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(swapped, "{}", proxy.stderr());
    assert!(!trusts("first.test", first).await);
}
