//! Bodies that dribble in both directions at once: the response begins before the upload has ended,
//! neither waits for the other, and both arrive whole or are seen to break off.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::origin::{Caller, Origin};
use crate::support::peers::Pki;
use crate::support::{PATIENCE, Proxy, eventually, status_of};

/// How many callers there are at once.
const CALLERS: u64 = 24;
/// How many requests each of them makes, one after the other.
const ROUNDS: u64 = 4;
/// How many callers share a connection over HTTP/2.
const SHARING: u64 = 4;
/// How many pieces a body has, apart from empty ones.
const PIECES: usize = 12;
/// How many of them come before the middle.
const MIDDLE: usize = PIECES / 2;

/// What responses are searched for on their way.
const TOKEN: &str = "Streams+of/tokens=0123456789";

#[tokio::test(flavor = "multi_thread")]
async fn bodies_dribble_both_ways_from_http_1_to_http_1() {
    let setup = Setup::start().await;
    setup.run(&[Version::One], Version::One, Kind::Whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_dribble_both_ways_from_http_1_to_http_2() {
    let setup = Setup::start().await;
    setup.run(&[Version::One], Version::Two, Kind::Whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_dribble_both_ways_from_http_2_to_http_1() {
    let setup = Setup::start().await;
    setup.run(&[Version::Two], Version::One, Kind::Whole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_dribble_both_ways_from_http_2_to_http_2() {
    let setup = Setup::start().await;
    setup.run(&[Version::Two], Version::Two, Kind::Whole).await;
}

/// Only HTTP/2 has empty pieces: an empty chunk of HTTP/1.1 ends the body.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_data_frame_is_not_the_end_of_a_body() {
    for (caller, vendor) in [
        (Version::One, Version::Two),
        (Version::Two, Version::One),
        (Version::Two, Version::Two),
    ] {
        // h2 accepts 100 of them from a connection in its whole life: here are 72 from the vendor.
        let setup = Setup::start().await;
        setup.run(&[caller], vendor, Kind::WithEmptyPieces).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_over_http_1_does_so_for_callers_of_both_versions() {
    let setup = Setup::start().await;
    let callers = [Version::One, Version::Two];
    setup.run(&callers, Version::One, Kind::BrokenOff).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_breaks_off_over_http_2_does_so_for_callers_of_both_versions() {
    let setup = Setup::start().await;
    let callers = [Version::One, Version::Two];
    setup.run(&callers, Version::Two, Kind::BrokenOff).await;
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    One,
    Two,
}

/// What is special about the bodies of an exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Nothing: both end as they should.
    Whole,
    /// The same, and whoever speaks HTTP/2 sends empty DATA frames in between.
    WithEmptyPieces,
    /// The vendor sends half of the response's pieces and no end.
    BrokenOff,
}

/// A part of a body, and how it is sent.
struct Piece {
    bytes: Bytes,
    pause: Duration,
    /// Where the pause falls over HTTP/1.1, modulo the length of what is sent.
    cut: usize,
    /// Whether the body ends with it.
    last: bool,
}

/// The pieces of a body, all of them from `seed`.
fn dribble(seed: u64, empty_ones: bool) -> Vec<Piece> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pieces = Vec::new();
    for nth in 0..PIECES {
        let most = [3, 1500, 70_000][rng.usize(..3)];
        let mut bytes = vec![0; rng.usize(1..=most)];
        rng.fill(&mut bytes);
        // What may be the start of a credential waits for what follows it: no piece ends like that.
        *bytes.last_mut().unwrap() |= 0x80;
        if empty_ones {
            let count = match nth {
                0 => 1,
                MIDDLE => 2,
                _ => 0,
            };
            pieces.extend(vec![Bytes::new(); count]);
        }
        pieces.push(Bytes::from(bytes));
    }
    // The end may come by itself.
    if rng.bool() {
        pieces.push(Bytes::new());
    }
    let count = pieces.len();
    let with_pauses = pieces.into_iter().enumerate().map(|(nth, bytes)| Piece {
        bytes,
        pause: Duration::from_millis(rng.u64(0..=20)),
        cut: rng.usize(..),
        last: nth + 1 == count,
    });
    with_pauses.collect()
}

fn joined(pieces: &[Piece]) -> Vec<u8> {
    let bytes = pieces.iter().map(|piece| &piece.bytes[..]);
    bytes.collect::<Vec<_>>().concat()
}

/// What has come of a body.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    /// How it ended: as it should, or why not.
    end: Option<Result<(), String>>,
}

impl Body {
    /// An error unless it is these bytes and ended as it should.
    fn is(&self, wanted: &[u8]) -> Result<(), String> {
        let same = self.bytes.iter().zip(wanted).take_while(|(a, b)| a == b);
        let same = same.count();
        if self.end == Some(Ok(())) && self.bytes == wanted {
            return Ok(());
        }
        Err(format!(
            "{} of {} bytes came, the first {same} are right; it ended with {:?}",
            self.bytes.len(),
            wanted.len(),
            self.end
        ))
    }
}

/// Waits until so many bytes have come, or no more will.
async fn came(body: &watch::Sender<Body>, bytes: usize) {
    let enough = |body: &Body| body.bytes.len() >= bytes || body.end.is_some();
    body.subscribe().wait_for(enough).await.unwrap();
}

/// One request with its response, as both sides know it.
struct Exchange {
    seed: u64,
    kind: Kind,
    upload: Vec<Piece>,
    download: Vec<Piece>,
    /// The upload, as it reaches the vendor.
    uploaded: watch::Sender<Body>,
    /// The response's body, as it reaches the caller.
    downloaded: watch::Sender<Body>,
}

impl Exchange {
    fn new(seed: u64, kind: Kind, caller: Version, vendor: Version) -> Self {
        let empty_ones = |sender| kind == Kind::WithEmptyPieces && sender == Version::Two;
        Self {
            seed,
            kind,
            upload: dribble(2 * seed, empty_ones(caller)),
            download: dribble(2 * seed + 1, empty_ones(vendor)),
            uploaded: watch::Sender::default(),
            downloaded: watch::Sender::default(),
        }
    }

    /// What the vendor sends before it breaks off.
    fn first_half(&self) -> &[Piece] {
        &self.download[..MIDDLE]
    }

    /// Whether the vendor breaks off only when the caller has all that was sent.
    fn breaks_off_late(&self) -> bool {
        self.seed % 4 < 2
    }

    /// An error unless the caller got a response that breaks off where it should.
    fn broken_off(&self) -> Result<(), String> {
        let (got, sent) = (self.downloaded.borrow(), joined(self.first_half()));
        let (came, ended) = (got.bytes.len(), &got.end);
        if !sent.starts_with(&got.bytes) {
            return Err(format!("{came} bytes are not the first that were sent"));
        }
        let least = if self.breaks_off_late() {
            sent.len()
        } else {
            self.download[0].bytes.len()
        };
        if came < least {
            return Err(format!("{came} of {least} bytes came: {ended:?}"));
        }
        match ended {
            Some(Err(_)) => Ok(()),
            Some(Ok(())) => Err(format!("it ended in good order after {came} bytes")),
            None => Err("it did not end".to_owned()),
        }
    }
}

/// One direction of a connection or stream, to send a body.
enum BodyWriter {
    One(OwnedWriteHalf),
    Two(SendStream<Bytes>),
}

impl BodyWriter {
    async fn send(&mut self, piece: &Piece) -> Result<(), String> {
        match self {
            Self::One(stream) => {
                let mut chunk = Vec::new();
                if !piece.bytes.is_empty() {
                    chunk.extend(format!("{:x}\r\n", piece.bytes.len()).into_bytes());
                    chunk.extend_from_slice(&piece.bytes);
                    chunk.extend(b"\r\n");
                }
                if piece.last {
                    chunk.extend(b"0\r\n\r\n");
                }
                // It may fall into the line of a size.
                let (before, behind) = chunk.split_at(piece.cut % chunk.len());
                stream.write_all(before).await.map_err(text)?;
                tokio::time::sleep(piece.pause).await;
                stream.write_all(behind).await.map_err(text)
            }
            Self::Two(stream) => {
                tokio::time::sleep(piece.pause).await;
                let mut rest = piece.bytes.clone();
                loop {
                    stream.reserve_capacity(rest.len());
                    if !rest.is_empty() && stream.capacity() == 0 {
                        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                        room.ok_or("the stream is closed")?.map_err(text)?;
                    }
                    let some = rest.split_to(rest.len().min(stream.capacity()));
                    let end = rest.is_empty();
                    stream.send_data(some, end && piece.last).map_err(text)?;
                    if end {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Breaks the body off, in one of the ways there are; over HTTP/1.1 once the connection is dropped.
    fn break_off(&mut self, seed: u64) {
        match self {
            Self::One(stream) => {
                // A reset, or else a FIN, unless something is left to be read.
                if seed.is_multiple_of(2) {
                    stream.as_ref().set_zero_linger().unwrap();
                }
            }
            Self::Two(stream) => {
                let reasons = [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR];
                stream.send_reset(reasons[usize::try_from(seed % 3).unwrap()]);
            }
        }
    }
}

/// One direction of a connection or stream, to read a body.
enum BodyReader {
    One {
        stream: BufReader<OwnedReadHalf>,
        /// How much of the chunk is still to come.
        left: usize,
    },
    Two(RecvStream),
}

impl BodyReader {
    /// The body behind a head of HTTP/1.1.
    fn chunks(stream: BufReader<OwnedReadHalf>) -> Self {
        Self::One { stream, left: 0 }
    }

    /// Reads to the end of the body or to where it breaks off.
    async fn read(&mut self, body: &watch::Sender<Body>) {
        let end = loop {
            match self.next().await {
                Ok(Some(some)) => body.send_modify(|body| body.bytes.extend_from_slice(&some)),
                Ok(None) => break Ok(()),
                Err(cause) => break Err(cause),
            }
        };
        body.send_modify(|body| body.end = Some(end));
    }

    /// More of the body; nothing at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let (stream, left) = match self {
            Self::Two(stream) => {
                let Some(some) = stream.data().await else {
                    return Ok(None);
                };
                let some = some.map_err(text)?;
                let _ = stream.flow_control().release_capacity(some.len());
                return Ok(Some(some));
            }
            Self::One { stream, left } => (stream, left),
        };
        if *left == 0 {
            let size = line(stream).await?;
            *left = usize::from_str_radix(&size, 16).map_err(|_| format!("size {size:?}"))?;
            if *left == 0 {
                while !line(stream).await?.is_empty() {}
                return Ok(None);
            }
        }
        let buffered = stream.fill_buf().await.map_err(text)?;
        if buffered.is_empty() {
            return Err("closed within a chunk".to_owned());
        }
        let some = Bytes::copy_from_slice(&buffered[..buffered.len().min(*left)]);
        stream.consume(some.len());
        *left -= some.len();
        if *left == 0 {
            let mut end = [0; 2];
            stream.read_exact(&mut end).await.map_err(text)?;
            if end != *b"\r\n" {
                return Err(format!("a chunk is followed by {end:?}"));
            }
        }
        Ok(Some(some))
    }
}

fn text(cause: impl std::fmt::Display) -> String {
    cause.to_string()
}

/// A line without its end.
async fn line(stream: &mut BufReader<OwnedReadHalf>) -> Result<String, String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.map_err(text)?;
    let line = line.strip_suffix(b"\r\n").ok_or("closed within a line")?;
    Ok(String::from_utf8_lossy(line).into_owned())
}

/// The lines of a head.
async fn head(stream: &mut BufReader<OwnedReadHalf>) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    loop {
        match line(stream).await? {
            end if end.is_empty() => return Ok(lines),
            line => lines.push(line),
        }
    }
}

fn split(stream: TcpStream) -> (OwnedWriteHalf, BufReader<OwnedReadHalf>) {
    stream.set_nodelay(true).unwrap();
    let (reading, writing) = stream.into_split();
    (writing, BufReader::new(reading))
}

/// The exchanges that vendors wait for, by their seeds.
type Awaited = Arc<Mutex<HashMap<u64, Arc<Exchange>>>>;

/// The exchange of this path. There is none the second time: nothing here may be sent twice.
fn take(awaited: &Awaited, path: &str) -> Option<Arc<Exchange>> {
    let seed = path.trim_start_matches('/').parse().ok()?;
    awaited.lock().unwrap().remove(&seed)
}

/// The vendor's part of an exchange behind the heads: sends the response's body and reads the upload.
async fn respond(exchange: &Exchange, writer: &mut BodyWriter, reader: &mut BodyReader) {
    let reading = reader.read(&exchange.uploaded);
    if exchange.kind != Kind::BrokenOff {
        let sending = async {
            let (last, others) = exchange.download.split_last().unwrap();
            for piece in others {
                writer.send(piece).await?;
            }
            // A proxy need not forward the rest of an upload whose response has ended.
            came(&exchange.uploaded, usize::MAX).await;
            writer.send(last).await
        };
        // The caller tells what has failed.
        let _ = tokio::join!(sending, reading);
        return;
    }
    let sending = async {
        let half = exchange.first_half();
        writer.send(&half[0]).await?;
        // There is to be a response that can break off.
        came(&exchange.downloaded, 1).await;
        for piece in &half[1..] {
            writer.send(piece).await?;
        }
        if exchange.breaks_off_late() {
            came(&exchange.downloaded, joined(half).len()).await;
        }
        writer.break_off(exchange.seed);
        Ok::<_, String>(())
    };
    // The connection or stream is dropped behind this, whatever has not been read.
    tokio::select! {
        _ = sending => {}
        () = async { reading.await; std::future::pending().await } => {}
    }
}

/// Responds to the requests of a connection over HTTP/1.1, until a response breaks off.
async fn serve(stream: TcpStream, awaited: Awaited) -> Result<(), String> {
    let (mut writing, mut reading) = split(stream);
    loop {
        let asked = head(&mut reading).await?;
        let path = asked[0].split(' ').nth(1).unwrap_or_default();
        let Some(exchange) = take(&awaited, path) else {
            return Err(format!("nobody waits for {asked:?}"));
        };
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        writing.write_all(head).await.map_err(text)?;
        let (mut writer, mut reader) = (BodyWriter::One(writing), BodyReader::chunks(reading));
        respond(&exchange, &mut writer, &mut reader).await;
        match (writer, reader, exchange.kind) {
            (
                BodyWriter::One(writer),
                BodyReader::One { stream, .. },
                Kind::Whole | Kind::WithEmptyPieces,
            ) => {
                (writing, reading) = (writer, stream);
            }
            _ => return Ok(()),
        }
    }
}

/// How a caller reaches the proxy.
enum Client {
    /// A connection for each request.
    One(SocketAddr),
    Two(SendRequest<Bytes>),
}

/// A response whose head has not come.
enum AwaitedResponse {
    One(BufReader<OwnedReadHalf>),
    Two(ResponseFuture),
}

impl AwaitedResponse {
    /// Its body.
    async fn begun(self) -> Result<BodyReader, String> {
        match self {
            Self::One(mut stream) => {
                let lines = head(&mut stream).await?;
                if status_of(&lines[0]) != 200 {
                    return Err(format!("{lines:?}"));
                }
                Ok(BodyReader::chunks(stream))
            }
            Self::Two(response) => {
                let response = response.await.map_err(text)?;
                if response.status() != 200 {
                    return Err(format!("{response:?}"));
                }
                Ok(BodyReader::Two(response.into_body()))
            }
        }
    }
}

impl Client {
    /// Sends the head of a request.
    async fn ask(&self, path: &str) -> Result<(BodyWriter, AwaitedResponse), String> {
        match self {
            Self::One(to) => {
                let (mut writing, reading) = split(TcpStream::connect(to).await.map_err(text)?);
                let head = format!(
                    "POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                );
                writing.write_all(head.as_bytes()).await.map_err(text)?;
                Ok((BodyWriter::One(writing), AwaitedResponse::One(reading)))
            }
            Self::Two(sender) => {
                let mut sender = sender.clone().ready().await.map_err(text)?;
                let request = Request::post(format!("http://localhost{path}"));
                let request = request.body(()).unwrap();
                let (response, stream) = sender.send_request(request, false).map_err(text)?;
                Ok((BodyWriter::Two(stream), AwaitedResponse::Two(response)))
            }
        }
    }

    /// The caller's part of an exchange; what was wrong with it is the error.
    async fn exchange(&self, path: &str, on: &Exchange) -> Result<(), String> {
        let (mut writer, response) = self.ask(path).await?;
        let sending = async {
            let (last, others) = on.upload.split_last().unwrap();
            for piece in others {
                writer.send(piece).await?;
            }
            // The response begins before the upload has ended, or neither goes on.
            came(&on.downloaded, 1).await;
            writer.send(last).await
        };
        let sending = async {
            tokio::select! {
                biased;
                sent = sending => sent,
                () = came(&on.downloaded, usize::MAX) => Err("not all was sent".to_owned()),
            }
        };
        let reading = async {
            match response.begun().await {
                Ok(mut reader) => reader.read(&on.downloaded).await,
                Err(cause) => on
                    .downloaded
                    .send_modify(|body| body.end = Some(Err(cause))),
            }
        };
        let (sent, ()) = tokio::join!(sending, reading);
        if on.kind == Kind::BrokenOff {
            return on.broken_off();
        }
        let downloaded = on.downloaded.borrow().is(&joined(&on.download));
        downloaded.map_err(|cause| format!("response: {cause}; upload: {sent:?}"))?;
        let uploaded = on.uploaded.borrow().is(&joined(&on.upload));
        uploaded.map_err(|cause| format!("upload: {cause}; {sent:?}"))?;
        sent
    }
}

/// The proxy between callers and a vendor of each version.
struct Setup {
    proxy: Proxy,
    awaited: Awaited,
    _over_h2: Origin,
    _over_h1: JoinSet<()>,
    _pki: Pki,
}

impl Setup {
    async fn start() -> Self {
        let pki = Pki::new();
        let awaited = Awaited::default();
        let known = awaited.clone();
        let over_h2 = Origin::start(&pki, move |mut exchange| {
            let found = take(&known, exchange.request.uri().path());
            async move {
                let Some(found) = found else {
                    return exchange.answer_with(500, &[], "nobody waits for it");
                };
                let mut writer = BodyWriter::Two(exchange.begin(200, &[]));
                let mut reader = BodyReader::Two(exchange.request.into_body());
                respond(&found, &mut writer, &mut reader).await;
            }
        })
        .await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = format!("http://{}", listener.local_addr().unwrap());
        let known = awaited.clone();
        let mut over_h1 = JoinSet::new();
        over_h1.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, known.clone()));
            }
        });

        let mut yaml = "listeners: [ { bind: 127.0.0.1:0, h2c: true } ]\nadmin: { bind: 127.0.0.1:0 }\ndrain: { delay: 0s }\nvendors:\n".to_owned();
        for (version, url) in [(Version::One, &plain), (Version::Two, &over_h2.url)] {
            let _ = write!(
                yaml,
                "  {version:?}:\n    prefix: /{version:?}\n    upstream: {url}\n    ca: ca.pem\n    allow_plaintext: true\n    auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}\n"
            );
        }
        let proxy = tokio::task::block_in_place(|| Proxy::start(pki.dir(), &yaml));
        Self {
            proxy,
            awaited,
            _over_h2: over_h2,
            _over_h1: over_h1,
            _pki: pki,
        }
    }

    /// Has all callers, of the versions in turn, make their requests to a vendor at once.
    async fn run(&self, versions: &[Version], vendor: Version, kind: Kind) {
        let mut shared = Vec::new();
        for _ in 0..CALLERS / SHARING {
            shared.push(Caller::connect(self.proxy.data).await);
        }
        let rounds = match kind {
            Kind::WithEmptyPieces => 1,
            Kind::Whole | Kind::BrokenOff => ROUNDS,
        };
        let mut running = JoinSet::new();
        for (nth, version) in (0..CALLERS).zip(versions.iter().copied().cycle()) {
            let of = usize::try_from(nth / SHARING).unwrap();
            let client = match version {
                Version::One => Client::One(self.proxy.data),
                Version::Two => Client::Two(shared[of].sender().clone()),
            };
            let awaited = self.awaited.clone();
            running.spawn(async move {
                let mut faults = Vec::new();
                for round in 0..rounds {
                    let seed = nth * ROUNDS + round;
                    let exchange = Arc::new(Exchange::new(seed, kind, version, vendor));
                    awaited.lock().unwrap().insert(seed, exchange.clone());
                    let path = format!("/{vendor:?}/{seed}");
                    let outcome = timeout(PATIENCE, client.exchange(&path, &exchange)).await;
                    let fault = outcome.unwrap_or_else(|_| Err("it does not end".to_owned()));
                    if let Err(fault) = fault {
                        let (up, down) = (exchange.uploaded.borrow(), exchange.downloaded.borrow());
                        faults.push(format!(
                            "{version:?} to {vendor:?}, seed {seed}: {fault} ({} bytes up, {} down)",
                            up.bytes.len(),
                            down.bytes.len()
                        ));
                        break;
                    }
                }
                faults
            });
        }
        let faults = running.join_all().await.concat();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert!(self.awaited.lock().unwrap().is_empty());
        eventually("over", || {
            let metrics = self.proxy.admin("/metrics").1;
            let series = format!("countersign_requests_in_flight{{vendor=\"{vendor:?}\"}} ");
            let left = metrics.lines().find_map(|line| line.strip_prefix(&*series));
            (left == Some("0")).then_some(())
        });
    }
}
