//! A caller's connection as pingora gets it, with limits.
//!
//! It limits what pingora does not limit, in one place and with one timer: heads, slow bodies,
//! silence between requests, responses that are not read, silent vendors. It also gathers small
//! writes.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::protocols::tls::{ALPN, SslDigest};
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream,
    TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body_rate::BodyRate;
use super::budget::HeadMemory;
use super::chunks::Chunks;
use super::frames::Frames;
use super::head::Head;
use super::raw_head::request_id;
use crate::error::problem::Problem;
use crate::error::{BAD_REQUEST, Error};

/// The heads of all connections use up their memory, see [`super::budget`].
pub(crate) const TOO_MANY_HEADS: Error = Error::Busy(
    "Long request headers of all callers use all the memory permitted for them; shorter ones are still read.",
);
/// Longest time for a whole request head, and on a new connection for its first byte.
pub(crate) const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest write that is gathered with the next one, bytes: a packet's.
const SMALL: usize = 1460;
/// Bytes read ahead of pingora: as many as it would read, so that it reads as often.
const AHEAD: usize = 4096;
/// Capacity that an idle connection keeps for that, bytes: enough for most heads.
const KEPT: usize = 1024;
/// Streams that a caller may reset at once on a connection over HTTP/2, and per second.
const RESETS: f64 = 500.0;
const RESETS_A_SECOND: f64 = 100.0;
/// Interval of checks whether the caller was removed from the configuration.
const REMOVAL_CHECK: Duration = Duration::from_secs(2);
/// Time for which a connection may idle between requests. Longer than common clients keep a
/// connection, so that the client is the one to close.
const KEEPALIVE: Duration = Duration::from_secs(75);

/// A connection with the limits of its current phase, and with the characters of its last request
/// line that the parser would repair. On HTTP/2 it limits heads alone: streams have limits of their
/// own.
pub struct DownstreamStream {
    /// pingora writes the head of a response, then its body, and flushes: this makes one system
    /// call of a small one. Its own listeners buffer, too.
    inner: BufWriter<Stream>,
    /// Bytes that came before they were read, see [`Self::begins`] and [`Self::body_is_complete`].
    ahead: Vec<u8>,
    /// The request has been passed on to its end: further bytes are another one's.
    ended: AtomicBool,
    /// Bytes of its body that have not been passed on; `u64::MAX`: unknown.
    body_left: AtomicU64,
    /// `true` if the body comes in chunks, which are followed here.
    chunked: AtomicBool,
    chunks: Chunks,
    head: Head,
    /// This connection's share of the memory for heads.
    head_memory: Arc<HeadMemory>,
    /// The frames of HTTP/2, whose field blocks are limited.
    frames: Option<Frames>,
    /// Deadline of the incomplete field block.
    fields_by: Option<Instant>,
    /// Streams that the caller may still reset, and when that was counted.
    resets_left: f64,
    resets_counted: Instant,
    /// Notifies the serving task that the caller asks for too much, to end the connection.
    too_much: Arc<Notify>,
    /// A head was passed on: it must be accepted before more is read.
    passed_fields: bool,
    /// The head was refused. Reading goes on only so that a reset does not cost the caller the
    /// reply.
    refused: bool,
    /// The last head, if it was rejected. Outlives the connection.
    rejected_head: Arc<OnceLock<RejectedHead>>,
    /// The limits below are an earlier request's.
    stale: AtomicBool,
    /// While a response is awaited: its deadline, in milliseconds since `born`; 0: no limit.
    response_by: AtomicU64,
    /// While the rest of a response is awaited: the longest silence, milliseconds; 0: no limit.
    longest_silence: AtomicU64,
    /// Time at which some of it last came, or could last be passed on, in milliseconds since
    /// `born`.
    heard: AtomicU64,
    /// One of these two limits was exceeded.
    late: AtomicBool,
    /// The removal deadline of the last request's caller.
    leave: ArcSwapOption<RemovalDeadline>,
    left: AtomicBool,
    /// While a body is awaited: the longest pause in it, milliseconds; 0: no limit.
    longest_pause: AtomicU64,
    /// pingora has read since the body's end was passed on.
    listened: AtomicBool,
    /// The longest time in which the caller reads nothing of what is written, milliseconds; 0: no
    /// limit.
    longest_stall: AtomicU64,
    /// Time at which the caller stopped reading.
    stalled: Option<Instant>,
    /// The time left for a body, and when the current wait began.
    body_rate: Option<BodyRate>,
    waiting: Option<Instant>,
    too_slow: AtomicBool,
    /// HTTP/2, negotiated or begun with its preface: pingora asks by ALPN.
    http2: bool,
    born: Instant,
    /// Deadline of the next head, or between requests of its first byte.
    head_by: Instant,
    /// Wakes at one of the limits or before, see [`Self::poll_until`].
    alarm: Option<Pin<Box<Sleep>>>,
}

/// The deadline of a caller that was removed from the configuration, or whose credentials changed:
/// what it has begun ends then.
#[derive(Debug, Default)]
pub struct RemovalDeadline(OnceLock<Instant>);

impl RemovalDeadline {
    /// Sets the deadline; the first call counts.
    pub(crate) fn set(&self, at: Instant) {
        let _ = self.0.set(at);
    }

    /// Returns the deadline; `None`: the caller stays.
    #[must_use]
    pub fn at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}

/// A head that never became a request, refused or abandoned: no hook of pingora's is called for it.
#[derive(Debug)]
pub(crate) struct RejectedHead {
    pub(crate) status: StatusCode,
    pub(crate) reason: &'static str,
    pub(crate) request_id: HeaderValue,
}

impl RejectedHead {
    fn new(status: StatusCode) -> Self {
        Self {
            status,
            reason: BAD_REQUEST,
            request_id: request_id(&HeaderMap::new()),
        }
    }

    /// Returns the head refused for `refusal`.
    pub(crate) fn for_error(refusal: Error) -> Self {
        let verdict = refusal.verdict();
        Self {
            reason: verdict.reason,
            ..Self::new(verdict.status)
        }
    }

    /// Reads the parser's refusal: what is written before a head is complete.
    fn written(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(b"HTTP/1.1 ")?;
        StatusCode::from_bytes(rest.get(..3)?).ok().map(Self::new)
    }
}

/// Bytes read ahead may hold a caller's key.
impl fmt::Debug for DownstreamStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DownstreamStream").finish_non_exhaustive()
    }
}

impl DownstreamStream {
    /// Wraps `inner`. HTTP/2 has streams, and limits and buffers of its own.
    pub(crate) fn new(inner: Stream, http2: bool, head_memory: Arc<HeadMemory>) -> Self {
        // Before a head has been read, only the parser's refusal of it is written.
        let (room, head, longest_stall) = if http2 {
            (0, Head::none(), Duration::ZERO)
        } else {
            (SMALL, Head::first(), HEAD_TIME)
        };
        Self {
            http2,
            inner: BufWriter::with_capacity(room, inner),
            ahead: Vec::new(),
            ended: AtomicBool::new(false),
            body_left: AtomicU64::new(u64::MAX),
            chunked: AtomicBool::new(false),
            chunks: Chunks::default(),
            head,
            head_memory,
            frames: http2.then(Frames::new),
            fields_by: None,
            resets_left: RESETS,
            resets_counted: Instant::now(),
            too_much: Arc::default(),
            passed_fields: false,
            refused: false,
            rejected_head: Arc::default(),
            stale: AtomicBool::new(false),
            response_by: AtomicU64::new(0),
            longest_silence: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            late: AtomicBool::new(false),
            leave: ArcSwapOption::empty(),
            left: AtomicBool::new(false),
            longest_pause: AtomicU64::new(0),
            listened: AtomicBool::new(false),
            longest_stall: AtomicU64::new(milliseconds(longest_stall)),
            stalled: None,
            body_rate: None,
            waiting: None,
            too_slow: AtomicBool::new(false),
            born: Instant::now(),
            head_by: Instant::now() + HEAD_TIME,
            alarm: None,
        }
    }

    /// Returns what is notified on HTTP/2 once the caller asks for too much. Nothing more is read
    /// then.
    pub(crate) fn too_much(&self) -> Arc<Notify> {
        self.too_much.clone()
    }

    /// Returns where a rejected head is recorded.
    pub(crate) fn rejected_head(&self) -> Arc<OnceLock<RejectedHead>> {
        self.rejected_head.clone()
    }

    /// Returns the `DownstreamStream` of a connection, where it has one.
    #[must_use]
    pub fn of(stream: &Stream) -> Option<&Self> {
        // The box is itself a stream, hence the explicit dereference.
        (**stream).as_any().downcast_ref()
    }

    /// Waits for a request to begin. pingora would allocate some twenty kilobytes first, and most
    /// connections are idle most of the time. `false`: none will come.
    pub(crate) async fn begins(&mut self) -> bool {
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
                // Some clients send an empty line after a body (RFC 9112 §2.2), which is no
                // request.
                if self.ahead.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
                    self.ahead.clear();
                }
            }
            self.head_comes();
            Poll::Ready(true)
        })
        .await
    }

    /// Resets the limits for the next request.
    fn renew(&mut self) {
        if self.stale.load(Ordering::Relaxed) {
            self.stale.store(false, Ordering::Relaxed);
            self.head_by = Instant::now() + KEEPALIVE;
            self.head.renew();
            self.chunks = Chunks::default();
            (self.body_rate, self.waiting) = (None, None);
        }
    }

    /// Reads what is there; nothing may be left of what was read before.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); AHEAD];
        let mut came = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut came))?;
        self.ahead.extend_from_slice(came.filled());
        Poll::Ready(Ok(()))
    }

    /// Notes that bytes of a head have come.
    fn head_comes(&mut self) {
        if self.head.begins() {
            self.head_by = Instant::now() + HEAD_TIME;
        }
        self.head.look_at(&self.ahead);
    }

    /// Tells whether memory is left for the bytes of a head that are about to be passed on; the
    /// head is refused otherwise.
    fn has_head_memory(&mut self, at_most: usize) -> bool {
        let bytes = self.ahead.len().min(at_most);
        let there_is = self.head.is_complete() || self.head_memory.acquire(bytes);
        if !there_is {
            self.refuse_head(TOO_MANY_HEADS);
        }
        there_is
    }

    /// Reads over HTTP/2. h2 decodes all that it is given at once, before it can be checked. So it
    /// is given one head at a time, which the accepting task then sees first.
    fn poll_frames(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.refused {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.passed_fields) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if self.ahead.is_empty() {
            if Pin::new(&mut self.inner)
                .poll_read(cx, buffer)?
                .is_pending()
            {
                let Some(by) = self.fields_by else {
                    return Poll::Pending;
                };
                ready!(self.poll_until(by, cx));
                return self.give_up("a block of fields took too long");
            }
        } else {
            let some = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..some]);
            self.ahead.drain(..some);
        }
        let Some(frames) = &mut self.frames else {
            return Poll::Ready(Ok(()));
        };
        let was_split = frames.is_split();
        let (passed, complete) = frames.pass(&buffer.filled()[before..]);
        let (within, split) = (frames.is_within_fields(), frames.is_split());
        let resets = frames.take_resets();
        let behind = &buffer.filled()[before + passed..];
        if !behind.is_empty() {
            self.ahead.splice(..0, behind.iter().copied());
            buffer.set_filled(before + passed);
        }
        self.passed_fields = complete;
        if resets > 0 && !self.may_reset(resets) {
            return self.give_up("a flood of resets");
        }
        match (was_split, split) {
            (false, true) if !self.head_memory.open_block() => {
                return self.give_up("no room for another long head");
            }
            (true, false) => self.head_memory.close_block(),
            _ => {}
        }
        if !within {
            self.fields_by = None;
        } else if self.fields_by.is_none() {
            self.fields_by = Some(Instant::now() + HEAD_TIME);
        }
        Poll::Ready(Ok(()))
    }

    /// Stops reading: the serving task ends the connection and tells the caller.
    fn give_up(&mut self, why: &str) -> Poll<io::Result<()>> {
        tracing::debug!(why, "an HTTP/2 connection is ended");
        self.refused = true;
        self.too_much.notify_one();
        Poll::Pending
    }

    /// Tells whether the caller may reset this many streams more (CVE-2023-44487). h2 counts those
    /// that are reset before they are accepted, which none is here.
    fn may_reset(&mut self, streams: u32) -> bool {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.resets_counted);
        let left = self.resets_left + since.as_secs_f64() * RESETS_A_SECOND;
        self.resets_left = left.min(RESETS) - f64::from(streams);
        self.resets_counted = now;
        self.resets_left >= 0.0
    }

    /// Passes on what was read: at most to the end of a head or a body, since pingora would drop
    /// what follows.
    fn pass_on(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let length = self.ahead.len().min(buffer.remaining());
        let length = if self.head.is_complete() {
            let ahead = std::mem::take(&mut self.ahead);
            let taken = self.take_of_body(&ahead[..length]);
            self.ahead = ahead;
            taken?
        } else {
            self.head.pass(&self.ahead[..length])
        };
        buffer.put_slice(&self.ahead[..length]);
        self.ahead.drain(..length);
        if self.ahead.is_empty() && self.ahead.capacity() > KEPT {
            self.ahead = Vec::new();
        }
        Ok(())
    }

    /// Returns how many of `bytes` belong to the body.
    fn take_of_body(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.chunked.get_mut() {
            let odd = |_| io::Error::new(io::ErrorKind::InvalidData, "odd chunks");
            return self.chunks.advance(bytes).map_err(odd);
        }
        let left = self.body_left.get_mut();
        if *left == u64::MAX {
            return Ok(bytes.len());
        }
        let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
        *left -= taken as u64;
        Ok(taken)
    }

    /// Tells whether the whole request has been passed on.
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
            || self.body_left.load(Ordering::Relaxed) == 0
            || self.chunks.is_done()
    }

    /// Reads what is there of a body, past [`Self::ahead`]. Bytes after the body are kept.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let end = before + self.take_of_body(&buffer.filled()[before..])?;
        self.ahead.extend_from_slice(&buffer.filled()[end..]);
        buffer.set_filled(end);
        Poll::Ready(Ok(()))
    }

    /// Keeps bytes after the request for later, as many as one read returns.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty()
            && let Poll::Ready(read) = self.poll_fill(cx)
            && (read.is_err() || self.ahead.is_empty())
        {
            return Poll::Ready(read);
        }
        Poll::Pending
    }

    /// Refuses a head that is too large while it is still coming: pingora would go on collecting
    /// it, up to a mebibyte, and its own check comes after that.
    fn refuse_head(&mut self, refusal: Error) {
        tracing::debug!(
            reason = refusal.verdict().reason,
            bytes = self.head.length(),
            "a request head was refused"
        );
        self.refused = true;
        let rejected_head = self
            .rejected_head
            .get_or_init(|| RejectedHead::for_error(refusal));
        let answer = Problem::new(refusal, None, &rejected_head.request_id).to_http1();
        let mut now = Context::from_waker(Waker::noop());
        // Nothing else has been written: there is room for it.
        let _ = Pin::new(&mut self.inner).poll_write(&mut now, &answer);
        self.flush_now();
        let _ = Pin::new(self.inner.get_mut()).poll_shutdown(&mut now);
    }

    /// Reads on and drops the bytes, until the caller has closed or the time for a head is over.
    fn poll_refused(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [MaybeUninit::uninit(); AHEAD];
        // A caller that sends without pause must not keep the thread.
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

    /// Notes that the head has been read.
    pub fn head_is_complete(&self) {
        self.head.complete();
        // From here on the request's own limits hold.
        self.head_memory.release_all();
    }

    /// Limits the body: no pause longer than this, and no rate below [`BodyRate`]. Zero lifts that.
    pub fn set_body_timeout(&self, longest_pause: Duration) {
        let longest = milliseconds(longest_pause);
        self.longest_pause.store(longest, Ordering::Relaxed);
    }

    /// Notes the length of the body, bytes, where the head has it.
    pub fn body_has(&self, length: u64) {
        self.body_left.store(length, Ordering::Relaxed);
    }

    /// Notes that the body comes in chunks.
    pub fn body_is_chunked(&self) {
        self.chunked.store(true, Ordering::Relaxed);
    }

    /// Tells whether reading has failed because of invalid chunks.
    #[must_use]
    pub fn has_invalid_chunks(&self) -> bool {
        self.chunks.is_broken()
    }

    /// Limits the time in which the caller reads nothing of what is written. pingora limits the
    /// writing of a body, not that of a head or the last flush.
    pub fn set_write_timeout(&self, longest_stall: Duration) {
        let longest = milliseconds(longest_stall);
        self.longest_stall.store(longest, Ordering::Relaxed);
    }

    /// Notes that the end of the body is about to be passed on, or that there is none. pingora goes
    /// on reading to notice that the caller leaves, and takes anything else for an error. So
    /// further bytes are kept here until the response has been sent.
    pub fn body_is_complete(&self) {
        self.listened.store(false, Ordering::Relaxed);
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Notes the caller whose request is being served, and so when it ends at the latest.
    pub fn serve(&self, caller: &Arc<RemovalDeadline>) {
        let known = self.leave.load();
        // Most connections are one caller's.
        if known
            .as_ref()
            .is_none_or(|known| !Arc::ptr_eq(known, caller))
        {
            self.leave.store(Some(caller.clone()));
        }
    }

    /// Tells whether reading has failed because the caller was removed from the configuration.
    #[must_use]
    pub fn caller_was_removed(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Tells whether pingora has read from the caller since then. It does unless passing on the
    /// body has failed; then it closes this connection after the response.
    #[must_use]
    pub fn is_listened_to(&self) -> bool {
        self.listened.load(Ordering::Relaxed)
    }

    /// Tells whether reading has failed because the body came too slowly.
    #[must_use]
    pub fn body_was_too_slow(&self) -> bool {
        self.too_slow.load(Ordering::Relaxed)
    }

    /// Limits the time until a response. While it waits for one, pingora reads from the caller to
    /// notice its leaving; that read fails with `TimedOut` from `at` on. pingora's own upstream
    /// timeouts cannot tell the first byte from the rest. `None` lifts the limit.
    pub fn set_response_deadline(&self, at: Option<Instant>) {
        // Rounded up: a later comparison of `at` with the clock must find it passed.
        let at = at.map_or(0, |at| self.since_birth(at).max(1));
        self.response_by.store(at, Ordering::Relaxed);
    }

    /// Limits every silence between vendor and caller from `now` on in the same way, while more of
    /// a response is awaited. A caller that reads slowly does not make the vendor silent. Zero
    /// lifts that.
    pub fn set_response_idle(&self, longest_silence: Duration, now: Instant) {
        let longest = milliseconds(longest_silence);
        self.longest_silence.store(longest, Ordering::Relaxed);
        self.heard.store(self.since_birth(now), Ordering::Relaxed);
    }

    /// Notes that some of the response has come.
    pub fn response_progressed(&self) {
        let now = self.since_birth(Instant::now());
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Tells whether reading has failed because the response, or more of it, did not come in time.
    #[must_use]
    pub fn response_was_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// Returns milliseconds since `born`, rounded up.
    fn since_birth(&self, at: Instant) -> u64 {
        let exact = at.saturating_duration_since(self.born).as_nanos();
        u64::try_from(exact.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Returns when something must have come from the vendor.
    fn vendors_limit(&self) -> Option<Instant> {
        let response_by = self.response_by.load(Ordering::Relaxed);
        let silence = self.longest_silence.load(Ordering::Relaxed);
        let more_by = self.heard.load(Ordering::Relaxed).saturating_add(silence);
        let at = match (response_by, silence) {
            (0, 0) => return None,
            (_, 0) => response_by,
            (0, _) => more_by,
            (_, _) => response_by.min(more_by),
        };
        Some(self.born + Duration::from_millis(at))
    }

    /// Tells whether the head's first line held anything but two single blanks between graphic
    /// ASCII characters. The parser escapes such characters in the target, which would forward
    /// another target than the one that was sent.
    #[must_use]
    pub fn has_odd_first_line(&self) -> bool {
        self.head.has_odd_line()
    }

    /// Notes that a response has been sent: another head comes next.
    pub(crate) fn expect_head(&self) {
        self.stale.store(true, Ordering::Relaxed);
        self.ended.store(false, Ordering::Relaxed);
        self.body_left.store(u64::MAX, Ordering::Relaxed);
        self.chunked.store(false, Ordering::Relaxed);
        self.response_by.store(0, Ordering::Relaxed);
        self.longest_silence.store(0, Ordering::Relaxed);
        self.late.store(false, Ordering::Relaxed);
        self.longest_pause.store(0, Ordering::Relaxed);
        self.head.expect_next();
    }

    /// Ends the wait when the caller was removed from the configuration and its time is over. A
    /// connection is not notified, so it checks at intervals.
    fn check_removal(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let at = match self.leave.load().as_ref() {
            Some(leave) => leave.at(),
            None => return Ok(()),
        };
        let now = Instant::now();
        if at.is_some_and(|at| at <= now) {
            self.left.store(true, Ordering::Relaxed);
            let left = "the caller is no longer in the configuration";
            return Err(io::Error::new(io::ErrorKind::TimedOut, left));
        }
        // Not over before then: the alarm only wakes us.
        let again = now + REMOVAL_CHECK;
        let _ = self.poll_until(at.map_or(again, |at| at.min(again)), cx);
        Ok(())
    }

    /// Counts the wait of a read that has returned nothing yet.
    fn poll_pause(&mut self, longest: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let left = self
            .body_rate
            .get_or_insert_with(|| BodyRate::new(longest))
            .left();
        let at = *self.waiting.get_or_insert_with(Instant::now) + left;
        self.poll_until(at, cx).map(|()| {
            self.too_slow.store(true, Ordering::Relaxed);
            let slow = "the request body came too slowly";
            Err(io::Error::new(io::ErrorKind::TimedOut, slow))
        })
    }

    /// Waits until `at`. Limits move on with every request; an alarm that would wake too early is
    /// left alone, and set again when it has: on a busy connection it costs next to nothing.
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

    /// Counts the time in which a write makes no progress.
    fn poll_progress<T>(
        &mut self,
        wrote: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let longest = self.longest_stall.load(Ordering::Relaxed);
        if wrote.is_ready() || longest == 0 {
            if self.stalled.take().is_some() {
                self.response_progressed();
            }
            return wrote;
        }
        let since = *self.stalled.get_or_insert_with(Instant::now);
        ready!(self.poll_until(since + Duration::from_millis(longest), cx));
        self.stalled = None;
        let stuck = "the caller takes nothing of its answer";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, stuck)))
    }

    /// Writes what is buffered, as far as there is room for it now. A connection that ends does not
    /// wait for a caller that does not read.
    fn flush_now(&mut self) {
        let mut now = Context::from_waker(Waker::noop());
        let _ = Pin::new(&mut self.inner).poll_flush(&mut now);
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the request head is too large")
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl AsyncRead for DownstreamStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.frames.is_some() {
            return self.poll_frames(cx, buffer);
        }
        self.listened.store(true, Ordering::Relaxed);
        if self.refused {
            return self.poll_refused(cx);
        }
        self.renew();
        let ended = self.has_ended();
        if let Some(refusal) = self.head.too_large() {
            self.refuse_head(refusal);
            return self.poll_refused(cx);
        }
        if !self.ahead.is_empty() && !ended {
            if !self.has_head_memory(buffer.remaining()) {
                return self.poll_refused(cx);
            }
            return Poll::Ready(self.pass_on(buffer));
        }
        if self.head.is_complete() {
            // pingora waits for the vendor: what there is of the response goes out.
            if !self.inner.buffer().is_empty() {
                let _ = Pin::new(&mut self.inner).poll_flush(cx);
            }
            let before = buffer.filled().len();
            let read = if ended {
                self.poll_behind(cx)
            } else {
                self.poll_body(cx, buffer)
            };
            let longest = self.longest_pause.load(Ordering::Relaxed);
            if longest > 0 && read.is_pending() {
                return self.poll_pause(Duration::from_millis(longest), cx);
            }
            if let (Some(since), Some(body_rate)) = (self.waiting.take(), &mut self.body_rate) {
                // In time: only the timer decides that it is late.
                let _ = body_rate.heard(since.elapsed(), buffer.filled().len() - before);
            }
            if read.is_pending() {
                self.check_removal(cx)?;
            }
            let Some(at) = self.vendors_limit() else {
                return read;
            };
            if read.is_ready() {
                // Bytes are passed on to the vendor.
                self.response_progressed();
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
                if !self.has_head_memory(buffer.remaining()) {
                    return self.poll_refused(cx);
                }
                self.pass_on(buffer)?;
            }
            return Poll::Ready(read);
        }
        let head_by = self.head_by;
        ready!(self.poll_until(head_by, cx));
        if self.head.is_between() {
            // As if the caller had closed it: nothing is lost, and nothing is reported.
            return Poll::Ready(Ok(()));
        }
        if self.head.is_half_way() {
            self.rejected_head
                .get_or_init(|| RejectedHead::new(StatusCode::REQUEST_TIMEOUT));
        }
        let slow = "the request head took too long";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, slow)))
    }
}

impl AsyncWrite for DownstreamStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.head.is_complete()
            && let Some(refusal) = RejectedHead::written(bytes)
        {
            // The parser refuses with a status and nothing else, in one piece. It expects the
            // target of a CONNECT to be the Host, and no tunnel is opened either way.
            let parsers = refusal.status == StatusCode::BAD_REQUEST && bytes.ends_with(b"\r\n\r\n");
            let error = if self.head.is_connect() {
                Error::MethodNotAllowed
            } else {
                Error::BadFraming("The request's head cannot be parsed.")
            };
            let refusal = if parsers {
                RejectedHead::for_error(error)
            } else {
                refusal
            };
            let refusal = self.rejected_head.get_or_init(|| refusal);
            if parsers {
                let reply = Problem::new(error, None, &refusal.request_id).to_http1();
                ready!(Pin::new(&mut self.inner).poll_write(cx, &reply))?;
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        let wrote = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.poll_progress(wrote, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.poll_progress(wrote, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.poll_progress(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush_now();
        // Not the buffer's own shutdown, which would wait for its flush.
        Pin::new(self.inner.get_mut()).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for DownstreamStream {
    async fn shutdown(&mut self) {
        self.flush_now();
        Shutdown::shutdown(&mut **self.inner.get_mut()).await;
    }
}

impl Drop for DownstreamStream {
    /// pingora may drop a connection without flushing what it has written.
    fn drop(&mut self) {
        self.flush_now();
    }
}

impl UniqueID for DownstreamStream {
    fn id(&self) -> i32 {
        self.inner.get_ref().id()
    }
}

impl Ssl for DownstreamStream {
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

impl GetTimingDigest for DownstreamStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.inner.get_ref().get_timing_digest()
    }
}

impl GetProxyDigest for DownstreamStream {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        self.inner.get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for DownstreamStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.inner.get_ref().get_socket_digest()
    }
}

impl Peek for DownstreamStream {}

#[cfg(test)]
mod tests;
