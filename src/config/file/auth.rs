//! `auth:` of a vendor as it is written: one stanza for each kind of credential.

use schemars::JsonSchema;

use super::{CertFiles, Entries, PlainOrSecret, Secret, Span};

/// What is shown to the vendor: exactly one kind.
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
    /// Header fields by name; the spelling is kept on HTTP/1.1.
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
    /// Where tokens are issued.
    pub(in crate::config) token_url: Option<String>,
    /// The client's name.
    pub(in crate::config) client_id: Option<PlainOrSecret>,
    /// The client's secret, for `client_auth` `basic`, `post` and `json`.
    pub(in crate::config) client_secret: Option<Secret>,
    /// How the client proves itself.
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
    /// How the assertion is signed.
    #[schemars(extend("default" = "RS256"))]
    pub(in crate::config) algorithm: Option<Algorithm>,
    /// `aud` of the assertion. Default: the token URL.
    pub(in crate::config) assertion_audience: Option<String>,
    /// Shown at the token endpoint when it asks for a certificate; with `client_auth: tls` the proof
    /// itself. Default: the vendor's `client_cert`.
    pub(in crate::config) client_cert: Option<CertFiles>,
    /// One token for all replicas, through the `store`, encrypted: for vendors that keep only one token
    /// of a client alive. A token is asked for by one replica at a time, and the others take it from
    /// there.
    #[schemars(extend("default" = false))]
    pub(in crate::config) share: Option<bool>,
    /// Assumed when the answer names no lifetime or an unreadable one.
    #[schemars(extend("default" = "300s"))]
    pub(in crate::config) default_lifetime: Option<Span>,
    /// One token request, body included.
    #[schemars(extend("default" = "10s"))]
    pub(in crate::config) request_timeout: Option<Span>,
}

/// OAuth 2.0 authorization code and refresh tokens.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct AuthorizationCode {
    /// Where a person consents.
    pub(in crate::config) authorize_url: Option<String>,
    /// Where codes and refresh tokens are exchanged.
    pub(in crate::config) token_url: Option<String>,
    /// The client's name.
    pub(in crate::config) client_id: Option<PlainOrSecret>,
    /// The client's secret. Absent, with no `client_auth`: a public client.
    pub(in crate::config) client_secret: Option<Secret>,
    /// How the client proves itself.
    #[schemars(extend("default" = "post"))]
    pub(in crate::config) client_auth: Option<ClientAuth>,
    /// Asked for at the authorize URL.
    pub(in crate::config) scope: Option<String>,
    /// Where the browser is sent back to, as registered with the vendor; sent byte for byte as it is
    /// written here.
    pub(in crate::config) redirect_uri: Option<String>,
    /// Whether the exchange repeats `redirect_uri`, as RFC 6749 §4.1.3 wants.
    #[schemars(extend("default" = true))]
    pub(in crate::config) send_redirect_uri: Option<bool>,
    /// Proof key for code exchange, method S256 (RFC 7636).
    #[schemars(extend("default" = true))]
    pub(in crate::config) pkce: Option<bool>,
    /// The server's issuer identifier, which its redirects must then name as `iss` (RFC 9207).
    /// Default: the origin of `authorize_url`, for redirects that name one.
    pub(in crate::config) issuer: Option<String>,
    /// The key that signs assertions, PEM, for `client_auth: private_key_jwt`.
    pub(in crate::config) private_key: Option<Secret>,
    /// `kid` of the assertion.
    pub(in crate::config) key_id: Option<String>,
    /// How the assertion is signed.
    #[schemars(extend("default" = "RS256"))]
    pub(in crate::config) algorithm: Option<Algorithm>,
    /// `aud` of the assertion. Default: the token URL.
    pub(in crate::config) assertion_audience: Option<String>,
    /// Shown at the token endpoint when it asks for a certificate; with `client_auth: tls` the proof
    /// itself. Default: the vendor's `client_cert`.
    pub(in crate::config) client_cert: Option<CertFiles>,
    /// One token for all replicas, through the `store`: always so with refresh tokens.
    #[schemars(extend("default" = true))]
    pub(in crate::config) share: Option<bool>,
    /// Assumed when the answer names no lifetime or an unreadable one.
    #[schemars(extend("default" = "300s"))]
    pub(in crate::config) default_lifetime: Option<Span>,
    /// One token request, body included.
    #[schemars(extend("default" = "10s"))]
    pub(in crate::config) request_timeout: Option<Span>,
}

/// A grant from a vedauth server, by exactly one of `certificate`, `username` with `password`, or
/// `jwt`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Vedauth {
    /// The server; `/vedauth` is added unless the path already ends so. Default: the upstream's
    /// origin.
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
    /// Whether refresh tokens are used.
    #[schemars(extend("default" = true))]
    pub(in crate::config) refresh: Option<bool>,
    /// Whether the grant is revoked when the process is stopped; that ends it for every process
    /// that shares the store.
    #[schemars(extend("default" = false))]
    pub(in crate::config) revoke_on_exit: Option<bool>,
    /// One token for all replicas, through the `store`, encrypted: always so with refresh tokens, and
    /// with `refresh: false` for servers that keep only one token of a client alive.
    #[schemars(extend("default" = false))]
    pub(in crate::config) share: Option<bool>,
    /// Assumed when the answer names no lifetime or an unreadable one.
    #[schemars(extend("default" = "300s"))]
    pub(in crate::config) default_lifetime: Option<Span>,
    /// One token request, body included.
    #[schemars(extend("default" = "10s"))]
    pub(in crate::config) request_timeout: Option<Span>,
}

/// How a client proves itself at the token endpoint.
#[derive(Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ClientAuth {
    Basic,
    Post,
    Json,
    PrivateKeyJwt,
    Tls,
}

/// How an assertion is signed.
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
