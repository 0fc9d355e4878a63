//! Sectigo SCM with its three logins: OAuth with a token server on a host of its own, three header
//! fields on cert-manager.com, and a client certificate under `/private/` there.

use std::sync::Arc;

use serde_json::json;

use super::server::{Handler, MockResponse, RecordedRequest};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// Path of the token endpoint, as Keycloak has it.
pub(crate) const TOKEN_PATH: &str = "/auth/realms/apiclients/protocol/openid-connect/token";

/// The token server.
pub(crate) struct TokenServer {
    client: Client,
    tokens: Arc<Tokens>,
}

impl TokenServer {
    pub(crate) fn new(logins: &Logins, tokens: Arc<Tokens>) -> Self {
        Self {
            client: logins.sectigo.clone(),
            tokens,
        }
    }
}

impl Handler for TokenServer {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        if !self.is_token_call(request) {
            return MockResponse::json(
                404,
                &json!({"error": "Unable to find matching target resource method"}),
            );
        }
        if request.method != "POST" {
            return MockResponse::json(405, &json!({"error": "HTTP 405 Method Not Allowed"}));
        }
        let Some(grant) = request
            .form("grant_type")
            .filter(|_| request.has_media_type(super::FORM))
        else {
            return MockResponse::json(
                400,
                &json!({
                    "error": "invalid_request",
                    "error_description": "Missing form parameter: grant_type",
                }),
            );
        };
        if grant != "client_credentials" {
            return MockResponse::json(
                400,
                &json!({
                    "error": "unsupported_grant_type",
                    "error_description": "Unsupported grant_type",
                }),
            );
        }
        // The documentation has the credentials in the form body, and nowhere else.
        if !self.client.is_in_form(request) || request.field("authorization").is_some() {
            return MockResponse::json(
                401,
                &json!({
                    "error": "invalid_client",
                    "error_description": "Invalid client or Invalid client credentials",
                }),
            );
        }
        let token = format!("{}.{}.{}", random_hex(), random_hex(), random_hex());
        let lifetime = self.tokens.issue(&token);
        let response = json!({
            "access_token": token,
            "expires_in": lifetime,
            // 0 means "none" here, not "expired": this grant has no refresh token.
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "email profile",
        });
        MockResponse::json(200, &self.tokens.finish(response)).with("Cache-Control", "no-store")
    }

    fn is_token_call(&self, request: &RecordedRequest) -> bool {
        request.path() == TOKEN_PATH
    }
}

/// `admin.{instance}.sectigo.com`: the API behind the token server.
pub(crate) struct Admin {
    token_url: String,
    tokens: Arc<Tokens>,
}

impl Admin {
    pub(crate) fn new(token_url: String, tokens: Arc<Tokens>) -> Self {
        Self { token_url, tokens }
    }
}

impl Handler for Admin {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        if request
            .bearer()
            .is_some_and(|token| self.tokens.accepts(token))
        {
            return api(request, request.path());
        }
        // Contains the token server's address because it differs between customers.
        unknown_user().with(
            "WWW-Authenticate",
            format!("Bearer authorization_uri=\"{}\"", self.token_url),
        )
    }
}

/// `cert-manager.com`.
pub(crate) struct CertManager {
    login: String,
    password: String,
    customer_uri: String,
    certificate_login: String,
}

impl CertManager {
    pub(crate) fn new(logins: &Logins) -> Self {
        Self {
            login: logins.cert_manager_login.clone(),
            password: logins.cert_manager_password.clone(),
            customer_uri: logins.cert_manager_customer.clone(),
            certificate_login: logins.cert_manager_certificate_login.clone(),
        }
    }
}

impl Handler for CertManager {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        // Compared as documented: it is unknown whether the real server is case-sensitive.
        let login = request.exact_field("login");
        let customer = request.exact_field("customerUri") == Some(&self.customer_uri);
        let path = request.path();
        if path.starts_with("/private/") {
            let certificate = request
                .client_cert
                .as_ref()
                .is_some_and(|cert| cert.approved && cert.subject == "CN=demo-sectigo");
            let password = request
                .fields
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("password"));
            if !certificate || password || !customer || login != Some(&self.certificate_login) {
                return unknown_user();
            }
            return api(request, path.trim_start_matches("/private"));
        }
        if !customer
            || login != Some(&self.login)
            || request.exact_field("password") != Some(&self.password)
        {
            return unknown_user();
        }
        api(request, path)
    }
}

/// Responds as the API behind all three logins.
fn api(request: &RecordedRequest, path: &str) -> MockResponse {
    match (request.method.as_str(), path) {
        ("GET", "/api/ssl/v1/types") => MockResponse::json(
            200,
            &json!([{"id": 2107, "name": "OV SSL", "description": "", "terms": [90, 365]}]),
        ),
        // The Location of the 201 is an absolute URL of the vendor's host.
        ("POST", "/api/organization/v1") => MockResponse::empty(201).with(
            "Location",
            format!(
                "https://{}/api/organization/v1/6144",
                request.field("host").unwrap_or_default()
            ),
        ),
        _ => MockResponse::json(404, &json!({"code": -1, "description": "Not found"})),
    }
}

fn unknown_user() -> MockResponse {
    MockResponse::json(401, &json!({"code": -16, "description": "Unknown user"}))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    use super::super::tests::{client, client_tls, mock_vendors, send};
    use super::super::{CertFiles, Files, MockServer};
    use super::*;

    /// Sends the fields in this spelling, which reqwest would change. Returns the whole response.
    async fn get(
        server: &MockServer,
        files: &Files,
        identity: Option<&CertFiles>,
        path: &str,
        fields: &[(&str, &str)],
    ) -> String {
        let tcp = TcpStream::connect(server.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = TlsConnector::from(Arc::new(client_tls(files, identity)))
            .connect(name, tcp)
            .await
            .unwrap();
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in fields {
            head.extend([name, ": ", value, "\r\n"]);
        }
        tls.write_all((head + "\r\n").as_bytes()).await.unwrap();
        let mut response = String::new();
        tls.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn a_token_is_issued_for_the_secret_in_the_form_only() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let token_url = vendors.sectigo_auth.url() + TOKEN_PATH;
        let Client { id, secret } = &vendors.logins.sectigo;
        let form = |secret: &str| {
            json!({
                "grant_type": "client_credentials", "client_id": id, "client_secret": secret,
            })
        };

        let (status, body) = send(client.post(&token_url).form(&form(secret))).await;
        assert_eq!((status, &body["expires_in"]), (200, &json!(300)));
        let types = vendors.sectigo.url() + "/api/ssl/v1/types";
        let token = body["access_token"].as_str().unwrap();
        assert_eq!(send(client.get(types).bearer_auth(token)).await.0, 200);

        let grant = json!({"grant_type": "client_credentials"});
        for refused in [
            client.post(&token_url).form(&form("wrong")),
            client
                .post(&token_url)
                .form(&grant)
                .basic_auth(id, Some(secret)),
        ] {
            let (status, body) = send(refused).await;
            assert_eq!((status, &body["error"]), (401, &json!("invalid_client")));
        }
        let (status, _) = send(client.post(&token_url).json(&form(secret))).await;
        assert_eq!(status, 400);
        assert_eq!(send(client.get(&token_url)).await.0, 405);
    }

    #[tokio::test]
    async fn the_401_of_the_api_names_the_token_server() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let types = vendors.sectigo.url() + "/api/ssl/v1/types";

        let response = client
            .get(types)
            .bearer_auth("invalid")
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 401);
        let hint = response.headers()["www-authenticate"].to_str().unwrap();
        let token_url = vendors.sectigo_auth.url() + TOKEN_PATH;
        assert_eq!(hint, format!("Bearer authorization_uri=\"{token_url}\""));
        let body: serde_json::Value = response.json().await.unwrap();
        assert_eq!(body, json!({"code": -16, "description": "Unknown user"}));
    }

    #[tokio::test]
    async fn the_header_login_is_accepted_in_its_exact_spelling_only() {
        let (_dir, vendors) = mock_vendors().await;
        let logins = &vendors.logins;
        let right = [
            ("login", logins.cert_manager_login.as_str()),
            ("password", &logins.cert_manager_password),
            ("customerUri", &logins.cert_manager_customer),
        ];
        let server = &vendors.cert_manager;
        let path = "/api/ssl/v1/types";

        let response = get(server, &vendors.files, None, path, &right).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");

        let mut lower = right;
        lower[2].0 = "customeruri";
        let mut wrong = right;
        wrong[1].1 = "wrong";
        let twice = [right[0], right[1], right[2], right[1]];
        for refused in [&right[..2], &lower, &wrong, &twice] {
            let response = get(server, &vendors.files, None, path, refused).await;
            assert!(
                response.starts_with("HTTP/1.1 401 Unauthorized\r\n"),
                "{response}"
            );
            assert!(response.ends_with(r#"{"code":-16,"description":"Unknown user"}"#));
        }
    }

    #[tokio::test]
    async fn the_private_path_requires_the_certificate_and_refuses_a_password() {
        let (_dir, vendors) = mock_vendors().await;
        let (logins, files) = (&vendors.logins, &vendors.files);
        let right = [
            ("login", logins.cert_manager_certificate_login.as_str()),
            ("customerUri", &logins.cert_manager_customer),
        ];
        let with_password = [
            right[0],
            right[1],
            ("password", &logins.cert_manager_password),
        ];
        let server = &vendors.cert_manager;
        let path = "/private/api/ssl/v1/types";

        let response = get(server, files, Some(&files.sectigo), path, &right).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        let presented = server.requests()[0].client_cert.clone().unwrap();
        assert_eq!(
            (presented.subject.as_str(), presented.approved),
            ("CN=demo-sectigo", true)
        );

        for (identity, fields) in [
            (None, &right[..]),
            (Some(&files.foreign), &right),
            (Some(&files.venafi), &right),
            (Some(&files.sectigo), &with_password),
            (Some(&files.sectigo), &right[..1]),
        ] {
            let response = get(server, files, identity, path, fields).await;
            assert!(response.starts_with("HTTP/1.1 401 "), "{response}");
        }
    }
}
