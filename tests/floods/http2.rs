//! Frames as no library sends them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{PATIENCE, eventually, serves, world};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// RFC 9113 §7.
const REFUSED_STREAM: u32 = 7;

/// One side of a connection; RFC 9113 §4.1 and HPACK's literals (RFC 7541 §6.2.2).
pub struct Frames(pub TcpStream);

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frames {
    /// The preface has been said; `settings` are pairs of identifier and value.
    pub fn new(to: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut frames = Self(TcpStream::connect(to).unwrap());
        frames.0.set_read_timeout(Some(PATIENCE)).unwrap();
        frames
            .0
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        let mut payload = Vec::new();
        for (identifier, value) in settings {
            payload.extend(identifier.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        frames.send(SETTINGS, 0, 0, &payload).unwrap();
        frames
    }

    pub fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> std::io::Result<()> {
        self.0.write_all(&frame(kind, flags, stream, payload))
    }

    /// `None`: closed.
    pub fn receive(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length.try_into().unwrap()];
        self.0.read_exact(&mut payload).ok()?;
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// How a stream, or all of the connection, has ended.
    pub fn until_ended(&mut self, stream: u32) -> String {
        loop {
            match self.receive() {
                None => return "closed".to_owned(),
                Some(frame) if frame.kind == GOAWAY => return format!("{frame:?}"),
                Some(frame) if frame.stream == stream => {
                    let ended =
                        matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
                    if ended || frame.kind == RST_STREAM {
                        return format!("{frame:?}");
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// The next frame of this kind, or `None` when the connection ends before.
    fn next(&mut self, kind: u8) -> Option<Frame> {
        std::iter::from_fn(|| self.receive()).find(|frame| frame.kind == kind)
    }
}

/// A field as a literal that no table remembers.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        // Lengths from 127 on take another byte; none here takes a third.
        match u8::try_from(text.len()).unwrap() {
            short @ ..127 => block.push(short),
            long => block.extend([127, long - 127]),
        }
        block.extend(text.bytes());
    }
    block
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `:method: GET`, `:scheme: http`, then `:path` and `:authority`.
fn request(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04];
    block.push(u8::try_from(path.len()).unwrap());
    block.extend(path.bytes());
    block.extend(b"\x01\x09localhost");
    block
}

fn error_code(frame: &Frame) -> u32 {
    let start = if frame.kind == GOAWAY { 4 } else { 0 };
    u32::from_be_bytes(frame.payload[start..start + 4].try_into().unwrap())
}

/// More than what a connection may cost, less than what any of these floods would.
const BOUND: usize = 48 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_streams_and_fields_and_no_more() {
    let world = world("").start().await;
    let mut frames = Frames::new(world.proxy.data, &[]);
    let settings = frames.next(SETTINGS).unwrap();
    let value = |identifier: u16| {
        let pairs = settings.payload.chunks_exact(6);
        let mut pairs = pairs.filter(|pair| pair[..2] == identifier.to_be_bytes());
        pairs
            .next()
            .map(|pair| u32::from_be_bytes(pair[2..].try_into().unwrap()))
    };
    // SETTINGS_MAX_CONCURRENT_STREAMS and SETTINGS_MAX_HEADER_LIST_SIZE.
    assert_eq!((value(3), value(6)), (Some(100), Some(64 * 1024)));

    // Requests that never end.
    for nth in 0..150 {
        frames
            .send(HEADERS, END_HEADERS, 2 * nth + 1, &request("/v/x"))
            .unwrap();
    }
    for refused in 0..50 {
        let reset = frames.next(RST_STREAM).unwrap();
        assert_eq!(error_code(&reset), REFUSED_STREAM);
        assert_eq!(reset.stream, 201 + 2 * refused);
    }
    serves(&world);
    drop(frames);

    // Fields without end, each block valid.
    let mut frames = Frames::new(world.proxy.data, &[]);
    let mut block = request("/v/x");
    for _ in 0..40 {
        block.extend(b"\0\x01a\x7f\x81\x0f");
        // 127 + 1 + 15 * 128 bytes.
        block.extend([b'x'; 127 + 1 + 15 * 128]);
    }
    let mut parts = block.chunks(16 * 1024).peekable();
    let mut kind = HEADERS;
    while let Some(part) = parts.next() {
        let mut flags = if kind == HEADERS { END_STREAM } else { 0 };
        if parts.peek().is_none() {
            flags |= END_HEADERS;
        }
        frames.send(kind, flags, 1, part).unwrap();
        kind = CONTINUATION;
    }
    let refused = std::iter::from_fn(|| frames.receive())
        .find(|frame| matches!(frame.kind, HEADERS | RST_STREAM | GOAWAY));
    if let Some(Frame {
        kind: HEADERS,
        payload,
        ..
    }) = &refused
    {
        // `:status: 431`, its digits in Huffman's code (RFC 7541 §5.2).
        assert!(payload.starts_with(b"\x48\x83\x69\x90\xff"), "{refused:?}");
    }
    serves(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resets_or_continuations_ends_its_connection() {
    let world = world("").start().await;
    let before = world.proxy.resident();

    // CVE-2023-44487.
    let mut frames = Frames::new(world.proxy.data, &[]);
    let reset = 8_u32.to_be_bytes();
    let mut flood = Vec::new();
    for nth in 0..20_000 {
        flood.extend(frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            2 * nth + 1,
            &request("/v/x"),
        ));
        flood.extend(frame(RST_STREAM, 0, 2 * nth + 1, &reset));
    }
    let ended = frames.0.write_all(&flood).is_err() || frames.next(GOAWAY).is_some();
    assert!(ended, "the flood was borne");
    serves(&world);

    // CVE-2024-27316: a head that never ends.
    let mut frames = Frames::new(world.proxy.data, &[]);
    frames
        .send(HEADERS, END_STREAM, 1, &request("/v/x"))
        .unwrap();
    let mut ended = false;
    for _ in 0..20_000 {
        if frames.send(CONTINUATION, 0, 1, b"\0\x01a\x01b").is_err() {
            ended = true;
            break;
        }
    }
    assert!(
        ended || frames.next(GOAWAY).is_some(),
        "the flood was borne"
    );
    serves(&world);
    eventually("given up", || (world.in_flight() == 0).then_some(()));
    let more = world.proxy.resident().saturating_sub(before);
    assert!(more < BOUND, "{more} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_and_settings_that_nobody_reads_the_answers_of_costs_no_memory() {
    let world = world("").start().await;
    let before = world.proxy.resident();
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[])] {
        let mut frames = Frames::new(world.proxy.data, &[]);
        frames
            .0
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let some: Vec<u8> = std::iter::repeat_n(frame(kind, 0, 0, payload), 1000)
            .flatten()
            .collect();
        // Ends when the other side does not read on, or has closed.
        for _ in 0..3000 {
            if frames.0.write_all(&some).is_err() {
                break;
            }
        }
        serves(&world);
        let more = world.proxy.resident().saturating_sub(before);
        assert!(more < BOUND, "{more} bytes more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_never_opens_does_not_hold_an_answer() {
    let world = world("    timeouts: { idle: 1s }\n").start().await;
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut frames = Frames::new(world.proxy.data, &[(4, 0)]);
    let before = world.proxy.resident();
    for nth in 0..20 {
        let block = request("/v/x?size=5000000");
        frames
            .send(HEADERS, END_HEADERS | END_STREAM, 2 * nth + 1, &block)
            .unwrap();
    }
    eventually("begun", || (world.in_flight() > 0).then_some(()));
    eventually("given up", || (world.in_flight() == 0).then_some(()));
    let more = world.proxy.resident().saturating_sub(before);
    assert!(more < BOUND, "{more} bytes more");
    assert!(frames.next(RST_STREAM).is_some());
    serves(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_dribbles_over_http2_is_a_408() {
    let world = world("    timeouts: { idle: 1s }\n").start().await;
    let mut frames = Frames::new(world.proxy.data, &[]);
    frames
        .0
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut block = request("/v/x");
    // POST.
    block[0] = 0x83;
    frames.send(HEADERS, END_HEADERS, 1, &block).unwrap();
    let mut answer = Vec::new();
    let started = std::time::Instant::now();
    while started.elapsed() < PATIENCE && !answer.windows(3).any(|some| some == b"408") {
        let _ = frames.send(DATA, 0, 1, b"x");
        let mut some = [0; 4096];
        if let Ok(read) = frames.0.read(&mut some) {
            answer.extend_from_slice(&some[..read]);
        }
    }
    let text = String::from_utf8_lossy(&answer);
    assert!(
        text.contains("\"bad_request\"") && text.contains("408"),
        "{text}"
    );
    // The connection carries on.
    let mut answer = Vec::new();
    let block = request("/v/again");
    frames
        .send(HEADERS, END_HEADERS | END_STREAM, 3, &block)
        .unwrap();
    frames
        .send(WINDOW_UPDATE, 0, 0, &1000_u32.to_be_bytes())
        .unwrap();
    while !String::from_utf8_lossy(&answer).contains("GET /again") {
        assert!(started.elapsed() < 2 * PATIENCE, "no answer");
        let mut some = [0; 4096];
        if let Ok(read) = frames.0.read(&mut some) {
            assert_ne!(read, 0, "closed");
            answer.extend_from_slice(&some[..read]);
        }
    }
}
