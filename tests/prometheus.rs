//! What an operator's Prometheus gets: every alert is tested and has its entry in the runbook, and
//! every rule and every panel asks for series that the running program exports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::front::{Front, Plan};
use crate::support::peers::{Process, free_port};
use crate::support::{eventually, exchange, status_of};

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    let tested = Command::new(program("promtool"))
        .args(["test", "rules"])
        .arg(shipped("rules.test.yaml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&tested.stderr).into_owned();
    assert!(tested.status.success(), "{said}");

    let tests = yaml(&shipped("rules.test.yaml"));
    let mut fired = BTreeSet::new();
    let mut quiet = BTreeSet::new();
    for test in list(&tests["tests"]) {
        for asked in list(&test["alert_rule_test"]) {
            let seen = if list(&asked["exp_alerts"]).is_empty() {
                &mut quiet
            } else {
                &mut fired
            };
            seen.insert(asked["alertname"].as_str().unwrap().to_owned());
        }
    }
    for alert in alerts() {
        assert!(fired.contains(&alert), "{alert} never fires in a test");
    }
    // What the issue of an operator's day names.
    for named in [
        "CredentialExpiresSoon",
        "ReauthorizeNeeded",
        "TokenEndpointFailing",
        "VendorErrorBudgetBurnsFast",
        "VendorErrorBudgetBurnsSlowly",
        "RefusedCallersSurge",
        "CertificateExpires",
        "ReloadFailed",
    ] {
        assert!(fired.contains(&format!("Countersign{named}")), "{named}");
    }
    assert!(quiet.len() > 7, "{quiet:?}");
}

#[test]
fn the_operators_rules_are_the_plain_ones() {
    let made = Command::new("sh")
        .arg(shipped("operator-rule.sh"))
        .output()
        .unwrap();
    let kept = fs::read(shipped("prometheus-rule.yaml")).unwrap();
    assert!(
        made.status.success() && made.stdout == kept,
        "run deploy/prometheus/operator-rule.sh >deploy/prometheus/prometheus-rule.yaml"
    );
    let rule = yaml(&shipped("prometheus-rule.yaml"));
    assert_eq!(
        rule["spec"]["groups"],
        yaml(&shipped("rules.yaml"))["groups"]
    );
    assert_eq!(rule["kind"], "PrometheusRule");
}

#[test]
fn every_alert_and_every_reason_has_an_entry_in_the_runbook() {
    let runbook = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let heads: BTreeSet<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|head| head.trim_matches('`'))
        .collect();
    let mut wanted: BTreeSet<String> = alerts();
    wanted.extend(reasons());
    for entry in &wanted {
        assert!(
            heads.contains(entry.as_str()),
            "docs/operations.md: ### {entry}"
        );
    }
    for head in heads {
        let known = !head.starts_with("Countersign") || wanted.contains(head);
        assert!(known, "docs/operations.md: there is no alert {head}");
    }
    // Where the alerts point to.
    let pages = runbooks(&shipped("rules.yaml"));
    assert_eq!(pages.len(), 1, "{pages:?}");
    let page = url::Url::parse(pages.iter().next().unwrap()).unwrap();
    assert!(page.scheme() == "https" && page.has_host(), "{page}");
}

#[test]
fn one_command_says_where_the_runbook_is_for_both_rule_files_and_their_test() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "rules.yaml",
        "rules.test.yaml",
        "prometheus-rule.yaml",
        "operator-rule.sh",
        "runbooks.sh",
    ] {
        fs::copy(shipped(name), dir.path().join(name)).unwrap();
    }
    let run = |url: &str| {
        let mut command = Command::new("sh");
        command.arg(dir.path().join("runbooks.sh")).arg(url);
        command.output().unwrap()
    };
    for url in [
        "https://wiki.example.org/pages?title=countersign&version=1",
        "http://runbooks.internal:8080/countersign/operations.md",
    ] {
        let ran = run(url);
        assert!(ran.status.success(), "{ran:?}");
        for name in ["rules.yaml", "prometheus-rule.yaml"] {
            let pages = runbooks(&dir.path().join(name));
            assert_eq!(pages, BTreeSet::from([url.to_owned()]), "{name}");
        }
        // What the alerts are expected to say is changed with them.
        let expected = fs::read_to_string(dir.path().join("rules.test.yaml")).unwrap();
        for line in expected.lines().filter(|line| line.contains("runbook_url")) {
            assert!(line.contains(&format!("runbook_url: {url}#")), "{line}");
        }
    }
    let before = fs::read(dir.path().join("rules.yaml")).unwrap();
    for wrong in [
        "",
        "docs/operations.md",
        "https://a.example/#x",
        "https://a.example/ x",
        "https://a.example/|x",
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong}");
    }
    assert_eq!(fs::read(dir.path().join("rules.yaml")).unwrap(), before);
}

#[test]
fn the_alert_for_errors_of_ours_counts_every_reason_that_is_a_5xx_but_the_breakers() {
    let mut ours: BTreeSet<String> = verdicts()
        .into_iter()
        .filter(|(status, _)| SERVER_ERRORS.contains(&status.as_str()))
        .map(|(_, reason)| reason)
        .collect();
    assert!(ours.remove("circuit_open"));
    let rules = fs::read_to_string(shipped("rules.yaml")).unwrap();
    let counted: Vec<BTreeSet<String>> = regex(r#"vendor!="none",reason=~"(?<reasons>[a-z_|]+)""#)
        .captures_iter(&rules)
        .map(|found| found["reasons"].split('|').map(str::to_owned).collect())
        .collect();
    assert_eq!(counted, vec![ours; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_the_proxy_and_finds_what_rules_and_dashboard_ask_for() {
    let front = Plan::new().await.vendor("certn").start();
    for target in ["/certn/hr/v1/applicants/", "/nobody/here", "/certn/token/"] {
        front.answer(target).await;
    }
    let anonymous = format!("http://{}/certn/", front.proxy.data);
    assert_eq!(
        front.client.get(anonymous).send().await.unwrap().status(),
        401
    );

    let mut prometheus = Prometheus::scraping(&front);
    tokio::task::block_in_place(|| {
        eventually("up", || {
            prometheus.process.assert_running();
            let up = prometheus.query("up{job=\"countersign\"} == 1");
            (!list(&up).is_empty()).then_some(())
        });
        eventually("counted", || {
            let asked = "countersign_requests_total{vendor=\"certn\",status=\"401\"} == 1";
            (!list(&prometheus.query(asked)).is_empty()).then_some(())
        });
        eventually("recorded", || {
            let asked = "countersign:refused_callers:rate5m";
            (!list(&prometheus.query(asked)).is_empty()).then_some(())
        });
    });

    let exported = exported(&front);
    let recorded = recorded();
    let mut asked = queries();
    assert!(asked.len() > 35, "{}", asked.len());
    asked.extend(
        list(&prometheus.get("/api/v1/rules")["groups"])
            .iter()
            .flat_map(|group| {
                assert!(!list(&group["rules"]).is_empty());
                list(&group["rules"]).into_iter().map(|rule| {
                    assert_eq!(rule["health"], "ok", "{rule}");
                    let name = rule["name"].as_str().unwrap().to_owned();
                    (name, rule["query"].as_str().unwrap().to_owned())
                })
            }),
    );
    for (whose, query) in &asked {
        // Prometheus' own parser takes it.
        prometheus.query(query);
        let mut selectors = 0;
        for found in SELECTOR.captures_iter(query) {
            selectors += 1;
            let name = &found["name"];
            if name == "up" || recorded.contains(name) {
                continue;
            }
            let labels = exported.get(name);
            let labels =
                labels.unwrap_or_else(|| panic!("{whose}: {name} is not exported: {query}"));
            let matchers = found
                .name("matchers")
                .map_or("", |matchers| matchers.as_str());
            for matcher in MATCHER.captures_iter(matchers) {
                let (label, value) = (&matcher["label"], &matcher["value"]);
                if ["job", "instance"].contains(&label) {
                    continue;
                }
                let values = labels.get(label);
                let values =
                    values.unwrap_or_else(|| panic!("{whose}: {name} has no {label}: {query}"));
                // Of closed sets every value that is asked for is one that exists.
                if ["state", "outcome", "action", "reused", "reason"].contains(&label) {
                    for value in value.split('|') {
                        let exists = values.contains(value)
                            || label == "reason" && reasons().contains(value);
                        assert!(exists, "{whose}: {label} is never {value}: {query}");
                    }
                }
            }
        }
        assert!(selectors > 0, "{whose}: {query}");
    }
    // Nothing of an operator's interest is left out of the dashboard.
    let panels: String = queries()
        .into_iter()
        .map(|(_, query)| query + "\n")
        .collect();
    for name in exported
        .keys()
        .filter(|name| name.starts_with("countersign_"))
    {
        if !name.ends_with("_sum") && !name.ends_with("_count") {
            assert!(panels.contains(name.as_str()), "no panel shows {name}");
        }
    }
}

/// A real prometheus, one test long.
struct Prometheus {
    port: u16,
    process: Process,
    _dir: TempDir,
}

impl Prometheus {
    /// With the rules as they are shipped.
    fn scraping(front: &Front) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [dir.path().join("rules.yaml")],
            "scrape_configs": [{
                "job_name": "countersign",
                "static_configs": [{ "targets": [front.proxy.admin.to_string()] }],
            }],
        });
        let file = dir.path().join("prometheus.yaml");
        fs::write(&file, config.to_string()).unwrap();
        // The groups' own pace is for production.
        let rules = fs::read_to_string(shipped("rules.yaml")).unwrap();
        let rules = rules.replace("    interval: 30s\n", "");
        fs::write(dir.path().join("rules.yaml"), rules).unwrap();
        let port = free_port();
        let mut command = Command::new("sh");
        command
            .args(["-c", crate::support::peers::ENDS_WITH_STDIN, "sh"])
            .arg(program("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null());
        let process = Process::spawn(command, "prometheus", dir.path().join("log"));
        Self {
            port,
            process,
            _dir: dir,
        }
    }

    fn query(&self, query: &str) -> Value {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        self.get(&format!("/api/v1/query?query={query}"))["result"].clone()
    }

    /// The response's `data`; null while there is none.
    fn get(&self, target: &str) -> Value {
        let head = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        let answer = exchange(([127, 0, 0, 1], self.port).into(), head.as_bytes());
        if answer.is_empty() || status_of(&answer) == 503 {
            return Value::Null;
        }
        assert_eq!(status_of(&answer), 200, "{target} {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["status"], "success", "{body}");
        body["data"].clone()
    }
}

/// Panel or variable, and what it asks, Grafana's variables filled in.
fn queries() -> Vec<(String, String)> {
    let dashboard = fs::read_to_string(shipped("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut found = Vec::new();
    let fill = |query: &str| {
        let query = query.replace("$__rate_interval", "1m");
        VARIABLE.replace_all(&query, ".*").into_owned()
    };
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().unwrap().to_owned();
        let built_in = ["row", "stat", "state-timeline", "timeseries", "table"];
        assert!(
            built_in.contains(&panel["type"].as_str().unwrap()),
            "{panel}"
        );
        for target in list(&panel["targets"]) {
            let query = target["expr"].as_str().unwrap();
            found.push((title.clone(), fill(query)));
        }
    }
    for variable in list(&dashboard["templating"]["list"]) {
        if variable["type"] == "query" {
            let query = variable["query"]["query"].as_str().unwrap();
            let inner = query.strip_prefix("label_values(").unwrap();
            let (selector, label) = inner.trim_end_matches(')').rsplit_once(", ").unwrap();
            found.push((
                variable["name"].to_string(),
                fill(&format!("count by ({label}) ({selector})")),
            ));
        }
    }
    found
}

/// Every series' name, its labels, and the values they have had.
fn exported(front: &Front) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let (_, text) = front.proxy.admin("/metrics");
    let mut exported: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = exported.entry(name.to_owned()).or_default();
        for label in MATCHER.captures_iter(labels) {
            let values = known.entry(label["label"].to_owned()).or_default();
            values.insert(label["value"].to_owned());
        }
    }
    // Named though nothing here has a certificate, or no breaker is built in.
    for (name, label) in [
        ("countersign_certificate_expiry_timestamp_seconds", "name"),
        ("countersign_breaker_open", "vendor"),
    ] {
        let labels = BTreeMap::from([(label.to_owned(), BTreeSet::new())]);
        exported.entry(name.to_owned()).or_insert(labels);
    }
    exported
}

fn alerts() -> BTreeSet<String> {
    named("alert")
}

fn recorded() -> BTreeSet<String> {
    named("record")
}

fn named(kind: &str) -> BTreeSet<String> {
    let rules = yaml(&shipped("rules.yaml"));
    let groups = list(&rules["groups"]);
    let rules = groups.iter().flat_map(|group| list(&group["rules"]));
    let names = rules.filter_map(|rule| rule[kind].as_str().map(str::to_owned));
    names.collect()
}

/// The page that the alerts of a rule file lead to. Each must have a summary, and an anchor of its
/// own.
fn runbooks(file: &Path) -> BTreeSet<String> {
    let rules = yaml(file);
    let groups = list(rules.get("groups").unwrap_or(&rules["spec"]["groups"]));
    let rules = groups.iter().flat_map(|group| list(&group["rules"]));
    let mut pages = BTreeSet::new();
    for rule in rules {
        if let Some(alert) = rule["alert"].as_str() {
            let notes = &rule["annotations"];
            assert!(notes["summary"].is_string(), "{alert}");
            let (page, anchor) = notes["runbook_url"]
                .as_str()
                .unwrap()
                .split_once('#')
                .unwrap();
            assert_eq!(anchor, alert.to_lowercase());
            pages.insert(page.to_owned());
        }
    }
    pages
}

/// Every `reason` of the proxy's own answers, from its one table.
fn reasons() -> BTreeSet<String> {
    let reasons: BTreeSet<_> = verdicts().into_iter().map(|(_, reason)| reason).collect();
    assert!(reasons.len() >= 14, "{reasons:?}");
    reasons
}

/// The statuses' names and the reasons of that table.
fn verdicts() -> BTreeSet<(String, String)> {
    let source = fs::read_to_string(root().join("src/error.rs")).unwrap();
    let found = REASON.captures_iter(&source);
    found
        .map(|found| (found["status"].to_owned(), found["reason"].to_owned()))
        .collect()
}

const SERVER_ERRORS: [&str; 4] = [
    "INTERNAL_SERVER_ERROR",
    "BAD_GATEWAY",
    "SERVICE_UNAVAILABLE",
    "GATEWAY_TIMEOUT",
];

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn yaml(file: &Path) -> Value {
    serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn shipped(name: &str) -> PathBuf {
    root().join("deploy/prometheus").join(name)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `prometheus` or `promtool`: the system's, or what scripts/setup.sh unpacked.
fn program(name: &str) -> PathBuf {
    let ours = root()
        .join("tests/support/peers/prometheus/usr/bin")
        .join(name);
    if ours.exists() { ours } else { name.into() }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

static SELECTOR: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"(?<name>\b(?:countersign[a-z0-9_:]+|process_[a-z_]+|up\b))(?:\{(?<matchers>[^}]*)\})?")
});
static MATCHER: LazyLock<Regex> =
    LazyLock::new(|| regex(r#"(?<label>[a-z_]+)(?:=~|!~|!=|=)"(?<value>[^"]*)""#));
static VARIABLE: LazyLock<Regex> = LazyLock::new(|| regex(r"\$[a-z]+"));
static REASON: LazyLock<Regex> =
    LazyLock::new(|| regex(r#"StatusCode::(?<status>[A-Z_]+),\s+"(?<reason>[a-z_]+)","#));
