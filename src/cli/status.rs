//! `countersign status`: what a running proxy says of its vendors.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::Value;

use super::table::{self, Row};

/// Whom to ask.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The proxy's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9090")]
    admin: String,
    /// Print JSON, as the proxy gave it
    #[arg(long)]
    json: bool,
}

/// Why there is no good news.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody there, or somebody else.
    #[error("{url}: {cause}")]
    NoAnswer {
        /// What was asked.
        url: String,
        /// What came of it.
        cause: String,
    },
    /// The table says which.
    #[error("{failed} of {all} vendors are not usable")]
    NotUsable {
        /// How many.
        failed: usize,
        /// Out of.
        all: usize,
    },
    /// The terminal went away.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Asks once and prints a line for each vendor.
///
/// # Errors
/// [`Error`], after the table when it is about vendors.
pub(super) async fn run(arguments: &Arguments) -> Result<(), Error> {
    let status = ask(&arguments.admin).await?;
    let vendors = status["vendors"].as_array().cloned().unwrap_or_default();
    let rows: Vec<_> = vendors.iter().map(row).collect();
    if arguments.json {
        writeln!(io::stdout().lock(), "{status:#}")?;
    } else {
        let heads = [
            "VENDOR",
            "AUTH",
            "STATE",
            "EXPIRES",
            "RENEWAL",
            "BREAKER",
            "LAST ERROR",
        ];
        table::print(heads, &rows, 2)?;
        if let Some(refused) = status["config"]["last_error"].as_str() {
            let mut out = io::stdout().lock();
            writeln!(out, "\nThe last reload was refused:\n{refused}")?;
        }
    }
    let failed = rows.iter().filter(|row| !row.good).count();
    if failed > 0 {
        let all = rows.len();
        return Err(Error::NotUsable { failed, all });
    }
    Ok(())
}

async fn ask(admin: &str) -> Result<Value, Error> {
    let scheme = if admin.contains("://") { "" } else { "http://" };
    let url = format!("{scheme}{}/status", admin.trim_end_matches('/'));
    let no_answer = |cause: String| Error::NoAnswer {
        url: url.clone(),
        cause,
    };
    let asking = async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(10))
            .build()?;
        client.get(&url).send().await
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
    story
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
