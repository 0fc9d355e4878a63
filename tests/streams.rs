//! WebSocket and gRPC: their own servers and clients, with credentials that the clients lack.

use std::path::Path;

use serde_json::json;

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
