//! What must not happen: a login path that passes, a credential for a server that is not the
//! vendor's.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use countersign::tls::Roots;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::front::{Front, Plan, answer};

/// A vendor of each preset, and of each way to log in.
async fn every_preset() -> Plan {
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
    let presets = include_str!("../../src/config/presets.yaml").lines();
    let presets = presets.filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
    for preset in presets.filter_map(|line| line.strip_suffix(':')) {
        assert!(REFUSED.iter().any(|(name, _)| *name == preset), "{preset}");
    }
    plan
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_login_path_reaches_a_vendor() {
    let front = every_preset().await.start();
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
async fn what_a_lax_server_takes_for_a_login_path_is_not_forwarded() {
    let front = every_preset().await.start();
    let key = &front.mocks.logins.caller_key;
    for (name, paths) in REFUSED {
        for path in paths {
            let bare = path.trim_end_matches('/');
            for spelling in crate::spellings::of(bare) {
                let head = format!(
                    "POST /{name}{spelling} HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {key}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                let answer = front.proxy.raw(head).to_lowercase();
                let ours = answer.starts_with("http/1.1 400")
                    || answer.contains("\r\nproxy-status: countersign; error=");
                if ours {
                    continue;
                }
                // Forwarded, because it is another path by every interpretation.
                for mut read in
                    crate::fuzzing::path::interpretations(spelling.split('?').next().unwrap())
                {
                    if name.starts_with("venafi") {
                        read = without_trailing_dots(&read);
                    }
                    let (read, wanted) = (read.as_str(), bare.to_lowercase());
                    let below = read.strip_prefix(&wanted);
                    let reached =
                        below.is_some_and(|more| more.is_empty() || more.starts_with('/'));
                    assert!(!reached, "{spelling} to {name}, {read}: {answer}");
                }
            }
        }
    }
}

/// As IIS looks for files.
fn without_trailing_dots(path: &str) -> String {
    let segments = path.split('/').skip(1);
    let bare = segments.map(|segment| segment.trim_end_matches(['.', ' ']));
    let kept = bare.filter(|segment| !segment.is_empty());
    kept.fold(String::new(), |path, segment| path + "/" + segment)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_path_given_in_the_file_is_refused_without_any_preset() {
    let plan = Plan::new().await;
    let url = plan.mocks.certn.url();
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
    for mock in front.mocks.all() {
        assert!(mock.connections().is_empty(), "{}", mock.url());
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

/// Number of requests that each mock server has seen.
fn requests(front: &Front) -> Vec<usize> {
    let mocks = front.mocks.all();
    mocks.iter().map(|mock| mock.requests().len()).collect()
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
            let mut request = [0; 4096];
            let read = tls.read(&mut request).await.unwrap_or(0);
            hearing.lock().unwrap().extend_from_slice(&request[..read]);
            let answer =
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nwelcome";
            let _ = tls.write_all(answer).await;
            let _ = tls.shutdown().await;
        }
    });
    Demanding { address, heard }
}
