//! The real binary, started and stopped.

pub mod peers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A running `countersign serve`. Killed when dropped.
pub struct Proxy {
    /// The first listener callers connect to.
    pub data: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
    child: Child,
    stderr: Arc<Mutex<String>>,
}

impl Proxy {
    /// Writes `yaml` to `dir/proxy.yaml`, serves it, and returns once `/readyz` answers 200.
    pub fn start(dir: &Path, yaml: &str) -> Self {
        let config = dir.join("proxy.yaml");
        std::fs::write(&config, yaml).unwrap();
        let mut child = countersign()
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let lines = follow(child.stderr.take().unwrap(), stderr.clone());
        let mut proxy = Self {
            data: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            child,
            stderr,
        };
        while proxy.data.port() == 0 || proxy.admin.port() == 0 {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                panic!("no addresses from serve:\n{}", proxy.stderr());
            };
            if let Some(address) = address_in(&line) {
                if line.contains("admin") {
                    proxy.admin = address;
                } else if line.contains("listening") && proxy.data.port() == 0 {
                    proxy.data = address;
                }
            }
        }
        eventually("ready", || (proxy.admin("/readyz").0 == 200).then_some(()));
        proxy
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Status and body of `GET path` on the admin listener; status 0 when nothing came.
    pub fn admin(&self, path: &str) -> (u16, String) {
        let mut answer = String::new();
        let exchange = TcpStream::connect(self.admin).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            let host = self.admin;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            )?;
            stream.read_to_string(&mut answer)
        });
        let status = answer.get(9..12).and_then(|status| status.parse().ok());
        match (exchange, status, answer.split_once("\r\n\r\n")) {
            (Ok(_), Some(status), Some((_, body))) => (status, body.to_owned()),
            _ => (0, answer),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The test's own output: cargo shows it when the test fails.
        println!("--- countersign said:\n{}---", self.stderr());
    }
}

/// The binary, with nothing of this machine's environment that would change what it does.
pub fn countersign() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    for name in [
        "COUNTERSIGN_CONFIG",
        "RUST_LOG",
        "HTTPS_PROXY",
        "https_proxy",
    ] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Asks until `answer` has one, at most [`PATIENCE`].
///
/// # Panics
/// When it never has.
pub fn eventually<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = answer() {
            return found;
        }
        assert!(Instant::now() < deadline, "still not {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The lines of `output` as they come, also kept in `all`.
fn follow(output: impl Read + Send + 'static, all: Arc<Mutex<String>>) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut all = all.lock().unwrap();
            all.push_str(&line);
            all.push('\n');
            // Nobody need be listening any more.
            let _ = sender.send(line);
        }
    });
    lines
}

/// The value of `address=` in a log line.
fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("address=")?;
    rest.split([' ', '"'])
        .find(|word| !word.is_empty())?
        .parse()
        .ok()
}
