//! An open-loop load generator: sends requests on a fixed schedule, however slow the responses are,
//! as independent callers do. Latencies are measured from the time at which the request was due, so
//! they include waiting for a free connection.
//!
//! ```text
//! open_loop ADDRESS RATE WARM-SECONDS SECONDS CONNECTIONS KEY PATH...
//! ```
//!
//! HTTP/1.1, GET, the paths in turn. Arrivals are random (exponential gaps) and the same in every
//! run. The result is one line of JSON, times in microseconds, for the requests due after the
//! warm-up: `p50`, `p90`, `p99`, `p999` and `max`; the numbers of `responses` (status 200) and
//! `errors`; and `late_p99`, the generator's own delay when a connection was free, below which no
//! latency is meaningful.

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

/// Time after the last request was due after which missing responses count as errors.
const DEADLINE: Duration = Duration::from_secs(10);

/// A request that is due.
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
struct Measurements {
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
        .expect("the runtime starts");
    let local = LocalSet::new();
    let mut measured = local.block_on(&runtime, async {
        let tasks: VecDeque<_> = (0..connections)
            .map(|_| tokio::task::spawn_local(connection(Rc::clone(&shared), end + DEADLINE)))
            .collect();
        let mut all = Measurements::default();
        for task in tasks {
            let one = task.await.expect("the connection's task does not panic");
            all.latencies.extend(one.latencies);
            all.lateness.extend(one.lateness);
            all.errors += one.errors;
        }
        all
    });
    pacer.join().expect("the pacer does not panic");
    measured.latencies.sort_unstable();
    measured.lateness.sort_unstable();
    let line = serde_json::json!({
        "responses": measured.latencies.len(),
        "errors": measured.errors,
        "p50": percentile(&measured.latencies, 500),
        "p90": percentile(&measured.latencies, 900),
        "p99": percentile(&measured.latencies, 990),
        "p999": percentile(&measured.latencies, 999),
        "max": percentile(&measured.latencies, 1000),
        "late_p99": percentile(&measured.lateness, 990),
    });
    writeln!(std::io::stdout(), "{line}").expect("stdout is open");
}

/// Sends each request to `sender` when it is due. Runs in a thread of its own: the runtime's timers
/// have a resolution of a millisecond, the kernel's of less than a tenth of that.
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

/// Sends the request that is due next and waits for its response, until there are no more.
async fn connection(shared: Rc<Shared>, last: Instant) -> Measurements {
    let mut measured = Measurements::default();
    let mut stream = None;
    let mut buffer = Vec::with_capacity(64 * 1024);
    loop {
        // Waiting for the lock may take longer than until the request is due.
        let free_since = Instant::now();
        let Some(due) = shared.due.lock().await.recv().await else {
            return measured;
        };
        let lateness = due.at.max(free_since).elapsed().as_micros();
        let request = &shared.requests[due.number % shared.requests.len()];
        let left = last.saturating_duration_since(Instant::now());
        let exchange = exchange(&mut stream, &shared.address, request, &mut buffer);
        let succeeded = matches!(timeout(left, exchange).await, Ok(Ok(200)));
        if !succeeded {
            stream = None;
        }
        if due.at < shared.measured_from {
            continue;
        }
        if succeeded {
            measured.latencies.push(due.at.elapsed().as_micros());
            measured.lateness.push(lateness);
        } else {
            measured.errors += 1;
        }
    }
}

/// Sends one request, reads the whole response and returns its status.
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

/// Returns the status and the length of the response, head included; `None` while the head is
/// incomplete.
fn head(read: &[u8]) -> std::io::Result<Option<(u16, usize)>> {
    let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let text = std::str::from_utf8(&read[..end]).map_err(|_| invalid())?;
    let status = text.get(9..12).and_then(|digits| digits.parse().ok());
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    let (Some(status), Some(length)) = (status, length) else {
        return Err(invalid());
    };
    Ok(Some((status, end + 4 + length)))
}

/// Returns the percentile of ascending numbers, in thousandths.
fn percentile(ascending: &[u128], thousandths: usize) -> Option<u128> {
    let index = ascending.len() * thousandths / 1000;
    ascending
        .get(index.min(ascending.len().checked_sub(1)?))
        .copied()
}
