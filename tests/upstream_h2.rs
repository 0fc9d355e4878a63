//! Vendors that choose HTTP/2: what holds of requests over HTTP/1.1 holds of theirs.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request};
use tokio::sync::{Barrier, Mutex, Semaphore};

use crate::support::origin::{BOTH, Caller, Conduct, Exchange, Origin, Protocols};
use crate::support::peers::Pki;
use crate::support::script::{Reply, Server};
use crate::support::{PATIENCE, Proxy, eventually, status_of};

const TOKEN: &str = "the+token/of=ours-0123456789";

/// The proxy in front of `url`, reached as vendor `v`; its listener speaks HTTP/2, too.
async fn front(pki: &Pki, url: &str, more: &str) -> Proxy {
    front_with(pki, url, more, &[]).await
}

/// The same, with more in its environment.
async fn front_with(
    pki: &Pki,
    url: &str,
    more: &str,
    environment: &'static [(&str, &str)],
) -> Proxy {
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0, h2c: true }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n  v:\n    upstream: {url}\n    ca: ca.pem\n    allow_plaintext: true\n    {more}\n"
    );
    let directory = pki.dir().to_owned();
    tokio::task::spawn_blocking(move || Proxy::start_with(&directory, &yaml, environment))
        .await
        .unwrap()
}

async fn raw(proxy: &Proxy, request: impl Into<String>) -> String {
    let (to, request) = (proxy.data, request.into());
    tokio::task::spawn_blocking(move || crate::support::exchange(to, request.as_bytes()))
        .await
        .unwrap()
}

async fn get(proxy: &Proxy, target: &str) -> String {
    let head = "Host: localhost\r\nConnection: close";
    raw(proxy, format!("GET {target} HTTP/1.1\r\n{head}\r\n\r\n")).await
}

async fn post(proxy: &Proxy, target: &str, body: &str) -> String {
    let head = format!(
        "Host: localhost\r\nConnection: close\r\nContent-Length: {}",
        body.len()
    );
    raw(
        proxy,
        format!("POST {target} HTTP/1.1\r\n{head}\r\n\r\n{body}"),
    )
    .await
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_many_requests_at_a_time() {
    let pki = Pki::new();
    let both = Arc::new(Barrier::new(2));
    let arrived = Arc::new(Semaphore::new(0));
    let arriving = arrived.clone();
    let origin = Origin::start(&pki, move |exchange| {
        let (both, arriving) = (both.clone(), arriving.clone());
        async move {
            if exchange.request.uri().path() == "/together" {
                arriving.add_permits(1);
                both.wait().await;
            }
            let nth = exchange.connection.to_string();
            exchange.answer(nth);
        }
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;

    for _ in 0..3 {
        assert!(get(&proxy, "/v/one").await.ends_with('0'));
    }
    let mut caller = Caller::connect(proxy.data).await;
    let request = Request::get("http://localhost/v/together");
    let second = async {
        // pingora takes a connection from its pool while it opens a stream: who asks in that very
        // moment makes a connection of his own.
        let _first = arrived.acquire().await.unwrap();
        get(&proxy, "/v/together").await
    };
    let (first, second) = tokio::join!(caller.ask(request, b""), second);
    assert_eq!((first.body.as_str(), second.ends_with('0')), ("0", true));
    assert_eq!(origin.connections(), 1);
    let metrics = proxy.admin("/metrics").1;
    assert!(
        metrics.contains("countersign_upstream_connections_total{reused=\"true\",vendor=\"v\"} 4")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_callers_leave_go_back_to_their_connection() {
    let pki = Pki::new();
    let held = Arc::new(AtomicUsize::new(0));
    let counter = held.clone();
    let origin = Origin::start(&pki, move |mut exchange| {
        let counter = counter.clone();
        async move {
            if exchange.request.uri().path() == "/held" {
                counter.fetch_add(1, Ordering::SeqCst);
                // Until it is cancelled.
                let reset = std::future::poll_fn(|cx| exchange.respond.poll_reset(cx));
                assert_eq!(reset.await.unwrap(), Reason::CANCEL);
                counter.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            let nth = exchange.connection.to_string();
            exchange.answer(nth);
        }
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    assert!(get(&proxy, "/v/one").await.ends_with('0'));
    let mut caller = Caller::connect(proxy.data).await;
    // More than a connection carries at a time.
    for _ in 0..120 {
        let request = Request::get("http://localhost/v/held").body(()).unwrap();
        let sent = caller.sender().send_request(request, true).unwrap();
        eventually("held", || (held.load(Ordering::SeqCst) == 1).then_some(()));
        drop(sent);
        eventually("cancelled", || {
            (held.load(Ordering::SeqCst) == 0).then_some(())
        });
    }
    assert!(get(&proxy, "/v/one").await.ends_with('0'));
    assert_eq!(origin.connections(), 1);
}

/// Answers with the request as it came.
async fn repeated(exchange: Exchange) {
    let mut said = format!("{} {}", exchange.request.method(), exchange.request.uri());
    for (name, value) in exchange.request.headers() {
        let _ = write!(said, "\n{name}: {}", value.to_str().unwrap());
    }
    exchange.answer(said);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_vendor_as_http_2_wants_it() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, repeated).await;
    let more = "redact_echo: false\n    auth: { headers: { customerUri: example, Login: { value: \"secret\" } } }";
    let proxy = front(&pki, &origin.url, more).await;

    for path in [
        "/x?",
        "/x",
        "/a%41%2e.b;c=d/?q=%zz&a=1&&",
        "/~x!$&'()*+,;=:@/{y}",
    ] {
        let said = get(&proxy, &format!("/v{path}")).await;
        let first = body(&said).lines().next().unwrap_or_default().to_owned();
        if said.starts_with("HTTP/1.1 200") {
            assert_eq!(first, format!("GET {}{path}", origin.url));
        } else {
            // Refused, and so never repaired.
            assert_eq!(status_of(&said), 400, "{path}: {said}");
        }
    }
    let said = raw(&proxy, "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nTE: trailers\r\nKeep-Alive: 1\r\nProxy-Connection: 1\r\nCUSTOMERURI: the caller's\r\nExpect: 100-continue\r\nX-Two: a\r\nx-two: b\r\n\r\n").await;
    let mut fields: Vec<_> = body(&said).lines().skip(1).collect();
    fields.sort_unstable();
    let wanted = [
        "customeruri: example",
        "login: secret",
        "x-two: a",
        "x-two: b",
    ];
    assert_eq!(fields, wanted, "{said}");

    let mut caller = Caller::connect(proxy.data).await;
    let request = Request::get("http://localhost/v/x?")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic eDp5")
        .header("customeruri", "the caller's");
    let got = caller.ask(request, b"").await;
    let mut fields: Vec<_> = got.body.lines().skip(1).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        ["customeruri: example", "login: secret", "te: trailers"]
    );
    assert!(got.body.starts_with(&format!("GET {}/x?\n", origin.url)));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_in_pieces_stays_so_over_http_2_and_is_joined_for_http_1() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, repeated).await;
    let echo = countersign_demo::echo().await.unwrap();
    let request = || {
        Request::get("http://localhost/v/x")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
    };

    let proxy = front(&pki, &origin.url, "cookies: pass").await;
    let got = Caller::connect(proxy.data).await.ask(request(), b"").await;
    assert!(got.body.ends_with("cookie: a=1\ncookie: b=2"), "{got:?}");

    let proxy = front(&pki, &echo.url(), "cookies: pass").await;
    let got = Caller::connect(proxy.data).await.ask(request(), b"").await;
    assert_eq!(got.status, 200);
    assert_eq!(echo.requests()[0].exact_field("cookie"), Some("a=1; b=2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_without_a_body_says_so_over_http_1() {
    let pki = Pki::new();
    let echo = countersign_demo::echo().await.unwrap();
    let proxy = front(&pki, &echo.url(), "").await;
    let mut caller = Caller::connect(proxy.data).await;
    for (method, wanted) in [
        ("POST", Some("0")),
        ("PUT", Some("0")),
        ("PATCH", Some("0")),
        ("GET", None),
        ("DELETE", None),
    ] {
        let request = Request::builder()
            .method(method)
            .uri("http://localhost/v/by-2");
        assert_eq!(caller.ask(request, b"").await.status, 200, "{method}");
        for head in [
            "HTTP/1.1\r\nHost: localhost\r\nConnection: close",
            "HTTP/1.1\r\nHost: localhost\r\nConnection: close, content-length\r\nContent-Length: 0",
            "HTTP/1.0\r\nHost: localhost",
        ] {
            let answer = raw(&proxy, format!("{method} /v/by-1 {head}\r\n\r\n")).await;
            assert_eq!(status_of(&answer), 200, "{method}: {answer}");
        }
        let seen = echo.requests();
        let (_, last) = seen.split_at(seen.len() - 4);
        for one in last {
            let framed = (one.field("content-length"), one.field("transfer-encoding"));
            assert_eq!(framed, (wanted, None), "{method} {}", one.target);
        }
    }

    // Its end may come in a frame of its own, which says no more of a body; a body may come, too.
    for (pieces, wanted) in [
        (&[&b""[..]][..], [Some("0"), None]),
        (&[b"abc"], [None, Some("chunked")]),
        (&[b"a", b"", b"bc"], [None, Some("chunked")]),
    ] {
        let request = Request::post("http://localhost/v/later").body(()).unwrap();
        let (response, mut body) = caller.sender().send_request(request, false).unwrap();
        for (nth, piece) in pieces.iter().enumerate() {
            if nth > 0 {
                // The proxy has waited for the first alone.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let end = nth + 1 == pieces.len();
            body.send_data(Bytes::from_static(piece), end).unwrap();
        }
        assert_eq!(response.await.unwrap().status(), 200);
        let seen = echo.requests().pop().unwrap();
        assert_eq!(seen.body, pieces.concat());
        let framed = [
            seen.field("content-length"),
            seen.field("transfer-encoding"),
        ];
        assert_eq!(framed, wanted, "{pieces:?}");
    }
    // And as late as it likes.
    let request = Request::post("http://localhost/v/late").body(()).unwrap();
    let (response, mut body) = caller.sender().send_request(request, false).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    body.send_data(Bytes::from_static(b"late"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    assert_eq!(echo.requests().pop().unwrap().body, b"late");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_is_replayed_with_its_body() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        let body = exchange.body().await;
        if exchange.field("authorization") == "Bearer token-2" {
            exchange.answer(body);
        } else {
            exchange.answer_with(401, &[], "refused");
        }
    })
    .await;
    let granted = AtomicUsize::new(0);
    let tokens = Server::start(move |_| {
        let nth = granted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            Reply::json(format!(
                r#"{{"access_token":"token-{nth}","token_type":"Bearer","expires_in":3600}}"#
            ))
        }
    })
    .await;
    let auth = format!(
        "auth: {{ client_credentials: {{ token_url: \"{}\", client_id: c, client_secret: {{ value: s }} }} }}",
        tokens.url("/token")
    );
    let proxy = front(&pki, &origin.url, &auth).await;

    let large = "x".repeat(60_000);
    let answer = post(&proxy, "/v/x", &large).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert_eq!(body(&answer).matches('x').count(), large.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_it_has_not_processed_is_sent_again_on_another_connection() {
    for (conduct, reason) in [
        (goes_away_gracefully as fn(usize) -> Conduct, "NO_ERROR"),
        (is_not_calm, "ENHANCE_YOUR_CALM"),
    ] {
        let pki = Pki::new();
        let origin = Origin::conducted(&pki, conduct, |mut exchange| async move {
            let body = exchange.body().await;
            exchange.answer(body);
        })
        .await;
        let proxy = front(&pki, &origin.url, "").await;
        let answer = post(&proxy, "/v/x", "once and for all").await;
        assert!(answer.ends_with("once and for all"), "{reason}: {answer}");
        assert_eq!(origin.connections(), 2, "{reason}");
    }

    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        if exchange.connection == 0 {
            exchange.respond.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        let body = exchange.body().await;
        exchange.answer(body);
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    let answer = post(&proxy, "/v/x", "once and for all").await;
    assert!(answer.ends_with("once and for all"), "{answer}");
    assert_eq!(origin.connections(), 2);
}

/// The first connection refuses the request by a GOAWAY; on the second, the response comes while most
/// of the body still waits for the stream's window.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_response_to_a_second_attempt_is_not_lost() {
    let conduct = |connection| match connection {
        0 => Conduct::GoAway(0),
        _ => Conduct::Window(1000),
    };
    let pki = Pki::new();
    let origin = Origin::conducted(&pki, conduct, |exchange| async move {
        exchange.answer_with(413, &[], "early");
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    for nth in 0..3 {
        let answer = post(&proxy, "/v/x", &"x".repeat(50_000)).await;
        assert_eq!(status_of(&answer), 413, "{nth}: {answer}");
        assert!(answer.ends_with("early"), "{nth}: {answer}");
    }
}

/// A response is whole by its length, or by the caller's method, before the stream ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_response_does_not_wait_for_the_end_of_its_stream() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        let mut stream = exchange.begin(200, &[("content-length", "5")]);
        stream
            .send_data(Bytes::from_static(b"whole"), false)
            .unwrap();
        tokio::time::sleep(PATIENCE).await;
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    let started = std::time::Instant::now();
    let get = "GET /v/x HTTP/1.1\r\nHost: localhost\r\n";
    let answer = raw(&proxy, format!("{get}\r\n{get}Connection: close\r\n\r\n")).await;
    assert_eq!(answer.matches("\r\n\r\nwhole").count(), 2, "{answer}");
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
}

/// RFC 9113 §8.1: a server that has answered may stop the rest of an upload so.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_reset_without_an_error_behind_its_response_is_no_failure() {
    let pki = Pki::new();
    let origin = Origin::conducted(
        &pki,
        |_| Conduct::Window(1000),
        |mut exchange| async move {
            let mut stream = exchange.begin(200, &[]);
            stream
                .send_data(Bytes::from_static(b"enough"), true)
                .unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            stream.send_reset(Reason::NO_ERROR);
        },
    )
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    let answer = post(&proxy, "/v/x", &"x".repeat(20_000)).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(
        answer.contains("enough") && answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
}

fn goes_away_gracefully(connection: usize) -> Conduct {
    match connection {
        0 => Conduct::GoAway(0),
        _ => Conduct::Serve,
    }
}

fn is_not_calm(connection: usize) -> Conduct {
    match connection {
        0 => Conduct::GoAway(11),
        _ => Conduct::Serve,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_whose_outcome_is_unknown_is_never_sent_again() {
    let pki = Pki::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let origin = Origin::start(&pki, move |mut exchange| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            exchange.body().await;
            exchange.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    let answer = post(&proxy, "/v/x", "once and for all").await;
    assert_eq!(status_of(&answer), 502, "{answer}");
    assert!(answer.contains("upstream_unreachable"));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_always_is_not_asked_for_ever() {
    let pki = Pki::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let origin = Origin::start(&pki, move |mut exchange| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { exchange.respond.send_reset(Reason::REFUSED_STREAM) }
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    assert_eq!(status_of(&get(&proxy, "/v/x").await), 502);
    assert!((2..=3).contains(&asked.load(Ordering::SeqCst)), "{asked:?}");
}

const HTTP_2_ALONE: Protocols = &[b"h2"];

/// Sends SIGHUP, and waits until the configuration was read again.
fn reload(proxy: &Proxy) {
    let count = || {
        let metrics = proxy.admin("/metrics").1;
        let series = "countersign_config_reloads_total{outcome=\"ok\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(series))?;
        count.parse::<u64>().ok()
    };
    let before = count().unwrap_or(0);
    crate::support::signal(proxy.id(), "HUP");
    eventually("reloaded", || count().filter(|count| *count > before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_http_1_gets_it_until_a_reload() {
    let pki = Pki::new();
    let (asked, demanding) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(true)),
    );
    let (counter, demands) = (asked.clone(), demanding.clone());
    let origin = Origin::start(&pki, move |mut exchange| {
        counter.fetch_add(1, Ordering::SeqCst);
        let demanding = demands.load(Ordering::SeqCst);
        async move {
            if demanding {
                exchange.respond.send_reset(Reason::HTTP_1_1_REQUIRED);
            } else {
                exchange.answer("over HTTP/2");
            }
        }
    })
    .await;
    let more = "auth: { headers: { customerUri: example } }";
    let proxy = front(&pki, &origin.url, more).await;
    for _ in 0..2 {
        let answer = post(&proxy, "/v/x", "").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 Quite Fine\r\n"),
            "{answer}"
        );
        assert!(answer.contains("\r\ncustomerUri: example\r\n"), "{answer}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let warned = || proxy.stderr().matches("HTTP_1_1_REQUIRED").count();
    eventually("a warning", || (warned() == 1).then_some(()));

    // Still so: it is asked once more, and believed once more.
    reload(&proxy);
    for _ in 0..2 {
        assert!(post(&proxy, "/v/x", "").await.contains("over HTTP/1.1"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    eventually("another warning", || (warned() == 2).then_some(()));

    demanding.store(false, Ordering::SeqCst);
    assert!(post(&proxy, "/v/x", "").await.contains("over HTTP/1.1"));
    reload(&proxy);
    for _ in 0..2 {
        let answer = post(&proxy, "/v/x", "").await;
        assert!(answer.ends_with("over HTTP/2"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_goaway_that_wants_http_1_is_obeyed_as_well() {
    let pki = Pki::new();
    let origin = Origin::conducted(&pki, |_| Conduct::GoAway(13), repeated).await;
    let proxy = front(&pki, &origin.url, "").await;
    for _ in 0..2 {
        let answer = post(&proxy, "/v/x", "once and for all").await;
        assert!(answer.contains("over HTTP/1.1"), "{answer}");
    }
    assert_eq!(origin.connections(), 3);
    let warnings = || proxy.stderr().matches("HTTP_1_1_REQUIRED").count();
    eventually("a warning", || (warnings() == 1).then_some(()));
}

/// Whether it speaks HTTP/1.1 as well or not: that was never asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_response_costs_its_connection_and_the_next_is_http_2_again() {
    let kinds: [fn(usize) -> Protocols; 2] = [|_| BOTH, |_| HTTP_2_ALONE];
    for protocols in kinds {
        let pki = Pki::new();
        let breaks = |connection| match connection {
            0 | 2 => Conduct::Break,
            _ => Conduct::Serve,
        };
        let origin = Origin::speaking(&pki, protocols, breaks, |exchange| async move {
            let nth = exchange.connection.to_string();
            exchange.answer(nth);
        })
        .await;
        let proxy = front(&pki, &origin.url, "").await;
        // What became of it is unknown.
        let answer = post(&proxy, "/v/x", "once and for all").await;
        assert_eq!(status_of(&answer), 502, "{answer}");
        for _ in 0..3 {
            let answer = post(&proxy, "/v/x", "again").await;
            assert_eq!((status_of(&answer), body(&answer)), (200, "1"), "{answer}");
        }
        let warnings = || proxy.stderr().matches("has broken HTTP/2").count();
        eventually("a warning", || (warnings() == 1).then_some(()));

        // And what may be sent twice costs its caller nothing.
        let proxy = front(&pki, &origin.url, "").await;
        for _ in 0..3 {
            let answer = get(&proxy, "/v/x").await;
            assert_eq!((status_of(&answer), body(&answer)), (200, "3"), "{answer}");
        }
        assert_eq!(origin.connections(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_gives_up_http_2_after_breaking_it_is_served() {
    let pki = Pki::new();
    let protocols: fn(usize) -> Protocols = |attempt| match attempt {
        0 => HTTP_2_ALONE,
        _ => &[b"http/1.1"],
    };
    let origin = Origin::speaking(&pki, protocols, |_| Conduct::Break, repeated).await;
    let proxy = front(&pki, &origin.url, "").await;
    assert_eq!(status_of(&post(&proxy, "/v/x", "").await), 502);
    for _ in 0..2 {
        let answer = post(&proxy, "/v/x", "").await;
        assert!(answer.contains("over HTTP/1.1"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_a_timeout() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        let mut stream = if exchange.request.uri().path() == "/begun" {
            Some(exchange.begin(200, &[]))
        } else {
            None
        };
        if let Some(stream) = &mut stream {
            stream
                .send_data(Bytes::from_static(b"some"), false)
                .unwrap();
        }
        tokio::time::sleep(Duration::from_mins(1)).await;
    })
    .await;
    for timeouts in [
        "first_byte: 700ms",
        "first_byte: 700ms, idle: 700ms",
        "total: 700ms",
    ] {
        let more = format!("timeouts: {{ {timeouts} }}");
        let proxy = front(&pki, &origin.url, &more).await;
        let answers = tokio::join!(get(&proxy, "/v/x"), post(&proxy, "/v/x", "body"));
        for answer in [answers.0, answers.1] {
            assert_eq!(status_of(&answer), 504, "{timeouts}: {answer}");
            assert!(answer.contains("upstream_timeout"), "{answer}");
        }
        if timeouts != "first_byte: 700ms" {
            let mut caller = Caller::connect(proxy.data).await;
            let request = || Request::get("http://localhost/v/x");
            assert_eq!(caller.ask(request(), b"").await.status, 504, "{timeouts}");
            // What has begun breaks off: no chunk of no bytes.
            let answer = get(&proxy, "/v/begun").await;
            assert!(answer.ends_with("some\r\n"), "{timeouts}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credential_is_masked_in_fields_bodies_and_trailers() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        let mut stream = exchange.begin(200, &[("x-echo", TOKEN)]);
        stream
            .send_data(Bytes::from(format!("<{TOKEN}>")), false)
            .unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-trailing", TOKEN.parse().unwrap());
        trailers.insert("x-checksum", "kept".parse().unwrap());
        trailers.insert("set-cookie", "session=theirs".parse().unwrap());
        trailers.insert("proxy-status", "countersign; error=x".parse().unwrap());
        trailers.insert("proxy-authenticate", "Basic".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    })
    .await;
    let auth = format!("auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}");
    let proxy = front(&pki, &origin.url, &auth).await;
    let stars = "*".repeat(TOKEN.len());

    let mut caller = Caller::connect(proxy.data).await;
    let got = caller.ask(Request::get("http://localhost/v/x"), b"").await;
    let trailers = got.trailers.unwrap();
    assert_eq!(got.fields["x-echo"], stars);
    assert_eq!(got.body, format!("<{stars}>"));
    assert_eq!(trailers["x-trailing"], stars);
    assert_eq!(trailers["x-checksum"], "kept");
    assert_eq!(trailers.len(), 2, "{trailers:?}");

    // HTTP/1.1 callers get none.
    let answer = get(&proxy, "/v/x").await;
    assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
    assert!(!answer.contains("x-checksum") && !answer.contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_waits_for_100_gets_it_before_the_vendor_is_answered_over_http_2() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        let body = exchange.body().await;
        assert_eq!(exchange.field("expect"), "");
        exchange.answer(body);
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};

        let mut stream = std::net::TcpStream::connect(proxy.data).unwrap();
        stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        let head = "POST /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut said = [0; 25];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"body").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        rest
    })
    .await
    .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("body"),
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_outlives_the_certificate_it_was_made_with() {
    let pki = Pki::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let origin = Origin::start(&pki, move |exchange| {
        let sink = sink.clone();
        async move {
            sink.lock().await.push(exchange.connection);
            exchange.answer("");
        }
    })
    .await;
    let more = "client_cert: { cert: client.pem, key: client.key }";
    let proxy = front(&pki, &origin.url, more).await;
    for _ in 0..2 {
        assert_eq!(status_of(&get(&proxy, "/v/x").await), 200);
    }
    for (from, to) in [
        ("self-signed.pem", "client.pem"),
        ("self-signed.key", "client.key"),
    ] {
        let new = std::fs::read(pki.file(from)).unwrap();
        std::fs::write(pki.file(to), new).unwrap();
    }
    crate::support::signal(proxy.id(), "HUP");
    eventually("reloaded", || {
        let metrics = proxy.admin("/metrics").1;
        let series = "countersign_config_reloads_total{outcome=\"ok\"} ";
        let count = metrics.lines().find_map(|line| line.strip_prefix(series))?;
        (count != "0").then_some(())
    });
    assert_eq!(status_of(&get(&proxy, "/v/x").await), 200);
    assert_eq!(*seen.lock().await, [0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_vanished_is_found_out_by_asking_it() {
    let pki = Pki::new();
    let origin = Origin::conducted(
        &pki,
        |connection| match connection {
            0 => Conduct::VanishAfterOne,
            _ => Conduct::Serve,
        },
        |exchange| async move {
            let nth = exchange.connection.to_string();
            exchange.answer(nth);
        },
    )
    .await;
    // Nothing else would end the wait.
    let more = "timeouts: { first_byte: 0s, idle: 0s }";
    let proxy = front(&pki, &origin.url, more).await;
    assert!(get(&proxy, "/v/x").await.ends_with('0'));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = get(&proxy, "/v/x").await;
    assert!(answer.ends_with('1'), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_a_connection_stays_on_it_from_http_2_to_http_2() {
    let pki = Pki::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(&pki, move |mut exchange| {
        let tell = tell.clone();
        async move {
            exchange.body().await;
            let trailers = exchange.request.body_mut().trailers().await;
            tell.send((exchange.request.headers().clone(), trailers.ok().flatten()))
                .unwrap();
            let fields = [
                ("proxy-authenticate", "Basic"),
                ("http2-settings", "x"),
                ("trailer", "x"),
                ("set-cookie", "session=theirs"),
                ("proxy-status", "countersign; error=x"),
                ("etag", "kept"),
            ];
            exchange.answer_with(200, &fields, "");
        }
    })
    .await;
    let proxy = front(&pki, &origin.url, "").await;

    let mut caller = Caller::connect(proxy.data).await;
    let request = Request::post("http://localhost/v/x")
        .header("http2-settings", "x")
        .header("trailer", "authorization")
        .header("proxy-authorization", "Basic eDp5")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-original-url", "/elsewhere")
        .header("if-match", "kept")
        .body(())
        .unwrap();
    let (answer, mut body) = caller.sender().send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"body"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("authorization", "Bearer the-callers".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    let answer = tokio::time::timeout(crate::support::PATIENCE, answer)
        .await
        .unwrap()
        .unwrap();

    let (arrived, trailers) = told.recv().await.unwrap();
    let names: Vec<_> = arrived.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["if-match"]);
    assert!(trailers.is_none(), "{trailers:?}");
    let mut names: Vec<_> = answer
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.retain(|name| *name != "date");
    names.sort_unstable();
    assert_eq!(names, ["content-length", "etag", "via", "x-request-id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_never_indexed() {
    let pki = Pki::new();
    let origin = Origin::conducted(&pki, goes_away_gracefully, repeated).await;
    let auth = format!("auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}");
    let proxy = front(&pki, &origin.url, &auth).await;
    assert_eq!(status_of(&get(&proxy, "/v/x").await), 200);
    // RFC 7541 §6.2.3, with `authorization` from the static table (23 in Appendix A).
    let never = [0x1f, 23 - 15];
    let head = origin.excluded();
    assert!(head.windows(2).any(|two| two == never), "{head:x?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_said_at_trace_level_holds_what_went_over_http_2() {
    let pki = Pki::new();
    let origin = Origin::conducted(&pki, goes_away_gracefully, |mut exchange| async move {
        let shown = exchange.field("authorization").to_owned();
        match exchange.request.uri().path() {
            "/reset" => exchange.respond.send_reset(Reason::INTERNAL_ERROR),
            "/half" => {
                let mut stream = exchange.begin(200, &[("x-echo", &shown)]);
                let _ = stream.send_data(shown.into(), false);
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
            _ => {
                let mut stream = exchange.begin(200, &[("x-echo", &shown), ("location", &shown)]);
                stream.send_data(Bytes::from(shown.clone()), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-message", shown.parse().unwrap());
                stream.send_trailers(trailers).unwrap();
            }
        }
    })
    .await;
    let auth = format!("auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}");
    let proxy = front_with(&pki, &origin.url, &auth, &[("RUST_LOG", "trace")]).await;

    let mut said = Vec::new();
    for target in ["/v/x", "/v/reset", "/v/half"] {
        said.push(get(&proxy, target).await);
        said.push(post(&proxy, target, "a body").await);
    }
    let mut caller = Caller::connect(proxy.data).await;
    let grpc = Request::post("http://localhost/v/grpc").header("content-type", "application/grpc");
    let got = caller.ask(grpc, b"\0\0\0\0\0").await;
    assert_eq!(got.status, 200, "{got:?}");
    let message = got.trailers.as_ref().unwrap()["grpc-message"].clone();
    assert!(message.as_bytes().ends_with(b"***"), "{message:?}");
    said.push(format!("{got:?}"));
    for path in ["/status", "/metrics", "/"] {
        said.push(proxy.admin(path).1);
    }
    eventually("all is logged", || {
        (proxy.stdout().lines().count() >= 7).then_some(())
    });
    let stderr = eventually("the failures too", || {
        Some(proxy.stderr()).filter(|said| said.contains("request failed"))
    });
    said.extend([proxy.stdout(), stderr]);
    for text in said {
        assert!(!text.contains(TOKEN), "{text}");
    }
}
