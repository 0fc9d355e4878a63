//! One path: several hundred spellings, and for every vendor's kind of rule either the very bytes
//! arrive that were matched and authorised, or nothing does.

use std::fmt::Write as _;

use crate::fuzzing::path::{ALLOW, VENDORS, forbidden_interpretation};
use crate::support::status_of;
use crate::support::world::{ECHO, World};

/// `path` in every way that we know to have meant the same to one server or another, and in many
/// that never did.
#[allow(clippy::too_many_lines, reason = "one table")]
pub fn of(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned(), path.to_uppercase()];
    let escaped = |text: &str, lower: bool| {
        text.bytes().fold(String::new(), |mut escaped, byte| {
            let _ = if lower {
                write!(escaped, "%{byte:02x}")
            } else {
                write!(escaped, "%{byte:02X}")
            };
            escaped
        })
    };
    for (at, letter) in path.char_indices().filter(|(_, letter)| *letter != '/') {
        let (before, after) = (&path[..at], &path[at + 1..]);
        let upper = letter.to_ascii_uppercase();
        all.push(format!("{before}{upper}{after}"));
        all.push(format!("{before}%{:02X}{after}", u32::from(letter)));
        all.push(format!("{before}%{:02x}{after}", u32::from(upper)));
        all.push(format!("{before}%25{:02x}{after}", u32::from(letter)));
    }
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for lower in [false, true] {
        let whole: Vec<_> = segments.iter().map(|one| escaped(one, lower)).collect();
        all.push(format!("/{}", whole.join("/")));
        all.push(escaped(path, lower));
        all.push(format!("/{}", whole.join("/").replace('%', "%25")));
    }
    for behind in [
        "/",
        ";",
        ";x",
        ";x=1",
        ";x=1;y",
        ";/",
        "%3B",
        "%3b",
        "%3bx/",
        "%20",
        "%20/",
        "%20%20",
        ".",
        "./",
        "..",
        "%2e",
        "/.",
        "/./",
        "/..",
        "/../",
        "/x/..",
        "/%2e",
        "/%2e/",
        "/..;/",
        "/;",
        "/;x",
        "/%3b",
        "%00",
        "%00x",
        "%0a",
        "%0d%0a",
        "%09",
        "?",
        "?x",
        "?/../..",
        "#",
        "#x",
        "%23",
        "%23x",
        "%3F",
        "%3fx",
        "//",
        "///",
        "/*",
        "\\",
        "/\\",
        "%5C",
        "%5c..",
        "%2F",
        "%2f",
        "%2f.",
        "%2f..",
        "%2f%2f",
        "~",
        "%7e",
        "*",
        "%2A",
        "+",
        "%2B",
        ".json",
        "%",
        "%2",
        "%zz",
        "%c0%af",
        "é",
        "%C3%A9",
        "&",
        "%26x",
        "=",
        ":80",
        "%3a",
        "@",
        "%40",
        " ",
        "%a0",
        "|",
        "'",
        "%253f",
        "%2523x",
        "%253Bx",
        "%252f",
        "%255c",
        "%252e",
        "%252f%252e",
        "/%252e%252e",
        "%2525",
    ] {
        all.push(format!("{path}{behind}"));
    }
    for before in [
        "/",
        "/.",
        "/..",
        "/%2e",
        "/%2E%2e",
        "/./",
        "/x/..",
        "/x/%2e%2e",
        "/x/.%2e",
        "/x/..;y",
        "/x/..;",
        "/x/%2e%2e%3b",
        "/;",
        "/;x=1",
        "/;x/;y",
        "/%3b",
        "/%3bx",
        "//",
        "/%2f",
        "%2f",
        "%2f..",
        "/%5c",
        "%5c",
        "/%5c..",
        "\\",
        "/..\\",
        "/\\..",
        "/x\\..",
        "/%c0%ae%c0%ae",
        "/%c0%af",
        "%c0%af",
        "/%e0%80%ae",
        "/%252e%252e",
        "/x/%252e%252e",
        "/x%252f%252e%252e",
        "/x/..%3f",
        "/%253b",
        "/%25c0%25ae%25c0%25ae",
        "%252f",
        "/%u002e",
        "/..%00",
        "/%00",
        "/%20",
        "/%20%20",
        "/...",
        "/.%20",
        "/..%20",
        "/x%2f..",
        "/x%5c..",
        "/x;%2f..",
        "/a;x%2f..",
        "/é",
        "/%C3%A9/..",
        "http://localhost",
        "http:/",
        "/http://localhost",
        "@",
        "/x/../..",
        "?",
        "#",
        "*",
    ] {
        all.push(format!("{before}{path}"));
    }
    for between in [
        "//",
        "/./",
        "/x/../",
        "%2f",
        "%2F",
        "%5c",
        "%5C",
        "\\",
        "/\\",
        "/;/",
        "/;x/",
        "/%3b/",
        "/.;/",
        ";/",
        ";x/",
        ";x=1/",
        "%3bx/",
        "/%2e/",
        "/%2e%2e/",
        "%20/",
        "./",
        ".%20/",
        "%c0%af",
        "%252f",
        "%255c",
        "%253bx/",
        "/%252e/",
        "/x/%252e%252e/",
        "/%20/",
        "/.../",
        "%00/",
        "%2f;x%2f",
        ";x%2f",
        "%3b%2f",
    ] {
        if let Some(tail) = path.strip_prefix('/').filter(|tail| tail.contains('/')) {
            all.push(format!("/{}", tail.replace('/', between)));
            all.push(format!("/{}", tail.replacen('/', between, 1)));
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

const KEY: &str = "key-of-the-one-caller";

const PREFIXES: [(&str, &str); 5] = [
    ("plain", "/v"),
    ("refusing", "/r"),
    ("allowing", "/a"),
    ("slashes", "/s"),
    ("granted", "/v/granted"),
];

async fn start() -> World {
    let upstream = format!("{ECHO}/base\n    allow_plaintext: true");
    let vendors = VENDORS.replace("https://vendor.example/base", &upstream);
    let caller = format!("callers: {{ app: {{ api_key: {{ env: CALLER }}, allow: {ALLOW} }} }}");
    World::with_vendors(&vendors)
        .top(&caller)
        .env("CALLER", KEY)
        .start()
        .await
}

/// Sends it, and checks what became of it. The status.
fn tries(world: &World, vendor: &str, prefix: &str, spelling: &str) -> u16 {
    let target = if spelling.starts_with("http:") {
        spelling.replacen("localhost/", &format!("localhost{prefix}/"), 1)
    } else {
        format!("{prefix}{spelling}")
    };
    let answer = world.proxy.raw(format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
    ));
    let status = status_of(&answer);
    match status {
        200 => {
            let inner = target.strip_prefix("http://localhost").unwrap_or(&target);
            // `/v/grantedx` is below `/v`, and another vendor's.
            let ends = inner[prefix.len()..].chars().next();
            let (vendor, prefix) = match ends {
                None | Some('/' | '?') => (vendor, prefix),
                Some(_) => ("plain", "/v"),
            };
            let arrived = format!("GET /base{}", &inner[prefix.len()..]);
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(body, arrived, "{vendor}: {target}");
            let path = body[4..].split('?').next().unwrap();
            if let Some(found) = forbidden_interpretation(vendor, "GET", path) {
                panic!("{target} reached {vendor}, which may interpret it as {found}");
            }
        }
        400 => {
            // What pingora's parser refuses has no body.
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                body.is_empty() || body.contains("\"bad_request\""),
                "{answer}"
            );
        }
        403 => {}
        404 => assert!(answer.contains("\"no_vendor\""), "{target}: {answer}"),
        _ => panic!("{vendor}: {target}: {answer}"),
    }
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_that_are_authorised_are_the_bytes_that_are_forwarded() {
    let world = start().await;
    let mut passed = 0;
    for line in include_str!("spellings.txt").lines() {
        if line.starts_with('#') {
            continue;
        }
        let (verdict, spelling) = line.split_once(' ').unwrap_or((line, ""));
        for (vendor, prefix) in PREFIXES {
            let status = tries(&world, vendor, prefix, spelling);
            passed += usize::from(status == 200);
            let wanted = match verdict {
                "pass" if vendor == "plain" => Some(200),
                "400" => Some(400),
                "slash" if vendor == "plain" => Some(400),
                _ => None,
            };
            assert!(
                wanted.is_none_or(|wanted| status == wanted),
                "{line}, {vendor}: {status}"
            );
        }
    }
    for path in [
        "/token",
        "/token/info",
        "/api/keys",
        "/v1/secret",
        "/open/x",
    ] {
        for spelling in of(path) {
            for (vendor, prefix) in PREFIXES {
                passed += usize::from(tries(&world, vendor, prefix, &spelling) == 200);
            }
        }
    }
    assert_eq!(world.echo.requests().len(), passed);
    assert!(passed > 500, "only {passed} passed: nothing was shown");
}
