//! THE REQUEST PATH, in the order of its phases. It never fetches a credential and takes no lock.
//!
//! ```text
//! early_request_filter    timeouts of the caller's connection
//! request_filter          head → caller → vendor → allowed? → Credential.current()
//! upstream_peer           a finished template, the next address at each attempt
//! upstream_request_filter strip → place
//! upstream_response_filter 401? reject, await newer, replay once · strip · rewrite references
//! upstream_response_body_filter  mask our own credential, or cut the response off
//! fail_to_proxy           write a local reply
//! logging                 one log line, one metrics update
//! ```
//!
//! This file and `phase/*` handle pingora's session. Decisions are plain functions in the other
//! files of `request/`.

pub mod auth_outcomes;
pub mod caller;
pub mod decide;
pub mod headers;
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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{HeaderMap, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error as PingoraError, ErrorType, HttpPeer};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use tokio::time::Instant;

use self::caller::{Caller, Callers};
use self::headers::StrippedHeaders;
use self::phase::Admitted;
use self::phase::admit::admit;
use self::phase::bodyless::announce_empty_body;
use self::phase::echo::{mask_head, needles};
use self::phase::local_reply::{classify, local_reply, logged_in};
use self::phase::report::{log_failure, log_request};
use self::phase::retry::{has_response_head, renew_after_401, should_retry, should_retry_connect};
use self::phase::rewrite::rewrite_references;
use self::redact::{EchoBlocked, Redactor};
use self::vendor::{InFlight, Routes, Vendor};
use crate::credential::Held;
use crate::downstream::body_rate::BodyRate;
use crate::downstream::raw_head;
use crate::downstream::stream::DownstreamStream;
use crate::error::{Error, Fault, problem};
use crate::logs::AccessLog;
use crate::metrics::VendorMetrics;
use crate::traces::{RequestSpan, Traces};
use crate::upstream::Upstream;
use crate::upstream::addresses::{Picked, TriedAddresses};
use crate::upstream::breaker::Permit;
use crate::upstream::connect_errors::ConnectErrors;
use crate::upstream::http2::{AttemptOptions, Kind};

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

/// The proxy, as pingora drives it.
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

/// The state of one request.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Context {
    started: Instant,
    request_id: HeaderValue,
    span: Option<Box<RequestSpan>>,
    snapshot: Arc<Snapshot>,
    route: Option<Arc<Route>>,
    /// Matched by path prefix rather than by host.
    by_prefix: bool,
    caller: Option<Arc<Caller>>,
    /// The rule that decided: a permission, or the rule that refused the path.
    rule: Option<Arc<str>>,
    /// The target to send upstream, with the query unless the credential changes it.
    target: String,
    held: Option<Arc<Held>>,
    /// Masks our credential in the response's body.
    redactor: Option<Redactor>,
    /// The reason for a local reply.
    refusal: Option<Error>,
    /// A local reply went to a gRPC call, whose status on the wire is always 200.
    refused_as_grpc: bool,
    attempts: u32,
    /// This attempt's error is the 401 that is to be replayed.
    replaying: bool,
    replayed: bool,
    /// The credential that the vendor answered with 401; the replay carries a newer one.
    rejected: Option<Arc<Held>>,
    /// This attempt's request head is written, as far as we can know.
    head_sent: bool,
    /// Breaker permit, held until the outcome is known.
    permit: Option<Permit>,
    kind: Kind,
    /// The address of this attempt.
    picked: Option<Picked>,
    /// Addresses that could not be reached, or whose connection broke.
    tried: TriedAddresses,
    /// The errors of attempts to connect.
    connect_errors: ConnectErrors,
    /// The number of HTTP/2 connections that refused the request.
    refusals: u32,
    /// The caller's connection is to serve further requests.
    keep_alive: bool,
    /// The caller waits for a 100 before it sends the body.
    expects_continue: bool,
    content_length: Option<u64>,
    body_in: u64,
    upstream_since: Option<Instant>,
    upstream_took: Option<Duration>,
    reused: bool,
    /// End of `timeouts.total`.
    deadline: Option<Instant>,
    /// End of `timeouts.first_byte`, once the request is sent, unless pingora's read timeout is
    /// what limits it.
    response_by: Option<Instant>,
    /// The caller's stream measures how long the vendor is silent.
    silence_measured: bool,
    /// The rate at which a body over HTTP/2 must come, and when its last bytes came. One connection
    /// carries many bodies there; for HTTP/1, the stream measures it.
    body_rate: Option<(BodyRate, Option<Instant>)>,
    in_flight: Option<InFlight>,
    _serving: Serving,
}

#[derive(Debug)]
struct Serving(Arc<AtomicUsize>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Longest pause of a caller within a body, and while it reads a response.
const CALLER_IDLE: Duration = Duration::from_mins(1);
/// Time for which an unwanted rest of a body is read, so that a reset does not cost the caller the
/// response.
const DRAIN: Duration = Duration::from_secs(2);
/// Largest body that can be replayed, bytes: what pingora buffers.
const REPLAYABLE: u64 = 64 * 1024;

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Self::CTX {
        self.serving.fetch_add(1, Ordering::AcqRel);
        Box::new(Context {
            started: Instant::now(),
            request_id: HeaderValue::from_static(""),
            span: None,
            snapshot: self.snapshot.load_full(),
            route: None,
            by_prefix: false,
            caller: None,
            rule: None,
            target: String::new(),
            held: None,
            redactor: None,
            refusal: None,
            refused_as_grpc: false,
            attempts: 0,
            replaying: false,
            replayed: false,
            rejected: None,
            head_sent: false,
            permit: None,
            kind: Kind::Ordinary,
            picked: None,
            tried: TriedAddresses::default(),
            connect_errors: ConnectErrors::default(),
            refusals: 0,
            keep_alive: false,
            expects_continue: false,
            content_length: None,
            body_in: 0,
            upstream_since: None,
            upstream_took: None,
            reused: false,
            deadline: None,
            response_by: None,
            silence_measured: false,
            body_rate: None,
            in_flight: None,
            _serving: Serving(self.serving.clone()),
        })
    }

    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        // `None` is the caller's own wish, or HTTP/1.0's default. The stream limits the time;
        // whatever the caller asked for has no say in it.
        if self.draining.load(Ordering::Acquire) {
            session.set_keepalive(None);
        } else if session.get_keepalive().is_some() {
            session.set_keepalive(Some(0));
            ctx.keep_alive = true;
        }
        session.set_read_timeout(Some(CALLER_IDLE));
        session.set_write_timeout(Some(CALLER_IDLE));
        session
            .as_downstream_mut()
            .set_total_drain_timeout(Some(DRAIN));
        let head = session.req_header();
        ctx.request_id = raw_head::request_id(&head.headers);
        if let Some(traces) = &self.traces {
            ctx.span = Some(traces.start_span(head.method.as_str(), &head.headers));
        }
        if let Some(stream) = watched_stream(session) {
            stream.head_is_complete();
            stream.set_body_timeout(CALLER_IDLE);
            stream.set_write_timeout(CALLER_IDLE);
        }
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<bool> {
        match admit(session, ctx).await {
            Ok(Admitted::Forward) => Ok(false),
            Ok(Admitted::LoggedIn(status, body)) => {
                logged_in(session, ctx, status, body).await?;
                Ok(true)
            }
            Err(refusal) => {
                local_reply(session, ctx, refusal).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<Box<HttpPeer>> {
        let Some(route) = ctx.route.clone() else {
            return Err(refuse(ctx, Error::Internal));
        };
        ctx.attempts += 1;
        ctx.replaying = false;
        // A replay sends the buffered body through the filters again.
        ctx.body_in = 0;
        ctx.head_sent = false;
        in_time(ctx)?;
        ctx.upstream_since = Some(Instant::now());
        let wait = route.vendor.timeouts.connect;
        let Some((mut peer, picked)) = route.upstream.peer(ctx.tried, wait).await else {
            ctx.connect_errors
                .add_name(&route.upstream.unresolved(wait));
            return Err(refuse(ctx, Error::UpstreamUnreachable));
        };
        ctx.picked = Some(picked);
        let timeouts = &route.vendor.timeouts;
        let has_stream = watched_stream(session).is_some();
        ctx.silence_measured = has_stream && ctx.kind == Kind::Ordinary;
        let options = AttemptOptions {
            kind: ctx.kind,
            fresh: ctx.refusals > 0,
            upload: (!session.as_downstream_mut().is_body_done())
                .then_some(ctx.content_length.unwrap_or(0)),
            left: ctx.deadline.filter(|_| !has_stream).map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                left.max(Duration::from_millis(1))
            }),
            silence_measured: ctx.silence_measured,
            http1: session.req_header().version < Version::HTTP_11,
        };
        options.apply_to(&mut peer, timeouts);
        if let Some(deadline) = ctx.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let options = &mut peer.options;
            options.connection_timeout = options
                .connection_timeout
                .map_or(Some(left), |limit| Some(limit.min(left)));
            options.total_connection_timeout = options.connection_timeout;
        }
        Ok(peer)
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        ctx.reused = reused;
        ctx.connect_errors.clear();
        if let Some(route) = &ctx.route {
            let metrics = &route.vendor.metrics;
            if reused {
                metrics.reused.inc();
            } else {
                metrics.connected.inc();
                route.upstream.note_connected();
                if ctx.picked.as_ref().is_some_and(Picked::mark_reachable) {
                    tracing::info!(
                        vendor = %route.vendor.name,
                        "an address of the upstream can be reached again"
                    );
                }
            }
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        let Some(route) = ctx.route.clone() else {
            return Err(refuse(ctx, Error::Internal));
        };
        let vendor = &route.vendor;
        let h2 = session.as_downstream().is_http2();
        let to_h2 = request.version == Version::HTTP_2;
        for name in ctx
            .snapshot
            .stripped
            .in_request(&request.headers, vendor.cookies_pass, h2)
        {
            request.remove_header(&name);
        }
        if !vendor.header_names.is_empty() {
            let stripped = &ctx.snapshot.stripped;
            for name in stripped.lookalikes_in_request(&request.headers, vendor.cookies_pass) {
                request.remove_header(&name);
            }
        }
        if h2 && !to_h2 && vendor.cookies_pass {
            // HTTP/2 may send a cookie in pieces; older servers read only the first.
            if let Some(joined) = headers::joined_cookies(&request.headers) {
                request.insert_header(COOKIE, joined)?;
            }
        }
        if to_h2 && request.remove_header(&EXPECT).is_some() {
            // The vendor's own 100 would be lost: h2 does not show it to pingora.
            let caller = session.as_downstream_mut();
            if std::mem::take(&mut ctx.expects_continue) && !caller.is_body_done() {
                caller.write_continue_response().await?;
            }
        }
        request.set_raw_path(ctx.target.as_bytes())?;
        request.insert_header(HOST, vendor.host.clone())?;
        if let Some(span) = &ctx.span {
            request.insert_header("traceparent", span.traceparent.clone())?;
            if span.begins_trace {
                request.remove_header("tracestate");
            }
        }
        if let (Some((placement, _)), Some(held)) = (&vendor.credential, &ctx.held) {
            placement.apply(held, request)?;
        }
        if !to_h2 {
            announce_empty_body(session, request).await?;
        }
        if session.as_downstream_mut().is_body_done() {
            request_is_sent(session, ctx);
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        // pingora has written the head before the first byte of a body, and before the end of an
        // empty one.
        ctx.head_sent = true;
        if end {
            request_is_sent(session, ctx);
            // HTTP/2 clients often end a body with a frame of its own. pingora would write that to
            // an HTTP/1.1 upstream as an empty chunk, which is an end already, and then write the
            // end again: the next response on that connection would be read from the wrong place.
            if body.as_ref().is_some_and(Bytes::is_empty) {
                *body = None;
            }
        }
        let Some(body) = body else { return Ok(()) };
        if session.as_downstream().was_upgraded() {
            return in_time(ctx);
        }
        ctx.body_in += body.len() as u64;
        if let Some((body_rate, last)) = &mut ctx.body_rate {
            let waited = last.replace(Instant::now()).map(|at| at.elapsed());
            if !body_rate.heard(waited.unwrap_or_default(), body.len()) {
                return Err(refuse(ctx, Error::BodyTimeout));
            }
        }
        let limit = ctx
            .route
            .as_ref()
            .map_or(0, |route| route.vendor.limits.body);
        if limit > 0 && ctx.body_in > limit {
            return Err(refuse(ctx, Error::BodyTooLarge));
        }
        in_time(ctx)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        let Some(route) = ctx.route.clone() else {
            return Ok(());
        };
        let vendor = &route.vendor;
        let upgraded = response.status == 101;
        if upgraded && !session.as_downstream().is_upgrade_req() {
            // No upgrade was requested. pingora refuses only where the two sides disagree.
            return Err(refuse(ctx, Error::UpstreamUnreachable));
        }
        if response.version != Version::HTTP_2 && !headers::is_framed_plainly(&response.headers) {
            tracing::warn!(
                vendor = %vendor.name,
                request_id = ctx.request_id.to_str().unwrap_or_default(),
                "the vendor's response has two lengths, or a transfer coding that was not requested"
            );
            return Err(refuse(ctx, Error::UpstreamUnreachable));
        }
        let needles = needles(ctx, vendor);
        if let Some(needles) = &needles {
            mask_head(needles, response, vendor)?;
        }
        if let Some(said) = response.headers.get(KEEP_ALIVE) {
            route.upstream.note_keep_alive(said);
        }
        for name in
            headers::stripped_from_response(&response.headers, vendor.cookies_pass, upgraded)
        {
            response.remove_header(&name);
        }
        rewrite_references(response, vendor, ctx.by_prefix)?;
        if response.status.is_informational() && !upgraded {
            // 1xx responses may come without end.
            in_time(ctx)?;
            if session.as_downstream_mut().is_body_done() {
                await_response(session, ctx);
            }
            return Ok(());
        }
        if let Some(hold) = &vendor.hold {
            hold.note(response.status.as_u16(), &response.headers);
        }
        if let Some(permit) = ctx.permit.take() {
            match response.status.as_u16() {
                status @ (502..=504) => permit.failed(Fault::Status(status)),
                _ => permit.succeeded(),
            }
        }
        if response.status == 401 {
            if renew_after_401(session, ctx, vendor).await {
                vendor.metrics.replayed.inc();
                let mut again =
                    PingoraError::explain(ErrorType::HTTPStatus(401), "credential refused");
                again.set_retry(true);
                return Err(again.into_up());
            }
            vendor.metrics.passed.inc();
        } else if let (Some(before), Some((_, credential))) =
            (ctx.rejected.take(), &vendor.credential)
            && response.status.as_u16() < 500
            && credential.record_eviction(&before)
        {
            vendor.metrics.lost.inc();
        }
        // After a 101 the bytes belong to another protocol.
        ctx.redactor = needles
            .filter(|_| !upgraded)
            .map(|needles| Redactor::new(needles, &response.headers));
        // A 1xx before the end of the body made pingora close the connection. It can be reused once
        // the body has come.
        if ctx.keep_alive
            && session.get_keepalive().is_none()
            && !self.draining.load(Ordering::Acquire)
        {
            session.set_keepalive(Some(0));
        }
        let now = Instant::now();
        // From here on, silence is limited.
        ctx.response_by = None;
        if let Some(stream) = watched_stream(session) {
            stream.set_response_deadline(ctx.deadline);
            if ctx.silence_measured {
                stream.set_response_idle(vendor.timeouts.idle, now);
            }
            // A caller that is being answered may send at its own pace: this is a stream.
            stream.set_body_timeout(Duration::ZERO);
        }
        ctx.body_rate = None;
        // Over HTTP/2 a vendor may respond without having read the body, and refuse the rest.
        // pingora then closes the caller's connection after the response, so the response must say
        // so.
        if response.version == Version::HTTP_2
            && ctx.body_in > 0
            && watched_stream(session).is_some_and(|stream| !stream.is_listened_to())
        {
            session.set_keepalive(None);
        }
        if let Some(since) = ctx.upstream_since {
            let took = now - since;
            ctx.upstream_took = Some(took);
            vendor.metrics.observe_upstream(took);
        }
        let fixed = ctx.held.as_ref().filter(|held| !held.renewable());
        let generation = fixed.map_or(0, |held| held.generation());
        vendor
            .auth_outcomes
            .count(now, response.status == StatusCode::UNAUTHORIZED, generation);
        response.append_header("Via", problem::VIA)?;
        response.insert_header("X-Request-Id", ctx.request_id.clone())
    }

    /// Runs after pingora has decided how the body is framed.
    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut Self::CTX,
    ) -> pingora::Result<()>
    where
        Self::CTX: Send + Sync,
    {
        // A message has its sender's version, and we are its sender (RFC 9110 §2.5).
        if response.version < Version::HTTP_11 {
            response.set_version(Version::HTTP_11);
        }
        if response.status == StatusCode::NO_CONTENT {
            // Neither header may be there (RFC 9110 §8.6, RFC 9112 §6.1).
            response.remove_header(&CONTENT_LENGTH);
            response.remove_header(&TRANSFER_ENCODING);
        }
        // An HTTP/1.0 caller does not know chunks: the end of the connection ends the body (RFC
        // 9112 §6.1, §6.3).
        if session.req_header().version < Version::HTTP_11
            && response.remove_header(&TRANSFER_ENCODING).is_some()
        {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<Option<Duration>> {
        if let (Some(redactor), Some(route)) = (&mut ctx.redactor, &ctx.route) {
            match redactor.pass(body, end) {
                Ok(0) => {}
                Ok(masked) => route.vendor.metrics.echoes.inc_by(masked),
                Err(why) => {
                    if why != EchoBlocked::TooMuch {
                        route.vendor.metrics.echoes.inc();
                    }
                    tracing::warn!(
                        vendor = %route.vendor.name,
                        request_id = ctx.request_id.to_str().unwrap_or_default(),
                        %why,
                        "the vendor's compressed response is broken off"
                    );
                    return Err(refuse(ctx, Error::CredentialEchoed));
                }
            }
        }
        let pause = ctx.redactor.as_ref().and_then(Redactor::pause);
        if let Some(stream) = watched_stream(session).filter(|_| ctx.silence_measured && !end) {
            stream.response_progressed();
        }
        in_time(ctx).map(|()| pause)
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<()> {
        let Some(route) = &ctx.route else {
            return Ok(());
        };
        if let Some(redactor) = &ctx.redactor {
            let masked = redactor.needles().mask_fields(trailers);
            route.vendor.metrics.echoes.inc_by(masked);
        }
        for name in headers::stripped_from_response(trailers, route.vendor.cookies_pass, false) {
            trailers.remove(name);
        }
        Ok(())
    }

    /// The last bytes of a body take the place of its trailers where only one of the two can be
    /// sent.
    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut HeaderMap,
        ctx: &mut Self::CTX,
    ) -> pingora::Result<Option<Bytes>> {
        Ok(ctx.redactor.as_mut().and_then(Redactor::finish))
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Self::CTX,
        mut error: Box<PingoraError>,
    ) -> Box<PingoraError> {
        let more = should_retry_connect(ctx, &error);
        error.set_retry(more);
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<PingoraError>,
        ctx: &mut Self::CTX,
        reused: bool,
    ) -> Box<PingoraError> {
        let again = should_retry(session, ctx, &error, reused);
        error.set_retry(again);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &PingoraError,
        ctx: &mut Self::CTX,
    ) -> FailToProxy {
        let overdue = watched_stream(session).is_some_and(DownstreamStream::response_was_late)
            || [ctx.deadline, ctx.response_by]
                .into_iter()
                .flatten()
                .any(|at| at <= Instant::now());
        let refusal = ctx.refusal.or_else(|| {
            if overdue {
                Some(Error::UpstreamTimeout)
            } else if watched_stream(session).is_some_and(DownstreamStream::caller_was_removed) {
                Some(Error::UnknownCaller)
            } else if session.as_downstream().was_upgraded()
                && matches!(error.etype(), ErrorType::ReadTimedout)
            {
                // Neither side has sent anything for `timeouts.idle`, whichever side pingora names.
                Some(Error::UpstreamTimeout)
            } else if watched_stream(session).is_some_and(DownstreamStream::has_invalid_chunks) {
                Some(Error::BadFraming("The body's chunks cannot be read."))
            } else if watched_stream(session).is_some_and(DownstreamStream::body_was_too_slow) {
                Some(Error::BodyTimeout)
            } else {
                classify(session, error)
            }
        });
        if let Some(permit) = ctx.permit.take() {
            // `timeouts.total` may also end a wait for a credential, or an upload that was slow on
            // the caller's side.
            let vendors_time = ctx.upstream_since.is_some()
                && (!overdue || session.as_downstream_mut().is_body_done());
            if refusal == Some(Error::UpstreamUnreachable) {
                permit.failed(Fault::Unreachable);
            } else if refusal == Some(Error::UpstreamTimeout) && vendors_time {
                permit.failed(Fault::TimedOut);
            }
        }
        log_failure(ctx, error, refusal);
        let begun = has_response_head(session);
        let mut code = 0;
        if let (Some(refusal), false) = (refusal, begun) {
            // pingora closes the connection after an error, even a reusable one. The caller must be
            // told, or its next request finds the connection closed.
            session.set_keepalive(None);
            code = refusal.verdict().status.as_u16();
            if let Err(cause) = local_reply(session, ctx, refusal).await {
                tracing::debug!(%cause, "the caller left before its response");
            }
        }
        FailToProxy {
            error_code: code,
            can_reuse_downstream: false,
        }
    }

    async fn logging(
        &self,
        session: &mut Session,
        _error: Option<&PingoraError>,
        ctx: &mut Self::CTX,
    ) {
        log_request(&self.access_log, session, ctx);
        ctx.in_flight = None;
        ctx.permit = None;
    }

    /// Our own log line says more, and never contains a query.
    fn suppress_error_log(&self, _: &Session, _: &Self::CTX, _: &PingoraError) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Self::CTX,
        _: &PingoraError,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    fn request_summary(&self, session: &Session, _: &Self::CTX) -> String {
        session.req_header().method.to_string()
    }
}

/// Notes that the request is sent, or about to be: the vendor's time begins.
fn request_is_sent(session: &Session, ctx: &mut Context) {
    if let Some(stream) = watched_stream(session) {
        stream.set_body_timeout(Duration::ZERO);
        // Bytes behind a request to upgrade may belong to the other protocol.
        if ctx.kind != Kind::Upgrade {
            stream.body_is_complete();
        }
    }
    await_response(session, ctx);
}

/// Starts the time until the response's first byte, unless pingora's own read timeout limits it.
fn await_response(session: &Session, ctx: &mut Context) {
    let Some(route) = &ctx.route else { return };
    let timeouts = &route.vendor.timeouts;
    let (first_byte, idle) = (timeouts.first_byte, ctx.kind.idle(timeouts));
    let comes_first = idle.is_zero() || first_byte < idle || ctx.silence_measured;
    let now = Instant::now();
    // A gRPC response head may come with the stream's first message, whenever that is.
    if !first_byte.is_zero() && comes_first && ctx.kind != Kind::Grpc {
        ctx.response_by = Some(now + first_byte);
    }
    if let Some(stream) = watched_stream(session) {
        let earliest = [ctx.deadline, ctx.response_by].into_iter().flatten().min();
        stream.set_response_deadline(earliest);
        // An earlier attempt's response may have begun.
        stream.set_response_idle(Duration::ZERO, now);
    }
}

/// Returns the stream of the caller's connection, on HTTP/1.
fn watched_stream(session: &Session) -> Option<&DownstreamStream> {
    session
        .as_downstream()
        .stream()
        .and_then(DownstreamStream::of)
}

/// Ends a request from within a hook.
#[expect(clippy::unnecessary_box_returns, reason = "pingora's errors are boxed")]
fn refuse(ctx: &mut Context, refusal: Error) -> Box<PingoraError> {
    ctx.refusal = Some(refusal);
    PingoraError::explain(
        ErrorType::HTTPStatus(refusal.verdict().status.as_u16()),
        refusal.verdict().reason,
    )
}

fn in_time(ctx: &mut Context) -> pingora::Result<()> {
    let leave = ctx.caller.as_ref().and_then(|caller| caller.leave().at());
    if leave.is_some_and(|at| Instant::now() > at) {
        return Err(refuse(ctx, Error::UnknownCaller));
    }
    match ctx.deadline {
        Some(deadline) if Instant::now() > deadline => Err(refuse(ctx, Error::UpstreamTimeout)),
        Some(_) | None => Ok(()),
    }
}
