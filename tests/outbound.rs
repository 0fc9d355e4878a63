//! The way out through a company's CONNECT proxy, for requests and for token calls alike.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::support::front::Plan;
use crate::support::peers::squid::{PASSWORD, Squid, USER};
use crate::support::script::{Asked, Reply, Server};
use crate::support::{countersign, eventually, signal};

/// A CONNECT proxy that notes the heads it was sent.
pub struct Egress {
    /// Where it listens.
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    /// What it answers.
    status: &'static str,
}

impl Egress {
    /// One that gives every CONNECT this answer.
    pub async fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let egress = Self {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
            status,
        };
        let heads = egress.heads.clone();
        tokio::spawn(async move {
            loop {
                let (caller, _) = listener.accept().await.unwrap();
                tokio::spawn(relay(caller, heads.clone(), status));
            }
        });
        egress
    }

    /// The heads so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

async fn relay(mut caller: TcpStream, heads: Arc<Mutex<Vec<String>>>, status: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if caller.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    heads.lock().push(head);
    let answer = format!("HTTP/1.1 {status}\r\nX-Proxy: yes\r\n\r\n");
    if caller.write_all(answer.as_bytes()).await.is_err() || !status.starts_with('2') {
        return;
    }
    if let Ok(mut vendor) = TcpStream::connect(target).await {
        let _ = copy_bidirectional(&mut caller, &mut vendor).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_token_calls_go_through_the_vendors_proxy_and_reuse_its_tunnels() {
    let egress = Egress::start("200 Connection established").await;
    let proxy = format!("    proxy: http://{}\n", egress.address);
    let plan = Plan::new()
        .await
        .vendor_with("certn", &proxy)
        .vendor("sectigo");
    let front = plan.start();
    for _ in 0..3 {
        assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    }
    assert_eq!(front.answer("/sectigo/api/ssl/v1/types").await.status, 200);

    let certn = front.mocks.certn.address();
    let heads = egress.heads();
    let expected = format!("CONNECT {certn} HTTP/1.1\r\n");
    assert!(
        heads.iter().all(|head| head.starts_with(&expected)),
        "{heads:?}"
    );
    // One for the token, one for three requests; sectigo has no proxy.
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert!(!heads.concat().contains("Proxy-Authorization"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environments_proxy_is_used_with_its_password_and_its_exceptions() {
    let egress = Egress::start("200 OK").await;
    let url = format!("http://us:p%40ss@{}", egress.address);
    let plan = Plan::new().await.vendor("certn");
    let front = plan
        .environment("HTTPS_PROXY", Box::leak(url.into_boxed_str()))
        .environment("RUST_LOG", "trace")
        .start();
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    let heads = egress.heads();
    assert_eq!(heads.len(), 2, "{heads:?}");
    for head in heads {
        let lower = head.to_lowercase();
        assert!(
            lower.contains("proxy-authorization: basic dxm6cebzcw=="),
            "{head}"
        );
    }
    let said = front.proxy.said() + &front.proxy.admin("/status").1 + &front.proxy.admin("/").1;
    for secret in ["p%40ss", "p@ss", "dXM6cEBzcw"] {
        let lines: Vec<_> = said.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }

    let egress = Egress::start("200 OK").await;
    let url = format!("http://{}", egress.address);
    let front = Plan::new()
        .await
        .vendor("certn")
        .environment("HTTPS_PROXY", Box::leak(url.into_boxed_str()))
        .environment("NO_PROXY", "127.0.0.0/8")
        .start();
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    assert_eq!(egress.heads(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_is_a_502_and_nothing_goes_around_it() {
    let egress = Egress::start("407 Proxy Authentication Required").await;
    let proxy = format!("    proxy: http://{}\n", egress.address);
    let front = Plan::new().await.vendor_with("sectigo", &proxy).start();
    let answer = front.answer("/sectigo/api/ssl/v1/types").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["reason"], "upstream_unreachable");
    assert!(front.mocks.cert_manager.requests().is_empty());
    assert_eq!(egress.status, "407 Proxy Authentication Required");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_squid_lets_us_out_with_its_password_and_not_without() {
    let squid = Squid::start();
    for (login, status) in [(format!("{USER}:{PASSWORD}@"), 200), (String::new(), 502)] {
        let url = format!("http://{login}127.0.0.1:{}", squid.port);
        let front = Plan::new()
            .await
            .vendor("sectigo")
            .vendor("certn")
            .environment("HTTPS_PROXY", Box::leak(url.into_boxed_str()))
            .start();
        for _ in 0..3 {
            let answer = front.answer("/sectigo/api/ssl/v1/types").await;
            assert_eq!(answer.status, status, "{login:?}: {answer:?}");
        }
        // Its token call goes the same way.
        let answer = front.answer("/certn/hr/v1/applicants/").await;
        let expected = if status == 200 { 200 } else { 503 };
        assert_eq!(answer.status, expected, "{login:?}: {answer:?}");
        for mock in [&front.mocks.cert_manager, &front.mocks.certn] {
            assert_eq!(!mock.requests().is_empty(), status == 200, "{login:?}");
        }
    }
    // Written once a tunnel has ended.
    let log = squid.requests();
    assert!(
        log.iter().any(|line| line.contains("TCP_DENIED/407")),
        "{log:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_a_reload_brings_is_used_by_token_calls_too() {
    let egress = Egress::start("200 OK").await;
    let plan = Plan::new().await.vendor("certn");
    let yaml = plan.yaml();
    let front = plan.start();
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    let before = front.mocks.certn.token_calls().len();

    let more = format!("{yaml}    proxy: http://{}\n", egress.address);
    std::fs::write(front.dir().join("proxy.yaml"), more).unwrap();
    signal(front.proxy.id(), "HUP");
    // Not asked for by anything: a new way is a new generation.
    eventually("a token by the new way", || {
        (front.mocks.certn.token_calls().len() > before && !egress.heads().is_empty()).then_some(())
    });
    let certn = front.mocks.certn.address();
    let head = format!("CONNECT {certn} HTTP/1.1\r\n");
    assert!(egress.heads().iter().all(|sent| sent.starts_with(&head)));
}

/// One answer of both ways: a token call and a request.
async fn both_ways(environment: &[(&'static str, String)]) -> (u16, u16) {
    let mut plan = Plan::new().await.vendor("certn").vendor("sectigo");
    for (name, value) in environment {
        plan = plan.environment(name, Box::leak(value.clone().into_boxed_str()));
    }
    let front = plan.start();
    let token = front.answer("/certn/hr/v1/applicants/").await.status;
    let request = front.answer("/sectigo/api/ssl/v1/types").await.status;
    (token, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_variable_of_curls_leads_both_ways_through_the_proxy() {
    for variables in [
        &["https_proxy"][..],
        &["ALL_PROXY"],
        &["all_proxy"],
        // Empty ones hide nothing.
        &["https_proxy", "HTTPS_PROXY", "all_proxy"],
    ] {
        let egress = Egress::start("200 OK").await;
        let (last, empty) = variables.split_last().unwrap();
        let mut environment = vec![(*last, format!("http://{}", egress.address))];
        environment.extend(empty.iter().map(|name| (*name, String::new())));
        assert_eq!(both_ways(&environment).await, (200, 200), "{variables:?}");
        // The token, its request, and the other vendor's request.
        assert_eq!(
            egress.heads().len(),
            3,
            "{variables:?}: {:?}",
            egress.heads()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exception_with_a_port_holds_for_that_port_both_ways() {
    let egress = Egress::start("200 OK").await;
    let plan = Plan::new().await.vendor("certn").vendor("sectigo");
    let (certn, sectigo) = (
        plan.mocks.certn.address(),
        plan.mocks.cert_manager.address(),
    );
    let proxy = format!("http://{}", egress.address);
    let front = plan
        .environment("HTTPS_PROXY", Box::leak(proxy.into_boxed_str()))
        .environment("NO_PROXY", "")
        .environment("no_proxy", Box::leak(certn.to_string().into_boxed_str()))
        .start();
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    assert_eq!(front.answer("/sectigo/api/ssl/v1/types").await.status, 200);
    let heads = egress.heads();
    let other = format!("CONNECT {sectigo} HTTP/1.1\r\n");
    assert!(
        heads.iter().all(|head| head.starts_with(&other)),
        "{heads:?}"
    );
    assert_eq!(heads.len(), 1, "{heads:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_be_used_is_refused_at_once_unless_nothing_goes_through_it() {
    let plan = Plan::new().await.vendor("certn").vendor("sectigo");
    std::fs::write(plan.dir().join("proxy.yaml"), plan.yaml()).unwrap();
    for (variable, value, said) in [
        ("HTTPS_PROXY", "\"http://us:canary@127.0.0.1:1\"", "quotes"),
        ("https_proxy", "'http://127.0.0.1:1'", "quotes"),
        (
            "HTTPS_PROXY",
            "https://us:canary@127.0.0.1:1",
            "not supported",
        ),
        ("ALL_PROXY", "socks5://us:canary@127.0.0.1:1", "SOCKS"),
        (
            "all_proxy",
            "http://us:p/canary@127.0.0.1:1",
            "percent-encode",
        ),
        (
            "HTTPS_PROXY",
            "http://us:1/canary@127.0.0.1:1",
            "percent-encode",
        ),
        ("HTTPS_PROXY", "us:p#canary@127.0.0.1:1", "percent-encode"),
        ("HTTPS_PROXY", "canary://", "is not the address"),
    ] {
        for arguments in [&["check"][..], &["serve"], &["probe"]] {
            let refused = countersign()
                .args(arguments)
                .current_dir(plan.dir())
                .env(variable, value)
                .output()
                .unwrap();
            let text = String::from_utf8(refused.stderr).unwrap();
            assert_eq!(refused.status.code(), Some(2), "{value}: {text}");
            assert!(text.contains(variable) && text.contains(said), "{text}");
            assert!(!text.contains("canary"), "{text}");
            // Once, however many would have gone through it.
            assert_eq!(text.matches(variable).count(), 1, "{text}");
        }
        for (name, more) in [("NO_PROXY", "127.0.0.1"), (variable, "")] {
            let fine = countersign()
                .arg("check")
                .current_dir(plan.dir())
                .env(variable, value)
                .env(name, more)
                .output()
                .unwrap();
            assert_eq!(fine.status.code(), Some(0), "{name}: {fine:?}");
        }
        let form = countersign()
            .args(["check", "--without-secrets"])
            .current_dir(plan.dir())
            .env(variable, value)
            .output()
            .unwrap();
        assert_eq!(form.status.code(), Some(0), "{form:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_goes_by_connect_through_a_vendors_proxy_both_ways() {
    let vendor = Server::start(|asked: Asked| async move {
        Reply::json(if asked.target == "/token" {
            r#"{"access_token":"t","token_type":"Bearer","expires_in":3600}"#
        } else {
            "{}"
        })
    })
    .await;
    let egress = Egress::start("200 OK").await;
    let (url, proxy) = (vendor.url(""), egress.address);
    let front = Plan::new()
        .await
        .stanza_of(&format!(
            "  v:
    upstream: {url}
    allow_plaintext: true
    proxy: http://{proxy}
    auth: {{ client_credentials: {{ token_url: {url}/token, client_id: us, client_secret: {{ value: s }} }} }}
"
        ))
        .start();
    assert_eq!(front.answer("/v/x").await.status, 200);
    let expected = format!("CONNECT {} HTTP/1.1\r\n", vendor.address);
    let heads = egress.heads();
    assert!(
        heads.iter().all(|head| head.starts_with(&expected)),
        "{heads:?}"
    );
    assert_eq!(heads.len(), 2, "{heads:?}");
    assert_eq!(vendor.asked_at("/x")[0].bearer.as_deref(), Some("t"));
}
