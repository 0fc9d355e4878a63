//! The end of what a removed caller has begun.

use std::sync::OnceLock;

use tokio::time::Instant;

/// The deadline of a caller that was removed from the configuration, or whose credentials changed:
/// what it has begun ends then.
#[derive(Debug, Default)]
pub struct RemovalDeadline(OnceLock<Instant>);

impl RemovalDeadline {
    /// Sets the deadline; the first call counts.
    pub(crate) fn set(&self, at: Instant) {
        let _ = self.0.set(at);
    }

    /// Returns the deadline; `None`: the caller stays.
    #[must_use]
    pub fn at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}
