//! One vendor: a way in, an upstream, what may pass, one credential.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use url::{Host, Url};

use super::auth;
use super::file;
use super::presets::{self, Preset};
use super::reference::Context;
use super::report::{Spot, list};
use super::rules::{self, covers, is_unreserved};
use crate::config::{Auth, Limits, PathRule, Timeouts, Upstream, Vendor};

/// Reads `vendors:`, presets already merged. What was wrong is left out.
pub(super) fn vendors(
    written: &file::Entries<file::Vendor>,
    context: &mut Context<'_>,
) -> Vec<Vendor> {
    let at = Spot::default().key("vendors");
    let mut taken = Taken::default();
    let mut vendors = Vec::with_capacity(written.0.len());
    for (name, entry) in &written.0 {
        let at = at.key(name);
        if let Some(entry) = entry {
            vendors.extend(vendor(name, entry, &mut taken, &at, context));
        }
        // After everything inside, so that it does not count as what is wrong there.
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || !name.bytes().all(is_plain) {
            let hint = "names are letters, digits, `.`, `_` and `-`";
            context
                .report
                .wrong_key(&at, "is not a vendor's name", hint);
        } else if name == "none" {
            let hint = "metrics call requests `none` that reached no vendor";
            context
                .report
                .wrong_key(&at, "is not a vendor's name", hint);
        }
    }
    vendors
}

/// Ways in, and the vendors that have them.
#[derive(Default)]
struct Taken<'f> {
    prefixes: HashMap<String, &'f str>,
    hosts: HashMap<String, &'f str>,
}

fn vendor<'f>(
    name: &'f str,
    entry: &'f file::Vendor,
    taken: &mut Taken<'f>,
    at: &Spot,
    context: &mut Context<'_>,
) -> Option<Vendor> {
    // One that is not known was reported when presets were merged.
    let preset = entry.preset.as_deref().and_then(presets::find);
    let prefix = prefix(name, entry, taken, at, context);
    let hosts = hosts(name, entry, taken, at, context);
    let allow_plaintext = entry.allow_plaintext.unwrap_or(false);
    let upstream = upstream(entry, at, context);
    let client_cert = entry
        .client_cert
        .as_ref()
        .and_then(|files| context.cert_files(files, &at.key("client_cert")));
    if client_cert.is_some() && upstream.as_ref().is_some_and(|upstream| !upstream.tls) {
        context.report.wrong_key(
            &at.key("client_cert"),
            "is never shown to an `http://` upstream",
            "a certificate is part of the TLS handshake: use https://, or remove it",
        );
    }
    let ca = entry
        .ca
        .as_ref()
        .map(|path| context.roots(path, &at.key("ca")));
    let mut guarded = Vec::new();
    let auth = entry.auth.as_ref().map(|auth| {
        auth::auth(
            auth,
            auth::Around {
                upstream: upstream.as_ref(),
                client_cert: client_cert.as_ref(),
                allow_plaintext,
            },
            &at.key("auth"),
            context,
        )
    });
    if let (Some(upstream), Some(Some(auth))) = (&upstream, &auth) {
        guarded = login_rules(auth, upstream);
    }
    let base = upstream.as_ref().map_or("", |upstream| &upstream.base);
    let (refuse, allow) = path_rules(entry, preset, base, guarded, at, context);
    Some(Vendor {
        name: name.to_owned(),
        preset: entry.preset.clone(),
        prefix: prefix?,
        hosts,
        upstream: upstream?,
        auth: match auth {
            // Not what the file says: it has been found wrong.
            Some(None) => return None,
            Some(Some(auth)) => Some(auth),
            None => None,
        },
        client_cert,
        ca,
        allow_plaintext,
        allow_link_local: entry.allow_link_local.unwrap_or(false),
        timeouts: timeouts(entry.timeouts.as_ref()),
        limits: Limits {
            in_flight: entry
                .limits
                .as_ref()
                .and_then(|limits| limits.in_flight)
                .unwrap_or(1024),
            body: entry
                .limits
                .as_ref()
                .and_then(|limits| limits.body)
                .map_or(100 << 20, |size| size.0),
        },
        cookies_pass: matches!(entry.cookies, Some(file::Cookies::Pass)),
        retry_on_401: entry.retry_on_401.unwrap_or(true),
        refuse,
        allow,
        encoded_slash_pass: matches!(entry.encoded_slash, Some(file::EncodedSlash::Pass)),
        trailing_dots_ignored: preset.is_some_and(|preset| preset.trailing_dots_ignored),
    })
}

fn prefix<'f>(
    name: &'f str,
    entry: &file::Vendor,
    taken: &mut Taken<'f>,
    at: &Spot,
    context: &mut Context<'_>,
) -> Option<String> {
    let at = at.key("prefix");
    let prefix = entry.prefix.clone().unwrap_or_else(|| format!("/{name}"));
    let wrong = if !prefix.starts_with('/') {
        Some("must begin with `/`")
    } else if prefix == "/" {
        None
    } else if prefix.ends_with('/') {
        Some("must not end with `/`")
    } else {
        plain_path(&prefix, |b| is_unreserved(b))
    };
    match wrong {
        // A name that makes no prefix is reported as a name.
        Some(_) if entry.prefix.is_none() && !matches!(name, "." | "..") => return None,
        Some(message) => {
            let hint = "prefixes are written `/acme` or `/certificates/acme`";
            context.report.wrong(&at, message, hint);
            return None;
        }
        None => {}
    }
    if let Some(other) = taken.prefixes.insert(prefix.clone(), name) {
        context.report.wrong(
            &at,
            format!("is also the prefix of `{other}`"),
            "every vendor needs a prefix of its own",
        );
    }
    Some(prefix)
}

/// What is wrong with a path of which every segment counts.
fn plain_path(path: &str, is_allowed: impl Fn(u8) -> bool) -> Option<&'static str> {
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

fn hosts<'f>(
    name: &'f str,
    entry: &file::Vendor,
    taken: &mut Taken<'f>,
    at: &Spot,
    context: &mut Context<'_>,
) -> Vec<String> {
    let mut hosts = Vec::new();
    for (nth, host) in entry.hosts.iter().flatten().enumerate() {
        let at = at.key("hosts").index(nth);
        let Some(host) = host else { continue };
        let host = host.to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if host.len() > 253 || !host.split('.').all(is_label) {
            context.report.wrong(
                &at,
                "is not a host name",
                "written `tpp.proxy.internal`: no port, no wildcard, no trailing dot",
            );
            continue;
        }
        if let Some(other) = taken.hosts.insert(host.clone(), name) {
            context.report.wrong(
                &at,
                format!("already leads to `{other}`"),
                "a host leads to one vendor",
            );
        }
        hosts.push(host);
    }
    hosts
}

fn upstream(entry: &file::Vendor, at: &Spot, context: &mut Context<'_>) -> Option<Upstream> {
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
    let url = match Url::parse(text) {
        Ok(url) if url.has_host() && matches!(url.scheme(), "https" | "http") => url,
        Ok(_) | Err(_) => {
            report.wrong(at, "is not an https:// URL", "");
            return None;
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        report.wrong(
            at,
            "must not have a user or password in it",
            "credentials belong under `auth:`",
        );
        return None;
    }
    if text
        .bytes()
        .any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b == b'\\')
    {
        report.wrong(at, "has a character that no URL may have", "");
        return None;
    }
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

/// 169.254.0.0/16 and fe80::/10, however the former is wrapped into an IPv6 address: mapped,
/// compatible (RFC 4291 §2.5.5) or translated (RFC 6052 §2.1).
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            let [a, b, c, d, e, f, g, h] = address.segments();
            let wrapped = matches!(
                [a, b, c, d, e, f],
                [0, 0, 0, 0, 0, 0 | 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0]
            );
            let inner = Ipv4Addr::from_bits(u32::from(g) << 16 | u32::from(h));
            is_unicast_link_local(address) || (wrapped && inner.is_link_local())
        }
    }
}

fn is_unicast_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// Paths of the upstream's own server where tokens are handed out, revoked or asked for.
fn login_rules(auth: &Auth, upstream: &Upstream) -> Vec<Guarded> {
    let on_upstream = |url: &Url| {
        // Where http:// and https:// of one host both stand on their default ports, it is one
        // server.
        let port = |port: u16| if port == 80 { 443 } else { port };
        let host = url.host_str().unwrap_or_default();
        host.trim_matches(['[', ']']) == upstream.host
            && url.port_or_known_default().map(port) == Some(port(upstream.port))
    };
    let path = |url: &Url| comparable(url.path().trim_end_matches('/'));
    let exact = |url: &Url| Guarded {
        rules: vec![path(url), path(url) + "/"],
        never: vec![path(url), path(url) + "/"],
    };
    let urls = match auth {
        Auth::ClientCredentials(client) => vec![&client.token_url],
        Auth::AuthorizationCode(client) => vec![&client.token_url, &client.authorize_url],
        Auth::Vedauth(server) if on_upstream(&server.url) => {
            let path = path(&server.url);
            return vec![Guarded {
                rules: vec![path.clone(), format!("{path}/**")],
                never: VEDAUTH_LOGINS.map(|login| path.clone() + login).to_vec(),
            }];
        }
        Auth::Vedauth(_)
        | Auth::Bearer { .. }
        | Auth::Basic { .. }
        | Auth::Headers(_)
        | Auth::Query(_) => vec![],
    };
    let on_upstream = urls.into_iter().filter(|url| on_upstream(url));
    on_upstream.map(exact).collect()
}

/// Rules nobody has to write, and paths no exception may open.
struct Guarded {
    rules: Vec<String>,
    never: Vec<String>,
}

/// `path` as it is when paths are compared: %xx of unreserved characters decoded, parameters
/// dropped.
fn comparable(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        let (segment, _) = segment.split_once(';').unwrap_or((segment, ""));
        let mut decoded = String::with_capacity(segment.len());
        let mut rest = segment;
        while let Some(at) = rest.find('%') {
            decoded.push_str(&rest[..at]);
            let byte = rest
                .get(at + 1..at + 3)
                .and_then(|digits| u8::from_str_radix(digits, 16).ok());
            match byte.filter(|byte| is_unreserved(*byte)) {
                Some(byte) => {
                    decoded.push(char::from(byte));
                    rest = &rest[at + 3..];
                }
                None => {
                    decoded.push('%');
                    rest = &rest[at + 1..];
                }
            }
        }
        decoded.push_str(rest);
        segments.push(decoded);
    }
    segments.join("/")
}

fn path_rules(
    entry: &file::Vendor,
    preset: Option<&Preset>,
    base: &str,
    guarded: Vec<Guarded>,
    at: &Spot,
    context: &mut Context<'_>,
) -> (Vec<PathRule>, Vec<PathRule>) {
    let read = |written: &[Option<String>], at: &Spot, context: &mut Context<'_>| {
        let mut read: Vec<(usize, PathRule)> = Vec::new();
        for (nth, text) in written.iter().enumerate() {
            let Some(text) = text else { continue };
            match rules::path_rules(text) {
                Ok(rules) => read.extend(rules.into_iter().map(|rule| (nth, rule))),
                Err((message, hint)) => context.report.wrong(&at.index(nth), message, hint),
            }
        }
        read
    };
    let of_preset = |texts: &[String]| -> Vec<PathRule> {
        let rules = texts.iter().filter_map(|text| rules::path_rules(text).ok());
        let rules: Vec<PathRule> = rules.flatten().collect();
        // Behind a gateway the vendor's paths begin with the base; a base that is part of the
        // vendor's own paths is in them already.
        let below = rules
            .iter()
            .filter(|_| !base.is_empty())
            .map(|rule| PathRule {
                pattern: format!("{base}{}", rule.pattern),
                ..rule.clone()
            });
        rules.iter().cloned().chain(below).collect()
    };

    let mut refuse = preset.map_or(vec![], |preset| of_preset(&preset.refuse));
    let refuse_at = at.key("refuse");
    for (nth, rule) in read(
        entry.refuse.as_deref().unwrap_or_default(),
        &refuse_at,
        context,
    ) {
        let mut never = guarded.iter().flat_map(|guarded| &guarded.never);
        if rule.exception && never.any(|path| covers(&rule.pattern, path)) {
            context.report.wrong(
                &refuse_at.index(nth),
                "opens the path where this vendor's tokens are handed out",
                "it stays refused: whoever calls it could take the credential along",
            );
        }
        refuse.push(rule);
    }
    for pattern in guarded.into_iter().flat_map(|guarded| guarded.rules) {
        let rule = PathRule {
            exception: false,
            method: None,
            pattern,
        };
        if !refuse.contains(&rule) {
            refuse.push(rule);
        }
    }

    let widest = preset.map_or(vec![], |preset| of_preset(&preset.allow));
    let allow_at = at.key("allow");
    let Some(written) = &entry.allow else {
        return (refuse, widest);
    };
    let own = read(written, &allow_at, context);
    if !own.is_empty() && own.iter().all(|(_, rule)| rule.exception) {
        let hint = "add what may pass, for example `/**`";
        context
            .report
            .wrong(&allow_at, "has only exceptions, so nothing passes", hint);
    }
    for (nth, rule) in &own {
        if !rule.exception && !widest.is_empty() && !widest.iter().any(|wide| within(rule, wide)) {
            let known: Vec<&str> = widest.iter().map(|rule| rule.pattern.as_str()).collect();
            context.report.wrong(
                &allow_at.index(*nth),
                "passes more than the preset does",
                format!(
                    "the preset allows {}, and can only be narrowed",
                    list(&known)
                ),
            );
        }
    }
    (refuse, own.into_iter().map(|(_, rule)| rule).collect())
}

/// Whether all that `rule` covers is plainly covered by `wide` (`/…/**`) as well.
fn within(rule: &PathRule, wide: &PathRule) -> bool {
    let (Some(root), None) = (wide.pattern.strip_suffix("**"), &wide.method) else {
        return rule.pattern.eq_ignore_ascii_case(&wide.pattern);
    };
    let start = rule.pattern.get(..root.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(root))
}

fn timeouts(written: Option<&file::Timeouts>) -> Timeouts {
    let none = file::Timeouts::default();
    let written = written.unwrap_or(&none);
    let or = |span: Option<file::Span>, seconds| {
        span.map_or(Duration::from_secs(seconds), |span| span.0)
    };
    Timeouts {
        connect: or(written.connect, 5),
        first_byte: or(written.first_byte, 60),
        idle: or(written.idle, 60),
        total: or(written.total, 0),
        keepalive: or(written.keepalive, 30),
        token_wait: or(written.token_wait, 5),
    }
}

/// Below a vedauth server's URL: what hands out, renews or destroys a grant.
const VEDAUTH_LOGINS: [&str; 9] = [
    "/authorize/certificate",
    "/authorize/oauth",
    "/authorize/jwt",
    "/authorize/integrated",
    "/authorize/device",
    "/authorize/token",
    "/authorize",
    "/revoke/token",
    "/revoke",
];

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
            ("169.253.0.1", false),
            ("10.0.0.1", false),
            ("::1", false),
            ("fec0::1", false),
            ("2001:db8::a9fe:a9fe", false),
        ] {
            assert_eq!(is_link_local(address.parse().unwrap()), want, "{address}");
        }
    }

    #[test]
    fn paths_are_compared_decoded_and_without_parameters() {
        assert_eq!(comparable("/%74oken;x=1/%2F%7e"), "/token/%2F~");
        assert_eq!(comparable("/a%"), "/a%");
    }
}
