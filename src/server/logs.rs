//! What the process says: one JSON line per request on stdout, everything else on stderr.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr as InetAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use pingora::protocols::l4::socket::SocketAddr;
use serde::Serialize;
use tracing::Level;
pub use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Libraries that would print whole heads, credentials included, below this level.
const CAPPED: [&str; 9] = [
    "pingora",
    "h2",
    "hyper",
    "reqwest",
    "rustls",
    "tower",
    "axum",
    "hickory",
    "opentelemetry",
];

/// Sends our log to stderr. `RUST_LOG` sets levels, `default` where it says nothing; the libraries
/// that handle heads stay at `info` whatever it says. Calling it again changes nothing.
pub fn init(default: LevelFilter) {
    let levels = EnvFilter::builder()
        .with_default_directive(default.into())
        .from_env_lossy();
    let capped = filter_fn(|event| {
        *event.level() <= Level::INFO || !CAPPED.iter().any(|name| event.target().starts_with(name))
    });
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .with_filter(levels.and(capped));
    // Already set by another part of the same process (tests): keep that.
    let _ = tracing_subscriber::registry().with(stderr).try_init();
}

/// One request, as its line says it.
#[derive(Debug)]
pub struct Line<'a> {
    /// The answer's `X-Request-Id`.
    pub request_id: &'a str,
    /// The proven caller.
    pub caller: Option<&'a str>,
    /// The vendor.
    pub vendor: Option<&'a str>,
    /// As sent.
    pub method: &'a str,
    /// As sent, without its query.
    pub path: &'a [u8],
    /// The answer's status; 499 when the caller left before one.
    pub status: u16,
    /// Why the proxy answered itself.
    pub reason: Option<&'a str>,
    /// The caller's address.
    pub client: Option<&'a SocketAddr>,
    /// Upstream attempts.
    pub attempts: u32,
    /// Which of the vendor's credentials was used: 1, 2, 3 …
    pub generation: Option<u64>,
    /// From the head to the end of the answer.
    pub duration: Duration,
    /// From the upstream connection to the answer's head.
    pub upstream: Option<Duration>,
    /// Whether the upstream connection came from the pool.
    pub reused: bool,
    /// Body bytes read from the caller.
    pub bytes_in: usize,
    /// Body bytes sent to the caller.
    pub bytes_out: usize,
    /// What decided, see [`crate::request::decide::Decision::rule`].
    pub rule: Option<&'a str>,
    /// The W3C trace that it is part of, 32 hexadecimal digits.
    pub trace_id: Option<&'a str>,
}

#[derive(Serialize)]
struct Json<'a> {
    ts: String,
    request_id: &'a str,
    caller: Option<&'a str>,
    vendor: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    status: u16,
    reason: Option<&'a str>,
    client: Option<InetAddr>,
    attempts: u32,
    generation: Option<u64>,
    duration_ms: f64,
    upstream_ms: Option<f64>,
    reused: bool,
    bytes_in: usize,
    bytes_out: usize,
    trace_id: Option<&'a str>,
    rule: Option<&'a str>,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Hands request lines to a thread that writes them: a slow stdout never slows a request. When
/// the queue is full lines are dropped, and how many is said on stderr.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// Lines; at 300 bytes each a few megabytes.
const QUEUE: usize = 8192;

impl AccessLog {
    /// Starts the writer. It ends with the last clone of the log.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn to_stdout() -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&lines, &lost, std::io::stdout()))?;
        Ok(Self { queue, dropped })
    }

    /// Queues one line. Never blocks.
    pub fn write(&self, line: &Line<'_>) {
        let json = Json {
            ts: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            request_id: line.request_id,
            caller: line.caller,
            vendor: line.vendor,
            method: line.method,
            path: &String::from_utf8_lossy(line.path),
            status: line.status,
            reason: line.reason,
            client: line.client.and_then(|address| address.as_inet().copied()),
            attempts: line.attempts,
            generation: line.generation,
            duration_ms: milliseconds(line.duration),
            upstream_ms: line.upstream.map(milliseconds),
            reused: line.reused,
            bytes_in: line.bytes_in,
            bytes_out: line.bytes_out,
            trace_id: line.trace_id,
            rule: line.rule,
        };
        let mut text = Vec::with_capacity(384);
        if serde_json::to_writer(&mut text, &json).is_err() {
            return;
        }
        text.push(b'\n');
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Line(text)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything queued so far is written, two seconds at most. Blocks.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(2));
        }
    }
}

fn write_lines(lines: &Receiver<Message>, dropped: &AtomicU64, to: impl Write) {
    let mut out = std::io::BufWriter::with_capacity(64 * 1024, to);
    while let Ok(first) = lines.recv() {
        // One system call for all that has gathered meanwhile.
        for message in std::iter::once(first).chain(lines.try_iter()) {
            match message {
                Message::Line(line) => {
                    let _ = out.write_all(&line);
                }
                Message::Flush(done) => {
                    let _ = out.flush();
                    let _ = done.try_send(());
                }
            }
        }
        let _ = out.flush();
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "stdout is too slow: request lines were dropped");
        }
    }
}

/// With microseconds as decimals.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_flush_waits_for_them() {
        let (queue, lines) = sync_channel(4);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = AccessLog {
            queue,
            dropped: dropped.clone(),
        };
        let line = Line {
            request_id: "id",
            caller: Some("ci"),
            vendor: None,
            method: "GET",
            path: b"/a\"\xff",
            status: 404,
            reason: Some("no_vendor"),
            client: None,
            attempts: 0,
            generation: None,
            duration: Duration::from_micros(1500),
            upstream: None,
            reused: false,
            bytes_in: 0,
            bytes_out: 10,
            rule: Some("*"),
            trace_id: Some("0af7651916cd43dd8448eb211c80319c"),
        };
        for _ in 0..6 {
            log.write(&line);
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        drop(log);

        let mut out = Vec::new();
        write_lines(&lines, &dropped, &mut out);
        let first = out.split(|byte| *byte == b'\n').next().unwrap();
        let json: serde_json::Value = serde_json::from_slice(first).unwrap();
        assert_eq!(json["path"], "/a\"\u{fffd}");
        assert_eq!(json["duration_ms"], 1.5);
        assert_eq!(json["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 4);
    }
}
