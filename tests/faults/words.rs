//! What token servers say when they refuse or fail, and what is made of their words.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::rotation::consent_to;
use super::{Ledger, SECRET, Setup};
use crate::support::script::{Asked, Reply, Server};
use crate::support::{Proxy, eventually, run};

const REFUSALS: [&str; 6] = [
    "ok-false",
    "error",
    "errors",
    "errcode",
    "form",
    "server-error",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_one_whatever_its_status_and_its_words_are_told() {
    let script = |asked: Asked, ledger: Arc<Ledger>| async move {
        if ledger.healed.load(Ordering::Acquire) {
            return ledger.grant(&asked, 3600);
        }
        match asked.target.trim_start_matches('/') {
            "ok-false" => Reply::json(r#"{"ok":false,"error":"invalid_auth"}"#),
            "error" => Reply::json(format!(
                r#"{{"error":"incorrect_client_credentials","error_description":"not {SECRET}"}}"#
            )),
            "errors" => Reply::json(r#"{"errors":[{"code":"E7","message":"Account is locked"}]}"#),
            "errcode" => Reply::json(r#"{"errcode":40013,"errmsg":"invalid appid"}"#),
            "form" => Reply::whole(
                "200 OK",
                "Content-Type: application/x-www-form-urlencoded\r\n",
                "error=unverified_user_email&error_description=Verify+it",
            ),
            "server-error" => Reply::whole("500 Oops", "", r#"{"error":"invalid_client"}"#),
            other => unreachable!("{other}"),
        }
    };
    let setup = Setup::start(&REFUSALS, "", script).await;
    for (vendor, words) in [
        ("ok-false", "invalid_auth"),
        ("error", "incorrect_client_credentials: not [masked]"),
        ("errors", "E7: Account is locked"),
        ("errcode", "invalid appid"),
        ("form", "unverified_user_email: Verify it"),
        ("server-error", "invalid_client"),
    ] {
        let status = setup.status(vendor);
        assert_eq!(status["state"], "failed", "{status}");
        let said = status["last_error"].as_str().unwrap();
        assert!(said.ends_with(words), "{said}");
        assert_eq!(setup.attempts(vendor, "rejected"), 1, "{vendor}");
        assert_eq!(setup.attempts(vendor, "temporary"), 0, "{vendor}");
    }
    // A refusal is not argued with.
    sleep(Duration::from_secs(2)).await;
    for vendor in REFUSALS {
        assert_eq!(setup.token_calls(vendor).len(), 1, "{vendor}");
    }
    setup.ledger.healed.store(true, Ordering::Release);
    for vendor in REFUSALS {
        assert_eq!(setup.refresh(vendor).await, 202);
        let setup = &setup;
        eventually("fresh", || {
            (setup.status(vendor)["state"] == "fresh").then_some(())
        });
        assert_eq!(setup.call(vendor).await.0, 200);
    }
    setup.assert_sound(&REFUSALS);
}

const STORIES: [&str; 7] = [
    "message", "nested", "list", "detail", "summary", "wall", "outage",
];

#[tokio::test(flavor = "multi_thread")]
async fn explanations_reach_status_log_page_and_probe_without_our_secret() {
    // As such servers repeat what they were sent.
    let echoes = [
        SECRET.to_owned(),
        SECRET[..12].to_owned(),
        BASE64_STANDARD.encode(format!("me:{SECRET}")),
        hex::encode(SECRET),
        SECRET.replace('-', "%2D"),
        SECRET.to_uppercase(),
    ];
    let said = format!("Account is locked,\\u0007\\n not {}.", echoes.join(" or "));
    let page = format!(
        "<html><head><title>Request blocked</title><style>b {{}}</style></head><body><h1>By the \
         wall</h1>Incident 4711<script>document.write('{SECRET}')</script></body></html>"
    );
    let script = move |asked: Asked, _| {
        let (said, page) = (said.clone(), page.clone());
        let html = "Content-Type: text/html; charset=utf-8\r\n";
        async move {
            match asked.target.trim_start_matches('/') {
                "message" => Reply::whole("403 No", "", format!(r#"{{"message":"{said}"}}"#)),
                "nested" => Reply::whole(
                    "400 No",
                    "",
                    format!(r#"{{"error":{{"message":"{said}"}}}}"#),
                ),
                "list" => Reply::whole(
                    "401 No",
                    "",
                    format!(r#"{{"errors":[{{"message":"{said}"}}]}}"#),
                ),
                "detail" => Reply::whole("400 No", "", format!(r#"{{"detail":"{said}"}}"#)),
                "summary" => Reply::whole("401 No", "", format!(r#"{{"errorSummary":"{said}"}}"#)),
                "wall" => Reply::whole("403 Forbidden", html, page),
                "outage" => Reply::whole("503 Busy", "", "no healthy upstream\r\n"),
                other => unreachable!("{other}"),
            }
        }
    };
    let setup = Setup::start(&STORIES, "", script).await;
    let begins = |vendor: &str| match vendor {
        "wall" => "Request blocked: By the wall Incident 4711",
        "outage" => "no healthy upstream",
        _ => "Account is locked, not [masked]",
    };
    for vendor in STORIES {
        let status = setup.status(vendor);
        let told = status["last_error"].as_str().unwrap();
        assert!(told.contains(begins(vendor)), "{vendor}: {told}");
        assert!(
            told.len() < 400 && !told.contains(['\n', '\u{7}']),
            "{told}"
        );
        eventually("logged", || {
            setup.proxy.stderr().contains(begins(vendor)).then_some(())
        });
    }
    let dir = setup.dir.path().to_owned();
    let probe =
        tokio::task::spawn_blocking(move || run(&dir, &["probe", "--config", "proxy.yaml"]));
    let probe = probe.await.unwrap();
    assert_eq!(probe.code, Some(1), "{probe:?}");
    let probed = probe.stdout + &probe.stderr;
    let shown = [
        setup.proxy.admin("/").1,
        setup.proxy.admin("/status").1,
        setup.proxy.stderr(),
        probed,
    ];
    for text in shown {
        let text = text.replace(['\n', ' '], "");
        for words in ["Accountislocked", "Incident4711", "nohealthyupstream"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        for echo in &echoes {
            assert!(!text.contains(echo), "{echo}: {text}");
        }
    }
}

const TYPES: [&str; 8] = [
    "BearerToken",
    "Bearer%20",
    "N_A",
    "",
    "JWT",
    "bearer",
    "mac",
    "DPoP",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_an_odd_type_is_sent_as_bearer_unless_it_names_another_scheme() {
    let names: Vec<_> = (0..TYPES.len()).map(|n| format!("t{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let script = |asked: Asked, ledger: Arc<Ledger>| async move {
        let nth: usize = asked.target[2..].parse().unwrap();
        let token = ledger.issue(&asked, Duration::from_hours(1));
        let body = json!({
            "access_token": token,
            "token_type": TYPES[nth].replace("%20", " "),
            "expires_in": 3600,
        });
        Reply::json(body.to_string())
    };
    let setup = Setup::start(&names, "", script).await;
    for (name, kind) in names.iter().zip(TYPES) {
        let (status, _) = setup.call(name).await;
        if ["mac", "DPoP"].contains(&kind) {
            assert_eq!(status, 503, "{kind}");
            let status = setup.status(name);
            assert_eq!(status["state"], "failed");
            let said = status["last_error"].as_str().unwrap();
            assert!(
                said.contains(&format!("a token of type {kind}, where")),
                "{said}"
            );
        } else {
            assert_eq!(status, 200, "{kind}");
            let sent = setup.api.asked().pop().unwrap().bearer.unwrap();
            assert!(sent.starts_with(&format!("{name}-")), "{kind}: {sent}");
        }
    }
    setup.assert_sound(&[]);
}

/// How a refresh token is refused: status, body, and the state that follows.
const DEATHS: [(&str, &str, &str, &str); 8] = [
    (
        "d0",
        "200 OK",
        r#"{"ok":false,"error":"invalid_refresh_token"}"#,
        "reauthorize",
    ),
    (
        "d1",
        "403 No",
        r#"{"error":"unauthorized_client","error_description":"refresh_token is invalid"}"#,
        "reauthorize",
    ),
    (
        "d2",
        "400 No",
        r#"{"error":"token expired or revoked"}"#,
        "reauthorize",
    ),
    (
        "d3",
        "400 No",
        r#"{"status":"BAD_REFRESH_TOKEN","message":"missing or unknown refresh token"}"#,
        "reauthorize",
    ),
    (
        "d4",
        "401 No",
        r#"{"error":"invalid_token"}"#,
        "reauthorize",
    ),
    (
        "d5",
        "400 No",
        r#"{"error":"interaction_required"}"#,
        "reauthorize",
    ),
    ("u0", "400 No", r#"{"error":"invalid_request"}"#, "failed"),
    ("c0", "401 No", r#"{"error":"invalid_client"}"#, "failed"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_refresh_token_asks_for_a_person_in_whatever_words_it_is_refused() {
    countersign::tls::install_provider();
    let server = Server::start(|asked: Asked| async move {
        let name = asked.target.trim_start_matches('/');
        if asked.member("refresh_token").is_none() {
            let token = json!({
                "access_token": "a", "refresh_token": "refresh-token-1", "expires_in": 2,
            });
            return Reply::json(token.to_string());
        }
        let found = DEATHS.iter().find(|(vendor, ..)| *vendor == name).unwrap();
        Reply::whole(found.1, "Content-Type: application/json\r\n", found.2)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = start_consented(dir.path(), &server).await;
    for (vendor, _, body, state) in DEATHS {
        let status = || -> Value {
            let status: Value = serde_json::from_str(&proxy.admin("/status").1).unwrap();
            let vendors = status["vendors"].as_array().unwrap();
            vendors
                .iter()
                .find(|one| one["name"] == vendor)
                .unwrap()
                .clone()
        };
        eventually("told", || status()["last_error"].is_string().then_some(()));
        let status = status();
        assert_eq!(status["state"], state, "{body}: {status}");
        let said = status["last_error"].as_str().unwrap();
        let advice = said.contains(&format!("countersign authorize {vendor}"));
        assert_eq!(advice, vendor != "c0", "{said}");
        // Where one cannot know, both are named.
        assert_eq!(
            said.contains("the client is refused"),
            vendor == "u0",
            "{said}"
        );
    }
    // None of them is shown again by itself.
    sleep(Duration::from_secs(2)).await;
    for (vendor, ..) in DEATHS {
        let asked = server.asked_at(&format!("/{vendor}"));
        assert_eq!(asked.len(), 2, "{vendor}");
    }
}

/// A proxy with a vendor for each of [`DEATHS`]; a person has consented to all of them.
async fn start_consented(dir: &Path, server: &Server) -> Proxy {
    use std::fmt::Write as _;

    let mut yaml = String::from(
        "listeners: [ { bind: 127.0.0.1:0 } ]\nadmin: { bind: 127.0.0.1:0 }\n\
         drain: { delay: 0s }\nstore: { file: { dir: state } }\nvendors:\n",
    );
    for (name, ..) in DEATHS {
        let url = server.url("");
        write!(
            yaml,
            "  {name}:
    upstream: {url}
    allow_plaintext: true
    auth:
      authorization_code:
        authorize_url: {url}/authorize
        token_url: {url}/{name}
        client_id: me
        client_secret: {{ value: pw }}
        redirect_uri: https://app.example/callback
"
        )
        .unwrap();
    }
    std::fs::write(dir.join("proxy.yaml"), &yaml).unwrap();
    let dir = dir.to_owned();
    let starting = tokio::task::spawn_blocking(move || {
        for (name, ..) in DEATHS {
            consent_to(&dir, name);
        }
        Proxy::start(&dir, &yaml)
    });
    starting.await.unwrap()
}
