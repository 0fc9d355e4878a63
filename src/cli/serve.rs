//! `countersign serve`.

use std::path::Path;
use std::process::ExitCode;

use crate::config::Config;
use crate::logs;
use crate::server::handover::{self, Inherited};
use crate::server::{self, Running};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

/// Runs the proxy until SIGTERM or SIGINT, or until a successor has taken its place after SIGUSR2.
/// 0: a clean stop; 2: bad configuration; 1: anything else.
pub(super) fn run(path: &Path) -> ExitCode {
    logs::init(logs::LevelFilter::INFO);
    let inherited = Inherited::from_environment();
    take_all_files();
    super::with_config(path, |config| {
        let threads = config.threads;
        let outcome = super::on_threads(threads, until_stopped(config, inherited));
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

async fn until_stopped(config: Config, mut inherited: Inherited) -> Result<(), String> {
    // Registered before the sockets are bound: whoever sees us listening may stop us.
    let listen = |kind| signal(kind).map_err(|cause| cause.to_string());
    let mut signals = Signals {
        terminate: listen(SignalKind::terminate())?,
        interrupt: listen(SignalKind::interrupt())?,
        hangup: listen(SignalKind::hangup())?,
        upgrade: listen(SignalKind::user_defined2())?,
    };
    let predecessor = inherited.predecessor();
    let running = server::prepare(config, inherited).map_err(|cause| cause.to_string())?;
    if let Some(predecessor) = predecessor {
        // Until then it serves, and better than we could.
        tokio::select! {
            () = running.ready() => {}
            () = signals.stop() => {
                running.stop_now(std::time::Duration::ZERO).await;
                return Ok(());
            }
        }
        running.open();
        predecessor.relieve();
    } else {
        running.open();
        handover::tell_ready();
    }
    let end = serve(&running, &mut signals).await;
    let stopping = async {
        match end {
            End::Relieved => running.stop_relieved().await,
            End::Terminated => {
                handover::tell_stopping();
                running.stop().await;
            }
            End::Interrupted => {
                handover::tell_stopping();
                running.stop_interrupted().await;
            }
        }
    };
    tokio::select! {
        () = stopping => {}
        // Asked twice: whoever stops us does not want to wait.
        () = signals.stop() => {}
    }
    Ok(())
}

/// Why a process stops serving.
enum End {
    /// A successor is ready.
    Relieved,
    /// SIGTERM: whoever manages the process goes on sending requests for `drain.delay`.
    Terminated,
    /// SIGINT: a person waits.
    Interrupted,
}

/// Serves until asked to stop, or until a successor is ready.
async fn serve(running: &Running, signals: &mut Signals) -> End {
    let mut successors = JoinSet::new();
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return End::Terminated,
            _ = signals.interrupt.recv() => return End::Interrupted,
            _ = signals.hangup.recv() => running.reload().await,
            _ = signals.upgrade.recv() => {
                if successors.is_empty() {
                    successors.spawn(running.hand_over());
                } else {
                    tracing::warn!("a successor is being started already");
                }
            }
            Some(outcome) = successors.join_next() => {
                match outcome.unwrap_or_else(|cause| Err(cause.to_string())) {
                    Ok(successor) => {
                        tracing::info!(pid = successor.id, "the successor serves; draining");
                        handover::tell_replaced(&successor);
                        return End::Relieved;
                    }
                    Err(cause) => {
                        tracing::error!(cause, "no successor took our place; this process goes on");
                    }
                }
            }
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    upgrade: Signal,
}

impl Signals {
    /// Waits until asked to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
