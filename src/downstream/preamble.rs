//! The bytes before HTTP on a connection: the PROXY protocol's header, and the preface that
//! announces HTTP/2 in plaintext.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use pingora::protocols::l4::stream::Stream;
use ppp::{HeaderResult, PartialResult, v1, v2};
use tokio::io::AsyncReadExt;

/// RFC 9113 §3.4.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest header that is read: version 2 with its extensions, far above what load balancers send.
const MAX_HEADER: usize = 4096;

/// Longest header of version 1, its line break included.
const MAX_TEXT_HEADER: usize = 107;

/// Tells whether `from` is one of the load balancers whose PROXY headers are trusted.
pub(crate) fn is_trusted(trusted: &[IpNet], from: SocketAddr) -> bool {
    let address = from.ip().to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// Reads a PROXY protocol header, version 1 or 2, and puts back what follows it. `None`: it is the
/// load balancer's own connection (a health check), or has no address.
///
/// # Errors
/// Fails if the connection does not begin with a header.
pub(crate) async fn proxied_for(stream: &mut Stream) -> io::Result<Option<SocketAddr>> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let parsed = HeaderResult::parse(&bytes);
        // The parser takes a header of version 1 that ends before its last port for an invalid one.
        let cut_short = bytes.starts_with(b"PROXY ")
            && bytes.len() < MAX_TEXT_HEADER
            && !bytes.contains(&b'\n');
        if cut_short || (parsed.is_incomplete() && bytes.len() < MAX_HEADER) {
            continue;
        }
        let (length, address) = match &parsed {
            HeaderResult::V1(Ok(header)) => (header.header.len(), v1_source(header)),
            HeaderResult::V2(Ok(header)) => (header.len(), v2_source(header)),
            HeaderResult::V1(Err(_)) | HeaderResult::V2(Err(_)) => {
                let missing = "no PROXY protocol header from a trusted load balancer";
                return Err(io::Error::new(io::ErrorKind::InvalidData, missing));
            }
        };
        stream.rewind(&bytes[length..]);
        return Ok(address);
    }
}

fn v1_source(header: &v1::Header<'_>) -> Option<SocketAddr> {
    match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some((ip.source_address, ip.source_port).into()),
        v1::Addresses::Tcp6(ip) => Some((ip.source_address, ip.source_port).into()),
    }
}

fn v2_source(header: &v2::Header<'_>) -> Option<SocketAddr> {
    if header.command == v2::Command::Local {
        return None;
    }
    match header.addresses {
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
        v2::Addresses::IPv4(ip) => Some((ip.source_address, ip.source_port).into()),
        v2::Addresses::IPv6(ip) => Some((ip.source_address, ip.source_port).into()),
    }
}

/// Tells whether the connection begins with HTTP/2's preface; what was read is put back. It decides
/// at the first byte that differs, so that a short HTTP/1 request never waits for more.
pub(crate) async fn speaks_http2(stream: &mut Stream) -> io::Result<bool> {
    let mut bytes = Vec::with_capacity(HTTP2_PREFACE.len());
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let compared = bytes.len().min(HTTP2_PREFACE.len());
        let same = bytes[..compared] == HTTP2_PREFACE[..compared];
        if !same || compared == HTTP2_PREFACE.len() {
            stream.rewind(&bytes);
            return Ok(same);
        }
    }
}
