//! What goes through unchanged, what is taken off, and what is refused: raw bytes at both ends.

use std::io::{Read, Write};

use crate::support::status_of;
use crate::support::world::World;

/// The vendor `v` below `/v` and by the host `v.internal`, with the base path `/base`.
async fn start(more: &str) -> World {
    let more = format!("    hosts: [ v.internal ]\n{more}");
    World::with_vendor_at("/base", &more).start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefix_becomes_the_base_path_and_the_rest_stays_byte_for_byte() {
    let world = start("  longer:\n    prefix: /v/longer\n    upstream: http://127.0.0.1:1\n    allow_plaintext: true\n").await;
    for (sent, arrives) in [
        ("/v", "/base"),
        ("/v/", "/base/"),
        ("/v/a/B%41%7e;x=1?q=%zz&r=a//b#", ""),
        (
            "/v/a/B%41%7e;x=1?q=%zz&r=/../a//b",
            "/base/a/B%41%7e;x=1?q=%zz&r=/../a//b",
        ),
        ("/v/x?", "/base/x?"),
        ("/v/Voucher/*/CODE", "/base/Voucher/*/CODE"),
    ] {
        let answer = world.send(&format!("GET {sent} HTTP/1.1\nHost: localhost"), "");
        if arrives.is_empty() {
            assert_eq!(status_of(&answer), 400, "{sent}: {answer}");
        } else {
            assert!(
                answer.ends_with(&format!("GET {arrives}")),
                "{sent}: {answer}"
            );
        }
    }
    let by_host = world.send("GET /v/x HTTP/1.1\nHost: V.internal:81", "");
    assert!(by_host.ends_with("GET /base/v/x"), "{by_host}");
    let nobody = world.send("GET /vx HTTP/1.1\nHost: localhost", "");
    assert!(nobody.contains("\"reason\":\"no_vendor\""), "{nobody}");
    let longest = world.send("GET /v/longer/x HTTP/1.1\nHost: localhost", "");
    assert!(
        longest.contains("\"reason\":\"upstream_unreachable\""),
        "{longest}"
    );
    assert!(longest.contains("\"vendor\":\"longer\""), "{longest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn method_body_and_fields_of_one_name_arrive_in_order() {
    let world = start("").await;
    let answer = world.send(
        "BREW /v/pot HTTP/1.1\nHost: localhost\nX-One: a\nX-CamelCase: kept\nX-One: b\nX-One: c\nContent-Length: 5",
        "h\0llo",
    );
    assert_eq!(status_of(&answer), 200, "{answer}");
    let arrived = world.arrived();
    assert!(
        arrived.starts_with("BREW /base/pot HTTP/1.1\r\n"),
        "{arrived}"
    );
    let ones: Vec<_> = arrived
        .lines()
        .filter_map(|line| line.strip_prefix("X-One: "))
        .collect();
    assert_eq!(ones, ["a", "b", "c"]);
    assert!(arrived.contains("X-CamelCase: kept\r\n"), "{arrived}");
    assert!(arrived.ends_with("\r\n\r\nh\0llo"), "{arrived}");
    let host = world.echo.address().to_string();
    assert!(arrived.contains(&format!("Host: {host}\r\n")), "{arrived}");

    let chunked = world.send(
        "POST /v/c HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked",
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    assert_eq!(status_of(&chunked), 200, "{chunked}");
    assert_eq!(world.echo.requests().last().unwrap().body, b"abcde");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_credentials_and_overrides_never_reach_the_vendor() {
    let world = start(
        "    auth: { headers: { login: us, password: { value: ours }, customerUri: corp } }\n",
    )
    .await;
    let answer = world.send(
        "GET /v/x HTTP/1.1\nHost: localhost\nAuthorization: Bearer theirs\nPROXY-AUTHORIZATION: Basic theirs\nCookie: theirs\nX-Api-Key: theirs\nX-Venafi-Api-Key: theirs\nLOGIN: theirs\nPassword: theirs\nCUSTOMERURI: theirs\nX-Countersign-Key: theirs\nX-Forwarded-For: theirs\nForwarded: theirs\nX-Original-URL: /theirs\nX-Rewrite-URL: /theirs\nX-HTTP-Method-Override: theirs\nX-Real-IP: theirs\nTrue-Client-IP: theirs\nCF-Connecting-IP: theirs\nX-Client-IP: theirs\nClient-IP: theirs\nX-Original-Host: theirs\nX-Host: theirs\nX-HTTP-Host-Override: theirs\nX-HTTP-Path-Override: theirs\nRemote-User: theirs\nX-Remote-User: theirs\nX-ARR-ClientCert: theirs\nX-SSL-Client-Cert: theirs\nX-SSL-Client-S-DN: theirs\nX-Client-Cert: theirs\nX-Forwarded-Client-Cert: theirs\nX-Private: theirs-too\nTE: theirs\nAccept: kept\nConnection: close, X-Private, Password",
        "",
    );
    assert_eq!(status_of(&answer), 200, "{answer}");
    let arrived = world.arrived();
    assert!(!arrived.contains("theirs"), "{arrived}");
    for ours in [
        "login: us\r\n",
        "password: ours\r\n",
        "customerUri: corp\r\n",
        "Accept: kept\r\n",
    ] {
        assert_eq!(arrived.matches(ours).count(), 1, "{ours:?} in {arrived}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_credential_replaces_the_callers_parameter_of_its_name() {
    let world =
        start("    auth: { query: { api_key: { value: \"o&r s\" } } }\n    redact_echo: false\n")
            .await;
    for (sent, arrives) in [
        ("/v/x", "/base/x?api_key=o%26r%20s"),
        (
            "/v/x?a=1&API%5Fkey=theirs&b",
            "/base/x?a=1&b&api_key=o%26r%20s",
        ),
    ] {
        let answer = world.send(&format!("GET {sent} HTTP/1.1\nHost: localhost"), "");
        assert!(answer.ends_with(&format!("GET {arrives}")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_can_be_read_in_two_ways_are_refused_and_reach_nobody() {
    let world = start("").await;
    for head in [
        "GET /v/../x HTTP/1.1\nHost: localhost",
        "GET /v/%2e%2e/x HTTP/1.1\nHost: localhost",
        "GET /v/..;/x HTTP/1.1\nHost: localhost",
        "GET /v//x HTTP/1.1\nHost: localhost",
        "GET /v/%2fx HTTP/1.1\nHost: localhost",
        "GET /v/%5cx HTTP/1.1\nHost: localhost",
        "GET /v/\\x HTTP/1.1\nHost: localhost",
        "GET /v/%00 HTTP/1.1\nHost: localhost",
        "GET /v/%zz HTTP/1.1\nHost: localhost",
        "GET /v/\u{e9} HTTP/1.1\nHost: localhost",
        "GET /v/x#y HTTP/1.1\nHost: localhost",
        "GET /v/x y HTTP/1.1\nHost: localhost",
        "GET /v/x\ty HTTP/1.1\nHost: localhost",
        "GET /v/x HTTP/1.1",
        "GET /v/x HTTP/1.1\nHost: local host",
        "GET /v/x HTTP/1.1\nHost: localhost\nHost: localhost",
        "GET /v/x HTTP/1.1\nHost: localhost\nX_Y: 1",
        "GET http://other/v/x HTTP/1.1\nHost: localhost",
        "GET http://u@localhost/v/x HTTP/1.1\nHost: localhost",
        "POST /v/x HTTP/1.1\nHost: localhost\nContent-Length: 1\nContent-Length: 1",
        "POST /v/x HTTP/1.1\nHost: localhost\nContent-Length: 1\nTransfer-Encoding: chunked",
        "POST /v/x HTTP/1.1\nHost: localhost\nTransfer-Encoding: gzip, chunked",
    ] {
        let answer = world.send(head, "");
        assert_eq!(status_of(&answer), 400, "{head}: {answer}");
    }
    let bare = world
        .proxy
        .raw("GET /v/x HTTP/1.1\nHost: localhost\r\n\r\n");
    assert!(bare.contains("\"reason\":\"bad_request\""), "{bare}");
    let long = format!("GET /v/{} HTTP/1.1\nHost: localhost", "a".repeat(17 * 1024));
    assert_eq!(status_of(&world.send(&long, "")), 414);
    let large = format!(
        "GET /v/x HTTP/1.1\nHost: localhost\nA: {}",
        "a".repeat(65 * 1024)
    );
    assert_eq!(status_of(&world.send(&large, "")), 431);
    assert!(world.echo.requests().is_empty());

    let absolute = world.send("GET http://localhost/v/x HTTP/1.1\nHost: localhost", "");
    assert!(absolute.ends_with("GET /base/x"), "{absolute}");
    for (method, target, host) in [
        ("TRACE", "/v/x", "localhost"),
        ("CONNECT", "/v/x", "localhost"),
        ("CONNECT", "localhost:443", "localhost:443"),
        ("CONNECT", "vendor.example:443", "vendor.example:443"),
        ("CONNECT", "[::1]:443", "[::1]:443"),
        // As clients do that are told to use a proxy, and those that name the proxy instead.
        ("CONNECT", "vendor.example:443", "localhost"),
        ("CONNECT", "vendor.example", "localhost"),
    ] {
        let answer = world.send(&format!("{method} {target} HTTP/1.1\nHost: {host}"), "");
        assert_eq!(status_of(&answer), 405, "{method} {target}: {answer}");
        assert!(answer.contains("\"method_not_allowed\""), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_with_an_odd_name_passes_to_the_vendor_that_permits_it_alone() {
    let more = "    header_names: [ X_Account, x.trace.id, X_Real_IP, X_Api_Key ]\n  w:\n    upstream: http://127.0.0.1:1\n    allow_plaintext: true\n";
    let world = start(more).await;
    let answer = world.send(
        "GET /v/x HTTP/1.1\nHost: localhost\nx_account: kept\nX.Trace.Id: kept\nX_Real_IP: theirs\nX_API_KEY: theirs",
        "",
    );
    assert_eq!(status_of(&answer), 200, "{answer}");
    let arrived = world.arrived();
    assert_eq!(arrived.matches(": kept").count(), 2, "{arrived}");
    // Permitted or not: no vendor is to take it for what it could be taken for.
    assert!(!arrived.contains("theirs"), "{arrived}");
    for (path, field) in [
        ("/w/x", "X_Account"),
        ("/nowhere", "X_Account"),
        ("/v/x", "X_Other"),
    ]
    .into_iter()
    .chain(
        [
            "X!", "X#", "X$", "X%", "X&", "X'", "X*", "X+", "X.", "X^", "X`", "X|", "X~",
        ]
        .map(|name| ("/v/x", name)),
    ) {
        let answer = world.send(
            &format!("GET {path} HTTP/1.1\nHost: localhost\n{field}: 1"),
            "",
        );
        assert_eq!(status_of(&answer), 400, "{path}, {field}: {answer}");
        assert!(answer.contains("\"bad_request\""), "{field}: {answer}");
    }
    assert_eq!(world.echo.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_path_that_no_rule_is_asked_about_does_not_pass() {
    let world = start("").await;
    for method in ["COPY", "MOVE"] {
        let head = format!("{method} /v/a HTTP/1.1\nHost: localhost");
        let answer = world.send(&format!("{head}\nDestination: http://localhost/v/b"), "");
        assert_eq!(status_of(&answer), 403, "{answer}");
        assert!(answer.contains("\"refused_path\""), "{answer}");
        assert!(world.echo.requests().is_empty());
    }
    let answer = world.send("GET /v/a HTTP/1.1\nHost: localhost\nDestination: Rome", "");
    assert_eq!(status_of(&answer), 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connection_may_not_name_is_the_callers_fault_alone() {
    let world = start("").await;
    for options in [
        "host",
        "Keep-Alive, Host",
        "X-Forwarded-For",
        ":authority",
        "\"close\"",
        "a, b, c, d, e, f, g, h, i",
    ] {
        let answer = world.send(
            &format!("GET /v/x HTTP/1.1\nHost: localhost\nConnection: close, {options}"),
            "",
        );
        assert_eq!(status_of(&answer), 400, "{options}: {answer}");
        assert!(answer.contains("\"bad_request\""), "{options}: {answer}");
    }
    assert!(world.echo.requests().is_empty());
    let said = world.proxy.said();
    assert!(!said.contains("request failed"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_paths_are_refused_in_every_spelling_and_allow_lists_exclude_the_rest() {
    let world = start(
        "    refuse: [ \"/base/token*\", \"!GET /base/token/info\" ]\n    allow: [ \"/base/token/**\", \"/base/api/**\" ]\n",
    )
    .await;
    for (method, path, status) in [
        ("GET", "/v/token", 403),
        ("GET", "/v/TOKEN", 403),
        ("GET", "/v/%74oken", 403),
        ("GET", "/v/token;x=y", 403),
        ("GET", "/v/token/", 403),
        ("GET", "/v/%2574oken", 403),
        ("GET", "/v/x%252f..%252ftoken", 403),
        ("GET", "/v/token%3Fx", 403),
        ("GET", "/v/token%23x", 403),
        ("GET", "/v/api/%252e%252e/other", 403),
        ("GET", "/v/api/x%3Fy", 200),
        ("GET", "/v/api/100%25", 200),
        ("GET", "/v/token/info", 200),
        ("GET", "/v/api/x", 200),
        ("GET", "/v/other", 403),
    ] {
        let answer = world.send(&format!("{method} {path} HTTP/1.1\nHost: localhost"), "");
        assert_eq!(status_of(&answer), status, "{method} {path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_pass_untouched_but_for_what_belongs_to_a_connection_or_a_session() {
    let world = start("").await;
    let origin = world.echo.url();
    let answer = world.send(
        &format!(
            "GET /v/x?status=202&reason=Well%20Done&header=Set-Cookie:s%3D1&header=Keep-Alive:timeout%3D1&header=Location:{origin}/base/next&header=Content-Location:{origin}/base/this&header=Link:%3C{origin}/base/x%3Fpage=2%3E%3B%20rel=next,%20%3Chttps://other.example/y%3E%3B%20rel=up&header=Link:%3C/base/z%3E&header=Proxy-Status:countersign;%20error%3Dx&body=hello HTTP/1.1\nHost: localhost"
        ),
        "",
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 202 Well Done\r\n"), "{head}");
    assert_eq!(body, "hello");
    assert!(head.contains("Via: 1.1 countersign"), "{head}");
    // Relative: whatever name and scheme the proxy is reached by, they are not the vendor's.
    for led_back in [
        "\r\nLocation: /v/next\r\n",
        "\r\nContent-Location: /v/this\r\n",
        "\r\nLink: </v/x?page=2>; rel=next, <https://other.example/y>; rel=up\r\nLink: </v/z>\r\n",
    ] {
        assert!(head.contains(led_back), "{led_back:?} in {head}");
    }
    let lower = head.to_lowercase();
    assert!(lower.contains("x-request-id: "), "{head}");
    for gone in ["set-cookie", "keep-alive: timeout", "proxy-status"] {
        assert!(!lower.contains(gone), "{gone} in {head}");
    }
    let relative = world.send(
        "GET /v/x?status=302&header=Location:/base/y HTTP/1.1\nHost: localhost",
        "",
    );
    assert!(relative.contains("Location: /v/y\r\n"), "{relative}");

    // Reached by its host, it has no prefix, here or there.
    for (said, followed) in [
        ("/base/y", "/y"),
        ("/y", "/y"),
        (&*format!("{origin}/base/y"), "/y"),
        ("/base//y", "/.//y"),
        (
            "https://other.example/base/y",
            "https://other.example/base/y",
        ),
    ] {
        let by_host = world.send(
            &format!("GET /x?status=302&header=Location:{said} HTTP/1.1\nHost: v.internal"),
            "",
        );
        let expected = format!("Location: {followed}\r\n");
        assert!(by_host.contains(&expected), "{said}: {by_host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_the_dot_that_ends_whole_names_is_the_same_host() {
    let world = start("").await;
    for host in ["v.internal.", "V.INTERNAL.:8080", "v.internal"] {
        let answer = world.send(&format!("GET /x HTTP/1.1\nHost: {host}"), "");
        assert_eq!(status_of(&answer), 200, "{host}: {answer}");
        assert!(world.arrived().starts_with("GET /base/x "), "{host}");
    }
    let other = world.send("GET /x HTTP/1.1\nHost: v.internal..", "");
    assert_ne!(status_of(&other), 200, "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_field_with_an_underscore_has_no_double_with_a_dash() {
    let more = "    auth: { headers: { X-Se_cret: { value: ours } } }\n  w:\n    upstream: http://127.0.0.1:1\n    allow_plaintext: true\n    auth: { headers: { other_one: { value: theirs } } }\n";
    let world = start(more).await;
    let answer = world.send(
        "GET /v/x HTTP/1.1\nHost: localhost\nX-Se-Cret: evil\nOther-One: evil\nX-Fine: yes",
        "",
    );
    assert_eq!(status_of(&answer), 200, "{answer}");
    let arrived = world.arrived();
    assert!(!arrived.contains("evil"), "{arrived}");
    assert!(
        arrived.contains("X-Se_cret: ours") && arrived.contains("X-Fine: yes"),
        "{arrived}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_our_own_is_a_problem_and_keeps_the_connection_for_the_next_request() {
    let world = start("").await;
    let mut kept = std::net::TcpStream::connect(world.proxy.data).unwrap();
    for _ in 0..2 {
        let request = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n";
        kept.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        while !answer.ends_with('}') {
            let mut some = [0; 4096];
            let read = kept.read(&mut some).unwrap();
            assert_ne!(read, 0, "closed after {answer}");
            answer.push_str(std::str::from_utf8(&some[..read]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    }
    let answer = world.send(
        "GET /nowhere?secret=1 HTTP/1.1\nHost: localhost\nX-Request-Id: my-id.1",
        "",
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let lower = head.to_lowercase();
    assert!(
        lower.contains("content-type: application/problem+json"),
        "{head}"
    );
    assert!(
        lower.contains(
            "proxy-status: countersign; error=destination_not_found; details=\"no_vendor\""
        ),
        "{head}"
    );
    assert!(lower.contains("x-request-id: my-id.1"), "{head}");
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["status"], 404);
    assert_eq!(problem["reason"], "no_vendor");
    assert_eq!(problem["request_id"], "my-id.1");
    assert!(!answer.contains("secret=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let world = start("    limits: { body: 4B, in_flight: 1 }\n").await;
    let announced = world.send(
        "POST /v/x HTTP/1.1\nHost: localhost\nContent-Length: 5",
        "12345",
    );
    assert_eq!(status_of(&announced), 413, "{announced}");
    let chunked = world.send(
        "POST /v/x HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked",
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    assert_eq!(status_of(&chunked), 413, "{chunked}");

    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.send("GET /v/x?wait=1500 HTTP/1.1\nHost: localhost", ""));
        crate::support::eventually("in flight", || {
            let status = world.proxy.admin("/status").1;
            status.contains("\"in_flight\":1").then_some(())
        });
        let refused = world.send("GET /v/x HTTP/1.1\nHost: localhost", "");
        assert_eq!(status_of(&refused), 503, "{refused}");
        assert!(refused.contains("\"reason\":\"overloaded\""), "{refused}");
        assert_eq!(status_of(&slow.join().unwrap()), 200);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_not_ended_cleanly() {
    let world = start("").await;
    let cut = world.send("GET /v/x?size=1000&cut=10 HTTP/1.1\nHost: localhost", "");
    let (head, body) = cut.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.len() < 1000 && !body.ends_with("0\r\n\r\n"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_byte_and_the_whole_have_limits_of_their_own() {
    let world = start("    timeouts: { first_byte: 400ms, idle: 30s }\n").await;
    let late = std::time::Instant::now();
    for (head, body) in [
        ("GET /v/x?wait=5000 HTTP/1.1\nHost: localhost", ""),
        (
            "POST /v/x?wait=5000 HTTP/1.1\nHost: localhost\nContent-Length: 3",
            "abc",
        ),
    ] {
        let answer = world.send(head, body);
        assert_eq!(status_of(&answer), 504, "{answer}");
        assert!(
            answer.contains("\"reason\":\"upstream_timeout\""),
            "{answer}"
        );
    }
    assert!(late.elapsed() < std::time::Duration::from_secs(4));
    let in_time = world.send("GET /v/x?wait=50 HTTP/1.1\nHost: localhost", "");
    assert_eq!(status_of(&in_time), 200, "{in_time}");

    let world = start("    timeouts: { total: 500ms }\n").await;
    let answer = world.send("GET /v/x?wait=5000 HTTP/1.1\nHost: localhost", "");
    assert_eq!(status_of(&answer), 504, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_vendor_is_a_504_and_one_that_is_not_there_a_502() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let world = start(&format!(
        "  silent:\n    upstream: https://{}\n    timeouts: {{ connect: 300ms }}\n  slow:\n    upstream: http://{}\n    allow_plaintext: true\n    timeouts: {{ first_byte: 300ms, idle: 300ms }}\n",
        silent.local_addr().unwrap(),
        silent.local_addr().unwrap(),
    ))
    .await;
    for vendor in ["silent", "slow"] {
        let answer = world.send(&format!("GET /{vendor}/x HTTP/1.1\nHost: localhost"), "");
        assert_eq!(status_of(&answer), 504, "{vendor}: {answer}");
        assert!(
            answer.contains("\"reason\":\"upstream_timeout\""),
            "{answer}"
        );
    }
}
