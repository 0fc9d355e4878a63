//! How long a vendor keeps an unused connection: `Keep-Alive: timeout=N` of HTTP/1.1 servers. A
//! request that meets the end of a connection is lost, and a POST may not be sent again, so a
//! connection is no longer used shortly before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use pingora::upstreams::peer::HttpPeer;

/// How long before its end a connection is no longer used, at most half of the time: for what the
/// vendor sees later than we, and for the grain of our clock.
const MARGIN: Duration = Duration::from_secs(1);

/// The shortest time that a vendor has announced, milliseconds; [`NONE`]: none. Several servers
/// may be behind one name, and which of them a connection leads to is unknown.
#[derive(Debug)]
pub(super) struct KeepAlive(AtomicU64);

const NONE: u64 = u64::MAX;

impl KeepAlive {
    pub(super) fn none() -> Self {
        Self(AtomicU64::new(NONE))
    }

    /// Notes the value of a `Keep-Alive` header.
    pub(super) fn note(&self, value: &HeaderValue) {
        let Some(time) = reusable(value) else { return };
        #[expect(clippy::cast_possible_truncation, reason = "a day at most")]
        let time = time.as_millis() as u64;
        // Nothing is written where nothing changes: all requests share it.
        if time < self.0.load(Ordering::Relaxed) {
            self.0.fetch_min(time, Ordering::Relaxed);
        }
    }

    /// Limits how long the connections of `peer` are kept. Those that were pooled before are not
    /// found again.
    pub(super) fn apply_to(&self, peer: &mut HttpPeer) {
        let time = self.0.load(Ordering::Relaxed);
        if time == NONE {
            return;
        }
        peer.group_key ^= (time + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let time = Duration::from_millis(time);
        let idle = &mut peer.options.idle_timeout;
        *idle = Some(idle.map_or(time, |idle| idle.min(time)));
    }
}

/// Returns how long a connection with this `Keep-Alive` may be used again (RFC 2068 §19.7.1.1).
fn reusable(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("timeout");
        named.then(|| value.trim().trim_matches('"').parse::<u32>().ok())?
    })?;
    let time = Duration::from_secs(u64::from(seconds.min(86_400)));
    let kept = time.saturating_sub(MARGIN.min(time / 2));
    // Zero would be no limit.
    Some(kept.max(Duration::from_millis(1)))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn peer(keepalive: &KeepAlive) -> (Option<Duration>, u64) {
        let nowhere = SocketAddr::from(([192, 0, 2, 1], 80));
        let mut peer = HttpPeer::new(nowhere, false, String::new());
        peer.options.idle_timeout = Some(Duration::from_secs(30));
        keepalive.apply_to(&mut peer);
        (peer.options.idle_timeout, peer.group_key)
    }

    #[test]
    fn a_connection_is_left_alone_a_while_before_its_end() {
        for (said, milliseconds) in [
            ("timeout=5, max=100", Some(4000)),
            ("max=100,Timeout = \"2\"", Some(1000)),
            ("timeout=1", Some(500)),
            ("timeout=0", Some(1)),
            ("timeout=99999999", Some(86_399_000)),
            ("max=100", None),
            ("timeout=soon", None),
            ("", None),
        ] {
            let time = reusable(&HeaderValue::from_static(said));
            assert_eq!(time, milliseconds.map(Duration::from_millis), "{said}");
        }
    }

    #[test]
    fn what_a_vendor_says_shortens_what_is_configured_and_parts_old_connections_from_new() {
        let keepalive = KeepAlive::none();
        let (configured, before) = peer(&keepalive);
        assert_eq!(configured, Some(Duration::from_secs(30)));
        keepalive.note(&HeaderValue::from_static("timeout=75"));
        assert_eq!(peer(&keepalive).0, configured);
        keepalive.note(&HeaderValue::from_static("timeout=5"));
        let (shorter, after) = peer(&keepalive);
        assert_eq!(shorter, Some(Duration::from_secs(4)));
        assert_ne!(before, after);
        // Another server's of the same name.
        keepalive.note(&HeaderValue::from_static("timeout=60"));
        assert_eq!(peer(&keepalive), (shorter, after));
    }
}
