//! Nobody gets in who does not belong: callers by certificate, by signed token, and how much they
//! may do.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use countersign::tls::{CertFiles, Identity, Roots};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use serde_json::{Value, json};

use crate::support::world::World;
use crate::support::{Proxy, eventually, signal, status_of};

const PLAIN: &str = "{ bind: 127.0.0.1:0 }";

pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of `issuer` with these names, as files called `name`.
pub fn issue(
    dir: &Path,
    name: &str,
    issuer: &Authority,
    common: &str,
    sans: &[SanType],
) -> CertFiles {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, common);
    params.subject_alt_names = sans.to_vec();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let files = CertFiles {
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
    };
    let certificate = params.signed_by(&key, issuer).unwrap();
    fs::write(&files.cert, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

pub fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub fn email(name: &str) -> SanType {
    SanType::Rfc822Name(name.try_into().unwrap())
}

/// The status of `GET /v/x` with this certificate and key; 0 when the handshake fails.
pub async fn over_tls(to: SocketAddr, ca: PathBuf, files: Option<&CertFiles>, key: &str) -> u16 {
    let identity = files.map(|files| Identity::load(files).unwrap());
    let tls = Roots::load(&ca).unwrap().client_config(identity.as_ref());
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls.unwrap())
        .resolve("proxy.test", to)
        .build()
        .unwrap();
    let request = client.get(format!("https://proxy.test:{}/v/x", to.port()));
    let answer = request.header("x-countersign-key", key).send().await;
    answer.map_or(0, |answer| answer.status().as_u16())
}

/// The vendor `v`; `head` has everything of the configuration but vendors. The log has every level.
async fn start(dir: tempfile::TempDir, listener: &str, head: &str, more: &str) -> World {
    World::with_vendor(more)
        .within(dir)
        .listener(listener)
        .top(head)
        .env("RUST_LOG", "trace")
        .start()
        .await
}

/// The response to `GET /v/x` with these headers.
fn get(world: &World, fields: &str) -> String {
    world.get_with("/v/x", fields)
}

fn with_token(world: &World, token: &str) -> u16 {
    let status = status_of(&get(world, &format!("Authorization: Bearer {token}\r\n")));
    // Good or bad, at trace level: no part of it is said.
    let said = world.proxy.said() + &world.proxy.admin("/").1;
    for part in token.split('.').filter(|part| part.len() > 16) {
        assert!(!said.contains(part), "{said}");
    }
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_gets_in_by_its_exact_name_and_type_under_our_ca() {
    countersign::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let (ours, foreign) = (authority("ours"), authority("ours"));
    fs::write(at.join("ca.pem"), ours.pem()).unwrap();
    issue(&at, "server", &ours, "", &[dns("proxy.test")]);
    let by_uri = issue(&at, "uri", &ours, "", &[uri("spiffe://corp/ci")]);
    let by_dns = issue(&at, "dns", &ours, "", &[dns("ci.corp")]);
    let by_email = issue(&at, "email", &ours, "", &[email("ci@corp.test")]);
    let by_common = issue(&at, "common", &ours, "ci.corp", &[dns("x.corp")]);
    let wrong_type = issue(
        &at,
        "type",
        &ours,
        "",
        &[uri("dns:ci.corp"), dns("corp.test")],
    );
    let two = issue(
        &at,
        "two",
        &ours,
        "",
        &[dns("ci.corp"), uri("spiffe://corp/ci")],
    );
    let stranger = issue(&at, "stranger", &foreign, "", &[dns("ci.corp")]);
    let digest = hex::encode(countersign::tls::sha256(&[b"the-key"]));
    let world = start(
        dir,
        "{ bind: 127.0.0.1:0, tls: { cert: server.crt, key: server.key, client_ca: ca.pem } }",
        &format!(
            "callers:\n  uri: {{ certificate: {{ san: spiffe://corp/ci }}, allow: [ v ] }}\n  dns: {{ certificate: {{ san: ci.corp }}, allow: [ v ] }}\n  email: {{ certificate: {{ san: 'email:ci@corp.test' }}, allow: [ v ] }}\n  key: {{ api_key: {{ sha256: {digest} }}, allow: [ v ] }}"
        ),
        "",
    )
    .await;
    let to = world.proxy.data;
    for (what, files, key, want) in [
        ("none", None, "", 401),
        ("none but a key", None, "the-key", 200),
        ("uri", Some(&by_uri), "", 200),
        ("dns", Some(&by_dns), "", 200),
        ("email", Some(&by_email), "", 200),
        ("common name", Some(&by_common), "", 401),
        ("another type", Some(&wrong_type), "", 401),
        ("two callers", Some(&two), "", 401),
        ("certificate and key of two", Some(&by_dns), "the-key", 401),
        (
            "unknown certificate and a key",
            Some(&by_common),
            "the-key",
            200,
        ),
        ("another issuer of the same name", Some(&stranger), "", 0),
    ] {
        assert_eq!(
            over_tls(to, at.join("ca.pem"), files, key).await,
            want,
            "{what}"
        );
    }

    // The issuers are read again, and the listener goes on.
    let both = ours.pem() + &foreign.pem();
    fs::write(at.join("ca.pem"), &both).unwrap();
    signal(world.proxy.id(), "HUP");
    let mut last = 0;
    for _ in 0..100 {
        last = over_tls(to, at.join("ca.pem"), Some(&stranger), "").await;
        if last == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(last, 200, "{}", world.proxy.stderr());
    eventually("written", || {
        let log = world.proxy.stdout();
        log.contains("\"caller\":\"email\"").then_some(())
    });
}

/// A client over TLS that keeps its one connection.
fn kept(to: SocketAddr, ca: &Path, files: &CertFiles) -> reqwest::Client {
    let identity = Identity::load(files).unwrap();
    let tls = Roots::load(ca).unwrap().client_config(Some(&identity));
    reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls.unwrap())
        .resolve("proxy.test", to)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_ends_with_its_authority() {
    countersign::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_owned();
    let (ours, other) = (authority("ours"), authority("other"));
    let both = ours.pem() + &other.pem();
    fs::write(at.join("ca.pem"), &both).unwrap();
    fs::write(at.join("ours.pem"), ours.pem()).unwrap();
    issue(&at, "server", &ours, "", &[dns("proxy.test")]);
    let files = issue(&at, "client", &other, "", &[dns("ci.corp")]);
    let stays = issue(&at, "stays", &ours, "", &[dns("ci.corp")]);
    let world = start(
        dir,
        "{ bind: 127.0.0.1:0, tls: { cert: server.crt, key: server.key, client_ca: ca.pem } }",
        "callers:\n  ci: { certificate: { san: ci.corp }, allow: [ v ] }",
        "",
    )
    .await;
    let to = world.proxy.data;
    let url = format!("https://proxy.test:{}/v/x", to.port());
    let trusted = at.join("ours.pem");
    let clients = [
        (kept(to, &trusted, &files), 401),
        (kept(to, &trusted, &stays), 200),
    ];
    let ask = async |client: &reqwest::Client| {
        let answer = client.get(&url).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    };
    for (client, _) in &clients {
        assert_eq!(ask(client).await, 200);
    }
    for (bundle, then) in [(ours.pem(), true), (both, false)] {
        fs::write(at.join("ca.pem"), bundle).unwrap();
        signal(world.proxy.id(), "HUP");
        for (client, gone) in &clients {
            let want = if then { *gone } else { 200 };
            let mut last = 0;
            for _ in 0..100 {
                last = ask(client).await;
                if last == want {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            // A new connection would not come about: its handshake fails.
            assert_eq!(last, want, "{}", world.proxy.stderr());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_callers_streams_end_and_the_others_go_on() {
    // Answers a head with a 101, or an answer that does not end, and is silent from then on.
    let vendor = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = vendor.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in vendor.incoming().flatten() {
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                    head.push(byte[0]);
                }
                let upgrade = head.windows(9).any(|part| part == b"websocket");
                let answer = if upgrade {
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
                } else {
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n: \r\n"
                };
                let _ = stream.write_all(answer.as_bytes());
                // Until the proxy closes it.
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {PLAIN} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s, timeout: 1s }}\ncallers:\n  goes: {{ api_key: {{ value: goes }}, allow: [ v ] }}\n  stays: {{ api_key: {{ value: stays }}, allow: [ v ] }}\nvendors:\n  v: {{ upstream: 'http://{address}', allow_plaintext: true, timeouts: {{ idle: 0s, first_byte: 0s }} }}\n"
    );
    let proxy = Proxy::start(dir.path(), &yaml);
    let open = |key: &str, upgrade: &str| {
        let mut stream = std::net::TcpStream::connect(proxy.data).unwrap();
        let head = format!(
            "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {key}\r\n{upgrade}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).unwrap();
        (String::from_utf8_lossy(&begun).into_owned(), stream)
    };
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut gone = [open("goes", upgrade), open("goes", "")];
    let mut stay = [open("stays", upgrade), open("stays", "")];
    assert_eq!(gone[0].0, "HTTP/1.1 101");
    assert_eq!(gone[1].0, "HTTP/1.1 200");
    let without: Vec<&str> = yaml
        .lines()
        .filter(|line| !line.contains("goes:"))
        .collect();
    fs::write(dir.path().join("proxy.yaml"), without.join("\n")).unwrap();
    signal(proxy.id(), "HUP");
    for (what, stream) in &mut gone {
        let patience = std::time::Duration::from_secs(20);
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let reset = ended
            .as_ref()
            .is_err_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(ended.is_ok() || reset, "{what}: {ended:?}");
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{what}: ended cleanly");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(!rest.contains("problem+json"), "{what}: {rest}");
    }
    for (what, stream) in &mut stay {
        let a_moment = std::time::Duration::from_millis(200);
        stream.set_read_timeout(Some(a_moment)).unwrap();
        // What is left of the head, and then nothing.
        let mut byte = [0];
        let ended = loop {
            match stream.read(&mut byte) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(cause) => break cause.kind() != std::io::ErrorKind::WouldBlock,
            }
        };
        assert!(!ended, "{what}");
    }
}

/// Signs tokens by ES256.
pub struct Issuer {
    key: EncodingKey,
    jwk: Value,
}

impl Issuer {
    pub fn new(id: &str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::ES256);
        let mut jwk = serde_json::to_value(jwk.unwrap()).unwrap();
        jwk["kid"] = json!(id);
        Self { key, jwk }
    }

    pub fn token(&self, subject: &str) -> String {
        self.token_for(subject, 300)
    }

    /// One that ends so many seconds from now.
    pub fn token_for(&self, subject: &str, seconds: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let claims = json!({
            "iss": "https://issuer.test", "aud": "countersign", "sub": subject,
            "exp": now.as_secs() + seconds,
        });
        let mut header = Header::new(Algorithm::ES256);
        header.kid = self.jwk["kid"].as_str().map(ToOwned::to_owned);
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }

    pub fn jwk(&self) -> &Value {
        &self.jwk
    }

    pub fn jwks(&self) -> String {
        json!({ "keys": [self.jwk] }).to_string()
    }
}

pub const PODS: &str =
    "issuer: https://issuer.test, audience: countersign, subject: 'system:*:apps:*'";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gets_in_by_a_key_from_a_file_that_may_change() {
    countersign::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwks.json");
    let (first, second) = (Issuer::new("one"), Issuer::new("one"));
    fs::write(&file, first.jwks()).unwrap();
    let head = format!(
        "callers:\n  pods: {{ jwt: {{ {PODS}, jwks_file: jwks.json }}, allow: [ 'v GET' ] }}"
    );
    let world = start(dir, PLAIN, &head, "").await;

    let good = first.token("system:sa:apps:web");
    for _ in 0..2 {
        assert_eq!(with_token(&world, &good), 200);
    }
    assert_eq!(with_token(&world, &first.token("system:sa:infra:web")), 401);
    assert_eq!(with_token(&world, &second.token("system:sa:apps:web")), 401);
    assert_eq!(with_token(&world, &good[..good.len() - 3]), 401);
    let elsewhere = get(&world, &format!("X-Api-Key: {good}\r\n"));
    assert_eq!(status_of(&elsewhere), 401, "{elsewhere}");
    let proxied = get(&world, &format!("Proxy-Authorization: bearer {good}\r\n"));
    assert_eq!(status_of(&proxied), 200, "{proxied}");

    // The key is gone: a token that was good, and was remembered, is not any more.
    fs::write(world.dir.path().join("next"), second.jwks()).unwrap();
    fs::rename(world.dir.path().join("next"), &file).unwrap();
    eventually("the second key in use", || {
        let token = second.token("system:sa:apps:web");
        (with_token(&world, &token) == 200).then_some(())
    });
    assert_eq!(with_token(&world, &good), 401);

    // A broken file changes nothing.
    fs::write(&file, "{").unwrap();
    eventually("complaint", || {
        let log = world.proxy.stderr();
        log.contains("an issuer's keys cannot be read")
            .then_some(())
    });
    assert_eq!(with_token(&world, &second.token("system:sa:apps:web")), 200);
    let said = world.proxy.said();
    assert!(!said.contains(&good), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_tokens_in_one_request_two_are_looked_at() {
    countersign::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let ours = Issuer::new("one");
    fs::write(dir.path().join("jwks.json"), ours.jwks()).unwrap();
    let digest = hex::encode(countersign::tls::sha256(&[b"the-key"]));
    let head = format!(
        "callers:\n  pods: {{ jwt: {{ {PODS}, jwks_file: jwks.json }}, api_key: {{ sha256: {digest} }}, allow: [ v ] }}"
    );
    let world = start(dir, PLAIN, &head, "").await;
    let good = ours.token("system:sa:apps:web");
    let forged: Vec<String> = (0..3)
        .map(|_| Issuer::new("one").token("system:sa:apps:web"))
        .collect();
    let field = |name: &str, token: &str| format!("{name}: Bearer {token}\r\n");
    let ways = [
        ("equal ones", field("Authorization", &good).repeat(50), 200),
        (
            "two",
            field("Authorization", &forged[0]) + &field("Authorization", &good),
            200,
        ),
        (
            "one in each field",
            field("Authorization", &good) + &field("Proxy-Authorization", &forged[0]),
            200,
        ),
        (
            "three",
            field("Authorization", &forged[0])
                + &field("Authorization", &forged[1])
                + &field("Authorization", &good),
            401,
        ),
        (
            "three in two fields",
            field("Authorization", &forged[0])
                + &field("Authorization", &good)
                + &field("Proxy-Authorization", &forged[1]),
            401,
        ),
        (
            "three beside a key",
            forged
                .iter()
                .map(|token| field("Authorization", token))
                .collect::<String>()
                + "X-Countersign-Key: the-key\r\n",
            401,
        ),
        (
            "two beside a key",
            field("Authorization", &forged[0])
                + &field("Authorization", &forged[1])
                + "X-Countersign-Key: the-key\r\n",
            200,
        ),
    ];
    for (what, fields, want) in ways {
        let answer = get(&world, &fields);
        assert_eq!(status_of(&answer), want, "{what}: {answer}");
        if want == 401 {
            assert!(answer.contains("\"reason\":\"unknown_caller\""), "{answer}");
        }
    }
}

/// Serves a JWK set that may change or be gone, to those that show `jwks-secret`.
struct Server {
    address: SocketAddr,
    body: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn start(body: String) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: socket.local_addr().unwrap(),
            body: Arc::new(Mutex::new(Some(body))),
            asked: Arc::default(),
        };
        let (body, asked) = (server.body.clone(), server.asked.clone());
        std::thread::spawn(move || {
            for mut stream in socket.incoming().flatten() {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                    head.push(byte[0]);
                }
                asked.fetch_add(1, Ordering::Relaxed);
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let known = head.contains("authorization: bearer jwks-secret");
                let (status, body) = match &*body.lock().unwrap() {
                    Some(body) if known => ("200 OK", body.clone()),
                    Some(_) => ("401 Unauthorized", String::new()),
                    None => ("500 Internal Server Error", String::new()),
                };
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            }
        });
        server
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_a_new_key_makes_the_url_be_asked_and_an_outage_changes_nothing() {
    countersign::tls::install_provider();
    let (first, second) = (Issuer::new("one"), Issuer::new("two"));
    let server = Server::start(first.jwks());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("token"), "jwks-secret\n").unwrap();
    let address = server.address;
    let head = format!(
        "callers:\n  pods:\n    jwt: {{ {PODS}, jwks_url: 'http://{address}/keys', jwks_token: {{ file: token }} }}\n    allow: [ v ]"
    );
    let world = start(dir, PLAIN, &head, "").await;
    let old = first.token("system:sa:apps:web");
    let new = second.token("system:sa:apps:web");
    // Ready means that the keys are there.
    assert_eq!(with_token(&world, &old), 200);
    assert_eq!(server.asked.load(Ordering::Relaxed), 1);

    *server.body.lock().unwrap() = Some(second.jwks());
    assert_eq!(with_token(&world, &new), 401);
    eventually("the new key", || {
        (with_token(&world, &new) == 200).then_some(())
    });
    assert_eq!(with_token(&world, &old), 401);

    // Whoever sends unknown keys makes it be asked once more in 30 s at most.
    *server.body.lock().unwrap() = None;
    let third = Issuer::new("three").token("system:sa:apps:web");
    for _ in 0..20 {
        assert_eq!(with_token(&world, &third), 401);
    }
    assert_eq!(with_token(&world, &new), 200);
    assert!(server.asked.load(Ordering::Relaxed) <= 3);
    let said = world.proxy.said();
    assert!(!said.contains("jwks-secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_fetched_over_tls_from_a_server_that_the_ca_vouches_for() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    countersign::tls::install_provider();
    let (ours, other) = (authority("ours"), authority("other"));
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &ours).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.into())
        .unwrap();
    let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let issuer = Issuer::new("one");
    let (jwks, asked) = (issuer.jwks(), Arc::new(AtomicUsize::new(0)));
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let counting = asked.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = socket.accept().await {
            let Ok(mut stream) = tls.accept(tcp).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            counting.fetch_add(1, Ordering::Relaxed);
            let length = jwks.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all((head + &jwks).as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });

    for (ca, wanted) in [(&ours, 200), (&other, 401)] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("issuer-ca.pem"), ca.pem()).unwrap();
        let head = format!(
            "callers:\n  pods:\n    jwt: {{ {PODS}, jwks_url: 'https://{address}/keys', ca: issuer-ca.pem }}\n    allow: [ v ]"
        );
        let world = start(dir, PLAIN, &head, "").await;
        assert_eq!(
            with_token(&world, &issuer.token("system:sa:apps:web")),
            wanted
        );
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_hold_for_a_caller_and_for_a_vendor() {
    let digest = |key: &str| hex::encode(countersign::tls::sha256(&[key.as_bytes()]));
    let head = format!(
        "callers:\n  slow: {{ api_key: {{ sha256: {} }}, allow: [ v ], rate: {{ per_second: 1, burst: 2 }} }}\n  free: {{ api_key: {{ sha256: {} }}, allow: [ v, w ] }}",
        digest("slow"),
        digest("free"),
    );
    let dir = tempfile::tempdir().unwrap();
    let world = start(
        dir,
        PLAIN,
        &head,
        "  w:\n    upstream: http://127.0.0.1:1\n    allow_plaintext: true\n    limits: { rate: { per_second: 1 } }\n",
    )
    .await;
    let as_caller = |key: &str| get(&world, &format!("X-Countersign-Key: {key}\r\n"));
    // However slow this machine is, twenty at once are more than one a second.
    let answers: Vec<String> = (0..20).map(|_| as_caller("slow")).collect();
    let statuses: Vec<u16> = answers.iter().map(|answer| status_of(answer)).collect();
    assert_eq!(statuses[..2], [200, 200]);
    let refused = answers.iter().find(|answer| status_of(answer) == 429);
    let refused = refused.expect("one too many");
    assert!(refused.contains("\"reason\":\"rate_limited\""), "{refused}");
    assert!(refused.contains("Retry-After: 1\r\n"), "{refused}");
    assert_eq!(status_of(&as_caller("free")), 200);

    let at_vendor = || {
        let answer = world.proxy.raw(
            "GET /w/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: free\r\nConnection: close\r\n\r\n",
        );
        status_of(&answer)
    };
    let statuses: Vec<u16> = (0..20).map(|_| at_vendor()).collect();
    assert_eq!(statuses[0], 502);
    assert!(statuses.contains(&429), "{statuses:?}");
    eventually("filled again", || {
        (status_of(&as_caller("slow")) == 200).then_some(())
    });
    let metrics = world.proxy.admin("/metrics").1;
    assert!(
        metrics.contains("countersign_refused_total{reason=\"rate_limited\",vendor=\"w\"}"),
        "{metrics}"
    );
}
