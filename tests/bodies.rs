//! Bodies pass as they come: at once, through little memory, unchanged.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::support::origin::{Caller, Conduct, Origin, hear_a_head};
use crate::support::peers::Pki;
use crate::support::peers::streams::Nginx;
use crate::support::script::{Reply, Server};
use crate::support::{PATIENCE, Proxy, eventually, status_of};

const TOKEN: &str = "Streams+of/tokens=0123456789";

/// The proxy in front of each of `vendors`, by name; its listener speaks HTTP/2, too.
fn front(pki: &Pki, vendors: &[(&str, &str)]) -> Proxy {
    let mut yaml = "listeners: [ { bind: 127.0.0.1:0, h2c: true } ]\nadmin: { bind: 127.0.0.1:0 }\ndrain: { delay: 0s }\nvendors:\n".to_owned();
    for (name, url) in vendors {
        let _ = write!(
            yaml,
            "  {name}:\n    upstream: {url}\n    ca: ca.pem\n    allow_plaintext: true\n    limits: {{ body: 0 }}\n    auth: {{ bearer: {{ token: {{ value: \"{TOKEN}\" }} }} }}\n"
        );
    }
    Proxy::start(pki.dir(), &yaml)
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads up to the end of a head.
fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn get(proxy: &Proxy, target: &str, fields: &str) -> String {
    proxy.raw(format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n"
    ))
}

/// The proxy's memory, bytes: now, or the most it ever was.
fn memory(proxy: &Proxy, which: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

const MIB: u64 = 1024 * 1024;

/// How much is sent each way; more with `COUNTERSIGN_TEST_BODY_MIB`.
fn large() -> u64 {
    let mib = std::env::var("COUNTERSIGN_TEST_BODY_MIB");
    mib.map_or(256, |mib| mib.parse().unwrap()) * MIB
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_through_little_memory() {
    let pki = Pki::new();
    let nginx = Nginx::start(&pki);
    std::fs::File::create(nginx.file("large"))
        .unwrap()
        .set_len(large())
        .unwrap();
    let proxy = front(&pki, &[("h1", &nginx.http1), ("h2", &nginx.both)]);
    // What a first request costs is no body's doing.
    for vendor in ["h1", "h2"] {
        assert_eq!(
            status_of(&get(&proxy, &format!("/{vendor}/small"), "")),
            200
        );
    }
    let before = memory(&proxy, "VmRSS");

    for vendor in ["h1", "h2"] {
        tokio::task::block_in_place(|| {
            download_over_h1(&proxy, &format!("/{vendor}/large"));
            upload_over_h1(&proxy, &format!("/{vendor}/put/{vendor}-1"));
        });
        let stored = std::fs::metadata(nginx.file(&format!("put/{vendor}-1")));
        assert_eq!(stored.unwrap().len(), large());
    }
    over_h2(&proxy, "/h2/large", "/h2/put/h2-2").await;
    let stored = std::fs::metadata(nginx.file("put/h2-2"));
    assert_eq!(stored.unwrap().len(), large());

    let grown = memory(&proxy, "VmHWM").saturating_sub(before);
    println!(
        "{} MiB each way: {} KiB more memory than {} KiB",
        large() / MIB,
        grown / 1024,
        before / 1024
    );
    assert!(grown < 30 * MIB, "{grown}");
}

fn download_over_h1(proxy: &Proxy, target: &str) {
    let mut stream = connect(proxy.data);
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let head = head(&mut stream);
    assert_eq!(status_of(&head), 200, "{head}");
    // Nobody reads: the vendor must wait, not the proxy's memory fill.
    std::thread::sleep(Duration::from_secs(1));
    let read = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    assert_eq!(read, large());
}

fn upload_over_h1(proxy: &Proxy, target: &str) {
    let mut stream = connect(proxy.data);
    let request = format!(
        "PUT {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        large()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let piece = vec![b'x'; 64 * 1024];
    for _ in 0..large() / piece.len() as u64 {
        stream.write_all(&piece).unwrap();
    }
    let head = head(&mut stream);
    assert_eq!(status_of(&head), 201, "{head}");
}

async fn over_h2(proxy: &Proxy, download: &str, upload: &str) {
    let mut caller = Caller::connect(proxy.data).await;
    let request = Request::get(format!("http://localhost{download}"));
    let (response, _) = caller
        .sender()
        .send_request(request.body(()).unwrap(), true)
        .unwrap();
    let mut body = response.await.unwrap().into_body();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut read = 0;
    while let Some(some) = body.data().await {
        let some = some.unwrap();
        read += some.len() as u64;
        body.flow_control().release_capacity(some.len()).unwrap();
    }
    assert_eq!(read, large());

    let request =
        Request::put(format!("http://localhost{upload}")).header("content-length", large());
    let (response, mut stream) = caller
        .sender()
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let mut left = large();
    while left > 0 {
        stream.reserve_capacity(64 * 1024);
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let some = (room.unwrap().unwrap() as u64).min(left);
        left -= some;
        let piece = Bytes::from(vec![b'x'; usize::try_from(some).unwrap()]);
        stream.send_data(piece, left == 0).unwrap();
    }
    assert_eq!(response.await.unwrap().status(), 201);
}

const EVENTS: [&str; 2] = ["data: one\n\n", "data: two St\n\n"];

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_are_sent() {
    let pki = Pki::new();
    let heard = Arc::new(Notify::new());
    let next = heard.clone();
    let over_h2 = Origin::start(&pki, move |mut exchange| {
        let next = next.clone();
        async move {
            let mut stream = exchange.begin(200, &[("content-type", "text/event-stream")]);
            for event in EVENTS {
                stream
                    .send_data(Bytes::from_static(event.as_bytes()), false)
                    .unwrap();
                next.notified().await;
            }
            stream.send_data(Bytes::new(), true).unwrap();
        }
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let over_h1 = format!("http://{}", listener.local_addr().unwrap());
    let next = heard.clone();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            for event in EVENTS {
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                stream.write_all(chunk.as_bytes()).await.unwrap();
                next.notified().await;
            }
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
    });
    let proxy = front(&pki, &[("h1", &over_h1), ("h2", &over_h2.url)]);

    for vendor in ["h1", "h2"] {
        let (to, listener) = (proxy.data, heard.clone());
        tokio::task::spawn_blocking(move || {
            let mut stream = connect(to);
            let request = format!("GET /{vendor}/x HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            head(&mut stream);
            // The vendor says nothing more until we have heard what it said.
            for event in EVENTS {
                let mut chunk = vec![0; format!("{:x}\r\n{event}\r\n", event.len()).len()];
                stream.read_exact(&mut chunk).unwrap();
                assert!(String::from_utf8_lossy(&chunk).contains(event), "{vendor}");
                listener.notify_one();
            }
            let mut end = [0; 5];
            stream.read_exact(&mut end).unwrap();
            assert_eq!(&end, b"0\r\n\r\n");
        })
        .await
        .unwrap();

        let mut caller = Caller::connect(proxy.data).await;
        let request = Request::get(format!("http://localhost/{vendor}/x"));
        let (response, _) = caller
            .sender()
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        let mut body = response.await.unwrap().into_body();
        for event in EVENTS {
            let some = body.data().await.unwrap().unwrap();
            assert_eq!(some, event, "{vendor}");
            heard.notify_one();
        }
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_of_a_small_answer_does_not_wait_for_the_rest() {
    let pki = Pki::new();
    let heard = Arc::new(Notify::new());
    let next = heard.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
            for piece in [head, "hello", "world"] {
                stream.write_all(piece.as_bytes()).await.unwrap();
                next.notified().await;
            }
        }
    });
    let proxy = front(&pki, &[("v", &url)]);
    tokio::task::block_in_place(|| {
        let mut stream = connect(proxy.data);
        stream
            .write_all(b"GET /v/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        head(&mut stream);
        for piece in ["hello", "world"] {
            heard.notify_one();
            let mut some = [0; 5];
            stream.read_exact(&mut some).unwrap();
            assert_eq!(some, piece.as_bytes());
        }
        heard.notify_one();
    });
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_answers_the_same_through_the_proxy_as_without_it() {
    let pki = Pki::new();
    let nginx = Nginx::start(&pki);
    let proxy = front(&pki, &[("h1", &nginx.http1), ("h2", &nginx.both)]);
    let client = pki.client();
    let stored = client
        .get(format!("{}/small", nginx.http1))
        .send()
        .await
        .unwrap();
    let tag = stored.headers()["etag"].to_str().unwrap().to_owned();
    for (method, path, field) in [
        ("GET", "/small", ("accept-encoding", "identity")),
        ("GET", "/small", ("accept-encoding", "gzip")),
        ("GET", "/small", ("range", "bytes=2-4")),
        ("GET", "/small", ("range", "bytes=0-1,4-")),
        ("GET", "/small", ("range", "bytes=99-")),
        ("GET", "/small", ("if-none-match", &tag)),
        ("HEAD", "/small", ("accept", "*/*")),
        ("HEAD", "/empty", ("accept", "*/*")),
        ("GET", "/empty", ("accept", "*/*")),
        ("GET", "/missing", ("accept", "*/*")),
        ("OPTIONS", "/small", ("accept", "*/*")),
    ] {
        let ask = async |url: String| {
            let method = method.parse().unwrap();
            let answer = client.request(method, url).header(field.0, field.1);
            let answer = answer.send().await.unwrap();
            let status = answer.status();
            let mut fields = answer.headers().clone();
            // Ours, or a matter of the connection.
            for ours in [
                "via",
                "x-request-id",
                "date",
                "connection",
                "transfer-encoding",
            ] {
                fields.remove(ours);
            }
            let boundary = fields.get("content-type").cloned();
            if boundary.is_some_and(|kind| kind.to_str().unwrap().contains("boundary=")) {
                // A new one each time.
                fields.remove("content-type");
                return (status, fields, None);
            }
            (status, fields, Some(answer.bytes().await.unwrap()))
        };
        let direct = ask(format!("{}{path}", nginx.http1)).await;
        for vendor in ["h1", "h2"] {
            let through = ask(format!("http://{}/{vendor}{path}", proxy.data)).await;
            assert_eq!(through, direct, "{vendor} {method} {path} {field:?}");

            let request = Request::builder()
                .method(method)
                .uri(format!("http://localhost/{vendor}{path}"))
                .header(field.0, field.1);
            let over_h2 = Caller::connect(proxy.data).await.ask_bytes(request).await;
            assert_eq!(over_h2.0, direct.0, "h2 {vendor} {method} {path}");
            for name in [
                "content-length",
                "content-range",
                "content-encoding",
                "etag",
                "allow",
            ] {
                let (got, wanted) = (over_h2.1.get(name), direct.1.get(name));
                assert_eq!(got, wanted, "h2 {vendor} {method} {path} {name}");
            }
            if let Some(body) = &direct.2 {
                assert_eq!(over_h2.2, *body, "h2 {vendor} {method} {path}");
            }
        }
    }
    let requests = nginx.requests();
    assert!(
        requests
            .iter()
            .any(|line| line.starts_with("HTTP/2.0 HEAD"))
    );
    assert!(
        requests
            .iter()
            .any(|line| line.starts_with("HTTP/1.1 HEAD"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_post_is_lost_to_connections_that_nginx_ends_after_five_requests() {
    let pki = Pki::new();
    let nginx = Nginx::start(&pki);
    let proxy = front(&pki, &[("h2", &nginx.both)]);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, url) = (pki.client(), format!("http://{}/h2/answer", proxy.data));
        asking.spawn(async move {
            for _ in 0..25 {
                let answer = client.post(&url).body("a body").send().await.unwrap();
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.text().await.unwrap(), "nginx says so");
            }
        });
    }
    asking.join_all().await;
    let posts = |line: &&String| line.starts_with("HTTP/2.0 POST");
    // It writes its log behind its answers.
    let count = eventually("logged", || {
        let count = nginx.requests().iter().filter(posts).count();
        (count >= 200).then_some(count)
    });
    assert_eq!(count, 200);
}

/// Answers as soon as there is a head, over HTTP/1.1, and reads no more.
async fn hasty() -> (String, tokio::task::AbortHandle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly";
            stream.write_all(answer.as_bytes()).await.unwrap();
            kept.push(stream);
        }
    });
    (url, serving.abort_handle())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_is_answered_early_is_told_when_its_connection_ends() {
    let pki = Pki::new();
    // Its window is open for one byte at a time, and it reads no body.
    let over_h2 = Origin::conducted(
        &pki,
        |_| Conduct::Window(1),
        |exchange| async { exchange.answer("early") },
    )
    .await;
    let (over_h1, serving) = hasty().await;
    let proxy = front(&pki, &[("h1", &over_h1), ("h2", &over_h2.url)]);
    // After this, it is known how large the window is.
    tokio::task::block_in_place(|| assert_eq!(status_of(&get(&proxy, "/h2/x", "")), 200));

    for vendor in ["h1", "h2"] {
        for size in [100, 60_000, 1_000_000] {
            let to = proxy.data;
            tokio::task::spawn_blocking(move || {
                let mut stream = connect(to);
                let post = format!(
                    "POST /{vendor}/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
                );
                let (head, body) = post_and_hear(&mut stream, &post, size);
                assert_eq!(
                    (status_of(&head), &*body),
                    (200, "early"),
                    "{vendor} {size}"
                );
                if !head.to_lowercase().contains("\r\nconnection: close\r\n") {
                    let (again, _) = post_and_hear(&mut stream, &post, size);
                    assert_eq!(status_of(&again), 200, "{vendor} {size}");
                }
            })
            .await
            .unwrap();

            // Over HTTP/2 the connection is kept whatever becomes of a stream.
            let mut caller = Caller::connect(proxy.data).await;
            for _ in 0..2 {
                let request = Request::post(format!("http://localhost/{vendor}/x"));
                let got = caller.ask(request, &vec![b'x'; size]).await;
                assert_eq!((got.status, &*got.body), (200, "early"), "{vendor} {size}");
            }
        }
    }
    serving.abort();
}

/// Sends a request and reads its answer, whose body is of five bytes.
fn post_and_hear(stream: &mut TcpStream, head_of_it: &str, size: usize) -> (String, String) {
    let mut sending = stream.try_clone().unwrap();
    let request = [head_of_it.as_bytes(), &vec![b'x'; size]].concat();
    // It may be answered, and its connection closed, before all of it is sent.
    let sending = std::thread::spawn(move || sending.write_all(&request));
    let head = head(stream);
    let mut body = [0; 5];
    stream.read_exact(&mut body).unwrap();
    if !head.to_lowercase().contains("\r\nconnection: close\r\n") {
        sending.join().unwrap().unwrap();
    }
    (head, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_http_1_has_of_its_own_is_kept() {
    let pki = Pki::new();
    let vendor = Server::start(|asked| async move {
        let body = String::from_utf8(asked.body).unwrap();
        Reply::whole(
            "299 Rather Fine",
            "X-OddLy: Spelled\r\n",
            format!("{} {body}", asked.target),
        )
    })
    .await;
    let proxy = front(&pki, &[("v", &vendor.url(""))]);
    // A GET with a body, and a lone question mark.
    let answer = tokio::task::block_in_place(|| {
        proxy.raw("GET /v/x? HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody")
    });
    assert!(
        answer.starts_with("HTTP/1.1 299 Rather Fine\r\n"),
        "{answer}"
    );
    assert!(answer.contains("\r\nX-OddLy: Spelled\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n/x? body"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_http_1_0_gets_no_chunks() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            let asked = String::from_utf8_lossy(&asked[..length]).into_owned();
            let answer = if asked.starts_with("GET /chunks") {
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-End: 1\r\n\r\n"
            } else if asked.starts_with("GET /end") {
                "HTTP/1.0 200 OK\r\n\r\nhello"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let proxy = front(&pki, &[("v", &url)]);
    for (path, keeps) in [("chunks", false), ("end", false), ("length", true)] {
        for wish in ["", "Connection: keep-alive\r\n"] {
            let request = format!("GET /v/{path} HTTP/1.0\r\nHost: localhost\r\n{wish}\r\n");
            let (mut stream, keeps) = (connect(proxy.data), keeps && !wish.is_empty());
            let (head, body) = tokio::task::block_in_place(|| {
                stream.write_all(request.as_bytes()).unwrap();
                let head = head(&mut stream).to_lowercase();
                let mut body = Vec::new();
                if keeps {
                    body.resize(5, 0);
                    stream.read_exact(&mut body).unwrap();
                } else {
                    stream.read_to_end(&mut body).unwrap();
                }
                (head, body)
            });
            assert!(head.starts_with("http/1.1 200 "), "{path}: {head}");
            assert!(!head.contains("transfer-encoding"), "{path}: {head}");
            assert_eq!(
                head.contains("connection: keep-alive"),
                keeps,
                "{path}: {head}"
            );
            assert_eq!(String::from_utf8_lossy(&body), "hello", "{path}: {head}");
        }
    }
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_may_have_a_body() {
    let pki = Pki::new();
    let over_h1 = Server::start(|asked| async move {
        let body = String::from_utf8(asked.body).unwrap();
        Reply::whole("200 OK", "", format!("{} {body}", asked.target))
    })
    .await;
    let over_h2 = Origin::start(&pki, |mut exchange| async move {
        let body = exchange.body().await;
        assert_eq!(exchange.request.method(), "GET");
        let path = exchange.request.uri().path().as_bytes().to_vec();
        exchange.answer([path, body].join(&b' '));
    })
    .await;
    let proxy = front(&pki, &[("h1", &over_h1.url("")), ("h2", &over_h2.url)]);
    for vendor in ["h1", "h2"] {
        for framing in [
            "Content-Length: 4\r\n\r\nbody",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        ] {
            let answer = tokio::task::block_in_place(|| {
                proxy.raw(format!(
                    "GET /{vendor}/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{framing}"
                ))
            });
            assert!(answer.ends_with("\r\n\r\n/x body"), "{vendor}: {answer}");
        }
        let mut caller = Caller::connect(proxy.data).await;
        let request = Request::get(format!("http://localhost/{vendor}/x"));
        let got = caller.ask(request, b"body").await;
        assert_eq!((got.status, &*got.body), (200, "/x body"), "{vendor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_100_reaches_the_caller_that_waits_for_it() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
        stream
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
    });
    let proxy = front(&pki, &[("v", &url)]);
    tokio::task::block_in_place(|| {
        let mut stream = connect(proxy.data);
        let request = "POST /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(status_of(&head(&mut stream)), 100);
        stream.write_all(b"body").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(
            rest.starts_with("HTTP/1.1 200") && rest.ends_with("body"),
            "{rest}"
        );
    });
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_never_ended_cleanly() {
    let pki = Pki::new();
    let origin = Origin::start(&pki, |mut exchange| async move {
        let mut stream = exchange.begin(200, &[]);
        stream
            .send_data(Bytes::from_static(b"some"), false)
            .unwrap();
        stream.reserve_capacity(1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
    })
    .await;
    let proxy = front(&pki, &[("v", &origin.url)]);
    let answer = tokio::task::block_in_place(|| get(&proxy, "/v/x", ""));
    assert!(answer.ends_with("some\r\n"), "{answer}");

    let mut caller = Caller::connect(proxy.data).await;
    let request = Request::get("http://localhost/v/x").body(()).unwrap();
    let (response, _) = caller.sender().send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "some");
    assert!(body.data().await.unwrap().unwrap_err().is_reset());
}

/// Vendors that take the head of a request and nothing of its body: over HTTP/1.1 in plaintext,
/// with TLS, with OpenSSL's TLS, and over HTTP/2 without a window.
struct Deaf {
    origins: [Origin; 2],
    plaintext: String,
    listening: tokio::task::AbortHandle,
}

const DEAF: [&str; 4] = ["plain", "tls", "late", "h2"];

impl Deaf {
    async fn start(pki: &Pki) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plaintext = format!("http://{}", listener.local_addr().unwrap());
        let listening = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(hear_a_head(stream));
            }
        });
        let never = |exchange| async move {
            let _kept = exchange;
            std::future::pending::<()>().await;
        };
        let tls = Origin::speaking(pki, |_| &[b"http/1.1"], |_| Conduct::Deaf, never).await;
        let h2 = Origin::conducted(pki, |_| Conduct::Window(0), never).await;
        Self {
            origins: [tls, h2],
            plaintext,
            listening: listening.abort_handle(),
        }
    }

    /// The proxy before all of them, with `more` in each stanza.
    fn behind(&self, pki: &Pki, more: &str) -> Proxy {
        let [tls, h2] = &self.origins;
        let mut yaml = "listeners: [ { bind: 127.0.0.1:0 } ]\nadmin: { bind: 127.0.0.1:0 }\ndrain: { delay: 0s }\nvendors:\n".to_owned();
        for (name, url, tls) in [
            ("plain", &self.plaintext, ""),
            ("tls", &tls.url, ""),
            ("late", &tls.url, "    tls: { late_client_auth: true }\n"),
            ("h2", &h2.url, ""),
        ] {
            let _ = write!(
                yaml,
                "  {name}:\n    upstream: {url}\n    ca: ca.pem\n    allow_plaintext: true\n    limits: {{ body: 0 }}\n{tls}    {more}\n"
            );
        }
        Proxy::start(pki.dir(), &yaml)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Sends more than all buffers on the way to a vendor hold, for as long as it is taken. The sending
/// ends with the connection.
fn upload_for_ever(proxy: &Proxy, vendor: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.data).unwrap();
    let head = format!(
        "POST /{vendor}/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        large()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut sending = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let piece = [b'x'; 16384];
        while sending.write_all(&piece).is_ok() {}
    });
    stream
}

/// What the stall tests allow: many times the limits that they set.
const SOON: Duration = Duration::from_secs(10);

/// Asks until it is so, for as long as [`SOON`].
fn soon(mut so: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + SOON;
    while std::time::Instant::now() < deadline {
        if so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// How many requests to `vendor` are in flight.
fn in_flight(proxy: &Proxy, vendor: &str) -> u64 {
    let metrics = proxy.admin("/metrics").1;
    let series = format!("countersign_requests_in_flight{{vendor=\"{vendor}\"}} ");
    let found = metrics.lines().find_map(|line| line.strip_prefix(&series));
    found.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_of_which_the_vendor_takes_nothing_is_a_504_after_the_idle_time() {
    let pki = Pki::new();
    let deaf = Deaf::start(&pki).await;
    let proxy = deaf.behind(&pki, "timeouts: { idle: 1s, first_byte: 5s }");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let proxy = &proxy;
        let asking = DEAF.map(|vendor| {
            scope.spawn(move || {
                let mut stream = upload_for_ever(proxy, vendor);
                stream.set_read_timeout(Some(SOON)).unwrap();
                let mut answer = [0; 4096];
                let read = stream.read(&mut answer).unwrap_or(0);
                let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
                let told = answer.contains("\"upstream_timeout\"");
                (vendor, status_of(&answer), told)
            })
        });
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(outcomes, DEAF.map(|vendor| (vendor, 504, true)));
    let left = DEAF.map(|vendor| (vendor, soon(|| in_flight(&proxy, vendor) == 0)));
    assert_eq!(left, DEAF.map(|vendor| (vendor, true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_an_upload_of_which_the_vendor_takes_nothing_frees_its_place() {
    let pki = Pki::new();
    let deaf = Deaf::start(&pki).await;
    let proxy = deaf.behind(&pki, "timeouts: { idle: 1h, first_byte: 1h }");
    let uploads = DEAF.map(|vendor| upload_for_ever(&proxy, vendor));
    let begun = DEAF.map(|vendor| (vendor, soon(|| in_flight(&proxy, vendor) == 1)));
    assert_eq!(begun, DEAF.map(|vendor| (vendor, true)));
    // Until every buffer on the way is full.
    std::thread::sleep(Duration::from_secs(2));
    for upload in uploads {
        // An end in good order would wait behind what is not read: they are killed. The first wakes
        // the writer, and fails where something else has ended the connection.
        let _ = upload.shutdown(std::net::Shutdown::Both);
        upload.set_nonblocking(true).unwrap();
        let upload = tokio::net::TcpStream::from_std(upload).unwrap();
        upload.set_zero_linger().unwrap();
    }
    let proxy = &proxy;
    let left: Vec<_> = std::thread::scope(|scope| {
        let looking = DEAF.map(|vendor| {
            let gone = move || soon(|| in_flight(proxy, vendor) == 0);
            scope.spawn(move || (vendor, gone()))
        });
        looking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(left, DEAF.map(|vendor| (vendor, true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_after_the_100_that_a_caller_has_waited_for() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..2 {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback";
            stream.write_all(answer).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let origin = Origin::start(&pki, |mut exchange| async move {
        exchange.body().await;
        exchange.answer("back");
    })
    .await;
    let proxy = front(&pki, &[("h1", &url), ("h2", &origin.url)]);
    tokio::task::block_in_place(|| {
        for vendor in ["h1", "h2"] {
            let mut stream = connect(proxy.data);
            for nth in 0..2 {
                let request = format!(
                    "POST /{vendor}/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).unwrap();
                assert_eq!(status_of(&head(&mut stream)), 100, "{vendor} {nth}");
                stream.write_all(b"body").unwrap();
                let head = head(&mut stream);
                assert_eq!(status_of(&head), 200, "{vendor} {nth}: {head}");
                assert!(
                    !head.contains("Connection: close"),
                    "{vendor} {nth}: {head}"
                );
                let mut body = [0; 4];
                stream.read_exact(&mut body).unwrap();
                assert_eq!(&body, b"back", "{vendor} {nth}");
            }
        }
    });
    serving.abort();
}
