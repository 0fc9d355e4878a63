//! Logins of vendors' own clients, answered here: `login: stub`.
//!
//! The key may be in the body, so bodies are read before the caller is known. Their number, size
//! and time are bounded.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use http::StatusCode;
use http::header::EXPECT;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::local_reply::send_continue;
use crate::config::LoginShape;
use crate::downstream::request::{CallerEvent, Lost};
use crate::downstream::session::Downstream;
use crate::error::Error;
use crate::http_fields::content_length;
use crate::request::caller::Identification;
use crate::request::caller::token::Mint;
use crate::request::context::Context;
use crate::request::login::{self, LONGEST, Posted};
use crate::request::vendor::Vendor;

/// Longest time for a login's body. At the rate of other bodies the largest one would take longer.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Places for bodies whose sender the headers do not tell: 4 MiB in all.
static UNKNOWN: Semaphore = Semaphore::const_new(512);
/// Places for bodies whose sender is known: these logins go on when strangers fill the others.
static KNOWN: Semaphore = Semaphore::const_new(512);

const FULL: &str = "As many logins are being read as the proxy reads at a time.";

/// Answers a login, or a call that ends one.
pub(super) async fn log_in(
    ctx: &mut Context<'_>,
    downstream: &mut Downstream<'_>,
    shape: LoginShape,
    vendor: &Vendor,
    mut found: Identification,
) -> Result<(StatusCode, Option<serde_json::Value>), Error> {
    let ends = login::ends(shape);
    let by_head = found.caller().ok();
    if let Some(caller) = &by_head
        && !caller.may_use(&vendor.name)
    {
        ctx.caller = Some(caller.clone());
        caller.acquire()?;
        return Err(Error::Forbidden);
    }
    let is_known = by_head.is_some() && (ends || found.can_log_in());
    let body = read_body(ctx, downstream, is_known).await?;
    let head = &ctx.request.head;
    let posted = Posted::read(&head.headers, &body);
    let values: Vec<&[u8]> = posted.values().collect();
    let snapshot = ctx.snapshot.clone();
    let callers = &snapshot.callers;
    callers.identify_posted(&mut found, &values, ends)?;
    let caller = found.caller()?;
    // Where anyone may call, every token is as good.
    let of_process;
    let mint = if let Some(mint) = callers.mint() {
        mint
    } else {
        of_process = Mint::new(None);
        &of_process
    };
    let login = if ends { None } else { Some(found.login(mint)?) };
    ctx.caller = Some(caller.clone());
    caller.acquire()?;
    if !caller.may_use(&vendor.name) {
        return Err(Error::Forbidden);
    }
    let Some(login) = login else {
        callers.end_tokens(&head.headers, &values).await?;
        return Ok((login::ended(shape), None));
    };
    Ok(login::respond(shape, &caller, login, &posted, mint))
}

/// Reads the body of a login. `is_known`: the headers identify the sender. Others are not asked to
/// send by a 100: RFC 9110 §10.1.1 lets them send without one, and clients do so within seconds.
async fn read_body(
    ctx: &Context<'_>,
    downstream: &mut Downstream<'_>,
    is_known: bool,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let fields = &ctx.request.head.headers;
    let expects = fields.contains_key(EXPECT);
    let mut body = Zeroizing::new(Vec::new());
    if downstream.is_body_done() {
        return Ok(body);
    }
    if content_length(fields).is_some_and(|length| length > LONGEST as u64) {
        return Err(Error::BodyTooLarge);
    }
    let places = if is_known { &KNOWN } else { &UNKNOWN };
    let Ok(_place) = places.try_acquire() else {
        return Err(Error::Busy(FULL));
    };
    if expects && is_known {
        send_continue(downstream);
    }
    match timeout(BODY_TIME, fill(downstream, &mut body)).await {
        Ok(read) => read.map(|()| body),
        // A client that waited for the 100 in vain is told why.
        Err(_) if expects && !is_known && body.is_empty() => Err(Error::UnknownCaller),
        Err(_) => Err(Error::BodyTimeout),
    }
}

async fn fill(downstream: &mut Downstream<'_>, body: &mut Vec<u8>) -> Result<(), Error> {
    // Allocated once: the memory that a growing buffer leaves behind is not wiped.
    body.reserve_exact(LONGEST);
    loop {
        let event = poll_fn(|cx| {
            // A 100 may wait to be written.
            if let Poll::Ready(Err(lost)) = downstream.poll_drain(cx, &mut false) {
                return Poll::Ready(CallerEvent::Lost(lost));
            }
            downstream.poll_event(cx)
        });
        match event.await {
            CallerEvent::Piece(piece) if body.len() + piece.len() > LONGEST => {
                return Err(Error::BodyTooLarge);
            }
            CallerEvent::Piece(piece) => body.extend_from_slice(&piece),
            CallerEvent::End | CallerEvent::HalfClosed => return Ok(()),
            CallerEvent::Lost(Lost::InvalidChunks) => return Err(Error::INVALID_CHUNKS),
            CallerEvent::Lost(Lost::Gone) => return Err(Error::BodyTimeout),
        }
    }
}
