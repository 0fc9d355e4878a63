//! One attempt to obtain a vendor's credential, for the person who asks whether it works.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::oauth2::{ClientCredentials, CodeServer};
use super::rotation::Issuer;
use super::token_request::{Answer, TokenError};
use super::vedauth::Vedauth;
use super::{FetchError, Source};
use crate::config::{Auth, Vendor};
use crate::store::{Grant, Store};

/// How it went.
#[derive(Debug)]
pub enum Probed {
    /// Every secret is there; nothing is fetched for this kind.
    Static,
    /// The token server gave a token, good for so long. It is used for nothing.
    Obtained(Duration),
    /// All replicas share the stored token, good for so long. No other was asked for: that might end
    /// it.
    Shared(Duration),
    /// A person's consent is stored, with an access token good for so long, if any. Its refresh
    /// token works once, so it was not tried.
    Consented(Option<Duration>),
    /// Not obtained, for this reason.
    Failed(String),
}

/// Tries once. Sends nothing to the vendor's API, spends no stored refresh token and stores
/// nothing. `None`: the vendor has no `auth`.
pub async fn probe(vendor: &Vendor, store: &Arc<dyn Store>) -> Option<Probed> {
    let outcome = match vendor.auth.as_ref()? {
        // Loading the configuration has read the secrets already.
        Auth::Bearer { .. } | Auth::Basic { .. } | Auth::Headers(_) | Auth::Query(_) => {
            Ok(Probed::Static)
        }
        Auth::ClientCredentials(config) if config.share => {
            let server = ClientCredentials::shared(config, vendor).0;
            shared(&server, store, &vendor.name).await
        }
        Auth::ClientCredentials(config) => {
            let fetched = ClientCredentials::new(config, vendor).fetch().await;
            let lifetime = fetched.map(|issued| issued.lifetime);
            lifetime
                .map(|lifetime| Probed::Obtained(left(lifetime.map(|lifetime| lifetime.end))))
                .map_err(|cause: FetchError| cause.to_string())
        }
        Auth::Vedauth(config) if config.share && !config.refresh => {
            let server = Vedauth::shared(config, vendor).0;
            shared(&server, store, &vendor.name).await
        }
        // A grant of its own: the stored one stays as it is.
        Auth::Vedauth(config) => Vedauth::new(config, vendor)
            .0
            .ask()
            .await
            .map(|answer: Answer| Probed::Obtained(left(Some(answer.lifetime.end))))
            .map_err(|cause: TokenError| cause.to_string()),
        Auth::AuthorizationCode(config) => {
            let server = CodeServer::new(config, vendor).0;
            match (server.binding(), store.load(&vendor.name).await) {
                (Err(cause), _) => Err(cause),
                (_, Err(cause)) => Err(format!("store: {cause}")),
                (Ok(binding), Ok(grant)) => consented(&vendor.name, grant, &binding),
            }
        }
    };
    Some(outcome.unwrap_or_else(Probed::Failed))
}

/// Looks for the token that all replicas share, and asks for one, to be used for nothing, only where
/// none is in use.
async fn shared(
    server: &impl Issuer,
    store: &Arc<dyn Store>,
    vendor: &str,
) -> Result<Probed, String> {
    let binding = server.binding()?;
    let stored = store.load(vendor).await;
    let stored = stored.map_err(|cause| format!("store: {cause}"))?;
    if let Some(left) = stored
        .filter(|grant| grant.binding == binding)
        .and_then(|grant| grant.access)
        .and_then(|access| access.left(SystemTime::now()))
    {
        return Ok(Probed::Shared(left));
    }
    let Some(asking) = server.grant() else {
        return Err("no token can be asked for".to_owned());
    };
    let answer = asking.await.map_err(|cause| cause.to_string())?;
    Ok(Probed::Obtained(left(Some(answer.lifetime.end))))
}

fn consented(vendor: &str, grant: Option<Grant>, binding: &str) -> Result<Probed, String> {
    let hint = format!("run `countersign authorize {vendor}`");
    let Some(grant) = grant else {
        return Err(format!("no consent is stored; {hint}"));
    };
    if grant.binding != binding {
        return Err(format!(
            "the stored consent is another client_id's, or another server's; {hint}"
        ));
    }
    let now = SystemTime::now();
    let access = grant.access.and_then(|access| access.left(now));
    let over = grant.refresh_until.is_some_and(|until| until <= now);
    if access.is_none() && (over || grant.refresh_token.is_none()) {
        return Err(format!("the stored consent has ended; {hint}"));
    }
    Ok(Probed::Consented(access))
}

fn left(end: Option<Instant>) -> Duration {
    end.unwrap_or_else(Instant::now)
        .saturating_duration_since(Instant::now())
}
