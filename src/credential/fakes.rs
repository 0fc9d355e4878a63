//! Fakes for the tests of the refresh path: a scripted token server and a vendor to match.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use prometheus::{Histogram, HistogramOpts, IntCounter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use url::Url;

use super::token_request::TokenResponse;
use super::{FetchError, Issued, Lifetime};
use crate::config::{self, Auth, Limits, Timeouts, TokenTimes, Upstream, Vendor};
use crate::metrics::FetchMetrics;
use crate::secret::{Secret, SecretRef};
use crate::store::{self, Grant, Lock, Store, StoreError};

/// Responds on loopback from a script, and records the requests.
pub(crate) struct TokenServer {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    _serving: JoinSet<()>,
}

pub(crate) enum Reply {
    /// Everything after the status line's `HTTP/1.1 `, written as it is.
    Raw(String),
    /// One byte every 100 ms.
    Drip(String),
    /// No response, ever.
    Silence,
    /// The connection is closed once the request was read.
    Close,
}

#[derive(Clone, Debug)]
pub(crate) struct ReceivedRequest {
    pub(crate) request_line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl ReceivedRequest {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the form's fields, sorted by name.
    pub(crate) fn form(&self) -> Vec<(String, String)> {
        let mut form: Vec<_> = url::form_urlencoded::parse(self.body.as_bytes())
            .into_owned()
            .collect();
        form.sort();
        form
    }
}

impl TokenServer {
    pub(crate) async fn start(script: impl IntoIterator<Item = Reply>) -> Self {
        Self::start_tls(script, None).await
    }

    pub(crate) async fn start_tls(
        script: impl IntoIterator<Item = Reply>,
        tls: Option<rustls::ServerConfig>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(script.into_iter().collect::<VecDeque<_>>()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let tls = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        let mut serving = JoinSet::new();
        let (replies, sink) = (script, requests.clone());
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (replies, sink, tls) = (replies.clone(), sink.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &replies, &sink).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &replies, &sink).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            requests,
            _serving: serving,
        }
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().clone()
    }
}

/// Returns a 200 with this JSON.
pub(crate) fn json(body: &str) -> Reply {
    response("200 OK", "", body)
}

pub(crate) fn response(status: &str, headers: &str, body: &str) -> Reply {
    Reply::Raw(format!(
        "{status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    ))
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    replies: &Mutex<VecDeque<Reply>>,
    requests: &Mutex<Vec<ReceivedRequest>>,
) {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, value)| value.parse().unwrap());
            if body.len() >= length {
                break (head.to_owned(), body.to_owned());
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let mut lines = head.lines().map(str::to_owned);
    requests.lock().push(ReceivedRequest {
        request_line: lines.next().unwrap(),
        headers: lines
            .filter_map(|line| {
                line.split_once(": ")
                    .map(|(n, v)| (n.to_owned(), v.to_owned()))
            })
            .collect(),
        body,
        at: Instant::now(),
    });
    let reply = replies.lock().pop_front();
    let sent = match reply {
        Some(Reply::Raw(text)) => {
            stream
                .write_all(format!("HTTP/1.1 {text}").as_bytes())
                .await
        }
        Some(Reply::Drip(text)) => {
            for byte in format!("HTTP/1.1 {text}").bytes() {
                sleep(Duration::from_millis(100)).await;
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
            Ok(())
        }
        Some(Reply::Silence) => std::future::pending().await,
        Some(Reply::Close) => Ok(()),
        None => stream.write_all(b"HTTP/1.1 500 Script Over\r\n\r\n").await,
    };
    // Some tests want a client that stops reading.
    let _ = sent;
    let _ = stream.shutdown().await;
}

pub(crate) fn value(text: &str) -> SecretRef {
    SecretRef::Value(Secret::new(text))
}

pub(crate) fn times() -> TokenTimes {
    TokenTimes {
        default_lifetime: Duration::from_mins(5),
        request_timeout: Duration::from_secs(2),
    }
}

/// Opens a store of files in `dir`, sealed with `key`.
pub(crate) fn file_store(dir: PathBuf, key: Option<&str>) -> Arc<dyn Store> {
    let encryption_key = key.map(value);
    store::open(&config::Store::File {
        dir,
        encryption_key,
    })
}

/// Returns a response with this access token, good for an hour.
pub(super) fn hour_of(access_token: String, refresh_token: Option<Secret>) -> TokenResponse {
    let total = Duration::from_hours(1);
    TokenResponse {
        access_token: Secret::new(access_token),
        lifetime: Lifetime {
            total,
            end: Instant::now() + total,
        },
        refresh_token,
        refresh_until: None,
    }
}

/// Returns the access token that was fetched.
pub(super) fn fetched_token(fetched: Result<Issued, FetchError>) -> String {
    let value = fetched.unwrap().values.remove(0);
    let value = value.to_str().unwrap();
    value.trim_start_matches("Bearer ").to_owned()
}

/// Returns a vendor called `acme` with this `auth`, plaintext allowed.
pub(crate) fn vendor(auth: Auth) -> Vendor {
    Vendor {
        name: "acme".into(),
        preset: None,
        prefix: "/acme".into(),
        hosts: Vec::new(),
        upstream: Upstream {
            tls: true,
            host: "acme.example".into(),
            port: 443,
            base: String::new(),
        },
        auth: Some(auth),
        client_cert: None,
        late_client_auth: false,
        ca: None,
        allow_plaintext: true,
        allow_link_local: false,
        proxy: None,
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            first_byte: Duration::ZERO,
            idle: Duration::ZERO,
            idle_stream: Duration::ZERO,
            total: Duration::ZERO,
            keepalive: Duration::ZERO,
            token_wait: Duration::from_secs(5),
        },
        breaker: crate::config::Breaker {
            failures: 0,
            open_for: Duration::from_secs(10),
        },
        limits: Limits {
            rate: None,
            honour_retry_after: false,
            in_flight: 0,
            body: 0,
        },
        cookies_pass: false,
        retry_on_401: true,
        redact_echo: true,
        logins: Vec::new(),
        refuse: Vec::new(),
        allow: Vec::new(),
        encoded_slash_pass: false,
        header_names: Vec::new(),
        trailing_dots_ignored: false,
    }
}

pub(crate) fn metrics() -> FetchMetrics {
    let counter = || IntCounter::new("fetches", "fetches").unwrap();
    FetchMetrics {
        ok: counter(),
        temporary: counter(),
        rejected: counter(),
        duration: Histogram::with_opts(HistogramOpts::new("seconds", "seconds")).unwrap(),
        traces: None,
    }
}

/// A store whose locks expire as soon as they are acquired.
pub(crate) struct ExpiredLocks(pub(crate) Arc<dyn Store>);

#[async_trait]
impl Store for ExpiredLocks {
    async fn lock(&self, _: &str, _: Duration, _: Duration) -> Result<Lock, StoreError> {
        Ok(Lock::new_expired())
    }

    async fn load(&self, vendor: &str) -> Result<Option<Grant>, StoreError> {
        self.0.load(vendor).await
    }

    async fn replace(&self, vendor: &str, over: u64, next: &Grant) -> Result<(), StoreError> {
        self.0.replace(vendor, over, next).await
    }
}
