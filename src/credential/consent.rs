//! A person's consent by authorization code, and the resulting grant (RFC 6749 §4.1).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use super::client_auth::random;
use super::issuer::Issuer;
use super::oauth2::CodeServer;
use super::rotation::lease;
use crate::config::{AuthorizationCode, Vendor};
use crate::secret::Secret;
use crate::store::{Access, Grant, Lock, Store, StoreError};
use crate::tls::sha256;

/// A request for consent, from its URL to the stored grant.
pub(crate) struct Consent {
    config: AuthorizationCode,
    server: CodeServer,
    store: Arc<dyn Store>,
    vendor: String,
    state: Secret,
    /// PKCE verifier (RFC 7636 §4.1).
    verifier: Option<Secret>,
}

/// The content of a redirect.
#[derive(Debug)]
pub(crate) enum Redirect {
    /// A code, with the state of this request.
    Code(Secret),
    /// A code without a state: nothing proves that it belongs to this request.
    Stateless(Secret),
    /// A redirect of another request; somebody may be trying to slip us their account.
    Foreign,
    /// A redirect from another server than the one that was asked (RFC 9207 §2.4). Holds that
    /// server's name, in printable ASCII.
    OtherIssuer(String),
    /// A redirect without the server's name, although `issuer` is configured.
    NoIssuer,
    /// A refusal by the server or the person, in printable ASCII.
    Refused(String),
    /// A refusal without a state.
    StatelessRefused(String),
    /// Neither a code nor an error.
    Empty,
}

/// A stored grant.
#[derive(Debug)]
pub(crate) struct Granted {
    /// `true` when it can be renewed without a person.
    pub(crate) renewable: bool,
    /// Lifetime of the access token.
    pub(crate) lifetime: Duration,
}

impl Consent {
    pub(crate) fn new(config: &AuthorizationCode, vendor: &Vendor, store: Arc<dyn Store>) -> Self {
        let random_text = || Secret::new(BASE64_URL_SAFE_NO_PAD.encode(random::<32>()));
        Self {
            server: CodeServer::new(config, vendor).0,
            store,
            vendor: vendor.name.clone(),
            state: random_text(),
            verifier: config.pkce.then(random_text),
            config: config.clone(),
        }
    }

    /// Checks that a grant could be stored, before a person is asked for one.
    pub(crate) async fn check_store(&self) -> Result<(), StoreError> {
        let lock = self.lock().await?;
        let loaded = self.store.load(&self.vendor).await;
        lock.release().await;
        loaded.map(drop)
    }

    /// Returns the URL at which the person consents (RFC 6749 §4.1.1, RFC 7636 §4.3).
    pub(crate) fn url(&self) -> Result<Url, String> {
        let client_id = self.config.client_id.resolve();
        let client_id = client_id.map_err(|cause| cause.to_string())?;
        let mut url = self.config.authorize_url.clone();
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", client_id.expose())
            .append_pair("redirect_uri", self.config.redirect_uri.as_str())
            .append_pair("state", self.state.expose());
        if let Some(scope) = &self.config.scope {
            query.append_pair("scope", scope);
        }
        if let Some(verifier) = &self.verifier {
            let challenge = sha256(&[verifier.expose().as_bytes()]);
            query
                .append_pair("code_challenge", &BASE64_URL_SAFE_NO_PAD.encode(challenge))
                .append_pair("code_challenge_method", "S256");
        }
        drop(query);
        Ok(url)
    }

    /// Returns the issuer that a redirect may name.
    pub(crate) fn issuer(&self) -> String {
        let origin = || self.config.authorize_url.origin().ascii_serialization();
        self.config.issuer.clone().unwrap_or_else(origin)
    }

    /// Tells whether a redirect that names `issuer` is from the server that was asked. Names are
    /// compared character by character (RFC 9207 §2.4), except for the slash at the end of an
    /// origin.
    fn is_issuer(&self, issuer: &str) -> bool {
        let ours = self.issuer();
        let of_origin = self.config.issuer.is_none();
        issuer == ours || (of_origin && issuer.strip_suffix('/') == Some(ours.as_str()))
    }

    /// Reads a code that was pasted without its redirect.
    pub(crate) fn read_code(&self, code: &str) -> Redirect {
        if self.config.issuer.is_some() {
            return Redirect::NoIssuer;
        }
        Redirect::Stateless(Secret::new(code))
    }

    /// Reads the parameters of a redirect (RFC 6749 §4.1.2), `application/x-www-form-urlencoded`.
    /// None of them may occur twice (§3.1).
    pub(crate) fn read(&self, query: &str) -> Redirect {
        let fields = |wanted: &'static str| {
            form_urlencoded::parse(query.as_bytes())
                .filter(move |(name, value)| name == wanted && !value.is_empty())
                .map(|(_, value)| value.into_owned())
        };
        let field = |wanted| fields(wanted).next();
        if ["state", "code", "error", "iss"]
            .into_iter()
            .any(|name| fields(name).nth(1).is_some())
        {
            return Redirect::Foreign;
        }
        let state = field("state");
        if let Some(state) = &state
            && verify_slices_are_equal(state.as_bytes(), self.state.expose().as_bytes()).is_err()
        {
            return Redirect::Foreign;
        }
        let refusal = field("error").map(|error| {
            let description = field("error_description").unwrap_or_default();
            printable(format!("{error} {description}").trim())
        });
        let code = field("code").map(Secret::new);
        if refusal.is_some() || code.is_some() {
            match field("iss") {
                Some(issuer) if !self.is_issuer(&issuer) => {
                    return Redirect::OtherIssuer(printable(&issuer));
                }
                None if self.config.issuer.is_some() => return Redirect::NoIssuer,
                Some(_) | None => {}
            }
        }
        match (refusal, code, state) {
            (Some(refusal), _, Some(_)) => Redirect::Refused(refusal),
            (Some(refusal), _, None) => Redirect::StatelessRefused(refusal),
            (None, Some(code), Some(_)) => Redirect::Code(code),
            (None, Some(code), None) => Redirect::Stateless(code),
            (None, None, _) => Redirect::Empty,
        }
    }

    /// Exchanges the code and stores the grant, under the lock: a running proxy must not spend the
    /// old grant meanwhile.
    pub(crate) async fn complete(&self, code: Secret) -> Result<Granted, String> {
        let text = |cause: StoreError| cause.to_string();
        let lock = self.lock().await.map_err(text)?;
        let granted = self.exchange(code).await;
        // This process exits soon, and a running proxy waits for the lock.
        lock.release().await;
        granted
    }

    async fn exchange(&self, code: Secret) -> Result<Granted, String> {
        let text = |cause: StoreError| cause.to_string();
        let stored = self.store.load(&self.vendor).await.map_err(text)?;
        let binding = self.server.binding()?;
        let exchange = self.server.exchange(code, self.verifier.clone());
        let response = exchange.await.map_err(|cause| cause.to_string())?;
        let lifetime = response.lifetime.total;
        let left = response
            .lifetime
            .end
            .saturating_duration_since(Instant::now());
        let mut grant = Grant {
            version: stored.map_or(0, |stored| stored.version),
            binding,
            refresh_token: response.refresh_token,
            access: Some(Access {
                token: response.access_token,
                issued: SystemTime::now() - lifetime.saturating_sub(left),
                lifetime,
            }),
            refresh_until: response.refresh_until,
            intent: None,
        };
        let save = self.store.save(&self.vendor, &mut grant);
        save.await.map_err(text)?;
        Ok(Granted {
            renewable: grant.refresh_token.is_some(),
            lifetime,
        })
    }

    async fn lock(&self) -> Result<Lock, StoreError> {
        // A running proxy holds it for two token requests at most.
        let request_timeout = self.config.times.request_timeout;
        let lock_timeout = request_timeout * 3 + Duration::from_secs(5);
        let lease = lease(request_timeout);
        self.store.lock(&self.vendor, lease, lock_timeout).await
    }
}

/// Makes a redirect's text printable: anybody may have written it.
fn printable(text: &str) -> String {
    let printable = |c: char| {
        if c.is_ascii_graphic() || c == ' ' {
            c
        } else {
            '?'
        }
    };
    text.chars().take(300).map(printable).collect()
}
