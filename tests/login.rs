//! `login: stub`: vendors' clients that log in first get a caller token of the proxy's own, in that
//! vendor's shape, for a caller's key; the vendor hears nothing of it.

mod bodies;
mod bounds;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::status_of;
use crate::support::world::{ECHO, World};

const KEY: &str = "the-key-of-ci";
const OTHER: &str = "the-key-of-other";

/// An echo that plays every vendor: `v` has the API, the others the logins.
async fn start() -> World {
    let digest = |key: &str| hex::encode(countersign::tls::sha256(&[key.as_bytes()]));
    let callers = format!(
        "callers:\n  ci: {{ api_key: {{ sha256: {} }}, allow: [ v, c, t, \"o GET /x\" ] }}\n  other: {{ api_key: {{ sha256: {} }}, allow: [ v ] }}",
        digest(KEY),
        digest(OTHER)
    );
    World::with_vendors(VENDORS)
        .top(&callers)
        .env("RUST_LOG", "trace")
        .start()
        .await
}

const VENDORS: &str = r#"  v:
    upstream: ECHO
    allow_plaintext: true
  c:
    preset: certn
    upstream: ECHO
    allow_plaintext: true
    login: stub
    auth: { client_credentials: { token_url: "ECHO/token/", client_id: us, client_secret: { value: vendor-secret } } }
  t:
    preset: venafi
    upstream: ECHO/tpp
    allow_plaintext: true
    login: stub
    auth: { vedauth: { client_id: us, username: us, password: { value: vendor-secret } } }
  o:
    upstream: ECHO
    allow_plaintext: true
    login: stub
    auth: { client_credentials: { token_url: "http://127.0.0.1:1/elsewhere/token", client_id: us, client_secret: { value: vendor-secret } } }
  refusing:
    preset: certn
    upstream: ECHO
    allow_plaintext: true
    auth: { bearer: { token: { value: vendor-secret } } }
"#;

/// Status, head and JSON body (`Null` when it is none).
fn send(world: &World, line: &str, fields: &str, body: &str) -> (u16, String, Value) {
    let length = body.len();
    let answer = world.proxy.raw(format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    ));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let body = serde_json::from_str(body).unwrap_or_default();
    (status_of(&answer), head.to_owned(), body)
}

fn post_form(world: &World, path: &str, body: &str) -> (u16, String, Value) {
    let fields = "Content-Type: application/x-www-form-urlencoded\r\n";
    send(world, &format!("POST {path}"), fields, body)
}

fn post_json(world: &World, path: &str, body: &Value) -> (u16, String, Value) {
    let fields = "Content-Type: application/json\r\n";
    send(world, &format!("POST {path}"), fields, &body.to_string())
}

/// What a call of the API gets with this field.
fn call(world: &World, field: &str) -> u16 {
    send(world, "GET /v/x", &format!("{field}\r\n"), "").0
}

fn text(body: &Value, name: &str) -> String {
    body[name].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_place_of_the_client_secret_gets_a_token_that_calls() {
    let world = start().await;
    let basic = format!(
        "Authorization: Basic {}\r\n",
        STANDARD.encode(format!("any:{KEY}"))
    );
    let form = format!("grant_type=client_credentials&client_id=any&client_secret={KEY}&scope=a+b");
    let object = json!({ "grant_type": "client_credentials", "client_secret": KEY });
    for (how, (status, head, body)) in [
        ("form", post_form(&world, "/c/token/", &form)),
        ("without the slash", post_form(&world, "/c/token", &form)),
        ("JSON", post_json(&world, "/c/token/", &object)),
        ("Basic", send(&world, "POST /c/token/", &basic, "")),
        ("elsewhere", post_form(&world, "/o/elsewhere/token", &form)),
    ] {
        assert_eq!(status, 200, "{how}: {head}");
        assert!(head.contains("Cache-Control: no-store"), "{head}");
        assert_eq!(body["token_type"], "Bearer", "{how}");
        assert_eq!(body["expires_in"], 3600, "{how}");
        assert!(body.get("refresh_token").is_none(), "{how}");
        let token = text(&body, "access_token");
        assert_eq!(
            call(&world, &format!("Authorization: Bearer {token}")),
            200,
            "{how}"
        );
        assert_eq!(call(&world, &format!("X-Api-Key: {token}")), 200, "{how}");
    }
    let (_, _, body) = post_form(&world, "/c/token/", &form);
    assert_eq!(body["scope"], "a b");

    for (what, body, want) in [
        ("no key", "grant_type=client_credentials".to_owned(), 401),
        ("a wrong key", "client_secret=wrong".to_owned(), 401),
        ("two callers", format!("client_secret={KEY}&x={OTHER}"), 401),
        ("nothing open there", format!("client_secret={OTHER}"), 403),
        ("too long", format!("x={}", "a".repeat(70_000)), 413),
    ] {
        assert_eq!(post_form(&world, "/c/token/", &body).0, want, "{what}");
    }
    let (status, _, body) = post_form(&world, "/refusing/token/", &form);
    assert_eq!((status, &body["reason"]), (401, &json!("unknown_caller")));
    assert_eq!(send(&world, "GET /c/token/", &basic, "").0, 403);
    assert!(!world.echo.has_read(KEY));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_vendors_own_login_is_answered_in_its_shape() {
    let world = start().await;
    let login = json!({ "client_id": "any", "username": "any", "password": KEY, "scope": "certificate:manage" });
    let (status, head, body) = post_json(&world, "/t/vedauth/Authorize/OAuth", &login);
    assert_eq!(status, 200, "{head}");
    assert_eq!(body["scope"], "certificate:manage");
    assert_eq!(body["expires_in"], 3600);
    assert!(body["refresh_until"].as_u64() > body["expires"].as_u64());
    let refresh = text(&body, "refresh_token");
    let token = text(&body, "access_token");
    assert_eq!(call(&world, &format!("Authorization: Bearer {token}")), 200);
    assert_eq!(
        call(&world, &format!("Authorization: Bearer {refresh}")),
        401
    );

    let again = json!({ "client_id": "any", "refresh_token": refresh });
    let (status, head, body) = post_json(&world, "/t/vedauth/authorize/token", &again);
    assert_eq!(status, 200, "{head}");
    let second = text(&body, "access_token");
    assert_ne!(second, token);
    assert_eq!(
        call(&world, &format!("Authorization: Bearer {second}")),
        200
    );

    // An access token is not a key: somebody who stole one cannot extend it.
    let exchange = json!({ "client_id": "any", "password": token });
    let (status, _, body) = post_json(&world, "/t/vedauth/authorize/oauth", &exchange);
    assert_eq!((status, &body["reason"]), (401, &json!("unknown_caller")));
    let (_, _, body) = post_json(&world, "/t/vedauth/authorize/oauth", &login);
    let other = text(&body, "access_token");

    // Revoking ends what came of that login, no other, and never the vendor's.
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(
        send(&world, "GET /t/vedauth/revoke/token", &bearer, "").0,
        200
    );
    assert_eq!(call(&world, bearer.trim_end()), 401);
    assert_eq!(
        call(&world, &format!("Authorization: Bearer {second}")),
        401
    );
    assert_eq!(
        post_json(&world, "/t/vedauth/authorize/token", &again).0,
        401
    );
    assert_eq!(call(&world, &format!("Authorization: Bearer {other}")), 200);

    let old = json!({ "Username": "any", "Password": KEY });
    let (status, head, body) = post_json(&world, "/t/vedsdk/authorize/", &old);
    assert_eq!(status, 200, "{head}");
    assert!(text(&body, "ValidUntil").starts_with("/Date("), "{body}");
    let key = text(&body, "APIKey");
    assert_eq!(call(&world, &format!("X-Venafi-Api-Key: {key}")), 200);

    let basic = format!(
        "Authorization: Basic {}\r\n",
        STANDARD.encode(format!("any:{KEY}"))
    );
    for path in ["/c/api/v1/authenticate/", "/c/api/v2/login/"] {
        let (status, head, body) = send(&world, &format!("POST {path}"), &basic, "");
        assert_eq!(status, 200, "{head}");
        assert_eq!(body["user_id"], "ci");
        let token = format!("Authorization: Token {}\r\n", text(&body, "token"));
        assert_eq!(call(&world, token.trim_end()), 200);
        assert_eq!(send(&world, "POST /c/api/v1/logout/", &token, "").0, 204);
        assert_eq!(call(&world, token.trim_end()), 401);
    }
    assert!(!world.echo.has_read(KEY));
    assert!(!world.echo.has_read(&token));
    let admin = ["/status", "/metrics", "/"].map(|path| world.proxy.admin(path).1);
    let said = world.proxy.said() + &admin.concat();
    for secret in [&token, &second, &refresh, &key, KEY, "vendor-secret"] {
        // Its beginning is the same in whatever it is put.
        assert!(!said.contains(&secret[..12]), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_kind_of_auth_leaves_the_presets_logins() {
    let url = ECHO;
    let digest = hex::encode(countersign::tls::sha256(&[KEY.as_bytes()]));
    let presets = [
        ("venafi", "/vedauth/authorize/oauth"),
        ("venafi", "/vedauth/authorize/token"),
        ("venafi", "/vedsdk/authorize/"),
        ("certn", "/token/"),
        ("certn", "/api/v1/authenticate/"),
        ("certn-demo", "/token"),
        ("maxmd", "/oauth/token"),
        ("certcenter-oauth", "/oauth2/token"),
        (
            "sectigo-oauth",
            "/auth/realms/apiclients/protocol/openid-connect/token",
        ),
    ];
    let vendors = [
        "venafi",
        "certn",
        "certn-demo",
        "maxmd",
        "certcenter-oauth",
        "sectigo-oauth",
    ]
    .map(|preset| {
        format!(
            "  {preset}:\n    preset: {preset}\n    upstream: {url}\n    allow_plaintext: true\n    login: stub\n    auth: {{ basic: {{ username: us, password: {{ value: vendor-secret }} }} }}\n"
        )
    })
    .concat();
    let callers =
        format!("callers: {{ ci: {{ api_key: {{ sha256: {digest} }}, allow: [ '*' ] }} }}");
    let world = World::with_vendors(&vendors).top(&callers).start().await;
    let login = json!({ "grant_type": "password", "client_secret": KEY, "username": "any" });
    for (preset, path) in presets {
        let (status, head, body) = post_json(&world, &format!("/{preset}{path}"), &login);
        assert_eq!(status, 200, "{preset} {path}: {head}");
        let token = ["access_token", "APIKey", "token"]
            .map(|name| text(&body, name))
            .concat();
        let called = send(
            &world,
            "GET /certn/x",
            &format!("Authorization: Bearer {token}\r\n"),
            "",
        );
        assert_eq!(called.0, 200, "{preset} {path}: {body}");
    }
    let (_, _, bought) = post_json(&world, "/venafi/vedauth/authorize/oauth", &login);
    let token = text(&bought, "access_token");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let revoked = send(&world, "GET /venafi/vedauth/revoke/token", &bearer, "");
    assert_eq!(revoked.0, 200);
    assert_eq!(send(&world, "GET /certn/x", &bearer, "").0, 401);
    assert!(!world.echo.has_read(KEY));
}
