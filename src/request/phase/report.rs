//! The report of a request: to the access log, the metrics and the trace.

use crate::downstream::session::Downstream;
use crate::error::Error;
use crate::logs::Line;
use crate::metrics::NO_CALLER;
use crate::request::context::Context;
use crate::request::failure::Failure;
use crate::request::phase::authority::{callers_authority, callers_scheme};
use crate::request::{caller, path};
use crate::traces;

/// Logs that a request to a vendor failed.
pub(in crate::request) fn log_failure(
    ctx: &Context<'_>,
    failure: &Failure,
    refusal: Option<Error>,
) {
    let Some(route) = &ctx.route else { return };
    let reason = refusal.map_or("caller_gone", |refusal| refusal.verdict().reason);
    let (vendor, request_id) = (&route.vendor.name, ctx.id());
    if !ctx.connect_errors.is_empty() {
        let cause = &ctx.connect_errors;
        tracing::warn!(%vendor, request_id, reason, %cause, "request failed");
        return;
    }
    let (cause, detail) = failure.described();
    tracing::warn!(%vendor, request_id, reason, cause, detail, "request failed");
}

/// Reports a request that was answered, or whose caller has left.
pub(in crate::request) fn log_request(ctx: &mut Context<'_>, downstream: &Downstream<'_>) {
    let took = ctx.started.elapsed();
    let status = match ctx.refusal {
        // Failures are counted by their own status rather than by the 200 around a grpc-status.
        Some(refusal) if ctx.refused_as_grpc => refusal.verdict().status.as_u16(),
        // 499, as in nginx: the caller left before there was a response.
        Some(_) | None => downstream.status().map_or(499, |status| status.as_u16()),
    };
    let metrics = ctx
        .route
        .as_ref()
        .map_or(&ctx.snapshot.unrouted, |route| &route.vendor.metrics);
    let caller = ctx
        .caller
        .as_ref()
        .map_or(&*NO_CALLER, |caller| &caller.label);
    let head = &ctx.request.head;
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
        request_id: ctx.id(),
        caller: ctx.caller.as_ref().map(|caller| &*caller.name),
        vendor: ctx.route.as_ref().map(|route| &*route.vendor.name),
        method: head.method.as_str(),
        path: path::to_log(head.raw_path()),
        status,
        reason,
        client: Some(&ctx.peer.client),
        attempts: ctx.attempts,
        generation: ctx.generation,
        duration: took,
        upstream: ctx.upstream_took,
        reused: ctx.reused,
        bytes_in: size(downstream.body_in()),
        bytes_out: size(downstream.body_out()),
        rule: ctx.rule.as_deref(),
        trace_id: trace_id
            .as_deref()
            .or_else(|| traces::trace_id(&head.headers)),
    };
    if logged {
        ctx.proxy.access_log.write(&line);
    }
    if let Some(span) = &mut span {
        let host = callers_authority(&ctx.request).ok().map(caller::host_of);
        span.end(&line, callers_scheme(ctx.peer), host);
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
