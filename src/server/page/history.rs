//! Samples of the last quarter of an hour for each vendor, for the plots of the status page. A task
//! of its own reads the metrics every few seconds; requests are not involved.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::{Metrics, ResponseCounts};

/// Time that one sample covers.
pub(super) const STEP: Duration = Duration::from_secs(15);

/// Number of complete samples. With the current one they cover a quarter of an hour.
pub(super) const SAMPLES: usize = 59;

/// The samples of every vendor.
#[derive(Debug, Default)]
pub(in crate::server) struct History(Mutex<Rings>);

#[derive(Debug, Default)]
struct Rings {
    /// Number of samples recorded, up to [`SAMPLES`].
    taken: usize,
    by_vendor: HashMap<String, Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The counters at the time of the newest sample.
    counted: ResponseCounts,
    /// Samples, oldest first.
    samples: VecDeque<ResponseCounts>,
}

impl History {
    /// Records samples until dropped.
    pub(in crate::server) async fn sample(&self, metrics: &Metrics) {
        let mut ticks = interval(STEP);
        // After a suspend of the machine, one sample covers the pause.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is immediate.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.record(&metrics.response_counts());
        }
    }

    /// Records one sample: the responses since the previous one.
    fn record(&self, counted: &HashMap<String, ResponseCounts>) {
        let mut rings = self.0.lock();
        rings.taken = (rings.taken + 1).min(SAMPLES);
        let taken = rings.taken;
        for (vendor, counted) in counted {
            let ring = rings.by_vendor.entry(vendor.clone()).or_default();
            let sample = since(*counted, ring.counted);
            ring.counted = *counted;
            // Vendors appear with their first request: earlier samples are empty.
            while ring.samples.len() + 1 < taken {
                ring.samples.push_back(ResponseCounts::default());
            }
            ring.samples.push_back(sample);
            while ring.samples.len() > taken {
                ring.samples.pop_front();
            }
        }
    }

    /// Returns a vendor's samples, oldest first; the last one is still in progress. `counted`: the
    /// current counters.
    pub(super) fn samples(&self, vendor: &str, counted: ResponseCounts) -> Vec<ResponseCounts> {
        let rings = self.0.lock();
        let Some(ring) = rings.by_vendor.get(vendor) else {
            let mut samples = vec![ResponseCounts::default(); rings.taken];
            samples.push(counted);
            return samples;
        };
        let under_way = since(counted, ring.counted);
        ring.samples.iter().copied().chain([under_way]).collect()
    }
}

fn since(now: ResponseCounts, then: ResponseCounts) -> ResponseCounts {
    ResponseCounts {
        requests: now.requests.saturating_sub(then.requests),
        errors: now.errors.saturating_sub(then.errors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(requests: u64, errors: u64) -> ResponseCounts {
        ResponseCounts { requests, errors }
    }

    fn counted(requests: u64, errors: u64) -> HashMap<String, ResponseCounts> {
        HashMap::from([("v".to_owned(), counts(requests, errors))])
    }

    #[test]
    fn a_sample_is_what_was_answered_since_the_one_before() {
        let history = History::default();
        assert_eq!(history.samples("v", counts(3, 1)), [counts(3, 1)]);
        history.record(&HashMap::new());
        history.record(&counted(5, 1));
        history.record(&counted(5, 1));
        let samples = [(0, 0), (5, 1), (0, 0), (2, 2)].map(|(all, bad)| counts(all, bad));
        assert_eq!(history.samples("v", counts(7, 3)), samples);
        assert_eq!(history.samples("other", counts(0, 0)).len(), samples.len());
    }

    #[test]
    fn no_more_than_a_quarter_of_an_hour_is_kept() {
        let history = History::default();
        for requests in 0..500 {
            history.record(&counted(requests, 0));
        }
        let samples = history.samples("v", counts(499, 0));
        assert_eq!(samples.len(), SAMPLES + 1);
        assert_eq!(samples[0], counts(1, 0));
    }
}
