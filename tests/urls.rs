//! URLs that carry a user name and a password: refused when these are not percent-encoded, and shown
//! without them everywhere.

use std::path::Path;

use serde_json::Value;

use crate::support::{Proxy, countersign, eventually, run, write_secret};

/// Passwords that move the borders of a URL's parts, each with the canary behind the cut.
const RAW: [&str; 6] = [
    "p@canary",
    "p/canary",
    "p#canary",
    "p?canary",
    "6379/canary",
    "1/canary@2?3#4",
];

/// What the cure is called.
const CURE: &str = "percent-encode";

/// A vendor with every URL that a vendor may have, and a caller with one.
const PLACES: [(&str, &str); 8] = [
    (
        "vendors.v.upstream",
        "vendors: { v: { upstream: 'https://LOGIN@h.example/base' } }",
    ),
    (
        "vendors.v.proxy",
        "vendors: { v: { upstream: 'https://h.example', proxy: 'http://LOGIN@h.example:1' } }",
    ),
    (
        "vendors.v.auth.client_credentials.token_url",
        "vendors: { v: { upstream: 'https://h.example', auth: { client_credentials: {
           token_url: 'https://LOGIN@h.example/token', client_id: us, client_secret: { value: s } } } } }",
    ),
    (
        "vendors.v.auth.authorization_code.authorize_url",
        "vendors: { v: { upstream: 'https://h.example', auth: { authorization_code: {
           authorize_url: 'https://LOGIN@h.example/a', token_url: 'https://h.example/token',
           client_id: us, client_secret: { value: s }, redirect_uri: 'http://127.0.0.1:1/' } } } }",
    ),
    (
        "vendors.v.auth.authorization_code.issuer",
        "vendors: { v: { upstream: 'https://h.example', auth: { authorization_code: {
           authorize_url: 'https://h.example/a', token_url: 'https://h.example/token',
           issuer: 'https://LOGIN@h.example',
           client_id: us, client_secret: { value: s }, redirect_uri: 'http://127.0.0.1:1/' } } } }",
    ),
    (
        "vendors.v.auth.vedauth.url",
        "vendors: { v: { upstream: 'https://h.example', auth: { vedauth: {
           url: 'https://LOGIN@h.example', client_id: us, jwt: { value: s } } } } }",
    ),
    (
        "callers.c.jwt.jwks_url",
        "callers: { c: { jwt: { issuer: i, audience: a, jwks_url: 'https://LOGIN@h.example/jwks' } } }
vendors: { v: { upstream: 'https://h.example' } }",
    ),
    (
        "store.redis.url",
        "store: { redis: { url: { value: 'redis://LOGIN@h.example/0' } }, encryption_key: { value: 0123456789abcdef0123456789abcdef } }
vendors: { v: { upstream: 'https://h.example' } }",
    ),
];

fn check(dir: &Path, yaml: &str, arguments: &[&str]) -> String {
    std::fs::write(dir.join("proxy.yaml"), yaml).unwrap();
    let ran = run(dir, arguments);
    assert_eq!(ran.code, Some(2), "{yaml}: {ran:?}");
    let said = ran.stdout + &ran.stderr;
    assert!(!said.contains("canary"), "{yaml}: {said}");
    said
}

#[test]
fn a_raw_character_in_a_password_is_refused_at_every_url_and_nothing_of_it_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    for (place, yaml) in PLACES {
        for raw in RAW {
            let yaml = yaml.replace("LOGIN", &format!("us:{raw}"));
            for arguments in [&["check"][..], &["check", "--without-secrets"]] {
                let said = check(dir.path(), &yaml, arguments);
                assert!(said.contains(place), "{yaml}: {said}");
                // An issuer has no password, encoded or not.
                assert!(
                    said.contains(CURE) || place.ends_with("issuer"),
                    "{yaml}: {said}"
                );
            }
        }
    }
}

#[test]
fn a_redis_url_that_goes_bad_while_running_is_not_shown_either() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    // Nobody listens there.
    let good = "redis://us:canary%40one@127.0.0.1:1/3?protocol=resp3";
    write_secret(&file, good);
    let yaml = "\
listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
drain: { delay: 0s }
store: { redis: { url: { file: url } }, encryption_key: { value: 0123456789abcdef0123456789abcdef } }
vendors:
  v:
    upstream: https://127.0.0.1:1
    auth:
      authorization_code:
        authorize_url: https://127.0.0.1:1/a
        token_url: https://127.0.0.1:1/t
        client_id: us
        client_secret: { value: hidden }
        redirect_uri: http://127.0.0.1:1/
";
    let proxy = Proxy::launch(dir.path(), yaml, &[("RUST_LOG", "debug")]);
    let last_error = |part: &str| {
        eventually(part, || {
            let status: Value = serde_json::from_str(&proxy.admin("/status").1).unwrap();
            let error = status["vendors"][0]["last_error"].as_str()?.to_owned();
            error.contains(part).then_some(error)
        })
    };
    last_error("redis://127.0.0.1:1/3:");
    for raw in RAW {
        write_secret(&file, &format!("redis://us:{raw}@127.0.0.1:1/3"));
        let probed = run(dir.path(), &["probe"]);
        // Refused as a configuration now.
        assert_eq!(probed.code, Some(2), "{probed:?}");
        let said = probed.stdout + &probed.stderr;
        assert!(said.contains(CURE) && !said.contains("canary"), "{said}");
    }
    last_error(CURE);
    for path in ["/status", "/", "/metrics", "/readyz"] {
        let (_, text) = proxy.admin(path);
        assert!(!text.contains("canary"), "{path}: {text}");
    }
    let stderr = proxy.stderr();
    assert!(!stderr.contains("canary"), "{stderr}");
}

#[test]
fn the_admin_url_of_status_is_shown_without_its_login() {
    let dir = tempfile::tempdir().unwrap();
    let said = run(
        dir.path(),
        &["status", "--admin", "http://us:canary@127.0.0.1:1/x?y"],
    );
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("http://127.0.0.1:1/x"), "{said:?}");
    assert!(!said.stderr.contains("canary"), "{said:?}");
    for raw in RAW {
        let url = format!("us:{raw}@127.0.0.1:1");
        let said = run(dir.path(), &["status", "--admin", &url]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains(CURE), "{said:?}");
        assert!(!said.stderr.contains("canary"), "{said:?}");
    }
}

#[test]
fn a_collectors_url_is_refused_and_not_repeated_when_its_login_is_raw() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "\
listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
vendors: { v: { upstream: 'https://127.0.0.1:1' } }
";
    std::fs::write(dir.path().join("proxy.yaml"), yaml).unwrap();
    for raw in RAW {
        let output = countersign()
            .arg("serve")
            .current_dir(dir.path())
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("http://us:{raw}@127.0.0.1:1"),
            )
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{said}");
        assert!(said.contains(CURE) && !said.contains("canary"), "{said}");
    }
}
