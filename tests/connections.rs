//! How long a connection may do nothing, and what it costs the others.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::script::{Reply, Server};
use crate::support::{PATIENCE, Proxy, eventually, status_of};

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
    let echo = countersign_demo::echo().await.unwrap();
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
                // The head and the body may come one after the other.
                let mut answer = String::new();
                while !answer.ends_with("GET /x") {
                    let mut some = [0; 1024];
                    let read = stream.read(&mut some).unwrap();
                    assert_ne!(read, 0, "closed after {answer:?}");
                    answer.push_str(&String::from_utf8_lossy(&some[..read]));
                }
                assert_eq!(status_of(&answer), 200);
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
    // Of those that had begun one; saying nothing is no request.
    let given_up = eventually("their lines", || {
        let lines = proxy.stdout();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let of_heads = lines.filter(|line: &serde_json::Value| line["status"] == 408);
        Some(of_heads.count()).filter(|count| *count >= 2)
    });
    assert_eq!(given_up, 2);
}

/// A proxy whose only listener is `listener`, in front of an echo.
async fn behind(listener: &str) -> (Proxy, countersign_demo::MockServer, tempfile::TempDir) {
    let echo = countersign_demo::echo().await.unwrap();
    let (proxy, dir) = before(&echo.url(), listener).await;
    (proxy, echo, dir)
}

/// The proxy before another vendor.
async fn before(vendor: &str, listener: &str) -> (Proxy, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let yaml = format!(
        "listeners: [ {listener} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n  v:\n    upstream: {vendor}\n    allow_plaintext: true\n"
    );
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml))
        .await
        .unwrap();
    (proxy, dir)
}

const CLOSED: &str = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_load_balancer_says_who_is_calling() {
    let (proxy, _echo, _dir) =
        behind("{ bind: 127.0.0.1:0, proxy_protocol: { trusted: [ 127.0.0.0/8 ] } }").await;
    let first = format!("PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n{CLOSED}");
    assert_eq!(status_of(&proxy.raw(first)), 200);
    let mut second =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x08\xc0\0\x02\x01\x12\x67\x01\xbb".to_vec();
    second.extend_from_slice(CLOSED.as_bytes());
    assert_eq!(status_of(&proxy.raw(second)), 200);
    eventually("both are logged", || {
        let log = proxy.stdout();
        (log.contains("192.0.2.7:4711") && log.contains("192.0.2.8:4711")).then_some(())
    });
    // In two pieces, wherever it is cut.
    let header = "PROXY TCP4 192.0.2.9 192.0.2.1 1 443\r\n";
    for cut in 1..header.len() {
        let answer = tokio::task::block_in_place(|| {
            let mut stream = TcpStream::connect(proxy.data).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&header.as_bytes()[..cut]).unwrap();
            std::thread::sleep(Duration::from_millis(5));
            stream
                .write_all((header[cut..].to_owned() + CLOSED).as_bytes())
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(status_of(&answer), 200, "cut after {cut}: {answer}");
    }
    // Without the header nothing is served.
    assert_eq!(proxy.raw(CLOSED), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_load_balancer_cannot_say_who_is_calling() {
    let (proxy, _echo, _dir) =
        behind("{ bind: 127.0.0.1:0, proxy_protocol: { trusted: [ 10.0.0.0/8 ] } }").await;
    assert_eq!(status_of(&proxy.raw(CLOSED)), 200);
    let forged = proxy.raw(format!("PROXY TCP4 192.0.2.7 192.0.2.1 1 2\r\n{CLOSED}"));
    assert_ne!(status_of(&forged), 200, "{forged}");
    let said = eventually("the first is logged", || {
        let said = proxy.stdout();
        said.contains("\"status\":200").then_some(said)
    });
    assert!(!said.contains("192.0.2.7"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_http2_is_spoken_where_it_is_configured_and_short_requests_never_wait() {
    let (proxy, _echo, _dir) = behind("{ bind: 127.0.0.1:0, h2c: true }").await;
    // Shorter than the preface, then the rest.
    let mut stream = TcpStream::connect(proxy.data).unwrap();
    let short = "GET /v HTTP/1.0\r\n\r\n";
    stream.write_all(short.as_bytes()).unwrap();
    let mut answer = String::new();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(status_of(&answer), 400, "{answer}");

    assert_eq!(over_http2(&proxy).await, Ok(200));
    assert_eq!(status_of(&proxy.raw(CLOSED)), 200);

    let (plain, _echo, _dir) = behind("{ bind: 127.0.0.1:0 }").await;
    assert!(over_http2(&plain).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_in_one_go_are_served_one_after_the_other() {
    let (proxy, echo, _dir) = behind("{ bind: 127.0.0.1:0 }").await;
    let all: String = ["one", "two", "three"]
        .map(|name| format!("GET /v/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        .concat();
    // The head of the last is split.
    let answers = tokio::task::block_in_place(|| {
        let mut stream = TcpStream::connect(proxy.data).unwrap();
        let (now, later) = all.split_at(all.len() - 10);
        stream.write_all(now.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream
            .write_all((later.to_owned() + CLOSED).as_bytes())
            .unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        answers
    });
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 4, "{answers}");
    assert_eq!(answers.matches("Connection: close").count(), 1, "{answers}");
    let targets: Vec<_> = echo
        .requests()
        .iter()
        .map(|request| {
            let head = String::from_utf8_lossy(&request.raw).into_owned();
            head.split(' ').nth(1).unwrap().to_owned()
        })
        .collect();
    assert_eq!(targets, ["/one", "/two", "/three", "/x"]);

    // What the gate refuses, it refuses behind another request as well.
    for (second, status) in [
        ("GET /v/../x HTTP/1.1\r\nHost: localhost\r\n", 400),
        ("GET  /v/x HTTP/1.1\r\nHost: localhost\r\n", 400),
        ("GET /v/x HTTP/1.1\r\nHost: evil.example\r\n", 403),
    ] {
        let both =
            CLOSED.replace("Connection: close\r\n", "") + second + "Connection: close\r\n\r\n";
        let answers = proxy.raw(both);
        let last = answers.rfind("HTTP/1.1 ").unwrap();
        assert!(last > 0, "{second}: {answers}");
        assert_eq!(status_of(&answers[last..]), status, "{second}: {answers}");
    }
    assert_eq!(echo.requests().len(), 4 + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_behind_a_request_disturbs_nothing() {
    let slow = Server::start(|asked| async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // It closes after each answer, and says so: a POST on a pooled connection that is gone fails.
        Reply::whole(
            "200 OK",
            "Connection: close\r\n",
            asked.body.len().to_string(),
        )
    })
    .await;
    let (proxy, _dir) = before(&slow.url(""), "{ bind: 127.0.0.1:0 }").await;
    let get = "GET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let post = "POST /v/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc";
    let large = format!(
        "POST /v/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n{}",
        "x".repeat(9000)
    );
    let chunks = "POST /v/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nX-End: 1\r\n\r\n";
    for (first, length) in [(get, 0), (post, 3), (&*large, 9000), (chunks, 3)] {
        let served = slow.asked().len();
        let answers = tokio::task::block_in_place(|| {
            let mut stream = TcpStream::connect(proxy.data).unwrap();
            stream.write_all(first.as_bytes()).unwrap();
            // An empty line too many, then the next request, while the vendor is still at it. Before it
            // has the request, they could come with the end of its body.
            eventually("the vendor has it", || {
                (slow.asked().len() > served).then_some(())
            });
            stream.write_all(b"\r\n").unwrap();
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(CLOSED.as_bytes()).unwrap();
            let mut answers = String::new();
            stream.read_to_string(&mut answers).unwrap();
            answers
        });
        assert_eq!(
            answers.matches("HTTP/1.1 200 ").count(),
            2,
            "{first}: {answers}"
        );
        assert_eq!(slow.asked().len() - served, 2, "{first}");

        // The same in one go.
        let answers = proxy.raw(format!("{first}{first}{CLOSED}"));
        let length = length.to_string();
        let lengths = answers.split("\r\n\r\n").skip(1);
        let lengths: Vec<_> = lengths
            .map(|text| text.split("HTTP/1.1").next().unwrap())
            .collect();
        assert_eq!(lengths, [&*length, &*length, "0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_large_is_refused_before_it_is_whole() {
    let (proxy, echo, _dir) = behind("{ bind: 127.0.0.1:0 }").await;
    let fields = format!(
        "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX: {}",
        "a".repeat(100_000)
    );
    let target = format!("GET /v/{}", "a".repeat(100_000));
    let no_http = "\u{16}\u{3}\u{1} is how TLS begins\r\n\r\n".to_owned();
    for (open, status) in [(fields, 431), (target, 414), (no_http, 400)] {
        let answer = tokio::task::block_in_place(|| {
            let mut stream = TcpStream::connect(proxy.data).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            stream.write_all(open.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(status_of(&answer), status, "{answer}");
        let line = the_line_of(&proxy, status);
        assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!(line["reason"], "bad_request", "{line}");
        assert!(line["method"].is_null() && line["path"].is_null(), "{line}");
        if status != 400 {
            assert!(answer.contains("application/problem+json"), "{answer}");
            assert!(answer.contains("Connection: close"), "{answer}");
            let id = line["request_id"].as_str().unwrap();
            assert!(answer.contains(&format!("X-Request-Id: {id}")), "{answer}");
        }
    }
    assert_eq!(echo.requests().len(), 0);
    assert_eq!(status_of(&proxy.raw(CLOSED)), 200);
    let said = proxy.stderr();
    assert!(!said.contains("ERROR"), "anyone can do that: {said}");
}

/// The line, and the count, of the only head that was given this status.
fn the_line_of(proxy: &Proxy, status: u16) -> serde_json::Value {
    let found = eventually("its line", || {
        let lines = proxy.stdout();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let of_it = lines.filter(|line: &serde_json::Value| line["status"] == status);
        Some(of_it.collect::<Vec<_>>()).filter(|lines| !lines.is_empty())
    });
    assert_eq!(found.len(), 1, "{found:?}");
    let (_, metrics) = proxy.admin("/metrics");
    let series = format!(
        "countersign_requests_total{{caller=\"none\",method=\"other\",status=\"{status}\",vendor=\"none\"}} 1"
    );
    assert!(metrics.contains(&series), "{series}");
    found[0].clone()
}

/// The status of a GET by HTTP/2 with prior knowledge.
async fn over_http2(proxy: &Proxy) -> Result<u16, String> {
    let stream = tokio::net::TcpStream::connect(proxy.data).await.unwrap();
    let text = |cause: h2::Error| cause.to_string();
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(text)?;
    let driving = tokio::spawn(connection);
    let request = http::Request::get("http://localhost/v/x").body(()).unwrap();
    let (answer, _) = sender.send_request(request, true).map_err(text)?;
    let answer = answer.await.map_err(text);
    driving.abort();
    Ok(answer?.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_sent_all_it_will_gets_its_response() {
    let vendor = Server::start(async |_| {
        // Longer than it takes to see that nothing more will come.
        tokio::time::sleep(Duration::from_millis(500)).await;
        Reply::whole("200 OK", "", "late, and whole")
    })
    .await;
    let (proxy, _dir) = before(&vendor.url(""), "{ bind: 127.0.0.1:0 }").await;
    for request in [
        HEAD.to_owned(),
        "POST /v/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody".to_owned(),
    ] {
        let answer = tokio::task::block_in_place(|| {
            let mut stream = TcpStream::connect(proxy.data).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(8)))
                .unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        });
        assert_eq!(status_of(&answer), 200, "{request}: {answer}");
        assert!(answer.ends_with("late, and whole"), "{request}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_the_parser_refuses_gets_a_problem_a_line_and_a_count() {
    let (proxy, _echo, _dir) = behind("{ bind: 127.0.0.1:0 }").await;
    let many = "X-One: 1\r\n".repeat(300);
    let heads = [
        "GET /v/x HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n".to_owned(),
        "GET /v/x HTTP/9.9\r\nHost: localhost\r\n\r\n".to_owned(),
        "G(T /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        "GET /v/x HTTP/1.1\r\nHost: localhost\r\nX-\x07: 1\r\n\r\n".to_owned(),
        format!("GET /v/x HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
        "\x16\x03\x01\x02\0\x01\0\x01\x7c\r\n\r\n".to_owned(),
    ];
    // On a connection of its own, and behind a request that was served.
    for (nth, head) in heads.iter().enumerate() {
        for before in ["", HEAD] {
            let said = proxy.raw(format!("{before}{head}"));
            let start = said.rfind("HTTP/1.1 400 ");
            let answer = &said[start.unwrap_or_else(|| panic!("{head:?}: {said}"))..];
            let (fields, body) = answer.split_once("\r\n\r\n").unwrap();
            let problem: serde_json::Value =
                serde_json::from_str(body).unwrap_or_else(|_| panic!("{head:?}: {said}"));
            assert_eq!(problem["reason"], "bad_request", "{head:?}");
            assert_eq!(problem["status"], 400, "{head:?}");
            assert_eq!(problem["vendor"], serde_json::Value::Null, "{head:?}");
            let fields = fields.to_lowercase();
            for field in [
                "content-type: application/problem+json",
                "connection: close",
                "proxy-status: countersign; error=http_request_error; details=\"bad_request\"",
            ] {
                assert!(fields.contains(field), "{head:?}: {fields}");
            }
            let id = problem["request_id"].as_str().unwrap().to_owned();
            assert!(fields.contains(&format!("x-request-id: {id}")), "{fields}");
            let line = eventually("its line", || {
                let lines = proxy.stdout();
                lines
                    .lines()
                    .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                    .find(|line| line["request_id"] == *id)
            });
            assert_eq!(line["status"], 400);
            assert_eq!(line["reason"], "bad_request");
            assert_eq!(line["method"], serde_json::Value::Null);
            assert_eq!(line["path"], serde_json::Value::Null);
            let refused = nth * 2 + 1 + usize::from(!before.is_empty());
            let series = format!(
                "countersign_refused_total{{reason=\"bad_request\",vendor=\"none\"}} {refused}\n"
            );
            eventually("counted", || {
                proxy.admin("/metrics").1.contains(&series).then_some(())
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_an_authority_over_http_2_gets_a_problem_and_a_line() {
    let (proxy, _echo, _dir) = behind("{ bind: 127.0.0.1:0, h2c: true }").await;
    let mut caller = crate::support::origin::Caller::connect(proxy.data).await;
    let got = caller.ask(http::Request::get("/v/x"), b"").await;
    assert_eq!(got.status, 400, "{got:?}");
    let problem: serde_json::Value = serde_json::from_str(&got.body).unwrap_or_default();
    assert_eq!(problem["reason"], "bad_request", "{got:?}");
    let id = problem["request_id"].as_str().unwrap().to_owned();
    eventually("its line", || proxy.stdout().contains(&id).then_some(()));
}

/// A vendor that keeps its connections and answers each request by its head.
fn keeping(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|read| read > 0) {
                    head.push(byte[0]);
                    if head.ends_with(b"\r\n\r\n") {
                        let reply = answer(&String::from_utf8_lossy(&head));
                        stream.write_all(reply.as_bytes()).unwrap();
                        head.clear();
                    }
                }
            });
        }
    });
    (url, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_401_costs_no_connection_on_either_side() {
    let (vendor, connections) = keeping(|head| {
        if head.contains("Bearer token-1\r\n") {
            "HTTP/1.1 401 No\r\nContent-Length: 7\r\n\r\nrefused".to_owned()
        } else {
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()
        }
    });
    let granted = Arc::new(AtomicUsize::new(0));
    let tokens = Server::start(move |_| {
        let nth = granted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            Reply::json(format!(
                r#"{{"access_token":"token-{nth}","token_type":"Bearer","expires_in":3600}}"#
            ))
        }
    })
    .await;
    let auth = format!(
        "    auth: {{ client_credentials: {{ token_url: \"{}\", client_id: c, client_secret: {{ value: s }} }} }}\n",
        tokens.url("/token")
    );
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\nvendors:\n  v:\n    upstream: {vendor}\n    allow_plaintext: true\n{auth}"
    );
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().to_owned();
    let proxy = tokio::task::spawn_blocking(move || Proxy::start(&directory, &yaml))
        .await
        .unwrap();
    let answers = proxy.raw(format!("{HEAD}{HEAD}{CLOSED}"));
    assert_eq!(
        answers.matches("HTTP/1.1 200 OK\r\n").count(),
        3,
        "{answers}"
    );
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let metrics = proxy.admin("/metrics").1;
    let reused = "countersign_upstream_connections_total{reused=\"true\",vendor=\"v\"} 3\n";
    assert!(metrics.contains(reused), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_responses_reach_callers_of_both_versions_and_not_those_of_http_1_0() {
    let (vendor, _) = keeping(|_| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
        format!("{hints}{hints}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    });
    let (proxy, _dir) = before(&vendor, "{ bind: 127.0.0.1:0, h2c: true }").await;
    for (request, hints) in [
        (CLOSED.to_owned(), 2),
        ("GET /v/x HTTP/1.0\r\nHost: localhost\r\n\r\n".to_owned(), 0),
    ] {
        let answer = proxy.raw(&request);
        assert_eq!(answer.matches("HTTP/1.1 103 ").count(), hints, "{answer}");
        assert_eq!(answer.matches("</v/style.css>").count(), hints, "{answer}");
        assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    }

    let mut caller = crate::support::origin::Caller::connect(proxy.data).await;
    let request = http::Request::get("http://localhost/v/x").body(()).unwrap();
    let (mut response, _) = caller.sender().send_request(request, true).unwrap();
    for _ in 0..2 {
        let hint = std::future::poll_fn(|cx| response.poll_informational(cx));
        let hint = tokio::time::timeout(PATIENCE, hint).await.unwrap();
        let hint = hint.unwrap().unwrap();
        assert_eq!(hint.status(), 103);
        assert_eq!(hint.headers()["link"], "</v/style.css>");
    }
    assert_eq!(response.await.unwrap().status(), 200);
}
