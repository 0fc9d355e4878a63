//! Bodies of logins, before anybody is known.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::client::ResponseFuture;

use crate::support::origin::Caller;
use crate::support::{Proxy, status_of};

const KEY: &str = "the-key-of-ci";
const LOGIN: &str = "/c/api/v1/authenticate/";

async fn start() -> (countersign_demo::MockServer, Proxy, tempfile::TempDir) {
    let echo = countersign_demo::echo().await.unwrap();
    let url = echo.url();
    let digest = hex::encode(countersign::tls::sha256(&[KEY.as_bytes()]));
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0, h2c: true }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\ncallers:\n  ci: {{ api_key: {{ sha256: {digest} }}, allow: [ c ] }}\n  other: {{ api_key: {{ value: the-other-key }}, allow: [] }}\nvendors:\n  c:\n    preset: certn\n    upstream: {url}\n    allow_plaintext: true\n    login: stub\n    auth: {{ bearer: {{ token: {{ value: vendor-secret }} }} }}\n"
    );
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml));
    (echo, proxy.await.unwrap(), dir)
}

fn login() -> http::Request<()> {
    http::Request::post(format!("http://localhost{LOGIN}"))
        .header("content-type", "application/json")
        .body(())
        .unwrap()
}

/// The status, and the reason where there is one.
async fn outcome(answer: ResponseFuture) -> (u16, String) {
    let answer = tokio::time::timeout(Duration::from_secs(30), answer);
    let answer = answer.await.expect("an answer in time").unwrap();
    let status = answer.status().as_u16();
    let body = crate::support::origin::read(&mut answer.into_body()).await;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let reason = body["reason"].as_str().unwrap_or_default().to_owned();
    (status, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_logins_are_bounded_in_number_and_time_and_keep_no_caller_out() {
    let (_echo, proxy, _dir) = start().await;
    let mut callers = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let mut caller = Caller::connect(proxy.data).await;
        for _ in 0..100 {
            let sender = caller.sender().clone().ready().await.unwrap();
            let (answer, mut body) = { sender }.send_request(login(), false).unwrap();
            body.send_data(Bytes::from_static(b"{"), false).unwrap();
            waiting.push((answer, body));
        }
        callers.push(caller);
    }
    // They are under way; somebody that the head tells has a place of its own.
    let basic = format!("Basic {}", STANDARD.encode(format!("any:{KEY}")));
    let mut caller = Caller::connect(proxy.data).await;
    let mut known = login();
    known
        .headers_mut()
        .insert("authorization", basic.parse().unwrap());
    let sender = caller.sender().clone().ready().await.unwrap();
    let (answer, mut body) = { sender }.send_request(known, false).unwrap();
    body.send_data(Bytes::from_static(b"{}"), true).unwrap();
    assert_eq!(outcome(answer).await.0, 200);

    let (answers, bodies): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
    let mut outcomes = Vec::new();
    for answer in answers {
        outcomes.push(outcome(answer).await);
    }
    let count = |wanted: (u16, &str)| {
        let mut like = outcomes.clone();
        like.retain(|(status, reason)| (*status, reason.as_str()) == wanted);
        like.len()
    };
    assert_eq!(count((503, "overloaded")), 600 - 512, "{outcomes:?}");
    assert_eq!(count((408, "bad_request")), 512, "{outcomes:?}");
    drop(bodies);

    // And there is room again.
    let sender = caller.sender().clone().ready().await.unwrap();
    let (answer, mut body) = { sender }.send_request(login(), false).unwrap();
    let posted = format!("{{\"password\":\"{KEY}\"}}");
    body.send_data(posted.into(), true).unwrap();
    assert_eq!(outcome(answer).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_body_has_8_kib_at_most() {
    let (_echo, proxy, _dir) = start().await;
    let posted = |length: usize| {
        let rest = length - format!("{{\"password\":\"{KEY}\",\"x\":\"\"}}").len();
        format!("{{\"password\":\"{KEY}\",\"x\":\"{}\"}}", "a".repeat(rest))
    };
    for (length, want) in [(8 * 1024, 200), (8 * 1024 + 1, 413)] {
        let body = posted(length);
        let plain = proxy.raw(format!(
            "POST {LOGIN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ));
        assert_eq!(status_of(&plain), want, "{length}");
        let chunked = proxy.raw(format!(
            "POST {LOGIN} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
        ));
        assert_eq!(status_of(&chunked), want, "{length} in chunks");
        let mut caller = Caller::connect(proxy.data).await;
        let sender = caller.sender().clone().ready().await.unwrap();
        let (answer, mut sent) = { sender }.send_request(login(), false).unwrap();
        sent.send_data(body.into(), true).unwrap();
        assert_eq!(outcome(answer).await.0, want, "{length} over HTTP/2");
    }
}

/// What comes for this head within a second, and for this body behind it.
fn expecting(proxy: &Proxy, fields: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(proxy.data).unwrap();
    let length = body.len();
    let head = format!(
        "POST {LOGIN} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut first = [0; 4096];
    let first = stream.read(&mut first).map_or(String::new(), |read| {
        String::from_utf8_lossy(&first[..read]).into_owned()
    });
    let _ = stream.write_all(body.as_bytes());
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    (first, String::from_utf8_lossy(&rest).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_somebody_who_may_log_in_gets_a_100() {
    let (_echo, proxy, _dir) = start().await;
    let in_body = format!("{{\"password\":\"{KEY}\"}}");
    let field = |key: &str| format!("X-Countersign-Key: {key}\r\n");

    let (first, rest) = expecting(&proxy, &field(KEY), "{}");
    assert!(first.starts_with("HTTP/1.1 100"), "{first}");
    assert_eq!(status_of(&rest), 200, "{rest}");
    // The key is in the body: a caller that sends it without waiting is served.
    let (first, rest) = expecting(&proxy, "", &in_body);
    assert_eq!(first, "");
    assert_eq!(status_of(&rest), 200, "{rest}");
    let (first, rest) = expecting(&proxy, &field("wrong"), "{}");
    assert_eq!(first, "");
    assert_eq!(status_of(&rest), 401, "{rest}");
    let (first, _) = expecting(&proxy, &field("the-other-key"), "{}");
    assert_eq!(status_of(&first), 403, "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_100_in_vain_is_told_why() {
    let (_echo, proxy, _dir) = start().await;
    let answer = proxy.raw(format!(
        "POST {LOGIN} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
    ));
    assert_eq!(status_of(&answer), 401, "{answer}");
    assert!(answer.contains("\"reason\":\"unknown_caller\""), "{answer}");
}
