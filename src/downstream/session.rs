//! The caller's side of one request, over either version of HTTP, with the same few verbs.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora::http::ResponseHeader;

use super::http1::Http1;
use super::http2::Http2;
use super::request::{CallerEvent, Lost};

/// The caller's side of one request.
#[derive(Debug)]
pub(crate) enum Downstream<'a> {
    /// HTTP/1.0 or 1.1, on a connection that may serve further requests.
    Http1(&'a mut Http1),
    /// A stream of HTTP/2.
    Http2(&'a mut Http2),
}

impl Downstream<'_> {
    /// Waits for what the caller does next. After [`CallerEvent::End`] nothing but its leaving.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<CallerEvent> {
        match self {
            Self::Http1(http1) => http1.poll_event(cx),
            Self::Http2(http2) => http2.poll_event(cx),
        }
    }

    /// Waits for the caller's leaving, while its body is not read. On HTTP/1, where bytes of the body
    /// may be before the end of the connection, it is asked for at intervals, see
    /// [`Self::has_left`].
    pub(crate) fn poll_leaving(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Http1(_) => Poll::Pending,
            Self::Http2(http2) => http2.poll_reset(cx),
        }
    }

    /// Tells whether the caller has closed its connection, whatever is still to be read from it.
    pub(crate) fn has_left(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.has_left(),
            Self::Http2(_) => false,
        }
    }

    /// Tells whether the caller will send nothing more on this connection: it has closed its side,
    /// or has left.
    pub(crate) fn has_finished_sending(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.is_closed,
            Self::Http2(_) => false,
        }
    }

    /// Tells whether the whole body has been read.
    pub(crate) fn is_body_done(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.is_body_done(),
            Self::Http2(http2) => http2.is_body_done(),
        }
    }

    /// Returns the bytes of the body that have been read.
    pub(crate) fn body_in(&self) -> u64 {
        match self {
            Self::Http1(http1) => http1.body_in,
            Self::Http2(http2) => http2.body_in,
        }
    }

    /// Returns the bytes of the response's body that have been passed on.
    pub(crate) fn body_out(&self) -> u64 {
        match self {
            Self::Http1(http1) => http1.body_out,
            Self::Http2(http2) => http2.body_out,
        }
    }

    /// Returns the status of the response once its head is on its way; of a final one, or 101.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Http1(http1) => http1.status,
            Self::Http2(http2) => http2.status,
        }
    }

    /// Makes this the last request of its connection. Without effect over HTTP/2.
    pub(crate) fn close_afterwards(&mut self) {
        if let Self::Http1(http1) = self {
            http1.keep_alive = false;
        }
    }

    /// Sends an interim response. Callers of HTTP/1.0 know none (RFC 9110 §15.2).
    pub(crate) fn send_interim(&mut self, head: &ResponseHeader) {
        match self {
            Self::Http1(http1) => http1.send_interim(head),
            Self::Http2(http2) => http2.send_interim(head),
        }
    }

    /// Sends the head of the final response, or a 101. `ends`: no body follows.
    ///
    /// # Errors
    /// [`Lost`] if the caller has left.
    pub(crate) fn send_head(&mut self, head: ResponseHeader, ends: bool) -> Result<(), Lost> {
        match self {
            Self::Http1(http1) => {
                http1.send_head(head, ends);
                Ok(())
            }
            Self::Http2(http2) => http2.send_head(head, ends),
        }
    }

    /// Sends a piece of the body.
    pub(crate) fn send_piece(&mut self, piece: Bytes) {
        match self {
            Self::Http1(http1) => http1.send_piece(piece),
            Self::Http2(http2) => http2.send_piece(piece),
        }
    }

    /// Sends the end of the body. HTTP/1 callers get no trailers.
    pub(crate) fn send_end(&mut self, trailers: Option<HeaderMap>) {
        match self {
            Self::Http1(http1) => http1.send_end(),
            Self::Http2(http2) => http2.send_end(trailers),
        }
    }

    /// Writes what waits to be written, as far as the caller takes it. `progress` is set when it
    /// took some.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), Lost>> {
        match self {
            Self::Http1(http1) => http1.poll_drain(cx, progress),
            Self::Http2(http2) => http2.poll_drain(cx, progress),
        }
    }

    /// Tells whether so much waits to be written that the vendor should not be read.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.is_full(),
            Self::Http2(http2) => http2.is_full(),
        }
    }

    /// Tells whether the caller has all of a response by its framing, so that it need not wait for
    /// the vendor's own end.
    pub(crate) fn has_whole_response(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.has_whole_response(),
            Self::Http2(_) => false,
        }
    }

    /// Ends a response that is incomplete, so that the caller can tell: what has been passed on goes
    /// out, and no end follows.
    pub(crate) fn abort(&mut self) {
        match self {
            Self::Http1(http1) => http1.abort(),
            Self::Http2(http2) => http2.abort(),
        }
    }
}
