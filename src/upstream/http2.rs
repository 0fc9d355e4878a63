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
use pingora::protocols::ALPN;
use pingora::protocols::http::v2::client::PING_TIMEDOUT;
use pingora::upstreams::peer::{HttpPeer, PeerOptions};
use pingora::{Error, ErrorType};
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
/// Slowest upload that is waited for, bytes a second.
const SLOWEST: u64 = 64 * 1024;
/// Assumed size of an upload of unknown length, bytes.
const UNKNOWN_UPLOAD: u64 = 100 * 1024 * 1024;
/// Time for which a server that requires HTTP/1.1 gets it.
pub(super) const DEMANDED_FOR: Duration = Duration::from_mins(10);
/// Time for which a server that broke HTTP/2 is offered HTTP/1.1 only: see [`Versions`].
const INSISTED_FOR: Duration = Duration::from_mins(10);

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
    /// Bytes of an upload: `None` when there is none, zero when the length is unknown.
    pub upload: Option<u64>,
    /// The rest of `timeouts.total`, where nothing else limits it.
    pub left: Option<Duration>,
    /// The caller's stream measures how long the server is silent.
    pub silence_measured: bool,
    /// The caller does not know chunks, in which pingora passes on what comes over HTTP/2.
    pub http1: bool,
}

impl AttemptOptions {
    /// Applies the options to `peer`.
    pub fn apply_to(self, peer: &mut HttpPeer, timeouts: &Timeouts) {
        let options = &mut peer.options;
        let may_be_http2 = options.alpn.get_max_http_version() == 2;
        if self.kind != Kind::Ordinary {
            // The first message of a gRPC stream may come as late as any other.
            let idle = Some(timeouts.idle_stream).filter(|idle| !idle.is_zero());
            options.read_timeout = idle;
            options.write_timeout = idle;
        } else if self.silence_measured {
            // pingora would make a timer for each read, and has one limit for the first and the
            // rest.
            options.read_timeout = None;
        } else if may_be_http2 && let Some(length) = self.upload {
            // On HTTP/1.1 every byte either way restarts pingora's read timeout. On HTTP/2 it runs
            // from the request's head, so that a long upload would end in it.
            let length = if length == 0 { UNKNOWN_UPLOAD } else { length };
            let upload = Duration::from_secs(length / SLOWEST);
            options.read_timeout = options.read_timeout.map(|read| read + upload);
        }
        if let Some(left) = self.left {
            options.read_timeout = Some(options.read_timeout.map_or(left, |read| read.min(left)));
        }
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
            // A shared connection may end as well: pingora would not tell why it does while the
            // buffered body is sent again.
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
///
/// pingora has a memory of its own. It moves whatever it finds broken to HTTP/1.1, by the peer's
/// hash and for ever, unless the peer admits HTTP/2 alone. So the hash changes with each such
/// event, and a server that has just proven to speak HTTP/2 is offered that alone for a while;
/// otherwise pingora's memory, which has no bound, would grow with each broken response.
#[derive(Debug)]
pub(super) struct Versions {
    born: Instant,
    /// Milliseconds since `born` until which HTTP/1.1 is spoken; 0: not.
    demanded: AtomicU64,
    /// Milliseconds since `born` until which HTTP/2 alone is offered; 0: not.
    insisted: AtomicU64,
    /// The number of times that connections were replaced.
    epoch: AtomicU64,
}

/// The versions that one attempt offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    epoch: u64,
    http2_alone: bool,
}

impl Versions {
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            demanded: AtomicU64::new(0),
            insisted: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        }
    }

    /// Applies the known versions to `peer`.
    pub(super) fn apply_to(&self, peer: &mut HttpPeer) -> Offer {
        let epoch = self.epoch.load(Ordering::Acquire);
        let mut offer = Offer {
            epoch,
            http2_alone: false,
        };
        if epoch == 0 || peer.options.alpn.get_max_http_version() < 2 {
            return offer;
        }
        peer.group_key ^= epoch.wrapping_mul(EPOCH);
        if self.is_now(&self.demanded) {
            peer.options.alpn = ALPN::H1;
        } else if self.is_now(&self.insisted) {
            peer.options.alpn = ALPN::H2;
            offer.http2_alone = true;
        }
        offer
    }

    /// Notes that a server demands HTTP/1.1. `false`: that was known.
    pub(super) fn demanded(&self, offer: Offer) -> bool {
        let new = !self.is_now(&self.demanded);
        self.set(&self.demanded, DEMANDED_FOR);
        self.insisted.store(0, Ordering::Relaxed);
        self.replace_connections(offer);
        new
    }

    /// Notes that a server has broken HTTP/2. `false`: on a connection that was replaced already.
    pub(super) fn broken(&self, offer: Offer) -> bool {
        self.set(&self.insisted, INSISTED_FOR);
        self.replace_connections(offer)
    }

    /// Notes that a connect failed. `true`: HTTP/2 alone was offered, and will not be again.
    pub(super) fn stop_insisting(&self, offer: Offer) -> bool {
        if offer.http2_alone {
            self.insisted.store(0, Ordering::Relaxed);
        }
        offer.http2_alone
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
    /// Returns what `error` says; `None`: nothing.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        if *error.etype() == ErrorType::InvalidH2 {
            return Some(Self::BrokenHttp2);
        }
        let cause = error.root_cause().downcast_ref::<h2::Error>();
        let demanded = |cause: &h2::Error| {
            cause.is_remote() && cause.reason() == Some(Reason::HTTP_1_1_REQUIRED)
        };
        // pingora itself recognises it only while it waits for the response's head.
        if *error.etype() == ErrorType::H2Downgrade || cause.is_some_and(demanded) {
            return Some(Self::WantsHttp1);
        }
        let cause = cause?;
        // pingora itself knows GOAWAY with `NO_ERROR` alone; h2 returns this error for exactly the
        // streams that the GOAWAY excludes, whatever its reason.
        let refused = cause.is_go_away() || cause.reason() == Some(Reason::REFUSED_STREAM);
        (refused && cause.is_remote()).then_some(Self::NotProcessed)
    }
}

/// Tells whether a PING was not answered.
#[must_use]
pub fn ping_timed_out(error: &Error) -> bool {
    *error.etype() == PING_TIMEDOUT
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        connect: Duration::from_secs(5),
        first_byte: Duration::from_mins(1),
        idle: Duration::from_mins(1),
        idle_stream: Duration::from_mins(5),
        total: Duration::ZERO,
        keepalive: Duration::from_secs(30),
        token_wait: Duration::from_secs(5),
    };

    fn peer() -> HttpPeer {
        let mut peer = HttpPeer::new(SocketAddr::from(([192, 0, 2, 1], 443)), true, "a".into());
        allow_http2(&mut peer.options);
        peer.options.read_timeout = Some(TIMEOUTS.idle);
        peer
    }

    fn suited(kind: Kind, change: impl FnOnce(&mut AttemptOptions)) -> HttpPeer {
        let mut need = AttemptOptions {
            kind,
            fresh: false,
            upload: None,
            left: None,
            silence_measured: false,
            http1: false,
        };
        change(&mut need);
        let mut peer = peer();
        need.apply_to(&mut peer, &TIMEOUTS);
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn a_demand_for_http_1_holds_for_ten_minutes_and_is_new_once() {
        let versions = Versions::new();
        let offered = || {
            let mut peer = peer();
            let offer = versions.apply_to(&mut peer);
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
        // Pingora's memory of the first is not found here.
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
            let offer = versions.apply_to(&mut peer);
            (peer.options.alpn, peer.group_key, offer)
        };
        let (_, before, offer) = offered();
        assert!(versions.broken(offer));
        assert!(!versions.broken(offer), "one connection, once");
        let (alpn, after, offer) = offered();
        assert_eq!(alpn, ALPN::H2);
        assert_ne!(before, after);
        // A server that has given up HTTP/2 shows it in its handshake.
        assert!(versions.stop_insisting(offer));
        let (alpn, _, offer) = offered();
        assert_eq!(alpn, ALPN::H2H1);
        assert!(!versions.stop_insisting(offer));

        assert!(versions.broken(offer));
        tokio::time::advance(INSISTED_FOR).await;
        assert_eq!(offered().0, ALPN::H2H1);
        // A peer that speaks HTTP/1.1 for another reason is left alone.
        let mut old = peer();
        old.options.alpn = ALPN::H1;
        versions.apply_to(&mut old);
        assert_eq!(
            (old.options.alpn, old.group_key),
            (ALPN::H1, peer().group_key)
        );
    }

    fn fields(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn an_upgrade_goes_over_http_1_and_may_be_silent_for_long() {
        let upgrade = Kind::of(Version::HTTP_11, &fields("upgrade", "websocket"));
        assert_eq!(upgrade, Kind::Upgrade);
        let peer = suited(upgrade, |_| {});
        assert_eq!(peer.options.alpn, ALPN::H1);
        assert_eq!(peer.options.read_timeout, Some(TIMEOUTS.idle_stream));
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
        assert!(other.options.h2_ping_interval < Some(TIMEOUTS.keepalive));
        // A connection is pinged as its first request wants it.
        assert_ne!(grpc.group_key, other.group_key);
        assert_eq!(grpc.options.read_timeout, Some(TIMEOUTS.idle_stream));
    }

    #[test]
    fn a_long_upload_has_time_and_the_total_bounds_everything() {
        let read =
            |change: fn(&mut AttemptOptions)| suited(Kind::Ordinary, change).options.read_timeout;
        assert_eq!(read(|_| {}), Some(TIMEOUTS.idle));
        assert_eq!(read(|need| need.upload = Some(1000)), Some(TIMEOUTS.idle));
        let minute = 60 * SLOWEST;
        assert_eq!(minute, 3_932_160);
        let long = read(|need| need.upload = Some(3_932_160));
        assert_eq!(long, Some(TIMEOUTS.idle + Duration::from_mins(1)));
        assert!(read(|need| need.upload = Some(0)) > long);
        let silence_measured = read(|need| (need.silence_measured, need.upload) = (true, Some(0)));
        assert_eq!(silence_measured, None);
        let left = read(|need| need.left = Some(Duration::from_secs(3)));
        assert_eq!(left, Some(Duration::from_secs(3)));
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
        let of = |cause: h2::Error| {
            Refusal::of(&Error::because(
                ErrorType::H2Error,
                "while reading h2 header",
                cause,
            ))
        };
        // Sent by us, not by the server.
        assert_eq!(of(Reason::REFUSED_STREAM.into()), None);
        assert_eq!(of(Reason::HTTP_1_1_REQUIRED.into()), None);
        let named = |kind| Refusal::of(&Error::new(kind));
        assert_eq!(named(ErrorType::H2Downgrade), Some(Refusal::WantsHttp1));
        assert_eq!(named(ErrorType::InvalidH2), Some(Refusal::BrokenHttp2));
        assert_eq!(named(ErrorType::ReadError), None);
    }
}
