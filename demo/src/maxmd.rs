//! `MaxMD` Direct CA: a user's consent, an authorization code, then refresh tokens that rotate. One
//! host serves consent and tokens, another the API.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;

use super::server::{Handler, MockResponse, RecordedRequest};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// The consent page and the token endpoint. Every request for consent is granted.
pub(crate) struct Auth {
    client: Client,
    tokens: Arc<Tokens>,
    grants: Mutex<Grants>,
}

#[derive(Default)]
struct Grants {
    /// Codes not yet exchanged, each with the `redirect_uri` it was sent to.
    codes: HashMap<String, String>,
    /// Refresh tokens, including spent ones, each with its family.
    refresh: HashMap<String, Refresh>,
    /// The access tokens of each family that is not revoked, the newest last.
    families: HashMap<usize, Vec<String>>,
    /// Number of families so far.
    made: usize,
}

struct Refresh {
    family: usize,
    spent: bool,
}

impl Auth {
    pub(crate) fn new(logins: &Logins, tokens: Arc<Tokens>) -> Self {
        Self {
            client: logins.maxmd.clone(),
            tokens,
            grants: Mutex::default(),
        }
    }

    fn authorize(&self, request: &RecordedRequest) -> MockResponse {
        if request.method != "GET" {
            return MockResponse::empty(405).with("Allow", "GET");
        }
        let redirect = request
            .query("redirect_uri")
            .and_then(|uri| url::Url::parse(&uri).ok().map(|url| (uri, url)));
        let (Some((uri, mut redirect)), true) = (
            redirect,
            request.query("client_id").as_ref() == Some(&self.client.id),
        ) else {
            // There is no valid URI to redirect the browser to.
            return MockResponse::json(400, &json!({"error": "invalid_request"}));
        };
        let state = request.query("state");
        let wanted = [("response_type", "code"), ("scope", "tuser.account")];
        let complete = wanted
            .iter()
            .all(|(name, value)| request.query(name).as_deref() == Some(value));
        {
            let mut query = redirect.query_pairs_mut();
            if complete {
                let code = random_hex();
                query.append_pair("code", &code);
                self.grants.lock().codes.insert(code, uri);
            } else {
                query.append_pair("error", "invalid_request");
            }
            if let Some(state) = state {
                query.append_pair("state", &state);
            }
        }
        MockResponse::empty(302).with("Location", redirect)
    }

    fn issue(&self, request: &RecordedRequest) -> MockResponse {
        let refused = |error: &str| MockResponse::json(400, &json!({"error": error}));
        if request.method != "POST" {
            return MockResponse::empty(405).with("Allow", "POST");
        }
        if !request.has_media_type(super::FORM) {
            return refused("invalid_request");
        }
        if !self.client.is_in_form(request) {
            return MockResponse::json(401, &json!({"error": "invalid_client"}));
        }
        let mut grants = self.grants.lock();
        match request.form("grant_type").as_deref() {
            Some("authorization_code") => {
                let code = request.form("code").unwrap_or_default();
                let Some(uri) = grants.codes.remove(&code) else {
                    return refused("invalid_grant");
                };
                // Not among the documented parameters, but a wrong value is refused all the same.
                if request.form("redirect_uri").is_some_and(|sent| sent != uri) {
                    return refused("invalid_grant");
                }
                grants.made += 1;
                let family = grants.made;
                grants.families.insert(family, Vec::new());
                self.issue_pair(&mut grants, family)
            }
            Some("refresh_token") => {
                let token = request.form("refresh_token").unwrap_or_default();
                let Some(refresh) = grants.refresh.get_mut(&token) else {
                    return refused("invalid_grant");
                };
                let (family, spent) = (refresh.family, refresh.spent);
                refresh.spent = true;
                if spent {
                    // Two clients hold the token, so the whole family is revoked.
                    for access in grants.families.remove(&family).unwrap_or_default() {
                        self.tokens.revoke(&access);
                    }
                }
                if !grants.families.contains_key(&family) {
                    return refused("invalid_grant");
                }
                self.issue_pair(&mut grants, family)
            }
            Some(_) => refused("unsupported_grant_type"),
            None => refused("invalid_request"),
        }
    }

    fn issue_pair(&self, grants: &mut Grants, family: usize) -> MockResponse {
        let (access, refresh) = (random_hex(), random_hex());
        let lifetime = self.tokens.issue(&access);
        if let Some(members) = grants.families.get_mut(&family) {
            members.push(access.clone());
        }
        let response = json!({
            "access_token": access,
            "refresh_token": refresh,
            "token_type": "Bearer",
            "expires_in": lifetime,
        });
        let spent = false;
        grants.refresh.insert(refresh, Refresh { family, spent });
        MockResponse::json(200, &self.tokens.finish(response)).with("Cache-Control", "no-store")
    }
}

impl Handler for Auth {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        match request.path() {
            "/oauth/authorize" => self.authorize(request),
            "/oauth/token" => self.issue(request),
            _ => MockResponse::empty(404),
        }
    }

    fn is_token_call(&self, request: &RecordedRequest) -> bool {
        request.path() == "/oauth/token"
    }

    fn revoke_grants(&self) {
        self.grants.lock().families.clear();
    }
}

/// The API.
pub(crate) struct DirectCa {
    tokens: Arc<Tokens>,
}

impl DirectCa {
    pub(crate) fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens }
    }
}

impl Handler for DirectCa {
    fn respond(&self, request: &RecordedRequest) -> MockResponse {
        // `description`, not `error_description`.
        let problem = |status, error: &str, description: &str| {
            MockResponse::json(status, &json!({"error": error, "description": description}))
        };
        if !request
            .bearer()
            .is_some_and(|token| self.tokens.accepts(token))
        {
            return problem(
                401,
                "Unauthorized",
                "The access token is missing or not valid.",
            );
        }
        let Some(name) = request.path().strip_prefix("/api/certificate/") else {
            return problem(404, "Not Found", "There is no such resource.");
        };
        let uri = |name: &str| {
            let host = request.field("host").unwrap_or_default();
            format!("https://{host}/api/certificate/{name}")
        };
        match (request.method.as_str(), name) {
            ("GET", "query") => MockResponse::json(
                200,
                &json!({
                    "certificates": [{"cn": "direct.example.com", "uri": uri("direct.example.com")}],
                    "previousPageUri": null,
                    "nextPageUri": uri("query?page=2"),
                }),
            ),
            ("GET", "") => problem(400, "Bad Request", "A common name is needed."),
            ("GET", name) => MockResponse::json(200, &json!({"cn": name, "uri": uri(name)})),
            ("POST", "") => MockResponse::json(201, &json!({"uri": uri("direct.example.com")})),
            _ => problem(404, "Not Found", "There is no such resource."),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::MockVendors;
    use super::super::tests::{client, mock_vendors, send};
    use super::*;

    async fn consent(vendors: &MockVendors, client: &reqwest::Client, state: &str) -> url::Url {
        let query = [
            ("client_id", vendors.logins.maxmd.id.as_str()),
            ("redirect_uri", "http://127.0.0.1:1/callback"),
            ("scope", "tuser.account"),
            ("response_type", "code"),
            ("state", state),
        ];
        let url = vendors.maxmd_auth.url() + "/oauth/authorize";
        let url = url::Url::parse_with_params(&url, query).unwrap();
        let response = client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 302);
        let location = response.headers()["location"].to_str().unwrap();
        location.parse().unwrap()
    }

    async fn exchange(
        vendors: &MockVendors,
        client: &reqwest::Client,
        grant: (&str, &str, &str),
    ) -> (u16, Value) {
        let Client { id, secret } = &vendors.logins.maxmd;
        let (kind, name, value) = grant;
        let form = json!({
            "grant_type": kind, "client_id": id, "client_secret": secret, name: value,
        });
        send(
            client
                .post(vendors.maxmd_auth.url() + "/oauth/token")
                .form(&form),
        )
        .await
    }

    #[tokio::test]
    async fn a_code_works_once_and_the_state_is_returned() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let back = consent(&vendors, &client, "a b").await;
        let pairs: HashMap<_, _> = back.query_pairs().into_owned().collect();
        assert_eq!(pairs["state"], "a b");
        let code = pairs["code"].as_str();

        let grant = ("authorization_code", "code", code);
        let (status, body) = exchange(&vendors, &client, grant).await;
        assert_eq!((status, &body["expires_in"]), (200, &json!(3600)));
        let api = vendors.maxmd.url() + "/api/certificate/direct.example.com";
        let token = body["access_token"].as_str().unwrap();
        assert_eq!(send(client.get(&api).bearer_auth(token)).await.0, 200);
        let (status, body) = send(client.get(&api).bearer_auth("invalid")).await;
        assert_eq!((status, &body["error"]), (401, &json!("Unauthorized")));
        assert!(body["description"].is_string());

        let (status, body) = exchange(&vendors, &client, grant).await;
        assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")));
    }

    #[tokio::test]
    async fn using_a_refresh_token_twice_revokes_the_whole_family() {
        let (_dir, vendors) = mock_vendors().await;
        let client = client(&vendors.files, None);
        let back = consent(&vendors, &client, "").await;
        let (_, code) = back.query_pairs().next().unwrap();
        let (_, first) = exchange(&vendors, &client, ("authorization_code", "code", &code)).await;
        let refresh = |response: &Value| response["refresh_token"].as_str().unwrap().to_owned();
        let old = refresh(&first);
        let (status, second) =
            exchange(&vendors, &client, ("refresh_token", "refresh_token", &old)).await;
        assert_eq!(status, 200);
        let newer = refresh(&second);
        assert_ne!(old, newer);

        for token in [&old, &newer] {
            let grant = ("refresh_token", "refresh_token", token.as_str());
            let (status, body) = exchange(&vendors, &client, grant).await;
            assert_eq!((status, &body["error"]), (400, &json!("invalid_grant")));
        }
        let api = vendors.maxmd.url() + "/api/certificate/direct.example.com";
        let token = second["access_token"].as_str().unwrap();
        assert_eq!(send(client.get(&api).bearer_auth(token)).await.0, 401);
    }
}
