//! Sends a POST to a token endpoint and reads the response.
//!
//! Nothing here trusts the server: responses are bounded in size and time, redirects are not
//! followed (they would carry the secret elsewhere), and quotes from an error have our own secrets
//! masked.

mod response;

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder, Response, redirect};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;
use url::form_urlencoded;

use super::quote::Mask;
use super::schedule::MIN_PAUSE;
use crate::config::{self, TokenTimes};
use crate::content_digest::ContentDigest;
use crate::endpoint;
use crate::late_client_auth::{LateClientAuth, exchange};
use crate::outbound::Outbound;
use crate::secret::Secret;
use crate::tls::{CertFiles, Identity, Roots};
use crate::wording::describe;
use response::{ResponseReader, read_bounded, reason_phrase};
pub(super) use response::{TokenError, TokenResponse};

/// Client of one vendor's token endpoints.
pub(super) struct TokenClient {
    identity: Option<CertFiles>,
    ca: Option<PathBuf>,
    late_client_auth: bool,
    allow_plaintext: bool,
    proxy: Option<Url>,
    connect_timeout: Duration,
    times: TokenTimes,
    /// The transport, with a digest of the files it was made from.
    built: Mutex<Option<([u8; 32], Transport)>>,
    last_sent: Mutex<Option<Instant>>,
}

/// TLS and HTTP clients.
#[derive(Clone)]
struct Transport {
    client: Client,
    /// Used instead for `https://` where the server asks for the certificate late.
    late: Option<Arc<LateClientAuth>>,
}

/// The reason why there is no response.
struct SendError {
    cause: String,
    /// `true` when the server cannot have received the request.
    not_received: bool,
}

/// A request to a token endpoint.
pub(super) struct TokenRequest {
    /// `Authorization`, where the client authenticates with it.
    pub(super) authorization: Option<HeaderValue>,
    /// Parameters, in the order they are sent.
    pub(super) params: Vec<(&'static str, Secret)>,
    /// Parameters from the configuration, sent after those.
    pub(super) extra: Vec<(String, String)>,
    /// Sends one JSON object instead of a form.
    pub(super) json: bool,
    /// Client ID. It is no secret to the server, and appears in texts as `[client_id]`.
    pub(super) client_id: Secret,
    /// Secrets that must not be quoted from a response, besides the parameters.
    pub(super) secrets: Vec<Secret>,
    /// `true` when it holds a proof that is valid for a time by our clock.
    pub(super) time_bound: bool,
}

impl TokenClient {
    /// Creates a client for `vendor`'s token endpoints that presents `identity` when asked for a
    /// certificate.
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

    /// Sends one request and returns its response, within `request_timeout` in all. Requests
    /// through one client are at least a second apart, because one attempt may need two.
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

        let endpoint = endpoint::without_login(url);
        let deadline = sent + self.times.request_timeout;
        let timed_out = |not_received| TokenError::Temporary {
            cause: format!(
                "{endpoint}: no complete response within {:?}",
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

    /// Sends a GET with this `Authorization`. Only the status of the response counts.
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
            cause: format!("{}: {cause}", endpoint::without_login(url)),
            retry_after: None,
            not_received: false,
        };
        let deadline = sent + self.times.request_timeout;
        let response = timeout_at(deadline, self.send(&transport, get))
            .await
            .map_err(|_| {
                error(format!(
                    "no response within {:?}",
                    self.times.request_timeout
                ))
            })?
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
            // Uses CONNECT, as requests do. reqwest would ask the proxy itself for the resource.
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

    /// Returns the transport, made again when the contents of a certificate or CA file have
    /// changed.
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
            // Also turns off reqwest's own reading of the environment.
            .proxy(reqwest::Proxy::custom(move |url| outbound.url(url)))
            .https_only(!self.allow_plaintext)
            // A connection that died unnoticed would make the outcome of a request unknown, and
            // token requests are rare.
            .pool_max_idle_per_host(0)
            .user_agent(USER_AGENT);
        builder = match roots.client_config(identity.as_ref()) {
            Ok(tls) => builder.tls_backend_preconfigured(tls),
            // A bare container image has no roots at all, and can still use plaintext.
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

    /// Makes a mask that recognises what was sent.
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

/// Returns how long connecting may take. `connect` is the configured limit (zero: none). The result
/// is less than the limit of the whole request, so that a server that was never reached is not
/// taken for one that did not respond.
fn connect_limit(connect: Duration, request_timeout: Duration) -> Duration {
    let most = request_timeout * 3 / 4;
    if connect.is_zero() {
        most
    } else {
        connect.min(most)
    }
}

/// Formats the error with all its causes, without the URL, which the reader already has.
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
    describe(&text)
}

/// Returns TLS settings under which no server verifies.
fn config_without_roots() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(rustls::ClientConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

/// The `User-Agent` of token requests.
const USER_AGENT: &str = concat!("countersign/", env!("CARGO_PKG_VERSION"));

/// Shared, because reading the system's bundle takes milliseconds and every vendor needs it.
static SYSTEM_ROOTS: OnceLock<Roots> = OnceLock::new();

/// Parameters whose values are not secret and may explain an error.
const PUBLIC_PARAMS: [&str; 7] = [
    "grant_type",
    "scope",
    "audience",
    "resource",
    "redirect_uri",
    "client_id",
    "client_assertion_type",
];
/// Parts of the names of configured parameters whose values are secrets.
const SECRET_NAMES: [&str; 6] = ["secret", "password", "token", "key", "assertion", "code"];
#[cfg(test)]
mod tests;
