//! A proxy.yaml is either valid in all it says, or answered with every mistake at once: each with
//! its place and what to do about it, and none with a secret in it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use countersign::config::{
    Auth, Callers, ClientAuth, Config, ReadyWhen, Secrets, Store, VedauthGrant,
};
use countersign::jwks::KeySource;
use countersign::pattern::PathRule;
use countersign::secret::SecretRef;
use countersign::tls::San;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    Config::parse(text, Path::new("dir/p.yaml"), Secrets::FormOnly)
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

fn valid(text: &str) -> Config {
    parse(text).unwrap_or_else(|mistakes| panic!("{}\n{text}", mistakes.join("\n")))
}

/// The mistakes without the file's name.
fn mistakes(text: &str) -> Vec<String> {
    let mistakes = parse(text).expect_err(text);
    let strip = |line: String| line.strip_prefix("dir/p.yaml:").unwrap().to_owned();
    mistakes.into_iter().map(strip).collect()
}

/// A vendor `a` with these further lines.
fn vendor(lines: &str) -> String {
    let mut text = "vendors:\n  a:\n".to_owned();
    for line in lines.lines() {
        writeln!(text, "    {line}").unwrap();
    }
    text
}

fn rules(rules: &[PathRule]) -> Vec<String> {
    let text = |rule: &PathRule| {
        let mark = if rule.exception { "!" } else { "" };
        let method = rule.method.as_ref().map(|method| format!("{method} "));
        format!("{mark}{}{}", method.unwrap_or_default(), rule.pattern)
    };
    rules.iter().map(text).collect()
}

#[test]
fn the_sample_is_valid_and_has_a_stanza_for_every_preset() {
    let text = include_str!("../proxy.yaml");
    let config = Config::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("proxy.yaml"),
        Secrets::FormOnly,
    )
    .unwrap();
    assert_eq!(config.warnings, []);
    for preset in [
        "certcenter",
        "certcenter-oauth",
        "sectigo",
        "sectigo-oauth",
        "sectigo-private",
        "certn",
        "certn-demo",
        "maxmd",
        "venafi",
    ] {
        let mut presets = config.vendors.iter().filter_map(|v| v.preset.as_deref());
        assert!(presets.any(|known| known == preset), "{preset}");
    }

    // What is commented out is valid too: every commented line that holds YAML, uncommented.
    let mut all = String::new();
    let mut below_vendors = false;
    for line in text.lines() {
        below_vendors |= line == "vendors:";
        let commented = line.trim_start().strip_prefix("# ").filter(|rest| {
            let key = rest.trim_start().split(':').next().unwrap_or_default();
            below_vendors && rest.contains(':') && key.bytes().all(|b| b.is_ascii_graphic())
        });
        let indent = &line[..line.len() - line.trim_start().len()];
        match commented {
            Some(rest) => writeln!(all, "{indent}{rest}").unwrap(),
            None => writeln!(all, "{line}").unwrap(),
        }
    }
    let all = valid(&all);
    assert_eq!(all.vendors.len(), config.vendors.len() + 5);
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let config = valid(&vendor("upstream: https://API.example"));

    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.listeners[0].bind.to_string(), "127.0.0.1:8080");
    assert!(config.listeners[0].tls.is_none());
    assert_eq!(config.admin.bind.to_string(), "127.0.0.1:9090");
    assert_eq!(config.admin.ready_when, ReadyWhen::Settled);
    assert!(config.admin.key.is_none());
    assert!(config.threads >= 1);
    assert!(config.access_log);
    assert_eq!(config.drain.delay, Duration::from_secs(5));
    assert_eq!(config.drain.timeout, Duration::from_secs(30));
    assert!(matches!(config.callers, Callers::Loopback));
    let file = Store::File {
        dir: "dir/./state".into(),
        encryption_key: None,
    };
    assert_eq!(config.store, file);
    assert_eq!(config.sha256.len(), 64);

    let a = &config.vendors[0];
    assert_eq!((a.name.as_str(), a.prefix.as_str()), ("a", "/a"));
    assert_eq!(a.upstream.origin(), "https://api.example");
    assert_eq!(a.upstream.base, "");
    assert!(a.auth.is_none() && a.client_cert.is_none() && a.ca.is_none());
    assert_eq!(a.timeouts.connect, Duration::from_secs(5));
    assert_eq!(a.timeouts.first_byte, Duration::from_mins(1));
    assert_eq!(a.timeouts.idle, Duration::from_mins(1));
    assert_eq!(a.timeouts.total, Duration::ZERO);
    assert_eq!(a.timeouts.keepalive, Duration::from_secs(30));
    assert_eq!(a.timeouts.token_wait, Duration::from_secs(5));
    assert_eq!((a.limits.in_flight, a.limits.body), (1024, 100 << 20));
    assert!(!a.limits.honour_retry_after);
    assert_eq!(a.breaker.failures, 10);
    assert_eq!(a.breaker.open_for, Duration::from_secs(10));
    assert!(a.retry_on_401 && !a.cookies_pass && !a.encoded_slash_pass);
    assert!(a.refuse.is_empty() && a.allow.is_empty());
}

#[test]
fn what_is_off_anyway_may_be_written() {
    valid(
        "listeners: [ { bind: '127.0.0.1:0', h2c: false } ]
vendors:
  a:
    upstream: https://a.example
    tls: { late_client_auth: false }
    limits: { rate: { per_second: 0 }, honour_retry_after: false, body: 1024 }
    login: refuse
    auth:
      vedauth:
        client_id: x
        jwt: { env: JWT }
        revoke_on_exit: true
",
    );
}

#[test]
fn a_preset_may_know_that_the_certificate_is_asked_for_late() {
    for (written, want) in [
        ("", true),
        ("    tls: { late_client_auth: false }\n", false),
        ("    tls: { late_client_auth: true }\n", true),
    ] {
        let config = valid(&format!(
            "vendors:
  venafi:
    preset: venafi
    upstream: https://tpp.example
{written}    auth: {{ vedauth: {{ client_id: x, jwt: {{ env: JWT }} }} }}
"
        ));
        assert_eq!(config.vendors[0].late_client_auth, want, "{written}");
    }
    let config = valid(&vendor("upstream: https://a.example"));
    assert!(!config.vendors[0].late_client_auth);
    // A mock of such a server may use plaintext.
    valid(
        "vendors:
  venafi:
    preset: venafi
    upstream: http://127.0.0.1:1
    allow_plaintext: true
    auth: { vedauth: { client_id: x, jwt: { env: JWT } } }
",
    );
}

#[test]
fn what_comes_before_http_is_for_plaintext_and_for_named_networks() {
    let text = "\
listeners:
  - bind: 127.0.0.1:1
    h2c: true
    tls: { cert: a, key: b }
    proxy_protocol: { trusted: [ 10.0.0.0/8, '::1', 10.0.0.0/40 ] }
vendors:
  a:
    upstream: https://a.example
    proxy: http://us:hunter2@proxy:3128
  b:
    upstream: https://b.example
    proxy: proxy:3128
";
    let places: Vec<String> = mistakes(text)
        .into_iter()
        .map(|line| line.splitn(4, ": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    assert_eq!(
        places,
        [
            "3:10: listeners[0].h2c",
            "5:53: listeners[0].proxy_protocol.trusted[2]",
            "9:12: vendors.a.proxy",
            "12:12: vendors.b.proxy",
        ]
    );
}

#[test]
fn every_mistake_of_a_file_is_reported_at_once_in_its_order() {
    let text = "\
listners: []
listeners:
  - bind: localhost:80
    h2c: true
  - bind: 0.0.0.0:8080
threads: 0
drain: { delay: 5 }
callers:
vendors:
  a:
    prefx: /a
    upstream: http://a.example
    prefix: a
    prefix: b
    auth: { bearer: { token: hunter2 } }
    timeouts: { connect: 5x, idle: 1y }
    breaker: { failures: -3 }
  b c:
    upstream: https://b.example
    cookies: stirp
";
    assert_eq!(
        mistakes(text),
        [
            "1:1: listners: unknown key; did you mean `listeners`?",
            "3:11: listeners[0].bind: is not an IP address with a port; \
             names are not looked up: write `127.0.0.1:80` or `[::1]:80`",
            "5:11: listeners[1].bind: a listener beyond loopback needs `callers:`; \
             name who may call (`countersign caller new NAME` makes a key), bind to 127.0.0.1, \
             or write `callers: anyone`",
            "6:10: threads: must be at least 1",
            "7:17: drain.delay: must be a duration, not a number; \
             durations are written `250ms`, `5s`, `2m` or `1h`",
            "8:1: callers: has no value; give it one, or remove the key",
            "11:5: vendors.a.prefx: unknown key; did you mean `prefix`?",
            "12:15: vendors.a.upstream: is not an https:// URL; \
             `allow_plaintext: true` accepts it; the credential travels in clear",
            "14:5: vendors.a.prefix: occurs twice, first in line 13",
            "14:13: vendors.a.prefix: must begin with `/`; \
             prefixes are written `/acme` or `/certificates/acme`",
            "15:30: vendors.a.auth.bearer.token: must be a secret reference, not text; \
             write `{ env: NAME }` or `{ file: PATH }`",
            "16:26: vendors.a.timeouts.connect: is not a duration; \
             durations are written `250ms`, `5s`, `2m` or `1h`",
            "16:36: vendors.a.timeouts.idle: is not a duration; \
             durations are written `250ms`, `5s`, `2m` or `1h`",
            "17:26: vendors.a.breaker.failures: must be a whole number of 0 or more",
            "18:3: vendors.\"b c\": is not a vendor's name; \
             names are letters, digits, `.`, `_` and `-`",
            "20:14: vendors.\"b c\".cookies: must be one of `strip`, `pass`; \
             did you mean `strip`?",
        ]
    );
}

#[test]
fn what_is_no_document_is_said_plainly() {
    for (text, want) in [
        ("", "1:1: the file is empty; it needs at least `vendors:`"),
        ("# nothing\n", "1:1: the file is empty"),
        ("- a\n", "1:1: must be a mapping, not a list"),
        ("a", "1:1: must be a mapping, not text"),
        ("vendors: {}\n", "1:10: vendors: is empty"),
        ("access_log: true\n", "1:1: vendors: is missing"),
        ("vendors: [\n", "2:1: not YAML: "),
        ("vendors:\n  a: b: c\n", "2:7: not YAML: "),
        ("vendors:\n\ta: b\n", "2:"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document begins here"),
        ("vendors: !x {}\n", "1:10: tags (`!…`) have no meaning here"),
        ("? [a]\n: b\n", "1:3: a key must be text"),
        ("vendors: *nowhere\n", "1:10: not YAML: "),
    ] {
        let found = mistakes(text);
        assert!(found[0].starts_with(want), "{text:?}: {found:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    let load = || {
        let mistakes = Config::load(&path, Secrets::FormOnly).unwrap_err();
        assert_eq!(mistakes.len(), 1);
        mistakes[0].to_string()
    };
    let name = path.display();

    let missing = load();
    assert!(
        missing.starts_with(&format!("{name}: cannot be read: No such file")),
        "{missing}"
    );
    assert!(missing.ends_with("; specify another file with `--config` or COUNTERSIGN_CONFIG"));
    std::fs::write(&path, b"vendors:\n  \xc3\xa4\xff: {}\n").unwrap();
    assert_eq!(
        load(),
        format!("{name}:2:4: not UTF-8 text; save the file as UTF-8")
    );
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(
        load().starts_with(&format!("{name}: cannot be read: ")),
        "{}",
        load()
    );
}

#[test]
fn a_store_is_a_directory_a_redis_or_a_kubernetes_secret() {
    let with = |store: &str| {
        let text = format!("store: {store}\n{}", vendor("upstream: https://a.example"));
        valid(&text).store
    };
    let env = |name: &str| SecretRef::Env(name.to_owned());
    assert_eq!(
        with("{ file: { dir: s }, encryption_key: { env: K } }"),
        Store::File {
            dir: "dir/s".into(),
            encryption_key: Some(env("K")),
        }
    );
    assert_eq!(
        with("{ redis: { url: { env: U }, ca: redis.pem }, encryption_key: { env: K } }"),
        Store::Redis {
            url: env("U"),
            ca: Some("dir/redis.pem".into()),
            encryption_key: env("K"),
        }
    );
    assert_eq!(
        with("{ kubernetes: { secret: s.1, namespace: apps }, encryption_key: { env: K } }"),
        Store::Kubernetes {
            secret: "s.1".to_owned(),
            namespace: Some("apps".to_owned()),
            encryption_key: env("K"),
        }
    );
}

#[test]
fn a_shared_store_without_a_key_or_beside_another_is_a_mistake() {
    let url = "url: { value: 'redis://u:hunter2@h' }";
    let key = "encryption_key: { env: K }";
    for (store, expected) in [
        (
            format!("{{ redis: {{ {url} }} }}"),
            vec![
                "1:1: store.encryption_key: is missing; `redis` needs it, the same in every \
                 replica; `openssl rand -base64 32` makes one",
            ],
        ),
        (
            "{ kubernetes: { secret: s } }".to_owned(),
            vec![
                "1:1: store.encryption_key: is missing; `kubernetes` needs it, the same in every \
                 replica; `openssl rand -base64 32` makes one",
            ],
        ),
        (
            format!("{{ file: {{}}, kubernetes: {{ secret: s }}, {key} }}"),
            vec![
                "1:20: store.kubernetes: there is `store.file` already; give exactly one of \
                 `file`, `redis` and `kubernetes`",
            ],
        ),
        (
            format!("{{ redis: {{}}, {key} }}"),
            vec!["1:10: store.redis.url: is missing"],
        ),
        (
            format!("{{ redis: {{ url: {{ value: 'http://hunter2' }} }}, {key} }}"),
            vec![
                "1:24: store.redis.url: is not the URL of a Redis; it reads \
                 `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` for TLS",
            ],
        ),
        (
            format!("{{ redis: {{ {url}, ca: ca.pem }}, {key} }}"),
            vec!["1:58: store.redis.ca: is for TLS, and the URL is not; write `rediss://` there"],
        ),
        (
            format!("{{ redis: {{ url: {{ value: 'rediss://h/#insecure' }} }}, {key} }}"),
            vec![
                "1:24: store.redis.url: has a `#` part; the certificate is always verified; `ca` \
                 names whom to trust",
            ],
        ),
        (
            format!("{{ kubernetes: {{ secret: a_b, namespace: a.b }}, {key} }}"),
            vec![
                "1:32: store.kubernetes.secret: is not the name of a Kubernetes object; names \
                 have lower-case letters, digits, `-` and `.`, and begin and end with a letter or \
                 digit",
                "1:48: store.kubernetes.namespace: is not the name of a Kubernetes namespace; \
                 names have at most 63 lower-case letters, digits and `-`",
            ],
        ),
    ] {
        let text = format!("store: {store}\n{}", vendor("upstream: https://a.example"));
        assert_eq!(mistakes(&text), expected, "{store}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn each_mistake_has_its_place() {
    // The lines of a vendor, which begin at 3:5, and what is wrong with them.
    for (lines, want) in [
        // Rests.
        (
            "upstream: https://x.example\nbreaker: { open_for: 0s }",
            "4:26: vendors.a.breaker.open_for: must not be zero",
        ),
        // Ways in.
        (
            "upstream: https://x.example\nprefix: /a/",
            "4:13: vendors.a.prefix: must not end with",
        ),
        (
            "upstream: https://x.example\nprefix: /a//b",
            "4:13: vendors.a.prefix: must not have an empty",
        ),
        (
            "upstream: https://x.example\nprefix: /a/../b",
            "4:13: vendors.a.prefix: must not have a dot",
        ),
        (
            "upstream: https://x.example\nprefix: /a%62",
            "4:13: vendors.a.prefix: has a character",
        ),
        (
            "upstream: https://x.example\nhosts: [ 'a:80' ]",
            "4:14: vendors.a.hosts[0]: is not a host name",
        ),
        (
            "upstream: https://x.example\nhosts: [ a, A ]",
            "4:17: vendors.a.hosts[1]: already leads to `a`",
        ),
        // The upstream.
        (
            "auth: { bearer: { token: { env: T } } }",
            "2:3: vendors.a.upstream: is missing; where requests go",
        ),
        (
            "upstream: x.example",
            "3:15: vendors.a.upstream: is not an https:// URL",
        ),
        (
            "upstream: ftp://x.example",
            "3:15: vendors.a.upstream: is not an https:// URL",
        ),
        (
            "upstream: https://u:p@x.example",
            "3:15: vendors.a.upstream: must not have a user or password",
        ),
        (
            "upstream: https://x.example/?q",
            "3:15: vendors.a.upstream: must not have a query",
        ),
        (
            "upstream: https://x.example/a/../b",
            "3:15: vendors.a.upstream: must not have a dot segment",
        ),
        (
            "upstream: https://x.example//b",
            "3:15: vendors.a.upstream: must not have an empty segment",
        ),
        (
            "upstream: https://x.example/a%2Fb",
            "3:15: vendors.a.upstream: has a character",
        ),
        (
            "upstream: https://169.254.169.254",
            "3:15: vendors.a.upstream: is a link-local address",
        ),
        (
            "upstream: 'https://[2002:a9fe:a9fe::1]'",
            "3:15: vendors.a.upstream: is a link-local address",
        ),
        (
            "upstream: https://168.63.129.16",
            "3:15: vendors.a.upstream: is a link-local address or another where clouds",
        ),
        (
            "upstream: https://x.example\nauth: { client_credentials: { token_url: \"https://100.100.100.200/t\", client_id: a, client_secret: { env: A } } }",
            "4:46: vendors.a.auth.client_credentials.token_url: is a link-local address",
        ),
        (
            "upstream: https://0xa9fea9fe/",
            "3:15: vendors.a.upstream: is a link-local address",
        ),
        (
            "upstream: 'https://[::ffff:169.254.1.1]'",
            "3:15: vendors.a.upstream: is a link-local address",
        ),
        (
            "upstream: http://x.example\nallow_plaintext: true\nclient_cert: { cert: c, key: k }",
            "5:5: vendors.a.client_cert: is never presented to an `http://` upstream",
        ),
        (
            "upstream: http://x.example\nallow_plaintext: true\ntls: { late_client_auth: true }",
            "5:30: vendors.a.tls.late_client_auth: has no meaning for an `http://` upstream",
        ),
        (
            "upstream: https://x.example\nclient_cert: { cert: c }",
            "4:5: vendors.a.client_cert.key: is missing",
        ),
        (
            "upstream: https://x.example\npreset: nosuch",
            "4:13: vendors.a.preset: there is no preset of this name; known here: `certcenter`",
        ),
        (
            "preset: certm",
            "3:13: vendors.a.preset: there is no preset of this name; did you mean `certn`?",
        ),
        (
            "upstream: http://x.example\nallow_plaintext: true\nauth: { vedauth: { client_id: a, certificate: { cert: c, key: k } } }",
            "5:38: vendors.a.auth.vedauth.certificate: a client certificate is never presented to",
        ),
        // Rules.
        (
            "upstream: https://x.example\nrefuse: [ /a, token ]",
            "4:19: vendors.a.refuse[1]: has a path that does not begin with `/`",
        ),
        (
            "upstream: https://x.example\nrefuse: [ GTE /a ]",
            "4:15: vendors.a.refuse[0]: names an unknown method; did you mean `GET`?",
        ),
        (
            "upstream: https://x.example\nallow: [ '!/a' ]",
            "4:12: vendors.a.allow: has only exceptions",
        ),
        (
            "upstream: https://x.example\nallow: []",
            "4:12: vendors.a.allow: is empty",
        ),
        // Credentials.
        (
            "upstream: https://x.example\nauth: {}",
            "4:11: vendors.a.auth: is empty; give exactly one of `bearer`, `basic`",
        ),
        (
            "upstream: https://x.example\nauth: { bearer: {}, basic: {} }",
            "4:11: vendors.a.auth: gives more than one; give exactly one of",
        ),
        (
            "upstream: https://x.example\nauth: { bearer: {} }",
            "4:13: vendors.a.auth.bearer.token: is missing",
        ),
        (
            "upstream: https://x.example\nauth: { bearer: { token: { evn: T } } }",
            "4:32: vendors.a.auth.bearer.token: holds an unknown key; did you mean `env`?",
        ),
        (
            "upstream: https://x.example\nauth: { bearer: { token: { env: T, file: f } } }",
            "4:30: vendors.a.auth.bearer.token: gives more than one; write `{ env: NAME }`",
        ),
        (
            "upstream: https://x.example\nauth: { bearer: { token: { env: a-b } } }",
            "4:37: vendors.a.auth.bearer.token.env: is not the name of an environment variable",
        ),
        (
            "upstream: https://x.example\nauth: { bearer: { token: { value: '' } } }",
            "4:39: vendors.a.auth.bearer.token.value: is empty",
        ),
        (
            "upstream: https://x.example\nauth: { basic: { username: 'a:b', password: { env: P } } }",
            "4:32: vendors.a.auth.basic.username: must not hold a colon",
        ),
        (
            "upstream: https://x.example\nauth: { basic: { username: 17, password: { env: P } } }",
            "4:32: vendors.a.auth.basic.username: must be text or a secret reference, not a number; put it in quotes",
        ),
        (
            "upstream: https://x.example\nauth: { headers: {} }",
            "4:22: vendors.a.auth.headers: is empty",
        ),
        (
            "upstream: https://x.example\nauth: { headers: { 'a b': x } }",
            "4:24: vendors.a.auth.headers.\"a b\": is not a header's name",
        ),
        (
            "upstream: https://x.example\nauth: { headers: { Host: x } }",
            "4:24: vendors.a.auth.headers.Host: cannot carry a credential",
        ),
        (
            "upstream: https://x.example\nauth: { headers: { Transfer-Encoding: x } }",
            "4:24: vendors.a.auth.headers.Transfer-Encoding: cannot carry",
        ),
        (
            "upstream: https://x.example\nauth: { headers: { x-a: b, X-A: c } }",
            "4:32: vendors.a.auth.headers.X-A: is given twice",
        ),
        (
            "upstream: https://x.example\nauth: { headers: { x-a: \"b\\nc\" } }",
            "4:29: vendors.a.auth.headers.x-a: holds a character",
        ),
        (
            "upstream: https://x.example\nauth: { query: { key: plain } }",
            "4:27: vendors.a.auth.query.key: must be a secret reference, not text",
        ),
    ] {
        let text = vendor(lines);
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{text}{found:#?}");
        assert!(found[0].starts_with(want), "{text}{found:#?}");
    }
}

#[test]
fn a_token_login_is_complete_and_consistent() {
    let at = "vendors.a.auth.client_credentials";
    let credentials = |lines: &str| {
        let mut text = "upstream: https://x.example\nauth:\n  client_credentials:\n".to_owned();
        for line in lines.lines() {
            writeln!(text, "    {line}").unwrap();
        }
        vendor(&text)
    };
    let base = "token_url: https://t.example/token\nclient_id: me\n";
    for (lines, want) in [
        (
            "client_id: x\nclient_secret: { env: S }",
            vec![format!("5:7: {at}.token_url: is missing")],
        ),
        (base, vec![format!("5:7: {at}.client_secret: is missing")]),
        (
            "token_url: http://t.example/token\nclient_id: x\nclient_secret: { env: S }",
            vec![format!(
                "6:20: {at}.token_url: is not an https:// URL; `allow_plaintext: true` accepts it; \
                 the client's secret and the tokens travel in clear"
            )],
        ),
        (
            &format!("{base}client_secret: {{ env: S }}\nclient_auth: bsic"),
            vec![format!(
                "9:22: {at}.client_auth: must be one of `basic`, `post`, `json`, \
                 `private_key_jwt`, `tls`; did you mean `basic`?"
            )],
        ),
        (
            &format!("{base}client_auth: private_key_jwt\nclient_secret: {{ env: S }}"),
            vec![
                format!("5:7: {at}.private_key: is missing"),
                format!(
                    "9:9: {at}.client_secret: is not used by this `client_auth`; \
                     `basic`, `post` and `json` use it"
                ),
            ],
        ),
        (
            &format!("{base}client_secret: {{ env: S }}\nalgorithm: HS256"),
            vec![format!(
                "9:20: {at}.algorithm: must be one of `RS256`, `RS384`"
            )],
        ),
        (
            &format!("{base}client_auth: tls"),
            vec![format!(
                "5:7: {at}.client_cert: is missing; here, or as the vendor's own `client_cert`"
            )],
        ),
        (
            &format!("{base}client_secret: {{ env: S }}\nparams: {{ client_secret: x, a: 1 }}"),
            vec![
                format!("9:19: {at}.params.client_secret: is set by the proxy"),
                format!("9:40: {at}.params.a: must be text, not a number; put it in quotes"),
            ],
        ),
        (
            &format!("{base}client_secret: {{ env: S }}\nrequest_timeout: 0s"),
            vec![format!("9:26: {at}.request_timeout: must be more than 0")],
        ),
    ] {
        let text = credentials(lines);
        let found = mistakes(&text);
        assert_eq!(found.len(), want.len(), "{text}{found:#?}");
        for (found, want) in found.iter().zip(&want) {
            assert!(found.starts_with(want), "{text}{found}");
        }
    }
}

#[test]
fn a_vedauth_grant_is_obtained_in_exactly_one_way() {
    let vedauth = |fields: &str| {
        vendor(&format!(
            "upstream: https://x.example/base\nauth: {{ vedauth: {{ client_id: me, {fields} }} }}"
        ))
    };
    for (fields, want) in [
        (
            "refresh: true",
            "4:13: vendors.a.auth.vedauth.certificate: is missing; or `username`",
        ),
        (
            "username: u",
            "4:13: vendors.a.auth.vedauth.password: is missing",
        ),
        (
            "username: u, password: { env: P }, jwt: { env: J }",
            "4:22: vendors.a.auth.vedauth: has more than one way to obtain the grant",
        ),
    ] {
        let found = mistakes(&vedauth(fields));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(want), "{found:#?}");
    }

    for (fields, url) in [
        ("jwt: { env: J }", "https://x.example/vedauth"),
        (
            "jwt: { env: J }, url: 'https://t.example'",
            "https://t.example/vedauth",
        ),
        (
            "jwt: { env: J }, url: 'https://t.example/x/VEDauth/'",
            "https://t.example/x/VEDauth",
        ),
    ] {
        let config = valid(&vedauth(fields));
        let Some(Auth::Vedauth(read)) = &config.vendors[0].auth else {
            panic!("{fields}");
        };
        assert_eq!(read.url.as_str(), url);
        assert!(read.refresh && matches!(read.grant, VedauthGrant::Jwt(_)));
    }
}

#[test]
fn ways_in_are_taken_once() {
    let text = "\
vendors:
  a: { upstream: 'https://a.example', hosts: [ x.internal ] }
  b: { upstream: 'https://b.example', prefix: /a }
  c: { upstream: 'https://c.example', hosts: [ X.internal ] }
";
    assert_eq!(
        mistakes(text),
        [
            "3:47: vendors.b.prefix: is also the prefix of `a`; every vendor needs a prefix of its own",
            "4:48: vendors.c.hosts[0]: already leads to `a`; a host leads to one vendor",
        ]
    );
}

#[test]
fn listeners_beyond_loopback_need_callers() {
    for (bind, ok) in [
        ("127.0.0.1:0", true),
        ("127.9.9.9:1", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", false),
        ("[::]:1", false),
        ("10.0.0.1:1", false),
    ] {
        let text = |callers: &str| {
            format!(
                "listeners: [ {{ bind: '{bind}' }} ]\n{callers}{}",
                vendor("upstream: https://a.example")
            )
        };
        assert_eq!(parse(&text("")).is_ok(), ok, "{bind}");
        assert!(parse(&text("callers: anyone\n")).is_ok(), "{bind}");
        assert!(parse(&text("callers: {}\n")).is_ok(), "{bind}");
    }
    let same = "listeners: [ { bind: '127.0.0.1:9090' } ]\nvendors: { a: { upstream: 'https://a.example' } }\n";
    assert!(mistakes(same)[0].starts_with("1:1: admin.bind: a data listener has the admin"));
}

#[test]
fn callers_have_keys_of_their_own_and_may_do_what_is_listed() {
    let text = "\
callers:
  one: { api_key: { sha256: 1111111111111111111111111111111111111111111111111111111111111111 }, allow: [ a, '*', 'b get,POST /x/**' ] }
  two: { api_key: { env: KEY } }
vendors:
  a: { upstream: 'https://a.example' }
  b: { upstream: 'https://b.example' }
";
    // Digits alone are a number in YAML.
    assert!(mistakes(text)[0].starts_with(
        "2:29: callers.one.api_key.sha256: must be text, not a number; put it in quotes"
    ));
    let text = text.replace("1111 }", "111a }");
    let Callers::Known(callers) = valid(&text).callers else {
        panic!("no callers");
    };
    let grants: Vec<_> = callers[0]
        .allow
        .iter()
        .map(|g| (g.vendor.as_deref(), g.methods.join(","), g.path.as_deref()))
        .collect();
    assert_eq!(
        grants,
        [
            (Some("a"), String::new(), None),
            (None, String::new(), None),
            (Some("b"), "GET,POST".into(), Some("/x/**")),
        ]
    );
    assert!(callers[1].allow.is_empty());

    let digest = "a".repeat(64);
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let text = format!(
        "\
callers:
  a: {{ api_key: {{ sha256: {digest} }}, allow: [ acne, 'acme GTE', acme /x /y ] }}
  b: {{ api_key: {{ sha256: {digest} }} }}
  c: {{ api_key: {{ env: K }} }}
  d: {{ api_key: {{ env: K }} }}
  e: {{ api_key: {{ sha256: {empty} }} }}
  f: {{ api_key: {{ sha256: short }} }}
  g: {{ api_key: bare }}
  h: {{}}
vendors: {{ acme: {{ upstream: 'https://a.example' }} }}
"
    );
    let own = "is also the key of";
    let found = mistakes(&text);
    for (found, want) in found.iter().zip([
        "2:104: callers.a.allow[0]: names no vendor of this file; did you mean `acme`?".to_owned(),
        "2:110: callers.a.allow[1]: names an unknown method; did you mean `GET`?".to_owned(),
        "2:122: callers.a.allow[2]: has more than vendor, methods and path".to_owned(),
        format!("3:17: callers.b.api_key: {own} `a`"),
        format!("5:17: callers.d.api_key: {own} `c`"),
        "6:27: callers.e.api_key.sha256: is the digest of an empty key".to_owned(),
        "7:27: callers.f.api_key.sha256: is not a SHA-256 digest".to_owned(),
        "8:17: callers.g.api_key: must be a key reference, not text; write `{ sha256: … }`"
            .to_owned(),
        "9:3: callers.h.api_key: is missing".to_owned(),
    ]) {
        assert!(found.starts_with(&want), "{found}\n{want}");
    }
    assert_eq!(found.len(), 9, "{found:#?}");
}

#[test]
fn callers_may_have_certificates_tokens_and_rates() {
    let text = "\
listeners: [ { bind: '127.0.0.1:1', tls: { cert: a, key: b, client_ca: ca.pem } } ]
callers:
  uri: { certificate: { san: 'spiffe://corp/CI' } }
  odd: { certificate: { san: 'uri:urn:x' } }
  dns: { certificate: { san: CI.Corp }, rate: { per_second: 5 } }
  mail: { certificate: { san: CI@Corp }, rate: { per_second: 5, burst: 9 } }
  pods: { jwt: { issuer: 'https://i', audience: me, subject: 'a:*', jwks_url: 'https://i/keys', ca: ca.pem, jwks_token: { env: T } } }
  file: { api_key: { env: K }, jwt: { issuer: 'https://i', audience: me, jwks_file: keys.json } }
vendors: { a: { upstream: 'https://a.example', limits: { rate: { per_second: 7 } } } }
";
    let config = valid(text);
    assert!(config.listeners[0].client_ca.is_some());
    let Callers::Known(callers) = config.callers else {
        panic!("no callers");
    };
    let names: Vec<_> = callers
        .iter()
        .filter_map(|caller| caller.certificate.clone())
        .collect();
    assert_eq!(
        names,
        [
            San::Uri("spiffe://corp/CI".into()),
            San::Uri("urn:x".into()),
            San::Dns("ci.corp".into()),
            San::Email("CI@corp".into()),
        ]
    );
    let rate = |nth: usize| {
        let rate = callers[nth].rate.unwrap();
        (rate.every.as_millis(), rate.burst.get())
    };
    assert_eq!((rate(2), rate(3)), ((200, 5), (200, 9)));
    let jwt = callers[4].jwt.as_ref().unwrap();
    assert_eq!(jwt.subject.as_deref(), Some("a:*"));
    assert!(matches!(&jwt.keys, KeySource::Url { url, .. } if url.as_str() == "https://i/keys"));
    assert!(callers[5].api_key.is_some());
    let limit = config.vendors[0].limits.rate.unwrap();
    assert_eq!((limit.every.as_millis(), limit.burst.get()), (142, 7));
}

#[test]
fn a_rate_may_be_a_fraction_between_one_a_day_and_any() {
    for (written, wanted) in [
        ("per_second: 0", None),
        ("per_second: 0.0", None),
        ("per_second: 0.1", Some((10_000, 1))),
        ("per_second: 0.5, burst: 3", Some((2_000, 3))),
        ("per_second: 2.5", Some((400, 3))),
        ("per_second: 1e3", Some((1, 1000))),
    ] {
        let text = format!(
            "vendors: {{ a: {{ upstream: 'https://a.example', limits: {{ rate: {{ {written} }} }} }} }}"
        );
        let rate = valid(&text).vendors[0].limits.rate;
        let rate = rate.map(|rate| (rate.every.as_millis(), rate.burst.get()));
        assert_eq!(rate, wanted, "{written}");
    }
    for (written, wanted) in [
        (
            "per_second: -1",
            "limits.rate.per_second: must be 0, or between",
        ),
        (
            "per_second: -0.5",
            "limits.rate.per_second: must be 0, or between",
        ),
        (
            "per_second: 1e-9",
            "limits.rate.per_second: must be 0, or between",
        ),
        (
            "per_second: 1e10",
            "limits.rate.per_second: must be 0, or between",
        ),
        ("per_second: .inf", "limits.rate.per_second: "),
        ("per_second: .nan", "limits.rate.per_second: "),
        (
            "per_second: fast",
            "limits.rate.per_second: must be a number, not text",
        ),
        (
            "per_second: 0.001, burst: 0",
            "limits.rate.burst: must be at least 1",
        ),
        (
            "per_second: 0.001, burst: 10000000",
            "limits.rate.burst: would take longer",
        ),
    ] {
        let text = format!(
            "vendors: {{ a: {{ upstream: 'https://a.example', limits: {{ rate: {{ {written} }} }} }} }}"
        );
        let found = mistakes(&text);
        assert!(found[0].contains(wanted), "{written}: {found:?}");
    }
}

#[test]
fn a_permitted_header_name_is_one_that_needs_it_and_frames_nothing() {
    let text = |names: &str| {
        format!("vendors: {{ a: {{ upstream: 'https://a.example', header_names: [ {names} ] }} }}")
    };
    let names = &valid(&text("X_Account, x.trace")).vendors[0].header_names;
    assert_eq!(names[..], ["x_account", "x.trace"]);
    for (name, wanted) in [
        ("X-Account", "header_names[0]: needs no permission"),
        (
            "'a b'",
            "header_names[0]: is not the name of a header field",
        ),
        ("'a:'", "header_names[0]: is not the name of a header field"),
        ("''", "header_names[0]: is not the name of a header field"),
        (
            "Content_Length",
            "header_names[0]: could be taken for `content-length`",
        ),
        (
            "transfer.encoding",
            "header_names[0]: could be taken for `transfer-encoding`",
        ),
    ] {
        let found = mistakes(&text(name));
        assert!(found[0].contains(wanted), "{name}: {found:?}");
    }
}

#[test]
fn what_is_wrong_with_a_callers_proof_has_its_place() {
    let jwt = "issuer: 'https://i', audience: me";
    for (caller, want) in [
        (
            "certificate: {}",
            "2:8: callers.a.certificate.san: is missing",
        ),
        (
            "certificate: { san: '' }",
            "2:28: callers.a.certificate.san: is empty",
        ),
        (
            "certificate: { san: 'dns:*.corp' }",
            "2:28: callers.a.certificate.san: must not have a wildcard; one name, exactly",
        ),
        (
            "certificate: { san: 'CN=ci' }",
            "2:28: callers.a.certificate.san: is not a DNS name; write `uri:…`, `dns:…` or",
        ),
        (
            "certificate: { san: 'uri:ci' }",
            "2:28: callers.a.certificate.san: is not a URI; as it stands in the certificate",
        ),
        (
            "certificate: { san: 'email:ci' }",
            "2:28: callers.a.certificate.san: is not an e-mail address",
        ),
        (
            "jwt: { audience: x, jwks_file: k }",
            "2:8: callers.a.jwt.issuer: is missing",
        ),
        (
            "jwt: { JWT }",
            "2:8: callers.a.jwt.jwks_url: is missing; where the issuer publishes its keys; or \
             `jwks_file`",
        ),
        (
            "jwt: { JWT, jwks_file: k, jwks_url: 'https://i' }",
            "2:50: callers.a.jwt.jwks_file: stands beside `jwks_url`; the issuer's keys come",
        ),
        (
            "jwt: { JWT, jwks_file: k, ca: x }",
            "2:64: callers.a.jwt.ca: is for `jwks_url`, and the keys come from a file",
        ),
        (
            "jwt: { JWT, jwks_url: 'http://i/keys' }",
            "2:60: callers.a.jwt.jwks_url: is not an https:// URL; anyone who can change the keys",
        ),
        (
            "api_key: { env: K }, rate: { burst: 2 }",
            "2:29: callers.a.rate.per_second: is missing; a burst is what may exceed the rate",
        ),
        (
            "api_key: { env: K }, rate: { per_second: 1, burst: 0 }",
            "2:59: callers.a.rate.burst: must be at least 1",
        ),
        (
            "certificate: { san: a.b }\n  b: { certificate: { san: 'dns:A.b' } }",
            "3:28: callers.b.certificate.san: is also the certificate of `a`; every caller needs a \
             certificate of its own",
        ),
    ] {
        let caller = caller.replace("JWT", jwt);
        let closing = if caller.contains('\n') { "" } else { " }" };
        let caller = caller.replacen('\n', " }\n", 1);
        let text = format!(
            "callers:\n  a: {{ {caller}{closing}\nvendors: {{ v: {{ upstream: 'https://v.example' }} }}\n"
        );
        let found = mistakes(&text);
        assert!(found[0].starts_with(want), "{text}{found:#?}\n{want}");
    }
    let warned = valid("callers: { a: { certificate: { san: a.b } } }\nvendors: { v: { upstream: 'https://v.example' } }\n").warnings;
    let warned: Vec<_> = warned.iter().map(ToString::to_string).collect();
    assert!(
        warned[0].contains("callers.a.certificate: no listener asks for certificates"),
        "{warned:?}"
    );
}

#[test]
fn accepted_risks_are_warned_of() {
    let text = "\
vendors:
  a:
    upstream: http://a.example
    allow_plaintext: true
    auth: { headers: { login: me, x-api-key: plain, x-other: { value: hunter2 } } }
  b:
    upstream: https://b.example
    allow_plaintext: true
    auth:
      client_credentials:
        token_url: http://t.example
        client_id: me
        client_secret: { env: S }
";
    let warnings: Vec<String> = valid(text)
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        warnings,
        [
            "dir/p.yaml:3:15: vendors.a.upstream: the credential travels in clear; use https://",
            "dir/p.yaml:5:46: vendors.a.auth.headers.x-api-key: looks like a secret and is \
             written into the configuration; `{ env: NAME }` or `{ file: PATH }` keep it out",
            "dir/p.yaml:5:71: vendors.a.auth.headers.x-other.value: a secret is written into the \
             configuration; `{ env: NAME }` or `{ file: PATH }` keep it out",
            "dir/p.yaml:11:20: vendors.b.auth.client_credentials.token_url: the client's secret \
             and the tokens travel in clear; use https://",
        ]
    );
}

#[test]
fn a_grant_that_replicas_share_and_each_would_revoke_is_warned_of() {
    let text = "\
store: { redis: { url: { env: U } }, encryption_key: { env: K } }
vendors:
  a:
    upstream: https://a.example
    auth:
      vedauth: { url: 'https://a.example/vedauth', client_id: me, username: u, password: { env: P }, revoke_on_exit: true }
";
    let warned = &valid(text).warnings;
    assert_eq!(warned.len(), 1, "{warned:?}");
    let warned = warned[0].to_string();
    assert!(
        warned.starts_with(
            "dir/p.yaml:6:118: vendors.a.auth.vedauth.revoke_on_exit: the grant is shared"
        ),
        "{warned}"
    );
    let alone = text.lines().skip(1).collect::<Vec<_>>().join("\n");
    assert_eq!(valid(&alone).warnings, []);
}

#[test]
fn a_preset_needs_only_what_it_cannot_know() {
    let config = valid(&vendor(
        "preset: certn\nauth: { client_credentials: { client_id: me, client_secret: { file: s } } }",
    ));
    let a = &config.vendors[0];
    assert_eq!(a.preset.as_deref(), Some("certn"));
    assert_eq!(a.upstream.origin(), "https://api.certn.co");
    let Some(Auth::ClientCredentials(client)) = &a.auth else {
        panic!("{:?}", a.auth);
    };
    assert_eq!(client.token_url.as_str(), "https://api.certn.co/token/");
    assert!(
        matches!(&client.client_auth, ClientAuth::Basic(SecretRef::File(path))
        if path == Path::new("dir/s"))
    );
    for rule in ["/token", "/token/**", "/token/", "/api/v*/login*"] {
        assert!(rules(&a.refuse).contains(&rule.to_owned()), "{rule}");
    }

    assert_eq!(
        mistakes(&vendor("preset: certn")),
        [
            "2:3: vendors.a.auth.client_credentials.client_id: is missing; the preset cannot know it",
            "2:3: vendors.a.auth.client_credentials.client_secret: is missing; the preset cannot know it",
        ]
    );
    assert_eq!(
        mistakes(&vendor(
            "preset: venafi\nauth: { vedauth: { client_id: me, jwt: { env: J } } }"
        )),
        ["2:3: vendors.a.upstream: is missing; the preset cannot know it"]
    );
    assert_eq!(
        mistakes(&vendor(
            "preset: sectigo-private\nauth: { headers: { login: me, customeruri: x } }"
        )),
        ["2:3: vendors.a.client_cert: is missing; the preset cannot know it"]
    );
}

#[test]
fn the_file_wins_over_its_preset_field_by_field() {
    let config = valid(&vendor(
        "preset: certcenter-oauth
upstream: https://gateway.example/cc
auth:
  client_credentials:
    client_id: me
    client_secret: { env: S }
    client_auth: post
    scope: ''
refuse: [ /more ]",
    ));
    let a = &config.vendors[0];
    assert_eq!(a.upstream.origin(), "https://gateway.example");
    assert_eq!(a.upstream.base, "/cc");
    let Some(Auth::ClientCredentials(client)) = &a.auth else {
        panic!("{:?}", a.auth);
    };
    assert_eq!(
        client.token_url.as_str(),
        "https://api.certcenter.com/oauth2/token"
    );
    assert!(matches!(client.client_auth, ClientAuth::Post(_)));
    assert_eq!(client.scope, None);
    // Behind a gateway the same paths are refused.
    for rule in [
        "/oauth2/**",
        "/cc/oauth2/**",
        "/cc/rest/v*/Profile",
        "/more",
    ] {
        assert!(rules(&a.refuse).contains(&rule.to_owned()), "{rule}");
    }

    // Another kind replaces the preset's; what is refused stays.
    let config = valid(&vendor(
        "preset: certn\nauth: { bearer: { token: { env: T } } }",
    ));
    assert!(matches!(config.vendors[0].auth, Some(Auth::Bearer { .. })));
    assert!(rules(&config.vendors[0].refuse).contains(&"/token/**".to_owned()));

    // Header names are spelled as the vendor knows them.
    let config = valid(&vendor(
        "preset: sectigo\nauth: { headers: { LOGIN: me, password: { env: P }, customeruri: x } }",
    ));
    let Some(Auth::Headers(headers)) = &config.vendors[0].auth else {
        panic!("no headers");
    };
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["login", "password", "customerUri"]);
}

#[test]
fn allow_of_the_file_only_narrows_the_presets() {
    let private = |allow: &str| {
        vendor(&format!(
            "preset: sectigo-private\nclient_cert: {{ cert: c, key: k }}\n\
             auth: {{ headers: {{ login: me, customerUri: x }} }}\nallow: [ {allow} ]"
        ))
    };
    let config = valid(&private("/private/api/ssl/**, '!/private/api/ssl/x'"));
    assert_eq!(
        rules(&config.vendors[0].allow),
        ["/private/api/ssl/**", "!/private/api/ssl/x"]
    );
    assert_eq!(
        mistakes(&private("/private/api/**, /api/**")),
        [
            "6:31: vendors.a.allow[1]: permits more than the preset does; \
          the preset allows `/private/**`, and can only be narrowed"
        ]
    );
}

#[test]
fn a_part_of_an_address_is_answered_with_the_whole_one() {
    for (written, hint) in [
        ("8080", "`127.0.0.1:8080`"),
        ("'8080'", "`127.0.0.1:8080`"),
        ("':8080'", "`127.0.0.1:8080`"),
        ("localhost:8080", "`127.0.0.1:8080`"),
        ("'*:8080'", "`0.0.0.0:8080`"),
        ("127.0.0.2", "`127.0.0.2:8080`"),
        ("'[::1]'", "`[::1]:8080`"),
        ("'::1'", "`[::1]:8080`"),
        ("99999", "`127.0.0.1:8080` or `[::1]:8080`"),
        ("true", "`127.0.0.1:8080` or `[::1]:8080`"),
        ("proxy.test:8080", "`127.0.0.1:8080` or `[::1]:8080`"),
    ] {
        let with = |bind: &str| {
            let vendor = vendor("upstream: https://a.example");
            format!("callers: anyone\nlisteners: [ {{ bind: {bind} }} ]\n{vendor}")
        };
        let found = mistakes(&with(written));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("an IP address with a port"), "{found:#?}");
        assert!(found[0].contains(hint), "{written}: {found:#?}");
        // One round: what the hint says is right.
        let advice = hint.split('`').nth(1).unwrap();
        let config = valid(&with(&format!("'{advice}'")));
        assert_eq!(config.listeners[0].bind.to_string(), advice);
    }
    let admin = format!(
        "admin: {{ bind: 127.0.0.1 }}\n{}",
        vendor("upstream: https://a.example")
    );
    assert!(mistakes(&admin)[0].contains("`127.0.0.1:9090`"));
}

#[test]
fn a_redirect_uri_and_an_issuer_are_kept_as_they_are_written_or_refused() {
    let with = |uri: &str, issuer: &str| {
        vendor(&format!(
            "upstream: https://x.example
auth:
  authorization_code:
    authorize_url: https://x.example/authorize
    token_url: https://x.example/token
    client_id: me
    redirect_uri: {uri}
    issuer: {issuer}"
        ))
    };
    for (uri, issuer, kept) in [
        ("https://A.example:443", "''", None),
        (
            "HTTP://127.1/cb/../x",
            "https://X.example/",
            Some("https://X.example/"),
        ),
        (
            "com.example:/cb",
            "http://x.example/realms/a",
            Some("http://x.example/realms/a"),
        ),
    ] {
        let config = valid(&with(uri, issuer));
        let Some(Auth::AuthorizationCode(client)) = &config.vendors[0].auth else {
            panic!("no code");
        };
        assert_eq!(client.redirect_uri.as_str(), uri);
        assert_eq!(client.issuer.as_deref(), kept);
    }
    for (uri, issuer, message) in [
        (
            "'https://a.example/x y'",
            "''",
            "redirect_uri: has a character that no URL may have",
        ),
        (
            "\"https://a.ex\\tample/\"",
            "''",
            "redirect_uri: has a character that no URL may have",
        ),
        (
            "' https://a.example/'",
            "''",
            "redirect_uri: has a character that no URL may have",
        ),
        (
            "'https://a.example/#x'",
            "''",
            "redirect_uri: must not have a fragment",
        ),
        ("/callback", "''", "redirect_uri: is not an absolute URL"),
        (
            "https://a.example",
            "x.example",
            "issuer: is not an issuer identifier",
        ),
        (
            "https://a.example",
            "https://x.example/?a",
            "issuer: is not an issuer identifier",
        ),
        (
            "https://a.example",
            "https://u:hunter2@x.example",
            "issuer: is not an issuer identifier",
        ),
    ] {
        let found = mistakes(&with(uri, issuer));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(message), "{found:#?}");
    }
}

#[test]
fn token_paths_on_the_upstreams_server_are_refused_whatever_the_file_says() {
    let config = valid(&vendor(
        "upstream: https://x.example/base
auth:
  authorization_code:
    authorize_url: https://x.example/oauth/authorize/
    token_url: https://X.example:443/oauth/%74oken?x=1
    client_id: me
    redirect_uri: http://127.0.0.1/cb",
    ));
    assert_eq!(
        rules(&config.vendors[0].refuse),
        [
            "/oauth/token",
            "/oauth/token/",
            "/oauth/authorize",
            "/oauth/authorize/"
        ]
    );
    let Some(Auth::AuthorizationCode(client)) = &config.vendors[0].auth else {
        panic!("no code");
    };
    assert!(client.client_auth.is_none() && client.pkce && client.send_redirect_uri);

    let elsewhere = valid(&vendor(
        "upstream: https://x.example\nauth: { client_credentials: { token_url: 'https://y.example/t', client_id: a, client_secret: { env: S } } }",
    ));
    assert!(elsewhere.vendors[0].refuse.is_empty());

    let opened = vendor(
        "preset: venafi\nupstream: https://x.example\nrefuse: [ '!GET /vedauth/authorize/x', '!/vedauth/**' ]\nauth: { vedauth: { client_id: me, jwt: { env: J } } }",
    );
    let found = mistakes(&opened);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0]
            .starts_with("5:44: vendors.a.refuse[1]: opens the path where this vendor's tokens")
    );
    let config = valid(&opened.replace(", '!/vedauth/**'", ""));
    assert!(config.vendors[0].trailing_dots_ignored);
    assert!(
        rules(&config.vendors[0].refuse).contains(&"!GET /vedauth/authorize/verify".to_owned())
    );
}

#[test]
fn an_alias_stands_for_a_whole_value() {
    let config = valid(
        "vendors:
  a: { upstream: 'https://a.example', timeouts: &t { idle: 7s } }
  b: { upstream: 'https://b.example', timeouts: *t }
",
    );
    assert_eq!(config.vendors[1].timeouts.idle, Duration::from_secs(7));
    let wrong = "vendors:
  a: { upstream: 'https://a.example', timeouts: &t { idle: 7 } }
  b: { upstream: 'https://b.example', timeouts: *t }
";
    let found = mistakes(wrong);
    assert!(
        found[0].starts_with("2:60: vendors.a.timeouts.idle: "),
        "{found:#?}"
    );
    assert!(
        found[1].starts_with("3:39: vendors.b.timeouts.idle: "),
        "{found:#?}"
    );
    let merged = "x: &x {}\nvendors:\n  a:\n    <<: *x\n    upstream: https://a.example\n";
    assert!(mistakes(merged)[1].starts_with("4:5: vendors.a.\"<<\": merge keys are not supported"));
}

#[test]
fn secrets_and_certificates_are_looked_at_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let identity = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
    write("a.crt", &identity.cert.pem());
    write("a.key", &identity.signing_key.serialize_pem());
    write("b.key", &other.signing_key.serialize_pem());
    // What becomes of a key whose line breaks were lost.
    let flat = identity.signing_key.serialize_pem().replace('\n', " ");
    write("flat.key", &flat);
    write("empty", "\n");
    write("key32", &"k".repeat(32));
    write("two-lines", "hunter2\nhunter2\n");
    let check = |text: &str| -> Vec<String> {
        let path = dir.path().join("p.yaml");
        let result = Config::parse(text, &path, Secrets::Resolve);
        let prefix = format!("{}:", path.display());
        let strip = |m: &countersign::config::ConfigError| {
            m.to_string()
                .strip_prefix(&prefix)
                .unwrap()
                .replace(&*dir.path().to_string_lossy(), "D")
        };
        result.map_or_else(|mistakes| mistakes.iter().map(strip).collect(), |_| vec![])
    };

    let text = |cert: &str, key: &str, token: &str, store: &str| {
        format!(
            "\
store: {{ encryption_key: {store} }}
vendors:
  a:
    upstream: https://a.example
    ca: {cert}
    client_cert: {{ cert: {cert}, key: {key} }}
    auth: {{ bearer: {{ token: {token} }} }}
"
        )
    };
    let good = "{ value: t }";
    let key32 = "{ file: key32 }";
    assert_eq!(check(&text("a.crt", "a.key", good, key32)), [""; 0]);
    let missing = check(&text(
        "no.crt",
        "no.key",
        "{ env: COUNTERSIGN_NO_SUCH }",
        "{ file: no }",
    ));
    assert_eq!(
        missing,
        [
            "1:34: store.encryption_key.file: the file D/no cannot be read: No such file or directory (os error 2)",
            "5:9: vendors.a.ca: D/no.crt cannot be read: No such file or directory (os error 2)",
            "6:26: vendors.a.client_cert.cert: D/no.crt cannot be read: No such file or directory (os error 2)",
            "6:39: vendors.a.client_cert.key: D/no.key cannot be read: No such file or directory (os error 2)",
            "7:37: vendors.a.auth.bearer.token.env: the environment variable COUNTERSIGN_NO_SUCH is not set",
        ]
    );
    let flat_found = check(&text(
        "a.crt",
        "flat.key",
        "{ file: two-lines }",
        "{ file: a.crt }",
    ));
    assert_eq!(
        flat_found,
        [
            "1:26: store.encryption_key: does not hold 32 bytes; as base64, hex or raw; `openssl rand -base64 32` makes one",
            "6:38: vendors.a.client_cert.key: D/flat.key is PEM without its line breaks: everything is on one line; \
             copy it again with its line breaks; the BEGIN and END lines stand alone",
            "7:30: vendors.a.auth.bearer.token: holds a character that no header field may hold; \
             line breaks and control characters are not allowed inside it",
        ]
    );
    let mismatch = check(&text("a.crt", "b.key", "{ file: empty }", key32));
    assert_eq!(mismatch.len(), 2, "{mismatch:#?}");
    assert!(mismatch[0].starts_with("6:26: vendors.a.client_cert.cert: D/a.crt with D/b.key: "));
    assert_eq!(
        mismatch[1],
        "7:38: vendors.a.auth.bearer.token.file: the file D/empty is empty"
    );

    let signed = |algorithm: &str| {
        format!(
            "\
vendors:
  a:
    upstream: https://a.example
    auth:
      client_credentials:
        token_url: https://t.example/
        client_id: me
        client_auth: private_key_jwt
        private_key: {{ file: a.key }}
        algorithm: {algorithm}
"
        )
    };
    assert_eq!(check(&signed("ES256")), [""; 0]);
    assert!(check(&signed("RS256"))[0].starts_with(
        "9:22: vendors.a.auth.client_credentials.private_key: is not a key for `algorithm: RS256`"
    ));
}

/// Wrong in every way a secret can be misplaced. `hunter2` stands for it.
#[test]
fn no_message_repeats_a_secret() {
    for lines in [
        "auth: { bearer: { token: hunter2 } }",
        "auth: { bearer: { token: { hunter2 } } }",
        "auth: { bearer: { token: { hunter2: } } }",
        "auth: { bearer: { token: { value:hunter2 } } }",
        "auth: { bearer: { token: { hunter2: x } } }",
        "auth: { bearer: { token: { hunter2, hunter2 } } }",
        "auth: { bearer: { token: { file: \"hunter2\\nhunter2\" } } }",
        "ca: \"-----BEGIN hunter2\"\nclient_cert: { cert: \"-----hunter2\", key: '{\"k\": \"hunter2\"}' }",
        "auth: { bearer: { token:hunter2 } }",
        "auth: { bearer: { token: [ hunter2 ] } }",
        "auth: { bearer: { token: { env: 'hunter2!' } } }",
        "auth: { bearer: { token: { value: 'hunter2', file: x } } }",
        "auth: { bearer: { token: { value: !hunter2 x } } }",
        "auth: { bearer: { token: { value: *hunter2 } } }",
        "auth: { bearer: { token: { value: \"hunter2\\q\" } } }",
        "auth: { bearer: hunter2 }",
        "auth: hunter2",
        "auth: { query: { key: hunter2 } }",
        "auth: { headers: { x: \"hunter2\\n\\0\" } }",
        "auth: { basic: { username: 'hunter2:x', password: hunter2 } }",
        "auth: { client_credentials: { token_url: 'https://u:hunter2@t.example', client_id: a, client_secret: hunter2 } }",
        "auth: { client_credentials: { client_auth: hunter2, algorithm: hunter2, params: [ hunter2 ] } }",
        "auth:\n  client_credentials:\n    client_id: a\n    client_secret hunter2\n",
        "auth:\n  client_credentials:\n    client_id: a\n    client_secret:hunter2\n",
        "auth: { vedauth: { url: 'ftp://hunter2', jwt: hunter2, password: hunter2 } }",
        "upstream: https://hunter2@x.example:hunter2",
        "cookies: hunter2\nprefix: hunter2\nhosts: [ 'hunter2!' ]\nrefuse: [ hunter2 ]\nallow: [ 'hunter2 /x' ]",
        "timeouts: { idle: hunter2 }\nlimits: { body: hunter2, in_flight: hunter2 }\npreset: hunter2",
    ] {
        let text = vendor(lines);
        for found in mistakes(&text) {
            assert!(!found.contains("hunter2"), "{text}{found}");
        }
    }
    let digits =
        vendor("auth: { bearer: { token: { value: 99999999999999999999999999999999999999 } } }");
    for found in mistakes(&digits) {
        assert!(!found.contains("9999"), "{found}");
    }
    let keys = "callers: { a: { api_key: { sha256: hunter2 } }, b: { api_key: hunter2 }, c: { api_key: { hunter2 }, allow: [ hunter2 ] } }\nadmin: { key: { sha256: hunter2 }, bind: hunter2 }\nvendors: {}\n";
    for found in mistakes(keys) {
        assert!(!found.contains("hunter2"), "{found}");
    }
}

#[test]
fn the_schema_is_one_a_validator_can_use() {
    let schema = countersign::config::schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert_eq!(schema["required"], serde_json::json!(["vendors"]));
    let text = schema.to_string();
    assert!(
        !text.contains("\"null\""),
        "a key without a value is a mistake"
    );
    for property in schema["$defs"]["Vendor"]["properties"]
        .as_object()
        .unwrap()
        .values()
    {
        let described = property["description"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        assert!(described, "{property}");
    }
}

/// Lines of the sample, some dropped, doubled, cut or with something put in.
fn mutated() -> impl Strategy<Value = String> {
    let lines: Vec<&str> = include_str!("../proxy.yaml").lines().collect();
    let count = lines.len();
    let piece = prop_oneof![
        Just(String::new()),
        Just(": ".to_owned()),
        Just("- ".to_owned()),
        Just("{ ".to_owned()),
        Just("] ".to_owned()),
        Just("&a *a ".to_owned()),
        Just("~".to_owned()),
        Just("\"".to_owned()),
        Just("-1e999".to_owned()),
        any::<String>(),
    ];
    let edit = (0..count, any::<prop::sample::Index>(), any::<bool>(), piece);
    prop::collection::vec(edit, 1..6).prop_map(move |edits| {
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        for (nth, at, uncomment, piece) in edits {
            let line = &mut lines[nth];
            if uncomment {
                *line = line.replacen("# ", "", 1);
            }
            let places: Vec<usize> = line
                .char_indices()
                .map(|(at, _)| at)
                .chain([line.len()])
                .collect();
            line.insert_str(places[at.index(places.len())], &piece);
        }
        lines.join("\n")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_is_too_odd(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_yaml_is_too_odd(text in "([a-c\"'&*!|>%@:,#?~<\\[\\]{}-]|: |\n|\n  |- ){0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_change_to_the_sample_is_too_odd(text in mutated()) {
        if let Err(mistakes) = parse(&text) {
            prop_assert!(!mistakes.is_empty());
        }
    }

    #[test]
    fn no_change_to_the_sample_makes_a_message_repeat_a_secret(text in mutated()) {
        let mut written = String::new();
        for part in text.split_inclusive("env: ") {
            let part = part.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_');
            written.push_str(&part.replace("env: ", "value: hunter2"));
        }
        let found = match Config::parse(&written, Path::new("p"), Secrets::FormOnly) {
            Ok(config) => config.warnings,
            Err(mistakes) => mistakes,
        };
        for found in found {
            prop_assert!(!found.to_string().contains("hunter2"), "{written}{found}");
        }
    }
}
