//! Third-party servers, each started for one test and stopped with it.
//!
//! A missing one fails the test with the name of its Debian package: `make test` installs them.

pub mod rotating;
pub mod squid;
pub mod streams;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

use super::{PATIENCE, eventually};

/// oidc-provider, and an API that accepts only its tokens; see `peers/oidc.mjs` for its clients.
pub struct Oidc {
    /// `https://localhost:PORT`: issuer, token endpoint and API.
    pub origin: String,
    process: Process,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Oidc {
    /// Starts it with `pki`'s server certificate. Tokens live for `access_token_seconds`.
    pub fn start(pki: &Pki, access_token_seconds: u64) -> Self {
        assert!(
            here().join("node_modules/oidc-provider").exists(),
            "the npm package oidc-provider is missing: `make setup-test` installs it"
        );
        let settings = json!({
            "cert": pki.file("server.pem"),
            "key": pki.file("server.key"),
            "clientCa": pki.file("ca.pem"),
            "selfSigned": pki.file("self-signed.pem"),
            "publicKey": pki.assertion_jwk,
            "secret": SECRET,
            "redirectUris": ["http://127.0.0.1/callback", PASTED],
            "accessTokenSeconds": access_token_seconds,
        });
        let mut command = node();
        command
            .arg(here().join("oidc.mjs"))
            .arg(settings.to_string())
            .stdout(Stdio::piped());
        let mut process = Process::spawn(command, "nodejs", pki.file("oidc.log"));

        let events = Arc::new(Mutex::new(Vec::new()));
        let output = BufReader::new(process.child.stdout.take().unwrap());
        let sink = events.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                sink.lock().unwrap().push(event);
            }
        });
        let port = eventually("listening: oidc-provider", || {
            process.assert_running();
            told(&events, "listening")
                .first()
                .map(|event| event["port"].clone())
        });
        Self {
            origin: format!("https://localhost:{port}"),
            process,
            events,
        }
    }

    /// The calls of its token endpoint so far: client, grant, auth, scope, error.
    pub fn token_calls(&self) -> Vec<Value> {
        told(&self.events, "token")
    }

    /// How often a reused refresh token has cost its family.
    pub fn families_killed(&self) -> usize {
        told(&self.events, "revoked").len()
    }
}

fn told(events: &Mutex<Vec<Value>>, what: &str) -> Vec<Value> {
    let events = events.lock().unwrap();
    events
        .iter()
        .filter(|event| event["event"] == what)
        .cloned()
        .collect()
}

impl Drop for Oidc {
    fn drop(&mut self) {
        println!("--- oidc-provider told: {:#?}", self.events.lock().unwrap());
        self.process.end();
    }
}

/// Of the clients that have one. Every character of it that a form encodes differently is a way
/// to get Basic wrong (RFC 6749 §2.3.1).
pub const SECRET: &str = "a+b/c:d e%f&g=h%20";

/// A redirect address where nothing listens: the person copies the code from the browser.
pub const PASTED: &str = "https://app.example/callback";

/// apache2 demanding a client certificate; see `peers/apache.conf` and `peers/apache-late.conf`.
pub struct Apache {
    /// `https://localhost:PORT`.
    pub origin: String,
    root: TempDir,
    process: Process,
}

impl Apache {
    /// Starts it with `pki`'s server certificate, trusting `pki`'s authority for clients and
    /// demanding a certificate in the handshake, and two headers.
    pub fn start(pki: &Pki) -> Self {
        Self::start_with(pki, "apache.conf", "")
    }

    /// The same, demanding the certificate once it has read the path. `protocol` is the value of
    /// `SSLProtocol`.
    pub fn start_late(pki: &Pki, protocol: &str) -> Self {
        Self::start_with(pki, "apache-late.conf", protocol)
    }

    fn start_with(pki: &Pki, conf: &str, protocol: &str) -> Self {
        // Another process may take the port between our choice and its bind.
        (0..3)
            .find_map(|_| Self::try_start(pki, conf, protocol))
            .expect("apache2 ended at once, three times")
    }

    fn try_start(pki: &Pki, conf: &str, protocol: &str) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        std::fs::create_dir_all(file("www/private/api")).unwrap();
        for (from, to) in [
            (here().join(conf), "apache.conf"),
            (here().join("apache-late.sh"), "apache-late.sh"),
            (pki.file("server.pem"), "server.pem"),
            (pki.file("server.key"), "server.key"),
            (pki.file("ca.pem"), "client-ca.pem"),
        ] {
            std::fs::copy(from, file(to)).unwrap();
        }
        std::fs::write(file("www/private/api/profile"), PROFILE).unwrap();

        // Debian keeps servers where a user's PATH may not look.
        let apache = "/usr/sbin/apache2";
        assert!(
            Path::new(apache).exists(),
            "{apache} is missing: Debian package apache2-bin (`make setup-test` installs it)"
        );
        let port = free_port();
        // apache2 has no wish to end with its standard input, so a shell sees to that.
        let mut command = Command::new("/bin/sh");
        command
            .args([
                "-c",
                ENDS_WITH_STDIN,
                "sh",
                apache,
                "-D",
                "FOREGROUND",
                "-f",
            ])
            .arg(file("apache.conf"))
            .args(["-C", &format!("Define ROOT {}", root.path().display())])
            .args(["-C", &format!("Define PORT {port}")])
            .args(["-C", "Define MODULES /usr/lib/apache2/modules"])
            .args(["-C", &format!("Define PROTOCOL \"{protocol}\"")])
            .stdout(Stdio::null());
        // apache2 does not serve as root.
        if std::fs::metadata(root.path()).unwrap().uid() == 0 {
            give_to_nobody(root.path());
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut process = Process::spawn(command, "apache2-bin", file("stderr.log"));
        // Its process number is written once the port is bound.
        let running = eventually("running: apache2", || {
            let ended = process.has_ended();
            (ended || file("apache.pid").exists()).then_some(!ended)
        });
        let apache = Self {
            origin: format!("https://localhost:{port}"),
            root,
            process,
        };
        running.then_some(apache)
    }

    /// The heads of the requests it got, spelled as they came, fields separated by `|`.
    pub fn requests(&self) -> Vec<String> {
        self.log("requests.log")
            .lines()
            .filter_map(|line| Some(line.strip_prefix('+')?.split_once('|')?.1.to_owned()))
            .collect()
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.root.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        self.process.end();
        let said = self.log("stderr.log") + &self.log("error.log") + &self.log("certificates.log");
        println!("--- apache2 said:\n{said}---");
    }
}

/// What apache2 answers at `/private/api/profile`.
pub const PROFILE: &str = "{\"id\":7}\n";

/// A shell that runs its arguments as a server and ends it with its own standard input.
pub const ENDS_WITH_STDIN: &str = r#"
exec 3<&0
"$@" &
server=$!
{ read -r _ <&3; kill "$server"; } &
wait "$server"
"#;

/// `nobody`, on Debian and everywhere else.
const NOBODY: u32 = 65534;

fn give_to_nobody(path: &Path) {
    lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).unwrap() {
            give_to_nobody(&entry.unwrap().path());
        }
    }
}

/// A port that was free a moment ago, for programs that cannot be told to choose.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// The person at the browser: follows redirects with cookies from `url` until one leads to
/// `target`, and returns that address without visiting it.
pub async fn browse(pki: &Pki, url: &str, target: &str) -> Url {
    let client = pki.client();
    let mut url = Url::parse(url).unwrap();
    let mut cookies = HashMap::new();
    for _ in 0..10 {
        let visible = cookies
            .iter()
            .filter(|((path, _), _)| url.path().starts_with(path))
            .map(|((_, name), value)| format!("{name}={value}"))
            .collect::<Vec<_>>();
        let answer = client
            .get(url.clone())
            .header("cookie", visible.join("; "))
            .send()
            .await
            .unwrap();
        for line in answer.headers().get_all("set-cookie") {
            let mut parts = line.to_str().unwrap().split("; ");
            let (name, value) = parts.next().unwrap().split_once('=').unwrap();
            let path = parts
                .find_map(|part| part.strip_prefix("path="))
                .unwrap_or("/");
            cookies.insert((path.to_owned(), name.to_owned()), value.to_owned());
        }
        let status = answer.status();
        let Some(location) = answer.headers().get("location") else {
            panic!("{url} answered {status}: {}", answer.text().await.unwrap());
        };
        url = url.join(location.to_str().unwrap()).unwrap();
        if url.as_str().starts_with(target) {
            return url;
        }
    }
    panic!("ten redirects, and none to {target}");
}

/// One authority and what it signed, in files of a directory that goes with the value.
pub struct Pki {
    dir: TempDir,
    /// Verifies what `assertion.key` signs (ES256).
    assertion_jwk: Value,
}

impl Pki {
    /// `ca.pem`; `server.*` for localhost; `client.*` for proxy.test; `self-signed.*`;
    /// `assertion.key`; `secret`, holding [`SECRET`].
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();

        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Of its own: a leaf named like its issuer would pass for self-signed.
        ca.distinguished_name = DistinguishedName::new();
        ca.distinguished_name
            .push(DnType::CommonName, "test authority");
        write("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(ca, ca_key);
        for (name, names) in [
            (
                "server",
                vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            ),
            ("client", vec!["proxy.test".to_owned()]),
        ] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(names).unwrap();
            let cert = params.signed_by(&key, &issuer).unwrap();
            write(&format!("{name}.pem"), &cert.pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["proxy.test".to_owned()]).unwrap();
        write("self-signed.pem", &params.self_signed(&key).unwrap().pem());
        write("self-signed.key", &key.serialize_pem());

        let key = KeyPair::generate().unwrap();
        write("assertion.key", &key.serialize_pem());
        write("secret", SECRET);
        // An uncompressed point: 4, x, y (SEC 1 §2.3.3).
        let (x, y) = key.public_key_raw()[1..].split_at(32);
        let assertion_jwk = json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "key-1",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        Self { dir, assertion_jwk }
    }

    /// The directory; proxy.yaml goes there too, so that it can name the files alone.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An HTTP client that trusts the authority, follows nothing and holds no secret.
    pub fn client(&self) -> reqwest::Client {
        // Set by whichever test of this process came first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ca = std::fs::read(self.file("ca.pem")).unwrap();
        reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .unwrap()
    }
}

/// Node.js, which finds the packages of `peers/package.json` from there.
pub fn node() -> Command {
    // There only where the system's own is too old.
    let newer = here().join("newer-node/node_modules/.bin/node");
    Command::new(if newer.exists() { newer } else { "node".into() })
}

/// Python with the packages of `peers/python.txt`.
pub fn python() -> Command {
    let python = here().join("venv/bin/python");
    assert!(
        python.exists(),
        "the packages of PyPI are missing: `make setup-test` installs them"
    );
    Command::new(python)
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/peers")
}

/// A server that ends when its standard input does, so that it cannot outlive a killed test.
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Process {
    /// Runs `command`, its stderr going to the file `log`; `package` is where Debian has it.
    pub fn spawn(mut command: Command, package: &str, log: PathBuf) -> Self {
        let file = std::fs::File::create(&log).unwrap();
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|cause| {
                panic!(
                    "{command:?}: {cause}; Debian package {package} (`make setup-test` installs it)"
                )
            });
        let stdin = child.stdin.take();
        Self { child, stdin, log }
    }

    /// Panics with its log when it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            panic!("the server ended at once ({status}):\n{said}");
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Ends it and waits until it has.
    pub fn end(&mut self) {
        drop(self.stdin.take());
        // Nothing runs on when the test is over.
        let _ = self.child.wait();
    }
}
