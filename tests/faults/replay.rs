//! A vendor's 401: reject, renew, replay once.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Ledger, Setup};
use crate::support::script::{Asked, Reply, Server};
use crate::support::{Proxy, eventually, exchange, status_of};

async fn tokens(asked: Asked, ledger: Arc<Ledger>) -> Reply {
    ledger.grant(&asked, 3600)
}

/// Answers with the body's length, and 401 to tokens that were revoked.
async fn api(asked: Asked, ledger: Arc<Ledger>) -> Reply {
    if ledger.accepts(&asked) {
        Reply::whole("200 OK", "", asked.body.len().to_string())
    } else {
        Reply::whole("401 No", "", "the vendor's own words")
    }
}

/// What pingora buffers.
const MOST: usize = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_exactly_64_kib_are_replayed_whatever_the_method_and_a_byte_more_is_not() {
    // Renewals that 401s ask for are ten seconds apart, so each case has a vendor of its own.
    let methods = ["POST", "PUT", "PATCH", "DELETE", "GET"];
    let mut cases = Vec::new();
    for method in methods {
        for (framing, size) in [
            ("length", 0),
            ("length", MOST),
            ("length", MOST + 1),
            ("chunked", MOST),
            ("chunked", MOST + 1),
        ] {
            let name = format!("{}-{framing}-{size}", method.to_lowercase());
            cases.push((name, method, framing, size));
        }
    }
    let names: Vec<&str> = cases.iter().map(|(name, ..)| name.as_str()).collect();
    let setup = Setup::start_with(&names, "", tokens, api).await;
    // Older than the second that lies between any two token requests.
    sleep(Duration::from_millis(1100)).await;
    setup.ledger.revoke_all();

    let mut calling = JoinSet::new();
    for (name, method, framing, size) in cases.clone() {
        let text: String = ('a'..='z').cycle().take(size).collect();
        let mut request =
            format!("{method} /{name}/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        if framing == "length" {
            write!(request, "Content-Length: {size}\r\n\r\n{text}").unwrap();
        } else {
            request += "Transfer-Encoding: chunked\r\n\r\n";
            for piece in text.as_bytes().chunks(1000) {
                let piece = std::str::from_utf8(piece).unwrap();
                write!(request, "{:x}\r\n{piece}\r\n", piece.len()).unwrap();
            }
            request += "0\r\n\r\n";
        }
        let proxy = setup.proxy.data;
        calling.spawn_blocking(move || {
            let answer = exchange(proxy, request.as_bytes());
            let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
            (name, status_of(&answer), body.to_owned())
        });
    }
    let mut answers = calling.join_all().await;
    answers.sort();

    for (name, status, body) in answers {
        let (.., size) = *cases.iter().find(|case| case.0 == name).unwrap();
        let arrived: Vec<_> = setup
            .api
            .asked()
            .into_iter()
            .filter(|asked| {
                asked
                    .bearer
                    .as_ref()
                    .unwrap()
                    .starts_with(&format!("{name}-"))
            })
            .map(|asked| asked.body)
            .collect();
        let wanted: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
        assert!(arrived.iter().all(|body| *body == wanted), "{name}");
        if size <= MOST {
            assert_eq!((status, body), (200, size.to_string()), "{name}");
            assert_eq!(arrived.len(), 2, "{name}");
            assert_eq!(setup.replayed_and_passed(&name), (1, 0), "{name}");
        } else {
            assert_eq!(
                (status, body.as_str()),
                (401, "the vendor's own words"),
                "{name}"
            );
            assert_eq!(arrived.len(), 1, "{name}");
            assert_eq!(setup.replayed_and_passed(&name), (0, 1), "{name}");
        }
        // Either way there is a new token.
        eventually("renewed", || {
            (setup.token_calls(&name).len() == 2).then_some(())
        });
    }
    setup.assert_sound(&names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_401_for_an_old_token_leaves_the_new_one_alone() {
    let slow = |asked: Asked, ledger: Arc<Ledger>| async move {
        if asked.bearer.as_deref() == Some("v-1") {
            sleep(Duration::from_secs(2)).await;
        }
        api(asked, ledger).await
    };
    let setup = Arc::new(Setup::start_with(&["v"], "", tokens, slow).await);
    sleep(Duration::from_millis(1100)).await;

    let mut late = JoinSet::new();
    for _ in 0..20 {
        let setup = setup.clone();
        late.spawn(async move { setup.call("v").await.0 });
    }
    eventually("under way", || {
        (setup.api.asked().len() == 20).then_some(())
    });
    setup.ledger.revoke_all();
    assert_eq!(setup.refresh("v").await, 202);
    eventually("renewed", || {
        (setup.status("v")["state"] == "fresh").then_some(())
    });
    eventually("renewed", || {
        (setup.token_calls("v").len() == 2).then_some(())
    });
    while setup.call("v").await.0 != 200 {}

    assert_eq!(late.join_all().await, [200; 20]);
    // Had one of them asked for a renewal, it would have come by now.
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(setup.token_calls("v").len(), 2);
    assert_eq!(setup.replayed_and_passed("v"), (20, 0));
    setup.assert_sound(&["v"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendor_that_takes_no_token_is_asked_twice_at_most_and_costs_a_fetch_per_ten_seconds() {
    let never = |_, _| async { Reply::whole("401 No", "", "never") };
    let setup = Setup::start_with(&["v"], "", tokens, never).await;
    let begun = Instant::now();
    let mut calls = 0;
    while begun.elapsed() < Duration::from_secs(13) {
        assert_eq!(setup.call("v").await.0, 401);
        calls += 1;
        sleep(Duration::from_millis(20)).await;
    }

    let fetches = setup.token_calls("v");
    assert_eq!(fetches.len(), 3, "{fetches:?}");
    assert!(fetches[2] - fetches[1] > Duration::from_millis(9_900));
    // Only a request that got a 401 shortly before a new token came was sent again.
    let (replayed, passed) = setup.replayed_and_passed("v");
    assert!(replayed <= 2 && passed == calls, "{replayed} {passed}");
    let asked = i64::try_from(setup.api.asked().len()).unwrap();
    assert_eq!(asked, calls + replayed);
    setup.assert_sound(&["v"]);
}

/// Some servers judge the head alone, and answer while the body is still on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_401_that_comes_before_the_body_is_there_is_replayed_with_all_of_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = listener.local_addr().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let sink = heads.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sink = sink.clone();
            thread::spawn(move || judge_the_head(stream, &sink));
        }
    });
    let tokens = Server::start(|asked: Asked| async move {
        let token = format!("t{:?}", asked.at).replace(' ', "");
        let token: String = token.chars().filter(char::is_ascii_alphanumeric).collect();
        Reply::json(format!(r#"{{"access_token":"{token}","expires_in":3600}}"#))
    })
    .await;
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]
admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
vendors:
  v:
    upstream: http://{api}
    allow_plaintext: true
    auth:
      client_credentials: {{ token_url: \"{}\", client_id: me, client_secret: {{ value: s }} }}
",
        tokens.url("/t")
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let starting = tokio::task::spawn_blocking(move || Proxy::start(&path, &yaml));
    let proxy = starting.await.unwrap();
    sleep(Duration::from_millis(1100)).await;

    let answer = tokio::task::spawn_blocking(move || {
        let mut caller = std::net::TcpStream::connect(proxy.data).unwrap();
        let size = 50_000;
        write!(
            caller,
            "POST /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
        )
        .unwrap();
        for piece in [20_000, 20_000, 10_000] {
            caller.write_all(&vec![b'x'; piece]).unwrap();
            thread::sleep(Duration::from_millis(300));
        }
        let mut answer = String::new();
        caller.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.ends_with("50000 bytes, all x: true"), "{answer}");
    assert_eq!(heads.lock().unwrap().len(), 2);
    assert_eq!(tokens.asked().len(), 2);
}

/// The first head that comes is refused at once, whatever follows it; others are heard out.
fn judge_the_head(mut stream: std::net::TcpStream, heads: &Mutex<Vec<String>>) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut chunk) {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            _ => return,
        }
    };
    let first = {
        let mut heads = heads.lock().unwrap();
        heads.push(String::from_utf8_lossy(&bytes[..end]).into_owned());
        heads.len() == 1
    };
    if first {
        let no = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(no).unwrap();
    } else {
        let mut body = bytes.split_off(end);
        while body.len() < 50_000 {
            match stream.read(&mut chunk) {
                Ok(read) if read > 0 => body.extend_from_slice(&chunk[..read]),
                _ => return,
            }
        }
        let whole = body.iter().all(|byte| *byte == b'x');
        let text = format!("{} bytes, all x: {whole}", body.len());
        let length = text.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
        )
        .unwrap();
    }
    // Closing on unread bytes would take the answer back.
    while stream.read(&mut chunk).is_ok_and(|read| read > 0) {}
}
