//! Bytes that wait to be written on a connection.
//!
//! Writing into it never waits, so that a loop with two sides can do it wherever it stands. The loop
//! drains it while it waits for either side, and reads nothing more for it while it is full.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection that carries bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Pieces up to this size are copied behind what waits before them, bytes: one system call less, or
/// one packet less.
const SMALL: usize = 1460;
/// What may wait before the other side is no longer read, bytes.
const FULL: usize = 64 * 1024;
/// Capacity that is kept while nothing waits, bytes: enough for most heads.
const KEPT: usize = 1024;

/// What waits, in this order: heads and small pieces, then one large piece and the end of its chunk.
#[derive(Debug, Default)]
pub struct Output {
    start: Vec<u8>,
    /// Bytes of `start` that have been written.
    written: usize,
    piece: Bytes,
    end: &'static [u8],
    /// The connection may hold written bytes back.
    unflushed: bool,
}

impl Output {
    /// Adds `bytes`.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= SMALL || self.has_piece() {
            self.push_slice(&bytes);
        } else {
            self.piece = bytes;
        }
    }

    /// Adds a copy of `bytes`.
    pub fn push_slice(&mut self, bytes: &[u8]) {
        self.start().extend_from_slice(bytes);
    }

    /// Adds a chunk (RFC 9112 §7.1). `data` is not empty.
    pub fn push_chunk(&mut self, data: Bytes) {
        let mut size = [0; 18];
        let size = chunk_size(data.len(), &mut size);
        self.push_slice(size);
        self.push(data);
        self.push_end(b"\r\n");
    }

    /// Adds the last chunk, without trailers.
    pub fn push_last_chunk(&mut self) {
        if self.end == b"\r\n" {
            self.end = b"\r\n0\r\n\r\n";
        } else {
            self.push_slice(b"0\r\n\r\n");
        }
    }

    /// Returns the buffer of heads, for more of them.
    pub fn start(&mut self) -> &mut Vec<u8> {
        if self.has_piece() {
            self.start.extend_from_slice(&self.piece);
            self.start.extend_from_slice(self.end);
            self.piece = Bytes::new();
            self.end = b"";
        }
        &mut self.start
    }

    /// Tells whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start.is_empty() && !self.has_piece()
    }

    /// Tells whether so much waits that the other side should not be read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.start.len() - self.written + self.piece.len() >= FULL
    }

    /// Writes what waits. Ready when all of it has left; `progress` is set when some of it has.
    pub fn poll_drain(
        &mut self,
        io: &mut (impl Io + ?Sized),
        cx: &mut Context<'_>,
        progress: &mut bool,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let waiting = [
                IoSlice::new(&self.start[self.written..]),
                IoSlice::new(&self.piece),
                IoSlice::new(self.end),
            ];
            let written = if self.has_piece() {
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &waiting))?
            } else {
                ready!(Pin::new(&mut *io).poll_write(cx, &waiting[0]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *progress = true;
            self.unflushed = true;
            self.advance(written);
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Frees what an idle connection need not keep.
    pub fn shrink(&mut self) {
        if self.start.capacity() > KEPT {
            self.start = Vec::new();
        }
    }

    fn advance(&mut self, written: usize) {
        let of_start = written.min(self.start.len() - self.written);
        self.written += of_start;
        if self.written == self.start.len() {
            self.start.clear();
            self.written = 0;
        }
        let of_piece = (written - of_start).min(self.piece.len());
        self.piece.advance(of_piece);
        self.end = &self.end[written - of_start - of_piece..];
    }

    fn push_end(&mut self, end: &'static [u8]) {
        if self.has_piece() {
            self.end = end;
        } else {
            self.push_slice(end);
        }
    }

    fn has_piece(&self) -> bool {
        !self.piece.is_empty() || !self.end.is_empty()
    }

    /// Returns a copy of all that waits, for tests.
    #[must_use]
    pub fn waiting(&self) -> Vec<u8> {
        [&self.start[self.written..], &self.piece, self.end].concat()
    }
}

/// Writes the line with a chunk's size.
fn chunk_size(length: usize, line: &mut [u8; 18]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    line[16..].copy_from_slice(b"\r\n");
    let mut start = 16;
    let mut left = length;
    loop {
        start -= 1;
        line[start] = DIGITS[left % 16];
        left /= 16;
        if left == 0 {
            return &line[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn a_size_is_written_in_hexadecimal() {
        for length in [0, 1, 15, 16, 255, 4096, 70_000, usize::MAX] {
            let mut line = [0; 18];
            let line = chunk_size(length, &mut line).to_vec();
            assert_eq!(String::from_utf8(line).unwrap(), format!("{length:x}\r\n"));
        }
    }

    #[test]
    fn large_pieces_are_not_copied_and_the_order_stays() {
        let large = Bytes::from(vec![b'x'; SMALL + 1]);
        let mut output = Output::default();
        output.push_slice(b"head");
        output.push_chunk(large.clone());
        assert_eq!(output.piece.as_ptr(), large.as_ptr());
        assert!(!output.is_full());
        output.push_chunk(Bytes::from_static(b"y"));
        output.push_chunk(large.clone());
        output.push_last_chunk();
        let size = format!("{:x}\r\n", large.len());
        let chunk = [size.as_bytes(), &large, b"\r\n"].concat();
        let whole = [
            b"head".as_slice(),
            &chunk,
            b"1\r\ny\r\n",
            &chunk,
            b"0\r\n\r\n",
        ]
        .concat();
        assert_eq!(output.waiting(), whole);
        output.push(Bytes::from(vec![0; FULL]));
        assert!(output.is_full());
    }

    #[tokio::test]
    async fn everything_leaves_however_little_the_connection_takes() {
        let (mut ours, mut theirs) = tokio::io::duplex(7);
        let mut output = Output::default();
        output.push_slice(b"a head of some length");
        output.push_chunk(Bytes::from(vec![b'x'; 3000]));
        output.push_last_chunk();
        let expected = output.waiting();
        let write = async {
            let mut progress = false;
            poll_fn(|cx| output.poll_drain(&mut ours, cx, &mut progress))
                .await
                .unwrap();
            assert!(progress && output.is_empty());
            drop(ours);
        };
        let mut came = Vec::new();
        let ((), read) = tokio::join!(write, theirs.read_to_end(&mut came));
        read.unwrap();
        assert_eq!(came, expected);
    }
}
