//! Unused connections over HTTP/1.1, by address: lock-free, the one unused for longest goes first.
//!
//! A pool belongs to one vendor's one address under one configuration, so that a connection that
//! authenticates one vendor can never serve another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use crossbeam_queue::SegQueue;
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::connection::Connection;

/// Most unused connections of a pool. Further ones are closed.
const MOST: usize = 128;
/// `TCP_ESTABLISHED`: neither side has closed.
const ESTABLISHED: u8 = 1;

/// The unused connections to one address.
#[derive(Debug, Default)]
pub(super) struct Pool {
    idle: SegQueue<Idle>,
    /// Their number, which may be off by those that are just taken.
    count: AtomicUsize,
}

/// A connection, and when it is no longer used.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    until: Option<Instant>,
}

impl Pool {
    /// Keeps `connection` until this time; `None`: until the vendor closes it.
    pub(super) fn put(&self, connection: Connection, until: Option<Instant>) {
        if self.count.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.idle.push(Idle { connection, until });
    }

    /// Returns a connection that can be used.
    pub(super) fn take(&self) -> Option<Connection> {
        while let Some(mut idle) = self.pop() {
            if idle.is_usable(Instant::now()) {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Closes what can no longer be used.
    pub(super) fn sweep(&self, now: Instant) {
        for _ in 0..self.count.load(Ordering::Relaxed) {
            let Some(mut idle) = self.pop() else { return };
            if idle.is_usable(now) {
                self.put(idle.connection, idle.until);
            }
        }
    }

    fn pop(&self) -> Option<Idle> {
        let idle = self.idle.pop()?;
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(idle)
    }
}

impl Idle {
    /// Tells whether neither its time nor the connection has ended, and nothing has come that nobody
    /// asked for.
    fn is_usable(&mut self, now: Instant) -> bool {
        let is_in_time = self.until.is_none_or(|until| now < until);
        // The runtime may not have noticed the end yet; the system has.
        is_in_time && self.is_established() && self.is_quiet()
    }

    fn is_established(&self) -> bool {
        let state = self.connection.socket.tcp_info();
        state.is_none_or(|info| info.tcpi_state == ESTABLISHED)
    }

    /// Tells whether there is nothing to read. TLS may take messages of its own from the socket.
    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        let mut now = Context::from_waker(Waker::noop());
        let io = std::pin::Pin::new(&mut *self.connection.io);
        matches!(io.poll_read(&mut now, &mut read), Poll::Pending)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    use std::time::Duration;

    use pingora::protocols::SocketDigest;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, theirs) = tokio::join!(ours, listener.accept());
        let ours = ours.unwrap();
        let socket = Arc::new(SocketDigest::from_raw_fd(ours.as_raw_fd()));
        let io = Box::new(ours);
        (Connection { io, socket }, theirs.unwrap().0)
    }

    #[tokio::test]
    async fn only_connections_that_are_open_quiet_and_in_time_are_used_again() {
        let pool = Pool::default();
        let now = Instant::now();
        let (connection, _open) = pair().await;
        pool.put(connection, Some(now + Duration::from_mins(1)));
        let connection = pool.take().unwrap();
        assert!(pool.take().is_none());
        pool.put(connection, Some(now));
        assert!(pool.take().is_none(), "out of time");

        let (connection, theirs) = pair().await;
        pool.put(connection, None);
        drop(theirs);
        assert!(pool.take().is_none(), "closed, however short ago");

        let (connection, mut theirs) = pair().await;
        theirs.write_all(b"HTTP/1.1 408 bye\r\n\r\n").await.unwrap();
        connection_readable(&connection).await;
        pool.put(connection, None);
        assert!(pool.take().is_none(), "something has come");
    }

    async fn connection_readable(connection: &Connection) {
        let info = || connection.socket.tcp_info().unwrap();
        for _ in 0..1000 {
            if info().tcpi_bytes_received > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::yield_now().await;
    }

    #[tokio::test]
    async fn a_pool_is_bounded_and_swept() {
        let pool = Pool::default();
        let mut others = Vec::new();
        for _ in 0..MOST + 3 {
            let (connection, other) = pair().await;
            pool.put(connection, None);
            others.push(other);
        }
        assert_eq!(pool.count.load(Ordering::Relaxed), MOST);
        others.truncate(5);
        pool.sweep(Instant::now());
        assert_eq!(pool.count.load(Ordering::Relaxed), 5);
    }
}
