//! The state of the process that the admin listener and the page show.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use super::runtime::Runtime;
use crate::config::ReadyWhen;

/// The state that the admin listener shows and changes.
pub(super) struct AdminState {
    /// The current runtime.
    pub(super) runtime: Arc<Runtime>,
    /// `true` once a stop has begun.
    pub(super) draining: Arc<AtomicBool>,
    /// The condition for readiness.
    pub(super) ready_when: ReadyWhen,
    /// SHA-256 of the key for POST requests that do not come from loopback.
    pub(super) key: Option<[u8; 32]>,
    /// The start time of the process.
    pub(super) started: SystemTime,
}

/// After this time a process counts as settled, whatever its vendors do.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

impl AdminState {
    /// Returns what the process still waits for before it is ready: vendors, issuers' keys, revoked
    /// logins.
    pub(super) fn waiting_for(&self) -> Vec<String> {
        let waited = self.started.elapsed().unwrap_or_default();
        if self.ready_when == ReadyWhen::Settled && waited >= SETTLED_AFTER {
            return Vec::new();
        }
        let view = self.runtime.view.load();
        let mut waiting: Vec<_> = view
            .vendors
            .iter()
            .filter(|vendor| {
                vendor.credential.as_ref().is_some_and(|credential| {
                    let status = credential.status();
                    match self.ready_when {
                        ReadyWhen::Settled => !status.settled,
                        ReadyWhen::All | ReadyWhen::Any => !status.ever_usable,
                    }
                })
            })
            .map(|vendor| vendor.vendor.name.to_string())
            .collect();
        if self.ready_when == ReadyWhen::Any && waiting.len() < view.vendors.len() {
            return Vec::new();
        }
        // Without its issuer's keys, callers with a token are refused.
        if view.issuers.iter().any(|keys| !keys.settled()) {
            waiting.push("the keys of callers' token issuers".to_owned());
        }
        // Until revoked logins are known, tokens that another replica has issued are refused, too.
        if !self.runtime.ended_logins_known() {
            waiting.push("the logins that the store says were ended".to_owned());
        }
        waiting
    }
}
