//! The URLs of a vendor's requests and token requests, which may receive a credential.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use super::file;
use super::reader::Reader;
use super::report::KeyPath;
use crate::pattern::is_unreserved;

use crate::endpoint::{self, InvalidUrl};

/// The origin and base path requests are sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// TLS, or plaintext where `allow_plaintext` permits it.
    pub tls: bool,
    /// Host name or IP literal (IPv6 without brackets), lower-case.
    pub host: String,
    /// Port, the scheme's default when not written.
    pub port: u16,
    /// The replacement of the prefix: empty, or `/…` without a trailing slash.
    pub base: String,
}

impl Upstream {
    /// Returns the `Host` and `:authority`: IPv6 in brackets, without the scheme's default port.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == if self.tls { 443 } else { 80 } {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Returns host and port, the port always written, as for CONNECT.
    #[must_use]
    pub fn host_and_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Returns `https://host[:port]`, without the base path.
    #[must_use]
    pub fn origin(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }
}

/// Reads `upstream:`.
pub(super) fn upstream(
    entry: &file::Vendor,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<Upstream> {
    let at = at.key("upstream");
    let Some(text) = &entry.upstream else {
        let hint = "where requests go: `upstream: https://host[:port][/base]`";
        reader.report.missing_key(&at, hint);
        return None;
    };
    let allow_plaintext = entry.allow_plaintext.unwrap_or(false);
    let url = web_url(text, allow_plaintext, "the credential travels", &at, reader)?;
    let wrong = if url.query().is_some() || url.fragment().is_some() {
        Some("must not have a query or fragment")
    } else {
        // The parser resolves dot segments and more; the result must be what was written.
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
        reader.report.error(&at, message, hint);
        return None;
    }
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    if !entry.allow_link_local.unwrap_or(false) {
        refuse_link_local(&url, &at, reader);
    }
    Some(Upstream {
        tls: url.scheme() == "https",
        host,
        port: url.port_or_known_default()?,
        base: url.path().trim_end_matches('/').to_owned(),
    })
}

/// Reads an `https://` URL without a user, or an `http://` one where that is permitted. `clear`
/// begins a sentence that ends in "in clear". No message contains the URL: it may hold a password.
pub(super) fn web_url(
    text: &str,
    allow_plaintext: bool,
    clear: &str,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<Url> {
    let report = &mut reader.report;
    let url = match endpoint::web(text) {
        Ok(url) => url,
        Err(InvalidUrl::NotUrl) => {
            report.error(at, "is not an https:// URL", "");
            return None;
        }
        Err(InvalidUrl::Login) => {
            report.error(at, InvalidUrl::Login, "credentials belong under `auth:`");
            return None;
        }
        Err(wrong) => {
            report.error(at, wrong, wrong.hint());
            return None;
        }
    };
    if url.scheme() == "http" {
        if !allow_plaintext {
            report.error(
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

/// Reports a URL whose host is an address of [`is_link_local`].
pub(super) fn refuse_link_local(url: &Url, at: &KeyPath, reader: &mut Reader<'_>) {
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address),
        Some(Host::Domain(_)) | None => return,
    };
    if is_link_local(address) {
        reader.report.error(
            at,
            "is a link-local address or another where clouds keep their machines' credentials",
            "if it is meant: `allow_link_local: true`",
        );
    }
}

/// Tells whether an address may be a cloud's metadata service: link-local (169.254.0.0/16, RFC
/// 3927, and `fe80::/10`), or another of [`METADATA`], however an IPv4 address is wrapped into
/// IPv6.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    let v4 = |address: Ipv4Addr| address.is_link_local() || METADATA.contains(&address);
    match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => {
            address.is_unicast_link_local()
                || METADATA_V6
                    .iter()
                    .any(|(network, length)| address.to_bits() >> (128 - length) == *network)
                || wrapped(address).into_iter().flatten().any(v4)
        }
    }
}

/// Azure's and Alibaba's, whose addresses are not link-local.
const METADATA: [Ipv4Addr; 2] = [
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
];
/// Amazon's `fd00:ec2::/32` and Google's `fd20:ce::/32`: the bits of the network, and their number.
const METADATA_V6: [(u128, u32); 2] = [(0xfd00_0ec2, 32), (0xfd20_00ce, 32)];

/// Returns the IPv4 addresses that packets to `address` may reach.
fn wrapped(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let bits = address.to_bits();
    #[expect(clippy::cast_possible_truncation, reason = "32 of the bits")]
    let at = |shift: u32| Ipv4Addr::from_bits((bits >> shift) as u32);
    let last = matches!(
        bits >> 32,
        // Compatible and mapped (RFC 4291 §2.5.5), translated (RFC 2765 §2.1).
        0 | 0xffff | 0xffff_0000
        // NAT64 (RFC 6052 §2.1).
        | 0x0064_ff9b_0000_0000_0000_0000
    )
        // NAT64 within a network (RFC 8215 §5).
        || bits >> 80 == 0x0064_ff9b_0001
        // ISATAP (RFC 5214 §6.1).
        || matches!((bits >> 32) & 0xffff_ffff, 0x0000_5efe | 0x0200_5efe);
    let six_to_four = bits >> 112 == 0x2002;
    let teredo = bits >> 96 == 0x2001_0000;
    [
        last.then(|| at(0)),
        // RFC 3056 §2; for Teredo the server (RFC 4380 §4).
        (six_to_four || teredo).then(|| at(if six_to_four { 80 } else { 64 })),
        // For Teredo the client, with inverted bits.
        teredo.then(|| Ipv4Addr::from_bits(!at(0).to_bits())),
    ]
}

/// Returns what is wrong with a path of which every segment counts.
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
            ("fd20:ce::254", true),
            ("168.63.129.16", true),
            ("100.100.100.200", true),
            ("::ffff:168.63.129.16", true),
            ("::ffff:0:100.100.100.200", true),
            ("64:ff9b::6464:64c8", true),
            ("64:ff9b:1::a9fe:a9fe", true),
            ("2002:a9fe:a9fe::1", true),
            ("2002:a9fe::", true),
            ("2002:a83f:8110:1:2:3:4:5", true),
            ("2001::a9fe:a9fe", false),
            ("2001:0:a9fe:a9fe::1", true),
            ("2001:0:c000:201:0:0:5601:5601", true),
            ("2001:db8::5efe:a9fe:a9fe", true),
            ("2001:db8::200:5efe:a9fe:a9fe", true),
            ("168.63.129.17", false),
            ("100.100.100.201", false),
            ("2002:808:808::a9fe:a9fe", false),
            ("2001:0:c000:201::1", false),
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
