//! The permitted callers: `callers:`.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use url::Host;

use super::file;
use super::reader::{Reader, Secrets};
use super::report::{KeyPath, suggest};
use super::rules::{self, Permission};
use super::upstream::web_url;
use crate::endpoint;
use crate::jwks::KeySource;
use crate::secret::SecretRef;
use crate::tls::{self, San};

/// The permitted callers.
#[derive(Clone, Debug)]
pub enum Callers {
    /// No `callers:`. Loopback listeners only, and browsers' cross-site requests are refused.
    Loopback,
    /// `callers: anyone`.
    Anyone,
    /// The listed callers and no others.
    Known(Vec<Caller>),
}

/// One listed caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name in logs and metrics.
    pub name: String,
    /// The key that identifies it.
    pub api_key: Option<ApiKey>,
    /// The certificate's name that identifies it.
    pub certificate: Option<San>,
    /// The tokens that identify it.
    pub jwt: Option<Jwt>,
    /// The permissions; empty: none.
    pub allow: Vec<Permission>,
    /// The rate limit; `None`: no limit.
    pub rate: Option<Rate>,
}

/// The tokens that identify a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt {
    /// `iss`, exactly.
    pub issuer: String,
    /// The `aud`, or one of several.
    pub audience: String,
    /// The `sub`, in which `*` matches any characters; `None`: any.
    pub subject: Option<String>,
    /// The issuer's public keys.
    pub keys: KeySource,
}

/// A rate of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one more request is permitted.
    pub every: Duration,
    /// The number of requests that may come at once.
    pub burst: NonZeroU32,
}

/// The source of a caller's key, or of its digest.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiKey {
    /// The key's SHA-256.
    Sha256([u8; 32]),
    /// The key itself.
    Key(SecretRef),
}

/// Reads `callers:`. `vendors`: the names that a permission may have.
pub(super) fn callers(
    written: Option<&file::Callers>,
    vendors: &HashSet<String>,
    reader: &mut Reader<'_>,
) -> Callers {
    let at = KeyPath::default().key("callers");
    let entries = match written {
        None => return Callers::Loopback,
        Some(file::Callers::Anyone(file::Anyone::Anyone)) => return Callers::Anyone,
        Some(file::Callers::Known(file::Entries(entries))) => entries,
    };
    if entries.is_empty() {
        reader.report.warn(
            &at,
            "lists no caller, so every request is refused",
            "`countersign caller new NAME` makes a key",
        );
    }
    let mut known = Vec::with_capacity(entries.len());
    // A credential of two callers identifies neither.
    let mut seen: HashMap<Identity, &str> = HashMap::new();
    for (name, entry) in entries {
        let at = at.key(name);
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let message = "a caller's name must be readable text";
            reader.report.error_at_key(&at, message, "");
        }
        let Some(entry) = entry else { continue };
        let mut ways = vec![];
        let api_key = entry.api_key.as_ref().and_then(|key| {
            let at = at.key("api_key");
            let key = api_key(key, &at, reader)?;
            ways.extend(identity(&key, reader.secrets).map(|identity| (at, "key", identity)));
            Some(key)
        });
        let certificate = entry.certificate.as_ref().and_then(|written| {
            let at = at.key("certificate").key("san");
            let name = san(written.san.as_ref()?, &at, reader)?;
            ways.push((at, "certificate", Identity::Name(name.clone())));
            Some(name)
        });
        let jwt = entry.jwt.as_ref().and_then(|written| {
            let at = at.key("jwt");
            let jwt = jwt(written, &at, reader)?;
            let token = (
                jwt.issuer.clone(),
                jwt.audience.clone(),
                jwt.subject.clone(),
            );
            ways.push((at, "token", Identity::Token(token)));
            Some(jwt)
        });
        for (at, what, identity) in ways {
            if let Some(other) = seen.insert(identity, name) {
                let message = format!("is also the {what} of `{}`", other.escape_debug());
                let hint = format!("every caller needs a {what} of its own");
                reader.report.error(&at, message, hint);
            }
        }
        if entry.api_key.is_none() && entry.certificate.is_none() && entry.jwt.is_none() {
            let hint = "a caller proves who it is by one: `countersign caller new NAME` makes it; \
                        or by a `certificate` or a `jwt`";
            reader.report.missing_key(&at.key("api_key"), hint);
        }
        let allow = grants(
            entry.allow.as_deref().unwrap_or_default(),
            vendors,
            &at,
            reader,
        );
        let rate = entry
            .rate
            .as_ref()
            .and_then(|written| rate(written, &at.key("rate"), reader));
        known.push(Caller {
            name: name.clone(),
            api_key,
            certificate,
            jwt,
            allow,
            rate,
        });
    }
    Callers::Known(known)
}

/// The identity of a credential, to find those of two callers.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Digest([u8; 32]),
    Variable(String),
    File(std::path::PathBuf),
    Name(San),
    Token((String, String, Option<String>)),
}

fn identity(key: &ApiKey, secrets: Secrets) -> Option<Identity> {
    match key {
        ApiKey::Sha256(digest) => Some(Identity::Digest(*digest)),
        ApiKey::Key(SecretRef::Env(name)) if secrets == Secrets::FormOnly => {
            Some(Identity::Variable(name.clone()))
        }
        ApiKey::Key(SecretRef::File(path)) if secrets == Secrets::FormOnly => {
            Some(Identity::File(path.clone()))
        }
        ApiKey::Key(secret) => {
            let key = secret.resolve().ok()?;
            Some(Identity::Digest(tls::sha256(&[key
                .expose()
                .trim()
                .as_bytes()])))
        }
    }
}

fn api_key(written: &file::ApiKey, at: &KeyPath, reader: &mut Reader<'_>) -> Option<ApiKey> {
    if let Some(digits) = &written.sha256 {
        return reader.digest(digits, &at.key("sha256")).map(ApiKey::Sha256);
    }
    let secret = file::Secret {
        env: written.env.clone(),
        file: written.file.clone(),
        value: written.value.clone(),
    };
    reader.secret(&secret, at).map(ApiKey::Key)
}

/// Reads a name, whose type is told by its prefix or its form.
fn san(written: &str, at: &KeyPath, reader: &mut Reader<'_>) -> Option<San> {
    let (kind, name) = match written.split_once(':') {
        Some((kind @ ("uri" | "dns" | "email"), name)) => (kind, name),
        _ if written.contains("://") => ("uri", written),
        _ if written.contains('@') => ("email", written),
        _ => ("dns", written),
    };
    let blank = name.bytes().any(|b| !b.is_ascii_graphic());
    let (wrong, hint) = match kind {
        _ if name.is_empty() => ("is empty", ""),
        _ if blank => ("has a character that no such name has", ""),
        "uri" if !name.contains(':') => (
            "is not a URI",
            "as it stands in the certificate, for example `spiffe://corp/ci`",
        ),
        "email" if name.trim_matches('@').matches('@').count() != 1 => {
            ("is not an e-mail address", "")
        }
        "dns" if name.contains('*') => (
            "must not have a wildcard",
            "one name, exactly as it stands in the certificate",
        ),
        "dns" if name.contains([':', '/', '@', '=', ',']) => (
            "is not a DNS name",
            "write `uri:…`, `dns:…` or `email:…`; a certificate's subject is not looked at",
        ),
        _ => {
            return Some(match kind {
                "uri" => San::Uri(name.to_owned()),
                "email" => San::email(name),
                _ => San::dns(name),
            });
        }
    };
    reader.report.error(at, wrong, hint);
    None
}

fn jwt(written: &file::Jwt, at: &KeyPath, reader: &mut Reader<'_>) -> Option<Jwt> {
    for (name, text) in [
        ("issuer", &written.issuer),
        ("audience", &written.audience),
        ("subject", &written.subject),
    ] {
        if text.as_ref().is_some_and(String::is_empty) {
            reader.report.error(&at.key(name), "is empty", "");
        }
    }
    let keys = match (&written.jwks_url, &written.jwks_file) {
        (Some(url), None) => jwks_url(url, written, at, reader),
        (None, Some(path)) => {
            for (name, given) in [
                ("ca", written.ca.is_some()),
                ("jwks_token", written.jwks_token.is_some()),
            ] {
                if given {
                    let message = "is for `jwks_url`, and the keys come from a file";
                    reader.report.error_at_key(&at.key(name), message, "");
                }
            }
            Some(KeySource::File(reader.jwks(path, &at.key("jwks_file"))))
        }
        (Some(_), Some(_)) => {
            let message = "stands beside `jwks_url`";
            let hint = "the issuer's keys come from one place";
            reader
                .report
                .error_at_key(&at.key("jwks_file"), message, hint);
            None
        }
        (None, None) => {
            let hint = "where the issuer publishes its keys; or `jwks_file`";
            reader.report.missing_key(&at.key("jwks_url"), hint);
            None
        }
    };
    Some(Jwt {
        issuer: written.issuer.clone()?,
        audience: written.audience.clone()?,
        subject: written.subject.clone(),
        keys: keys?,
    })
}

fn jwks_url(
    text: &str,
    written: &file::Jwt,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Option<KeySource> {
    let ca = written
        .ca
        .as_ref()
        .map(|path| reader.roots(path, &at.key("ca")));
    let token = written.jwks_token.as_ref().and_then(|secret| {
        let at = at.key("jwks_token");
        let secret = reader.secret(secret, &at)?;
        reader.bearer_token(&secret, &at);
        Some(secret)
    });
    let at = at.key("jwks_url");
    let url = endpoint::web(text).ok();
    let is_local = url.as_ref().is_some_and(|url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    });
    if !is_local && url.is_some_and(|url| url.scheme() == "http") {
        let hint = "anyone who can change the keys in transit can impersonate any caller";
        reader.report.error(&at, "is not an https:// URL", hint);
        return None;
    }
    let url = web_url(text, is_local, "the keys travel", &at, reader)?;
    Some(KeySource::Url { url, ca, token })
}

/// Reads a `rate:`. `None`: no limit, or an error, which has been reported.
pub(super) fn rate(written: &file::Rate, at: &KeyPath, reader: &mut Reader<'_>) -> Option<Rate> {
    if written.per_second.is_none() && written.burst.is_some() {
        let hint = "a burst is what may exceed the rate for a moment";
        reader.report.missing_key(&at.key("per_second"), hint);
    }
    let per_second = written.per_second.filter(|rate| *rate > 0.0)?;
    // Between the bounds of the schema: from a nanosecond to a day.
    let every = Duration::try_from_secs_f64(per_second.recip()).ok()?;
    let burst = written.burst.and_then(NonZeroU32::new);
    // The integer between one and the largest of 32 bits: no other conversion is checked.
    let burst = burst.map_or_else(|| per_second.ceil().to_string().parse().ok(), Some)?;
    // The bucket counts in nanoseconds of 64 bits.
    let longest = Duration::from_nanos(u64::MAX / 4);
    if every
        .checked_mul(burst.get())
        .is_none_or(|all| all > longest)
    {
        reader.report.error(
            &at.key("burst"),
            "would take longer than a century to come back at this rate",
            "",
        );
        return None;
    }
    Some(Rate { every, burst })
}

fn grants(
    written: &[Option<String>],
    vendors: &HashSet<String>,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Vec<Permission> {
    let mut grants = Vec::with_capacity(written.len());
    for (nth, text) in written.iter().enumerate() {
        let Some(text) = text else { continue };
        let at = at.key("allow").index(nth);
        match rules::grant(text) {
            Ok(grant) => {
                if let Some(name) = &grant.vendor
                    && !vendors.contains(name)
                {
                    let mut known: Vec<&str> = vendors.iter().map(String::as_str).collect();
                    known.sort_unstable();
                    reader
                        .report
                        .error(&at, "names no vendor of this file", suggest(name, known));
                }
                grants.push(grant);
            }
            Err((message, hint)) => reader.report.error(&at, message, hint),
        }
    }
    grants
}
