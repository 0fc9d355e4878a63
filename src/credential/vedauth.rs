//! Token servers that speak JSON at `/vedauth/authorize/…`: a grant by certificate, password or
//! JWT, then refresh tokens that work once.

use async_trait::async_trait;
use http::StatusCode;
use url::Url;

use super::inputs::Inputs;
use super::rotation::{Asking, Issuer};
use super::token_request::{Answer, TokenClient, TokenError, TokenRequest};
use super::{FetchError, Issued, Source};
use crate::config::{self, SecretRef, VedauthGrant};
use crate::secret::Secret;
use crate::tls::sha256;

/// One such server, and who we are to it.
pub(super) struct Vedauth {
    config: config::Vedauth,
    client: TokenClient,
}

impl Vedauth {
    pub(super) fn new(config: &config::Vedauth, vendor: &config::Vendor) -> (Self, Inputs) {
        let same_origin = vendor.upstream.origin() == config.url.origin().ascii_serialization();
        // Some servers demand the certificate for every path, refreshing included.
        let (secrets, identity) = match &config.grant {
            VedauthGrant::Certificate(files) => (vec![], Some(files)),
            VedauthGrant::Password { username, password } => (vec![username, password], None),
            VedauthGrant::Jwt(jwt) => (vec![jwt], None),
        };
        let upstreams = vendor.client_cert.as_ref().filter(|_| same_origin);
        let identity = identity.or(upstreams).cloned();
        let secrets = secrets.into_iter().chain([&config.client_id]);
        let inputs = Inputs::new(secrets, identity.as_ref(), vendor.ca.as_ref());
        let client = TokenClient::new(vendor, identity, config.times);
        let config = config.clone();
        (Self { config, client }, inputs)
    }

    async fn ask(&self) -> Result<Answer, TokenError> {
        let (method, params) = match &self.config.grant {
            VedauthGrant::Certificate(_) => ("certificate", vec![]),
            VedauthGrant::Password { username, password } => (
                "oauth",
                vec![("username", username), ("password", password)],
            ),
            VedauthGrant::Jwt(jwt) => ("jwt", vec![("jwt", jwt)]),
        };
        let mut proof = Vec::new();
        for (name, secret) in params {
            proof.push((name, resolve(secret)?));
        }
        let secrets = proof.iter().map(|(_, secret)| secret.clone()).collect();
        let scope = self.config.scope.as_deref().map(Secret::new);
        proof.extend(scope.map(|scope| ("scope", scope)));
        self.post(method, proof, secrets).await
    }

    async fn post(
        &self,
        method: &str,
        params: Vec<(&'static str, Secret)>,
        secrets: Vec<Secret>,
    ) -> Result<Answer, TokenError> {
        let client_id = resolve(&self.config.client_id)?;
        let mut all = vec![("client_id", client_id.clone())];
        all.extend(params);
        let request = TokenRequest {
            authorization: None,
            params: all,
            extra: Vec::new(),
            json: true,
            client_id,
            secrets,
        };
        self.client.post(&self.url(method), request).await
    }

    fn url(&self, method: &str) -> Url {
        let mut url = self.config.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["authorize", method]);
        }
        url
    }
}

#[async_trait]
impl Issuer for Vedauth {
    fn binding(&self) -> Result<String, String> {
        let text = |error: TokenError| error.to_string();
        let client_id = resolve(&self.config.client_id).map_err(text)?;
        let user = match &self.config.grant {
            VedauthGrant::Password { username, .. } => Some(resolve(username).map_err(text)?),
            VedauthGrant::Certificate(_) | VedauthGrant::Jwt(_) => None,
        };
        let parts = [
            self.config.url.as_str(),
            client_id.expose(),
            user.as_ref().map_or("", Secret::expose),
            // A grant for another scope has to be asked for anew.
            self.config.scope.as_deref().unwrap_or_default(),
        ];
        Ok(hex::encode(sha256(&[parts.join("\0").as_bytes()])))
    }

    async fn refresh(&self, refresh_token: &Secret) -> Result<Answer, TokenError> {
        let params = vec![("refresh_token", refresh_token.clone())];
        self.post("token", params, vec![refresh_token.clone()])
            .await
    }

    fn ends_grant(&self, status: StatusCode, _code: Option<&str>) -> bool {
        // The reason is often in the reason phrase only, and another grant is to be had anyway.
        status == StatusCode::BAD_REQUEST || status == StatusCode::UNAUTHORIZED
    }

    fn grant(&self) -> Option<Asking<'_>> {
        Some(Box::pin(self.ask()))
    }
}

/// The same server without refresh tokens: a new grant each time, nothing to store.
pub(super) struct Unrefreshed {
    pub(super) server: Vedauth,
    pub(super) inputs: Inputs,
}

#[async_trait]
impl Source for Unrefreshed {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        self.inputs.note();
        self.server.ask().await?.issued()
    }

    async fn changed(&self) {
        self.inputs.changed().await;
    }
}

fn resolve(secret: &SecretRef) -> Result<Secret, TokenError> {
    secret
        .resolve()
        .map_err(|cause| TokenError::NotSent(cause.to_string()))
}
