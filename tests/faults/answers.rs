//! What a token server may answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Setup;
use crate::support::script::{Asked, Reply};

/// Answers that bring no token and settle nothing.
const USELESS: [&str; 27] = [
    "empty",
    "html",
    "truncated",
    "cut",
    "wrong-types",
    "no-token",
    "blank-token",
    "unsendable",
    "array",
    "null",
    "not-utf8",
    "deep",
    "huge",
    "endless",
    "drip",
    "silence",
    "close",
    "no-content",
    "reset-content",
    "redirect",
    "redirect-307",
    "server-error",
    "busy",
    "teapot-late",
    "garbage",
    "heads",
    "continues",
];

fn useless(name: &str) -> Reply {
    let json = "Content-Type: application/json\r\n";
    let bytes = |text: &str| Reply::Bytes(text.as_bytes().to_vec());
    match name {
        "empty" => Reply::json(""),
        "html" => Reply::whole(
            "200 OK",
            "Content-Type: text/html\r\n",
            "<html>Sign in</html>",
        ),
        "truncated" => Reply::json(r#"{"access_token":"half","expires_in":36"#),
        "cut" => bytes("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"access_token\":\"half\""),
        "wrong-types" => Reply::json(r#"{"access_token":7,"expires_in":[]}"#),
        "no-token" => Reply::json(r#"{"token":"x","expires_in":3600}"#),
        "blank-token" => Reply::json(r#"{"access_token":" ","expires_in":3600}"#),
        "unsendable" => Reply::json(r#"{"access_token":"a\nb: c","expires_in":3600}"#),
        "array" => Reply::json("[]"),
        "null" => Reply::json("null"),
        "not-utf8" => Reply::whole("200 OK", json, b"{\"access_token\":\"\xff\xfe\"}"),
        "deep" => Reply::json("[".repeat(100_000)),
        "huge" => Reply::whole("200 OK", json, vec![b' '; 10 << 20]),
        "endless" => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
            Reply::Bytes((head.to_owned() + &chunk.repeat(4000)).into_bytes())
        }
        "drip" => Reply::Drip(
            b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n{\"access_token\"".to_vec(),
            Duration::from_millis(100),
        ),
        "silence" => Reply::Silence,
        "close" => Reply::Close,
        "no-content" => bytes("HTTP/1.1 204 No Content\r\n\r\n"),
        "reset-content" => bytes("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"),
        "redirect" => Reply::whole("302 Found", "Location: /elsewhere\r\n", ""),
        "redirect-307" => Reply::whole("307 Temporary Redirect", "Location: /elsewhere\r\n", ""),
        "server-error" => Reply::whole("500 Oops", json, r#"{"access_token":"no"}"#),
        "busy" => Reply::whole("503 Busy", "Retry-After: soon\r\n", ""),
        "teapot-late" => Reply::whole("425 Too Early", "Retry-After: -5\r\n", ""),
        "garbage" => Reply::Bytes((0..=255).collect()),
        "heads" => {
            let field = format!("X-Y: {}\r\n", "y".repeat(1000));
            Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{}\r\n{{}}", field.repeat(2000)).into_bytes())
        }
        "continues" => bytes(&"HTTP/1.1 100 Continue\r\n\r\n".repeat(5000)),
        other => unreachable!("{other}"),
    }
}

/// Each vendor gets a token of three seconds, then nothing but useless answers of one kind, then
/// good ones again.
#[tokio::test(flavor = "multi_thread")]
async fn useless_answers_cost_no_valid_token_bring_no_storm_and_are_got_over() {
    let healthy = Arc::new(AtomicBool::new(true));
    let health = healthy.clone();
    let script = move |asked: Asked, ledger: Arc<super::Ledger>| {
        let healthy = health.load(Ordering::Acquire);
        async move {
            match asked.target.trim_start_matches('/') {
                _ if healthy => ledger.grant(&asked, 3),
                name => useless(name),
            }
        }
    };
    let setup = Setup::start(&USELESS, "request_timeout: 1s", script).await;
    let setup = Arc::new(setup);
    all(&setup, "served", Duration::from_secs(10), 200).await;
    healthy.store(false, Ordering::Release);
    let sick = Instant::now();

    let mut calling = JoinSet::new();
    for vendor in USELESS {
        let setup = setup.clone();
        calling.spawn(async move {
            while sick.elapsed() < Duration::from_secs(6) {
                let asked = Instant::now();
                let (status, reason) = setup.call(vendor).await;
                let ends = end_of_newest(&setup, vendor);
                if status != 200 {
                    assert_eq!((status, reason.as_str()), (503, "credential_unavailable"));
                    // A twentieth before its end a token is no longer used.
                    let early = ends.saturating_duration_since(asked);
                    assert!(
                        early < Duration::from_millis(200),
                        "{vendor}: {early:?} early"
                    );
                }
                sleep(Duration::from_millis(150)).await;
            }
        });
    }
    calling.join_all().await;

    for vendor in USELESS {
        let calls = setup.token_calls(vendor);
        let since = calls.iter().filter(|at| **at > sick).count();
        assert!((2..=6).contains(&since), "{vendor}: {since}");
        let status = setup.status(vendor);
        let state = status["state"].as_str().unwrap();
        assert_eq!(state, "expired", "{vendor}: {status}");
        assert!(status["last_error"].is_string(), "{vendor}: {status}");
        assert!(setup.attempts(vendor, "temporary") >= 2, "{vendor}");
        assert_eq!(setup.attempts(vendor, "rejected"), 0, "{vendor}");
    }
    assert!(setup.tokens.asked_at("/elsewhere").is_empty());

    // After at most six failures the next attempt is at most sixteen seconds away.
    healthy.store(true, Ordering::Release);
    all(&setup, "served again", Duration::from_secs(18), 200).await;
    setup.assert_sound(&USELESS);
}

/// Waits until each vendor's callers get this status, all within `limit`.
async fn all(setup: &Arc<Setup>, what: &str, limit: Duration, wanted: u16) {
    let begun = Instant::now();
    let mut waiting = JoinSet::new();
    for vendor in USELESS {
        let setup = setup.clone();
        waiting.spawn(async move {
            while setup.call(vendor).await.0 != wanted {
                assert!(
                    begun.elapsed() < limit,
                    "{vendor}: {}",
                    setup.status(vendor)
                );
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    waiting.join_all().await;
    println!("{what} after {:?}", begun.elapsed());
}

/// When the newest token of `vendor` ends.
fn end_of_newest(setup: &Setup, vendor: &str) -> Instant {
    let issued = setup.ledger.issued.lock().unwrap();
    let mine = format!("{vendor}-");
    let ends = issued
        .iter()
        .filter(|(token, _)| token.starts_with(&mine))
        .map(|(_, (at, lifetime))| *at + *lifetime);
    ends.max().unwrap()
}
