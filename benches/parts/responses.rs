//! Work per response: the search for our own credential in its body, and its line in the access
//! log.

use std::hint::black_box;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign::logs::{AccessLog, Line};
use countersign::metrics::Metrics;
use countersign::request::redact::{Needles, Redactor};
use criterion::{Criterion, Throughput};
use flate2::Compression;
use flate2::read::GzEncoder;
use http::Method;
use http::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use zeroize::Zeroizing;

pub(crate) fn bench(criterion: &mut Criterion) {
    echoes(criterion);
    after_the_response(criterion);
}

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhY21lIn0.0123456789abcdef-_0123456789abcdef";

/// Size of the chunks that pingora reads.
const CHUNK: usize = 64 * 1024;

fn echoes(criterion: &mut Criterion) {
    let secret = Zeroizing::new(TOKEN.as_bytes().to_vec());
    let needles = Arc::new(Needles::new(&[secret]).expect("long enough"));
    let mut group = criterion.benchmark_group("echoes");
    group.bench_function("Needles::new", |bencher| {
        bencher.iter(|| Needles::new(black_box(&[Zeroizing::new(TOKEN.as_bytes().to_vec())])));
    });
    let echo = json(1024).replacen("Issued", TOKEN, 1);
    for (name, text, coding) in [
        ("JSON, 128 bytes", json(128), ""),
        ("JSON, 1 KiB", json(1024), ""),
        ("JSON, 1 KiB, with an echo", echo, ""),
        ("JSON, 1 MiB", json(1 << 20), ""),
        ("plain text, 1 KiB", prose(1024), ""),
        ("plain text, 1 MiB", prose(1 << 20), ""),
        ("PEM, 1 MiB", pem(1 << 20), ""),
        ("backslashes, 1 MiB", "\\".repeat(1 << 20), ""),
        ("JSON, 1 MiB, gzip", json(1 << 20), "gzip"),
        ("JSON, 1 MiB, br", json(1 << 20), "br"),
    ] {
        let mut fields = HeaderMap::new();
        if !coding.is_empty() {
            fields.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        let body = coded(coding, text.as_bytes());
        // Bytes after decompression.
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut redactor = Redactor::new(needles.clone(), &fields);
                let mut sent = 0;
                let mut from = 0;
                while from < body.len() {
                    let to = body.len().min(from + CHUNK);
                    let mut chunk = Some(body.slice(from..to));
                    redactor
                        .pass(&mut chunk, to == body.len())
                        .expect("no compressed body holds the credential");
                    sent += chunk.map_or(0, |chunk| chunk.len());
                    from = to;
                }
                assert_eq!(sent, body.len());
            });
        });
    }
}

fn coded(coding: &str, text: &[u8]) -> Bytes {
    let mut out = Vec::new();
    match coding {
        "gzip" => GzEncoder::new(text, Compression::default()).read_to_end(&mut out),
        "br" => brotli::CompressorReader::new(text, 4096, 5, 20).read_to_end(&mut out),
        _ => return Bytes::copy_from_slice(text),
    }
    .expect("memory has no errors");
    out.into()
}

fn json(size: usize) -> String {
    filled(size, |nth| {
        format!(
            "{{\"id\":{nth},\"commonName\":\"host-{nth}.example.com\",\"url\":\"https:\\/\\/example.com\\/{nth}\",\"status\":\"Issued\"}},"
        )
    })
}

fn prose(size: usize) -> String {
    filled(size, |nth| {
        format!(
            "The certificate numbered {nth} was issued to the host that asked for it, and has not been revoked. "
        )
    })
}

fn pem(size: usize) -> String {
    let mut seed = fastrand::Rng::with_seed(1);
    filled(size, |_| {
        let line: String = (0..64).map(|_| seed.alphanumeric()).collect();
        line + "\n"
    })
}

fn filled(size: usize, mut piece: impl FnMut(usize) -> String) -> String {
    let mut text = String::new();
    let mut nth = 0;
    while text.len() < size {
        text += &piece(nth);
        nth += 1;
    }
    text.truncate(size);
    text
}

fn after_the_response(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("after the response");
    group.bench_function("AccessLog::write", |bencher| {
        bencher.iter_custom(write_in_child);
    });
    let metrics = Metrics::new().vendor("acme");
    let caller = Arc::from("issuance");
    group.bench_function("VendorMetrics::finished", |bencher| {
        bencher.iter(|| {
            metrics.count_request(&caller, &Method::GET, 200, Duration::from_micros(1234));
        });
    });
}

/// Returns the time for this number of lines of the access log, in a child process, since they go
/// to stdout.
fn write_in_child(lines: u64) -> Duration {
    let program = std::env::current_exe().expect("the path of this program is known");
    let done = Command::new(program)
        .env(LINES, lines.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .expect("this program can be run again");
    let took = String::from_utf8_lossy(&done.stderr);
    Duration::from_nanos(took.trim().parse().expect("nanoseconds"))
}

/// Environment variable of the child process: the number of lines.
const LINES: &str = "COUNTERSIGN_BENCH_LINES";

/// If this is the child process, writes the lines, prints the time to stderr and returns `true`.
pub(crate) fn wrote_lines() -> bool {
    let Some(lines) = std::env::var(LINES)
        .ok()
        .and_then(|lines| lines.parse().ok())
    else {
        return false;
    };
    let line = Line {
        rule: Some("*"),
        request_id: "0af7651916cd43dd8448eb211c80319c",
        caller: Some("issuance"),
        vendor: Some("acme"),
        method: "GET",
        path: b"/acme/v1/certificates/4711",
        status: 200,
        reason: None,
        client: None,
        attempts: 1,
        generation: Some(1),
        duration: Duration::from_micros(1234),
        upstream: Some(Duration::from_micros(987)),
        reused: true,
        bytes_in: 0,
        bytes_out: 128,
        trace_id: None,
    };
    let log = AccessLog::to_stdout().expect("the thread starts");
    let started = Instant::now();
    for _ in 0..lines {
        log.write(black_box(&line));
    }
    let took = started.elapsed();
    log.flush();
    eprintln!("{}", took.as_nanos());
    true
}
