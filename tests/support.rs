//! The real binary, started and stopped.

pub mod browser;
pub mod front;
pub mod kubernetes;
pub mod origin;
pub mod peers;
pub mod redis;
pub mod script;
pub mod world;

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
    /// All of them, in the configuration's order.
    pub listeners: Vec<SocketAddr>,
    /// The admin listener.
    pub admin: SocketAddr,
    child: Child,
    stderr: Arc<Mutex<String>>,
    stdout: Arc<Mutex<String>>,
}

impl Proxy {
    /// Writes `yaml` to `dir/proxy.yaml`, serves it, and returns once `/readyz` answers 200.
    pub fn start(dir: &Path, yaml: &str) -> Self {
        Self::start_with(dir, yaml, &[])
    }

    /// The same, with more in its environment.
    pub fn start_with(dir: &Path, yaml: &str, environment: &[(&str, &str)]) -> Self {
        let proxy = Self::launch(dir, yaml, environment);
        eventually("ready", || (proxy.admin("/readyz").0 == 200).then_some(()));
        proxy
    }

    /// The same, with at most so many files open at a time.
    pub fn start_limited(dir: &Path, yaml: &str, files: u32) -> Self {
        let mut shell = Command::new("sh");
        let script = "ulimit -n \"$1\" && shift && exec \"$@\"";
        shell.args(["-c", script, "sh", &files.to_string()]);
        shell.arg(countersign().get_program());
        shell.env("NO_COLOR", "1").stdin(Stdio::null());
        let proxy = Self::launch_by(shell, dir, yaml, &[]);
        eventually("ready", || (proxy.admin("/readyz").0 == 200).then_some(()));
        proxy
    }

    /// The same, and returns as soon as it listens.
    pub fn launch(dir: &Path, yaml: &str, environment: &[(&str, &str)]) -> Self {
        Self::launch_by(countersign(), dir, yaml, environment)
    }

    fn launch_by(
        mut command: Command,
        dir: &Path,
        yaml: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let config = dir.join("proxy.yaml");
        std::fs::write(&config, yaml).unwrap();
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let lines = follow(child.stderr.take().unwrap(), stderr.clone());
        let stdout = Arc::new(Mutex::new(String::new()));
        drop(follow(child.stdout.take().unwrap(), stdout.clone()));
        let mut proxy = Self {
            data: SocketAddr::from(([127, 0, 0, 1], 0)),
            listeners: Vec::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            child,
            stderr,
            stdout,
        };
        // The admin listener is named last.
        while proxy.admin.port() == 0 {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                panic!("no addresses from serve:\n{}", proxy.stderr());
            };
            if let Some(address) = address_in(&line) {
                if line.contains("admin") {
                    proxy.admin = address;
                } else if line.contains("listening") {
                    proxy.listeners.push(address);
                }
            }
        }
        proxy.data = proxy.listeners[0];
        proxy
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// All that it has said so far, on stdout and stderr. Request lines gather before they are
    /// written, in their order: one of our own comes behind those of earlier requests. The first
    /// listener speaks HTTP in plaintext.
    pub fn said(&self) -> String {
        let id = format!("said-by-{:x}", fastrand::u64(..));
        self.raw(format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {id}\r\nConnection: close\r\n\r\n"
        ));
        let lines = eventually("all lines", || {
            Some(self.stdout()).filter(|lines| lines.contains(&id))
        });
        lines + &self.stderr()
    }

    /// What it has said on stdout so far: the request lines, see [`Self::said`].
    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    /// Sends `bytes` as they are on a new connection to the listener and reads until it closes.
    pub fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        exchange(self.data, bytes.as_ref())
    }

    /// Its process id, to send signals to.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How much memory it occupies, bytes.
    pub fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap() * 1024
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for it to end by itself and returns its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        eventually("ended", || self.child.try_wait().unwrap()).code()
    }

    /// Status and body of `GET path` on the admin listener; status 0 when nothing came.
    pub fn admin(&self, path: &str) -> (u16, String) {
        let host = self.admin;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange(self.admin, head.as_bytes());
        match answer.split_once("\r\n\r\n") {
            Some((_, body)) => (status_of(&answer), body.to_owned()),
            None => (0, answer),
        }
    }
}

/// What a command that ends by itself said.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// Runs the binary in `dir` until it ends.
///
/// # Panics
/// When it goes on for longer than [`PATIENCE`].
pub fn run(dir: &Path, arguments: &[&str]) -> Ran {
    run_with(dir, arguments, &[])
}

/// The same, with more in its environment.
pub fn run_with(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let child = countersign()
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    let (done, outcome) = channel();
    thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = outcome.recv_timeout(PATIENCE) else {
        signal(id, "KILL");
        panic!("countersign {arguments:?} does not end");
    };
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Writes a secret's file, readable by its owner alone.
pub fn write_secret(path: &Path, secret: &str) {
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).unwrap();
    file.write_all(secret.as_bytes()).unwrap();
}

/// Sends a signal by its name to a process of ours.
pub fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &process.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// The status of a raw answer; 0 when there is none.
pub fn status_of(answer: &str) -> u16 {
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    status.unwrap_or(0)
}

/// Sends `bytes` and reads until the other side closes, resets or says nothing more for long.
pub fn exchange(to: SocketAddr, bytes: &[u8]) -> String {
    String::from_utf8_lossy(&exchange_bytes(to, bytes)).into_owned()
}

/// The same, for answers that are no text.
pub fn exchange_bytes(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(to) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // A refusal may come, and the connection go, before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
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
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
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
