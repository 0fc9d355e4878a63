//! A vendor that answers with the bytes of a script, and records what it reads.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::cases::{Act, Answer};
use super::wire::{self, Extent};

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its head, or as much of it as came.
    pub head: Vec<u8>,
    /// Its body without the chunks.
    pub body: Vec<u8>,
    /// Trailers, and extensions of chunks.
    pub extras: Vec<Vec<u8>>,
    /// How far the body came.
    pub extent: Extent,
    /// What came behind a 101.
    pub tunnel: Vec<u8>,
}

/// The vendor; gone when dropped.
pub struct Vendor {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    state: Mutex<State>,
    /// The number of the last case that is over.
    over: watch::Sender<u64>,
}

struct State {
    case: u64,
    script: Vec<Answer>,
    next: usize,
    seen: Vec<Seen>,
    /// Connections with a request that is not answered to its end.
    busy: usize,
    /// Connections of this case.
    open: usize,
    touched: Instant,
}

/// Longer than a proxy takes to close what has been closed.
const GOODBYE: Duration = Duration::from_millis(400);
/// More than a head that any proxy would forward.
const LONGEST_HEAD: usize = 512 * 1024;

impl Vendor {
    /// A vendor that listens.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            case: 0,
            script: Vec::new(),
            next: 0,
            seen: Vec::new(),
            busy: 0,
            open: 0,
            touched: Instant::now(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            over: watch::Sender::new(0),
        });
        let of_accepting = shared.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let case = of_accepting.opened();
                let over = of_accepting.over.subscribe();
                let shared = of_accepting.clone();
                tokio::spawn(async move {
                    let connection = Connection {
                        stream,
                        buffer: Vec::new(),
                        shared: shared.clone(),
                        over,
                        case,
                    };
                    connection.serve().await;
                    shared.within(case, |state| state.open -= 1);
                });
            }
        });
        Self {
            address,
            shared,
            accepting: accepting.abort_handle(),
        }
    }

    /// Begins a case.
    pub fn begin(&self, script: &[Answer]) {
        let mut state = self.shared.state.lock().unwrap();
        state.case += 1;
        state.script = script.to_vec();
        state.next = 0;
        state.seen.clear();
        (state.busy, state.open) = (0, 0);
        state.touched = Instant::now();
    }

    /// Since when nothing has come or gone, and whether a request is not answered to its end.
    pub fn activity(&self) -> (Instant, bool) {
        let state = self.shared.state.lock().unwrap();
        (state.touched, state.busy > 0)
    }

    /// Ends the case: closes all connections, so that none is left in a pool, and returns what was
    /// seen.
    pub async fn finish(&self) -> Vec<Seen> {
        let case = self.shared.state.lock().unwrap().case;
        self.shared.over.send_replace(case);
        let deadline = Instant::now() + GOODBYE + GOODBYE / 2;
        while Instant::now() < deadline && self.shared.state.lock().unwrap().open > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        std::mem::take(&mut self.shared.state.lock().unwrap().seen)
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn opened(&self) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.open += 1;
        state.touched = Instant::now();
        state.case
    }

    /// Changes the state, unless it is that of a later case by now.
    fn within<T>(&self, case: u64, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        let mut state = self.state.lock().unwrap();
        if state.case != case {
            return None;
        }
        state.touched = Instant::now();
        Some(change(&mut state))
    }
}

struct Connection {
    stream: TcpStream,
    /// What has been read and belongs to nothing yet.
    buffer: Vec<u8>,
    shared: Arc<Shared>,
    over: watch::Receiver<u64>,
    case: u64,
}

/// How the body of a request ends.
enum Left {
    Length(usize),
    Chunks,
}

impl Connection {
    async fn serve(mut self) {
        while let Some((index, mut left)) = self.head().await {
            let answer = self.shared.within(self.case, |state| {
                state.busy += 1;
                state.next += 1;
                state.script.get(state.next - 1).cloned()
            });
            let Some(answer) = answer else {
                return;
            };
            let acts = answer.unwrap_or_else(Answer::default).0;
            let goes_on = self.answer(index, &mut left, acts).await;
            self.shared.within(self.case, |state| state.busy -= 1);
            if !goes_on {
                return;
            }
        }
        let _ = self.stream.shutdown().await;
        let mut rest = [0; 4096];
        let draining =
            async { while self.stream.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
        let _ = timeout(GOODBYE, draining).await;
    }

    /// Answers one request. `false`: the connection is over.
    async fn answer(&mut self, index: usize, left: &mut Left, acts: Vec<Act>) -> bool {
        for act in acts {
            match act {
                Act::Send(bytes) => {
                    let sent = timeout(GOODBYE, self.stream.write_all(&bytes)).await;
                    self.touch();
                    if !matches!(sent, Ok(Ok(()))) {
                        return false;
                    }
                }
                Act::Pause(milliseconds) => {
                    sleep(Duration::from_millis(milliseconds)).await;
                    self.touch();
                }
                Act::Body => {
                    if !self.body(index, left).await {
                        return false;
                    }
                }
                Act::Close => {
                    let _ = self.stream.shutdown().await;
                    let reading =
                        async { while self.body(index, left).await && self.more().await {} };
                    let _ = timeout(GOODBYE, reading).await;
                    return false;
                }
                Act::Reset => {
                    let _ = self.stream.set_zero_linger();
                    return false;
                }
                Act::Tunnel => loop {
                    let bytes = std::mem::take(&mut self.buffer);
                    self.record(index, |seen| seen.tunnel.extend(bytes));
                    if !self.more().await {
                        return false;
                    }
                },
            }
        }
        self.body(index, left).await
    }

    fn touch(&self) {
        self.shared.within(self.case, |_| ());
    }

    fn record(&self, index: usize, change: impl FnOnce(&mut Seen)) {
        self.shared.within(self.case, |state| {
            // What comes after the case was finished has no place any more.
            if let Some(seen) = state.seen.get_mut(index) {
                change(seen);
            }
        });
    }

    /// Reads some more. `false`: there is no more, or the case is over.
    async fn more(&mut self) -> bool {
        let case = self.case;
        let read = tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.buffer) => read.is_ok_and(|read| read > 0),
            _ = self.over.wait_for(|over| *over >= case) => return false,
        };
        self.touch();
        read
    }

    /// Reads a head and records it. The record's index, and how the body ends.
    async fn head(&mut self) -> Option<(usize, Left)> {
        loop {
            if let Some((lines, length)) = wire::head(&self.buffer) {
                let head: Vec<u8> = self.buffer.drain(..length).collect();
                let fields = &lines[1..];
                let of = |name| fields.iter().find_map(|line| wire::value_of(line, name));
                let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse().ok();
                let left = if of("transfer-encoding").is_some() {
                    Left::Chunks
                } else {
                    Left::Length(of("content-length").and_then(number).unwrap_or(0))
                };
                let extent = match left {
                    Left::Length(0) => Extent::Whole,
                    Left::Length(_) | Left::Chunks => Extent::Cut,
                };
                return Some((self.begin(head, extent)?, left));
            }
            if self.buffer.len() > LONGEST_HEAD || !self.more().await {
                if !self.buffer.is_empty() {
                    let bytes = std::mem::take(&mut self.buffer);
                    self.begin(bytes, Extent::Garbled);
                }
                return None;
            }
        }
    }

    fn begin(&self, head: Vec<u8>, extent: Extent) -> Option<usize> {
        let seen = Seen {
            head,
            body: Vec::new(),
            extras: Vec::new(),
            extent,
            tunnel: Vec::new(),
        };
        self.shared.within(self.case, |state| {
            state.seen.push(seen);
            state.seen.len() - 1
        })
    }

    /// Reads and records the body to its end. `false`: it does not end.
    async fn body(&mut self, index: usize, left: &mut Left) -> bool {
        loop {
            match left {
                Left::Length(length) => {
                    let taken = self.buffer.len().min(*length);
                    let bytes: Vec<u8> = self.buffer.drain(..taken).collect();
                    *length -= taken;
                    let whole = *length == 0;
                    self.record(index, |seen| {
                        seen.body.extend(bytes);
                        if whole {
                            seen.extent = Extent::Whole;
                        }
                    });
                    if whole {
                        return true;
                    }
                }
                Left::Chunks => {
                    // All of it anew each time: bodies here are small.
                    let chunks = wire::chunks(&self.buffer);
                    let extent = chunks.extent;
                    self.record(index, |seen| {
                        seen.body = chunks.data;
                        seen.extras = chunks.extras;
                        seen.extent = extent;
                    });
                    match extent {
                        Extent::Whole => {
                            self.buffer.drain(..chunks.length);
                            *left = Left::Length(0);
                            return true;
                        }
                        Extent::Garbled => {
                            let rest = self.buffer.split_off(chunks.length);
                            self.record(index, |seen| seen.tunnel = rest);
                            return false;
                        }
                        Extent::Cut => {}
                    }
                }
            }
            if !self.more().await {
                return false;
            }
        }
    }
}
