//! Whatever token servers and APIs do: no storm, no crash, no stale token, and recovery without
//! anybody's help.

mod answers;
mod changes;
mod clocks;
mod replay;
mod rotation;
mod words;

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::AbortHandle;

use crate::support::Proxy;
use crate::support::script::{Asked, Reply, Server};

/// Of every client here; it may turn up nowhere else.
const SECRET: &str = "hunter2-of-the-client";

/// A proxy whose vendors share a scripted token server, each at a path of its own, and an API that
/// notes the tokens it is shown.
struct Setup {
    proxy: Proxy,
    tokens: Server,
    api: Server,
    client: reqwest::Client,
    ledger: Arc<Ledger>,
    stalls: Stalls,
    dir: TempDir,
}

/// How long this machine has let something wait that was due.
struct Stalls {
    /// Milliseconds.
    longest: Arc<AtomicU64>,
    watching: AbortHandle,
}

impl Stalls {
    fn watch() -> Self {
        const STEP: Duration = Duration::from_millis(10);
        let longest = Arc::new(AtomicU64::new(0));
        let noted = longest.clone();
        let watching = tokio::spawn(async move {
            loop {
                let due = Instant::now() + STEP;
                tokio::time::sleep(STEP).await;
                let late = u64::try_from(due.elapsed().as_millis()).unwrap();
                noted.fetch_max(late, Ordering::Relaxed);
            }
        });
        Self {
            longest,
            watching: watching.abort_handle(),
        }
    }

    fn longest(&self) -> Duration {
        Duration::from_millis(self.longest.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Setup {
    /// `script` answers for the token server: vendor `a`'s requests come to `/a`. The API takes
    /// every token. `more` goes into each vendor's `auth`.
    async fn start<F, A>(vendors: &[&str], more: &str, script: F) -> Self
    where
        F: Fn(Asked, Arc<Ledger>) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
    {
        let api = |_, _| async { Reply::whole("200 OK", "", "done") };
        Self::start_with(vendors, more, script, api).await
    }

    /// The same with an API of the test's own.
    async fn start_with<F, A, G, B>(vendors: &[&str], more: &str, script: F, api: G) -> Self
    where
        F: Fn(Asked, Arc<Ledger>) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
        G: Fn(Asked, Arc<Ledger>) -> B + Send + Sync + 'static,
        B: Future<Output = Reply> + Send + 'static,
    {
        Self::start_in(vendors, more, script, api, &[]).await
    }

    /// The same with more in the proxy's environment.
    async fn start_in<F, A, G, B>(
        vendors: &[&str],
        more: &str,
        script: F,
        api: G,
        environment: &[(&str, &str)],
    ) -> Self
    where
        F: Fn(Asked, Arc<Ledger>) -> A + Send + Sync + 'static,
        A: Future<Output = Reply> + Send + 'static,
        G: Fn(Asked, Arc<Ledger>) -> B + Send + Sync + 'static,
        B: Future<Output = Reply> + Send + 'static,
    {
        countersign::tls::install_provider();
        let stalls = Stalls::watch();
        let ledger = Arc::new(Ledger::default());
        let issuing = ledger.clone();
        let tokens = Server::start(move |asked| script(asked, issuing.clone())).await;
        let judging = ledger.clone();
        let api = Server::start(move |asked| api(asked, judging.clone())).await;
        let dir = tempfile::tempdir().unwrap();
        mount(dir.path(), "me", SECRET);
        let mut yaml = String::from(
            "listeners: [ { bind: 127.0.0.1:0 } ]\nadmin: { bind: 127.0.0.1:0 }\n\
             drain: { delay: 0s }\nvendors:\n",
        );
        for name in vendors {
            let (api, tokens) = (api.url(""), tokens.url(&format!("/{name}")));
            write!(
                yaml,
                "  {name}:
    upstream: {api}
    allow_plaintext: true
    timeouts: {{ token_wait: 300ms }}
    auth:
      client_credentials:
        token_url: {tokens}
        client_id: {{ file: id }}
        client_secret: {{ file: secret }}
        client_auth: post
        {more}
"
            )
            .unwrap();
        }
        let path = dir.path().to_owned();
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let proxy = tokio::task::spawn_blocking(move || {
            let environment: Vec<_> = environment
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            Proxy::start_with(&path, &yaml, &environment)
        });
        Self {
            proxy: proxy.await.unwrap(),
            tokens,
            api,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            ledger,
            stalls,
            dir,
        }
    }

    /// One GET of a caller's to this vendor: status and `reason`.
    async fn call(&self, vendor: &str) -> (u16, String) {
        let url = format!("http://{}/{vendor}/x", self.proxy.data);
        let answer = self.client.get(url).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap_or_default();
        let reason = body["reason"].as_str().unwrap_or_default();
        (status, reason.to_owned())
    }

    /// `/status` of one vendor.
    fn status(&self, vendor: &str) -> Value {
        let (_, body) = self.proxy.admin("/status");
        let status: Value = serde_json::from_str(&body).unwrap();
        let vendors = status["vendors"].as_array().unwrap();
        let found = vendors.iter().find(|one| one["name"] == vendor);
        found.unwrap().clone()
    }

    /// What the proxy has counted of attempts for this vendor.
    fn attempts(&self, vendor: &str, outcome: &str) -> i64 {
        let labels = format!("outcome=\"{outcome}\",vendor=\"{vendor}\"");
        self.sample("credential_fetch_total", &labels)
    }

    /// A whole number that `/metrics` has for this vendor; 0 when there is none.
    fn gauge(&self, series: &str, vendor: &str) -> i64 {
        self.sample(series, &format!("vendor=\"{vendor}\""))
    }

    /// 401s answered with a replay, and passed on.
    fn replayed_and_passed(&self, vendor: &str) -> (i64, i64) {
        let count = |action| {
            let labels = format!("action=\"{action}\",vendor=\"{vendor}\"");
            self.sample("upstream_401_total", &labels)
        };
        (count("replayed"), count("passed"))
    }

    /// Forces a renewal the way an operator does; the status.
    async fn refresh(&self, vendor: &str) -> u16 {
        let url = format!("http://{}/vendors/{vendor}/refresh", self.proxy.admin);
        let asked = self.client.post(url).send().await.unwrap();
        asked.status().as_u16()
    }

    fn sample(&self, series: &str, labels: &str) -> i64 {
        let (_, text) = self.proxy.admin("/metrics");
        let start = format!("countersign_{series}{{{labels}}} ");
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(&start));
        value.map_or(0, |value| value.split('.').next().unwrap().parse().unwrap())
    }

    /// When this vendor's token requests came.
    fn token_calls(&self, vendor: &str) -> Vec<Instant> {
        let asked = self.tokens.asked_at(&format!("/{vendor}"));
        asked.iter().map(|asked| asked.at).collect()
    }

    /// Panics when token requests came too fast, when the API was shown a token after its end or
    /// one that was never issued, or when the secret turned up in the log.
    fn assert_sound(&self, vendors: &[&str]) {
        // What is sent seconds apart arrives closer together by what this machine held one up.
        let held_up = self.stalls.longest() + Duration::from_millis(100);
        for vendor in vendors {
            let calls = self.token_calls(vendor);
            for (later, at) in calls.iter().enumerate() {
                for (earlier, before) in calls[..later].iter().enumerate() {
                    let least = Duration::from_secs((later - earlier) as u64);
                    assert!(
                        *at - *before + held_up > least,
                        "{vendor}: {} token requests within {:?}, {held_up:?} allowed for",
                        later - earlier + 1,
                        *at - *before
                    );
                }
            }
        }
        let issued = self.ledger.issued.lock().unwrap();
        for asked in self.api.asked() {
            let token = asked.bearer.unwrap();
            let (at, lifetime) = issued.get(&token).expect("a token nobody issued");
            assert!(
                asked.at < *at + *lifetime,
                "{token}, of {lifetime:?}, was used after {:?}",
                asked.at - *at
            );
        }
        assert!(!self.proxy.stderr().contains(SECRET));
        assert_eq!(self.proxy.admin("/livez").0, 200);
    }
}

/// Puts the client's id and secret where the proxy reads them, both at once, the way Kubernetes
/// mounts a Secret: the files are links through a link that is swapped.
fn mount(dir: &Path, id: &str, secret: &str) {
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    let round = format!("..{}", ROUND.fetch_add(1, Ordering::Relaxed));
    std::fs::create_dir(dir.join(&round)).unwrap();
    for (name, text) in [("id", id), ("secret", secret)] {
        std::fs::write(dir.join(&round).join(name), text).unwrap();
        let link = dir.join(name);
        if !link.is_symlink() {
            symlink(format!("..data/{name}"), link).unwrap();
        }
    }
    symlink(&round, dir.join("..data_tmp")).unwrap();
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

/// Which tokens were issued when, and for how long.
#[derive(Default)]
struct Ledger {
    issued: Mutex<HashMap<String, (Instant, Duration)>>,
    /// From now on good answers, where the script looks here.
    healed: AtomicBool,
    /// Tokens that the API takes no longer, where its script looks here.
    revoked: Mutex<HashSet<String>>,
}

impl Ledger {
    /// A new token, valid for `lifetime` from the moment it was asked for.
    fn issue(&self, asked: &Asked, lifetime: Duration) -> String {
        let mut issued = self.issued.lock().unwrap();
        let token = format!("{}-{}", asked.target.trim_matches('/'), issued.len() + 1);
        issued.insert(token.clone(), (asked.at, lifetime));
        token
    }

    /// Ends every token issued so far.
    fn revoke_all(&self) {
        let issued = self.issued.lock().unwrap();
        self.revoked.lock().unwrap().extend(issued.keys().cloned());
    }

    /// Whether the API should take this request's token.
    fn accepts(&self, asked: &Asked) -> bool {
        let token = asked.bearer.as_ref().unwrap();
        let known = self.issued.lock().unwrap().contains_key(token);
        known && !self.revoked.lock().unwrap().contains(token)
    }

    /// A good answer with a new token.
    fn grant(&self, asked: &Asked, seconds: u64) -> Reply {
        let token = self.issue(asked, Duration::from_secs(seconds));
        Reply::json(format!(
            r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{seconds}}}"#
        ))
    }
}
