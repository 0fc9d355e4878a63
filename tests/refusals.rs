//! What a refusal says, and to whom.

use countersign::demo::{self, Stand};
use http::Request;
use serde_json::Value;

use crate::support::origin::Caller;
use crate::support::{Proxy, status_of};

const KEY: &str = "key-of-the-one-caller";

/// The proxy in front of one echo: vendor `v` refuses a path, `logs-in` answers logins itself.
struct Setup {
    echo: Stand,
    proxy: Proxy,
    _dir: tempfile::TempDir,
}

impl Setup {
    async fn new(more: &str) -> Self {
        let echo = demo::echo().await.unwrap();
        let url = echo.url();
        let dir = tempfile::tempdir().unwrap();
        let yaml = format!(
            r#"
listeners: [ {{ bind: 127.0.0.1:0, h2c: true }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
callers:
  app: {{ api_key: {{ env: CALLER }}, allow: [ "v /**", logs-in ] }}
vendors:
  v:
    upstream: {url}
    allow_plaintext: true
    hosts: [ v.internal ]
    refuse: [ "/secret/**" ]
{more}
  logs-in:
    preset: certn
    upstream: {url}
    allow_plaintext: true
    login: stub
    auth: {{ bearer: {{ token: {{ value: vendor-secret }} }} }}
"#
        );
        let directory = dir.path().to_owned();
        let proxy = tokio::task::spawn_blocking(move || {
            Proxy::start_with(&directory, &yaml, &[("CALLER", KEY)])
        });
        Self {
            echo,
            proxy: proxy.await.unwrap(),
            _dir: dir,
        }
    }

    /// Sends one request by somebody without a key; `head` without the blank line.
    fn unknown(&self, head: &str) -> String {
        let head = head.replace('\n', "\r\n");
        self.proxy
            .raw(format!("{head}\r\nConnection: close\r\n\r\n"))
    }

    /// The same by the caller.
    fn known(&self, head: &str) -> String {
        self.unknown(&format!("{head}\nX-Countersign-Key: {KEY}"))
    }
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
    let setup = Setup::new("").await;
    let nowhere = setup.unknown("GET /nowhere HTTP/1.1\nHost: localhost");
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
        let answer = setup.unknown(&head);
        assert_eq!(problem(&answer)["vendor"], Value::Null, "{head}: {answer}");
        assert_eq!(alike(&answer), alike(&nowhere), "{head}");

        let mut caller = Caller::connect(setup.proxy.data).await;
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{host}{path}"));
        let got = caller.ask(request, b"").await;
        let body: Value = serde_json::from_str(&got.body).unwrap();
        assert_eq!((got.status, &body["vendor"]), (401, &Value::Null), "{head}");
    }
    assert!(setup.echo.requests().is_empty());

    // The operator's lines still say whom it was about, and so does a refusal of somebody known.
    let said = setup.proxy.said();
    assert!(said.contains("\"vendor\":\"v\""), "{said}");
    let answer = setup.known("GET /v/secret/x HTTP/1.1\nHost: localhost");
    assert_eq!(problem(&answer)["vendor"], "v", "{answer}");
}
