//! Logins of vendors' own clients, answered here: `login: stub`.
//!
//! The key may be in the body, so bodies are read before the caller is known. Their number, size
//! and time are bounded.

use std::time::Duration;

use http::header::{EXPECT, TRANSFER_ENCODING};
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Admitted;
use crate::config::LoginShape;
use crate::error::Error;
use crate::http_fields::content_length;
use crate::request::caller::Identification;
use crate::request::caller::token::Mint;
use crate::request::login::{self, LONGEST, Posted};
use crate::request::vendor::Vendor;
use crate::request::{Context, watched_stream};

/// Longest time for a login's body. At the rate of other bodies the largest one would take longer.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Places for bodies whose sender the headers do not tell: 4 MiB in all.
static UNKNOWN: Semaphore = Semaphore::const_new(512);
/// Places for bodies whose sender is known: these logins go on when strangers fill the others.
static KNOWN: Semaphore = Semaphore::const_new(512);

const FULL: &str = "As many logins are being read as the proxy reads at a time.";

/// Answers a login, or a call that ends one.
pub(super) async fn log_in(
    session: &mut Session,
    ctx: &mut Context,
    shape: LoginShape,
    vendor: &Vendor,
    mut found: Identification,
) -> Result<Admitted, Error> {
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
    let body = read_body(session, is_known).await?;
    let head = session.req_header();
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
        return Ok(Admitted::LoggedIn(login::ended(shape), None));
    };
    let (status, body) = login::respond(shape, &caller, login, &posted, mint);
    Ok(Admitted::LoggedIn(status, body))
}

/// Reads the body of a login. `is_known`: the headers identify the sender. Others are not asked to
/// send by a 100: RFC 9110 §10.1.1 lets them send without one, and clients do so within seconds.
async fn read_body(session: &mut Session, is_known: bool) -> Result<Zeroizing<Vec<u8>>, Error> {
    let fields = &session.req_header().headers;
    let expects = fields.contains_key(EXPECT);
    let content_length = content_length(fields);
    let chunked = fields.contains_key(TRANSFER_ENCODING);
    let mut body = Zeroizing::new(Vec::new());
    if session.as_downstream_mut().is_body_done() {
        return Ok(body);
    }
    if content_length.is_some_and(|length| length > LONGEST as u64) {
        return Err(Error::BodyTooLarge);
    }
    if let Some(stream) = watched_stream(session) {
        if let Some(length) = content_length {
            stream.body_has(length);
        } else if chunked {
            stream.body_is_chunked();
        }
    }
    let places = if is_known { &KNOWN } else { &UNKNOWN };
    let Ok(_place) = places.try_acquire() else {
        return Err(Error::Busy(FULL));
    };
    let downstream = session.as_downstream_mut();
    if expects && is_known {
        let written = downstream.write_continue_response().await;
        written.map_err(|_| Error::BodyTimeout)?;
    }
    match timeout(BODY_TIME, fill(downstream, &mut body)).await {
        Ok(read) => read.map(|()| body),
        // A client that waited for the 100 in vain is told why.
        Err(_) if expects && !is_known && body.is_empty() => Err(Error::UnknownCaller),
        Err(_) => Err(Error::BodyTimeout),
    }
}

async fn fill(downstream: &mut ServerSession, body: &mut Vec<u8>) -> Result<(), Error> {
    // Allocated once: the memory that a growing buffer leaves behind is not wiped.
    body.reserve_exact(LONGEST);
    loop {
        match downstream.read_request_body().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > LONGEST => {
                return Err(Error::BodyTooLarge);
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(()),
            Err(_) => return Err(Error::BodyTimeout),
        }
    }
}
