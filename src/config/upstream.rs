//! Where a vendor's requests and its token requests go: URLs that may be given a credential.

use std::net::{IpAddr, Ipv4Addr};

use url::{Host, Url};

use super::file;
use super::reference::Context;
use super::report::Spot;
use super::rules::is_unreserved;
use crate::config::Upstream;
use crate::endpoint::{self, Wrong};

/// Reads `upstream:`.
pub(super) fn upstream(
    entry: &file::Vendor,
    at: &Spot,
    context: &mut Context<'_>,
) -> Option<Upstream> {
    let at = at.key("upstream");
    let Some(text) = &entry.upstream else {
        let hint = "where requests go: `upstream: https://host[:port][/base]`";
        context.report.missing(&at, hint);
        return None;
    };
    let allow_plaintext = entry.allow_plaintext.unwrap_or(false);
    let url = web_url(
        text,
        allow_plaintext,
        "the credential travels",
        &at,
        context,
    )?;
    let wrong = if url.query().is_some() || url.fragment().is_some() {
        Some("must not have a query or fragment")
    } else {
        // The parser resolves dot segments and more; what it gives back must be what was written.
        let (_, rest) = text.split_once("://").unwrap_or_default();
        let written = rest.find(['/', '\\']).map_or("", |start| &rest[start..]);
        let base = url.path();
        plain_path(written, |b| is_unreserved(b) || b"!$&'()+,=:@".contains(&b)).or_else(|| {
            (written.trim_end_matches('/') != base.trim_end_matches('/'))
                .then_some("has a path that is not in its simplest form")
        })
    };
    if let Some(message) = wrong {
        let hint = "written `https://host[:port][/base]`";
        context.report.wrong(&at, message, hint);
        return None;
    }
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    if let Ok(address) = host.parse()
        && is_link_local(address)
        && !entry.allow_link_local.unwrap_or(false)
    {
        context.report.wrong(
            &at,
            "is a link-local address, where clouds keep their machines' credentials",
            "if it is meant: `allow_link_local: true`",
        );
    }
    Some(Upstream {
        tls: url.scheme() == "https",
        host,
        port: url.port_or_known_default()?,
        base: url.path().trim_end_matches('/').to_owned(),
    })
}

/// An `https://` URL without a user, or an `http://` one where that was asked for. `clear` begins
/// a sentence that ends in "in clear". The URL itself is in no message: it may hold a password.
pub(super) fn web_url(
    text: &str,
    allow_plaintext: bool,
    clear: &str,
    at: &Spot,
    context: &mut Context<'_>,
) -> Option<Url> {
    let report = &mut context.report;
    let url = match endpoint::web(text) {
        Ok(url) => url,
        Err(Wrong::NotUrl) => {
            report.wrong(at, "is not an https:// URL", "");
            return None;
        }
        Err(Wrong::Login) => {
            report.wrong(at, Wrong::Login, "credentials belong under `auth:`");
            return None;
        }
        Err(wrong) => {
            report.wrong(at, wrong, wrong.hint());
            return None;
        }
    };
    if url.scheme() == "http" {
        if !allow_plaintext {
            report.wrong(
                at,
                "is not an https:// URL",
                format!("`allow_plaintext: true` accepts it; {clear} in clear"),
            );
            return None;
        }
        report.warn(at, format!("{clear} in clear"), "use https://");
    }
    Some(url)
}

/// Where clouds keep their metadata services: 169.254.0.0/16 (RFC 3927) and `fe80::/10`, however the
/// former is wrapped into an IPv6 address: mapped, compatible (RFC 4291 §2.5.5) or translated
/// (RFC 6052 §2.1); and `fd00:ec2::/32`, which is Amazon's for the same.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            let wrapped = matches!(bits >> 32, 0 | 0xffff | 0x0064_ff9b_0000_0000_0000_0000);
            let inner = u32::try_from(bits & 0xffff_ffff).map(Ipv4Addr::from_bits);
            address.is_unicast_link_local()
                || bits >> 96 == 0xfd00_0ec2
                || (wrapped && inner.is_ok_and(|v4| v4.is_link_local()))
        }
    }
}

/// What is wrong with a path of which every segment counts.
pub(super) fn plain_path(path: &str, is_allowed: impl Fn(u8) -> bool) -> Option<&'static str> {
    if path.contains("//") {
        Some("must not have an empty segment")
    } else if path
        .split('/')
        .any(|segment| segment == "." || segment == "..")
    {
        Some("must not have a dot segment")
    } else if !path.bytes().all(|b| b == b'/' || is_allowed(b)) {
        Some("has a character that is not allowed in it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_known_in_every_disguise() {
        for (address, want) in [
            ("169.254.169.254", true),
            ("fe80::1", true),
            ("febf::1", true),
            ("::ffff:169.254.169.254", true),
            ("::169.254.169.254", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("fd00:ec2::254", true),
            ("fd00:ec3::254", false),
            ("169.253.0.1", false),
            ("10.0.0.1", false),
            ("::1", false),
            ("fec0::1", false),
            ("2001:db8::a9fe:a9fe", false),
        ] {
            assert_eq!(is_link_local(address.parse().unwrap()), want, "{address}");
        }
    }
}
