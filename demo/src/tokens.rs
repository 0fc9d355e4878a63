//! The access tokens that a mock vendor has issued, and their lifetimes.
//!
//! A token server and the API server that accepts its tokens share one [`Tokens`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

/// The tokens of one vendor.
pub(crate) struct Tokens {
    lifetime: Mutex<Duration>,
    grant_lifetime: Mutex<Duration>,
    omit_expires_in: AtomicBool,
    live: Mutex<HashMap<String, Instant>>,
}

impl Tokens {
    /// Returns an empty set. `lifetime` is that of the vendor's real tokens.
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime: Mutex::new(lifetime),
            grant_lifetime: Mutex::new(Duration::from_hours(24 * 365)),
            omit_expires_in: AtomicBool::new(false),
            live: Mutex::default(),
        }
    }

    /// Makes `token` valid from now on and returns its lifetime in seconds.
    pub(crate) fn issue(&self, token: &str) -> u64 {
        let lifetime = *self.lifetime.lock();
        let expires_at = Instant::now() + lifetime;
        self.live.lock().insert(token.to_owned(), expires_at);
        lifetime.as_secs()
    }

    /// Tells whether `token` was issued, has not expired and was not revoked.
    pub(crate) fn accepts(&self, token: &str) -> bool {
        self.live
            .lock()
            .get(token)
            .is_some_and(|expires_at| Instant::now() < *expires_at)
    }

    /// Revokes one token.
    pub(crate) fn revoke(&self, token: &str) {
        self.live.lock().remove(token);
    }

    /// Revokes all of them.
    pub(crate) fn revoke_access_tokens(&self) {
        self.live.lock().clear();
    }

    /// Returns the lifetime of grants.
    pub(crate) fn grant_lifetime(&self) -> Duration {
        *self.grant_lifetime.lock()
    }

    /// Removes `expires_in` from a token response if [`Tokens::omit_expires_in`] was called.
    pub(crate) fn finish(&self, mut response: Value) -> Value {
        if self.omit_expires_in.load(Ordering::Relaxed)
            && let Some(members) = response.as_object_mut()
        {
            members.remove("expires_in");
        }
        response
    }

    pub(crate) fn set_lifetime(&self, lifetime: Duration) {
        *self.lifetime.lock() = lifetime;
    }

    pub(crate) fn set_grant_lifetime(&self, lifetime: Duration) {
        *self.grant_lifetime.lock() = lifetime;
    }

    pub(crate) fn omit_expires_in(&self) {
        self.omit_expires_in.store(true, Ordering::Relaxed);
    }
}

/// Returns 16 random bytes as 32 hex digits.
pub(crate) fn random_hex() -> String {
    hex::encode(random())
}

/// Returns 16 random bytes as base64: 24 characters, the last two `==`.
pub(crate) fn random_base64() -> String {
    STANDARD.encode(random())
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}
