//! A caller's connection over HTTP/1.0 or HTTP/1.1: its heads, and the body and the response of the
//! request that is being served.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{fmt, io};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, DATE, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::SocketDigest;
use pingora::protocols::http::date::get_cached_date;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

use super::budget::HeadMemory;
use super::head::Head;
use super::raw_head::{self, request_id};
use super::request::{CallerEvent, HEAD_TIME, KEEPALIVE, Lost, Request};
use crate::alarm::Alarm;
use crate::error::problem::Problem;
use crate::error::{BAD_REQUEST, Error};
use crate::http1::body::{BodyReader, BodyWriter, has_no_body};
use crate::http1::head::{end_of_head, keeps_connection, read_request, write_response};
use crate::http1::output::{Io, Output};

/// The heads of all connections use up their memory, see [`super::budget`].
pub(crate) const TOO_MANY_HEADS: Error = Error::Busy(
    "Long request headers of all callers use all the memory permitted for them; shorter ones are still read.",
);
/// Bytes of a head that are read at once.
const HEAD_READ: usize = 4096;
/// Time limit for the goodbye on a connection: for what is left to write, and for telling a caller
/// that nothing was cut off (RFC 8446 §6.1).
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// States of a TCP connection whose other end has closed it: `TCP_CLOSE` and `TCP_CLOSE_WAIT`.
const CLOSED: [u8; 2] = [7, 8];

/// One connection. Between requests it holds no buffers.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Http1 {
    io: Box<dyn Io>,
    socket: Option<Arc<SocketDigest>>,
    /// What has been read and not been used: a head that comes, a body, further requests.
    input: BytesMut,
    output: Output,
    head_memory: Arc<HeadMemory>,
    /// When the next head must have begun.
    begin_by: Instant,
    /// The caller has closed its side, or will send nothing that we read.
    pub(super) is_closed: bool,

    // Of the request that is being served.
    version: Version,
    is_head: bool,
    reader: BodyReader,
    /// The end of the body has been told.
    is_end_told: bool,
    writer: BodyWriter,
    upgraded: bool,
    /// How much the last read of a body brought.
    last_read: usize,
    /// The connection is to serve further requests.
    pub(super) keep_alive: bool,
    /// The response was broken off.
    aborted: bool,
    pub(super) status: Option<StatusCode>,
    pub(super) body_in: u64,
    pub(super) body_out: u64,
}

/// A head that never became a request.
#[derive(Debug)]
pub(crate) struct RefusedHead {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
    pub(crate) request_id: HeaderValue,
}

impl RefusedHead {
    /// Returns a head refused for `refusal`.
    pub(crate) fn for_error(refusal: Error) -> Self {
        let verdict = refusal.verdict();
        Self {
            status: verdict.status,
            reason: verdict.reason,
            request_id: request_id(&HeaderMap::new()),
        }
    }

    /// Returns a head that was not complete in time.
    fn too_slow() -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            reason: BAD_REQUEST,
            request_id: request_id(&HeaderMap::new()),
        }
    }
}

/// The outcome of reading a head.
pub(crate) enum Next {
    Request(Box<Request>),
    /// It was refused or abandoned; the connection has ended.
    Refused(RefusedHead),
    /// The connection has ended.
    Closed,
}

/// Buffers may hold a caller's key.
impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").finish_non_exhaustive()
    }
}

impl Http1 {
    /// Wraps a new connection, which is on `socket`.
    pub(crate) fn new(
        io: Box<dyn Io>,
        socket: Option<Arc<SocketDigest>>,
        head_memory: Arc<HeadMemory>,
    ) -> Self {
        Self {
            socket,
            io,
            input: BytesMut::new(),
            output: Output::default(),
            head_memory,
            begin_by: Instant::now() + HEAD_TIME,
            is_closed: false,
            version: Version::HTTP_11,
            is_head: false,
            reader: BodyReader::none(),
            is_end_told: true,
            writer: BodyWriter::None,
            upgraded: false,
            last_read: 0,
            keep_alive: true,
            aborted: false,
            status: None,
            body_in: 0,
            body_out: 0,
        }
    }

    /// Waits for a request to begin. `false`: none will come.
    pub(crate) async fn begins(&mut self, alarm: &mut Alarm) -> bool {
        poll_fn(|cx| {
            loop {
                // Some clients send an empty line after a body (RFC 9112 §2.2), which is no
                // request.
                if self.input.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
                    return Poll::Ready(true);
                }
                self.input.clear();
                match self.poll_read_head(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return alarm.poll_until(self.begin_by, cx).map(|()| false),
                }
            }
        })
        .await
    }

    /// Reads the head of a request that has begun.
    pub(crate) async fn next_request(&mut self, alarm: &mut Alarm) -> Next {
        let by = Instant::now() + HEAD_TIME;
        let mut head = Head::default();
        let mut looked_at = 0;
        loop {
            head.look_at(&self.input[looked_at..]);
            if let Some(end) = end_of_head(&self.input, looked_at) {
                let raw = if end == self.input.len() {
                    std::mem::take(&mut self.input)
                } else {
                    self.input.split_to(end)
                };
                return self.accept(raw.freeze(), &head, alarm).await;
            }
            let new = self.input.len() - looked_at;
            looked_at = self.input.len();
            let refusal = head.too_large();
            let refusal =
                refusal.or_else(|| (!self.head_memory.acquire(new)).then_some(TOO_MANY_HEADS));
            if let Some(refusal) = refusal {
                return Box::pin(self.refuse(refusal, b"", alarm)).await;
            }
            let read = poll_fn(|cx| match self.poll_read_head(cx) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => alarm.poll_until(by, cx).map(|()| None),
            });
            match read.await {
                Some(Ok(1..)) => {}
                None if head.is_half_way() => {
                    return Next::Refused(RefusedHead::too_slow());
                }
                Some(Ok(0) | Err(_)) | None => return Next::Closed,
            }
        }
    }

    /// Prepares for the request with this head.
    async fn accept(&mut self, raw: Bytes, head: &Head, alarm: &mut Alarm) -> Next {
        // From here on the request's own limits hold.
        self.head_memory.release_all();
        // Empty lines before it are no part of it.
        let start = raw.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
        let raw = raw.slice(start.unwrap_or(0)..);
        let parsed = read_request(&raw).ok().filter(|parsed| {
            // HTTP/1.0 knows no codings (RFC 9112 §6.1).
            parsed.version > Version::HTTP_10 || !parsed.headers.contains_key(TRANSFER_ENCODING)
        });
        let Some(parsed) = parsed else {
            let refusal = if raw.starts_with(b"CONNECT ") {
                Error::MethodNotAllowed
            } else if head.has_odd_line() {
                Error::BadFraming(raw_head::ODD_REQUEST_LINE)
            } else {
                Error::BadFraming("The request's head cannot be parsed.")
            };
            return Box::pin(self.refuse(refusal, &raw, alarm)).await;
        };
        self.version = parsed.version;
        self.is_head = parsed.method == Method::HEAD;
        self.reader = BodyReader::of_request(&parsed.headers);
        self.is_end_told = self.reader.is_done();
        self.writer = BodyWriter::None;
        self.upgraded = false;
        self.last_read = 0;
        self.keep_alive = keeps_connection(parsed.version, &parsed.headers);
        self.status = None;
        (self.body_in, self.body_out) = (0, 0);
        Next::Request(Box::new(Request {
            head: parsed,
            raw,
            odd_first_line: head.has_odd_line(),
        }))
    }

    /// Answers a head that never becomes a request. `head`: its bytes, where all of them have come.
    /// Otherwise more may come: closing on unread bytes would reset the connection, which could cost
    /// the caller the reply.
    async fn refuse(&mut self, refusal: Error, head: &[u8], alarm: &mut Alarm) -> Next {
        let reason = refusal.verdict().reason;
        tracing::debug!(reason, "a request head was refused");
        let refused = RefusedHead::for_error(refusal);
        let mut reply = Problem::new(refusal, None, &refused.request_id).to_http1();
        if head.starts_with(b"HEAD ")
            && let Some(end) = end_of_head(&reply, 0)
        {
            reply.truncate(end);
        }
        self.input = BytesMut::new();
        self.output.push_slice(&reply);
        self.head_memory.release_all();
        let by = Instant::now() + HEAD_TIME;
        let mut progress = false;
        let written = poll_fn(|cx| {
            if let Poll::Ready(written) = self.output.poll_drain(&mut *self.io, cx, &mut progress) {
                return Poll::Ready(written.is_ok());
            }
            alarm.poll_until(by, cx).map(|()| false)
        });
        if written.await && timeout(FAREWELL_TIME, self.io.shutdown()).await.is_ok() {
            poll_fn(|cx| match self.poll_discard(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => alarm.poll_until(by, cx),
            })
            .await;
        }
        Next::Refused(refused)
    }

    /// Reads on and drops the bytes, until the caller has closed or has sent a mebibyte.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A caller that sends without pause must not keep the thread.
        for _ in 0..256 {
            match ready!(self.poll_read_head(cx)) {
                Ok(1..) => self.input.clear(),
                Ok(0) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }

    /// Makes the connection ready for the next request, once the response has been written.
    /// `false`: it ends.
    pub(crate) fn expect_next(&mut self) -> bool {
        self.begin_by = Instant::now() + KEEPALIVE;
        self.output.shrink();
        self.reader = BodyReader::none();
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.keep_alive && !self.is_closed
    }

    /// Ends the connection. What waits to be written goes out, as far as the caller takes it soon.
    pub(crate) async fn close(mut self) {
        let farewell = async {
            let mut progress = false;
            let output = &mut self.output;
            let written = poll_fn(|cx| output.poll_drain(&mut *self.io, cx, &mut progress)).await;
            // Without a farewell, a caller with TLS can tell that something is missing.
            if written.is_ok() && !self.aborted {
                let _ = self.io.shutdown().await;
            }
        };
        let _ = timeout(FAREWELL_TIME, farewell).await;
    }

    /// Reads some bytes of a head into `input`. The space is the stack's: most connections are idle
    /// most of the time.
    fn poll_read_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); HEAD_READ];
        let mut came = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut came))?;
        self.input.extend_from_slice(came.filled());
        Poll::Ready(Ok(came.filled().len()))
    }

    fn poll_read_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(self.reader.room(self.last_read));
        let read = ready!(pin!(self.io.read_buf(&mut self.input)).poll(cx))?;
        self.last_read = read;
        Poll::Ready(Ok(read))
    }

    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<CallerEvent> {
        if self.upgraded {
            return self.poll_upgraded(cx);
        }
        while !self.is_end_told {
            match self.reader.take(&mut self.input) {
                Ok(Some(piece)) => {
                    self.body_in += piece.len() as u64;
                    return Poll::Ready(CallerEvent::Piece(piece));
                }
                Ok(None) if self.reader.is_done() => {
                    self.is_end_told = true;
                    return Poll::Ready(CallerEvent::End);
                }
                Ok(None) => {}
                Err(_) => return Poll::Ready(CallerEvent::Lost(Lost::InvalidChunks)),
            }
            match ready!(self.poll_read_body(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(CallerEvent::Lost(Lost::Gone)),
            }
        }
        // Bytes of further requests stay where they are: as much as one read brings.
        if self.is_closed || !self.input.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.poll_read_head(cx)) {
            Ok(1..) => Poll::Pending,
            Ok(0) => {
                // It may have closed its side alone (RFC 9112 §9.6).
                self.is_closed = true;
                Poll::Ready(CallerEvent::HalfClosed)
            }
            Err(_) => Poll::Ready(CallerEvent::Lost(Lost::Gone)),
        }
    }

    /// Reads bytes of the protocol that was upgraded to.
    fn poll_upgraded(&mut self, cx: &mut Context<'_>) -> Poll<CallerEvent> {
        if self.input.is_empty() {
            if self.is_closed {
                return Poll::Pending;
            }
            match ready!(self.poll_read_body(cx)) {
                Ok(1..) => {}
                Ok(0) => {
                    self.is_closed = true;
                    return Poll::Ready(CallerEvent::HalfClosed);
                }
                Err(_) => return Poll::Ready(CallerEvent::Lost(Lost::Gone)),
            }
        }
        let piece = std::mem::take(&mut self.input).freeze();
        self.body_in += piece.len() as u64;
        Poll::Ready(CallerEvent::Piece(piece))
    }

    pub(super) fn is_body_done(&self) -> bool {
        !self.upgraded && self.reader.is_done()
    }

    pub(super) fn has_left(&self) -> bool {
        let state = self.socket.as_ref().and_then(|socket| socket.tcp_info());
        state.is_some_and(|info| CLOSED.contains(&info.tcpi_state))
    }

    pub(super) fn send_interim(&mut self, head: &ResponseHeader) {
        if self.version > Version::HTTP_10 && self.status.is_none() {
            write_response(head, self.output.start());
        }
    }

    pub(super) fn send_head(&mut self, mut head: ResponseHeader, ends: bool) {
        self.status = Some(head.status);
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.upgraded = true;
            self.reader = BodyReader::UntilClose;
            self.writer = BodyWriter::UntilClose;
            self.keep_alive = false;
            write_response(&head, self.output.start());
            return;
        }
        self.frame(&mut head, ends);
        if !head.headers.contains_key(DATE) {
            insert(&mut head, "Date", get_cached_date());
        }
        // The rest of the body would have to be read first, and may be long.
        self.keep_alive &= self.reader.is_done() && self.writer != BodyWriter::UntilClose;
        let option = if self.keep_alive {
            "keep-alive"
        } else {
            "close"
        };
        insert(&mut head, "Connection", HeaderValue::from_static(option));
        write_response(&head, self.output.start());
    }

    /// Decides how the body of the response is framed (RFC 9112 §6). `ends`: it has none.
    fn frame(&mut self, head: &mut ResponseHeader, ends: bool) {
        if head.status == StatusCode::NO_CONTENT {
            // Neither header may be there (RFC 9110 §8.6, RFC 9112 §6.1).
            head.remove_header(&CONTENT_LENGTH);
            head.remove_header(&TRANSFER_ENCODING);
        }
        if self.version < Version::HTTP_11 {
            // An HTTP/1.0 caller does not know chunks: the end of the connection ends the body.
            head.remove_header(&TRANSFER_ENCODING);
        }
        if self.is_head || has_no_body(head.status) {
            self.writer = BodyWriter::None;
            return;
        }
        self.writer = BodyWriter::announced(&head.headers, BodyWriter::UntilClose);
        if self.writer != BodyWriter::UntilClose {
            return;
        }
        if ends {
            self.writer = BodyWriter::Length(0);
            insert(head, "Content-Length", HeaderValue::from_static("0"));
        } else if self.version >= Version::HTTP_11 {
            self.writer = BodyWriter::Chunked;
            insert(
                head,
                "Transfer-Encoding",
                HeaderValue::from_static("chunked"),
            );
        }
    }

    pub(super) fn send_piece(&mut self, piece: Bytes) {
        let length = piece.len() as u64;
        if self.writer == BodyWriter::None {
            return;
        }
        self.body_out += length;
        if !self.writer.write(piece, &mut self.output) {
            self.abort();
        }
    }

    pub(super) fn send_end(&mut self) {
        if !self.writer.finish(&mut self.output) {
            self.abort();
        }
    }

    pub(super) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<Result<(), Lost>> {
        let drained = self.output.poll_drain(&mut *self.io, cx, progress);
        drained.map_err(|_| {
            self.is_closed = true;
            Lost::Gone
        })
    }

    pub(super) fn is_full(&self) -> bool {
        self.output.is_full()
    }

    pub(super) fn has_whole_response(&self) -> bool {
        self.status.is_some() && self.writer == BodyWriter::Length(0)
    }

    pub(super) fn abort(&mut self) {
        self.keep_alive = false;
        self.aborted = true;
        self.writer = BodyWriter::None;
    }
}

/// Sets a header of ours, whose name and value are valid.
fn insert(head: &mut ResponseHeader, name: &'static str, value: HeaderValue) {
    let _ = head.insert_header(name, value);
}
