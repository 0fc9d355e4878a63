//! No secret in anything the program says, whatever happens and however much it is asked to say.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;

use crate::support::front::{Front, Plan, answer};
use crate::support::{Proxy, eventually, run, signal, status_of, write_secret};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_said_at_trace_level_holds_a_secret() {
    let mut plan = Plan::new().await;
    for (_, stanza) in plan.mocks.stanzas() {
        plan = plan.stanza_of(&stanza);
    }
    let query = "  by-query:
    upstream: https://127.0.0.1:1
    auth: { query: { api_key: { file: secrets/venafi-jwt } } }
";
    let mut front = plan
        .stanza_of(query)
        .environment("RUST_LOG", "trace")
        .consented()
        .await
        .start();

    provoke(&front).await;

    let secrets = secrets(&front);
    assert!(secrets.len() > 30, "{}", secrets.len());
    let mut said = vec![
        ("status", front.proxy.admin("/status").1),
        ("metrics", front.proxy.admin("/metrics").1),
    ];
    for arguments in [
        &["check"][..],
        &["explain", "GET", "/certn/hr/v1/applicants/"],
        &["explain", "--json", "GET", "/sectigo/api/ssl/v1/types"],
        &["explain", "GET", "/by-query/x"],
    ] {
        let ran = run(front.dir(), arguments);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        said.push((arguments[0], ran.stdout + &ran.stderr));
    }
    signal(front.proxy.id(), "TERM");
    assert_eq!(front.proxy.ended(), Some(0));
    let stderr = front.proxy.stderr();
    for event in [
        "credential obtained",
        "credential not obtained",
        "request failed",
    ] {
        assert!(stderr.contains(event), "{event}");
    }
    said.push(("stderr", stderr));
    let stdout = front.proxy.stdout();
    assert!(stdout.lines().count() >= 2 * CALLS.len());
    said.push(("stdout", stdout));
    for file in walk(&front.dir().join("state")) {
        said.push((
            "state",
            String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned(),
        ));
    }
    for (place, text) in said {
        for secret in &secrets {
            let found = text.find(secret.as_str());
            // The line before it says who said it; the secret itself is not repeated here.
            let context = found.map(|at| text[..at].lines().last().unwrap_or_default().to_owned());
            assert_eq!(context, None, "in {place}");
        }
    }
}

/// Logins that work, that are refused, that fail, that are renewed.
async fn provoke(front: &Front) {
    for target in CALLS {
        assert_eq!(front.answer(target).await.status, 200, "{target}");
    }
    for mock in [&front.mocks.certn, &front.mocks.venafi, &front.mocks.maxmd] {
        mock.revoke_access_tokens();
    }
    for target in CALLS {
        assert_eq!(front.answer(target).await.status, 200, "{target}");
    }
    front.mocks.certn.fail_next(1, StatusCode::BAD_REQUEST);
    front
        .mocks
        .sectigo_auth
        .fail_next(2, StatusCode::BAD_GATEWAY);
    front
        .mocks
        .maxmd_auth
        .fail_next(1, StatusCode::UNAUTHORIZED);
    for vendor in [
        "certn",
        "sectigo-oauth",
        "maxmd",
        "venafi",
        "certcenter-oauth",
    ] {
        assert_eq!(front.refresh(vendor).await, 202);
    }
    eventually("refused", || {
        (front.status("certn")["state"] == "failed").then_some(())
    });
    eventually("retried", || {
        (front.mocks.sectigo_auth.token_calls().len() >= 4).then_some(())
    });
    let target = "/certn/hr/v1/applicants/?token=canary-of-the-query";
    let post = front.request(reqwest::Method::POST, target);
    let posted = answer(post.body("\"canary-of-the-body\"")).await;
    assert_eq!(posted.status, 201, "{posted:?}");
    // A connection that fails: its error names the peer.
    assert_eq!(front.answer("/by-query/x").await.status, 502);
}

const CALLS: [&str; 9] = [
    "/certcenter/rest/v1/Limit",
    "/certcenter-oauth/rest/v1/Limit",
    "/sectigo-oauth/api/ssl/v1/types",
    "/sectigo/api/ssl/v1/types",
    "/sectigo-private/private/api/ssl/v1/types",
    "/certn/hr/v1/applicants/",
    "/maxmd/api/certificate/query?page=1",
    "/venafi/vedsdk/certificates/",
    "/venafi-password/vedsdk/certificates/",
];

/// Everything secret that has been used, in the forms it has been used in.
fn secrets(front: &Front) -> Vec<String> {
    let logins = &front.mocks.logins;
    let mut secrets = vec![
        "canary-of-the-query".to_owned(),
        "canary-of-the-body".to_owned(),
        crate::support::front::DECOY.to_owned(),
    ];
    for secret in [
        &logins.caller_key,
        &logins.certcenter_token,
        &logins.certcenter.secret,
        &logins.sectigo.secret,
        &logins.cert_manager_password,
        &logins.certn.secret,
        &logins.maxmd.secret,
        &logins.venafi_password,
        &logins.venafi_jwt,
    ] {
        // What comes first is the same in every encoding but base64.
        secrets.push(secret[..32].to_owned());
        secrets.push(STANDARD.encode(secret)[..40].to_owned());
    }
    for mock in front.mocks.all() {
        for seen in mock.requests() {
            if let Some(value) = seen.field("authorization") {
                let (_, value) = value.split_once(' ').unwrap();
                secrets.push(value.to_owned());
            }
            for name in ["refresh_token", "code"] {
                let member = seen.json()[name].as_str().map(str::to_owned);
                secrets.extend(member.or_else(|| seen.form(name)));
            }
        }
    }
    secrets.sort_unstable();
    secrets.dedup();
    for secret in &secrets {
        assert!(
            secret.len() >= 18,
            "too short to be looked for: {}",
            secret.len()
        );
    }
    secrets
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_writes_no_core_and_open_key_files_are_warned_about() {
    use std::os::unix::fs::PermissionsExt;

    let plan = Plan::new().await.vendor("certn");
    let secrets = plan.dir().join("secrets");
    for entry in std::fs::read_dir(&secrets).unwrap() {
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(entry.unwrap().path(), open).unwrap();
    }
    let front = plan.start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", front.proxy.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let mut words = core.split_whitespace().skip(4);
    assert_eq!(
        (words.next(), words.next()),
        (Some("0"), Some("0")),
        "{core}"
    );
    let said = front.proxy.stderr();
    assert!(said.contains("can be read by every user"), "{said}");
}

/// A server that is every vendor's and every token endpoint's, answers by path, and gives away what
/// it was told wherever a careless one might.
fn careless_server() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let mut heard = Vec::new();
                let mut some = [0; 8192];
                // Small requests: head and body come at once, or the rest is not needed.
                while !heard.windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut some) {
                        Ok(read @ 1..) => heard.extend_from_slice(&some[..read]),
                        Ok(0) | Err(_) => return,
                    }
                }
                let heard = String::from_utf8_lossy(&heard).into_owned();
                let path = heard.split(' ').nth(1).unwrap_or_default();
                let (status, kind, body) = match path {
                    "/token/good" | "/vedauth/authorize/jwt" => (
                        "200 OK",
                        "application/json",
                        r#"{"access_token":"canary-issued-access","refresh_token":"canary-issued-refresh","expires_in":3600}"#
                            .to_owned(),
                    ),
                    "/token/refused" => (
                        "400 Bad Request",
                        "application/json",
                        format!(r#"{{"error":"invalid_client","error_description":{heard:?}}}"#),
                    ),
                    "/token/unreadable" => ("200 OK", "application/json", format!("[{heard}")),
                    "/token/elsewhere" => (
                        "302 Found\r\nLocation: http://127.0.0.1:1/?secret=canary-in-location",
                        "text/plain",
                        heard,
                    ),
                    "/jwks" => ("500 Oh canary-of-a-reason", "text/plain", heard),
                    _ => ("401 Unauthorized", "text/plain", "no".to_owned()),
                };
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one of each kind")]
async fn no_kind_of_credential_is_said_whatever_its_server_says_about_it() {
    let server = careless_server();
    let dir = tempfile::tempdir().unwrap();
    let pair = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(["client.test".to_owned()]).unwrap();
    let certificate = made.self_signed(&pair).unwrap();
    std::fs::write(dir.path().join("client.crt"), certificate.pem()).unwrap();
    let pem = pair.serialize_pem();
    write_secret(&dir.path().join("client.key"), &pem);
    let mut vendors = String::new();
    for (name, auth) in [
        (
            "bearer",
            "bearer: { token: { value: canary-bearer } }".to_owned(),
        ),
        (
            "basic",
            "basic: { username: canary-user, password: { env: CANARY } }".to_owned(),
        ),
        (
            "headers",
            "headers: { X-Key: { value: canary-header } }".to_owned(),
        ),
        (
            "query",
            "query: { key: { value: canary-query } }".to_owned(),
        ),
        (
            "assertion",
            format!(
                "client_credentials: {{ token_url: 'http://{server}/token/good', client_id: us, client_auth: private_key_jwt, private_key: {{ file: client.key }}, algorithm: ES256 }}"
            ),
        ),
        (
            "certificate",
            format!(
                "client_credentials: {{ token_url: 'https://{server}/token/good', client_id: us, client_auth: tls, client_cert: {{ cert: client.crt, key: client.key }} }}"
            ),
        ),
        (
            "jwt",
            format!(
                "vedauth: {{ url: 'http://{server}', client_id: us, jwt: {{ value: canary-jwt }} }}"
            ),
        ),
        (
            "password",
            format!(
                "vedauth: {{ url: 'http://{server}', client_id: us, username: us, password: {{ value: canary-password }} }}"
            ),
        ),
        (
            "consent",
            format!(
                "authorization_code: {{ authorize_url: 'http://{server}/a', token_url: 'http://{server}/token/refused', client_id: us, client_secret: {{ value: canary-consent }}, redirect_uri: 'http://127.0.0.1:1/' }}"
            ),
        ),
    ] {
        write!(vendors, "  {name}:\n    upstream: http://{server}\n    allow_plaintext: true\n    timeouts: {{ token_wait: 1s }}\n    auth:\n      {auth}\n").unwrap();
    }
    let ways = ["basic", "post", "json"];
    let faults = ["good", "refused", "unreadable", "elsewhere"];
    for (way, fault) in ways.iter().flat_map(|way| faults.map(|fault| (way, fault))) {
        write!(vendors, "  {way}-{fault}:\n    upstream: http://{server}\n    allow_plaintext: true\n    timeouts: {{ token_wait: 1s }}\n    auth: {{ client_credentials: {{ token_url: 'http://{server}/token/{fault}', client_id: us, client_auth: {way}, client_secret: {{ value: canary-{way} }} }} }}\n").unwrap();
    }
    let key = "canary-of-32-bytes-for-the-store";
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
store: {{ file: {{ dir: state }}, encryption_key: {{ value: {key} }} }}
callers:
  app: {{ api_key: {{ value: canary-caller }}, allow: [ \"*\" ] }}
  env: {{ api_key: {{ env: CANARY }}, allow: [ \"*\" ] }}
  pods:
    jwt: {{ issuer: https://i.test, audience: a, jwks_url: 'http://{server}/jwks', jwks_token: {{ value: canary-jwks }} }}
    allow: [ \"*\" ]
vendors:
{vendors}"
    );
    let environment = [
        ("RUST_LOG", "trace"),
        ("CANARY", "canary-from-the-environment"),
    ];
    let mut proxy = Proxy::launch(dir.path(), &yaml, &environment);
    let mut said = Vec::new();
    let names: Vec<&str> = vendors
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.strip_suffix(':'))
        .filter(|name| !name.starts_with(' '))
        .collect();
    assert_eq!(names.len(), 9 + 12, "{names:?}");
    eventually("all were tried", || {
        let status: serde_json::Value = serde_json::from_str(&proxy.admin("/status").1).unwrap();
        let vendors = status["vendors"].as_array().unwrap();
        vendors
            .iter()
            .all(|one| one["state"] != "pending")
            .then_some(())
    });
    for name in &names {
        for shown in [
            "X-Countersign-Key: canary-caller",
            "Authorization: Bearer canary.canary.canary",
        ] {
            let answer = proxy.raw(format!(
                "GET /{name}/x?secret=canary-in-query HTTP/1.1\r\nHost: localhost\r\n{shown}\r\nCookie: canary\r\nConnection: close\r\n\r\n"
            ));
            assert_ne!(status_of(&answer), 0, "{name}");
            said.push((*name, answer));
        }
    }
    let admin = format!("http://{}", proxy.admin);
    for arguments in [
        &["check"][..],
        &["check", "--without-secrets"],
        &["explain", "GET", "/basic/x"],
        &["explain", "--json", "GET", "/query/x"],
        &["probe"],
        &["status", "--admin", &admin],
        &["status", "--json", "--admin", &admin],
    ] {
        let mut command = crate::support::countersign();
        command.args(arguments).current_dir(dir.path());
        command.env("CANARY", "canary-from-the-environment");
        command.env("RUST_LOG", "trace");
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(!text.is_empty(), "{arguments:?}");
        said.push((arguments[0], String::from_utf8_lossy(&text).into_owned()));
    }
    for path in ["/status", "/metrics", "/", "/readyz"] {
        said.push(("admin", proxy.admin(path).1));
    }
    signal(proxy.id(), "TERM");
    assert_eq!(proxy.ended(), Some(0));
    said.push(("stdout", proxy.stdout()));
    let stderr = proxy.stderr();
    assert!(stderr.contains("credential obtained") && stderr.contains("credential not obtained"));
    said.push(("stderr", stderr));
    let basic = |pair: &str| STANDARD.encode(pair);
    let mut needles = vec![
        "canary".to_owned(),
        basic("canary-user:canary-from-the-environment"),
        basic("us:canary-basic"),
        STANDARD.encode(key),
        hex::encode(key),
    ];
    needles.extend(
        pem.lines()
            .filter(|line| !line.starts_with("--"))
            .map(ToOwned::to_owned),
    );
    for (place, text) in &said {
        for needle in &needles {
            let lines = text.lines().filter(|line| line.contains(needle.as_str()));
            let found: Vec<_> = lines.collect();
            assert!(found.is_empty(), "{place}: {found:#?}");
        }
    }
}

#[test]
fn a_state_directory_that_others_can_write_to_is_refused_with_the_command_that_mends_it() {
    use std::fs::{Permissions, create_dir, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    create_dir(&state).unwrap();
    set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
    let listen = "listeners: [ { bind: 127.0.0.1:0 } ]\nadmin: { bind: 127.0.0.1:0 }\ndrain: { delay: 0s }\n";
    let vendor = |auth: &str| {
        format!("{listen}vendors:\n  v:\n    upstream: https://127.0.0.1:1\n    auth: {auth}\n")
    };
    let needs_it =
        vendor("{ vedauth: { client_id: a, scope: b, username: c, password: { value: d } } }");
    std::fs::write(dir.path().join("proxy.yaml"), &needs_it).unwrap();
    for command in ["check", "serve"] {
        let ran = run(dir.path(), &[command]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(
            ran.stderr.contains("mode 0777") && ran.stderr.contains("run `chmod 700 ./state`"),
            "{ran:?}"
        );
    }
    for (mode, warned) in [(0o755, true), (0o700, false)] {
        set_permissions(&state, Permissions::from_mode(mode)).unwrap();
        let ran = run(dir.path(), &["check"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(
            ran.stderr.contains("can be read by other users"),
            warned,
            "{ran:?}"
        );
    }

    // Whoever stores nothing has no such directory, whatever is called so.
    set_permissions(&state, Permissions::from_mode(0o777)).unwrap();
    let needs_none = vendor("{ bearer: { token: { value: d } } }");
    std::fs::write(dir.path().join("proxy.yaml"), &needs_none).unwrap();
    assert_eq!(run(dir.path(), &["check"]).code, Some(0));
}
