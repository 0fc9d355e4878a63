//! `countersign check`: every mistake of a proxy.yaml at once, and nothing sent anywhere.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Callers, Config, ConfigError, Secrets};
use crate::logs;

/// Reads the file, and every secret and certificate it refers to unless `without_secrets`.
///
/// Mistakes and warnings go to stderr, one a line; a summary of a valid file goes to stdout.
/// Exit code 0, or 2 for a bad configuration.
#[must_use]
pub fn run(config: &Path, without_secrets: bool) -> ExitCode {
    let secrets = if without_secrets {
        Secrets::FormOnly
    } else {
        Secrets::Resolve
    };
    match Config::load(config, secrets) {
        Ok(valid) => {
            let is_warning = |one: &&ConfigError| !valid.expired.contains(one);
            let warnings: Vec<_> = valid.warnings.iter().filter(is_warning).cloned().collect();
            warn(&warnings);
            if !valid.expired.is_empty() {
                complain(config, &valid.expired);
                return ExitCode::from(BAD_CONFIGURATION);
            }
            // Nobody is left to tell when stdout is closed.
            let _ = writeln!(io::stdout().lock(), "{}", summary(&valid));
            ExitCode::SUCCESS
        }
        Err(mistakes) => {
            complain(config, &mistakes);
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

/// Prints warnings to stderr, one a line. `serve` does not wait for a reader of them.
pub fn warn(warnings: &[ConfigError]) {
    for warning in warnings {
        logs::say(&format!("warning: {warning}\n"));
    }
}

/// Prints mistakes to stderr, one a line, and their number.
pub fn complain(config: &Path, mistakes: &[ConfigError]) {
    let mut stderr = buffered_stderr();
    for mistake in mistakes {
        let _ = writeln!(stderr, "{mistake}");
    }
    let count = counted(mistakes.len(), "mistake");
    let _ = writeln!(stderr, "{count} in {}", config.display());
}

/// stderr itself makes a system call of every piece of every line.
fn buffered_stderr() -> impl Write {
    io::BufWriter::new(io::stderr().lock())
}

/// Exit code of every command that is given a bad configuration.
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
