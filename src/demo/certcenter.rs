//! `CertCenter`: a static bearer token with its suffix, or `OAuth2` client credentials whose request
//! is one JSON object. Answers of the API carry `success`; a 401 also stands for missing rights.

use std::sync::Arc;

use serde_json::json;

use super::stand::{Answer, Part, Seen};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// A complete token ends in this.
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

    /// A token as the vendor makes them, suffix included.
    pub(crate) fn token() -> String {
        random_hex() + SUFFIX
    }

    fn issue(&self, seen: &Seen) -> Answer {
        if seen.method != "POST" {
            return Answer::empty(405).with("Allow", "POST");
        }
        let body = seen.json();
        if !seen.is("application/json") || !body.is_object() {
            return Answer::json(400, &json!({"error": "invalid_request"}));
        }
        if body["grant_type"] != "client_credentials" {
            return Answer::json(400, &json!({"error": "unsupported_grant_type"}));
        }
        // 400, where RFC 6749 §5.2 would have 401.
        if body["client_id"] != self.client.id || body["client_secret"] != self.client.secret {
            return Answer::json(400, &json!({"error": "invalid_client"}));
        }
        let token = Self::token();
        let lifetime = self.tokens.issue(&token);
        let answer = json!({
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": lifetime,
            "scope": body["scope"],
        });
        Answer::json(200, &self.tokens.finish(answer)).with("Cache-Control", "no-store")
    }
}

impl Part for CertCenter {
    fn answer(&self, seen: &Seen) -> Answer {
        if self.is_token_call(seen) {
            return self.issue(seen);
        }
        let Some(method) = seen.path().strip_prefix("/rest/v1/") else {
            return Answer::json(404, &json!({"success": false, "Message": "Not Found"}));
        };
        let token = seen.bearer().filter(|token| token.ends_with(SUFFIX));
        let Some(token) =
            token.filter(|token| *token == self.static_token || self.tokens.accepts(token))
        else {
            return Answer::json(401, &json!({"success": false, "Message": "Unauthorized"}));
        };
        match method {
            "Limit" => Answer::json(
                200,
                &json!({"LimitInfo": {"Used": 2182.5, "Limit": 50000.0}, "success": true}),
            ),
            // The real one repeats the caller's own token too.
            "Profile" => Answer::json(200, &json!({"success": true, "OAuth2_Token": token})),
            _ => Answer::json(404, &json!({"success": false, "Message": "Unknown method"})),
        }
    }

    fn is_token_call(&self, seen: &Seen) -> bool {
        seen.path().eq_ignore_ascii_case("/oauth2/token")
    }
}
