//! The real binary in front of the mock vendors, and a caller of it that holds no vendor's
//! secret but tries logins of its own.

use std::process::Stdio;
use std::time::Duration;

use countersign::tls::Roots;
use countersign_demo::{MockServer, MockVendors, RecordedRequest};
use reqwest::RequestBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::task::JoinSet;

use super::{PATIENCE, Proxy, countersign, write_secret};

/// What the caller shows in every field that carries a login at one of the vendors. It occurs
/// nowhere else, so a vendor that has read it was shown what the caller sent.
pub const DECOY: &str = "decoy-of-the-caller";
const DECOYS: [&str; 9] = [
    "Authorization",
    "Proxy-Authorization",
    "login",
    "password",
    "customerUri",
    "X-Api-Key",
    "X-Venafi-Api-Key",
    "Cookie",
    "X-Forwarded-For",
];

/// The mock vendors run; the proxy does not run yet.
pub struct Plan {
    /// What the proxy will be in front of.
    pub mocks: MockVendors,
    dir: TempDir,
    admin: String,
    vendors: String,
    environment: Vec<(&'static str, &'static str)>,
}

impl Plan {
    /// Starts the mock vendors. One caller is known, by the key of [`MockVendors::logins`], and may
    /// do everything.
    pub async fn new() -> Self {
        countersign::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let mocks = MockVendors::start(dir.path()).await.unwrap();
        write_secret(&dir.path().join("secrets/caller"), &mocks.logins.caller_key);
        Self {
            mocks,
            dir,
            admin: String::new(),
            vendors: String::new(),
            environment: Vec::new(),
        }
    }

    /// With the stanza of this name, as the demo has it.
    pub fn vendor(self, name: &str) -> Self {
        self.vendor_with(name, "")
    }

    /// The same, with `more` lines at its end.
    pub fn vendor_with(mut self, name: &str, more: &str) -> Self {
        let stanza = self.stanza(name) + more;
        self.vendors.push_str(&stanza);
        self
    }

    /// With a stanza of the test's own, written to stand under `vendors:`.
    pub fn stanza_of(mut self, stanza: &str) -> Self {
        self.vendors.push_str(stanza);
        self
    }

    /// With more in the admin listener's entry, comma first.
    pub fn admin(mut self, more: &str) -> Self {
        self.admin.push_str(more);
        self
    }

    /// With a variable in the proxy's environment.
    pub fn environment(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// The demo's stanza of this name.
    pub fn stanza(&self, name: &str) -> String {
        let stanzas = self.mocks.stanzas();
        let stanza = stanzas.into_iter().find(|(known, _)| *known == name);
        stanza.unwrap().1
    }

    /// The whole file.
    pub fn yaml(&self) -> String {
        let (admin, vendors) = (&self.admin, &self.vendors);
        format!(
            "\
listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0{admin} }}
drain: {{ delay: 0s }}
callers:
  app: {{ api_key: {{ file: secrets/caller }}, allow: [ \"*\" ] }}
vendors:
{vendors}"
        )
    }

    /// Where the file will be, and its certificates and secrets are.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// With a person's consent to `maxmd`, by `countersign authorize` and pasting.
    pub async fn consented(self) -> Self {
        let (code, said) = self.authorize(str::to_owned).await;
        assert_eq!(code, Some(0), "{said}");
        self
    }

    /// Runs `countersign authorize maxmd`, opens the address it prints, pastes what `paste` makes
    /// of the address the browser was sent to, and returns the exit code and all that was said.
    pub async fn authorize(&self, paste: impl FnOnce(&str) -> String) -> (Option<i32>, String) {
        std::fs::write(self.dir().join("proxy.yaml"), self.yaml()).unwrap();
        let mut authorize = tokio::process::Command::from(countersign())
            .args(["authorize", "maxmd"])
            .current_dir(self.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = authorize.stdin.take();
        let mut stdout = BufReader::new(authorize.stdout.take().unwrap()).lines();
        let exchange = async {
            let mut said = String::new();
            let mut paste = Some(paste);
            // The address stands alone on a line.
            while let Some(line) = stdout.next_line().await.unwrap() {
                said += &line;
                if !line.starts_with("https://") {
                    continue;
                }
                let browser = reqwest::Client::builder()
                    .no_proxy()
                    .redirect(reqwest::redirect::Policy::none())
                    .tls_backend_preconfigured(
                        Roots::load(&self.mocks.files.ca)
                            .unwrap()
                            .client_config(None)
                            .unwrap(),
                    )
                    .build()
                    .unwrap();
                let sent = answer(browser.get(&line)).await;
                assert_eq!(sent.status, 302, "{sent:?}");
                let pasted = paste.take().unwrap()(sent.header("location")) + "\n";
                // Closed after it: nothing more will be typed.
                let mut stdin = stdin.take().unwrap();
                stdin.write_all(pasted.as_bytes()).await.unwrap();
            }
            let output = authorize.wait_with_output().await.unwrap();
            said += &String::from_utf8(output.stderr).unwrap();
            (output.status.code(), said)
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap()
    }

    /// Starts the proxy and waits until it is ready.
    pub fn start(self) -> Front {
        let proxy = Proxy::start_with(self.dir.path(), &self.yaml(), &self.environment);
        self.front(proxy)
    }

    /// Starts the proxy and waits until it listens: no token is there yet.
    pub fn launch(self) -> Front {
        let proxy = Proxy::launch(self.dir.path(), &self.yaml(), &self.environment);
        self.front(proxy)
    }

    fn front(self, proxy: Proxy) -> Front {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        Front {
            mocks: self.mocks,
            proxy,
            client,
            dir: self.dir,
        }
    }
}

/// The proxy runs.
pub struct Front {
    /// What it is in front of.
    pub mocks: MockVendors,
    /// The proxy.
    pub proxy: Proxy,
    /// The caller's.
    pub client: reqwest::Client,
    dir: TempDir,
}

impl Front {
    /// A GET with the caller's key, every decoy, and nothing else.
    pub fn get(&self, target: &str) -> RequestBuilder {
        self.request(reqwest::Method::GET, target)
    }

    /// The same with another method.
    pub fn request(&self, method: reqwest::Method, target: &str) -> RequestBuilder {
        let url = format!("http://{}{target}", self.proxy.data);
        let mut request = self.client.request(method, url);
        request = request.header("X-Countersign-Key", &self.mocks.logins.caller_key);
        for name in DECOYS {
            request = request.header(name, DECOY);
        }
        request
    }

    /// Kills the proxy and starts it again with the same file and state.
    pub fn restart(&mut self) {
        let yaml = std::fs::read_to_string(self.dir.path().join("proxy.yaml")).unwrap();
        self.proxy.kill();
        self.proxy = Proxy::start(self.dir.path(), &yaml);
    }

    /// Sends `count` such GETs at once.
    pub async fn burst(&self, count: usize, target: &str) -> Vec<Answer> {
        let mut asking = JoinSet::new();
        for _ in 0..count {
            asking.spawn(answer(self.get(target)));
        }
        asking.join_all().await
    }

    /// Sends the request and reads its answer.
    pub async fn answer(&self, target: &str) -> Answer {
        answer(self.get(target)).await
    }

    /// Forces a renewal the way an operator does; the status.
    pub async fn refresh(&self, vendor: &str) -> u16 {
        let url = format!("http://{}/vendors/{vendor}/refresh", self.proxy.admin);
        answer(self.client.post(url)).await.status
    }

    /// `/status` of one vendor.
    pub fn status(&self, vendor: &str) -> Value {
        let (_, body) = self.proxy.admin("/status");
        let status: Value = serde_json::from_str(&body).unwrap();
        let vendors = status["vendors"].as_array().unwrap();
        let found = vendors.iter().find(|one| one["name"] == vendor);
        found.unwrap().clone()
    }

    /// The value of one series of `/metrics`; 0 when there is none.
    pub fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.proxy.admin("/metrics");
        let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
        let found = lines.find(|(name, _)| *name == series);
        found.map_or(0.0, |(_, value)| value.parse().unwrap())
    }

    /// The file's directory.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Panics when any vendor has read what the caller sent as a login.
    pub fn assert_nothing_of_the_callers_arrived(&self) {
        for mock in self.mocks.all() {
            for mine in [DECOY, &self.mocks.logins.caller_key] {
                assert!(!mock.has_read(mine), "{mine} reached {}", mock.url());
            }
        }
    }
}

/// What the caller got.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: reqwest::header::HeaderMap,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// A field's value; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends the request and reads its answer.
pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.text().await.unwrap(),
    }
}

/// The only request of its kind that `stand` was sent.
pub fn only(mut seen: Vec<RecordedRequest>) -> RecordedRequest {
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen.remove(0)
}

/// The tokens that were shown to `stand`, each once.
pub fn bearers(mock: &MockServer) -> Vec<String> {
    let calls = mock.api_calls();
    let mut tokens: Vec<String> = calls
        .iter()
        .map(|seen| seen.bearer().unwrap().to_owned())
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}
