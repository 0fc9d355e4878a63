//! The facts of a credential's kind. Whatever the rest of the program asks about a kind is answered
//! here, so that adding one adds one arm.

use url::Url;

use super::{Auth, TokenTimes, VedauthGrant};
use crate::config::presets::LoginShape;
use crate::secret::SecretRef;

/// The facts of one credential's kind.
#[derive(Debug)]
pub struct Kind<'a> {
    /// Its name in proxy.yaml, `/status` and `explain`.
    pub name: &'static str,
    /// The part of a request that carries the credential.
    pub carrier: Carrier<'a>,
    /// Facts of kinds that obtain tokens; `None`: the credential is used as it is written.
    pub tokens: Option<TokenFacts<'a>>,
}

/// The part of a request that carries a credential.
#[derive(Clone, Copy, Debug)]
pub enum Carrier<'a> {
    /// The `Authorization` header, with this scheme.
    Authorization(&'static str),
    /// Headers by exact name.
    Headers(&'a [(String, SecretRef)]),
    /// Query parameters by name.
    Query(&'a [(String, SecretRef)]),
}

/// The facts of a kind that obtains tokens.
#[derive(Debug)]
pub struct TokenFacts<'a> {
    /// The token server's endpoints; the first issues tokens.
    pub endpoints: Vec<LoginEndpoint<'a>>,
    /// Lifetimes and limits of token requests.
    pub times: TokenTimes,
    /// The account that tokens are issued to. A token serves on after a reload only while it stays
    /// the same.
    pub account: Account<'a>,
    /// The place where replicas find the token.
    pub storage: Storage,
    /// `true` if a clean stop revokes the grant.
    pub revoke_on_exit: bool,
}

/// A URL at which credentials are issued, renewed or revoked.
#[derive(Clone, Copy, Debug)]
pub struct LoginEndpoint<'a> {
    /// The endpoint, or the root of several.
    pub url: &'a Url,
    /// The paths below `url` that no exception to `refuse:` may open; empty: `url` is one endpoint
    /// and closed itself.
    pub closed_below: &'static [&'static str],
    /// The calls that `login: stub` answers: method, path below `url`, form of the response.
    pub stubs: &'static [(Option<&'static str>, &'static str, LoginShape)],
}

/// An account at a token server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Account<'a> {
    server: &'a Url,
    client_id: &'a SecretRef,
    grant: Option<&'a VedauthGrant>,
}

/// The place where replicas find a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere: each replica obtains one of its own.
    None,
    /// The store, by `share: true`.
    Shared,
    /// The store, with its refresh token.
    Grant,
}

impl Auth {
    /// Returns the facts of this credential's kind.
    #[must_use]
    pub fn kind(&self) -> Kind<'_> {
        let bearer = Carrier::Authorization("Bearer");
        match self {
            Self::Bearer { .. } => Kind {
                name: "bearer",
                carrier: bearer,
                tokens: None,
            },
            Self::Basic { .. } => Kind {
                name: "basic",
                carrier: Carrier::Authorization("Basic"),
                tokens: None,
            },
            Self::Headers(headers) => Kind {
                name: "headers",
                carrier: Carrier::Headers(headers),
                tokens: None,
            },
            Self::Query(parameters) => Kind {
                name: "query",
                carrier: Carrier::Query(parameters),
                tokens: None,
            },
            Self::ClientCredentials(client) => Kind {
                name: "client_credentials",
                carrier: bearer,
                tokens: Some(TokenFacts {
                    endpoints: vec![LoginEndpoint::token(&client.token_url)],
                    times: client.times,
                    account: Account::of_client(&client.token_url, &client.client_id),
                    storage: if client.share {
                        Storage::Shared
                    } else {
                        Storage::None
                    },
                    revoke_on_exit: false,
                }),
            },
            Self::AuthorizationCode(client) => Kind {
                name: "authorization_code",
                carrier: bearer,
                tokens: Some(TokenFacts {
                    endpoints: vec![
                        LoginEndpoint::token(&client.token_url),
                        LoginEndpoint::closed(&client.authorize_url),
                    ],
                    times: client.times,
                    account: Account::of_client(&client.token_url, &client.client_id),
                    storage: Storage::Grant,
                    revoke_on_exit: false,
                }),
            },
            Self::Vedauth(server) => Kind {
                name: "vedauth",
                carrier: bearer,
                tokens: Some(TokenFacts {
                    endpoints: vec![LoginEndpoint {
                        url: &server.url,
                        closed_below: &VEDAUTH_PATHS,
                        stubs: &VEDAUTH_STUBS,
                    }],
                    times: server.times,
                    account: Account {
                        grant: Some(&server.grant),
                        ..Account::of_client(&server.url, &server.client_id)
                    },
                    storage: match (server.refresh, server.share) {
                        (true, _) => Storage::Grant,
                        (false, true) => Storage::Shared,
                        (false, false) => Storage::None,
                    },
                    revoke_on_exit: server.revoke_on_exit,
                }),
            },
        }
    }

    /// Tells whether all replicas use one token by `share: true`.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.storage() == Storage::Shared
    }

    /// Tells whether replicas take the token from the store, by `share: true` or with a refresh
    /// token.
    #[must_use]
    pub fn is_in_store(&self) -> bool {
        self.storage() != Storage::None
    }

    /// Tells whether a token obtained by `other` may serve until this credential has its own: it is
    /// of the same kind and issued to the same account.
    #[must_use]
    pub fn is_same_account(&self, other: &Self) -> bool {
        let (one, other) = (self.kind(), other.kind());
        let accounts = one.tokens.zip(other.tokens);
        one.name == other.name && accounts.is_some_and(|(one, other)| one.account == other.account)
    }

    /// Returns the endpoint that issues this credential's tokens.
    #[must_use]
    pub fn token_url(&self) -> Option<&Url> {
        let tokens = self.kind().tokens?;
        tokens.endpoints.first().map(|endpoint| endpoint.url)
    }

    fn storage(&self) -> Storage {
        let tokens = self.kind().tokens;
        tokens.map_or(Storage::None, |tokens| tokens.storage)
    }
}

impl<'a> LoginEndpoint<'a> {
    /// Returns an endpoint that issues tokens by OAuth 2.0.
    fn token(url: &'a Url) -> Self {
        Self {
            stubs: &[(Some("POST"), "", LoginShape::Oauth)],
            ..Self::closed(url)
        }
    }

    /// Returns an endpoint that callers never reach and that is not answered for them.
    fn closed(url: &'a Url) -> Self {
        Self {
            url,
            closed_below: &[],
            stubs: &[],
        }
    }
}

impl<'a> Account<'a> {
    fn of_client(server: &'a Url, client_id: &'a SecretRef) -> Self {
        Self {
            server,
            client_id,
            grant: None,
        }
    }
}

/// Paths below a vedauth server's URL that issue, renew or revoke a grant.
const VEDAUTH_PATHS: [&str; 9] = [
    "/authorize/certificate",
    "/authorize/oauth",
    "/authorize/jwt",
    "/authorize/integrated",
    "/authorize/device",
    "/authorize/token",
    "/authorize",
    "/revoke/token",
    "/revoke",
];

/// Login calls of clients of a vedauth server.
const VEDAUTH_STUBS: [(Option<&str>, &str, LoginShape); 4] = [
    (Some("POST"), "/authorize/oauth", LoginShape::Vedauth),
    (Some("POST"), "/authorize/certificate", LoginShape::Vedauth),
    (Some("POST"), "/authorize/token", LoginShape::Vedauth),
    (None, "/revoke/token", LoginShape::Revoke),
];
