//! Credentials that are used as configured: nothing is fetched, nothing expires.

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use super::inputs::Inputs;
use super::{FetchError, Issued, Source};
use crate::secret::reference::SecretError;
use crate::secret::{Secret, SecretRef};

/// Secrets, and the scheme in which a vendor wants them.
pub(super) struct StaticAuth {
    scheme: Scheme,
    inputs: Inputs,
}

/// The way secrets become values on a request.
pub(super) enum Scheme {
    /// `Bearer TOKEN` (RFC 6750 §2.1).
    Bearer(SecretRef),
    /// `Basic …` (RFC 7617 §2).
    Basic {
        /// User name. It must not hold a colon.
        username: SecretRef,
        /// Password.
        password: SecretRef,
    },
    /// One value per header, in this order.
    Headers(Vec<SecretRef>),
    /// All parameters in one value.
    Query(Vec<(String, SecretRef)>),
}

impl StaticAuth {
    pub(super) fn new(scheme: Scheme) -> Self {
        let inputs = match &scheme {
            Scheme::Bearer(token) => Inputs::new([token], None, None),
            Scheme::Basic { username, password } => Inputs::new([username, password], None, None),
            Scheme::Headers(values) => Inputs::new(values, None, None),
            Scheme::Query(pairs) => Inputs::new(pairs.iter().map(|(_, value)| value), None, None),
        };
        Self { scheme, inputs }
    }

    /// Reads the secrets and makes the values.
    pub(super) fn read(&self) -> Result<Issued, StaticAuthError> {
        self.inputs.snapshot();
        let header = |secret: &SecretRef, prefix| {
            secret
                .resolve()?
                .to_header(prefix)
                .map_err(|_| StaticAuthError::NotAHeaderValue(secret.describe()))
        };
        let values = match &self.scheme {
            Scheme::Bearer(token) => vec![header(token, "Bearer ")?],
            Scheme::Basic { username, password } => {
                let user = username.resolve()?;
                if user.expose().contains(':') {
                    return Err(StaticAuthError::Colon(username.describe()));
                }
                vec![basic(&user, &password.resolve()?)]
            }
            Scheme::Headers(values) => values
                .iter()
                .map(|value| header(value, ""))
                .collect::<Result<_, _>>()?,
            Scheme::Query(pairs) => vec![query(pairs)?],
        };
        Ok(Issued {
            values,
            lifetime: None,
        })
    }
}

/// The reason why a credential cannot be made from its secrets. Texts name places, never values.
#[derive(Debug, thiserror::Error)]
pub(super) enum StaticAuthError {
    /// A secret is missing.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A value has control characters, for instance a line break inside.
    #[error("{0} holds characters that may not occur in a header field")]
    NotAHeaderValue(String),
    /// A user name holds a colon, where HTTP Basic ends it (RFC 7617 §2).
    #[error("{0} holds a colon, which a user name for HTTP Basic cannot contain")]
    Colon(String),
}

#[async_trait]
impl Source for StaticAuth {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        self.read()
            .map_err(|cause| FetchError::Rejected(cause.to_string()))
    }

    async fn changed(&self) {
        self.inputs.changed().await;
    }
}

/// Returns `Basic` followed by both halves, which are already encoded as their receiver wants them.
pub(super) fn basic(username: &Secret, password: &Secret) -> HeaderValue {
    let pair = Zeroizing::new(format!("{}:{}", username.expose(), password.expose()));
    Secret::new(BASE64_STANDARD.encode(pair.as_bytes()))
        .to_header("Basic ")
        .expect("base64 is visible ASCII")
}

fn query(pairs: &[(String, SecretRef)]) -> Result<HeaderValue, StaticAuthError> {
    let mut text = Zeroizing::new(String::new());
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(utf8_percent_encode(name, ENCODED));
        text.push('=');
        text.extend(utf8_percent_encode(value.resolve()?.expose(), ENCODED));
    }
    Ok(Secret::new(text.as_str())
        .to_header("")
        .expect("percent-encoded text is visible ASCII"))
}

/// Every character except the unreserved ones of RFC 3986 §2.3.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> SecretRef {
        SecretRef::Value(Secret::new(text))
    }

    fn values(scheme: Scheme) -> Vec<String> {
        let issued = StaticAuth::new(scheme).read().unwrap();
        assert!(issued.values.iter().all(HeaderValue::is_sensitive));
        assert!(issued.lifetime.is_none());
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        issued.values.iter().map(text).collect()
    }

    #[test]
    fn each_shape_makes_the_values_its_vendor_wants() {
        assert_eq!(values(Scheme::Bearer(value("t0k"))), ["Bearer t0k"]);
        assert_eq!(
            values(Scheme::Basic {
                username: value("Aladdin"),
                password: value("open sesame"),
            }),
            ["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]
        );
        assert_eq!(
            values(Scheme::Headers(vec![
                value("admin"),
                value("pass"),
                value("acme")
            ])),
            ["admin", "pass", "acme"]
        );
        assert_eq!(
            values(Scheme::Query(vec![
                ("key".into(), value("a&b=c d/ü")),
                ("tenant".into(), value("7")),
            ])),
            ["key=a%26b%3Dc%20d%2F%C3%BC&tenant=7"]
        );
    }

    #[test]
    fn values_that_would_break_the_request_are_refused_without_being_quoted() {
        let broken = StaticAuth::new(Scheme::Bearer(value("hunter2\r\nX: y"))).read();
        let text = broken.unwrap_err().to_string();
        assert!(text.contains("may not occur in a header field"), "{text}");
        assert!(!text.contains("hunter2"));

        let colon = StaticAuth::new(Scheme::Basic {
            username: value("hunter2:x"),
            password: value("p"),
        });
        let text = colon.read().unwrap_err().to_string();
        assert!(
            text.contains("colon") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
