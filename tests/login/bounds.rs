//! What a login buys ends with what it was bought with, and what was ended stays ended.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::tls::{CertFiles, Identity, Roots};
use serde_json::{Value, json};

use crate::callers::{Issuer, PODS, authority, dns, issue};
use crate::support::world::World;
use crate::support::{Proxy, eventually, signal, status_of};

const KEY: &str = "the-key-of-ci";

/// The logins of the vendors `t` and `c`.
async fn start(dir: tempfile::TempDir, listener: &str, head: &str) -> World {
    World::with_vendors(VENDORS)
        .within(dir)
        .listener(listener)
        .top(head)
        .start()
        .await
}

/// Logs in with these headers.
fn buy(world: &World, field: &str) -> (u16, Value) {
    let login = json!({ "client_id": "any", "scope": "x" });
    log_in(&world.proxy, field, &login)
}

const VENDORS: &str = "  t:\n    preset: venafi\n    upstream: ECHO\n    allow_plaintext: true\n    login: stub\n    auth: { bearer: { token: { value: vendor-secret } } }\n  c:\n    preset: certn\n    upstream: ECHO\n    allow_plaintext: true\n    login: stub\n    auth: { bearer: { token: { value: vendor-secret } } }\n";

fn keyed() -> String {
    let digest = hex::encode(countersign::tls::sha256(&[KEY.as_bytes()]));
    format!("callers:\n  ci: {{ api_key: {{ sha256: {digest} }}, allow: [ '*' ] }}")
}

const PLAIN: &str = "{ bind: 127.0.0.1:0 }";

fn log_in(proxy: &Proxy, field: &str, body: &Value) -> (u16, Value) {
    send(
        proxy,
        "POST /t/vedauth/authorize/oauth",
        field,
        &body.to_string(),
    )
}

fn renew(proxy: &Proxy, refresh: &str) -> (u16, Value) {
    let body = json!({ "client_id": "any", "refresh_token": refresh });
    send(
        proxy,
        "POST /t/vedauth/authorize/token",
        "",
        &body.to_string(),
    )
}

fn revoke(proxy: &Proxy, token: &str) -> (u16, Value) {
    let field = format!("Authorization: Bearer {token}\r\n");
    send(proxy, "GET /t/vedauth/revoke/token", &field, "")
}

fn call(proxy: &Proxy, token: &str) -> u16 {
    let field = format!("Authorization: Bearer {token}\r\n");
    send(proxy, "GET /c/x", &field, "").0
}

fn send(proxy: &Proxy, line: &str, fields: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let answer = proxy.raw(format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    ));
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (
        status_of(&answer),
        serde_json::from_str(body).unwrap_or_default(),
    )
}

fn text(body: &Value, name: &str) -> String {
    body[name].as_str().unwrap_or_default().to_owned()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_token_of_four_seconds_buys_lasts_longer() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::new("one");
    fs::write(dir.path().join("jwks.json"), issuer.jwks()).unwrap();
    let head =
        format!("callers:\n  pods: {{ jwt: {{ {PODS}, jwks_file: jwks.json }}, allow: [ t, c ] }}");
    let world = start(dir, PLAIN, &head).await;
    let end = now() + 4;
    let jwt = issuer.token_for("system:sa:apps:web", 4);
    let field = format!("Authorization: Bearer {jwt}\r\n");
    let (status, bought) = buy(&world, &field);
    assert_eq!(status, 200, "{bought}");
    assert!(bought["expires_in"].as_u64().unwrap() <= 4, "{bought}");
    assert!(bought["expires"].as_u64().unwrap() <= end + 1, "{bought}");
    assert!(
        bought["refresh_until"].as_u64().unwrap() <= end + 1,
        "{bought}"
    );
    let mut newest = bought;
    while now() < end - 1 {
        assert_eq!(call(&world.proxy, &text(&newest, "access_token")), 200);
        let (status, renewed) = renew(&world.proxy, &text(&newest, "refresh_token"));
        assert_eq!(status, 200, "{renewed}");
        assert!(renewed["refresh_until"].as_u64().unwrap() <= end + 1);
        newest = renewed;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eventually("the end", || {
        let over = call(&world.proxy, &text(&newest, "access_token")) == 401;
        (over && renew(&world.proxy, &text(&newest, "refresh_token")).0 == 401).then_some(())
    });
    // Within the leeway for clocks it still calls, and buys nothing any more.
    let (status, answer) = buy(&world, &field);
    assert_eq!((status, &answer["reason"]), (401, &json!("unknown_caller")));
    assert_eq!(call(&world.proxy, &jwt), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_or_a_rule_that_is_taken_away_ends_what_it_bought() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Issuer::new("one"), Issuer::new("two"));
    let both = json!({ "keys": [first.jwk(), second.jwk()] }).to_string();
    fs::write(dir.path().join("jwks.json"), &both).unwrap();
    let digest = hex::encode(countersign::tls::sha256(&[KEY.as_bytes()]));
    let head = |digest: &str, audience: &str| {
        let pods = PODS.replace("countersign", audience);
        format!(
            "callers:\n  pods: {{ jwt: {{ {pods}, jwks_file: jwks.json }}, allow: [ t, c ] }}\n  keyed: {{ api_key: {{ sha256: {digest} }}, allow: [ t, c ] }}"
        )
    };
    let world = start(dir, PLAIN, &head(&digest, "countersign")).await;
    let proxy = &world.proxy;
    let buy = |field: String| {
        let (status, bought) = buy(&world, &field);
        assert_eq!(status, 200, "{bought}");
        (
            text(&bought, "access_token"),
            text(&bought, "refresh_token"),
        )
    };
    let by = |issuer: &Issuer| {
        let jwt = issuer.token("system:sa:apps:web");
        buy(format!("Authorization: Bearer {jwt}\r\n"))
    };
    let (by_first, by_second) = (by(&first), by(&second));
    let by_key = buy(format!("X-Countersign-Key: {KEY}\r\n"));
    for (token, _) in [&by_first, &by_second, &by_key] {
        assert_eq!(call(proxy, token), 200);
    }

    fs::write(world.dir.path().join("jwks.json"), second.jwks()).unwrap();
    eventually("the first key gone", || {
        (call(proxy, &by_first.0) == 401).then_some(())
    });
    assert_eq!(renew(proxy, &by_first.1).0, 401);
    for (token, refresh) in [&by_second, &by_key] {
        assert_eq!(call(proxy, token), 200);
        assert_eq!(renew(proxy, refresh).0, 200);
    }

    let configured = world.dir.path().join("proxy.yaml");
    let before = fs::read_to_string(&configured).unwrap();
    let other = hex::encode(countersign::tls::sha256(&[b"another"]));
    for (what, from, to, gone) in [
        (
            "the rule",
            "audience: countersign",
            "audience: else",
            &by_second,
        ),
        ("the key", digest.as_str(), other.as_str(), &by_key),
    ] {
        let text = fs::read_to_string(&configured).unwrap();
        fs::write(&configured, text.replace(from, to)).unwrap();
        signal(proxy.id(), "HUP");
        eventually(what, || (call(proxy, &gone.0) == 401).then_some(()));
        assert_eq!(renew(proxy, &gone.1).0, 401, "{what}");
    }
    // What is back is as good as before.
    fs::write(&configured, before).unwrap();
    signal(proxy.id(), "HUP");
    eventually("back", || (call(proxy, &by_key.0) == 200).then_some(()));
}

/// A login over TLS with this certificate: status and body.
async fn certified(proxy: &Proxy, ca: &Path, files: &CertFiles) -> (u16, Value) {
    let identity = Identity::load(files).unwrap();
    let tls = Roots::load(ca).unwrap().client_config(Some(&identity));
    let to = proxy.data;
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls.unwrap())
        .resolve("proxy.test", to)
        .build()
        .unwrap();
    let url = format!("https://proxy.test:{}", to.port());
    let request = client.post(format!("{url}/t/vedauth/authorize/certificate"));
    let answer = request.json(&json!({ "client_id": "any" })).send().await;
    let Ok(answer) = answer else {
        return (0, Value::Null);
    };
    (
        answer.status().as_u16(),
        answer.json().await.unwrap_or_default(),
    )
}

/// The status of a call over TLS without a certificate.
async fn over_tls(proxy: &Proxy, ca: &Path, token: &str) -> u16 {
    let tls = Roots::load(ca).unwrap().client_config(None);
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls.unwrap())
        .resolve("proxy.test", proxy.data)
        .build()
        .unwrap();
    let url = format!("https://proxy.test:{}/c/x", proxy.data.port());
    let answer = client.get(url).bearer_auth(token).send().await;
    answer.map_or(0, |answer| answer.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_taken_away_ends_what_its_certificates_bought() {
    countersign::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let (one, two) = (authority("one"), authority("two"));
    fs::write(at.join("ca.pem"), one.pem() + &two.pem()).unwrap();
    fs::write(at.join("one.pem"), one.pem()).unwrap();
    issue(&at, "server", &one, "", &[dns("proxy.test")]);
    let by_one = issue(&at, "by-one", &one, "", &[dns("ci.corp")]);
    let by_two = issue(&at, "by-two", &two, "", &[dns("ci.corp")]);
    let world = start(
        dir,
        "{ bind: 127.0.0.1:0, tls: { cert: server.crt, key: server.key, client_ca: ca.pem } }",
        "callers:\n  ci: { certificate: { san: ci.corp }, allow: [ t, c ] }",
    )
    .await;
    let trusted = at.join("one.pem");
    let mut tokens = Vec::new();
    for files in [&by_one, &by_two] {
        let (status, bought) = certified(&world.proxy, &trusted, files).await;
        assert_eq!(status, 200, "{bought}");
        tokens.push(text(&bought, "access_token"));
    }
    for token in &tokens {
        assert_eq!(over_tls(&world.proxy, &trusted, token).await, 200);
    }
    fs::write(at.join("ca.pem"), one.pem()).unwrap();
    signal(world.proxy.id(), "HUP");
    let mut last = 0;
    for _ in 0..100 {
        last = over_tls(&world.proxy, &trusted, &tokens[1]).await;
        if last == 401 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(last, 401, "{}", world.proxy.stderr());
    assert_eq!(over_tls(&world.proxy, &trusted, &tokens[0]).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_ends_too_many_logins_is_told_so_and_none_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let world = start(dir, PLAIN, &keyed()).await;
    let proxy = &world.proxy;
    let basic = format!(
        "Authorization: Basic {}\r\n",
        STANDARD.encode(format!("any:{KEY}"))
    );
    let log_in = || {
        let (status, body) = send(proxy, "POST /c/api/v1/authenticate/", &basic, "");
        assert_eq!(status, 200, "{body}");
        format!("Authorization: Token {}\r\n", text(&body, "token"))
    };
    let log_out = |token: &str| send(proxy, "POST /c/api/v1/logout/", token, "");
    let call = |token: &str| send(proxy, "GET /c/x", token, "").0;
    let mut ended = Vec::new();
    for _ in 0..512 {
        let token = log_in();
        assert_eq!(log_out(&token).0, 204);
        ended.push(token);
    }
    let one_more = log_in();
    assert_eq!(call(&one_more), 200);
    let (status, body) = log_out(&one_more);
    assert_eq!(
        (status, &body["reason"]),
        (503, &json!("overloaded")),
        "{body}"
    );
    assert_eq!(call(&one_more), 200, "it was not ended");
    for token in [&ended[0], &ended[1], &ended[511]] {
        assert_eq!(call(token), 401);
    }
    // Grants that can be renewed are counted apart.
    let (status, bought) = buy(&world, &format!("X-Countersign-Key: {KEY}\r\n"));
    assert_eq!(status, 200, "{bought}");
    assert_eq!(revoke(proxy, &text(&bought, "access_token")).0, 200);
    assert_eq!(renew(proxy, &text(&bought, "refresh_token")).0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_revoked_is_dead_at_every_replica_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("state");
    let key = "0123456789abcdef".repeat(4);
    let head = format!(
        "{}\nstore: {{ file: {{ dir: {} }}, encryption_key: {{ value: \"{key}\" }} }}",
        keyed(),
        shared.display()
    );
    let one = start(dir, PLAIN, &head).await;
    let two = start(tempfile::tempdir().unwrap(), PLAIN, &head).await;
    let field = format!("X-Countersign-Key: {KEY}\r\n");
    let (_, dead) = buy(&one, &field);
    let (_, alive) = buy(&one, &field);
    let token = |bought: &Value| text(bought, "access_token");
    for bought in [&dead, &alive] {
        assert_eq!(
            call(&two.proxy, &token(bought)),
            200,
            "one replica's is another's"
        );
    }
    assert_eq!(revoke(&one.proxy, &token(&dead)).0, 200);
    assert_eq!(call(&one.proxy, &token(&dead)), 401);
    eventually("dead at the other replica", || {
        (call(&two.proxy, &token(&dead)) == 401).then_some(())
    });
    assert_eq!(renew(&two.proxy, &text(&dead, "refresh_token")).0, 401);
    assert_eq!(call(&two.proxy, &token(&alive)), 200);

    // A process that begins knows it before it is ready.
    let three = start(tempfile::tempdir().unwrap(), PLAIN, &head).await;
    assert_eq!(call(&three.proxy, &token(&dead)), 401);
    assert_eq!(renew(&three.proxy, &text(&dead, "refresh_token")).0, 401);
    assert_eq!(call(&three.proxy, &token(&alive)), 200);
    assert_eq!(renew(&three.proxy, &text(&alive, "refresh_token")).0, 200);
    assert!(!three.proxy.said().contains(&token(&dead)[..12]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lasting_key_tokens_end_with_their_process() {
    let head = keyed();
    let one = start(tempfile::tempdir().unwrap(), PLAIN, &head).await;
    let (_, bought) = buy(&one, &format!("X-Countersign-Key: {KEY}\r\n"));
    let token = text(&bought, "access_token");
    assert_eq!(call(&one.proxy, &token), 200);
    assert_eq!(revoke(&one.proxy, &token).0, 200);
    assert!(
        !one.dir.path().join("state").exists(),
        "the store is not needed"
    );
    let text = fs::read_to_string(one.dir.path().join("proxy.yaml")).unwrap();
    let next = tempfile::tempdir().unwrap();
    let next = Proxy::start(next.path(), &text);
    assert_eq!(call(&next, &token), 401);
    let (status, answer) = renew(&next, bought["refresh_token"].as_str().unwrap());
    assert_eq!((status, &answer["reason"]), (401, &json!("unknown_caller")));
}
