//! Admission: who calls, for which vendor, whether it is permitted, within which limits, with which
//! credential.

use std::sync::Arc;

use http::header::EXPECT;
use http::{HeaderMap, Method, StatusCode, Version};

use super::authority::callers_authority;
use super::login::log_in;
use crate::credential::Held;
use crate::downstream::certificate::Certificate;
use crate::downstream::raw_head;
use crate::downstream::request::Request;
use crate::downstream::session::Downstream;
use crate::error::Error;
use crate::http_fields::content_length;
use crate::request::caller::{self, Identification, Identified, Presented};
use crate::request::context::Context;
use crate::request::deadlines::Deadlines;
use crate::request::decide::{Ask, decide};
use crate::request::limit::{Limiter, RetryAfterHold};
use crate::request::path::{self, Target};
use crate::request::vendor::InFlight;
use crate::request::{Route, Snapshot, headers};
use crate::upstream::breaker::Permit;
use crate::upstream::http2::Kind;

/// The outcome of an admission that refused nothing.
pub(in crate::request) enum Admission {
    Forward(Box<Admitted>),
    /// The request was a login; this is the response.
    LoggedIn(StatusCode, Option<serde_json::Value>),
}

/// A request that may be forwarded, with all that it needs for that.
#[derive(Debug)]
pub(in crate::request) struct Admitted {
    pub(in crate::request) route: Arc<Route>,
    /// The target to send upstream, with the query unless the credential changes it.
    pub(in crate::request) target: String,
    pub(in crate::request) kind: Kind,
    /// The caller waits for a 100 before it sends the body.
    pub(in crate::request) expects_continue: bool,
    pub(in crate::request) content_length: Option<u64>,
    /// Breaker permit, until the outcome is known.
    pub(in crate::request) permit: Option<Permit>,
    pub(in crate::request) deadlines: Deadlines,
    /// The vendor's credential; `None`: it has none.
    pub(in crate::request) held: Option<Arc<Held>>,
    _in_flight: InFlight,
}

/// Admits a request, or returns the refusal. Checks the head, the caller, the vendor, the
/// permission and the limits in this order, then waits for the credential.
pub(in crate::request) async fn admit(
    ctx: &mut Context<'_>,
    downstream: &mut Downstream<'_>,
) -> Result<Admission, Error> {
    check_head(&ctx.request)?;
    let head = &ctx.request.head;
    let authority = callers_authority(&ctx.request)?;
    let (_, raw) = path::split_absolute(head.raw_path())?;
    let target = Target::parse(raw)?;

    let handshake = ctx.peer.handshake();
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
        let (status, body) = log_in(ctx, downstream, shape, &route.vendor, found?).await?;
        return Ok(Admission::LoggedIn(status, body));
    }
    ctx.caller = decision.caller;
    // Refused requests count, too.
    ctx.caller
        .as_ref()
        .map_or(Ok(()), |caller| caller.acquire())?;
    let mut path = decision.path?;
    let route = ctx.route.clone().ok_or(Error::NoVendor)?;
    if matches!(head.method.as_str(), "COPY" | "MOVE") && head.headers.contains_key("destination") {
        return Err(Error::SecondPath);
    }
    if let Some(query) = target.query {
        path.push('?');
        path.push_str(query);
    }
    let admitted = permit(ctx, route, path).await?;
    Ok(Admission::Forward(Box::new(admitted)))
}

/// Checks what concerns the head alone.
fn check_head(request: &Request) -> Result<(), Error> {
    let head = &request.head;
    if request.is_http2() {
        // HTTP/2 has no raw head, and its target is a path (RFC 9113 §8.3.1).
        raw_head::check_method(head.method.as_str().as_bytes())?;
        if head.method != Method::CONNECT && !head.raw_path().starts_with(b"/") {
            return Err(Error::BadRequest("The path does not start with a slash."));
        }
    } else {
        raw_head::check_raw_head(&request.raw)?;
        if request.odd_first_line {
            return Err(Error::BadFraming(raw_head::ODD_REQUEST_LINE));
        }
    }
    headers::check_fields(&head.headers)?;
    if matches!(head.method, Method::TRACE | Method::CONNECT) {
        return Err(Error::MethodNotAllowed);
    }
    Ok(())
}

/// Acquires the permits of a request whose path is permitted, and its credential.
async fn permit(ctx: &Context<'_>, route: Arc<Route>, target: String) -> Result<Admitted, Error> {
    let vendor = &route.vendor;
    let head = &ctx.request.head;
    let kind = Kind::of(head.version, &head.headers);
    let content_length = content_length(&head.headers);
    if content_length.is_some_and(|length| vendor.limits.body > 0 && length > vendor.limits.body) {
        return Err(Error::BodyTooLarge);
    }
    vendor.hold.as_ref().map_or(Ok(()), RetryAfterHold::pass)?;
    let permit = vendor.breaker.admit()?;
    vendor.rate.as_deref().map_or(Ok(()), Limiter::acquire)?;
    vendor.retries.earn();
    let in_flight = vendor.enter()?;
    let leave = ctx.caller.as_ref().map(|caller| caller.leave().clone());
    let deadlines = Deadlines::new(&vendor.timeouts, kind, ctx.started, leave);
    let held = match &vendor.credential {
        None => None,
        Some((_, credential)) => {
            let held = match credential.current() {
                Ok(held) => Ok(held),
                Err(_) => credential.wait(vendor.timeouts.token_wait).await,
            };
            Some(held.map_err(|unavailable| Error::CredentialUnavailable {
                retry_after: unavailable.retry_after,
            })?)
        }
    };
    Ok(Admitted {
        target,
        kind,
        expects_continue: head.version == Version::HTTP_11 && head.headers.contains_key(EXPECT),
        content_length,
        permit: Some(permit),
        deadlines,
        held,
        _in_flight: in_flight,
        route,
    })
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
