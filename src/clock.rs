//! Time that passes while the machine sleeps.
//!
//! tokio's clock is `CLOCK_MONOTONIC`, which stands still while the machine is suspended; tokens
//! expire and leases lapse all the same. `CLOCK_BOOTTIME` goes on, and cannot be set. The wall
//! clock is only a hint: it also shows that a virtual machine was paused, which its other clocks
//! never do, but it jumps when it is corrected, too.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// A point in time that suspension of the machine does not postpone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    awake: Instant,
    /// Time since the machine was started.
    boot: Duration,
}

impl End {
    /// Returns the end at `at`, by the clocks' current readings.
    pub(crate) fn at(at: Instant) -> Self {
        Self {
            awake: at,
            boot: since_boot() + at.saturating_duration_since(Instant::now()),
        }
    }

    /// Tells whether it has come: two readings of clocks that take no system call.
    pub(crate) fn has_come(&self) -> bool {
        Instant::now() >= self.awake || since_boot() >= self.boot
    }

    /// Returns the time until it comes; zero once it has.
    pub(crate) fn left(&self) -> Duration {
        self.awake
            .saturating_duration_since(Instant::now())
            .min(self.boot.saturating_sub(since_boot()))
    }

    /// Tells whether it will have come in `ahead`.
    pub(crate) fn has_come_in(&self, ahead: Duration) -> bool {
        since_boot() + ahead >= self.boot
    }

    /// Returns it on the wall clock as that stands now.
    pub(crate) fn on_the_wall(&self) -> Option<SystemTime> {
        let (now, wall) = (since_boot(), SystemTime::UNIX_EPOCH + wall());
        match self.boot.checked_sub(now) {
            Some(left) => wall.checked_add(left),
            None => wall.checked_sub(now.saturating_sub(self.boot)),
        }
    }
}

/// The readings of all clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// `CLOCK_MONOTONIC`.
    awake: Duration,
    /// `CLOCK_BOOTTIME`.
    boot: Duration,
    /// Time since 1970.
    wall: Duration,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let mut moment = Self::read().0;
        // An interruption between two clocks would read two moments.
        for _ in 0..8 {
            let (again, took) = Self::read();
            moment = again;
            if took < TOLERANCE / 10 {
                break;
            }
        }
        moment
    }

    fn read() -> (Self, Duration) {
        let awake = read(ClockId::CLOCK_MONOTONIC);
        let moment = Self {
            awake,
            boot: since_boot(),
            wall: wall(),
        };
        (moment, read(ClockId::CLOCK_MONOTONIC).saturating_sub(awake))
    }

    /// Returns how long the machine was suspended from here to `later`.
    pub(crate) fn suspended_until(&self, later: &Self) -> Duration {
        let all = later.boot.saturating_sub(self.boot);
        let suspended = all.saturating_sub(later.awake.saturating_sub(self.awake));
        if suspended < TOLERANCE {
            Duration::ZERO
        } else {
            suspended
        }
    }

    /// Returns how far the wall clock was set forward from here to `later`. Small corrections, and
    /// those back, do not count.
    pub(crate) fn set_forward_until(&self, later: &Self) -> Duration {
        let all = later.wall.saturating_sub(self.wall);
        let forward = all.saturating_sub(later.boot.saturating_sub(self.boot));
        if forward < CORRECTION {
            Duration::ZERO
        } else {
            forward
        }
    }

    /// Tells whether the clocks have moved against each other from here to `later`.
    fn differs_from(&self, later: &Self) -> bool {
        let wall = later.wall.as_secs_f64() - self.wall.as_secs_f64();
        let boot = later.boot.as_secs_f64() - self.boot.as_secs_f64();
        !self.suspended_until(later).is_zero() || (wall - boot).abs() >= 1.0
    }
}

/// Returns a channel that changes soon after the clocks have moved against each other: the machine
/// was suspended, or the wall clock was set.
///
/// One thread for the whole process looks every second. It is not one of tokio's, so that a runtime
/// that ends does not stop it.
pub(crate) fn moves() -> watch::Receiver<u64> {
    MOVES.subscribe()
}

static MOVES: LazyLock<watch::Sender<u64>> = LazyLock::new(|| {
    let looking = std::thread::Builder::new().name("clocks".to_owned());
    if let Err(cause) = looking.spawn(look) {
        warn!("a suspended machine will renew tokens late: no thread: {cause}");
    }
    watch::Sender::new(0)
});

fn look() {
    let mut before = Moment::now();
    loop {
        std::thread::sleep(EVERY);
        let now = Moment::now();
        if before.differs_from(&now) {
            let suspended = before.suspended_until(&now);
            let forward = before.set_forward_until(&now);
            info!(
                suspended_s = suspended.as_secs(),
                wall_clock_set_forward_s = forward.as_secs(),
                "the clocks have moved against each other: when tokens end is looked at again"
            );
            announce();
        }
        before = now;
    }
}

fn announce() {
    MOVES.send_modify(|moves| *moves += 1);
}

/// Returns the time since the machine was started, suspended time included.
fn since_boot() -> Duration {
    let now = read(BOOT);
    #[cfg(test)]
    let now = now + tests::SHIFT.get().0;
    now
}

fn wall() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    #[cfg(test)]
    let now = now + tests::SHIFT.get().1;
    now
}

/// Zero where the system does not know the clock: then the others have to do.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

#[cfg(target_os = "linux")]
const BOOT: ClockId = ClockId::CLOCK_BOOTTIME;
/// On other systems this one goes on during a suspend, or none does.
#[cfg(not(target_os = "linux"))]
const BOOT: ClockId = ClockId::CLOCK_MONOTONIC;

/// Interval of comparing the clocks.
const EVERY: Duration = Duration::from_secs(1);
/// Readings that differ by less are of one moment.
const TOLERANCE: Duration = Duration::from_millis(100);
/// Largest correction of a time server that counts as no suspension.
const CORRECTION: Duration = Duration::from_secs(5);

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// The shift of `CLOCK_BOOTTIME` and of the wall clock on this thread.
        pub(super) static SHIFT: Cell<(Duration, Duration)> =
            const { Cell::new((Duration::ZERO, Duration::ZERO)) };
    }

    /// Shifts this thread's clocks, as the clocks of a suspended machine move together.
    pub(crate) fn shift(boot: Duration, wall: Duration) {
        let (boot_before, wall_before) = SHIFT.get();
        SHIFT.set((boot_before + boot, wall_before + wall));
    }

    /// Notifies all as the thread would within a second.
    pub(crate) fn tell() {
        announce();
    }

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn an_end_comes_by_whichever_clock_is_first() {
        let end = End::at(Instant::now() + HOUR);
        assert!(!end.has_come() && end.left() > HOUR / 2);
        shift(HOUR / 2, Duration::ZERO);
        assert!(!end.has_come() && end.left() <= HOUR / 2);
        shift(HOUR / 2, Duration::ZERO);
        assert!(end.has_come() && end.left().is_zero());
        let past = Instant::now().checked_sub(Duration::from_millis(1));
        assert!(End::at(past.unwrap()).has_come());
    }

    #[test]
    fn what_moved_is_told_apart() {
        let before = Moment::now();
        assert!(!before.differs_from(&Moment::now()));

        shift(HOUR, HOUR);
        let suspended = Moment::now();
        assert!(before.differs_from(&suspended));
        let near = |found: Duration| found.abs_diff(HOUR) < TOLERANCE;
        assert!(near(before.suspended_until(&suspended)));
        assert!(before.set_forward_until(&suspended).is_zero());

        shift(Duration::ZERO, HOUR);
        let set = Moment::now();
        assert!(suspended.differs_from(&set));
        assert!(suspended.suspended_until(&set).is_zero());
        assert!(near(suspended.set_forward_until(&set)));
        // Back, and by a little.
        assert!(set.set_forward_until(&suspended).is_zero());
        assert!(set.differs_from(&suspended));
        shift(Duration::ZERO, Duration::from_secs(2));
        assert!(set.set_forward_until(&Moment::now()).is_zero());
    }
}
