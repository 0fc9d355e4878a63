//! What streams: nginx, and gRPC's and WebSocket's own servers and clients in Python.

use std::os::unix::fs::MetadataExt;

use super::{
    BufRead, BufReader, Child, Command, Path, PathBuf, Pki, Process, Stdio, TempDir, Value,
    eventually, free_port, here,
};
use crate::support::peers::ENDS_WITH_STDIN;

/// nginx; see `peers/nginx.conf`.
pub struct Nginx {
    /// `https://127.0.0.1:PORT`, by HTTP/2 or HTTP/1.1.
    pub both: String,
    /// The same, by HTTP/1.1 alone.
    pub http1: String,
    root: TempDir,
    process: Process,
}

impl Nginx {
    /// Starts it with `pki`'s server certificate.
    pub fn start(pki: &Pki) -> Self {
        // Another process may take a port between our choice and its bind.
        (0..3)
            .find_map(|_| Self::try_start(pki))
            .expect("nginx ended at once, three times")
    }

    fn try_start(pki: &Pki) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        std::fs::create_dir_all(file("www/put")).unwrap();
        for name in ["server.pem", "server.key"] {
            std::fs::copy(pki.file(name), file(name)).unwrap();
        }
        std::fs::write(file("www/small"), "0123456789").unwrap();
        let (port, http1) = (free_port(), free_port());
        for (from, to) in [
            ("nginx.conf", "nginx.conf"),
            ("nginx-locations.conf", "locations.conf"),
        ] {
            let text = std::fs::read_to_string(here().join(from)).unwrap();
            let text = text
                .replace("ROOT", root.path().to_str().unwrap())
                .replace("PORT1", &http1.to_string())
                .replace("PORT", &port.to_string());
            std::fs::write(file(to), text).unwrap();
        }
        let nginx = [
            "/usr/sbin/nginx".into(),
            here().join("nginx/usr/sbin/nginx"),
        ]
        .into_iter()
        .find(|path: &PathBuf| path.exists())
        .expect("nginx is missing: Debian package nginx (`make setup-test` unpacks it)");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", ENDS_WITH_STDIN, "sh"])
            .arg(nginx)
            .arg("-c")
            .arg(file("nginx.conf"))
            .arg("-p")
            .arg(root.path())
            .stdout(Stdio::null());
        let mut process = Process::spawn(command, "nginx", file("stderr.log"));
        // Its process number is written once the ports are bound.
        let running = eventually("running: nginx", || {
            let ended = process.has_ended();
            let pid = std::fs::metadata(file("nginx.pid"));
            (ended || pid.is_ok_and(|file| file.size() > 0)).then_some(!ended)
        });
        let nginx = Self {
            both: format!("https://127.0.0.1:{port}"),
            http1: format!("https://127.0.0.1:{http1}"),
            root,
            process,
        };
        running.then_some(nginx)
    }

    /// What it serves, and where it stores what is put.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.path().join("www").join(name)
    }

    /// The requests it got: protocol, method, target, status, how many on their connection, bytes.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.root.path().join("requests.log"));
        log.unwrap().lines().map(ToOwned::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process.end();
        let said = std::fs::read_to_string(self.root.path().join("stderr.log"));
        println!("--- nginx said:\n{}---", said.unwrap_or_default());
    }
}

/// A program of ours in Python, for the packages of `peers/python.txt`.
fn python(program: &str) -> Command {
    let python = here().join("venv/bin/python");
    let found = ["grpc", "websockets"].iter().all(|package| {
        let lib = here().join("venv/lib");
        std::fs::read_dir(lib).is_ok_and(|mut versions| {
            versions.any(|version| {
                let packages = version.unwrap().path().join("site-packages");
                packages.join(package).exists()
            })
        })
    });
    assert!(
        found,
        "grpcio or websockets is missing: `make setup-test` installs them"
    );
    let mut command = Command::new(python);
    command.arg(here().join(program));
    command
}

/// A server that has told its port.
pub struct Peer {
    /// On 127.0.0.1.
    pub port: u16,
    process: Process,
    log: PathBuf,
}

impl Peer {
    /// gRPC behind TLS.
    pub fn grpc(pki: &Pki) -> Self {
        let mut command = python("grpc_peer.py");
        command
            .arg("serve")
            .args([pki.file("server.pem"), pki.file("server.key")]);
        Self::start(command, pki.file("grpc.log"))
    }

    /// WebSocket, plaintext.
    pub fn websocket(dir: &Path) -> Self {
        let mut command = python("websocket_peer.py");
        command.arg("serve");
        Self::start(command, dir.join("websocket.log"))
    }

    fn start(mut command: Command, log: PathBuf) -> Self {
        command.stdout(Stdio::piped());
        let mut process = Process::spawn(command, "python3", log.clone());
        let mut line = String::new();
        let stdout = process.child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|_| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("no port but {line:?}:\n{said}")
        });
        Self { port, process, log }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.process.end();
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        println!("--- the peer said:\n{said}---");
    }
}

/// Runs a client that ends by itself and prints JSON.
pub fn client(program: &str, arguments: &[&str]) -> Value {
    let output = python(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A client that holds a connection. Killed when dropped.
pub struct Staying {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Staying {
    /// Returns once the WebSocket at `url` is open; it is pinged every `silence` seconds, 0: never.
    pub fn start(url: &str, silence: f64) -> Self {
        let mut child = python("websocket_peer.py")
            .args(["stay", url, &silence.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Self { child, stdout }
    }

    /// Waits until the other side ends it: for how many seconds it was open.
    pub fn lasted(mut self) -> f64 {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
