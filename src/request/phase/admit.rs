//! Admission: who calls, for which vendor, whether it is permitted, within which limits, with which
//! credential.

use std::time::Duration;

use http::header::{EXPECT, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Version};
use pingora::proxy::Session;

use super::Admitted;
use super::authority::{callers_authority, handshake};
use super::login::log_in;
use crate::downstream::body_rate::BodyRate;
use crate::downstream::certificate::Certificate;
use crate::downstream::raw_head;
use crate::downstream::stream::DownstreamStream;
use crate::error::Error;
use crate::http_fields::content_length;
use crate::request::caller::{self, Identification, Identified, Presented};
use crate::request::decide::{Ask, decide};
use crate::request::limit::{Limiter, RetryAfterHold};
use crate::request::path::{self, Target};
use crate::request::vendor::Vendor;
use crate::request::{CALLER_IDLE, Context, Snapshot, headers, watched_stream};
use crate::upstream::http2::Kind;

/// Admits a request, or returns the refusal. Checks the head, the caller, the vendor, the
/// permission and the limits in this order, then waits for the credential.
pub(in crate::request) async fn admit(
    session: &mut Session,
    ctx: &mut Context,
) -> Result<Admitted, Error> {
    if let Some(http1) = session.as_downstream().as_http1() {
        raw_head::check_raw_head(&http1.get_headers_raw_bytes())?;
    } else {
        // HTTP/2 has no raw head.
        raw_head::check_method(session.req_header().method.as_str().as_bytes())?;
    }
    if watched_stream(session).is_some_and(DownstreamStream::has_odd_first_line) {
        return Err(Error::BadFraming(raw_head::ODD_REQUEST_LINE));
    }
    let head = session.req_header();
    headers::check_fields(&head.headers)?;
    if matches!(head.method, Method::TRACE | Method::CONNECT) {
        return Err(Error::MethodNotAllowed);
    }
    let authority = callers_authority(session)?;
    let (_, raw) = path::split_absolute(head.raw_path())?;
    let target = Target::parse(raw)?;

    let handshake = handshake(session);
    let snapshot = ctx.snapshot.clone();
    let ask = Ask {
        method: head.method.as_str(),
        target,
        authority,
        server_name: handshake.and_then(|presented| presented.server_name.as_deref()),
    };
    let certificate = handshake.and_then(|presented| presented.certificate.as_ref());
    let found = identify(&snapshot, &head.headers, certificate, authority).await;
    let caller = match &found {
        Ok(found) => found.caller(),
        Err(refusal) => Err(*refusal),
    };
    let decision = decide(&snapshot.routes, ask, caller);
    ctx.route = decision.vendor.cloned();
    ctx.rule = decision.rule;
    ctx.by_prefix = decision.by_prefix;
    // An unknown caller must not learn what a vendor permits.
    let permitted = match (&decision.caller, decision.vendor) {
        (Some(_), Some(route)) => route.vendor.header_names.as_slice(),
        (_, _) => &[],
    };
    headers::check_names(&head.headers, permitted)?;
    if let (Some(shape), Some(route)) = (decision.login, ctx.route.clone()) {
        return log_in(session, ctx, shape, &route.vendor, found?).await;
    }
    ctx.caller = decision.caller;
    // Refused requests count, too.
    ctx.caller
        .as_ref()
        .map_or(Ok(()), |caller| caller.acquire())?;
    let mut path = decision.path?;
    let route = ctx.route.clone().ok_or(Error::NoVendor)?;
    let vendor = &route.vendor;
    if matches!(head.method.as_str(), "COPY" | "MOVE") && head.headers.contains_key("destination") {
        return Err(Error::SecondPath);
    }

    if let Some(query) = target.query {
        path.push('?');
        path.push_str(query);
    }
    ctx.target = path;
    ctx.kind = Kind::of(head.version, &head.headers);
    ctx.expects_continue = head.version == Version::HTTP_11 && head.headers.contains_key(EXPECT);
    let content_length = content_length(&head.headers);
    if content_length.is_some_and(|length| vendor.limits.body > 0 && length > vendor.limits.body) {
        return Err(Error::BodyTooLarge);
    }
    vendor.hold.as_ref().map_or(Ok(()), RetryAfterHold::pass)?;
    ctx.permit = Some(vendor.breaker.admit()?);
    vendor.rate.as_deref().map_or(Ok(()), Limiter::acquire)?;
    vendor.retries.earn();
    ctx.content_length = content_length;
    ctx.in_flight = Some(vendor.enter()?);
    if !vendor.timeouts.total.is_zero() {
        ctx.deadline = Some(ctx.started + vendor.timeouts.total);
    }
    limit_body(session, ctx, vendor, content_length);
    if let Some((_, credential)) = &vendor.credential {
        let held = match credential.current() {
            Ok(held) => Ok(held),
            Err(_) => credential.wait(vendor.timeouts.token_wait).await,
        };
        ctx.held = Some(held.map_err(|unavailable| Error::CredentialUnavailable {
            retry_after: unavailable.retry_after,
        })?);
    }
    Ok(Admitted::Forward)
}

/// Identifies the caller of a request.
async fn identify(
    snapshot: &Snapshot,
    headers: &HeaderMap,
    certificate: Option<&Certificate>,
    authority: &str,
) -> Result<Identification, Error> {
    let known_host = snapshot.callers.heed_the_host()
        && snapshot
            .routes
            .by_host(&caller::lower(caller::host_of(authority)))
            .is_some();
    let identified = snapshot.callers.identify(Presented {
        headers,
        certificate,
        authority,
        known_host,
    });
    match identified {
        Identified::Found(found) => found,
        // Rare, so its state is not carried along by every request.
        Identified::Unverified(unfinished) => Box::pin(unfinished.finish()).await,
    }
}

/// Limits pauses and rate of a request body, and pauses of the caller while it reads the response.
fn limit_body(
    session: &mut Session,
    ctx: &mut Context,
    vendor: &Vendor,
    content_length: Option<u64>,
) {
    let http2 = session.as_downstream().is_http2();
    let longest_pause = match ctx.kind.idle(&vendor.timeouts) {
        Duration::ZERO => CALLER_IDLE,
        idle => {
            session.set_read_timeout(Some(idle));
            session.set_write_timeout(Some(idle));
            idle
        }
    };
    if let Some(stream) = watched_stream(session) {
        if let Some(caller) = &ctx.caller {
            stream.serve(caller.leave());
        }
        stream.set_body_timeout(longest_pause);
        // Bytes behind a request to upgrade belong to the other protocol.
        if ctx.kind != Kind::Upgrade {
            if let Some(length) = content_length {
                stream.body_has(length);
            } else if session.req_header().headers.contains_key(TRANSFER_ENCODING) {
                // No other transfer coding passes the checks.
                stream.body_is_chunked();
            }
        }
        stream.set_write_timeout(longest_pause);
    }
    // A gRPC stream may be silent between its messages.
    if http2 && ctx.kind != Kind::Grpc {
        ctx.body_rate = Some((BodyRate::new(longest_pause), None));
    }
}
