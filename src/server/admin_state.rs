//! The state of the process that the admin listener and the page show.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use super::runtime::Runtime;
use crate::config::ReadyWhen;

/// What the admin listener shows and moves.
pub(super) struct AdminState {
    /// What runs now.
    pub(super) runtime: Arc<Runtime>,
    /// A stop is under way.
    pub(super) draining: Arc<AtomicBool>,
    /// When we count as ready.
    pub(super) ready_when: ReadyWhen,
    /// SHA-256 of the key for POSTs from elsewhere than loopback.
    pub(super) key: Option<[u8; 32]>,
    /// When the process started.
    pub(super) started: SystemTime,
}

/// After this long a process is as settled as it gets.
const SETTLED_AFTER: Duration = Duration::from_secs(30);

impl AdminState {
    /// The vendors that keep us from being ready.
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
        // Callers with a token are refused until its issuer's keys are there.
        if view.issuers.iter().any(|keys| !keys.settled()) {
            waiting.push("the keys of callers' token issuers".to_owned());
        }
        // And so are tokens that another replica has given them.
        if !self.runtime.ended_logins_known() {
            waiting.push("the logins that the store says were ended".to_owned());
        }
        waiting
    }
}
