//! Header fields of requests and responses: which are accepted as well-formed, and which remain.

use countersign::config::Upstream;
use countersign::downstream::raw_head::{check_raw_head, request_id};
use countersign::request::headers::{
    HOP_BY_HOP, StrippedHeaders, authority, check_fields, check_names, stripped_from_response,
};
use countersign::request::references::{link, location};
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION};

/// Runs one input: `data` is the head of a request or of a response, from the first line on.
///
/// # Panics
/// When a field passes that must not.
pub fn run(data: &[u8]) {
    if check_raw_head(data).is_ok() {
        let whole = String::from_utf8_lossy(data);
        // The parser never passes on a head that ends in the middle of a CRLF.
        let whole = whole
            .trim_start_matches(['\r', '\n'])
            .trim_end_matches('\r');
        let unfolded = whole.replace("\r\n", "");
        assert!(!unfolded.contains(['\r', '\n']), "{whole:?}");
    }
    let mut fields = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let value = line[colon + 1..].trim_ascii();
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(&line[..colon]),
            HeaderValue::from_bytes(value),
        ) {
            fields.append(name, value);
        }
    }
    if let Ok(authority) = authority(&fields, None) {
        assert!(
            !authority.contains(['@', '/', ' ', '\\', '#', '?', ',', '%']),
            "{authority}"
        );
    }
    let id = request_id(&fields);
    assert!(
        id.to_str().is_ok_and(|id| (1..=128).contains(&id.len())),
        "{id:?}"
    );
    request(&fields);
    for prefix in ["", "/v"] {
        response(&fields, prefix);
    }
}

fn request(fields: &HeaderMap) {
    // The names that a vendor permits.
    let permitted = [
        HeaderName::from_static("x_real_ip"),
        HeaderName::from_static("x_y"),
    ];
    if check_fields(fields).is_err() || check_names(fields, &permitted).is_err() {
        return;
    }
    let codings = fields.get_all("transfer-encoding").iter().count();
    let lengths = fields.get_all("content-length").iter().count();
    assert!(lengths <= 1 && codings <= 1, "{fields:?}");
    let stripped = StrippedHeaders::new([HeaderName::from_static("customeruri")]);
    for h2 in [false, true] {
        let mut left = fields.clone();
        let lookalikes = stripped.lookalikes_in_request(fields, false);
        for name in stripped
            .in_request(fields, false, h2)
            .iter()
            .chain(&lookalikes)
        {
            left.remove(name);
        }
        for name in left.keys() {
            // CGI servers do not distinguish the two.
            let plain = name.as_str().replace('_', "-");
            let secret = matches!(
                plain.as_str(),
                "authorization"
                    | "proxy-authorization"
                    | "cookie"
                    | "x-api-key"
                    | "x-countersign-key"
                    | "x-venafi-api-key"
                    | "login"
                    | "password"
                    | "customeruri"
                    | "forwarded"
                    | "x-original-url"
                    | "x-rewrite-url"
                    | "x-http-method-override"
                    | "x-real-ip"
                    | "x-host"
                    | "remote-user"
            );
            assert!(
                !secret
                    && !plain.starts_with("x-forwarded-")
                    && !plain.starts_with("x-ssl-client-"),
                "{name} passes"
            );
            let of_connection = *name == CONNECTION || HOP_BY_HOP.contains(name);
            assert!(!h2 || name == "te" || !of_connection, "{name} passes");
        }
    }
}

fn response(fields: &HeaderMap, prefix: &str) {
    let mut left = fields.clone();
    for name in stripped_from_response(fields, false, false) {
        left.remove(&name);
    }
    let nominated: Vec<String> = fields
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase())
        .filter(|name| name != "content-length" && name != "transfer-encoding")
        .collect();
    for (name, value) in &left {
        assert!(name != "set-cookie" && name != CONNECTION, "{name} passes");
        assert!(
            !nominated.iter().any(|nominee| nominee == name.as_str()),
            "{name} passes"
        );
        let word = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        assert!(
            name != "proxy-status" || !word.contains("countersign"),
            "{word}"
        );
    }
    let upstream = Upstream {
        tls: true,
        host: "vendor.example".into(),
        port: 443,
        base: "/base".into(),
    };
    for value in fields.get_all(LOCATION) {
        let Some(ours) = location(value, &upstream, prefix) else {
            continue;
        };
        let (path, prefix) = (ours.as_bytes(), prefix.as_bytes());
        let leaves = matches!(path, [b'/' | b'\\', b'/' | b'\\', ..]);
        assert!(
            !leaves && path.starts_with(b"/"),
            "{value:?} became {ours:?}"
        );
        assert!(path.starts_with(prefix), "{value:?} became {ours:?}");
    }
    for value in fields.get_all(LINK) {
        if let Some(ours) = link(value, &upstream, prefix) {
            // A rewritten link must not be rewritten again.
            assert!(
                link(&ours, &upstream, prefix).is_none() || prefix.is_empty(),
                "{value:?} became {ours:?}"
            );
        }
    }
}
