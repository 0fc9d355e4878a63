//! Makes one attempt to obtain a vendor's credential, for a person who asks whether it works.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::issuer::Issuer;
use super::{Origin, Read};
use crate::config::Vendor;
use crate::store::{Grant, Store};

/// Result of the attempt.
#[derive(Debug)]
pub enum Probed {
    /// Every secret is present; nothing is fetched for this kind.
    Static,
    /// The token server issued a token that is valid for this long. It is not used.
    Obtained(Duration),
    /// All replicas share the stored token, valid for this long. No other was requested, because
    /// that might revoke it.
    Shared(Duration),
    /// A person's consent is stored, with an access token valid for this long, if any. Its refresh
    /// token works once, so it was not tried.
    Consented(Option<Duration>),
    /// No credential was obtained, for this reason.
    Failed(String),
}

/// Makes one attempt. It sends nothing to the vendor's API, spends no stored refresh token and
/// stores nothing. Returns `None` when the vendor has no `auth`.
pub async fn probe(vendor: &Vendor, store: &Arc<dyn Store>) -> Option<Probed> {
    let auth = vendor.auth.as_ref()?;
    let outcome = match Origin::of(auth, vendor, store).source {
        // Loading the configuration has read the secrets already.
        Read::AsWritten(_) => Ok(Probed::Static),
        Read::Fetched(source) => source.probe().await,
    };
    Some(outcome.unwrap_or_else(Probed::Failed))
}

/// Tries an issuer whose grants are stored.
pub(super) async fn issuer(
    server: &impl Issuer,
    store: &Arc<dyn Store>,
    vendor: &str,
) -> Result<Probed, String> {
    let Some(grant) = server.grant() else {
        let binding = server.binding()?;
        return consented(vendor, load(store, vendor).await?, &binding);
    };
    // Where all replicas share one token, another might revoke it; the stored one says enough.
    if server.always_new_grant() {
        let binding = server.binding()?;
        let stored = load(store, vendor).await?;
        if let Some(left) = stored
            .filter(|grant| grant.binding == binding)
            .and_then(|grant| grant.access)
            .and_then(|access| access.left(SystemTime::now()))
        {
            return Ok(Probed::Shared(left));
        }
    }
    // This is a grant of its own; the stored one does not change.
    let response = grant.await.map_err(|cause| cause.to_string())?;
    Ok(Probed::Obtained(remaining(Some(response.lifetime.end))))
}

async fn load(store: &Arc<dyn Store>, vendor: &str) -> Result<Option<Grant>, String> {
    let loaded = store.load(vendor).await;
    loaded.map_err(|cause| format!("store: {cause}"))
}

fn consented(vendor: &str, grant: Option<Grant>, binding: &str) -> Result<Probed, String> {
    let hint = format!("run `countersign authorize {vendor}`");
    let Some(grant) = grant else {
        return Err(format!("no consent is stored; {hint}"));
    };
    if grant.binding != binding {
        return Err(format!(
            "the stored consent belongs to another client_id or another server; {hint}"
        ));
    }
    let now = SystemTime::now();
    let access = grant.access.and_then(|access| access.left(now));
    let expired = grant.refresh_until.is_some_and(|until| until <= now);
    if access.is_none() && (expired || grant.refresh_token.is_none()) {
        return Err(format!("the stored consent has expired; {hint}"));
    }
    Ok(Probed::Consented(access))
}

pub(super) fn remaining(end: Option<Instant>) -> Duration {
    end.unwrap_or_else(Instant::now)
        .saturating_duration_since(Instant::now())
}
