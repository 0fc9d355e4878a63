//! One case with one program, or with two.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::cases::{Case, Step, get, says};
use super::compare::{End, Raw, compare};
use super::program::{self, Program};
use super::vendor::Vendor;
use super::wire;
use crate::support::script::{Reply, Server};

/// Nothing more comes after this time without a byte, when every request has been answered.
const QUICK: Duration = Duration::from_millis(25);
/// And when not: longer than the timeouts of the configuration.
const SLOW: Duration = Duration::from_millis(450);
/// The longest wait for one thing.
const LONGEST: Duration = Duration::from_millis(900);
/// The time after which a case ends, come what may.
const WHOLE: Duration = Duration::from_secs(5);

/// Vendors whose credential is renewed after a 401, which happens once in ten seconds.
pub const RENEWED: usize = 8;

/// A program with a vendor of its own behind it.
pub struct Side {
    program: Program,
    vendor: Vendor,
    started: Instant,
    _dir: TempDir,
}

/// The two programs, the other one first.
pub struct Pair([Side; 2]);

/// The binary of the other program; `None`: this build.
pub type Other = Option<std::ffi::OsString>;

/// Issues a new token each time.
pub async fn token_server() -> Server {
    static ISSUED: AtomicUsize = AtomicUsize::new(0);
    Server::start(|_| async {
        let number = ISSUED.fetch_add(1, Ordering::Relaxed) % 1_000_000;
        Reply::json(format!(
            "{{\"access_token\":\"token-{number:06}\",\"token_type\":\"Bearer\",\"expires_in\":3600}}"
        ))
    })
    .await
}

fn configuration(vendor: SocketAddr, tokens: &str) -> String {
    let common = "    allow_plaintext: true\n    breaker: { failures: 0 }\n";
    let timeouts = "connect: 1s, first_byte: 250ms, idle: 250ms, token_wait: 500ms";
    let mut yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
threads: 2
access_log: false
drain: {{ delay: 0s }}
vendors:
  v:
    upstream: http://{vendor}
{common}    timeouts: {{ {timeouts} }}
    auth: {{ bearer: {{ token: {{ value: the-token-of-v }} }} }}
    refuse: [ \"/smuggled*\" ]
  w:
    upstream: http://{vendor}/base
{common}    timeouts: {{ {timeouts}, total: 600ms }}
    cookies: pass
    encoded_slash: pass
    redact_echo: false
    header_names: [ X_Account ]
    limits: {{ body: 4KiB }}
"
    );
    for number in 0..RENEWED {
        let _ = write!(
            yaml,
            "  t{number}:\n    upstream: http://{vendor}\n{common}    timeouts: {{ {timeouts} }}\n    auth: {{ client_credentials: {{ token_url: \"{tokens}\", client_id: c, client_secret: {{ value: s }} }} }}\n"
        );
    }
    yaml
}

impl Side {
    /// The program that `command` runs, and its vendor.
    pub async fn start(command: Command, tokens: String) -> Self {
        let vendor = Vendor::start().await;
        let dir = tempfile::tempdir().unwrap();
        let (path, yaml) = (
            dir.path().to_owned(),
            configuration(vendor.address, &tokens),
        );
        let starting = move || Program::start(command, &path, &yaml);
        let program = tokio::task::spawn_blocking(starting).await.unwrap();
        let side = Self {
            program,
            vendor,
            started: Instant::now(),
            _dir: dir,
        };
        // The first of a kind takes longer than others.
        let warm = Case::new(
            "warm",
            vec![says("GET\r\n\r\n"), Step::Reconnect, says(get("/v/x", ""))],
        );
        side.run(&warm).await;
        side
    }

    /// Runs one case.
    pub async fn run(&self, case: &Case) -> Raw {
        if case.renews {
            // Two token requests are a second apart.
            sleep(Duration::from_millis(1100).saturating_sub(self.started.elapsed())).await;
        }
        self.vendor.begin(&case.answers);
        let mut talks = Vec::new();
        let mut callers = Vec::new();
        let _ = timeout(WHOLE, self.steps(case, &mut talks, &mut callers)).await;
        let vendor = self.vendor.address.to_string();
        let mut addresses = vec![(vendor, "VENDOR"), (self.program.data.to_string(), "PROXY")];
        addresses.extend(callers.into_iter().map(|address| (address, "CALLER")));
        // The caller is gone; the proxy lets go of the vendor.
        let deadline = Instant::now() + LONGEST / 2;
        while Instant::now() < deadline {
            sleep(Duration::from_millis(2)).await;
            let (touched, busy) = self.vendor.activity();
            if !busy && touched.elapsed() > QUICK / 3 {
                break;
            }
        }
        let seen = self.vendor.finish().await;
        Raw {
            talks,
            seen,
            addresses,
        }
    }

    async fn steps(&self, case: &Case, talks: &mut Vec<(Vec<u8>, End)>, callers: &mut Vec<String>) {
        let mut caller = Caller::connect(self.program.data).await;
        callers.push(caller.address.clone());
        for step in &case.steps {
            match step {
                Step::Send(bytes) => caller.send(bytes).await,
                Step::Pause(milliseconds) => sleep(Duration::from_millis(*milliseconds)).await,
                Step::Await => caller.awaits().await,
                Step::HalfClose => {
                    let _ = caller.half.shutdown().await;
                }
                Step::Reconnect => {
                    self.settle(&caller).await;
                    talks.push(caller.end());
                    caller = Caller::connect(self.program.data).await;
                    callers.push(caller.address.clone());
                }
            }
        }
        self.settle(&caller).await;
        talks.push(caller.end());
    }

    /// Waits until nothing more comes.
    async fn settle(&self, caller: &Caller) {
        let (requests, only) = wire::requests(&caller.sent);
        let (mut known, mut answered) = (usize::MAX, false);
        loop {
            sleep(Duration::from_millis(3)).await;
            let (length, touched, end) = caller.received();
            if known != length {
                known = length;
                let got = caller.got.lock().unwrap().bytes.clone();
                answered = only && complete(&got, &requests).0 == requests.len();
            }
            let (vendor_touched, busy) = self.vendor.activity();
            let quiet = touched.max(vendor_touched).elapsed();
            let enough = if !busy && (answered || end.is_some()) {
                QUICK
            } else {
                SLOW
            };
            if quiet > enough {
                return;
            }
        }
    }
}

/// The final responses in `bytes` that came to their end, and all responses that did.
fn complete(bytes: &[u8], requests: &[wire::Request]) -> (usize, usize) {
    let (messages, _) = wire::responses(bytes, requests);
    let whole = |message: &&wire::Message| {
        message.extent == wire::Extent::Whole && message.framing != wire::Framing::Close
    };
    let finals = messages.iter().filter(|message| !message.is_interim());
    // Behind a 101 there may be more, but none of it is waited for.
    let switched = messages.iter().filter(|message| message.status() == 101);
    let all = messages.iter().filter(whole).count() + switched.count();
    (finals.filter(whole).count(), all)
}

struct Caller {
    half: OwnedWriteHalf,
    address: String,
    sent: Vec<u8>,
    /// Responses that were waited for.
    awaited: usize,
    got: Arc<Mutex<Got>>,
    reading: JoinHandle<()>,
}

struct Got {
    bytes: Vec<u8>,
    end: Option<End>,
    touched: Instant,
}

impl Caller {
    async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let _ = stream.set_nodelay(true);
        let address = stream.local_addr().unwrap().to_string();
        let (mut reader, half) = stream.into_split();
        let got = Arc::new(Mutex::new(Got {
            bytes: Vec::new(),
            end: None,
            touched: Instant::now(),
        }));
        let sink = got.clone();
        let reading = tokio::spawn(async move {
            let mut some = vec![0; 16 * 1024];
            loop {
                let read = reader.read(&mut some).await;
                let mut got = sink.lock().unwrap();
                got.touched = Instant::now();
                match read {
                    Ok(0) => got.end = Some(End::Closed),
                    Ok(read) => got.bytes.extend_from_slice(&some[..read]),
                    Err(_) => got.end = Some(End::Reset),
                }
                if got.end.is_some() {
                    return;
                }
            }
        });
        Self {
            half,
            address,
            sent: Vec::new(),
            awaited: 0,
            got,
            reading,
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.sent.extend_from_slice(bytes);
        // Whoever has been refused need not be heard out.
        let _ = timeout(LONGEST, self.half.write_all(bytes)).await;
        self.got.lock().unwrap().touched = Instant::now();
    }

    /// Waits for one more response.
    async fn awaits(&mut self) {
        self.awaited += 1;
        let (requests, _) = wire::requests(&self.sent);
        let deadline = Instant::now() + LONGEST;
        while Instant::now() < deadline && self.received().2.is_none() {
            let got = self.got.lock().unwrap().bytes.clone();
            if complete(&got, &requests).1 >= self.awaited {
                return;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    fn received(&self) -> (usize, Instant, Option<End>) {
        let got = self.got.lock().unwrap();
        (got.bytes.len(), got.touched, got.end)
    }

    /// Goes away. What came, and how it ended.
    fn end(self) -> (Vec<u8>, End) {
        self.reading.abort();
        let mut got = self.got.lock().unwrap();
        let bytes = std::mem::take(&mut got.bytes);
        (bytes, got.end.unwrap_or(End::Open))
    }
}

impl Pair {
    /// Starts both.
    pub async fn start(other: &Other, tokens: &str) -> Self {
        let command = other.as_deref().map_or_else(program::ours, program::other);
        let (other, ours) = tokio::join!(
            Side::start(command, tokens.to_owned()),
            Side::start(program::ours(), tokens.to_owned())
        );
        Self([other, ours])
    }

    /// Runs one case with both.
    pub async fn run(&self, case: &Case) -> (Raw, Raw) {
        let [other, ours] = &self.0;
        tokio::join!(other.run(case), ours.run(case))
    }

    /// The difference, and those that are permitted.
    pub async fn compare(&self, case: &Case) -> (Option<String>, Vec<&'static str>, [Raw; 2]) {
        let (other, ours) = self.run(case).await;
        let (difference, permitted) = compare(case, &other, &ours);
        (difference, permitted, [other, ours])
    }

    /// What both said last, when one of them has ended.
    pub fn ended(&mut self) -> Option<String> {
        let ended = self.0.iter_mut().any(|side| !side.program.runs());
        ended.then(|| {
            self.0
                .each_ref()
                .map(|side| side.program.said())
                .join("\n---\n")
        })
    }
}

/// A difference that was there each time.
pub struct Found {
    /// The case.
    pub case: Case,
    /// The difference in words.
    pub difference: String,
    /// What both did.
    pub raw: [Raw; 2],
}

/// Runs the case `times` more; `None` when any two runs of the two programs have the same outcome, which
/// makes a matter of time of the difference.
pub async fn again(pair: &Pair, found: Found, times: usize) -> Option<Found> {
    let [other, ours] = found.raw.clone();
    let (mut others, mut all_ours) = (vec![other], vec![ours]);
    let mut difference = found.difference;
    for _ in 0..times {
        let (other, ours) = pair.run(&found.case).await;
        others.push(other);
        all_ours.push(ours);
        for other in &others {
            for ours in &all_ours {
                difference = compare(&found.case, other, ours).0?;
            }
        }
    }
    let raw = [others.pop()?, all_ours.pop()?];
    Some(Found {
        difference,
        raw,
        ..found
    })
}
