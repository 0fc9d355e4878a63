//! Whether a request may be sent again, to which address, and with which credential.

use http::StatusCode;
use pingora::ErrorSource;
use pingora::prelude::{Error as PingoraError, ErrorType};
use pingora::proxy::Session;
use tokio::time::Instant;

use crate::http_fields::content_length;
use crate::request::vendor::Vendor;
use crate::request::{Context, REPLAYABLE};
use crate::upstream::http2::Refusal;

/// Attempts for one request; the replay of a 401 is one.
const MAX_ATTEMPTS: u32 = 3;
/// HTTP/2 connections that may refuse one request before the caller is told.
const MAX_REFUSALS: u32 = 2;

/// After a 401: rejects the credential that was sent and waits for a newer one. `true`: replay.
pub(in crate::request) async fn renew_after_401(
    session: &Session,
    ctx: &mut Context,
    vendor: &Vendor,
) -> bool {
    let (Some((_, credential)), Some(held)) = (&vendor.credential, ctx.held.clone()) else {
        return false;
    };
    if !held.renewable() || !vendor.retry_on_401 {
        return false;
    }
    held.reject();
    if ctx.replayed || !replayable(session) {
        return false;
    }
    let Some(newer) = credential
        .newer_than(&held, vendor.timeouts.token_wait)
        .await
    else {
        return false;
    };
    // The wait may have let more of the body through than can be sent again.
    if session.as_ref().retry_buffer_truncated() {
        return false;
    }
    ctx.held = Some(newer);
    ctx.rejected = Some(held);
    ctx.replayed = true;
    ctx.replaying = true;
    true
}

/// Tells whether another connection may be tried after a connect failed: nothing was sent, so any
/// method may be retried.
pub(in crate::request) fn should_retry_connect(ctx: &mut Context, error: &PingoraError) -> bool {
    let (Some(route), Some(picked)) = (&ctx.route, &ctx.picked) else {
        return false;
    };
    if *error.etype() == ErrorType::H2Error {
        // A pooled connection found to be closed when one more stream was opened on it.
        if Refusal::of(error) == Some(Refusal::WantsHttp1) {
            route.upstream.note_http1_demand(picked);
        }
        ctx.refusals += 1;
        return ctx.refusals <= MAX_REFUSALS;
    }
    if *error.etype() == ErrorType::TLSHandshakeFailure && route.upstream.should_offer_both(picked)
    {
        ctx.refusals += 1;
        return ctx.refusals <= MAX_REFUSALS;
    }
    ctx.tried.add(picked);
    route.upstream.note(&mut ctx.connect_errors, picked, error);
    // `timeouts.total` ends waits that say nothing about the address.
    let in_time = ctx.deadline.is_none_or(|at| Instant::now() < at);
    if in_time {
        route.upstream.mark_unreachable(picked);
    }
    let more = ctx.tried.count() < route.upstream.addresses() && ctx.attempts < MAX_ATTEMPTS;
    if more {
        tracing::warn!(
            vendor = %route.vendor.name,
            request_id = ctx.request_id.to_str().unwrap_or_default(),
            cause = %ctx.connect_errors,
            "an address of the upstream cannot be reached; trying the next"
        );
    } else if in_time {
        route.upstream.note_unreachable(&ctx.connect_errors);
    }
    more
}

/// Tells whether to make another attempt after one failed. `reused`: it was on a pooled connection.
pub(in crate::request) fn should_retry(
    session: &Session,
    ctx: &mut Context,
    error: &PingoraError,
    reused: bool,
) -> bool {
    let responding = has_response_head(session);
    let refusal = Refusal::of(error);
    if let (Some(refusal), Some(route), Some(picked)) = (refusal, &ctx.route, &ctx.picked) {
        match refusal {
            Refusal::NotProcessed => {}
            Refusal::WantsHttp1 => route.upstream.note_http1_demand(picked),
            Refusal::BrokenHttp2 => route.upstream.note_broken_http2(picked),
        }
        ctx.refusals += u32::from(refusal != Refusal::BrokenHttp2);
    }
    if ctx.replaying {
        return !session.as_ref().retry_buffer_truncated() && !responding;
    }
    let sendable = !responding
        && ctx.refusal.is_none()
        && ctx.deadline.is_none_or(|at| Instant::now() < at)
        && replayable(session);
    if let Some(Refusal::NotProcessed | Refusal::WantsHttp1) = refusal {
        // Refused unread, so any method may be retried. The retry budget is not charged, because
        // servers close connections in good order all the time.
        return sendable && ctx.refusals <= MAX_REFUSALS;
    }
    // A request that the vendor cannot have begun to process may be sent again whatever its method;
    // any other only when its method is idempotent (RFC 9110 §9.2.2).
    let harmless = session.req_header().method.is_idempotent() || is_unsent(error, ctx);
    let again = sendable
        && harmless
        && (is_broken(error) || refusal.is_some())
        && ctx.attempts < MAX_ATTEMPTS
        && ctx.route.as_ref().is_some_and(|route| {
            let within = route.vendor.retries.spend();
            route.vendor.metrics.count_retry(within);
            within
        });
    // A pooled connection may have died of old age, which says nothing about the server. A
    // connection whose HTTP/2 broke led to a server that is up.
    let unwell = again && !reused && refusal != Some(Refusal::BrokenHttp2);
    if let (true, Some(picked), Some(route)) = (unwell, &ctx.picked, &ctx.route) {
        ctx.tried.add(picked);
        route.upstream.note_broken(&mut ctx.connect_errors, picked);
    }
    again
}

/// Tells whether the caller has the response's head. After a 101 the connection speaks another
/// protocol, which no further byte of ours may disturb (RFC 9110 §15.2.2).
pub(in crate::request) fn has_response_head(session: &Session) -> bool {
    session.response_written().is_some_and(|head| {
        !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS
    })
}

/// Tells whether the whole body can be sent again: what has been read is buffered, and the rest
/// will be.
fn replayable(session: &Session) -> bool {
    let content_length = content_length(&session.req_header().headers);
    !session.as_ref().retry_buffer_truncated()
        && content_length.is_none_or(|length| length <= REPLAYABLE)
}

/// Tells whether a connection broke, rather than that the vendor is slow, breaks the protocol or is
/// not at fault.
fn is_broken(error: &PingoraError) -> bool {
    use ErrorType::{ConnectionClosed, H2Downgrade, H2Error, ReadError, WriteError};

    *error.esource() == ErrorSource::Upstream
        && matches!(
            error.etype(),
            ConnectionClosed | ReadError | WriteError | H2Error | H2Downgrade
        )
}

/// Tells whether the vendor cannot have the whole request head: pingora writes it before it looks
/// at a body, and half a head is no request.
fn is_unsent(error: &PingoraError, ctx: &Context) -> bool {
    *error.etype() == ErrorType::WriteError && !ctx.head_sent
}
