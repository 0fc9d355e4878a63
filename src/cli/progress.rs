//! A sign of life for whoever waits at a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Shorter waits are not worth a word.
const SILENT_FOR: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(250);

/// Runs `work` to its end. When it takes longer than a second and stderr is a terminal, says there
/// `what` is being waited for and for how long; the line is gone afterwards.
pub(super) async fn shown<T>(what: &str, work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let started = Instant::now();
    let mut ticks = interval_at(started + SILENT_FOR, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = false;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                if said {
                    write("\r\x1b[K");
                }
                return done;
            }
            _ = ticks.tick() => {
                said = true;
                write(&format!("\r{what} … {} s\x1b[K", started.elapsed().as_secs()));
            }
        }
    }
}

fn write(text: &str) {
    let mut stderr = io::stderr().lock();
    // Nobody is left to tell when it is gone.
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}
