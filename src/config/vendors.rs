//! One vendor: a route, an upstream, path rules, one credential.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use url::Url;

use super::auth::{self, Auth, CONNECTION_FIELDS};
use super::callers::{self, Callers, Jwt, Rate};
use super::presets::{self, LoginPath};
use super::reader::{Reader, Secrets};
use super::report::KeyPath;
use super::upstream::{Upstream, plain_path, upstream};
use super::{file, path_rules};
use crate::endpoint::{self, InvalidUrl};
use crate::http_fields::is_tchar;
use crate::jwks::KeySource;
use crate::outbound::{Outbound, Unusable};
use crate::pattern::{PathRule, is_unreserved};
use crate::tls::CertFiles;

/// One vendor: a route, an upstream, path rules, one credential.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own in proxy.yaml"
)]
pub struct Vendor {
    /// The key under `vendors:`.
    pub name: String,
    /// The preset it started from.
    pub preset: Option<String>,
    /// The path prefix: whole segments, starting with `/`, without a trailing `/` unless it is `/`
    /// alone.
    pub prefix: String,
    /// Lower-case host names (no port) that lead here with their full path.
    pub hosts: Vec<String>,
    /// The upstream's origin and base path.
    pub upstream: Upstream,
    /// The credential; `None`: nothing is injected.
    pub auth: Option<Auth>,
    /// The client certificate for the upstream.
    pub client_cert: Option<CertFiles>,
    /// The CA file used instead of the system's roots, for the upstream and for token URLs.
    pub ca: Option<PathBuf>,
    /// The server requests the certificate after reading the path; `https://` only.
    pub late_client_auth: bool,
    /// `http://` is accepted for upstream and token URLs.
    pub allow_plaintext: bool,
    /// Outbound CONNECT proxy for the upstream and for token URLs; `None`: that of the environment.
    pub proxy: Option<url::Url>,
    /// Link-local addresses (169.254.0.0/16, `fe80::/10`) are accepted as upstream.
    pub allow_link_local: bool,
    /// The time limits.
    pub timeouts: Timeouts,
    /// The size and rate limits.
    pub limits: Limits,
    /// The breaker's settings.
    pub breaker: Breaker,
    /// `true`: Cookie and Set-Cookie pass.
    pub cookies_pass: bool,
    /// `true` if a vendor's 401 renews the credential and replays the request once.
    pub retry_on_401: bool,
    /// Paths (as sent upstream) that never pass; the preset's, then the file's.
    pub refuse: Vec<PathRule>,
    /// Paths that pass; when empty, all that are not refused.
    pub allow: Vec<PathRule>,
    /// `true` if `%2F` and `%5C` may occur in a path.
    pub encoded_slash_pass: bool,
    /// Names of headers that callers may send although they hold more than letters, digits and `-`.
    pub header_names: Vec<http::HeaderName>,
    /// Login calls that are answered here instead of refused; empty for `login: refuse`.
    pub logins: Vec<LoginPath>,
    /// `true` if our own credential is masked where a response repeats it.
    pub redact_echo: bool,
    /// `true` if trailing dots and blanks of a segment are ignored when rules are compared, as the
    /// vendor's server ignores them (Windows).
    pub trailing_dots_ignored: bool,
}

/// The time limits; zero: no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeouts {
    /// Limit of the TCP connect, and again of the TLS handshake.
    pub connect: Duration,
    /// From the end of the request to the first byte of the response.
    pub first_byte: Duration,
    /// Longest silence in both directions.
    pub idle: Duration,
    /// Longest silence of connections that are meant to be silent: WebSocket and gRPC.
    pub idle_stream: Duration,
    /// Limit of the whole exchange.
    pub total: Duration,
    /// Time for which an unused pooled connection is kept.
    pub keepalive: Duration,
    /// Time for which a request waits for a credential.
    pub token_wait: Duration,
}

/// The size and rate limits; zero: no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Concurrent requests to one vendor.
    pub in_flight: usize,
    /// Size of a request body, bytes.
    pub body: u64,
    /// The rate of requests.
    pub rate: Option<Rate>,
    /// `true` if a vendor's Retry-After holds further requests back.
    pub honour_retry_after: bool,
}

/// The breaker's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row; 0: never.
    pub failures: u32,
    /// The first open period; each further one is twice as long.
    pub open_for: Duration,
}

/// Reads `vendors:`, presets already merged. Vendors with errors are left out.
pub(super) fn vendors(
    written: &file::Entries<file::Vendor>,
    reader: &mut Reader<'_>,
) -> Vec<Vendor> {
    let at = KeyPath::default().key("vendors");
    let mut claimed = ClaimedNames::default();
    let mut vendors = Vec::with_capacity(written.0.len());
    for (name, entry) in &written.0 {
        let at = at.key(name);
        if let Some(entry) = entry {
            vendors.extend(vendor(name, entry, &mut claimed, &at, reader));
        }
        // After everything inside, so that it does not count as an error there.
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if name.is_empty() || !name.bytes().all(is_plain) {
            let hint = "names are letters, digits, `.`, `_` and `-`";
            reader
                .report
                .error_at_key(&at, "is not a vendor's name", hint);
        } else if name == "none" {
            let hint = "`none` is the metrics' name for requests without a vendor";
            reader
                .report
                .error_at_key(&at, "is not a vendor's name", hint);
        }
    }
    vendors
}

/// The prefixes and hosts so far, and the vendors that have them.
#[derive(Default)]
struct ClaimedNames<'f> {
    prefixes: HashMap<String, &'f str>,
    hosts: HashMap<String, &'f str>,
}

fn vendor<'f>(
    name: &'f str,
    entry: &'f file::Vendor,
    claimed: &mut ClaimedNames<'f>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<Vendor> {
    // An unknown preset was reported when presets were merged.
    let preset = entry.preset.as_deref().and_then(presets::find);
    let prefix = prefix(name, entry, claimed, at, reader);
    let hosts = hosts(name, entry, claimed, at, reader);
    let allow_plaintext = entry.allow_plaintext.unwrap_or(false);
    let upstream = upstream(entry, at, reader);
    let client_cert = entry
        .client_cert
        .as_ref()
        .and_then(|files| reader.cert_files(files, &at.key("client_cert")));
    if client_cert.is_some() && upstream.as_ref().is_some_and(|upstream| !upstream.tls) {
        reader.report.error_at_key(
            &at.key("client_cert"),
            "is never presented to an `http://` upstream",
            "a certificate is part of the TLS handshake: use https://, or remove it",
        );
    }
    let late_client_auth = entry.tls.as_ref().and_then(|tls| tls.late_client_auth);
    // Where the preset says so, the file need not: a mock vendor may well use plaintext.
    let presets = preset.and_then(|preset| preset.settings.get("tls")?.get("late_client_auth"));
    if late_client_auth == Some(true)
        && presets.is_none()
        && upstream.as_ref().is_some_and(|upstream| !upstream.tls)
    {
        reader.report.error(
            &at.key("tls").key("late_client_auth"),
            "has no meaning for an `http://` upstream",
            "a certificate is part of TLS: use https://, or remove it",
        );
    }
    let ca = entry
        .ca
        .as_ref()
        .map(|path| reader.roots(path, &at.key("ca")));
    let auth = entry.auth.as_ref().map(|auth| {
        auth::auth(
            auth,
            auth::AuthContext {
                upstream: upstream.as_ref(),
                client_cert: client_cert.as_ref(),
                allow_plaintext,
                allow_link_local: entry.allow_link_local.unwrap_or(false),
            },
            &at.key("auth"),
            reader,
        )
    });
    let trailing_dots_ignored = preset.is_some_and(|preset| preset.trailing_dots_ignored);
    let logins = match (&upstream, &auth) {
        (Some(upstream), Some(Some(auth))) => {
            path_rules::logins(auth, upstream, trailing_dots_ignored)
        }
        (_, _) => vec![],
    };
    let answered = match (entry.login, &upstream, &auth) {
        (Some(file::Login::Stub), Some(upstream), Some(Some(auth))) => {
            path_rules::answered(auth, preset, upstream, &at.key("login"), reader)
        }
        (_, _, _) => vec![],
    };
    let base = upstream.as_ref().map_or("", |upstream| &upstream.base);
    let (refuse, allow) = path_rules::rules(entry, preset, base, logins, at, reader);
    Some(Vendor {
        name: name.to_owned(),
        preset: entry.preset.clone(),
        prefix: prefix?,
        hosts,
        upstream: upstream?,
        auth: match auth {
            // Not the file's value: it was found wrong.
            Some(None) => return None,
            Some(Some(auth)) => Some(auth),
            None => None,
        },
        client_cert,
        ca,
        late_client_auth: late_client_auth.unwrap_or(false),
        allow_plaintext,
        proxy: entry
            .proxy
            .as_deref()
            .and_then(|written| proxy(written, &at.key("proxy"), reader)),
        allow_link_local: entry.allow_link_local.unwrap_or(false),
        timeouts: timeouts(entry.timeouts.as_ref()),
        limits: limits(entry.limits.as_ref(), &at.key("limits"), reader),
        breaker: breaker(entry.breaker.as_ref(), &at.key("breaker"), reader),
        cookies_pass: matches!(entry.cookies, Some(file::Cookies::Pass)),
        retry_on_401: entry.retry_on_401.unwrap_or(true),
        refuse,
        allow,
        encoded_slash_pass: matches!(entry.encoded_slash, Some(file::EncodedSlash::Pass)),
        header_names: header_names(entry, &at.key("header_names"), reader),
        logins: answered,
        redact_echo: entry.redact_echo.unwrap_or(true),
        trailing_dots_ignored,
    })
}

/// Reads `proxy:`: an origin without secrets.
fn proxy(written: &str, at: &KeyPath, reader: &mut Reader<'_>) -> Option<Url> {
    let read = if written.contains("://") {
        endpoint::proxy(written)
    } else {
        // The environment may omit the scheme; the configuration has it.
        Err(InvalidUrl::NotProxy)
    };
    let example = "written `http://egress.example:3128`";
    let url = match read {
        Ok(url) if url.username().is_empty() && url.password().is_none() => url,
        Ok(_) | Err(InvalidUrl::Unencoded) => {
            reader.report.error(
                at,
                "holds a user name or password",
                "leave `proxy` out and put the whole URL, both of them percent-encoded, into the \
                 environment variable HTTPS_PROXY",
            );
            return None;
        }
        Err(wrong) => {
            let hint = if wrong == InvalidUrl::NotProxy {
                example
            } else {
                wrong.hint()
            };
            reader.report.error(at, wrong, hint);
            return None;
        }
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        let message = "holds more than scheme, host and port";
        reader.report.error(at, message, example);
        return None;
    }
    Some(url)
}

/// Reports an unusable proxy that the environment specifies for a vendor or an issuer. Each
/// variable is named once.
pub(super) fn check_environment_proxies(
    vendors: &[Vendor],
    callers: &Callers,
    reader: &mut Reader<'_>,
) {
    // It belongs to the machine that runs the proxy, as secrets do.
    if reader.secrets == Secrets::FormOnly {
        return;
    }
    let outbound = Outbound::new(None);
    let mut destinations: Vec<(KeyPath, Url)> = Vec::new();
    for vendor in vendors.iter().filter(|vendor| vendor.proxy.is_none()) {
        let at = KeyPath::default().key("vendors").key(&vendor.name);
        let origin = vendor.upstream.origin().parse().ok();
        destinations.extend(origin.map(|url| (at.key("upstream"), url)));
        let of_auth = vendor.auth.as_ref().and_then(Auth::token_url);
        destinations.extend(of_auth.map(|url| (at.key("auth"), url.clone())));
    }
    if let Callers::Known(callers) = callers {
        for caller in callers {
            if let Some(Jwt {
                keys: KeySource::Url { url, .. },
                ..
            }) = &caller.jwt
                && url.scheme() == "https"
            {
                let at = KeyPath::default().key("callers").key(&caller.name);
                destinations.push((at.key("jwt").key("jwks_url"), url.clone()));
            }
        }
    }
    let mut named = HashSet::new();
    for (at, url) in destinations {
        if let Err(Unusable { variable, wrong }) = outbound.via(&url)
            && named.insert(variable)
        {
            let message = format!("the environment variable {variable} {wrong}");
            reader.report.error(&at, message, wrong.hint());
        }
    }
}

fn prefix<'f>(
    name: &'f str,
    entry: &file::Vendor,
    claimed: &mut ClaimedNames<'f>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
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
        plain_path(&prefix, is_unreserved)
    };
    match wrong {
        // A name that makes no prefix is reported as a name.
        Some(_) if entry.prefix.is_none() && !matches!(name, "." | "..") => return None,
        Some(message) => {
            let hint = "prefixes are written `/acme` or `/certificates/acme`";
            reader.report.error(&at, message, hint);
            return None;
        }
        None => {}
    }
    if let Some(other) = claimed.prefixes.insert(prefix.clone(), name) {
        reader.report.error(
            &at,
            format!("is also the prefix of `{other}`"),
            "every vendor needs a prefix of its own",
        );
    }
    Some(prefix)
}

fn hosts<'f>(
    name: &'f str,
    entry: &file::Vendor,
    claimed: &mut ClaimedNames<'f>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
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
            reader.report.error(
                &at,
                "is not a host name",
                "written `acme.proxy.internal`: no port, no wildcard, no trailing dot",
            );
            continue;
        }
        if let Some(other) = claimed.hosts.insert(host.clone(), name) {
            reader.report.error(
                &at,
                format!("already leads to `{other}`"),
                "a host leads to one vendor",
            );
        }
        hosts.push(host);
    }
    hosts
}

/// Reads `header_names:`. A header that frames a request, or belongs to its connection, has one
/// spelling.
fn header_names(entry: &file::Vendor, at: &KeyPath, reader: &mut Reader<'_>) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for (nth, written) in entry.header_names.iter().flatten().enumerate() {
        let Some(written) = written else { continue };
        let at = at.index(nth);
        let name = HeaderName::from_bytes(written.as_bytes());
        let Some(name) = name.ok().filter(|_| written.bytes().all(is_tchar)) else {
            let hint = "names are written as callers send them, for example `X_Account`";
            reader
                .report
                .error(&at, "is not the name of a header field", hint);
            continue;
        };
        let dashed = name
            .as_str()
            .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        if dashed == name.as_str() {
            let hint = "letters, digits and `-` may be in every name";
            reader.report.error(&at, "needs no permission", hint);
        } else if CONNECTION_FIELDS.contains(&dashed.as_str()) {
            reader.report.error(
                &at,
                format!("could be taken for `{dashed}`"),
                "that field says where a request ends or how it travels, and has one spelling",
            );
        } else {
            names.push(name);
        }
    }
    names
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
        // Envoy's default for a stream. An explicit value holds for every kind of request.
        idle_stream: or(written.idle, 300),
        total: or(written.total, 0),
        keepalive: or(written.keepalive, 30),
        token_wait: or(written.token_wait, 5),
    }
}

fn limits(written: Option<&file::Limits>, at: &KeyPath, reader: &mut Reader<'_>) -> Limits {
    let none = file::Limits::default();
    let written = written.unwrap_or(&none);
    Limits {
        in_flight: written.in_flight.unwrap_or(1024),
        body: written.body.map_or(100 << 20, |size| size.0),
        rate: written
            .rate
            .as_ref()
            .and_then(|rate| callers::rate(rate, &at.key("rate"), reader)),
        honour_retry_after: written.honour_retry_after.unwrap_or(false),
    }
}

fn breaker(written: Option<&file::Breaker>, at: &KeyPath, reader: &mut Reader<'_>) -> Breaker {
    let open_for = written.and_then(|written| written.open_for);
    if open_for.is_some_and(|span| span.0.is_zero()) {
        reader.report.error(
            &at.key("open_for"),
            "must not be zero",
            "`failures: 0` turns the breaker off",
        );
    }
    Breaker {
        failures: written.and_then(|written| written.failures).unwrap_or(10),
        open_for: open_for.map_or(Duration::from_secs(10), |span| span.0),
    }
}
