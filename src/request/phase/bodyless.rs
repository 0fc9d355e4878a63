//! Requests without a body, on their way to a vendor over HTTP/1.1.

use std::time::Duration;

use http::Method;
use http::header::{CONTENT_LENGTH, HeaderValue};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use tokio::time::timeout;

/// Time to wait for the first piece of a body over HTTP/2, so that its absence can be
/// announced. Most clients send it with the head.
const FIRST_PIECE: Duration = Duration::from_millis(5);

/// Sends `Content-Length: 0` where a method that has a body comes without one (RFC 9110 §8.6). Many
/// servers answer 411 otherwise.
pub(in crate::request) async fn announce_empty_body(
    session: &mut Session,
    request: &mut RequestHeader,
) -> pingora::Result<()> {
    if !matches!(request.method, Method::POST | Method::PUT | Method::PATCH)
        || request.headers.contains_key(CONTENT_LENGTH)
    {
        return Ok(());
    }
    let caller = session.as_downstream_mut();
    if caller.is_http2() && !caller.is_body_done() && caller.body_bytes_read() == 0 {
        // Some clients end an empty body with a frame of its own. Whatever is read of a body goes
        // into the buffer that is sent first, as for a second attempt.
        caller.enable_retry_buffering();
        if let Ok(Err(gone)) = timeout(FIRST_PIECE, caller.read_request_body()).await {
            return Err(gone.into_down());
        }
    }
    if caller.is_body_empty() {
        request.insert_header("Content-Length", HeaderValue::from_static("0"))?;
    }
    Ok(())
}
