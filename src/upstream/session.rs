//! The vendor's side of one attempt, over either version of HTTP, with the same few verbs.

mod http1;
mod http2;

use std::fmt;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};

pub(crate) use self::http1::VendorHttp1;
pub(crate) use self::http2::VendorHttp2;
use super::http2::Refusal;

/// What a vendor sends.
#[derive(Debug)]
pub(crate) enum VendorEvent {
    /// An interim response, other than a 101.
    Interim(Box<ResponseHeader>),
    /// The head of the final response, or a 101. `ends`: no body follows.
    Head {
        /// The head.
        head: Box<ResponseHeader>,
        /// No body follows.
        ends: bool,
    },
    /// Some of the body, or bytes of the protocol that was upgraded to. Never empty.
    Piece(Bytes),
    /// The response is complete.
    End(Option<HeaderMap>),
    /// Nothing more can be read.
    Broken(Broken),
}

/// The reason why a vendor's response is missing or incomplete.
#[derive(Debug)]
pub(crate) struct Broken {
    /// What has happened.
    pub(crate) kind: BrokenKind,
    /// The cause in words. Nothing that the vendor has sent is in it.
    pub(crate) cause: String,
    /// What it says about the request (HTTP/2 alone).
    pub(crate) refusal: Option<Refusal>,
}

/// What has happened to a vendor's connection or stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BrokenKind {
    /// The vendor closed the connection.
    Closed,
    /// Reading failed.
    Read,
    /// Writing failed, and no response came.
    Write,
    /// The stream or its connection ended with an error of HTTP/2.
    Http2,
    /// A PING was not answered.
    PingTimedOut,
    /// The vendor breaks the protocol.
    Protocol,
    /// The request cannot be written as it is: a defect of ours.
    Request,
}

impl Broken {
    /// Returns a failure that says nothing about the request.
    fn new(kind: BrokenKind, cause: impl Into<String>) -> Self {
        Self {
            kind,
            cause: cause.into(),
            refusal: None,
        }
    }

    /// Tells whether the connection broke, rather than that the vendor breaks the protocol.
    pub(crate) fn is_connection(&self) -> bool {
        match self.kind {
            BrokenKind::Closed
            | BrokenKind::Read
            | BrokenKind::Write
            | BrokenKind::Http2
            | BrokenKind::PingTimedOut => true,
            BrokenKind::Protocol | BrokenKind::Request => false,
        }
    }
}

impl fmt::Display for BrokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "connection closed",
            Self::Read => "read error",
            Self::Write => "write error",
            Self::Http2 => "HTTP/2 error",
            Self::PingTimedOut => "PING timed out",
            Self::Protocol => "protocol error",
            Self::Request => "internal error",
        })
    }
}

/// The vendor's side of one attempt.
#[derive(Debug)]
pub(crate) enum UpstreamSession {
    /// A connection over HTTP/1.1.
    Http1(Box<VendorHttp1>),
    /// A stream of HTTP/2.
    Http2(Box<VendorHttp2>),
}

impl UpstreamSession {
    /// Tells whether it is a stream of HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    /// Sends the request's head. `ends`: it has no body.
    ///
    /// # Errors
    /// [`Broken`] if the connection does not take it.
    pub(crate) fn send_head(&mut self, head: RequestHeader, ends: bool) -> Result<(), Broken> {
        match self {
            Self::Http1(http1) => http1.send_head(&head),
            Self::Http2(http2) => http2.send_head(head, ends),
        }
    }

    /// Sends a piece of the body, or bytes of the protocol that was upgraded to.
    pub(crate) fn send_piece(&mut self, piece: Bytes) {
        match self {
            Self::Http1(http1) => http1.send_piece(piece),
            Self::Http2(http2) => http2.send_piece(piece),
        }
    }

    /// Sends the end of the body.
    pub(crate) fn send_end(&mut self) {
        match self {
            Self::Http1(http1) => http1.send_end(),
            Self::Http2(http2) => http2.send_end(),
        }
    }

    /// Writes what waits to be written, as far as the vendor takes it. `progress` is set when it
    /// took some. A write that fails is not the end: the response may still come, and its absence
    /// is told by [`Self::poll_event`].
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, progress: &mut bool) -> Poll<()> {
        match self {
            Self::Http1(http1) => http1.poll_drain(cx, progress),
            Self::Http2(http2) => http2.poll_drain(cx, progress),
        }
    }

    /// Tells whether so much waits to be written that the caller should not be read.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.is_full(),
            Self::Http2(http2) => http2.is_full(),
        }
    }

    /// Tells whether some of the request has been written.
    pub(crate) fn has_sent(&self) -> bool {
        match self {
            Self::Http1(http1) => http1.has_sent(),
            // h2 writes by itself, at any time.
            Self::Http2(_) => true,
        }
    }

    /// Waits for what the vendor sends next. Nothing follows [`VendorEvent::End`] and
    /// [`VendorEvent::Broken`].
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<VendorEvent> {
        match self {
            Self::Http1(http1) => http1.poll_event(cx),
            Self::Http2(http2) => http2.poll_event(cx),
        }
    }

    /// Gives the request up. `silent`: the vendor has sent nothing for too long, so that its
    /// connection may be dead.
    pub(crate) fn cancel(&mut self, silent: bool) {
        match self {
            // The connection ends with the session.
            Self::Http1(_) => {}
            Self::Http2(http2) => http2.cancel(silent),
        }
    }
}
