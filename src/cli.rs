//! The command line: parses the arguments and runs the command. One file per command.

mod authorize;
mod caller;
pub mod check;
mod config_file;
#[cfg(feature = "demo")]
mod demo;
mod explain;
mod probe;
mod progress;
pub mod schema;
mod serve;
mod status;
mod table;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use self::config_file::{ConfigFile, OnlyConfigFile};
use crate::config::{Config, Secrets};
use crate::logs;
use clap::{CommandFactory, Parser, Subcommand};

/// An authenticating reverse proxy: callers authenticate to it, and it authenticates to each
/// vendor, with tokens that it renews before they expire.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, propagate_version = true, after_help = first_steps())]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT, then drain
    ///
    /// SIGINT (Ctrl-C) skips `drain.delay`, a second signal skips the drain.
    ///
    /// SIGHUP, or a change of the configuration or of a file it refers to, reloads. The access log
    /// goes to stdout, everything else to stderr; `RUST_LOG` sets log levels. Exit code 2: invalid
    /// configuration.
    Serve {
        #[command(flatten)]
        file: OnlyConfigFile,
    },
    /// Report every error in the configuration at once; sends nothing over the network
    Check {
        #[command(flatten)]
        file: OnlyConfigFile,
        /// Check only the form of secret references, not whether the secrets exist
        #[arg(long)]
        without_secrets: bool,
    },
    /// Obtain each vendor's credential and report the result, without using it
    ///
    /// Calls no vendor's API and spends no stored refresh token. Exit code 1: a credential could
    /// not be obtained.
    Probe(probe::Arguments),
    /// Show a running proxy's vendors and the state of their credentials
    ///
    /// Exit code 1: a vendor has no usable credential, or the proxy did not respond.
    Status(status::Arguments),
    /// Show what would happen to a request, without sending it
    ///
    /// Exit code 0: it would be forwarded; 1: refused.
    Explain(explain::Arguments),
    /// Consent once, in a browser, for a vendor with `authorization_code`
    Authorize {
        /// The vendor's name in the configuration
        vendor: String,
        /// Same as --config FILE
        #[arg(
            value_name = "FILE",
            value_hint = clap::ValueHint::FilePath,
            conflicts_with = "config"
        )]
        argument: Option<String>,
        #[command(flatten)]
        file: ConfigFile,
        /// Accept a pasted redirect without a state parameter, without asking
        #[arg(long)]
        no_state: bool,
    },
    /// Create keys for callers
    #[command(subcommand)]
    Caller(CallerCommand),
    /// Print the JSON Schema of the configuration, or the reference generated from it
    Schema {
        /// Print the configuration reference as Markdown
        #[arg(long)]
        markdown: bool,
    },
    /// Print shell completions
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Try everything on this machine: five mock vendors and the proxy, no accounts needed
    #[cfg(feature = "demo")]
    Demo(demo::Arguments),
}

#[derive(Debug, Subcommand)]
enum CallerCommand {
    /// Create an API key: prints it once, with the stanza for `callers:`
    New {
        /// The caller's name
        name: String,
    },
}

/// Runs the command given on the command line.
#[must_use]
pub fn main() -> ExitCode {
    crate::tls::install_provider();
    no_core_dumps();
    let code = run(Cli::parse().command);
    logs::flush();
    code
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve { file } => serve::run(&file.path()),
        Command::Check {
            file,
            without_secrets,
        } => check::run(&file.path(), without_secrets),
        Command::Probe(arguments) => {
            let given = arguments.file.with_vendors(&arguments.vendors);
            let (path, vendors) = given.unwrap_or_else(|message| config_file::refuse(message));
            with_config(&path, |config| {
                let outcome = on_threads(1, probe::run(&config, &vendors));
                failed_or_done(outcome.and_then(|done| done.map_err(|cause| cause.to_string())))
            })
        }
        Command::Status(arguments) => {
            let outcome = on_threads(1, status::run(&arguments));
            failed_or_done(outcome.and_then(|done| done.map_err(|cause| cause.to_string())))
        }
        Command::Explain(arguments) => explain::run(arguments),
        Command::Authorize {
            vendor,
            argument,
            file,
            no_state,
        } => {
            let given = file.with_vendor(&vendor, argument.as_deref());
            let (vendor, path) = given.unwrap_or_else(|message| config_file::refuse(message));
            with_config(&path, |config| {
                let outcome = on_threads(1, authorize::run(&config, &vendor, no_state));
                failed_or_done(outcome.and_then(|done| done.map_err(|cause| cause.to_string())))
            })
        }
        Command::Caller(CallerCommand::New { name }) => caller::new(&name),
        Command::Schema { markdown } => schema::run(markdown),
        Command::Completions { shell } => completions(shell),
        #[cfg(feature = "demo")]
        Command::Demo(arguments) => {
            demo::unset_proxies();
            logs::init(logs::LevelFilter::WARN);
            on_threads(2, demo::run(&arguments)).unwrap_or_else(|cause| failed_or_done(Err(cause)))
        }
    }
}

/// Returns the commands for a first run.
fn first_steps() -> String {
    let demo = if cfg!(feature = "demo") {
        "\n  countersign demo              see it work, no accounts needed"
    } else {
        ""
    };
    format!(
        "\
First steps:{demo}
  countersign caller new NAME   create a key for a caller
  countersign check             check proxy.yaml
  countersign probe             check the vendors' credentials
  countersign serve             run it"
    )
}

/// The directory in which each shell looks for completions.
const COMPLETIONS: &str = "\
Examples:
  bash        countersign completions bash > ~/.local/share/bash-completion/completions/countersign
  zsh         countersign completions zsh > \"${fpath[1]}/_countersign\"
  fish        countersign completions fish > ~/.config/fish/completions/countersign.fish
  powershell  countersign completions powershell | Out-String | Invoke-Expression";

fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "countersign", &mut script);
    let written = std::io::stdout().write_all(&script);
    failed_or_done(written.map_err(|cause| cause.to_string()))
}

/// Disables core dumps, which would write secrets to disk. Best effort: the process also runs where
/// this is not permitted.
fn no_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    // Also prevents other processes of the same user from reading our memory.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Loads the configuration with its secrets, or reports its errors and returns 2.
fn with_config(path: &std::path::Path, command: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::load(path, Secrets::Resolve) {
        Ok(config) => {
            check::warn(&config.warnings);
            command(config)
        }
        Err(errors) => {
            check::print_errors(path, &errors);
            ExitCode::from(check::BAD_CONFIGURATION)
        }
    }
}

/// Runs `command` to completion on a runtime with `threads` worker threads.
fn on_threads<T>(threads: usize, command: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("countersign")
        .enable_all()
        .build()
        .map_err(|cause| format!("cannot start threads: {cause}"))?;
    let outcome = runtime.block_on(command);
    // The tasks that are left run in the background and never complete.
    runtime.shutdown_background();
    Ok(outcome)
}

/// Returns 0, or prints the error to stderr and returns 1.
fn failed_or_done(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            logs::print_line(&format!("error: {cause}\n"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_offered_by_builds_that_have_it() {
        let mut command = Cli::command();
        let found = command.find_subcommand("demo").is_some();
        assert_eq!(found, cfg!(feature = "demo"));
        let help = command.render_long_help().to_string();
        assert_eq!(help.contains("demo"), cfg!(feature = "demo"), "{help}");
    }
}
