//! Who may call, and what: keys in every slot, allow lists, and the rules without listed callers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{HEAD, get, yaml};
use crate::support::world::{Builder, ECHO, World};
use crate::support::{Proxy, eventually, run};

/// Two vendors, `v` and `w`, in front of one echo. `callers`: the content of that key.
fn world(callers: &str) -> Builder {
    let w = format!("  w:\n    upstream: {ECHO}/w\n    allow_plaintext: true\n");
    World::with_vendor(&w).top(&format!("callers:\n{callers}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_found_wherever_a_vendors_own_client_puts_its_secret_and_never_passes() {
    let world = world("  app: { api_key: { value: the-key }, allow: [ v ] }\n")
        .start()
        .await;
    let basic = format!("Basic {}", STANDARD.encode("whoever:the-key"));
    let slots = [
        ("X-Countersign-Key", "the-key"),
        ("x-api-key", "the-key"),
        ("X-Venafi-Api-Key", "the-key"),
        ("password", "the-key"),
        ("Authorization", "Bearer the-key"),
        ("Authorization", "Token the-key"),
        ("authorization", &basic),
        ("Proxy-Authorization", "Bearer the-key"),
        ("Proxy-Authorization", &basic),
    ];
    for slot in slots {
        let answered = get(&world.proxy, "/v/x", &[slot]).await;
        assert_eq!(answered.body, "GET /x", "{slot:?}: {answered:?}");
        // One valid key suffices; whatever else is shown counts for nothing.
        let other = ("X-Api-Key", "a placeholder");
        if !slot.0.eq_ignore_ascii_case(other.0) {
            let answered = get(&world.proxy, "/v/x", &[slot, other]).await;
            assert_eq!(answered.status, 200, "{slot:?}: {answered:?}");
        }
    }
    for seen in world.echo.requests() {
        let raw = String::from_utf8_lossy(&seen.raw).to_lowercase();
        for gone in [
            "the-key",
            "placeholder",
            "authorization",
            &STANDARD.encode("whoever:the-key").to_lowercase(),
        ] {
            assert!(!raw.contains(gone), "{gone} in {raw}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_a_wrong_one_or_two_callers_at_once_are_nobody() {
    let world = world(
        "  a: { api_key: { value: key-a }, allow: [ \"*\" ] }\n  b: { api_key: { value: key-b }, allow: [ \"*\" ] }\n",
    )
    .start()
    .await;
    for fields in [
        &[][..],
        &[("X-Countersign-Key", "wrong")],
        &[("X-Countersign-Key", "")],
        &[("X-Countersign-Key", "KEY-A")],
        &[("Authorization", "key-a")],
        &[("Authorization", "Digest key-a")],
        &[("Cookie", "key-a")],
        &[
            ("X-Countersign-Key", "key-a"),
            ("Authorization", "Bearer key-b"),
        ],
        // Being on this machine is no proof either.
        &[("Host", "localhost")],
    ] {
        for target in ["/v/x", "/nowhere"] {
            let answered = get(&world.proxy, target, fields).await;
            assert_eq!(answered.status, 401, "{fields:?}: {answered:?}");
            assert_eq!(
                answered.header("www-authenticate"),
                "Bearer realm=\"countersign\""
            );
            assert_eq!(answered.json()["reason"], "unknown_caller");
        }
    }
    assert!(world.echo.requests().is_empty());
    let twice = [("X-Countersign-Key", "key-a"), ("X-Api-Key", "key-a")];
    assert_eq!(get(&world.proxy, "/v/x", &twice).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_may_do_what_their_allow_list_says_and_nothing_else() {
    let world = world(
        "  all: { api_key: { value: all }, allow: [ \"*\" ] }
  one: { api_key: { value: one }, allow: [ w ] }
  some: { api_key: { value: some }, allow: [ \"v GET /vedsdk/**\", \"v POST,PUT /hr/*/new\" ] }
  none: { api_key: { value: none } }
",
    )
    .start()
    .await;
    let client = super::client();
    for (key, method, target, wanted) in [
        ("all", "GET", "/v/x", 200),
        ("all", "DELETE", "/w/x", 200),
        ("one", "GET", "/w/x", 200),
        ("one", "GET", "/v/x", 403),
        ("some", "GET", "/v/vedsdk/certificates/", 200),
        ("some", "GET", "/v/vedsdk", 200),
        ("some", "GET", "/v/vedsdk/x?y=/other", 200),
        ("some", "GET", "/v/vedsdks", 403),
        ("some", "GET", "/v/Vedsdk/x", 403),
        ("some", "GET", "/v", 403),
        ("some", "POST", "/v/vedsdk/x", 403),
        ("some", "HEAD", "/v/vedsdk/x", 403),
        ("some", "PUT", "/v/hr/7/new", 200),
        ("some", "POST", "/v/hr/7/8/new", 403),
        ("some", "GET", "/w/vedsdk/x", 403),
        ("none", "GET", "/v/x", 403),
    ] {
        let before = world.echo.requests().len();
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("http://{}{target}", world.proxy.data);
        let request = client
            .request(method.clone(), url)
            .header("X-Countersign-Key", key);
        let answered = crate::support::front::answer(request).await;
        assert_eq!(answered.status, wanted, "{key} {method} {target}");
        let passed = world.echo.requests().len() - before;
        assert_eq!(
            passed,
            usize::from(wanted == 200),
            "{key} {method} {target}"
        );
        if wanted == 403 && method != "HEAD" {
            assert_eq!(answered.json()["reason"], "forbidden");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_caller_new_prints_works_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let made = run(dir.path(), &["caller", "new", "my-app"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    let key = made
        .stdout
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with('#'))
        .unwrap();
    let (_, stanza) = made.stdout.split_once("callers:\n").unwrap();
    assert_eq!(made.stdout.matches(key).count(), 1, "shown once");
    let stanza = stanza.replace("allow: []", "allow: [ v ]");
    let again = run(dir.path(), &["caller", "new", "my-app"]);
    assert!(!again.stdout.contains(key), "a new one each time");
    assert_eq!(run(dir.path(), &["caller", "new", "no good"]).code, Some(1));

    let world = world(&stanza).start().await;
    let shown = [("Authorization", &*format!("Bearer {key}"))];
    assert_eq!(get(&world.proxy, "/v/x", &shown).await.status, 200);
    assert_eq!(get(&world.proxy, "/w/x", &shown).await.status, 403);
    eventually("written", || {
        let lines = world.proxy.stdout();
        lines.contains("\"caller\":\"my-app\"").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_may_stand_in_a_file_or_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "  from-the-file \n").unwrap();
    let world = world(
        "  filed: { api_key: { file: key }, allow: [ v ] }\n  set: { api_key: { env: CALLER_KEY }, allow: [ v ] }\n",
    )
    .within(dir)
    .env("CALLER_KEY", "from-the-environment")
    .start()
    .await;
    for (key, wanted) in [
        ("from-the-file", 200),
        ("from-the-environment", 200),
        ("CALLER_KEY", 401),
    ] {
        let answered = get(&world.proxy, "/v/x", &[("X-Countersign-Key", key)]).await;
        assert_eq!(answered.status, wanted, "{key}: {answered:?}");
    }
}

#[test]
fn a_listener_beyond_loopback_needs_callers() {
    let dir = tempfile::tempdir().unwrap();
    let write = |bind: &str, callers: &str| {
        let text = format!(
            "listeners: [ {{ bind: \"{bind}\" }} ]\n{callers}vendors: {{ v: {{ upstream: \"https://127.0.0.1:1\" }} }}\n"
        );
        std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();
    };
    for bind in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        write(bind, "");
        for command in ["check", "serve"] {
            let refused = run(dir.path(), &[command]);
            assert_eq!(refused.code, Some(2), "{command} {bind}: {refused:?}");
            assert!(refused.stderr.contains("proxy.yaml:1:"), "{refused:?}");
            assert!(refused.stderr.contains("callers"), "{refused:?}");
        }
        for callers in [
            "callers: anyone\n",
            "callers: { a: { api_key: { value: k } } }\n",
        ] {
            write(bind, callers);
            let accepted = run(dir.path(), &["check"]);
            assert_eq!(accepted.code, Some(0), "{bind}: {accepted:?}");
        }
    }
    for bind in ["127.0.0.1:0", "127.9.9.9:0", "[::1]:0"] {
        write(bind, "");
        assert_eq!(run(dir.path(), &["check"]).code, Some(0), "{bind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_callers_programs_of_this_machine_may_call_and_web_pages_may_not() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let more = "    hosts: [ v.internal ]\n";
    let proxy = Proxy::start(dir.path(), &yaml(HEAD, &echo.url(), more));
    let own = proxy.data.to_string();
    let own_origin = format!("http://{own}");
    for fields in [
        &[("Host", "evil.example")][..],
        &[("Host", "127.0.0.1.evil.example")],
        &[("Host", "localhost.evil.example")],
        &[("Origin", "https://evil.example")],
        &[("Origin", "null")],
        &[("Origin", "http://127.0.0.1:1")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Host", "v.internal"), ("Origin", "https://evil.example")],
    ] {
        let answered = get(&proxy, "/v/x", fields).await;
        assert_eq!(answered.status, 403, "{fields:?}: {answered:?}");
        assert_eq!(answered.json()["reason"], "forbidden");
    }
    assert!(echo.requests().is_empty());
    for fields in [
        &[][..],
        &[("Host", "localhost")],
        &[("Host", "localhost:8080")],
        &[("Host", "[::1]:8080")],
        &[("Host", "V.Internal")],
        &[("Sec-Fetch-Site", "none")],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", &own_origin)],
    ] {
        let answered = get(&proxy, "/v/x", fields).await;
        assert_eq!(answered.status, 200, "{fields:?}: {answered:?}");
    }

    let dir = tempfile::tempdir().unwrap();
    let head = format!("{HEAD}callers: anyone\n");
    let open = Proxy::start(dir.path(), &yaml(&head, &echo.url(), ""));
    let foreign = [("Host", "evil.example"), ("Origin", "https://evil.example")];
    assert_eq!(get(&open, "/v/x", &foreign).await.status, 200);
}
