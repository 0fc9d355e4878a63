//! `countersign demo`: the first thing a newcomer runs.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::client;
use crate::support::front::answer;
use crate::support::{countersign, eventually, run_with, signal};

const VENDORS: [&str; 9] = [
    "certcenter",
    "certcenter-oauth",
    "sectigo-oauth",
    "sectigo",
    "sectigo-private",
    "certn",
    "maxmd",
    "venafi",
    "venafi-password",
];

#[test]
fn once_calls_every_vendor_and_prints_what_each_saw() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing of it is meant for a company's proxy, where nothing listens.
    let shown = run_with(
        dir.path(),
        &["demo", "--once"],
        &[("HTTPS_PROXY", "http://127.0.0.1:9"), ("ALL_PROXY", "x://")],
    );
    assert_eq!(shown.code, Some(0), "{shown:?}");
    for vendor in VENDORS {
        let rows: Vec<&str> = shown
            .stdout
            .lines()
            .filter(|line| line.split(' ').next() == Some(vendor))
            .collect();
        assert!(!rows.is_empty(), "{vendor} in\n{}", shown.stdout);
        for row in rows {
            assert!(row.contains(" 200 ") && row.ends_with("right"), "{row}");
            assert!(row.contains('…') || row.contains("CN="), "{row}");
        }
    }
    // Nothing is left behind where it was run.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_to_paste_work_as_they_are_and_ctrl_c_ends_it_with_0() {
    let mut demo = Demo(
        countersign()
            .arg("demo")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut calls = Vec::new();
    let mut config = PathBuf::new();
    let status = loop {
        // Ends with the process, if that comes first.
        let line = lines.next().unwrap();
        if line.starts_with('/') {
            config = PathBuf::from(&line);
        } else if line.starts_with("curl ") {
            calls.push(line);
        } else if let Some(url) = line.strip_prefix("Status: ") {
            break url.to_owned();
        }
    };
    assert!(config.exists(), "{config:?}");
    assert_eq!(calls.len(), VENDORS.len());
    for call in &calls {
        // curl -s -H 'X-Countersign-Key: KEY' 'URL'
        let mut quoted = call.split('\'').skip(1).step_by(2);
        let (field, url) = (quoted.next().unwrap(), quoted.next().unwrap());
        let (name, key) = field.split_once(": ").unwrap();
        let answered = answer(client().get(url).header(name, key)).await;
        assert_eq!(answered.status, 200, "{call}: {answered:?}");
        let bare = answer(client().get(url)).await;
        assert_eq!(bare.status, 401, "{call}");
    }
    let shown = answer(client().get(status)).await;
    assert_eq!(shown.status, 200);
    let rows = shown.body.matches("id=\"vendor-").count();
    assert_eq!(rows, VENDORS.len(), "{}", shown.body);

    signal(demo.0.id(), "INT");
    let ended = eventually("ended", || demo.0.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    assert!(!config.exists(), "the demo's files are gone with it");
}

/// Does not outlive a test that fails.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        // It has ended by itself in a test that passes.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
