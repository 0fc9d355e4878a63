//! What is known of one request, from its head to its log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::caller::Caller;
use super::{Proxy, Route, Snapshot};
use crate::downstream::raw_head;
use crate::downstream::request::{Peer, Request};
use crate::error::Error;
use crate::traces::RequestSpan;
use crate::upstream::connect_errors::ConnectErrors;

/// One request. What is `None` does not exist: the request names no vendor, say, or its caller is
/// unknown.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) proxy: &'a Proxy,
    pub(super) request: Request,
    pub(super) peer: &'a Peer,
    pub(super) started: Instant,
    pub(super) request_id: HeaderValue,
    pub(super) span: Option<Box<RequestSpan>>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) route: Option<Arc<Route>>,
    /// Matched by path prefix rather than by host.
    pub(super) by_prefix: bool,
    pub(super) caller: Option<Arc<Caller>>,
    /// The rule that decided: a permission, or the rule that refused the path.
    pub(super) rule: Option<Arc<str>>,
    /// The reason for a local reply, or for breaking off a response.
    pub(super) refusal: Option<Error>,
    /// A local reply went to a gRPC call, whose status on the wire is always 200.
    pub(super) refused_as_grpc: bool,
    /// The number of attempts to reach the vendor.
    pub(super) attempts: u32,
    /// The credential that the last attempt carried.
    pub(super) generation: Option<u64>,
    /// The errors of attempts to connect, since the last connection.
    pub(super) connect_errors: ConnectErrors,
    pub(super) upstream_took: Option<Duration>,
    /// The last attempt used a kept connection.
    pub(super) reused: bool,
    _serving: Serving<'a>,
}

/// One of the requests in flight.
#[derive(Debug)]
struct Serving<'a>(&'a AtomicUsize);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<'a> Context<'a> {
    /// Begins a request whose head has been read.
    pub(super) fn begin(proxy: &'a Proxy, request: Request, peer: &'a Peer) -> Self {
        proxy.serving.fetch_add(1, Ordering::AcqRel);
        let head = &request.head;
        let traces = proxy.traces.as_ref();
        Self {
            proxy,
            peer,
            started: Instant::now(),
            request_id: raw_head::request_id(&head.headers),
            span: traces.map(|traces| traces.start_span(head.method.as_str(), &head.headers)),
            snapshot: proxy.snapshot.load_full(),
            route: None,
            by_prefix: false,
            caller: None,
            rule: None,
            refusal: None,
            refused_as_grpc: false,
            attempts: 0,
            generation: None,
            connect_errors: ConnectErrors::default(),
            upstream_took: None,
            reused: false,
            _serving: Serving(&proxy.serving),
            request,
        }
    }

    /// Returns the request's id for a log.
    pub(super) fn id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }
}
