//! HTTP/2 to a vendor: how its connections are made, which requests stay off them, and what their
//! failures say about a request (RFC 9113).
//!
//! Who speaks what is the server's choice by ALPN. pingora keeps one pool for each version, and a
//! request whose peer admits both looks for HTTP/2 first.

use std::time::Duration;

use h2::Reason;
use http::header::{CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, Version};
use pingora::protocols::ALPN;
use pingora::protocols::http::v2::client::PING_TIMEDOUT;
use pingora::upstreams::peer::{HttpPeer, PeerOptions};
use pingora::{Error, ErrorType};

use crate::config::Timeouts;

/// Requests on one connection at a time, unless the server permits fewer: what most servers
/// permit. pingora's default is 1.
const STREAMS: usize = 100;
/// How much of one answer may wait for a slow caller, bytes. pingora's 8 MiB would let a thousand
/// slow callers hold 8 GiB; this still moves 5 MiB/s over a distance of 100 ms.
const STREAM_WINDOW: u32 = 512 * 1024;
/// Room for every stream's window. pingora gives connection and stream the same 8 MiB: one caller
/// that stops reading would stop all others on its connection.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;
/// How often a server is asked whether it is still there; no answer for 5 s (pingora's constant)
/// ends the connection. Often enough to keep NAT and load balancers from forgetting a connection
/// (60 s and up).
const PING: Duration = Duration::from_secs(20);
/// The same for gRPC: its servers hang up on whoever asks a silent connection more often than
/// every 5 minutes (`too_many_pings`).
const GRPC_PING: Duration = Duration::from_secs(305);
/// Keeps gRPC's connections, which are pinged less often, apart from the others.
const GRPC_POOL: u64 = 0x6772_7063;
/// How long a connection made for one request alone is kept: others would not find it.
const FRESH_IDLE: Duration = Duration::from_millis(100);
/// The slowest upload that is waited for, bytes a second.
const SLOWEST: u64 = 64 * 1024;
/// What is expected of an upload that does not say how long it is, bytes.
const UNKNOWN_UPLOAD: u64 = 100 * 1024 * 1024;

/// What a request is, as far as its connection is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A question with an answer.
    #[default]
    Ordinary,
    /// It asks for another protocol, which HTTP/1.1 alone can give.
    Upgrade,
    /// Two streams that may be silent for long.
    Grpc,
}

impl Kind {
    /// Of a request with this version and these fields.
    #[must_use]
    pub fn of(version: Version, fields: &HeaderMap) -> Self {
        if version == Version::HTTP_2 {
            let kind = fields.get(CONTENT_TYPE);
            if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                return Self::Grpc;
            }
        } else if fields.contains_key(UPGRADE) {
            return Self::Upgrade;
        }
        Self::Ordinary
    }

    /// How long neither side need say anything; zero: for ever.
    #[must_use]
    pub fn idle(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Ordinary => timeouts.idle,
            Self::Upgrade | Self::Grpc => timeouts.idle_stream,
        }
    }
}

/// Lets the server choose HTTP/2.
pub(super) fn offer(options: &mut PeerOptions) {
    options.alpn = ALPN::H2H1;
    options.max_h2_streams = STREAMS;
    options.h2_stream_window_size = Some(STREAM_WINDOW);
    options.h2_connection_window_size = Some(CONNECTION_WINDOW);
    options.h2_ping_interval = Some(PING);
}

/// What one attempt of a request needs of its connection beyond what every one of the vendor has.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// What the request is.
    pub kind: Kind,
    /// The pooled connections have refused it.
    pub fresh: bool,
    /// Bytes of an upload: `None` when there is none, zero when nobody knows.
    pub upload: Option<u64>,
    /// What is left of `timeouts.total`, where nothing else watches over it.
    pub left: Option<Duration>,
    /// Something else sees how long the server is silent.
    pub watched: bool,
    /// Its caller knows of no chunks, which is how pingora passes on what comes by HTTP/2.
    pub http1: bool,
}

impl Need {
    /// Makes `peer` one that fits.
    pub fn suit(self, peer: &mut HttpPeer, timeouts: &Timeouts) {
        let options = &mut peer.options;
        let may_be_http2 = options.alpn.get_max_http_version() == 2;
        if self.kind != Kind::Ordinary {
            // A stream of gRPC may say its first word as late as any other.
            let idle = Some(timeouts.idle_stream).filter(|idle| !idle.is_zero());
            options.read_timeout = idle;
            options.write_timeout = idle;
        } else if self.watched {
            // pingora would make a timer for each read, and has one limit for the first and the rest.
            options.read_timeout = None;
        } else if may_be_http2 && let Some(length) = self.upload {
            // On HTTP/1.1 every byte either way starts pingora's read timeout again. On HTTP/2 it
            // runs from the request's head, so that a long upload would end in it.
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
            // One that others share may end as well: pingora would not tell us why it does while
            // the buffered body is sent again.
            peer.group_key ^= fastrand::u64(1..);
            peer.options.idle_timeout = Some(FRESH_IDLE);
        }
    }
}

/// What a failed HTTP/2 exchange says about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server says that it has not looked at it: its stream lies beyond those of a GOAWAY
    /// (RFC 9113 §6.8) or was reset with `REFUSED_STREAM` (§8.7), or there was none to be had.
    /// Whatever its method, it may be sent again on another connection.
    NotProcessed,
    /// The server wants it over HTTP/1.1 (`HTTP_1_1_REQUIRED`, RFC 9113 §7), as those do that
    /// would ask for a client certificate next.
    WantsHttp1,
    /// The server's HTTP/2 is broken. What became of the request is unknown.
    BrokenHttp2,
}

impl Refusal {
    /// `None`: nothing is known.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        if *error.etype() == ErrorType::H2Downgrade {
            return Some(Self::WantsHttp1);
        }
        if *error.etype() == ErrorType::InvalidH2 {
            return Some(Self::BrokenHttp2);
        }
        let cause = error.root_cause().downcast_ref::<h2::Error>()?;
        // pingora itself knows GOAWAY with `NO_ERROR` alone; h2 gives this error to those streams
        // only that the GOAWAY excludes, whatever its reason.
        let refused = cause.is_go_away() || cause.reason() == Some(Reason::REFUSED_STREAM);
        (refused && cause.is_remote()).then_some(Self::NotProcessed)
    }
}

/// Whether no answer came to a PING.
#[must_use]
pub fn has_vanished(error: &Error) -> bool {
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
        offer(&mut peer.options);
        peer.options.read_timeout = Some(TIMEOUTS.idle);
        peer
    }

    fn suited(kind: Kind, change: impl FnOnce(&mut Need)) -> HttpPeer {
        let mut need = Need {
            kind,
            fresh: false,
            upload: None,
            left: None,
            watched: false,
            http1: false,
        };
        change(&mut need);
        let mut peer = peer();
        need.suit(&mut peer, &TIMEOUTS);
        peer
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
        let read = |change: fn(&mut Need)| suited(Kind::Ordinary, change).options.read_timeout;
        assert_eq!(read(|_| {}), Some(TIMEOUTS.idle));
        assert_eq!(read(|need| need.upload = Some(1000)), Some(TIMEOUTS.idle));
        let minute = 60 * SLOWEST;
        assert_eq!(minute, 3_932_160);
        let long = read(|need| need.upload = Some(3_932_160));
        assert_eq!(long, Some(TIMEOUTS.idle + Duration::from_mins(1)));
        assert!(read(|need| need.upload = Some(0)) > long);
        let watched = read(|need| (need.watched, need.upload) = (true, Some(0)));
        assert_eq!(watched, None);
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
        // Ours, not the server's.
        assert_eq!(of(Reason::REFUSED_STREAM.into()), None);
        let named = |kind| Refusal::of(&Error::new(kind));
        assert_eq!(named(ErrorType::H2Downgrade), Some(Refusal::WantsHttp1));
        assert_eq!(named(ErrorType::InvalidH2), Some(Refusal::BrokenHttp2));
        assert_eq!(named(ErrorType::ReadError), None);
    }
}
