//! `countersign demo`: the stand-in vendors and the real proxy in one process, on loopback.

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

/// Where the README says the proxy and its admin listener are; another port when it is taken.
const LISTENER_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9090;

/// What follows `countersign demo`.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Call every vendor once through the proxy, print what each of them saw, and exit
    #[arg(long)]
    once: bool,
}

/// Runs the demo. 0: ended by Ctrl-C, or with `--once` every vendor saw the login it demands.
pub(crate) async fn run(arguments: &Arguments) -> ExitCode {
    match demonstrate(arguments.once).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            logs::say(&format!("countersign demo: {cause}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Begins this process anew without the environment's outbound proxies, if there are any: everything
/// the demo speaks to is on loopback, where a company's proxy does not lead. The demo runs as it is
/// where that fails.
pub(super) fn leave_out_proxies() {
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
    // Before anything can be interrupted: the directory and the listeners are ours to clear away.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;

    let dir = tempfile::tempdir()?;
    let vendors = progress::shown("starting the vendors", MockVendors::start(dir.path())).await?;
    let path = dir.path().join("proxy.yaml");
    let (listener, admin) = if once {
        (loopback(0), loopback(0))
    } else {
        (free(LISTENER_PORT), free(ADMIN_PORT))
    };
    std::fs::write(&path, vendors.proxy_yaml(listener, admin))?;
    progress::shown(
        "consenting, for the one who wants it",
        consent(&vendors, &path),
    )
    .await?;

    let mut config = Config::load(&path, Secrets::Resolve).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })?;
    // With `--once` the table is all that belongs on stdout.
    config.access_log = !once;
    let running = server::start(config)?;

    let all_right = if once {
        let calls = vendors.call_all(running.listeners[0]);
        let rows = progress::shown("calling the vendors", calls).await?;
        print_table(&rows)?;
        rows.iter().all(|row| row.problem.is_none())
    } else {
        print_invitation(&vendors, &running, &path)?;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        true
    };
    running.stop_interrupted().await;
    Ok(all_right)
}

/// Plays the person who consents: runs `countersign authorize` as anybody would, opens the address
/// it prints, and pastes what the browser was redirected to.
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
    // Its pipe must stay open until it has said everything.
    while lines.next_line().await?.is_some() {}
    let output = authorize.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("countersign authorize failed: {}", said.trim()).into())
}

fn print_invitation(vendors: &MockVendors, running: &Running, config: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "Mock vendors, five of them, and the proxy in front of them are running, configured by\n\
         {}\n\n\
         Call any of them, with the caller's key and no vendor's secret:\n",
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
        "\nStatus: http://{}/\nCtrl-C ends everything.\n",
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
    let heads = [
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
    let vendor = widest(heads[0], |row| row.vendor);
    let request = widest(heads[1], |row| &row.request);
    let login = widest(heads[2], |row| &row.login);
    writeln!(
        out,
        "{:vendor$}  {:request$}  {:login$}  ANSWER",
        heads[0], heads[1], heads[2]
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
            "\n{good}Every vendor saw the login it demands, and nothing of the caller's.{end}"
        )?;
    } else {
        writeln!(out, "\n{bad}{wrong} of {} are wrong.{end}", rows.len())?;
    }
    out.flush()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The preferred port when nobody has it, else one that the system chooses.
fn free(port: u16) -> SocketAddr {
    // The probe is closed before the proxy binds; whoever is quicker makes the start fail with
    // the address in the message.
    let taken = TcpListener::bind(loopback(port)).is_err();
    loopback(if taken { 0 } else { port })
}
