//! How credentials look from outside, and what an operator's commands do to them.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::support::front::{Front, Plan};
use crate::support::script::{Asked, Reply, Server};
use crate::support::{Proxy, countersign, eventually, signal};

/// Exit code, stdout, stderr.
type Ran = (Option<i32>, String, String);

/// Runs a command without holding up the servers of this test.
async fn run(dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = countersign();
    command.args(arguments).current_dir(dir);
    let output = spawn_blocking(move || command.output().unwrap()).await;
    let output = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The line of a table that begins with this cell.
fn line<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
    let found = table
        .lines()
        .map(|line| line.split("  ").filter(|cell| !cell.is_empty()))
        .map(|cells| cells.map(str::trim).collect::<Vec<_>>())
        .find(|cells| cells.first() == Some(&first));
    found.unwrap_or_else(|| panic!("no line for {first}:\n{table}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_tries_every_login_for_real_and_shows_and_uses_and_stores_nothing() {
    let names = [
        "certcenter",
        "certcenter-oauth",
        "sectigo-oauth",
        "sectigo",
        "certn",
        "venafi",
        "venafi-password",
    ];
    let mut plan = Plan::new().await;
    for name in names {
        plan = plan.vendor(name);
    }
    std::fs::write(plan.dir().join("proxy.yaml"), plan.yaml()).unwrap();
    let (code, table, said) = run(plan.dir(), &["probe"]).await;

    assert_eq!((code, said.as_str()), (Some(0), ""), "{table}");
    for name in names {
        let cells = line(&table, name);
        match name {
            "certcenter" => assert_eq!(cells[1..3], ["bearer", "present"]),
            "sectigo" => assert_eq!(cells[1..3], ["headers", "present"]),
            _ => {
                assert_eq!(cells[2], "obtained", "{table}");
                let left = humantime::parse_duration(cells[3]).unwrap();
                assert!(left > Duration::from_mins(1), "{table}");
            }
        }
    }
    let mut token_calls = 0;
    for mock in plan.mocks.all() {
        token_calls += mock.token_calls().len();
        assert!(mock.api_calls().is_empty(), "{}", mock.url());
        for text in mock.connections() {
            assert!(!text.is_empty());
        }
    }
    assert_eq!(token_calls, 5);
    assert!(!plan.dir().join("state").exists(), "nothing is stored");

    // Only those asked for; a wrong secret is a failure with the vendor's reason, and not shown.
    std::fs::write(plan.dir().join("secrets/certn"), "hunter2-mistyped").unwrap();
    let (code, table, said) = run(plan.dir(), &["probe", "certn", "venafi"]).await;
    assert_eq!(code, Some(1));
    assert_eq!(line(&table, "certn")[2], "FAILED");
    assert!(
        line(&table, "certn")
            .last()
            .unwrap()
            .contains("invalid_client")
    );
    assert_eq!(line(&table, "venafi")[2], "obtained");
    assert!(!table.contains("sectigo") && !table.contains("hunter2"));
    assert!(
        said.starts_with("error: 1 of 2 credentials could not be obtained; DETAIL shows"),
        "{said}"
    );

    let (code, _, said) = run(plan.dir(), &["probe", "nobody"]).await;
    assert_eq!(code, Some(1));
    assert!(
        said.contains("\"nobody\"") && said.contains("certn"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_never_spends_a_stored_refresh_token() {
    let plan = Plan::new().await.vendor("maxmd");
    std::fs::write(plan.dir().join("proxy.yaml"), plan.yaml()).unwrap();
    let (code, table, _) = run(plan.dir(), &["probe"]).await;
    assert_eq!(code, Some(1));
    let cells = line(&table, "maxmd");
    assert_eq!(cells[2], "FAILED");
    assert!(
        cells[4].contains("run `countersign authorize maxmd`"),
        "{table}"
    );

    let plan = plan.consented().await;
    for _ in 0..2 {
        let (code, table, _) = run(plan.dir(), &["probe"]).await;
        assert_eq!(
            (code, line(&table, "maxmd")[2]),
            (Some(0), "consented"),
            "{table}"
        );
    }
    let grants: Vec<_> = plan
        .mocks
        .all()
        .iter()
        .flat_map(|mock| mock.token_calls())
        .map(|seen| seen.form("grant_type").unwrap())
        .collect();
    assert_eq!(grants, ["authorization_code"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_a_table_whose_exit_code_says_whether_all_is_well() {
    let plan = Plan::new().await.vendor("certn").vendor("certcenter");
    let front = plan.start();
    let dir = front.dir().to_owned();
    let admin = format!("http://{}", front.proxy.admin);
    let (code, table, said) = run(&dir, &["status", "--admin", &admin]).await;
    assert_eq!((code, said.as_str()), (Some(0), ""), "{table}");
    let cells = line(&table, "certn");
    assert_eq!(cells[1..3], ["client_credentials", "fresh"]);
    assert!(
        cells[3].starts_with("in ") && cells[4].starts_with("in "),
        "{table}"
    );
    assert_eq!(
        line(&table, "certcenter")[1..],
        ["bearer", "static", "-", "-", "closed", "-"]
    );

    // A refused renewal costs nothing as long as the token lives; then it is bad news.
    std::fs::write(dir.join("secrets/certn"), "mistyped").unwrap();
    assert_eq!(front.refresh("certn").await, 202);
    eventually("failed", || {
        (front.status("certn")["state"] == "failed").then_some(())
    });
    let (code, table, _) = run(&dir, &["status", "--admin", &admin]).await;
    assert_eq!(code, Some(0), "{table}");
    let cells = line(&table, "certn");
    assert!(
        cells[2] == "failed" && cells[6].contains("invalid_client"),
        "{table}"
    );

    let (code, json, _) = run(&dir, &["status", "--json", "--admin", &admin]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (code, &json["vendors"][0]["name"]),
        (Some(0), &"certn".into())
    );

    drop(front);
    let (code, table, said) = run(Path::new("/"), &["status", "--admin", &admin]).await;
    assert_eq!((code, table.as_str()), (Some(1), ""));
    assert!(said.contains("/status: Connection refused"), "{said}");
}

/// What `/status` and `/metrics` say of this vendor, which must be the same.
fn state(proxy: &Proxy, vendor: &str) -> String {
    // One may be asked before a change and the other after it.
    eventually("agreed", || {
        let status: Value = serde_json::from_str(&proxy.admin("/status").1).unwrap();
        let vendors = status["vendors"].as_array().unwrap();
        let found = vendors.iter().find(|one| one["name"] == vendor).unwrap();
        let said = found["state"].as_str().unwrap().to_owned();
        let metrics = proxy.admin("/metrics").1;
        let here = format!(",vendor=\"{vendor}\"}} ");
        let states: Vec<_> = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("countersign_credential_state{state=\""))
            .filter_map(|line| line.split_once(&format!("\"{here}")))
            .collect();
        assert_eq!(states.len(), 9, "{states:?}");
        let on: Vec<_> = states.iter().filter(|(_, value)| *value == "1").collect();
        assert_eq!(on.len(), 1, "{states:?}");
        (on[0].0 == said).then_some(said)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_situation_of_a_credential_has_a_state_of_its_own() {
    countersign::tls::install_provider();
    let begun = Instant::now();
    let tokens = Server::start(move |asked: Asked| async move {
        let good =
            |seconds| Reply::json(format!(r#"{{"access_token":"t","expires_in":{seconds}}}"#));
        let first = begun.elapsed() < Duration::from_secs(2);
        match asked.target.trim_start_matches('/') {
            "pending" => Reply::Silence,
            "fresh" => good(3600),
            // Renewed after ten seconds and more, so asked by the operator below.
            "refreshing" | "refused" if first => good(20),
            "expired" if first => good(3),
            "refreshing" | "expired" | "never" => Reply::whole("503 Down", "", ""),
            "refused" | "wrong" => Reply::whole("400 No", "", r#"{"error":"invalid_client"}"#),
            other => unreachable!("{other}"),
        }
    })
    .await;
    let mut yaml = String::from(
        "listeners: [ { bind: 127.0.0.1:0 } ]\nadmin: { bind: 127.0.0.1:0 }\nvendors:\n",
    );
    let mut vendor = |name: &str, auth: &str| {
        let url = tokens.url("");
        let upstream = format!("    upstream: {url}\n    allow_plaintext: true\n");
        yaml.extend(["  ", name, ":\n", &upstream, auth]);
    };
    let asking = [
        "pending",
        "fresh",
        "refreshing",
        "expired",
        "never",
        "refused",
        "wrong",
    ];
    for name in asking {
        let url = tokens.url(&format!("/{name}"));
        let auth = format!(
            "    auth: {{ client_credentials: {{ token_url: {url}, client_id: me, client_secret: {{ value: s }} }} }}\n"
        );
        vendor(name, &auth);
    }
    vendor("static", "    auth: { bearer: { token: { value: t } } }\n");
    vendor("open", "");
    let consent = format!(
        "    auth: {{ authorization_code: {{ authorize_url: {url}, token_url: {url}, client_id: me, redirect_uri: https://a.example/ }} }}\n",
        url = tokens.url("/x")
    );
    vendor("reauthorize", &consent);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let proxy = spawn_blocking(move || Proxy::launch(&path, &yaml, &[]))
        .await
        .unwrap();

    assert_eq!(state(&proxy, "pending"), "pending");
    for name in ["refreshing", "expired", "refused"] {
        eventually("fresh", || (state(&proxy, name) == "fresh").then_some(()));
    }
    let (code, _, said) = run(
        dir.path(),
        &["status", "--admin", &format!("{}", proxy.admin)],
    )
    .await;
    assert_eq!(code, Some(1));
    assert!(said.contains("of 10 vendors are not usable"), "{said}");
    tokio::time::sleep(Duration::from_secs(2).saturating_sub(begun.elapsed())).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for name in ["refreshing", "refused"] {
        let url = format!("http://{}/vendors/{name}/refresh", proxy.admin);
        assert_eq!(client.post(url).send().await.unwrap().status(), 202);
    }
    for (name, wanted) in [
        ("fresh", "fresh"),
        ("refreshing", "refreshing"),
        ("expired", "expired"),
        ("never", "failed"),
        ("refused", "failed"),
        ("wrong", "failed"),
        ("static", "static"),
        ("open", "none"),
        ("reauthorize", "reauthorize"),
        ("pending", "pending"),
    ] {
        eventually(&format!("{name}: {wanted}"), || {
            (state(&proxy, name) == wanted).then_some(())
        });
    }
    // The two that are called failed differ in whether there is a token and how attempts ended.
    let metrics = proxy.admin("/metrics").1;
    let has = |line: &str| metrics.lines().any(|one| one.starts_with(line));
    let expiry = "countersign_credential_expiry_timestamp_seconds{vendor=";
    assert!(has(&format!("{expiry}\"refused\"}}")) && !has(&format!("{expiry}\"never\"}}")));
    let ended = "countersign_credential_fetch_total{outcome=";
    assert!(has(&format!("{ended}\"rejected\",vendor=\"wrong\"}} 1")));
    assert!(has(&format!("{ended}\"rejected\",vendor=\"never\"}} 0")));
    assert!(!has(&format!("{ended}\"temporary\",vendor=\"never\"}} 0")));
}

/// Stops it as an operator does, and says how long that took.
fn stop(front: &mut Front) -> Duration {
    let begun = Instant::now();
    signal(front.proxy.id(), "TERM");
    assert_eq!(front.proxy.ended(), Some(0));
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_to_end_with_the_process_does() {
    let plan = Plan::new().await;
    let stanza = plan.stanza("venafi-password") + "        revoke_on_exit: true\n";
    let plan = plan.stanza_of(&stanza);
    let (dir, yaml) = (plan.dir().to_owned(), plan.yaml());
    let mut front = plan.start();
    let venafi = &front.mocks.venafi;
    let revoked = |front: &Front| {
        let calls = front.mocks.venafi.requests();
        let mut calls = calls.into_iter();
        calls.find(|seen| seen.path() == "/vedauth/revoke/token")
    };
    assert_eq!(front.answer("/venafi-password/vedsdk/x").await.status, 404);
    let token = venafi.api_calls()[0].bearer().unwrap().to_owned();
    assert!(revoked(&front).is_none());

    assert!(stop(&mut front) < Duration::from_secs(4));
    let revocation = revoked(&front).unwrap();
    assert_eq!(
        (
            revocation.method.as_str(),
            revocation.status,
            revocation.bearer()
        ),
        ("GET", 200, Some(token.as_str()))
    );
    assert!(front.proxy.stderr().contains("the grant was revoked"));

    // What is dead is not shown again: the next process asks for a grant of its own at once.
    let before = front.mocks.venafi.token_calls().len();
    let proxy = spawn_blocking(move || Proxy::start(&dir, &yaml))
        .await
        .unwrap();
    let calls = front.mocks.venafi.token_calls();
    assert_eq!(calls.len(), before + 1);
    assert_eq!(calls[before].path(), "/vedauth/authorize/oauth");
    drop(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_holds_up_the_end_for_three_seconds_at_most() {
    countersign::tls::install_provider();
    let server = Server::start(|asked: Asked| async move {
        if asked.bearer.is_some() {
            return Reply::Silence;
        }
        Reply::json(r#"{"access_token":"a","refresh_token":"r","expires_in":3600}"#)
    })
    .await;
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
vendors:
  v:
    upstream: {}
    allow_plaintext: true
    auth: {{ vedauth: {{ client_id: me, jwt: {{ value: j }}, revoke_on_exit: true }} }}
",
        server.url("")
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let mut proxy = spawn_blocking(move || Proxy::start(&path, &yaml))
        .await
        .unwrap();
    let begun = Instant::now();
    signal(proxy.id(), "TERM");
    assert_eq!(proxy.ended(), Some(0));
    let took = begun.elapsed();
    assert!((2900..4000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(server.asked_at("/vedauth/revoke/token").len(), 1);
}
