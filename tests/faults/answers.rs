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

/// A way to state a lifetime, as fields and as members, and what it is taken for: seconds.
fn stated(name: &str) -> (String, String, i64) {
    let now = std::time::SystemTime::now();
    let date = |shift: i64| {
        let at = epoch(now) + shift;
        let at = std::time::UNIX_EPOCH + Duration::from_secs(at.cast_unsigned());
        format!("Date: {}\r\n", httpdate::fmt_http_date(at))
    };
    let member = |text: &str| format!(",{text}");
    let at = |shift: i64| format!(",\"expires\":{}", epoch(now) + shift);
    let (date, members, wanted) = match name {
        "missing" => (date(0), String::new(), 40),
        "null" => (date(0), member("\"expires_in\":null"), 40),
        "word" => (date(0), member("\"expires_in\":\"soon\""), 40),
        "list" => (date(0), member("\"expires_in\":[3600]"), 40),
        "text" => (date(0), member("\"expires_in\":\"3600\""), 3600),
        "fraction" => (date(0), member("\"expires_in\":3600.5"), 3600),
        "exponent" => (date(0), member("\"expires_in\":3.6e3"), 3600),
        "huge" => (date(0), member("\"expires_in\":1e12"), 365 * 86_400),
        "absolute" => (date(0), at(600), 600),
        "absolute-text" => (
            date(0),
            member(&format!("\"expires\":\"{}\"", epoch(now) + 600)),
            600,
        ),
        "server-ahead" => (date(3600), at(3600 + 600), 600),
        "server-behind" => (date(-86_400), at(-86_400 + 600), 600),
        "no-date" => (String::new(), at(600), 600),
        "bad-date" => ("Date: yesterday\r\n".to_owned(), at(600), 600),
        // The relative one wins: it depends on no clock.
        "both" => (date(0), member("\"expires_in\":600,\"expires\":1"), 600),
        "second" => (date(0), member("\"expires_in\":1"), 1),
        "zero" => (date(0), member("\"expires_in\":0"), 0),
        "negative" => (date(0), member("\"expires_in\":-1"), 0),
        "past" => (date(0), at(-10), 0),
        "not-a-number" => (date(0), member("\"expires_in\":\"NaN\""), 40),
        other => unreachable!("{other}"),
    };
    (date, members, wanted)
}

fn epoch(at: std::time::SystemTime) -> i64 {
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs().cast_signed()
}

const STATED: [&str; 20] = [
    "missing",
    "null",
    "word",
    "list",
    "text",
    "fraction",
    "exponent",
    "huge",
    "absolute",
    "absolute-text",
    "server-ahead",
    "server-behind",
    "no-date",
    "bad-date",
    "both",
    "second",
    "zero",
    "negative",
    "past",
    "not-a-number",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_stating_a_lifetime_is_taken_for_what_it_means() {
    let script = |asked: Asked, ledger: Arc<super::Ledger>| async move {
        let (date, members, seconds) = stated(asked.target.trim_start_matches('/'));
        let token = ledger.issue(&asked, Duration::from_secs(seconds.cast_unsigned()));
        let body = format!(r#"{{"access_token":"{token}"{members}}}"#);
        Reply::whole("200 OK", &date, body)
    };
    let setup = Setup::start(&STATED, "default_lifetime: 40s", script).await;
    let begun = Instant::now();
    let mut second_served = 0;
    while begun.elapsed() < Duration::from_secs(5) {
        for vendor in STATED {
            let (status, _) = setup.call(vendor).await;
            match stated(vendor).2 {
                0 => assert_eq!(status, 503, "{vendor}"),
                // Usable for 950 ms, renewed every second.
                1 => second_served += usize::from(status == 200),
                _ => assert_eq!(status, 200, "{vendor}"),
            }
        }
    }
    assert!(second_served > 10, "{second_served}");

    for vendor in STATED {
        let (.., wanted) = stated(vendor);
        let status = setup.status(vendor);
        let calls = setup.token_calls(vendor).len();
        if wanted <= 1 {
            assert!((2..=7).contains(&calls), "{vendor}: {calls}");
        } else {
            assert_eq!(calls, 1, "{vendor}");
            let ends = status["expires_at"].as_str().unwrap();
            let ends = epoch(humantime::parse_rfc3339(ends).unwrap());
            let left = ends - epoch(std::time::SystemTime::now());
            assert!((wanted - 8..=wanted).contains(&left), "{vendor}: {left}");
            let gauge = setup.gauge("credential_expiry_timestamp_seconds", vendor);
            assert!((gauge - ends).abs() <= 1, "{vendor}: {gauge} {ends}");
        }
        let state = if wanted == 0 { "failed" } else { "fresh" };
        if wanted != 1 {
            assert_eq!(status["state"], state, "{vendor}: {status}");
        }
    }
    setup.assert_sound(&STATED);
}

const WISHES: [&str; 6] = ["seconds", "date", "zero", "too-long", "refused", "unlisted"];

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_be_left_alone_is_granted_and_a_refusal_is_not_argued_with() {
    let script = |asked: Asked, ledger: Arc<super::Ledger>| async move {
        let healed = ledger.healed.load(Ordering::Acquire);
        let later = |wish: &str| Reply::whole("429 Busy", &format!("Retry-After: {wish}\r\n"), "");
        match asked.target.trim_start_matches('/') {
            _ if healed => ledger.grant(&asked, 3600),
            "seconds" => later("3"),
            "date" => {
                // By the server's clock, which is an hour slow.
                let clock = std::time::SystemTime::now() - Duration::from_hours(1);
                let (now, then) = (clock, clock + Duration::from_secs(4));
                let fields = format!(
                    "Date: {}\r\nRetry-After: {}\r\n",
                    httpdate::fmt_http_date(now),
                    httpdate::fmt_http_date(then)
                );
                Reply::whole("503 Busy", &fields, "")
            }
            "zero" => later("0"),
            "too-long" => later("99999999999"),
            "refused" => Reply::whole(
                "401 No",
                "",
                format!(
                    r#"{{"error":"invalid_client","error_description":"{}"}}"#,
                    super::SECRET
                ),
            ),
            "unlisted" => Reply::whole("404 Not Found", "", "<html>"),
            other => unreachable!("{other}"),
        }
    };
    let setup = Setup::start(&WISHES, "request_timeout: 1s", script).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        for vendor in WISHES {
            let asked = Instant::now();
            let (status, reason) = setup.call(vendor).await;
            assert_eq!((status, reason.as_str()), (503, "credential_unavailable"));
            // Nobody waits for what cannot come in time.
            assert!(asked.elapsed() < Duration::from_millis(600), "{vendor}");
        }
        sleep(Duration::from_millis(50)).await;
    }

    let pauses = |vendor| -> Vec<u128> {
        let calls = setup.token_calls(vendor);
        let pauses = calls.windows(2).map(|two| (two[1] - two[0]).as_millis());
        pauses.collect()
    };
    let near = |pauses: &[u128], low, high| pauses.iter().all(|p| (low..high).contains(p));
    let (seconds, date, zero) = (pauses("seconds"), pauses("date"), pauses("zero"));
    assert!(
        seconds.len() == 2 && near(&seconds, 2950, 3400),
        "{seconds:?}"
    );
    // A date has no fractions.
    assert!(date.len() == 1 && near(&date, 2950, 4400), "{date:?}");
    assert!(
        (5..=7).contains(&zero.len()) && near(&zero, 900, 1400),
        "{zero:?}"
    );
    for vendor in ["too-long", "refused", "unlisted"] {
        assert_eq!(setup.token_calls(vendor).len(), 1, "{vendor}");
    }
    for vendor in ["refused", "unlisted"] {
        let status = setup.status(vendor);
        assert_eq!(status["state"], "failed", "{status}");
        assert!(!status.to_string().contains(super::SECRET));
        assert_eq!(setup.attempts(vendor, "rejected"), 1);
    }

    // An operator ends any wait.
    setup.ledger.healed.store(true, Ordering::Release);
    for vendor in WISHES {
        assert_eq!(setup.refresh(vendor).await, 202);
    }
    for vendor in WISHES {
        let begun = Instant::now();
        while setup.call(vendor).await.0 != 200 {
            assert!(begun.elapsed() < Duration::from_secs(5), "{vendor}");
        }
        assert_eq!(setup.status(vendor)["state"], "fresh");
        assert!(setup.status(vendor)["last_error"].is_null());
    }
    setup.assert_sound(&WISHES);
}
