//! Local replies: refusals, failures and responses to logins.

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use pingora::ErrorSource;
use pingora::http::ResponseHeader;
use pingora::prelude::{Error as PingoraError, ErrorType};
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use crate::error::Error;
use crate::error::problem::{self, Problem};
use crate::http_fields::is_grpc;
use crate::request::Context;
use crate::upstream::http2;

/// Writes the local reply for `refusal`.
pub(in crate::request) async fn local_reply(
    session: &mut Session,
    ctx: &mut Context,
    refusal: Error,
) -> pingora::Result<()> {
    ctx.refusal = Some(refusal);
    let grpc = is_grpc(&session.req_header().headers);
    ctx.refused_as_grpc = grpc;
    // An unknown caller learns nothing about routes, not even a vendor's name.
    let vendor = ctx.caller.as_ref().and(ctx.route.as_ref());
    let vendor = vendor.map(|route| &*route.vendor.name);
    let problem = if grpc {
        Problem::for_grpc(refusal, &ctx.request_id)
    } else {
        Problem::new(refusal, vendor, &ctx.request_id)
    };
    let mut head = ResponseHeader::build(problem.status, Some(problem.fields.len()))?;
    for (name, value) in problem.fields {
        head.insert_header(name, value)?;
    }

    let untrusted = matches!(refusal, Error::BadFraming(_) | Error::HeadTooLarge);
    write(session, head, problem.body, untrusted).await
}

/// Writes the response to a login.
pub(in crate::request) async fn logged_in(
    session: &mut Session,
    ctx: &Context,
    status: StatusCode,
    body: Option<serde_json::Value>,
) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(status, Some(5))?;
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    if !body.is_empty() {
        head.insert_header("Content-Type", "application/json")?;
    }
    if status != StatusCode::NO_CONTENT {
        head.insert_header("Content-Length", body.len())?;
    }
    head.insert_header("Cache-Control", "no-store")?;
    head.insert_header("Via", problem::VIA)?;
    head.insert_header("X-Request-Id", ctx.request_id.clone())?;
    write(session, head, Bytes::from(body), false).await
}

/// Writes a local reply. `untrusted`: what follows on the connection cannot be read.
async fn write(
    session: &mut Session,
    head: ResponseHeader,
    body: Bytes,
    untrusted: bool,
) -> pingora::Result<()> {
    let request = session.req_header();
    let is_head = request.method == Method::HEAD;
    let http2 = request.version == Version::HTTP_2;
    let body_left = !session.as_downstream_mut().is_body_done();
    if body_left || untrusted {
        session.set_keepalive(None);
    }
    let downstream = session.as_downstream_mut();
    let head = Box::new(head);
    let ends = is_head || body.is_empty();
    match downstream {
        // gRPC takes the headers for trailers where the head ends the stream.
        ServerSession::H2(http2) if ends => http2.write_response_header(head, true)?,
        ServerSession::H1(_)
        | ServerSession::H2(_)
        | ServerSession::Subrequest(_)
        | ServerSession::Custom(_) => downstream.write_response_header(head).await?,
    }
    if ends {
        downstream.finish_body().await?;
    } else {
        downstream.write_response_body(body, true).await?;
        if !http2 {
            downstream.finish_body().await?;
        }
    }
    if body_left && !untrusted {
        // Closing on unread bytes would reset the connection, which could cost the caller the
        // response. Over HTTP/2 it would reset the stream; clients that wait for its window to open
        // before they read a response (httpx does) would wait for ever.
        let _ = downstream.drain_request_body().await;
    }
    Ok(())
}

/// Returns what a failure of pingora's means to the caller; `None` when the caller has left.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "pingora's list of error types is open"
)]
pub(in crate::request) fn classify(session: &mut Session, error: &PingoraError) -> Option<Error> {
    use ErrorType::{
        ConnectTimedout, ConnectionClosed, ReadError, ReadTimedout, TLSHandshakeTimedout,
        WriteError, WriteTimedout,
    };
    let timed_out = matches!(
        error.etype(),
        ConnectTimedout | ReadTimedout | TLSHandshakeTimedout | WriteTimedout
    ) || http2::ping_timed_out(error);
    match error.esource() {
        ErrorSource::Upstream if timed_out => {
            // pingora's read timeout also runs while the caller stalls.
            let caller_stalls = matches!(error.etype(), ReadTimedout)
                && !session.as_downstream_mut().is_body_done();
            Some(if caller_stalls {
                Error::BodyTimeout
            } else {
                Error::UpstreamTimeout
            })
        }
        ErrorSource::Upstream => Some(Error::UpstreamUnreachable),
        ErrorSource::Downstream => match error.etype() {
            ReadTimedout => Some(Error::BodyTimeout),
            WriteError | WriteTimedout | ReadError | ConnectionClosed | ErrorType::H2Error => None,
            _ => Some(Error::BadFraming(
                "The request's head or body breaks the protocol's framing.",
            )),
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(Error::Internal),
    }
}
