//! The command line as a person at a terminal has it: watching, waiting, completing, and what is said
//! when something is wrong; and the files that are made by it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::script::{Reply, Server};
use crate::support::{PATIENCE, Proxy, countersign, eventually, run, signal};

const YAML: &str = "\
listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
drain: { delay: 0s }
vendors:
  v: { upstream: \"https://127.0.0.1:1\" }
";

#[test]
fn watching_goes_on_until_it_is_interrupted_whatever_becomes_of_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::start(dir.path(), YAML);
    let admin = proxy.admin.to_string();
    for json in [false, true] {
        let mut command = countersign();
        command.args([
            "status",
            "--watch",
            "--interval",
            "100ms",
            "--admin",
            &admin,
        ]);
        if json {
            command.arg("--json");
        }
        let mut watching = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
        let mut tables = 0;
        // Three answers, each with the vendor in it.
        while tables < 3 {
            let line = lines.next().unwrap().unwrap();
            if json {
                let status: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(status["vendors"][0]["name"], "v");
                tables += 1;
            } else if line.starts_with("v ") {
                assert!(line.contains("none"), "{line}");
                tables += 1;
            }
        }
        if json {
            proxy.kill();
        }
        signal(watching.id(), "INT");
        let code = eventually("ended", || watching.try_wait().unwrap());
        assert_eq!(code.code(), Some(0));
    }
    for odd in ["0s", "often"] {
        let refused = run(dir.path(), &["status", "--watch", "--interval", odd]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("500ms"), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_wait_is_shown_at_a_terminal_and_nowhere_else() {
    let status = r#"{"config":{},"vendors":[{"name":"v","auth":"none","state":"none"}]}"#;
    let slow = Server::start(move |_| async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Reply::json(status)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let admin = slow.address.to_string();
    let plain = run(dir.path(), &["status", "--admin", &admin]);
    assert_eq!((plain.code, &*plain.stderr), (Some(0), ""), "{plain:?}");

    // `script`, of every Debian, gives a command a terminal.
    let line = format!(
        "{} status --admin {admin}",
        env!("CARGO_BIN_EXE_countersign")
    );
    let output = Command::new("timeout")
        .args([&PATIENCE.as_secs().to_string(), "script", "-qefc", &line])
        .arg("/dev/null")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("waiting for the proxy … 1 s"), "{shown}");
    let (_, after) = shown.rsplit_once("\r\u{1b}[K").unwrap();
    assert!(
        after.contains("VENDOR") && !after.contains("asking"),
        "{shown}"
    );
}

#[test]
fn every_shell_gets_completions_of_every_command() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = run(dir.path(), &["completions", shell]);
        assert_eq!(script.code, Some(0), "{script:?}");
        assert_eq!(script.stderr, "");
        for word in ["authorize", "completions", "without-secrets", "interval"] {
            assert!(script.stdout.contains(word), "{shell}: {word}");
        }
        if shell == "bash" {
            let file = dir.path().join("completions.bash");
            std::fs::write(&file, script.stdout).unwrap();
            let read = Command::new("bash")
                .args(["-ec", ". \"$1\"; complete -p countersign", "bash"])
                .arg(&file)
                .output()
                .unwrap();
            assert!(read.status.success(), "{read:?}");
        }
    }
    assert_eq!(run(dir.path(), &["completions", "tcsh"]).code, Some(2));
}

#[test]
fn every_error_says_what_to_do_next() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let yaml = format!("admin: {{ bind: \"{taken}\" }}\n")
        + "listeners: [ { bind: 127.0.0.1:0 } ]\n"
        + "vendors:\n  v: { upstream: \"https://127.0.0.1:1\" }\n";
    std::fs::write(dir.path().join("proxy.yaml"), yaml).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    for (arguments, code, hint) in [
        (&["check", "--config", "nowhere.yaml"][..], 2, "--config"),
        (&["serve"], 1, "ss -ltnp sport"),
        (
            &["status", "--admin", &nobody],
            1,
            "is `countersign serve` running",
        ),
        (&["probe", "w"], 1, "it has: v"),
        (&["authorize", "w"], 1, "those that need consent: none"),
        (&["authorize", "v"], 1, "countersign probe v"),
        (
            &["explain", "GET", "/v/x", "--caller", "ci"],
            1,
            "no `callers:`",
        ),
        (&["caller", "new", "a/b"], 1, "letters, digits"),
        (&["statsu"], 2, "status"),
    ] {
        let said = run(dir.path(), arguments);
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
        assert!(
            said.stderr.contains(hint),
            "{arguments:?}: {hint} in\n{}",
            said.stderr
        );
        assert_eq!(said.stdout, "", "{arguments:?}");
    }
}

#[test]
fn the_published_schema_and_the_reference_are_those_of_this_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, arguments) in [
        ("proxy.schema.json", &["schema"][..]),
        ("docs/configuration.md", &["schema", "--markdown"]),
    ] {
        let made = run(root, arguments).stdout;
        let published = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        let current = made == published;
        assert!(
            current,
            "{file} is out of date: `make generated` writes it anew"
        );
    }
    // Editors find it from the sample.
    let sample = std::fs::read_to_string(root.join("proxy.yaml")).unwrap();
    let first = sample.lines().next().unwrap();
    assert_eq!(first, "# yaml-language-server: $schema=proxy.schema.json");
}
