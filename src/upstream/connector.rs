//! What all vendors' connections have in common: pingora's connectors, which know TLS and HTTP/2,
//! and one task that closes unused connections.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::Result;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::v2;
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::upstreams::peer::HttpPeer;
use tokio::time::{Instant, sleep};

use super::pool::Pool;

/// Most unused connections over HTTP/2 of all vendors.
const HTTP2_CONNECTIONS: usize = 1024;
/// Interval at which unused connections over HTTP/1.1 are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// The connectors, and the pools that are swept.
pub struct Connector {
    /// Keeps connections over HTTP/2 by the peer's hash, and makes connections over TLS.
    http2: v2::Connector,
    pools: Mutex<Vec<Weak<Pool>>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// Prepares the connectors and starts sweeping, until the last handle is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start() -> Arc<Self> {
        let connector = Arc::new(Self {
            http2: v2::Connector::new(Some(ConnectorOptions::new(HTTP2_CONNECTIONS))),
            pools: Mutex::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&connector)));
        connector
    }

    /// Returns a new pool, which is swept while it lives.
    pub(super) fn pool(&self) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        self.pools.lock().push(Arc::downgrade(&pool));
        pool
    }

    /// Returns a stream of a connection over HTTP/2 to `peer`, if there is one with room.
    pub(super) async fn pooled_http2(&self, peer: &HttpPeer) -> Result<Option<Http2Session>> {
        self.http2.reused_http_session(peer).await
    }

    /// Connects to `peer`, which chooses the version.
    pub(super) async fn connect_http2(&self, peer: &HttpPeer) -> Result<HttpSession<()>> {
        self.http2.new_http_session(peer).await
    }

    /// Connects to `peer` over TLS for HTTP/1.1.
    pub(super) async fn connect_tls(&self, peer: &HttpPeer) -> Result<Stream> {
        self.http2.transport().new_stream(peer).await
    }

    /// Gives a stream back to its connection, which is kept as long as the peer's options say.
    pub(super) fn release_http2(&self, session: Http2Session, peer: &HttpPeer) {
        let kept = peer.options.idle_timeout;
        self.http2.release_http_session(session, peer, kept);
    }
}

async fn sweep(connector: Weak<Connector>) {
    loop {
        sleep(SWEEP).await;
        let Some(connector) = connector.upgrade() else {
            return;
        };
        let mut pools = Vec::new();
        connector.pools.lock().retain(|pool| {
            let pool = pool.upgrade();
            let lives = pool.is_some();
            pools.extend(pool);
            lives
        });
        let now = Instant::now();
        for pool in pools {
            pool.sweep(now);
        }
    }
}
