//! A vendor that speaks HTTP/2 over TLS, whose every answer is the test's; and callers that do.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::PATIENCE;
use super::peers::Pki;

/// One request, and the way to answer it.
pub struct Exchange {
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// The request.
    pub request: Request<RecvStream>,
    /// Its answer.
    pub respond: SendResponse<Bytes>,
}

impl Exchange {
    /// Reads the request's body to its end.
    pub async fn body(&mut self) -> Vec<u8> {
        read(self.request.body_mut()).await
    }

    /// A field of the request; empty when there is none.
    pub fn field(&self, name: &str) -> &str {
        let value = self.request.headers().get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// Answers 200 with this body.
    pub fn answer(self, body: impl Into<Bytes>) {
        self.answer_with(200, &[], body);
    }

    /// Answers.
    pub fn answer_with(mut self, status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) {
        let body = body.into();
        let length = body.len().to_string();
        let mut fields = fields.to_vec();
        fields.push(("content-length", &length));
        let mut stream = self.begin(status, &fields);
        // Nobody may be there any more.
        let _ = stream.send_data(body, true);
    }

    /// Sends the answer's head.
    pub fn begin(&mut self, status: u16, fields: &[(&str, &str)]) -> SendStream<Bytes> {
        let mut head = Response::builder().status(status);
        for (name, value) in fields {
            head = head.header(*name, *value);
        }
        let head = head.body(()).unwrap();
        self.respond.send_response(head, false).unwrap()
    }
}

/// How the n-th connection is treated.
#[derive(Clone, Copy, Debug)]
pub enum Conduct {
    /// Every request is handed to the test.
    Serve,
    /// The first request meets a GOAWAY that excludes it, with this reason.
    GoAway(u32),
    /// The first request is answered with a frame that HTTP/2 forbids.
    Break,
    /// Bodies may be so large before some of them has been read.
    Window(u32),
    /// Nothing is read any more once the first request was answered; nothing is closed.
    VanishAfterOne,
    /// Over HTTP/1.1, the first request's head is read and nothing after it; nothing is closed.
    Deaf,
}

/// Names of ALPN, in the order of preference.
pub type Protocols = &'static [&'static [u8]];

/// HTTP/2 rather than HTTP/1.1.
pub const BOTH: Protocols = &[b"h2", b"http/1.1"];

type Answering = Pin<Box<dyn Future<Output = ()> + Send>>;
type Script = Arc<dyn Fn(Exchange) -> Answering + Send + Sync>;

/// The vendor; gone when dropped.
pub struct Origin {
    /// `https://localhost:PORT`.
    pub url: String,
    accepted: Arc<AtomicUsize>,
    excluded: Arc<Mutex<Vec<u8>>>,
    accepting: AbortHandle,
}

impl Origin {
    /// Answers each request as `script` says.
    pub async fn start<F, A>(pki: &Pki, script: F) -> Self
    where
        F: Fn(Exchange) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        Self::conducted(pki, |_| Conduct::Serve, script).await
    }

    /// The same, with connections treated differently.
    pub async fn conducted<F, A>(pki: &Pki, conduct: fn(usize) -> Conduct, script: F) -> Self
    where
        F: Fn(Exchange) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        Self::speaking(pki, |_| BOTH, conduct, script).await
    }

    /// The same, with the protocols it knows by ALPN told for the n-th attempt to connect.
    pub async fn speaking<F, A>(
        pki: &Pki,
        protocols: fn(usize) -> Protocols,
        conduct: fn(usize) -> Conduct,
        script: F,
    ) -> Self
    where
        F: Fn(Exchange) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let certified = certified(pki);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let script: Script = Arc::new(move |exchange| Box::pin(script(exchange)));
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let excluded = Arc::new(Mutex::new(Vec::new()));
        let sink = excluded.clone();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            let mut attempts = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let tls = acceptor(&certified, protocols(attempts));
                attempts += 1;
                let (script, counter) = (script.clone(), counter.clone());
                let sink = sink.clone();
                connections.spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let nth = counter.fetch_add(1, Ordering::SeqCst);
                    let conduct = conduct(nth);
                    match (stream.get_ref().1.alpn_protocol(), conduct) {
                        (Some(b"h2"), Conduct::GoAway(reason)) => {
                            go_away(stream, reason, &sink).await;
                        }
                        (Some(b"h2"), Conduct::Break) => break_off(stream).await,
                        (Some(b"h2"), _) => serve(stream, nth, conduct, script).await,
                        (_, Conduct::Deaf) => hear_a_head(stream).await,
                        (_, _) => serve_http1(stream).await,
                    }
                });
            }
        });
        Self {
            url: format!("https://localhost:{port}"),
            accepted,
            excluded,
            accepting: accepting.abort_handle(),
        }
    }

    /// How many connections have been made.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The bytes of the request head that met a GOAWAY last: HPACK, as it was sent.
    pub fn excluded(&self) -> Vec<u8> {
        self.excluded.lock().unwrap().clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn certified(pki: &Pki) -> Certified {
    countersign::tls::install_provider();
    let chain = CertificateDer::pem_file_iter(pki.file("server.pem"))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_file(pki.file("server.key")).unwrap();
    (chain, key)
}

fn acceptor((chain, key): &Certified, protocols: Protocols) -> TlsAcceptor {
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key.clone_key())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(stream: TlsStream<TcpStream>, nth: usize, conduct: Conduct, script: Script) {
    let mut builder = h2::server::Builder::new();
    if let Conduct::Window(bytes) = conduct {
        builder.initial_window_size(bytes);
    }
    let Ok(mut connection) = builder.handshake(stream).await else {
        return;
    };
    let mut answering = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        answering.spawn(script(Exchange {
            connection: nth,
            request,
            respond,
        }));
        if let Conduct::VanishAfterOne = conduct {
            // The response is sent by the task that drives the connection, for as long as that
            // takes.
            tokio::select! {
                _ = connection.accept() => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            }
            std::future::pending::<()>().await;
        }
    }
}

/// h2's own server cannot exclude a request it has read, hence by hand (RFC 9113 §6.8).
async fn go_away(mut stream: TlsStream<TcpStream>, reason: u32, excluded: &Mutex<Vec<u8>>) {
    let head = first_head(&mut stream).await;
    *excluded.lock().unwrap() = head;
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    frame.extend(reason.to_be_bytes());
    stream.write_all(&frame).await.unwrap();
    // Until the other side has had enough.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// A DATA frame on stream 0 is an error of the whole connection (RFC 9113 §6.1).
async fn break_off(mut stream: TlsStream<TcpStream>) {
    first_head(&mut stream).await;
    let frame = [0, 0, 1, 0, 0, 0, 0, 0, 0, b'x'];
    stream.write_all(&frame).await.unwrap();
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

/// Opens a connection and reads as far as the first request's head: HPACK (RFC 9113 §4.1).
async fn first_head(stream: &mut TlsStream<TcpStream>) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    stream.write_all(&SETTINGS).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            return payload;
        }
    }
}

/// Reads a head over HTTP/1.1 and then nothing more, for as long as anybody cares.
pub async fn hear_a_head(mut stream: impl AsyncRead + Unpin) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        head.push(byte[0]);
    }
    std::future::pending::<()>().await;
}

/// Says over HTTP/1.1 that it is HTTP/1.1, and how the request looked.
async fn serve_http1(mut stream: TlsStream<TcpStream>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_err() {
            return;
        }
        head.push(byte[0]);
    }
    let body = format!("over HTTP/1.1: {}", String::from_utf8_lossy(&head));
    let answer = format!(
        "HTTP/1.1 200 Quite Fine\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Reads a body to its end, or to where it breaks off.
pub async fn read(body: &mut RecvStream) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(Ok(some)) = body.data().await {
        let _ = body.flow_control().release_capacity(some.len());
        whole.extend_from_slice(&some);
    }
    whole
}

/// A connection to the proxy over HTTP/2 with prior knowledge.
pub struct Caller {
    sender: SendRequest<Bytes>,
    driving: AbortHandle,
}

/// What it got.
#[derive(Debug)]
pub struct Got {
    /// The status.
    pub status: u16,
    /// The fields.
    pub fields: HeaderMap,
    /// The body.
    pub body: String,
    /// What came behind it.
    pub trailers: Option<HeaderMap>,
}

impl Caller {
    /// Connects to a listener with `h2c: true`.
    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        // Else each window of 64 KiB waits 40 ms for its update.
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let driving = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self {
            sender,
            driving: driving.abort_handle(),
        }
    }

    /// To send requests piece by piece.
    pub fn sender(&mut self) -> &mut SendRequest<Bytes> {
        &mut self.sender
    }

    /// Sends a request without a body and reads its answer, whose body may be anything.
    pub async fn ask_bytes(
        &mut self,
        request: http::request::Builder,
    ) -> (http::StatusCode, HeaderMap, Vec<u8>) {
        let request = request.body(()).unwrap();
        let (response, _) = self.sender.send_request(request, true).unwrap();
        let answer = async {
            let (head, mut body) = response.await.unwrap().into_parts();
            (head.status, head.headers, read(&mut body).await)
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }

    /// Sends a request, its body in one piece, and reads its answer.
    pub async fn ask(&mut self, request: http::request::Builder, body: &[u8]) -> Got {
        let request = request.body(()).unwrap();
        let end = body.is_empty();
        let (response, mut stream) = self.sender.send_request(request, end).unwrap();
        if !end {
            stream
                .send_data(Bytes::copy_from_slice(body), true)
                .unwrap();
        }
        let answer = async {
            let (head, mut body) = response.await.unwrap().into_parts();
            let whole = read(&mut body).await;
            Got {
                status: head.status.as_u16(),
                fields: head.headers,
                body: String::from_utf8(whole).unwrap(),
                trailers: body.trailers().await.unwrap_or_default(),
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.driving.abort();
    }
}
