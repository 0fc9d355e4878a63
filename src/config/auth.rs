//! The credential of a vendor: `auth:`, exactly one kind.

mod kind;
mod parse;

use std::time::Duration;

pub use self::kind::{Account, Carrier, Kind, LoginEndpoint, Storage, TokenFacts};
pub(super) use self::parse::{AuthContext, CONNECTION_FIELDS, auth};
use crate::secret::SecretRef;
use crate::tls::CertFiles;

/// One credential, by kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Auth {
    /// A fixed bearer token (RFC 6750 §2.1).
    Bearer {
        /// The token.
        token: SecretRef,
    },
    /// HTTP Basic (RFC 7617).
    Basic {
        /// User name.
        username: SecretRef,
        /// Password.
        password: SecretRef,
    },
    /// Header fields by exact name.
    Headers(Vec<(String, SecretRef)>),
    /// Query parameters by name.
    Query(Vec<(String, SecretRef)>),
    /// RFC 6749 §4.4.
    ClientCredentials(ClientCredentials),
    /// RFC 6749 §4.1, then §6.
    AuthorizationCode(AuthorizationCode),
    /// A vedauth token server.
    Vedauth(Vedauth),
}

/// The time limits of token requests, and the lifetime of tokens without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenTimes {
    /// Lifetime of a token whose response has none, or an unreadable one.
    pub default_lifetime: Duration,
    /// Total time of a token request, the body included.
    pub request_timeout: Duration,
}

/// Method by which a client authenticates at the token endpoint.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientAuth {
    /// HTTP Basic, both halves form-encoded (RFC 6749 §2.3.1).
    Basic(SecretRef),
    /// `client_id` and `client_secret` in the form body (RFC 6749 §2.3.1).
    Post(SecretRef),
    /// The whole request as one JSON object.
    Json(SecretRef),
    /// A signed assertion (RFC 7523 §2.2).
    PrivateKeyJwt {
        /// PEM: PKCS#8, PKCS#1 or SEC1.
        private_key: SecretRef,
        /// `kid` of the assertion's header.
        key_id: Option<String>,
        /// RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or `EdDSA`.
        algorithm: String,
        /// `aud`; `None`: the token URL.
        audience: Option<String>,
    },
    /// The TLS client certificate alone (RFC 8705 §2).
    Tls(CertFiles),
}

/// `client_credentials`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCredentials {
    /// Absolute https URL, or http where `allow_plaintext` permits it.
    pub token_url: url::Url,
    /// RFC 6749 §2.2.
    pub client_id: SecretRef,
    /// Client authentication.
    pub client_auth: ClientAuth,
    /// The certificate for an https token endpoint that requests one, whatever the client
    /// authentication.
    pub client_cert: Option<CertFiles>,
    /// Sent when present.
    pub scope: Option<String>,
    /// Sent when present.
    pub audience: Option<String>,
    /// RFC 8707, sent when present.
    pub resource: Option<String>,
    /// Further parameters, sent as they are.
    pub params: Vec<(String, String)>,
    /// `true` if all replicas share one token through the store.
    pub share: bool,
    /// Lifetimes and limits.
    pub times: TokenTimes,
}

/// `authorization_code`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationCode {
    /// The URL where a person consents.
    pub authorize_url: url::Url,
    /// The URL where codes and refresh tokens are exchanged.
    pub token_url: url::Url,
    /// RFC 6749 §2.2.
    pub client_id: SecretRef,
    /// Client authentication; `None`: a public client, `client_id` in the body.
    pub client_auth: Option<ClientAuth>,
    /// The certificate for an https token endpoint that requests one, whatever the client
    /// authentication.
    pub client_cert: Option<CertFiles>,
    /// Requested at the authorize URL.
    pub scope: Option<String>,
    /// The URL to which the browser is sent back.
    pub redirect_uri: RedirectUri,
    /// `true` if the exchange repeats `redirect_uri` (RFC 6749 §4.1.3 requires it; some vendors
    /// reject it).
    pub send_redirect_uri: bool,
    /// RFC 7636, method S256.
    pub pkce: bool,
    /// The server's issuer identifier (RFC 8414 §2), which a redirect must then have as `iss` (RFC
    /// 9207). `None`: an `iss` must be the origin of `authorize_url`.
    pub issuer: Option<String>,
    /// Lifetimes and limits.
    pub times: TokenTimes,
}

/// A redirect URI. Servers compare it with the registered one character by character (RFC 6749
/// §3.1.2.3), so it is sent exactly as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectUri {
    text: String,
    url: url::Url,
}

impl RedirectUri {
    /// Returns the URI as it is written and sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the URI as a browser follows it.
    #[must_use]
    pub fn url(&self) -> &url::Url {
        &self.url
    }
}

/// Parses an absolute URI. The reader of the configuration checks the rest.
impl std::str::FromStr for RedirectUri {
    type Err = url::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = url::Url::parse(text)?;
        let text = text.to_owned();
        Ok(Self { text, url })
    }
}

/// The way in which a grant is first obtained from a vedauth server.
#[derive(Clone, Debug, PartialEq)]
pub enum VedauthGrant {
    /// `POST authorize/certificate` with this client certificate.
    Certificate(CertFiles),
    /// `POST authorize/oauth`.
    Password {
        /// User name.
        username: SecretRef,
        /// Password.
        password: SecretRef,
    },
    /// `POST authorize/jwt`.
    Jwt(SecretRef),
}

/// `vedauth`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vedauth {
    /// Ends in `/vedauth`.
    pub url: url::Url,
    /// Case-sensitive.
    pub client_id: SecretRef,
    /// Sent as it is.
    pub scope: Option<String>,
    /// The way in which the grant is obtained.
    pub grant: VedauthGrant,
    /// `true` if refresh tokens are used.
    pub refresh: bool,
    /// `true` if all replicas share one token through the store, even without refresh tokens.
    pub share: bool,
    /// `true` if a clean stop revokes the grant.
    pub revoke_on_exit: bool,
    /// Lifetimes and limits.
    pub times: TokenTimes,
}
