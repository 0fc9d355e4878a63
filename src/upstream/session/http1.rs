//! A request to a vendor over HTTP/1.1.

use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::io::AsyncReadExt;

use super::{Broken, BrokenKind, VendorEvent};
use crate::http1::body::{BodyReader, BodyWriter};
use crate::http1::head::{end_of_head, keeps_connection, read_response, write_request};
use crate::http1::output::Output;
use crate::late_client_auth::described;
use crate::upstream::connection::Connection;
use crate::upstream::keepalive;

/// Longest head of a response, bytes.
const MAX_HEAD: usize = 1024 * 1024;
/// Bytes of a head that are read at once.
const HEAD_READ: usize = 4096;
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// One request on a connection.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct VendorHttp1 {
    connection: Connection,
    input: BytesMut,
    output: Output,
    state: State,
    /// How much of `input` has been searched for the end of a head.
    looked_at: usize,
    last_read: usize,
    is_head: bool,
    asks_upgrade: bool,
    writer: BodyWriter,
    has_sent: bool,
    /// The request's end is in `output`, or written.
    is_request_done: bool,
    write_failed: Option<String>,
    /// How long the vendor keeps the connection, where it says so.
    kept_for: Option<Duration>,
    /// The connection can serve another request once both sides are done.
    is_reusable: bool,
}

/// What comes next from the vendor.
#[derive(Debug)]
enum State {
    Head,
    Body(BodyReader),
    Upgraded,
    Done,
}

impl VendorHttp1 {
    /// Begins a request on `connection`.
    pub(in crate::upstream) fn new(connection: Connection) -> Self {
        Self {
            connection,
            input: BytesMut::new(),
            output: Output::default(),
            state: State::Head,
            looked_at: 0,
            last_read: 0,
            is_head: false,
            asks_upgrade: false,
            writer: BodyWriter::None,
            has_sent: false,
            is_request_done: false,
            write_failed: None,
            kept_for: None,
            is_reusable: false,
        }
    }

    pub(super) fn send_head(&mut self, head: &RequestHeader) -> Result<(), Broken> {
        self.is_head = head.method == Method::HEAD;
        self.asks_upgrade = head.headers.contains_key(http::header::UPGRADE);
        // A request without a length and a coding has no body (RFC 9112 §6.3).
        self.writer = BodyWriter::announced(&head.headers, BodyWriter::None);
        self.is_request_done = matches!(self.writer, BodyWriter::None | BodyWriter::Length(0));
        if write_request(head, self.output.start()) {
            return Ok(());
        }
        let cause = "the request's target cannot be written";
        Err(Broken::new(BrokenKind::Request, cause))
    }

    pub(super) fn send_piece(&mut self, piece: Bytes) {
        if self.write_failed.is_none() {
            self.writer.write(piece, &mut self.output);
        }
    }

    pub(super) fn send_end(&mut self) {
        self.is_request_done = self.writer.finish(&mut self.output);
    }

    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, progress: &mut bool) -> Poll<()> {
        if self.write_failed.is_some() {
            return Poll::Ready(());
        }
        let io = &mut *self.connection.io;
        let drained = self.output.poll_drain(io, cx, progress);
        self.has_sent |= *progress;
        drained.map(|drained| {
            if let Err(cause) = drained {
                self.output = Output::default();
                self.write_failed = Some(described(&cause));
            }
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.output.is_full()
    }

    pub(super) fn has_sent(&self) -> bool {
        self.has_sent
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<VendorEvent> {
        loop {
            let event = match &mut self.state {
                State::Head => self.take_head(),
                State::Body(reader) => match reader.take(&mut self.input) {
                    Ok(Some(piece)) => Some(VendorEvent::Piece(piece)),
                    Ok(None) if reader.is_done() => Some(VendorEvent::End(None)),
                    Ok(None) => None,
                    Err(_) => {
                        let cause = "the chunks of the response cannot be read";
                        Some(VendorEvent::Broken(Broken::new(
                            BrokenKind::Protocol,
                            cause,
                        )))
                    }
                },
                State::Upgraded if self.input.is_empty() => None,
                State::Upgraded => {
                    let piece = std::mem::take(&mut self.input).freeze();
                    Some(VendorEvent::Piece(piece))
                }
                State::Done => return Poll::Pending,
            };
            if let Some(event) = event {
                return Poll::Ready(self.noted(event));
            }
            let room = match &self.state {
                State::Body(reader) => reader.room(self.last_read),
                State::Upgraded => BodyReader::UntilClose.room(self.last_read),
                State::Head | State::Done => HEAD_READ,
            };
            self.input.reserve(room);
            let reading = self.connection.io.read_buf(&mut self.input);
            let read = ready!(pin!(reading).poll(cx));
            match read {
                Ok(read @ 1..) => self.last_read = read,
                Ok(0) => {
                    let event = self.closed();
                    return Poll::Ready(self.noted(event));
                }
                Err(cause) => {
                    let event = VendorEvent::Broken(self.broken(BrokenKind::Read, &cause));
                    return Poll::Ready(self.noted(event));
                }
            }
        }
    }

    /// Takes the next head off the input; `None`: it is incomplete.
    fn take_head(&mut self) -> Option<VendorEvent> {
        if self.looked_at == 0 {
            let blank = |byte: &u8| matches!(byte, b'\r' | b'\n');
            let blanks = self.input.iter().take_while(|byte| blank(byte)).count();
            self.input.advance(blanks);
        }
        let Some(end) = end_of_head(&self.input, self.looked_at) else {
            self.looked_at = self.input.len();
            return (self.looked_at > MAX_HEAD).then(unreadable);
        };
        let bytes = if end == self.input.len() {
            std::mem::take(&mut self.input)
        } else {
            self.input.split_to(end)
        };
        self.looked_at = 0;
        let Ok(head) = read_response(&bytes.freeze()) else {
            return Some(unreadable());
        };
        Some(self.begin_response(head))
    }

    fn begin_response(&mut self, head: ResponseHeader) -> VendorEvent {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // Who asked for nothing gets no other protocol (RFC 9110 §15.2.2).
            if !self.asks_upgrade || head.version < Version::HTTP_11 {
                let cause = "the vendor switches to a protocol that was not asked for";
                return VendorEvent::Broken(Broken::new(BrokenKind::Protocol, cause));
            }
            self.state = State::Upgraded;
            self.writer = BodyWriter::UntilClose;
            return VendorEvent::Head {
                head: Box::new(head),
                ends: false,
            };
        }
        if head.status.is_informational() {
            return VendorEvent::Interim(Box::new(head));
        }
        let mut head = head;
        let has_coding = head.headers.contains_key(TRANSFER_ENCODING);
        if has_coding {
            // A coding overrides a length (RFC 9112 §6.3).
            head.remove_header(&CONTENT_LENGTH);
        }
        let reader = BodyReader::of_response(head.status, &head.headers, self.is_head);
        self.is_reusable = keeps_connection(head.version, &head.headers)
            // RFC 9112 §6.1.
            && !(has_coding && head.version < Version::HTTP_11)
            && !matches!(reader, BodyReader::UntilClose);
        self.kept_for = head.headers.get(KEEP_ALIVE).and_then(keepalive::reusable);
        let ends = reader.is_done();
        self.state = if ends {
            State::Done
        } else {
            State::Body(reader)
        };
        VendorEvent::Head {
            head: Box::new(head),
            ends,
        }
    }

    /// Returns what the end of the connection means.
    fn closed(&mut self) -> VendorEvent {
        self.is_reusable = false;
        match self.state {
            State::Body(BodyReader::UntilClose) | State::Upgraded => VendorEvent::End(None),
            State::Head if self.input.is_empty() => {
                let cause = io::Error::other("the vendor closed it");
                VendorEvent::Broken(self.broken(BrokenKind::Closed, &cause))
            }
            State::Head | State::Body(_) | State::Done => {
                let cause = io::Error::other("the vendor closed it within its response");
                VendorEvent::Broken(self.broken(BrokenKind::Closed, &cause))
            }
        }
    }

    /// Returns the failure. Where nothing of a response came, an earlier failure to write is its
    /// cause.
    fn broken(&mut self, kind: BrokenKind, cause: &io::Error) -> Broken {
        match self.write_failed.take() {
            Some(cause) if matches!(self.state, State::Head) => {
                Broken::new(BrokenKind::Write, cause)
            }
            _ => Broken::new(kind, described(cause)),
        }
    }

    fn noted(&mut self, event: VendorEvent) -> VendorEvent {
        match event {
            VendorEvent::End(_) => self.state = State::Done,
            VendorEvent::Broken(_) => {
                self.state = State::Done;
                self.is_reusable = false;
            }
            VendorEvent::Interim(_) | VendorEvent::Head { .. } | VendorEvent::Piece(_) => {}
        }
        event
    }

    /// Takes the rest of a response that has come whole already. The connection of a response that
    /// is not wanted can then be used again.
    pub(crate) fn skip_response(&mut self) {
        while let State::Body(reader) = &mut self.state {
            match reader.take(&mut self.input) {
                Ok(Some(_)) => {}
                Ok(None) if reader.is_done() => self.state = State::Done,
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Returns the connection when it can serve another request, and how long the vendor keeps it:
    /// both sides are done, and nothing has come that nobody asked for.
    pub(in crate::upstream) fn into_reusable(self) -> Option<(Connection, Option<Duration>)> {
        let is_read = match &self.state {
            State::Done => true,
            State::Body(reader) => reader.is_done(),
            State::Head | State::Upgraded => false,
        };
        let is_done = is_read
            && self.is_request_done
            && self.output.is_empty()
            && self.write_failed.is_none()
            && self.input.is_empty();
        (is_done && self.is_reusable).then_some((self.connection, self.kept_for))
    }
}

fn unreadable() -> VendorEvent {
    let cause = "the vendor's response has unreadable headers";
    VendorEvent::Broken(Broken::new(BrokenKind::Protocol, cause))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::fd::AsRawFd;
    use std::sync::Arc;

    use pingora::protocols::SocketDigest;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A request, and a vendor that has sent `response` and closed its side where `closes`.
    async fn attempt(request: &str, response: &str, closes: bool) -> (VendorHttp1, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(ours, listener.accept());
        let (ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
        theirs.write_all(response.as_bytes()).await.unwrap();
        if closes {
            theirs.shutdown().await.unwrap();
        }
        let socket = Arc::new(SocketDigest::from_raw_fd(ours.as_raw_fd()));
        let io = Box::new(ours);
        let mut attempt = VendorHttp1::new(Connection { io, socket });
        let (method, fields) = request.split_once('|').unwrap();
        let mut head = RequestHeader::build(method, b"/", None).unwrap();
        for field in fields.split_terminator(',') {
            let (name, value) = field.split_once(':').unwrap();
            head.append_header(name.to_owned(), value).unwrap();
        }
        attempt.send_head(&head).unwrap();
        let mut sent = false;
        poll_fn(|cx| attempt.poll_drain(cx, &mut sent)).await;
        assert!(sent && attempt.has_sent());
        (attempt, theirs)
    }

    /// What comes of the response, until its end: a word for each event.
    async fn events(attempt: &mut VendorHttp1) -> String {
        let mut words = Vec::new();
        loop {
            let event = poll_fn(|cx| attempt.poll_event(cx)).await;
            let (word, last) = match event {
                VendorEvent::Interim(head) => (head.status.to_string(), false),
                VendorEvent::Head { head, ends } => (head.status.as_str().to_owned(), ends),
                VendorEvent::Piece(piece) => (String::from_utf8(piece.to_vec()).unwrap(), false),
                VendorEvent::End(_) => ("end".to_owned(), true),
                VendorEvent::Broken(broken) => (broken.kind.to_string(), true),
            };
            words.push(word);
            if last {
                return words.join(" ");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_is_used_again_only_when_both_sides_are_done_and_agree() {
        const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        for (request, response, heard, reusable) in [
            ("GET|", OK, "200 ok end", true),
            ("GET|", "\r\nHTTP/1.1 204 No\r\n\r\n", "204", true),
            (
                "HEAD|",
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
                "200",
                true,
            ),
            (
                "GET|",
                "HTTP/1.1 304 Not\r\nContent-Length: 2\r\n\r\n",
                "304",
                true,
            ),
            (
                "GET|",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
                "200 ok end",
                true,
            ),
            // Who closes, or would have to, and who speaks another version.
            (
                "GET|",
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                "200",
                false,
            ),
            (
                "GET|",
                "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
                "200",
                false,
            ),
            (
                "GET|",
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
                "200",
                true,
            ),
            (
                "GET|",
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "200 end",
                false,
            ),
            // More than was asked for.
            (
                "GET|",
                "HTTP/1.1 204 No\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                "204",
                false,
            ),
            ("HEAD|", OK, "200", false),
            // The request has not been sent to its end.
            ("POST|Content-Length:3", OK, "200 ok end", false),
            ("POST|Transfer-Encoding:chunked", OK, "200 ok end", false),
            ("POST|Content-Length:0", OK, "200 ok end", true),
            (
                "GET|",
                "HTTP/1.1 103 Hi\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
                "103 Early Hints 204",
                true,
            ),
        ] {
            let (mut attempt, theirs) = attempt(request, response, false).await;
            assert_eq!(events(&mut attempt).await, heard, "{request} {response:?}");
            let kept = attempt.into_reusable().is_some();
            assert_eq!(kept, reusable, "{request} {response:?}");
            drop(theirs);
        }
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_an_end_only_where_nothing_else_can_be() {
        for (request, response, heard) in [
            (
                "GET|",
                "HTTP/1.1 200 OK\r\n\r\nto the end",
                "200 to the end end",
            ),
            ("GET|", "", "connection closed"),
            ("GET|", "HTTP/1.1 200 OK\r\nContent-Le", "connection closed"),
            (
                "GET|",
                "HTTP/1.1 103 Hi\r\n\r\n",
                "103 Early Hints connection closed",
            ),
            (
                "GET|",
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
                "200 ab connection closed",
            ),
            (
                "GET|",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
                "200 ab connection closed",
            ),
            (
                "GET|",
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n\r\n",
                "200 protocol error",
            ),
            ("GET|", "not HTTP\r\n\r\n", "protocol error"),
            // Nobody has asked for another protocol.
            (
                "GET|",
                "HTTP/1.1 101 Switching Protocols\r\n\r\nbytes",
                "protocol error",
            ),
            (
                "GET|Upgrade:websocket",
                "HTTP/1.1 101 Switching Protocols\r\n\r\nbytes",
                "101 bytes end",
            ),
        ] {
            let (mut attempt, _theirs) = attempt(request, response, true).await;
            assert_eq!(events(&mut attempt).await, heard, "{request} {response:?}");
            assert!(attempt.into_reusable().is_none(), "{request} {response:?}");
        }
    }

    /// What the vendor said before it closed is worth more than that we could not write.
    #[tokio::test]
    async fn a_failed_write_is_not_the_end_of_the_response() {
        let response = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno";
        let (mut attempt, theirs) = attempt("POST|Content-Length:1000000", response, false).await;
        drop(theirs);
        let mut sent = false;
        for _ in 0..1000 {
            attempt.send_piece(Bytes::from(vec![b'x'; 1000]));
            poll_fn(|cx| attempt.poll_drain(cx, &mut sent)).await;
            if attempt.write_failed.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(attempt.write_failed.is_some());
        let heard = events(&mut attempt).await;
        assert!(attempt.into_reusable().is_none());
        // The system may have dropped what came before the reset.
        assert!(["413 no end", "write error"].contains(&&*heard), "{heard}");
    }
}
