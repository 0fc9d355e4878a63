//! Every login of every vendor, seen from the vendor: the real binary in front of stand-ins that
//! refuse a wrong login as the real ones do and keep every byte they are sent.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign::demo::{Seen, Stand, echo};
use countersign::tls::Roots;
use http::StatusCode;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::eventually;
use crate::support::front::{Answer, Front, Plan, answer, bearers, login, only};

// --- One row of the vendor table each. ---

#[tokio::test(flavor = "multi_thread")]
async fn certcenter_sees_the_static_token_with_its_suffix() {
    let front = Plan::new().await.vendor("certcenter").start();
    let answered = front.answer("/certcenter/rest/v1/Limit").await;

    let token = &front.stands.logins.certcenter_token;
    assert!(token.ends_with(".oauth2.certcenter.com"));
    let seen = only(front.stands.certcenter.requests());
    assert_eq!(login(&seen), [pair("Authorization", &bearer(token))]);
    assert_eq!(answered.status, 200);
    let limit = json!({"LimitInfo": {"Used": 2182.5, "Limit": 50000.0}, "success": true});
    assert_eq!(answered.json(), limit);
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn certcenter_gives_a_token_for_one_json_object() {
    let front = Plan::new().await.vendor("certcenter-oauth").start();
    let answered = front.answer("/certcenter-oauth/rest/v1/Limit").await;

    let client = &front.stands.logins.certcenter;
    let token = only(front.stands.certcenter.token_calls());
    assert_eq!(request_line(&token), "POST /oauth2/token");
    assert!(token.is("application/json"));
    let wanted = json!({
        "grant_type": "client_credentials",
        "client_id": client.id,
        "client_secret": client.secret,
        "scope": "order",
    });
    assert_eq!(token.json(), wanted);
    assert_eq!(token.field("authorization"), None);
    let seen = only(front.stands.certcenter.api_calls());
    let held = issued(&seen);
    assert!(held.ends_with(".oauth2.certcenter.com"));
    assert_eq!(login(&seen), [pair("Authorization", &bearer(&held))]);
    assert_eq!(
        (answered.status, &answered.json()["success"]),
        (200, &json!(true))
    );
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn sectigo_gives_a_token_for_the_secret_in_the_form_body() {
    let front = Plan::new().await.vendor("sectigo-oauth").start();
    let answered = front.answer("/sectigo-oauth/api/ssl/v1/types").await;

    let client = &front.stands.logins.sectigo;
    let token = only(front.stands.sectigo_auth.requests());
    let path = "/auth/realms/apiclients/protocol/openid-connect/token";
    assert_eq!(request_line(&token), format!("POST {path}"));
    let wanted = [
        pair("client_id", &client.id),
        pair("client_secret", &client.secret),
        pair("grant_type", "client_credentials"),
    ];
    assert_eq!(form(&token), wanted);
    assert_eq!(token.field("authorization"), None);
    let seen = only(front.stands.sectigo.requests());
    assert_eq!(
        login(&seen),
        [pair("Authorization", &bearer(&issued(&seen)))]
    );
    assert_eq!(answered.status, 200);
    assert_eq!(answered.json(), ssl_types());
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn sectigo_sees_its_three_headers_spelled_as_documented() {
    let front = Plan::new().await.vendor("sectigo").start();
    let answered = front.answer("/sectigo/api/ssl/v1/types").await;

    let logins = &front.stands.logins;
    let seen = only(front.stands.cert_manager.requests());
    let wanted = [
        pair("login", &logins.cert_manager_login),
        pair("password", &logins.cert_manager_password),
        pair("customerUri", &logins.cert_manager_customer),
    ];
    assert_eq!(login(&seen), wanted);
    assert_eq!(answered.status, 200);
    assert_eq!(answered.json(), ssl_types());
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn sectigo_private_sees_two_headers_the_certificate_and_no_password() {
    let front = Plan::new().await.vendor("sectigo-private").start();
    let answered = front
        .answer("/sectigo-private/private/api/ssl/v1/types")
        .await;

    let logins = &front.stands.logins;
    let seen = only(front.stands.cert_manager.requests());
    let wanted = [
        pair("login", &logins.cert_manager_certificate_login),
        pair("customerUri", &logins.cert_manager_customer),
        pair("certificate", "CN=demo-sectigo"),
    ];
    assert_eq!(login(&seen), wanted);
    assert!(seen.client_cert.as_ref().unwrap().approved);
    assert_eq!(answered.status, 200);
    assert_eq!(answered.json(), ssl_types());
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn certn_gives_a_token_for_basic_at_the_path_with_the_slash() {
    let front = Plan::new().await.vendor("certn").start();
    let answered = front.answer("/certn/hr/v1/applicants/?page=1").await;

    let token = only(front.stands.certn.token_calls());
    assert_eq!(request_line(&token), "POST /token/");
    assert_eq!(form(&token), [pair("grant_type", "client_credentials")]);
    let basic = token.field("authorization").unwrap();
    assert_eq!(login(&token), [pair("authorization", basic)]);
    let seen = only(front.stands.certn.api_calls());
    assert_eq!(request_line(&seen), "GET /hr/v1/applicants/?page=1");
    assert_eq!(
        login(&seen),
        [pair("Authorization", &bearer(&issued(&seen)))]
    );
    assert_eq!(answered.status, 200);
    let page = json!({"count": 0, "next": null, "previous": null, "results": []});
    assert_eq!(answered.json(), page);
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn venafi_gives_a_token_for_the_certificate_alone() {
    let front = Plan::new().await.vendor("venafi").start();
    let answered = front.answer("/venafi/vedsdk/certificates/").await;

    let token = only(front.stands.venafi.token_calls());
    assert_eq!(request_line(&token), "POST /vedauth/authorize/certificate");
    let wanted = json!({
        "client_id": front.stands.logins.venafi_client_id,
        "scope": "certificate:discover,manage",
    });
    assert_eq!(token.json(), wanted);
    let cert = token.client_cert.as_ref().unwrap();
    assert_eq!(
        (cert.subject.as_str(), cert.approved),
        ("CN=demo-venafi", true)
    );
    // The certificate logs in; the calls carry the token and no certificate.
    let seen = only(front.stands.venafi.api_calls());
    assert_eq!(
        login(&seen),
        [pair("Authorization", &bearer(&issued(&seen)))]
    );
    assert_eq!(
        (answered.status, &answered.json()["TotalCount"]),
        (200, &json!(0))
    );
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn venafi_gives_a_token_for_user_name_and_password() {
    let front = Plan::new().await.vendor("venafi-password").start();
    let answered = front.answer("/venafi-password/vedsdk/certificates/").await;

    let logins = &front.stands.logins;
    let token = only(front.stands.venafi.token_calls());
    assert_eq!(request_line(&token), "POST /vedauth/authorize/oauth");
    let wanted = json!({
        "client_id": logins.venafi_client_id,
        "username": logins.venafi_username,
        "password": logins.venafi_password,
        "scope": "certificate:discover,manage",
    });
    assert_eq!(token.json(), wanted);
    assert_eq!(token.client_cert, None);
    let seen = only(front.stands.venafi.api_calls());
    assert_eq!(
        login(&seen),
        [pair("Authorization", &bearer(&issued(&seen)))]
    );
    assert_eq!(
        (answered.status, &answered.json()["TotalCount"]),
        (200, &json!(0))
    );
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn venafi_is_refreshed_with_one_time_tokens_until_its_grant_ends_and_then_asked_anew() {
    let plan = Plan::new().await.vendor("venafi");
    // Old versions say `expires` only, and the answer's Date is what it counts from.
    plan.stands.venafi.omit_expires_in();
    plan.stands.venafi.set_lifetime(Duration::from_secs(3));
    plan.stands
        .venafi
        .set_grant_lifetime(Duration::from_secs(5));
    let front = plan.start();
    let venafi = &front.stands.venafi;

    let calls = || -> Vec<String> {
        let calls = venafi.token_calls();
        let answered = calls.iter().filter(|seen| seen.status != 0);
        let last = |seen: &Seen| seen.path().rsplit('/').next().unwrap().to_owned();
        answered.map(last).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(15);
    while calls().iter().filter(|call| *call == "certificate").count() < 2 {
        assert!(Instant::now() < deadline, "{:?}", calls());
        // Refreshing ends the old token at once; callers never notice.
        let answered = front.answer("/venafi/vedsdk/certificates/").await;
        assert_eq!(answered.status, 200, "{answered:?}");
    }
    let calls = calls();
    assert!(calls.len() >= 3, "{calls:?}");
    assert!(
        calls[1..calls.len() - 1].iter().all(|call| call == "token"),
        "{calls:?}"
    );
    let refreshed: Vec<Value> = venafi
        .token_calls()
        .iter()
        .filter(|seen| seen.path().ends_with("/token"))
        .map(Seen::json)
        .collect();
    for (nth, body) in refreshed.iter().enumerate() {
        let names: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(names, ["client_id", "refresh_token"]);
        assert!(
            !refreshed[..nth].contains(body),
            "a refresh token was used twice"
        );
    }
    assert!(venafi.token_calls().iter().all(|seen| seen.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_vendors_behind_one_proxy_each_see_their_own_login_only() {
    let names = [
        ("certcenter", "/rest/v1/Limit"),
        ("certcenter-oauth", "/rest/v1/Limit"),
        ("sectigo-oauth", "/api/ssl/v1/types"),
        ("sectigo", "/api/ssl/v1/types"),
        ("sectigo-private", "/private/api/ssl/v1/types"),
        ("certn", "/hr/v1/applicants/"),
        ("venafi", "/vedsdk/certificates/"),
        ("venafi-password", "/vedsdk/certificates/"),
    ];
    let mut plan = Plan::new().await;
    for (name, _) in names {
        plan = plan.vendor(name);
    }
    let front = plan.start();
    let mut asking = tokio::task::JoinSet::new();
    for round in 0..40 {
        let (name, path) = names[round % names.len()];
        for _ in 0..5 {
            asking.spawn(answer(front.get(&format!("/{name}{path}"))));
        }
    }
    for answered in asking.join_all().await {
        assert_eq!(answered.status, 200, "{answered:?}");
    }

    let stands = &front.stands;
    let logins = &stands.logins;
    // Two credentials of one vendor each, never a third.
    assert_eq!(bearers(&stands.certcenter).len(), 2);
    assert_eq!(bearers(&stands.venafi).len(), 2);
    for (stand, others) in [
        (&stands.sectigo, &stands.certn),
        (&stands.certn, &stands.sectigo),
    ] {
        let [token] = bearers(stand).try_into().unwrap();
        assert!(!others.has_read(&token));
    }
    for seen in stands.cert_manager.requests() {
        let private = seen.path().starts_with("/private/");
        let names: Vec<String> = login(&seen).into_iter().map(|(name, _)| name).collect();
        let wanted: &[&str] = if private {
            &["login", "customerUri", "certificate"]
        } else {
            &["login", "password", "customerUri"]
        };
        assert_eq!(names, wanted);
    }
    for (secret, owner) in [
        (&logins.certcenter_token, &stands.certcenter),
        (&logins.certcenter.secret, &stands.certcenter),
        (&logins.sectigo.secret, &stands.sectigo_auth),
        (&logins.cert_manager_password, &stands.cert_manager),
        (&logins.certn.secret, &stands.certn),
        (&logins.venafi_password, &stands.venafi),
    ] {
        for stand in stands.all() {
            // The first characters are the same in every encoding.
            let has = stand.has_read(&secret[..32]);
            assert!(
                !has || stand.address() == owner.address(),
                "{}",
                stand.url()
            );
        }
    }
    front.assert_nothing_of_the_callers_arrived();
}

// --- Tokens: cold, renewed, refused. ---

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_cold_requests_cost_one_token_call() {
    let plan = Plan::new().await.vendor("certn");
    plan.stands.certn.delay(Duration::from_secs(2));
    let front = plan.launch();

    let answers = front.burst(200, "/certn/hr/v1/applicants/").await;

    assert_eq!(answers.len(), 200);
    for answered in answers {
        assert_eq!(answered.status, 200, "{answered:?}");
    }
    assert_eq!(front.stands.certn.token_calls().len(), 1);
    assert_eq!(front.stands.certn.api_calls().len(), 200);
    assert_eq!(bearers(&front.stands.certn).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_under_load_fails_no_request() {
    let plan = Plan::new().await.vendor("certn");
    plan.stands.certn.set_lifetime(Duration::from_secs(3));
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
    let calls = front.stands.certn.api_calls();
    assert!(calls.iter().all(|seen| seen.status == 200));
    let renewals = front.stands.certn.token_calls().len();
    assert!((4..=9).contains(&renewals), "{renewals}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_callers_are_told_when_to_come_back_and_it_heals_by_itself() {
    let plan = Plan::new()
        .await
        .vendor_with("certn", "    timeouts: { token_wait: 200ms }\n");
    let certn = &plan.stands.certn;
    certn.fail_next(usize::MAX, StatusCode::SERVICE_UNAVAILABLE);
    let front = plan.start();
    let certn = &front.stands.certn;

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
    plan.stands.certn.set_lifetime(Duration::from_secs(4));
    let before = Instant::now();
    let front = plan.start();
    let certn = &front.stands.certn;
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
    let certn = &front.stands.certn;
    certn.revoke_all();

    let answered = front.answer("/certn/hr/v1/applicants/").await;
    assert_eq!(answered.status, 200, "{answered:?}");
    assert_eq!(statuses(certn.api_calls()), [401, 200]);
    assert_eq!(certn.token_calls().len(), 2);
    assert_eq!(upstream_401(&front, "certn"), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_401s_at_once_cost_one_token_call() {
    let front = Plan::new().await.vendor("certn").start();
    let certn = &front.stands.certn;
    certn.revoke_all();
    certn.delay(Duration::from_millis(500));

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
    let certn = &front.stands.certn;
    certn.revoke_all();

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
    let certn = &front.stands.certn;
    certn.revoke_all();

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
    assert_eq!(statuses(front.stands.certcenter.requests()), [401]);
    let answered = front.answer("/sectigo/api/ssl/v1/types").await;
    assert_eq!(answered.status, 401);
    assert_eq!(answered.json()["description"], "Unknown user");
    assert_eq!(statuses(front.stands.cert_manager.requests()), [401]);
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
    assert_eq!(front.stands.certn.token_calls().len(), 1);
    assert_eq!(front.refresh("api").await, 202);
    let renewed = || (front.status("api")["state"] == "fresh").then_some(());
    eventually("renewed", || {
        (front.stands.certn.token_calls().len() == 2).then_some(())
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
    let renewals = front.stands.certn.token_calls().len();
    assert!((2..=3).contains(&renewals), "{renewals}");
    let (replayed, passed) = upstream_401(&front, "api");
    assert!(
        replayed >= 1.0 && (passed - 40.0).abs() < 0.5,
        "{replayed} {passed}"
    );
}

// --- What must not happen. ---

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_login_path_reaches_a_vendor() {
    let mut plan = Plan::new().await;
    for (name, _) in REFUSED {
        let stanza = match name {
            "certn-demo" => plan
                .stanza("certn")
                .replace("preset: certn\n", "preset: certn-demo\n")
                .replace("  certn:\n", "  certn-demo:\n"),
            name => plan.stanza(name),
        };
        plan = plan.stanza_of(&stanza);
    }
    let front = plan.start();
    let before: Vec<usize> = requests(&front);

    for (name, paths) in REFUSED {
        for path in paths {
            for spelling in spellings(path, name.starts_with("venafi")) {
                for method in [reqwest::Method::GET, reqwest::Method::POST] {
                    let target = format!("/{name}{spelling}");
                    let answered = answer(front.request(method, &target)).await;
                    assert_eq!(answered.status, 403, "{target}: {answered:?}");
                    assert_eq!(answered.json()["reason"], "refused_path", "{target}");
                }
            }
        }
    }
    assert_eq!(requests(&front), before, "a vendor was asked");

    // What the rules except passes.
    let verify = front.answer("/venafi/vedauth/authorize/verify").await;
    assert_eq!(verify.status, 200, "{verify:?}");
    let posted = front.request(reqwest::Method::POST, "/venafi/vedauth/authorize/verify");
    assert_eq!(answer(posted).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_path_given_in_the_file_is_refused_without_any_preset() {
    let plan = Plan::new().await;
    let url = plan.stands.certn.url();
    let stanza = plan
        .stanza("certn")
        .replace("    preset: certn\n", "")
        .replace("  certn:\n", "  own:\n");
    assert!(!stanza.contains("preset") && stanza.contains(&url));
    let front = plan.stanza_of(&stanza).start();
    let before = requests(&front);

    for spelling in spellings("/token/", false) {
        let target = format!("/own{spelling}");
        let answered = front.answer(&target).await;
        assert_eq!(
            answered.json()["reason"],
            "refused_path",
            "{target}: {answered:?}"
        );
    }
    assert_eq!(requests(&front), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_foreign_certificate_is_told_nothing() {
    let plan = Plan::new().await;
    let mut wrong = String::new();
    for name in ["sectigo", "sectigo-private", "certn"] {
        // A CA, but not the one that signed the servers' certificates.
        wrong += &plan.stanza(name).replace("ca: ca.pem", "ca: client-ca.pem");
    }
    let front = plan.stanza_of(&wrong).start();

    for target in [
        "/sectigo/api/ssl/v1/types",
        "/sectigo-private/private/api/ssl/v1/types",
    ] {
        let answered = front.answer(target).await;
        assert_eq!(answered.status, 502, "{answered:?}");
        assert_eq!(answered.json()["reason"], "upstream_unreachable");
        assert!(!answered.body.contains("ertificate"), "{answered:?}");
    }
    let answered = front.answer("/certn/hr/v1/applicants/").await;
    assert_eq!(answered.status, 503, "{answered:?}");
    assert_eq!(answered.json()["reason"], "credential_unavailable");
    for stand in front.stands.all() {
        assert!(stand.connections().is_empty(), "{}", stand.url());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_the_server_does_not_want_is_a_502_or_the_vendors_own_answer() {
    let plan = Plan::new().await;
    let demanding = demanding_server(plan.dir()).await;
    let foreign = "client_cert: { cert: foreign-client.pem, key: foreign-client.key }";
    let known = "client_cert: { cert: sectigo-client.pem, key: sectigo-client.key }";
    let stanza = |name: &str, certificate: &str| {
        format!(
            "  {name}:\n    upstream: https://{}\n    ca: demanding-ca.pem\n    {certificate}\n    auth: {{ headers: {{ login: us }} }}\n",
            demanding.address
        )
    };
    let private = plan.stanza("sectigo-private").replace(known, foreign);
    assert!(private.contains(foreign));
    let front = plan
        .stanza_of(&stanza("stranger", foreign))
        .stanza_of(&stanza("nobody", ""))
        .stanza_of(&stanza("known", known))
        .stanza_of(&private)
        .start();

    for name in ["stranger", "nobody"] {
        let answered = front.answer(&format!("/{name}/x")).await;
        assert_eq!(answered.status, 502, "{answered:?}");
        assert_eq!(answered.json()["reason"], "upstream_unreachable");
        assert_eq!(demanding.heard.lock().unwrap().as_slice(), b"");
    }
    assert_eq!(front.answer("/known/x").await.body, "welcome");
    // A server that asks for certificates without demanding one answers for itself.
    let answered = front
        .answer("/sectigo-private/private/api/ssl/v1/types")
        .await;
    assert_eq!(answered.status, 401);
    assert_eq!(answered.json()["description"], "Unknown user");
}

// --- What the tests share. ---

/// Paths that log in, or hand out or revoke credentials, as the vendors' own pages name them.
const REFUSED: [(&str, &[&str]); 10] = [
    ("certcenter", CERTCENTER),
    ("certcenter-oauth", CERTCENTER),
    ("sectigo", SECTIGO),
    ("sectigo-oauth", SECTIGO),
    (
        "sectigo-private",
        &[
            "/auth/realms/apiclients/protocol/openid-connect/token",
            // The other login's.
            "/api/ssl/v1/types",
        ],
    ),
    ("certn", CERTN),
    ("certn-demo", CERTN),
    ("maxmd", &["/oauth/token", "/oauth/authorize"]),
    ("venafi", VENAFI),
    ("venafi-password", VENAFI),
];
const CERTCENTER: &[&str] = &["/oauth2/token", "/oauth2/authorize", "/rest/v1/Profile"];
const SECTIGO: &[&str] = &[
    "/auth/realms/apiclients/protocol/openid-connect/token",
    "/private/api/ssl/v1/types",
];
const CERTN: &[&str] = &[
    "/token/",
    "/revoke_token/",
    "/introspect/",
    "/o/token/",
    "/api/v1/authenticate/",
    "/api/v2/login/",
    "/api/v1/logout/",
    "/api/v1/logoutall/",
];
const VENAFI: &[&str] = &[
    "/vedauth/authorize/oauth",
    "/vedauth/authorize/certificate",
    "/vedauth/authorize/integrated",
    "/vedauth/authorize/jwt",
    "/vedauth/authorize/token",
    "/vedauth/revoke/token",
    "/vedsdk/authorize/",
    "/vedsdk/authorize/checkvalid",
    "/vedsdk/oauth/revokegrants",
    "/vedsdk/revoke/token",
];

/// What some server or other takes for the same path.
fn spellings(path: &str, trailing_dots: bool) -> Vec<String> {
    let bare = path.trim_end_matches('/');
    let (parents, last) = bare.rsplit_once('/').unwrap();
    let encoded = |text: &str| format!("%{:02X}{}", text.as_bytes()[0], &text[1..]);
    let (first, rest) = bare[1..].split_once('/').unwrap_or((&bare[1..], ""));
    let rest = if rest.is_empty() {
        String::new()
    } else {
        format!("/{rest}")
    };
    let mut all = vec![
        path.to_owned(),
        bare.to_owned(),
        format!("{bare}/"),
        path.to_uppercase(),
        format!("{path}?x=1"),
        format!("{bare};x=1"),
        format!("{bare};/"),
        format!("{parents}/{}", encoded(last)),
        format!("{parents}/{}", encoded(last).to_lowercase()),
        format!("/{}{rest}", encoded(first)),
        format!("/{first};v=1{rest}"),
        format!("/{first}%3Bv=1{rest}"),
        format!("/{}{}", encoded(&first.to_uppercase()), rest.to_uppercase()),
    ];
    if trailing_dots {
        all.push(format!("/{first}.{rest}"));
        all.push(format!("/{first}%20{rest}"));
        all.push(format!("{bare}."));
        all.push(format!("{bare}%2e%20/"));
    }
    all
}

/// Vendor `api`, an echo, whose token comes from certn's token endpoint.
async fn front_of_an_echo() -> (Front, Stand) {
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
        plan.stands.certn.url(),
        plan.stands.logins.certn.id,
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

/// Nothing came but what the caller meant for the vendor and the proxy put there.
fn nothing_surplus(front: &Front, seen: &Seen) {
    let login: Vec<String> = login(seen).into_iter().map(|(name, _)| name).collect();
    let mut others: Vec<String> = seen
        .fields
        .iter()
        .map(|(name, _)| name.clone())
        .filter(|name| !login.contains(name))
        .map(|name| name.to_lowercase())
        .collect();
    others.sort_unstable();
    assert_eq!(others, ["accept", "host"]);
    front.assert_nothing_of_the_callers_arrived();
}

/// How many requests each stand-in has seen.
fn requests(front: &Front) -> Vec<usize> {
    let stands = front.stands.all();
    stands.iter().map(|stand| stand.requests().len()).collect()
}

fn statuses(seen: Vec<Seen>) -> Vec<u16> {
    seen.into_iter().map(|seen| seen.status).collect()
}

/// The token of a request that the vendor took.
fn issued(seen: &Seen) -> String {
    assert_eq!(seen.status, 200);
    seen.bearer().unwrap().to_owned()
}

fn request_line(seen: &Seen) -> String {
    format!("{} {}", seen.method, seen.target)
}

/// A form body's members, sorted.
fn form(seen: &Seen) -> Vec<(String, String)> {
    assert!(seen.is("application/x-www-form-urlencoded"));
    let mut members: Vec<_> = url::form_urlencoded::parse(&seen.body)
        .into_owned()
        .collect();
    members.sort_unstable();
    members
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn ssl_types() -> Value {
    json!([{"id": 2107, "name": "OV SSL", "description": "", "terms": [90, 365]}])
}

/// A server that ends the handshake of everyone without a certificate of the client CA.
struct Demanding {
    address: SocketAddr,
    /// What came after complete handshakes.
    heard: Arc<Mutex<Vec<u8>>>,
}

/// Starts it; its own CA goes to `dir/demanding-ca.pem`.
async fn demanding_server(dir: &Path) -> Demanding {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(dir.join("demanding-ca.pem"), made.cert.pem()).unwrap();
    let approved = Roots::load(&dir.join("client-ca.pem")).unwrap();
    let approved = Arc::new(approved.store().unwrap());
    let verifier = WebPkiClientVerifier::builder(approved).build().unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hearing = heard.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                continue;
            };
            let mut head = [0; 4096];
            let read = tls.read(&mut head).await.unwrap_or(0);
            hearing.lock().unwrap().extend_from_slice(&head[..read]);
            let answer =
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nwelcome";
            let _ = tls.write_all(answer).await;
            let _ = tls.shutdown().await;
        }
    });
    Demanding { address, heard }
}
