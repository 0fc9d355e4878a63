//! Benchmarks of the parts of a request, each by itself: `make bench`.
//!
//! ```text
//! make bench                                   everything, some minutes
//! make bench ARGS=routes                       only those with this in their name
//! make bench ARGS='--save-baseline before'     and later '--baseline before'
//! ```

mod callers;
mod credentials;
mod documents;
mod heads;
mod responses;
mod routes;

use std::path::Path;
use std::time::Duration;

use countersign::config::{Config, Secrets, Vendor};
use criterion::Criterion;

fn main() {
    if responses::wrote_lines() {
        return;
    }
    // The TLS provider also computes digests.
    countersign::tls::install_provider();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    routes::bench(&mut criterion);
    callers::bench(&mut criterion);
    heads::bench(&mut criterion);
    credentials::bench(&mut criterion);
    responses::bench(&mut criterion);
    documents::bench(&mut criterion);
    criterion.final_summary();
}

/// Returns a vendor named acme, configured by these lines of YAML, which are indented by four.
fn vendor(lines: &str) -> Vendor {
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:1 }}\nvendors:\n  acme:\n{lines}"
    );
    config(&yaml).vendors.remove(0)
}

fn config(yaml: &str) -> Config {
    Config::parse(yaml, Path::new("proxy.yaml"), Secrets::Resolve)
        .unwrap_or_else(|errors| panic!("{errors:#?}"))
}
