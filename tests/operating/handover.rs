//! A new process takes the listeners over from the old one, and callers notice nothing.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use serde_json::Value;

use super::yaml;
use crate::support::front::{Front, Plan};
use crate::support::script::{Asked, Reply, Server};
use crate::support::{Proxy, countersign, eventually, exchange, signal, status_of};

/// A process whose parent has ended. Ended when dropped.
struct Successor(u32);

impl Successor {
    /// The one that `proxy` says it has started, the `nth` of them.
    fn of(proxy: &Proxy, nth: usize) -> Self {
        let id = eventually("a successor", || {
            let said = proxy.stderr();
            let mut started = said
                .lines()
                .filter_map(|line| line.split_once("a successor was started"));
            let (_, line) = started.nth(nth - 1)?;
            line.rsplit_once("pid=")?.1.trim().parse().ok()
        });
        Self(id)
    }

    fn runs(&self) -> bool {
        // Whoever inherited it may take its time to bury it.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // Its log ends with its output, which the old process's reader follows.
        if self.runs() {
            signal(self.0, "KILL");
        }
    }
}

fn started(proxy: &Proxy) -> String {
    let status: Value = serde_json::from_str(&proxy.admin("/status").1).unwrap_or_default();
    status["config"]["sha256"].to_string() + &status["started"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_a_new_process_takes_over() {
    let echo = countersign_demo::echo().await.unwrap();
    // The successor's first token takes its time: until then the old process serves.
    let tokens = Server::start(|_: Asked| async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        Reply::json(r#"{"access_token":"t","expires_in":3600}"#)
    })
    .await;
    let more = format!(
        "    auth: {{ client_credentials: {{ token_url: \"{}\", client_id: me, client_secret: {{ value: s }} }} }}\n    timeouts: {{ token_wait: 100ms }}\n",
        tokens.url("/token")
    );
    let dir = tempfile::tempdir().unwrap();
    let head = "listeners: [ { bind: 127.0.0.1:0 }, { bind: 127.0.0.1:0, h2c: true } ]\ndrain: { delay: 1s, timeout: 20s }\n";
    let text = yaml(head, &echo.url(), &more);
    let mut proxy = tokio::task::spawn_blocking({
        let path = dir.path().to_owned();
        move || Proxy::start(&path, &text)
    })
    .await
    .unwrap();
    let before = started(&proxy);

    let slow = tokio::spawn({
        let url = format!("http://{}/v/x?wait=4000&body=finished", proxy.data);
        async move { super::client().get(url).send().await.unwrap().text().await }
    });
    eventually("in flight", || (!echo.requests().is_empty()).then_some(()));
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ended = std::thread::scope(|scope| {
        // On new connections, and on ones that are kept.
        for listener in proxy.listeners.clone() {
            let (stop, sent) = (&stop, &sent);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let head = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                    let answer = exchange(listener, head.as_bytes());
                    assert_eq!(status_of(&answer), 200, "{answer}");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let client = super::client();
                while !stop.load(Ordering::Relaxed) {
                    let url = format!("http://{listener}/v/x");
                    let answer = runtime.block_on(async { client.get(url).send().await });
                    let answer = answer.unwrap();
                    assert_eq!(answer.status(), 200);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        signal(proxy.id(), "USR2");
        let first = Successor::of(&proxy, 1);
        let ended = proxy.ended();
        // And once more, from the one without a parent.
        let middle = started(&proxy);
        signal(first.0, "USR2");
        let second = Successor::of(&proxy, 2);
        eventually("gone", || (!first.runs()).then_some(()));
        assert_ne!(started(&proxy), before);
        assert_ne!(started(&proxy), middle);
        stop.store(true, Ordering::Relaxed);
        (ended, second)
    });
    assert_eq!(ended.0, Some(0), "{}", proxy.stderr());
    assert!(sent.load(Ordering::Relaxed) > 100);
    assert_eq!(slow.await.unwrap().unwrap(), "finished");
    // The last one ends as any process of ours does.
    signal(ended.1.0, "TERM");
    eventually("gone", || (!ended.1.runs()).then_some(()));
    eventually("told of", || {
        let log = proxy.stderr();
        let count = |what: &str| log.matches(what).count();
        (count("the successor serves") == 2 && count(" stopped") == 3).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_cannot_start_changes_nothing() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = Proxy::start(dir.path(), &yaml(super::HEAD, &echo.url(), ""));
    let get = "GET /v/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    std::fs::write(dir.path().join("proxy.yaml"), "vendrs: {}\n").unwrap();
    signal(proxy.id(), "USR2");
    let log = eventually("refused", || {
        let log = proxy.stderr();
        log.contains("no successor has taken over").then_some(log)
    });
    assert!(log.contains("ended with exit status: 2"), "{log}");
    assert!(log.contains("did you mean `vendors`"), "{log}");
    assert_eq!(status_of(&proxy.raw(get)), 200);

    // It reads its configuration again: what a reload refuses can change here.
    let head = "threads: 1\nlisteners: [ { bind: 127.0.0.1:0 }, { bind: 127.0.0.2:0 } ]\ndrain: { delay: 0s }\n";
    std::fs::write(dir.path().join("proxy.yaml"), yaml(head, &echo.url(), "")).unwrap();
    signal(proxy.id(), "USR2");
    let successor = Successor::of(&proxy, 2);
    assert_eq!(proxy.ended(), Some(0));
    assert!(proxy.stderr().contains("address=127.0.0.2:"));
    assert_eq!(status_of(&proxy.raw(get)), 200);
    assert!(successor.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_to_end_with_the_process_is_left_to_the_successor() {
    let plan = Plan::new().await;
    let stanza = plan.stanza("venafi-password") + "        revoke_on_exit: true\n";
    let mut front = plan.stanza_of(&stanza).start();
    let answer = async |front: &Front| front.answer("/venafi-password/vedsdk/x").await.status;
    let revoked = |front: &Front| {
        let calls = front.mocks.venafi.requests();
        let revoked = calls
            .iter()
            .filter(|seen| seen.path() == "/vedauth/revoke/token");
        revoked.count()
    };
    // The vendor knows no such page, but it knows the token.
    assert_eq!(answer(&front).await, 404);
    signal(front.proxy.id(), "USR2");
    let successor = Successor::of(&front.proxy, 1);
    assert_eq!(front.proxy.ended(), Some(0));
    assert_eq!(answer(&front).await, 404);
    assert_eq!(revoked(&front), 0);
    signal(successor.0, "TERM");
    eventually("gone", || (!successor.runs()).then_some(()));
    assert_eq!(revoked(&front), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_of_a_service_manager_are_taken_over() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (data, admin, unknown) = (socket(), socket(), socket());
    let (at, admin_at, unknown_at) = (
        data.local_addr().unwrap(),
        admin.local_addr().unwrap(),
        unknown.local_addr().unwrap(),
    );
    let text = yaml(super::HEAD, &echo.url(), "")
        .replace(
            "admin: { bind: 127.0.0.1:0 }",
            &format!("admin: {{ bind: {admin_at} }}"),
        )
        .replace(
            "listeners: [ { bind: 127.0.0.1:0 } ]",
            &format!("listeners: [ {{ bind: {at} }} ]"),
        );
    std::fs::write(dir.path().join("proxy.yaml"), text).unwrap();
    let mappings = [unknown, admin, data.try_clone().unwrap()]
        .into_iter()
        .zip(3..)
        .map(|(socket, child_fd)| FdMapping {
            parent_fd: OwnedFd::from(socket),
            child_fd,
        });
    let mut command = countersign();
    command
        .arg("serve")
        .current_dir(dir.path())
        .env("LISTEN_FDS", "3")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .fd_mappings(mappings.collect())
        .unwrap();
    // A caller may come before there is anybody: it waits.
    let early = tokio::task::spawn_blocking(move || {
        exchange(
            at,
            b"GET /v/x?body=early HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
    });
    let child: Child = command.spawn().unwrap();
    drop(command);
    let id = child.id();
    assert!(early.await.unwrap().ends_with("early"));
    let ready = eventually("ready", || {
        let answer = exchange(admin_at, b"GET /readyz HTTP/1.0\r\n\r\n");
        (status_of(&answer) == 200).then_some(answer)
    });
    assert!(ready.ends_with("ready\n"));
    signal(id, "TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(
        log.contains(&unknown_at.to_string()) && log.contains("not among"),
        "{log}"
    );
    // Still open, although nothing accepts: the service manager's next process will.
    assert!(std::net::TcpStream::connect(at).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_when_it_serves_and_when_it_stops() {
    let echo = countersign_demo::echo().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(crate::support::PATIENCE))
        .unwrap();
    let told = || {
        let mut text = [0; 256];
        let read = socket.recv(&mut text).unwrap();
        String::from_utf8(text[..read].to_vec()).unwrap()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let text = yaml(super::HEAD, &echo.url(), "");
    let mut proxy = Proxy::start_with(dir.path(), &text, &environment);
    assert_eq!(told(), "READY=1\n");
    signal(proxy.id(), "USR2");
    let successor = Successor::of(&proxy, 1);
    assert_eq!(told(), format!("MAINPID={}\n", successor.0));
    assert_eq!(proxy.ended(), Some(0));
    signal(successor.0, "TERM");
    assert_eq!(told(), "STOPPING=1\n");
    eventually("gone", || (!successor.runs()).then_some(()));
}
