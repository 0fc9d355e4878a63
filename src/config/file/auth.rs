//! `auth:` of a vendor as it is written: one stanza for each kind of credential.

use schemars::JsonSchema;

use super::{CertFiles, Entries, PlainOrSecret, Secret, Span};

/// The credential: exactly one kind.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    title = "one kind of credential",
    extend("minProperties" = 1, "maxProperties" = 1)
)]
pub(in crate::config) struct Auth {
    /// A fixed token: `Authorization: Bearer …`.
    pub(in crate::config) bearer: Option<Bearer>,
    /// User name and password: `Authorization: Basic …`.
    pub(in crate::config) basic: Option<Basic>,
    /// Headers by name; the spelling is kept on HTTP/1.1.
    #[schemars(extend("minProperties" = 1))]
    pub(in crate::config) headers: Option<Entries<PlainOrSecret>>,
    /// Query parameters by name.
    #[schemars(extend("minProperties" = 1))]
    pub(in crate::config) query: Option<Entries<Secret>>,
    /// OAuth 2.0 client credentials (RFC 6749 §4.4).
    pub(in crate::config) client_credentials: Option<ClientCredentials>,
    /// OAuth 2.0 authorization code (RFC 6749 §4.1), once, by `countersign authorize`; then the
    /// stored refresh token (§6).
    pub(in crate::config) authorization_code: Option<AuthorizationCode>,
    /// A vedauth token server.
    pub(in crate::config) vedauth: Option<Vedauth>,
}

/// A fixed token.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Bearer {
    /// The token.
    pub(in crate::config) token: Option<Secret>,
}

/// User name and password.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Basic {
    /// User name.
    pub(in crate::config) username: Option<PlainOrSecret>,
    /// Password.
    pub(in crate::config) password: Option<Secret>,
}

/// OAuth 2.0 client credentials.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct ClientCredentials {
    /// The URL that issues tokens.
    pub(in crate::config) token_url: Option<String>,
    /// The client's name.
    pub(in crate::config) client_id: Option<PlainOrSecret>,
    /// The client's secret, for `client_auth` `basic`, `post` and `json`.
    pub(in crate::config) client_secret: Option<Secret>,
    /// Client authentication.
    #[schemars(extend("default" = "basic"))]
    pub(in crate::config) client_auth: Option<ClientAuth>,
    /// Sent when present and not empty.
    pub(in crate::config) scope: Option<String>,
    /// Sent when present and not empty.
    pub(in crate::config) audience: Option<String>,
    /// Sent when present and not empty (RFC 8707).
    pub(in crate::config) resource: Option<String>,
    /// Further parameters, sent as they are.
    pub(in crate::config) params: Option<Entries<String>>,
    /// The key that signs assertions, PEM, for `client_auth: private_key_jwt`.
    pub(in crate::config) private_key: Option<Secret>,
    /// `kid` of the assertion.
    pub(in crate::config) key_id: Option<String>,
    /// The algorithm of the assertion's signature.
    #[schemars(extend("default" = "RS256"))]
    pub(in crate::config) algorithm: Option<Algorithm>,
    /// `aud` of the assertion. Default: the token URL.
    pub(in crate::config) assertion_audience: Option<String>,
    /// The certificate for the token endpoint when it requests one; with `client_auth: tls` it
    /// authenticates the client. Default: the vendor's `client_cert`.
    pub(in crate::config) client_cert: Option<CertFiles>,
    /// One token for all replicas, through the `store`, encrypted: for vendors that keep only one
    /// token of a client valid. One replica at a time requests a token, and the others read it from
    /// the store.
    #[schemars(extend("default" = false))]
    pub(in crate::config) share: Option<bool>,
    /// Lifetime of a token whose response has none, or an unreadable one.
    #[schemars(extend("default" = "300s"))]
    pub(in crate::config) default_lifetime: Option<Span>,
    /// Time of one token request, the body included.
    #[schemars(extend("default" = "10s"))]
    pub(in crate::config) request_timeout: Option<Span>,
}

/// OAuth 2.0 authorization code and refresh tokens.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct AuthorizationCode {
    /// The URL where a person consents.
    pub(in crate::config) authorize_url: Option<String>,
    /// The URL where codes and refresh tokens are exchanged.
    pub(in crate::config) token_url: Option<String>,
    /// The client's name.
    pub(in crate::config) client_id: Option<PlainOrSecret>,
    /// The client's secret. Absent, with no `client_auth`: a public client.
    pub(in crate::config) client_secret: Option<Secret>,
    /// Client authentication.
    #[schemars(extend("default" = "post"))]
    pub(in crate::config) client_auth: Option<ClientAuth>,
    /// Requested at the authorize URL.
    pub(in crate::config) scope: Option<String>,
    /// The URL to which the browser is sent back, as registered with the vendor; sent byte for byte
    /// as it is written here.
    pub(in crate::config) redirect_uri: Option<String>,
    /// `true` if the exchange repeats `redirect_uri`, as RFC 6749 §4.1.3 requires.
    #[schemars(extend("default" = true))]
    pub(in crate::config) send_redirect_uri: Option<bool>,
    /// Proof key for code exchange, method S256 (RFC 7636).
    #[schemars(extend("default" = true))]
    pub(in crate::config) pkce: Option<bool>,
    /// The server's issuer identifier, which its redirects must then have as `iss` (RFC 9207).
    /// Default: the origin of `authorize_url`, for redirects with an `iss`.
    pub(in crate::config) issuer: Option<String>,
    /// The key that signs assertions, PEM, for `client_auth: private_key_jwt`.
    pub(in crate::config) private_key: Option<Secret>,
    /// `kid` of the assertion.
    pub(in crate::config) key_id: Option<String>,
    /// The algorithm of the assertion's signature.
    #[schemars(extend("default" = "RS256"))]
    pub(in crate::config) algorithm: Option<Algorithm>,
    /// `aud` of the assertion. Default: the token URL.
    pub(in crate::config) assertion_audience: Option<String>,
    /// The certificate for the token endpoint when it requests one; with `client_auth: tls` it
    /// authenticates the client. Default: the vendor's `client_cert`.
    pub(in crate::config) client_cert: Option<CertFiles>,
    /// One token for all replicas, through the `store`: always the case with refresh tokens.
    #[schemars(extend("default" = true))]
    pub(in crate::config) share: Option<bool>,
    /// Lifetime of a token whose response has none, or an unreadable one.
    #[schemars(extend("default" = "300s"))]
    pub(in crate::config) default_lifetime: Option<Span>,
    /// Time of one token request, the body included.
    #[schemars(extend("default" = "10s"))]
    pub(in crate::config) request_timeout: Option<Span>,
}

/// A grant of a vedauth server, obtained by exactly one of `certificate`, `username` with
/// `password`, or `jwt`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Vedauth {
    /// The server; `/vedauth` is added unless the path already ends with it. Default: the
    /// upstream's origin.
    pub(in crate::config) url: Option<String>,
    /// The API integration's id; case-sensitive.
    pub(in crate::config) client_id: Option<PlainOrSecret>,
    /// Sent as it is, for example `certificate:manage;configuration`.
    pub(in crate::config) scope: Option<String>,
    /// Client certificate that obtains the grant.
    pub(in crate::config) certificate: Option<CertFiles>,
    /// User that obtains the grant.
    pub(in crate::config) username: Option<PlainOrSecret>,
    /// The user's password.
    pub(in crate::config) password: Option<Secret>,
    /// Signed token that obtains the grant.
    pub(in crate::config) jwt: Option<Secret>,
    /// `true` if refresh tokens are used.
    #[schemars(extend("default" = true))]
    pub(in crate::config) refresh: Option<bool>,
    /// `true` if the grant is revoked when the process is stopped, for every process that shares
    /// the store.
    #[schemars(extend("default" = false))]
    pub(in crate::config) revoke_on_exit: Option<bool>,
    /// One token for all replicas, through the `store`, encrypted: always the case with refresh
    /// tokens. With `refresh: false` for servers that keep only one token of a client valid.
    #[schemars(extend("default" = false))]
    pub(in crate::config) share: Option<bool>,
    /// Lifetime of a token whose response has none, or an unreadable one.
    #[schemars(extend("default" = "300s"))]
    pub(in crate::config) default_lifetime: Option<Span>,
    /// Time of one token request, the body included.
    #[schemars(extend("default" = "10s"))]
    pub(in crate::config) request_timeout: Option<Span>,
}

/// Client authentication at the token endpoint.
#[derive(Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ClientAuth {
    Basic,
    Post,
    Json,
    PrivateKeyJwt,
    Tls,
}

/// The algorithm of an assertion's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
pub(in crate::config) enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}
