//! What a refusal says, and to whom.

use http::Request;
use serde_json::Value;

use crate::support::origin::Caller;
use crate::support::status_of;
use crate::support::world::{ECHO, World};

const KEY: &str = "key-of-the-one-caller";

/// The vendor `v` refuses a path; `logs-in` answers logins itself.
async fn start(more: &str) -> World {
    let vendors = format!(
        r#"
  v:
    upstream: {ECHO}
    allow_plaintext: true
    hosts: [ v.internal ]
    refuse: [ "/secret/**" ]
    header_names: [ X_Odd ]
{more}
  logs-in:
    preset: certn
    upstream: {ECHO}
    allow_plaintext: true
    login: stub
    auth: {{ bearer: {{ token: {{ value: vendor-secret }} }} }}
"#
    );
    World::with_vendors(&vendors)
        .listener("{ bind: 127.0.0.1:0, h2c: true }")
        .top("callers: { app: { api_key: { env: CALLER }, allow: [ \"v /**\", logs-in ] } }")
        .env("CALLER", KEY)
        .start()
        .await
}

/// Sends one request by somebody without a key; `head` without the blank line.
fn unknown(world: &World, head: &str) -> String {
    let head = head.replace('\n', "\r\n");
    world
        .proxy
        .raw(format!("{head}\r\nConnection: close\r\n\r\n"))
}

/// The same by the caller.
fn known(world: &World, head: &str) -> String {
    unknown(world, &format!("{head}\nX-Countersign-Key: {KEY}"))
}

/// Its body.
fn problem(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

/// An answer without what differs from one request to the next.
fn alike(answer: &str) -> String {
    let kept = answer.lines().filter(|line| {
        let line = line.to_lowercase();
        !line.starts_with("x-request-id") && !line.starts_with("date")
    });
    let kept: Vec<_> = kept.collect();
    match kept.join("\n").split_once("\"request_id\":\"") {
        Some((before, after)) => before.to_owned() + after.split_once('"').unwrap().1,
        None => kept.join("\n"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_known_learns_nothing_of_routes_and_vendors() {
    let world = start("").await;
    let nowhere = unknown(&world, "GET /nowhere HTTP/1.1\nHost: localhost");
    assert_eq!(status_of(&nowhere), 401, "{nowhere}");
    assert_eq!(problem(&nowhere)["reason"], "unknown_caller");
    for (method, path, host) in [
        ("GET", "/v/x", "localhost"),
        ("GET", "/v", "localhost"),
        ("GET", "/v/secret/x", "localhost"),
        ("GET", "/v/a%2fb", "localhost"),
        ("GET", "/x", "v.internal"),
        ("COPY", "/v/x", "localhost"),
        ("GET", "/logs-in/x", "localhost"),
        ("POST", "/logs-in/token/", "localhost"),
        ("POST", "/logs-in/api/v1/logout/", "localhost"),
        ("POST", "/nowhere/token/", "localhost"),
    ] {
        let head = format!("{method} {path} HTTP/1.1\nHost: {host}\nX-Api-Key: wrong");
        let answer = unknown(&world, &head);
        assert_eq!(problem(&answer)["vendor"], Value::Null, "{head}: {answer}");
        assert_eq!(alike(&answer), alike(&nowhere), "{head}");

        let mut caller = Caller::connect(world.proxy.data).await;
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}"));
        let got = caller.ask(request, b"").await;
        let body: Value = serde_json::from_str(&got.body).unwrap();
        assert_eq!((got.status, &body["vendor"]), (401, &Value::Null), "{head}");
    }
    // Nor which vendor permits what.
    let odd = |path: &str| {
        let answer = unknown(
            &world,
            &format!("GET {path} HTTP/1.1\nHost: localhost\nX_Odd: 1"),
        );
        assert_eq!(problem(&answer)["vendor"], Value::Null, "{answer}");
        alike(&answer)
    };
    assert!(odd("/v/x").starts_with("HTTP/1.1 400"), "{}", odd("/v/x"));
    assert_eq!(odd("/v/x"), odd("/nowhere"));
    assert!(world.echo.requests().is_empty());

    // The operator's lines still say whom it was about, and so does a refusal of somebody known.
    let said = world.proxy.said();
    assert!(said.contains("\"vendor\":\"v\""), "{said}");
    let answer = known(&world, "GET /v/secret/x HTTP/1.1\nHost: localhost");
    assert_eq!(problem(&answer)["vendor"], "v", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_asks_for_a_tunnel_is_refused_over_http_2_too() {
    let world = start("").await;
    let mut caller = Caller::connect(world.proxy.data).await;
    let request = Request::builder()
        .method("CONNECT")
        .uri("vendor.example:443")
        .header("x-countersign-key", KEY);
    let got = caller.ask(request, b"").await;
    assert_eq!(got.status, 405, "{got:?}");
    let body: Value = serde_json::from_str(&got.body).unwrap();
    assert_eq!(body["reason"], "method_not_allowed");
}

/// What a rate of one in ten seconds lets through.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_may_be_a_fraction() {
    let world = start("    limits: { rate: { per_second: 0.1, burst: 2 } }").await;
    let statuses: Vec<u16> = (0..3)
        .map(|_| status_of(&known(&world, "GET /v/x HTTP/1.1\nHost: localhost")))
        .collect();
    assert_eq!(statuses, [200, 200, 429]);
    let refused = known(&world, "GET /v/x HTTP/1.1\nHost: localhost");
    let seconds = refused
        .lines()
        .find_map(|line| line.strip_prefix("Retry-After: "))
        .unwrap();
    let seconds: u64 = seconds.parse().unwrap();
    assert!((2..=10).contains(&seconds), "{refused}");
}

/// A gRPC call of a caller with these fields, and what it got.
async fn grpc(world: &World, path: &str, fields: &[(&str, &str)]) -> crate::support::origin::Got {
    let mut request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut caller = Caller::connect(world.proxy.data).await;
    caller.ask(request, b"\0\0\0\0\0").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_grpc_call_gets_a_status_of_its_own_and_no_body() {
    let more = "    limits: { body: 4B }\n  dead:\n    upstream: http://127.0.0.1:1\n    allow_plaintext: true";
    let world = start(more).await;
    let key = [("x-countersign-key", KEY)];
    for (path, fields, code, reason, status) in [
        ("/v/x", &[][..], "16", "unknown_caller", 401),
        ("/nowhere/x", &[], "16", "unknown_caller", 401),
        ("/nowhere/x", &key, "12", "no_vendor", 404),
        ("/dead/x", &key, "7", "forbidden", 403),
        ("/v/secret/x", &key, "7", "refused_path", 403),
        ("/v//x", &key, "13", "bad_request", 400),
        ("/v/x", &key, "8", "body_too_large", 413),
    ] {
        let got = grpc(&world, path, fields).await;
        let field = |name: &str| {
            let value = got.fields.get(name);
            value.map_or("", |value| value.to_str().unwrap())
        };
        assert_eq!(
            (got.status, got.body.as_str()),
            (200, ""),
            "{path}: {got:?}"
        );
        assert_eq!(field("content-type"), "application/grpc");
        assert_eq!(field("grpc-status"), code, "{path}: {got:?}");
        assert!(field("grpc-message").starts_with(reason), "{path}: {got:?}");
        let details = format!("details=\"{reason}\"");
        assert!(field("proxy-status").ends_with(&details), "{path}: {got:?}");

        // Over HTTP/1.1 the same; its line and its count have the status of the reason.
        let head = format!(
            "POST {path} HTTP/1.1\nHost: localhost\nContent-Type: application/grpc\nX-Request-Id: id-{code}-{}\nContent-Length: 5",
            fields.len()
        );
        let answer = if fields.is_empty() {
            unknown(&world, &head)
        } else {
            known(&world, &head)
        };
        let (told, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!((status_of(&answer), body), (200, ""), "{answer}");
        for field in [
            format!("grpc-status: {code}"),
            "Content-Type: application/grpc".to_owned(),
            "Content-Length: 0".to_owned(),
        ] {
            assert!(told.lines().any(|line| line == field), "{field} in {told}");
        }
        let said = world.proxy.said();
        let counted = said.lines().filter(|line| {
            line.contains(&format!("\"status\":{status},"))
                && line.contains(&format!("\"reason\":\"{reason}\""))
                && line.contains(path)
        });
        assert_eq!(counted.count(), 2, "{path} in {said}");
    }
    let metrics = world.proxy.admin("/metrics").1;
    assert!(
        metrics.lines().any(|line| line.contains("status=\"413\"")),
        "{metrics}"
    );
    assert!(!metrics.contains("status=\"200\""), "{metrics}");
    assert!(world.echo.requests().is_empty());
}
