//! How `serve` ends: not started, not bound, stopped, drained.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use super::{HEAD, client, get, yaml};
use crate::support::front::Plan;
use crate::support::{Proxy, countersign, eventually, exchange, run, signal, status_of};

#[test]
fn a_bad_configuration_ends_with_2_and_every_mistake_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\
listeners: [ { bind: 127.0.0.1:0 } ]
admin: { bind: 127.0.0.1:0 }
vendors:
  v:
    upstrem: https://v.example
    auth: { bearer: { token: { env: COUNTERSIGN_TEST_UNSET } } }
  w:
    upstream: ftp://w.example
    auth: { bearer: { token: { file: not-there } } }
    breaker: { open_for: never }
";
    std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();

    let served = run(dir.path(), &["serve"]);
    assert_eq!(served.code, Some(2), "{served:?}");
    assert_eq!(served.stdout, "");
    assert!(!served.stderr.contains("listening"), "{}", served.stderr);
    for (place, what) in [
        ("proxy.yaml:5:5: ", "did you mean `upstream`"),
        ("proxy.yaml:6:", "COUNTERSIGN_TEST_UNSET"),
        ("proxy.yaml:8:", "https://"),
        ("proxy.yaml:9:", "not-there"),
        ("proxy.yaml:10:26: ", "is not a duration"),
    ] {
        let mut lines = served.stderr.lines();
        let line = lines.find(|line| line.contains(place));
        assert!(
            line.is_some_and(|line| line.contains(what)),
            "{place}{what} in\n{}",
            served.stderr
        );
    }
    let checked = run(dir.path(), &["check"]);
    assert_eq!((checked.code, checked.stderr), (Some(2), served.stderr));

    let nowhere = run(dir.path(), &["serve", "--config", "nowhere.yaml"]);
    assert_eq!(nowhere.code, Some(2), "{nowhere:?}");
    assert!(nowhere.stderr.contains("nowhere.yaml"), "{nowhere:?}");
}

#[test]
fn a_listener_that_cannot_bind_ends_the_process_with_1() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let any = "127.0.0.1:0".to_owned();
    for (listener, admin) in [(taken.to_string(), any.clone()), (any, taken.to_string())] {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "listeners: [ {{ bind: 127.0.0.1:0 }}, {{ bind: \"{listener}\" }} ]\nadmin: {{ bind: \"{admin}\" }}\nvendors: {{ v: {{ upstream: \"https://127.0.0.1:1\" }} }}\n"
        );
        std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();
        let served = run(dir.path(), &["serve"]);
        assert_eq!(served.code, Some(1), "{served:?}");
        assert!(served.stderr.contains(&taken.to_string()), "{served:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_and_sigint_end_an_idle_process_at_once_and_with_0() {
    let echo = countersign_demo::echo().await.unwrap();
    for name in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let mut proxy = Proxy::start(dir.path(), &yaml(HEAD, &echo.url(), ""));
        // A caller that keeps its connection is no reason to stay.
        let kept = client();
        let url = format!("http://{}/v/x", proxy.data);
        assert_eq!(kept.get(&url).send().await.unwrap().status(), 200);
        let silent = TcpStream::connect(proxy.data).unwrap();

        let asked = Instant::now();
        signal(proxy.id(), name);
        assert_eq!(proxy.ended(), Some(0), "{name}: {}", proxy.stderr());
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(3), "{name}: {took:?}");
        drop(silent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_turns_unready_at_once_serves_for_its_delay_and_lets_requests_finish() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let head = "listeners: [ { bind: 127.0.0.1:0 } ]\ndrain: { delay: 2500ms, timeout: 20s }\n";
    let mut proxy = Proxy::start(dir.path(), &yaml(head, &echo.url(), ""));
    let slow = tokio::spawn({
        let url = format!("http://{}/v/x?wait=6000&body=finished", proxy.data);
        async move { client().get(url).send().await.unwrap().text().await }
    });
    eventually("in flight", || (!echo.requests().is_empty()).then_some(()));
    // Connections that last do not get around it.
    let kept = client();
    let url = format!("http://{}/v/x?body=kept", proxy.data);
    assert_eq!(kept.get(&url).send().await.unwrap().status(), 200);

    let asked = Instant::now();
    signal(proxy.id(), "TERM");
    eventually("unready", || {
        (proxy.admin("/readyz") == (503, "draining\n".to_owned())).then_some(())
    });
    assert_eq!(proxy.admin("/livez").0, 200);
    assert_eq!(get(&proxy, "/v/x?body=new", &[]).await.body, "new");
    let last = kept.get(&url).send().await.unwrap();
    assert_eq!(last.status(), 200);
    assert_eq!(last.headers()["connection"], "close");
    assert!(
        asked.elapsed() < Duration::from_millis(2400),
        "too slow to tell: {:?}",
        asked.elapsed()
    );

    eventually("closed to new connections", || {
        refuses(proxy.data).then_some(())
    });
    assert!(asked.elapsed() >= Duration::from_millis(2400));
    assert!(!slow.is_finished(), "the slow one was cut or came too soon");
    assert_eq!(slow.await.unwrap().unwrap(), "finished");
    let finished = Instant::now();
    assert_eq!(proxy.ended(), Some(0));
    assert!(finished.elapsed() < Duration::from_secs(2));
    // Its line was written before the end.
    eventually("the last line", || {
        (proxy.stdout().lines().count() == 4).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_waits_for_no_delay_but_for_requests_and_a_second_one_for_nothing() {
    let echo = countersign_demo::echo().await.unwrap();
    let head = "listeners: [ { bind: 127.0.0.1:0 } ]\ndrain: { delay: 1h, timeout: 1h }\n";
    let text = yaml(head, &echo.url(), "");
    let start = || {
        let dir = tempfile::tempdir().unwrap();
        (Proxy::start(dir.path(), &text), dir)
    };
    let (mut proxy, _dir) = start();
    signal(proxy.id(), "INT");
    assert_eq!(proxy.ended(), Some(0), "{}", proxy.stderr());

    let (mut proxy, _dir) = start();
    let url = format!("http://{}/v/x", proxy.data);
    let asked = echo.requests().len();
    let slow = client().get(format!("{url}?wait=2000&body=finished"));
    let slow = tokio::spawn(async move { slow.send().await.unwrap().text().await });
    eventually("in flight", || {
        (echo.requests().len() > asked).then_some(())
    });
    signal(proxy.id(), "INT");
    assert_eq!(slow.await.unwrap().unwrap(), "finished");
    assert_eq!(proxy.ended(), Some(0), "{}", proxy.stderr());

    for (first, second) in [("INT", "INT"), ("TERM", "INT")] {
        let (mut proxy, _dir) = start();
        let asked = echo.requests().len();
        let endless = client().get(format!("http://{}/v/x?wait=600000", proxy.data));
        let endless = tokio::spawn(async move { endless.send().await.is_err() });
        eventually("in flight", || {
            (echo.requests().len() > asked).then_some(())
        });
        signal(proxy.id(), first);
        eventually("draining", || {
            (proxy.admin("/readyz").0 == 503).then_some(())
        });
        signal(proxy.id(), second);
        assert_eq!(proxy.ended(), Some(0), "{}", proxy.stderr());
        assert!(endless.await.unwrap(), "an answer came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_tells_http_2_callers_to_go_and_lets_their_requests_finish() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let head = "listeners: [ { bind: 127.0.0.1:0, h2c: true } ]\ndrain: { delay: 0s }\n";
    let mut proxy = Proxy::start(dir.path(), &yaml(head, &echo.url(), ""));
    let stream = tokio::net::TcpStream::connect(proxy.data).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = |query: &str| {
        let url = format!("http://localhost/v/x?{query}");
        http::Request::get(url).body(()).unwrap()
    };
    let (slow, _) = sender
        .send_request(request("wait=2500&body=finished"), true)
        .unwrap();
    eventually("in flight", || (!echo.requests().is_empty()).then_some(()));

    signal(proxy.id(), "TERM");
    let told = eventually("told to go", || {
        // Those that come before it are served.
        sender.send_request(request("body=late"), true).err()
    });
    assert!(told.is_go_away() && told.is_remote(), "{told}");
    assert_eq!(told.reason(), Some(h2::Reason::NO_ERROR));
    let answer = slow.await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().data().await.unwrap().unwrap();
    assert_eq!(body, "finished");
    // The connection ends as one should.
    connection.await.unwrap().unwrap();
    assert_eq!(proxy.ended(), Some(0), "{}", proxy.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_outlast_the_drain_are_cut_off() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let head = "listeners: [ { bind: 127.0.0.1:0 } ]\ndrain: { delay: 0s, timeout: 1s }\n";
    let mut proxy = Proxy::start(dir.path(), &yaml(head, &echo.url(), ""));
    let request = "GET /v/x?wait=60000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let address = proxy.data;
    let cut =
        tokio::task::spawn_blocking(move || crate::support::exchange(address, request.as_bytes()));
    eventually("in flight", || (!echo.requests().is_empty()).then_some(()));

    let asked = Instant::now();
    signal(proxy.id(), "TERM");
    assert_eq!(proxy.ended(), Some(0), "{}", proxy.stderr());
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert_ne!(status_of(&cut.await.unwrap()), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_under_way_is_finished_and_stored_before_the_process_ends() {
    let plan = Plan::new().await.vendor("maxmd").consented().await;
    let mut front = plan.start();
    // The consent's own token call is the first.
    assert_eq!(front.refresh("maxmd").await, 202);
    eventually("refreshed once", || {
        (front.mocks.maxmd_auth.token_calls().len() == 2).then_some(())
    });
    front
        .mocks
        .maxmd_auth
        .delay_token_calls(Duration::from_secs(2));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(front.refresh("maxmd").await, 202);
    eventually("asked, and not answered", || {
        let calls = front.mocks.maxmd_auth.token_calls();
        (calls.len() == 3 && calls[2].status == 0).then_some(())
    });
    signal(front.proxy.id(), "TERM");
    assert_eq!(front.proxy.ended(), Some(0), "{}", front.proxy.stderr());
    assert_eq!(front.mocks.maxmd_auth.token_calls()[2].status, 200);

    // What was bought is what is used: a token shown twice would have ended the whole grant.
    front.mocks.maxmd_auth.delay_token_calls(Duration::ZERO);
    front.restart();
    assert_eq!(
        front.answer("/maxmd/api/certificate/query").await.status,
        200
    );
    assert_eq!(front.refresh("maxmd").await, 202);
    eventually("refreshed again", || {
        let calls = front.mocks.maxmd_auth.token_calls();
        (calls.len() == 4 && calls[3].status == 200).then_some(())
    });
}

fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err()
}

/// `serve` with a stderr that is read only where a test reads it.
struct Unread {
    child: Child,
    stderr: BufReader<ChildStderr>,
    data: SocketAddr,
    admin: SocketAddr,
}

impl Unread {
    /// Reads no further than to the addresses.
    fn start(dir: &Path, yaml: &str) -> Self {
        std::fs::write(dir.join("proxy.yaml"), yaml).unwrap();
        let mut child = countersign()
            .args(["serve", "--config"])
            .arg(dir.join("proxy.yaml"))
            .env("RUST_LOG", "trace")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::with_capacity(256, child.stderr.take().unwrap());
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let (mut data, mut admin) = (nowhere, nowhere);
        while admin == nowhere {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "ended");
            if let Some((_, address)) = line.trim().split_once("address=") {
                let address = address.split(' ').next().unwrap().parse().unwrap();
                if line.contains("listening") {
                    data = address;
                } else {
                    admin = address;
                }
            }
        }
        Self {
            child,
            stderr,
            data,
            admin,
        }
    }

    /// Lines of stderr that were dropped so far.
    fn dropped(&self) -> u64 {
        let metrics = ask(self.admin, "/metrics");
        let name = "countersign_log_lines_dropped_total{stream=\"stderr\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.expect(&metrics).parse().unwrap()
    }

    /// Makes the log say things until more of it was dropped than `before`.
    fn fill(&self, before: u64) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.dropped() <= before {
            assert!(Instant::now() < deadline, "nothing is dropped");
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..300 {
                            // Each is a line of its own: nothing listens at the vendor's address.
                            let answer = ask(self.data, "/v/x");
                            assert_eq!(status_of(&answer), 502, "{answer}");
                        }
                    });
                }
            });
        }
    }
}

fn ask(to: SocketAddr, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    exchange(to, head.as_bytes())
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_stderr_that_nobody_reads_stops_nothing_and_what_is_read_later_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let text = yaml(HEAD, &url, "    breaker: { failures: 0 }\n");
    let mut proxy = Unread::start(dir.path(), &text);
    proxy.fill(0);
    assert_eq!(status_of(&ask(proxy.admin, "/livez")), 200);
    assert_eq!(status_of(&ask(proxy.data, "/nowhere")), 404);

    // Whoever reads again finds whole lines, is told of the gap, and then of what happens now.
    loop {
        let mut line = String::new();
        assert_ne!(proxy.stderr.read_line(&mut line).unwrap(), 0, "ended");
        let mut words = line.split_whitespace();
        let time = words.next().unwrap_or_default();
        assert!(time.starts_with("20") && time.ends_with('Z'), "{line:?}");
        let level = words.next().unwrap_or_default();
        assert!(
            ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level),
            "{line:?}"
        );
        if line.contains("lines of the log were dropped") {
            break;
        }
    }

    // Stuck once more, it ends in time all the same.
    proxy.fill(proxy.dropped());
    let asked = Instant::now();
    signal(proxy.child.id(), "TERM");
    let ended = eventually("ended", || proxy.child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(15));
}

#[test]
fn the_last_words_of_a_process_that_does_not_start_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let head = format!("listeners: [ {{ bind: \"{taken}\" }} ]\n");
    let text = yaml(&head, "https://127.0.0.1:1", "");
    std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();
    let served = run(dir.path(), &["serve"]);
    assert_eq!(served.code, Some(1), "{served:?}");
    let last = served.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: cannot listen on "), "{served:?}");
}
