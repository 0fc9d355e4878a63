//! Tracks refreshes in flight: they outlive their callers, and the process waits for them.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use super::temporary;
use crate::credential::{FetchError, Issued};

/// Number of responses that are awaited or being stored in the whole process.
static IN_FLIGHT: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Waits up to `at_most` until no response to a refresh token is awaited or being stored: a process
/// that exits earlier would lose it.
pub async fn wait_for_refreshes(at_most: Duration) {
    let mut in_flight = IN_FLIGHT.subscribe();
    let none = in_flight.wait_for(|count| *count == 0);
    if timeout(at_most, none).await.is_err() {
        warn!("a refresh still has no response; it is unknown whether its token was spent");
    }
}

struct InFlight;

impl InFlight {
    fn begin() -> Self {
        IN_FLIGHT.send_modify(|count| *count += 1);
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        IN_FLIGHT.send_modify(|count| *count -= 1);
    }
}

/// Runs `work` to its end even when its caller is dropped, so that no response is lost.
pub(super) async fn detached(
    work: impl Future<Output = Result<Issued, FetchError>> + Send + 'static,
) -> Result<Issued, FetchError> {
    let in_flight = InFlight::begin();
    let work = async move {
        let outcome = work.await;
        drop(in_flight);
        outcome
    };
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(temporary("the refresh was interrupted".to_owned())))
}
