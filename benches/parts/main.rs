//! How long the parts of a request take, each by itself: `make bench`.
//!
//! ```text
//! make bench                                   everything, some minutes
//! make bench ARGS=routes                       what has that in its name
//! make bench ARGS='--save-baseline before'     and later '--baseline before'
//! ```

mod answers;
mod callers;
mod credentials;
mod documents;
mod heads;
mod routes;

use std::path::Path;
use std::time::Duration;

use countersign::config::{Config, Secrets, Vendor};
use criterion::Criterion;

fn main() {
    if answers::wrote_lines() {
        return;
    }
    // The provider of TLS is of digests as well.
    countersign::tls::install_provider();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    routes::bench(&mut criterion);
    callers::bench(&mut criterion);
    heads::bench(&mut criterion);
    credentials::bench(&mut criterion);
    answers::bench(&mut criterion);
    documents::bench(&mut criterion);
    criterion.final_summary();
}

/// A vendor called acme, as configured by these lines of YAML, indented by four.
fn vendor(lines: &str) -> Vendor {
    let yaml = format!(
        "listeners: [ {{ bind: 127.0.0.1:0 }} ]\nadmin: {{ bind: 127.0.0.1:1 }}\nvendors:\n  acme:\n{lines}"
    );
    config(&yaml).vendors.remove(0)
}

fn config(yaml: &str) -> Config {
    Config::parse(yaml, Path::new("proxy.yaml"), Secrets::Resolve)
        .unwrap_or_else(|mistakes| panic!("{mistakes:#?}"))
}
