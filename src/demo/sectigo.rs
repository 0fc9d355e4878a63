//! Sectigo SCM three ways: `OAuth2` with the token server on a host of its own, three header fields
//! on cert-manager.com, and a client certificate under its `/private/`.

use std::sync::Arc;

use serde_json::json;

use super::stand::{Answer, Part, Seen};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// Where the token server issues tokens; the shape is Keycloak's.
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

impl Part for TokenServer {
    fn answer(&self, seen: &Seen) -> Answer {
        if !self.is_token_call(seen) {
            return Answer::json(
                404,
                &json!({"error": "Unable to find matching target resource method"}),
            );
        }
        if seen.method != "POST" {
            return Answer::json(405, &json!({"error": "HTTP 405 Method Not Allowed"}));
        }
        let Some(grant) = seen.form("grant_type").filter(|_| seen.is(super::FORM)) else {
            return Answer::json(
                400,
                &json!({
                    "error": "invalid_request",
                    "error_description": "Missing form parameter: grant_type",
                }),
            );
        };
        if grant != "client_credentials" {
            return Answer::json(
                400,
                &json!({
                    "error": "unsupported_grant_type",
                    "error_description": "Unsupported grant_type",
                }),
            );
        }
        // The documented way is the form body, and nothing beside it.
        if !self.client.is_in_form(seen) || seen.field("authorization").is_some() {
            return Answer::json(
                401,
                &json!({
                    "error": "invalid_client",
                    "error_description": "Invalid client or Invalid client credentials",
                }),
            );
        }
        let token = format!("{}.{}.{}", random_hex(), random_hex(), random_hex());
        let lifetime = self.tokens.issue(&token);
        let answer = json!({
            "access_token": token,
            "expires_in": lifetime,
            // Not "expired": this grant has no refresh token.
            "refresh_expires_in": 0,
            "token_type": "Bearer",
            "not-before-policy": 0,
            "scope": "email profile",
        });
        Answer::json(200, &self.tokens.finish(answer)).with("Cache-Control", "no-store")
    }

    fn is_token_call(&self, seen: &Seen) -> bool {
        seen.path() == TOKEN_PATH
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

impl Part for Admin {
    fn answer(&self, seen: &Seen) -> Answer {
        if seen
            .bearer()
            .is_some_and(|token| self.tokens.accepts(token))
        {
            return api(seen, seen.path());
        }
        // The token server's address stands here because it is not the same for every customer.
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

impl Part for CertManager {
    fn answer(&self, seen: &Seen) -> Answer {
        // Spelled as documented: nobody here knows whether the real server minds.
        let login = seen.exact_field("login");
        let customer = seen.exact_field("customerUri") == Some(&self.customer_uri);
        let path = seen.path();
        if path.starts_with("/private/") {
            let certificate = seen
                .client_cert
                .as_ref()
                .is_some_and(|cert| cert.approved && cert.subject == "CN=demo-sectigo");
            let password = seen
                .fields
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("password"));
            if !certificate || password || !customer || login != Some(&self.certificate_login) {
                return unknown_user();
            }
            return api(seen, path.trim_start_matches("/private"));
        }
        if !customer
            || login != Some(&self.login)
            || seen.exact_field("password") != Some(&self.password)
        {
            return unknown_user();
        }
        api(seen, path)
    }
}

/// What all three logins lead to.
fn api(seen: &Seen, path: &str) -> Answer {
    match (seen.method.as_str(), path) {
        ("GET", "/api/ssl/v1/types") => Answer::json(
            200,
            &json!([{"id": 2107, "name": "OV SSL", "description": "", "terms": [90, 365]}]),
        ),
        // 201 points at the vendor's own host, absolutely.
        ("POST", "/api/organization/v1") => Answer::empty(201).with(
            "Location",
            format!(
                "https://{}/api/organization/v1/6144",
                seen.field("host").unwrap_or_default()
            ),
        ),
        _ => Answer::json(404, &json!({"code": -1, "description": "Not found"})),
    }
}

fn unknown_user() -> Answer {
    Answer::json(401, &json!({"code": -16, "description": "Unknown user"}))
}
