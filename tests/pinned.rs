//! Certificates that webpki has something against: a vendor's own one that is pinned in `ca:`, and
//! ones of ours that only the vendor need understand.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use openssl::asn1::{Asn1Object, Asn1OctetString, Asn1Time};
use openssl::bn::BigNum;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslVerifyMode};
use openssl::x509::extension::{BasicConstraints, SubjectAlternativeName, SubjectKeyIdentifier};
use openssl::x509::{X509, X509Extension, X509NameBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_openssl::SslStream;

use crate::support::{Proxy, eventually, run, status_of, write_secret};

/// What a certificate is made like.
#[derive(Clone, Copy)]
enum Kind {
    /// `openssl req -x509 -addext subjectAltName=…`, for localhost.
    Named,
    /// The same without alternative names: localhost is its common name.
    Common,
    /// X.509 version 1.
    First,
    /// With an unknown critical extension.
    Odd,
}

fn certificate(kind: Kind) -> (X509, PKey<Private>) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "localhost").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    let version = if matches!(kind, Kind::First) { 0 } else { 2 };
    builder.set_version(version).unwrap();
    let serial = BigNum::from_u32(fastrand::u32(1..)).unwrap();
    builder
        .set_serial_number(&serial.to_asn1_integer().unwrap())
        .unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder
        .set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    builder
        .set_not_after(&Asn1Time::days_from_now(30).unwrap())
        .unwrap();
    builder.set_pubkey(&key).unwrap();
    if matches!(kind, Kind::Named | Kind::Common) {
        let authority = BasicConstraints::new().critical().ca().build().unwrap();
        builder.append_extension(authority).unwrap();
        let context = builder.x509v3_context(None, None);
        let id = SubjectKeyIdentifier::new().build(&context).unwrap();
        builder.append_extension(id).unwrap();
    }
    if matches!(kind, Kind::Named) {
        let context = builder.x509v3_context(None, None);
        let names = SubjectAlternativeName::new()
            .dns("localhost")
            .build(&context);
        builder.append_extension(names.unwrap()).unwrap();
    }
    if matches!(kind, Kind::Odd) {
        let object = Asn1Object::from_str("1.3.6.1.4.1.55555.1").unwrap();
        let content = Asn1OctetString::new_from_bytes(&[5, 0]).unwrap();
        let odd = X509Extension::new_from_der(&object, true, &content).unwrap();
        builder.append_extension(odd).unwrap();
    }
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (builder.build(), key)
}

fn put(dir: &Path, name: &str, kind: Kind) -> (X509, PKey<Private>) {
    let (certificate, key) = certificate(kind);
    std::fs::write(
        dir.join(format!("{name}.crt")),
        certificate.to_pem().unwrap(),
    )
    .unwrap();
    let pem = key.private_key_to_pem_pkcs8().unwrap();
    write_secret(
        &dir.join(format!("{name}.key")),
        std::str::from_utf8(&pem).unwrap(),
    );
    (certificate, key)
}

/// Shows this certificate, asks for one, takes any, and answers with the SHA-256 of what it was
/// shown: as the token at /token, as the body elsewhere.
async fn server(shown: &(X509, PKey<Private>)) -> SocketAddr {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_certificate(&shown.0).unwrap();
    acceptor.set_private_key(&shown.1).unwrap();
    acceptor.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
    acceptor.set_session_id_context(b"pinned").unwrap();
    let acceptor = Arc::new(acceptor.build());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let ssl = Ssl::new(acceptor.context()).unwrap();
                let mut stream = SslStream::new(ssl, stream).unwrap();
                if Pin::new(&mut stream).accept().await.is_err() {
                    return;
                }
                let certificate = stream.ssl().peer_certificate();
                let digest = certificate.map_or("none".to_owned(), |certificate| {
                    hex::encode(certificate.digest(MessageDigest::sha256()).unwrap())
                });
                let mut head = vec![0; 4096];
                let Ok(read @ 1..) = stream.read(&mut head).await else {
                    return;
                };
                let body = if head[..read].starts_with(b"POST /token") {
                    format!(r#"{{"access_token":"{digest}","expires_in":3600}}"#)
                } else {
                    let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
                    let token = head
                        .lines()
                        .find_map(|line| line.strip_prefix("authorization: bearer "));
                    format!("{digest} {}", token.unwrap_or("none"))
                };
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address
}

fn digest(certificate: &X509) -> String {
    hex::encode(certificate.digest(MessageDigest::sha256()).unwrap())
}

fn ask(proxy: &Proxy, vendor: &str) -> String {
    proxy.raw(format!(
        "GET /{vendor}/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    ))
}

const HEAD: &str = "admin: { bind: 127.0.0.1:0 }\ndrain: { delay: 0s }\nlisteners: [ { bind: 127.0.0.1:0 } ]\nvendors:\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_own_certificate_in_ca_is_accepted_when_it_shows_exactly_that() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let named = server(&put(dir, "named", Kind::Named)).await;
    let common = server(&put(dir, "common", Kind::Common)).await;
    put(dir, "other", Kind::Named);
    let both = ["named.crt", "common.crt"].map(|file| std::fs::read(dir.join(file)).unwrap());
    std::fs::write(dir.join("both.crt"), both.concat()).unwrap();
    let mut yaml = HEAD.to_owned();
    let mut wanted = Vec::new();
    for (server, port) in [("named", named.port()), ("common", common.port())] {
        for late in [false, true] {
            for (ca, host, good) in [
                (server, "localhost", true),
                ("both", "localhost", true),
                ("other", "localhost", false),
                // The name counts all the same.
                (server, "127.0.0.1", false),
            ] {
                let name = format!("{server}-{ca}-{host}-{late}");
                let url = format!("https://{host}:{port}");
                let vendor = format!(
                    "{name}:\n    upstream: {url}\n    ca: {ca}.crt\n    redact_echo: false\n    tls: {{ late_client_auth: {late} }}\n"
                );
                let auth = format!(
                    "    timeouts: {{ token_wait: 100ms }}\n    auth: {{ client_credentials: {{ token_url: '{url}/token', client_id: us, client_secret: {{ value: s }} }} }}\n"
                );
                // Requests alone, too: there is no token where the server is refused.
                write!(yaml, "  {vendor}{auth}  bare-{vendor}").unwrap();
                wanted.push((name.clone(), good));
                wanted.push((format!("bare-{name}"), good));
            }
        }
    }
    let proxy = Proxy::start(dir, &yaml);
    for (name, good) in wanted {
        let answer = ask(&proxy, &name);
        match (good, name.starts_with("bare-")) {
            (true, _) => assert!(answer.ends_with("none none"), "{name}: {answer}"),
            (false, true) => assert_eq!(status_of(&answer), 502, "{name}: {answer}"),
            (false, false) => assert_eq!(status_of(&answer), 503, "{name}: {answer}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ours_is_shown_whatever_its_version_and_extensions() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let address = server(&put(dir, "server", Kind::Named)).await;
    let first = put(dir, "first", Kind::First).0;
    let odd = put(dir, "odd", Kind::Odd).0;
    let port = address.port();
    let mut yaml = HEAD.to_owned();
    for name in ["first", "odd"] {
        for late in [false, true] {
            write!(yaml, "  {name}-{late}:\n    redact_echo: false\n    upstream: https://localhost:{port}\n    ca: server.crt\n    client_cert: {{ cert: {name}.crt, key: {name}.key }}\n    tls: {{ late_client_auth: {late} }}\n    auth: {{ client_credentials: {{ token_url: 'https://localhost:{port}/token', client_id: us, client_auth: tls }} }}\n").unwrap();
        }
    }
    let proxy = Proxy::start(dir, &yaml);
    for (name, certificate) in [("first", &first), ("odd", &odd)] {
        let digest = digest(certificate);
        for late in [false, true] {
            let answer = eventually("the token", || {
                Some(ask(&proxy, &format!("{name}-{late}"))).filter(|it| status_of(it) != 503)
            });
            // Shown with the request, and at the token endpoint, whose token says so.
            assert!(
                answer.ends_with(&format!("{digest} {digest}")),
                "{name} {late}: {answer}"
            );
        }
    }
    assert!(
        !proxy.stderr().contains("Unsupported"),
        "{}",
        proxy.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_at_the_token_endpoint_whatever_else_proves_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let port = server(&put(dir, "server", Kind::Named)).await.port();
    let vendors = digest(&put(dir, "vendor", Kind::Named).0);
    let kinds = digest(&put(dir, "kind", Kind::Named).0);
    let mut yaml = HEAD.to_owned();
    let secret = "client_secret: { value: s }";
    let key = "private_key: { file: kind.key }, algorithm: ES256";
    let ways = [
        ("basic", secret),
        ("post", secret),
        ("json", secret),
        ("private_key_jwt", key),
        ("tls", ""),
    ];
    for (way, proof) in ways {
        for (whose, own) in [
            ("vendor", ""),
            ("kind", "client_cert: { cert: kind.crt, key: kind.key },"),
        ] {
            write!(
                yaml,
                "  {whose}-{way}:
    upstream: https://localhost:{port}
    ca: server.crt
    redact_echo: false
    client_cert: {{ cert: vendor.crt, key: vendor.key }}
    auth: {{ client_credentials: {{ token_url: 'https://localhost:{port}/token', client_id: us, client_auth: {way}, {own} {proof} }} }}
"
            )
            .unwrap();
        }
    }
    let proxy = Proxy::start(dir, &yaml);
    for (way, _) in ways {
        for (whose, at_the_token_endpoint) in [("vendor", &vendors), ("kind", &kinds)] {
            let answer = ask(&proxy, &format!("{whose}-{way}"));
            let wanted = format!("{vendors} {at_the_token_endpoint}");
            assert!(answer.ends_with(&wanted), "{whose} {way}: {answer}");
        }
    }

    // Over plaintext there is nothing to show it in; meant for that alone it is a mistake.
    let plain = |own: &str| {
        let text = format!(
            "vendors:\n  v:\n    upstream: https://a.test\n    allow_plaintext: true\n    client_cert: {{ cert: vendor.crt, key: vendor.key }}\n    auth: {{ client_credentials: {{ token_url: 'http://a.test/', client_id: us, {own} client_secret: {{ value: s }} }} }}\n"
        );
        std::fs::write(dir.join("proxy.yaml"), text).unwrap();
        run(dir, &["check"])
    };
    assert_eq!(plain("").code, Some(0));
    let meant = plain("client_cert: { cert: kind.crt, key: kind.key },");
    assert_eq!(meant.code, Some(2));
    let what = "client_credentials.client_cert: a client certificate is never presented to an `http://` URL";
    assert!(meant.stderr.contains(what), "{meant:?}");
}
