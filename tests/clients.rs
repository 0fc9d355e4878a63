//! The HTTP clients that people have, pointed at the proxy: each makes the same calls, and each
//! must get the same answers and give the vendor the same requests.

use std::path::Path;
use std::process::{Command, Output};

use countersign_demo::{MockServer, RecordedRequest};
use serde_json::{Value, json};

use crate::support::peers::{Pki, node, python};
use crate::support::{Proxy, write_secret};

const KEY: &str = "a-callers-key-for-any-of-the-slots";

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_over_http_1_and_2_with_tls_and_without() {
    let scene = Scene::new().await;
    for (base, protocol, version) in [
        (&scene.tls, "--http1.1", "1.1"),
        (&scene.tls, "--http2", "2"),
        (&scene.plain, "--http1.1", "1.1"),
        (&scene.plain, "--http2-prior-knowledge", "2"),
    ] {
        let results = with_curl(&scene, base, protocol);
        scene.assert_same(&format!("curl {protocol} {base}"), version, &results);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_clients_are_served() {
    let scene = Scene::new().await;
    for (client, version) in [
        ("requests", "1.1"),
        ("httpx", "1.1"),
        ("httpx-h2", "2"),
        ("aiohttp", "1.1"),
    ] {
        let results = scene.run(client, python().arg(peer("clients.py")));
        scene.assert_same(client, version, &results);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_clients_are_served() {
    let scene = Scene::new().await;
    for (client, version) in [("undici", "1.1"), ("undici-h2", "2"), ("axios", "1.1")] {
        let results = scene.run(client, node().arg(peer("clients.mjs")));
        scene.assert_same(client, version, &results);
    }
}

/// An upstream that answers as it is asked to, behind a listener with TLS and one without.
struct Scene {
    echo: MockServer,
    _proxy: Proxy,
    pki: Pki,
    tls: String,
    plain: String,
}

impl Scene {
    async fn new() -> Self {
        countersign::tls::install_provider();
        let pki = Pki::new();
        let echo = countersign_demo::echo().await.unwrap();
        write_secret(&pki.file("caller"), KEY);
        write_secret(&pki.file("vendor"), "what-the-vendor-wants");
        let yaml = format!(
            "\
listeners:
  - {{ bind: 127.0.0.1:0, tls: {{ certificates: [ {{ cert: server.pem, key: server.key }} ] }} }}
  - {{ bind: 127.0.0.1:0, h2c: true }}
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
callers: {{ app: {{ api_key: {{ file: caller }}, allow: [ v ] }} }}
vendors:
  v:
    upstream: {}
    allow_plaintext: true
    auth: {{ bearer: {{ token: {{ file: vendor }} }} }}
",
            echo.url()
        );
        let proxy = Proxy::start(pki.dir(), &yaml);
        let [tls, plain] = &proxy.listeners[..] else {
            panic!("two listeners, not {:?}", proxy.listeners)
        };
        Self {
            tls: format!("https://localhost:{}", tls.port()),
            plain: format!("http://127.0.0.1:{}", plain.port()),
            echo,
            _proxy: proxy,
            pki,
        }
    }

    /// Runs a client's script and reads what it prints.
    fn run(&self, client: &str, command: &mut Command) -> Value {
        let given = json!({
            "base": self.tls,
            "key": KEY,
            "ca": self.pki.file("ca.pem"),
            "redirect": self.redirect(&self.tls),
        });
        let output = said(command.arg(client).arg(given.to_string()));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// An address whose answer points at one of the vendor's own.
    fn redirect(&self, base: &str) -> String {
        let landed = format!("Location:{}/landed?body=landed", self.echo.url());
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("status", "302")
            .append_pair("header", &landed);
        format!("{base}/v/moved?{}", query.finish())
    }

    fn assert_same(&self, client: &str, version: &str, results: &Value) {
        let expected = json!({
            "version": version,
            "get": [200, "GET /x?a=1&b=%C3%A4"],
            "post": [200, "POST /post"],
            "stream": [200, "POST /stream"],
            "put": [200, "PUT /put"],
            "delete": [200, "DELETE /delete"],
            "gone": [404, "away"],
            "empty": [204, ""],
            "gzip": [200, "packed"],
            "big": [3_000_000],
            "redirect": [200, "landed"],
            "after_head": [200, "12", 0],
            "refused": [404, "no_vendor"],
            "many": true,
        });
        for (name, expected) in expected.as_object().unwrap() {
            assert_eq!(&results[name], expected, "{client}: {name}");
        }

        let seen = self.echo.requests();
        let body_of = |path: &str| {
            let one = |seen: &&RecordedRequest| seen.path() == path;
            let Some(seen) = seen.iter().rev().find(one) else {
                panic!("{client}: nothing came to {path}")
            };
            seen.body.clone()
        };
        let json: Value = serde_json::from_slice(&body_of("/post")).unwrap();
        assert_eq!(json, json!({ "n": 1 }), "{client}");
        let parts = ["a", "b", "c"].map(|letter| letter.repeat(1000)).concat();
        assert_eq!(body_of("/stream"), parts.as_bytes(), "{client}");
        assert_eq!(body_of("/put").len(), 300_000, "{client}");
        for seen in &seen {
            let login = seen.field("authorization");
            assert_eq!(login, Some("Bearer what-the-vendor-wants"), "{client}");
        }
        assert!(!self.echo.has_read(KEY), "{client}");
        // Two ends of one body are the beginning of a request that the client did not send.
        assert!(!self.echo.has_read("0\r\n\r\n0\r\n\r\n"), "{client}");
    }
}

fn with_curl(scene: &Scene, base: &str, protocol: &str) -> Value {
    let dir = scene.pki.dir();
    std::fs::write(
        dir.join("parts"),
        ["a", "b", "c"].map(|l| l.repeat(1000)).concat(),
    )
    .unwrap();
    std::fs::write(dir.join("put"), "x".repeat(300_000)).unwrap();
    std::fs::write(dir.join("refused"), "x".repeat(100_000)).unwrap();
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--noproxy", "*", "--max-time", "30", protocol])
            .arg("--cacert")
            .arg(scene.pki.file("ca.pem"))
            .args(["-u", &format!("anybody:{KEY}")])
            .args(arguments)
            .current_dir(dir);
        String::from_utf8(said(&mut command).stdout).unwrap()
    };
    // Status, body and version.
    let seen = |path: &str, arguments: &[&str]| {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{base}{path}")
        };
        let told = "\n%{http_code} %{http_version}";
        let text = curl(&[&["-w", told, &url][..], arguments].concat());
        let (body, told) = text.rsplit_once('\n').unwrap();
        let (status, version) = told.split_once(' ').unwrap();
        let status: u16 = status.parse().unwrap();
        (json!([status, body]), version.to_owned(), body.to_owned())
    };
    let (get, version, _) = seen("/v/x?a=1&b=%C3%A4", &[]);
    let (_, _, head) = seen("/v/head?size=12", &["-I"]);
    let length = head.lines().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("content-length: ")
            .map(str::to_owned)
    });
    let json = ["-H", "Content-Type: application/json", "-d", "{\"n\":1}"];
    let chunked = [
        "-T",
        "parts",
        "-X",
        "POST",
        "-H",
        "Transfer-Encoding: chunked",
    ];
    // HTTP/2 has no such field, and needs none.
    let stream = if version == "2" {
        &chunked[..4]
    } else {
        &chunked[..]
    };
    let (refused, _, problem) = seen("/nobody/x", &["--data-binary", "@refused"]);
    let problem: Value = serde_json::from_str(&problem).unwrap();
    // curl 7.88, which Debian 12 has, cannot use a connection without TLS for a second request over
    // HTTP/2, whatever the server (its issue 10634).
    let reuses = protocol != "--http2-prior-knowledge";
    let (last, numbers) = if reuses { (60, "[0-59]") } else { (1, "[0-0]") };
    let redirect = if reuses {
        seen(&scene.redirect(base), &["-L"]).0
    } else {
        let told = ["-o", "moved", "-w", "%{redirect_url}"];
        let landed = curl(&[&told[..], &[&scene.redirect(base)]].concat());
        seen(&landed, &[]).0
    };
    curl(&[
        "-Z",
        "-o",
        "many-#1",
        &format!("{base}/v/many?body={numbers}"),
    ]);
    let many = (0..last)
        .all(|n| std::fs::read_to_string(dir.join(format!("many-{n}"))).unwrap() == n.to_string());
    json!({
        "version": version,
        "get": get,
        "post": seen("/v/post", &json).0,
        "stream": seen("/v/stream", stream).0,
        "put": seen("/v/put", &["-T", "put"]).0,
        "delete": seen("/v/delete", &["-X", "DELETE"]).0,
        "gone": seen("/v/gone?status=404&body=away", &[]).0,
        "empty": seen("/v/empty?status=204", &[]).0,
        "gzip": seen("/v/gzip?body=packed&code=gzip", &["--compressed"]).0,
        "big": [seen("/v/big?size=3000000", &[]).2.len()],
        "redirect": redirect,
        "after_head": [200, length.map(|length| length.trim().to_owned()), 0],
        "refused": [refused[0], problem["reason"]],
        "many": many,
    })
}

/// Runs it to its end, which must be a good one.
fn said(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|cause| {
        panic!("{command:?}: {cause} (`make setup-test` installs what is missing)")
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output
}

fn peer(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support/peers")
        .join(name)
}
