//! One POST to a token endpoint, and reading what it answers.
//!
//! Nothing here trusts the server: answers are bounded in size and time, redirects are not
//! followed (they would carry the secret elsewhere), and what is quoted from an error has our own
//! secrets masked.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder, Response, redirect};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;
use url::form_urlencoded;

use super::explanation::{self, Explanation, Verdict};
use super::quote::Mask;
use super::schedule::MIN_PAUSE;
use super::{FetchError, Issued, Lifetime};
use crate::config::{self, TokenTimes};
use crate::content_digest::ContentDigest;
use crate::endpoint;
use crate::http_fields;
use crate::late_client_auth::{LateClientAuth, exchange};
use crate::outbound::Outbound;
use crate::secret::Secret;
use crate::tls::{CertFiles, Identity, Roots};
use crate::wording::in_words;

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
struct SendError {
    cause: String,
    /// The server cannot have had the request.
    not_received: bool,
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
    /// Not secret to the server, and shown in texts as `[client_id]`.
    pub(super) client_id: Secret,
    /// What must not be quoted from an answer, beside the parameters.
    pub(super) secrets: Vec<Secret>,
    /// It holds a proof that is good for a time of our clock.
    pub(super) time_bound: bool,
}

/// A successful answer, RFC 6749 §5.1.
#[derive(Debug)]
pub(super) struct TokenResponse {
    /// The access token.
    pub(super) access_token: Secret,
    /// Of the access token.
    pub(super) lifetime: Lifetime,
    /// A new refresh token; `None`: the old one, if any, stays good (RFC 6749 §6).
    pub(super) refresh_token: Option<Secret>,
    /// When refreshing ends and only a new grant helps, on our clock.
    pub(super) refresh_until: Option<SystemTime>,
}

impl TokenResponse {
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
        not_received: bool,
    },
    /// A clear no.
    #[error("{cause}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// `error`, when it was one of RFC 6749 §5.2.
        code: Option<&'static str>,
        /// What it means for a refresh token that was shown.
        verdict: Verdict,
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
            connect_timeout: connect_limit(vendor.timeouts.connect, times.request_timeout),
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
    ) -> Result<TokenResponse, TokenError> {
        let transport = self.transport().map_err(TokenError::NotSent)?;
        let sent = self.wait_min_pause().await;
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

        let endpoint = endpoint::shown(url);
        let deadline = sent + self.times.request_timeout;
        let timed_out = |not_received| TokenError::Temporary {
            cause: format!(
                "{endpoint}: no complete answer within {:?}",
                self.times.request_timeout
            ),
            retry_after: None,
            not_received,
        };
        let mut response = timeout_at(deadline, self.send(&transport, post))
            .await
            .map_err(|_| timed_out(false))?
            .map_err(|failed| TokenError::Temporary {
                not_received: failed.not_received,
                cause: format!("{endpoint}: {}", failed.cause),
                retry_after: None,
            })?;
        let body = timeout_at(deadline, read_bounded(&mut response))
            .await
            .map_err(|_| timed_out(false))?;
        let reader = ResponseReader {
            endpoint,
            request: &request,
            status: response.status(),
            reason: reason_phrase(&response),
            headers: response.headers(),
        };
        match body {
            Ok(body) => reader.read(&body, sent, self.times.default_lifetime),
            Err(cause) => Err(reader.temporary(&cause, false)),
        }
    }

    /// A GET with this `Authorization`, of whose answer only the status counts.
    pub(super) async fn get(
        &self,
        url: &Url,
        authorization: HeaderValue,
    ) -> Result<StatusCode, TokenError> {
        let transport = self.transport().map_err(TokenError::NotSent)?;
        let sent = self.wait_min_pause().await;
        let get = transport
            .client
            .get(url.clone())
            .header(AUTHORIZATION, authorization);
        let error = |cause| TokenError::Temporary {
            cause: format!("{}: {cause}", endpoint::shown(url)),
            retry_after: None,
            not_received: false,
        };
        let deadline = sent + self.times.request_timeout;
        let response = timeout_at(deadline, self.send(&transport, get))
            .await
            .map_err(|_| error(format!("no answer within {:?}", self.times.request_timeout)))?
            .map_err(|failed| error(failed.cause))?;
        Ok(response.status())
    }

    async fn send(
        &self,
        transport: &Transport,
        request: RequestBuilder,
    ) -> Result<Response, SendError> {
        let unsent = |error: reqwest::Error| SendError {
            not_received: error.is_connect() || error.is_builder(),
            cause: error_chain(error),
        };
        let request = request.build().map_err(unsent)?;
        let url = request.url().clone();
        let not_received = |cause: String| SendError {
            cause,
            not_received: true,
        };
        let via = Outbound::new(self.proxy.as_ref()).via(&url);
        let via = via.map_err(|unusable| not_received(unusable.to_string()))?;
        let limit = self.connect_timeout;
        let exchanged = match (&transport.late, &via) {
            (Some(late), _) if url.scheme() == "https" => {
                let stream = late.open(&url, via.as_ref(), limit).await;
                let stream = stream.map_err(|cause| not_received(cause.to_string()))?;
                let request = request.try_into().map_err(unsent)?;
                exchange(stream, request, USER_AGENT).await
            }
            // By CONNECT, as requests go. reqwest would ask the proxy itself for the resource.
            (_, Some(via)) if url.scheme() == "http" => {
                let (host, port) = (url.host_str(), url.port_or_known_default());
                let target = format!("{}:{}", host.unwrap_or_default(), port.unwrap_or(80));
                let stream = via.open(&target, limit).await;
                let stream = stream.map_err(|cause| not_received(cause.to_string()))?;
                let request = request.try_into().map_err(unsent)?;
                exchange(stream, request, USER_AGENT).await
            }
            (_, _) => return transport.client.execute(request).await.map_err(unsent),
        };
        exchanged.map_err(|cause| SendError {
            cause,
            not_received: false,
        })
    }

    /// Waits until a request may be sent, and counts it as sent.
    async fn wait_min_pause(&self) -> Instant {
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
        let mut files = ContentDigest::default();
        let identity = self.identity.iter().flat_map(|f| [&f.cert, &f.key]);
        for path in identity.chain(&self.ca) {
            let added = files.add_file(path);
            added.map_err(|cause| format!("{} cannot be read: {cause}", path.display()))?;
        }
        let digest = files.finish();
        if let Some((made_from, transport)) = &*self.built.lock()
            && *made_from == digest
        {
            return Ok(transport.clone());
        }

        let text = |cause: &dyn std::fmt::Display| cause.to_string();
        let roots = match &self.ca {
            Some(path) => Roots::load(path).map_err(|cause| text(&cause))?,
            None => SYSTEM_ROOTS.get_or_init(Roots::system).clone(),
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
            .user_agent(USER_AGENT);
        builder = match roots.client_config(identity.as_ref()) {
            Ok(tls) => builder.tls_backend_preconfigured(tls),
            // A bare container image has no roots at all, and can still speak plaintext.
            Err(_) if self.allow_plaintext && self.ca.is_none() && identity.is_none() => builder
                .tls_backend_preconfigured(config_without_roots().map_err(|cause| text(&cause))?),
            Err(cause) => return Err(cause.to_string()),
        };
        builder = builder.connect_timeout(self.connect_timeout);
        let late = || LateClientAuth::new(&roots, identity.as_ref()).map(Arc::new);
        let late = self.late_client_auth.then(late).transpose();
        let transport = Transport {
            client: builder.build().map_err(error_chain)?,
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

    /// Recognises in a text what was sent.
    fn mask(&self) -> Mask {
        let params = self.params.iter();
        let params = params.filter(|(name, _)| !PUBLIC_PARAMS.contains(name));
        let extra = self.extra.iter().filter(|(name, _)| {
            let name = name.to_ascii_lowercase();
            SECRET_NAMES.iter().any(|part| name.contains(part))
        });
        let header = self.authorization.as_ref().and_then(|v| v.to_str().ok());
        let header = header.and_then(|value| value.split_once(' '));
        let secrets = params
            .map(|(_, value)| value.expose())
            .chain(extra.map(|(_, value)| value.as_str()))
            .chain(self.secrets.iter().map(Secret::expose))
            .chain(header.map(|(_, value)| value));
        Mask::new(secrets, Some(&self.client_id))
    }
}

/// One answer being read.
struct ResponseReader<'a> {
    endpoint: String,
    request: &'a TokenRequest,
    status: StatusCode,
    reason: String,
    headers: &'a HeaderMap,
}

impl ResponseReader<'_> {
    fn read(
        &self,
        body: &[u8],
        sent: Instant,
        default_lifetime: Duration,
    ) -> Result<TokenResponse, TokenError> {
        match self.status.as_u16() {
            204 | 205 => Err(self.temporary("an answer without a body", false)),
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
            // 500 and beyond, and what is no status for a final answer at all. A gateway's answer
            // says nothing about the server behind it; an OAuth error is the server's own.
            _ => {
                let explanation = self.explanation(body);
                Err(if explanation.code().is_some() {
                    self.refused(&explanation)
                } else {
                    let asked_for = self.status == StatusCode::SERVICE_UNAVAILABLE
                        && self.header(&RETRY_AFTER).is_some();
                    self.temporary(
                        &self.with_explanation("the server failed", &explanation),
                        asked_for || explanation.is_busy(),
                    )
                })
            }
        }
    }

    /// `text`, which is the server's, as it may be shown.
    fn quoted(&self, text: &str) -> String {
        self.request.mask().line(text)
    }

    /// `what`, and what the server says of it.
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
            return Err(unreadable("an answer without a body"));
        }
        let Some(Value::Object(fields)) = explanation::json(body) else {
            let kind = self.header(&CONTENT_TYPE);
            let explanation = Explanation::read_form(body, kind);
            if explanation.is_failure() {
                return Err(self.refused(&explanation));
            }
            let what = format!(
                "an answer that is no JSON object ({} bytes{})",
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
            Some(_) => return Err(unreadable("an access_token that is no text, or empty")),
        };
        let refresh_token = match fields.get("refresh_token") {
            Some(Value::String(token)) if !token.trim().is_empty() => {
                Some(Secret::new(token.as_str()))
            }
            None | Some(Value::Null | Value::String(_)) => None,
            Some(_) => return Err(unreadable("a refresh_token that is no text")),
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

    /// Seconds; `None`: not stated, or not readably.
    fn lifetime(&self, fields: &Map<String, Value>) -> Option<f64> {
        let relative = fields.get("expires_in").and_then(number);
        relative.or_else(|| {
            let at = fields.get("expires").and_then(number)?;
            Some(at - self.server_now())
        })
    }

    /// An object without an access token: some servers refuse with a status of success.
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
            self.temporary("an access_token that is no text, or empty", false)
        } else {
            self.temporary(
                &self.with_explanation("an answer without access_token", &explanation),
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
            "no OAuth error in the answer".clone_into(&mut message);
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

    /// What is wrong between the server's clock and ours, where the request had to prove itself by
    /// the time.
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
        let target = self.quoted(&target);
        format!("a redirect to {target}, not followed: a token URL must be the final one")
    }

    fn temporary(&self, what: &str, not_received: bool) -> TokenError {
        let wish = http_fields::retry_after(self.headers).or_else(|| {
            // RFC 9110 knows whole seconds only; some servers state fractions.
            let seconds: f64 = self.header(&RETRY_AFTER)?.parse().ok()?;
            (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
        });
        TokenError::Temporary {
            cause: self.text(what),
            retry_after: wish.map(|wish| wish.min(MAX_RETRY_AFTER)),
            not_received,
        }
    }

    fn text(&self, what: &str) -> String {
        let status = self.status.as_u16();
        let reason = self.quoted(&self.reason);
        format!("{}: {status} {reason}: {what}", self.endpoint)
    }

    /// Seconds since the epoch by the server's clock, for what it states in absolute times; by
    /// ours when it does not say.
    fn server_now(&self) -> f64 {
        epoch(http_fields::date(self.headers).unwrap_or_else(SystemTime::now))
    }

    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Whether a token of this type goes into `Authorization` behind `Bearer`. Servers write there
/// whatever they like; only the name of another scheme says that a token is of no use so.
fn is_bearer(token_type: &str) -> bool {
    let name = token_type.trim().to_ascii_lowercase();
    !OTHER_SCHEMES.contains(&name.as_str())
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

/// How long connecting may take, as `connect` (zero: no limit) is configured: less than the whole
/// request may, so that a server that was never reached is not taken for one that did not answer.
fn connect_limit(connect: Duration, request_timeout: Duration) -> Duration {
    let most = request_timeout * 3 / 4;
    if connect.is_zero() {
        most
    } else {
        connect.min(most)
    }
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
fn error_chain(error: reqwest::Error) -> String {
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
    in_words(&text)
}

/// TLS settings under which no server verifies.
fn config_without_roots() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

/// How we introduce ourselves.
const USER_AGENT: &str = concat!("countersign/", env!("CARGO_PKG_VERSION"));

/// Reading the system's bundle takes milliseconds, and every vendor wants it.
static SYSTEM_ROOTS: OnceLock<Roots> = OnceLock::new();

/// Parameters whose values are no secrets, and may explain an error.
const PUBLIC_PARAMS: [&str; 7] = [
    "grant_type",
    "scope",
    "audience",
    "resource",
    "redirect_uri",
    "client_id",
    "client_assertion_type",
];
/// What the names of an operator's own parameters have in them when the values are secrets.
const SECRET_NAMES: [&str; 6] = ["secret", "password", "token", "key", "assertion", "code"];
/// Token types that are other ways to send or to prove a token: the schemes of the IANA registry
/// of HTTP authentication, and those of OAuth extensions.
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
/// Clocks that differ by less do not make an assertion invalid.
const NOTABLE_SKEW: Duration = Duration::from_secs(30);
/// Answers hold a few hundred bytes, a few thousand with large JWTs.
const MAX_BODY: usize = 1024 * 1024;
/// What is stated beyond this is taken for a mistake, or for "never".
const MAX_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// A server's wish beyond this is not granted.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(10);

#[cfg(test)]
mod tests;
