//! Who is calling, and what they may do. Pure look-ups: keys by digest, certificates by name. A
//! hundred thousand callers cost no more than one. Comparing digests tells a guesser nothing about
//! a key.

pub mod ended_logins;
mod identification;
mod jwt;
pub mod token;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use foldhash::HashMapExt;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, PROXY_AUTHORIZATION};
use tokio::time::Instant;
use zeroize::Zeroizing;

pub use self::identification::{Identification, Identified, PendingIdentification};

use self::ended_logins::Full;
use self::jwt::{TokenLookup, Tokens, Unverified};
use self::token::{Evidence, Kind, Login, Mint, Purpose};

use crate::config::{self, ApiKey, Permission};
use crate::downstream::certificate::Certificate;
use crate::downstream::removal::RemovalDeadline;
use crate::error::Error;
use crate::jwks::{KeySource, Keys};
use crate::metrics::MAX_CALLERS;
use crate::pattern::glob;
use crate::pattern::interpretations::{self, Interpretations};
use crate::request::limit::Limiter;
use crate::secret::reference::SecretError;
use crate::tls::{San, sha256};

/// The headers that may hold a caller's key, beside the two authorization headers.
pub static KEY_FIELDS: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
    ["x-countersign-key", "x-api-key", "password"]
        .into_iter()
        .chain(config::caller_key_headers())
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
});

/// A caller, proven.
#[derive(Debug)]
pub struct Caller {
    /// The name in logs.
    pub name: Arc<str>,
    /// The name in metrics.
    pub label: Arc<str>,
    allow: Vec<AllowRule>,
    rate: Option<Arc<Limiter>>,
    /// The end of what this caller has begun, once it is removed. Shared by callers of this name as
    /// long as their credentials stay the same.
    leave: Arc<RemovalDeadline>,
    /// SHA-256 of the key.
    key: Option<[u8; 32]>,
    /// Digest of the rule that names its certificate.
    certified: Option<[u8; 32]>,
    /// Digest of the rule that names its tokens, and the keys that sign them.
    issued: Option<([u8; 32], Arc<Keys>)>,
}

/// One entry of a caller's `allow:`.
#[derive(Debug)]
struct AllowRule {
    permission: Permission,
    /// Other forms of its path (see [`interpretations::of_pattern`]).
    forms: Interpretations,
    /// The entry as the access log shows it.
    text: Arc<str>,
}

impl From<Permission> for AllowRule {
    fn from(permission: Permission) -> Self {
        let path = permission.path.as_deref();
        let forms = path.map(interpretations::of_pattern).unwrap_or_default();
        let text = permission.to_string().into();
        Self {
            permission,
            forms,
            text,
        }
    }
}

impl Caller {
    /// Returns the caller that may do everything, where no callers are configured.
    #[must_use]
    pub fn anyone() -> Self {
        Self {
            name: Arc::from("anyone"),
            label: Arc::from("anyone"),
            rate: None,
            leave: Arc::default(),
            key: None,
            certified: None,
            issued: None,
            allow: vec![AllowRule::from(Permission {
                vendor: None,
                methods: Vec::new(),
                path: None,
            })],
        }
    }

    /// Returns a configured caller.
    #[must_use]
    pub fn new(caller: &config::Caller) -> Self {
        let name: Arc<str> = Arc::from(caller.name.as_str());
        Self {
            label: name.clone(),
            name,
            allow: caller.allow.iter().cloned().map(AllowRule::from).collect(),
            rate: caller.rate.map(|rate| Arc::new(Limiter::new(rate))),
            leave: Arc::default(),
            key: None,
            certified: None,
            issued: None,
        }
    }

    /// Tells whether the caller may use anything of a vendor.
    #[must_use]
    pub fn may_use(&self, vendor: &str) -> bool {
        let mut permissions = self.allow.iter().map(|rule| &rule.permission);
        permissions.any(|permission| {
            permission
                .vendor
                .as_deref()
                .is_none_or(|only| only == vendor)
        })
    }

    /// Returns the deadline that ends what the caller has begun, once it is removed.
    #[must_use]
    pub fn leave(&self) -> &Arc<RemovalDeadline> {
        &self.leave
    }

    /// Returns the evidence of a login by `certificate`, which `authority` vouches for.
    fn evidence(&self, certificate: &Certificate, authority: [u8; 8]) -> Option<Evidence> {
        let until = certificate
            .not_after()
            .duration_since(SystemTime::UNIX_EPOCH);
        Some(Evidence {
            kind: Kind::Certificate,
            rule: self.certified?,
            signer: authority,
            until: until.map_or(0, |until| until.as_secs()),
        })
    }

    /// Tells whether both callers have the same credentials.
    fn shows_what(&self, other: &Self) -> bool {
        let rule = |caller: &Self| caller.issued.as_ref().map(|(rule, _)| *rule);
        self.key == other.key && self.certified == other.certified && rule(self) == rule(other)
    }

    /// Counts one request.
    ///
    /// # Errors
    /// [`Error::RateLimited`] when its `rate:` is used up.
    pub fn acquire(&self) -> Result<(), Error> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.acquire())
    }

    /// Returns the text of the permission that lets `method` on `path` (after the vendor's prefix)
    /// pass.
    #[must_use]
    pub fn grant(&self, vendor: &str, method: &str, path: &str) -> Option<&Arc<str>> {
        let mut rules = self.rules_for(vendor, method);
        let rule = rules.find(|AllowRule { permission, .. }| {
            let pattern = permission.path.as_deref();
            pattern.is_none_or(|pattern| glob(pattern, path))
        });
        rule.map(|rule| &rule.text)
    }

    /// Tells whether a permission covers an interpretation of a path (see [`interpretations::of`]).
    #[must_use]
    pub fn grants_interpretation(&self, vendor: &str, method: &str, interpretation: &str) -> bool {
        let mut rules = self.rules_for(vendor, method);
        rules.any(|rule| {
            rule.permission.path.as_deref().is_none_or(|pattern| {
                let mut forms = rule.forms.iter();
                glob(pattern, interpretation) || forms.any(|form| glob(form, interpretation))
            })
        })
    }

    /// Returns the permissions for a vendor and a method.
    fn rules_for(&self, vendor: &str, method: &str) -> impl Iterator<Item = &AllowRule> {
        self.allow
            .iter()
            .filter(move |AllowRule { permission, .. }| {
                permission
                    .vendor
                    .as_deref()
                    .is_none_or(|only| only == vendor)
                    && (permission.methods.is_empty()
                        || permission.methods.iter().any(|only| only == method))
            })
    }
}

/// Everyone who may call.
#[derive(Debug)]
pub enum Callers {
    /// Programs of this machine alone; one caller stands for all of them.
    Loopback(Arc<Caller>),
    /// `callers: anyone`.
    Anyone(Arc<Caller>),
    /// The configured callers and no others.
    Known(Box<Known>),
}

/// Callers by their credentials.
#[derive(Debug)]
pub struct Known {
    /// Callers by the SHA-256 of their keys.
    keys: foldhash::HashMap<[u8; 32], Arc<Caller>>,
    /// Callers by a name in their certificates.
    names: HashMap<San, Arc<Caller>>,
    tokens: Tokens,
    /// Callers by name, as tokens of our own have it.
    all: HashMap<Arc<str>, Arc<Caller>>,
    mint: Arc<Mint>,
    /// The authorities of callers' certificates, by [`crate::tls::Roots::authorities`].
    authorities: HashSet<[u8; 8]>,
}

/// The facts of a request that may identify its sender.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The connection's certificate, verified under the listener's `client_ca`.
    pub certificate: Option<&'a Certificate>,
    /// Host and port, checked.
    pub authority: &'a str,
    /// `true` if the host is one of a vendor's `hosts:`.
    pub known_host: bool,
}

impl Callers {
    /// Reads the keys that the configuration refers to. `mint` makes tokens of our own, `issuer`
    /// returns the keys of the issuers of other tokens, and `authorities` are those of callers'
    /// certificates. Rates go on from the counts of `before`.
    ///
    /// # Errors
    /// Fails if a key cannot be read, with the caller's name.
    pub fn new(
        callers: &config::Callers,
        before: Option<&Self>,
        mint: &Arc<Mint>,
        authorities: HashSet<[u8; 8]>,
        mut issuer: impl FnMut(&KeySource) -> Arc<Keys>,
    ) -> Result<Self, (String, SecretError)> {
        let callers = match callers {
            config::Callers::Loopback => return Ok(Self::Loopback(Arc::new(Caller::anyone()))),
            config::Callers::Anyone => return Ok(Self::Anyone(Arc::new(Caller::anyone()))),
            config::Callers::Known(callers) => callers,
        };
        let counting = match before {
            Some(Self::Known(before)) => Some(&before.all),
            Some(Self::Loopback(_) | Self::Anyone(_)) | None => None,
        };
        let other: Arc<str> = Arc::from("other");
        let mut known = Known {
            keys: foldhash::HashMap::with_capacity(callers.len()),
            names: HashMap::new(),
            tokens: Tokens::new(),
            all: HashMap::with_capacity(callers.len()),
            mint: mint.clone(),
            authorities,
        };
        for (nth, configured) in callers.iter().enumerate() {
            let mut caller = Caller::new(configured);
            if nth >= MAX_CALLERS {
                caller.label = other.clone();
            }
            if let Some(limiter) = counting
                .and_then(|all| all.get(&caller.name))
                .and_then(|before| before.rate.as_ref())
                && configured.rate == Some(limiter.rate())
            {
                caller.rate = Some(Arc::clone(limiter));
            }
            let digest = match &configured.api_key {
                None => None,
                Some(ApiKey::Sha256(digest)) => Some(*digest),
                Some(ApiKey::Key(key)) => Some(
                    // A header value reaches us without its surrounding white space.
                    key.resolve()
                        .map(|key| sha256(&[key.expose().trim().as_bytes()]))
                        .map_err(|cause| (configured.name.clone(), cause))?,
                ),
            };
            caller.key = digest;
            caller.certified = configured.certificate.as_ref().map(|name| match name {
                San::Uri(name) => sha256(&[b"uri:", name.as_bytes()]),
                San::Dns(name) => sha256(&[b"dns:", name.as_bytes()]),
                San::Email(name) => sha256(&[b"email:", name.as_bytes()]),
            });
            caller.issued = configured.jwt.as_ref().map(|jwt| {
                let part = |text: &str| sha256(&[text.as_bytes()]);
                let (issued, meant) = (part(&jwt.issuer), part(&jwt.audience));
                let about = jwt.subject.as_deref().map(part).unwrap_or_default();
                (sha256(&[&issued, &meant, &about]), issuer(&jwt.keys))
            });
            if let Some(before) = counting.and_then(|all| all.get(&caller.name))
                && before.shows_what(&caller)
            {
                caller.leave = before.leave.clone();
            }
            let caller = Arc::new(caller);
            known.all.insert(caller.name.clone(), caller.clone());
            if let Some(digest) = digest {
                known.keys.insert(digest, caller.clone());
            }
            if let Some(name) = &configured.certificate {
                known.names.insert(name.clone(), caller.clone());
            }
            if let (Some(jwt), Some((_, keys))) = (&configured.jwt, &caller.issued) {
                known.tokens.add(jwt, keys.clone(), caller.clone());
            }
        }
        Ok(Self::Known(Box::new(known)))
    }

    /// Identifies the sender of a request by its headers and its connection. Verifies no signature:
    /// what is left to verify is returned.
    #[must_use]
    pub fn identify(&self, presented: Presented<'_>) -> Identified {
        match self {
            Self::Anyone(caller) => Identified::Found(Ok(Identification::certainly(caller))),
            Self::Loopback(caller) => {
                let host_is_ours =
                    presented.known_host || is_loopback(host_of(presented.authority));
                Identified::Found(
                    if host_is_ours && !is_cross_site(presented.headers, presented.authority) {
                        Ok(Identification::certainly(caller))
                    } else {
                        Err(Error::CrossSite)
                    },
                )
            }
            Self::Known(known) => known.identify(presented),
        }
    }

    /// Tells whether the caller depends on the host that the request names.
    #[must_use]
    pub fn heed_the_host(&self) -> bool {
        matches!(self, Self::Loopback(_))
    }

    /// Identifies the sender of a login by the values that it posted: keys and refresh tokens, and
    /// access tokens where tokens are to be revoked (`ends`).
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when the values belong to two callers.
    pub fn identify_posted(
        &self,
        found: &mut Identification,
        posted: &[&[u8]],
        ends: bool,
    ) -> Result<(), Error> {
        match self {
            Self::Anyone(_) | Self::Loopback(_) => Ok(()),
            Self::Known(known) => known.identify_posted(found, posted, ends),
        }
    }

    /// Ends `at` what callers have begun that `after` does not have, or has with other credentials.
    pub fn leave(&self, after: &Self, at: Instant) {
        let stays = |caller: &Arc<Caller>| match after {
            Self::Known(known) => {
                let now = known.all.get(&caller.name);
                now.is_some_and(|now| Arc::ptr_eq(&now.leave, &caller.leave))
            }
            Self::Anyone(_) => true,
            Self::Loopback(_) => matches!(self, Self::Loopback(_)),
        };
        let everybody: Vec<&Arc<Caller>> = match self {
            Self::Anyone(caller) | Self::Loopback(caller) => vec![caller],
            Self::Known(known) => known.all.values().collect(),
        };
        for caller in everybody.into_iter().filter(|caller| !stays(caller)) {
            // A caller that was removed before keeps its earlier deadline.
            caller.leave.set(at);
        }
    }

    /// Returns the maker of our own tokens; `None` where there are none.
    #[must_use]
    pub fn mint(&self) -> Option<&Mint> {
        match self {
            Self::Anyone(_) | Self::Loopback(_) => None,
            Self::Known(known) => Some(&known.mint),
        }
    }

    /// Revokes every token of our own that a request presents, here and in the shared store.
    ///
    /// # Errors
    /// [`Error::Busy`] when one cannot be revoked, or the store has not recorded it yet.
    pub async fn end_tokens(&self, headers: &HeaderMap, posted: &[&[u8]]) -> Result<(), Error> {
        let Self::Known(known) = self else {
            return Ok(());
        };
        let mint = &known.mint;
        let end = |token: &[u8]| {
            mint.end(token)
                .map_err(|_: Full| Error::Busy(TOO_MANY_ENDED))
        };
        each_credential(headers, |key| end(key.as_ref()))?;
        posted.iter().try_for_each(|value| end(value))?;
        if mint.is_shared() && !mint.ended().stored().await {
            return Err(Error::Busy(NOT_STORED));
        }
        Ok(())
    }
}

const TOO_MANY_ENDED: &str = "As many of your logins have been ended as the proxy remembers; this one goes on until there is room, or it ends by itself.";
const NOT_STORED: &str =
    "The token has ended here; other replicas will know when the proxy can reach its store.";

impl Known {
    fn identify(&self, presented: Presented<'_>) -> Identified {
        let mut found = Identification::default();
        let mut tokens = Vec::new();
        if let Err(refusal) = self.look_up(presented, &mut found, &mut tokens) {
            return Identified::Found(Err(refusal));
        }
        if tokens.is_empty() {
            return Identified::Found(Ok(found));
        }
        Identified::Unverified(Box::new(PendingIdentification { found, tokens }))
    }

    fn look_up(
        &self,
        presented: Presented<'_>,
        found: &mut Identification,
        tokens: &mut Vec<Unverified>,
    ) -> Result<(), Error> {
        each_credential(presented.headers, |key| {
            let digest = sha256(&[key.as_ref()]);
            if let Some(caller) = self.keys.get(&digest) {
                return found.prove(caller, Some(Evidence::key(&digest)));
            }
            if let Some((caller, _)) = self.by_own_token(key.as_ref(), Purpose::Call) {
                return found.prove(caller, None);
            }
            if let Key::Bearer(token) = key
                && !self.tokens.is_empty()
            {
                match self.tokens.look_up(token, &digest) {
                    TokenLookup::Verified(proof) => found.prove_by_token(&proof)?,
                    TokenLookup::Unverified(token) => tokens.push(token),
                    TokenLookup::Unknown => {}
                }
            }
            Ok(())
        })?;
        // A connection may outlive its certificate.
        if let Some(certificate) = presented.certificate
            && let Some(authority) = certificate.authority()
        {
            for name in &certificate.names {
                if let Some(caller) = self.names.get(name) {
                    found.prove(caller, caller.evidence(certificate, authority))?;
                }
            }
        }
        Ok(())
    }

    fn identify_posted(
        &self,
        found: &mut Identification,
        posted: &[&[u8]],
        ends: bool,
    ) -> Result<(), Error> {
        for value in posted {
            let digest = sha256(&[value]);
            if let Some(caller) = self.keys.get(&digest) {
                found.prove(caller, Some(Evidence::key(&digest)))?;
            } else if let Some((caller, login)) = self.by_own_token(value, Purpose::Refresh) {
                found.renews(caller, login)?;
            } else if ends && let Some((caller, _)) = self.by_own_token(value, Purpose::Call) {
                found.prove(caller, None)?;
            }
        }
        Ok(())
    }

    /// Returns the caller of a token of our own, as long as the evidence of its login holds.
    fn by_own_token(&self, token: &[u8], purpose: Purpose) -> Option<(&Arc<Caller>, Login)> {
        let bearer = self.mint.read(token, purpose)?;
        let caller = self.all.get(bearer.name.as_str())?;
        let basis = bearer.login.basis();
        let (rule, signer) = (|rule| self.mint.mark(basis.kind(), rule), basis.signer());
        let stands = match basis.kind() {
            Kind::Nothing => false,
            Kind::Key => caller.key.as_ref().map(rule) == Some(basis.rule()),
            Kind::Certificate => {
                caller.certified.as_ref().map(rule) == Some(basis.rule())
                    && self.authorities.contains(&signer)
            }
            Kind::Token => caller
                .issued
                .as_ref()
                .is_some_and(|(of, keys)| rule(of) == basis.rule() && keys.current().holds(signer)),
        };
        stands.then_some((caller, bearer.login))
    }
}

/// A presented key: borrowed from a header, or decoded from Basic and wiped afterwards.
enum Key<'a> {
    Plain(&'a [u8]),
    /// May also be a signed token.
    Bearer(&'a [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

impl AsRef<[u8]> for Key<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Plain(key) | Self::Bearer(key) => key,
            Self::Decoded(key) => key,
        }
    }
}

/// Visits every key in every header, equal ones once.
///
/// # Errors
/// [`Error::UnknownCaller`] when a header has more than two different values, or both authorization
/// headers together more than two different bearer tokens: no client needs that, and each would
/// have to be verified. Otherwise the error of `visit`.
fn each_credential<'a>(
    headers: &'a HeaderMap,
    mut visit: impl FnMut(Key<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    for name in KEY_FIELDS.iter() {
        let mut seen = Seen::default();
        for value in headers.get_all(name) {
            let value = value.as_bytes().trim_ascii();
            if seen.is_new(value)? {
                visit(Key::Plain(value))?;
            }
        }
    }
    let mut bearers = Seen::default();
    for name in [AUTHORIZATION, PROXY_AUTHORIZATION] {
        let mut seen = Seen::default();
        for value in headers.get_all(name) {
            if !seen.is_new(value.as_bytes())? {
                continue;
            }
            match in_scheme(value.as_bytes()) {
                Some(Key::Bearer(token)) if !bearers.is_new(token)? => {}
                Some(key) => visit(key)?,
                None => {}
            }
        }
    }
    Ok(())
}

/// At most two different credentials of one kind.
#[derive(Default)]
struct Seen<'a>([Option<&'a [u8]>; 2]);

impl<'a> Seen<'a> {
    /// Tells whether `value` has not been seen yet.
    fn is_new(&mut self, value: &'a [u8]) -> Result<bool, Error> {
        for place in &mut self.0 {
            match place {
                Some(seen) if *seen == value => return Ok(false),
                Some(_) => {}
                None => {
                    *place = Some(value);
                    return Ok(true);
                }
            }
        }
        Err(Error::UnknownCaller)
    }
}

/// Returns the key in `Bearer KEY`, `Token KEY` or `Basic base64(anything:KEY)`; schemes are
/// case-insensitive (RFC 9110 §11.1).
fn in_scheme(value: &[u8]) -> Option<Key<'_>> {
    let blank = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(blank);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(Key::Bearer(rest));
    }
    if scheme.eq_ignore_ascii_case(b"token") {
        return Some(Key::Plain(rest));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = Zeroizing::new(STANDARD.decode(rest).ok()?);
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(Key::Decoded(Zeroizing::new(pair[colon + 1..].to_vec())))
}

/// Returns the host of an authority, without its port and without the final dot of an absolute
/// name. IPv6 literals keep their brackets.
#[must_use]
pub fn host_of(authority: &str) -> &str {
    let after_literal = authority.rfind(']').map_or(0, |at| at + 1);
    let host = match authority[after_literal..].find(':') {
        Some(colon) => &authority[..after_literal + colon],
        None => authority,
    };
    host.strip_suffix('.').unwrap_or(host)
}

/// Tells whether this name or address (no port) leads to this machine, whatever the DNS says.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost") {
        return true;
    }
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    literal
        .parse::<IpAddr>()
        .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Tells whether a browser sent this request for a page of another site (Fetch Metadata, and
/// `Origin` for browsers without it).
fn is_cross_site(headers: &HeaderMap, authority: &str) -> bool {
    let site = headers.get_all("sec-fetch-site").iter();
    let foreign_site = site
        .map(http::HeaderValue::as_bytes)
        .any(|site| site != b"same-origin" && site != b"none");
    let foreign_origin = headers.get_all("origin").iter().any(|origin| {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        origin
            .split_once("://")
            .is_none_or(|(_, of)| !of.eq_ignore_ascii_case(authority))
    });
    foreign_site || foreign_origin
}

/// Returns `host` in lower case, borrowed when it already is.
#[must_use]
pub fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    fn known() -> Callers {
        let caller = |name: &str, key: &str| config::Caller {
            name: name.into(),
            api_key: Some(ApiKey::Sha256(sha256(&[key.as_bytes()]))),
            ..nobody()
        };
        callers(vec![caller("a", "key-a"), caller("b", "key-b")])
    }

    fn nobody() -> config::Caller {
        config::Caller {
            name: String::new(),
            api_key: None,
            certificate: None,
            jwt: None,
            allow: vec![],
            rate: None,
        }
    }

    fn mint() -> Arc<Mint> {
        Arc::new(Mint::new(None))
    }

    fn callers(known: Vec<config::Caller>) -> Callers {
        let no_issuer = |_: &KeySource| unreachable!();
        Callers::new(
            &config::Callers::Known(known),
            None,
            &mint(),
            HashSet::new(),
            no_issuer,
        )
        .unwrap()
    }

    fn presented(headers: &HeaderMap) -> Presented<'_> {
        Presented {
            headers,
            certificate: None,
            authority: "proxy",
            known_host: false,
        }
    }

    fn identified(callers: &Callers, presented: Presented<'_>) -> Result<Arc<Caller>, Error> {
        match callers.identify(presented) {
            Identified::Found(found) => found?.caller(),
            Identified::Unverified(_) => unreachable!("no caller has a signed token"),
        }
    }

    fn who(fields: &[(&'static str, &str)]) -> Result<String, Error> {
        identified(&known(), presented(&headers(fields))).map(|caller| caller.name.to_string())
    }

    #[test]
    fn two_credentials_of_a_kind_are_looked_at_and_equal_ones_once() {
        let nobody = Err(Error::UnknownCaller);
        let a = || Ok("a".to_owned());
        for (fields, want) in [
            (vec![("x-api-key", "no"), ("x-api-key", "key-a")], a()),
            (
                vec![
                    ("x-api-key", "no"),
                    ("x-api-key", "no 2"),
                    ("x-api-key", "key-a"),
                ],
                nobody.clone(),
            ),
            (vec![("x-api-key", "key-a"); 500], a()),
            (vec![("authorization", "Bearer key-a"); 500], a()),
            // A vendor's client with placeholders sends one of each kind.
            (
                vec![
                    ("x-api-key", "no"),
                    ("x-api-key", "no 2"),
                    ("password", "no 3"),
                    ("x-venafi-api-key", "no 4"),
                    ("authorization", "Basic bm86bm8="),
                    ("x-countersign-key", "key-a"),
                ],
                a(),
            ),
            (
                vec![
                    ("authorization", "Bearer 1"),
                    ("proxy-authorization", "Bearer 2"),
                    ("x-api-key", "key-a"),
                ],
                a(),
            ),
            (
                vec![
                    ("authorization", "Bearer 1"),
                    ("authorization", "Bearer 2"),
                    ("proxy-authorization", "bearer 1"),
                    ("x-api-key", "key-a"),
                ],
                a(),
            ),
            (
                vec![
                    ("authorization", "Bearer 1"),
                    ("authorization", "Bearer 2"),
                    ("proxy-authorization", "Bearer 3"),
                    ("x-api-key", "key-a"),
                ],
                nobody.clone(),
            ),
            (
                vec![
                    ("authorization", "Bearer key-a"),
                    ("authorization", "Digest 1"),
                    ("authorization", "Digest 2"),
                ],
                nobody.clone(),
            ),
        ] {
            assert_eq!(who(&fields), want, "{fields:?}");
        }
    }

    #[test]
    fn the_key_is_found_in_every_slot() {
        let basic = format!("Basic {}", STANDARD.encode("whoever:key-a"));
        for (name, value) in [
            ("x-countersign-key", "key-a"),
            ("x-api-key", "key-a"),
            ("x-venafi-api-key", "key-a"),
            ("password", "key-a"),
            ("authorization", "Bearer key-a"),
            ("authorization", "bearer  key-a"),
            ("authorization", "Token key-a"),
            ("authorization", basic.as_str()),
            ("proxy-authorization", "Bearer key-a"),
            ("proxy-authorization", basic.as_str()),
        ] {
            assert_eq!(who(&[(name, value)]), Ok("a".into()), "{name}: {value}");
        }
    }

    #[test]
    fn one_valid_key_suffices_and_two_callers_are_none() {
        assert_eq!(
            who(&[
                ("authorization", "Bearer placeholder"),
                ("password", "key-b")
            ]),
            Ok("b".into())
        );
        assert_eq!(
            who(&[("x-api-key", "key-a"), ("password", "key-b")]),
            Err(Error::UnknownCaller)
        );
        assert_eq!(who(&[]), Err(Error::UnknownCaller));
        assert_eq!(who(&[("x-api-key", "")]), Err(Error::UnknownCaller));
        assert_eq!(
            who(&[("authorization", "Basic key-a")]),
            Err(Error::UnknownCaller)
        );
    }

    #[test]
    fn grants_are_by_vendor_method_and_path() {
        let caller = Caller::new(&config::Caller {
            name: "ci".into(),
            allow: vec![
                Permission {
                    vendor: Some("v".into()),
                    methods: vec!["GET".into(), "HEAD".into()],
                    path: Some("/vedsdk/**".into()),
                },
                Permission {
                    vendor: Some("w".into()),
                    methods: vec![],
                    path: None,
                },
            ],
            ..nobody()
        });
        for (vendor, method, path, want) in [
            ("v", "GET", "/vedsdk/x", true),
            ("v", "GET", "/vedsdk", true),
            ("v", "GET", "/Vedsdk/x", false),
            ("v", "POST", "/vedsdk/x", false),
            ("w", "DELETE", "/anything", true),
            ("u", "GET", "/vedsdk/x", false),
        ] {
            let got = caller.grant(vendor, method, path).is_some();
            assert_eq!(got, want, "{vendor} {method} {path}");
        }
        let text = caller.grant("v", "GET", "/vedsdk/x").unwrap();
        assert_eq!(&**text, "v GET,HEAD /vedsdk/**");
    }

    #[test]
    fn without_callers_only_programs_of_this_machine_may_call() {
        let callers = Callers::Loopback(Arc::new(Caller::anyone()));
        let allowed = |authority: &str, known_host, fields: &[(&'static str, &str)]| {
            let headers = headers(fields);
            let presented = Presented {
                authority,
                known_host,
                ..presented(&headers)
            };
            identified(&callers, presented).is_ok()
        };
        for authority in [
            "localhost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "app.localhost",
        ] {
            assert!(allowed(authority, false, &[]), "{authority}");
        }
        assert!(allowed("tpp.internal", true, &[]));
        assert!(!allowed("evil.example", false, &[]));
        assert!(!allowed("127.0.0.1.evil.example", false, &[]));
        assert!(!allowed(
            "localhost",
            false,
            &[("sec-fetch-site", "cross-site")]
        ));
        assert!(!allowed(
            "localhost",
            false,
            &[("sec-fetch-site", "same-site")]
        ));
        assert!(!allowed(
            "localhost",
            false,
            &[("origin", "https://evil.example")]
        ));
        assert!(!allowed("localhost", false, &[("origin", "null")]));
        assert!(allowed(
            "localhost:1",
            false,
            &[("origin", "http://localhost:1")]
        ));
        assert!(allowed("localhost", false, &[("sec-fetch-site", "none")]));
    }

    fn certified(names: &[San], until: SystemTime, fields: &[(&'static str, &str)]) -> String {
        let by_name = |name: &str, san| config::Caller {
            name: name.into(),
            certificate: Some(san),
            ..nobody()
        };
        let by_key = config::Caller {
            name: "key".into(),
            api_key: Some(ApiKey::Sha256(sha256(&[b"key"]))),
            ..nobody()
        };
        let callers = callers(vec![
            by_name("uri", San::Uri("spiffe://corp/ci".into())),
            by_name("dns", San::dns("ci.corp")),
            by_name("email", San::email("ci@corp")),
            by_key,
        ]);
        let headers = headers(fields);
        let authorities =
            Arc::new(crate::downstream::certificate::tests::FlippingAuthorities::default());
        let certificate = Certificate::new(names.to_vec(), until, vec![], authorities);
        let presented = Presented {
            certificate: Some(&certificate),
            ..presented(&headers)
        };
        let caller = identified(&callers, presented);
        caller.map_or("nobody".into(), |caller| caller.name.to_string())
    }

    #[test]
    fn a_certificate_proves_by_a_name_of_the_same_type() {
        let later = SystemTime::now() + std::time::Duration::from_mins(1);
        let uri = |name: &str| San::Uri(name.into());
        for (names, want) in [
            (vec![uri("spiffe://corp/ci")], "uri"),
            (vec![uri("spiffe://corp/ci/x")], "nobody"),
            (vec![uri("ci.corp")], "nobody"),
            (vec![San::dns("CI.corp")], "dns"),
            (vec![San::dns("x.ci.corp")], "nobody"),
            (vec![San::dns("ci@corp")], "nobody"),
            (vec![San::email("ci@CORP")], "email"),
            (vec![San::email("CI@corp")], "nobody"),
            (vec![San::email("ci.corp")], "nobody"),
            (vec![San::dns("other"), San::dns("ci.corp")], "dns"),
            (vec![San::dns("ci.corp"), San::email("ci@corp")], "nobody"),
            (vec![], "nobody"),
        ] {
            assert_eq!(certified(&names, later, &[]), want, "{names:?}");
        }
        let names = [San::dns("ci.corp")];
        assert_eq!(certified(&names, SystemTime::now(), &[]), "nobody");
        assert_eq!(certified(&names, later, &[("x-api-key", "key")]), "nobody");
        assert_eq!(certified(&names, later, &[("x-api-key", "other")]), "dns");
    }

    #[test]
    fn a_key_is_found_by_one_look_up_among_a_hundred_thousand() {
        let many = (0..100_000).map(|nth| config::Caller {
            name: format!("caller-{nth}"),
            api_key: Some(ApiKey::Sha256(sha256(&[format!("key-{nth}").as_bytes()]))),
            ..nobody()
        });
        let callers = callers(many.collect());
        let Callers::Known(known) = &callers else {
            unreachable!();
        };
        assert_eq!(known.keys.len(), 100_000);
        for (key, name, label) in [
            ("key-0", "caller-0", "caller-0"),
            ("key-199", "caller-199", "caller-199"),
            ("key-200", "caller-200", "other"),
            ("key-99999", "caller-99999", "other"),
        ] {
            let headers = headers(&[("x-countersign-key", key)]);
            let caller = identified(&callers, presented(&headers)).unwrap();
            assert_eq!((&*caller.name, &*caller.label), (name, label));
        }
    }

    #[test]
    fn who_is_taken_out_leaves_and_who_stays_does_not_however_often_it_is_reloaded() {
        let keyed = |name: &str, key: &str| config::Caller {
            name: name.into(),
            api_key: Some(ApiKey::Sha256(sha256(&[key.as_bytes()]))),
            ..nobody()
        };
        let no_issuer = |_: &KeySource| unreachable!();
        let at = Instant::now();
        let mut all = vec![callers(vec![
            keyed("stays", "1"),
            keyed("goes", "2"),
            keyed("changes", "3"),
        ])];
        for next in [
            vec![
                keyed("stays", "1"),
                keyed("goes", "2"),
                keyed("changes", "3"),
            ],
            vec![
                keyed("stays", "1"),
                keyed("changes", "4"),
                keyed("new", "5"),
            ],
        ] {
            let before = all.last().unwrap();
            let configured = config::Callers::Known(next);
            let after = Callers::new(
                &configured,
                Some(before),
                &mint(),
                HashSet::new(),
                no_issuer,
            );
            let after = after.unwrap();
            before.leave(&after, at);
            all.push(after);
        }
        let leaves = |nth: usize, name: &str| {
            let Callers::Known(known) = &all[nth] else {
                unreachable!()
            };
            known.all[name].leave().at() == Some(at)
        };
        // A request may have begun two configurations ago.
        for nth in [0, 1] {
            assert!(leaves(nth, "goes") && leaves(nth, "changes"), "{nth}");
            assert!(!leaves(nth, "stays"), "{nth}");
        }
        assert!(!leaves(2, "stays") && !leaves(2, "changes") && !leaves(2, "new"));
        let anyone = Callers::Anyone(Arc::new(Caller::anyone()));
        all[2].leave(&anyone, at);
        assert!(!leaves(2, "stays"), "everybody may stay");
    }

    #[test]
    fn a_reload_does_not_fill_a_callers_bucket() {
        let one = std::num::NonZeroU32::MIN;
        let rate = config::Rate {
            every: std::time::Duration::from_secs(1),
            burst: one,
        };
        let configured = |rate| {
            config::Callers::Known(vec![config::Caller {
                name: "ci".into(),
                api_key: Some(ApiKey::Sha256(sha256(&[b"key"]))),
                rate: Some(rate),
                ..nobody()
            }])
        };
        let headers = headers(&[("x-api-key", "key")]);
        let no_issuer = |_: &KeySource| unreachable!();
        let first =
            Callers::new(&configured(rate), None, &mint(), HashSet::new(), no_issuer).unwrap();
        let acquire =
            |callers: &Callers| identified(callers, presented(&headers)).unwrap().acquire();
        assert_eq!(acquire(&first), Ok(()));
        let same = Callers::new(
            &configured(rate),
            Some(&first),
            &mint(),
            HashSet::new(),
            no_issuer,
        )
        .unwrap();
        assert!(matches!(acquire(&same), Err(Error::RateLimited { .. })));
        let wider = config::Rate {
            burst: std::num::NonZeroU32::new(2).unwrap(),
            ..rate
        };
        let other = Callers::new(
            &configured(wider),
            Some(&same),
            &mint(),
            HashSet::new(),
            no_issuer,
        )
        .unwrap();
        assert_eq!(acquire(&other), Ok(()));
    }
}
