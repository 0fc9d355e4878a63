//! A progress line for a user who waits at a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Delay before the line appears: shorter waits need none.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// Interval between updates of the line.
const EVERY: Duration = Duration::from_millis(250);

/// Runs `work` to completion. If it takes longer than a second and stderr is a terminal, shows
/// `what` it is waiting for and for how long, and removes the line afterwards.
pub(super) async fn with_progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let mut ticks = interval_at(started + SILENT_FOR, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut visible = false;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                if visible {
                    write("\r\x1b[K");
                }
                return done;
            }
            _ = ticks.tick() => {
                visible = true;
                write(&format!("\r{what} … {} s\x1b[K", started.elapsed().as_secs()));
            }
        }
    }
}

fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    // When stderr is closed, there is nobody to report it to.
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}
