//! Revokes a grant when the process is stopped, where the configuration asks for it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Credential;
use super::issuer::Issuer;
use super::shared_token::SharedToken;
use super::vedauth::Vedauth;
use crate::config;
use crate::store::{Grant, Store, StoreError};

/// Everything needed to revoke one vendor's grant.
pub(super) struct Revocation {
    server: Vedauth,
    /// The issuer of the token that all replicas share, if they do without refresh tokens.
    shared: Option<SharedToken<Vedauth>>,
    /// `None`: nothing of the grant is stored.
    store: Option<Arc<dyn Store>>,
    vendor: String,
    credential: Arc<Credential>,
}

impl Revocation {
    pub(super) fn new(
        config: &config::Vedauth,
        vendor: &config::Vendor,
        store: &Arc<dyn Store>,
        credential: Arc<Credential>,
    ) -> Self {
        Self {
            server: Vedauth::new(config, vendor).0,
            shared: (config.share && !config.refresh).then(|| Vedauth::shared(config, vendor).0),
            store: (config.refresh || config.share).then(|| store.clone()),
            vendor: vendor.name.clone(),
            credential,
        }
    }

    /// Revokes the grant and removes its tokens from the store. Every outcome is logged; a grant
    /// that could not be revoked stays valid at the server.
    pub(super) async fn run(&self) {
        let in_store = |cause: StoreError| format!("store: {cause}");
        let done = async {
            let Some(store) = &self.store else {
                return self.revoke(None).await;
            };
            // A renewal in flight holds the lock; the grant it obtains is the one to revoke.
            let lock = timeout(
                LOCK_TIMEOUT,
                store.lock(&self.vendor, TIMEOUT * 2, LOCK_TIMEOUT),
            )
            .await;
            let Ok(Ok(_lock)) = lock else {
                return self.revoke(None).await;
            };
            let stored = store.load(&self.vendor).await.map_err(in_store)?;
            let Some(mut grant) = stored.filter(|grant| self.is_ours(grant)) else {
                return self.revoke(None).await;
            };
            let revoked = self.revoke(Some(&grant)).await?;
            if revoked {
                grant.refresh_token = None;
                grant.access = None;
                grant.intent = None;
                store
                    .save(&self.vendor, &mut grant)
                    .await
                    .map_err(in_store)?;
            }
            Ok(revoked)
        };
        match timeout(TIMEOUT, done).await {
            Ok(Ok(true)) => info!(vendor = self.vendor, "the grant was revoked"),
            Ok(Ok(false)) => info!(vendor = self.vendor, "there was no token to revoke"),
            Ok(Err(cause)) => warn!(vendor = self.vendor, "the grant was not revoked: {cause}"),
            Err(_) => warn!(
                vendor = self.vendor,
                "it is unknown whether the grant was revoked: no outcome within {}",
                humantime::format_duration(TIMEOUT)
            ),
        }
    }

    /// Returns `false` when there is no token to revoke with.
    async fn revoke(&self, stored: Option<&Grant>) -> Result<bool, String> {
        let Some(token) = self.token(stored) else {
            return Ok(false);
        };
        let revoked = self.server.revoke(token).await;
        revoked.map(|()| true).map_err(|cause| cause.to_string())
    }

    /// Returns the newest access token that is still valid.
    fn token(&self, stored: Option<&Grant>) -> Option<HeaderValue> {
        let access = stored.and_then(|grant| grant.access.as_ref());
        let valid = access.filter(|access| {
            let age = SystemTime::now().duration_since(access.issued);
            age.unwrap_or_default() < access.lifetime
        });
        valid
            .and_then(|access| access.token.to_header("Bearer ").ok())
            .or_else(|| self.credential.current().ok()?.values().first().cloned())
    }

    fn is_ours(&self, grant: &Grant) -> bool {
        let binding = match &self.shared {
            Some(shared) => shared.binding(),
            None => self.server.binding(),
        };
        binding.is_ok_and(|binding| binding == grant.binding)
    }
}

/// Stopping a process waits no longer than this.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Leaves time for the request itself.
const LOCK_TIMEOUT: Duration = Duration::from_millis(1500);
