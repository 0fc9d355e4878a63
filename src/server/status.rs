//! The model of a vendor for operators, rendered by `/status`, the page and `/metrics`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::credential::{Credential, State as CredentialState, Status};
use crate::jwks::Keys;
use crate::request::auth_outcomes::Responses;
use crate::request::limit::RetryAfterHold;
use crate::request::vendor::Vendor;
use crate::upstream::Upstream;
use crate::upstream::breaker::BreakerStatus;

/// A configuration as the admin listener shows it.
#[derive(Debug)]
pub(super) struct AdminView {
    /// All vendors, in the configuration's order.
    pub vendors: Vec<Arc<VendorView>>,
    /// The keys that verify callers' tokens.
    pub issuers: Vec<Arc<Keys>>,
    /// SHA-256 of the configuration file, hex.
    pub sha256: String,
    /// The time when it came into use.
    pub loaded: SystemTime,
}

/// One vendor as the admin listener sees it.
#[derive(Debug)]
pub(super) struct VendorView {
    /// The vendor as the request path sees it.
    pub vendor: Arc<Vendor>,
    /// Its configured `hosts`.
    pub hosts: Vec<String>,
    /// The kind of its credential, or `none`.
    pub auth: &'static str,
    /// Its credential.
    pub credential: Option<Arc<Credential>>,
    /// Its servers.
    pub upstream: Arc<Upstream>,
}

/// The state word of vendors without a credential.
const NONE: &str = "none";

/// The state word of vendors that do not accept their credential.
pub(super) const REJECTED: &str = "rejected";

/// Returns every state word.
pub(super) fn states() -> Vec<&'static str> {
    let known = CredentialState::ALL.iter().map(|state| state.word());
    known.chain([NONE, REJECTED]).collect()
}

/// A vendor's credential, and how the vendor responds to it.
pub(super) struct CredentialView {
    /// The state word of `/status`, the page and the metrics.
    pub(super) word: &'static str,
    /// Status of the credential; `None`: no credential is injected.
    pub(super) status: Option<Status>,
    /// `true` when requests are sent; `false` when they are refused for lack of a credential.
    pub(super) usable: bool,
    /// Counts of the vendor's responses in the last ten minutes.
    pub(super) responses: Responses,
    /// The reason why requests get no connection to the vendor.
    pub(super) unreached: Option<Arc<String>>,
}

impl CredentialView {
    pub(super) fn of(view: &VendorView) -> Self {
        let credential = view.credential.as_ref();
        let status = credential.map(|credential| credential.status());
        let usable = credential.is_none_or(|credential| credential.current().is_ok());
        let responses = view.vendor.auth_outcomes.recent(Instant::now());
        Self {
            word: state_word(
                status.as_ref().map(|status| status.state),
                usable,
                responses,
            ),
            status,
            usable,
            responses,
            unreached: view.upstream.trouble(),
        }
    }

    /// Returns the last error: first what callers get.
    fn last_error(&self) -> Option<String> {
        let of_credential = self.error_of_credential();
        let Some(why) = &self.unreached else {
            return of_credential;
        };
        Some(match of_credential {
            Some(error) => format!("no connection to the vendor: {why}; {error}"),
            None => format!("no connection to the vendor: {why}"),
        })
    }

    /// Returns the error of the credential. The vendor's own 401 comes first, because callers get
    /// it.
    fn error_of_credential(&self) -> Option<String> {
        let of_renewal = self.status.as_ref().and_then(|it| it.last_error.clone());
        if self.word != REJECTED {
            return of_renewal;
        }
        let Responses { all, unauthorized } = self.responses;
        let rejected = format!(
            "the vendor itself answered 401 to {unauthorized} of the last {all} requests within \
             10 minutes: it does not accept this credential"
        );
        Some(match of_renewal {
            Some(error) => format!("{rejected}; the last renewal: {error}"),
            None => rejected,
        })
    }
}

/// Returns the state word. `rejected` replaces states in which a credential is present. It does not
/// replace those in which requests are not sent or in which someone must act.
pub(super) fn state_word(
    state: Option<CredentialState>,
    usable: bool,
    responses: Responses,
) -> &'static str {
    use CredentialState::{Expired, Failed, Fresh, Pending, Reauthorize, Refreshing, Static};

    let word = state.map_or(NONE, CredentialState::word);
    match state {
        None | Some(Static | Fresh | Refreshing | Failed) if usable && responses.rejected() => {
            REJECTED
        }
        None | Some(Static | Fresh | Refreshing | Failed | Pending | Expired | Reauthorize) => word,
    }
}

pub(super) fn as_json(view: &VendorView) -> Value {
    let credential = CredentialView::of(view);
    let at = |pick: fn(&Status) -> Option<SystemTime>| {
        credential.status.as_ref().and_then(pick).map(rfc3339)
    };
    let upstream = &view.vendor.upstream;
    let circuit = CircuitView::of(&view.vendor);
    let in_a = |left: Option<Duration>| left.map(|left| rfc3339(SystemTime::now() + left));
    json!({
        "name": &*view.vendor.name,
        "prefix": if view.vendor.prefix.is_empty() { "/" } else { &view.vendor.prefix },
        "hosts": view.hosts,
        "upstream": format!("{}{}", upstream.origin(), upstream.base),
        "auth": view.auth,
        "state": credential.word,
        "expires_at": at(|status| status.expires_at),
        "refresh_at": at(|status| status.refresh_at),
        "last_refresh": at(|status| status.last_refresh),
        "last_error": credential.last_error(),
        "requests": view.vendor.metrics.request_count(),
        "in_flight": view.vendor.in_flight.load(Ordering::Relaxed),
        "breaker": circuit.word,
        "breaker_reason": circuit.reason,
        "breaker_until": in_a(circuit.left),
        "held_back_until": in_a(circuit.held_back),
    })
}

/// State of a vendor's breaker and of its Retry-After hold: requests are sent, or refused here to
/// spare the vendor.
pub(super) struct CircuitView {
    pub(super) word: &'static str,
    reason: Option<String>,
    left: Option<Duration>,
    /// Remaining time of the hold that the vendor requested with Retry-After.
    held_back: Option<Duration>,
}

impl CircuitView {
    pub(super) fn of(vendor: &Vendor) -> Self {
        let BreakerStatus { word, reason, left } = vendor.breaker.status();
        let hold = vendor.hold.as_ref().and_then(RetryAfterHold::left);
        let held_back = hold.map(|(left, _)| left);
        match hold {
            // Callers get the same reason.
            Some((left, true)) if reason.is_none() => Self {
                word: "open",
                reason: Some("it answered 503 with Retry-After".to_owned()),
                left: Some(left),
                held_back,
            },
            Some(_) | None => Self {
                word,
                reason,
                left,
                held_back,
            },
        }
    }
}

/// Returns the breaker's state word and the reason why it is not closed.
pub(super) fn breaker(view: &VendorView) -> (&'static str, Option<String>) {
    let circuit = CircuitView::of(&view.vendor);
    (circuit.word, circuit.reason)
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
