//! A request to a vendor over HTTP/2: a stream of one of pingora's connections.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use pingora::http::RequestHeader;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::upstreams::peer::HttpPeer;

use super::{Broken, BrokenKind, VendorEvent};
use crate::http2_output::Http2Output;
use crate::upstream::connector::Connector;
use crate::upstream::http2::Refusal;
use crate::wording::describe;

/// One stream. It goes back to its connection when it is dropped.
pub(crate) struct VendorHttp2 {
    /// `None` once it has gone back.
    session: Option<Http2Session>,
    connector: Arc<Connector>,
    /// Whose connection it is, for the pools.
    peer: Box<HttpPeer>,
    /// `None` before the head.
    send: Option<SendStream<Bytes>>,
    output: Http2Output,
    write_failed: bool,
    state: State,
}

/// What comes next from the vendor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body,
    Trailers,
    Done,
}

impl fmt::Debug for VendorHttp2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VendorHttp2").finish_non_exhaustive()
    }
}

impl VendorHttp2 {
    /// Begins a request on `session`, a stream of a connection to `peer`.
    pub(crate) fn new(
        session: Http2Session,
        connector: Arc<Connector>,
        peer: Box<HttpPeer>,
    ) -> Self {
        Self {
            session: Some(session),
            connector,
            peer,
            send: None,
            output: Http2Output::default(),
            write_failed: false,
            state: State::Head,
        }
    }

    pub(super) fn send_head(&mut self, head: RequestHeader, ends: bool) -> Result<(), Broken> {
        let Some(session) = &mut self.session else {
            return Err(Broken::new(BrokenKind::Request, "the stream has gone back"));
        };
        if let Err(error) = session.write_request_header(Box::new(head), ends) {
            let refusal = Refusal::of(&error);
            let cause = error.root_cause().to_string();
            return Err(Broken {
                refusal,
                ..Broken::new(BrokenKind::Http2, describe(&cause))
            });
        }
        self.send = session.take_request_body_writer();
        if ends {
            self.output.ended_with_head();
        }
        Ok(())
    }

    pub(super) fn send_piece(&mut self, piece: Bytes) {
        if !self.write_failed {
            self.output.push(piece);
        }
    }

    pub(super) fn send_end(&mut self) {
        self.output.push_end(None);
    }

    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, progress: &mut bool) -> Poll<()> {
        let Some(send) = self.send.as_mut().filter(|_| !self.write_failed) else {
            return Poll::Ready(());
        };
        let drained = ready!(self.output.poll_drain(send, cx, progress));
        if drained.is_err() {
            self.write_failed = true;
            self.output = Http2Output::default();
        }
        Poll::Ready(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.output.is_full()
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<VendorEvent> {
        let Some(session) = &mut self.session else {
            return Poll::Pending;
        };
        let event = loop {
            match self.state {
                State::Head => match ready!(session.poll_read_response_header(cx)) {
                    Ok(()) => break head_of(session),
                    Err(error) => break VendorEvent::Broken(broken(session, &error)),
                },
                State::Body => match ready!(session.poll_read_response_body(cx)) {
                    Some(Ok(piece)) if piece.is_empty() => {}
                    Some(Ok(piece)) => break VendorEvent::Piece(piece),
                    Some(Err(error)) => break VendorEvent::Broken(broken(session, &error)),
                    None => self.state = State::Trailers,
                },
                State::Trailers => {
                    let trailers = ready!(pin!(session.read_trailers()).poll(cx));
                    break match trailers {
                        Ok(trailers) => VendorEvent::End(trailers),
                        Err(error) => VendorEvent::Broken(broken_by(session, &error)),
                    };
                }
                State::Done => return Poll::Pending,
            }
        };
        self.state = match &event {
            VendorEvent::Head { ends: false, .. } | VendorEvent::Piece(_) => State::Body,
            VendorEvent::Interim(_) => State::Head,
            VendorEvent::Head { ends: true, .. } | VendorEvent::End(_) | VendorEvent::Broken(_) => {
                State::Done
            }
        };
        Poll::Ready(event)
    }

    pub(crate) fn cancel(&mut self, silent: bool) {
        if self.state == State::Done && self.output.is_ended() {
            return;
        }
        if let Some(send) = &mut self.send {
            send.send_reset(Reason::CANCEL);
        }
        if let Some(session) = self.session.as_ref().filter(|_| silent) {
            session.conn.mark_shutdown();
        }
    }
}

impl Drop for VendorHttp2 {
    /// A stream goes back whatever has become of it: its connection counts the streams in use.
    fn drop(&mut self) {
        self.send = None;
        if let Some(session) = self.session.take() {
            self.connector.release_http2(session, &self.peer);
        }
    }
}

/// Returns the head that has been read.
fn head_of(session: &mut Http2Session) -> VendorEvent {
    // `END_STREAM` may hide that the stream ended with an error.
    let ends = match session.check_response_end_or_error() {
        Ok(ends) => ends,
        Err(error) => return VendorEvent::Broken(broken_by(session, &error)),
    };
    match session.response_header() {
        Some(head) => VendorEvent::Head {
            head: Box::new(head.clone()),
            ends,
        },
        None => VendorEvent::Broken(Broken::new(BrokenKind::Http2, "the response has no head")),
    }
}

/// Returns what `error` means.
fn broken(session: &Http2Session, error: &h2::Error) -> Broken {
    if session.conn.ping_timedout() {
        return Broken::new(BrokenKind::PingTimedOut, "a PING was not answered");
    }
    Broken {
        refusal: Refusal::of_http2(error),
        ..Broken::new(BrokenKind::Http2, describe(&error.to_string()))
    }
}

/// Returns what `error`, an error of h2's in one of pingora's, means.
fn broken_by(session: &Http2Session, error: &pingora::Error) -> Broken {
    match error.root_cause().downcast_ref::<h2::Error>() {
        Some(cause) => broken(session, cause),
        None => Broken::new(BrokenKind::Http2, describe(&error.root_cause().to_string())),
    }
}
