//! OAuth 2.0: client credentials (RFC 6749 §4.4), and authorization codes with their refresh
//! tokens (§4.1, §6).

use std::sync::Arc;

use async_trait::async_trait;
use http::StatusCode;
use url::Url;

use super::client_auth::authenticate_client;
use super::explanation::Verdict;
use super::inputs::Inputs;
use super::issuer::{GrantFuture, Issuer};
use super::rotation::stored;
use super::shared_token::{RequestsToken, SharedToken};
use super::token_request::{TokenClient, TokenError, TokenRequest, TokenResponse};
use super::{FetchError, Issued, Source};
use crate::config::{self, AuthorizationCode, ClientAuth};
use crate::secret::{Secret, SecretRef};
use crate::store::Store;
use crate::tls::{CertFiles, sha256};

/// Source of a token for the client itself, requested anew at each renewal.
pub(super) struct ClientCredentials {
    config: config::ClientCredentials,
    client: TokenClient,
    inputs: Inputs,
}

impl ClientCredentials {
    pub(super) fn new(config: &config::ClientCredentials, vendor: &config::Vendor) -> Self {
        let identity = identity(config.client_cert.as_ref(), &config.token_url);
        let secrets = secrets(Some(&config.client_auth), &config.client_id);
        Self {
            inputs: Inputs::new(secrets, identity.as_ref(), vendor.ca.as_ref()),
            client: TokenClient::new(vendor, identity, config.times),
            config: config.clone(),
        }
    }

    /// Creates the issuer of one token for all replicas, and the inputs whose change renews it.
    pub(super) fn shared(
        config: &config::ClientCredentials,
        vendor: &config::Vendor,
    ) -> (SharedToken<Self>, Inputs) {
        let source = Self::new(config, vendor);
        let presented = identity(config.client_cert.as_ref(), &config.token_url);
        // Unlike a secret, a certificate may be each replica's own.
        let authenticates = matches!(config.client_auth, ClientAuth::Tls(_));
        let secrets = || secrets(Some(&config.client_auth), &config.client_id);
        let client_auth = Inputs::new(
            secrets(),
            presented.as_ref().filter(|_| authenticates),
            None,
        );
        let inputs = Inputs::new(secrets(), presented.as_ref(), vendor.ca.as_ref());
        (SharedToken::new(source, client_auth), inputs)
    }
}

#[async_trait]
impl RequestsToken for ClientCredentials {
    async fn request_token(&self) -> Result<TokenResponse, TokenError> {
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
        let mut request = authenticate_client(auth, &config.client_id, &config.token_url, params)
            .map_err(TokenError::NotSent)?;
        request.extra.clone_from(&config.params);
        self.client.post(&config.token_url, request).await
    }

    fn account(&self) -> Option<[u8; 32]> {
        account(&self.config.token_url, &self.config.client_id)
    }

    fn request_parts(&self) -> Vec<String> {
        let config = &self.config;
        let method = match &config.client_auth {
            ClientAuth::Basic(_) => "basic".to_owned(),
            ClientAuth::Post(_) => "post".to_owned(),
            ClientAuth::Json(_) => "json".to_owned(),
            ClientAuth::PrivateKeyJwt { key_id, .. } => {
                format!("private_key_jwt {}", key_id.as_deref().unwrap_or_default())
            }
            ClientAuth::Tls(_) => "tls".to_owned(),
        };
        let mut sent = vec![config.token_url.to_string(), method];
        for part in [&config.scope, &config.audience, &config.resource] {
            sent.push(part.clone().unwrap_or_default());
        }
        for (name, value) in &config.params {
            sent.extend([name.clone(), value.clone()]);
        }
        sent
    }
}

#[async_trait]
impl Source for ClientCredentials {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        self.inputs.snapshot();
        self.request_token().await?.issued()
    }

    async fn changed(&self) {
        self.inputs.changed().await;
    }

    fn account(&self) -> Option<[u8; 32]> {
        account(&self.config.token_url, &self.config.client_id)
    }

    fn outdated(&self) -> bool {
        self.inputs.changed_since_snapshot()
    }
}

/// The server at which a person consents.
pub(super) struct CodeServer {
    config: AuthorizationCode,
    client: TokenClient,
}

impl CodeServer {
    pub(super) fn new(config: &AuthorizationCode, vendor: &config::Vendor) -> (Self, Inputs) {
        let auth = config.client_auth.as_ref();
        let identity = identity(config.client_cert.as_ref(), &config.token_url);
        let secrets = secrets(auth, &config.client_id);
        let inputs = Inputs::new(secrets, identity.as_ref(), vendor.ca.as_ref());
        let client = TokenClient::new(vendor, identity, config.times);
        let config = config.clone();
        (Self { config, client }, inputs)
    }

    /// Exchanges an authorization code (RFC 6749 §4.1.3), with the PKCE verifier (RFC 7636 §4.5) if
    /// a challenge was sent.
    pub(super) async fn exchange(
        &self,
        code: Secret,
        verifier: Option<Secret>,
    ) -> Result<TokenResponse, TokenError> {
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
    ) -> Result<TokenResponse, TokenError> {
        let AuthorizationCode {
            client_auth,
            client_id,
            token_url,
            ..
        } = &self.config;
        let mut request: TokenRequest =
            authenticate_client(client_auth.as_ref(), client_id, token_url, params)
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

    fn account(&self) -> Option<[u8; 32]> {
        account(&self.config.token_url, &self.config.client_id)
    }

    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, TokenError> {
        // No scope: RFC 6749 §6 then means the granted scope, and some servers refuse the same
        // scope written out.
        let params = vec![
            ("grant_type", Secret::new("refresh_token")),
            ("refresh_token", refresh_token.clone()),
        ];
        self.post(params, vec![refresh_token.clone()]).await
    }

    fn invalidates_grant(&self, _status: StatusCode, verdict: Verdict) -> bool {
        verdict == Verdict::Invalid
    }

    fn grant(&self) -> Option<GrantFuture<'_>> {
        None
    }
}

/// Digests our client ID and its server.
fn account(token_url: &Url, client_id: &SecretRef) -> Option<[u8; 32]> {
    let client_id = client_id.resolve().ok()?;
    let server = token_url.as_str().as_bytes();
    Some(sha256(&[server, b"\0", client_id.expose().as_bytes()]))
}

/// Returns the certificate presented at `token_url`: plaintext has no handshake to present it in.
fn identity(client_cert: Option<&CertFiles>, token_url: &Url) -> Option<CertFiles> {
    client_cert
        .filter(|_| token_url.scheme() == "https")
        .cloned()
}

fn secrets<'a>(
    auth: Option<&'a ClientAuth>,
    client_id: &'a SecretRef,
) -> impl Iterator<Item = &'a SecretRef> {
    let secret = match auth {
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
    [client_id].into_iter().chain(secret)
}

/// Makes the source of a client-credentials token (RFC 6749 §4.4).
pub(super) fn client_credentials(
    config: &config::ClientCredentials,
    vendor: &config::Vendor,
    store: &Arc<dyn Store>,
) -> Arc<dyn Source> {
    if config.share {
        let server = ClientCredentials::shared(config, vendor);
        stored(server, store, vendor, config.times)
    } else {
        Arc::new(ClientCredentials::new(config, vendor))
    }
}

/// Makes the source of a consented grant's tokens (RFC 6749 §4.1, §6).
pub(super) fn authorization_code(
    config: &AuthorizationCode,
    vendor: &config::Vendor,
    store: &Arc<dyn Store>,
) -> Arc<dyn Source> {
    let server = CodeServer::new(config, vendor);
    stored(server, store, vendor, config.times)
}

#[cfg(test)]
mod tests {
    use super::super::fakes::{TokenServer, json, response, times, value, vendor};
    use super::*;
    use crate::config::Auth;

    fn source(server: &TokenServer, client_auth: ClientAuth) -> ClientCredentials {
        let config = config::ClientCredentials {
            token_url: server.url("/token/"),
            client_id: value("id"),
            client_auth,
            client_cert: None,
            scope: Some("order read".into()),
            audience: Some("https://api".into()),
            resource: None,
            params: vec![("tenant".into(), "7".into())],
            share: false,
            times: times(),
        };
        let vendor = vendor(Auth::ClientCredentials(config.clone()));
        ClientCredentials::new(&config, &vendor)
    }

    const TOKEN: &str = r#"{"access_token":"t0k","token_type":"Bearer","expires_in":36000}"#;

    #[tokio::test]
    async fn client_credentials_are_sent_as_each_server_wants_them() {
        let server = TokenServer::start([json(TOKEN), json(TOKEN), json(TOKEN)]).await;
        for auth in [
            ClientAuth::Basic(value("s")),
            ClientAuth::Post(value("s")),
            ClientAuth::Json(value("s")),
        ] {
            let issued = source(&server, auth).fetch().await.unwrap();
            assert_eq!(issued.values, ["Bearer t0k"]);
            assert!(issued.values[0].is_sensitive());
            assert_eq!(issued.lifetime.unwrap().total.as_secs(), 36_000);
        }

        let seen = server.requests();
        let common = "grant_type=client_credentials&scope=order+read&audience=https%3A%2F%2Fapi";
        assert_eq!(seen[0].request_line, "POST /token/ HTTP/1.1");
        assert_eq!(seen[0].header("authorization"), Some("Basic aWQ6cw=="));
        assert_eq!(seen[0].body, format!("{common}&tenant=7"));
        assert_eq!(seen[1].header("authorization"), None);
        assert_eq!(
            seen[1].body,
            format!("{common}&client_id=id&client_secret=s&tenant=7")
        );
        assert_eq!(
            seen[2].body,
            r#"{"grant_type":"client_credentials","scope":"order read","audience":"https://api","client_id":"id","client_secret":"s","tenant":"7"}"#
        );
    }

    #[tokio::test]
    async fn secrets_are_read_at_each_fetch_and_a_missing_one_is_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let server = TokenServer::start([json(TOKEN), json(TOKEN)]).await;
        let source = source(&server, ClientAuth::Post(SecretRef::File(path.clone())));

        for secret in ["one", "two"] {
            std::fs::write(&path, secret).unwrap();
            source.fetch().await.unwrap();
            let sent = server.requests().last().unwrap().form();
            assert!(sent.contains(&("client_secret".into(), secret.into())));
        }
        std::fs::remove_file(&path).unwrap();
        let error = source.fetch().await.unwrap_err();
        assert!(matches!(&error, FetchError::Rejected(text) if text.contains("cannot be read")));
        assert_eq!(server.requests().len(), 2);
    }

    fn code_server(server: &TokenServer, send_redirect_uri: bool) -> CodeServer {
        let config = AuthorizationCode {
            authorize_url: server.url("/authorize"),
            token_url: server.url("/token"),
            client_id: value("id"),
            client_auth: Some(ClientAuth::Post(value("s"))),
            client_cert: None,
            scope: Some("tuser.account".into()),
            redirect_uri: "http://127.0.0.1:7777/back".parse().unwrap(),
            send_redirect_uri,
            pkce: true,
            issuer: None,
            times: times(),
        };
        let vendor = vendor(Auth::AuthorizationCode(config.clone()));
        CodeServer::new(&config, &vendor).0
    }

    fn form(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[tokio::test]
    async fn a_code_is_exchanged_with_or_without_redirect_uri_and_verifier() {
        let server = TokenServer::start([json(TOKEN), json(TOKEN)]).await;
        let verifier = Some(Secret::new("v"));
        let full = code_server(&server, true);
        full.exchange(Secret::new("c"), verifier).await.unwrap();
        let bare = code_server(&server, false);
        bare.exchange(Secret::new("c"), None).await.unwrap();

        let seen = server.requests();
        assert_eq!(
            seen[0].form(),
            form(&[
                ("client_id", "id"),
                ("client_secret", "s"),
                ("code", "c"),
                ("code_verifier", "v"),
                ("grant_type", "authorization_code"),
                ("redirect_uri", "http://127.0.0.1:7777/back"),
            ])
        );
        assert_eq!(
            seen[1].form(),
            form(&[
                ("client_id", "id"),
                ("client_secret", "s"),
                ("code", "c"),
                ("grant_type", "authorization_code"),
            ])
        );
    }

    #[tokio::test]
    async fn a_refresh_carries_no_scope_and_its_refusal_no_token() {
        let body = r#"{"error":"invalid_grant","error_description":"r-hunter2 is spent"}"#;
        let server = TokenServer::start([response("400 Bad Request", "", body)]).await;
        let issuer = code_server(&server, true);
        let error = issuer.refresh(&Secret::new("r-hunter2")).await.unwrap_err();

        assert_eq!(
            server.requests()[0].form(),
            form(&[
                ("client_id", "id"),
                ("client_secret", "s"),
                ("grant_type", "refresh_token"),
                ("refresh_token", "r-hunter2"),
            ])
        );
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let TokenError::Refused {
            status, verdict, ..
        } = error
        else {
            panic!("{error:?}");
        };
        assert!(issuer.invalidates_grant(status, verdict));
        assert!(!issuer.invalidates_grant(status, Verdict::ProbablyInvalid));
    }
}
