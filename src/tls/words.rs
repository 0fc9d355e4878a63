//! What TLS libraries say, in words for whoever must act on it.
//!
//! rustls prints the names of its own error variants (`invalid peer certificate: UnknownIssuer`,
//! `Other(OtherError(CaUsedAsEndEntity))`), and by the time that an error arrives here it is often text.

/// What certificates are refused for most often. All others are taken apart at their capitals.
const KNOWN: &[(&str, &str)] = &[
    ("BadEncoding", "it cannot be parsed"),
    ("BadSignature", "its signature is wrong"),
    (
        "CaUsedAsEndEntity",
        "it is a CA's certificate, not a server's",
    ),
    (
        "EndEntityUsedAsCa",
        "it was signed with a certificate that is no CA's",
    ),
    ("Expired", "it has expired"),
    ("InvalidPurpose", "it is not meant for this use"),
    ("InvalidSignatureForPublicKey", "its signature is wrong"),
    ("NotValidForName", "it is for another name"),
    ("NotValidYet", "it is not valid yet"),
    ("RequiredEkuNotFound", "it is not meant for this use"),
    ("Revoked", "it was revoked"),
    (
        "UnhandledCriticalExtension",
        "it has a critical extension that is not understood",
    ),
    (
        "UnknownIssuer",
        "it was issued by nobody who is trusted here (`ca:` names whom to trust)",
    ),
    (
        "UnsupportedCertVersion",
        "it is of X.509 version 1 or 2, and must be of version 3",
    ),
    (
        "UnsupportedCriticalExtension",
        "it has a critical extension that is not understood",
    ),
];

/// Wrappers that say nothing.
const WRAPPERS: &[&str] = &["Other", "OtherError", "DnsName", "IpAddress"];

/// Names that are written so.
const NAMES: &[&str] = &["OpenSSL", "IPv4", "IPv6"];

/// `text` of a TLS library without the names of its variants.
#[must_use]
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // For each open parenthesis, whether it was left out.
    let mut open = Vec::new();
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            // What the other side calls itself.
            let end = rest[1..].find('"').map_or(rest.len(), |end| end + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else if first.is_ascii_alphabetic() {
            let end = rest
                .find(|one: char| !one.is_ascii_alphanumeric() && one != '_')
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let holds = after.starts_with('(');
            rest = after;
            if holds && WRAPPERS.contains(&word) {
                open.push(true);
                rest = &rest[1..];
            } else if let Some(said) = said(word) {
                out.push_str(&said);
                if holds {
                    out.push_str(": ");
                    open.push(true);
                    rest = &rest[1..];
                }
            } else {
                out.push_str(word);
            }
        } else {
            let left_out = match first {
                '(' => {
                    open.push(false);
                    false
                }
                ')' => open.pop().unwrap_or(false),
                _ => false,
            };
            if !left_out {
                out.push(first);
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// What the name of a variant means; `None` for any other word.
fn said(word: &str) -> Option<String> {
    if let Some((_, said)) = KNOWN.iter().find(|(known, _)| *known == word) {
        return Some((*said).to_owned());
    }
    let humps = word.chars().filter(char::is_ascii_uppercase).count();
    let is_name = word.starts_with(|first: char| first.is_ascii_uppercase())
        && humps > 1
        && word.contains(|one: char| one.is_ascii_lowercase())
        && !word.contains(|one: char| one.is_ascii_digit() || one == '_')
        && !NAMES.contains(&word);
    is_name.then(|| {
        let mut said = String::with_capacity(word.len() + humps);
        let mut before = ' ';
        for one in word.chars() {
            if one.is_ascii_uppercase() && before.is_ascii_lowercase() {
                said.push(' ');
            }
            said.push(one.to_ascii_lowercase());
            before = one;
        }
        said
    })
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

    use super::*;

    #[test]
    fn names_of_variants_become_words_and_all_else_stays() {
        for (error, words) in [
            (
                Error::InvalidCertificate(CertificateError::UnknownIssuer),
                "invalid peer certificate: it was issued by nobody who is trusted here (`ca:` names whom to trust)",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "received fatal alert: certificate required",
            ),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                "received fatal alert: unknown ca",
            ),
            (
                Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
                "peer is incompatible: no cipher suites in common",
            ),
            (
                Error::General("OpenSSL said no (twice)".into()),
                "unexpected error: OpenSSL said no (twice)",
            ),
        ] {
            assert_eq!(plain(&error.to_string()), words);
        }
        assert_eq!(
            plain("invalid peer certificate: Other(OtherError(UnsupportedCertVersion))"),
            "invalid peer certificate: it is of X.509 version 1 or 2, and must be of version 3"
        );
        let name = "certificate not valid for name \"A.McBob.test\"; certificate is only valid for DnsName(\"b.test\")";
        assert_eq!(
            plain(name),
            "certificate not valid for name \"A.McBob.test\"; certificate is only valid for \"b.test\""
        );
    }
}
