//! One token for all replicas, for vendors that keep only one alive for each client: `share: true`.
//!
//! Where each renewal is a new grant there is nothing to lose, so replicas otherwise hold a token
//! each. Here the tokens go through the store as grants with refresh tokens do, by the same
//! [`Rotation`]: a stored token that is still good is used. Otherwise the holder of the lock
//! requests one and stores it, and the others find it there.
//!
//! [`Rotation`]: super::rotation::Rotation

use async_trait::async_trait;
use http::StatusCode;

use super::explanation::Verdict;
use super::inputs::Inputs;
use super::issuer::{GrantFuture, Issuer};
use super::token_request::{TokenError, TokenResponse};
use crate::secret::Secret;
use crate::tls::sha256;

/// A server that issues a new grant at each request.
#[async_trait]
pub(super) trait RequestsToken: Send + Sync + 'static {
    /// Requests a token.
    async fn request_token(&self) -> Result<TokenResponse, TokenError>;

    /// See [`super::Source::account`].
    fn account(&self) -> Option<[u8; 32]>;

    /// Returns everything that is sent except what authenticates the client: each part once, in a
    /// fixed order.
    fn request_parts(&self) -> Vec<String>;
}

/// An [`Issuer`] whose tokens are shared.
pub(super) struct SharedToken<A> {
    server: A,
    /// The secrets and files that authenticate the client.
    client_auth: Inputs,
}

impl<A: RequestsToken> SharedToken<A> {
    pub(super) fn new(server: A, client_auth: Inputs) -> Self {
        Self {
            server,
            client_auth,
        }
    }
}

#[async_trait]
impl<A: RequestsToken> Issuer for SharedToken<A> {
    /// Includes the secret, the scope and the server: a token that was obtained with others is not
    /// ours.
    fn binding(&self) -> Result<String, String> {
        let client_auth = self.client_auth.read()?;
        let parts = self.server.request_parts();
        let parts: Vec<_> = parts
            .iter()
            .map(|part| sha256(&[part.as_bytes()]))
            .collect();
        let mut all: Vec<&[u8]> = vec![b"one token for all replicas", &client_auth];
        all.extend(parts.iter().map(<[u8; 32]>::as_slice));
        Ok(hex::encode(sha256(&all)))
    }

    fn account(&self) -> Option<[u8; 32]> {
        self.server.account()
    }

    fn always_new_grant(&self) -> bool {
        true
    }

    async fn refresh(&self, _refresh_token: &Secret) -> Result<TokenResponse, TokenError> {
        // No refresh token is ever stored.
        Err(TokenError::NotSent("there is no refresh token".to_owned()))
    }

    fn invalidates_grant(&self, _status: StatusCode, _verdict: Verdict) -> bool {
        false
    }

    fn grant(&self) -> Option<GrantFuture<'_>> {
        Some(Box::pin(async {
            let mut response = self.server.request_token().await?;
            response.refresh_token = None;
            response.refresh_until = None;
            Ok(response)
        }))
    }
}

#[cfg(test)]
mod tests;
