//! Connections of our own TLS ([`OwnTls`]) that pingora uses as its own, through one end of a
//! socket pair.
//!
//! pingora pools sockets whose peer it can ask for. A stream of our own (`custom_l4` with a virtual
//! socket) is none; a pair of connected Unix sockets is. It has no name, so nothing else on the
//! machine can reach it and nothing is left behind. One task per connection copies bytes between
//! the pair and the vendor: one connection of pingora's is one connection to the vendor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::ext::set_tcp_keepalive;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::l4::stream::Stream as PingoraStream;
use pingora::protocols::{ALPN, TcpKeepalive};
use pingora::upstreams::peer::{HttpPeer, Tracer, Tracing};
use pingora::{Error, ErrorType, Result};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::tls::OwnTls;
use super::tunnel::Tunnel;
use crate::late_client_auth::{self, described};
use crate::tls::sha256;

/// The settings of connections to one vendor.
#[derive(Clone, Debug)]
pub(super) struct Bridge {
    pub(super) vendor: Arc<str>,
    /// The name that the server's certificate must have.
    pub(super) host: Arc<str>,
    pub(super) tls: OwnTls,
    /// The tunnel through an outbound proxy, if any.
    pub(super) tunnel: Option<Tunnel>,
    pub(super) tcp_keepalive: Option<TcpKeepalive>,
}

/// A [`Bridge`] to one address.
#[derive(Debug)]
struct BridgeConnector {
    bridge: Bridge,
    address: SocketAddr,
}

/// Time that the vendor may take to receive our close.
const GOODBYE: Duration = Duration::from_secs(1);

impl Bridge {
    /// Routes `peer` to `address` through the bridge.
    ///
    /// The peer's own address stays 0.0.0.0: with it, pingora takes a pooled socket by its key
    /// alone, without comparing the socket's peer, which a pair does not have. So the key contains
    /// everything, the address included.
    pub(super) fn route_through(&self, peer: &mut HttpPeer, address: SocketAddr) {
        let digest = sha256(&[b"bridge", address.to_string().as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        peer.group_key ^= u64::from_be_bytes(first);
        peer.options.alpn = ALPN::H1;
        peer.options.custom_l4 = Some(Arc::new(BridgeConnector {
            bridge: self.clone(),
            address,
        }));
    }
}

#[async_trait]
impl Connect for BridgeConnector {
    /// Returns only once the vendor has been verified; the peer's `total_connection_timeout` limits
    /// it.
    async fn connect(&self, _nowhere: &PingoraAddr) -> Result<PingoraStream> {
        let Bridge {
            vendor,
            host,
            tls,
            tunnel,
            tcp_keepalive,
        } = &self.bridge;
        let address = self.address;
        let stream = match tunnel {
            Some(tunnel) => tunnel.open(address).await?,
            None => TcpStream::connect(address).await.map_err(|cause| {
                Error::because(ErrorType::ConnectError, address.to_string(), cause)
            })?,
        };
        let broken = |cause| Error::because(ErrorType::SocketError, "a socket pair", cause);
        stream.set_nodelay(true).map_err(broken)?;
        if let Some(keepalive) = tcp_keepalive {
            set_tcp_keepalive(&stream, keepalive)?;
        }
        let stream: Box<dyn Duplex> = match tls {
            OwnTls::Late(late) => Box::new(
                late.handshake(host, stream)
                    .await
                    .map_err(|cause| Error::explain(kind(&cause), cause.to_string()))?,
            ),
            OwnTls::Usual(connector) => {
                let name = ServerName::try_from(host.to_string())
                    .map_err(|_| Error::explain(ErrorType::InvalidCert, "no name to verify"))?;
                let connected = connector.connect(name, stream).await;
                Box::new(connected.map_err(|cause| {
                    let (kind, said) = refused(&cause);
                    Error::explain(kind, said)
                })?)
            }
        };

        let (ours, theirs) = UnixStream::pair().map_err(broken)?;
        let spare = theirs.as_fd().try_clone_to_owned().map_err(broken)?;
        let gone = Arc::new(Notify::new());
        let carried = BridgedConnection {
            vendor: vendor.clone(),
            ours,
            theirs: spare.into(),
            gone: gone.clone(),
        };
        tokio::spawn(carried.run(stream));
        let mut stream = PingoraStream::from(theirs);
        stream.tracer = Some(Tracer(Box::new(Watch(gone))));
        Ok(stream)
    }
}

/// A connection that carries bytes both ways.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Returns the error of a failed rustls connect.
fn refused(cause: &io::Error) -> (ErrorType, String) {
    let inner = cause.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let kind = match inner {
        Some(rustls::Error::InvalidCertificate(_)) => ErrorType::InvalidCert,
        Some(_) | None => ErrorType::TLSHandshakeFailure,
    };
    let said = inner.map_or_else(|| cause.to_string(), ToString::to_string);
    (kind, said)
}

fn kind(cause: &late_client_auth::Error) -> ErrorType {
    use late_client_auth::Error as Late;

    match cause {
        Late::Unverified(_) => ErrorType::InvalidCert,
        Late::Handshake(_) => ErrorType::TLSHandshakeFailure,
        Late::TimedOut(_) => ErrorType::ConnectTimedout,
        Late::Unreachable(_) | Late::Tunnel(_) => ErrorType::ConnectError,
    }
}

/// One connection while it lives.
struct BridgedConnection {
    vendor: Arc<str>,
    ours: UnixStream,
    /// A second handle of pingora's end.
    theirs: StdUnixStream,
    /// Notified when pingora has dropped its handle.
    gone: Arc<Notify>,
}

impl BridgedConnection {
    async fn run(mut self, stream: impl Duplex) {
        let (mut from_vendor, mut to_vendor) = split(stream);
        let (mut from_us, mut to_us) = self.ours.split();
        let answers = async {
            copy(&mut from_vendor, &mut to_us).await?;
            // The vendor has closed its side.
            to_us.shutdown().await
        };
        let requests = async { copy(&mut from_us, &mut to_vendor).await.map(drop) };
        let end = tokio::select! {
            () = self.gone.notified() => Ok(()),
            end = async { tokio::try_join!(answers, requests) } => end.map(drop),
        };
        match end {
            Ok(()) => {
                let _ = timeout(GOODBYE, to_vendor.shutdown()).await;
            }
            Err(cause) => {
                self.reset();
                let (vendor, said) = (&*self.vendor, described(&cause));
                // pingora sees only a reset. A reset alone is nothing new; a refused certificate
                // is.
                if cause.kind() == io::ErrorKind::Other {
                    tracing::warn!(vendor, cause = said, "the vendor broke off TLS");
                } else {
                    tracing::debug!(vendor, cause = said, "the vendor's connection broke");
                }
            }
        }
    }

    /// Breaks the pair: a sudden end must not look like the end of a response. A socket that is
    /// closed with unread bytes in it is reset (unix(7)), so a byte is put there.
    fn reset(&self) {
        use std::io::Write;

        // A full buffer does as well.
        let _ = (&self.theirs).write(&[0]);
    }
}

/// Notified by pingora when its end is dropped: the spare handle would keep it open.
#[derive(Debug)]
struct Watch(Arc<Notify>);

impl Tracing for Watch {
    fn on_connected(&self) {}

    fn on_disconnected(&self) {
        self.0.notify_one();
    }

    fn boxed_clone(&self) -> Box<dyn Tracing> {
        Box::new(Self(self.0.clone()))
    }
}
