//! The choice among a name's addresses: the first of the resolver's that is not known to be
//! unreachable.
//!
//! A request that cannot connect spares the others the same wait: that address goes behind all
//! others for a minute. Then a single request tries it again. This is an order and no more: when no
//! other address is left, it is tried all the same.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use pingora::upstreams::peer::HttpPeer;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::http2::Offer;
use super::pool::Pool;

/// Time for which an unreachable address is tried last.
const SET_BACK: Duration = Duration::from_mins(1);

/// The addresses that the resolving task publishes.
pub struct Addresses {
    /// Never empty; `None` until the name has been resolved once.
    servers: ArcSwapOption<Vec<Arc<Server>>>,
    resolved: Notify,
    started: Instant,
}

/// One address. Outlives the resolution it came with.
pub(super) struct Server {
    pub(super) address: IpAddr,
    /// The finished template for its connections.
    pub(super) peer: HttpPeer,
    /// Its unused connections over HTTP/1.1.
    pub(super) pool: Arc<Pool>,
    back_off: BackOff,
}

/// Milliseconds since [`Addresses::started`] until which this address is tried last; 0 where it is
/// not known to be unreachable.
#[derive(Debug)]
struct BackOff(AtomicU64);

/// The address of one attempt.
pub struct Picked {
    at: usize,
    pub(super) server: Arc<Server>,
    /// There are other addresses.
    has_others: bool,
    /// The versions of HTTP that it is offered.
    pub(super) offer: Offer,
}

impl std::fmt::Debug for Picked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Picked").field(&self.server.address).finish()
    }
}

/// Addresses that one request need not try again, by their position.
#[derive(Debug, Default, Clone, Copy)]
pub struct TriedAddresses(u64);

impl TriedAddresses {
    /// Adds an address.
    pub fn add(&mut self, picked: &Picked) {
        self.0 |= Self::bit(picked.at);
    }

    /// Returns their number.
    #[must_use]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    fn has(self, at: usize) -> bool {
        self.0 & Self::bit(at) != 0
    }

    fn bit(at: usize) -> u64 {
        1 << (at % 64)
    }
}

impl Addresses {
    /// Returns no addresses.
    #[must_use]
    pub fn unresolved() -> Self {
        Self {
            servers: ArcSwapOption::empty(),
            resolved: Notify::new(),
            started: Instant::now(),
        }
    }

    /// Publishes a resolution. `addresses` must not be empty. `peer` makes the template of a new
    /// address, and `pool` its pool.
    pub(super) fn publish(
        &self,
        addresses: &[IpAddr],
        peer: impl Fn(IpAddr) -> HttpPeer,
        pool: impl Fn() -> Arc<Pool>,
    ) {
        let before = self.servers.load();
        let before: &[Arc<Server>] = before.as_ref().map_or(&[], |servers| servers.as_slice());
        let servers = addresses.iter().map(|&address| {
            let known = before.iter().find(|server| server.address == address);
            known.cloned().unwrap_or_else(|| {
                Arc::new(Server {
                    address,
                    peer: peer(address),
                    pool: pool(),
                    back_off: BackOff(AtomicU64::new(0)),
                })
            })
        });
        self.servers.store(Some(Arc::new(servers.collect())));
        self.resolved.notify_waiters();
    }

    /// Returns the next address for a request that has `tried` some in vain. Waits `at_most` for
    /// the first resolution; `None` when there is none by then.
    pub async fn pick(&self, tried: TriedAddresses, at_most: Duration) -> Option<Picked> {
        if let Some(servers) = &*self.servers.load() {
            return Some(self.choose(servers, tried));
        }
        let resolved = self.resolved.notified();
        // A resolution may have come between the check above and the registration here.
        if self.servers.load().is_none() {
            let _ = tokio::time::timeout(at_most, resolved).await;
        }
        let servers = self.servers.load();
        servers.as_ref().map(|servers| self.choose(servers, tried))
    }

    fn choose(&self, servers: &[Arc<Server>], tried: TriedAddresses) -> Picked {
        let has_others = servers.len() > 1;
        let at = if has_others {
            let now = self.now();
            let mut left = (0..servers.len()).filter(|at| !tried.has(*at));
            left.clone()
                .find(|at| servers[*at].back_off.may_be_asked(now))
                .or_else(|| left.next())
                .unwrap_or(0)
        } else {
            0
        };
        Picked {
            at,
            server: servers[at].clone(),
            has_others,
            offer: Offer::default(),
        }
    }

    /// Notes that a connect to `picked` failed.
    pub fn mark_unreachable(&self, picked: &Picked) {
        if picked.has_others {
            picked.server.back_off.set_back(self.now());
        }
    }

    /// Returns the number of addresses.
    #[must_use]
    pub fn count(&self) -> usize {
        let servers = self.servers.load();
        servers.as_ref().map_or(0, |servers| servers.len())
    }

    /// Never 0.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "half a billion years of milliseconds"
    )]
    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }
}

impl Picked {
    /// Notes that a connect succeeded, and tells whether the address was thought unreachable.
    #[must_use]
    pub fn mark_reachable(&self) -> bool {
        let until = &self.server.back_off.0;
        // Nothing is written where nothing changes: all requests share it.
        until.load(Ordering::Relaxed) != 0 && until.swap(0, Ordering::Relaxed) != 0
    }
}

impl BackOff {
    fn may_be_asked(&self, now: u64) -> bool {
        let until = self.0.load(Ordering::Relaxed);
        until == 0
            || now >= until
                && self
                    .0
                    .compare_exchange(until, later(now), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
    }

    fn set_back(&self, now: u64) {
        self.0.store(later(now), Ordering::Relaxed);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a minute")]
fn later(now: u64) -> u64 {
    now + SET_BACK.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    const C: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

    fn peer(address: IpAddr) -> HttpPeer {
        HttpPeer::new(SocketAddr::new(address, 443), false, String::new())
    }

    fn known(addresses: &[IpAddr]) -> Addresses {
        let known = Addresses::unresolved();
        known.publish(addresses, peer, Arc::default);
        known
    }

    impl Addresses {
        async fn next(&self, tried: TriedAddresses) -> (IpAddr, Picked) {
            let picked = self.pick(tried, Duration::ZERO).await.unwrap();
            (picked.server.address, picked)
        }

        async fn first(&self) -> IpAddr {
            self.next(TriedAddresses::default()).await.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_tries_each_address_once_and_then_begins_again() {
        let known = known(&[A, B, C]);
        let mut tried = TriedAddresses::default();
        for expected in [A, B, C] {
            let (address, picked) = known.next(tried).await;
            assert_eq!(address, expected);
            // It broke off within a response, say, which is no reason to avoid it.
            tried.add(&picked);
        }
        assert_eq!(tried.count(), known.count());
        assert_eq!(known.next(tried).await.0, A);
        assert_eq!(known.first().await, A);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_request_could_not_reach_the_others_try_last() {
        let known = known(&[A, B]);
        let (_, first) = known.next(TriedAddresses::default()).await;
        known.mark_unreachable(&first);
        let mut tried = TriedAddresses::default();
        tried.add(&first);
        assert_eq!(known.next(tried).await.0, B);
        let (address, second) = known.next(TriedAddresses::default()).await;
        assert_eq!(address, B);

        // Both are unreachable: they are tried in order, and none is left out.
        known.mark_unreachable(&second);
        assert_eq!(known.first().await, A);
        assert_eq!(known.next(tried).await.0, B);
        assert!(second.mark_reachable());
        assert!(!second.mark_reachable(), "said twice");
        assert_eq!(known.first().await, B);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_while_one_request_sees_whether_it_is_back() {
        let known = known(&[A, B]);
        let (_, picked) = known.next(TriedAddresses::default()).await;
        known.mark_unreachable(&picked);
        tokio::time::advance(Duration::from_millis(59_999)).await;
        assert_eq!(known.first().await, B);
        tokio::time::advance(Duration::from_millis(1)).await;
        let (address, probe) = known.next(TriedAddresses::default()).await;
        assert_eq!((address, known.first().await), (A, B));
        assert!(probe.mark_reachable());
        assert_eq!(known.first().await, A);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_answer_forgets_nothing_of_the_addresses_it_keeps() {
        let known = known(&[A, B]);
        let (_, picked) = known.next(TriedAddresses::default()).await;
        known.mark_unreachable(&picked);
        known.publish(&[C, A], peer, Arc::default);
        assert_eq!(known.first().await, C);
        known.publish(&[A, B], peer, Arc::default);
        assert_eq!(known.first().await, B);
        known.publish(&[B, C], peer, Arc::default);
        known.publish(&[A, B], peer, Arc::default);
        assert_eq!(known.first().await, A, "left in between");
    }

    #[tokio::test(start_paused = true)]
    async fn an_only_address_is_never_set_back() {
        let known = known(&[A]);
        let (_, picked) = known.next(TriedAddresses::default()).await;
        known.mark_unreachable(&picked);
        assert!(!picked.mark_reachable());
        assert_eq!(known.first().await, A);
    }
}
