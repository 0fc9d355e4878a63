//! Two servers whose refresh tokens work once, and that end the whole family when one is shown
//! again.

use super::{
    Arc, BufRead, BufReader, Command, Mutex, PASTED, Path, Pki, Process, SECRET, Stdio, TempDir,
    Value, eventually, here, json, python, thread, told,
};

/// django-oauth-toolkit, and an API that accepts only its tokens; see `toolkit.py` for its
/// clients.
pub struct Toolkit {
    /// `https://localhost:PORT`.
    pub origin: String,
    process: Process,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Toolkit {
    /// Starts it with `pki`'s server certificate. Tokens live for `access_token_seconds`.
    pub fn start(pki: &Pki, access_token_seconds: u64) -> Self {
        let settings = json!({
            "cert": pki.file("server.pem"),
            "key": pki.file("server.key"),
            "database": pki.file("toolkit.sqlite"),
            "secret": SECRET,
            "redirectUris": [PASTED],
            "accessTokenSeconds": access_token_seconds,
        });
        let mut command = python();
        command
            .arg(here().join("toolkit.py"))
            .arg(settings.to_string());
        let log = pki.file("toolkit.log");
        let (process, events, listening) = start(command, "python3", &log);
        Self {
            origin: format!("https://localhost:{}", listening["port"]),
            process,
            events,
        }
    }

    /// The calls of its token endpoint so far: grant, status, error.
    pub fn token_calls(&self) -> Vec<Value> {
        told(&self.events, "token")
    }
}

impl Drop for Toolkit {
    fn drop(&mut self) {
        println!("--- the toolkit told: {:#?}", self.events.lock().unwrap());
        self.process.end();
    }
}

/// Glewlwyd with its `OpenID` Connect plugin; see `glewlwyd.py` for its client.
pub struct Glewlwyd {
    /// `https://localhost:PORT`.
    pub origin: String,
    /// The `Cookie` of a person who has logged in and consented.
    pub cookie: String,
    process: Process,
    _home: TempDir,
}

impl Glewlwyd {
    /// Starts it with `pki`'s server certificate. Tokens live for `access_token_seconds`.
    pub fn start(pki: &Pki, access_token_seconds: u64) -> Self {
        let root = here().join("glewlwyd");
        assert!(
            root.join("usr/bin/glewlwyd").exists(),
            "glewlwyd is missing: `make setup-test` installs it"
        );
        let home = tempfile::tempdir().unwrap();
        let settings = json!({
            "root": root,
            "home": home.path(),
            "ca": pki.file("ca.pem"),
            "cert": pki.file("server.pem"),
            "key": pki.file("server.key"),
            "secret": SECRET,
            "redirectUris": [PASTED],
            "accessTokenSeconds": access_token_seconds,
        });
        let mut command = Command::new("python3");
        command
            .arg(here().join("glewlwyd.py"))
            .arg(settings.to_string());
        let log = pki.file("glewlwyd.log");
        let (process, _, listening) = start(command, "python3", &log);
        Self {
            origin: format!("https://localhost:{}", listening["port"]),
            cookie: listening["cookie"].as_str().unwrap().to_owned(),
            process,
            _home: home,
        }
    }
}

impl Drop for Glewlwyd {
    fn drop(&mut self) {
        self.process.end();
        let said = std::fs::read_to_string(&self.process.log).unwrap_or_default();
        println!("--- glewlwyd said:\n{said}---");
    }
}

/// A program that tells events, and its first: where it listens.
fn start(
    mut command: Command,
    package: &str,
    log: &Path,
) -> (Process, Arc<Mutex<Vec<Value>>>, Value) {
    command.stdout(Stdio::piped());
    let mut process = Process::spawn(command, package, log.to_owned());
    let events = Arc::new(Mutex::new(Vec::new()));
    let output = BufReader::new(process.child.stdout.take().unwrap());
    let sink = events.clone();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
            sink.lock().unwrap().push(event);
        }
    });
    let listening = eventually("listening", || {
        process.assert_running();
        told(&events, "listening").first().cloned()
    });
    (process, events, listening)
}
