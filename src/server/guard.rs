//! A caller's connection as pingora is given it: under watch.
//!
//! What pingora has no limit for is limited here, in one place and with one timer: heads, bodies that
//! dribble, silence between requests, answers that nobody takes, vendors that say nothing. And small
//! writes are gathered.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use memchr::memmem;
use pingora::protocols::tls::{ALPN, SslDigest};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::Error;
use crate::request::answer::Problem;
use crate::request::headers::{MAX_HEAD, request_id};
use crate::request::limit::Pace;

/// A whole request head, and on a new connection its first byte, must be here within this time.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);
/// What is written in one go with what follows it, bytes: a packet's.
const SMALL: usize = 1460;
/// How much is read before pingora reads, bytes: as much as it would, so that it reads as often.
const AHEAD: usize = 4096;
/// How much room a connection keeps for that when it idles, bytes: for most heads.
const KEPT: usize = 1024;
/// How long a connection may idle between requests. Longer than common clients keep a connection, so
/// that the client is the one to close.
const KEEPALIVE: Duration = Duration::from_secs(75);

/// A connection with the limits of what is going on on it, and what the parser would repair in the
/// first line of its last head. On HTTP/2 it limits nothing: streams have limits of their own.
pub struct Guarded {
    /// pingora writes the head of an answer, then its body, and flushes: one call of the system for
    /// both of a small one. Its own listeners buffer, too.
    inner: BufWriter<Stream>,
    /// What came while nobody was reading yet, see [`Self::begins`] and [`Self::body_is_complete`].
    ahead: Vec<u8>,
    /// The request has been passed on to its end: what comes now is another one's.
    ended: AtomicBool,
    /// Of the head being read, bytes passed on, and the last three of them.
    head_bytes: usize,
    head_tail: [u8; 3],
    /// The head was refused, and is read on only so that the answer is not lost to a reset.
    refused: bool,
    /// One of the constants below.
    phase: AtomicU8,
    /// Counted in the first line of the head being read.
    blanks: AtomicU8,
    odd_line: AtomicBool,
    /// The limits below are an earlier request's.
    stale: AtomicBool,
    /// While an answer is awaited: until when, in milliseconds since `born`; 0: no limit.
    answer_by: AtomicU64,
    /// While the rest of an answer is awaited: the longest silence, milliseconds; 0: no limit.
    longest_silence: AtomicU64,
    /// When some of it last came, or could last be passed on, in milliseconds since `born`.
    heard: AtomicU64,
    /// One of these two limits was passed.
    late: AtomicBool,
    /// While a body is awaited: the longest pause in it, milliseconds; 0: no limit.
    longest_pause: AtomicU64,
    /// Something was to be read since the body's end was passed on.
    listened: AtomicBool,
    /// The longest that the caller may take nothing of what is written, milliseconds; 0: no limit.
    longest_stall: AtomicU64,
    /// Since when it takes nothing.
    stalled: Option<Instant>,
    /// What is left of the time for a body, and since when we wait.
    pace: Option<Pace>,
    waiting: Option<Instant>,
    too_slow: AtomicBool,
    /// Negotiated or begun with its preface: pingora asks by ALPN.
    http2: bool,
    born: Instant,
    /// Until when the next head, or between requests its first byte, may come.
    head_by: Instant,
    /// Rings at one of the limits or before, see [`Self::poll_until`].
    alarm: Option<Pin<Box<Sleep>>>,
}

/// What was read ahead may hold a caller's key.
impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").finish_non_exhaustive()
    }
}

/// Nothing of the next head has come yet, after an answer.
const BETWEEN: u8 = 0;
/// Nothing of the first head has come yet, or nothing but empty lines.
const BEFORE_HEAD: u8 = 1;
/// Its first line is coming.
const IN_LINE: u8 = 2;
/// The rest of it is coming.
const IN_FIELDS: u8 = 3;
/// It is complete: bodies have limits of their own.
const AFTER_HEAD: u8 = 4;

impl Guarded {
    /// HTTP/2 has streams, and limits and buffers of its own.
    pub(super) fn new(inner: Stream, http2: bool) -> Self {
        // Before a head has been read, nothing is written but the parser's refusal of it.
        let (room, phase, longest_stall) = if http2 {
            (0, AFTER_HEAD, Duration::ZERO)
        } else {
            (SMALL, BEFORE_HEAD, HEAD_TIME)
        };
        Self {
            http2,
            inner: BufWriter::with_capacity(room, inner),
            ahead: Vec::new(),
            ended: AtomicBool::new(false),
            head_bytes: 0,
            head_tail: [0; 3],
            refused: false,
            phase: AtomicU8::new(phase),
            blanks: AtomicU8::new(0),
            odd_line: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            answer_by: AtomicU64::new(0),
            longest_silence: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            late: AtomicBool::new(false),
            longest_pause: AtomicU64::new(0),
            listened: AtomicBool::new(false),
            longest_stall: AtomicU64::new(milliseconds(longest_stall)),
            stalled: None,
            pace: None,
            waiting: None,
            too_slow: AtomicBool::new(false),
            born: Instant::now(),
            head_by: Instant::now() + HEAD_TIME,
            alarm: None,
        }
    }

    /// The guard of a connection, where it has one.
    #[must_use]
    pub fn of(stream: &Stream) -> Option<&Self> {
        // The box is itself a stream, hence the explicit way to what is in it.
        (**stream).as_any().downcast_ref()
    }

    /// Waits for a request to begin. pingora would wait with all made ready for one, some twenty
    /// kilobytes, and most connections are idle most of the time. `false`: none will come.
    pub(super) async fn begins(&mut self) -> bool {
        self.renew();
        poll_fn(|cx| {
            while self.ahead.is_empty() {
                match self.poll_fill(cx) {
                    Poll::Ready(Ok(())) if !self.ahead.is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => {
                        let head_by = self.head_by;
                        return self.poll_until(head_by, cx).map(|()| false);
                    }
                }
                // Some clients end a body with an empty line too many (RFC 9112 §2.2): no request.
                if self.ahead.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
                    self.ahead.clear();
                }
            }
            self.head_comes();
            Poll::Ready(true)
        })
        .await
    }

    /// Limits move on to the next request.
    fn renew(&mut self) {
        if self.stale.load(Ordering::Relaxed) {
            self.stale.store(false, Ordering::Relaxed);
            self.head_by = Instant::now() + KEEPALIVE;
            (self.head_bytes, self.head_tail) = (0, [0; 3]);
            (self.pace, self.waiting) = (None, None);
        }
    }

    /// Reads what is there, nothing being left of what was read before.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); AHEAD];
        let mut came = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut came))?;
        self.ahead.extend_from_slice(came.filled());
        Poll::Ready(Ok(()))
    }

    /// Some of a head has come.
    fn head_comes(&mut self) {
        let phase = self.phase.load(Ordering::Relaxed);
        if phase == BETWEEN {
            self.phase.store(BEFORE_HEAD, Ordering::Relaxed);
            self.head_by = Instant::now() + HEAD_TIME;
        }
        if phase != IN_FIELDS {
            self.note(&self.ahead);
        }
    }

    /// Passes on what was read. Of a head no more than its end: what is behind it may be another
    /// request, and pingora would drop that.
    fn pass_on(&mut self, buffer: &mut ReadBuf<'_>) {
        let mut length = self.ahead.len().min(buffer.remaining());
        if self.phase.load(Ordering::Relaxed) != AFTER_HEAD {
            length = end_of_head(self.head_tail, &self.ahead[..length]).unwrap_or(length);
            self.head_bytes += length;
            for byte in &self.ahead[length.saturating_sub(3)..length] {
                self.head_tail = [self.head_tail[1], self.head_tail[2], *byte];
            }
        }
        buffer.put_slice(&self.ahead[..length]);
        self.ahead.drain(..length);
        if self.ahead.is_empty() && self.ahead.capacity() > KEPT {
            self.ahead = Vec::new();
        }
    }

    /// Keeps what comes behind the request for later, as much of it as is read in one go.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty()
            && let Poll::Ready(read) = self.poll_fill(cx)
            && (read.is_err() || self.ahead.is_empty())
        {
            return Poll::Ready(read);
        }
        Poll::Pending
    }

    /// Answers a head that is too large while it is still coming: pingora would go on collecting it, up
    /// to a mebibyte, and its own check comes when it is whole.
    fn refuse_head(&mut self) {
        let stop = if self.phase.load(Ordering::Relaxed) == IN_LINE {
            Error::TargetTooLong
        } else {
            Error::HeadTooLarge
        };
        tracing::debug!(
            reason = stop.verdict().reason,
            bytes = self.head_bytes,
            "a head was refused"
        );
        self.refused = true;
        let answer = Problem::new(stop, None, &request_id(&HeaderMap::new()), false).to_http1();
        let mut now = Context::from_waker(Waker::noop());
        // Nothing else has been written: there is room for it.
        let _ = Pin::new(&mut self.inner).poll_write(&mut now, &answer);
        self.flush_now();
        let _ = Pin::new(self.inner.get_mut()).poll_shutdown(&mut now);
    }

    /// Reads on and drops what comes, until the caller has closed or the time for a head is over.
    fn poll_refused(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); AHEAD];
        // A caller that sends without pause is left to itself, too.
        for _ in 0..256 {
            let mut dropped = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.inner).poll_read(cx, &mut dropped) {
                Poll::Ready(Ok(())) if !dropped.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Err(too_large())),
                Poll::Pending => {
                    let head_by = self.head_by;
                    return self.poll_until(head_by, cx).map(|()| Err(too_large()));
                }
            }
        }
        Poll::Ready(Err(too_large()))
    }

    /// Tells that the head has been read.
    pub fn head_is_complete(&self) {
        self.phase.store(AFTER_HEAD, Ordering::Relaxed);
    }

    /// Demands that a body comes, with no pause longer than this and no slower than [`Pace`] permits.
    /// Zero lifts that.
    pub fn expect_body(&self, longest_pause: Duration) {
        let longest = milliseconds(longest_pause);
        self.longest_pause.store(longest, Ordering::Relaxed);
    }

    /// Demands that the caller takes something of what is written at least this often. pingora limits
    /// the writing of a body, not that of a head or the last flush.
    pub fn expect_taking(&self, longest_stall: Duration) {
        let longest = milliseconds(longest_stall);
        self.longest_stall.store(longest, Ordering::Relaxed);
    }

    /// Tells that the end of the body is about to be passed on, or that there is none. pingora goes on
    /// reading to notice that the caller leaves, and takes anything else for an error; here, what comes
    /// is kept until the answer has been sent.
    pub fn body_is_complete(&self) {
        self.listened.store(false, Ordering::Relaxed);
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether pingora has looked for more from the caller since then. It does unless passing on
    /// the body has failed, and then it closes this connection behind the answer.
    #[must_use]
    pub fn is_listened_to(&self) -> bool {
        self.listened.load(Ordering::Relaxed)
    }

    /// Whether reading has failed because the body came too slowly.
    #[must_use]
    pub fn body_was_too_slow(&self) -> bool {
        self.too_slow.load(Ordering::Relaxed)
    }

    /// Limits the time until an answer: while one is awaited, pingora reads from the caller to
    /// notice its leaving, and that read fails with `TimedOut` from `at` on. Its own upstream
    /// timeouts cannot tell the first byte from the rest. `None` lifts the limit.
    pub fn expect_answer_by(&self, at: Option<Instant>) {
        // Rounded up: who compares `at` with the clock afterwards must find it passed.
        let at = at.map_or(0, |at| self.since_birth(at).max(1));
        self.answer_by.store(at, Ordering::Relaxed);
    }

    /// Limits every silence between vendor and caller from `now` on, while more of an answer is awaited,
    /// in the same way. A caller that is slow to take what has come is no silent vendor. Zero lifts
    /// that.
    pub fn expect_more(&self, longest_silence: Duration, now: Instant) {
        let longest = milliseconds(longest_silence);
        self.longest_silence.store(longest, Ordering::Relaxed);
        self.heard.store(self.since_birth(now), Ordering::Relaxed);
    }

    /// Tells that some of the answer has come.
    pub fn heard_more(&self) {
        let now = self.since_birth(Instant::now());
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Whether reading has failed because the answer, or more of it, did not come in time.
    #[must_use]
    pub fn answer_was_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// In milliseconds, rounded up.
    fn since_birth(&self, at: Instant) -> u64 {
        let exact = at.saturating_duration_since(self.born).as_nanos();
        u64::try_from(exact.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Until when something must come from the vendor.
    fn vendors_limit(&self) -> Option<Instant> {
        let answer_by = self.answer_by.load(Ordering::Relaxed);
        let silence = self.longest_silence.load(Ordering::Relaxed);
        let more_by = self.heard.load(Ordering::Relaxed).saturating_add(silence);
        let at = match (answer_by, silence) {
            (0, 0) => return None,
            (_, 0) => answer_by,
            (0, _) => more_by,
            (_, _) => answer_by.min(more_by),
        };
        Some(self.born + Duration::from_millis(at))
    }

    /// Whether the head's first line held anything but two single blanks between graphic ASCII
    /// characters. The parser escapes such characters in the target, which would forward another
    /// target than the one that was sent.
    #[must_use]
    pub fn has_odd_first_line(&self) -> bool {
        self.odd_line.load(Ordering::Relaxed)
    }

    /// Tells that an answer has been sent: what comes next is another head.
    pub(super) fn expect_head(&self) {
        self.stale.store(true, Ordering::Relaxed);
        self.ended.store(false, Ordering::Relaxed);
        self.answer_by.store(0, Ordering::Relaxed);
        self.longest_silence.store(0, Ordering::Relaxed);
        self.late.store(false, Ordering::Relaxed);
        self.longest_pause.store(0, Ordering::Relaxed);
        self.phase.store(BETWEEN, Ordering::Relaxed);
        self.blanks.store(0, Ordering::Relaxed);
        self.odd_line.store(false, Ordering::Relaxed);
    }

    /// A read of a body has come to nothing yet: the time for it runs.
    fn poll_pause(&mut self, longest: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let left = self.pace.get_or_insert_with(|| Pace::new(longest)).left();
        let at = *self.waiting.get_or_insert_with(Instant::now) + left;
        self.poll_until(at, cx).map(|()| {
            self.too_slow.store(true, Ordering::Relaxed);
            let slow = "the request body came too slowly";
            Err(io::Error::new(io::ErrorKind::TimedOut, slow))
        })
    }

    /// Limits move on with every request. An alarm that would ring too early is left alone, and set
    /// again when it has rung: on a busy connection it costs next to nothing.
    fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(at)));
        loop {
            if alarm.deadline() > at {
                alarm.as_mut().reset(at);
            }
            ready!(alarm.as_mut().poll(cx));
            if alarm.deadline() >= at {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(at);
        }
    }

    /// What became of an attempt to write: while nothing is taken, the time for it runs.
    fn poll_taking<T>(
        &mut self,
        wrote: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let longest = self.longest_stall.load(Ordering::Relaxed);
        if wrote.is_ready() || longest == 0 {
            if self.stalled.take().is_some() {
                self.heard_more();
            }
            return wrote;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        ready!(self.poll_until(since + Duration::from_millis(longest), cx));
        self.stalled = None;
        let stuck = "the caller takes nothing of its answer";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, stuck)))
    }

    /// Writes what is buffered, as far as there is room for it now. A connection that ends waits for
    /// nobody who does not read.
    fn flush_now(&mut self) {
        let mut now = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self.inner).poll_flush(&mut now);
    }

    fn note(&self, bytes: &[u8]) {
        for byte in bytes {
            match (self.phase.load(Ordering::Relaxed), byte) {
                // Empty lines before a head are skipped (RFC 9112 §2.2).
                (BEFORE_HEAD, b'\r' | b'\n') | (IN_LINE, b'\r' | b'!'..=b'~') => {}
                (BEFORE_HEAD, b'!'..=b'~') => self.phase.store(IN_LINE, Ordering::Relaxed),
                (IN_LINE, b' ') => {
                    if self.blanks.fetch_add(1, Ordering::Relaxed) >= 2 {
                        self.odd_line.store(true, Ordering::Relaxed);
                    }
                }
                (IN_LINE, b'\n') => {
                    self.phase.store(IN_FIELDS, Ordering::Relaxed);
                    return;
                }
                (BEFORE_HEAD | IN_LINE, _) => {
                    self.phase.store(IN_LINE, Ordering::Relaxed);
                    self.odd_line.store(true, Ordering::Relaxed);
                }
                _ => return,
            }
        }
    }
}

/// How many of `bytes` belong to a head whose end is among them, `tail` being what came just before.
fn end_of_head(tail: [u8; 3], bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    let mut seam = [0; 6];
    let begun = bytes.len().min(3);
    seam[..3].copy_from_slice(&tail);
    seam[3..3 + begun].copy_from_slice(&bytes[..begun]);
    memmem::find(&seam, END)
        .map(|at| at + 1)
        .or_else(|| memmem::find(bytes, END).map(|at| at + END.len()))
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the request head is too large")
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.listened.store(true, Ordering::Relaxed);
        if self.refused {
            return self.poll_refused(cx);
        }
        self.renew();
        let phase = self.phase.load(Ordering::Relaxed);
        let ended = self.ended.load(Ordering::Relaxed);
        if phase != AFTER_HEAD && self.head_bytes > MAX_HEAD {
            self.refuse_head();
            return self.poll_refused(cx);
        }
        if !self.ahead.is_empty() && !ended {
            self.pass_on(buffer);
            return Poll::Ready(Ok(()));
        }
        if phase == AFTER_HEAD {
            let before = buffer.filled().len();
            let read = if ended {
                self.poll_behind(cx)
            } else {
                Pin::new(&mut self.inner).poll_read(cx, buffer)
            };
            let longest = self.longest_pause.load(Ordering::Relaxed);
            if longest > 0 && read.is_pending() {
                return self.poll_pause(Duration::from_millis(longest), cx);
            }
            if let (Some(since), Some(pace)) = (self.waiting.take(), &mut self.pace) {
                // In time: late is what the timer says, and it did not.
                let _ = pace.heard(since.elapsed(), buffer.filled().len() - before);
            }
            let Some(at) = self.vendors_limit() else {
                return read;
            };
            if read.is_ready() {
                // The vendor is being told something.
                self.heard_more();
                return read;
            }
            ready!(self.poll_until(at, cx));
            self.late.store(true, Ordering::Relaxed);
            let late = "the answer took too long";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)));
        }
        if let Poll::Ready(read) = self.poll_fill(cx) {
            if !self.ahead.is_empty() {
                self.head_comes();
                self.pass_on(buffer);
            }
            return Poll::Ready(read);
        }
        let head_by = self.head_by;
        ready!(self.poll_until(head_by, cx));
        if phase == BETWEEN {
            // As if the caller had closed it: nothing is lost, and nothing is said.
            return Poll::Ready(Ok(()));
        }
        let slow = "the request head took too long";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, slow)))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.poll_taking(wrote, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.poll_taking(wrote, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.poll_taking(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush_now();
        // Not the buffer's own, which would wait for its flush.
        Pin::new(self.inner.get_mut()).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        self.flush_now();
        Shutdown::shutdown(&mut **self.inner.get_mut()).await;
    }
}

impl Drop for Guarded {
    /// What pingora has written and not flushed when it gives a connection up.
    fn drop(&mut self) {
        self.flush_now();
    }
}

impl UniqueID for Guarded {
    fn id(&self) -> i32 {
        self.inner.get_ref().id()
    }
}

impl Ssl for Guarded {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.inner.get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        if self.http2 {
            return Some(ALPN::H2);
        }
        self.inner.get_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for Guarded {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_ref().get_timing_digest()
    }
}

impl GetProxyDigest for Guarded {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        self.inner.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for Guarded {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_ref().get_socket_digest()
    }
}

impl Peek for Guarded {}

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as TcpStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::timeout;

    use super::*;

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    /// A guard that has let `HEAD` through, and the caller's end.
    async fn after_a_request() -> (Guarded, UnixStream) {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut guarded = Guarded::new(Box::new(TcpStream::from(near)), false);
        far.write_all(HEAD).await.unwrap();
        let mut head = [0; 64];
        assert_eq!(guarded.read(&mut head).await.unwrap(), HEAD.len());
        guarded.head_is_complete();
        guarded.expect_head();
        (guarded, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_closed_that_is_silent_between_requests() {
        let (mut guarded, _far) = after_a_request().await;
        let began = Instant::now();
        assert_eq!(guarded.read(&mut [0; 64]).await.unwrap(), 0, "its end");
        assert_eq!(began.elapsed().as_secs(), KEEPALIVE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_begins_with_its_first_bytes_and_loses_none_of_them() {
        let (mut guarded, mut far) = after_a_request().await;
        let waiting = timeout(Duration::from_secs(30), guarded.begins()).await;
        assert!(waiting.is_err(), "nothing has come");
        let long = format!(
            "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
            "a \u{7f}".repeat(AHEAD)
        );
        far.write_all(long.as_bytes()).await.unwrap();
        for _ in 0..2 {
            assert!(guarded.begins().await);
        }
        assert_eq!(format!("{guarded:?}"), "Guarded { .. }");
        let mut read = Vec::new();
        while read.len() < long.len() {
            let mut some = [0; 700];
            let length = guarded.read(&mut some).await.unwrap();
            assert_ne!(length, 0);
            read.extend_from_slice(&some[..length]);
        }
        assert_eq!(read, long.as_bytes());
        assert!(guarded.has_odd_first_line());
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_behind_a_request_is_kept_and_stops_no_clock() {
        let (mut guarded, mut far) = after_a_request().await;
        far.write_all(HEAD).await.unwrap();
        far.write_all(HEAD).await.unwrap();
        assert!(guarded.begins().await);
        let mut head = [0; 256];
        // Of what has come, the first request and no more.
        assert_eq!(guarded.read(&mut head).await.unwrap(), HEAD.len());
        guarded.head_is_complete();
        guarded.body_is_complete();
        let began = Instant::now();
        guarded.expect_answer_by(Some(began + Duration::from_secs(20)));
        let early = timeout(Duration::from_secs(10), guarded.read(&mut head)).await;
        assert!(early.is_err(), "{early:?}");
        far.write_all(b"G").await.unwrap();
        let late = guarded.read(&mut head).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 20);

        guarded.expect_head();
        assert!(guarded.begins().await);
        assert_eq!(guarded.read(&mut head).await.unwrap(), HEAD.len());
        assert!(!guarded.has_odd_first_line());
        guarded.head_is_complete();
        guarded.body_is_complete();
        let (read, ()) = tokio::join!(
            timeout(Duration::from_secs(5), guarded.read(&mut head)),
            async {
                far.write_all(b"ET  / HTTP/1.1\r\n").await.unwrap();
            }
        );
        assert!(read.is_err(), "{read:?}");
        guarded.expect_head();
        assert!(guarded.begins().await);
        let mut odd = String::new();
        while !odd.ends_with('\n') {
            let length = guarded.read(&mut head).await.unwrap();
            odd.push_str(std::str::from_utf8(&head[..length]).unwrap());
        }
        assert_eq!(odd, "GET  / HTTP/1.1\r\n");
        assert!(guarded.has_odd_first_line(), "looked at as every other");
    }

    #[tokio::test(start_paused = true)]
    async fn empty_lines_between_requests_are_none_and_win_no_time() {
        let (mut guarded, mut far) = after_a_request().await;
        let began = Instant::now();
        for _ in 0..3 {
            far.write_all(b"\r\n").await.unwrap();
            let waiting = timeout(Duration::from_secs(20), guarded.begins()).await;
            assert!(waiting.is_err(), "{waiting:?}");
        }
        assert!(!guarded.begins().await);
        assert_eq!(began.elapsed().as_secs(), KEEPALIVE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_without_end_is_refused_at_its_limit() {
        let long = "a".repeat(2 * MAX_HEAD);
        for (begun, status) in [("GET / HTTP/1.1\r\nA: ", "431"), ("GET /", "414")] {
            let (mut guarded, far) = after_a_request().await;
            let (mut read, mut written) = far.into_split();
            let sending = async {
                let _ = written
                    .write_all((begun.to_owned() + &long).as_bytes())
                    .await;
            };
            let reading = async {
                assert!(guarded.begins().await);
                let mut all = 0;
                loop {
                    match guarded.read(&mut [0; 8192]).await {
                        Ok(length) => all += length,
                        Err(refused) => return (all, refused),
                    }
                }
            };
            let ((), (all, refused)) = tokio::join!(sending, reading);
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
            assert!((MAX_HEAD..MAX_HEAD + 8193).contains(&all), "{all}");
            drop(guarded);
            let mut answer = String::new();
            read.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.ends_with('}'), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_request_begins_on_a_connection_that_stays_silent_or_is_closed() {
        let (mut guarded, far) = after_a_request().await;
        let began = Instant::now();
        assert!(!guarded.begins().await);
        assert_eq!(began.elapsed().as_secs(), KEEPALIVE.as_secs());
        drop(far);
        guarded.expect_head();
        assert!(!guarded.begins().await, "closed");

        let (near, _far) = UnixStream::pair().unwrap();
        let mut silent = Guarded::new(Box::new(TcpStream::from(near)), false);
        let began = Instant::now();
        assert!(!silent.begins().await);
        assert_eq!(began.elapsed().as_secs(), HEAD_TIME.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_head_has_its_own_time_from_its_first_byte() {
        let (mut guarded, mut far) = after_a_request().await;
        let silence = KEEPALIVE.as_secs() - 1;
        let early = timeout(Duration::from_secs(silence), guarded.read(&mut [0; 64])).await;
        assert!(early.is_err(), "{early:?}");
        far.write_all(b"GE").await.unwrap();
        assert_eq!(guarded.read(&mut [0; 64]).await.unwrap(), 2);
        let began = Instant::now();
        let late = guarded.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), HEAD_TIME.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_awaited_as_long_as_the_newest_limit_says() {
        let (mut guarded, mut far) = after_a_request().await;
        far.write_all(HEAD).await.unwrap();
        assert_eq!(guarded.read(&mut [0; 64]).await.unwrap(), HEAD.len());
        guarded.head_is_complete();
        for seconds in [30, 50, 5] {
            let began = Instant::now();
            guarded.expect_answer_by(Some(began + Duration::from_secs(seconds)));
            let late = guarded.read(&mut [0; 64]).await.unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_vendor_may_be_silent_so_long_at_a_time() {
        let (mut guarded, mut far) = after_a_request().await;
        far.write_all(HEAD).await.unwrap();
        assert_eq!(guarded.read(&mut [0; 64]).await.unwrap(), HEAD.len());
        guarded.head_is_complete();
        let silence = Duration::from_secs(10);
        let began = Instant::now();
        guarded.expect_more(silence, began);
        for _ in 0..3 {
            let waiting = timeout(Duration::from_secs(9), guarded.read(&mut [0; 64])).await;
            assert!(waiting.is_err(), "{waiting:?}");
            guarded.heard_more();
        }
        assert!(!guarded.answer_was_late());
        let late = guarded.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 3 * 9 + 10);
        assert!(guarded.answer_was_late());

        // The whole has its limit all the same.
        guarded.heard_more();
        let began = Instant::now();
        guarded.expect_answer_by(Some(began + Duration::from_secs(4)));
        guarded.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_caller_is_slow_to_take_is_not_the_vendors_silence() {
        let (mut guarded, mut far) = full().await;
        guarded.head_is_complete();
        guarded.expect_taking(Duration::from_mins(5));
        guarded.expect_more(Duration::from_secs(10), Instant::now());
        let taking = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            loop {
                far.read_exact(&mut [0; 4096]).await.unwrap();
            }
        };
        tokio::select! {
            flushed = guarded.flush() => flushed.unwrap(),
            () = taking => {}
        }
        let began = Instant::now();
        guarded.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    /// A guard whose caller has taken all that it ever will.
    async fn full() -> (Guarded, UnixStream) {
        let (mut guarded, far) = after_a_request().await;
        guarded.expect_taking(Duration::ZERO);
        let much = vec![b'x'; 1 << 20];
        let filling = guarded.write_all(&much);
        assert!(timeout(Duration::from_secs(1), filling).await.is_err());
        guarded.write_all(HEAD).await.unwrap();
        (guarded, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_of_its_answer_is_not_waited_for_without_end() {
        let (mut guarded, _far) = full().await;
        for seconds in [60, 300] {
            guarded.expect_taking(Duration::from_secs(seconds));
            let began = Instant::now();
            let stuck = guarded.flush().await.unwrap_err();
            assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_at_once_though_its_caller_does_not_read() {
        let (mut guarded, mut far) = full().await;
        let began = Instant::now();
        let ending = async {
            AsyncWriteExt::shutdown(&mut guarded).await.unwrap();
            Shutdown::shutdown(&mut guarded).await;
        };
        timeout(KEEPALIVE, ending).await.expect("it ends");
        drop(guarded);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let mut taken = Vec::new();
        far.read_to_end(&mut taken).await.unwrap();
        assert!(taken.iter().all(|byte| *byte == b'x'));
    }

    #[tokio::test]
    async fn what_was_written_last_is_sent_though_nobody_flushed_it() {
        let (mut guarded, mut far) = after_a_request().await;
        guarded.write_all(b"the end").await.unwrap();
        drop(guarded);
        let mut taken = Vec::new();
        far.read_to_end(&mut taken).await.unwrap();
        assert_eq!(taken, b"the end");
    }
}
