//! Several requests, connections that end, and credentials that are renewed.

use super::super::cases::{Act, Answer, Case, Step, bytes, chunked, get, last, post, says, send};
use super::super::run::RENEWED;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
pub fn all() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(sequences());
    all.extend(pooled());
    all.extend(leaving());
    all.extend(renewals());
    all
}

/// Requests of one connection.
fn lists() -> Vec<(&'static str, Vec<String>)> {
    let close = |path: &str| get(path, "Connection: close\r\n");
    let old = "GET /v/old HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n";
    let head = "HEAD /v/h HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned();
    vec![
        (
            "gets",
            (0..6)
                .map(|number| get(&format!("/v/{number}"), ""))
                .collect(),
        ),
        (
            "get post get",
            vec![get("/v/1", ""), post("/v/2", "", "body"), get("/v/3", "")],
        ),
        (
            "chunks get chunks",
            vec![
                chunked("/v/1", "", "3\r\nabc\r\n0\r\n\r\n"),
                get("/v/2", ""),
                chunked("/v/3", "", "0\r\nX: y\r\n\r\n"),
            ],
        ),
        ("head get", vec![head.clone(), get("/v/2", ""), head]),
        (
            "close in between",
            vec![get("/v/1", ""), close("/v/2"), get("/v/3", "")],
        ),
        (
            "old in between",
            vec![get("/v/1", ""), old.to_owned(), get("/v/3", "")],
        ),
        ("old twice", vec![old.to_owned(), old.to_owned()]),
    ]
}

/// The same, where not all are forwarded.
fn lists_with_refusals() -> Vec<(&'static str, Vec<String>)> {
    vec![
        (
            "nobody in between",
            vec![get("/v/1", ""), get("/nobody", ""), get("/v/3", "")],
        ),
        (
            "refused in between",
            vec![get("/v/1", ""), get("/v/smuggled", ""), get("/v/3", "")],
        ),
        (
            "refused with a body",
            vec![
                post("/v/smuggled", "", "body"),
                post("/nobody", "", "body"),
                get("/v/3", ""),
            ],
        ),
        (
            "refused with chunks",
            vec![
                chunked("/v/smuggled", "", "3\r\nabc\r\n0\r\n\r\n"),
                get("/v/2", ""),
            ],
        ),
        ("bad path", vec![get("/v/../x", ""), get("/v/2", "")]),
        (
            "bad host",
            vec!["GET /v/x HTTP/1.1\r\n\r\n".to_owned(), get("/v/2", "")],
        ),
        (
            "bad head behind",
            vec![
                get("/v/1", ""),
                "GET /v/x\r\n\r\n".to_owned(),
                get("/v/3", ""),
            ],
        ),
        (
            "trace",
            vec![
                "TRACE /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
                get("/v/2", ""),
            ],
        ),
        (
            "two vendors",
            vec![
                get("/v/1", ""),
                get("/w/2", ""),
                post("/w/3", "", "x"),
                get("/v/4", ""),
            ],
        ),
        (
            "too long",
            vec![post("/w/1", "", &"x".repeat(5000)), get("/w/2", "")],
        ),
        (
            "empty lines between",
            vec![get("/v/1", ""), format!("\r\n\r\n{}", get("/v/2", ""))],
        ),
        (
            "empty line behind a body",
            vec![post("/v/1", "", "body"), format!("\r\n{}", get("/v/2", ""))],
        ),
        (
            "grpc",
            vec![
                post(
                    "/v/1",
                    "Content-Type: application/grpc\r\nTE: trailers\r\n",
                    "x",
                ),
                get("/v/2", ""),
            ],
        ),
    ]
}

/// Requests one behind the other, sent at once and one at a time.
fn sequences() -> Vec<Case> {
    let mut all = Vec::new();
    for (name, list) in lists().into_iter().chain(lists_with_refusals()) {
        all.push(Case::sending(format!("{name}, at once"), list.concat()));
        let one = list.iter().flat_map(|request| [says(request), Step::Await]);
        all.push(Case::new(format!("{name}, one at a time"), one.collect()));
        let anew = list
            .iter()
            .flat_map(|request| [says(request), Step::Reconnect]);
        all.push(Case::new(format!("{name}, on connections"), anew.collect()));
        // Interim responses and empty bodies in between.
        let answers = [
            "HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 None\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "HTTP/1.1 304 Same\r\nContent-Length: 7\r\n\r\n",
        ];
        let case = Case::sending(format!("{name}, answered oddly"), list.concat());
        all.push(case.answered(answers.iter().map(bytes).collect()));
    }
    all
}

/// Connections to the vendor that end when another request is sent on them.
fn pooled() -> Vec<Case> {
    let gone = [
        ("closed", vec![Act::Close]),
        ("reset", vec![Act::Reset]),
        ("closed late", vec![Act::Body, Act::Pause(20), Act::Close]),
        ("reset late", vec![Act::Body, Act::Pause(20), Act::Reset]),
        (
            "closed in a head",
            vec![Act::Body, send("HTTP/1.1 200 O"), Act::Close],
        ),
        (
            "closed in a body",
            vec![
                Act::Body,
                send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok"),
                Act::Close,
            ],
        ),
        (
            "closed after hints",
            vec![Act::Body, send("HTTP/1.1 103 H\r\n\r\n"), Act::Close],
        ),
        (
            "timed out",
            vec![
                send("HTTP/1.1 408 T\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
                Act::Close,
            ],
        ),
    ];
    let requests = [
        ("GET", get("/v/x", "")),
        (
            "HEAD",
            "HEAD /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        ),
        ("POST", post("/v/x", "", "body")),
        ("POST without a body", post("/v/x", "", "")),
        ("PUT", post("/v/x", "", "body").replacen("POST", "PUT", 1)),
        (
            "PUT in chunks",
            chunked("/v/x", "", "4\r\nbody\r\n0\r\n\r\n").replacen("POST", "PUT", 1),
        ),
        (
            "PUT of 100000",
            post("/v/x", "", &"x".repeat(100_000)).replacen("POST", "PUT", 1),
        ),
    ];
    let mut all = Vec::new();
    for (how, acts) in &gone {
        for (what, request) in &requests {
            let steps = vec![
                says(get("/v/first", "")),
                Step::Await,
                says(request),
                Step::Await,
                says(get("/v/last", "")),
            ];
            let answers = vec![
                bytes(OK),
                Answer(acts.clone()),
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain"),
            ];
            all.push(Case::new(format!("reused and {how}, {what}"), steps).answered(answers));
            let answers = vec![
                Answer(acts.clone()),
                bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain"),
            ];
            let steps = vec![says(request), Step::Await, says(get("/v/last", ""))];
            all.push(Case::new(format!("fresh and {how}, {what}"), steps).answered(answers));
        }
    }
    // The vendor says nothing about it, and closes while the connection idles.
    for pause in [30, 60] {
        let steps = vec![
            says(get("/v/1", "")),
            Step::Await,
            Step::Pause(pause),
            says(post("/v/2", "", "body")),
        ];
        let idle = Answer(vec![Act::Body, send(OK), Act::Close]);
        all.push(Case::new(format!("closed while idle, {pause} ms"), steps).answered(vec![idle]));
    }
    // Bytes that nobody asked for wait on the idle connection.
    for more in [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nqueued",
        "x",
        "\r\n",
    ] {
        let queued = Answer(vec![Act::Body, send(OK), Act::Pause(10), send(more)]);
        let steps = vec![
            says(get("/v/1", "")),
            Step::Await,
            Step::Pause(40),
            says(get("/v/2", "")),
        ];
        all.push(Case::new(format!("unasked {more:?}"), steps).answered(vec![queued]));
    }
    all
}

/// Callers that go, or end their side.
fn leaving() -> Vec<Case> {
    let late = Answer(vec![Act::Body, Act::Pause(80), send(OK)]);
    let half = Answer(vec![
        Act::Body,
        send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"),
        Act::Pause(80),
        send("ok"),
    ]);
    let mut all = Vec::new();
    for (name, answer) in [("at once", bytes(OK)), ("late", late), ("in halves", half)] {
        for (what, request) in [
            ("GET", get("/v/x", "")),
            ("POST", post("/v/x", "", "body")),
            ("chunks", chunked("/v/x", "", "4\r\nbody\r\n0\r\n\r\n")),
            ("two", get("/v/x", "") + &get("/v/y", "")),
        ] {
            let ended = vec![says(&request), Step::HalfClose];
            let case = Case::new(format!("ends its side, {what}, answered {name}"), ended);
            all.push(case.answered(vec![answer.clone()]));
            let later = vec![says(&request), Step::Pause(40), Step::HalfClose];
            let case = Case::new(
                format!("ends its side later, {what}, answered {name}"),
                later,
            );
            all.push(case.answered(vec![answer.clone()]));
        }
    }
    all.push(Case::new(
        "ends its side, nothing sent",
        vec![Step::HalfClose],
    ));
    all.push(Case::new(
        "ends its side in a head",
        vec![says("GET /v/x HT"), Step::HalfClose],
    ));
    all
}

/// A 401, after which the credential is renewed and the request sent again.
fn renewals() -> Vec<Case> {
    let no = "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\nno";
    let twice = vec![bytes(no), bytes(no)];
    let early = vec![Answer(vec![send(no), Act::Body]), bytes(OK)];
    let closed = vec![
        last(no.replace("WWW", "Connection: close\r\nWWW")),
        bytes(OK),
    ];
    let in_chunks = "HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    let gone = vec![bytes(no), Answer(vec![Act::Close]), bytes(OK)];
    let large = "x".repeat(70_000);
    let cases: [(&str, String, Vec<Answer>); RENEWED] = [
        ("GET", get("/t0/x", ""), vec![bytes(no), bytes(OK)]),
        (
            "POST",
            post("/t1/x", "", "body"),
            vec![bytes(no), bytes(OK)],
        ),
        (
            "chunks",
            chunked("/t2/x", "", "4\r\nbody\r\n0\r\n\r\n"),
            vec![bytes(in_chunks), bytes(OK)],
        ),
        (
            "too large to be sent again",
            post("/t3/x", "", &large),
            vec![bytes(no), bytes(OK)],
        ),
        ("twice", get("/t4/x", ""), twice),
        ("early", post("/t5/x", "", "body"), early),
        ("closed", post("/t6/x", "", "body"), closed),
        ("gone", get("/t7/x", ""), gone),
    ];
    let mut all = Vec::new();
    for (number, (name, request, answers)) in cases.into_iter().enumerate() {
        let sent = request + &get(&format!("/t{number}/second"), "");
        let case = Case::sending(format!("401, {name}"), sent).answered(answers);
        all.push(Case {
            renews: true,
            ..case
        });
    }
    all
}
