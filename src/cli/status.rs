//! `countersign status`: the vendors of a running proxy and the state of their credentials.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::progress::with_progress;
use super::table::{self, Row};
use crate::endpoint::{self, InvalidUrl};
use crate::wording::describe;

/// Arguments of `countersign status`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The proxy's admin listener: `admin.bind` in its configuration
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090")]
    admin: String,
    /// Print the proxy's JSON; with --watch one line each time
    #[arg(long)]
    json: bool,
    /// Repeat until Ctrl-C, and redraw the table each time
    #[arg(long)]
    watch: bool,
    /// Interval of --watch
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let hint = "write 500ms, 2s or 1m, at least 100ms";
    let interval = humantime::parse_duration(text).map_err(|_| hint.to_owned())?;
    let least = Duration::from_millis(100);
    (interval >= least)
        .then_some(interval)
        .ok_or_else(|| hint.to_owned())
}

/// A failure of `countersign status`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// `--admin` is not a URL.
    #[error("--admin {0}; {hint}", hint = .0.hint())]
    Admin(InvalidUrl),
    /// No response, or not one of an admin listener.
    #[error(
        "no status from {url}: {cause}; is `countersign serve` running, and is this its admin \
         listener? --admin specifies another"
    )]
    NoResponse {
        /// The URL of the request.
        url: String,
        /// The reason.
        cause: String,
    },
    /// Some vendors have no usable credential; the table has the details.
    #[error(
        "{failed} of {all} vendors are not usable; BREAKER and LAST ERROR show why, and the status \
         page at {page} what to do"
    )]
    NotUsable {
        /// Number of vendors that are not usable.
        failed: usize,
        /// Number of all vendors.
        all: usize,
        /// URL of the status page.
        page: String,
    },
    /// stdout could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Prints a line for each vendor, once or repeatedly until Ctrl-C.
///
/// # Errors
/// [`Error`]; [`Error::NotUsable`] after the table is printed. With `--watch` only when stdout or
/// signals fail.
pub(super) async fn run(arguments: &Arguments) -> Result<(), Error> {
    if arguments.watch {
        return watch(arguments).await;
    }
    let status = with_progress("waiting for the proxy", fetch(&arguments.admin)).await?;
    let rows = rows(&status);
    let text = if arguments.json {
        format!("{status:#}\n")
    } else {
        as_table(&status, &rows)
    };
    write(&text)?;
    let failed = rows.iter().filter(|row| !row.good).count();
    if failed > 0 {
        return Err(Error::NotUsable {
            failed,
            all: rows.len(),
            page: shown(&arguments.admin, "/"),
        });
    }
    Ok(())
}

/// Prints the status repeatedly. On a terminal each table overwrites the one before.
async fn watch(arguments: &Arguments) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let redraw = io::stdout().is_terminal() && !arguments.json;
    if redraw {
        write("\x1b[2J")?;
    }
    loop {
        let outcome = tokio::select! {
            outcome = fetch(&arguments.admin) => outcome,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let text = match outcome {
            Ok(status) if arguments.json => format!("{status}\n"),
            Ok(status) => as_table(&status, &rows(&status)),
            // The proxy may be starting or restarting, so this is no reason to stop.
            Err(cause) if arguments.json => {
                let _ = writeln!(io::stderr(), "error: {cause}");
                String::new()
            }
            Err(cause) => format!("error: {cause}\n"),
        };
        if redraw {
            let now = humantime::format_rfc3339_seconds(SystemTime::now());
            let every = humantime::format_duration(arguments.interval);
            let text = format!("{now}, every {every} until Ctrl-C\n\n{text}");
            // Clears each line to its end, then the rest below: clearing the screen would flicker.
            let text = text.replace('\n', "\x1b[K\n");
            write(&format!("\x1b[H{text}\x1b[J"))?;
        } else if arguments.json {
            write(&text)?;
        } else {
            write(&format!("{text}\n"))?;
        }
        tokio::select! {
            () = tokio::time::sleep(arguments.interval) => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    if redraw {
        // The terminal has written ^C on this line.
        write("\n")?;
    }
    Ok(())
}

fn rows(status: &Value) -> Vec<Row<7>> {
    let vendors = status["vendors"].as_array();
    vendors.into_iter().flatten().map(row).collect()
}

fn as_table(status: &Value, rows: &[Row<7>]) -> String {
    let headings = [
        "VENDOR",
        "AUTH",
        "STATE",
        "EXPIRES",
        "RENEWAL",
        "BREAKER",
        "LAST ERROR",
    ];
    let mut text = table::lines(headings, rows, 2);
    if let Some(refused) = status["config"]["last_error"].as_str() {
        for line in ["\nThe last reload was refused:\n", refused, "\n"] {
            text.push_str(line);
        }
    }
    text
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Returns the URL of `path` on the admin listener.
fn url(admin: &str, path: &str) -> Result<Url, InvalidUrl> {
    let scheme = if admin.contains("://") { "" } else { "http://" };
    endpoint::web_with_login(&format!("{scheme}{}{path}", admin.trim_end_matches('/')))
}

/// Returns the same URL without a password, for messages.
fn shown(admin: &str, path: &str) -> String {
    url(admin, path).map_or_else(
        |_| "--admin".to_owned(),
        |url| endpoint::without_login(&url),
    )
}

async fn fetch(admin: &str) -> Result<Value, Error> {
    let url = url(admin, "/status").map_err(Error::Admin)?;
    let no_response = |cause: String| Error::NoResponse {
        url: endpoint::without_login(&url),
        cause,
    };
    let request = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .build()?;
        client.get(url.clone()).send().await
    };
    let response = request
        .await
        .map_err(|error| no_response(root_cause(&error)))?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(no_response(format!(
            "the response is {}",
            response.status()
        )));
    }
    let body = response
        .text()
        .await
        .map_err(|error| no_response(root_cause(&error)))?;
    match serde_json::from_str::<Value>(&body) {
        Ok(status) if status["vendors"].is_array() => Ok(status),
        Ok(_) | Err(_) => Err(no_response(
            "this is not an admin listener of Countersign".into(),
        )),
    }
}

/// Returns the innermost cause: reqwest's own text does not contain it.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    describe(&text)
}

fn row(vendor: &Value) -> Row<7> {
    let text = |key: &str| vendor[key].as_str().unwrap_or("-").to_owned();
    let at = |key: &str| humantime::parse_rfc3339(vendor[key].as_str()?).ok();
    let state = text("state");
    let expires = at("expires_at");
    let good = match state.as_str() {
        "fresh" | "refreshing" | "static" | "none" => true,
        // The current token stays valid although a renewal was refused.
        "failed" | "reauthorize" => expires.is_some_and(|at| at > SystemTime::now()),
        _ => false,
    };
    let circuit = text("breaker");
    let open = matches!(circuit.as_str(), "open" | "half_open");
    let errors = [
        vendor["last_error"].as_str(),
        vendor["breaker_reason"].as_str(),
    ];
    let errors: Vec<&str> = errors.into_iter().flatten().collect();
    Row {
        good: good && !open,
        cells: [
            text("name"),
            text("auth"),
            state,
            expires.map_or("-".into(), relative),
            at("refresh_at").map_or("-".into(), relative),
            circuit,
            if errors.is_empty() {
                "-".to_owned()
            } else {
                errors.join("; ")
            },
        ],
    }
}

/// Returns the time from now, in whole seconds: `in 5m` or `10s ago`.
fn relative(at: SystemTime) -> String {
    let whole = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs()));
    match at.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", whole(left)),
        Err(past) => format!("{} ago", whole(past.duration())),
    }
}
