//! One POST to a token endpoint, and reading what it answers.
//!
//! Nothing here trusts the server: answers are bounded in size and time, redirects are not
//! followed (they would carry the secret elsewhere), and what is quoted from an error has been
//! searched for our own secrets first.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, Response, redirect};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;
use url::form_urlencoded;

use super::pace::MIN_PAUSE;
use super::{FetchError, Issued, Lifetime};
use crate::config::{self, CertFiles, TokenTimes};
use crate::endpoint;
use crate::late_client_auth::{LateClientAuth, exchange};
use crate::outbound::Outbound;
use crate::secret::Secret;
use crate::tls::{Identity, Roots};

/// The client side of one vendor's token endpoints.
pub(super) struct TokenClient {
    identity: Option<CertFiles>,
    ca: Option<PathBuf>,
    late_client_auth: bool,
    allow_plaintext: bool,
    proxy: Option<Url>,
    connect_timeout: Duration,
    times: TokenTimes,
    /// With the digest of the files it was made from.
    built: Mutex<Option<([u8; 32], Transport)>>,
    last_sent: Mutex<Option<Instant>>,
}

/// What speaks TLS and HTTP.
#[derive(Clone)]
struct Transport {
    client: Client,
    /// In its place for `https://`, where the server asks for the certificate late.
    late: Option<Arc<LateClientAuth>>,
}

/// Why there is no answer.
struct NoAnswer {
    cause: String,
    /// The server cannot have had the request.
    unheard: bool,
}

/// What is posted.
pub(super) struct TokenRequest {
    /// `Authorization`, when the client proves itself there.
    pub(super) authorization: Option<HeaderValue>,
    /// Parameters, in the order they are sent.
    pub(super) params: Vec<(&'static str, Secret)>,
    /// Parameters an operator wrote, sent after those.
    pub(super) extra: Vec<(String, String)>,
    /// One JSON object instead of a form.
    pub(super) json: bool,
    /// Not secret to the server, and left out of texts as `[client_id]`.
    pub(super) client_id: Secret,
    /// Whatever must not be quoted from an answer.
    pub(super) secrets: Vec<Secret>,
}

/// A successful answer, RFC 6749 §5.1.
#[derive(Debug)]
pub(super) struct Answer {
    /// The access token.
    pub(super) access_token: Secret,
    /// Of the access token.
    pub(super) lifetime: Lifetime,
    /// A new refresh token; `None`: the old one, if any, stays good (RFC 6749 §6).
    pub(super) refresh_token: Option<Secret>,
    /// When refreshing ends and only a new grant helps, on our clock.
    pub(super) refresh_until: Option<SystemTime>,
}

impl Answer {
    /// The access token as it goes on requests.
    pub(super) fn issued(&self) -> Result<Issued, FetchError> {
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

/// An unsuccessful one. No secret in any text.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// Trying again may help.
    #[error("{cause}")]
    Temporary {
        /// What went wrong.
        cause: String,
        /// The server's own wish.
        retry_after: Option<Duration>,
        /// The server cannot have acted on the request: it never had it, or said so.
        unheard: bool,
    },
    /// A clear no.
    #[error("{cause}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// `error`, when it was one of RFC 6749 §5.2.
        code: Option<&'static str>,
        /// The whole story.
        cause: String,
    },
    /// The request could not be made from what the configuration names.
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

impl TokenClient {
    /// A client for `vendor`'s token endpoints that shows `identity` when asked for a certificate.
    pub(super) fn new(
        vendor: &config::Vendor,
        identity: Option<CertFiles>,
        times: TokenTimes,
    ) -> Self {
        Self {
            identity,
            ca: vendor.ca.clone(),
            late_client_auth: vendor.late_client_auth,
            allow_plaintext: vendor.allow_plaintext,
            proxy: vendor.proxy.clone(),
            connect_timeout: vendor.timeouts.connect,
            times,
            built: Mutex::new(None),
            last_sent: Mutex::new(None),
        }
    }

    /// One request, one answer, within `request_timeout` in all. Requests through one client are
    /// at least a second apart, because one attempt may need two.
    pub(super) async fn post(
        &self,
        url: &Url,
        request: TokenRequest,
    ) -> Result<Answer, TokenError> {
        let transport = self.transport().map_err(TokenError::NotSent)?;
        let sent = self.turn().await;
        let mut post = transport
            .client
            .post(url.clone())
            .header(ACCEPT, "application/json");
        if let Some(value) = &request.authorization {
            post = post.header(AUTHORIZATION, value.clone());
        }
        let post = if request.json {
            post.header(CONTENT_TYPE, "application/json")
                .body(request.json_body())
        } else {
            post.header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(request.form_body())
        };

        let place = endpoint::shown(url);
        let deadline = sent + self.times.request_timeout;
        let late = |unheard| TokenError::Temporary {
            cause: format!(
                "{place}: no complete answer within {:?}",
                self.times.request_timeout
            ),
            retry_after: None,
            unheard,
        };
        let mut response = timeout_at(deadline, self.send(&transport, post))
            .await
            .map_err(|_| late(false))?
            .map_err(|failed| TokenError::Temporary {
                unheard: failed.unheard,
                cause: format!("{place}: {}", failed.cause),
                retry_after: None,
            })?;
        let body = timeout_at(deadline, read_bounded(&mut response))
            .await
            .map_err(|_| late(false))?;
        let reading = Reading {
            place,
            request: &request,
            status: response.status(),
            reason: reason_phrase(&response),
            headers: response.headers(),
        };
        match body {
            Ok(body) => reading.answer(&body, sent, self.times.default_lifetime),
            Err(cause) => Err(reading.temporary(&cause, false)),
        }
    }

    /// A GET with this `Authorization`, of whose answer only the status counts.
    pub(super) async fn get(
        &self,
        url: &Url,
        authorization: HeaderValue,
    ) -> Result<StatusCode, TokenError> {
        let transport = self.transport().map_err(TokenError::NotSent)?;
        let sent = self.turn().await;
        let get = transport
            .client
            .get(url.clone())
            .header(AUTHORIZATION, authorization);
        let trouble = |cause| TokenError::Temporary {
            cause: format!("{}: {cause}", endpoint::shown(url)),
            retry_after: None,
            unheard: false,
        };
        let deadline = sent + self.times.request_timeout;
        let response = timeout_at(deadline, self.send(&transport, get))
            .await
            .map_err(|_| trouble(format!("no answer within {:?}", self.times.request_timeout)))?
            .map_err(|failed| trouble(failed.cause))?;
        Ok(response.status())
    }

    async fn send(
        &self,
        transport: &Transport,
        request: RequestBuilder,
    ) -> Result<Response, NoAnswer> {
        let unsent = |error: reqwest::Error| NoAnswer {
            unheard: error.is_connect() || error.is_builder(),
            cause: describe(error),
        };
        let request = request.build().map_err(unsent)?;
        let url = request.url().clone();
        let unheard = |cause: String| NoAnswer {
            cause,
            unheard: true,
        };
        let via = Outbound::new(self.proxy.as_ref()).via(&url);
        let via = via.map_err(|unusable| unheard(unusable.to_string()))?;
        let limit = self.connect_timeout;
        let exchanged = match (&transport.late, &via) {
            (Some(late), _) if url.scheme() == "https" => {
                let stream = late.open(&url, via.as_ref(), limit).await;
                let stream = stream.map_err(|cause| unheard(cause.to_string()))?;
                let request = request.try_into().map_err(unsent)?;
                exchange(stream, request, AGENT).await
            }
            // By CONNECT, as requests go. reqwest would ask the proxy itself for the resource.
            (_, Some(via)) if url.scheme() == "http" => {
                let (host, port) = (url.host_str(), url.port_or_known_default());
                let target = format!("{}:{}", host.unwrap_or_default(), port.unwrap_or(80));
                let stream = via.open(&target, limit).await;
                let stream = stream.map_err(|cause| unheard(cause.to_string()))?;
                let request = request.try_into().map_err(unsent)?;
                exchange(stream, request, AGENT).await
            }
            (_, _) => return transport.client.execute(request).await.map_err(unsent),
        };
        exchanged.map_err(|cause| NoAnswer {
            cause,
            unheard: false,
        })
    }

    /// Waits until a request may be sent, and counts it as sent.
    async fn turn(&self) -> Instant {
        let earliest = *self.last_sent.lock();
        if let Some(last) = earliest {
            sleep_until(last + MIN_PAUSE).await;
        }
        let sent = Instant::now();
        *self.last_sent.lock() = Some(sent);
        sent
    }

    /// Made anew when a certificate or CA file holds something else than before.
    fn transport(&self) -> Result<Transport, String> {
        let mut files = digest::Context::new(&digest::SHA256);
        let identity = self.identity.iter().flat_map(|f| [&f.cert, &f.key]);
        for path in identity.chain(&self.ca) {
            let bytes = std::fs::read(path)
                .map_err(|cause| format!("{} cannot be read: {cause}", path.display()))?;
            files.update(&(bytes.len() as u64).to_be_bytes());
            files.update(&bytes);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(files.finish().as_ref());
        if let Some((made_from, transport)) = &*self.built.lock()
            && *made_from == digest
        {
            return Ok(transport.clone());
        }

        let text = |cause: &dyn std::fmt::Display| cause.to_string();
        let roots = match &self.ca {
            Some(path) => Roots::load(path).map_err(|cause| text(&cause))?,
            None => SYSTEM.get_or_init(Roots::system).clone(),
        };
        let identity = self.identity.as_ref().map(Identity::load).transpose();
        let identity = identity.map_err(|cause| text(&cause))?;
        let outbound = Outbound::new(self.proxy.as_ref());
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            // Turns reqwest's own idea of the environment off as well.
            .proxy(reqwest::Proxy::custom(move |url| outbound.url(url)))
            .https_only(!self.allow_plaintext)
            // A connection that died unnoticed would make the outcome of a request unknown, and
            // token requests are rare.
            .pool_max_idle_per_host(0)
            .user_agent(AGENT);
        builder = match roots.client_config(identity.as_ref()) {
            Ok(tls) => builder.tls_backend_preconfigured(tls),
            // A bare container image has no roots at all, and can still speak plaintext.
            Err(_) if self.allow_plaintext && self.ca.is_none() && identity.is_none() => {
                builder.tls_backend_preconfigured(untrusting().map_err(|cause| text(&cause))?)
            }
            Err(cause) => return Err(cause.to_string()),
        };
        if !self.connect_timeout.is_zero() {
            builder = builder.connect_timeout(self.connect_timeout);
        }
        let late = || LateClientAuth::new(&roots, identity.as_ref()).map(Arc::new);
        let late = self.late_client_auth.then(late).transpose();
        let transport = Transport {
            client: builder.build().map_err(describe)?,
            late: late.map_err(|cause| text(&cause))?,
        };
        *self.built.lock() = Some((digest, transport.clone()));
        Ok(transport)
    }
}

impl TokenRequest {
    fn form_body(&self) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.params {
            form.append_pair(name, value.expose());
        }
        form.extend_pairs(&self.extra);
        form.finish()
    }

    fn json_body(&self) -> String {
        let mut object = Map::new();
        for (name, value) in &self.params {
            object.insert((*name).to_owned(), value.expose().into());
        }
        for (name, value) in &self.extra {
            object.insert(name.clone(), value.as_str().into());
        }
        Value::Object(object).to_string()
    }

    /// `text` as it may be shown to people: printable ASCII, not too long, and not at all when it
    /// repeats a secret of ours in any of the forms it travels in.
    fn quotable(&self, text: &str) -> String {
        let repeats = |secret: &Secret| {
            let secret = secret.expose();
            let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            let percent = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
            let base64 = BASE64_STANDARD.encode(secret);
            [secret, &form, &percent, &base64]
                .iter()
                .any(|shape| !shape.is_empty() && text.contains(*shape))
        };
        let header = self.authorization.as_ref().and_then(|v| v.to_str().ok());
        let header = header.and_then(|value| value.split_once(' '));
        if self.secrets.iter().any(repeats) || header.is_some_and(|(_, v)| text.contains(v)) {
            return "(left out: it repeats a secret)".to_owned();
        }
        let client_id = self.client_id.expose();
        // Shorter names are no secrets, and occur in ordinary words.
        let text = if client_id.len() < 6 {
            text.to_owned()
        } else {
            text.replace(client_id, "[client_id]")
        };
        let printable = |c: char| {
            if c.is_ascii_graphic() || c == ' ' {
                c
            } else {
                '?'
            }
        };
        let mut quoted: String = text.chars().take(MAX_QUOTE).map(printable).collect();
        if text.chars().nth(MAX_QUOTE).is_some() {
            quoted.push_str("...");
        }
        quoted
    }
}

/// One answer being read.
struct Reading<'a> {
    place: String,
    request: &'a TokenRequest,
    status: StatusCode,
    reason: String,
    headers: &'a HeaderMap,
}

impl Reading<'_> {
    fn answer(
        &self,
        body: &[u8],
        sent: Instant,
        default_lifetime: Duration,
    ) -> Result<Answer, TokenError> {
        match self.status.as_u16() {
            204 | 205 => Err(self.temporary("an answer without a body", false)),
            200..=299 => self.success(body, sent, default_lifetime),
            300..=399 => Err(self.temporary(&self.redirect(), true)),
            408 | 425 | 429 => Err(self.temporary("the server asks to try again later", true)),
            400..=499 => Err(self.refusal(body)),
            // 500 and beyond, and what is no status for a final answer at all. A gateway's answer
            // says nothing about the server behind it.
            _ => Err(self.temporary("the server failed", false)),
        }
    }

    fn success(
        &self,
        body: &[u8],
        sent: Instant,
        default_lifetime: Duration,
    ) -> Result<Answer, TokenError> {
        let unreadable = |what: &str| self.temporary(what, false);
        if body.is_empty() {
            return Err(unreadable("an answer without a body"));
        }
        // IIS may put a byte order mark in front.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
            return Err(unreadable(&format!(
                "an answer that is no JSON object ({} bytes{})",
                body.len(),
                self.header(&CONTENT_TYPE)
                    .map(|value| format!(" of {}", self.request.quotable(value)))
                    .unwrap_or_default(),
            )));
        };
        let access_token = match fields.get("access_token") {
            Some(Value::String(token)) if !token.trim().is_empty() => Secret::new(token.as_str()),
            None | Some(Value::Null) => return Err(unreadable("an answer without access_token")),
            Some(_) => return Err(unreadable("an access_token that is no text, or empty")),
        };
        let refresh_token = match fields.get("refresh_token") {
            Some(Value::String(token)) if !token.trim().is_empty() => {
                Some(Secret::new(token.as_str()))
            }
            None | Some(Value::Null | Value::String(_)) => None,
            Some(_) => return Err(unreadable("a refresh_token that is no text")),
        };
        match fields.get("token_type") {
            None | Some(Value::Null) => {}
            Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => {}
            Some(kind) => {
                let kind = self.request.quotable(kind.as_str().unwrap_or("no text"));
                return Err(TokenError::Refused {
                    status: self.status,
                    code: None,
                    cause: self.text(&format!(
                        "a token of type {kind}, where Bearer was expected"
                    )),
                });
            }
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
        Ok(Answer {
            access_token,
            lifetime: Lifetime {
                total,
                end: sent + total,
            },
            refresh_token,
            refresh_until,
        })
    }

    /// Seconds; `None`: not stated, or not readably.
    fn lifetime(&self, fields: &Map<String, Value>) -> Option<f64> {
        let relative = fields.get("expires_in").and_then(number);
        relative.or_else(|| {
            let at = fields.get("expires").and_then(number)?;
            Some(at - self.server_now())
        })
    }

    fn refusal(&self, body: &[u8]) -> TokenError {
        let fields: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
        let text = |name| {
            let text = fields.get(name).and_then(Value::as_str)?;
            Some(self.request.quotable(text)).filter(|text| !text.is_empty())
        };
        // Decided upon as it came, whatever else these words may repeat.
        let error = fields.get("error").and_then(Value::as_str);
        let code = CODES.into_iter().find(|code| error == Some(code));
        let error = code.map(str::to_owned).or_else(|| text("error"));
        let story = match (
            error,
            text("error_description").or_else(|| text("description")),
        ) {
            (Some(error), Some(description)) => format!("{error}: {description}"),
            (Some(error), None) => error,
            (None, Some(description)) => description,
            (None, None) => "no OAuth error in the answer".to_owned(),
        };
        TokenError::Refused {
            status: self.status,
            code,
            cause: self.text(&story),
        }
    }

    /// Where to, without user information and query: that is the server's text, and where secrets
    /// would be.
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
            |url| endpoint::shown(&url),
        );
        format!(
            "a redirect to {}, not followed: a token URL must be the final one",
            self.request.quotable(&target)
        )
    }

    fn temporary(&self, what: &str, unheard: bool) -> TokenError {
        let wish = self.header(&RETRY_AFTER).and_then(|value| {
            let seconds = value.parse().ok().or_else(|| {
                let at = httpdate::parse_http_date(value).ok()?;
                // A moment that has passed: no wish left.
                Some((epoch(at) - self.server_now()).max(0.0))
            })?;
            (seconds >= 0.0).then(|| seconds.min(MAX_RETRY_AFTER.as_secs_f64()))
        });
        TokenError::Temporary {
            cause: self.text(what),
            retry_after: wish.map(Duration::from_secs_f64),
            unheard,
        }
    }

    fn text(&self, what: &str) -> String {
        format!(
            "{}: {} {}: {what}",
            self.place,
            self.status.as_u16(),
            self.request.quotable(&self.reason)
        )
    }

    /// Seconds since the epoch by the server's clock, for what it states in absolute times; by
    /// ours when it does not say.
    fn server_now(&self) -> f64 {
        self.header(&DATE)
            .and_then(|value| httpdate::parse_http_date(value).ok())
            .map_or_else(|| epoch(SystemTime::now()), epoch)
    }

    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The body, or what is wrong with it.
async fn read_bounded(response: &mut Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|_| "the answer broke off".to_owned())?
    {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(format!("an answer of more than {MAX_BODY} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What HTTP/1.1 said after the status; some servers put the whole story there.
fn reason_phrase(response: &Response) -> String {
    let canonical = response.status().canonical_reason().unwrap_or_default();
    response
        .extensions()
        .get::<hyper::ext::ReasonPhrase>()
        .map_or_else(
            || canonical.to_owned(),
            |reason| String::from_utf8_lossy(reason.as_bytes()).into_owned(),
        )
}

/// Integer, float or numeric text.
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    number.is_finite().then_some(number)
}

fn epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// The error with all its causes, without the URL, which the reader already has.
fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// TLS settings under which no server verifies.
fn untrusting() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

/// How we introduce ourselves.
const AGENT: &str = concat!("countersign/", env!("CARGO_PKG_VERSION"));

/// Reading the system's bundle takes milliseconds, and every vendor wants it.
static SYSTEM: OnceLock<Roots> = OnceLock::new();

/// RFC 6749 §5.2.
const CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];
/// Answers hold a few hundred bytes, a few thousand with large JWTs.
const MAX_BODY: usize = 1024 * 1024;
/// Characters of a server's text that are repeated in ours.
const MAX_QUOTE: usize = 200;
/// What is stated beyond this is taken for a mistake, or for "never".
const MAX_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// A server's wish beyond this is not granted.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests;
