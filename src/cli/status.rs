//! `countersign status`: what a running proxy says of its vendors.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::progress;
use super::table::{self, Row};
use crate::endpoint::{self, Wrong};
use crate::wording::in_words;

/// Whom to ask.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The proxy's admin listener: `admin.bind` in its configuration
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090")]
    admin: String,
    /// Print JSON, as the proxy gave it; with --watch one line each time
    #[arg(long)]
    json: bool,
    /// Ask again and again until Ctrl-C, and draw the table anew each time
    #[arg(long)]
    watch: bool,
    /// How long to wait in between, with --watch
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

/// Why there is no good news.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// `--admin` names no URL.
    #[error("--admin {0}; {hint}", hint = .0.hint())]
    Admin(Wrong),
    /// Nobody there, or somebody else.
    #[error(
        "no status from {url}: {cause}; does `countersign serve` run, and is this its admin \
         listener? --admin names another"
    )]
    NoAnswer {
        /// What was asked.
        url: String,
        /// What came of it.
        cause: String,
    },
    /// The table says which.
    #[error(
        "{failed} of {all} vendors are not usable; BREAKER and LAST ERROR say why, and the status \
         page at {page} what to do"
    )]
    NotUsable {
        /// How many.
        failed: usize,
        /// Out of.
        all: usize,
        /// Where more is said.
        page: String,
    },
    /// The terminal went away.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Asks once and prints a line for each vendor, or goes on until Ctrl-C.
///
/// # Errors
/// [`Error`], after the table when it is about vendors. While watching, only when nobody is
/// left to watch.
pub(super) async fn run(arguments: &Arguments) -> Result<(), Error> {
    if arguments.watch {
        return watch(arguments).await;
    }
    let status = progress::shown("asking the proxy", ask(&arguments.admin)).await?;
    let rows = rows(&status);
    let text = if arguments.json {
        format!("{status:#}\n")
    } else {
        readable(&status, &rows)
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

/// On a terminal the same lines are drawn over; elsewhere one table follows the other.
async fn watch(arguments: &Arguments) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let over = io::stdout().is_terminal() && !arguments.json;
    if over {
        write("\x1b[2J")?;
    }
    loop {
        let told = tokio::select! {
            told = ask(&arguments.admin) => told,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let text = match told {
            Ok(status) if arguments.json => format!("{status}\n"),
            Ok(status) => readable(&status, &rows(&status)),
            // It may be starting, or be started again.
            Err(cause) if arguments.json => {
                let _ = writeln!(io::stderr(), "error: {cause}");
                String::new()
            }
            Err(cause) => format!("error: {cause}\n"),
        };
        if over {
            let now = humantime::format_rfc3339_seconds(SystemTime::now());
            let every = humantime::format_duration(arguments.interval);
            let text = format!("{now}, every {every} until Ctrl-C\n\n{text}");
            // Line by line, so that nothing flickers: each one to its end, then what was below.
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
    if over {
        // Below the ^C that the terminal has written.
        write("\n")?;
    }
    Ok(())
}

fn rows(status: &Value) -> Vec<Row<7>> {
    let vendors = status["vendors"].as_array();
    vendors.into_iter().flatten().map(row).collect()
}

fn readable(status: &Value, rows: &[Row<7>]) -> String {
    let heads = [
        "VENDOR",
        "AUTH",
        "STATE",
        "EXPIRES",
        "RENEWAL",
        "BREAKER",
        "LAST ERROR",
    ];
    let mut text = table::lines(heads, rows, 2);
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

/// The URL of `path` on the admin listener.
fn url(admin: &str, path: &str) -> Result<Url, Wrong> {
    let scheme = if admin.contains("://") { "" } else { "http://" };
    endpoint::web_with_login(&format!("{scheme}{}{path}", admin.trim_end_matches('/')))
}

/// The same as it may be shown.
fn shown(admin: &str, path: &str) -> String {
    url(admin, path).map_or_else(|_| "--admin".to_owned(), |url| endpoint::shown(&url))
}

async fn ask(admin: &str) -> Result<Value, Error> {
    let url = url(admin, "/status").map_err(Error::Admin)?;
    let no_answer = |cause: String| Error::NoAnswer {
        url: endpoint::shown(&url),
        cause,
    };
    let asking = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .build()?;
        client.get(url.clone()).send().await
    };
    let answer = asking.await.map_err(|error| no_answer(story(&error)))?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(no_answer(format!("answered {}", answer.status())));
    }
    let body = answer
        .text()
        .await
        .map_err(|error| no_answer(story(&error)))?;
    match serde_json::from_str::<Value>(&body) {
        Ok(status) if status["vendors"].is_array() => Ok(status),
        Ok(_) | Err(_) => Err(no_answer("this is no admin listener of Countersign".into())),
    }
}

/// reqwest's own words end before the interesting part.
fn story(error: &dyn std::error::Error) -> String {
    let mut story = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        story = inner.to_string();
        cause = inner.source();
    }
    in_words(&story)
}

fn row(vendor: &Value) -> Row<7> {
    let text = |key: &str| vendor[key].as_str().unwrap_or("-").to_owned();
    let at = |key: &str| humantime::parse_rfc3339(vendor[key].as_str()?).ok();
    let state = text("state");
    let expires = at("expires_at");
    let good = match state.as_str() {
        "fresh" | "refreshing" | "static" | "none" => true,
        // What is held serves on while asking for more is refused.
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
            expires.map_or("-".into(), distance),
            at("refresh_at").map_or("-".into(), distance),
            circuit,
            if errors.is_empty() {
                "-".to_owned()
            } else {
                errors.join("; ")
            },
        ],
    }
}

/// In whole seconds, from now.
fn distance(at: SystemTime) -> String {
    let whole = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs()));
    match at.duration_since(SystemTime::now()) {
        Ok(left) => format!("in {}", whole(left)),
        Err(past) => format!("{} ago", whole(past.duration())),
    }
}
