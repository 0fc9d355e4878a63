//! Local replies: refusals, failures and responses to logins.

use bytes::Bytes;
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;

use crate::downstream::request::Lost;
use crate::downstream::session::Downstream;
use crate::error::Error;
use crate::error::problem::{self, Problem};
use crate::http_fields::is_grpc;
use crate::request::context::Context;

/// Writes the local reply for `refusal`.
///
/// # Errors
/// [`Lost`] if the caller has left.
pub(in crate::request) fn local_reply(
    ctx: &mut Context<'_>,
    downstream: &mut Downstream<'_>,
    refusal: Error,
) -> Result<(), Lost> {
    ctx.refusal = Some(refusal);
    let grpc = is_grpc(&ctx.request.head.headers);
    ctx.refused_as_grpc = grpc;
    // An unknown caller learns nothing about routes, not even a vendor's name.
    let vendor = ctx.caller.as_ref().and(ctx.route.as_ref());
    let vendor = vendor.map(|route| &*route.vendor.name);
    let problem = if grpc {
        Problem::for_grpc(refusal, &ctx.request_id)
    } else {
        Problem::new(refusal, vendor, &ctx.request_id)
    };
    if is_untrusted(refusal) {
        downstream.close_afterwards();
    }
    let is_head = ctx.request.head.method == Method::HEAD;
    write(
        downstream,
        problem.status,
        problem.fields,
        problem.body,
        is_head,
    )
}

/// Tells whether what follows on a connection cannot be read after `refusal`.
pub(in crate::request) fn is_untrusted(refusal: Error) -> bool {
    matches!(refusal, Error::BadFraming(_) | Error::HeadTooLarge)
}

/// Writes the response to a login.
///
/// # Errors
/// [`Lost`] if the caller has left.
pub(in crate::request) fn logged_in(
    ctx: &Context<'_>,
    downstream: &mut Downstream<'_>,
    status: StatusCode,
    body: Option<serde_json::Value>,
) -> Result<(), Lost> {
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let mut fields = Vec::with_capacity(5);
    if !body.is_empty() {
        fields.push(("Content-Type", "application/json".parse()));
    }
    if status != StatusCode::NO_CONTENT {
        fields.push(("Content-Length", body.len().to_string().parse()));
    }
    fields.push(("Cache-Control", "no-store".parse()));
    fields.push(("Via", Ok(problem::VIA)));
    fields.push(("X-Request-Id", Ok(ctx.request_id.clone())));
    let fields = fields.into_iter();
    let fields = fields.filter_map(|(name, value)| Some((name, value.ok()?)));
    let is_head = ctx.request.head.method == Method::HEAD;
    write(downstream, status, fields, Bytes::from(body), is_head)
}

/// Asks the caller to send its body.
pub(in crate::request) fn send_continue(downstream: &mut Downstream<'_>) {
    if let Ok(head) = ResponseHeader::build(StatusCode::CONTINUE, Some(0)) {
        downstream.send_interim(&head);
    }
}

fn write(
    downstream: &mut Downstream<'_>,
    status: StatusCode,
    fields: impl IntoIterator<Item = (&'static str, http::HeaderValue)>,
    body: Bytes,
    is_head: bool,
) -> Result<(), Lost> {
    // A status from a table, and headers of ours: none is invalid.
    let mut head = ResponseHeader::build(status, Some(10)).map_err(|_| Lost::Gone)?;
    for (name, value) in fields {
        head.insert_header(name, value).map_err(|_| Lost::Gone)?;
    }
    // gRPC takes the headers for trailers where the head ends the stream.
    let ends = is_head || body.is_empty();
    downstream.send_head(head, ends)?;
    if !ends {
        downstream.send_piece(body);
        downstream.send_end(None);
    }
    Ok(())
}
