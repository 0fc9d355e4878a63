//! One mock vendor: a server on a free loopback port that plays a [`Handler`] and keeps every byte it
//! was sent.
//!
//! The HTTP library reads and writes the messages, but it forgets how a field name was spelled
//! and in which order fields of different names came. Both are part of what a vendor sees, so
//! every [`RecordedRequest`] is parsed from the recorded bytes.

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

/// Members of a token request's body that carry a login, and the client they belong to.
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

/// What a mock vendor answers: the vendor's rules, without any networking.
pub(crate) trait Handler: Send + Sync + 'static {
    /// The vendor's answer to one request.
    fn respond(&self, request: &RecordedRequest) -> MockResponse;

    /// Whether the request asks for tokens; [`MockServer::delay_token_calls`] and [`MockServer::fail_next`] touch no
    /// other.
    fn is_token_call(&self, _request: &RecordedRequest) -> bool {
        false
    }

    /// Ends every grant, so that no refresh token works any more.
    fn revoke_grants(&self) {}
}

/// A running mock vendor. Dropping it closes the port and every connection.
pub struct MockServer {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<ServerState>,
    accepting: JoinHandle<()>,
}

impl MockServer {
    /// Starts on a free port of 127.0.0.1: over TLS, or in plaintext without `tls`.
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

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:PORT` (`http` for one without TLS).
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// `https://localhost:PORT`: the same by a name, so that SNI is sent.
    #[must_use]
    pub fn url_by_name(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.address.port())
    }

    /// Every request so far, in the order their heads and bodies were complete.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.state.requests.lock().clone()
    }

    /// The requests that asked for tokens.
    #[must_use]
    pub fn token_calls(&self) -> Vec<RecordedRequest> {
        self.filtered(true)
    }

    /// The requests that did not.
    #[must_use]
    pub fn api_calls(&self) -> Vec<RecordedRequest> {
        self.filtered(false)
    }

    /// What was read after TLS, one entry a connection, whether or not it made up requests.
    #[must_use]
    pub fn connections(&self) -> Vec<Vec<u8>> {
        let recordings = self.state.recordings.lock();
        recordings
            .iter()
            .map(|recording| recording.lock().bytes.clone())
            .collect()
    }

    /// Whether `needle` occurs anywhere in what was read.
    #[must_use]
    pub fn has_read(&self, needle: &str) -> bool {
        self.connections().iter().any(|bytes| {
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
    }

    /// How long access tokens issued from now on live; whole seconds.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.state.tokens.set_lifetime(lifetime);
    }

    /// How long grants (refresh tokens) made from now on live; whole seconds.
    pub fn set_grant_lifetime(&self, lifetime: Duration) {
        self.state.tokens.set_grant_lifetime(lifetime);
    }

    /// Leaves `expires_in` out of token answers, as old versions of some vendors do.
    pub fn omit_expires_in(&self) {
        self.state.tokens.omit_expires_in();
    }

    /// Takes this long over each token request from now on.
    pub fn delay_token_calls(&self, delay: Duration) {
        *self.state.delay.lock() = delay;
    }

    /// Answers the next `count` token requests with `status` and no token.
    pub fn fail_next(&self, count: usize, status: StatusCode) {
        *self.state.failures.lock() = (count, status);
    }

    /// Ends every access token, so that API calls are answered 401 until a new one is fetched.
    /// Refresh tokens live on.
    pub fn revoke_access_tokens(&self) {
        self.state.tokens.revoke_access_tokens();
    }

    /// Ends every grant: no refresh token works any more. Access tokens live on.
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
        // The connections' tasks are owned by the accepting one and end with it.
        self.accepting.abort();
    }
}

/// One request as it came over the wire.
#[derive(Clone)]
pub struct RecordedRequest {
    /// Which connection it came on, counted from 0.
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
    /// Whether it asked for tokens.
    pub token_call: bool,
    /// What was answered; 0 as long as nothing was.
    pub status: u16,
}

impl RecordedRequest {
    /// `None` when `raw` does not start with a whole head: the library had read it together with
    /// the request before it (pipelining).
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

    /// The target without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&self.target, |(path, _)| path)
    }

    /// The query's value for `name`, decoded; `None` when it occurs twice.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        member(query.as_bytes(), name)
    }

    /// The value of the only field called `name`, in any case; `None` when there is none or more
    /// than one, because a vendor that is shown two logins takes neither.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.only(|spelled| spelled.eq_ignore_ascii_case(name))
    }

    /// The value of the only field called exactly `name`, case included.
    #[must_use]
    pub fn exact_field(&self, name: &str) -> Option<&str> {
        self.field(name)
            .and_then(|_| self.only(|spelled| spelled == name))
    }

    /// The token of the only `Authorization: Bearer` (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.field("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    }

    /// Whether the body's media type is `media`, parameters aside.
    #[must_use]
    pub fn has_media_type(&self, media: &str) -> bool {
        self.field("content-type").is_some_and(|value| {
            let (value, _) = value.split_once(';').unwrap_or((value, ""));
            value.trim().eq_ignore_ascii_case(media)
        })
    }

    /// A form body's value for `name`; `None` when it occurs twice (RFC 6749 §3.2).
    #[must_use]
    pub fn form(&self, name: &str) -> Option<String> {
        member(&self.body, name)
    }

    /// The body as JSON; `Null` when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Everything in the request that proves who sent it: header fields as they were spelled, the
    /// client certificate's subject, and, in a token request, the members of its body.
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

/// What a mock vendor sends back.
pub(crate) struct MockResponse {
    /// The status.
    pub(crate) status: u16,
    /// Instead of the status' usual reason phrase; some clients decide by it.
    pub(crate) reason: Option<String>,
    /// Header fields.
    pub(crate) fields: Vec<(String, String)>,
    /// The body.
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body, although more was promised.
    pub(crate) cut: Option<usize>,
    /// Wait this long before answering.
    pub(crate) wait: Duration,
}

impl MockResponse {
    /// An answer without a body.
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

    /// A JSON answer.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            body: body.to_string().into_bytes(),
            ..Self::empty(status)
        }
        .with("Content-Type", "application/json")
    }

    /// With one more header field.
    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// With a reason phrase.
    pub(crate) fn with_reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }

    /// For the library. An answer that cannot be sent (a bad field name in an instruction of a
    /// test) becomes a 500 that says so.
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

/// A body that breaks off after its first part.
enum Cut {
    Part(Bytes),
    /// The library flushes the part while it waits for more, and drops it on an error.
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

/// What all connections of one mock vendor share.
struct ServerState {
    handler: Box<dyn Handler>,
    tokens: Arc<Tokens>,
    recordings: Mutex<Vec<Arc<Mutex<Recording>>>>,
    requests: Mutex<Vec<RecordedRequest>>,
    delay: Mutex<Duration>,
    /// How many token requests are still to fail, and with what.
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
        let raw = recording.lock().take();
        let Some(mut seen) = RecordedRequest::parse(raw, &body, connection, client_cert) else {
            return Ok(MockResponse::empty(400)
                .with_reason("Pipelined")
                .into_response());
        };
        seen.token_call = self.handler.is_token_call(&seen);
        let index = {
            // Listed before the answer is made, so that a test can wait for a request that is
            // being answered slowly.
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
    // Only slower without it.
    let _ = tcp.set_nodelay(true);
    match tls {
        Some(tls) => {
            // Whoever fails the handshake has been told so by an alert.
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
    // A peer that breaks off is no fault of the mock vendor's, and a body that is cut short is meant.
    let _ = http1::Builder::new()
        .title_case_headers(true)
        .serve_connection(TokioIo::new(recorder), service)
        .await;
}

/// What one connection has read.
#[derive(Default)]
struct Recording {
    bytes: Vec<u8>,
    /// How much of it belongs to requests already seen.
    taken: usize,
}

impl Recording {
    fn take(&mut self) -> Vec<u8> {
        let rest = self.bytes[self.taken..].to_vec();
        self.taken = self.bytes.len();
        rest
    }
}

/// A stream that notes what is read from it.
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

/// The value of `name` in form-encoded text, when it occurs once.
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

    /// Sends `bytes` in one piece and reads to the end.
    async fn speak(server: &MockServer, bytes: &str) -> String {
        let mut tcp = TcpStream::connect(server.address()).await.unwrap();
        tcp.write_all(bytes.as_bytes()).await.unwrap();
        let mut response = Vec::new();
        // A connection that is cut short may end in an error; what came before counts.
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
        assert_eq!(seen.field("x-b"), None, "two of a kind prove nothing");
    }

    #[tokio::test]
    async fn requests_of_one_connection_are_told_apart_and_pipelined_ones_refused() {
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
    async fn the_echo_answers_as_it_is_told() {
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
    async fn token_requests_fail_and_tokens_end_when_told_to() {
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
    async fn a_request_that_is_answered_slowly_is_listed_at_once() {
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
    async fn what_is_printed_of_a_request_holds_no_login() {
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
