//! `MaxMD` Direct CA: a person's consent, an authorization code, then refresh tokens that rotate.
//! Consent and tokens live on one host, the API on another.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;

use super::stand::{Answer, Part, Seen};
use super::tokens::{Tokens, random_hex};
use super::{Client, Logins};

/// The consent page and the token endpoint. Whoever asks for consent has it.
pub(crate) struct Auth {
    client: Client,
    tokens: Arc<Tokens>,
    grants: Mutex<Grants>,
}

#[derive(Default)]
struct Grants {
    /// Codes not yet exchanged, and the `redirect_uri` each was sent to.
    codes: HashMap<String, String>,
    /// Refresh tokens, spent ones too, and the family each belongs to.
    refresh: HashMap<String, Refresh>,
    /// The access tokens of each family that is alive, its latest last.
    families: HashMap<usize, Vec<String>>,
    /// How many families there have been.
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

    fn authorize(&self, seen: &Seen) -> Answer {
        if seen.method != "GET" {
            return Answer::empty(405).with("Allow", "GET");
        }
        let redirect = seen
            .query("redirect_uri")
            .and_then(|uri| url::Url::parse(&uri).ok().map(|url| (uri, url)));
        let (Some((uri, mut redirect)), true) = (
            redirect,
            seen.query("client_id").as_ref() == Some(&self.client.id),
        ) else {
            // Nowhere to send the browser back to.
            return Answer::json(400, &json!({"error": "invalid_request"}));
        };
        let state = seen.query("state");
        let wanted = [("response_type", "code"), ("scope", "tuser.account")];
        let complete = wanted
            .iter()
            .all(|(name, value)| seen.query(name).as_deref() == Some(value));
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
        Answer::empty(302).with("Location", redirect)
    }

    fn issue(&self, seen: &Seen) -> Answer {
        let refused = |error: &str| Answer::json(400, &json!({"error": error}));
        if seen.method != "POST" {
            return Answer::empty(405).with("Allow", "POST");
        }
        if !seen.is(super::FORM) {
            return refused("invalid_request");
        }
        if !self.client.is_in_form(seen) {
            return Answer::json(401, &json!({"error": "invalid_client"}));
        }
        let mut grants = self.grants.lock();
        match seen.form("grant_type").as_deref() {
            Some("authorization_code") => {
                let code = seen.form("code").unwrap_or_default();
                let Some(uri) = grants.codes.remove(&code) else {
                    return refused("invalid_grant");
                };
                // Not among the documented parameters; wrong when sent is wrong all the same.
                if seen.form("redirect_uri").is_some_and(|sent| sent != uri) {
                    return refused("invalid_grant");
                }
                grants.made += 1;
                let family = grants.made;
                grants.families.insert(family, Vec::new());
                self.pair(&mut grants, family)
            }
            Some("refresh_token") => {
                let token = seen.form("refresh_token").unwrap_or_default();
                let Some(refresh) = grants.refresh.get_mut(&token) else {
                    return refused("invalid_grant");
                };
                let (family, spent) = (refresh.family, refresh.spent);
                refresh.spent = true;
                if spent {
                    // Somebody else holds the grant as well: nobody keeps it.
                    for access in grants.families.remove(&family).unwrap_or_default() {
                        self.tokens.revoke(&access);
                    }
                }
                if !grants.families.contains_key(&family) {
                    return refused("invalid_grant");
                }
                self.pair(&mut grants, family)
            }
            Some(_) => refused("unsupported_grant_type"),
            None => refused("invalid_request"),
        }
    }

    fn pair(&self, grants: &mut Grants, family: usize) -> Answer {
        let (access, refresh) = (random_hex(), random_hex());
        let lifetime = self.tokens.issue(&access);
        if let Some(members) = grants.families.get_mut(&family) {
            members.push(access.clone());
        }
        let answer = json!({
            "access_token": access,
            "refresh_token": refresh,
            "token_type": "Bearer",
            "expires_in": lifetime,
        });
        let spent = false;
        grants.refresh.insert(refresh, Refresh { family, spent });
        Answer::json(200, &self.tokens.finish(answer)).with("Cache-Control", "no-store")
    }
}

impl Part for Auth {
    fn answer(&self, seen: &Seen) -> Answer {
        match seen.path() {
            "/oauth/authorize" => self.authorize(seen),
            "/oauth/token" => self.issue(seen),
            _ => Answer::empty(404),
        }
    }

    fn is_token_call(&self, seen: &Seen) -> bool {
        seen.path() == "/oauth/token"
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

impl Part for DirectCa {
    fn answer(&self, seen: &Seen) -> Answer {
        // `description`, not `error_description`.
        let problem = |status, error: &str, description: &str| {
            Answer::json(status, &json!({"error": error, "description": description}))
        };
        if !seen
            .bearer()
            .is_some_and(|token| self.tokens.accepts(token))
        {
            return problem(
                401,
                "Unauthorized",
                "The access token is missing or not valid.",
            );
        }
        let Some(name) = seen.path().strip_prefix("/api/certificate/") else {
            return problem(404, "Not Found", "There is no such resource.");
        };
        let uri = |name: &str| {
            let host = seen.field("host").unwrap_or_default();
            format!("https://{host}/api/certificate/{name}")
        };
        match (seen.method.as_str(), name) {
            ("GET", "query") => Answer::json(
                200,
                &json!({
                    "certificates": [{"cn": "direct.example.com", "uri": uri("direct.example.com")}],
                    "previousPageUri": null,
                    "nextPageUri": uri("query?page=2"),
                }),
            ),
            ("GET", "") => problem(400, "Bad Request", "A common name is needed."),
            ("GET", name) => Answer::json(200, &json!({"cn": name, "uri": uri(name)})),
            ("POST", "") => Answer::json(201, &json!({"uri": uri("direct.example.com")})),
            _ => problem(404, "Not Found", "There is no such resource."),
        }
    }
}
