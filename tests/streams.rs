//! WebSocket and gRPC: their own servers and clients, with credentials that the clients lack.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::peers::Pki;
use crate::support::peers::streams::{Peer, Staying, client};
use crate::support::{Proxy, eventually, signal};

const TOKEN: &str = "Streams+of/tokens=0123456789";

fn auth() -> String {
    format!("auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}")
}

#[test]
fn grpc_of_every_kind_passes_over_tls_and_over_plaintext() {
    let pki = Pki::new();
    let server = Peer::grpc(&pki);
    let yaml = format!(
        "listeners:\n  - {{ bind: 127.0.0.1:0, tls: {{ cert: server.pem, key: server.key }} }}\n  - {{ bind: 127.0.0.1:0, h2c: true }}\nadmin: {{ bind: 127.0.0.1:0 }}\nvendors:\n  v:\n    prefix: /\n    upstream: https://localhost:{}\n    ca: ca.pem\n    limits: {{ body: 0 }}\n    {}\n",
        server.port,
        auth()
    );
    let proxy = Proxy::start(pki.dir(), &yaml);
    let ca = pki.file("ca.pem");
    let tls = format!("localhost:{}", proxy.listeners[0].port());
    let plain = proxy.listeners[1].to_string();
    for arguments in [
        &["call", &*tls, ca.to_str().unwrap()][..],
        &["call", &*plain],
    ] {
        let got = client("grpc_peer.py", arguments);
        let stars = "*".repeat(TOKEN.len());
        let wanted = json!({
            // Masked on its way back, so it was there.
            "whoami": format!("Bearer {stars}"),
            "empty": "",
            "big": true,
            "failed": ["FAILED_PRECONDITION", "no: 100 % é", "kept"],
            "count": true,
            "total": (4 * 256 * 32768).to_string(),
            "talk": ["a", "S", "Bearer ", "Bearer S", "z"],
            "deadline": "DEADLINE_EXCEEDED",
            "in_time": true,
            "cancelled": "yes",
            "no_such": "UNIMPLEMENTED",
        });
        assert_eq!(got, wanted);
    }
}

#[test]
fn grpcs_own_client_reads_the_status_of_every_refusal() {
    let pki = Pki::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tokens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let vendor = |name: &str, upstream: &str, more: &str| {
        format!("  {name}:\n    upstream: {upstream}\n    allow_plaintext: true\n{more}")
    };
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let waiting = format!(
        "    auth: {{ client_credentials: {{ token_url: \"http://{}/token\", client_id: c, client_secret: {{ value: vendor-secret }} }} }}\n    timeouts: {{ token_wait: 100ms }}\n",
        tokens.local_addr().unwrap()
    );
    let vendors = [
        vendor("gone", "http://127.0.0.1:1", ""),
        vendor("silent", &silent_url, "    timeouts: { idle: 500ms }\n"),
        vendor("small", &silent_url, "    limits: { body: 10B }\n"),
        vendor(
            "slow",
            &silent_url,
            "    limits: { rate: { per_second: 0.01 } }\n    timeouts: { idle: 500ms }\n",
        ),
        vendor("waiting", &silent_url, &waiting),
        vendor("others", &silent_url, ""),
        vendor("kept", &silent_url, "    refuse: [ \"/secret/**\" ]\n"),
    ]
    .concat();
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0, h2c: true }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ncallers: {{ app: {{ api_key: {{ value: the-key }}, allow: [ gone, silent, small, slow, waiting, kept ] }} }}\nvendors:\n{vendors}"
    );
    let proxy = Proxy::launch(pki.dir(), &yaml, &[]);
    let target = proxy.data.to_string();
    let refused = |key: &str, methods: &[&str]| {
        let arguments = [&["refused", &*target, key], methods].concat();
        let got = client("grpc_peer.py", &arguments);
        serde_json::from_value::<Vec<Option<(String, String)>>>(got).unwrap()
    };
    let cases = [
        ("/gone/t.T", "UNAVAILABLE", "upstream_unreachable"),
        ("/silent/t.T", "DEADLINE_EXCEEDED", "upstream_timeout"),
        ("/small/t.T", "RESOURCE_EXHAUSTED", "body_too_large"),
        ("/waiting/t.T", "UNAVAILABLE", "credential_unavailable"),
        ("/others/t.T", "PERMISSION_DENIED", "forbidden"),
        ("/kept/secret/t.T", "PERMISSION_DENIED", "refused_path"),
        ("/nowhere/t.T", "UNIMPLEMENTED", "no_vendor"),
        ("/kept/%zz/t.T", "INTERNAL", "bad_request"),
    ];
    let methods = cases.map(|(path, ..)| path);
    let got = refused("the-key", &methods);
    for ((path, code, reason), got) in cases.iter().zip(got.chunks(2)) {
        for got in got {
            let (told, message) = got.as_ref().unwrap();
            assert_eq!(told, code, "{path}: {message}");
            assert!(
                message.starts_with(&format!("{reason}: ")),
                "{path}: {message}"
            );
        }
    }
    let limited = refused("the-key", &["/slow/t.T"]);
    let limited = limited[1].as_ref().unwrap();
    assert_eq!(limited.0, "RESOURCE_EXHAUSTED", "{limited:?}");
    assert!(limited.1.starts_with("rate_limited: "), "{limited:?}");
    for unknown in refused("-", &["/kept/t.T", "/nowhere/t.T"]) {
        let (code, message) = unknown.unwrap();
        assert_eq!(code, "UNAUTHENTICATED", "{message}");
        assert!(message.starts_with("unknown_caller: "), "{message}");
    }
}

/// The proxy in front of a WebSocket server, and the URL of that through it.
fn sockets(dir: &Path, server: &Peer, more: &str) -> (Proxy, String) {
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s, timeout: 1s }}\nvendors:\n  v:\n    upstream: http://127.0.0.1:{}\n    allow_plaintext: true\n    {}\n    {more}\n",
        server.port,
        auth()
    );
    let proxy = Proxy::start(dir, &yaml);
    let url = format!("ws://{}/v/socket", proxy.data);
    (proxy, url)
}

fn in_flight(proxy: &Proxy) -> String {
    let metrics = proxy.admin("/metrics").1;
    let series = "countersign_requests_in_flight{vendor=\"v\"} ";
    let found = metrics.lines().find_map(|line| line.strip_prefix(series));
    found.unwrap().to_owned()
}

#[test]
fn a_websocket_is_opened_with_the_credential_and_carries_what_it_likes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Peer::websocket(dir.path());
    // Of the request, not of what follows it.
    let (_proxy, url) = sockets(dir.path(), &server, "limits: { body: 1KiB }");
    let got = client("websocket_peer.py", &["talk", &url]);
    let wanted = json!({
        // Another protocol's bytes are not searched.
        "whoami": format!("Bearer {TOKEN}"),
        "via": "1.1 countersign",
        "big": true,
        "pong": true,
        "many": true,
        "closed": 1000,
    });
    assert_eq!(got, wanted);
}

#[test]
fn a_silent_websocket_ends_after_the_idle_time_and_one_that_pings_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = Peer::websocket(dir.path());
    let (proxy, url) = sockets(
        dir.path(),
        &server,
        "timeouts: { idle: 2s, first_byte: 1s }",
    );
    let (silent, pinging) = (Staying::start(&url, 0.0), Staying::start(&url, 0.3));
    assert_eq!(in_flight(&proxy), "2");
    let silent = silent.lasted();
    assert!((1.5..15.0).contains(&silent), "{silent}");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(in_flight(&proxy), "1");
    drop(pinging);
    eventually("over", || (in_flight(&proxy) == "0").then_some(()));
}

#[test]
fn a_websocket_ends_at_the_total_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = Peer::websocket(dir.path());
    let (_proxy, url) = sockets(dir.path(), &server, "timeouts: { total: 2s }");
    let lasted = Staying::start(&url, 0.3).lasted();
    assert!((1.5..15.0).contains(&lasted), "{lasted}");
}

#[test]
fn a_websocket_ends_with_the_drain() {
    let dir = tempfile::tempdir().unwrap();
    let server = Peer::websocket(dir.path());
    let (mut proxy, url) = sockets(dir.path(), &server, "");
    let open = Staying::start(&url, 0.3);
    signal(proxy.id(), "TERM");
    assert_eq!(proxy.ended(), Some(0));
    open.lasted();
}

const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// A text frame, as a server sends it (RFC 6455 §5.2).
const FRAME: &[u8] = b"\x81\x05hello";

/// What a vendor does once it has sent [`FRAME`].
#[derive(Clone, Copy)]
enum Then {
    /// Its system resets the connection.
    Reset,
    /// Nothing.
    Wait,
}

/// A vendor that accepts every WebSocket, and how often it was asked for one.
async fn accepting(then: Then) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(ACCEPTED.as_bytes()).await.unwrap();
                stream.write_all(FRAME).await.unwrap();
                match then {
                    Then::Reset => {
                        // So that what was sent has been taken.
                        tokio::time::sleep(Duration::from_millis(300)).await;
                        stream.set_zero_linger().unwrap();
                    }
                    Then::Wait => std::future::pending().await,
                }
            });
        }
    });
    (url, asked)
}

/// Opens a WebSocket to vendor `v` and reads to its end: what came behind the head of the response,
/// and how long that took.
fn to_the_end(proxy: &Proxy) -> (Vec<u8>, Duration) {
    let mut stream = TcpStream::connect(proxy.data).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let request = "GET /v/socket HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let asked = Instant::now();
    let mut said = Vec::new();
    let mut some = [0; 4096];
    loop {
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(read) => said.extend_from_slice(&some[..read]),
            Err(cause) if cause.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(cause) => panic!("still open: {cause}; {}", String::from_utf8_lossy(&said)),
        }
    }
    let took = asked.elapsed();
    assert!(
        said.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&said)
    );
    let end = said
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    (said.split_off(end + 4), took)
}

async fn before(url: &str, more: &str) -> (Proxy, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n  v:\n    upstream: {url}\n    allow_plaintext: true\n    {more}\n"
    );
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml))
        .await
        .unwrap();
    (proxy, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_reset_of_a_websocket_reaches_the_caller_at_once() {
    let (url, asked) = accepting(Then::Reset).await;
    let (proxy, _dir) = before(&url, "timeouts: { idle: 1h }").await;
    let (frames, took) = tokio::task::block_in_place(|| to_the_end(&proxy));
    assert_eq!(frames, FRAME, "{}", String::from_utf8_lossy(&frames));
    assert!(took < Duration::from_secs(8), "{took:?}");
    eventually("over", || (in_flight(&proxy) == "0").then_some(()));
    // Whoever was accepted once is not asked for again.
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_a_limit_ends_gets_no_bytes_of_http() {
    let (url, _) = accepting(Then::Wait).await;
    for limit in ["idle: 1s", "total: 1s"] {
        let (proxy, _dir) = before(&url, &format!("timeouts: {{ {limit} }}")).await;
        let (frames, _) = tokio::task::block_in_place(|| to_the_end(&proxy));
        assert_eq!(
            frames,
            FRAME,
            "{limit}: {}",
            String::from_utf8_lossy(&frames)
        );
        eventually("said why", || {
            let said = proxy.stderr();
            let line = said.lines().find(|line| line.contains("request failed"))?;
            line.contains("reason=\"upstream_timeout\"").then_some(())
        });
    }
}
