//! A vendor's servers: peers prepared once per configuration, addresses kept current in the
//! background, connections kept for further requests. A request never resolves a name.

pub mod addresses;
pub mod breaker;
pub mod connect_errors;
mod connection;
pub mod connector;
pub mod http2;
mod keepalive;
mod own_tls;
mod pool;
pub mod resolver;
pub(crate) mod session;
mod tls;
mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::l4::ext::set_tcp_keepalive;
use pingora::protocols::{ALPN, SocketDigest, Stream, TcpKeepalive};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use self::addresses::{Addresses, Picked, TriedAddresses};
use self::connect_errors::{ConnectErrors, ConnectTrouble};
use self::connection::Connection;
use self::connector::Connector;
use self::http2::{AttemptOptions, Versions};
use self::own_tls::OwnTls;
use self::resolver::{Resolved, Resolver};
use self::session::{UpstreamSession, VendorHttp1, VendorHttp2};
use self::tunnel::Tunnel;
use crate::config::{Timeouts, Vendor, is_link_local};
use crate::http1::output::Io;
use crate::outbound::{Outbound, Unusable};

/// The reason why a vendor's servers cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate, key or CA file.
    #[error(transparent)]
    Tls(#[from] crate::tls::Error),
    /// The outbound proxy that the environment specifies.
    #[error(transparent)]
    Outbound(#[from] Unusable),
}

/// One vendor's servers.
pub struct Upstream {
    addresses: Arc<Addresses>,
    resolving: Option<AbortHandle>,
    /// The vendor's name, for the log.
    vendor: Arc<str>,
    /// The resolved host: the vendor's, or the outbound proxy's.
    host: Arc<str>,
    port: u16,
    trouble: Arc<ConnectTrouble>,
    versions: Versions,
    connector: Arc<Connector>,
    /// How connections over HTTP/1.1 are made.
    transport: Transport,
    /// The way through an outbound proxy.
    tunnel: Option<Tunnel>,
    /// The name that the server's certificate must have.
    server_name: String,
    /// How long an unused connection is kept; `None`: no limit.
    kept_for: Option<Duration>,
}

/// How a connection is made over HTTP/1.1.
#[derive(Debug)]
enum Transport {
    Plaintext,
    /// By pingora's connector, which also speaks HTTP/2.
    Tls,
    OwnTls(OwnTls),
}

/// A connection, or a stream of one, for one attempt.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) session: UpstreamSession,
    /// It has served other requests before.
    pub(crate) reused: bool,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

impl Upstream {
    /// Prepares the peers of `vendor` and starts resolving its name. `generation` tells this
    /// configuration's connections from those of an earlier one.
    ///
    /// # Errors
    /// Fails if the client certificate, the CA file or the environment's proxy cannot be used.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        vendor: &Vendor,
        generation: u64,
        resolver: &Resolver,
        connector: &Arc<Connector>,
    ) -> std::result::Result<Arc<Self>, StartError> {
        let mut template = template(vendor, generation)?;
        let outbound = Outbound::new(vendor.proxy.as_ref());
        let via = match vendor.upstream.origin().parse() {
            Ok(origin) => outbound.via(&origin)?,
            // The host was parsed before.
            Err(_) => None,
        };
        let tunnel = via.as_ref().map(|via| Tunnel {
            target: vendor.upstream.host_and_port(),
            via: via.clone(),
            limit: vendor.timeouts.connect,
        });
        if let Some(tunnel) = &tunnel {
            template.group_key ^= tunnel.key();
            template.options.custom_l4 = Some(Arc::new(tunnel.clone()));
        }
        let (host, port) = via.map_or_else(
            || (vendor.upstream.host.clone(), vendor.upstream.port),
            |via| (via.host, via.port),
        );
        let transport = match OwnTls::of(vendor)? {
            Some(own) => Transport::OwnTls(own),
            None if vendor.upstream.tls => Transport::Tls,
            None => Transport::Plaintext,
        };
        let kept_for = template.options.idle_timeout;
        let at = move |address: IpAddr| {
            let mut peer = template.clone();
            peer._address = SocketAddr::new(address, port).into();
            peer
        };
        let pool = {
            let connector = connector.clone();
            move || connector.pool()
        };
        let addresses = Arc::new(Addresses::unresolved());
        let trouble = Arc::new(ConnectTrouble::default());
        let known_as: Arc<str> = host.as_str().into();
        let upstream = Self {
            addresses: addresses.clone(),
            resolving: None,
            vendor: vendor.name.as_str().into(),
            host: known_as.clone(),
            port,
            trouble: trouble.clone(),
            versions: Versions::new(),
            connector: connector.clone(),
            transport,
            tunnel,
            server_name: vendor.upstream.host.clone(),
            kept_for,
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            addresses.publish(&[address], at, pool);
            return Ok(Arc::new(upstream));
        }
        let follow = resolver.watch(host);
        let (name, link_local) = (vendor.name.clone(), vendor.allow_link_local);
        // A share of its own rather than a way back to the whole: the first result may come (from
        // the hosts file, say) before this function returns.
        let publish = {
            let (addresses, trouble) = (addresses.clone(), trouble.clone());
            let host = known_as.clone();
            move |mut resolved: Resolved| {
                resolved.retain(|address| link_local || !is_link_local(*address));
                if resolved.is_empty() {
                    // The last good addresses, if any, stay in use.
                    let why =
                        "leads only to link-local addresses; set allow_link_local if that is meant";
                    tracing::warn!(vendor = name, "the upstream's name {why}");
                    if addresses.count() == 0 {
                        trouble.begin(format!("{host} {why}"));
                    }
                    return;
                }
                if addresses.count() == 0 {
                    trouble.end();
                }
                addresses.publish(&resolved, &at, &pool);
            }
        };
        let failed = {
            let (addresses, trouble) = (addresses.clone(), trouble.clone());
            let host = known_as.clone();
            move |cause: String| {
                if addresses.count() == 0 {
                    trouble.begin(does_not_resolve(&host, &cause));
                }
            }
        };
        let resolving = tokio::spawn(follow.run(publish, failed)).abort_handle();
        let mut upstream = upstream;
        upstream.resolving = Some(resolving);
        Ok(Arc::new(upstream))
    }

    /// Returns the address for a request that has `tried` some in vain. Waits `at_most` for the
    /// first resolution; `None` when there is none by then.
    pub async fn pick(&self, tried: TriedAddresses, at_most: Duration) -> Option<Picked> {
        let mut picked = self.addresses.pick(tried, at_most).await?;
        picked.offer = self.versions.offer();
        Some(picked)
    }

    /// Returns a connection to the server at `picked`, or a stream of one: one that is kept, or a
    /// new one.
    ///
    /// # Errors
    /// pingora's error of the connect. Nothing of the request has been sent.
    pub(crate) async fn connect(
        &self,
        picked: &Picked,
        options: AttemptOptions,
    ) -> Result<Connected> {
        if matches!(self.transport, Transport::Tls) {
            let mut peer = Box::new(picked.server.peer.clone());
            self.versions.apply_to(&mut peer, picked.offer);
            options.apply_to(&mut peer);
            if peer.options.alpn.get_max_http_version() == 2 {
                return self.connect_any(picked, peer, options.fresh).await;
            }
        }
        if let Some(connection) = picked.server.pool.take() {
            return Ok(Connected::over_http1(connection, true));
        }
        let connection = self.connect_http1(picked, options).await?;
        Ok(Connected::over_http1(connection, false))
    }

    /// Connects as the server chooses. A request that all kept connections have refused needs a
    /// `fresh` one.
    async fn connect_any(
        &self,
        picked: &Picked,
        peer: Box<HttpPeer>,
        fresh: bool,
    ) -> Result<Connected> {
        if let Some(session) = self.connector.pooled_http2(&peer).await? {
            return Ok(self.over_http2(session, peer, true));
        }
        if !fresh && let Some(connection) = picked.server.pool.take() {
            return Ok(Connected::over_http1(connection, true));
        }
        // Boxed: rare, and large with TLS in it.
        match Box::pin(self.connector.connect_http2(&peer)).await? {
            HttpSession::H2(session) => Ok(self.over_http2(session, peer, false)),
            HttpSession::H1(session) => {
                let connection = from_pingora(session.into_inner())?;
                Ok(Connected::over_http1(connection, false))
            }
            HttpSession::Custom(()) => {
                Error::e_explain(ErrorType::InternalError, "an unknown protocol was chosen")
            }
        }
    }

    fn over_http2(&self, session: Http2Session, peer: Box<HttpPeer>, reused: bool) -> Connected {
        let stream = VendorHttp2::new(session, self.connector.clone(), peer);
        Connected {
            session: UpstreamSession::Http2(Box::new(stream)),
            reused,
        }
    }

    async fn connect_http1(&self, picked: &Picked, options: AttemptOptions) -> Result<Connection> {
        let mut peer = Box::new(picked.server.peer.clone());
        options.apply_to(&mut peer);
        peer.options.alpn = ALPN::H1;
        if matches!(self.transport, Transport::Tls) {
            return from_pingora(Box::pin(self.connector.connect_tls(&peer)).await?);
        }
        let connecting = Box::pin(self.connect_directly(picked, &peer));
        let Some(limit) = peer.options.total_connection_timeout else {
            return connecting.await;
        };
        let connected = timeout(limit, connecting).await;
        connected.unwrap_or_else(|_| {
            Error::e_explain(ErrorType::ConnectTimedout, "no connection in time")
        })
    }

    /// Connects without pingora's connector, which buffers what need not be buffered.
    async fn connect_directly(&self, picked: &Picked, peer: &HttpPeer) -> Result<Connection> {
        let address = SocketAddr::new(picked.server.address, self.port);
        let stream = match &self.tunnel {
            Some(tunnel) => tunnel.open(address).await?,
            None => TcpStream::connect(address)
                .await
                .map_err(|cause| connect_error(address, cause))?,
        };
        let broken = |cause| Error::because(ErrorType::SocketError, "a new connection", cause);
        stream.set_nodelay(true).map_err(broken)?;
        if let Some(keepalive) = &peer.options.tcp_keepalive {
            set_tcp_keepalive(&stream, keepalive)?;
        }
        let socket = Arc::new(SocketDigest::from_raw_fd(stream.as_raw_fd()));
        let io: Box<dyn Io> = match &self.transport {
            Transport::OwnTls(own) => own.handshake(&self.server_name, stream).await?,
            Transport::Plaintext | Transport::Tls => Box::new(stream),
        };
        Ok(Connection { io, socket })
    }

    /// Keeps the connection of a finished attempt, if it can serve another request.
    pub(crate) fn release(&self, picked: &Picked, session: UpstreamSession) {
        // A stream of HTTP/2 goes back by itself.
        let UpstreamSession::Http1(http1) = session else {
            return;
        };
        if let Some((connection, vendors)) = http1.into_reusable() {
            // The vendor's own time counts where it is shorter.
            let kept = [self.kept_for, vendors].into_iter().flatten().min();
            let until = kept.map(|kept| Instant::now() + kept);
            picked.server.pool.put(connection, until);
        }
    }

    /// Returns why [`Upstream::pick`] had none, after waiting `at_most`.
    #[must_use]
    pub fn unresolved(&self, at_most: Duration) -> String {
        let why = self.trouble.why().map_or_else(
            || {
                let waited = format!("no answer within {at_most:?}");
                does_not_resolve(&self.host, &waited)
            },
            |why| why.to_string(),
        );
        self.trouble.begin(why.clone());
        why
    }

    /// Adds the error of a failed connect to `picked`.
    pub fn note(
        &self,
        connect_errors: &mut ConnectErrors,
        picked: &Picked,
        error: &pingora::Error,
    ) {
        connect_errors.add(SocketAddr::new(picked.server.address, self.port), error);
    }

    /// Adds that a connection to `picked` ended before the response, and why.
    pub fn note_broken(&self, connect_errors: &mut ConnectErrors, picked: &Picked, cause: &str) {
        connect_errors.add_broken(SocketAddr::new(picked.server.address, self.port), cause);
    }

    /// Notes that a request failed for want of a connection.
    pub fn note_unreachable(&self, connect_errors: &ConnectErrors) {
        self.trouble.begin(connect_errors.to_string());
    }

    /// Notes that a connection was made.
    pub fn note_connected(&self) {
        self.trouble.end();
    }

    /// Returns why the last request that needed a connection had none; `None` when it had one.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.why()
    }

    /// Notes that a connect to `picked` failed: other addresses go first for a while.
    pub fn mark_unreachable(&self, picked: &Picked) {
        self.addresses.mark_unreachable(picked);
    }

    /// Notes that the server at `picked` demands HTTP/1.1: requests stay off HTTP/2 for a while, or
    /// until [`Upstream::forget_demand`].
    pub fn note_http1_demand(&self, picked: &Picked) {
        if self.versions.demanded(picked.offer) {
            tracing::warn!(
                vendor = &*self.vendor,
                "the vendor demands HTTP/1.1 (HTTP_1_1_REQUIRED): it is asked over HTTP/1.1 for {} \
                 minutes, or until the next reload",
                http2::DEMANDED_FOR.as_secs() / 60
            );
        }
    }

    /// Notes that the server at `picked` has broken HTTP/2: its next requests use other
    /// connections.
    pub fn note_broken_http2(&self, picked: &Picked) {
        if self.versions.broken(picked.offer) {
            tracing::warn!(
                vendor = &*self.vendor,
                "the vendor has broken HTTP/2; further requests go over new connections"
            );
        }
    }

    /// Lets a server that demanded HTTP/1.1 choose HTTP/2 again.
    pub fn forget_demand(&self) {
        if self.versions.forget() {
            tracing::info!(vendor = &*self.vendor, "the vendor may choose HTTP/2 again");
        }
    }

    /// Returns the number of addresses.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.addresses.count()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(resolving) = &self.resolving {
            resolving.abort();
        }
    }
}

fn does_not_resolve(host: &str, cause: &str) -> String {
    format!("{host} does not resolve: {cause}")
}

impl Connected {
    fn over_http1(connection: Connection, reused: bool) -> Self {
        Self {
            session: UpstreamSession::Http1(Box::new(VendorHttp1::new(connection))),
            reused,
        }
    }
}

/// Returns a connection of pingora's as ours.
fn from_pingora(stream: Stream) -> Result<Connection> {
    let socket = stream.get_socket_digest();
    let socket = socket
        .ok_or_else(|| Error::explain(ErrorType::InternalError, "a stream without a socket"))?;
    Ok(Connection {
        io: Box::new(stream),
        socket,
    })
}

/// Returns the error of a failed TCP connect, as pingora's connector tells it.
#[expect(clippy::unnecessary_box_returns, reason = "pingora's errors are boxed")]
#[expect(clippy::wildcard_enum_match_arm, reason = "the list of kinds is open")]
fn connect_error(address: SocketAddr, cause: std::io::Error) -> Box<Error> {
    use std::io::ErrorKind;

    let kind = match cause.kind() {
        ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        ErrorKind::NetworkUnreachable
        | ErrorKind::HostUnreachable
        | ErrorKind::AddrNotAvailable => ErrorType::ConnectNoRoute,
        ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        ErrorKind::PermissionDenied => ErrorType::InternalError,
        _ => ErrorType::ConnectError,
    };
    Error::because(kind, address.to_string(), cause)
}

/// Returns a peer that lacks only its address.
fn template(vendor: &Vendor, generation: u64) -> std::result::Result<HttpPeer, crate::tls::Error> {
    let upstream = &vendor.upstream;
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let tls = upstream.tls && OwnTls::of(vendor)?.is_none();
    // An unused name would still be copied for every request.
    let server_name = if tls {
        upstream.host.clone()
    } else {
        String::new()
    };
    let mut peer = HttpPeer::new(nowhere, tls, server_name);
    tls::configure_tls(&mut peer, vendor, generation)?;

    let Timeouts {
        connect, keepalive, ..
    } = vendor.timeouts;
    let options = &mut peer.options;
    // Plaintext has no negotiation of the version.
    if tls {
        http2::allow_http2(options);
    } else {
        options.alpn = ALPN::H1;
    }
    options.connection_timeout = limit(connect);
    options.total_connection_timeout = limit(connect);
    options.idle_timeout = limit(keepalive);
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_mins(1),
        interval: Duration::from_secs(10),
        count: 3,
        user_timeout: Duration::ZERO,
    });
    Ok(peer)
}

fn limit(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair, SerialNumber};

    use super::*;
    use crate::config::{Config, Secrets};
    use crate::tls::CertFiles;

    fn vendor(dir: &Path, stanza: &str) -> Vendor {
        let text = format!("vendors:\n  v:\n    upstream: https://a.test\n{stanza}");
        let config = Config::parse(&text, &dir.join("proxy.yaml"), Secrets::FormOnly);
        config.unwrap().vendors.remove(0)
    }

    /// Returns a self-signed certificate; all of them have the serial number 1.
    fn certificate(dir: &Path, name: &str) -> CertFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(1_u64));
        let certificate = params.self_signed(&key).unwrap();
        let files = CertFiles {
            cert: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
        };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn connections_are_kept_apart_by_vendor_certificate_issuer_and_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (
            certificate(dir.path(), "one"),
            certificate(dir.path(), "other"),
        );
        let plain = vendor(dir.path(), "");
        let with = |change: &dyn Fn(&mut Vendor)| {
            let mut vendor = plain.clone();
            change(&mut vendor);
            vendor
        };
        let vendors = [
            plain.clone(),
            with(&|vendor| vendor.name = "w".into()),
            // pingora itself would let these two share: their serial numbers are equal.
            with(&|vendor| vendor.client_cert = Some(one.clone())),
            with(&|vendor| vendor.client_cert = Some(other.clone())),
            with(&|vendor| vendor.ca = Some(one.cert.clone())),
            with(&|vendor| vendor.ca = Some(other.cert.clone())),
        ];
        let mut keys: Vec<u64> = vendors
            .iter()
            .map(|vendor| template(vendor, 1).unwrap().group_key)
            .collect();
        keys.push(template(&plain, 2).unwrap().group_key);
        assert_eq!(keys[0], template(&plain, 1).unwrap().group_key);
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn every_timeout_of_a_peer_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let options = template(&vendor(dir.path(), ""), 1).unwrap().options;
        assert_eq!(options.connection_timeout, Some(Duration::from_secs(5)));
        assert_eq!(
            options.total_connection_timeout,
            Some(Duration::from_secs(5))
        );
        assert_eq!(options.idle_timeout, Some(Duration::from_secs(30)));
        assert!(options.verify_cert && options.verify_hostname);
    }
}
