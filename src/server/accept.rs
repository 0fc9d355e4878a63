//! Taking connections in: a bound on their number, a limit for the TLS handshake and for every
//! request head, and only then pingora.
//!
//! pingora's own loop has none of these: a silent caller holds a connection for a minute, one that
//! dribbles a head holds it for ever, and a plaintext listener that also speaks HTTP/2 waits
//! without end for the first 24 bytes.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::protocols::tls::ALPN;
use pingora::protocols::{GetSocketDigest, Shutdown, SocketDigest, Stream};
use pingora::proxy::HttpProxy;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::guard::{Guarded, HEAD_TIME, Unmade};
use super::logs::{AccessLog, Line};
use super::preamble;
use crate::error::BAD_REQUEST;
use crate::request::{Proxy, Snapshot};

/// A TLS handshake must be done within this time.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// A connection that ends is given this long to take the news.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Connections of all listeners at a time; further ones wait in the system's queue, as nginx has it.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// Open files that are neither a caller's connection nor one to a vendor.
const OTHER_FILES: usize = 64;

/// One listener's way in.
pub(super) struct Door {
    /// Who serves.
    pub(super) app: Arc<HttpProxy<Proxy>>,
    /// `None`: plaintext.
    pub(super) tls: Option<Acceptor>,
    /// Plaintext callers may speak HTTP/2 with prior knowledge.
    pub(super) h2c: bool,
    /// Connections from here begin with a PROXY protocol header.
    pub(super) proxied_by: Vec<IpNet>,
    /// Where heads are entered that never became a request.
    pub(super) ledger: Ledger,
}

/// Counts and logs what no hook of pingora's hears of.
#[derive(Clone)]
pub(super) struct Ledger {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) access_log: AccessLog,
}

impl Ledger {
    fn enter(&self, head: &Unmade, client: SocketAddr) {
        let snapshot = self.snapshot.load();
        let status = head.status.as_u16();
        snapshot.nobody.refused_unmade(status);
        snapshot.nobody.refused(BAD_REQUEST);
        if snapshot.access_log {
            self.access_log.write(&Line {
                request_id: head.request_id.to_str().unwrap_or_default(),
                status,
                reason: Some(BAD_REQUEST),
                client: Some(&client.into()),
                ..Line::default()
            });
        }
    }
}

/// How many files this process may have open; `None`: as many as it likes.
pub(super) fn files_permitted() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// How many connections each of so many listeners takes at a time, where the process may have
/// `files` open. A quarter stays for connections to vendors: idle callers must not keep others from
/// those.
pub(super) fn connections_each(files: Option<u64>, listeners: usize) -> usize {
    let files = files.and_then(|files| usize::try_from(files).ok());
    let all = files.map_or(MAX_CONNECTIONS, |files| {
        (files.saturating_sub(OTHER_FILES) / 4 * 3).min(MAX_CONNECTIONS)
    });
    (all / listeners.max(1)).max(1)
}

/// Takes connections, at most `most` at a time, until `stop` says so; those taken go on.
pub(super) async fn accept(
    door: Arc<Door>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
    most: usize,
) {
    let slots = Arc::new(Semaphore::new(most));
    let mut stopping = stop.clone();
    let mut full = false;
    loop {
        if slots.available_permits() > 0 {
            full = false;
        } else if !full {
            full = true;
            tracing::warn!(
                most,
                "as many connections as this listener takes: further callers wait"
            );
        }
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        let Ok(slot) = slot else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((socket, from)) => {
                let (door, stop) = (door.clone(), stop.clone());
                tokio::spawn(async move {
                    serve(&door, socket, from, stop).await;
                    drop(slot);
                });
            }
            Err(cause) => {
                tracing::error!(%cause, "a connection could not be taken");
                // Out of files or memory: the next attempt would fail as fast.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    door: &Door,
    socket: tokio::net::TcpStream,
    from: SocketAddr,
    stop: watch::Receiver<bool>,
) {
    let mut socket = TcpStream::from(socket);
    let mut from = from;
    if preamble::is_trusted(&door.proxied_by, from) {
        match timeout(HEAD_TIME, preamble::proxied_for(&mut socket)).await {
            Ok(Ok(client)) => from = client.unwrap_or(from),
            Ok(Err(cause)) => {
                tracing::warn!(client = %from, %cause, "connection closed");
                return;
            }
            Err(_) => return,
        }
    }
    let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
    // A new cell takes its first value.
    let _ = digest.peer_addr.set(Some(from.into()));
    socket.set_socket_digest(digest);
    if socket.set_nodelay().is_err() {
        // Gone already.
        return;
    }
    let mut http2 = false;
    let stream: Stream = match &door.tls {
        None => {
            if door.h2c {
                match timeout(HEAD_TIME, preamble::speaks_http2(&mut socket)).await {
                    Ok(Ok(preface)) => http2 = preface,
                    Ok(Err(_)) | Err(_) => return,
                }
            }
            Box::new(socket)
        }
        // In a box, so that connections do not go on holding the seven kilobytes that it takes.
        Some(tls) => match timeout(HANDSHAKE_TIME, Box::pin(tls.tls_handshake(socket))).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(cause)) => {
                tracing::debug!(client = %from, %cause, "TLS handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(client = %from, "TLS handshake not done in time");
                return;
            }
        },
    };
    if http2 || matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        let stream = Box::new(Guarded::new(stream, true));
        door.app.process_new(stream, &stop).await;
        return;
    }
    let guarded = Guarded::new(stream, false);
    let unmade = guarded.unmade();
    serve_http1(door, Box::new(guarded), stop).await;
    if let Some(head) = unmade.get() {
        door.ledger.enter(head, from);
    }
}

/// Serves requests until there are no more.
async fn serve_http1(door: &Door, mut guarded: Box<Guarded>, stop: watch::Receiver<bool>) {
    let mut settings = None;
    let mut stopping = stop.clone();
    let mut stopped = pin!(stopping.wait_for(|stop| *stop));
    loop {
        let begins = tokio::select! {
            // What has come is served.
            biased;
            begins = guarded.begins() => begins,
            _ = &mut stopped => false,
        };
        if !begins {
            // Of TLS, so that the caller knows that nothing was cut off (RFC 8446 §6.1).
            let _ = timeout(FAREWELL_TIME, guarded.shutdown()).await;
            return;
        }
        let mut session = ServerSession::new_http1(guarded);
        match settings.take() {
            // Zero: pingora needs no timer of its own for each request.
            None => session.set_keepalive((!*stop.borrow()).then_some(0)),
            Some(settings) => HttpPersistentSettings::apply_to_session(settings, &mut session),
        }
        let Some(reused) = door.app.process_new_http(session, &stop).await else {
            return;
        };
        let (stream, persistent) = reused.consume();
        let Ok(kept) = stream.into_any().downcast::<Guarded>() else {
            return;
        };
        kept.expect_head();
        (guarded, settings) = (kept, persistent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_leave_files_for_the_way_to_vendors() {
        assert_eq!(connections_each(None, 1), MAX_CONNECTIONS);
        assert_eq!(connections_each(Some(1 << 20), 2), MAX_CONNECTIONS / 2);
        assert_eq!(connections_each(Some(1024), 1), 720);
        assert_eq!(connections_each(Some(1024), 3), 240);
        assert_eq!(connections_each(Some(3), 3), 1);
    }
}
