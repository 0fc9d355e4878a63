//! `CertCenter`: a static bearer token with a suffix, or client credentials whose request is one
//! JSON object. Responses of the API carry `success`; a 401 can also mean missing rights.

use std::sync::Arc;

use serde_json::json;

use super::server::{Handler, MockResponse, RecordedRequest};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// The suffix of a complete token.
const SUFFIX: &str = ".oauth2.certcenter.com";

/// The API and its token endpoint, on one host.
pub(crate) struct CertCenter {
    static_token: String,
    client: Client,
    tokens: Arc<Tokens>,
}

impl CertCenter {
    pub(crate) fn new(logins: &Logins, tokens: Arc<Tokens>) -> Self {
        Self {
            static_token: logins.certcenter_token.clone(),
            client: logins.certcenter.clone(),
            tokens,
        }
    }

    /// Returns a new token, suffix included.
    pub(crate) fn token() -> String {
        random_hex() + SUFFIX
    }

    fn issue(&self, request: &RecordedRequest) -> MockResponse {
        if request.method != "POST" {
            return MockResponse::empty(405).with("Allow", "POST");
        }
        let body = request.json();
        if !request.has_media_type("application/json") || !body.is_object() {
            return MockResponse::json(400, &json!({"error": "invalid_request"}));
        }
        if body["grant_type"] != "client_credentials" {
            return MockResponse::json(400, &json!({"error": "unsupported_grant_type"}));
        }
        // 400, where RFC 6749 §5.2 requires 401.
        if body["client_id"] != self.client.id || body["client_secret"] != self.client.secret {
            return MockResponse::json(400, &json!({"error": "invalid_client"}));
        }
        let token = Self::token();
        let lifetime = self.tokens.issue(&token);
        let response = json!({
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": lifetime,
            "scope": body["scope"],
        });
        MockResponse::json(200, &self.tokens.finish(response)).with("Cache-Control", "no-store")
    }
}

impl Handler for CertCenter {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        if self.is_token_call(request) {
            return self.issue(request);
        }
        let Some(method) = request.path().strip_prefix("/rest/v1/") else {
            return MockResponse::json(404, &json!({"success": false, "Message": "Not Found"}));
        };
        let token = request.bearer().filter(|token| token.ends_with(SUFFIX));
        let Some(token) =
            token.filter(|token| *token == self.static_token || self.tokens.accepts(token))
        else {
            return MockResponse::json(401, &json!({"success": false, "Message": "Unauthorized"}));
        };
        match method {
            "Limit" => MockResponse::json(
                200,
                &json!({"LimitInfo": {"Used": 2182.5, "Limit": 50000.0}, "success": true}),
            ),
            // The real vendor repeats the caller's own token too.
            "Profile" => MockResponse::json(200, &json!({"success": true, "OAuth2_Token": token})),
            _ => MockResponse::json(404, &json!({"success": false, "Message": "Unknown method"})),
        }
    }

    fn is_token_call(&self, request: &RecordedRequest) -> bool {
        request.path().eq_ignore_ascii_case("/oauth2/token")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{client, mock_vendors, send};
    use super::*;

    #[tokio::test]
    async fn the_api_accepts_the_static_token_and_no_other() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let limit = vendors.certcenter.url() + "/rest/v1/Limit";
        let token = &vendors.logins.certcenter_token;

        let (status, body) = send(client.get(&limit).bearer_auth(token)).await;
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({"LimitInfo": {"Used": 2182.5, "Limit": 50000.0}, "success": true})
        );
        let profile = vendors.certcenter.url() + "/rest/v1/Profile";
        let (_, body) = send(client.get(profile).bearer_auth(token)).await;
        assert_eq!(body["OAuth2_Token"], token.as_str());

        let bare = token.trim_end_matches(SUFFIX);
        for wrong in [bare, &CertCenter::token()] {
            let (status, body) = send(client.get(&limit).bearer_auth(wrong)).await;
            assert_eq!((status, &body["success"]), (401, &json!(false)));
        }
        assert_eq!(send(client.get(&limit)).await.0, 401);
    }

    #[tokio::test]
    async fn the_token_endpoint_takes_json_and_refuses_a_wrong_secret_with_400() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let token_url = vendors.certcenter.url() + "/oauth2/token";
        let Client { id, secret } = &vendors.logins.certcenter;
        let right = json!({
            "grant_type": "client_credentials",
            "client_id": id,
            "client_secret": secret,
            "scope": "order",
        });

        let (status, body) = send(client.post(&token_url).json(&right)).await;
        assert_eq!((status, &body["expires_in"]), (200, &json!(86400)));
        let token = body["access_token"].as_str().unwrap();
        let limit = vendors.certcenter.url() + "/rest/v1/Limit";
        assert_eq!(send(client.get(limit).bearer_auth(token)).await.0, 200);

        let (status, body) = send(client.post(&token_url).form(&right)).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_request")));
        let mut wrong = right.clone();
        wrong["client_secret"] = json!("wrong");
        let (status, body) = send(client.post(&token_url).json(&wrong)).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_client")));
    }
}
