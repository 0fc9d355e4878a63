//! Where on a request a credential goes. Pure functions, no I/O.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::config::Auth;
use crate::credential::Held;
use crate::secret::SecretRef;

/// How a vendor wants to be shown what we hold. A closed set: a vendor that fits none of these
/// needs a new variant, never a special case elsewhere.
#[derive(Clone, Debug)]
pub enum Placement {
    /// `Authorization`, the scheme included in the value.
    Authorization,
    /// Header fields by exact name; the n-th value goes into the n-th field.
    Headers {
        /// Their names, spelled as configured.
        names: Vec<Bytes>,
        /// Which of the values are secrets.
        secret: Vec<bool>,
    },
    /// One value, already `name=value&…`, appended to the query. The names are those whose
    /// caller-sent parameters are removed first.
    Query(Vec<String>),
}

impl Placement {
    /// The placement of a kind.
    #[must_use]
    pub fn of(auth: &Auth) -> Self {
        match auth {
            Auth::Headers(fields) => Self::Headers {
                names: fields
                    .iter()
                    .map(|(name, _)| Bytes::copy_from_slice(name.as_bytes()))
                    .collect(),
                secret: fields
                    .iter()
                    .map(|(_, value)| !matches!(value, SecretRef::Plain(_)))
                    .collect(),
            },
            Auth::Query(parameters) => {
                Self::Query(parameters.iter().map(|(name, _)| name.clone()).collect())
            }
            Auth::Bearer { .. }
            | Auth::Basic { .. }
            | Auth::ClientCredentials(_)
            | Auth::AuthorizationCode(_)
            | Auth::Vedauth(_) => Self::Authorization,
        }
    }

    /// The fields to set, each replacing whatever stands under its name.
    pub fn fields<'a>(
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

    /// What of it must not come back to a caller.
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

    /// The query to send: the caller's without parameters of our names, ours behind it. `None`
    /// when it stays as it is.
    #[must_use]
    pub fn query(&self, held: &Held, callers: Option<&str>) -> Option<String> {
        let Self::Query(names) = self else {
            return None;
        };
        let ours = held.values().first()?.to_str().ok()?;
        let mut query = String::with_capacity(callers.map_or(0, str::len) + ours.len() + 1);
        for pair in without(callers.unwrap_or_default(), names) {
            query.push_str(pair);
            query.push('&');
        }
        query.push_str(ours);
        Some(query)
    }
}

/// The parameters of `query` but for those called one of `names`.
pub fn without<'a>(query: &'a str, names: &'a [String]) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty() && !names.iter().any(|name| is_named(pair, name)))
}

/// The secrets in `Bearer SECRET`, `Basic base64(NAME:SECRET)` and the like.
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

/// Whether `pair` is a parameter called `name`, in any escaping and, since servers differ, in any
/// case.
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
