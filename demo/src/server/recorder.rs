//! Records every byte that is read from a connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The bytes that one connection has read.
#[derive(Default)]
pub(super) struct Recording {
    pub(super) bytes: Vec<u8>,
    /// Number of bytes that belong to requests already recorded.
    consumed: usize,
}

impl Recording {
    /// Returns the bytes of the next request.
    pub(super) fn take_request(&mut self) -> Vec<u8> {
        let rest = self.bytes[self.consumed..].to_vec();
        self.consumed = self.bytes.len();
        rest
    }
}

/// A stream that records the bytes read from it.
pub(super) struct Recorder<S> {
    pub(super) stream: S,
    pub(super) recording: Arc<Mutex<Recording>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorder<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = &buffer.filled()[before..];
        self.recording.lock().bytes.extend_from_slice(read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorder<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
