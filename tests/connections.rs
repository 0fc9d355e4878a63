//! How long a connection may do nothing, and what it costs the others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use countersign::demo;

use crate::support::{Proxy, status_of};

const HEAD: &str = "GET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How long the other side keeps `stream` open while `next` says what to send each 100 ms.
fn closed_after(mut stream: TcpStream, mut next: impl FnMut() -> Option<u8>) -> Duration {
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(25) {
        if let Some(byte) = next()
            && stream.write_all(&[byte]).is_err()
        {
            return started.elapsed();
        }
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return started.elapsed(),
            Ok(_) => {}
            Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return started.elapsed(),
        }
    }
    panic!("still open");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_ten_seconds_and_idle_connections_cost_others_nothing() {
    let echo = demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n  v:\n    upstream: {}\n    allow_plaintext: true\n",
        echo.url()
    );
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml))
        .await
        .unwrap();
    let connect = || TcpStream::connect(proxy.data).unwrap();
    let limit = Duration::from_secs(8)..Duration::from_secs(16);

    // Five hundred callers that say nothing, and one that does.
    let silent: Vec<_> = (0..500).map(|_| connect()).collect();
    let close = HEAD.replace("Host", "Connection: close\r\nHost");
    assert_eq!(status_of(&proxy.raw(&close)), 200);

    std::thread::scope(|scope| {
        let nothing = scope.spawn(|| closed_after(connect(), || None));
        let dribbled = scope.spawn(|| {
            let mut endless = HEAD.trim_end().bytes().chain(std::iter::repeat(b'x'));
            closed_after(connect(), move || endless.next())
        });
        let second = scope.spawn(|| {
            let mut stream = connect();
            stream.write_all(HEAD.as_bytes()).unwrap();
            let read = stream.read(&mut [0; 1024]).unwrap();
            assert!(read > 0);
            let mut half = HEAD[..20].bytes();
            closed_after(stream, move || half.next())
        });
        let kept = scope.spawn(|| {
            let mut stream = connect();
            for pause in [0, 12] {
                std::thread::sleep(Duration::from_secs(pause));
                stream.write_all(HEAD.as_bytes()).unwrap();
                let mut answer = [0; 1024];
                let read = stream.read(&mut answer).unwrap();
                assert_eq!(status_of(&String::from_utf8_lossy(&answer[..read])), 200);
            }
        });
        for (what, waited) in [
            ("nothing", nothing),
            ("dribbled", dribbled),
            ("second", second),
        ] {
            let waited = waited.join().unwrap();
            assert!(limit.contains(&waited), "{what}: {waited:?}");
        }
        kept.join().unwrap();
    });
    drop(silent);
}
