//! One of the two programs, started and stopped.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{PATIENCE, countersign, eventually, exchange, status_of};

/// A running `countersign serve` of any build. Killed when dropped.
pub struct Program {
    /// The listener for callers.
    pub data: SocketAddr,
    child: Child,
    /// The end of what it said on stderr.
    said: Arc<Mutex<Vec<String>>>,
}

/// The binary of this build.
pub fn ours() -> Command {
    countersign()
}

/// The binary at `path`, with the same environment.
pub fn other(path: &OsStr) -> Command {
    let ours = countersign();
    let mut command = Command::new(path);
    for (name, value) in ours.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null());
    command
}

/// Lines that are kept for those who look for a cause.
const KEPT: usize = 40;

impl Program {
    /// Serves `yaml`, and returns once it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(mut command: Command, dir: &Path, yaml: &str) -> Self {
        let config = dir.join("proxy.yaml");
        std::fs::write(&config, yaml).unwrap();
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let output = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        let kept = said.clone();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let mut kept = kept.lock().unwrap();
                if kept.len() == KEPT {
                    kept.remove(0);
                }
                kept.push(line.clone());
                // Nobody need be listening any more.
                let _ = sender.send(line);
            }
        });
        let none = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut program = Self {
            data: none,
            child,
            said,
        };
        // The admin listener is named last.
        let mut admin = none;
        while admin.port() == 0 {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                panic!("no addresses from serve:\n{}", program.said());
            };
            let address = line.split_once("address=").and_then(|(_, rest)| {
                let word = rest.split([' ', '"']).find(|word| !word.is_empty())?;
                word.parse().ok()
            });
            match address {
                Some(address) if line.contains("admin") => admin = address,
                Some(address) if line.contains("listening") => program.data = address,
                Some(_) | None => {}
            }
        }
        let ready = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        eventually("ready", || {
            (status_of(&exchange(admin, ready.as_bytes())) == 200).then_some(())
        });
        program
    }

    /// The end of what it said on stderr.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// `true` if it has not ended by itself.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
