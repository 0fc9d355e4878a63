//! The placement of a credential on a request.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use zeroize::Zeroizing;

use crate::config::{Auth, Carrier};
use crate::credential::Held;
use crate::secret::SecretRef;

/// The part of a request that carries the credential. A closed set: a vendor that fits none of
/// these needs a new variant, never a special case elsewhere.
#[derive(Clone, Debug)]
pub enum Placement {
    /// `Authorization`; the value includes the scheme.
    Authorization,
    /// Headers by exact name; the n-th value goes into the n-th header.
    Headers {
        /// The names, spelled as configured.
        names: Vec<Bytes>,
        /// `true` for each value that is secret.
        secret: Vec<bool>,
    },
    /// One value, already `name=value&…`, appended to the query. Parameters of these names that the
    /// caller sent are removed first.
    Query(Vec<String>),
}

impl Placement {
    /// Returns the placement of a credential's kind.
    #[must_use]
    pub fn of(auth: &Auth) -> Self {
        match auth.kind().carrier {
            Carrier::Authorization(_) => Self::Authorization,
            Carrier::Headers(headers) => Self::Headers {
                names: headers
                    .iter()
                    .map(|(name, _)| Bytes::copy_from_slice(name.as_bytes()))
                    .collect(),
                secret: headers
                    .iter()
                    .map(|(_, value)| !matches!(value, SecretRef::Plain(_)))
                    .collect(),
            },
            Carrier::Query(parameters) => {
                Self::Query(parameters.iter().map(|(name, _)| name.clone()).collect())
            }
        }
    }

    /// Puts the credential on `request`, last of all that is added. Each header replaces every
    /// value under its name; a query parameter replaces the caller's own of that name.
    ///
    /// # Errors
    /// Fails if `request` cannot take a header or the query. Held values are valid, so only a
    /// defect here causes it.
    pub fn apply(&self, held: &Held, request: &mut RequestHeader) -> pingora::Result<()> {
        for (name, value) in self.headers(held) {
            request.insert_header(name, value.clone())?;
        }
        if let Self::Query(names) = self {
            let target = target_with_query(names, held, request.raw_path()).ok_or_else(|| {
                let context = "the credential cannot be put into the query";
                Error::explain(ErrorType::InternalError, context)
            })?;
            request.set_raw_path(target.as_bytes())?;
        }
        Ok(())
    }

    /// Returns the headers to set.
    fn headers<'a>(
        &'a self,
        held: &'a Held,
    ) -> impl Iterator<Item = (Bytes, &'a HeaderValue)> + 'a {
        let names: &'a [Bytes] = match self {
            Self::Authorization => &AUTHORIZATION,
            Self::Headers { names, .. } => names,
            Self::Query(_) => &[],
        };
        names.iter().cloned().zip(held.values())
    }

    /// Returns the secrets in a held credential, which must not come back to a caller.
    #[must_use]
    pub fn secrets(&self, held: &Held) -> Vec<Zeroizing<Vec<u8>>> {
        let mut secrets = Vec::new();
        match self {
            Self::Authorization => {
                for value in held.values() {
                    after_scheme(value.as_bytes(), &mut secrets);
                }
            }
            Self::Headers { secret, .. } => {
                for (value, _) in held.values().iter().zip(secret).filter(|(_, is)| **is) {
                    secrets.push(Zeroizing::new(value.as_bytes().to_vec()));
                    after_scheme(value.as_bytes(), &mut secrets);
                }
            }
            Self::Query(_) => {
                let pairs = held.values().iter().map(HeaderValue::as_bytes);
                for pair in pairs.flat_map(|query| query.split(|byte| *byte == b'&')) {
                    let value = pair.splitn(2, |byte| *byte == b'=').nth(1);
                    let sent = value.unwrap_or_default();
                    let value: Vec<u8> = percent_encoding::percent_decode(sent).collect();
                    // An echo of the whole target encodes once more what is encoded in it.
                    if value != sent {
                        secrets.push(Zeroizing::new(sent.to_vec()));
                    }
                    secrets.push(Zeroizing::new(value));
                }
            }
        }
        secrets
    }
}

/// Returns the target to send: the caller's path, its query without parameters of our names, then
/// ours. `None`: the target or the held value is not text.
fn target_with_query(names: &[String], held: &Held, callers: &[u8]) -> Option<String> {
    let callers = std::str::from_utf8(callers).ok()?;
    let ours = held.values().first()?.to_str().ok()?;
    let (path, query) = callers.split_once('?').unwrap_or((callers, ""));
    let mut target = String::with_capacity(callers.len() + ours.len() + 2);
    target.push_str(path);
    target.push('?');
    for pair in without(query, names) {
        target.push_str(pair);
        target.push('&');
    }
    target.push_str(ours);
    Some(target)
}

/// Returns the parameters of `query` except those with one of `names`.
pub fn without<'a>(query: &'a str, names: &'a [String]) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty() && !names.iter().any(|name| is_named(pair, name)))
}

/// Adds the secrets in `Bearer SECRET`, `Basic base64(NAME:SECRET)` and similar values.
fn after_scheme(value: &[u8], into: &mut Vec<Zeroizing<Vec<u8>>>) {
    let Some(blank) = value.iter().position(|byte| *byte == b' ') else {
        return;
    };
    let (scheme, rest) = (&value[..blank], value[blank..].trim_ascii());
    if !scheme.iter().all(u8::is_ascii_alphabetic) {
        return;
    }
    into.push(Zeroizing::new(rest.to_vec()));
    if scheme.eq_ignore_ascii_case(b"basic")
        && let Ok(pair) = STANDARD.decode(rest).map(Zeroizing::new)
        && let Some(colon) = pair.iter().position(|byte| *byte == b':')
    {
        into.push(Zeroizing::new(pair[colon + 1..].to_vec()));
        into.push(pair);
    }
}

static AUTHORIZATION: [Bytes; 1] = [Bytes::from_static(b"Authorization")];

/// Tells whether `pair` is a parameter with this name, in any escaping and, since servers differ,
/// in any case.
fn is_named(pair: &str, name: &str) -> bool {
    let raw = pair.split('=').next().unwrap_or_default().replace('+', " ");
    percent_encoding::percent_decode_str(&raw)
        .decode_utf8_lossy()
        .eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_parameter_of_our_name_is_recognised_in_any_spelling() {
        for pair in ["key=x", "key", "%6bey=x", "KEY=x", "k%65y"] {
            assert!(is_named(pair, "key"), "{pair}");
        }
        assert!(!is_named("keys=x", "key"));
        assert!(!is_named("x=key", "key"));
    }
}
