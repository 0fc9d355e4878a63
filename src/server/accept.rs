//! Accepts connections, with a limit on their number and time limits for the TLS handshake and
//! every request head, and serves their requests one by one.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use ipnet::IpNet;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::protocols::tls::ALPN;
use pingora::protocols::{GetSocketDigest, SocketDigest, Stream};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::alarm::Alarm;
use crate::downstream::budget::{HeadBudget, HeadMemory};
use crate::downstream::http1::{Http1, Next, RefusedHead, TOO_MANY_HEADS};
use crate::downstream::http2::Http2;
use crate::downstream::http2_io::Http2Io;
use crate::downstream::preamble;
use crate::downstream::request::{HEAD_TIME, KEEPALIVE, Peer};
use crate::downstream::session::Downstream;
use crate::logs::{AccessLog, Line};
use crate::request::{Proxy, Snapshot, exchange};
use crate::wording::describe;

/// Time limit for a TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Time limit for telling a caller that its connection closes.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// Largest decoded head over HTTP/2, bytes, as RFC 9113 §6.5.2 counts them.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// Requests at a time on a connection over HTTP/2.
const MAX_STREAMS: u32 = 100;

/// The settings and shared state of one listener.
pub(super) struct ListenerContext {
    /// The proxy that serves requests.
    pub(super) proxy: Arc<Proxy>,
    /// TLS acceptor; `None` for plaintext.
    pub(super) tls: Option<Acceptor>,
    /// `true` if plaintext callers may speak HTTP/2 with prior knowledge.
    pub(super) h2c: bool,
    /// Networks whose connections begin with a PROXY protocol header.
    pub(super) proxied_by: Vec<IpNet>,
    /// Memory budget for the heads of all connections.
    pub(super) head_budget: Arc<HeadBudget>,
    /// Log of rejected heads, which never became requests.
    pub(super) rejections: RejectionLog,
}

/// Counts and logs rejected heads, which never became requests.
#[derive(Clone)]
pub(super) struct RejectionLog {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) access_log: AccessLog,
}

impl RejectionLog {
    fn record(&self, head: &RefusedHead, client: SocketAddr) {
        let snapshot = self.snapshot.load();
        let status = head.status.as_u16();
        snapshot.unrouted.count_rejected_head(status);
        snapshot.unrouted.count_refusal(head.reason);
        if snapshot.access_log {
            self.access_log.write(&Line {
                request_id: head.request_id.to_str().unwrap_or_default(),
                status,
                reason: Some(head.reason),
                client: Some(&client),
                ..Line::default()
            });
        }
    }
}

/// The bound of a listener's accept loop, and what the loop logs.
pub(super) struct Bound {
    /// Limit of open connections; further ones wait.
    pub(super) most: usize,
    /// Log message when the limit is reached.
    pub(super) when_full: Option<&'static str>,
    /// Log message when accept fails.
    pub(super) when_failed: &'static str,
}

/// Accepts connections within `bound` and serves each in a task of its own, until dropped. Accepted
/// connections continue.
pub(super) async fn accept_within<S>(
    bound: Bound,
    listener: TcpListener,
    serve: impl Fn(tokio::net::TcpStream, SocketAddr) -> S,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let most = bound.most;
    let slots = Arc::new(Semaphore::new(most));
    let mut full = false;
    loop {
        if slots.available_permits() > 0 {
            full = false;
        } else if !full && let Some(text) = bound.when_full {
            full = true;
            tracing::warn!(most, "{text}");
        }
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, from)) => {
                let serving = serve(socket, from);
                tokio::spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Err(cause) => {
                tracing::error!(%cause, "{}", bound.when_failed);
                // Out of files or memory: the next attempt would fail as fast.
                sleep(FAILURE_PAUSE).await;
            }
        }
    }
}

/// Accepts callers' connections, at most `most` at a time, until `stop` is `true`. Accepted
/// connections continue.
pub(super) async fn accept(
    listener_context: Arc<ListenerContext>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
    most: usize,
) {
    let bound = Bound {
        most,
        when_full: Some("the listener has reached its limit of connections: further callers wait"),
        when_failed: "cannot accept a connection",
    };
    let mut stopping = stop.clone();
    let accepting = accept_within(bound, listener, |socket, from| {
        let (listener_context, stop) = (listener_context.clone(), stop.clone());
        async move { serve(&listener_context, socket, from, stop).await }
    });
    tokio::select! {
        () = accepting => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

async fn serve(
    listener_context: &ListenerContext,
    socket: tokio::net::TcpStream,
    from: SocketAddr,
    stop: watch::Receiver<bool>,
) {
    let may_be_more = listener_context.tls.is_some()
        || listener_context.h2c
        || preamble::is_trusted(&listener_context.proxied_by, from);
    if may_be_more {
        return Box::pin(serve_prepared(listener_context, socket, from, stop)).await;
    }
    // Nothing but HTTP/1.1 can come: no buffer of pingora's is needed.
    if socket.set_nodelay(true).is_err() {
        // The caller is gone already.
        return;
    }
    let digest = Arc::new(SocketDigest::from_raw_fd(socket.as_raw_fd()));
    let head_memory = Arc::new(HeadMemory::new(listener_context.head_budget.clone()));
    let mut connection = Http1::new(Box::new(socket), Some(digest), head_memory);
    let peer = Peer {
        client: from,
        tls: None,
    };
    if serve_http1(listener_context, &mut connection, &peer, stop).await {
        Box::pin(connection.close()).await;
    }
}

/// Serves a connection that begins with a PROXY header, a TLS handshake, or the preface of HTTP/2.
async fn serve_prepared(
    listener_context: &ListenerContext,
    socket: tokio::net::TcpStream,
    from: SocketAddr,
    stop: watch::Receiver<bool>,
) {
    let mut socket = TcpStream::from(socket);
    let mut from = from;
    if preamble::is_trusted(&listener_context.proxied_by, from) {
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
    // Fails only for a cell that is already set.
    let _ = digest.peer_addr.set(Some(from.into()));
    socket.set_socket_digest(digest);
    if socket.set_nodelay().is_err() {
        // The caller is gone already.
        return;
    }
    let mut http2 = false;
    let stream: Stream = match &listener_context.tls {
        None => {
            if listener_context.h2c {
                match timeout(HEAD_TIME, preamble::speaks_http2(&mut socket)).await {
                    Ok(Ok(preface)) => http2 = preface,
                    Ok(Err(_)) | Err(_) => return,
                }
            }
            Box::new(socket)
        }
        // Boxed, so that connections do not keep the seven kilobytes of the handshake.
        Some(tls) => match timeout(HANDSHAKE_TIME, Box::pin(tls.tls_handshake(socket))).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(cause)) => {
                let cause = describe(&cause.to_string());
                tracing::debug!(client = %from, cause, "TLS handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(client = %from, "TLS handshake timed out");
                return;
            }
        },
    };
    let peer = Peer {
        client: from,
        tls: stream.get_ssl_digest(),
    };
    let head_memory = Arc::new(HeadMemory::new(listener_context.head_budget.clone()));
    if http2 || matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        // Boxed: connections over HTTP/1.1 do not keep the room of one over HTTP/2.
        Box::pin(serve_http2(
            listener_context,
            stream,
            head_memory,
            peer,
            stop,
        ))
        .await;
    } else {
        let digest = stream.get_socket_digest();
        let mut connection = Http1::new(Box::new(stream), digest, head_memory);
        if serve_http1(listener_context, &mut connection, &peer, stop).await {
            Box::pin(connection.close()).await;
        }
    }
}

/// Serves streams until there are no more.
async fn serve_http2(
    listener_context: &ListenerContext,
    stream: Stream,
    head_memory: Arc<HeadMemory>,
    peer: Peer,
    stop: watch::Receiver<bool>,
) {
    let io = Http2Io::new(stream, head_memory.clone());
    let too_much = io.too_much();
    let handshake = h2::server::Builder::new()
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .handshake::<_, Bytes>(io);
    let Ok(Ok(mut connection)) = timeout(HEAD_TIME, handshake).await else {
        tracing::debug!(client = %peer.client, "the HTTP/2 handshake failed");
        return;
    };
    let peer = Arc::new(peer);
    let mut stopping = stop.clone();
    let mut stopped = false;
    let mut overloaded = false;
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop), if !stopped => {
                // Requests that the caller sent before it learns of the shutdown are still served.
                connection.graceful_shutdown();
                stopped = true;
                continue;
            }
            accepted = connection.accept() => accepted,
            () = too_much.notified() => {
                overloaded = true;
                break;
            }
            Some(_) = serving.join_next() => continue,
            () = sleep(KEEPALIVE), if !stopped && serving.is_empty() => break,
        };
        match accepted {
            Some(Ok((request, respond))) => {
                let serve = serve_stream(listener_context, &head_memory, &peer, request, respond);
                if let Some(serve) = serve {
                    serving.spawn(serve);
                }
            }
            Some(Err(cause)) => {
                tracing::debug!(client = %peer.client, %cause, "an HTTP/2 connection broke");
                break;
            }
            None => break,
        }
    }
    if overloaded {
        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        let closed = poll_fn(|cx| connection.poll_closed(cx));
        let _ = timeout(FAREWELL_TIME, closed).await;
    }
    // Each task notices by itself that its connection is gone, and has a line to log.
    serving.detach_all();
}

/// Returns the task that serves one stream; `None`: there is no memory for its head.
fn serve_stream(
    listener_context: &ListenerContext,
    head_memory: &Arc<HeadMemory>,
    peer: &Arc<Peer>,
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    let (head, body) = request.into_parts();
    let Some(held) = head_memory.stream(&head.headers) else {
        // The request may be retried, here or elsewhere (RFC 9113 §8.7).
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        let refused = RefusedHead::for_error(TOO_MANY_HEADS);
        listener_context.rejections.record(&refused, peer.client);
        return None;
    };
    let (proxy, peer) = (listener_context.proxy.clone(), peer.clone());
    let (mut stream, request) = Http2::new(head, body, respond);
    Some(async move {
        let mut alarm = Alarm::default();
        let mut downstream = Downstream::Http2(&mut stream);
        exchange::serve(&proxy, request, &peer, &mut downstream, &mut alarm).await;
        drop(held);
    })
}

/// Serves requests until there are no more. `false`: the connection has ended already.
async fn serve_http1(
    listener_context: &ListenerContext,
    connection: &mut Http1,
    peer: &Peer,
    stop: watch::Receiver<bool>,
) -> bool {
    let mut stopping = stop;
    let mut stopped = pin!(stopping.wait_for(|stop| *stop));
    let mut alarm = Alarm::default();
    loop {
        let begins = tokio::select! {
            // A request that has arrived is served.
            biased;
            begins = connection.begins(&mut alarm) => begins,
            _ = &mut stopped => false,
        };
        if !begins {
            return true;
        }
        match connection.next_request(&mut alarm).await {
            Next::Request(request) => {
                let proxy = &listener_context.proxy;
                let mut downstream = Downstream::Http1(&mut *connection);
                // Boxed, so that an idle connection does not keep its room.
                Box::pin(exchange::serve(
                    proxy,
                    *request,
                    peer,
                    &mut downstream,
                    &mut alarm,
                ))
                .await;
            }
            Next::Refused(head) => {
                listener_context.rejections.record(&head, peer.client);
                return false;
            }
            Next::Closed => return true,
        }
        if !connection.expect_next() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This is what an idle connection over HTTP/1.1 costs, beside its socket.
    #[test]
    fn the_future_of_an_idle_connection_stays_small() {
        fn size<'a, F>(
            _: impl FnOnce(
                &'a ListenerContext,
                tokio::net::TcpStream,
                SocketAddr,
                watch::Receiver<bool>,
            ) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 2560, "{size}");
    }
}
