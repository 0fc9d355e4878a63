//! The yardstick: a pass-through proxy on pingora alone, which inserts one header from an `ArcSwap`
//! into each request. It authenticates no caller and does not decide, count, log or search
//! anything.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use pingora::http::RequestHeader;
use pingora::listeners::tls::TlsSettings;
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

/// Arguments of [`run`]. With `--tls`, callers use TLS (HTTP/1.1 or 2); with the last two, so does
/// the connection to the upstream.
pub(crate) const USAGE: &str = "[--tls CERT KEY] LISTEN UPSTREAM [SERVER-NAME CA-FILE]";

/// Serves until the process is killed, on one worker thread. Returns if `arguments` do not match
/// [`USAGE`].
///
/// # Panics
/// Panics if a file cannot be read, an address is invalid or a port cannot be bound.
pub(crate) fn run(arguments: &[String]) {
    countersign::tls::install_provider();
    let (tls, arguments) = match arguments {
        [flag, cert, key, rest @ ..] if flag == "--tls" => (Some((cert, key)), rest),
        all => (None, all),
    };
    let (listen, upstream, server_name, ca) = match arguments {
        [listen, upstream] => (listen, upstream, String::new(), None),
        [listen, upstream, name, ca] => (listen, upstream, name.clone(), Some(ca.clone())),
        _ => return,
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
    if let Some((cert, key)) = tls {
        let mut settings = TlsSettings::intermediate(cert, key).expect("CERT and KEY are files");
        settings.enable_h2();
        service.add_tls_with_settings(listen, None, settings);
    } else {
        service.add_tcp(listen);
    }
    server.add_service(service);
    server.run_forever();
}
