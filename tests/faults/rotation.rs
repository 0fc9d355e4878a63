//! Refresh tokens that work once, at a server that kills the grant when one is shown again.

use std::collections::{HashMap, HashSet};
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign::config::{Config, Secrets};
use countersign::store;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::script::{Asked, Reply, Server};
use crate::support::{Proxy, countersign, eventually, exchange, status_of};

/// Grants tokens as `vedauth` servers and as OAuth servers do, and remembers who showed what.
#[derive(Default)]
struct Grants(Mutex<State>);

#[derive(Default)]
struct State {
    issued: usize,
    /// By refresh token: its family, and whether it has been spent.
    refresh: HashMap<String, (usize, bool)>,
    dead: HashSet<usize>,
    /// Access tokens by family.
    access: HashMap<String, usize>,
    shown: Vec<Presented>,
    /// Refresh tokens whose first showing is answered by the end of the connection.
    lose: bool,
}

#[derive(Clone, Debug)]
struct Presented {
    at: Instant,
    /// `None`: a new grant was asked for.
    refresh_token: Option<String>,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// The server has not come to it yet.
    Pending,
    Refused,
    /// The refresh token of the answer.
    Bought(String),
}

impl Grants {
    /// Notes a token request that has come, for [`Grants::answer`].
    fn come(&self, asked: &Asked) -> usize {
        let mut state = self.0.lock().unwrap();
        state.shown.push(Presented {
            at: asked.at,
            refresh_token: asked.member("refresh_token"),
            outcome: Outcome::Pending,
        });
        state.shown.len() - 1
    }

    /// Acts upon a token request; `seconds` is what access tokens live.
    fn answer(&self, asked: &Asked, nth: usize, seconds: u64) -> Reply {
        let mut state = self.0.lock().unwrap();
        let refresh_token = asked.member("refresh_token");
        let family = match &refresh_token {
            None => Some(state.issued),
            Some(token) => match state.refresh.get_mut(token) {
                None => None,
                Some((family, spent)) => {
                    let (family, again) = (*family, std::mem::replace(spent, true));
                    if again {
                        state.dead.insert(family);
                    }
                    (!state.dead.contains(&family)).then_some(family)
                }
            },
        };
        let Some(family) = family else {
            state.shown[nth].outcome = Outcome::Refused;
            return Reply::whole("400 Bad Request", "", r#"{"error":"invalid_grant"}"#);
        };
        state.issued += 1;
        let (access, refresh) = (format!("a{}", state.issued), format!("r{}", state.issued));
        state.access.insert(access.clone(), family);
        state.refresh.insert(refresh.clone(), (family, false));
        state.shown[nth].outcome = Outcome::Bought(refresh.clone());
        if state.lose && refresh_token.is_some() {
            state.lose = false;
            return Reply::Close;
        }
        Reply::json(
            json!({
                "access_token": access,
                "refresh_token": refresh,
                "token_type": "Bearer",
                "expires_in": seconds,
            })
            .to_string(),
        )
    }

    fn accepts(&self, access: &str) -> bool {
        let state = self.0.lock().unwrap();
        let family = state.access.get(access);
        family.is_some_and(|family| !state.dead.contains(family))
    }

    fn shown(&self) -> Vec<Presented> {
        self.0.lock().unwrap().shown.clone()
    }

    fn lose_one_answer(&self) {
        self.0.lock().unwrap().lose = true;
    }
}

/// Token server and API in one, as such servers are.
async fn server(seconds: u64, pauses: fn() -> (Duration, Duration)) -> (Server, Arc<Grants>) {
    countersign::tls::install_provider();
    let grants = Arc::new(Grants::default());
    let all = grants.clone();
    let server = Server::start(move |asked: Asked| {
        let grants = all.clone();
        async move {
            if let Some(token) = &asked.bearer {
                return if grants.accepts(token) {
                    Reply::whole("200 OK", "", "done")
                } else {
                    Reply::whole("401 No", "", "")
                };
            }
            let (before, after) = pauses();
            let nth = grants.come(&asked);
            sleep(before).await;
            let reply = grants.answer(&asked, nth, seconds);
            sleep(after).await;
            reply
        }
    })
    .await;
    (server, grants)
}

fn at_once() -> (Duration, Duration) {
    (Duration::ZERO, Duration::ZERO)
}

/// Vendor `v`, with a login that brings a new grant whenever one is needed.
fn by_password(server: &Server) -> String {
    format!(
        "{HEAD}vendors:
  v:
    upstream: {url}
    allow_plaintext: true
    auth: {{ vedauth: {{ client_id: me, username: svc, password: {{ value: pw }} }} }}
",
        url = server.url("")
    )
}

/// Vendor `v`, which a person has to consent to.
fn by_consent(server: &Server) -> String {
    format!(
        "{HEAD}vendors:
  v:
    upstream: {url}
    allow_plaintext: true
    auth:
      authorization_code:
        authorize_url: {url}/authorize
        token_url: {url}/token
        client_id: me
        client_secret: {{ value: pw }}
        redirect_uri: https://app.example/callback
",
        url = server.url("")
    )
}

const HEAD: &str = "listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
drain: { delay: 0s }
store: { file: { dir: state } }
";

fn call(proxy: &Proxy) -> u16 {
    let get = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    crate::support::status_of(&proxy.raw(get))
}

fn status(proxy: &Proxy) -> Value {
    let status: Value = serde_json::from_str(&proxy.admin("/status").1).unwrap();
    status["vendors"][0].clone()
}

/// The refresh token in the store, as the next process will find it.
async fn stored(dir: &Path) -> Option<String> {
    let config = Config::load(&dir.join("proxy.yaml"), Secrets::Resolve).unwrap();
    let store = store::open(&config.store);
    let grant = store.load("v").await.unwrap()?;
    Some(grant.refresh_token?.expose().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_killed_at_any_instant_never_shows_a_refresh_token_whose_answer_it_has() {
    let seconds = std::env::var("COUNTERSIGN_KILLING_SECONDS");
    let limit = seconds.map_or(15, |seconds| seconds.parse().unwrap());
    // Half of each life is spent within a token request, before or after the server has acted.
    let pauses = || {
        let some = || Duration::from_millis(fastrand::u64(0..400));
        (some(), some())
    };
    let (server, grants) = server(2, pauses).await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = by_password(&server);
    let begun = Instant::now();
    let mut kills = 0;
    let mut known = None;
    while begun.elapsed() < Duration::from_secs(limit) {
        let before = grants.shown().len();
        let proxy = Proxy::launch(dir.path(), &yaml, &[]);
        let life = Duration::from_millis(fastrand::u64(0..1600));
        sleep(life).await;
        drop(proxy);
        kills += 1;
        // What the server had read when its caller died is answered all the same.
        sleep(Duration::from_millis(50)).await;
        let shown = grants.shown();
        if let (Some(first), Some(known)) = (shown.get(before), &known)
            && let Some(token) = &first.refresh_token
        {
            assert_eq!(token, known, "not what was stored: {shown:#?}");
        }
        known = stored(dir.path()).await;
    }

    let proxy = Proxy::launch(dir.path(), &yaml, &[]);
    eventually("serving", || (call(&proxy) == 200).then_some(()));
    // The server has come to everything by now.
    sleep(Duration::from_secs(1)).await;
    let shown = grants.shown();
    let mut times = HashMap::new();
    for (index, one) in shown.iter().enumerate() {
        let Some(token) = &one.refresh_token else {
            continue;
        };
        *times.entry(token).or_insert(0) += 1;
        // Tokens are numbered: none after a later one.
        let number = |token: &str| token[1..].parse::<usize>().unwrap();
        let later = shown[..index]
            .iter()
            .filter_map(|one| one.refresh_token.as_deref())
            .any(|earlier| number(earlier) > number(token));
        assert!(!later, "{token} came back: {shown:#?}");
    }
    let again = times.values().filter(|times| **times > 1).count();
    println!(
        "{kills} kills, {} token requests, {again} second tries",
        shown.len()
    );
    assert!(times.values().all(|times| *times <= 2), "{times:?}");
    assert!(again <= kills);
    // The one that came second; or, when the server was slow with the one of a dead process and
    // came to it last, that one and then what the other had bought. Nothing else costs a grant.
    let twice = |token: &String| times[token] == 2;
    let after_two = |token: &String| {
        let bought = Outcome::Bought(token.clone());
        let cost = shown.iter().find(|one| one.outcome == bought);
        let cost = cost.and_then(|one| one.refresh_token.as_ref());
        cost.is_some_and(twice)
    };
    for refused in shown.iter().filter(|one| one.outcome == Outcome::Refused) {
        let token = refused.refresh_token.as_ref().expect("a refused new grant");
        assert!(twice(token) || after_two(token), "{token}: {shown:#?}");
    }
    assert!(
        kills >= 8 && times.len() >= 5,
        "too little happened: {kills} {}",
        times.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_on_the_wire_costs_one_more_try_and_then_a_new_grant() {
    let (server, grants) = server(3, at_once).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(dir.path(), &by_password(&server));
    grants.lose_one_answer();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        assert_eq!(call(&proxy), 200, "{}", status(&proxy));
        sleep(Duration::from_millis(20)).await;
    }

    let shown: Vec<_> = grants
        .shown()
        .into_iter()
        .map(|shown| shown.refresh_token.unwrap_or("new".into()))
        .collect();
    // The second showing killed the grant, so a new one was asked for.
    assert_eq!(shown[..4], ["new", "r1", "r1", "new"], "{shown:?}");
    assert!(
        shown[4..]
            .iter()
            .all(|token| token != "new" && token != "r1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_on_the_wire_ends_a_persons_consent_with_an_alert_and_without_a_loop() {
    let (server, grants) = server(3, at_once).await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = by_consent(&server);
    std::fs::write(dir.path().join("proxy.yaml"), &yaml).unwrap();
    consent(dir.path());
    let proxy = Proxy::start(dir.path(), &yaml);
    assert_eq!(call(&proxy), 200);
    grants.lose_one_answer();

    eventually("told", || {
        (status(&proxy)["state"] == "reauthorize").then_some(())
    });
    // No loop: what is dead is not tried again.
    let tried = grants.shown().len();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(grants.shown().len(), tried);
    let shown: Vec<_> = grants
        .shown()
        .into_iter()
        .filter_map(|shown| shown.refresh_token)
        .collect();
    assert_eq!(shown, ["r1", "r1"]);
    assert_eq!(call(&proxy), 503);
    let said = status(&proxy)["last_error"].as_str().unwrap().to_owned();
    assert!(said.contains("countersign authorize v"), "{said}");
    assert!(proxy.stderr().contains("countersign authorize v"));
    let state = "countersign_credential_state{state=\"reauthorize\",vendor=\"v\"} 1";
    assert!(proxy.admin("/metrics").1.contains(state));

    consent(dir.path());
    eventually("serving", || (call(&proxy) == 200).then_some(()));
    assert_eq!(status(&proxy)["state"], "fresh");
}

/// Consents with `countersign authorize`, pasting what the browser would have been sent to.
fn consent(dir: &Path) {
    consent_to(dir, "v");
}

/// The same for any vendor of the configuration in `dir`.
pub(super) fn consent_to(dir: &Path, vendor: &str) {
    let mut child = countersign()
        .args(["authorize", vendor, "--config"])
        .arg(dir.join("proxy.yaml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut url = String::new();
    stdout.read_line(&mut url).unwrap();
    let url = url::Url::parse(url.trim()).unwrap();
    let (_, state) = url.query_pairs().find(|(name, _)| name == "state").unwrap();
    let redirect = format!("https://app.example/callback?code=c&state={state}");
    writeln!(child.stdin.as_mut().unwrap(), "{redirect}").unwrap();
    assert!(child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_spent_while_the_store_cannot_be_written() {
    let (server, grants) = server(2, at_once).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(dir.path(), &by_password(&server));
    let temporary = dir.path().join("state/v.new");

    // What is in the way of a new file is no file of ours, so it cannot be taken away.
    let before = grants.shown();
    std::fs::create_dir(&temporary).unwrap();
    eventually("failing", || {
        let said = status(&proxy)["last_error"].to_string();
        said.contains("store: ").then_some(())
    });
    eventually("expired", || (call(&proxy) == 503).then_some(()));
    assert_eq!(grants.shown().len(), before.len(), "{}", status(&proxy));
    assert_eq!(status(&proxy)["state"], "expired");
    std::fs::remove_dir(&temporary).unwrap();
    eventually("serving", || (call(&proxy) == 200).then_some(()));

    // Nor is anything spent while others can write to the directory.
    let state = dir.path().join("state");
    let mode = |mode| std::fs::set_permissions(&state, Permissions::from_mode(mode)).unwrap();
    let before = grants.shown().len();
    mode(0o777);
    eventually("refusing the directory", || {
        let said = status(&proxy)["last_error"].to_string();
        said.contains("run `chmod 700 ").then_some(())
    });
    // One may have been under way.
    assert!(grants.shown().len() <= before + 1, "{}", status(&proxy));
    mode(0o700);
    eventually("serving", || (call(&proxy) == 200).then_some(()));
    let shown: Vec<_> = grants
        .shown()
        .into_iter()
        .filter_map(|shown| shown.refresh_token)
        .collect();
    let once: HashSet<_> = shown.iter().collect();
    assert_eq!(once.len(), shown.len(), "{shown:?}");
    assert!(
        grants
            .shown()
            .iter()
            .all(|shown| matches!(shown.outcome, Outcome::Bought(_)))
    );
    let calls = grants.shown();
    assert!(
        calls
            .windows(2)
            .all(|two| two[1].at - two[0].at > Duration::from_millis(900))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_whose_answers_keep_getting_lost_is_shown_twice_and_then_when_asked() {
    countersign::tls::install_provider();
    // As through a gateway that breaks: what the server behind it has done is unknown.
    for broken in [true, false] {
        let well = Arc::new(AtomicBool::new(false));
        let health = well.clone();
        let server = Server::start(move |asked: Asked| {
            let (well, showing) = (
                health.load(Ordering::Acquire),
                asked.member("refresh_token"),
            );
            async move {
                if asked.bearer.is_some() {
                    return Reply::whole("200 OK", "", "done");
                }
                match showing {
                    Some(_) if !well && broken => Reply::Close,
                    Some(_) if !well => Reply::whole("502 Bad Gateway", "", "upstream reset"),
                    _ => Reply::json(
                        r#"{"access_token":"a","refresh_token":"refresh-1","expires_in":3}"#,
                    ),
                }
            }
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let yaml = by_consent(&server);
        std::fs::write(dir.path().join("proxy.yaml"), &yaml).unwrap();
        consent(dir.path());
        let shown = || {
            let asked = server.asked();
            let with = |asked: &&Asked| asked.member("refresh_token").is_some();
            asked.iter().filter(with).count()
        };
        let proxy = Proxy::start(dir.path(), &yaml);
        eventually("shown twice", || (shown() == 2).then_some(()));
        // The pauses between attempts were half a second, one, two and four at most.
        sleep(Duration::from_secs(6)).await;
        assert_eq!(shown(), 2, "{}", status(&proxy));
        let seen = status(&proxy);
        assert_eq!(seen["state"], "expired", "{seen}");
        let said = seen["last_error"].as_str().unwrap().to_owned();
        for words in ["sent 2 times without a response", "countersign authorize v"] {
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(call(&proxy), 503);

        // A restart is no reason to show it again.
        drop(proxy);
        let proxy = Proxy::start(dir.path(), &yaml);
        eventually("told", || {
            status(&proxy)["last_error"].is_string().then_some(())
        });
        sleep(Duration::from_secs(2)).await;
        assert_eq!(shown(), 2, "{}", status(&proxy));

        well.store(true, Ordering::Release);
        let post = format!(
            "POST /vendors/v/refresh HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n",
            proxy.admin
        );
        let asked = exchange(proxy.admin, post.as_bytes());
        assert_eq!(status_of(&asked), 202, "{asked}");
        eventually("serving", || (call(&proxy) == 200).then_some(()));
        assert!(shown() >= 3);
    }
}
