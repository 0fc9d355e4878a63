//! What waits for the window of a stream of HTTP/2, for the caller's side and the vendor's alike.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

/// What may wait before the other side is no longer read, bytes.
const FULL: usize = 64 * 1024;

/// Pieces of a body, and its end. Adding to it never waits, as with [`crate::http1::output`].
#[derive(Debug, Default)]
pub(crate) struct Http2Output {
    pieces: VecDeque<Bytes>,
    /// Their length.
    length: usize,
    /// What goes behind them.
    end: End,
}

/// The end of a body.
#[derive(Debug, Default)]
enum End {
    /// It is not there yet.
    #[default]
    Open,
    /// It waits, with trailers or without.
    Waiting(Option<HeaderMap>),
    Sent,
}

impl Http2Output {
    /// Adds a piece. Those of no bytes say nothing, and those behind the end have no place.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() && matches!(self.end, End::Open) {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Adds the end.
    pub(crate) fn push_end(&mut self, trailers: Option<HeaderMap>) {
        if matches!(self.end, End::Open) {
            self.end = End::Waiting(trailers);
        }
    }

    /// Notes that the head of the message was its end.
    pub(crate) fn ended_with_head(&mut self) {
        self.end = End::Sent;
    }

    /// Leaves out the end, which has not been sent yet.
    pub(crate) fn drop_end(&mut self) {
        if matches!(self.end, End::Waiting(_)) {
            self.end = End::Open;
        }
    }

    /// Tells whether the end has been sent.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.end, End::Sent)
    }

    /// Tells whether so much waits that the other side should not be read.
    pub(crate) fn is_full(&self) -> bool {
        self.length >= FULL
    }

    /// Sends what the window has room for. Ready when nothing waits any more; `progress` is set
    /// when some of it has left.
    pub(crate) fn poll_drain(
        &mut self,
        send: &mut SendStream<Bytes>,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), h2::Error>> {
        while let Some(piece) = self.pieces.front_mut() {
            send.reserve_capacity(piece.len());
            let room = match send.capacity() {
                0 => match ready!(send.poll_capacity(cx)) {
                    Some(room) => room?,
                    None => return Poll::Ready(Err(h2::Reason::STREAM_CLOSED.into())),
                },
                room => room,
            };
            let data = piece.split_to(room.min(piece.len()));
            if piece.is_empty() {
                self.pieces.pop_front();
            }
            if data.is_empty() {
                continue;
            }
            self.length -= data.len();
            *progress = true;
            let is_last = self.pieces.is_empty() && matches!(self.end, End::Waiting(None));
            send.send_data(data, is_last)?;
            if is_last {
                self.end = End::Sent;
            }
        }
        if let End::Waiting(trailers) = &mut self.end {
            let trailers = trailers.take();
            self.end = End::Sent;
            match trailers {
                None => send.send_data(Bytes::new(), true)?,
                Some(trailers) => send.send_trailers(trailers)?,
            }
        }
        Poll::Ready(Ok(()))
    }
}
