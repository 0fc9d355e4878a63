//! `countersign schema`: the JSON Schema of proxy.yaml, and the reference generated from it.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config;

/// Prints the schema, or the reference as Markdown, to stdout. Exit code 0, or 1 when stdout cannot
/// be written.
#[must_use]
pub fn run(markdown: bool) -> ExitCode {
    let text = if markdown {
        config::reference_doc()
    } else {
        format!("{:#}\n", config::schema())
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has read enough, for example `countersign schema | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
