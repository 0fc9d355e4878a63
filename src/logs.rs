//! The output of the process: one JSON line per request on stdout, everything else on stderr.

mod queue;

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tracing::Level;
pub use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub(crate) use self::queue::LINES_DROPPED;
use self::queue::{LineQueue, RawStream, StreamOptions};

/// Libraries that would print whole heads, credentials included, below the level `info`.
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

/// The queue of the log, once [`init`] has been called.
static LOG: OnceLock<LineQueue> = OnceLock::new();

const STDERR: StreamOptions = StreamOptions {
    name: "stderr",
    lines: 4096,
    bytes: 1024 * 1024,
    // A pipe accepts this much whole or not at all (`PIPE_BUF`), so that lines of a successor that
    // shares the stream never end up inside ours.
    batch: 4096,
    dropped: "stderr is too slow: lines of the log were dropped",
};

/// Time limit for writing the last lines of the log. A stop must not hang on them.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends the log to stderr through a thread of its own: if stderr is not read, lines are dropped
/// and counted, and no other thread waits. Panics use the same queue. `RUST_LOG` sets levels, with
/// `default` for what it leaves open; libraries that handle heads stay at `info` in any case.
/// Calling it again changes nothing. Call [`flush`] at the end of the process.
pub fn init(default: LevelFilter) {
    let levels = EnvFilter::builder()
        .with_default_directive(default.into())
        .from_env_lossy();
    let capped = filter_fn(|event| {
        *event.level() <= Level::INFO || !CAPPED.iter().any(|name| event.target().starts_with(name))
    })
    // Without the hint, every record of these libraries is created only to be dropped here.
    .with_max_level_hint(LevelFilter::TRACE);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match LineQueue::start(STDERR, RawStream(std::io::stderr())) {
        Ok(queue) => {
            if LOG.set(queue).is_ok() {
                std::panic::set_hook(Box::new(log_panic));
            }
        }
        // Without the thread, each caller writes its own lines.
        Err(cause) => print_line(&format!("the log has no thread of its own: {cause}\n")),
    }
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(|| LogWriter)
        // It would print its errors on stderr itself.
        .log_internal_errors(false)
        .with_ansi(colour)
        .with_target(false)
        .with_filter(levels.and(capped));
    // Fails if another part of the same process (tests) has set a subscriber: that one stays.
    let _ = tracing_subscriber::registry().with(stderr).try_init();
}

/// Prints `text`, one or more whole lines, on stderr, through the queue of the log if there is one.
pub fn print_line(text: &str) {
    // There is no other place to report a failure.
    let _ = LogWriter.write_all(text.as_bytes());
}

/// Waits until the queued lines of the log are written, one second at most. Blocks.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(FLUSH_TIMEOUT);
    }
}

/// The writer of the log. Each call writes one or more whole lines.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        if let Some(log) = LOG.get() {
            let mut buffer = log.buffer();
            buffer.extend_from_slice(lines);
            log.write(buffer);
            Ok(lines.len())
        } else {
            std::io::stderr().write(lines)
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Logs a panic in the format of the standard library, without waiting for a reader of stderr. A
/// panic of the main thread also flushes the log.
fn log_panic(panic: &PanicHookInfo<'_>) {
    use std::backtrace::{Backtrace, BacktraceStatus};

    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let place = panic
        .location()
        .map_or_else(String::new, ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("a value that is not text");
    let mut text = format!("thread '{name}' panicked at {place}:\n{message}\n");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text += &backtrace.to_string();
        text.push('\n');
    }
    print_line(&text);
    if name == "main" {
        flush();
    }
}

/// The fields of a request's line in the access log.
#[derive(Debug, Default)]
pub struct Line<'a> {
    /// The response's `X-Request-Id`.
    pub request_id: &'a str,
    /// The authenticated caller.
    pub caller: Option<&'a str>,
    /// The vendor.
    pub vendor: Option<&'a str>,
    /// Method as sent; empty if the head was rejected before it was a request.
    pub method: &'a str,
    /// Path as sent, without its query; empty like `method`.
    pub path: &'a [u8],
    /// Status of the response; 499 if the caller disconnected before one.
    pub status: u16,
    /// The reason of a local reply.
    pub reason: Option<&'a str>,
    /// The caller's address.
    pub client: Option<&'a SocketAddr>,
    /// Number of upstream attempts.
    pub attempts: u32,
    /// Number of the vendor's credential that was used: 1, 2, 3 …
    pub generation: Option<u64>,
    /// Time from the head to the end of the response.
    pub duration: Duration,
    /// Time from the upstream connection to the headers of the response.
    pub upstream: Option<Duration>,
    /// `true` if the upstream connection came from the pool.
    pub reused: bool,
    /// Body bytes read from the caller.
    pub bytes_in: usize,
    /// Body bytes sent to the caller.
    pub bytes_out: usize,
    /// The rule that decided, see [`crate::request::decide::Decision::rule`].
    pub rule: Option<&'a str>,
    /// The W3C trace of the request, 32 hexadecimal digits.
    pub trace_id: Option<&'a str>,
}

/// The access log. A thread writes its lines, so that a slow stdout never slows a request. The
/// queue is bounded; further lines are dropped and counted, and the log reports their number.
#[derive(Clone, Debug)]
pub struct AccessLog(LineQueue);

const STDOUT: StreamOptions = StreamOptions {
    name: "stdout",
    lines: 8192,
    bytes: 8 * 1024 * 1024,
    batch: 64 * 1024,
    dropped: "stdout is too slow: lines of the access log were dropped",
};

/// Initial capacity of a line's buffer, bytes; enough for most.
const LINE: usize = 512;

impl AccessLog {
    /// Starts the writer thread, which ends with the last clone of the log.
    ///
    /// # Errors
    /// Fails if the system cannot create a thread.
    pub fn to_stdout() -> std::io::Result<Self> {
        LineQueue::start(STDOUT, RawStream(std::io::stdout())).map(Self)
    }

    /// Queues one line. Never blocks.
    pub fn write(&self, line: &Line<'_>) {
        let text = json(line, SystemTime::now(), self.0.buffer());
        self.0.write(text);
    }

    /// Waits until everything queued so far is written, two seconds at most. Blocks.
    pub fn flush(&self) {
        self.0.flush(Duration::from_secs(2));
    }
}

/// Writes the line as JSON into `buffer`, which is empty. By hand, because every request pays for
/// it and hardly any value needs escaping.
fn json(line: &Line<'_>, at: SystemTime, mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.reserve(LINE);
    let mut object = Object(buffer);
    object.display("ts", humantime::format_rfc3339_millis(at));
    object.text("request_id", Some(line.request_id));
    object.text("caller", line.caller);
    object.text("vendor", line.vendor);
    let path = String::from_utf8_lossy(line.path);
    object.text("method", non_empty(line.method));
    object.text("path", non_empty(&path));
    object.number("status", Some(line.status.into()));
    object.text("reason", line.reason);
    object.address("client", line.client);
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

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A JSON object under construction.
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
        // Without an early exit, the compiler vectorizes the loop.
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

    /// Adds a value whose text needs no escaping.
    fn display(&mut self, name: &str, value: impl Display) {
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

    fn address(&mut self, name: &str, value: Option<&SocketAddr>) {
        match value {
            Some(SocketAddr::V4(address)) => {
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
            Some(address @ SocketAddr::V6(_)) => self.display(name, address),
            None => self.text(name, None),
        }
    }

    /// Adds a time in milliseconds, with microseconds as decimals.
    fn milliseconds(&mut self, name: &str, value: Option<Duration>) {
        let Some(value) = value else {
            self.number(name, None);
            return;
        };
        let microseconds = (value.as_nanos() + 500) / 1000;
        self.number(name, u64::try_from(microseconds / 1000).ok());
        // Adding 1000 keeps leading zeros.
        let mut digits = itoa::Buffer::new();
        self.raw(".");
        self.raw(&digits.format(1000 + microseconds % 1000)[1..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json() {
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
        let text = json(&line, SystemTime::now(), Vec::new());
        assert_eq!(
            text.iter().position(|byte| *byte == b'\n'),
            Some(text.len() - 1)
        );
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["path"], "/a\"\u{fffd}");
        assert_eq!(json["duration_ms"], 1.5);
        assert_eq!(json["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    }
}
