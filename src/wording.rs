//! Errors of libraries, in plain words for the person who must act.
//!
//! TLS and DNS libraries print the names of their variants (`UnknownIssuer`,
//! `Other(OtherError(UnsupportedCertVersion))`, `Name("x.")`). [`describe`] is for every text of a
//! library on its way to a log line, `/status`, the page or a command.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// Replaces the known variants' names in `text`. Unknown ones stay.
#[must_use]
pub fn describe(text: &str) -> String {
    let mut said = text.to_owned();
    for around in AROUND {
        said = said.replace(around, "");
    }
    for (marker, words_of) in [
        ("invalid peer certificate: ", certificate as Words),
        ("received fatal alert: ", alert),
        ("received corrupt message of type ", corrupt),
        ("peer is incompatible: ", split),
        ("peer misbehaved: ", split),
        ("keys may not be consistent: ", split),
    ] {
        said = after_each(&said, marker, words_of);
    }
    for (opening, closing) in [
        ("DnsName(\"", "\")"),
        ("IpAddress(", ")"),
        ("Name(\"", "\")"),
    ] {
        said = unwrap_each(&said, opening, closing);
    }
    expiry(query(&said)).into_owned()
}

/// Splits a name such as `ConnectTimedout` or `TLSHandshakeFailure` into words: `connect timed
/// out`.
#[must_use]
pub fn describe_name(name: &str) -> String {
    separated(name, ' ').replace("timedout", "timed out")
}

type Words = fn(&str) -> String;

/// Describes why a certificate was refused.
fn certificate(variant: &str) -> String {
    match variant {
        "BadEncoding" => "it cannot be parsed".to_owned(),
        "BadSignature" | "InvalidSignatureForPublicKey" => "its signature is wrong".to_owned(),
        "CaUsedAsEndEntity" => "it is a CA's certificate, not a server's".to_owned(),
        "EndEntityUsedAsCa" => "it was signed with a certificate that is no CA's".to_owned(),
        "Expired" => "it has expired".to_owned(),
        "InvalidPurpose" | "RequiredEkuNotFound" => "it is not meant for this use".to_owned(),
        "NotValidForName" => "it is for another name".to_owned(),
        "NotValidYet" => "it is not valid yet".to_owned(),
        "Revoked" => "it was revoked".to_owned(),
        "UnhandledCriticalExtension" | "UnsupportedCriticalExtension" => {
            "it has a critical extension that is not understood".to_owned()
        }
        "UnknownIssuer" => {
            "its issuer is not trusted (`ca:` specifies the trusted issuers)".to_owned()
        }
        "UnknownRevocationStatus" => "its revocation status is unknown".to_owned(),
        "UnsupportedCertVersion" => {
            "it is of X.509 version 1 or 2, and must be of version 3".to_owned()
        }
        other => describe_name(other.trim_end_matches("Context")),
    }
}

/// Returns the name of a TLS alert by RFC 8446 §6.
fn alert(variant: &str) -> String {
    let name = separated(variant, '_');
    let meaning = match variant {
        "CertificateRequired" => "it demands a client certificate",
        "HandshakeFailure" => {
            "no TLS version or cipher suite in common, or it demands a client certificate"
        }
        "BadCertificate" | "UnsupportedCertificate" | "CertificateUnknown" => {
            "it does not accept the client certificate"
        }
        "CertificateExpired" => "the client certificate has expired",
        "CertificateRevoked" => "the client certificate is revoked",
        "UnknownCA" => "it does not trust the issuer of the client certificate",
        "ProtocolVersion" => "no TLS version in common",
        "UnrecognisedName" => "it knows no server of this name",
        _ => return name,
    };
    format!("{name} ({meaning})")
}

/// Describes what came instead of a TLS message.
fn corrupt(variant: &str) -> String {
    match variant {
        "InvalidContentType" => "unknown: the peer does not speak TLS".to_owned(),
        other => describe_name(other),
    }
}

fn split(variant: &str) -> String {
    describe_name(variant)
}

/// Replaces the printed variant behind each `marker` by `name_of` its name. Of nested ones, such as
/// `Other(OtherError(Name))`, the innermost counts; fields in braces are dropped.
fn after_each(text: &str, marker: &str, name_of: Words) -> String {
    let mut said = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(marker) {
        let (before, behind) = rest.split_at(at + marker.len());
        said.push_str(before);
        let (name, length) = variant(behind);
        // Plain words begin in lower case, and stay.
        if length > 0 {
            said.push_str(&name_of(name));
        }
        rest = &behind[length..];
    }
    said + rest
}

/// Returns the innermost name of the variant at the start of `text`, and the length of the whole;
/// 0: there is none.
fn variant(text: &str) -> (&str, usize) {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    let (name, behind) = text.split_at(end);
    if !name.starts_with(|c: char| c.is_ascii_uppercase()) {
        return ("", 0);
    }
    if let Some(inside) = behind.strip_prefix('(') {
        let (inner, length) = variant(inside);
        if let (1.., Some(behind)) = (length, inside[length..].strip_prefix(')')) {
            return (inner, text.len() - behind.len());
        }
    }
    (name, end + group(behind))
}

/// Returns the length of the parentheses or braces at the start of `text`, with their content.
fn group(text: &str) -> usize {
    let inside = text.trim_start_matches(' ');
    let mut depth = 0_usize;
    for (at, c) in inside.char_indices() {
        match c {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            // It begins with something else, or this is its end.
            return if at == 0 {
                0
            } else {
                text.len() - inside.len() + at + 1
            };
        }
    }
    0
}

/// Replaces each `opening`…`closing` by its content.
fn unwrap_each(text: &str, opening: &str, closing: &str) -> String {
    let mut said = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(opening) {
        let Some((inner, after)) = behind.split_once(closing) else {
            break;
        };
        said.push_str(before);
        said.push_str(inner);
        rest = after;
    }
    said + rest
}

/// Replaces a resolver's `Query { name: x., query_type: AAAA, query_class: IN }` by `x.`: both
/// address types are queried, and the printed one is the one that came last.
fn query(text: &str) -> Cow<'_, str> {
    let Some((before, behind)) = text.split_once("Query { name: ") else {
        return text.into();
    };
    let (Some((name, _)), Some((_, after))) = (behind.split_once(','), behind.split_once('}'))
    else {
        return text.into();
    };
    format!("{before}{name}{after}").into()
}

/// Replaces seconds since 1970 by a date.
fn expiry(text: Cow<'_, str>) -> Cow<'_, str> {
    for (name, bound, words) in [
        ("certificate expired", "not valid after ", "it expired on "),
        (
            "certificate not valid yet",
            "not valid before ",
            "it is not valid before ",
        ),
    ] {
        let Some((before, behind)) = text.split_once(&format!("{name}: verification time ")) else {
            continue;
        };
        let Some((_, bound)) = behind.split_once(bound) else {
            continue;
        };
        let Some((seconds, rest)) = bound.split_once(' ') else {
            continue;
        };
        let Some(at) = seconds
            .parse()
            .ok()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        else {
            continue;
        };
        let after = rest.split_once(')').map_or("", |(_, after)| after);
        let date = humantime::format_rfc3339_seconds(at);
        return format!("{before}{words}{date}{after}").into();
    }
    text
}

/// Splits `TLSHandshakeFailure` into `tls handshake failure`, with `between` in place of the
/// spaces.
fn separated(name: &str, between: char) -> String {
    let mut said = String::with_capacity(name.len() + 4);
    let letters: Vec<char> = name.chars().collect();
    for (nth, c) in letters.iter().enumerate() {
        let after_small = nth > 0 && !letters[nth - 1].is_ascii_uppercase();
        let before_small = letters.get(nth + 1).is_some_and(char::is_ascii_lowercase);
        if c.is_ascii_uppercase() && nth > 0 && (after_small || before_small) {
            said.push(between);
        }
        said.push(c.to_ascii_lowercase());
    }
    said
}

/// Texts that libraries put before a cause, and that say less.
const AROUND: [&str; 3] = [
    "TLS connect() failed:  TLSHandshakeFailure context: tls connect error cause: ",
    "error sending request: client error (Connect): ",
    "error sending request: client error (SendRequest): ",
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError};

    use super::*;

    /// Like the underlying library's.
    #[derive(Debug, thiserror::Error)]
    #[error("not shown")]
    struct UnsupportedCertVersion;

    #[test]
    fn errors_of_tls_are_words_and_no_variants_names() {
        let other = CertificateError::Other(OtherError(Arc::new(UnsupportedCertVersion)));
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for (error, words) in [
            (
                Error::InvalidCertificate(CertificateError::UnknownIssuer),
                "invalid peer certificate: its issuer is not trusted (`ca:` specifies the trusted issuers)",
            ),
            (
                Error::InvalidCertificate(other),
                "invalid peer certificate: it is of X.509 version 1 or 2, and must be of version 3",
            ),
            (
                Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("a.example").unwrap(),
                    presented: vec![
                        "DnsName(\"b.example\")".into(),
                        "IpAddress(10.0.0.7)".into(),
                    ],
                }),
                "invalid peer certificate: certificate not valid for name \"a.example\"; certificate \
                 is only valid for b.example or 10.0.0.7",
            ),
            (
                Error::InvalidCertificate(CertificateError::ExpiredContext {
                    time: time(1_700_000_000),
                    not_after: time(1_600_000_000),
                }),
                "invalid peer certificate: it expired on 2020-09-13T12:26:40Z",
            ),
            (
                Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    time: time(1_600_000_000),
                    not_before: time(1_700_000_000),
                }),
                "invalid peer certificate: it is not valid before 2023-11-14T22:13:20Z",
            ),
            (
                Error::InvalidCertificate(CertificateError::UnhandledCriticalExtension),
                "invalid peer certificate: it has a critical extension that is not understood",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "received fatal alert: certificate_required (it demands a client certificate)",
            ),
            (
                Error::AlertReceived(AlertDescription::InternalError),
                "received fatal alert: internal_error",
            ),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                "received fatal alert: unknown_ca (it does not trust the issuer of the client \
                 certificate)",
            ),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "received corrupt message of type unknown: the peer does not speak TLS",
            ),
            (
                Error::PeerIncompatible(rustls::PeerIncompatible::NoCipherSuitesInCommon),
                "peer is incompatible: no cipher suites in common",
            ),
        ] {
            assert_eq!(describe(&error.to_string()), words);
        }
    }

    #[test]
    fn what_surrounds_a_cause_stays_and_so_does_what_is_not_known() {
        for (text, words) in [
            (
                "https://v.example/t: error sending request: client error (Connect): invalid peer \
                 certificate: UnknownIssuer",
                "https://v.example/t: invalid peer certificate: its issuer is not trusted (`ca:` specifies the trusted issuers)",
            ),
            (
                "TLS connect() failed:  TLSHandshakeFailure context: tls connect error cause: invalid \
                 peer certificate: UnknownIssuer, SNI: v.example",
                "invalid peer certificate: its issuer is not trusted (`ca:` specifies the trusted issuers), SNI: v.example",
            ),
            (
                "DNS error: no records found for Query { name: Name(\"v.example.\"), query_type: AAAA, \
                 query_class: IN }",
                "DNS error: no records found for v.example.",
            ),
            (
                "invalid peer certificate: Odd { a: [1, (2)], b: \"}\" } at 3",
                "invalid peer certificate: odd\" } at 3",
            ),
            (
                "peer misbehaved: plain words",
                "peer misbehaved: plain words",
            ),
            ("received fatal alert: ", "received fatal alert: "),
            ("Query { name: ", "Query { name: "),
            ("DnsName(\"", "DnsName(\""),
            (
                "certificate expired: verification time x",
                "certificate expired: verification time x",
            ),
            (
                "Connection refused (os error 111)",
                "Connection refused (os error 111)",
            ),
        ] {
            assert_eq!(describe(text), words);
        }
        assert_eq!(
            describe_name("TLSHandshakeFailure"),
            "tls handshake failure"
        );
        assert_eq!(describe_name("ConnectTimedout"), "connect timed out");
        assert_eq!(describe_name("H2Error"), "h2 error");
        assert_eq!(describe_name("InvalidHTTPHeader"), "invalid http header");
        assert_eq!(describe_name(""), "");
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_odd(text in r#"((invalid peer certificate: |received fatal alert: |Query \{ name: |DnsName\("|certificate expired: verification time |not valid after )?[A-Za-z0-9(){}"\\ é.,]{0,12}){0,6}"#) {
            let _ = describe(&text);
        }
    }
}
