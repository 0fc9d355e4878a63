//! The proxy.yaml for the mock vendors: the stanzas of a real one, plus the addresses of the mock
//! servers and the CA to trust for them.

use std::fs;
use std::io;
use std::net::SocketAddr;

use aws_lc_rs::digest::{SHA256, digest};

use super::sectigo::TOKEN_PATH;
use super::{MockVendors, write_private};

/// The only caller of [`MockVendors::proxy_yaml`].
const CALLER: &str = "demo";

impl MockVendors {
    /// Returns a complete proxy.yaml: one listener, one caller, and every vendor. With port 0 the
    /// system chooses the port. The file must be written to the directory that was passed to
    /// [`MockVendors::start`], since its paths are relative to it.
    #[must_use]
    pub fn proxy_yaml(&self, listener: SocketAddr, admin: SocketAddr) -> String {
        let digest = hex::encode(digest(&SHA256, self.logins.caller_key.as_bytes()));
        let stanzas: String = self.stanzas().into_iter().map(|(_, yaml)| yaml).collect();
        format!(
            "\
listeners:
  - bind: {listener}
admin: {{ bind: \"{admin}\" }}
# Nothing has to be waited for when the demo stops.
drain: {{ delay: 0s, timeout: 5s }}
callers:
  {CALLER}:
    api_key: {{ sha256: {digest} }}
    allow: [ \"*\" ]
store:
  file: {{ dir: state }}
vendors:
{stanzas}"
        )
    }

    /// Returns the name and the stanza of every vendor, indented for `vendors:`. One login each.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one piece of text per login")]
    pub fn stanzas(&self) -> [(&'static str, String); 9] {
        let logins = &self.logins;
        [
            (
                "certcenter",
                format!(
                    "  certcenter:
    preset: certcenter
    upstream: {}
    ca: ca.pem
    auth:
      bearer: {{ token: {{ file: secrets/certcenter-token }} }}
",
                    self.certcenter.url()
                ),
            ),
            (
                "certcenter-oauth",
                format!(
                    "  certcenter-oauth:
    preset: certcenter-oauth
    upstream: {url}
    ca: ca.pem
    auth:
      client_credentials:
        token_url: {url}/oauth2/token
        client_id: {}
        client_secret: {{ file: secrets/certcenter }}
",
                    logins.certcenter.id,
                    url = self.certcenter.url(),
                ),
            ),
            (
                "sectigo-oauth",
                format!(
                    "  sectigo-oauth:
    preset: sectigo-oauth
    upstream: {}
    ca: ca.pem
    auth:
      client_credentials:
        token_url: {}{TOKEN_PATH}
        client_id: {}
        client_secret: {{ file: secrets/sectigo }}
",
                    self.sectigo.url(),
                    self.sectigo_auth.url(),
                    logins.sectigo.id,
                ),
            ),
            (
                "sectigo",
                format!(
                    "  sectigo:
    preset: sectigo
    upstream: {}
    ca: ca.pem
    auth:
      headers:
        login: {}
        password: {{ file: secrets/cert-manager }}
        customerUri: {}
",
                    self.cert_manager.url(),
                    logins.cert_manager_login,
                    logins.cert_manager_customer,
                ),
            ),
            (
                "sectigo-private",
                format!(
                    "  sectigo-private:
    preset: sectigo-private
    upstream: {}
    ca: ca.pem
    client_cert: {{ cert: sectigo-client.pem, key: sectigo-client.key }}
    auth:
      headers:
        login: {}
        customerUri: {}
",
                    self.cert_manager.url(),
                    logins.cert_manager_certificate_login,
                    logins.cert_manager_customer,
                ),
            ),
            (
                "certn",
                format!(
                    "  certn:
    preset: certn
    upstream: {url}
    ca: ca.pem
    auth:
      client_credentials:
        token_url: {url}/token/
        client_id: {}
        client_secret: {{ file: secrets/certn }}
",
                    logins.certn.id,
                    url = self.certn.url(),
                ),
            ),
            (
                "maxmd",
                format!(
                    "  maxmd:
    preset: maxmd
    upstream: {}
    ca: ca.pem
    auth:
      authorization_code:
        authorize_url: {auth}/oauth/authorize
        token_url: {auth}/oauth/token
        client_id: {}
        client_secret: {{ file: secrets/maxmd }}
        redirect_uri: https://callback.example/
",
                    self.maxmd.url(),
                    logins.maxmd.id,
                    auth = self.maxmd_auth.url(),
                ),
            ),
            (
                "venafi",
                format!(
                    "  venafi:
    preset: venafi
    upstream: {}
    ca: ca.pem
    auth:
      vedauth:
        client_id: {}
        scope: certificate:discover,manage
        certificate: {{ cert: venafi-client.pem, key: venafi-client.key }}
",
                    self.venafi.url(),
                    logins.venafi_client_id,
                ),
            ),
            (
                "venafi-password",
                format!(
                    "  venafi-password:
    preset: venafi
    upstream: {}
    ca: ca.pem
    auth:
      vedauth:
        client_id: {}
        scope: certificate:discover,manage
        username: {}
        password: {{ file: secrets/venafi }}
",
                    self.venafi.url(),
                    logins.venafi_client_id,
                    logins.venafi_username,
                ),
            ),
        ]
    }

    /// Writes the secrets that the stanzas refer to.
    pub(super) fn write_secrets(&self) -> io::Result<()> {
        let dir = self.dir.join("secrets");
        fs::create_dir_all(&dir)?;
        let logins = &self.logins;
        for (name, secret) in [
            ("certcenter-token", &logins.certcenter_token),
            ("certcenter", &logins.certcenter.secret),
            ("sectigo", &logins.sectigo.secret),
            ("cert-manager", &logins.cert_manager_password),
            ("certn", &logins.certn.secret),
            ("maxmd", &logins.maxmd.secret),
            ("venafi", &logins.venafi_password),
            ("venafi-jwt", &logins.venafi_jwt),
        ] {
            write_private(&dir.join(name), secret)?;
        }
        Ok(())
    }
}
