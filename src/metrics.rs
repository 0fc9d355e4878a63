//! Every series: name, unit, labels. Handles are made once per configuration, so that a request
//! looks no label up.

use prometheus::{Histogram, IntCounter};

/// What one credential's refresh task counts.
#[derive(Clone, Debug)]
pub struct FetchMetrics {
    /// Fetches that brought a credential.
    pub ok: IntCounter,
    /// Fetches that failed and may succeed later.
    pub temporary: IntCounter,
    /// Fetches the vendor refused.
    pub rejected: IntCounter,
    /// How long one fetch took, seconds.
    pub duration: Histogram,
}
