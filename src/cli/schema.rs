//! `countersign schema`: the JSON Schema of proxy.yaml.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config;

/// Prints the schema to stdout. Exit code 0, or 1 when stdout cannot be written.
#[must_use]
pub fn run() -> ExitCode {
    match writeln!(io::stdout().lock(), "{:#}", config::schema()) {
        Ok(()) => ExitCode::SUCCESS,
        // `countersign schema | head` has what it wants.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
