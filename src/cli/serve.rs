//! `countersign serve`.

use std::path::Path;
use std::process::ExitCode;

use crate::config::Config;
use crate::server::{self, logs};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the proxy until SIGTERM or SIGINT. 0: a clean stop; 2: bad configuration; 1: anything
/// else.
pub(super) fn run(path: &Path) -> ExitCode {
    logs::init(logs::LevelFilter::INFO);
    take_all_files();
    super::with_config(path, |config| {
        let threads = config.threads;
        let outcome = super::on_threads(threads, until_stopped(config));
        super::failed_or_done(outcome.and_then(|done| done))
    })
}

/// The usual limit of open files is for programs that call `select`; a process that needs more may
/// raise it. Best effort: listeners take as many connections as the limit leaves room for.
fn take_all_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, all);
}

async fn until_stopped(config: Config) -> Result<(), String> {
    // Registered before the sockets are bound: whoever sees us listening may stop us.
    let mut terminate = signal(SignalKind::terminate()).map_err(|cause| cause.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|cause| cause.to_string())?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|cause| cause.to_string())?;
    let running = server::start(config).map_err(|cause| cause.to_string())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => running.reload().await,
        }
    }
    tokio::select! {
        () = running.stop() => {}
        // Asked twice: whoever stops us does not want to wait.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
