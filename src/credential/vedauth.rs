//! Token servers that speak JSON at `/vedauth/authorize/…`: they grant by certificate, password or
//! JWT, and their refresh tokens work once.

use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderValue, StatusCode};
use url::Url;

use super::explanation::Verdict;
use super::inputs::Inputs;
use super::issuer::{GrantFuture, Issuer};
use super::rotation::stored;
use super::shared_token::{RequestsToken, SharedToken};
use super::token_request::{TokenClient, TokenError, TokenRequest, TokenResponse};
use super::{FetchError, Issued, Source};
use crate::config::{self, VedauthGrant};
use crate::secret::{Secret, SecretRef};
use crate::store::Store;
use crate::tls::sha256;

/// A vedauth server and our account there.
pub(super) struct Vedauth {
    config: config::Vedauth,
    client: TokenClient,
}

impl Vedauth {
    /// Creates the server and the inputs that its responses depend on.
    pub(super) fn new(config: &config::Vedauth, vendor: &config::Vendor) -> (Self, Inputs) {
        let same_origin = vendor.upstream.origin() == config.url.origin().ascii_serialization();
        // Some servers demand the certificate for every path, including the refresh.
        let (secrets, identity) = match &config.grant {
            VedauthGrant::Certificate(files) => (vec![], Some(files)),
            VedauthGrant::Password { username, password } => (vec![username, password], None),
            VedauthGrant::Jwt(jwt) => (vec![jwt], None),
        };
        let upstream_cert = vendor.client_cert.as_ref().filter(|_| same_origin);
        let identity = identity.or(upstream_cert).cloned();
        let secrets = secrets.into_iter().chain([&config.client_id]);
        let inputs = Inputs::new(secrets, identity.as_ref(), vendor.ca.as_ref());
        let client = TokenClient::new(vendor, identity, config.times);
        let config = config.clone();
        (Self { config, client }, inputs)
    }

    /// Creates the issuer of one token for all replicas, and the inputs whose change renews it.
    pub(super) fn shared(
        config: &config::Vedauth,
        vendor: &config::Vendor,
    ) -> (SharedToken<Self>, Inputs) {
        // The trusted CA is no part of our identity.
        let without_ca = config::Vendor {
            ca: None,
            ..vendor.clone()
        };
        let client_auth = Self::new(config, &without_ca).1;
        let (server, inputs) = Self::new(config, vendor);
        (SharedToken::new(server, client_auth), inputs)
    }

    /// Revokes the grant of this access token, including its refresh token.
    pub(super) async fn revoke(&self, authorization: HeaderValue) -> Result<(), TokenError> {
        let url = self.url(["revoke", "token"]);
        let status = self.client.get(&url, authorization).await?;
        if status.is_success() {
            return Ok(());
        }
        Err(TokenError::Refused {
            status,
            code: None,
            verdict: Verdict::Unrelated,
            cause: format!("{} responded with {status}", url.path()),
        })
    }

    /// Requests a grant.
    pub(super) async fn request_grant(&self) -> Result<TokenResponse, TokenError> {
        let (method, params) = match &self.config.grant {
            VedauthGrant::Certificate(_) => ("certificate", vec![]),
            VedauthGrant::Password { username, password } => (
                "oauth",
                vec![("username", username), ("password", password)],
            ),
            VedauthGrant::Jwt(jwt) => ("jwt", vec![("jwt", jwt)]),
        };
        let mut sent = Vec::new();
        for (name, secret) in params {
            sent.push((name, resolve(secret)?));
        }
        let secrets = sent.iter().map(|(_, secret)| secret.clone()).collect();
        let scope = self.config.scope.as_deref().map(Secret::new);
        sent.extend(scope.map(|scope| ("scope", scope)));
        self.post(method, sent, secrets).await
    }

    async fn post(
        &self,
        method: &str,
        params: Vec<(&'static str, Secret)>,
        secrets: Vec<Secret>,
    ) -> Result<TokenResponse, TokenError> {
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
            time_bound: false,
        };
        let url = self.url(["authorize", method]);
        self.client.post(&url, request).await
    }

    fn url(&self, segments: [&str; 2]) -> Url {
        let mut url = self.config.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
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
            // Another scope needs another grant.
            self.config.scope.as_deref().unwrap_or_default(),
        ];
        Ok(hex::encode(sha256(&[parts.join("\0").as_bytes()])))
    }

    fn account(&self) -> Option<[u8; 32]> {
        let client_id = self.config.client_id.resolve().ok()?;
        let user = match &self.config.grant {
            VedauthGrant::Password { username, .. } => Some(username.resolve().ok()?),
            VedauthGrant::Certificate(_) | VedauthGrant::Jwt(_) => None,
        };
        let url = self.config.url.as_str();
        let user = user.as_ref().map_or("", Secret::expose);
        Some(sha256(&[[url, client_id.expose(), user]
            .join("\0")
            .as_bytes()]))
    }

    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, TokenError> {
        let params = vec![("refresh_token", refresh_token.clone())];
        self.post("token", params, vec![refresh_token.clone()])
            .await
    }

    fn invalidates_grant(&self, status: StatusCode, verdict: Verdict) -> bool {
        // The reason is often in the reason phrase only, and another grant can be requested anyway.
        status == StatusCode::BAD_REQUEST
            || status == StatusCode::UNAUTHORIZED
            || matches!(verdict, Verdict::Invalid | Verdict::ProbablyInvalid)
    }

    fn grant(&self) -> Option<GrantFuture<'_>> {
        Some(Box::pin(self.request_grant()))
    }
}

#[async_trait]
impl RequestsToken for Vedauth {
    async fn request_token(&self) -> Result<TokenResponse, TokenError> {
        Self::request_grant(self).await
    }

    fn account(&self) -> Option<[u8; 32]> {
        Issuer::account(self)
    }

    fn request_parts(&self) -> Vec<String> {
        let method = match &self.config.grant {
            VedauthGrant::Certificate(_) => "certificate",
            VedauthGrant::Password { .. } => "oauth",
            VedauthGrant::Jwt(_) => "jwt",
        };
        let scope = self.config.scope.clone().unwrap_or_default();
        vec![self.config.url.to_string(), method.to_owned(), scope]
    }
}

/// Makes the source of a vedauth server's tokens.
pub(super) fn source(
    config: &config::Vedauth,
    vendor: &config::Vendor,
    store: &Arc<dyn Store>,
) -> Arc<dyn Source> {
    if config.refresh {
        stored(Vedauth::new(config, vendor), store, vendor, config.times)
    } else if config.share {
        stored(Vedauth::shared(config, vendor), store, vendor, config.times)
    } else {
        let (server, inputs) = Vedauth::new(config, vendor);
        Arc::new(WithoutRefresh { server, inputs })
    }
}

/// A server without refresh tokens: each renewal is a new grant, and nothing is stored.
pub(super) struct WithoutRefresh {
    pub(super) server: Vedauth,
    pub(super) inputs: Inputs,
}

#[async_trait]
impl Source for WithoutRefresh {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        self.inputs.snapshot();
        self.server.request_grant().await?.issued()
    }

    async fn changed(&self) {
        self.inputs.changed().await;
    }

    fn account(&self) -> Option<[u8; 32]> {
        Issuer::account(&self.server)
    }

    fn outdated(&self) -> bool {
        self.inputs.changed_since_snapshot()
    }
}

fn resolve(secret: &SecretRef) -> Result<Secret, TokenError> {
    secret
        .resolve()
        .map_err(|cause| TokenError::NotSent(cause.to_string()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer as CertIssuer, KeyPair};
    use rustls::RootCertStore;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::server::WebPkiClientVerifier;

    use super::super::fakes::{TokenServer, json, times, value, vendor};
    use super::*;
    use crate::config::Auth;
    use crate::tls::CertFiles;

    const PAIR: &str = r#"{"access_token":"a==","refresh_token":"r==","expires":4102444800,"token_type":"Bearer","refresh_until":4102444800}"#;

    fn config(url: Url, grant: VedauthGrant) -> config::Vedauth {
        config::Vedauth {
            url,
            client_id: value("MyApp"),
            scope: Some("certificate:discover,manage;configuration".into()),
            grant,
            refresh: true,
            share: false,
            revoke_on_exit: false,
            times: times(),
        }
    }

    fn password() -> VedauthGrant {
        VedauthGrant::Password {
            username: value("svc"),
            password: value("pw"),
        }
    }

    #[tokio::test]
    async fn each_grant_has_its_own_path_and_body() {
        let server = TokenServer::start([json(PAIR), json(PAIR), json(PAIR)]).await;
        for (grant, url) in [
            (password(), "/vedauth"),
            (VedauthGrant::Jwt(value("ey")), "/vedauth/"),
        ] {
            let config = config(server.url(url), grant);
            let vendor = vendor(Auth::Vedauth(config.clone()));
            let (issuer, _) = Vedauth::new(&config, &vendor);
            issuer.request_grant().await.unwrap();
            if url == "/vedauth" {
                issuer.refresh(&Secret::new("r")).await.unwrap();
            }
        }

        let scope = r#""scope":"certificate:discover,manage;configuration""#;
        for (seen, line, body) in [
            (
                0,
                "oauth",
                format!(r#"{{"client_id":"MyApp","username":"svc","password":"pw",{scope}}}"#),
            ),
            (
                1,
                "token",
                r#"{"client_id":"MyApp","refresh_token":"r"}"#.to_owned(),
            ),
            (
                2,
                "jwt",
                format!(r#"{{"client_id":"MyApp","jwt":"ey",{scope}}}"#),
            ),
        ] {
            let seen = &server.requests()[seen];
            assert_eq!(
                seen.request_line,
                format!("POST /vedauth/authorize/{line} HTTP/1.1")
            );
            assert_eq!(seen.body, body);
            assert_eq!(seen.header("content-type"), Some("application/json"));
        }
    }

    /// A certificate and key in `dir`, signed by `ca`.
    fn identity(dir: &Path, name: &str, ca: &CertIssuer<'_, KeyPair>) -> CertFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let files = CertFiles {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        std::fs::write(&files.cert, params.signed_by(&key, ca).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    #[tokio::test]
    async fn the_client_certificate_is_presented_for_grants_and_refreshes() {
        crate::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: OpenSSL takes a leaf named like its issuer for self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let key = KeyPair::generate().unwrap();
        let ca_cert = params.self_signed(&key).unwrap();
        let ca_path = dir.path().join("ca.pem");
        std::fs::write(&ca_path, ca_cert.pem()).unwrap();
        let ca = CertIssuer::new(params, key);

        let server_files = identity(dir.path(), "server", &ca);
        let server_identity = crate::tls::Identity::load(&server_files).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(ca_cert.der().clone()).unwrap();
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                server_identity.chain.clone(),
                PrivateKeyDer::clone_key(&server_identity.key),
            )
            .unwrap();
        let answers = [json(PAIR), json(PAIR), json(PAIR), json(PAIR)];
        let server = TokenServer::start_tls(answers, Some(tls)).await;

        let url: Url = format!("https://{}/vedauth", server.address)
            .parse()
            .unwrap();
        let grant = VedauthGrant::Certificate(identity(dir.path(), "client", &ca));
        let config = config(url.clone(), grant);
        let mut vendor = vendor(Auth::Vedauth(config.clone()));
        vendor.allow_plaintext = false;
        // Both kinds of TLS client behave alike, except for what one of them cannot do.
        for (before, late) in [(0, false), (2, true)] {
            vendor.ca = Some(ca_path.clone());
            vendor.late_client_auth = late;
            let (issuer, _) = Vedauth::new(&config, &vendor);
            let answer = issuer.request_grant().await.unwrap();
            assert!(answer.lifetime.total.as_secs() > 86_400);
            assert!(answer.refresh_until.is_some());
            issuer.refresh(&Secret::new("r")).await.unwrap();
            let seen = &server.requests()[before..];
            assert_eq!(
                seen[0].request_line,
                "POST /vedauth/authorize/certificate HTTP/1.1"
            );
            assert!(!seen[0].body.contains("grant_type"));
            assert_eq!(
                seen[0].header("host"),
                Some(server.address.to_string().as_str())
            );
            assert_eq!(seen[0].header("content-type"), Some("application/json"));
            assert_eq!(
                seen[1].request_line,
                "POST /vedauth/authorize/token HTTP/1.1"
            );

            // The same server refuses a client without a certificate, and is refused without its
            // CA.
            let mut without = config.clone();
            without.grant = password();
            let (nobody, _) = Vedauth::new(&without, &vendor);
            nobody.request_grant().await.unwrap_err();
            vendor.ca = None;
            let (untrusting, _) = Vedauth::new(&config, &vendor);
            let error = untrusting.request_grant().await.unwrap_err().to_string();
            assert!(error.to_lowercase().contains("certificate"), "{error}");
            assert_eq!(server.requests().len(), before + 2);
        }
    }

    #[test]
    fn a_grant_is_bound_to_server_name_user_and_scope() {
        let binding = |change: fn(&mut config::Vedauth)| {
            let mut config = config("https://tpp.example/vedauth".parse().unwrap(), password());
            change(&mut config);
            let vendor = vendor(Auth::Vedauth(config.clone()));
            Vedauth::new(&config, &vendor).0.binding().unwrap()
        };
        let first = binding(|_| {});
        assert_eq!(first, binding(|config| config.times.default_lifetime *= 2));
        assert_ne!(first, binding(|config| config.client_id = value("Other")));
        assert_ne!(first, binding(|config| config.scope = None));
        assert_ne!(
            first,
            binding(|config| config.url.set_host(Some("b.example")).unwrap())
        );
        assert_ne!(
            first,
            binding(|config| config.grant = VedauthGrant::Jwt(value("svc")))
        );
    }
}
