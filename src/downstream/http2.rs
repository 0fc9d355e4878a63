//! One request over HTTP/2: a stream of a caller's connection.

use std::fmt;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode, Version, request};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::date::get_cached_date;

use super::request::{CallerEvent, Lost, Request};
use crate::http2_output::Http2Output;

/// A stream.
pub(crate) struct Http2 {
    body: RecvStream,
    /// The end of the body has been told, or there is none.
    is_end_told: bool,
    respond: SendResponse<Bytes>,
    /// `None` before the final response's head.
    send: Option<SendStream<Bytes>>,
    output: Http2Output,
    pub(super) status: Option<StatusCode>,
    pub(super) body_in: u64,
    pub(super) body_out: u64,
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2").finish_non_exhaustive()
    }
}

impl Http2 {
    /// Returns an accepted stream, and its request.
    pub(crate) fn new(
        head: request::Parts,
        body: RecvStream,
        respond: SendResponse<Bytes>,
    ) -> (Self, Request) {
        let mut head = RequestHeader::from(head);
        head.set_version(Version::HTTP_2);
        let request = Request {
            head,
            raw: Bytes::new(),
            odd_first_line: false,
        };
        let stream = Self {
            is_end_told: body.is_end_stream(),
            body,
            respond,
            send: None,
            output: Http2Output::default(),
            status: None,
            body_in: 0,
            body_out: 0,
        };
        (stream, request)
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<CallerEvent> {
        while !self.is_end_told {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(piece)) => {
                    // The loop reads no more than it can pass on.
                    let _ = self.body.flow_control().release_capacity(piece.len());
                    if !piece.is_empty() {
                        self.body_in += piece.len() as u64;
                        return Poll::Ready(CallerEvent::Piece(piece));
                    }
                }
                Some(Err(_)) => return Poll::Ready(CallerEvent::Lost(Lost::Gone)),
                // Trailers of a request are not passed on, and may hide that it was cut off.
                None => match ready!(self.body.poll_trailers(cx)) {
                    Ok(_) => {
                        self.is_end_told = true;
                        return Poll::Ready(CallerEvent::End);
                    }
                    Err(_) => return Poll::Ready(CallerEvent::Lost(Lost::Gone)),
                },
            }
        }
        self.poll_reset(cx).map(|()| CallerEvent::Lost(Lost::Gone))
    }

    /// Waits for the caller to reset the stream, or for the end of its connection.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.send {
            Some(send) => send.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(drop)
    }

    pub(super) fn is_body_done(&self) -> bool {
        self.is_end_told
    }

    pub(super) fn send_interim(&mut self, head: &ResponseHeader) {
        if self.status.is_none() {
            // Fails when the caller has left, which is noticed elsewhere.
            let _ = self.respond.send_informational(for_http2(head.clone()));
        }
    }

    pub(super) fn send_head(&mut self, mut head: ResponseHeader, ends: bool) -> Result<(), Lost> {
        self.status = Some(head.status);
        if head.status == StatusCode::NO_CONTENT {
            head.remove_header(&CONTENT_LENGTH);
        }
        if !head.headers.contains_key(DATE) {
            // A date is a valid value.
            let _ = head.insert_header(DATE, get_cached_date());
        }
        let sent = self.respond.send_response(for_http2(head), ends);
        self.send = Some(sent.map_err(|_| Lost::Gone)?);
        if ends {
            self.output.ended_with_head();
        }
        Ok(())
    }

    pub(super) fn send_piece(&mut self, piece: Bytes) {
        self.body_out += piece.len() as u64;
        self.output.push(piece);
    }

    pub(super) fn send_end(&mut self, trailers: Option<HeaderMap>) {
        self.output.push_end(trailers);
    }

    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), Lost>> {
        let Some(send) = &mut self.send else {
            return Poll::Ready(Ok(()));
        };
        let drained = self.output.poll_drain(send, cx, progress);
        drained.map_err(|_| Lost::Gone)
    }

    pub(super) fn is_full(&self) -> bool {
        self.output.is_full()
    }

    /// Leaves out the end: dropped without one, the stream is reset behind what has been sent. A
    /// reset of our own would overtake it.
    pub(super) fn abort(&mut self) {
        self.output.drop_end();
    }
}

/// Returns a response head without what HTTP/2 forbids (RFC 9113 §8.2.2).
fn for_http2(mut head: ResponseHeader) -> Response<()> {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        head.remove_header(&name);
    }
    head.set_version(Version::HTTP_2);
    Response::from_parts(head.into(), ())
}
