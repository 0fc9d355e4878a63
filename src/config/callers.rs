//! Who may call: `callers:`.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use url::Host;

use super::file;
use super::reference::{Context, Secrets};
use super::report::{Spot, suggest};
use super::rules::{self, Permission};
use super::upstream::web_url;
use crate::endpoint;
use crate::jwks::KeySource;
use crate::secret::SecretRef;
use crate::tls::{self, San};

/// Who may call.
#[derive(Clone, Debug)]
pub enum Callers {
    /// No `callers:`. Loopback listeners only, and browsers' cross-site requests are refused.
    Loopback,
    /// `callers: anyone`.
    Anyone,
    /// These and nobody else.
    Known(Vec<Caller>),
}

/// One known caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its name in logs and metrics.
    pub name: String,
    /// A key it may show.
    pub api_key: Option<ApiKey>,
    /// A name in a certificate it may show.
    pub certificate: Option<San>,
    /// A token it may show.
    pub jwt: Option<Jwt>,
    /// What it may do; empty: nothing.
    pub allow: Vec<Permission>,
    /// How much it may do; `None`: no limit.
    pub rate: Option<Rate>,
}

/// Which tokens prove a caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt {
    /// `iss`, exactly.
    pub issuer: String,
    /// `aud`, or one of several.
    pub audience: String,
    /// `sub`, `*` standing for any characters; `None`: any.
    pub subject: Option<String>,
    /// The issuer's public keys.
    pub keys: KeySource,
}

/// Requests over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The time in which one more is let through.
    pub every: Duration,
    /// How many may come at once.
    pub burst: NonZeroU32,
}

/// Where a caller's key, or the key's digest, comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiKey {
    /// The key's SHA-256.
    Sha256([u8; 32]),
    /// The key itself.
    Key(SecretRef),
}

/// Reads `callers:`. `vendors` are the names a grant may have.
pub(super) fn callers(
    written: Option<&file::Callers>,
    vendors: &HashSet<String>,
    context: &mut Context<'_>,
) -> Callers {
    let at = Spot::default().key("callers");
    let entries = match written {
        None => return Callers::Loopback,
        Some(file::Callers::Anyone(file::Anyone::Anyone)) => return Callers::Anyone,
        Some(file::Callers::Known(file::Entries(entries))) => entries,
    };
    if entries.is_empty() {
        context.report.warn(
            &at,
            "nobody is listed, so nobody may call",
            "`countersign caller new NAME` makes a key",
        );
    }
    let mut known = Vec::with_capacity(entries.len());
    // What two callers share proves neither.
    let mut seen: HashMap<Identity, &str> = HashMap::new();
    for (name, entry) in entries {
        let at = at.key(name);
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let message = "a caller's name must be readable text";
            context.report.wrong_key(&at, message, "");
        }
        let Some(entry) = entry else { continue };
        let mut ways = vec![];
        let api_key = entry.api_key.as_ref().and_then(|key| {
            let at = at.key("api_key");
            let key = api_key(key, &at, context)?;
            ways.extend(identity(&key, context.secrets).map(|identity| (at, "key", identity)));
            Some(key)
        });
        let certificate = entry.certificate.as_ref().and_then(|written| {
            let at = at.key("certificate").key("san");
            let name = san(written.san.as_ref()?, &at, context)?;
            ways.push((at, "certificate", Identity::Name(name.clone())));
            Some(name)
        });
        let jwt = entry.jwt.as_ref().and_then(|written| {
            let at = at.key("jwt");
            let jwt = jwt(written, &at, context)?;
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
                context.report.wrong(&at, message, hint);
            }
        }
        if entry.api_key.is_none() && entry.certificate.is_none() && entry.jwt.is_none() {
            let hint = "a caller proves who it is by one: `countersign caller new NAME` makes it; \
                        or by a `certificate` or a `jwt`";
            context.report.missing(&at.key("api_key"), hint);
        }
        let allow = grants(
            entry.allow.as_deref().unwrap_or_default(),
            vendors,
            &at,
            context,
        );
        let rate = entry
            .rate
            .as_ref()
            .and_then(|written| rate(written, &at.key("rate"), context));
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

/// What makes two callers' proofs the same one.
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

fn api_key(written: &file::ApiKey, at: &Spot, context: &mut Context<'_>) -> Option<ApiKey> {
    if let Some(digits) = &written.sha256 {
        return context
            .digest(digits, &at.key("sha256"))
            .map(ApiKey::Sha256);
    }
    let secret = file::Secret {
        env: written.env.clone(),
        file: written.file.clone(),
        value: written.value.clone(),
    };
    context.secret(&secret, at).map(ApiKey::Key)
}

/// A name and its type, by its prefix or by its form.
fn san(written: &str, at: &Spot, context: &mut Context<'_>) -> Option<San> {
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
    context.report.wrong(at, wrong, hint);
    None
}

fn jwt(written: &file::Jwt, at: &Spot, context: &mut Context<'_>) -> Option<Jwt> {
    for (name, text) in [
        ("issuer", &written.issuer),
        ("audience", &written.audience),
        ("subject", &written.subject),
    ] {
        if text.as_ref().is_some_and(String::is_empty) {
            context.report.wrong(&at.key(name), "is empty", "");
        }
    }
    let keys = match (&written.jwks_url, &written.jwks_file) {
        (Some(url), None) => jwks_url(url, written, at, context),
        (None, Some(path)) => {
            for (name, given) in [
                ("ca", written.ca.is_some()),
                ("jwks_token", written.jwks_token.is_some()),
            ] {
                if given {
                    let message = "is for `jwks_url`, and the keys come from a file";
                    context.report.wrong_key(&at.key(name), message, "");
                }
            }
            Some(KeySource::File(context.jwks(path, &at.key("jwks_file"))))
        }
        (Some(_), Some(_)) => {
            let message = "stands beside `jwks_url`";
            let hint = "the issuer's keys come from one place";
            context
                .report
                .wrong_key(&at.key("jwks_file"), message, hint);
            None
        }
        (None, None) => {
            let hint = "where the issuer publishes its keys; or `jwks_file`";
            context.report.missing(&at.key("jwks_url"), hint);
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
    at: &Spot,
    context: &mut Context<'_>,
) -> Option<KeySource> {
    let ca = written
        .ca
        .as_ref()
        .map(|path| context.roots(path, &at.key("ca")));
    let token = written.jwks_token.as_ref().and_then(|secret| {
        let at = at.key("jwks_token");
        let secret = context.secret(secret, &at)?;
        context.bearer_token(&secret, &at);
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
        let hint = "whoever can change the keys on their way can be any caller";
        context.report.wrong(&at, "is not an https:// URL", hint);
        return None;
    }
    let url = web_url(text, is_local, "the keys travel", &at, context)?;
    Some(KeySource::Url { url, ca, token })
}

/// Reads a `rate:`. `None`: no limit, or something is wrong, which has been reported.
pub(super) fn rate(written: &file::Rate, at: &Spot, context: &mut Context<'_>) -> Option<Rate> {
    if written.per_second.is_none() && written.burst.is_some() {
        let hint = "a burst is what may exceed the rate for a moment";
        context.report.missing(&at.key("per_second"), hint);
    }
    let per_second = written.per_second.filter(|rate| *rate > 0.0)?;
    // Between the bounds of the schema: from a nanosecond to a day.
    let every = Duration::try_from_secs_f64(per_second.recip()).ok()?;
    let burst = written.burst.and_then(NonZeroU32::new);
    // The number between one and what 32 bits hold: there is no other conversion that is checked.
    let burst = burst.map_or_else(|| per_second.ceil().to_string().parse().ok(), Some)?;
    // The bucket counts in nanoseconds of 64 bits.
    let longest = Duration::from_nanos(u64::MAX / 4);
    if every
        .checked_mul(burst.get())
        .is_none_or(|all| all > longest)
    {
        context.report.wrong(
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
    at: &Spot,
    context: &mut Context<'_>,
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
                    context
                        .report
                        .wrong(&at, "names no vendor of this file", suggest(name, known));
                }
                grants.push(grant);
            }
            Err((message, hint)) => context.report.wrong(&at, message, hint),
        }
    }
    grants
}
