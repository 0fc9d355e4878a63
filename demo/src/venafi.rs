//! Venafi TPP: the token server under `/vedauth` (by client certificate, password or JWT), the API
//! under `/vedsdk`. IIS serves both, so paths are case-insensitive. A refresh revokes the old
//! access token at once, and a refresh token works once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Logins;
use super::server::{Handler, MockResponse, RecordedRequest};
use super::tokens::{Tokens, random_base64};

/// Message for a refused refresh token, also in the reason phrase, where clients look for it.
const GRANT_REVOKED: &str = "Grant has been revoked, has expired, or the refresh token is invalid";

/// The server of one customer.
pub(crate) struct Tpp {
    client_id: String,
    username: String,
    password: String,
    jwt: String,
    tokens: Arc<Tokens>,
    grants: Mutex<HashMap<String, Grant>>,
}

/// The grant of a refresh token.
struct Grant {
    access: String,
    scope: String,
    identity: String,
    /// Expiry of the grant: no refresh after it.
    expires_at: Instant,
    /// The same in seconds since 1970.
    until: u64,
}

impl Tpp {
    pub(crate) fn new(logins: &Logins, tokens: Arc<Tokens>) -> Self {
        Self {
            client_id: logins.venafi_client_id.clone(),
            username: logins.venafi_username.clone(),
            password: logins.venafi_password.clone(),
            jwt: logins.venafi_jwt.clone(),
            tokens,
            grants: Mutex::default(),
        }
    }

    /// `POST authorize/certificate`, `authorize/oauth`, `authorize/jwt`: a new grant.
    fn authorize(&self, request: &RecordedRequest, by: &str) -> MockResponse {
        let body = match self.checked_body(request) {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let identity = match by {
            "certificate" => match &request.client_cert {
                Some(cert) if !cert.approved => {
                    return certificate_error("Certificate not signed by an approved issuer");
                }
                Some(cert) if cert.subject == "CN=demo-venafi" => {
                    "local:{77338c27-877b-d041-8c62-176f256abd4d}"
                }
                _ => {
                    return certificate_error("Certificate did not contain an acceptable identity");
                }
            },
            "oauth" => {
                if body["username"] != self.username || body["password"] != self.password {
                    return error("invalid_grant", "Username/password combination not valid");
                }
                "AD+Active Directory:77338c27877bd0418c62176f256abd4d"
            }
            _ => {
                if body["jwt"] != self.jwt {
                    return error("invalid_grant", "The JWT is not valid");
                }
                "local:{0e6b3c1b-3d0c-4f4a-9c6f-5c1d4c2a7e11}"
            }
        };
        let Some(scope) = body["scope"].as_str().filter(|scope| !scope.is_empty()) else {
            return error("invalid_scope", "The requested scope is missing");
        };
        let lifetime = self.tokens.grant_lifetime();
        self.issue_pair(Grant {
            access: String::new(),
            scope: scope.to_owned(),
            identity: identity.to_owned(),
            expires_at: Instant::now() + lifetime,
            until: unix_time() + lifetime.as_secs(),
        })
    }

    /// `POST authorize/token`: the grant lives on, both its tokens are new.
    fn refresh(&self, request: &RecordedRequest) -> MockResponse {
        let body = match self.checked_body(request) {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let token = body["refresh_token"].as_str().unwrap_or_default();
        let grant = self.grants.lock().remove(token);
        match grant.filter(|grant| Instant::now() < grant.expires_at) {
            Some(grant) => {
                self.tokens.revoke(&grant.access);
                self.issue_pair(grant)
            }
            None => error("invalid_grant", GRANT_REVOKED).with_reason(GRANT_REVOKED),
        }
    }

    /// Returns the body of a POST if it is JSON with the integration's `client_id`, case included.
    fn checked_body(&self, request: &RecordedRequest) -> Result<Value, MockResponse> {
        if request.method != "POST" {
            return Err(MockResponse::empty(405).with("Allow", "POST"));
        }
        let body = request.json();
        if !request.has_media_type("application/json") || !body["client_id"].is_string() {
            return Err(error("invalid_request", "The client_id is missing"));
        }
        if body["client_id"] != self.client_id {
            return Err(error(
                "invalid_grant",
                "The client_id must match the Client ID of the API integration",
            ));
        }
        Ok(body)
    }

    /// Issues a new pair of tokens for `grant`.
    fn issue_pair(&self, mut grant: Grant) -> MockResponse {
        let (access, refresh) = (random_base64(), random_base64());
        let lifetime = self.tokens.issue(&access);
        let response = json!({
            "access_token": access,
            "refresh_token": refresh,
            "expires": unix_time() + lifetime,
            "expires_in": lifetime,
            "token_type": "Bearer",
            "scope": grant.scope,
            "identity": grant.identity,
            "refresh_until": grant.until,
        });
        grant.access = access;
        self.grants.lock().insert(refresh, grant);
        MockResponse::json(200, &self.tokens.finish(response))
    }

    /// `GET authorize/verify`: describes the grant without its tokens.
    fn verify(&self, request: &RecordedRequest) -> MockResponse {
        let Some(token) = request.bearer().filter(|token| self.tokens.accepts(token)) else {
            return Self::unauthorized();
        };
        let grants = self.grants.lock();
        let Some(grant) = grants.values().find(|grant| grant.access == token) else {
            return Self::unauthorized();
        };
        MockResponse::json(
            200,
            &json!({
                "application": self.client_id,
                "expires_unix_time": grant.until,
                "identity": grant.identity,
                "scope": grant.scope,
                "valid_for": grant.until.saturating_sub(unix_time()),
            }),
        )
    }

    /// `GET revoke/token`: revokes the grant of the token it carries, although it is a GET.
    fn revoke(&self, request: &RecordedRequest) -> MockResponse {
        let mut grants = self.grants.lock();
        let found = request.bearer().and_then(|token| {
            let refresh = grants
                .iter()
                .find(|(_, grant)| grant.access == token)
                .map(|(refresh, _)| refresh.clone())?;
            grants.remove(&refresh)
        });
        match found {
            Some(grant) => {
                self.tokens.revoke(&grant.access);
                MockResponse::empty(200)
            }
            None => MockResponse::empty(202).with_reason("[token] not found"),
        }
    }

    fn api(&self, request: &RecordedRequest, path: &str) -> MockResponse {
        if !request
            .bearer()
            .is_some_and(|token| self.tokens.accepts(token))
        {
            return Self::unauthorized();
        }
        match (request.method.as_str(), path) {
            ("GET", "/vedsdk/certificates" | "/vedsdk/certificates/") => MockResponse::json(
                200,
                &json!({"Certificates": [], "DataRange": "Certificates 0 - 0", "TotalCount": 0}),
            ),
            ("GET", "/vedsdk/systemstatus/version") => {
                MockResponse::json(200, &json!({"Version": "24.1.0.3100"}))
            }
            ("POST", "/vedsdk/certificates/request") => MockResponse::json(
                200,
                &json!({"CertificateDN": "\\VED\\Policy\\demo", "Guid": "{00000000-0000-0000-0000-000000000000}"}),
            ),
            _ => MockResponse::json(404, &json!({"Error": "No such resource"})),
        }
    }

    fn unauthorized() -> MockResponse {
        MockResponse::json(
            401,
            &json!({
                "error": "invalid_token",
                "error_description": "The access token provided is expired, revoked, malformed, or invalid for other reasons.",
            }),
        )
        .with("WWW-Authenticate", "Bearer realm=\"Venafi\"")
    }
}

impl Handler for Tpp {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        let path = request.path().to_ascii_lowercase();
        match path.as_str() {
            "/vedauth/authorize/certificate" => self.authorize(request, "certificate"),
            "/vedauth/authorize/oauth" => self.authorize(request, "oauth"),
            "/vedauth/authorize/jwt" => self.authorize(request, "jwt"),
            "/vedauth/authorize/token" => self.refresh(request),
            "/vedauth/authorize/verify" => self.verify(request),
            "/vedauth/authorize/isauthserver" => {
                MockResponse::empty(202).with_reason("Venafi Authentication Server")
            }
            "/vedauth/revoke/token" => self.revoke(request),
            api if api.starts_with("/vedsdk/") => self.api(request, api),
            _ => MockResponse::empty(404),
        }
    }

    fn is_token_call(&self, request: &RecordedRequest) -> bool {
        let path = request.path().to_ascii_lowercase();
        path.strip_prefix("/vedauth/authorize/")
            .is_some_and(|call| matches!(call, "certificate" | "oauth" | "jwt" | "token"))
    }

    fn revoke_grants(&self) {
        self.grants.lock().clear();
    }
}

fn error(error: &str, description: &str) -> MockResponse {
    MockResponse::json(
        400,
        &json!({"error": error, "error_description": description}),
    )
}

/// Returns a 401 with `text` as the reason phrase and as the body.
fn certificate_error(text: &str) -> MockResponse {
    MockResponse {
        body: text.as_bytes().to_vec(),
        ..MockResponse::empty(401)
    }
    .with("Content-Type", "text/plain")
    .with_reason(text)
}

fn unix_time() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::MockVendors;
    use super::super::tests::{client, mock_vendors, send};
    use super::*;

    fn post(
        vendors: &MockVendors,
        client: &reqwest::Client,
        call: &str,
        extra: &Value,
    ) -> reqwest::RequestBuilder {
        let mut body = extra.clone();
        body["client_id"] = json!(vendors.logins.venafi_client_id);
        let url = format!("{}/vedauth/{call}", vendors.venafi.url());
        client.post(url).json(&body)
    }

    fn scope() -> Value {
        json!({"scope": "certificate:discover,manage;configuration"})
    }

    #[tokio::test]
    async fn a_certificate_is_granted_tokens_whatever_the_case_of_the_path() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, Some(&vendors.files.venafi));

        let (status, body) = send(post(&vendors, &client, "Authorize/Certificate", &scope())).await;
        assert_eq!(status, 200);
        assert!(body["access_token"].as_str().unwrap().ends_with("=="));
        assert_eq!(body["expires_in"], 7_776_000);
        let ahead = body["expires"].as_u64().unwrap() - unix_time();
        assert!((7_775_990..=7_776_000).contains(&ahead), "{ahead}");
        assert!(body["refresh_until"].as_u64() > body["expires"].as_u64());

        let token = body["access_token"].as_str().unwrap();
        for path in ["/vedauth/authorize/verify", "/VEDsdk/Certificates/"] {
            let url = vendors.venafi.url() + path;
            assert_eq!(send(client.get(&url)).await.0, 401, "{path}");
            let (status, _) = send(client.get(url).bearer_auth(token)).await;
            assert_eq!(status, 200, "{path}");
        }
    }

    #[tokio::test]
    async fn a_wrong_certificate_is_a_401_with_a_message() {
        let (_dir, vendors) = mock_vendors().await;
        for (identity, words) in [
            (
                Some(&vendors.files.foreign),
                "Certificate not signed by an approved issuer",
            ),
            (
                Some(&vendors.files.sectigo),
                "Certificate did not contain an acceptable identity",
            ),
            (None, "Certificate did not contain an acceptable identity"),
        ] {
            let client = client(&vendors.files, identity);
            let request = post(&vendors, &client, "authorize/certificate", &scope());
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 401);
            assert_eq!(response.text().await.unwrap(), words);
        }
    }

    #[tokio::test]
    async fn password_and_jwt_are_granted_tokens_and_wrong_ones_are_a_400() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let logins = &vendors.logins;
        let mut password = scope();
        password["username"] = json!(logins.venafi_username);
        password["password"] = json!(logins.venafi_password);
        let mut jwt = scope();
        jwt["jwt"] = json!(logins.venafi_jwt);

        for (call, mut body, secret) in [
            ("authorize/oauth", password, "password"),
            ("authorize/jwt", jwt, "jwt"),
        ] {
            assert_eq!(send(post(&vendors, &client, call, &body)).await.0, 200);
            let mut without_scope = body.clone();
            without_scope["scope"] = Value::Null;
            let (status, answered) = send(post(&vendors, &client, call, &without_scope)).await;
            assert_eq!((status, &answered["error"]), (400, &json!("invalid_scope")));
            body[secret] = json!("wrong");
            let (status, answered) = send(post(&vendors, &client, call, &body)).await;
            assert_eq!((status, &answered["error"]), (400, &json!("invalid_grant")));
        }
    }

    #[tokio::test]
    async fn a_refresh_revokes_the_old_access_token_and_works_once() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, Some(&vendors.files.venafi));
        let verify = |token: &Value| {
            let url = vendors.venafi.url() + "/vedauth/authorize/verify";
            client.get(url).bearer_auth(token.as_str().unwrap())
        };
        let (_, first) = send(post(&vendors, &client, "authorize/certificate", &scope())).await;
        let refresh = json!({"refresh_token": first["refresh_token"]});
        let (status, second) = send(post(&vendors, &client, "authorize/token", &refresh)).await;
        assert_eq!(status, 200);
        assert_eq!(second["refresh_until"], first["refresh_until"]);
        assert_eq!(send(verify(&first["access_token"])).await.0, 401);
        assert_eq!(send(verify(&second["access_token"])).await.0, 200);

        let (status, body) = send(post(&vendors, &client, "authorize/token", &refresh)).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")));
        let raw = "Grant has been revoked";
        assert!(body["error_description"].as_str().unwrap().starts_with(raw));
        assert_eq!(send(verify(&second["access_token"])).await.0, 200);
    }

    #[tokio::test]
    async fn a_get_of_the_revoke_path_really_revokes() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, Some(&vendors.files.venafi));
        let revoke = vendors.venafi.url() + "/vedauth/Revoke/Token";
        assert_eq!(send(client.get(&revoke)).await.0, 202);
        let (_, grant) = send(post(&vendors, &client, "authorize/certificate", &scope())).await;
        let token = grant["access_token"].as_str().unwrap();

        assert_eq!(send(client.get(revoke).bearer_auth(token)).await.0, 200);
        let verify = vendors.venafi.url() + "/vedauth/authorize/verify";
        assert_eq!(send(client.get(verify).bearer_auth(token)).await.0, 401);
        let refresh = json!({"refresh_token": grant["refresh_token"]});
        let (status, _) = send(post(&vendors, &client, "authorize/token", &refresh)).await;
        assert_eq!(status, 400);
    }
}
