//! Any request target against vendors with every kind of rule. The check is independent of the code
//! under test: it interprets paths as the servers behind us might.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use countersign::config::{Callers, Config, Secrets};
use countersign::metrics::Metrics;
use countersign::request::caller::Caller;
use countersign::request::decide::{Ask, decide};
use countersign::request::path::{Target, split_absolute};
use countersign::request::vendor::{Routes, Vendor};

/// One vendor for each kind of rule, all under `/base` of their upstreams.
pub const VENDORS: &str = r#"
  plain:
    prefix: /v
    hosts: [ v.internal ]
    upstream: https://vendor.example/base
  refusing:
    prefix: /r
    upstream: https://vendor.example/base
    refuse: [ "/base/token", "/base/token/**", "/base/v*/secret", "/base/v*/secret/**", "!GET /base/token/info" ]
  allowing:
    prefix: /a
    upstream: https://vendor.example/base
    allow: [ "/base/api/**", "!/base/api/keys", "!/base/api/keys/**" ]
  slashes:
    prefix: /s
    upstream: https://vendor.example/base
    encoded_slash: pass
    refuse: [ "/base/token", "/base/token/**", "!GET /base/token/info" ]
  granted:
    prefix: /v/granted
    upstream: https://vendor.example/base
    encoded_slash: pass
"#;

/// The caller's `allow` rules.
pub const ALLOW: &str = r#"[ plain, refusing, allowing, slashes, "granted /open/*" ]"#;

static SETUP: LazyLock<(Routes<Vendor>, Arc<Caller>)> = LazyLock::new(|| {
    let digest = "0".repeat(64);
    let yaml = format!(
        "callers: {{ app: {{ api_key: {{ sha256: \"{digest}\" }}, allow: {ALLOW} }} }}\nvendors:{VENDORS}"
    );
    let config = Config::parse(&yaml, Path::new("proxy.yaml"), Secrets::FormOnly).unwrap();
    let metrics = Metrics::new();
    let routes = Routes::new(config.vendors.iter().map(|vendor| {
        let ready = Vendor::new(vendor, None, metrics.vendor(&vendor.name));
        (vendor.prefix.clone(), vendor.hosts.clone(), Arc::new(ready))
    }));
    let Callers::Known(callers) = &config.callers else {
        unreachable!("callers are configured")
    };
    (routes, Arc::new(Caller::new(&callers[0])))
});

/// Runs one input: `data` is a request target.
///
/// # Panics
/// When a path is forwarded that a server could interpret as a forbidden one.
pub fn run(data: &[u8]) {
    let (routes, caller) = &*SETUP;
    let Ok((_, raw)) = split_absolute(data) else {
        return;
    };
    let Ok(target) = Target::parse(raw) else {
        return;
    };
    assert!(raw.starts_with(target.path.as_bytes()));
    for (method, authority) in [("GET", "localhost:8080"), ("POST", "V.internal")] {
        let ask = Ask {
            method,
            target,
            authority,
            server_name: None,
        };
        let decision = decide(routes, ask, Ok(caller.clone()));
        let (Ok(sent), Some(vendor)) = (&decision.path, decision.vendor) else {
            continue;
        };
        let rest = sent
            .strip_prefix("/base")
            .expect("the path begins with the base");
        assert!(target.path.ends_with(rest), "{target:?} became {sent}");
        assert!(raw.starts_with(b"/"), "{target:?}");
        if let Some(path) = forbidden_interpretation(&vendor.name, method, sent) {
            panic!(
                "{method} {sent} to {} can be interpreted as {path}",
                vendor.name
            );
        }
    }
}

/// Returns an interpretation of the path that this vendor's rules, or its base, forbid.
#[must_use]
pub fn forbidden_interpretation(vendor: &str, method: &str, sent: &str) -> Option<String> {
    interpretations(sent).into_iter().find(|read| {
        let under = |root: &str| read == root || read.starts_with(&format!("{root}/"));
        let parts: Vec<&str> = read.split('/').collect();
        let forbidden = match vendor {
            "refusing" | "slashes" if under("/base/token") => {
                // An exception also holds for the path with parameters.
                let bare = read.replace("%3b", ";");
                method != "GET" || bare.split(';').next() != Some("/base/token/info")
            }
            "refusing" => parts.len() > 3 && parts[2].starts_with('v') && parts[3] == "secret",
            "allowing" => {
                // An allowed path is also allowed with parameters.
                let bare = without_parameters(read.replace("%3b", ";").as_bytes());
                let allowed = bare == b"/base/api" || bare.starts_with(b"/base/api/");
                !allowed || under("/base/api/keys")
            }
            "granted" => parts.len() > 4 || !under("/base/open"),
            _ => false,
        };
        forbidden || !under("/base")
    })
}

/// Returns the path as servers are known to interpret it: not decoded, decoded once or twice; cut
/// at a `?` or `#` that decoding reveals; parameters dropped before or after decoding, or not at
/// all; empty and dot segments resolved; in lower case and without a final slash.
#[must_use]
pub fn interpretations(path: &str) -> Vec<String> {
    // These are equivalent (RFC 3986 §6.2.2.2).
    let raw = decode(path.as_bytes(), |byte| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
    });
    let all = |_: u8| true;
    let decoded = decode(&raw, all);
    let bare = decode(&without_parameters(&raw), all);
    let mut paths = vec![raw.clone(), without_parameters(&raw)];
    for once in [decoded, bare] {
        let twice = decode(&once, all);
        let bare_twice = decode(&without_parameters(&once), all);
        for read in [once, twice, bare_twice] {
            let ends = read.iter().position(|byte| matches!(byte, b'?' | b'#'));
            let cut = read[..ends.unwrap_or(read.len())].to_vec();
            for read in [cut, read] {
                paths.extend([without_parameters(&read), read]);
            }
        }
    }
    for path in &mut paths {
        *path = resolved(path);
    }
    let mut texts: Vec<String> = paths
        .iter()
        .map(|path| String::from_utf8_lossy(path).to_lowercase())
        .collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

/// Decodes the escapes of `wanted` bytes once, and the overlong encodings that lax decoders accept.
fn decode(path: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        let digits = path.get(at + 1..at + 3);
        let byte = digits
            .filter(|_| path[at] == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
            .filter(|byte| wanted(*byte));
        decoded.push(byte.unwrap_or(path[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    for (overlong, means) in [
        (&b"\xc0\xaf"[..], b'/'),
        (b"\xc0\xae", b'.'),
        (b"\xe0\x80\xaf", b'/'),
    ] {
        while let Some(at) = decoded
            .windows(overlong.len())
            .position(|some| some == overlong)
        {
            decoded.splice(at..at + overlong.len(), [means]);
        }
    }
    decoded
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/');
    let bare: Vec<&[u8]> = segments
        .map(|segment| {
            segment
                .split(|byte| *byte == b';')
                .next()
                .unwrap_or_default()
        })
        .collect();
    bare.join(&b'/')
}

fn resolved(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut whole = vec![b'/'];
    whole.extend(segments.join(&b'/'));
    whole
}
