//! `countersign authorize` as a person has it: what the vendor is sent, what may come back by the
//! browser, and what is pasted into a real terminal.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Termios, tcgetattr};
use tempfile::TempDir;
use url::Url;

use crate::support::peers::free_port;
use crate::support::script::{Reply, Server};
use crate::support::{countersign, eventually, signal};

const TOKENS: &str =
    r#"{"access_token":"a","refresh_token":"r","token_type":"Bearer","expires_in":3600}"#;

/// A vendor's token server, and a configuration that names it.
struct Scene {
    server: Server,
    dir: TempDir,
}

impl Scene {
    /// With `more` in the vendor's stanza.
    async fn new(redirect_uri: &str, more: &str) -> Self {
        let server = Server::start(async |_| Reply::json(TOKENS)).await;
        let dir = tempfile::tempdir().unwrap();
        let url = server.url("");
        let yaml = format!(
            "store: {{ file: {{ dir: state }} }}
vendors:
  v:
    upstream: {url}
    allow_plaintext: true
    auth:
      authorization_code:
        authorize_url: https://as.example/realms/a/auth
        token_url: {url}/token
        client_id: us
        client_secret: {{ value: s }}
        redirect_uri: {redirect_uri:?}
        {more}
"
        );
        std::fs::write(dir.path().join("proxy.yaml"), yaml).unwrap();
        Self { server, dir }
    }

    fn exchanges(&self) -> usize {
        self.server.asked_at("/token").len()
    }
}

/// `countersign authorize v`, its address printed.
struct Authorize {
    child: Child,
    stdin: Option<ChildStdin>,
    /// The parameters of that address.
    asked: HashMap<String, String>,
    // Held, or the next thing it says would end it.
    _stdout: BufReader<std::process::ChildStdout>,
}

impl Authorize {
    fn start(dir: &Path) -> Self {
        let mut child = countersign()
            .args(["authorize", "v"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let stdin = child.stdin.take();
        Self {
            asked: parameters(line.trim()),
            child,
            stdin,
            _stdout: stdout,
        }
    }

    fn state(&self) -> &str {
        &self.asked["state"]
    }

    fn paste(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Closes stdin; the exit code and what was said.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.stdin.take());
        let code = eventually("ended", || self.child.try_wait().unwrap()).code();
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (code, said)
    }
}

impl Drop for Authorize {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parameters(address: &str) -> HashMap<String, String> {
    let url = Url::parse(address).unwrap();
    url.query_pairs().into_owned().collect()
}

fn browser() -> reqwest::Client {
    countersign::tls::install_provider();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_uri_is_sent_byte_for_byte_as_it_is_written() {
    for uri in [
        "https://app.example",
        "https://App.Example:443/Back",
        "http://app.example:80/a/../b/./c?x=a%2fb&y=%7E",
        "https://app.example/a b%20c|d".replace(' ', "+").as_str(),
        "https://b\u{fc}cher.example/\u{e4}",
        "com.example.app:/oauth",
        "urn:ietf:wg:oauth:2.0:oob",
    ] {
        let scene = Scene::new(uri, "").await;
        let mut authorize = Authorize::start(scene.dir.path());
        assert_eq!(authorize.asked["redirect_uri"], uri);
        let answer = format!("?code=c&state={}", authorize.state());
        authorize.paste(&answer);
        let (code, said) = authorize.end();
        assert_eq!(code, Some(0), "{said}");
        let sent = &scene.server.asked_at("/token")[0];
        assert_eq!(sent.member("redirect_uri").as_deref(), Some(uri));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_the_servers_page_posts_is_taken_like_a_redirect() {
    let callback = format!("http://127.0.0.1:{}/back", free_port());
    let scene = Scene::new(&callback, "").await;
    let authorize = Authorize::start(scene.dir.path());
    let browser = browser();
    let post = |body: String| browser.post(&callback).body(body);
    let form = "application/x-www-form-urlencoded";
    let state = authorize.state();
    let good = format!("code=c&state={state}");
    for (status, request) in [
        (415, post(good.clone())),
        (415, post(good.clone()).header("Content-Type", "text/plain")),
        (413, post("x".repeat(300_000)).header("Content-Type", form)),
        (
            400,
            post("code=c&state=other".into()).header("Content-Type", form),
        ),
        (400, post("code=c".into()).header("Content-Type", form)),
        // Its parameters are in the body and nowhere else.
        (
            400,
            browser
                .post(format!("{callback}?{good}"))
                .header("Content-Type", form),
        ),
        // Each of them once.
        (
            400,
            post(format!("{good}&code=d")).header("Content-Type", form),
        ),
        (400, browser.get(format!("{callback}?{good}&state={state}"))),
        (405, browser.put(&callback)),
        (404, browser.post(callback.replace("/back", "/other"))),
    ] {
        let request = request.build().unwrap();
        let what = format!("{request:?}");
        let answered = browser.execute(request).await.unwrap();
        assert_eq!(answered.status().as_u16(), status, "{what}");
    }
    assert_eq!(scene.exchanges(), 0);
    let answered = post(good).header("Content-Type", format!("{form}; charset=UTF-8"));
    let answered = answered.send().await.unwrap();
    assert_eq!(answered.status().as_u16(), 200);
    let (code, said) = authorize.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(scene.exchanges(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_another_issuer_is_never_exchanged() {
    let given = "issuer: https://as.example/realms/a";
    for (more, wrong, right) in [
        (
            "",
            &[
                "https://evil.example",
                "https://as.example:444",
                "http://as.example",
                "https://as.example/realms/b",
                "https://AS.example",
            ][..],
            &["https://as.example", "https://as.example/", ""][..],
        ),
        (
            given,
            &[
                "https://as.example",
                "https://as.example/realms/a/",
                "https://as.example/realms/A",
                "",
            ],
            &["https://as.example/realms/a"],
        ),
    ] {
        for right in right {
            let callback = format!("http://127.0.0.1:{}/back", free_port());
            let scene = Scene::new(&callback, more).await;
            let authorize = Authorize::start(scene.dir.path());
            let browser = browser();
            let come_back = async |what: &str, issuer: &str| {
                let mut url = Url::parse(&callback).unwrap();
                url.query_pairs_mut()
                    .append_pair(what, "c")
                    .append_pair("state", authorize.state())
                    .append_pair("iss", issuer);
                browser.get(url).send().await.unwrap().status().as_u16()
            };
            for wrong in wrong {
                for what in ["code", "error"] {
                    assert_eq!(come_back(what, wrong).await, 400, "{more} {what} {wrong}");
                }
            }
            assert_eq!(scene.exchanges(), 0);
            assert_eq!(come_back("code", right).await, 200, "{more} {right}");
            let (code, said) = authorize.end();
            assert_eq!((code, scene.exchanges()), (Some(0), 1), "{said}");
            if more.is_empty() {
                // What to write when that is what the vendor calls itself.
                assert!(said.contains("`issuer: https://evil.example`"), "{said}");
            } else {
                assert!(said.contains("remove `issuer`"), "{said}");
            }
        }
    }
    // Pasted, it ends the command.
    let scene = Scene::new("https://app.example/", "").await;
    let mut authorize = Authorize::start(scene.dir.path());
    let state = authorize.state().to_owned();
    authorize.paste(&format!(
        "?code=c&state={state}&iss=https://evil.example/\u{1b}[2J"
    ));
    let (code, said) = authorize.end();
    assert_eq!((code, scene.exchanges()), (Some(1), 0), "{said}");
    assert!(said.contains("https://evil.example/?[2J"), "{said}");
}

/// A pseudo-terminal, and `countersign authorize v` as the only process of its session.
struct Terminal {
    master: File,
    // Keeps the settings after the process has ended.
    _slave: OwnedFd,
    before: Termios,
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(dir: &Path) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let before = tcgetattr(&master).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        // Makes it the terminal that Ctrl-C and Ctrl-Z are typed on.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(countersign().get_program());
        let child = command
            .args(["authorize", "v"])
            .current_dir(dir)
            .env("NO_COLOR", "1")
            .env_remove("HTTPS_PROXY")
            .env_remove("ALL_PROXY")
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let master = File::from(master);
        let said = Arc::new(Mutex::new(String::new()));
        let (mut output, sink) = (master.try_clone().unwrap(), said.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Fails once both ends are closed.
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..read]);
                sink.lock().unwrap().push_str(&text);
            }
        });
        let terminal = Self {
            master,
            _slave: slave,
            before,
            child,
            said,
        };
        terminal.shows("paste the URL");
        terminal
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    fn shows(&self, text: &str) {
        eventually(text, || self.said().contains(text).then_some(()));
    }

    /// The `state` in the address it shows.
    fn state(&self) -> String {
        let said = self.said();
        let mut lines = said.lines().map(str::trim);
        let address = lines.find(|line| line.starts_with("https://as.example/"));
        parameters(address.unwrap())["state"].clone()
    }

    fn type_in(&mut self, bytes: impl AsRef<[u8]>) {
        self.master.write_all(bytes.as_ref()).unwrap();
    }

    /// What matters of the terminal's settings.
    fn settings(&self) -> [u64; 5] {
        settings(&tcgetattr(&self.master).unwrap())
    }

    fn is_as_before(&self) -> bool {
        self.settings() == settings(&self.before)
    }

    fn ended(&mut self) -> Option<i32> {
        eventually("ended", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        println!("--- the terminal showed:\n{}\n---", self.said());
    }
}

fn settings(of: &Termios) -> [u64; 5] {
    [
        of.local_modes.bits().into(),
        of.input_modes.bits().into(),
        of.output_modes.bits().into(),
        of.special_codes[SpecialCodeIndex::VMIN].into(),
        of.special_codes[SpecialCodeIndex::VTIME].into(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paste_of_any_length_arrives_whole_in_whatever_it_is_wrapped() {
    let long = "x".repeat(20_000);
    for (before, after) in [
        ("https://app.example/cb?code=LONG&state=STATE", ""),
        ("\"https://app.example/cb?state=STATE&code=LONG\"", ""),
        (" <https://app.example/cb?state=STATE&code=LONG#_=_> ", ""),
        ("'app.example/cb?state=STATE&code=LONG'", ""),
        ("127.0.0.1:8765/cb?state=STATE&code=LONG", ""),
        ("`state=STATE&code=LONG`", ""),
        ("https://app.example/cb#state=STATE&code=LONG", ""),
        // The code alone, and corrected while typing.
        ("\u{201c}LONG\u{201d}", "nos\x7f\x08\x08yes\r"),
    ] {
        let scene = Scene::new("https://app.example/cb", "").await;
        let mut terminal = Terminal::start(scene.dir.path());
        assert!(!terminal.is_as_before());
        let paste = before
            .replace("STATE", &terminal.state())
            .replace("LONG", &long);
        terminal.type_in(paste + "\r" + after);
        assert_eq!(terminal.ended(), Some(0), "{before}");
        assert!(terminal.is_as_before(), "{before}");
        let sent = &scene.server.asked_at("/token")[0];
        assert_eq!(sent.member("code").as_ref(), Some(&long), "{before}");
        // Shown as it is typed.
        terminal.shows(&long[..1000]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_as_it_was_after_every_way_out() {
    for (way, code) in [
        ("typed ^C", 130),
        ("typed ^\\", 131),
        ("typed ^D", 1),
        ("INT", 130),
        ("TERM", 143),
        ("HUP", 129),
        ("QUIT", 131),
        ("a wrong state", 1),
    ] {
        let scene = Scene::new("https://app.example/cb", "").await;
        let mut terminal = Terminal::start(scene.dir.path());
        assert!(!terminal.is_as_before());
        match way {
            "typed ^C" => terminal.type_in("half a line\x03"),
            "typed ^\\" => terminal.type_in("\x1c"),
            "typed ^D" => terminal.type_in("\x04"),
            "a wrong state" => terminal.type_in("?code=c&state=other\r"),
            name => signal(terminal.child.id(), name),
        }
        assert_eq!(terminal.ended(), Some(code), "{way}");
        assert!(terminal.is_as_before(), "{way}");
        assert_eq!(scene.exchanges(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_as_it_was_while_the_command_is_stopped() {
    let scene = Scene::new("https://app.example/cb", "").await;
    let mut terminal = Terminal::start(scene.dir.path());
    let id = terminal.child.id();
    terminal.type_in("\x1a");
    eventually("stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let (_, state) = stat.rsplit_once(") ").unwrap();
        state.starts_with('T').then_some(())
    });
    assert!(terminal.is_as_before());
    signal(id, "CONT");
    eventually("ours again", || {
        let modes = tcgetattr(&terminal.master).unwrap().local_modes;
        (!modes.contains(LocalModes::ICANON)).then_some(())
    });
    let paste = format!("?code={}&state={}\r", "x".repeat(9_000), terminal.state());
    terminal.type_in(paste);
    assert_eq!(terminal.ended(), Some(0));
    assert!(terminal.is_as_before());
    assert_eq!(scene.exchanges(), 1);
}
