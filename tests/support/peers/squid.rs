//! squid as the only way out, asking for a password.

use super::{
    Command, ENDS_WITH_STDIN, MetadataExt, NOBODY, Path, Process, Stdio, TempDir, eventually,
    free_port, give_to_nobody, here,
};
use std::os::unix::process::CommandExt;

/// Lets only its user CONNECT to any port of 127.0.0.1.
pub struct Squid {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    home: TempDir,
    process: Process,
}

/// Whom it lets through.
pub const USER: &str = "us";
/// Their password, as a URL writes it.
pub const PASSWORD: &str = "p%40ss";
/// The same for squid: APR1 (`openssl passwd -apr1`) of `p@ss`.
const LOGIN: &str = "us:$apr1$abcdefgh$MNs1srWp03T8XAJZcWuBx/\n";

impl Squid {
    /// Starts it and waits until it listens.
    pub fn start() -> Self {
        let root = here().join("squid");
        assert!(
            root.join("usr/sbin/squid").exists(),
            "squid is missing: `make setup-test` fetches it"
        );
        // Another process may take the port between our choice and its bind.
        (0..3)
            .find_map(|_| Self::try_start(&root))
            .expect("squid ended at once, three times")
    }

    fn try_start(root: &Path) -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str| home.path().join(name);
        std::fs::write(file("passwords"), LOGIN).unwrap();
        // Its user may not be allowed to read this repository's directory.
        let copied = Command::new("cp")
            .arg("-R")
            .args([&root.join("usr"), home.path()])
            .status();
        assert!(copied.unwrap().success());
        let port = free_port();
        let dir = home.path().display();
        let configuration = format!(
            "\
http_port 127.0.0.1:{port}
pid_filename {dir}/squid.pid
cache_log {dir}/cache.log
access_log stdio:{dir}/access.log
coredump_dir none
cache deny all
pinger_enable off
unlinkd_program {dir}/usr/lib/squid/unlinkd
visible_hostname squid.test
shutdown_lifetime 0 seconds
mime_table {dir}/usr/share/squid/mime.conf
icon_directory {dir}/usr/share/squid/icons
error_directory {dir}/usr/share/squid/errors/en
auth_param basic program {dir}/usr/lib/squid/basic_ncsa_auth {dir}/passwords
auth_param basic realm the way out
acl known proxy_auth REQUIRED
acl tunnels method CONNECT
acl here dst 127.0.0.1
http_access allow tunnels here known
http_access deny all
"
        );
        std::fs::write(file("squid.conf"), configuration).unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", ENDS_WITH_STDIN, "sh"])
            .arg(file("usr/sbin/squid"))
            .args(["-N", "-f"])
            .arg(file("squid.conf"))
            .stdout(Stdio::null());
        // It would change to a user that this machine need not have.
        if std::fs::metadata(home.path()).unwrap().uid() == 0 {
            give_to_nobody(home.path());
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut process = Process::spawn(command, "squid", file("stderr.log"));
        let running = eventually("running: squid", || {
            let ended = process.has_ended();
            let listens = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            (ended || listens).then_some(!ended)
        });
        let squid = Self {
            port,
            home,
            process,
        };
        running.then_some(squid)
    }

    /// A line for each request it got: status and what was asked for among others.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.home.path().join("access.log"));
        log.unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        self.process.end();
        for log in ["stderr.log", "cache.log", "access.log"] {
            let said = std::fs::read_to_string(self.home.path().join(log)).unwrap_or_default();
            println!("--- squid's {log}:\n{said}---");
        }
    }
}
