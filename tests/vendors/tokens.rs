//! Tokens: cold, under load, at their end, and refused by the vendor.

use std::time::{Duration, Instant};

use countersign_demo::{MockServer, echo};
use http::StatusCode;
use serde_json::json;

use super::statuses;
use crate::support::eventually;
use crate::support::front::{Answer, Front, Plan, answer, bearers, only};

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_cold_requests_cost_one_token_call() {
    let plan = Plan::new().await.vendor("certn");
    plan.mocks.certn.delay_token_calls(Duration::from_secs(2));
    let front = plan.launch();

    let answers = front.burst(200, "/certn/hr/v1/applicants/").await;

    assert_eq!(answers.len(), 200);
    for answered in answers {
        assert_eq!(answered.status, 200, "{answered:?}");
    }
    assert_eq!(front.mocks.certn.token_calls().len(), 1);
    assert_eq!(front.mocks.certn.api_calls().len(), 200);
    assert_eq!(bearers(&front.mocks.certn).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_under_load_fails_no_request() {
    let plan = Plan::new().await.vendor("certn");
    plan.mocks.certn.set_lifetime(Duration::from_secs(3));
    let front = plan.start();

    let end = tokio::time::Instant::now() + Duration::from_secs(8);
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let request = front.get("/certn/hr/v1/applicants/");
        load.spawn(async move {
            let mut statuses = Vec::new();
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            while tokio::time::Instant::now() < end {
                pace.tick().await;
                statuses.push(answer(request.try_clone().unwrap()).await.status);
            }
            statuses
        });
    }
    let statuses: Vec<u16> = load.join_all().await.into_iter().flatten().collect();

    assert!(statuses.len() > 100, "{}", statuses.len());
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    // Not by replaying either: the vendor never saw a token that was over.
    let calls = front.mocks.certn.api_calls();
    assert!(calls.iter().all(|seen| seen.status == 200));
    let renewals = front.mocks.certn.token_calls().len();
    assert!((4..=9).contains(&renewals), "{renewals}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_callers_are_told_when_to_come_back_and_it_heals_by_itself() {
    let plan = Plan::new()
        .await
        .vendor_with("certn", "    timeouts: { token_wait: 200ms }\n");
    let certn = &plan.mocks.certn;
    certn.fail_next(usize::MAX, StatusCode::SERVICE_UNAVAILABLE);
    let front = plan.start();
    let certn = &front.mocks.certn;

    let answered = front.answer("/certn/hr/v1/applicants/").await;
    assert_eq!(answered.status, 503);
    assert_eq!(answered.header("content-type"), "application/problem+json");
    assert!(
        answered
            .header("proxy-status")
            .contains("details=\"credential_unavailable\""),
        "{answered:?}"
    );
    let seconds: u64 = answered.header("retry-after").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let problem = answered.json();
    assert_eq!(problem["reason"], "credential_unavailable");
    assert_eq!(problem["vendor"], "certn");
    assert!(certn.api_calls().is_empty());

    certn.fail_next(0, StatusCode::OK);
    let recovered = async { while front.answer("/certn/hr/v1/applicants/").await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(10), recovered)
        .await
        .unwrap();
    assert!(certn.api_calls().iter().all(|seen| seen.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_held_token_serves_to_its_end_and_not_past_it() {
    let plan = Plan::new()
        .await
        .vendor_with("certn", "    timeouts: { token_wait: 100ms }\n");
    plan.mocks.certn.set_lifetime(Duration::from_secs(4));
    let before = Instant::now();
    let front = plan.start();
    let certn = &front.mocks.certn;
    let issued = Instant::now();
    certn.fail_next(usize::MAX, StatusCode::BAD_GATEWAY);

    let refused_at = loop {
        let asked = Instant::now();
        let answered = front.answer("/certn/hr/v1/applicants/").await;
        if answered.status == 200 {
            assert!(asked < issued + Duration::from_secs(4));
            continue;
        }
        assert_eq!(answered.status, 503, "{answered:?}");
        break Instant::now();
    };
    // Five per cent before the vendor's own end, and not earlier.
    assert!(refused_at > before + Duration::from_millis(3800));
    assert!(certn.token_calls().len() > 1, "renewal was tried");
    assert!(certn.api_calls().iter().all(|seen| seen.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_is_renewed_and_replayed_once_and_the_caller_sees_200() {
    let front = Plan::new().await.vendor("certn").start();
    let certn = &front.mocks.certn;
    certn.revoke_access_tokens();

    let answered = front.answer("/certn/hr/v1/applicants/").await;
    assert_eq!(answered.status, 200, "{answered:?}");
    assert_eq!(statuses(certn.api_calls()), [401, 200]);
    assert_eq!(certn.token_calls().len(), 2);
    assert_eq!(upstream_401(&front, "certn"), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_401s_at_once_cost_one_token_call() {
    let front = Plan::new().await.vendor("certn").start();
    let certn = &front.mocks.certn;
    certn.revoke_access_tokens();
    certn.delay_token_calls(Duration::from_millis(500));

    for answered in front.burst(50, "/certn/hr/v1/applicants/").await {
        assert_eq!(answered.status, 200, "{answered:?}");
    }
    assert_eq!(certn.token_calls().len(), 2);
    let refused = statuses(certn.api_calls());
    let refused = refused.iter().filter(|status| **status == 401).count();
    assert!((1..=50).contains(&refused), "{refused}");
    assert_eq!(certn.api_calls().len(), 50 + refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_20_000_bytes_is_replayed_intact() {
    let front = Plan::new().await.vendor("certn").start();
    let certn = &front.mocks.certn;
    certn.revoke_access_tokens();

    let (answered, body) = post(&front, 20_000).await;
    assert_eq!(answered.status, 201, "{answered:?}");
    assert_eq!(answered.body, body);
    let calls = certn.api_calls();
    assert_eq!(statuses(calls.clone()), [401, 201]);
    assert!(calls.iter().all(|seen| seen.body == body.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_70_000_bytes_gets_the_401_and_still_brings_a_new_token() {
    let front = Plan::new().await.vendor("certn").start();
    let certn = &front.mocks.certn;
    certn.revoke_access_tokens();

    let (answered, body) = post(&front, 70_000).await;
    assert_eq!(answered.status, 401, "{answered:?}");
    let detail = json!({"detail": "Authentication credentials were not provided."});
    assert_eq!(answered.json(), detail, "the vendor's own answer");
    assert!(answered.headers.get("proxy-status").is_none());
    assert_eq!(only(certn.api_calls()).body, body.as_bytes());
    eventually("renewed", || (certn.token_calls().len() == 2).then_some(()));
    eventually("fresh", || {
        (front.status("certn")["state"] == "fresh").then_some(())
    });
    let (again, _) = post(&front, 70_000).await;
    assert_eq!(again.status, 201, "{again:?}");
    assert_eq!(upstream_401(&front, "certn"), (0.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_credential_is_never_replayed() {
    let plan = Plan::new().await.vendor("certcenter").vendor("sectigo");
    for name in ["certcenter-token", "cert-manager"] {
        std::fs::write(plan.dir().join("secrets").join(name), "no longer right").unwrap();
    }
    let front = plan.start();

    let answered = front.answer("/certcenter/rest/v1/Limit").await;
    assert_eq!(answered.status, 401);
    assert_eq!(answered.json()["Message"], "Unauthorized");
    assert_eq!(statuses(front.mocks.certcenter.requests()), [401]);
    let answered = front.answer("/sectigo/api/ssl/v1/types").await;
    assert_eq!(answered.status, 401);
    assert_eq!(answered.json()["description"], "Unknown user");
    assert_eq!(statuses(front.mocks.cert_manager.requests()), [401]);
    assert_eq!(upstream_401(&front, "sectigo"), (0.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_403_is_never_replayed_and_renews_nothing() {
    let (front, api) = front_of_an_echo().await;

    for _ in 0..3 {
        let answered = front.answer("/api/x?status=403&body=no").await;
        assert_eq!((answered.status, answered.body.as_str()), (403, "no"));
    }
    assert_eq!(api.requests().len(), 3);
    assert_eq!(bearers(&api).len(), 1);
    // A renewal would be due a second after the last one at the latest: an operator's is the next.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(front.mocks.certn.token_calls().len(), 1);
    assert_eq!(front.refresh("api").await, 202);
    let renewed = || (front.status("api")["state"] == "fresh").then_some(());
    eventually("renewed", || {
        (front.mocks.certn.token_calls().len() == 2).then_some(())
    });
    eventually("fresh", renewed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_refuses_everything_costs_one_replay_and_few_token_calls() {
    let (front, api) = front_of_an_echo().await;

    for nth in 1..=20 {
        let answered = front.answer("/api/x?status=401&body=never").await;
        assert_eq!((answered.status, answered.body.as_str()), (401, "never"));
        assert!(api.requests().len() <= 2 * nth);
    }
    for answered in front.burst(20, "/api/x?status=401&body=never").await {
        assert_eq!((answered.status, answered.body.as_str()), (401, "never"));
    }
    assert!(api.requests().len() <= 80);
    let renewals = front.mocks.certn.token_calls().len();
    assert!((2..=3).contains(&renewals), "{renewals}");
    let (replayed, passed) = upstream_401(&front, "api");
    assert!(
        replayed >= 1.0 && (passed - 40.0).abs() < 0.5,
        "{replayed} {passed}"
    );
}

/// Vendor `api`, an echo, whose token comes from certn's token endpoint.
async fn front_of_an_echo() -> (Front, MockServer) {
    let api = echo().await.unwrap();
    let plan = Plan::new().await;
    let stanza = format!(
        "  api:
    upstream: {}
    allow_plaintext: true
    ca: ca.pem
    auth:
      client_credentials:
        token_url: {}/token/
        client_id: {}
        client_secret: {{ file: secrets/certn }}
",
        api.url(),
        plan.mocks.certn.url(),
        plan.mocks.logins.certn.id,
    );
    (plan.stanza_of(&stanza).start(), api)
}

/// One POST of so many bytes of JSON, and what it sent.
async fn post(front: &Front, size: usize) -> (Answer, String) {
    // A string, quotes included.
    let body = format!("\"{}\"", "b".repeat(size - 2));
    let request = front
        .request(reqwest::Method::POST, "/certn/hr/v1/applicants/")
        .header("Content-Type", "application/json")
        .body(body.clone());
    (answer(request).await, body)
}

/// Replayed and passed.
fn upstream_401(front: &Front, vendor: &str) -> (f64, f64) {
    let series = |action: &str| {
        front.metric(&format!(
            "countersign_upstream_401_total{{action=\"{action}\",vendor=\"{vendor}\"}}"
        ))
    };
    (series("replayed"), series("passed"))
}
