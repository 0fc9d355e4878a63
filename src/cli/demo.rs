//! `countersign demo`: the mock vendors and the real proxy in one process, on loopback.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use super::progress;
use crate::config::{Config, Secrets};
use crate::logs;
use crate::outbound::VARIABLES;
use crate::server::{self, Running};
use crate::tls::Roots;
use countersign_demo::{CALLS, MockVendors, Row};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// Ports of the proxy and of its admin listener, as in the README. If one is in use, the system
/// chooses another.
const LISTENER_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9090;

/// Arguments of `countersign demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Call every vendor once through the proxy, print what each vendor saw, and exit
    #[arg(long)]
    once: bool,
}

/// Runs the demo. Exit code 0: stopped by Ctrl-C, or with `--once` every vendor saw the login it
/// requires.
pub(crate) async fn run(arguments: &Arguments) -> ExitCode {
    match demonstrate(arguments.once).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            logs::print_line(&format!("countersign demo: {cause}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Re-executes this process without the outbound proxies of the environment, if there are any: the
/// demo connects to loopback only, which a company's proxy cannot reach. If that fails, the demo
/// runs with them.
pub(super) fn unset_proxies() {
    use std::os::unix::process::CommandExt;

    let mut command = match std::env::current_exe() {
        Ok(program) => std::process::Command::new(program),
        Err(_) => return,
    };
    let set: Vec<&str> = VARIABLES
        .into_iter()
        .filter(|name| std::env::var_os(name).is_some())
        .collect();
    if set.is_empty() {
        return;
    }
    for name in set {
        command.env_remove(name);
    }
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only when it has failed.
    let _ = command.args(arguments).exec();
}

async fn demonstrate(once: bool) -> Result<bool, Box<dyn Error>> {
    // Registered first: an interrupted demo must remove its directory and its listeners.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let dir = tempfile::tempdir()?;
    let vendors =
        progress::with_progress("starting the vendors", MockVendors::start(dir.path())).await?;
    let path = dir.path().join("proxy.yaml");
    let (listener, admin) = if once {
        (loopback(0), loopback(0))
    } else {
        (free(LISTENER_PORT), free(ADMIN_PORT))
    };
    std::fs::write(&path, vendors.proxy_yaml(listener, admin))?;
    progress::with_progress(
        "consenting to the vendor that needs it",
        consent(&vendors, &path),
    )
    .await?;

    let mut config = Config::load(&path, Secrets::Resolve).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    // With `--once`, only the table goes to stdout.
    config.access_log = !once;
    let running = server::start(config)?;

    let succeeded = if once {
        let calls = vendors.call_all(running.listeners[0]);
        let rows = progress::with_progress("calling the vendors", calls).await?;
        print_table(&rows)?;
        rows.iter().all(|row| row.problem.is_none())
    } else {
        print_instructions(&vendors, &running, &path)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        true
    };
    running.stop_interrupted().await;
    Ok(succeeded)
}

/// Consents as a user would: runs `countersign authorize`, opens the URL that it prints, and pastes
/// the URL of the redirect.
async fn consent(vendors: &MockVendors, config: &Path) -> Result<(), Box<dyn Error>> {
    let mut authorize = Command::new(std::env::current_exe()?)
        .args(["authorize", "maxmd", "--config"])
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = authorize.stdin.take().ok_or("no stdin")?;
    let stdout = authorize.stdout.take().ok_or("no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut url = None;
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("https://") {
            url = Some(line);
            break;
        }
    }
    if let Some(url) = url {
        let browser = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_backend_preconfigured(Roots::load(&vendors.files.ca)?.client_config(None)?)
            .build()?;
        let response = browser.get(url).send().await?;
        let location = response
            .headers()
            .get("location")
            .and_then(|location| location.to_str().ok())
            .ok_or("the consent page did not redirect")?;
        stdin.write_all(format!("{location}\n").as_bytes()).await?;
    }
    drop(stdin);
    // The pipe must stay open until the command has written everything.
    while lines.next_line().await?.is_some() {}
    let output = authorize.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("countersign authorize failed: {}", stderr.trim()).into())
}

fn print_instructions(vendors: &MockVendors, running: &Running, config: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "Five mock vendors and the proxy in front of them are running, configured by\n\
         {}\n\n\
         Call any of them, with the caller's key and without a vendor's secret:\n",
        config.display()
    )?;
    for call in &CALLS {
        writeln!(
            out,
            "curl -s -H 'X-Countersign-Key: {}' 'http://{}/{}{}'",
            vendors.logins.caller_key, running.listeners[0], call.vendor, call.path
        )?;
    }
    writeln!(
        out,
        "\nStatus: http://{}/\nCtrl-C stops everything.\n",
        running.admin
    )?;
    out.flush()
}

fn print_table(rows: &[Row]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let (good, bad, end) = if colour {
        ("\x1b[32m", "\x1b[31m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let headings = [
        "VENDOR",
        "REQUEST AT THE VENDOR",
        "LOGIN THE VENDOR SAW (MASKED)",
    ];
    let widest = |head: &str, cell: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| cell(row).chars().count())
            .chain([head.len()])
            .max()
            .unwrap_or_default()
    };
    let vendor = widest(headings[0], |row| row.vendor);
    let request = widest(headings[1], |row| &row.request);
    let login = widest(headings[2], |row| &row.login);
    writeln!(
        out,
        "{:vendor$}  {:request$}  {:login$}  STATUS",
        headings[0], headings[1], headings[2]
    )?;
    for row in rows {
        write!(
            out,
            "{:vendor$}  {:request$}  {:login$}  {:>6}  ",
            row.vendor, row.request, row.login, row.status
        )?;
        match &row.problem {
            None => writeln!(out, "{good}right{end}")?,
            Some(problem) => writeln!(out, "{bad}wrong: {problem}{end}")?,
        }
    }
    let wrong = rows.iter().filter(|row| row.problem.is_some()).count();
    if wrong == 0 {
        writeln!(
            out,
            "\n{good}Every vendor saw the login it requires, and no credential of the caller.{end}"
        )?;
    } else {
        writeln!(out, "\n{bad}{wrong} of {} are wrong.{end}", rows.len())?;
    }
    out.flush()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Returns the preferred port if it is free, else 0: the system chooses one.
fn free(port: u16) -> SocketAddr {
    // The probe is closed before the proxy binds. If another process binds the port in between, the
    // start fails with the address in the message.
    let in_use = TcpListener::bind(loopback(port)).is_err();
    loopback(if in_use { 0 } else { port })
}
