//! A server that issues grants, as the rotation of refresh tokens sees it.

use std::pin::Pin;

use async_trait::async_trait;
use http::StatusCode;

use super::explanation::Verdict;
use super::token_request::{TokenError, TokenResponse};
use crate::secret::Secret;

/// A server that issues grants, in its own protocol.
#[async_trait]
pub(super) trait Issuer: Send + Sync + 'static {
    /// Returns what a grant is bound to: the server and our client name there.
    fn binding(&self) -> Result<String, String>;

    /// See [`super::Source::account`]. Unlike [`Issuer::binding`], it does not include what was
    /// requested.
    fn account(&self) -> Option<[u8; 32]> {
        None
    }

    /// Sends a refresh token to the server.
    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, TokenError>;

    /// Tells whether a refusal of [`Issuer::refresh`] means that the refresh token is invalid,
    /// rather than that the client is refused.
    fn invalidates_grant(&self, status: StatusCode, verdict: Verdict) -> bool;

    /// Tells whether there are no refresh tokens, so that each renewal is a new grant.
    fn always_new_grant(&self) -> bool {
        false
    }

    /// Requests a new grant once awaited; `None`: only a person can consent to one.
    fn grant(&self) -> Option<GrantFuture<'_>>;
}

pub(super) type GrantFuture<'a> =
    Pin<Box<dyn Future<Output = Result<TokenResponse, TokenError>> + Send + 'a>>;
