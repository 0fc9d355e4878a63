//! The command line: arguments → command, one file per command.

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

/// An authenticating reverse proxy: callers prove who they are to it, it proves who it is to each
/// vendor, and tokens are always fresh.
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
    /// SIGINT (Ctrl-C) skips `drain.delay`, a second signal everything.
    ///
    /// SIGHUP, or a change of the configuration or of a file it names, reloads. Request lines go to
    /// stdout, everything else to stderr; `RUST_LOG` sets levels. Exit code 2: bad configuration.
    Serve {
        #[command(flatten)]
        file: OnlyConfigFile,
    },
    /// Report every mistake in the configuration at once; sends nothing over the network
    Check {
        #[command(flatten)]
        file: OnlyConfigFile,
        /// Check only the form of secret references, not whether the secrets are there
        #[arg(long)]
        without_secrets: bool,
    },
    /// Obtain each vendor's credential for real and say how it went, without using it
    ///
    /// No vendor's API is called, and no stored refresh token is spent. Exit code 1: one of them
    /// could not be obtained.
    Probe(probe::Arguments),
    /// Show a running proxy's vendors and the state of their credentials
    ///
    /// Exit code 1: one of them has no usable credential, or nobody answered.
    Status(status::Arguments),
    /// Say what would happen to a request, without sending it
    ///
    /// Exit code 0: it would be forwarded; 1: refused.
    Explain(explain::Arguments),
    /// Give consent once, in a browser, for a vendor with `authorization_code`
    Authorize {
        /// The vendor's name in the configuration
        vendor: String,
        /// The same as --config FILE
        #[arg(
            value_name = "FILE",
            value_hint = clap::ValueHint::FilePath,
            conflicts_with = "config"
        )]
        argument: Option<String>,
        #[command(flatten)]
        file: ConfigFile,
        /// Accept a pasted redirect without a state parameter, unasked
        #[arg(long)]
        no_state: bool,
    },
    /// Make keys for callers
    #[command(subcommand)]
    Caller(CallerCommand),
    /// Print the JSON Schema of the configuration, or the reference made from it
    Schema {
        /// Print the configuration reference, Markdown
        #[arg(long)]
        markdown: bool,
    },
    /// Print completions for a shell, to be read by it at its start
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Try everything on this machine: five stand-in vendors and the proxy, no accounts needed
    #[cfg(feature = "demo")]
    Demo(demo::Arguments),
}

#[derive(Debug, Subcommand)]
enum CallerCommand {
    /// Make an API key: prints it once, with the stanza for `callers:`
    New {
        /// The caller's name
        name: String,
    },
}

/// Runs the command that the process was started with.
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
            let told = arguments.file.among(&arguments.vendors);
            let (path, vendors) = told.unwrap_or_else(|message| config_file::refuse(message));
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
            let told = file.beside_vendor(&vendor, argument.as_deref());
            let (vendor, path) = told.unwrap_or_else(|message| config_file::refuse(message));
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
            demo::leave_out_proxies();
            logs::init(logs::LevelFilter::WARN);
            on_threads(2, demo::run(&arguments)).unwrap_or_else(|cause| failed_or_done(Err(cause)))
        }
    }
}

/// For whoever runs it for the first time.
fn first_steps() -> String {
    let demo = if cfg!(feature = "demo") {
        "\n  countersign demo              see it work, without an account anywhere"
    } else {
        ""
    };
    format!(
        "\
First steps:{demo}
  countersign caller new NAME   make a key for a program that calls
  countersign check             is proxy.yaml right?
  countersign probe             are the vendors' logins right?
  countersign serve             run it"
    )
}

/// Where each shell looks for completions.
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

/// A crash must not write what we hold to a disk. Best effort: where it is not permitted, the
/// process runs as it is.
fn no_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    // Also keeps other processes of the same user from reading our memory.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Loads the configuration with its secrets, or reports its mistakes and returns 2.
fn with_config(path: &std::path::Path, then: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::load(path, Secrets::Resolve) {
        Ok(config) => {
            check::warn(&config.warnings);
            then(config)
        }
        Err(mistakes) => {
            check::complain(path, &mistakes);
            ExitCode::from(check::BAD_CONFIGURATION)
        }
    }
}

/// Runs `command` to its end on a runtime of so many threads.
fn on_threads<T>(threads: usize, command: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("countersign")
        .enable_all()
        .build()
        .map_err(|cause| format!("the system gives no threads: {cause}"))?;
    let outcome = runtime.block_on(command);
    // What is left are background tasks without an end of their own.
    runtime.shutdown_background();
    Ok(outcome)
}

/// 0, or the error on stderr and 1.
fn failed_or_done(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            logs::say(&format!("error: {cause}\n"));
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
