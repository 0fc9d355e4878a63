//! The fuzz targets' bodies over their seeds, and over what a property test thinks of: what `make
//! fuzz` once found stays found.

use std::path::Path;

use proptest::prelude::*;

#[path = "../fuzz/bodies/config.rs"]
mod config;
#[path = "../fuzz/bodies/echo.rs"]
mod echo;
#[path = "../fuzz/bodies/fields.rs"]
mod fields;
#[path = "../fuzz/bodies/http1.rs"]
mod http1;
#[path = "../fuzz/bodies/path.rs"]
pub mod path;

fn over_seeds(target: &str, body: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let mut count = 0;
    for seed in std::fs::read_dir(&seeds).unwrap() {
        let seed = seed.unwrap().path();
        // Shown when the body panics.
        println!("{}", seed.display());
        body(&std::fs::read(&seed).unwrap());
        count += 1;
    }
    assert!(count > 5, "{count} seeds in {}", seeds.display());
}

#[test]
fn the_seeds_of_every_fuzz_target_pass() {
    over_seeds("path", path::run);
    over_seeds("fields", fields::run);
    over_seeds("echo", echo::run);
    over_seeds("config", config::run);
    over_seeds("http1", http1::run);
}

/// What paths that are read in two ways are made of.
fn targets() -> impl Strategy<Value = String> {
    let prefix = proptest::sample::select(vec!["/v", "/r", "/a", "/s", "/v/granted", ""]);
    let part = proptest::sample::select(vec![
        "/", "/", "/", "token", "TOKEN", "tok%65n", "info", "api", "keys", "v1", "secret", "open",
        ".", "..", "%2e", "%2E", ";", "%3b", "x", "=", "%2f", "%2F", "%5c", "\\", "%20", "%00",
        "%25", "%c0%ae", "%c0%af", "?", "#", "*", "%", "%40", "é", " ", "a",
    ]);
    let rest = proptest::collection::vec(part, 0..10);
    (prefix, rest).prop_map(|(prefix, rest)| format!("{prefix}/{}", rest.concat()))
}

/// What heads and chunks are made of, behind the number that says how they are cut.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let part = proptest::sample::select(vec![
        "GET / HTTP/1.1",
        "HTTP/1.1 200 OK",
        "A: b",
        "A : b",
        ":",
        "\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        " ",
        "\t",
        ";",
        "x=\"y\"",
        "0",
        "0\r\n\r\n",
        "1",
        "3",
        "a",
        "F",
        "00",
        "fffffffffffffffff",
        "+1",
        "0x",
        "abc",
        "\u{e9}",
        "\0",
        "Transfer-Encoding: chunked",
    ]);
    let parts = proptest::collection::vec(part, 0..14);
    (any::<u8>(), parts).prop_map(|(how, parts)| [&[how], parts.concat().as_bytes()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_is_forwarded_cannot_be_read_as_what_is_refused(target in targets()) {
        path::run(target.as_bytes());
    }

    #[test]
    fn a_message_is_read_in_one_way_however_it_comes(message in messages()) {
        http1::run(&message);
    }

    #[test]
    fn a_credential_never_leaves_an_answer_whatever_it_stands_in(
        text in proptest::collection::vec(
            prop_oneof![0xf8_u8..=0xfe, Just(b'a'), Just(b'+'), Just(b'%'), any::<u8>()],
            2..40,
        )
    ) {
        echo::run(&text);
    }
}
