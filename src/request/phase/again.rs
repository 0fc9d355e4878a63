//! Whether a request may be sent once more, and with which credential.

use http::header::CONTENT_LENGTH;
use pingora::ErrorSource;
use pingora::prelude::{Error as PingoraError, ErrorType};
use pingora::proxy::Session;

use crate::request::vendor::Vendor;
use crate::request::{Context, REPLAYABLE};

/// After a 401: rejects what was sent and waits for something newer. `true`: replay.
pub(in crate::request) async fn newer_credential(
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
    ctx.replayed = true;
    ctx.replaying = true;
    true
}

/// Whether the whole body can be sent again: what has been read of it is there, and what is still
/// to come will be.
pub(in crate::request) fn replayable(session: &Session) -> bool {
    let announced = session
        .req_header()
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    !session.as_ref().retry_buffer_truncated()
        && announced.is_none_or(|length| length <= REPLAYABLE)
}

/// Whether this is the end of a connection, rather than a vendor that is slow, breaks the protocol
/// or is not to blame.
pub(in crate::request) fn is_broken(error: &PingoraError) -> bool {
    use ErrorType::{ConnectionClosed, H2Downgrade, H2Error, ReadError, WriteError};

    *error.esource() == ErrorSource::Upstream
        && matches!(
            error.etype(),
            ConnectionClosed | ReadError | WriteError | H2Error | H2Downgrade
        )
}

/// Whether the request's head was never whole at the vendor: pingora writes it before it looks at a
/// body, and half a head is no request.
pub(in crate::request) fn is_unsent(error: &PingoraError, ctx: &Context) -> bool {
    *error.etype() == ErrorType::WriteError && !ctx.head_sent
}
