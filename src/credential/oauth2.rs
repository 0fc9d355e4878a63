//! OAuth 2.0: client credentials (RFC 6749 §4.4), and authorization codes with their refresh
//! tokens (§4.1, §6).

use async_trait::async_trait;
use http::StatusCode;

use super::client_auth::prove;
use super::inputs::Inputs;
use super::rotation::{Asking, Issuer};
use super::token_request::{Answer, TokenClient, TokenError, TokenRequest};
use super::{FetchError, Issued, Source};
use crate::config::{self, AuthorizationCode, CertFiles, ClientAuth, SecretRef};
use crate::secret::Secret;
use crate::tls::sha256;

/// A token for the client itself, asked for anew each time.
pub(super) struct ClientCredentials {
    config: config::ClientCredentials,
    client: TokenClient,
    inputs: Inputs,
}

impl ClientCredentials {
    pub(super) fn new(config: &config::ClientCredentials, vendor: &config::Vendor) -> Self {
        let identity = identity(Some(&config.client_auth));
        let secrets = secrets(Some(&config.client_auth), &config.client_id);
        Self {
            inputs: Inputs::new(secrets, identity.as_ref(), vendor.ca.as_ref()),
            client: TokenClient::new(vendor, identity, config.times),
            config: config.clone(),
        }
    }
}

#[async_trait]
impl Source for ClientCredentials {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        self.inputs.note();
        let config = &self.config;
        let mut params = vec![("grant_type", Secret::new("client_credentials"))];
        for (name, value) in [
            ("scope", &config.scope),
            ("audience", &config.audience),
            ("resource", &config.resource),
        ] {
            params.extend(value.as_deref().map(|value| (name, Secret::new(value))));
        }
        let auth = Some(&config.client_auth);
        let mut request = prove(auth, &config.client_id, &config.token_url, params)
            .map_err(FetchError::Rejected)?;
        request.extra.clone_from(&config.params);
        self.client.post(&config.token_url, request).await?.issued()
    }

    async fn changed(&self) {
        self.inputs.changed().await;
    }
}

/// The server a person consents at.
pub(super) struct CodeServer {
    config: AuthorizationCode,
    client: TokenClient,
}

impl CodeServer {
    pub(super) fn new(config: &AuthorizationCode, vendor: &config::Vendor) -> (Self, Inputs) {
        let auth = config.client_auth.as_ref();
        let identity = identity(auth);
        let secrets = secrets(auth, &config.client_id);
        let inputs = Inputs::new(secrets, identity.as_ref(), vendor.ca.as_ref());
        let client = TokenClient::new(vendor, identity, config.times);
        let config = config.clone();
        (Self { config, client }, inputs)
    }

    /// Exchanges an authorization code (RFC 6749 §4.1.3), with the PKCE verifier (RFC 7636 §4.5)
    /// when one was announced.
    pub(super) async fn exchange(
        &self,
        code: Secret,
        verifier: Option<Secret>,
    ) -> Result<Answer, TokenError> {
        let mut params = vec![
            ("grant_type", Secret::new("authorization_code")),
            ("code", code.clone()),
        ];
        if self.config.send_redirect_uri {
            let redirect_uri = Secret::new(self.config.redirect_uri.as_str());
            params.push(("redirect_uri", redirect_uri));
        }
        let mut secrets = vec![code];
        if let Some(verifier) = verifier {
            params.push(("code_verifier", verifier.clone()));
            secrets.push(verifier);
        }
        self.post(params, secrets).await
    }

    async fn post(
        &self,
        params: Vec<(&'static str, Secret)>,
        secrets: Vec<Secret>,
    ) -> Result<Answer, TokenError> {
        let AuthorizationCode {
            client_auth,
            client_id,
            token_url,
            ..
        } = &self.config;
        let mut request: TokenRequest = prove(client_auth.as_ref(), client_id, token_url, params)
            .map_err(TokenError::NotSent)?;
        request.secrets.extend(secrets);
        self.client.post(token_url, request).await
    }
}

#[async_trait]
impl Issuer for CodeServer {
    fn binding(&self) -> Result<String, String> {
        let client_id = self.config.client_id.resolve();
        let client_id = client_id.map_err(|cause| cause.to_string())?;
        let server = self.config.token_url.as_str();
        Ok(hex::encode(sha256(&[
            server.as_bytes(),
            b"\0",
            client_id.expose().as_bytes(),
        ])))
    }

    async fn refresh(&self, refresh_token: &Secret) -> Result<Answer, TokenError> {
        // No scope: RFC 6749 §6 then means what was granted, and some servers refuse the same
        // scope written out.
        let params = vec![
            ("grant_type", Secret::new("refresh_token")),
            ("refresh_token", refresh_token.clone()),
        ];
        self.post(params, vec![refresh_token.clone()]).await
    }

    fn ends_grant(&self, _status: StatusCode, code: Option<&str>) -> bool {
        code == Some("invalid_grant")
    }

    fn grant(&self) -> Option<Asking<'_>> {
        None
    }
}

fn identity(auth: Option<&ClientAuth>) -> Option<CertFiles> {
    match auth {
        Some(ClientAuth::Tls(files)) => Some(files.clone()),
        Some(
            ClientAuth::Basic(_)
            | ClientAuth::Post(_)
            | ClientAuth::Json(_)
            | ClientAuth::PrivateKeyJwt { .. },
        )
        | None => None,
    }
}

fn secrets<'a>(
    auth: Option<&'a ClientAuth>,
    client_id: &'a SecretRef,
) -> impl Iterator<Item = &'a SecretRef> {
    let proof = match auth {
        Some(
            ClientAuth::Basic(secret)
            | ClientAuth::Post(secret)
            | ClientAuth::Json(secret)
            | ClientAuth::PrivateKeyJwt {
                private_key: secret,
                ..
            },
        ) => Some(secret),
        Some(ClientAuth::Tls(_)) | None => None,
    };
    [client_id].into_iter().chain(proof)
}
