//! What both versions of HTTP have in common on the caller's side: requests, and what callers do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use pingora::http::RequestHeader;
use pingora::protocols::tls::SslDigest;

use super::tls::Handshake;

/// Longest time for a whole request head, and on a new connection for its first byte.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time for which a connection may idle between requests. Longer than common clients keep a
/// connection, so that the client is the one to close.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(75);

/// A request whose head has been read.
#[derive(Debug)]
pub(crate) struct Request {
    /// The head.
    pub(crate) head: RequestHeader,
    /// The bytes of the head over HTTP/1; empty over HTTP/2, which has none.
    pub(crate) raw: Bytes,
    /// The first line has characters that a parser would repair.
    pub(crate) odd_first_line: bool,
}

impl Request {
    /// Tells whether it came over HTTP/2.
    pub(crate) fn is_http2(&self) -> bool {
        self.head.version == Version::HTTP_2
    }
}

/// What is known of a connection since it was made.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The caller's address.
    pub(crate) client: SocketAddr,
    /// The TLS handshake; `None` for plaintext.
    pub(crate) tls: Option<Arc<SslDigest>>,
}

impl Peer {
    /// Returns the facts of the TLS handshake.
    pub(crate) fn handshake(&self) -> Option<&Handshake> {
        self.tls.as_deref()?.extension.get::<Handshake>()
    }
}

/// What a caller does while its request is served.
#[derive(Debug)]
pub(crate) enum CallerEvent {
    /// Some of the body, or bytes of the protocol that was upgraded to. Never empty.
    Piece(Bytes),
    /// The body is complete.
    End,
    /// The caller will send nothing more, and may still read.
    HalfClosed,
    /// The connection or the stream has ended.
    Lost(Lost),
}

/// The reason why no more can be read from a caller, or written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It has left.
    Gone,
    /// The chunks of its body cannot be read.
    InvalidChunks,
}
