//! Certn: client credentials by HTTP Basic at `/token/`. The server behaves as Django does: 405 to
//! GET, 301 without the final slash, `detail` in errors.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::server::{Handler, MockResponse, RecordedRequest};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// The API and its token endpoint, on one host.
pub(crate) struct Certn {
    client: Client,
    tokens: Arc<Tokens>,
}

impl Certn {
    pub(crate) fn new(logins: &Logins, tokens: Arc<Tokens>) -> Self {
        Self {
            client: logins.certn.clone(),
            tokens,
        }
    }

    fn issue(&self, request: &RecordedRequest) -> MockResponse {
        if request.path() == "/token" {
            return MockResponse::empty(301).with("Location", "/token/");
        }
        if request.method != "POST" {
            return MockResponse::empty(405).with("Allow", "POST, OPTIONS");
        }
        // A body that is not a form has no grant_type.
        let grant = request
            .form("grant_type")
            .filter(|_| request.has_media_type(super::FORM));
        if grant.as_deref() != Some("client_credentials") {
            return MockResponse::json(400, &json!({"error": "unsupported_grant_type"}));
        }
        if !self.is_basic(request) {
            return MockResponse::json(401, &json!({"error": "invalid_client"}))
                .with("WWW-Authenticate", "Bearer error=\"invalid_client\"");
        }
        let token = random_hex();
        let lifetime = self.tokens.issue(&token);
        let response = json!({
            "access_token": token,
            "expires_in": lifetime,
            "token_type": "Bearer",
            "scope": "read write",
        });
        MockResponse::json(200, &self.tokens.finish(response)).with("Cache-Control", "no-store")
    }

    /// Tells whether HTTP Basic holds the client, ID and secret form-encoded (RFC 6749 §2.3.1).
    fn is_basic(&self, request: &RecordedRequest) -> bool {
        let decoded = || {
            let encoded = request.field("authorization")?.strip_prefix("Basic ")?;
            let pair = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
            let (id, secret) = pair.split_once(':')?;
            let half = |half: &str| {
                let spaced = half.replace('+', " ");
                percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
            };
            Some((half(id), half(secret)))
        };
        decoded().is_some_and(|(id, secret)| id == self.client.id && secret == self.client.secret)
    }
}

impl Handler for Certn {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        if self.is_token_call(request) {
            return self.issue(request);
        }
        let path = request.path();
        if !["/hr/v1/", "/pm/v1/", "/users/"]
            .iter()
            .any(|resources| path.starts_with(resources))
        {
            return MockResponse::json(404, &json!({"detail": "Not found."}));
        }
        if !request
            .bearer()
            .is_some_and(|token| self.tokens.accepts(token))
        {
            // The same message for a missing token and for an invalid one.
            return MockResponse::json(
                401,
                &json!({"detail": "Authentication credentials were not provided."}),
            )
            .with("WWW-Authenticate", "Bearer realm=\"api\"");
        }
        match request.method.as_str() {
            "GET" => MockResponse::json(
                200,
                &json!({"count": 0, "next": null, "previous": null, "results": []}),
            ),
            "POST" => MockResponse::json(201, &request.json()),
            other => MockResponse::json(
                405,
                &json!({"detail": format!("Method \"{other}\" not allowed.")}),
            ),
        }
    }

    fn is_token_call(&self, request: &RecordedRequest) -> bool {
        matches!(request.path(), "/token/" | "/token")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{client, mock_vendors, send};
    use super::*;

    #[tokio::test]
    async fn a_token_comes_for_form_encoded_basic_by_post_with_the_slash() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let token_url = vendors.certn.url() + "/token/";
        let Client { id, secret } = &vendors.logins.certn;
        let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let form = json!({"grant_type": "client_credentials"});
        let post = |url: &str| client.post(url).basic_auth(id, Some(&encoded));

        let (status, body) = send(post(&token_url).form(&form)).await;
        assert_eq!((status, &body["expires_in"]), (200, &json!(36000)));
        let token = body["access_token"].as_str().unwrap();
        let api = vendors.certn.url() + "/hr/v1/applicants/";
        let (status, _) = send(client.get(&api).bearer_auth(token)).await;
        assert_eq!(status, 200);

        let (status, body) = send(post(&token_url).json(&form)).await;
        assert_eq!(
            (status, &body["error"]),
            (400, &json!("unsupported_grant_type"))
        );
        let raw = client.post(&token_url).basic_auth(id, Some(secret));
        let (status, body) = send(raw.form(&form)).await;
        assert_eq!(
            (status, body),
            (401, json!({"error": "invalid_client"})),
            "the secret's + and % must be encoded first"
        );
        assert_eq!(send(client.get(&token_url)).await.0, 405);
        let slashless = post(token_url.trim_end_matches('/')).form(&form);
        let response = slashless.send().await.unwrap();
        assert_eq!(response.status(), 301);
        assert_eq!(response.headers()["location"], "/token/");
    }

    #[tokio::test]
    async fn a_missing_token_and_an_invalid_one_get_the_same_detail() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let api = vendors.certn.url() + "/hr/v1/applicants/";
        let detail = json!({"detail": "Authentication credentials were not provided."});

        for request in [client.get(&api), client.get(&api).bearer_auth("invalid")] {
            assert_eq!(send(request).await, (401, detail.clone()));
        }
    }
}
