//! Routing and access decisions. The cost must not grow with the number of vendors.

use std::hint::black_box;
use std::sync::Arc;

use countersign::metrics::Metrics;
use countersign::request::caller::Caller;
use countersign::request::decide::{Ask, decide};
use countersign::request::path::Target;
use countersign::request::vendor::{Routes, Vendor};
use criterion::{BenchmarkId, Criterion};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routes");
    for count in [1, 100, 10_000] {
        let routes = table(count);
        let path = format!("/acme-{}/v1/certificates/4711", count / 2);
        group.bench_function(BenchmarkId::new("find", count), |bencher| {
            bencher.iter(|| routes.find(black_box("127.0.0.1"), black_box(&path)));
        });
        let caller = Arc::new(Caller::anyone());
        group.bench_function(BenchmarkId::new("decide", count), |bencher| {
            bencher.iter(|| {
                let target = Target::parse(black_box(path.as_bytes())).expect("a plain path");
                let ask = Ask {
                    method: "GET",
                    target,
                    authority: "127.0.0.1:8080",
                    server_name: None,
                };
                let decision = decide(&routes, ask, Ok(caller.clone()));
                assert!(decision.path.is_ok());
                decision
            });
        });
    }
}

/// Returns routes to `count` vendors, each with rules of its own.
fn table(count: usize) -> Routes<Vendor> {
    let metrics = Metrics::new();
    let mut configured = super::vendor(
        "    upstream: https://api.acme.example/base\n    refuse: [ \"/base/oauth/**\", \"!GET /base/oauth/keys\" ]\n    allow: [ \"/base/v1/**\" ]\n",
    );
    Routes::new((0..count).map(|nth| {
        configured.name = format!("acme-{nth}");
        configured.prefix = format!("/acme-{nth}");
        let vendor = Vendor::new(&configured, None, metrics.vendor(&configured.name));
        let hosts = vec![format!("acme-{nth}.proxy.internal")];
        (configured.prefix.clone(), hosts, Arc::new(vendor))
    }))
}
