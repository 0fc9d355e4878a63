//! The report of a request: to the access log, the metrics and the trace.

use pingora::prelude::{Error as PingoraError, ErrorType};
use pingora::proxy::Session;

use crate::error::Error;
use crate::logs::{AccessLog, Line};
use crate::metrics::NO_CALLER;
use crate::request::phase::authority::{callers_authority, callers_scheme};
use crate::request::{Context, caller, path};
use crate::traces;
use crate::wording::{self, describe};

/// An error of pingora's, without its peer context, which names certificates, and without what the
/// vendor has sent, which may repeat our credential.
pub(in crate::request) struct Cause {
    pub(in crate::request) kind: String,
    pub(in crate::request) context: String,
    pub(in crate::request) detail: Option<String>,
}

impl Cause {
    pub(in crate::request) fn of(error: &PingoraError) -> Self {
        let kind = wording::describe_name(error.etype().as_str());
        // This error, and those made from it, quote the unreadable head in full.
        if *error.root_etype() == ErrorType::InvalidHTTPHeader {
            return Self {
                kind,
                context: "the vendor's response has unreadable headers".to_owned(),
                detail: None,
            };
        }
        Self {
            kind,
            context: (error.context.as_ref())
                .map_or_else(String::new, |text| describe(text.as_str())),
            detail: error
                .cause
                .as_ref()
                .map(|cause| describe(&innermost(cause.as_ref()))),
        }
    }
}

/// Returns the innermost cause, without the context that pingora adds around it.
fn innermost(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    match cause.downcast_ref::<Box<PingoraError>>() {
        Some(error) => match (&error.cause, &error.context) {
            (Some(cause), _) => innermost(cause.as_ref()),
            (None, Some(context)) => context.as_str().to_owned(),
            (None, None) => wording::describe_name(error.etype().as_str()),
        },
        None => cause.to_string(),
    }
}

/// Logs that a request to a vendor failed.
pub(in crate::request) fn log_failure(ctx: &Context, error: &PingoraError, refusal: Option<Error>) {
    let Some(route) = &ctx.route else { return };
    if !ctx.connect_errors.is_empty() {
        tracing::warn!(
            vendor = %route.vendor.name,
            request_id = ctx.request_id.to_str().unwrap_or_default(),
            reason = refusal.map_or("caller_gone", |refusal| refusal.verdict().reason),
            cause = %ctx.connect_errors,
            "request failed"
        );
        return;
    }
    let cause = Cause::of(error);
    tracing::warn!(
        vendor = %route.vendor.name,
        request_id = ctx.request_id.to_str().unwrap_or_default(),
        reason = refusal.map_or("caller_gone", |refusal| refusal.verdict().reason),
        cause = cause.kind.as_str(),
        context = cause.context.as_str(),
        detail = cause.detail,
        "request failed"
    );
}

/// Reports a request that was answered, or whose caller has left.
pub(in crate::request) fn log_request(log: &AccessLog, session: &Session, ctx: &mut Context) {
    let took = ctx.started.elapsed();
    // 499, as in nginx: the caller left before there was a response.
    let written = session.response_written();
    let status = match ctx.refusal {
        // Failures are counted by their own status rather than by the 200 around a grpc-status.
        Some(refusal) if ctx.refused_as_grpc => refusal.verdict().status.as_u16(),
        Some(_) | None => written.map_or(499, |head| head.status.as_u16()),
    };
    let metrics = ctx
        .route
        .as_ref()
        .map_or(&ctx.snapshot.unrouted, |route| &route.vendor.metrics);
    let caller = ctx
        .caller
        .as_ref()
        .map_or(&*NO_CALLER, |caller| &caller.label);
    let head = session.req_header();
    metrics.count_request(caller, &head.method, status, took);
    let reason = ctx.refusal.map(|refusal| refusal.verdict().reason);
    if let Some(reason) = reason {
        metrics.count_refusal(reason);
    }
    let mut span = ctx.span.take();
    let logged = ctx.snapshot.access_log;
    if !logged && span.is_none() {
        return;
    }
    let trace_id = span.as_ref().map(|span| span.trace_id.clone());
    let line = Line {
        request_id: ctx.request_id.to_str().unwrap_or_default(),
        caller: ctx.caller.as_ref().map(|caller| &*caller.name),
        vendor: ctx.route.as_ref().map(|route| &*route.vendor.name),
        method: head.method.as_str(),
        path: path::to_log(head.raw_path()),
        status,
        reason,
        client: session.client_addr().and_then(|address| address.as_inet()),
        attempts: ctx.attempts,
        generation: ctx.held.as_ref().map(|held| held.generation()),
        duration: took,
        upstream: ctx.upstream_took,
        reused: ctx.reused,
        bytes_in: session.body_bytes_read(),
        bytes_out: session.body_bytes_sent(),
        rule: ctx.rule.as_deref(),
        trace_id: trace_id
            .as_deref()
            .or_else(|| traces::trace_id(&head.headers)),
    };
    if logged {
        log.write(&line);
    }
    if let Some(span) = &mut span {
        let host = callers_authority(session).ok().map(caller::host_of);
        span.end(&line, callers_scheme(session), host);
    }
}
