//! A vendor that answers 401 to what we authenticate with: told on the page, in `/status`, by the
//! command and in the metrics, whatever the kind of the credential.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::{HEAD, client};
use crate::support::front::answer;
use crate::support::script::{Reply, Server};
use crate::support::{Proxy, Ran, eventually, run, write_secret};

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_rejects_its_credential_is_told_everywhere_whatever_the_kind() {
    let scene = Scene::start().await;
    for vendor in ["fixed", "token", "bare"] {
        let before = scene.status(vendor)["state"].clone();
        assert_ne!(before, "rejected");
        scene.calls(vendor, 4).await;
        assert_eq!(scene.status(vendor)["state"], before, "four say nothing");
        scene.calls(vendor, 2).await;
        let status = scene.counted(vendor, 6);
        assert_eq!(status["state"], "rejected", "{status}");
        let error = status["last_error"].as_str().unwrap();
        assert!(error.contains("answered 401 to 6 of the last 6"), "{error}");

        let page = scene.row(vendor);
        for said in ["</svg> rejected", "to 6 of the last 6 requests"] {
            assert!(page.contains(said), "{said} in\n{page}");
        }
        for line in [
            format!("countersign_credential_state{{state=\"rejected\",vendor=\"{vendor}\"}} 1"),
            format!("countersign_credential_state{{state=\"fresh\",vendor=\"{vendor}\"}} 0"),
        ] {
            let (_, metrics) = scene.proxy.admin("/metrics");
            assert!(metrics.contains(&line), "{line}");
        }
    }
    let (_, page) = scene.proxy.admin("/");
    assert!(page.contains("3 of 3 vendors need attention."), "{page}");
    assert!(!page.contains("is not the reason"), "{page}");
    let ran = scene.command();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for vendor in ["fixed", "token", "bare"] {
        let line = ran.stdout.lines().find(|line| line.contains(vendor));
        assert!(line.unwrap().contains("rejected"), "{ran:?}");
    }

    // Half of the requests is not more than half of them.
    scene.healed.store(true, Ordering::SeqCst);
    for vendor in ["fixed", "token", "bare"] {
        scene.calls(vendor, 5).await;
        assert_eq!(scene.counted(vendor, 11)["state"], "rejected");
        scene.calls(vendor, 1).await;
        let status = scene.counted(vendor, 12);
        assert_ne!(status["state"], "rejected", "{status}");
        assert_eq!(status["last_error"], Value::Null);
    }
    assert_eq!(scene.command().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_secret_that_is_replaced_is_not_held_against_the_new_one() {
    let scene = Scene::start().await;
    scene.calls("fixed", 6).await;
    assert_eq!(scene.counted("fixed", 6)["state"], "rejected");

    scene.healed.store(true, Ordering::SeqCst);
    write_secret(&scene.dir.path().join("token"), "a-newer-one");
    eventually("in use", || {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(scene.calls("fixed", 1));
        });
        (scene.status("fixed")["state"] == "static").then_some(())
    });
    // A reload of something else does not make one forget.
    let rejected = Scene::start().await;
    rejected.calls("fixed", 6).await;
    assert_eq!(rejected.counted("fixed", 6)["state"], "rejected");
    let file = rejected.dir.path().join("proxy.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let changed = yaml.replace("  fixed:\n", "  fixed:\n    limits: { in_flight: 7 }\n");
    assert_ne!(yaml, changed);
    std::fs::write(&file, changed).unwrap();
    crate::support::signal(rejected.proxy.id(), "HUP");
    eventually("reloaded", || {
        let said = rejected.proxy.stderr();
        said.contains("the configuration was reloaded")
            .then_some(())
    });
    assert_eq!(rejected.status("fixed")["state"], "rejected");
}

/// A proxy in front of a vendor that rejects everything until it is healed.
struct Scene {
    proxy: Proxy,
    healed: Arc<AtomicBool>,
    dir: tempfile::TempDir,
    _server: Server,
}

impl Scene {
    async fn start() -> Self {
        let healed = Arc::new(AtomicBool::new(false));
        let heals = healed.clone();
        let server = Server::start(move |asked| {
            let healed = heals.load(Ordering::SeqCst);
            async move {
                match &*asked.target {
                    "/token" => Reply::json(r#"{"access_token":"tok-1","expires_in":3600}"#),
                    _ if healed => Reply::whole("200 OK", "", "yes"),
                    _ => Reply::whole("401 Unauthorized", "", "no"),
                }
            }
        })
        .await;
        let url = server.url("");
        let dir = tempfile::tempdir().unwrap();
        write_secret(&dir.path().join("token"), "an-old-one");
        let yaml = format!(
            "{HEAD}admin: {{ bind: 127.0.0.1:0 }}
vendors:
  fixed:
    upstream: {url}
    allow_plaintext: true
    auth: {{ bearer: {{ token: {{ file: token }} }} }}
  token:
    upstream: {url}
    allow_plaintext: true
    timeouts: {{ token_wait: 100ms }}
    auth: {{ client_credentials: {{ token_url: \"{url}/token\", client_id: a, client_secret: {{ value: b }} }} }}
  bare:
    upstream: {url}
    allow_plaintext: true
"
        );
        let proxy = Proxy::start(dir.path(), &yaml);
        Self {
            proxy,
            healed,
            dir,
            _server: server,
        }
    }

    async fn calls(&self, vendor: &str, count: usize) {
        let client = client();
        for _ in 0..count {
            let request = client.get(format!("http://{}/{vendor}/x", self.proxy.data));
            let status = answer(request).await.status;
            let healed = self.healed.load(Ordering::SeqCst);
            assert_eq!(status, if healed { 200 } else { 401 });
        }
    }

    /// `/status` of one vendor.
    fn status(&self, vendor: &str) -> Value {
        let (_, body) = self.proxy.admin("/status");
        let status: Value = serde_json::from_str(&body).unwrap();
        let vendors = status["vendors"].as_array().unwrap();
        let found = vendors.iter().find(|one| one["name"] == vendor);
        found.unwrap().clone()
    }

    /// The same, once so many requests are counted.
    fn counted(&self, vendor: &str, requests: u64) -> Value {
        eventually("counted", || {
            let status = self.status(vendor);
            (status["requests"] == requests).then_some(status)
        })
    }

    /// One vendor on the page.
    fn row(&self, vendor: &str) -> String {
        let (_, page) = self.proxy.admin("/");
        let at = page.find(&format!("id=\"vendor-{vendor}\"")).unwrap();
        page[at..].split("</tbody>").next().unwrap().to_owned()
    }

    fn command(&self) -> Ran {
        let admin = self.proxy.admin.to_string();
        tokio::task::block_in_place(|| run(self.dir.path(), &["status", "--admin", &admin]))
    }
}
