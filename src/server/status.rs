//! What operators see of a vendor: the model that `/status`, the page and `/metrics` render.

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

/// What the admin listener shows of a configuration.
#[derive(Debug)]
pub(super) struct AdminView {
    /// Every vendor, in the file's order.
    pub vendors: Vec<Arc<VendorView>>,
    /// The keys that verify callers' tokens.
    pub issuers: Vec<Arc<Keys>>,
    /// SHA-256 of the file's bytes, hex.
    pub sha256: String,
    /// When it came into use.
    pub loaded: SystemTime,
}

/// One vendor as the admin listener sees it.
#[derive(Debug)]
pub(super) struct VendorView {
    /// As the request path has it.
    pub vendor: Arc<Vendor>,
    /// Its `hosts:`.
    pub hosts: Vec<String>,
    /// The kind of its credential, or `none`.
    pub auth: &'static str,
    /// Its credential.
    pub credential: Option<Arc<Credential>>,
    /// The way to its servers.
    pub upstream: Arc<Upstream>,
}

/// The state word of vendors without a credential.
const NONE: &str = "none";

/// The state word of vendors that do not accept their credential.
pub(super) const REJECTED: &str = "rejected";

/// Every state word.
pub(super) fn states() -> Vec<&'static str> {
    let known = CredentialState::ALL.iter().map(|state| state.word());
    known.chain([NONE, REJECTED]).collect()
}

/// One vendor's credential, and how the vendor receives it.
pub(super) struct CredentialView {
    /// The state word of `/status`, the page and the metrics.
    pub(super) word: &'static str,
    /// `None`: nothing is injected.
    pub(super) status: Option<Status>,
    /// Requests are sent, not answered here for want of a credential.
    pub(super) usable: bool,
    /// The vendor's responses of the last ten minutes.
    pub(super) responses: Responses,
    /// Why requests have no connection to it.
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

    /// What went wrong last: what callers get first.
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

    /// The vendor's own 401 first, because callers get them.
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

/// The state word. That a vendor rejects what requests carry says more than that it is there;
/// where requests carry nothing, or only a person can help, that is said.
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

/// Whether requests go to a vendor, or are answered here to spare it.
pub(super) struct CircuitView {
    pub(super) word: &'static str,
    reason: Option<String>,
    left: Option<Duration>,
    /// What is left of the rest it asked for.
    held_back: Option<Duration>,
}

impl CircuitView {
    pub(super) fn of(vendor: &Vendor) -> Self {
        let BreakerStatus { word, reason, left } = vendor.breaker.status();
        let hold = vendor.hold.as_ref().and_then(RetryAfterHold::left);
        let held_back = hold.map(|(left, _)| left);
        match hold {
            // Callers see the same reason.
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

/// The breaker's word, and why it is not closed.
pub(super) fn breaker(view: &VendorView) -> (&'static str, Option<String>) {
    let circuit = CircuitView::of(&view.vendor);
    (circuit.word, circuit.reason)
}

pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
