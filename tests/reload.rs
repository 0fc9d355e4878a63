//! A new configuration is taken into use whole or not at all, and no request notices.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};

use crate::support::origin::Caller;
use crate::support::world::{ECHO, World};
use crate::support::{Proxy, eventually, signal, status_of};

/// The vendor `v`, whose key is `one`.
async fn start(listener: &str) -> World {
    World::with_vendors(&vendor("v", ECHO, "one"))
        .listener(listener)
        .start()
        .await
}

fn reloads(world: &World, outcome: &str) -> String {
    world.metric(&format!(
        "countersign_config_reloads_total{{outcome=\"{outcome}\"}} "
    ))
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
    let world = start(PLAIN).await;
    assert!(world.get("/v/x?echo=X-Key").ends_with("one"));
    let url = world.echo.url();
    let both = vendor("v", &url, "two") + &vendor("w", &url, "three");
    world.reload(&yaml(PLAIN, &both));
    eventually("reloaded", || (reloads(&world, "ok") == "1").then_some(()));
    assert!(world.get("/v/x?echo=X-Key").ends_with("two"));
    assert!(world.get("/w/x?echo=X-Key").ends_with("three"));
    assert!(world.proxy.admin("/status").1.contains("\"name\":\"w\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_noticed_without_a_signal() {
    let world = start(PLAIN).await;
    let changed = yaml(PLAIN, &vendor("v", &world.echo.url(), "noticed"));
    // As Kubernetes does it: the new content appears by a rename.
    let beside = world.dir.path().join("next.yaml");
    fs::write(&beside, changed).unwrap();
    fs::rename(beside, world.file()).unwrap();
    eventually("noticed", || {
        world
            .get("/v/x?echo=X-Key")
            .ends_with("noticed")
            .then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_changes_nothing_and_is_shown() {
    let world = start(PLAIN).await;
    world.reload(&yaml(PLAIN, "  v:\n    upsteam: https://a\n"));
    eventually("refused", || {
        (reloads(&world, "error") == "1").then_some(())
    });
    assert!(world.get("/v/x?echo=X-Key").ends_with("one"));
    let status = world.proxy.admin("/status").1;
    assert!(status.contains("upsteam"), "{status}");
    let last_reload = |was: u8| {
        let line = format!("\ncountersign_config_last_reload_successful {was}\n");
        world.proxy.admin("/metrics").1.contains(&line)
    };
    assert!(last_reload(0));

    let elsewhere = "{ bind: 127.0.0.1:1 }";
    world.reload(&yaml(elsewhere, &vendor("v", &world.echo.url(), "two")));
    eventually("refused", || {
        (reloads(&world, "error") == "2").then_some(())
    });
    assert!(world.get("/v/x?echo=X-Key").ends_with("one"));
    assert!(world.proxy.admin("/status").1.contains("restart"));

    world.reload(&yaml(PLAIN, &vendor("v", &world.echo.url(), "two")));
    eventually("accepted", || (reloads(&world, "ok") == "1").then_some(()));
    let status: serde_json::Value = serde_json::from_str(&world.proxy.admin("/status").1).unwrap();
    assert_eq!(status["config"]["last_error"], serde_json::Value::Null);
    assert!(last_reload(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_in_a_hundred_reloads() {
    countersign::tls::install_provider();
    let listener = "{ bind: 127.0.0.1:0, h2c: true }";
    let world = start(listener).await;
    let url = world.echo.url();
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let answer = world.get("/v/x");
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
                let url = format!("http://{}/v/x", world.proxy.data);
                let answer = runtime.block_on(async { client.post(url).body("b").send().await });
                assert_eq!(answer.unwrap().status(), 200);
            }
        });
        scope.spawn(|| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let mut caller = Caller::connect(world.proxy.data).await;
                while !stop.load(Ordering::Relaxed) {
                    let request = http::Request::post("http://localhost/v/x");
                    assert_eq!(caller.ask(request, b"b").await.status, 200);
                }
            });
        });
        for round in 1..=100 {
            let key = format!("key-{round}");
            world.reload(&yaml(listener, &vendor("v", &url, &key)));
            eventually("in use", || {
                world.get("/v/x?echo=X-Key").ends_with(&key).then_some(())
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
