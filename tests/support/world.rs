//! One running proxy in front of one mock vendor: what most tests need.
//!
//! ```ignore
//! let world = World::with_vendor("    refuse: [ /secret ]\n").start().await;
//! assert_eq!(status_of(&world.get("/v/secret")), 403);
//! assert_eq!(world.arrived(), "");
//! ```

use std::net::TcpStream;
use std::path::PathBuf;

use countersign_demo::MockServer;
use tempfile::TempDir;

use super::{PATIENCE, Proxy, signal};

/// A proxy, the mock vendor behind it, and the directory of its files.
pub struct World {
    /// Echoes requests and records them.
    pub echo: MockServer,
    /// The real binary.
    pub proxy: Proxy,
    /// The directory with proxy.yaml.
    pub dir: TempDir,
}

/// A world before it is started.
pub struct Builder {
    dir: TempDir,
    listener: String,
    top: String,
    /// All of the configuration behind `top`: vendors, in most tests.
    rest: String,
    environment: Vec<(&'static str, String)>,
    open_files: Option<u32>,
}

/// Stands for the mock vendor's URL in every piece of configuration.
pub const ECHO: &str = "ECHO";

impl World {
    /// A world with the vendor `v` under `/v`; `more` is the rest of its stanza, indented by four.
    pub fn with_vendor(more: &str) -> Builder {
        Self::with_vendor_at("", more)
    }

    /// A world with the vendor `v`, whose upstream has this base path.
    pub fn with_vendor_at(base: &str, more: &str) -> Builder {
        Self::with_vendors(&format!(
            "  v:\n    upstream: {ECHO}{base}\n    allow_plaintext: true\n{more}"
        ))
    }

    /// A world with these stanzas under `vendors:`.
    pub fn with_vendors(stanzas: &str) -> Builder {
        Builder {
            dir: tempfile::tempdir().unwrap(),
            listener: "{ bind: 127.0.0.1:0 }".to_owned(),
            top: String::new(),
            rest: format!("vendors:\n{stanzas}\n"),
            environment: Vec::new(),
            open_files: None,
        }
    }

    /// The response to `GET path` on a connection of its own.
    pub fn get(&self, path: &str) -> String {
        self.get_with(path, "")
    }

    /// The response to `GET path` with these header lines, each with its CR LF.
    pub fn get_with(&self, path: &str, fields: &str) -> String {
        self.proxy.raw(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n"
        ))
    }

    /// The response to one request, whose head has LF for CR LF, on a connection of its own.
    pub fn send(&self, head: &str, body: &str) -> String {
        let mut head = head.replace('\n', "\r\n");
        if !head.contains("Connection: ") {
            head.push_str("\r\nConnection: close");
        }
        self.proxy.raw(format!("{head}\r\n\r\n{body}"))
    }

    /// The last request as the vendor read it; empty when there was none.
    pub fn arrived(&self) -> String {
        let requests = self.echo.requests();
        let last = requests.last().map(|request| &request.raw[..]);
        String::from_utf8_lossy(last.unwrap_or_default()).into_owned()
    }

    /// The value of a series, by its name with labels; `missing` when there is none.
    pub fn metric(&self, series: &str) -> String {
        let metrics = self.proxy.admin("/metrics").1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.map_or("missing", str::trim).to_owned()
    }

    /// A new connection to the listener, which waits for a response as long as tests do.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.proxy.data).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The first vendor's requests in flight.
    pub fn in_flight(&self) -> u64 {
        let status = self.proxy.admin("/status").1;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["vendors"][0]["in_flight"].as_u64().unwrap()
    }

    /// The path of proxy.yaml.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("proxy.yaml")
    }

    /// Writes a configuration and asks the proxy to reload it.
    pub fn reload(&self, yaml: &str) {
        std::fs::write(self.file(), yaml).unwrap();
        signal(self.proxy.id(), "HUP");
    }
}

impl Builder {
    /// Uses a directory that has files already: keys, certificates.
    pub fn within(self, dir: TempDir) -> Self {
        Self { dir, ..self }
    }

    /// Replaces the listener, a YAML flow mapping.
    pub fn listener(self, listener: &str) -> Self {
        let listener = listener.to_owned();
        Self { listener, ..self }
    }

    /// Adds YAML at the top level, `callers:` for one.
    pub fn top(mut self, yaml: &str) -> Self {
        self.top.push_str(yaml.trim_end());
        self.top.push('\n');
        self
    }

    /// Adds the caller `app`, who may use everything, with this key.
    pub fn caller(self, key: &str) -> Self {
        self.top("callers: { app: { api_key: { env: CALLER }, allow: [ \"*\" ] } }")
            .env("CALLER", key)
    }

    /// Sets a variable of the proxy's environment.
    pub fn env(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Lets the proxy have at most this many files open.
    pub fn open_files(self, most: u32) -> Self {
        let open_files = Some(most);
        Self { open_files, ..self }
    }

    /// Starts the vendor and the proxy, and returns once that is ready.
    pub async fn start(self) -> World {
        countersign::tls::install_provider();
        let echo = countersign_demo::echo().await.unwrap();
        let yaml = format!(
            "listeners: [ {} ]\nadmin: {{ bind: 127.0.0.1:0 }}\ndrain: {{ delay: 0s }}\n{}{}",
            self.listener, self.top, self.rest
        );
        let yaml = yaml.replace(ECHO, &echo.url());
        let dir = self.dir.path().to_owned();
        let (environment, open_files) = (self.environment, self.open_files);
        let starting = tokio::task::spawn_blocking(move || {
            if let Some(most) = open_files {
                return Proxy::start_limited(&dir, &yaml, most);
            }
            let environment = environment.iter().map(|(name, value)| (*name, &**value));
            Proxy::start_with(&dir, &yaml, &environment.collect::<Vec<_>>())
        });
        World {
            echo,
            proxy: starting.await.unwrap(),
            dir: self.dir,
        }
    }
}
