//! One test a row of the vendor table, and how the grants behind them live on.

use std::time::{Duration, Instant};

use countersign_demo::RecordedRequest;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::front::{Front, Plan, answer, bearers, only};

#[tokio::test(flavor = "multi_thread")]
async fn certcenter_sees_the_static_token_with_its_suffix() {
    let front = Plan::new().await.vendor("certcenter").start();
    let answered = front.answer("/certcenter/rest/v1/Limit").await;

    let token = &front.mocks.logins.certcenter_token;
    assert!(token.ends_with(".oauth2.certcenter.com"));
    let seen = only(front.mocks.certcenter.requests());
    assert_eq!(seen.login(), [pair("Authorization", &bearer(token))]);
    assert_eq!(answered.status, 200);
    let limit = json!({"LimitInfo": {"Used": 2182.5, "Limit": 50000.0}, "success": true});
    assert_eq!(answered.json(), limit);
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn certcenter_gives_a_token_for_one_json_object() {
    let front = Plan::new().await.vendor("certcenter-oauth").start();
    let answered = front.answer("/certcenter-oauth/rest/v1/Limit").await;

    let client = &front.mocks.logins.certcenter;
    let token = only(front.mocks.certcenter.token_calls());
    assert_eq!(request_line(&token), "POST /oauth2/token");
    assert!(token.has_media_type("application/json"));
    let wanted = json!({
        "grant_type": "client_credentials",
        "client_id": client.id,
        "client_secret": client.secret,
        "scope": "order",
    });
    assert_eq!(token.json(), wanted);
    assert_eq!(token.field("authorization"), None);
    let seen = only(front.mocks.certcenter.api_calls());
    let held = issued(&seen);
    assert!(held.ends_with(".oauth2.certcenter.com"));
    assert_eq!(seen.login(), [pair("Authorization", &bearer(&held))]);
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

    let client = &front.mocks.logins.sectigo;
    let token = only(front.mocks.sectigo_auth.requests());
    let path = "/auth/realms/apiclients/protocol/openid-connect/token";
    assert_eq!(request_line(&token), format!("POST {path}"));
    let wanted = [
        pair("client_id", &client.id),
        pair("client_secret", &client.secret),
        pair("grant_type", "client_credentials"),
    ];
    assert_eq!(form(&token), wanted);
    assert_eq!(token.field("authorization"), None);
    let seen = only(front.mocks.sectigo.requests());
    assert_eq!(
        seen.login(),
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

    let logins = &front.mocks.logins;
    let seen = only(front.mocks.cert_manager.requests());
    let wanted = [
        pair("login", &logins.cert_manager_login),
        pair("password", &logins.cert_manager_password),
        pair("customerUri", &logins.cert_manager_customer),
    ];
    assert_eq!(seen.login(), wanted);
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

    let logins = &front.mocks.logins;
    let seen = only(front.mocks.cert_manager.requests());
    let wanted = [
        pair("login", &logins.cert_manager_certificate_login),
        pair("customerUri", &logins.cert_manager_customer),
        pair("certificate", "CN=demo-sectigo"),
    ];
    assert_eq!(seen.login(), wanted);
    assert!(seen.client_cert.as_ref().unwrap().approved);
    assert_eq!(answered.status, 200);
    assert_eq!(answered.json(), ssl_types());
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn certn_gives_a_token_for_basic_at_the_path_with_the_slash() {
    let front = Plan::new().await.vendor("certn").start();
    let answered = front.answer("/certn/hr/v1/applicants/?page=1").await;

    let token = only(front.mocks.certn.token_calls());
    assert_eq!(request_line(&token), "POST /token/");
    assert_eq!(form(&token), [pair("grant_type", "client_credentials")]);
    let basic = token.field("authorization").unwrap();
    assert_eq!(token.login(), [pair("authorization", basic)]);
    let seen = only(front.mocks.certn.api_calls());
    assert_eq!(request_line(&seen), "GET /hr/v1/applicants/?page=1");
    assert_eq!(
        seen.login(),
        [pair("Authorization", &bearer(&issued(&seen)))]
    );
    assert_eq!(answered.status, 200);
    let page = json!({"count": 0, "next": null, "previous": null, "results": []});
    assert_eq!(answered.json(), page);
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn maxmd_gives_a_token_for_a_persons_consent() {
    let plan = Plan::new().await.vendor("maxmd");
    let front = plan.consented().await.start();
    let answered = front.answer("/maxmd/api/certificate/query?page=1").await;

    let client = &front.mocks.logins.maxmd;
    let token = only(front.mocks.maxmd_auth.token_calls());
    assert_eq!(request_line(&token), "POST /oauth/token");
    let members = form(&token);
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    // As documented, which is without a redirect_uri.
    assert_eq!(names, ["client_id", "client_secret", "code", "grant_type"]);
    assert_eq!(token.form("client_id").as_ref(), Some(&client.id));
    assert_eq!(token.form("client_secret").as_ref(), Some(&client.secret));
    assert_eq!(
        token.form("grant_type").as_deref(),
        Some("authorization_code")
    );
    assert_eq!(token.field("authorization"), None);
    let seen = only(front.mocks.maxmd.requests());
    assert_eq!(
        seen.login(),
        [pair("Authorization", &bearer(&issued(&seen)))]
    );
    assert_eq!(answered.status, 200);
    assert!(answered.json()["certificates"].is_array());
    nothing_surplus(&front, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn maxmd_is_refreshed_with_tokens_that_rotate_and_survive_a_restart() {
    let plan = Plan::new().await.vendor("maxmd");
    plan.mocks.maxmd_auth.set_lifetime(Duration::from_secs(3));
    let mut front = plan.consented().await.start();
    let refreshed = |front: &Front| -> Vec<String> {
        let calls = front.mocks.maxmd_auth.token_calls();
        let tokens = calls.iter().filter(|seen| seen.status == 200);
        tokens
            .filter_map(|seen| seen.form("refresh_token"))
            .collect()
    };

    for wanted in [2, 4] {
        let deadline = Instant::now() + Duration::from_secs(10);
        while refreshed(&front).len() < wanted {
            assert!(Instant::now() < deadline, "{:?}", front.status("maxmd"));
            let answered = front.answer("/maxmd/api/certificate/query").await;
            assert_eq!(answered.status, 200, "{answered:?}");
        }
        if wanted == 2 {
            // A crash before the answer is stored would cost the consent: this vendor ends it
            // when a refresh token comes twice.
            eventually("stored", || {
                (front.status("maxmd")["state"] == "fresh").then_some(())
            });
            front.restart();
        }
    }
    let calls = front.mocks.maxmd_auth.token_calls();
    for seen in &calls[1..] {
        let members = form(seen);
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        // RFC 6749 §6: the scope stays what it was.
        assert_eq!(
            names,
            ["client_id", "client_secret", "grant_type", "refresh_token"]
        );
    }
    let mut tokens = refreshed(&front);
    let spent = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), spent, "a refresh token was used twice");
    for token in tokens {
        assert!(!front.mocks.maxmd.has_read(&token));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consent_with_a_foreign_state_is_exchanged_for_nothing() {
    let plan = Plan::new().await.vendor("maxmd");
    let exchanged = || plan.mocks.maxmd_auth.token_calls().len();

    let foreign = |redirect: &str| redirect.replace("state=", "state=x");
    let (code, said) = plan.authorize(foreign).await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(exchanged(), 0);
    // The vendor's own page shows none: the person who pastes it must confirm that it is theirs.
    let bare = |redirect: &str| redirect.split("&state=").next().unwrap().to_owned();
    let (code, said) = plan.authorize(|redirect| bare(redirect) + "\nno").await;
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(exchanged(), 0);
    let (code, said) = plan.authorize(|redirect| bare(redirect) + "\nyes").await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(exchanged(), 1);
    let front = plan.start();
    let answered = front.answer("/maxmd/api/certificate/query").await;
    assert_eq!(answered.status, 200, "{answered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn venafi_gives_a_token_for_the_certificate_alone() {
    let front = Plan::new().await.vendor("venafi").start();
    let answered = front.answer("/venafi/vedsdk/certificates/").await;

    let token = only(front.mocks.venafi.token_calls());
    assert_eq!(request_line(&token), "POST /vedauth/authorize/certificate");
    let wanted = json!({
        "client_id": front.mocks.logins.venafi_client_id,
        "scope": "certificate:discover,manage",
    });
    assert_eq!(token.json(), wanted);
    let cert = token.client_cert.as_ref().unwrap();
    assert_eq!(
        (cert.subject.as_str(), cert.approved),
        ("CN=demo-venafi", true)
    );
    // The certificate logs in; the calls carry the token and no certificate.
    let seen = only(front.mocks.venafi.api_calls());
    assert_eq!(
        seen.login(),
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

    let logins = &front.mocks.logins;
    let token = only(front.mocks.venafi.token_calls());
    assert_eq!(request_line(&token), "POST /vedauth/authorize/oauth");
    let wanted = json!({
        "client_id": logins.venafi_client_id,
        "username": logins.venafi_username,
        "password": logins.venafi_password,
        "scope": "certificate:discover,manage",
    });
    assert_eq!(token.json(), wanted);
    assert_eq!(token.client_cert, None);
    let seen = only(front.mocks.venafi.api_calls());
    assert_eq!(
        seen.login(),
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
    plan.mocks.venafi.omit_expires_in();
    plan.mocks.venafi.set_lifetime(Duration::from_secs(3));
    plan.mocks.venafi.set_grant_lifetime(Duration::from_secs(5));
    let front = plan.start();
    let venafi = &front.mocks.venafi;

    let calls = || -> Vec<String> {
        let calls = venafi.token_calls();
        let answered = calls.iter().filter(|seen| seen.status != 0);
        let last = |seen: &RecordedRequest| seen.path().rsplit('/').next().unwrap().to_owned();
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
        .map(RecordedRequest::json)
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
        ("maxmd", "/api/certificate/query"),
        ("venafi", "/vedsdk/certificates/"),
        ("venafi-password", "/vedsdk/certificates/"),
    ];
    let mut plan = Plan::new().await;
    for (name, _) in names {
        plan = plan.vendor(name);
    }
    let front = plan.consented().await.start();
    let mut asking = tokio::task::JoinSet::new();
    for round in 0..45 {
        let (name, path) = names[round % names.len()];
        for _ in 0..5 {
            asking.spawn(answer(front.get(&format!("/{name}{path}"))));
        }
    }
    for answered in asking.join_all().await {
        assert_eq!(answered.status, 200, "{answered:?}");
    }

    let mocks = &front.mocks;
    let logins = &mocks.logins;
    // Two credentials of one vendor each, never a third.
    assert_eq!(bearers(&mocks.certcenter).len(), 2);
    assert_eq!(bearers(&mocks.venafi).len(), 2);
    for (mock, others) in [
        (&mocks.sectigo, &mocks.certn),
        (&mocks.certn, &mocks.maxmd),
        (&mocks.maxmd, &mocks.sectigo),
    ] {
        let [token] = bearers(mock).try_into().unwrap();
        assert!(!others.has_read(&token));
    }
    for seen in mocks.cert_manager.requests() {
        let private = seen.path().starts_with("/private/");
        let names: Vec<String> = seen.login().into_iter().map(|(name, _)| name).collect();
        let wanted: &[&str] = if private {
            &["login", "customerUri", "certificate"]
        } else {
            &["login", "password", "customerUri"]
        };
        assert_eq!(names, wanted);
    }
    for (secret, owner) in [
        (&logins.certcenter_token, &mocks.certcenter),
        (&logins.certcenter.secret, &mocks.certcenter),
        (&logins.sectigo.secret, &mocks.sectigo_auth),
        (&logins.cert_manager_password, &mocks.cert_manager),
        (&logins.certn.secret, &mocks.certn),
        (&logins.maxmd.secret, &mocks.maxmd_auth),
        (&logins.venafi_password, &mocks.venafi),
    ] {
        for mock in mocks.all() {
            // The first characters are the same in every encoding.
            let has = mock.has_read(&secret[..32]);
            assert!(!has || mock.address() == owner.address(), "{}", mock.url());
        }
    }
    front.assert_nothing_of_the_callers_arrived();
}

/// Nothing came but what the caller meant for the vendor and the proxy put there.
fn nothing_surplus(front: &Front, seen: &RecordedRequest) {
    let login: Vec<String> = seen.login().into_iter().map(|(name, _)| name).collect();
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

/// The token of a request that the vendor took.
fn issued(seen: &RecordedRequest) -> String {
    assert_eq!(seen.status, 200);
    seen.bearer().unwrap().to_owned()
}

fn request_line(seen: &RecordedRequest) -> String {
    format!("{} {}", seen.method, seen.target)
}

/// A form body's members, sorted.
fn form(seen: &RecordedRequest) -> Vec<(String, String)> {
    assert!(seen.has_media_type("application/x-www-form-urlencoded"));
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
