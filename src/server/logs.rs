//! What the process says: one JSON line per request on stdout, everything else on stderr.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr as InetAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use crossbeam_queue::ArrayQueue;
use pingora::protocols::l4::socket::SocketAddr;
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
        // It says ERROR of every caller that leaves within a head. What becomes of requests, we say.
        if event.target().starts_with("pingora_proxy") {
            return false;
        }
        *event.level() <= Level::INFO || !CAPPED.iter().any(|name| event.target().starts_with(name))
    })
    // Without it, every record of these libraries is made and carried here only to be dropped.
    .with_max_level_hint(LevelFilter::TRACE);
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
#[derive(Debug, Default)]
pub struct Line<'a> {
    /// The answer's `X-Request-Id`.
    pub request_id: &'a str,
    /// The proven caller.
    pub caller: Option<&'a str>,
    /// The vendor.
    pub vendor: Option<&'a str>,
    /// As sent; empty where a head was refused before it was a request.
    pub method: &'a str,
    /// As sent, without its query; empty like `method`.
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

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Hands request lines to a thread that writes them: a slow stdout never slows a request. When
/// the queue is full lines are dropped, and how many is said on stderr.
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: SyncSender<Message>,
    /// Lines that have been written, for their room.
    spent: Arc<ArrayQueue<Vec<u8>>>,
    dropped: Arc<AtomicU64>,
}

/// Lines; at 300 bytes each a few megabytes.
const QUEUE: usize = 8192;
/// As many lines as gather at 100,000 a second.
const SPENT: usize = 1024;
/// Room for most lines, bytes.
const LINE: usize = 512;
/// Longer lines give their room back to the system, bytes.
const LONG: usize = 4096;
/// How long lines gather before they are written. While the writer sleeps, a request has nobody to
/// wake, which costs more than its line.
const GATHER: Duration = Duration::from_millis(10);

impl AccessLog {
    /// Starts the writer. It ends with the last clone of the log.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn to_stdout() -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let log = Self {
            queue,
            spent: Arc::new(ArrayQueue::new(SPENT)),
            dropped: Arc::new(AtomicU64::new(0)),
        };
        let (spent, lost) = (log.spent.clone(), log.dropped.clone());
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&lines, &spent, &lost, std::io::stdout()))?;
        Ok(log)
    }

    /// Queues one line. Never blocks.
    pub fn write(&self, line: &Line<'_>) {
        let room = self.spent.pop();
        let text = json(line, SystemTime::now(), room.unwrap_or_default());
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

fn write_lines(
    lines: &Receiver<Message>,
    spent: &ArrayQueue<Vec<u8>>,
    dropped: &AtomicU64,
    to: impl Write,
) {
    let mut out = std::io::BufWriter::with_capacity(64 * 1024, to);
    while let Ok(first) = lines.recv() {
        if matches!(first, Message::Line(_)) {
            std::thread::sleep(GATHER);
        }
        // One system call for all that has gathered meanwhile.
        for message in std::iter::once(first).chain(lines.try_iter()) {
            match message {
                Message::Line(mut line) => {
                    let _ = out.write_all(&line);
                    if line.capacity() <= LONG {
                        line.clear();
                        // Enough of them are there already.
                        let _ = spent.push(line);
                    }
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

/// The line as JSON, written into `room`, which is empty. By hand, since every request pays for it,
/// and hardly any of its values needs escaping.
fn json(line: &Line<'_>, at: SystemTime, mut room: Vec<u8>) -> Vec<u8> {
    room.reserve(LINE);
    let mut object = Object(room);
    object.shown("ts", humantime::format_rfc3339_millis(at));
    object.text("request_id", Some(line.request_id));
    object.text("caller", line.caller);
    object.text("vendor", line.vendor);
    let path = String::from_utf8_lossy(line.path);
    object.text("method", given(line.method));
    object.text("path", given(&path));
    object.number("status", Some(line.status.into()));
    object.text("reason", line.reason);
    object.address("client", line.client.and_then(|address| address.as_inet()));
    object.number("attempts", Some(line.attempts.into()));
    object.number("generation", line.generation);
    object.milliseconds("duration_ms", Some(line.duration));
    object.milliseconds("upstream_ms", line.upstream);
    object.key("reused");
    object.raw(if line.reused { "true" } else { "false" });
    object.number("bytes_in", Some(line.bytes_in as u64));
    object.number("bytes_out", Some(line.bytes_out as u64));
    object.text("trace_id", line.trace_id);
    object.text("rule", line.rule);
    object.raw("}\n");
    object.0
}

fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A JSON object that is being written.
struct Object(Vec<u8>);

impl Object {
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn key(&mut self, name: &str) {
        self.raw(if self.0.is_empty() { "{\"" } else { ",\"" });
        self.raw(name);
        self.raw("\":");
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        self.key(name);
        let Some(value) = value else {
            self.raw("null");
            return;
        };
        // Without a way out of the loop it is done for many bytes at once.
        #[expect(clippy::needless_bitwise_bool, reason = "lazy ones are ways out")]
        let plain = value.bytes().fold(true, |plain, byte| {
            plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\')
        });
        if plain {
            self.raw("\"");
            self.raw(value);
            self.raw("\"");
        } else {
            // Writing a string to memory cannot fail.
            let _ = serde_json::to_writer(&mut self.0, value);
        }
    }

    /// What prints nothing that needs escaping.
    fn shown(&mut self, name: &str, value: impl Display) {
        self.key(name);
        // Writing to memory cannot fail.
        let _ = write!(self.0, "\"{value}\"");
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        self.key(name);
        match value {
            Some(value) => self.raw(itoa::Buffer::new().format(value)),
            None => self.raw("null"),
        }
    }

    fn address(&mut self, name: &str, value: Option<&InetAddr>) {
        match value {
            Some(InetAddr::V4(address)) => {
                self.key(name);
                let mut digits = itoa::Buffer::new();
                let mut before = "\"";
                for octet in address.ip().octets() {
                    self.raw(before);
                    self.raw(digits.format(octet));
                    before = ".";
                }
                self.raw(":");
                self.raw(digits.format(address.port()));
                self.raw("\"");
            }
            Some(address @ InetAddr::V6(_)) => self.shown(name, address),
            None => self.text(name, None),
        }
    }

    /// With microseconds as decimals.
    fn milliseconds(&mut self, name: &str, value: Option<Duration>) {
        let Some(value) = value else {
            self.number(name, None);
            return;
        };
        let microseconds = (value.as_nanos() + 500) / 1000;
        self.number(name, u64::try_from(microseconds / 1000).ok());
        // The thousand keeps the zeros in front.
        let mut digits = itoa::Buffer::new();
        self.raw(".");
        self.raw(&digits.format(1000 + microseconds % 1000)[1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_and_flush_waits_for_them() {
        let (queue, lines) = sync_channel(4);
        let log = AccessLog {
            queue,
            spent: Arc::new(ArrayQueue::new(2)),
            dropped: Arc::default(),
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
        assert_eq!(log.dropped.load(Ordering::Relaxed), 2);
        let (spent, dropped) = (log.spent.clone(), log.dropped.clone());
        drop(log);

        let mut out = Vec::new();
        write_lines(&lines, &spent, &dropped, &mut out);
        let first = out.split(|byte| *byte == b'\n').next().unwrap();
        let json: serde_json::Value = serde_json::from_slice(first).unwrap();
        assert_eq!(json["path"], "/a\"\u{fffd}");
        assert_eq!(json["duration_ms"], 1.5);
        assert_eq!(json["trace_id"], "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 4);
        let room = spent.pop().unwrap();
        assert!(room.is_empty() && room.capacity() >= LINE);
    }
}
