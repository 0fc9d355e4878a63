//! Callers that want to wear the proxy out: too many connections, bodies and answers that crawl,
//! and what HTTP/2 lets one connection ask for. The others must not notice, and memory stays bounded.

mod heads;
pub mod http2;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::world::{Builder, World};
use crate::support::{PATIENCE, eventually, status_of};

const HEAD: &str = "GET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
const CLOSED: &str = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The vendor `v`, with HTTP/2 in plaintext.
fn world(more: &str) -> Builder {
    World::with_vendor(more).listener("{ bind: 127.0.0.1:0, h2c: true }")
}

/// A caller like any other is served.
fn serves(world: &World) {
    assert_eq!(status_of(&world.proxy.raw(CLOSED)), 200);
}

/// All that comes until the other side closes, whatever way.
fn rest_of(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(cause) => assert_eq!(cause.kind(), ErrorKind::ConnectionReset, "still open"),
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_idle_and_dribbling_callers_are_bearable() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    // The proxy leaves a quarter of its files for the way to vendors.
    let permitted = maximum.map_or(usize::MAX, |files| files.try_into().unwrap());
    let many = 5000.min(permitted.saturating_sub(1000) / 2);
    assert!(
        many >= 500,
        "only {permitted} open files are permitted here"
    );
    let world = world("").start().await;
    serves(&world);
    let before = world.proxy.resident();

    let mut held = Vec::with_capacity(many);
    for nth in 0..many {
        let mut stream = world.connect();
        match nth % 3 {
            0 => {}
            1 => stream.write_all(&HEAD.as_bytes()[..30]).unwrap(),
            _ => {
                stream.write_all(HEAD.as_bytes()).unwrap();
                assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
            }
        }
        held.push(stream);
        if nth % 500 == 0 {
            serves(&world);
        }
    }
    for stream in held.iter_mut().skip(1).step_by(3) {
        // Those of the first are over their time on a slow machine.
        let _ = stream.write_all(b"x");
    }
    for _ in 0..20 {
        serves(&world);
    }
    let each = world.proxy.resident().saturating_sub(before) / many;
    println!("{many} connections, {each} bytes each");
    assert!(each < 48 * 1024, "{each} bytes for each connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_beyond_the_bound_wait_and_are_served_once_there_is_room() {
    let world = world("").open_files(128).start().await;
    // (128 - 64) / 4 * 3.
    let held: Vec<TcpStream> = (0..48)
        .map(|_| {
            let mut stream = world.connect();
            stream.write_all(HEAD.as_bytes()).unwrap();
            assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
            stream
        })
        .collect();
    let mut waiting = world.connect();
    waiting.write_all(CLOSED.as_bytes()).unwrap();
    eventually("said", || {
        let said = world.proxy.stderr();
        said.contains("further callers wait").then_some(())
    });
    waiting
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let nothing = waiting.read(&mut [0; 16]).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock);

    drop(held);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(status_of(&rest_of(&mut waiting)), 200);
    serves(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_to_the_admin_listener_are_bounded_and_end() {
    let world = world("").start().await;
    let silent: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(world.proxy.admin).unwrap())
        .collect();
    serves(&world);
    let open = std::fs::read_dir(format!("/proc/{}/fd", world.proxy.id())).unwrap();
    let open = open.count();
    assert!(open < 200, "{open} files are open");
    // A probe waits until the silent ones are closed.
    assert_eq!(world.proxy.admin("/livez").0, 200);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_dribbles_is_a_408_however_it_is_framed() {
    let world = world("    timeouts: { idle: 1s }\n").start().await;
    for (framing, drop) in [
        ("Content-Length: 100000", "x"),
        ("Transfer-Encoding: chunked", "1\r\nx\r\n"),
        // No byte of the body, and yet never silent.
        ("Transfer-Encoding: chunked", ";x=1"),
    ] {
        let mut stream = world.connect();
        let head = format!("POST /v/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut dribbling = stream.try_clone().unwrap();
        let dribbler = thread::spawn(move || {
            let first = if drop.starts_with(';') { "1" } else { "" };
            let _ = dribbling.write_all(first.as_bytes());
            for _ in 0..150 {
                if dribbling.write_all(drop.as_bytes()).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        let answer = rest_of(&mut stream);
        assert_eq!(status_of(&answer), 408, "{framing}, {drop:?}: {answer}");
        assert!(answer.contains("\"bad_request\""), "{answer}");
        let _ = stream.shutdown(Shutdown::Both);
        dribbler.join().unwrap();
    }
    eventually("given up", || (world.in_flight() == 0).then_some(()));
    serves(&world);

    // Slow is not dribbling.
    let mut stream = world.connect();
    let head = "POST /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 8000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..8 {
        thread::sleep(Duration::from_millis(300));
        stream.write_all(&[b'x'; 1000]).unwrap();
    }
    let answer = rest_of(&mut stream);
    assert_eq!(status_of(&answer), 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_being_answered_may_go_on_sending_slowly() {
    let vendor = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = vendor.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = vendor.accept().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            let mut some = [0; 64];
            let read = stream.read(&mut some).unwrap();
            assert_ne!(read, 0, "broken off after {}", body.len());
            body.extend_from_slice(&some[..read]);
        }
        stream.write_all(b"3\r\nbye\r\n0\r\n\r\n").unwrap();
    });
    let more = format!(
        "  stream:\n    upstream: http://{address}\n    allow_plaintext: true\n    timeouts: {{ idle: 1s }}\n"
    );
    let world = world(&more).start().await;
    let mut stream = world.connect();
    let head = "POST /stream/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..15 {
        thread::sleep(Duration::from_millis(200));
        stream.write_all(b"1\r\nx\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let answer = rest_of(&mut stream);
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.ends_with("bye\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_take_its_answer_is_given_up() {
    let world = world("    timeouts: { idle: 1s }\n").start().await;
    let mut stream = world.connect();
    let head = "GET /v/x?size=50000000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    eventually("begun", || (world.in_flight() == 1).then_some(()));
    eventually("given up", || (world.in_flight() == 0).then_some(()));
    // Cut off, not ended.
    let mut taken = 0;
    let mut some = vec![0; 1 << 20];
    while let Ok(read @ 1..) = stream.read(&mut some) {
        taken += read;
    }
    assert!(taken < 50_000_000);
    serves(&world);
}
