//! Requests whose parts and responses overlap.

use super::super::cases::{Act, Answer, Case, Step, bytes, chunked, get, post, says, send};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const EXPECT: &str = "Expect: 100-continue\r\n";
const WEBSOCKET: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub fn all() -> Vec<Case> {
    let mut all = expectations();
    all.extend(early());
    all.extend(upgrades());
    all
}

/// Callers that wait for a 100, or say so.
fn expectations() -> Vec<Case> {
    let whole = post("/v/x", EXPECT, "hello");
    let (head, body) = whole.split_at(whole.len() - 5);
    let old = whole.replace("HTTP/1.1", "HTTP/1.0");
    let in_chunks = chunked("/v/x", EXPECT, "5\r\nhello\r\n0\r\n\r\n");
    let (chunked_head, chunks) = in_chunks.split_at(in_chunks.len() - 15);
    let second = get("/v/second", "");
    let answers = [
        (
            "100 first",
            Answer(vec![send(CONTINUE), Act::Body, send(OK)]),
        ),
        ("no 100", bytes(OK)),
        (
            "100 twice",
            Answer(vec![send(CONTINUE), send(CONTINUE), Act::Body, send(OK)]),
        ),
        (
            "100 late",
            Answer(vec![Act::Pause(60), send(CONTINUE), Act::Body, send(OK)]),
        ),
        (
            "417",
            Answer(vec![send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")]),
        ),
        (
            "417 and close",
            Answer(vec![
                send("HTTP/1.1 417 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
                Act::Close,
            ]),
        ),
        ("final without 100", Answer(vec![send(OK), Act::Body])),
        (
            "102 first",
            Answer(vec![
                send("HTTP/1.1 102 P\r\n\r\n"),
                send(CONTINUE),
                Act::Body,
                send(OK),
            ]),
        ),
        ("close", Answer(vec![Act::Close])),
    ];
    let mut all = Vec::new();
    for (name, answer) in answers {
        let mut add = |how: &str, steps: Vec<Step>| {
            let case = Case::new(format!("expect, {name}, {how}"), steps);
            all.push(case.answered(vec![answer.clone()]));
        };
        add(
            "waits",
            vec![says(head), Step::Await, says(body), says(&second)],
        );
        add(
            "waits for long",
            vec![
                says(head),
                Step::Await,
                Step::Pause(40),
                says(body),
                Step::Await,
                says(&second),
            ],
        );
        add("does not wait", vec![says(&whole), says(&second)]);
        add("never sends", vec![says(head), Step::Await]);
        add(
            "goes on with another",
            vec![says(head), Step::Await, says(&second)],
        );
        add(
            "chunks",
            vec![says(chunked_head), Step::Await, says(chunks), says(&second)],
        );
        add("old", vec![says(&old), says(&second)]);
        let refused = whole.replace("/v/x", "/v/smuggled");
        add("refused", vec![says(&refused), says(&second)]);
        let nobody = head.replace("/v/x", "/nobody");
        add(
            "refused, waits",
            vec![says(nobody), Step::Await, says(body), says(&second)],
        );
        add(
            "no body",
            vec![says(get("/v/x", EXPECT)), Step::Await, says(&second)],
        );
    }
    for value in ["100-Continue", "200-ok", "100-continue, x", ""] {
        let fields = format!("Expect: {value}\r\n");
        let sent = post("/v/x", &fields, "hello") + &second;
        let case = Case::sending(format!("expect {value:?}"), sent);
        all.push(case.answered(vec![Answer(vec![send(CONTINUE), Act::Body, send(OK)])]));
    }
    all
}

/// Responses before the body was read.
fn early() -> Vec<Case> {
    let small = post("/v/x", "", "hello");
    let large = post("/v/x", "", &"x".repeat(200_000));
    let in_chunks = chunked("/v/x", "", "5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n");
    let no = "HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno";
    let no_close = "HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
    let pieces = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
    let answers = [
        ("and reads on", Answer(vec![send(OK), Act::Body])),
        ("refuses and reads on", Answer(vec![send(no), Act::Body])),
        (
            "refuses and closes",
            Answer(vec![send(no_close), Act::Close]),
        ),
        (
            "refuses and resets",
            Answer(vec![send(no_close), Act::Pause(20), Act::Reset]),
        ),
        (
            "half",
            Answer(vec![send(pieces), Act::Body, send("3\r\ntwo\r\n0\r\n\r\n")]),
        ),
        (
            "interim",
            Answer(vec![send("HTTP/1.1 103 H\r\n\r\n"), Act::Body, send(OK)]),
        ),
    ];
    let mut all = Vec::new();
    for (name, answer) in answers {
        for (which, request) in [("small", &small), ("large", &large), ("chunks", &in_chunks)] {
            let second = get("/v/second", "");
            let at_once = Case::sending(
                format!("early, {name}, {which}"),
                format!("{request}{second}"),
            );
            all.push(at_once.answered(vec![answer.clone()]));
            let (first, rest) = request.split_at(request.len() - 4);
            let late = vec![
                says(first),
                Step::Pause(80),
                says(rest),
                Step::Await,
                says(&second),
            ];
            let late = Case::new(format!("early, {name}, {which}, the end late"), late);
            all.push(late.answered(vec![answer.clone()]));
            let never = Case::sending(format!("early, {name}, {which}, no end"), first);
            all.push(never.answered(vec![answer.clone()]));
        }
    }
    all
}

/// Answers to an upgrade.
fn upgrade_answers() -> Vec<(&'static str, Answer)> {
    vec![
        (
            "switched",
            Answer(vec![send(SWITCHING), send("frames"), Act::Tunnel]),
        ),
        (
            "in one piece",
            Answer(vec![send(format!("{SWITCHING}frames")), Act::Tunnel]),
        ),
        (
            "then closed",
            Answer(vec![
                send(format!("{SWITCHING}frames")),
                Act::Pause(30),
                Act::Close,
            ]),
        ),
        (
            "then reset",
            Answer(vec![
                send(format!("{SWITCHING}frames")),
                Act::Pause(30),
                Act::Reset,
            ]),
        ),
        (
            "hints first",
            Answer(vec![
                send("HTTP/1.1 103 H\r\n\r\n"),
                send(SWITCHING),
                Act::Tunnel,
            ]),
        ),
        (
            "refused",
            bytes("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"),
        ),
        ("ignored", bytes(OK)),
        (
            "asked for more",
            bytes(
                "HTTP/1.1 426 Up\r\nUpgrade: x\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            ),
        ),
        (
            "another protocol",
            Answer(vec![
                send(SWITCHING.replace("websocket", "h2c")),
                Act::Tunnel,
            ]),
        ),
        (
            "no upgrade",
            Answer(vec![send("HTTP/1.1 101 S\r\n\r\nframes"), Act::Tunnel]),
        ),
        (
            "with a length",
            Answer(vec![
                send(
                    "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabcdef",
                ),
                Act::Tunnel,
            ]),
        ),
    ]
}

/// Upgrades, wanted and not.
fn upgrades() -> Vec<Case> {
    let request = get("/v/x", WEBSOCKET);
    let mut all = Vec::new();
    for (name, answer) in upgrade_answers() {
        let mut add = |how: &str, steps: Vec<Step>| {
            let case = Case::new(format!("upgrade, {name}, {how}"), steps);
            all.push(case.answered(vec![answer.clone()]));
        };
        add(
            "waits",
            vec![says(&request), Step::Await, says("caller's frames")],
        );
        add("at once", vec![says(&request), says("caller's frames")]);
        add(
            "a request behind",
            vec![says(&request), says(get("/v/smuggled", ""))],
        );
        add(
            "ends",
            vec![
                says(&request),
                Step::Await,
                says("x"),
                Step::Pause(20),
                Step::HalfClose,
            ],
        );
        add(
            "with a body",
            vec![
                says(post("/v/x", WEBSOCKET, "body")),
                Step::Await,
                says("more"),
            ],
        );
        add(
            "old",
            vec![
                says(request.replace("HTTP/1.1", "HTTP/1.0")),
                Step::Await,
                says("more"),
            ],
        );
    }
    all
}
