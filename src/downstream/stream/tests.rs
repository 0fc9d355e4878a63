use pingora::protocols::l4::stream::Stream as TcpStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;
use crate::downstream::budget::HeadBudget;
use crate::downstream::raw_head::{MAX_HEAD, MAX_TARGET};

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A guard of this end of a connection over HTTP/1.
fn stream_over(near: UnixStream) -> DownstreamStream {
    let head_memory = Arc::new(HeadMemory::new(HeadBudget::new(1)));
    DownstreamStream::new(Box::new(TcpStream::from(near)), false, head_memory)
}

/// A guard that has let `HEAD` through, and the caller's end.
async fn after_a_request() -> (DownstreamStream, UnixStream) {
    let (near, mut far) = UnixStream::pair().unwrap();
    let mut stream = stream_over(near);
    far.write_all(HEAD).await.unwrap();
    let mut head = [0; 64];
    assert_eq!(stream.read(&mut head).await.unwrap(), HEAD.len());
    stream.head_is_complete();
    stream.expect_head();
    (stream, far)
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_that_is_silent_between_requests() {
    let (mut stream, _far) = after_a_request().await;
    let began = Instant::now();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 0, "its end");
    assert_eq!(began.elapsed().as_secs(), KEEPALIVE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_request_begins_with_its_first_bytes_and_loses_none_of_them() {
    let (mut stream, mut far) = after_a_request().await;
    let waiting = timeout(Duration::from_secs(30), stream.begins()).await;
    assert!(waiting.is_err(), "nothing has come");
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
        "a \u{7f}".repeat(AHEAD)
    );
    far.write_all(long.as_bytes()).await.unwrap();
    for _ in 0..2 {
        assert!(stream.begins().await);
    }
    assert_eq!(format!("{stream:?}"), "DownstreamStream { .. }");
    let mut read = Vec::new();
    while read.len() < long.len() {
        let mut some = [0; 700];
        let length = stream.read(&mut some).await.unwrap();
        assert_ne!(length, 0);
        read.extend_from_slice(&some[..length]);
    }
    assert_eq!(read, long.as_bytes());
    assert!(stream.has_odd_first_line());
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_a_request_is_kept_and_stops_no_clock() {
    let (mut stream, mut far) = after_a_request().await;
    far.write_all(HEAD).await.unwrap();
    far.write_all(HEAD).await.unwrap();
    assert!(stream.begins().await);
    let mut head = [0; 256];
    // Of what has come, the first request and no more.
    assert_eq!(stream.read(&mut head).await.unwrap(), HEAD.len());
    stream.head_is_complete();
    stream.body_is_complete();
    let began = Instant::now();
    stream.set_response_deadline(Some(began + Duration::from_secs(20)));
    let early = timeout(Duration::from_secs(10), stream.read(&mut head)).await;
    assert!(early.is_err(), "{early:?}");
    far.write_all(b"G").await.unwrap();
    let late = stream.read(&mut head).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed().as_secs(), 20);

    stream.expect_head();
    assert!(stream.begins().await);
    assert_eq!(stream.read(&mut head).await.unwrap(), HEAD.len());
    assert!(!stream.has_odd_first_line());
    stream.head_is_complete();
    stream.body_is_complete();
    let (read, ()) = tokio::join!(
        timeout(Duration::from_secs(5), stream.read(&mut head)),
        async {
            far.write_all(b"ET  / HTTP/1.1\r\n").await.unwrap();
        }
    );
    assert!(read.is_err(), "{read:?}");
    stream.expect_head();
    assert!(stream.begins().await);
    let mut odd = String::new();
    while !odd.ends_with('\n') {
        let length = stream.read(&mut head).await.unwrap();
        odd.push_str(std::str::from_utf8(&head[..length]).unwrap());
    }
    assert_eq!(odd, "GET  / HTTP/1.1\r\n");
    assert!(stream.has_odd_first_line(), "looked at as every other");
}

#[tokio::test(start_paused = true)]
async fn a_body_ends_where_its_head_says_and_the_next_request_is_whole() {
    let body = vec![b'x'; 2 * AHEAD + 100];
    // All of it read ahead with the head, or most of it later.
    for length in [0, 5, body.len()] {
        let (mut stream, mut far) = after_a_request().await;
        let sent = [HEAD, &body[..length], HEAD, HEAD].concat();
        far.write_all(&sent).await.unwrap();
        assert!(stream.begins().await);
        let mut some = vec![0; 4 * AHEAD];
        assert_eq!(stream.read(&mut some).await.unwrap(), HEAD.len());
        stream.head_is_complete();
        stream.body_has(length as u64);
        let mut read = 0;
        while read < length {
            let more = stream.read(&mut some).await.unwrap();
            assert!(more > 0 && some[..more].iter().all(|byte| *byte == b'x'));
            read += more;
        }
        assert_eq!(read, length);
        let behind = timeout(Duration::from_secs(5), stream.read(&mut some)).await;
        assert!(behind.is_err(), "{behind:?}");
        stream.body_is_complete();
        for _ in 0..2 {
            stream.expect_head();
            assert!(stream.begins().await);
            assert_eq!(stream.read(&mut some).await.unwrap(), HEAD.len());
            assert_eq!(&some[..HEAD.len()], HEAD);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn empty_lines_between_requests_are_none_and_win_no_time() {
    let (mut stream, mut far) = after_a_request().await;
    let began = Instant::now();
    for _ in 0..3 {
        far.write_all(b"\r\n").await.unwrap();
        let waiting = timeout(Duration::from_secs(20), stream.begins()).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }
    assert!(!stream.begins().await);
    assert_eq!(began.elapsed().as_secs(), KEEPALIVE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_head_without_end_is_refused_at_its_limit() {
    let long = "a".repeat(2 * MAX_HEAD);
    for (begun, status, limit) in [
        ("GET / HTTP/1.1\r\nA: ", "431", MAX_HEAD),
        ("GET /", "414", MAX_TARGET),
    ] {
        let (mut stream, far) = after_a_request().await;
        let (mut read, mut written) = far.into_split();
        let sending = async {
            let _ = written
                .write_all((begun.to_owned() + &long).as_bytes())
                .await;
        };
        let reading = async {
            assert!(stream.begins().await);
            let mut all = 0;
            loop {
                match stream.read(&mut [0; 8192]).await {
                    Ok(length) => all += length,
                    Err(refused) => return (all, refused),
                }
            }
        };
        let ((), (all, refused)) = tokio::join!(sending, reading);
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!((limit..limit + 8193).contains(&all), "{all}");
        drop(stream);
        let mut answer = String::new();
        read.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.ends_with('}'), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_request_begins_on_a_connection_that_stays_silent_or_is_closed() {
    let (mut stream, far) = after_a_request().await;
    let began = Instant::now();
    assert!(!stream.begins().await);
    assert_eq!(began.elapsed().as_secs(), KEEPALIVE.as_secs());
    drop(far);
    stream.expect_head();
    assert!(!stream.begins().await, "closed");

    let (near, _far) = UnixStream::pair().unwrap();
    let mut silent = stream_over(near);
    let began = Instant::now();
    assert!(!silent.begins().await);
    assert_eq!(began.elapsed().as_secs(), HEAD_TIME.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_later_head_has_its_own_time_from_its_first_byte() {
    let (mut stream, mut far) = after_a_request().await;
    let silence = KEEPALIVE.as_secs() - 1;
    let early = timeout(Duration::from_secs(silence), stream.read(&mut [0; 64])).await;
    assert!(early.is_err(), "{early:?}");
    far.write_all(b"GE").await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), 2);
    let began = Instant::now();
    let late = stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed().as_secs(), HEAD_TIME.as_secs());
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_awaited_as_long_as_the_newest_limit_says() {
    let (mut stream, mut far) = after_a_request().await;
    far.write_all(HEAD).await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), HEAD.len());
    stream.head_is_complete();
    for seconds in [30, 50, 5] {
        let began = Instant::now();
        stream.set_response_deadline(Some(began + Duration::from_secs(seconds)));
        let late = stream.read(&mut [0; 64]).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn a_vendor_may_be_silent_so_long_at_a_time() {
    let (mut stream, mut far) = after_a_request().await;
    far.write_all(HEAD).await.unwrap();
    assert_eq!(stream.read(&mut [0; 64]).await.unwrap(), HEAD.len());
    stream.head_is_complete();
    let silence = Duration::from_secs(10);
    let began = Instant::now();
    stream.set_response_idle(silence, began);
    for _ in 0..3 {
        let waiting = timeout(Duration::from_secs(9), stream.read(&mut [0; 64])).await;
        assert!(waiting.is_err(), "{waiting:?}");
        stream.response_progressed();
    }
    assert!(!stream.response_was_late());
    let late = stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed().as_secs(), 3 * 9 + 10);
    assert!(stream.response_was_late());

    // The whole has its limit all the same.
    stream.response_progressed();
    let began = Instant::now();
    stream.set_response_deadline(Some(began + Duration::from_secs(4)));
    stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_a_caller_is_slow_to_take_is_not_the_vendors_silence() {
    let (mut stream, mut far) = full().await;
    stream.head_is_complete();
    stream.set_write_timeout(Duration::from_mins(5));
    stream.set_response_idle(Duration::from_secs(10), Instant::now());
    let taking = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        loop {
            far.read_exact(&mut [0; 4096]).await.unwrap();
        }
    };
    tokio::select! {
        flushed = stream.flush() => flushed.unwrap(),
        () = taking => {}
    }
    let began = Instant::now();
    stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(began.elapsed().as_secs(), 10);
}

/// A guard whose caller has taken all that it ever will.
async fn full() -> (DownstreamStream, UnixStream) {
    let (mut stream, far) = after_a_request().await;
    stream.set_write_timeout(Duration::ZERO);
    let much = vec![b'x'; 1 << 20];
    let filling = stream.write_all(&much);
    assert!(timeout(Duration::from_secs(1), filling).await.is_err());
    stream.write_all(HEAD).await.unwrap();
    (stream, far)
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_nothing_of_its_answer_is_not_waited_for_without_end() {
    let (mut stream, _far) = full().await;
    for seconds in [60, 300] {
        stream.set_write_timeout(Duration::from_secs(seconds));
        let began = Instant::now();
        let stuck = stream.flush().await.unwrap_err();
        assert_eq!(stuck.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_at_once_though_its_caller_does_not_read() {
    let (mut stream, mut far) = full().await;
    let began = Instant::now();
    let ending = async {
        AsyncWriteExt::shutdown(&mut stream).await.unwrap();
        Shutdown::shutdown(&mut stream).await;
    };
    timeout(KEEPALIVE, ending).await.expect("it ends");
    drop(stream);
    assert_eq!(began.elapsed(), Duration::ZERO);
    let mut taken = Vec::new();
    far.read_to_end(&mut taken).await.unwrap();
    assert!(taken.iter().all(|byte| *byte == b'x'));
}

#[tokio::test]
async fn what_was_written_last_is_sent_though_nobody_flushed_it() {
    let (mut stream, mut far) = after_a_request().await;
    stream.write_all(b"the end").await.unwrap();
    drop(stream);
    let mut taken = Vec::new();
    far.read_to_end(&mut taken).await.unwrap();
    assert_eq!(taken, b"the end");
}
