//! The head of the request to the vendor.

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri, Version};
use pingora::http::RequestHeader;

use crate::request::context::Context;
use crate::request::headers;
use crate::request::phase::admit::Admitted;

/// What the vendor's side of an attempt is, and what is known of the body by now.
#[derive(Clone, Copy, Debug)]
pub(in crate::request) struct Sending {
    /// The vendor's side is a stream of HTTP/2.
    pub(in crate::request) http2: bool,
    /// The request has no body.
    pub(in crate::request) no_body: bool,
}

/// Returns the head: the caller's, without what does not pass, with what the vendor needs, and with
/// the credential last of all.
///
/// # Errors
/// Fails if a header or the target cannot be set. All are checked before, so only a defect here
/// causes it.
pub(in crate::request) fn request_head(
    ctx: &Context<'_>,
    admitted: &Admitted,
    sending: Sending,
) -> pingora::Result<RequestHeader> {
    let vendor = &admitted.route.vendor;
    let (snapshot, from_http2) = (&ctx.snapshot, ctx.request.is_http2());
    let mut head = ctx.request.head.clone();
    let upgrade = asks_for_websocket(&head);
    let stripped = snapshot
        .stripped
        .in_request(&head.headers, vendor.cookies_pass, from_http2);
    for name in stripped {
        head.remove_header(&name);
    }
    if !vendor.header_names.is_empty() {
        let alike = (snapshot.stripped).lookalikes_in_request(&head.headers, vendor.cookies_pass);
        for name in alike {
            head.remove_header(&name);
        }
    }
    if from_http2
        && !sending.http2
        && vendor.cookies_pass
        // HTTP/2 may send a cookie in pieces; older servers read only the first.
        && let Some(joined) = headers::joined_cookies(&head.headers)
    {
        head.insert_header(COOKIE, joined)?;
    }
    head.set_raw_path(admitted.target.as_bytes())?;
    head.insert_header(HOST, vendor.host.clone())?;
    if let Some(span) = &ctx.span {
        head.insert_header("traceparent", span.traceparent.clone())?;
        if span.begins_trace {
            head.remove_header("tracestate");
        }
    }
    if let (Some((placement, _)), Some(held)) = (&vendor.credential, &admitted.held) {
        placement.apply(held, &mut head)?;
    }
    if sending.http2 {
        for_http2(&mut head, &vendor.host)?;
    } else {
        for_http1(&mut head, upgrade, sending.no_body)?;
    }
    Ok(head)
}

/// Frames the request (RFC 9112 §6.3), and asks for the other protocol again.
fn for_http1(head: &mut RequestHeader, upgrade: bool, no_body: bool) -> pingora::Result<()> {
    head.set_version(Version::HTTP_11);
    if upgrade {
        head.insert_header(CONNECTION, "Upgrade")?;
        head.insert_header(UPGRADE, "websocket")?;
    }
    if head.headers.contains_key(CONTENT_LENGTH) {
        return Ok(());
    }
    if !no_body {
        head.insert_header(TRANSFER_ENCODING, "chunked")?;
    } else if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
        // Many servers answer 411 otherwise (RFC 9110 §8.6).
        head.insert_header("Content-Length", HeaderValue::from_static("0"))?;
    }
    Ok(())
}

/// Names the server by `:authority`, as HTTP/2 does (RFC 9113 §8.3.1).
fn for_http2(head: &mut RequestHeader, host: &HeaderValue) -> pingora::Result<()> {
    use pingora::{Error, ErrorType::InternalError};

    // The vendor's own 100 would be lost: h2 does not show it to pingora.
    head.remove_header(&EXPECT);
    head.remove_header(&HOST);
    let invalid = |what| Error::explain(InternalError, what);
    let target = PathAndQuery::try_from(head.raw_path())
        .map_err(|_| invalid("the target is none of HTTP/2"))?;
    let authority = Authority::try_from(host.as_bytes())
        .map_err(|_| invalid("the vendor's host is no authority"))?;
    let uri = Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(authority)
        .path_and_query(target)
        .build()
        .map_err(|_| invalid("the target is none of HTTP/2"))?;
    head.set_uri(uri);
    head.set_version(Version::HTTP_2);
    Ok(())
}

/// Tells whether the request asks for a WebSocket. No other protocol is passed on: `h2c` would
/// evade every check.
fn asks_for_websocket(head: &RequestHeader) -> bool {
    head.version == Version::HTTP_11
        && head
            .headers
            .get(UPGRADE)
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}
