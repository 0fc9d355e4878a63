//! A real redis-server, for one test and gone with it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::peers::{ENDS_WITH_STDIN, Pki, Process, free_port};
use super::{eventually, signal};

/// A running redis-server on a port of its own.
pub struct Redis {
    port: u16,
    settings: Vec<String>,
    login: String,
    scheme: &'static str,
    dir: TempDir,
    process: Process,
}

/// What every one of them asks for.
const PASSWORD: &str = "p@ss/word of redis";

impl Redis {
    /// With a password, in plaintext. What it holds outlives [`Redis::restart`].
    pub fn start() -> Self {
        let settings = ["--requirepass", PASSWORD, "--appendonly", "yes"];
        let login = format!(":{}@", encoded(PASSWORD));
        Self::with(|_| settings.map(str::to_owned).to_vec(), &login, "redis")
    }

    /// The same over TLS alone, with a user beside the password, and no rights beyond ours.
    pub fn start_tls(pki: &Pki) -> Self {
        let file = |name: &str| pki.file(name).display().to_string();
        let settings = |port: u16| {
            [
                ("--port", "0".to_owned()),
                ("--tls-port", port.to_string()),
                ("--tls-cert-file", file("server.pem")),
                ("--tls-key-file", file("server.key")),
                ("--tls-auth-clients", "no".to_owned()),
                ("--user", "default off".to_owned()),
                // The password's SHA-256: its blank would end the rule.
                (
                    "--user",
                    format!(
                        "countersign on #{} ~countersign:* +hmget +hset +get +set +del +pexpire +eval",
                        hex::encode(countersign::tls::sha256(&[PASSWORD.as_bytes()]))
                    ),
                ),
            ]
            .into_iter()
            .flat_map(|(name, value)| {
                // A rule is as many words.
                let words: Vec<String> = if name == "--user" {
                    value.split(' ').map(str::to_owned).collect()
                } else {
                    vec![value]
                };
                std::iter::once(name.to_owned()).chain(words)
            })
            .collect()
        };
        let login = format!("countersign:{}@", encoded(PASSWORD));
        Self::with(settings, &login, "rediss")
    }

    /// A replica of `primary`, which permits no writes.
    pub fn replica_of(primary: &Self) -> Self {
        let primary = primary.port.to_string();
        let settings = [
            "--replicaof",
            "127.0.0.1",
            &primary,
            "--masterauth",
            PASSWORD,
            "--requirepass",
            PASSWORD,
        ];
        let settings = settings.map(str::to_owned).to_vec();
        let login = format!(":{}@", encoded(PASSWORD));
        Self::with(move |_| settings.clone(), &login, "redis")
    }

    fn with(settings: impl Fn(u16) -> Vec<String>, login: &str, scheme: &'static str) -> Self {
        // One program with two names; Debian's package of the other one starts a service.
        let program = Path::new("/usr/bin/redis-check-rdb");
        assert!(
            program.exists(),
            "{} is missing: Debian package redis-tools (`make setup-test` installs it)",
            program.display()
        );
        // Another process may take the port between our choice and its bind.
        for _ in 0..3 {
            let dir = tempfile::tempdir().unwrap();
            symlink(program, dir.path().join("redis-server")).unwrap();
            let port = free_port();
            let settings = settings(port);
            let mut redis = Self {
                process: run(dir.path(), port, &settings),
                port,
                settings,
                login: login.to_owned(),
                scheme,
                dir,
            };
            if redis.running() {
                return redis;
            }
        }
        panic!("redis-server ended at once, three times");
    }

    /// `redis://USER:PASSWORD@localhost:PORT`.
    pub fn url(&self) -> String {
        let Self {
            scheme,
            login,
            port,
            ..
        } = self;
        format!("{scheme}://{login}localhost:{port}")
    }

    /// Stops answering, without closing anything.
    pub fn pause(&self) {
        signal(self.id(), "STOP");
    }

    /// Answers again, first what it was asked meanwhile.
    pub fn resume(&self) {
        signal(self.id(), "CONT");
    }

    /// Ends it the hard way.
    pub fn stop(&mut self) {
        signal(self.id(), "KILL");
        self.process.end();
    }

    /// Starts it again on the same port, after [`Redis::stop`].
    pub fn restart(&mut self) {
        self.process = run(self.dir.path(), self.port, &self.settings);
        assert!(self.running(), "redis-server ended at once");
    }

    /// Forgets everything.
    pub fn flush(&self) {
        self.command(&["FLUSHALL"]);
    }

    /// The answer to a command, as text.
    pub fn command(&self, words: &[&str]) -> String {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let answer: redis::Value = command.query(&mut connection).unwrap();
        format!("{answer:?}")
    }

    fn id(&self) -> u32 {
        let id = std::fs::read_to_string(self.dir.path().join("redis.pid")).unwrap();
        id.trim().parse().unwrap()
    }

    /// `false`: it has ended.
    fn running(&mut self) -> bool {
        eventually("listening: redis-server", || {
            if self.process.has_ended() {
                return Some(false);
            }
            std::net::TcpStream::connect(("127.0.0.1", self.port))
                .is_ok()
                .then_some(true)
        })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if !self.process.has_ended() {
            // A paused one would not end.
            self.resume();
        }
        self.process.end();
    }
}

fn run(dir: &Path, port: u16, settings: &[String]) -> Process {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", ENDS_WITH_STDIN, "sh"])
        .arg(dir.join("redis-server"))
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--dir"])
        .arg(dir)
        .arg("--pidfile")
        .arg(dir.join("redis.pid"))
        .args(settings)
        .stdout(Stdio::null());
    Process::spawn(command, "redis-tools", dir.join("redis.log"))
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
