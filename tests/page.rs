//! The status page: what it says, that it says it safely, that it keeps itself up to date, and how
//! a browser shows it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::browser::Browser;
use crate::support::script::{Reply, Server};
use crate::support::{PATIENCE, Proxy, eventually, exchange, signal, status_of};

/// What a vendor may answer when it means harm.
const HOSTILE: &str = r#"<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_what_status_says_the_worst_first() {
    let scene = Scene::start(1).await;
    let page = scene.page();
    let (_, status) = scene.proxy.admin("/status");
    let status: Value = serde_json::from_str(&status).unwrap();
    let vendors = status["vendors"].as_array().unwrap();
    assert_eq!(vendors.len(), 5);
    let mut places = Vec::new();
    for vendor in vendors {
        let name = vendor["name"].as_str().unwrap();
        let at = page.find(&format!("id=\"vendor-{name}\"")).unwrap();
        let row = page[at..].split("</tbody>").next().unwrap();
        for field in ["state", "auth", "prefix", "upstream", "breaker"] {
            let word = vendor[field].as_str().unwrap();
            assert!(row.contains(word), "{name}: {field} {word} in\n{row}");
        }
        for host in vendor["hosts"].as_array().unwrap() {
            assert!(row.contains(host.as_str().unwrap()), "{row}");
        }
        places.push((at, name));
    }
    places.sort_unstable();
    let order: Vec<&str> = places.into_iter().map(|(_, name)| name).collect();
    assert_eq!(order, ["refused", "consent", "good-0", "fixed", "bare"]);
    assert!(page.contains("2 of 5 vendors need attention."));
    for said in [
        "countersign authorize consent",
        "curl -X POST …/vendors/refused/refresh",
        "503 credential_unavailable",
        status["config"]["sha256"].as_str().unwrap(),
        status["version"].as_str().unwrap(),
        "in the last",
    ] {
        assert!(page.contains(said), "{said}");
    }
    assert!(
        !page.contains("hunter2") && !page.contains("tok-"),
        "a secret"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_vendors_and_files_say_is_text() {
    let scene = Scene::start(1).await;
    // A reload that is refused names what it found.
    let file = scene.dir.path().join("proxy.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, yaml + "  x:\n    preset: nobody\n").unwrap();
    signal(scene.proxy.id(), "HUP");
    let page = eventually("refused", || {
        let page = scene.page();
        page.contains("The last reload was refused").then_some(page)
    });
    assert!(page.contains("&lt;script&gt;alert(1)"), "{page}");
    assert!(page.contains("vendors.x.preset"), "{page}");
    for raw in ["<script>alert", "<img"] {
        assert!(!page.contains(raw), "{raw} in\n{page}");
    }
    let events = scene
        .events()
        .until("hostile", |text| text.contains("alert(2)"));
    assert!(!events.contains("<img") && !events.contains("<script"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fetches_nothing_and_may_fetch_nothing() {
    let scene = Scene::start(1).await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        scene.proxy.admin
    );
    let answer = exchange(scene.proxy.admin, head.as_bytes());
    let (fields, page) = answer.split_once("\r\n\r\n").unwrap();
    for field in [
        "content-type: text/html; charset=utf-8",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cross-origin-resource-policy: same-origin",
    ] {
        assert!(
            fields.lines().any(|line| line == field),
            "{field} in\n{fields}"
        );
    }
    let mut lines = fields.lines();
    let policy = lines
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap();
    let directives: Vec<&str> = policy.split("; ").collect();
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ] {
        assert!(directives.contains(&directive), "{directive} in {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    for attribute in ["src=\"", "href=\"", "action=\"", "srcset=\""] {
        for rest in page.split(attribute).skip(1) {
            let target = rest.split('"').next().unwrap();
            let inside = target.starts_with('#') || target.starts_with("data:image/svg+xml,");
            assert!(inside, "{attribute}{target}");
            assert!(
                !target.contains("http:/") && !target.contains("https:/"),
                "{target}"
            );
        }
    }
    assert!(!page.contains("url(") && !page.contains("@import"));
    assert!(!page.contains(" style=\"") && !page.contains(" onclick="));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_made_to_lead_here_shows_nothing() {
    let scene = Scene::start(1).await;
    let ask = |path: &str, host: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        exchange(scene.proxy.admin, head.as_bytes())
    };
    for path in ["/", "/status", "/metrics", "/events", "/nothing"] {
        for host in ["evil.example", "127.0.0.1.evil.example:9090", "10.0.0.7"] {
            let answer = ask(path, host);
            assert_eq!(status_of(&answer), 403, "{path} as {host}");
            assert!(!answer.contains("good-0"), "{answer}");
        }
    }
    for host in [
        "localhost:9090",
        "127.0.0.1",
        "[::1]:9090",
        "countersign.localhost",
    ] {
        assert_eq!(status_of(&ask("/", host)), 200, "{host}");
    }
    // Probes come by any name and say nothing.
    assert_eq!(status_of(&ask("/livez", "pod.example")), 200);
    assert_eq!(status_of(&ask("/readyz", "pod.example")), 200);
    assert_eq!(
        status_of(&exchange(
            scene.proxy.admin,
            b"GET /status HTTP/1.0\r\n\r\n"
        )),
        200
    );
}

#[test]
fn where_it_is_bound_for_others_any_name_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "\
listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 0.0.0.0:0 }
vendors: { v: { upstream: \"https://127.0.0.1:1\" } }
";
    let proxy = Proxy::start(dir.path(), yaml);
    let head = "GET / HTTP/1.1\r\nHost: admin.example\r\nConnection: close\r\n\r\n";
    let here = SocketAddr::from(([127, 0, 0, 1], proxy.admin.port()));
    assert_eq!(status_of(&exchange(here, head.as_bytes())), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_a_credential_that_fails_and_of_one_that_is_well_again() {
    let scene = Scene::start(1).await;
    let mut events = scene.events();
    let all = events.until("everything first", |text| text.contains("\n\n"));
    for id in [
        "verdict",
        "certificates",
        "process",
        "vendor-good-0",
        "vendor-refused",
    ] {
        assert!(all.contains(&format!("\"{id}\":")), "{id} in\n{all}");
    }
    scene.break_logins();
    let news = events.until("failed", |text| {
        text.contains("3 of 5 vendors need attention")
    });
    assert!(news.contains("\"title\":\"3 need you"), "{news}");
    assert!(
        !news.contains("\"vendor-bare\":"),
        "what stays the same is not sent:\n{news}"
    );
    scene.broken.store(false, Ordering::SeqCst);
    scene.refresh("good-0");
    events.until("well", |text| {
        text.contains("2 of 5 vendors need attention")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_bounded_listeners_and_end_when_a_drain_begins() {
    let mut scene = Scene::start(1).await;
    let mut open: Vec<Events> = (0..32).map(|_| scene.events()).collect();
    for events in &mut open {
        events.until("answered", |text| text.contains("data:"));
    }
    assert_eq!(scene.proxy.admin("/events").0, 503);
    drop(open.pop());
    let mut last = eventually("a place is free", || {
        let mut events = scene.events();
        let text = events.until("answered", |text| text.contains("\r\n\r\n"));
        (status_of(&text) == 200).then_some(events)
    });
    signal(scene.proxy.id(), "TERM");
    let text = last.read_to_its_end();
    assert!(text.contains("event: end"), "{text}");
    assert!(text.contains("Draining."), "{text}");
    drop(last);
    // The others still have their connections open.
    assert_eq!(scene.proxy.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_it_on_a_desk_and_on_a_phone_and_complains_of_nothing() {
    for (many, scene) in [
        (true, Scene::start(20).await),
        (false, Scene::all_well().await),
    ] {
        scene.calls().await;
        let mut browser = Browser::start();
        for (device, width, height) in [("desk", 1280, 900), ("phone", 390, 844)] {
            for scheme in ["light", "dark"] {
                browser.screen(width, height, scheme);
                browser.open(&format!("http://{}/", scene.proxy.admin));
                eventually("live", || {
                    (browser.value("document.documentElement.dataset.live") == "live").then_some(())
                });
                let wide = browser.value("document.documentElement.scrollWidth");
                assert_eq!(wide, width, "{device}: nothing sticks out");
                let which = if many { "many" } else { "one" };
                let shot = browser.screenshot(&format!("{which}-{device}-{scheme}"));
                assert!(std::fs::metadata(shot).unwrap().len() > 10_000);
            }
        }
        let complaints = browser.complaints();
        assert!(complaints.is_empty(), "{complaints:#?}");

        // Whoever listens instead of looking: landmarks, a table with its heads, states in words.
        let spoken = browser.spoken();
        let said = |role: &str, name: &str| {
            let mut nodes = spoken.iter();
            nodes.any(|(its, words)| its == role && words.contains(name))
        };
        let state = if many { "failed" } else { "fresh" };
        for (role, name) in [
            ("banner", ""),
            ("main", ""),
            ("status", ""),
            (
                "heading",
                if many { "need attention" } else { "is healthy" },
            ),
            ("table", "Each vendor"),
            ("columnheader", "State"),
            ("rowheader", "good-0"),
            ("cell", state),
            ("image", "requests and"),
            ("region", "Certificates"),
        ] {
            assert!(said(role, name), "{role} {name:?} in\n{spoken:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_browser_it_changes_in_place_and_says_when_the_proxy_is_gone() {
    let mut scene = Scene::start(1).await;
    let mut browser = Browser::start();
    browser.screen(1280, 900, "light");
    browser.open(&format!("http://{}/", scene.proxy.admin));
    let told = |browser: &mut Browser, what: &str| browser.value(what).as_str().unwrap().to_owned();
    eventually("live", || {
        (told(&mut browser, LIVE) == "live").then_some(())
    });
    // The keyboard is on the first link, and the page is scrolled.
    browser.press("Tab", 9);
    let focused = "document.activeElement.hash || ''";
    assert_eq!(told(&mut browser, focused), "#vendor-refused");
    browser.value("document.activeElement.mine = true; scrollTo(0, 40)");

    scene.break_logins();
    eventually("failed", || {
        let row = "document.querySelector('#vendor-good-0 .state').textContent";
        (told(&mut browser, row).trim() == "failed").then_some(())
    });
    assert_eq!(told(&mut browser, focused), "#vendor-refused");
    assert_eq!(browser.value("document.activeElement.mine"), true);
    assert_eq!(browser.value("scrollY"), 40);
    assert_eq!(
        told(&mut browser, "document.title"),
        "3 need you · Countersign"
    );
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");

    scene.proxy.kill();
    eventually("lost", || {
        told(&mut browser, LIVE)
            .starts_with("connection lost at")
            .then_some(())
    });
    browser.screenshot("lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_scripts_the_page_is_whole() {
    let scene = Scene::start(1).await;
    let mut browser = Browser::start();
    browser.screen(1280, 900, "light");
    browser.without_scripts();
    browser.open(&format!("http://{}/", scene.proxy.admin));
    let spoken = browser.spoken();
    for (role, name) in [
        ("heading", "2 of 5 vendors need attention."),
        ("status", ""),
        ("rowheader", "consent"),
        ("cell", "reauthorize"),
    ] {
        let found = spoken
            .iter()
            .any(|(its, words)| its == role && words.contains(name));
        assert!(found, "{role} {name:?} in\n{spoken:#?}");
    }
    let as_of = spoken.iter().any(|(_, words)| words.starts_with("as of "));
    assert!(as_of, "says of when it is:\n{spoken:#?}");
    browser.screenshot("without-scripts");
}

const LIVE: &str = "document.getElementById('live').textContent";

/// A proxy, and the server that all of its vendors and logins are.
struct Scene {
    proxy: Proxy,
    /// Logins that were taken are refused while it is set.
    broken: Arc<AtomicBool>,
    dir: tempfile::TempDir,
    _server: Server,
}

impl Scene {
    /// So many vendors that are well, and beside them a refused one, one without consent, a fixed
    /// login and none.
    async fn start(well: usize) -> Self {
        let more = |server: &str| {
            format!(
                "  refused:
    upstream: {server}
    allow_plaintext: true
    hosts: [ refused.internal ]
    auth: {{ client_credentials: {{ token_url: \"{server}/refused\", client_id: a, client_secret: {{ value: hunter2 }} }} }}
  consent:
    upstream: {server}
    allow_plaintext: true
    auth:
      authorization_code:
        authorize_url: {server}/authorize
        token_url: {server}/token
        client_id: a
        client_secret: {{ value: hunter2 }}
        redirect_uri: http://127.0.0.1:1/back
  fixed:
    upstream: {server}
    allow_plaintext: true
    auth: {{ bearer: {{ token: {{ value: hunter2 }} }} }}
  bare:
    upstream: {server}
    allow_plaintext: true
"
            )
        };
        Self::with(well, more).await
    }

    /// One vendor, and nothing to do.
    async fn all_well() -> Self {
        Self::with(1, |_| String::new()).await
    }

    async fn with(well: usize, more: impl Fn(&str) -> String) -> Self {
        countersign::tls::install_provider();
        let broken = Arc::new(AtomicBool::new(false));
        let breaks = broken.clone();
        let server = Server::start(move |asked| {
            let refused = asked.target == "/refused"
                || (asked.target == "/token" && breaks.load(Ordering::SeqCst));
            async move {
                let kind = "Content-Type: application/json\r\n";
                let error = serde_json::json!({"error": "odd", "error_description": HOSTILE});
                match &*asked.target {
                    _ if refused => Reply::whole("400 Bad Request", kind, error.to_string()),
                    "/token" => Reply::json(r#"{"access_token":"tok-1","expires_in":3600}"#),
                    path if path.ends_with("broken") => Reply::whole("500 Oh", "", "no"),
                    _ => Reply::whole("200 OK", "", "yes"),
                }
            }
        })
        .await;
        let url = server.url("");
        let mut yaml = String::from(
            "listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
drain: { delay: 3s }
vendors:
",
        );
        for nth in 0..well {
            let stanza = format!(
                "  good-{nth}:
    upstream: {url}
    allow_plaintext: true
    auth: {{ client_credentials: {{ token_url: \"{url}/token\", client_id: a, client_secret: {{ value: hunter2 }} }} }}
"
            );
            yaml.push_str(&stanza);
        }
        yaml += &more(&url);
        let dir = tempfile::tempdir().unwrap();
        let proxy = Proxy::start(dir.path(), &yaml);
        Self {
            proxy,
            broken,
            dir,
            _server: server,
        }
    }

    fn page(&self) -> String {
        let (status, page) = self.proxy.admin("/");
        assert_eq!(status, 200, "{page}");
        page
    }

    fn events(&self) -> Events {
        Events::open(self.proxy.admin)
    }

    /// The next login of `good-0`, which is now, is refused.
    fn break_logins(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.refresh("good-0");
    }

    fn refresh(&self, vendor: &str) {
        // At most one attempt a second starts.
        let head = format!(
            "POST /vendors/{vendor}/refresh HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(status_of(&exchange(self.proxy.admin, head.as_bytes())), 202);
    }

    /// Requests; some fail.
    async fn calls(&self) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for nth in 0..40 {
            let path = if nth % 20 == 19 { "broken" } else { "x" };
            let url = format!("http://{}/good-0/{path}", self.proxy.data);
            client.get(url).send().await.unwrap();
        }
    }
}

/// A reader of `/events`.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    fn open(admin: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(admin).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let head = "GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        Self {
            stream,
            text: String::new(),
        }
    }

    /// What comes from here on until `enough`, all of it.
    fn until(&mut self, what: &str, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.text) {
            assert!(self.read(), "it ended before {what}:\n{}", self.text);
            assert!(
                Instant::now() < deadline,
                "still not {what}:\n{}",
                self.text
            );
        }
        std::mem::take(&mut self.text)
    }

    fn read_to_its_end(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        // The last chunk of the answer is empty.
        while !self.text.ends_with("0\r\n\r\n") && self.read() {
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text);
        }
        std::mem::take(&mut self.text)
    }

    /// `false`: the other side has ended it.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 8192];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(read) => {
                self.text.push_str(&String::from_utf8_lossy(&bytes[..read]));
                true
            }
            // Nothing within the time-out.
            Err(_) => true,
        }
    }
}
