//! `check`, `explain`, `schema` and the conventions all commands share.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::front::Plan;
use crate::support::{Proxy, countersign, eventually, run, signal, write_secret};

#[tokio::test(flavor = "multi_thread")]
async fn check_accepts_the_file_that_serve_runs_and_sends_nothing() {
    let plan = every_vendor().await;
    std::fs::write(plan.dir().join("proxy.yaml"), plan.yaml()).unwrap();

    let checked = run(plan.dir(), &["check"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.contains("9 vendors"), "{checked:?}");
    assert_eq!(checked.stderr, "");
    for mock in plan.mocks.all() {
        assert!(mock.connections().is_empty(), "{}", mock.url());
    }

    // Secrets are read unless only their form is asked for; either way none is printed.
    std::fs::remove_file(plan.dir().join("secrets/certn")).unwrap();
    let missing = run(plan.dir(), &["check"]);
    assert_eq!(missing.code, Some(2), "{missing:?}");
    let line = missing.stderr.lines().next().unwrap();
    assert!(
        line.contains("proxy.yaml:") && line.contains("secrets/certn"),
        "{line}"
    );
    let form = run(plan.dir(), &["check", "--without-secrets"]);
    assert_eq!(form.code, Some(0), "{form:?}");
}

#[test]
fn check_reports_every_mistake_with_its_place_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\
listeners: [ { bind: 127.0.0.1:0 } ]
drain: { delay: 5 }
vendors:
  a:
    upstream: http://a.example
    timeout: { connect: 5s }
  b:
    preset: certnn
    upstream: https://b.example
";
    std::fs::write(dir.path().join("other.yaml"), text).unwrap();
    let checked = run(dir.path(), &["check", "--config", "other.yaml"]);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    assert_eq!(checked.stdout, "");
    let lines: Vec<&str> = checked.stderr.lines().collect();
    for (place, hint) in [
        ("other.yaml:2:17: ", "5s"),
        ("other.yaml:5:15: ", "allow_plaintext"),
        ("other.yaml:6:5: ", "`timeouts`"),
        ("other.yaml:8:13: ", "`certn`"),
    ] {
        let line = lines.iter().find(|line| line.contains(place));
        assert!(
            line.is_some_and(|line| line.contains(hint)),
            "{place}{hint} in\n{}",
            checked.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_where_a_request_goes_and_what_is_put_on_it_masked() {
    let plan = every_vendor().await;
    std::fs::write(plan.dir().join("proxy.yaml"), plan.yaml()).unwrap();

    let path = "/sectigo/api/ssl/v1/types?size=2";
    let text = run(plan.dir(), &["explain", "GET", path]);
    assert_eq!(text.code, Some(0), "{text:?}");
    let upstream = format!("{}/api/ssl/v1/types?size=2", plan.mocks.cert_manager.url());
    for said in [&*upstream, "sectigo", "customerUri: ***", "password: ***"] {
        assert!(text.stdout.contains(said), "{said} in\n{}", text.stdout);
    }
    let told = run(plan.dir(), &["explain", "--json", "GET", path]);
    assert_eq!(told.code, Some(0));
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(told["forwarded"], true);
    assert_eq!(told["vendor"], "sectigo");
    assert_eq!(told["preset"], "sectigo");
    assert_eq!(told["upstream"], *upstream);
    let removed = told["headers_removed"].as_array().unwrap();
    for name in ["authorization", "cookie", "x-api-key", "login"] {
        assert!(removed.contains(&json!(name)), "{name} in {removed:?}");
    }
    for secret in [
        &plan.mocks.logins.cert_manager_password,
        &plan.mocks.logins.caller_key,
    ] {
        assert!(!text.stdout.contains(secret.as_str()));
    }

    for (arguments, status, reason) in [
        (&["GET", "/nowhere"][..], 404, "no_vendor"),
        (&["POST", "/certn/TOKEN/"], 403, "refused_path"),
        (&["GET", "/certn/../x"], 400, "bad_request"),
        (&["TRACE", "/certn/x"], 405, "method_not_allowed"),
        (&["get", "/certn/x"], 400, "bad_request"),
        (&["G T", "/certn/x"], 400, "bad_request"),
        (&["DELETE", "/certn/x", "--caller", "app"], 200, ""),
    ] {
        let mut all = vec!["explain", "--json"];
        all.extend(arguments);
        let told = run(plan.dir(), &all);
        let code = i32::from(status != 200);
        assert_eq!(told.code, Some(code), "{arguments:?}: {told:?}");
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!(told["forwarded"], status == 200, "{arguments:?}");
        if status != 200 {
            assert_eq!(
                (&told["status"], &told["reason"]),
                (&json!(status), &json!(reason))
            );
            all.retain(|word| *word != "--json");
            let text = run(plan.dir(), &all);
            assert_eq!(text.code, Some(1));
            assert!(text.stdout.contains(reason), "{text:?}");
        }
    }
    let refused = run(plan.dir(), &["explain", "--json", "POST", "/certn/TOKEN/"]);
    let refused: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(refused["rule"], "/token", "the rule that refused it");
    let permitted = run(plan.dir(), &["explain", "--json", "GET", "/certn/x"]);
    let permitted: Value = serde_json::from_str(&permitted.stdout).unwrap();
    assert_eq!(permitted["rule"], "*", "the grant that permits it");
    for mock in plan.mocks.all() {
        assert!(mock.connections().is_empty(), "{}", mock.url());
    }
}

#[test]
fn explain_shows_the_request_that_would_be_sent_and_refuses_as_serve_does() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\
vendors:
  q: { upstream: \"https://q.example\", auth: { query: { api_key: { value: hunter2 } } } }
  v: { upstream: \"https://v.example\", hosts: [ v.internal ] }
";
    std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();
    let explain = |arguments: &[&str]| {
        let mut all = vec!["explain", "--json"];
        all.extend(arguments);
        let told = run(dir.path(), &all);
        assert!(!told.stdout.contains("hunter"), "{told:?}");
        let value: Value = serde_json::from_str(&told.stdout).unwrap();
        (told.code, value)
    };
    let (code, told) = explain(&["GET", "/q/x?a=1&API%5fkey=hunted&b=2"]);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told["upstream"], "https://q.example/x?a=1&b=2&api_key=***");
    assert!(!told.to_string().contains("hunted"), "{told}");
    let (_, told) = explain(&["GET", "/q/x"]);
    assert_eq!(told["upstream"], "https://q.example/x?api_key=***");

    // Without callers, only this machine's programs may call, and those of a name that is known.
    let (code, told) = explain(&["GET", "/q/x", "--host", "evil.example"]);
    assert_eq!((code, &told["reason"]), (Some(1), &json!("forbidden")));
    for host in ["localhost", "127.0.0.1:8080", "v.internal"] {
        let (code, told) = explain(&["GET", "/q/x", "--host", host]);
        assert_eq!(code, Some(0), "{host}: {told}");
    }
}

#[test]
fn explain_knows_hosts_and_what_a_caller_may_do() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\
callers:
  ci: { api_key: { value: k }, allow: [ \"v GET /x/**\" ] }
vendors:
  v: { upstream: \"https://v.example/base\", hosts: [ v.internal ] }
";
    std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();
    let explain = |arguments: &[&str]| {
        let mut all = vec!["explain", "--json"];
        all.extend(arguments);
        let told = run(dir.path(), &all);
        let value: Value = serde_json::from_str(&told.stdout).unwrap();
        (told.code, value)
    };
    let (code, told) = explain(&["GET", "/x", "--host", "v.internal:8443"]);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told["upstream"], "https://v.example/base/x");
    let (code, told) = explain(&["GET", "/v/x/y", "--caller", "ci"]);
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = explain(&["POST", "/v/x/y", "--caller", "ci"]);
    assert_eq!((code, &told["reason"]), (Some(1), &json!("forbidden")));
    let unknown = run(
        dir.path(),
        &["explain", "GET", "/v/x", "--caller", "nobody"],
    );
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.stderr.contains("ci"), "{unknown:?}");
}

#[test]
fn the_printed_schema_knows_every_key_of_the_sample() {
    let dir = tempfile::tempdir().unwrap();
    let printed = run(dir.path(), &["schema"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let schema: Value = serde_json::from_str(&printed.stdout).unwrap();
    let sample: Value = serde_yaml::from_str(include_str!("../../proxy.yaml")).unwrap();
    accepts(&schema, &schema, &sample, "");
    let unknown: Value = json!({"vendors": {"v": {"upstrem": "https://v.example"}}});
    let unknown = std::panic::catch_unwind(|| accepts(&schema, &schema, &unknown, ""));
    assert!(unknown.is_err(), "this test sees an unknown key");
}

#[test]
fn every_command_has_help_and_a_version() {
    let dir = tempfile::tempdir().unwrap();
    for command in [
        &[][..],
        &["serve"],
        &["check"],
        &["explain"],
        &["authorize"],
        &["caller"],
        &["caller", "new"],
        &["schema"],
        #[cfg(feature = "demo")]
        &["demo"],
    ] {
        for flag in ["--help", "--version"] {
            let mut all = command.to_vec();
            all.push(flag);
            let said = run(dir.path(), &all);
            assert_eq!(said.code, Some(0), "{all:?}: {said:?}");
            assert!(!said.stdout.is_empty() && said.stderr.is_empty(), "{all:?}");
            assert!(!said.stdout.contains('\u{1b}'), "colour without a terminal");
        }
    }
    let version = run(dir.path(), &["--version"]).stdout;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    assert_eq!(run(dir.path(), &["no-such-command"]).code, Some(2));
}

/// A vendor with a name of the usual kind, and one that is called like a file.
const TWO_VENDORS: &str = "listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
vendors: { v: { upstream: \"https://v.example\" }, y.yaml: { upstream: \"https://y.example\" } }
";

#[test]
fn the_configuration_may_be_an_argument_of_every_command_that_reads_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("conf")).unwrap();
    for name in ["other.yaml", "conf/plain"] {
        std::fs::write(at(name), TWO_VENDORS).unwrap();
    }
    // Not there to be read by accident: there is no proxy.yaml.
    for (arguments, code, said) in [
        (&["check", "other.yaml"][..], 0, "other.yaml: valid"),
        (&["check", "conf/plain"], 0, "conf/plain: valid"),
        (&["check", "-c", "other.yaml"], 0, "other.yaml: valid"),
        (
            &["check", "other.yaml", "--without-secrets"],
            0,
            "other.yaml: valid",
        ),
        (&["check", "nowhere.yaml"], 2, "nowhere.yaml"),
        (&["check"], 2, "proxy.yaml"),
        (
            &["check", "-c", "a", "other.yaml"],
            2,
            "cannot be used with",
        ),
        (
            &["serve", "-c", "a", "other.yaml"],
            2,
            "cannot be used with",
        ),
        (&["serve", "nowhere.yaml"], 2, "nowhere.yaml"),
        (&["probe", "other.yaml"], 0, "nothing is injected"),
        (&["probe", "v", "other.yaml"], 0, "nothing is injected"),
        (&["probe", "other.yaml", "v"], 0, "nothing is injected"),
        (&["probe", "./conf/plain", "v"], 0, "nothing is injected"),
        (&["probe", "-c", "other.yaml", "y.yaml"], 0, "y.yaml"),
        (
            &["probe", "-c", "other.yaml", "conf/plain"],
            2,
            "--config other.yaml",
        ),
        (&["probe", "other.yaml", "conf/plain"], 2, "--config FILE"),
        (
            &["explain", "GET", "/v/x", "other.yaml"],
            0,
            "https://v.example/x",
        ),
        (
            &["explain", "other.yaml", "GET", "/v/x"],
            0,
            "https://v.example/x",
        ),
        (
            &["explain", "GET", "other.yaml", "/v/x"],
            0,
            "https://v.example/x",
        ),
        (
            &["explain", "GET", "/v/x.yaml", "-c", "other.yaml"],
            0,
            "/x.yaml",
        ),
        (
            &["explain", "other.yaml", "/v/x"],
            2,
            "explain METHOD PATH other.yaml",
        ),
        (
            &["authorize", "v", "other.yaml"],
            1,
            "vendors.v has auth none",
        ),
        (
            &["authorize", "other.yaml", "v"],
            1,
            "vendors.v has auth none",
        ),
        (
            &["authorize", "-c", "other.yaml", "y.yaml"],
            1,
            "vendors.y.yaml has",
        ),
        (
            &["authorize", "other.yaml"],
            2,
            "authorize VENDOR other.yaml",
        ),
        (
            &["authorize", "conf/plain"],
            2,
            "authorize VENDOR conf/plain",
        ),
    ] {
        let ran = run(dir.path(), arguments);
        let text = ran.stdout.clone() + &ran.stderr;
        assert_eq!(ran.code, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(said), "{arguments:?}: {said} in\n{text}");
    }
}

#[test]
fn what_may_be_a_file_or_a_vendor_is_asked_about() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // A vendor of the default file may be called like a file.
    std::fs::write(at("proxy.yaml"), TWO_VENDORS).unwrap();
    let vendor = run(dir.path(), &["probe", "y.yaml"]);
    assert!(vendor.stdout.contains("y.yaml"), "{vendor:?}");
    std::fs::write(at("y.yaml"), TWO_VENDORS).unwrap();
    for arguments in [&["probe", "y.yaml"][..], &["authorize", "y.yaml"]] {
        let either = run(dir.path(), arguments);
        assert_eq!(either.code, Some(2), "{either:?}");
        for way in ["`--config y.yaml`", "`--config proxy.yaml y.yaml`"] {
            assert!(either.stderr.contains(way), "{either:?}");
        }
    }
}

#[test]
fn a_file_given_as_an_argument_wins_over_the_environment_and_is_served() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("other.yaml"), TWO_VENDORS).unwrap();
    let mut command = countersign();
    command.env("COUNTERSIGN_CONFIG", "nowhere.yaml");
    let checked = command
        .args(["check", "other.yaml"])
        .current_dir(dir.path());
    assert!(checked.output().unwrap().status.success());

    let mut serving = countersign()
        .args(["serve", "other.yaml"])
        .current_dir(dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(serving.stderr.take().unwrap()).lines();
    let listens = lines.any(|line| line.unwrap().contains("listening address="));
    signal(serving.id(), "INT");
    assert!(listens);
    let ended = eventually("ended", || serving.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn the_environment_can_name_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let text = "vendors: { v: { upstream: \"https://v.example\" } }\n";
    std::fs::write(dir.path().join("elsewhere.yaml"), text).unwrap();
    let output = countersign()
        .arg("check")
        .env("COUNTERSIGN_CONFIG", "elsewhere.yaml")
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The demo's vendors, all of them.
async fn every_vendor() -> Plan {
    let mut plan = Plan::new().await;
    for (_, stanza) in plan.mocks.stanzas() {
        plan = plan.stanza_of(&stanza);
    }
    plan
}

/// Panics where `schema` has no place for a key of `value`.
fn accepts(root: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.strip_prefix('#').unwrap();
        return accepts(root, root.pointer(pointer).unwrap(), value, at);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let of_its_type = choices.iter().find(|choice| {
            let choice = match choice["$ref"].as_str() {
                Some(name) => root.pointer(name.strip_prefix('#').unwrap()).unwrap(),
                None => *choice,
            };
            (choice["type"] == "object") == value.is_object()
        });
        return accepts(root, of_its_type.unwrap(), value, at);
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let known = schema["properties"].get(name);
                let any = &schema["additionalProperties"];
                let of = known.or(any.is_object().then_some(any));
                let of = of.unwrap_or_else(|| panic!("{at}/{name} is not in the schema"));
                accepts(root, of, value, &format!("{at}/{name}"));
            }
        }
        Value::Array(items) => {
            for (nth, item) in items.iter().enumerate() {
                accepts(root, &schema["items"], item, &format!("{at}/{nth}"));
            }
        }
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_in_a_checkout_knows_its_commit() {
    let front = Plan::new().await.vendor("certn").start();
    let (_, metrics) = front.proxy.admin("/metrics");
    let (_, rest) = metrics
        .split_once("countersign_build_info{commit=\"")
        .unwrap();
    let (commit, _) = rest.split_once('"').unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    let git = std::process::Command::new("git")
        .args(["rev-parse", "HEAD"])
        .current_dir(root)
        .output();
    let head = git.ok().filter(|git| git.status.success());
    match head.filter(|_| Path::new(root).join(".git").exists()) {
        Some(head) => {
            let head = String::from_utf8(head.stdout).unwrap();
            assert!(
                commit.len() >= 12 && head.starts_with(commit),
                "{commit} of {head}"
            );
        }
        None => assert!(!commit.is_empty()),
    }
}

#[test]
fn a_secret_that_looks_like_something_else_is_warned_about_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let odd = [
        ("bom", "\u{feff}hunter2", "begins with a byte order mark"),
        ("quoted", "\"hunter2\"", "stands in quotes"),
        ("named", "API_KEY=hunter2", "looks like `NAME=value`"),
        ("template", "<hunter2>", "looks like a placeholder"),
        ("scheme", "Bearer hunter2", "begins with `Bearer `"),
        ("blank", " hunter2 ", "has white space around it"),
    ];
    let mut vendors = String::from(
        "drain: { delay: 0s }\nlisteners: [ { bind: 127.0.0.1:0 } ]\nadmin: { bind: 127.0.0.1:0 }\nvendors:\n",
    );
    for (name, text, _) in odd {
        write_secret(&dir.join(name), text);
        let variable = format!("ODD_{}", name.to_uppercase());
        for (kind, at) in [("file", name), ("env", &variable)] {
            // A mark cannot stand in a header field; in a body it can.
            let auth = if name == "bom" {
                format!(
                    "client_credentials: {{ token_url: 'https://127.0.0.1:1/', client_id: us, client_auth: post, client_secret: {{ {kind}: {at} }} }}"
                )
            } else {
                format!("bearer: {{ token: {{ {kind}: {at} }} }}")
            };
            let upstream = "upstream: https://127.0.0.1:1";
            writeln!(
                vendors,
                "  {kind}-{name}:\n    {upstream}\n    auth: {{ {auth} }}"
            )
            .unwrap();
        }
    }
    std::fs::write(dir.join("proxy.yaml"), &vendors).unwrap();
    let environment = odd.map(|(name, text, _)| (format!("ODD_{}", name.to_uppercase()), text));
    let check = countersign()
        .arg("check")
        .current_dir(dir)
        .envs(
            environment
                .iter()
                .map(|(name, text)| (name.as_str(), *text)),
        )
        .output()
        .unwrap();
    let said = String::from_utf8([check.stdout, check.stderr].concat()).unwrap();
    assert_eq!(check.status.code(), Some(0), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, text)| (name.as_str(), *text))
        .collect();
    let proxy = Proxy::launch(dir, &vendors, &environment);
    let started = proxy.stderr();
    for text in [&said, &started] {
        for (name, _, what) in odd {
            for kind in ["file", "env"] {
                let vendor = format!("vendors.{kind}-{name}.auth.");
                let warned = text.lines().any(|line| {
                    line.contains("warning: ") && line.contains(&vendor) && line.contains(what)
                });
                // A file's white space is trimmed, as everybody expects.
                assert_eq!(
                    warned,
                    (kind, name) != ("file", "blank"),
                    "{kind} {name}: {text}"
                );
            }
        }
    }
    let line_break = countersign()
        .arg("check")
        .current_dir(dir)
        .envs(environment.iter().copied())
        .env("ODD_QUOTED", "hunter2\n")
        .output()
        .unwrap();
    let said = String::from_utf8(line_break.stderr).unwrap();
    assert_eq!(line_break.status.code(), Some(2), "{said}");
    assert!(
        said.contains("only files are trimmed: remove the line break at its end"),
        "{said}"
    );
}
