//! Queues for the two output streams of the process, each written by a thread of its own. No other
//! thread waits for a reader: if it is slow or has stopped, lines are dropped and counted.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use prometheus::{IntCounter, IntCounterVec, Opts};

/// Number of dropped lines of stdout and stderr, by `stream`. Global, as the streams are.
pub(crate) static LINES_DROPPED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let options = Opts::new(
        "countersign_log_lines_dropped_total",
        "Lines that were dropped because the stream was read too slowly or failed.",
    );
    let dropped = IntCounterVec::new(options, &["stream"]).expect("valid name");
    for stream in ["stderr", "stdout"] {
        dropped.with_label_values(&[stream]);
    }
    dropped
});

/// The settings of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamOptions {
    /// Name of the stream and label of its dropped lines.
    pub(super) name: &'static str,
    /// Limit of the queue in lines.
    pub(super) lines: usize,
    /// Limit of the queue in bytes, since a line may be as long as a request's target.
    pub(super) bytes: usize,
    /// Bytes written at once, unless one line is longer.
    pub(super) batch: usize,
    /// Log message when lines were dropped.
    pub(super) dropped: &'static str,
}

/// A bounded queue of lines in front of the thread that writes them.
#[derive(Clone, Debug)]
pub(super) struct LineQueue {
    queue: SyncSender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: StreamOptions,
    /// Buffers of written lines, for reuse.
    spare: ArrayQueue<Vec<u8>>,
    /// Bytes in the queue.
    queued_bytes: AtomicUsize,
    /// Dropped lines since the last report in the log.
    unreported: AtomicU64,
    /// Dropped lines since the start, of all queues with this name.
    dropped: IntCounter,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Limit of spare buffers: the number of lines that gather at 100,000 per second.
const SPARE_BUFFERS: usize = 1024;
/// Longer buffers are freed, bytes.
const LONGEST_KEPT_BUFFER: usize = 4096;
/// Time for which lines gather before they are written. While the writer sleeps, requests need not
/// wake it, which costs more than a line.
const GATHER_TIME: Duration = Duration::from_millis(10);
/// Minimum interval between reports of dropped lines.
const WARN_INTERVAL: Duration = Duration::from_secs(1);
/// Pause of the writer when a nonblocking stream is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

impl LineQueue {
    /// Starts the writer thread, which ends with the last clone of the queue.
    ///
    /// # Errors
    /// Fails if the system cannot create a thread.
    pub(super) fn start(
        options: StreamOptions,
        to: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, lines) = Self::new(options);
        let shared = queue.shared.clone();
        std::thread::Builder::new()
            .name(format!("{}-log", options.name))
            .spawn(move || write_lines(&lines, &shared, to))?;
        Ok(queue)
    }

    fn new(options: StreamOptions) -> (Self, Receiver<Message>) {
        let (queue, lines) = sync_channel(options.lines);
        let shared = Arc::new(Shared {
            options,
            spare: ArrayQueue::new(SPARE_BUFFERS),
            queued_bytes: AtomicUsize::new(0),
            unreported: AtomicU64::new(0),
            dropped: LINES_DROPPED.with_label_values(&[options.name]),
        });
        (Self { queue, shared }, lines)
    }

    /// Returns an empty buffer for the next line.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.shared.spare.pop().unwrap_or_default()
    }

    /// Queues one line, its line feed included. Never blocks.
    pub(super) fn write(&self, line: Vec<u8>) {
        let shared = &self.shared;
        let bytes = line.len();
        if shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed) < shared.options.bytes {
            match self.queue.try_send(Message::Line(line)) {
                Ok(()) => return,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
        shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        shared.drop_lines(1);
    }

    /// Waits until everything queued so far is written, for `at_most`. Blocks.
    pub(super) fn flush(&self, at_most: Duration) {
        let (done, wait) = sync_channel(1);
        let deadline = Instant::now() + at_most;
        let mut message = Message::Flush(done);
        // A full queue soon has room again if the stream is read at all.
        while let Err(TrySendError::Full(again)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = again;
            std::thread::sleep(GATHER_TIME);
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

impl Shared {
    fn drop_lines(&self, lines: u64) {
        self.unreported.fetch_add(lines, Ordering::Relaxed);
        self.dropped.inc_by(lines);
    }
}

fn write_lines(lines: &Receiver<Message>, shared: &Shared, to: impl Write) {
    let mut out = Batch {
        bytes: Vec::with_capacity(shared.options.batch),
        lines: 0,
        shared,
        to,
    };
    let mut said: Option<Instant> = None;
    loop {
        let first = match lines.recv_timeout(WARN_INTERVAL) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) if shared.unreported.load(Ordering::Relaxed) > 0 => None,
            // Without unreported lines, there is no need to wake up every second.
            Err(RecvTimeoutError::Timeout) => match lines.recv() {
                Ok(first) => Some(first),
                Err(_) => return,
            },
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if matches!(first, Some(Message::Line(_))) {
            std::thread::sleep(GATHER_TIME);
        }
        for message in first.into_iter().chain(lines.try_iter()) {
            match message {
                Message::Line(mut line) => {
                    shared.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
                    out.add(&line);
                    if line.capacity() <= LONGEST_KEPT_BUFFER {
                        line.clear();
                        // Fails when there are enough spare buffers.
                        let _ = shared.spare.push(line);
                    }
                }
                Message::Flush(done) => {
                    out.write();
                    let _ = done.try_send(());
                }
            }
        }
        out.write();
        if said.is_none_or(|said| said.elapsed() >= WARN_INTERVAL) {
            let lost = shared.unreported.swap(0, Ordering::Relaxed);
            if lost > 0 {
                said = Some(Instant::now());
                tracing::warn!(lost, "{}", shared.options.dropped);
            }
        }
    }
}

/// A batch of whole lines that are written at once.
struct Batch<'a, W> {
    bytes: Vec<u8>,
    lines: u64,
    shared: &'a Shared,
    to: W,
}

impl<W: Write> Batch<'_, W> {
    fn add(&mut self, line: &[u8]) {
        if self.bytes.len() + line.len() > self.shared.options.batch {
            self.write();
        }
        self.bytes.extend_from_slice(line);
        self.lines += 1;
    }

    /// Writes the batch. Lines that cannot be written (full disk, closed pipe) count as dropped.
    fn write(&mut self) {
        if self.lines > 0 && self.to.write_all(&self.bytes).is_err() {
            self.shared.drop_lines(self.lines);
        }
        self.bytes.clear();
        self.bytes.shrink_to(self.shared.options.batch);
        self.lines = 0;
    }
}

/// A stream without the buffer and lock of the standard library: a thread that waits for a reader
/// must not hold a lock that others need.
#[derive(Debug)]
pub(super) struct RawStream<T>(pub(super) T);

impl<T: AsFd> Write for RawStream<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes).map_err(io::Error::from) {
                // A process that shares the stream may have made it nonblocking.
                Err(full) if full.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL_PAUSE),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    const OPTIONS: StreamOptions = StreamOptions {
        name: "test",
        lines: 4,
        bytes: 100,
        batch: 16,
        dropped: "lines were dropped",
    };

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_beyond_either_bound_are_dropped_and_counted_and_the_rest_is_written_whole() {
        let (queue, lines) = LineQueue::new(OPTIONS);
        for _ in 0..6 {
            queue.write(b"123456\n".to_vec());
        }
        assert_eq!(queue.shared.unreported.load(Ordering::Relaxed), 2);
        let shared = queue.shared.clone();
        drop(queue);
        let written = Written::default();
        write_lines(&lines, &shared, written.clone());
        let batches = written.0.lock().unwrap().clone();
        assert_eq!(batches, vec![b"123456\n123456\n".to_vec(); 2]);
        assert_eq!(shared.queued_bytes.load(Ordering::Relaxed), 0);
        assert!(shared.spare.pop().unwrap().is_empty());

        let (queue, _lines) = LineQueue::new(OPTIONS);
        queue.write(vec![b'x'; 200]);
        queue.write(b"short\n".to_vec());
        assert_eq!(queue.shared.unreported.load(Ordering::Relaxed), 1);
    }

    /// Blocks until it is told to go on.
    struct Stuck(Arc<Mutex<()>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            drop(self.0.lock().unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flush_waits_for_its_lines_and_no_longer_than_it_may() {
        let (open, gate) = (Arc::new(Mutex::new(())), Arc::default());
        let queue = LineQueue::start(OPTIONS, Stuck(open)).unwrap();
        queue.write(b"one\n".to_vec());
        queue.flush(Duration::from_secs(30));
        assert_eq!(queue.shared.queued_bytes.load(Ordering::Relaxed), 0);

        let queue = LineQueue::start(OPTIONS, Stuck(Arc::clone(&gate))).unwrap();
        let held = gate.lock().unwrap();
        let (done, waiting) = channel();
        let flushing = queue.clone();
        std::thread::spawn(move || {
            for _ in 0..20 {
                flushing.write(b"two\n".to_vec());
            }
            flushing.flush(Duration::from_millis(50));
            let _ = done.send(());
        });
        waiting.recv_timeout(Duration::from_secs(30)).unwrap();
        drop(held);
    }
}
