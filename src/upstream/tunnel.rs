//! A connection to a vendor through an outbound proxy (RFC 9110 §9.3.6).

use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::tls::sha256;

/// Asks the proxy at the peer's address for `target`.
///
/// The peer's address stays the proxy's, so that pingora, which compares a pooled connection's
/// address with its peer's, reuses tunnels; the group key tells their targets apart.
#[derive(Debug)]
pub(super) struct Tunnel {
    /// `host:port` of the vendor.
    pub(super) target: String,
    /// `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
    /// For the TCP connection and the proxy's answer together.
    pub(super) limit: Duration,
}

/// Longest head of a proxy's answer, bytes.
const MAX_ANSWER: usize = 8 * 1024;

#[async_trait]
impl Connect for Tunnel {
    async fn connect(&self, proxy: &SocketAddr) -> Result<Stream> {
        let limit = if self.limit.is_zero() {
            Duration::from_mins(5)
        } else {
            self.limit
        };
        timeout(limit, self.open(proxy)).await.unwrap_or_else(|_| {
            Error::e_explain(
                ErrorType::ConnectTimedout,
                "the outbound proxy took too long",
            )
        })
    }
}

impl Tunnel {
    /// Tells tunnels to different targets apart, for the peer's group key.
    pub(super) fn key(&self) -> u64 {
        let digest = sha256(&[b"tunnel", self.target.as_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(first)
    }

    async fn open(&self, proxy: &SocketAddr) -> Result<Stream> {
        let failed = |what: &'static str| {
            move |cause: std::io::Error| Error::because(ErrorType::ConnectError, what, cause)
        };
        let Some(address) = proxy.as_inet() else {
            return Error::e_explain(ErrorType::InternalError, "an outbound proxy has an address");
        };
        let mut stream = TcpStream::connect(address)
            .await
            .map_err(failed("the outbound proxy cannot be reached"))?;
        stream
            .set_nodelay(true)
            .map_err(failed("the outbound proxy cannot be reached"))?;

        let mut head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n", self.target).into_bytes();
        if let Some(authorization) = &self.authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        stream
            .write_all(&head)
            .await
            .map_err(failed("the outbound proxy closed the connection"))?;

        let mut answer = Vec::with_capacity(512);
        loop {
            let read = stream
                .read_buf(&mut answer)
                .await
                .map_err(failed("the outbound proxy closed the connection"))?;
            if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
                // A vendor says nothing before our handshake: whatever follows is not its.
                if end + 4 < answer.len() {
                    return Error::e_explain(
                        ErrorType::ConnectError,
                        "the outbound proxy sent more than its answer",
                    );
                }
                break;
            }
            if read == 0 || answer.len() > MAX_ANSWER {
                return Error::e_explain(
                    ErrorType::ConnectError,
                    "the outbound proxy did not answer the CONNECT",
                );
            }
        }
        let status = answer.get(9..12).unwrap_or_default();
        if status.first() != Some(&b'2') {
            let status = String::from_utf8_lossy(status).into_owned();
            return Error::e_explain(
                ErrorType::ConnectProxyFailure,
                format!("the outbound proxy refused the CONNECT with {status}"),
            );
        }
        Ok(stream.into())
    }
}
