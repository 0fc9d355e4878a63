//! Mock servers of the five vendors, on loopback, for `countersign demo` and for the tests.
//!
//! Each one checks a login as the real vendor does, and refuses a wrong one with that vendor's own
//! status and body. Each keeps every byte it receives ([`MockServer::requests`]), so that a test
//! can assert what a vendor saw and what it must never see. No real vendor is ever contacted.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod calls;
mod certcenter;
mod certificates;
mod certn;
mod echo;
mod maxmd;
mod proxy_yaml;
mod sectigo;
mod server;
mod tokens;
mod venafi;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use calls::{CALLS, Call, Row};
pub use certificates::{CertFiles, ClientCert, Files};
pub use server::{MockServer, RecordedRequest};
use tokens::{Tokens, random_hex};

const FORM: &str = "application/x-www-form-urlencoded";

/// The running mock servers. Dropping this closes all of them.
pub struct MockVendors {
    /// `api.certcenter.com`: API and token endpoint.
    pub certcenter: MockServer,
    /// `auth.sso.sectigo.com`: the token server.
    pub sectigo_auth: MockServer,
    /// `admin.{instance}.sectigo.com`: the API behind it.
    pub sectigo: MockServer,
    /// `cert-manager.com`: header login, and certificate login under `/private/`.
    pub cert_manager: MockServer,
    /// `api.certn.co`: API and token endpoint.
    pub certn: MockServer,
    /// `api.maxmddirect.com`: consent and token endpoint.
    pub maxmd_auth: MockServer,
    /// `directca.maxmddirect.com`: the API.
    pub maxmd: MockServer,
    /// A customer's Venafi TPP: `/vedauth` and `/vedsdk`.
    pub venafi: MockServer,
    /// The logins they accept.
    pub logins: Logins,
    /// The certificates, as files.
    pub files: Files,
    dir: PathBuf,
}

impl MockVendors {
    /// Starts all of them on free ports of 127.0.0.1, with new secrets and new certificates.
    ///
    /// Writes the certificates to `dir`, and to `dir/secrets/` the secrets that
    /// [`MockVendors::stanzas`] refers to.
    ///
    /// # Errors
    /// Fails if no port is free or `dir` cannot be written.
    pub async fn start(dir: &Path) -> io::Result<Self> {
        let logins = Logins::new();
        let (files, tls) = certificates::generate(dir).map_err(io::Error::other)?;
        let tokens = |lifetime| Arc::new(Tokens::new(lifetime));

        let issued = tokens(Duration::from_hours(24));
        let handler = certcenter::CertCenter::new(&logins, issued.clone());
        let certcenter = MockServer::start(handler, issued, Some(tls.clone())).await?;

        let issued = tokens(Duration::from_mins(5));
        let handler = sectigo::TokenServer::new(&logins, issued.clone());
        let sectigo_auth = MockServer::start(handler, issued.clone(), Some(tls.clone())).await?;
        let token_url = sectigo_auth.url() + sectigo::TOKEN_PATH;
        let handler = sectigo::Admin::new(token_url, issued.clone());
        let sectigo = MockServer::start(handler, issued, Some(tls.clone())).await?;

        let handler = sectigo::CertManager::new(&logins);
        let cert_manager =
            MockServer::start(handler, tokens(Duration::ZERO), Some(tls.clone())).await?;

        let issued = tokens(Duration::from_hours(10));
        let handler = certn::Certn::new(&logins, issued.clone());
        let certn = MockServer::start(handler, issued, Some(tls.clone())).await?;

        let issued = tokens(Duration::from_hours(1));
        let handler = maxmd::Auth::new(&logins, issued.clone());
        let maxmd_auth = MockServer::start(handler, issued.clone(), Some(tls.clone())).await?;
        let handler = maxmd::DirectCa::new(issued.clone());
        let maxmd = MockServer::start(handler, issued, Some(tls.clone())).await?;

        let issued = tokens(Duration::from_hours(24 * 90));
        let handler = venafi::Tpp::new(&logins, issued.clone());
        let venafi = MockServer::start(handler, issued, Some(tls)).await?;

        let vendors = Self {
            certcenter,
            sectigo_auth,
            sectigo,
            cert_manager,
            certn,
            maxmd_auth,
            maxmd,
            venafi,
            logins,
            files,
            dir: dir.to_owned(),
        };
        vendors.write_secrets()?;
        Ok(vendors)
    }

    /// Returns all of them, for assertions that must hold for each.
    #[must_use]
    pub fn all(&self) -> [&MockServer; 8] {
        [
            &self.certcenter,
            &self.sectigo_auth,
            &self.sectigo,
            &self.cert_manager,
            &self.certn,
            &self.maxmd_auth,
            &self.maxmd,
            &self.venafi,
        ]
    }
}

/// Starts an upstream without login, in plaintext, whose response is specified by the query:
/// `status`, `reason`, `header=Name:value`, `size`, `body`, `echo=Name`, `into=Name:field`,
/// `code=gzip`, `cut`, `wait` (milliseconds).
///
/// # Errors
/// Fails if no port of 127.0.0.1 is free.
pub async fn echo() -> io::Result<MockServer> {
    MockServer::start(echo::Echo, Arc::new(Tokens::new(Duration::ZERO)), None).await
}

/// The logins that the mock servers, and the proxy in front of them, accept. New at each start.
pub struct Logins {
    /// The key of the proxy's only caller. No vendor may ever see it.
    pub caller_key: String,
    /// The static token, suffix included.
    pub certcenter_token: String,
    /// Client credentials in JSON.
    pub certcenter: Client,
    /// Client credentials in the form body.
    pub sectigo: Client,
    /// `login` of the header login.
    pub cert_manager_login: String,
    /// `password` of the header login.
    pub cert_manager_password: String,
    /// `customerUri` of both logins.
    pub cert_manager_customer: String,
    /// `login` that goes with the client certificate.
    pub cert_manager_certificate_login: String,
    /// Client credentials by HTTP Basic.
    pub certn: Client,
    /// The client that a user consents to.
    pub maxmd: Client,
    /// `client_id` of the API integration.
    pub venafi_client_id: String,
    /// User of the password login.
    pub venafi_username: String,
    /// Password of the password login.
    pub venafi_password: String,
    /// The only JWT that is accepted.
    pub venafi_jwt: String,
}

/// An OAuth client.
#[derive(Clone)]
pub struct Client {
    /// `client_id`.
    pub id: String,
    /// `client_secret`.
    pub secret: String,
}

impl Client {
    /// Makes a client whose secret holds every character that an encoding on the way could damage.
    fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            secret: format!("{}+%2F/=&: \"\\ü", random_hex()),
        }
    }

    /// Tells whether the form body holds both ID and secret.
    fn is_in_form(&self, request: &RecordedRequest) -> bool {
        request.form("client_id").as_ref() == Some(&self.id)
            && request.form("client_secret").as_ref() == Some(&self.secret)
    }
}

impl Logins {
    fn new() -> Self {
        Self {
            caller_key: random_hex(),
            certcenter_token: certcenter::CertCenter::token(),
            certcenter: Client::new("demo-certcenter"),
            sectigo: Client::new("demo-sectigo"),
            cert_manager_login: "demo-login".to_owned(),
            cert_manager_password: random_hex(),
            cert_manager_customer: "demo-customer".to_owned(),
            cert_manager_certificate_login: "demo-certificate-login".to_owned(),
            certn: Client::new("demo-certn"),
            maxmd: Client::new("demo-maxmd"),
            venafi_client_id: "Demo-Venafi".to_owned(),
            venafi_username: "demo-user".to_owned(),
            venafi_password: random_hex(),
            venafi_jwt: format!("{}.{}.{}", random_hex(), random_hex(), random_hex()),
        }
    }
}

/// Writes a file that only its owner may read (mode 0600).
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, RootCertStore};

    use super::*;

    /// Starts the mock vendors. The directory must live as long as they do.
    pub(super) async fn mock_vendors() -> (tempfile::TempDir, MockVendors) {
        // Already installed by another test of the same process: the same provider.
        let _ = default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let vendors = MockVendors::start(dir.path()).await.unwrap();
        (dir, vendors)
    }

    /// Returns a client that trusts the mock vendors, follows no redirect and presents `identity`.
    pub(super) fn client(files: &Files, identity: Option<&CertFiles>) -> reqwest::Client {
        reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .tls_backend_preconfigured(client_tls(files, identity))
            .build()
            .unwrap()
    }

    /// Returns the TLS settings of [`client`].
    pub(super) fn client_tls(files: &Files, identity: Option<&CertFiles>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&files.ca).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let Some(identity) = identity else {
            return config.with_no_client_auth();
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&identity.cert)
            .unwrap()
            .collect();
        let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
        config.with_client_auth_cert(chain.unwrap(), key).unwrap()
    }

    /// Sends `request` and returns the status and the JSON body (`Null` when it is not JSON).
    pub(super) async fn send(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn keys_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;

        let (_dir, vendors) = mock_vendors().await;
        for key in [&vendors.files.sectigo.key, &vendors.files.foreign.key] {
            let mode = std::fs::metadata(key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
    }

    #[tokio::test]
    async fn two_starts_share_no_secret() {
        let (_first, first) = mock_vendors().await;
        let (_second, second) = mock_vendors().await;

        assert_ne!(first.logins.certn.secret, second.logins.certn.secret);
        let stranger = client(&first.files, None);
        assert!(stranger.get(second.certn.url()).send().await.is_err());
    }
}
