//! A vendor's servers: peers prepared once per configuration, addresses kept current in the
//! background. A request clones a finished template and never resolves a name.

pub mod addresses;
pub mod breaker;
mod bridge;
pub mod connect_errors;
pub mod http2;
mod keepalive;
pub mod resolver;
mod tls;
mod tunnel;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use pingora::protocols::{ALPN, TcpKeepalive};
use pingora::upstreams::peer::HttpPeer;
use tokio::task::AbortHandle;

use self::addresses::{Addresses, Picked, TriedAddresses};
use self::bridge::Bridge;
use self::connect_errors::{ConnectErrors, ConnectTrouble};
use self::http2::Versions;
use self::keepalive::KeepAlive;
use self::resolver::{Resolved, Resolver};
use self::tunnel::Tunnel;
use crate::config::{Timeouts, Vendor, is_link_local};
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
    keepalive: KeepAlive,
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
    ) -> Result<Arc<Self>, StartError> {
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
        let bridge = tls::own_tls(vendor)?.map(|tls| Bridge {
            vendor: vendor.name.as_str().into(),
            host: vendor.upstream.host.as_str().into(),
            tls,
            tunnel,
            tcp_keepalive: template.options.tcp_keepalive.clone(),
        });
        let at = move |address: IpAddr| {
            let mut peer = template.clone();
            let address = SocketAddr::new(address, port);
            match &bridge {
                Some(bridge) => bridge.route_through(&mut peer, address),
                None => peer._address = address.into(),
            }
            peer
        };
        let addresses = Arc::new(Addresses::unresolved());
        let trouble = Arc::new(ConnectTrouble::default());
        let known_as: Arc<str> = host.as_str().into();
        if let Ok(address) = host.parse::<IpAddr>() {
            addresses.publish(&[address], at);
            return Ok(Arc::new(Self {
                addresses,
                resolving: None,
                vendor: vendor.name.as_str().into(),
                host: known_as,
                port,
                trouble,
                versions: Versions::new(),
                keepalive: KeepAlive::none(),
            }));
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
                addresses.publish(&resolved, &at);
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
        Ok(Arc::new(Self {
            addresses,
            resolving: Some(tokio::spawn(follow.run(publish, failed)).abort_handle()),
            vendor: vendor.name.as_str().into(),
            host: known_as,
            port,
            trouble,
            versions: Versions::new(),
            keepalive: KeepAlive::none(),
        }))
    }

    /// Returns the peer for a request that has `tried` some addresses in vain. Waits `at_most` for
    /// the first resolution; `None` when there is none by then.
    pub async fn peer(
        &self,
        tried: TriedAddresses,
        at_most: Duration,
    ) -> Option<(Box<HttpPeer>, Picked)> {
        let (mut peer, mut picked) = self.addresses.pick(tried, at_most).await?;
        self.keepalive.apply_to(&mut peer);
        picked.offer = self.versions.apply_to(&mut peer);
        Some((peer, picked))
    }

    /// Returns why [`Upstream::peer`] had none, after waiting `at_most`.
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
        connect_errors.add(SocketAddr::new(picked.address, self.port), error);
    }

    /// Adds that a connection to `picked` ended before the response.
    pub fn note_broken(&self, connect_errors: &mut ConnectErrors, picked: &Picked) {
        connect_errors.add_broken(SocketAddr::new(picked.address, self.port));
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

    /// Notes how long the server keeps an unused connection, from `Keep-Alive`.
    pub fn note_keep_alive(&self, value: &HeaderValue) {
        self.keepalive.note(value);
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

    /// Tells whether `picked`, to which the connect failed, was offered HTTP/2 alone and should be
    /// tried once more with both versions.
    pub fn should_offer_both(&self, picked: &Picked) -> bool {
        self.versions.stop_insisting(picked.offer)
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

/// Returns a peer that lacks only its address.
fn template(vendor: &Vendor, generation: u64) -> Result<HttpPeer, crate::tls::Error> {
    let upstream = &vendor.upstream;
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    // TLS is at the bridge's far end.
    let tls = upstream.tls && tls::own_tls(vendor)?.is_none();
    // An unused name would still be copied for every request.
    let server_name = if tls {
        upstream.host.clone()
    } else {
        String::new()
    };
    let mut peer = HttpPeer::new(nowhere, tls, server_name);
    tls::configure_tls(&mut peer, vendor, generation)?;

    let Timeouts {
        connect,
        first_byte,
        idle,
        keepalive,
        ..
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
    // pingora has one timeout for every read of a connection, the first included.
    options.read_timeout =
        limit(first_byte).and_then(|first| limit(idle).map(|idle| first.max(idle)));
    options.write_timeout = limit(idle);
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
        assert_eq!(options.read_timeout, Some(Duration::from_mins(1)));
        assert_eq!(options.write_timeout, Some(Duration::from_mins(1)));
        assert_eq!(options.idle_timeout, Some(Duration::from_secs(30)));
        assert!(options.verify_cert && options.verify_hostname);
    }
}
