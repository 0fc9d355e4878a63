//! Requests at moments fixed beforehand, however slow the answers are: what callers wait who do not
//! know of each other. A latency runs from the moment at which its request was due, so waiting for a
//! free connection counts.
//!
//! ```text
//! open_loop ADDRESS RATE WARM-SECONDS SECONDS CONNECTIONS KEY PATH...
//! ```
//!
//! HTTP/1.1, GET, the paths in turn. Arrivals are random (exponential gaps) and the same in every
//! run. The result is one line of JSON, times in microseconds: of the requests due after the warm-up,
//! `p50`, `p90`, `p99`, `p999` and `max`; how many `answers` (status 200) and `errors` there were;
//! and `late_p99`, how late we ourselves sent when a connection was free: no latency means anything
//! below that.

use std::collections::VecDeque;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// What is still without an answer so long after the last request was due never had one.
const PATIENCE: Duration = Duration::from_secs(10);

struct Due {
    number: usize,
    at: Instant,
}

struct Shared {
    address: String,
    requests: Vec<Vec<u8>>,
    due: Mutex<UnboundedReceiver<Due>>,
    measured_from: Instant,
}

#[derive(Default)]
struct Seen {
    latencies: Vec<u128>,
    lateness: Vec<u128>,
    errors: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, rate, warm, seconds, connections, key, paths @ ..] = arguments.as_slice() else {
        eprintln!("usage: open_loop ADDRESS RATE WARM-SECONDS SECONDS CONNECTIONS KEY PATH...");
        std::process::exit(2);
    };
    let rate: f64 = rate.parse().expect("RATE is a number");
    let warm: f64 = warm.parse().expect("WARM-SECONDS is a number");
    let seconds: f64 = seconds.parse().expect("SECONDS is a number");
    let connections: usize = connections.parse().expect("CONNECTIONS is a number");
    let requests = paths
        .iter()
        .map(|path| {
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nX-Countersign-Key: {key}\r\n\r\n")
                .into_bytes()
        })
        .collect();

    let (sender, due) = unbounded_channel();
    let begin = Instant::now() + Duration::from_millis(100);
    let measured_from = begin + Duration::from_secs_f64(warm);
    let end = measured_from + Duration::from_secs_f64(seconds);
    let pacer = std::thread::spawn(move || pace(&sender, rate, begin, end));
    let shared = Rc::new(Shared {
        address: address.clone(),
        requests,
        due: Mutex::new(due),
        measured_from,
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let local = LocalSet::new();
    let mut seen = local.block_on(&runtime, async {
        let tasks: VecDeque<_> = (0..connections)
            .map(|_| tokio::task::spawn_local(connection(Rc::clone(&shared), end + PATIENCE)))
            .collect();
        let mut all = Seen::default();
        for task in tasks {
            let one = task.await.expect("a connection's task ends by itself");
            all.latencies.extend(one.latencies);
            all.lateness.extend(one.lateness);
            all.errors += one.errors;
        }
        all
    });
    pacer.join().expect("the pacer ends by itself");
    seen.latencies.sort_unstable();
    seen.lateness.sort_unstable();
    let line = serde_json::json!({
        "answers": seen.latencies.len(),
        "errors": seen.errors,
        "p50": percentile(&seen.latencies, 500),
        "p90": percentile(&seen.latencies, 900),
        "p99": percentile(&seen.latencies, 990),
        "p999": percentile(&seen.latencies, 999),
        "max": percentile(&seen.latencies, 1000),
        "late_p99": percentile(&seen.lateness, 990),
    });
    writeln!(std::io::stdout(), "{line}").expect("somebody reads the result");
}

/// Says when each request is due, at that moment. A thread of its own: the runtime's timers are good
/// to a millisecond, the kernel's to less than a tenth.
fn pace(sender: &UnboundedSender<Due>, rate: f64, begin: Instant, end: Instant) {
    let mut random = fastrand::Rng::with_seed(20_240_229);
    let mut at = begin;
    for number in 0.. {
        at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
        if at >= end {
            return;
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if sender.send(Due { number, at }).is_err() {
            return;
        }
    }
}

/// Takes whatever is due next, as long as there is something, and waits for its answer.
async fn connection(shared: Rc<Shared>, last: Instant) -> Seen {
    let mut seen = Seen::default();
    let mut stream = None;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        // Waiting for our turn may have taken longer than the request was due.
        let free_since = Instant::now();
        let Some(due) = shared.due.lock().await.recv().await else {
            return seen;
        };
        let lateness = due.at.max(free_since).elapsed().as_micros();
        let request = &shared.requests[due.number % shared.requests.len()];
        let left = last.saturating_duration_since(Instant::now());
        let exchange = exchange(&mut stream, &shared.address, request, &mut buffer);
        let answered = matches!(timeout(left, exchange).await, Ok(Ok(200)));
        if !answered {
            stream = None;
        }
        if due.at < shared.measured_from {
            continue;
        }
        if answered {
            seen.latencies.push(due.at.elapsed().as_micros());
            seen.lateness.push(lateness);
        } else {
            seen.errors += 1;
        }
    }
}

/// One request and its whole answer; the answer's status.
async fn exchange(
    stream: &mut Option<TcpStream>,
    address: &str,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> std::io::Result<u16> {
    if stream.is_none() {
        let fresh = TcpStream::connect(address).await?;
        fresh.set_nodelay(true)?;
        *stream = Some(fresh);
    }
    let stream = stream.as_mut().expect("connected just now");
    stream.write_all(request).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((status, length)) = head(buffer)?
            && buffer.len() >= length
        {
            return Ok(status);
        }
    }
}

/// Status and whole length of the answer that begins here, once its head is complete.
fn head(read: &[u8]) -> std::io::Result<Option<(u16, usize)>> {
    let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let unreadable = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let text = std::str::from_utf8(&read[..end]).map_err(|_| unreadable())?;
    let status = text.get(9..12).and_then(|digits| digits.parse().ok());
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let (Some(status), Some(length)) = (status, length) else {
        return Err(unreadable());
    };
    Ok(Some((status, end + 4 + length)))
}

/// Of ascending numbers, the one below which so many thousandths are.
fn percentile(ascending: &[u128], thousandths: usize) -> Option<u128> {
    let index = ascending.len() * thousandths / 1000;
    ascending
        .get(index.min(ascending.len().checked_sub(1)?))
        .copied()
}
