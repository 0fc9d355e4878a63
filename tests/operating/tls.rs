//! TLS listeners: both protocols by ALPN, certificates by SNI, and no way around the name that
//! was asked for.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign::tls::Roots;
use http::Request;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::eventually;
use crate::support::front::{Answer, answer};
use crate::support::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn http_1_and_2_are_chosen_by_alpn() {
    let world = Tls::new("").await;
    let answered = world
        .over_h1("localhost", "localhost", "/v/x?body=one")
        .await;
    assert_eq!((answered.status, answered.body.as_str()), (200, "one"));

    let (status, body) = world
        .over_h2("localhost", "localhost", "/v/x?body=two")
        .await;
    assert_eq!((status, body.as_str()), (200, "two"));
    // The vendor is spoken to as always.
    let requests = world.echo.requests();
    for seen in &requests {
        assert!(String::from_utf8_lossy(&seen.raw).contains(" HTTP/1.1\r\n"));
        let host = world.echo.address().to_string();
        assert_eq!(seen.field("host"), Some(host.as_str()));
    }
    assert_eq!(requests.len(), 2);

    let stream = world.connect("localhost", &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let stream = world.connect("localhost", &[]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    eventually("written", || {
        let lines = world.proxy.stdout();
        lines.contains("\"method\":\"GET\"").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_paths_headers_and_callers_hold_over_http_2_too() {
    let world = Tls::new("  app: { api_key: { value: the-key }, allow: [ v ] }\n").await;
    let (status, body) = world.over_h2("localhost", "localhost", "/v/x").await;
    assert_eq!(status, 401, "{body}");
    assert!(body.contains("unknown_caller"), "{body}");

    let key = [
        ("x-countersign-key", "the-key"),
        ("login", "theirs"),
        ("cookie", "theirs"),
    ];
    let (status, body) = world
        .h2("localhost", "localhost", "/v/x?echo=host", &key)
        .await;
    assert_eq!((status, body), (200, world.echo.address().to_string()));
    assert!(!world.echo.has_read("theirs") && !world.echo.has_read("the-key"));
    for (target, wanted) in [("/v/../x", 400), ("/w/x", 404), ("/v//x", 400)] {
        let (status, body) = world.h2("localhost", "localhost", target, &key).await;
        assert_eq!(status, wanted, "{target}: {body}");
    }
    assert_eq!(world.echo.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_chosen_by_the_name_asked_for() {
    let world = Tls::new("").await;
    for (name, shown) in [
        ("localhost", "localhost"),
        ("one.test", "one.test"),
        ("TWO.test", "two.test"),
        ("any.wild.test", "*.wild.test"),
    ] {
        let stream = world.connect(name, &[]).await;
        assert_eq!(names_of(&stream), [shown], "{name}");
    }
    // An unknown name gets the first, which does not convince a careful caller.
    let refused = world.try_connect("three.test", &[]).await;
    assert!(refused.is_err());
    // One label only.
    assert!(world.try_connect("a.b.wild.test", &[]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_other_than_the_name_asked_for_is_misdirected_when_either_is_a_vendors() {
    // `v` is reached by host one.test as well; two.test belongs to no vendor.
    let world = Tls::new(" anyone\n").await;
    for (name, host, wanted) in [
        ("one.test", "one.test", 200),
        ("one.test", "ONE.test:443", 200),
        ("one.test", "two.test", 421),
        ("two.test", "one.test", 421),
        ("localhost", "one.test", 421),
        ("one.test", "localhost", 421),
        ("two.test", "two.test", 404),
        ("two.test", "localhost", 404),
    ] {
        let target = "/no-prefix?body=by-host";
        let h1 = world.over_h1(name, host, target).await;
        assert_eq!(h1.status, wanted, "h1 {name} {host}: {h1:?}");
        let (status, body) = world.over_h2(name, host, target).await;
        assert_eq!(status, wanted, "h2 {name} {host}: {body}");
        match wanted {
            200 => assert_eq!((h1.body.as_str(), body.as_str()), ("by-host", "by-host")),
            421 => {
                assert_eq!(h1.json()["reason"], "misdirected");
                assert!(body.contains("misdirected"), "{body}");
            }
            _ => assert_eq!(h1.json()["reason"], "no_vendor"),
        }
    }
    assert_eq!(world.echo.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn which_names_are_vendors_is_nothing_for_whoever_is_not_known() {
    let world = Tls::new("  app: { api_key: { value: the-key }, allow: [ v ] }\n").await;
    for (name, host) in [
        ("one.test", "one.test"),
        ("one.test", "two.test"),
        ("two.test", "one.test"),
        ("two.test", "two.test"),
    ] {
        let h1 = world.over_h1(name, host, "/no-prefix").await;
        assert_eq!(h1.status, 401, "{name} {host}: {h1:?}");
        assert!(h1.json()["vendor"].is_null(), "{name} {host}: {h1:?}");
        let (status, body) = world.over_h2(name, host, "/no-prefix").await;
        assert_eq!(status, 401, "{name} {host}: {body}");
        assert!(body.contains("\"vendor\":null"), "{name} {host}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_is_ended_and_nobody_waits_for_it() {
    use std::io::{Read, Write};

    let world = Tls::new("").await;
    let started = std::time::Instant::now();
    let unfinished: Vec<_> = [true, false]
        .map(|dribbles| {
            let to = world.proxy.data;
            std::thread::spawn(move || {
                let mut stream = std::net::TcpStream::connect(to).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_millis(200)))
                    .unwrap();
                // A ClientHello of 512 bytes begins, RFC 8446 §4.
                stream
                    .write_all(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
                    .unwrap();
                while started.elapsed() < Duration::from_secs(25) {
                    match stream.read(&mut [0; 64]) {
                        Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => {}
                        Ok(1..) => {}
                        Ok(0) | Err(_) => return started.elapsed(),
                    }
                    if dribbles && stream.write_all(&[0]).is_err() {
                        return started.elapsed();
                    }
                }
                panic!("still open");
            })
        })
        .into();
    for _ in 0..5 {
        let answered = world.over_h1("localhost", "localhost", "/v/x").await;
        assert_eq!(answered.status, 200);
    }
    for waited in unfinished {
        let waited = waited.join().unwrap();
        let limit = Duration::from_secs(8)..Duration::from_secs(16);
        assert!(limit.contains(&waited), "{waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_and_1_3_are_spoken_with_a_hybrid_key_exchange_where_it_is_offered() {
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    use rustls::version::{TLS12, TLS13};
    use rustls::{NamedGroup, ProtocolVersion, RootCertStore};

    let world = Tls::new("").await;
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(world.dir.path().join("ca.pem")).unwrap();
    roots.add(ca).unwrap();
    for (version, groups, wanted) in [
        (
            &TLS13,
            [kx_group::X25519MLKEM768, kx_group::X25519],
            (ProtocolVersion::TLSv1_3, NamedGroup::X25519MLKEM768),
        ),
        (
            &TLS13,
            [kx_group::X25519, kx_group::SECP256R1],
            (ProtocolVersion::TLSv1_3, NamedGroup::X25519),
        ),
        (
            &TLS12,
            [kx_group::X25519MLKEM768, kx_group::X25519],
            (ProtocolVersion::TLSv1_2, NamedGroup::X25519),
        ),
    ] {
        let mut provider = default_provider();
        provider.kx_groups = groups.to_vec();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let tcp = TcpStream::connect(world.proxy.data).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let stream = stream.await.unwrap();
        let session = stream.get_ref().1;
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!((session.protocol_version().unwrap(), group), wanted);
    }

    assert_eq!(hello(world.proxy.data, 3).await.0, HANDSHAKE);
    // TLS 1.1 and 1.0: a fatal protocol_version (RFC 5246 §7.2).
    assert_eq!(hello(world.proxy.data, 2).await, (ALERT, [2, 70]));
    assert_eq!(hello(world.proxy.data, 1).await, (ALERT, [2, 70]));
}

/// Types of records (RFC 5246 §6.2.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// What a `ClientHello` for version 3.`minor` is answered with: the record's type, and its first
/// bytes.
async fn hello(to: SocketAddr, minor: u8) -> (u8, [u8; 2]) {
    // RFC 5246 §7.4.1.2: a random, no session, one suite, no compression; then x25519 and
    // ecdsa_secp256r1_sha256 as extensions.
    let mut hello = vec![3, minor];
    hello.extend([7; 32]);
    hello.extend(b"\0\0\x02\xc0\x2b\x01\0");
    hello.extend(b"\0\x10\0\x0a\0\x04\0\x02\0\x1d\0\x0d\0\x04\0\x02\x04\x03");
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![HANDSHAKE, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(hello);
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(&record).await.unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.unwrap();
    (answer[0], [answer[5], answer[6]])
}

/// A TLS listener with four certificates in front of an echo, which is vendor `v`, by its prefix
/// and by the host one.test.
struct Tls {
    world: World,
    roots: Roots,
}

impl std::ops::Deref for Tls {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Tls {
    /// `callers`: what follows that key; nothing: no such key.
    async fn new(callers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let roots = Roots::load(&dir.path().join("ca.pem")).unwrap();
        let callers = match callers {
            "" => String::new(),
            inline if inline.starts_with(" anyone") => format!("callers:{inline}"),
            entries => format!("callers:\n{entries}"),
        };
        let pairs = ["localhost", "one", "two", "wild"];
        let pairs = pairs.map(|name| format!("{{ cert: {name}.pem, key: {name}.key }}"));
        let listener = format!(
            "{{ bind: 127.0.0.1:0, tls: {{ certificates: [ {} ] }} }}",
            pairs.join(", ")
        );
        let world = World::with_vendor("    hosts: [ one.test ]\n")
            .within(dir)
            .listener(&listener)
            .top(&callers)
            .start()
            .await;
        Self { world, roots }
    }

    async fn over_h1(&self, name: &str, host: &str, target: &str) -> Answer {
        let client = reqwest::Client::builder()
            .no_proxy()
            .resolve(name, SocketAddr::from(([127, 0, 0, 1], 0)))
            .timeout(Duration::from_secs(20))
            .tls_backend_preconfigured(self.roots.client_config(None).unwrap())
            .build()
            .unwrap();
        let url = format!("https://{name}:{}{target}", self.proxy.data.port());
        answer(client.get(url).header("Host", host)).await
    }

    async fn over_h2(&self, name: &str, host: &str, target: &str) -> (u16, String) {
        self.h2(name, host, target, &[]).await
    }

    async fn h2(
        &self,
        name: &str,
        host: &str,
        target: &str,
        fields: &[(&str, &str)],
    ) -> (u16, String) {
        let exchange = async {
            let stream = self.connect(name, &[b"h2"]).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
            let driving = tokio::spawn(connection);
            let mut request = Request::get(format!("https://{host}{target}"));
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            let response = response.await.unwrap();
            let status = response.status().as_u16();
            let mut stream = response.into_body();
            let mut body = Vec::new();
            while let Some(some) = stream.data().await {
                let some = some.unwrap();
                stream.flow_control().release_capacity(some.len()).unwrap();
                body.extend_from_slice(&some);
            }
            driving.abort();
            (status, String::from_utf8(body).unwrap())
        };
        tokio::time::timeout(Duration::from_secs(20), exchange)
            .await
            .unwrap()
    }

    async fn connect(&self, name: &str, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        self.try_connect(name, protocols).await.unwrap()
    }

    async fn try_connect(
        &self,
        name: &str,
        protocols: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config: ClientConfig = self.roots.client_config(None).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let tcp = TcpStream::connect(self.proxy.data).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
    }
}

/// A CA as ca.pem, and a certificate for each name.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    for (file, name) in [
        ("localhost", "localhost"),
        ("one", "one.test"),
        ("two", "two.test"),
        ("wild", "*.wild.test"),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &ca).unwrap();
        std::fs::write(dir.join(format!("{file}.pem")), leaf.pem()).unwrap();
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// The DNS names of the certificate the server showed.
fn names_of(stream: &TlsStream<TcpStream>) -> Vec<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

    let shown = stream.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = X509Certificate::from_der(&shown[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let mut found = Vec::new();
    for name in &names.value.general_names {
        if let GeneralName::DNSName(name) = name {
            found.push((*name).to_owned());
        }
    }
    found
}
