//! Accepts connections, with a limit on their number and time limits for the TLS handshake and
//! every request head, and then passes them to pingora.
//!
//! pingora's own loop has none of these: a silent caller holds a connection for a minute, one that
//! sends a head slowly holds it for ever, and a plaintext listener that also speaks HTTP/2 waits
//! without limit for the first 24 bytes.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use pingora::apps::{HttpPersistentSettings, HttpServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::{
    self,
    server::{H2Accept, HttpSession},
};
use pingora::protocols::l4::stream::Stream as TcpStream;
use pingora::protocols::tls::ALPN;
use pingora::protocols::{
    Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Shutdown, SocketDigest, Ssl, Stream,
};
use pingora::proxy::HttpProxy;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::downstream::budget::{HeadBudget, HeadMemory};
use crate::downstream::preamble;
use crate::downstream::stream::{DownstreamStream, HEAD_TIME, RejectedHead, TOO_MANY_HEADS};
use crate::logs::{AccessLog, Line};
use crate::request::{Proxy, Snapshot};
use crate::wording::describe;

/// Time limit for a TLS handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Time limit for telling a caller that its connection closes.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// Time for which a connection over HTTP/2 may be idle.
const KEEPALIVE: Duration = Duration::from_secs(75);
/// Limit of malformed requests on a connection over HTTP/2, which is closed beyond it; pingora's
/// value.
const MALFORMED: usize = 32;

/// The settings and shared state of one listener.
pub(super) struct ListenerContext {
    /// The proxy that serves requests.
    pub(super) app: Arc<HttpProxy<Proxy>>,
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

/// Counts and logs rejected heads, of which no hook of pingora is called.
#[derive(Clone)]
pub(super) struct RejectionLog {
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) access_log: AccessLog,
}

impl RejectionLog {
    fn record(&self, head: &RejectedHead, client: SocketAddr) {
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
    let head_memory = Arc::new(HeadMemory::new(listener_context.head_budget.clone()));
    if http2 || matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        let stream = Box::new(DownstreamStream::new(stream, true, head_memory.clone()));
        serve_http2(listener_context, stream, &head_memory, from, stop).await;
        return;
    }
    let stream = DownstreamStream::new(stream, false, head_memory);
    let rejected_head = stream.rejected_head();
    serve_http1(listener_context, Box::new(stream), stop).await;
    if let Some(head) = rejected_head.get() {
        listener_context.rejections.record(head, from);
    }
}

/// Serves streams until there are no more. pingora's own loop starts a task for each, without a
/// limit on their number or the size of their heads, and waits without limit for a connection's
/// preface.
async fn serve_http2(
    listener_context: &ListenerContext,
    stream: Box<DownstreamStream>,
    head_memory: &Arc<HeadMemory>,
    from: SocketAddr,
    stop: watch::Receiver<bool>,
) {
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let too_much = stream.too_much();
    let Ok(Ok(mut connection)) = timeout(HEAD_TIME, v2::server::handshake(stream, None)).await
    else {
        tracing::debug!(client = %from, "the HTTP/2 handshake failed");
        return;
    };
    let mut stopping = stop.clone();
    let mut stopped = false;
    let mut malformed = 0;
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
            accepted = HttpSession::from_h2_conn(&mut connection, digest.clone()) => accepted,
            () = too_much.notified() => {
                overloaded = true;
                break;
            }
            Some(_) = serving.join_next() => continue,
            () = sleep(KEEPALIVE), if !stopped && serving.is_empty() => break,
        };
        match accepted {
            Ok(Some(H2Accept::Session(mut session))) => {
                let Some(held) = head_memory.stream(&session.req_header().headers) else {
                    // The request may be retried, here or elsewhere (RFC 9113 §8.7).
                    session.shutdown_with_reason(h2::Reason::REFUSED_STREAM);
                    listener_context
                        .rejections
                        .record(&RejectedHead::for_error(TOO_MANY_HEADS), from);
                    continue;
                };
                let (app, stop) = (listener_context.app.clone(), stop.clone());
                serving.spawn(async move {
                    app.process_new_http(ServerSession::new_http2(session), &stop)
                        .await;
                    drop(held);
                });
            }
            Ok(Some(H2Accept::Rejected)) => {
                malformed += 1;
                if malformed >= MALFORMED {
                    tracing::warn!(client = %from, "too many malformed requests: connection closed");
                    break;
                }
            }
            Ok(None) => break,
            Err(cause) => {
                tracing::debug!(client = %from, %cause, "an HTTP/2 connection broke");
                break;
            }
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

/// Serves requests until the connection ends.
async fn serve_http1(
    listener_context: &ListenerContext,
    mut stream: Box<DownstreamStream>,
    stop: watch::Receiver<bool>,
) {
    let mut settings = None;
    let mut stopping = stop.clone();
    let mut stopped = pin!(stopping.wait_for(|stop| *stop));
    loop {
        let begins = tokio::select! {
            // A request that has arrived is served.
            biased;
            begins = stream.begins() => begins,
            _ = &mut stopped => false,
        };
        if !begins {
            // Sends close_notify, so that the caller knows that nothing was cut off (RFC 8446
            // §6.1).
            let _ = timeout(FAREWELL_TIME, stream.shutdown()).await;
            return;
        }
        let mut session = ServerSession::new_http1(stream);
        match settings.take() {
            // Zero: pingora needs no timer per request.
            None => session.set_keepalive((!*stop.borrow()).then_some(0)),
            Some(settings) => HttpPersistentSettings::apply_to_session(settings, &mut session),
        }
        let Some(reused) = listener_context.app.process_new_http(session, &stop).await else {
            return;
        };
        let (reused, persistent) = reused.consume();
        let Ok(kept) = reused.into_any().downcast::<DownstreamStream>() else {
            return;
        };
        kept.expect_head();
        (stream, settings) = (kept, persistent);
    }
}
