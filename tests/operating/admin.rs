//! The admin listener: probes, `/status`, `/metrics`, forced renewals, and the request lines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::{HEAD, client, get, yaml};
use crate::support::front::{Plan, answer};
use crate::support::{Proxy, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn settled_is_ready_when_every_first_attempt_has_ended() {
    let plan = Plan::new().await.vendor("certn").vendor("sectigo");
    plan.mocks
        .certn
        .delay_token_calls(Duration::from_millis(1500));
    plan.mocks.certn.fail_next(1, StatusCode::BAD_GATEWAY);
    let front = plan.launch();

    assert_eq!(front.proxy.admin("/livez"), (200, "ok\n".to_owned()));
    let (status, body) = front.proxy.admin("/readyz");
    assert_eq!(status, 503);
    assert!(
        body.contains("certn") && !body.contains("sectigo"),
        "{body}"
    );
    // The first attempt fails, and that is an end, too.
    eventually("settled", || {
        (front.proxy.admin("/readyz").0 == 200).then_some(())
    });
    assert_ne!(front.status("certn")["last_error"], Value::Null);
    // On a data listener none of it exists.
    let answered = front.answer("/readyz").await;
    assert_eq!(answered.json()["reason"], "no_vendor");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_is_ready_when_every_vendor_has_had_a_credential_and_stays_so() {
    let plan = plan("all").await;
    let certn = &plan.mocks.certn;
    certn.fail_next(usize::MAX, StatusCode::BAD_GATEWAY);
    let front = plan.launch();
    let certn = &front.mocks.certn;

    eventually("tried", || (certn.token_calls().len() >= 2).then_some(()));
    let (status, body) = front.proxy.admin("/readyz");
    assert_eq!(status, 503);
    assert!(
        body.contains("certn") && !body.contains("sectigo"),
        "{body}"
    );
    certn.fail_next(0, StatusCode::OK);
    eventually("ready", || {
        (front.proxy.admin("/readyz").0 == 200).then_some(())
    });

    // Once ready, a vendor's trouble never makes it unready.
    certn.fail_next(usize::MAX, StatusCode::BAD_REQUEST);
    let before = certn.token_calls().len();
    assert_eq!(front.refresh("certn").await, 202);
    eventually("tried again", || {
        (certn.token_calls().len() > before && front.status("certn")["state"] == "failed")
            .then_some(())
    });
    assert_eq!(front.proxy.admin("/readyz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_is_ready_when_one_vendor_has_had_a_credential() {
    let plan = plan("any").await;
    plan.mocks
        .certn
        .fail_next(usize::MAX, StatusCode::BAD_GATEWAY);
    let front = plan.launch();
    eventually("ready", || {
        (front.proxy.admin("/readyz").0 == 200).then_some(())
    });

    let plan = Plan::new().await.vendor("certn").vendor("sectigo-oauth");
    let plan = plan.admin(", ready_when: any");
    for mock in [&plan.mocks.certn, &plan.mocks.sectigo_auth] {
        mock.fail_next(usize::MAX, StatusCode::BAD_GATEWAY);
    }
    let front = plan.launch();
    eventually("tried", || {
        (front.mocks.certn.token_calls().len() >= 2).then_some(())
    });
    let (status, body) = front.proxy.admin("/readyz");
    assert_eq!(status, 503);
    assert!(
        body.contains("certn") && body.contains("sectigo-oauth"),
        "{body}"
    );
    front.mocks.sectigo_auth.fail_next(0, StatusCode::OK);
    eventually("ready", || {
        (front.proxy.admin("/readyz").0 == 200).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn status_has_the_promised_fields_and_no_others() {
    let plan = Plan::new()
        .await
        .vendor("certn")
        .vendor_with("sectigo", "    hosts: [ scm.internal ]\n    prefix: /scm\n")
        .stanza_of("  bare:\n    upstream: https://127.0.0.1:1/base\n");
    let file = plan.yaml();
    let front = plan.start();
    for _ in 0..3 {
        assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    }

    let (code, body) = front.proxy.admin("/status");
    assert_eq!(code, 200);
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(keys(&status), ["config", "started", "vendors", "version"]);
    assert_eq!(keys(&status["config"]), ["last_error", "loaded", "sha256"]);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let digest = countersign::tls::sha256(&[file.as_bytes()]);
    assert_eq!(status["config"]["sha256"], hex::encode(digest));
    assert_eq!(status["config"]["last_error"], Value::Null);
    let started = time(&status["started"]);
    assert!(time(&status["config"]["loaded"]) <= started + Duration::from_secs(5));
    for vendor in status["vendors"].as_array().unwrap() {
        let wanted = [
            "auth",
            "breaker",
            "breaker_reason",
            "breaker_until",
            "expires_at",
            "held_back_until",
            "hosts",
            "in_flight",
            "last_error",
            "last_refresh",
            "name",
            "prefix",
            "refresh_at",
            "requests",
            "state",
            "upstream",
        ];
        assert_eq!(keys(vendor), wanted);
    }

    let certn = front.status("certn");
    assert_eq!(certn["auth"], "client_credentials");
    assert_eq!(certn["state"], "fresh");
    assert_eq!(certn["prefix"], "/certn");
    assert_eq!(certn["hosts"], serde_json::json!([]));
    assert_eq!(certn["upstream"], front.mocks.certn.url());
    assert_eq!(certn["last_error"], Value::Null);
    // The last of the three is counted after its answer.
    eventually("counted", || {
        (front.status("certn")["requests"] == 3).then_some(())
    });
    assert_eq!(front.status("certn")["in_flight"], 0);
    let (refreshed, refresh, expires) = (
        time(&certn["last_refresh"]),
        time(&certn["refresh_at"]),
        time(&certn["expires_at"]),
    );
    assert!(refreshed < refresh && refresh < expires);
    // The vendor's stated end, not ours: ten hours.
    let lifetime = expires.duration_since(refreshed).unwrap().as_secs();
    assert!((35_990..=36_001).contains(&lifetime), "{lifetime}");
    let sectigo = front.status("sectigo");
    assert_eq!(sectigo["auth"], "headers");
    assert_eq!(sectigo["state"], "static");
    assert_eq!(sectigo["prefix"], "/scm");
    assert_eq!(sectigo["hosts"], serde_json::json!(["scm.internal"]));
    assert_eq!(sectigo["expires_at"], Value::Null);
    let bare = front.status("bare");
    assert_eq!(
        (&bare["auth"], &bare["state"]),
        (&"none".into(), &"none".into())
    );
    assert_eq!(bare["upstream"], "https://127.0.0.1:1/base");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_each_state_a_credential_can_be_in() {
    let plan = Plan::new()
        .await
        .vendor_with("certn", "    timeouts: { token_wait: 100ms }\n")
        .vendor("certcenter-oauth")
        .vendor("sectigo-oauth")
        .vendor("maxmd");
    plan.mocks.certn.set_lifetime(Duration::from_secs(4));
    plan.mocks
        .certcenter
        .fail_next(usize::MAX, StatusCode::BAD_REQUEST);
    plan.mocks
        .sectigo_auth
        .delay_token_calls(Duration::from_secs(4));
    let front = plan.launch();
    let state = |vendor: &str| front.status(vendor)["state"].clone();

    assert_eq!(state("sectigo-oauth"), "pending");
    eventually("fresh", || (state("certn") == "fresh").then_some(()));
    front
        .mocks
        .certn
        .fail_next(usize::MAX, StatusCode::BAD_GATEWAY);
    eventually("refreshing", || {
        (state("certn") == "refreshing").then_some(())
    });
    eventually("expired", || (state("certn") == "expired").then_some(()));
    eventually("failed", || {
        (state("certcenter-oauth") == "failed").then_some(())
    });
    eventually("reauthorize", || {
        (state("maxmd") == "reauthorize").then_some(())
    });
    let error = front.status("maxmd")["last_error"].to_string();
    assert!(error.contains("consent"), "{error}");
    eventually("fresh", || {
        (state("sectigo-oauth") == "fresh").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_promised_names_types_and_labels() {
    let plan = Plan::new().await.vendor("certn").vendor("sectigo-private");
    let front = plan.start();
    // Before any request, so that an alert can be written without one.
    let fresh = parse(&front.proxy.admin("/metrics").1);
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    assert_eq!(front.answer("/certn/token/").await.status, 403);
    assert_eq!(front.answer("/nowhere").await.status, 404);
    let odd = reqwest::Method::from_bytes(b"BREW").unwrap();
    let odd = answer(front.request(odd, "/certn/hr/v1/applicants/")).await;
    assert_eq!(odd.status, 405, "the vendor's own");
    front.mocks.certn.revoke_access_tokens();
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
    eventually("counted", || {
        let counted = front.metric(
            "countersign_requests_total{caller=\"app\",method=\"GET\",status=\"200\",vendor=\"certn\"}",
        );
        (counted > 1.5).then_some(())
    });

    let (status, text) = front.proxy.admin("/metrics");
    assert_eq!(status, 200);
    let families = parse(&text);
    for (name, kind, labels) in PROMISED {
        let known = fresh.get(name);
        assert!(
            known.is_some_and(|known| known.kind == kind),
            "{name} before any request"
        );
        let family = families
            .get(name)
            .unwrap_or_else(|| panic!("{name} in\n{text}"));
        assert_eq!(family.kind, kind, "{name}");
        assert!(!family.help.is_empty(), "{name}");
        assert!(!family.labels.is_empty(), "{name} has no series");
        let wanted: BTreeSet<&str> = labels.iter().copied().collect();
        for found in &family.labels {
            let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
            assert_eq!(found, wanted, "{name}");
        }
    }
    for process in ["process_cpu_seconds_total", "process_resident_memory_bytes"] {
        assert!(families.contains_key(process), "{process}");
    }
    for (series, value) in [
        (
            r#"countersign_requests_total{caller="app",method="other",status="405",vendor="certn"}"#,
            1.0,
        ),
        (
            r#"countersign_requests_total{caller="app",method="GET",status="404",vendor="none"}"#,
            1.0,
        ),
        (
            r#"countersign_refused_total{reason="refused_path",vendor="certn"}"#,
            1.0,
        ),
        (
            r#"countersign_refused_total{reason="no_vendor",vendor="none"}"#,
            1.0,
        ),
        (
            r#"countersign_credential_fetch_total{outcome="ok",vendor="certn"}"#,
            2.0,
        ),
        (
            r#"countersign_credential_state{state="fresh",vendor="certn"}"#,
            1.0,
        ),
        (
            r#"countersign_credential_state{state="failed",vendor="certn"}"#,
            0.0,
        ),
        (
            r#"countersign_upstream_401_total{action="replayed",vendor="certn"}"#,
            1.0,
        ),
        (r#"countersign_requests_in_flight{vendor="certn"}"#, 0.0),
    ] {
        let found = front.metric(series);
        assert!((found - value).abs() < 0.5, "{series} is {found}");
    }
    let words: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("countersign_credential_state{state=\""))
        .filter_map(|line| line.split('"').next())
        .collect();
    let wanted = [
        "expired",
        "failed",
        "fresh",
        "none",
        "pending",
        "reauthorize",
        "refreshing",
        "rejected",
        "static",
    ];
    assert_eq!(words.into_iter().collect::<Vec<_>>(), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_line_is_json_with_the_promised_fields_and_no_query() {
    let front = Plan::new().await.vendor("certn").start();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = front
        .request(
            reqwest::Method::POST,
            "/certn/hr/v1/applicants/?ssn=123-45-6789",
        )
        .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"))
        .header("X-Request-Id", "my-request")
        .header("Content-Type", "application/json")
        .body("{\"a\":1}");
    assert_eq!(answer(request).await.status, 201);
    assert_eq!(front.answer("/certn/token/?x").await.status, 403);
    let stranger = client().get(format!("http://{}/certn/x", front.proxy.data));
    assert_eq!(answer(stranger).await.status, 401);

    let lines = eventually("written", || {
        let lines: Vec<Value> = front
            .proxy
            .stdout()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        (lines.len() == 3).then_some(lines)
    });
    for line in &lines {
        let wanted = [
            "attempts",
            "bytes_in",
            "bytes_out",
            "caller",
            "client",
            "duration_ms",
            "generation",
            "method",
            "path",
            "reason",
            "request_id",
            "reused",
            "rule",
            "status",
            "trace_id",
            "ts",
            "upstream_ms",
            "vendor",
        ];
        assert_eq!(keys(line), wanted);
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert!(line["duration_ms"].as_f64().unwrap() > 0.0);
    }
    let passed = &lines[0];
    assert_eq!(passed["request_id"], "my-request");
    assert_eq!(passed["caller"], "app");
    assert_eq!(passed["vendor"], "certn");
    assert_eq!(passed["method"], "POST");
    assert_eq!(passed["path"], "/certn/hr/v1/applicants/");
    assert_eq!(passed["status"], 201);
    assert_eq!(
        (&passed["reason"], &passed["rule"]),
        (&Value::Null, &"*".into())
    );
    assert_eq!(passed["attempts"], 1);
    assert_eq!(passed["generation"], 1);
    assert_eq!(passed["reused"], false);
    assert_eq!(
        (&passed["bytes_in"], &passed["bytes_out"]),
        (&7.into(), &7.into())
    );
    assert_eq!(passed["trace_id"], trace);
    assert!(passed["upstream_ms"].as_f64().unwrap() <= passed["duration_ms"].as_f64().unwrap());
    let refused = &lines[1];
    assert_eq!(
        (&refused["reason"], &refused["rule"]),
        (&"refused_path".into(), &"/token".into())
    );
    assert_eq!(
        (&refused["attempts"], &refused["upstream_ms"]),
        (&0.into(), &Value::Null)
    );
    let unknown = &lines[2];
    assert_eq!(
        (&unknown["status"], &unknown["caller"]),
        (&401.into(), &Value::Null)
    );
    assert_eq!(
        (&unknown["reason"], &unknown["rule"]),
        (&"unknown_caller".into(), &Value::Null)
    );
    // The vendor has seen it, though.
    assert!(front.mocks.certn.has_read("?ssn=123-45-6789"));
    for said in [front.proxy.stdout(), front.proxy.stderr()] {
        assert!(!said.contains("123-45-6789"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_in_a_refused_target_is_not_logged() {
    let front = Plan::new().await.vendor("certn").start();
    for target in [
        "http://me:hunter2@localhost/certn/x",
        "me:hunter2@localhost:443",
        "/certn/x#hunter2",
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = front.proxy.raw(request);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
        assert!(!answer.contains("hunter2"), "{answer}");
    }
    let said = eventually("three lines", || {
        let said = front.proxy.stdout();
        (said.matches("bad_request").count() == 3).then_some(said)
    });
    for (path, times) in [("/", 1), ("/certn/x", 2)] {
        let path = format!("\"path\":\"{path}\"");
        assert_eq!(said.matches(&path).count(), times, "{said}");
    }
    let said = said + &front.proxy.stderr();
    assert!(!said.contains("hunter2"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_lines_can_be_turned_off() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let head = format!("{HEAD}access_log: false\n");
    let mut proxy = Proxy::start(dir.path(), &yaml(&head, &echo.url(), ""));
    assert_eq!(get(&proxy, "/v/x", &[]).await.status, 200);
    // And on again, without a restart.
    let head = format!("{HEAD}access_log: true\n");
    std::fs::write(dir.path().join("proxy.yaml"), yaml(&head, &echo.url(), "")).unwrap();
    crate::support::signal(proxy.id(), "HUP");
    crate::support::eventually("the new configuration is in use", || {
        let metrics = proxy.admin("/metrics").1;
        let ok = "countersign_config_reloads_total{outcome=\"ok\"} 1";
        metrics.contains(ok).then_some(())
    });
    assert_eq!(get(&proxy, "/v/y", &[]).await.status, 200);
    crate::support::signal(proxy.id(), "TERM");
    assert_eq!(proxy.ended(), Some(0));
    let lines = proxy.stdout();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("\"path\":\"/v/y\""), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_force_a_renewal_and_a_web_page_cannot() {
    let front = Plan::new().await.vendor("certn").start();
    let certn = &front.mocks.certn;
    let url = |vendor: &str| format!("http://{}/vendors/{vendor}/refresh", front.proxy.admin);
    let post = |vendor: &str| front.client.post(url(vendor));

    for (name, value) in [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
    ] {
        let refused = answer(post("certn").header(name, value)).await;
        assert_eq!(refused.status, 403, "{name}: {value}");
    }
    assert_eq!(answer(front.client.get(url("certn"))).await.status, 405);
    assert_eq!(answer(post("nobody")).await.status, 404);
    assert_eq!(certn.token_calls().len(), 1);

    assert_eq!(answer(post("certn")).await.status, 202);
    eventually("renewed", || (certn.token_calls().len() == 2).then_some(()));
    eventually("counted", || {
        let renewed =
            front.metric("countersign_credential_fetch_total{outcome=\"ok\",vendor=\"certn\"}");
        (renewed > 1.5).then_some(())
    });
    assert_eq!(front.answer("/certn/hr/v1/applicants/").await.status, 200);
}

/// `certn`, which the test makes fail, and `sectigo`, which needs no token.
async fn plan(ready_when: &str) -> Plan {
    let plan = Plan::new().await.vendor("certn").vendor("sectigo");
    plan.admin(&format!(", ready_when: {ready_when}"))
}

/// The promised series that are built.
const PROMISED: [(&str, &str, &[&str]); 20] = [
    (
        "countersign_requests_total",
        "counter",
        &["vendor", "caller", "method", "status"],
    ),
    (
        "countersign_request_duration_seconds",
        "histogram",
        &["vendor"],
    ),
    (
        "countersign_upstream_duration_seconds",
        "histogram",
        &["vendor"],
    ),
    ("countersign_breaker_open", "gauge", &["vendor"]),
    (
        "countersign_upstream_retries_total",
        "counter",
        &["vendor", "action"],
    ),
    ("countersign_config_last_reload_successful", "gauge", &[]),
    ("countersign_requests_in_flight", "gauge", &["vendor"]),
    (
        "countersign_refused_total",
        "counter",
        &["vendor", "reason"],
    ),
    (
        "countersign_credential_expiry_timestamp_seconds",
        "gauge",
        &["vendor"],
    ),
    (
        "countersign_credential_state",
        "gauge",
        &["vendor", "state"],
    ),
    (
        "countersign_credential_fetch_total",
        "counter",
        &["vendor", "outcome"],
    ),
    (
        "countersign_credential_fetch_duration_seconds",
        "histogram",
        &["vendor"],
    ),
    (
        "countersign_upstream_401_total",
        "counter",
        &["vendor", "action"],
    ),
    (
        "countersign_certificate_expiry_timestamp_seconds",
        "gauge",
        &["name"],
    ),
    (
        "countersign_upstream_connections_total",
        "counter",
        &["vendor", "reused"],
    ),
    ("countersign_config_reloads_total", "counter", &["outcome"]),
    ("countersign_config_last_reload_successful", "gauge", &[]),
    ("countersign_config_loaded_timestamp_seconds", "gauge", &[]),
    ("countersign_build_info", "gauge", &["version", "commit"]),
    (
        "countersign_log_lines_dropped_total",
        "counter",
        &["stream"],
    ),
];

/// One name of the Prometheus text format.
#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    /// The label names of each of its series, `le` left out.
    labels: Vec<Vec<String>>,
}

fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            help.clone_into(&mut family.help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            kind.clone_into(&mut family.kind);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let of = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|of| families.get(*of).is_some_and(|of| of.kind == "histogram"))
                .unwrap_or(name);
            let family = families
                .get_mut(of)
                .unwrap_or_else(|| panic!("no TYPE for {line}"));
            let labels = labels.trim_end_matches('}').split("\",");
            let names = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            family
                .labels
                .push(names.filter(|name| name != "le").collect());
        }
    }
    families
}

/// A JSON object's keys, sorted.
fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

/// RFC 3339 in UTC.
fn time(value: &Value) -> std::time::SystemTime {
    humantime::parse_rfc3339(value.as_str().unwrap()).unwrap()
}
