//! The real binary in front of the stand-in vendors, and a caller of it who holds no vendor's
//! secret but tries logins of its own.

use std::time::Duration;

use countersign::demo::{Seen, Stand, Stands};
use reqwest::RequestBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::Proxy;

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

/// The stand-ins run, the proxy does not yet.
pub struct Plan {
    /// What the proxy will be in front of.
    pub stands: Stands,
    dir: TempDir,
    head: String,
    vendors: String,
    environment: Vec<(&'static str, &'static str)>,
}

impl Plan {
    /// Starts the stand-ins. One caller is known, by the key of [`Stands::logins`], and may do
    /// everything.
    pub async fn new() -> Self {
        countersign::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let stands = Stands::start(dir.path()).await.unwrap();
        std::fs::write(dir.path().join("secrets/caller"), &stands.logins.caller_key).unwrap();
        Self {
            stands,
            dir,
            head: String::new(),
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

    /// With more at the top level of the file.
    pub fn head(mut self, yaml: &str) -> Self {
        self.head.push_str(yaml);
        self
    }

    /// With a variable in the proxy's environment.
    pub fn environment(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// The demo's stanza of this name.
    pub fn stanza(&self, name: &str) -> String {
        let stanzas = self.stands.stanzas();
        let stanza = stanzas.into_iter().find(|(known, _)| *known == name);
        stanza.unwrap().1
    }

    /// The whole file.
    pub fn yaml(&self) -> String {
        let (head, vendors) = (&self.head, &self.vendors);
        format!(
            "\
listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
{head}callers:
  app: {{ api_key: {{ file: secrets/caller }}, allow: [ \"*\" ] }}
vendors:
{vendors}"
        )
    }

    /// Where the file will be, and its certificates and secrets are.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
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
            stands: self.stands,
            proxy,
            client,
            dir: self.dir,
        }
    }
}

/// The proxy runs.
pub struct Front {
    /// What it is in front of.
    pub stands: Stands,
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
        request = request.header("X-Countersign-Key", &self.stands.logins.caller_key);
        for name in DECOYS {
            request = request.header(name, DECOY);
        }
        request
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
        for stand in self.stands.all() {
            for mine in [DECOY, &self.stands.logins.caller_key] {
                assert!(!stand.has_read(mine), "{mine} reached {}", stand.url());
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
pub fn only(mut seen: Vec<Seen>) -> Seen {
    assert_eq!(seen.len(), 1, "{seen:?}");
    seen.remove(0)
}

/// What proves who sent the request: names in their spelling, in the order of the wire.
pub fn login(seen: &Seen) -> Vec<(String, String)> {
    seen.login()
}

/// The tokens that were shown to `stand`, each once.
pub fn bearers(stand: &Stand) -> Vec<String> {
    let calls = stand.api_calls();
    let mut tokens: Vec<String> = calls
        .iter()
        .map(|seen| seen.bearer().unwrap().to_owned())
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}
