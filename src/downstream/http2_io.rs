//! The bytes of a caller's connection over HTTP/2, with the limits that h2 does not have.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::HeadMemory;
use super::frames::Frames;
use super::request::HEAD_TIME;
use crate::alarm::Alarm;

/// Streams that a caller may reset at once on a connection, and per second.
const RESETS: f64 = 500.0;
const RESETS_A_SECOND: f64 = 100.0;

/// A connection that lets one field block through at a time. h2 decodes all that it is given at
/// once, before it can be checked; so it is given one head at a time, which the accepting task then
/// sees first.
pub(crate) struct Http2Io {
    io: Stream,
    /// Bytes behind the last field block that was passed on.
    ahead: Vec<u8>,
    frames: Frames,
    head_memory: Arc<HeadMemory>,
    /// Deadline of the incomplete field block.
    fields_by: Option<Instant>,
    alarm: Alarm,
    /// Streams that the caller may still reset, and when that was counted.
    resets_left: f64,
    resets_counted: Instant,
    /// A head was passed on: it must be accepted before more is read.
    passed_fields: bool,
    /// The caller asked for too much: nothing more is read.
    given_up: bool,
    too_much: Arc<Notify>,
}

impl Http2Io {
    /// Wraps a new connection.
    pub(crate) fn new(io: Stream, head_memory: Arc<HeadMemory>) -> Self {
        Self {
            io,
            ahead: Vec::new(),
            frames: Frames::new(),
            head_memory,
            fields_by: None,
            alarm: Alarm::default(),
            resets_left: RESETS,
            resets_counted: Instant::now(),
            passed_fields: false,
            given_up: false,
            too_much: Arc::default(),
        }
    }

    /// Returns what is notified once the caller asks for too much. Nothing more is read then.
    pub(crate) fn too_much(&self) -> Arc<Notify> {
        self.too_much.clone()
    }

    /// Stops reading: the serving task ends the connection and tells the caller.
    fn give_up(&mut self, why: &str) -> Poll<io::Result<()>> {
        tracing::debug!(why, "an HTTP/2 connection is ended");
        self.given_up = true;
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

    /// Fills `buffer` with what is there. The time for a field block may pass meanwhile.
    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let some = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..some]);
            self.ahead.drain(..some);
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buffer) {
            return Poll::Ready(read);
        }
        let Some(by) = self.fields_by else {
            return Poll::Pending;
        };
        ready!(self.alarm.poll_until(by, cx));
        self.give_up("a block of fields took too long")
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given_up {
            return Poll::Pending;
        }
        if std::mem::take(&mut this.passed_fields) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(this.poll_bytes(cx, buffer))?;
        let was_split = this.frames.is_split();
        let (passed, complete) = this.frames.pass(&buffer.filled()[before..]);
        let (within, split) = (this.frames.is_within_fields(), this.frames.is_split());
        let resets = this.frames.take_resets();
        let behind = &buffer.filled()[before + passed..];
        if !behind.is_empty() {
            this.ahead.splice(..0, behind.iter().copied());
            buffer.set_filled(before + passed);
        }
        this.passed_fields = complete;
        if resets > 0 && !this.may_reset(resets) {
            return this.give_up("a flood of resets");
        }
        match (was_split, split) {
            (false, true) if !this.head_memory.open_block() => {
                return this.give_up("no room for another long head");
            }
            (true, false) => this.head_memory.close_block(),
            _ => {}
        }
        if !within {
            this.fields_by = None;
        } else if this.fields_by.is_none() {
            this.fields_by = Some(Instant::now() + HEAD_TIME);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
