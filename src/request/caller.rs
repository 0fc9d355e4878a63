//! Who is calling, and what they may do. Pure look-ups over digests: a hundred thousand keys cost
//! no more than one, and comparing digests tells a guesser nothing about a key.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, PROXY_AUTHORIZATION};
use zeroize::Zeroizing;

use crate::config::{self, ApiKey, Grant, secret_ref::SecretError};
use crate::error::Error;
use crate::request::path::glob;
use crate::tls::sha256;

/// The fields a caller's key may stand in by itself, beside the two authorization fields.
pub static KEY_FIELDS: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
    ["x-countersign-key", "x-api-key", "password"]
        .into_iter()
        .chain(config::caller_key_headers())
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
});

/// One proven caller.
#[derive(Debug)]
pub struct Caller {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    allow: Vec<Grant>,
}

impl Caller {
    /// A caller that may do everything: where no callers are configured.
    #[must_use]
    pub fn anyone() -> Self {
        Self {
            name: Arc::from("anyone"),
            allow: vec![Grant {
                vendor: None,
                methods: Vec::new(),
                path: None,
            }],
        }
    }

    /// A caller as configured.
    #[must_use]
    pub fn new(caller: &config::Caller) -> Self {
        Self {
            name: Arc::from(caller.name.as_str()),
            allow: caller.allow.clone(),
        }
    }

    /// The grant that lets `method` on `path` (after the vendor's prefix) pass, if any.
    #[must_use]
    pub fn grant(&self, vendor: &str, method: &str, path: &str) -> Option<&Grant> {
        self.allow.iter().find(|grant| {
            grant.vendor.as_deref().is_none_or(|only| only == vendor)
                && (grant.methods.is_empty() || grant.methods.iter().any(|only| only == method))
                && grant
                    .path
                    .as_deref()
                    .is_none_or(|pattern| glob(pattern, path))
        })
    }
}

/// Everyone who may call.
#[derive(Debug)]
pub enum Callers {
    /// Only this machine's programs; carries the one caller they all are.
    Loopback(Arc<Caller>),
    /// `callers: anyone`.
    Anyone(Arc<Caller>),
    /// By the SHA-256 of their keys.
    Known(HashMap<[u8; 32], Arc<Caller>>),
}

impl Callers {
    /// Reads the keys that the configuration refers to.
    ///
    /// # Errors
    /// When a key cannot be read, with the caller's name.
    pub fn new(callers: &config::Callers) -> Result<Self, (String, SecretError)> {
        match callers {
            config::Callers::Loopback => Ok(Self::Loopback(Arc::new(Caller::anyone()))),
            config::Callers::Anyone => Ok(Self::Anyone(Arc::new(Caller::anyone()))),
            config::Callers::Known(known) => known
                .iter()
                .map(|caller| {
                    let digest = match &caller.api_key {
                        ApiKey::Sha256(digest) => *digest,
                        ApiKey::Key(key) => key
                            .resolve()
                            .map(|key| sha256(&[key.expose().as_bytes()]))
                            .map_err(|cause| (caller.name.clone(), cause))?,
                    };
                    Ok((digest, Arc::new(Caller::new(caller))))
                })
                .collect::<Result<_, _>>()
                .map(Self::Known),
        }
    }

    /// Who sent these headers.
    ///
    /// # Errors
    /// [`Error::UnknownCaller`] when no key is known or two name different callers, and
    /// [`Error::CrossSite`] where only this machine's programs may call and a browser or a foreign
    /// name is in play. `host` is lower-case without a port; `known_host` says whether it is one
    /// of a vendor's `hosts:`.
    pub fn identify(
        &self,
        headers: &HeaderMap,
        authority: &str,
        known_host: bool,
    ) -> Result<Arc<Caller>, Error> {
        match self {
            Self::Anyone(caller) => Ok(caller.clone()),
            Self::Loopback(caller) => {
                if (known_host || is_loopback(host_of(authority)))
                    && !is_cross_site(headers, authority)
                {
                    Ok(caller.clone())
                } else {
                    Err(Error::CrossSite)
                }
            }
            Self::Known(keys) => {
                let mut found: Option<&Arc<Caller>> = None;
                for key in presented(headers) {
                    let Some(caller) = keys.get(&sha256(&[key.as_ref()])) else {
                        continue;
                    };
                    if found.is_some_and(|other| !Arc::ptr_eq(other, caller)) {
                        return Err(Error::UnknownCaller);
                    }
                    found = Some(caller);
                }
                found.cloned().ok_or(Error::UnknownCaller)
            }
        }
    }
}

/// A presented key: borrowed from the head, or decoded from Basic and wiped afterwards.
enum Key<'a> {
    Plain(&'a [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

impl AsRef<[u8]> for Key<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Plain(key) => key,
            Self::Decoded(key) => key,
        }
    }
}

/// Every key in every slot.
fn presented(headers: &HeaderMap) -> impl Iterator<Item = Key<'_>> {
    let plain = KEY_FIELDS
        .iter()
        .flat_map(|name| headers.get_all(name))
        .map(|value| Key::Plain(value.as_bytes().trim_ascii()));
    let schemes = [AUTHORIZATION, PROXY_AUTHORIZATION]
        .into_iter()
        .flat_map(|name| headers.get_all(name))
        .filter_map(|value| in_scheme(value.as_bytes()));
    plain.chain(schemes)
}

/// The key in `Bearer KEY`, `Token KEY` or `Basic base64(anything:KEY)` (RFC 9110 §11.4: schemes
/// are case-insensitive).
fn in_scheme(value: &[u8]) -> Option<Key<'_>> {
    let blank = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(blank);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token") {
        return Some(Key::Plain(rest));
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let pair = Zeroizing::new(STANDARD.decode(rest).ok()?);
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(Key::Decoded(Zeroizing::new(pair[colon + 1..].to_vec())))
}

/// The host of an authority, without its port; IPv6 literals keep their brackets.
#[must_use]
pub fn host_of(authority: &str) -> &str {
    let after_literal = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_literal..].find(':') {
        Some(colon) => &authority[..after_literal + colon],
        None => authority,
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost") {
        return true;
    }
    let literal = name.trim_start_matches('[').trim_end_matches(']');
    literal
        .parse::<IpAddr>()
        .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whether a browser says that a page of another site is behind this request (Fetch Metadata, and
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

/// `host` in lower case, borrowed when it already is.
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
            api_key: ApiKey::Sha256(sha256(&[key.as_bytes()])),
            allow: vec![],
        };
        Callers::new(&config::Callers::Known(vec![
            caller("a", "key-a"),
            caller("b", "key-b"),
        ]))
        .unwrap()
    }

    fn who(fields: &[(&'static str, &str)]) -> Result<String, Error> {
        known()
            .identify(&headers(fields), "proxy", false)
            .map(|caller| caller.name.to_string())
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
        let caller = Caller {
            name: "ci".into(),
            allow: vec![
                Grant {
                    vendor: Some("v".into()),
                    methods: vec!["GET".into(), "HEAD".into()],
                    path: Some("/vedsdk/**".into()),
                },
                Grant {
                    vendor: Some("w".into()),
                    methods: vec![],
                    path: None,
                },
            ],
        };
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
    }

    #[test]
    fn without_callers_only_programs_of_this_machine_may_call() {
        let callers = Callers::new(&config::Callers::Loopback).unwrap();
        let allowed = |authority: &str, known_host, fields: &[(&'static str, &str)]| {
            callers
                .identify(&headers(fields), authority, known_host)
                .is_ok()
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
}
