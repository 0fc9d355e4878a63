//! Requests within requests, and fields where they do not belong: whatever the framing says, the
//! vendor sees one request for each that was authorised, and nothing of the caller's credentials.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::floods::http2::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, literal};
use crate::support::world::World;
use crate::support::{PATIENCE, eventually, status_of};

const KEY: &str = "key-of-the-caller";
const INNER: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// The vendor `v` for one caller; it must never see what the attacks hide.
async fn start(more: &str) -> World {
    let stanza = "    auth: { headers: { Authorization: { value: Bearer ours } } }\n    refuse: [ \"/smuggled*\" ]\n    redact_echo: false\n    timeouts: { idle: 2s }\n";
    World::with_vendor(&format!("{stanza}{more}"))
        .listener("{ bind: 127.0.0.1:0, h2c: true }")
        .caller(KEY)
        .start()
        .await
}

/// Nothing of what the attacks hide, and every request with our credential alone.
fn nothing_was_smuggled(world: &World) {
    for seen in world.echo.requests() {
        let raw = String::from_utf8_lossy(&seen.raw).into_owned();
        assert!(!seen.target.contains("smuggled"), "{raw}");
        assert_eq!(seen.field("authorization"), Some("Bearer ours"), "{raw}");
        let (head, _) = raw.split_once("\r\n\r\n").unwrap();
        let head = head.to_lowercase();
        assert!(!head.contains(KEY) && !head.contains("theirs"), "{raw}");
        let framed = head.matches("\r\ncontent-length:").count()
            + head.matches("\r\ntransfer-encoding:").count();
        assert!(framed <= 1, "{raw}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one table")]
async fn no_framing_makes_two_requests_of_one() {
    let world = start("").await;
    let chunked = format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len());
    let length = INNER.len();
    let long_chunked = format!("0\r\n\r\n{INNER}");
    for (start, fields, body) in [
        // Fields that the connection's options would take away.
        (
            "POST /v/x HTTP/1.1",
            format!("Connection: content-length\nContent-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Connection: close, Content-Length\nContent-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Connection: transfer-encoding\nTransfer-Encoding: chunked".into(),
            &*chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Connection: transfer-encoding\nTransfer-Encoding: chunked".into(),
            &*long_chunked,
        ),
        // Two framings, or one that only some take for one.
        (
            "POST /v/x HTTP/1.1",
            format!("Content-Length: {length}\nTransfer-Encoding: chunked"),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Transfer-Encoding: chunked\nContent-Length: {length}"),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Content-Length: {length}\nTransfer-Encoding : chunked"),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Content-Length: {length}\nTransfer_Encoding: chunked"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Content-Length: {length}\nX: y\rTransfer-Encoding: chunked"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Content-Length: {length}\n Transfer-Encoding: chunked"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Content-Length: 4\nContent-Length: 0".into(),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Content-Length: 0\nContent_Length: 9".into(),
            INNER,
        ),
        ("POST /v/x HTTP/1.1", "Content-Length: 0, 0".into(), INNER),
        ("POST /v/x HTTP/1.1", "Content-Length: +0".into(), INNER),
        ("POST /v/x HTTP/1.1", "Content-Length: -1".into(), INNER),
        ("POST /v/x HTTP/1.1", "Content-Length: 0x10".into(), INNER),
        ("POST /v/x HTTP/1.1", "Content-Length: 1e1".into(), INNER),
        (
            "POST /v/x HTTP/1.1",
            "Content-Length: 18446744073709551616".into(),
            INNER,
        ),
        ("POST /v/x HTTP/1.1", "Content-Length:".into(), INNER),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: xchunked".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: identity".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked, identity".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked;q=1".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: \"chunked\"".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: \u{b}chunked".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding:".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked\nTransfer-Encoding: x".into(),
            &*long_chunked,
        ),
        (
            "POST /v/x HTTP/1.0",
            "Transfer-Encoding: chunked".into(),
            &*long_chunked,
        ),
        // Chunks that are none.
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "0x5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "+5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "-5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "5\nhello\n0\n\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "5\r\nhelloXX0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            "POST /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            "5;\nx\r\nhello\r\n0\r\n\r\n",
        ),
        // Bodies where none is expected.
        (
            "GET /v/x HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "HEAD /v/x HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "OPTIONS /v/x HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "DELETE /v/x HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            &*chunked,
        ),
        // And where we answer ourselves.
        (
            "POST /nobody HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/smuggled HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/../x HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/smuggled HTTP/1.1",
            "Transfer-Encoding: chunked".into(),
            &*chunked,
        ),
        (
            "TRACE /v/x HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "CONNECT /v/x HTTP/1.1",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Expect: 100-continue\nContent-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/smuggled HTTP/1.1",
            format!("Expect: 100-continue\nContent-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.1",
            format!("Expect: 200-ok\nContent-Length: {length}"),
            INNER,
        ),
        // Versions.
        (
            "POST /v/x HTTP/1.0",
            format!("Connection: keep-alive\nContent-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/2.0",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/1.2",
            format!("Content-Length: {length}"),
            INNER,
        ),
        (
            "POST /v/x HTTP/0.9",
            format!("Content-Length: {length}"),
            INNER,
        ),
        ("GET /v/x", String::new(), INNER),
    ] {
        let before = world.echo.requests().len();
        let fields = fields.replace('\n', "\r\n");
        let attack = format!(
            "{start}\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\n{fields}\r\n\r\n{body}GET /v/second HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(world.proxy.data).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(attack.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        // The hidden request would be refused, or match no vendor: its response is recognised by
        // its text.
        let answers = answer.matches("HTTP/1.1 ").count();
        assert!(answers <= 4, "{start}, {fields}: {answer}");
        let arrived = world.echo.requests().len() - before;
        if status_of(&answer) == 200 && body == INNER {
            // As what it is: a body.
            assert_eq!(
                world.echo.requests()[before].body,
                INNER.as_bytes(),
                "{fields}"
            );
        }
        assert!(
            arrived <= 2,
            "{start}, {fields}: {arrived} arrived, {answer}"
        );
        nothing_was_smuggled(&world);
        println!("{start} | {fields:?} | {} | {arrived}", status_of(&answer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connections_options_take_none_of_our_own_fields_away() {
    let world = start("").await;
    for options in [
        "authorization",
        "Authorization, X-Countersign-Key",
        "keep-alive, authorization, te",
        "host",
        "x-forwarded-for",
        "\"authorization\"",
        "via",
    ] {
        let answer = world.proxy.raw(format!(
            "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nAuthorization: Bearer theirs\r\nTE: trailers\r\nConnection: close, {options}\r\n\r\n"
        ));
        assert!(
            [200, 400].contains(&status_of(&answer)),
            "{options}: {answer}"
        );
        nothing_was_smuggled(&world);
    }
    assert!(world.echo.requests().len() >= 4);

    // Fields behind a body are fields no less.
    let trailers = world.proxy.raw(format!(
        "POST /v/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nTrailer: Authorization\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nAuthorization: Bearer theirs\r\nX-Api-Key: theirs\r\n\r\n"
    ));
    assert_eq!(status_of(&trailers), 200, "{trailers}");
    let last = world.echo.requests().pop().unwrap();
    assert!(!String::from_utf8_lossy(&last.raw).contains("theirs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_or_protocol_cannot_be_asked_for() {
    let world = start("    hosts: [ v.internal ]\n").await;
    for (target, host, wanted) in [
        ("http://localhost/v/x", "localhost", 200),
        ("http://v.internal/x", "v.internal", 200),
        ("http://v.internal/x", "localhost", 400),
        ("http://localhost/v/x", "v.internal", 400),
        ("http://localhost:80/v/x", "localhost", 400),
        ("http://localhost@v.internal/x", "v.internal", 400),
        ("http://localhost\\@v.internal/x", "localhost", 400),
        ("http:///v/x", "localhost", 400),
        ("http:/v/x", "localhost", 400),
        ("http://[::1]/v/x", "localhost", 400),
        ("ftp://localhost/v/x", "localhost", 400),
        ("//localhost/v/x", "localhost", 400),
        ("localhost:80", "localhost", 400),
        ("*", "localhost", 400),
        ("/v/x", "localhost, v.internal", 400),
        ("/v/x", "localhost/x", 400),
        ("/v/x", "localhost\t", 200),
        ("/v/x", "", 400),
    ] {
        let answer = world.proxy.raw(format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
        ));
        assert_eq!(status_of(&answer), wanted, "{target}, {host}: {answer}");
    }
    let seen = world.echo.requests();
    let own = world.echo.address().to_string();
    assert!(seen.iter().all(|one| one.field("host") == Some(&own)));

    // Plaintext HTTP/2 at the vendor would leave our rules behind.
    for upgrade in ["h2c", "h2c, websocket", "TLS/1.0", "HTTP/2.0"] {
        let answer = world.proxy.raw(format!(
            "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ));
        assert_eq!(status_of(&answer), 200, "{upgrade}: {answer}");
        let last = world.echo.requests().pop().unwrap();
        for gone in ["upgrade", "http2-settings"] {
            assert_eq!(last.field(gone), None, "{upgrade}");
        }
        let options = last.field("connection").unwrap_or_default();
        assert!(!options.to_lowercase().contains("upgrade"), "{options}");
    }
    nothing_was_smuggled(&world);
}

/// A vendor that answers every connection with these bytes, once it has read a head.
fn answering(bytes: &'static str) -> std::net::SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                head.push(byte[0]);
            }
            let _ = stream.write_all(bytes.as_bytes());
            // Let it be read before it is closed.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_before_an_answer_are_filtered_like_it() {
    let vendor = answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nSet-Cookie: theirs=1\r\nProxy-Status: countersign; error=x\r\nKeep-Alive: theirs\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let unasked = answering(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    );
    let more = format!(
        "  w:\n    upstream: http://{vendor}\n    allow_plaintext: true\n  u:\n    upstream: http://{unasked}\n    allow_plaintext: true\n"
    );
    let world = start(&more).await;
    let answer = world.proxy.raw(format!(
        "GET /w/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
    ));
    assert!(answer.ends_with("ok"), "{answer}");
    for gone in ["theirs", "error=x", "Keep-Alive"] {
        assert!(!answer.contains(gone), "{gone} in {answer}");
    }
    let unasked = world.proxy.raw(format!(
        "GET /u/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
    ));
    assert_eq!(status_of(&unasked), 502, "{unasked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_chunks_that_are_none_is_refused() {
    let world = start("").await;
    for odd in [
        "\r\n\r\n",
        ";x\r\n\r\n",
        "3\r\nabc\r\n\r\nlost: data\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "0\r\nno trailer\r\n\r\n",
        "0\r\nA: b\r\n c: d\r\n\r\n",
    ] {
        let answer = world.proxy.raw(format!(
            "POST /v/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nTransfer-Encoding: chunked\r\n\r\n{odd}{INNER}"
        ));
        assert_eq!(status_of(&answer), 400, "{odd:?}: {answer}");
        assert!(answer.contains("\"bad_request\""), "{answer}");
        // What follows cannot be read any more.
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    nothing_was_smuggled(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_leaves_its_end_to_be_guessed_is_refused() {
    let answers = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", 502),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            502,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            502,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            502,
        ),
        // What cannot be read may hold our credential: none of it is for the log.
        (
            "HTTP/1.1 200 OK\r\nX-Echo: Bearer ours\r\nX: a\0b\r\n\r\n",
            502,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", 204),
    ];
    let mut vendors = String::new();
    for (number, (bytes, _)) in answers.iter().enumerate() {
        let url = answering(bytes);
        let _ = write!(
            vendors,
            "  a{number}:\n    upstream: http://{url}\n    allow_plaintext: true\n"
        );
    }
    let world = start(&vendors).await;
    for (number, (bytes, status)) in answers.into_iter().enumerate() {
        let answer = world.proxy.raw(format!(
            "GET /a{number}/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
        ));
        assert_eq!(status_of(&answer), status, "{bytes}: {answer}");
        assert!(answer.starts_with("HTTP/1.1 "), "{bytes}: {answer}");
        if status == 204 {
            assert!(!answer.contains("Content-Length"), "{answer}");
        }
    }
    let said = world.proxy.said();
    assert!(said.contains("unreadable headers"), "{said}");
    assert!(!said.contains("Bearer ours"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_carries_no_request_within_a_request() {
    let world = start("").await;
    let ordinary = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/v/x"),
        (":authority", "localhost"),
        ("x-countersign-key", KEY),
    ];
    let with = |name: &'static str, value: &'static str| {
        let mut fields: Vec<(&str, &str)> = ordinary.to_vec();
        match fields.iter_mut().find(|(known, _)| *known == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
        fields
    };
    let again = |name: &'static str, value: &'static str| {
        let mut fields: Vec<(&str, &str)> = ordinary.to_vec();
        fields.insert(4, (name, value));
        fields
    };
    let attacks = [
        with("transfer-encoding", "chunked"),
        with("connection", "x-countersign-key"),
        with("upgrade", "h2c"),
        with("te", "gzip"),
        with("content-length", "1"),
        with("content-length", "0"),
        again("content-length", "43\r\nx: y"),
        with("x", "y\r\nauthorization: theirs"),
        with("x\r\ny", "theirs"),
        with("X-Upper", "theirs"),
        with("x y", "theirs"),
        with("x:y", "theirs"),
        with("authorization", "Bearer theirs"),
        with("host", "elsewhere"),
        with(":authority", "localhost\r\nx: theirs"),
        with(":authority", "u@localhost"),
        with(":path", "/v/x HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled"),
        with(":path", "/v/x\tsmuggled"),
        with(":path", "/v/../smuggled"),
        with(":path", "http://localhost/smuggled"),
        with(":path", "*"),
        with(":path", ""),
        with(":path", "v/smuggled"),
        with(":method", "GET /smuggled HTTP/1.1"),
        with(":method", "GET\r\n"),
        with(":method", "CONNECT"),
        with(":scheme", "http://localhost/smuggled?"),
        with(":scheme", "ftp"),
        with(":status", "200"),
        with(":protocol", "websocket"),
        again(":path", "/smuggled"),
        again(":authority", "elsewhere"),
        again(":method", "GET"),
    ];
    for fields in attacks {
        let mut frames = Frames::new(world.proxy.data, &[]);
        let block: Vec<u8> = fields
            .iter()
            .flat_map(|(name, value)| literal(name, value))
            .collect();
        frames.send(HEADERS, END_HEADERS, 1, &block).unwrap();
        let _ = frames.send(DATA, 0, 1, INNER.as_bytes());
        // Fields behind the body.
        let trailers = literal("authorization", "Bearer theirs");
        let _ = frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &trailers);
        let ended = frames.until_ended(1);
        println!("{:?}: {ended}", fields.last());
        nothing_was_smuggled(&world);
    }
    // A rule for DELETE says nothing of `delete`, which some servers take for it.
    let seen = world.echo.requests().len();
    for method in ["delete", "Delete", "trace", "connect"] {
        let mut frames = Frames::new(world.proxy.data, &[]);
        let block: Vec<u8> = with(":method", method)
            .iter()
            .flat_map(|(name, value)| literal(name, value))
            .collect();
        frames
            .send(HEADERS, END_HEADERS | END_STREAM, 1, &block)
            .unwrap();
        frames.until_ended(1);
        assert_eq!(world.echo.requests().len(), seen, "{method}");
    }
    let answer = world.proxy.raw(format!(
        "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {KEY}\r\nConnection: close\r\n\r\n"
    ));
    assert_eq!(status_of(&answer), 200);
    eventually("all over", || {
        world
            .proxy
            .admin("/status")
            .1
            .contains("\"in_flight\":0")
            .then_some(())
    });
}

/// RUSTSEC-2025-0037, of pingora: a body that nobody reads is no request, whether it is refused
/// before its body has come or answered by a vendor that does not read it.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_not_read_is_never_taken_for_a_request() {
    let early = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let more = format!("  early:\n    upstream: http://{early}\n    allow_plaintext: true\n");
    let world = start(&more).await;
    let inner = "GET /v/inner HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: theirs\r\n\r\n";
    for (path, key, status) in [
        ("/v/x", "nobody", 401),
        ("/v/smuggled", KEY, 403),
        ("/nowhere", KEY, 404),
        ("/early/x", KEY, 200),
    ] {
        for late in [false, true] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Countersign-Key: {key}\r\nContent-Length: {}\r\n\r\n",
                inner.len() * 2
            );
            let mut stream = world.connect();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            if late {
                std::thread::sleep(Duration::from_millis(100));
            }
            // The connection may have ended by then.
            let _ = stream.write_all(inner.as_bytes());
            std::thread::sleep(Duration::from_millis(20));
            let _ = stream.write_all(inner.as_bytes());
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert_eq!(status_of(&answer), status, "{path} {late}: {answer}");
            assert_eq!(
                answer.matches("HTTP/1.1 ").count(),
                1,
                "{path} {late}: {answer}"
            );
        }
    }
    assert_eq!(world.arrived(), "", "the vendor of the bodies' requests");
}

/// RUSTSEC-2026-0033, of pingora: what comes behind a request to upgrade is no tunnel before the
/// vendor has agreed. Here it does not.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_behind_an_upgrade_that_is_refused_are_a_request_of_their_own() {
    let world = start("").await;
    let key = format!("Host: localhost\r\nX-Countersign-Key: {KEY}\r\n");
    let upgrade = format!(
        "GET /v/chat HTTP/1.1\r\n{key}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let last = format!("{key}Connection: close\r\n\r\n");
    for (path, status) in [("/v/smuggled", 403), ("/v/next", 200)] {
        let answer = world
            .proxy
            .raw(format!("{upgrade}GET {path} HTTP/1.1\r\n{last}"));
        let (first, second) = answer.rsplit_once("HTTP/1.1 ").unwrap();
        assert_eq!(status_of(first), 200, "{answer}");
        assert!(second.starts_with(&status.to_string()), "{answer}");
    }
    nothing_was_smuggled(&world);
    let targets: Vec<_> = world
        .echo
        .requests()
        .into_iter()
        .map(|seen| seen.target)
        .collect();
    assert_eq!(targets, ["/chat", "/chat", "/next"]);
}
