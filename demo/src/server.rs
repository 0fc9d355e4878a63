//! A mock server on a free loopback port, which responds by a [`Handler`] and records every byte it
//! receives.
//!
//! The HTTP library reads and writes the messages, but loses the spelling of field names and the
//! order of fields with different names. A vendor sees both, so every [`RecordedRequest`] is parsed
//! from the recorded bytes.

use std::fmt;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::{Frame, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::certificates::{ClientCert, Tls};
use super::tokens::Tokens;

/// Field names that carry a login at one of the vendors, or at the proxy itself.
const LOGIN_FIELDS: [&str; 10] = [
    "authorization",
    "proxy-authorization",
    "login",
    "password",
    "customeruri",
    "x-api-key",
    "x-venafi-api-key",
    "x-countersign-key",
    "cookie",
    "cookie2",
];

/// Members of a token request's body that carry a login, and `client_id`.
const LOGIN_MEMBERS: [&str; 9] = [
    "client_id",
    "client_secret",
    "client_assertion",
    "username",
    "password",
    "jwt",
    "code",
    "refresh_token",
    "assertion",
];

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

/// One request as it was received.
#[derive(Clone)]
pub struct RecordedRequest {
    /// Number of its connection, counted from 0.
    pub connection: usize,
    /// The method.
    pub method: String,
    /// The request target, byte for byte.
    pub target: String,
    /// The header fields, in their order and spelling; values without surrounding blanks.
    pub fields: Vec<(String, String)>,
    /// The body, transfer coding removed.
    pub body: Vec<u8>,
    /// Every byte read since the previous request of the connection.
    pub raw: Vec<u8>,
    /// The client certificate of the connection.
    pub client_cert: Option<ClientCert>,
    /// `true` for a token request.
    pub token_call: bool,
    /// Status of the response; 0 until there is one.
    pub status: u16,
}

impl RecordedRequest {
    /// Parses the bytes of one request.
    ///
    /// `None` when `raw` does not start with a complete head: the library has read it together with
    /// the previous request (pipelining).
    fn parse(
        raw: Vec<u8>,
        body: &Bytes,
        connection: usize,
        client_cert: Option<ClientCert>,
    ) -> Option<Self> {
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]);
        let mut lines = head.split("\r\n");
        let mut start = lines.next()?.split(' ');
        let (method, target) = (start.next()?.to_owned(), start.next()?.to_owned());
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
            .collect();
        Some(Self {
            connection,
            method,
            target,
            fields,
            body: body.to_vec(),
            raw,
            client_cert,
            token_call: false,
            status: 0,
        })
    }

    /// Returns the target without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// Returns the query's value for `name`, decoded; `None` when it occurs twice.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        member(query.as_bytes(), name)
    }

    /// Returns the value of the only field named `name`, in any case; `None` when there is none or
    /// more than one, because a vendor that receives two logins accepts neither.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.only(|spelled| spelled.eq_ignore_ascii_case(name))
    }

    /// Returns the value of the only field named exactly `name`, case included.
    #[must_use]
    pub fn exact_field(&self, name: &str) -> Option<&str> {
        self.field(name)
            .and_then(|_| self.only(|spelled| spelled == name))
    }

    /// Returns the token of the only `Authorization: Bearer` (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.field("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    }

    /// Tells whether the body's media type is `media`, ignoring parameters.
    #[must_use]
    pub fn has_media_type(&self, media: &str) -> bool {
        self.field("content-type").is_some_and(|value| {
            let (value, _) = value.split_once(';').unwrap_or((value, ""));
            value.trim().eq_ignore_ascii_case(media)
        })
    }

    /// Returns a form body's value for `name`; `None` when it occurs twice (RFC 6749 §3.2).
    #[must_use]
    pub fn form(&self, name: &str) -> Option<String> {
        member(&self.body, name)
    }

    /// Returns the body as JSON; `Null` when it is not JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Returns every credential in the request: header fields as they were spelled, the client
    /// certificate's subject, and, in a token request, members of its body.
    #[must_use]
    pub fn login(&self) -> Vec<(String, String)> {
        let mut login: Vec<(String, String)> = self
            .fields
            .iter()
            .filter(|(name, _)| LOGIN_FIELDS.contains(&name.to_ascii_lowercase().as_str()))
            .cloned()
            .collect();
        if self.token_call {
            let json = self.json();
            for name in LOGIN_MEMBERS {
                let value = json[name]
                    .as_str()
                    .map(str::to_owned)
                    .or_else(|| self.form(name));
                login.extend(value.map(|value| (name.to_owned(), value)));
            }
        }
        if let Some(cert) = &self.client_cert {
            login.push(("certificate".to_owned(), cert.subject.clone()));
        }
        login
    }

    fn only(&self, wanted: impl Fn(&str) -> bool) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(name, _)| wanted(name));
        match (found.next(), found.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }
}

impl fmt::Debug for RecordedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RecordedRequest")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("fields", &names)
            .field("body", &self.body.len())
            .field("client_cert", &self.client_cert)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// The response of a mock server.
pub(crate) struct MockResponse {
    /// The status.
    pub(crate) status: u16,
    /// Reason phrase other than the status's own; some clients depend on it.
    pub(crate) reason: Option<String>,
    /// Header fields.
    pub(crate) fields: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// Number of bytes of the body after which the connection is closed, although `Content-Length`
    /// is larger.
    pub(crate) cut: Option<usize>,
    /// Delay before the response.
    pub(crate) wait: Duration,
}

impl MockResponse {
    /// Returns a response without a body.
    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            reason: None,
            fields: Vec::new(),
            body: Vec::new(),
            cut: None,
            wait: Duration::ZERO,
        }
    }

    /// Returns a JSON response.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            body: body.to_string().into_bytes(),
            ..Self::empty(status)
        }
        .with("Content-Type", "application/json")
    }

    /// Adds a header field.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the reason phrase.
    pub(crate) fn with_reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }

    /// Converts it for the HTTP library. A response that cannot be sent (a test asked for an
    /// invalid field name) becomes a 500 with the error as its body.
    fn into_response(self) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.fields {
            response = response.header(name, value);
        }
        if let Some(reason) = self
            .reason
            .and_then(|reason| ReasonPhrase::try_from(reason).ok())
        {
            response = response.extension(reason);
        }
        let body = match self.cut {
            Some(at) => {
                response = response.header("Content-Length", self.body.len());
                let mut body = Bytes::from(self.body);
                body.truncate(at);
                Body::new(Cut::Part(body))
            }
            None => Body::from(self.body),
        };
        response.body(body).unwrap_or_else(|cause| {
            let mut response = Response::new(Body::from(cause.to_string()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }
}

/// A body that is aborted after its first part.
enum Cut {
    Part(Bytes),
    /// The library flushes the part while it waits for more, but drops it on an error.
    Pause,
    End,
}

impl hyper::body::Body for Cut {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match mem::replace(&mut *self, Self::End) {
            Self::Part(part) => {
                *self = Self::Pause;
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            Self::Pause => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Self::End => Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into()))),
        }
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

/// The bytes that one connection has read.
#[derive(Default)]
struct Recording {
    bytes: Vec<u8>,
    /// Number of bytes that belong to requests already recorded.
    consumed: usize,
}

impl Recording {
    /// Returns the bytes of the next request.
    fn take_request(&mut self) -> Vec<u8> {
        let rest = self.bytes[self.consumed..].to_vec();
        self.consumed = self.bytes.len();
        rest
    }
}

/// A stream that records the bytes read from it.
struct Recorder<S> {
    stream: S,
    recording: Arc<Mutex<Recording>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorder<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = &buffer.filled()[before..];
        self.recording.lock().bytes.extend_from_slice(read);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorder<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Returns the value of `name` in form-encoded text if it occurs once.
fn member(form: &[u8], name: &str) -> Option<String> {
    let mut values = url::form_urlencoded::parse(form).filter(|(key, _)| key == name);
    match (values.next(), values.next()) {
        (Some((_, value)), None) => Some(value.into_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
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
