//! A mock server on a free loopback port, which responds by a [`Handler`] and records every byte it
//! receives.
//!
//! The HTTP library reads and writes the messages, but loses the spelling of field names and the
//! order of fields with different names. A vendor sees both, so every [`RecordedRequest`] is parsed
//! from the recorded bytes.

mod recorder;
mod request;
mod response;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use self::recorder::{Recorder, Recording};
pub use self::request::RecordedRequest;
pub(crate) use self::response::MockResponse;
use super::certificates::{ClientCert, Tls};
use super::tokens::Tokens;

/// The rules of a vendor, without any networking.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Returns the vendor's response to one request.
    fn respond(&self, request: &RecordedRequest) -> MockResponse;

    /// Tells whether this is a token request. [`MockServer::delay_token_calls`] and
    /// [`MockServer::fail_next`] affect no others.
    fn is_token_call(&self, _request: &RecordedRequest) -> bool {
        false
    }

    /// Revokes every grant: no refresh token works any longer.
    fn revoke_grants(&self) {}
}

/// A running mock server. Dropping it closes the port and every connection.
pub struct MockServer {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<ServerState>,
    accepting: JoinHandle<()>,
}

impl MockServer {
    /// Starts on a free port of 127.0.0.1, in plaintext without `tls`.
    pub(crate) async fn start(
        handler: impl Handler,
        tokens: Arc<Tokens>,
        tls: Option<Tls>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(ServerState {
            handler: Box::new(handler),
            tokens,
            recordings: Mutex::default(),
            requests: Mutex::default(),
            delay: Mutex::default(),
            failures: Mutex::new((0, StatusCode::SERVICE_UNAVAILABLE)),
        });
        let accepting = tokio::spawn(accept(listener, tls, state.clone()));
        Ok(Self {
            address,
            scheme,
            state,
            accepting,
        })
    }

    /// Returns the address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns `https://127.0.0.1:PORT` (`http` without TLS).
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Returns `https://localhost:PORT`: with a host name, so that clients send SNI.
    #[must_use]
    pub fn url_by_name(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    /// Returns every request so far, in the order in which they were complete.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state.requests.lock().clone()
    }

    /// Returns the token requests.
    #[must_use]
    pub fn token_calls(&self) -> Vec<RecordedRequest> {
        self.filtered(true)
    }

    /// Returns all other requests.
    #[must_use]
    pub fn api_calls(&self) -> Vec<RecordedRequest> {
        self.filtered(false)
    }

    /// Returns the bytes read after TLS, one entry per connection, even if they are not requests.
    #[must_use]
    pub fn connections(&self) -> Vec<Vec<u8>> {
        let recordings = self.state.recordings.lock();
        recordings
            .iter()
            .map(|recording| recording.lock().bytes.clone())
            .collect()
    }

    /// Tells whether `needle` occurs anywhere in the bytes read.
    #[must_use]
    pub fn has_read(&self, needle: &str) -> bool {
        self.connections().iter().any(|bytes| {
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
    }

    /// Sets the lifetime of access tokens issued from now on; whole seconds.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.state.tokens.set_lifetime(lifetime);
    }

    /// Sets the lifetime of grants (refresh tokens) made from now on; whole seconds.
    pub fn set_grant_lifetime(&self, lifetime: Duration) {
        self.state.tokens.set_grant_lifetime(lifetime);
    }

    /// Omits `expires_in` from token responses, as old versions of some vendors do.
    pub fn omit_expires_in(&self) {
        self.state.tokens.omit_expires_in();
    }

    /// Delays the response to each token request from now on.
    pub fn delay_token_calls(&self, delay: Duration) {
        *self.state.delay.lock() = delay;
    }

    /// Responds to the next `count` token requests with `status` and without a token.
    pub fn fail_next(&self, count: usize, status: StatusCode) {
        *self.state.failures.lock() = (count, status);
    }

    /// Revokes every access token, so that API calls get a 401 until a new one is fetched. Refresh
    /// tokens stay valid.
    pub fn revoke_access_tokens(&self) {
        self.state.tokens.revoke_access_tokens();
    }

    /// Revokes every grant: no refresh token works any longer. Access tokens stay valid.
    pub fn revoke_grants(&self) {
        self.state.handler.revoke_grants();
    }

    fn filtered(&self, token_call: bool) -> Vec<RecordedRequest> {
        let seen = self.state.requests.lock();
        seen.iter()
            .filter(|seen| seen.token_call == token_call)
            .cloned()
            .collect()
    }
}

impl Drop for MockServer {
    fn drop(&mut self) {
        // The accepting task owns the tasks of the connections, which are aborted with it.
        self.accepting.abort();
    }
}

/// State shared by all connections of one mock server.
struct ServerState {
    handler: Box<dyn Handler>,
    tokens: Arc<Tokens>,
    recordings: Mutex<Vec<Arc<Mutex<Recording>>>>,
    requests: Mutex<Vec<RecordedRequest>>,
    delay: Mutex<Duration>,
    /// Number of token requests that are still to fail, and their status.
    failures: Mutex<(usize, StatusCode)>,
}

impl ServerState {
    async fn handle(
        &self,
        request: Request<Incoming>,
        connection: usize,
        recording: &Mutex<Recording>,
        client_cert: Option<ClientCert>,
    ) -> Result<Response<Body>, axum::Error> {
        let body = to_bytes(Body::new(request.into_body()), usize::MAX).await?;
        let raw = recording.lock().take_request();
        let Some(mut seen) = RecordedRequest::parse(raw, &body, connection, client_cert) else {
            return Ok(MockResponse::empty(400)
                .with_reason("Pipelined")
                .into_response());
        };
        seen.token_call = self.handler.is_token_call(&seen);
        let index = {
            // Recorded before the response exists, so that a test can wait for a request whose
            // response is delayed.
            let mut all = self.requests.lock();
            all.push(seen.clone());
            all.len() - 1
        };
        let failure = if seen.token_call {
            let delay = *self.delay.lock();
            sleep(delay).await;
            let mut failures = self.failures.lock();
            let fails = failures.0 > 0;
            failures.0 = failures.0.saturating_sub(1);
            fails.then_some(failures.1)
        } else {
            None
        };
        let response = match failure {
            Some(status) => MockResponse::empty(status.as_u16()),
            None => self.handler.respond(&seen),
        };
        sleep(response.wait).await;
        self.requests.lock()[index].status = response.status;
        Ok(response.into_response())
    }
}

async fn accept(listener: TcpListener, tls: Option<Tls>, state: Arc<ServerState>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((tcp, _)) = accepted {
                    connections.spawn(connection(tcp, tls.clone(), state.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(tcp: TcpStream, tls: Option<Tls>, state: Arc<ServerState>) {
    // Without it, responses are only slower.
    let _ = tcp.set_nodelay(true);
    match tls {
        Some(tls) => {
            // A client that fails the handshake has received an alert.
            if let Ok(stream) = tls.acceptor.accept(tcp).await {
                let client_cert = tls.client_cert(stream.get_ref().1.peer_certificates());
                serve_connection(stream, client_cert, state).await;
            }
        }
        None => serve_connection(tcp, None, state).await,
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client_cert: Option<ClientCert>,
    state: Arc<ServerState>,
) {
    let recording = Arc::new(Mutex::new(Recording::default()));
    let number = {
        let mut recordings = state.recordings.lock();
        recordings.push(recording.clone());
        recordings.len() - 1
    };
    let recorder = Recorder {
        stream,
        recording: recording.clone(),
    };
    let service = service_fn(move |request| {
        let (state, recording, client_cert) =
            (state.clone(), recording.clone(), client_cert.clone());
        async move { state.handle(request, number, &recording, client_cert).await }
    });
    // An error is a peer that closed the connection, or a body that is cut short on purpose.
    let _ = http1::Builder::new()
        .title_case_headers(true)
        .serve_connection(TokioIo::new(recorder), service)
        .await;
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::echo;
    use super::super::tests::{client, mock_vendors, send};
    use super::*;

    /// Sends `bytes` in one piece and reads to the end of the connection.
    async fn speak(server: &MockServer, bytes: &str) -> String {
        let mut tcp = TcpStream::connect(server.address()).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // A connection that is cut short may end in an error; the bytes before it count.
        let _ = tcp.read_to_end(&mut response).await;
        String::from_utf8(response).unwrap()
    }

    #[tokio::test]
    async fn order_spelling_and_bytes_are_kept() {
        let server = echo().await.unwrap();
        let request = "POST /a%2f?x=1&x=2 HTTP/1.1\r\nhost: a\r\nX-b: 1\r\ncustomerUri:  c \r\n\
                       x-B: 2\r\nTransfer-Encoding: chunked\r\nconnection: close\r\n\r\n\
                       3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        speak(&server, request).await;

        let seen = &server.requests()[0];
        assert_eq!(seen.raw, request.as_bytes());
        assert_eq!(server.connections(), [request.as_bytes()]);
        assert_eq!(seen.target, "/a%2f?x=1&x=2");
        assert_eq!(seen.body, b"abcde");
        let fields: Vec<_> = seen
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .take(4)
            .collect();
        assert_eq!(
            fields,
            [
                ("host", "a"),
                ("X-b", "1"),
                ("customerUri", "c"),
                ("x-B", "2")
            ]
        );
        assert_eq!(seen.exact_field("customerUri"), Some("c"));
        assert_eq!(seen.exact_field("customeruri"), None);
        assert_eq!(
            seen.field("x-b"),
            None,
            "two fields of one name are no login"
        );
    }

    #[tokio::test]
    async fn requests_of_one_connection_are_separated_and_pipelined_ones_refused() {
        let server = echo().await.unwrap();
        let mut tcp = TcpStream::connect(server.address()).await.unwrap();
        for n in 0..2 {
            let request = format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.unwrap();
            let mut response = [0; 512];
            let read = tcp.read(&mut response).await.unwrap();
            assert!(response[..read].starts_with(b"HTTP/1.1 200 OK\r\n"));
            assert_eq!(server.requests()[n].raw, request.as_bytes());
            assert_eq!(server.requests()[n].connection, 0);
        }

        let two = "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\
                   Connection: close\r\n\r\n";
        let responses = speak(&server, two).await;
        assert!(
            responses.contains("HTTP/1.1 400 Pipelined\r\n"),
            "{responses}"
        );
        assert_eq!(server.requests().len(), 3);
        assert_eq!(server.requests()[2].raw, two.as_bytes());
    }

    #[tokio::test]
    async fn the_echo_responds_as_its_query_specifies() {
        let server = echo().await.unwrap();
        let get = |query: &str| {
            format!("GET /?{query} HTTP/1.1\r\nHost: a\r\nX-A: b\r\nConnection: close\r\n\r\n")
        };

        let response = speak(
            &server,
            &get("status=299&reason=Odd+one&header=X-C:d&echo=x-a"),
        )
        .await;
        assert!(
            response.starts_with("HTTP/1.1 299 Odd one\r\n"),
            "{response}"
        );
        assert!(response.contains("\r\nX-C: d\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\nb"), "{response}");

        let response = speak(&server, &get("size=100&cut=10")).await;
        assert!(
            response.contains("\r\nContent-Length: 100\r\n"),
            "{response}"
        );
        assert!(response.ends_with("\r\n\r\nxxxxxxxxxx"), "{response}");
    }

    #[tokio::test]
    async fn token_requests_fail_and_tokens_expire_on_request() {
        let (_dir, vendors) = mock_vendors().await;
        let server = &vendors.certcenter;
        let client = client(&vendors.files, None);
        let login = &vendors.logins.certcenter;
        let ask = || {
            client
                .post(server.url() + "/oauth2/token")
                .json(&serde_json::json!({
                    "grant_type": "client_credentials",
                    "client_id": login.id,
                    "client_secret": login.secret,
                }))
        };
        let limit = |token: &Value| {
            client
                .get(server.url() + "/rest/v1/Limit")
                .bearer_auth(token.as_str().unwrap())
        };

        server.fail_next(1, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(send(ask()).await.0, 503);
        server.set_lifetime(Duration::from_secs(7));
        let (status, body) = send(ask()).await;
        assert_eq!((status, body["expires_in"].as_u64()), (200, Some(7)));
        assert_eq!(send(limit(&body["access_token"])).await.0, 200);
        server.revoke_access_tokens();
        assert_eq!(send(limit(&body["access_token"])).await.0, 401);
        server.omit_expires_in();
        server.set_lifetime(Duration::ZERO);
        let (_, body) = send(ask()).await;
        assert_eq!(body["expires_in"], Value::Null);
        assert_eq!(send(limit(&body["access_token"])).await.0, 401);

        assert_eq!(server.token_calls().len(), 3);
        assert_eq!(server.api_calls().len(), 3);
        let statuses: Vec<u16> = server
            .token_calls()
            .iter()
            .map(|seen| seen.status)
            .collect();
        assert_eq!(statuses, [503, 200, 200]);
        assert!(server.has_read(&login.id));
    }

    #[tokio::test]
    async fn a_request_whose_response_is_delayed_is_recorded_at_once() {
        let (_dir, vendors) = mock_vendors().await;
        let server = &vendors.certn;
        server.delay_token_calls(Duration::from_hours(1));
        let client = client(&vendors.files, None);
        let asking = tokio::spawn(client.post(server.url() + "/token/").send());

        let listed = async {
            while server.token_calls().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), listed)
            .await
            .unwrap();
        assert_eq!(server.requests()[0].status, 0);
        asking.abort();
    }

    #[tokio::test]
    async fn a_dropped_stand_in_closes_its_connections() {
        let server = echo().await.unwrap();
        let mut tcp = TcpStream::connect(server.address()).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut response = [0; 512];
        assert!(tcp.read(&mut response).await.unwrap() > 0);

        drop(server);
        let end = tokio::time::timeout(Duration::from_secs(10), tcp.read(&mut response));
        assert!(matches!(end.await.unwrap(), Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn the_debug_text_of_a_request_holds_no_login() {
        let server = echo().await.unwrap();
        let request = "GET /?token=hunter2 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hunter2\r\n\
                       Connection: close\r\n\r\n";
        speak(&server, request).await;

        let seen = &server.requests()[0];
        assert!(!format!("{seen:?}").contains("hunter2"));
        assert_eq!(
            seen.login(),
            [("Authorization".to_owned(), "Bearer hunter2".to_owned())]
        );
    }
}
