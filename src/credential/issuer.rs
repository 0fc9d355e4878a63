//! A server that issues grants, as the rotation of refresh tokens sees it.

use std::pin::Pin;

use async_trait::async_trait;
use http::StatusCode;

use super::explanation::Verdict;
use super::token_request::{TokenError, TokenResponse};
use crate::secret::Secret;

/// The server that grants, in its own protocol.
#[async_trait]
pub(super) trait Issuer: Send + Sync + 'static {
    /// What a grant is tied to: the server and the name we have there.
    fn binding(&self) -> Result<String, String>;

    /// See [`super::Source::account`]: unlike [`Issuer::binding`], what was asked for does not matter.
    fn account(&self) -> Option<[u8; 32]> {
        None
    }

    /// Shows a refresh token to the server.
    async fn refresh(&self, refresh_token: &Secret) -> Result<TokenResponse, TokenError>;

    /// Whether a refusal of [`Issuer::refresh`] means that the refresh token is dead, rather than
    /// that we are refused.
    fn invalidates_grant(&self, status: StatusCode, verdict: Verdict) -> bool;

    /// Whether there are no refresh tokens, so that each renewal is a new grant.
    fn always_new_grant(&self) -> bool {
        false
    }

    /// Asks for a new grant once awaited; `None`: only a person can.
    fn grant(&self) -> Option<GrantFuture<'_>>;
}

pub(super) type GrantFuture<'a> =
    Pin<Box<dyn Future<Output = Result<TokenResponse, TokenError>> + Send + 'a>>;
