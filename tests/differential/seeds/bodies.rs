//! Framings of requests' bodies.

use std::fmt::Write as _;

use super::super::cases::{Case, Step, chunked, get, post, says};
use super::{INNER, behind};

/// Fields of a POST that say where its body ends, or seem to; LENGTH is that of [`INNER`].
const FRAMINGS: &[&str] = &[
    "Content-Length: LENGTH",
    "content-length: LENGTH",
    "Content-Length:LENGTH",
    "Content-Length:  LENGTH  ",
    "Content-Length: 0LENGTH",
    "Content-Length: LENGTH\r\nContent-Length: LENGTH",
    "Content-Length: LENGTH, LENGTH",
    "Content-Length: 4\r\nContent-Length: 0",
    "Content-Length: 0, 0",
    "Content-Length: 0",
    "Content-Length: +0",
    "Content-Length: -1",
    "Content-Length: 0x10",
    "Content-Length: 1e1",
    "Content-Length: 1_0",
    "Content-Length: 1 0",
    "Content-Length: 18446744073709551615",
    "Content-Length: 18446744073709551616",
    "Content-Length: 9223372036854775808",
    "Content-Length:",
    "Content-Length: a",
    "Content_Length: LENGTH",
    "Content-Length : LENGTH",
    "Content-Length: 0\r\nContent_Length: 9",
    "Content-Length: 0\r\n Content-Length: 9",
    "Content-Length: LENGTH\r\nX: y\rTransfer-Encoding: chunked",
    "Content-Length: LENGTH\r\nX: y\nTransfer-Encoding: chunked",
    "Content-Length: LENGTH\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: LENGTH",
    "Content-Length: LENGTH\r\nTransfer-Encoding : chunked",
    "Content-Length: LENGTH\r\nTransfer_Encoding: chunked",
    "Content-Length: LENGTH\r\n Transfer-Encoding: chunked",
    "Content-Length: LENGTH\r\nTransfer-Encoding: identity",
    "Connection: content-length\r\nContent-Length: LENGTH",
    "Connection: close, Content-Length\r\nContent-Length: LENGTH",
    "Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked",
    "transfer-encoding:chunked",
    "Transfer-Encoding:  chunked  ",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: \u{b}chunked",
    "Transfer-Encoding: chun\r\n ked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding:",
    "X: y",
    "Trailer: Authorization\r\nTransfer-Encoding: chunked",
];

/// Bodies in chunks, and what is none.
const CHUNKS: &[&str] = &[
    "5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    "0\r\n\r\n",
    "00\r\n\r\n",
    "0000000000000000000000\r\n\r\n",
    "05\r\nhello\r\n0\r\n\r\n",
    "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
    "5;x=y\r\nhello\r\n0\r\n\r\n",
    "5;x=\"a;b\"\r\nhello\r\n0;z\r\n\r\n",
    "5 ;x\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5\t\r\nhello\r\n0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5;\nx\r\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;\r\nhello\r\n0\r\n\r\n",
    "5x\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "5,5\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "7fffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "fffffff0\r\nhello\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\r\n0\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\rhello\r0\r\r",
    "5\r\nhelloXX0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "4\r\nhello\r\n0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    "\r\n\r\n",
    ";x\r\n\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    "3\r\nabc\r\n\r\nlost: data\r\n0\r\n\r\n",
    "0\r\nX: y\r\n\r\n",
    "0\r\nAuthorization: Bearer theirs\r\nContent-Length: 5\r\n\r\n",
    "0\r\nX: y\n\r\n",
    "0\r\nno trailer\r\n\r\n",
    "0\r\nA: b\r\n c: d\r\n\r\n",
    "0\r\n: x\r\n\r\n",
    "0\r\nX: a\u{0}b\r\n\r\n",
    "0\r\n\r\n\r\n",
    // Incomplete.
    "",
    "5",
    "5\r",
    "5\r\n",
    "5\r\nhel",
    "5\r\nhello",
    "5\r\nhello\r\n",
    "5\r\nhello\r\n0\r\n",
    "5\r\nhello\r\n0\r\nX: y\r\n",
];

pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    let in_chunks = format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len());
    let after = format!("0\r\n\r\n{INNER}");
    for framing in FRAMINGS {
        let fields = framing.replace("LENGTH", &INNER.len().to_string());
        let head = format!("POST /v/x HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n");
        let bodies = if framing.contains("unked") {
            vec![&in_chunks[..], &after[..]]
        } else {
            vec![INNER]
        };
        for body in bodies {
            let name = format!("framing {framing:?} of {:?}…", &body[..3]);
            all.push(Case::sending(name, behind(&format!("{head}{body}"))));
        }
    }
    for body in CHUNKS {
        let sent = chunked("/v/x", "", body);
        let name = format!("chunks {body:?}");
        if body.ends_with("\n\r\n") || body.ends_with("\r\r") || body.ends_with("\n\n") {
            all.push(Case::sending(name, behind(&sent)));
        } else {
            all.push(Case::sending(&name, &sent));
            all.push(Case::new(
                format!("{name}, ended"),
                vec![says(sent), Step::HalfClose],
            ));
        }
    }
    all.extend(methods());
    all.extend(sizes());
    all.extend(pieces());
    all
}

/// Bodies where none is expected, of other versions, and where no vendor is asked.
fn methods() -> Vec<Case> {
    let starts = [
        "GET /v/x HTTP/1.1",
        "HEAD /v/x HTTP/1.1",
        "OPTIONS /v/x HTTP/1.1",
        "DELETE /v/x HTTP/1.1",
        "PUT /v/x HTTP/1.1",
        "PATCH /v/x HTTP/1.1",
        "TRACE /v/x HTTP/1.1",
        "CONNECT /v/x HTTP/1.1",
        "POST /nobody HTTP/1.1",
        "POST /v/smuggled HTTP/1.1",
        "POST /v/../x HTTP/1.1",
        "POST /v/x HTTP/1.0",
        "POST /v/x HTTP/2.0",
        "POST /v/x HTTP/1.2",
        "POST /v/x HTTP/0.9",
    ];
    let framings = [
        (format!("Content-Length: {}", INNER.len()), INNER.to_owned()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{:x}\r\n{INNER}\r\n0\r\n\r\n", INNER.len()),
        ),
        (
            format!("Connection: keep-alive\r\nContent-Length: {}", INNER.len()),
            INNER.to_owned(),
        ),
        (
            format!("Expect: 100-continue\r\nContent-Length: {}", INNER.len()),
            INNER.to_owned(),
        ),
    ];
    let mut all = Vec::new();
    for start in starts {
        for (fields, body) in &framings {
            let sent = format!("{start}\r\nHost: localhost\r\n{fields}\r\n\r\n{body}");
            all.push(Case::sending(format!("{start}, {fields}"), behind(&sent)));
        }
        let sent = format!("{start}\r\nHost: localhost\r\n\r\n");
        all.push(Case::sending(format!("{start}, no body"), behind(&sent)));
    }
    all
}

/// Bodies around the limits.
fn sizes() -> Vec<Case> {
    let mut all = Vec::new();
    for (path, size) in [
        ("/w/x", 4095),
        ("/w/x", 4096),
        ("/w/x", 4097),
        ("/w/x", 10_000),
        ("/v/x", 65_535),
        ("/v/x", 65_536),
        ("/v/x", 65_537),
        ("/v/x", 300_000),
    ] {
        let body = "abcdefghij".repeat(size / 10 + 1);
        let body = &body[..size];
        let name = format!("{size} bytes to {path}");
        all.push(Case::sending(&name, behind(&post(path, "", body))));
        let mut in_chunks = String::new();
        for piece in body.as_bytes().chunks(1000) {
            let piece = std::str::from_utf8(piece).unwrap();
            let _ = write!(in_chunks, "{:x}\r\n{piece}\r\n", piece.len());
        }
        in_chunks += "0\r\n\r\n";
        let sent = behind(&chunked(path, "", &in_chunks));
        all.push(Case::sending(format!("{name} in chunks"), sent));
    }
    all
}

/// Requests that come in pieces, or never to their end.
fn pieces() -> Vec<Case> {
    let whole = [
        ("length", behind(&post("/v/x", "", "hello world"))),
        (
            "chunks",
            behind(&chunked(
                "/v/x",
                "",
                "5;e\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n",
            )),
        ),
        ("none", behind(&get("/v/x", "X: y\r\n"))),
    ];
    let mut all = Vec::new();
    for (name, sent) in &whole {
        for piece in [1, 7, 40] {
            let steps = sent.as_bytes().chunks(piece);
            let steps = steps.flat_map(|piece| [says(piece), Step::Pause(1)]);
            all.push(Case::new(
                format!("{name} in pieces of {piece}"),
                steps.collect(),
            ));
        }
    }
    let cut = post("/v/x", "", "hello world");
    for left in [1, 5, 11] {
        let sent = &cut[..cut.len() - left];
        all.push(Case::sending(format!("{left} bytes too short"), sent));
        let ended = vec![says(sent), Step::HalfClose];
        all.push(Case::new(format!("{left} bytes too short, ended"), ended));
        let late = vec![says(sent), Step::Pause(60), says(&cut[cut.len() - left..])];
        all.push(Case::new(format!("{left} bytes late"), late));
    }
    all
}
