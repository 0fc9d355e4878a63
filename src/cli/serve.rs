//! `countersign serve`.

use std::path::Path;
use std::process::ExitCode;

use crate::config::Config;
use crate::logs;
use crate::server::handover::{self, InheritedListeners};
use crate::server::{self, Running};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

/// Runs the proxy until SIGTERM or SIGINT, or until a successor has taken over after SIGUSR2.
///
/// Exit code 0: a clean stop; 2: invalid configuration; 1: any other failure.
pub(super) fn run(path: &Path) -> ExitCode {
    logs::init(logs::LevelFilter::INFO);
    let inherited = InheritedListeners::from_environment();
    raise_open_file_limit();
    super::with_config(path, |config| {
        let threads = config.threads;
        let outcome = super::on_threads(threads, until_stopped(config, inherited));
        super::failed_or_done(outcome.and_then(|done| done))
    })
}

/// Raises the limit of open files to its maximum. The default is low for the sake of programs that
/// call `select`. Best effort: listeners accept as many connections as the limit permits.
fn raise_open_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

async fn until_stopped(config: Config, mut inherited: InheritedListeners) -> Result<(), String> {
    // Registered before the sockets are bound: once we listen, a signal may come.
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
        // Until then the predecessor serves, since our credentials are not fetched yet.
        tokio::select! {
            () = running.ready() => {}
            () = signals.stop() => {
                running.stop_now(std::time::Duration::ZERO).await;
                return Ok(());
            }
        }
        running.open();
        predecessor.notify_ready();
    } else {
        running.open();
        handover::notify_ready();
    }
    let end = serve(&running, &mut signals).await;
    let stopping = async {
        match end {
            End::HandedOver => running.stop_after_handover().await,
            End::Terminated => {
                handover::notify_stopping();
                running.stop().await;
            }
            End::Interrupted => {
                handover::notify_stopping();
                running.stop_interrupted().await;
            }
        }
    };
    tokio::select! {
        () = stopping => {}
        // A second signal skips the drain.
        () = signals.stop() => {}
    }
    Ok(())
}

/// The reason why a process stops serving.
enum End {
    /// A successor is ready.
    HandedOver,
    /// SIGTERM: load balancers still send requests during `drain.delay`.
    Terminated,
    /// SIGINT: a user is waiting, so `drain.delay` is skipped.
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
                        handover::notify_main_pid(&successor);
                        return End::HandedOver;
                    }
                    Err(cause) => {
                        tracing::error!(cause, "no successor has taken over; this process continues to serve");
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
