//! A server that issues grants, as the rotation of refresh tokens sees it.

use std::pin::Pin;

use async_trait::async_trait;
use http::StatusCode;

use super::explanation::Verdict;
use super::token_request::{Answer, TokenError};
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
    async fn refresh(&self, refresh_token: &Secret) -> Result<Answer, TokenError>;

    /// Whether a refusal of [`Issuer::refresh`] means that the refresh token is dead, rather than
    /// that we are refused.
    fn ends_grant(&self, status: StatusCode, verdict: Verdict) -> bool;

    /// Whether there are no refresh tokens, so that each renewal is a new grant.
    fn asks_anew(&self) -> bool {
        false
    }

    /// Asks for a new grant once awaited; `None`: only a person can.
    fn grant(&self) -> Option<Asking<'_>>;
}

pub(super) type Asking<'a> = Pin<Box<dyn Future<Output = Result<Answer, TokenError>> + Send + 'a>>;
