//! TLS for servers that ask for the client certificate only once they have read the path: by
//! renegotiation in TLS 1.2, by authentication after the handshake in TLS 1.3 (RFC 8446 §4.6.2).
//! rustls knows neither, so this is OpenSSL's business, and this the only place that knows OpenSSL.
//! Requests get here by [`crate::upstream`], token calls by themselves.
//!
//! Trust anchors and identity are the same as everywhere else: the same roots, the same identity,
//! names always verified, nothing below TLS 1.2. A server may renegotiate by RFC 5746 alone, and is
//! verified again each time. HTTP/1.1 only, because HTTP/2 forbids both ways of asking late (RFC
//! 9113 §9.2.1, §9.2.3).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use hyper_util::rt::TokioIo;
use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{self, ErrorCode, SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};
use openssl::x509::{X509, X509StoreContextRef, X509VerifyResult};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;
use url::Url;

use crate::outbound::{TunnelError, Via};
use crate::tls::pinned::vouches;
use crate::tls::{self, Identity, Roots};

/// A verified connection.
#[derive(Debug)]
pub struct Stream(SslStream<TcpStream>);

/// The client side of one vendor's connections: its trust and its certificate.
pub struct LateClientAuth {
    connector: SslConnector,
    /// Certificates that are also accepted from the server itself.
    trusted: Arc<Vec<CertificateDer<'static>>>,
}

/// The reason why there is no connection. Nothing of a request has been sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address of the server, or of the proxy before it, could be reached.
    #[error("{0}")]
    Unreachable(String),
    /// The proxy before the server refused the tunnel.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// It took longer than allowed.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// The server's certificate does not prove the requested name.
    #[error("the server's certificate is refused: {0}")]
    Unverified(X509VerifyResult),
    /// The handshake failed for another reason.
    #[error("TLS: {0}")]
    Handshake(String),
}

impl std::fmt::Debug for LateClientAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LateClientAuth").finish_non_exhaustive()
    }
}

impl LateClientAuth {
    /// Trusts `roots`, and presents `identity` whenever a certificate is requested.
    ///
    /// # Errors
    /// Fails if OpenSSL cannot use the identity: its key is too short by now, say.
    pub fn new(roots: &Roots, identity: Option<&Identity>) -> Result<Self, tls::Error> {
        let connector = connector(roots, identity);
        let connector = connector.map_err(|cause| tls::Error::OpenSsl(reasons(&cause)))?;
        Ok(Self {
            connector,
            trusted: Arc::new(roots.pinnable().to_vec()),
        })
    }

    /// Speaks TLS on `stream` and verifies that `host`, a name or an address without brackets, is
    /// at the other end.
    ///
    /// # Errors
    /// Fails if another server is there, or if TLS fails.
    pub async fn handshake(&self, host: &str, stream: TcpStream) -> Result<Stream, Error> {
        let prepare = || {
            let mut ssl = self.connector.configure()?.into_ssl(host)?;
            let param = ssl.param_mut();
            // As webpki does it: names are in the extension or nowhere, and every certificate of
            // the bundle is an anchor, an intermediate too.
            param.set_hostflags(
                X509CheckFlags::NO_PARTIAL_WILDCARDS | X509CheckFlags::NEVER_CHECK_SUBJECT,
            );
            param.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
            let (trusted, host) = (self.trusted.clone(), host.to_owned());
            ssl.set_verify_callback(SslVerifyMode::PEER, move |is_good, context| {
                if is_good || !is_pinned(context, &trusted, &host) {
                    return is_good;
                }
                context.set_error(X509VerifyResult::OK);
                true
            });
            SslStream::new(ssl, stream)
        };
        let mut stream = prepare().map_err(|cause| Error::Handshake(reasons(&cause)))?;
        match Pin::new(&mut stream).connect().await {
            Ok(()) => Ok(Stream(stream)),
            Err(cause) => match stream.ssl().verify_result() {
                X509VerifyResult::OK => Err(Error::Handshake(story(&cause))),
                refused => Err(Error::Unverified(refused)),
            },
        }
    }

    /// Connects to the server of `url`, by the first of its addresses (or of the proxy's) that
    /// leads there; each has `limit`, zero being none.
    ///
    /// # Errors
    /// Returns the most telling error if no address leads there.
    pub async fn open(
        &self,
        url: &Url,
        via: Option<&Via>,
        limit: Duration,
    ) -> Result<Stream, Error> {
        let unreachable = |cause: io::Error| Error::Unreachable(cause.to_string());
        let host = url.host_str().unwrap_or_default();
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().unwrap_or(443);
        let next = via.map_or((name, port), |via| (via.host.as_str(), via.port));
        let addresses = tokio::net::lookup_host(next)
            .await
            .map_err(|cause| Error::Unreachable(format!("{} does not resolve: {cause}", next.0)))?;
        let mut told = Error::Unreachable(format!("{} has no address", next.0));
        for address in addresses {
            let open = async {
                let mut stream = TcpStream::connect(address).await.map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                if let Some(via) = via {
                    via.tunnel(&mut stream, &format!("{host}:{port}")).await?;
                }
                self.handshake(name, stream).await
            };
            let opened = if limit.is_zero() {
                open.await
            } else {
                let opened = timeout(limit, open).await;
                opened.unwrap_or(Err(Error::TimedOut(limit)))
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(cause) if cause.says() >= told.says() => told = cause,
                Err(_) => {}
            }
        }
        Err(told)
    }
}

impl Error {
    /// Returns how much the error says: a second address often refuses, whatever is wrong with the
    /// first.
    fn says(&self) -> u8 {
        match self {
            Self::Unreachable(_) => 0,
            Self::TimedOut(_) => 1,
            Self::Tunnel(_) => 2,
            Self::Handshake(_) => 3,
            Self::Unverified(_) => 4,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // The openssl crate takes every end for a clean one. Only this is (RFC 8446 §6.1).
        match ready!(Pin::new(&mut self.0).poll_peek(context, &mut [0])) {
            Err(end) if end.code() == ErrorCode::ZERO_RETURN => Poll::Ready(Ok(())),
            Ok(_) | Err(_) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Sends one request on a connection of its own, which ends with the response. No redirect is
/// followed.
///
/// # Errors
/// Fails if no response comes. The outcome of the request is unknown.
pub async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    mut request: Request<reqwest::Body>,
    agent: &'static str,
) -> Result<reqwest::Response, String> {
    let uri = request.uri().clone();
    let fields = request.headers_mut();
    if let Some(authority) = uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|cause| cause.to_string())?;
        fields.insert(HOST, host);
    }
    fields.insert(USER_AGENT, HeaderValue::from_static(agent));
    // A server gets the path alone (RFC 9112 §3.2.1).
    *request.uri_mut() = uri
        .path_and_query()
        .cloned()
        .map_or_else(Uri::default, Uri::from);

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(told)?;
    // Ends when the response has been read or dropped; both report their errors.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let answer = sender.send_request(request).await.map_err(told)?;
    Ok(answer.map(reqwest::Body::wrap).into())
}

/// Describes an error on an open connection, without file names of OpenSSL's.
#[must_use]
pub fn described(cause: &io::Error) -> String {
    cause
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ssl::Error>())
        .map_or_else(|| cause.to_string(), story)
}

#[expect(clippy::needless_pass_by_value, reason = "errors come by value")]
fn told(error: hyper::Error) -> String {
    let cause = std::error::Error::source(&error);
    match cause.and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(cause) => format!("{error}: {}", described(cause)),
        None => error.to_string(),
    }
}

/// Tells whether OpenSSL rejects the server's own certificate, and it is a pinned one (see
/// [`crate::tls::pinned`]).
fn is_pinned(context: &X509StoreContextRef, trusted: &[CertificateDer<'_>], host: &str) -> bool {
    if context.error_depth() != 0 {
        return false;
    }
    let shown = context.current_cert().and_then(|shown| shown.to_der().ok());
    let (Some(shown), Ok(name)) = (shown, ServerName::try_from(host)) else {
        return false;
    };
    let shown = CertificateDer::from(shown);
    trusted.contains(&shown) && vouches(&shown, &name, UnixTime::now()).is_ok()
}

fn connector(roots: &Roots, identity: Option<&Identity>) -> Result<SslConnector, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    // rustls' suites, and others with forward secrecy and authenticated encryption.
    builder.set_cipher_list("ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20:!aNULL:!PSK")?;
    builder.set_alpn_protos(b"\x08http/1.1")?;
    let mut store = X509StoreBuilder::new()?;
    for der in &roots.certificates {
        // Bundles may hold unusable certificates.
        if let Ok(root) = X509::from_der(der) {
            store.add_cert(root)?;
        }
    }
    builder.set_cert_store(store.build());
    builder.set_verify(SslVerifyMode::PEER);
    if let Some(identity) = identity {
        let mut chain = identity.chain.iter().map(|der| X509::from_der(der));
        if let Some(leaf) = chain.next() {
            builder.set_certificate(&*leaf?)?;
        }
        for issuer in chain {
            builder.add_extra_chain_cert(issuer?)?;
        }
        builder.set_private_key(&*PKey::private_key_from_der(identity.key.secret_der())?)?;
        builder.check_private_key()?;
    }
    offer_authentication_after_the_handshake(&mut builder);
    Ok(builder.build())
}

/// Without this offer a TLS 1.3 server cannot request it later (RFC 8446 §4.2.6).
#[expect(
    unsafe_code,
    reason = "the openssl crate has no wrapper for this one call"
)]
fn offer_authentication_after_the_handshake(builder: &mut ssl::SslContextBuilder) {
    // SAFETY: the pointer is that of a live context which, by the exclusive borrow, is ours alone;
    // the call sets a flag in it and keeps nothing.
    unsafe { openssl_sys::SSL_CTX_set_post_handshake_auth(builder.as_ptr(), 1) }
}

fn story(error: &ssl::Error) -> String {
    match (error.ssl_error(), error.io_error()) {
        (Some(stack), _) => reasons(stack),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => "the connection was closed".to_owned(),
    }
}

fn reasons(stack: &ErrorStack) -> String {
    let errors = stack.errors().iter();
    let reasons: Vec<_> = errors.filter_map(openssl::error::Error::reason).collect();
    if reasons.is_empty() {
        "no reason given".to_owned()
    } else {
        reasons.join(": ")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::version::{TLS12, TLS13};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A server whose certificate is signed by an intermediate that it does not send.
    struct Server {
        /// The root's certificate, and the intermediate's.
        authorities: [CertificateDer<'static>; 2],
        acceptor: TlsAcceptor,
    }

    impl Server {
        fn new(names: &[&str], version: &'static rustls::SupportedProtocolVersion) -> Self {
            crate::tls::install_provider();
            let authority = |name: &str| {
                let mut params = CertificateParams::default();
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.distinguished_name.push(DnType::CommonName, name);
                (params, KeyPair::generate().unwrap())
            };
            let (root, root_key) = authority("root");
            let root_cert = root.self_signed(&root_key).unwrap();
            let root = Issuer::new(root, root_key);
            let (intermediate, key) = authority("intermediate");
            let intermediate_cert = intermediate.signed_by(&key, &root).unwrap();
            let intermediate = Issuer::new(intermediate, key);

            let key = KeyPair::generate().unwrap();
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let mut leaf = CertificateParams::new(names).unwrap();
            leaf.distinguished_name
                .push(DnType::CommonName, "common.test");
            let leaf = leaf.signed_by(&key, &intermediate).unwrap();
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            let config = rustls::ServerConfig::builder_with_protocol_versions(&[version])
                .with_no_client_auth()
                .with_single_cert(vec![leaf.der().clone()], key.into())
                .unwrap();
            Self {
                authorities: [root_cert.der().clone(), intermediate_cert.der().clone()],
                acceptor: TlsAcceptor::from(Arc::new(config)),
            }
        }

        /// Connects to it as `host`, trusting `trusted`.
        async fn asked_for(
            &self,
            host: &str,
            trusted: &CertificateDer<'static>,
        ) -> Result<(), Error> {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap());
            let acceptor = self.acceptor.clone();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let _ = acceptor.accept(stream).await;
            });
            let roots = Roots::of(vec![trusted.clone()]);
            let tls = LateClientAuth::new(&roots, None).unwrap();
            tls.handshake(host, stream.await.unwrap()).await.map(drop)
        }
    }

    #[tokio::test]
    async fn only_whom_we_asked_for_gets_a_connection() {
        for version in [&TLS12, &TLS13] {
            let server = Server::new(&["a.test", "*.b.test", "127.0.0.1"], version);
            let [root, intermediate] = &server.authorities;
            for host in ["a.test", "x.b.test", "127.0.0.1"] {
                server.asked_for(host, intermediate).await.unwrap();
            }
            for host in [
                "b.test",
                "x.y.b.test",
                "127.0.0.2",
                "::1",
                // A name that is only in the subject is not accepted.
                "common.test",
            ] {
                let refused = server.asked_for(host, intermediate).await;
                assert!(
                    matches!(refused, Err(Error::Unverified(_))),
                    "{host}: {refused:?}"
                );
            }
            let incomplete = server.asked_for("a.test", root).await;
            assert!(
                matches!(incomplete, Err(Error::Unverified(_))),
                "{incomplete:?}"
            );
        }
        let nameless = Server::new(&[], &TLS13);
        let refused = nameless
            .asked_for("common.test", &nameless.authorities[1])
            .await;
        assert!(matches!(refused, Err(Error::Unverified(_))), "{refused:?}");
    }
}
