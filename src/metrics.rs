//! All metrics: names, units, labels. Label values come from bounded sets in the configuration,
//! never from a request. Handles are looked up once per configuration, not per request.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::logs::LINES_DROPPED;
use crate::traces::Traces;

/// Histogram buckets in seconds, from a cache hit on the same network to a vendor that takes a
/// minute.
const BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// Number of callers with a label of their own; the rest share the label `other`.
pub const MAX_CALLERS: usize = 200;

/// The metrics of one process, in a registry of their own so that tests can run several.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    upstream_duration: HistogramVec,
    in_flight: IntGaugeVec,
    refused: IntCounterVec,
    credential_expiry: GaugeVec,
    credential_state: IntGaugeVec,
    fetches: IntCounterVec,
    fetch_duration: HistogramVec,
    upstream_401: IntCounterVec,
    lost: IntCounterVec,
    echoes: IntCounterVec,
    connections: IntCounterVec,
    retries: IntCounterVec,
    breaker_open: IntGaugeVec,
    certificate_expiry: GaugeVec,
    reloads: IntCounterVec,
    loaded: prometheus::Gauge,
    last_reload: IntGauge,
    /// Held by one scrape at a time.
    scrape: Mutex<()>,
    traces: Option<Traces>,
}

impl Metrics {
    /// Registers every series.
    ///
    /// # Panics
    /// Never: the names below are valid and distinct, which the test of this module proves.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one table")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels).expect("valid name");
            registry
                .register(Box::new(counter.clone()))
                .expect("distinct name");
            counter
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), labels).expect("valid name");
            registry
                .register(Box::new(gauge.clone()))
                .expect("distinct name");
            gauge
        };
        let float = |name: &str, help: &str, labels: &[&str]| {
            let gauge = GaugeVec::new(Opts::new(name, help), labels).expect("valid name");
            registry
                .register(Box::new(gauge.clone()))
                .expect("distinct name");
            gauge
        };
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            let histogram = HistogramVec::new(options, &["vendor"]).expect("valid name");
            registry
                .register(Box::new(histogram.clone()))
                .expect("distinct name");
            histogram
        };
        let metrics = Self {
            requests: counter(
                "countersign_requests_total",
                "Requests by the status of their response, from the vendor or from the proxy.",
                &["vendor", "caller", "method", "status"],
            ),
            request_duration: histogram(
                "countersign_request_duration_seconds",
                "Time from the request's headers to the end of its response.",
            ),
            upstream_duration: histogram(
                "countersign_upstream_duration_seconds",
                "Time from the connection to the vendor to the headers of its response.",
            ),
            in_flight: gauge(
                "countersign_requests_in_flight",
                "Requests being served now.",
                &["vendor"],
            ),
            refused: counter(
                "countersign_refused_total",
                "Requests answered by the proxy itself, by reason.",
                &["vendor", "reason"],
            ),
            credential_expiry: float(
                "countersign_credential_expiry_timestamp_seconds",
                "Expiry of the current credential, as the vendor stated it.",
                &["vendor"],
            ),
            credential_state: gauge(
                "countersign_credential_state",
                "1 for the current state of the credential, 0 for the others.",
                &["vendor", "state"],
            ),
            fetches: counter(
                "countersign_credential_fetch_total",
                "Attempts to obtain a credential.",
                &["vendor", "outcome"],
            ),
            fetch_duration: histogram(
                "countersign_credential_fetch_duration_seconds",
                "Duration of attempts to obtain a credential.",
            ),
            upstream_401: counter(
                "countersign_upstream_401_total",
                "401 responses of a vendor: replayed with a newer credential, or passed to the caller.",
                &["vendor", "action"],
            ),
            lost: counter(
                "countersign_credential_lost_total",
                "Tokens rejected in the first half of their lifetime, where a new one was accepted.",
                &["vendor"],
            ),
            echoes: counter(
                "countersign_echo_redacted_total",
                "Places where a vendor's response repeated our credential: masked, or the response cut off.",
                &["vendor"],
            ),
            connections: counter(
                "countersign_upstream_connections_total",
                "Upstream connections used for a request, new or from the pool.",
                &["vendor", "reused"],
            ),
            retries: counter(
                "countersign_upstream_retries_total",
                "Requests whose connection failed before a response: retried, or not because the retry budget was used up.",
                &["vendor", "action"],
            ),
            breaker_open: gauge(
                "countersign_breaker_open",
                "1 while requests get circuit_open, except one probe at a time.",
                &["vendor"],
            ),
            certificate_expiry: float(
                "countersign_certificate_expiry_timestamp_seconds",
                "Expiry of a certificate that this process presents.",
                &["name"],
            ),
            reloads: counter(
                "countersign_config_reloads_total",
                "Reloads of the configuration, applied or refused.",
                &["outcome"],
            ),
            loaded: prometheus::Gauge::new(
                "countersign_config_loaded_timestamp_seconds",
                "When the configuration in use was loaded.",
            )
            .expect("valid name"),
            scrape: Mutex::new(()),
            last_reload: IntGauge::new(
                "countersign_config_last_reload_successful",
                "1 if the last reload was applied, 0 if it was refused.",
            )
            .expect("valid name"),
            traces: None,
            registry: registry.clone(),
        };
        let build = gauge(
            "countersign_build_info",
            "Always 1; the labels identify the build.",
            &["version", "commit"],
        );
        build
            .with_label_values(&[env!("CARGO_PKG_VERSION"), COMMIT])
            .set(1);
        registry
            .register(Box::new(metrics.loaded.clone()))
            .expect("distinct name");
        registry
            .register(Box::new(metrics.last_reload.clone()))
            .expect("distinct name");
        // The configuration at the start was not refused.
        metrics.last_reload.set(1);
        registry
            .register(Box::new(LINES_DROPPED.clone()))
            .expect("distinct name");
        #[cfg(target_os = "linux")]
        registry
            .register(Box::new(
                prometheus::process_collector::ProcessCollector::for_self(),
            ))
            .expect("distinct name");
        for outcome in ["ok", "error"] {
            metrics.reloads.with_label_values(&[outcome]);
        }
        metrics
    }

    /// Adds spans for attempts to obtain a credential.
    #[must_use]
    pub fn with_traces(self, traces: Option<Traces>) -> Self {
        Self { traces, ..self }
    }

    /// Returns the metrics of one vendor; `none` stands for requests that reach no vendor.
    #[must_use]
    pub fn vendor(&self, name: &str) -> VendorMetrics {
        VendorMetrics {
            vendor: name.into(),
            requests: self.requests.clone(),
            counters: ArcSwap::default(),
            refused: self.refused.clone(),
            request_duration: self.request_duration.with_label_values(&[name]),
            upstream_duration: self.upstream_duration.with_label_values(&[name]),
            in_flight: self.in_flight.with_label_values(&[name]),
            replayed: self.upstream_401.with_label_values(&[name, "replayed"]),
            passed: self.upstream_401.with_label_values(&[name, "passed"]),
            lost: self.lost.with_label_values(&[name]),
            echoes: self.echoes.with_label_values(&[name]),
            connected: self.connections.with_label_values(&[name, "false"]),
            reused: self.connections.with_label_values(&[name, "true"]),
            retries: [
                self.retries.with_label_values(&[name, "over_budget"]),
                self.retries.with_label_values(&[name, "sent"]),
            ],
        }
    }

    /// Returns the metrics of one vendor's refresh task.
    #[must_use]
    pub fn fetch(&self, vendor: &str) -> FetchMetrics {
        FetchMetrics {
            ok: self.fetches.with_label_values(&[vendor, "ok"]),
            temporary: self.fetches.with_label_values(&[vendor, "temporary"]),
            rejected: self.fetches.with_label_values(&[vendor, "rejected"]),
            duration: self.fetch_duration.with_label_values(&[vendor]),
            traces: self.traces.clone(),
        }
    }

    /// Sets a credential's gauges in a [`Self::scrape`]: `state` out of `states` is 1. `expires`: Unix
    /// seconds.
    pub fn set_credential(&self, vendor: &str, states: &[&str], state: &str, expires: Option<f64>) {
        for one in states {
            self.credential_state
                .with_label_values(&[vendor, one])
                .set(i64::from(*one == state));
        }
        // Without a credential or an expiry there is no series, rather than one of 1970.
        if let Some(expires) = expires {
            self.credential_expiry
                .with_label_values(&[vendor])
                .set(expires);
        }
    }

    /// Sets a breaker's gauge in a [`Self::scrape`].
    pub fn set_breaker(&self, vendor: &str, open: bool) {
        self.breaker_open
            .with_label_values(&[vendor])
            .set(i64::from(open));
    }

    /// Sets the expiry gauge of a certificate. `ends`: Unix seconds.
    pub fn set_certificate(&self, name: &str, ends: f64) {
        self.certificate_expiry.with_label_values(&[name]).set(ends);
    }

    /// Removes the gauge of a certificate that is no longer configured.
    pub fn remove_certificate(&self, name: &str) {
        // Fails for series that were never set.
        let _ = self.certificate_expiry.remove_label_values(&[name]);
    }

    /// Sets the time when the current configuration was loaded, Unix seconds.
    pub fn set_config_loaded(&self, at: f64) {
        self.loaded.set(at);
    }

    /// Counts a reload.
    pub fn count_reload(&self, ok: bool) {
        let outcome = if ok { "ok" } else { "error" };
        self.reloads.with_label_values(&[outcome]).inc();
        self.last_reload.set(i64::from(ok));
    }

    /// Returns the response counts of every vendor; `none`: requests that reached no vendor. Walks
    /// all series: not for the request path.
    #[must_use]
    pub fn response_counts(&self) -> HashMap<String, ResponseCounts> {
        let mut answered: HashMap<String, ResponseCounts> = HashMap::new();
        let label = |metric: &Metric, name: &str| {
            let found = metric.get_label().iter().find(|pair| pair.name() == name);
            found.map_or_else(String::new, |pair| pair.value().to_owned())
        };
        let count = |metric: &Metric| {
            let value = metric.get_counter().get_value();
            #[expect(clippy::cast_possible_truncation, reason = "counts up to 2^53")]
            #[expect(clippy::cast_sign_loss, reason = "counters are never negative")]
            let count = value as u64;
            count
        };
        for metric in self
            .requests
            .collect()
            .iter()
            .flat_map(MetricFamily::get_metric)
        {
            let of = answered.entry(label(metric, "vendor")).or_default();
            of.requests += count(metric);
            if label(metric, "status").starts_with('5') {
                of.errors += count(metric);
            }
        }
        for metric in self
            .upstream_401
            .collect()
            .iter()
            .flat_map(MetricFamily::get_metric)
        {
            if label(metric, "action") == "passed" {
                let of = answered.entry(label(metric, "vendor")).or_default();
                of.errors += count(metric);
            }
        }
        answered
    }

    /// Returns the certificates that this process presents: their places in the configuration and
    /// their expiry, Unix seconds.
    #[must_use]
    pub fn certificates(&self) -> Vec<(String, f64)> {
        let families = self.certificate_expiry.collect();
        let metrics = families.iter().flat_map(MetricFamily::get_metric);
        metrics
            .filter_map(|metric| {
                let name = metric.get_label().first()?;
                Some((name.value().to_owned(), metric.get_gauge().get_value()))
            })
            .collect()
    }

    /// Returns all metrics in the Prometheus text format, after `set` has set the gauges of the
    /// vendors. Those of a vendor that it does not set are gone: their last value would stay for ever
    /// after a reload has removed the vendor.
    pub fn scrape(&self, set: impl FnOnce()) -> String {
        let _one_at_a_time = self.scrape.lock();
        self.breaker_open.reset();
        self.credential_expiry.reset();
        self.credential_state.reset();
        set();
        self.text()
    }

    /// Returns all metrics in the Prometheus text format.
    #[must_use]
    pub fn text(&self) -> String {
        let families = self.registry.gather();
        let mut text = Vec::new();
        // Writing to memory cannot fail. Inconsistent families would be a bug of ours and must not
        // prevent the output of the others.
        for family in &families {
            let _ = TextEncoder::new().encode(std::slice::from_ref(family), &mut text);
        }
        let mut text = String::from_utf8(text).unwrap_or_default();
        // The library omits families without a series, but people who write alerts look for their
        // names.
        let may_be_empty: [&dyn Collector; 6] = [
            &self.requests,
            &self.refused,
            &self.credential_expiry,
            &self.fetches,
            &self.fetch_duration,
            &self.certificate_expiry,
        ];
        for empty in may_be_empty {
            let name = |known: &str| empty.desc().iter().any(|desc| desc.fq_name == known);
            if families.iter().any(|family| name(family.name())) {
                continue;
            }
            for family in empty.collect() {
                let kind = format!("{:?}", family.get_field_type()).to_lowercase();
                let (name, help) = (family.name(), family.help());
                // Writing to memory cannot fail.
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            }
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The commit of this build, determined by build.rs.
pub const COMMIT: &str = env!("COUNTERSIGN_COMMIT");

/// The number of responses to callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseCounts {
    /// All responses, from the vendor or local.
    pub requests: u64,
    /// 5xx responses, from the vendor or local, and a vendor's 401 that reached a caller: the
    /// vendor did not accept our credential.
    pub errors: u64,
}

/// The metrics of one credential's refresh task.
#[derive(Clone, Debug)]
pub struct FetchMetrics {
    /// Fetches that obtained a credential.
    pub ok: IntCounter,
    /// Fetches that failed and may succeed later.
    pub temporary: IntCounter,
    /// Fetches that the vendor refused.
    pub rejected: IntCounter,
    /// Duration of a fetch, seconds.
    pub duration: Histogram,
    /// Receiver of a span for each fetch, if there is one.
    pub traces: Option<Traces>,
}

/// The labels of a request: caller, method and status.
type RequestLabels = (Arc<str>, &'static str, u16);

/// The metrics of one vendor on the request path.
#[derive(Debug)]
pub struct VendorMetrics {
    vendor: Arc<str>,
    requests: IntCounterVec,
    /// Handles by caller, method and status, added as they first occur. Their number is bounded by
    /// the configuration and the hundreds of status codes. Readers take no lock.
    counters: ArcSwap<foldhash::HashMap<RequestLabels, IntCounter>>,
    refused: IntCounterVec,
    request_duration: Histogram,
    upstream_duration: Histogram,
    /// Requests being served now.
    pub in_flight: IntGauge,
    /// 401 responses that led to a replay.
    pub replayed: IntCounter,
    /// 401 responses that reached a caller.
    pub passed: IntCounter,
    /// Tokens rejected in the first half of their lifetime, where a new one was accepted.
    pub lost: IntCounter,
    /// Places where a response repeated our credential.
    pub echoes: IntCounter,
    /// Requests that opened a connection.
    pub connected: IntCounter,
    /// Requests that reused one from the pool.
    pub reused: IntCounter,
    /// Retries that were not sent, and those that were sent.
    retries: [IntCounter; 2],
}

/// The `caller` label of requests without an authenticated caller.
pub static NO_CALLER: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("none"));

impl VendorMetrics {
    /// Counts one finished request.
    pub fn count_request(&self, caller: &Arc<str>, method: &Method, status: u16, took: Duration) {
        self.increment(caller, method_label(method), status);
        self.request_duration.observe(took.as_secs_f64());
    }

    /// Counts a rejected head that never became a request.
    pub fn count_rejected_head(&self, status: u16) {
        self.increment(&NO_CALLER, OTHER_METHOD, status);
    }

    fn increment(&self, caller: &Arc<str>, method: &'static str, status: u16) {
        let key = (caller.clone(), method, status);
        if let Some(counter) = self.counters.load().get(&key) {
            counter.inc();
        } else {
            let counter = self.requests.with_label_values(&[
                &*self.vendor,
                &**caller,
                key.1,
                &status.to_string(),
            ]);
            counter.inc();
            self.counters.rcu(|known| {
                let mut more = foldhash::HashMap::clone(known);
                more.insert(key.clone(), counter.clone());
                more
            });
        }
    }

    /// Returns the number of finished requests.
    #[must_use]
    pub fn request_count(&self) -> u64 {
        self.request_duration.get_sample_count()
    }

    /// Records the time that the vendor took to respond.
    pub fn observe_upstream(&self, took: Duration) {
        self.upstream_duration.observe(took.as_secs_f64());
    }

    /// Counts one retry. `sent`: the budget permitted it.
    pub fn count_retry(&self, sent: bool) {
        self.retries[usize::from(sent)].inc();
    }

    /// Counts one local reply.
    pub fn count_refusal(&self, reason: &str) {
        self.refused
            .with_label_values(&[&*self.vendor, reason])
            .inc();
    }
}

const OTHER_METHOD: &str = "other";

/// Returns the label for a method. Callers can invent methods, but labels must stay few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => OTHER_METHOD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_before_its_first_series() {
        let text = Metrics::new().text();
        for line in [
            "# HELP countersign_requests_total Requests by the status of their response, from the vendor or from the proxy.",
            "# TYPE countersign_requests_total counter",
            "# TYPE countersign_credential_fetch_duration_seconds histogram",
            "# TYPE countersign_credential_expiry_timestamp_seconds gauge",
        ] {
            assert_eq!(text.lines().filter(|had| *had == line).count(), 1, "{line}");
        }
    }

    #[test]
    fn every_series_has_help_and_type_and_counts() {
        let metrics = Metrics::new();
        let vendor = metrics.vendor("v");
        let caller: Arc<str> = Arc::from("ci");
        for _ in 0..3 {
            vendor.count_request(&caller, &Method::GET, 200, Duration::from_millis(2));
        }
        let odd = Method::from_bytes(b"BREW").unwrap();
        vendor.count_request(&caller, &odd, 418, Duration::ZERO);
        vendor.count_refusal("forbidden");
        metrics.set_credential("v", &["fresh", "failed"], "fresh", Some(1e9));
        metrics.fetch("v").ok.inc();
        vendor.count_request(&caller, &Method::GET, 503, Duration::ZERO);
        vendor.passed.inc();
        metrics.set_certificate("vendors.v.client_cert", 2e9);
        let answered = ResponseCounts {
            requests: 5,
            errors: 2,
        };
        assert_eq!(metrics.response_counts()["v"], answered);
        let certificates = [("vendors.v.client_cert".to_owned(), 2e9)];
        assert_eq!(metrics.certificates(), certificates);

        let text = metrics.text();
        for line in [
            r#"countersign_requests_total{caller="ci",method="GET",status="200",vendor="v"} 3"#,
            r#"countersign_requests_total{caller="ci",method="other",status="418",vendor="v"} 1"#,
            r#"countersign_refused_total{reason="forbidden",vendor="v"} 1"#,
            r#"countersign_credential_state{state="fresh",vendor="v"} 1"#,
            r#"countersign_credential_state{state="failed",vendor="v"} 0"#,
            r#"countersign_credential_fetch_total{outcome="ok",vendor="v"} 1"#,
            "# TYPE countersign_request_duration_seconds histogram",
            "# HELP countersign_build_info",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
