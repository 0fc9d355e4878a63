//! `login: stub`: responses to vendors' clients that log in before they work, with a caller's key
//! in place of the vendor's secret. Pure functions over paths and bodies.

use std::time::{SystemTime, UNIX_EPOCH};

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config::{LoginPath, LoginShape};
use crate::pattern::Rules;
use crate::request::caller::Caller;
use crate::request::caller::token::{Login, Mint, Purpose};

/// Largest login body, bytes.
pub const LONGEST: usize = 8 * 1024;
/// Most values of a body that are looked at; logins have fewer.
const MOST_VALUES: usize = 32;

/// The login calls of one vendor that are answered here.
#[derive(Debug)]
pub struct Logins(Vec<(Rules, LoginShape)>);

impl Logins {
    /// Prepares the calls.
    #[must_use]
    pub fn new(paths: &[LoginPath], trailing_dots_ignored: bool) -> Self {
        let prepared = paths.iter().map(|login| {
            let rule = std::slice::from_ref(&login.rule);
            (Rules::new(rule, &[], trailing_dots_ignored), login.shape)
        });
        Self(prepared.collect())
    }

    /// Returns the form of the response to `method` on `path` (as it would be sent upstream).
    #[must_use]
    pub fn shape(&self, method: &str, path: &str) -> Option<LoginShape> {
        let found = self
            .0
            .iter()
            .find(|(rule, _)| rule.is_passed_as_sent(method, path).is_err());
        found.map(|(_, shape)| *shape)
    }
}

/// The posted values, from a form or a JSON object.
#[derive(Debug, Default)]
pub struct Posted(Vec<(String, Zeroizing<String>)>);

impl Posted {
    /// Reads a body. Any other format has no values.
    #[must_use]
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes);
        let is_form = kind.is_some_and(|kind| {
            kind.to_ascii_lowercase()
                .starts_with(b"application/x-www-form-urlencoded")
        });
        let values: Vec<_> = if is_form {
            url::form_urlencoded::parse(body)
                .map(|(name, value)| (name.into_owned(), Zeroizing::new(value.into_owned())))
                .collect()
        } else {
            // Some clients post JSON without a media type.
            let members = match serde_json::from_slice(body) {
                Ok(Value::Object(members)) => members,
                Ok(_) | Err(_) => serde_json::Map::new(),
            };
            members
                .into_iter()
                .filter_map(|(name, value)| match value {
                    Value::String(text) => Some((name, Zeroizing::new(text))),
                    Value::Null
                    | Value::Bool(_)
                    | Value::Number(_)
                    | Value::Array(_)
                    | Value::Object(_) => None,
                })
                .collect()
        };
        Self(values.into_iter().take(MOST_VALUES).collect())
    }

    /// Returns every value; any may be a key.
    pub fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(_, value)| value.as_bytes())
    }

    fn value(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(of, _)| of == name)?;
        Some(found.1.as_str())
    }
}

/// Returns the response to `login` of `caller`.
#[must_use]
pub fn respond(
    shape: LoginShape,
    caller: &Caller,
    login: Login,
    posted: &Posted,
    mint: &Mint,
) -> (StatusCode, Option<Value>) {
    // RFC 6749 §4.4.3: client credentials come without a refresh token.
    let renewable = match shape {
        LoginShape::Oauth => {
            let grant_type = posted.value("grant_type");
            grant_type.is_some_and(|grant| grant != "client_credentials")
        }
        LoginShape::Vedauth => true,
        LoginShape::UserToken | LoginShape::ApiKey | LoginShape::Logout | LoginShape::Revoke => {
            false
        }
    };
    let login = if renewable { login.renewable() } else { login };
    let token = || mint.issue(caller, Purpose::Call, &login);
    let refresh_token = || mint.issue(caller, Purpose::Refresh, &login);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let until = login.end_of(Purpose::Call);
    let lifetime = until.saturating_sub(now);
    let scope = posted.value("scope");
    let body = match shape {
        LoginShape::Oauth => {
            let mut body = json!({
                "access_token": token().expose(),
                "token_type": "Bearer",
                "expires_in": lifetime,
            });
            if let Some(scope) = scope {
                body["scope"] = json!(scope);
            }
            if renewable {
                body["refresh_token"] = json!(refresh_token().expose());
            }
            body
        }
        LoginShape::Vedauth => json!({
            "access_token": token().expose(),
            "refresh_token": refresh_token().expose(),
            "token_type": "Bearer",
            "expires": until,
            "expires_in": lifetime,
            "refresh_until": login.end_of(Purpose::Refresh),
            "scope": scope.unwrap_or_default(),
            "identity": format!("countersign:{}", caller.name),
        }),
        LoginShape::UserToken => json!({
            "user_id": &*caller.name,
            "token": token().expose(),
        }),
        LoginShape::ApiKey => json!({
            "APIKey": token().expose(),
            "ValidUntil": format!("/Date({until}000)/"),
        }),
        LoginShape::Logout | LoginShape::Revoke => return (ended(shape), None),
    };
    (StatusCode::OK, Some(body))
}

/// Returns the status of the response to a call that revoked its token.
#[must_use]
pub fn ended(shape: LoginShape) -> StatusCode {
    if shape == LoginShape::Logout {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::OK
    }
}

/// Tells whether the call revokes the token that it presents.
#[must_use]
pub fn ends(shape: LoginShape) -> bool {
    match shape {
        LoginShape::Logout | LoginShape::Revoke => true,
        LoginShape::Oauth | LoginShape::Vedauth | LoginShape::UserToken | LoginShape::ApiKey => {
            false
        }
    }
}
