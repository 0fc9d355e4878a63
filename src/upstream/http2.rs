//! HTTP/2 to a vendor: its connections, the requests that stay off them, and what their failures
//! say about a request (RFC 9113).
//!
//! The server chooses the version by ALPN. pingora keeps one pool for each version, and a request
//! whose peer admits both looks for HTTP/2 first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use h2::Reason;
use http::header::UPGRADE;
use http::{HeaderMap, Version};
use pingora::Error;
use pingora::protocols::ALPN;
use pingora::upstreams::peer::{HttpPeer, PeerOptions};
use tokio::time::Instant;

use crate::config::Timeouts;
use crate::http_fields::is_grpc_stream;

/// Concurrent requests on one connection, unless the server permits fewer: what most servers
/// permit. pingora's default is 1.
const STREAMS: usize = 100;
/// Bytes of one response that may wait for a slow caller. pingora's 8 MiB would let a thousand slow
/// callers hold 8 GiB; this still moves 5 MiB/s over a distance of 100 ms.
const STREAM_WINDOW: u32 = 512 * 1024;
/// Room for every stream's window. pingora gives connection and stream the same 8 MiB: one caller
/// that stops reading would stop all others on its connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;
/// Interval of PINGs; no response within 5 s (pingora's constant) ends the connection. Short enough
/// to keep NAT and load balancers from forgetting it (60 s and up).
const PING: Duration = Duration::from_secs(20);
/// Interval of PINGs for gRPC, whose servers hang up on clients that ping a silent connection more
/// often than every 5 minutes (`too_many_pings`).
const GRPC_PING: Duration = Duration::from_secs(305);
/// Keeps gRPC's connections, which are pinged less often, apart from the others.
const GRPC_POOL: u64 = 0x6772_7063;
/// Time for which a connection made for one request alone is kept: other requests would not find
/// it.
const FRESH_IDLE: Duration = Duration::from_millis(100);
/// Time for which a server that requires HTTP/1.1 gets it.
pub(super) const DEMANDED_FOR: Duration = Duration::from_mins(10);
/// The kind of a request, as far as its connection is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A request and its response.
    #[default]
    Ordinary,
    /// A request for another protocol, which HTTP/1.1 alone can give.
    Upgrade,
    /// Two streams that may be silent for long.
    Grpc,
}

impl Kind {
    /// Returns the kind of a request with this version and these headers.
    #[must_use]
    pub fn of(version: Version, fields: &HeaderMap) -> Self {
        if version == Version::HTTP_2 {
            if is_grpc_stream(fields) {
                return Self::Grpc;
            }
        } else if fields.contains_key(UPGRADE) {
            return Self::Upgrade;
        }
        Self::Ordinary
    }

    /// Returns how long both sides may be silent; zero: for ever.
    #[must_use]
    pub fn idle(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Ordinary => timeouts.idle,
            Self::Upgrade | Self::Grpc => timeouts.idle_stream,
        }
    }
}

/// Lets the server choose HTTP/2.
pub(super) fn allow_http2(options: &mut PeerOptions) {
    options.alpn = ALPN::H2H1;
    options.max_h2_streams = STREAMS;
    options.h2_stream_window_size = Some(STREAM_WINDOW);
    options.h2_connection_window_size = Some(CONNECTION_WINDOW);
    options.h2_ping_interval = Some(PING);
}

/// The options of one attempt, beyond those of all the vendor's connections.
#[derive(Clone, Copy, Debug)]
pub struct AttemptOptions {
    /// The request's kind.
    pub kind: Kind,
    /// The pooled connections have refused it.
    pub fresh: bool,
    /// The caller does not know chunks, in which what comes over HTTP/2 is passed on.
    pub http1: bool,
    /// Time limit for a new connection, where it is shorter than `timeouts.connect`.
    pub connect_within: Option<Duration>,
}

impl AttemptOptions {
    /// Applies the options to `peer`.
    pub fn apply_to(self, peer: &mut HttpPeer) {
        let options = &mut peer.options;
        if let Some(left) = self.connect_within {
            let limit = options.connection_timeout;
            options.connection_timeout = Some(limit.map_or(left, |limit| limit.min(left)));
            options.total_connection_timeout = options.connection_timeout;
        }
        let may_be_http2 = options.alpn.get_max_http_version() == 2;
        match self.kind {
            Kind::Upgrade => options.alpn = ALPN::H1,
            Kind::Grpc if may_be_http2 => {
                options.h2_ping_interval = Some(GRPC_PING);
                peer.group_key ^= GRPC_POOL;
            }
            Kind::Ordinary if self.http1 => options.alpn = ALPN::H1,
            Kind::Ordinary | Kind::Grpc => {}
        }
        if self.fresh && may_be_http2 {
            // A shared connection may end as well.
            peer.group_key ^= fastrand::u64(1..);
            peer.options.idle_timeout = Some(FRESH_IDLE);
        }
    }
}

/// The versions that a vendor's servers are known to speak.
///
/// A server that demands HTTP/1.1 gets it, for a while. One whose HTTP/2 is broken gets HTTP/2
/// again, on another connection: it may speak nothing else, and one broken response says little
/// about the next.
#[derive(Debug)]
pub(super) struct Versions {
    born: Instant,
    /// Milliseconds since `born` until which HTTP/1.1 is spoken; 0: not.
    demanded: AtomicU64,
    /// The number of times that connections were replaced.
    epoch: AtomicU64,
}

/// The connections that one attempt could use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    epoch: u64,
}

impl Versions {
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            demanded: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        }
    }

    /// Returns what an attempt can use now.
    pub(super) fn offer(&self) -> Offer {
        let epoch = self.epoch.load(Ordering::Acquire);
        Offer { epoch }
    }

    /// Applies the known versions to `peer`.
    pub(super) fn apply_to(&self, peer: &mut HttpPeer, offer: Offer) {
        if offer.epoch == 0 || peer.options.alpn.get_max_http_version() < 2 {
            return;
        }
        peer.group_key ^= offer.epoch.wrapping_mul(EPOCH);
        if self.is_now(&self.demanded) {
            peer.options.alpn = ALPN::H1;
        }
    }

    /// Notes that a server demands HTTP/1.1. `false`: that was known.
    pub(super) fn demanded(&self, offer: Offer) -> bool {
        let new = !self.is_now(&self.demanded);
        self.set(&self.demanded, DEMANDED_FOR);
        self.replace_connections(offer);
        new
    }

    /// Notes that a server has broken HTTP/2. `false`: on a connection that was replaced already.
    pub(super) fn broken(&self, offer: Offer) -> bool {
        self.replace_connections(offer)
    }

    /// Forgets a demand for HTTP/1.1, and tells whether there was one.
    pub(super) fn forget(&self) -> bool {
        self.demanded.swap(0, Ordering::Relaxed) != 0
    }

    fn is_now(&self, until: &AtomicU64) -> bool {
        self.now() < until.load(Ordering::Relaxed)
    }

    fn set(&self, until: &AtomicU64, time: Duration) {
        #[expect(clippy::cast_possible_truncation, reason = "minutes")]
        let time = time.as_millis() as u64;
        until.store(self.now() + time, Ordering::Relaxed);
    }

    /// All requests of one connection see its end, which counts once.
    fn replace_connections(&self, offer: Offer) -> bool {
        let (before, next) = (offer.epoch, offer.epoch + 1);
        self.epoch
            .compare_exchange(before, next, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "half a billion years of milliseconds"
    )]
    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

/// Odd, so that no two epochs have the same product, and large, so that it reaches every bit.
const EPOCH: u64 = 0x9e37_79b9_7f4a_7c15;

/// Conclusion from a failed HTTP/2 exchange about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server says that it has not processed the request: its stream lies beyond those of a
    /// GOAWAY (RFC 9113 §6.8), was reset with `REFUSED_STREAM` (§8.7), or could not be opened. It
    /// may be sent again on another connection, whatever its method.
    NotProcessed,
    /// The server wants it over HTTP/1.1 (`HTTP_1_1_REQUIRED`, RFC 9113 §7), as servers do that
    /// would request a client certificate next.
    WantsHttp1,
    /// The server's HTTP/2 is broken, on this connection. The outcome of the request is unknown.
    BrokenHttp2,
}

impl Refusal {
    /// Returns what `error` of pingora's says; `None`: nothing.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        let cause = error.root_cause().downcast_ref::<h2::Error>();
        cause.and_then(Self::of_http2)
    }

    /// Returns what `cause` says; `None`: nothing.
    #[must_use]
    pub fn of_http2(cause: &h2::Error) -> Option<Self> {
        let reason = cause.reason();
        if cause.is_remote() {
            // h2 returns a GOAWAY for exactly the streams that it excludes, whatever its reason.
            let refused = cause.is_go_away() || reason == Some(Reason::REFUSED_STREAM);
            let demanded = reason == Some(Reason::HTTP_1_1_REQUIRED);
            return match (demanded, refused) {
                (true, _) => Some(Self::WantsHttp1),
                (false, true) => Some(Self::NotProcessed),
                (false, false) => None,
            };
        }
        let broken = cause.is_go_away() && cause.is_library();
        (broken && reason == Some(Reason::PROTOCOL_ERROR)).then_some(Self::BrokenHttp2)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use pingora::ErrorType;

    use super::*;

    fn peer() -> HttpPeer {
        let mut peer = HttpPeer::new(SocketAddr::from(([192, 0, 2, 1], 443)), true, "a".into());
        allow_http2(&mut peer.options);
        peer
    }

    fn suited(kind: Kind, change: impl FnOnce(&mut AttemptOptions)) -> HttpPeer {
        let mut need = AttemptOptions {
            kind,
            fresh: false,
            http1: false,
            connect_within: None,
        };
        change(&mut need);
        let mut peer = peer();
        need.apply_to(&mut peer);
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn a_demand_for_http_1_holds_for_ten_minutes_and_is_new_once() {
        let versions = Versions::new();
        let offered = || {
            let mut peer = peer();
            let offer = versions.offer();
            versions.apply_to(&mut peer, offer);
            (peer.options.alpn, peer.group_key, offer)
        };
        let (alpn, before, offer) = offered();
        assert_eq!((alpn, before), (ALPN::H2H1, peer().group_key));
        assert!(versions.demanded(offer));
        // Another request on the same connection.
        assert!(!versions.demanded(offer));
        let (alpn, during, _) = offered();
        assert_eq!(alpn, ALPN::H1);
        tokio::time::advance(Duration::from_millis(599_999)).await;
        assert_eq!(offered().0, ALPN::H1);
        tokio::time::advance(Duration::from_millis(1)).await;
        let (alpn, after, offer) = offered();
        assert_eq!((alpn, after), (ALPN::H2H1, during));
        // The connections of the first are not found here.
        assert_ne!(after, before);

        assert!(versions.demanded(offer));
        assert!(versions.forget());
        assert!(!versions.forget());
        assert_eq!(offered().0, ALPN::H2H1);
        assert_ne!(offered().1, after);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_broke_http_2_is_offered_it_again_on_new_connections() {
        let versions = Versions::new();
        let offered = || {
            let mut peer = peer();
            let offer = versions.offer();
            versions.apply_to(&mut peer, offer);
            (peer.options.alpn, peer.group_key, offer)
        };
        let (_, before, offer) = offered();
        assert!(versions.broken(offer));
        assert!(!versions.broken(offer), "one connection, once");
        let (alpn, after, offer) = offered();
        assert_eq!(alpn, ALPN::H2H1);
        assert_ne!(before, after);
        assert!(versions.broken(offer));
        // A peer that speaks HTTP/1.1 for another reason is left alone.
        let mut old = peer();
        old.options.alpn = ALPN::H1;
        versions.apply_to(&mut old, versions.offer());
        assert_eq!(
            (old.options.alpn, old.group_key),
            (ALPN::H1, peer().group_key)
        );
    }

    fn fields(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn an_upgrade_goes_over_http_1() {
        let upgrade = Kind::of(Version::HTTP_11, &fields("upgrade", "websocket"));
        assert_eq!(upgrade, Kind::Upgrade);
        let peer = suited(upgrade, |_| {});
        assert_eq!(peer.options.alpn, ALPN::H1);
    }

    #[test]
    fn who_knows_no_chunks_is_served_over_http_1() {
        let any = suited(Kind::Ordinary, |_| {});
        assert_eq!(any.options.alpn.get_max_http_version(), 2);
        let old = suited(Kind::Ordinary, |need| need.http1 = true);
        assert_eq!(old.options.alpn, ALPN::H1);
    }

    #[test]
    fn grpc_is_pinged_no_more_often_than_its_servers_bear() {
        let grpc = Kind::of(
            Version::HTTP_2,
            &fields("content-type", "application/grpc+proto"),
        );
        assert_eq!(grpc, Kind::Grpc);
        let (other, grpc) = (suited(Kind::Ordinary, |_| {}), suited(grpc, |_| {}));
        assert!(grpc.options.h2_ping_interval > Some(Duration::from_mins(5)));
        assert!(other.options.h2_ping_interval < Some(Duration::from_secs(30)));
        // A connection is pinged as its first request wants it.
        assert_ne!(grpc.group_key, other.group_key);
    }

    #[test]
    fn what_is_left_of_the_total_bounds_a_connection() {
        let limit = |left: u64| {
            let mut need = AttemptOptions {
                kind: Kind::Ordinary,
                fresh: false,
                http1: false,
                connect_within: Some(Duration::from_secs(left)),
            };
            need.fresh = true;
            let mut peer = peer();
            peer.options.connection_timeout = Some(Duration::from_secs(5));
            need.apply_to(&mut peer);
            let options = peer.options;
            assert_eq!(options.total_connection_timeout, options.connection_timeout);
            options.connection_timeout
        };
        assert_eq!(limit(3), Some(Duration::from_secs(3)));
        assert_eq!(limit(7), Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_refused_request_meets_a_connection_of_its_own() {
        let keys: std::collections::HashSet<_> = (0..3)
            .map(|_| suited(Kind::Ordinary, |need| need.fresh = true).group_key)
            .chain([peer().group_key])
            .collect();
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn every_window_fits_into_the_connections() {
        let options = peer().options;
        let streams = u32::try_from(options.max_h2_streams).unwrap();
        let all = options.h2_stream_window_size.unwrap() * streams;
        assert!(all <= options.h2_connection_window_size.unwrap());
    }

    #[test]
    fn only_what_the_server_says_makes_a_request_one_it_has_not_processed() {
        let of = |cause: h2::Error| Refusal::of_http2(&cause);
        // Sent by us, not by the server.
        assert_eq!(of(Reason::REFUSED_STREAM.into()), None);
        assert_eq!(of(Reason::HTTP_1_1_REQUIRED.into()), None);
        let closed = Error::new(ErrorType::ConnectionClosed);
        assert_eq!(Refusal::of(&closed), None);
    }
}
