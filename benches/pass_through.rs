//! The yardstick: a pass-through on pingora alone, with one field from an `ArcSwap` put into each
//! request. No caller is asked who it is, nothing is decided, counted, logged or searched.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora::http::RequestHeader;
use pingora::prelude::{HttpPeer, Server, http_proxy_service};
use pingora::proxy::{ProxyHttp, Session};
use pingora::server::configuration::ServerConf;

struct PassThrough {
    peer: HttpPeer,
    authorization: ArcSwap<HeaderValue>,
}

#[async_trait]
impl ProxyHttp for PassThrough {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(
        &self,
        _: &mut Session,
        (): &mut Self::CTX,
    ) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(self.peer.clone()))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        (): &mut Self::CTX,
    ) -> pingora::Result<()> {
        let value = HeaderValue::clone(&self.authorization.load());
        request.insert_header(AUTHORIZATION, value)
    }
}

/// Serves until the process is ended, on one worker thread.
///
/// # Panics
/// When `arguments` are not `LISTEN UPSTREAM [SERVER-NAME CA-FILE]`.
pub(crate) fn run(arguments: &[String]) -> ! {
    countersign::tls::install_provider();
    let (listen, upstream, server_name, ca) = match arguments {
        [listen, upstream] => (listen, upstream, String::new(), None),
        [listen, upstream, name, ca] => (listen, upstream, name.clone(), Some(ca.clone())),
        _ => panic!("not LISTEN UPSTREAM [SERVER-NAME CA-FILE]: {arguments:?}"),
    };
    let upstream: SocketAddr = upstream.parse().expect("UPSTREAM is an address and a port");
    let conf = ServerConf {
        threads: 1,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ca_file: ca.clone(),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let pass_through = PassThrough {
        peer: HttpPeer::new(upstream, ca.is_some(), server_name),
        authorization: ArcSwap::new(Arc::new(HeaderValue::from_static(
            "Bearer bench-token-of-a-length-that-is-usual-0123456789abcdef",
        ))),
    };
    let mut service = http_proxy_service(&server.configuration, pass_through);
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}
