//! A vendor that fails: it is given a rest, asked again with care, and nothing is done twice that
//! must be done once.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::front::{Answer, answer};
use crate::support::origin::{Caller, Origin};
use crate::support::peers::Pki;
use crate::support::script::{Asked, Reply, Server};
use crate::support::{PATIENCE, Proxy, eventually, exchange, signal, status_of};

/// The proxy with one vendor `v`; `more` within it.
struct Setup {
    proxy: Proxy,
    client: reqwest::Client,
    upstream: String,
    dir: tempfile::TempDir,
}

impl Setup {
    async fn new(upstream: &str, more: &str) -> Self {
        countersign::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let (path, yaml) = (dir.path().to_owned(), yaml(upstream, more));
        let proxy = tokio::task::spawn_blocking(move || Proxy::start(&path, &yaml))
            .await
            .unwrap();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(25))
            .build()
            .unwrap();
        Self {
            proxy,
            client,
            upstream: upstream.to_owned(),
            dir,
        }
    }

    async fn send(&self, method: &str, target: &str) -> Answer {
        let method = method.parse().unwrap();
        let url = format!("http://{}/v{target}", self.proxy.data);
        answer(self.client.request(method, url)).await
    }

    async fn get(&self) -> Answer {
        self.send("GET", "/x").await
    }

    /// The answer's status, or its reason when it is the proxy's own.
    async fn outcome(&self) -> String {
        let answer = self.get().await;
        let reason = answer.json()["reason"].as_str().map(ToOwned::to_owned);
        reason.unwrap_or(answer.status.to_string())
    }

    fn status(&self) -> Value {
        let status: Value = serde_json::from_str(&self.proxy.admin("/status").1).unwrap();
        status["vendors"][0].clone()
    }

    fn metric(&self, series: &str) -> u64 {
        let (_, text) = self.proxy.admin("/metrics");
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("{series} in\n{text}"))
    }

    /// Writes another configuration of the vendor and has it taken into use.
    fn reload(&self, more: &str) {
        let series = "countersign_config_reloads_total{outcome=\"ok\"}";
        let before = self.metric(series);
        let text = yaml(&self.upstream, more);
        std::fs::write(self.dir.path().join("proxy.yaml"), text).unwrap();
        signal(self.proxy.id(), "HUP");
        eventually("reloaded", || (self.metric(series) > before).then_some(()));
    }
}

fn yaml(upstream: &str, more: &str) -> String {
    format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n  v:\n    upstream: {upstream}\n    allow_plaintext: true\n{more}"
    )
}

/// A vendor that answers with this status until it is told another.
async fn vendor(status: u16) -> (Server, Arc<AtomicU16>) {
    let said = Arc::new(AtomicU16::new(status));
    let script = said.clone();
    let server = Server::start(move |_: Asked| {
        let status = script.load(Ordering::Relaxed);
        async move { Reply::whole(&format!("{status} Said"), "", "") }
    })
    .await;
    (server, said)
}

/// `localhost` is 127.0.0.1 and then `::1`; the vendor listens at the second alone.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_reached_is_told_and_the_next_one_tried() {
    // A port that is free on both. Bound and not listening, the first refuses, and nobody else can
    // listen there.
    let (listener, _first) = (0..50)
        .find_map(|_| {
            let second = std::net::TcpListener::bind("[::1]:0").unwrap();
            let first = tokio::net::TcpSocket::new_v4().unwrap();
            let port = second.local_addr().unwrap().port();
            let free = first.bind(([127, 0, 0, 1], port).into()).is_ok();
            free.then_some((second, first))
        })
        .expect("a port that is free on both");
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let port = listener.local_addr().unwrap().port();
    let closing = async |_| Reply::whole("200 OK", "Connection: close\r\n", "");
    let server = Server::at(listener, closing);
    let setup = Setup::new(&format!("http://localhost:{port}"), "").await;
    let told = |event: &str, times: usize| {
        eventually(event, || {
            let said = setup.proxy.said();
            let lines = said.lines().filter(|line| line.contains(event));
            let lines: Vec<_> = lines.map(ToOwned::to_owned).collect();
            (lines.len() >= times).then_some(lines)
        })
    };

    // What the first request finds out spares the others the attempt.
    for _ in 0..3 {
        assert_eq!(setup.outcome().await, "200");
    }
    let lines = told("trying the next", 1);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&format!("127.0.0.1:{port}")), "{lines:?}");

    let address = server.address;
    drop(server);
    eventually("closed", || {
        std::net::TcpStream::connect(address).is_err().then_some(())
    });
    assert_eq!(setup.outcome().await, "upstream_unreachable");
    let lines = [told("trying the next", 2), told("request failed", 1)].concat();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].contains(&format!("[::1]:{port}")), "{lines:?}");
    // All of them, in the order they were tried: each says as much as the other.
    let both = format!("[::1]:{port}: connection refused; 127.0.0.1:{port}: connection refused");
    assert!(lines[2].contains(&both), "{lines:?}");
}

/// `localhost` is 127.0.0.1, whose certificate is not trusted, and then `::1`, where nothing
/// listens.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_certificate_is_told_before_the_refused_connection_that_was_tried_afterwards() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |exchange| async { exchange.answer("served") }).await;
    // With the system's roots, which do not hold the test's authority.
    let setup = Setup::new(&origin.url, "").await;
    let port = origin.url.rsplit(':').next().unwrap();
    let certificate =
        format!("127.0.0.1:{port}: TLS: invalid peer certificate: its issuer is not trusted");
    let refused = format!("[::1]:{port}: connection refused");
    for _ in 0..2 {
        assert_eq!(setup.outcome().await, "upstream_unreachable");
    }
    let said = eventually("both failures", || {
        let said = setup.proxy.stderr();
        (said.matches("request failed").count() == 2).then_some(said)
    });
    let lines = said.lines().filter(|line| line.contains("request failed"));
    for line in lines {
        let (_, cause) = line.split_once("cause=").unwrap();
        assert!(cause.starts_with(&certificate), "{line}");
        assert!(cause.contains(&refused), "{line}");
    }
    let shown = setup.status()["last_error"].to_string();
    assert!(shown.contains(&certificate), "{shown}");
    let page = setup.proxy.admin("/").1;
    assert!(page.contains(&certificate), "{page}");
    let admin = setup.proxy.admin.to_string();
    let told = crate::support::run(setup.dir.path(), &["status", "--admin", &admin]);
    assert!(told.stdout.contains(&certificate), "{told:?}");
    for all in [&said, &shown, &page] {
        assert!(!all.contains("UnknownIssuer"), "{all}");
    }

    std::fs::copy(pki.file("ca.pem"), setup.dir.path().join("ca.pem")).unwrap();
    setup.reload("    ca: ca.pem\n");
    assert_eq!(setup.outcome().await, "200");
    assert_eq!(setup.status()["last_error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_told_with_the_name() {
    let limit = "    timeouts: { connect: 1s }\n";
    let setup = Setup::new("https://api.no-such-vendor.invalid", limit).await;
    assert_eq!(setup.outcome().await, "upstream_unreachable");
    let told = "api.no-such-vendor.invalid does not resolve: ";
    let said = eventually("the failure", || {
        let said = setup.proxy.stderr();
        said.contains("request failed").then_some(said)
    });
    let line = said.lines().find(|line| line.contains("request failed"));
    assert!(line.unwrap().contains(&format!("cause={told}")), "{said}");
    let shown = setup.status()["last_error"].to_string();
    assert!(shown.contains(told), "{shown}");
    assert!(setup.proxy.admin("/").1.contains(told));
    for all in [said, shown] {
        assert!(!all.contains("Query"), "{all}");
        assert!(!all.contains("HTTPStatus"), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_fails_gets_a_rest_a_probe_and_its_callers_back() {
    let (server, said) = vendor(503).await;
    let setup = Setup::new(
        &server.url(""),
        "    breaker: { failures: 3, open_for: 1s }\n",
    )
    .await;
    assert_eq!(setup.status()["breaker"], "closed");
    assert_eq!(setup.metric("countersign_breaker_open{vendor=\"v\"}"), 0);
    let opened = Instant::now();
    for _ in 0..3 {
        assert_eq!(setup.outcome().await, "503");
    }
    // A busy machine may take the whole rest to come here: then it is a longer one's turn.
    let refused = eventually("open", || {
        let answer = exchange(
            setup.proxy.data,
            b"GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        );
        answer.contains("\"circuit_open\"").then_some(answer)
    });
    assert_eq!(status_of(&refused), 503);
    let lower = refused.to_lowercase();
    assert!(lower.contains("\r\nretry-after: "), "{refused}");
    assert!(
        refused.contains("error=destination_unavailable"),
        "{refused}"
    );
    assert!(
        refused.contains("responded with 502, 503 or 504 several times"),
        "{refused}"
    );
    assert_eq!(setup.metric("countersign_breaker_open{vendor=\"v\"}"), 1);
    let status = setup.status();
    assert!(["open", "half_open"].contains(&status["breaker"].as_str().unwrap()));
    assert_eq!(
        status["breaker_reason"],
        "3 failures in a row; the last time, it answered 503"
    );
    eventually("why it opened", || {
        let log = setup.proxy.stderr();
        (log.contains("circuit breaker open") && log.contains("it answered 503")).then_some(())
    });
    let admin = setup.proxy.admin.to_string();
    let told = crate::support::run(setup.dir.path(), &["status", "--admin", &admin]);
    assert_eq!(told.code, Some(1), "{told:?}");
    assert!(told.stdout.contains("3 failures in a row"), "{told:?}");

    said.store(200, Ordering::Relaxed);
    let mut outcome = setup.outcome().await;
    while outcome == "circuit_open" {
        assert!(opened.elapsed() < crate::support::PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
        outcome = setup.outcome().await;
    }
    assert_eq!(outcome, "200");
    assert!(opened.elapsed() >= Duration::from_secs(1));
    assert_eq!(setup.status()["breaker"], "closed");
    assert_eq!(setup.status()["breaker_reason"], Value::Null);
    assert_eq!(setup.metric("countersign_breaker_open{vendor=\"v\"}"), 0);
    eventually("said that it closed", || {
        let log = setup.proxy.stderr();
        log.contains("circuit breaker closed").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_and_no_answer_in_time_count_like_a_503() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let breaker = "    breaker: { failures: 2, open_for: 1h }\n";
    let setup = Setup::new(&format!("http://{nobody}"), breaker).await;
    for wanted in [
        "upstream_unreachable",
        "upstream_unreachable",
        "circuit_open",
    ] {
        assert_eq!(setup.outcome().await, wanted);
    }
    let reason = setup.status()["breaker_reason"].to_string();
    assert!(reason.contains("could not be reached"), "{reason}");

    let silent = Server::start(|_: Asked| async { Reply::Silence }).await;
    let slow = format!("{breaker}    timeouts: {{ first_byte: 200ms }}\n");
    let setup = Setup::new(&silent.url(""), &slow).await;
    for wanted in ["upstream_timeout", "upstream_timeout", "circuit_open"] {
        assert_eq!(setup.outcome().await, wanted);
    }
    let reason = setup.status()["breaker_reason"].to_string();
    assert!(reason.contains("took too long"), "{reason}");
    assert_eq!(silent.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_other_errors_nor_callers_that_leave_open_the_breaker() {
    let (server, said) = vendor(400).await;
    let breaker = "    breaker: { failures: 2, open_for: 1h }\n    timeouts: { first_byte: 5s }\n";
    let setup = Setup::new(&server.url(""), breaker).await;
    for status in [400, 401, 403, 404, 429, 500, 501, 505] {
        said.store(status, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(setup.outcome().await, status.to_string());
        }
    }
    // One failure, and an answer: they are counted in a row.
    for status in [502, 200, 503, 404, 504, 200] {
        said.store(status, Ordering::Relaxed);
        assert_eq!(setup.outcome().await, status.to_string());
    }
    assert_eq!(setup.status()["breaker"], "closed");

    let silent = Server::start(|_: Asked| async { Reply::Silence }).await;
    let setup = Setup::new(&silent.url(""), breaker).await;
    for left in 1..=4 {
        let asking = tokio::spawn({
            let (client, address) = (setup.client.clone(), setup.proxy.data);
            async move {
                client
                    .get(format!("http://{address}/v/x"))
                    .send()
                    .await
                    .is_ok()
            }
        });
        eventually("asked", || (silent.asked().len() == left).then_some(()));
        asking.abort();
        eventually("left", || (setup.status()["in_flight"] == 0).then_some(()));
    }
    assert_eq!(setup.status()["breaker"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_breaker_of_a_vendor_it_leaves_alone_and_closes_that_of_one_it_changes()
{
    let (server, _) = vendor(503).await;
    let breaker = "    breaker: { failures: 1, open_for: 1h }\n";
    let setup = Setup::new(&server.url(""), breaker).await;
    assert_eq!(setup.outcome().await, "503");
    assert_eq!(setup.outcome().await, "circuit_open");
    let another = format!("{breaker}  w:\n    upstream: https://w.example\n");
    setup.reload(&another);
    assert_eq!(setup.outcome().await, "circuit_open");
    // A vendor that is gone leaves no gauge behind.
    let of_w = "countersign_breaker_open{vendor=\"w\"}";
    assert_eq!(setup.metric(of_w), 0);
    setup.reload(breaker);
    assert!(!setup.proxy.admin("/metrics").1.contains(of_w));
    setup.reload(&format!("{breaker}    timeouts: {{ connect: 6s }}\n"));
    assert_eq!(setup.outcome().await, "503");
    setup.reload("    breaker: { failures: 0 }\n");
    for _ in 0..12 {
        assert_eq!(setup.outcome().await, "503");
    }
    assert_eq!(setup.status()["breaker"], "off");
    assert_eq!(setup.metric("countersign_breaker_open{vendor=\"v\"}"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_wish_to_be_left_alone_is_granted_where_asked() {
    for (status, reason) in [("429 Slow", "rate_limited"), ("503 Busy", "circuit_open")] {
        let first = Arc::new(AtomicBool::new(true));
        let server = Server::start({
            let first = first.clone();
            move |_: Asked| {
                let reply = if first.swap(false, Ordering::Relaxed) {
                    Reply::whole(status, "Retry-After: 3\r\n", "")
                } else {
                    Reply::json("{}")
                };
                async { reply }
            }
        })
        .await;
        let setup = Setup::new(
            &server.url(""),
            "    limits: { honour_retry_after: true }\n",
        )
        .await;
        let asked = Instant::now();
        assert_eq!(setup.outcome().await, status[..3]);
        let refused = setup.get().await;
        assert_eq!(refused.json()["reason"], reason, "{refused:?}");
        assert_eq!(refused.status.to_string(), status[..3]);
        let left: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=3).contains(&left), "{left}");
        let shown = setup.status();
        assert!(shown["held_back_until"].is_string(), "{shown}");
        assert_eq!(
            shown["breaker"] == "open",
            status.starts_with("503"),
            "{shown}"
        );
        let mut outcome = setup.outcome().await;
        while outcome == reason {
            assert!(asked.elapsed() < crate::support::PATIENCE);
            tokio::time::sleep(Duration::from_millis(100)).await;
            outcome = setup.outcome().await;
        }
        assert_eq!(outcome, "200");
        assert!(asked.elapsed() >= Duration::from_secs(3));
        assert_eq!(server.asked().len(), 2);
    }
    // Not asked for: every request goes to the vendor.
    let server =
        Server::start(|_: Asked| async { Reply::whole("429 Slow", "Retry-After: 60\r\n", "") })
            .await;
    let setup = Setup::new(&server.url(""), "").await;
    for _ in 0..3 {
        assert_eq!(setup.outcome().await, "429");
    }
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_dies_before_its_answer_costs_an_idempotent_request_nothing() {
    for (method, body, wanted, asked) in [
        ("GET", None, 200, 2),
        ("PUT", Some("whole".to_owned()), 200, 2),
        ("DELETE", None, 200, 2),
        // What became of it is unknown.
        ("POST", Some("once".to_owned()), 502, 1),
        ("PATCH", Some("once".to_owned()), 502, 1),
        // More than is kept to be sent again.
        ("PUT", Some("x".repeat(70_000)), 502, 1),
    ] {
        let first = AtomicBool::new(true);
        let server = Server::start(move |_: Asked| {
            let first = first.swap(false, Ordering::Relaxed);
            async move {
                if first {
                    Reply::Close
                } else {
                    Reply::json("{}")
                }
            }
        })
        .await;
        let setup = Setup::new(&server.url(""), "").await;
        let url = format!("http://{}/v/x", setup.proxy.data);
        let mut request = setup.client.request(method.parse().unwrap(), url);
        if let Some(body) = body.clone() {
            request = request.body(body);
        }
        let answer = answer(request).await;
        assert_eq!(answer.status, wanted, "{method} {answer:?}");
        assert_eq!(server.asked().len(), asked, "{method}");
        for sent in server.asked() {
            assert_eq!(sent.body, body.clone().unwrap_or_default().into_bytes());
        }
        let sent = setup.metric("countersign_upstream_retries_total{action=\"sent\",vendor=\"v\"}");
        assert_eq!(sent, asked as u64 - 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_on_a_pooled_connection_that_dies_is_not_sent_twice() {
    // Answers the first request of a connection and dies on the second.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::new(AtomicUsize::new(0));
    let counted = heads.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let heads = counted.clone();
            tokio::spawn(async move {
                for nth in 0..2 {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    heads.fetch_add(1, Ordering::Relaxed);
                    if nth == 0 {
                        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        stream.write_all(whole).await.unwrap();
                    }
                }
            });
        }
    });
    let setup = Setup::new(&format!("http://{address}"), "").await;
    for (method, wanted, more) in [("GET", 200, 2), ("POST", 502, 1)] {
        // A new connection, left in the pool.
        assert_eq!(setup.get().await.status, 200);
        let before = heads.load(Ordering::Relaxed);
        let answer = setup.send(method, "/x").await;
        assert_eq!(answer.status, wanted, "{method} {answer:?}");
        assert_eq!(heads.load(Ordering::Relaxed), before + more, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_a_fifth_of_the_requests_and_a_few() {
    let server = Server::start(|_: Asked| async { Reply::Close }).await;
    let setup = Setup::new(&server.url(""), "    breaker: { failures: 0 }\n").await;
    for _ in 0..50 {
        assert_eq!(setup.outcome().await, "upstream_unreachable");
    }
    // Ten to begin with, and one for each five requests.
    assert_eq!(server.asked().len(), 50 + 10 + 10);
    let series = |action: &str| {
        format!("countersign_upstream_retries_total{{action=\"{action}\",vendor=\"v\"}}")
    };
    assert_eq!(setup.metric(&series("sent")), 20);
    assert!(setup.metric(&series("over_budget")) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_end_with_the_total_time() {
    // Slow to die: the second attempt would end after the whole.
    let server = Server::start(|_: Asked| async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        Reply::Close
    })
    .await;
    let setup = Setup::new(&server.url(""), "    timeouts: { total: 1s }\n").await;
    let begun = Instant::now();
    assert_eq!(setup.outcome().await, "upstream_timeout");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_rate_is_kept_and_outlives_a_change_of_the_vendor() {
    let (server, _) = vendor(200).await;
    let rate = "    limits: { rate: { per_second: 1, burst: 3 } }\n";
    let setup = Setup::new(&server.url(""), rate).await;
    let mut outcomes = Vec::new();
    for _ in 0..20 {
        outcomes.push(setup.outcome().await);
    }
    assert_eq!(outcomes[..3], ["200", "200", "200"]);
    assert!(
        outcomes.contains(&"rate_limited".to_owned()),
        "{outcomes:?}"
    );
    let refused = setup.get().await;
    if refused.status == 429 {
        assert_eq!(refused.header("retry-after"), "1");
    }
    setup.reload(&format!("{rate}    cookies: pass\n"));
    let mut passed = 0;
    let begun = Instant::now();
    for _ in 0..10 {
        passed += usize::from(setup.outcome().await == "200");
    }
    // A full bucket would have let three more through.
    let refilled = usize::try_from(begun.elapsed().as_secs()).unwrap() + 3;
    assert!(passed < refilled, "{passed} of {refilled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_says_that_it_is_at_work_gets_the_time_for_an_answer_anew() {
    let pause = Duration::from_millis(1200);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let working = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        for said in [
            "HTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
        ] {
            tokio::time::sleep(pause).await;
            stream.write_all(said.as_bytes()).await.unwrap();
        }
    });
    let limit = "    timeouts: { first_byte: 2s, idle: 2s }\n";
    let setup = Setup::new(&format!("http://{address}"), limit).await;
    let url = format!("http://{}/v/x", setup.proxy.data);
    let asked = Instant::now();
    let answer = setup.client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text().await.unwrap(), "done");
    // Longer than an answer may take that says nothing.
    assert!(asked.elapsed() >= 2 * pause);
    working.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stops_coming_is_broken_off_after_the_idle_time() {
    let begun = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive!";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stalling = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            stream.write_all(begun).await.unwrap();
            // Until the proxy has had enough.
            while stream.read(&mut head).await.is_ok_and(|read| read > 0) {}
        }
    });
    for first_byte in ["700ms", "1h", "0s"] {
        let idle = format!("    timeouts: {{ first_byte: {first_byte}, idle: 700ms }}\n");
        let setup = Setup::new(&format!("http://{address}"), &idle).await;
        let url = format!("http://{}/v/x", setup.proxy.data);
        for request in [setup.client.get(&url), setup.client.post(&url).body("x")] {
            let asked = Instant::now();
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let rest = tokio::time::timeout(PATIENCE, answer.text()).await;
            assert!(rest.expect("it is broken off").is_err(), "{first_byte}");
            assert!(asked.elapsed() >= Duration::from_millis(700));
        }
        let said = setup.proxy.said();
        assert_eq!(said.matches("upstream_timeout").count(), 2, "{said}");
        assert_eq!(setup.status()["breaker"], "closed");
    }
    stalling.abort();
}

/// A vendor that begins each answer with `begin` and then sends `more` again and again.
async fn endless(begin: &'static str, more: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(begin.as_bytes()).await;
                while stream.write_all(more.as_bytes()).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
    });
    url
}

/// The status that a caller over HTTP/2 gets in time; `None`: nothing.
async fn over_http2(url: &str, timeouts: &str) -> Option<u16> {
    let dir = tempfile::tempdir().unwrap();
    let yaml = yaml(url, &format!("    timeouts: {{ {timeouts} }}\n"));
    let yaml = yaml.replacen("bind: 127.0.0.1:0 }", "bind: 127.0.0.1:0, h2c: true }", 1);
    let path = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&path, &yaml))
        .await
        .unwrap();
    let mut caller = Caller::connect(proxy.data).await;
    let asking = caller.ask(http::Request::get("http://localhost/v/x"), b"");
    let got = tokio::time::timeout(Duration::from_secs(8), asking).await;
    got.ok().map(|got| got.status)
}

const DRIBBLED: (&str, &str) = ("HTTP/1.1 200 OK\r\nX-Long: ", "x");
const HINTS: (&str, &str) = ("", "HTTP/1.1 103 Early Hints\r\n\r\n");

#[tokio::test(flavor = "multi_thread")]
async fn a_dribbled_head_is_a_504_for_callers_over_http_2_too() {
    let url = endless(DRIBBLED.0, DRIBBLED.1).await;
    let got = tokio::join!(
        over_http2(&url, "first_byte: 1s"),
        over_http2(&url, "total: 1s")
    );
    assert_eq!(got, (Some(504), Some(504)));
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_early_hints_end_with_the_total_time_for_callers_over_http_2_too() {
    let url = endless(HINTS.0, HINTS.1).await;
    assert_eq!(over_http2(&url, "total: 1s").await, Some(504));
}

/// It says for how long it keeps a connection, and drops what it gets after that without a word.
#[tokio::test(flavor = "multi_thread")]
async fn no_post_meets_a_connection_that_its_vendor_has_said_to_close() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut answered: Option<Instant> = None;
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    // Closing as the request arrives, as it may on any network.
                    if answered.is_some_and(|at| at.elapsed() > Duration::from_millis(1500)) {
                        return;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=2, max=100\r\nContent-Length: 0\r\n\r\n";
                    stream.write_all(answer).await.unwrap();
                    answered = Some(Instant::now());
                }
            });
        }
    });
    let setup = Setup::new(&url, "").await;
    let post = async || setup.send("POST", "/x").await.status;
    // What is not old yet is used again, once it is known for how long.
    assert_eq!((post().await, post().await, post().await), (200, 200, 200));
    assert!(connections.load(Ordering::SeqCst) <= 2);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1700)).await;
        assert_eq!(post().await, 200);
    }
}
