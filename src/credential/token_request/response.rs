//! A token endpoint's response: read within bounds, and quoted only with our own secrets masked.

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, StatusCode};
use reqwest::Response;
use serde_json::{Map, Value};
use tokio::time::Instant;
use url::Url;

use super::TokenRequest;
use crate::credential::explanation::{self, Explanation, Verdict};
use crate::credential::{FetchError, Issued, Lifetime};
use crate::endpoint;
use crate::http_fields;
use crate::secret::Secret;

/// A successful response (RFC 6749 §5.1).
#[derive(Debug)]
pub(in crate::credential) struct TokenResponse {
    /// The access token.
    pub(in crate::credential) access_token: Secret,
    /// Lifetime of the access token.
    pub(in crate::credential) lifetime: Lifetime,
    /// A new refresh token; `None`: the old one, if any, stays good (RFC 6749 §6).
    pub(in crate::credential) refresh_token: Option<Secret>,
    /// Time, on our clock, after which refreshing fails and only a new grant helps.
    pub(in crate::credential) refresh_until: Option<SystemTime>,
}

impl TokenResponse {
    /// Returns the access token as it is put on requests.
    pub(in crate::credential) fn issued(&self) -> Result<Issued, FetchError> {
        let value = self.access_token.to_header("Bearer ");
        let value = value.map_err(|_| FetchError::Temporary {
            cause: "the access token holds characters that cannot be sent".to_owned(),
            retry_after: None,
        })?;
        Ok(Issued {
            values: vec![value],
            lifetime: Some(self.lifetime),
        })
    }
}

/// An unsuccessful token request. No text holds a secret.
#[derive(Debug, thiserror::Error)]
pub(in crate::credential) enum TokenError {
    /// Trying again may help.
    #[error("{cause}")]
    Temporary {
        /// Says what went wrong.
        cause: String,
        /// The server's `Retry-After`.
        retry_after: Option<Duration>,
        /// The server cannot have acted on the request: it never received it, or said so.
        not_received: bool,
    },
    /// The server refused.
    #[error("{cause}")]
    Refused {
        /// Status of the response.
        status: StatusCode,
        /// The `error` code, if it is one of RFC 6749 §5.2.
        code: Option<&'static str>,
        /// Verdict on the refresh token that was sent.
        verdict: Verdict,
        /// The full text for people.
        cause: String,
    },
    /// The request could not be made from the configuration.
    #[error("{0}")]
    NotSent(String),
}

impl From<TokenError> for FetchError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Temporary {
                cause, retry_after, ..
            } => Self::Temporary { cause, retry_after },
            TokenError::Refused { cause, .. } | TokenError::NotSent(cause) => Self::Rejected(cause),
        }
    }
}

/// Reads one response.
pub(super) struct ResponseReader<'a> {
    pub(super) endpoint: String,
    pub(super) request: &'a TokenRequest,
    pub(super) status: StatusCode,
    pub(super) reason: String,
    pub(super) headers: &'a HeaderMap,
}

impl ResponseReader<'_> {
    pub(super) fn read(
        &self,
        body: &[u8],
        sent: Instant,
        default_lifetime: Duration,
    ) -> Result<TokenResponse, TokenError> {
        match self.status.as_u16() {
            204 | 205 => Err(self.temporary("a response without a body", false)),
            200..=299 => self.success(body, sent, default_lifetime),
            300..=399 => Err(self.temporary(&self.redirect(), true)),
            408 | 425 | 429 => Err(self.busy(&self.explanation(body))),
            400..=499 => {
                let explanation = self.explanation(body);
                Err(if explanation.is_busy() {
                    self.busy(&explanation)
                } else {
                    self.refused(&explanation)
                })
            }
            // 500 and above, and what is no status of a final response at all. A gateway's response
            // says nothing about the server behind it; an OAuth error is the server's own.
            _ => {
                let explanation = self.explanation(body);
                Err(if explanation.code().is_some() {
                    self.refused(&explanation)
                } else {
                    let retry_requested = self.status == StatusCode::SERVICE_UNAVAILABLE
                        && self.header(&RETRY_AFTER).is_some();
                    self.temporary(
                        &self.with_explanation("the server failed", &explanation),
                        retry_requested || explanation.is_busy(),
                    )
                })
            }
        }
    }

    /// Masks and bounds `text` from the server.
    fn quoted(&self, text: &str) -> String {
        self.request.mask().line(text)
    }

    /// Returns `what` with the server's explanation.
    fn with_explanation(&self, what: &str, explanation: &Explanation) -> String {
        let message = explanation.text();
        if message.is_empty() {
            what.to_owned()
        } else {
            format!("{what}: {}", self.quoted(&message))
        }
    }

    fn explanation(&self, body: &[u8]) -> Explanation {
        Explanation::read(body, self.header(&CONTENT_TYPE))
    }

    fn success(
        &self,
        body: &[u8],
        sent: Instant,
        default_lifetime: Duration,
    ) -> Result<TokenResponse, TokenError> {
        let unreadable = |what: &str| self.temporary(what, false);
        if body.is_empty() {
            return Err(unreadable("a response without a body"));
        }
        let Some(Value::Object(fields)) = explanation::json(body) else {
            let kind = self.header(&CONTENT_TYPE);
            let explanation = Explanation::read_form(body, kind);
            if explanation.is_failure() {
                return Err(self.refused(&explanation));
            }
            let what = format!(
                "a response that is not a JSON object ({} bytes{})",
                body.len(),
                kind.map(|value| format!(" of {}", self.quoted(value)))
                    .unwrap_or_default(),
            );
            let page = Explanation::from_page(body, kind);
            return Err(unreadable(&self.with_explanation(&what, &page)));
        };
        let access_token = match fields.get("access_token") {
            Some(Value::String(token)) if !token.trim().is_empty() => Secret::new(token.as_str()),
            None | Some(Value::Null | Value::String(_)) => {
                return Err(self.no_access_token(&fields));
            }
            Some(_) => {
                return Err(unreadable(
                    "an access_token that is not a string, or is empty",
                ));
            }
        };
        let refresh_token = match fields.get("refresh_token") {
            Some(Value::String(token)) if !token.trim().is_empty() => {
                Some(Secret::new(token.as_str()))
            }
            None | Some(Value::Null | Value::String(_)) => None,
            Some(_) => return Err(unreadable("a refresh_token that is not a string")),
        };
        if let Some(Value::String(kind)) = fields.get("token_type")
            && !is_bearer(kind)
        {
            return Err(TokenError::Refused {
                status: self.status,
                code: None,
                verdict: Verdict::Unrelated,
                cause: self.text(&format!(
                    "a token of type {}, where Bearer was expected",
                    self.quoted(kind)
                )),
            });
        }
        let Some(total) = self
            .lifetime(&fields)
            .map_or(Some(default_lifetime), |seconds| {
                (seconds > 0.0)
                    .then(|| Duration::from_secs_f64(seconds.min(MAX_LIFETIME.as_secs_f64())))
            })
        else {
            return Err(unreadable("a token that has already expired"));
        };
        let refresh_until = fields
            .get("refresh_until")
            .and_then(number)
            .map(|at| (at - self.server_now()).clamp(0.0, MAX_LIFETIME.as_secs_f64() * 100.0))
            .map(|left| SystemTime::now() + Duration::from_secs_f64(left));
        Ok(TokenResponse {
            access_token,
            lifetime: Lifetime {
                total,
                end: sent + total,
            },
            refresh_token,
            refresh_until,
        })
    }

    /// Returns the lifetime in seconds; `None`: not stated, or not readable.
    fn lifetime(&self, fields: &Map<String, Value>) -> Option<f64> {
        let relative = fields.get("expires_in").and_then(number);
        relative.or_else(|| {
            let at = fields.get("expires").and_then(number)?;
            Some(at - self.server_now())
        })
    }

    /// Reads an object without an access token: some servers refuse with a status of success.
    fn no_access_token(&self, fields: &Map<String, Value>) -> TokenError {
        let explanation = Explanation::from_object(fields);
        if explanation.is_busy() {
            self.busy(&explanation)
        } else if explanation.is_server_error() {
            self.temporary(
                &self.with_explanation("the server failed", &explanation),
                false,
            )
        } else if explanation.is_failure() {
            self.refused(&explanation)
        } else if let Some(Value::String(_)) = fields.get("access_token") {
            self.temporary("an access_token that is not a string, or is empty", false)
        } else {
            self.temporary(
                &self.with_explanation("a response without access_token", &explanation),
                false,
            )
        }
    }

    fn busy(&self, explanation: &Explanation) -> TokenError {
        self.temporary(
            &self.with_explanation("the server asks to try again later", explanation),
            true,
        )
    }

    fn refused(&self, explanation: &Explanation) -> TokenError {
        let mut message = self.quoted(&explanation.text());
        if message.is_empty() {
            "no OAuth error in the response".clone_into(&mut message);
        }
        let mut cause = self.text(&message);
        if let Some(clock_skew) = self.clock_skew() {
            cause.push_str(&clock_skew);
        }
        TokenError::Refused {
            status: self.status,
            code: explanation.code(),
            verdict: explanation.verdict(self.status),
            cause,
        }
    }

    /// Describes the difference between the server's clock and ours, if the request held a proof
    /// that depends on the time.
    fn clock_skew(&self) -> Option<String> {
        if !self.request.time_bound {
            return None;
        }
        let date = http_fields::date(self.headers)?;
        let now = SystemTime::now();
        let (seconds, word) = match date.duration_since(now) {
            Ok(ahead) => (ahead.as_secs(), "ahead of"),
            Err(behind) => (behind.duration().as_secs(), "behind"),
        };
        (seconds > NOTABLE_SKEW.as_secs()).then(|| {
            let difference = humantime::format_duration(Duration::from_secs(seconds));
            format!(
                "; the server's clock is {difference} {word} ours, and the assertion is signed by \
                 ours: check the time of this machine"
            )
        })
    }

    /// Describes a redirect without its user information and query: the target is the server's
    /// text, and secrets would be there.
    fn redirect(&self) -> String {
        let target = self.header(&LOCATION).unwrap_or_default();
        let target = Url::parse(target).map_or_else(
            // A reference relative to the token URL.
            |_| {
                target
                    .split(['?', '#'])
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            },
            |url| endpoint::without_login(&url),
        );
        let target = self.quoted(&target);
        format!("a redirect to {target}, not followed: a token URL must be the final one")
    }

    pub(super) fn temporary(&self, what: &str, not_received: bool) -> TokenError {
        let wanted = http_fields::retry_after(self.headers).or_else(|| {
            // RFC 9110 knows whole seconds only; some servers state fractions.
            let seconds: f64 = self.header(&RETRY_AFTER)?.parse().ok()?;
            (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        });
        TokenError::Temporary {
            cause: self.text(what),
            retry_after: wanted.map(|wanted| wanted.min(MAX_RETRY_AFTER)),
            not_received,
        }
    }

    fn text(&self, what: &str) -> String {
        let status = self.status.as_u16();
        let reason = self.quoted(&self.reason);
        format!("{}: {status} {reason}: {what}", self.endpoint)
    }

    /// Returns the seconds since the epoch by the server's clock, for the absolute times it states;
    /// by ours when it has no `Date`.
    fn server_now(&self) -> f64 {
        epoch(http_fields::date(self.headers).unwrap_or_else(SystemTime::now))
    }

    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Tells whether a token of this type goes into `Authorization` after `Bearer`. Servers write any
/// type there; only the name of another scheme says that the token cannot be used this way.
fn is_bearer(token_type: &str) -> bool {
    let name = token_type.trim().to_ascii_lowercase();
    !OTHER_SCHEMES.contains(&name.as_str())
}

/// Returns the body, or what is wrong with it.
pub(super) async fn read_bounded(response: &mut Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|_| "the response was cut off".to_owned())?
    {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(format!("a response of more than {MAX_BODY} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Returns the reason phrase of HTTP/1.1; some servers put the whole explanation there.
pub(super) fn reason_phrase(response: &Response) -> String {
    let canonical = response.status().canonical_reason().unwrap_or_default();
    response
        .extensions()
        .get::<hyper::ext::ReasonPhrase>()
        .map_or_else(
            || canonical.to_owned(),
            |reason| String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        )
}

/// Reads an integer, a float or a numeric text.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    number.is_finite().then_some(number)
}

pub(super) fn epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Token types that are other ways to send or to prove a token: the schemes of the IANA registry of
/// HTTP authentication, and those of OAuth extensions.
const OTHER_SCHEMES: [&str; 19] = [
    "mac",
    "dpop",
    "pop",
    "hmac",
    "hawk",
    "basic",
    "digest",
    "negotiate",
    "ntlm",
    "mutual",
    "hoba",
    "gnap",
    "vapid",
    "oauth",
    "token",
    "signature",
    "aws4-hmac-sha256",
    "saml1",
    "saml2",
];
/// Smaller differences between clocks do not make an assertion invalid.
const NOTABLE_SKEW: Duration = Duration::from_secs(30);
/// Responses have a few hundred bytes, a few thousand with large JWTs.
const MAX_BODY: usize = 1024 * 1024;
/// Longer stated lifetimes are taken for an error, or for "never".
const MAX_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// A longer `Retry-After` is cut to this.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(10);
