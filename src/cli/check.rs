//! `countersign check`: reports every error of a proxy.yaml at once and sends nothing.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Callers, Config, ConfigError, Secrets};
use crate::logs;

/// Reads the file, and every secret and certificate it refers to unless `without_secrets`.
///
/// Errors and warnings go to stderr, one per line; a summary of a valid file goes to stdout. Exit
/// code 0, or 2 for an invalid configuration.
#[must_use]
pub fn run(config: &Path, without_secrets: bool) -> ExitCode {
    let secrets = if without_secrets {
        Secrets::FormOnly
    } else {
        Secrets::Resolve
    };
    match Config::load(config, secrets) {
        Ok(valid) => {
            let is_warning = |error: &&ConfigError| !valid.expired.contains(error);
            let warnings: Vec<_> = valid.warnings.iter().filter(is_warning).cloned().collect();
            warn(&warnings);
            if !valid.expired.is_empty() {
                print_errors(config, &valid.expired);
                return ExitCode::from(BAD_CONFIGURATION);
            }
            // When stdout is closed, there is nobody to report it to.
            let _ = writeln!(io::stdout().lock(), "{}", summary(&valid));
            ExitCode::SUCCESS
        }
        Err(errors) => {
            print_errors(config, &errors);
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

/// Prints warnings to stderr, one per line. Does not block `serve` when nobody reads them.
pub fn warn(warnings: &[ConfigError]) {
    for warning in warnings {
        logs::print_line(&format!("warning: {warning}\n"));
    }
}

/// Prints errors to stderr, one per line, and their number.
pub fn print_errors(config: &Path, errors: &[ConfigError]) {
    let mut stderr = buffered_stderr();
    for error in errors {
        let _ = writeln!(stderr, "{error}");
    }
    let count = counted(errors.len(), "error");
    let _ = writeln!(stderr, "{count} in {}", config.display());
}

/// Returns a buffered stderr. The unbuffered one makes a system call for every piece of a line.
fn buffered_stderr() -> impl Write {
    io::BufWriter::new(io::stderr().lock())
}

/// Exit code of every command that is given an invalid configuration.
pub const BAD_CONFIGURATION: u8 = 2;

fn summary(config: &Config) -> String {
    let callers = match &config.callers {
        Callers::Loopback => "callers on loopback only".to_owned(),
        Callers::Anyone => "anyone may call".to_owned(),
        Callers::Known(callers) => counted(callers.len(), "caller"),
    };
    format!(
        "{}: valid; {}, {}, {callers}",
        config.path.display(),
        counted(config.vendors.len(), "vendor"),
        counted(config.listeners.len(), "listener"),
    )
}

fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
