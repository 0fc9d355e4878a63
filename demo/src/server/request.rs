//! A request as a mock server has received it.

use std::fmt;

use bytes::Bytes;
use serde_json::Value;

use crate::certificates::ClientCert;

/// Field names that carry a login at one of the vendors, or at the proxy itself.
const LOGIN_FIELDS: [&str; 10] = [
    "authorization",
    "proxy-authorization",
    "login",
    "password",
    "customeruri",
    "x-api-key",
    "x-venafi-api-key",
    "x-countersign-key",
    "cookie",
    "cookie2",
];

/// Members of a token request's body that carry a login, and `client_id`.
const LOGIN_MEMBERS: [&str; 9] = [
    "client_id",
    "client_secret",
    "client_assertion",
    "username",
    "password",
    "jwt",
    "code",
    "refresh_token",
    "assertion",
];

/// One request as it was received.
#[derive(Clone)]
pub struct RecordedRequest {
    /// Number of its connection, counted from 0.
    pub connection: usize,
    /// The method.
    pub method: String,
    /// The request target, byte for byte.
    pub target: String,
    /// The header fields, in their order and spelling; values without surrounding blanks.
    pub fields: Vec<(String, String)>,
    /// The body, transfer coding removed.
    pub body: Vec<u8>,
    /// Every byte read since the previous request of the connection.
    pub raw: Vec<u8>,
    /// The client certificate of the connection.
    pub client_cert: Option<ClientCert>,
    /// `true` for a token request.
    pub token_call: bool,
    /// Status of the response; 0 until there is one.
    pub status: u16,
}

impl RecordedRequest {
    /// Parses the bytes of one request.
    ///
    /// `None` when `raw` does not start with a complete head: the library has read it together with
    /// the previous request (pipelining).
    pub(super) fn parse(
        raw: Vec<u8>,
        body: &Bytes,
        connection: usize,
        client_cert: Option<ClientCert>,
    ) -> Option<Self> {
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]);
        let mut lines = head.split("\r\n");
        let mut start = lines.next()?.split(' ');
        let (method, target) = (start.next()?.to_owned(), start.next()?.to_owned());
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
            .collect();
        Some(Self {
            connection,
            method,
            target,
            fields,
            body: body.to_vec(),
            raw,
            client_cert,
            token_call: false,
            status: 0,
        })
    }

    /// Returns the target without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// Returns the query's value for `name`, decoded; `None` when it occurs twice.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        member(query.as_bytes(), name)
    }

    /// Returns the value of the only field named `name`, in any case; `None` when there is none or
    /// more than one, because a vendor that receives two logins accepts neither.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.only(|spelled| spelled.eq_ignore_ascii_case(name))
    }

    /// Returns the value of the only field named exactly `name`, case included.
    #[must_use]
    pub fn exact_field(&self, name: &str) -> Option<&str> {
        self.field(name)
            .and_then(|_| self.only(|spelled| spelled == name))
    }

    /// Returns the token of the only `Authorization: Bearer` (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.field("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    }

    /// Tells whether the body's media type is `media`, ignoring parameters.
    #[must_use]
    pub fn has_media_type(&self, media: &str) -> bool {
        self.field("content-type").is_some_and(|value| {
            let (value, _) = value.split_once(';').unwrap_or((value, ""));
            value.trim().eq_ignore_ascii_case(media)
        })
    }

    /// Returns a form body's value for `name`; `None` when it occurs twice (RFC 6749 §3.2).
    #[must_use]
    pub fn form(&self, name: &str) -> Option<String> {
        member(&self.body, name)
    }

    /// Returns the body as JSON; `Null` when it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Returns every credential in the request: header fields as they were spelled, the client
    /// certificate's subject, and, in a token request, members of its body.
    #[must_use]
    pub fn login(&self) -> Vec<(String, String)> {
        let mut login: Vec<(String, String)> = self
            .fields
            .iter()
            .filter(|(name, _)| LOGIN_FIELDS.contains(&name.to_ascii_lowercase().as_str()))
            .cloned()
            .collect();
        if self.token_call {
            let json = self.json();
            for name in LOGIN_MEMBERS {
                let value = json[name]
                    .as_str()
                    .map(str::to_owned)
                    .or_else(|| self.form(name));
                login.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        if let Some(cert) = &self.client_cert {
            login.push(("certificate".to_owned(), cert.subject.clone()));
        }
        login
    }

    fn only(&self, wanted: impl Fn(&str) -> bool) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(name, _)| wanted(name));
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Debug for RecordedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RecordedRequest")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("fields", &names)
            .field("body", &self.body.len())
            .field("client_cert", &self.client_cert)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// Returns the value of `name` in form-encoded text if it occurs once.
fn member(form: &[u8], name: &str) -> Option<String> {
    let mut values = url::form_urlencoded::parse(form).filter(|(key, _)| key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => Some(value.into_owned()),
        _ => None,
    }
}
