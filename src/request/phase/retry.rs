//! Whether a request may be sent again, to which address, and with which credential.

use std::sync::Arc;

use pingora::prelude::{Error as PingoraError, ErrorType};

use crate::credential::Held;
use crate::downstream::session::Downstream;
use crate::request::context::Context;
use crate::request::kept_body::{self, KeptBody};
use crate::request::phase::admit::Admitted;
use crate::upstream::addresses::{Picked, TriedAddresses};
use crate::upstream::http2::Refusal;
use crate::upstream::session::{Broken, BrokenKind};

/// Attempts for one request; the replay of a 401 is one.
const MAX_ATTEMPTS: u32 = 3;
/// HTTP/2 connections that may refuse one request before the caller is told.
const MAX_REFUSALS: u32 = 2;

/// What earlier attempts have shown.
#[derive(Debug, Default)]
pub(in crate::request) struct Retries {
    /// Addresses that could not be reached, or whose connection broke.
    pub(in crate::request) tried: TriedAddresses,
    /// The number of HTTP/2 connections that refused the request.
    pub(in crate::request) refusals: u32,
    /// The credential that the vendor answered with 401; the replay carries a newer one.
    pub(in crate::request) rejected: Option<Arc<Held>>,
}

/// A failed attempt.
#[derive(Debug)]
pub(in crate::request) struct FailedAttempt<'a> {
    pub(in crate::request) broken: &'a Broken,
    pub(in crate::request) picked: &'a Picked,
    /// It was on a kept connection.
    pub(in crate::request) reused: bool,
    /// Some of the request was written.
    pub(in crate::request) has_sent: bool,
}

/// After a 401: rejects the credential that was sent and waits for a newer one, with which to send
/// the request again. `None`: the 401 is passed on.
pub(in crate::request) async fn newer_after_401(
    ctx: &Context<'_>,
    admitted: &Admitted,
    retries: &Retries,
    kept: &KeptBody,
) -> Option<Arc<Held>> {
    let vendor = &admitted.route.vendor;
    let (_, credential) = vendor.credential.as_ref()?;
    let held = admitted.held.as_ref()?;
    if !held.renewable() || !vendor.retry_on_401 {
        return None;
    }
    held.reject();
    if retries.rejected.is_some() || ctx.refusal.is_some() || !is_replayable(admitted, kept) {
        return None;
    }
    credential
        .newer_than(held, vendor.timeouts.token_wait)
        .await
}

/// Tells whether another connection may be tried after a connect failed: nothing was sent, so any
/// method may be retried.
pub(in crate::request) fn should_retry_connect(
    ctx: &mut Context<'_>,
    admitted: &Admitted,
    retries: &mut Retries,
    picked: &Picked,
    error: &PingoraError,
) -> bool {
    let upstream = &admitted.route.upstream;
    if *error.etype() == ErrorType::H2Error {
        // A pooled connection found to be closed when one more stream was opened on it.
        if Refusal::of(error) == Some(Refusal::WantsHttp1) {
            upstream.note_http1_demand(picked);
        }
        retries.refusals += 1;
        return retries.refusals <= MAX_REFUSALS;
    }
    retries.tried.add(picked);
    upstream.note(&mut ctx.connect_errors, picked, error);
    // `timeouts.total` ends waits that say nothing about the address.
    let in_time = admitted.deadlines.is_over().is_none();
    if in_time {
        upstream.mark_unreachable(picked);
    }
    let more = retries.tried.count() < upstream.addresses() && ctx.attempts < MAX_ATTEMPTS;
    if more {
        tracing::warn!(
            vendor = %admitted.route.vendor.name,
            request_id = ctx.id(),
            cause = %ctx.connect_errors,
            "an address of the upstream cannot be reached; trying the next"
        );
    } else if in_time {
        upstream.note_unreachable(&ctx.connect_errors);
    }
    more
}

/// Tells whether to make another attempt after one failed.
pub(in crate::request) fn should_retry(
    ctx: &mut Context<'_>,
    downstream: &Downstream<'_>,
    admitted: &Admitted,
    retries: &mut Retries,
    kept: &KeptBody,
    failed: &FailedAttempt<'_>,
) -> bool {
    let FailedAttempt { broken, picked, .. } = failed;
    let upstream = &admitted.route.upstream;
    let refusal = broken.refusal;
    match refusal {
        None | Some(Refusal::NotProcessed) => {}
        Some(Refusal::WantsHttp1) => upstream.note_http1_demand(picked),
        Some(Refusal::BrokenHttp2) => upstream.note_broken_http2(picked),
    }
    retries.refusals += u32::from(refusal.is_some_and(|refusal| refusal != Refusal::BrokenHttp2));
    let sendable = downstream.status().is_none()
        && admitted.deadlines.is_over().is_none()
        && is_replayable(admitted, kept);
    if let Some(Refusal::NotProcessed | Refusal::WantsHttp1) = refusal {
        // Refused unread, so any method may be retried. The retry budget is not charged, because
        // servers close connections in good order all the time.
        return sendable && retries.refusals <= MAX_REFUSALS;
    }
    // A request that the vendor cannot have begun to process may be sent again whatever its method;
    // any other only when its method is idempotent (RFC 9110 §9.2.2).
    let is_unsent = broken.kind == BrokenKind::Write && !failed.has_sent;
    let harmless = ctx.request.head.method.is_idempotent() || is_unsent;
    let vendor = &admitted.route.vendor;
    let again = sendable
        && harmless
        && (broken.is_connection() || refusal.is_some())
        && ctx.attempts < MAX_ATTEMPTS
        && {
            let within = vendor.retries.spend();
            vendor.metrics.count_retry(within);
            within
        };
    // A pooled connection may have died of old age, which says nothing about the server. A
    // connection whose HTTP/2 broke led to a server that is up.
    if again && !failed.reused && refusal != Some(Refusal::BrokenHttp2) {
        retries.tried.add(picked);
        upstream.note_broken(&mut ctx.connect_errors, picked, &broken.cause);
    }
    again
}

/// Tells whether the whole body can be sent again: what has been read is kept, and the rest will
/// be.
fn is_replayable(admitted: &Admitted, kept: &KeptBody) -> bool {
    let length = admitted.content_length;
    kept.is_whole() && length.is_none_or(|length| length <= kept_body::MOST)
}
