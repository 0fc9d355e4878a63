//! The head of a vendor's response.

use http::header::TRANSFER_ENCODING;
use http::{HeaderMap, StatusCode, Version};
use pingora::http::ResponseHeader;
use tokio::time::Instant;

use super::echo::mask_head;
use super::rewrite::rewrite_references;
use crate::error::problem;
use crate::request::context::Context;
use crate::request::headers;
use crate::request::phase::admit::Admitted;
use crate::request::redact::Needles;

/// Tells whether the body of a response over HTTP/1 is framed unambiguously, and logs it if not.
pub(in crate::request) fn is_framed_plainly(ctx: &Context<'_>, response: &ResponseHeader) -> bool {
    let plain =
        response.version == Version::HTTP_2 || headers::is_framed_plainly(&response.headers);
    if let (false, Some(route)) = (plain, &ctx.route) {
        tracing::warn!(
            vendor = %route.vendor.name,
            request_id = ctx.id(),
            "the vendor's response has two lengths, or a transfer coding that was not requested"
        );
    }
    plain
}

/// Prepares a head for the caller, an interim one or the final one: masks our credential, removes
/// what does not pass, and makes references to the vendor lead through the proxy.
///
/// # Errors
/// Fails if a header cannot be set: only a defect here causes it.
pub(in crate::request) fn sanitize(
    ctx: &Context<'_>,
    admitted: &Admitted,
    response: &mut ResponseHeader,
    needles: Option<&Needles>,
) -> pingora::Result<()> {
    let vendor = &admitted.route.vendor;
    if let Some(needles) = needles {
        mask_head(needles, response, vendor)?;
    }
    let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS;
    for name in headers::stripped_from_response(&response.headers, vendor.cookies_pass, upgraded) {
        response.remove_header(&name);
    }
    rewrite_references(response, vendor, ctx.by_prefix)?;
    if response.version == Version::HTTP_2 {
        // It has no meaning there (RFC 9113 §8.2.2), and would have one on the way back.
        response.remove_header(&TRANSFER_ENCODING);
    }
    Ok(())
}

/// Counts a final response, and adds what every response of ours has.
///
/// # Errors
/// As [`sanitize`].
pub(in crate::request) fn complete(
    ctx: &mut Context<'_>,
    admitted: &Admitted,
    response: &mut ResponseHeader,
    since: Instant,
) -> pingora::Result<()> {
    let vendor = &admitted.route.vendor;
    let now = Instant::now();
    let took = now - since;
    ctx.upstream_took = Some(took);
    vendor.metrics.observe_upstream(took);
    let fixed = admitted.held.as_ref().filter(|held| !held.renewable());
    let generation = fixed.map_or(0, |held| held.generation());
    let unauthorized = response.status == StatusCode::UNAUTHORIZED;
    vendor.auth_outcomes.count(now, unauthorized, generation);
    response.append_header("Via", problem::VIA)?;
    response.insert_header("X-Request-Id", ctx.request_id.clone())
}

/// Prepares trailers for the caller.
pub(in crate::request) fn sanitize_trailers(
    admitted: &Admitted,
    trailers: &mut HeaderMap,
    needles: Option<&Needles>,
) {
    let vendor = &admitted.route.vendor;
    if let Some(needles) = needles {
        vendor.metrics.echoes.inc_by(needles.mask_fields(trailers));
    }
    for name in headers::stripped_from_response(trailers, vendor.cookies_pass, false) {
        trailers.remove(name);
    }
}
