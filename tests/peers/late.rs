//! A server that asks for the client certificate once it has read the path.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::outbound::Egress;
use crate::support::peers::{Apache, Pki};
use crate::support::{Proxy, eventually, signal};

/// As `mod_ssl` spells them, and as it tells them.
const VERSIONS: [(&str, &str); 2] = [("-all +TLSv1.2", "TLSv1.2"), ("-all +TLSv1.3", "TLSv1.3")];

fn yaml(upstream: &str, vendor: &str) -> String {
    format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
admin: {{ bind: 127.0.0.1:0 }}
vendors:
  v:
    upstream: {upstream}
{vendor}"
    )
}

const WITHOUT: &str = "
    ca: ca.pem
    client_cert: { cert: client.pem, key: client.key }
";

const LATE: &str = "
    ca: ca.pem
    client_cert: { cert: client.pem, key: client.key }
    tls: { late_client_auth: true }
";

/// What the server knows of a request, and the body it got.
struct Seen {
    about: Value,
    body: String,
}

impl Seen {
    fn text(&self, field: &str) -> String {
        self.about[field].as_str().unwrap().to_owned()
    }
}

async fn send(proxy: &Proxy, pki: &Pki, path: &str, body: Option<String>) -> Result<Seen, u16> {
    let url = format!("http://{}/v{path}", proxy.data);
    let request = match body {
        Some(body) => pki.client().post(url).body(body),
        None => pki.client().get(url),
    };
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    if status != 200 {
        println!("{path} was answered with {status}: {text}");
        return Err(status);
    }
    let (about, body) = text.split_once('\n').unwrap();
    Ok(Seen {
        about: serde_json::from_str(about).unwrap(),
        body: body.to_owned(),
    })
}

async fn get(proxy: &Proxy, pki: &Pki, path: &str) -> Result<Seen, u16> {
    send(proxy, pki, path, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_asked_for_late_is_shown_and_bodies_come_whole() {
    for (protocol, version) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, LATE));

        let open = get(&proxy, &pki, "/open/a").await.unwrap();
        assert_eq!(
            (open.text("tls").as_str(), open.text("serial").as_str()),
            (version, "")
        );
        let private = get(&proxy, &pki, "/private/a").await.unwrap();
        assert_ne!(private.text("serial"), "");
        for length in [1, 100_000] {
            // On connections that have shown it, and on new ones.
            let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, LATE));
            for _ in 0..2 {
                let body = "b".repeat(length);
                let posted = send(&proxy, &pki, "/private/b", Some(body.clone())).await;
                let posted = posted.unwrap();
                assert_eq!(posted.body, body);
                assert_eq!(posted.text("serial"), private.text("serial"));
            }
        }
        // What the schema says of longer ones.
        let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, LATE));
        let long = "b".repeat(200_000);
        assert_eq!(
            send(&proxy, &pki, "/private/c", Some(long.clone()))
                .await
                .err(),
            Some(413)
        );
        assert_eq!(
            send(&proxy, &pki, "/open/c", Some(long.clone()))
                .await
                .unwrap()
                .body,
            long
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_late_client_auth_the_same_request_fails() {
    for (protocol, version) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        // Over TLS 1.2 there is no further message.
        let impatient = format!("{WITHOUT}    timeouts: {{ first_byte: 1s, idle: 1s }}\n");
        let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, &impatient));

        assert_eq!(
            get(&proxy, &pki, "/open/a").await.unwrap().text("tls"),
            version
        );
        let status = get(&proxy, &pki, "/private/a").await.err();
        assert!(
            matches!(status, Some(403 | 502 | 504)),
            "{version}: {status:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_and_carry_fifty_requests_at_a_time() {
    for (protocol, _) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, LATE));

        let mut connections = HashSet::new();
        for _ in 0..10 {
            let seen = get(&proxy, &pki, "/private/a").await.unwrap();
            connections.insert(seen.text("connection"));
        }
        // Not one: pingora loses a pooled connection now and then.
        assert!(connections.len() < 5, "{connections:?}");

        let mut running = tokio::task::JoinSet::new();
        let client = pki.client();
        for number in 0..50 {
            let url = format!("http://{}/v/private/{number}", proxy.data);
            let request = client.post(url).body(format!("body {number}"));
            running.spawn(async move {
                let answer = request.send().await.unwrap();
                assert_eq!(answer.status(), 200);
                let text = answer.text().await.unwrap();
                assert_eq!(text.split_once('\n').unwrap().1, format!("body {number}"));
            });
        }
        while let Some(done) = running.join_next().await {
            done.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_call_shows_it_too_and_its_token_is_used() {
    for (protocol, _) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        let egress = Egress::start("200 OK").await;
        for proxied in [
            String::new(),
            format!("    proxy: http://{}\n", egress.address),
        ] {
            let vendor = format!(
                "
    preset: venafi
    ca: ca.pem
    redact_echo: false
{proxied}
    auth:
      vedauth:
        client_id: app
        refresh: false
        certificate: {{ cert: client.pem, key: client.key }}
"
            );
            let yaml = yaml(&apache.origin, &vendor);
            let proxy = Proxy::start_with(pki.dir(), &yaml, &[("RUST_LOG", "trace")]);
            let seen = get(&proxy, &pki, "/vedsdk/a").await.unwrap();
            assert_eq!(seen.text("authorization"), "Bearer late==");
            let said = ["/", "/status", "/metrics"].map(|path| proxy.admin(path).1);
            let said = said.concat() + &proxy.said();
            assert!(said.contains("credential obtained"), "{said}");
            assert!(!said.contains("late=="), "{said}");
            // The upstream's own certificate was not configured.
            assert_eq!(seen.text("serial"), "");
        }
        assert_eq!(egress.heads().len(), 2, "{:?}", egress.heads());
        let calls = apache.requests();
        let tokens = calls.iter().filter(|call| call.starts_with("POST "));
        for call in tokens.clone() {
            assert!(
                call.starts_with("POST /vedauth/authorize/certificate HTTP/1.1|"),
                "{call}"
            );
            let host = apache
                .origin
                .trim_start_matches("https://")
                .replace(':', "%3a");
            assert!(
                call.to_lowercase().contains(&format!("|host:{host}")),
                "{call}"
            );
        }
        assert_eq!(tokens.count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_the_server_does_not_know_is_refused_and_said_so() {
    for (protocol, version) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        let unknown = LATE
            .replace("client.pem", "self-signed.pem")
            .replace("client.key", "self-signed.key");
        let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, &unknown));

        get(&proxy, &pki, "/open/a").await.unwrap();
        let status = get(&proxy, &pki, "/private/a").await.err();
        assert_eq!(status, Some(502), "{version}");
        eventually("the reason in the log", || {
            let said = proxy.stderr();
            said.contains("alert unknown ca").then_some(())
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_a_server_that_does_not_verify() {
    for (protocol, _) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        let vendor = "
    ca: self-signed.pem
    client_cert: { cert: client.pem, key: client.key }
    tls: { late_client_auth: true }
    auth: { bearer: { token: { file: secret } } }
  w:
    preset: venafi
    upstream: ORIGIN
    ca: self-signed.pem
    auth:
      vedauth:
        client_id: app
        refresh: false
        certificate: { cert: client.pem, key: client.key }
";
        let vendor = vendor.replace("ORIGIN", &apache.origin);
        let proxy = Proxy::launch(pki.dir(), &yaml(&apache.origin, &vendor), &[]);

        assert_eq!(get(&proxy, &pki, "/open/a").await.err(), Some(502));
        eventually("a failed fetch", || {
            let status = proxy.admin("/status").1;
            status.contains("certificate is refused").then_some(())
        });
        eventually("the reason in the log", || {
            let said = proxy.stderr();
            said.contains("certificate is refused").then_some(())
        });
        assert_eq!(apache.requests(), [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_after_a_reload_is_the_one_that_is_shown() {
    for (protocol, _) in VERSIONS {
        let pki = Pki::new();
        let apache = Apache::start_late(&pki, protocol);
        let proxy = Proxy::start(pki.dir(), &yaml(&apache.origin, LATE));
        let before = get(&proxy, &pki, "/private/a").await.unwrap();

        let other = LATE
            .replace("client.pem", "server.pem")
            .replace("client.key", "server.key");
        std::fs::write(pki.file("proxy.yaml"), yaml(&apache.origin, &other)).unwrap();
        signal(proxy.id(), "HUP");
        eventually("reloaded", || {
            let metrics = proxy.admin("/metrics").1;
            metrics
                .contains("countersign_config_reloads_total{outcome=\"ok\"} 1")
                .then_some(())
        });
        let after = get(&proxy, &pki, "/private/a").await.unwrap();
        assert_ne!(after.text("serial"), before.text("serial"));
        assert_ne!(after.text("connection"), before.text("connection"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_connection_from_being_made_is_told_as_ever() {
    let pki = Pki::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let impatient = format!("{LATE}    timeouts: {{ connect: 500ms }}\n");
    let proxy = Proxy::start(
        pki.dir(),
        &yaml(&format!("https://127.0.0.1:{port}"), &impatient),
    );
    assert_eq!(get(&proxy, &pki, "/a").await.err(), Some(504));

    drop(silent);
    assert_eq!(get(&proxy, &pki, "/a").await.err(), Some(502));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let pki = Pki::new();
    let mut ends = vec![];
    for ends_well in [true, false] {
        let origin = answer_until_closed(&pki, ends_well).await;
        let proxy = Proxy::start(pki.dir(), &yaml(&origin, LATE));
        let url = format!("http://{}/v/a", proxy.data);
        let answer = pki.client().get(url).send().await.unwrap();
        ends.push(answer.text().await.ok());
    }
    assert_eq!(ends, [Some("half".to_owned()), None]);
}

/// A server whose answer ends with its connection, by TLS's own word for it or without.
async fn answer_until_closed(pki: &Pki, ends_well: bool) -> String {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://{}", listener.local_addr().unwrap());
    let cert = CertificateDer::from_pem_file(pki.file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.file("server.key")).unwrap();
    countersign::tls::install_provider();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf";
            stream.write_all(answer).await.unwrap();
            stream.flush().await.unwrap();
            if ends_well {
                stream.shutdown().await.unwrap();
            }
        }
    });
    origin
}
