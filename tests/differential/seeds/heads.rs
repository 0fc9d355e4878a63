//! Heads of requests.

use super::super::cases::{Case, get};

/// Whole requests, as they are.
const WHOLE: &[&str] = &[
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "\r\nGET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "\r\n\r\n\r\nGET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "\nGET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    " GET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.1\nHost: localhost\n\n",
    "GET /v/x HTTP/1.1\r\nHost: localhost\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\n\n",
    "GET /v/x HTTP/1.1\rHost: localhost\r\r",
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX: a\r\r\n\r\n",
    "GET  /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/x  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET\t/v/x\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.1 \r\nHost: localhost\r\n\r\n",
    "GET /v/x\r\nHost: localhost\r\n\r\n",
    "GET /v/x\r\n\r\n",
    "GET\r\n\r\n",
    "/v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.0\r\n\r\n",
    "GET /v/x HTTP/1.0\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
    "GET /v/x HTTP/0.9\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.10\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/11\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/3\r\nHost: localhost\r\n\r\n",
    "GET /v/x http/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.1x\r\nHost: localhost\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "get /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "G=T /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "G(T /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "M-SEARCH /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HEAD /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "OPTIONS /v/x HTTP/1.1\r\nHost: localhost\r\nMax-Forwards: 0\r\n\r\n",
    "TRACE /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "COPY /v/x HTTP/1.1\r\nHost: localhost\r\nDestination: /v/y\r\n\r\n",
    "GET http://localhost/v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET http://localhost/v/x HTTP/1.1\r\nHost: other\r\n\r\n",
    "GET http://localhost/v/x HTTP/1.1\r\n\r\n",
    "GET http://localhost HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET HTTP://LOCALHOST/v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET https://localhost/v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET //localhost/v/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET ?x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /vx HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.1\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost:\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: other\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: user@localhost\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: localhost:99999\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost: [::1]\r\n\r\n",
    "GET /v/x HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "GET /v/x HTTP/1.1\r\nHost : localhost\r\n\r\n",
    // Incomplete.
    "GET /v/x HTTP/1.1\r\nHost: localhost\r\n",
    "GET /v/x HT",
    "\r\n",
];

/// Fields of an ordinary GET.
const FIELDS: &[&str] = &[
    "X: a\r\n b",
    "X: a\r\n\tb",
    "X:\r\n a",
    "X: a\r\n  ",
    " X: a",
    "X",
    ": a",
    "X : a",
    "X\t: a",
    "X Y: a",
    "X_Y: a",
    "X_Account: a",
    "X.Y: a",
    "X(: a",
    "X\u{e9}: a",
    "X:",
    "X:a",
    "X:   a   ",
    "X:\ta\t",
    "X: a\u{0}b",
    "X: a\u{1}b",
    "X: a\u{7f}b",
    "X: \u{e9}",
    "X: a\u{b}b",
    "X: a\r\nX: b\r\nx: c",
    "x-lower: a\r\nX-UPPER: b\r\nX-MiXeD: c",
    "Connection: X-Private\r\nX-Private: 1",
    "Connection: close, X-Private\r\nX-Private: 1",
    "Connection: ,,close,,",
    "Connection: close\r\nConnection: keep-alive",
    "Connection: keep-alive, close",
    "Connection: CLOSE",
    "Connection: host",
    "Connection: authorization",
    "Connection: \"close\"",
    "Connection:",
    "Proxy-Connection: keep-alive",
    "Keep-Alive: timeout=5",
    "TE: trailers",
    "TE: gzip, trailers",
    "Connection: TE\r\nTE: trailers",
    "Trailer: X",
    "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Authorization: Bearer theirs",
    "Proxy-Authorization: Basic x",
    "X-Api-Key: theirs",
    "Cookie: a=b\r\nCookie: c=d",
    "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nVia: 1.0 x",
    "X-Original-URL: /smuggled\r\nX-HTTP-Method-Override: DELETE",
    "X-Request-Id: mine-1",
    "X-Request-Id: mine 1",
    "X-Request-Id: a\r\nX-Request-Id: b",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=b",
    "Range: bytes=0-1\r\nIf-Match: \"a\"\r\nIf-None-Match: *",
    "Accept-Encoding: gzip\r\nAccept: */*\r\nUser-Agent: x/1",
    "Origin: http://evil.example\r\nSec-Fetch-Site: cross-site",
    "Max-Forwards: 0",
    "Content-Type: application/grpc",
    "Date: Mon, 01 Jan 2024 00:00:00 GMT",
];

pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    for whole in WHOLE {
        let name = format!(
            "whole {:?}",
            whole.replace("\r\nHost: localhost\r\n\r\n", " …")
        );
        // What a head that is never complete is followed by would complete it.
        let sent = if whole.ends_with("\r\n\r\n") {
            format!("{whole}{}", get("/v/second", ""))
        } else {
            (*whole).to_owned()
        };
        all.push(Case::sending(name, sent));
    }
    for fields in FIELDS {
        let request = get("/w/x", &format!("{fields}\r\n"));
        let sent = format!("{request}{}", get("/v/second", ""));
        all.push(Case::sending(format!("fields {fields:?}"), sent));
    }
    all.extend(large());
    all
}

/// Heads at what the proxy and the library permit, and beyond.
fn large() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |name: String, request: String| {
        all.push(Case::sending(name, request + &get("/v/second", "")));
    };
    // The target with its query: 16 KiB.
    for length in [8 * 1024, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 32 * 1024] {
        let target = format!("/v/{}", "a".repeat(length - 3));
        add(format!("target of {length}"), get(&target, ""));
    }
    let query = format!("/v/x?{}", "q=%20&".repeat(2000));
    add("query of 12000".into(), get(&query, ""));
    // The head: 64 KiB.
    for length in [
        4 * 1024,
        32 * 1024,
        64 * 1024 - 100,
        64 * 1024 - 1,
        64 * 1024,
        64 * 1024 + 1,
        100 * 1024,
    ] {
        let rest = get("/v/x", "X: \r\n").len();
        let field = format!("X: {}\r\n", "b".repeat(length - rest));
        add(format!("head of {length}"), get("/v/x", &field));
    }
    for count in [100, 200, 254, 255, 256, 257, 600] {
        add(
            format!("{count} fields and one"),
            get("/v/x", &"A: b\r\n".repeat(count)),
        );
    }
    let name = "N".repeat(5000);
    add(
        "name of 5000".into(),
        get("/v/x", &format!("{name}: v\r\n")),
    );
    add(
        "method of 300".into(),
        get("/v/x", "").replace("GET", &"M".repeat(300)),
    );
    all
}
