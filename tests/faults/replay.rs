//! A vendor's 401: reject, renew, replay once.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Ledger, Setup};
use crate::support::script::{Asked, Reply};
use crate::support::{eventually, exchange, status_of};

async fn tokens(asked: Asked, ledger: Arc<Ledger>) -> Reply {
    ledger.grant(&asked, 3600)
}

/// Answers with the body's length, and 401 to tokens that were revoked.
async fn api(asked: Asked, ledger: Arc<Ledger>) -> Reply {
    if ledger.accepts(&asked) {
        Reply::whole("200 OK", "", asked.body.len().to_string())
    } else {
        Reply::whole("401 No", "", "the vendor's own words")
    }
}

/// What pingora buffers.
const MOST: usize = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_exactly_64_kib_are_replayed_whatever_the_method_and_a_byte_more_is_not() {
    // Renewals that 401s ask for are ten seconds apart, so each case has a vendor of its own.
    let methods = ["POST", "PUT", "PATCH", "DELETE", "GET"];
    let mut cases = Vec::new();
    for method in methods {
        for (framing, size) in [
            ("length", 0),
            ("length", MOST),
            ("length", MOST + 1),
            ("chunked", MOST),
            ("chunked", MOST + 1),
        ] {
            let name = format!("{}-{framing}-{size}", method.to_lowercase());
            cases.push((name, method, framing, size));
        }
    }
    let names: Vec<&str> = cases.iter().map(|(name, ..)| name.as_str()).collect();
    let setup = Setup::start_with(&names, "", tokens, api).await;
    // Older than the second that lies between any two token requests.
    sleep(Duration::from_millis(1100)).await;
    setup.ledger.revoke_all();

    let mut calling = JoinSet::new();
    for (name, method, framing, size) in cases.clone() {
        let text: String = ('a'..='z').cycle().take(size).collect();
        let mut request =
            format!("{method} /{name}/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if framing == "length" {
            write!(request, "Content-Length: {size}\r\n\r\n{text}").unwrap();
        } else {
            request += "Transfer-Encoding: chunked\r\n\r\n";
            for piece in text.as_bytes().chunks(1000) {
                let piece = std::str::from_utf8(piece).unwrap();
                write!(request, "{:x}\r\n{piece}\r\n", piece.len()).unwrap();
            }
            request += "0\r\n\r\n";
        }
        let proxy = setup.proxy.data;
        calling.spawn_blocking(move || {
            let answer = exchange(proxy, request.as_bytes());
            let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
            (name, status_of(&answer), body.to_owned())
        });
    }
    let mut answers = calling.join_all().await;
    answers.sort();

    for (name, status, body) in answers {
        let (.., size) = *cases.iter().find(|case| case.0 == name).unwrap();
        let arrived: Vec<_> = setup
            .api
            .asked()
            .into_iter()
            .filter(|asked| {
                asked
                    .bearer
                    .as_ref()
                    .unwrap()
                    .starts_with(&format!("{name}-"))
            })
            .map(|asked| asked.body)
            .collect();
        let wanted: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
        assert!(arrived.iter().all(|body| *body == wanted), "{name}");
        if size <= MOST {
            assert_eq!((status, body), (200, size.to_string()), "{name}");
            assert_eq!(arrived.len(), 2, "{name}");
            assert_eq!(setup.replayed_and_passed(&name), (1, 0), "{name}");
        } else {
            assert_eq!(
                (status, body.as_str()),
                (401, "the vendor's own words"),
                "{name}"
            );
            assert_eq!(arrived.len(), 1, "{name}");
            assert_eq!(setup.replayed_and_passed(&name), (0, 1), "{name}");
        }
        // Either way there is a new token.
        eventually("renewed", || {
            (setup.token_calls(&name).len() == 2).then_some(())
        });
    }
    setup.assert_sound(&names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_401_for_an_old_token_leaves_the_new_one_alone() {
    let slow = |asked: Asked, ledger: Arc<Ledger>| async move {
        if asked.bearer.as_deref() == Some("v-1") {
            sleep(Duration::from_secs(2)).await;
        }
        api(asked, ledger).await
    };
    let setup = Arc::new(Setup::start_with(&["v"], "", tokens, slow).await);
    sleep(Duration::from_millis(1100)).await;

    let mut late = JoinSet::new();
    for _ in 0..20 {
        let setup = setup.clone();
        late.spawn(async move { setup.call("v").await.0 });
    }
    eventually("under way", || {
        (setup.api.asked().len() == 20).then_some(())
    });
    setup.ledger.revoke_all();
    assert_eq!(setup.refresh("v").await, 202);
    eventually("renewed", || {
        (setup.status("v")["state"] == "fresh").then_some(())
    });
    eventually("renewed", || {
        (setup.token_calls("v").len() == 2).then_some(())
    });
    while setup.call("v").await.0 != 200 {}

    assert_eq!(late.join_all().await, [200; 20]);
    // Had one of them asked for a renewal, it would have come by now.
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(setup.token_calls("v").len(), 2);
    assert_eq!(setup.replayed_and_passed("v"), (20, 0));
    setup.assert_sound(&["v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_takes_no_token_is_asked_twice_at_most_and_costs_a_fetch_per_ten_seconds() {
    let never = |_, _| async { Reply::whole("401 No", "", "never") };
    let setup = Setup::start_with(&["v"], "", tokens, never).await;
    let begun = Instant::now();
    let mut calls = 0;
    while begun.elapsed() < Duration::from_secs(13) {
        assert_eq!(setup.call("v").await.0, 401);
        calls += 1;
        sleep(Duration::from_millis(20)).await;
    }

    let fetches = setup.token_calls("v");
    assert_eq!(fetches.len(), 3, "{fetches:?}");
    assert!(fetches[2] - fetches[1] > Duration::from_millis(9_900));
    // Only whoever met a 401 shortly before a new token came was sent again.
    let (replayed, passed) = setup.replayed_and_passed("v");
    assert!(replayed <= 2 && passed == calls, "{replayed} {passed}");
    let asked = i64::try_from(setup.api.asked().len()).unwrap();
    assert_eq!(asked, calls + replayed);
    setup.assert_sound(&["v"]);
}
