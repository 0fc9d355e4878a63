//! A connection to a vendor through an outbound proxy (RFC 9110 §9.3.6).

use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::{Error, ErrorType, Result};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::outbound::{TunnelError, Via};
use crate::tls::sha256;

/// Requests a tunnel to `target` from the proxy at the peer's address.
///
/// The peer's address stays the proxy's, so that pingora, which compares a pooled connection's
/// address with its peer's, reuses tunnels; the group key tells their targets apart.
#[derive(Clone, Debug)]
pub(super) struct Tunnel {
    /// `host:port` of the vendor.
    pub(super) target: String,
    /// The proxy.
    pub(super) via: Via,
    /// Limit for the TCP connection and the proxy's response together.
    pub(super) limit: Duration,
}

#[async_trait]
impl Connect for Tunnel {
    async fn connect(&self, proxy: &SocketAddr) -> Result<Stream> {
        let Some(address) = proxy.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "an outbound proxy has an address");
        };
        let limit = if self.limit.is_zero() {
            Duration::from_mins(5)
        } else {
            self.limit
        };
        let opened = timeout(limit, self.open(*address)).await;
        opened.map_or_else(
            |_| {
                Error::e_explain(
                    ErrorType::ConnectTimedout,
                    "the outbound proxy took too long",
                )
            },
            |stream| Ok(stream?.into()),
        )
    }
}

impl Tunnel {
    /// Returns a key that tells tunnels to different targets apart, for the peer's group key.
    pub(super) fn key(&self) -> u64 {
        let digest = sha256(&[b"tunnel", self.target.as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(first)
    }

    /// Connects as [`Connect::connect`] does, without a limit.
    pub(super) async fn open(&self, proxy: std::net::SocketAddr) -> Result<TcpStream> {
        let unreachable = |cause: std::io::Error| {
            Error::because(
                ErrorType::ConnectError,
                "the outbound proxy cannot be reached",
                cause,
            )
        };
        let mut stream = TcpStream::connect(proxy).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        match self.via.tunnel(&mut stream, &self.target).await {
            Ok(()) => Ok(stream),
            Err(cause) => {
                let kind = match cause {
                    TunnelError::Refused(_) => ErrorType::ConnectProxyFailure,
                    TunnelError::TimedOut(_) => ErrorType::ConnectTimedout,
                    TunnelError::Broken(_) | TunnelError::Garbled(_) => ErrorType::ConnectError,
                };
                Error::e_explain(kind, cause.to_string())
            }
        }
    }
}
