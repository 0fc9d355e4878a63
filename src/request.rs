//! THE REQUEST PATH, in the order of its phases. It never fetches a credential and takes no lock.
//!
//! ```text
//! exchange::serve           one request, from its head to its log line
//!   admit                   head → caller → vendor → allowed? → permits → Credential::current()
//!   attempts                a kept connection or a new one, the next address at each attempt
//!     Attempt::run          both bodies at once, under Deadlines
//!       request_head        strip → place
//!       response_head       401? reject, await newer, replay once · strip · rewrite references
//!       mask                mask our own credential, or cut the response off
//!   local_reply             what is answered here
//!   report                  one log line, one metrics update
//! ```
//!
//! This file has what requests share, `exchange.rs` and `phase/*` handle the two sides of a request.
//! Decisions are plain functions in the other files of `request/`.

pub mod auth_outcomes;
pub mod caller;
mod context;
mod deadlines;
pub mod decide;
pub(crate) mod exchange;
mod failure;
pub mod headers;
mod kept_body;
pub mod limit;
pub mod login;
pub mod path;
mod phase;
pub mod placement;
pub mod redact;
pub mod references;
pub mod retry;
pub mod vendor;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use arc_swap::ArcSwap;

use self::caller::Callers;
use self::headers::StrippedHeaders;
use self::vendor::{Routes, Vendor};
use crate::logs::AccessLog;
use crate::metrics::VendorMetrics;
use crate::traces::Traces;
use crate::upstream::Upstream;

/// The parts of one configuration that requests need. A request keeps the one it began with.
#[derive(Debug)]
pub struct Snapshot {
    /// The known callers.
    pub callers: Callers,
    /// The routes, by host and prefix.
    pub routes: Routes<Route>,
    /// The headers that never pass to a vendor.
    pub stripped: StrippedHeaders,
    /// The metrics of requests that reach no vendor.
    pub unrouted: VendorMetrics,
    /// `true` if each request gets a line in the access log.
    pub access_log: bool,
}

/// A vendor, and the way to its servers.
#[derive(Debug)]
pub struct Route {
    /// The vendor as the request path decides about it.
    pub vendor: Arc<Vendor>,
    /// The vendor's servers.
    pub upstream: Arc<Upstream>,
}

impl AsRef<Vendor> for Route {
    fn as_ref(&self) -> &Vendor {
        &self.vendor
    }
}

/// The proxy: what all requests share.
#[derive(Debug)]
pub struct Proxy {
    /// The configuration in use.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The number of requests in flight, those without a vendor included.
    pub serving: Arc<AtomicUsize>,
    /// Set while a stop is under way: connections are not kept alive then.
    pub draining: Arc<AtomicBool>,
    /// The access log, written where the configuration wants it.
    pub access_log: AccessLog,
    /// The tracer; `None`: no spans.
    pub traces: Option<Traces>,
}
