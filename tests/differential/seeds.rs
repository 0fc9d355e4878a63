//! Cases by hand, and of the tables and files that other tests have.

mod bodies;
mod flows;
mod heads;
mod overlaps;
mod responses;

use std::path::Path;

use super::cases::{Case, Step, bytes, get, last, post, says};

/// What an attack hides in a body.
const INNER: &str = "GET /v/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// All of them.
pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(heads::all());
    all.extend(bodies::all());
    all.extend(responses::all());
    all.extend(flows::all());
    all.extend(overlaps::all());
    all.extend(spellings());
    all.extend(of_fuzzing());
    all
}

/// A second request behind the first shows where that one ended.
fn behind(first: &str) -> String {
    format!("{first}{}", get("/v/second", ""))
}

/// The spellings of paths that tests/spellings.rs has.
fn spellings() -> Vec<Case> {
    let lines = include_str!("../spellings.txt").lines();
    let spellings = lines.filter(|line| !line.starts_with('#'));
    let spellings: Vec<&str> = spellings
        .map(|line| line.split_once(' ').map_or("", |(_, spelling)| spelling))
        .collect();
    let request = |prefix: &str, spelling: &str| get(&format!("{prefix}{spelling}"), "");
    // Several in one case, each on a connection of its own.
    spellings
        .chunks(6)
        .map(|some| {
            let mut steps = Vec::new();
            for spelling in some {
                for prefix in ["/v", "/w"] {
                    steps.extend([says(request(prefix, spelling)), Step::Reconnect]);
                }
            }
            steps.push(says(get("/v/x", "")));
            Case::new(format!("spellings {some:?}"), steps)
        })
        .collect()
}

/// The inputs of the fuzz targets: heads of requests and of responses, targets.
fn of_fuzzing() -> Vec<Case> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let read = |target: &str| {
        let entries = std::fs::read_dir(seeds.join(target)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let inputs = paths.into_iter().map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (
                format!("fuzz {target} {name}"),
                std::fs::read(path).unwrap(),
            )
        });
        inputs.collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for (name, head) in read("fields") {
        let sent = [&head, get("/v/second", "").as_bytes()].concat();
        all.push(Case::sending(format!("{name}, sent"), sent));
        let case = Case::sending(format!("{name}, answered"), get("/v/x", ""));
        all.push(case.answered(vec![last([&head, &b"rest"[..]].concat())]));
    }
    for (name, target) in read("path") {
        let sent = [
            b"GET ",
            &target[..],
            b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ]
        .concat();
        all.push(Case::sending(name, sent));
    }
    for (name, body) in read("echo") {
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let answer = bytes([head.as_bytes(), &body].concat());
        all.push(Case::sending(name, post("/v/x", "", "echo")).answered(vec![answer]));
    }
    all
}
